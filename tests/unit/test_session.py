"""Session against a real server: what a batch promises, and what is left when something breaks."""

from __future__ import annotations

import os
import resource
import select
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from celery_jobqueue.broker.session import Row, Session
from celery_jobqueue.broker.sql import Statement, statement
from celery_jobqueue.db.url import libpq_dsn
from tests.support.database import one, rows
from tests.support.waiting import wait_until

Make = Callable[..., Session]


def plain(text: str) -> Statement:
    """A statement that is never prepared."""
    return Statement("", text.encode())


PID = (plain("select pg_backend_pid()"), ())
ECHO = plain("select $1::text")


@pytest.fixture
def make(empty_database_url: str) -> Iterator[Make]:
    """Makes sessions, closed at the end."""
    made: list[Session] = []

    def session(**options: Any) -> Session:
        made.append(Session(libpq_dsn(empty_database_url), **options))
        return made[-1]

    yield session
    for each in made:
        each.close()


@pytest.fixture
def session(make: Make) -> Session:
    return make()


def answer(session: Session, timeout: float = 10) -> None:
    """Read as an event loop does until the batch in flight is answered."""
    deadline = time.monotonic() + timeout
    while session.busy:
        assert time.monotonic() < deadline
        session.wait(0.1)
        session.on_readable()


def kill(url: str, pid: object) -> None:
    """End a server process and wait until it is gone."""
    rows(url, "select pg_terminate_backend(%s, 5000)", (int(str(pid)),))


# -- answers ---------------------------------------------------------------------------------------------------------------


def test_rows_are_text(session: Session) -> None:
    answers = session.run((plain("select 1, null, true, 'ä', '\\x00ff'::bytea"), ()),
                          (plain("select generate_series(1, $1::integer)"), ("3",)), (plain("set search_path = public"), ()))
    assert answers == [[("1", None, "t", "ä", "\\x00ff")], [("1",), ("2",), ("3",)], []]


@pytest.mark.parametrize("text", ["", "naïve 日本語 🎓 עברית", "'; drop table x --", "{\"a\\\"b\"}", "%s $1 \\"])
def test_text_comes_back_as_it_was(session: Session, text: str) -> None:
    assert session.run((ECHO, (text,))) == [[(text,)]]


def test_bytes_and_null(session: Session) -> None:
    everything = bytes(range(256))
    assert session.run((plain("select $1::bytea, $2::text is null"), (everything, None))) == [[("\\x" + everything.hex(), "t")]]


@pytest.mark.parametrize("prepare", [True, False])
def test_big_parameters_and_results(make: Make, prepare: bool) -> None:
    text = "0123456789abcdef" * 500_000  # 8 MB: more than any socket buffer holds
    session = make(prepare=prepare)
    calls = [(Statement("echo", b"select $1::text"), (text + str(number),)) for number in range(3)]
    assert session.run(*calls) == [[(text + str(number),)] for number in range(3)]


def test_many_calls_and_many_rows(session: Session) -> None:
    calls = [(ECHO, (str(number),)) for number in range(2000)]
    assert session.run(*calls) == [[(str(number),)] for number in range(2000)]
    [found] = session.run((plain("select generate_series(1, 200000)"), ()))
    assert (len(found), found[-1]) == (200_000, ("200000",))


# -- a batch is a transaction -----------------------------------------------------------------------------------------------


def test_a_batch_is_one_transaction(session: Session) -> None:
    current = (plain("select pg_current_xact_id()::text"), ())
    first, second = session.run(current, current)
    assert first == second
    assert session.run(current)[0] != first


@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_error_undoes_the_whole_batch(session: Session, empty_database_url: str, place: int) -> None:
    session.run((plain("create table t (n integer)"), ()))
    calls = [(plain("insert into t values (1)"), ()), (plain("insert into t values (2)"), ())]
    calls.insert(place, (plain("select 1 / 0"), ()))
    with pytest.raises(psycopg.errors.DivisionByZero):
        session.run(*calls)
    assert one(empty_database_url, "select count(*) from t") == 0
    assert session.connected
    assert session.run((ECHO, ("still here",)), (ECHO, ("twice",))) == [[("still here",)], [("twice",)]]


@pytest.mark.parametrize("text", ["a\0b", "\0", "half \ud800"])
@pytest.mark.parametrize("prepare", [True, False])
def test_text_that_postgresql_cannot_hold_is_refused_and_nothing_is_sent(make: Make, empty_database_url: str, text: str,
                                                                        prepare: bool) -> None:
    session = make(prepare=prepare)
    session.run((plain("create table t (n integer)"), ()))
    insert = Statement("insert_one", b"insert into t values ($1::integer)")
    with pytest.raises(psycopg.DataError, match="PostgreSQL's text cannot"):
        session.run((insert, ("1",)), (ECHO, (text,)))
    assert session.run((ECHO, ("next",)), (ECHO, ("last",))) == [[("next",)], [("last",)]]
    assert session.run((insert, ("2",))) == [[]]
    assert rows(empty_database_url, "select n from t") == [{"n": 2}]


