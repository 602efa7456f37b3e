"""The table jobqueue.schedule and the scheduler that shares it: what it takes in and what it sends."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from celery import signals
from celery.beat import BeatLazyFunc
from celery.schedules import BaseSchedule, crontab
from kombu import Exchange, Queue
from psycopg import errors
from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session

from celery_jobqueue.broker.beat import DatabaseScheduler
from celery_jobqueue.db.models import Schedule
from celery_jobqueue.db.url import sqlalchemy_url
from tests.support.app import make_app
from tests.support.beats import ticks
from tests.support.database import one, rows
from tests.support.schedule_table import HOURLY, MakeBeat, insert, jobs, make_due, schedulers, spin, table


@pytest.fixture
def beat(database_url: str) -> Iterator[MakeBeat]:
    """Makes schedulers of applications with this beat_schedule and these settings."""
    with schedulers(database_url) as make:
        yield make


# -- the configuration -----------------------------------------------------------------------------------------------------


def test_the_configuration_is_written_and_what_it_no_longer_has_goes(
        beat: MakeBeat, database_url: str) -> None:
    insert(database_url)
    insert(database_url, name="theirs", source="config", app="bank")
    weekly = {"task": "t.record", "schedule": crontab(0, 7, day_of_week="mon"), "kwargs": {"word": "ü"},
              "options": {"priority": 2}}
    spin(beat({"hourly": HOURLY, "weekly": weekly, "gone": HOURLY}, timezone="Europe/Berlin", result_expires=3600))
    first = table(database_url)
    assert set(first) == {"mine", "theirs", "hourly", "weekly", "gone", "celery.backend_cleanup"}
    shown = ("task", "schedule", "timezone", "args", "kwargs", "options", "every", "source", "app", "in_code", "enabled")
    assert [first["hourly"][column] for column in shown] == [
        "t.add", "1 hour", None, [1, 2], {}, {}, timedelta(hours=1), "config", "shop", False, True]
    assert [first["weekly"][column] for column in shown] == [
        "t.record", "0 7 * * mon", "Europe/Berlin", [], {"word": "ü"}, {"priority": 2}, None, "config", "shop", False, True]
    assert first["celery.backend_cleanup"]["schedule"] == "0 4 * * *"

    make_due(database_url, "hourly")
    spin(beat({"hourly": HOURLY, "weekly": weekly, "gone": HOURLY}, timezone="Europe/Berlin", result_expires=3600))
    rows(database_url, "update jobqueue.schedule set enabled = false where name = 'weekly'")
    before = table(database_url)
    assert before["hourly"]["total_runs"] == 1
    assert before["gone"] == first["gone"]  # a beat that starts again changes nothing
    spin(beat({"hourly": HOURLY, "weekly": {**weekly, "schedule": crontab(0, 8)}}))
    after = table(database_url)
    assert set(after) == {"mine", "theirs", "hourly", "weekly"}
    assert after["hourly"] == before["hourly"]
    assert (after["weekly"]["schedule"], after["weekly"]["enabled"]) == ("0 8 * * *", False)  # what a person stopped stays so
    assert {name: after[name] for name in ("mine", "theirs")} == {name: before[name] for name in ("mine", "theirs")}


def test_peoples_rows_and_other_applications_rows_win(beat: MakeBeat, database_url: str,
                                                      caplog: pytest.LogCaptureFixture) -> None:
    insert(database_url, name="hourly", schedule="2 hours")
    insert(database_url, name="theirs", source="config", app="bank", schedule="3 hours")
    spin(beat({"hourly": HOURLY, "theirs": HOURLY}))
    after = table(database_url)
    assert (after["hourly"]["schedule"], after["hourly"]["source"]) == ("2 hours", "sql")
    assert (after["theirs"]["schedule"], after["theirs"]["app"]) == ("3 hours", "bank")
    said = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert any("'hourly' stays as it is: somebody wrote it" in message for message in said)
    assert any("'theirs' stays as it is: the application 'bank' has it" in message for message in said)


def test_applications_send_their_own(beat: MakeBeat, database_url: str) -> None:
    shop, bank = beat({"shop": HOURLY}), beat({"bank": HOURLY}, main="bank")
    spin(shop, bank)
    insert(database_url)  # anybody's
    insert(database_url, name="for bank", app="bank")
    spin(shop)
    rows(database_url, "update jobqueue.schedule set next_run_at = now()")
    spin(shop)
    assert {job["headers"]["periodic_task_name"] for job in jobs(database_url)} == {"shop", "mine"}
    spin(bank)
    assert [len(ticks(database_url, name)) for name in ("shop", "mine", "bank", "for bank")] == [1, 1, 1, 1]


def test_entries_that_are_code(beat: MakeBeat, database_url: str) -> None:
    class Always(BaseSchedule):
        def is_due(self, last_run_at: datetime) -> tuple[bool, float]:
            return True, 3600

    numbers = iter(range(10))
    code = {"lazy": {"task": "t.add", "schedule": 3600, "args": (BeatLazyFunc(lambda: next(numbers)), 1)},
            "always": {"task": "t.add", "schedule": Always(), "args": (1, 2)}}
    knows, other = beat(code), beat()
    spin(knows)
    spin(other)  # a version of the application that no longer has them
    assert table(database_url) == {}
    other, knows = beat(), beat(code)
    spin(other, knows)
    assert {name: row["in_code"] for name, row in table(database_url).items()} == {"lazy": True, "always": True}
    make_due(database_url, "lazy")
    make_due(database_url, "always")
    spin(other)
    assert len(ticks(database_url, "lazy")) == 0
    for number in range(2):
        make_due(database_url, "lazy")
        spin(knows)
        assert jobs(database_url)[-1]["body"][0] == [number, 1]
    assert table(database_url)["lazy"]["total_runs"] == 2
    assert len(ticks(database_url, "always")) == 3  # whenever it was new, and when it was made due
    with pytest.raises(errors.CheckViolation):
        insert(database_url, in_code=True)


def test_add_periodic_task_and_add(beat: MakeBeat, database_url: str) -> None:
    app = make_app(database_url, result_expires=None)
    app.add_periodic_task(60, app.tasks["t.add"].s(1, 2), name="early", priority=3)
    scheduler = DatabaseScheduler(app=app)
    spin(scheduler)
    scheduler.add(name="late", task="t.add", schedule=7200, args=(1, 2))
    spin(scheduler)
    found = table(database_url)
    assert {name: (row["schedule"], row["source"]) for name, row in found.items()} == {
        "early": ("1 minute", "config"), "late": ("2 hours", "config")}
    assert found["early"]["options"] == {"priority": 3}
    assert found["late"]["next_run_at"] is not None
    scheduler.close()
    app.close()


def test_an_entry_that_cannot_be_stored_stops_no_other(beat: MakeBeat, database_url: str,
                                                       caplog: pytest.LogCaptureFixture) -> None:
    beat({"a\0b": HOURLY, "empty": {**HOURLY, "task": ""}, "minute": {**HOURLY, "schedule": crontab(minute="mon")},
          "tiny": {**HOURLY, "schedule": 0.0001}, "good": HOURLY, "": HOURLY}).tick()
    assert {name: row["in_code"] for name, row in table(database_url).items()} == {"good": False, "minute": True, "tiny": True}
    said = [record.message for record in caplog.records if "cannot be scheduled" in record.message]
    assert len(said) == 3
    assert any("'a\\x00b'" in message for message in said)


# -- what is sent ----------------------------------------------------------------------------------------------------------


def test_a_job_is_what_celerys_beat_would_send(beat: MakeBeat, database_url: str) -> None:
    seen: list[tuple[str, dict[str, Any]]] = []

    @signals.before_task_publish.connect
    def note(sender: str, headers: dict[str, Any], **kwargs: Any) -> None:
        seen.append((sender, headers))
        headers["stamp"] = "from a signal"

    insert(database_url, task="t.add", kwargs={"y": 2}, args=[1], options={
        "priority": 1, "max_attempts": 9, "user_id": "ann", "expires": 600, "headers": {"mine": 1}, "shadow": "sum"})
    insert(database_url, name="unknown", task="elsewhere.task", args=["x"])
    insert(database_url, name="routed", options={"queue": "explicit"})
    scheduler = beat(task_routes={"t.add": {"queue": "by-route"}})
    spin(scheduler)
    rows(database_url, "update jobqueue.schedule set next_run_at = now()")
    spin(scheduler)
    sent = {job["headers"]["periodic_task_name"]: job for job in jobs(database_url)}
    mine, headers = sent["mine"], sent["mine"]["headers"]
    assert (mine["task_name"], mine["queue"], mine["priority"], mine["max_attempts"], mine["user_id"]) == (
        "t.add", "by-route", 1, 9, "ann")
    assert mine["body"][:2] == [[1], {"y": 2}]
    assert timedelta(minutes=9) < mine["expires_at"] - mine["created_at"] < timedelta(minutes=11)
    assert {name: headers[name] for name in ("celery_beat_task", "mine", "shadow", "stamp")} == {
        "celery_beat_task": True, "mine": 1, "shadow": "sum", "stamp": "from a signal"}
    assert (sent["unknown"]["task_name"], sent["unknown"]["queue"]) == ("elsewhere.task", "celery")
    assert sent["routed"]["queue"] == "explicit"
    assert sorted(sender for sender, _ in seen) == ["elsewhere.task", "t.add", "t.add"]


def test_a_message_for_several_queues_is_a_job_in_each(beat: MakeBeat, database_url: str) -> None:
    everywhere = Exchange("everywhere", "fanout")
    scheduler = beat(task_queues=[Queue("left", everywhere), Queue("right", everywhere)])
    with scheduler.app.connection_for_write() as connection, connection.channel() as channel:
        for queue in scheduler.app.conf.task_queues:
            queue(channel).declare()
    insert(database_url, options={"exchange": "everywhere", "exchange_type": "fanout", "routing_key": "any"})
    for _ in range(2):
        spin(scheduler)
        make_due(database_url)
    spin(scheduler)
    assert sorted(job["queue"] for job in jobs(database_url)) == ["left", "left", "right", "right"]


def test_the_same_tick_is_the_same_job(beat: MakeBeat, database_url: str) -> None:
    insert(database_url)
    scheduler = beat()
    spin(scheduler)
    make_due(database_url)
    tick = table(database_url)["mine"]["next_run_at"]
    spin(scheduler)
    rows(database_url, "update jobqueue.schedule set next_run_at = %s", (tick,))  # as if it had been sent and not saved
    spin(scheduler)
    assert len(jobs(database_url)) == 1
    make_due(database_url)
    spin(scheduler)
    assert len(jobs(database_url)) == 2


@pytest.mark.parametrize("schedule", ["1 minute", "* * * * *"])
def test_missed_ticks_are_one_job(schedule: str, beat: MakeBeat, database_url: str) -> None:
    insert(database_url, schedule=schedule)
    spin(beat())
    make_due(database_url, ago="3 days")
    spin(beat(), beat())
    assert len(jobs(database_url)) == 1
    row = table(database_url)["mine"]
    assert row["total_runs"] == 1
    assert row["last_run_at"] < row["next_run_at"] <= row["last_run_at"] + timedelta(minutes=1)


def test_the_databases_clock_decides(beat: MakeBeat, database_url: str,
                                     monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = beat({"interval": HOURLY, "crontab": {**HOURLY, "schedule": crontab()}})
    monkeypatch.setattr(scheduler.app, "now", lambda: datetime(2040, 1, 1, tzinfo=UTC))
    spin(scheduler)
    now = one(database_url, "select now()")
    found = table(database_url)
    assert found["interval"]["next_run_at"] - now < timedelta(hours=1)
    assert found["crontab"]["next_run_at"] - now <= timedelta(minutes=1)
    assert jobs(database_url) == []
    for name in ("interval", "crontab"):
        make_due(database_url, name)
    spin(scheduler)
    assert len(jobs(database_url)) == 2
    assert table(database_url)["crontab"]["next_run_at"] - now <= timedelta(minutes=2)


def test_eager_tasks_run_here(beat: MakeBeat, database_url: str) -> None:
    insert(database_url)
    scheduler = beat(task_always_eager=True)
    spin(scheduler)
    make_due(database_url)
    spin(scheduler)
    assert jobs(database_url) == []
    assert table(database_url)["mine"]["total_runs"] == 1


# -- changes by people -----------------------------------------------------------------------------------------------------


def test_what_a_change_does_to_the_next_run(beat: MakeBeat, database_url: str) -> None:
    insert(database_url)
    scheduler = beat()
    spin(scheduler)
    make_due(database_url, ago="1 minute")
    spin(scheduler)
    row = table(database_url)["mine"]

    def after(change: str) -> dict[str, Any]:
        rows(database_url, f"update jobqueue.schedule set {change}")
        return table(database_url)["mine"]

    assert after("args = '[3, 4]', task = 't.add'")["next_run_at"] == row["next_run_at"]
    assert after("schedule = schedule")["next_run_at"] == row["next_run_at"]
    assert after("every = '1 day'")["every"] == timedelta(hours=1)
    changed = after("schedule = ' 2 hours '")
    assert (changed["next_run_at"], changed["every"], changed["schedule"]) == (None, timedelta(hours=2), "2 hours")
    spin(scheduler)
    assert table(database_url)["mine"]["next_run_at"] == row["last_run_at"] + timedelta(hours=2)
    assert after("schedule = '1 day', next_run_at = '2030-01-01 00:00+00'")["next_run_at"] == datetime(2030, 1, 1, tzinfo=UTC)

    # What went by while it was off is not made up for; a crontab waits for its next time.
    after("schedule = '0 7 * * *', enabled = false, next_run_at = now() - interval '3 days'")
    spin(scheduler)
    assert after("enabled = true")["next_run_at"] is None
    spin(scheduler)
    assert table(database_url)["mine"]["next_run_at"] > one(database_url, "select now()")
    assert table(database_url)["mine"]["total_runs"] == 1


def test_a_row_that_a_person_is_changing_keeps_no_other_waiting(
        beat: MakeBeat, database_url: str) -> None:
    insert(database_url)
    insert(database_url, name="other")
    scheduler = beat()
    spin(scheduler)
    rows(database_url, "update jobqueue.schedule set next_run_at = now()")
    with psycopg.connect(database_url) as conn:
        conn.execute("update jobqueue.schedule set args = '[3, 4]' where name = 'mine'")
        spin(scheduler)
        assert [len(ticks(database_url, name)) for name in ("mine", "other")] == [0, 1]
        assert 0 < scheduler.tick() <= 1
    spin(scheduler)
    assert sorted(job["body"][0] for job in jobs(database_url)) == [[1, 2], [3, 4]]


def test_the_model(beat: MakeBeat, database_url: str) -> None:
    engine = create_engine(sqlalchemy_url(database_url))
    with Session(engine) as session:
        session.add(Schedule(name="orm", task="t.add", schedule="1 hour", args=[1, 2], options={"priority": 1}))
        session.commit()
        spin(beat())
        row = session.scalars(select(Schedule).execution_options(populate_existing=True)).one()
        assert (row.every, row.enabled, row.total_runs, row.source) == (timedelta(hours=1), True, 0, "sql")
        assert row.next_run_at is not None
        assert row.next_run_at - row.changed_at < timedelta(hours=1, minutes=1)
    engine.dispose()
