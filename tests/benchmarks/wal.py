"""How much WAL a job writes, from its INSERT to its end, beside a naive table that carries its message through every update."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator

import psycopg

from celery_jobqueue.broker.usual import Columns, put_back
from tests.benchmarks.contenders import Contender
from tests.benchmarks.drain import drain
from tests.benchmarks.running import Measured, Plan, scenario

Connection = psycopg.Connection[tuple[object, ...]]

_SIZES = {"100 B": 100, "1.5 kB": 1500, "10 kB": 10_000}
#: The message, all that Celery sends, in the middle of the row, and in one piece with what changes, as it is done everywhere.
_NAIVE = """
drop table if exists naive;
create table naive (
    id uuid primary key default gen_random_uuid(), task_name text, envelope text, payload text,
    status text not null default 'pending', priority integer not null default 5, attempts integer not null default 0,
    error_message text,
    created_at timestamptz not null default now(), started_at timestamptz, finished_at timestamptz);
create index on naive (status, priority, created_at);
create index on naive (task_name);
"""
#: Eight at a time, as a worker of two processes takes them.
_NAIVE_TAKE = """
with taken as (select id from naive where status = 'pending' order by priority, created_at limit 8 for update skip locked)
update naive set status = 'processing', started_at = now(), attempts = attempts + 1 from taken where naive.id = taken.id
returning naive.id
"""
_NAIVE_END = "update naive set status = 'completed', finished_at = now() where id = any (%s)"


# sqla leaves a transaction open behind what it has published, and the table could not be emptied for the next case.
@scenario("wal", contenders="ours,pgmq", cases=",".join(_SIZES))
def measure(plan: Plan, contender: Contender) -> Iterator[Measured]:
    """Bytes of WAL per job: publish, start and finish; images of full pages, which follow a checkpoint, are not counted."""
    assert contender.database
    for case in plan.cases:
        jobs = plan.jobs or min(2000, contender.guess * 2)
        bench = plan.bench(contender)
        # Random, so that compression cannot help: what is stored is what was sent.
        padding = base64.b64encode(os.urandom(_SIZES[case])).decode()[:_SIZES[case]]
        with psycopg.connect(contender.database, autocommit=True) as conn:
            conn.execute("create extension if not exists pg_walinspect")
            contender.empty()
            began = _now(conn)
            bench.fill(jobs, lambda _, padding=padding: {"kwargs": {"padding": padding}})
            published = _now(conn)
            message = _message(conn) if contender.name == "ours" else ("", "")
            drained = _now(conn)
            drain(bench, jobs)
            insert, rest = _written(conn, began, published) / jobs, _written(conn, drained, _now(conn)) / jobs
            yield from [Measured("B publish", insert, case), Measured("B in all", insert + rest, case)]
            if contender.name == "ours":
                yield Measured("B in all, naive", _naive(conn, message, jobs), case)


def _now(conn: Connection) -> str:
    return str(conn.execute("select pg_current_wal_insert_lsn()").fetchone()[0])  # type: ignore[index]


def _written(conn: Connection, began: str, ended: str) -> float:
    """Bytes of WAL between two places, without images of full pages."""
    conn.execute("select txid_current()")  # a record behind `ended`, else the server may not have flushed that far
    row = conn.execute("select sum(record_size) from pg_get_wal_stats(%s, %s)", (began, ended)).fetchone()
    return float(str(row[0])) if row else 0.0


def _message(conn: Connection) -> tuple[str, str]:
    """One of the jobs as Celery has sent it: headers and properties, and the body."""
    row = conn.execute("select task_name, task_id, queue, reply_to, envelope, payload from job_queue limit 1").fetchone()
    assert row
    *columns, envelope, payload = map(str, row)
    headers, properties = put_back(json.loads(envelope), Columns(*columns, payload))
    return json.dumps({"headers": headers, "properties": properties, "content-type": "application/json",
                       "content-encoding": "utf-8"}), payload


def _naive(conn: Connection, message: tuple[str, str], jobs: int) -> float:
    conn.execute(_NAIVE)
    began = _now(conn)
    for begin in range(0, jobs, 1000):
        conn.execute("insert into naive (task_name, envelope, payload) select 'bench.job', %s, %s from generate_series(1, %s)",
                     (*message, min(1000, jobs - begin)))
    while rows := conn.execute(_NAIVE_TAKE).fetchall():
        conn.execute(_NAIVE_END, ([row[0] for row in rows],))
    return _written(conn, began, _now(conn)) / jobs
