from __future__ import annotations

import re

import pytest

from celery_jobqueue.broker.transient import is_transient, topic_pattern


@pytest.mark.parametrize(("pattern", "key", "matches"), [
    ("#", "", True), ("#", "a.b.c", True), ("worker.#", "worker", True), ("worker.#", "worker.online", True),
    ("worker.#", "workers.online", False), ("*.online", "worker.online", True), ("*.online", "a.worker.online", False),
    ("#.online", "online", True), ("#.online", "a.b.online", True), ("a.#.b", "a.b", True), ("a.#.b", "a.x.y.b", True),
    ("a.*.b", "a.b", False), ("a+b", "a+b", True), ("a+b", "aab", False), ("task.received", "task.received", True),
])
def test_topic_patterns(pattern: str, key: str, matches: bool) -> None:
    assert bool(re.match(topic_pattern(pattern), key)) is matches


@pytest.mark.parametrize(("declared", "transient"), [
    ({}, False), ({"auto_delete": True}, True), ({"exclusive": True}, True), ({"arguments": {"x-expires": 1000}}, True),
    ({"arguments": {"x-message-ttl": 1000}}, False),
])
def test_what_makes_a_queue_transient(declared: dict[str, object], transient: bool) -> None:
    whole = {"auto_delete": False, "exclusive": False, "arguments": None, **declared}
    assert is_transient(**whole) is transient  # type: ignore[arg-type]
