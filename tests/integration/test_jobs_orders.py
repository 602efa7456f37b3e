"""`celery jobs`: retry and cancel change what they say and nothing else; watch; errors of one line; few rights."""

from __future__ import annotations

import json
import re
import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest
from celery import Celery, chord
from celery.exceptions import ChordError, TaskRevokedError
from celery.result import AsyncResult

from tests.support.database import one, rows
from tests.support.jobs_command import Terminal, jobs_of, jobs_process, told_by
from tests.support.waiting import wait_until
from tests.support.workers import Worker

Start = Callable[..., Worker]


def row(url: str, task_id: str) -> dict[str, Any]:
    return rows(url, "select * from job_queue where task_id = %s", (task_id,))[0]


def running(app: Celery, mark: Path, **options: Any) -> AsyncResult[Any]:
    """A job that runs until the mark's `.go` twin appears."""
    mark.unlink(missing_ok=True)
    result = app.tasks["t.wait"].apply_async((str(mark),), **options)
    wait_until(mark.exists, "the job runs")
    return result


# -- retry --------------------------------------------------------------------------------------------------------------


def test_failed_and_completed_jobs_run_again(app: Celery, database_url: str, start_worker: Start, tmp_path: Path) -> None:
    worker = start_worker("-c", "1")
    bad = app.tasks["t.boom"].apply_async(("bang",), max_attempts=1)
    good = app.tasks["t.record"].delay(str(tmp_path / "log"), "ran")
    with pytest.raises(ValueError, match="bang"):
        bad.get(timeout=30)
    good.get(timeout=30)
    assert worker.stop() == 0
    waiting = app.tasks["t.add"].delay(1, 1)
    expired = app.tasks["t.add"].apply_async((1, 1), expires=3600)
    rows(database_url, "update job_queue set status = 'failed', expires_at = now() - interval '3 hours' where task_id = %s",
         (expired.id,))
    told = jobs_of(app, "retry", bad.id, good.id, waiting.id, expired.id, columns=80)
    assert told.code == 1
    assert told.lines == [
        f'retried  {bad.id}  t.boom("bang")', told.lines[1], f"unchanged  {waiting.id}  waits already",
        f"unchanged  {expired.id}  expired 3 h ago and would not run"]
    assert told.lines[1].startswith(f"retried  {good.id}  t.record(")
    for result in (bad, good):
        again = row(database_url, result.id)
        assert (again["status"], again["attempts"], again["max_attempts"] - again["attempts"] >= 1) == (
            "pending", again["attempts"], True)
        assert (again["state"], again["result"], again["lease"], again["finished_at"], again["total_starts"]) == (
            None, None, None, None, 1)
    assert row(database_url, expired.id)["status"] == "failed"
    start_worker("-c", "1")
    wait_until(lambda: row(database_url, good.id)["status"] == "completed", "the completed job ran again")
    wait_until(lambda: row(database_url, bad.id)["status"] == "failed", "the failed job ran again")
    assert (tmp_path / "log").read_text() == "ran\nran\n"
    assert [entry["start"] for entry in row(database_url, bad.id)["errors"]] == [1, 2]


