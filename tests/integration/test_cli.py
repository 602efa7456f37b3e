"""The command `jobqueue`, as a person types it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from celery_jobqueue.db import embedded, migrate, needed
from celery_jobqueue.db.errors import ConfigurationError
from celery_jobqueue.db.url import libpq_dsn, masked
from tests.support.database import one, rows
from tests.support.workers import ROOT

SCRIPT = [str(Path(sys.executable).with_name("jobqueue"))]
MODULE = [sys.executable, "-m", "celery_jobqueue.db"]


class Answer:
    """What a command said and how it ended. Never a traceback."""

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        self.code, self.out, self.err = done.returncode, done.stdout, done.stderr
        assert "Traceback" not in self.err, self.err

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


def jobqueue(*arguments: str, url: str | None = None, command: list[str] = SCRIPT, **environment: str) -> Answer:
    inherited = {key: value for key, value in os.environ.items() if key not in ("DATABASE_URL", "JOBQUEUE_HOME")}
    if url is not None:
        environment["DATABASE_URL"] = url
    # Where no home is given nothing may be started: such a folder cannot be made.
    environment = {"JOBQUEUE_HOME": "/dev/null/jobqueue", **environment}
    return Answer(subprocess.run([*command, *arguments], cwd=ROOT, env={**inherited, **environment}, text=True,
                                 stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False))


def without_spaces(lines: list[str]) -> list[str]:
    return [re.sub(r" +", " ", line) for line in lines]


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A folder for an embedded server, which is stopped at the end."""
    yield tmp_path
    embedded.down(tmp_path)


@pytest.mark.parametrize("command", [SCRIPT, MODULE], ids=["jobqueue", "python -m celery_jobqueue.db"])
def test_migrate_and_status(command: list[str], empty_database_url: str) -> None:
    url, shown = empty_database_url, masked(empty_database_url)
    assert without_spaces(jobqueue("status", url=url, command=command).lines)[2:] == [
        "schema queue not installed", "schema certificates not installed (only the certificate application needs it)"]

    queue = [f"applied queue/{m.version:04d}_{m.name}" for m in migrate.migrations("queue")]
    assert jobqueue("migrate", url=url, command=command).lines == [*queue, f"{shown} is up to date"]
    assert jobqueue("migrate", url=url, command=command).lines == [f"{shown} is up to date"]
    certificates = [f"applied certificates/{m.version:04d}_{m.name}" for m in migrate.migrations("certificates")]
    assert jobqueue("migrate", "--certificates", url=url, command=command).lines == [*certificates, f"{shown} is up to date"]

    rows(url, "select enqueue_job('t.add') from generate_series(1, 3)")
    rows(url, "select get_next_job()")
    status = jobqueue("status", url=url, command=command)
    server = one(url, "select split_part(current_setting('server_version'), ' ', 1)")
    newest = {line: needed.newest(line) for line in migrate.LINES}
    assert without_spaces(status.lines) == [
        f"database {shown}", f"server PostgreSQL {server}", f"schema queue version {newest['queue']}",
        f"schema certificates version {newest['certificates']}", "jobs 2 pending, 1 processing, 0 completed, 0 failed"]


def test_the_option_outranks_the_environment(empty_database_url: str) -> None:
    assert jobqueue("migrate", "--url", empty_database_url, url="postgresql://u@127.0.0.1:1/db").code == 0
    assert one(empty_database_url, "select count(*) from job_queue") == 0
    assert jobqueue("status", "--url", empty_database_url).code == 0


def test_status_names_what_is_to_be_done(database_url: str) -> None:
    rows(database_url, "delete from jobqueue.migration where line = 'queue' and version = (select max(version)"
                       " from jobqueue.migration where line = 'queue')")
    newest = needed.newest("queue")
    behind = "schema queue not installed" if newest == 1 else f"version {newest - 1}, 1 to apply: run `jobqueue migrate`"
    assert behind in "\n".join(without_spaces(jobqueue("status", url=database_url).lines))
    rows(database_url, "insert into jobqueue.migration (line, version, name, sha256)"
                       " select 'queue', n, 'later', '' from generate_series(%s, 99) n", (newest,))
    assert f"version 99, newer than this code ({newest}): upgrade" in jobqueue("status", url=database_url).out
    refused = jobqueue("migrate", url=database_url)
    assert (refused.code, len(refused.err.splitlines())) == (1, 1)
    assert "newer than this code" in refused.err


