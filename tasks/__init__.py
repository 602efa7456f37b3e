"""The application: `celery -A tasks worker`."""

from __future__ import annotations

from tasks.app import app
from tasks.certificate import generate_certificate

__all__ = ["app", "generate_certificate"]
