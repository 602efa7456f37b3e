"""`make demo`: a fresh machine, one command, certificates."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sqlalchemy import select
from sqlalchemy.orm import Session

from celery_jobqueue.db import migrate
from celery_jobqueue.db.url import database_url, masked

_ATTENDEES = Path(__file__).parent.parent / "tests" / "data" / "attendees.csv"
_PATIENCE = 120.0  # seconds for everything after the worker has been started


def main() -> int:
    """Run the demo. Returns the process's exit code."""
    url = database_url()
    print(f"PostgreSQL    {masked(url)}")
    applied = migrate.migrate(url, migrate.LINES)
    print(f"Schema        {'applied ' + ', '.join(f'{m.line}/{m.version:04d}' for m in applied) if applied else 'up to date'}")

    from celery_jobqueue.db.models import Event
    from tasks.app import engine
    from tasks.certificates.samples import SAMPLE_EVENT, SAMPLE_USER, seed_sample_event
    from tasks.service import JobQueueService

    with Session(engine()) as session, session.begin():
        event = seed_sample_event(session)
        print(f"Event         {event.name}, {event.place}")
    worker = _start_worker()
    try:
        service = JobQueueService()
        with _ATTENDEES.open(encoding="utf-8") as file:
            ids = [service.queue_certificate_generation({"event_id": str(SAMPLE_EVENT), **row}, SAMPLE_USER)
                   for row in csv.DictReader(file)]
        print(f"Queued        {len(ids)} certificates\n\nProcessing in background…")
        failed = _watch(service, ids, worker)
        with Session(engine()) as session:
            assert session.scalar(select(Event.id).where(Event.id == SAMPLE_EVENT)) is not None
    finally:
        _stop(worker)
    _tell_more()
    return 1 if failed else 0


def _start_worker() -> subprocess.Popen[bytes]:
    """A real worker, in its own session: Ctrl-C reaches this process only, which then stops the worker properly."""
    log = Path(".local/demo-worker.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        worker = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "celery", "-A", "tasks", "worker", "--concurrency", "2", "--loglevel", "INFO",
             "--hostname", f"demo-{os.getpid()}@%h"],
            stdout=file, stderr=file, stdin=subprocess.DEVNULL, start_new_session=True)
    print(f"Worker        started (pid {worker.pid}, log {log})")
    return worker


def _watch(service: object, ids: list[str], worker: subprocess.Popen[bytes]) -> int:
    from tasks.service import JobQueueService, JobView

    assert isinstance(service, JobQueueService)
    live = sys.stdout.isatty()
    told: dict[str, JobView] = {}
    deadline = time.monotonic() + _PATIENCE
    while len(told) < len(ids):
        if worker.poll() is not None:
            raise SystemExit(f"the worker stopped with exit code {worker.returncode}: see .local/demo-worker.log")
        if time.monotonic() > deadline:
            raise SystemExit(
                f"{len(ids) - len(told)} certificates are not finished after {_PATIENCE:g} s: see .local/demo-worker.log")
        for task_id in ids:
            job = service.get_job(task_id) if task_id not in told else None
            if job is not None and job.ended:
                told[task_id] = job
                _print_job(job, live)
        if live:
            print(f"\r[{'#' * (24 * len(told) // len(ids)):<24}] {len(told)}/{len(ids)}", end="", flush=True)
        time.sleep(0.05)
    if live:
        print("\r" + " " * 40, end="\r")
    failed = sum(job.status == "failed" for job in told.values())
    print(f"\n{len(ids) - failed} certificates issued" + (f", {failed} failed" if failed else ""))
    return failed


def _print_job(job: object, live: bool) -> None:
    from tasks.service import JobView

    assert isinstance(job, JobView)
    if live:
        print("\r" + " " * 40, end="\r")
    if job.status == "failed":
        print(f"  ✗ {job.error_message}")
        return
    url = urlsplit(job.result["url"])
    place = job.result["url"]
    if url.scheme == "file":
        path = Path(unquote(url.path))
        place = os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
    print(f"  ✓ {place}  {job.result['recipient_name']}")


def _stop(worker: subprocess.Popen[bytes]) -> None:
    """Warm shutdown; harder when that takes too long."""
    for number, patience in ((signal.SIGTERM, 15), (signal.SIGQUIT, 10), (signal.SIGKILL, 5)):
        if worker.poll() is not None:
            return
        worker.send_signal(number)
        try:
            worker.wait(patience)
        except subprocess.TimeoutExpired:
            continue


def _tell_more() -> None:
    bin_ = Path(sys.executable).parent
    here = os.path.relpath(bin_) if bin_.is_relative_to(Path.cwd()) else str(bin_)
    sql = "SELECT status, task_name, attempts, finished_at FROM job_queue ORDER BY created_at DESC LIMIT 50;"
    embedded = not os.environ.get("DATABASE_URL", "").strip()
    print(f"""
Look further
  a worker     {here}/celery -A tasks worker
  Flower       {here}/celery -A tasks flower        then http://localhost:5555
  the queue    {here}/jobqueue status
  SQL          psql "{f"$({here}/jobqueue up --show-url)" if embedded else "$DATABASE_URL"}" -c "{sql}\"""")
    if embedded:
        print(f"  stop PostgreSQL   {here}/jobqueue down")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\nstopped; the embedded server runs on: `jobqueue down` stops it")
        sys.exit(130)
