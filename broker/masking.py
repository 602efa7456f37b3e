"""Passwords in URLs that Celery shows by itself.

`inspect conf`, `celery report` and Flower's Config page show `result_backend` through Celery's own `sanitize_url`, which hides
what stands before the @ and knows nothing of libpq's `?password=…`.
"""

from __future__ import annotations

from functools import wraps
from typing import Any

from celery.app import utils

from celery_jobqueue.broker.register import SCHEMES
from celery_jobqueue.db.url import masked

__all__ = ["install"]


def install() -> None:
    """Teach Celery, once per process."""
    if not hasattr(utils.sanitize_url, "__wrapped__"):
        utils.sanitize_url = _hiding_parameters(utils.sanitize_url)


def _hiding_parameters(sanitize: Any) -> Any:
    @wraps(sanitize)
    def sanitized(url: Any, *args: Any, **kwargs: Any) -> Any:
        shown = sanitize(url, *args, **kwargs)
        # Of a list of URLs the original has handed us each one already.
        if isinstance(shown, str) and shown.count("://") == 1 and shown.partition("://")[0] in SCHEMES:
            return masked(shown)
        return shown

    return sanitized
