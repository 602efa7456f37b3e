"""One PostgreSQL connection, for calls that wait and for calls that do not.

Everything goes through libpq's pipeline mode: the statements of one batch travel in one round trip and commit together, or as
two transactions where the first is to be answered before the second is on disk.
`run` waits for the answer; `send` returns at once and `on_readable` brings the answer later, which is how a worker's
event loop claims and settles jobs without ever blocking. One code path serves both, with a deadline on every wait.
"""

from __future__ import annotations

import atexit
import logging
import os
import select
import threading
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from math import ceil
from time import monotonic
from typing import Any

import psycopg
from psycopg import errors, pq
from psycopg.conninfo import conninfo_to_dict

from celery_jobqueue.broker.batches import Batch, Call, Done, Part
from celery_jobqueue.broker.sql import Statement, statement
from celery_jobqueue.broker.trouble import LOST_STATEMENTS, healed_anew
from celery_jobqueue.broker.wire import Row

__all__ = ["Call", "Row", "Session"]

logger = logging.getLogger(__name__)

_BEGIN, _COMMIT, _ROLLBACK = (Statement("", text) for text in (b"begin", b"commit", b"rollback"))
# Sessions inherited through fork: kept referenced, so that nobody ever closes the parent's socket from the child.
_inherited: list[object] = []
# Connection strings behind which prepared statements were lost: this process prepares none there any more.
_unprepared: set[str] = set()
# For the end of the process: a client that publishes and exits shall not leave open connections to be warned about.
_sessions: weakref.WeakSet[Session] = weakref.WeakSet()


