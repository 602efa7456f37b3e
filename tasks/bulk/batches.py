"""A batch: planned from attendees, issued when somebody has said yes, followed until it has ended, resumed when some failed."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import psycopg
from sqlalchemy import Connection, Engine, delete, insert, select, update

from celery_jobqueue.broker import jobs_in
from celery_jobqueue.db.errors import InvalidJob
from celery_jobqueue.db.models import CertificateBatch, CertificateBatchRow
from tasks.app import app
from tasks.bulk import statements
from tasks.bulk.attendees import Attendee, Attendees
from tasks.bulk.errors import BatchError
from tasks.bulk.finish import finish_batch, finisher_id
from tasks.certificate import generate_certificate
from tasks.certificates.expiry import check_expiry
from tasks.certificates.issue import check_event
from tasks.certificates.preview import FORMATS

__all__ = ["BatchOptions", "Plan", "Progress", "drop_batch", "find_batch", "issue_batch", "list_batches", "plan_batch",
           "progress_of", "resume_batch"]

_CHUNK = 1000  # jobs of one INSERT: the sweet spot of Producer.batch(), and what is in memory at a time
_SHOWN = 20  # rows of each kind that a plan tells of; all of them are in the table
Tell = Callable[[int], object]


@dataclass(frozen=True, slots=True)
class BatchOptions:
    """How a batch is issued. email: send each certificate to its row's address. preview: "webp" or "png" beside each PDF.

    priority: 1 (first) … 10 (last); the default lets certificates that somebody waits for go first. archive: a zip at the end.
    expires_on: the last day on which they are valid, YYYY-MM-DD; unsaid, what the design says.

    Raises InvalidJob naming the field.
    """

    priority: int = 6
    email: bool = False
    preview: str | None = None
    archive: bool = True
    max_attempts: int | None = None
    expires_on: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.priority, bool) or not isinstance(self.priority, int) or not 1 <= self.priority <= 10:
            raise InvalidJob(f"priority={self.priority!r} must be a whole number from 1 (first) to 10 (last)")
        if self.preview is not None and self.preview not in FORMATS:
            raise InvalidJob(f"preview={self.preview!r}: there are {', '.join(FORMATS)}")
        if self.max_attempts is not None and (not isinstance(self.max_attempts, int) or self.max_attempts < 1):
            raise InvalidJob(f"max_attempts={self.max_attempts!r} must be at least 1")
        if (day := check_expiry(self.expires_on, datetime.now(UTC).date())) is not None:
            object.__setattr__(self, "expires_on", day.isoformat())  # a date is understood too; the batch's row is JSON


@dataclass(frozen=True, slots=True)
class Plan:
    """What would be issued, and what not. bad, duplicates: the first of them, as (line, name, note)."""

    batch: str
    event: str
    source: str
    described: str
    columns: str
    counts: dict[str, int]
    bad: list[tuple[int, str, str]]
    duplicates: list[tuple[int, str, str]]

    @property
    def good(self) -> int:
        """How many certificates would be issued."""
        return self.counts.get("good", 0)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a batch is. done counts failed ones too; rate is certificates per second of this run; eta in seconds.

    summary: what came out, once everything has ended.
    """

    batch: str
    source: str
    total: int
    done: int
    failed: int
    rate: float | None
    eta: float | None
    started_at: datetime | None
    finished_at: datetime | None
    summary: dict[str, Any] | None


def plan_batch(engine: Engine, attendees: Attendees, *, event_id: object, user_id: str, options: BatchOptions | None = None,
               tell: Tell | None = None) -> Plan:
    """Read the attendees into a batch that has issued nothing, and say what it would issue.

    tell: called with the rows read so far. One transaction: what cannot be read leaves nothing behind. Raises a
    CertificateError for an event that cannot be used, InvalidAttendees.
    """
    options = options or BatchOptions()
    event = check_event(engine, event_id, user_id, options.expires_on)
    with engine.begin() as connection:
        connection.execute(statements.DROP_OLD_DRAFTS)
        batch = connection.execute(insert(CertificateBatch).values(
            event_id=event.id, user_id=user_id, source=attendees.source, options=asdict(options))
            .returning(CertificateBatch.id)).scalar_one()
        _copy(connection, batch, attendees, options, tell)
        connection.execute(statements.MARK_DUPLICATES, {"batch": batch})
        _mark_known(connection, batch)
        states = connection.execute(statements.COUNT_STATES, {"batch": batch}).all()
        return Plan(str(batch), event.name, attendees.source, attendees.described, attendees.columns.described(),
                    {row.state: row.rows for row in states}, _told(connection, batch, "bad"),
                    _told(connection, batch, "duplicate"))


