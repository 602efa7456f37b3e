"""The SQL functions that any language can call, alone and together with Celery."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from celery import Celery
from celery.exceptions import TaskRevokedError, WorkerLostError

from tests.support.database import fresh_database, one
from tests.support.sql_client import Conn, enqueue, job, take, value
from tests.support.waiting import wait_until
from tests.support.workers import Worker

Start = Callable[..., Worker]
RESCUE = "select * from jobqueue.rescue(gen_random_uuid())"


@pytest.fixture
def conn(database_url: str) -> Iterator[Conn]:
    """A session of an application that speaks SQL only."""
    with closing(psycopg.connect(database_url, autocommit=True, row_factory=psycopg.rows.dict_row)) as conn:
        yield conn


# -- enqueue_job ------------------------------------------------------------------------------------------------------


def test_enqueue_job_writes_what_it_is_told(conn: Conn) -> None:
    later = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)
    id_ = enqueue(conn, "t.x", args=[1, "ü"], kwargs={"k": None, "user_id": 7}, queue="q", priority=2, max_attempts=9,
                  run_at=later, expires_at=later + timedelta(hours=1), task_id="mine")
    row = job(conn, id_)
    assert json.loads(row["payload"]) == [[1, "ü"], {"k": None, "user_id": 7}, {}]
    expected = {"status": "pending", "task_name": "t.x", "queue": "q", "priority": 2, "max_attempts": 9, "user_id": "7",
                "run_at": later, "expires_at": later + timedelta(hours=1), "task_id": "mine", "attempts": 0, "owner": None}
    assert {name: row[name] for name in expected} == expected


def test_enqueue_job_has_the_tables_defaults(conn: Conn) -> None:
    conn.execute("alter table job_queue alter max_attempts set default 5")
    id_ = enqueue(conn)
    row = job(conn, id_)
    assert (row["priority"], row["queue"], row["max_attempts"], row["task_id"]) == (5, "celery", 5, str(id_))
    assert (row["user_id"], row["expires_at"]) == (None, None)
    assert row["run_at"] == row["created_at"]


def test_a_rolled_back_transaction_leaves_no_job_and_wakes_nobody(conn: Conn, database_url: str) -> None:
    with closing(psycopg.connect(database_url, autocommit=True)) as listener:
        listener.execute(f'listen "{value(conn, "select jobqueue.channel(%s)", "celery")}"')
        with conn.transaction(force_rollback=True):
            enqueue(conn)
        assert (value(conn, "select count(*) from job_queue"), take(conn)) == (0, [])
        with conn.transaction():
            kept = [enqueue(conn) for _ in range(3)]
            assert one(database_url, "select count(*) from job_queue") == 0
        # One notification for the transaction that committed, none for the other.
        assert len(list(listener.notifies(timeout=5, stop_after=1))) == 1
        assert list(listener.notifies(timeout=0)) == []
    assert [row["id"] for row in take(conn, 5)] == kept


@pytest.fixture(scope="module")
def quiet(server: str, template: str) -> Iterator[Conn]:
    """A database with one job, in which nothing is to happen."""
    with fresh_database(server, template) as url, closing(
            psycopg.connect(url, autocommit=True, row_factory=psycopg.rows.dict_row)) as conn:
        enqueue(conn)
        yield conn


@pytest.mark.parametrize(("statement", "field"), [
    ("select enqueue_job('')", "task_name"), ("select enqueue_job(null)", "task_name"),
    ("select enqueue_job('t', priority => 0)", "priority 0"), ("select enqueue_job('t', priority => 11)", "priority 11"),
    ("select enqueue_job('t', priority => null)", "priority"), ("select enqueue_job('t', max_attempts => 0)", "max_attempts 0"),
    ("select enqueue_job('t', queue => '')", "queue"), ("select enqueue_job('t', args => '{}')", "args"),
    ("select enqueue_job('t', args => null)", "args"), ("select enqueue_job('t', kwargs => '[]')", "kwargs"),
    ("select get_next_job(n => 0)", "n 0"), ("select get_next_job(n => -1)", "n -1"), ("select get_next_job(n => null)", "n "),
    ("select get_next_job(lease => '0')", "lease"), ("select get_next_job(lease => '-1 minute')", "lease -00:01"),
    ("select get_next_job(lease => null)", "lease"), ("select get_next_job(queue => null)", "queue"),
    ("select extend_job(id, lease_token, '-1 s') from get_next_job()", "lease"),
    ("select extend_job(id, lease_token, null) from get_next_job()", "lease"),
    ("select reset_stuck_jobs('-1 s')", "older_than"), ("select reset_stuck_jobs(null)", "older_than"),
])
def test_bad_arguments_are_named_and_change_nothing(statement: str, field: str, quiet: Conn) -> None:
    before = quiet.execute("select * from job_queue").fetchall()
    with pytest.raises(psycopg.errors.InvalidParameterValue, match=f"^{field}"):
        quiet.execute(statement)
    assert quiet.execute("select * from job_queue").fetchall() == before


# -- get_next_job -----------------------------------------------------------------------------------------------------


def test_the_urgent_first_then_the_oldest_and_only_what_is_due(conn: Conn) -> None:
    enqueue(conn, run_at=datetime.now(UTC) + timedelta(minutes=1), priority=1)
    enqueue(conn, queue="other", priority=1)
    with conn.transaction():  # equal in age to the microsecond; still in the order they were enqueued
        ids = {name: enqueue(conn, priority=priority) for name, priority in (
            ("low", 10), ("a", 5), ("b", 5), ("c", 5), ("d", 5), ("first", 1))}
    got = take(conn, 2) + take(conn) + take(conn, 100)
    assert [row["id"] for row in got] == [ids[name] for name in ("first", "a", "b", "c", "d", "low")]
    assert take(conn) == []
    assert len(take(conn, queue="other")) == 1


def test_a_taken_job_tells_all_that_is_needed_and_is_running(conn: Conn) -> None:
    id_ = enqueue(conn, "t.x", args=[1], kwargs={"a": "b"}, user_id="u", priority=3, max_attempts=2)
    [got] = take(conn, lease="10 minutes")
    row = job(conn, id_)
    assert got == {"id": id_, "lease_token": row["lease"], "task_name": "t.x", "args": [1], "kwargs": {"a": "b"}, "priority": 3,
                   "attempts": 1, "max_attempts": 2, "user_id": "u"}
    assert (row["status"], row["worker"], row["attempts"]) == ("processing", "jobqueue", 1)
    assert timedelta(minutes=10) <= row["leased_until"] - row["started_at"] < timedelta(minutes=10, seconds=1)


@pytest.mark.parametrize("message", [
    {"payload": '[["\\u0000"], {}, {}]'}, {"payload": "not JSON"}, {"payload": "7"}, {"payload": '{"a": 1}'}, {"payload": None},
    {"payload": "[" * 100_000}, {"payload": "[[1e1000000], {}]"}, {"payload_binary": b"\x80\x04pickle"}])
def test_a_message_that_is_no_json_does_not_stop_the_queue(message: dict[str, Any], conn: Conn) -> None:
    [(column, body)] = message.items()
    conn.execute(f"insert into job_queue (task_name, {column}) values ('odd', %s)", (body,))
    plain = enqueue(conn, args=[1])
    odd, good = take(conn, 5)
    assert (odd["task_name"], odd["args"], odd["kwargs"]) == ("odd", None, None)
    assert (good["id"], good["args"]) == (plain, [1])
    assert value(conn, "select fail_job(%s, %s, 'cannot be read', false)", odd["id"], odd["lease_token"]) == "failed"


def test_an_expired_job_is_never_handed_out_and_says_so(conn: Conn, app: Celery) -> None:
    past = datetime.now(UTC) - timedelta(seconds=1)
    expired = [enqueue(conn, expires_at=past, priority=1) for _ in range(3)]
    good = enqueue(conn, expires_at=past + timedelta(hours=1))
    assert [row["id"] for row in take(conn)] == [good]
    for id_ in expired:
        row = job(conn, id_)
        assert (row["status"], row["attempts"], row["error_message"], row["owner"]) == ("failed", 0, "expired", None)
        with pytest.raises(TaskRevokedError, match="expired"):
            app.AsyncResult(str(id_)).get(timeout=5)


def test_nobody_gets_a_job_twice(conn: Conn, database_url: str) -> None:
    with conn.transaction():
        ids = {enqueue(conn, priority=number % 10 + 1) for number in range(400)}
    together = threading.Barrier(6)

    def work(n: int) -> list[uuid.UUID]:
        mine: list[uuid.UUID] = []
        with closing(psycopg.connect(database_url, autocommit=True, row_factory=psycopg.rows.dict_row)) as session:
            together.wait(20)
            while got := take(session, n):
                mine += [row["id"] for row in got]
        return mine

    with ThreadPoolExecutor(6) as pool:
        shares = list(pool.map(work, [1, 1, 1, 3, 5, 10]))
    assert sorted(id_ for share in shares for id_ in share) == sorted(ids)
    assert sum(map(bool, shares)) > 1
    assert value(conn, "select count(*) from job_queue where attempts = 1 and status = 'processing'") == 400


# -- the end of a job -------------------------------------------------------------------------------------------------


def complete(conn: Conn, got: dict[str, Any]) -> Any:
    return value(conn, "select complete_job(%s, %s)", got["id"], got["lease_token"])


def fail(conn: Conn, got: dict[str, Any], error: str = "no", retry: bool = True) -> Any:
    return value(conn, "select fail_job(%s, %s, %s, %s)", got["id"], got["lease_token"], error, retry)


def extend(conn: Conn, got: dict[str, Any], lease: str = "5 minutes") -> Any:
    return value(conn, "select extend_job(%s, %s, %s)", got["id"], got["lease_token"], lease)


def let_lease_expire(conn: Conn, got: dict[str, Any]) -> None:
    conn.execute("update job_queue set leased_until = now() - interval '1 s' where id = %s", (got["id"],))


def rescue(conn: Conn, got: dict[str, Any]) -> None:
    let_lease_expire(conn, got)
    conn.execute(RESCUE)


def rescue_at_the_last_attempt(conn: Conn, got: dict[str, Any]) -> None:
    conn.execute("update job_queue set max_attempts = 1 where id = %s", (got["id"],))
    rescue(conn, got)


def rescue_and_take_again(conn: Conn, got: dict[str, Any]) -> None:
    rescue(conn, got)
    assert len(take(conn)) == 1


LOST: dict[str, Callable[[Conn, dict[str, Any]], Any]] = {
    "completed": complete, "failed, to be tried again": fail, "failed for good": lambda conn, got: fail(conn, got, retry=False),
    "rescued": rescue, "rescued at its last attempt": rescue_at_the_last_attempt, "taken by another": rescue_and_take_again,
    "reset": lambda conn, _: value(conn, "select reset_stuck_jobs('0 s')"),
    "deleted": lambda conn, _: conn.execute("delete from job_queue")}


@pytest.mark.parametrize("how", LOST)
def test_a_lost_lease_changes_nothing(how: str, conn: Conn) -> None:
    enqueue(conn)
    [got] = take(conn)
    LOST[how](conn, got)
    before = conn.execute("select * from job_queue").fetchall()
    assert (complete(conn, got), fail(conn, got), fail(conn, got, retry=False), extend(conn, got)) == (False, None, None, None)
    assert conn.execute("select * from job_queue").fetchall() == before


#: What a Celery worker says of a job; {job} stands for id and lease, {jobs} for arrays of them.
SAYINGS = (
    "select jobqueue.complete({jobs})", "select jobqueue.complete_with_results({jobs}, '{{1}}', '{{null}}')",
    "select jobqueue.release({jobs})", "select jobqueue.fail({job}, 'no')",
    "select jobqueue.fail({job}, 'no', null, true)", "select jobqueue.note_retry({job}, 1, 'w', null)",
    "select jobqueue.rearm({job}, '{{\"queue\": \"celery\", \"task_id\": \"x\", \"priority\": 1}}')",
    *(f"select jobqueue.store_result({{job}}, '{state}', '1', null, null, null, null)"
      for state in ("SUCCESS", "FAILURE", "RETRY", "REVOKED", "PROGRESS")))


@pytest.mark.parametrize("how", sorted(set(LOST) - {"failed, to be tried again", "failed for good"}))
def test_a_lost_lease_changes_nothing_in_celerys_mouth_either(how: str, conn: Conn) -> None:
    enqueue(conn)
    [got] = take(conn)
    LOST[how](conn, got)
    before = conn.execute("select * from job_queue").fetchall()
    lease = f"'{got['id']}', '{got['lease_token']}'"
    for saying in SAYINGS:
        conn.execute(saying.format(job=lease, jobs=f"array[{lease.replace(', ', '::uuid], array[')}::uuid]"))
        assert conn.execute("select * from job_queue").fetchall() == before, saying


def test_a_wrong_token_changes_nothing(conn: Conn) -> None:
    before = job(conn, enqueue(conn))
    for token in (uuid.uuid4(), None):
        wrong = {"id": before["id"], "lease_token": token}
        assert (complete(conn, wrong), fail(conn, wrong), extend(conn, wrong)) == (False, None, None)
    assert job(conn, before["id"]) == before


def test_a_failing_job_is_tried_again_with_backoff_until_max_attempts(conn: Conn, app: Celery) -> None:
    id_ = enqueue(conn)
    for attempt, wait in ((1, 2), (2, 4)):
        assert fail(conn, take(conn)[0], f"error {attempt}") == "pending"
        row = job(conn, id_)
        assert (row["status"], row["attempts"], row["started_at"]) == ("pending", attempt, None)
        assert row["error_message"] == f"error {attempt}"
        delay = value(conn, "select extract(epoch from run_at - (errors -> -1 ->> 'at')::timestamptz)::float8 from job_queue")
        assert wait * 0.79 < delay < wait * 1.21
        assert take(conn) == []
        conn.execute("update job_queue set run_at = now()")
    assert fail(conn, take(conn)[0], "error 3") == "failed"
    row = job(conn, id_)
    assert (row["status"], row["attempts"], row["error_message"]) == ("failed", 3, "error 3")
    assert [(entry["start"], entry["error"]) for entry in row["errors"]] == [(n, f"error {n}") for n in (1, 2, 3)]
    assert row["started_at"] < row["finished_at"]
    with pytest.raises(RuntimeError, match="error 3"):
        app.AsyncResult(str(id_)).get(timeout=5)


def test_backoff_doubles_up_to_an_hour(conn: Conn) -> None:
    for attempts in (1, 2, 5, 11, 12, 40, 100_000):
        seconds = value(conn, "select array_agg(extract(epoch from jobqueue.backoff(%s))::float8) from generate_series(1, 200)",
                        attempts)
        wanted = min(2 ** min(attempts, 12), 3600)
        assert wanted * 0.8 <= min(seconds) < wanted < max(seconds) <= wanted * 1.2


def test_an_error_without_words_and_one_that_is_final(conn: Conn) -> None:
    enqueue(conn)
    [got] = take(conn)
    assert value(conn, "select fail_job(%s, %s, null, false)", got["id"], got["lease_token"]) == "failed"
    row = job(conn, got["id"])
    assert (row["attempts"], row["error_message"], len(row["errors"])) == (1, "failed without a message", 1)


def test_an_extended_lease_outlives_the_first_one(conn: Conn) -> None:
    kept, lost = enqueue(conn), enqueue(conn)
    first, second = take(conn, 2, lease="300 milliseconds")
    until = extend(conn, first, "1 hour")
    assert until == job(conn, kept)["leased_until"]
    wait_until(lambda: value(conn, "select leased_until < now() from job_queue where id = %s", lost), "the other lease is over")
    conn.execute(RESCUE)
    assert (job(conn, kept)["status"], complete(conn, first)) == ("processing", True)
    row = job(conn, lost)
    assert (row["status"], row["attempts"], row["redelivered"], row["leased_until"]) == ("pending", 1, True, None)
    assert "Worker lost" in row["errors"][0]["error"]
    assert complete(conn, second) is False


def test_a_rescue_wakes_idle_workers(conn: Conn, database_url: str) -> None:
    enqueue(conn)
    [got] = take(conn)
    let_lease_expire(conn, got)
    with closing(psycopg.connect(database_url, autocommit=True)) as listener:
        listener.execute(f'listen "{value(conn, "select jobqueue.channel(%s)", "celery")}"')
        assert conn.execute(RESCUE).fetchall() == []  # it has attempts left: nobody must be told of an end
        assert len(list(listener.notifies(timeout=5, stop_after=1))) == 1


def test_what_a_worker_gave_back_has_all_its_attempts_elsewhere(conn: Conn) -> None:
    """It had been started to run once at most, and has not run."""
    lost = enqueue(conn, max_attempts=2)
    [claim] = conn.execute("""
        select * from jobqueue.claim(
               gen_random_uuid(), 1, array['celery'], array[5]::smallint[], array['-infinity']::timestamptz[],
               array['00000000-0000-0000-0000-000000000000']::uuid[], 'w', 0, '{}', 1, array[%s])""",
        (job(conn, lost)["task_name"],)).fetchall()
    assert job(conn, lost)["at_most_once"]
    conn.execute("select jobqueue.release(array[%s]::uuid[], array[%s]::uuid[])", (claim["id"], claim["lease"]))
    [got] = take(conn)
    let_lease_expire(conn, got)
    assert conn.execute(RESCUE).fetchall() == []
    assert (job(conn, lost)["status"], job(conn, lost)["attempts"]) == ("pending", 1)


def test_reset_stuck_jobs_takes_the_old_ones_only(conn: Conn) -> None:
    old, new = enqueue(conn, max_attempts=1), enqueue(conn)
    taken = take(conn, 2)
    conn.execute("update job_queue set started_at = now() - interval '5 minutes 1 second' where id = %s", (old,))
    assert value(conn, "select reset_stuck_jobs()") == 1
    assert (job(conn, old)["status"], job(conn, old)["attempts"], job(conn, new)["status"]) == ("pending", 0, "processing")
    assert [complete(conn, got) for got in taken] == [False, True]


def test_get_user_jobs_newest_first(conn: Conn) -> None:
    ids = [enqueue(conn, user_id=user) for user in ("a", "b", "a", "A", "a")]
    enqueue(conn)
    found = conn.execute("select * from get_user_jobs('a')").fetchall()
    assert [row["id"] for row in found] == [ids[4], ids[2], ids[0]]
    assert set(found[0]).isdisjoint({"payload", "traceback", "lease", "owner", "envelope"})
    for nobody in ("c", "", None):
        assert conn.execute("select * from get_user_jobs(%s)", (nobody,)).fetchall() == []


# -- with Celery ------------------------------------------------------------------------------------------------------


def test_a_worker_runs_what_sql_enqueued_and_rescues_what_sql_workers_dropped(conn: Conn, app: Celery,
                                                                              start_worker: Start) -> None:
    dropped, last = enqueue(conn, args=[1, 1]), enqueue(conn, args=[1, 1], max_attempts=1)
    for got in take(conn, 2):
        let_lease_expire(conn, got)
    start_worker("-c", "1")
    named = enqueue(conn, kwargs={"x": 2, "y": 3}, task_id="my-own-id")
    assert app.AsyncResult("my-own-id").get(timeout=20) == 5
    assert app.AsyncResult(str(dropped)).get(timeout=20) == 2
    with pytest.raises(WorkerLostError, match="jobqueue stopped while the job was running"):
        app.AsyncResult(str(last)).get(timeout=20)
    ended = {id_: (row["status"], row["attempts"]) for id_ in (named, dropped, last) for row in [job(conn, id_)]}
    assert ended == {named: ("completed", 1), dropped: ("completed", 2), last: ("failed", 1)}
    with pytest.raises(ValueError, match="bang"):
        app.AsyncResult(str(enqueue(conn, "t.boom", args=["bang"]))).get(timeout=20)


@pytest.mark.parametrize("result", [None, 5, "ü\"", {"a": [1, None, {"b": "c"}]}])
def test_celery_sees_the_result_of_a_job_that_sql_completed(result: Any, conn: Conn, app: Celery) -> None:
    published = app.tasks["t.add"].delay(1, y=2)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(published.get, timeout=20)
        wait_until(lambda: value(conn, "select count(*) from jobqueue.waiter"), "the client waits")
        [got] = take(conn)
        assert (got["task_name"], got["args"], got["kwargs"]) == ("t.add", [1], {"y": 2})
        assert value(conn, "select complete_job(%s, %s, %s)", got["id"], got["lease_token"],
                     None if result is None else json.dumps(result)) is True
        assert waiting.result(20) == result
    assert job(conn, got["id"])["status"] == "completed"


def test_an_idle_worker_is_woken(conn: Conn, start_worker: Start, tmp_path: Path) -> None:
    start_worker("-c", "1", app="tests.support.tuned_app", TEST_OPTIONS='{"poll_interval": 60}')
    # By now it looks every five seconds or less often, so only the notification can be as fast as this.
    wait_until(lambda: value(conn, "select count(*) from jobqueue.worker where idle and started_at < now() - interval '3 s'"),
               "the worker has been idle")
    row = job(conn, enqueue(conn, args=[1, 1]))
    wait_until(lambda: job(conn, row["id"])["status"] == "completed", "it ran", 20)
    assert job(conn, row["id"])["started_at"] - row["created_at"] < timedelta(seconds=1)
