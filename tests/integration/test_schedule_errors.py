"""What is wrong in jobqueue.schedule: refused where the database can tell, told once and passed over where only a beat can."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from celery import Celery
from celery.beat import BeatLazyFunc
from psycopg import errors

from celery_jobqueue.broker.beat import DatabaseScheduler
from celery_jobqueue.db.errors import ConfigurationError
from tests.support.database import fresh_database, rows
from tests.support.schedule_table import HOURLY, JSON, MakeBeat, insert, jobs, make_due, schedulers, spin, table


@pytest.fixture
def beat(database_url: str) -> Iterator[MakeBeat]:
    """Makes schedulers of applications with this beat_schedule and these settings."""
    with schedulers(database_url) as make:
        yield make


def test_schedules_that_people_write(beat: MakeBeat, database_url: str) -> None:
    texts = ["30 seconds", "1.5 hours", "90 min", "01:30", "PT15M", "2 days 4 hours", "7", "0.5", "* * * * *",
             "*/5 0-6,22 1,15 jan-mar,12 mon-fri", "0 0 29 FEB 0", "5-55/10 23-2 * * sun", "00 07 01 01 monday",
             "solar sunset 48.1 11.6", "solar dawn_civil -90 180"]
    for text in texts:
        insert(database_url, name=text, schedule=text, timezone="America/New_York")
    spin(beat())
    found = table(database_url)
    assert {name: row["last_error"] for name, row in found.items()} == dict.fromkeys(texts)
    assert [name for name, row in found.items() if row["next_run_at"] <= row["changed_at"]] == []


@pytest.fixture(scope="module")
def refusing_url(server: str, template: str) -> Iterator[str]:
    """A database for rows that are refused; one stands in it."""
    with fresh_database(server, template) as url:
        insert(url, name="good")
        yield url


@pytest.mark.parametrize(("fields", "what"), [
    ({"schedule": text}, "schedule .* is not known: give an interval")
    for text in ("", "soon", "every day", "60 * * * *", "* 24 * * *", "* * 0 * *", "* * * 13 *", "* * * * 7", "* * * *",
                 "* * * * * *", "*/0 * * * *", "5/10 * * * *", "1-70 * * * *", ",1 * * * *", "mon * * * *", "5 4", "5 4 3 2 9",
                 "solar noon 1 2", "solar sunset 48", "1 hour; drop table job_queue")
] + [
    ({"schedule": "solar sunset 91 0"}, "no place on earth"), ({"schedule": "solar sunset 0 -180.1"}, "no place on earth"),
    ({"schedule": "1 month"}, "use a crontab such as '0 0 1"), ({"schedule": "1 year"}, "use a crontab"),
    ({"schedule": "0 seconds"}, "out of range"), ({"schedule": "-5 minutes"}, "out of range"),
    ({"schedule": "5 min ago"}, "out of range"), ({"schedule": "40000 days"}, "out of range"),
    ({"timezone": "Mars/Olympus"}, "timezone 'Mars/Olympus' is not known"),
    ({"name": ""}, "schedule_name"), ({"task": ""}, "schedule_task"), ({"args": {}}, "schedule_args"),
    ({"kwargs": []}, "schedule_kwargs"), ({"options": "x"}, "schedule_options"), ({"source": "me"}, "schedule_source"),
    ({"total_runs": -1}, "schedule_total_runs"), ({"next_run_at": "infinity"}, "schedule_next_run_at"),
    ({"last_run_at": "-infinity"}, "schedule_last_run_at"),
])
def test_rows_that_are_refused(fields: dict[str, Any], what: str, refusing_url: str) -> None:
    before = table(refusing_url)
    with pytest.raises(errors.CheckViolation, match=what):
        insert(refusing_url, **fields)
    [(column, value)] = fields.items()
    with pytest.raises(errors.CheckViolation, match=what):
        rows(refusing_url, f"update jobqueue.schedule set {column} = %s", (json.dumps(value) if column in JSON else value,))
    assert table(refusing_url) == before


def test_rows_that_beat_cannot_use_stop_no_other(beat: MakeBeat, database_url: str,
                                                 caplog: pytest.LogCaptureFixture) -> None:
    insert(database_url, name="never", schedule="0 0 31 2 *")
    insert(database_url, name="zone", schedule="0 0 * * *", timezone="CEST")  # PostgreSQL knows it, Python does not
    insert(database_url, name="good")
    scheduler = beat()
    for _ in range(3):
        rows(database_url, "update jobqueue.schedule set next_run_at = now()")
        spin(scheduler)
    found = table(database_url)
    assert found["good"]["total_runs"] == 3
    assert "never occurs" in found["never"]["last_error"]
    assert "CEST" in found["zone"]["last_error"]
    logged = [record.message.split("'")[1] for record in caplog.records if record.levelno == logging.ERROR]
    assert sorted(logged) == ["never", "zone"]

    rows(database_url, "update jobqueue.schedule set timezone = 'Europe/Berlin' where name = 'zone'")
    spin(scheduler)
    assert table(database_url)["zone"]["last_error"] is None
    assert table(database_url)["zone"]["next_run_at"] > table(database_url)["zone"]["changed_at"]


def test_jobs_that_cannot_be_sent_stop_no_other(beat: MakeBeat, database_url: str,
                                                caplog: pytest.LogCaptureFixture) -> None:
    def ask() -> int:
        raise ConnectionRefusedError("no such service")

    rows(database_url, "create function refuse() returns trigger language plpgsql as $$ begin"
                       " if new.queue = 'closed' then raise exception 'the queue is closed'; end if; return new; end $$;"
                       "create trigger refuse before insert on job_queue for each row execute function refuse()")
    insert(database_url, name="priority", options={"priority": 11})
    insert(database_url, name="arguments", args=[1, 2, 3])
    insert(database_url, name="refused", options={"queue": "closed"})
    rows(database_url, "insert into jobqueue.binding (exchange, routing_key, queue) values ('shop', 'orders', 'celery')")
    insert(database_url, name="routed", options={
        "exchange": "shop", "exchange_type": "topic", "routing_key": "orders", "priority": 12})
    insert(database_url, name="good")
    scheduler = beat({"unreachable": {**HOURLY, "args": (1, BeatLazyFunc(ask))}})
    spin(scheduler)
    rows(database_url, "update jobqueue.schedule set next_run_at = now()")
    for _ in range(4):  # a job that may succeed in a moment is tried again
        spin(scheduler)
    found = table(database_url)
    assert {name: (row["total_runs"], bool(row["last_error"])) for name, row in found.items()} == {
        "good": (1, False), **dict.fromkeys(("priority", "arguments", "refused", "unreachable", "routed"), (0, True))}
    assert "priority" in found["priority"]["last_error"]
    assert "positional argument" in found["arguments"]["last_error"]
    assert "the queue is closed" in found["refused"]["last_error"]
    assert found["unreachable"]["last_error"] == "ConnectionRefusedError: no such service"
    assert all(row["next_run_at"] > row["last_run_at"] for row in found.values())
    assert len(jobs(database_url)) == 1
    for message in ("Couldn't apply scheduled task priority", "No job of 'routed': priority=12",
                    "No job of 'refused': PostgreSQL refused the job: the queue is closed"):
        assert any(message in record.message for record in caplog.records), message

    rows(database_url, "update jobqueue.schedule set options = '{}', next_run_at = now() where name = 'refused'")
    spin(scheduler)
    assert (table(database_url)["refused"]["total_runs"], table(database_url)["refused"]["last_error"]) == (1, None)


def test_a_connection_that_breaks_is_not_put_down_to_the_row(beat: MakeBeat, database_url: str,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    insert(database_url)
    scheduler = beat()
    save = scheduler._save

    def cut_off(*args: Any, **kwargs: Any) -> None:
        monkeypatch.undo()
        rows(database_url, "select pg_terminate_backend(pid) from pg_stat_activity where state = 'idle in transaction'"
                           " and datname = current_database()")
        save(*args, **kwargs)

    for moment in ("a new row", "a job"):
        monkeypatch.setattr(scheduler, "_save", cut_off)
        assert scheduler.tick() > 0, moment
        assert jobs(database_url) == []
        spin(scheduler)
        row = table(database_url)["mine"]
        assert row["next_run_at"] is not None
        assert row["last_error"] is None
        assert row["total_runs"] == len(jobs(database_url)) == (moment == "a job")
        make_due(database_url)


def test_another_broker_is_told_at_once(beat: MakeBeat) -> None:
    with pytest.raises(ConfigurationError, match=r"broker_url must begin with postgresql://, it is amqp://me:\*\*@"):
        beat(broker_url="amqp://me:secret@127.0.0.1:1//")


def test_the_banner_hides_the_password(app: Celery, database_url: str) -> None:
    lazy = DatabaseScheduler(app=app, lazy=True)
    assert "jobqueue.schedule in postgresql://" in lazy.info
    assert str(urlsplit(database_url).password) not in lazy.info
    lazy.close()
    assert table(database_url) == {}


def test_a_publishers_rights_are_enough(beat: MakeBeat, database_url: str) -> None:
    rows(database_url, "drop role if exists t_beat")
    rows(database_url, "create role t_beat login password 'beat' in role jobqueue_publisher")
    parts = urlsplit(database_url)
    try:
        scheduler = beat({"hourly": HOURLY}, url=parts._replace(netloc=f"t_beat:beat@{parts.hostname}:{parts.port}").geturl())
        spin(scheduler)
        make_due(database_url, "hourly")
        spin(scheduler)
        assert table(database_url)["hourly"]["total_runs"] == len(jobs(database_url)) == 1
        scheduler.close()
    finally:
        rows(database_url, "drop role t_beat")
