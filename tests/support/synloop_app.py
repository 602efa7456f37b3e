"""The test application in workers that drain their events by blocking (Celery's synloop), whatever their pool."""

from __future__ import annotations

from celery_jobqueue.broker.transport import Transport
from tests.support.app import app

__all__ = ["app"]

Transport.implements = Transport.implements.extend(asynchronous=False)
