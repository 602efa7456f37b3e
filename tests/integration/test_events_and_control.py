"""Events, remote control, replies and pushed results, through the tools people use."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import TaskRevokedError

from celery_jobqueue.broker.result_consumer import ResultConsumer
from tests.support.database import one, rows
from tests.support.programs import environment, program, transient_queues
from tests.support.waiting import wait_until
from tests.support.workers import ROOT, Worker

Start = Callable[..., Worker]


def celery(url: str, *arguments: str) -> str:
    """Output of `celery -A tests.support.app …`, which has to succeed."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-m", "celery", "-A", "tests.support.app", *arguments], cwd=ROOT,
                          env=environment(url), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def two(start_worker: Start) -> tuple[Worker, Worker]:
    """Two workers with one process each."""
    return start_worker("-c", "1"), start_worker("-c", "1")


# -- events ----------------------------------------------------------------------------------------------------------------


def test_events_dump_shows_the_life_of_a_task(app: Celery, database_url: str, start_worker: Start, tmp_path: Path) -> None:
    with program(database_url, tmp_path / "dump.txt", "-m", "celery", "-A", "tasks", "events", "--dump") as dump:
        wait_until(lambda: one(database_url, "select count(*) from jobqueue.binding where exchange = 'celeryev'"), "it listens")
        worker = start_worker("-E")
        good, bad = app.tasks["t.add"].delay(2, 3), app.tasks["t.boom"].delay("bang")
        assert good.get(timeout=20) == 5
        during = transient_queues(database_url)
        for told in ("ValueError('bang')", f"task succeeded: t.add({good.id})"):
            dump.wait_for(told)
        text = "\n".join(dump.lines)
        for event in ("received", "started", "succeeded"):
            assert re.search(rf"^{worker.name} \[.+\] task {event}: t\.add\({good.id}\) args=\(2, 3\)", text, re.MULTILINE), text
        assert re.search(rf"task failed: t\.boom\({bad.id}\)", text)
        assert re.search(rf"^{worker.name} \[.+\] started", text, re.MULTILINE)
        dump.process.send_signal(signal.SIGINT)
        assert dump.process.wait(15) == 0
    # Its queue went with it; those of the worker (remote control, gossip) stay.
    assert len(transient_queues(database_url)) == len(during) - 1


def test_events_cost_nothing_when_nobody_listens(app: Celery, database_url: str, start_worker: Start) -> None:
    start_worker("-E")
    for result in [app.tasks["t.add"].delay(1, n) for n in range(5)]:
        result.get(timeout=20)
    assert one(database_url, "select count(*) from jobqueue.message") == 0
    assert one(database_url, "select last_value from jobqueue.message_id_seq") == 1


@contextmanager
def listener(app: Celery) -> Iterator[list[dict[str, Any]]]:
    """What somebody like Flower hears, from the first line of the block on."""
    events: list[dict[str, Any]] = []
    listening, over = threading.Event(), threading.Event()

    def listen() -> None:
        with app.connection_for_read() as connection:
            receiver = app.events.Receiver(connection, handlers={"*": events.append})
            with receiver.consumer_context(wakeup=False) as (own, *_):
                listening.set()
                while not over.is_set():
                    with suppress(TimeoutError):
                        own.drain_events(timeout=0.2)

    thread = threading.Thread(target=listen)
    thread.start()
    try:
        assert listening.wait(20)
        yield events
    finally:
        over.set()
        thread.join()


def test_events_of_many_tasks_travel_together(app: Celery, database_url: str, start_worker: Start) -> None:
    """Nobody waits for each of them: three events of a hundred tasks are far fewer sends, and none is lost."""
    with listener(app) as events:
        last = "select coalesce(pg_sequence_last_value(pg_get_serial_sequence('jobqueue.message', 'id')::regclass), 0)"
        worker = start_worker("-E", "--without-gossip")
        before = one(database_url, last)
        results = [app.tasks["t.add"].delay(number, 1) for number in range(100)]
        for result in results:
            result.get(timeout=60)
        worker.stop()

        def heard(kind: str) -> int:
            return sum(event["type"] == kind for event in events)

        wait_until(lambda: heard("task-succeeded") == 100 and heard("worker-offline"), "every event has come", 60)
        assert heard("task-received") == heard("task-started") == 100
        assert one(database_url, last) - before < 150


