"""The web application, put together."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles
from starlette.templating import Jinja2Templates
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from tasks.web.api import Api
from tasks.web.doors import Doors
from tasks.web.feed import Feed
from tasks.web.jobs import jobs_of, watch
from tasks.web.options import WebOptions
from tasks.web.pages import Pages
from tasks.web.refusals import Refused, refusal

__all__ = ["create_app"]

_HERE = Path(__file__).parent
_log = logging.getLogger(__name__)

# Nothing from elsewhere, nothing inline, in nobody's frame.
_HEADERS = {
    b"content-security-policy": b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
                                b"form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"same-origin",  # not no-referrer: that takes the Origin from one's own forms
    b"cross-origin-opener-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
    b"permissions-policy": b"camera=(), geolocation=(), microphone=()",
}


def create_app(options: WebOptions, url: str, engine: Engine) -> Starlette:
    """The ASGI application. url: the database's, for LISTEN; engine: for everything else.

    `app.state.feed.close()` ends the streams of a server that is to stop.
    """
    templates = Jinja2Templates(_HERE / "templates")
    doors = Doors(options)
    feed = Feed(url, partial(jobs_of, engine), partial(watch, engine))

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        async with feed.running():
            yield

    def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, Refused)
        return refusal(templates, request, error)

    def not_found(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = "There is nothing at this address." if error.status_code == 404 else error.detail
        return refusal(templates, request, Refused(error.status_code, message))

    def database_away(request: Request, error: Exception) -> Response:
        _log.warning("the database does not answer: %s", str(error).strip().splitlines()[0])
        return refusal(templates, request, Refused(503, "The database does not answer: try again in a moment.", retry_after=5))

    app = Starlette(
        routes=[*Api(options, engine, doors, feed).routes, *Pages(engine, doors, templates).routes,
                Mount("/static", StaticFiles(directory=_HERE / "static"))],
        lifespan=lifespan,
        middleware=[*([Middleware(ProxyHeadersMiddleware, trusted_hosts=options.proxies)] if options.proxies else []),
                    Middleware(_SafeHeaders), Middleware(TrustedHostMiddleware, allowed_hosts=list(options.hosts))],
        exception_handlers={Refused: refused, HTTPException: not_found, SQLAlchemyError: database_away})
    app.state.feed = feed
    return app


class _SafeHeaders:
    """Adds what tells browsers to trust nothing but this site."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_HEADERS.items()]
            await send(message)

        await self._app(scope, receive, with_headers if scope["type"] == "http" else send)
