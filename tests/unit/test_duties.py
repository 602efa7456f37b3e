"""What an idle worker's connection sends from time to time, counted over ten minutes that pass in no time."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from celery_jobqueue.broker.claims import Claims
from celery_jobqueue.broker.duties import Duties, Plan
from celery_jobqueue.broker.options import Options

_MINUTES = 10


def sent(options: Options, *, worker: bool = True, transient: tuple[str, ...] = ("pidbox",)) -> Counter[str]:
    """Statements per minute, and `lazy`: transactions that need not wait for the disk."""
    session: Any = object()
    claims = Claims("owner", 5.0)
    claims.queues = ["celery"]
    duties = Duties(session, options, claims, list(transient), lambda _: None)
    duties.starts_on_delivery = not worker
    count: Counter[str] = Counter()
    now, turns = 0.0, 0
    while now < 60 * _MINUTES:
        plan = duties.clean_up(now, lambda *_: None) or Plan()
        if not plan.calls:
            duties.plan(plan, now)
        count.update(call[0].name for call in plan.calls)
        count["lazy"] += plan.lazy
        turns += 1
        assert turns < 100_000, "what is due is done, and not due again at once"
        now = max(now + 0.001, duties.next)
    return Counter({name: number // _MINUTES for name, number in count.items()})


def test_what_need_not_wait_for_the_disk_goes_together() -> None:
    count = sent(Options(pooled=True))
    assert count["lazy"] == count["touch"]
    assert count["touch"] <= 13
    assert 4 <= count["heartbeat"] <= 5
    assert 6 <= count["retire"] <= 7
    # Claims, two statements every 5 s, and looks into the mailbox, one every 5 s, are sent by others.
    assert (count.total() + 12 * 3) / 60 < 2.0


@pytest.mark.parametrize("interval", [0.1, 0.5, 3.0])
def test_short_heartbeats_bring_no_touches(interval: float) -> None:
    count = sent(Options(pooled=True, heartbeat=interval))
    assert count["touch"] <= 13
    assert count["heartbeat"] <= 60 / interval * 1.34


def test_who_is_no_worker_cleans_nothing_up() -> None:
    assert sent(Options(pooled=True), worker=False)["retire"] == 0
    assert sent(Options(pooled=True), transient=())["touch"] == 0
