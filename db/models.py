"""SQLAlchemy 2.1 models, for people who query with the ORM. The schema itself comes from db/schema, not from here."""

from __future__ import annotations

import uuid
from datetime import date, datetime, timedelta
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, LargeBinary, SmallInteger, Text, UniqueConstraint, func, text
from sqlalchemy.dialects.postgresql import BIGINT, INTERVAL, JSONB, TIMESTAMP, UUID
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

__all__ = ["Base", "Certificate", "CertificateBatch", "CertificateBatchRow", "CertificateConfig", "CertificateMail", "Event",
           "EventOrganiser", "Job", "Schedule"]

# What belongs to a row goes with it, and the database sees to that.
_OWNED: dict[str, Any] = {"cascade": "all, delete-orphan", "passive_deletes": True}


class Base(DeclarativeBase):
    """Types: text has no length, times know their zone."""

    type_annotation_map = {  # noqa: RUF012  (SQLAlchemy's own idiom)
        str: Text(), datetime: TIMESTAMP(timezone=True), uuid.UUID: UUID(as_uuid=True), dict[str, Any]: JSONB(),
        list[dict[str, Any]]: JSONB(), bytes: LargeBinary(),
    }


class Job(Base):
    """One row of job_queue is one job. To change what a job does use the queue's functions; reading is free."""

    __tablename__ = "job_queue"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, server_default=func.gen_random_uuid())
    status: Mapped[str] = mapped_column(server_default="pending")
    task_name: Mapped[str | None]
    queue: Mapped[str] = mapped_column(server_default="celery")
    priority: Mapped[int] = mapped_column(SmallInteger, server_default=text("5"))
    attempts: Mapped[int] = mapped_column(server_default="0")
    max_attempts: Mapped[int] = mapped_column(server_default="3")
    user_id: Mapped[str | None]
    error_message: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    run_at: Mapped[datetime] = mapped_column(server_default=func.now())
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    expires_at: Mapped[datetime | None]
    worker: Mapped[str | None]
    owner: Mapped[uuid.UUID | None]
    lease: Mapped[uuid.UUID | None]
    leased_until: Mapped[datetime | None]
    at_most_once: Mapped[bool] = mapped_column(server_default="false")
    redelivered: Mapped[bool] = mapped_column(server_default="false")
    revoked_at: Mapped[datetime | None]
    total_starts: Mapped[int] = mapped_column(server_default="0")
    task_id: Mapped[str] = mapped_column(server_default=text("gen_random_uuid()::text"))
    state: Mapped[str | None]
    result: Mapped[str | None]
    result_binary: Mapped[bytes | None]
    result_meta: Mapped[str | None]
    traceback: Mapped[str | None]
    errors: Mapped[list[dict[str, Any]] | None]
    reply_to: Mapped[str | None]
    envelope: Mapped[str | None]
    payload: Mapped[str | None]
    payload_binary: Mapped[bytes | None]
    suspect: Mapped[bool] = mapped_column(server_default="false")


class Schedule(Base):
    """A task that `celery beat -S postgresql` sends again and again. Change it as you like; beats see it within seconds."""

    __tablename__ = "schedule"
    __table_args__ = {"schema": "jobqueue"}  # noqa: RUF012  (SQLAlchemy's own idiom)

    name: Mapped[str] = mapped_column(primary_key=True)
    task: Mapped[str]
    schedule: Mapped[str]
    timezone: Mapped[str | None]
    args: Mapped[list[Any]] = mapped_column(JSONB, server_default=text("'[]'"))
    kwargs: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))
    options: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))
    enabled: Mapped[bool] = mapped_column(server_default="true")
    next_run_at: Mapped[datetime | None]
    last_run_at: Mapped[datetime | None]
    total_runs: Mapped[int] = mapped_column(BIGINT, server_default=text("0"))
    last_error: Mapped[str | None]
    source: Mapped[str] = mapped_column(server_default="sql")
    app: Mapped[str | None]
    in_code: Mapped[bool] = mapped_column(server_default="false")
    every: Mapped[timedelta | None] = mapped_column(INTERVAL)
    changed_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Event(Base):
    """What certificates are issued for."""

    __tablename__ = "events"
    __table_args__ = (CheckConstraint("ends_on >= starts_on", name="events_dates"),)

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, server_default=func.gen_random_uuid())
    name: Mapped[str]
    starts_on: Mapped[date]
    ends_on: Mapped[date]
    place: Mapped[str] = mapped_column(server_default="")
    organiser: Mapped[str] = mapped_column(server_default="")
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())

    config: Mapped[CertificateConfig | None] = relationship(back_populates="event", **_OWNED)
    organisers: Mapped[list[EventOrganiser]] = relationship(back_populates="event", **_OWNED)


