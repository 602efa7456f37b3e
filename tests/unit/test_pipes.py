"""Celery's prefork pool, talked to in fewer system calls (broker/pipes.py), and how its processes are scheduled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def came_of(case: str, *arguments: str) -> Any:
    """The case of tests/support/pool_at_work.py, run in a process of its own."""
    ran = subprocess.run([sys.executable, "-m", "tests.support.pool_at_work", case, *arguments], capture_output=True, text=True,
                         timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_jobs_and_results_of_any_size_come_through() -> None:
    assert came_of("sizes") is True


def test_a_job_is_written_at_once_to_a_process_that_has_nothing_to_do() -> None:
    waiting, with_a_third, processes, third, written = came_of("at_once")
    assert (waiting, with_a_third) == (0, 1)
    assert (processes, third, written) == (2, [3], 3)


def test_a_worker_that_leaves_begins_nothing() -> None:
    assert came_of("leaving") == 1


def test_a_message_that_is_refused_takes_no_other_with_it() -> None:
    heard, errors = came_of("raising")
    assert heard == ["one", "two", "/", "three", "/", "four", "/"]
    assert errors == ["refused"]


def test_what_was_written_to_a_process_that_dies_goes_to_another(tmp_path: Path) -> None:
    done, lost = came_of("deaths", str(tmp_path))
    assert done is True
    assert lost == ["WorkerLostError"], "what a process was at is reported as lost"


def test_what_is_written_counts_as_accepted_once() -> None:
    counts = came_of("accepting")
    assert counts.pop("as usual") == [1, 101]
    assert set(map(tuple, counts.values())) == {(0, 101)}, counts


def test_what_a_dead_process_has_not_read_goes_to_another() -> None:
    by_the_stopped, done, accepted, taken_back = came_of("unread")
    assert by_the_stopped is True
    assert done == [0, 1]
    assert accepted == 4, "by the dead, and by those that ran them"
    assert taken_back == 2


def test_what_was_begun_is_lost_whatever_else_the_pipe_holds() -> None:
    assert came_of("last_words") == ["WorkerLostError"] * 2


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there are no such policies")
def test_processes_of_a_pool_interrupt_nobody() -> None:
    assert came_of("policies") == [os.SCHED_OTHER, os.SCHED_BATCH, os.SCHED_IDLE]
