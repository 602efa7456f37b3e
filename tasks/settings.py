"""The application's Celery settings, for jobs that matter more than a microsecond.

Celery reads this module when a setting is first asked for, so `import tasks` alone starts no server and needs none.
"""

from __future__ import annotations

from celery_jobqueue.db.url import database_url

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
