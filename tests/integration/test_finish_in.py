"""finish_in(): a task's writes and its job's completion are one, whoever is killed when."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, chain, chord

from celery_jobqueue.broker import LeaseLost, finish_in
from celery_jobqueue.db.errors import TransactionError
from tests.support.database import one, rows
from tests.support.finishing_app import add_tasks
from tests.support.transactions import ASYNC, SYNC
from tests.support.waiting import wait_until
from tests.support.workers import Worker

Start = Callable[..., Worker]
APP = "tests.support.finishing_app"


@pytest.fixture
def url(database_url: str) -> str:
    """The test's database, with a table of the application's own."""
    rows(database_url, "create table ledger (entry text not null)")
    return database_url


@pytest.fixture
def app(make_client: Callable[..., Celery], url: str) -> Celery:
    """A client that knows the tasks."""
    client = make_client()
    add_tasks(client)
    return client


def job(url: str, task_id: str) -> dict[str, Any]:
    return rows(url, "select * from job_queue where task_id = %s", (task_id,))[0]


def entries(url: str) -> list[str]:
    return [row["entry"] for row in rows(url, "select entry from ledger order by entry")]


def all_over(url: str, number: int) -> bool:
    """Whether so many jobs there are, and all have ended."""
    [counts] = rows(url, "select count(*) as n, count(finished_at) as over from job_queue")
    return bool(counts["n"] == counts["over"] == number)


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_every_kind_of_connection_finishes_its_job(pool: str, app: Celery, url: str, start_worker: Start) -> None:
    worker = start_worker("-P", pool, app=APP)
    results = {kind: app.tasks["f.pay"].delay(kind, "", kind) for kind in (*SYNC, *ASYNC)}
    assert {kind: result.get(timeout=30) for kind, result in results.items()} == {kind: f"paid {kind}" for kind in results}
    assert entries(url) == sorted(results)
    for result in results.values():
        row = job(url, result.id)
        assert (row["status"], row["state"], row["attempts"], row["owner"]) == ("completed", "SUCCESS", 1, None)
        assert json.loads(row["result"]) == result.get()
    assert worker.stop() == 0
    assert "was taken from this worker" not in worker.text  # the second settlement finds nothing to do: no loss


# Celery's pool may take 5 s until it notices that a process was killed; hence no more combinations than tell something.
@pytest.mark.parametrize("kind", ["session", "async psycopg"])
def test_a_killed_process_has_paid_once(kind: str, app: Celery, url: str, start_worker: Start) -> None:
    start_worker("-c", "1", app=APP)
    before = app.tasks["f.pay"].delay("before", "child before", kind)
    after = app.tasks["f.pay"].apply_async(("after", "child after", kind), max_attempts=1)
    assert (before.get(timeout=30), after.get(timeout=30)) == ("paid before", "paid after")
    wait_until(lambda: all_over(url, 2), "both are over")
    assert entries(url) == ["after", "before"]
    assert (job(url, before.id)["total_starts"], job(url, after.id)["total_starts"]) == (2, 1)
    assert (job(url, before.id)["status"], job(url, after.id)["status"]) == ("completed", "completed")
    assert job(url, after.id)["error_message"] is None


@pytest.mark.parametrize(("moment", "starts"), [("worker before", 2), ("worker after", 1)])
def test_a_killed_worker_has_paid_once(moment: str, starts: int, app: Celery, url: str, start_worker: Start) -> None:
    first = start_worker("-c", "1", app=APP)
    result = chain(app.tasks["f.pay"].si("once", moment), app.tasks["f.note"].s())()
    wait_until(lambda: first.process.poll() is not None, "the whole worker is dead")
    start_worker("-c", "1", app=APP)
    assert result.get(timeout=30) == "noted paid once"
    assert result.parent.get(timeout=5) == "paid once"
    wait_until(lambda: all_over(url, 2), "nothing else runs")
    assert entries(url) == ["noted paid once", "once"]
    assert job(url, result.parent.id)["total_starts"] == starts


@pytest.mark.parametrize("moment", ["", "child after"])
def test_what_follows_is_queued_once(moment: str, app: Celery, url: str, start_worker: Start) -> None:
    start_worker("-c", "1", app=APP)
    pay, note = app.tasks["f.pay"], app.tasks["f.note"]
    result = chain(pay.si("first", moment), note.s(), note.s("twice "))()
    pay.apply_async(("linked", moment), link=[note.s("one "), note.s("two ")])
    pay.apply_async(("single", moment), link=note.s("only "), link_error=note.si("errback"))
    assert result.get(timeout=30) == "twice noted paid first"
    wait_until(lambda: all_over(url, 8), "all is over")
    assert entries(url) == sorted(["first", "noted paid first", "twice noted paid first", "linked", "one paid linked",
                                   "two paid linked", "single", "only paid single"])
    assert one(url, "select count(*) from job_queue where status = 'failed'") == 0


@pytest.mark.parametrize("moment", ["", "child after"])
def test_a_chord_counts_a_finished_part_once(moment: str, app: Celery, url: str, start_worker: Start) -> None:
    start_worker("-c", "1", app=APP)
    pay = app.tasks["f.pay"]
    result = chord([pay.si("one"), pay.si("two", moment, "async psycopg")], app.tasks["celery.accumulate"].s())()
    assert result.get(timeout=30) == [["paid one", "paid two"]]
    wait_until(lambda: all_over(url, 3), "all is over")
    assert entries(url) == ["one", "two"]


def test_what_is_finished_is_not_stored_again(app: Celery, url: str, start_worker: Start) -> None:
    """Celery's own settlement after the task would find nothing to do, but lock the chord's row to find out, and roll back."""
    rows(url, f"alter database {one(url, 'select quote_ident(current_database())')} set track_functions = 'pl'")
    worker = start_worker("-c", "2", app=APP)
    pay = app.tasks["f.pay"]
    result = chord([pay.si(f"part {number}") for number in range(5)], app.tasks["celery.accumulate"].s())()
    singles = [pay.delay(f"single {number}", "", kind) for number, kind in enumerate(("session", "psycopg", "async psycopg"))]
    assert result.get(timeout=30) == [[f"paid part {number}" for number in range(5)]]
    assert [single.get(timeout=30) for single in singles] == [f"paid single {number}" for number in range(3)]
    wait_until(lambda: all_over(url, 9), "all is over")
    assert worker.stop() == 0
    calls = "select funcname, calls from pg_stat_user_functions where funcname in ('store_result', 'chord_part_ended')"
    assert {row["funcname"]: row["calls"] for row in wait_until(lambda: rows(url, calls), "the server has counted")} == {
        "store_result": 9, "chord_part_ended": 5}  # eight tasks' own transactions, and the body's result


def test_the_last_attempt_killed_after_its_commit_is_no_failure(app: Celery, url: str, start_worker: Start) -> None:
    """Also where nothing is stored that Celery could ask for."""
    start_worker("-c", "1", app=APP)
    ids = [app.tasks["f.pay"].apply_async((who, "child after"), max_attempts=1, ignore_result=ignored,
                                          link_error=app.tasks["f.note"].si("errback")).id
           for who, ignored in (("stored", False), ("ignored", True))]
    wait_until(lambda: all_over(url, 2), "both are over")
    last = app.tasks["f.note"].delay("end")
    assert last.get(timeout=30) == "noted end"
    assert entries(url) == ["ignored", "noted end", "stored"]
    assert [(job(url, id_)["status"], job(url, id_)["state"]) for id_ in ids] == [("completed", "SUCCESS"), ("completed", None)]


def test_what_happens_after_the_commit_changes_nothing(app: Celery, url: str, start_worker: Start) -> None:
    start_worker("-c", "1", app=APP, TEST_RETRIES="1")
    result = chain(app.tasks["f.pay"].si("raised", "raise after").on_error(app.tasks["f.note"].si("errback")),
                   app.tasks["f.note"].s())()
    assert result.get(timeout=30) == "noted paid raised"
    wait_until(lambda: all_over(url, 2), "all is over")
    row = job(url, result.parent.id)
    assert (row["status"], row["state"], row["result"], row["error_message"]) == ("completed", "SUCCESS", '"paid raised"', None)
    assert entries(url) == ["noted paid raised", "raised"]


def test_a_rolled_back_finish_never_happened(app: Celery, url: str, start_worker: Start) -> None:
    start_worker("-c", "1", app=APP)
    result = chain(app.tasks["f.change_of_mind"].s(), app.tasks["f.note"].s())()
    assert result.get(timeout=30) == "noted by Celery"
    wait_until(lambda: all_over(url, 2), "all is over")
    assert json.loads(job(url, result.parent.id)["result"]) == "by Celery"


@pytest.mark.parametrize("retries", ["0", "1"])
def test_who_lost_the_job_writes_nothing(retries: str, app: Celery, url: str, start_worker: Start, tmp_path: Path) -> None:
    worker = start_worker("-c", "2", app=APP, TEST_RETRIES=retries)
    mark = tmp_path / "slow"
    result = app.tasks["f.slow"].apply_async((str(mark),), link=app.tasks["f.note"].s("then "),
                                             link_error=app.tasks["f.note"].si("errback"))
    [first] = wait_until(lambda: list(tmp_path.glob("slow.*")), "the first run")
    rows(url, "update job_queue set status = 'pending', started_at = null where status = 'processing'")
    runs = wait_until(lambda: len(found := list(tmp_path.glob("slow.*"))) == 2 and found, "the second run")
    Path(f"{mark}.go").touch()
    [second] = {int(run.suffix[1:]) for run in runs} - {int(first.suffix[1:])}
    assert result.get(timeout=30) == second
    wait_until(lambda: all_over(url, 2), "all is over")
    wait_until(lambda: "taken from this worker" in worker.text, "the first run has noticed")
    assert entries(url) == ["slow", f"then {second}"]
    assert job(url, result.id)["status"] == "completed"


def test_a_transaction_in_another_database_finishes_nothing(app: Celery, url: str, server: str, template: str,
                                                            start_worker: Start) -> None:
    from tests.support.database import fresh_database

    start_worker("-c", "1", app=APP)
    with fresh_database(server, template) as other:
        rows(other, "create table ledger (entry text not null)")
        result = app.tasks["f.pay"].delay("lost", "", "session", other)
        with pytest.raises(TransactionError, match="another database"):
            result.get(timeout=30)
        assert entries(other) == []
    assert job(url, result.id)["status"] == "failed"


def test_another_result_backend_gets_its_result_from_celery(make_client: Callable[..., Celery], url: str, tmp_path: Path,
                                                            start_worker: Start) -> None:
    backend = f"file://{tmp_path}"
    app = make_client(result_backend=backend)
    add_tasks(app)
    start_worker("-c", "1", app=APP, TEST_BACKEND=backend)
    result = app.tasks["f.pay"].delay("paid")
    assert result.get(timeout=30) == "paid paid"
    assert (entries(url), job(url, result.id)["status"], job(url, result.id)["state"]) == (["paid"], "completed", None)


def test_without_a_job_there_is_nothing_to_finish(app: Celery, url: str) -> None:
    """Called directly or eagerly, as in an application's own tests."""
    assert app.tasks["f.pay"]("direct", "", "session", url) == "paid direct"
    assert app.tasks["f.pay"].apply(("eager", "", "psycopg", url)).get() == "paid eager"
    assert entries(url) == ["direct", "eager"]
    with pytest.raises(TransactionError, match="no Celery task runs"):
        finish_in(None, 1)


def test_a_lost_lease_is_nobodys_failure() -> None:
    from celery.exceptions import Ignore

    assert issubclass(LeaseLost, Ignore), "Celery would tell errbacks and chains of a failure that is none"
