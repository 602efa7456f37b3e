"""Attendees from a query of the application's own database."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import psycopg
from sqlalchemy import Engine

from tasks.bulk.attendees import Attendee, Attendees, Columns, columns_of
from tasks.bulk.errors import InvalidAttendees

__all__ = ["query_attendees"]


@contextmanager
def query_attendees(engine: Engine, query: str, *, columns: Mapping[str, str] | None = None) -> Iterator[Attendees]:
    """The attendees that a SELECT gives, read in pieces in a transaction that can change nothing; lines are row numbers.

    Raises InvalidAttendees when PostgreSQL refuses the query or no column is the name.
    """
    with engine.connect() as connection:
        raw = connection.connection.driver_connection
        assert isinstance(raw, psycopg.Connection)
        raw.execute("set transaction read only")
        with raw.cursor("attendees") as cursor:
            cursor.itersize = 1000
            try:
                cursor.execute(query.encode())
            except psycopg.Error as error:
                raise _refused(error) from error
            header = [column.name for column in cursor.description or ()]
            known = columns_of(header, columns or {}, "the query")
            yield Attendees("query", "a query", known, _attendees(cursor, known))


def _attendees(cursor: psycopg.ServerCursor[tuple[object, ...]], columns: Columns) -> Iterator[Attendee]:
    try:
        for line, cells in enumerate(cursor, 1):
            attendee = columns.attendee(line, ["" if cell is None else str(cell) for cell in cells])
            if attendee is not None:
                yield attendee
    except psycopg.Error as error:
        raise _refused(error) from error


def _refused(error: psycopg.Error) -> InvalidAttendees:
    return InvalidAttendees(f"the query: {str(error).partition(chr(10))[0]}")
