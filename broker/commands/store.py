"""What `celery jobs` asks the database: every look is bounded, whatever lies in the table."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeAlias

import psycopg
from kombu.utils.url import maybe_sanitize_url

from celery_jobqueue.broker import settings as broker_settings
from celery_jobqueue.broker.claims import text_array
from celery_jobqueue.broker.messages import decode_lost
from celery_jobqueue.broker.register import SCHEMES
from celery_jobqueue.broker.session import Call, Row, Session
from celery_jobqueue.broker.settings import Settings
from celery_jobqueue.broker.sql import statement
from celery_jobqueue.broker.usual import Columns
from celery_jobqueue.db.errors import ConfigurationError, JobQueueError, SchemaError
from celery_jobqueue.db.url import masked

__all__ = ["LOOKED_AT", "STATUSES", "Ambiguous", "Document", "Filter", "Job", "JobStore", "UnknownJob", "open_store"]

STATUSES = ("pending", "processing", "completed", "failed")
#: A filter that no index serves looks at this many jobs, the newest, unless it says since when.
LOOKED_AT = 100_000
_EVERY = 2**31 - 1
_HEX = re.compile(r"[0-9a-f]{1,8}(-[0-9a-f]{0,4}(-[0-9a-f]{0,4}(-[0-9a-f]{0,4}(-[0-9a-f]{0,12})?)?)?)?|[0-9a-f]{1,32}")

Document: TypeAlias = dict[str, Any]


class UnknownJob(JobQueueError):
    """No job has this id."""


class Ambiguous(JobQueueError):
    """Several jobs have this id, or ids that begin so."""


@dataclass(frozen=True, slots=True)
class Job:
    """A row of job_queue as it was at `now`, by the database's clock."""

    row: Mapping[str, Any]

    @property
    def id(self) -> str:
        """The row's id."""
        return str(self.row["id"])

    @property
    def task_id(self) -> str:
        """Celery's id."""
        return str(self.row["task_id"])

    @property
    def status(self) -> str:
        """One of STATUSES."""
        return str(self.row["status"])

    @property
    def ended(self) -> bool:
        """Whether nothing more happens to it by itself."""
        return self.status in ("completed", "failed")

    def text(self, name: str) -> str:
        """A column, empty when it is null."""
        value = self.row[name]
        return "" if value is None else str(value)

    def since(self, name: str) -> float | None:
        """Seconds from a column's moment to now, negative when it is to come."""
        return self.between(name, "now")

    def between(self, start: str, end: str) -> float | None:
        """Seconds between two columns' moments."""
        if self.row[start] is None or self.row[end] is None:
            return None
        return (datetime.fromisoformat(self.row[end]) - datetime.fromisoformat(self.row[start])).total_seconds()

    @property
    def progress(self) -> Any | None:
        """What the running task said last with update_state(); None when it said nothing."""
        return _parsed(self.row["progress"]) if self.status == "processing" and self.row["state"] else None

    def document(self) -> Document:
        """For programs: the columns by their own names, and the progress."""
        named = {key: value for key, value in self.row.items() if key not in ("payload", "now")}
        return {**named, "progress": self.progress}


@dataclass(frozen=True, slots=True)
class Filter:
    """Which jobs are meant; nothing said means all."""

    statuses: frozenset[str] = frozenset()
    queue: str | None = None
    task: str | None = None
    user: str | None = None
    since: str | None = None

    @property
    def unindexed(self) -> bool:
        """Whether jobs have to be looked at one by one."""
        return self.user is None and bool(self.queue or self.task)


