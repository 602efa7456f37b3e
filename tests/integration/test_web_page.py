"""The user's click, in a real browser: queued, processing, and then the certificate or the reason why there is none."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import zxingcpp
from playwright.sync_api import Browser, Locator, Page, Route, expect

from tests.support.certificates import classic, image_of, text_of
from tests.support.database import fresh_database, one, rows
from tests.support.flower import chromium, free_port
from tests.support.issuing import USER, add_event, certificates_of
from tests.support.waiting import wait_until
from tests.support.web import Site, signed_in, site
from tests.support.workers import worker

pytestmark = pytest.mark.needs_chromium


@dataclass(frozen=True)
class Office:
    """A database, the pages on it, a worker that serves it, and an event."""

    url: str
    web: Site
    event: str
    folder: Path


@pytest.fixture(scope="module")
def office(server: str, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    home = tmp_path_factory.mktemp("office")
    with fresh_database(server, template) as url, site(url, home) as web:
        event = add_event(url, classic(verify_url=""), name="A Day of <b>Queues</b> & “Quotes”")
        with worker(url, home, "tasks", STORAGE_URL=(home / "files").as_uri(), VERIFY_URL=f"{web.url}/verify/{{serial}}"):
            yield Office(url, web, event, home)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture
def page(browser: Browser, office: Office) -> Iterator[Page]:
    """The organiser's page, with an empty list."""
    rows(office.url, "delete from job_queue")
    with signed_in(browser, office.web, USER) as page:
        page.goto("/")
        yield page


def generate(page: Page, name: str) -> Locator:
    """Click; the job's entry in the list."""
    page.get_by_label("Name on the certificate").fill(name)
    page.get_by_role("button", name="Generate certificate").click()
    return page.locator("#jobs li").filter(has_text=name)


def test_from_the_click_to_the_certificate_and_to_the_page_that_verifies_it(office: Office, page: Page) -> None:
    said: list[str] = []
    page.expose_function("heard", lambda text: said.append(text))
    page.evaluate("new MutationObserver(() => heard(document.getElementById('announcement').textContent))"
                  ".observe(document.getElementById('announcement'), { childList: true, characterData: true, subtree: true })")
    expect(page.get_by_role("status")).to_have_attribute("aria-live", "polite")
    entry = generate(page, "Zoë Ångström")
    expect(entry).to_have_class("job completed")
    expect(page.get_by_role("status")).to_have_text("Zoë Ångström: the certificate is ready.")
    assert said[-1] == "Zoë Ångström: the certificate is ready."
    assert set(said[:-1]) <= {"Processing in background…"}  # none where the worker was faster than the answer to the click
    [row] = [row for row in certificates_of(office.url, office.event) if row["recipient_name"] == "Zoë Ångström"]
    expect(entry.locator(".state")).to_have_text(f"Ready · {row['serial']}")
    expect(page.get_by_label("Name on the certificate")).to_be_focused()
    page.screenshot(path=office.folder / "ready.png")

    # The link opens the file that was recorded …
    link = entry.get_by_role("link", name="Open certificate: Zoë Ångström").get_attribute("href")
    answer = page.request.get(str(link))
    assert answer.headers["content-type"] == "application/pdf"
    pdf = answer.body()
    assert len(pdf) == row["size_bytes"]
    assert "Zoë Ångström" in text_of(pdf)
    # … whose code, read from the page as a telephone reads it, leads to the page that verifies it.
    [code] = zxingcpp.read_barcodes(image_of(pdf, scale=3))
    assert code.text == f"{office.web.url}/verify/{row['serial']}"
    page.goto(code.text)
    expect(page.get_by_role("heading")).to_contain_text("This certificate is valid")
    expect(page.locator("dl")).to_contain_text("A Day of <b>Queues</b> & “Quotes”")
    expect(page.locator("dl")).to_contain_text("Z… Å…")
    assert "Ångström" not in page.content()
    page.get_by_label("Is the name right?").fill("zoe\u0308 ÅNGSTRÖM")
    page.get_by_role("button", name="Compare the name").click()
    expect(page.locator(".answer")).to_contain_text("is the name on this certificate")
    page.get_by_label("Is the name right?").fill("Zoë Engström")
    page.get_by_role("button", name="Compare the name").click()
    expect(page.locator(".answer")).to_contain_text("is not the name on a certificate with this number")
    page.screenshot(path=office.folder / "verified.png")


