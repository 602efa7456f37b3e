"""A task's job is finished in the transaction of the task's own writes: both happen, or neither.

    @app.task(acks_late=True, reject_on_worker_lost=True)
    def charge(invoice):
        with Session.begin() as session:
            session.add(Payment(invoice))
            return finish_in(session, "paid")        # the last thing before the commit

A worker that is killed before the commit has written nothing, and the job runs again; killed after it, the job is completed
with its result, and what follows in a chain or chord is queued.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import psycopg
from celery import group
from celery._state import get_current_task, pop_current_task, push_current_task
from celery.app.trace import get_actual_ignore_result
from celery.canvas import maybe_signature
from celery.exceptions import Ignore

from celery_jobqueue.broker import settings
from celery_jobqueue.broker.callers import borrow, borrow_async
from celery_jobqueue.broker.carried import stays_here
from celery_jobqueue.broker.collector import collecting, drive
from celery_jobqueue.broker.context import lease_of
from celery_jobqueue.broker.enqueue import explaining, identity_call, same_database, script_for
from celery_jobqueue.broker.results import ResultBackend
from celery_jobqueue.broker.session import Call, Row
from celery_jobqueue.broker.sessions import lending, still_held
from celery_jobqueue.broker.settings import Settings
from celery_jobqueue.broker.settlements import Lease
from celery_jobqueue.broker.sql import statement
from celery_jobqueue.db.errors import JobQueueError, TransactionError

__all__ = ["LeaseLost", "afinish_in", "finish_in"]

logger = logging.getLogger(__name__)
T = TypeVar("T")
RunCalls = Callable[..., list[list[Row]]]


class LeaseLost(JobQueueError, Ignore):  # type: ignore[misc]
    """The job is not this run's any more: it was taken back, or finished before. Nothing of this run may be committed.

    Celery lets go of a task that raises it without a word to anybody: the job is in other hands.
    """


def finish_in(target: Any, result: T = None) -> T:  # type: ignore[assignment]
    """Complete the running task's job with this result, in the transaction that `target` is in; commit right after it.

    target: as for jobs_in(). Returns the result, which the task shall return. Callbacks, the next task of a chain and the
    body of a chord are queued in the same transaction. A task that is called directly or eagerly has no job to finish.

    Raises LeaseLost when the job is not this run's any more; the exception has to leave the transaction, to roll it back.
    """
    run = _Run.here()
    if run is not None:
        caller = borrow(target)
        run.finish(result, caller.run, caller.info)
    return result


async def afinish_in(target: Any, result: T = None) -> T:  # type: ignore[assignment]
    """As `finish_in`, for sessions and connections that are awaited."""
    run = _Run.here()
    if run is not None:
        caller = await borrow_async(target)
        loop = asyncio.get_running_loop()

        def wait(*calls: Call) -> list[list[Row]]:
            return asyncio.run_coroutine_threadsafe(caller.run(*calls), loop).result()

        # Celery's backends know nothing of awaiting, so they work in a thread, and their statements come back here.
        await asyncio.to_thread(run.finish, result, wait, caller.info)
    return result


class _TransactionSession:
    """The caller's connection, as a result backend knows connections: everything on it is one transaction."""

    connected = True
    in_transaction = True

    def __init__(self, run: RunCalls) -> None:
        self._answers = run

    def run(self, *calls: Call) -> list[list[Row]]:
        """The rows of each call. Raises LeaseLost when a settlement found the job in other hands."""
        answers = self._answers(*calls)
        for (stmt, _), rows in zip(calls, answers, strict=True):
            if (stmt.name == "store_result" and rows[0][0] != "t") or (stmt.name == "complete" and not rows):
                raise LeaseLost("the job is not this run's any more: it was taken back, or finished before")
        return answers

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Nothing to do: it is the caller's."""
        yield