class EventOrganiser(Base):
    """A user who may issue certificates for an event."""

    __tablename__ = "event_organisers"

    event_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("events.id", ondelete="CASCADE"), primary_key=True)
    user_id: Mapped[str] = mapped_column(primary_key=True)

    event: Mapped[Event] = relationship(back_populates="organisers")


class CertificateConfig(Base):
    """How an event's certificates look."""

    __tablename__ = "certificate_configs"

    event_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("events.id", ondelete="CASCADE"), primary_key=True)
    design: Mapped[dict[str, Any]]
    serial_secret: Mapped[uuid.UUID] = mapped_column(server_default=func.gen_random_uuid())
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())

    event: Mapped[Event] = relationship(back_populates="config")


class Certificate(Base):
    """A certificate that was issued: one per event and recipient."""

    __tablename__ = "certificates"
    __table_args__ = (UniqueConstraint("event_id", "recipient_key", name="certificates_recipient"),)

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, server_default=func.gen_random_uuid())
    event_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("events.id", ondelete="RESTRICT"))
    serial: Mapped[str] = mapped_column(unique=True)
    recipient_name: Mapped[str]
    recipient_key: Mapped[str]
    user_id: Mapped[str]
    storage_key: Mapped[str]
    url: Mapped[str]
    sha256: Mapped[str]
    size_bytes: Mapped[int]
    issued_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_on: Mapped[date | None]
    revoked_at: Mapped[datetime | None]
    revoke_reason: Mapped[str | None]
    revoke_note: Mapped[str | None]


class CertificateBatch(Base):
    """Many certificates at once; without `confirmed_at` nobody has said yes, and nothing is issued."""

    __tablename__ = "certificate_batches"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, server_default=func.gen_random_uuid())
    event_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("events.id", ondelete="CASCADE"))
    user_id: Mapped[str]
    source: Mapped[str]
    options: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    runs: Mapped[int] = mapped_column(server_default="0")
    confirmed_at: Mapped[datetime | None]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    summary: Mapped[dict[str, Any] | None]


class CertificateBatchRow(Base):
    """One attendee of a batch."""

    __tablename__ = "certificate_batch_rows"

    batch_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("certificate_batches.id", ondelete="CASCADE"), primary_key=True)
    line: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    recipient_name: Mapped[str]
    recipient_key: Mapped[str]
    email: Mapped[str | None]
    state: Mapped[str]
    note: Mapped[str | None]
    run: Mapped[int | None]
    task_id: Mapped[str | None]


class CertificateMail(Base):
    """A certificate's file that is or was sent to an address: once."""

    __tablename__ = "certificate_mails"

    certificate_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("certificates.id", ondelete="CASCADE"), primary_key=True)
    email: Mapped[str] = mapped_column(primary_key=True)
    sha256: Mapped[str] = mapped_column(primary_key=True)
    message_id: Mapped[str]
    queued_at: Mapped[datetime] = mapped_column(server_default=func.now())
    sent_at: Mapped[datetime | None]
