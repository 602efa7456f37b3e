"""The first words with a server: whether it can be worked with, and how."""

from __future__ import annotations

import logging

import psycopg

from celery_jobqueue.broker.pooling import changes_hands
from celery_jobqueue.broker.session import Session
from celery_jobqueue.broker.settings import Settings
from celery_jobqueue.broker.sql import statement
from celery_jobqueue.broker.trouble import explained
from celery_jobqueue.db.errors import SchemaError
from celery_jobqueue.db.needed import check_server, newest
from celery_jobqueue.db.url import masked

__all__ = ["meet"]

logger = logging.getLogger(__name__)

_told_of_newer: set[str] = set()


def meet(session: Session, settings: Settings) -> Settings:
    """Connect and see that jobs can live there. Returns the settings that hold behind what was found.

    Raises psycopg.OperationalError when trying again may help (no server, a standby), SchemaError and
    ConfigurationError when it will not.
    """
    session.connect()
    where = masked(settings.url)
    check_server(session.server_version, session.server_encoding, where)
    if session.read_only:
        raise psycopg.OperationalError(
            f"{where} takes no writes, as a standby does: promote it, or let the URL name all hosts (…@host1,host2/…); the one "
            "that takes writes is found")
    _check_schema(session, where)
    if changes_hands(settings, session) and not settings.pooled:
        settings = settings.as_pooled()
    session.allow_prepare(not settings.pooled)
    return settings


def _check_schema(session: Session, where: str) -> None:
    try:
        [rows] = session.run((statement("schema_version"), ()))
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
        rows = [(None,)]
    except psycopg.ProgrammingError as error:
        raise explained(error) from error
    have, need = int(rows[0][0] or 0), newest("queue")
    if have < need:
        what = "is missing" if not have else f"is version {have}, this code needs {need}"
        raise SchemaError(f"the job queue's schema {what} in {where}: run `jobqueue migrate`")
    if have > need and where not in _told_of_newer:
        # While a deployment is under way the schema is ahead of the workers that are still to be replaced.
        _told_of_newer.add(where)
        logger.warning("the job queue's schema in %s is version %d, newer than this code (%d): upgrade celery-jobqueue. It goes "
                       "on as long as the schema still has what it needs", where, have, need)
