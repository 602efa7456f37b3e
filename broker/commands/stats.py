"""How the queues stand: counts, ages, pace, and who works on them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from celery_jobqueue.broker.claims import text_array
from celery_jobqueue.broker.commands.store import STATUSES, Document, JobStore
from celery_jobqueue.broker.commands.text import Cell, Column, age, count, table
from celery_jobqueue.broker.commands.views import Style
from celery_jobqueue.broker.session import Row
from celery_jobqueue.broker.sql import statement

__all__ = ["MINUTES", "QueueStats", "as_document", "as_text", "pace", "queues"]

#: The pace is that of this many minutes.
MINUTES = 5
_COUNTED = 10_000  # nobody counts further one by one; beyond it a sample tells
_FEW = 2_000  # of the newest jobs, for a pace that is looked at twice a second
_PAGES = 2_000  # pages of that sample; a table that has no more of them is counted


@dataclass(slots=True)
class QueueStats:
    """One queue of jobs. counts: jobs by status; those in `estimated` come from a sample.

    ready: due and waiting for a worker. scheduled: not due yet. claimed: taken by a worker, not started. oldest: seconds the
    job that waits longest has been due. per_minute: jobs completed per minute in the last MINUTES, as far as they are among
    the newest jobs or just before the next ones. failed_lately: in the last hour.
    """

    name: str
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STATUSES, 0))
    estimated: set[str] = field(default_factory=set)
    ready: int = 0
    scheduled: int = 0
    claimed: int = 0
    workers: int = 0
    oldest: float = 0.0
    per_minute: float = 0.0
    failed_lately: int = 0

    def document(self) -> Document:
        """For programs."""
        return {
            "queue": self.name, **self.counts, "estimated": sorted(self.estimated), "ready": self.ready,
            "scheduled": self.scheduled, "claimed": self.claimed, "oldest_ready_seconds": round(self.oldest, 3),
            "workers": self.workers, "completed_per_minute": round(self.per_minute, 2), "failed_last_hour": self.failed_lately,
        }


def queues(store: JobStore) -> list[QueueStats]:
    """Every queue that holds jobs, ever held some of those still there, or was declared. Raises psycopg.Error."""
    now, failures, ended, sample = store.look(
        (statement("watch_queues"), (text_array(()), str(_COUNTED))),
        (statement("watch_failures"), (str(_COUNTED),)),
        (statement("completed_lately"), (f"{MINUTES} minutes", str(_COUNTED))),
        (statement("count_sample"), (str(_PAGES), f"{MINUTES} minutes")))
    found: defaultdict[str, QueueStats] = _Queues()
    _pace(found, ended)
    share = 100.0
    for name, status, number, percent, lately, later in sample:
        queue, share = found[name or ""], float(percent or 100)
        queue.counts[status or ""] = round(int(number or 0) * 100 / share)
        if status == "pending":
            queue.scheduled = round(int(later or 0) * 100 / share)
        if share >= 100 and status == "completed":
            queue.per_minute = int(lately or 0) / MINUTES  # all were counted
    for name, last_hour, _ in failures:
        found[name or ""].failed_lately = int(last_hour or 0)
    failed = {name or "": int(number or 0) for name, _, number in failures}
    _waiting_and_running(found, now)
    for name, newest in failed.items():
        found[name].counts["failed"] = max(found[name].counts["failed"], newest)
    for queue in found.values():
        if sum(failed.values()) < _COUNTED:
            queue.counts["failed"] = failed.get(queue.name, 0)
        elif share < 100:
            queue.estimated.add("failed")
        if share < 100:
            queue.estimated.add("completed")
    return [found[name] for name in sorted(found)]


def pace(store: JobStore) -> list[QueueStats]:
    """As queues, but without what takes more than a few milliseconds: the numbers of ended jobs."""
    now, failures, ended = store.look(
        (statement("watch_queues"), (text_array(()), str(_COUNTED))),
        (statement("watch_failures"), (str(_FEW),)),
        (statement("completed_lately"), (f"{MINUTES} minutes", str(_FEW))))
    found: defaultdict[str, QueueStats] = _Queues()
    _pace(found, ended)
    for name, last_hour, _ in failures:
        found[name or ""].failed_lately = int(last_hour or 0)
    _waiting_and_running(found, now)
    return [found[name] for name in sorted(found)]


class _Queues(defaultdict[str, QueueStats]):
    def __missing__(self, name: str) -> QueueStats:
        self[name] = made = QueueStats(name)
        return made


def _waiting_and_running(found: defaultdict[str, QueueStats], rows: Sequence[Row]) -> None:
    """What stands in small indexes is counted, and outranks the sample unless the count stopped at its cap."""
    for name, transient, ready, scheduled, claimed, processing, held, workers, oldest in rows:
        if transient == "t":
            continue
        queue = found[name or ""]
        queue.scheduled = max(queue.scheduled, int(scheduled or 0)) if int(scheduled or 0) >= _COUNTED else int(scheduled or 0)
        queue.ready, queue.claimed = int(ready or 0), int(claimed or 0)
        queue.workers, queue.oldest = int(workers or 0), float(oldest or 0)
        for status, counted, capped in (
                ("pending", queue.ready + queue.scheduled + queue.claimed, max(queue.ready, queue.scheduled) >= _COUNTED),
                ("processing", int(processing or 0), int(held or 0) >= _COUNTED)):
            if not capped:
                queue.counts[status] = counted
            else:
                queue.counts[status] = max(counted, queue.counts[status])
                queue.estimated.add(status)


def _pace(found: defaultdict[str, QueueStats], rows: Sequence[Row]) -> None:
    for name, lately, seen, first in rows:
        # Where all that were looked at ended lately, there are more: then the pace is that of the moments that were seen.
        all_of_them = lately == seen and int(seen or 0) >= _FEW // 20
        seconds = min(float(first or 0), MINUTES * 60) if all_of_them else MINUTES * 60
        found[name or ""].per_minute = int(lately or 0) * 60 / max(seconds, 1.0)


# -- showing --------------------------------------------------------------------------------------------------------------


def as_document(found: Sequence[QueueStats], workers: Sequence[Document]) -> Document:
    """For programs, one document."""
    named = [{key: value for key, value in worker.items() if key != "now"} for worker in workers]
    return {"queues": [queue.document() for queue in found], "workers": named}


_QUEUES = (Column("queue", least=8), Column("waiting", right=True), Column("later", right=True), Column("running", right=True),
           Column("oldest", right=True), Column("done/min", right=True), Column("done", right=True), Column("failed", right=True),
           Column("failed/h", right=True), Column("workers", right=True))
_WORKERS = (Column("worker", least=12), Column("running", right=True), Column("up", right=True), Column("seen", right=True),
            Column("queues", least=8), Column("where", least=8))


def as_text(found: Sequence[QueueStats], workers: Sequence[Document], width: int | None, style: Style) -> list[str]:
    """Two tables."""
    def heading(text: str) -> str:
        return style(text, bold=True)

    def red(text: str) -> str:
        return style(text, fg="red") if text != "0" else text

    lines = table(_QUEUES, [_queue(queue, red) for queue in found], width, heading=heading) if found else ["no queues yet"]
    if any(queue.estimated for queue in found):
        lines.append(f"≈ estimated from {_PAGES} of the table's pages")
    alive = [worker for worker in workers if worker["alive"]]
    lines.append("")
    if alive:
        lines += table(_WORKERS, [_worker(worker) for worker in alive], width, heading=heading)
    else:
        lines.append("no worker is alive")
    if dead := [str(worker["name"]) for worker in workers if not worker["alive"]]:
        lines.append(f"no longer alive, their jobs are taken back: {', '.join(dead)}")
    return lines


def _queue(queue: QueueStats, red: Style) -> list[str | Cell]:
    exact = "pending" not in queue.estimated
    waiting = max(queue.counts["pending"] - queue.scheduled, queue.ready)
    per_minute = f"{queue.per_minute:.0f}" if queue.per_minute >= 10 or not queue.per_minute else f"{queue.per_minute:.1f}"
    return [queue.name, count(waiting, exact), count(queue.scheduled, queue.scheduled < _COUNTED),
            count(queue.counts["processing"], "processing" not in queue.estimated), age(queue.oldest) if queue.ready else "",
            per_minute, count(queue.counts["completed"], "completed" not in queue.estimated),
            Cell(count(queue.counts["failed"], "failed" not in queue.estimated), red), Cell(str(queue.failed_lately), red),
            str(queue.workers)]


def _worker(worker: Document) -> list[str | Cell]:
    now = datetime.fromisoformat(worker["now"])
    up, seen = (age((now - datetime.fromisoformat(worker[name])).total_seconds()) for name in ("started_at", "heartbeat_at"))
    return [worker["name"], str(worker["processing"]), up, f"{seen} ago", ", ".join(worker["queues"] or ()),
            f"{worker['pid']} at {worker['host']}"]
