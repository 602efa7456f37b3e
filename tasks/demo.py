"""`make demo`: a fresh machine, one command, certificates."""

from __future__ import annotations

import csv
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType
from urllib.parse import unquote, urlsplit

import psycopg
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from celery_jobqueue.db import embedded, migrate
from celery_jobqueue.db.errors import ConfigurationError, JobQueueError
from celery_jobqueue.db.url import database_url, masked
from tasks.app import app, engine
from tasks.certificates.samples import SAMPLE_EVENT, SAMPLE_USER, seed_sample_event
from tasks.service import JobQueueService, JobView

_ATTENDEES = Path(__file__).parent.parent / "tests" / "data" / "attendees.csv"
_PATIENCE = 120.0  # seconds for everything after the worker has been started
_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_LINE = partial(print, flush=True)  # a pipe shows progress too


def main() -> int:
    """Run the demo. Returns the process's exit code."""
    own = bool(os.environ.get("DATABASE_URL", "").strip())
    if not own and not embedded.status().running:
        _LINE("PostgreSQL    starting a server of our own (DATABASE_URL is not set)…")
    url = database_url()
    _LINE(f"PostgreSQL    {masked(url)}{' (from DATABASE_URL)' if own else ''}")
    applied = migrate.migrate(url, migrate.LINES)
    _LINE(f"Schema        {'applied ' + ', '.join(f'{m.line}/{m.version:04d}' for m in applied) if applied else 'up to date'}")
    with Session(engine()) as session, session.begin():
        event = seed_sample_event(session)
        _LINE(f"Event         {event.name}, {event.place}")
    ids: list[str] = []
    try:
        with demo_worker() as (worker, log):
            service = JobQueueService()
            with _ATTENDEES.open(encoding="utf-8") as file:
                ids.extend(service.queue_certificate_generation({"event_id": str(SAMPLE_EVENT), **row}, SAMPLE_USER)
                           for row in csv.DictReader(file))
            _LINE(f"Queued        {len(ids)} certificates\n\nProcessing in background…")
            failed = _watch(service, ids, worker, log)
    except BaseException:
        # What nobody will wait for shall not surprise the next worker on this database.
        with _interrupts_later(), suppress(Exception):
            app.control.revoke(ids)
        raise
    _tell_more(own)
    return 1 if failed else 0


@contextmanager
def demo_worker() -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A real worker, in its own session: Ctrl-C reaches this process only, which then stops the worker properly."""
    _refuse_foreign_jobs()
    log = embedded.home().parent / "demo-worker.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stop:
        with log.open("wb") as file, _interrupts_later():  # between its birth and the next line nobody would stop it
            worker = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "celery", "-A", "tasks", "worker", "--concurrency", "2",
                 "--loglevel", "INFO", "--hostname", f"demo-{os.getpid()}@%h"],
                stdout=file, stderr=file, stdin=subprocess.DEVNULL, start_new_session=True,
                env={"VERIFY_URL": "https://certificates.example.org/verify/{serial}", **os.environ})
            for _ in range(2):  # a Ctrl-C on the way into the first is not on the way into the second
                stop.callback(_stop, worker)
        _LINE(f"Worker        started (pid {worker.pid}, log {_short(log)})")
        yield worker, log


def _refuse_foreign_jobs() -> None:
    """The demo's worker knows the tasks of this repository only, and would fail the jobs of every other application."""
    with psycopg.connect(database_url()) as conn:
        found = conn.execute("select task_name from job_queue where status = 'pending' and queue = 'celery'"
                             " and task_name not like 'tasks.%' limit 1").fetchone()
    if found is not None:
        raise ConfigurationError(f"jobs of another application wait in this database ({found[0]}), and the demo's worker would "
                                 "take them: unset DATABASE_URL, or name another database")


