"""Is this certificate genuine? And revoking it, with a reason."""

from __future__ import annotations

import hmac
import re
import unicodedata
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Literal, get_args

from sqlalchemy import Engine, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from celery_jobqueue.db.models import Certificate, Event
from tasks.certificates.errors import InvalidRevocation, UnknownCertificate

__all__ = ["REASONS", "Reason", "Verification", "name_matches", "plain_serial", "reinstate", "revoke", "verify"]

Reason = Literal["error", "replaced", "withdrawn"]
#: Why a certificate was revoked, as the table's constraint has it: shown to everybody, so nothing about a person can stand there.
REASONS: tuple[Reason, ...] = get_args(Reason)


@dataclass(frozen=True, slots=True)
class Verification:
    """What everybody who has the serial may know. Of an unknown one every field but `state` is None.

    initials: the first letters of the recipient's first and last name, enough to notice a certificate that was altered.
    """

    state: Literal["valid", "revoked", "expired", "unknown"]
    serial: str | None = None
    event: str | None = None
    organiser: str | None = None
    initials: str | None = None
    issued_on: date | None = None
    expires_on: date | None = None
    revoked_on: date | None = None
    reason: Reason | None = None


def plain_serial(given: str) -> str | None:
    """The serial as it stands on the certificate, however it was typed; None for what cannot be one."""
    digits = re.sub(r"[\s\u2010-\u2015-]+", "", given[:64]).upper()
    if not re.fullmatch(r"[2-9A-HJ-NP-Z]{12}", digits):
        return None
    return "-".join(digits[start:start + 4] for start in range(0, 12, 4))


def verify(engine: Engine, given: str, today: date | None = None) -> Verification:
    """Look the serial up. today: in UTC; a certificate is valid through the whole day it expires on."""
    found = _find(engine, given)
    if found is None:
        return Verification("unknown")
    certificate, event = found
    expired = certificate.expires_on is not None and certificate.expires_on < (today or datetime.now(UTC).date())
    reason = next((known for known in REASONS if known == certificate.revoke_reason), None)
    return Verification(
        state="revoked" if certificate.revoked_at else "expired" if expired else "valid", serial=certificate.serial,
        event=event.name, organiser=event.organiser, initials=_initials(certificate.recipient_name),
        issued_on=certificate.issued_at.astimezone(UTC).date(), expires_on=certificate.expires_on,
        revoked_on=certificate.revoked_at and certificate.revoked_at.astimezone(UTC).date(), reason=reason)


def name_matches(engine: Engine, given: str, name: str) -> bool:
    """Whether this is the name on the certificate, but for case, accents' spelling and spaces. False for an unknown serial."""
    found = _find(engine, given)
    recipient = found[0].recipient_name if found else ""
    return hmac.compare_digest(_folded(recipient).encode(), _folded(name[:1000]).encode()) and found is not None


def revoke(engine: Engine, given: str, reason: str = "withdrawn", note: str | None = None) -> bool:
    """Revoke the certificate; False when it was revoked before, and the first reason stays.

    reason: one of REASONS, shown to whoever verifies. note: why, in words, for the organisers only. Raises UnknownCertificate,
    InvalidRevocation.
    """
    return _change(engine, "select revoke_certificate(:serial, :reason, :note)", serial=plain_serial(given) or given,
                   reason=reason, note=note)


def reinstate(engine: Engine, given: str) -> bool:
    """Take the revocation back; False when the certificate was not revoked. Raises UnknownCertificate."""
    return _change(engine, "select reinstate_certificate(:serial)", serial=plain_serial(given) or given)


def _change(engine: Engine, statement: str, **values: str | None) -> bool:
    try:
        with engine.begin() as connection:
            return bool(connection.execute(text(statement), values).scalar_one())
    except DBAPIError as error:
        state, said = getattr(error.orig, "sqlstate", None), getattr(getattr(error.orig, "diag", None), "message_primary", "")
        if state == "P0002":
            raise UnknownCertificate(said) from error
        if state == "22023":
            raise InvalidRevocation(said) from error
        raise


def _find(engine: Engine, given: str) -> tuple[Certificate, Event] | None:
    serial = plain_serial(given)
    if serial is None:
        return None
    with Session(engine, expire_on_commit=False) as session:
        row = session.execute(select(Certificate, Event).join(Event, Event.id == Certificate.event_id)
                              .where(Certificate.serial == serial)).one_or_none()
        return row and (row[0], row[1])


def _folded(name: str) -> str:
    """What two spellings of one name have in common."""
    return " ".join(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold()).split())


def _initials(name: str) -> str:
    """First letters of the first and the last word. A word of one letter would be the whole name: then it shows nothing."""
    words = name.split()
    shown = [_first_letter(word) for word in (words[:1] + words[1:][-1:])]
    return " ".join(f"{letter}…" if len(letter) < len(word) else "…"
                    for letter, word in zip(shown, words[:1] + words[1:][-1:], strict=True))


def _first_letter(word: str) -> str:
    """The first character with the marks that belong to it."""
    end = 1
    while end < len(word) and unicodedata.category(word[end]) in ("Mn", "Mc", "Me", "Cf"):
        end += 1
    return word[:end]
