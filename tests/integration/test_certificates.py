"""The certificate task, from `delay()` to the file, through a real worker of the application itself."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
import zxingcpp
from celery import Celery, group
from celery.exceptions import TimeoutError as StillWaiting
from celery.result import AsyncResult
from PIL import Image
from sqlalchemy import Engine, create_engine

from celery_jobqueue.db.url import sqlalchemy_url
from tasks.certificates import issue
from tasks.certificates.issue import issue_certificate
from tasks.certificates.render import render
from tasks.certificates.storage import Storage, storage_from_url
from tests.support.app import make_app
from tests.support.certificates import classic, image_of, one_part, text_of
from tests.support.database import fresh_database, one, rows
from tests.support.issuing import USER, add_event, certificates_of, path_of
from tests.support.poppler import needs, poppler
from tests.support.signing_keys import make_key
from tests.support.waiting import wait_until
from tests.support.workers import ROOT, worker


@dataclass
class Office:
    """A database, a folder, a worker that serves them, and somebody who asks."""

    url: str
    folder: Path
    client: Celery

    def ask(self, event: str, name: str, user: str | None = USER, **more: Any) -> AsyncResult[Any]:
        """Queue a certificate as any Celery application would."""
        return self.client.send_task("tasks.generate_certificate", kwargs={
            "event_id": event, "recipient_name": name, "user_id": user, **more})

    def job(self, result: AsyncResult[Any]) -> dict[str, Any]:
        """The row of a job."""
        return rows(self.url, "select * from job_queue where task_id = %s", (result.id,))[0]

    def failed(self, result: AsyncResult[Any]) -> dict[str, Any]:
        """The row of a job that has to fail."""
        with pytest.raises(Exception, match=r".") as caught:
            result.get(timeout=30)
        assert not isinstance(caught.value, StillWaiting)
        row = self.job(result)
        assert row["status"] == "failed"
        return row


@pytest.fixture(scope="module")
def office(server: str, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    """One for all tests of this file: every test has an event of its own."""
    place = tmp_path_factory.mktemp("office")
    with fresh_database(server, template) as url:
        client = make_app(url)
        with worker(url, place, "tasks", "-c", "2", STORAGE_URL=(place / "files").as_uri()):
            yield Office(url, place / "files", client)
        client.backend.result_consumer.stop()
        client.close()


def test_a_certificate_comes_out_of_the_queue(office: Office) -> None:
    event = add_event(office.url, name="Warteschlangen für Anfänger", starts_on="2026-10-30", ends_on="2026-11-02")
    queued = office.ask(event, "  Zoe\u0308  Ångström ")
    result = queued.get(timeout=30)
    assert set(result) == {"id", "serial", "url", "storage_key", "recipient_name"}
    [row] = certificates_of(office.url, event)
    assert result["id"] == str(row["id"])
    assert result["serial"] == row["serial"]
    assert result["url"] == row["url"] == (office.folder / row["storage_key"]).as_uri()
    assert result["storage_key"] == row["storage_key"] == f"events/{event}/{row['serial']}.pdf"
    assert result["recipient_name"] == row["recipient_name"] == "Zoë Ångström"
    assert row["recipient_key"] == "zoë ångström"
    assert row["user_id"] == USER
    content = path_of(result["url"]).read_bytes()
    assert content.startswith(b"%PDF-")
    assert (hashlib.sha256(content).hexdigest(), len(content)) == (row["sha256"], row["size_bytes"])
    text = text_of(content)
    for part in ("Zoë Ångström", "Warteschlangen für Anfänger", "Lisbon · 30 October – 2 November 2026", row["serial"],
                 f"issued {row['issued_at'].astimezone(UTC).day} "):
        assert part in text
    job = wait_until(lambda: (found := office.job(queued))["status"] == "completed" and found, "the job is completed")
    assert job
    assert (job["attempts"], job["user_id"], job["task_name"]) == (1, USER, "tasks.generate_certificate")


def test_the_code_leads_to_the_page_that_verifies(office: Office) -> None:
    event = add_event(office.url, classic(verify_url="https://example.org/{hours}/{serial}?for={recipient_name}"))
    result = office.ask(event, "Zoë & Co").get(timeout=30)
    [found] = zxingcpp.read_barcodes(image_of(path_of(result["url"]).read_bytes(), scale=3))
    assert found.text == f"https://example.org/24/{result['serial']}?for=Zo%C3%AB%20%26%20Co"


def test_the_page_that_verifies_may_be_a_setting(office: Office, tmp_path: Path) -> None:
    event = uuid.UUID(add_event(office.url, classic(verify_url="")))
    engine, storage = create_engine(sqlalchemy_url(office.url)), storage_from_url(tmp_path.as_uri())
    try:
        issued = issue_certificate(engine, event_id=event, recipient_name="Ada", user_id=USER, storage=storage,
                                   verification_url="https://example.org/{not ours}/{serial}")
    finally:
        engine.dispose()
    [found] = zxingcpp.read_barcodes(image_of(path_of(issued.url).read_bytes(), scale=3))
    assert found.text == f"https://example.org/{{not ours}}/{issued.serial}"


def test_the_setting_is_a_web_address(office: Office) -> None:
    script = """
