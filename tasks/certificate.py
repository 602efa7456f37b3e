"""The certificate task, and the optional ones after it."""

from __future__ import annotations

import uuid
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, select, text
from sqlalchemy.dialects.postgresql import insert

from celery_jobqueue.broker import finish_in, jobs_in
from celery_jobqueue.db.models import Certificate, CertificateMail, Event
from tasks.app import app, engine
from tasks.certificates.errors import CertificateError, InvalidRecipient
from tasks.certificates.issue import LINK_LIFETIME, IssuedCertificate, issue_certificate
from tasks.certificates.mail import Mailbox, check_email, letter, message_id
from tasks.certificates.preview import FORMATS, picture_of
from tasks.certificates.signing import Signer, signer_from_environment
from tasks.certificates.storage import Storage, storage_from_url

__all__ = ["generate_certificate", "preview_certificate", "send_certificate", "storage"]

_AFTERWARDS = 8  # priority of what can wait until the certificates are there


# Wrong arguments stay wrong, however often they are tried.
@app.task(  # type: ignore[untyped-decorator,unused-ignore]
    name="tasks.generate_certificate", bind=True, dont_autoretry_for=(TypeError,))
def generate_certificate(self: Any, event_id: str, recipient_name: str, user_id: str, recipient_key: str | None = None,
                         email: str | None = None, preview: str | None = None, expires_on: str | None = None) -> dict[str, Any]:
    """Issue one certificate: check, render, upload, record.

    email: then send it there (tasks.send_certificate). preview: then make a picture, "webp" or "png"
    (tasks.preview_certificate). expires_on: the last day on which it is valid, YYYY-MM-DD; unsaid, what the design says.

    Returns its id, serial, url, storage_key and recipient_name. A wrong event, user, name or design is a final error; a database
    or storage that does not answer is tried again until max_attempts. Running twice gives one certificate; record, the job's
    completion and the next tasks are one commit.
    """
    address = None if email is None else check_email(email)
    if preview is not None and preview not in FORMATS:
        raise InvalidRecipient(f"preview={preview!r}: there are {', '.join(FORMATS)}")

    def progress(done: int, total: int) -> None:
        self.update_state(state="PROGRESS", meta={"done": done, "total": total})

    def then(connection: Connection, issued: IssuedCertificate) -> None:
        if address is not None or preview is not None:
            with jobs_in(connection):
                if address is not None:
                    send_certificate.apply_async((issued.id, address), user_id=user_id, priority=_AFTERWARDS)
                if preview is not None:
                    preview_certificate.apply_async((issued.id, preview), user_id=user_id, priority=_AFTERWARDS)
        finish_in(connection, issued.as_dict())

    # One of many has a group that tells how far it is; a person waits for a single one.
    watched = self.request.id is not None and self.request.group is None and not self.request.is_eager
    issued = issue_certificate(engine(), event_id=event_id, recipient_name=recipient_name, user_id=user_id,
                               recipient_key=recipient_key, expires_on=expires_on, storage=storage(),
                               verification_url=app.conf.verification_url,
                               on_step=progress if watched else None, then=then, signer=_signer())
    return issued.as_dict()


@app.task(name="tasks.send_certificate", dont_autoretry_for=(TypeError,))  # type: ignore[untyped-decorator,unused-ignore]
def send_certificate(certificate: str | dict[str, Any], email: str) -> dict[str, Any]:
    """Send a certificate to this address, once: by its id, or as generate_certificate's result in a chain.

    A message whose sending is recorded is not sent again. Killed between the mail server's yes and the record of it, the job
    sends again, with the same Message-ID: SMTP allows no more. Returns message_id and whether this run has sent it.
    """
    address, mailbox = check_email(email), Mailbox.from_environment()
    certificate_id = _id_of(certificate)
    with engine().connect() as connection:
        row = _certificate(connection, certificate_id)
        if row.revoked_at is not None:
            raise CertificateError(f"certificate {row.serial} is revoked: it is not sent")
        identity = message_id(str(row.id), address, row.sha256, mailbox.sender)
        mail = {"certificate_id": row.id, "email": address, "sha256": row.sha256}
        # Who sends the same holds this row until it is sent; a hanging one is waited for, and then this attempt fails.
        connection.execute(text(
            "select set_config('lock_timeout', '60s', true), set_config('idle_in_transaction_session_timeout', '180s', true)"))
        connection.execute(insert(CertificateMail).values(message_id=identity, **mail).on_conflict_do_nothing())
        ours = select(CertificateMail).filter_by(**mail)
        sent = connection.execute(ours.with_for_update()).one().sent_at is not None
        if not sent:
            verify = app.conf.verification_url.replace("{serial}", row.serial)
            mailbox.send(letter(sender=mailbox.sender, name=row.recipient_name, email=address, event=row.name, serial=row.serial,
                                pdf=storage().open(row.storage_key), identity=identity, verify_url=verify))
            connection.execute(text("update certificate_mails set sent_at = clock_timestamp() where certificate_id = "
                                    ":certificate_id and email = :email and sha256 = :sha256"), mail)
        result = finish_in(connection, {"message_id": identity, "sent": not sent})
        connection.commit()
    return result


@app.task(name="tasks.preview_certificate", dont_autoretry_for=(TypeError,))  # type: ignore[untyped-decorator,unused-ignore]
def preview_certificate(certificate: str | dict[str, Any], format: str = "webp", width: int = 1200) -> dict[str, Any]:
    """Make a picture of a certificate beside its PDF: by its id, or as generate_certificate's result in a chain.

    Returns its storage_key and url. Running twice overwrites it.
    """
    with engine().connect() as connection:
        row = _certificate(connection, _id_of(certificate))
    picture = picture_of(storage().open(row.storage_key), format, width)
    key = row.storage_key.removesuffix(".pdf") + f".{format}"
    storage().put(key, picture, FORMATS[format])
    return {"storage_key": key, "url": storage().url(key, LINK_LIFETIME)}


def _id_of(certificate: object) -> uuid.UUID:
    given = certificate.get("id") if isinstance(certificate, dict) else certificate
    try:
        return uuid.UUID(str(given))
    except ValueError:
        raise CertificateError(f"{str(given)[:80]!r} is not the id of a certificate (a UUID)") from None


def _certificate(connection: Connection, certificate_id: uuid.UUID) -> Any:
    row = connection.execute(
        select(Certificate.id, Certificate.serial, Certificate.recipient_name, Certificate.storage_key, Certificate.sha256,
               Certificate.revoked_at, Event.name).join(Event, Event.id == Certificate.event_id)
        .where(Certificate.id == certificate_id)).one_or_none()
    if row is None:
        raise CertificateError(f"there is no certificate {certificate_id}")
    return row


@lru_cache(maxsize=1)
def _signer() -> Signer | None:
    return signer_from_environment()


@lru_cache(maxsize=1)
def storage() -> Storage:
    """Made in the process that runs the task: clients of object storage do not survive a fork."""
    return storage_from_url()
