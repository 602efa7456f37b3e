"""When to look for jobs, where to look, and how far this worker has read."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from hashlib import md5
from itertools import islice
from math import inf
from time import monotonic
from typing import Any, NamedTuple

from celery_jobqueue.broker.session import Call, Row
from celery_jobqueue.broker.sql import statement
from celery_jobqueue.broker.wire import quoted

__all__ = ["PASSED_OVER", "Claims", "Door", "Places", "channel_of", "text_array"]

_PRIORITIES = range(1, 11)
#: A worker that has just run dry looks again after this many seconds, then after twice as long, and so on: whoever
#: published before it counted as idle sent no wake-up.
_FIRST_POLL = 0.003
#: Seconds between two looks from which on nothing comes, and who publishes has to say so.
_DRY = 0.05
#: Cursors are dropped this often (seconds), for rows that became visible behind them: late commits, rows given back.
_REWIND_EVERY = 1.0
#: A worker that finds more than it has places for leaves out, for so many seconds, the levels that it has just seen empty before
#: those jobs, and asks for so many of the others: of 50 queues' 500 levels a claim went through 200 before the first job.
_SEEN_EMPTY, _BUSY_LEVELS = 0.05, 16
#: Jobs per second up to which publishers wake a worker that keeps up with them, and above which it looks by itself (at 500/s it
#: takes 3.6 ms instead of 5.4 from delay() to the first line; sixteen publishers get 960 jobs/s in, not 740). How often a second
#: it may be woken in vain, because others take what comes: four workers at 500/s cost half of what they did. Seconds between two
#: judgements of that, and until a worker that has withdrawn is woken again.
_CALM, _LIVELY, _IN_VAIN = 600, 800, 200
_JUDGED_EVERY, _WITHDRAWN = 0.1, 1.0
#: But so late when the database refuses the claim of a row: its turn comes again then.
PASSED_OVER = 10.0


class Places(NamedTuple):
    """What a worker has places for. limit: jobs to claim; ahead: how many more, as long as it starts each of them. starts,
    starts_once: how many of the tasks in quick and quick_once the claim may start itself (acknowledged late and early); both are
    text[] literals.
    """

    limit: int
    ahead: int = 0
    worker: str = ""
    starts: int = 0
    quick: str = "{}"
    starts_once: int = 0
    quick_once: str = "{}"


class Door:
    """What a consumer says of the places it has. This one has no pool; a worker's is broker/gate.py."""

    def places(self, credit: int) -> Places:
        """What to claim while the prefetch window has `credit` places (below zero: more is out than it has)."""
        return Places(max(0, credit))

    def ahead(self) -> int:
        """How many jobs may be claimed beyond the prefetch window."""
        return 0

    def collecting(self) -> AbstractContextManager[None]:
        """While what was claimed is delivered."""
        return nullcontext()

    def tend(self) -> None:
        """Called with every batch, and every other second at least."""

    @property
    def tend_at(self) -> float:
        """When tend() is due, in monotonic seconds."""
        return inf

    def full(self) -> bool:
        """Whether nothing is to be claimed now in spite of free places in the prefetch window."""
        return False

    def claimed(self, starts: int) -> None:
        """The claim is answered; so many jobs were started by it and will be delivered next."""

    def enough(self, undelivered: int) -> bool:
        """Whether there is work for longer than a round trip takes, besides so many undelivered jobs."""
        return False

    def unfit(self, raw: dict[str, Any]) -> bool:
        """Whether a job that its claim has started does not run after all."""
        return False


class _Cursor(NamedTuple):
    run_at: str
    id: str


_START = _Cursor("-infinity", "00000000-0000-0000-0000-000000000000")


class _Traffic:
    """What a worker's looks met lately, and whether publishers should wake it."""

    def __init__(self) -> None:
        self.withdrawn_until = 0.0
        self._since: float | None = None
        self._found = self._in_vain = 0
        self._full = False

    def note(self, found: int, now: float, *, in_vain: bool = False, full: bool = False) -> None:
        """A look. in_vain: somebody had told of jobs, and there was none; full: there may be more."""
        if self._since is None:
            self._since = now
        self._found += found
        self._in_vain += in_vain
        self._full = self._full or full

    def calls_for_waking(self, idle: bool, now: float) -> bool:
        """Whether the worker should be woken from now on. idle: whether it is."""
        if self._since is None or (seconds := now - self._since) < _JUDGED_EVERY:
            return idle
        found, in_vain, full = self._found, self._in_vain, self._full
        self._since, self._found, self._in_vain, self._full = now, 0, 0, False
        if idle and (found > _LIVELY * seconds or in_vain > _IN_VAIN * seconds):
            self.withdrawn_until = now + _WITHDRAWN
            return False
        return idle or (not full and found <= _CALM * seconds and now >= self.withdrawn_until)


