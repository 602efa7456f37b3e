"""Connections are ended, the server restarts and crashes, its disk is full, a standby takes over."""

from __future__ import annotations

import time

import psycopg

from celery_jobqueue.db import embedded, migrate
from tests.faults.arena import Arena
from tests.faults.bystanders import bystanders
from tests.faults.scenario import scenario
from tests.faults.traffic import Traffic
from tests.support.database import one, rows
from tests.support.disk import small_disk
from tests.support.embedded import kill_server
from tests.support.standby import replicated
from tests.support.workers import Worker

_FINISHED = "select count(*) from job_queue where finished_at > to_timestamp(%s)"


def work_goes_on(arena: Arena, since: float, timeout: float = 60.0) -> None:
    """Note how long after `since` (seconds since 1970) the next job ended."""
    def ended() -> bool:
        try:
            return bool(arena.value(_FINISHED, (since,))) or not arena.unfinished()
        except psycopg.OperationalError:
            return False

    arena.check(arena.holds_within(ended, timeout), f"no job ended within {timeout:g} s after the harm")
    arena.recovered(time.time() - since)


@scenario(item=4)
def terminated_backends(arena: Arena) -> None:
    """pg_terminate_backend of every connection, again and again: workers, publishers and who waits for results come back by
    themselves within a second or two, and no job runs again for it."""
    _terminate(arena, [arena.start_worker("-c", "2") for _ in range(2)])


@scenario(item=4)
def terminated_backends_early(arena: Arena) -> None:
    """The same with early acknowledgement, where a job must run at most once, and a lost connection is no lost worker: every job
    completes."""
    _terminate(arena, [arena.start_worker("-c", "2", FAULTS_ACKS="early") for _ in range(2)])
    failed = arena.value("select count(*) from job_queue where status <> 'completed'")
    arena.check(not failed, f"{failed} jobs did not complete")


def _terminate(arena: Arena, running: list[Worker]) -> None:
    hits = 0
    with bystanders(arena), Traffic(arena, over=5 if arena.jobs < 100 else 30) as traffic:
        while traffic.publishing or arena.unfinished():
            arena.pause(0.2, 3.0)
            since = time.time()
            arena.query("select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database()"
                        " and pid <> pg_backend_pid()")
            hits += 1
            work_goes_on(arena, since)
    arena.wait_ended()
    arena.may_start_again = False
    arena.check(all(worker.process.poll() is None for worker in running), "no worker ends")
    arena.note(f"every connection was ended {hits} times")


@scenario(item=4, own_server=True)
def restarted_server(arena: Arena) -> None:
    """pg_ctl restart -m fast, again and again, while jobs run: nobody needs a hand, nothing runs again."""
    running = [arena.start_worker("-c", "2") for _ in range(2)]
    hits, limit = 0, 1 if arena.jobs < 100 else 12
    with bystanders(arena), Traffic(arena, over=4 if arena.jobs < 100 else 30) as traffic:
        while traffic.publishing and hits < limit:
            arena.pause(0.5, 4.0)
            embedded.down(arena.server)
            embedded.ensure(arena.server)
            hits += 1
            work_goes_on(arena, time.time())
    arena.wait_ended()
    arena.may_start_again = False
    arena.check(all(worker.process.poll() is None for worker in running), "no worker ends")
    arena.note(f"{hits} restarts")


@scenario(item=4, own_server=True)
def crashed_server(arena: Arena) -> None:
    """kill -9 of the postmaster, with crash recovery: what was published and what was settled is still so. Claims and starts of
    the last moment may be forgotten, so jobs that ran then may run twice; they are settled once."""
    running = [arena.start_worker("-c", "2") for _ in range(2)]
    hits, limit = 0, 1 if arena.jobs < 100 else 12
    with bystanders(arena), Traffic(arena, over=4 if arena.jobs < 100 else 30) as traffic:
        while traffic.publishing and hits < limit:
            arena.pause(0.5, 4.0)
            kill_server(arena.server)
            arena.pause(0.0, 1.0)
            embedded.ensure(arena.server)
            hits += 1
            work_goes_on(arena, time.time())
    arena.wait_ended()
    # Two workers with two processes each, and one job started ahead for each of them.
    arena.may_run_twice = 8 * hits
    arena.starts_are_given_back = True
    arena.check(all(worker.process.poll() is None for worker in running), "no worker ends")
    arena.note(f"{hits} crashes")


