"""Parameters and rows as they travel: text in UTF-8, and None for null."""

from __future__ import annotations

from typing import TypeAlias

import psycopg
from psycopg import pq

__all__ = ["Row", "encoded", "quoted", "rows_of"]

Row: TypeAlias = tuple[str | None, ...]


def encoded(text: str) -> bytes:
    """The text as a parameter. Raises psycopg.DataError for what PostgreSQL's text cannot hold."""
    if "\0" in text:  # libpq would take the text as ended here
        raise psycopg.DataError(f"{text[:100]!r} holds a NUL character, which PostgreSQL's text cannot")
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise psycopg.DataError(f"{text[:100]!r} holds half a character, which PostgreSQL's text cannot") from error


def quoted(value: str | None) -> str:
    """The text as an element of an array literal."""
    return "NULL" if value is None else '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def rows_of(result: pq.abc.PGresult) -> list[Row]:
    """The rows of a result in text format."""
    columns = range(result.nfields)
    # By a list: the tuple of a generator is resized at its end, and Python keeps 2,000 old ones of each size for nobody: 0.4 MiB.
    return [
        tuple([None if (value := result.get_value(row, column)) is None else value.decode() for column in columns])
        for row in range(result.ntuples)
    ]
