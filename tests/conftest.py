"""Fixtures: a PostgreSQL of our own, a database for every test, an application on it."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest
from celery import Celery

from celery_jobqueue.db import embedded, migrate
from tests.support import workers
from tests.support.app import make_app
from tests.support.cutting import CuttingProxy
from tests.support.database import fresh_database, sibling
from tests.support.tls_server import programs as debian_postgresql

#: Marker → the program's file, None where it is missing.
_PROGRAMS = {"pgbouncer": shutil.which("pgbouncer"), "chromium": shutil.which("chromium"),
             "debian_postgresql": debian_postgresql()}


def pytest_configure(config: pytest.Config) -> None:
    # A shell starts background commands with SIGINT ignored, which every child would inherit, and Ctrl-C is under test.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the same under nohup, and closed terminals are under test
    for program in _PROGRAMS:
        config.addinivalue_line("markers", f"needs_{program}: skipped where the system program {program} is missing")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for program, found in _PROGRAMS.items():
            if item.get_closest_marker(f"needs_{program}") and found is None:
                item.add_marker(pytest.mark.skip(reason=f"needs the system program {program}"))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a running embedded PostgreSQL."""
    home = tmp_path_factory.mktemp("server")
    url = embedded.ensure(home)
    with psycopg.connect(url, autocommit=True) as conn:
        # Nobody pulls the plug of this machine, and a commit that waits ten seconds for a busy disk fails tests of other things.
        conn.execute("alter system set fsync = off")
        conn.execute("select pg_reload_conf()")
    yield url
    embedded.down(home)


@pytest.fixture(scope="session")
def template(server: str) -> str:
    """Name of a database with every migration applied."""
    with psycopg.connect(server, autocommit=True) as conn:
        conn.execute("create database template_jobqueue")
    migrate.migrate(sibling(server, "template_jobqueue"), migrate.LINES)
    return "template_jobqueue"


@pytest.fixture
def database_url(server: str, template: str) -> Iterator[str]:
    """URL of a migrated database of the test's own."""
    with fresh_database(server, template) as url:
        yield url


@pytest.fixture
def empty_database_url(server: str) -> Iterator[str]:
    """URL of an empty database of the test's own."""
    with fresh_database(server) as url:
        yield url


@pytest.fixture
def make_client(database_url: str) -> Iterator[Callable[..., Celery]]:
    """Makes applications that publish to the test's database."""
    made: list[Celery] = []

    def make(**settings: Any) -> Celery:
        made.append(make_app(database_url, **settings))
        return made[-1]

    yield make
    for application in made:
        if consumer := getattr(application.backend, "result_consumer", None):
            consumer.stop()
        application.close()


@pytest.fixture
def app(make_client: Callable[..., Celery]) -> Celery:
    """An application that publishes to the test's database."""
    return make_client()


@pytest.fixture
def proxy(database_url: str) -> Iterator[CuttingProxy]:
    """What connections to the test's database may pass through, and be cut in."""
    with CuttingProxy(database_url) as running:
        yield running


@pytest.fixture
def client(proxy: CuttingProxy, make_client: Callable[..., Celery]) -> Celery:
    """An application whose connections pass through the proxy."""
    return make_client(broker_url=proxy.url, result_backend=None)


@pytest.fixture
def start_worker(database_url: str, tmp_path: Path) -> Iterator[Callable[..., workers.Worker]]:
    """Starts real workers on the test's database; they are gone at the end."""
    with ExitStack() as stack:
        yield lambda *options, **env: stack.enter_context(
            workers.worker(database_url, tmp_path, env.pop("app", "tests.support.app"), *options, **env))