@dataclass
class JobStore:
    """The job queue of one application."""

    app: Any
    settings: Settings
    session: Session = field(repr=False)

    def run(self, *calls: Call) -> list[list[Row]]:
        """One transaction. Raises psycopg.Error; SchemaError when there is no job queue."""
        try:
            return self.session.run(*calls)
        except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName, psycopg.errors.UndefinedFunction) as error:
            raise SchemaError(f"the job queue's schema is missing or old in {masked(self.settings.url)}: "
                              "run `jobqueue migrate`") from error

    def look(self, *calls: Call) -> list[list[Row]]:
        """As run, for questions that must not take long."""
        limit = f"{max(1, int(self.settings.timeout) - 1)}s"
        return self.run((statement("watch_settings"), (limit,)), *calls)[1:]

    # -- jobs ---------------------------------------------------------------------------------------------------------

    def jobs(self, wanted: Filter, limit: int) -> list[Job]:
        """The newest first; pending alone in the order they are claimed, completed by when they ended."""
        [rows] = self.look(_listing(wanted, limit))
        return _jobs(rows)

    def several(self, wanted: Sequence[tuple[Filter, int]]) -> list[list[Job]]:
        """The answers to several listings, all of one moment."""
        return [_jobs(rows) for rows in self.look(*(_listing(*one) for one in wanted))]

    def by_id(self, ids: Sequence[str]) -> list[Job]:
        """These jobs, in this order, without those that are gone."""
        params = (None, None, None, None, None, str(len(ids)), str(LOOKED_AT), text_array(ids))
        [rows] = self.look((statement("list_jobs"), params))
        found = {job.id: job for job in _jobs(rows)}
        return [found[id] for id in ids if id in found]

    def reaches_all(self) -> bool:
        """Whether a listing has looked at every job."""
        [rows] = self.look((statement("list_reaches_all"), (str(LOOKED_AT),)))
        return rows[0][0] == "t"

    def find(self, ids: Iterable[str]) -> list[str]:
        """The job ids of job ids and task ids, or beginnings of them. Raises UnknownJob, Ambiguous."""
        return list(dict.fromkeys(self._find(id.strip()) for id in ids))

    def _find(self, text: str) -> str:
        low = high = None
        if _HEX.fullmatch(text.lower()):
            digits = text.lower().replace("-", "")
            low, high = digits.ljust(32, "0"), digits.ljust(32, "f")
        found = self.look((statement("find_jobs"), (text, low, high)))[0] if text else []
        exact = [id for id, task_id in found if text.lower() == id or text == task_id]
        ids = sorted({str(id) for id in exact or (id for id, _ in found)})
        if not ids:
            raise UnknownJob(f"no job has the id {text!r}, or one that begins so")
        if len(ids) > 1:
            some = ", ".join(ids[:5]) + (" …" if len(ids) > 5 else "")
            what = "are the jobs of task" if exact else "begin with"
            raise Ambiguous(f"{some} {what} {text}: name one of them" if exact else
                            f"{text!r} is the beginning of several jobs' ids: say more of it, or name one of {some}")
        return ids[0]

    def whole(self, id: str) -> Document:
        """Everything a person may want to know of the job: its columns, arguments and result decoded."""
        [rows] = self.look((statement("show_job"), (id,)))
        if not rows:
            raise UnknownJob(f"no job has the id {id!r}")
        row: Document = json.loads(rows[0][0] or "{}")
        payload, reply_to = row.pop("payload"), row.pop("reply_to")
        columns = Columns(row["task_name"], row["task_id"], row["queue"], reply_to, payload)
        headers, _, _ = decode_lost(columns, row.pop("envelope"), None)
        message = _parsed(payload)
        row["args"], row["kwargs"], row["embed"] = message if _is_message(message) else (None, None, None)
        row["args_repr"], row["kwargs_repr"] = headers.get("argsrepr"), headers.get("kwargsrepr")
        for name in ("root_id", "parent_id", "group", "retries", "origin"):
            row[name] = headers.get(name)
        row["result"] = _parsed(row["result"])
        return row

    # -- other things -------------------------------------------------------------------------------------------------

    def workers(self) -> list[Document]:
        """The registered worker processes; `alive` says whether they are."""
        [rows] = self.look((statement("workers"), ()))
        return [json.loads(row[0] or "{}") for row in rows]

    def duration(self, text: str) -> str:
        """The duration as PostgreSQL read it. Raises ConfigurationError when it is none."""
        with suppress(psycopg.DataError):
            [rows] = self.run((statement("duration"), (text,)))
            if float(rows[0][0] or 0) > 0:
                return f"{rows[0][0]} seconds"
        raise ConfigurationError(f"{text!r} is not a duration such as '1 hour', '30 minutes' or '2 days'")


def _listing(wanted: Filter, limit: int) -> Call:
    statuses = None if wanted.statuses in (frozenset(), frozenset(STATUSES)) else text_array(sorted(wanted.statuses))
    look = _EVERY if wanted.since else LOOKED_AT
    return statement("list_jobs"), (statuses, wanted.queue, wanted.task, wanted.user, wanted.since, str(limit), str(look), None)


def _jobs(rows: Sequence[Row]) -> list[Job]:
    return [Job(json.loads(row[0] or "{}")) for row in rows]


def _parsed(text: str | None) -> Any:
    """JSON, or the text itself where it is none."""
    try:
        return None if text is None else json.loads(text)
    except (ValueError, RecursionError):
        return text


def _is_message(body: Any) -> bool:
    return isinstance(body, list) and len(body) == 3 and isinstance(body[0], list) and isinstance(body[1], dict)


def open_store(app: Any) -> JobStore:
    """The job queue that the application's workers take their jobs from.

    Raises ConfigurationError when its broker is another one, psycopg.OperationalError when no server answers.
    """
    said = app.conf.broker_read_url
    first = (said if isinstance(said, str) else said[0] if said else "amqp://").partition(";")[0]
    scheme = first.partition("://")[0]
    if scheme != first and scheme not in SCHEMES:
        raise ConfigurationError(f"the application's broker is {maybe_sanitize_url(first)}, not postgresql://…: "
                                 "name an application of the job queue with `celery -A …`")
    connection = app.connection_for_read()
    urls = [url for url in connection.alt if url.partition("://")[0] in SCHEMES] or [broker_settings.url_of(connection)]
    for number, url in enumerate(urls, 1):
        settings = broker_settings.from_url(url, connection.transport_options or {})
        session = Session(settings.conninfo, prepare=False, timeout=settings.timeout, connect_timeout=settings.connect_timeout)
        try:
            session.connect()
        except psycopg.OperationalError:
            if number == len(urls):
                raise
            continue
        break
    return JobStore(app, settings, session)

