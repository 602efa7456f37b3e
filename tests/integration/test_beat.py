"""`celery beat` as people run it: several at once, killed at the worst moments, with the schedule in the database and without."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from celery import Celery

from tests.support.beats import MORTAL, Beat, beat, check, ticks
from tests.support.database import one, rows
from tests.support.pgbouncer import left_behind, pgbouncer
from tests.support.waiting import wait_until
from tests.support.workers import Worker

SECOND = timedelta(seconds=1)


@pytest.fixture
def start_beat(database_url: str, tmp_path: Path) -> Iterator[Callable[..., Beat]]:
    """Starts real beats on the test's database, which look every second; they are gone at the end."""
    with ExitStack() as stack:
        yield lambda *options, **env: stack.enter_context(
            beat(env.pop("url", database_url), tmp_path, *(options or ("--max-interval", "1")), **env))


def runs(url: str, name: str) -> int:
    return int(one(url, "select coalesce((select total_runs from jobqueue.schedule where name = %s), 0)", (name,)))


def due_now(url: str, name: str) -> None:
    rows(url, "update jobqueue.schedule set next_run_at = now() where name = %s", (name,))


# -- several at once -------------------------------------------------------------------------------------------------------


def test_three_beats_send_every_tick_once(start_beat: Callable[..., Beat], database_url: str) -> None:
    beats = [start_beat(TEST_SCHEDULE='{"one": 1, "half": 0.5}', ready=False) for _ in range(3)]
    for running in beats:
        running.wait_ready()
    wait_until(lambda: runs(database_url, "one") >= 8, "eight ticks", 60)
    codes = [running.stop() for running in beats]
    assert codes == [0, 0, 0]
    for name, every in {"one": SECOND, "half": SECOND / 2}.items():
        sent = ticks(database_url, name)
        check(sent, every)
        assert runs(database_url, name) == len(sent)
        assert f"Sending due task {name} (t.add)" in "".join(running.text for running in beats)
    # All three took part in it, or one would have done all the work and the test shown nothing.
    assert len([running for running in beats if "Sending due task" in running.text]) >= 2


def test_beats_that_are_killed_all_the_time_neither_lose_nor_double_a_tick(
        start_beat: Callable[..., Beat], database_url: str) -> None:
    def mortal() -> Beat:
        return start_beat(scheduler=MORTAL, TEST_FATE="sent saved committed", TEST_CHANCE=0.25, ready=False,
                          TEST_SCHEDULE='{"quick": 0.2}')

    beats, deaths = [mortal(), mortal()], 0
    start_beat(TEST_SCHEDULE='{"quick": 0.2}')  # one lives, so no tick has to wait long
    while deaths < 8:
        for number, running in enumerate(beats):
            if running.process.poll() is not None:
                assert running.process.returncode == -signal.SIGKILL, running.text
                deaths += 1
                beats[number] = mortal()
        time.sleep(0.02)
    many = runs(database_url, "quick")
    wait_until(lambda: runs(database_url, "quick") > many + 3, "the schedule goes on")
    with psycopg.connect(database_url) as conn, conn.transaction():
        conn.execute("select from jobqueue.schedule for update")  # nobody sends while we count
        sent = ticks(database_url, "quick")
        check(sent, SECOND / 5)
        assert runs(database_url, "quick") == len(sent)


@pytest.mark.parametrize(("fate", "sends"), [("sent", 1), ("saved", 1), ("committed", 0)])
def test_a_tick_whose_beat_dies_is_sent_once_by_the_next(fate: str, sends: int, start_beat: Callable[..., Beat],
                                                         database_url: str) -> None:
    dying = start_beat(scheduler=MORTAL, TEST_FATE=fate, TEST_SCHEDULE='{"nightly": 3600}')
    wait_until(lambda: rows(database_url, "select 1 from jobqueue.schedule where next_run_at is not null"), "it is scheduled")
    due_now(database_url, "nightly")
    assert dying.wait_dead() == -signal.SIGKILL
    assert len(ticks(database_url, "nightly")) == 1 - sends

    next_one = start_beat(TEST_SCHEDULE='{"nightly": 3600, "other": 0.2}')
    wait_until(lambda: runs(database_url, "other") >= 2, "the next beat has looked")
    assert len(ticks(database_url, "nightly")) == runs(database_url, "nightly") == 1
    assert next_one.text.count("Sending due task nightly") == sends


