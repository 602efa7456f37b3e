"""Real Celery workers in processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]


class Worker:
    """A running `celery worker`."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, name: str) -> None:
        self.process, self.log, self.name = process, log, name

    @property
    def text(self) -> str:
        """Everything it has logged so far."""
        return self.log.read_text(errors="replace")

    def wait_ready(self) -> None:
        """Return when it consumes. Fails with its log when it does not start."""
        def ready() -> bool:
            assert self.process.poll() is None, f"the worker ended:\n{self.text[-4000:]}"
            return " ready." in self.text

        wait_until(ready, f"worker {self.name} is ready", 60)

    def stop(self, number: int = signal.SIGTERM, timeout: float = 30) -> int:
        """Send the signal and wait for the end; returns the exit code. One that hangs says where it does (SIGUSR1)."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGUSR1)
            with suppress(AssertionError, subprocess.TimeoutExpired):
                wait_until(lambda: "LOCAL VARIABLES" in self.text, "it says where it hangs", 5)
                self.process.wait(1)  # all of it
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(10)
            raise AssertionError(f"the worker did not stop on signal {number}:\n{self.text[-20_000:]}") from None


@contextmanager
def worker(url: str, tmp_path: Path, app: str = "tests.support.app", *options: str, ready: bool = True,
           **env: Any) -> Iterator[Worker]:
    """A worker of the test application on this database, stopped at the end."""
    name = f"w{uuid.uuid4().hex[:6]}@test"
    log = tmp_path / f"{name}.log"
    defaults = [] if any(option.startswith(("-c", "--concurrency")) for option in options) else ["-c", "2"]
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "celery", "-A", app, "worker", "-n", name, "-l", "INFO",
             "--without-mingle", *defaults, *options],
            cwd=ROOT, stdout=file, stderr=file, stdin=subprocess.DEVNULL, start_new_session=True,
            env={**os.environ, "DATABASE_URL": url, **{key: str(value) for key, value in env.items()}})
    running = Worker(process, log, name)
    try:
        if ready:
            running.wait_ready()
        yield running
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)
