"""Flower as people see it: a real Flower, a real worker, a real browser."""

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

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.support.app import make_app
from tests.support.database import fresh_database, one, rows
from tests.support.waiting import wait_until
from tests.support.workers import ROOT, worker

USER, PASSWORD = "admin", "not-so-secret"


@dataclass(frozen=True, slots=True)
class Site:
    """A running Flower, and the jobs it has seen: good, bad and running are task ids."""

    address: str
    database_url: str
    worker: str
    good: str
    bad: str
    running: str
    screenshots: Path

    def get(self, path: str, *, user: str | None = USER) -> tuple[int, str]:
        """Status and body of a page."""
        headers = {"Authorization": "Basic " + base64.b64encode(f"{user}:{PASSWORD}".encode()).decode()} if user else {}
        connection = http.client.HTTPConnection(self.address, timeout=10)
        with contextlib.closing(connection):
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            return response.status, response.read().decode()

    def states(self) -> dict[str, str]:
        """The state of every task as Flower knows it."""
        status, body = self.get("/api/tasks")
        assert status == 200, body
        return {task_id: task["state"] for task_id, task in json.loads(body).items()}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def flower(database_url: str, log: Path) -> Iterator[str]:
    """Host and port of a Flower that captures events, stopped at the end."""
    port = free_port()
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "celery", "-A", "tests.support.app", "flower", "--address=127.0.0.1",
             f"--port={port}", f"--basic_auth={USER}:{PASSWORD}"],
            cwd=ROOT, stdout=file, stderr=file, stdin=subprocess.DEVNULL, start_new_session=True,
            env={**os.environ, "DATABASE_URL": database_url})

    def captures() -> bool:
        assert process.poll() is None, f"Flower ended:\n{log.read_text()[-4000:]}"
        return bool(one(database_url, "select count(*) from jobqueue.binding where exchange = 'celeryev'"))

    try:
        wait_until(captures, "Flower captures events", 60)
        yield f"127.0.0.1:{port}"
        process.terminate()
        assert process.wait(20) == 0, log.read_text()[-4000:]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


