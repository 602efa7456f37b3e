"""`celery jobs`: list, show and stats tell what is in the table, at any width, at any size of it, to people and programs."""

from __future__ import annotations

import re
import signal
import unicodedata
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, chain

from celery_jobqueue.broker.commands import stats
from tests.support.database import one, rows
from tests.support.jobs_command import Told, jobs_of
from tests.support.waiting import wait_until
from tests.support.workers import Worker

Start = Callable[..., Worker]

FILL = """
insert into job_queue (id, status, task_name, queue, priority, user_id, error_message, created_at, run_at, started_at,
                       finished_at, payload)
select (lpad(to_hex((extract(epoch from at) * 1000)::bigint), 12, '0') || '7' || lpad(to_hex(i %% 4096), 3, '0')
        || right(replace(gen_random_uuid()::text, '-', ''), 16))::uuid,
       st, 't.' || i %% 10, (array['celery', 'mail'])[1 + i %% 2], 1 + i / 2 %% 10, 'u-' || i %% 100,
       case st when 'failed' then 'bang' end, at, at, at + interval '1 second',
       case when st <> 'pending' then at + interval '2 seconds' end, '[[' || i || '], {}, {}]'
  from (select i, now() - make_interval(secs => (%(n)s - i) * 0.1) as at,
               case when i > %(n)s * 0.5 then 'pending' when i %% 50 = 0 then 'failed' else 'completed' end as st
          from generate_series(1, %(n)s) i) made"""


@pytest.fixture
def publish(app: Celery) -> Callable[..., str]:
    """Publishes t.add; the task's id."""
    def add(*args: Any, **options: Any) -> str:
        return str(app.tasks["t.add"].apply_async(args or (1, 1), **options).id)

    return add


def names(told: Told) -> list[str]:
    return [document["task_id"] for document in told.documents]


# -- list ---------------------------------------------------------------------------------------------------------------


def test_the_newest_first_and_the_filters(app: Celery, database_url: str, publish: Callable[..., str]) -> None:
    first, mail, urgent = publish(1, 1), publish(2, 2, queue="mail", user_id="u-1"), publish(3, 3, priority=1)
    boom = app.tasks["t.boom"].apply_async(("x",), user_id="u-2").id
    later = publish(4, 4, countdown=600)
    rows(database_url, "update job_queue set status = 'failed', error_message = 'why' where task_id = %s", (boom,))
    rows(database_url, "update job_queue set status = 'completed' where task_id = %s", (mail,))
    assert names(jobs_of(app, "list", "--json")) == [later, boom, urgent, mail, first]
    assert names(jobs_of(app, "list", "--json", "--limit", "2")) == [later, boom]
    for wanted, found in {
        ("--status", "pending"): [urgent, first, later],  # as they will be claimed: what is not due comes last
        ("--status", "failed"): [boom],
        ("--status", "completed"): [mail],
        ("--status", "processing"): [],
        ("--status", "pending", "--status", "failed"): [later, boom, urgent, first],
        ("--status", "completed", "--status", "failed"): [mail, boom],  # the last to end first
        ("--queue", "mail"): [mail],
        ("--queue", "mail", "--status", "pending"): [],
        ("--task", "t.boom"): [boom],
        ("--task", "t.boom", "--status", "failed"): [boom],
        ("--task", "t.add", "--status", "completed"): [mail],
        ("--user", "u-1"): [mail],
        ("--user", "u-1", "--status", "failed"): [],
        ("--user", "u-9"): [],
        ("--since", "1 hour"): [later, boom, urgent, mail, first],
    }.items():
        assert names(jobs_of(app, "list", "--json", *wanted)) == found, wanted
    rows(database_url, "update job_queue set created_at = now() - interval '2 hours' where task_id = any (%s)",
         ([boom, mail, first],))
    assert names(jobs_of(app, "list", "--json", "--since", "90 minutes")) == [later, urgent]
    assert names(jobs_of(app, "list", "--json", "--since", "90 minutes", "--status", "failed")) == []
    assert names(jobs_of(app, "list", "--json", "--since", "3 hours", "--status", "failed")) == [boom]
    assert names(jobs_of(app, "list", "--json", "--since", "90 minutes", "--status", "completed")) == []
    assert names(jobs_of(app, "list", "--json", "--since", "90 minutes", "--status", "pending")) == [urgent, later]


def test_jobs_with_ids_of_their_own_are_found_too(app: Celery, database_url: str, publish: Callable[..., str]) -> None:
    """A plain INSERT draws a random id, which says nothing of when."""
    old = publish()
    for number in range(5):
        rows(database_url, "insert into job_queue (task_name, task_id) values ('t.add', %s)", (f"p{number}",))
    new = publish()
    assert names(jobs_of(app, "list", "--json")) == [new, "p4", "p3", "p2", "p1", "p0", old]
    rows(database_url, "update job_queue set status = 'completed' where task_id = any (%s)", ([old, "p3", "p1"],))
    assert set(names(jobs_of(app, "list", "--json", "--status", "completed"))) == {old, "p3", "p1"}


