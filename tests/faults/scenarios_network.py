"""The network is cut, poolers restart, replies get lost."""

from __future__ import annotations

import json
import time
from typing import Any

from tests.faults.arena import Arena
from tests.faults.bystanders import bystanders
from tests.faults.scenario import scenario
from tests.faults.scenarios_server import work_goes_on
from tests.faults.traffic import Traffic
from tests.support.cutting import CuttingProxy
from tests.support.pgbouncer import pgbouncer
from tests.support.workers import Worker

_PROCESSES = 2
#: Of the small runs in `make test`, where nobody waits a minute: timeouts a tenth as long.
_TENTH = {"timeout": 3, "connect_timeout": 2, "heartbeat_interval": 0.5, "heartbeat_timeout": 12}


@scenario(item=4)
def cut_for_1_s(arena: Arena) -> None:
    """A silent network for 1 s, again and again: half-open connections go on where they were; no running job is started again."""
    _cut(arena, 1.0, hits=1 if arena.jobs < 100 else 20)


@scenario(item=4)
def cut_for_10_s(arena: Arena) -> None:
    """A silent network for 10 s (1.5 s in `make test`): running jobs run on, their ends are told later, none is started again."""
    _cut(arena, 10.0 if arena.jobs >= 100 else 1.5, hits=1 if arena.jobs < 100 else 4)


@scenario(item=4)
def cut_for_60_s(arena: Arena) -> None:
    """A silent network for 60 s (5 s in `make test`, with timeouts a tenth as long): connections are given up after 30 s, and the
    server never hears of it. Shorter than the heartbeat timeout of 75 s, so running jobs run on and none is started again."""
    _cut(arena, 60.0 if arena.jobs >= 100 else 5.0, hits=1 if arena.jobs < 100 else 2)


@scenario(item=4)
def cut_beyond_the_grace(arena: Arena) -> None:
    """Connections are reset and refused for 8 s, longer than the 3 s after which a worker without its session's lock counts as
    dead: its running jobs run again elsewhere, and are settled once."""
    with CuttingProxy(arena.url) as proxy:
        near, far = _workers(arena, proxy)
        hits, limit, taken = 0, 1 if arena.jobs < 100 else 4, 0
        with bystanders(arena, proxy.url), Traffic(arena, over=6 if arena.jobs < 100 else 30) as traffic:
            while traffic.publishing and hits < limit:
                arena.publish(2 * _PROCESSES, seconds=(7.0, 9.0), priority=1)
                arena.pause(0.5, 2.0)
                held = _held(arena, far)
                proxy.hang_up()
                arena.pause(8.0, 8.5)
                proxy.listen()
                hits += 1
                taken += held
                _back(arena, far, time.time())
        arena.wait_ended()
        arena.may_run_twice = taken + _PROCESSES * hits
        arena.check(arena.value("select count(*) from job_queue where total_starts > 1"), "no job ran again: nothing was shown")
        arena.check(all(each.process.poll() is None for each in (near, far)), "no worker ends")
        arena.note(f"{hits} cuts; the worker that was cut off held {taken} jobs")


@scenario(item=7, needs="pgbouncer")
def restarted_pooler(arena: Arena) -> None:
    """PgBouncer in transaction mode, of which nobody was told, killed and started again and again: workers, publishers and who
    waits for results come back, and no running job is started again."""
    pooler = arena.enter(pgbouncer(arena.url))
    url = pooler.url(arena.url)
    running = [arena.start_worker("-c", str(_PROCESSES), url=url) for _ in range(2)]
    hits, limit = 0, 1 if arena.jobs < 100 else 12
    with bystanders(arena, url), Traffic(arena, url, over=5 if arena.jobs < 100 else 30) as traffic:
        while traffic.publishing and hits < limit:
            arena.pause(0.5, 4.0)
            pooler.stop()
            arena.pause(0.0, 2.0)
            pooler.start()
            hits += 1
            work_goes_on(arena, time.time())
    arena.wait_ended()
    arena.may_start_again = False
    arena.check(all("is taken for a pooler in transaction mode" in worker.text for worker in running), "it is found out and said")
    arena.check(not any('prepared statement "' in worker.text for worker in running), "no prepared statement is missed")
    arena.check(arena.value("select not bool_or(holds_lock) from jobqueue.worker"), "no session lock is relied on")
    arena.check(all(worker.process.poll() is None for worker in running), "no worker ends")
    arena.note(f"{hits} restarts of the pooler")


