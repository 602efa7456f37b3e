"""A group's jobs are written one by one where somebody looks at each of them, or sends them himself."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from celery import Celery, Task, group, signals
from celery.utils.dispatch import Signal
from kombu import Exchange, Producer, Queue

from celery_jobqueue.broker import transport
from tests.support.database import one
from tests.support.grouping import adding, listening, published, transactions
from tests.support.waiting import wait_until
from tests.support.workers import Worker

Start = Callable[..., Worker]

assert transport, "with it groups are written together elsewhere"


@pytest.mark.parametrize("signal", [signals.after_task_publish, signals.task_sent], ids=["after_task_publish", "task_sent"])
def test_who_is_told_of_each_message_finds_it_written(signal: Signal, app: Celery, database_url: str) -> None:
    written: list[int] = []

    def told(**_: Any) -> None:
        written.append(len(published(database_url)))

    with listening(signal, told):
        adding(app, range(3)).apply_async()
    assert written == [1, 2, 3]
    adding(app, range(3, 6)).apply_async()
    assert transactions(database_url) == [1, 1, 1, 3]


def test_what_follows_a_task_that_has_run_is_sent_one_by_one(app: Celery, database_url: str, start_worker: Start) -> None:
    """Celery sends each again and again, as it would not a group."""
    start_worker()
    app.tasks["t.add"].apply_async((100, 0), link=adding(app, range(3)))
    wait_until(lambda: one(database_url, "select count(*) from job_queue where status = 'completed'") == 4, "all have run")
    assert transactions(database_url) == [1, 1, 1, 1]


def test_with_an_event_for_each_they_are_sent_one_by_one(make_client: Callable[..., Celery], database_url: str) -> None:
    adding(make_client(task_send_sent_event=True), range(3)).apply_async()
    assert transactions(database_url) == [1, 1, 1]


def test_an_application_that_sends_tasks_itself_finds_them_written(app: Celery, database_url: str,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    plain, written = app.send_task, []

    def counting(*args: Any, **options: Any) -> Any:
        result = plain(*args, **options)
        written.append(len(published(database_url)))
        return result

    monkeypatch.setattr(app, "send_task", counting)
    adding(app, range(3)).apply_async()
    assert written == [1, 2, 3]


def test_a_task_that_sends_itself_finds_itself_written(app: Celery, database_url: str) -> None:
    written: list[int] = []

    class Counting(Task):  # type: ignore[misc]
        def apply_async(self, *args: Any, **options: Any) -> Any:
            result = super().apply_async(*args, **options)
            written.append(len(published(database_url)))
            return result

    @app.task(name="t.counting", base=Counting, shared=False)  # type: ignore[untyped-decorator]
    def counting(n: int, m: int) -> int:
        return n + m

    add = app.tasks["t.add"]
    group([add.si(0, 0), counting.si(1, 1), add.si(2, 2), counting.si(3, 3)], app=app).apply_async()
    assert written == [1, 2]
    assert transactions(database_url) == [1, 1, 2]


def test_a_task_that_sends_others_too_finds_them_written(app: Celery, database_url: str) -> None:
    """Through the producer that it is given: alone, in a batch that fails, and as a group."""
    add, written = app.tasks["t.add"], []

    class Helped(Task):  # type: ignore[misc]
        def apply_async(self, *args: Any, producer: Any = None, **options: Any) -> Any:
            add.apply_async((10, 0), producer=producer)
            with suppress(ZeroDivisionError), producer.batch():
                add.apply_async((20, 0), producer=producer)
                raise ZeroDivisionError
            group([add.si(30, 0), add.si(31, 0)], app=app).apply_async(producer=producer)
            written.append(published(database_url))
            return super().apply_async(*args, producer=producer, **options)

    @app.task(name="t.helped", base=Helped, shared=False)  # type: ignore[untyped-decorator]
    def helped(n: int, m: int) -> int:
        return n + m

    group([add.si(0, 0), helped.si(1, 1), add.si(2, 2)], app=app).apply_async()
    assert written == [[10, 30, 31]]
    assert published(database_url)[-2:] == [0, 2]


def test_a_task_of_another_application_is_sent_as_that_sends_it(app: Celery, make_client: Callable[..., Celery],
                                                                database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    other = make_client(result_backend=None)
    plain, written = other.send_task, []

    def counting(*args: Any, **options: Any) -> Any:
        result = plain(*args, **options)
        written.append(len(published(database_url)))
        return result

    monkeypatch.setattr(other, "send_task", counting)
    group([app.tasks["t.add"].si(0, 0), other.tasks["t.add"].si(1, 1), app.tasks["t.add"].si(2, 2)], app=app).apply_async()
    assert written == [1]
    assert published(database_url)[-2:] == [0, 2]


@pytest.mark.parametrize("kind", ["with an exchange", "of a class of its own"])
def test_with_an_unusual_producer_they_are_sent_one_by_one(kind: str, app: Celery, database_url: str) -> None:
    with app.connection_for_write() as connection:
        mine = Exchange("mine")
        Queue("media", mine, routing_key="celery")(connection.default_channel).declare()
        producer = Producer(connection, mine) if kind == "with an exchange" else type("Own", (Producer,), {})(connection)
        adding(app, range(3)).apply_async(producer=producer)
    assert transactions(database_url) == [1, 1, 1]


def test_a_plain_producer_is_used(app: Celery, database_url: str) -> None:
    with app.connection_for_write() as connection, connection.channel() as channel:
        adding(app, range(3)).apply_async(producer=Producer(channel))
        adding(app, range(3, 6)).apply_async(connection=connection)
    assert transactions(database_url) == [3, 1, 1, 1], "with a connection Celery makes a producer for each"


def test_other_brokers_get_theirs_one_by_one(make_client: Callable[..., Celery]) -> None:
    elsewhere = make_client(broker_url="memory://", result_backend=None, task_default_queue="elsewhere")
    adding(elsewhere, range(3)).apply_async()
    with elsewhere.connection_for_read() as connection:
        assert connection.default_channel.queue_declare("elsewhere", passive=True).message_count == 3
