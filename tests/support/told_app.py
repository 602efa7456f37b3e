"""The test application, where somebody looks for a task's result as soon as Celery says that it has succeeded."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from celery import Task, signals

from tests.support.app import app, make_app

__all__ = ["add_tasks", "app", "make_app"]


class _Looking(Task):  # type: ignore[misc]
    def look(self, path: str, task_id: str, value: Any) -> None:
        """Write down what others would find now."""
        with Path(path).open("a") as file:
            file.write(f"{self.app.AsyncResult(task_id).state} {value}\n")


class _OnSuccess(_Looking):
    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        self.look(args[0], task_id, retval)


class _AfterReturn(_Looking):
    def after_return(self, status: str, retval: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        self.look(args[0], task_id, retval)


def add_tasks(application: Any) -> None:
    """Register a task for each of the two methods."""
    for method, base in (("on_success", _OnSuccess), ("after_return", _AfterReturn)):
        @application.task(name=f"t.{method}", base=base, shared=False)
        def look(path: str, number: int) -> int:
            return number


add_tasks(app)


if _signal := os.environ.get("TEST_SIGNAL"):
    @getattr(signals, _signal).connect(weak=False)  # type: ignore[untyped-decorator]
    def _told(sender: Any, result: Any = None, retval: Any = None, **_: Any) -> None:
        if sender.name == "t.add":
            with Path(os.environ["TEST_HEARD"]).open("a") as file:
                file.write(f"{sender.app.AsyncResult(sender.request.id).state} {result or retval}\n")
