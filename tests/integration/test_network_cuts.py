"""The network is cut, with and without either side hearing of it: everything comes back by itself, and running jobs run on."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from celery import Celery
from celery.exceptions import TimeoutError as CeleryTimeoutError
from kombu import Connection, Consumer, Queue

from tests.support.app import make_app
from tests.support.beats import beat
from tests.support.cutting import CuttingProxy
from tests.support.database import one, rows
from tests.support.flower import flower
from tests.support.waiting import wait_until
from tests.support.workers import Worker, worker

Start = Callable[..., Worker]
#: An answer may take 2 s, a connection 2 s; a worker is dead without a sign of life for 12 s.
QUICK = {"timeout": 2, "connect_timeout": 2, "heartbeat_interval": 0.5, "heartbeat_timeout": 12}


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts workers on any URL."""
    with ExitStack() as stack:
        yield lambda url, **env: stack.enter_context(
            worker(url, tmp_path, "tests.support.tuned_app", "-c", "1", TEST_OPTIONS=json.dumps(QUICK), **env))


def held(app: Celery, tmp_path: Path) -> tuple[Any, Callable[[], list[Path]]]:
    """A job that runs until it is let go, and the marks of its runs."""
    path = tmp_path / "run"
    result = app.send_task("t.run", (str(path),))

    def runs() -> list[Path]:
        return [found for found in tmp_path.glob("run.*") if found.suffix != ".go"]

    wait_until(runs, "the job runs")
    return result, runs


def let_go(run: Path) -> None:
    Path(f"{run}.go").touch()


def seconds_pass(url: str, seconds: float) -> None:
    """By the server's clock: it is the length of a cut, not a guess of how long something takes."""
    since = one(url, "select clock_timestamp()")
    wait_until(lambda: one(url, "select clock_timestamp() - %s > %s * interval '1 second'", (since, seconds)), "time has passed")


@pytest.mark.parametrize(("cut", "seconds", "ends"), [("told", 1.0, "during it"), ("silent", 6.0, "after it")])
def test_a_job_that_runs_through_a_cut_is_not_started_again(cut: str, seconds: float, ends: str, app: Celery, database_url: str,
                                                           proxy: CuttingProxy, start: Start, tmp_path: Path) -> None:
    """Told: every connection is reset, so the session's lock is gone; shorter than the grace of 3 s. Silent: half-open
    connections, which the worker gives up after 2 s and the server never does; shorter than the heartbeat's timeout.
    """
    alone = start(proxy.url)
    result, runs = held(app, tmp_path)
    [run] = runs()
    other = start(database_url)
    proxy.hang_up() if cut == "told" else proxy.cut()
    if ends == "during it":
        let_go(run)
    seconds_pass(database_url, seconds)
    proxy.listen() if cut == "told" else proxy.heal()
    if ends == "after it":
        wait_until(lambda: one(database_url, "select count(*) from jobqueue.worker where name = %s and heartbeat_at > now()"
                               " - interval '1 second'", (alone.name,)), "the worker is back")
        seconds_pass(database_url, 4)  # whoever takes it for dead does so within the grace and the next look
        let_go(run)
    assert result.get(timeout=30) == int(run.suffix[1:])
    wait_until(lambda: one(database_url, "select status from job_queue") == "completed", "the row says so")
    assert (runs(), one(database_url, "select attempts from job_queue"), one(database_url, "select worker from job_queue")) == (
        [run], 1, alone.name)
    assert [each.process.poll() for each in (alone, other)] == [None, None]


