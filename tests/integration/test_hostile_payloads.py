"""What an enemy or an accident may publish, through a real database and real workers."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from celery import Celery
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from kombu.exceptions import EncodeError

from celery_jobqueue.broker import enqueue_many, messages
from celery_jobqueue.db.errors import InvalidJob
from tests.support.database import one, rows
from tests.support.hostile import ENVELOPES, JSON, NAMES
from tests.support.waiting import wait_until
from tests.support.workers import Worker

Start = Callable[..., Worker]
MOST = 256 * 1024 * 1024
SQL = "'; delete from job_queue; drop table job_queue cascade; --"
COLUMNS = {"task_name": SQL, "queue": "$$;\\", "user_id": "x' or 'a'='a", "task_id": '{"a"}'}
_briefly = settings(max_examples=40, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))


def test_what_is_published_is_what_is_delivered(app: Celery, database_url: str) -> None:
    """Names, users and arguments of any kind: each is data, on its row and in the message that a consumer gets."""
    rows(database_url, "select enqueue_job('t.bystander', queue => 'elsewhere')")
    with app.connection() as connection, psycopg.connect(database_url, autocommit=True) as conn:
        channel = connection.default_channel

        @_briefly
        @example(args=[SQL, "\0", "\ud800", {SQL: 10 ** 400}], **COLUMNS)
        @given(args=st.lists(JSON, max_size=3), task_name=NAMES, queue=NAMES, user_id=NAMES, task_id=NAMES)
        def delivered(args: list[Any], task_name: str, queue: str, user_id: str, task_id: str) -> None:
            names = {"task_name": task_name or "t", "queue": queue or "q", "user_id": user_id, "task_id": task_id or "i"}
            app.send_task(names["task_name"], args, task_id=names["task_id"], queue=names["queue"], user_id=user_id,
                          connection=connection)
            row = conn.execute("select task_name, queue, user_id, task_id from job_queue where status = 'pending'"
                               " and queue = %s", (names["queue"],)).fetchone()
            assert row == tuple(names.values())
            message = channel.basic_get(names["queue"])
            assert message is not None
            assert (message.headers["task"], message.headers["id"]) == (names["task_name"], names["task_id"])
            # Python's JSON writes NaN, which equals nothing, hence the comparison of texts.
            assert json.dumps(message.decode()[0]) == json.dumps(args)
            message.ack()
            connection.transport.cycle_.exchange()

        delivered()
    assert rows(database_url, "select distinct status from job_queue where queue <> 'elsewhere'") == [{"status": "completed"}]
    assert one(database_url, "select status from job_queue where queue = 'elsewhere'") == "pending"


@pytest.mark.parametrize("option", [{"queue": "a\0b"}, {"queue": "\ud800"}, {"task_id": "\0"}, {"user_id": "\0"},
                                    {"priority": SQL}, {"max_attempts": SQL}, {"reply_to": "\0"}])
def test_what_cannot_be_stored_is_refused_at_the_call(option: dict[str, Any], app: Celery, database_url: str) -> None:
    with pytest.raises(InvalidJob):
        app.send_task("t.add", (1, 2), **option)
    assert one(database_url, "select count(*) from job_queue") == 0


def test_a_payload_too_deep_is_refused_at_the_call(app: Celery, database_url: str) -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises((EncodeError, RecursionError)):
        app.send_task("t.add", (deep, 2))
    with pytest.raises(psycopg.errors.StatementTooComplex):
        rows(database_url, "select enqueue_job('t.add', %s)", ("[" * 100_000 + "]" * 100_000,))
    assert one(database_url, "select count(*) from job_queue") == 0


@pytest.mark.timeout(300)
def test_a_hundred_megabytes(app: Celery, database_url: str, start_worker: Start) -> None:
    """They run once, and the next job after them; nobody takes the worker for dead meanwhile."""
    size = 100_000_000
    worker = start_worker("-c", "1")
    big = app.tasks["t.record"].apply_async(("/dev/null", "x" * size), ignore_result=True)
    after = app.tasks["t.add"].delay(1, 2)
    assert after.get(timeout=120) == 3
    [row] = rows(database_url, "select status, total_starts, length(payload) as size from job_queue"
                               " where task_id = %s", (big.id,))
    assert (row["status"], row["total_starts"]) == ("completed", 1)
    assert row["size"] > size
    assert worker.process.poll() is None


@pytest.mark.timeout(300)
@pytest.mark.parametrize("body", [b"x" * (MOST + 1), b"\0" * (MOST + 1)], ids=["text", "binary"])
def test_what_is_too_large_is_refused_at_the_call(body: bytes, app: Celery, database_url: str) -> None:
    """By the one call: what else is sent with it is stored."""
    with app.producer_or_acquire() as producer, producer.batch():
        app.tasks["t.add"].apply_async((1, 2), producer=producer)
        with pytest.raises(InvalidJob, match=r"arguments\) would have 268,435,457 bytes, and 268,435,456 is the most"):
            producer.publish(body, routing_key="celery", content_type="application/data", content_encoding="binary")
    assert one(database_url, "select array_agg(task_name) from job_queue") == ["t.add"]


@pytest.mark.parametrize("word", ["x", "é", "€", "\U0001f600"])
def test_bytes_are_counted_not_characters(word: str, app: Celery, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In arguments, headers and results, by whatever way they come; a byte less passes."""
    monkeypatch.setattr(messages, "_MOST", 1000)
    add = app.tasks["t.add"]
    text = word * (1000 // len(word.encode()) + 1)
    with app.producer_or_acquire() as producer, pytest.raises(InvalidJob, match=r"arguments\) would have 1,00\d bytes"):
        producer.publish(text, routing_key="celery", serializer="raw", content_type="text/plain", content_encoding="utf-8")
    with app.producer_or_acquire() as producer:
        producer.publish(text[1:], routing_key="celery", content_type="text/plain", content_encoding="utf-8")
    with pytest.raises(InvalidJob, match=r"headers .* would have"):
        add.apply_async((1, 2), headers={"note": text})
    with pytest.raises(InvalidJob, match="a call's arguments would have"):
        enqueue_many(add, [(1, 2), (text, 2)])
    with pytest.raises(InvalidJob, match="the task's result would have"):
        app.backend.store_result("id", text, "SUCCESS")
    assert one(database_url, "select count(*) from job_queue") == 1


def test_a_long_error_is_short_where_people_read_it(app: Celery, database_url: str, start_worker: Start) -> None:
    start_worker("-c", "1")
    failed = app.tasks["t.boom"].delay("x" * 1_000_000)
    with pytest.raises(ValueError, match=r"^x{1000000}$"):
        failed.get(timeout=20)
    wait_until(lambda: one(database_url, "select status from job_queue") == "failed", "it has failed")
    [row] = rows(database_url, "select error_message, length(errors::text) as errors from job_queue")
    assert row["error_message"].startswith("ValueError: xxx")
    assert row["error_message"].endswith("… (1,000,012 characters)")
    assert len(row["error_message"]) < 11_000
    assert row["errors"] < 3_000


class Evil:
    """Whoever loads its pickle runs its code."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path(self.path).touch, ())


def test_pickle_is_refused(app: Celery, database_url: str, start_worker: Start, tmp_path: Path) -> None:
    """By default, as a message and as a result; and the row says so."""
    mark = tmp_path / "executed"
    app.tasks["t.add"].apply_async((Evil(str(mark)), 2), serializer="pickle", task_id="pickled")
    start_worker("-c", "1")
    wait_until(lambda: one(database_url, "select status from job_queue") == "failed", "it has failed")
    assert "Refusing to deserialize" in one(database_url, "select error_message from job_queue")
    # A result that somebody has put there: it is read as JSON, whatever it is.
    rows(database_url, "update job_queue set state = 'SUCCESS', result = null, result_binary = %s",
         (pickle.dumps(Evil(str(mark))),))
    with pytest.raises(Exception, match=r"decode|JSON|Expecting"):
        app.AsyncResult("pickled").get(timeout=5)
    assert not mark.exists()


def test_messages_that_nobody_can_read_do_not_reach_a_workers_heart(app: Celery, database_url: str, start_worker: Start) -> None:
    """Any publisher may send to any worker's mailbox."""
    worker = start_worker("-c", "1")
    mailbox = one(database_url, "select name from jobqueue.queue where name like %s", (f"{worker.name}%pidbox",))
    for envelope in ("garbage", "5", '{"properties": 5}', '{"headers": [1]}', "[" * 100_000, '{"content-type": "no/such"}', None):
        rows(database_url, "select jobqueue.send(array[%s], 5::smallint, null, %s, %s, null)", (mailbox, envelope, "not json"))
    assert app.control.inspect(timeout=20, limit=1).ping() == {worker.name: {"ok": "pong"}}
    assert "cannot be read and is dropped" in worker.text
    assert app.tasks["t.add"].delay(1, 2).get(timeout=20) == 3
    assert worker.process.poll() is None


def test_the_end_of_unreadable_jobs_can_be_told(app: Celery, database_url: str, start_worker: Start) -> None:
    """Jobs of a worker in another language that has died, with envelopes that nobody can read: they fail, and no worker does."""
    odd = ["garbage", "[]", '{"properties": 5}', '{"headers": {"chord": 5, "group": [], "errbacks": 7}}', "[" * 50_000]

    @_briefly
    @given(envelope=ENVELOPES.filter(lambda text: text is not None and "\0" not in text))
    def collect(envelope: str) -> None:
        odd.append(envelope)

    collect()
    with psycopg.connect(database_url, autocommit=True) as conn:
        conn.cursor().executemany(
            "insert into job_queue (task_id, task_name, queue, envelope, payload, max_attempts)"
            " values (%s, 't.add', 'foreign', %s, 'x', 1)",
            [(f"odd {number}", envelope) for number, envelope in enumerate(odd)])
        conn.execute("select get_next_job('foreign', %s, '1 millisecond')", (len(odd),))
    worker = start_worker("-c", "1")
    ended = "select count(*) from job_queue where status = 'failed' and error_message like '%%Worker lost%%'"
    wait_until(lambda: one(database_url, ended) == len(odd), "they have failed")
    assert app.tasks["t.add"].delay(1, 2).get(timeout=20) == 3
    for task_id in ("odd 0", "odd 3"):  # whose errbacks and chord are none
        with pytest.raises(Exception, match="Worker lost"):
            app.AsyncResult(task_id).get(timeout=10)
    # Revoking one that waits tells of its end in the client.
    rows(database_url, "insert into job_queue (task_id, task_name, queue, envelope)"
                       " values ('waits', 't.add', 'nobodys', 'garbage')")
    app.control.revoke("waits")
    assert one(database_url, "select status from job_queue where task_id = 'waits'") == "failed"
    assert worker.process.poll() is None
