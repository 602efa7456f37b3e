"""Finding out that connections change hands: behind a pooler in transaction mode LISTEN, session locks and prepared
statements do not work, and nothing says so.

What the application says (`pooled`, `?pooler=`) holds. Supabase's port 6543 is taken for one. For the rest: a connection that
the server itself has greeted is nobody else's. Behind a pooler of unknown mode a message is sent to a listening connection; in
transaction mode it never arrives.
"""

from __future__ import annotations

import logging
import uuid
from contextlib import ExitStack, closing, suppress
from time import monotonic

import psycopg
from billiard.process import current_process

from celery_jobqueue.broker.session import Session
from celery_jobqueue.broker.settings import Settings
from celery_jobqueue.broker.sql import Statement, statement
from celery_jobqueue.db.url import masked

__all__ = ["changes_hands", "prepares"]

logger = logging.getLogger(__name__)

#: Seconds that a notification may take; it takes a round trip, but the server may be busy.
_PATIENCE = 2.0
#: Server connections among which the one that listens is looked for; PgBouncer's pools have 20 unless told otherwise.
_MOST = 20

_OWN_PID = (Statement("", b"select pg_backend_pid()"), ())

_found: dict[str, bool] = {}
_told: set[str] = set()


def prepares(settings: Settings) -> bool | None:
    """Whether statements may be prepared, as Session wants to know it; None: where no pooler stands between."""
    return not settings.pooled if settings.mode_was_said or settings.pooled else None


def changes_hands(settings: Settings, session: Session) -> bool:
    """Whether the server connection behind this connected session may be another one after each transaction.

    Says so once per process when nobody told us. Raises psycopg.Error.
    """
    if settings.mode_was_said:
        return settings.pooled
    if settings.pooled:
        _tell(settings, "its port is 6543")
        return True
    if session.direct:
        return False
    if settings.conninfo not in _found:
        _found[settings.conninfo] = not _hears(settings)
    if _found[settings.conninfo]:
        _tell(settings, "a LISTEN through it hears nothing")
    return _found[settings.conninfo]


def _tell(settings: Settings, reason: str) -> None:
    # A worker's pool processes find it out for themselves, and their parent has said it.
    if settings.conninfo in _told or current_process().name != "MainProcess":
        return
    _told.add(settings.conninfo)
    logger.warning(
        "%s is taken for a pooler in transaction mode (%s): no LISTEN, no session locks, no prepared statements. Workers poll "
        "every %g s, and jobs of a killed worker wait for its heartbeat_timeout (%g s). To confirm and silence this, set "
        "broker_transport_options={'pooled': True}; False if it is none. Better for workers: the server's own port.",
        masked(settings.url), reason, settings.as_pooled().options.poll, settings.options.heartbeat_limit)


def _hears(settings: Settings) -> bool:
    """The LISTEN round trip, over two new connections."""
    channel = f"jq_{uuid.uuid4().hex}"
    with closing(_session(settings, settings.timeout)) as listener, closing(_session(settings, settings.timeout)) as speaker:
        _, [(listening,)] = listener.run((Statement("", f'LISTEN "{channel}"'.encode()), ()), _OWN_PID)
        speaker.run((statement("notify"), (channel,)))
        deadline = monotonic() + _PATIENCE
        while channel not in listener.notified:
            if (left := deadline - monotonic()) <= 0:
                break
            listener.wait(left)
            listener.on_readable()
        heard = channel in listener.notified
    if not heard:
        _unlisten(settings, channel, listening)
    return heard


def _unlisten(settings: Settings, channel: str, listening: str | None) -> None:
    """Nothing of ours shall stay on a connection that others use. PgBouncer lends the one that was given back last, so those
    that are none of it are kept until it turns up.
    """
    with suppress(psycopg.Error), ExitStack() as kept:
        for _ in range(_MOST):
            session = kept.enter_context(closing(_session(settings, _PATIENCE)))
            kept.enter_context(session.transaction())
            if session.run((Statement("", f'UNLISTEN "{channel}"'.encode()), ()), _OWN_PID)[1] == [(listening,)]:
                break


def _session(settings: Settings, timeout: float) -> Session:
    return Session(settings.conninfo, prepare=False, timeout=timeout, connect_timeout=settings.connect_timeout)
