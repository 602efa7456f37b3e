"""The test application with `worker_deduplicate_successful_tasks`."""

from __future__ import annotations

from tests.support.app import app

__all__ = ["app"]

app.conf.worker_deduplicate_successful_tasks = True
