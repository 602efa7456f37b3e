"""Numbered SQL files are the only source of the schema; this runs them, and writes them as one text to paste.

A *line* is a sub-folder of `db/schema`: `queue` is what the broker needs, `certificates` what this repository's own
application needs. `jobqueue.migration` records what was applied, whichever way it was applied.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple

import psycopg

from celery_jobqueue.db import needed
from celery_jobqueue.db.errors import SchemaError
from celery_jobqueue.db.url import libpq_dsn

__all__ = ["LINES", "Migration", "Status", "bundle", "migrate", "migrations", "status"]

LINES = ("queue", "certificates")
_LOCK = 7001  # pg_advisory_xact_lock(_LOCK, 0): one migration at a time; (_LOCK, 1) is the rescue of dead workers' jobs
_TAG = "$mig$"
_FORBIDDEN = re.compile(r"^\s*(begin|commit|rollback|start\s+transaction)\s*;|\bconcurrently\b", re.IGNORECASE | re.MULTILINE)


class Migration(NamedTuple):
    """One numbered file. `sha256` is of its text with Unix line ends, so a checkout on Windows is no edit."""

    line: str
    version: int
    name: str
    sql: str
    sha256: str


class Status(NamedTuple):
    """What of a line stands in a database."""

    line: str
    applied: int
    newest: int

    @property
    def missing(self) -> int:
        """Migrations still to be applied; negative when the database is ahead of this code."""
        return self.newest - self.applied


@lru_cache
def migrations(line: str) -> tuple[Migration, ...]:
    """The line's files in order. Raises SchemaError for gaps and for statements a migration must not hold."""
    return checked(line, [(file.name, file.read_text(encoding="utf-8")) for file in needed.files(line)])


def checked(line: str, files: Sequence[tuple[str, str]]) -> tuple[Migration, ...]:
    """The migrations in these (file name, text) pairs, checked. Raises SchemaError."""
    found: list[Migration] = []
    for expected, (file, text) in enumerate(files, start=1):
        match = needed.FILE.match(file)
        if match is None or int(match[1]) != expected:
            raise SchemaError(f"db/schema/{line}/{file}: expected number {expected:04d}, migrations are numbered without gaps")
        sql = text.replace("\r\n", "\n")
        bare = re.sub(r"--[^\n]*", "", sql)
        if _TAG in sql or _FORBIDDEN.search(bare):
            raise SchemaError(f"db/schema/{line}/{file}: no transaction statements, no CONCURRENTLY, no {_TAG}")
        found.append(Migration(line, expected, match[2], sql, hashlib.sha256(sql.encode()).hexdigest()))
    return tuple(found)


def migrate(database: str | psycopg.Connection[Any], lines: Sequence[str] = ("queue",),
            notice: Callable[[str], None] | None = None) -> list[Migration]:
    """Bring the lines up to date in one transaction; returns what was applied, nothing when all was there.

    `notice` is called with what the migrations have to say, such as a role that could not be created.
    Raises SchemaError when the server is too old, when the database's encoding is not UTF8, when an applied file was edited
    since, or when the database is newer than this code; psycopg.Error when the server refuses.
    """
    applied: list[Migration] = []
    with _connection(database) as conn, _notices(conn, notice), conn.transaction(), conn.cursor() as cursor:
        needed.check_server(conn.info.server_version, conn.info.parameter_status("server_encoding"))
        for statement in _prologue():
            cursor.execute(statement)
        for line in lines:
            done = _ledger(cursor, line)
            wanted = migrations(line)
            _compare(line, wanted, done)
            for migration in wanted[len(done):]:
                cursor.execute(migration.sql)
                cursor.execute("insert into jobqueue.migration (line, version, name, sha256) values (%s, %s, %s, %s)",
                               (line, migration.version, migration.name, migration.sha256))
                applied.append(migration)
    return applied


