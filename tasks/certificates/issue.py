"""Issue one certificate: check, render, upload, record. Doing it twice gives the same certificate."""

from __future__ import annotations

import hashlib
import hmac
import re
import time
import unicodedata
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any
from urllib.parse import quote

from sqlalchemy import Connection, Engine, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from celery_jobqueue.db.models import Certificate, CertificateConfig, Event, EventOrganiser
from tasks.certificates.design import Design, fill, parse_design
from tasks.certificates.errors import (
    CertificateRevoked,
    DesignError,
    InvalidRecipient,
    InvalidUser,
    MissingConfiguration,
    NotAllowed,
    UnknownEvent,
)
from tasks.certificates.parts import markup_in
from tasks.certificates.render import render
from tasks.certificates.signing import Signer
from tasks.certificates.storage import Storage

__all__ = ["LINK_LIFETIME", "IssuedCertificate", "check_event", "check_event_id", "check_key", "check_name", "check_user",
           "issue_certificate"]

LONGEST_NAME = 120
LONGEST_ID = 200
LINK_LIFETIME = timedelta(days=7)  # as long as results are kept, and as long as S3 allows
_ALPHABET = "23456789ABCDEFGHJKLMNPQRSTUVWXYZ"  # nothing that is read for something else
_JOINERS = "\u200c\u200d"  # invisible, but Persian and Indic spelling needs them


@dataclass(frozen=True, slots=True)
class IssuedCertificate:
    """What the application wants to know of a certificate. url: a link to the file."""

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
    if len(name) <= 10 * LONGEST_NAME:  # normalising may shorten it; megabytes are not worth the work
        name = re.sub(r"\s+", " ", unicodedata.normalize("NFC", name)).strip()
    if len(name) > LONGEST_NAME:
        raise InvalidRecipient(f"recipient_name has {len(name)} characters: at most {LONGEST_NAME}")
    if markup := markup_in(name):
        raise InvalidRecipient(f"recipient_name holds HTML ({markup}): write the name as it is read")
    for char in name:
        category = unicodedata.category(char)
        if category in ("Cc", "Cs", "Co", "Cn") or (category == "Cf" and char not in _JOINERS):
            raise InvalidRecipient(f"recipient_name holds U+{ord(char):04X}, which is no printable character: remove it")
    if not any(unicodedata.category(char)[0] in "LN" for char in name):
        raise InvalidRecipient("recipient_name is empty: give the name that stands on the certificate" if not name else
                               f"recipient_name {name!r} holds no letter: give the name that stands on the certificate")
    return name


def check_key(key: object) -> str | None:
    """What tells recipients of one name apart, in its normal form; None when nothing is given. Raises InvalidRecipient."""
    if key is None:
        return None
    if not isinstance(key, str):
        raise InvalidRecipient(f"recipient_key must be text, not {type(key).__name__}")
    return _identifier(key, "recipient_key", InvalidRecipient).casefold() or None


def check_user(user_id: object) -> str:
    """The user's id. Raises InvalidUser naming what is wrong."""
    if not isinstance(user_id, str) or not user_id.strip():
        raise InvalidUser("user_id is empty: say whose job it is" if user_id is None or isinstance(user_id, str) else
                          f"user_id must be text, not {type(user_id).__name__}")
    _identifier(user_id, "user_id", InvalidUser)
    return user_id


def check_event_id(event_id: object) -> uuid.UUID:
    """The event's id. Raises UnknownEvent when it is no UUID."""
    try:
        return event_id if isinstance(event_id, uuid.UUID) else uuid.UUID(str(event_id))
    except ValueError:
        raise UnknownEvent(f"event_id {str(event_id)[:80]!r} is not the id of an event (a UUID)") from None


def _identifier(value: str, field: str, error: type[InvalidRecipient | InvalidUser]) -> str:
    if len(value) > LONGEST_ID:
        raise error(f"{field} has {len(value)} characters: at most {LONGEST_ID}")
    value = unicodedata.normalize("NFC", value).strip()
    for char in value:
        if unicodedata.category(char) in ("Cc", "Cs"):
            raise error(f"{field} holds U+{ord(char):04X}, which is no printable character: remove it")
    return value


def issue_certificate(engine: Engine, *, event_id: object, recipient_name: object, user_id: object, storage: Storage,
                      recipient_key: object = None, verification_url: str = "",
                      on_step: Callable[[int, int], None] | None = None,
                      then: Callable[[Connection, IssuedCertificate], object] | None = None,
                      signer: Signer | None = None) -> IssuedCertificate:
    """Render, upload and record the certificate of one recipient.

    recipient_key tells recipients of the same name apart, for instance an e-mail address; verification_url holds {serial}
    and counts where the design has no verify_url of its own; on_step hears (steps done, steps in all); `then` is called in
    the record's transaction, right before it commits; signer signs the file. Raises a CertificateError when trying again cannot
    help, StorageError and SQLAlchemy's errors when it may.
    """
    name = check_name(recipient_name)
    key = check_key(recipient_key) or name.casefold()
    event_uuid, user = check_event_id(event_id), check_user(user_id)
    tell = on_step or (lambda *_: None)
    while True:
        with Session(engine) as session:
            event, config = _permitted(session, event_uuid, user)
            serial, issued_at = _standing(session, event_uuid, key) or (_serial(config.serial_secret, event_uuid, key),
                                                                        datetime.now(UTC))
        design = parse_design(config.design)
        values = _values(design, event, name, serial, issued_at, verification_url)
        tell(1, 3)
        content = render(design, values, pictures=lambda key: _picture(storage, key), issued_on=issued_at.astimezone(UTC).date())
        place = f"events/{event_uuid}/{serial}.pdf"
        if signer is not None:
            stands_there = storage.open(place) if storage.exists(place) else b""
            content = signer.sign(content, reason=f"Issued by {event.organiser}", before=stands_there)
        tell(2, 3)
        record: dict[str, Any] = {
            "event_id": event_uuid, "serial": serial, "recipient_name": name, "recipient_key": key, "user_id": user,
            "storage_key": place, "sha256": hashlib.sha256(content).hexdigest(),
            "size_bytes": len(content), "issued_at": issued_at}
        with engine.connect() as connection:
            certificate_id, standing, stands = _record(connection, record, storage)
            if standing != serial or stands.astimezone(UTC).date() != issued_at.astimezone(UTC).date():
                continue  # somebody else was first, before midnight: once more, with the serial and the date that stand
            # The row's lock makes runs for the same recipient take turns, so that file and row always belong together.
            storage.put(place, content, "application/pdf")
            issued = IssuedCertificate(str(certificate_id), serial, storage.url(place, LINK_LIFETIME), place, name)
            if then is not None:
                then(connection, issued)
            connection.commit()
        return issued


