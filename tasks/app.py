"""The Celery application and its own database engine."""

from __future__ import annotations

import os
from functools import lru_cache

from celery import Celery
from sqlalchemy import Engine, create_engine

from celery_jobqueue.db.url import database_url, looks_like_transaction_pooler, sqlalchemy_url

__all__ = ["app", "engine"]

app = Celery("tasks")
app.config_from_object("tasks.settings")


@lru_cache(maxsize=1)
def engine() -> Engine:
    """The application's own SQLAlchemy engine, made at first use."""
    url = database_url()
    pooled = {"prepare_threshold": None} if looks_like_transaction_pooler(url) else {}
    made = create_engine(sqlalchemy_url(url), pool_size=2, pool_pre_ping=True,
                         connect_args={"connect_timeout": 10, **pooled})
    # A forked process opens connections of its own and leaves its parent's alone.
    os.register_at_fork(after_in_child=lambda: made.dispose(close=False))
    return made
