"""When transient messages are read."""

from __future__ import annotations

from collections import deque
from time import monotonic

import pytest

from celery_jobqueue.broker.claims import Claims
from celery_jobqueue.broker.duties import Plan
from celery_jobqueue.broker.mailbox import Delivery, Mailbox
from celery_jobqueue.broker.options import Options


@pytest.fixture
def mailbox() -> Mailbox:
    """A worker's, which has just looked."""
    ready: deque[Delivery] = deque()
    box = Mailbox(Options(), Claims("owner", 5.0), ready)
    for queue in ("w@h.celery.pidbox", "celeryev.1234"):
        box.add(queue)
    box.leisurely = "celeryev."
    assert looks(box, monotonic()) == 1
    return box


def looks(box: Mailbox, now: float) -> int:
    plan = Plan()
    box.plan(plan, now)
    return len(plan.calls)


def test_orders_are_read_at_once(mailbox: Mailbox) -> None:
    now = monotonic()
    assert looks(mailbox, now) == 0
    mailbox.heard("celeryev.1234")
    mailbox.heard("w@h.celery.pidbox")
    assert mailbox.next == 0.0
    assert looks(mailbox, now) == 1
    assert looks(mailbox, now) == 0


def test_gossip_waits_half_a_second_for_more(mailbox: Mailbox) -> None:
    now = monotonic()
    for _ in range(3):
        mailbox.heard("celeryev.1234")
    assert now + 0.5 <= mailbox.next <= monotonic() + 0.5
    assert looks(mailbox, now + 0.4) == 0
    mailbox.heard("celeryev.1234")  # nor does it wait longer and longer
    assert looks(mailbox, now + 0.6) == 1
    assert looks(mailbox, now + 0.6) == 0


def test_who_has_no_orders_reads_all_events_at_once(mailbox: Mailbox) -> None:
    """Flower and `celery events` are no workers."""
    mailbox.leisurely = None
    mailbox.heard("celeryev.1234")
    assert mailbox.next == 0.0


def test_a_full_look_is_followed_by_another(mailbox: Mailbox) -> None:
    mailbox.look()
    plan = Plan()
    mailbox.plan(plan, monotonic())
    [take] = plan.takers
    take([(str(number), "celeryev.1234", "{}", "{}", None) for number in range(100)])
    assert mailbox.next == 0.0