class Claims:
    """The claiming side of one consuming connection.

    slowest: longest time between two looks when nothing wakes it, in seconds. hears: whether it can be woken; behind a pooler it
    cannot.
    """

    def __init__(self, owner: str, slowest: float, *, hears: bool = True) -> None:
        self.owner = owner
        self.slowest = slowest
        self.hears = hears
        self.queues: list[str] = []
        #: Little was found for a while: publishers have to wake this worker.
        self.idle = False
        self._idle_since = 0.0
        self._traffic = _Traffic()
        self._cursors: dict[tuple[str, int], _Cursor] = {}
        self._rewind_at = 0.0
        self._poll_at = 0.0
        self._interval = _FIRST_POLL
        self._told = False
        self._full = 0
        self._turn = 0
        self._asked: Sequence[tuple[str, int]] = ()
        self._empty: frozenset[tuple[str, int]] = frozenset()
        self._learns, self._asked_all = False, True
        self._empty_until = 0.0
        self._passed: dict[tuple[str, int], tuple[_Cursor, float]] = {}

    def add(self, queue: str) -> None:
        """Serve this queue too, from now on."""
        if queue not in self.queues:
            self.queues.append(queue)
        self.wake()

    def remove(self, queue: str) -> None:
        """No longer serve this queue."""
        if queue in self.queues:
            self.queues.remove(queue)

    def wake(self, queue: str | None = None) -> None:
        """Something may have been published, possibly behind the cursor: look now, from the beginning."""
        self._rewind(queue)
        self._poll_at = 0.0
        self._interval = _FIRST_POLL
        self._empty_until = 0.0

    def _rewind(self, queue: str | None = None) -> None:
        now = monotonic()
        self._passed = {level: passed for level, passed in self._passed.items() if passed[1] > now}
        kept = {level: cursor for level, cursor in self._cursors.items() if queue not in (None, level[0])}
        self._cursors = kept | {level: cursor for level, (cursor, _) in self._passed.items() if level not in kept}

    def due(self, now: float) -> bool:
        """Whether it is time to look (now: monotonic seconds)."""
        return bool(self.queues) and now >= self._poll_at

    @property
    def woken(self) -> bool:
        """Whether somebody said that there is something, since the last look."""
        return self._poll_at == 0.0

    @property
    def next_look(self) -> float:
        """When to look again, in monotonic seconds."""
        return self._poll_at

    def calls(self, places: Places, queues: Sequence[str], now: float, *, turn: bool = True,
              level: tuple[str, int] | None = None) -> list[Call]:
        """The claim, and the question when the next delayed job is due. turn: begin with another of the queues than last time;
        level: look there only, in one of the queues.
        """
        if now >= self._rewind_at:
            self._rewind()
            self._rewind_at = now + _REWIND_EVERY
        # Fair between queues of the same priority: another one is first each time.
        self._turn += turn
        first = self._turn % max(1, len(queues))
        # Else claims of other channels, with windows of their own, go with it.
        everywhere = level is None and len(queues) == len(self.queues)
        if now >= self._empty_until or not everywhere:
            self._empty = frozenset()
        order = [*queues[first:], *queues[:first]]
        levels = (at for priority in _PRIORITIES for queue in order
                  if (at := (queue, priority)) not in self._empty and level in (None, at))
        self._asked = list(islice(levels, _BUSY_LEVELS) if everywhere and now < self._empty_until else levels)
        self._learns, self._asked_all = everywhere, level is None and next(levels, None) is None
        self._told = self.woken or (self._told and self._poll_at == now)  # asked twice for queues of several channels
        self._poll_at = now  # who wakes it from now on is heeded after the answer
        calls: list[Call] = [(statement("claim"), (
            self.owner, str(places.limit), *self._levels(),
            places.worker, str(places.starts), places.quick, str(places.starts_once), places.quick_once, str(places.ahead),
        ))]
        if not self._full:
            calls.append((statement("next_due"), (text_array(queues),)))
        return calls

    def _levels(self) -> tuple[str, str, str, str]:
        cursors = [self._cursors.get(level, _START) for level in self._asked]
        return (text_array(queue for queue, _ in self._asked),
                "{" + ",".join(str(priority) for _, priority in self._asked) + "}",
                "{" + ",".join([quoted(cursor.run_at) for cursor in cursors]) + "}",
                "{" + ",".join([cursor.id for cursor in cursors]) + "}")

    def first_in_line(self) -> Call:
        """Which job the last claim would have taken if it was of one, when that was refused."""
        return statement("first_in_line"), self._levels()

    def pass_over(self, row: Row) -> bool:
        """Claim what stands behind this job, for a while. False when that is so already: its run_at is less than a second ago."""
        queue, priority, run_at, id_ = row
        assert queue
        assert priority
        assert run_at
        assert id_
        level, cursor = (queue, int(priority)), _Cursor(run_at, id_)
        known = level in self._passed and self._passed[level][0] == cursor
        self._cursors[level] = cursor
        self._passed[level] = cursor, monotonic() + PASSED_OVER
        return not known

    def took(self, rows: list[Row], due: list[Row] | None, places: Places, now: float) -> None:
        """Learn from the answers of `calls`."""
        for row in () if self.woken else rows:  # whoever woke it meanwhile may have put something behind these
            queue, priority, run_at, id_ = row[2], row[3], row[14], row[0]
            assert queue
            assert priority
            assert run_at
            assert id_
            self._cursors[queue, int(priority)] = _Cursor(run_at, id_)
        if len(rows) >= max(1, places.limit):  # beyond that they end before the first for which there was no place
            self._full += 1
            self._leave_out(rows, now)
            self._poll_at, self._interval = now, _FIRST_POLL
            self._traffic.note(len(rows), now, full=self._full > 1)  # a claim of one is full with one
            self.idle = self.idle and self._full < 3
            return
        self._empty_until = 0.0
        if not self._asked_all:
            self._poll_at = now
            return
        if not places.limit:  # the first in line may be one for which there was no place
            self._poll_at = self._poll_at if self.woken else now + _FIRST_POLL
            return
        self._full = 0
        in_vain = self.idle and self._told and not rows
        self._traffic.note(len(rows), now, in_vain=in_vain)
        idle = self._traffic.calls_for_waking(self.idle, now) if self.hears else self.idle
        if rows or (self.idle and not idle):
            self._interval = _FIRST_POLL
        elif in_vain and now > self._idle_since + _WITHDRAWN:
            # Others were quicker, and whoever publishes next says so again: fifty idle workers looked 391 times for one job. But
            # who published before this one counted as idle has said nothing, and may be about to commit.
            self._interval = self.slowest
        else:
            self._interval = min(self._interval * 2, self.slowest if now >= self._traffic.withdrawn_until else _DRY)
            idle = idle or self._interval > _DRY
        if idle and not self.idle:
            self._idle_since = now
        self.idle = idle
        wait = self._interval * random.uniform(0.9, 1.1)
        if due and due[0][0] is not None:
            wait = min(wait, max(0.0, float(due[0][0])) + 0.001)
        if not self.woken:
            self._poll_at = now + wait

    def _leave_out(self, rows: list[Row], now: float) -> None:
        # Of one queue all levels are asked for: 20 µs of a claim's 700, and an urgent job never has to wait behind another.
        if not self._learns or len(self.queues) * len(_PRIORITIES) <= _BUSY_LEVELS:
            return
        if now >= self._empty_until:
            self._empty_until = now + _SEEN_EMPTY
        found = {(row[2], int(row[3] or 0)) for row in rows}
        # The claim goes through the levels in this order, and has ended with the last in which it found something.
        last = max((number for number, level in enumerate(self._asked) if level in found), default=0)
        self._empty |= {level for level in self._asked[:last] if level not in found}


def text_array(values: Iterable[str]) -> str:
    """A PostgreSQL text[] literal."""
    return "{" + ",".join(map(_quoted, values)) + "}"


_quoted = lru_cache(maxsize=512)(quoted)  # names of queues come again with every claim; ids of jobs only once


@lru_cache(maxsize=1024)  # a worker asks for those of its queues with every batch
def channel_of(name: str) -> str:
    """NOTIFY channel of a queue or reply address, as jobqueue.channel() computes it."""
    return "jq_" + md5(name.encode(), usedforsecurity=False).hexdigest()
