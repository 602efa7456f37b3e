"""A prefork pool on an event loop, without a worker: `python -m tests.support.pool_at_work CASE` prints what came of it as JSON.

In a process of its own, because the pool forks and the process of the tests has threads.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import struct
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import billiard
from celery import signals
from celery.concurrency.asynpool import AsynPool
from celery.worker import state as worker_state
from kombu.asynchronous import Hub, set_event_loop

from celery_jobqueue.broker.pipes import accept_silently
from celery_jobqueue.broker.prefork import mind, prepare_processes

_POOLS: list[AsynPool] = []


class Pool:
    """The pool, its loop, and the number of times that each was used."""

    def __init__(self, processes: int = 2, **options: Any) -> None:
        self.hub = Hub()
        set_event_loop(self.hub)
        self.pool = AsynPool(processes, threads=False, initializer=accept_silently, **options)
        _POOLS.append(self.pool)
        mind(SimpleNamespace(_pool=self.pool))
        self.pool.register_with_event_loop(self.hub)
        self.until(lambda: len(self.pool._all_inqueues) == processes)

    def until(self, done: Callable[[], bool], seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        self.hub.call_repeatedly(0.05, lambda: None)
        while not done():
            assert time.monotonic() < deadline, "it takes too long"
            self.hub.run_once()

    def apply(self, function: Any, *args: Any, **options: Any) -> list[Any]:
        """What becomes of a call, once it is known: (succeeded, value)."""
        found: list[Any] = []
        self.pool.apply_async(function, args, callback=lambda value: found.append((True, value)),
                              error_callback=lambda error: found.append((False, repr(error.exception.exc))), **options)
        return found

    def until_written(self, jobs: int) -> None:
        self.until(lambda: sum(self.pool.write_stats.values()) == jobs)

    def outcome(self, found: list[Any]) -> Any:
        self.until(lambda: bool(found))
        return found[0][1]

    def all(self, outcomes: list[list[Any]]) -> list[Any]:
        self.until(lambda: all(outcomes))
        return [value for [(_, value)] in outcomes]


def same(value: Any) -> Any:
    return value


def slept(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def told_and_slept(descriptor: int) -> None:
    os.write(descriptor, b"x")
    time.sleep(60)


def killed(path: str) -> str:
    """Its process is killed, the first time."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return "again"
    os.kill(os.getpid(), signal.SIGKILL)
    return "never"


def sizes() -> Any:
    """Jobs and results of all sizes around those of a pipe, many at a time."""
    pool = Pool()
    sizes = (0, 1, 3000, 4000, 4085, 4090, 4096, 5000, 65_000, 65_536, 70_000, 300_000, 5)
    values = ["x" * size for _ in range(5) for size in sizes]
    found = pool.all([pool.apply(same, value) for value in values])
    return found == values


def at_once() -> Any:
    """A job is in its process before the loop turns, and both processes are used."""
    pool = Pool()
    outcomes = [pool.apply(slept, 0.5), pool.apply(slept, 0.5)]
    waits = len(pool.pool.outbound_buffer)
    third = pool.apply(same, 3)
    with_a_third = len(pool.pool.outbound_buffer)
    processes = len(set(pool.all(outcomes)))
    return waits, with_a_third, processes, pool.all([third]), sum(pool.pool.write_stats.values())


def leaving() -> Any:
    """A worker that was told to shut down begins nothing any more."""
    pool = Pool()
    worker_state.should_stop = 0
    pool.apply(same, 1)
    return len(pool.pool.outbound_buffer)


def raising() -> Any:
    """What a receiver raises takes nothing from the others that were read with its message, nor from one that was half there."""
    pool = Pool(1)
    handler, heard, errors = pool.pool._result_handler, list[str](), list[str]()
    words = [pickle.dumps(word) for word in ("one", "two", "three", "four")]
    sent = b"".join(struct.pack(">i", len(word)) + word for word in words)
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    handler.fileno_to_outq[reading] = pool.pool._pool[0]
    pool.hub.add_reader(reading, handler.handle_event, reading)

    def receive(word: str) -> None:
        heard.append(word)
        if word == "one":
            raise ValueError("refused")

    handler.on_state_change = receive
    for piece in (sent[:-30], sent[-30:-3], sent[-3:]):
        os.write(writing, piece)
        try:
            pool.until(lambda: "four" in heard, 1)
        except ValueError as error:
            errors.append(str(error))
        except AssertionError:
            pass
        heard.append("/")
    return heard, errors


