"""Triggers of users on job_queue that raise: one row that the database refuses stops no worker and holds up no other job."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from celery import Celery
from kombu import Consumer, Queue

from tests.support.database import one, rows
from tests.support.waiting import wait_until
from tests.support.workers import Worker

Start = Callable[..., Worker]

_VETO = """
    create function veto() returns trigger language plpgsql as
        $$ begin raise exception 'nobody touches %', new.task_id using errcode = '{code}'; end $$;
    create trigger veto before update on job_queue for each row
        when (new.task_id = 'unlucky' and {moment}) execute function veto()"""
_ELSEWHERE = """
    create function note() returns trigger language plpgsql as
        $$ begin perform set_config('no_such_setting', 'x', true); return new; end $$;
    create trigger note before update on job_queue for each row
        when (new.task_id = 'unlucky' and new.status = 'completed') execute function note()"""
_LIMITS = {
    "a sequence that is not ready": """
        create sequence numbers;
        create function number() returns trigger language plpgsql as $$ begin perform currval('numbers'); return new; end $$;
        create trigger number before update on job_queue for each row
            when (new.task_id = 'unlucky' and new.status = 'completed') execute function number()""",
    "an index that is too small": """
        create function lengthen() returns trigger language plpgsql as $$
            begin new.error_message := (select string_agg(md5(n::text), '') from generate_series(1, 2000) n); return new; end $$;
        create trigger lengthen before update on job_queue for each row
            when (new.task_id = 'unlucky' and new.status = 'completed') execute function lengthen();
        create index on job_queue (error_message)""",
}
_MOMENTS = {
    "claim": "old.owner is null and new.owner is not null",
    "start": "old.status = 'pending' and new.status = 'processing'",
    "end": "new.status = 'completed'",
}


def job(url: str) -> dict[str, Any]:
    return rows(url, "select * from job_queue where task_id = 'unlucky'")[0]


def run_beside(app: Celery, url: str, n: int, path: Path) -> None:
    """The unlucky job and n others, which all end."""
    app.tasks["t.record"].apply_async((str(path), "unlucky"), task_id="unlucky")
    with app.producer_or_acquire() as producer, producer.batch():
        for _ in range(n):
            app.tasks["t.record"].apply_async((str(path), "other"), producer=producer)
    wait_until(lambda: one(url, "select count(*) from job_queue where status = 'completed'") == n, "all others have ended")


def rolled_back(url: str) -> int:
    return int(one(url, "select xact_rollback from pg_stat_database where datname = current_database()"))


@pytest.fixture
def app(make_client: Callable[..., Celery]) -> Celery:
    """A client whose jobs are settled by their worker's main process, as no result is to be stored."""
    return make_client(task_ignore_result=True)


@pytest.mark.parametrize(("moment", "code"), [("claim", "P0001"), ("start", "check_violation"), ("end", "undefined_column")])
def test_a_row_that_is_refused_holds_up_nobody(moment: str, code: str, app: Celery, database_url: str, start_worker: Start,
                                               tmp_path: Path) -> None:
    rows(database_url, _VETO.format(moment=_MOMENTS[moment], code=code))
    worker = start_worker("-c", "2", "--prefetch-multiplier", "4")
    done = tmp_path / "done"
    run_beside(app, database_url, 30, done)
    refused = f"PostgreSQL refuses that job {job(database_url)['id']} is {moment}ed: "
    wait_until(lambda: refused.replace("ended", "completed") in worker.text, "the log says which job")
    assert "nobody touches unlucky (PL/pgSQL function public.veto() line 1 at RAISE)" in worker.text
    if moment == "start":
        wait_until(lambda: "nobody touches unlucky" in (job(database_url)["error_message"] or ""), "the row says why")
    assert job(database_url)["attempts"] == (1 if moment == "end" else 0)
    blamed = re.findall(r"PostgreSQL refuses that job (\S+) is", worker.text)
    assert set(blamed) == {str(job(database_url)["id"])}, "nobody else is blamed"
    assert rolled_back(database_url) < 100, "no busy loop"
    rows(database_url, "drop trigger veto on job_queue")
    rows(database_url, "update job_queue set run_at = now() where run_at > now()")  # its next turn would come in a minute
    wait_until(lambda: job(database_url)["status"] == "completed", "it ends when nobody refuses it any more")
    assert done.read_text().count("unlucky") == 1
    assert worker.stop() == 0


