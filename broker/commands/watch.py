"""Jobs, live: a screen that is drawn anew in a terminal, a line per change in a pipe."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar

import click
import psycopg

from celery_jobqueue.broker.commands import stats
from celery_jobqueue.broker.commands.store import Filter, Job, JobStore
from celery_jobqueue.broker.commands.text import age, cut, screen_width
from celery_jobqueue.broker.commands.views import Style, change, job_table

__all__ = ["watch_all", "watch_these"]

_PATIENCE = 60.0  # seconds a server may be gone
_FOLLOWED = 500  # jobs of each kind that are looked at for changes

T = TypeVar("T")


def watch_these(store: JobStore, ids: Sequence[str], interval: float, as_json: bool, style: Style) -> bool:
    """Until all of these jobs have ended. Whether all of them completed."""
    seen: dict[str, object] = {}

    def look() -> list[Job]:
        return store.by_id(ids)

    with _screen(as_json) as draw:
        for jobs in _looks(look, interval):
            here = {job.id for job in jobs}
            gone = [id for id in ids if id not in here]
            if draw is not None:
                lines = job_table(jobs, screen_width(), style) if jobs else []
                draw(lines + [f"{id}  deleted" for id in gone])
            else:
                _say_changes(jobs, seen, as_json)
                for id in gone:
                    if seen.get(id) != "deleted":
                        seen[id] = "deleted"
                        click.echo(json.dumps({"id": id, "status": "deleted"}) if as_json else f"deleted  {id}")
            if all(job.ended for job in jobs):
                return not gone and all(job.status == "completed" for job in jobs)
    raise AssertionError("the looks never end")


def watch_all(store: JobStore, wanted: Filter, interval: float, as_json: bool, style: Style) -> None:
    """Until interrupted: what runs, what is next and what has ended lately."""
    kinds = [replace(wanted, statuses=frozenset(statuses))
             for statuses in (("processing",), ("pending",), ("completed", "failed"))]
    seen: dict[str, object] = {}
    open_ids: set[str] = set()  # what had not ended when last seen: its end is told, wherever it stands then
    first = True

    with _screen(as_json) as draw:
        limit = _FOLLOWED if draw is None else shutil.get_terminal_size().lines

        def look() -> tuple[list[Job], list[Job], list[Job]]:
            running, waiting, ended = store.several([(kind, limit) for kind in kinds])
            here = {job.id for job in (*running, *waiting, *ended)}
            others = store.by_id(sorted(open_ids - here)[:_FOLLOWED])
            ended = sorted([*ended, *(job for job in others if job.ended)], key=lambda job: job.text("finished_at"), reverse=True)
            return running, waiting, ended

        for running, waiting, ended in _looks(look, interval):
            open_ids = {job.id for job in (*running, *waiting)}
            if draw is not None:
                draw(_overview(stats.pace(store), running, waiting, ended, style))
                continue
            if first:  # what had ended before is no change
                seen.update((job.id, _state(job)) for job in ended)
                first = False
            _say_changes([*reversed(ended), *running, *waiting], seen, as_json)
            here = {job.id for job in (*running, *waiting, *ended)}
            seen = {id: state for id, state in seen.items() if id in here}


def _overview(queues: Sequence[stats.QueueStats], running: list[Job], waiting: list[Job], ended: list[Job],
              style: Style) -> list[str]:
    width, height = screen_width() or 80, shutil.get_terminal_size().lines
    lines = [cut(_headline(queue), width) for queue in queues] + [""]
    room = max(6, height - len(lines) - 2)
    # The running ones first; of those that ended at least a few, so that one sees things move.
    kept = running[:max(room - 4, room // 2)]
    late = ended[:max(room // 3, room - len(kept) - len(waiting))]
    kept = kept + waiting[:max(0, room - len(kept) - len(late))]
    shown = kept + late[:room - len(kept)]
    return lines + (job_table(shown, width, style) if shown else ["no jobs"])


def _headline(queue: stats.QueueStats) -> str:
    waiting = f"{'≥' * ('pending' in queue.estimated)}{queue.ready} waiting"
    waiting += f" for {age(queue.oldest)}" if queue.ready else ""
    parts = [waiting, f"{queue.counts['processing']} running", f"{queue.per_minute:.0f} done/min"]
    parts += [f"{queue.scheduled} later"] * bool(queue.scheduled)
    parts += [f"{queue.failed_lately} failed in the last hour"] * bool(queue.failed_lately)
    parts += ["no worker"] * (not queue.workers)
    return f"{queue.name}: {', '.join(parts)}"


# -- looking --------------------------------------------------------------------------------------------------------------


def _looks(look: Callable[[], T], interval: float) -> Iterator[T]:
    """One look after the other. A server that restarts is waited for."""
    lost = 0.0
    while True:
        began = time.monotonic()
        try:
            yield look()
            lost = 0.0
        except psycopg.OperationalError:
            lost = lost or began
            if time.monotonic() - lost > _PATIENCE:
                raise
        time.sleep(max(0.0, began + interval - time.monotonic()))


def _state(job: Job) -> object:
    """What makes a difference."""
    return (job.status, job.row["total_starts"], job.row["attempts"], job.row["claimed"], job.row["error_message"],
            json.dumps(job.progress))


def _say_changes(jobs: Sequence[Job], seen: dict[str, object], as_json: bool) -> None:
    for job in jobs:
        state = _state(job)
        if seen.get(job.id) != state:
            seen[job.id] = state
            click.echo(json.dumps(job.document(), ensure_ascii=False) if as_json else change(job, screen_width()))
    sys.stdout.flush()


# -- the terminal ---------------------------------------------------------------------------------------------------------


@contextmanager
def _screen(as_json: bool) -> Iterator[Callable[[Sequence[str]], None] | None]:
    """Draws lines over those it drew before; None where that is not wanted or not possible."""
    if as_json or not sys.stdout.isatty() or os.environ.get("TERM", "dumb") == "dumb":
        yield None
        return
    drawn = 0

    def draw(lines: Sequence[str]) -> None:
        nonlocal drawn
        lines = lines[:max(1, shutil.get_terminal_size().lines - 1)]
        up = f"\x1b[{drawn}A" if drawn else ""
        sys.stdout.write(up + "\r" + "".join(f"{line}\x1b[K\n" for line in lines) + "\x1b[J")
        sys.stdout.flush()
        drawn = len(lines)

    sys.stdout.write("\x1b[?25l")  # no cursor that jumps about
    try:
        yield draw
    finally:
        sys.stdout.write("\x1b[?25h")
        sys.stdout.flush()
