"""Where a worker's events wait for its next round trip."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from celery_jobqueue.broker import outbox
from celery_jobqueue.broker.outbox import Outbox, outbox_of
from celery_jobqueue.broker.transient import Topology


def message(body: str | bytes = "[]", **properties: Any) -> dict[str, Any]:
    return {"body": body, "headers": {}, "properties": properties, "content-type": "application/json",
            "content-encoding": "utf-8"}


def test_events_for_the_same_queues_are_one_statement() -> None:
    box = Outbox()
    for number in range(5):
        box.post(message(f'["{number}"]'), ["a", "b"], "jobs")
    box.post(message(b"\xff"), ["a"], "jobs")
    box.post(message(), ["c"], "jobs")
    binary, many, other = box.calls()
    assert (binary[0].name, many[0].name, other[0].name) == ("send", "send_all", "send_all")
    assert many[1][0] == '{"a","b"}'
    assert many[1][4] == "{" + ",".join(f'"[\\"{number}\\"]"' for number in range(5)) + "}"
    assert box.due is None
    assert box.calls() == []


def test_they_wait_a_moment_but_not_when_they_are_many_or_the_loop_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "monotonic", lambda: 100.0)
    box = Outbox()
    assert box.due is None
    box.post(message(), ["a"], "jobs")
    assert box.due == pytest.approx(100.02)
    for _ in range(99):
        box.post(message(), ["a"], "jobs")
    assert box.due == 0.0
    box.calls()
    box.post(message(), ["a"], "jobs")
    box.close("anywhere")
    assert box.due == 0.0


def test_events_of_other_threads_wake_the_loop() -> None:
    box, woken = Outbox(), threading.Event()
    box.open("here", woken.set, Topology(list))
    try:
        assert outbox_of("here") is box
        box.post(message(), ["a"], "jobs")
        assert not woken.is_set()
        thread = threading.Thread(target=box.post, args=(message(), ["a"], "jobs"))
        thread.start()
        thread.join()
        assert woken.is_set()
    finally:
        box.close("here")
    assert outbox_of("here") is None


def test_a_server_that_is_away_costs_no_memory_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    box = Outbox()
    for number in range(outbox._MOST + 5):
        box.post(message(str(number)), ["a"], "jobs")
    [(_, params)] = box.calls()
    assert str(params[4]).startswith('{"5","6",')


def test_what_goes_to_the_processs_own_queues_needs_no_database() -> None:
    near, taken = ["mine"], []
    box = Outbox(near, lambda *letter: taken.append(letter))
    box.post(message('["one"]'), ["mine"], "jobs")
    assert box.due is None
    box.post(message(b"\xff"), ["mine", "theirs"], "jobs")
    [(sent, params)] = box.calls()
    assert (sent.name, params[0]) == ("send", '{"theirs"}')
    assert [letter[0::2] for letter in taken] == [("mine", '["one"]'), ("mine", None)]
    assert [letter[3] for letter in taken] == [None, r"\xff"]
    near.clear()
    box.post(message(), ["mine"], "jobs")
    assert box.due is not None


def test_a_forked_pool_process_has_no_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """It inherits the box, which nobody empties there."""
    box = Outbox()
    box.open("here", list, Topology(list))
    try:
        assert outbox_of("here") is box
        monkeypatch.setattr(outbox.os, "getpid", lambda: 1)
        assert outbox_of("here") is None
    finally:
        box.close("here")
