"""What being watched costs: the drain with `-E` while Flower is connected, beside the drain without both."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace

from tests.benchmarks.contenders import Contender
from tests.benchmarks.drain import drain
from tests.benchmarks.running import Measured, Plan, scenario
from tests.benchmarks.servers import free_port, running
from tests.benchmarks.workers import Bench
from tests.support.workers import ROOT


@contextmanager
def _flower(bench: Bench) -> Iterator[None]:
    port = free_port()
    command = [sys.executable, "-W", "ignore", "-m", "celery", "-A", "tests.benchmarks.app", "flower",
               "--address=127.0.0.1", f"--port={port}"]
    with running(command, port, bench.folder, {"BENCH_SETUP": json.dumps(bench.setup()), "PYTHONPATH": os.fspath(ROOT)}):
        yield


@scenario("monitored", contenders="ours,rabbitmq,redis", cases="alone,-E,-E and Flower")
def measure(plan: Plan, contender: Contender) -> Iterator[Measured]:
    """Jobs per second."""
    jobs = plan.jobs_for(contender)
    for case in plan.cases:
        bench = plan.bench(contender)
        bench.variant = replace(plan.variant, events=case != "alone")
        bench.fill(jobs)
        with _flower(bench) if case == "-E and Flower" else nullcontext():
            rates = drain(bench, jobs)
        yield from [replace(rate, case=case) for rate in rates if rate.unit == "jobs/s"]
