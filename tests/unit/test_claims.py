"""When a worker looks for jobs; the clock is the test's."""

from __future__ import annotations

import uuid
from itertools import pairwise

from celery_jobqueue.broker.claims import Claims, Places
from celery_jobqueue.broker.session import Row
from tests.support.claiming import SLOWEST, claims_of


def row(number: int, queue: str = "a", priority: int = 5) -> Row:
    """What the claim statement returns for a job, as far as Claims reads it."""
    values: list[str | None] = [None] * 17
    values[0], values[2], values[3] = str(uuid.UUID(int=number)), queue, str(priority)
    values[14] = f"2026-01-01 00:00:{number:02d}+00"
    return tuple(values)


def looks(claims: Claims, start: float, seconds: float, found: int = 0, limit: int = 10) -> list[float]:
    """The moments at which a worker looks that finds this many jobs each time."""
    now, moments = start, []
    while now < start + seconds:
        assert claims.due(now)
        moments.append(now)
        claims.calls(Places(limit), claims.queues, now)
        claims.took([row(n) for n in range(found)], None, Places(limit), now)
        if claims.next_look > now:
            assert not claims.due(now)
            now = claims.next_look
        else:
            now += 0.001
    return moments


def test_without_a_queue_there_is_nothing_to_look_for() -> None:
    claims = claims_of()
    assert not claims.due(1e9)
    claims.add("a")
    assert claims.due(0.0)
    claims.remove("a")
    claims.remove("a")
    assert not claims.due(1e9)


def test_a_worker_run_dry_looks_ever_more_rarely() -> None:
    moments = looks(claims_of("a"), 100.0, 60.0)
    waits = [later - earlier for earlier, later in pairwise(moments)]
    assert waits[0] < 0.05
    growing = [wait for wait in waits if wait < SLOWEST * 0.45]
    assert all(1.6 < later / earlier < 2.5 for earlier, later in pairwise(growing))
    slow = waits[len(growing) + 2:]
    assert len(slow) > 5
    assert all(SLOWEST * 0.89 < wait < SLOWEST * 1.11 for wait in slow)
    assert len(set(slow)) > 1  # jitter: workers that ran dry together do not go on together


def test_nobody_has_to_wake_a_worker_before_it_has_looked_again() -> None:
    """Whoever publishes before the worker counts as idle sends no wake-up, so it may not sleep yet."""
    claims = claims_of("a")
    slept = 0.0
    claims.took([], None, Places(10), slept)
    assert not claims.idle  # it was only quick: going to and fro would be a write each time
    for _ in range(20):
        if claims.idle:
            break
        claims.took([], None, Places(10), slept)
        assert claims.next_look - slept < 0.2
        slept = claims.next_look
    assert claims.idle
    assert slept < 1.0


def test_a_wake_up_means_now() -> None:
    claims = claims_of("a")
    now = looks(claims, 100.0, 30.0)[-1]
    assert claims.next_look > now + 1
    claims.wake("a")
    assert claims.due(now)
    claims.took([row(1)], None, Places(10), now)
    assert claims.next_look < now + 0.05  # and the hurry begins again


def test_who_was_told_and_came_too_late_sleeps_on() -> None:
    """Fifty idle workers hear of one job, and one of them gets it."""
    claims = claims_of("a")
    now = looks(claims, 100.0, 30.0)[-1]
    claims.wake("a")
    claims.calls(Places(10), claims.queues, now)
    claims.took([], None, Places(10), now)
    assert claims.next_look > now + SLOWEST * 0.89
    assert claims.idle


def traffic(claims: Claims, start: float, seconds: float, per_second: int, found: int) -> tuple[float, list[bool]]:
    """Somebody publishes so often, wakes the worker if that is idle, and each look for it finds so many jobs.

    Returns when that ended, and after each job whether the worker was idle.
    """
    now, idle, end = start, [], start + seconds
    while now < end:
        if claims.idle:
            claims.wake("a")
        elif claims.next_look > now:
            now = claims.next_look
        claims.calls(Places(10), claims.queues, now)
        claims.took([row(n) for n in range(found)], None, Places(10), now)
        idle.append(claims.idle)
        now += 1 / per_second
    return now, idle


def test_who_keeps_up_with_few_is_woken_for_each_and_with_many_looks_by_itself() -> None:
    """3 ms between two looks are long where one job comes at a time; where many come, each notification costs who publishes."""
    claims = claims_of("a")
    now, _ = traffic(claims, 100.0, 0.5, 1000, 10)  # there is always more
    assert not claims.idle
    now, idle = traffic(claims, now, 2.0, 400, 1)
    assert claims.idle
    assert idle.index(True) < 0.3 * 400
    assert all(idle[idle.index(True):])
    now, idle = traffic(claims, now, 2.0, 1000, 2)
    assert not claims.idle
    assert idle.index(False) < 0.3 * 1000
    assert not any(idle[idle.index(False):])
    assert claims.next_look < now + 0.004
    now, _ = traffic(claims, now, 1.5, 400, 1)
    assert claims.idle