@scenario(item=8)
def refused_work(arena: Arena) -> None:
    """Locks with a lock_timeout of 50 ms, and repeatable read as the default isolation: batches fail all the time and are sent
    again; nobody connects anew for it."""
    database = arena.value("select current_database()")
    arena.query(f"alter database {database} set lock_timeout = '50ms'")
    arena.query(f"alter database {database} set default_transaction_isolation = 'repeatable read'")
    running = [arena.start_worker("-c", "2") for _ in range(2)]
    hits = 0
    policy = {"max_retries": 50, "interval_start": 0.05, "interval_step": 0.05, "interval_max": 0.2}
    with bystanders(arena), Traffic(arena, over=4 if arena.jobs < 100 else 30, task_publish_retry_policy=policy) as traffic:
        while traffic.publishing or arena.unfinished():
            with arena.connect() as somebody, somebody.transaction():
                try:
                    somebody.execute("lock table job_queue in share mode")  # as CREATE INDEX does
                except psycopg.errors.LockNotAvailable:
                    continue
                hits += 1
                arena.pause(0.05, 0.6)
            arena.pause(0.1, 0.8)
    arena.wait_ended()
    refused = sum(worker.text.count("PostgreSQL refuses the queue's work") for worker in running)
    arena.check(refused, "no batch was refused: the scenario has shown nothing")
    again = sum(worker.text.count("Connected to") - 1 for worker in running)
    arena.check(not again, f"workers connected {again} times anew")
    arena.note(f"the table was locked {hits} times")


@scenario(item=8)
def full_disk(arena: Arena) -> None:
    """The disk is full, again and again, for seconds: publishers get errors, workers wait, every job that was published ends."""
    database, server = arena.value("select current_database()"), arena.url
    disk = arena.enter(small_disk(server, database, arena.folder / "disk"))
    arena.url = disk.url
    arena.query("alter table job_queue set (fillfactor = 100)")  # no page has room for a row's next version
    running = [arena.start_worker("-c", "2") for _ in range(2)]
    hits, limit = 0, 1 if arena.jobs < 100 else 8
    with bystanders(arena), Traffic(arena, over=5 if arena.jobs < 100 else 30) as traffic:
        while traffic.publishing and hits < limit:
            arena.pause(0.5, 3.0)
            disk.fill()
            arena.pause(0.5, 4.0)
            disk.free()
            hits += 1
            work_goes_on(arena, time.time())
    arena.wait_ended()
    arena.check(traffic.refused or arena.jobs < 100, "nobody noticed the full disk: the scenario has shown nothing")
    arena.check(all(worker.text.count("Connected to") < 3 for worker in running), "no storm of connections")
    arena.note(f"the disk was full {hits} times")


@scenario(item=8)
def failed_over(arena: Arena) -> None:
    """kill -9 of a primary with a synchronous standby, which is promoted seconds later: both are in the URL, and everybody goes
    on with the one that takes writes."""
    pair = arena.enter(replicated(arena.folder / "servers"))
    migrate.migrate(pair.primary, migrate.LINES)
    arena.url = pair.url(pair.primary)
    running = [arena.start_worker("-c", "2") for _ in range(2)]
    with bystanders(arena), Traffic(arena, over=6 if arena.jobs < 100 else 30) as traffic:
        arena.pause(1.0, 4.0)
        pair.crash()
        arena.pause(0.5, 3.0)
        arena.check(traffic.publishing, "all was published before the failover: the scenario has shown nothing")
        pair.promote()
        since = time.time()
        work_goes_on(arena, since)
    arena.wait_ended()
    arena.url = pair.standby
    # Claims and starts of the last moment may not have reached the standby.
    arena.may_run_twice = 8
    arena.starts_are_given_back = True
    arena.check(all(worker.process.poll() is None for worker in running), "no worker ends")
    arena.check(one(pair.standby, "select not pg_is_in_recovery()"), "the standby is the primary now")
    arena.check(not rows(pair.standby, "select 1 from pg_stat_replication"), "nothing streams any more")