def test_all_failed_jobs_that_are_meant(app: Celery, database_url: str) -> None:
    """More than one step of a thousand; what is past its expiry, fails meanwhile or is not meant stays as it is."""
    rows(database_url, """
        insert into job_queue (status, task_name, queue, user_id, task_id, created_at, expires_at, attempts)
        select 'failed', 't.' || i % 2, case when i % 10 = 0 then 'mail' else 'celery' end, 'u-' || i % 7, 'f' || i,
               now() - make_interval(secs => i), case when i % 100 = 1 then now() - interval '1 second' end, 3
          from generate_series(1, 2500) i""")
    rows(database_url, "insert into job_queue (status, task_name, task_id) values ('completed', 't.1', 'done')")
    rows(database_url, "create function fail_again() returns trigger language plpgsql as $$ begin if new.task_id = 'f13' then"
                       " new.status := 'failed'; end if; return new; end $$;"
                       "create trigger zz before update on job_queue for each row execute function fail_again()")
    told = jobs_of(app, "retry", "--failed", "--task", "t.1", "--queue", "mail")
    assert (told.code, told.lines[-1]) == (0, "0 retried")
    told = jobs_of(app, "retry", "--failed", "--queue", "mail", "--user", "u-3", "--json")
    mail = {r["id"] for r in rows(database_url, "select id::text from job_queue where status = 'pending'")}
    assert set(told.document["retried"]) == mail
    assert mail == {r["id"] for r in rows(
        database_url, "select id::text from job_queue where queue = 'mail' and user_id = 'u-3'")}
    told = jobs_of(app, "retry", "--failed", "--since", "1000 seconds", "--task", "t.1")
    assert told.lines[-1] == "490 retried"  # 500 of them, 10 past their expiry; the thousandth second is over by now
    told = jobs_of(app, "retry", "--failed")
    left = rows(database_url, "select task_id from job_queue where status = 'failed'")
    assert {r["task_id"] for r in left} == {"f13"} | {f"f{i}" for i in range(1, 2500, 100)}
    assert one(database_url, "select status from job_queue where task_id = 'done'") == "completed"
    assert one(database_url, "select count(*) from job_queue where status = 'pending' and attempts = 2") == 2500 - 26


def test_a_running_job_only_by_force_and_its_worker_cannot_finish_it(app: Celery, database_url: str, start_worker: Start,
                                                                     tmp_path: Path) -> None:
    start_worker("-c", "2")
    mark = tmp_path / "mark"
    result = running(app, mark)
    refused = jobs_of(app, "retry", result.id)
    assert (refused.code, refused.lines) == (1, [f"unchanged  {result.id}  is running; --force takes it from its worker"])
    first = row(database_url, result.id)
    mark.unlink()
    assert jobs_of(app, "retry", "--force", result.id).code == 0
    wait_until(mark.exists, "it runs a second time, beside the first")
    second = row(database_url, result.id)
    assert second["lease"] != first["lease"]
    assert (second["status"], second["total_starts"]) == ("processing", 2)
    (tmp_path / "mark.go").touch()
    assert result.get(timeout=20) == "went"
    assert row(database_url, result.id)["total_starts"] == 2


# -- cancel -------------------------------------------------------------------------------------------------------------


def test_a_waiting_job_never_runs_and_who_waits_is_told(app: Celery, database_url: str, start_worker: Start,
                                                        tmp_path: Path) -> None:
    """Waiting with no worker alive, and claimed by a busy one."""
    log = tmp_path / "log"
    alone = app.tasks["t.record"].delay(str(log), "alone")
    heard: list[BaseException] = []

    def wait() -> None:
        try:
            alone.get(timeout=30)
        except BaseException as error:
            heard.append(error)

    waiter = threading.Thread(target=wait)
    waiter.start()
    wait_until(lambda: rows(database_url, "select 1 from jobqueue.waiter"), "somebody waits")
    told = jobs_of(app, "cancel", alone.id[:10], "--json")
    assert (told.code, told.document) == (0, {"cancelled": [str(row(database_url, alone.id)["id"])], "unchanged": []})
    waiter.join(10)
    assert [(type(error), str(error)) for error in heard] == [(TaskRevokedError, "cancelled")]

    start_worker("-c", "1", "--prefetch-multiplier", "8")
    first = running(app, tmp_path / "mark")
    claimed = [app.tasks["t.record"].delay(str(log), "claimed") for _ in range(4)]
    wait_until(lambda: rows(database_url, "select 1 from job_queue where owner is not null and status = 'pending'"),
               "one of them is claimed, not started")
    waiting = [result.id for result in claimed if row(database_url, result.id)["status"] == "pending"]
    told = jobs_of(app, "cancel", *waiting)
    assert [line.split()[:2] for line in told.lines] == [["cancelled", id] for id in waiting]
    (tmp_path / "mark.go").touch()
    assert first.get(timeout=20) == "went"
    assert app.tasks["t.add"].delay(1, 1).get(timeout=20) == 2  # the worker has come past them
    assert log.read_text().count("claimed") == len(claimed) - len(waiting) if log.exists() else len(waiting) == len(claimed)
    for id in (*waiting, alone.id):
        ended = row(database_url, id)
        assert (ended["status"], ended["state"], ended["error_message"], ended["attempts"], ended["owner"]) == (
            "failed", "REVOKED", "cancelled", 0, None)
        assert ended["finished_at"]
    again = jobs_of(app, "cancel", alone.id)
    assert (again.code, again.lines) == (1, [f"unchanged  {alone.id}  is failed already"])


