"""The Celery application of the benchmarks' workers. The environment says which contender it runs on (BENCH_SETUP, JSON)."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from celery import Celery
from celery.signals import worker_ready

from tests.benchmarks import null
from tests.benchmarks.journal import Journal

null.register()


def make_app(setup: dict[str, Any]) -> Celery:
    """An application from settings; the journal is opened where the first job runs."""
    application = Celery("tests.benchmarks.app", set_as_current=False)
    application.conf.update({
        "broker_connection_retry_on_startup": True, "worker_hijack_root_logger": False,
        "worker_cancel_long_running_tasks_on_connection_loss": False, **setup["settings"]})
    journal: Journal | None = None

    def written(published: int) -> None:
        nonlocal journal
        if journal is None:
            journal = Journal(Path(setup["journal"]))
        journal.write(published)

    @application.task(name="bench.job", shared=False)
    def job(published: int = 0, padding: str = "") -> None:
        """A no-op that says when it began."""
        written(published)

    return application


@worker_ready.connect  # type: ignore[untyped-decorator,unused-ignore]
def _announce(**_: Any) -> None:
    if ready := os.environ.get("BENCH_READY"):
        Path(ready).touch()


if "BENCH_SETUP" in os.environ:
    app = make_app(json.loads(os.environ["BENCH_SETUP"]))