@contextmanager
def _interrupts_later() -> Iterator[None]:
    """Ctrl-C waits until the block is over."""
    came: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        came.append(number)

    before = {number: signal.signal(number, note) for number in _STOPS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        _hear_no_more()
        raise KeyboardInterrupt


def _hear_no_more() -> None:
    """Who has stopped this may be impatient; the next Ctrl-C would end the cleaning up, with a worker that nobody stops."""
    for number in _STOPS:
        signal.signal(number, _ignored)


def _ignored(_number: int, _frame: FrameType | None) -> None:
    """Not SIG_IGN, which programs that are started later would inherit."""


def _watch(service: JobQueueService, ids: list[str], worker: subprocess.Popen[bytes], log: Path) -> int:
    """Print every job as it ends; returns how many failed."""
    live = sys.stdout.isatty()
    waiting, failed = list(ids), 0
    deadline = time.monotonic() + _PATIENCE
    while waiting:
        if worker.poll() is not None:
            raise SystemExit(f"the worker stopped with exit code {worker.returncode}: see {_short(log)}")
        if time.monotonic() > deadline:
            raise SystemExit(f"{len(waiting)} certificates are not finished after {_PATIENCE:g} s: see {_short(log)}")
        for job in [job for task_id in waiting if (job := service.get_job(task_id)) is not None and job.ended]:
            waiting.remove(job.task_id)
            failed += job.status == "failed"
            _LINE(("\r\x1b[K" if live else "") + _told(job))
        if live:
            done = len(ids) - len(waiting)
            _LINE(f"\r[{'#' * (24 * done // len(ids)):<24}] {done}/{len(ids)}", end="")
        time.sleep(0.05)
    _LINE(("\r\x1b[K" if live else "") + f"\n{len(ids) - failed} certificates issued" + (f", {failed} failed" if failed else ""))
    return failed


def _told(job: JobView) -> str:
    if job.status == "failed":
        return f"  ✗ {job.error_message}"
    place = job.result["url"]
    url = urlsplit(place)
    return f"  ✓ {_short(Path(unquote(url.path))) if url.scheme == 'file' else place}  {job.result['recipient_name']}"


def _stop(worker: subprocess.Popen[bytes]) -> None:
    """Warm shutdown; harder when that takes too long. Impatience must not leave half of it running."""
    with _interrupts_later():
        for number, patience in ((signal.SIGTERM, 15), (signal.SIGQUIT, 10), (signal.SIGKILL, 5)):
            if worker.poll() is not None:
                return
            if number == signal.SIGKILL:
                os.killpg(worker.pid, number)  # its pool too
            else:
                worker.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                worker.wait(patience)


def _tell_more(own: bool) -> None:
    here = _short(Path(sys.executable).parent)
    place = '"$DATABASE_URL"' if own else f'"$({here}/jobqueue up --show-url)"'
    sql = "SELECT status, task_name, attempts, error_message FROM job_queue ORDER BY created_at DESC LIMIT 50;"
    _LINE(f"""
Look further
  a worker     {here}/celery -A tasks worker --loglevel INFO
  Flower       {here}/celery -A tasks flower --address=127.0.0.1        then open http://127.0.0.1:5555
  the queue    {here}/jobqueue status
  SQL          {_psql(own)} {place} -c "{sql}\"""")
    if not own:
        _LINE(f"  PostgreSQL runs on; this stops it:   {here}/jobqueue down")


def _psql(own: bool) -> str:
    """A psql that is there: the machine's, else the one beside the embedded server."""
    if own or shutil.which("psql"):
        return "psql"
    return shlex.quote(_short(embedded._binaries() / "psql"))


def _short(path: Path) -> str:
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def _run() -> int:
    came: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        came.append(number)
        _hear_no_more()
        signal.default_int_handler(number, frame)

    # Whoever closes the terminal or stops this politely means the same as Ctrl-C.
    for number in _STOPS:
        signal.signal(number, interrupt)
    try:
        return main()
    except (KeyboardInterrupt, Exception) as error:
        # A round trip that is interrupted may end as an error of its connection.
        if came or isinstance(error, KeyboardInterrupt):
            own = os.environ.get("DATABASE_URL", "").strip()
            _LINE("\nstopped" + ("" if own else "; PostgreSQL runs on, `jobqueue down` stops it"))
            return 130
        if not isinstance(error, (JobQueueError, psycopg.Error, SQLAlchemyError)):
            raise
        _LINE(f"\n{type(error).__name__}: {masked(str(error).strip())}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(_run())