@scenario(item=10)
def lost_replies(arena: Arena) -> None:
    """Publishers' connections end at random moments, every third time right between COMMIT and its reply: each delay() that
    returns is one job, never two."""
    arena.start_worker("-c", str(_PROCESSES))
    policy = {"max_retries": 20, "interval_start": 0, "interval_step": 0.02, "interval_max": 0.1}
    with CuttingProxy(arena.url) as proxy:
        hits = 0
        over = 3 if arena.jobs < 100 else 40
        with Traffic(arena, proxy.url, seconds=0.0, over=over, task_publish_retry_policy=policy) as traffic:
            while traffic.publishing:
                arena.pause(0.02, 0.3)
                if hits % 3:
                    proxy.drop()
                else:
                    proxy.swallow_reply_to(b"jobqueue.publish", b"publish")
                hits += 1
        arena.wait_ended()
        extra = arena.value("select count(*) from job_queue") - len(arena.published)
        arena.check(not traffic.refused, f"delay() raised {traffic.refused} times although it was to try 20 times")
        arena.check(not extra, f"there are {extra} jobs that nobody was told of")
        arena.check(proxy.swallowed, "no reply was lost: the scenario has shown nothing")
        arena.note(f"{hits} hits, {proxy.swallowed} of them between COMMIT and its reply")


def _workers(arena: Arena, proxy: CuttingProxy) -> tuple[Worker, Worker]:
    """One with a direct connection, who would take over; one behind the proxy."""
    options: dict[str, Any] = {"FAULTS_OPTIONS": json.dumps(_TENTH)} if arena.jobs < 100 else {}
    return (arena.start_worker("-c", str(_PROCESSES), **options),
            arena.start_worker("-c", str(_PROCESSES), url=proxy.url, **options))


def _held(arena: Arena, worker: Worker) -> int:
    return int(arena.value("select count(*) from job_queue where owner = %s", (arena.owner(worker),)))


def _occupy(arena: Arena, worker: Worker, seconds: float) -> None:
    """Publish jobs that last about so long, until that worker runs some of them: its neighbour may be the quicker one."""
    for _ in range(10):
        arena.publish(2 * _PROCESSES, seconds=(0.5 * seconds, 1.5 * seconds), priority=1)
        if arena.holds_within(lambda: _held(arena, worker), 1.0):
            return


def _back(arena: Arena, worker: Worker, since: float) -> None:
    """Note when the worker gave a sign of life again: a heartbeat, or what became of a job."""
    alive = ("select exists (select from jobqueue.worker where name = %(name)s and heartbeat_at > to_timestamp(%(since)s))"
             " or exists (select from job_queue where worker = %(name)s"
             " and greatest(started_at, finished_at) > to_timestamp(%(since)s))")
    known = {"name": worker.name, "since": since}
    arena.check(arena.holds_within(lambda: arena.value(alive, known), 60), "the worker is not back within 60 s")
    arena.recovered(time.time() - since)


def _cut(arena: Arena, seconds: float, hits: int) -> None:
    """Jobs that last as long as the cut run through it, beside the traffic."""
    with CuttingProxy(arena.url) as proxy:
        near, far = _workers(arena, proxy)
        options = _TENTH if arena.jobs < 100 else {}
        settings = {"broker_transport_options": options} if options else {}
        with (bystanders(arena, proxy.url, options),
              Traffic(arena, proxy.url, over=4 if arena.jobs < 100 else 30, **settings)):
            through = 0
            for _ in range(hits):
                _occupy(arena, far, seconds)
                arena.pause(0.0, 0.4 * min(seconds, 5.0))
                through += _held(arena, far)
                proxy.cut()
                time.sleep(seconds)
                proxy.heal()
                _back(arena, far, time.time())
        arena.wait_ended()
        arena.may_start_again = False
        arena.check(through, "the worker that was cut off held no job: the scenario has shown nothing")
        arena.check(all(each.process.poll() is None for each in (near, far)), "no worker ends")
        arena.note(f"{hits} cuts of {seconds:g} s; {through} jobs were held by the worker that was cut off")
