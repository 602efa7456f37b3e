"""`make soak`: a million jobs through four workers, something hit every few seconds; then what an idle worker costs.

Completed jobs and their results go after a minute, with the defaults after a week. What is deleted is noted by a
trigger, so every job is accounted for at the end. One worker, the witness, is never killed (its pool processes and connections
are): its memory is the one that has to stay flat. `python -m tests.faults.soak --help` names the options.
"""

from __future__ import annotations

import argparse
import json
import secrets
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import psycopg

from celery_jobqueue.db import migrate
from tests.faults.__main__ import details, table
from tests.faults.arena import Arena
from tests.faults.judge import judge
from tests.faults.running import server
from tests.faults.scenario import SCENARIOS, Scenario
from tests.support.database import fresh_database
from tests.support.embedded import log as server_log
from tests.support.workers import Worker

_WORKERS = ("-c", "2", "--prefetch-multiplier", "4", "-l", "WARNING")
_BACKLOG = 5000  # jobs waiting: the table's size is then that of finished jobs
_KEEP = 60.0  # seconds that completed jobs stay
_SAMPLE = 10.0  # seconds between two looks
_MEGA = 1 << 20
_GAVE_UP = "Could not start worker processes"
_PROMISE = "a million jobs through four workers with a killer: all end, totals agree, memory and tables stay flat"

_WATCH_RETIREMENT = """
    create table public.faults_retired as
    select id, task_id, status, attempts, max_attempts, total_starts, owner, finished_at from public.job_queue limit 0;
    create function public.faults_note_retired() returns trigger language plpgsql as $$ begin
        insert into public.faults_retired
        select id, task_id, status, attempts, max_attempts, total_starts, owner, finished_at from gone;
        return null;
    end $$;
    create trigger faults_note_retired after delete on public.job_queue referencing old table as gone
        for each statement execute function public.faults_note_retired();"""


@dataclass(slots=True)
class Sample:
    """One look. Sizes in bytes; done: jobs that have ended."""

    at: float
    done: int
    witness: int
    heap: int
    indexes: int
    rows: int


@dataclass(slots=True)
class Soak:
    """The run."""

    arena: Arena
    witness: Worker
    others: list[Worker]
    samples: list[Sample] = field(default_factory=list)
    hits: dict[str, int] = field(default_factory=dict)
    held: int = 0

    def hit(self) -> None:
        """Harm something."""
        chance = self.arena.random.random()
        if chance < 0.5:
            what = "a pool process killed"
            children = [pid for worker in (self.witness, *self.others) for pid in self.arena.pool(worker)]
            if children:
                self.arena.kill(self.arena.random.choice(children))
            self.held += 1
        elif chance < 0.7:
            what = "a worker killed"
            victim = self.arena.random.choice(self.others)
            self.arena.kill(victim.process.pid)
            self.others[self.others.index(victim)] = _start(self.arena, victim)
            self.held += 32  # jobs of quick tasks may be done and not yet told of, as many as a worker starts ahead
        elif chance < 0.9:
            what = "every connection cut"
            self.arena.query("select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database()"
                             " and pid <> pg_backend_pid() and application_name <> 'faults'")
        else:
            what = "a worker frozen for up to 2 s"
            victim = self.arena.random.choice(self.others)
            self.arena.kill(victim.process.pid, signal.SIGSTOP)
            self.arena.pause(0.5, 2.0)
            self.arena.kill(victim.process.pid, signal.SIGCONT)
        self.hits[what] = self.hits.get(what, 0) + 1

    def miss(self) -> None:
        """A worker that has gone by itself is a broken promise; another takes its place."""
        for gone in [worker for worker in (self.witness, *self.others) if worker.process.poll() is not None]:
            if _GAVE_UP in gone.text:
                what = "a pool process killed before its worker was up, which Celery gives up then"
                self.hits[what] = self.hits.get(what, 0) + 1
            else:
                last = "\n".join(gone.text.splitlines()[-30:])
                self.arena.check(False, f"worker {gone.name} ended by itself ({gone.process.returncode}):\n{last}")
            new = _start(self.arena, gone)
            if gone is self.witness:
                self.witness = new
            else:
                self.others[self.others.index(gone)] = new

    def look(self) -> Sample:
        """Sizes and progress now."""
        row = self.arena.query("""
            select pg_relation_size('job_queue') as heap, pg_indexes_size('job_queue') as indexes, count(*) as rows,
                   count(*) filter (where status in ('completed', 'failed')) + (select count(*) from faults_retired) as done
              from job_queue""")[0]
        memory = psutil.Process(self.witness.process.pid).memory_info().rss
        self.samples.append(Sample(time.monotonic(), row["done"], memory, row["heap"], row["indexes"], row["rows"]))
        return self.samples[-1]