def test_a_failure_says_why(office: Office, page: Page) -> None:
    entry = generate(page, "Zoë \U0001f600")
    expect(entry).to_have_class("job failed")
    expect(entry.locator(".state")).to_contain_text("Failed: no font has the character")
    expect(page.get_by_role("status")).to_contain_text("no certificate. no font has the character")
    expect(entry.get_by_role("link", name="Open certificate")).to_be_hidden()
    page.screenshot(path=office.folder / "failed.png")


def test_what_is_refused_at_the_call_is_said_at_the_field(office: Office, browser: Browser) -> None:
    rows(office.url, "delete from job_queue")
    with signed_in(browser, office.web, USER, tolerated="status of 422") as page:
        page.goto("/")
        field = page.get_by_label("Name on the certificate")
        field.fill("Ada\u202eecalevoL")
        page.get_by_role("button", name="Generate certificate").click()
        expect(page.get_by_role("alert")).to_contain_text("recipient_name holds U+202E")
        expect(field).to_have_attribute("aria-invalid", "true")
        expect(field).to_be_focused()
        expect(field).to_have_value("Ada\u202eecalevoL")
        assert one(office.url, "select count(*) from job_queue") == 0
        entry = generate(page, "Ada Lovelace")
        expect(page.get_by_role("alert")).to_be_hidden()
        expect(entry).to_have_class("job completed")


def test_markup_in_a_name_is_text(office: Office, page: Page) -> None:
    job = elsewhere(office.url, USER, "<img src=x onerror=alert(1)>")  # refused at every door, so it comes from the database
    rows(office.url, "update job_queue set status = 'failed', error_message = '<b onclick=alert(1)>no'"
                     " where task_id = %s", (job,))
    entry = page.locator("#jobs li")
    expect(entry).to_have_class("job failed")
    expect(entry.locator(".title")).to_have_text("<img src=x onerror=alert(1)>")
    expect(entry.locator(".state")).to_have_text("Failed: <b onclick=alert(1)>no")
    assert page.locator("#jobs img, #jobs b").count() == 0


def elsewhere(url: str, user: str, name: str) -> str:
    """A running job that no worker of this test takes; its task id."""
    task_id = str(one(url, "select enqueue_job('tasks.generate_certificate', queue => 'elsewhere', user_id => %s,"
                           " kwargs => jsonb_build_object('recipient_name', %s::text))::text", (user, name)))
    rows(url, "select * from get_next_job('elsewhere')")
    return task_id


def test_progress_is_shown_as_it_is_made(office: Office, page: Page) -> None:
    job = elsewhere(office.url, USER, "Grace Hopper")
    entry = page.locator("#jobs li").filter(has_text="Grace Hopper")
    bar = entry.get_by_role("progressbar", name="Progress of Grace Hopper")
    expect(entry.locator(".state")).to_have_text("Processing in background…")
    expect(bar).not_to_have_attribute("value", "0")
    for done in (1, 2, 3):
        rows(office.url, "update job_queue set state = 'PROGRESS', result = %s where task_id = %s",
             (f'{{"done": {done}, "total": 4}}', job))
        expect(entry.locator(".state")).to_have_text(f"Processing in background… {done * 25} %")
        expect(bar).to_have_attribute("value", str(done * 25))
    rows(office.url, "update job_queue set status = 'pending', run_at = now() + interval '1 hour',"
                     " error_message = 'the storage is away' where task_id = %s", (job,))
    expect(entry.locator(".state")).to_have_text("Attempt 1 of 3 failed (the storage is away). It will be tried again.")
    rows(office.url, "update job_queue set status = 'failed' where task_id = %s", (job,))
    expect(entry.locator(".state")).to_have_text("Failed: the storage is away")
    expect(bar).to_be_hidden()


def test_nobody_sees_anybody_elses_jobs(office: Office, page: Page, browser: Browser) -> None:
    add_event(office.url, user="alice", name="Alice's own")
    with signed_in(browser, office.web, "alice") as hers:
        hers.goto("/")
        expect(hers.get_by_text("Nothing yet.")).to_be_visible()
        expect(hers.get_by_label("Event").locator("option")).to_have_text(["Alice's own"])
        expect(generate(page, "Only his")).to_have_class("job completed")
        expect(generate(hers, "Only hers")).to_have_class("job completed")
        expect(hers.locator("#jobs li .title")).to_have_text(["Only hers"])
        # Not the whole list: a stream may still bring what the test before this one has deleted.
        expect(page.locator("#jobs li .title").filter(has_text="Only")).to_have_text(["Only his"])


