"""What happened to claimed jobs, collected until the next round trip.

Starting, completing, failing, retrying and releasing a job are fenced by (job, lease) in the database, so telling the
database twice is harmless, and it does not matter which connection tells it. One buffer therefore serves a whole process:
an acknowledgement that arrives while its own connection is dead is flushed by the next live one.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NamedTuple

import psycopg
from kombu.utils.encoding import safe_repr, safe_str

from celery_jobqueue.broker.session import Call, Row
from celery_jobqueue.broker.sql import statement
from celery_jobqueue.broker.trouble import by_a_row
from celery_jobqueue.broker.wire import quoted

__all__ = [
    "REFUSED", "Failure", "Flight", "Lease", "Result", "Settlements", "describe", "settlements_for", "shortened", "warn_of_loss",
]

logger = logging.getLogger(__name__)


_LONGEST_ERROR = 10_000  # characters of an error_message


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to finish one job: its id and the fencing token drawn when it was claimed."""

    id: str
    token: str
    #: The message's `job` property, for those who have to say which job it is.
    job: Mapping[str, Any] | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, job: Mapping[str, Any]) -> Lease:
        """The lease in a message's `job` property."""
        return cls(job["id"], job["lease"], job)

    @property
    def tag(self) -> str:
        """The delivery tag of the message."""
        return f"{self.id}:{self.token}"

    @property
    def about(self) -> dict[str, object]:
        """`extra=` of a log line about the job, see broker/logs.py."""
        job = self.job or {}
        return {"job_id": self.id, "task_id": job.get("task_id"), "task_name": job.get("task"),
                "attempt": job.get("attempts"), "max_attempts": job.get("max_attempts")}


class Result(NamedTuple):
    """What came of a job: its result and what else Celery keeps of it, as JSON."""

    text: str | None
    meta: str | None


class Failure(NamedTuple):
    """How an attempt failed. retry: whether another attempt may follow; delay: how long to wait first (None: backoff)."""

    error: str
    traceback: str | None = None
    retry: bool = False
    delay: timedelta | None = None
    #: Task.retry has published the job anew already; only the error of this start (a number) is still to be noted.
    republished: int | None = None


#: Told (attempts, max_attempts, total_starts) once the start is in the database; zeros when the lease was lost, and
#: 0, 0, REFUSED when the database has refused it.
Started = Callable[[int, int, int], None]
REFUSED = -1


@dataclass(slots=True)
class Flight:
    """The settlements one batch carries, until the database has confirmed them."""

    completed: list[Lease] = field(default_factory=list)
    #: Completed too, with results that are to be stored.
    results: list[tuple[Lease, Result]] = field(default_factory=list)
    released: list[Lease] = field(default_factory=list)
    failed: list[tuple[Lease, Failure]] = field(default_factory=list)
    starts: list[tuple[Lease, bool, Started]] = field(default_factory=list)
    #: Settled to no effect. Mostly the job's result had settled it before; else the job is in other hands.
    doubtful: list[Lease] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.completed or self.results or self.released or self.failed or self.starts or self.doubtful)

    @property
    def durable(self) -> bool:
        """Whether losing this batch in a crash of the server would break a promise."""
        return bool(self.completed or self.results or self.failed or any(once for _, once, _ in self.starts))

    @property
    def ids(self) -> set[str]:
        """Which jobs it settles or starts."""
        return {lease.id for lease in (
            *self.completed, *self.released, *self.doubtful, *(lease for lease, _ in self.results),
            *(lease for lease, _ in self.failed), *(lease for lease, _, _ in self.starts))}

    def split(self) -> list[Flight]:
        """Each settlement alone, in the order of sending."""
        return [*(Flight(doubtful=[lease]) for lease in self.doubtful), *(Flight(completed=[lease]) for lease in self.completed),
                *(Flight(results=[one]) for one in self.results),
                *(Flight(failed=[one]) for one in self.failed), *(Flight(released=[lease]) for lease in self.released),
                *(Flight(starts=[start]) for start in self.starts)]


