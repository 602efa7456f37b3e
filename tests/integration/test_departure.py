"""Leaving at once (SIGQUIT), at moments that a signal seldom meets: between the turns of the loop nothing is torn."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from celery import Celery

from tests.support.database import rows
from tests.support.waiting import wait_until
from tests.support.workers import Worker

Start = Callable[..., Worker]


@pytest.mark.parametrize("moment", [
    "celery_jobqueue.broker.gate:Gate._advance",  # a job was delivered, the pool has not got it
    "celery_jobqueue.broker.gate:Gate._room",  # under a lock
])
def test_who_is_interrupted_at_work_leaves_nothing_behind(moment: str, app: Celery, database_url: str, start_worker: Start,
                                                          tmp_path: Path) -> None:
    mark = tmp_path / "interrupted"
    worker = start_worker("-c", "1", "--prefetch-multiplier", "4", app="tests.support.interrupted_app", TEST_MOMENT=moment,
                          TEST_MARK=mark)
    with app.producer_or_acquire() as producer, producer.batch():
        for n in range(12):
            app.tasks["t.add"].apply_async((n, 1), producer=producer)
    wait_until(mark.exists, "the worker was interrupted")
    assert worker.process.wait(20) == 0
    found = rows(database_url, "select status, attempts, owner, error_message from job_queue")
    untouched, done = ("pending", 0, None, None), ("completed", 1, None, None)
    assert {tuple(row.values()) for row in found} <= {untouched, done}
    assert untouched in {tuple(row.values()) for row in found}
    assert not rows(database_url, "select id from jobqueue.worker")


def test_the_second_order_is_obeyed_at_once(app: Celery, database_url: str, start_worker: Start, tmp_path: Path) -> None:
    """While a soft shutdown waits there is no next turn to wait for."""
    worker = start_worker("-c", "1", app="tests.faults.app", FAULTS_LEDGER=tmp_path / "ledger",
                          FAULTS_SETTINGS=json.dumps({"worker_soft_shutdown_timeout": 3.0}))
    running = app.send_task("f.hold", (str(tmp_path / "gate"),))
    wait_until((tmp_path / "ledger").exists, "the task runs")
    worker.process.send_signal(signal.SIGQUIT)
    wait_until(lambda: "Initiating Soft Shutdown" in worker.text, "it waits for what runs")
    worker.process.send_signal(signal.SIGQUIT)
    wait_until(lambda: "Waiting gracefully for cold shutdown" in worker.text, "the job was stopped", 2)
    assert worker.process.wait(20) == 0
    [row] = rows(database_url, "select status, attempts from job_queue where task_id = %s", (running.id,))
    assert row == {"status": "pending", "attempts": 0}
