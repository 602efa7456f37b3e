"""Flower as people see it: a real Flower, a real worker, a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.support.app import make_app
from tests.support.database import fresh_database, rows
from tests.support.flower import Flower, chromium, flower, watched_page
from tests.support.waiting import wait_until
from tests.support.workers import worker


@dataclass(frozen=True, slots=True)
class Site:
    """A running Flower, and the jobs it has seen: good, bad and running are task ids."""

    flower: Flower
    database_url: str
    worker: str
    good: str
    bad: str
    running: str
    screenshots: Path


@pytest.fixture(scope="module")
def site(server: str, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Flower beside a worker that has finished a job, failed one and runs one."""
    home = tmp_path_factory.mktemp("flower")
    with (fresh_database(server, template) as url, flower(url, home) as shown,
          worker(url, home, "tests.support.app", "-E") as running):
        app = make_app(url)
        mark = str(home / "mark")
        good, bad = app.tasks["t.add"].delay(20, 22), app.tasks["t.boom"].delay("the ink <b>ran</b> out")
        for number in range(8):
            app.tasks["t.add"].delay(number, y=1)
        made = Site(shown, url, running.name, good.id, bad.id, app.tasks["t.wait"].delay(mark).id, home)
        wait_until(lambda: sorted(set(shown.states().values())) == ["FAILURE", "STARTED", "SUCCESS"]
                   and len(shown.states()) == 11, "Flower knows every job")
        app.close()
        yield made


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture
def page(browser: Browser, site: Site) -> Iterator[Page]:
    with watched_page(browser, site.flower) as tab:
        yield tab


def details(page: Page) -> dict[str, str]:
    """The rows of a detail page."""
    names = page.locator("dl.detail-list dt").all_inner_texts()
    return dict(zip(names, page.locator("dl.detail-list dd").all_inner_texts(), strict=True))


@pytest.mark.parametrize("path", ["/", "/workers", "/tasks", "/api/workers", "/api/tasks"])
def test_without_credentials_nothing_is_shown(site: Site, path: str) -> None:
    status, body = site.flower.get(path, user=None)
    assert (status, body) == (401, "" if path.startswith("/api") else "Access denied")
    assert site.flower.get(path, user="somebody")[0] == 401
    assert site.flower.get(path)[0] == 200


def test_it_says_that_it_is_healthy(site: Site) -> None:
    assert site.flower.get("/healthcheck", user=None) == (200, "OK")
    status, metrics = site.flower.get("/metrics")
    assert status == 200
    assert f'flower_worker_online{{worker="{site.worker}"}} 1.0' in metrics
    assert f'flower_events_total{{task="t.boom",type="task-failed",worker="{site.worker}"}} 1.0' in metrics


def test_the_inspect_pages_api_answers(site: Site) -> None:
    # Flower waits a second for answers; a worker that is late, as on a busy machine, is missing until it is asked again.
    worker_info: dict[str, Any] = wait_until(
        lambda: site.flower.json("/api/workers?refresh=1").get(site.worker), "the worker has answered in time")
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
    wait_until(lambda: site.flower.states().get(task_id) == "STARTED", "Flower knows that it runs")
    page.goto(f"/task/{task_id}")
    page.get_by_role("button", name="Terminate").click()
    expect(page.locator("#toast-container")).to_contain_text(task_id)

    def row() -> dict[str, Any]:
        return rows(site.database_url, "select * from job_queue where task_id = %s", (task_id,))[0]

    wait_until(lambda: row()["status"] == "failed", "the job has ended")
    assert "terminated" in row()["error_message"]
    wait_until(lambda: site.flower.states()[task_id] == "REVOKED", "Flower knows that it was revoked")
