"""An application that speaks SQL only: the queue's public functions, called by name."""

from __future__ import annotations

import json
import uuid
from typing import Any, TypeAlias

import psycopg

Conn: TypeAlias = psycopg.Connection[dict[str, Any]]


def value(conn: Conn, query: str, *params: Any) -> Any:
    """The only value of the answer."""
    row = conn.execute(query, params).fetchone()
    assert row is not None
    return next(iter(row.values()))


def enqueue(conn: Conn, task: str = "t.add", **options: Any) -> uuid.UUID:
    """enqueue_job with named arguments."""
    named = "".join(f", {name} => %s" for name in options)
    values = [json.dumps(option) if name in ("args", "kwargs") else option for name, option in options.items()]
    found = value(conn, f"select enqueue_job(%s{named})", task, *values)
    assert isinstance(found, uuid.UUID)
    return found


def take(conn: Conn, n: int = 1, lease: str = "5 minutes", queue: str = "celery") -> list[dict[str, Any]]:
    """get_next_job."""
    return conn.execute("select * from get_next_job(%s, %s, %s)", (queue, n, lease)).fetchall()


def job(conn: Conn, id_: uuid.UUID) -> dict[str, Any]:
    """The job's row."""
    row = conn.execute("select * from job_queue where id = %s", (id_,)).fetchone()
    assert row is not None
    return row
