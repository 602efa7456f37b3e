"""kombu's failover, for URLs that libpq reads.

`Connection.switch()` takes an alternate URL apart by itself, whatever the transport says of URLs, and passes every query
parameter on as a keyword that does not exist (`?sslmode=…` is a TypeError). For our schemes the URL stays whole.
"""

from __future__ import annotations

import contextlib
from functools import wraps
from typing import Any
from urllib.parse import urlsplit

from kombu import Connection

from celery_jobqueue.broker.register import SCHEMES

__all__ = ["install"]


def install() -> None:
    """Teach kombu's connections, once per process."""
    if not hasattr(Connection.switch, "__wrapped__"):
        Connection.switch = _keeping_urls_whole(Connection.switch)
        Connection._init_params = _knowing_the_port(Connection._init_params)


def _keeping_urls_whole(switch: Any) -> Any:
    @wraps(switch)
    def switched(self: Any, conn_str: str) -> None:
        scheme = _scheme(conn_str)
        if scheme is None:
            switch(self, conn_str)
            return
        self.close()
        self.declared_entities.clear()
        self._closed = False
        own = {"hostname": conn_str, "transport": scheme, "port": None, "userid": None, "password": None}
        self._init_params(**{**self._initial_params, **own})

    return switched


def _knowing_the_port(init_params: Any) -> Any:
    @wraps(init_params)
    def known(self: Any, *, hostname: str | None = None, port: int | None = None, **others: Any) -> None:
        if port is None and hostname and _scheme(hostname):
            with contextlib.suppress(ValueError):  # several hosts, which are libpq's business
                port = urlsplit(hostname).port
        init_params(self, hostname=hostname, port=port, **others)

    return known


def _scheme(url: str) -> str | None:
    scheme, separator, _ = url.partition("://")
    return scheme if separator and scheme in SCHEMES else None
