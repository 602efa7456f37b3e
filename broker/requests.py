"""Celery's Request, telling the settlements how its job ended.

With late acknowledgement the outcome rides on the message and is settled when Celery acknowledges it. With early
acknowledgement Celery says nothing more about a job after it was accepted, so the outcome is settled when it is known.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import timedelta
from functools import lru_cache, wraps
from typing import Any

from billiard.einfo import ExceptionInfo, ExceptionWithTraceback
from celery.exceptions import Ignore, Reject, Retry, TaskRevokedError, Terminated, TimeLimitExceeded, WorkerLostError
from celery.worker import state as worker_state
from celery.worker.request import Request
from celery.worker.state import task_ready
from kombu.utils.encoding import safe_repr, safe_str
from kombu.utils.imports import symbol_by_name

from celery_jobqueue.broker.bundles import forget
from celery_jobqueue.broker.prefork import hear
from celery_jobqueue.broker.retries import pause
from celery_jobqueue.broker.sessions import still_held
from celery_jobqueue.broker.settlements import Failure, Lease, Result, describe

__all__ = ["JobRequest", "as_job_request"]

logger = logging.getLogger(__name__)

_AT_ONCE = timedelta(0)
_NO_LIMITS = ([None, None], (None, None))


class JobRequest(Request):  # type: ignore[misc]
    """A request whose message may be a job; without one it is Celery's Request."""

    _ended = False
    #: The gate that let the request in; it wants to know when the request is over.
    job_gate: Any = None
    #: What it shares its place in the pool with.
    bundle: Any = None
    _bundles = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        # Celery makes a subclass per task that replaces on_success, and calls nothing else when a task acknowledged
        # early succeeds; so that method is where success becomes known.
        super().__init_subclass__(**kwargs)
        if "on_success" in cls.__dict__:
            cls.on_success = _telling(cls.on_success)
        if "execute_using_pool" in cls.__dict__:
            cls.execute_using_pool = _refusing(cls.execute_using_pool)

    @property
    def lease(self) -> Lease | None:
        """The job's lease, None when the message came from another broker."""
        return getattr(self._message, "lease", None)

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        """The pool has taken the request."""
        if self.lease is not None and not self.task.acks_late:
            self._message.early = True
        super().on_accepted(pid, time_accepted)

    @property
    def may_be_bundled(self) -> bool:
        """Whether nobody minds if it has no place of its own in the pool: no time limit, no Request class of the task's own."""
        task = self.task
        return (self._bundles and task.Request is JobRequest and self._terminate_on_ack is None and not task.time_limit
                and not task.soft_time_limit and self.time_limits in _NO_LIMITS)

    @may_be_bundled.setter
    def may_be_bundled(self, may: bool) -> None:
        self._bundles = may

    def terminate(self, pool: Any, signal: Any = None) -> None:
        """Revoked, and to be stopped if it runs."""
        if self._runs_alone(pool):
            super().terminate(pool, signal)

    def cancel(self, pool: Any, signal: Any = None, emit_retry: bool = True) -> None:
        """To be stopped if it runs, as the worker leaves or is cut off."""
        if self._runs_alone(pool):
            super().cancel(pool, signal, emit_retry)

    def _runs_alone(self, pool: Any) -> bool:
        """Have its process run nothing after it; False when there is nothing to stop: it is over, or revoked before it began."""
        if self.bundle is None:
            return True
        self.job_gate.line.break_up(self.bundle)
        hear(pool, self.worker_pid)
        return not self._ended and (self.bundle is not None or self.id not in worker_state.revoked)

    def on_not_accepted(self) -> None:
        """The process that was to run it has died without having read it; another one gets it."""
        self.time_start = self.worker_pid = None
        worker_state.active_requests.discard(self)

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> Any:
        """The task raised, or its process died."""
        if self.lease is None:
            return super().on_failure(exc_info, send_failed_event, return_ok)
        exc = exc_info.exception
        exc = exc.exc if isinstance(exc, ExceptionWithTraceback) else exc
        if isinstance(exc, Ignore):
            self._message.failure = None
        elif isinstance(exc, Reject):
            self._message.failure = Failure(f"rejected: {safe_repr(exc.reason)}", retry=exc.requeue, delay=_AT_ONCE)
        elif isinstance(exc, TimeLimitExceeded) and self._outlives_timeout:
            return self._timed_out(exc)
        elif isinstance(exc, TimeLimitExceeded) and self.task.acks_late and not self.task.acks_on_timeout and self._used_up:
            return self._failed_for_good(exc)
        elif not isinstance(exc, (Retry, Terminated)):
            lost = isinstance(exc, (WorkerLostError, SystemExit, KeyboardInterrupt))
            again = lost and self.task.acks_late and self.task.reject_on_worker_lost
            self._message.failure = Failure(describe(exc), safe_str(exc_info.traceback), retry=again, delay=_AT_ONCE)
            # The process may have died after its job was settled: by its result, by finish_in(), as somebody else's job.
            settled = lost and not still_held(self._message.channel._transport.settings, self.lease)
            if settled and not self._success_was_stored():
                task_ready(self)
                self.acknowledge()
                return self.end()
            if again and self._used_up and not (settled or self._already_cancelled or self._already_revoked):
                return self._failed_for_good(exc if isinstance(exc, WorkerLostError) else WorkerLostError(describe(exc)))
        try:
            return super().on_failure(exc_info, send_failed_event, return_ok)
        finally:
            if not (self._already_cancelled or isinstance(exc, Retry)):
                self.end()

    def _failed_for_good(self, exc: BaseException) -> None:
        # reject(requeue=True) has no limit in Celery; ours is max_attempts, and then Celery must see a failure.
        self._message.failure = Failure(describe(exc), retry=False)
        self.task.backend.mark_as_failure(self.id, exc, request=self._context, store_result=self.store_errors)
        self.send_event("task-failed", exception=safe_repr(exc), traceback="")
        self.acknowledge()
        self.end()

    @property
    def _used_up(self) -> bool:
        job = self._message.properties["job"]
        return bool(job["attempts"] >= job["max_attempts"])

    def on_retry(self, exc_info: Any) -> None:
        """The task published itself anew."""
        if self.lease is not None:
            cause = exc_info.exception.exc
            start = self._message.properties["job"].get("start", 0)
            self._message.failure = Failure(describe(cause) if cause else "", republished=start)
        super().on_retry(exc_info)
        self.end()

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """A time limit passed; after the hard one the process is gone."""
        if not soft and self.lease is not None:
            if self._ended:  # as a failure of its process, a moment ago
                return None
            if self._outlives_timeout:
                return self._timed_out(TimeLimitExceeded(timeout))
            self._message.failure = Failure(f"hard time limit ({timeout:g} s) exceeded")
        super().on_timeout(soft, timeout)
        if not soft:
            self.end()
        return None

    @property
    def _outlives_timeout(self) -> bool:
        """Whether a hard time limit ends an attempt only: with automatic retries, or where Celery puts the job back for ever."""
        task, settings = self.task, self._message.channel._transport.settings
        again = task.acks_late and (settings.automatic_retries or not task.acks_on_timeout)
        return bool(again and not (self._used_up or worker_state.should_terminate
                                   or self._already_cancelled or self._already_revoked))

    def _timed_out(self, error: TimeLimitExceeded) -> None:
        # Not Celery's way: it stores a failure each time and calls the errbacks, although the job runs again.
        reason = f"hard time limit ({error.args[0]:g} s) exceeded"
        logger.error("%s: %s[%s] has attempts left", reason, self.name, self.id)
        task_ready(self)
        automatic = self._message.channel._transport.settings.automatic_retries
        delay = pause(self.task, self._message.properties["job"]["attempts"]) if automatic else _AT_ONCE
        self._message.failure = Failure(reason, retry=True, delay=delay)
        self.task.backend.mark_as_retry(self.id, error, request=self._context, store_result=self.store_errors)
        self.send_event("task-retried", exception=safe_repr(error), traceback="")
        self.acknowledge()
        self.end()

    def _announce_cancelled(self, emit_retry: bool = True) -> None:
        """Celery stops the running task (cold shutdown, lost connection): its job may run elsewhere, at no cost."""
        super()._announce_cancelled(emit_retry)
        if self.lease is not None and not self._message.early:
            self._message.channel._transport.settlements.release(self.lease)
        self._gate_done()

    def _announce_revoked(self, reason: str, terminated: bool, signum: Any, expired: bool) -> None:
        if self.lease is not None:
            self._message.failure = Failure(reason)
        super()._announce_revoked(reason, terminated, signum, expired)
        self.end()

    def drop(self) -> None:
        """The job was taken from this worker before it started: forget the request, settle nothing."""
        self._message.early = True
        self.give_up()

    def give_up(self) -> None:
        """Forget the request before it runs; its message says what becomes of the job."""
        self._ended = True
        task_ready(self)
        self.acknowledge()
        self._gate_done()

    def end(self) -> None:
        """The request is over; settle it unless an acknowledgement does, and make room for the next."""
        if self._ended or self.lease is None:
            return
        self._ended = True
        transport = self._message.channel._transport
        if self._message.early:
            if self._message.failure is None:
                transport.settlements.complete(self.lease, self._message.result)
            else:
                transport.settlements.fail(self.lease, self._message.failure)
        self._gate_done()
        # In the threads pool the loop turns at once, and nothing would tell it of a place that becomes free after that.
        transport.settle_soon()

    def _gate_done(self) -> None:
        if self.job_gate is not None:
            self.job_gate.done(self)


