"""What Celery and kombu expect of every transport and result backend, where no other file asks for it (docs/contract.md)."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from amqp import ChannelError, RecoverableConnectionError
from celery import Celery, group
from celery.exceptions import TaskRevokedError, WorkerLostError
from celery.exceptions import TimeoutError as ResultTimeout
from celery.result import GroupResult
from kombu import Connection, Consumer, Queue

from celery_jobqueue.broker import enqueue_many
from celery_jobqueue.broker.transport import Transport
from tests.support.database import one, rows
from tests.support.programs import Process, program
from tests.support.waiting import wait_until
from tests.support.workers import Worker

Start = Callable[..., Worker]


@contextmanager
def neighbour(url: str, place: Path, name: str) -> Iterator[Process]:
    """A worker as people start it, with gossip and mingle."""
    with program(url, place / f"{name}.log", "-m", "celery", "-A", "tests.support.app", "worker", "-c", "1", "-l", "DEBUG",
                 "-n", f"{name}@test") as process:
        process.wait_for(" ready.")
        yield process


def test_workers_know_each_other(app: Celery, database_url: str, tmp_path: Path) -> None:
    with ExitStack() as stack:
        first = stack.enter_context(neighbour(database_url, tmp_path, "first"))
        app.control.revoke("somebody-elses-job")
        wait_until(lambda: "somebody-elses-job" in str(app.control.inspect(timeout=1).revoked()), "the first one knows")
        second = stack.enter_context(neighbour(database_url, tmp_path, "second"))
        second.wait_for("mingle: sync complete")
        assert app.control.inspect(["second@test"], timeout=5).revoked()["second@test"] == ["somebody-elses-job"]
        first.wait_for("second@test joined the party")
        second.process.send_signal(signal.SIGTERM)
        first.wait_for("second@test left")


def test_what_is_settled_while_a_worker_leaves_stays_settled(make_client: Callable[..., Celery], database_url: str,
                                                            start_worker: Start, tmp_path: Path) -> None:
    app = make_client(task_ignore_result=True)  # only the acknowledgement settles
    worker = start_worker("-c", "2", TEST_IGNORE="1")
    marks = [tmp_path / "a", tmp_path / "b"]
    short, long = (app.tasks["t.wait"].delay(str(mark)) for mark in marks)
    wait_until(lambda: all(mark.exists() for mark in marks), "both run")
    worker.process.send_signal(signal.SIGTERM)
    wait_until(lambda: "Warm shutdown" in worker.text, "the worker is leaving")
    Path(f"{marks[0]}.go").touch()
    # Its loop turns no more, and it waits for the other task: told now or, if it is killed, never.
    status = "select status from job_queue where task_id = %s"
    wait_until(lambda: one(database_url, status, (short.id,)) == "completed", "it is settled", 10)
    assert one(database_url, status, (long.id,)) == "processing"
    assert worker.process.poll() is None


def test_a_closed_channel_and_a_cut_connection_mean_connect_again(app: Celery, database_url: str) -> None:
    connection = app.connection_for_write()
    channel = connection.default_channel
    connection.close()
    with pytest.raises(RecoverableConnectionError):
        channel.basic_publish(channel.prepare_message("{}"), routing_key="celery")
    for name in ("connection_errors", "recoverable_connection_errors"):
        assert issubclass(RecoverableConnectionError, getattr(Transport, name))
        assert issubclass(psycopg.errors.AdminShutdown, getattr(Transport, name))
        assert issubclass(psycopg.errors.CannotConnectNow, getattr(Transport, name))
        assert not issubclass(psycopg.errors.UndefinedTable, getattr(Transport, name))
    app.tasks["t.add"].delay(1, 1)
    rows(database_url, "select pg_terminate_backend(pid) from pg_stat_activity"
                       " where datname = current_database() and pid <> pg_backend_pid()")
    app.tasks["t.add"].delay(1, 2)  # by the pooled producer, whose connection is dead
    app.close()
    app.tasks["t.add"].delay(1, 3)
    assert one(database_url, "select count(*) from job_queue") == 3


def test_a_channel_error_costs_neither_connection_nor_channel(database_url: str) -> None:
    assert Transport.channel_errors == Transport.recoverable_channel_errors == (ChannelError,)
    assert not issubclass(ChannelError, Transport.connection_errors)
    with Connection(database_url) as connection:
        channel = connection.default_channel
        missing, retried = Queue("missing", channel=channel), []

        def declare() -> int:
            return int(missing.queue_declare(passive=not retried).message_count)

        with pytest.raises(Transport.recoverable_channel_errors):
            declare()
        again = connection.ensure(channel, declare, errback=lambda error, _: retried.append(error), max_retries=3)
        assert (again(), [type(error) for error in retried]) == (0, [ChannelError])
        assert (connection.default_channel, connection.connected) == (channel, True)


def test_what_kombu_asks_all_the_time_is_cheap(app: Celery, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows(database_url, "insert into job_queue (queue) select 'full' from generate_series(1, 30_000)")
    with Connection(database_url) as connection, connection.channel() as channel:
        # Every declaration asks for the length; nobody counts to the end for that.
        assert Queue("full", channel=channel).queue_declare(passive=False).message_count == 10_000
        asked: list[object] = []
        monkeypatch.setattr(connection.transport.session, "send", asked.append)
        assert connection.connected
        assert asked == []


def test_a_message_that_comes_back_says_so(app: Celery, database_url: str) -> None:
    app.tasks["t.add"].delay(1, 1)
    seen: list[bool] = []

    def take(_: Any, message: Any) -> None:
        seen.append(message.delivery_info["redelivered"])
        if len(seen) == 1:
            message.requeue()
        else:
            message.ack()

    with app.connection_for_read() as connection, Consumer(connection, [Queue("celery")], callbacks=[take], accept=["json"]):
        while len(seen) < 2:
            connection.drain_events(timeout=20)
    assert seen == [False, True]
    assert rows(database_url, "select status, redelivered from job_queue") == [{"status": "completed", "redelivered": True}]


def test_a_message_that_is_got_without_acknowledgement_is_done(app: Celery, database_url: str) -> None:
    app.tasks["t.add"].delay(1, 1)
    with app.connection_for_read() as connection:
        queue = Queue("celery")(connection.channel())
        assert queue.get(no_ack=True, accept=["json"]).payload[0] == [1, 1]
        assert rows(database_url, "select status, attempts, owner from job_queue") == [
            {"status": "completed", "attempts": 1, "owner": None}]
        assert queue.get(no_ack=True) is None


def test_results_do_all_that_celerys_own_backends_do(make_client: Callable[..., Celery], database_url: str, start_worker: Start,
                                                     tmp_path: Path) -> None:
    app: Any = make_client(result_extended=True)
    start_worker(app="tests.support.extended_app")
    add = app.tasks["t.add"]
    mark = tmp_path / "mark"
    slow, quick, bad = app.tasks["t.wait"].delay(str(mark)), add.apply_async((2,), {"y": 3}), app.tasks["t.boom"].delay("bang")
    # get_many: each as it becomes ready, until the time is over.
    found = app.backend.get_many([slow.id, quick.id, bad.id], timeout=20)
    first = dict(next(found) for _ in range(2))
    assert {id_: meta["status"] for id_, meta in first.items()} == {quick.id: "SUCCESS", bad.id: "FAILURE"}
    with pytest.raises(ResultTimeout):
        list(app.backend.get_many([slow.id], timeout=0.2, interval=None))
    assert list(app.backend.get_many([slow.id], max_iterations=2)) == []
    Path(f"{mark}.go").touch()
    assert [(id_, meta["result"]) for id_, meta in found] == [(slow.id, "went")]
    # result_extended
    meta = app.AsyncResult(quick.id)
    assert (meta.name, meta.args, meta.kwargs, meta.queue, meta.retries) == ("t.add", [2], {"y": 3}, "celery", 0)
    assert meta.worker.endswith("@test")
    assert meta.date_done is not None
    # Groups are saved and restored, in order, by a process that has the id only.
    saved = group(add.s(n, n) for n in range(3)).apply_async()
    saved.save()
    restored = GroupResult.restore(saved.id, app=app)
    assert ([result.id for result in restored], restored.get(timeout=20)) == ([result.id for result in saved], [0, 2, 4])
    restored.delete()
    assert GroupResult.restore(saved.id, app=app) is None
    # What is forgotten is gone, and its job is not.
    quick.forget()
    assert (app.AsyncResult(quick.id).state, app.AsyncResult(bad.id).state) == ("PENDING", "FAILURE")
    assert rows(database_url, "select status, state, result from job_queue where task_id = %s", (quick.id,)) == [
        {"status": "completed", "state": None, "result": None}]


def test_what_ends_without_running_is_told_with_all_that_it_was(make_client: Callable[..., Celery], start_worker: Start,
                                                                tmp_path: Path) -> None:
    """By whoever finds it: with `result_extended` a result says of which task, arguments and queue it is."""
    app: Any = make_client(result_extended=True)
    dead = start_worker("-c", "1", app="tests.support.extended_app", TEST_ACKS="early")
    mark = str(tmp_path / "mark")
    lost, revoked = app.tasks["t.wait"].delay(mark), app.tasks["t.add"].apply_async((1,), {"y": 2}, queue="nobodys")
    wait_until(Path(mark).exists, "the task runs")
    os.kill(dead.process.pid, signal.SIGKILL)
    start_worker("-c", "1", app="tests.support.extended_app", TEST_ACKS="early")
    app.control.revoke(revoked.id)
    for result, error, told in ((lost, WorkerLostError, ("t.wait", [mark], {}, "celery", 0)),
                                (revoked, TaskRevokedError, ("t.add", [1], {"y": 2}, "nobodys", 0))):
        with pytest.raises(error):
            result.get(timeout=30)
        assert (result.name, result.args, result.kwargs, result.queue, result.retries) == told


def test_messages_have_a_time_to_live(database_url: str) -> None:
    with Connection(database_url) as connection, connection.channel() as channel:
        short = Queue("short", exclusive=True, message_ttl=0.2, expires=60, channel=channel)
        patient = Queue("patient", exclusive=True, expires=60, channel=channel)
        jobs = Queue("jobs", channel=channel)
        for queue in (short, patient, jobs):
            queue.declare()
        producer = connection.Producer(channel)
        for queue, expiration in ((short, None), (patient, 0.2), (patient, None), (jobs, 0.2), (jobs, None)):
            producer.publish({"expiration": expiration}, routing_key=queue.name, expiration=expiration)
        gone = "select count(*) from jobqueue.message where expires_at < now()"
        wait_until(lambda: one(database_url, gone) == 2 and one(
            database_url, "select count(*) from job_queue where expires_at < now()") == 1, "their time is over")
        got: list[tuple[str, Any]] = []

        def take(body: Any, message: Any) -> None:
            got.append((message.delivery_info["routing_key"], body))
            message.ack()

        with Consumer(channel, [short, patient, jobs], callbacks=[take], accept=["json"]):
            while len(got) < 2:
                connection.drain_events(timeout=20)
            with pytest.raises(TimeoutError):
                connection.drain_events(timeout=0.5)
    assert sorted(got) == [("jobs", {"expiration": None}), ("patient", {"expiration": None})]
    assert rows(database_url, "select status, error_message, attempts from job_queue order by id") == [
        {"status": "failed", "error_message": "expired", "attempts": 0},
        {"status": "completed", "error_message": None, "attempts": 1}]


def test_a_long_queue_does_not_hold_up_the_short_ones_of_a_consumer(database_url: str) -> None:
    with Connection(database_url) as connection, connection.channel() as channel:
        queues = [Queue(name, channel=channel) for name in ("long", "short", "shorter")]
        producer = connection.Producer(channel)
        for queue, many in zip(queues, (12, 4, 2), strict=True):
            for number in range(many):
                producer.publish(number, routing_key=queue.name, declare=[queue])
        came: list[str] = []

        def take(_: Any, message: Any) -> None:
            came.append(message.delivery_info["routing_key"])
            message.ack()

        with Consumer(channel, queues, callbacks=[take], accept=["json"], prefetch_count=1):
            while len(came) < 18:
                connection.drain_events(timeout=20)
    assert [set(came[n:n + 3]) for n in (0, 3)] == [{"long", "short", "shorter"}] * 2, came
    assert [set(came[n:n + 2]) for n in (6, 8)] == [{"long", "short"}] * 2, came


def test_a_long_queue_does_not_hold_up_the_short_ones_of_a_worker(app: Celery, database_url: str, start_worker: Start) -> None:
    add = app.tasks["t.add"]
    for queue, many in (("long", 60), ("short", 6), ("shorter", 3)):
        for number in range(many):
            add.apply_async((number, 1), queue=queue)
    start_worker("-c", "1", "-Q", "long,short,shorter")
    wait_until(lambda: one(database_url, "select count(*) from job_queue where status = 'completed'") == 69, "all are completed")
    order = [row["queue"] for row in rows(database_url, "select queue from job_queue order by started_at, run_at")]
    # In turns with a job or two at a time; the oldest first would be the sixty of the long queue.
    assert order[:30].count("short") == 6, order
    assert order[:30].count("shorter") == 3, order


def test_a_place_that_a_thread_frees_is_taken_at_once(make_client: Callable[..., Celery], database_url: str,
                                                      start_worker: Start) -> None:
    """The end of a job wakes the loop, which turns before the thread goes on. What it must see then is the free place."""
    app = make_client(task_ignore_result=True)
    enqueue_many(app.tasks["t.add"], [(n, n) for n in range(60)])
    start_worker("-P", "threads", "-c", "1", app="tests.support.paused_app", TEST_ACKS="early", TEST_IGNORE="1")
    wait_until(lambda: one(database_url, "select count(*) from job_queue where status = 'completed'") == 60, "all are completed")
    pauses = rows(database_url, "select started_at - lag(finished_at) over (order by started_at) as pause from job_queue")
    longest = max(row["pause"] for row in pauses if row["pause"] is not None)
    assert longest < timedelta(seconds=0.7), longest


FORKING = """
import os
from tests.support.app import app

add = app.tasks["t.add"]
waits = add.delay(1, 1)
if (child := os.fork()) == 0:
    print(add.delay(1, 2).get(timeout=30), flush=True)
    raise SystemExit
os.waitpid(child, 0)
print(waits.get(timeout=30), add.delay(1, 3).get(timeout=30), flush=True)
"""


def test_a_forked_application_publishes_and_waits_on_its_own(database_url: str, start_worker: Start, tmp_path: Path) -> None:
    start_worker("-c", "1")
    with program(database_url, tmp_path / "out", "-c", FORKING) as process:
        assert process.process.wait(60) == 0, process.lines
        assert process.lines == ["3", "2 4"]
    assert one(database_url, "select count(*) from job_queue where status = 'completed'") == 3
