"""Many calls of one task in one statement, for those who queue jobs by the thousand.

    enqueue_many(send_invoice, [(order.id,) for order in orders], queue="bulk")

Celery's own work for each message (routing, declarations, headers, serializing twice) is done once, for the first call; the
others differ from it in their ids, arguments and what is shown of these. What is stored is what apply_async() stores.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping
from json.encoder import encode_basestring_ascii as quoted
from typing import Any

from celery import Celery, signals
from celery._state import get_current_worker_task
from celery.app.amqp import AMQP
from celery.app.task import Task
from celery.backends.base import BaseBackend
from celery.utils.saferepr import saferepr
from kombu import serialization

from celery_jobqueue.broker import settings
from celery_jobqueue.broker.collector import collected, collecting
from celery_jobqueue.broker.context import parameter_position
from celery_jobqueue.broker.enqueue import jobs_in
from celery_jobqueue.broker.messages import check_size, is_json, storable, uuid7
from celery_jobqueue.broker.publishing import arrays, send_as_made, send_safely
from celery_jobqueue.broker.session import Call
from celery_jobqueue.broker.shown import shown_by
from celery_jobqueue.broker.sql import statement
from celery_jobqueue.broker.usual import REPRS, is_shortened, say_it_all, say_shown
from celery_jobqueue.db.errors import InvalidJob

__all__ = ["enqueue_many"]

_Pair = tuple[tuple[Any, ...], dict[str, Any]]
_PLAIN = (int, str, float, bool, type(None))  # repr() of a few of them is mostly what saferepr() makes, twenty times faster
#: Jobs that the server inserts while the next ones are made. Those of one statement take it 5 ms, which hides a round trip.
_PART = 250
_SHORT = 100  # characters up to which that is so for certain


def enqueue_many(task: Any, calls: Iterable[tuple[Any, ...] | list[Any] | Mapping[str, Any]], **options: Any) -> list[Any]:
    """Queue one job for each call, all of them or none. Returns their AsyncResults in the same order.

    calls: for each job its positional arguments (a tuple or list) or its keyword arguments (a mapping). options: as for
    apply_async(), the same for all jobs; without task_id. In a jobs_in() block the jobs are part of it.

    Raises TypeError for arguments that the task does not take, InvalidJob for what cannot be stored; nothing is queued then.
    """
    if "task_id" in options:
        raise InvalidJob("enqueue_many() gives every job an id of its own: leave task_id out")
    pairs = [_pair(call) for call in calls]
    if not pairs:
        return []
    task = task.app.tasks[task.name]  # it may be a proxy
    client = task.app.connection_for_write()
    if client.transport.driver_type != "postgres" or collected(settings.read(client).conninfo) is not None:
        return _one_by_one(task, pairs, options)
    copier = None if _seen_one_by_one(task, options) else _Copier.of(task, pairs[0], options, settings.read(client).conninfo)
    if copier is None:
        with jobs_in(task.app):
            return _one_by_one(task, pairs, options)
    ids = [str(uuid.uuid4()) for _ in pairs]
    rows = (copier.row(id_, args, kwargs) for id_, (args, kwargs) in zip(ids, pairs, strict=True))
    store: Iterator[Call] = ((statement("publish"), ("[]" if copier.capped else jobs, jobs if copier.capped else None, "f"))
                             for jobs in arrays(rows, _PART))
    with task.app.pool.acquire(block=True) as connection:
        transport = connection.default_channel.connection
        if len(pairs) > _PART:
            send_as_made(transport, store)
        else:
            send_safely(transport, list(store))
    results = [task.AsyncResult(id_) for id_ in ids]
    parent = get_current_worker_task()
    if parent is not None and options.get("add_to_parent", True):
        for result in results:
            parent.add_trail(result)
    return results


def _pair(call: Any) -> _Pair:
    if isinstance(call, Mapping):
        return (), dict(call)
    if isinstance(call, (tuple, list)):
        return tuple(call), {}
    raise TypeError(f"{call!r:.100} is no call: give a tuple of positional arguments or a dictionary of keyword arguments")


def _one_by_one(task: Any, pairs: list[_Pair], options: dict[str, Any]) -> list[Any]:
    return [task.apply_async(args, kwargs, **options) for args, kwargs in pairs]


def _seen_one_by_one(task: Any, options: dict[str, Any]) -> bool:
    """Whether somebody wants to see each message before it is sent, or to say what is shown of its arguments: then Celery makes
    each of them.
    """
    conf, kind = task.app.conf, type(task)
    routes = conf.task_routes or []
    routes = routes if isinstance(routes, (list, tuple)) else [routes]
    return bool(
        signals.before_task_publish.receivers or signals.after_task_publish.receivers
        or conf.task_send_sent_event or conf.task_always_eager
        or not all(isinstance(route, dict) for route in routes)
        or kind.apply_async is not Task.apply_async
        or type(task.app.backend).on_task_call is not BaseBackend.on_task_call
        or type(task.app).send_task is not Celery.send_task or type(task.app.amqp) is not AMQP
        or any(name in said for said in (options.get("headers") or {}, *_options_of(routes)) for name in REPRS)
        or not all(isinstance(options.get(name), (str, type(None))) for name in REPRS)
        or options.get("shadow") or kind.shadow_name is not Task.shadow_name)


def _options_of(routes: Iterable[dict[Any, Any]]) -> Iterator[Mapping[str, Any]]:
    """What routes say of tasks, beyond the name of a queue."""
    return (said for route in routes for said in route.values() if isinstance(said, Mapping))


class _Copier:
    """The row of one job as a text with gaps, which are filled for every job."""

    def __init__(self, task: Any, mark: str, first: _Pair, message: dict[str, Any], row: dict[str, Any],
                 options: dict[str, Any]) -> None:
        conf, amqp, known = task.app.conf, task.app.amqp, message["properties"].get("user_id")
        self.capped = "max_attempts" in row
        self._check = task.__header__ if task.typing else None
        self._serializer = options.get("serializer") or task.serializer or conf.task_serializer
        self._embed = json.loads(row["payload"])[2]
        self._user, self._reads_user = storable(known, "user_id"), known is None and is_json(message["content-type"])
        self._position = parameter_position(task.name, "user_id")
        self._said = [options.get(name) for name in REPRS]
        self._most, self._levels = (amqp.argsrepr_maxsize, amqp.kwargsrepr_maxsize), conf.task_repr_maxlevels
        if self._shown(*first) != [message["headers"].get(name) for name in REPRS]:
            raise ValueError("somebody else has a say in what is shown of the arguments")
        row = {**row, "id": f"ROW-{mark}", "user_id": f"USER-{mark}", "payload": f"PAYLOAD-{mark}"}
        envelope = json.loads(row["envelope"])
        self._gaps = _with_gaps(row, say_it_all(envelope, f"ARGS-{mark}", f"KWARGS-{mark}"), mark)
        self._short = _with_gaps(row, say_shown(envelope, f"SHOWN-{mark}"), mark) if is_shortened(envelope) else None

    @classmethod
    def of(cls, task: Any, first: _Pair, options: dict[str, Any], conninfo: str) -> _Copier | None:
        """What the jobs have in common, learned from Celery's message for the first; None where that cannot be copied."""
        mark = str(uuid.uuid4())
        with collecting(conninfo) as jobs:
            task.apply_async(*first, task_id=f"ID-{mark}", **{**options, "add_to_parent": False})
        [found] = jobs.kept()
        message, row = found.message, found.row
        if row is None or row["payload"] is None or not isinstance(message["body"], str) or "compression" in message["headers"]:
            return None
        try:
            return cls(task, mark, first, message, row, options)
        except (ValueError, TypeError, LookupError):  # the body is no JSON that has these three parts, or is shown otherwise
            return None

    def row(self, task_id: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        """The job's row as jobqueue.publish() takes it. Raises TypeError, InvalidJob."""
        if self._check is not None:
            self._check(*args, **kwargs)
        payload = serialization.dumps((args, kwargs, self._embed), serializer=self._serializer)[2]
        check_size(payload, "a call's arguments")
        user = self._user
        if self._reads_user:
            user = storable(self._argument(args, kwargs), "user_id")
        values = {"ROW": str(uuid7()), "ID": task_id, "PAYLOAD": quoted(storable(payload, "the arguments") or ""),
                  "USER": "null" if user is None else quoted(user)}
        argsrepr, kwargsrepr = self._shown(args, kwargs)
        if self._short is not None and (place := shown_by(payload, argsrepr, kwargsrepr)) is not None:
            return self._short % {**values, "SHOWN": quoted(json.dumps(place))[1:-1]}
        return self._gaps % {**values, "ARGS": _inside(argsrepr), "KWARGS": _inside(kwargsrepr)}

    def _argument(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
        if "user_id" in kwargs:
            return kwargs["user_id"]
        position = self._position
        return args[position] if position is not None and position < len(args) else None

    def _shown(self, *arguments: Any) -> list[str]:
        """What events and logs show of (args, kwargs): what the caller says, or what Celery does."""
        return [_short_repr(it, most) or str(saferepr(it, most, maxlevels=self._levels)) if said is None else said
                for it, said, most in zip(arguments, self._said, self._most, strict=True)]


def _short_repr(arguments: Any, most: int | None) -> str | None:
    """repr() where it is what saferepr() makes."""
    values = [*arguments, *arguments.values()] if isinstance(arguments, dict) else arguments
    if len(arguments) < 10 and (most is None or most > _SHORT) and all(type(value) in _PLAIN for value in values):
        text = repr(arguments)
        if len(text) < _SHORT and text.isascii() and not ('"' in text or "\\" in text):
            return text
    return None


def _with_gaps(row: dict[str, Any], envelope: dict[str, Any], mark: str) -> str:
    """The row as JSON for the operator %, with gaps where its marks are; what is no text has lost its quotes."""
    text = json.dumps({**row, "envelope": json.dumps(envelope)}).replace("%", "%%")
    text = re.sub(rf'\\?"(USER|PAYLOAD|SHOWN)-{mark}\\?"', r"%(\1)s", text)
    return re.sub(f"(ROW|ARGS|KWARGS|ID)-{mark}", r"%(\1)s", text)


def _inside(text: str) -> str:
    """A text inside of a JSON string that is inside of a JSON string."""
    return quoted(quoted(text)[1:-1])[1:-1]
