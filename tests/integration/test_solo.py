"""The solo pool runs a job where it is delivered, in the worker's own loop."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from celery import Celery

from tests.support.database import one, rows
from tests.support.quick import publish
from tests.support.waiting import wait_until
from tests.support.workers import Worker

Start = Callable[..., Worker]


def test_what_is_done_is_told_while_the_rest_of_the_delivery_runs(app: Celery, database_url: str, start_worker: Start) -> None:
    publish(app, [0.005] * 60, "t.nap", ignore_result=True)
    start_worker("-P", "solo", "--prefetch-multiplier", "8")
    wait_until(lambda: one(database_url, "select count(*) from job_queue where status = 'completed'") == 60, "all are done")
    together = [row["jobs"] for row in rows(database_url, "select count(*) as jobs from job_queue group by xmin::text")]
    late = sum(jobs for jobs in together if jobs >= 8)  # a whole window of them; until the task is known as quick that happens
    assert late <= 30, "all these would run again if the worker died before it has told of them"


@pytest.mark.parametrize("prefetch", ["8", "1000", "0"])
def test_a_full_queue_does_not_keep_it_from_anything_else(prefetch: str, app: Celery, database_url: str,
                                                          start_worker: Start) -> None:
    worker = start_worker("-P", "solo", "-c", "1", "--prefetch-multiplier", prefetch)
    publish(app, [0.01] * 4000, "t.nap", ignore_result=True)
    wait_until(lambda: one(database_url, "select count(*) from job_queue where status = 'completed'") > 300, "it is at work")
    assert one(database_url, "select count(*) from job_queue where status = 'processing'") <= 1000
    assert app.control.ping(timeout=3, limit=1)
    assert worker.stop(timeout=10) == 0
    left = one(database_url, "select count(*) from job_queue where status = 'pending' and (attempts, total_starts) = (0, 0)")
    assert left > 1000, "all of it came in the midst of the work"
    assert one(database_url, "select count(*) from job_queue where status = 'completed'") == 4000 - left
