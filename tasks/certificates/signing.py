"""Digitally signed certificates: whoever opens the file sees who issued it, and that nothing was changed since."""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path
from typing import Any

from celery_jobqueue.db.errors import ConfigurationError

__all__ = ["Signer", "signer_from_environment"]


class Signer:
    """Signs with a key and certificate out of a PKCS#12 file (.p12, .pfx)."""

    def __init__(self, key: Path, password: str) -> None:
        """Raises ConfigurationError when the file cannot be read with this password, or pyHanko is not installed."""
        try:
            from pyhanko.sign.signers import SimpleSigner
        except ImportError as error:
            raise ConfigurationError("CERTIFICATE_SIGNING_KEY needs pyHanko, which is missing: pip install pyhanko") from error
        try:
            content = key.read_bytes()
        except OSError as error:
            raise ConfigurationError(f"CERTIFICATE_SIGNING_KEY {str(key)!r} cannot be read: {error.strerror}") from error
        try:
            self._signer: Any = SimpleSigner.load_pkcs12_data(content, other_certs=[], passphrase=password.encode() or None)
            # As it stands in a signed file, where signatures are written in hexadecimal digits.
            self._certificate = self._signer.signing_cert.dump().hex().encode()
        except ValueError as error:
            raise ConfigurationError(f"CERTIFICATE_SIGNING_KEY {str(key)!r} is no PKCS#12 file that CERTIFICATE_SIGNING_PASSWORD "
                                     f"opens: {error}") from error

    def sign(self, pdf: bytes, *, reason: str, before: bytes = b"") -> bytes:
        """The same file with a certifying signature: no change is allowed after it. The bytes before it stay as they were.

        before: what was signed last time, perhaps. When that is this file with this certificate, it is the answer: a retry gives
        the same bytes, though a signature holds the time.
        """
        if before.startswith(pdf) and self._certificate in before.lower():
            return before
        from pyhanko.pdf_utils.incremental_writer import IncrementalPdfFileWriter
        from pyhanko.sign.fields import MDPPerm, SigSeedSubFilter
        from pyhanko.sign.signers import PdfSignatureMetadata, sign_pdf

        meaning = PdfSignatureMetadata(field_name="Issuer", reason=reason, certify=True, docmdp_permissions=MDPPerm.NO_CHANGES,
                                       subfilter=SigSeedSubFilter.PADES, md_algorithm="sha256")
        signed: bytes = sign_pdf(IncrementalPdfFileWriter(BytesIO(pdf)), meaning, self._signer).getvalue()
        return signed


def signer_from_environment() -> Signer | None:
    """CERTIFICATE_SIGNING_KEY (a PKCS#12 file) with CERTIFICATE_SIGNING_PASSWORD; None when it is unset."""
    key = os.environ.get("CERTIFICATE_SIGNING_KEY", "").strip()
    return Signer(Path(key), os.environ.get("CERTIFICATE_SIGNING_PASSWORD", "")) if key else None
