"""Pages for people: the application's own, the one that verifies a certificate, and signed links to local files."""

from __future__ import annotations

from datetime import date
from typing import Any
from urllib.parse import parse_qs, quote

from anyio import to_thread
from sqlalchemy import Engine, text
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.templating import Jinja2Templates

from celery_jobqueue.db.errors import ConfigurationError
from tasks.certificates.storage import LinkRefused, NoSuchFile, linked_file
from tasks.certificates.verification import Verification, name_matches, plain_serial, verify
from tasks.web.doors import Doors
from tasks.web.jobs import events_of
from tasks.web.refusals import Refused

__all__ = ["Pages"]

_LARGEST_NAME = 4096  # bytes of a form
# Nobody keeps it, and no search engine shows it.
_PRIVATE = {"Cache-Control": "no-store", "X-Robots-Tag": "noindex, nofollow"}
_REASONS = {"error": "It was issued in error.", "replaced": "Another certificate replaces it.",
            "withdrawn": "The organiser has withdrawn it."}


class Pages:
    """The routes that are no API."""

    def __init__(self, engine: Engine, doors: Doors, templates: Jinja2Templates) -> None:
        self._engine, self._doors, self._templates = engine, doors, templates
        self.routes = [
            Route("/", self.home),
            Route("/verify", self.ask),
            Route("/verify/{serial}", self.verify, methods=["GET", "POST"]),
            Route("/api/verify/{serial}", self.verify_for_programs),
            Route("/files/{key:path}", self.file),
            Route("/health", self.health),
        ]

    async def home(self, request: Request) -> Response:
        """The application's page: order certificates and follow them."""
        user = await self._doors.user(request)
        events = await to_thread.run_sync(events_of, self._engine, user.id)
        return self._templates.TemplateResponse(request, "home.html", {"user": user, "events": events},
                                                headers={"Cache-Control": "no-store"})

    async def ask(self, request: Request) -> Response:
        """A field for the serial, for who has no camera."""
        if given := request.query_params.get("serial", "").strip():
            return RedirectResponse(f"/verify/{quote(plain_serial(given) or given[:64], safe='')}", 303, _PRIVATE)
        return self._templates.TemplateResponse(request, "ask.html", headers=_PRIVATE)

    async def verify(self, request: Request) -> Response:
        """What there is to know of a serial; with a name (POST) whether it is the one on the certificate."""
        serial, matches, name = request.path_params["serial"], None, ""
        if request.method == "POST":
            self._doors.may_compare(request, plain_serial(serial) or "")
            name = await _name_of(request)
            matches = await to_thread.run_sync(name_matches, self._engine, serial, name)
        else:
            self._doors.may_verify(request)
        found = await to_thread.run_sync(verify, self._engine, serial)
        return self._templates.TemplateResponse(request, "verify.html", {
            "found": found, "serial": found.serial or serial[:64], "reason": _REASONS.get(found.reason or ""),
            "issued_on": _day(found.issued_on), "expires_on": _day(found.expires_on), "revoked_on": _day(found.revoked_on),
            "matches": matches, "name": name}, headers=_PRIVATE)

    async def verify_for_programs(self, request: Request) -> Response:
        """The same as JSON: the same fields for every serial, and status 200 for an unknown one too."""
        self._doors.may_verify(request)
        found = await to_thread.run_sync(verify, self._engine, request.path_params["serial"])
        return JSONResponse(_as_json(found), headers=_PRIVATE)

    async def file(self, request: Request) -> Response:
        """A file in the local folder, for who has a link to it that the storage has signed."""
        try:
            path = await to_thread.run_sync(linked_file, request.path_params["key"], dict(request.query_params))
        except (LinkRefused, ConfigurationError) as error:
            raise Refused(403, str(error) if isinstance(error, LinkRefused) else "this link is not valid") from error
        except (NoSuchFile, ValueError) as error:
            raise Refused(404, "the file is not there any more") from error
        return FileResponse(path, filename=path.name, content_disposition_type="inline", headers=_PRIVATE)

    async def health(self, _request: Request) -> Response:
        """Whether the database answers."""
        def look() -> None:
            with self._engine.connect() as connection:
                connection.execute(text("select 1"))

        await to_thread.run_sync(look)
        return PlainTextResponse("OK", headers={"Cache-Control": "no-store"})


async def _name_of(request: Request) -> str:
    """The field `name` of a small form."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _LARGEST_NAME:
            raise Refused(413, "A name is shorter than that.")
    fields = parse_qs(body.decode(errors="replace"), max_num_fields=5)
    return fields.get("name", [""])[0].strip()[:200]


def _day(day: date | None) -> str | None:
    return f"{day.day} {day:%B %Y}" if day else None


def _as_json(found: Verification) -> dict[str, Any]:
    return {"state": found.state, "serial": found.serial, "event": found.event, "organiser": found.organiser,
            "initials": found.initials, "issued_on": found.issued_on and found.issued_on.isoformat(),
            "expires_on": found.expires_on and found.expires_on.isoformat(),
            "revoked_on": found.revoked_on and found.revoked_on.isoformat(), "reason": found.reason}
