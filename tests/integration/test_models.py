"""The ORM's models say what the migrated schema is."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from celery import Celery
from sqlalchemy import Engine, create_engine, delete, exc, func, inspect, select, text
from sqlalchemy.orm import Session, selectinload

from celery_jobqueue.db.models import Base, Certificate, CertificateConfig, Event, EventOrganiser, Job
from celery_jobqueue.db.url import sqlalchemy_url
from tests.support.database import rows


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """On a database that was migrated."""
    made = create_engine(sqlalchemy_url(database_url))
    yield made
    made.dispose()


@pytest.fixture
def session(engine: Engine) -> Iterator[Session]:
    with Session(engine) as opened:
        yield opened


def described(engine: Engine, table: str) -> dict[str, Any]:
    """The table as PostgreSQL knows it, whoever made it."""
    seen = inspect(engine)
    schema, _, table = table.rpartition(".")
    where = {"table_name": table, "schema": schema or None}
    return {
        "columns": {column["name"]: (str(column["type"].compile(engine.dialect)), column["nullable"], column["default"])
                    for column in seen.get_columns(**where)},
        "primary key": seen.get_pk_constraint(**where)["constrained_columns"],
        "foreign keys": {tuple(key["constrained_columns"]): (key["referred_table"], key["referred_columns"], key["options"])
                         for key in seen.get_foreign_keys(**where)},
        "unique": {tuple(constraint["column_names"]) for constraint in seen.get_unique_constraints(**where)},
    }


def test_every_table_has_a_model(engine: Engine) -> None:
    modelled = set(Base.metadata.tables)
    assert set(inspect(engine).get_table_names()) == {table for table in modelled if "." not in table}
    # What else is in the queue's own schema is its machinery.
    assert modelled - set(inspect(engine).get_table_names()) == {"jobqueue.schedule"}


@pytest.mark.parametrize("table", sorted(Base.metadata.tables))
def test_models_and_migrations_make_the_same_tables(table: str, engine: Engine, empty_database_url: str) -> None:
    modelled = create_engine(sqlalchemy_url(empty_database_url))
    try:
        rows(empty_database_url, "create schema jobqueue")
        Base.metadata.create_all(modelled)
        assert described(modelled, table) == described(engine, table)
    finally:
        modelled.dispose()


@pytest.mark.parametrize("drift", [
    "add column colour text", "drop column worker cascade", "alter column user_id set not null",
    "alter column priority type integer",
    "alter column max_attempts set default 5", "alter column state set default 'PENDING'", "drop constraint job_queue_pkey",
    "add constraint once unique (task_id)", "alter column run_at type timestamp",
])
def test_drift_is_noticed(drift: str, engine: Engine) -> None:
    before = described(engine, "job_queue")
    with engine.begin() as conn:
        conn.execute(text(f"alter table job_queue {drift}"))
    assert described(engine, "job_queue") != before


def test_defaults_are_the_databases(engine: Engine, session: Session, database_url: str) -> None:
    job = Job(task_name="t.add")
    session.add(job)
    session.commit()
    assert (job.status, job.queue, job.priority, job.attempts, job.max_attempts, job.total_starts) == (
        "pending", "celery", 5, 0, 3, 0)
    assert (job.at_most_once, job.redelivered, job.owner, job.errors) == (False, False, None, None)
    assert isinstance(job.id, uuid.UUID)
    assert job.created_at == job.run_at
    assert abs(datetime.now(UTC) - job.created_at) < timedelta(minutes=1)
    assert uuid.UUID(job.task_id) != job.id
    session.commit()

    rows(database_url, "alter table job_queue alter max_attempts set default 5, alter priority set default 7")
    later = Job(task_name="t.add")
    session.add(later)
    session.commit()
    assert (later.max_attempts, later.priority) == (5, 7)


def test_a_published_job_is_read_with_the_orm(app: Celery, session: Session) -> None:
    result = app.tasks["t.add"].apply_async((1, 2), priority=2, max_attempts=4, user_id="ann")
    other = app.tasks["t.add"].delay(3, 4)
    first, second = session.scalars(select(Job).where(Job.status == "pending").order_by(Job.priority, Job.created_at)).all()
    assert (first.task_id, first.task_name, first.priority, first.max_attempts, first.user_id) == (
        result.id, "t.add", 2, 4, "ann")
    assert (second.task_id, second.user_id) == (other.id, None)
    assert first.payload is not None
    assert "[1, 2]" in first.payload

    lease = session.execute(text("select lease_token from get_next_job()")).scalar_one()
    session.execute(select(func.fail_job(first.id, lease, "boom")))
    session.commit()
    assert first.errors is not None
    assert [entry["error"] for entry in first.errors] == ["boom"]
    assert session.scalar(select(func.count()).select_from(Job).where(Job.error_message == "boom")) == 1


def test_bytes_stay_bytes(session: Session) -> None:
    job = Job(task_name="t.add", payload_binary=b"\0\xff", result_binary=b"")
    session.add(job)
    session.commit()
    assert (job.payload_binary, job.result_binary, job.payload) == (b"\0\xff", b"", None)


@pytest.mark.parametrize("wrong", [
    {"priority": 0}, {"priority": 11}, {"status": "running"}, {"max_attempts": 0}, {"attempts": -1}])
def test_the_databases_checks_hold_for_the_orm_too(wrong: dict[str, Any], session: Session) -> None:
    session.add(Job(task_name="t.add", **wrong))
    with pytest.raises(exc.IntegrityError, match=f"job_queue_{next(iter(wrong))}"):
        session.commit()


def an_event() -> Event:
    return Event(
        name="Conférence", starts_on=date(2026, 5, 1), ends_on=date(2026, 5, 2), organisers=[EventOrganiser(user_id="ann")],
        config=CertificateConfig(design={"title": "Certificate", "colours": ["#fff"]}))


def a_certificate(event: Event, **changed: Any) -> Certificate:
    return Certificate(**{
        "event_id": event.id, "serial": "A-1", "recipient_name": "Zoë", "recipient_key": "zoe@example.org", "user_id": "ann",
        "storage_key": "a/b.pdf", "url": "file:///a/b.pdf", "sha256": "0" * 64, "size_bytes": 7, **changed})


def test_an_event_and_what_belongs_to_it(session: Session) -> None:
    event = an_event()
    session.add(event)
    session.commit()
    session.add(a_certificate(event))
    session.commit()
    session.expunge_all()

    found = session.scalars(select(Event).options(selectinload(Event.organisers), selectinload(Event.config))).one()
    assert (found.name, found.place, found.organiser) == ("Conférence", "", "")
    assert [organiser.user_id for organiser in found.organisers] == ["ann"]
    assert found.config is not None
    assert found.config.design == {"title": "Certificate", "colours": ["#fff"]}
    assert found.config.event is found
    issued = session.scalars(select(Certificate)).one()
    assert (issued.event_id, issued.recipient_name, issued.revoked_at) == (found.id, "Zoë", None)
    assert issued.issued_at.tzinfo is not None

    session.add(a_certificate(found, serial="A-2"))
    with pytest.raises(exc.IntegrityError, match="certificates_recipient"):
        session.commit()


def test_deleting_an_event(session: Session) -> None:
    kept, gone = an_event(), an_event()
    session.add_all([kept, gone])
    session.commit()
    session.add(a_certificate(kept))
    session.commit()
    session.delete(gone)
    session.commit()
    assert session.scalar(select(func.count()).select_from(EventOrganiser)) == 1
    assert session.scalars(select(CertificateConfig.event_id)).all() == [kept.id]
    with pytest.raises(exc.IntegrityError, match="certificates_event_id_fkey"):
        session.execute(delete(Event))
