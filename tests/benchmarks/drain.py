"""How fast a full queue is emptied by one worker: no-op tasks, from the first tenth to the last job."""

from __future__ import annotations

import sys

from tests.benchmarks.contenders import Contender
from tests.benchmarks.running import Measured, Plan, scenario
from tests.benchmarks.workers import Bench
from tests.support.waiting import wait_until


def drain(bench: Bench, jobs: int, *worker_options: str) -> float:
    """Jobs per second. Fails when not every job ran and went from the queue."""
    bench.fill(jobs)
    with bench.worker(*worker_options, jobs=jobs, ready=False) as process:
        wait_until(lambda: process.poll() is not None or len(bench.journal) >= jobs,
                   f"{bench.contender.name} has run {jobs} jobs", 30 + 20 * jobs / bench.contender.guess)
    if (ran := len(bench.journal)) != jobs or (left := bench.waiting()):
        sys.exit(f"{bench.contender.name}: {ran} of {jobs} jobs were run, {left} are left; see {bench.folder}")
    return bench.journal.rate()


@scenario("drain", contenders="ours,rabbitmq,redis,pgmq,sqla,null")
def measure(plan: Plan, contender: Contender) -> list[Measured]:
    """Jobs per second of one worker on a full queue."""
    jobs = plan.jobs or int(contender.guess * (plan.seconds + 1) * (1 if plan.variant.pool == "prefork" else 0.8))
    return [Measured("jobs/s", drain(plan.bench(contender), jobs))]