def issue_batch(engine: Engine, batch: str, *, tell: Tell | None = None) -> int:
    """Somebody said yes: one job per certificate, all in one transaction. Returns how many.

    tell: called with the jobs queued so far. What has been issued since the plan is not issued again. Raises BatchError.
    """
    with engine.begin() as connection:
        row = _locked(connection, batch)
        if row.confirmed_at is not None:
            raise BatchError(f"batch {batch} was issued before: resume it to issue what has failed")
        _mark_known(connection, row.id)
        connection.execute(update(CertificateBatch).where(CertificateBatch.id == row.id).values(
            confirmed_at=statements.NOW, started_at=statements.NOW, runs=1))
        queued = connection.execute(statements.QUEUE_GOOD, {"batch": row.id, "run": 1}).rowcount
        _publish(connection, row, 1, queued, tell)
        return queued


def resume_batch(engine: Engine, batch: str, *, tell: Tell | None = None) -> int:
    """Queue again what has no certificate although its job has ended; the zip and the summary are made again.

    Returns how many. Raises BatchError while jobs of the batch are waiting or running.
    """
    with engine.begin() as connection:
        row = _locked(connection, batch)
        if row.confirmed_at is None:
            raise BatchError(f"batch {batch} was never confirmed: issue it")
        params = {"batch": row.id, "finisher": finisher_id(row.id, row.runs)}
        if running := connection.execute(statements.STILL_RUNNING, params).scalar_one():
            raise BatchError(f"batch {batch} is running: {running} of its jobs have not ended")
        run = row.runs + 1
        connection.execute(update(CertificateBatch).where(CertificateBatch.id == row.id).values(
            started_at=statements.NOW, finished_at=None, summary=None, runs=run))
        queued = connection.execute(statements.QUEUE_AGAIN, {"batch": row.id, "run": run}).rowcount
        _publish(connection, row, run, queued, tell)
        return queued


def drop_batch(engine: Engine, batch: str) -> None:
    """Forget a batch that nobody has confirmed. Raises BatchError for one that was."""
    with engine.begin() as connection:
        row = _locked(connection, batch)
        if row.confirmed_at is not None:
            raise BatchError(f"batch {batch} was confirmed: it stays")
        connection.execute(delete(CertificateBatch).where(CertificateBatch.id == row.id))


def progress_of(engine: Engine, batch: str) -> Progress:
    """How far the batch is, read from its jobs. Raises BatchError when there is none."""
    with engine.connect() as connection:
        row = connection.execute(statements.PROGRESS, {"batch": _uuid(batch)}).one_or_none()
    if row is None:
        raise BatchError(f"there is no batch {batch}")
    rate = row.lately / row.seconds if row.lately and row.seconds else None
    left = row.total - row.done
    eta = 0.0 if left == 0 else left / rate if rate else None
    return Progress(batch, row.source, row.total, row.done, row.failed, rate, eta, row.started_at, row.finished_at, row.summary)


def find_batch(engine: Engine, start: str) -> str:
    """The id of the batch whose id begins like this. Raises BatchError unless there is one, and only one."""
    if not start or set(start.lower()) - set("0123456789abcdef-"):
        raise BatchError(f"{start[:80]!r} is not the id of a batch, nor its beginning")
    with engine.connect() as connection:
        found = connection.execute(statements.BATCHES_LIKE, {"start": start.lower()}).scalars().all()
    if len(found) != 1:
        raise BatchError(f"{'no batch begins' if not found else 'several batches begin'} with {start}")
    return str(found[0])


