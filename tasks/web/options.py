"""What an operator may set, read from the environment and checked at the start."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import import_module

from celery_jobqueue.db.errors import ConfigurationError
from tasks.web.auth import Authenticate, basic

__all__ = ["WebOptions"]


@dataclass(frozen=True, slots=True)
class WebOptions:
    """Limits are per web process: with four processes a client may do four times as much.

    authenticate: who sends a request; see tasks.web.auth. ask_for_password: 401 makes a browser ask for one.
    proxies: addresses and networks (comma separated) whose X-Forwarded-For is believed; empty: nobody's, the peer is the client.
    hosts: names in the Host header that are answered.
    """

    authenticate: Authenticate
    ask_for_password: bool = False
    proxies: str = ""
    hosts: tuple[str, ...] = ("*",)
    unfinished_jobs: int = 100  # of one user; more have to wait
    orders_per_minute: int = 60  # of one user
    streams: int = 4  # of one user: a browser has six connections to a host, and two are left for everything else
    streams_in_all: int = 2000
    verifications_per_minute: int = 30  # of one client
    failures_per_minute: int = 10  # wrong passwords of one client

    @classmethod
    def from_environment(cls) -> WebOptions:
        """WEB_AUTHENTICATE or WEB_BASIC_AUTH, WEB_TRUSTED_PROXIES, WEB_HOSTS. Raises ConfigurationError naming the fix."""
        hook = os.environ.get("WEB_AUTHENTICATE", "").strip()
        users = os.environ.get("WEB_BASIC_AUTH", "").strip()
        if bool(hook) == bool(users):
            raise ConfigurationError(f"{'two ways' if hook else 'no way'} to sign in: {_HOW}")
        hosts = tuple(host.strip() for host in os.environ.get("WEB_HOSTS", "*").split(",") if host.strip())
        return cls(authenticate=_load(hook) if hook else basic(users), ask_for_password=not hook, hosts=hosts or ("*",),
                   proxies=os.environ.get("WEB_TRUSTED_PROXIES", "").strip())


_HOW = ("set WEB_AUTHENTICATE=module:function (a function of the request that returns a tasks.web.User or None) or "
        "WEB_BASIC_AUTH=user:password,user:password, and not both; to look around: python -m tasks.web --demo")


def _load(hook: str) -> Authenticate:
    module, separator, name = hook.partition(":")
    try:
        found = getattr(import_module(module), name) if separator else None
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(f"WEB_AUTHENTICATE={hook} cannot be loaded: {error}") from error
    if not callable(found):
        raise ConfigurationError(f"WEB_AUTHENTICATE={hook}: write module:function")
    authenticate: Authenticate = found
    return authenticate
