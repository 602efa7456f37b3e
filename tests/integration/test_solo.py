"""The solo pool runs a job where it is delivered, in the worker's own loop."""

from __future__ import annotations

from collections.abc import Callable

from celery import Celery

from tests.support.database import one, rows
from tests.support.waiting import wait_until
from tests.support.workers import Worker

Start = Callable[..., Worker]


def publish(app: Celery, jobs: int, seconds: float) -> None:
    """So many jobs that take so long."""
    with app.producer_or_acquire() as producer, producer.batch():
        for _ in range(jobs):
            app.tasks["t.nap"].apply_async((seconds,), ignore_result=True, producer=producer)


def test_what_is_done_is_told_while_the_rest_of_the_delivery_runs(app: Celery, database_url: str, start_worker: Start) -> None:
    publish(app, 60, 0.005)
    start_worker("-P", "solo", "--prefetch-multiplier", "8")
    wait_until(lambda: one(database_url, "select count(*) from job_queue where status = 'completed'") == 60, "all are done")
    together = [row["jobs"] for row in rows(database_url, "select count(*) as jobs from job_queue group by xmin::text")]
    late = sum(jobs for jobs in together if jobs >= 8)  # a whole window of them; until the task is known as quick that happens
    assert late <= 30, "all these would run again if the worker died before it has told of them"


def test_a_full_queue_does_not_keep_it_from_anything_else(app: Celery, database_url: str, start_worker: Start) -> None:
    worker = start_worker("-P", "solo", "--prefetch-multiplier", "8")
    publish(app, 6000, 0.002)
    wait_until(lambda: one(database_url, "select count(*) from job_queue where status = 'completed'") > 200, "it is at work")
    assert app.control.ping(timeout=5, limit=1)
    assert worker.stop() == 0
    left = one(database_url, "select count(*) from job_queue where status = 'pending'")
    assert left > 0, "both came in the midst of it"
    assert one(database_url, "select count(*) from job_queue where status = 'completed'") == 6000 - left
