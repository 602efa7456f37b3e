"""What PostgreSQL refuses because of one row: a trigger, constraint or index of the user's own, or somebody's lock.

The batch is rolled back with everything in it. So what it carried is sent once more, each thing alone: all others get through,
and what is refused again is known by its job. It is kept aside, nothing of it lost, and tried again after a while.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from math import inf
from time import monotonic
from typing import TYPE_CHECKING

import psycopg

from celery_jobqueue.broker.claims import PASSED_OVER
from celery_jobqueue.broker.duties import Plan, ignore
from celery_jobqueue.broker.identity import identity
from celery_jobqueue.broker.session import Row
from celery_jobqueue.broker.settlements import REFUSED, Failure, Flight, Lease
from celery_jobqueue.broker.sql import statement
from celery_jobqueue.broker.trouble import for_good

if TYPE_CHECKING:
    from celery_jobqueue.broker.cycle import Cycle

__all__ = ["Refusals"]

logger = logging.getLogger(__name__)

#: Seconds until a refused settlement is tried again, doubling.
_FIRST, _LONGEST = 1.0, 60.0
#: Claims of one job after a refusal, before claims of more are tried again; as many again whenever one is known that cannot be
#: claimed, up to so many jobs. Looks at who stands first, for each refused claim.
_CLAIMS, _MOST_BLAMED, _LOOKS = 3, 100, 4


class Refusals:
    """What one connection sends alone, and what it keeps aside."""

    def __init__(self, cycle: Cycle) -> None:
        self._cycle = cycle
        # What goes out before anything else, each made when its turn comes; a plan without calls has nothing to say.
        self._alone: deque[tuple[Callable[[], Plan], Flight | None]] = deque()
        self._aside: list[tuple[float, float, Flight]] = []  # when, the pause after it, what
        self._owed = self._blamed = 0  # claims of one that are still to be made, jobs found since the last claim of more
        self._settles = False  # whether what else is to be said goes before the next of them
        #: Told (lease, error) of a job whose result is refused. True when the job has ended by that.
        self.on_result: Callable[[Lease, psycopg.Error], bool] = lambda *_: False
        identity().holders.add(self)

    def held(self) -> set[str]:
        """Ids of the jobs that are not settled because of a refusal."""
        waiting = (*(flight for _, flight in list(self._alone) if flight is not None), *(flight for _, _, flight in self._aside))
        return {_only(flight)[0].id for flight in waiting}

    def __bool__(self) -> bool:
        return bool(self._alone)

    @property
    def owes_claims(self) -> bool:
        """Whether claims are of one job for now, and made here: as soon as there is a place."""
        return self._owed > 0

    @property
    def next(self) -> float:
        """When something kept aside is to be tried again, in monotonic seconds."""
        return min((at for at, _, _ in self._aside), default=inf)

    def send_apart(self) -> None:
        """A row was refused, nobody knows which: send what is to be sent one by one."""
        cycle, duties = self._cycle, Plan()
        cycle.plan_listening(duties)
        cycle.duties.again()
        cycle.duties.plan(duties, monotonic())
        for call, taker in zip(duties.calls, duties.takers, strict=True):
            self._alone.append((partial(Plan, [call], [taker], refused=cycle.trouble.met), None))
        for flight in cycle.settlements.take().split():
            self._add(flight, _FIRST)
        self._owed, self._blamed = _CLAIMS, 0

    def plan(self, now: float) -> Plan | None:
        """The next that is to go out alone, None when there is nothing."""
        for at, pause, flight in list(self._aside):
            if at <= now:
                self._aside.remove((at, pause, flight))
                self._add(flight, pause)
        while self._alone:
            plan = self._alone.popleft()[0]()
            if plan.calls:
                return plan
        cycle = self._cycle
        due = self._settles and (cycle.settlements or now >= cycle.next_duty)
        if self._owed and not (cycle.settling or due):
            plan = self._claim()
            if plan.calls:
                self._owed -= 1
                self._settles = True
                return plan
        self._settles = self._settles and cycle.settling
        return None

    def clear(self) -> None:
        """Nothing is to be sent alone any more: the connection is lost, or the server in trouble."""
        self._owed = 0
        while self._alone:
            flight = self._alone.popleft()[1]
            if flight is not None:
                self._cycle.settlements.put_back(flight)

    def hand_over(self) -> None:
        """What is kept aside is for the next connection."""
        while self._aside:
            self._cycle.settlements.put_back(self._aside.pop()[2])

    def _add(self, flight: Flight, pause: float) -> None:
        def settle() -> Plan:
            plan = Plan(refused=lambda error: self._keep(flight, error, pause))
            plan.add((statement("brief_locks"), ()), ignore)  # who is locked out has waited already
            self._cycle.plan_flight(plan, flight)
            return plan

        self._alone.append((settle, flight))

    def _keep(self, flight: Flight, error: psycopg.Error, pause: float) -> None:
        lease, what = _only(flight)
        if flight.results and for_good(error) and self.on_result(lease, error):
            return
        logger.error("PostgreSQL refuses that job %s is %s: %s. It is tried again in %g s, and nothing waits for it",
                     lease.id, what, _described(error), _LONGEST if flight.starts else pause, extra=lease.about)
        at = monotonic() + pause
        for _, _, started in flight.starts:
            # Its place is for others. The row says why it does not run, unless that is refused too.
            again = timedelta(seconds=_LONGEST)
            flight = Flight(failed=[(lease, Failure(f"its start was refused: {_described(error)}", retry=True, delay=again))])
            at = monotonic()
            started(0, 0, REFUSED)
        self._aside.append((at, min(2 * pause, _LONGEST), flight))

    def _claim(self, seen: list[Row] | None = None, looks: int = 0) -> Plan:
        """A claim of one; of one at the level of the row that was seen there, if any."""
        plan, claims = Plan(refused=lambda error: self._look(error, seen, looks)), Plan()
        level = (str(seen[0][0]), int(seen[0][1] or 0)) if seen else None
        self._cycle.plan_claims(claims, monotonic(), 1, level)
        if claims.calls:
            plan.add((statement("brief_locks"), ()), ignore)  # of what triggers of the user's look for
            plan.extend(claims)
        return plan

    def _look(self, error: psycopg.Error, seen: list[Row] | None, looks: int) -> None:
        """A claim was refused: find out which job it would have taken, and look behind it for a while.

        Who is first in line now need not be whom the claim has met: until a second after a job's run_at a claim meets it although
        the cursor stands there, and that second may have ended in between, or somebody has let go of another job. So the claim is
        made again at that level, and who stood first there before (`seen`) and after it is the one.
        """
        claims = self._cycle.claims

        def pass_over(rows: list[Row]) -> None:
            if not rows:
                return
            if rows != seen:
                if looks < _LOOKS:
                    self._alone.appendleft((partial(self._claim, rows, looks + 1), None))
                return
            if not claims.pass_over(rows[0]):
                self._owed = 0  # until that second is over a claim behind it meets it again
                return
            if self._blamed < _MOST_BLAMED:
                self._owed, self._blamed = _CLAIMS, self._blamed + 1
            logger.error("PostgreSQL refuses that job %s is claimed: %s. It is tried again in %g s, and nothing waits for it",
                         rows[0][3], _described(error), PASSED_OVER, extra={"job_id": rows[0][3]})

        look = Plan([claims.first_in_line()], [pass_over], refused=self._cycle.trouble.met)
        self._alone.appendleft((lambda: look, None))


def _only(flight: Flight) -> tuple[Lease, str]:
    told = {"completed": [*flight.completed, *(lease for lease, _ in flight.results)],
            "failed": [lease for lease, _ in flight.failed], "given back": flight.released,
            "lost": flight.doubtful, "started": [lease for lease, _, _ in flight.starts]}
    [one] = [(lease, what) for what, leases in told.items() for lease in leases]
    return one


def _described(error: psycopg.Error) -> str:
    """The error, and where in the database it was raised."""
    where = (error.diag.context or "").partition("\n")[0]
    return f"{type(error).__name__}: {error.diag.message_primary or error}" + (f" ({where})" if where else "")