@dataclass(frozen=True, slots=True)
class _Run:
    """The run of a task, and the job that it is."""

    task: Any
    request: Any
    lease: Lease
    broker: Settings

    @classmethod
    def here(cls) -> _Run | None:
        """What runs in this thread; None when a task was called without a job. Raises TransactionError outside of tasks."""
        task = get_current_task()
        if task is None:
            raise TransactionError("finish_in() was called where no Celery task runs: call it in the task's own thread (and "
                                   "not inside of run_sync(), but afinish_in() outside of it)")
        request = task.request
        if request.called_directly or request.is_eager:
            return None
        lease = lease_of(request)
        if lease is None:
            raise TransactionError(f"{task.name} was not delivered by a job queue: finish_in() has no job to finish")
        return cls(task, request, lease, _broker_of(task.app))

    def finish(self, result: Any, run: RunCalls, info: psycopg.ConnectionInfo) -> None:
        """Everything that Celery does when a task has succeeded, in the caller's transaction."""
        backend = self.task.backend
        ours = isinstance(backend, ResultBackend)
        ignored = bool(get_actual_ignore_result(self.task, self.request))
        session = _TransactionSession(run)
        self.request.finish_may_stand = False  # of an earlier call, perhaps: its transaction was rolled back
        stays_here(self.request.properties["job"])
        try:
            with explaining("jobqueue_worker"), self._visible(), collecting(wake=True) as jobs, lending(
                    backend.settings.conninfo if ours else self.broker.conninfo, session):
                self._dispatch(result)
                if ignored or not ours:
                    session.run((statement("complete"), (f"{{{self.lease.id}}}", f"{{{self.lease.token}}}")))
                if ours:
                    backend.mark_as_done(self.request.id, result, self.request, not ignored)
                drive(script_for(jobs, info), run)
        except LeaseLost:
            if not same_database(run(identity_call())[0][0], self.broker):
                raise TransactionError(f"the transaction is in another database ({info.dbname!r} at {info.host}:{info.port}) "
                                       "than the job") from None
            logger.warning("job %s was taken from this worker; what it wrote is to be rolled back", self.lease.id,
                           extra=self.lease.about)
            raise
        # Celery would do all of it again when the task has returned. Results and chords are fenced, so that it would change
        # nothing; one look in broker/chords.py saves the attempt. What is published is not fenced.
        self.request.finish_may_stand = ours and backend.has_jobs and (not ignored or bool(self.request.chord))
        for name in ("callbacks", "chain", "errbacks"):
            if (signatures := getattr(self.request, name, None)) is not None:
                setattr(self.request, name, _UnlessSettled(signatures, self))

    @contextmanager
    def _visible(self) -> Iterator[None]:
        """Celery finds the running task by thread, and this may be another one."""
        push_current_task(self.task)
        self.task.request_stack.push(self.request)
        try:
            yield
        finally:
            self.task.request_stack.pop()
            pop_current_task()

    def _dispatch(self, result: Any) -> None:
        """Publish what follows, as celery.app.trace does."""
        request, app = self.request, self.task.app
        inherits = app.conf.task_inherit_parent_priority
        options = {"parent_id": request.id, "root_id": request.root_id or request.id,
                   "priority": (request.delivery_info or {}).get("priority") if inherits else None}
        callbacks = [maybe_signature(callback, app=app) for callback in request.callbacks or ()]
        if len(callbacks) > 1:
            others = [callback for callback in callbacks if not isinstance(callback, group)]
            callbacks = [callback for callback in callbacks if isinstance(callback, group)]
            callbacks += [group(others, app=app)] if others else []
        for callback in callbacks:
            callback.apply_async((result,), **options)
        if request.chain:
            step = maybe_signature(request.chain[-1], app=app)
            step.apply_async((result,), chain=request.chain[:-1], **options)


@lru_cache(maxsize=16)
def _broker_of(app: Any) -> Settings:
    """The application's broker. Read once: to take its URL and options apart takes a third of a millisecond."""
    return settings.read(app.connection_for_read())


class _UnlessSettled(list[Any]):
    """Signatures that Celery sends when the task has returned: none any more if the transaction that sent them committed."""

    def __init__(self, signatures: Iterable[Any], run: _Run) -> None:
        super().__init__(signatures)
        self._run = run

    def __bool__(self) -> bool:
        return len(self) > 0 and still_held(self._run.broker, self._run.lease)

    def __iter__(self) -> Iterator[Any]:
        return super().__iter__() if self else iter(())
