"""Several jobs in one message to a process of the prefork pool (broker/bundles.py), in a real pool."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def came_of(case: str, *arguments: str) -> Any:
    """The case of tests/support/bundles_at_work.py: what each request was told, who never began, whether nothing is kept."""
    ran = subprocess.run([sys.executable, "-m", "tests.support.bundles_at_work", case, *arguments], capture_output=True,
                         text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_they_run_in_turn_and_each_is_told_of() -> None:
    (first, failed, long, last), back, nothing_kept = came_of("in_turn")
    assert (first, failed, last) == (["accepted", "1"], ["accepted", "ValueError"], ["accepted", "4"])
    assert long[0] == "accepted"
    assert long[1].startswith("['xxx")
    assert (back, nothing_kept) == ([], True)


def test_who_dies_is_lost_and_takes_nobody_along() -> None:
    assert came_of("dies") == [[["accepted", "1"], ["accepted", "WorkerLostError"], [], []], [2, 3], True]


def test_who_leaves_the_process_takes_nobody_along() -> None:
    assert came_of("exits") == [[["accepted", "1"], ["accepted", "SystemExit"], []], [2], True]


def test_what_cannot_be_told_fails_that_one() -> None:
    assert came_of("cannot_be_told") == [[["accepted", "1"], ["accepted", "MaybeEncodingError"], []], [2], True]


def test_what_has_not_begun_can_be_taken_back(tmp_path: Path) -> None:
    waits, back, again, end = came_of("taken_back", str(tmp_path))
    assert (waits, back, again) == (True, [2, 3], [])
    assert end == [[["accepted", "1"], ["accepted", "'went'"], [], []], [], True]


def test_what_a_dead_process_has_not_read_runs_in_another() -> None:
    assert came_of("unread") == [
        [["accepted", "not accepted", "accepted", "1"], ["accepted", "2"]], [], True]


def test_what_is_revoked_does_not_enter() -> None:
    some, none, in_pool = came_of("revoked")
    assert some == [[["accepted", "1"], [], ["accepted", "3"]], [], True]
    assert none == [[[]], [], True]
    assert in_pool == 0


def test_what_the_pool_refuses_leaves_nothing_there() -> None:
    end, in_pool, may_be_bundled = came_of("refused")
    assert end == [[[], []], [0, 1], True]
    assert (in_pool, may_be_bundled) == (0, [False, False])


def test_what_is_over_is_kept_by_nobody() -> None:
    """Not even until the garbage is collected: requests hold their messages."""
    assert came_of("freed") == [[False] * 4, [False] * 4]
