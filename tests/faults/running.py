"""Runs one scenario on a server and tells what became of it."""

from __future__ import annotations

import shutil
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from celery_jobqueue.db import embedded, migrate
from tests.faults.arena import Arena
from tests.faults.judge import judge
from tests.faults.scenario import Scenario, Verdict
from tests.support.database import fresh_database


@contextmanager
def server(home: Path) -> Iterator[str]:
    """URL of an embedded server, stopped at the end (whatever a scenario has done to it)."""
    try:
        yield embedded.ensure(home)
    finally:
        embedded.down(home)
        shutil.rmtree(home, ignore_errors=True)


def run(scenario: Scenario, url: str, folder: Path, seed: int, jobs: int, home: Path | None = None) -> Verdict:
    """Run it on this server. home: of a server that it may harm. An error of the scenario itself is a broken promise too."""
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with fresh_database(url) as database:
        migrate.migrate(database, migrate.LINES)
        with Arena(scenario, database, folder, seed, jobs, home) as arena:
            try:
                scenario.run(arena)
            except Exception as error:
                traceback.print_exc()
                arena.check(False, f"the scenario could not go on: {type(error).__name__}: {error}")
            verdict = judge(arena)
    verdict.took = time.monotonic() - began
    return verdict
