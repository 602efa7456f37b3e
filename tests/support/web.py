"""The application's web server, in a process of its own, and programs that talk to it."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page

from tests.support.flower import free_port
from tests.support.waiting import wait_until
from tests.support.workers import ROOT

#: Who may sign in, with their passwords.
USERS = {"organiser-1": "pass-1", "alice": "pass-a", "bob": "pass-b"}


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server said."""

    status: int
    headers: dict[str, str]
    text: str

    @property
    def json(self) -> Any:
        """The body."""
        return json.loads(self.text)


@dataclass
class Site:
    """A running web server."""

    port: int
    log: Path
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    def ask(self, path: str, user: str | None = None, *, method: str = "GET", data: Any = None, password: str | None = None,
            **headers: str) -> Answer:
        """One request. data: sent as JSON, or as it is when bytes. Underscores in names of headers are dashes."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)) as connection:
            body = data if data is None or isinstance(data, bytes) else json.dumps(data).encode()
            sent = {"Content-Type": "application/json"} if body is not None else {}
            sent |= {name.replace("_", "-"): value for name, value in headers.items()}
            if user is not None:
                sent["Authorization"] = credentials(user, password)
            connection.request(method, path, body, sent)
            answer = connection.getresponse()
            return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()},
                          answer.read().decode(errors="replace"))

    def order(self, user: str, event: str, name: Any, **more: Any) -> Answer:
        """POST /api/certificates."""
        return self.ask("/api/certificates", user, method="POST", data={"event_id": event, "recipient_name": name, **more})

    @contextlib.contextmanager
    def stream(self, user: str, last_event_id: str | None = None) -> Iterator[Stream]:
        """GET /api/jobs/stream."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)) as connection:
            headers = {"Authorization": credentials(user), **({"Last-Event-ID": last_event_id} if last_event_id else {})}
            connection.request("GET", "/api/jobs/stream", headers=headers)
            yield Stream(connection.getresponse())

    def stop(self) -> int:
        """Ask it to stop; returns its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)


class Stream:
    """Server-sent events."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.response = response
        self.status = response.status

    def next(self) -> tuple[str, str | None, Any]:
        """The next event's name, id and data; a comment is (":", None, its text). EOFError at the end."""
        name, identity, data = "message", None, None
        while line := self.response.readline().decode():
            field, _, value = line.rstrip("\n").partition(":")
            value = value.removeprefix(" ")
            if line == "\n":
                if data is not None:
                    return name, identity, json.loads(data)
            elif not field:
                return ":", None, value
            elif field == "event":
                name = value
            elif field == "id":
                identity = value
            elif field == "data":
                data = value
        raise EOFError


def credentials(user: str, password: str | None = None) -> str:
    """The header that signs this user in."""
    return "Basic " + base64.b64encode(f"{user}:{password or USERS.get(user, '')}".encode()).decode()


@contextlib.contextmanager
def site(url: str, folder: Path, *, port: int | None = None, **environment: str) -> Iterator[Site]:
    """The pages of this database, served until the end."""
    port = port or free_port()
    log = folder / f"web-{port}.log"
    with log.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "tasks.web", "--port", str(port)],
            cwd=ROOT, stdout=file, stderr=file, stdin=subprocess.DEVNULL, start_new_session=True, env={
                **os.environ, "DATABASE_URL": url, "STORAGE_URL": (folder / "files").as_uri(),
                "WEB_BASIC_AUTH": ",".join(f"{user}:{password}" for user, password in USERS.items()), **environment})
    running = Site(port, log, process)

    def serves() -> bool:
        assert process.poll() is None, f"the web server ended:\n{log.read_text()[-4000:]}"
        with contextlib.suppress(OSError):
            return running.ask("/health").status == 200
        return False

    try:
        wait_until(serves, "the web server answers", 60)
        yield running
        if process.poll() is None:
            assert running.stop() == 0, log.read_text()[-4000:]
        assert "Traceback" not in log.read_text(), log.read_text()[-8000:]
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(10)


@contextlib.contextmanager
def signed_in(browser: Browser, place: Site, user: str, tolerated: str = "\0") -> Iterator[Page]:
    """A page of this user's. At the end nothing may have gone wrong on it: no error in its console, nothing from elsewhere.

    tolerated: part of a message in the console that the test provokes.
    """
    context = browser.new_context(base_url=place.url, viewport={"width": 1180, "height": 760},
                                  http_credentials={"username": user, "password": USERS[user]})
    context.set_default_timeout(20_000)
    page = context.new_page()
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text)
            if message.type in ("error", "warning") and tolerated not in message.text else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith(place.url) else wrong.append(request.url))
    yield page
    seen = list(wrong)
    context.close()
    assert not seen
