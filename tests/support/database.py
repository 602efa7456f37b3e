"""Databases for tests: one server for the session, a fresh copy of a migrated template for every test."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql


def sibling(url: str, database: str) -> str:
    """The URL of another database on the same server."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{database}"))


@contextmanager
def fresh_database(server: str, template: str | None = None, encoding: str = "UTF8") -> Iterator[str]:
    """URL of a new database, dropped afterwards whoever is still connected. encoding: only without a template."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(server, autocommit=True) as conn:
        statement = sql.SQL("create database {}").format(sql.Identifier(name))
        if template:
            statement += sql.SQL(" template {}").format(sql.Identifier(template))
        elif encoding != "UTF8":
            statement += sql.SQL(" template template0 locale 'C' encoding {}").format(sql.Literal(encoding))
        conn.execute(statement)
    try:
        yield sibling(server, name)
    finally:
        with psycopg.connect(server, autocommit=True) as conn:
            conn.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


def rows(url: str, query: str, params: Any = None) -> list[dict[str, Any]]:
    """The rows of a query as dictionaries."""
    with psycopg.connect(url, autocommit=True) as conn, conn.cursor(row_factory=psycopg.rows.dict_row) as cursor:
        cursor.execute(query, params)
        return cursor.fetchall() if cursor.description else []


def one(url: str, query: str, params: Any = None) -> Any:
    """The first column of the first row."""
    return next(iter(rows(url, query, params)[0].values()))
