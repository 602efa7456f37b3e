"""Jobs that are over at once, and how many of them were in one state at the same time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from celery import Celery

from tests.support.database import one, rows
from tests.support.waiting import wait_until


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


def meet_a_slow_one(url: str, app: Celery, quick: str, slow: Path) -> list[Any]:
    """A worker takes t.wait for quick, then meets a run that is not, with twenty others behind it. Their results, that one's
    first.
    """
    wait_until(lambda: most_of(url, app, quick, 50) >= 2, "the worker knows that the task is quick")
    begin(url)
    results = publish(app, [str(slow), *[quick] * 20])
    wait_until(slow.exists, "the one that is slow this time runs")
    return results


def note_moves(url: str, before: str, after: str) -> None:
    """Note from now on, in the table `moved`, the id of each job that goes from one status to the other, each time."""
    rows(url, f"""
        create table public.moved (id uuid);
        create function note_move() returns trigger language plpgsql security definer as $$
        begin insert into public.moved values (new.id); return null; end $$;
        create trigger note_move after update on job_queue for each row
            when (old.status = '{before}' and new.status = '{after}') execute function note_move()""")