def list_batches(engine: Engine, limit: int = 20) -> list[dict[str, Any]]:
    """The newest batches: id, event, source, created_at, certificates, state (draft, running, ended)."""
    with engine.connect() as connection:
        return [dict(row) for row in connection.execute(statements.NEWEST, {"limit": limit}).mappings()]


def _copy(connection: Connection, batch: uuid.UUID, attendees: Attendees, options: BatchOptions, tell: Tell | None) -> None:
    raw = connection.connection.driver_connection
    assert isinstance(raw, psycopg.Connection)
    with raw.cursor() as cursor, cursor.copy(statements.COPY_ROWS) as copy:
        for number, attendee in enumerate(attendees.rows, 1):
            note = attendee.note or _lacking(attendee, options)
            copy.write_row((batch, attendee.line, attendee.name, attendee.key, attendee.email, "bad" if note else "good", note))
            if tell is not None and number % _CHUNK == 0:
                tell(number)


def _lacking(attendee: Attendee, options: BatchOptions) -> str | None:
    return "email is empty, and certificates shall be sent" if options.email and attendee.email is None else None


def _mark_known(connection: Connection, batch: uuid.UUID) -> None:
    connection.execute(statements.MARK_ISSUED, {"batch": batch})
    connection.execute(statements.MARK_UNDER_WAY, {"batch": batch})


def _told(connection: Connection, batch: uuid.UUID, state: str) -> list[tuple[int, str, str]]:
    row = CertificateBatchRow
    found = connection.execute(select(row.line, row.recipient_name, row.note).where(row.batch_id == batch, row.state == state)
                               .order_by(row.line).limit(_SHOWN))
    return [(line, name, note or "") for line, name, note in found]


def _locked(connection: Connection, batch: str) -> Any:
    row = connection.execute(select(CertificateBatch).where(CertificateBatch.id == _uuid(batch)).with_for_update()).one_or_none()
    if row is None:
        raise BatchError(f"there is no batch {batch}")
    return row


def _uuid(batch: str) -> uuid.UUID:
    try:
        return uuid.UUID(batch)
    except ValueError:
        raise BatchError(f"{batch[:80]!r} is not the id of a batch (a UUID)") from None


def _publish(connection: Connection, batch: Any, run: int, count: int, tell: Tell | None) -> None:
    """The run's jobs as the header of a chord, whose body makes the zip and the summary, whatever became of the jobs.

    Celery's own chord() keeps all messages in memory until the last. Here they go out in pieces, and say themselves what
    chord() would have said for them: their group, their place in it, and the body.
    """
    options, group = batch.options, finisher_id(batch.id, run) + ".jobs"
    finisher = finish_batch.si(str(batch.id)).set(
        task_id=finisher_id(batch.id, run), priority=options["priority"], user_id=batch.user_id)
    if not count:
        with jobs_in(connection):
            finisher.apply_async()
        return
    # A chord with a failure does not run its body but the body's errback: here the same task, as another job.
    body = finisher.clone().set(task_id=None, link_error=[finisher])
    with jobs_in(connection):
        app.backend.apply_chord((group, []), body)
        app.backend.set_chord_size(group, count)
    given = {key: options[key] for key in ("max_attempts",) if options[key] is not None}
    after, queued = 0, 0
    while rows := connection.execute(statements.ROWS_OF_RUN, {
            "batch": batch.id, "run": run, "after": after, "limit": _CHUNK}).all():
        with jobs_in(connection):
            for row in rows:
                kwargs = {"event_id": str(batch.event_id), "recipient_name": row.recipient_name, "user_id": batch.user_id,
                          "recipient_key": row.recipient_key}
                if options["email"]:
                    kwargs["email"] = row.email
                if options["preview"]:
                    kwargs["preview"] = options["preview"]
                if options.get("expires_on"):  # a batch of an older version says nothing
                    kwargs["expires_on"] = options["expires_on"]
                generate_certificate.apply_async(
                    kwargs=kwargs, task_id=row.task_id, priority=options["priority"], user_id=batch.user_id,
                    group_id=group, group_index=queued, chord=body, **given)
                queued += 1
        after = rows[-1].line
        if tell is not None:
            tell(queued)