def test_what_programs_get_are_the_columns(app: Celery, database_url: str, publish: Callable[..., str]) -> None:
    task_id = publish(1, 2, priority=3, user_id="u-1", max_attempts=7)
    [document] = jobs_of(app, "list", "--json").documents
    [row] = rows(database_url, "select * from job_queue")
    assert set(document) - {"claimed", "progress"} <= set(row)
    assert (document["id"], document["task_id"], document["priority"], document["max_attempts"], document["user_id"]) == (
        str(row["id"]), task_id, 3, 7, "u-1")
    assert document["created_at"].startswith(row["created_at"].strftime("%Y-%m-%dT"))
    assert (document["claimed"], document["progress"], document["finished_at"]) == (False, None, None)


def width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 0 if unicodedata.combining(c) else 1 for c in text)


@pytest.mark.parametrize("columns", [80, 100, 200, None])
def test_lines_are_as_wide_as_the_terminal_and_stand_in_columns(columns: int | None, app: Celery, database_url: str,
                                                                publish: Callable[..., str]) -> None:
    long, wide = publish("x" * 2000, 1), publish("日本語テキスト" * 9, "Zoë́")
    plain = publish(1, 2, queue="a-queue-of-a-rather-long-name")
    rows(database_url, "update job_queue set status = 'failed', error_message = %s, attempts = 3 where task_id = %s",
         ("ValueError: one\nand \x1b[31mtwo\x07 " + "more " * 50, long))
    told = jobs_of(app, "list", columns=columns)
    assert (told.code, told.err, len(told.lines)) == (0, "", 4)
    assert "\x1b" not in told.out
    assert "\x07" not in told.out
    assert "ValueError: one" in told.out or columns == 80
    if columns is not None:
        assert max(map(width, told.lines)) <= columns
    else:
        assert "x" * 900 in told.out  # nothing is cut in a pipe, as far as the list looks into arguments
        assert ("more " * 50).strip() in told.out
    assert "t.add(\"日本" in told.out
    by_id = {line["id"]: line for line in told.table}
    assert len(by_id) == 3
    for task_id in (long, wide, plain):
        [line] = [line for id, line in by_id.items() if task_id.startswith(id)]
        assert len(line["id"]) == (36 if columns in (200, None) else 8)
        assert line["try"] == ("3/3" if task_id == long else "0/3")
        assert line["status"] == ("failed" if task_id == long else "pending")
    column = told.lines[0].index("note")  # characters of double width stand in other places of the text
    assert {width(line[:line.index("waiting")]) for line in told.lines if line.endswith("waiting")} == {column}


def test_a_short_id_is_as_long_as_it_must_be(app: Celery, database_url: str) -> None:
    for task_id in ("abcdef0123-one", "abcdef0123-two", "abcdef0199", "zzz"):
        rows(database_url, "insert into job_queue (task_name, task_id) values ('t.add', %s)", (task_id,))
    rows(database_url, "insert into job_queue (task_name, task_id) select 't.add', 'twice' from generate_series(1, 2)")
    twice = {str(row["id"])[:8] for row in rows(database_url, "select id from job_queue where task_id = 'twice'")}
    shown = {line["id"] for line in jobs_of(app, "list", columns=120).table}
    assert shown == {"abcdef0123-o", "abcdef0123-t", "abcdef019", "zzz", *twice}
    for id in shown:
        assert jobs_of(app, "show", id).code == 0


# -- show ---------------------------------------------------------------------------------------------------------------


