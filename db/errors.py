"""The project's one exception tree; every error a caller may want to catch descends from `JobQueueError`."""

from __future__ import annotations

__all__ = ["ConfigurationError", "FinalError", "InvalidJob", "JobQueueError", "SchemaError", "TransactionError"]


class JobQueueError(Exception):
    """Root of everything this project raises on purpose."""


class ConfigurationError(JobQueueError):
    """A setting (URL, option, environment variable) cannot be used; the message names it and the fix."""


class SchemaError(JobQueueError):
    """The database's schema is missing, older or newer than this code needs, or was edited."""


class InvalidJob(JobQueueError, ValueError):
    """A job was refused at the call; nothing was written. The message names the field and the fix."""


class FinalError(JobQueueError):
    """Raised by a task to say that trying again cannot help: the job fails at once, with attempts left."""


class TransactionError(JobQueueError):
    """Jobs cannot travel in this transaction of the caller's; the message says why and what to do."""
