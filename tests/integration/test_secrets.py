"""No password in what programs say, however much they say and whatever goes wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote, urlsplit

import psycopg
import pytest
from psycopg import sql

from tests.support.app import make_app
from tests.support.database import rows
from tests.support.waiting import wait_until
from tests.support.workers import ROOT, Worker, worker

SECRET = "s3cr/t?w%rd ü"
#: As it may appear: as it is, and as it stands in a URL.
FORMS = ("s3cr", quote(SECRET, safe=""))


@pytest.fixture
def login(server: str, database_url: str) -> Iterator[str]:
    """A login of its own, so that the password is one to be found."""
    name = "keeper_" + urlsplit(database_url).path[-12:]
    with psycopg.connect(server, autocommit=True) as conn:
        conn.execute(sql.SQL("create role {} login superuser password {}").format(sql.Identifier(name), sql.Literal(SECRET)))
    yield name
    with psycopg.connect(server, autocommit=True) as conn:
        conn.execute(sql.SQL("drop role {}").format(sql.Identifier(name)))


def urls(database_url: str, login: str) -> dict[str, str]:
    """The same place with the password where each may stand."""
    parts = urlsplit(database_url)
    place = f"{parts.hostname}:{parts.port}{parts.path}"
    return {"before the @": f"postgresql://{login}:{quote(SECRET, safe='')}@{place}",
            "a parameter": f"postgresql://{place}?user={login}&password={quote(SECRET, safe='')}"}


def silent(text: str) -> None:
    assert text
    assert [form for form in FORMS if form in text] == []


@pytest.mark.parametrize("where", ["before the @", "a parameter"])
def test_a_worker_that_tells_everything_tells_no_password(where: str, database_url: str, login: str, tmp_path: Path) -> None:
    url = urls(database_url, login)[where]
    app = make_app(url)
    with worker(url, tmp_path, "tests.support.app", "-l", "DEBUG", "-E", TEST_RETRIES="1") as running:
        assert app.tasks["t.add"].delay(1, 2).get(timeout=20) == 3
        rows(database_url, "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database()"
                           " and pid <> pg_backend_pid()")
        assert app.tasks["t.flaky"].delay(str(tmp_path / "runs"), 1).get(timeout=30) == "at last"
        rows(database_url, f"alter role {login} password 'another'")  # from now on it is refused
        rows(database_url, "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database()"
                           " and pid <> pg_backend_pid()")
        wait_until(lambda: "password authentication failed" in running.text, "the server refuses it")
        assert running.process.poll() is None
        silent(running.text)
    app.backend.result_consumer.stop()
    app.close()


def said(*command: str, **environment: str) -> str:
    done = subprocess.run([sys.executable, "-W", "ignore", "-m", *command], cwd=ROOT, capture_output=True, text=True, timeout=60,
                          env={**os.environ, **environment}, stdin=subprocess.DEVNULL)
    return done.stdout + done.stderr


@pytest.mark.parametrize("where", ["before the @", "a parameter"])
def test_commands_tell_no_password(where: str, database_url: str, login: str) -> None:
    good = urls(database_url, login)[where]
    nobody = good.replace(str(urlsplit(database_url).port), "1")  # where nobody listens
    wrong = good.replace(quote(SECRET, safe=""), quote(SECRET + "!", safe=""))
    celery: Callable[..., str] = lambda *words, url: said("celery", "-A", "tests.support.app", *words, DATABASE_URL=url)  # noqa: E731
    report = celery("report", url=good)
    assert "broker_url" in report
    silent(report)
    for url in (nobody, wrong):
        silent(celery("inspect", "ping", "--timeout", "1", url=url))
        silent(celery("jobs", "stats", url=url))
        silent(said("celery_jobqueue.db", "status", DATABASE_URL=url))
        silent(said("celery_jobqueue.db", "migrate", DATABASE_URL=url))
    silent(said("celery_jobqueue.db", "status", DATABASE_URL=f"postgresql://{login}:{SECRET}@h:99999/db"))


def test_a_failed_start_tells_no_password(database_url: str, login: str, tmp_path: Path) -> None:
    url = urls(database_url, login)["before the @"].replace(str(urlsplit(database_url).port), "1")
    with worker(url, tmp_path, "tests.support.app", "-l", "DEBUG", ready=False) as running:
        wait_until(lambda: "refused" in running.text, "it cannot connect")
        silent(running.text)


def test_what_a_program_raises_tells_no_password(database_url: str, login: str, start_worker: Callable[..., Worker]) -> None:
    for url in urls(database_url, login).values():
        app = make_app(url.replace(quote(SECRET, safe=""), quote(SECRET + "!", safe="")))
        with pytest.raises(Exception, match="authentication failed") as refused:
            app.tasks["t.add"].apply_async((1, 2), retry=False)
        silent(repr(refused.value) + str(refused.value))
        silent(repr(app.connection()) + str(app.connection().as_uri()) + str(app.backend.as_uri()) + repr(app.backend))
        app.close()
