"""The application's API by HTTP: who may do what, what is said, and how much of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from celery_jobqueue.db.errors import ConfigurationError
from tasks.web.options import WebOptions
from tests.support.database import fresh_database, one, rows
from tests.support.issuing import add_event
from tests.support.waiting import wait_until
from tests.support.web import Site, site
from tests.support.workers import ROOT

SECRET = "0123456789abcdef" * 2


@pytest.fixture(scope="module")
def url(server: str, template: str) -> Iterator[str]:
    """A database of this module's own."""
    with fresh_database(server, template) as url:
        yield url


@pytest.fixture(scope="module")
def web(url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A web server without a worker: jobs stay as they are."""
    home = tmp_path_factory.mktemp("web")
    (home / "files").mkdir()
    (home / "files" / "a.pdf").write_bytes(b"%PDF-1.7 a file")
    links = f"{(home / 'files').as_uri()}?links=http://127.0.0.1/files"
    with site(url, home, STORAGE_URL=links, STORAGE_LINK_SECRET=SECRET) as running:
        yield running


@pytest.fixture
def user(url: str) -> Iterator[str]:
    """Alice, without any jobs before and after."""
    rows(url, "delete from job_queue")
    yield "alice"
    rows(url, "delete from job_queue")


@pytest.fixture
def event(url: str) -> str:
    """An event of alice's."""
    return add_event(url, user="alice")


def finished(url: str, user: str, **result: str) -> str:
    """A job that has ended with this result; its task id."""
    return str(one(url, "insert into job_queue (task_name, user_id, status, state, result, payload)"
                        " values ('tasks.generate_certificate', %s, 'completed', 'SUCCESS', %s, '[[], {}, {}]')"
                        " returning task_id", (user, json.dumps(result))))


# -- ordering ------------------------------------------------------------------------------------------------------------


def test_an_order_is_accepted_and_says_where_to_look(web: Site, url: str, user: str, event: str) -> None:
    answer = web.order(user, event, " Zoë  Ångström ", recipient_key="zoe@a.org")
    assert answer.status == 202
    assert answer.json["message"] == "Processing in background…"
    job = answer.json["job"]
    assert answer.headers["location"] == f"/api/jobs/{job['id']}"
    assert (job["status"], job["title"], job["attempts"], job["error"]) == ("pending", "Zoë Ångström", 0, None)
    [row] = rows(url, "select * from job_queue")
    assert (row["task_id"], row["user_id"], row["task_name"]) == (job["id"], "alice", "tasks.generate_certificate")
    assert web.ask(answer.headers["location"], user).json == job
    assert web.ask("/api/jobs", user).json == {"jobs": [job]}


@pytest.mark.parametrize(("data", "status", "field"), [
    ({"recipient_name": "Ada"}, 422, "event_id"),
    ({"event_id": "EVENT"}, 422, "recipient_name"),
    ({"event_id": "no uuid", "recipient_name": "Ada"}, 422, "event_id"),
    ({"event_id": None, "recipient_name": "Ada"}, 422, "event_id"),
    ({"event_id": {"a": 1}, "recipient_name": "Ada"}, 422, "event_id"),
    ({"event_id": "EVENT", "recipient_name": ""}, 422, "recipient_name"),
    ({"event_id": "EVENT", "recipient_name": "A" * 121}, 422, "recipient_name"),
    ({"event_id": "EVENT", "recipient_name": "Ada\x00"}, 422, "recipient_name"),
    ({"event_id": "EVENT", "recipient_name": "\ud800"}, 422, "recipient_name"),
    ({"event_id": "EVENT", "recipient_name": ["Ada"]}, 422, "recipient_name"),
    ({"event_id": "EVENT", "recipient_name": "Ada", "recipient_key": 7}, 422, "recipient_key"),
    ({"event_id": "EVENT", "recipient_name": "Ada", "expires_on": "2020-01-01"}, 422, "expires_on"),
    ({"event_id": "EVENT", "recipient_name": "Ada", "user_id": "bob"}, 422, "user_id"),
    ({"event_id": "EVENT", "recipient_name": "Ada", "priority": 1}, 422, "priority"),
    ({"event_id": str(uuid.uuid4()), "recipient_name": "Ada"}, 403, "event_id"),
    ([1, 2], 422, None), (b"{", 400, None), (b"[" * 10_000, 400, None), (b'{"a": "' + b"x" * 20_000 + b'"}', 413, None)])
def test_bad_orders_are_refused_by_name_and_write_nothing(web: Site, url: str, user: str, event: str, data: object, status: int,
                                                          field: str | None) -> None:
    if isinstance(data, dict):
        data = {name: event if value == "EVENT" else value for name, value in data.items()}
    answer = web.ask("/api/certificates", user, method="POST", data=data)
    assert (answer.status, answer.json["error"]["field"]) == (status, field), answer.text
    assert answer.json["error"]["message"]
    assert one(url, "select count(*) from job_queue") == 0


def test_somebody_elses_event_is_answered_like_none(web: Site, user: str, event: str) -> None:
    theirs, none = web.order("bob", event, "Ada"), web.order("bob", unknown := str(uuid.uuid4()), "Ada")
    assert theirs.status == none.status == 403
    assert theirs.text.replace(event, "") == none.text.replace(unknown, "")


@pytest.mark.parametrize("headers", [{"Origin": "https://evil.example"}, {"Sec_Fetch_Site": "cross-site"}, {"Origin": "null"},
                                     {"Sec_Fetch_Site": "same-site"}])
def test_other_sites_order_nothing(web: Site, url: str, user: str, event: str, headers: dict[str, str]) -> None:
    order = {"event_id": event, "recipient_name": "Ada"}
    assert web.ask("/api/certificates", user, method="POST", data=order, **headers).status == 403
    assert web.ask("/api/certificates", user, method="POST", data=order, Content_Type="text/plain").status == 415
    assert one(url, "select count(*) from job_queue") == 0
    assert web.ask("/api/certificates", user, method="POST", data=order, Origin=web.url).status == 202


def test_a_user_with_too_many_unfinished_jobs_waits(web: Site, url: str, user: str, event: str) -> None:
    rows(url, "insert into job_queue (task_name, user_id) select 't', 'alice' from generate_series(1, 99)")
    assert web.order(user, event, "The hundredth").status == 202
    answer = web.order(user, event, "One too many")
    assert (answer.status, answer.headers["retry-after"]) == (429, "10")
    assert "100 jobs that are not finished" in answer.json["error"]["message"]


# -- one's own -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/api/jobs", "/api/jobs/x", "/api/jobs/x/file", "/api/jobs/stream", "/api/events"])
def test_without_signing_in_there_is_nothing(web: Site, path: str) -> None:
    for answer in (web.ask(path), web.ask(path, "stranger", X_Forwarded_For="203.0.113.9")):
        assert answer.status in (401, 429)
    assert web.ask(path).headers["www-authenticate"].startswith("Basic ")
    assert web.ask("/api/certificates", method="POST", data={}).status == 401


def test_only_ones_own_jobs(web: Site, url: str, user: str) -> None:
    job = finished(url, "alice", serial="ABCD-EFGH-JKLM", storage_key="a.pdf", recipient_name="Zoë")
    assert web.ask(f"/api/jobs/{job}", user).json["certificate"] == {"serial": "ABCD-EFGH-JKLM", "recipient_name": "Zoë"}
    assert web.ask(f"/api/jobs/{job}", "bob").status == web.ask("/api/jobs/none", "bob").status == 404
    assert web.ask(f"/api/jobs/{job}", "bob").text == web.ask("/api/jobs/none", "bob").text
    assert web.ask("/api/jobs", "bob").json == {"jobs": []}
    assert web.ask(f"/api/jobs/{job}/file", "bob").status == 404
    assert web.ask("/api/events", "bob").json == {"events": []}


def test_the_file_is_a_link_that_the_storage_has_signed(web: Site, url: str, user: str) -> None:
    job = finished(url, "alice", serial="ABCD-EFGH-JKLM", storage_key="a.pdf", recipient_name="Zoë")
    answer = web.ask(f"/api/jobs/{job}/file", user)
    assert answer.status == 303
    link = answer.headers["location"].removeprefix("http://127.0.0.1")
    file = web.ask(link)
    assert (file.status, file.text, file.headers["content-type"]) == (200, "%PDF-1.7 a file", "application/pdf")
    assert web.ask(link.replace("a.pdf", "b.pdf")).status == 403
    assert web.ask("/files/a.pdf").status == 403
    missing = finished(url, "alice", serial="ABCD-EFGH-JKLM", storage_key="gone.pdf", recipient_name="Zoë")
    assert web.ask(web.ask(f"/api/jobs/{missing}/file", user).headers["location"].removeprefix("http://127.0.0.1")).status == 404
    assert web.ask(f"/api/jobs/{finished(url, 'alice')}/file", user).status == 404


def test_where_the_storage_has_no_links_the_file_itself_comes(url: str, user: str, tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.pdf").write_bytes(b"%PDF-1.7 a file")
    with site(url, tmp_path) as plain:
        job = finished(url, "alice", serial="ABCD-EFGH-JKLM", storage_key="a.pdf", recipient_name="Zoë")
        answer = plain.ask(f"/api/jobs/{job}/file", user)
        assert (answer.status, answer.text) == (200, "%PDF-1.7 a file")
        assert answer.headers["content-disposition"] == 'inline; filename="certificate-ABCD-EFGH-JKLM.pdf"'
        assert plain.ask("/files/a.pdf?expires=1&signature=x").status == 403
        gone = finished(url, "alice", serial="ABCD-EFGH-JKLM", storage_key="gone.pdf", recipient_name="Zoë")
        assert plain.ask(f"/api/jobs/{gone}/file", user).status == 404


# -- following -----------------------------------------------------------------------------------------------------------


def test_a_stream_begins_with_what_is_and_goes_on_with_what_changes(web: Site, url: str, user: str, event: str) -> None:
    first = web.order(user, event, "Ada").json["job"]["id"]
    with web.stream(user) as stream:
        name, tag, jobs = stream.next()
        assert (name, [job["id"] for job in jobs]) == ("jobs", [first])
        rows(url, "insert into job_queue (task_name, user_id) values ('t.secret', 'bob')")
        rows(url, "update job_queue set status = 'processing', started_at = now(), state = 'PROGRESS',"
                  " result = '{\"done\": 3, \"total\": 4}' where task_id = %s", (first,))
        name, second_tag, job = stream.next()
        assert (name, job["id"], job["status"]) == ("job", first, "processing")
        assert job["progress"] == {"done": 3, "total": 4, "percent": 75.0}
        assert second_tag not in (None, tag)
    with web.stream(user, second_tag) as again:
        assert again.next() == (":", None, "nothing has changed")
        rows(url, "update job_queue set status = 'failed', error_message = 'MissingGlyph: no font has it'"
                  " where task_id = %s", (first,))
        name, _, job = again.next()
        assert (name, job["status"], job["error"]) == ("job", "failed", "no font has it")
    with web.stream(user, second_tag) as later:
        name, _, jobs = later.next()
        assert (name, [job["status"] for job in jobs]) == ("jobs", ["failed"]), "what was missed is in the present state"


def test_polling_costs_nothing_while_nothing_changes(web: Site, url: str, user: str, event: str) -> None:
    web.order(user, event, "Ada")
    tag = web.ask("/api/jobs", user).headers["etag"]
    assert web.ask("/api/jobs", user, If_None_Match=tag).status == 304
    rows(url, "update job_queue set status = 'completed'")
    assert web.ask("/api/jobs", user, If_None_Match=tag).status == 200


def test_streams_are_limited_per_user_and_given_back(web: Site, user: str) -> None:
    with ExitStack() as stack:
        for _ in range(4):
            assert stack.enter_context(web.stream(user)).next()[0] == "jobs"
        answer = web.ask("/api/jobs/stream", user)
        assert (answer.status, answer.headers["retry-after"]) == (429, "30")
        assert stack.enter_context(web.stream("bob")).next()[0] == "jobs"

    def free_again() -> bool:
        with web.stream(user) as stream:
            return stream.status == 200

    wait_until(free_again, "closed streams are given back")


def test_a_burst_of_changes_is_a_handful_of_events(web: Site, url: str, user: str) -> None:
    with web.stream(user) as stream:
        stream.next()
        rows(url, "insert into job_queue (task_name, user_id, payload) select 't', 'alice', '{}' from generate_series(1, 5000)")
        rows(url, "insert into job_queue (task_name, user_id, created_at)"
                  " values ('t.last', 'alice', now() + interval '1 minute')")
        seen = 0
        while stream.next()[2]["task"] != "t.last":
            seen += 1
        assert seen <= 40  # a page has twenty


def test_a_lost_listener_comes_back_and_nothing_is_missed_meanwhile(web: Site, url: str, user: str, event: str) -> None:
    job = web.order(user, event, "Ada").json["job"]["id"]
    listening = "from pg_stat_activity where application_name = 'jobqueue web' and datname = current_database()"
    with web.stream(user) as stream:
        stream.next()
        pid = wait_until(lambda: rows(url, f"select pid {listening}"), "it listens")[0]["pid"]
        rows(url, f"select pg_terminate_backend(pid) {listening}")
        rows(url, "update job_queue set status = 'completed' where task_id = %s", (job,))
        assert stream.next()[2]["status"] == "completed"
    wait_until(lambda: any(row["pid"] != pid for row in rows(url, f"select pid {listening}")), "it listens again")


def test_a_server_that_stops_ends_its_streams(url: str, tmp_path: Path) -> None:
    with site(url, tmp_path) as stopping, stopping.stream("alice") as stream:
        stream.next()
        assert stopping.stop() == 0
        with pytest.raises(EOFError):
            stream.next()


# -- around it -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/api/jobs", "/verify", "/verify/X", "/api/verify/X", "/static/app.js", "/nowhere",
                                  "/health", "/api/jobs/none", "/files/x"])
