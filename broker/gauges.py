"""The queue as Prometheus gauges: those that Flower's `/metrics` show, and any other exporter may.

What they mean is told in docs/monitoring.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from celery_jobqueue.broker.session import Row, Session
from celery_jobqueue.broker.sql import statement

__all__ = ["Health", "health_gauges", "look_at_health"]


@dataclass(frozen=True, slots=True)
class Health:
    """The view job_queue_health, durations in seconds (0.0 where there is nothing that could be old)."""

    oldest_pending_seconds: float
    longest_running_seconds: float
    oldest_snapshot_seconds: float
    hidden_sessions: float
    stuck_jobs: float
    workers: float
    live_tuples: float
    dead_tuples: float
    table_bytes: float


_MEANINGS = {
    "longest_running_seconds": "For how long the job that was started first has been running",
    "oldest_snapshot_seconds": "Age of the oldest transaction that keeps vacuum from removing dead rows",
    "hidden_sessions": "Sessions whose age the tables' owner may not see: oldest_snapshot_seconds may be older",
    "stuck_jobs": "Jobs whose worker is dead and that nobody has taken back yet",
    "workers": "Worker processes that are alive",
    "live_tuples": "Rows of the table, as PostgreSQL's statistics know it",
    "dead_tuples": "Old versions of rows that vacuum has not removed yet, as PostgreSQL's statistics know it",
    "table_bytes": "Size of the table with its indexes",
}


def look_at_health(session: Session) -> Health:
    """Ask the view. Raises psycopg.Error."""
    [[row]] = session.run((statement("watch_health"), ()))
    return _health(row)


def _health(row: Row) -> Health:
    return Health(**{field.name: float(value or 0) for field, value in zip(fields(Health), row, strict=True)})


def health_gauges(health: Health) -> Iterator[Any]:
    """As prometheus_client's registry asks for them. The oldest pending job is told by queue, beside these."""
    from prometheus_client.core import GaugeMetricFamily

    for name, meaning in _MEANINGS.items():
        yield GaugeMetricFamily(f"jobqueue_{name}", meaning, getattr(health, name))
