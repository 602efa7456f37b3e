"""Messages on their way into the database: jobs in as few statements as can be, everything of one batch in one transaction."""

from __future__ import annotations

import logging
from base64 import b64decode
from collections.abc import Iterable, Iterator
from itertools import zip_longest
from typing import Any, Protocol

import psycopg
from kombu.exceptions import BatchPublishError
from kombu.utils.functional import retry_over_time
from kombu.utils.json import dumps

from celery_jobqueue.broker.context import lease_of, running_request
from celery_jobqueue.broker.messages import encode_job, job_id
from celery_jobqueue.broker.session import Call, Row
from celery_jobqueue.broker.settlements import Lease
from celery_jobqueue.broker.sql import statement
from celery_jobqueue.broker.transient import Destination, send_call
from celery_jobqueue.db.errors import InvalidJob

__all__ = ["MAX_CHARACTERS", "MAX_JOBS", "Batch", "Outgoing", "PublishBatch", "arrays", "send", "send_as_made", "send_safely"]

logger = logging.getLogger(__name__)

#: Jobs and characters of one INSERT: enough to make the round trip cheap, small enough for the server's memory.
MAX_JOBS = 1000
MAX_CHARACTERS = 8_000_000
_COLUMNS = ("id", "queue", "task_name", "task_id", "user_id", "run_at", "expires_at", "reply_to", "envelope", "payload")


class Outgoing:
    """Messages that are sent together."""

    def __init__(self) -> None:
        self._plain: list[dict[str, Any]] = []
        self._capped: list[dict[str, Any]] = []  # jobs that bring their own max_attempts
        self._rearmed: list[Call] = []
        self._letters: list[Call] = []

    def __len__(self) -> int:
        return len(self._plain) + len(self._capped) + len(self._rearmed) + len(self._letters)

    def add(self, message: dict[str, Any], destinations: list[Destination], scale: str, *, again: Lease | None = None,
            row: dict[str, Any] | None = None) -> None:
        """Put in a message. again: the running job that it publishes anew. row: the message encoded, if it is already."""
        letters = [queue for queue, transient in destinations if transient]
        jobs = [queue for queue, transient in destinations if not transient]
        if letters:
            self._letters.append(send_call(message, letters, scale))
        for queue in jobs:
            job = {**(row or encode_job(message, queue, scale)), "queue": queue}
            if again is not None:
                self._rearmed.append((statement("rearm"), (again.id, again.token, dumps(job))))
                again = None
                continue
            job["id"] = job_id(message, queue, only=len(jobs) == 1)
            (self._capped if "max_attempts" in job else self._plain).append(job)

    def calls(self, *, wake: bool = False, own: bool = False) -> list[Call]:
        """The statements that store all of it. wake: whoever sleeps or not. own: nobody else's work is in the transaction."""
        if own and len(self) == 1 and (self._plain or self._capped):
            return [_one(*self._plain, *self._capped)]
        inserts: list[Call] = [
            (statement("publish"), (plain or "[]", capped, "t" if wake else "f"))
            for plain, capped in zip_longest(_arrays(self._plain), _arrays(self._capped))]
        if own and self._letters and not (inserts or self._rearmed):
            return [(statement("asynchronous_commit"), ()), *self._letters]
        return [*self._letters, *self._rearmed, *inserts]


def _one(job: dict[str, Any]) -> Call:
    """A single job without the way through JSON, which cost the server more than the insert (0.46 ms; 0.17 ms without)."""
    binary, cap = job["payload_base64"], job.get("max_attempts")
    return statement("publish_one"), (
        *(job[column] for column in _COLUMNS), str(job["priority"]), None if binary is None else b64decode(binary),
        None if cap is None else str(cap))


def _arrays(jobs: Iterable[dict[str, Any]]) -> Iterator[str]:
    """The rows as JSON arrays of a size that one statement can carry."""
    yield from arrays(map(dumps, jobs))


