"""What a Celery worker does beyond consuming: starting jobs truthfully, telling how they ended, standing in for the dead.

Celery's transport interface sees claims and acknowledgements only. This module joins the worker with two hooks that
Celery offers, and needs nothing from the application: a bootstep of the consumer and the tasks' Request class.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from time import monotonic
from typing import Any

import psycopg
from celery import bootsteps, signals
from celery.worker.heartbeat import Heart

from celery_jobqueue.broker.carried import carry_results
from celery_jobqueue.broker.comeback import coming_back, leaving, outage
from celery_jobqueue.broker.departure import Departure
from celery_jobqueue.broker.endings import mark_unreadable, result_refused, tell_celery, unreadable
from celery_jobqueue.broker.expiry import Expiries
from celery_jobqueue.broker.gate import Gate
from celery_jobqueue.broker.identity import identity
from celery_jobqueue.broker.logs import install as _install_in_logs
from celery_jobqueue.broker.prefork import may_bundle, mind, prepare_processes
from celery_jobqueue.broker.pulse import Pulse
from celery_jobqueue.broker.requests import as_job_request
from celery_jobqueue.broker.retries import retry_automatically
from celery_jobqueue.broker.settlements import Failure, Lease, describe
from celery_jobqueue.broker.stale import refuse_stale
from celery_jobqueue.broker.trouble import explained
from celery_jobqueue.db.url import masked

__all__ = ["JobQueueStep", "install"]

logger = logging.getLogger(__name__)

#: Seconds. After a longer outage of ours others may have had it too, and get as long to come back before they count as dead.
_BRIEF = 3.0
#: Seconds that events of tasks are gathered for; Flower looks at them once a second.
_GATHER = 0.05


class JobQueueStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """Consumer bootstep: puts the gate before the pool and gives the transport its worker."""

    requires = ("celery.worker.consumer.connection:Connection",)

    def __init__(self, consumer: Any, **kwargs: Any) -> None:
        self.gate = consumer.job_gate = Gate(consumer, consumer.on_task_request)
        consumer.on_task_request = self.gate.request
        consumer.connect = coming_back(consumer.connect)
        if self.gate.solo:
            consumer.call_soon_ack = _at_once
        elif self.gate.threads:
            consumer.call_soon_ack = _at_once_when_leaving(consumer)
        carry_results(consumer.pool)
        Departure(consumer, self.gate)
        consumer.on_send_event_buffered = _gathering(consumer)
        # Celery acknowledges or rejects what it cannot read or does not know, and keeps the reason to its log.
        consumer.on_decode_error = _saying_why(consumer, consumer.on_decode_error)
        consumer.on_unknown_task = _saying_why(consumer, consumer.on_unknown_task)
        consumer.on_invalid_task = _saying_why(consumer, consumer.on_invalid_task)
        for task in consumer.app.tasks.values():
            task.Request = as_job_request(task.Request)
        self._pulse: Pulse | None = None
        super().__init__(consumer, **kwargs)

    def start(self, consumer: Any) -> None:
        """The consumer has a connection."""
        transport = consumer.connection.transport
        me = identity()
        me.name, me.leaving = consumer.hostname, False
        transport.settlements.worker, transport.settlements.deaf = consumer.hostname, False
        transport.cycle_.duties.starts_on_delivery = False
        transport.cycle_.duties.on_lost = lambda rows: tell_celery(consumer.app, rows)
        transport.cycle_.on_unreadable = lambda id_, lease, task_id, error: unreadable(
            consumer.app, transport.settlements, Lease(id_, lease), task_id, error)
        transport.cycle_.refusals.on_result = lambda lease, error: result_refused(consumer.app, lease, error)
        transport.cycle_.duties.expiries = Expiries.of(consumer.app.conf)
        transport.cycle_.door = self.gate
        transport.cycle_.mailbox.leisurely = f"{consumer.app.conf.event_queue_prefix}."
        transport.cycle_.duties.count_for(self.gate)
        mind(consumer.pool)
        self.gate.bundles = may_bundle(consumer.pool)
        self.gate.transport = transport
        self.gate.reset()
        self._claim_identity(transport.cycle_)
        transport.runs_jobs = self.gate.solo
        if self.gate.solo:
            self.gate.on_entry = self._start_pulse().watch
        elif not consumer.pool.is_green:  # while Celery waits for threads, or for a soft shutdown, no timer fires
            self.gate.on_leave = self._start_pulse

    def _start_pulse(self) -> Pulse:
        if self._pulse is None:
            transport = self.gate.transport
            self._pulse = Pulse(transport.settings, transport.cycle_.duties.heartbeat, transport.settlements)
            self._pulse.start()
        return self._pulse

    def _stop_pulse(self) -> None:
        if self._pulse is not None:
            self._pulse.stop(wait=leaving())
            self._pulse = None

    @staticmethod
    def _claim_identity(cycle: Any) -> None:
        """At once: steps that start after this one may take seconds, and others take us for dead 3 s after our lock has gone."""
        if outage() > _BRIEF:
            cycle.duties.judge_later(_BRIEF)
        try:
            cycle.register()
        except psycopg.Error as error:
            if not cycle.bears(error):
                raise explained(error) from error

    def stop(self, consumer: Any) -> None:
        """The connection is lost or given up."""
        # `control.shutdown` sets none of Celery's flags.
        identity().leaving = identity().leaving or consumer.blueprint.state != bootsteps.RUN
        if not leaving():
            self._stop_pulse()
        with suppress(*consumer.connection_errors):
            consumer._flush_events()
        if leaving():
            self.gate.leave()

    def info(self, consumer: Any) -> dict[str, Any]:
        """For `inspect stats` and Flower. kombu's host name is our whole URL, so Celery's own entry would show the password."""
        if consumer.connection is None:
            return {}
        broker = dict(consumer.connection.info())
        del broker["password"]
        broker.update(hostname=masked(broker["hostname"] or ""), alternates=[masked(url) for url in broker["alternates"]])
        return {"broker": broker}

    def shutdown(self, consumer: Any) -> None:
        """The worker leaves for good: its registration goes with the connection."""
        self.stop(consumer)
        self._stop_pulse()
        if consumer.connection is not None:
            consumer.connection.transport.leaving = True


def _at_once(acknowledge: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Celery acknowledges with the next turn of its loop, when the solo pool has run all that was delivered in this one."""
    try:
        acknowledge(*args, **kwargs)
    except Exception:  # who calls us drops it
        logger.exception("a message could not be acknowledged")