def test_a_frozen_beat_does_not_keep_its_tick(start_beat: Callable[..., Beat], database_url: str) -> None:
    env = {"TEST_SCHEDULE": '{"nightly": 3600}', "TEST_OPTIONS": '{"timeout": 1}'}
    frozen = start_beat(scheduler=MORTAL, TEST_FATE="sent", TEST_SIGNAL="SIGSTOP", **env)
    wait_until(lambda: rows(database_url, "select 1 from jobqueue.schedule where next_run_at is not null"), "it is scheduled")
    due_now(database_url, "nightly")
    wait_until(lambda: "Sending due task nightly" in frozen.text, "it has sent and not saved")
    start_beat(**env)
    wait_until(lambda: len(ticks(database_url, "nightly")) == 1, "another beat takes over")

    frozen.process.send_signal(signal.SIGCONT)
    wait_until(lambda: "Trying again" in frozen.text, "it finds out")
    due_now(database_url, "nightly")
    wait_until(lambda: runs(database_url, "nightly") == 2, "the next tick")
    assert len(ticks(database_url, "nightly")) == 2


# -- the schedule is a table -----------------------------------------------------------------------------------------------


def test_people_change_the_schedule_while_beat_runs(start_beat: Callable[..., Beat], database_url: str) -> None:
    running = start_beat("-l", "INFO", TEST_SCHEDULE='{"config": 3600}')  # it looks as often as it does by itself
    wait_until(lambda: one(database_url, "select count(*) from jobqueue.schedule") == 1, "the configuration is written")
    begun = time.monotonic()
    rows(database_url, "insert into jobqueue.schedule (name, task, schedule, args, options) values"
                       " ('mine', 't.add', '0.1 s', '[1, 2]', '{\"priority\": 2, \"queue\": \"mine\", \"max_attempts\": 7}')")
    wait_until(lambda: runs(database_url, "mine") >= 2, "a new row runs")
    assert time.monotonic() - begun < 8
    job = rows(database_url, "select queue, priority, max_attempts, task_name from job_queue limit 1")
    assert job == [{"queue": "mine", "priority": 2, "max_attempts": 7, "task_name": "t.add"}]

    rows(database_url, "insert into jobqueue.schedule (name, task, schedule, args) values ('other', 't.add', '0.1 s', '[1, 2]')")

    rows(database_url, "update jobqueue.schedule set schedule = '1 hour' where name = 'mine'")
    wait_until(lambda: one(database_url, "select next_run_at > now() + interval '50 minutes' from jobqueue.schedule"
                                         " where name = 'mine'"), "a slower schedule counts")
    rows(database_url, "update jobqueue.schedule set enabled = false, next_run_at = now() where name = 'mine'")
    stopped, others = runs(database_url, "mine"), runs(database_url, "other")
    wait_until(lambda: runs(database_url, "other") >= others + 3, "another row runs")
    assert runs(database_url, "mine") == stopped
    rows(database_url, "update jobqueue.schedule set enabled = true, schedule = '0.1 seconds' where name = 'mine'")
    rows(database_url, "delete from jobqueue.schedule where name = 'other'")
    wait_until(lambda: runs(database_url, "mine") >= stopped + 3, "enabled again")
    others = len(ticks(database_url, "other"))
    before = runs(database_url, "mine")
    wait_until(lambda: runs(database_url, "mine") >= before + 2, "it goes on")
    assert len(ticks(database_url, "other")) == others
    assert running.stop() == 0
    assert "ERROR" not in running.text
    assert len(ticks(database_url, "mine")) == runs(database_url, "mine")


