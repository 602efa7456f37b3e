"""A group's jobs are written together or not at all, but not where somebody looks at each; and nothing else is kept back."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from celery import Celery, Signature, chain, chord, group, signals
from kombu import Producer

from celery_jobqueue.broker import groups, jobs_in, transport
from celery_jobqueue.db.errors import InvalidJob
from tests.support.database import rows
from tests.support.grouping import adding, counting, listening, one_by_one, published, transactions
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
    written: list[int] = []
    group(counting(app, database_url, written, 20, "x" * 1_000_000), app=app).apply_async()
    assert max(transactions(database_url)) == 7
    assert published(database_url) == list(range(20))
    assert all(made - stored < 10 for made, stored in enumerate(written)), "no more of them were in memory"


def test_of_a_group_that_a_generator_makes_the_first_job_goes_at_once(app: Celery, database_url: str) -> None:
    written: list[int] = []

    group(counting(app, database_url, written, 5), app=app).apply_async()
    assert written == [0, 0, 1, 1, 1], "Celery has the next made before it sends one"
    assert transactions(database_url) == [1, 4]
    assert published(database_url) == list(range(5))


def test_what_a_slow_generator_has_made_does_not_wait_for_the_rest(app: Celery, database_url: str,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "_PATIENCE", 0.0)
    written: list[int] = []

    group(counting(app, database_url, written, 5), app=app).apply_async()
    assert published(database_url) == list(range(5))
    rows(database_url, "delete from job_queue")
    with one_by_one():
        group(counting(app, database_url, written, 5), app=app).apply_async()
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
    assert published(database_url) == [0, *range(1001)], "of each the first, and a full transaction"


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
    assert [each.count(100) + each.count(200) for each in seen] == list(range(1, 7))
    assert published(database_url)[-2:] == [1, 2]
    assert transactions(database_url) == [*[1] * 7, 2]


def test_headers_are_stored_as_they_were_when_the_message_was_made(app: Celery, database_url: str) -> None:
    context: dict[str, int] = {}

    def besides(headers: dict[str, Any], **_: Any) -> None:
        context["number"] = context.get("number", 0) + 1
        headers["context"] = context

    with listening(signals.before_task_publish, besides):
        adding(app, range(3)).apply_async()
    assert transactions(database_url) == [3]
    assert [json.loads(row["envelope"])["headers"]["context"]["number"]
            for row in rows(database_url, "select envelope from job_queue order by id")] == [1, 2, 3]


def test_large_headers_count_too(app: Celery, database_url: str) -> None:
    def besides(headers: dict[str, Any], **_: Any) -> None:
        headers["baggage"] = ["x" * 1_000_000]

    with listening(signals.before_task_publish, besides):
        adding(app, range(20)).apply_async()
    assert max(transactions(database_url)) == 7


def test_who_has_replaced_kombus_publish_is_called(app: Celery, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As tests of applications do."""
    plain, seen = Producer.publish, []

    def every_other(self: Any, body: Any, *args: Any, **options: Any) -> Any:
        seen.append(body)
        return None if len(seen) % 2 else plain(self, body, *args, **options)

    monkeypatch.setattr(Producer, "publish", every_other)
    adding(app, range(5)).apply_async()
    assert len(seen) == 5
    assert published(database_url) == [1, 3]


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
    assert transactions(database_url) == [1, 1, 49, 49]
    jobs = rows(database_url, "select array_agg(payload) as payloads from job_queue group by created_at")
    assert sorted(len({int(payload[2:].partition(",")[0]) // 1000 for payload in job["payloads"]}) for job in jobs) == [1] * 4
