"""Exchanges, queues and bindings, shared by all processes; and the way of a message from an exchange to its queues.

What decides where a message lives is the queue: auto-delete, exclusive and `x-expires` queues are transient (events,
remote control, replies), every other queue holds jobs, whatever exchange it is bound to.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any

from celery_jobqueue.broker.claims import text_array
from celery_jobqueue.broker.listening import Listening
from celery_jobqueue.broker.messages import encode_transient
from celery_jobqueue.broker.priorities import to_row
from celery_jobqueue.broker.session import Call, Row
from celery_jobqueue.broker.sql import statement

__all__ = ["Destination", "Topology", "destinations_call", "is_transient", "send_call", "topic_pattern"]

#: (queue name, whether it is transient)
Destination = tuple[str, bool]
Run = Callable[..., list[list[Row]]]

#: How long an answer may be reused, in seconds. Events go to a topic exchange several times a second from every worker,
#: mostly with nobody listening, and may miss a listener's first second; a queue's kind hardly ever changes.
_TOPIC_TTL = 1.0
_QUEUE_TTL = 10.0
_TOLD_TTL = 60.0  # besides, for events of a worker that is notified of every change
#: A transient queue declared without x-expires outlives a consumer that was killed by this long; RabbitMQ would see the
#: connection end. Long enough for a live consumer that takes its time over a message.
_ORPHANED_AFTER = "3600000 milliseconds"


def is_transient(auto_delete: bool, exclusive: bool, arguments: Mapping[str, Any] | None) -> bool:
    """Whether a queue declared like this is for transient messages."""
    return bool(auto_delete or exclusive or (arguments or {}).get("x-expires"))


def topic_pattern(routing_key: str) -> str:
    """AMQP's topic pattern as a regular expression that PostgreSQL and Python read alike: `*` is one word, `#` any number."""
    pattern = ""
    for number, word in enumerate(routing_key.split(".")):
        dot = r"\." if number else ""
        if word == "#":
            # The dot belongs to the words that may be missing.
            pattern += r"(\.[^.]+)*" if number else r"([^.]+(\.[^.]+)*)?"
        else:
            pattern += dot + (r"[^.]+" if word == "*" else re.escape(word))
    if routing_key.startswith("#."):
        pattern = r"([^.]+\.)*" + pattern[len(r"([^.]+(\.[^.]+)*)?\."):]
    return f"^{pattern}$"


def send_call(message: Mapping[str, Any], queues: list[str], scale: str) -> Call:
    """The statement that puts a transient message into these queues."""
    properties = message["properties"]
    envelope, payload, binary = encode_transient(dict(message))
    return statement("send"), (text_array(queues), str(to_row(properties.get("priority"), scale)),
                               _milliseconds(properties.get("expiration")), envelope, payload, binary)


def destinations_call(exchange: str, routing_key: str) -> Call:
    """The statement that asks where messages go."""
    return statement("destinations"), (exchange, routing_key)


def _milliseconds(ttl: object) -> str | None:
    return None if ttl is None else f"{float(str(ttl))} milliseconds"


