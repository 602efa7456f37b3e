"""A group's jobs are written together: a thousand in one transaction, where Celery sends each as one of its own.

Celery makes the messages as ever, but what it hands them to is a stand-in for the group's producer, which keeps them. Then
kombu sends all that was kept as it sends a single message: with its retries, on whichever connection and host it finds alive.
From one process 960 jobs/s became 3,300, of a thousand in each group.

This comes with the transport, which the first connection imports: where the very first thing that a process sends is a group,
that one goes as ever. So does every group whose messages somebody wants to see leaving, see `_is_gathered`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from functools import wraps
from math import inf
from time import monotonic
from typing import Any

from celery import Celery, signals
from celery.app.task import Task
from celery.canvas import group
from celery.utils.functional import _regen
from kombu import Producer

from celery_jobqueue.broker.channel import Channel
from celery_jobqueue.broker.collector import collected
from celery_jobqueue.broker.overrides import inherits, is_wrapped
from celery_jobqueue.broker.publishing import MAX_CHARACTERS, MAX_JOBS, Outgoing, send

try:
    from celery.app.amqp import _callback_publish_retry
except ImportError:  # another Celery: who publishes does without us
    _callback_publish_retry = None

__all__ = ["install"]

#: Seconds that messages of a lazy group, made by a generator, are kept for; a thousand take 0.3. Its first goes at once: the
#: generator may be slow, and jobs are to start while the next are made, as with Celery alone (whose own suite looks for that).
_PATIENCE = 0.3


def install() -> None:
    """Teach Celery's groups, once per process."""
    if _callback_publish_retry is not None and not getattr(group._apply_tasks, "gathers", False):
        group._apply_tasks = _together(group._apply_tasks)


