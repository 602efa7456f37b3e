"""The result backend by itself: what does not stand on a job's own row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery

from celery_jobqueue.db import migrate
from tests.support.database import fresh_database, one, rows
from tests.support.workers import Worker


def test_results_may_stand_in_another_database_than_the_jobs(server: str, make_client: Callable[..., Celery], database_url: str,
                                                             start_worker: Callable[..., Worker]) -> None:
    with fresh_database(server) as results:
        migrate.migrate(results, ("queue",))
        start_worker(TEST_BACKEND=results)
        app: Any = make_client(result_backend=results)
        good, bad = app.tasks["t.add"].delay(2, 3), app.tasks["t.boom"].delay("bang")
        assert good.get(timeout=20) == 5
        with pytest.raises(ValueError, match="bang"):
            bad.get(timeout=20)
        assert {row["state"] for row in rows(results, "select state from jobqueue.result")} == {"SUCCESS", "FAILURE"}
        assert one(results, "select count(*) from job_queue") == 0
        app.backend.result_consumer.stop()
    assert {row["status"] for row in rows(database_url, "select status from job_queue")} <= {"completed", "failed", "processing"}
