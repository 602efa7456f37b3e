"""Flower's Broker page, /api/queues/length and /metrics: the numbers are the table's, and cheap."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest
from celery import Celery
from playwright.sync_api import Browser, Page, expect

from tests.support.app import make_app
from tests.support.database import fresh_database, one, rows
from tests.support.flower import Flower, chromium, flower, watched_page
from tests.support.waiting import wait_until
from tests.support.workers import Worker, worker

COLUMNS = ["Queue", "Messages", "Unacked", "Ready", "Consumers", "Idle since"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("flower")


@pytest.fixture(scope="module")
def url(server: str, template: str) -> Iterator[str]:
    with fresh_database(server, template) as made:
        yield made


@pytest.fixture(scope="module")
def site(url: str, home: Path) -> Iterator[Flower]:
    with flower(url, home) as running:
        yield running


@pytest.fixture(scope="module")
def running(url: str, home: Path) -> Iterator[Worker]:
    """A worker of the queues `celery` and `quick`."""
    with worker(url, home, "tests.support.app", "-Q", "celery,quick") as started:
        yield started


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[Celery]:
    app = make_app(url)
    yield app
    app.backend.result_consumer.stop()
    app.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture
def page(browser: Browser, site: Flower) -> Iterator[Page]:
    with watched_page(browser, site) as tab:
        yield tab


def shown(page: Page, queue: str) -> list[str]:
    """A queue's line in the table, without its name."""
    [line] = [cells for row in page.locator("#queue-table tbody tr").all()
              if (cells := row.locator("td").all_inner_texts())[0] == queue]
    return line[1:]


def insert_jobs(url: str, queue: str, number: int, **columns: str) -> None:
    """Many jobs in one statement; columns are SQL expressions."""
    names, values = "".join(f", {name}" for name in columns), "".join(f", {value}" for value in columns.values())
    rows(url, f"insert into job_queue (id, queue, task_name{names}) "
              f"select jobqueue.new_id(), %s, 't.add'{values} from generate_series(1, %s)", (queue, number))


@pytest.mark.needs_chromium
def test_the_page_shows_what_is_in_the_table(url: str, site: Flower, running: Worker, client: Celery, page: Page,
                                             home: Path) -> None:
    mark = home / "page"
    client.tasks["t.wait"].delay(str(mark))
    done = client.tasks["t.add"].apply_async((1, 2), queue="quick")
    assert done.get(timeout=20) == 3
    for _ in range(3):
        client.tasks["t.add"].apply_async((1, 2), queue="reports")
    for _ in range(2):
        client.tasks["t.add"].apply_async((1, 2), queue="reports", countdown=3600)
    wait_until(mark.exists, "the job runs")
    page.goto("/broker")
    assert page.locator("#queue-table th").all_text_contents() == COLUMNS
    finished_at = one(url, "select finished_at from job_queue where task_id = %s", (done.id,))
    assert shown(page, "reports") == ["5", "0", "3", "0", "—"]
    assert shown(page, "celery") == ["1", "1", "0", "1", "—"]
    assert shown(page, "quick") == ["0", "0", "0", "1", str(finished_at.astimezone(UTC).replace(microsecond=0))]
    expect(page.locator(".broker-url")).to_contain_text("postgresql://jobqueue:**@127.0.0.1")
    page.screenshot(path=home / "broker.png")
    Path(f"{mark}.go").touch()
    wait_until(lambda: site.queue("celery")["messages_unacknowledged"] == 0, "the job is done")
    page.reload()
    assert shown(page, "celery")[:4] == ["0", "0", "0", "1"]
    idle_since = datetime.fromisoformat(shown(page, "celery")[4])
    assert 0 <= (datetime.now(UTC) - idle_since).total_seconds() < 30


@pytest.mark.needs_chromium
def test_a_count_that_stopped_says_so(url: str, site: Flower, page: Page) -> None:
    insert_jobs(url, "many", 10_001)
    insert_jobs(url, "later", 10_001, run_at="now() + interval '1 day'")
    page.goto("/broker")
    assert shown(page, "many") == ["≥10000", "0", "≥10000", "0", "—"]
    assert shown(page, "later")[:3] == ["≥10000", "0", "0"]
    many = site.queue("many")
    assert (many["messages"], many["messages_ready"], many["capped"]) == (10_000, 10_000, True)
    later = site.queue("later")
    assert (later["messages"], later["messages_ready"], later["messages_scheduled"], later["capped"]) == (10_000, 0, 10_000, True)
    assert site.metrics()["jobqueue_ready_jobs", "many"] == 10_000
    assert site.metrics()["jobqueue_scheduled_jobs", "later"] == 10_000


