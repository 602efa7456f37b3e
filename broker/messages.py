"""Message ⇄ row.

A message's body is stored as it was published (`payload`, or `payload_binary` when it is not text), its headers and
properties as one JSON document (`envelope`), of a job without what is usual (broker/usual.py). What people and the claim need
to see stands in columns of its own.
"""

from __future__ import annotations

import json
import math
import os
import re
import threading
import time
import uuid
from base64 import b64encode
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from kombu.utils.encoding import safe_repr

from celery_jobqueue.broker.context import parameter_position, task_option
from celery_jobqueue.broker.priorities import to_row
from celery_jobqueue.broker.session import Row
from celery_jobqueue.broker.usual import Columns, left_out, put_back
from celery_jobqueue.db.errors import InvalidJob

__all__ = ["ETA_IN_WORKER", "check_size", "decode_job", "decode_lost", "decode_transient", "encode_job", "encode_transient",
           "envelopes", "is_json", "job_id", "revocation", "storable", "uuid7"]

#: A job due within this many seconds is delivered at once and waits in the worker's timer, where `inspect scheduled`
#: looks for it; a later one waits in the table (Celery's own suite expects a 5 s ETA in the timer).
ETA_IN_WORKER = 10.0

# AMQP's basic properties and what kombu adds; Producer.publish passes on anything it is given, even objects.
_PROPERTIES = frozenset({
    "content_type", "content_encoding", "delivery_mode", "priority", "correlation_id", "reply_to", "expiration",
    "message_id", "timestamp", "type", "user_id", "app_id", "cluster_id", "delivery_info", "delivery_tag",
})
#: What an envelope that does not say it means.
_CONTENT_TYPE, _CONTENT_ENCODING = "application/json", "utf-8"
_JSON_TYPES = frozenset({"application/json", "application/x-jobqueue-json"})
_MAX_ATTEMPTS = 2**31 - 1
#: Bytes of a body, an envelope or a result. PostgreSQL's own limit is 1 GB for a row on its way, where binary counts twice:
#: 1,000 MB of text and 530 MB of binary went through, with 5 GB of memory. 260 MB took 25 s on a busy machine, and the option
#: `timeout` is 30 s by itself. 256 MiB is also the most that an argument of enqueue_job(), a jsonb, can hold.
_MOST = 256 * 1024 * 1024
_LAST_MOMENT = datetime(9999, 12, 31, tzinfo=UTC).timestamp()
#: Characters of the envelopes that are read as one text, which is a copy of them: so much for a full claim of ordinary jobs.
_READ_TOGETHER = 500_000
#: Stands between them. Nobody who writes an envelope by hand can know it, so none of them ends or begins in its neighbour.
_SEAM = os.urandom(8).hex()

_clock = threading.Lock()
_last = 0


def uuid7() -> uuid.UUID:
    """A time-ordered UUID (RFC 9562, version 7), strictly increasing within this process."""
    global _last
    with _clock:
        # 48 bits of milliseconds and 12 bits below them, as in method 3 of the RFC.
        _last = now = max(_last + 1, time.time_ns() * 4096 // 1_000_000)
    random = int.from_bytes(os.urandom(8)) & 0x3FFF_FFFF_FFFF_FFFF
    return uuid.UUID(int=(now >> 12) << 80 | 0x7 << 76 | (now & 0xFFF) << 64 | 0x2 << 62 | random)


def job_id(message: dict[str, Any], queue: str, *, only: bool) -> str:
    """The row's id. It is put into the message's properties once, and those survive kombu's publish retries: a publish
    repeated after a lost reply is the same job. A message routed to several queues gets one id per queue.
    """
    base = message["properties"].get("message_id")
    if not base:
        base = message["properties"]["message_id"] = str(uuid7())
        if only:
            return str(base)
    if only:
        try:
            return str(uuid.UUID(base))
        except ValueError:
            pass
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"{base}\0{queue}"))