@pytest.mark.parametrize("ignored", [False, True])
def test_a_chord_fails_when_a_part_of_it_is_cancelled(ignored: bool, app: Celery, database_url: str, start_worker: Start) -> None:
    add = app.tasks["t.add"]
    result = chord([add.s(1, 1), add.s(2, 2).set(queue="elsewhere", ignore_result=ignored)], app=app)(app.tasks["t.wait"].s(1))
    start_worker()
    part = one(database_url, "select task_id from job_queue where queue = 'elsewhere'")
    assert jobs_of(app, "cancel", part).code == 0
    with pytest.raises(ChordError, match="cancelled"):
        app.AsyncResult(result.id).get(timeout=20)
    ended = row(database_url, part)
    assert (ended["status"], ended["error_message"], ended["state"]) == ("failed", "cancelled", None if ignored else "REVOKED")


def test_results_kept_elsewhere_are_told_there(make_client: Callable[..., Celery], database_url: str, tmp_path: Path) -> None:
    app = make_client(result_backend=f"file://{tmp_path}")
    result = app.tasks["t.add"].delay(1, 1)
    assert jobs_of(app, "cancel", result.id).code == 0
    with pytest.raises(TaskRevokedError, match="cancelled"):
        result.get(timeout=5)
    ended = row(database_url, result.id)
    assert (ended["status"], ended["error_message"], ended["state"], ended["owner"]) == ("failed", "cancelled", None, None)


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_running_job_is_stopped_or_at_least_not_finished(pool: str, app: Celery, database_url: str, start_worker: Start,
                                                           tmp_path: Path) -> None:
    worker = start_worker("-c", "2", "-P", pool)
    mark = tmp_path / "mark"
    result = running(app, mark)
    refused = jobs_of(app, "cancel", result.id)
    assert (refused.code, refused.lines) == (1, [f"unchanged  {result.id}  is running; --terminate stops it"])
    told = jobs_of(app, "cancel", "--terminate", result.id)
    assert told.code == 0
    assert told.lines[0].startswith(f"cancelled  {result.id}  t.wait(")
    assert told.err.startswith(f"{worker.name}: ")
    assert ("stopped" in told.err) is (pool == "prefork")  # a thread cannot be stopped
    with pytest.raises(TaskRevokedError, match="cancelled"):
        result.get(timeout=10)
    (tmp_path / "mark.go").touch()
    assert app.tasks["t.add"].delay(1, 1).get(timeout=20) == 2
    if pool == "threads":
        wait_until(lambda: re.search(rf"Task t.wait\[{result.id}\] succeeded", worker.text), "the thread has ended")
    ended = row(database_url, result.id)
    assert (ended["status"], ended["state"], ended["error_message"], ended["attempts"]) == ("failed", "REVOKED", "cancelled", 1)
    # Celery's worker remembers for hours what it was told to terminate; a person who says so has it run again.
    assert jobs_of(app, "retry", result.id).code == 0
    assert app.AsyncResult(result.id).get(timeout=20) == "went"


# -- watch --------------------------------------------------------------------------------------------------------------


