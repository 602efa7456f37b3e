"""`celery beat -S postgresql`: the schedule is a table, any number of beats share it, and no tick is sent twice.

A beat locks one due row (FOR UPDATE SKIP LOCKED), inserts the job and moves the row to its next tick in one transaction. Nobody
leads: a beat that is killed at any moment leaves a tick that another one sends, or one that has been sent. Only the database's
clock decides what is due. No session state is used, so a pooler in transaction mode is as good as a direct connection.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Sequence
from datetime import datetime
from decimal import Decimal
from hashlib import sha256
from itertools import count
from math import inf
from time import monotonic
from typing import Any
from uuid import UUID

import psycopg
from celery.beat import Scheduler, SchedulingError
from celery.utils.log import get_logger
from kombu.exceptions import OperationalError

from celery_jobqueue.broker.claims import text_array
from celery_jobqueue.broker.collector import collecting, drive
from celery_jobqueue.broker.messages import storable
from celery_jobqueue.broker.schedules import Row, first_tick, moment, next_tick, read_schedule, text_of
from celery_jobqueue.broker.session import Call, Session
from celery_jobqueue.broker.sessions import session_for
from celery_jobqueue.broker.settings import Settings
from celery_jobqueue.broker.sql import statement
from celery_jobqueue.broker.transport import Transport
from celery_jobqueue.db.errors import ConfigurationError, InvalidJob

__all__ = ["DatabaseScheduler"]

logger = get_logger("celery.beat")

#: What is tried again, tick and all, rather than put down to the entry.
_UNREACHABLE = (*Transport.recoverable_connection_errors, OperationalError)
#: How often a tick is tried while the rest of the database answers; then it is the entry's own fault, and others wait for it.
_TRIES = 3


class DatabaseScheduler(Scheduler):  # type: ignore[misc]
    """Keeps the schedule in jobqueue.schedule of the broker's database.

    `schedule` holds the entries of the application's own configuration. They are written into the table when a beat starts; from
    then on the table says what is sent. Changes there are seen within `max_interval` seconds.
    """

    max_interval = 5

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._written = False
        self._pause = 0.0
        self._failure: Exception | None = None
        self._tries: deque[tuple[str, str | None]] = deque(maxlen=100)
        #: Rows that this beat cannot use: as of which change, and until when it does not try again.
        self._useless: dict[str, tuple[str, float]] = {}
        super().__init__(*args, **kwargs)

    @property
    def info(self) -> str:
        """A line of the banner."""
        return f"    . db -> jobqueue.schedule in {self.app.connection_for_write().as_uri()}"

    def setup_schedule(self) -> None:
        """Read the configuration. Raises ConfigurationError when the broker is not ours."""
        self.merge_inplace(self.app.conf.beat_schedule)
        self.install_default_entries(self.schedule)
        self._settings  # noqa: B018  (a wrong broker is told at once)

    @property
    def _settings(self) -> Settings:
        transport = self.connection.transport  # another one after a failover
        if not isinstance(transport, Transport):
            raise ConfigurationError(
                "beat_scheduler 'postgresql' keeps its schedule in the broker's database: broker_url must begin with "
                f"postgresql://, it is {self.connection.as_uri()}")
        return transport.settings

    @property
    def _session(self) -> Session:
        return session_for(self._settings)

    @property
    def _app_name(self) -> str:
        return self.app.main or ""

    @property
    def _mine(self) -> Sequence[str]:
        return (self._app_name, text_array(name for name in self.schedule if _storable(name)))

    # -- ticks ---------------------------------------------------------------------------------------------------------

    def tick(self, *args: Any, **kwargs: Any) -> float:
        """Send the job of one due entry. Returns the seconds until the next look; never raises for a lost connection."""
        try:
            self._ensure_connected()
            if not self._written:
                self._write(self.schedule.values())
                self._session.run((statement("prune_schedule"), self._mine))
                self._written = True
            wait = self._look()
        except (*_UNREACHABLE, psycopg.Error, ConfigurationError) as error:  # a right that was taken away may be given again
            self._pause = min(2 * self._pause or 0.5, self.max_interval)
            logger.error("beat: The schedule cannot be read: %s. Trying again in %s seconds...", error, self._pause)
            self._disconnect()
            return self._pause
        self._pause = 0.0
        return min(wait, self.max_interval)

    def _look(self) -> float:
        session, row = self._session, None
        self._useless = {name: known for name, known in self._useless.items() if known[1] > monotonic()}
        which = (*self._mine, text_array(self._useless), text_array(changed for changed, _ in self._useless.values()))
        try:
            with session.transaction():
                _, taken, [[wait]] = session.run(
                    (statement("limit_transaction"), (f"{session.timeout * 1000:.0f}",)),
                    (statement("take_schedule"), which), (statement("next_schedule"), which))
                if not taken:
                    seconds = float(wait or 0)
                    # What is due and could not be taken is being sent by another beat, or changed by a person.
                    return seconds if seconds > 0 else min(max(0.1, -seconds / 10), 1.0)
                row = Row(*taken[0])  # type: ignore[arg-type]
                self._handle(row, session)
        except psycopg.Error as error:
            if row is None or isinstance(error, _UNREACHABLE) or not session.connected:
                raise
            # PostgreSQL refused the job, and with it the transaction; the row waits for its next tick, or the loop would not end.
            refused = InvalidJob(f"PostgreSQL refused the job: {str(error).splitlines()[0]}")
            logger.error("beat: No job of %r: %s", row.name, refused)
            with session.transaction():
                self._handle(row, session, refused)
        return 0.0

    def _handle(self, row: Row, session: Session, refused: Exception | None = None) -> None:
        try:
            now, due, last_run, changed = _moment(row.now), moment(row.due), moment(row.last_run), _moment(row.changed)
            made = self.schedule[row.name].schedule if row.in_code == "t" else read_schedule(row, self.app)
            since = max(last_run or changed, changed)
            if due is None:
                send, following = False, first_tick(made, last_run, changed, now)
            else:
                send, following = next_tick(made, due, since, now)
            entry = self._entry(row, made, since)
        except Exception as error:
            self._unusable(session, row, error)
            return
        if not send:
            self._save(session, row, following)
            return
        failure = refused or self._send(session, entry, row)
        self._save(session, row, following, None if failure is None else _said(failure), ran=True)

    def _entry(self, row: Row, made: Any, since: datetime) -> Any:
        if row.in_code == "t":
            entry = self.Entry(**dict(self.schedule[row.name], last_run_at=since, total_run_count=int(row.total_runs)))
        else:
            entry = self.Entry(
                name=row.name, task=row.task, schedule=made, args=json.loads(row.args), kwargs=json.loads(row.kwargs),
                options=json.loads(row.options), last_run_at=since, total_run_count=int(row.total_runs), app=self.app)
        headers = {**(entry.options.get("headers") or {}), "periodic_task_name": row.name}
        entry.options = {**entry.options, "headers": headers}
        return entry

    def _unusable(self, session: Session, row: Row, error: Exception) -> None:
        """Leave the row to beats that can use it. What the application's own code calculates may work the next time."""
        logger.error("beat: Cannot calculate the next run of %r: %s", row.name, _said(error))
        self._useless[row.name] = (row.changed, monotonic() + 60 if row.in_code == "t" else inf)
        session.run((statement("blame_schedule"), (row.name, _said(error))))

    def _send(self, session: Session, entry: Any, row: Row) -> Exception | None:
        """Have Celery publish as ever, but into this transaction. Returns why there is no job."""
        self._failure = None
        with collecting(self._settings.conninfo) as published:
            self.apply_entry(entry, producer=self.producer)
        failure: Exception | None = self._failure
        if failure is not None and _is_unreachable(failure) and self._tries.count((row.name, row.due)) < _TRIES - 1:
            self._tries.append((row.name, row.due))
            raise OperationalError(str(failure)) from failure
        numbers = count()
        try:
            drive(published.script(), lambda *calls: session.run(*_numbered(calls, row, numbers)))
        except InvalidJob as error:
            logger.error("beat: No job of %r: %s", row.name, error)
            return error
        return failure

    def apply_async(self, entry: Any, producer: Any = None, advance: bool = True, **kwargs: Any) -> Any:
        """Celery's own; apply_entry, which calls it, logs errors and drops them, and we want to know."""
        try:
            return super().apply_async(entry, producer=producer, advance=advance, **kwargs)
        except Exception as error:
            self._failure = error
            raise

    def _save(self, session: Session, row: Row, due: datetime, error: str | None = None, *, ran: bool = False) -> None:
        session.run((statement("save_schedule"), (
            row.name, row.due, due.isoformat(), error, "1" if ran and error is None else "0", "t" if ran else "f")))

    # -- the configuration's entries -----------------------------------------------------------------------------------

    def add(self, **kwargs: Any) -> Any:
        """One more entry, as if the configuration had it."""
        entry = super().add(**kwargs)
        if self._written:
            self._write([entry])
        return entry

    def _write(self, entries: Any) -> None:
        for entry in list(entries):
            try:
                storable(entry.name, "the entry's name")
                try:
                    self._write_one(entry)
                except (psycopg.DataError, psycopg.IntegrityError):
                    self._write_one(entry, in_code=True)
            except (psycopg.DataError, psycopg.IntegrityError, InvalidJob) as error:
                logger.error("beat: The entry %r cannot be scheduled: %s", entry.name, str(error).splitlines()[0])
        for name, source, app in self._session.run((statement("foreign_schedule"), self._mine))[0]:
            owner = "somebody wrote it" if source == "sql" else f"the application {app!r} has it"
            logger.warning("beat: The schedule's row %r stays as it is: %s", name, owner)

    def _write_one(self, entry: Any, *, in_code: bool = False) -> None:
        text = text_of(entry, in_code=in_code)
        self._session.run((statement("write_schedule"), (
            entry.name, entry.task, text.schedule, text.timezone, text.args, text.kwargs, text.options,
            "t" if text.in_code else "f", self._app_name)))

    # -- life ----------------------------------------------------------------------------------------------------------

    def _disconnect(self) -> None:
        session = session_for(self._settings)
        super().close()  # the producer and its connection; both are made anew, on another host after a failover
        session.close()

    def close(self) -> None:
        """Release the connections. An open transaction ends here: its tick is another beat's."""
        if "connection" in self.__dict__:
            self._disconnect()
        else:
            super().close()