def _together(apply_tasks: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    @wraps(apply_tasks)
    def applied(self: Any, tasks: Any, producer: Any = None, app: Any = None, *rest: Any, **options: Any) -> Iterator[Any]:
        app = app or self.app
        with app.producer_or_acquire(producer) as held:
            if not _is_gathered(app, held):
                yield from apply_tasks(self, tasks, held, app, *rest, **options)
                return
            gathering = _Gathering(held, _is_lazy(self))
            results = list(apply_tasks(self, gathering.members(tasks, app), gathering, app, *rest, **options))
            gathering.flush()
        yield from results  # nobody gets one whose job is not written

    applied.gathers = True  # type: ignore[attr-defined]
    return applied


def _is_gathered(app: Any, producer: Any) -> bool:
    """Whether the group may be kept back: it goes to a job queue, and nobody looks at each message when it has been sent."""
    return bool(
        type(producer) is Producer and not producer.exchange.name
        and producer.connection is not None and producer.connection.transport.driver_type == "postgres"
        and not (signals.after_task_publish.receivers or signals.task_sent.receivers or app.conf.task_send_sent_event)
        and not _callback_publish_retry.get()  # what follows a task that has run, which Celery itself sends again and again
        and inherits(app, "send_task", Celery) and not is_wrapped(Celery.send_task))


def _is_lazy(tasks: Any) -> bool:
    """Whether a generator makes the group, or one within it."""
    return isinstance(tasks.tasks, _regen) or any(isinstance(each, group) and _is_lazy(each) for each in tasks.tasks)


def _is_plain(signature: Any, app: Any) -> bool:
    """Whether this application's Celery sends the task as it sends any."""
    try:
        task = signature.type
    except KeyError:  # known by its name only
        return bool(signature.app == app)
    return task.app == app and inherits(task, "apply_async", Task) and not is_wrapped(Task.apply_async)


def _frozen(values: dict[str, Any]) -> dict[str, Any]:
    return {key: deepcopy(value) if value and isinstance(value, (dict, list)) else value for key, value in values.items()}


def _size(message: tuple[Any, ...]) -> int:
    """Characters of its body and headers, or about as many."""
    body, headers = message[0], message[4]
    return len(body) + sum(len(value) if isinstance(value, str) else len(repr(value)) if value else 4
                           for value in headers.values())


class _Gathering(Producer):  # type: ignore[misc]
    """Stands in for a group's producer: keeps the group's messages until there are enough, and passes on all else.

    It is made for one group and known to nobody else, so no other thread's messages can come into it.
    """

    def __init__(self, producer: Any, lazy: bool) -> None:
        super().__init__(*producer.__reduce_args__())
        self.__connection__ = producer.connection
        self._producer = producer
        self._members: set[str] = set()  # ids of the tasks that may be kept
        self._made: tuple[Any, ...] | None = None  # what kombu's _publish() takes for the newest message …
        self._kept: list[tuple[Any, ...]] = []  # … and for those that wait
        self._characters = 0
        self._policy: tuple[Any, ...] = ()  # retry and retry_policy of what is kept, as given
        self._lazy = lazy
        self._due = -inf if lazy else inf  # when what is kept is written although there may be more
        self._failed: BaseException | None = None

    @property
    def channel(self) -> Any:
        """The real producer's, which changes when kombu connects anew."""
        return self._producer.channel

    def revive(self, channel: Any) -> None:
        """kombu has connected anew."""
        self._producer.revive(channel)

    def batch(self, *args: Any, **kwargs: Any) -> Any:
        """The real producer's, in which nothing is kept."""
        return self._producer.batch(*args, **kwargs)

    def members(self, tasks: Iterable[tuple[Any, Any, str]], app: Any) -> Iterator[tuple[Any, Any, str]]:
        """The group's tasks, on their way to be sent: those that Celery itself will make a message of may be kept. What has an
        apply_async() of its own, or belongs to another application, may want to know whether it was sent.
        """
        for signature, result, group_id in tasks:
            if _is_plain(signature, app):
                self._members.add(result.id)
            yield signature, result, group_id

    def publish(self, body: Any, *args: Any, **kwargs: Any) -> Any:
        """Keep the message of a member; send any other."""
        if self._goes_alone((kwargs.get("headers") or {}).get("id")):
            return self._producer.publish(body, *args, **kwargs)
        policy = kwargs.get("retry"), kwargs.get("retry_policy")
        if policy != self._policy:
            self.flush()  # before kombu hears of the new one
        self._policy = policy
        published = super().publish(body, *args, **kwargs)
        made, self._made = self._made, None
        if made is None:  # somebody has put another method into the place of kombu's
            return published
        size = _size(made)
        if self._characters + size > MAX_CHARACTERS:
            self.flush()
        self._kept.append(made)
        self._characters += size
        if len(self._kept) >= MAX_JOBS or monotonic() >= self._due:
            self.flush()
        return None

    def _publish(self, *message: Any) -> None:
        """The last thing that kombu's publish() does, with everything done that needs no connection."""
        # As they are now: a receiver of before_task_publish may put the same object into the next message, and change it.
        self._made = tuple([_frozen(part) if isinstance(part, dict) else part for part in message])

    def _goes_alone(self, task_id: str | None) -> bool:
        """Whether the message is none of those that may be kept, or is sent within a batch or transaction of somebody's."""
        if task_id not in self._members or getattr(self._producer._batch_local, "current", None) is not None:
            return True
        transport = self.connection.transport
        return transport.driver_type != "postgres" or collected(transport.settings.conninfo) is not None

    def flush(self) -> None:
        """Write what is kept, as kombu would publish a single message.

        Raises what that raises: kombu's OperationalError, InvalidJob and other errors of ours. And again at the end of the
        group, if somebody on the way has caught it: the jobs that were to be written then are gone.
        """
        if self._failed is not None:
            raise self._failed
        kept, self._kept, self._characters = self._kept, [], 0
        if kept:
            *_, retry, policy = kept[0]
            try:
                with self.connection._reraise_as_library_errors():
                    (self.connection.ensure(self, self._write, **policy) if retry else self._write)(kept)
            except BaseException as error:
                self._failed = error
                raise
            if self._lazy:
                self._due = monotonic() + _PATIENCE

    def _write(self, kept: list[tuple[Any, ...]]) -> None:
        """One attempt. Jobs have their ids from the first one, so what a lost reply has hidden is not written twice."""
        channel = self.channel
        if not isinstance(channel, Channel):  # of the hosts in the URL this one is no job queue
            while kept:
                super()._publish(*kept[0])
                del kept[0]
            return
        self._batch_local.current = attempt = _Attempt()
        try:
            for message in kept:
                super()._publish(*message)
        finally:
            del self._batch_local.current
        send(channel.connection, attempt.outgoing.calls(own=True))


class _Attempt:
    """Stands where kombu has the batch of a producer: takes messages that are ready to be sent."""

    def __init__(self) -> None:
        self.outgoing = Outgoing()

    def publish(self, channel: Any, message: dict[str, Any], **kwargs: Any) -> None:
        """Have the channel route the message and put it in."""
        channel.basic_publish(message, _publish_batch=self, **kwargs)
