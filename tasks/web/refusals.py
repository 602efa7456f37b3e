"""Answers that are not what was asked for: JSON for programs, a page for people."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.templating import Jinja2Templates

from celery_jobqueue.db.errors import JobQueueError

__all__ = ["Refused", "refusal"]

_TITLES = {401: "Please sign in", 403: "Not allowed", 404: "Not found", 413: "Too large", 429: "Too many requests",
           503: "Not available right now"}


class Refused(JobQueueError):
    """An HTTP answer. field: which of the request's is wrong; retry_after: seconds; sign_in: make the browser ask."""

    def __init__(self, status: int, message: str, *, field: str | None = None, retry_after: int | None = None,
                 sign_in: bool = False) -> None:
        super().__init__(message)
        self.status, self.message, self.field, self.retry_after, self.sign_in = status, message, field, retry_after, sign_in


def refusal(templates: Jinja2Templates, request: Request, refused: Refused) -> Response:
    """The answer as the client wants it."""
    headers = {"Cache-Control": "no-store"}
    if refused.retry_after is not None:
        headers["Retry-After"] = str(refused.retry_after)
    if refused.sign_in:
        headers["WWW-Authenticate"] = 'Basic realm="certificates", charset="UTF-8"'
    if request.url.path.startswith("/api/"):
        error = {"message": refused.message, "field": refused.field}
        return JSONResponse({"error": error}, refused.status, headers)
    return templates.TemplateResponse(request, "message.html", {
        "title": _TITLES.get(refused.status, "Something went wrong"), "message": refused.message}, refused.status, headers)