def encode_job(message: dict[str, Any], queue: str, scale: str) -> dict[str, Any]:
    """The row of a message, without its id, as jobqueue.publish() takes it.

    Raises InvalidJob naming the option that cannot be used.
    """
    headers, properties = message["headers"], message["properties"]
    payload, binary = _body(message["body"])
    now = datetime.now(UTC)
    eta = _moment(headers.get("eta"), "eta")
    expires = _moment(headers.get("expires"), "expires")
    if expires is None and (ttl := properties.get("expiration")) is not None:
        expires = _after(now, ttl, "expiration", "milliseconds")
    row: dict[str, Any] = {
        "queue": storable(queue, "queue"),
        "task_name": storable(headers.get("task"), "task name"),
        "task_id": storable(headers.get("id") or properties.get("correlation_id") or str(uuid7()), "task_id"),
        "priority": to_row(properties.get("priority"), scale),
        "user_id": storable(_user(properties, headers, message), "user_id"),
        "run_at": eta.isoformat() if eta and (eta - now).total_seconds() > ETA_IN_WORKER else None,
        "expires_at": expires.isoformat() if expires else None,
        "reply_to": None if headers.get("ignore_result") else storable(properties.get("reply_to"), "reply_to"),
        "payload": payload,
        "payload_base64": binary,
    }
    row["envelope"] = _envelope(message, Columns(row["task_name"], row["task_id"], row["queue"], row["reply_to"], payload))
    cap = properties.get("max_attempts")
    if cap is None and row["task_name"]:
        cap = task_option(row["task_name"], "max_attempts")
    if cap is not None:
        if isinstance(cap, bool) or not isinstance(cap, int) or not 1 <= cap <= _MAX_ATTEMPTS:
            raise InvalidJob(f"max_attempts={safe_repr(cap):.100} is not a whole number of at least 1")
        row["max_attempts"] = cap
    return row


def envelopes(rows: Sequence[Row]) -> list[Any]:
    """What the envelopes of claimed rows hold, for decode_job; None for one that it has to read by itself.

    JSON keys of one text are one object: of jobs read together each takes 1.4 kB less than of those read one by one (a worker
    with a prefetch of 1,000 has that many), and decode_job is done with a claim of 8 to 100 in 5.9 µs each, not in 6.7.
    """
    alone = [None] * len(rows)
    if len(rows) < 2:
        return alone
    texts = [row[11] or "{}" for row in rows]
    if sum(map(len, texts)) > _READ_TOGETHER:
        return alone
    try:
        found = json.loads("[" + f',"{_SEAM}",'.join(texts) + "]")
    except (ValueError, RecursionError):  # one of them was written by hand, and its own error tells of it
        return alone
    return found[::2] if len(found) == 2 * len(rows) - 1 and found[1::2].count(_SEAM) == len(rows) - 1 else alone


def decode_job(row: Row, parts: Any = None) -> dict[str, Any]:
    """The message of a claimed row, as kombu's virtual transports pass it on. Columns win over the envelope: a person
    may have edited them. parts: what its envelope holds, if that has been read.
    """
    (id_, lease, queue, priority, attempts, max_attempts, redelivered, task_name, task_id, expires, reply_to, envelope,
     payload, binary, _, suspect, start) = row
    message = _message(envelope, payload, binary, Columns(task_name, task_id, queue, reply_to, payload), parts)
    headers, properties = message["headers"], message["properties"]
    expiry = _expiry(expires)
    if envelope is None and task_name is not None:  # enqueued from SQL
        headers.update(lang="py", task=task_name, id=task_id, root_id=task_id, parent_id=None, group=None, retries=0,
                       eta=None, origin="sql", ignore_result=False)
        headers["expires"] = None if expiry is None else datetime.fromtimestamp(expiry, UTC).isoformat()
        args, kwargs = _arguments(payload)
        headers.update(argsrepr=repr(args), kwargsrepr=repr(kwargs))
        properties.update(correlation_id=task_id, reply_to=reply_to, priority=int(priority or 5))
        message["body"] = message["body"] or "[[], {}, {}]"
    properties["delivery_tag"] = f"{id_}:{lease}"
    info = properties["delivery_info"] = properties.get("delivery_info") or {}
    info.setdefault("exchange", "")
    info["routing_key"] = info.get("routing_key") or queue
    info["redelivered"] = redelivered == "t"
    message["queue"] = queue
    properties["job"] = {"id": id_, "lease": lease, "attempts": int(attempts or 0), "max_attempts": int(max_attempts or 1),
                         "expires": expiry, "suspect": suspect == "t", "task": task_name, "task_id": task_id}
    if start is not None:
        properties["job"]["start"] = int(start)
    return message


