"""jobs_in() on connections that cannot carry jobs says so; on unusual ones that can, it works."""

from __future__ import annotations

import asyncio
import contextvars
import socket
import uuid
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from celery import Celery, chain, group
from psycopg.rows import dict_row
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from celery_jobqueue.broker import jobs_in
from celery_jobqueue.db.errors import SchemaError, TransactionError
from celery_jobqueue.db.url import sqlalchemy_url
from tests.support.app import make_app
from tests.support.database import one, rows, sibling
from tests.support.pgbouncer import PgBouncer, pgbouncer
from tests.support.transactions import SYNC, opened, opened_async


def count(url: str) -> int:
    return int(one(url, "select count(*) from job_queue"))


@pytest.fixture
def elsewhere(server: str, template: str) -> Iterator[str]:
    """Another migrated database on the same server."""
    from tests.support.database import fresh_database

    with fresh_database(server, template) as url:
        yield url


# -- no transaction ----------------------------------------------------------------------------------------------------------


def test_autocommit_is_no_transaction(app: Celery, database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as conn:
        with pytest.raises(TransactionError, match="autocommit"), jobs_in(conn):
            app.tasks["t.add"].delay(1, 1)
        with conn.transaction(), jobs_in(conn):  # but this is one
            app.tasks["t.add"].delay(2, 2)
        assert count(database_url) == 1
    engine = create_engine(sqlalchemy_url(database_url), poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection, pytest.raises(TransactionError, match="autocommit"), jobs_in(connection):
        app.tasks["t.add"].delay(1, 1)
    with Session(engine) as session, pytest.raises(TransactionError, match="autocommit"), jobs_in(session):
        app.tasks["t.add"].delay(1, 1)
    assert count(database_url) == 1


def test_closed_and_failed_connections_are_refused(database_url: str) -> None:
    with psycopg.connect(database_url) as conn:
        with pytest.raises(psycopg.errors.UndefinedTable):
            conn.execute("select from nowhere")
        with pytest.raises(TransactionError, match="roll it back"), jobs_in(conn):
            pass
    with pytest.raises(TransactionError, match="closed"), jobs_in(conn):
        pass


def test_what_else_is_handed_in_is_named(database_url: str) -> None:
    engine = create_engine("sqlite://")
    with engine.connect() as connection, pytest.raises(TransactionError, match=r"sqlite3.*psycopg"), jobs_in(connection):
        pass
    for wrong in (engine, database_url, None):
        with pytest.raises(TransactionError, match="SQLAlchemy Session"), jobs_in(wrong):
            pass
    with pytest.raises(TransactionError, match="memory"), jobs_in(Celery(broker="memory://", set_as_current=False)):
        pass
    engine.dispose()


def test_with_and_async_with_are_not_mixed_up(app: Celery, database_url: str) -> None:
    async def scenario() -> None:
        async with opened_async("async session", database_url) as awaited, await psycopg.AsyncConnection.connect(
                database_url) as conn:
            for target in (awaited.target, conn):
                with pytest.raises(TransactionError, match="async with"), jobs_in(target):
                    pass
        for target in (psycopg.connect(database_url), app):
            with pytest.raises(TransactionError, match="use `with"):
                async with jobs_in(target):
                    pass
            target.close()

    asyncio.run(scenario())


# -- another fate than the transaction's ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SYNC)
def test_a_savepoint_begun_in_the_block_is_refused(kind: str, app: Celery, database_url: str) -> None:
    """Its rollback could not take the job away, which is written when the block ends."""
    with opened(kind, database_url) as transaction:
        transaction.execute("select 1")
        with jobs_in(transaction.target):
            app.tasks["t.add"].delay("kept", "")
            with pytest.raises(TransactionError, match="savepoint"), transaction.savepoint():
                app.tasks["t.add"].delay("refused", "")
        transaction.commit()
    assert count(database_url) == 1


@pytest.mark.parametrize("kind", SYNC)
def test_a_commit_in_the_block_is_noticed(kind: str, app: Celery, database_url: str) -> None:
    def scenario(transaction: Any) -> None:
        with jobs_in(transaction.target):
            transaction.execute("select 1")
            app.tasks["t.add"].delay(1, 1)
            transaction.commit()

    with opened(kind, database_url) as transaction:
        with pytest.raises(TransactionError, match="commit after it"):
            scenario(transaction)
        transaction.commit()
    assert count(database_url) == 0


def test_a_block_left_in_another_context_is_noticed(app: Celery, database_url: str) -> None:
    """As by web frameworks that run a dependency's two halves in different threads."""
    with opened("psycopg", database_url) as transaction:
        block = jobs_in(transaction.target)
        contextvars.copy_context().run(block.__enter__)
        app.tasks["t.add"].delay(1, 1)  # not in the block
        with pytest.raises(TransactionError, match="another context"):
            block.__exit__(None, None, None)
        with pytest.raises(TransactionError, match="before"):
            block.__enter__()
    assert count(database_url) == 1


def test_a_result_is_not_waited_for_before_its_job_is_sent(app: Celery, database_url: str) -> None:
    add = app.tasks["t.add"]
    earlier = add.delay(0, 0)
    rows(database_url, "update job_queue set status = 'completed', state = 'SUCCESS', result = '0'")
    with opened("psycopg", database_url) as transaction, jobs_in(transaction.target):
        for result in (add.delay(1, 1), group(add.s(1, 1), add.s(2, 2))(), chain(add.s(1, 1), add.s(2))()):
            with pytest.raises(TransactionError, match="when its transaction commits"):
                result.get(timeout=5)
        assert earlier.get(timeout=5) == 0


# -- another database -----------------------------------------------------------------------------------------------------------


def test_a_transaction_in_another_database_is_refused(app: Celery, database_url: str, elsewhere: str, server: str) -> None:
    with opened("psycopg", elsewhere) as transaction:
        with pytest.raises(TransactionError, match="see them") as refusal, jobs_in(transaction.target):
            app.tasks["t.add"].delay(1, 1)
        assert urlsplit(elsewhere).path.lstrip("/") in str(refusal.value)
        assert str(urlsplit(server).password) not in str(refusal.value)
        transaction.commit()
    assert (count(database_url), count(elsewhere)) == (0, 0)

    async def awaited() -> None:
        async with opened_async("async psycopg", elsewhere) as transaction, jobs_in(transaction.target):
            app.tasks["t.add"].delay(1, 1)

    with pytest.raises(TransactionError, match="see them"):
        asyncio.run(awaited())


def test_a_database_without_a_job_queue_is_told_so(empty_database_url: str) -> None:
    app = make_app(empty_database_url)
    with opened("session", empty_database_url) as transaction, pytest.raises(SchemaError, match="jobqueue migrate"), jobs_in(
            transaction.target):
        app.tasks["t.add"].delay(1, 1)
    app.close()


def test_a_broker_that_does_not_answer_forbids_nothing(database_url: str) -> None:
    """Which database it is cannot be known; the transaction need not wait for a broker's connection to come back."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        app = make_app(urlunsplit(urlsplit(database_url)._replace(netloc=f"u:p@127.0.0.1:{closed.getsockname()[1]}")))
        with opened("psycopg", database_url) as transaction:
            with jobs_in(transaction.target):
                app.tasks["t.add"].delay(1, 1)
            transaction.commit()
    app.close()
    assert count(database_url) == 1


def test_a_role_without_the_right_to_publish_is_told_which(app: Celery, database_url: str) -> None:
    role = f"t_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(database_url) as conn:
        conn.execute(f"create role {role}")
        conn.execute(f"set local role {role}")
        with pytest.raises(TransactionError, match="grant jobqueue_publisher"), jobs_in(conn):
            app.tasks["t.add"].delay(1, 1)
        conn.rollback()
        conn.execute(f"create role {role} in role jobqueue_publisher")
        conn.execute(f"set local role {role}")
        with jobs_in(conn):
            app.tasks["t.add"].delay(1, 1)
            group(app.tasks["t.add"].s(1, 1), app.tasks["t.add"].s(1, 1)) | app.tasks["t.add"].s()
        assert conn.execute("select count(*) from job_queue").fetchall() == [(1,)]
        conn.rollback()


# -- unusual, and fine ----------------------------------------------------------------------------------------------------------


def test_connections_set_up_in_their_own_way(app: Celery, database_url: str) -> None:
    add = app.tasks["t.add"]
    with psycopg.connect(database_url, row_factory=dict_row, cursor_factory=psycopg.ClientCursor, prepare_threshold=0,
                         options="-c search_path=nowhere -c default_transaction_isolation=serializable") as conn:
        for _ in range(2):
            with jobs_in(conn):
                add.apply_async((1, 1), max_attempts=2)
            conn.commit()
        with conn.pipeline():
            pending = conn.execute("select 5 as five")
            with jobs_in(conn):
                add.apply_async((1, 1), queue="another")
            assert pending.fetchone() == {"five": 5}
    assert count(database_url) == 3


@pytest.fixture(scope="module")
def pooler(server: str) -> Iterator[PgBouncer]:
    """A PgBouncer in front of the test server."""
    with pgbouncer(server) as running:
        yield running


@pytest.mark.needs_pgbouncer
def test_through_a_pooler_in_transaction_mode(app: Celery, database_url: str, pooler: PgBouncer) -> None:
    """The application goes through the pooler, the broker does not: it is the same database all the same."""
    engine = create_engine(sqlalchemy_url(pooler.url(database_url)), poolclass=NullPool, connect_args={"prepare_threshold": None})
    for _ in range(8):
        with Session(engine) as session:
            session.execute(text("select 1"))
            with jobs_in(session):
                app.tasks["t.add"].delay(1, 1)
            session.commit()
    engine.dispose()
    assert count(database_url) == 8


def test_a_database_of_the_same_name_on_another_server_is_another(app: Celery, database_url: str, tmp_path_factory: Any) -> None:
    from celery_jobqueue.db import embedded, migrate

    home = tmp_path_factory.mktemp("another")
    try:
        other = sibling(embedded.ensure(home), urlsplit(database_url).path.lstrip("/"))
        rows(sibling(other, "postgres"), f"create database {urlsplit(other).path.lstrip('/')}")
        migrate.migrate(other, migrate.LINES)
        with opened("psycopg", other) as transaction, pytest.raises(TransactionError, match="see them"), jobs_in(
                transaction.target):
            app.tasks["t.add"].delay(1, 1)
    finally:
        embedded.down(home)


def test_names_are_given_when_asked_for() -> None:
    """kombu loads this package while it is itself being imported, so nothing more may be imported with it."""
    import subprocess
    import sys

    code = ("import celery_jobqueue.broker as b, sys\n"
            "assert 'celery_jobqueue.broker.enqueue' not in sys.modules and 'celery' not in sys.modules\n"
            "from celery_jobqueue.broker import LeaseLost, afinish_in, finish_in, jobs_in\n"
            "assert not hasattr(b, 'nothing')")
    subprocess.run([sys.executable, "-c", code], check=True)


