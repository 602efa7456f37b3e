"""Groups of additions, and how they came into the queue."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from celery import Celery, Signature, group, signals
from celery.utils.dispatch import Signal

from tests.support.database import one, rows


def adding(app: Celery, numbers: range, **options: Any) -> group:
    """A group of so many additions."""
    return group([app.tasks["t.add"].si(n, n).set(**options) for n in numbers], app=app)


def counting(app: Celery, url: str, written: list[int], numbers: int, argument: object = None) -> Iterator[Signature]:
    """Makes so many additions, and notes before each how many jobs are in the queue."""
    for n in range(numbers):
        written.append(one(url, "select count(*) from job_queue"))
        yield app.tasks["t.add"].si(n, n if argument is None else argument)


def published(url: str) -> list[int]:
    """The numbers of the jobs, in the order of publishing."""
    return [int(row["payload"][2:].partition(",")[0]) for row in rows(url, "select payload from job_queue order by id")]


def transactions(url: str) -> list[int]:
    """How many jobs each transaction wrote, in its order: created_at is the moment a transaction began."""
    return [row["n"] for row in rows(url, "select count(*) as n from job_queue group by created_at order by created_at")]


@contextmanager
def listening(signal: Signal, receiver: Callable[..., Any]) -> Iterator[None]:
    """In the block the receiver is told."""
    signal.connect(receiver, weak=False)
    try:
        yield
    finally:
        signal.disconnect(receiver)


def one_by_one(apart: bool = True) -> AbstractContextManager[None]:
    """With this they are sent as Celery alone would."""
    return listening(signals.after_task_publish, lambda **_: None) if apart else nullcontext()
