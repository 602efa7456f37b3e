"""What a worker costs that has nothing to do, and what fifty idle ones do when one job comes.

Statements are counted in the server's own log; it is told to log all of them in the benchmark's database only.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from celery_jobqueue.db import embedded
from tests.benchmarks.contenders import Contender
from tests.benchmarks.processes import Meter
from tests.benchmarks.running import FOLDER, Measured, Plan, scenario
from tests.benchmarks.workers import Bench
from tests.support.waiting import wait_until
from tests.support.workers import ROOT

_STATEMENT = re.compile(rb"LOG:  (?:execute|statement)")
_CLAIM = re.compile(rb"from jobqueue\.claim\(")
_HERD = 50


class _Log:
    """Statements that the server has executed since it was made."""

    def __init__(self) -> None:
        self._path = embedded.home(FOLDER) / "server.log"
        self._from = self._path.stat().st_size

    def count(self, what: re.Pattern[bytes] = _STATEMENT) -> int:
        with self._path.open("rb") as file:
            file.seek(self._from)
            return len(what.findall(file.read()))


@contextmanager
def _logged(database: str) -> Iterator[None]:
    with psycopg.connect(database, autocommit=True) as conn:
        name = conn.info.dbname
        conn.execute(f'alter database "{name}" set log_statement = \'all\'')
        try:
            yield
        finally:
            conn.execute(f'alter database "{name}" reset log_statement')


@scenario("idle", contenders="ours,rabbitmq,redis,pgmq,sqla", cases="one worker,fifty workers")
def measure(plan: Plan, contender: Contender) -> list[Measured]:
    """Per cent of one processor, statements per second; for fifty workers the statements that one job causes."""
    found: list[Measured] = []
    bench = plan.bench(contender)
    if "one worker" in plan.cases:
        contender.empty()
        bench.journal.clear()
        with bench.worker() as process:
            _run_one(bench)
            time.sleep(3)  # what follows a job is over
            meters = [Meter(process.pid), Meter(contender.server)]
            began = time.monotonic()
            time.sleep(max(10.0, plan.seconds))
            took = time.monotonic() - began
            found += [Measured("% CPU worker", 100 * meters[0].seconds() / took, "one worker"),
                      Measured("% CPU server", 100 * meters[1].seconds() / took, "one worker")]
        for option in [(), ("--without-gossip",)] if contender.database else []:
            found.append(Measured("statements/s", _statements(bench, max(10.0, plan.seconds), *option),
                                  " ".join(("one worker", *option))))
    if "fifty workers" in plan.cases and contender.name == "ours":
        found += _stampede(bench)
        found.append(Measured("statements/s of 50", _chatter(bench), "fifty workers that gossip"))
    return found


def _statements(bench: Bench, seconds: float, *options: str) -> float:
    assert bench.contender.database
    with _logged(bench.contender.database), bench.worker(*options):
        _run_one(bench)
        time.sleep(3)
        log, began = _Log(), time.monotonic()
        time.sleep(seconds)
        return log.count() / (time.monotonic() - began)


def _run_one(bench: Bench) -> None:
    app, before = bench.app(), len(bench.journal)
    app.tasks["bench.job"].delay()
    wait_until(lambda: len(bench.journal) > before, "the job has run")
    app.close()


def _stampede(bench: Bench) -> list[Measured]:
    """Looks into the queue and latency of one job beside fifty workers, less what they do anyway; without gossip, which tells
    every worker of every other's heartbeat.
    """
    database = bench.contender.database
    assert database
    bench.contender.empty()
    bench.journal.clear()
    with _logged(database), _herd(bench, "--without-gossip"):
        app = bench.app()
        job = app.tasks["bench.job"]
        job.delay()  # connects
        wait_until(lambda: len(bench.journal) == 1, "the first job has run")
        time.sleep(12)  # everybody is idle again, polling at the slow interval
        log = _Log()
        time.sleep(10)
        quiet, looks = log.count() / 10, log.count(_CLAIM) / 10
        log, began = _Log(), time.monotonic()
        published = time.monotonic_ns()
        job.delay(published)
        wait_until(lambda: len(bench.journal) == 2, "the job has run")
        time.sleep(1)
        more = log.count(_CLAIM) - looks * (time.monotonic() - began)
        app.close()
        waited = (bench.journal.records()[-1][1] - published) / 1e6
    return [Measured("statements/s of 50", quiet, "fifty workers"), Measured("looks per job", more, "fifty workers"),
            Measured("ms", waited, "fifty workers")]


def _chatter(bench: Bench) -> float:
    """Statements per second of fifty idle workers that hear each other's heartbeats, as they do unless told otherwise."""
    assert bench.contender.database
    with _logged(bench.contender.database), _herd(bench):
        time.sleep(12)
        log = _Log()
        time.sleep(10)
        return log.count() / 10


@contextmanager
def _herd(bench: Bench, *options: str) -> Iterator[None]:
    """Fifty workers of the solo pool. One process imports Celery and forks them, which saves most of the start."""
    code = f"""
import os, sys, time
from tests.benchmarks.app import app
for number in range({_HERD}):
    if os.fork() == 0:
        os.environ["BENCH_READY"] = os.environ["BENCH_READY"] + str(number)
        app.worker_main(["worker", "-P", "solo", "-l", "WARNING", "-n", f"herd{{number}}@bench",
                         "--without-mingle", *{options!r}])
        os._exit(0)
time.sleep(600)
"""
    mark = bench.folder / f"herd-{os.urandom(4).hex()}-"
    with (bench.folder / "herd.log").open("ab") as log:
        process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log,
                                   stderr=log, start_new_session=True,
                                   env={**os.environ, "BENCH_SETUP": json.dumps(bench.setup()), "BENCH_READY": str(mark)})
    try:
        wait_until(lambda: len(list(bench.folder.glob(f"{mark.name}*"))) == _HERD, f"{_HERD} workers are ready", 240)
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)
        for path in bench.folder.glob(f"{mark.name}*"):
            path.unlink()
