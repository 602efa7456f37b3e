"""sslmode=verify-full from end to end: a worker that trusts the right authority works, everybody else sends nothing."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from kombu.exceptions import OperationalError

from celery_jobqueue.db import migrate
from tests.support import workers
from tests.support.app import make_app
from tests.support.database import one
from tests.support.tls_server import PASSWORD, Authority, tls_server
from tests.support.waiting import wait_until

pytestmark = pytest.mark.needs_debian_postgresql


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Open to the user that PostgreSQL runs as; pytest's own folders are not."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(scope="module")
def authorities(folder: Path) -> tuple[Authority, Authority]:
    """The one that is trusted, and another of the same name."""
    return Authority(folder, "trusted"), Authority(folder, "other")


@pytest.fixture(scope="module")
def url(folder: Path, authorities: tuple[Authority, Authority]) -> Iterator[str]:
    """A server whose certificate is for `localhost`."""
    with tls_server(folder, authorities[0], "localhost") as url:
        yield url


def verified(url: str, authority: Authority) -> str:
    return f"{url}&sslmode=verify-full&sslrootcert={authority.pem}"


def test_a_worker_runs_jobs_over_tls(url: str, authorities: tuple[Authority, Authority], tmp_path: Path) -> None:
    trusted = verified(url, authorities[0])
    migrate.migrate(trusted, ("queue",))
    app = make_app(trusted)
    with closing(app), workers.worker(trusted, tmp_path, TEST_RETRIES="1") as worker:
        assert app.tasks["t.add"].delay(2, 3).get(timeout=20) == 5
        assert app.tasks["t.flaky"].delay(str(tmp_path / "runs"), 1).get(timeout=20) == "at last"
        assert app.control.inspect(timeout=10, limit=1).ping() == {worker.name: {"ok": "pong"}}
        encrypted = """select array_agg(distinct s.version) from pg_stat_ssl s join pg_stat_activity a using (pid)
                        where a.backend_type = 'client backend'"""
        assert one(trusted, encrypted) in (["TLSv1.3"], ["TLSv1.2"])  # the worker's, its children's, the client's
        assert one(trusted, "select count(*) from pg_stat_activity where backend_type = 'client backend'") >= 3
        # The server restarts its sessions: coming back is verified too.
        one(trusted, "select count(pg_terminate_backend(pid)) from pg_stat_activity where pid <> pg_backend_pid()"
                     " and backend_type = 'client backend'")
        assert app.tasks["t.add"].delay(3, 4).get(timeout=30) == 7
        app.backend.result_consumer.stop()
        assert worker.stop() == 0
        assert PASSWORD not in worker.text


def refused(url: str, match: str) -> None:
    app = make_app(url)
    with closing(app), pytest.raises(OperationalError, match=match):
        app.tasks["t.add"].apply_async((1, 2), retry=False)


def test_a_wrong_authority_a_wrong_name_and_no_tls_are_refused(url: str, authorities: tuple[Authority, Authority],
                                                               tmp_path: Path) -> None:
    trusted, other = authorities
    migrate.migrate(verified(url, trusted), ("queue",))
    jobs = one(verified(url, trusted), "select count(*) from job_queue")
    refused(verified(url, other), "certificate verify failed")
    refused(verified(url.replace("@localhost:", "@database.example:"), trusted), 'does not match host name "database.example"')
    refused(url + "&sslmode=disable", "no pg_hba.conf entry .* no encryption")
    with pytest.raises(psycopg.OperationalError, match="certificate verify failed"):
        migrate.migrate(verified(url, other), ("queue",))
    assert one(verified(url, trusted), "select count(*) from job_queue") == jobs

    # A worker says why, goes on trying, and says no password.
    with workers.worker(verified(url, other), tmp_path, ready=False) as worker:
        wait_until(lambda: "certificate verify failed" in worker.text, "the worker says why")
        assert worker.process.poll() is None
        assert PASSWORD not in worker.text
        assert " ready." not in worker.text
