"""Links to files in a local folder: signed by the application, served by any web framework through `linked_file`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

import pytest

from celery_jobqueue.db.errors import ConfigurationError
from tasks.certificates.storage import LinkRefused, NoSuchFile, linked_file, storage_from_url
from tests.support.fetching import fetched, refused

KEY = "events/42/Zoë 1.pdf"


class _Handler(BaseHTTPRequestHandler):
    """As little as a web application needs."""

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        try:
            content = linked_file(unquote(path.removeprefix("/files/")), dict(parse_qsl(query))).read_bytes()
            self.send_response(200)
        except LinkRefused as error:
            content = str(error).encode()
            self.send_response(403)
        except NoSuchFile:
            content = b""
            self.send_response(404)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A web server with the route, whose address STORAGE_URL names."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}/files"
    monkeypatch.setenv("STORAGE_LINK_SECRET", "s" * 32)
    monkeypatch.setenv("STORAGE_URL", f"{(tmp_path / 'folder').as_uri()}?links={address}/")
    yield address
    server.shutdown()
    server.server_close()


def test_a_link_works_as_it_was_signed_only(web: str) -> None:
    storage = storage_from_url()
    storage.put(KEY, b"content", "application/pdf")
    storage.put("events/42/other.pdf", b"other", "application/pdf")
    link = storage.url(KEY, timedelta(minutes=5))
    assert link.startswith(f"{web}/events/42/Zo%C3%AB%201.pdf?expires=")
    assert storage.location(KEY).startswith("file:///")
    assert fetched(link) == b"content"
    query = dict(parse_qsl(urlsplit(link).query))
    later = str(int(query["expires"]) + 60)
    for wrong in (link.partition("?")[0], link[:-4] + "0000", link.replace("Zo%C3%AB%201", "other"), link + "0",
                  link.replace(query["expires"], later), link.replace("expires=", "expires=0"),
                  link.replace("expires=", "expires=%2B"), link.replace(query["expires"], "%C2%B2"),
                  link.replace(query["signature"], "%C3%BC"), link.replace("/events/42/", "/events/42/../42/")):
        assert refused(wrong) == 403, wrong


def test_a_link_ends(web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = storage_from_url()
    storage.put(KEY, b"content", "application/pdf")
    link = storage.url(KEY, timedelta(seconds=60))
    expires = int(dict(parse_qsl(urlsplit(link).query))["expires"])
    monkeypatch.setattr("tasks.certificates.storage.folder.time.time", lambda: expires - 0.1)
    assert fetched(link) == b"content"
    monkeypatch.setattr("tasks.certificates.storage.folder.time.time", lambda: float(expires))
    with pytest.raises(LinkRefused, match="has expired"):
        linked_file(KEY, dict(parse_qsl(urlsplit(link).query)))


def test_another_secret_signs_other_links(web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = storage_from_url()
    storage.put(KEY, b"content", "application/pdf")
    link = storage.url(KEY)
    monkeypatch.setenv("STORAGE_LINK_SECRET", "t" * 32)
    assert refused(link) == 403


def test_what_is_not_there_any_more_is_said_so_to_who_may_know(web: str) -> None:
    storage = storage_from_url()
    storage.put(KEY, b"content", "application/pdf")
    link = storage.url(KEY)
    storage.delete(KEY)
    assert refused(link) == 404


def test_a_folder_without_links_serves_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="names no route for links"):
        linked_file(KEY, {}, tmp_path.as_uri())


def test_an_object_storage_serves_its_links_itself() -> None:
    with pytest.raises(ConfigurationError, match="serves its links itself"):
        linked_file(KEY, {}, "gs://bucket")