def _moment(seconds: str) -> datetime:
    found = moment(seconds)
    assert found is not None
    return found


def _storable(name: str) -> bool:
    try:
        storable(name, "name")
    except InvalidJob:
        return False
    return True


def _said(error: Exception) -> str:
    """What to write about it. Celery wraps what went wrong while sending."""
    cause = (error.__cause__ or error.__context__ or error) if isinstance(error, SchedulingError) else error
    return f"{type(cause).__name__}: {cause}".replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()[:2000]


def _is_unreachable(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, _UNREACHABLE):
            return True
        error = error.__cause__ or error.__context__
    return False


def _numbered(calls: Sequence[Call], row: Row, numbers: Iterator[int]) -> list[Call]:
    """The same statements with ids that follow from entry and tick, ordered by time as all: the same tick is the same job."""
    def numbered(document: Any) -> Any:
        jobs = json.loads(document) if document else None
        for job in jobs or ():
            job["id"] = _tick_id(row.name, row.due or "", next(numbers))
        return json.dumps(jobs) if jobs else document

    return [(stmt, (numbered(params[0]), numbered(params[1]), *params[2:])) if stmt.name == "publish" else (stmt, params)
            for stmt, params in calls]


def _tick_id(name: str, due: str, number: int) -> str:
    digest = int.from_bytes(sha256(f"{name}\0{due}\0{number}".encode()).digest()[:10])
    millis = int(Decimal(due) * 1000)
    return str(UUID(int=millis << 80 | 0x7 << 76 | (digest >> 62 & 0xFFF) << 64 | 0x2 << 62 | digest & 0x3FFF_FFFF_FFFF_FFFF))
