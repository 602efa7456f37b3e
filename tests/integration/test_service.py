"""What application code calls."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import psycopg
import pytest

from celery_jobqueue.db.errors import InvalidJob
from tasks.app import app as application
from tasks.app import engine
from tasks.service import JobFailed, JobQueueService, JobView
from tests.support.app import make_app
from tests.support.database import fresh_database, one, rows
from tests.support.issuing import USER, add_event, certificates_of, path_of
from tests.support.waiting import wait_until
from tests.support.workers import worker


@pytest.fixture(scope="session")  # an application reads its settings once
def database(server: str, template: str) -> Iterator[str]:
    """A database which the application of this process uses, as a web server's would."""
    with fresh_database(server, template) as url:
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("DATABASE_URL", url)
            engine.cache_clear()
            assert application.conf.broker_url == url, "another test has used the application in this process"
            engine()
        yield url
        engine().dispose()
        application.backend.result_consumer.stop()
        application.close()


@pytest.fixture
def service(database: str) -> JobQueueService:
    """The service."""
    return JobQueueService()


@pytest.fixture
def event(database: str) -> str:
    """An event of the test's own."""
    return add_event(database)


@pytest.fixture
def user() -> str:
    """A user of the test's own."""
    return f"user-{uuid.uuid4().hex[:8]}"


def counts(url: str) -> list[dict[str, Any]]:
    """How many rows every table has that a call could write to."""
    return rows(url, "select (select count(*) from job_queue) jobs, (select count(*) from certificates) certificates, "
                     "(select count(*) from events) events, (select count(*) from jobqueue.message) messages")


def test_a_queued_certificate_is_a_row(service: JobQueueService, database: str, event: str, user: str) -> None:
    first = service.queue_certificate_generation({"event_id": event, "recipient_name": " Ada\tLovelace "}, user)
    second = service.queue_certificate_generation(
        {"event_id": uuid.UUID(event), "recipient_name": "Ada", "recipient_key": "ADA@a.org",
         "expires_on": date(2099, 12, 31)}, user, priority=1, max_attempts=5)
    found = {row["task_id"]: row for row in rows(database, "select * from job_queue where user_id = %s", (user,))}
    assert set(found) == {first, second}
    assert {(row["task_name"], row["status"], row["queue"]) for row in found.values()} == {
        ("tasks.generate_certificate", "pending", "celery")}
    assert [(found[task]["priority"], found[task]["max_attempts"]) for task in (first, second)] == [(5, 3), (1, 5)]
    assert '"recipient_name": "Ada Lovelace"' in found[first]["payload"]
    assert f'"event_id": "{event}"' in found[second]["payload"]
    assert '"recipient_key": "ada@a.org"' in found[second]["payload"]
    assert '"expires_on": "2099-12-31"' in found[second]["payload"]
    assert "expires_on" not in found[first]["payload"]


GOOD = {"recipient_name": "Ada"}
DEEP: list[Any] = []
DEEP.append(DEEP)