def test_everything_about_a_job(app: Celery, database_url: str, start_worker: Start, tmp_path: Path) -> None:
    start_worker(TEST_RETRIES="1")
    add = app.tasks["t.add"]
    good = chain(add.s(2, 3).set(priority=2, user_id="u-7"), add.s(4)).apply_async(expires=3600)
    bad = app.tasks["t.boom"].apply_async(kwargs={"message": "bang"}, max_attempts=2)
    mark = str(tmp_path / "mark")
    assert good.get(timeout=30) == 9
    with pytest.raises(ValueError, match="bang"):
        bad.get(timeout=30)
    running = app.tasks["t.progress"].delay(mark)
    wait_until(Path(mark).exists, "it runs")

    shown = jobs_of(app, "show", bad.id, columns=100)
    assert [line for line in shown.lines if line.startswith(("status", "task  ", "attempts", "celery state", "error"))] == [
        "status        failed", 'task          t.boom(message="bang")', "attempts      2 of 2", "celery state  FAILURE",
        "error         ValueError: bang"]
    assert len(re.findall(r"^    [12]  \S+ \S+  \S+@test  ValueError: bang$", shown.out, re.MULTILINE)) == 2
    assert "raise ValueError(message)" in shown.out.partition("Traceback\n")[2]
    document = jobs_of(app, "show", bad.id[:8], "--json").document
    assert (document["args"], document["kwargs"], document["result"]["exc_type"]) == ([], {"message": "bang"}, "ValueError")
    assert [error["start"] for error in document["errors"]] == [1, 2]

    first = jobs_of(app, "show", good.parent.id)
    for line in ("task          t.add(2, 3)", "queue         celery, priority 2", "user          u-7", "result        5",
                 "then          chain: t.add"):
        assert line in first.lines
    assert re.search(r"^finished .+ ago, ran \d+ ms\)$", first.out, re.MULTILINE)
    second = jobs_of(app, "show", str(one(database_url, "select id from job_queue where task_id = %s", (good.id,))), "--json")
    assert (second.document["parent_id"], second.document["result"], second.document["args"]) == (good.parent.id, 9, [5, 4])

    shown = jobs_of(app, "show", running.id)
    assert re.match(r"status        processing for ", shown.lines[0])
    assert "progress      █████░░░░░ 1/2" in shown.lines
    assert jobs_of(app, "list", "--status", "processing", "--json").documents[0]["progress"] == {"done": 1, "total": 2}
    assert "█████░░░░░ 1/2" in jobs_of(app, "list", columns=100).out
    Path(mark + ".go").touch()
    assert running.get(timeout=20) == "done"


def test_messages_that_are_no_json_are_shown_as_far_as_possible(app: Celery, database_url: str) -> None:
    app.conf.accept_content = ["json", "pickle"]
    pickled = app.tasks["t.add"].apply_async((1, {2, 3}), serializer="pickle").id
    rows(database_url, "insert into job_queue (task_id, payload, envelope) values ('odd', 'no JSON', '[]')")
    assert "task          t.add args (1, {2, 3}) kwargs {}" in jobs_of(app, "show", pickled).lines
    assert "task          (none)(?)" in jobs_of(app, "show", "odd").lines
    assert {line["task"] for line in jobs_of(app, "list", columns=100).table} == {"t.add(?)", "(no task)(no JSON…"}


def test_ids_that_name_no_job_or_several(app: Celery, database_url: str, publish: Callable[..., str]) -> None:
    task_id = publish()
    for twice in ("twin", "twin", "twin-b", "0%_"):
        rows(database_url, "insert into job_queue (task_name, task_id) values ('t.add', %s)", (twice,))
    ids = [str(row["id"]) for row in rows(database_url, "select id from job_queue where task_id = 'twin'")]
    job = one(database_url, "select id::text from job_queue where task_id = %s", (task_id,))
    for name in (job, job.upper(), job[:-1], job.replace("-", "")[:20], task_id, task_id[:-3]):
        assert jobs_of(app, "show", name, "--json").document["task_id"] == task_id, name
    assert jobs_of(app, "show", "twin-", "--json").document["task_id"] == "twin-b"
    assert jobs_of(app, "show", "0%", "--json").document["task_id"] == "0%_"
    for name, says in {"nobody": "no job has the id 'nobody'", "": "no job has the id ''", "%": "no job has the id '%'",
                       "twi": "'twi' is the beginning of several", "twin": "are the jobs of task twin"}.items():
        for command in ("show", "retry", "cancel", "watch"):
            told = jobs_of(app, command, name)
            assert (told.code, told.out, told.err.count("\n")) == (1, "", 1)
            assert says in told.err
    told = jobs_of(app, "show", "twin")
    assert all(id in told.err for id in ids)
    assert one(database_url, "select count(*) from job_queue where status = 'pending'") == 5


# -- stats --------------------------------------------------------------------------------------------------------------