def test_every_answer_tells_browsers_to_trust_nothing_else(web: Site, path: str) -> None:
    headers = web.ask(path, "alice").headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert "server" not in headers


def test_wrong_passwords_are_counted_and_right_ones_wait_too(url: str, tmp_path: Path) -> None:
    with site(url, tmp_path) as guarded:
        assert [guarded.ask("/api/jobs", "alice", password=f"guess-{n}").status for n in range(12)] == [401] * 10 + [429] * 2
        assert guarded.ask("/api/jobs", "alice").status == 429, "or guessing would go on"
        assert guarded.ask("/api/jobs", "alice", X_Forwarded_For="203.0.113.7").status == 429, "nobody told it to believe that"


def test_behind_a_proxy_only_when_told(url: str, tmp_path: Path) -> None:
    with site(url, tmp_path, WEB_TRUSTED_PROXIES="127.0.0.0/8", WEB_HOSTS="app.example.org,127.0.0.1") as behind:
        def ask(client: str) -> int:
            return behind.ask("/api/verify/X", X_Forwarded_For=client).status

        assert [ask("203.0.113.7") for _ in range(31)] == [200] * 30 + [429]
        assert ask("203.0.113.8") == 200
        assert ask("198.51.100.1, 203.0.113.7") == 429, "the last one that no proxy of ours has said"
        assert ask("2001:db8::1") == 200
        assert behind.ask("/health", Host="evil.example").status == 400


