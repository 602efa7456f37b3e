"""Who waits for results: one LISTEN connection of a client, however many results it waits for."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import psycopg
from celery import states
from celery.backends.asynchronous import BaseResultConsumer

from celery_jobqueue.broker.claims import channel_of
from celery_jobqueue.broker.pooling import changes_hands
from celery_jobqueue.broker.session import Session
from celery_jobqueue.broker.sessions import PATIENCE, new_session
from celery_jobqueue.broker.sql import Statement, statement

__all__ = ["ResultConsumer"]

_REGISTER_AGAIN = 10.0  # seconds


class ResultConsumer(BaseResultConsumer):  # type: ignore[misc]
    """Waits for results of this client: one LISTEN connection, one channel, however many results."""

    _connection_errors = (psycopg.OperationalError, psycopg.InterfaceError, OSError)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._session: Session | None = None
        self._waiting: set[str] = set()
        self._registered_at = 0.0
        self._down_since: float | None = None
        self._pause = 0.02

    def start(self, initial_task_id: str, **kwargs: Any) -> None:
        """Begin to listen."""
        self.consume_from(initial_task_id)
        with self._waiting_out_an_outage(0):
            self._listen()

    def _listen(self) -> None:
        settings = self.backend.settings
        if self._session is None:
            self._session = new_session(self.backend.settings)
        fresh = not self._session.connected
        now = time.monotonic()
        self._session.connect()
        # Again now and then: who only reads would never notice that its server is no primary any more.
        if (fresh or now - self._registered_at > _REGISTER_AGAIN) and not changes_hands(settings, self._session):
            reply_to = self.app.thread_oid
            self._session.run((Statement("", f'LISTEN "{channel_of(reply_to)}"'.encode()), ()),
                              (statement("wait_for_results"), (reply_to,)))
            self._registered_at = now
        if fresh:
            self._fetch()

    def drain_events(self, timeout: float | None = None) -> None:
        """Take in results that have arrived; return after `timeout` seconds at the latest."""
        if self._session is None:
            time.sleep(timeout or 0)
            return
        with self._waiting_out_an_outage(1.0 if timeout is None else timeout):
            self._listen()
            session = self._session
            assert session is not None
            wait = self._pause if timeout is None else min(timeout, self._pause)
            if not session.notified:  # else it came while the last answer was read
                session.wait(wait)
            if session.connected:
                session.on_readable()
            if session.notified:
                session.notified.clear()
                self._pause = 0.02
            else:
                # Only for jobs that were not told to notify this client, and for a notification that crossed our LISTEN.
                self._pause = min(self._pause * 2, 1.0)
            self._fetch()
            self._down_since = None

    @contextlib.contextmanager
    def _waiting_out_an_outage(self, seconds: float) -> Iterator[None]:
        """A lost connection is made anew by the next look. `get()` goes on, as long as its own timeout lets it.

        seconds: how long this look may take. Raises psycopg.OperationalError after PATIENCE seconds without a server.
        """
        try:
            yield
        except self._connection_errors:
            now = time.monotonic()
            self._down_since = self._down_since or now
            if now - self._down_since > PATIENCE:
                raise
            if self._session is not None:
                self._session.close()
            time.sleep(min(seconds, 0.5))

    def _fetch(self) -> None:
        if not self._waiting:
            return
        assert self._session is not None
        for meta in self.backend.fetch_metas(sorted(self._waiting), self._session):
            if meta["status"] in states.READY_STATES:
                self._waiting.discard(meta["task_id"])
                self.on_state_change(meta, None)

    def consume_from(self, task_id: str) -> None:
        """Wait for this task too."""
        if self._session is None and not self._waiting:
            self._waiting.add(task_id)
            self._pause = 0.02
            self._session = new_session(self.backend.settings)
            return
        self._waiting.add(task_id)
        self._pause = 0.02

    def cancel_for(self, task_id: str) -> None:
        """No longer wait for it; runs from a destructor, so it only forgets."""
        self._waiting.discard(task_id)

    def on_after_fork(self) -> None:
        """The parent's connection is not ours."""
        self._session = None
        self._waiting = set()

    def stop(self) -> None:
        """Stop listening."""
        session, self._session = self._session, None
        if session is not None:
            with contextlib.suppress(psycopg.Error, OSError):
                if session.connected:
                    session.run((statement("stop_waiting"), (self.app.thread_oid,)))
            session.close()
