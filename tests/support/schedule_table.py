"""Schedulers in this process, which a test ticks by hand, and the rows they share."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from celery_jobqueue.broker.beat import DatabaseScheduler
from tests.support.app import make_app
from tests.support.database import rows

HOURLY: dict[str, Any] = {"task": "t.add", "schedule": 3600, "args": (1, 2)}
#: Columns that hold it.
JSON = ("args", "kwargs", "options")
MakeBeat: TypeAlias = Callable[..., DatabaseScheduler]


@contextmanager
def schedulers(database_url: str) -> Iterator[MakeBeat]:
    """Makes schedulers of applications with this beat_schedule and these settings."""
    made: list[DatabaseScheduler] = []

    def make(schedule: dict[str, Any] | None = None, *, main: str = "shop", url: str = database_url, **settings: Any,
             ) -> DatabaseScheduler:
        app = make_app(url, beat_schedule=schedule or {}, **{"result_expires": None, **settings})
        app.main = main
        made.append(DatabaseScheduler(app=app))
        return made[-1]

    yield make
    for scheduler in made:
        scheduler.close()
        scheduler.app.close()


def spin(*beats: DatabaseScheduler) -> None:
    """Tick until nothing is due."""
    for scheduler in beats:
        while scheduler.tick() == 0:
            pass


def table(url: str) -> dict[str, dict[str, Any]]:
    """The rows of the schedule by name."""
    return {row["name"]: row for row in rows(url, "select * from jobqueue.schedule")}


def insert(url: str, **fields: Any) -> None:
    """A person's row."""
    fields = {"name": "mine", "task": "t.add", "schedule": "1 hour", "args": [1, 2], **fields}
    values = [json.dumps(value) if name in JSON else value for name, value in fields.items()]
    rows(url, f"insert into jobqueue.schedule ({', '.join(fields)}) values ({', '.join(['%s'] * len(fields))})", values)


def make_due(url: str, name: str = "mine", ago: str = "0 seconds") -> None:
    """Its next tick is now, or was some time ago."""
    rows(url, "update jobqueue.schedule set next_run_at = now() - %s::interval where name = %s", (ago, name))


def jobs(url: str) -> list[dict[str, Any]]:
    """What was sent, in the order of the ticks."""
    return rows(url, "select *, envelope::json -> 'headers' as headers, payload::json as body from job_queue order by id")
