"""What the tasks have noted, held against the rows."""

from __future__ import annotations

import psycopg

from tests.faults import ledger
from tests.faults.arena import Arena
from tests.faults.scenario import Verdict

#: Tasks that note their end; a completed job of theirs without an end was lost.
_NOTING = ("f.work", "f.hold")

# Made by whoever lets retention work beside (soak.py).
_RETIRED = """
    create table if not exists faults_retired as
    select id, task_id, status, attempts, max_attempts, total_starts, owner, finished_at from public.job_queue limit 0"""

# One row per published job with what its row says and what its runs noted.
_JOBS = """
    create temporary table judged as
    select p.task_id, p.task, j.id, j.status, j.attempts, j.max_attempts, j.total_starts, j.owner,
           extract(epoch from j.finished_at) as finished, r.starts, r.ends, r.last_start
      from published p
      left join (select id, task_id, status, attempts, max_attempts, total_starts, owner, finished_at from public.job_queue
                  union all select * from faults_retired) j on j.task_id = p.task_id
      left join (select job, count(*) as starts, count(ended) as ends, max(started) as last_start
                   from faults_run group by job) r on r.job = p.task_id"""

_COUNTS = """
    select count(*), count(*) filter (where status in ('completed', 'failed')),
           count(*) filter (where id is null or status = 'completed' and coalesce(ends, 0) = 0 and task = any (%s)),
           count(*) filter (where starts > 1), count(*) filter (where ends > 1),
           count(*) filter (where status in ('pending', 'processing') or owner is not null)
      from judged"""

# Of the last half minute: results are emptied after result_expires, in the soak a minute.
_BARE = """
    select task_id from public.job_queue
     where status = 'completed' and state is distinct from 'SUCCESS' and finished_at > now() - interval '30 seconds'
       and envelope::json -> 'headers' ->> 'ignore_result' is distinct from 'true' limit 3"""

_AGAIN = "a job was started again"
_UNCOUNTED = "a run was not counted on its row before its first instruction"
_BROKEN = {
    "a job ran again after it was settled": "last_start > finished",
    _AGAIN: "total_starts > 1 or starts > 1",
    "attempts exceed max_attempts": "attempts > max_attempts",
    _UNCOUNTED: "starts > total_starts",
}


def judge(arena: Arena) -> Verdict:
    """Complete the scenario's verdict; to be called when it is over and its workers may still run."""
    verdict = arena.verdict
    with psycopg.connect(arena.url, autocommit=True) as conn:
        ledger.load(arena.ledger, conn)
        conn.execute("create temporary table published (task_id text primary key, task text)")
        with conn.cursor().copy("copy published from stdin") as copy:
            for pair in arena.published.items():
                copy.write_row(pair)
        conn.execute(_RETIRED)
        conn.execute(_JOBS)
        counts = conn.execute(_COUNTS, (list(_NOTING),)).fetchone()
        assert counts is not None
        (verdict.jobs, verdict.ended, verdict.lost, verdict.restarted, verdict.twice, verdict.stuck) = map(int, counts)  # type: ignore[call-overload]
        arena.check(not verdict.lost, f"{verdict.lost} jobs were lost")
        arena.check(not verdict.stuck, f"{verdict.stuck} jobs are stuck")
        arena.check(verdict.twice <= arena.may_run_twice,
                    f"{verdict.twice} jobs were done twice, at most {arena.may_run_twice} may have been")
        bare = conn.execute(_BARE).fetchall()
        arena.check(not bare, f"a completed job has no result: {', '.join(str(row[0]) for row in bare)}")
        excused = [_AGAIN] * arena.may_start_again + [_UNCOUNTED] * arena.starts_are_given_back
        for promise, condition in _BROKEN.items():
            if promise in excused:
                continue
            found = conn.execute(f"select task_id from judged where {condition} limit 3").fetchall()
            arena.check(not found, f"{promise}: {', '.join(str(row[0]) for row in found)}")
    return verdict