def arrays(rows: Iterable[str], most: int = MAX_JOBS) -> Iterator[str]:
    """JSON objects as JSON arrays of a size that one statement can carry, of so many objects at most."""
    part: list[str] = []
    characters = 0
    for row in rows:
        if part and (len(part) >= most or characters + len(row) > MAX_CHARACTERS):
            yield f"[{','.join(part)}]"
            part, characters = [], 0
        part.append(row)
        characters += len(row)
    if part:
        yield f"[{','.join(part)}]"


def send(transport: Any, calls: list[Call]) -> list[list[Row]]:
    """Store what is published in one transaction; when this returns, jobs are on disk.

    Raises InvalidJob, SchemaError, ConfigurationError, psycopg.Error.
    """
    try:
        answers: list[list[Row]] = transport.run(*calls) if calls else []
    except psycopg.DataError as error:
        raise InvalidJob(f"PostgreSQL refused the job: {str(error).splitlines()[0]}") from error
    for (stmt, params), rows in zip(calls, answers, strict=True):
        if stmt.name == "rearm" and rows[0][0] != "t":
            # The lease was lost: the job is somebody else's now, and a stale owner changes nothing. (Or this is the second
            # try after a lost reply, and the first one did it.)
            logger.warning("job %s was taken from this worker; its retry is dropped", params[0],
                           extra=(lease_of(running_request()) or Lease(str(params[0]), "")).about)
    return answers


def send_safely(transport: Any, calls: list[Call]) -> list[list[Row]]:
    """As `send`; a lost connection is tried again as the application's retry policy says. Jobs have their ids already, so
    what was written in spite of a lost reply is not written twice.
    """
    policy = transport.client.transport_options
    answers: list[list[Row]] = retry_over_time(
        send, transport.recoverable_connection_errors, (transport, calls), max_retries=policy.get("max_retries", 3),
        interval_start=policy.get("interval_start", 0), interval_step=policy.get("interval_step", 0.2),
        interval_max=policy.get("interval_max", 1))
    return answers


def send_as_made(transport: Any, calls: Iterable[Call]) -> None:
    """As `send_safely`, with the server at work on each call while the next is made. What making one raises rolls back all."""
    made: list[Call] = []
    making = iter(calls)
    try:
        with transport.session.transaction():
            for call in making:
                made.append(call)
                transport.session.start([call])
    except psycopg.Error:
        send_safely(transport, [*made, *making])


class Batch(Protocol):
    """Takes a message instead of the database."""

    outgoing: Outgoing


class PublishBatch:
    """What `Producer.batch()` collects: each flush is one transaction, written once even if it has to be sent again.

    kombu's contract (kombu/messaging.py): it publishes, flushes, discards what was not flushed, and closes.
    """

    def __init__(self, channel: Any, max_size: int) -> None:
        self.channel = channel
        self.max_size = max_size
        self.outgoing = Outgoing()
        self._unusable = ""

    def publish(self, message: dict[str, Any], **kwargs: Any) -> None:
        """Route and keep a message. Raises InvalidJob, and as flush() does when the batch is full."""
        self._check()
        self.channel.basic_publish(message, _publish_batch=self, **kwargs)
        if len(self.outgoing) >= self.max_size:
            self.flush()

    def flush(self) -> None:
        """Store what was kept, see `send_safely`.

        Raises InvalidJob (nothing was written) or BatchPublishError (nobody knows); the batch cannot be used then.
        """
        self._check()
        if not self.outgoing:
            return
        transport = self.channel.connection
        calls, self.outgoing = self.outgoing.calls(own=True), Outgoing()
        self._unusable = "failed"
        try:
            send_safely(transport, calls)
        except transport.recoverable_connection_errors as error:
            # Not an error that makes kombu reconnect: it would publish this message again, into a batch that is gone.
            raise BatchPublishError(f"the batch may or may not have been written: {error}") from error
        self._unusable = ""

    def discard(self) -> None:
        """Forget what was not flushed."""
        self.outgoing = Outgoing()
        self._unusable = self._unusable or "aborted"

    def close(self) -> None:
        """Nothing more is published through this batch."""
        self.outgoing = Outgoing()
        self._unusable = self._unusable or "closed"

    def _check(self) -> None:
        if self._unusable:
            raise BatchPublishError(f"this publish batch is {self._unusable}")
