"""The test application, with a task that kills its process in its first instruction but one: it writes down that it ran."""

from __future__ import annotations

import os
import signal
from typing import Any

from tests.support.app import app, make_app

__all__ = ["add_tasks", "app", "make_app"]


def add_tasks(application: Any) -> None:
    """Register the task below."""
    @application.task(name="t.suicide", bind=True, shared=False)
    def suicide(self: Any, path: str) -> None:
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, f"{self.request.id}\n".encode())
        os.kill(os.getpid(), signal.SIGKILL)


add_tasks(app)
