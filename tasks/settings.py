"""The application's Celery settings, for jobs that matter more than a microsecond.

Celery reads this module when a setting is first asked for, so `import tasks` alone starts no server and needs none.
"""

from __future__ import annotations

import os

from celery_jobqueue.db.errors import ConfigurationError
from celery_jobqueue.db.url import database_url


def _verification_url(given: str) -> str:
    """The address a certificate's QR code leads to, with {serial} in it; empty when there is none."""
    given = given.strip()
    if given and not given.startswith(("https://", "http://")):
        raise ConfigurationError(f"VERIFY_URL {given[:80]!r} is no web address: write https://certificates.example.org/verify/{{serial}}")
    return given if not given or "{serial}" in given else given.rstrip("/") + "/{serial}"


broker_url = result_backend = database_url()

# A job is finished when its work is done, not when somebody takes it; a lost worker's jobs run again.
task_acks_late = True
task_reject_on_worker_lost = True
broker_transport_options = {"automatic_retries": True}
# Claim what can run: an urgent certificate never waits behind a hoard, and no idle worker starves beside a busy one.
worker_prefetch_multiplier = 1
task_track_started = False  # the row says `processing` anyway

task_serializer = result_serializer = "json"
accept_content = ["json"]
result_expires = 7 * 24 * 3600

worker_send_task_events = True
task_send_sent_event = True
broker_connection_retry_on_startup = True
worker_cancel_long_running_tasks_on_connection_loss = False
enable_utc = True
timezone = "UTC"

#: Where a certificate is verified, for designs that name no `verify_url` of their own. Empty: the QR code is left out.
verification_url = _verification_url(os.environ.get("VERIFY_URL", ""))
