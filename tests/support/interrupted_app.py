"""The tests' application, whose worker is told to leave at once (SIGQUIT) in the middle of its work.

TEST_MOMENT: `module:Class.method`, whose first call in the main process is interrupted. TEST_MARK: a file that
says that it has happened.
"""

from __future__ import annotations

import os
import signal
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import Any

from celery import signals

from tests.support.app import app

__all__ = ["app"]

_MODULE, _, _NAME = os.environ["TEST_MOMENT"].partition(":")
_MARK = Path(os.environ["TEST_MARK"])


@signals.worker_ready.connect(weak=False)
def _interrupt(**_: Any) -> None:
    worker = os.getpid()
    owner, _, name = _NAME.partition(".")
    place = getattr(import_module(_MODULE), owner)
    function = getattr(place, name)

    @wraps(function)
    def interrupted(*args: Any) -> Any:
        if os.getpid() == worker and not _MARK.exists():
            _MARK.touch()
            os.kill(worker, signal.SIGQUIT)
        return function(*args)

    setattr(place, name, interrupted)