@pytest.mark.parametrize(("data", "options", "field"), [
    (GOOD, {"priority": 0}, "priority"), (GOOD, {"priority": 11}, "priority"), (GOOD, {"priority": -1}, "priority"),
    (GOOD, {"priority": 5.0}, "priority"), (GOOD, {"priority": "5"}, "priority"), (GOOD, {"priority": None}, "priority"),
    (GOOD, {"priority": True}, "priority"), (GOOD, {"priority": float("nan")}, "priority"),
    (GOOD, {"max_attempts": 0}, "max_attempts"), (GOOD, {"max_attempts": 2**31}, "max_attempts"),
    (GOOD, {"max_attempts": "3"}, "max_attempts"),
    (GOOD, {"user_id": ""}, "user_id"), (GOOD, {"user_id": " "}, "user_id"), (GOOD, {"user_id": None}, "user_id"),
    (GOOD, {"user_id": 7}, "user_id"), (GOOD, {"user_id": "a\0"}, "user_id"), (GOOD, {"user_id": "a\ud800"}, "user_id"),
    (GOOD, {"user_id": "x" * 300}, "user_id"),
    ({}, {}, "recipient_name"), ({**GOOD, "event_id": None}, {}, "event_id"), ({**GOOD, "event_id": 7}, {}, "event_id"),
    ({**GOOD, "event_id": "no uuid"}, {}, "event_id"), ({**GOOD, "event_id": b"\xff"}, {}, "event_id"),
    ({**GOOD, "event_id": str(uuid.UUID(int=1))}, {}, "event 00000000-0000-0000-0000-000000000001"),
    ({"recipient_name": ""}, {}, "recipient_name"), ({"recipient_name": " \u00a0\n"}, {}, "recipient_name"),
    ({"recipient_name": "x" * 121}, {}, "recipient_name"), ({"recipient_name": None}, {}, "recipient_name"),
    ({"recipient_name": float("nan")}, {}, "recipient_name"), ({"recipient_name": b"Ada"}, {}, "recipient_name"),
    ({"recipient_name": "Ada\0"}, {}, "recipient_name"), ({"recipient_name": "Ada\ud83d"}, {}, "recipient_name"),
    ({"recipient_name": DEEP}, {}, "recipient_name"), ({"recipient_name": {"first": "Ada"}}, {}, "recipient_name"),
    ({**GOOD, "recipient_key": float("inf")}, {}, "recipient_key"), ({**GOOD, "recipient_key": b"x"}, {}, "recipient_key"),
    ({**GOOD, "recipient_key": "x\0"}, {}, "recipient_key"), ({**GOOD, "recipient_key": "\ud800"}, {}, "recipient_key"),
    ({**GOOD, "recipient_key": "x" * 201}, {}, "recipient_key"),
    ({**GOOD, "expires_on": "2020-01-01"}, {}, "expires_on"), ({**GOOD, "expires_on": "next year"}, {}, "expires_on"),
    ({**GOOD, "expires_on": 7}, {}, "expires_on"),
    ({**GOOD, "recipent": "x"}, {}, "data['recipent']"), ({**GOOD, 7: "x"}, {}, "data[7]"),
    ({**GOOD, "user_id": "me"}, {}, "data['user_id']"),
    (None, {}, "data"), ([], {}, "data"), ("Ada", {}, "data"),
], ids=str)
def test_what_is_wrong_is_named_at_the_call_and_nothing_is_written(
        data: Any, options: dict[str, Any], field: str, service: JobQueueService, database: str, event: str) -> None:
    if isinstance(data, dict):
        data = {"event_id": event, **data}
    before = counts(database)
    with pytest.raises(InvalidJob) as caught:
        service.queue_certificate_generation(data, options.pop("user_id", USER), **options)
    assert field in str(caught.value)
    assert len(str(caught.value)) < 500
    assert isinstance(caught.value, ValueError)
    assert counts(database) == before


def test_users_see_their_own_jobs_newest_first(service: JobQueueService, event: str, user: str) -> None:
    mine = [service.queue_certificate_generation({"event_id": event, "recipient_name": name}, user) for name in ("A", "B", "C")]
    service.queue_certificate_generation({"event_id": event, "recipient_name": "D"}, f"{user}x")
    jobs = service.get_user_jobs(user)
    assert [job.task_id for job in jobs] == mine[::-1]
    assert {(job.status, job.attempts, job.max_attempts, job.ended, job.error_message) for job in jobs} == {
        ("pending", 0, 3, False, None)}
    assert [job.task_id for job in service.get_user_jobs(user, limit=1)] == mine[-1:]
    assert service.get_user_jobs("nobody") == []
    assert service.get_user_jobs("' or true --") == []
    with pytest.raises(InvalidJob, match="limit=0"):
        service.get_user_jobs(user, limit=0)