def status(database: str | psycopg.Connection[Any]) -> list[Status]:
    """How far each line is in this database. Raises psycopg.Error."""
    with _connection(database) as conn, conn.transaction(), conn.cursor() as cursor:
        cursor.execute("select to_regclass('jobqueue.migration') is not null")
        row = cursor.fetchone()
        there = bool(row and row[0])
        return [Status(line, len(_ledger(cursor, line)) if there else 0, needed.newest(line)) for line in LINES]


def bundle(line: str) -> str:
    """The line as one text for an SQL editor. Pasting it twice changes nothing; over an older version it upgrades."""
    parts = [_HEADER.format(line=line), "\n".join(f"{statement};" for statement in _prologue())]
    parts += [
        f"""
-- {migration.version:04d} {migration.name}
do $bundle$
begin
    if not exists (select from jobqueue.migration where line = '{line}' and version = {migration.version}) then
        execute {_TAG}
{migration.sql.rstrip()}
{_TAG};
        insert into jobqueue.migration (line, version, name, sha256)
        values ('{line}', {migration.version}, '{migration.name}', '{migration.sha256}');
    end if;
end $bundle$;
"""  # noqa: S608  (line and versions are ours)
        for migration in migrations(line)
    ]
    return "begin;\n".join(["".join(parts[:1]), "".join(parts[1:])]) + "\ncommit;\n"


_HEADER = """\
-- Generated from db/schema/{line} by `jobqueue sql`; do not edit, a test compares it.
-- Paste into an SQL editor (Supabase, psql, pgAdmin). Safe to paste again; over an older version it upgrades.
"""


def _prologue() -> tuple[str, ...]:
    return (
        f"select pg_advisory_xact_lock({_LOCK}, 0)",
        "create schema if not exists jobqueue",
        """create table if not exists jobqueue.migration (
    line       text        not null,
    version    integer     not null,
    name       text        not null,
    sha256     text        not null,
    applied_at timestamptz default now() not null,
    primary key (line, version)
)""",
        "alter table jobqueue.migration enable row level security",
        "revoke all on schema jobqueue from public",
        "revoke all on jobqueue.migration from public",
    )


def _ledger(cursor: psycopg.Cursor[Any], line: str) -> list[tuple[int, str, str]]:
    cursor.execute("select version, name, sha256 from jobqueue.migration where line = %s order by version", (line,))
    return list(cursor.fetchall())


def _compare(line: str, wanted: Sequence[Migration], done: Sequence[tuple[int, str, str]]) -> None:
    if len(done) > len(wanted):
        raise SchemaError(
            f"the database's {line} schema is version {len(done)}, newer than this code ({len(wanted)}): upgrade celery-jobqueue")
    for migration, (version, name, sha256) in zip(wanted, done, strict=False):
        if (migration.version, migration.sha256) != (version, sha256):
            raise SchemaError(
                f"db/schema/{line}/{version:04d}_{name}.sql was edited after it was applied: restore it and add a new migration")


@contextmanager
def _connection(database: str | psycopg.Connection[Any]) -> Iterator[psycopg.Connection[Any]]:
    if isinstance(database, str):
        # prepare_threshold=None: migrations also pass through poolers in transaction mode.
        with psycopg.connect(libpq_dsn(database), prepare_threshold=None, connect_timeout=10,
                             client_encoding="UTF8") as conn:  # whatever the role or PGCLIENTENCODING say
            yield conn
    else:
        yield database


@contextmanager
def _notices(conn: psycopg.Connection[Any], tell: Callable[[str], None] | None) -> Iterator[None]:
    def handle(diagnostic: psycopg.errors.Diagnostic) -> None:
        # RAISE NOTICE has this code; PostgreSQL's own "already exists, skipping" has others.
        if tell is not None and diagnostic.sqlstate == "00000" and diagnostic.message_primary:
            tell(diagnostic.message_primary)

    conn.add_notice_handler(handle)
    try:
        yield
    finally:
        conn.remove_notice_handler(handle)
