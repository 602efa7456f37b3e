"""Real `celery beat` processes, and what they have sent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.support.database import rows
from tests.support.waiting import wait_until
from tests.support.workers import ROOT

MORTAL = "tests.support.beat_app:MortalScheduler"


class Beat:
    """A running `celery beat`."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process, self.log = process, log

    @property
    def text(self) -> str:
        """Everything it has logged so far."""
        return self.log.read_text(errors="replace")

    def wait_ready(self) -> None:
        """Return when it begins to tick. Fails with its log when it does not start."""
        def ready() -> bool:
            assert self.process.poll() is None, f"beat ended:\n{self.text[-4000:]}"
            return "beat: Starting..." in self.text

        wait_until(ready, "beat starts", 60)

    def wait_dead(self, timeout: float = 30) -> int:
        """Its exit code."""
        return self.process.wait(timeout)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send the signal and wait for the end; returns the exit code."""
        self.process.send_signal(number)
        return self.process.wait(20)


@contextmanager
def beat(url: str, tmp_path: Path, *options: str, scheduler: str = "postgresql", ready: bool = True,
         app: str = "tests.support.beat_app", **env: Any) -> Iterator[Beat]:
    """A beat of the test application on this database, killed at the end."""
    log = tmp_path / f"beat-{uuid.uuid4().hex[:6]}.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "celery", "-A", app, "beat", "-S", scheduler,
             "-l", "INFO", *options],
            cwd=ROOT, stdout=file, stderr=file, stdin=subprocess.DEVNULL, start_new_session=True,
            env={**os.environ, "DATABASE_URL": url, **{key: str(value) for key, value in env.items()}})
    running = Beat(process, log)
    try:
        if ready:
            running.wait_ready()
        yield running
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(10)


@dataclass(frozen=True)
class Tick:
    """A job that a beat has sent: when it was due (its id tells, to the millisecond) and when the transaction began."""

    due: datetime
    sent: datetime


def ticks(url: str, name: str) -> list[Tick]:
    """The jobs of an entry in order."""
    found = rows(url, "select id, created_at from job_queue where envelope::json -> 'headers' ->> 'periodic_task_name' = %s"
                      " order by id", (name,))
    return [Tick(datetime.fromtimestamp((row["id"].int >> 80) / 1000, UTC), row["created_at"]) for row in found]


def check(sent: list[Tick], every: timedelta) -> None:
    """Every tick has one job, save those that went by while the one before was late."""
    assert len(sent) > 1
    slack = timedelta(milliseconds=2)  # ids are cut to the millisecond
    for before, after in pairwise(sent):
        steps = (after.due - before.due) / every
        assert abs(steps - round(steps)) * every <= slack, (before, after)
        assert round(steps) >= 1, (before, after)
        # The next tick is the first one after the moment at which this one was sent.
        assert after.due - every <= before.sent + slack, (before, after)
    for tick in sent:
        assert tick.sent >= tick.due, tick