import os, sys
from celery_jobqueue.db.errors import ConfigurationError
for given in ("", " ", "https://example.org/v/{serial}?a", "http://127.0.0.1:8000/verify/", "example.org", "javascript:1"):
    os.environ["VERIFY_URL"] = given
    try:
        import tasks.settings
        print(tasks.settings.verification_url)
    except ConfigurationError as error:
        print(error)
    sys.modules.pop("tasks.settings", None)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True,
                          env={**os.environ, "DATABASE_URL": office.url})
    wrong = ": write https://certificates.example.org/verify/{serial}"
    assert done.stdout.splitlines() == [
        "", "", "https://example.org/v/{serial}?a", "http://127.0.0.1:8000/verify/{serial}",
        f"VERIFY_URL 'example.org' is no web address{wrong}", f"VERIFY_URL 'javascript:1' is no web address{wrong}"]


def test_twice_is_once(office: Office) -> None:
    event = add_event(office.url)
    first = office.ask(event, "Ada Lovelace").get(timeout=30)
    before = path_of(first["url"]).read_bytes()
    [row] = certificates_of(office.url, event)
    assert office.ask(event, "ADA  LOVELACE ").get(timeout=30) == {**first, "recipient_name": "ADA LOVELACE"}
    assert office.ask(event, "Ada Lovelace").get(timeout=30) == first
    assert path_of(first["url"]).read_bytes() == before
    assert certificates_of(office.url, event) == [row]


def test_at_the_same_time_is_once(office: Office) -> None:
    """Both processes of the worker issue for the same few people again and again."""
    event = add_event(office.url)
    names = ["Ada", "Grace", "Zoë"]
    tasks = group(office.client.signature("tasks.generate_certificate", kwargs={
        "event_id": event, "recipient_name": name, "user_id": USER}) for name in names * 8)
    results = tasks.apply_async().get(timeout=60)
    found = certificates_of(office.url, event)
    assert {row["recipient_name"] for row in found} == set(names)
    assert len(found) == 3
    for row in found:
        same = {(result["id"], result["serial"], result["storage_key"], result["url"])
                for result in results if result["recipient_name"] == row["recipient_name"]}
        assert same == {(str(row["id"]), row["serial"], row["storage_key"], row["url"])}
        assert hashlib.sha256(path_of(row["url"]).read_bytes()).hexdigest() == row["sha256"]
    assert len(list((office.folder / "events" / event).iterdir())) == 3
    assert wait_until(lambda: rows(office.url, "select status, attempts, count(*) from job_queue where payload like %s "
                                               "group by 1, 2", (f"%{event}%",)) == [
        {"status": "completed", "attempts": 1, "count": 24}], "every job is completed at its first attempt")


def test_people_of_one_name_are_told_apart_by_their_key(office: Office) -> None:
    event = add_event(office.url)
    asked = [office.ask(event, "Maria Silva", recipient_key=key) for key in ("m1@a.org", "M2@a.org", "m2@A.ORG")]
    first, second, again = (result.get(timeout=30) for result in asked)
    assert first["serial"] != second["serial"]
    assert second == again
    assert [row["recipient_key"] for row in certificates_of(office.url, event)] == ["m1@a.org", "m2@a.org"]


def test_the_same_person_at_two_events_has_two_certificates(office: Office) -> None:
    results = [office.ask(add_event(office.url), "Ada").get(timeout=30) for _ in range(2)]
    assert len({result["serial"] for result in results}) == 2


