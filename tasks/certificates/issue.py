"""Issue one certificate: check, render, upload, record. Doing it twice gives the same certificate."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import time
import unicodedata
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import Any
from urllib.parse import quote

from sqlalchemy import Connection, Engine, Text, bindparam, cast, func, select
from sqlalchemy.dialects.postgresql import insert

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
from tasks.certificates.expiry import check_expiry, last_day
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
                      recipient_key: object = None, expires_on: object = None, verification_url: str = "",
                      on_step: Callable[[int, int], None] | None = None,
                      then: Callable[[Connection, IssuedCertificate], object] | None = None,
                      signer: Signer | None = None) -> IssuedCertificate:
    """Render, upload and record the certificate of one recipient.

    recipient_key tells recipients of the same name apart, for instance an e-mail address; expires_on is the last day on which
    the certificate is valid (unsaid: the one that stands, else what the design says); verification_url holds {serial} and counts
    where the design has no verify_url of its own; on_step hears (steps done, steps in all); `then` is called in the record's
    transaction, right before it commits; signer signs the file. Raises a CertificateError when trying again cannot help,
    StorageError and SQLAlchemy's errors when it may.
    """
    name = check_name(recipient_name)
    key = check_key(recipient_key) or name.casefold()
    event_uuid, user = check_event_id(event_id), check_user(user_id)
    tell = on_step or (lambda *_: None)
    while True:
        # One transaction from the first look to the record: every round trip counts where a thousand are issued.
        with engine.connect() as connection:
            facts = _facts(connection, event_uuid, user, key)
            if facts.revoked_at is not None:
                raise CertificateRevoked(f"certificate {facts.serial} of this recipient was revoked on "
                                         f"{_day(facts.revoked_at.date())}: reinstate it before it is issued again")
            serial = facts.serial or _serial(facts.serial_secret, event_uuid, key)
            issued_at = facts.issued_at or datetime.now(UTC)
            design = _design(facts.design)
            issued_on = issued_at.astimezone(UTC).date()
            expires = _expires(design, expires_on, facts.expires_on, issued_on)
            values = _values(design, facts, name, serial, issued_on, expires, verification_url)
            tell(1, 3)
            content = render(design, values, pictures=lambda key: _picture(storage, key), issued_on=issued_on)
            storage_key = f"events/{event_uuid}/{serial}.pdf"
            if signer is not None:
                stands_there = storage.open(storage_key) if storage.exists(storage_key) else b""
                content = signer.sign(content, reason=f"Issued by {facts.organiser}", before=stands_there)
            tell(2, 3)
            row = connection.execute(_RECORD, {
                "event_id": event_uuid, "serial": serial, "recipient_name": name, "recipient_key": key, "user_id": user,
                "storage_key": storage_key, "url": storage.location(storage_key), "size_bytes": len(content),
                "sha256": hashlib.sha256(content).hexdigest(), "issued_at": issued_at, "expires_on": expires}).one()
            if (row.serial, row.issued_at.astimezone(UTC).date(), row.expires_on) != (serial, issued_on, expires):
                continue  # somebody else was first, perhaps before midnight: once more, with what stands
            # The row's lock makes runs for the same recipient take turns, so that file and row always belong together.
            storage.put(storage_key, content, "application/pdf")
            issued = IssuedCertificate(str(row.id), serial, storage.url(storage_key, LINK_LIFETIME), storage_key, name)
            if then is not None:
                then(connection, issued)
            connection.commit()
        return issued


def check_event(engine: Engine, event_id: object, user_id: object, expires_on: object = None) -> Any:
    """The event's id and name, if this user may issue certificates for it today and its design can be used.

    expires_on: as for issue_certificate(). Raises a CertificateError.
    """
    with engine.connect() as connection:
        facts = _facts(connection, check_event_id(event_id), check_user(user_id), "")
    _expires(_design(facts.design), expires_on, None, datetime.now(UTC).date())
    return facts


# Made once: to build statements takes longer than to run them. A run that hangs, perhaps on a frozen machine, must not hold
# up the next one for ever: hence the two limits, which end with the transaction.
_FACTS = (
    select(func.set_config("lock_timeout", "30s", True),
           func.set_config("idle_in_transaction_session_timeout", "120s", True),
           Event.id, Event.name, Event.starts_on, Event.ends_on, Event.place, Event.organiser,
           cast(CertificateConfig.design, Text).label("design"), CertificateConfig.serial_secret, EventOrganiser.user_id,
           Certificate.serial, Certificate.issued_at, Certificate.expires_on, Certificate.revoked_at)
    .outerjoin(CertificateConfig, CertificateConfig.event_id == Event.id)
    .outerjoin(EventOrganiser, (EventOrganiser.event_id == Event.id) & (EventOrganiser.user_id == bindparam("user")))
    .outerjoin(Certificate, (Certificate.event_id == Event.id) & (Certificate.recipient_key == bindparam("key")))
    .where(Event.id == bindparam("event")))

# The row stays locked until the transaction ends; what comes back is what stands then.
_INSERT = insert(Certificate)
_RECORD = _INSERT.on_conflict_do_update(
    constraint="certificates_recipient",
    set_={column: _INSERT.excluded[column] for column in ("recipient_name", "url", "sha256", "size_bytes")}
    | {"expires_on": func.coalesce(_INSERT.excluded.expires_on, Certificate.expires_on)},
).returning(Certificate.id, Certificate.serial, Certificate.issued_at, Certificate.expires_on)


@lru_cache(maxsize=64)
def _design(text: str) -> Design:
    """The design in this JSON. A thousand certificates of an event have the same, and to check it takes half a millisecond."""
    return parse_design(json.loads(text))


def _values(design: Design, event: Any, name: str, serial: str, issued_on: date, expires_on: date | None,
            verification_url: str) -> dict[str, str]:
    values = {
        **design.fields,
        "recipient_name": name, "event_name": event.name, "event_dates": _dates(event.starts_on, event.ends_on),
        "event_place": event.place, "organiser": event.organiser, "issued_on": _day(issued_on),
        "expires_on": _day(expires_on) if expires_on else "", "serial": serial}
    quoted = {name: quote(value, safe="") for name, value in values.items()}
    # A setting may hold braces that mean nothing here: only {serial} is replaced.
    address = fill(design.verify_url, quoted) if design.verify_url else verification_url.replace("{serial}", quoted["serial"])
    return values | {"verify_url": address}


def _expires(design: Design, given: object, standing: date | None, issued_on: date) -> date | None:
    """The last day: what is asked for, else what the certificate says already, else what the design says."""
    return check_expiry(given, issued_on) or standing or last_day(design.valid_for, design.expires_on, issued_on)


def _facts(connection: Connection, event_id: uuid.UUID, user: str, key: str) -> Any:
    """Event, design and the recipient's certificate as it stands, for a user who may issue. Raises a CertificateError."""
    row = connection.execute(_FACTS, {"event": event_id, "user": user, "key": key}).one_or_none()
    if row is None:
        raise UnknownEvent(f"there is no event {event_id}")
    if row.user_id is None:
        raise NotAllowed(f"user {user!r} may not issue certificates for event {event_id}: "
                         "only its organisers may (table event_organisers)")
    if row.design is None:
        raise MissingConfiguration(f"event {event_id} has no certificate configuration: add a row to certificate_configs")
    return row


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
