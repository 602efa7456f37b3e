"""What a consuming connection has to do from time to time: be seen alive, take back the jobs of the dead, clean up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from time import monotonic

import psycopg

from celery_jobqueue.broker.claims import Claims, text_array
from celery_jobqueue.broker.expiry import Expiries, interval
from celery_jobqueue.broker.identity import Holder, identity
from celery_jobqueue.broker.options import Options
from celery_jobqueue.broker.session import Call, Row, Session
from celery_jobqueue.broker.settlements import Lease
from celery_jobqueue.broker.sql import statement

__all__ = ["Duties", "Plan", "ignore"]

#: Seconds between two counts of the own jobs, and how long after a lost connection a claim may still arrive: libpq's
#: tcp_user_timeout ends what was sent and not received after 30 s.
_COUNT, _LATE = 2.0, 120.0
#: The part of its interval that a sign of life may come early, to share with the touching of queues the statement that its
#: transaction need not wait for the disk. When each went alone, an idle worker ran 2.13 statements/s.
_EARLY = 0.25
#: So many jobs deleted or emptied by one step of the clean-up mean that more lie there, and the next step comes after so many
#: seconds. The server lets nobody step sooner than two seconds after the last, whoever that was.
_MANY, _SOON = 300, 2.1


@dataclass(slots=True)
class Plan:
    """The statements of one batch, each with the function that takes its answer."""

    calls: list[Call] = field(default_factory=list)
    takers: list[Callable[[list[Row]], None]] = field(default_factory=list)
    #: Whether it has to be on disk before it counts as done, and whether it writes what may get lost with a crash of the server.
    #: A batch that is neither (looks, and transient messages, whose table is unlogged) has nothing to wait for.
    durable: bool = False
    lazy: bool = False
    #: Told when the server has refused this, sent alone; None: it is sent with everything else.
    refused: Callable[[psycopg.Error], None] | None = None
    #: Then told whatever the reason was; where that was no row, others are sent again at once.
    can_wait: bool = False
    #: A transaction of its own that goes out in front and is answered first.
    ahead: Plan | None = None
    answered: bool = False

    def add(self, call: Call, taker: Callable[[list[Row]], None]) -> None:
        """One more statement."""
        self.calls.append(call)
        self.takers.append(taker)

    @property
    def front(self) -> tuple[list[Call], Callable[[list[list[Row]]], None]] | None:
        """`ahead`, as Session.send() takes it."""
        return (self.ahead.calls, self.ahead.take) if self.ahead else None

    def extend(self, other: Plan) -> None:
        """Another's statements behind these, in the same transaction."""
        self.calls += other.calls
        self.takers += other.takers
        self.durable, self.lazy = self.durable or other.durable, self.lazy or other.lazy

    def commit_asynchronously(self) -> None:
        """Do not wait for the disk."""
        self.calls.insert(0, (statement("asynchronous_commit"), ()))
        self.takers.insert(0, ignore)

    def take(self, answers: list[list[Row]]) -> None:
        """Hand out the answers to the calls."""
        self.answered = True
        for taker, rows in zip(self.takers, answers, strict=True):
            taker(rows)


