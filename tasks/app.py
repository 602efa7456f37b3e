"""The Celery application, configured for jobs that matter more than a microsecond."""

from __future__ import annotations

from functools import lru_cache

from celery import Celery
from sqlalchemy import Engine, create_engine

from celery_jobqueue.db.url import database_url, looks_like_transaction_pooler, sqlalchemy_url

__all__ = ["app", "engine"]

app = Celery("tasks", broker=database_url(), backend=database_url())
app.conf.update(
    # A job is finished when its work is done, not when somebody takes it; a lost worker's jobs run again.
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    broker_transport_options={"automatic_retries": True},
    # Claim what can run: an urgent certificate never waits behind a hoard, and no idle worker starves beside a busy one.
    worker_prefetch_multiplier=1,
    task_track_started=False,  # the row says `processing` anyway
    task_serializer="json",
    result_serializer="json",
    accept_content=["json"],
    result_expires=7 * 24 * 3600,
    worker_send_task_events=True,
    task_send_sent_event=True,
    broker_connection_retry_on_startup=True,
    worker_cancel_long_running_tasks_on_connection_loss=False,
    enable_utc=True,
    timezone="UTC",
)


@lru_cache(maxsize=1)
def engine() -> Engine:
    """The application's own SQLAlchemy engine. Made at first use in each process, so nothing is shared over a fork."""
    url = database_url()
    pooled = {"prepare_threshold": None} if looks_like_transaction_pooler(url) else {}
    return create_engine(sqlalchemy_url(url), pool_size=2, pool_pre_ping=True, connect_args=pooled)
