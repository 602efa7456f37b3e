"""kombu's transport contract, thin: everything that happens is in cycle, claims, settlements and transient."""

from __future__ import annotations

import contextlib
import threading
from functools import partial
from time import monotonic
from typing import Any, ClassVar

import psycopg
from amqp import RecoverableConnectionError
from kombu.transport import virtual

from celery_jobqueue.broker import settings
from celery_jobqueue.broker.channel import Channel
from celery_jobqueue.broker.collector import collected
from celery_jobqueue.broker.comeback import patiently
from celery_jobqueue.broker.cycle import Cycle
from celery_jobqueue.broker.delivered import Delivered
from celery_jobqueue.broker.failover import install as _install_failover
from celery_jobqueue.broker.flower_hook import install as _install_in_flower
from celery_jobqueue.broker.groups import install as _install_groups
from celery_jobqueue.broker.identity import identity
from celery_jobqueue.broker.management import Management
from celery_jobqueue.broker.masking import install as _install_masking
from celery_jobqueue.broker.meeting import meet
from celery_jobqueue.broker.pools import install as _install_pools
from celery_jobqueue.broker.session import Call, Row
from celery_jobqueue.broker.sessions import PATIENCE, lending, new_session, run_patiently
from celery_jobqueue.broker.settlements import Lease, settlements_for
from celery_jobqueue.broker.sql import statement
from celery_jobqueue.broker.starting import start_undelivered
from celery_jobqueue.broker.transient import Topology
from celery_jobqueue.broker.waker import Waker
from celery_jobqueue.broker.worker import install as _install_worker_steps
from celery_jobqueue.db.errors import JobQueueError
from celery_jobqueue.db.url import masked

__all__ = ["Transport"]

#: Seconds that the solo pool runs jobs until the loop turns, which has heartbeats, timers and orders to look after.
_A_TURN = 0.05

# What means "reconnect and go on": the server restarts, a failover, an administrator's hand, a deadlock or a timeout.
_CONNECTION_ERRORS = (
    *virtual.Transport.connection_errors,
    psycopg.OperationalError,
    psycopg.InterfaceError,
    psycopg.errors.ReadOnlySqlTransaction,
    RecoverableConnectionError,
    OSError,
)


