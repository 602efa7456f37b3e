"""The certificate task."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from tasks.app import app, engine
from tasks.certificates.issue import issue_certificate
from tasks.certificates.storage import Storage, storage_from_url

__all__ = ["generate_certificate"]


# Wrong arguments stay wrong, however often they are tried.
@app.task(  # type: ignore[untyped-decorator,unused-ignore]
    name="tasks.generate_certificate", bind=True, dont_autoretry_for=(TypeError,))
def generate_certificate(self: Any, event_id: str, recipient_name: str, user_id: str,
                         recipient_key: str | None = None) -> dict[str, Any]:
    """Issue one certificate: check, render, upload, record.

    Returns its id, serial, url, storage_key and recipient_name. A wrong event, user, name or design is a final error; a
    database or storage that does not answer is tried again until max_attempts. Running twice gives one certificate.
    """
    def progress(done: int, total: int) -> None:
        self.update_state(state="PROGRESS", meta={"done": done, "total": total})

    # One of many has a group that tells how far it is; a person waits for a single one.
    watched = self.request.id is not None and self.request.group is None and not self.request.is_eager
    issued = issue_certificate(engine(), event_id=event_id, recipient_name=recipient_name, user_id=user_id,
                               recipient_key=recipient_key, storage=_storage(),
                               verification_url=app.conf.verification_url, on_step=progress if watched else None)
    return issued.as_dict()


@lru_cache(maxsize=1)
def _storage() -> Storage:
    """Made in the process that runs the task: clients of object storage do not survive a fork."""
    return storage_from_url()
