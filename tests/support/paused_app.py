"""The test application, whose threads are held up for a moment before they give their place back."""

from __future__ import annotations

import os
import time
from typing import Any

from celery_jobqueue.broker.gate import Gate
from tests.support.app import make_app

app = make_app(os.environ.get("DATABASE_URL", "postgresql://unset@127.0.0.1:1/unset"))

_done = Gate.done


def _done_later(self: Gate, request: Any) -> None:
    time.sleep(0.03)
    _done(self, request)


Gate.done = _done_later  # type: ignore[method-assign]
