"""A task whose process seems to have ended, as a killed one does in the moment before the system knows how it ended."""

from __future__ import annotations

import os
import time
from pathlib import Path

from tests.support.app import app


@app.task(name="t.half_dead", shared=False)
def half_dead(path: str) -> None:
    """Closes everything that its process shares with the worker, says so, and stays."""
    os.closerange(3, 4096)
    Path(path).touch()
    time.sleep(600)
