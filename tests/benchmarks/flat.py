"""Whether the drain stays as fast whatever else lies in the table, however it is mixed, and with an old snapshot held open."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psycopg
from psycopg import sql

from celery_jobqueue.db import migrate
from tests.benchmarks.contenders import Contender
from tests.benchmarks.drain import drain, work_off
from tests.benchmarks.running import Measured, Plan, scenario
from tests.benchmarks.workers import Bench, Variant
from tests.support.database import sibling

_QUEUES = [f"q{number}" for number in range(50)]
#: What lies in the table besides the jobs that are measured: how many rows by default, and how they differ from a job.
_LYING = {
    "pending": (1_000_000, {}),
    "due tomorrow": (1_000_000, {"run_at": "now() + interval '1 day'"}),
    "finished": (5_000_000, {"status": "'completed'", "started_at": "now()", "finished_at": "now()", "attempts": "1",
                             "total_starts": "1", "lease": "gen_random_uuid()", "worker": "'bench'"}),
}


@scenario("flat", contenders="ours", cases="empty,pending,due tomorrow,finished,ten priorities,fifty queues,snapshot")
def measure(plan: Plan, contender: Contender) -> Iterator[Measured]:
    """Jobs per second in each case, and how the last quarter of the run compares with its first."""
    for case in plan.cases:
        if case in _LYING and contender.name != "ours":
            continue  # the rows are made by copying in our table
        jobs = plan.jobs_for(contender)
        where = _lying(contender, case, plan.size) if case in _LYING else contender
        # Rows are there for the next round too; nothing may be retired.
        bench = plan.bench(where)
        bench.options = {"keep_completed": None, "keep_failed": None} if contender.name == "ours" else {}
        with _snapshot(contender) if case == "snapshot" else nullcontext():
            rates = _drained(bench, case, jobs)
        yield from [Measured("jobs/s", rates[0].value, case),
                    Measured("last quarter ÷ first", bench.journal.rate(0.75, 1.0) / bench.journal.rate(0.1, 0.35), case)]


def _drained(bench: Bench, case: str, jobs: int) -> list[Measured]:
    if case == "pending":  # those that lie there are worked off
        bench.journal.clear()
        return work_off(bench, jobs)
    bench.fill(jobs, _options(case))
    if case == "due tomorrow":  # they are still in the queue afterwards
        return work_off(bench, jobs)
    return drain(bench, jobs, *(["-Q", ",".join(_QUEUES)] if case == "fifty queues" else []))


def _options(case: str) -> Any:
    if case == "ten priorities":
        return lambda number: {"priority": 1 + number % 10}
    if case == "fifty queues":
        return lambda number: {"queue": _QUEUES[number % len(_QUEUES)]}
    return lambda _: {}


@contextmanager
def _snapshot(contender: Contender) -> Iterator[None]:
    assert contender.database, "a snapshot needs a database"
    with psycopg.connect(contender.database) as conn:
        conn.execute("set transaction isolation level repeatable read")
        conn.execute("select count(*) from pg_class")
        yield


def _lying(contender: Contender, case: str, size: int | None) -> Contender:
    """The same on a database with those rows in its table; it is kept for the next time."""
    rows, changes = _LYING[case]
    rows = size or rows
    assert contender.database
    name = f"flat_{case.replace(' ', '_')}"
    url = sibling(contender.database, name)
    with psycopg.connect(contender.database, autocommit=True) as conn:
        version = conn.execute("select max(version) from jobqueue.migration where line = 'queue'").fetchone()
        mark = f"{rows} rows, schema {version and version[0]}"
        known = conn.execute("select shobj_description(oid, 'pg_database') from pg_database where datname = %s",
                             (name,)).fetchone()
        if not known or known[0] != mark:
            print(f"  (making {rows:,} rows: {case})", flush=True)
            database = sql.Identifier(name)
            conn.execute(sql.SQL("drop database if exists {} with (force)").format(database))
            conn.execute(sql.SQL("create database {}").format(database))
            migrate.migrate(url)
            _copy_a_job(replace(contender, broker=url, results=url, database=url, empty=lambda: None), rows, changes)
            conn.execute(sql.SQL("comment on database {} is {}").format(database, mark))

    def empty() -> None:
        with psycopg.connect(url, autocommit=True) as conn:
            conn.execute("delete from job_queue where status = 'pending' and run_at < now() + interval '1 hour'")

    return replace(contender, broker=url, results=url, database=url, empty=empty)


def _copy_a_job(contender: Contender, rows: int, changes: dict[str, str]) -> None:
    """One job published as ever, and its row copied with new ids."""
    with TemporaryDirectory() as folder:
        Bench(contender, Variant(), Path(folder)).fill(1)
    assert contender.database
    with psycopg.connect(contender.database, autocommit=True) as conn:
        columns = [row[0] for row in conn.execute(
            "select attname::text from pg_attribute where attrelid = 'job_queue'::regclass and attnum > 0 and not attisdropped")]
        new = {"id": "new.id", "task_id": "new.task_id", **changes,
               "envelope": "replace(replace(envelope, old.task_id, new.task_id), old.id::text, new.id::text)"}
        chosen = ", ".join(new.get(column, f"old.{column}") for column in columns)
        for begin in range(0, rows, 250_000):
            conn.execute(f"""insert into job_queue ({", ".join(columns)})
                select {chosen} from (select * from job_queue order by created_at limit 1) old,
                       lateral (select jobqueue.new_id() as id, gen_random_uuid()::text as task_id, n
                                  from generate_series(1, {min(250_000, rows - begin)}) n) new""")  # type: ignore[call-overload,unused-ignore]
        if changes:
            conn.execute("delete from job_queue where status = 'pending' and run_at < now() + interval '1 hour'")
        conn.execute("vacuum (analyze) job_queue")
        conn.execute("checkpoint")
