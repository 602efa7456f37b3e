"""The test application with `result_extended`."""

from __future__ import annotations

from tests.support.app import app

__all__ = ["app"]

app.conf.result_extended = True