@pytest.mark.parametrize(("change", "error", "message"), [
    ({"design": None}, "MissingConfiguration", "has no certificate configuration: add a row to certificate_configs"),
    ({"user": "somebody-else"}, "NotAllowed", f"user '{USER}' may not issue certificates for event"),
    ({"user": None}, "NotAllowed", "only its organisers may"),
    ({"design": {"parts": []}}, "DesignError", "certificate design: parts: "),
    ({"design": one_part(text="{recipient}")}, "DesignError", "parts.0.text: unknown placeholder {recipient}"),
    ({"design": one_part(kind="image", key="logo.png", x=10, y=10, width=10, height=10)}, "DesignError",
     "image 'logo.png' is not in the storage"),
    ({"design": one_part(kind="image", key="../../../etc/passwd", x=10, y=10, width=10, height=10)}, "DesignError",
     "parts.0.key: '../../../etc/passwd' is no key of the storage"),
])
def test_what_cannot_succeed_is_not_tried_again(change: dict[str, Any], error: str, message: str, office: Office) -> None:
    event = add_event(office.url, **change)
    row = office.failed(office.ask(event, "Ada"))
    assert (row["attempts"], row["max_attempts"], len(row["errors"])) == (1, 3, 1)
    assert row["error_message"].startswith(f"{error}: ")
    assert message in row["error_message"]
    assert certificates_of(office.url, event) == []
    assert not (office.folder / "events" / event).exists()


@pytest.mark.parametrize(("name", "more", "message"), [
    ("Ada 🎉", {}, "MissingGlyph: no font has the character '🎉' (U+1F389)"),
    ("", {}, "InvalidRecipient: recipient_name is empty"),
    ("x" * 121, {}, "InvalidRecipient: recipient_name has 121 characters"),
    (7, {}, "InvalidRecipient: recipient_name must be text, not int"),
    ("Ada\0", {}, "InvalidRecipient: recipient_name holds U+0000"),
    ("Ada\ud800", {}, "InvalidRecipient: recipient_name holds U+D800"),
    ("Ada", {"recipient_key": 7}, "InvalidRecipient: recipient_key must be text, not int"),
    ("Ada", {"expires_on": "2020-01-01"}, "InvalidExpiry: expires_on 2020-01-01 is before"),
    ("Ada", {"user": None}, "InvalidUser: user_id is empty"),
    ("Ada", {"event_id": "../.."}, "UnknownEvent: event_id '../..' is not the id of an event (a UUID)"),
    ("Ada", {"event_id": "00000000-0000-0000-0000-000000000000"}, "UnknownEvent: there is no event 00000000-"),
    ("Ada", {"surprise": 1}, "TypeError: "),
])
def test_bad_input_from_any_publisher_is_a_clear_end(name: Any, more: dict[str, Any], message: str, office: Office) -> None:
    row = office.failed(office.ask(add_event(office.url), name, **more))
    assert row["error_message"].startswith(message)
    assert row["attempts"] == 1


def test_a_storage_that_fails_for_a_while_delays_only(office: Office) -> None:
    event = add_event(office.url)
    obstacle = office.folder / "events" / event
    obstacle.parent.mkdir(parents=True, exist_ok=True)
    obstacle.write_text("no folder")
    queued = office.ask(event, "Ada")
    waiting = wait_until(lambda: (row := office.job(queued))["status"] == "pending" and row["attempts"] == 1 and row,
                         "the job waits for its second attempt")
    assert waiting
    assert waiting["error_message"].startswith("StorageError: ")
    assert "could not be written" in waiting["error_message"]
    assert certificates_of(office.url, event) == []
    obstacle.unlink()
    result = queued.get(timeout=30)
    assert path_of(result["url"]).stat().st_size > 1000
    assert office.job(queued)["attempts"] == 2
    assert len(certificates_of(office.url, event)) == 1


def test_a_picture_of_the_design_comes_from_the_storage(office: Office) -> None:
    file = io.BytesIO()
    Image.new("RGB", (40, 40), "#c01030").save(file, "PNG")
    storage_from_url(office.folder.as_uri()).put("logos/red.png", file.getvalue(), "image/png")
    event = add_event(office.url, one_part(kind="image", key="logos/red.png", x=100, y=100, width=20, height=20))
    page = image_of(path_of(office.ask(event, "Ada").get(timeout=30)["url"]).read_bytes(), scale=1)
    assert page.getpixel((round(110 / 25.4 * 72), round(110 / 25.4 * 72))) == (0xC0, 0x10, 0x30)


