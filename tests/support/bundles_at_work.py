"""Bundles in a prefork pool, without a worker: `python -m tests.support.bundles_at_work CASE` prints what came of it as JSON."""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any
from weakref import ref

from celery import Celery
from celery.exceptions import TaskRevokedError
from celery.worker import state as worker_state

from celery_jobqueue.broker import bundles
from celery_jobqueue.broker.bundles import Bundle, prepare_bundles, take_slot
from tests.support import pool_at_work
from tests.support.pool_at_work import Pool

app = Celery("bundles", broker="memory://", set_as_current=True)


@app.task(name="b.same")
def same(value: Any) -> Any:
    return value


@app.task(name="b.raise")
def fail(value: str) -> None:
    raise ValueError(value)


@app.task(name="b.exit")
def leave() -> None:
    sys.exit(3)


@app.task(name="b.die")
def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@app.task(name="b.wait")
def wait(path: str) -> str:
    Path(path).touch()
    while not Path(path + ".go").exists():
        time.sleep(0.01)
    return "went"


class Request:
    """What a bundle is made of; it notes what it is told."""

    bundle: Any = None
    time_start: Any = None
    may_be_bundled = True
    content_type, content_encoding = "application/json", "utf-8"
    app = app

    def __init__(self, name: str, *args: Any) -> None:
        self.id = self.type = self.name = f"b.{name}"
        self.body = json.dumps((args, {}, {}))
        self.request_dict = {"id": self.id, "task": self.name, "args": args, "kwargs": {}, "retries": 0, "delivery_info": {}}
        self.told: list[Any] = []

    def revoked(self) -> bool:
        return self.id in worker_state.revoked

    def on_accepted(self, _pid: int, accepted_at: float) -> None:
        self.time_start = accepted_at
        self.told.append("accepted")

    def on_not_accepted(self) -> None:
        self.time_start = None
        self.told.append("not accepted")

    def on_success(self, outcome: Any) -> None:
        failed, value, _ = outcome
        self.told.append(value.type.__name__ if failed else value)

    def on_failure(self, info: Any) -> None:
        self.told.append(info.type.__name__)


class Runs:
    """A pool of so many processes and what became of the bundle that it was given."""

    def __init__(self, *requests: Request, processes: int = 1) -> None:
        prepare_bundles(2)
        self.pool = Pool(processes)
        self.requests = list(requests)
        self.back: list[list[Any]] = []
        slot = take_slot()
        assert slot is not None
        self.bundle = Bundle(list(requests), slot, lambda _, back: self.back.append(back))

    def enter(self) -> None:
        self.pool._pool = self.pool.pool  # type: ignore[attr-defined]
        self.pool.apply_async = self.pool.pool.apply_async  # type: ignore[attr-defined]
        self.bundle.execute_using_pool(self.pool)

    def end(self) -> Any:
        """What each request was told, which of them never began, and whether there could be as many bundles as before."""
        self.pool.until(lambda: bool(self.back))
        return self.told, [self.requests.index(request) for request in self.back[0]], len(bundles._free) == 2

    @property
    def told(self) -> list[list[Any]]:
        return [request.told for request in self.requests]


def run(*requests: Request) -> Any:
    runs = Runs(*requests)
    runs.enter()
    return runs.end()


def in_turn() -> Any:
    """All of them run, and one that fails as a task fails does the others no harm. Long ones too."""
    return run(Request("same", 1), Request("raise", "x"), Request("same", ["x" * 200_000]), Request("same", 4))


def dies() -> Any:
    return run(Request("same", 1), Request("die"), Request("same", 3), Request("same", 4))


def exits() -> Any:
    """One leaves its process by the door."""
    return run(Request("same", 1), Request("exit"), Request("same", 3))


def cannot_be_told() -> Any:
    """The process cannot say what came of one."""
    runs = Runs(Request("same", 1), Request("same", 2), Request("same", 3))
    outcome = bundles._call
    bundles._call = lambda request: (_unspeakable, (1,)) if request is runs.requests[1] else outcome(request)
    runs.enter()
    return runs.end()


def _unspeakable(_: int) -> Any:
    return lambda: None


def taken_back(folder: str) -> Any:
    """Those behind one that takes long do not run once they are taken back; it goes on."""
    path = f"{folder}/long"
    runs = Runs(Request("same", 1), Request("wait", path), Request("same", 3), Request("same", 4))
    runs.enter()
    runs.pool.until(Path(path).exists)
    waits = runs.bundle.waits
    back = [runs.requests.index(request) for request in runs.bundle.take_back()]
    again = runs.bundle.take_back()
    Path(path + ".go").touch()
    return waits, back, again, runs.end()


def unread() -> Any:
    """Its process is stopped, and dies before it has read anything: another one runs all of it."""
    runs = Runs(Request("same", 1), Request("same", 2))
    [process] = runs.pool.pool._pool
    os.kill(process.pid, signal.SIGSTOP)
    os.waitpid(process.pid, os.WUNTRACED)
    runs.enter()
    os.kill(process.pid, signal.SIGKILL)
    return runs.end()


def revoked() -> Any:
    """What is revoked does not enter; and nothing does when all are."""
    worker_state.revoked.add("b.wait")
    some = run(Request("same", 1), Request("wait", "never"), Request("same", 3))
    runs = Runs(Request("wait", "never"))
    try:
        runs.enter()
    except TaskRevokedError:
        return some, runs.end(), len(runs.pool.pool._cache)
    return some


def refused() -> Any:
    """The pool cannot take one of them: nothing stays there, and each is to enter by itself."""
    runs = Runs(Request("same", 1), Request("same", 2))
    runs.requests[1].request_dict["args"] = (lambda: None,)
    try:
        runs.enter()
    except TaskRevokedError:
        return runs.end(), len(runs.pool.pool._cache), [request.may_be_bundled for request in runs.requests]
    return "taken"


def freed() -> Any:
    """What is over is kept by nobody: neither one that ended, nor one that failed, nor one that was taken back."""
    gc.disable()
    kept = []
    for arguments in (["same", 2], ["exit"]):
        runs = Runs(Request("same", 1), Request(*arguments), Request("same", 3))
        runs.enter()
        runs.end()
        watched = [ref(runs.bundle), *map(ref, runs.requests)]
        del runs.bundle, runs.requests, runs.back
        kept.append([found() is not None for found in watched])
    return kept


if __name__ == "__main__":
    pool_at_work.main(globals())
