"""Clients at work while harm is done: one publishes a job at a time, one waits for the results of some of them."""

from __future__ import annotations

import queue
import threading
import time
from random import Random
from types import TracebackType
from typing import Any

from celery import Celery
from celery.exceptions import TimeoutError as CeleryTimeoutError
from kombu.exceptions import OperationalError

from tests.faults.app import make_app
from tests.faults.arena import Arena

_EVERY = 20  # of so many jobs one result is waited for
_LONGEST_WAIT = 240.0


class Traffic:
    """Publishes arena.jobs jobs of up to `seconds`, through `url`, over about `over` seconds; errors of delay() are tried again
    with a new job, as an application would."""

    def __init__(self, arena: Arena, url: str | None = None, seconds: float = 0.05, over: float = 0.0, **settings: Any) -> None:
        self._arena, self._seconds, self._over = arena, seconds, over
        self._random = Random(arena.random.random())
        self._app: Celery = make_app(url or arena.url, **settings)
        self._ids: queue.Queue[tuple[str, float] | None] = queue.Queue()
        self.refused = 0
        self.slowest = 0.0  # seconds that a delay() took, whether it raised or not
        self.wrong: list[str] = []  # what was found amiss
        self.waited_for = 0
        self._threads = [threading.Thread(target=self._publish), threading.Thread(target=self._wait)]

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for thread in self._threads:
            thread.join()
        self._app.backend.result_consumer.stop()
        self._app.close()
        self._arena.check(not self.wrong, "; ".join(self.wrong[:3]))
        self._arena.check(self.waited_for, "nobody waited for a result: the scenario has not shown that it comes")
        self._arena.note(f"delay() raised {self.refused} times and took {self.slowest:.1f} s at most; "
                         f"{self.waited_for} results were waited for")

    @property
    def publishing(self) -> bool:
        """Whether jobs are still to be published."""
        return self._threads[0].is_alive()

    def _publish(self) -> None:
        began, published = time.monotonic(), 0
        while published < self._arena.jobs:
            wanted = round(self._random.uniform(0.0, self._seconds), 4)
            started = time.monotonic()
            try:
                task_id = self._app.tasks["f.work"].delay(wanted).id
            except OperationalError:
                self.refused += 1
                time.sleep(0.1)
                continue
            except Exception as error:
                self.wrong.append(f"delay() raised {type(error).__name__}: {error}")
                break
            finally:
                self.slowest = max(self.slowest, time.monotonic() - started)
            self._arena.note_published("f.work", task_id)
            if published % _EVERY == 0:
                self._ids.put((task_id, wanted))
            published += 1
            time.sleep(max(0.0, began + self._over * published / self._arena.jobs - time.monotonic()))
        self._ids.put(None)

    def _wait(self) -> None:
        while (found := self._ids.get()) is not None:
            task_id, wanted = found
            try:
                got = self._app.AsyncResult(task_id).get(timeout=_LONGEST_WAIT)
            except CeleryTimeoutError:
                self.wrong.append(f"the result of {task_id} did not come within {_LONGEST_WAIT:g} s")
                continue
            except Exception as error:
                self.wrong.append(f"waiting for {task_id} raised {type(error).__name__}: {error}")
                continue
            self.waited_for += 1
            if got != wanted:
                self.wrong.append(f"the result of {task_id} is {got}, not {wanted}")