@pytest.fixture(scope="module")
def site(server: str, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Flower beside a worker that has finished a job, failed one and runs one."""
    home = tmp_path_factory.mktemp("flower")
    with (fresh_database(server, template) as url, flower(url, home / "flower.log") as address,
          worker(url, home, "tests.support.app", "-E") as running):
        app = make_app(url)
        mark = str(home / "mark")
        good, bad = app.tasks["t.add"].delay(20, 22), app.tasks["t.boom"].delay("the ink <b>ran</b> out")
        for number in range(8):
            app.tasks["t.add"].delay(number, y=1)
        made = Site(address, url, running.name, good.id, bad.id, app.tasks["t.wait"].delay(mark).id, home)
        wait_until(lambda: sorted(set(made.states().values())) == ["FAILURE", "STARTED", "SUCCESS"]
                   and len(made.states()) == 11, "Flower knows every job")
        app.close()
        yield made


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Browser, site: Site) -> Iterator[Page]:
    """A browser page that is logged in. At the end nothing may have gone wrong on it."""
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
    yield tab
    seen = list(wrong)  # what closing cuts off is no error
    context.close()
    assert not seen


def details(page: Page) -> dict[str, str]:
    """The rows of a detail page."""
    names = page.locator("dl.detail-list dt").all_inner_texts()
    return dict(zip(names, page.locator("dl.detail-list dd").all_inner_texts(), strict=True))


@pytest.mark.parametrize("path", ["/", "/workers", "/tasks", "/api/workers", "/api/tasks"])
def test_without_credentials_nothing_is_shown(site: Site, path: str) -> None:
    status, body = site.get(path, user=None)
    assert (status, body) == (401, "" if path.startswith("/api") else "Access denied")
    assert site.get(path, user="somebody")[0] == 401
    assert site.get(path)[0] == 200


def test_it_says_that_it_is_healthy(site: Site) -> None:
    assert site.get("/healthcheck", user=None) == (200, "OK")
    status, metrics = site.get("/metrics")
    assert status == 200
    assert f'flower_worker_online{{worker="{site.worker}"}} 1.0' in metrics
    assert f'flower_events_total{{task="t.boom",type="task-failed",worker="{site.worker}"}} 1.0' in metrics


def test_the_inspect_pages_api_answers(site: Site) -> None:
    status, body = site.get("/api/workers?refresh=1")
    assert status == 200
    worker_info: dict[str, Any] = json.loads(body)[site.worker]
    assert worker_info["active_queues"][0]["name"] == "celery"
    assert {"t.add", "t.boom"} <= {name.split(" ")[0] for name in worker_info["registered"]}
    assert worker_info["stats"]["pool"]["max-concurrency"] == 2


@pytest.mark.needs_chromium
def test_the_workers_page(site: Site, page: Page) -> None:
    page.goto("/workers")
    row = page.locator("#workers-table tbody tr")
    expect(row).to_have_count(1)
    expect(row).to_contain_text("Online")
    expect(row.locator("a.worker-name-link")).to_have_attribute("title", site.worker)
    expect(page.locator("#workers-online")).to_have_text("1")
    expect(page.locator("#workers-active")).to_have_text("1", timeout=15_000)
    expect(page.locator("#workers-succeeded")).to_have_text("9")
    expect(page.locator("#workers-failed")).to_have_text("1")
    page.screenshot(path=site.screenshots / "workers.png")


@pytest.mark.needs_chromium
def test_the_tasks_page(site: Site, page: Page) -> None:
    page.goto("/tasks")
    lines = page.locator("#tasks-table tbody tr")
    expect(lines.filter(has_text="t.boom")).to_contain_text("FAILURE")
    expect(lines.filter(has_text=site.running)).to_contain_text("STARTED")
    expect(lines.filter(has_text="t.add").filter(has_text="SUCCESS")).to_have_count(9)
    expect(lines.filter(has_text=site.good)).to_contain_text(site.worker)
    page.screenshot(path=site.screenshots / "tasks.png")
    page.locator("button[data-task-state=FAILURE]").click()
    expect(lines).to_have_count(1)
    expect(lines).to_contain_text("t.boom")


@pytest.mark.needs_chromium
def test_a_finished_tasks_page(site: Site, page: Page) -> None:
    page.goto(f"/task/{site.good}")
    shown = details(page)
    assert (shown["Name"], shown["Status"]) == ("t.add", "SUCCESS")
    assert (shown["Arguments"], shown["Keyword arguments"], shown["Result"]) == ("(20, 22)", "{}", "42")
    assert shown["Worker"] == site.worker
    assert {"Received", "Started", "Succeeded", "Runtime"} <= set(shown)
    page.screenshot(path=site.screenshots / "task.png", full_page=True)


@pytest.mark.needs_chromium
def test_a_failed_tasks_page(site: Site, page: Page) -> None:
    page.goto(f"/task/{site.bad}")
    shown = details(page)
    assert (shown["Name"], shown["Status"]) == ("t.boom", "FAILURE")
    assert shown["Arguments"] == "('the ink <b>ran</b> out',)"
    assert shown["Exception"] == "ValueError('the ink <b>ran</b> out')"
    assert "ValueError: the ink <b>ran</b> out" in shown["Traceback"]
    assert "in boom" in shown["Traceback"]
    page.screenshot(path=site.screenshots / "failed.png", full_page=True)


@pytest.mark.needs_chromium
def test_a_workers_page_shows_no_password(site: Site, page: Page) -> None:
    page.goto(f"/worker/{site.worker}")
    page.locator("#worker-tab-broker").click()
    broker = page.locator("#tab-broker")
    expect(broker).to_contain_text("postgresql://jobqueue:**@127.0.0.1")
    expect(broker).to_have_css("opacity", "1")
    page.screenshot(path=site.screenshots / "worker.png", full_page=True)
    password = site.database_url.partition("@")[0].rpartition(":")[2]
    assert len(password) > 10
    assert password not in page.content()


@pytest.mark.needs_chromium
def test_a_running_job_is_terminated_from_its_page(site: Site, page: Page, tmp_path: Path) -> None:
    app = make_app(site.database_url)
    mark = tmp_path / "mark"
    task_id = app.tasks["t.wait"].delay(str(mark)).id
    app.close()
    wait_until(lambda: site.states().get(task_id) == "STARTED", "Flower knows that it runs")
    page.goto("/", wait_until="networkidle")  # a browser that logs in on a page below sends its password for that folder only
    page.goto(f"/task/{task_id}")
    page.get_by_role("button", name="Terminate").click()
    expect(page.locator("#toast-container")).to_contain_text(task_id)

    def row() -> dict[str, Any]:
        return rows(site.database_url, "select * from job_queue where task_id = %s", (task_id,))[0]

    wait_until(lambda: row()["status"] == "failed", "the job has ended")
    assert "terminated" in row()["error_message"]
    wait_until(lambda: site.states()[task_id] == "REVOKED", "Flower knows that it was revoked")
