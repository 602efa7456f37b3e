"""A user's jobs as pages and programs see them. Everything here reads the database and waits for it: call it in a thread."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Engine, Row, func, select, text
from sqlalchemy.orm import Session

from celery_jobqueue.db.models import Event, EventOrganiser, Job
from tasks.certificates import errors
from tasks.certificates.verification import plain_serial

__all__ = ["Card", "digest", "events_of", "file_of", "job_of", "jobs_of", "unfinished", "watch"]

#: One job as JSON.
Card = dict[str, Any]

_SHOWN = 20  # jobs on a page
_LONGEST_ERROR = 1000  # characters
_COLUMNS = (Job.task_id, Job.task_name, Job.status, Job.priority, Job.attempts, Job.max_attempts, Job.created_at, Job.run_at,
            Job.started_at, Job.finished_at, Job.error_message, Job.state, Job.result,
            func.left(Job.payload, 4000).label("payload"))


def jobs_of(engine: Engine, user_id: str) -> list[Card]:
    """The user's newest jobs, newest first."""
    with Session(engine) as session:
        query = select(*_COLUMNS).where(Job.user_id == user_id).order_by(Job.created_at.desc(), Job.id.desc()).limit(_SHOWN)
        return [_card(row) for row in session.execute(query)]


def job_of(engine: Engine, user_id: str, task_id: str) -> Card | None:
    """The user's job with this task id; None when there is none, or it is somebody else's."""
    row = _row(engine, user_id, task_id)
    return row and _card(row)


def file_of(engine: Engine, user_id: str, task_id: str) -> tuple[str, str] | None:
    """Storage key and file name of what the user's job has made; None when it has made none, or is somebody else's."""
    row = _row(engine, user_id, task_id)
    made = _made(row) if row else {}
    key = made.get("storage_key")
    if not isinstance(key, str):
        return None
    serial = plain_serial(str(made.get("serial", "")))
    return key, f"certificate-{serial}.pdf" if serial else key.rpartition("/")[2]


def unfinished(engine: Engine, user_id: str, enough: int) -> int:
    """How many of the user's newest thousand jobs are not finished; counts no further than `enough`."""
    newest = select(Job.status).where(Job.user_id == user_id).order_by(Job.created_at.desc()).limit(1000).subquery()
    waiting = select(newest.c.status).where(newest.c.status.in_(("pending", "processing"))).limit(enough).subquery()
    with Session(engine) as session:
        return session.scalar(select(func.count()).select_from(waiting)) or 0


def events_of(engine: Engine, user_id: str) -> list[dict[str, str]]:
    """Events that the user issues certificates for, the newest first."""
    with Session(engine) as session:
        query = (select(Event.id, Event.name, Event.starts_on).join(EventOrganiser, EventOrganiser.event_id == Event.id)
                 .where(EventOrganiser.user_id == user_id).order_by(Event.starts_on.desc(), Event.name).limit(500))
        return [{"id": str(row.id), "name": row.name, "starts_on": row.starts_on.isoformat()} for row in session.execute(query)]


def watch(engine: Engine, users: Sequence[str]) -> None:
    """Have changes of these users' jobs notified for the next two minutes."""
    with engine.begin() as connection:
        connection.execute(text("select jobqueue.watch(:users)"), {"users": list(users)})


def digest(cards: Sequence[Card]) -> str:
    """The same for the same cards, in every process: what a reader has seen already."""
    return hashlib.sha256(json.dumps(cards, sort_keys=True).encode()).hexdigest()[:16]


def _row(engine: Engine, user_id: str, task_id: str) -> Row[Any] | None:
    with Session(engine) as session:
        return session.execute(select(*_COLUMNS).where(Job.task_id == task_id, Job.user_id == user_id)
                               .order_by(Job.created_at.desc()).limit(1)).one_or_none()


def _card(row: Row[Any]) -> Card:
    card: Card = {
        "id": row.task_id, "task": row.task_name, "title": _title(row), "status": row.status, "priority": row.priority,
        "attempts": row.attempts, "max_attempts": row.max_attempts, "created_at": _moment(row.created_at),
        "run_at": _moment(row.run_at), "started_at": _moment(row.started_at), "finished_at": _moment(row.finished_at),
        "error": _reason(row.error_message), "progress": _progress(row), "certificate": None,
        "links": {"self": f"/api/jobs/{row.task_id}"}}
    made = _made(row)
    if isinstance(made.get("storage_key"), str):
        card["links"]["file"] = f"/api/jobs/{row.task_id}/file"
    if serial := plain_serial(str(made.get("serial", ""))):
        card["certificate"] = {"serial": serial, "recipient_name": _plain(str(made.get("recipient_name", "")))}
        card["links"]["verify"] = f"/verify/{serial}"
    return card


def _reason(error: str | None) -> str | None:
    """Why it failed, in words: what the certificate application says itself needs no name of a Python class before it."""
    kind, separator, message = (error or "").partition(": ")
    return (message if separator and kind in errors.__all__ else error or "")[:_LONGEST_ERROR] or None


def _made(row: Row[Any]) -> dict[str, Any]:
    """What a finished job of this application returned."""
    if row.status != "completed" or not (row.task_name or "").startswith("tasks."):
        return {}
    made = _json(row.result)
    return made if isinstance(made, dict) else {}


def _title(row: Row[Any]) -> str:
    """For whom it is, else what runs."""
    message = _json(row.payload)
    kwargs = message[1] if isinstance(message, list) and len(message) > 1 and isinstance(message[1], dict) else {}
    name = kwargs.get("recipient_name")
    return _plain(name) if isinstance(name, str) and name else (row.task_name or "").rpartition(".")[2].replace("_", " ")


def _plain(text: str) -> str:
    """Text that can be sent: JSON may hold halves of characters, UTF-8 may not."""
    return text.encode(errors="replace").decode()


def _progress(row: Row[Any]) -> dict[str, float] | None:
    """As the task said last: {"done", "total", "percent"}. `current` or `percent` are understood too, as in `celery jobs`."""
    if row.status != "processing" or row.state in (None, "STARTED", "SUCCESS", "FAILURE", "RETRY", "REVOKED"):
        return None
    said = _json(row.result)
    if not isinstance(said, dict):
        return None
    done, total = _number(said.get("done", said.get("current"))), _number(said.get("total"))
    percent = _number(said.get("percent"))
    if done is not None and total:
        return {"done": done, "total": total, "percent": round(max(0.0, min(100.0, 100 * done / total)), 1)}
    return {"percent": round(min(100.0, percent), 1)} if percent is not None else None


def _number(value: Any) -> float | None:
    """A finite number that is not negative, else None."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
    return value if good else None


def _json(value: str | None) -> Any:
    try:
        return json.loads(value) if value else None
    except ValueError:
        return None


def _moment(value: Any) -> str | None:
    return value.isoformat(timespec="milliseconds") if value is not None else None
