"""Programs in processes of their own, beside the workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.database import rows
from tests.support.waiting import wait_until
from tests.support.workers import ROOT


def environment(url: str) -> dict[str, str]:
    """This environment with another database."""
    return {**os.environ, "DATABASE_URL": url}


class Process:
    """A running program whose lines can be waited for."""

    def __init__(self, process: subprocess.Popen[str], out: Path) -> None:
        self.process, self.out = process, out

    @property
    def lines(self) -> list[str]:
        """What it has said so far."""
        return self.out.read_text().splitlines()

    def wait_for(self, text: str) -> None:
        """Return once it has said this."""
        def said() -> bool:
            assert text in self.out.read_text() or self.process.poll() is None, self.out.read_text()
            return text in self.out.read_text()

        wait_until(said, f"{text!r} in {self.lines[-20:]}")


@contextmanager
def program(url: str, out: Path, *arguments: str) -> Iterator[Process]:
    """A Python program of its own, killed at the end."""
    with out.open("w") as file:
        process = subprocess.Popen([sys.executable, "-W", "ignore", *arguments], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=file,
                                   stderr=subprocess.STDOUT, text=True, env=environment(url), start_new_session=True)
    try:
        yield Process(process, out)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


def transient_queues(url: str) -> set[str]:
    """The transient queues there are now."""
    return {row["name"] for row in rows(url, "select name from jobqueue.queue where transient")}