class Session:
    """A connection that knows which process it belongs to.

    conninfo: libpq connection string. prepare: whether named prepared statements may be used (not through a pooler in
    transaction mode); None: where no pooler stands between. timeout: seconds any single wait may last before the connection
    is given up. writes: of several hosts take one that accepts writes, unless the connection string says otherwise.
    """

    def __init__(self, conninfo: str, *, prepare: bool | None = None, timeout: float = 30.0, connect_timeout: int = 5,
                 writes: bool = True) -> None:
        self.conninfo = conninfo
        self.timeout = timeout
        self.connect_timeout = connect_timeout
        #: The server itself answers; otherwise somebody between us and it (PgBouncer in any mode, and its like).
        self.direct = False
        #: The server takes no writes: a standby, before or after a failover.
        self.read_only = False
        self._writes = writes
        self._said_prepare = prepare
        self.notified: deque[str] = deque()  # channels of notifications not looked at yet
        self._prepare = bool(prepare)
        self._prepared: set[str] = set()
        self._conn: psycopg.Connection[Any] | None = None
        self._pid = 0
        self._batch: Batch | None = None
        self._lock = threading.RLock()
        self.in_transaction = False
        self._begun = False
        self._since = 0.0  # when the connection was made, in monotonic seconds

    # -- life ---------------------------------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Whether this process holds a live connection; a look at local flags, no round trip."""
        return self._conn is not None and self._pid == os.getpid() and self._conn.pgconn.status == pq.ConnStatus.OK

    @property
    def busy(self) -> bool:
        """Whether a batch is in flight."""
        return self._batch is not None

    @property
    def overdue(self) -> bool:
        """Whether the answer to the batch in flight should have come by now. The server may hang, or the network be cut."""
        batch = self._batch
        return batch is not None and monotonic() > batch.deadline

    @property
    def server_version(self) -> int:
        """PostgreSQL's number: 180006 is 18.6. Raises psycopg.OperationalError when there is no connection."""
        return self._pgconn().server_version

    @property
    def server_encoding(self) -> str | None:
        """The database's encoding; None where a pooler does not tell. Raises as server_version does."""
        said = self._pgconn().parameter_status(b"server_encoding")
        return None if said is None else said.decode()

    def connect(self) -> None:
        """Open the connection unless it is open. Raises psycopg.OperationalError when the server cannot be reached."""
        with self._lock:
            if self.connected:
                return
            self._drop()
            self._conn = psycopg.connect(
                self.conninfo,
                autocommit=True,
                connect_timeout=self.connect_timeout,
                client_encoding="UTF8",  # whatever the role or PGCLIENTENCODING say: rows_of() decodes it
                # A dead peer is noticed in half a minute, not after the kernel's two hours.
                keepalives_idle=10, keepalives_interval=5, keepalives_count=3, tcp_user_timeout=30_000,
                **(_one_that_writes(self.conninfo) if self._writes else {}),
            )
            self._conn.pgconn.nonblocking = 1
            self._pid, self._since = os.getpid(), monotonic()
            _sessions.add(self)
            self._meet()

    def _meet(self) -> None:
        """Learn whom we talk to. A pooler makes up the process id that it greets with, the server does not."""
        self._prepare = False
        pid = str(self._pgconn().backend_pid)
        answers: list[list[Row]] = []
        try:
            self.send([(statement("meet_server"), (pid, f"{self.timeout / 3:.3f} s"))], answers.extend)
            self._finish(max(self.timeout, self.connect_timeout))
        except psycopg.Error:
            self._drop()
            raise
        [[(direct, read_only, _)]] = answers
        self.direct, self.read_only = direct == "t", read_only == "t"
        self.allow_prepare(self.direct if self._said_prepare is None else self._said_prepare)

    def allow_prepare(self, prepare: bool) -> None:
        """Whether named prepared statements may be used on this connection."""
        self._prepare = prepare and self.conninfo not in _unprepared

    def close(self) -> None:
        """Close the connection; harmless when it is dead, closed, or belongs to another process."""
        with self._lock:
            self._drop()

    def _drop(self) -> None:
        conn, self._conn = self._conn, None
        self._batch = None
        self._prepared.clear()
        if conn is None:
            return
        if self._pid != os.getpid():
            _inherited.append(conn)
            return
        conn.close()

    def __del__(self) -> None:
        # A thread that has ended leaves its session behind; psycopg would complain.
        if self._conn is not None and self._pid == os.getpid():
            self._conn.close()

    def fileno(self) -> int:
        """The socket, for an event loop. Raises psycopg.OperationalError when there is no connection."""
        return self._pgconn().socket

    def _pgconn(self) -> pq.abc.PGconn:
        if not self.connected:
            raise psycopg.OperationalError("the connection to PostgreSQL is closed")
        assert self._conn is not None
        return self._conn.pgconn

    # -- calls --------------------------------------------------------------------------------------------------------

    def run(self, *calls: Call) -> list[list[Row]]:
        """Send the calls as one transaction and wait. Returns the rows of each call.

        Connects when necessary. Raises psycopg.Error; after an error nothing of the batch has happened, unless the
        connection broke while committing.
        """
        with self._lock:
            answers: list[list[Row]] = []
            self.start(calls, answers.extend)
            self._finish()
            return answers

    def start(self, calls: Sequence[Call], done: Done | None = None) -> None:
        """As `run`, without waiting for the answer: the next call does that first, and may raise what this one has caused."""
        with self._lock:
            if self._begun and not self.connected:
                raise psycopg.OperationalError("the connection to PostgreSQL was lost in a transaction")
            self.connect()
            self._finish()
            begins = self.in_transaction and not self._begun
            self._begun = self._begun or begins
            if begins:
                self.send([(_BEGIN, ()), *calls], None if done is None else lambda answers: done(answers[1:]))
            else:
                self.send(calls, done)
            self._finish(sent=True)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """One transaction for every `run` in the block; it begins with the first and commits at the end.

        An exception rolls back. Raises psycopg.Error when a statement failed and the block went on regardless.
        """
        with self._lock:
            assert not self.in_transaction, "no transaction inside of another"
            self.in_transaction = True
            try:
                yield
                if self._begun:
                    if self._pgconn().transaction_status == pq.TransactionStatus.INERROR:  # COMMIT would roll back, silently
                        raise errors.InFailedSqlTransaction("a statement of this transaction failed")
                    self.run((_COMMIT, ()))
            except BaseException:
                if self._begun and self.connected:
                    with suppress(psycopg.Error):
                        self._finish()  # which may raise
                    with suppress(psycopg.Error):
                        self.run((_ROLLBACK, ()))
                raise
            finally:
                self.in_transaction = self._begun = False

    def send(self, calls: Sequence[Call], done: Done | None = None, ahead: tuple[Sequence[Call], Done] | None = None) -> None:
        """Send the calls as one transaction and return; `done` gets the rows of each call once on_readable has them.

        ahead: calls that go out in front as a transaction of their own, and who gets their rows: as soon as they are answered,
        while the others may still wait for the disk. An error of theirs stops nothing and is raised when all is answered.
        """
        with self._lock:
            pgconn = self._pgconn()
            assert self._batch is None, "one batch at a time"
            # All parameters are checked before anything is sent: half a batch would go out together with the next one.
            parts = [Part(*one) for one in ((ahead, (calls, done)) if ahead else ((calls, done),))]
            batch = Batch(parts, monotonic() + self.timeout, self._prepared if self._prepare else None)
            try:
                batch.send(pgconn)
                self._batch = batch
                pgconn.flush()
            except psycopg.Error:
                self._drop()
                raise

    def on_readable(self) -> None:
        """Take in what the server sent: notifications, and the answer of the batch in flight when it is complete.

        Raises psycopg.Error of the batch, psycopg.OperationalError when the connection is gone.
        """
        with self._lock:
            pgconn, batch, finished = self._pgconn(), self._batch, list[Part]()
            try:
                if batch is not None:
                    pgconn.flush()
                pgconn.consume_input()
                if batch is not None:
                    finished = batch.collect(pgconn)
                    if batch.over and batch is self._batch:
                        pgconn.exit_pipeline_mode()
                        self._batch = None
                if pgconn.status != pq.ConnStatus.OK and not (finished and self._batch is None):
                    message = pgconn.error_message.decode(errors="replace").strip()
                    raise psycopg.OperationalError(message or "the connection to PostgreSQL was lost")
                while (notify := pgconn.notifies()) is not None:
                    self.notified.append(notify.relname.decode())
            except psycopg.Error:
                self._drop()
                raise
        for part in finished:
            if part.done is not None and part.error is None:
                part.done(part.answers)
        if finished and batch is not None and batch.over and batch.refused is not None:
            self._refused(batch.refused)

    def _refused(self, part: Part) -> None:
        """Always raises: psycopg.OperationalError with the connection closed where another one will do, else the error."""
        assert part.error is not None
        error = part.error
        prepared = self._prepare and part.failed is not None and part.failed.name not in part.prepares
        reason = healed_anew(error, prepared=prepared, age=monotonic() - self._since)
        if not reason:
            raise error
        self.close()
        if isinstance(error, LOST_STATEMENTS) and self.conninfo not in _unprepared:
            _unprepared.add(self.conninfo)
            logger.warning("%s (%s): this process prepares none any more. Is there a pooler in transaction mode? Then set "
                           "broker_transport_options={'pooled': True}", reason, error)
        raise psycopg.OperationalError(f"{reason}: {error}") from error

    def wants_write(self) -> bool:
        """Whether libpq still holds bytes the kernel would not take; then wait for the socket to be writable too."""
        with self._lock:
            try:
                return self._batch is not None and self._pgconn().flush() == 1
            except psycopg.Error:
                self._drop()
                raise

    def wait(self, timeout: float, *others: int) -> None:
        """Sleep until the server says something, one of the other descriptors is readable, or `timeout` seconds passed."""
        _wait([self.fileno(), *others], [], timeout)

    def finish(self) -> None:
        """Wait for the batch in flight and deliver its answer."""
        with self._lock:
            self._finish()

    def push(self) -> None:
        """Wait until the kernel has all of the batch in flight. Raises as on_readable does."""
        with self._lock:
            self._finish(sent=True)

    def _finish(self, seconds: float | None = None, *, sent: bool = False) -> None:
        """Wait for the answer to the batch in flight; sent: only until the kernel has all of the batch."""
        deadline = monotonic() + (self.timeout if seconds is None else seconds)
        while self._batch is not None:
            unsent = self.wants_write()
            if sent and not unsent:
                return
            left = deadline - monotonic()
            if left <= 0:
                self.give_up()
            socket = self.fileno()
            _wait([socket], [socket] if unsent else [], min(left, 1.0))
            self.on_readable()

    def give_up(self) -> None:
        """Close the connection, because nobody answers on it. Always raises psycopg.OperationalError."""
        self.close()
        raise psycopg.OperationalError(f"PostgreSQL did not answer within {self.timeout:g} s")


def _one_that_writes(conninfo: str) -> dict[str, Any]:
    """The libpq parameter that passes over standbys; only where there is a choice of hosts."""
    said = conninfo_to_dict(conninfo)
    choice = "," in str(said.get("host") or said.get("hostaddr") or "")
    return {"target_session_attrs": "read-write"} if choice and not said.get("target_session_attrs") else {}


def _wait(reading: Sequence[int], writing: Sequence[int], seconds: float) -> None:
    """Sleep until one of the descriptors is ready. select() could only look at the first 1024 of a process."""
    if not hasattr(select, "poll"):  # Windows, eventlet
        select.select(reading, writing, [], max(0.0, seconds))
        return
    poller = select.poll()
    for descriptor in reading:
        poller.register(descriptor, select.POLLIN | (select.POLLOUT if descriptor in writing else 0))
    poller.poll(max(0, ceil(seconds * 1000)))


@atexit.register
def _close_all() -> None:
    for session in list(_sessions):
        # Not through close(): another thread may hold the lock for good.
        if session._conn is not None and session._pid == os.getpid():
            session._conn.close()