def _start(arena: Arena, dead: Worker | None = None) -> Worker:
    if dead is not None:
        arena.bury(dead)
    return arena.start_worker(*_WORKERS, ready=False, FAULTS_OPTIONS=json.dumps({"keep_completed": _KEEP}),
                              FAULTS_SETTINGS=json.dumps({"result_expires": _KEEP}))


def _run(soak: Soak, deadline: float) -> None:
    """Publish, hit and look until all jobs have ended."""
    arena = soak.arena
    next_hit, next_look, next_count, waiting, published = time.monotonic() + 5.0, 0.0, 0.0, 0, 0
    while True:
        now = time.monotonic()
        if published < arena.jobs and waiting < _BACKLOG and now < deadline:
            # Every other batch ignores its results; those of the others are stored by the worker, as the task is quick.
            ignored = published // 1000 % 2 == 1
            new = len(arena.publish(min(1000, arena.jobs - published), args=(0.0,), ignore_result=ignored))
            published, waiting = published + new, waiting + new
        if now >= next_hit:
            soak.hit()
            next_hit = time.monotonic() + arena.random.uniform(2.0, 5.0)
        if now >= next_look:
            soak.miss()
            sample = soak.look()
            next_look = now + _SAMPLE
            arena.say(f"{sample.done:,} done, witness {sample.witness // _MEGA} MB, table {sample.heap // _MEGA} MB, indexes"
                      f" {sample.indexes // _MEGA} MB, {sample.rows:,} rows, {sum(soak.hits.values())} hits")
        if now >= next_count:
            next_count, waiting = now + 1.0, arena.unfinished()
            if not waiting and (published >= arena.jobs or now >= deadline):
                return
        if now > deadline + 300:
            return
        if waiting >= _BACKLOG or published >= arena.jobs:
            time.sleep(0.1)


