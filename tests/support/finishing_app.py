"""Tasks that finish their own job in their own transaction, and processes that die around the commit."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

from celery_jobqueue.broker import afinish_in, finish_in, jobs_in
from tests.support.app import app, make_app
from tests.support.transactions import ASYNC, opened, opened_async

__all__ = ["add_tasks", "app", "make_app"]

_URL = os.environ.get("DATABASE_URL", "")


def _die(request: Any, moment: str, now: str) -> None:
    """`before` or `after` the commit, in the first run: `child` kills the pool process, `worker` everything."""
    victim, _, when = moment.partition(" ")
    if when == now and victim != "raise" and request.properties["job"]["attempts"] == 1:
        if victim == "worker":
            os.killpg(0, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)


def add_tasks(application: Any) -> None:
    """Register the tasks below."""
    def task(**options: Any) -> Any:
        return application.task(shared=False, **options)

    @task(name="f.pay", bind=True)
    def pay(self: Any, who: Any, moment: str = "", kind: str = "session", url: str = _URL) -> str:
        """Write one entry, with the job's completion."""
        insert = f"insert into ledger values ('{who}')"
        if kind in ASYNC:
            async def write() -> str:
                async with opened_async(kind, url) as transaction:
                    await transaction.execute(insert)
                    paid = await afinish_in(transaction.target, f"paid {who}")
                    _die(self.request, moment, "before")
                    await transaction.commit()
                return paid

            paid = asyncio.run(write())
        else:
            with opened(kind, url) as transaction:
                transaction.execute(insert)
                paid = finish_in(transaction.target, f"paid {who}")
                _die(self.request, moment, "before")
                transaction.commit()
        _die(self.request, moment, "after")
        if moment == "raise after":
            raise ValueError("after the commit")
        return paid

    @task(name="f.note")
    def note(entry: Any, prefix: str = "noted ") -> str:
        """Write an entry at once, every time it runs."""
        with opened("psycopg", _URL) as transaction:
            transaction.execute(f"insert into ledger values ('{prefix}{entry}')")
            transaction.commit()
        return f"{prefix}{entry}"

    @task(name="f.change_of_mind")
    def change_of_mind() -> str:
        """Finish, roll back, and return as if nothing had been."""
        with opened("psycopg", _URL) as transaction:
            finish_in(transaction.target, "never seen")
            transaction.rollback()
        return "by Celery"

    @task(name="f.slow")
    def slow(path: str) -> str:
        """Announce this run as `path.<pid>`, wait for `path.go`, then write and finish."""
        Path(f"{path}.{os.getpid()}").touch()
        while not Path(f"{path}.go").exists():
            time.sleep(0.02)
        with opened("psycopg", _URL) as transaction:
            transaction.execute("insert into ledger values ('slow')")
            finish_in(transaction.target, os.getpid())
            transaction.commit()
        return "ignored"

    @task(name="f.retry_in_block", bind=True, max_retries=2)
    def retry_in_block(self: Any) -> int:
        with opened("psycopg", _URL) as transaction:
            with jobs_in(transaction.target):
                transaction.execute(f"insert into ledger values ('{'second' if self.request.retries else 'first'} run')")
                if not self.request.retries:
                    note.delay("never")
                    raise self.retry(countdown=0)
            transaction.commit()
        return int(self.request.retries)


add_tasks(app)