class Topology:
    """What this process knows of the broker's entities. run: waits for calls on the connection of the moment.

    postpone: takes the declaration of something durable if it is to be made in somebody else's transaction; then it changes
    nothing where there is something already, or publishers would wait for each other's commits.
    """

    def __init__(self, run: Run, postpone: Callable[[Call], bool] = lambda _: False) -> None:
        self._run = run
        self._postpone = postpone
        self._known: dict[tuple[str, str], tuple[float, list[Destination]]] = {}
        self._declared: set[tuple[str, ...]] = set()
        self.auto_delete: set[str] = set()
        self._standing: dict[str, list[Call]] = {}
        self.transient: dict[str, bool] = {}
        self._changes = 0
        self._listening: Listening | None = None

    def follow(self, listening: Listening) -> None:
        """Changes of topic exchanges are told there, as long as that connection listens."""
        self._listening = listening
        listening.on_topology = self.forget_destinations

    def destinations(self, exchange: str, routing_key: str, exchange_type: str, run: Run | None = None,
                     *, event: bool = False) -> list[Destination]:
        """Where a message goes. run: asks on another connection than this topology's. event: it may come late to a listener whom
        this process was not told of yet; a job must not miss a queue. Raises psycopg.Error.
        """
        found = self.known(exchange, routing_key, event=event)
        if found is None:
            before = self._changes
            [rows] = (run or self._run)(destinations_call(exchange, routing_key))
            found = self.learn(exchange, routing_key, exchange_type, rows)
            if before != self._changes:  # another thread was told of a change meanwhile: this answer may be older
                self.forget_destinations()
        return found

    def known(self, exchange: str, routing_key: str, *, event: bool = False) -> list[Destination] | None:
        """Where a message goes, None when the database has to be asked."""
        known = self._known.get((exchange, routing_key))
        told = event and self._listening is not None and self._listening.hears_topology
        fresh = known is not None and monotonic() < known[0] + (_TOLD_TTL if told else 0.0)
        return known[1] if known is not None and fresh else None

    def learn(self, exchange: str, routing_key: str, exchange_type: str, rows: list[Row]) -> list[Destination]:
        """The database's answer to `destinations_call`."""
        found = [(row[0] or "", row[1] == "t") for row in rows]
        ttl = _QUEUE_TTL if not exchange else _TOPIC_TTL if exchange_type == "topic" else 0.0
        if ttl:
            if len(self._known) > 1000:
                self._known.clear()
            self._known[exchange, routing_key] = (monotonic() + ttl, found)
        return found

    def forget_destinations(self) -> None:
        """Bindings of exchanges have changed, or may have."""
        self._changes += 1
        self._known = {key: value for key, value in self._known.items() if not key[0]}

    def declare_exchange(self, name: str, type_: str) -> None:
        """Make the exchange and its type known to every process."""
        self._once(("exchange", name, type_), (statement("declare_exchange"), (name, type_)),
                   (statement("know_exchange"), (name, type_)))

    def delete_exchange(self, name: str) -> None:
        """Remove the exchange and its bindings."""
        self._declared = {entry for entry in self._declared if entry[1] != name}
        self._run((statement("delete_exchange"), (name,)))

    def declare_queue(self, name: str, *, auto_delete: bool, exclusive: bool, arguments: Mapping[str, Any] | None) -> None:
        """Make the queue known. A transient one is declared anew each time: it may have been reaped."""
        arguments = arguments or {}
        transient = is_transient(auto_delete, exclusive, arguments)
        self.transient[name] = transient
        if auto_delete:
            self.auto_delete.add(name)
        call = (statement("declare_queue"), (
            name, "t" if transient else "f", "t" if auto_delete else "f",
            _milliseconds(arguments.get("x-expires")) or (_ORPHANED_AFTER if transient else None),
            _milliseconds(arguments.get("x-message-ttl"))))
        if transient:
            self._known.pop(("", name), None)
            self._run(call)
            self._standing[name] = [call]
        else:
            self._once(("queue", name), call, (statement("know_queue"), call[1]))

    def restoration(self, queue: str) -> list[Call]:
        """What declares and binds a transient queue again, as this process has; its consumer was silent and it was reaped."""
        return list(self._standing.get(queue, ()))

    def holds_jobs(self, name: str) -> bool:
        """Whether messages of this queue are rows of job_queue."""
        if name not in self.transient:
            [rows] = self._run((statement("queue_exists"), (name,)))
            self.transient[name] = bool(rows) and rows[0][0] == "t"
        return not self.transient[name]

    def exists(self, name: str) -> bool:
        """Whether anybody declared this queue."""
        [rows] = self._run((statement("queue_exists"), (name,)))
        return bool(rows)

    def delete_queue(self, name: str) -> None:
        """Remove the queue, its bindings and its transient messages; jobs stay, they are records."""
        self._forget(name)
        self._run((statement("delete_queue"), (name,)))

    def bind(self, queue: str, exchange: str, routing_key: str, exchange_type: str) -> None:
        """Route messages of the exchange with this routing key to the queue."""
        pattern = topic_pattern(routing_key) if exchange_type == "topic" else None
        call = (statement("bind"), (exchange, routing_key, queue, pattern))
        if self.transient.get(queue):
            self._run(call)
            self._standing.setdefault(queue, []).append(call)
        else:
            self._once(("binding", queue, exchange, routing_key), call, call)

    def unbind(self, queue: str, exchange: str, routing_key: str) -> None:
        """Undo `bind`."""
        self._declared.discard(("binding", queue, exchange, routing_key))
        if queue in self._standing:
            self._standing[queue] = [call for call in self._standing[queue] if call[1][:2] != (exchange, routing_key)]
        self._run((statement("unbind"), (exchange, routing_key, queue)))

    def _forget(self, queue: str) -> None:
        self._declared = {entry for entry in self._declared if entry[1] != queue}
        self.transient.pop(queue, None)
        self._standing.pop(queue, None)
        self.auto_delete.discard(queue)
        self._known.pop(("", queue), None)

    def _once(self, what: tuple[str, ...], call: Call, quietly: Call) -> None:
        if what not in self._declared and not self._postpone(quietly):
            self._run(call)
            self._declared.add(what)
