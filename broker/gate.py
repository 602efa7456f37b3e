"""The way of a request into the worker's pool: a job is started in the database before it is started here."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from time import time
from typing import Any

import psycopg
from celery.worker import state as worker_state

from celery_jobqueue.broker.bundles import Bundle
from celery_jobqueue.broker.carried import may_be_carried
from celery_jobqueue.broker.claims import Door, Places, text_array
from celery_jobqueue.broker.comeback import leaving
from celery_jobqueue.broker.endings import mark_unreadable
from celery_jobqueue.broker.identity import identity
from celery_jobqueue.broker.line import Line
from celery_jobqueue.broker.pace import QUICK, Pace
from celery_jobqueue.broker.settlements import REFUSED, Failure, describe
from celery_jobqueue.db.errors import JobQueueError

__all__ = ["Gate"]

logger = logging.getLogger(__name__)

#: Jobs that are held where all are quick and the prefetch window is smaller: a batch costs the server several times what one more
#: job in it does (at a prefetch of 8 340 µs per job become 190, and 1,200 jobs/s 1,600). Beyond the window no more than the
#: processes do within QUICK: nobody else would have them done sooner. Each of them counts as started if the worker dies.
_REACH = 32
#: Seconds of work that a process has started ahead at most of quick tasks that are acknowledged early, and how many jobs that are
#: at most; at least it is one. Killed in between, the worker has lost them. 0, 1 and 3 jobs: 960, 2,070 and 3,140 jobs/s with two
#: processes; 3 and 7 (in bundles, another day): 2,380 and 2,950, and 15 are no faster. Solo, 3, 5 and 7: 2,410, 3,640 and 3,980.
#: Threads do not gain from more than 3.
_RISKED, _MOST_RISKED, _MOST_RISKED_IN_THREADS = 0.002, 7, 3
#: Celery's worker_prefetch_multiplier, unless it is set; who sets a smaller one wants fewer jobs held than that.
_USUAL_MULTIPLIER = 4
#: Seconds without an end of any job, after which what was started ahead goes back: what runs is not quick after all.
_HELD_UP = 1.0
#: The pools that run jobs while the worker's own thread is free to give back what does not come to its turn.
_PREFORK, _THREADS = "celery.concurrency.prefork", "celery.concurrency.thread"
#: The one that runs a job where it is delivered, and nothing else until that is over.
_SOLO = "celery.concurrency.solo"


class Gate(Door):
    """Lets a request into the pool once its start is in the database.

    The start must be there before the task's first instruction, or a job that kills its worker would never be counted;
    Celery's own `on_accepted` comes when the task already runs. With late acknowledgement one job per process is started
    ahead (not per thread), so that the round trip is hidden behind the running one; a job acknowledged early would be lost by
    that if the worker died before it ran, and the running one may take long.

    Tasks that are known to be quick (Pace) are started by their claim already, as many as the prefetch window has places and some
    more: an update and a round trip less for each job, and more jobs in each round trip. They come here started, and enter the
    pool in turn; when one of them takes long after all, those that wait behind it go back to the queue untouched. Of those that
    are acknowledged early only a few are started ahead, because they are lost if the worker is killed; and none where a pool of
    greenlets would have them, which goes on with what it has after a cold shutdown.

    A suspect (its worker died while it ran) goes in alone at its last attempt: once all others are over, and nobody follows
    until it is over itself. So nobody is failed for a death that was another job's.
    """

    def __init__(self, consumer: Any, enter_pool: Any) -> None:
        self._consumer = consumer
        self._enter_pool = enter_pool
        self._waiting: deque[Any] = deque()
        self._inside: dict[Any, bool] = {}  # requests, and whether each is one of a quick task
        self._promised = 0  # started jobs that are on their way here, and those that the claim in flight may start
        self._shut = False
        pool = consumer.pool.__class__.__module__
        #: It runs them in threads of this process, which nobody can stop.
        self.threads = pool == _THREADS
        self.in_turn = pool in (_PREFORK, _THREADS)
        self.drops = pool == _PREFORK
        #: A process may get several quick jobs at once.
        self.bundles = False
        #: The pool runs a job where it is delivered.
        self.solo = pool == _SOLO
        self._names: tuple[list[str], list[str]] = [], []
        self._arrays = "{}", "{}"
        self._stretch = 0
        self._risk = 0  # how many jobs per process that may be
        self.pace = Pace()
        #: Those inside that are started.
        self.line = Line(self, self.pace)
        self._lock = self.line.lock
        self.transport: Any = None
        #: Called when a job is about to run here.
        self.on_entry: Callable[[], None] = _nothing
        #: Called when the worker leaves, and may wait long for what runs.
        self.on_leave: Callable[[], object] = _nothing

    # -- what the cycle asks ------------------------------------------------------------------------------------------

    def places(self, credit: int) -> Places:
        """What to claim, and what of it is started with its claim."""
        self._learn()
        late, once = self._arrays
        with self._lock:
            self._promised = self._arriving
            ahead, credit = credit + self.ahead(), max(0, credit)
            if self._shut or self.full() or ahead <= 0:
                places = Places(0)
            elif self._waiting or not all(self._inside.values()) or any(map(_runs_alone, self._inside)):
                places = Places(credit)
            else:
                free = max(0, self.processes - len(self._inside))
                starts = min(credit, free) if self._consumer.pool.is_green else ahead
                starts_once = min(credit, self._places_once) if self._names[1] else 0
                self._promised += starts_once or (1 if self._names[0] else 0)
                places = Places(credit if self._names[0] or not starts_once else starts_once, ahead - credit,
                                self.transport.settlements.worker, starts if self._names[0] else 0, late, starts_once, once)
        if self._waiting:
            self._advance()
        return places

    def claimed(self, starts: int) -> None:
        """So many more started jobs are on their way here."""
        self._promised = self._arriving + starts
        if not starts and self._waiting:
            self._advance()

    def enough(self, undelivered: int) -> bool:
        """Whether more than half of the prefetch window is still to be worked on."""
        return len(self._inside) + undelivered > max(self.processes, (self._window + self.ahead()) // 2)

    def ahead(self) -> int:
        """How many jobs may be claimed beyond the prefetch window, if they are of quick tasks."""
        return self._stretch if self._stretch and all(self._inside.values()) and not self._waiting else 0

    def full(self) -> bool:
        """Whether quick tasks that are acknowledged early have all places: what was claimed beforehand could only cost an update
        more.
        """
        late, once = self._names
        return bool(once and not late and all(self._inside.values()) and (self._waiting or not self._places_once))

    def unfit(self, raw: dict[str, Any]) -> bool:
        """Whether Celery will not run it: it knows no such task, or it was revoked."""
        headers = raw["headers"]
        return (headers.get("task") not in self._consumer.app.tasks or headers.get("id") in worker_state.revoked
                or bool(worker_state.revoked_stamps))

    def _learn(self) -> None:
        tasks, buckets = self._consumer.app.tasks, self._consumer.task_buckets
        late: list[str] = []
        once: list[str] = []
        for name in self.pace.quick:
            if name in tasks and buckets[name] is None:  # a rate limit makes it wait here
                (late if tasks[name].acks_late else once).append(name)
        if (late, once) != self._names:
            self._names, self._arrays = (late, once), (text_array(late), text_array(once))
        usual = late and self.in_turn and self._consumer.initial_prefetch_count >= _USUAL_MULTIPLIER * self.processes
        self._stretch = max(0, min(_REACH - self._window, int(QUICK * self.processes / self.pace.slowest))) if usual else 0
        most = _MOST_RISKED_IN_THREADS if self.threads else _MOST_RISKED
        risk = max(1, min(most, int(_RISKED / self.pace.slowest))) if once else 0
        self._risk = risk if self.in_turn or self.solo else 0

    @property
    def _window(self) -> int:
        return int(self._consumer.qos.value)  # the prefetch count

    @property
    def _places_once(self) -> int:
        """How many jobs of quick tasks that are acknowledged early may be started now."""
        return max(0, self.processes * (1 + self._risk) - len(self._inside) - self._arriving)

    @property
    def _arriving(self) -> int:
        """How many jobs were started by their claim and are not delivered yet."""
        return sum(1 for _, raw in self.transport.cycle_.ready if raw["properties"].get("job", {}).get("start"))

    # -- requests -----------------------------------------------------------------------------------------------------

    def _room(self, request: Any) -> int:
        pool = self._consumer.pool
        # What is acknowledged early would be lost if the worker died before it ran, and nobody knows how long that takes. A full
        # pool of greenlets makes whoever enters it wait, and the consumer that waits there neither beats nor settles.
        if pool.is_green or not request.task.acks_late:
            return self.processes
        if request.name in self.pace.quick and all(self._inside.values()):
            return max(2 * self.processes, self._window)
        # The solo pool runs tasks inside the event loop: what it started ahead would wait as long as the running task. Threads
        # have no pipes, and what waits in line goes back after _HELD_UP.
        return self.processes if self.solo or self.threads else 2 * self.processes

    def request(self, request: Any) -> Any:
        """A request is ready to run (called by Celery's strategy, rate limits and ETA timers)."""
        if getattr(request.message, "lease", None) is None:
            self.on_entry()
            return self._enter_pool(request)
        request.job_gate = self
        if request.message.properties["job"].get("start"):  # by its claim
            with self._lock:
                self._promised = max(0, self._promised - 1)
                self._inside[request] = True
            return self._enter_in_turn(request)
        with self._lock:
            self._waiting.append(request)
        self._advance()
        return None

    def collecting(self) -> AbstractContextManager[None]:
        """While several requests are delivered."""
        return self.line.collecting()

    def held(self) -> set[str]:
        """Ids of the jobs that wait here or are in the pool."""
        with self._lock:
            return {request.message.lease.id for request in (*self._waiting, *self._inside)}

    def done(self, request: Any) -> None:
        """A request is over, whatever became of it."""
        with self._lock:
            self._inside.pop(request, None)
        self.line.left(request)
        self._advance()

    def tend(self) -> None:
        """Give back what was started ahead and does not come to its turn."""
        self.line.free()
        if self.line.held_up >= _HELD_UP:
            self.give_back()

    @property
    def tend_at(self) -> float:
        """When there may be something to tend, in monotonic seconds."""
        return self.line.stuck_at

    def give_back(self) -> None:
        """What was started ahead and has not begun goes back to the queue, and what has counts as slow."""
        with self._lock:
            held_up = self.line.take_all()
            self._inside = dict.fromkeys(self._inside, False)
        for request in held_up:
            self._hand_back(request)

    def _hand_back(self, request: Any) -> None:
        self.transport.settlements.release(request.message.lease)
        request.drop()

    def shut(self) -> None:
        """The worker leaves at once: nothing is started any more. What waits here goes back with its channel."""
        self._shut = True

    def leave(self) -> None:
        """Give back what was started ahead, and say so at once: what runs may take long to end."""
        identity().leaving = True
        if self.transport is None:
            return
        if self.threads:  # they go on with what lies in their queue, even after a cold shutdown
            self._consumer.pool.executor.shutdown(wait=False, cancel_futures=True)
            self.transport.settlements.deaf = True
        with suppress(psycopg.Error, JobQueueError, OSError):
            self.transport.cycle_.finish()  # what is on its way here
        self.transport.give_back_undelivered()
        self.give_back()
        with suppress(psycopg.Error, JobQueueError, OSError):
            self.transport.cycle_.settle()
        self.on_leave()

    def reset(self) -> None:
        """The connection was replaced: Celery has forgotten every request that is not in the pool yet."""
        # What is in the pool runs, whether a process has said so or not. Celery would have the pool forget what no process has
        # accepted; but a process may have it already, and then the job would run here and, given back, once more.
        self._consumer.pool.flush = None
        with self._lock:
            self._waiting.clear()
            self.line.take_all()
            self._promised = 0
            kept = self.line.keep_running()
            running = {request: quick for request, quick in self._inside.items() if request in kept}
            self.transport.settlements.forget_starts()
            for request in self._inside.keys() - running.keys():
                self.transport.settlements.release(request.message.lease)
            self._inside = running

    def _advance(self) -> None:
        # Nothing that takes another lock happens under ours.
        while (request := self._next()) is not None:
            if request.revoked():  # or expired; the request has said so, and no attempt is used
                with self._lock:
                    self._inside.pop(request, None)
                continue
            request.message.properties["job"]["asked"] = time()  # before it is sent, see broker/stale.py
            self.transport.settlements.start(
                request.message.lease, not request.task.acks_late,
                lambda *counts, request=request: self._started(request, *counts))
            self.transport.settle_soon()

    def _next(self) -> Any | None:
        with self._lock:
            if self._shut or leaving() or not self._waiting or len(self._inside) + self._promised >= self._room(self._waiting[0]):
                return None
            if (self._inside or self._promised) and any(map(_runs_alone, (self._waiting[0], *self._inside))):
                return None
            request = self._waiting.popleft()
            self._inside[request] = request.name in self.pace.quick
            return request

    def _started(self, request: Any, attempts: int, max_attempts: int, start: int) -> None:
        if not attempts:
            # Reset by hand, deleted, or given to somebody else meanwhile: not ours any more.
            if start != REFUSED:
                logger.warning("job %s was taken from this worker before it started", request.message.lease.id,
                               extra=request.message.lease.about)
            request.drop()
            return
        request.message.properties["job"].update(attempts=attempts, max_attempts=max_attempts, start=start)
        self._enter_in_turn(request)

    def _enter_in_turn(self, request: Any) -> None:
        # Solo would run it here and now, however long that takes; other pools take no more.
        if not self._consumer.pool.is_green and (self._shut or leaving()):
            self._hand_back(request)
            return
        self.line.add(request)

    # -- what the line asks -------------------------------------------------------------------------------------------

    @property
    def processes(self) -> int:
        """How many processes or threads the pool has."""
        return int(self._consumer.pool.num_processes or 1)

    def is_quick(self, request: Any) -> bool:
        """Whether it is one of a quick task, and nothing has taken long since it came."""
        return self._inside.get(request, False)

    def goes_on(self) -> bool:
        """Whether anything is begun any more. A thread of the pool may end its job while the connection is lost: nobody knows
        whose the others are by then.
        """
        return not (self._shut or leaving()) and bool(self.transport.session.connected)

    def take_long(self, requests: list[Any]) -> None:
        """These take long after all, those of them that are not over."""
        self._inside.update((request, False) for request in requests if request in self._inside)

    def enter(self, entry: Any) -> None:
        """Into the pool with it."""
        requests = entry.requests if isinstance(entry, Bundle) else [entry]
        for request in requests:
            if self._inside.get(request) and not request.ignore_result:
                may_be_carried(request.message.properties["job"])
        self.on_entry()
        self._enter_pool(entry)

    # -- what a request says of itself --------------------------------------------------------------------------------

    def refused(self, request: Any, error: Exception) -> None:
        """The pool has not taken the request."""
        if request.time_start is None and (self._shut or leaving() or not self._consumer.pool.active):
            self._hand_back(request)  # to threads that take no more
            return
        # A header that somebody wrote by hand.
        request.message.failure = Failure(f"the message cannot be read: {describe(error)}")
        mark_unreadable(self._consumer.app, request.message.lease, request.id, error)
        request.give_up()


def _nothing() -> None:
    pass


def _runs_alone(request: Any) -> bool:
    job = request.message.properties["job"]
    last = job["attempts"] >= job["max_attempts"] - (0 if job.get("start") else 1)  # counted by its start
    return bool(job["suspect"] and last)