def _expiry(seconds: str | None) -> float | None:
    """What PostgreSQL says of expires_at, as a moment that datetime can hold; None: never, which is 'infinity' too."""
    moment = math.inf if seconds is None else float(seconds)
    return None if moment > _LAST_MOMENT else max(moment, 0.0)


def encode_transient(message: dict[str, Any]) -> tuple[str, str | None, bytes | None]:
    """(envelope, payload, payload_binary) of an event, control message or reply."""
    body = message["body"]
    if isinstance(body, str) and "\0" not in body:
        return _envelope(message), body, None
    return _envelope(message), None, body.encode("utf-8", "surrogatepass") if isinstance(body, str) else bytes(body)


def decode_lost(columns: Columns, envelope: str | None, binary: str | None) -> tuple[
        dict[str, Any], tuple[list[Any], dict[str, Any], dict[str, Any]], dict[str, Any]]:
    """(headers, (args, kwargs, embed), properties) of a job that will not run any more, as far as they can be read."""
    try:
        message = _message(envelope, columns.payload, binary, columns)
    except (ValueError, RecursionError):  # written by hand; the columns tell enough
        message = {"headers": {}, "properties": {}, "body": columns.payload}
    args, kwargs = _arguments(message["body"])
    try:
        embed = json.loads(message["body"])[2]
    except (ValueError, TypeError, KeyError, IndexError, RecursionError):
        embed = {}
    return message["headers"], (args, kwargs, embed if isinstance(embed, dict) else {}), message["properties"]


def revocation(body: object) -> list[str]:
    """The task ids of a remote control message that revokes them everywhere; empty for any other message."""
    text = body.decode(errors="replace") if isinstance(body, bytes) else str(body)
    if '"revoke"' not in text:
        return []
    try:
        order = json.loads(text)
        if order["method"] != "revoke" or order.get("destination"):
            return []
        ids = order["arguments"]["task_id"]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return []
    return [str(id_) for id_ in (ids if isinstance(ids, list) else [ids])]


def decode_transient(queue: str, envelope: str | None, payload: str | None, binary: str | None, tag: str) -> dict[str, Any]:
    """The message of a row that jobqueue.fetch() returned."""
    message = _message(envelope, payload, binary)
    message["queue"] = queue
    message["properties"]["delivery_tag"] = tag
    message["properties"].setdefault("delivery_info", {})
    return message


def _message(envelope: str | None, payload: str | None, binary: str | None, columns: Columns | None = None,
             parts: Any = None) -> dict[str, Any]:
    if parts is None:
        parts = json.loads(envelope) if envelope else {}
    if not isinstance(parts, dict):
        raise ValueError("envelope has to be a JSON object")
    headers, properties = parts.get("headers") or {}, parts.get("properties") or {}
    for name, part in (("headers", headers), ("properties", properties)):
        if not isinstance(part, dict):
            raise ValueError(f"{name} in the envelope have to be a JSON object")
    if columns is not None:
        headers, properties = put_back(parts, columns)
    if not isinstance(properties.get("delivery_info") or {}, dict):
        raise ValueError("delivery_info in the envelope's properties has to be a JSON object")
    return {
        "body": payload if binary is None else bytes.fromhex(binary[2:]),
        "content-type": parts.get("content-type", _CONTENT_TYPE),
        "content-encoding": parts.get("content-encoding", _CONTENT_ENCODING),
        "headers": headers,
        "properties": properties,
    }


def _envelope(message: Mapping[str, Any], columns: Columns | None = None) -> str:
    properties = {key: value for key, value in message["properties"].items() if key in _PROPERTIES}
    properties.pop("delivery_tag", None)
    if not isinstance(properties.get("delivery_info") or {}, dict):
        raise InvalidJob(f"delivery_info={safe_repr(properties['delivery_info']):.100} is not a dictionary")
    headers = message["headers"]
    parts = {"headers": headers, "properties": properties} if columns is None else left_out(headers, properties, columns)
    if message["content-type"] != _CONTENT_TYPE:
        parts["content-type"] = message["content-type"]
    if message["content-encoding"] != _CONTENT_ENCODING:
        parts["content-encoding"] = message["content-encoding"]
    try:
        text = _to_json(parts)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidJob(f"the message's headers cannot be written as JSON: {error}") from error
    check_size(text, "the message's headers (chords and stamps are in them)")
    return text


