"""Azure Blob Storage on Microsoft's own emulator, which checks signatures: `make clouds`. Needs npm.

Azurite and what it needs are 374 packages; they are fetched once into .local/tools, and no other test needs Node.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from email.utils import formatdate
from pathlib import Path

import pytest
from celery import Celery, group

from tasks.certificates.storage import StorageError, storage_from_url
from tests.support.fetching import fetched, refused
from tests.support.issuing import USER, add_event, certificates_of
from tests.support.storages import keeps_files, refuses_key
from tests.support.waiting import wait_until
from tests.support.workers import ROOT, Worker

_VERSION = "3.37.0"
_ACCOUNT = "devstoreaccount1"
_SECRET = base64.b64encode(b"0123456789abcdef" * 4).decode()


@contextmanager
def _azurite(folder: Path) -> Iterator[int]:
    """The port of a running emulator."""
    place = ROOT / ".local" / "tools" / f"azurite-{_VERSION}"
    program = place / "node_modules/azurite/dist/src/blob/main.js"
    if not program.exists():
        subprocess.run(["npm", "install", "--no-audit", "--no-fund", "--prefix", str(place), f"azurite@{_VERSION}"], check=True)
    log = folder / "azurite.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            ["node", str(program), "--location", str(folder), "--blobHost", "127.0.0.1", "--blobPort", "0",
             "--skipApiVersionCheck", "--disableTelemetry", "--silent"],
            stdin=subprocess.DEVNULL, stdout=file, stderr=file, env={**os.environ, "AZURITE_ACCOUNTS": f"{_ACCOUNT}:{_SECRET}"})
    try:
        def address() -> re.Match[str] | None:
            assert process.poll() is None, log.read_text()
            return re.search(r"listens on http://127\.0\.0\.1:(\d+)", log.read_text())

        found = wait_until(address, "Azurite listens")
        assert found
        yield int(found[1])
    finally:
        process.terminate()
        process.wait(20)


def _make_container(port: int, name: str) -> None:
    """As the portal would: obstore makes none. The request is signed as Azure's SharedKey says."""
    now, version = formatdate(usegmt=True), "2021-08-06"
    text = "\n".join(["PUT", *[""] * 11, f"x-ms-date:{now}", f"x-ms-version:{version}", f"/{_ACCOUNT}/{_ACCOUNT}/{name}",
                      "restype:container"])
    signature = base64.b64encode(hmac.new(base64.b64decode(_SECRET), text.encode(), hashlib.sha256).digest()).decode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/{_ACCOUNT}/{name}?restype=container", method="PUT",
        headers={"x-ms-date": now, "x-ms-version": version, "Authorization": f"SharedKey {_ACCOUNT}:{signature}"})
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
        assert answer.status == 201


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """STORAGE_URL of a container."""
    with _azurite(tmp_path_factory.mktemp("azurite")) as port:
        _make_container(port, "certificates")
        yield f"az://certificates/pre-fix?account={_ACCOUNT}&endpoint=http://127.0.0.1:{port}/{_ACCOUNT}"


def test_azure_keeps_files(url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", _SECRET)
    storage = storage_from_url(url)
    keeps_files(storage, "events/42/Zoë 1.pdf")
    refuses_key(storage, "../outside")
    big = tmp_path / "all.zip"
    big.write_bytes(b"0123456789abc" * 1_000_000)
    storage.put("all.zip", big, "application/zip")
    assert fetched(storage.url("all.zip")) == big.read_bytes()


def test_a_link_works_as_it_was_signed_only(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", _SECRET)
    storage = storage_from_url(url)
    storage.put("linked.pdf", b"content", "application/pdf")
    link = storage.url("linked.pdf", timedelta(minutes=5))
    assert fetched(link) == b"content"
    for wrong in (link.partition("?")[0], link.replace("linked.pdf", "other.pdf"), link.replace("sp=r", "sp=rw")):
        assert refused(wrong) in (403, 404), wrong


def test_wrong_credentials_say_what_to_check(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", base64.b64encode(b"wrong" * 12).decode())
    with pytest.raises(StorageError, match=r"^az://certificates/pre-fix/a: access denied .*: check AZURE_STORAGE_ACCOUNT_KEY"):
        storage_from_url(url).put("a", b"x", "text/plain")


def test_certificates_go_to_the_container_from_forked_processes(app: Celery, database_url: str, url: str,
                                                                start_worker: Callable[..., Worker]) -> None:
    start_worker("-c", "2", "--max-tasks-per-child", "3", app="tasks", STORAGE_URL=url, AZURE_STORAGE_ACCOUNT_KEY=_SECRET)
    event = add_event(database_url)
    jobs = [app.signature("tasks.generate_certificate", kwargs={
        "event_id": event, "recipient_name": f"Ada {number}", "user_id": USER}) for number in range(8)]
    results = group(jobs).apply_async().get(timeout=60)
    digests = {row["serial"]: row["sha256"] for row in certificates_of(database_url, event)}
    assert len(digests) == 8
    for result in results:
        assert hashlib.sha256(fetched(result["url"])).hexdigest() == digests[result["serial"]]