def _at_once_when_leaving(consumer: Any) -> Callable[..., Any]:
    """While a worker waits for its last threads its loop turns no more, and would tell of all when the last has ended."""
    soon = consumer.call_soon_ack

    def acknowledge(*args: Any, **kwargs: Any) -> Any:
        leaves = consumer.connection is not None and consumer.connection.transport.settlements.deaf
        return (_at_once if leaves else soon)(*args, **kwargs)

    return acknowledge


def _gathering(consumer: Any) -> Callable[[], None]:
    """Celery sends the events of tasks with each turn of its loop, two or three at a time; a publish costs more than an event."""
    flush_at = 0.0

    def gather() -> None:
        nonlocal flush_at
        if consumer.hub and monotonic() >= flush_at:
            flush_at = monotonic() + _GATHER
            consumer.hub.call_later(_GATHER, consumer._flush_events)

    return gather


def _saying_why(consumer: Any, method: Any) -> Any:
    """A consumer's handler for a bad message (…, message, error) that leaves the error on the job's row."""

    @wraps(method)
    def told(*args: Any) -> Any:
        *_, message, error = args
        if getattr(message, "lease", None) is not None:
            message.failure = Failure(describe(error))
            if method.__name__ == "on_decode_error":  # for the others Celery stores a result itself
                mark_unreadable(consumer.app, message.lease, message.properties.get("correlation_id"), error)
        return method(*args)

    return told


def install() -> None:
    """Join every Celery worker of this process whose broker is ours."""
    signals.worker_init.connect(_join, weak=False, dispatch_uid="celery_jobqueue.worker")


def _sending_once(send: Callable[..., Any]) -> Callable[..., Any]:
    """Celery's Heart._send without its retry: that has no end, and a worker that waits in it cannot even be stopped."""
    @wraps(send)
    def sent(self: Any, event: str, **_retry: Any) -> Any:
        return send(self, event, retry=False)

    return sent


def _join(sender: Any, **_: Any) -> None:
    from celery.worker.consumer.gossip import Gossip
    from celery.worker.consumer.mingle import Mingle

    from celery_jobqueue.broker import control  # noqa: F401  (registers a command)
    from celery_jobqueue.broker.transport import Transport

    transport = sender._conninfo.transport
    if not isinstance(transport, Transport):
        return
    # Both only ask whether fanout and topic work; they keep a list of transports known to do.
    Gossip.compatible_transports.add(Transport.driver_type)
    Mingle.compatible_transports.add(Transport.driver_type)
    sender.app.steps["consumer"].add(JobQueueStep)
    _install_in_logs()
    prepare_processes(sender.concurrency)
    if not hasattr(Heart._send, "__wrapped__"):
        Heart._send = _sending_once(Heart._send)
    for task in sender.app.tasks.values():
        if transport.settings.automatic_retries:
            retry_automatically(task, transport.settings)
        refuse_stale(task, transport.settings)
