"""Live jobs for open pages: one LISTEN connection per process, fanned out by user.

A notification says only that something of a user has changed. What it is is read from the table, once for all pages of that
user, and each page gets what it has not seen. So a burst of ten thousand changes is a handful of reads, nothing personal
travels through NOTIFY, and a page that reconnects simply gets the present state. Looking again every few seconds alone is
enough: behind a pooler in transaction mode, where nothing can be heard, that is all there is.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress

import psycopg
from anyio import to_thread
from sqlalchemy.exc import SQLAlchemyError

from celery_jobqueue.db.url import libpq_dsn, looks_like_transaction_pooler
from tasks.web.jobs import Card

__all__ = ["Feed"]

_log = logging.getLogger(__name__)
_POLL, _POLL_ALONE = 5.0, 1.5  # seconds between two looks: with notifications, and without
_GATHER = 0.03  # seconds: changes that come together are read together
_WATCHED = 30.0  # seconds between two renewals of jobqueue.watch(), which lasts for 120
_ALIVE = 15.0  # seconds of silence after which a page is told that we are there; proxies cut after 30 or 60
_RECONNECT = 5.0


class Feed:
    """The jobs of users whose pages are open. load: a user's cards; watch: jobqueue.watch(); both run in threads."""

    def __init__(self, url: str, load: Callable[[str], list[Card]], watch: Callable[[Sequence[str]], None]) -> None:
        self._dsn, self._pooled = libpq_dsn(url), looks_like_transaction_pooler(url)
        self._load, self._watch = load, watch
        self._users: dict[str, _Followed] = {}
        self._by_hash: dict[str, _Followed] = {}
        self._listening = False
        self._closed = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Listens while the block runs."""
        listener = None if self._pooled else asyncio.create_task(self._listen())
        try:
            yield
        finally:
            self.close()
            if listener is not None:
                listener.cancel()
                with suppress(asyncio.CancelledError):
                    await listener

    def close(self) -> None:
        """End every stream: a server that stops must not wait for its readers."""
        self._closed.set()
        for followed in self._users.values():
            followed.tell()

    def streams(self, user_id: str | None = None) -> int:
        """How many pages follow this user's jobs; anybody's without one."""
        if user_id is None:
            return sum(followed.streams for followed in self._users.values())
        return self._users[user_id].streams if user_id in self._users else 0

    def touch(self, user_id: str) -> None:
        """Look at this user's jobs now: they were changed here."""
        if user_id in self._users:
            self._users[user_id].dirty.set()

    async def follow(self, user_id: str) -> AsyncGenerator[list[Card] | None]:
        """The user's jobs now and after every change; None when nothing has happened for a while. Ends with the server."""
        followed = self._users.get(user_id)
        if followed is None:
            followed = self._users[user_id] = self._by_hash[_hash(user_id)] = _Followed(user_id)
            followed.keeper = asyncio.create_task(self._keep(followed))
        followed.streams += 1
        try:
            seen = 0
            while not self._closed.is_set():
                changed = followed.changed
                if followed.version != seen:
                    seen = followed.version
                    yield followed.cards
                    continue
                try:
                    await asyncio.wait_for(changed.wait(), _ALIVE)
                except TimeoutError:
                    yield None
        finally:
            followed.streams -= 1
            if not followed.streams:
                del self._users[user_id], self._by_hash[_hash(user_id)]
                if followed.keeper is not None:
                    followed.keeper.cancel()

    async def _keep(self, followed: _Followed) -> None:
        """Keep the user's cards up to date."""
        watched = 0.0
        while True:
            followed.dirty.clear()
            try:
                if not self._pooled and time.monotonic() - watched > _WATCHED:
                    # Registered before the jobs are read: what changes in between is notified.
                    await to_thread.run_sync(self._watch, [followed.id])
                    watched = time.monotonic()
                cards = await to_thread.run_sync(self._load, followed.id)
            except (SQLAlchemyError, OSError) as error:
                _log.warning("jobs could not be read: %s", str(error).splitlines()[0])
            else:
                if cards != followed.cards or not followed.version:
                    followed.cards = cards
                    followed.version += 1
                    followed.tell()
            pause = (_POLL if self._listening else _POLL_ALONE) * random.uniform(0.8, 1.2)
            with suppress(TimeoutError):
                await asyncio.wait_for(followed.dirty.wait(), pause)
                await asyncio.sleep(_GATHER)

    async def _listen(self) -> None:
        while True:
            try:
                # A connection that is cut silently is noticed within a minute; until then the polls go on.
                async with await psycopg.AsyncConnection.connect(
                        self._dsn, autocommit=True, prepare_threshold=None, connect_timeout=10, application_name="jobqueue web",
                        keepalives_idle=20, keepalives_interval=10, keepalives_count=3) as connection:
                    await connection.execute("listen jobqueue_users")
                    self._listening = True
                    for followed in self._users.values():
                        followed.dirty.set()
                    async for notification in connection.notifies():
                        if found := self._by_hash.get(notification.payload):
                            found.dirty.set()
            except (psycopg.Error, OSError) as error:
                _log.warning("not listening, polling instead: %s", str(error).strip().splitlines()[:1])
            self._listening = False
            await asyncio.sleep(_RECONNECT * random.uniform(0.5, 1.5))


class _Followed:
    """A user somebody follows. version: 0 until the cards were read once."""

    def __init__(self, user_id: str) -> None:
        self.id, self.streams, self.version = user_id, 0, 0
        self.cards: list[Card] = []
        self.dirty, self.changed = asyncio.Event(), asyncio.Event()
        self.keeper: asyncio.Task[None] | None = None

    def tell(self) -> None:
        """Wake everybody who waits for a change."""
        self.changed.set()
        self.changed = asyncio.Event()


def _hash(user_id: str) -> str:
    """As the trigger does it."""
    return hashlib.md5(user_id.encode(), usedforsecurity=False).hexdigest()