def test_who_has_one_place_and_keeps_up_is_woken_too() -> None:
    """Each look that finds something is full, and the next finds nothing."""
    claims = claims_of("a")
    now = 100.0
    for _ in range(100):
        for found in (1, 0):
            claims.calls(Places(1), claims.queues, now)
            claims.took([row(n) for n in range(found)], None, Places(1), now)
        now += 0.005
    assert claims.idle


def test_nobody_wakes_who_cannot_hear() -> None:
    """Behind a pooler a notification costs who publishes, and tells nobody."""
    claims = claims_of("a")
    claims.hears = False
    _, idle = traffic(claims, 100.0, 2.0, 400, 1)
    assert not any(idle)


def test_who_is_told_in_vain_again_and_again_looks_by_itself_for_a_while() -> None:
    """Others take what comes: eight workers would run eight claims for each job."""
    claims = claims_of("a")
    now = looks(claims, 100.0, 30.0)[-1]
    now, idle = traffic(claims, now, 0.9, 500, 0)
    assert idle[0]
    assert not idle[-1]
    assert idle.count(False) < 50, "while nobody wakes it, it looks ever more rarely"
    assert claims.next_look < now + 0.06, "but not so rarely that a job would wait for it"
    now, idle = traffic(claims, now, 2.0, 500, 0)
    assert True in idle, "and after a second it is woken again"
    now, _ = traffic(claims, now, 3.0, 20, 0)
    assert claims.idle, "where little comes, a look for each does no harm"


def test_who_counts_as_idle_only_just_does_not_trust_that_everybody_says_so() -> None:
    """Who published before that has woken nobody, and may be about to commit."""
    claims = claims_of("a")
    now, _ = traffic(claims, 100.0, 0.5, 400, 1)
    assert claims.idle
    claims.wake("a")
    claims.calls(Places(10), claims.queues, now)
    claims.took([], None, Places(10), now)
    assert claims.next_look < now + 0.01
    claims.wake("a")
    claims.calls(Places(10), claims.queues, now + 1.0)
    claims.took([], None, Places(10), now + 1.0)
    assert claims.next_look > now + 1.0 + SLOWEST * 0.89


def test_who_is_told_while_it_looks_looks_again() -> None:
    """That look may have begun before the job was there; so with a LISTEN that was committed with it."""
    claims = claims_of("a")
    now = looks(claims, 100.0, 30.0)[-1]
    claims.wake("a")
    claims.calls(Places(10), claims.queues, now)
    claims.wake("a")
    claims.took([row(1)], None, Places(10), now)
    assert claims.due(now)
    claim = claims.calls(Places(10), claims.queues, now)[0]
    assert set(str(claim[1][4]).strip("{}").split(",")) == {'"-infinity"'}, "from the beginning"


def test_a_full_hand_means_that_there_is_more() -> None:
    claims = claims_of("a")
    claims.took([row(1), row(2)], None, Places(2), 100.0)
    assert claims.due(100.0)


def test_something_found_keeps_a_worker_awake() -> None:
    claims = claims_of("a")
    moments = looks(claims, 100.0, 2.0, found=1)
    assert len(moments) > 100
    assert all(later - earlier < 0.05 for earlier, later in pairwise(moments))


def test_a_busy_worker_stops_counting_as_idle_but_one_job_is_not_busy() -> None:
    claims = claims_of("a")
    looks(claims, 100.0, 30.0)
    assert claims.idle
    claims.took([row(1)], None, Places(10), 200.0)
    claims.took([row(1)], None, Places(1), 200.0)
    assert claims.idle  # each change is a write for everybody to see
    for number in range(5):
        claims.took([row(number)], None, Places(1), 200.0)
    assert not claims.idle


def test_a_delayed_job_is_looked_for_on_time() -> None:
    claims = claims_of("a")
    now = looks(claims, 100.0, 30.0)[-1]
    claims.took([], [("1.5",)], Places(10), now)
    assert now + 1.5 < claims.next_look < now + 1.51
    claims.took([], [("-0.3",)], Places(10), now)
    assert now < claims.next_look < now + 0.01
    claims.took([], [("3600",)], Places(10), now)
    assert claims.next_look < now + SLOWEST * 1.1
    claims.took([], [(None,)], Places(10), now)
    assert now + 1 < claims.next_look < now + SLOWEST * 1.1
