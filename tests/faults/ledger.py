"""What the tasks themselves say: each run notes its start and its end.

A file, because no fault of a database, a pooler or a network touches it, and a process killed right after a note has still
made it. Each note is one write to a file opened for appending, so processes do not disturb each other's.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import psycopg

_open: dict[tuple[int, str], int] = {}


def note(what: str, job: str) -> None:
    """A run of the job, in this process, starts (`start`) or ends (`end`). FAULTS_LEDGER names the file."""
    path = os.environ["FAULTS_LEDGER"]
    key = (os.getpid(), path)
    if key not in _open:
        _open[key] = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(_open[key], f"{job}\t{what}\t{os.getpid()}\t{time.time()!r}\n".encode())


def load(path: Path, conn: psycopg.Connection[tuple[object, ...]]) -> None:
    """Make the table faults_run (job, pid, started, ended): one row per run, times in seconds since 1970; ended may be null."""
    conn.execute("drop table if exists faults_run, faults_note")
    conn.execute("create table faults_note (number bigint generated always as identity, job text, what text, pid integer,"
                 " at double precision)")
    if path.exists():
        with conn.cursor().copy("copy faults_note (job, what, pid, at) from stdin") as copy, path.open("rb") as notes:
            while block := notes.read(1 << 20):
                copy.write(block)
    # A process runs one job at a time: the next note of the same process and job is the end of this start, or another start.
    conn.execute("""
        create table faults_run as
        select job, pid, at as started, case when next_what = 'end' then next_at end as ended
          from (select job, pid, at, what, lead(what) over w as next_what, lead(at) over w as next_at
                  from faults_note window w as (partition by job, pid order by number)) noted
         where what = 'start'""")
    conn.execute("create index on faults_run (job)")
    conn.execute("analyze faults_run")
