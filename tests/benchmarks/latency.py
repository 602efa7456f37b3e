"""How long a job waits before it begins: from the call of `delay()` to the task's first line."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

from tests.benchmarks.contenders import Contender
from tests.benchmarks.running import Measured, Plan, scenario
from tests.benchmarks.workers import Bench
from tests.support.waiting import wait_until

#: Jobs per second of "half load". One rate for everybody: about half of what RabbitMQ does here when one process publishes
#: while another works, both on two cores. At "idle" a job comes when nothing has happened for a while.
_RATES = {"idle": 10.0, "half load": 500.0}
#: RabbitMQ whose `delay()` returns when the message is safe, as ours does. By default its returns when the message is sent.
_CONFIRMED = {f"{case} confirmed": case for case in _RATES}


@scenario("latency", contenders="ours,rabbitmq,redis,pgmq,sqla", cases=",".join([*_RATES, *_CONFIRMED]))
def measure(plan: Plan, contender: Contender) -> Iterator[Measured]:
    """p50 and p99 in milliseconds."""
    for case in plan.cases:
        bench = plan.bench(contender)
        if case in _CONFIRMED:
            if contender.name != "rabbitmq":
                continue
            bench.options = {"confirm_publish": True}
        rate = min(_RATES[_CONFIRMED.get(case, case)], contender.guess / 2)
        waits = _waits(bench, rate, plan.jobs or max(50, int(rate * plan.seconds)))
        yield from [Measured("ms p50", statistics.median(waits), case),
                    Measured("ms p99", statistics.quantiles(waits, n=100)[98], case)]


def _waits(bench: Bench, rate: float, jobs: int) -> list[float]:
    """Milliseconds, of each job."""
    bench.contender.empty()
    bench.journal.clear()
    app = bench.app()
    job = app.tasks["bench.job"]
    with bench.worker():
        job.delay(time.monotonic_ns())  # connects, and the worker has run one
        wait_until(lambda: len(bench.journal) == 1, "the first job has run")
        due = time.monotonic()
        for _ in range(jobs):
            due += 1 / rate
            time.sleep(max(0.0, due - time.monotonic()))
            job.delay(time.monotonic_ns())
        wait_until(lambda: len(bench.journal) > jobs, f"{bench.contender.name} has run {jobs} jobs", 60)
    app.close()
    return [(began - published) / 1e6 for published, began in bench.journal.records()][1:]
