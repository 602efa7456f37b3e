"""Workers and publishing applications of a measurement."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from amqp.exceptions import ChannelError
from celery import Celery

from tests.benchmarks.app import make_app
from tests.benchmarks.contenders import Contender
from tests.benchmarks.journal import Journal
from tests.support.waiting import wait_until
from tests.support.workers import ROOT


@dataclass(frozen=True, slots=True)
class Variant:
    """How a worker is run. prefetch: messages in all that it may hold, a multiple of the concurrency."""

    pool: str = "prefork"
    acks: str = "late"
    results: str = "ignored"
    concurrency: int = 2
    prefetch: int = 8
    events: bool = False

    def __str__(self) -> str:
        return (f"{self.pool} -c {self.concurrency}, prefetch {self.prefetch}, acks {self.acks}, results {self.results}"
                + (", -E" if self.events else ""))


@dataclass(slots=True)
class Bench:
    """A contender in a variant: the same settings for its workers and for who publishes."""

    contender: Contender
    variant: Variant
    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    journal: Journal = field(init=False)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.journal = Journal(self.folder / f"{self.contender.name}.journal")

    def setup(self, **options: Any) -> dict[str, Any]:
        """For `make_app`."""
        solo = self.variant.pool == "solo"
        return {"journal": str(self.folder / f"{self.contender.name}.journal"), "settings": {
            "broker_url": self.contender.broker, "result_backend": self.contender.results,
            "broker_transport_options": {**self.contender.options, **self.options, **options},
            "task_acks_late": self.variant.acks == "late", "task_ignore_result": self.variant.results == "ignored",
            "worker_prefetch_multiplier": max(1, self.variant.prefetch // (1 if solo else self.variant.concurrency)),
            **self.settings}}

    def app(self) -> Celery:
        """For publishing from this process."""
        return make_app(self.setup())

    @contextmanager
    def worker(self, *options: str, jobs: int = 0, ready: bool = True) -> Iterator[subprocess.Popen[bytes]]:
        """A running worker; `jobs`: how many the null transport delivers."""
        variant = self.variant
        mark = self.folder / f"ready-{os.urandom(4).hex()}"
        log = self.folder / f"{self.contender.name}-worker.log"
        extra = {"jobs": jobs} if self.contender.name == "null" else {}
        with log.open("ab") as file:
            process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "celery", "-A", "tests.benchmarks.app", "worker", "-l", "WARNING",
                 "-n", f"{mark.name}@bench", "-P", variant.pool, "-c", str(1 if variant.pool == "solo" else variant.concurrency),
                 "--without-mingle", *(["-E"] if variant.events else []), *options],
                cwd=ROOT, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True,
                env={**os.environ, "BENCH_SETUP": json.dumps(self.setup(**extra)), "BENCH_READY": str(mark)})

        def started() -> bool:
            assert process.poll() is None, f"the worker ended:\n{log.read_text(errors='replace')[-4000:]}"
            return mark.exists()

        try:
            if ready:
                wait_until(started, f"{self.contender.name}'s worker is ready", 60)
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait(10)
            mark.unlink(missing_ok=True)

    def fill(self, number: int, options: Callable[[int], dict[str, Any]] = lambda _: {}) -> None:
        """Publish that many jobs, as fast as the contender lets us; what this takes is not measured. options: of each."""
        self.contender.empty()
        self.journal.clear()
        if self.contender.name == "null":
            return
        application = self.app()
        job = application.tasks["bench.job"]
        with application.producer_or_acquire() as producer:
            for begin in range(0, number, 1000):
                with producer.batch() if self.contender.name == "ours" else nullcontext():
                    for each in range(begin, min(begin + 1000, number)):
                        job.apply_async(producer=producer, **options(each))
        application.close()

    def check_drained(self, jobs: int) -> None:
        """End with an error unless so many jobs ran and none is left."""
        ran, left = len(self.journal), self.waiting()
        if ran != jobs or left:
            raise SystemExit(f"{self.contender.name}: {ran} of {jobs} jobs were run, {left} are left; see {self.folder}")

    def waiting(self) -> int:
        """How many jobs are left in the queue."""
        if self.contender.name == "null":
            return 0
        application, count = self.app(), 0
        with application.connection_for_read() as connection, suppress(ChannelError):  # Redis has no empty queues
            count = int(connection.default_channel.queue_declare("celery", passive=True).message_count)
        application.close()
        return count