def test_who_begins_to_listen_misses_nothing(app: Celery, database_url: str, start_worker: Start) -> None:
    """The worker does not ask before each event who wants it; it is told when somebody comes, and when he has gone."""
    start_worker("-E")
    app.tasks["t.add"].delay(1, 1).get(timeout=20)
    for number in range(3):
        with listener(app) as events:
            task_id = app.tasks["t.add"].delay(number, 1).id
            wait_until(lambda task_id=task_id, events=events: {
                event["type"] for event in events if event.get("uuid") == task_id} >= {"task-received", "task-succeeded"},
                "its first task is heard of")
    queue = "select count(*) from jobqueue.queue where name like 'celeryev.%%'"
    wait_until(lambda: one(database_url, queue) == 1, "the listeners' queues are gone, the worker's own is not")
    sent = "select last_value from jobqueue.message_id_seq"
    before = one(database_url, sent)
    app.tasks["t.add"].delay(5, 1).get(timeout=20)
    assert one(database_url, sent) == before


def test_events_are_switched_on_from_afar(app: Celery, database_url: str, start_worker: Start) -> None:
    start_worker()
    seen: list[dict[str, Any]] = []
    before = transient_queues(database_url)
    assert app.tasks["t.add"].delay(1, 1).get(timeout=20) == 2  # nobody hears of this one

    def listen() -> None:
        with app.connection() as connection:
            receiver = app.events.Receiver(connection)

            def heard(event: dict[str, Any]) -> None:
                seen.append(event)
                receiver.should_stop = event["type"] == "task-succeeded"

            receiver.handlers["*"] = heard
            receiver.capture(limit=None, timeout=20, wakeup=False)

    thread = threading.Thread(target=listen)
    thread.start()
    wait_until(lambda: transient_queues(database_url) > before, "the receiver listens")
    [[reply]] = [list(answer.values()) for answer in app.control.enable_events(reply=True)]
    assert "ok" in reply
    result = app.tasks["t.add"].delay(1, 1)
    thread.join(30)
    assert not thread.is_alive()
    tasks = [(event["type"], event["uuid"]) for event in seen if event["type"].startswith("task-")]
    assert tasks == [(f"task-{what}", result.id) for what in ("received", "started", "succeeded")]


# -- inspect ---------------------------------------------------------------------------------------------------------------


def test_inspect_tells_what_a_worker_does(app: Celery, database_url: str, start_worker: Start, tmp_path: Path) -> None:
    worker = start_worker("-c", "1", "--prefetch-multiplier", "3")
    mark = str(tmp_path / "mark")
    running = app.tasks["t.wait"].delay(mark)
    wait_until(Path(mark).exists, "the task runs")
    waiting = app.tasks["t.add"].delay(1, y=2)
    wait_until(lambda: one(database_url, "select count(*) from job_queue where owner is not null") == 2, "both are claimed")
    inspect = app.control.inspect(destination=[worker.name], timeout=10)
    assert inspect.ping() == {worker.name: {"ok": "pong"}}
    [active] = inspect.active()[worker.name]
    assert (active["id"], active["name"], active["args"], active["hostname"]) == (running.id, "t.wait", [mark], worker.name)
    assert {task["id"]: task["kwargs"] for task in inspect.reserved()[worker.name]} == {waiting.id: {"y": 2}}
    assert inspect.query_task(waiting.id)[worker.name][waiting.id][0] == "reserved"
    assert {"t.add", "t.wait", "t.boom"} <= set(inspect.registered()[worker.name])
    stats = inspect.stats()[worker.name]
    assert (stats["total"], stats["pool"]["max-concurrency"], stats["prefetch_count"]) == ({"t.wait": 1}, 1, 3)
    assert stats["pid"] == worker.process.pid
    assert [queue["name"] for queue in inspect.active_queues()[worker.name]] == ["celery"]
    later = app.tasks["t.add"].apply_async((5, 5), countdown=9)
    scheduled = wait_until(lambda: inspect.scheduled()[worker.name], "the ETA is in the worker's timer")
    assert [entry["request"]["id"] for entry in scheduled] == [later.id]


