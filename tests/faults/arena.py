"""Where a scenario happens: a database of its own, workers, published jobs, and what is known of the harm done."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any

import psutil
import psycopg
from celery import Celery

from tests.faults.app import make_app
from tests.faults.scenario import Scenario, Verdict
from tests.support import workers
from tests.support.database import one, rows
from tests.support.waiting import wait_until

_BATCH = 500  # jobs published in one statement


class Arena:
    """One run of a scenario.

    url: the scenario's own, migrated database. folder: for logs and the ledger. server: home of its embedded server, which it may
    stop and kill (only with own_server). random: everything that is left to chance, from the seed.
    """

    def __init__(self, scenario: Scenario, url: str, folder: Path, seed: int, jobs: int, server: Path | None = None) -> None:
        self.scenario, self.url, self.folder, self.jobs = scenario, url, folder, jobs
        self._server = server
        #: The database as the workers call it, where that is not `url`.
        self.worker_url: str | None = None
        self.random = Random(seed)
        self.verdict = Verdict(scenario.name, seed)
        self.ledger = folder / "ledger"
        self.published: dict[str, str] = {}  # task id → task name
        self.workers: list[workers.Worker] = []
        #: How many jobs may have been done twice: their task had ended when the harm was done, and nobody else knew.
        self.may_run_twice = 0
        #: A job's task may begin again, because of the harm. Else no row may know of a second start either.
        self.may_start_again = True
        #: Running jobs were given back uncounted, so a row may know of fewer starts than its task.
        self.starts_are_given_back = False
        self._stack = ExitStack()
        self._app: Celery | None = None

    def __enter__(self) -> Arena:
        return self

    def __exit__(self, *error: object) -> None:
        if self._app is not None:
            if consumer := getattr(self._app.backend, "result_consumer", None):
                consumer.stop()
            self._app.close()
        self._stack.close()

    # -- telling ------------------------------------------------------------------------------------------------------

    def check(self, kept: object, promise: str) -> None:
        """Note a broken promise unless `kept` is true; the scenario goes on."""
        if not kept:
            self.verdict.broken.append(promise)

    def note(self, text: str) -> None:
        """Say it below the table."""
        self.verdict.notes.append(text)

    def recovered(self, seconds: float) -> None:
        """The harm was felt for so long; the longest counts."""
        self.verdict.recovery = max(self.verdict.recovery or 0.0, seconds)

    def pause(self, shortest: float, longest: float) -> None:
        """A random time. The only sleep a scenario needs: what it waits for afterwards is a condition."""
        time.sleep(self.random.uniform(shortest, longest))

    # -- jobs ---------------------------------------------------------------------------------------------------------

    @property
    def app(self) -> Celery:
        """An application that publishes here."""
        if self._app is None:
            self._app = make_app(self.url)
        return self._app

    def publish(self, n: int, task: str = "f.work", *, seconds: tuple[float, float] | None = None, args: tuple[Any, ...] = (),
                **options: Any) -> list[str]:
        """Publish n jobs in batches; returns their task ids. seconds: shortest and longest run of f.work."""
        ids: list[str] = []
        with self.app.producer_or_acquire() as producer:
            for first in range(0, n, _BATCH):
                with producer.batch():
                    for _ in range(min(_BATCH, n - first)):
                        arguments = args if seconds is None else (round(self.random.uniform(*seconds), 4),)
                        ids.append(self.app.tasks[task].apply_async(arguments, producer=producer, **options).id)
        self.published.update(dict.fromkeys(ids, task))
        return ids

    def note_published(self, task: str, *ids: str) -> None:
        """Jobs that the scenario published itself; they count like those of publish()."""
        self.published.update(dict.fromkeys(ids, task))

    def query(self, text: str, params: Any = None) -> list[dict[str, Any]]:
        """Rows of the scenario's database."""
        return rows(self.url, text, params)

    def value(self, text: str, params: Any = None) -> Any:
        """The first column of the first row."""
        return one(self.url, text, params)

    def job(self, task_id: str) -> dict[str, Any]:
        """A job's row."""
        return self.query("select * from job_queue where task_id = %s", (task_id,))[0]

    def unfinished(self) -> int:
        """How many jobs have not ended."""
        return int(self.value("select count(*) from job_queue where status in ('pending', 'processing')"))

    def wait_ended(self, timeout: float = 300.0) -> None:
        """Return when every job has ended, or no job has ended for `timeout` seconds; then they are stuck."""
        left, since = -1, time.monotonic()
        while (now := self.unfinished()) and time.monotonic() - since < timeout:
            if now != left:
                left, since = now, time.monotonic()
            time.sleep(0.1)

    def holds_within(self, condition: Callable[[], object], timeout: float) -> bool:
        """Return when the condition holds (True) or `timeout` seconds are over (False)."""
        deadline = time.monotonic() + timeout
        while not (kept := bool(condition())) and time.monotonic() < deadline:
            time.sleep(0.05)
        return kept

    # -- workers and harm ---------------------------------------------------------------------------------------------

    def start_worker(self, *options: str, url: str | None = None, **env: Any) -> workers.Worker:
        """A worker of tests/faults/app.py, ready; FAULTS_ACKS, FAULTS_OPTIONS, FAULTS_SETTINGS as env. FAULTS_POOL says with
        which pool, unless the scenario does.
        """
        if (pool := os.environ.get("FAULTS_POOL")) and "-P" not in options:
            options = (*options, "-P", pool)
        running = self._stack.enter_context(workers.worker(
            url or self.worker_url or self.url, self.folder, "tests.faults.app", *options, FAULTS_LEDGER=self.ledger, **env))
        self.workers.append(running)
        return running

    def enter(self, context: Any) -> Any:
        """Enter a context (a proxy, a pooler) that ends with the scenario."""
        return self._stack.enter_context(context)

    def replace(self, dead: workers.Worker, *options: str, **env: Any) -> workers.Worker:
        """Another worker in the place of one that has been killed."""
        self.bury(dead)
        return self.start_worker(*options, **env)

    def bury(self, dead: workers.Worker) -> None:
        """A killed worker is over, its orphaned pool processes too."""
        self.workers.remove(dead)
        with _nobody_there():
            os.killpg(dead.process.pid, signal.SIGKILL)
        dead.process.wait(10)

    @property
    def server(self) -> Path:
        """Home of the embedded server, for tests.support.embedded and celery_jobqueue.db.embedded."""
        assert self._server is not None, "this scenario has no server of its own: own_server=True"
        return self._server

    @staticmethod
    def pool(worker: workers.Worker) -> list[int]:
        """Process ids of the worker's pool."""
        try:
            return [child.pid for child in psutil.Process(worker.process.pid).children()]
        except psutil.NoSuchProcess:
            return []

    @staticmethod
    def kill(pid: int, number: int = signal.SIGKILL) -> bool:
        """Send the signal; False when nobody was there."""
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return False
        return True

    def owner(self, worker: workers.Worker) -> str:
        """The worker's id in job_queue.owner."""
        return str(wait_until(lambda: [row["id"] for row in self.query(
            "select id from jobqueue.worker where pid = %s", (worker.process.pid,))], "the worker is registered")[0])

    def wait_running(self, job: str, timeout: float = 30.0) -> None:
        """Return when the job's task has noted a start that has no end."""
        wait_until(lambda: self.notes(job) and self.notes(job)[-1][0] == "start", f"{job} runs", timeout)

    def notes(self, job: str) -> list[tuple[str, int, float]]:
        """What runs of this job have noted: (start or end, pid, when)."""
        found = []
        if self.ledger.exists():
            for line in self.ledger.read_text().splitlines():
                name, what, pid, at = line.split("\t")
                if name == job:
                    found.append((what, int(pid), float(at)))
        return found

    def say(self, text: str) -> None:
        """Progress, for whoever watches."""
        print(f"  {self.scenario.name}: {text}", file=sys.stderr, flush=True)

    def connect(self) -> psycopg.Connection[tuple[object, ...]]:
        """A connection of the scenario's own."""
        return psycopg.connect(self.url, autocommit=True)


class _nobody_there:  # noqa: N801
    """A process that is gone already is as good as killed."""

    def __enter__(self) -> None:
        """Nothing."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        return kind is not None and issubclass(kind, ProcessLookupError)
