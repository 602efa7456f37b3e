"""Object storage: a real S3-compatible server that checks signatures, and workers that fork."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from celery import Celery, group

from celery_jobqueue.db.errors import JobQueueError
from tasks.certificates.samples import CLASSIC
from tasks.certificates.storage import NoSuchFile, Storage, StorageError, storage_from_url
from tests.support.database import rows
from tests.support.fetching import fetched, refused
from tests.support.issuing import USER, add_event, certificates_of
from tests.support.s3 import S3, s3_server
from tests.support.storages import keeps_files, refuses_key
from tests.support.stumbling import StumblingFront
from tests.support.waiting import wait_until
from tests.support.workers import ROOT, Worker

KEY = "events/42/Zoë 1.pdf"


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """A running server."""
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def storage(s3: S3, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """A storage on it."""
    for name, value in s3.credentials.items():
        monkeypatch.setenv(name, value)
    return storage_from_url(s3.url)


def test_what_was_put_can_be_read_and_deleted(storage: Storage, s3: S3) -> None:
    with pytest.raises(NoSuchFile, match=r"^s3://certificates/pre fix/events/42/Zoë 1\.pdf: no such file or bucket"):
        storage.open(KEY)
    keeps_files(storage, KEY)
    storage.put(KEY, b"second", "application/pdf")
    assert (s3.bucket / "pre fix" / KEY).read_bytes() == b"second"
    assert storage.location(KEY) == f"s3://certificates/pre fix/{KEY}"


def test_a_link_works_as_it_was_signed_only(storage: Storage) -> None:
    storage.put("linked.pdf", b"content", "application/pdf")
    link = storage.url("linked.pdf", timedelta(minutes=5))
    assert fetched(link) == b"content"
    for wrong in (link.partition("?")[0], link[:-4] + "0000", link.replace("linked.pdf", "other.pdf")):
        assert refused(wrong) in (400, 403)


@pytest.mark.parametrize("key", ["../outside", "a/../../outside", "/outside", "a//b", "a\0", "a\\b", ""])
def test_no_key_leads_out_of_the_prefix(key: str, storage: Storage, s3: S3) -> None:
    refuses_key(storage, key)
    assert not list(s3.bucket.parent.rglob("outside"))


def test_wrong_credentials_say_what_to_check(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "w" * 40
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.credentials["AWS_ACCESS_KEY_ID"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    storage = storage_from_url(s3.url)
    for act, why in ((lambda: storage.put("a", b"x", "text/plain"), "SignatureDoesNotMatch"),
                     (lambda: storage.exists("a"), "403 Forbidden"), (lambda: storage.open("a"), "SignatureDoesNotMatch")):
        with pytest.raises(StorageError) as caught:
            act()
        assert str(caught.value) == (f"s3://certificates/pre fix/a: access denied ({why}): "
                                     "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and what they may do there")
    assert not (s3.bucket / "pre fix" / "a").exists()


def test_a_bucket_that_is_not_there_is_named(storage: Storage, s3: S3) -> None:
    elsewhere = storage_from_url(s3.url.replace("//certificates", "//nowhere"))
    with pytest.raises(StorageError, match=r"^s3://nowhere/pre fix/a: no such file or bucket \(NoSuchBucket\)$"):
        elsewhere.put("a", b"x", "text/plain")


def test_a_server_that_is_away_is_a_storage_error(storage: Storage) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    away = storage_from_url(f"s3://certificates?endpoint=http://127.0.0.1:{port}")
    with pytest.raises(StorageError, match=r"^s3://certificates/a: .*error sending request$"):
        away.put("a", b"x", "text/plain")


@pytest.mark.parametrize("trouble", ["503 Slow Down", ""])
def test_a_server_that_stumbles_is_asked_again(trouble: str, s3: S3, storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is busy, or hangs up, twice for each request: nobody has to spend an attempt on that."""
    with StumblingFront(s3.port, trouble) as front:
        through = storage_from_url(s3.url.replace(str(s3.port), str(front.port)))
        for act in (lambda: through.put("stumbled.pdf", b"content", "application/pdf"),
                    lambda: through.open("stumbled.pdf"), lambda: through.exists("stumbled.pdf")):
            front.stumble(2)
            act()
            assert front.left == 0
        assert storage.open("stumbled.pdf") == b"content"
        front.stumble(100)
        with pytest.raises(StorageError, match=r"^s3://certificates/pre fix/stumbled\.pdf: "):
            through.put("stumbled.pdf", b"other", "application/pdf")
    assert storage.open("stumbled.pdf") == b"content"