def deaths(folder: str) -> Any:
    """What was written to a process that dies goes to another, and what it was at is lost."""
    pool = Pool()
    lost = [pool.apply(killed, f"{folder}/{number}") for number in range(6)]
    others = [pool.apply(same, number) for number in range(40)]
    done = pool.all(others)
    pool.until(lambda: all(lost))
    return done == list(range(40)), sorted({str(value)[:15] for [(_, value)] in lost})


class Asker:
    """Who asks for a job, as a worker's request does."""

    def __init__(self) -> None:
        self.accepted_by: list[int] = []
        self.times_not_accepted = 0

    def on_accepted(self, pid: int, _time: float) -> None:
        self.accepted_by.append(pid)

    def on_not_accepted(self) -> None:
        self.times_not_accepted += 1


def accepting() -> Any:
    """How often jobs were accepted: before the loop turns, and in all. Then the same of jobs that have a time limit, and in pools
    that replace their processes, write to busy ones, or make them anew.
    """
    counts = {}
    for case, of_pool, of_jobs in (
            ("as usual", {}, {}), ("limit", {}, {"timeout": 60}), ("soft limit", {}, {"soft_timeout": 60}),
            ("pool's limit", {"timeout": 60}, {}), ("replaced", {"maxtasksperchild": 30}, {}),
            ("fast", {"sched_strategy": "fast"}, {}), ("spawned", {"context": billiard.get_context("spawn")}, {})):
        pool, asker = Pool(**of_pool), Asker()
        outcomes = [pool.apply(same, 0, accept_callback=asker.on_accepted, **of_jobs)]
        at_once = len(asker.accepted_by)
        outcomes += [pool.apply(same, number, accept_callback=asker.on_accepted, **of_jobs) for number in range(100)]
        pool.all(outcomes)
        counts[case] = at_once, len(asker.accepted_by)
    return counts


def unread() -> Any:
    """A job that a dead process has not read runs in another one."""
    pool, asker = Pool(), Asker()
    stopped = [process.pid for process in pool.pool._pool]
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
        os.waitpid(pid, os.WUNTRACED)  # it reads on until it has really stopped
    outcomes = [pool.apply(same, number, accept_callback=asker.on_accepted) for number in range(2)]
    by_the_stopped = sorted(asker.accepted_by) == sorted(stopped)
    for pid in stopped:
        os.kill(pid, signal.SIGKILL)
    return by_the_stopped, pool.all(outcomes), len(asker.accepted_by), asker.times_not_accepted


def last_words() -> Any:
    """A job that was begun is lost with its process, whatever else lies in its pipe: the farewell of a worker that shuts down, or
    the next job where those are written to busy processes.
    """
    found = []
    for options in ({}, {"sched_strategy": "fast"}):
        reading, writing = os.pipe()
        pool = Pool(1, **options)
        lost = pool.apply(told_and_slept, writing)
        pool.until_written(1)
        os.read(reading, 1)
        if options:
            pool.apply(same, 1)
            pool.until_written(2)
        else:
            pool.pool._pool[0].inq.put(None)
        os.kill(pool.pool._pool[0].pid, signal.SIGKILL)
        found.append(pool.outcome(lost)[:15])
    return found


def policies() -> Any:
    """How the process that makes a pool is scheduled, one of the pool, and one of a pool whose policy somebody has chosen."""
    prepare_processes(2)
    found = []
    for chosen in (None, os.SCHED_OTHER, os.SCHED_IDLE):
        reading, writing = os.pipe()
        if chosen is None:
            signals.worker_process_init.send(None)  # as the solo pool does
            os.write(writing, bytes([os.sched_getscheduler(0)]))
        elif os.fork() == 0:
            os.sched_setscheduler(0, chosen, os.sched_param(0))
            signals.worker_process_init.send(None)
            os.write(writing, bytes([os.sched_getscheduler(0)]))
            os._exit(0)
        found.append(os.read(reading, 1)[0])
    return found


def main(cases: dict[str, Any]) -> None:
    """Run the case that the command line names."""
    try:
        print(json.dumps(cases[sys.argv[1]](*sys.argv[2:])), flush=True)
    finally:
        for process in [process for pool in _POOLS for process in pool._pool]:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        sys.stderr.flush()
    os._exit(0)  # the pool would wait for its processes


if __name__ == "__main__":
    main(globals())
