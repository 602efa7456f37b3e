"""The tuned test application whose worker logs a JSON document per line, with every attribute that says something of a job."""

from __future__ import annotations

import json
import logging
from typing import Any

from celery import signals

from tests.support.tuned_app import app

__all__ = ["app"]

_FIELDS = ("job_id", "task_id", "task_name", "attempt", "max_attempts")


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = {name: getattr(record, name) for name in _FIELDS if hasattr(record, name)}
        return json.dumps({"message": record.getMessage(), "logger": record.name, **fields}, default=str)


@signals.after_setup_logger.connect(weak=False)
@signals.after_setup_task_logger.connect(weak=False)
def write_json(logger: logging.Logger, **_: Any) -> None:
    """As an application would do it."""
    for handler in logger.handlers:
        handler.setFormatter(_Json())


@app.task(name="t.says", bind=True, max_retries=2, shared=False)  # type: ignore[untyped-decorator,unused-ignore]
def says(self: Any, words: str, retries: int = 0) -> None:
    """Log from anywhere in the application; with retries, that often."""
    logging.getLogger("somewhere.else").warning(words)
    logging.getLogger("somewhere.else").warning("mine", extra={"job_id": "my own"})
    if self.request.retries < retries:
        raise self.retry(countdown=0)