def _judge_growth(soak: Soak) -> None:
    arena, samples = soak.arena, soak.samples
    warm = next(sample for sample in samples if sample.done >= samples[-1].done // 10)
    growth = samples[-1].witness - warm.witness
    arena.check(growth < max(16 * _MEGA, warm.witness // 5), f"the witness has grown by {growth // _MEGA} MB")
    third = max(sample.heap + sample.indexes for sample in samples[:max(1, len(samples) * 2 // 3)])
    last = max(sample.heap + sample.indexes for sample in samples)
    took = samples[-1].at - samples[0].at
    if took > 4 * _KEEP:  # before that nothing has been deleted
        arena.check(last < 1.25 * third, f"table and indexes grow: {third // _MEGA} MB, in the last third {last // _MEGA} MB")
    rate = samples[-1].done / took
    arena.note(f"{samples[-1].done:,} jobs in {took:,.0f} s, {rate:,.0f} jobs/s beside {sum(soak.hits.values())} hits: "
               + ", ".join(f"{n} × {what}" for what, n in sorted(soak.hits.items())))
    most = max(sample.witness for sample in samples)
    arena.note(f"memory of the worker that was never killed: {warm.witness / _MEGA:.0f} MB after a tenth of the jobs,"
               f" {samples[-1].witness / _MEGA:.0f} MB at the end, {most / _MEGA:.0f} MB at most")
    middle = samples[len(samples) // 2]
    arena.note(f"completed jobs stay {_KEEP:g} s: at half time {middle.rows:,} rows in {middle.heap / _MEGA:.0f} MB and"
               f" {middle.indexes / _MEGA:.0f} MB of indexes; at most {max(sample.heap for sample in samples) / _MEGA:.0f} and"
               f" {max(sample.indexes for sample in samples) / _MEGA:.0f} MB")


def _measure_idle(soak: Soak, home: Path, seconds: float) -> None:
    """What a worker costs that has nothing to do: the witness alone."""
    arena = soak.arena
    for worker in soak.others:
        worker.stop(signal.SIGTERM, timeout=60)
        arena.workers.remove(worker)
    arena.holds_within(lambda: arena.value("select bool_and(idle) and count(*) = 1 from jobqueue.worker"), 60)
    with psycopg.connect(arena.url, autocommit=True) as conn:
        conn.execute("alter system set log_statement = 'all'")
        conn.execute("select pg_reload_conf()")
    arena.pause(2.0, 2.0)
    process = psutil.Process(soak.witness.process.pid)
    family = [process, *process.children()]
    backends = [psutil.Process(row["pid"]) for row in arena.query(
        "select pid from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()")]
    before, lines, began = _cpu(family), len(server_log(home).splitlines()), time.monotonic()
    served = _cpu(backends)
    arena.pause(seconds, seconds)
    took = time.monotonic() - began
    said = server_log(home).splitlines()[lines:]
    executed = sum(" execute " in line or " statement: " in line for line in said)
    commits = sum(line.rstrip().endswith("statement: COMMIT") for line in said)
    used, spent = 100 * (_cpu(family) - before) / took, 100 * (_cpu(backends) - served) / took
    arena.note(f"an idle worker: {(executed - commits) / took:.1f} statements/s, {used:.2f} % of a core, its connections in the"
               f" server {spent:.2f} % (over {took:.0f} s)")


def _cpu(processes: list[psutil.Process]) -> float:
    times = [process.cpu_times() for process in processes]
    return float(sum(each.user + each.system for each in times))


def main() -> int:
    """The command; 1 when a promise was broken."""
    options = argparse.ArgumentParser(prog="make soak", description=__doc__)
    options.add_argument("--jobs", type=int, default=1_000_000)
    options.add_argument("--seed", type=int, default=None)
    options.add_argument("--minutes", type=float, default=240.0, help="publish no more after this time")
    options.add_argument("--idle", type=float, default=60.0, help="seconds to watch an idle worker")
    options.add_argument("--keep", action="store_true", help="keep logs and the ledger, and say where")
    chosen = options.parse_args()
    seed = chosen.seed or secrets.randbelow(1_000_000)
    scenario = Scenario("soak", 11, _PROMISE, lambda _: None, chosen.jobs, chosen.jobs)
    SCENARIOS[scenario.name] = scenario
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    print(f"soak: {chosen.jobs:,} jobs, seed {seed}, {folder}", file=sys.stderr, flush=True)
    try:
        with server(folder / "server") as url, fresh_database(url) as database:
            migrate.migrate(database, migrate.LINES)
            with psycopg.connect(database, autocommit=True) as conn:
                conn.execute(_WATCH_RETIREMENT)
            with Arena(scenario, f"{database}?application_name=faults", folder, seed, chosen.jobs) as arena:
                arena.worker_url = database
                soak = Soak(arena, _start(arena), [_start(arena) for _ in range(3)])
                arena.holds_within(lambda: arena.value("select count(*) from jobqueue.worker") == 4, 120)
                began = time.monotonic()
                _run(soak, began + 60 * chosen.minutes)
                soak.look()
                arena.may_run_twice = soak.held
                verdict = judge(arena)
                _judge_growth(soak)
                _measure_idle(soak, folder / "server", chosen.idle)
            verdict.took = time.monotonic() - began
    finally:
        if not chosen.keep:
            shutil.rmtree(folder, ignore_errors=True)
    print(table([verdict]))
    print(f"\nSeed: {seed}")
    print(details(verdict))
    return 1 if verdict.broken else 0


if __name__ == "__main__":
    sys.exit(main())