@needs("pdfsig")
def test_a_worker_with_a_key_signs_what_it_stores(server: str, template: str, tmp_path: Path) -> None:
    """Issued again without a change, the file keeps the signature that it has; a corrected name is signed anew."""
    with fresh_database(server, template) as url:
        office = Office(url, tmp_path / "files", make_app(url))
        event = add_event(url)
        with worker(url, tmp_path, "tasks", "-c", "1", STORAGE_URL=office.folder.as_uri(),
                    CERTIFICATE_SIGNING_KEY=make_key(tmp_path, "secret"), CERTIFICATE_SIGNING_PASSWORD="secret"):
            files = [path_of(office.ask(event, name, recipient_key="ada").get(timeout=30)["url"]).read_bytes()
                     for name in ("Ada Byron", "Ada Byron", "Ada Lovelace")]
        office.client.backend.result_consumer.stop()
        office.client.close()
        assert files[0] == files[1]
        for content, name in ((files[0], "Ada Byron"), (files[2], "Ada Lovelace")):
            report = poppler("pdfsig", content, "-nocert")
            assert "Signature is Valid." in report
            assert "Total document signed" in report
            assert "Signer Certificate Common Name: Northern Lights Academy" in report
            assert name in text_of(content)
        [row] = certificates_of(url, event)
        assert hashlib.sha256(files[2]).hexdigest() == row["sha256"]


# -- runs that meet ----------------------------------------------------------------------------------------------------


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """An engine of the test's own database."""
    made = create_engine(sqlalchemy_url(database_url))
    yield made
    made.dispose()


class SlowStorage:
    """A storage whose first writer waits until it is told to go on."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self.entered, self.go_on = threading.Event(), threading.Event()
        self.written: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def put(self, key: str, content: bytes, content_type: str) -> None:
        first = not self.entered.is_set()
        self.entered.set()
        if first:
            assert self.go_on.wait(20)
        self._storage.put(key, content, content_type)
        self.written.append(content)


def test_runs_for_one_recipient_take_turns(engine: Engine, database_url: str, tmp_path: Path) -> None:
    """A name corrected while the first run still uploads: the file is the one that the row describes."""
    event = add_event(database_url)
    storage = SlowStorage(storage_from_url(tmp_path.as_uri()))
    results: list[Any] = []

    def run(name: str) -> None:
        results.append(issue_certificate(engine, event_id=event, recipient_name=name, user_id=USER, storage=storage,
                                         recipient_key="ada@example.org"))

    threads = [threading.Thread(target=run, args=(name,)) for name in ("Ada Byron", "Ada Lovelace")]
    threads[0].start()
    assert storage.entered.wait(20)
    threads[1].start()
    wait_until(lambda: one(database_url, "select count(*) from pg_stat_activity where wait_event_type = 'Lock' "
                                         "and datname = current_database()"), "the second run waits for the first")
    assert certificates_of(database_url, event) == []
    storage.go_on.set()
    for thread in threads:
        thread.join(20)
    assert [result.recipient_name for result in results] == ["Ada Byron", "Ada Lovelace"]
    assert len({result.id for result in results}) == 1
    [row] = certificates_of(database_url, event)
    content = path_of(row["url"]).read_bytes()
    assert hashlib.sha256(content).hexdigest() == row["sha256"]
    assert "Ada Lovelace" in text_of(content)


def test_a_run_that_fails_to_upload_leaves_no_row(engine: Engine, database_url: str, tmp_path: Path) -> None:
    event = add_event(database_url)
    storage = SlowStorage(storage_from_url(tmp_path.as_uri()))
    storage.go_on.set()
    (tmp_path / "events").write_text("no folder")
    with pytest.raises(Exception, match="could not be written"):
        issue_certificate(engine, event_id=event, recipient_name="Ada", user_id=USER, storage=storage)
    assert certificates_of(database_url, event) == []


def test_the_date_that_stands_is_the_date_on_the_sheet(engine: Engine, database_url: str, tmp_path: Path,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else's run was first, before midnight, while this one was drawing."""
    event = add_event(database_url)
    storage = storage_from_url(tmp_path.as_uri())
    sheets: list[bytes] = []

    def drawn_late(*args: Any, **kwargs: Any) -> bytes:
        if not sheets:
            sheets.append(b"")
            issue_certificate(engine, event_id=event, recipient_name="Ada", user_id=USER, storage=storage)
            with psycopg.connect(database_url, autocommit=True) as conn:
                conn.execute("update certificates set issued_at = %s", (datetime.now(UTC) - timedelta(days=40),))
        sheets.append(render(*args, **kwargs))
        return sheets[-1]

    monkeypatch.setattr(issue, "render", drawn_late)
    result = issue_certificate(engine, event_id=event, recipient_name="Ada", user_id=USER, storage=storage)
    [row] = certificates_of(database_url, event)
    assert result.id == str(row["id"])
    content = path_of(result.url).read_bytes()
    assert hashlib.sha256(content).hexdigest() == row["sha256"]
    day = row["issued_at"].astimezone(UTC)
    assert f"issued {day.day} {day:%B} {day.year}" in text_of(content)