def test_a_job_of_a_longer_cut_runs_again_and_is_settled_once(app: Celery, database_url: str, proxy: CuttingProxy, start: Start,
                                                              tmp_path: Path) -> None:
    start(proxy.url)
    result, runs = held(app, tmp_path)
    [first] = runs()
    other = start(database_url)
    proxy.hang_up()
    [second] = wait_until(lambda: [run for run in runs() if run != first], "it runs again", 20)
    let_go(first)  # what it has to say finds another lease on the row
    proxy.listen()
    assert app.tasks["t.add"].delay(1, 1).get(timeout=30) == 2, "by the first worker, which is back"
    assert one(database_url, "select status from job_queue where task_id = %s", (result.id,)) == "processing"
    let_go(second)
    assert result.get(timeout=30) == int(second.suffix[1:])
    [row] = rows(database_url, "select status, attempts, worker from job_queue where task_id = %s", (result.id,))
    assert row == {"status": "completed", "attempts": 2, "worker": other.name}
    assert len(runs()) == 2


def test_a_claim_whose_reply_is_lost_strands_no_job(database_url: str, proxy: CuttingProxy, start: Start) -> None:
    """The job is the worker's, which lives and comes back, and has never heard of it."""
    running = start(proxy.url)
    wait_until(lambda: one(database_url, "select bool_or(idle) from jobqueue.worker"), "the worker sleeps")
    with psycopg.connect(database_url) as somebody:
        somebody.execute("lock table job_queue in access exclusive mode")
        proxy.swallow_reply_to(b"jobqueue.claim", b"claim")
        somebody.execute("select enqueue_job('t.add', '[1, 2]')")
        waits = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
        wait_until(lambda: one(database_url, waits), "the worker's claim waits")
        somebody.commit()
    wait_until(lambda: proxy.swallowed == 1, "the claim is committed, and its reply lost")
    assert one(database_url, "select owner is not null from job_queue")
    wait_until(lambda: one(database_url, "select status from job_queue") == "completed", "it runs all the same")
    assert one(database_url, "select attempts from job_queue") == 1
    assert running.process.poll() is None


def test_a_plain_consumers_lost_claim_strands_no_job(database_url: str, proxy: CuttingProxy) -> None:
    """The same without Celery: another connection of the process delivers the job, and nothing that another one holds."""
    taken: list[Any] = []

    def consume(connection: Connection, until: Callable[[], object]) -> None:
        with Consumer(connection, [Queue("celery")], callbacks=[lambda _, message: taken.append(message)], accept=["json"]):
            while not until():
                with suppress(TimeoutError):
                    connection.drain_events(timeout=0.2)

    def until_it_fails(connection: Connection) -> None:
        with suppress(*connection.connection_errors):
            consume(connection, lambda: False)

    with Connection(database_url) as holding, Connection(proxy.url, transport_options=QUICK) as connection:
        rows(database_url, "select enqueue_job('t.add', '[0, 0]')")
        held = holding.SimpleQueue("celery").get(timeout=20)
        consume(connection, lambda: connection.transport.cycle_.claims.idle)
        with psycopg.connect(database_url) as somebody:
            somebody.execute("lock table job_queue in access exclusive mode")
            proxy.swallow_reply_to(b"jobqueue.claim", b"claim")
            somebody.execute("select enqueue_job('t.add', '[1, 2]')")
            blocked = threading.Thread(target=until_it_fails, args=(connection,))
            blocked.start()
            waits = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
            wait_until(lambda: one(database_url, waits), "the claim waits")
            somebody.commit()
        blocked.join(20)
        assert proxy.swallowed == 1, "the claim is committed, and its reply lost"
        assert one(database_url, "select count(*) from job_queue where owner is not null") == 2
        with Connection(proxy.url, transport_options=QUICK) as another:
            consume(another, lambda: taken)
            taken[0].ack()
            deadline = time.monotonic() + 5  # it goes on counting
            consume(another, lambda: time.monotonic() > deadline)
        held.ack()
    assert [message.payload[0] for message in taken] == [[1, 2]]
    found = rows(database_url, "select status, attempts, total_starts from job_queue")
    assert [tuple(row.values()) for row in found] == [("completed", 1, 1)] * 2


