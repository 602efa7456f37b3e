"""Who sends a request. The application has its own users, so this is a hook with one way built in."""

from __future__ import annotations

import base64
import binascii
import hmac
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.requests import Request

from celery_jobqueue.db.errors import ConfigurationError

__all__ = ["Authenticate", "User", "anybody", "basic", "user_of"]


@dataclass(frozen=True, slots=True)
class User:
    """Somebody who is signed in. id: what stands in job_queue.user_id and event_organisers.user_id; name: what a page shows."""

    id: str
    name: str = ""


#: Returns None for a request of nobody. May be a coroutine, and should be one where it waits: the event loop calls it.
Authenticate = Callable[[Request], "User | Awaitable[User | None] | None"]


async def user_of(authenticate: Authenticate, request: Request) -> User | None:
    """Ask the hook."""
    found = authenticate(request)
    return await found if inspect.isawaitable(found) else found


def basic(users: str) -> Authenticate:
    """HTTP basic authentication: `user:password,user:password`. Behind TLS only, as everywhere. Raises ConfigurationError."""
    known: dict[str, bytes] = {}
    for number, entry in enumerate(users.split(","), start=1):
        name, separator, password = entry.strip().partition(":")
        if not separator or not name or not password:
            raise ConfigurationError(f"WEB_BASIC_AUTH: entry {number} is not user:password")
        known[name] = password.encode()

    def authenticate(request: Request) -> User | None:
        scheme, _, encoded = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "basic":
            return None
        try:
            name, _, password = base64.b64decode(encoded.strip(), validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return None
        expected = known.get(name)
        # An unknown user takes as long as a wrong password.
        right = hmac.compare_digest(password.encode(), expected if expected is not None else b"\0nobody")
        return User(name, name) if right and expected is not None else None

    return authenticate


def anybody(user: User) -> Authenticate:
    """Every request is this user's: for a demonstration on one's own machine."""
    return lambda _request: user
