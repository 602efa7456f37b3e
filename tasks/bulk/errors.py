"""What can be wrong with a batch."""

from __future__ import annotations

from celery_jobqueue.db.errors import InvalidJob

__all__ = ["BatchError", "InvalidAttendees"]


class InvalidAttendees(InvalidJob):
    """The file or query as a whole cannot be read; the message says where, and how to mend it."""


class BatchError(InvalidJob):
    """There is no such batch, or it is in no state to do this."""
