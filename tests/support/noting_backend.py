"""The test application with a result backend of its own, which notes what is stored."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from celery_jobqueue.broker.results import ResultBackend
from tests.support.app import app

__all__ = ["NotingBackend", "app"]


class NotingBackend(ResultBackend):
    """Writes down each state that is stored."""

    def store_result(self, task_id: str, result: Any, state: str, *args: Any, **kwargs: Any) -> Any:
        """As the queue's own, after it."""
        stored = super().store_result(task_id, result, state, *args, **kwargs)
        with Path(os.environ["TEST_NOTES"]).open("a") as file:
            file.write(f"{state}\n")
        return stored


app.conf.result_backend = f"tests.support.noting_backend:NotingBackend+{os.environ['DATABASE_URL']}"
