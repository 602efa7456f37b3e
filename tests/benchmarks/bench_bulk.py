"""10,000 certificates through everything: file, queue, worker, storage folder, record, zip: `make bulk`.

CERTIFICATES=500 for fewer; ROWS=0 leaves out the 100,000 rows that are planned and queued only, to see what memory that takes.

Checks what came out, certificate by certificate, and says how long it took. Everything is durable: PostgreSQL and files are
synced to the disk. The small form, which runs in `make test`, is tests/integration/test_bulk.py.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from celery_jobqueue.db import embedded, migrate
from tests.support.bulk import write_attendees
from tests.support.database import one, rows
from tests.support.issuing import USER, add_event, certificates_of, path_of
from tests.support.workers import ROOT, worker

_NAMES = ("Łukasz Gutiérrez", "Zoë Ångström", "Αλεξάνδρα Παπαδοπούλου", "Дмитрий Шостакович", "محمد الفاتح",
          "Nguyễn Thị Minh Khai", "देवनागरी शर्मा", "Ada Lovelace", "Grace Hopper", "Jürgen Öztürk")
_PLAN = """
import resource, sys
from pathlib import Path
from tasks.app import engine
from tasks.bulk.batches import issue_batch, plan_batch
from tasks.bulk.csvfile import csv_attendees
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
for file in sys.argv[2:]:
    with csv_attendees(Path(file)) as attendees:
        plan = plan_batch(engine(), attendees, event_id=sys.argv[1], user_id="organiser-1")
    planned = peak()
    queued = issue_batch(engine(), plan.batch)
    print(queued, planned, peak(), flush=True)
"""


def main(count: int, many: int) -> None:
    """Run it. Raises AssertionError when something is missing."""
    with TemporaryDirectory(prefix="bulk-") as place, _server(Path(place, "server")) as url:
        folder = Path(place)
        if many:
            _memory(url, folder, many)
        if not count:
            return
        event = add_event(url)
        people = (f"{_NAMES[number % len(_NAMES)]} {number},person{number}@example.org" for number in range(count))
        file = write_attendees(folder / "people.csv", *people)
        files = folder / "files"
        with worker(url, folder, "tasks", "-c", "2", STORAGE_URL=files.as_uri()) as running:
            before = _cpu(running.process.pid, Path(place, "server"))
            began = time.monotonic()
            summary, marks = _issue(url, files, file, event)
            seconds = time.monotonic() - began
            worker_cpu, server_cpu = (after - start for after, start in zip(
                _cpu(running.process.pid, Path(place, "server")), before, strict=True))
        _check(url, files, event, summary, count)
        issuing = marks["last"] - marks["queued"]
        both = 1000 * (worker_cpu + server_cpu) / count
        print(f"\n{count:,} certificates in {seconds:.1f} s: {count / seconds:.0f}/s from the file to the zip\n"
              f"  {marks['plan']:6.1f} s  reading, checking, storing the rows\n"
              f"  {marks['queued'] - marks['plan']:6.1f} s  queueing the jobs, one transaction\n"
              f"  {issuing:6.1f} s  issuing: {count / issuing:.0f}/s through queue, storage folder and record\n"
              f"  {seconds - marks['last']:6.1f} s  zip, report, summary\n"
              f"  CPU per certificate, queueing and zip included: worker {1000 * worker_cpu / count:.1f} ms, "
              f"PostgreSQL {1000 * server_cpu / count:.1f} ms; two cores of their own could do {2000 / both:.0f}/s")


@contextmanager
def _server(home: Path) -> Iterator[str]:
    url = embedded.ensure(home)
    try:
        migrate.migrate(url, migrate.LINES)
        yield url
    finally:
        embedded.down(home)


def _issue(url: str, files: Path, file: Path, event: str) -> tuple[dict[str, Any], dict[str, float]]:
    began, marks, summary = time.monotonic(), {}, {}
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "tasks.bulk", "issue", str(file), "--event", event, "--user", USER, "--yes",
         "--json"],
        cwd=ROOT, stdout=subprocess.PIPE, text=True, env={**os.environ, "DATABASE_URL": url, "STORAGE_URL": files.as_uri()})
    assert process.stdout is not None
    for line in process.stdout:
        document = json.loads(line)
        kind = next(iter(document))
        if kind == "progress":
            print(f"  {document['progress']['done']:,}/{document['progress']['total']:,}", end="\r", flush=True)
        else:
            marks[kind] = time.monotonic() - began
        if kind == "summary":
            summary = document
    assert process.wait() == 0
    last = one(url, "select extract(epoch from max(j.finished_at) - max(b.started_at)) from job_queue j, certificate_batches b "
                    "where j.task_name = 'tasks.generate_certificate' and b.event_id = %s", (event,))
    return summary, {**marks, "last": marks["queued"] + float(last) - (marks["queued"] - marks["plan"])}


def _check(url: str, files: Path, event: str, said: dict[str, Any], count: int) -> None:
    assert (said["summary"]["issued"], said["summary"]["failed"]) == (count, 0), said["summary"]
    found = certificates_of(url, event)
    assert len({row["serial"] for row in found}) == len(found) == count
    with zipfile.ZipFile(path_of(said["links"]["zip"])) as archive:
        inside = Counter(hashlib.sha256(archive.read(name)).hexdigest() for name in archive.namelist())
    assert inside == Counter(row["sha256"] for row in found)
    for row in found:
        assert hashlib.sha256((files / row["storage_key"]).read_bytes()).hexdigest() == row["sha256"]
    assert rows(url, "select status, attempts, count(*) from job_queue where payload like %s group by 1, 2", (f"%{event}%",)) == [
        {"status": "completed", "attempts": 1, "count": count}]


def _memory(url: str, folder: Path, many: int) -> None:
    """100,000 rows cost the command hardly more memory than 2,000."""
    event = add_event(url)
    files = [write_attendees(folder / f"{count}.csv", *(f"Person {number} of {count}," for number in range(count)))
             for count in (2_000, many)]
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", _PLAN, event, *map(str, files)], cwd=ROOT, check=True, text=True,
                          stdout=subprocess.PIPE, env={**os.environ, "DATABASE_URL": url})
    (_, small, small_queued), (queued, large, large_queued) = (tuple(map(int, line.split())) for line in done.stdout.splitlines())
    assert queued == many
    assert large - small < 20, f"{small} MB, then {large} MB"
    assert large_queued - small_queued < 40, f"{small_queued} MB, then {large_queued} MB"
    print(f"{queued:,} rows planned and queued in {time.monotonic() - began:.0f} s; peak memory {large} MB while planning "
          f"(2,000 rows: {small}), {large_queued} MB while queueing (2,000: {small_queued})")
    rows(url, "truncate job_queue, certificate_batches cascade")


def _cpu(leader: int, data: Path) -> tuple[float, float]:
    """Seconds of CPU so far: of the worker's processes, and of the server whose data lie there (its ended ones too)."""
    postmaster = int(next(data.rglob("postmaster.pid")).read_text().splitlines()[0])
    worker_ticks = server_ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        own, of_children = sum(map(int, fields[11:13])), sum(map(int, fields[13:15]))
        if int(fields[3]) == leader:
            worker_ticks += own
        if stat.parent.name == str(postmaster):
            server_ticks += own + of_children
        elif int(fields[1]) == postmaster:
            server_ticks += own
    ticks = os.sysconf("SC_CLK_TCK")
    return worker_ticks / ticks, server_ticks / ticks


if __name__ == "__main__":
    main(int(os.environ.get("CERTIFICATES", "10000")), int(os.environ.get("ROWS", "100000")))
