"""What nearly every message of Celery says alike, or repeats of its row's columns: a job's envelope leaves it out.

It is more than half of a small job's envelope, which PostgreSQL writes with the INSERT and with every version of the row that
finds no room on its page, each time into its log too, and which a worker parses for each job.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from celery_jobqueue.broker.shown import put_back_shown, shown_by

__all__ = ["REPRS", "Columns", "is_shortened", "left_out", "put_back", "say_it_all", "say_shown"]

#: Stands in an envelope that has something left out: the number of the list below. Whoever changes the list gives it the next
#: number and reads both, and does not write the new one before all workers can read it: a job that cannot be read fails.
_MARK, _LIST = "usual", 1
#: Stands beside it when the body shows what these headers say (broker/shown.py). A worker of 2026-11-30 that is older than this
#: does not put them back, and its logs have the arguments whole.
_SHOWN, REPRS = "shown", ("argsrepr", "kwargsrepr")
#: What Celery's clients say of a job about which nothing was asked (celery/app/amqp.py, as_task_v2; kombu/messaging.py and
#: kombu/transport/virtual/base.py for the properties). jobqueue.revoke() looks for an `ignore_result` that is true.
_HEADERS: dict[str, Any] = {
    "lang": "py", "shadow": None, "eta": None, "expires": None, "group": None, "group_index": None, "retries": 0,
    "timelimit": [None, None], "parent_id": None, "ignore_result": False, "replaced_task_nesting": 0, "stamped_headers": None,
    "stamps": {},
}
_PROPERTIES: dict[str, Any] = {"delivery_mode": 2, "priority": 0}
# Only a message that has all of them is shortened, so that what is put back was there.
_ALL_HEADERS = frozenset({*_HEADERS, "task", "id", "root_id"})
_ALL_PROPERTIES = frozenset({*_PROPERTIES, "correlation_id", "reply_to", "delivery_info"})

_Parts = tuple[dict[str, Any], dict[str, Any]]


class Columns(NamedTuple):
    """What of a message stands in columns of its row."""

    task_name: str | None
    task_id: str | None
    queue: str | None
    reply_to: str | None
    payload: str | None


def left_out(headers: Mapping[str, Any], properties: Mapping[str, Any], columns: Columns) -> dict[str, Any]:
    """The envelope's headers and properties, without what is usual or stands in the row's columns if they are Celery's."""
    if not (headers.keys() >= _ALL_HEADERS and properties.keys() >= _ALL_PROPERTIES):
        return {"headers": headers, "properties": properties}
    usual_headers, usual_properties = _usual(columns)
    parts: dict[str, Any] = {_MARK: _LIST, "headers": _unusual(headers, usual_headers)}
    if unusual := _unusual(properties, usual_properties):
        parts["properties"] = unusual
    place = shown_by(columns.payload, *map(headers.get, REPRS))
    return parts if place is None else say_shown(parts, place)


def is_shortened(parts: Mapping[str, Any]) -> bool:
    """Whether something is left out of the envelope."""
    return _MARK in parts


def say_shown(parts: dict[str, Any], place: Any) -> dict[str, Any]:
    """A shortened envelope that says where the body shows the arguments, and not what is shown."""
    headers = {key: value for key, value in parts["headers"].items() if key not in REPRS}
    return {**parts, "headers": headers, _SHOWN: place}


def say_it_all(parts: dict[str, Any], argsrepr: str, kwargsrepr: str) -> dict[str, Any]:
    """An envelope that says what is shown of the arguments."""
    headers = {**parts["headers"], **dict(zip(REPRS, (argsrepr, kwargsrepr), strict=True))}
    return {key: value for key, value in {**parts, "headers": headers}.items() if key != _SHOWN}


def put_back(parts: Mapping[str, Any], columns: Columns) -> _Parts:
    """(headers, properties) as they were published, for what an envelope holds: two JSON objects, as the caller has seen.

    Raises ValueError when a later version has left out something else, or `shown` was edited.
    """
    headers, properties = parts.get("headers") or {}, parts.get("properties") or {}
    if (number := parts.get(_MARK)) is None:
        return headers, properties
    if number != _LIST:
        raise ValueError(
            f"{_MARK} in the envelope is {number!r:.100}, not {_LIST}: a later version of celery-jobqueue wrote it")
    usual_headers, usual_properties = _usual(columns)
    if (place := parts.get(_SHOWN)) is not None:
        usual_headers.update(zip(REPRS, put_back_shown(place, columns.payload), strict=True))
    return {**usual_headers, **headers}, {**usual_properties, **properties}


def _usual(columns: Columns) -> _Parts:
    task_name, task_id, queue, reply_to, _ = columns
    # Lists and dictionaries are each message's own.
    return (
        {**_HEADERS, "timelimit": [None, None], "stamps": {}, "task": task_name, "id": task_id, "root_id": task_id},
        {**_PROPERTIES, "correlation_id": task_id, "reply_to": reply_to,
         "delivery_info": {"exchange": "", "routing_key": queue}},
    )


def _unusual(said: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    # The type counts too: 0 is not False, and comes back as what it was.
    return {key: value for key, value in said.items()
            if not (key in usual and (value is usual[key] or (type(value) is type(usual[key]) and value == usual[key])))}
