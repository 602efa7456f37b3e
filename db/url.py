"""One DATABASE_URL for every driver: psycopg, SQLAlchemy and kombu."""

from __future__ import annotations

import os
import re
from urllib.parse import parse_qsl, quote, urlencode

from psycopg.conninfo import conninfo_to_dict

from celery_jobqueue.db.errors import ConfigurationError

__all__ = ["database_url", "libpq_dsn", "looks_like_transaction_pooler", "masked", "names_pooler", "sqlalchemy_url"]

_SCHEMES = ("postgresql", "postgres")
_POOLERS = ("transaction", "session")
_SECRETS = re.compile(r"((?:^|[?&\s;])(?:password|sslpassword)=)[^&\s;]*", re.IGNORECASE)
_LOCATION = re.compile(r"[^:/@]*(:\d+)?/")
_ESCAPES = "in a user name or password write @ as %40, / as %2F, ? as %3F and % as %25"


def libpq_dsn(url: str) -> str:
    """The URL as libpq takes it: scheme `postgresql`, without our own `pooler` parameter.

    Several hosts and any libpq parameter are allowed. Raises ConfigurationError naming what is wrong.
    """
    _scheme, rest = _split(url)
    base, _, query = rest.partition("?")
    parameters = parse_qsl(query, keep_blank_values=True)
    if (pooler := dict(parameters).get("pooler", "session")) not in _POOLERS:
        raise ConfigurationError(f"pooler={pooler} in the database URL: use one of {', '.join(_POOLERS)}")
    pairs = [(key, value) for key, value in parameters if key != "pooler"]
    # libpq reads %20, not the + that urlencode writes by default.
    dsn = f"postgresql://{base}" + (f"?{urlencode(pairs, quote_via=quote)}" if pairs else "")
    # Where a password was not escaped libpq takes parts of it for a host, a port or a parameter and says them aloud.
    reason = _ESCAPES
    authority, _, path = base.partition("/")
    if "@" not in authority.partition("@")[2] + path + "".join(key for key, _value in pairs) and not _split_password(base, query):
        try:
            ports = str(conninfo_to_dict(dsn).get("port", "")).split(",")
        except Exception as error:
            reason = _ESCAPES if "percent-encoded" in str(error) else str(error).strip()
        else:
            if all(port == "" or (port.isdecimal() and 0 < int(port) < 65536) for port in ports):
                return dsn
            reason = f"the port must be a number from 1 to 65535; {_ESCAPES}"
    raise ConfigurationError(f"the database URL {masked(url)} cannot be read: {reason}")


def sqlalchemy_url(url: str) -> str:
    """The URL for SQLAlchemy's create_engine(), driver psycopg. Raises ConfigurationError."""
    rest = libpq_dsn(url).partition("://")[2]
    base, _, query = rest.partition("?")
    userinfo, at, location = base.rpartition("@")
    hosts, _, database = location.partition("/")
    if "," in hosts:
        # SQLAlchemy reads one host before the path and several as repeated host=name:port.
        pairs = [("host", host) for host in hosts.split(",")] + parse_qsl(query, keep_blank_values=True)
        return f"postgresql+psycopg://{userinfo}{at}/{database}?{urlencode(pairs, quote_via=quote)}"
    return f"postgresql+psycopg://{rest}"


def masked(url: str) -> str:
    """The URL with its passwords hidden, for people and logs. Never raises."""
    scheme, separator, rest = url.partition("://")
    if separator:
        base, mark, query = rest.partition("?")
        if _split_password(base, query):
            base, mark, query = rest, "", ""
        userinfo, at, location = base.rpartition("@")
        user, colon, _password = userinfo.partition(":")
        url = f"{scheme}://{user}{colon and ':**'}{at}{location}{mark}{query}"
    return _SECRETS.sub(r"\1**", url)


def looks_like_transaction_pooler(url: str) -> bool:
    """Whether connections probably pass a pooler in transaction mode, where LISTEN, session locks and prepared
    statements do not work: Supabase's port 6543, or `?pooler=transaction`; `?pooler=session` says that they do.
    """
    _, rest = _split(url)
    base, _, query = rest.partition("?")
    if names_pooler(url):
        return dict(parse_qsl(query))["pooler"] == "transaction"
    hosts = base.rpartition("@")[2].partition("/")[0]
    return any(host.endswith(":6543") for host in hosts.split(",")) or dict(parse_qsl(query)).get("port") == "6543"


def names_pooler(url: str) -> bool:
    """Whether the URL itself says what stands between: `?pooler=transaction`, `?pooler=session`."""
    return "pooler" in dict(parse_qsl(url.partition("?")[2]))


def database_url() -> str:
    """DATABASE_URL, or when it is unset the embedded PostgreSQL, which is started. Raises ConfigurationError."""
    url = os.environ.get("DATABASE_URL", "").strip()
    if url:
        libpq_dsn(url)
        return url
    from celery_jobqueue.db.embedded import ensure

    return ensure()


def _split(url: str) -> tuple[str, str]:
    scheme, separator, rest = url.partition("://")
    if not separator or scheme.partition("+")[0] not in _SCHEMES:
        raise ConfigurationError(
            f"the database URL {masked(url)!r} must begin with postgresql:// (such as postgresql://user:password@host:5432/db)")
    return scheme, rest


def _split_password(base: str, query: str) -> bool:
    """Whether the question mark between them was part of a password."""
    return "@" in query and "@" not in base and not _LOCATION.match(base)
