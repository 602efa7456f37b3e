"""Jobs that are over at once, and how many of them were in one state at the same time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from celery import Celery

from tests.support.database import one, rows


def publish(app: Celery, arguments: Sequence[object], task: str = "t.wait", **options: Any) -> list[Any]:
    """A job for each of the arguments, all at once."""
    with app.producer_or_acquire() as producer, producer.batch():
        return [app.tasks[task].apply_async((argument,), producer=producer, **options) for argument in arguments]


def watch(url: str, condition: str, tmp_path: Path) -> str:
    """Note from now on how many jobs meet the condition at once. Returns a path for which t.wait does not wait."""
    rows(url, f"""
        create table public.counted (most bigint);
        create function watch() returns trigger language plpgsql security definer as $$
        begin insert into public.counted select count(*) from public.job_queue where {condition}; return null; end $$;
        create trigger watch after update on job_queue for each statement execute function watch()""")
    path = str(tmp_path / "quick")
    Path(path + ".go").touch()
    return path


def begin(url: str) -> None:
    """Count anew."""
    rows(url, "truncate counted")


def most(url: str) -> int:
    """The most at once since then."""
    return int(one(url, "select max(most) from counted"))


def most_of(url: str, app: Celery, argument: object, jobs: int, task: str = "t.wait") -> int:
    """Have so many worked off; the most at once, those included whose end was still on its way."""
    begin(url)
    for result in publish(app, [argument] * jobs, task):
        result.get(timeout=30)
    return most(url)