def test_an_edited_migration_is_named(database_url: str) -> None:
    rows(database_url, "update jobqueue.migration set sha256 = 'other' where line = 'queue' and version = 1")
    refused = jobqueue("migrate", url=database_url)
    assert refused.code == 1
    assert refused.err.startswith("Error: db/schema/queue/0001_job_queue.sql was edited after it was applied")


def test_a_pooler_is_recognised(database_url: str) -> None:
    assert "through a pooler in transaction mode" in jobqueue("status", url=f"{database_url}?pooler=transaction").out


def test_what_the_migrations_say_is_passed_on(server: str, empty_database_url: str) -> None:
    """Here of an event trigger, so that the server's roles may stay as they are."""
    rows(empty_database_url, """
        create function hello() returns event_trigger language plpgsql as $$
        begin if tg_tag = 'CREATE TRIGGER' then raise notice 'hello from the server'; end if; end $$;
        create event trigger hello on ddl_command_end execute function hello()""")
    told = jobqueue("migrate", url=empty_database_url)
    assert (told.code, set(told.err.splitlines())) == (0, {"notice: hello from the server"})


def test_sql_is_the_schema(empty_database_url: str) -> None:
    both = jobqueue("sql", "--certificates").out
    assert both == "".join((ROOT / "db" / name).read_text() for name in ("create_job_queue_table.sql",
                                                                         "create_certificate_tables.sql"))
    assert jobqueue("sql").out == migrate.bundle("queue")
    with psycopg.connect(empty_database_url, autocommit=True) as conn:
        conn.execute(both)
    assert jobqueue("migrate", "--certificates", url=empty_database_url).lines == [f"{masked(empty_database_url)} is up to date"]


def test_the_embedded_servers_life(home: Path) -> None:
    at_home = {"JOBQUEUE_HOME": str(home)}
    asked = jobqueue("status", **at_home)
    assert (asked.code, asked.err.count("\n")) == (1, 1)
    assert "`jobqueue up` starts it" in asked.err
    assert not (home / "postgres").exists(), "asking starts nothing"
    assert jobqueue("down", **at_home).out == "PostgreSQL was not running\n"

    assert jobqueue("migrate", **at_home).lines[-1].endswith("is up to date")
    (url,) = jobqueue("up", "--show-url", command=MODULE, **at_home).lines
    assert one(url, "select count(*) from job_queue") == 0
    password = urlsplit(url).password
    assert password is not None
    for quiet in (jobqueue("up", **at_home), jobqueue("status", **at_home), jobqueue("migrate", **at_home)):
        assert quiet.code == 0
        assert masked(url) in quiet.out
        assert password not in quiet.out + quiet.err
    assert "0 pending" in jobqueue("status", **at_home).out

    assert jobqueue("down", **at_home).out == "PostgreSQL is stopped\n"
    assert jobqueue("down", **at_home).out == "PostgreSQL was not running\n"
    assert jobqueue("status", **at_home).code == 1


@pytest.mark.parametrize(("environment", "says"), [
    ({}, "/dev/null/jobqueue/postgres cannot be made (Not a directory): set JOBQUEUE_HOME"),
    ({"JOBQUEUE_HOME": "{tmp}", "JOBQUEUE_PG_BIN": "/nowhere"}, "JOBQUEUE_PG_BIN=/nowhere holds no `postgres` program"),
])
def test_an_embedded_server_that_cannot_be(environment: dict[str, str], says: str, tmp_path: Path) -> None:
    environment = {key: value.format(tmp=tmp_path) for key, value in environment.items()}
    for command in (["up"], ["migrate"]):
        refused = jobqueue(*command, **environment)
        assert (refused.code, len(refused.err.splitlines())) == (1, 1)
        assert says in refused.err


