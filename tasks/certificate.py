"""The certificate task."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from tasks.app import app, engine
from tasks.certificates.issue import issue_certificate
from tasks.certificates.storage import Storage, storage_from_url

__all__ = ["generate_certificate"]


# Wrong arguments stay wrong, however often they are tried.
@app.task(name="tasks.generate_certificate", dont_autoretry_for=(TypeError,))  # type: ignore[untyped-decorator,unused-ignore]
def generate_certificate(event_id: str, recipient_name: str, user_id: str, recipient_key: str | None = None) -> dict[str, Any]:
    """Issue one certificate: check, render, upload, record.

    Returns its id, serial, url, storage_key and recipient_name. A wrong event, user, name or design is a final error; a
    database or storage that does not answer is tried again until max_attempts. Running twice gives one certificate.
    """
    issued = issue_certificate(engine(), event_id=event_id, recipient_name=recipient_name, user_id=user_id,
                               recipient_key=recipient_key, storage=_storage(), verification_url=app.conf.verification_url)
    return issued.as_dict()


@lru_cache(maxsize=1)
def _storage() -> Storage:
    """Made in the process that runs the task: clients of object storage do not survive a fork."""
    return storage_from_url()