def test_nobody_else_is_blamed_when_a_second_ends_between_the_refusal_and_the_look(
        app: Celery, database_url: str, start_worker: Start, tmp_path: Path) -> None:
    """For a second a claim stays a little behind its cursor; here one of each refused job's claims lasts until that is over."""
    veto = _VETO.format(moment=_MOMENTS["claim"], code="P0001")
    rows(database_url, veto.replace("begin raise", "begin perform pg_sleep(0.3); raise"))
    worker = start_worker("-c", "2")
    run_beside(app, database_url, 30, tmp_path / "done")
    refused = f"PostgreSQL refuses that job {job(database_url)['id']} is claimed: "
    wait_until(lambda: refused in worker.text, "the log says which job")
    assert worker.text.count(refused) == worker.text.count("PostgreSQL refuses that job"), "nobody else is blamed"


def fill(app: Celery, url: str, done: str, refused: dict[str, int], others: int) -> set[str]:
    """Queues that begin with so many jobs that cannot be claimed, and others behind them. Returns the ids of the former."""
    veto = _VETO.format(moment=_MOMENTS["claim"], code="P0001").replace("new.task_id =", "new.task_name =")
    with app.producer_or_acquire() as producer, producer.batch():
        for queue, number in refused.items():
            for _ in range(number):
                app.send_task("unlucky", queue=queue, producer=producer)
            for _ in range(others):
                app.tasks["t.record"].apply_async((done, queue), queue=queue, producer=producer)
    rows(url, veto)
    return {str(row["id"]) for row in rows(url, "select id from job_queue where task_name = 'unlucky'")}


@pytest.mark.parametrize(("multiplier", "refused"), [
    ("1", {"q0": 1, "q1": 1, "q2": 1}), ("1", {"q0": 0, "q1": 1, "q2": 0}), ("4", {"q0": 0, "q1": 1, "q2": 0, "q3": 0}),
    ("4", {"q0": 0, "q1": 60, "q2": 0}), ("4", {"q0": 0, "q1": 60}),
], ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())))
def test_refused_jobs_of_several_queues_hold_up_none_of_them(
        multiplier: str, refused: dict[str, int], app: Celery, database_url: str, start_worker: Start, tmp_path: Path) -> None:
    """Claims begin with another queue each time, and the one with what is refused may never be first when it matters."""
    ids = fill(app, database_url, str(tmp_path / "done"), refused, 150)
    worker = start_worker("-c", "2", "--prefetch-multiplier", multiplier, "-Q", ",".join(refused))
    ended = "select count(*) from job_queue where status = 'completed'"
    wait_until(lambda: one(database_url, ended) == 150 * len(refused), "all others have ended", 15)
    wait_until(lambda: set(re.findall(r"PostgreSQL refuses that job (\S+) is", worker.text)) == ids, "nobody else is blamed")
    assert rolled_back(database_url) < 100 + 20 * len(ids), "no busy loop"


def test_refused_jobs_hold_up_no_consumer_that_blocks(app: Celery, database_url: str, tmp_path: Path) -> None:
    fill(app, database_url, str(tmp_path / "done"), {"a": 5, "b": 1, "c": 1}, 40)
    with app.connection_for_read() as connection, connection.channel() as channel:
        came: list[str] = []

        def take(_body: object, message: Any) -> None:
            came.append(message.delivery_info["routing_key"])
            message.ack()

        channel.basic_qos(0, 4, False)
        with Consumer(channel, [Queue(name, channel=channel) for name in "abc"], callbacks=[take]):
            while len(came) < 120:
                connection.drain_events(timeout=15)
    assert sorted(came) == sorted("abc" * 40)
    started = "select count(*) from job_queue where status = 'completed' and attempts = 1"
    assert one(database_url, started) == 120, "each was started before it was delivered"
    assert rolled_back(database_url) < 200, "no busy loop"


