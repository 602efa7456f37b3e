"""How fast a full queue is emptied by one worker: no-op tasks, from the first tenth to the last job."""

from __future__ import annotations

from tests.benchmarks.contenders import Contender
from tests.benchmarks.processes import Meter
from tests.benchmarks.running import Measured, Plan, scenario
from tests.benchmarks.workers import Bench
from tests.support.waiting import wait_until


def drain(bench: Bench, jobs: int, *worker_options: str) -> list[Measured]:
    """Empty a queue with so many jobs in it: jobs per second, and processor time per job of worker and server.

    Ends with an error unless every job has run and left the queue.
    """
    found = work_off(bench, jobs, *worker_options)
    bench.check_drained(jobs)
    return found


def work_off(bench: Bench, jobs: int, *worker_options: str) -> list[Measured]:
    """As `drain`, but there may be more in the queue."""
    with bench.worker(*worker_options, jobs=jobs, ready=False) as process:
        def run(count: int) -> None:
            wait_until(lambda: process.poll() is not None or len(bench.journal) >= count,
                       f"{bench.contender.name} has run {count} of {jobs} jobs", 60 + 30 * jobs / bench.contender.guess)

        run(jobs // 10)
        meters = [Meter(process.pid), Meter(bench.contender.server)]
        began = len(bench.journal)
        run(jobs)
        times = [meter.seconds() / max(1, len(bench.journal) - began) * 1e6 for meter in meters]
    return [Measured("jobs/s", bench.journal.rate()), Measured("µs worker/job", times[0]), Measured("µs server/job", times[1])]


@scenario("drain", contenders="ours,rabbitmq,redis,pgmq,sqla,null")
def measure(plan: Plan, contender: Contender) -> list[Measured]:
    """Jobs per second of one worker on a full queue."""
    bench, jobs = plan.bench(contender), plan.jobs_for(contender)
    bench.fill(jobs)
    return drain(bench, jobs)