@pytest.mark.parametrize("cut", ["told", "silent"])
def test_who_waits_for_a_result_gets_it_after_the_cut(cut: str, app: Celery, database_url: str, proxy: CuttingProxy,
                                                      start: Start, tmp_path: Path) -> None:
    start(database_url)
    result, runs = held(app, tmp_path)
    got: list[Any] = []
    with closing(make_app(proxy.url, broker_transport_options=QUICK)) as client:
        waiting = threading.Thread(target=lambda: got.append(client.AsyncResult(result.id).get(timeout=60)))
        waiting.start()
        through_proxy = "select count(*) from jobqueue.waiter"
        wait_until(lambda: one(database_url, through_proxy), "the client waits")
        proxy.hang_up() if cut == "told" else proxy.cut()
        let_go(runs()[0])
        wait_until(lambda: one(database_url, "select status from job_queue") == "completed", "the job ends meanwhile")
        seconds_pass(database_url, 3)
        with pytest.raises(CeleryTimeoutError):
            client.AsyncResult(result.id).get(timeout=1)  # a wait that begins in the cut ends as it should
        proxy.listen() if cut == "told" else proxy.heal()
        waiting.join(30)
        assert got == [int(runs()[0].suffix[1:])]
        client.backend.result_consumer.stop()


def test_a_worker_without_a_server_can_be_stopped(database_url: str, proxy: CuttingProxy, start: Start) -> None:
    running = start(proxy.url)
    proxy.hang_up()
    wait_until(lambda: "no connection yet" in running.text, "it tries to come back")
    began = time.monotonic()
    assert running.stop() == 0
    assert time.monotonic() - began < 15


def test_a_server_that_ends_every_connection_is_not_stormed(app: Celery, database_url: str, proxy: CuttingProxy,
                                                            start: Start) -> None:
    """A proxy that lost its server takes connections and drops them; as does a firewall, or a server that is too full."""
    running = start(proxy.url)
    over = threading.Event()

    def drop() -> None:
        while not over.wait(0.05):
            proxy.drop()

    dropping = threading.Thread(target=drop)
    dropping.start()
    try:
        seconds_pass(database_url, 5)
    finally:
        over.set()
        dropping.join()
    assert running.text.count("Connected to") + running.text.count("Connection to broker lost") < 30
    assert "Frequent restarts" not in running.text
    assert app.tasks["t.add"].delay(1, 1).get(timeout=30) == 2


def test_worker_beat_flower_and_remote_control_come_back(database_url: str, proxy: CuttingProxy, tmp_path: Path) -> None:
    with (closing(make_app(proxy.url, broker_transport_options=QUICK)) as app,
          worker(proxy.url, tmp_path, "tests.support.tuned_app", "-E", TEST_OPTIONS=json.dumps(QUICK)) as running,
          beat(proxy.url, tmp_path, TEST_SCHEDULE='{"quick": 0.5}'),
          flower(proxy.url, tmp_path, database_url) as site):
        ticks = "select count(*) from job_queue where status = 'completed'"
        wait_until(lambda: one(database_url, ticks) > 2, "what beat sends runs")
        wait_until(lambda: {row["task_id"] for row in rows(database_url, "select task_id from job_queue")} & set(site.states()),
                   "Flower sees it", 60)
        proxy.hang_up()
        seconds_pass(database_url, 3)
        before, healed = one(database_url, ticks), one(database_url, "select now()")
        proxy.listen()
        wait_until(lambda: one(database_url, ticks) > before + 2, "worker and beat are back")
        assert app.tasks["t.add"].delay(1, 1).get(timeout=20) == 2
        wait_until(lambda: app.control.inspect(timeout=2, limit=1).ping() == {running.name: {"ok": "pong"}}, "it answers")
        later = "select task_id from job_queue where created_at > %s"
        wait_until(lambda: {row["task_id"] for row in rows(database_url, later, (healed,))} & set(site.states()),
                   "Flower sees what beat sends now", 60)
        app.backend.result_consumer.stop()
