"""The application's web pages: issue certificates and follow them, and the page that verifies one. `python -m tasks.web`."""

from __future__ import annotations

from tasks.web.app import create_app
from tasks.web.auth import User
from tasks.web.options import WebOptions

__all__ = ["User", "WebOptions", "create_app"]
