"""The local folder, and what a STORAGE_URL may say."""

from __future__ import annotations

import multiprocessing
import os
import threading
from datetime import timedelta
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from celery_jobqueue.db.errors import ConfigurationError
from tasks.certificates.storage import NoSuchFile, Storage, StorageError, storage_from_url
from tests.support.storages import keeps_files, refuses_key

UNSAFE = ["", "/etc/passwd", "..", "../x", "a/../../x", "a/./b", "a//b", "a/", "/", ".", "a\\b", "..\\x", "a\0b", "a\nb",
          "\ud800", "x" * 256, "ü" * 128, "a/" + "x" * 300]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that does not exist yet, two levels down, with a name that needs quoting."""
    return tmp_path / "büro 1" / "certificates"


@pytest.fixture
def storage(folder: Path) -> Storage:
    """A storage in that folder."""
    return storage_from_url(folder.as_uri())


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_what_was_put_can_be_read_and_deleted(storage: Storage, folder: Path) -> None:
    key = "events/42/Zoë 1.pdf"
    keeps_files(storage, key)
    storage.put(key, b"second", "application/pdf")
    url = storage.url(key, timedelta(hours=1))
    assert url == storage.location(key)
    assert Path(unquote(urlsplit(url).path)).read_bytes() == b"second"
    assert names(folder / "events/42") == ["Zoë 1.pdf"]
    assert (folder / key).stat().st_mode & 0o777 == 0o644
    storage.delete(key)
    with pytest.raises(NoSuchFile, match=r"Zoë 1\.pdf could not be read"):
        storage.open(key)


@pytest.mark.parametrize("key", UNSAFE)
def test_no_key_leads_out_of_the_folder(key: str, storage: Storage, folder: Path, tmp_path: Path) -> None:
    refuses_key(storage, key)
    assert not list(tmp_path.rglob("*"))


def test_a_reader_never_sees_half_a_file(storage: Storage, folder: Path) -> None:
    versions = [bytes([number]) * 400_000 for number in range(40)]
    storage.put("a.pdf", versions[0], "application/pdf")
    done = threading.Event()

    def write() -> None:
        for version in versions:
            storage.put("a.pdf", version, "application/pdf")
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    reads = 0
    while not done.is_set():
        content = storage.open("a.pdf")
        assert len(content) == 400_000
        assert len(set(content)) == 1
        reads += 1
    writer.join()
    assert reads > 1
    assert storage.open("a.pdf") == versions[-1]
    assert names(folder) == ["a.pdf"]


def _killed_while_writing(url: str) -> None:
    storage = storage_from_url(url)
    os.fsync = lambda _: os._exit(9)  # type: ignore[assignment]
    storage.put("a.pdf", b"new", "application/pdf")


def test_a_writer_that_dies_leaves_the_old_file(storage: Storage, folder: Path) -> None:
    storage.put("a.pdf", b"old", "application/pdf")
    process = multiprocessing.get_context("spawn").Process(target=_killed_while_writing, args=(folder.as_uri(),))
    process.start()
    process.join(30)
    assert process.exitcode == 9
    assert storage.open("a.pdf") == b"old"


def test_a_failed_write_leaves_nothing_behind(storage: Storage, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.put("a.pdf", b"old", "application/pdf")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"a\.pdf could not be written: .*No space left"):
        storage.put("a.pdf", b"new", "application/pdf")
    assert names(folder) == ["a.pdf"]
    assert storage.open("a.pdf") == b"old"


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    storage = storage_from_url((tmp_path / "file").as_uri())
    with pytest.raises(StorageError, match="could not be written"):
        storage.put("a/b.pdf", b"x", "application/pdf")
    assert not storage.exists("a/b.pdf")


def test_unset_means_a_local_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STORAGE_URL", " ")
    monkeypatch.delenv("JOBQUEUE_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    assert storage_from_url().location("a") == (tmp_path / ".local/certificates/a").as_uri()
    monkeypatch.setenv("JOBQUEUE_HOME", str(tmp_path / "home"))
    assert storage_from_url().location("a") == (tmp_path / "home/certificates/a").as_uri()
    monkeypatch.setenv("STORAGE_URL", (tmp_path / "set").as_uri())
    assert storage_from_url().location("a") == (tmp_path / "set/a").as_uri()


@pytest.mark.parametrize(("url", "message"), [
    ("/var/certificates", "begins with nothing://: use file://, s3://, gs:// or az://"),
    ("ftp://host/folder", "begins with ftp://"),
    ("file://var/certificates", "file:///absolute/path"),
    ("file://", "file:///absolute/path"),
    ("s3:///prefix", "the bucket is missing"),
    ("s3://bucket?acl=public", "unknown: acl"),
    ("s3://key:secret@bucket", "credentials belong in AWS_ACCESS_KEY_ID"),
    ("s3://bucket?endpoint=localhost:9000", "must begin with https:// or http://"),
    ("s3://bucket/../other", "without . and .."),
    ("s3://bucket?endpoint=https://storage.example.org", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY too"),
    ("file:///folder?link=https://app.example.org", "unknown: link"),
    ("file:///folder?links=app.example.org", "must begin with https:// or http://"),
    ("file:///folder?links=https://app.example.org/files", "set STORAGE_LINK_SECRET to at least 32 random characters"),
    ("gs://", "the bucket is missing"),
    ("gs://bucket?endpoint=http://127.0.0.1", "unknown: endpoint"),
    ("az:///prefix?account=mine", "the container is missing"),
    ("az://container", "write az://container/prefix?account=…, or set AZURE_STORAGE_ACCOUNT_NAME"),
    ("az://container?account=mine&endpoint=http://127.0.0.1:10000/mine", "set AZURE_STORAGE_ACCOUNT_KEY too"),
])
def test_a_url_that_cannot_be_used_says_how_to_mend_it(url: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("STORAGE_LINK_SECRET", "too short")
    monkeypatch.setenv("STORAGE_URL", url)
    with pytest.raises(ConfigurationError) as caught:
        storage_from_url()
    assert str(caught.value).startswith("STORAGE_URL")
    assert message in str(caught.value)
    assert "secret@" not in str(caught.value)
