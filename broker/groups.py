"""A group's jobs are written together: a thousand in one transaction, where Celery sends each as one of its own.

Celery makes the messages as ever, but what it hands them to is a stand-in for the group's producer, which keeps them. Then
kombu sends all that was kept as it sends a single message: with its retries, on whichever connection and host it finds alive.
From one process 960 jobs/s became 3,300, of a thousand in each group.

This comes with the transport, which the first connection imports: where the very first thing that a process sends is a group,
that one goes as ever. So does every group whose messages somebody wants to see leaving, see `_is_gathered`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from time import monotonic
from typing import Any

from celery import Celery, signals
from celery.app.amqp import _callback_publish_retry
from celery.app.task import Task
from celery.canvas import group
from kombu import Producer

from celery_jobqueue.broker.channel import Channel
from celery_jobqueue.broker.collector import collected
from celery_jobqueue.broker.publishing import MAX_CHARACTERS, MAX_JOBS, Outgoing, send

__all__ = ["install"]

#: Seconds that a transaction is gathered; a thousand messages take 0.2. Of a lazy group whose generator is slow, jobs shall
#: start while the next are made, as they do with Celery alone.
_PATIENCE = 1.0


def install() -> None:
    """Teach Celery's groups, once per process."""
    if not hasattr(group._apply_tasks, "__wrapped__"):
        group._apply_tasks = _together(group._apply_tasks)


def _together(apply_tasks: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    @wraps(apply_tasks)
    def applied(self: Any, tasks: Any, producer: Any = None, app: Any = None, *rest: Any, **options: Any) -> Iterator[Any]:
        app = app or self.app
        with app.producer_or_acquire(producer) as held:
            if not _is_gathered(app, held):
                yield from apply_tasks(self, tasks, held, app, *rest, **options)
                return
            gathering = _Gathering(held, app)
            results = list(apply_tasks(self, tasks, gathering, app, *rest, **options))
            gathering.flush()
        yield from results  # nobody gets one whose job is not written

    return applied


def _is_gathered(app: Any, producer: Any) -> bool:
    """Whether the group may be kept back: it goes to a job queue, and nobody looks at each message when it has been sent."""
    return bool(
        type(producer) is Producer and not producer.exchange.name
        and producer.connection is not None and producer.connection.transport.driver_type == "postgres"
        and not (signals.after_task_publish.receivers or signals.task_sent.receivers or app.conf.task_send_sent_event)
        and not _callback_publish_retry.get()  # what follows a task that has run, which Celery itself sends again and again
        and getattr(app.send_task, "__func__", None) is Celery.send_task)


class _Gathering(Producer):  # type: ignore[misc]
    """Stands in for a group's producer: keeps the tasks it is given until there are enough, and passes on all else.

    It is made for one group and known to nobody else, so no other thread's messages can come into it.
    """

    def __init__(self, producer: Any, app: Any) -> None:
        super().__init__(*producer.__reduce_args__())
        self.__connection__ = producer.connection
        self._producer = producer
        self._tasks = app._tasks
        self._made: tuple[Any, ...] = ()  # what kombu's _publish() takes for the newest message …
        self._kept: list[tuple[Any, ...]] = []  # … and for those that wait
        self._characters = 0
        self._policy: tuple[Any, ...] = ()  # retry and retry_policy of what is kept
        self._due = monotonic() + _PATIENCE
        self._failed: BaseException | None = None

    @property
    def channel(self) -> Any:
        """The real producer's, which changes when kombu connects anew."""
        return self._producer.channel

    def revive(self, channel: Any) -> None:
        """kombu has connected anew."""
        self._producer.revive(channel)

    def publish(self, body: Any, *args: Any, **kwargs: Any) -> Any:
        """Keep the message of a task; send any other."""
        if self._goes_alone(kwargs.get("headers") or {}):
            return self._producer.publish(body, *args, **kwargs)
        super().publish(body, *args, **kwargs)
        size, policy = len(self._made[0]), self._made[-2:]
        if policy != self._policy or self._characters + size > MAX_CHARACTERS:
            self.flush()
        self._policy = policy
        self._kept.append(self._made)
        self._characters += size
        if len(self._kept) >= MAX_JOBS or monotonic() >= self._due:
            self.flush()
        return None

    def _publish(self, *message: Any) -> None:
        """The last thing that kombu's publish() does, with everything done that needs no connection."""
        self._made = message

    def _goes_alone(self, headers: dict[str, Any]) -> bool:
        """Whether the message is none of the group's, or is sent within a batch or transaction that somebody has opened, or its
        task has an apply_async() of its own, which may want to know whether it was sent.
        """
        if "task" not in headers or getattr(self._producer._batch_local, "current", None) is not None:
            return True
        transport = self.connection.transport
        if transport.driver_type != "postgres" or collected(transport.settings.conninfo) is not None:
            return True
        task = dict.get(self._tasks, headers["task"])
        return task is not None and getattr(task.apply_async, "__func__", None) is not Task.apply_async

    def flush(self) -> None:
        """Write what is kept, as kombu would publish a single message.

        Raises what that raises: kombu's OperationalError, InvalidJob and other errors of ours. And again at the end of the
        group, if somebody on the way has caught it: the jobs that were to be written then are gone.
        """
        if self._failed is not None:
            raise self._failed
        kept, self._kept, self._characters = self._kept, [], 0
        if kept:
            retry, policy = self._policy
            try:
                with self.connection._reraise_as_library_errors():
                    (self.connection.ensure(self, self._write, **policy) if retry else self._write)(kept)
            except BaseException as error:
                self._failed = error
                raise
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
