"""What an application says about its broker: the URL and `broker_transport_options`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from celery_jobqueue.broker.options import Options
from celery_jobqueue.broker.priorities import check_scale
from celery_jobqueue.broker.register import SCHEMES
from celery_jobqueue.db.errors import ConfigurationError
from celery_jobqueue.db.url import libpq_dsn, looks_like_transaction_pooler, names_pooler

__all__ = ["Settings", "conninfos", "from_url", "read"]

_OPTIONS = {
    "poll_interval": "seconds between two looks into the queue when nothing wakes the worker",
    "pooled": "True behind a pooler in transaction mode: no LISTEN, no session locks, no prepared statements; None: find out",
    "heartbeat_interval": "seconds between two signs of life",
    "heartbeat_timeout": "seconds without a sign of life after which a worker's jobs are taken back",
    "keep_completed": "seconds (or a timedelta) that completed jobs stay in the table; None for ever",
    "keep_failed": "seconds (or a timedelta) that failed jobs stay in the table; None for ever",
    "connect_timeout": "seconds a connection attempt may take",
    "timeout": "seconds any answer of the server may take",
    "priority_scale": "jobs (1 first … 10 last), amqp (9 first) or redis (0 first)",
    "automatic_retries": "True: tasks that raise run again until max_attempts",
}
# kombu's and Celery's own options that reach a transport; they are not ours to judge.
_FOREIGN = frozenset({
    "max_retries", "interval_start", "interval_step", "interval_max", "confirm_publish", "queue_order_strategy",
    "polling_interval", "client_properties", "global_keyprefix", "sep", "priority_steps", "visibility_timeout",
    "errback", "body_encoding", "deadletter_queue", "retry_errors", "confirm_timeout", "callback", "on_revive",
})


@dataclass(frozen=True, slots=True)
class Settings:
    """A broker's settings, checked. Durations in seconds."""

    url: str
    conninfo: str
    #: Connections pass a pooler in transaction mode, as far as the URL and the options tell; see broker/pooling.py.
    pooled: bool = False
    #: That is the application's word, not a guess.
    mode_was_said: bool = False
    connect_timeout: int = 5
    timeout: float = 30.0
    priority_scale: str = "jobs"
    automatic_retries: bool = False
    options: Options = field(default_factory=Options)
    given: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def as_pooled(self) -> Settings:
        """The same behind a pooler in transaction mode."""
        return from_url(self.url, {**self.given, "pooled": True})


def read(client: Any) -> Settings:
    """The settings of a kombu connection. Raises ConfigurationError naming the option and the fix."""
    options = client.transport_options or {}
    if client.connect_timeout and "connect_timeout" not in options:  # Celery's broker_connection_timeout
        options = {**options, "connect_timeout": client.connect_timeout}
    return from_url(url_of(client), options)


def from_url(url: str, options: dict[str, Any]) -> Settings:
    """The settings of a URL with transport options. Raises ConfigurationError naming the option and the fix."""
    unknown = sorted(set(options) - set(_OPTIONS) - _FOREIGN)
    if unknown:
        raise ConfigurationError(
            f"broker_transport_options[{unknown[0]!r}] is not known; there are: {', '.join(sorted(_OPTIONS))}")
    pooled = _flag(options, "pooled", looks_like_transaction_pooler(url))
    said = options.get("pooled") is not None or names_pooler(url)
    heartbeat = _seconds(options, "heartbeat_interval", 15.0)
    limit = _seconds(options, "heartbeat_timeout", 75.0)
    if limit < 2 * heartbeat:
        raise ConfigurationError(
            f"broker_transport_options['heartbeat_timeout']={limit:g} must be at least twice heartbeat_interval "
            f"({heartbeat:g} s)")
    return Settings(
        url=url, conninfo=libpq_dsn(url), pooled=pooled, mode_was_said=said, given=dict(options),
        connect_timeout=max(2, round(_seconds(options, "connect_timeout", 5.0))),
        timeout=_seconds(options, "timeout", 30.0),
        priority_scale=check_scale(options.get("priority_scale", "jobs")),
        automatic_retries=_flag(options, "automatic_retries", False),
        options=Options(pooled=pooled, poll=_seconds(options, "poll_interval", 0.5 if pooled else 5.0),
                        heartbeat=heartbeat, heartbeat_limit=limit,
                        keep_completed=_kept(options, "keep_completed", Options().keep_completed),
                        keep_failed=_kept(options, "keep_failed", Options().keep_failed)),
    )


def conninfos(client: Any) -> list[str]:
    """Connection strings of a kombu connection and of everything it may fail over to."""
    urls = [str(url) for url in client.alt or () if str(url).startswith(tuple(f"{scheme}://" for scheme in SCHEMES))]
    return [libpq_dsn(url) for url in {url_of(client), *urls}]


def url_of(client: Any) -> str:
    """The URL of a kombu connection. Usually kombu hands it over whole; after a failover it has taken it apart."""
    hostname = client.hostname or ""
    if "://" in hostname:
        return str(hostname)
    from urllib.parse import quote

    user = quote(client.userid or "", safe="")
    password = f":{quote(client.password, safe='')}" if client.password else ""
    port = f":{client.port}" if client.port else ""
    database = (client.virtual_host or "").lstrip("/")
    return f"postgresql://{user}{password}{'@' if user else ''}{hostname}{port}/{database}"


def _flag(options: dict[str, Any], name: str, default: bool) -> bool:
    value = options.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):  # a text from the environment such as "false" would count as true
        raise ConfigurationError(f"broker_transport_options[{name!r}]={value!r} must be True or False")
    return value


def _kept(options: dict[str, Any], name: str, default: float | None) -> float | None:
    return None if options.get(name, default) is None else _seconds(options, name, default or 0.0)


def _seconds(options: dict[str, Any], name: str, default: float) -> float:
    value = options.get(name, default)
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ConfigurationError(f"broker_transport_options[{name!r}]={value!r} must be a number of seconds above 0")
    return float(value)