class Duties:
    """The periodic statements of one connection. transient: the transient queues that it reads, a list that its owner changes."""

    def __init__(self, session: Session, options: Options, claims: Claims, transient: list[str],
                 give_back: Callable[[Lease], None]) -> None:
        self._session = session
        self.options = options
        self._claims = claims
        self._transient = transient
        #: A worker starts its jobs itself; for every other consumer delivering a job is starting it.
        self.starts_on_delivery = True
        #: Told the jobs that have ended because their worker died.
        self.on_lost: Callable[[list[Row]], None] = ignore
        #: How to declare a transient queue again that was reaped although it has a consumer.
        self.restoration: Callable[[str], list[Call]] = _nothing_to_restore
        #: When results are emptied.
        self.expiries = Expiries()
        self._give_back = give_back
        self._repairs: list[Call] = []
        self._strangers: set[Lease] = set()
        self._idle_told = False
        #: This connection has told who we are. Claims need that: jobs of an owner whom nobody knows are taken back.
        self.registered = False
        # When each is due, in monotonic seconds.
        self.heartbeat_at = self.lock_at = self.rescue_at = self.touch_at = self.reap_at = self.retire_at = 0.0
        self._count_at, self._count_until = inf, 0.0

    def count_jobs(self) -> None:
        """A connection was lost: a claim may have been committed, or may yet be, whose answer never came. Nobody else would ever
        run those jobs. So for a while the jobs that are ours in the database are held against those that we know.
        """
        self._count_at, self._count_until = 0.0, monotonic() + _LATE
        self.registered = False

    def count_for(self, holder: Holder) -> None:
        """This will hold jobs. If another connection of this process was lost lately, they are counted from the beginning."""
        me = identity()
        me.holders.add(holder)
        if monotonic() < me.lost_at + _LATE:
            self.count_jobs()

    def again(self) -> None:
        """Everything is due that shares a batch with others: nobody knows what became of the last."""
        self.heartbeat_at = self.lock_at = self.rescue_at = self.touch_at = self.reap_at = 0.0

    def judge_later(self, seconds: float) -> None:
        """Take nobody for dead before that: after an outage the others need a moment to come back, too."""
        self.rescue_at = monotonic() + seconds

    @property
    def owns_jobs(self) -> bool:
        """Whether this connection may hold jobs."""
        # A worker whose last consumer was cancelled still runs what it has; without a sign of life that would be taken away.
        return bool(self._claims.queues) or not self.starts_on_delivery

    @property
    def next(self) -> float:
        """When the next duty is due, in monotonic seconds; infinity when there is none."""
        if self._repairs:
            return 0.0
        at = inf
        if self.owns_jobs:
            if self._idle_told != self._claims.idle:
                return 0.0
            at = min(self.heartbeat_at, self.rescue_at, self.reap_at, self._count_at)
            at = at if self.starts_on_delivery else min(at, self.retire_at)
            if not self.options.pooled and identity().lock_holder is None:
                at = min(at, self.lock_at)
        return min(at, self.touch_at, self.reap_at) if self._transient else at

    def plan(self, plan: Plan, now: float) -> None:
        """Put in what is due at this moment."""
        options = self.options
        touches = bool(self._transient) and now >= self.touch_at
        if self.owns_jobs:
            self.plan_registration(plan, now, _EARLY * options.heartbeat if touches else 0.0)
            if now >= self.rescue_at:
                self.rescue_at = now + options.rescue
                plan.add((statement("rescue"), (identity().id, interval(options.grace))), self._take_lost)
            if now >= self._count_at:
                self._count_at = now + _COUNT if now < self._count_until else inf
                plan.add((statement("owned"), (identity().id,)), self._take_owned)
        if touches:
            self.touch_at = now + options.touch
            plan.lazy = True
            plan.add((statement("touch"), (text_array(self._transient),)), self._take_missing)
        for call in self._repairs:
            plan.add(call, ignore)
        self._repairs.clear()
        if (self._transient or self.owns_jobs) and now >= self.reap_at:
            self.reap_at = now + options.reap
            plan.add((statement("reap"), ()), ignore)

    def clean_up(self, now: float, trouble: Callable[[psycopg.Error, str], None]) -> Plan | None:
        """The next step of the clean-up, alone: one that the server gives up shall take nothing with it. None: it is not due.

        trouble: told of that error, and when it is tried again. The next turn is counted from the answer: a step that takes long
        shall leave time for the work.
        """
        options = self.options
        if not self.owns_jobs or self.starts_on_delivery or now < self.retire_at or now >= self.heartbeat_at:
            return None  # a sign of life goes first

        def again_later(error: psycopg.Error) -> None:
            self.retire_at = monotonic() + options.retire
            trouble(error, f"in {options.retire:g} s")

        self.retire_at = now + options.retire
        plan = Plan(refused=again_later, can_wait=True)
        plan.add((statement("retire"), tuple(map(interval, (
            options.keep_completed, options.keep_failed, *self.expiries)))), self._take_retired)
        return plan

    def plan_registration(self, plan: Plan, now: float, early: float = 0.0) -> None:
        """Become a known owner of jobs, and stay one. early: seconds that a sign of life may come before it is due."""
        options, me = self.options, identity()
        if not options.pooled and me.lock_holder is None and now >= self.lock_at:
            self.lock_at = now + 1.0  # after a cut the server may still believe in our old session
            plan.add((statement("hold_lock"), (me.id,)), self._take_lock)
        if now >= self.heartbeat_at - early or self._idle_told != self._claims.idle:
            self.heartbeat_at = now + options.heartbeat
            self._idle_told = self._claims.idle
            plan.lazy = True
            plan.add(self.heartbeat(), self._take_registered)

    def heartbeat(self) -> Call:
        """A sign of life, which also tells what this process consumes."""
        me = identity()
        return (statement("heartbeat"), (
            me.id, me.name, str(me.pid), me.host, text_array(self._claims.queues), "t" if self._claims.idle else "f",
            "t" if me.lock_holder == id(self._session) else "f", self._heartbeat_limit))

    @property
    def _heartbeat_limit(self) -> str:
        # A plain consumer beats only while it drains; while it holds its lock it may take its time over a message.
        if self.starts_on_delivery and not self.options.pooled:
            return "7 days"
        return f"{self.options.heartbeat_limit} seconds"

    def _take_registered(self, _: list[Row]) -> None:
        self.registered = True

    def _take_retired(self, rows: list[Row]) -> None:
        self.retire_at = monotonic() + (_SOON if int(rows[0][0] or 0) >= _MANY else self.options.retire)

    def _take_missing(self, rows: list[Row]) -> None:
        # A task of the solo pool, or a suspended machine, kept this process from touching its queues in time.
        for queue in (row[0] for row in rows):
            if queue in self._transient:
                self._repairs += self.restoration(queue)

    def _take_lock(self, rows: list[Row]) -> None:
        if rows[0][0] == "t":
            identity().lock_holder = id(self._session)
            self.heartbeat_at = 0.0

    def _take_owned(self, rows: list[Row]) -> None:
        # Twice in a row, because what has just ended is known no more and its settlement travels behind the question.
        known = identity().held()
        strangers = {Lease(id_, token) for id_, token in rows if id_ and token and id_ not in known}
        for lease in strangers & self._strangers:
            self._give_back(lease)
        self._strangers = strangers

    def _take_lost(self, rows: list[Row]) -> None:
        *lost, (*_, next_death) = rows
        if lost:
            self.on_lost([row[:-1] for row in lost])
        # Found free once, a lock is looked at again when its time is over, not up to an interval later.
        if next_death is not None:
            self.rescue_at = min(self.rescue_at, monotonic() + max(0.0, float(next_death)) + 0.01)


def _nothing_to_restore(_queue: str) -> list[Call]:
    """A consumer without entities of its own."""
    return []


def ignore(rows: list[Row]) -> None:
    """An answer that nobody waits for."""