def test_the_api_knows_queues_that_only_the_database_knows(url: str, site: Flower, running: Worker) -> None:
    assert site.get("/api/queues/length", user=None)[0] == 401
    one(url, "select enqueue_job('t.add', queue => 'from sql')")
    assert site.queue("from sql") == {
        "name": "from sql", "messages": 1, "messages_ready": 1, "messages_unacknowledged": 0, "consumers": 0,
        "idle_since": None, "messages_scheduled": 0, "capped": False}
    # Empty again, never declared, nobody consumes it: its finished job is all that is left.
    rows(url, "update job_queue set status = 'completed' where queue = 'from sql'")
    empty = site.queue("from sql")
    assert (empty["messages"], empty["idle_since"][:3]) == (0, "202")
    assert not [queue for queue in site.json("/api/queues/length")["active_queues"] if "celeryev" in queue["name"]]


def test_the_gauges_are_the_tables(url: str, site: Flower, running: Worker, client: Celery, home: Path) -> None:
    mark = home / "gauges"
    client.tasks["t.wait"].apply_async((str(mark),), queue="celery")
    insert_jobs(url, "gauged", 4, run_at="now() - interval '90 seconds'")
    insert_jobs(url, "gauged", 2, run_at="now() + interval '1 day'", priority="1")
    failed = {"status": "'failed'", "created_at": "now() - interval '3 hours'"}
    insert_jobs(url, "gauged", 3, finished_at="now() - interval '59 minutes'", **failed)
    insert_jobs(url, "gauged", 5, finished_at="now() - interval '61 minutes'", **failed)
    wait_until(mark.exists, "the job runs")
    gauges = site.metrics()
    of_queue = {key[0].removeprefix("jobqueue_") + "".join(f" {label}" for label in key[2:]): value
                for key, value in gauges.items() if key[1:2] == ("gauged",)}
    assert 90 <= of_queue.pop("oldest_pending_seconds") < 150
    assert of_queue == {"jobs pending": 6, "jobs processing": 0, "ready_jobs": 4, "scheduled_jobs": 2, "reserved_jobs": 0,
                        "consumers": 0, "failed_last_hour": 3}
    assert gauges["jobqueue_jobs", "celery", "processing"] == 1
    assert gauges["jobqueue_consumers", "celery"] == 1
    assert gauges[("jobqueue_up",)] == 1
    Path(f"{mark}.go").touch()
    assert "flower_worker_online" in site.get("/metrics")[1], "Flower's own are still there"


def test_a_killed_worker_consumes_nothing_any_more(url: str, site: Flower, home: Path) -> None:
    """Although nobody is left who would take its registration away."""
    with worker(url, home, "tests.support.app", "-Q", "alone") as lonely:
        wait_until(lambda: site.queue("alone")["consumers"] == 1, "it consumes")
        lonely.stop(signal.SIGKILL)
        wait_until(lambda: site.queue("alone")["consumers"] == 0, "it is gone", 5)
        assert one(url, "select count(*) from jobqueue.worker where 'alone' = any (queues)") == 1


def test_a_database_that_is_gone_and_comes_back(server: str, template: str, tmp_path: Path) -> None:
    with fresh_database(server, template) as url, flower(url, tmp_path) as site:
        insert_jobs(url, "kept", 2)
        assert site.queue("kept")["messages"] == 2
        name = psycopg.conninfo.conninfo_to_dict(url)["dbname"]
        rows(server, f"alter database {name} allow_connections false")
        rows(server, "select pg_terminate_backend(pid) from pg_stat_activity where datname = %s", (name,))
        status, body = site.get("/api/queues/length")
        assert status == 503
        assert body.startswith("The job queue's database does not tell: connection failed: ")
        assert body.endswith(f'database "{name}" is not currently accepting connections')
        status, body = site.get("/broker")
        assert status == 200
        assert "No queue data is available." in body
        assert site.metrics() == {("jobqueue_up",): 0}
        assert site.get("/healthcheck") == (200, "OK")
        rows(server, f"alter database {name} allow_connections true")
        assert site.queue("kept")["messages"] == 2
        assert site.metrics()["jobqueue_ready_jobs", "kept"] == 2