def test_other_pages_of_the_same_user_see_it_too(office: Office, page: Page, browser: Browser) -> None:
    with signed_in(browser, office.web, USER) as other:
        other.goto("/")
        expect(other.get_by_text("Nothing yet.")).to_be_visible()
        generate(page, "Seen twice")  # announced on this page; the other may hear of it when it is over already
        expect(other.locator("#jobs li").filter(has_text="Seen twice")).to_have_class("job completed")


def test_where_nothing_can_be_streamed_it_asks(office: Office, browser: Browser) -> None:
    rows(office.url, "delete from job_queue")
    with signed_in(browser, office.web, USER, tolerated="MIME type") as page:
        page.route("**/api/jobs/stream", lambda route: route.fulfill(content_type="text/plain", body="a proxy's own idea"))
        page.goto("/")
        entry = generate(page, "Polled")
        expect(entry).to_have_class("job completed", timeout=20_000)  # it asks every few seconds only
        expect(page.get_by_role("status")).to_have_text("Polled: the certificate is ready.")


@pytest.mark.parametrize(("status", "announced"), [
    ("pending", "Processing in background…"), ("completed", "Ada: the certificate is ready."),
    ("failed", "Ada: no certificate. no ink"),
])
def test_the_answer_to_the_click_says_how_far_the_job_is(office: Office, browser: Browser, status: str, announced: str) -> None:
    """A worker can be done before the answer is written: then neither the stream nor a poll brings any news of the job's end."""
    def answer(route: Route) -> None:
        given = route.fetch()
        said = given.json()
        said["job"] |= {"status": status, "error": "no ink" if status == "failed" else None}
        route.fulfill(response=given, json=said)

    rows(office.url, "delete from job_queue")
    with signed_in(browser, office.web, USER, tolerated="MIME type") as page:
        page.route("**/api/jobs/stream", lambda route: route.fulfill(content_type="text/plain", body="a proxy's own idea"))
        page.route("**/api/jobs", lambda route: route.fulfill(json={"jobs": []}))
        page.route("**/api/certificates", answer)
        page.goto("/")
        expect(generate(page, "Ada")).to_have_class(f"job {status}")
        expect(page.get_by_role("status")).to_have_text(announced)


def test_a_page_outlives_the_server(office: Office, browser: Browser, tmp_path: Path) -> None:
    """Stopped and started again, with a job that ends in between: the page shows it without being loaded anew."""
    rows(office.url, "delete from job_queue")
    port = free_port()
    job = elsewhere(office.url, USER, "In between")
    with site(office.url, tmp_path, port=port) as first:
        context = browser.new_context(base_url=first.url, http_credentials={"username": USER, "password": "pass-1"})
        page = context.new_page()
        page.goto("/")
        entry = page.locator("#jobs li").filter(has_text="In between")
        expect(entry).to_have_class("job processing")
        assert first.stop() == 0
        expect(page.locator("#connection")).to_have_text("not connected, trying again…")
    rows(office.url, "update job_queue set status = 'failed', error_message = 'no paper' where task_id = %s", (job,))
    with site(office.url, tmp_path, port=port):
        expect(entry).to_have_class("job failed", timeout=15_000)
        expect(page.locator("#connection")).to_be_hidden()
        expect(page.get_by_role("status")).to_contain_text("no paper")
        context.close()


def test_the_page_works_by_keyboard_and_says_what_things_are(office: Office, page: Page) -> None:
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    for label in ("Event", "Name on the certificate"):
        page.keyboard.press("Tab")
        expect(page.get_by_label(label, exact=True)).to_be_focused()
    page.keyboard.type("Typed")
    page.keyboard.press("Enter")
    expect(page.locator("#jobs li").filter(has_text="Typed")).to_have_class("job completed")
    assert page.locator("html").get_attribute("lang") == "en"
    assert page.get_by_role("main").count() == page.get_by_role("heading", level=1).count() == 1


def test_from_notify_to_the_page_in_a_moment(office: Office, page: Page) -> None:
    """Well below the five seconds after which it would be found by looking: the change was heard."""
    job = elsewhere(office.url, USER, "Quick")
    entry = page.locator("#jobs li").filter(has_text="Quick")
    expect(entry).to_have_class("job processing")
    quickest = 60.0
    for done in range(1, 6):
        began = time.monotonic()
        rows(office.url, "update job_queue set state = 'PROGRESS', result = %s where task_id = %s",
             (f'{{"percent": {done}}}', job))
        wait_until(lambda done=done: f" {done} %" in entry.inner_text(), "the page shows it")  # type: ignore[misc]
        quickest = min(quickest, time.monotonic() - began)
    assert quickest < 1