def check_event(engine: Engine, event_id: object, user_id: object) -> Event:
    """The event, if this user may issue certificates for it and its design can be used. Raises a CertificateError."""
    with Session(engine) as session:
        event, config = _permitted(session, check_event_id(event_id), check_user(user_id))
    parse_design(config.design)
    return event


def _values(design: Design, event: Event, name: str, serial: str, issued_at: datetime, verification_url: str) -> dict[str, str]:
    values = {
        **design.fields,
        "recipient_name": name, "event_name": event.name, "event_dates": _dates(event.starts_on, event.ends_on),
        "event_place": event.place, "organiser": event.organiser, "issued_on": _day(issued_at.astimezone(UTC).date()),
        "serial": serial}
    quoted = {name: quote(value, safe="") for name, value in values.items()}
    # A setting may hold braces that mean nothing here: only {serial} is replaced.
    address = fill(design.verify_url, quoted) if design.verify_url else verification_url.replace("{serial}", quoted["serial"])
    return values | {"verify_url": address}


def _permitted(session: Session, event_id: uuid.UUID, user: str) -> tuple[Event, CertificateConfig]:
    row = session.execute(
        select(Event, CertificateConfig, EventOrganiser.user_id)
        .outerjoin(CertificateConfig, CertificateConfig.event_id == Event.id)
        .outerjoin(EventOrganiser, (EventOrganiser.event_id == Event.id) & (EventOrganiser.user_id == user))
        .where(Event.id == event_id)).one_or_none()
    if row is None:
        raise UnknownEvent(f"there is no event {event_id}")
    event, config, organiser = row
    if organiser is None:
        raise NotAllowed(f"user {user!r} may not issue certificates for event {event_id}: "
                         "only its organisers may (table event_organisers)")
    if config is None:
        raise MissingConfiguration(f"event {event_id} has no certificate configuration: add a row to certificate_configs")
    session.expunge_all()
    return event, config


def _standing(session: Session, event_id: uuid.UUID, key: str) -> tuple[str, datetime] | None:
    """Serial and date of the recipient's certificate, when there is one."""
    row = session.execute(
        select(Certificate.serial, Certificate.issued_at, Certificate.revoked_at)
        .where(Certificate.event_id == event_id, Certificate.recipient_key == key)).one_or_none()
    if row is not None and row.revoked_at is not None:
        raise CertificateRevoked(f"certificate {row.serial} of this recipient was revoked on {_day(row.revoked_at.date())}: "
                                 "reinstate it before it is issued again")
    return row and (row.serial, row.issued_at)


def _record(connection: Connection, record: Mapping[str, Any], storage: Storage) -> tuple[uuid.UUID, str, datetime]:
    """Write the row and keep it locked until the transaction ends; (id, serial, issued_at) as they stand then."""
    # A run that hangs, perhaps on a frozen machine, must not hold up the next one for ever.
    connection.execute(text(
        "select set_config('lock_timeout', '30s', true), set_config('idle_in_transaction_session_timeout', '120s', true)"))
    written = insert(Certificate).values(url=storage.location(record["storage_key"]), **record)
    changed = ("recipient_name", "url", "sha256", "size_bytes")
    again = written.on_conflict_do_update(
        constraint="certificates_recipient", set_={column: written.excluded[column] for column in changed})
    row = connection.execute(again.returning(Certificate.id, Certificate.serial, Certificate.issued_at)).one()
    return row.id, row.serial, row.issued_at


def _serial(secret: uuid.UUID, event_id: uuid.UUID, key: str) -> str:
    """60 bits: the same whenever it is tried again, and not to be worked out from event and recipient without the secret."""
    number = int.from_bytes(hmac.digest(secret.bytes, f"{event_id}\0{key}".encode(), "sha256")[:8])
    digits = "".join(_ALPHABET[number >> shift & 31] for shift in range(0, 60, 5))
    return "-".join(digits[start:start + 4] for start in range(0, 12, 4))


_pictures: dict[tuple[str, int], bytes] = {}


def _picture(storage: Storage, key: str) -> bytes:
    """A file of the design. Read once a minute and process: a thousand certificates of an event need it a thousand times."""
    try:
        place = (storage.location(key), int(time.monotonic() // 60))
        if place not in _pictures:
            if not storage.exists(key):
                raise DesignError(f"certificate design: image {key!r} is not in the storage")
            if len(_pictures) >= 16:
                _pictures.clear()
            _pictures[place] = storage.open(key)
        return _pictures[place]
    except ValueError as error:
        raise DesignError(f"certificate design: image: {error}") from error


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