def test_asynchronous_commit_ends_with_its_batch(session: Session) -> None:
    show = (plain("show synchronous_commit"), ())
    assert session.run((statement("asynchronous_commit"), ()), show)[1] == [("off",)]
    assert session.run(show) == [[("on",)]]


# -- prepared statements ----------------------------------------------------------------------------------------------------


def prepared(session: Session) -> list[Row]:
    return session.run((plain("select name from pg_prepared_statements order by name"), ()))[0]


def test_a_statement_is_prepared_once(session: Session) -> None:
    named = Statement("named", b"select $1::integer + 1")
    for _ in range(3):
        assert session.run((named, ("1",)), (named, ("2",))) == [[("2",)], [("3",)]]
    assert prepared(session) == [("named",)]


def test_nothing_is_prepared_behind_a_pooler(make: Make) -> None:
    session = make(prepare=False)
    assert session.run((Statement("named", b"select $1::integer + 1"), ("1",))) == [[("2",)]]
    assert prepared(session) == []


def test_a_failed_batch_leaves_no_wrong_idea_of_what_is_prepared(session: Session) -> None:
    good, late = Statement("good", b"select 'good'"), Statement("late", b"select 'late'")
    with pytest.raises(psycopg.errors.UndefinedTable):
        session.run((good, ()), (Statement("bad", b"select * from not_there"), ()), (late, ()))
    assert session.run((late, ()), (good, ())) == [[("late",)], [("good",)]]
    with pytest.raises(psycopg.errors.UndefinedTable):
        session.run((Statement("bad", b"select * from not_there"), ()))


# -- without waiting --------------------------------------------------------------------------------------------------------


def test_send_does_not_wait(session: Session) -> None:
    session.connect()
    took: list[list[list[Row]]] = []
    before = time.monotonic()
    session.send([(plain("select pg_sleep(0.5)::text, 'done'"), ())], took.append)
    assert time.monotonic() - before < 0.25
    session.on_readable()
    assert (session.busy, took) == (True, [])
    answer(session)
    assert took == [[[("", "done")]]]


def test_what_the_kernel_does_not_take_at_once_is_sent_when_it_can(session: Session) -> None:
    session.connect()
    took: list[list[list[Row]]] = []
    session.send([(plain("select length($1::text)"), ("x" * 32_000_000,))], took.append)
    assert session.wants_write()
    before = time.monotonic()
    session.finish()
    assert time.monotonic() - before < 2.5  # woken by room in the socket, not by a timeout now and then
    assert (took, session.wants_write()) == ([[[("32000000",)]]], False)


def test_an_error_of_a_sent_batch_comes_with_its_answer(session: Session) -> None:
    session.connect()
    took: list[list[list[Row]]] = []
    session.send([(plain("select 1 / 0"), ())], took.append)
    with pytest.raises(psycopg.errors.DivisionByZero):
        answer(session)
    assert (session.busy, took) == (False, [])
    assert session.run((ECHO, ("next",))) == [[("next",)]]


def test_run_lets_the_batch_in_flight_finish_first(session: Session) -> None:
    session.connect()
    order: list[str] = []
    session.send([(plain("select pg_sleep(0.1)"), ())], lambda _: order.append("sent"))
    assert session.run((ECHO, ("run",))) == [[("run",)]]
    order.append("run")
    assert order == ["sent", "run"]


