"""Priorities on three scales, one meaning in the table: 1 first … 10 last."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from kombu import Connection, Consumer, Producer, Queue

from celery_jobqueue.broker.priorities import DEFAULT, SCALES, check_scale, to_row
from celery_jobqueue.db.errors import ConfigurationError, InvalidJob
from tests.support.database import rows
from tests.support.waiting import wait_until
from tests.support.workers import Worker

#: What an application on each scale writes, the most urgent first.
WRITTEN = {"jobs": list(range(1, 11)), "amqp": list(range(9, -1, -1)), "redis": list(range(10))}


def test_these_are_all_scales() -> None:
    assert set(WRITTEN) == set(SCALES)
    assert [check_scale(scale) for scale in SCALES] == list(SCALES)
    with pytest.raises(ConfigurationError, match=r"'priority_scale'\]='sqs': use one of jobs, amqp, redis"):
        check_scale("sqs")


@pytest.mark.parametrize("scale", SCALES)
def test_every_priority_has_its_own_place_and_the_order_is_kept(scale: str) -> None:
    assert [to_row(priority, scale) for priority in WRITTEN[scale]] == list(range(1, 11))


@pytest.mark.parametrize("scale", SCALES)
def test_nothing_said_is_the_default(scale: str) -> None:
    assert to_row(None, scale) == DEFAULT == 5


def test_kombus_0_means_the_default_on_our_own_scale_only() -> None:
    assert [to_row(0, scale) for scale in ("jobs", "amqp", "redis")] == [5, 10, 1]


@pytest.mark.parametrize(("scale", "low", "high"), [("amqp", 10, 1), ("redis", 1, 10)])
def test_other_scales_clamp_as_their_brokers_do(scale: str, low: int, high: int) -> None:
    assert [to_row(priority, scale) for priority in (-5, 10, 255)] == [low, high, high]


@pytest.mark.parametrize("priority", [-1, 11, 255])
def test_our_scale_refuses_what_is_out_of_range(priority: int) -> None:
    with pytest.raises(InvalidJob, match=rf"priority={priority} is out of range: 1 \(first\) to 10 \(last\)"):
        to_row(priority)


@pytest.mark.parametrize("priority", ["high", "", 5.5, [1], {}, True, False])
@pytest.mark.parametrize("scale", SCALES)
def test_what_is_no_number_is_refused(priority: object, scale: str) -> None:
    with pytest.raises(InvalidJob, match=r"is not a number from 1 \(first\) to 10 \(last\)"):
        to_row(priority, scale)


@pytest.mark.parametrize("scale", SCALES)
def test_consumers_get_the_urgent_first_whatever_the_scale(scale: str, database_url: str) -> None:
    queue = Queue("work")
    shuffled = sorted(WRITTEN[scale], key=lambda priority: (priority * 7) % 10)
    got: list[int] = []
    with Connection(database_url, transport_options={"priority_scale": scale}) as connection:
        producer = Producer(connection)
        for priority in shuffled:
            producer.publish({"n": priority}, routing_key="work", declare=[queue], priority=priority, serializer="json")

        def take(body: dict[str, int], message: Any) -> None:
            got.append(body["n"])
            message.ack()

        with Consumer(connection, queues=[queue], callbacks=[take], accept=["json"]):
            while len(got) < 10:
                connection.drain_events(timeout=10)
    assert got == WRITTEN[scale]
    stored = rows(database_url, "select priority from job_queue order by priority")
    assert [row["priority"] for row in stored] == list(range(1, 11))


@pytest.mark.parametrize(("scale", "urgent", "idle"), [("amqp", 9, 1), ("redis", 0, 9)])
def test_a_worker_of_an_application_that_moved_over(scale: str, urgent: int, idle: int, make_client: Callable[..., Celery],
                                                    start_worker: Callable[..., Worker], tmp_path: Path) -> None:
    app = make_client(broker_transport_options={"priority_scale": scale}, task_default_priority=5)
    path = str(tmp_path / "order")
    for word, priority in (("idle", idle), ("normal", None), ("urgent", urgent)):
        app.tasks["t.record"].apply_async((path, word), **({} if priority is None else {"priority": priority}))
    start_worker("-P", "solo")
    wait_until(lambda: Path(path).exists() and len(Path(path).read_text().split()) == 3, "all ran")
    assert Path(path).read_text().split() == ["urgent", "normal", "idle"]


def test_the_scales_agree_about_more_and_less() -> None:
    for scale in SCALES:
        assert all(to_row(first, scale) < to_row(second, scale) for first, second in pairwise(WRITTEN[scale]))
