"""A real `celery beat` and a real Flower beside the harm. They come back by themselves, or a promise is broken."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from tests.faults.arena import Arena
from tests.support.beats import beat
from tests.support.flower import Flower, flower

_APP = "tests.faults.app"
_SETTINGS = json.dumps({"beat_schedule": {"tick": {"task": "f.work", "schedule": 0.5}}})
#: Seconds. Celery's event receiver, which is Flower's, waits up to 32 s between two tries to connect.
_LONGEST = 90.0
_TICKS = ("select task_id, status from job_queue where envelope::json -> 'headers' ->> 'periodic_task_name' = 'tick'"
          " and created_at > coalesce(%s, '-infinity'::timestamptz)")


@contextmanager
def bystanders(arena: Arena, url: str | None = None, options: dict[str, Any] | None = None) -> Iterator[None]:
    """Both run in the block, on this URL; harm is over at its end, and then each has to show that it is back.

    options: broker_transport_options. What beat sends counts as the scenario's own jobs.
    """
    url, env = url or arena.url, {"FAULTS_OPTIONS": json.dumps(options or {})}
    with (beat(url, arena.folder, app=_APP, FAULTS_SETTINGS=_SETTINGS, **env) as sending,
          flower(url, arena.folder, arena.url, app=_APP, **env) as site):
        yield
        over, since = time.monotonic(), arena.value("select clock_timestamp()")

        def new() -> set[str]:
            return {row["task_id"] for row in arena.query(_TICKS, (since,)) if row["status"] == "completed"}

        arena.check(arena.holds_within(new, _LONGEST), f"beat has sent nothing within {_LONGEST:g} s after the harm")
        sent = time.monotonic() - over
        arena.check(arena.holds_within(lambda: new() & _seen(site), _LONGEST), f"Flower sees no new job in {_LONGEST:g} s")
        arena.check(sending.process.poll() is None, "beat does not end")
        arena.note(f"when harm and traffic were over a new job of beat's had completed after {sent:.1f} s, and Flower knew of it"
                   f" after {time.monotonic() - over:.1f} s")
    arena.note_published("f.work", *(row["task_id"] for row in arena.query(_TICKS, (None,))))


def _seen(site: Flower) -> set[str]:
    with suppress(OSError):
        return set(site.states())
    return set()
