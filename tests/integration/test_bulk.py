"""Certificates by the thousand, with a few dozen: the command, real workers, zip, report and summary."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import create_engine

from celery_jobqueue.db.url import sqlalchemy_url
from tasks.bulk.batches import resume_batch
from tasks.bulk.errors import BatchError
from tests.support.bulk import bulk, bulk_each, documents, write_attendees
from tests.support.certificates import text_of
from tests.support.database import fresh_database, one, rows
from tests.support.issuing import USER, add_event, certificates_of, path_of
from tests.support.waiting import wait_until
from tests.support.workers import ROOT, worker


@dataclass
class Office:
    """A database, a folder for files, and a worker that serves them."""

    url: str
    folder: Path

    def issue(self, file: Path, event: str, *options: str) -> subprocess.CompletedProcess[str]:
        """`python -m tasks.bulk issue`."""
        return bulk(self.url, self.folder, "issue", str(file), "--event", event, "--user", USER, *options)

    def batches(self, event: str) -> list[dict[str, Any]]:
        """The event's batches, the newest first."""
        return rows(self.url, "select * from certificate_batches where event_id = %s order by created_at desc", (event,))

    def jobs(self, event: str) -> list[dict[str, Any]]:
        """Its certificates' jobs."""
        return rows(self.url, "select * from job_queue where task_name = 'tasks.generate_certificate' and payload like %s "
                              "order by id", (f"%{event}%",))

    def report(self, link: str) -> list[dict[str, str]]:
        """The rows of a report."""
        return list(csv.DictReader(io.StringIO(path_of(link).read_text(encoding="utf-8-sig"))))