def test_watched_in_a_pipe(app: Celery, database_url: str, start_worker: Start, tmp_path: Path) -> None:
    mark = str(tmp_path / "mark")
    good, bad = app.tasks["t.progress"].delay(mark), app.tasks["t.boom"].apply_async(("bang",), queue="elsewhere")
    watching = jobs_process(database_url, "watch", good.id, bad.id, "--interval", "0.1")
    as_json = jobs_process(database_url, "watch", good.id, "--json", "--interval", "0.1")
    everything = jobs_process(database_url, "watch", "--interval", "0.1")
    heads = [process.stdout.readline() for process in (watching, as_json, everything) if process.stdout]
    assert all(" pending " in head for head in (heads[0], heads[2]))
    start_worker()
    wait_until(Path(mark).exists, "it runs")
    wait_until(lambda: row(database_url, good.id)["state"] == "PROGRESS", "it tells of its progress")
    for process in (watching, everything):
        assert process.stdout
        while "█████░░░░░ 1/2" not in (line := process.stdout.readline()):
            assert line, "the watch goes on"
    assert as_json.stdout
    while (seen := json.loads(as_json.stdout.readline()))["progress"] is None:
        assert seen["status"] in ("pending", "processing")
    assert (seen["status"], seen["progress"]) == ("processing", {"done": 1, "total": 2})
    Path(mark + ".go").touch()
    told = told_by(as_json)
    assert told.code == 0
    assert [(d["status"], d["progress"]) for d in told.documents] == [("completed", None)]
    rows(database_url, "update job_queue set status = 'failed', error_message = 'ValueError: bang' where task_id = %s", (bad.id,))
    told = told_by(watching)
    assert told.code == 1
    assert re.fullmatch(rf'\d\d:\d\d:\d\d failed {bad.id} t\.boom\("bang"\) ValueError: bang', told.lines[-1])
    assert sum(" completed " in line for line in told.lines) == 1
    assert everything.stdout
    while f" failed {bad.id} " not in everything.stdout.readline():
        assert everything.poll() is None
    everything.send_signal(signal.SIGINT)
    assert told_by(everything).code == 0


def test_watched_in_a_terminal(app: Celery, database_url: str, start_worker: Start, tmp_path: Path) -> None:
    results = [app.tasks["t.wait"].delay(str(tmp_path / "mark")) for _ in range(40)]
    one_of_them = Terminal(database_url, "watch", results[0].id, "--interval", "0.1", columns=80, lines=24)
    everything = Terminal(database_url, "watch", "--interval", "0.1", columns=80, lines=24)
    try:
        wait_until(lambda: results[0].id[:8] in one_of_them.text and "40 waiting" in everything.text, "both show the jobs")
        assert "no worker" in everything.text
        start_worker("-c", "2")
        (tmp_path / "mark.go").touch()
        assert one_of_them.wait() == 0
        wait_until(lambda: "0 waiting, 0 running" in everything.text, "all have run")
        everything.process.send_signal(signal.SIGINT)
        assert everything.wait() == 0
    finally:
        one_of_them.kill()
        everything.kill()
    for terminal in (one_of_them, everything):
        assert terminal.text.startswith("\x1b[?25l")
        assert terminal.text.rstrip().endswith("\x1b[?25h")
        screens = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen).split("\n") for screen in terminal.text.split("\x1b[J")]
        assert max(len(line.strip("\r")) for screen in screens for line in screen) <= 80
        assert max(map(len, screens)) <= 24
    assert "\x1b[32mcompleted" in one_of_them.text
    moved = [int(lines) for lines in re.findall(r"\x1b\[(\d+)A", everything.text)]
    assert moved
    assert max(moved) == 23


def test_a_watched_job_that_is_deleted(app: Celery, database_url: str) -> None:
    result = app.tasks["t.add"].delay(1, 1)
    watching = jobs_process(database_url, "watch", result.id, "--json", "--interval", "0.1")
    assert watching.stdout
    assert f'"task_id": "{result.id}"' in watching.stdout.readline()
    id = str(row(database_url, result.id)["id"])
    rows(database_url, "delete from job_queue")
    told = told_by(watching)
    assert (told.code, told.documents) == (1, [{"id": id, "status": "deleted"}])


# -- errors and rights --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("arguments", "says"), [
    (("list", "--since", "soon"), "'soon' is not a duration such as '1 hour'"),
    (("list", "--since", "-1 hour"), "'-1 hour' is not a duration"),
    (("list", "--status", "lost"), "'lost' is not one of"),
    (("list", "--limit", "0"), "0 is not in the range"),
    (("retry",), "name jobs, or say --failed"),
    (("retry", "x", "--failed"), "name jobs, or say --failed"),
    (("retry", "x", "--queue", "mail"), "name jobs, or say --failed"),
    (("retry", "--failed", "--force"), "name jobs, or say --failed"),
    (("cancel", "x", "--terminate", "--signal", "LOUD"), "there is no signal 'LOUD'"),
    (("watch", "x", "--queue", "mail"), "name jobs, or say filters"),
])
def test_what_cannot_be_meant(arguments: tuple[str, ...], says: str, app: Celery) -> None:
    told = jobs_of(app, *arguments)
    assert told.code in (1, 2)
    assert told.out == ""
    assert says in told.err


