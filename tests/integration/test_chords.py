"""Chords: the body comes once, with everything, whoever is killed when; and nobody polls for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from celery import Celery, chord, group
from celery.exceptions import ChordError

from tests.support.database import one, rows
from tests.support.waiting import wait_until
from tests.support.workers import Worker

Start = Callable[..., Worker]


def bodies(url: str) -> list[str]:
    return [row["status"] for row in rows(url, "select status from job_queue where task_name = 'celery.accumulate'")]


def test_the_body_gets_the_header_in_order_and_nobody_polls(app: Celery, database_url: str, start_worker: Start) -> None:
    start_worker()
    add, accumulate = app.tasks["t.add"], app.tasks["celery.accumulate"]
    assert chord([add.s(n, n) for n in range(20)], accumulate.s())().get(timeout=30) == [[2 * n for n in range(20)]]
    assert one(database_url, "select count(*) from job_queue") == 21, "20 parts and a body, no task that looks whether they ended"
    assert one(database_url, "select count(*) from jobqueue.chord_part") == 0, "nothing is left behind"


@pytest.mark.parametrize("ignore", ["0", "1"])
def test_a_failed_part_fails_the_chord(ignore: str, make_client: Callable[..., Celery], database_url: str,
                                       start_worker: Start) -> None:
    app = make_client(task_ignore_result=False)
    start_worker(TEST_IGNORE=ignore)
    result = chord([app.tasks["t.add"].s(1, 1), app.tasks["t.boom"].s("bang")], app.tasks["celery.accumulate"].s())()
    wait_until(lambda: result.state == "FAILURE", "the body has failed")
    assert isinstance(result.result, ChordError)
    assert "bang" in str(result.result)
    assert bodies(database_url) == []


def test_a_chord_may_be_applied_again_under_its_id(app: Celery, start_worker: Start) -> None:
    start_worker()
    work = chord([app.tasks["t.add"].s(1, 1), app.tasks["t.add"].s(2, 2)], app.tasks["celery.accumulate"].s())
    for _ in range(2):
        result = work.apply_async(task_id="body", group_id="the-header")
        assert result.get(timeout=20) == [[2, 4]]
        result.forget()


def test_the_caller_may_wait_for_nested_groups(app: Celery, start_worker: Start) -> None:
    start_worker()
    add = app.tasks["t.add"]
    inner = chord([add.s(1, 1), add.s(2, 2)], app.tasks["celery.accumulate"].s())
    assert chord([inner, group(add.s(3, 3))], app.tasks["celery.accumulate"].s())().get(timeout=30) == [[[[2, 4]], 6]]


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("ignore", ["0", "1"])
def test_the_body_comes_once_although_its_process_is_killed(moment: str, ignore: str, app: Celery, database_url: str,
                                                            start_worker: Start, tmp_path: Path) -> None:
    mark = tmp_path / "died"
    start_worker("-c", "2", app="tests.support.dying_app", TEST_MOMENT=moment, TEST_MARK=mark, TEST_IGNORE=ignore)
    add = app.tasks["t.add"]
    chord([add.s(n, n) for n in range(6)], app.tasks["celery.accumulate"].s())()
    wait_until(lambda: one(database_url, "select count(*) from job_queue where status = 'completed'") >= 7, "all has run", 60)
    assert mark.exists(), "the process was not killed"
    assert bodies(database_url) == ["completed"]
    assert one(database_url, "select count(*) from job_queue where status <> 'completed'") == 0


def test_a_revoked_part_fails_the_chord(app: Celery, start_worker: Start) -> None:
    add = app.tasks["t.add"]
    late = add.s(2, 2).set(expires=-5)
    result = chord([add.s(1, 1), late], app.tasks["celery.accumulate"].s())()
    start_worker()
    wait_until(lambda: result.state == "FAILURE", "the body has failed")
    assert "TaskRevokedError" in repr(result.result) or "expired" in repr(result.result)
