"""The end of a batch: a zip of its certificates, a report of every row, a summary. The body of the batch's chord."""

from __future__ import annotations

import csv
import time
import unicodedata
import uuid
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from celery import current_task
from sqlalchemy import Connection, update

from celery_jobqueue.broker import finish_in
from celery_jobqueue.db.models import CertificateBatch
from tasks.app import app, engine
from tasks.bulk import statements
from tasks.bulk.errors import BatchError
from tasks.certificate import storage
from tasks.certificates.storage import NoSuchFile, Storage

__all__ = ["finish_batch", "finisher_id"]

_PATIENCE = 5.0  # seconds
_SHOWN = 100  # failures in the summary; the report has all
_COLUMNS = ("line", "recipient_name", "recipient_key", "email", "outcome", "serial", "storage_key", "note")


def finisher_id(batch: uuid.UUID, run: int) -> str:
    """Task id of what ends this run of a batch."""
    return f"{batch}.{run}"


@app.task(name="tasks.finish_batch", dont_autoretry_for=(TypeError,))  # type: ignore[untyped-decorator,unused-ignore]
def finish_batch(batch_id: str) -> dict[str, Any]:
    """Make the batch's zip, report and summary; returns the summary. Running twice overwrites them.

    It takes one argument: as an errback with more Celery would call it within the transaction of the job that failed last.
    """
    batch = uuid.UUID(batch_id)
    with engine().connect() as connection:
        row = connection.execute(statements.BATCH, {"batch": batch}).one_or_none()
        if row is None:
            raise BatchError(f"there is no batch {batch}")
        _await_settled(connection, row)
        summary = _made(connection, row, storage())
        connection.execute(update(CertificateBatch).where(CertificateBatch.id == batch).values(
            finished_at=statements.CLOCK, summary=summary))
        finish_in(connection, summary)
        connection.commit()
    return summary


def _await_settled(connection: Connection, batch: Any) -> None:
    """A failed job ends in its worker's main process, a moment after its part of the chord: its error is worth the moment."""
    deadline, pause = time.monotonic() + _PATIENCE, 0.02
    while connection.execute(statements.STILL_RUNNING, {"batch": batch.id, "finisher": None}).scalar_one():
        connection.rollback()
        if time.monotonic() > deadline:
            return
        time.sleep(pause)
        pause = min(2 * pause, 0.5)
    connection.rollback()


def _made(connection: Connection, batch: Any, files: Storage) -> dict[str, Any]:
    """Write zip and report; the summary."""
    place = f"events/{batch.event_id}/batches/{batch.id}"
    counts: Counter[str] = Counter()
    failures: list[dict[str, Any]] = []
    with TemporaryDirectory(prefix="batch-") as folder:
        report, archive = Path(folder, "report.csv"), Path(folder, "certificates.zip")
        with report.open("w", encoding="utf-8-sig", newline="") as file, _archive(archive) as add:
            writer = csv.writer(file)
            writer.writerow(_COLUMNS)
            for row in _told_while(_outcomes(connection, batch.id)):
                outcome, note = row.outcome, row.note if row.outcome != "failed" else row.error_message
                if outcome in ("issued", "issued before") and batch.options["archive"]:
                    try:
                        add(row, files.open(row.storage_key))
                    except NoSuchFile as error:
                        outcome, note = "failed", str(error)
                counts[outcome] += 1
                if outcome == "failed":
                    note = note or "its job ended without a certificate"
                    if len(failures) < _SHOWN:
                        failures.append({"line": row.line, "recipient_name": row.recipient_name, "error": note})
                writer.writerow(_harmless(cell) for cell in (
                    row.line, row.recipient_name, row.recipient_key, row.email, outcome, row.serial, row.storage_key, note))
            seconds = time.time() - batch.started_at.timestamp()
        keys = {"report": f"{place}.csv"}
        files.put(keys["report"], report, "text/csv; charset=utf-8")
        if counts["issued"] + counts["issued before"] and batch.options["archive"]:
            keys["zip"] = f"{place}.zip"
            files.put(keys["zip"], archive, "application/zip")
    return {"batch": str(batch.id), "source": batch.source, "run": batch.runs, "rows": counts.total(), "issued": counts["issued"],
            "issued_before": counts["issued before"], "failed": counts["failed"], "duplicates": counts["duplicate"],
            "bad": counts["bad"], "revoked": counts["revoked"], "seconds": round(seconds, 1), **keys, "failures": failures}


def _outcomes(connection: Connection, batch: uuid.UUID) -> Iterator[Any]:
    """Every row of the batch, in pieces: no transaction stays open while files are read and written."""
    after = 0
    while rows := connection.execute(statements.OUTCOMES, {"batch": batch, "after": after, "limit": 1000}).all():
        connection.rollback()
        yield from rows
        after = rows[-1].line
    connection.rollback()


def _told_while(rows: Iterator[Any]) -> Iterator[Any]:
    """The rows; the job says once a second how many have passed."""
    told = time.monotonic()
    for number, row in enumerate(rows, 1):
        if current_task and not current_task.request.called_directly and time.monotonic() - told > 1:
            told = time.monotonic()
            current_task.update_state(state="PROGRESS", meta={"done": number})
        yield row


@contextmanager
def _archive(path: Path) -> Iterator[Callable[[Any, bytes], None]]:
    """A zip whose bytes depend on nothing but its files: PDFs are compressed already, and times are those of the issue."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        def add(row: Any, content: bytes) -> None:
            info = zipfile.ZipInfo(f"{_file_name(row.recipient_name)} {row.serial}.pdf", row.issued_at.utctimetuple()[:6])
            info.external_attr = 0o644 << 16
            archive.writestr(info, content)

        yield add


def _file_name(name: str) -> str:
    """The name without what some system takes for something else; short enough for all of them."""
    plain = "".join("_" if char in '/\\:*?"<>|' or unicodedata.category(char) == "Cf" else char for char in name)
    return plain.encode()[:180].decode(errors="ignore").strip(" .") or "_"


def _harmless(cell: object) -> object:
    """A spreadsheet takes a cell that begins like this for a formula, and runs it."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell
