"""A kombu channel over the job queue: publishing, consuming, acknowledging."""

from __future__ import annotations

import logging
from datetime import timedelta
from queue import Empty
from typing import Any

import psycopg
from amqp import RecoverableConnectionError
from amqp.protocol import queue_declare_ok_t
from kombu.transport import virtual

from celery_jobqueue.broker.claims import Claims, Places, text_array
from celery_jobqueue.broker.collector import collected
from celery_jobqueue.broker.context import lease_of, running_request
from celery_jobqueue.broker.delivered import Delivered
from celery_jobqueue.broker.endings import app_of, tell_celery
from celery_jobqueue.broker.identity import identity
from celery_jobqueue.broker.messages import decode_job, decode_transient, revocation, storable, uuid7
from celery_jobqueue.broker.outbox import outbox_of
from celery_jobqueue.broker.publishing import Batch, Outgoing, PublishBatch, send
from celery_jobqueue.broker.session import Call
from celery_jobqueue.broker.settlements import Failure, Lease
from celery_jobqueue.broker.sql import statement
from celery_jobqueue.broker.starting import start_now
from celery_jobqueue.broker.transient import send_call
from celery_jobqueue.broker.trouble import first_line
from celery_jobqueue.db.errors import ConfigurationError

__all__ = ["Channel"]

logger = logging.getLogger(__name__)


class QoS(virtual.QoS):  # type: ignore[misc]
    """Prefetch window. Acknowledging frees a place in it; what becomes of the job is told to the settlements."""

    def __init__(self, channel: Any, prefetch_count: int = 0) -> None:
        super().__init__(channel, prefetch_count)
        self._delivered.restored = False

    def places(self) -> int | None:
        """Free places in the window, below zero when more is out than it has; None: it has no end."""
        return self.prefetch_count - (len(self._delivered) - len(self._dirty)) if self.prefetch_count else None

    def ack(self, delivery_tag: str) -> None:
        """The consumer is done with the message."""
        message = self._taken(delivery_tag)
        if message is not None:
            self.channel.settle(message)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """The consumer refuses the message; requeue asks for another attempt."""
        message = self._taken(delivery_tag)
        if message is not None:
            self.channel.refuse(message, requeue)

    def _taken(self, delivery_tag: str) -> Delivered | None:
        message: Delivered | None = self._delivered.get(delivery_tag) or self.channel.kept.pop(delivery_tag, None)
        self._quick_ack(delivery_tag)
        return message


