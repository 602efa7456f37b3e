"""What is in flight on one connection: statements that went out together in libpq's pipeline mode, and their answers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeAlias

import psycopg
from psycopg import errors, pq

from celery_jobqueue.broker.sql import Statement
from celery_jobqueue.broker.wire import Row, encoded, rows_of

__all__ = ["Batch", "Call", "Done", "Part"]

#: A statement with its parameters as text (bytes for bytea), None for null.
Call: TypeAlias = tuple[Statement, Sequence[str | bytes | None]]
Done: TypeAlias = Callable[[list[list[Row]]], None]

_OK = (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK)


class Part:
    """One transaction of a batch. Raises psycopg.DataError for a parameter that PostgreSQL's text cannot hold."""

    def __init__(self, calls: Sequence[Call], done: Done | None) -> None:
        self.calls = [(statement, [encoded(value) if isinstance(value, str) else value for value in params],
                       [pq.Format.BINARY if isinstance(value, bytes) else pq.Format.TEXT for value in params])
                      for statement, params in calls]
        self.done = done
        self.answers: list[list[Row]] = []
        self.error: psycopg.Error | None = None
        self.failed: Statement | None = None
        #: Names of statements that were not prepared before it.
        self.prepares: set[str] = set()
        self._steps: deque[Statement | None] = deque()  # one answer is due for each; None: a prepare's, which nobody waits for
        self._preparing: deque[str] = deque()

    def send(self, pgconn: pq.abc.PGconn, prepared: set[str] | None, elsewhere: set[str]) -> None:
        """Put it into the connection's buffer. prepared: names known to the server, None: nothing is to be prepared; elsewhere:
        those that parts in front of it prepare, which may fail.
        """
        for statement, values, formats in self.calls:
            if prepared is None or not statement.name or statement.name in elsewhere:
                pgconn.send_query_params(statement.text, values, param_formats=formats)
            else:
                if statement.name not in prepared and statement.name not in self.prepares:
                    pgconn.send_prepare(statement.name.encode(), statement.text)
                    self._steps.append(None)
                    self._preparing.append(statement.name)
                    self.prepares.add(statement.name)
                pgconn.send_query_prepared(statement.name.encode(), values, param_formats=formats)
            self._steps.append(statement)
        pgconn.pipeline_sync()

    def take(self, result: pq.abc.PGresult, prepared: set[str] | None) -> None:
        """The answer to the next step."""
        step = self._steps.popleft() if self._steps else None
        if result.status in _OK:
            if step is not None:
                self.answers.append(rows_of(result))
            elif prepared is not None:
                prepared.add(self._preparing.popleft())
        elif result.status == pq.ExecStatus.FATAL_ERROR and self.error is None:
            self.error, self.failed = errors.error_from_result(result), step


class Batch:
    """Transactions that were sent together. deadline: when all should be answered, in monotonic seconds."""

    def __init__(self, parts: Sequence[Part], deadline: float, prepared: set[str] | None) -> None:
        self.deadline = deadline
        #: Whether everything is answered.
        self.over = False
        #: The first transaction that failed.
        self.refused: Part | None = None
        self._prepared = prepared
        self._parts = deque(parts)

    def send(self, pgconn: pq.abc.PGconn) -> None:
        """Put it into the connection's buffer."""
        pgconn.enter_pipeline_mode()
        elsewhere: set[str] = set()
        for part in self._parts:
            part.send(pgconn, self._prepared, elsewhere)
            elsewhere |= part.prepares

    def collect(self, pgconn: pq.abc.PGconn) -> list[Part]:
        """Take in what has arrived. Returns the transactions that are answered by it.

        Raises psycopg.OperationalError when the connection failed.
        """
        finished: list[Part] = []
        # A signal's handler that waits for this batch collects it in the middle of our doing so.
        while not self.over and not pgconn.is_busy():
            result = pgconn.get_result()
            if not self._parts:
                break
            if result is None:  # the end of one statement's answer
                if pgconn.status != pq.ConnStatus.OK:
                    break
            elif result.status != pq.ExecStatus.PIPELINE_SYNC:
                part = self._parts[0]
                part.take(result, self._prepared)
                if part.error is not None and pgconn.status != pq.ConnStatus.OK:
                    raise psycopg.OperationalError(str(part.error))
            else:
                self.over = len(self._parts) == 1
                part = self._parts.popleft()
                finished.append(part)
                if self.refused is None and part.error is not None:
                    self.refused = part
        return finished
