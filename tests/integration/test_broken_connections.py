"""Errors that no waiting heals: another connection does, or a person, who is told what to do."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from celery import Celery

from celery_jobqueue.broker import trouble
from celery_jobqueue.db.errors import ConfigurationError
from tests.support.app import make_app
from tests.support.beats import beat
from tests.support.database import one, rows
from tests.support.waiting import wait_until
from tests.support.workers import Worker

Start = Callable[..., Worker]

#: Triggers of the schema jobqueue are ours, so what they raise counts as PostgreSQL's own.
_STUMBLES = """
    create sequence jobqueue.stumbles;
    create function jobqueue.stumble() returns trigger language plpgsql as $$
        begin
            if nextval('jobqueue.stumbles') <= {times} then
                raise exception 'could not open relation with OID 4711' using errcode = 'XX000';
            end if;
            return new;
        end $$;
    create trigger stumble before {event} on job_queue for each row when ({when}) execute function jobqueue.stumble()"""


def connections(running: Worker) -> int:
    """How often it has connected."""
    return running.text.count("Connected to")


def another_result_type(url: str, function: str, old: str, new: str) -> None:
    """What a later migration, or a person, may do to a function: its columns change their type."""
    [found] = rows(url, "select pg_get_function_identity_arguments(oid) as identity, pg_get_function_arguments(oid) as arguments,"
                        " pg_get_function_result(oid) as result, pronargs from pg_proc where oid = %s::regproc", (function,))
    passed = ", ".join(f"${n + 1}" for n in range(found["pronargs"]))
    with psycopg.connect(url) as conn:  # one transaction
        conn.execute(f"alter function {function}({found['identity']}) rename to before")
        conn.execute(f"create function {function}({found['arguments']}) returns {found['result'].replace(old, new)}"
                     f" language sql as 'select * from jobqueue.before({passed})'")


def test_a_plan_that_is_out_of_date_costs_a_connection(app: Celery, database_url: str, start_worker: Start) -> None:
    """ "cached plan must not change result type": prepared statements remember, and only their connection's end forgets."""
    running = start_worker("-c", "1")
    assert app.tasks["t.add"].delay(1, 1).get(timeout=20) == 2
    another_result_type(database_url, "jobqueue.claim", "attempts integer", "attempts bigint")
    assert app.tasks["t.add"].delay(2, 2).get(timeout=20) == 4
    assert "a prepared statement is older than the table or function that it uses: cached plan" in running.text
    assert (running.process.poll(), connections(running)) == (None, 2)
    assert one(database_url, "select max(total_starts) from job_queue") == 1


def test_lost_prepared_statements_cost_a_connection_once(app: Celery, database_url: str, start_worker: Start) -> None:
    """A pooler that nobody has found out does that; here something that runs in our session does, with every job."""
    rows(database_url, "create function forget() returns trigger language plpgsql as"
                       " $$ begin execute 'deallocate all'; return new; end $$;"
                       "create trigger forget before update on job_queue for each row execute function forget()")
    running = start_worker("-c", "2")
    results = [app.tasks["t.add"].delay(n, 1) for n in range(30)]
    assert [result.get(timeout=30) for result in results] == [n + 1 for n in range(30)]
    assert "this process prepares none any more" in running.text
    assert running.process.poll() is None
    assert connections(running) == 2, "not a second time"
    assert one(database_url, "select max(total_starts) from job_queue") == 1


