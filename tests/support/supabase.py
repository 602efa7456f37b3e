"""A PostgreSQL cluster set up as Supabase's: API roles that get everything by default, an owner who is no superuser."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql

from celery_jobqueue.db import migrate
from tests.support.database import fresh_database, rows

PASSWORD = "secret"
#: Login roles: who they are to the queue.
PUBLISHER, WORKER, MONITOR, STRANGER, ENDUSER = "t_publisher", "t_worker", "t_monitor", "t_stranger", "authenticator"
_OWNER = "postgres"

_BEFORE = f"""
create role anon nologin noinherit;
create role authenticated nologin noinherit;
create role service_role nologin noinherit bypassrls;
create role {ENDUSER} login noinherit password '{PASSWORD}' in role anon, authenticated, service_role;
create role {_OWNER} login createrole createdb bypassrls password '{PASSWORD}' in role anon, authenticated, service_role;
"""
_LOGINS = "".join(f"create role {login} login password '{PASSWORD}'{member};\n" for login, member in (
    (PUBLISHER, " in role jobqueue_publisher"), (WORKER, " in role jobqueue_worker"),
    (MONITOR, " in role jobqueue_monitor"), (STRANGER, "")))
_DEFAULTS = "".join(f"alter default privileges for role {_OWNER} in schema public grant all on {kind} "
                    "to anon, authenticated, service_role;\n" for kind in ("tables", "functions", "sequences"))


def prepare(server: str) -> None:
    """Make the roles that Supabase has. Roles belong to the whole cluster, so it should be the caller's own."""
    rows(server, _BEFORE)


@contextmanager
def project(server: str) -> Iterator[str]:
    """A project's database, migrated by its owner; yields the superuser's URL."""
    with fresh_database(server) as url:
        name = sql.Identifier(urlsplit(url).path.lstrip("/"))
        with psycopg.connect(url, autocommit=True) as conn:
            conn.execute(sql.SQL("alter database {} owner to {}").format(name, sql.Identifier(_OWNER)))
            conn.execute(_DEFAULTS)
            conn.execute("grant usage on schema public to anon, authenticated, service_role")
            conn.execute(sql.SQL("create publication supabase_realtime; alter publication supabase_realtime owner to {}").format(
                sql.Identifier(_OWNER)))
        migrate.migrate(login(url, _OWNER), migrate.LINES)
        with psycopg.connect(url, autocommit=True) as conn:
            if conn.execute("select from pg_roles where rolname = %s", (STRANGER,)).fetchone() is None:
                conn.execute(_LOGINS)
        yield url


def login(url: str, role: str) -> str:
    """The URL for this role."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{role}:{PASSWORD}@{parts.hostname}:{parts.port}"))


@contextmanager
def request(url: str, role: str, claims: dict[str, Any] | None = None, sub: str | None = None) -> Iterator[
        psycopg.Connection[Any]]:
    """What PostgREST does for one request: take the role, then set the claims of the token (sub: as it did before v9)."""
    with psycopg.connect(login(url, ENDUSER)) as conn:
        conn.execute("select set_config('role', %s, true)", (role,))
        if claims is not None:
            conn.execute("select set_config('request.jwt.claims', %s, true)", (json.dumps(claims),))
        if sub is not None:
            conn.execute("select set_config('request.jwt.claim.sub', %s, true)", (sub,))
        yield conn
        conn.rollback()
