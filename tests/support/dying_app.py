"""The tests' application, whose pool process dies once at the worst moment of a chord.

TEST_MOMENT: `before` or `after` the commit that settles the last part and publishes the body. TEST_MARK: a file that
remembers that it has happened.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from celery_jobqueue.broker.results import ResultBackend
from tests.support.app import app

__all__ = ["app"]

_MOMENT, _MARK = os.environ.get("TEST_MOMENT"), Path(os.environ.get("TEST_MARK", "/nonexistent"))
_dispatch, _part_returned = ResultBackend._dispatch, ResultBackend.on_chord_part_return
_dispatched = False


def _die() -> None:
    _MARK.touch()
    os.kill(os.getpid(), signal.SIGKILL)


def _dispatch_and_die(self: Any, group_id: str, body: Any) -> None:
    global _dispatched
    _dispatch(self, group_id, body)
    _dispatched = True
    if _MOMENT == "before" and not _MARK.exists():
        _die()


def _return_and_die(self: Any, *args: Any, **kwargs: Any) -> None:
    _part_returned(self, *args, **kwargs)
    if _MOMENT == "after" and _dispatched and not _MARK.exists():
        _die()


ResultBackend._dispatch = _dispatch_and_die  # type: ignore[method-assign]
ResultBackend.on_chord_part_return = _return_and_die  # type: ignore[method-assign]