def test_a_result_that_is_refused_is_a_failure_that_says_why(make_client: Callable[..., Celery], database_url: str,
                                                             start_worker: Start, tmp_path: Path) -> None:
    """Results are stored by the process that ran the job, which can still tell."""
    rows(database_url, _VETO.format(moment=_MOMENTS["end"], code="P0001"))
    start_worker("-c", "2")
    run_beside(make_client(), database_url, 3, tmp_path / "done")
    wait_until(lambda: job(database_url)["status"] == "failed", "the job has failed")
    assert "nobody touches unlucky" in job(database_url)["error_message"]


def test_who_leaves_leaves_the_job_to_others(app: Celery, database_url: str, start_worker: Start, tmp_path: Path) -> None:
    rows(database_url, _VETO.format(moment=_MOMENTS["end"], code="P0001"))
    first = start_worker("-c", "2")
    run_beside(app, database_url, 3, tmp_path / "done")
    wait_until(lambda: "nobody touches unlucky" in first.text, "the log says why")
    assert first.stop() == 0
    assert not rows(database_url, "select id from jobqueue.worker")
    rows(database_url, "drop trigger veto on job_queue")
    start_worker("-c", "1")
    wait_until(lambda: job(database_url)["status"] == "completed", "another worker runs it again")
    assert (tmp_path / "done").read_text().count("unlucky") == 2


def test_a_trigger_that_fails_elsewhere_is_a_users_too(app: Celery, database_url: str, start_worker: Start,
                                                       tmp_path: Path) -> None:
    """What it does in other tables stands above its name in the error's context."""
    rows(database_url, _ELSEWHERE)
    worker = start_worker("-c", "2")
    run_beside(app, database_url, 3, tmp_path / "done")
    wait_until(lambda: "PostgreSQL refuses that job" in worker.text, "the log says so")
    rows(database_url, "drop trigger note on job_queue")
    wait_until(lambda: job(database_url)["status"] == "completed", "it ends")
    assert worker.process.poll() is None


@pytest.mark.parametrize("limit", _LIMITS.values(), ids=list(_LIMITS))
def test_what_looks_like_the_servers_trouble_and_is_a_rows(limit: str, app: Celery, database_url: str, start_worker: Start,
                                                           tmp_path: Path) -> None:
    """psycopg counts both errors among those of a server that cannot work, which are waited out."""
    rows(database_url, limit)
    worker = start_worker("-c", "2")
    run_beside(app, database_url, 5, tmp_path / "done")
    wait_until(lambda: f"PostgreSQL refuses that job {job(database_url)['id']} is completed" in worker.text, "the log says which")
    assert (tmp_path / "done").read_text().count("other") == 5, "nobody ran twice"


def test_a_result_of_which_an_index_is_too_small_fails_at_once(make_client: Callable[..., Celery], database_url: str,
                                                               start_worker: Start, tmp_path: Path) -> None:
    rows(database_url, _LIMITS["an index that is too small"])
    start_worker("-c", "2")
    run_beside(make_client(), database_url, 3, tmp_path / "done")
    wait_until(lambda: job(database_url)["status"] == "failed", "the job has failed", 30)


def test_a_row_that_somebody_has_locked_holds_up_nobody(app: Celery, database_url: str, start_worker: Start,
                                                        tmp_path: Path) -> None:
    worker = start_worker("-c", "2", app="tests.support.tuned_app", TEST_OPTIONS=json.dumps({"timeout": 1.5}))
    go = tmp_path / "go"
    app.tasks["t.wait"].apply_async((str(go),), task_id="unlucky")
    wait_until(lambda: job(database_url)["status"] == "processing", "it runs")
    connections = "select count(*) from pg_stat_activity where datname = current_database()"
    with psycopg.connect(database_url) as somebody:
        somebody.execute("select from job_queue where task_id = 'unlucky' for update")
        before = one(database_url, connections)
        (tmp_path / "go.go").touch()
        wait_until(lambda: "is completed: LockNotAvailable" in worker.text, "the log says what is held")
        for _ in range(10):
            app.tasks["t.record"].delay(str(tmp_path / "done"), "other")
        wait_until(lambda: one(database_url, "select count(*) from job_queue where status = 'completed'") == 10, "others end")
        assert one(database_url, connections) <= before + 2, "nobody is left waiting in the server"
    wait_until(lambda: job(database_url)["status"] == "completed", "it ends when the lock is gone")
    assert job(database_url)["total_starts"] == 1