def check_size(data: str | bytes, what: str) -> None:
    """Raise InvalidJob, naming it, when PostgreSQL might not take it, or a worker not get it."""
    if 4 * len(data) <= _MOST:  # a character has at most four bytes
        return
    size = len(data) if isinstance(data, bytes) else len(data.encode("utf-8", "surrogatepass"))
    if size > _MOST:
        raise InvalidJob(f"{what} would have {size:,} bytes, and {_MOST:,} is the most: put what is large into a file, a "
                         "table or object storage, and send its name")


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, (uuid.UUID, os.PathLike)):
        return str(value)
    if isinstance(value, (set, frozenset, tuple)):
        return list(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    raise TypeError(f"{type(value).__name__} in the headers: use text, numbers, lists or dictionaries")


_to_json = json.JSONEncoder(default=_plain).encode  # json.dumps(default=…) would make an encoder for each message


def _body(body: str | bytes | memoryview) -> tuple[str | None, str | None]:
    """(text, base64): text where PostgreSQL can hold it as such."""
    try:
        text = body if isinstance(body, str) else bytes(body).decode()
        raw = text.encode()
    except UnicodeError:
        text, raw = "\0", body.encode("utf-8", "surrogatepass") if isinstance(body, str) else bytes(body)
    check_size(raw, "the message's body (the task's arguments)")
    return (None, b64encode(raw).decode()) if "\0" in text else (text, None)


def is_json(content_type: str) -> bool:
    """Whether bodies of this type are JSON that can be looked into."""
    return content_type in _JSON_TYPES


def storable(value: object, name: str) -> str | None:
    """The value as text. Raises InvalidJob, naming it, when PostgreSQL cannot hold it."""
    if value is None:
        return None
    try:
        text = str(value)
    except Exception as error:  # whatever the caller's class, or a number of 5,000 digits, thinks of that
        raise InvalidJob(f"{name} cannot be written as text: {error}") from error
    if "\0" in text or (not text.isprintable() and re.search(r"[\ud800-\udfff]", text)):
        raise InvalidJob(f"{name} {text!r} holds a character that PostgreSQL's text cannot: remove it")
    return text


def _moment(value: object, name: str) -> datetime | None:
    if value is None:
        return None
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return _after(datetime.now(UTC), value, name, "seconds")
    try:
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
    except ValueError as error:
        raise InvalidJob(f"{name}={safe_repr(value):.100} is not an ISO 8601 date and time") from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _after(now: datetime, value: Any, name: str, unit: str) -> datetime:
    try:
        return now + timedelta(**{unit: float(value)})
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidJob(f"{name}={safe_repr(value):.100} is not a number of {unit} that leads to a date") from error


def _user(properties: Mapping[str, Any], headers: Mapping[str, Any], message: Mapping[str, Any]) -> object:
    """Whose job it is: apply_async(user_id=…), else the task's own user_id argument."""
    if (user := properties.get("user_id")) is not None:
        return user
    name = headers.get("task")
    if name is None or not is_json(message["content-type"]):
        return None
    position = _user_position(str(name))
    body = message["body"]
    if position is None and "user_id" not in (body if isinstance(body, str) else str(bytes(body), "utf-8", "replace")):
        return None
    args, kwargs = _arguments(body)
    if "user_id" in kwargs:
        return kwargs["user_id"]
    return args[position] if position is not None and position < len(args) else None


def _user_position(task_name: str) -> int | None:
    """Where `user_id` stands among the task's parameters; None when it has none or the task is not known here."""
    return parameter_position(task_name, "user_id")


def _arguments(body: object) -> tuple[list[Any], dict[str, Any]]:
    try:
        parsed = json.loads(body if isinstance(body, (str, bytes)) else "null")
        args, kwargs = parsed[0], parsed[1]
    except (ValueError, TypeError, KeyError, IndexError, RecursionError):
        return [], {}
    return (args if isinstance(args, list) else []), (kwargs if isinstance(kwargs, dict) else {})