class Transport(virtual.Transport):  # type: ignore[misc]
    """`postgresql://`: messages are rows. See celery-contract §1.2 for what each attribute decides."""

    Channel = Channel
    driver_type = "postgres"
    driver_name = "psycopg"
    can_parse_url = True
    default_port = 5432
    connection_errors: ClassVar[tuple[type[BaseException], ...]] = _CONNECTION_ERRORS
    channel_errors: ClassVar[tuple[type[BaseException], ...]] = virtual.Transport.channel_errors
    recoverable_connection_errors: ClassVar[tuple[type[BaseException], ...]] = _CONNECTION_ERRORS
    recoverable_channel_errors: ClassVar[tuple[type[BaseException], ...]] = virtual.Transport.channel_errors
    implements = virtual.Transport.implements.extend(
        asynchronous=True, heartbeats=False, batch_publish=True, exchange_type=frozenset(["direct", "topic", "fanout"]),
    )

    def __init__(self, client: Any, **kwargs: Any) -> None:
        super().__init__(client, **kwargs)
        _install_in_flower(client.alt)
        self.settings = settings.read(client)
        self.session, self._aside = new_session(self.settings), new_session(self.settings)
        self.settlements = settlements_for(settings.conninfos(client))
        self.topology = Topology(self.run, self._postpone)
        self.cycle_ = Cycle(self.session, self.settlements, self.settings.options, self._credit)
        self.cycle_.duties.restoration = self.topology.restoration
        self.topology.follow(self.cycle_.listening)
        self._loop: Any = None
        self._loop_thread = 0
        self._timer: Any = None
        self._timer_at = 0.0
        self._pulse: Any = None
        self._reading: int | None = None
        self._closed = False
        #: The process leaves for good, so its registration is removed when this connection closes.
        self.leaving = False
        #: A job that is delivered runs at once, in the thread that delivers it.
        self.runs_jobs = False
        self._waker = Waker()
        self._drainer: int | None = None

    # -- life ---------------------------------------------------------------------------------------------------------

    def driver_version(self) -> str:
        """Version of psycopg."""
        return psycopg.__version__

    def establish_connection(self) -> Transport:
        """Connect and check the schema. Raises psycopg.OperationalError, SchemaError."""
        if not self._lent:
            # Of several brokers kombu tries the next at once.
            patiently(self._meet, 0.0 if len(self.client.alt or ()) > 1 else self.settings.options.heartbeat_limit)
        connection: Transport = super().establish_connection()
        return connection

    def _meet(self) -> None:
        try:
            found = meet(self.session, self.settings)
        except Exception:
            self.session.close()
            raise
        self.cycle_.duties.count_for(self)
        if found is not self.settings:
            self.settings = found
            self.cycle_.adopt(found.options)

    def close_connection(self, connection: Any) -> None:
        """Give back what was not finished and close; never raises on a dead connection."""
        self._closed = True
        self._leave_loop()
        with contextlib.suppress(Exception):
            super().close_connection(connection)
        with contextlib.suppress(psycopg.Error, JobQueueError, OSError):
            if self.session.connected:
                self.give_back_undelivered()
                self.cycle_.settle()  # what was settled to no effect is asked about
            if self.leaving and self.session.connected:
                self.session.run((statement("goodbye"), (identity().id,)))
        self.cycle_.lost_connection()
        self.cycle_.ready.clear()  # not held any more
        self.session.close()
        self._waker.close()

    def give_back_undelivered(self) -> None:
        """Jobs that were claimed and not delivered go back with the next batch."""
        for queue in {queue for queue, _ in self.cycle_.ready}:
            self.cycle_.unsubscribe(queue)

    def runs_on(self, message: Delivered) -> bool:
        """Whether this message's job runs in a worker that will be back."""
        return bool(message.properties["job"].get("start")) and not (self.cycle_.starts_on_delivery or self.leaving)

    def verify_connection(self, connection: Any) -> bool:
        """A look at local flags; kombu asks on every access to a channel."""
        return not self._closed and (self.session.connected or self._lent)

    @property
    def _lent(self) -> bool:
        # Inside jobs_in() messages travel on the caller's connection, and ours is opened only when it is really needed.
        return collected(self.settings.conninfo) is not None

    def _postpone(self, call: Call) -> bool:
        collector = collected(self.settings.conninfo)
        if collector is not None:
            collector.declare(call, self.client.declared_entities.clear)
        return collector is not None

    def as_uri(self, uri: str, include_password: bool = False, mask: str = "**") -> str:
        """The URL as it may be shown."""
        return uri if include_password else masked(uri)

    #: None: libpq has its own defaults.
    default_connection_params: ClassVar[dict[str, Any]] = {}

    def run(self, *calls: Call) -> list[list[Row]]:
        """Send the calls as one transaction and wait for the answers. Raises psycopg.Error, SchemaError, ConfigurationError."""
        if self._closed:
            raise RecoverableConnectionError("this connection is closed")
        return self.cycle_.run(*calls)

    # -- delivering ---------------------------------------------------------------------------------------------------

    def _credit(self, queue: str) -> int | None:
        for channel in self.channels:
            if queue in channel.consuming:
                waiting = sum(1 for name, _ in self.cycle_.ready if name in channel.consuming)
                places = channel.qos.places()
                return None if places is None else places - waiting
        return 0

    def held(self) -> set[str]:
        """Ids of the jobs that were claimed on this connection and not acknowledged."""
        waiting = {message["properties"]["job"]["id"] for _, message in list(self.cycle_.ready) if "job" in message["properties"]}
        return waiting | {message.lease.id for channel in self.channels for message in list(channel.qos._delivered.values())
                          if message.lease is not None}

    def _deliver_next(self) -> bool:
        if not self.cycle_.ready:
            return False
        queue, message = self.cycle_.ready.popleft()
        self._deliver(message, queue)
        return True

    def drain_events(self, connection: Any, timeout: float | None = None) -> None:
        """Deliver what is there. Raises socket.timeout when nothing came within `timeout` seconds."""
        deadline = None if timeout is None else monotonic() + timeout
        self._drainer = threading.get_ident()
        try:
            while True:
                if self._closed:
                    raise RecoverableConnectionError("this connection is closed")
                self.cycle_.turn()
                if self.cycle_.starts_on_delivery:
                    start_undelivered(self.cycle_)
                if self._deliver_next():
                    while self._deliver_next():
                        pass
                    if self.settlements:
                        self.cycle_.turn()
                    return
                now = monotonic()
                if deadline is not None and now >= deadline:
                    raise TimeoutError
                until = self.cycle_.next_deadline(now)
                if deadline is not None:
                    until = min(until, deadline)
                if until > now and (not self.settlements or now < self.cycle_.trouble.until):
                    self.session.wait(until - now, self._waker.fileno())
                    self._waker.clear()
                    if self.session.connected:
                        self.cycle_.on_readable()
        finally:
            self._drainer = None

    def unreadable(self, raw: dict[str, Any], error: Exception) -> None:
        """A job's message stopped its consumer."""
        job, headers = raw["properties"]["job"], raw["headers"]
        self.cycle_.on_unreadable(job["id"], job["lease"], headers.get("id"), error)
        self.settle_soon()

    def _reject_inbound_message(self, raw_message: dict[str, Any]) -> None:
        job = raw_message["properties"].get("job")
        if job is not None:
            self.settlements.release(Lease.of(job))

    # -- waking up ----------------------------------------------------------------------------------------------------

    def settle_soon(self) -> None:
        """Something was put into the settlements: have it sent."""
        if self.settlements.deaf and self._loop_thread not in (0, threading.get_ident()):
            with contextlib.suppress(psycopg.Error, JobQueueError, OSError), lending(self.settings.conninfo, self._aside):
                self.settlements.tell(partial(run_patiently, self.settings, patience=PATIENCE, locks=False))
        elif self._closed:
            return
        elif not any(channel.consuming for channel in self.channels):
            # Consumers are cancelled (shutdown): the loop may not turn again, and what is not flushed runs twice.
            with contextlib.suppress(psycopg.Error, JobQueueError, OSError):
                self.cycle_.settle()
        elif self._loop is not None:
            if self._loop_thread != threading.get_ident():
                self._loop.call_soon(_nothing)  # wakes the hub up, from any thread
        elif self._drainer not in (None, threading.get_ident()):
            self.wake()

    def wake(self) -> None:
        """Have the loop turn, from another thread or a signal's handler."""
        self._waker.wake()

    # -- on a worker's event loop -------------------------------------------------------------------------------------

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Hand the connection to the hub: nothing blocks from here on."""
        self._leave_loop()
        self._loop = loop
        self._loop_thread = threading.get_ident()
        loop.on_tick.add(self._on_tick)
        self.cycle_.outbox.open(self.settings.conninfo, lambda: loop.call_soon(_nothing), self.topology)
        self._pulse = loop.call_repeatedly(self.settings.options.heartbeat, self._beat)

    def _leave_loop(self) -> None:
        loop, self._loop = self._loop, None
        if loop is None:
            return
        self.cycle_.outbox.close(self.settings.conninfo)
        loop.on_tick.discard(self._on_tick)  # hub.reset() leaves tick callbacks in place
        if self._reading is not None:
            for reader in (self._reading, self._waker):
                with contextlib.suppress(Exception):
                    loop.remove(reader)
            self._reading = None
        for timer in (self._timer, self._pulse):
            if timer is not None:
                timer.cancel()
        self._timer = self._pulse = None

    def _beat(self) -> None:
        """A sign of life while a worker waits for its last jobs: the loop turns no more then, Celery only fires its timers."""
        if self._loop is not None and not self._closed and not any(channel.consuming for channel in self.channels):
            with contextlib.suppress(psycopg.Error, JobQueueError, OSError):
                self.run(self.cycle_.duties.heartbeat())

    def _on_tick(self) -> None:
        if self._loop is None or self._closed:
            return
        if not self.session.connected:
            raise psycopg.OperationalError("the connection to PostgreSQL was lost")
        if self.session.overdue:
            self._on_readable()  # the loop may have been busy with a task, and the answer lies there
            if self.session.overdue:
                self.cycle_.lost_connection()
                self.session.give_up()
        fd = self.session.fileno()
        if fd != self._reading:
            self._loop.add_reader(fd, self._on_readable)
            self._loop.add_reader(self._waker, self._waker.clear)
            self._reading = fd
        self._deliver_all()  # events that need no database
        self.cycle_.pump()
        if self._arm():
            # The hub has chosen already how long to sleep, and its own call_soon() interrupts that from other threads only.
            self.wake()

    def _on_readable(self) -> None:
        if self._loop is None or self._closed:
            return
        self.cycle_.on_readable()
        self._deliver_all()
        self.cycle_.pump()
        self._arm()

    def _deliver_all(self) -> None:
        if not self.cycle_.ready:
            return
        until = monotonic() + _A_TURN
        with self.cycle_.door.collecting():
            while self._deliver_next():
                if not self.runs_jobs:
                    continue
                if self.settlements:  # telling so, and claiming the next, need not wait for the others: 4,000 jobs/s became 5,400
                    if self.session.busy:
                        self.cycle_.on_readable()
                    self.cycle_.pump()
                    self.cycle_.push()  # half of a batch would hold its locks while the next job runs
                if monotonic() >= until:
                    break
        if self.cycle_.ready:
            self.wake()

    def _arm(self) -> bool:
        """Let the hub wake up when the next thing is due. True when that is another moment than before."""
        if self.session.busy:
            return False
        now = monotonic()
        at = self.cycle_.next_deadline(now)
        if self._timer is not None:
            if not self._timer.canceled and now < self._timer_at <= at:
                return False
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._loop.call_later(max(0.0, at - now), _nothing)
        return True

    def get_manager(self, *args: Any, **kwargs: Any) -> virtual.Management:
        """For `celery list bindings`."""
        return Management(self)


def _nothing() -> None:
    """A timer that only makes the hub turn; the tick does the work."""


_install_failover()
_install_groups()
_install_masking()
_install_pools()
_install_worker_steps()
