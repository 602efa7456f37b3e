"""What batches are worth: `python -m tests.benchmarks.bench_publish`. Jobs per second from one process, durably.

The ways take turns and the medians are compared: only ratios from one run on one machine mean something.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psycopg
from celery import Celery

from celery_jobqueue.broker import enqueue_many, jobs_in
from celery_jobqueue.db import embedded, migrate
from tests.support.app import make_app


def ways(app: Celery, conn: psycopg.Connection[tuple[object, ...]]) -> dict[str, Callable[[int], None]]:
    """Each publishes n jobs."""
    add = app.tasks["t.add"]

    def one_by_one(n: int) -> None:
        for number in range(n):
            add.delay(number, 1)

    def batch(n: int) -> None:
        with app.producer_or_acquire() as producer, producer.batch():
            for number in range(n):
                add.apply_async((number, 1), producer=producer)

    def in_app(n: int) -> None:
        with jobs_in(app):
            one_by_one(n)

    def in_transaction(n: int) -> None:
        with jobs_in(conn):
            one_by_one(n)
        conn.commit()

    def at_once(n: int) -> None:
        enqueue_many(add, [(number, 1) for number in range(n)])

    return {"enqueue_many()": at_once, "delay()": one_by_one, "Producer.batch()": batch, "jobs_in(app)": in_app,
            "jobs_in(connection)": in_transaction}


def main() -> None:
    """Measure and print a table for docs/transactions.md."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--jobs", type=int, default=1000)
    options.add_argument("--rounds", type=int, default=7)
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        url = embedded.ensure(Path(folder) / "server")
        try:
            migrate.migrate(url, migrate.LINES)
            app = make_app(url)
            with psycopg.connect(url) as conn:
                taken: dict[str, list[float]] = {}
                for _ in range(chosen.rounds):
                    for name, publish in ways(app, conn).items():
                        began = time.perf_counter()
                        publish(chosen.jobs)
                        taken.setdefault(name, []).append(chosen.jobs / (time.perf_counter() - began))
            app.close()
            rates = {name: statistics.median(found) for name, found in taken.items()}
            print("| way | jobs/s | times |\n|---|---|---|")
            for name, rate in rates.items():
                print(f"| `{name}` | {rate:,.0f} | {rate / rates['delay()']:.1f} |")
        finally:
            embedded.down(Path(folder) / "server")


if __name__ == "__main__":
    main()
