"""A real Flower, and browser pages on it that notice when something goes wrong."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright
from prometheus_client.parser import text_string_to_metric_families

from tests.support.database import one
from tests.support.waiting import wait_until
from tests.support.workers import ROOT

USER, PASSWORD = "admin", "not-so-secret"


@dataclass(frozen=True, slots=True)
class Flower:
    """A running Flower. address: host and port."""

    address: str
    log: Path

    def get(self, path: str, *, user: str | None = USER) -> tuple[int, str]:
        """Status and body of a page."""
        headers = {"Authorization": "Basic " + base64.b64encode(f"{user}:{PASSWORD}".encode()).decode()} if user else {}
        connection = http.client.HTTPConnection(self.address, timeout=15)
        with contextlib.closing(connection):
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            return response.status, response.read().decode()

    def json(self, path: str) -> Any:
        """The answer of an API."""
        status, body = self.get(path)
        assert status == 200, body
        return json.loads(body)

    def states(self) -> dict[str, str]:
        """The state of every task as Flower knows it."""
        return {task_id: task["state"] for task_id, task in self.json("/api/tasks").items()}

    def queue(self, name: str) -> dict[str, Any]:
        """A queue of /api/queues/length."""
        [found] = [queue for queue in self.json("/api/queues/length")["active_queues"] if queue["name"] == name]
        return dict(found)

    def metrics(self) -> dict[tuple[str, ...], float]:
        """Our gauges by name and labels: ("jobqueue_jobs", "celery", "pending")."""
        status, body = self.get("/metrics", user=None)
        assert status == 200, body
        return {(sample.name, *sample.labels.values()): sample.value for family in text_string_to_metric_families(body)
                for sample in family.samples if sample.name.startswith("jobqueue_")}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def flower(url: str, folder: Path, admin_url: str | None = None, *, events: bool = True, app: str = "tests.support.flower_app",
           **env: Any) -> Iterator[Flower]:
    """A Flower of the test application, stopped at the end.

    admin_url: a URL that may read everything, when Flower's own may not. events: wait until it captures them; False where it
    never will.
    """
    port = free_port()
    running = Flower(f"127.0.0.1:{port}", folder / f"flower-{port}.log")
    with running.log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "celery", "-A", app, "flower", "--address=127.0.0.1",
             f"--port={port}", f"--basic_auth={USER}:{PASSWORD}"],
            cwd=ROOT, stdout=file, stderr=file, stdin=subprocess.DEVNULL, start_new_session=True,
            env={**os.environ, "DATABASE_URL": url, **{key: str(value) for key, value in env.items()}})

    def serves() -> bool:
        assert process.poll() is None, f"Flower ended:\n{running.log.read_text()[-4000:]}"
        if events and not one(admin_url or url, "select count(*) from jobqueue.binding where exchange = 'celeryev'"):
            return False
        with contextlib.suppress(OSError):
            return running.get("/healthcheck")[0] == 200
        return False

    try:
        wait_until(serves, "Flower is there", 60)
        yield running
        process.terminate()
        assert process.wait(20) == 0, running.log.read_text()[-4000:]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """The system's browser, without a window."""
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield started
        started.close()


@contextlib.contextmanager
def watched_page(browser: Browser, site: Flower) -> Iterator[Page]:
    """A page that is logged in. At the end nothing may have gone wrong on it: no error in its console, no failed request."""
    context = browser.new_context(base_url=f"http://{site.address}", viewport={"width": 1280, "height": 800},
                                  http_credentials={"username": USER, "password": PASSWORD})
    context.set_default_timeout(20_000)
    tab = context.new_page()
    wrong: list[str] = []
    tab.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on("requestfailed", lambda request: wrong.append(f"{request.url}: {request.failure}")
           if request.failure != "net::ERR_ABORTED" else None)  # aborted: by our going to another page
    tab.on("response", lambda response: wrong.append(f"{response.url}: {response.status}") if response.status >= 400 else None)
    tab.goto("/")  # a browser that logs in on a page below sends its password for that folder only
    yield tab
    seen = list(wrong)  # what closing cuts off is no error
    context.close()
    assert not seen