def test_threads_get_their_own_answers(session: Session) -> None:
    wrong: list[object] = []

    def work(word: str) -> None:
        for number in range(100):
            said = f"{word}{number}"
            if (heard := session.run((ECHO, (said,)))) != [[(said,)]]:
                wrong.append((said, heard))

    threads = [threading.Thread(target=work, args=(word,)) for word in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# -- notifications ----------------------------------------------------------------------------------------------------------


def test_notifications_arrive_while_nothing_is_asked(session: Session, empty_database_url: str) -> None:
    session.run((plain("listen news"), ()))
    for word in ("a", "b"):
        rows(empty_database_url, "select pg_notify('news', %s)", (word,))

    def heard() -> bool:
        session.wait(0.1)
        session.on_readable()
        return len(session.notified) == 2

    wait_until(heard, "both notifications are there")
    assert list(session.notified) == ["news", "news"]
    assert not session.busy


def test_notifications_between_results_belong_to_no_result(session: Session, empty_database_url: str) -> None:
    session.run((plain("listen news"), ()))
    took: list[list[list[Row]]] = []
    session.send([(plain("select pg_sleep(0.2)::text, 'slow'"), ()), (ECHO, ("second",))], took.append)
    rows(empty_database_url, "select pg_notify('news', '')")
    answer(session)
    assert took == [[[("", "slow")], [("second",)]]]
    session.run(PID)  # PostgreSQL tells a busy session at the end of its transaction
    assert list(session.notified) == ["news"]


def test_a_session_hears_itself(session: Session) -> None:
    answers = session.run((plain("listen news"), ()), (plain("select pg_notify('news', '')::text"), ()), (ECHO, ("x",)))
    assert answers == [[], [("",)], [("x",)]]
    wait_until(lambda: session.run(PID) and list(session.notified) == ["news"], "the notification is there")


# -- breaking ---------------------------------------------------------------------------------------------------------------


def test_a_killed_idle_connection_is_an_error_once(session: Session, empty_database_url: str) -> None:
    named = Statement("named", b"select pg_backend_pid()")
    [[[pid]]] = session.run((named, ()))
    kill(empty_database_url, pid)
    with pytest.raises(psycopg.OperationalError):
        session.run((named, ()))
    assert (session.connected, session.busy) == (False, False)
    assert session.run((named, ())) != [[(pid,)]]  # prepared anew


def test_a_connection_killed_under_a_batch_is_an_error_and_the_batch_is_over(session: Session, empty_database_url: str) -> None:
    [[[pid]]] = session.run(PID)
    session.send([(plain("select pg_sleep(30)"), ())], lambda _: pytest.fail("no answer can have come"))
    wait_until(lambda: one(empty_database_url, "select state from pg_stat_activity where pid = %s", (int(str(pid)),)) == "active",
               "the batch runs")
    kill(empty_database_url, pid)
    with pytest.raises(psycopg.OperationalError):
        answer(session)
    assert (session.connected, session.busy) == (False, False)
    with pytest.raises(psycopg.OperationalError, match="closed"):
        session.on_readable()


def test_a_killed_connection_makes_an_idle_loop_notice(session: Session, empty_database_url: str) -> None:
    [[[pid]]] = session.run(PID)
    kill(empty_database_url, pid)

    def notices() -> bool:
        session.wait(0.1)
        session.on_readable()
        return False

    with pytest.raises(psycopg.OperationalError):
        wait_until(notices, "an error is raised")
    assert not session.connected


def test_a_server_that_does_not_answer_is_given_up(make: Make) -> None:
    session = make(timeout=0.3)
    session.connect()
    before = time.monotonic()
    with pytest.raises(psycopg.OperationalError, match=r"did not answer within 0\.3 s"):
        session.run((plain("select pg_sleep(30)"), ()))
    assert 0.25 < time.monotonic() - before < 2
    assert (session.connected, session.busy) == (False, False)
    assert session.run((ECHO, ("again",))) == [[("again",)]]


def test_a_server_that_is_not_there() -> None:
    session = Session("postgresql://nobody@127.0.0.1:1/nothing")
    with pytest.raises(psycopg.OperationalError):
        session.run(PID)
    with pytest.raises(psycopg.OperationalError, match="closed"):
        session.fileno()
    session.close()


def test_closing_twice_is_harmless(session: Session) -> None:
    session.run(PID)
    session.close()
    session.close()
    assert not session.connected
    assert session.run((ECHO, ("open again",))) == [[("open again",)]]


# -- processes --------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")  # Python 3.12: the child could deadlock; it forks no more
@pytest.mark.parametrize("leaves", ["at once", "after closing", "after working"])
def test_a_forked_child_never_closes_its_parents_connection(session: Session, leaves: str) -> None:
    named = Statement("named", b"select 'named', pg_backend_pid()")
    [[[_, pid]]] = session.run((named, ()))
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            said = "not connected" if not session.connected else "connected"
            if leaves == "after closing":
                session.close()
            elif leaves == "after working":
                [[[said, own]]] = session.run((named, ()))  # type: ignore[assignment]
                said += " on its own" if own != pid else " on its parent's"
                session.close()
            os.write(writing, said.encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as told:
        assert told.read() == ("named on its own" if leaves == "after working" else "not connected")
    assert os.waitpid(child, 0)[1] == 0
    assert session.run((named, ())) == [[("named", pid)]]


def test_more_than_1024_open_files(make: Make) -> None:
    """select() cannot look at descriptors beyond 1024; a web server easily has more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 1200:
        pytest.fail(f"this test needs 1200 open files, the limit here is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1200), hard))
    opened: list[int] = []
    try:
        while not opened or opened[-1] < 1030:
            opened.append(os.open(os.devnull, os.O_RDONLY))
        session = make()
        assert session.run((ECHO, ("far",))) == [[("far",)]]
        assert session.fileno() > 1024
        session.wait(0.01, opened[-1])
        session.close()
    finally:
        for descriptor in opened:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_wait_wakes_up_for_others_too(session: Session) -> None:
    session.connect()
    reading, writing = os.pipe()
    try:
        before = time.monotonic()
        session.wait(0.2, reading)
        assert time.monotonic() - before >= 0.19
        os.write(writing, b"x")
        session.wait(10, reading)
        assert time.monotonic() - before < 5
        assert select.select([reading], [], [], 0)[0] == [reading]
    finally:
        os.close(reading)
        os.close(writing)
