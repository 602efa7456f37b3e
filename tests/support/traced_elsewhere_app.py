"""The test application, whose tasks somebody traces with a function of their own, as tools that watch programs do."""

from __future__ import annotations

from functools import wraps
from typing import Any

from celery.app import trace
from celery.worker import request

from tests.support.app import app

__all__ = ["app", "watched"]

_original = trace.fast_trace_task


@wraps(_original)
def watched(*args: Any, **kwargs: Any) -> Any:
    """As Celery's."""
    return _original(*args, **kwargs)


trace.fast_trace_task = request.fast_trace_task = watched