def test_it_does_not_start_without_a_way_to_sign_in(url: str) -> None:
    plain = {name: value for name, value in os.environ.items() if not name.startswith("WEB_")}
    done = subprocess.run([sys.executable, "-m", "tasks.web", "--port", "0"], env={**plain, "DATABASE_URL": url},
                          cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "no way to sign in: set WEB_AUTHENTICATE=module:function" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("environment", "message"), [
    ({"WEB_AUTHENTICATE": "a:b", "WEB_BASIC_AUTH": "a:b"}, "two ways to sign in"),
    ({"WEB_AUTHENTICATE": "no.such:thing"}, "WEB_AUTHENTICATE=no.such:thing cannot be loaded"),
    ({"WEB_BASIC_AUTH": "olga"}, "WEB_BASIC_AUTH: entry 1 is not user:password")])
def test_a_way_to_sign_in_that_cannot_be_used_is_named(environment: dict[str, str], message: str,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WEB_AUTHENTICATE", "WEB_BASIC_AUTH"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=message):
        WebOptions.from_environment()


def test_a_hook_of_the_applications_own(url: str, tmp_path: Path, user: str) -> None:
    with site(url, tmp_path, WEB_BASIC_AUTH="", WEB_AUTHENTICATE="tests.support.web_users:by_cookie") as hooked:
        assert hooked.ask("/api/jobs").status == 401
        assert "www-authenticate" not in hooked.ask("/api/jobs").headers, "no browser asks for a password that is none"
        assert hooked.ask("/api/jobs", Cookie="who=alice").status == 200
        assert "Alice Example" in hooked.ask("/", Cookie="who=alice").text


def test_a_demonstration_is_for_this_machine_only(url: str) -> None:
    done = subprocess.run([sys.executable, "-m", "tasks.web", "--demo", "--host", "192.0.2.1"],
                          env={**os.environ, "DATABASE_URL": url}, cwd=ROOT, capture_output=True, text=True, timeout=60,
                          check=False)
    assert done.returncode == 2
    assert "listens on 127.0.0.1 only" in done.stderr


