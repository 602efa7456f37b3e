"""What Flower's buttons do to workers and jobs. Flower itself may only what publishers may: no more is needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest
from celery import Celery
from playwright.sync_api import Browser, Page, expect

from tests.support.app import make_app
from tests.support.database import fresh_database, one, rows
from tests.support.flower import Flower, chromium, flower, watched_page
from tests.support.waiting import wait_until
from tests.support.workers import Worker, worker

pytestmark = pytest.mark.needs_chromium

#: A worker that is silent for longer than a second is taken for dead.
QUICK = '{"heartbeat_interval": 0.3, "heartbeat_timeout": 1}'


@dataclass(frozen=True, slots=True)
class Stack:
    """A Flower, a worker, and a client with all rights."""

    url: str
    flower: Flower
    worker: Worker
    client: Celery
    home: Path

    def processes(self) -> int:
        """How many processes the worker's pool has."""
        answer = self.client.control.inspect([self.worker.name], timeout=10, limit=1).stats()
        return len(answer[self.worker.name]["pool"]["processes"])

    def status(self, task_id: str) -> str:
        """The status of a task's row."""
        return str(one(self.url, "select status from job_queue where task_id = %s", (task_id,)))


@pytest.fixture(scope="module")
def stack(server: str, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    home = tmp_path_factory.mktemp("control")
    with ExitStack() as running:
        url = running.enter_context(fresh_database(server, template))
        rows(url, "create role flower_publisher login password 'fl0wer' in role jobqueue_publisher")
        running.callback(rows, server, "drop role flower_publisher")
        parts = urlsplit(url)
        limited = urlunsplit(parts._replace(netloc=f"flower_publisher:fl0wer@{parts.hostname}:{parts.port}"))
        site = running.enter_context(flower(limited, home, url))
        employed = running.enter_context(worker(url, home, "tests.support.app", "-E"))
        client = make_app(url)
        running.callback(client.close)
        running.callback(client.backend.result_consumer.stop)
        yield Stack(url, site, employed, client, home)
        assert "permission denied" not in site.log.read_text()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture
def page(browser: Browser, stack: Stack) -> Iterator[Page]:
    with watched_page(browser, stack.flower) as tab:
        yield tab


def open_worker(page: Page, stack: Stack, tab: str, name: str | None = None, queues: set[str] | None = None) -> None:
    """A tab of a worker's page, as soon as Flower knows the worker, and that it consumes these queues."""
    name = name or stack.worker.name

    def known() -> bool:
        # A refresh joins an inspection that is under way, so the first answer may be of a moment ago.
        info = stack.flower.json("/api/workers?refresh=1").get(name, {})
        return {"stats", "registered", "active_queues"} <= set(info) and (
            queues is None or {queue["name"] for queue in info["active_queues"]} == queues)

    wait_until(known, f"Flower knows {name}")
    page.goto(f"/worker/{name}")
    page.locator(f"#worker-tab-{tab}").click()
    expect(page.locator(f"#tab-{tab}")).to_have_css("opacity", "1")


def says(page: Page, text: str) -> None:
    """Flower reports this success."""
    toast = page.locator("#toast-container .toast.text-bg-success").filter(has_text=text)
    expect(toast).to_be_visible()


def stays(stack: Stack, task_id: str) -> None:
    """The job runs on with its worker, for longer than a silent one is believed to live and the next look for such."""
    since = one(stack.url, "select clock_timestamp()")
    wait_until(lambda: one(stack.url, "select clock_timestamp() - %s > interval '3.5 seconds'", (since,)), "time has passed")
    assert rows(stack.url, "select status, attempts from job_queue where task_id = %s", (task_id,)) == [
        {"status": "processing", "attempts": 1}]


def test_the_pool_grows_and_shrinks(page: Page, stack: Stack) -> None:
    marks = [stack.home / f"grown{number}" for number in range(4)]
    results = [stack.client.tasks["t.wait"].delay(str(mark)) for mark in marks]
    wait_until(lambda: sum(mark.exists() for mark in marks) == 2, "as many run as it has processes")
    open_worker(page, stack, "pool")
    page.locator("#pool-size").fill("2")
    page.get_by_role("button", name="Grow").click()
    says(page, f"Growing '{stack.worker.name}' worker's pool by 2")
    page.screenshot(path=stack.home / "pool.png")
    wait_until(lambda: all(mark.exists() for mark in marks), "all of them run")
    for mark in marks:
        Path(f"{mark}.go").touch()
    assert [result.get(timeout=20) for result in results] == ["went"] * 4
    page.get_by_role("button", name="Shrink").click()
    says(page, f"Shrinking '{stack.worker.name}' worker's pool by 2")
    wait_until(lambda: stack.processes() == 2, "two are left")
    assert stack.client.tasks["t.add"].delay(1, 2).get(timeout=20) == 3


def test_a_consumer_is_added_and_cancelled(page: Page, stack: Stack) -> None:
    open_worker(page, stack, "queues")
    page.get_by_placeholder("New consumer").fill("extra")
    page.locator("#worker-add-consumer").click()
    says(page, "add consumer extra")
    assert stack.client.tasks["t.add"].apply_async((2, 2), queue="extra").get(timeout=20) == 4
    wait_until(lambda: stack.flower.queue("extra")["consumers"] == 1, "the Broker page counts it")
    page.goto("/broker")
    assert page.locator("#queue-table tr", has_text="extra").locator("td").all_inner_texts()[4] == "1"

    open_worker(page, stack, "queues", queues={"celery", "extra"})
    line = page.locator("#worker-queues tr", has_text="extra")
    expect(line).to_have_count(1)
    line.get_by_role("button", name="Cancel Consumer").click()
    says(page, "no longer consuming from extra")
    wait_until(lambda: stack.flower.queue("extra")["consumers"] == 0, "nobody consumes it")
    waiting = stack.client.tasks["t.add"].apply_async((2, 3), queue="extra")
    assert stack.client.tasks["t.add"].delay(1, 1).get(timeout=20) == 2, "the worker goes on with its other queue"
    assert stack.status(waiting.id) == "pending"
    assert stack.flower.queue("extra")["messages_ready"] == 1
    open_worker(page, stack, "queues", queues={"celery"})
    expect(page.locator("#worker-queues tr")).to_have_count(1)


def test_jobs_of_a_worker_without_consumers_stay_with_it(page: Page, stack: Stack) -> None:
    """Its last consumer is cancelled while a job runs."""
    with worker(stack.url, stack.home, "tests.support.tuned_app", "-E", "-Q", "only", TEST_OPTIONS=QUICK) as single:
        mark = stack.home / "only"
        running = stack.client.tasks["t.wait"].apply_async((str(mark),), queue="only")
        wait_until(mark.exists, "the job runs")
        open_worker(page, stack, "queues", single.name)
        page.locator("#worker-queues").get_by_role("button", name="Cancel Consumer").click()
        says(page, "no longer consuming from only")
        wait_until(lambda: stack.flower.queue("only")["consumers"] == 0, "nobody consumes it", 5)
        stays(stack, running.id)
        Path(f"{mark}.go").touch()
        assert running.get(timeout=20) == "went"
        assert one(stack.url, "select attempts from job_queue where task_id = %s", (running.id,)) == 1


def test_a_task_is_limited(page: Page, stack: Stack) -> None:
    open_worker(page, stack, "limits")
    line = page.locator("#limits-table tr", has_text="t.record")
    line.get_by_placeholder("Rate").fill("7")
    line.locator("[id^=task-rate-limit]").click()
    says(page, "new rate limit set successfully")
    line = page.locator("#limits-table tr", has_text="t.progress")
    line.get_by_placeholder("Seconds").fill("1")
    line.get_by_role("button", name="Hard").click()
    says(page, "time limits set successfully")  # Celery's workers note it and go on as before, with every broker
    page.screenshot(path=stack.home / "limits.png")
    registered = stack.client.control.inspect([stack.worker.name], timeout=10, limit=1).registered("rate_limit")
    assert "t.record [rate_limit=7]" in registered[stack.worker.name]


def test_a_job_that_waits_in_a_worker_is_revoked(page: Page, stack: Stack) -> None:
    with worker(stack.url, stack.home, "tests.support.app", "-E", "-Q", "narrow", "-c", "1", "--prefetch-multiplier=4") as narrow:
        mark = stack.home / "narrow"
        running = stack.client.tasks["t.wait"].apply_async((str(mark),), queue="narrow")
        wait_until(mark.exists, "the first job runs")
        waiting = [stack.client.tasks["t.add"].apply_async((n, n), queue="narrow") for n in range(3)]
        wait_until(lambda: {stack.flower.states().get(result.id) for result in waiting} == {"RECEIVED"}, "they are received")
        assert stack.flower.queue("narrow")["messages_unacknowledged"] == 4
        # The first behind the running one is in the pool's pipe already.
        page.goto(f"/task/{waiting[2].id}")
        page.get_by_role("button", name="Revoke").click()
        says(page, f"Revoked '{waiting[2].id}'")
        wait_until(lambda: f"Tasks flagged as revoked: {waiting[2].id}" in narrow.text, "the worker has heard of it")
        Path(f"{mark}.go").touch()
        assert [result.get(timeout=20) for result in (running, *waiting[:2])] == ["went", 0, 2]
        wait_until(lambda: stack.status(waiting[2].id) == "failed", "it is discarded")
        row = rows(stack.url, "select error_message, state from job_queue where task_id = %s", (waiting[2].id,))[0]
        assert row == {"error_message": "revoked", "state": "REVOKED"}
        wait_until(lambda: stack.flower.states()[waiting[2].id] == "REVOKED", "Flower knows")
        assert stack.flower.json(f"/api/task/result/{waiting[1].id}") == {
            "task-id": waiting[1].id, "state": "SUCCESS", "result": 2}
        assert stack.flower.json(f"/api/task/result/{waiting[2].id}")["state"] == "REVOKED"


def test_a_worker_is_shut_down(page: Page, stack: Stack) -> None:
    """It finishes what it runs first, and nobody takes that away meanwhile."""
    with worker(stack.url, stack.home, "tests.support.tuned_app", "-E", "-Q", "leaving", TEST_OPTIONS=QUICK) as leaving:
        mark = stack.home / "leaving"
        running = stack.client.tasks["t.wait"].apply_async((str(mark),), queue="leaving")
        wait_until(mark.exists, "the job runs")
        open_worker(page, stack, "pool", leaving.name)
        page.get_by_role("button", name="Actions").click()
        page.get_by_role("button", name="Shut Down").click()
        says(page, "Shutting down!")
        stays(stack, running.id)
        Path(f"{mark}.go").touch()
        assert leaving.process.wait(20) == 0
        assert stack.status(running.id) == "completed"
        assert stack.flower.queue("leaving")["consumers"] == 0
        assert one(stack.url, "select count(*) from jobqueue.worker where name = %s", (leaving.name,)) == 0
        page.goto("/workers")
        expect(page.locator("#workers-table tbody tr", has_text=leaving.name)).to_contain_text("Offline")


def test_no_page_shows_a_password(stack: Stack) -> None:
    """Of the worker's connection, and of Flower's own."""
    good, bad = stack.client.tasks["t.add"].delay(1, 2), stack.client.tasks["t.boom"].delay("oh")
    wait_until(lambda: stack.flower.states().get(bad.id) == "FAILURE", "Flower knows")
    wait_until(lambda: "conf" in stack.flower.json("/api/workers?refresh=1").get(stack.worker.name, {}), "its settings")
    pages = ["/", "/workers?json=1", f"/worker/{stack.worker.name}", "/tasks", f"/task/{good.id}", f"/task/{bad.id}", "/broker",
             "/api/workers?refresh=1", "/api/tasks", f"/api/task/info/{bad.id}", f"/api/task/result/{bad.id}", "/api/task/types",
             "/api/queues/length", "/metrics", "/healthcheck"]
    texts = {path: stack.flower.get(path) for path in pages}
    assert {path: status for path, (status, _) in texts.items() if status != 200} == {}
    assert "result_backend" in texts[f"/worker/{stack.worker.name}"][1], "the worker's settings are on it"
    texts |= {"Flower's log": (0, stack.flower.log.read_text()), "the worker's log": (0, stack.worker.text)}
    secrets = (str(urlsplit(stack.url).password), "fl0wer")
    assert all(len(secret) > 5 for secret in secrets)
    assert [where for where, (_, text) in texts.items() for secret in secrets if secret in text] == []
