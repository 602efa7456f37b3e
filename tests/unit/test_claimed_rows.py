"""What a worker claims, and where it goes on reading: PostgreSQL's answers."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from itertools import pairwise

import pytest

from celery_jobqueue.broker.claims import Claims, Places, text_array
from celery_jobqueue.broker.session import Session
from celery_jobqueue.broker.sql import Statement
from celery_jobqueue.db.url import libpq_dsn
from tests.support.claiming import SLOWEST, claims_of
from tests.support.database import one, rows


@pytest.fixture
def session(database_url: str) -> Iterator[Session]:
    session = Session(libpq_dsn(database_url))
    yield session
    session.close()


def look(claims: Claims, session: Session, places: int | Places, now: float) -> list[str]:
    """One look: the names of the jobs that it claimed."""
    now = now or 0.001  # no real clock says 0.0
    places = Places(places) if isinstance(places, int) else places
    answers = session.run(*claims.calls(places, claims.queues, now))
    claims.took(answers[0], answers[1] if len(answers) > 1 else None, places, now)
    return [str(found[7]) for found in answers[0]]


def put(url: str, name: str, minutes_ago: float = 10, queue: str = "a", priority: int = 5) -> None:
    """A job that could run since then."""
    rows(url, "insert into job_queue (task_name, queue, priority, run_at) values (%s, %s, %s, now() - make_interval(secs => %s))",
         (name, queue, priority, minutes_ago * 60))


def give_back(url: str, name: str) -> None:
    """The job lies where it lay: perhaps behind a cursor."""
    rows(url, "update job_queue set owner = null, lease = null where task_name = %s", (name,))


def test_urgent_first_then_the_oldest_over_all_queues(session: Session, database_url: str) -> None:
    for name, minutes, queue, priority in (("low", 90, "a", 10), ("old", 50, "a", 5), ("new", 40, "b", 5), ("urgent", 1, "b", 1),
                                           ("newer", 30, "a", 5), ("elsewhere", 95, "c", 1)):
        put(database_url, name, minutes, queue, priority)
    assert look(claims_of("a", "b"), session, 9, 0.0) == ["urgent", "old", "new", "newer", "low"]


def test_few_places_go_to_the_urgent(session: Session, database_url: str) -> None:
    for number in range(5):
        put(database_url, f"normal{number}", 60, "a")
    put(database_url, "urgent", 1, "b", 1)
    claims = claims_of("a", "b")
    assert look(claims, session, 2, 0.0)[0] == "urgent"
    put(database_url, "urgent again", 1, "b", 1)
    assert look(claims, session, 1, 0.0) == ["urgent again"]


def ahead(limit: int, more: int, *quick: str) -> Places:
    """Places for jobs of these tasks beyond the window."""
    return Places(limit, more, "worker", limit + more, text_array(quick))


def test_what_goes_beyond_the_window_ends_before_the_first_that_is_not_quick(session: Session, database_url: str) -> None:
    for number, name in enumerate(("quick", "quick", "quick", "slow", "quick", "quick")):
        put(database_url, name, 60 - number)
    claims = claims_of("a")
    assert look(claims, session, ahead(2, 9, "quick"), 0.0) == ["quick", "quick", "quick"]
    assert one(database_url, "select count(*) from job_queue where status = 'processing' and worker = 'worker'") == 3
    assert claims.due(0.001), "what stays may have a place by now"
    assert look(claims, session, ahead(0, 9, "quick"), 0.1) == [], "none overtakes the one in front of it"
    assert not claims.due(0.1)
    assert claims.next_look < 0.2, "it is not the end of the queue, for all that is known"
    assert not claims.idle
    assert look(claims, session, ahead(1, 9, "quick"), 0.2) == ["slow"], "and where one is slow nothing is claimed ahead"
    assert look(claims, session, ahead(1, 9, "quick"), 0.3) == ["quick", "quick"]
    assert look(claims, session, ahead(1, 9, "quick"), 0.4) == []
    assert claims.next_look > 0.4


def test_others_find_what_there_was_no_place_for_at_once(session: Session, database_url: str) -> None:
    for number, name in enumerate(("quick", "quick", "slow", "quick")):
        put(database_url, name, 60 - number)
    first, second = claims_of("a"), claims_of("a")
    other = Session(libpq_dsn(database_url))
    with session.transaction():
        assert look(first, session, ahead(1, 9, "quick"), 0.0) == ["quick", "quick"]
        assert look(second, other, 4, 0.0) == ["slow", "quick"]
    other.close()


def test_what_waits_for_its_moment_or_comes_too_late_is_not_started_ahead(session: Session, database_url: str) -> None:
    put(database_url, "quick", 60)
    put(database_url, "quick", 59)
    rows(database_url, "insert into job_queue (task_name, queue, run_at, expires_at) values"
                       " ('quick', 'a', now() - interval '50 minutes', now() - interval '1 minute')")
    assert len(look(claims_of("a"), session, ahead(1, 9, "quick"), 0.0)) == 2


def test_no_more_than_there_are_places_ahead(session: Session, database_url: str) -> None:
    for number in range(9):
        put(database_url, "quick", 60 - number)
    claims = claims_of("a")
    assert len(look(claims, session, ahead(2, 3, "quick"), 0.0)) == 5
    assert len(look(claims, session, ahead(0, 3, "quick"), 0.0)) == 3
    assert len(look(claims, session, ahead(0, 0, "quick"), 0.0)) == 0


def test_it_goes_on_behind_what_it_has_claimed(session: Session, database_url: str) -> None:
    for number in range(5):
        put(database_url, f"job{number}", 60 - number)
    claims = claims_of("a")
    assert [look(claims, session, 2, 0.0), look(claims, session, 2, 0.0)] == [["job0", "job1"], ["job2", "job3"]]
    give_back(database_url, "job1")
    assert look(claims, session, 2, 0.0) == ["job4"]  # job1 lies behind the cursor


def test_what_lies_behind_the_cursor_is_found_soon_without_a_wake_up(session: Session, database_url: str) -> None:
    put(database_url, "first", 60)
    put(database_url, "second", 50)
    claims = claims_of("a")
    assert look(claims, session, 2, 0.0) == ["first", "second"]
    give_back(database_url, "first")
    assert look(claims, session, 2, 0.1) == []
    assert look(claims, session, 2, 2.0) == ["first"]


def test_a_wake_up_goes_back_to_the_beginning_of_its_queue(session: Session, database_url: str) -> None:
    for queue in ("a", "b"):
        put(database_url, f"{queue}1", 60, queue)
        put(database_url, f"{queue}2", 50, queue)
    claims = claims_of("a", "b")
    assert len(look(claims, session, 9, 0.0)) == 4
    give_back(database_url, "a1")
    give_back(database_url, "b1")
    claims.wake("a")
    assert look(claims, session, 9, 0.1) == ["a1"]
    claims.wake()
    assert look(claims, session, 9, 0.2) == ["b1"]


def test_each_priority_has_a_cursor_of_its_own(session: Session, database_url: str) -> None:
    put(database_url, "normal", 10, priority=5)
    claims = claims_of("a")
    assert look(claims, session, 2, 0.0) == ["normal"]
    put(database_url, "urgent but older", 60, priority=1)
    put(database_url, "low and older", 60, priority=9)
    assert look(claims, session, 2, 0.1) == ["urgent but older", "low and older"]


def test_jobs_of_this_moment_are_not_missed_when_they_commit_out_of_order(session: Session, database_url: str) -> None:
    put(database_url, "fast", 0)
    claims = claims_of("a")
    assert look(claims, session, 2, 0.0) == ["fast"]
    put(database_url, "began before, committed after", 0.001)
    assert look(claims, session, 2, 0.1) == ["began before, committed after"]


def test_queues_of_the_same_priority_take_turns(session: Session, database_url: str) -> None:
    for number in range(3):
        for queue in ("a", "b"):
            put(database_url, queue, 60 - number, queue)
    claims = claims_of("a", "b")
    served = [look(claims, session, 1, 0.0)[0] for _ in range(6)]
    assert all(first != second for first, second in pairwise(served))


def asked(claims: Claims, now: float) -> set[tuple[str, int]]:
    """The levels that the next look goes through."""
    _, parameters = claims.calls(Places(2), claims.queues, now)[0]
    queues, priorities = (str(array).strip("{}").replace('"', "").split(",") for array in parameters[2:4])
    return set(zip(queues, map(int, priorities), strict=True))


def test_a_busy_worker_leaves_out_for_a_moment_what_it_saw_empty(session: Session, database_url: str) -> None:
    for number in range(9):
        put(database_url, f"a{number}", 60, "a")
        put(database_url, f"b{number}", 60, "b", 7)
    put(database_url, "urgent", 60, "b", 2)
    claims = claims_of("a", "b")
    everything = {(queue, priority) for queue in "ab" for priority in range(1, 11)}
    assert asked(claims, 10.0) == everything
    assert look(claims, session, 2, 10.0) == ["urgent", "a0"]
    # Nothing is known of b's jobs of priority 5: there was no place left when their turn came.
    assert asked(claims, 10.01) == everything - {("a", 1), ("b", 1), ("a", 2), ("a", 3), ("b", 3), ("a", 4), ("b", 4)}
    put(database_url, "urgent, a moment later", 1, "a", 1)
    assert look(claims, session, 1, 10.02) == ["a1"]
    assert look(claims, session, 1, 10.06) == ["urgent, a moment later"]


def test_what_one_channels_claim_sees_says_nothing_of_anothers_queues(session: Session, database_url: str) -> None:
    """Queues with different credit are claimed apart, in one batch."""
    for number in range(3):
        put(database_url, f"lazy{number}", 60, "a", 9)
        put(database_url, f"urgent{number}", 60, "b", 1)
    claims = claims_of("a", "b")
    batches = [(queue, claims.calls(Places(2), [queue], 10.0)) for queue in "ab"]
    for _, calls in batches:
        claims.took(session.run(*calls)[0], None, Places(2), 10.0)
    _, parameters = claims.calls(Places(2), ["b"], 10.01)[0]
    assert parameters[3] == "{1,2,3,4,5,6,7,8,9,10}"


def test_of_many_queues_a_busy_worker_asks_for_a_few_and_serves_all(session: Session, database_url: str) -> None:
    queues = [f"q{number:02}" for number in range(40)]
    for queue in queues:
        for number in range(3):
            put(database_url, f"{queue} {number}", 60 - number, queue)
    claims = claims_of(*queues)
    served = look(claims, session, 2, 10.0)
    assert len(asked(claims, 10.01)) == 16
    while found := look(claims, session, 2, 10.02):
        served += found
    assert sorted(served) == sorted(f"{queue} {number}" for queue in queues for number in range(3))


def test_who_asks_for_a_few_and_finds_too_little_asks_for_all_at_once(session: Session, database_url: str) -> None:
    queues = [f"q{number:02}" for number in range(40)]
    for queue in ("q02", "q39"):
        put(database_url, f"{queue} a", 60, queue)
        put(database_url, f"{queue} b", 60, queue)
    claims = claims_of(*queues)
    assert look(claims, session, 2, 10.0) == ["q02 a", "q02 b"]
    assert look(claims, session, 2, 10.01) == []
    assert claims.due(10.01)
    assert look(claims, session, 2, 10.01) == ["q39 a", "q39 b"]


def test_who_is_told_or_finds_too_little_looks_everywhere(session: Session, database_url: str) -> None:
    for number in range(6):
        put(database_url, f"job{number}", 60 - number)
    claims = claims_of("a", "b")
    assert look(claims, session, 2, 10.0) == ["job0", "job1"]
    assert len(asked(claims, 10.01)) in (11, 12)
    claims.wake("a")
    assert len(asked(claims, 10.01)) == 20
    assert look(claims, session, 2, 10.01) == ["job2", "job3"]
    assert look(claims, session, 5, 10.02) == ["job4", "job5"]
    put(database_url, "urgent", 1, priority=1)
    assert look(claims, session, 5, 10.03) == ["urgent"]


def test_of_one_queue_an_urgent_job_is_always_found(session: Session, database_url: str) -> None:
    for number in range(6):
        put(database_url, f"job{number}", 60 - number)
    claims = claims_of("a")
    assert look(claims, session, 2, 10.0) == ["job0", "job1"]
    put(database_url, "urgent", 1, priority=1)
    assert look(claims, session, 2, 10.01) == ["urgent", "job2"]


def test_jobs_for_later_are_left_and_announced(session: Session, database_url: str) -> None:
    put(database_url, "later", -1)
    claims = claims_of("a")
    for _ in range(12):
        assert look(claims, session, 2, 100.0) == []
    assert 100.0 < claims.next_look <= 100.0 + SLOWEST * 1.1
    rows(database_url, "update job_queue set run_at = now() + interval '0.3 seconds'")
    assert look(claims, session, 2, 200.0) == []
    assert claims.next_look <= 200.31


def test_nobody_gets_what_another_has_claimed(session: Session, database_url: str) -> None:
    put(database_url, "one")
    mine, other = claims_of("a"), Claims(str(uuid.UUID(int=2)), SLOWEST)
    other.add("a")
    assert look(mine, session, 5, 0.0) == ["one"]
    assert look(other, session, 5, 0.0) == []


@pytest.mark.parametrize("name", ["plain", 'quo"ted', "back\\slash", "com,ma", "{braces}", "null", " spaces ", "naïve 日", "a'b"])
def test_any_name_is_a_queue(session: Session, database_url: str, name: str) -> None:
    call = (Statement("", b"select unnest($1::text[])"), (text_array([name, "", name + "x"]),))
    assert session.run(call) == [[(name,), ("",), (name + "x",)]]
    put(database_url, "job", queue=name)
    put(database_url, "other", queue=name + "x")
    assert look(claims_of(name), session, 5, 0.0) == ["job"]