def test_a_result_for_a_row_that_somebody_has_locked_is_stored_when_it_can_be(
        make_client: Callable[..., Celery], database_url: str, start_worker: Start, tmp_path: Path) -> None:
    worker = start_worker("-c", "1", app="tests.support.tuned_app", TEST_OPTIONS=json.dumps({"timeout": 1.5}))
    result = make_client().tasks["t.wait"].apply_async((str(tmp_path / "go"),), task_id="unlucky")
    wait_until(lambda: job(database_url)["status"] == "processing", "it runs")
    with psycopg.connect(database_url) as somebody:
        somebody.execute("select from job_queue where task_id = 'unlucky' for update")
        (tmp_path / "go.go").touch()
        wait_until(lambda: "PostgreSQL refuses the queue's work (LockNotAvailable" in worker.text, "its process waits")
    assert result.get(timeout=20) == "went"
    assert job(database_url)["total_starts"] == 1


def test_who_leaves_beside_a_locked_row_settles_the_others(app: Celery, database_url: str, start_worker: Start,
                                                           tmp_path: Path) -> None:
    worker = start_worker("-c", "2", app="tests.support.tuned_app", TEST_OPTIONS=json.dumps({"timeout": 1.5}))
    app.tasks["t.wait"].apply_async((str(tmp_path / "a"),), task_id="unlucky")
    app.tasks["t.wait"].apply_async((str(tmp_path / "b"),), task_id="lucky")
    for name in ("a", "b"):  # a job that is started and has not reached its process goes back
        wait_until((tmp_path / name).exists, "both run")
    with psycopg.connect(database_url) as somebody:
        somebody.execute("select from job_queue where task_id = 'unlucky' for update")
        worker.process.terminate()
        wait_until(lambda: "Warm shutdown" in worker.text, "it is leaving")
        for name in ("a", "b"):
            (tmp_path / f"{name}.go").touch()
        worker.process.wait(30)
        assert one(database_url, "select status from job_queue where task_id = 'lucky'") == "completed"
    assert not rows(database_url, "select id from jobqueue.worker")


def test_a_start_that_cannot_be_taken_back_ends_no_worker(app: Celery, database_url: str, start_worker: Start,
                                                          tmp_path: Path) -> None:
    """A quick task's job is started by its claim, and revoked meanwhile; the statement that takes the start back is refused."""
    worker = start_worker("-c", "1")
    for _ in range(10):
        app.tasks["t.record"].delay(str(tmp_path / "warm"), "x")
    wait_until(lambda: one(database_url, "select count(*) from job_queue where status = 'completed'") == 10, "it is a quick task")
    rows(database_url, """
        create function not_back() returns trigger language plpgsql as
            $$ begin raise exception 'not back'; end $$;
        create trigger not_back before update on job_queue for each row
            when (new.task_id = 'revoked' and old.status = 'processing' and new.status = 'pending' and new.owner is not null)
            execute function not_back()""")
    app.control.revoke("revoked", reply=True, timeout=10)
    app.tasks["t.record"].apply_async((str(tmp_path / "done"), "revoked"), task_id="revoked")
    app.tasks["t.record"].apply_async((str(tmp_path / "done"), "after"))
    wait_until(lambda: (tmp_path / "done").exists(), "the worker goes on")
    wait_until(lambda: one(database_url, "select error_message from job_queue where task_id = 'revoked'") == "revoked", "it ends")
    assert worker.process.poll() is None, worker.text
    assert "revoked" not in (tmp_path / "done").read_text()


def test_text_is_read_whatever_encoding_the_role_has(app: Celery, database_url: str, start_worker: Start, tmp_path: Path) -> None:
    rows(database_url, "select enqueue_job('t.record', %s)", (json.dumps([str(tmp_path / "done"), "é 名 "]),))
    worker = start_worker(PGCLIENTENCODING="LATIN1")
    wait_until(lambda: (tmp_path / "done").exists(), "it runs")
    assert "é 名" in (tmp_path / "done").read_text()
    assert worker.stop() == 0