# `hush` and `s3cret` are the parts of passwords, some of them not escaped as a URL needs it.
UNUSABLE = [
    ("mysql://u:s3cret@h/db", "must begin with postgresql://"),
    ("host=h password=s3cret", "must begin with postgresql://"),
    ("postgresql://u:s3cret@127.0.0.1:1/db", "port 1 failed: Connection refused"),
    ("postgresql://u:s3cret@127.0.0.1:1,127.0.0.1:2/db", "port 2 failed: Connection refused"),
    ("postgresql://u:s3cret@no-such-host.invalid/db", "no-such-host.invalid"),
    ("postgresql://u:s3cret@h:port/db", "the port must be a number"),
    ("postgresql://u:s3cret@h:99999/db", "the port must be a number"),
    ("postgresql://u:s3cret@h/db?sslmod=require", 'invalid URI query parameter: "sslmod"'),
    ("postgresql://u:s3cret@127.0.0.1:1/db?sslmode=always", "invalid sslmode value"),
    ("postgresql://u:s3cret@h/db?pooler=maybe", "pooler=maybe in the database URL: use one of transaction, session"),
    ("postgresql://u@127.0.0.1:1/db?password=s3cret", "Connection refused"),
    ("postgresql://u:s3cret@hush@h/db", "write @ as %40"),
    ("postgresql://u:s3cret/hush@h/db", "/ as %2F"),
    ("postgresql://u:12/s3cret@h/db", "/ as %2F"),
    ("postgresql://u:s3cret?hush@h/db", "? as %3F"),
    ("postgresql://u:s3cret?hush=1@h/db", "? as %3F"),
    ("postgresql://u:s3cret%hush@h/db", "% as %25"),
]


@pytest.mark.parametrize(("url", "says"), UNUSABLE)
def test_urls_that_cannot_be_used_get_one_clear_line_without_the_password(url: str, says: str) -> None:
    for command in ("migrate", "status"):
        refused = jobqueue(command, url=url)
        assert (refused.code, refused.out, len(refused.err.splitlines())) == (1, "", 1), refused.out + refused.err
        assert says in refused.err
        assert "s3cret" not in refused.err
        assert "hush" not in refused.err
    assert not re.search("s3cret|hush", masked(url))


def test_what_a_real_server_refuses(server: str) -> None:
    parts = urlsplit(server)
    for url, says in ((server.replace(f":{parts.password}@", ":s3cret@"), "password authentication failed"),
                      (parts._replace(path="/nowhere").geturl(), 'database "nowhere" does not exist'),
                      (f"{server}?sslmode=require", "server does not support SSL")):
        refused = jobqueue("status", url=url)
        assert (refused.code, len(refused.err.splitlines())) == (1, 1), refused.err
        assert says in refused.err
        assert str(parts.password) not in refused.err
        assert "s3cret" not in refused.err


@pytest.mark.parametrize("url", [
    "postgresql://u:p%40%2F%3F%25x@h:5432/db?sslmode=require", "postgresql://u:p%40x@h1:5432,h2/db", "postgresql://%2Fsocket/db",
    "postgresql://h/db?user=a%40b&port=5433", "postgresql://[::1]:5432/db", "postgresql://u:pa#ss@h/db", "postgresql:///db",
])
def test_urls_that_are_right_stay_so(url: str) -> None:
    assert libpq_dsn(url) == url


def test_an_error_keeps_its_kind() -> None:
    with pytest.raises(ConfigurationError, match="the database URL"):
        libpq_dsn("postgresql://u:a@b@h/db")


def test_help_and_version() -> None:
    shown = jobqueue("--help")
    assert shown.code == 0
    for command in ("migrate", "status", "sql", "up", "down"):
        assert re.search(rf"^  {command} ", shown.out, re.MULTILINE)
    assert "bundle" not in shown.out
    assert re.search(r"\d+\.\d+", jobqueue("--version").out)
