"""Exchanges route between processes, to queues of jobs and to transient ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from celery import Celery
from kombu import Connection, Exchange, Producer

from tests.support.database import one, rows
from tests.support.programs import program, transient_queues
from tests.support.waiting import wait_until
from tests.support.workers import Worker

CONSUMER = dedent("""
    import json, os, sys
    from kombu import Connection, Consumer, Exchange, Queue

    kind, durable, name, *keys = sys.argv[1:]
    exchange = Exchange("news", kind, durable=True)
    queue = Queue(name, durable=durable == "durable", auto_delete=durable != "durable",
                  bindings=[__import__("kombu").binding(exchange, routing_key=key) for key in keys])

    def take(body, message):
        print(json.dumps(body), flush=True)
        message.ack()

    with Connection(os.environ["DATABASE_URL"]) as connection, Consumer(connection, [queue], callbacks=[take], accept=["json"]):
        print("listening", flush=True)
        while True:
            try:
                connection.drain_events(timeout=5)
            except TimeoutError:
                pass
    """)

BINDINGS = {
    "direct": {"a": ["red"], "b": ["red", "green"]},
    "topic": {"a": ["*.urgent"], "b": ["news.#"]},
    "fanout": {"a": [""], "b": [""]},
}
SENT = {
    "direct": ["red", "green", "blue"],
    "topic": ["news.urgent", "mail.urgent", "news", "news.a.b", "urgent"],
    "fanout": ["x", ""],
}
RECEIVED = {
    "direct": {"a": ["red"], "b": ["red", "green"]},
    "topic": {"a": ["news.urgent", "mail.urgent"], "b": ["news.urgent", "news", "news.a.b"]},
    "fanout": {"a": ["x", ""], "b": ["x", ""]},
}


@pytest.mark.parametrize("durable", ["durable", "transient"])
@pytest.mark.parametrize("kind", ["direct", "topic", "fanout"])
def test_exchanges_route_to_other_processes(kind: str, durable: str, database_url: str, tmp_path: Path) -> None:
    def consumer(name: str) -> Any:
        return program(database_url, tmp_path / name, "-c", CONSUMER, kind, durable, name, *BINDINGS[kind][name])

    with consumer("a") as a, consumer("b") as b:
        for process in (a, b):
            process.wait_for("listening")
        with Connection(database_url) as connection:
            producer = Producer(connection, exchange=Exchange("news", kind, durable=True), serializer="json")
            for key in SENT[kind]:
                producer.publish(key, routing_key=key)
        expected = {name: sorted(map(json.dumps, keys)) for name, keys in RECEIVED[kind].items()}

        def received() -> bool:
            return {"a": sorted(a.lines[1:]), "b": sorted(b.lines[1:])} == expected

        wait_until(received, f"{expected} arrived, not {a.lines}, {b.lines}")
        jobs = sum(map(len, RECEIVED[kind].values())) if durable == "durable" else 0
        wait_until(lambda: one(database_url, "select count(*) from job_queue where status = 'completed'") == jobs, "acknowledged")
        assert one(database_url, "select count(*) from job_queue") == jobs


def test_a_killed_subscribers_queue_does_not_collect_messages_for_ever(database_url: str, tmp_path: Path) -> None:
    with program(database_url, tmp_path / "a", "-c", CONSUMER, "fanout", "transient", "a", "") as subscriber:
        subscriber.wait_for("listening")
    rows(database_url, "select jobqueue.reap()")
    assert transient_queues(database_url) == {"a"}  # it might come back, or be busy
    rows(database_url, "update jobqueue.queue set used_at = now() - interval '1 day'")
    assert one(database_url, "select jobqueue.reap()") == 1
    with Connection(database_url) as connection:
        Producer(connection, exchange=Exchange("news", "fanout", durable=True)).publish("x", serializer="json")
    assert one(database_url, "select count(*) from jobqueue.message") == 0


def test_a_consumer_that_was_silent_for_too_long_gets_its_queue_back(app: Celery, database_url: str,
                                                                     start_worker: Callable[..., Worker]) -> None:
    worker = start_worker()
    assert app.control.ping(destination=[worker.name], timeout=10)
    # As reap() does when a task of the solo pool keeps its worker from touching the queue.
    rows(database_url, "delete from jobqueue.binding where queue like '%.pidbox'")
    rows(database_url, "delete from jobqueue.queue where name like '%.pidbox'")
    assert not app.control.ping(destination=[worker.name], timeout=0.3)
    wait_until(lambda: app.control.ping(destination=[worker.name], timeout=0.3), "it answers again")
