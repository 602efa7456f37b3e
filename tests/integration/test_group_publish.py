"""A group's jobs are written together or not at all, but not where somebody looks at each; and nothing else is kept back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from celery import Celery, Signature, Task, chain, chord, group, signals
from celery.utils.dispatch import Signal
from kombu import Exchange, Producer, Queue

from celery_jobqueue.broker import groups, jobs_in, transport
from celery_jobqueue.db.errors import InvalidJob
from tests.support.database import one, rows
from tests.support.grouping import adding, listening, one_by_one, published, transactions
from tests.support.waiting import wait_until
from tests.support.workers import Worker

Start = Callable[..., Worker]

assert transport, "with it groups are written so"


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy the machine is, it is the number of jobs that ends a transaction."""
    monkeypatch.setattr(groups, "_PATIENCE", 600.0)


# -- together ------------------------------------------------------------------------------------------------------------


def test_it_is_one_transaction_and_brings_its_results(app: Celery, database_url: str, start_worker: Start) -> None:
    result = adding(app, range(50)).apply_async()
    assert transactions(database_url) == [50]
    start_worker()
    assert result.get(timeout=30) == [2 * n for n in range(50)]


def test_a_large_one_is_a_thousand_at_a_time(app: Celery, database_url: str) -> None:
    adding(app, range(2500)).apply_async()
    assert transactions(database_url) == [1000, 1000, 500]
    assert published(database_url) == list(range(2500))


def test_large_arguments_are_a_few_at_a_time(app: Celery, database_url: str) -> None:
    written = []

    def large() -> Iterator[Signature]:
        for n in range(20):
            written.append(one(database_url, "select count(*) from job_queue"))
            yield app.tasks["t.add"].si(n, "x" * 1_000_000)

    group(large(), app=app).apply_async()
    assert max(transactions(database_url)) == 7
    assert published(database_url) == list(range(20))
    assert all(made - stored < 10 for made, stored in enumerate(written)), "no more of them were in memory"


def test_what_a_slow_generator_has_made_does_not_wait_for_the_rest(app: Celery, database_url: str,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "_PATIENCE", 0.0)
    written: list[int] = []

    def slow() -> Iterator[Signature]:
        for n in range(5):
            written.append(one(database_url, "select count(*) from job_queue"))
            yield app.tasks["t.add"].si(n, n)

    group(slow(), app=app).apply_async()
    assert published(database_url) == list(range(5))
    rows(database_url, "delete from job_queue")
    with one_by_one():
        group(slow(), app=app).apply_async()
    assert written[:5] == written[5:], "as soon as with Celery alone"
    assert written[-1] > 1


def test_what_is_stored_is_what_one_by_one_would_store(app: Celery, database_url: str) -> None:
    add, boom = app.tasks["t.add"], app.tasks["t.boom"]
    members = [
        add.si(1, 1).set(priority=2, countdown=3600), add.si(2, 2).set(expires=3600, user_id="u-1"),
        add.s(3, 3).set(link=add.s(1), link_error=boom.si()), add.si(4, 4).set(ignore_result=True, max_attempts=7),
        add.si(5, 5).set(queue="other", headers={"x-mine": 1}), Signature("elsewhere.task", args=(6,), app=app)]
    columns = """queue, task_name, priority, max_attempts, user_id, payload, reply_to, expires_at is null as lasts,
                 run_at > now() as late, envelope::jsonb #- '{headers,id}' #- '{headers,group}' #- '{headers,root_id}'
                 #- '{headers,eta}' #- '{headers,expires}' #- '{properties,correlation_id}'
                 #- '{properties,message_id}' as message"""
    stored = []
    for apart in (False, True):
        with one_by_one(apart):
            group([member.clone() for member in members], app=app).apply_async()
        assert transactions(database_url) == ([1] * 6 if apart else [6])
        stored.append(rows(database_url, f"delete from job_queue returning {columns}"))
    together, apart = (sorted(job["payload"] + str(job) for job in jobs) for jobs in stored)
    assert together == apart


def test_what_is_nested_in_it_is_published_too(app: Celery, database_url: str, start_worker: Start) -> None:
    start_worker()
    add, accumulate = app.tasks["t.add"], app.tasks["celery.accumulate"]
    inner = chord([add.s(n, 1) for n in range(5)], accumulate.s())
    nested = group(inner, chain(add.s(1, 1), add.s(2)), group(add.s(7, 0), add.s(8, 0)), *[add.s(n, 0) for n in range(3)])
    assert nested.apply_async().get(timeout=30) == [[[1, 2, 3, 4, 5]], 4, 7, 8, 0, 1, 2]
    assert chord([add.s(n, n) for n in range(30)], group(accumulate.s(), accumulate.s()))().get(timeout=30) == [
        [[2 * n for n in range(30)]]] * 2


def test_nobody_gets_a_result_whose_job_is_not_written(app: Celery, database_url: str) -> None:
    """Whoever takes the first and leaves has lost nothing."""
    work = adding(app, range(5))
    results = work._apply_tasks(work._prepared(work.tasks, [], "the-group", None, app), app=app)
    next(results)
    assert published(database_url) == list(range(5))
    results.close()