@pytest.fixture(scope="module")
def office(server: str, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    """One for all tests of this file: every test has an event of its own."""
    place = tmp_path_factory.mktemp("office")
    with fresh_database(server, template) as url, worker(url, place, "tasks", "-c", "2", STORAGE_URL=(place / "files").as_uri()):
        yield Office(url, place / "files")


def test_fifty_certificates_from_a_file_to_a_zip(office: Office, tmp_path: Path) -> None:
    event = add_event(office.url)
    names = [f"Łukasz Gutiérrez {number}" for number in range(48)] + ["../../Zoë/Ångström", "=1+1 Ada"]
    file = write_attendees(tmp_path / "people.csv", *(f'"{name}",p{number}@example.org' for number, name in enumerate(names)),
                           "Łukasz Gutiérrez 3,P3@example.org", ",missing@example.org", "Grace,p4@example.org")
    done = office.issue(file, event, "--yes", "--skip-bad", "--json", "--expires-on", "2099-12-31")
    assert (done.returncode, done.stderr) == (0, "")
    said = documents(done)
    plan = said["plan"]["plan"]
    assert plan["counts"] == {"good": 50, "duplicate": 1, "bad": 2}
    assert plan["duplicates"] == [[52, "Łukasz Gutiérrez 3", "same as line 5"]]
    assert plan["bad"] == [
        [53, "", "recipient_name is empty: give the name that stands on the certificate"],
        [54, "Grace",
         "the key p4@example.org belongs to Łukasz Gutiérrez 4 on line 6: give each recipient a recipient_key of their own"]]
    summary, links = said["summary"]["summary"], said["summary"]["links"]
    assert {key: summary[key] for key in ("rows", "issued", "failed", "duplicates", "bad", "issued_before", "failures")} == {
        "rows": 53, "issued": 50, "failed": 0, "duplicates": 1, "bad": 2, "issued_before": 0, "failures": []}

    found = certificates_of(office.url, event)
    assert sorted(row["recipient_name"] for row in found) == sorted(names)
    assert {str(row["expires_on"]) for row in found} == {"2099-12-31"}
    jobs = office.jobs(event)
    assert len(jobs) == 50
    assert {(job["status"], job["attempts"], job["priority"], job["user_id"]) for job in jobs} == {("completed", 1, 6, USER)}
    assert len({job["created_at"] for job in jobs}) == 1, "one transaction"
    [finisher] = rows(office.url, "select * from job_queue where task_name = 'tasks.finish_batch' and payload like %s",
                      (f"%{summary['batch']}%",))
    assert (finisher["status"], finisher["user_id"], finisher["created_at"] > jobs[0]["created_at"]) == ("completed", USER, True)

    with zipfile.ZipFile(path_of(links["zip"])) as archive:
        assert archive.testzip() is None
        assert len(archive.namelist()) == 50
        assert not [name for name in archive.namelist() if "/" in name or name.startswith(".")]
        digests = {hashlib.sha256(archive.read(name)).hexdigest() for name in archive.namelist()}
        [zoe] = [name for name in archive.namelist() if "Zoë" in name]
        assert re.fullmatch(r"_\.\._Zoë_Ångström [A-Z0-9-]{14}\.pdf", zoe)
        assert "../../Zoë/Ångström" in text_of(archive.read(zoe))
    assert digests == {row["sha256"] for row in found}
    report = office.report(links["report"])
    assert [row["outcome"] for row in report] == ["issued"] * 50 + ["duplicate", "bad", "bad"]
    assert report[49]["recipient_name"] == "'=1+1 Ada", "no formula for a spreadsheet"
    assert {row["serial"] for row in report[:50]} == {row["serial"] for row in found}


def test_nothing_is_issued_until_somebody_says_yes(office: Office, tmp_path: Path) -> None:
    event = add_event(office.url)
    file = write_attendees(tmp_path / "people.csv", "Ada,", "Grace,", ",")
    bad = write_attendees(tmp_path / "bad.csv", "Ada,", "Grace,nonsense")
    ours, issue = ("--event", event, "--user", USER), ("issue", str(file))
    unasked, refused, *errors = bulk_each(
        office.url, office.folder, (*issue, *ours), ("issue", str(bad), *ours, "--yes"),
        (*issue, "--event", event, "--user", "stranger"),
        (*issue, "--event", "6f1d8c2e-0000-4c39-9d51-0a4be1c7f203", "--user", USER),
        (*issue, *ours, "--send-email", "--yes"), (*issue, *ours, "--expires-on", "2020-01-01"),
        (*issue, *ours, "--query", "select 1"), (*issue, *ours, "--column", "name"),
        ("resume", "6f1d8c2e"), ("watch", "x"))
    assert (unasked[0], unasked[2]) == (2, "Nothing was issued: say --yes to issue.\n")
    assert re.search(r"^ +2 to issue$", unasked[1], re.MULTILINE)
    assert (refused[0], refused[2]) == (2, "Nothing was issued: correct the rows that cannot be issued, or say --skip-bad.\n")
    assert "line 3  Grace: email 'nonsense' is no address" in refused[1]
    for (code, out, err), message in zip(errors, (
            "Error: user 'stranger' may not issue certificates for event", "Error: there is no event 6f1d8c2e",
            "Nothing to issue.", "Error: expires_on 2020-01-01 is before", "Error: name a FILE, or say --query",
            "Error: --column name: write for instance",
            "Error: no batch begins with 6f1d8c2e", "Error: 'x' is not the id of a batch"), strict=True):
        assert (code, message in out + err) == (2, True), out + err
    assert office.batches(event) == office.jobs(event) == certificates_of(office.url, event) == []


def _with_terminal(office: Office, answer: bytes, *arguments: str) -> tuple[int, str]:
    """Exit code and everything on the screen of somebody who answers like this."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen([sys.executable, "-m", "tasks.bulk", *arguments], cwd=ROOT, stdin=theirs, stdout=theirs,
                               stderr=theirs, env={**os.environ, "DATABASE_URL": office.url,
                                                   "STORAGE_URL": office.folder.as_uri()})
    os.close(theirs)
    screen, answered = b"", False
    try:
        while True:
            try:
                more = os.read(ours, 4096)
            except OSError:
                break
            if not more:
                break
            screen += more
            if b"[y/N]" in screen and not answered:
                os.write(ours, answer)
                answered = True
    finally:
        os.close(ours)
        code = process.wait(60)
    return code, screen.decode()


def test_a_person_is_asked(office: Office, tmp_path: Path) -> None:
    event = add_event(office.url)
    file = str(write_attendees(tmp_path / "people.csv", "Ada,", "Grace,"))
    code, screen = _with_terminal(office, b"n\n", "issue", file, "--event", event, "--user", USER)
    assert (code, "Issue 2 certificates? [y/N]" in screen) == (2, True)
    assert office.batches(event) == office.jobs(event) == []
    code, screen = _with_terminal(office, b"y\n", "issue", file, "--event", event, "--user", USER)
    assert code == 0, screen
    assert "2 issued in" in screen
    assert len(certificates_of(office.url, event)) == 2


def test_again_skips_who_has_a_certificate(office: Office, tmp_path: Path) -> None:
    event = add_event(office.url)
    file = write_attendees(tmp_path / "people.csv", "Ada,ada@example.org", "Grace,grace@example.org")
    again = ("issue", str(file), "--event", event, "--user", USER, "--yes")
    (code, *_), (second_code, out, _) = bulk_each(office.url, office.folder, again, again)
    assert (code, second_code, out.splitlines()[-1]) == (0, 0, "Nothing to issue.")
    before = certificates_of(office.url, event)
    with psycopg.connect(office.url) as conn:
        conn.execute("update certificates set revoked_at = now(), revoke_reason = 'error' where event_id = %s and "
                     "recipient_name = 'Grace'", (event,))
    write_attendees(file, "Ada Lovelace,ada@example.org", "Grace Hopper,grace@example.org", "Zoë,zoe@example.org")
    summary = documents(office.issue(file, event, "--yes", "--json"))["summary"]["summary"]
    assert (summary["issued"], summary["revoked"], summary["failed"]) == (2, 1, 0)
    after = {row["recipient_key"]: row for row in certificates_of(office.url, event)}
    assert {key: row["recipient_name"] for key, row in after.items()} == {
        "ada@example.org": "Ada Lovelace", "grace@example.org": "Grace", "zoe@example.org": "Zoë"}
    assert after["ada@example.org"]["serial"] == before[0]["serial"]
    assert len(office.jobs(event)) == 4


def test_what_fails_is_told_and_resumed(office: Office, tmp_path: Path) -> None:
    """A chord with a failure does not run its body, and yet there is a zip of what was issued."""
    event = add_event(office.url)
    file = write_attendees(tmp_path / "people.csv", *(f"Ada {number}," for number in range(5)), "Ada \U0001f9ff,")
    summary = documents(office.issue(file, event, "--yes", "--json"))["summary"]["summary"]
    assert (summary["issued"], summary["failed"]) == (5, 1)
    [failure] = summary["failures"]
    [finisher] = rows(office.url, "select status, user_id from job_queue where task_name = 'tasks.finish_batch' and payload "
                                  "like %s", (f"%{summary['batch']}%",))
    assert finisher == {"status": "completed", "user_id": USER}
    assert (failure["line"], failure["recipient_name"]) == (7, "Ada \U0001f9ff")
    assert "U+1F9FF" in failure["error"]
    with zipfile.ZipFile(office.folder / summary["zip"]) as archive:
        assert len(archive.namelist()) == 5
    batch = summary["batch"]
    again = bulk(office.url, office.folder, "resume", batch[:8], "--json")
    assert again.returncode == 1
    assert documents(again)["queued"]["queued"] == 1
    with psycopg.connect(office.url) as conn:  # somebody corrects the row, and the second resume has nothing left to do
        conn.execute("update certificate_batch_rows set recipient_name = 'Ada' where batch_id = %s and line = 7", (batch,))
    (code, out, err), last = bulk_each(office.url, office.folder, ("resume", batch), ("resume", batch, "--json"))
    assert (code, "6 issued" in out) == (0, True), out + err
    said = [json.loads(line) for line in last[1].splitlines()]
    assert (last[0], said[0]["queued"], said[-1]["summary"]["issued"]) == (0, 0, 6)
    assert len(certificates_of(office.url, event)) == 6


def test_attendees_of_a_query(office: Office) -> None:
    event = add_event(office.url)
    query = "select 'Ada ' || n as recipient_name, n || '@example.org' as email, now() as extra from generate_series(1, 5) n"
    arguments = ("--event", event, "--user", USER, "--yes", "--json")
    wrong = {"select 1": "the query: no column is the recipient's name; there are '?column?'",
             "selekt": "the query: syntax error", "select 1/0 as name": "the query: division by zero",
             "delete from certificates returning recipient_name": "the query: "}
    (code, out, err), *refused = bulk_each(
        office.url, office.folder, *(("issue", "--query", each, *arguments) for each in (query, *wrong)))
    assert code == 0, err
    summary = json.loads(out.splitlines()[-1])["summary"]
    assert (summary["issued"], summary["source"]) == (5, "query")
    for (code, out, err), message in zip(refused, wrong.values(), strict=True):
        assert (code, message in err) == (2, True), out + err
    assert len(certificates_of(office.url, event)) == 5


def test_a_worker_that_is_killed_costs_no_certificate(server: str, template: str, tmp_path: Path) -> None:
    with fresh_database(server, template) as url:
        office = Office(url, tmp_path / "files")
        event = add_event(url)
        file = write_attendees(tmp_path / "people.csv", *(f"Ada {number}," for number in range(30)))
        assert office.issue(file, event, "--yes", "--no-wait").returncode == 0
        started = {"STORAGE_URL": office.folder.as_uri()}
        with worker(url, tmp_path, "tasks", "-c", "2", **started) as first:
            wait_until(lambda: len(certificates_of(url, event)) >= 5, "some certificates")
            os.killpg(first.process.pid, signal.SIGKILL)
        assert len(certificates_of(url, event)) < 30
        batch = str(office.batches(event)[0]["id"])
        engine = create_engine(sqlalchemy_url(url))
        with pytest.raises(BatchError, match="of its jobs have not ended"):
            resume_batch(engine, batch)
        engine.dispose()
        with worker(url, tmp_path, "tasks", "-c", "2", **started):
            done = bulk(url, office.folder, "watch", batch[:8])
        assert done.returncode == 0, done.stdout + done.stderr
        assert "30 issued in" in done.stdout
        assert len(certificates_of(url, event)) == 30
        assert one(url, "select count(*) from job_queue where task_name = 'tasks.finish_batch'") == 1


@pytest.mark.parametrize("cut", ["issue", "plan"])
def test_a_program_that_is_killed_has_issued_nothing(cut: str, database_url: str, tmp_path: Path) -> None:
    """In the middle of reading 1,200 rows, or of queueing 1,200 jobs, which go out in pieces."""
    event = add_event(database_url)
    file = write_attendees(tmp_path / "people.csv", *(f"Ada {number}," for number in range(1200)))
    script = f"""
import os
from pathlib import Path
from tasks.app import engine
from tasks.bulk.batches import issue_batch, plan_batch
from tasks.bulk.csvfile import csv_attendees
die = lambda number: os._exit(9) if number == 1000 else None
with csv_attendees(Path({str(file)!r})) as attendees:
    plan = plan_batch(engine(), attendees, event_id={event!r}, user_id={USER!r}, tell=die if {cut!r} == "plan" else None)
issue_batch(engine(), plan.batch, tell=die)
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60,
                          env={**os.environ, "DATABASE_URL": database_url}, check=False)
    assert done.returncode == 9, done.stderr
    office = Office(database_url, tmp_path / "files")
    assert office.jobs(event) == []
    assert [batch["confirmed_at"] for batch in office.batches(event)] == ([None] if cut == "issue" else [])
    assert one(database_url, "select count(*) from jobqueue.chord") == 0
    if cut == "plan":
        return  # it has left nothing to go on with
    # The same file again; and once more, when the first batch's jobs wait, it finds nothing to do.
    again = ("issue", str(file), "--event", event, "--user", USER, "--yes", "--no-wait", "--json")
    first, second = bulk_each(database_url, office.folder, again, again)
    assert json.loads(first[1].splitlines()[-1])["queued"] == len(office.jobs(event)) == 1200
    assert json.loads(second[1])["plan"]["counts"] == {"duplicate": 1200}