class Settlements:
    """The buffer. Filled from any thread; emptied by whoever holds a live connection."""

    def __init__(self) -> None:
        self.worker = ""  # name written on the rows that are started
        #: The worker leaves, and its loop may be waiting for the threads of the pool: those settle their jobs themselves.
        self.deaf = False
        #: How often something was taken to be sent.
        self.takes = 0
        self._lock = threading.RLock()  # a signal's handler may settle in the middle of settling
        self._next = Flight()
        self._telling: list[Flight] = []

    def __bool__(self) -> bool:
        return bool(self._next)

    @property
    def urgent(self) -> bool:
        """Whether there is more to tell than that jobs are done."""
        flight = self._next
        return bool(flight.failed or flight.starts or flight.released or flight.doubtful)

    def complete(self, lease: Lease, result: Result | None = None) -> None:
        """The job is done. result: None where somebody else stores it, or nobody."""
        with self._lock:
            if result is None:
                self._next.completed.append(lease)
            else:
                self._next.results.append((lease, result))

    def fail(self, lease: Lease, failure: Failure) -> None:
        """The attempt failed; the failure says whether another may follow."""
        with self._lock:
            self._next.failed.append((lease, failure))

    def release(self, lease: Lease) -> None:
        """The job goes back to its old place; no attempt was used."""
        with self._lock:
            self._next.released.append(lease)

    def start(self, lease: Lease, at_most_once: bool, started: Started) -> None:
        """The job is about to run. at_most_once: it was acknowledged early, so it never runs again by itself."""
        with self._lock:
            self._next.starts.append((lease, at_most_once, started))

    def forget_starts(self) -> None:
        """Drop starts that were asked for but not sent: their requests are gone."""
        with self._lock:
            self._next.starts.clear()

    def take(self, *, starts: bool = True) -> Flight:
        """Everything that is waiting, to be sent now. `confirm` or `put_back` must follow. starts: those too."""
        with self._lock:
            later = Flight(starts=[] if starts else self._next.starts)
            flight, self._next = self._next, later
            if not starts:
                flight.starts = []
            self.takes += 1
            return flight

    def tell(self, run: Callable[..., list[list[Row]]]) -> None:
        """Have `run` settle what is waiting, past the cycle. Starts stay: whoever confirms them enters their jobs into the pool.

        run: as Session.run; nothing is lost when it raises. What is refused because of its row is left to the cycle.
        """
        refused: list[Flight] = []
        try:
            while flight := self.take(starts=False):
                self._telling.append(flight)
                try:
                    self._tell(run, flight, refused)
                finally:
                    self._telling.remove(flight)
        finally:
            for part in refused:
                self.put_back(part)

    def _tell(self, run: Callable[..., list[list[Row]]], flight: Flight, refused: list[Flight]) -> None:
        parts = [flight]
        try:
            while parts:
                try:
                    self.confirm(parts[0], run(*self.calls(parts[0])))
                    del parts[0]
                except psycopg.Error as error:
                    if not by_a_row(error):
                        raise
                    part = parts.pop(0)
                    if len(alone := part.split()) > 1:
                        parts += alone
                    else:
                        refused.append(part)
        finally:
            for part in parts:
                self.put_back(part)

    def held(self) -> set[str]:
        """Ids of the jobs that are being settled past the cycle."""
        return {id_ for flight in list(self._telling) for id_ in flight.ids}

    def put_back(self, flight: Flight) -> None:
        """The batch did not get through, or nobody knows whether it did: the fence makes telling it again harmless."""
        with self._lock:
            later = self._next
            self._next = Flight(
                flight.completed + later.completed, flight.results + later.results, flight.released + later.released,
                flight.failed + later.failed, flight.starts + later.starts, flight.doubtful + later.doubtful,
            )

    def calls(self, flight: Flight) -> list[Call]:
        """The statements that carry this batch."""
        calls: list[Call] = []
        if flight.doubtful:
            calls.append((statement("lost_leases"), _leases(flight.doubtful)))
        if flight.completed:
            calls.append((statement("complete"), _leases(flight.completed)))
        if flight.results:
            calls.append((statement("complete_with_results"), (
                *_leases([lease for lease, _ in flight.results]), *_columns([result for _, result in flight.results]))))
        for lease, failure in flight.failed:
            if failure.republished is not None:
                calls.append((statement("note_retry"), (lease.id, lease.token, str(failure.republished), self.worker,
                                                        _text(failure.error) or None)))
            else:
                delay = None if failure.delay is None else f"{failure.delay.total_seconds()} seconds"
                calls.append((statement("fail"), (lease.id, lease.token, _text(failure.error), _text(failure.traceback),
                                                  "t" if failure.retry else "f", delay)))
        if flight.released:
            calls.append((statement("release"), _leases(flight.released)))
        if flight.starts:
            once = "{" + ",".join("t" if once else "f" for _, once, _ in flight.starts) + "}"
            calls.append((statement("start"), (self.worker, *_leases([lease for lease, _, _ in flight.starts]), once)))
        return calls

    def confirm(self, flight: Flight, answers: list[list[Row]]) -> None:
        """The batch is committed; `answers` are those of its calls. Tells every start how it went, and people of lost jobs."""
        in_order = iter(answers)
        if flight.doubtful:
            lost = {row[0] for row in next(in_order)}
            for lease in flight.doubtful:
                if lease.token in lost:
                    warn_of_loss(lease)
        settled = {row[0] for row in next(in_order)} if flight.completed else set()
        # Where the result settled the job, whoever stored it has said what there is to say.
        doubtful = [lease for lease in flight.completed if lease.id not in settled and not (lease.job or {}).get("stored")]
        settled = {row[0] for row in next(in_order)} if flight.results else set()
        doubtful += [lease for lease, _ in flight.results if lease.id not in settled]
        doubtful += [lease for (lease, failure), rows in zip(flight.failed, in_order, strict=False)
                     if failure.republished is None and rows[0][0] is None]
        if doubtful:
            with self._lock:
                self._next.doubtful += doubtful
        if not flight.starts:
            return
        granted = {f"{row[0]}:{row[1]}": (int(row[2] or 0), int(row[3] or 0), int(row[4] or 0))
                   for row in answers[-1]}
        for lease, _, started in flight.starts:
            started(*granted.get(lease.tag, (0, 0, 0)))


