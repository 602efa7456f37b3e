"""Memory of the worker's main process: the most it ever had while it worked off a queue of jobs with 1.5 kB of arguments."""

from __future__ import annotations

import compileall
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tests.benchmarks.contenders import Contender
from tests.benchmarks.running import Measured, Plan, scenario
from tests.support.waiting import wait_until
from tests.support.workers import ROOT

_PADDING = "x" * 1500


@scenario("memory", contenders="ours,rabbitmq,redis", cases="4,1000")
def measure(plan: Plan, contender: Contender) -> Iterator[Measured]:
    """MiB (peak resident set), per prefetch."""
    jobs = plan.jobs or 4000
    for folder in ("broker", "db"):  # as pip leaves a package; what compiling takes is 0.5 MiB of a worker's peak
        assert compileall.compile_dir(ROOT / folder, quiet=1)
    for case in plan.cases:
        bench = plan.bench(contender)
        bench.variant = replace(plan.variant, prefetch=int(case))
        bench.fill(jobs, lambda _: {"kwargs": {"padding": _PADDING}})
        with bench.worker() as process:
            wait_until(lambda bench=bench: len(bench.journal) >= jobs, f"{contender.name} has run {jobs} jobs", 240)
            status = Path(f"/proc/{process.pid}/status").read_text()
        peak = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert peak
        yield Measured("MiB", int(peak[1]) / 1024, f"prefetch {case}")