def test_a_database_that_cannot_be_asked(empty_database_url: str, make_client: Callable[..., Celery]) -> None:
    for url, says in ((empty_database_url, "the job queue's schema is missing or old in postgresql://"),
                      ("postgresql://u:s3cret@127.0.0.1:1/db", "Connection refused"),
                      ("redis://:s3cret@localhost/1", "the application's broker is redis://"),
                      ("memory://", "is memory://")):
        for command in (("list",), ("stats",), ("retry", "x"), ("watch",)):
            told = jobs_of(make_client(broker_url=url), *command)
            assert (told.code, told.out, told.err.count("\n")) == (1, "", 1), told.err
            assert says in told.err
            assert "s3cret" not in told.err


def test_a_failover_list_and_a_pooler(database_url: str, make_client: Callable[..., Celery]) -> None:
    dead = "postgresql://u@127.0.0.1:1/db"
    for url in (f"{dead};{database_url}", f"{database_url}?pooler=transaction"):
        assert jobs_of(make_client(broker_url=url), "stats", "--json").document == {"queues": [], "workers": []}


@pytest.fixture
def login(database_url: str) -> Iterator[Callable[[str], str]]:
    """Makes the URL of a login that is a member of one role only."""
    made: list[str] = []

    def make(role: str) -> str:
        made.append(f"jobs_{uuid.uuid4().hex[:8]}")
        rows(database_url, f"create role {made[-1]} login password 'jobs' in role {role}")
        parts = urlsplit(database_url)
        return urlunsplit(parts._replace(netloc=f"{made[-1]}:jobs@{parts.hostname}:{parts.port}"))

    yield make
    for name in made:
        rows(database_url, "select pg_terminate_backend(pid) from pg_stat_activity where usename = %s", (name,))
        rows(database_url, f"drop role {name}")


def test_to_look_the_right_to_monitor_is_enough(app: Celery, database_url: str, make_client: Callable[..., Celery],
                                                login: Callable[[str], str]) -> None:
    result = app.tasks["t.add"].delay(1, 1)
    watcher = make_client(broker_url=login("jobqueue_monitor"))
    assert jobs_of(watcher, "list", "--json").documents[0]["task_id"] == result.id
    assert jobs_of(watcher, "show", result.id, "--json").document["args"] == [1, 1]
    assert jobs_of(watcher, "stats", "--json").document["queues"][0]["pending"] == 1
    for command in ("cancel", "retry"):
        told = jobs_of(watcher, command, result.id)
        assert (told.code, told.err.count("\n")) == (1, 1)
        assert "to retry and cancel jobqueue_worker" in told.err
    assert row(database_url, result.id)["status"] == "pending"
    worker = login("jobqueue_worker")
    assert jobs_of(make_client(broker_url=worker, result_backend=worker), "cancel", result.id).code == 0
    assert row(database_url, result.id)["state"] == "REVOKED"
    assert jobs_of(make_client(broker_url=worker, result_backend=worker), "retry", result.id).code == 0
    assert row(database_url, result.id)["status"] == "pending"


def test_as_people_type_it(app: Celery, database_url: str) -> None:
    result = app.tasks["t.add"].delay(1, 1)
    told = told_by(jobs_process(database_url, "list", COLUMNS="80"))
    assert (told.code, told.err) == (0, "")
    assert told.lines[1].startswith(result.id[:8])
    told = told_by(jobs_process(database_url, "show", "nobody"))
    assert (told.code, told.out, told.err) == (1, "", "Error: no job has the id 'nobody', or one that begins so\n")
    told = told_by(jobs_process(database_url, "--help"))
    commands = set(re.findall(r"^  ([a-z]+) ", told.out.partition("Commands:")[2], re.MULTILINE))
    assert commands == {"cancel", "list", "retry", "show", "stats", "watch"}
