"""Issue one certificate: check, render, upload, record. Doing it twice gives the same certificate."""

from __future__ import annotations

import hashlib
import re
import unicodedata
import uuid
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from typing import Any

from sqlalchemy import Engine, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from celery_jobqueue.db.models import Certificate, CertificateConfig, Event, EventOrganiser
from tasks.certificates.design import fill, parse_design
from tasks.certificates.errors import DesignError, InvalidRecipient, MissingConfiguration, NotAllowed, UnknownEvent
from tasks.certificates.render import render
from tasks.certificates.storage import Storage, StorageError

__all__ = ["IssuedCertificate", "check_event_id", "check_name", "issue_certificate"]

LONGEST_NAME = 120
_ALPHABET = "23456789ABCDEFGHJKLMNPQRSTUVWXYZ"  # nothing that is read for something else


@dataclass(frozen=True, slots=True)
class IssuedCertificate:
    """What the application wants to know of a certificate."""

    id: str
    serial: str
    url: str
    storage_key: str
    recipient_name: str

    def as_dict(self) -> dict[str, Any]:
        """For a task's result."""
        return asdict(self)


def check_name(name: object) -> str:
    """The recipient's name in its normal form. Raises InvalidRecipient naming what is wrong."""
    if not isinstance(name, str):
        raise InvalidRecipient(f"recipient_name must be text, not {type(name).__name__}")
    name = re.sub(r"\s+", " ", unicodedata.normalize("NFC", name)).strip()
    if not name:
        raise InvalidRecipient("recipient_name is empty: give the name that stands on the certificate")
    if len(name) > LONGEST_NAME:
        raise InvalidRecipient(f"recipient_name has {len(name)} characters: at most {LONGEST_NAME}")
    for char in name:
        if unicodedata.category(char) in ("Cc", "Cs", "Co", "Cn"):
            raise InvalidRecipient(f"recipient_name holds U+{ord(char):04X}, which is no printable character: remove it")
    return name


def check_event_id(event_id: object) -> uuid.UUID:
    """The event's id. Raises UnknownEvent when it is no UUID."""
    try:
        return event_id if isinstance(event_id, uuid.UUID) else uuid.UUID(str(event_id))
    except ValueError:
        raise UnknownEvent(f"event_id {str(event_id)[:80]!r} is not the id of an event (a UUID)") from None


def issue_certificate(engine: Engine, *, event_id: object, recipient_name: object, user_id: object, storage: Storage,
                      recipient_key: str | None = None) -> IssuedCertificate:
    """Render, upload and record the certificate of one recipient.

    recipient_key tells recipients of the same name apart, for instance an e-mail address. Raises a CertificateError
    when trying again cannot help, StorageError and SQLAlchemy's errors when it may.
    """
    name = check_name(recipient_name)
    event_uuid = check_event_id(event_id)
    user = str(user_id) if user_id not in (None, "") else ""
    key = (recipient_key or name).strip().casefold()
    with Session(engine) as session:
        event, raw_design = _permitted(session, event_uuid, user)
        issued_on = session.scalar(select(Certificate.issued_at).where(
            Certificate.event_id == event_uuid, Certificate.recipient_key == key)) or datetime.now(UTC)
    design = parse_design(raw_design)
    serial = _serial(event_uuid, key)
    values = {
        "recipient_name": name, "event_name": event.name, "event_dates": _dates(event.starts_on, event.ends_on),
        "event_place": event.place, "organiser": event.organiser, "issued_on": _day(issued_on.date()), "serial": serial,
    }
    values["verify_url"] = fill(design.verify_url, {**values, "verify_url": ""})
    content = render(design, values, pictures=lambda picture: _picture(storage, picture))
    storage_key = f"events/{event_uuid}/{serial}.pdf"
    storage.put(storage_key, content, "application/pdf")
    return _record(engine, event_uuid, serial, name, key, user, storage_key, storage.url(storage_key), content, issued_on)


def _permitted(session: Session, event_id: uuid.UUID, user: str) -> tuple[Event, dict[str, Any]]:
    row = session.execute(
        select(Event, CertificateConfig.design, EventOrganiser.user_id)
        .outerjoin(CertificateConfig, CertificateConfig.event_id == Event.id)
        .outerjoin(EventOrganiser, (EventOrganiser.event_id == Event.id) & (EventOrganiser.user_id == user))
        .where(Event.id == event_id)).one_or_none()
    if row is None:
        raise UnknownEvent(f"there is no event {event_id}")
    event, design, organiser = row
    if organiser is None:
        raise NotAllowed(f"user {user!r} may not issue certificates for event {event_id}: "
                         "only its organisers may (table event_organisers)")
    if design is None:
        raise MissingConfiguration(f"event {event_id} has no certificate configuration: add a row to certificate_configs")
    session.expunge(event)
    return event, design


def _record(engine: Engine, event_id: uuid.UUID, serial: str, name: str, key: str, user: str, storage_key: str, url: str,
            content: bytes, issued_on: datetime) -> IssuedCertificate:
    written = insert(Certificate).values(
        event_id=event_id, serial=serial, recipient_name=name, recipient_key=key, user_id=user, storage_key=storage_key,
        url=url, sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content), issued_at=issued_on)
    again = written.on_conflict_do_update(constraint="certificates_recipient", set_={
        "recipient_name": written.excluded.recipient_name, "url": written.excluded.url, "sha256": written.excluded.sha256,
        "size_bytes": written.excluded.size_bytes})
    with engine.begin() as connection:
        certificate_id = connection.execute(again.returning(Certificate.id)).scalar_one()
    return IssuedCertificate(str(certificate_id), serial, url, storage_key, name)


def _serial(event_id: uuid.UUID, key: str) -> str:
    """Deterministic and not to be guessed from another one: 60 bits of a hash over the event's random id."""
    number = int.from_bytes(hashlib.sha256(f"{event_id}\0{key}".encode()).digest()[:8])
    digits = "".join(_ALPHABET[number >> shift & 31] for shift in range(0, 60, 5))
    return "-".join(digits[start:start + 4] for start in range(0, 12, 4))


def _picture(storage: Storage, key: str) -> bytes:
    try:
        if storage.exists(key):
            return storage.open(key)
    except ValueError as error:
        raise DesignError(f"certificate design: {error}") from error
    except StorageError:
        raise
    raise DesignError(f"certificate design: image {key!r} is not in the storage")


_MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
           "December")


def _day(day: date) -> str:
    return f"{day.day} {_MONTHS[day.month - 1]} {day.year}"


def _dates(first: date, last: date) -> str:
    if first == last:
        return _day(first)
    if (first.year, first.month) == (last.year, last.month):
        return f"{first.day}–{_day(last)}"
    if first.year == last.year:
        return f"{first.day} {_MONTHS[first.month - 1]} – {_day(last)}"
    return f"{_day(first)} – {_day(last)}"
