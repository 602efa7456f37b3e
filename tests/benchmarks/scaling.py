"""Several workers on one queue: whether they get in each other's way, what of, and what their sessions wait for meanwhile."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import replace

import psutil
import psycopg

from tests.benchmarks.contenders import Contender
from tests.benchmarks.processes import Meter
from tests.benchmarks.running import Measured, Plan, scenario
from tests.benchmarks.workers import Bench

_ACTIVE = """
select coalesce(wait_event_type || ' ' || wait_event, 'running') from pg_stat_activity
 where datname = current_database() and backend_type = 'client backend' and state = 'active' and pid <> pg_backend_pid()
"""


@scenario("scaling", contenders="ours,rabbitmq", cases="1,2,4,8")
def measure(plan: Plan, contender: Contender) -> Iterator[Measured]:
    """Jobs per second of so many workers with one process each (`solo`), and the processors' time that each job takes: they share
    this machine's.
    """
    for case in plan.cases:
        bench = plan.bench(contender)
        bench.variant = replace(plan.variant, pool="solo")
        jobs = plan.jobs_for(contender)
        contender.empty()
        with ExitStack() as stack:
            workers = [stack.enter_context(bench.worker()) for _ in range(int(case))]
            # Asleep while the queue is filled, so that all begin at the same moment.
            for worker in workers:
                worker.send_signal(signal.SIGSTOP)
            try:
                bench.fill(jobs)
                meters, server = [Meter(worker.pid) for worker in workers], Meter(contender.server)
                psutil.cpu_times_percent()
            finally:
                for worker in workers:
                    worker.send_signal(signal.SIGCONT)
            waits = _watch(bench, lambda bench=bench, jobs=jobs: len(bench.journal) >= jobs)
            processors = psutil.cpu_times_percent()
            times = sum(meter.seconds() for meter in meters), server.seconds()
        bench.check_drained(jobs)
        yield Measured("jobs/s", bench.journal.rate(), f"{case} workers")
        yield Measured("µs workers/job", times[0] / jobs * 1e6, f"{case} workers")
        yield Measured("µs server/job", times[1] / jobs * 1e6, f"{case} workers")
        yield Measured("% of processors idle", processors.idle + processors.iowait, f"{case} workers")
        yield from [Measured(f"% of active sessions {what}", 100 * number / waits.total(), f"{case} workers")
                    for what, number in waits.most_common(4)]


def _watch(bench: Bench, over: Callable[[], bool]) -> Counter[str]:
    """What active sessions did, in samples until it is over: `running`, or the event that they waited for."""
    seen: Counter[str] = Counter()
    deadline = time.monotonic() + 240
    with psycopg.connect(bench.contender.database, autocommit=True) if bench.contender.database else nullcontext() as conn:
        while not over():
            if time.monotonic() > deadline:
                raise SystemExit(f"{bench.contender.name} has run {len(bench.journal)} jobs only; see {bench.folder}")
            if conn is not None:
                seen.update(row[0] for row in conn.execute(_ACTIVE).fetchall())
            time.sleep(0.02)
    return seen