def warn_of_loss(lease: Lease) -> None:
    """A job was taken away while it ran, and has ended here now: that changed nothing, and somebody may wonder why."""
    logger.warning("job %s was taken from this worker while it ran; what came of it here is dropped", lease.id,
                   extra=lease.about)


def _leases(leases: list[Lease]) -> tuple[str, str]:
    return (
        "{" + ",".join(lease.id for lease in leases) + "}",
        "{" + ",".join(lease.token for lease in leases) + "}",
    )


def _columns(results: list[Result]) -> tuple[str, ...]:
    return tuple("{" + ",".join(map(quoted, column)) + "}" for column in zip(*results, strict=True))


def _text(value: str | None) -> str | None:
    # PostgreSQL's text cannot hold NUL, nor half a surrogate pair.
    return None if value is None else value.replace("\0", "\\0").encode("utf-8", "replace").decode()


def describe(error: object) -> str:
    """What error_message says of an exception: its type and its text. An exception that cannot be printed has its type only."""
    if not isinstance(error, BaseException):
        return shortened(str(safe_str(error) if isinstance(error, str) else safe_repr(error)))
    try:
        text = str(error)
    except Exception:
        text = ""
    return shortened(f"{type(error).__name__}: {text}" if text else type(error).__name__)


def shortened(text: str) -> str:
    """People read it with `SELECT *`; the result and the traceback have all of it."""
    return text if len(text) <= _LONGEST_ERROR else f"{text[:_LONGEST_ERROR]}… ({len(text):,} characters)"


_by_broker: dict[frozenset[str], Settlements] = {}


def settlements_for(conninfos: Iterable[str]) -> Settlements:
    """The one buffer of this process for a broker: for all databases of its failover list, which stand in for one another."""
    return _by_broker.setdefault(frozenset(conninfos), Settlements())
