"""The tuned application with tasks that have ways of their own to be acknowledged and to end."""

from __future__ import annotations

import os
import sys
from typing import Any

from celery import Celery
from celery.result import AsyncResult, allow_join_result

from tests.support.tuned_app import app

__all__ = ["add_tasks", "app"]


def add_tasks(application: Celery) -> None:
    """t.wait_late is t.wait acknowledged late, t.exit is it with another end; t.fetch gets another task's result."""
    wait: Any = application.tasks["t.wait"].run

    @application.task(name="t.wait_late", acks_late=True, shared=False)
    def wait_late(path: str, seconds: float = 60) -> str:
        return str(wait(path, seconds))

    @application.task(name="t.exit", shared=False)
    def leave(path: str) -> None:
        wait(path)
        sys.exit("that was all")

    @application.task(name="t.fetch", shared=False)
    def fetch(task_id: str) -> Any:
        with allow_join_result():
            return AsyncResult(task_id, app=application).get(timeout=20, interval=0.05)


app.conf.worker_soft_shutdown_timeout = float(os.environ.get("TEST_SOFT", "0"))
add_tasks(app)