def test_no_answer_holds_the_password(app: Celery, database_url: str, start_worker: Start) -> None:
    worker = start_worker("-c", "1")
    inspect = app.control.inspect(destination=[worker.name], timeout=10)
    told = json.dumps([inspect.stats(), inspect.conf(with_defaults=True), inspect.report()])
    assert "postgresql://jobqueue:**@127.0.0.1" in told
    password = database_url.partition("@")[0].rpartition(":")[2]
    assert len(password) > 10
    assert password not in told + celery(database_url, "report") + worker.text


def test_two_workers_both_answer_and_one_can_be_asked_alone(app: Celery, database_url: str, two: tuple[Worker, Worker]) -> None:
    names = {worker.name for worker in two}
    assert {name for reply in app.control.ping(timeout=1) for name in reply} == names
    before = time.monotonic()
    assert app.control.ping(destination=[two[1].name], timeout=20) == [{two[1].name: {"ok": "pong"}}]
    assert app.control.ping(pattern=two[0].name[:4] + "*", matcher="glob", limit=1, timeout=20) == [{two[0].name: {"ok": "pong"}}]
    assert time.monotonic() - before < 10  # neither has waited for its timeout
    status = celery(database_url, "status", "--timeout", "1")
    assert "2 nodes online" in status
    assert all(f"{name}: OK" in status.replace("->  ", "") for name in names)
    pong = celery(database_url, "inspect", "ping", "--destination", two[0].name, "--timeout", "20")
    assert two[0].name in pong
    assert two[1].name not in pong


# -- control ---------------------------------------------------------------------------------------------------------------


def statuses(url: str, *task_ids: str) -> list[str]:
    found = {row["task_id"]: row["status"] for row in rows(url, "select task_id, status from job_queue")}
    return [found[task_id] for task_id in task_ids]


def test_a_rate_limited_job_has_not_started(app: Celery, database_url: str, start_worker: Start, tmp_path: Path) -> None:
    worker = start_worker("-c", "2")
    [answer] = app.control.rate_limit("t.record", "1/m", destination=[worker.name], reply=True, timeout=10)
    assert answer == {worker.name: {"ok": "new rate limit set successfully"}}
    path = str(tmp_path / "words")
    first, second = (app.tasks["t.record"].delay(path, word).id for word in ("first", "second"))
    wait_until(lambda: statuses(database_url, first) == ["completed"], "the first ran")
    assert app.tasks["t.add"].delay(1, 1).get(timeout=20) == 2
    row = rows(database_url, "select status, attempts, started_at from job_queue where task_id = %s", (second,))[0]
    assert tuple(row.values()) == ("pending", 0, None)
    app.control.rate_limit("t.record", "0", destination=[worker.name], reply=True, timeout=10)
    assert Path(path).read_text().split()[0] == "first"


