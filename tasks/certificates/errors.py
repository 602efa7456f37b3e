"""What can be wrong with a certificate. All of these are final: trying again cannot help."""

from __future__ import annotations

from celery_jobqueue.db.errors import FinalError, InvalidJob

__all__ = ["CertificateError", "CertificateRevoked", "DesignError", "InvalidExpiry", "InvalidRecipient", "InvalidRevocation",
           "InvalidUser", "MissingConfiguration", "MissingGlyph", "NotAllowed", "UnknownCertificate", "UnknownEvent"]


class CertificateError(FinalError):
    """Root of the certificate application's final errors."""


class CertificateRevoked(CertificateError):
    """The recipient's certificate was revoked: it is not issued again while that stands."""


class DesignError(CertificateError):
    """The event's design cannot be used; the message names the field and the fix."""


class InvalidExpiry(CertificateError, InvalidJob):
    """The day on which the certificate shall expire is none, or has passed."""


class InvalidRecipient(CertificateError, InvalidJob):
    """The recipient's name or key is empty, too long, or holds characters that are no text."""


class InvalidRevocation(CertificateError):
    """The reason or the note of a revocation cannot be used; the message names it and the fix."""


class InvalidUser(CertificateError, InvalidJob):
    """The user's id is empty, too long, or no text."""


class MissingConfiguration(CertificateError):
    """The event has no certificate configuration."""


class MissingGlyph(CertificateError):
    """No font has this character; a certificate with an empty box is never issued."""


class NotAllowed(CertificateError):
    """The user may not issue certificates for this event."""


class UnknownCertificate(CertificateError):
    """There is no certificate with this serial."""


class UnknownEvent(CertificateError, InvalidJob):
    """There is no such event."""