def test_waiting_tells_every_change_and_gives_the_certificate(service: JobQueueService, database: str, event: str,
                                                              tmp_path: Path) -> None:
    task_id = service.queue_certificate_generation({"event_id": event, "recipient_name": "Ada"}, USER)
    seen: list[JobView] = []
    with worker(database, tmp_path, "tasks", "-c", "1", ready=False, STORAGE_URL=tmp_path.as_uri()):
        job = service.wait_for(task_id, timeout=60, on_progress=seen.append)
    assert (seen[0].status, seen[-1]) == ("pending", job)
    told = [view.status for view in seen]
    assert told == [status for status in ("pending", "processing", "completed") if status in told]
    assert (job.status, job.attempts, job.task_id, job.error_message) == ("completed", 1, task_id, None)
    [row] = certificates_of(database, event)
    assert job.result["id"] == str(row["id"])
    assert path_of(job.result["url"]).exists()
    assert service.get_user_jobs(USER, limit=1)[0].id == job.id
    assert service.wait_for(task_id, timeout=0) == job


def test_waiting_ends_with_the_jobs_error(service: JobQueueService, database: str, tmp_path: Path) -> None:
    event = add_event(database, design=None)
    task_id = service.queue_certificate_generation({"event_id": event, "recipient_name": "Ada"}, USER)
    with (worker(database, tmp_path, "tasks", "-c", "1", ready=False, STORAGE_URL=tmp_path.as_uri()),
          pytest.raises(JobFailed, match=f"^MissingConfiguration: event {event} has no certificate configuration")):
        service.wait_for(task_id, timeout=60)


def test_progress_is_told_while_the_job_runs(service: JobQueueService, database: str, tmp_path: Path) -> None:
    other = make_app(database)
    mark = tmp_path / "mark"
    seen: list[Any] = []

    def look(job: JobView) -> None:
        seen.append((job.status, job.progress))
        if job.progress is not None:
            Path(f"{mark}.go").touch()

    with worker(database, tmp_path, "tests.support.app", "-c", "1", "-Q", "slow"):
        task_id = other.send_task("t.progress", (str(mark),), queue="slow").id
        job = service.wait_for(task_id, timeout=30, on_progress=look)
    assert ("processing", {"done": 1, "total": 2}) in seen
    assert seen[-1] == ("completed", None)
    assert job.result == "done"
    other.close()


def test_waiting_has_an_end(service: JobQueueService, database: str, event: str) -> None:
    with psycopg.connect(database, autocommit=True) as conn:
        task_id = conn.execute("insert into job_queue (task_name, queue) values ('t.x', 'nobody') returning task_id").fetchone()
    assert task_id
    with pytest.raises(TimeoutError, match=r"is still pending after 0\.3 s"):
        service.wait_for(task_id[0], timeout=0.3)
    with pytest.raises(InvalidJob, match="there is no job with task id 'nothing'"):
        service.wait_for("nothing")


def test_stuck_jobs_run_again(service: JobQueueService, database: str) -> None:
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute("insert into job_queue (task_name, queue, status, attempts, started_at) "
                     "select 't.stuck', 'nobody', 'processing', 1, now() - make_interval(mins => ago) "
                     "from unnest(array[1, 6, 20]) ago")
    assert service.reset_stuck_jobs(older_than_minutes=5) == 2
    assert service.reset_stuck_jobs(older_than_minutes=5) == 0
    assert one(database, "select count(*) from job_queue where task_name = 't.stuck' and status = 'pending'") == 2


def test_a_job_that_is_waited_for_is_not_lost_when_it_is_reset(service: JobQueueService, database: str, event: str,
                                                               tmp_path: Path) -> None:
    """A person resets a completed job's row by hand while somebody waits: it runs again, and the waiting goes on."""
    task_id = service.queue_certificate_generation({"event_id": event, "recipient_name": "Ada"}, USER)
    with worker(database, tmp_path, "tasks", "-c", "1", STORAGE_URL=tmp_path.as_uri()):
        wait_until(lambda: (job := service.get_job(task_id)) and job.ended, "it is completed")
        with psycopg.connect(database, autocommit=True) as conn:
            conn.execute("update job_queue set status = 'pending', started_at = null where task_id = %s", (task_id,))
        job = service.wait_for(task_id, timeout=30)
    assert (job.status, job.attempts) == ("completed", 2)
    assert len(certificates_of(database, event)) == 1