def test_the_pool_grows_and_uses_it(app: Celery, database_url: str, start_worker: Start, tmp_path: Path) -> None:
    worker = start_worker("-c", "1")
    [answer] = app.control.pool_grow(2, destination=[worker.name], reply=True, timeout=10)
    assert "ok" in answer[worker.name]
    marks = [tmp_path / str(number) for number in range(3)]
    ids = [app.tasks["t.wait"].delay(str(mark)).id for mark in marks]
    wait_until(lambda: all(mark.exists() for mark in marks), "three run at once")
    assert statuses(database_url, *ids) == ["processing"] * 3
    for mark in marks:
        Path(f"{mark}.go").touch()
    wait_until(lambda: statuses(database_url, *ids) == ["completed"] * 3, "all are done")

    def shrunk() -> bool:
        [answer] = app.control.pool_shrink(2, destination=[worker.name], reply=True, timeout=10)
        return "ok" in answer[worker.name]

    wait_until(shrunk, "the pool shrinks")
    assert app.control.inspect([worker.name], timeout=10).stats()[worker.name]["pool"]["max-concurrency"] == 1
    assert app.tasks["t.add"].delay(1, 1).get(timeout=20) == 2


def test_a_worker_is_told_to_leave_and_the_other_stays(app: Celery, database_url: str, two: tuple[Worker, Worker]) -> None:
    app.control.shutdown(destination=[two[0].name])
    assert two[0].process.wait(20) == 0
    assert app.tasks["t.add"].delay(1, 1).get(timeout=20) == 2
    assert [row["name"] for row in rows(database_url, "select name from jobqueue.worker")] == [two[1].name]
    assert one(database_url, "select count(*) from jobqueue.queue where name like %s", (two[0].name + "%",)) == 0


def test_a_revoked_job_never_runs(app: Celery, database_url: str, start_worker: Start, tmp_path: Path) -> None:
    worker = start_worker("-c", "1")
    mark, path = str(tmp_path / "mark"), tmp_path / "ran"
    app.tasks["t.wait"].delay(mark)
    wait_until(Path(mark).exists, "the only process is busy")
    doomed = app.tasks["t.record"].delay(str(path), "x")
    app.control.revoke(doomed.id, reply=True, destination=[worker.name], timeout=10)
    assert app.control.inspect(destination=[worker.name], timeout=10).revoked() == {worker.name: [doomed.id]}
    Path(mark + ".go").touch()
    with pytest.raises(TaskRevokedError):
        doomed.get(timeout=20)
    wait_until(lambda: statuses(database_url, doomed.id) == ["failed"], "the row says so too")
    row = rows(database_url, "select status, state, attempts, error_message from job_queue where task_id = %s", (doomed.id,))[0]
    assert (row["status"], row["state"], row["attempts"]) == ("failed", "REVOKED", 0)
    assert "revoked" in row["error_message"]
    assert not path.exists()


def test_queues_are_added_and_cancelled_from_afar(app: Celery, database_url: str, start_worker: Start) -> None:
    worker = start_worker("-c", "1")
    job = app.tasks["t.add"].apply_async((1, 1), queue="other")
    assert statuses(database_url, job.id) == ["pending"]
    [answer] = app.control.add_consumer("other", destination=[worker.name], reply=True, timeout=10)
    assert "ok" in answer[worker.name]
    assert job.get(timeout=20) == 2
    [answer] = app.control.cancel_consumer("other", destination=[worker.name], reply=True, timeout=10)
    assert "ok" in answer[worker.name]
    second = app.tasks["t.add"].apply_async((1, 1), queue="other")
    assert app.tasks["t.add"].delay(2, 2).get(timeout=20) == 4
    assert statuses(database_url, second.id) == ["pending"]


def test_purge_empties_a_queue_and_says_how_many(app: Celery, database_url: str) -> None:
    for number in range(3):
        app.tasks["t.add"].delay(1, number)
    app.tasks["t.add"].apply_async((1, 1), countdown=3600)
    kept = app.tasks["t.add"].apply_async((1, 1), queue="other")
    assert "Purged 4 messages" in celery(database_url, "purge", "-f")
    assert [row["task_id"] for row in rows(database_url, "select task_id from job_queue")] == [kept.id]
    assert "No messages purged" in celery(database_url, "purge", "-f")


