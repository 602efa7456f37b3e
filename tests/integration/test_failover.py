"""A standby takes over: workers and publishers with both hosts in their URL find whichever takes writes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from kombu.exceptions import OperationalError

from celery_jobqueue.broker.session import Session
from celery_jobqueue.db import migrate
from celery_jobqueue.db.url import libpq_dsn
from tests.support.app import make_app
from tests.support.database import one
from tests.support.standby import Pair, replicated
from tests.support.waiting import wait_until
from tests.support.workers import worker


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    """A primary and a standby, with the schema."""
    with replicated(tmp_path / "servers") as servers:
        migrate.migrate(servers.primary, migrate.LINES)
        yield servers


def test_who_takes_writes_is_found_whoever_it_is(pair: Pair, tmp_path: Path) -> None:
    """The primary becomes read-only under its clients, which stay connected; later the standby is promoted."""
    url = pair.url(pair.primary)
    with closing(make_app(url)) as app, worker(url, tmp_path, "tests.support.app", "-c", "1") as running:
        assert app.tasks["t.add"].delay(1, 1).get(timeout=20) == 2
        mark = tmp_path / "mark"
        held = app.tasks["t.wait"].delay(str(mark))
        wait_until(mark.exists, "a job runs")
        with closing(Session(libpq_dsn(f"{url}?target_session_attrs=standby"))) as session:
            session.connect()
            assert session.read_only, "the parameter has the last word"

        pair.demote()
        wait_until(lambda: "takes no writes" in running.text and "no connection yet" in running.text, "the worker has noticed")
        with pytest.raises(OperationalError, match="read-only"):
            app.tasks["t.add"].delay(0, 0)
        Path(f"{mark}.go").touch()  # it ends while nobody can be told
        assert running.text.count("Connected to") == 1

        pair.promote()
        assert app.tasks["t.add"].delay(2, 2).get(timeout=60) == 4
        assert held.get(timeout=60) == "went"
        unfinished = "select count(*) from job_queue where status <> 'completed'"
        wait_until(lambda: one(pair.standby, unfinished) == 0, "all are completed")
        assert one(pair.standby, "select count(*) || ' ' || max(attempts) from job_queue") == "3 1"
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            one(pair.primary, "delete from job_queue returning 1")
        assert running.process.poll() is None
        app.backend.result_consumer.stop()
