"""The application: `celery -A tasks worker`."""

from __future__ import annotations

from tasks.app import app
from tasks.bulk.finish import finish_batch
from tasks.certificate import generate_certificate, preview_certificate, send_certificate

__all__ = ["app", "finish_batch", "generate_certificate", "preview_certificate", "send_certificate"]
