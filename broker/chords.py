"""Chords without polling: the header task that ends last publishes the body.

Its job's completion, the count and the body are one transaction: whoever is killed when, the body is published once. With
Celery's own way a task looks every second whether the header has ended, and each look costs two jobs.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from celery import states
from celery.backends.base import _create_chord_error_with_cause
from celery.canvas import maybe_signature
from celery.exceptions import ChordError
from celery.result import GroupResult, ResultSet, result_from_tuple
from celery.utils.functional import _regen

from celery_jobqueue.broker.collector import collected, collecting, drive
from celery_jobqueue.broker.session import Call
from celery_jobqueue.broker.sessions import PATIENCE, finished, warn_if_lost
from celery_jobqueue.broker.settlements import Lease
from celery_jobqueue.broker.sql import statement
from celery_jobqueue.broker.trouble import for_good

__all__ = ["ChordBackend"]

logger = logging.getLogger(__name__)


class _LeaseLost(Exception):
    """The header task's job was taken from this worker."""


class ChordBackend:
    """What a result backend needs for chords; a part of ResultBackend."""

    app: Any
    settings: Any
    _session: Any
    _run: Callable[..., Any]
    _encoded: Callable[..., Any]
    encode_result: Callable[..., Any]

    def apply_chord(self, header_result_args: Any, body: Any, **kwargs: Any) -> None:
        """A chord is about to be published: forget an earlier run of it, remember how its results nest."""
        group_id, results = header_result_args[0], header_result_args[1]
        header: tuple[str | None, bytes | None] = (None, None)
        if not isinstance(results, _regen):
            nested = self.app.GroupResult(*header_result_args)
            if any(isinstance(result, GroupResult) for result in nested.results):
                header = self._encoded({"result": nested.as_tuple()})
        params = (group_id, *header)
        if not self._postponed((statement("begin_chord"), params)):
            self._run("begin_chord", params)

    def set_chord_size(self, group_id: str, chord_size: int) -> None:
        """The header is published but for its last task, and has this many."""
        params = (group_id, str(chord_size), "0")
        if not self._postponed((statement("size_chord"), params)):
            self._run("size_chord", params)

    def add_to_chord(self, group_id: str, result: Any) -> None:
        """A running header task puts in one more."""
        self._run("size_chord", (group_id, None, "1"))

    def _postponed(self, call: Call) -> bool:
        """Whether the call goes into the transaction that the chord's tasks are published in."""
        collector = collected(self.settings.conninfo)
        if collector is not None:
            collector.also(call)
        return collector is not None

    # -- a header task ends: one transaction ---------------------------------------------------------------------------
    # Celery stores the result, counts the part, then calls the task's own errbacks, which are anybody's code. The first two
    # belong together, the errbacks must find them committed: so the result is held until the part is counted.

    def mark_as_done(self, task_id: str, result: Any, request: Any = None, *args: Any, **kwargs: Any) -> None:
        """The task succeeded."""
        if not self._finished(request):
            with self._holding_result(request):
                super().mark_as_done(task_id, result, request, *args, **kwargs)  # type: ignore[misc]

    def _finished(self, request: Any) -> bool:
        """Whether the task's own transaction has stored the result and counted the part, with finish_in(), and has committed.

        To try it all the same changes nothing, but takes a transaction that waits its turn at the chord's row and is rolled back.
        """
        return bool(getattr(request, "finish_may_stand", False)) and finished(self.settings, Lease.of(request.properties["job"]))

    def mark_as_failure(self, task_id: str, exc: BaseException, traceback: Any = None, request: Any = None,
                        *args: Any, **kwargs: Any) -> None:
        """The task failed."""
        with self._holding_result(request):
            super().mark_as_failure(task_id, exc, traceback, request, *args, **kwargs)  # type: ignore[misc]

    def mark_as_revoked(self, task_id: str, reason: str = "", request: Any = None, *args: Any, **kwargs: Any) -> None:
        """The task was revoked."""
        with self._holding_result(request):
            super().mark_as_revoked(task_id, reason, request, *args, **kwargs)  # type: ignore[misc]

    @contextmanager
    def _holding_result(self, request: Any) -> Iterator[None]:
        if request and request.chord:
            request.held_result = []
        try:
            yield
        finally:
            if request and request.chord:
                del request.held_result

    def on_chord_part_return(self, request: Any, state: str, result: Any, **kwargs: Any) -> None:
        """Store the task's result and count it; publish the body when it was the last. One transaction."""
        if not request.group or not request.id:
            return
        position = -1 if request.group_index is None else request.group_index
        part = (request.group, request.id, str(position), state, *self._encoded(self.encode_result(result, state)))
        calls: list[Call] = [*getattr(request, "held_result", ()), (statement("chord_part_ended"), part)]
        session, deadline, pause = self._session, time.monotonic() + PATIENCE, 0.0
        while True:
            try:
                # Remote control too: where a chord fails, Celery stores its body's failures before it revokes the body.
                with session.transaction(), collecting(self.settings.conninfo, control=True) as published:
                    answers = session.run(*calls)
                    if len(calls) > 1 and answers[0][0][0] != "t":
                        raise _LeaseLost
                    if answers[-1][0][0] == "t":
                        self._dispatch(request.group, maybe_signature(request.chord, app=self.app))
                    drive(published.script(), session.run)
                return
            except _LeaseLost:
                if state == states.SUCCESS:
                    warn_if_lost(self.settings, Lease.of(request.properties["job"]))
                return  # somebody else has the job now; what this run found out is no longer asked for
            except (psycopg.OperationalError, psycopg.InterfaceError) as error:
                if for_good(error) or time.monotonic() + pause > deadline:
                    raise
                time.sleep(pause)
                pause = min(2 * pause + 0.1, 5.0)

    def _dispatch(self, group_id: str, body: Any) -> None:
        try:
            values = self._values(group_id)
        except ChordError as error:
            logger.exception("Chord %r raised: %r", group_id, error)
            self.chord_error_from_stack(body, error)  # type: ignore[attr-defined]
            return
        try:
            body.delay(values)
        except psycopg.Error:
            raise
        except Exception as error:
            logger.exception("Chord callback for %r raised: %r", group_id, error)
            self.chord_error_from_stack(  # type: ignore[attr-defined]
                body, _create_chord_error_with_cause(message=f"Callback error: {error!r}", original_exc=error))

    def _values(self, group_id: str) -> list[Any]:
        """What the body gets. Raises ChordError when a part of the header failed."""
        by_task: dict[str, Any] = {}
        flat: list[Any] = []
        for task_id, state, text, binary in self._run("chord_parts", (group_id,)):
            value = self.decode(text if binary is None else bytes.fromhex(binary[2:]))  # type: ignore[attr-defined]
            if state in states.EXCEPTION_STATES:
                value = self.exception_to_python(value)  # type: ignore[attr-defined]
            if state in states.PROPAGATE_STATES:
                raise _create_chord_error_with_cause(message=f"Dependency {task_id} raised {value!r}", original_exc=value)
            by_task[task_id] = value
            flat.append(value)
        [[text, binary]] = self._run("chord_header", (group_id,))
        self._run("forget_chord_parts", (group_id,))
        if text is None and binary is None:
            return flat
        header = self.decode(text if binary is None else bytes.fromhex(binary[2:]))  # type: ignore[attr-defined]
        return [_value_of(result, by_task) for result in result_from_tuple(header["result"], self.app).results]


def _value_of(result: Any, by_task: dict[str, Any]) -> Any:
    """The value of one header result. All leaves of nested groups are parts of the chord, so nobody waits here."""
    if isinstance(result, ResultSet):
        return [_value_of(child, by_task) for child in result.results or []]
    return by_task[result.id]

