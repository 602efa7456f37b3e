"""What a server says when it does not do the work, and what helps: waiting, another connection, or people.

A full disk, a statement_timeout, a deadlock, a serialization failure: the batch was rolled back and the connection is whole.
It is sent again on the same one, after a pause: connecting anew would not help, and Celery does it at once and for ever.
"""

from __future__ import annotations

import logging
import random
import re
from time import monotonic

import psycopg
from psycopg import errors

from celery_jobqueue.db.errors import ConfigurationError, SchemaError

__all__ = ["LOST_STATEMENTS", "Trouble", "by_a_row", "explained", "first_line", "for_good", "healed_anew", "warn"]

logger = logging.getLogger(__name__)

#: Pauses in seconds. The first is for deadlocks and their like, which a moment heals; a full disk is looked at every 5 s.
_FIRST, _LONGEST = 0.05, 5.0
#: Seconds between two log lines about the same trouble.
_QUIET = 30.0
#: Seconds. A connection that is younger was made anew for an internal error already, or may have been: it was not the connection.
_YOUNG = 60.0
#: Names of prepared statements that nobody knows any more, or that somebody else has used.
LOST_STATEMENTS = (errors.InvalidSqlStatementName, errors.DuplicatePreparedStatement)
_NO_SCHEMA = (errors.UndefinedTable, errors.UndefinedFunction, errors.UndefinedColumn, errors.InvalidSchemaName)

#: A line of an error's context that names a function of users, whatever its language ("PL/pgSQL function public.veto() line 1 at
#: RAISE", "PL/Python function \"veto\"") and the server's. Ours are in the schema jobqueue.
_IN_USERS_FUNCTION = re.compile(r"^PL/(?!.*\bjobqueue\.)", re.MULTILINE)
#: One that names the row whose lock could not be had. A lock of the whole table has none, nor has who stands second in line for
#: a row: both are waited out.
_AT_A_ROW = re.compile(r"^while .*\btuple\b", re.MULTILINE)
#: Classes of errors that psycopg counts as the server's, and that a function may raise just as well: a limit of the program, an
#: object that is not ready (currval() of an untouched sequence), a trigger that changes what it must not, a function's own.
_OF_FUNCTIONS = ("54", "55", "27", "38", "39")


class Trouble:
    """The pauses of one connection."""

    def __init__(self) -> None:
        #: Nothing is sent before this moment, in monotonic seconds.
        self.until = 0.0
        self._pause = 0.0
        self._since = 0.0
        self._logged_at = 0.0

    def met(self, error: psycopg.Error, when: str = f"every {_LONGEST:g} s or less") -> None:
        """The server refused a batch: wait, longer each time. when: how it is tried again, for the log."""
        now = self.pause()
        if now - self._logged_at > _QUIET or not self._logged_at:
            self._logged_at = now
            warn(error, when)

    def pause(self) -> float:
        """Wait, longer each time. Returns the moment."""
        now = monotonic()
        if not self._pause:
            self._since = now
        self._pause = min(_LONGEST, max(_FIRST, 2 * self._pause))
        self.until = now + self._pause * random.uniform(0.8, 1.2)
        return now

    def over(self) -> None:
        """A batch got through."""
        if self._pause:
            if self._logged_at >= self._since and self._pause >= 1:
                logger.warning("PostgreSQL does the queue's work again, after %.0f s", monotonic() - self._since)
            self._pause = self.until = 0.0


def warn(error: Exception, when: str) -> None:
    """Say in the log that something waits for the server. when: how it is tried again."""
    logger.warning("PostgreSQL refuses the queue's work (%s: %s). Nothing is lost; it is tried again %s",
                   type(error).__name__, first_line(error), when)


def by_a_row(error: psycopg.Error) -> bool:
    """Whether it was a row that the server did not take: because of something that users have put up, because somebody holds
    its lock, because it is too large for an index of theirs, or because of something in it that PostgreSQL itself stumbles over.
    """
    context = error.diag.context or ""
    if _is_internal(error):
        return True
    if isinstance(error, errors.LockNotAvailable):
        return bool(_AT_A_ROW.search(context))
    if isinstance(error, errors.ProgramLimitExceeded):
        return True
    if isinstance(error, psycopg.OperationalError) and not (error.sqlstate or "").startswith(_OF_FUNCTIONS):
        return False
    return isinstance(error, (psycopg.IntegrityError, psycopg.DataError)) or bool(_IN_USERS_FUNCTION.search(context))


def for_good(error: psycopg.Error) -> bool:
    """Whether the row will be refused again: trying once more soon is in vain. Who holds its lock may let it go."""
    return by_a_row(error) and not isinstance(error, errors.LockNotAvailable)


def healed_anew(error: psycopg.Error, *, prepared: bool, age: float) -> str:
    """What is wrong with the connection that another one would not have; empty when that would not help.

    prepared: an earlier batch has prepared the statement. age: for how many seconds the connection has been open.
    """
    if isinstance(error, errors.ReadOnlySqlTransaction):  # a primary that became a standby: others take what is to be written
        return "the server takes no writes"
    if _IN_USERS_FUNCTION.search(error.diag.context or ""):
        return ""
    if isinstance(error, LOST_STATEMENTS):
        return "prepared statements get lost between here and PostgreSQL"
    if isinstance(error, errors.FeatureNotSupported) and prepared:  # "cached plan must not change result type"
        return "a prepared statement is older than the table or function that it uses"
    if _is_internal(error) and age > _YOUNG:
        return "PostgreSQL speaks of an internal error"
    return ""


def _is_internal(error: psycopg.Error) -> bool:
    return (error.sqlstate or "").startswith("XX")


def explained(error: psycopg.Error) -> Exception:
    """The error in our words where we know better."""
    if isinstance(error, errors.InsufficientPrivilege) and not by_a_row(error):
        return ConfigurationError(
            f"{first_line(error)}: the database role that the URL names may not do this. An administrator gives it what it "
            "needs: `grant jobqueue_worker to` it for workers, `grant jobqueue_publisher to` it for whoever only sends jobs, "
            "beats and Flower (docs/security.md; db/roles.sql makes these roles)")
    if isinstance(error, _NO_SCHEMA):
        return SchemaError(f"the job queue's schema is missing, or is not the one that this code knows ({first_line(error)}): "
                           "run `jobqueue migrate`, or upgrade celery-jobqueue")
    return error


def first_line(error: Exception) -> str:
    """What the server said, without the details and the context that follow."""
    return str(error).partition("\n")[0]