def test_a_beat_survives_its_connections(start_beat: Callable[..., Beat], database_url: str) -> None:
    running = start_beat(TEST_SCHEDULE='{"quick": 0.2}')
    for _ in range(2):
        before = runs(database_url, "quick")
        wait_until(lambda before=before: runs(database_url, "quick") > before + 1, "it ticks")
        assert one(database_url, "select count(pg_terminate_backend(pid)) from pg_stat_activity"
                                 " where datname = current_database() and pid <> pg_backend_pid()") >= 2
    before = runs(database_url, "quick")
    wait_until(lambda: runs(database_url, "quick") > before + 1, "it ticks again")
    assert running.stop() == 0
    sent = ticks(database_url, "quick")
    check(sent, SECOND / 5)
    assert len(sent) == runs(database_url, "quick")


@pytest.mark.needs_pgbouncer
def test_behind_a_pooler_in_transaction_mode(start_beat: Callable[..., Beat], server: str, database_url: str) -> None:
    with pgbouncer(server) as pooler:
        pooled = pooler.url(database_url)
        beats = [start_beat(url=pooled, TEST_SCHEDULE='{"quick": 0.2}', TEST_OPTIONS='{"pooled": true}', ready=False)
                 for _ in range(2)]
        wait_until(lambda: all("Sending due task" in running.text for running in beats), "both send")
        for running in beats:
            assert running.stop() == 0
            assert "ERROR" not in running.text
        assert set(map(len, left_behind(pooled).values())) == {0}
    check(ticks(database_url, "quick"), SECOND / 5)


def test_a_worker_with_its_own_beat_runs_what_is_scheduled(start_worker: Callable[..., Worker], database_url: str) -> None:
    """`worker -B` in every worker doubles each tick with Celery's schedulers."""
    workers = [start_worker("-B", "--scheduler", "postgresql", app="tests.support.beat_app", ready=False,
                            TEST_SCHEDULE='{"add": 0.5}') for _ in range(2)]
    for worker in workers:
        worker.wait_ready()
    wait_until(lambda: one(database_url, "select count(*) from job_queue where status = 'completed' and result = '3'") >= 6,
               "jobs are sent and done")
    check(ticks(database_url, "add"), SECOND / 2)
    assert [worker.stop() for worker in workers] == [0, 0]


# -- Celery's own ----------------------------------------------------------------------------------------------------------


def test_celerys_own_scheduler_works_with_our_broker(start_beat: Callable[..., Beat], database_url: str, tmp_path: Path) -> None:
    own: dict[str, Any] = {"scheduler": "celery.beat:PersistentScheduler", "TEST_SCHEDULE": '{"quick": 0.2}'}
    for jobs in (3, 6):  # the second goes on with the first one's file
        running = start_beat("-s", str(tmp_path / "schedule"), **own)
        wait_until(lambda jobs=jobs: one(database_url, "select count(*) from job_queue") >= jobs, "it sends")
        assert running.stop() == 0
        assert "ERROR" not in running.text
        assert list(tmp_path.glob("schedule*"))
    assert rows(database_url, "select distinct task_name, status from job_queue") == [{"task_name": "t.add", "status": "pending"}]
    assert one(database_url, "select count(*) from jobqueue.schedule") == 0


@pytest.mark.parametrize("scheduler", ["postgresql", "celery.beat:PersistentScheduler"])
def test_beat_answers_a_ping(scheduler: str, start_beat: Callable[..., Beat], app: Celery, tmp_path: Path) -> None:
    running = start_beat("--enable-remote-control", "-n", "beat@test", "-s", str(tmp_path / "beat.db"), scheduler=scheduler)
    wait_until(lambda: app.control.inspect(destination=["beat@test"], timeout=0.3).ping() == {"beat@test": {"ok": "pong"}},
               "it answers")
    assert running.stop() == 0
    assert "ERROR" not in running.text
