"""The test application, where somebody looks for a task's result as soon as Celery says that it has succeeded."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from celery import Task, signals

from tests.support.app import app, make_app

__all__ = ["add_tasks", "app", "make_app"]


class _Looking(Task):  # type: ignore[misc]
    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        """Write down what others would find now."""
        with Path(args[0]).open("a") as file:
            file.write(f"{self.app.AsyncResult(task_id).state} {retval}\n")


def add_tasks(application: Any) -> None:
    """Register the task below."""
    @application.task(name="t.look", base=_Looking, shared=False)
    def look(path: str, number: int) -> int:
        return number


add_tasks(app)


if os.environ.get("TEST_RECEIVER"):
    @signals.task_success.connect(weak=False)
    def _succeeded(sender: Any, result: Any, **_: Any) -> None:
        if sender.name == "t.add":
            with Path(os.environ["TEST_RECEIVER"]).open("a") as file:
                file.write(f"{sender.app.AsyncResult(sender.request.id).state} {result}\n")
