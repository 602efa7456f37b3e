"""enqueue_many(): thousands of jobs at once, each of them what apply_async() would have stored."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from celery import Celery, signals
from celery.app.amqp import AMQP
from kombu import serialization

from celery_jobqueue.broker import enqueue_many, jobs_in
from celery_jobqueue.db.errors import InvalidJob
from tests.support.database import one, rows
from tests.support.workers import Worker

OPTIONS: dict[str, Any] = {"queue": "bulk", "priority": 2, "max_attempts": 7, "expires": 3600, "headers": {"tenant": "100 %s"}}


@pytest.fixture
def many(app: Celery) -> Any:
    """A task with an argument of every kind."""

    @app.task(name="t.many", shared=False, ignore_result=True)
    def task(text: Any, number: Any = 0, *, user_id: str | None = None) -> None:
        """Never runs here."""

    return task


def count(url: str) -> int:
    return int(one(url, "select count(*) from job_queue"))


def comparable(row: dict[str, Any]) -> dict[str, Any]:
    """A row without what differs between any two jobs."""
    text = json.dumps(row, default=str).replace(row["task_id"], "the task's id")
    found: dict[str, Any] = json.loads(text)
    for column in ("id", "created_at", "run_at", "expires_at"):
        del found[column]
    found["envelope"] = json.loads(found["envelope"])
    found["envelope"]["headers"].pop("expires")
    found["envelope"]["properties"].pop("expiration")
    return found


@pytest.mark.parametrize("call", [
    ("plain", 1), ('"quoted" \\ and % and %(ID)s and \u00e4\U0001f600', 2.5), ({"deep": [1, {"x": None}]},), ("x" * 3000, -1),
    {"text": "by name", "user_id": "somebody"}, {"text": ["ARGS", "ROW"], "number": 3}, ("it's", None), ([1] * 900, True)])
def test_what_is_stored_is_what_apply_async_stores(call: Any, many: Any, database_url: str) -> None:
    args, kwargs = ((), call) if isinstance(call, dict) else (call, {})
    many.apply_async(args, kwargs, **OPTIONS)
    results = enqueue_many(many, [("another",), call], **OPTIONS)
    alone, _, together = rows(database_url, "select * from job_queue order by id")
    assert comparable(together) == comparable(alone)
    assert together["task_id"] == results[1].id
    assert (together["max_attempts"], together["priority"], together["queue"]) == (7, 2, "bulk")


@pytest.mark.parametrize("options", [
    {"argsrepr": "('x', 1)"}, {"argsrepr": "('x', 1)", "kwargsrepr": "{}"}, {"kwargsrepr": "<>"}, {"argsrepr": 5}])
def test_what_is_to_be_shown_is_shown(options: dict[str, Any], many: Any, database_url: str) -> None:
    many.apply_async(("another", 2), {}, **OPTIONS, **options)
    enqueue_many(many, [("x", 1), ("another", 2)], **OPTIONS, **options)
    alone, _, together = rows(database_url, "select * from job_queue order by id")
    assert comparable(together) == comparable(alone)


@pytest.mark.parametrize("value", [
    {"__type__": "base64", "__value__": "YWJj"}, {"__type__": "no such", "__value__": 1},
    {"__type__": "uuid", "__value__": {"hex": "0" * 32, "version": 4}}])
def test_what_looks_like_a_value_of_kombus_stays_as_it_is(value: dict[str, Any], many: Any, database_url: str) -> None:
    options = {**OPTIONS, "headers": {"tenant": value}}
    many.apply_async(("x",), {}, **options)
    enqueue_many(many, [("x",)], **options)
    alone, together = rows(database_url, "select * from job_queue order by id")
    assert comparable(together) == comparable(alone)


def test_a_serializer_may_return_bytes(many: Any, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    codec = serialization.codec("application/json", "utf-8", lambda value: json.dumps(value, separators=(",", ":")).encode())
    monkeypatch.setitem(serialization.registry._encoders, "compact", codec)  # unregister() would forget JSON's decoder, too
    enqueue_many(many, [("x", 1), ("y", 2)], **OPTIONS, serializer="compact")
    assert [json.loads(row["payload"])[0] for row in rows(database_url, "select * from job_queue order by id")] == [
        ["x", 1], ["y", 2]]


@pytest.mark.parametrize("where", ["header", "route", "class"])
@pytest.mark.parametrize("mask", ["<hidden>", "()"])
def test_what_is_hidden_in_another_way_stays_hidden(where: str, mask: str, many: Any, database_url: str) -> None:
    options = {**OPTIONS, "headers": {"argsrepr": mask}} if where == "header" else OPTIONS
    if where == "route":
        many.app.conf.task_routes = {"t.many": {"argsrepr": mask, "queue": "bulk"}}
    if where == "class":
        class Masking(AMQP):
            def as_task_v2(self, task_id: str, name: str, args: Any = None, *rest: Any, **more: Any) -> Any:
                return super().as_task_v2(task_id, name, args, *rest, **{**more, "argsrepr": mask})

        many.app.amqp = Masking(many.app)
    many.apply_async(("secret",), {}, **options)
    enqueue_many(many, [{"text": "other"}, ("secret",)], **options)
    alone, _, together = rows(database_url, "select * from job_queue order by id")
    assert comparable(together) == comparable(alone)
    assert comparable(together)["envelope"]["headers"]["argsrepr"] == mask


def test_arguments_of_a_link_stay_as_they_are(many: Any, database_url: str) -> None:
    link = many.si({"__type__": "base64", "__value__": "YWJj"})
    many.apply_async(("x",), {}, **OPTIONS, link=link)
    enqueue_many(many, [("x",)], **OPTIONS, link=link)
    alone, together = rows(database_url, "select * from job_queue order by id")
    assert comparable(together)["payload"] == comparable(alone)["payload"]


@pytest.mark.parametrize(("levels", "most"), [(1, 1024), (5, 1024), (3, 4096), (3, 10), (3, 60)])
@pytest.mark.parametrize("call", [([[[[[1]]]]], "x" * 1500), ("a text of some thirty characters", 2)])
def test_as_much_as_celery_shows(call: Any, levels: int, most: int, many: Any, database_url: str) -> None:
    many.app.conf.task_repr_maxlevels = levels
    many.app.amqp.argsrepr_maxsize = most
    many.apply_async(call, {}, **OPTIONS)
    enqueue_many(many, [("x",), call], **OPTIONS)
    alone, _, together = rows(database_url, "select * from job_queue order by id")
    assert comparable(together) == comparable(alone)


def test_thousands_are_one_transaction_in_their_order(many: Any, database_url: str) -> None:
    results = enqueue_many(many, (("x", number) for number in range(2500)))
    found = rows(database_url, "select task_id, payload, created_at from job_queue order by run_at, id")
    assert [row["task_id"] for row in found] == [result.id for result in results]
    assert [json.loads(row["payload"])[0][1] for row in found] == list(range(2500))
    assert len({row["created_at"] for row in found}) == 1


def test_a_worker_runs_them(app: Celery, start_worker: Callable[..., Worker]) -> None:
    start_worker()
    results = enqueue_many(app.tasks["t.add"], [(number, 1) for number in range(20)])
    assert [result.get(timeout=20) for result in results] == list(range(1, 21))


@pytest.mark.parametrize(("calls", "options", "error", "says"), [
    ([("fine",), ()], {}, TypeError, "text"), ([("fine",), "text"], {}, TypeError, "no call"),
    ([("fine",), {"text": "x", "user_id": "nul\0"}], {}, InvalidJob, "user_id"),
    ([("fine",)], {"task_id": "mine"}, InvalidJob, "task_id"), ([("fine",)], {"max_attempts": 0}, InvalidJob, "max_attempts")])
def test_a_mistake_in_one_of_them_queues_none(calls: Any, options: dict[str, Any], error: type[Exception], says: str, many: Any,
                                              database_url: str) -> None:
    with pytest.raises(error, match=says):
        enqueue_many(many, calls, **options)
    assert count(database_url) == 0


@pytest.mark.parametrize("wrong", [(), ("x", 0, "too many")])
def test_a_mistake_late_among_thousands_queues_none(wrong: Any, many: Any, database_url: str) -> None:
    """By then the server has inserted most of them."""
    for _ in range(2):
        with pytest.raises(TypeError):
            enqueue_many(many, [*(("x", number) for number in range(1100)), wrong])
    assert count(database_url) == 0
    enqueue_many(many, [("x", number) for number in range(600)])
    assert count(database_url) == 600


def test_what_the_server_refuses_late_queues_none(many: Any, database_url: str) -> None:
    rows(database_url, """alter table job_queue add constraint short check (length(payload) < 1000)""")
    for place in (10, 600, 1199):
        calls = [("x" * (2000 if number == place else 1),) for number in range(1200)]
        with pytest.raises(psycopg.errors.CheckViolation, match="short"):
            enqueue_many(many, calls)
        assert count(database_url) == 0
    enqueue_many(many, [("x",)] * 600)
    assert count(database_url) == 600


def test_nothing_is_nothing(many: Any, database_url: str) -> None:
    assert enqueue_many(many, []) == []
    assert count(database_url) == 0


def test_they_are_part_of_a_block(many: Any, database_url: str) -> None:
    with psycopg.connect(database_url) as conn:
        with jobs_in(conn):
            enqueue_many(many, [("x",)] * 3)
        assert count(database_url) == 0
        conn.rollback()
        assert count(database_url) == 0
        with jobs_in(conn):
            enqueue_many(many, [("x",)] * 3)
        conn.commit()
    assert count(database_url) == 3


def test_whoever_wants_to_see_each_message_does(many: Any, database_url: str) -> None:
    seen: list[str] = []

    def see(headers: dict[str, Any], **_: Any) -> None:
        headers["seen"] = True
        seen.append(headers["id"])

    signals.before_task_publish.connect(see)
    try:
        results = enqueue_many(many, [("x",)] * 3)
    finally:
        signals.before_task_publish.disconnect(see)
    assert seen == [result.id for result in results]
    assert one(database_url, "select count(*) from job_queue where envelope::jsonb -> 'headers' ? 'seen'") == 3
    assert len(rows(database_url, "select distinct created_at from job_queue")) == 1
