"""The application's API: order a certificate, follow one's jobs, fetch the file. Only one's own, and not without signing in."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import timedelta
from functools import lru_cache
from typing import Any

from anyio import to_thread
from sqlalchemy import Engine
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from celery_jobqueue.db.errors import InvalidJob
from tasks.certificates.issue import check_event_id
from tasks.certificates.storage import NoSuchFile, Storage, StorageError, storage_from_url
from tasks.service import JobQueueService
from tasks.web.doors import Doors
from tasks.web.feed import Feed
from tasks.web.jobs import Card, digest, events_of, file_of, job_of, jobs_of, unfinished
from tasks.web.options import WebOptions
from tasks.web.refusals import Refused

__all__ = ["Api"]

_LARGEST_ORDER = 16_384  # bytes
_LINK = timedelta(minutes=10)
_RETRY = "retry: 2000\n\n"  # milliseconds until a page that was cut off asks again


class Api:
    """The routes below /api."""

    def __init__(self, options: WebOptions, engine: Engine, doors: Doors, feed: Feed) -> None:
        self._options, self._engine, self._doors, self._feed = options, engine, doors, feed
        self.routes = [
            Route("/api/certificates", self.order, methods=["POST"]),
            Route("/api/events", self.events),
            Route("/api/jobs", self.jobs),
            Route("/api/jobs/stream", self.stream),
            Route("/api/jobs/{id}", self.job),
            Route("/api/jobs/{id}/file", self.file),
        ]

    async def order(self, request: Request) -> Response:
        """POST {"event_id", "recipient_name", "recipient_key"?, "expires_on"?}: 202, and where to look."""
        user = await self._doors.user(request)
        self._doors.same_origin(request)
        self._doors.may_order(user)
        data = await _order_of(request)
        job = await to_thread.run_sync(self._queue, user.id, data)
        self._feed.touch(user.id)
        return JSONResponse({"job": job, "message": "Processing in background…"}, 202, {"Location": job["links"]["self"]})

    def _queue(self, user_id: str, data: dict[str, Any]) -> Card:
        try:
            event = str(check_event_id(data.get("event_id")))
            # One answer whether there is such an event or not.
            if event not in {known["id"] for known in events_of(self._engine, user_id)}:
                raise Refused(403, f"you may not issue certificates for event {event}: only its organisers may", field="event_id")
            if unfinished(self._engine, user_id, self._options.unfinished_jobs) >= self._options.unfinished_jobs:
                raise Refused(429, f"you have {self._options.unfinished_jobs} jobs that are not finished: wait for some of them",
                              retry_after=10)
            task_id = JobQueueService().queue_certificate_generation(data, user_id)
        except InvalidJob as error:
            named = re.search(r"data\['(\w+)'\]|(event_id|recipient_name|recipient_key|expires_on)", str(error))
            raise Refused(422, str(error), field=named and (named[1] or named[2])) from error
        job = job_of(self._engine, user_id, task_id)
        assert job is not None, "a publish that returned is on disk"
        return job

    async def events(self, request: Request) -> Response:
        """The events that one may issue certificates for."""
        user = await self._doors.user(request)
        return _fresh(JSONResponse({"events": await to_thread.run_sync(events_of, self._engine, user.id)}))

    async def jobs(self, request: Request) -> Response:
        """One's newest jobs: for who cannot stream."""
        user = await self._doors.user(request)
        cards = await to_thread.run_sync(jobs_of, self._engine, user.id)
        tag = f'"{digest(cards)}"'
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers={"ETag": tag, "Cache-Control": "no-cache, private"})
        return JSONResponse({"jobs": cards}, headers={"ETag": tag, "Cache-Control": "no-cache, private"})

    async def job(self, request: Request) -> Response:
        """One of one's jobs. Somebody else's is answered like none."""
        user = await self._doors.user(request)
        found = await to_thread.run_sync(job_of, self._engine, user.id, request.path_params["id"])
        if found is None:
            raise Refused(404, "you have no such job")
        return _fresh(JSONResponse(found))

    async def stream(self, request: Request) -> Response:
        """Server-sent events: `jobs` with all there is, then `job` for each that changes. Reconnecting begins anew."""
        user = await self._doors.user(request)
        if self._feed.streams(user.id) >= self._options.streams or self._feed.streams() >= self._options.streams_in_all:
            raise Refused(429, "too many pages are open: this one has to ask from time to time", retry_after=30)
        stream = _stream(self._feed, user.id, request.headers.get("last-event-id"))
        return StreamingResponse(stream, media_type="text/event-stream",
                                 headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})

    async def file(self, request: Request) -> Response:
        """The file that one's job has made: a link to the storage, or the file itself where the storage has no links."""
        user = await self._doors.user(request)
        found = await to_thread.run_sync(file_of, self._engine, user.id, request.path_params["id"])
        if found is None:
            raise Refused(404, "this job has made no file, or it is not yours")
        try:
            return await to_thread.run_sync(_file, *found)
        except NoSuchFile as error:
            raise Refused(404, "the file is not there any more") from error
        except StorageError as error:
            raise Refused(503, "the storage does not answer: try again in a moment", retry_after=5) from error


async def _order_of(request: Request) -> dict[str, Any]:
    """The body, which has to be a small JSON object."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refused(415, "send application/json")  # what a form of another site cannot send
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _LARGEST_ORDER:
            raise Refused(413, f"an order has at most {_LARGEST_ORDER} bytes")
    try:
        data = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(400, "the body is no JSON") from error
    if not isinstance(data, dict):
        raise Refused(422, "send an object with event_id and recipient_name")
    return data


async def _stream(feed: Feed, user_id: str, last_seen: str | None) -> AsyncGenerator[str]:
    yield _RETRY
    shown: dict[str, Card] | None = None
    async with aclosing(feed.follow(user_id)) as looks:
        async for cards in looks:
            if cards is None:
                yield ": still here\n\n"
                continue
            now, tag = {card["id"]: card for card in cards}, digest(cards)
            if shown is None and tag == last_seen:
                yield ": nothing has changed\n\n"
            elif shown is None:
                yield _event("jobs", cards, tag)
            else:
                # Oldest first: a reader puts each new one on top. Only the last says what is known now.
                news = [card for card in reversed(cards) if shown.get(card["id"]) != card]
                for number, card in enumerate(news, start=1):
                    yield _event("job", card, tag if number == len(news) else None)
            shown = now


def _event(name: str, data: Any, tag: str | None) -> str:
    identity = f"id: {tag}\n" if tag else ""
    return f"event: {name}\n{identity}data: {json.dumps(data, ensure_ascii=False)}\n\n"


@lru_cache(maxsize=1)
def _storage() -> Storage:
    return storage_from_url()


def _file(key: str, name: str) -> Response:
    storage = _storage()
    link = storage.url(key, _LINK)
    if link.startswith(("https://", "http://")):
        return _fresh(RedirectResponse(link, 303))
    kind = "application/pdf" if name.endswith(".pdf") else "application/octet-stream"
    return _fresh(Response(storage.open(key), media_type=kind, headers={"Content-Disposition": f'inline; filename="{name}"'}))


def _fresh(response: Response) -> Response:
    response.headers["Cache-Control"] = "no-store"
    return response
