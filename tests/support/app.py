"""The Celery application the tests' workers run. DATABASE_URL says where; the environment says how."""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

from celery import Celery

from celery_jobqueue.db.errors import FinalError


def make_app(url: str, **settings: Any) -> Celery:
    """An application on this database, with the tasks below."""
    application = Celery("tests.support.app", broker=url, backend=url, set_as_current=False)
    late = os.environ.get("TEST_ACKS", "late") == "late"
    application.conf.update(
        task_acks_late=late, task_reject_on_worker_lost=late, worker_prefetch_multiplier=1,
        broker_connection_retry_on_startup=True, worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_transport_options={"automatic_retries": os.environ.get("TEST_RETRIES", "0") == "1"},
        task_ignore_result=os.environ.get("TEST_IGNORE", "0") == "1",
        result_expires=float(os.environ.get("TEST_EXPIRES", "86400")),
        result_failure_expires=float(failures) if (failures := os.environ.get("TEST_FAILURE_EXPIRES")) else None,
    )
    if backend := os.environ.get("TEST_BACKEND"):
        application.conf.result_backend = backend
    application.conf.update(**settings)
    _add_tasks(application)
    return application


def _add_tasks(application: Celery) -> None:
    task = partial(application.task, shared=False)  # shared tasks would appear in every other application too

    @task(name="t.add")
    def add(x: float, y: float) -> float:
        return x + y

    @task(name="t.record")
    def record(path: str, word: str) -> None:
        with Path(path).open("a") as file:
            file.write(word + "\n")

    @task(name="t.boom", retry_backoff=1, retry_jitter=False)
    def boom(message: str = "boom") -> None:
        raise ValueError(message)

    @task(name="t.final")
    def final() -> None:
        raise FinalError("no use in trying again")

    @task(name="t.flaky", bind=True, retry_backoff=1, retry_jitter=False)
    def flaky(self: Any, path: str, failures: int) -> str:
        with Path(path).open("a") as file:
            file.write("x")
        if Path(path).stat().st_size <= failures:
            raise ValueError(f"not yet, run {Path(path).stat().st_size}")
        return "at last"

    @task(name="t.again", bind=True, max_retries=5)
    def again(self: Any, times: int, countdown: float = 0) -> int:
        if self.request.retries < times:
            raise self.retry(countdown=countdown, exc=ValueError(f"retry {self.request.retries}"))
        return int(self.request.retries)

    @task(name="t.wait")
    def wait(path: str, seconds: float = 60) -> str:
        """Announce itself, then run until the path's `.go` twin appears or the time is over."""
        Path(path).touch()
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if Path(path + ".go").exists():
                return "went"
            time.sleep(0.02)
        return "gave up"

    @task(name="t.nap")
    def nap(seconds: float) -> str:
        time.sleep(seconds)
        return "rested"

    @task(name="t.die", bind=True)
    def die(self: Any, path: str | None = None) -> str:
        """Kill the process it runs in; with a path only the first time."""
        if path is None or not Path(path).exists():
            if path is not None:
                Path(path).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return "survived"

    @task(name="t.progress", bind=True)
    def progress(self: Any, path: str) -> str:
        self.update_state(state="PROGRESS", meta={"done": 1, "total": 2})
        wait(path)
        return "done"


app = make_app(os.environ.get("DATABASE_URL", "postgresql://unset@127.0.0.1:1/unset"))