def test_list_bindings_shows_those_of_all_processes(database_url: str, start_worker: Start) -> None:
    worker = start_worker("-c", "1")
    listed = {tuple(line.split()) for line in celery(database_url, "list", "bindings").splitlines()}
    assert ("celery", "celery", "celery") in listed
    assert any(line[0] == f"{worker.name}.celery.pidbox" for line in listed if line)


# -- replies and results ----------------------------------------------------------------------------------------------------


def test_a_result_is_pushed_not_polled(app: Celery, database_url: str, start_worker: Start, tmp_path: Path,
                                       monkeypatch: pytest.MonkeyPatch) -> None:
    start_worker("-c", "1")
    assert app.tasks["t.add"].delay(1, 1).get(timeout=20) == 2  # the client is warm
    monkeypatch.setattr(ResultConsumer, "_pause", property(lambda _: 60.0, lambda *_: None), raising=False)
    looked: list[float] = []
    fetch = app.backend.fetch_metas

    def counted(*args: Any, **kwargs: Any) -> Any:
        looked.append(time.monotonic())
        return fetch(*args, **kwargs)

    monkeypatch.setattr(app.backend, "fetch_metas", counted)
    late: list[float] = []
    for number in range(5):
        mark = str(tmp_path / str(number))
        result = app.tasks["t.wait"].delay(mark)
        wait_until(Path(mark).exists, "the task runs")
        looked.clear()
        # Celery itself looks once a second, counted from the beginning of get(); these end long before that.
        threading.Timer(0.1 + number * 0.05, Path(mark + ".go").touch).start()
        assert result.get(timeout=20) == "went"
        returned = time.time()
        finished = "select extract(epoch from finished_at)::float8 from job_queue where task_id = %s"
        late.append(returned - one(database_url, finished, (result.id,)))
        assert len(looked) <= 3
    assert min(late) < 0.1, late
    assert max(late) < 0.5, late


def test_a_reply_queue_is_gone_when_its_client_has_its_answer(app: Celery, database_url: str, two: tuple[Worker, Worker]) -> None:
    before = transient_queues(database_url)
    assert len(app.control.ping(timeout=5, limit=2)) == 2
    assert transient_queues(database_url) == before
    assert one(database_url, "select count(*) from jobqueue.message") == 0


def test_a_dead_clients_queues_are_reaped(database_url: str, start_worker: Start, tmp_path: Path) -> None:
    code = "from tests.support.app import app; print('asking', flush=True); app.control.ping(timeout=60)"
    with program(database_url, tmp_path / "out", "-c", code) as client:
        [reply_queue] = wait_until(lambda: transient_queues(database_url), "it waits for replies")
        os.kill(client.process.pid, signal.SIGKILL)
        client.process.wait(10)
    assert transient_queues(database_url) == {reply_queue}
    assert 0 < one(database_url, "select extract(epoch from expires)::float8 from jobqueue.queue") <= 60
    # As if that time had passed; whoever comes next cleans up.
    rows(database_url, "update jobqueue.queue set used_at = used_at - expires - interval '1 second'")
    start_worker("-c", "1")
    wait_until(lambda: reply_queue not in transient_queues(database_url), "the queue is gone")
    assert one(database_url, "select count(*) from jobqueue.binding where queue = %s", (reply_queue,)) == 0


def test_the_rpc_result_backend_works_too(make_client: Callable[..., Celery], database_url: str, start_worker: Start) -> None:
    app = make_client(result_backend="rpc://")
    start_worker("-c", "1", TEST_BACKEND="rpc://")
    results = [app.tasks["t.add"].delay(1, number) for number in range(3)]
    assert [result.get(timeout=20) for result in results] == [1, 2, 3]
    with pytest.raises(ValueError, match="bang"):
        app.tasks["t.boom"].delay("bang").get(timeout=20)
    assert {row["state"] for row in rows(database_url, "select state from job_queue")} == {None}