class Channel(virtual.Channel):  # type: ignore[misc]
    """One channel. All channels of a transport share its connection and its cycle."""

    Message = Delivered
    QoS = QoS
    supports_fanout = True
    body_encoding = None  # bodies are stored as they are: no base64

    def __init__(self, connection: Any, **kwargs: Any) -> None:
        super().__init__(connection, **kwargs)
        self._transport = connection
        #: Queues with a consumer on this channel, and whether it acknowledges nothing.
        self.consuming: dict[str, bool] = {}
        #: Jobs of a worker that ran on while this channel's connection was lost; they are settled on the next one.
        self.kept: dict[str, Delivered] = {}

    @property
    def _live(self) -> Any:
        # A pooled producer outlives its closed connection; this error makes kombu reconnect.
        if self.connection is None:
            raise RecoverableConnectionError("this channel is closed")
        return self.connection

    # -- entities -----------------------------------------------------------------------------------------------------

    def exchange_declare(self, exchange: str | None = None, type: str = "direct", durable: bool = False,
                         auto_delete: bool = False, arguments: dict[str, Any] | None = None, nowait: bool = False,
                         passive: bool = False) -> None:
        """Make the exchange known to every process."""
        storable(exchange, "queue or exchange name")
        super().exchange_declare(exchange, type, durable, auto_delete, arguments, nowait, passive)
        if exchange and not passive:
            self._live.topology.declare_exchange(exchange, type or "direct")

    def exchange_delete(self, exchange: str, if_unused: bool = False, nowait: bool = False) -> None:
        """Remove the exchange and its bindings."""
        self.state.exchanges.pop(exchange, None)
        self._live.topology.delete_exchange(exchange)

    def _new_queue(self, queue: str, **kwargs: Any) -> None:
        storable(queue, "queue or exchange name")
        self._live.topology.declare_queue(
            queue, auto_delete=bool(kwargs.get("auto_delete")), exclusive=bool(kwargs.get("exclusive")),
            arguments=kwargs.get("arguments"))

    def prepare_queue_arguments(self, arguments: dict[str, Any] | None, **kwargs: Any) -> dict[str, Any]:
        """Turn expires= and message_ttl= into x-expires and x-message-ttl; the base class would drop them."""
        from kombu.transport.base import to_rabbitmq_queue_arguments

        prepared: dict[str, Any] = to_rabbitmq_queue_arguments(arguments or {}, **kwargs)
        return prepared

    def _has_queue(self, queue: str, **kwargs: Any) -> bool:
        return bool(self._live.topology.exists(queue))

    def queue_declare(self, queue: str | None = None, passive: bool = False, **kwargs: Any) -> Any:
        """Make the queue known; (name, messages, consumers). Inside jobs_in() nobody counts messages."""
        if queue is None or passive or collected(self._live.settings.conninfo) is None:
            return super().queue_declare(queue, passive, **kwargs)
        self._new_queue(queue, **kwargs)
        return queue_declare_ok_t(queue, 0, 0)

    def queue_bind(self, queue: str, exchange: str | None = None, routing_key: str = "",
                   arguments: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Route the exchange's messages with this routing key to the queue."""
        exchange = exchange or "amq.direct"
        self._live.topology.bind(queue, exchange, routing_key or "", self.typeof(exchange).type)

    def queue_unbind(self, queue: str, exchange: str | None = None, routing_key: str = "",
                     arguments: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Undo queue_bind."""
        self._live.topology.unbind(queue, exchange or "amq.direct", routing_key or "")

    def queue_delete(self, queue: str, if_unused: bool = False, if_empty: bool = False, **kwargs: Any) -> None:
        """Forget the queue, its bindings and its transient messages. Waiting jobs are purged."""
        if if_empty and self._size(queue):
            return
        self._delete(queue)

    def _delete(self, queue: str, *args: Any, **kwargs: Any) -> None:
        # Clients of remote control delete their reply queues without a right to jobs.
        if self._live.topology.holds_jobs(queue):
            self._purge(queue)
        self._live.topology.delete_queue(queue)

    def get_table(self, exchange: str) -> list[tuple[str, str | None, str]]:
        """Bindings of an exchange as (routing key, pattern, queue)."""
        [rows] = self._live.run((statement("exchange_bindings"), (exchange,)))
        return [(row[0] or "", row[1], row[2] or "") for row in rows]

    def _size(self, queue: str) -> int:
        [rows] = self._live.run((statement("queue_size"), (queue,)))
        return int(rows[0][0] or 0)

    def _purge(self, queue: str) -> int:
        [rows] = self._live.run((statement("purge"), (queue,)))
        return int(rows[0][0] or 0)

    # -- publishing ---------------------------------------------------------------------------------------------------

    def basic_publish(self, message: dict[str, Any], exchange: str = "", routing_key: str = "",
                      _publish_batch: Batch | None = None, **kwargs: Any) -> None:
        """Route and store the message; when this returns, a job is on disk.

        Raises InvalidJob naming what cannot be stored; nothing is written then.
        """
        self._inplace_augment_message(message, exchange, routing_key)
        transport = self._live
        if (exchange or "").endswith(".pidbox"):
            self._revoke_waiting(message)
        exchange = storable(exchange, "exchange") or ""
        storable(routing_key, "queue" if not exchange else "routing key")
        kind = self.typeof(exchange).type if exchange else "direct"
        again = self._rearms(message)
        # Remote control is no job: mostly it goes out at once. And what runs here runs in no other transaction.
        control = kind == "fanout" and "task" not in message["headers"]
        collector = None if again else collected(transport.settings.conninfo)
        if collector is not None and (collector.control or not control):
            collector.publish(message, exchange, routing_key or "", kind, transport, self.deadletter_queue)
            return
        event = kind == "topic" and "hostname" in message["headers"] and "task" not in message["headers"]
        outbox = outbox_of(transport.settings.conninfo) if event and _publish_batch is None else None
        topology = transport.topology if outbox is None else outbox.topology  # which is told when somebody begins to listen
        destinations = topology.destinations(exchange, routing_key or "", kind, transport.run, event=outbox is not None)
        if not destinations and exchange and self.deadletter_queue:
            destinations = [(self.deadletter_queue, False)]
        if outbox is not None and all(transient for _, transient in destinations):
            if destinations:
                outbox.post(message, [queue for queue, _ in destinations], transport.settings.priority_scale)
            return
        outgoing = Outgoing() if _publish_batch is None else _publish_batch.outgoing
        outgoing.add(message, destinations, transport.settings.priority_scale, again=again)
        if again is not None:
            self._note_rearmed(message)
        if _publish_batch is None:
            send(transport, outgoing.calls(own=True))

    def create_publish_batch(self, max_size: int) -> PublishBatch:
        """For `Producer.batch()`."""
        return PublishBatch(self, max_size)

    def _put(self, queue: str, message: dict[str, Any], **kwargs: Any) -> None:
        self.basic_publish(message, "", queue, **kwargs)

    def _revoke_waiting(self, message: dict[str, Any]) -> None:
        """Remote control tells the workers that are alive; jobs that wait must not run in those to come either."""
        order = revocation(message["body"])
        if order:
            [rows] = self._live.run((statement("revoke"), (text_array(order),)))
            app = app_of(self._live.settings.conninfo) if rows else None
            if app is not None:
                tell_celery(app, rows)

    def _rearms(self, message: dict[str, Any]) -> Lease | None:
        """The running job that this message publishes again (Task.retry, Task.replace), if it is one."""
        request = running_request()
        if request is None or request.id != message["headers"].get("id"):
            return None
        lease = lease_of(request)
        job = request.properties["job"] if lease else None
        # A second publish of the same id from the same run is another job, unless kombu repeats the first after a lost reply.
        if job is None or job.get("republished") not in (None, message["properties"].get("message_id")):
            return None
        return lease

    @staticmethod
    def _note_rearmed(message: dict[str, Any]) -> None:
        properties = message["properties"]
        properties["message_id"] = properties.get("message_id") or str(uuid7())
        running_request().properties["job"]["republished"] = properties["message_id"]  # type: ignore[union-attr]

    # -- consuming ----------------------------------------------------------------------------------------------------

    def basic_consume(self, queue: str, no_ack: bool, callback: Any, consumer_tag: str, **kwargs: Any) -> None:
        """Deliver messages of the queue to the callback."""
        transport = self._live

        def deliver(raw: dict[str, Any]) -> Any:
            if "start" in raw["properties"].get("job", ()) and transport.cycle_.door.unfit(raw):
                self._hold(raw)
            message = self.Message(raw, channel=self)
            if not no_ack:
                self.qos.append(message, message.delivery_tag)
            elif message.lease is not None:
                transport.settlements.complete(message.lease)
            if message.lease is None or transport.cycle_.starts_on_delivery:
                return callback(message)
            try:
                return callback(message)
            except transport.connection_errors:
                raise
            except Exception as error:  # a row that somebody wrote by hand must not stop the worker, and the next, and the next
                transport.unreadable(raw, error)
                message.early = True
                message.ack()

        self._tag_to_queue[consumer_tag] = queue
        self._active_queues.append(queue)
        self._consumers.add(consumer_tag)
        self.consuming[queue] = no_ack
        self.connection._callbacks[queue] = deliver
        transport.cycle_.subscribe(queue, not transport.topology.holds_jobs(queue))

    def _hold(self, raw: dict[str, Any]) -> None:
        """Take back the start that came with this job's claim: it does not run, and no attempt is used."""
        job, transport = raw["properties"]["job"], self._transport
        try:
            [rows] = transport.run((statement("hold"), (job["id"], job["lease"])))
        except (psycopg.Error, ConfigurationError) as error:
            if not transport.session.connected:
                transport.settlements.release(Lease.of(job))
                raise
            logger.warning("job %s does not run, and counts as started: %s", job["id"], first_line(error),
                           extra=Lease.of(job).about)
            return
        if rows[0][0] is not None:
            del job["start"]
            job.update(lease=rows[0][0], attempts=job["attempts"] - 1)
            raw["properties"]["delivery_tag"] = Lease.of(job).tag

    def basic_cancel(self, consumer_tag: str) -> None:
        """Stop delivering to this consumer; an auto-delete queue goes with its last one."""
        if consumer_tag not in self._consumers:
            return
        transport = self._transport
        queue = self._tag_to_queue.get(consumer_tag)
        super().basic_cancel(consumer_tag)
        if queue is None or queue in self._active_queues:
            return
        self.consuming.pop(queue, None)
        transport.cycle_.unsubscribe(queue)
        if queue in transport.topology.auto_delete and transport.session.connected:
            transport.run((statement("delete_queue"), (queue,)))

    def _reset_cycle(self) -> None:
        """Nothing: the transport's cycle serves all channels."""

    def _get(self, queue: str, timeout: float | None = None) -> dict[str, Any]:
        transport = self._live
        if not transport.topology.holds_jobs(queue):
            calls: list[Call] = [(statement("fetch"), (text_array([queue]), "1"))]
            [rows] = transport.run(*calls)
            if not rows:
                raise Empty
            id_, _, envelope, payload, binary = rows[0]
            return decode_transient(queue, envelope, payload, binary, f"t{id_}")
        claims = Claims(identity().id, 1.0)
        while True:
            transport.cycle_.register()
            rows = transport.run(*claims.calls(Places(1), [queue], 0.0))[0]
            if not rows:
                raise Empty
            id_, lease, task_id = rows[0][0], rows[0][1], rows[0][8]
            try:
                message = decode_job(rows[0])
            except Exception as error:  # edited by hand
                transport.cycle_.on_unreadable(id_, lease, task_id, error)
                transport.settle_soon()
                continue
            if not start_now(transport.cycle_, [message]):  # else it came too late; perhaps there is another
                return message

    def basic_get(self, queue: str, no_ack: bool = False, **kwargs: Any) -> Delivered | None:
        """One message, None when there is none. no_ack: with that it is done."""
        message: Delivered | None = super().basic_get(queue, no_ack, **kwargs)
        if no_ack and message is not None and message.lease is not None:
            self._live.settlements.complete(message.lease)
            self._live.settle_soon()
        return message

    # -- settling -----------------------------------------------------------------------------------------------------

    def settle(self, message: Delivered) -> None:
        """The message was acknowledged: its job is done, unless the message knows better."""
        if message.lease is None or message.early:
            return
        settlements = self._transport.settlements
        if message.failure is not None:
            settlements.fail(message.lease, message.failure)
        else:
            settlements.complete(message.lease, message.result)
        self._transport.settle_soon()

    def refuse(self, message: Delivered, requeue: bool) -> None:
        """The message was rejected. Asked back into the queue it has used an attempt, and those are counted."""
        if message.lease is not None:
            reason = "rejected and put back by its consumer" if requeue else "rejected"
            failure = message.failure or Failure(reason, retry=requeue, delay=timedelta(0))
            self._transport.settlements.fail(message.lease, failure)
            self._transport.settle_soon()
        elif requeue:
            self._send_back(message)

    def _restore(self, message: Delivered) -> None:
        """The channel closes with this message unfinished: untouched, back to its old place; a job that runs runs on."""
        if message.lease is None:
            self._send_back(message)
        elif self._transport.runs_on(message):
            self.kept[message.delivery_tag] = message
        elif not message.early:
            self._transport.settlements.release(message.lease)

    _restore_at_beginning = _restore

    def _send_back(self, message: Delivered) -> None:
        raw = message.serializable()
        if message.queue and self._transport.session.connected:
            self._transport.run(send_call(raw, [message.queue], self._transport.settings.priority_scale))
