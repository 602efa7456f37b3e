"""The test application with `broker_transport_options` from the environment (TEST_OPTIONS, JSON) and one more task."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from tests.support.app import make_app

app = make_app(os.environ.get("DATABASE_URL", "postgresql://unset@127.0.0.1:1/unset"))
app.conf.broker_transport_options = {**app.conf.broker_transport_options, **json.loads(os.environ.get("TEST_OPTIONS", "{}"))}


@app.task(name="t.run", bind=True, shared=False)  # type: ignore[untyped-decorator,unused-ignore]
def run(self: Any, path: str, seconds: float = 60) -> int:
    """Announce this run as `path.<pid>`, then do what `path.<pid>.go` says when it appears. Returns the pid."""
    mark = Path(f"{path}.{os.getpid()}")
    mark.touch()
    order = Path(f"{mark}.go")
    deadline = time.monotonic() + seconds
    while not order.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    match order.read_text():
        case "raise":
            raise ValueError(f"raised in {os.getpid()}")
        case "retry":
            raise self.retry(countdown=0, exc=ValueError(f"retried in {os.getpid()}"))
    return os.getpid()
