"""A certificate by e-mail, with the standard library.

Settings: SMTP_URL (`smtp://user:password@host:587`, `smtps://…` for TLS from the first byte) and MAIL_FROM
(`Academy <certificates@example.org>`). With `smtp://` the connection is encrypted where the server offers it, and has to be
before a password is sent; `?starttls=no` is for servers in one's own network.
"""

from __future__ import annotations

import hashlib
import os
import re
import smtplib
import ssl
import unicodedata
from contextlib import closing
from dataclasses import dataclass
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import formatdate, parseaddr
from urllib.parse import parse_qsl, unquote, urlsplit

from celery_jobqueue.db.errors import ConfigurationError, JobQueueError
from tasks.certificates.errors import CertificateError, InvalidRecipient

__all__ = ["MailError", "MailRefused", "Mailbox", "check_email", "letter", "message_id"]

_TIMEOUT = 30.0  # seconds for any answer of the server
_LOCAL = re.compile(r"[^\s\"(),:;<>@\[\\\]]{1,64}")
_DOMAIN = re.compile(r"(?=.{1,253}\Z)([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z0-9][a-z0-9-]{0,61}[a-z0-9]")


class MailError(JobQueueError):
    """The mail server could not be reached, or says that trying again may help."""


class MailRefused(CertificateError):
    """The mail server refuses this message or this address for good."""


def check_email(email: object) -> str:
    """The address in its normal form: `name@example.org`, no display name. Raises InvalidRecipient."""
    if not isinstance(email, str):
        raise InvalidRecipient(f"email must be text, not {type(email).__name__}")
    address = unicodedata.normalize("NFC", email).strip()
    local, _, domain = address.rpartition("@")
    try:
        domain = domain.casefold() if domain.isascii() else domain.encode("idna").decode()
    except UnicodeError:
        domain = ""
    plain = _LOCAL.fullmatch(local) and local.isprintable() and ".." not in local and not local.startswith(".")
    if not plain or not _DOMAIN.fullmatch(domain):
        raise InvalidRecipient(f"email {address[:80]!r} is no address: write name@example.org")
    return f"{local}@{domain}"


@dataclass(frozen=True, slots=True)
class Mailbox:
    """Who sends, and through which server. starttls: "yes" where it has to be, "offered" where it can be, "no"."""

    sender: str
    host: str
    port: int
    user: str
    password: str
    tls: bool
    starttls: str

    @classmethod
    def from_environment(cls) -> Mailbox:
        """Raises ConfigurationError naming the variable and the fix; never with the password."""
        sender, url = os.environ.get("MAIL_FROM", "").strip(), os.environ.get("SMTP_URL", "").strip()
        try:
            check_email(parseaddr(sender)[1])
        except InvalidRecipient:
            raise ConfigurationError(f"MAIL_FROM {sender!r}: write Academy <certificates@example.org>") from None
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query))
        if parts.scheme not in ("smtp", "smtps") or not parts.hostname or set(options) - {"starttls"}:
            raise ConfigurationError("SMTP_URL: write smtp://user:password@host:587 or smtps://user:password@host:465")
        try:
            port = parts.port or (465 if parts.scheme == "smtps" else 587 if parts.username else 25)
        except ValueError as error:
            raise ConfigurationError(f"SMTP_URL: {error}") from None
        starttls = options.get("starttls", "yes" if parts.username else "offered")
        if starttls not in ("yes", "offered", "no"):
            raise ConfigurationError(f"SMTP_URL: starttls={starttls!r}: there are yes, offered and no")
        return cls(sender, parts.hostname, port, unquote(parts.username or ""), unquote(parts.password or ""),
                   parts.scheme == "smtps", "no" if parts.scheme == "smtps" else starttls)

    def send(self, message: EmailMessage) -> None:
        """Hand the message over. Raises MailRefused when it never will be taken, MailError when it may be later."""
        where = f"{self.host}:{self.port}"
        try:
            with closing(self._connected()) as server:
                server.send_message(message)
        except smtplib.SMTPAuthenticationError as error:
            raise MailError(f"{where} refuses user {self.user!r} ({_said(error)}): check SMTP_URL") from error
        except smtplib.SMTPRecipientsRefused as error:
            [(address, (code, text)), *_] = error.recipients.items()
            kind = MailRefused if code >= 500 else MailError
            raise kind(f"{where} refuses {address} ({code} {text.decode(errors='replace')})") from error
        except smtplib.SMTPNotSupportedError as error:
            raise MailRefused(f"{where}: {error}") from error
        except smtplib.SMTPResponseException as error:
            kind = MailRefused if error.smtp_code >= 500 else MailError
            raise kind(f"{where} refuses the message ({_said(error)})") from error
        except (smtplib.SMTPException, OSError) as error:
            raise MailError(f"{where}: {error}") from error

    def _connected(self) -> smtplib.SMTP:
        context = ssl.create_default_context()
        server: smtplib.SMTP = (smtplib.SMTP_SSL(self.host, self.port, timeout=_TIMEOUT, context=context) if self.tls else
                                smtplib.SMTP(self.host, self.port, timeout=_TIMEOUT))
        try:
            server.ehlo()
            if self.starttls == "yes" or (self.starttls == "offered" and server.has_extn("starttls")):
                server.starttls(context=context)  # says so where the server cannot
            if self.user:
                server.login(self.user, self.password)
        except BaseException:
            server.close()
            raise
        return server


def _said(error: smtplib.SMTPResponseException) -> str:
    text = error.smtp_error
    return f"{error.smtp_code} {text.decode(errors='replace') if isinstance(text, bytes) else text}"


def message_id(certificate_id: str, email: str, sha256: str, sender: str) -> str:
    """The same for the same file to the same address, so that mail systems can tell a repetition."""
    digest = hashlib.sha256(f"{certificate_id}\0{email}\0{sha256}".encode()).hexdigest()[:32]
    return f"<{digest}@{parseaddr(sender)[1].rpartition('@')[2]}>"


def letter(*, sender: str, name: str, email: str, event: str, serial: str, pdf: bytes, identity: str,
           verify_url: str = "") -> EmailMessage:
    """The message with the certificate attached."""
    local, _, domain = email.rpartition("@")
    shown, address = parseaddr(sender)
    message = EmailMessage()
    message["Subject"] = f"Your certificate: {' '.join(event.split())}"
    message["From"] = Address(shown, addr_spec=address)
    message["To"] = Address(name, local, domain)
    message["Date"] = formatdate(localtime=False, usegmt=True)
    message["Message-ID"] = identity
    message["Auto-Submitted"] = "auto-generated"
    check = f"\nWhoever wants to check it finds it here:\n{verify_url}\n" if verify_url else ""
    message.set_content(f"Dear {name},\n\nyour certificate for {' '.join(event.split())} is attached.\n"
                        f"Its number is {serial}.\n{check}")
    message.add_attachment(pdf, maintype="application", subtype="pdf", filename=f"certificate-{serial}.pdf")
    return message
