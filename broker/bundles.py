"""Quick jobs go to a process of the prefork pool in bundles: one message there, and one place in the pool, for several jobs.

Celery hands each job over by itself: a call of the pool, a message, a turn of the process, a place in the pool that is taken and
freed. For a task of a few microseconds that is most of what the worker's main process does, and that is what limits a worker.

The process runs the jobs of a bundle one after the other and tells of each as it ends. Before each it takes a token, of as many
as the bundle has jobs; the worker takes back what is left of them, and with that the jobs that the process has not begun: when
one of them takes long after all, when the worker leaves, when the process has died. So it is known at any time which of them ran,
and a job that waits in a bundle can still be given to somebody else, which one that lies in the pool's pipe cannot.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from time import monotonic
from typing import Any
from weakref import WeakValueDictionary

from billiard import get_context
from billiard.pool import MaybeEncodingError
from billiard.process import current_process
from celery.app.trace import fast_trace_task, trace_task_ret
from celery.exceptions import TaskRevokedError

from celery_jobqueue.broker.carried import carrying_call

__all__ = ["ENDED", "Bundle", "are_prepared", "ended", "forget", "prepare_bundles", "return_slot", "take_slot"]

#: What a process says when a job of a bundle is over, beside billiard's own numbers.
ENDED = 100

logger = logging.getLogger(__name__)

_numbers = count(1)
_bundles: WeakValueDictionary[int, Bundle] = WeakValueDictionary()
_tokens: list[Any] = []  # semaphores; the processes of the pool have the same ones, by inheritance
_free: list[int] = []  # of these, by index
_made_by = 0  # which process has made them: one that it forks, and that has a pool of its own, needs its own


def prepare_bundles(most: int) -> None:
    """Before the first pool of this process forks: what so many bundles share with the processes that run them. Without it there
    are no bundles.
    """
    global _made_by
    if _made_by == os.getpid():
        return
    _made_by = os.getpid()
    _tokens.clear()
    _free.clear()
    with suppress(OSError, ValueError, ImportError):  # no fork here, or no shared memory
        _tokens.extend(get_context("fork").Semaphore(0) for _ in range(most))
        _free.extend(range(len(_tokens)))


def are_prepared() -> bool:
    """Whether there can be any in this process."""
    return bool(_tokens)


def take_slot() -> int | None:
    """A place for one more bundle; None when there is none."""
    try:
        return _free.pop()
    except IndexError:
        return None


def return_slot(slot: int) -> None:
    """The place is not needed any more."""
    _free.append(slot)


# -- in the process that runs the jobs ---------------------------------------------------------------------------------


def _run(number: int, slot: int, calls: list[tuple[Any, tuple[Any, ...]]]) -> None:
    """Run those calls that are not taken back. What one of them raises is for the pool: it is the first that has not ended."""
    take, tell = _tokens[slot].acquire, current_process()._target.outq.put
    for index, (trace, args) in enumerate(calls):
        if not take(False):
            return
        outcome = trace(*args)
        try:
            tell((ENDED, (number, index, outcome)))
        except Exception as error:  # as billiard has it for a single job
            raise MaybeEncodingError(error, outcome) from error


# -- in the worker -----------------------------------------------------------------------------------------------------


def ended(number: int, index: int, outcome: Any) -> None:
    """A process says that a job of a bundle is over."""
    bundle = _bundles.get(number)
    if bundle is not None:
        bundle.ended(index, outcome)


class Bundle:
    """Requests that are one to the pool. over: called once the pool has done with it, with those that never began."""

    def __init__(self, requests: list[Any], slot: int, over: Callable[[Bundle, list[Any]], None]) -> None:
        #: Those that have not been taken back.
        self.requests = requests
        #: When one of them ended the last time, or the first began.
        self.moved_at = monotonic()
        self._number = next(_numbers)
        self._over = over
        self._slot: int | None = slot
        self._ended = 0
        self._pid = 0
        self._result: Any = None
        for request in requests:
            request.bundle = self
            _tokens[slot].release()
        _bundles[self._number] = self

    @property
    def entered(self) -> bool:
        """Whether the pool has it."""
        return self._result is not None

    @property
    def waits(self) -> bool:
        """Whether one of them waits for another, or may do so."""
        return self._ended + 1 < len(self.requests)

    def execute_using_pool(self, pool: Any, **_: Any) -> Any:
        """Enter the pool, without what was revoked meanwhile. Celery calls this where it has a request.

        Raises celery.exceptions.TaskRevokedError, after which Celery has a place in its pool again, when nothing is left, or when
        the pool refuses one of them: each is to enter alone then, which will show which one it is.
        """
        try:
            for request in list(self.requests):
                if request.revoked():
                    self.requests.remove(request)
                    if self._slot is not None:
                        _tokens[self._slot].acquire(False)
            if self.requests:
                self._result = pool.apply_async(
                    _run, args=(self._number, self._slot, [_call(request) for request in self.requests]),
                    accept_callback=self.on_accepted, callback=self._done, error_callback=self._failed,
                    correlation_id=self.requests[0].id)
                return self._result
        except Exception:
            for request in self.requests:
                request.may_be_bundled = False
            forget(pool, self._done)
        self._over(self, self.dissolve())
        raise TaskRevokedError("none of the jobs that were to go to a process together")

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        """A process has it."""
        self._pid, self.moved_at = pid, monotonic()
        for request in self.requests[:1]:
            try:
                request.on_accepted(pid, time_accepted)
            except Exception:  # out of apply_async() it would say that the pool has refused what it has
                logger.exception("%s[%s] could not be told that it runs", request.name, request.id)

    def on_not_accepted(self) -> None:
        """That process has died without having read it."""
        for request in self.requests[:1]:
            request.on_not_accepted()

    def ended(self, index: int, outcome: Any) -> None:
        """One of them is over, and the next begins."""
        self._ended, self.moved_at = index + 1, monotonic()
        request = self.requests[index]
        try:
            self._result.safe_apply_callback(request.on_success, outcome)
        finally:
            request.bundle = None  # no circle, or all of it would wait for the garbage collector: 17 MB at a prefetch of 1,000
            if self._ended < len(self.requests):
                self._result.safe_apply_callback(self.requests[self._ended].on_accepted, self._pid, monotonic())

    def take_back(self) -> list[Any]:
        """Those that no process has begun, in their order; none will."""
        begun = len(self.requests)
        while self._slot is not None and begun and _tokens[self._slot].acquire(False):
            begun -= 1
        back = self.requests[begun:]
        del self.requests[begun:]
        for request in back:
            request.bundle = None
            if request.time_start is not None:
                request.on_not_accepted()
        return back

    def dissolve(self) -> list[Any]:
        """Take back what no process has begun, and be no bundle any more."""
        back = self.take_back()
        self._result = None
        if self._slot is not None:
            return_slot(self._slot)
            self._slot = None
        return back

    def _done(self, _: Any) -> None:
        self._over(self, self.dissolve())

    def _failed(self, info: Any) -> None:
        """The process died, or one of them got out of what runs it: the one that has begun and not ended."""
        back = self.dissolve()
        try:
            for request in self.requests[self._ended:]:
                request.on_failure(info)
                request.bundle = None
        finally:
            self._over(self, back)


def forget(pool: Any, callback: Callable[..., Any]) -> None:
    """What the pool has refused: it remembers it all the same, and would wait for its end when the worker leaves."""
    cache: dict[int, Any] = getattr(getattr(pool, "_pool", None), "_cache", {})
    for result in [result for result in cache.values() if result._callback == callback]:
        result.discard()


def _call(request: Any) -> tuple[Any, tuple[Any, ...]]:
    trace = fast_trace_task if request.app.use_fast_trace_task else trace_task_ret
    return carrying_call(trace, (request.type, request.id, request.request_dict, request.body, request.content_type,
                                 request.content_encoding))