# -- or not at all -------------------------------------------------------------------------------------------------------


def test_one_that_cannot_be_written_means_none_is(app: Celery, database_url: str) -> None:
    add = app.tasks["t.add"]
    with pytest.raises(InvalidJob, match="max_attempts=0"):
        group([add.s(1, 1), add.s(2, 2).set(max_attempts=0), add.s(3, 3)], app=app).apply_async()
    assert published(database_url) == []
    adding(app, range(3)).apply_async()
    assert published(database_url) == [0, 1, 2]


def test_a_generator_that_raises_takes_what_was_not_written_with_it(app: Celery, database_url: str) -> None:
    def failing(number: int) -> Iterator[Signature]:
        for n in range(number):
            yield app.tasks["t.add"].si(n, n)
        raise ZeroDivisionError

    for number in (3, 1100):
        with pytest.raises(ZeroDivisionError):
            group(failing(number), app=app).apply_async()
    assert published(database_url) == list(range(1000))


@pytest.mark.parametrize("target", ["connection", "application"])
def test_in_somebodys_transaction_it_shares_its_fate(target: str, app: Celery, database_url: str) -> None:
    add = app.tasks["t.add"]
    with psycopg.connect(database_url) as conn:
        with jobs_in(conn if target == "connection" else app):
            adding(app, range(3)).apply_async()
            with pytest.raises(InvalidJob):
                group([add.s(3, 3), add.s(4, 4).set(max_attempts=0)], app=app).apply_async()
            add.delay(5, 5)
            assert published(database_url) == []
        if target == "connection":
            assert published(database_url) == []
            conn.commit()
        assert published(database_url) == [0, 1, 2, 3, 5]
        assert len(transactions(database_url)) == 1
        with suppress(ZeroDivisionError), jobs_in(conn if target == "connection" else app):
            adding(app, range(3)).apply_async()
            raise ZeroDivisionError
        conn.commit()
    assert published(database_url) == [0, 1, 2, 3, 5]


def test_a_transaction_that_begins_in_its_midst_takes_what_comes_then(app: Celery, database_url: str) -> None:
    found = []
    for apart in (False, True):
        with psycopg.connect(database_url) as conn:
            def opening(conn: psycopg.Connection[Any] = conn) -> Iterator[Signature]:
                for n in range(3):
                    yield app.tasks["t.add"].si(n, n)
                with jobs_in(conn):
                    for n in range(3, 6):
                        yield app.tasks["t.add"].si(n, n)

            with one_by_one(apart):
                group(opening(), app=app).apply_async()
            conn.rollback()
        found.append(published(database_url))
        rows(database_url, "delete from job_queue")
    assert found == [[0, 4, 5]] * 2, "Celery looks ahead"


def test_in_somebodys_batch_it_waits_for_the_rest_and_aborts_nothing(app: Celery, database_url: str) -> None:
    add = app.tasks["t.add"]
    with app.producer_or_acquire() as producer, producer.batch():
        add.apply_async((0, 0), producer=producer)
        adding(app, range(1, 3)).apply_async(producer=producer)
        with pytest.raises(InvalidJob):
            group([add.s(3, 3), add.s(4, 4).set(max_attempts=0)], app=app).apply_async(producer=producer)
        assert published(database_url) == []
        add.apply_async((5, 5), producer=producer)
    assert published(database_url) == [0, 1, 2, 3, 5]
    assert transactions(database_url) == [5]


# -- what else is published meanwhile -----------------------------------------------------------------------------------


def test_only_its_own_jobs_are_kept_back(app: Celery, database_url: str) -> None:
    """Neither what its generator publishes nor what a receiver of a signal does."""
    seen: list[list[int]] = []

    def besides(headers: dict[str, Any], **_: Any) -> None:
        if headers["group"]:
            app.tasks["t.add"].delay(100, 0)
            seen.append(published(database_url))

    def members() -> Iterator[Signature]:
        for n in range(3):
            app.tasks["t.add"].delay(200, 0)
            seen.append(published(database_url))
            yield app.tasks["t.add"].si(n, n)

    with listening(signals.before_task_publish, besides):
        group(members(), app=app).apply_async()
    assert [len(each) for each in seen] == list(range(1, 7))
    assert published(database_url)[-3:] == [0, 1, 2]
    assert transactions(database_url) == [*[1] * 6, 3]


def test_threads_do_not_mix_their_groups(app: Celery, database_url: str) -> None:
    together = threading.Barrier(2, timeout=30)

    def members(begin: int) -> Iterator[Signature]:
        for n in range(begin, begin + 50):
            together.wait()  # in turn
            yield app.tasks["t.add"].si(n, n)

    threads = [threading.Thread(target=lambda begin=begin: group(members(begin), app=app).apply_async()) for begin in (0, 1000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert transactions(database_url) == [50, 50]
    jobs = rows(database_url, "select array_agg(payload) as payloads from job_queue group by created_at")
    assert sorted(len({int(payload[2:].partition(",")[0]) // 1000 for payload in job["payloads"]}) for job in jobs) == [1, 1]


# -- one by one, where somebody looks on ----------------------------------------------------------------------------------


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
