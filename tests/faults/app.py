"""The application that the scenarios' workers run: tasks that note their runs, and tasks that kill.

DATABASE_URL says where, FAULTS_OPTIONS (JSON) gives further `broker_transport_options`, FAULTS_ACKS=early acknowledges as Celery
does by itself, FAULTS_SETTINGS (JSON) changes any other setting.
"""

from __future__ import annotations

import json
import os
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

from celery import Celery

from tests.faults.ledger import note


def make_app(url: str, **settings: Any) -> Celery:
    """As the project's own application: late acknowledgement, a lost worker's jobs run again, automatic retries."""
    application = Celery("tests.faults.app", broker=url, backend=url, set_as_current=False)
    late = os.environ.get("FAULTS_ACKS", "late") == "late"
    application.conf.update(
        task_acks_late=late, task_reject_on_worker_lost=late, worker_prefetch_multiplier=1,
        broker_connection_retry_on_startup=True, worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_transport_options={"automatic_retries": True, **json.loads(os.environ.get("FAULTS_OPTIONS", "{}"))},
    )
    application.conf.update(json.loads(os.environ.get("FAULTS_SETTINGS", "{}")))
    application.conf.update(settings)
    _add_tasks(application)
    return application


def _add_tasks(application: Celery) -> None:
    task = partial(application.task, shared=False)

    @task(name="f.work", bind=True)
    def work(self: Any, seconds: float = 0.0) -> float:
        """A job like any other."""
        note("start", self.request.id)
        if seconds:
            time.sleep(seconds)
        note("end", self.request.id)
        return seconds

    @task(name="f.hold", bind=True)
    def hold(self: Any, gate: str, seconds: float = 60.0) -> str:
        """Runs until the file `gate` is there, or the time is over."""
        note("start", self.request.id)
        deadline = time.monotonic() + seconds
        while not Path(gate).exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        note("end", self.request.id)
        return "went" if Path(gate).exists() else "gave up"

    @task(name="f.poison", bind=True)
    def poison(self: Any, seconds: float = 120.0) -> None:
        """Its first instruction kills the worker's main process. Its own goes on until somebody ends it."""
        os.kill(os.getppid() if os.environ.get("FAULTS_POOL", "prefork") == "prefork" else os.getpid(), signal.SIGKILL)
        note("start", self.request.id)
        time.sleep(seconds)

    @task(name="f.suicide", bind=True)
    def suicide(self: Any) -> None:
        """Kills the pool process that runs it."""
        note("start", self.request.id)
        os.kill(os.getpid(), signal.SIGKILL)

    @task(name="f.total")
    def total(numbers: list[float]) -> float:
        """The body of a chord."""
        return sum(numbers)

    @task(name="f.mourn")
    def mourn(*args: Any) -> None:
        """An errback."""
        note("start", f"mourn {args[0] if isinstance(args[0], str) else args[0].id}")


app = make_app(os.environ.get("DATABASE_URL", "postgresql://unset@127.0.0.1:1/unset"))