def _telling(on_success: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(on_success)
    def told(self: JobRequest, outcome: tuple[Any, ...] | ExceptionInfo, **kwargs: Any) -> Any:
        if isinstance(outcome, ExceptionInfo):  # pools without processes say so of sys.exit()
            return self.on_failure(outcome, return_ok=True)
        failed, value, runtime, *carried = outcome
        if self.lease is not None and not failed:
            self._message.result = Result(*carried[0]) if carried else None
            # Else its process has stored the result on the row, and completed the job by that; if that failed, it has said so.
            here = getattr(self.task.backend, "has_jobs", False)
            self._message.properties["job"]["stored"] = here and not self.ignore_result and not carried
        answer = on_success(self, (failed, value, runtime), **kwargs)
        if not failed:
            if self.job_gate is not None and runtime is not None:  # None: Celery has left out a task that had succeeded before
                self.job_gate.pace.note(self.name, runtime)
            self.end()
        return answer

    return told


def _refusing(execute: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(execute)
    def entered(self: JobRequest, pool: Any, **kwargs: Any) -> Any:
        try:
            return execute(self, pool, **kwargs)
        except TaskRevokedError:
            raise
        except Exception as error:
            if self.job_gate is None:
                raise
            # Whatever else is raised here costs Celery a place in its pool, and may take the end of another job along.
            forget(pool, self.on_success)
            self.job_gate.refused(self, error)
            raise TaskRevokedError(self.id) from error

    return entered


@lru_cache(maxsize=256)
def _with_jobs(base: type) -> type:
    if base is Request:
        return JobRequest
    return base if issubclass(base, JobRequest) else type(base.__name__, (JobRequest, base), {})


def as_job_request(request_class: Any) -> type:
    """The task's own Request class, able to tell how its job ended."""
    return _with_jobs(symbol_by_name(request_class))
