"""The queue works on every supported PostgreSQL."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from celery_jobqueue.db import migrate
from tests.support.app import make_app
from tests.support.database import fresh_database, one, rows
from tests.support.postgres_versions import MAJORS, OLDEST, Servers
from tests.support.waiting import wait_until
from tests.support.workers import worker


@pytest.mark.parametrize("major", MAJORS)
def test_the_state_machine_on_every_major(major: int, servers: Servers) -> None:
    with fresh_database(servers.url(major)) as url:
        assert one(url, "select current_setting('server_version_num')::integer / 10000") == major
        migrate.migrate(url, migrate.LINES)
        row = partial(rows, url, "select status, state, result, attempts, error_message from job_queue where id = %(id)s")

        def take(lease: str = "5 minutes") -> list[dict[str, Any]]:
            return rows(url, "select * from public.get_next_job(lease => %s)", (lease,))

        # An urgent job first; finished once.
        rows(url, "select public.enqueue_job('t.later', priority => 7, max_attempts => 2)")
        rows(url, "select public.enqueue_job('t.urgent', '[1, 2]', '{\"user_id\": \"ann\"}', priority => 1)")
        (urgent,) = take()
        assert (urgent["task_name"], urgent["args"], urgent["user_id"], urgent["attempts"]) == ("t.urgent", [1, 2], "ann", 1)
        complete = partial(one, url, "select public.complete_job(%(id)s, %(lease_token)s, '3')")
        assert (complete(urgent), complete(urgent)) == (True, False)
        assert row(urgent) == [
            {"status": "completed", "state": "SUCCESS", "result": "3", "attempts": 1, "error_message": None}]

        # A failure waits for its next attempt; the last one is final.
        fail = partial(one, url, "select public.fail_job(%(id)s, %(lease_token)s, 'boom')")
        (first,) = take()
        assert fail(first) == "pending"
        assert take() == []
        assert rows(url, "update job_queue set run_at = now() where id = %(id)s and run_at > now() returning status", first)
        (second,) = take()
        assert (second["id"], second["attempts"]) == (first["id"], 2)
        assert fail(second) == "failed"
        assert row(second)[0]["error_message"] == "boom"
        assert one(url, "select jsonb_array_length(errors) from job_queue where id = %(id)s", first) == 2

        # A lease that ends costs an attempt and is fenced off; without attempts left the job fails.
        rows(url, "select public.enqueue_job('t.lost', max_attempts => 2)")
        for expected in ("pending", "failed"):
            (lost,) = take("1 millisecond")

            def settled(lost: dict[str, Any] = lost) -> str | None:
                rows(url, "select * from jobqueue.rescue(gen_random_uuid())")
                status = row(lost)[0]["status"]
                return None if status == "processing" else str(status)

            assert wait_until(settled, "the job is rescued") == expected
            assert complete(lost) is False
        assert "lost" in row(lost)[0]["error_message"].lower()


def test_a_real_worker_on_the_oldest_server(servers: Servers, tmp_path: Path) -> None:
    with fresh_database(servers.url(OLDEST)) as url:
        migrate.migrate(url)
        app = make_app(url)
        try:
            with worker(url, tmp_path):
                assert app.tasks["t.add"].delay(2, 3).get(timeout=30) == 5
            assert rows(url, "select status, attempts from job_queue") == [{"status": "completed", "attempts": 1}]
        finally:
            app.backend.result_consumer.stop()
            app.close()
