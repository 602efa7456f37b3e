"""Started requests on their way into the pool: a process or a thread takes the next one when it has ended the last."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from threading import RLock
from time import monotonic
from typing import Any, Protocol

from celery_jobqueue.broker.bundles import Bundle, take_slot
from celery_jobqueue.broker.pace import Pace

__all__ = ["Crew", "Line"]

#: Jobs that a process gets at once at most, and seconds that they may take together. Of bundles of one and of up to eight, 4,840
#: jobs/s became 5,600 (three pairs).
_MOST, _LONGEST = 8, 0.004
#: Bytes of their bodies, so that a pipe takes the message as a whole; one that has more goes alone.
_LARGEST = 32_768
#: Seconds that are not worth being shared out among processes: a bundle of so much work is filled first.
_SMALL = 0.001
#: Seconds without an end, after which those that follow in a bundle do not wait for the one that runs.
_STUCK = 0.05


class Crew(Protocol):
    """Who runs what is in line."""

    #: The pool gives each one what waits for it, so that it is told here who is next.
    in_turn: bool
    #: It may get several requests at once.
    bundles: bool
    #: What Celery holds back when all have something to do is dropped with a connection.
    drops: bool
    #: Threads enter what follows themselves; of slow jobs each process has the next one waiting in Celery's pool.
    threads: bool

    @property
    def processes(self) -> int:
        """How many there are."""

    def is_quick(self, request: Any) -> bool:
        """Whether it is one of a quick task, as far as is known."""

    def goes_on(self) -> bool:
        """Whether anything is begun any more."""

    def enter(self, entry: Any) -> None:
        """Have the pool run a request or a bundle."""

    def take_long(self, requests: list[Any]) -> None:
        """Others do not wait for these any more."""


class Line:
    """What is in the pool, and what waits for a place there. The lock is its crew's, too."""

    def __init__(self, crew: Crew, pace: Pace) -> None:
        self._crew, self._pace = crew, pace
        self._waiting: deque[Any] = deque()
        self._in_pool: set[Any] = set()  # requests
        self._singles = 0  # of these, the ones that are in no bundle
        self._bundles: set[Bundle] = set()
        self._moved_at = 0.0
        self._collects = False
        self.lock = RLock()  # the threads pool reports from its own threads, a signal's handler in the middle of anything

    def add(self, request: Any) -> None:
        """A started request: it enters the pool now, or when there is a place."""
        with self.lock:
            if self._crew.in_turn and (self._collects or self._waiting or not self._has_place(request)):
                self._moved_at = self._moved_at if self._waiting else monotonic()
                self._waiting.append(request)
                return
            entry = self._placed(request)
        self._crew.enter(entry)

    def left(self, request: Any) -> None:
        """A request is over, if it was in the pool; the next one takes its place."""
        with self.lock:
            self._moved_at = monotonic()
            if request in self._in_pool:
                self._in_pool.discard(request)
                self._singles -= request.bundle is None
        self._follow()

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """While several requests are delivered: those that may be bundled enter the pool after the last one."""
        self._collects = self._crew.bundles
        try:
            yield
        finally:
            self._collects = False
            self._follow()

    def keep_running(self) -> frozenset[Any]:
        """Celery has dropped what waited for a place in its pool, as it does when a connection is lost: forget that. Returns the
        requests that run, or will, as the pool has them.
        """
        with self.lock:
            for bundle in [bundle for bundle in self._bundles if not bundle.entered]:
                self._bundles.discard(bundle)
                bundle.dissolve()
            if self._crew.drops:
                dropped = {request for request in self._in_pool if request.bundle is None
                           and request._apply_result is None and request.time_start is None}
                self._in_pool -= dropped
                self._singles -= len(dropped)
            return frozenset(self._in_pool)

    @property
    def held_up(self) -> float:
        """Seconds that the first one that waits has seen nothing end; 0 when none waits."""
        return monotonic() - self._moved_at if self._waiting else 0.0

    @property
    def stuck_at(self) -> float:
        """When there may be something to free(), in monotonic seconds."""
        return min((bundle.moved_at + _STUCK for bundle in list(self._bundles) if bundle.waits), default=inf)

    def free(self) -> None:
        """Let others have what is in a bundle behind one that takes long."""
        for bundle in [bundle for bundle in list(self._bundles) if bundle.waits and monotonic() >= bundle.moved_at + _STUCK]:
            bundle.moved_at = monotonic()  # all of them may have begun, and that is still to be read
            self.break_up(bundle)

    def break_up(self, bundle: Bundle) -> None:
        """Those of the bundle that have not begun are first in line again."""
        with self.lock:
            self._first_again(bundle.take_back())
            self._crew.take_long(bundle.requests)
        self._follow()

    def take_all(self) -> list[Any]:
        """All that has not begun: it is in line no more."""
        with self.lock:
            for bundle in list(self._bundles):
                self._first_again(bundle.take_back())
            back = list(self._waiting)
            self._waiting.clear()
        return back

    def _has_place(self, request: Any) -> bool:
        ahead = request.task.acks_late and not (self._crew.threads or self._may_be_bundled(request))
        return self._singles + len(self._bundles) < self._crew.processes * (2 if ahead else 1)

    def _may_be_bundled(self, request: Any) -> bool:
        return self._crew.bundles and self._crew.is_quick(request) and request.may_be_bundled

    def _follow(self) -> None:
        while self._waiting:
            with self.lock:
                if not (self._waiting and self._crew.goes_on() and self._has_place(self._waiting[0])):
                    return
                entry = self._next()
            self._crew.enter(entry)

    def _next(self) -> Any:
        together = self._those_that_go_together()
        slot = take_slot() if len(together) > 1 else None
        if slot is None:
            return self._placed(self._waiting.popleft())
        for request in together:
            self._waiting.popleft()
            self._in_pool.add(request)
        bundle = Bundle(together, slot, self._over)
        self._bundles.add(bundle)
        return bundle

    def _those_that_go_together(self) -> list[Any]:
        slowest = self._pace.slowest
        share = -(-len(self._waiting) // self._crew.processes)
        most = min(_MOST, max(share, int(_SMALL / slowest)), int(_LONGEST / slowest))
        together: list[Any] = []
        size = 0
        for request in self._waiting:
            size += len(request.body)
            if len(together) == most or size > _LARGEST or not self._may_be_bundled(request):
                break
            together.append(request)
        return together

    def _placed(self, request: Any) -> Any:
        self._in_pool.add(request)
        self._singles += 1
        return request

    def _over(self, bundle: Bundle, back: list[Any]) -> None:
        with self.lock:
            self._bundles.discard(bundle)
            self._first_again(back)
        self._follow()

    def _first_again(self, back: list[Any]) -> None:
        self._in_pool.difference_update(back)
        self._waiting.extendleft(reversed(back))