def test_numbers_of_queues_and_workers(app: Celery, database_url: str, publish: Callable[..., str], start_worker: Start,
                                       tmp_path: Path) -> None:
    assert jobs_of(app, "stats").lines == ["no queues yet", "", "no worker is alive"]
    worker = start_worker("-c", "1")
    mark = str(tmp_path / "mark")
    for _ in range(10):
        publish()
    app.tasks["t.boom"].delay()
    app.tasks["t.wait"].delay(mark)
    wait_until(Path(mark).exists, "the last of them runs")
    for options in ({"queue": "mail"}, {"queue": "mail"}, {"queue": "mail", "countdown": 600}):
        publish(**options)
    rows(database_url, "update job_queue set run_at = now() - interval '3 minutes' where queue = 'mail' and run_at < now()")
    told = jobs_of(app, "stats", "--json").document
    celery, mail = told["queues"]
    assert {key: celery[key] for key in ("pending", "processing", "completed", "failed", "failed_last_hour", "workers")} == {
        "pending": 0, "processing": 1, "completed": 10, "failed": 1, "failed_last_hour": 1, "workers": 1}
    assert celery["completed_per_minute"] == 10 / stats.MINUTES
    assert (mail["pending"], mail["ready"], mail["scheduled"], mail["workers"], mail["estimated"]) == (3, 2, 1, 0, [])
    assert 180 <= mail["oldest_ready_seconds"] < 240
    [alive] = told["workers"]
    assert (alive["name"], alive["alive"], alive["processing"], alive["queues"]) == (worker.name, True, 1, ["celery"])
    lines = [re.split(r" {2,}", line) for line in jobs_of(app, "stats", columns=80).lines]
    assert lines[:3] == [
        ["queue", "waiting", "later", "running", "oldest", "done/min", "done", "failed", "failed/h", "workers"],
        ["celery", "0", "0", "1", "2.0", "10", "1", "1", "1"],  # nothing waits, so nothing is the oldest
        ["mail", "2", "1", "0", "3 m", "0", "0", "0", "0", "0"]]
    assert lines[5][:2] == [worker.name, "1"]
    worker.stop(signal.SIGKILL)
    wait_until(lambda: "no worker is alive" in jobs_of(app, "stats").out, "the worker is seen to be dead")
    assert f"no longer alive, their jobs are taken back: {worker.name}" in jobs_of(app, "stats").out


@pytest.fixture
def filled(database_url: str) -> str:
    """A database of 60,000 jobs, the newer half of them waiting."""
    rows(database_url, FILL, {"n": 60_000})
    rows(database_url, "vacuum analyze job_queue")
    return database_url


def test_nothing_takes_long_whatever_lies_in_the_table(filled: str, app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a sequential scan would read all of its pages, no look at the newest jobs reads more than a small part of them."""
    monkeypatch.setattr("celery_jobqueue.broker.commands.store.LOOKED_AT", 500)
    pages = one(filled, "select pg_relation_size('job_queue') / 8192")
    found: dict[str, int] = {}
    looks = [("list",), ("list", "--task", "t.none"), ("list", "--user", "u-7"), ("list", "--since", "1 minute"),
             *(("list", "--status", status) for status in ("pending", "processing", "completed", "failed")),
             ("list", "--status", "completed", "--task", "t.none"), ("list", "--status", "pending", "--task", "t.none"),
             ("list", "--status", "completed", "--status", "failed", "--queue", "mail"),
             ("list", "--status", "pending", "--status", "failed")]
    for look in looks:
        before = _pages_read(filled)
        told = jobs_of(app, *look, "--json")
        assert told.code == 0, told.err
        found[" ".join(look)] = _pages_read(filled) - before
        if "--queue" not in look:  # whether enough of them are near is chance
            assert ("only the newest 500 jobs were looked at" in told.err) == ("t.none" in look), look
    assert {look: read for look, read in found.items() if read > pages / 2} == {}, pages
    monkeypatch.undo()
    assert len(jobs_of(app, "list", "--status", "completed", "--json").documents) == 50  # behind 30,000 that wait
    newest = one(filled, "select max(finished_at) from job_queue where status = 'completed'")
    first = jobs_of(app, "list", "--status", "completed", "--json").documents[0]
    assert datetime.fromisoformat(first["finished_at"]) == newest


def _pages_read(url: str) -> int:
    return int(one(url, "select heap_blks_read + heap_blks_hit from pg_statio_user_tables, pg_stat_clear_snapshot() "
                        "where relname = 'job_queue'"))


def test_numbers_of_a_large_table_are_estimates_and_say_so(filled: str, app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "_PAGES", 1_000_000)
    exact = {queue["queue"]: queue for queue in jobs_of(app, "stats", "--json").document["queues"]}
    assert {(q["pending"], q["completed"], q["failed"]) for q in exact.values()} == {(15_000, 15_000, 0), (15_000, 14_400, 600)}
    monkeypatch.setattr(stats, "_PAGES", 100)
    for queue in jobs_of(app, "stats", "--json").document["queues"]:
        assert queue["estimated"] == ["completed", "pending"]
        assert queue["failed"] == exact[queue["queue"]]["failed"]
        for status in ("pending", "completed"):
            assert exact[queue["queue"]][status] * 0.5 < queue[status] < exact[queue["queue"]][status] * 1.5
    told = jobs_of(app, "stats")
    assert re.search(r"^celery +≈\d+k ", told.out, re.MULTILINE)
    assert "≈ estimated from 100 of the table's pages" in told.lines
