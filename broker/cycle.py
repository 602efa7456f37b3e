"""What a consuming connection does in one round trip: settle, start, claim, read transient messages. All of it commits together,
but for claims, which do not wait until what is settled is on disk, and for the clean-up, which a statement_timeout may end. In a
worker the batch is sent without waiting (`pump`, then `on_readable`); `drain` does the same for consumers that block.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from time import monotonic, time
from typing import Any

import psycopg

from celery_jobqueue.broker.claims import Claims, Door, Places
from celery_jobqueue.broker.duties import Duties, Plan, ignore
from celery_jobqueue.broker.identity import identity
from celery_jobqueue.broker.listening import Listening
from celery_jobqueue.broker.mailbox import Delivery, Mailbox
from celery_jobqueue.broker.messages import decode_job, envelopes
from celery_jobqueue.broker.options import Options
from celery_jobqueue.broker.outbox import Outbox
from celery_jobqueue.broker.refusals import Refusals
from celery_jobqueue.broker.session import Call, Row, Session
from celery_jobqueue.broker.settlements import Failure, Flight, Lease, Settlements, describe
from celery_jobqueue.broker.trouble import Trouble, by_a_row, explained

__all__ = ["Cycle"]

logger = logging.getLogger(__name__)

_MAX_BATCH = 100  # jobs in one claim: enough to make the round trip cheap, small enough to keep the loop responsive
#: Seconds that a completion may wait for company while the pool has work for half the prefetch window. Its job is done, and a
#: crash in between runs it again. With 10 ms in the place of 2 the server works 10 to 40 % less for a job, the worker up to 15 %,
#: and on a machine with other work 1.2 to 1.6 times as many jobs are done (prefetch 8 and 32; on a quiet one as many).
_PATIENCE = 0.01


class Cycle:
    """The engine of one consuming connection.

    credit(queue) says how many messages may still be delivered from it (None: any number).
    """

    def __init__(self, session: Session, settlements: Settlements, options: Options,
                 credit: Callable[[str], int | None]) -> None:
        self.session = session
        self.settlements = settlements
        self.options = options
        self.ready: deque[Delivery] = deque()
        #: Told (id, lease, task id, error) of a claimed job whose message cannot be read.
        self.on_unreadable: Callable[[Any, Any, Any, Exception], None] = self._refuse
        self.claims = Claims(identity().id, options.poll, hears=not options.pooled)
        self.mailbox = Mailbox(options, self.claims, self.ready)
        self.duties = Duties(session, options, self.claims, self.mailbox.queues, settlements.release)
        #: Knows what the consumer has places for.
        self.door = Door()
        self.outbox = Outbox(self.mailbox.queues, self.mailbox.take_letter)
        self.trouble = Trouble()
        self.refusals = Refusals(self)
        self._patient_since: float | None = None
        #: Nothing is claimed now: what came would be behind what is being started for delivery.
        self.settling = False
        self._credit = credit
        self.listening = Listening(session)
        self._in_flight: list[Flight] = []
        self._sent: Plan | None = None

    def adopt(self, options: Options) -> None:
        """Go on with these: the server was met, and is not what was said of it."""
        self.options = self.duties.options = self.mailbox.options = options
        self.claims.slowest, self.claims.hears = options.poll, not options.pooled

    @property
    def starts_on_delivery(self) -> bool:
        """Whether nobody but this connection starts the jobs it delivers."""
        return self.duties.starts_on_delivery

    # -- subscriptions ------------------------------------------------------------------------------------------------

    def subscribe(self, queue: str, transient: bool) -> None:
        """Read this queue from now on."""
        if transient:
            self.mailbox.add(queue)
            self.duties.touch_at = 0.0
        else:
            self.claims.add(queue)
            self.duties.heartbeat_at = 0.0  # a claim needs a registered owner

    def unsubscribe(self, queue: str) -> None:
        """Stop reading this queue and forget what of it was not delivered yet; undelivered jobs go back."""
        if queue in self.mailbox.queues:
            self.mailbox.queues.remove(queue)
        if queue in self.claims.queues:
            self.claims.remove(queue)
            self.duties.heartbeat_at = 0.0  # the registration tells who consumes what
        for delivery in [delivery for delivery in self.ready if delivery[0] == queue]:
            self.ready.remove(delivery)
            if job := delivery[1]["properties"].get("job"):
                self.settlements.release(Lease.of(job))

    # -- one batch ----------------------------------------------------------------------------------------------------

    def plan(self, now: float, may_split: bool = False) -> Plan:
        """The next batch; empty when there is nothing to say. may_split: its claims may be a transaction of their own."""
        plan = Plan()
        self.plan_listening(plan)
        self.duties.plan(plan, now)
        self.door.tend()
        if flight := self.settlements.take():
            may_split = may_split and not flight.starts  # a job that is started by its claim shall not overtake these
            self.plan_flight(plan, flight)
        claims = Plan()
        if not (self.settling or self.refusals.owes_claims):
            self.plan_claims(claims, now)
        if may_split and self.duties.registered and claims.calls and plan.durable:
            # 7 % more jobs/s at a prefetch of 8, median of three pairs. Jobs acknowledged early, whose start has to be on disk,
            # run while what was settled is written: 12 % more, four pairs.
            if not claims.durable:
                claims.commit_asynchronously()
            plan.ahead = claims
        else:
            plan.extend(claims)
        self.mailbox.plan(plan, now)
        if (events_at := self.outbox.due) is not None and now >= events_at:
            for call in self.outbox.calls():
                plan.add(call, ignore)
        if plan.lazy and not plan.durable:
            plan.commit_asynchronously()
        return plan

    def plan_listening(self, plan: Plan) -> None:
        """LISTEN to what is consumed here."""
        if not self.options.pooled and self.listening.plan(
                plan, self.claims.queues, self.mailbox.queues, self._take_listening):
            self.mailbox.look()

    def plan_flight(self, plan: Plan, flight: Flight) -> None:
        """Settle these."""
        calls = self.settlements.calls(flight)
        plan.durable = plan.durable or flight.durable
        plan.lazy = True
        answers: list[list[Row]] = []
        for number, call in enumerate(calls):
            last = number == len(calls) - 1

            def taker(rows: list[Row], last: bool = last) -> None:
                answers.append(rows)
                if last:
                    self._in_flight.remove(flight)
                    self.settlements.confirm(flight, answers)

            plan.add(call, taker)
        self._in_flight.append(flight)

    def plan_claims(self, plan: Plan, now: float, most: int = _MAX_BATCH, level: tuple[str, int] | None = None) -> None:
        """Claim what there is room for, if it is time to look. level: of this queue and priority only."""
        if not self.claims.due(now):
            return
        mere_look = self.claims.idle and not self.claims.woken  # it hardly finds anything to write
        groups: dict[int, list[str]] = {}
        # The solo pool claims while it has not run all that lies ready, and letters stand in line behind that.
        limit = min(most, _MAX_BATCH - len(self.ready))
        for queue in self.claims.queues if level is None else [level[0]]:
            credit = self._credit(queue)
            groups.setdefault(limit if credit is None else min(credit, limit), []).append(queue)
        for credit, queues in groups.items():
            places = self.door.places(credit)
            if most < _MAX_BATCH:  # a claim of one is of one
                places = places._replace(ahead=0)
            if not (places.limit or places.ahead):
                continue
            calls = self.claims.calls(places, queues, now, turn=not plan.calls and most == _MAX_BATCH, level=level)
            plan.durable = plan.durable or places.starts_once > 0
            plan.lazy = plan.lazy or not mere_look
            answers: list[list[Row]] = []

            def taker(rows: list[Row], answers: list[list[Row]] = answers, expected: int = len(calls),
                      places: Places = places, asked: float = time()) -> None:
                answers.append(rows)
                if len(answers) == expected:
                    self._take_jobs(answers[0], answers[1] if expected > 1 else None, places, asked)

            for call in calls:
                plan.add(call, taker)

    # -- answers ------------------------------------------------------------------------------------------------------

    def _take_jobs(self, rows: list[Row], due: list[Row] | None, places: Places, asked: float) -> None:
        self.claims.took(rows, due, places, monotonic())
        self.door.claimed(sum(row[16] is not None for row in rows))
        for row, parts in zip(rows, envelopes(rows), strict=True):
            try:
                message = decode_job(row, parts)
                message["properties"]["job"]["asked"] = asked  # see broker/stale.py: others may have had it since
                self.ready.append((str(row[2]), message))
            except Exception as error:  # edited by hand
                self.on_unreadable(row[0], row[1], row[8], error)

    def _refuse(self, id_: Any, lease: Any, task_id: Any, error: Exception) -> None:
        self.settlements.fail(Lease(id_, lease), Failure(f"the message cannot be read: {describe(error)}"))

    def _take_listening(self, rows: list[Row]) -> None:
        # It holds from the commit on: what was sent after this batch had looked and before that woke nobody.
        self.mailbox.look()
        self.claims.wake()
        self.listening.on_topology()

    def _take(self, plan: Plan, answers: list[list[Row]]) -> None:
        self._sent = None
        if plan.refused is None and (plan.ahead is None or plan.ahead.answered):
            self.trouble.over()
        plan.take(answers)

    # -- driving it ---------------------------------------------------------------------------------------------------

    def pump(self) -> None:
        """Send the next batch unless one is in flight. Never waits."""
        now = monotonic()
        if self.session.busy or now < self.trouble.until or not self._has_to_speak(now):
            return
        self._patient_since = None
        plan = self._next_plan(now, may_split=self.session.direct)
        if plan.calls:
            self._sent = plan
            try:
                self.session.send(plan.calls, lambda answers: self._take(plan, answers), plan.front)
            except psycopg.Error as error:
                if not self.bears(error):
                    raise

    def _has_to_speak(self, now: float) -> bool:
        """Whether the next batch should go out. Claims and completions wait a moment for more while the pool has enough to do:
        a batch costs the server several times what one more job in it does.
        """
        if now >= min(self.next_duty, self.refusals.next, self.door.tend_at) or self.settlements.urgent or self.refusals:
            return True
        if not (self.settlements or self.claims.due(now)):
            self._patient_since = None
            return False
        if not self.door.enough(len(self.ready)):
            return True
        if self._patient_since is None:
            self._patient_since = now
        return now >= self._patient_since + _PATIENCE

    def on_readable(self) -> None:
        """Take in what the server sent. Raises psycopg.Error when the connection failed, SchemaError."""
        self._waiting_out(self.session.on_readable)
        self.hear()

    def finish(self) -> None:
        """Wait for the answer to the batch in flight. Raises as on_readable does."""
        self._waiting_out(self.session.finish)

    def push(self) -> None:
        """Wait until what was sent has left this process. Raises as on_readable does."""
        self._waiting_out(self.session.push)

    def _waiting_out(self, collect: Callable[[], None]) -> None:
        try:
            collect()
        except psycopg.Error as error:
            if not self.bears(error):
                raise explained(error) from error

    def run(self, *calls: Call) -> list[list[Row]]:
        """A transaction of its own, waited for. Raises psycopg.Error, and what `explained` makes of it."""
        if self.session.busy:
            self.finish()
        try:
            return self.session.run(*calls)
        except psycopg.Error as error:
            if not self.session.connected:
                self.lost_connection()
            raise explained(error) from error

    def turn(self) -> None:
        """As `exchange`, but what passes by itself is waited out."""
        if monotonic() < self.trouble.until:
            return
        try:
            self.exchange()
        except psycopg.Error as error:
            if not self._bearable(error):
                raise explained(error) from error

    def bears(self, error: psycopg.Error) -> bool:
        """Whether the failed batch can be sent again on this connection, and will be after a pause."""
        sent, self._sent = self._sent, None
        if not self._bearable(error):
            self.lost_connection()
            return False
        if sent is not None and sent.refused is not None and (sent.can_wait or by_a_row(error)):
            sent.refused(error)
            self._in_flight.clear()  # a refusal keeps what was in it
            return True
        self._put_back()
        if by_a_row(error):
            self.trouble.pause()
            self.refusals.send_apart()
        else:
            self.trouble.met(error)
            self.claims.wake()
            if sent is not None:  # else only what went ahead has failed
                self.duties.again()
        self.mailbox.look()
        return True

    def _bearable(self, error: psycopg.Error) -> bool:
        return self.session.connected and (isinstance(error, psycopg.OperationalError) or by_a_row(error))

    def exchange(self) -> None:
        """One batch, waited for: everything that is to be settled is in the database afterwards."""
        self.finish()
        try:
            plan = self._next_plan(monotonic())
            if plan.calls:
                self.session.connect()
                self._sent = plan
                self._take(plan, self.session.run(*plan.calls))
        except psycopg.Error as error:
            self.bears(error)
            raise
        self.hear()

    def settle(self) -> None:
        """As many batches as it takes: everything is settled afterwards, but for what the database refuses because of its row."""
        self.settling = True
        try:
            while self.settlements or self.refusals or self.outbox.due == 0.0:  # events that may wait are not waited for
                try:
                    self.exchange()
                except psycopg.Error as error:
                    if not (self._bearable(error) and by_a_row(error)):
                        raise
        finally:
            self.settling = False

    def _next_plan(self, now: float, may_split: bool = False) -> Plan:
        apart = self.refusals.plan(now) or (None if self.settling else self.duties.clean_up(now, self.trouble.met))
        return apart or self.plan(now, may_split)

    def register(self) -> None:
        """Make this process a known owner of jobs, for a claim outside of the cycle."""
        plan = Plan()
        self.duties.plan_registration(plan, monotonic())
        if plan.calls:
            self._take(plan, self.session.run(*plan.calls))

    def hear(self) -> None:
        """Act on notifications that have arrived."""
        for queue in self.listening.heard():
            if queue in self.mailbox.queues:
                self.mailbox.heard(queue)
            else:
                self.claims.wake(queue)

    def next_deadline(self, now: float) -> float:
        """When something is to be done even if nothing happens, in monotonic seconds."""
        if self.refusals:
            return self.trouble.until
        at = min(self.next_duty, now + self.options.poll, self.refusals.next, self.door.tend_at)
        ahead = 0 if self.refusals.owes_claims else self.door.ahead()
        if self._patient_since is not None:
            at = min(at, self._patient_since + _PATIENCE)
        elif self.duties.owns_jobs and not self.door.full() and any(
                credit is None or credit + ahead > 0 for credit in map(self._credit, self.claims.queues)):
            at = min(at, self.claims.next_look)
        return max(at, self.trouble.until)

    @property
    def next_duty(self) -> float:
        """When something is due that no job asks for, in monotonic seconds."""
        at = min(self.duties.next, self.mailbox.next)
        events = self.outbox.due
        return at if events is None else min(at, events)

    def _put_back(self) -> None:
        while self._in_flight:
            self.settlements.put_back(self._in_flight.pop(0))
        self.refusals.clear()
        self.listening.forget()

    def lost_connection(self) -> None:
        """Nobody knows whether the batch in flight got through; telling it again is harmless."""
        self._put_back()
        self.refusals.hand_over()
        me = identity()
        if not self.session.connected:
            me.lost_at = monotonic()
            self.duties.count_jobs()
        if me.lock_holder == id(self.session):
            me.lock_holder = None