def test_a_large_file_goes_up_in_parts(storage: Storage, s3: S3, tmp_path: Path) -> None:
    big = tmp_path / "all.zip"
    big.write_bytes(os.urandom(12_000_001))
    storage.put("all.zip", big, "application/zip")
    assert (s3.bucket / "pre fix" / "all.zip").read_bytes() == big.read_bytes()


def test_a_fork_after_use_gives_a_message_instead_of_hanging(s3: S3) -> None:
    script = """
import os
from tasks.certificates.storage import StorageError, storage_from_url
storage_from_url().put("parent", b"x", "text/plain")
pid = os.fork()
if pid == 0:
    try:
        storage_from_url().put("child", b"x", "text/plain")
    except StorageError as error:
        print(error, flush=True)
    os._exit(0)
os.waitpid(pid, 0)
storage_from_url().put("parent again", b"x", "text/plain")
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=30,
                          env={**os.environ, **s3.credentials, "STORAGE_URL": s3.url}, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("object storage was used before this process forked")
    assert (s3.bucket / "pre fix" / "parent again").exists()
    assert not (s3.bucket / "pre fix" / "child").exists()


def test_certificates_go_to_the_bucket_from_forked_processes(app: Celery, database_url: str, s3: S3,
                                                             start_worker: Callable[..., Worker]) -> None:
    """Two pool processes, which are replaced while they work."""
    start_worker("-c", "2", "--max-tasks-per-child", "3", app="tasks", STORAGE_URL=s3.url, **s3.credentials)
    event = add_event(database_url)
    names = [f"Ada {number}" for number in range(8)]
    results = group(app.signature("tasks.generate_certificate", kwargs={
        "event_id": event, "recipient_name": name, "user_id": USER}) for name in names).apply_async().get(timeout=60)
    found = certificates_of(database_url, event)
    assert sorted(row["recipient_name"] for row in found) == names
    by_serial = {row["serial"]: row for row in found}
    for result in results:
        row = by_serial[result["serial"]]
        # The row says where the file lies; the answer has a link that opens it, and no secret stays in the table.
        assert row["url"] == f"s3://certificates/pre fix/{row['storage_key']}"
        content = fetched(result["url"])
        assert content.startswith(b"%PDF-")
        assert hashlib.sha256(content).hexdigest() == row["sha256"]
    assert rows(database_url, "select distinct attempts from job_queue") == [{"attempts": 1}]


def test_a_job_survives_a_storage_that_is_away_for_a_while(app: Celery, database_url: str, tmp_path: Path,
                                                           start_worker: Callable[..., Worker]) -> None:
    with s3_server(tmp_path / "s3") as server:
        start_worker("-c", "1", app="tasks", STORAGE_URL=server.url, **server.credentials)
        server.stop()
        event = add_event(database_url, CLASSIC)
        queued = app.send_task("tasks.generate_certificate", kwargs={"event_id": event, "recipient_name": "Ada", "user_id": USER})

        def waiting() -> str | None:
            [job] = rows(database_url, "select * from job_queue")
            return job["error_message"] if (job["status"], job["attempts"]) == ("pending", 1) else None

        assert "error sending request" in (wait_until(waiting, "the first attempt has failed") or "")
        assert certificates_of(database_url, event) == []
        server.start()
        assert fetched(queued.get(timeout=30)["url"]).startswith(b"%PDF-")
        assert rows(database_url, "select attempts, status from job_queue") == [{"attempts": 2, "status": "completed"}]


def test_wrong_credentials_of_a_worker_stand_on_the_job(app: Celery, database_url: str, s3: S3,
                                                        start_worker: Callable[..., Worker]) -> None:
    start_worker("-c", "1", app="tasks", STORAGE_URL=s3.url, **{**s3.credentials, "AWS_SECRET_ACCESS_KEY": "w" * 40})
    event = add_event(database_url)
    queued = app.send_task("tasks.generate_certificate", kwargs={"event_id": event, "recipient_name": "Ada", "user_id": USER},
                           max_attempts=1)
    with pytest.raises(JobQueueError, match="access denied"):
        queued.get(timeout=30)
    [job] = rows(database_url, "select * from job_queue")
    assert job["status"] == "failed"
    assert job["error_message"].startswith("StorageError: s3://certificates/pre fix/events/")
    assert job["error_message"].endswith("access denied (SignatureDoesNotMatch): check AWS_ACCESS_KEY_ID and "
                                         "AWS_SECRET_ACCESS_KEY, and what they may do there")
    assert "wwww" not in str(job)
    assert certificates_of(database_url, event) == []