def test_an_internal_error_costs_an_old_connection(app: Celery, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Something in the server's session is broken, perhaps: the call is repeated on a new one, and it is one job."""
    monkeypatch.setattr(trouble, "_YOUNG", 0.0)
    app.tasks["t.add"].delay(1, 1)
    rows(database_url, _STUMBLES.format(times=1, event="insert", when="true"))
    app.tasks["t.add"].delay(2, 2)
    assert one(database_url, "select count(*) from job_queue") == 2
    assert one(database_url, "select last_value from jobqueue.stumbles") == 2


@pytest.mark.parametrize(("moment", "when"), [("claimed", "old.owner is null and new.owner is not null"),
                                              ("completed", "new.status = 'completed'")])
def test_an_internal_error_of_a_new_connection_is_a_rows(moment: str, when: str, make_client: Callable[..., Celery],
                                                         database_url: str, start_worker: Start) -> None:
    """A row that PostgreSQL itself stumbles over again and again: it is set aside, nobody waits for it, nobody storms.

    So it is with a row that is too large to be read ("invalid memory alloc request size", above 530 MB of binary).
    """
    app = make_client(task_ignore_result=True)
    rows(database_url, _STUMBLES.format(times=1000, event="update", when=f"new.task_id = 'odd' and {when}"))
    running = start_worker("-c", "1")
    app.tasks["t.add"].apply_async((0, 0), task_id="odd")
    for n in range(20):
        app.tasks["t.add"].delay(n, 1)
    done = "select count(*) from job_queue where status = 'completed'"
    wait_until(lambda: one(database_url, done) == 20, "all others end")
    [odd] = rows(database_url, "select id from job_queue where task_id = 'odd'")
    assert f"PostgreSQL refuses that job {odd['id']} is {moment}: InternalError_: could not open relation" in running.text
    assert (running.process.poll(), connections(running)) == (None, 1)
    rows(database_url, "drop trigger stumble on job_queue")
    wait_until(lambda: one(database_url, done) == 21, "it ends when PostgreSQL can")
    assert one(database_url, "select max(total_starts) from job_queue") == 1


@pytest.fixture
def login(database_url: str) -> Any:
    """A role that may do a worker's work, and the URL with it."""
    parts, name = urlsplit(database_url), f"shop_{urlsplit(database_url).path[1:]}"
    rows(database_url, f"create role {name} login password 'secret' in role jobqueue_worker")
    yield name, parts._replace(netloc=f"{name}:secret@{parts.hostname}:{parts.port}").geturl()
    rows(database_url, f"drop role {name}")


def test_a_right_that_is_taken_away_is_named_with_the_remedy(login: tuple[str, str], database_url: str,
                                                            start_worker: Start) -> None:
    """No waiting and no connection heals that: the worker ends and says what an administrator has to do."""
    role, url = login
    with closing(make_app(url)) as app:
        running = start_worker("-c", "1", DATABASE_URL=url)
        assert app.tasks["t.add"].delay(1, 1).get(timeout=20) == 2
        rows(database_url, f"revoke jobqueue_worker from {role}")
        with pytest.raises(ConfigurationError, match=r"permission denied for .*`grant jobqueue_publisher to`"):
            app.tasks["t.add"].delay(2, 2)
        assert running.process.wait(30) != 0
        assert "Unrecoverable error: ConfigurationError('permission denied for" in running.text
        assert "`grant jobqueue_worker to` it for workers" in running.text
        with closing(make_app(url)) as another, pytest.raises(ConfigurationError, match="permission denied for schema jobqueue"):
            another.tasks["t.add"].delay(2, 2)
        rows(database_url, f"grant jobqueue_worker to {role}")
        result = app.tasks["t.add"].delay(3, 3)
        start_worker("-c", "1", DATABASE_URL=url)
        assert result.get(timeout=20) == 6, "the remedy helps"
        app.backend.result_consumer.stop()


def test_a_beat_whose_right_was_taken_away_waits_for_it(login: tuple[str, str], database_url: str, tmp_path: Path) -> None:
    role, url = login
    sent = "select count(*) from job_queue"
    with beat(url, tmp_path, "--max-interval", "1", TEST_SCHEDULE='{"quick": 0.2}') as running:
        wait_until(lambda: one(database_url, sent) > 1, "the beat sends")
        rows(database_url, f"revoke jobqueue_worker from {role}")
        wait_until(lambda: "`grant jobqueue_publisher to`" in running.text, "the beat says what is missing")
        before = one(database_url, sent)
        rows(database_url, f"grant jobqueue_worker to {role}")
        wait_until(lambda: one(database_url, sent) > before, "the beat sends again")
        assert running.process.poll() is None
