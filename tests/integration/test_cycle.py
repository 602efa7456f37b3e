"""One connection's batches as a worker's loop sends them: what waits for what."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from math import inf
from time import monotonic

import psycopg
import pytest

from celery_jobqueue.broker.claims import Door, Places
from celery_jobqueue.broker.cycle import Cycle
from celery_jobqueue.broker.options import Options
from celery_jobqueue.broker.pulse import Pulse
from celery_jobqueue.broker.session import Session
from celery_jobqueue.broker.settings import from_url
from celery_jobqueue.broker.settlements import Failure, Lease, Result, Settlements
from celery_jobqueue.db.url import libpq_dsn
from tests.support.database import one, rows
from tests.support.waiting import wait_until


@pytest.fixture
def cycle(database_url: str) -> Iterator[Cycle]:
    """A consumer of the queue `a`, registered, with nothing else to do from time to time."""
    with closing(Session(libpq_dsn(database_url))) as session:
        cycle = Cycle(session, Settlements(), Options(), lambda _: 1)
        cycle.subscribe("a", transient=False)
        cycle.exchange()
        duties = cycle.duties
        duties.heartbeat_at = duties.lock_at = duties.rescue_at = duties.touch_at = duties.reap_at = duties.retire_at = inf
        yield cycle


def put(url: str, *names: str) -> None:
    for name in names:
        rows(url, "select enqueue_job(%s, queue => 'a')", (name,))


def claimed(cycle: Cycle) -> Lease:
    """The lease of the next job that the cycle gets."""
    def look() -> bool:
        cycle.claims.wake()
        cycle.pump()
        cycle.finish()
        return bool(cycle.ready)

    wait_until(look, "a job is claimed")
    return Lease.of(cycle.ready.popleft()[1]["properties"]["job"])


def loop_until(cycle: Cycle, done: Callable[[], bool], what: str) -> None:
    """The event loop, which takes in what the server says."""
    def turned() -> bool:
        cycle.session.wait(0.1)
        cycle.on_readable()
        return done()

    wait_until(turned, what)


class _Starting(Door):
    """A consumer whose claim starts one job, which is acknowledged late or early."""

    def __init__(self, once: bool) -> None:
        self.once = once

    def places(self, credit: int) -> Places:
        return Places(1, 0, "w", int(not self.once), "{}", int(self.once), "{}")


@pytest.mark.parametrize("once", [False, True])
def test_what_may_run_once_only_is_started_on_disk(cycle: Cycle, database_url: str, once: bool) -> None:
    put(database_url, "first", "second")
    cycle.settlements.complete(claimed(cycle))
    cycle.claims.wake()
    cycle.door = _Starting(once)
    plan = cycle.plan(monotonic(), may_split=True)
    assert plan.ahead
    assert [[statement.name for statement, _ in part.calls if statement.name != "next_due"] for part in (plan.ahead, plan)] == [
        ["claim"] if once else ["asynchronous_commit", "claim"], ["complete"]]


def test_a_claim_does_not_wait_for_what_is_settled_with_it(cycle: Cycle, database_url: str) -> None:
    put(database_url, "first", "second")
    first = claimed(cycle)
    with psycopg.connect(database_url) as holder:
        holder.execute("select from job_queue where id = %s for update", (first.id,))  # it cannot be completed meanwhile
        cycle.settlements.complete(first)
        cycle.claims.wake()
        cycle.pump()
        loop_until(cycle, lambda: bool(cycle.ready), "the second job is claimed")
        assert cycle.session.busy
        assert one(database_url, "select status from job_queue where id = %s", (first.id,)) == "pending"
    cycle.finish()
    assert one(database_url, "select status from job_queue where id = %s", (first.id,)) == "completed"


def test_a_claim_that_is_refused_stops_no_settlement(cycle: Cycle, database_url: str) -> None:
    put(database_url, "first", "second")
    first = claimed(cycle)
    rows(database_url, "create function veto() returns trigger language plpgsql as $$ begin raise exception 'no'; end $$;"
                       " create trigger veto before update of owner on job_queue for each row"
                       " when (new.task_name = 'second' and new.owner is not null) execute function veto()")
    cycle.settlements.complete(first)
    cycle.claims.wake()
    cycle.pump()
    loop_until(cycle, lambda: not cycle.session.busy, "the batch is over")
    assert one(database_url, "select status from job_queue where id = %s", (first.id,)) == "completed"
    assert not cycle.ready
    assert cycle.refusals  # the claim is looked into


def test_a_claim_in_trouble_stops_no_settlement_again_and_again(cycle: Cycle, database_url: str) -> None:
    """A statement_timeout, here: nothing is known of a row, and the claim is tried again, ever more rarely."""
    put(database_url, "first", "second")
    first, second = claimed(cycle), claimed(cycle)
    put(database_url, "slow")
    rows(database_url, "create function slow() returns trigger language plpgsql as $$ begin"
                       " raise exception 'canceling statement due to statement timeout' using errcode = '57014'; end $$;"
                       " create trigger slow before update of owner on job_queue for each row"
                       " when (new.task_name = 'slow' and new.owner is not null) execute function slow()")
    for lease, pause in ((first, 0.04), (second, 0.08)):
        cycle.settlements.complete(lease)
        cycle.claims.wake()
        wait_until(lambda: cycle.pump() or cycle.session.busy, "the batch is sent")
        sent = monotonic()
        loop_until(cycle, lambda: not cycle.session.busy, "the batch is over")
        assert one(database_url, "select status from job_queue where id = %s", (lease.id,)) == "completed"
        assert cycle.trouble.until > sent + pause
    assert not cycle.ready


def test_a_clean_up_in_trouble_keeps_nothing_from_being_settled(cycle: Cycle, database_url: str) -> None:
    """A statement_timeout again. A worker that may not clean up is still alive, and its jobs end."""
    put(database_url, "old", "first")
    first = claimed(cycle)
    while first.job is None or first.job["task"] != "first":
        cycle.settlements.complete(first)
        cycle.exchange()
        first = claimed(cycle)
    rows(database_url, "update job_queue set finished_at = now() - interval '1 year' where task_name = 'old'")
    rows(database_url, "update jobqueue.retirement set looked_at = '-infinity'")
    rows(database_url, "create function slow() returns trigger language plpgsql as $$ begin"
                       " raise exception 'canceling statement due to statement timeout' using errcode = '57014'; end $$;"
                       " create trigger slow before delete on job_queue for each row execute function slow()")
    duties = cycle.duties
    duties.starts_on_delivery = False  # only workers clean up
    duties.retire_at = 0.0
    cycle.settlements.complete(first)
    wait_until(lambda: cycle.pump() or cycle.session.busy, "a batch is sent")
    loop_until(cycle, lambda: not cycle.session.busy, "it is over")
    assert duties.retire_at > monotonic() + 1, "it has failed, and waits for its next turn"
    assert one(database_url, "select count(*) from job_queue where task_name = 'old'") == 1
    beaten = "select heartbeat_at from jobqueue.worker"
    before = one(database_url, beaten)

    def settled() -> bool:
        cycle.pump()
        cycle.session.wait(0.05)
        cycle.on_readable()
        return one(database_url, "select status from job_queue where id = %s", (first.id,)) == "completed"

    wait_until(settled, "the job is settled all the same", 5)
    duties.heartbeat_at = 0.0
    wait_until(lambda: settled() and one(database_url, beaten) > before, "and the worker is seen alive", 5)


def test_a_settlement_that_is_refused_takes_back_no_claim(cycle: Cycle, database_url: str) -> None:
    put(database_url, "first", "second")
    first = claimed(cycle)
    rows(database_url, "create function veto() returns trigger language plpgsql as $$ begin raise exception 'no'; end $$;"
                       " create trigger veto before update of status on job_queue for each row"
                       " when (new.task_name = 'first') execute function veto()")
    cycle.settlements.fail(first, Failure("it failed"))
    cycle.claims.wake()
    cycle.pump()
    loop_until(cycle, lambda: not cycle.session.busy, "the batch is over")
    assert [message["properties"]["job"]["task"] for _, message in cycle.ready] == ["second"]
    assert cycle.refusals.held() == {first.id}
    second = Lease.of(cycle.ready[0][1]["properties"]["job"])
    assert one(database_url, "select lease::text from job_queue where id = %s", (second.id,)) == second.token


def test_a_result_is_taken_from_who_has_the_job(cycle: Cycle, database_url: str, caplog: pytest.LogCaptureFixture) -> None:
    put(database_url, "ours", "taken")
    ours, taken = claimed(cycle), claimed(cycle)
    rows(database_url, "update job_queue set lease = gen_random_uuid() where id = %s", (taken.id,))
    for words in ("good", "told again"):
        for lease in (ours, taken):
            cycle.settlements.complete(lease, Result(f'"{words}"', '{"children": []}'))
        cycle.settle()
    found = {row["task_name"]: row for row in rows(database_url, "select * from job_queue")}
    assert {name: (row["status"], row["state"], row["result"], row["result_meta"], row["owner"] is None)
            for name, row in found.items()} == {
        "ours": ("completed", "SUCCESS", '"good"', '{"children": []}', True), "taken": ("pending", None, None, None, False)}
    assert [record.getMessage() for record in caplog.records] == [
        f"job {taken.id} was taken from this worker while it ran; what came of it here is dropped"] * 2


def test_what_is_settled_while_the_loop_runs_a_job_is_told_past_it(cycle: Cycle, database_url: str) -> None:
    """In the solo pool: the loop comes back when the job is over."""
    put(database_url, "done", "other", "failed", "again", "refused", "last", "next")
    done, other, failed, again, refused, last, following = (claimed(cycle) for _ in range(7))
    rows(database_url, "create function veto() returns trigger language plpgsql as $$ begin raise exception 'no'; end $$;"
                       " create trigger veto before update on job_queue for each row"
                       " when (new.task_name = 'refused' and new.status = 'completed') execute function veto()")
    settlements = cycle.settlements
    pulse = Pulse(from_url(database_url, {}), cycle.duties.heartbeat, settlements)
    pulse.start()
    try:
        settlements.complete(done, Result("1", None))
        settlements.complete(other)
        settlements.fail(failed, Failure("ValueError: boom"))
        started: list[int] = []
        settlements.start(following, False, lambda *counts: started.extend(counts))
        pulse.watch()
        over = "select count(*) from job_queue where status in ('completed', 'failed')"
        wait_until(lambda: one(database_url, over) == 3, "what has ended is told")
        wait_until(lambda: not settlements.held(), "it is known so here")
        assert one(database_url, "select result from job_queue where id = %s", (done.id,)) == "1"
        assert settlements, "the start is left to who runs the job"
        rows(database_url, f"select pg_terminate_backend({pulse._session._pgconn().backend_pid})")
        settlements.complete(again)
        pulse.watch()
        wait_until(lambda: one(database_url, over) == 4, "it is told on another connection")
        settlements.complete(refused)
        takes = settlements.takes
        settlements.complete(last)
        pulse.watch()
        wait_until(lambda: one(database_url, over) == 5, "what is told with one that is refused is settled")
        wait_until(lambda: settlements.takes > takes and not settlements.held(), "and that is known")
    finally:
        pulse.stop(wait=True)
    assert not pulse.is_alive()
    flight = settlements.take()
    assert (flight.completed, [lease for lease, *_ in flight.starts], started) == ([refused], [following], [])


def test_who_leaves_while_the_clean_up_fails_settles_all_the_same(cycle: Cycle, database_url: str) -> None:
    put(database_url, "first")
    first = claimed(cycle)
    rows(database_url, "drop function jobqueue.retire(interval, interval, interval, interval, interval);"
                       " create function jobqueue.retire(interval, interval, interval, interval, interval)"
                       " returns integer language plpgsql as $$ begin perform pg_sleep(0.3);"
                       " raise exception 'canceling statement due to statement timeout' using errcode = '57014'; end $$")
    cycle.duties.starts_on_delivery = False
    cycle.duties.retire_at = 0.0
    wait_until(lambda: cycle.pump() or cycle.duties.retire_at > 0, "the clean-up is sent")
    assert cycle.session.busy
    cycle.settlements.complete(first)
    cycle.settle()
    assert one(database_url, "select status from job_queue where id = %s", (first.id,)) == "completed"
