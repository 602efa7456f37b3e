"""What a worker asks stays cheap whatever lies in the table: PostgreSQL's own plans of everything that a real worker runs."""

from __future__ import annotations

import json
import re
import signal
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from celery import Celery
from psycopg import sql

from tests.support import workers
from tests.support.database import one, rows
from tests.support.waiting import wait_until

LYING = 5_000
#: Rows of job_queue that one scan may read, whatever the table holds. Retirement (a Tid Range Scan) reads 2 MB at a time.
MOST = 300
#: What a claim knows: equality on the first two, a range on the pair.
CLAIMED_BY = ("queue = ", "priority = ", "run_at, id) > ")
#: The size of a queue, which every declaration asks for; it has a limit of its own.
COUNTING = "limit 10000) ready"
#: The look for jobs of the dead, which does read the index of owned jobs.
RESCUING = "with gone as"
#: A plan in the server's log: the lines behind the first one are indented by a tab.
_PLAN = re.compile(r"LOG:  duration: [\d.]+ ms  plan:\n((?:\t.*\n)+)")
COPIES = """
insert into job_queue (id, task_id, task_name, priority, envelope, payload, status, run_at, started_at, finished_at)
select new.id, new.task_id, task_name, 1 + mod(n, 10),
       replace(replace(envelope, old.task_id, new.task_id), old.id::text, new.id::text), payload,
       %(status)s, now() + %(later)s::interval, new.ended, new.ended
  from (select * from job_queue where status = 'pending' limit 1) as old,
       lateral (select jobqueue.new_id() as id, gen_random_uuid()::text as task_id, n,
                       case when %(status)s = 'completed' then now() end as ended
                  from generate_series(1, %(rows)s) n) as new
"""


def explained(database_url: str) -> Callable[[], list[dict[str, Any]]]:
    """Has PostgreSQL log its plans; returns what reads those of all sessions that connect from now on."""
    log = Path(one(database_url, "show data_directory")).parent / "server.log"
    begin = log.stat().st_size
    with psycopg.connect(database_url, autocommit=True) as conn:
        database = sql.Identifier(conn.info.dbname)
        for name, value in {"session_preload_libraries": "auto_explain", "auto_explain.log_min_duration": "0",
                            "auto_explain.log_nested_statements": "on", "auto_explain.log_analyze": "on",
                            "auto_explain.log_timing": "off", "auto_explain.log_format": "json"}.items():
            conn.execute(sql.SQL("load 'auto_explain'"))  # else its settings are unknown
            conn.execute(sql.SQL("alter database {} set {} = {}").format(database, sql.SQL(name), value))  # type: ignore[arg-type]

    def found() -> list[dict[str, Any]]:
        with log.open("rb") as file:
            file.seek(begin)
            return [json.loads(plan) for plan in _PLAN.findall(file.read().decode(errors="replace"))]

    return found


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The plan's steps, from the top."""
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


def read(node: dict[str, Any]) -> float:
    """Rows that a scan has looked at."""
    return float(node["Actual Loops"] * (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
                                         + node.get("Rows Removed by Index Recheck", 0)))


@pytest.mark.parametrize("analyzed", [True, False], ids=["analyzed", "never analyzed"])
def test_no_statement_of_a_worker_reads_what_lies_in_the_table(
        app: Celery, database_url: str, start_worker: Callable[..., workers.Worker], analyzed: bool) -> None:
    rows(database_url, "alter table job_queue set (autovacuum_enabled = off)")  # the planner knows what we say, or nothing
    app.tasks["t.add"].delay(0, 0)
    for status, later in (("completed", "-1 minute"), ("pending", "1 day"), ("pending", "0")):
        rows(database_url, COPIES, {"status": status, "later": later, "rows": LYING})
    if analyzed:
        rows(database_url, "analyze job_queue")
    plans = explained(database_url)
    worker = start_worker("-c", "2", "--prefetch-multiplier", "8")
    wait_until(lambda: worker.text.count(" succeeded ") > 200, "some hundred jobs are done", 60)
    worker.stop(signal.SIGKILL)
    found = plans()
    scans = [(node, plan["Query Text"]) for plan in found for node in nodes(plan["Plan"])
             if node.get("Relation Name") == "job_queue" and "Scan" in node["Node Type"]
             and node["Node Type"] != "Tid Range Scan" and COUNTING not in plan["Query Text"]]
    assert any(node.get("Index Name") == "job_queue_claim" and all(column in node["Index Cond"] for column in CLAIMED_BY)
               for node, _ in scans), "no statement has used the claim's index as it is meant"
    settled = {node["Index Name"] for plan in found for node in nodes(plan["Plan"]) if "Index Name" in node
               and re.search(r"j\.id = (any \(p_ids\)|s\.id|p_id\b)", plan["Query Text"]) and RESCUING not in plan["Query Text"]}
    # The index of owned jobs looks cheaper, and while a snapshot is held open it names every job that was ever owned since.
    assert settled == {"job_queue_pkey"}
    greedy = [(node["Node Type"], node.get("Index Name"), read(node), text) for node, text in scans if read(node) > MOST]
    assert not greedy, "\n\n".join(map(str, greedy))


def test_rescue_reads_nothing_that_the_living_have_had(database_url: str) -> None:
    """Beside a snapshot the entries of all jobs that they have done stay in the index of owned jobs."""
    me, other, gone = sorted(str(uuid.uuid4()) for _ in range(3))
    with psycopg.connect(database_url, autocommit=True) as conn, psycopg.connect(database_url) as watcher:
        for worker in (me, other):
            conn.execute("insert into jobqueue.worker (id, name, pid, host) values (%s, 'w@h', 1, 'h')", (worker,))
        watcher.execute("set transaction isolation level repeatable read")
        watcher.execute("select 1")
        for worker in (me, other):
            conn.execute("insert into job_queue (task_name) select 'x' from generate_series(1, 2000)")
            conn.execute("update job_queue set owner = %s, status = 'processing' where status = 'pending'", (worker,))
            conn.execute("update job_queue set owner = null, status = 'completed' where status = 'processing'")
        for owner in (gone, str(uuid.UUID(int=0)), str(uuid.UUID(int=2**128 - 1))):
            conn.execute("insert into job_queue (task_name, owner, status) values ('lost', %s, 'pending')", (owner,))

        def entries_read() -> int:
            conn.execute("select pg_stat_force_next_flush()")
            return int(one(database_url, "select idx_tup_read from pg_stat_user_indexes where indexrelname = 'job_queue_owner'"))

        before = entries_read()
        conn.execute("select * from jobqueue.rescue(%s)", (me,))
        assert entries_read() - before < 20
    assert rows(database_url, "select owner from job_queue where task_name = 'lost'") == [{"owner": None}] * 3
