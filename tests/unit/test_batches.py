"""Two transactions in one round trip."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from celery_jobqueue.broker.session import Row, Session
from celery_jobqueue.broker.sql import Statement
from celery_jobqueue.db.url import libpq_dsn
from tests.support.database import rows
from tests.support.waiting import wait_until


@pytest.fixture
def session(empty_database_url: str) -> Iterator[Session]:
    session = Session(libpq_dsn(empty_database_url))
    yield session
    session.close()


def plain(text: str) -> Statement:
    return Statement("", text.encode())


def test_what_goes_ahead_is_answered_and_committed_first(session: Session, empty_database_url: str) -> None:
    session.run((plain("create table t (x text)"), ()))
    order: list[str] = []

    def ahead() -> bool:
        session.wait(0.1)
        session.on_readable()
        return bool(order)

    with psycopg.connect(empty_database_url) as holder:
        holder.execute("select pg_advisory_xact_lock(1)")
        session.send([(plain("select pg_advisory_xact_lock(1)"), ()), (plain("insert into t values ('behind')"), ())],
                     lambda _: order.append("behind"),
                     ([(plain("insert into t values ('ahead') returning x"), ())], lambda told: order.append(str(told[0][0][0]))))
        wait_until(ahead, "the first part is answered")
        assert (order, session.busy) == (["ahead"], True)
        assert rows(empty_database_url, "select x from t") == [{"x": "ahead"}]
    session.finish()
    assert (order, session.busy) == (["ahead", "behind"], False)
    assert len(rows(empty_database_url, "select x from t")) == 2


@pytest.mark.parametrize("bad", ["ahead", "behind", "both"])
def test_parts_of_a_batch_fail_apart(session: Session, bad: str) -> None:
    session.connect()
    took: list[str] = []
    named = {part: [(Statement(f"{bad} {part}", b"select 1 / $1::integer"), ("0" if bad in (part, "both") else "1",)),
                    (Statement(f"{bad} {part} then", b"select 2"), ())] for part in ("ahead", "behind")}
    session.send(named["behind"], lambda _: took.append("behind"), (named["ahead"], lambda _: took.append("ahead")))
    with pytest.raises(psycopg.errors.DivisionByZero):
        session.finish()
    assert (session.busy, took) == (False, [part for part in ("ahead", "behind") if bad not in (part, "both")])
    # What was prepared in a part that failed is known only as far as it got.
    assert session.run(*([(statement, params and ("1",)) for part in named.values() for statement, params in part])) == [
        [("1",)], [("2",)], [("1",)], [("2",)]]


def test_what_a_failed_part_was_to_prepare_is_missed_by_nobody(session: Session) -> None:
    session.connect()
    took: list[list[list[Row]]] = []
    shared = Statement("shared", b"select 2")
    session.send([(shared, ())], took.append, ([(Statement("bad", b"select 1 / 0"), ()), (shared, ())], took.append))
    with pytest.raises(psycopg.errors.DivisionByZero):
        session.finish()
    assert took == [[[("2",)]]]
    assert session.run((shared, ()), (shared, ())) == [[("2",)], [("2",)]]
