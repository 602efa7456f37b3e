"""However the schema came into a database, on every supported PostgreSQL it is the same schema."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import psycopg
import pytest
from psycopg.pq import ExecStatus

from celery_jobqueue.db import migrate, needed
from celery_jobqueue.db.errors import SchemaError
from celery_jobqueue.db.url import libpq_dsn
from tests.support.database import fresh_database, one, rows, sibling
from tests.support.pgbouncer import left_behind, pgbouncer
from tests.support.postgres_versions import MAJORS, NEWEST, OLDEST, Servers, dump
from tests.support.workers import ROOT

# Tomorrow's migrations: with them today's schema is an older version, with jobs in it, that must be upgraded.
TOMORROW = {
    "queue": """
alter table public.job_queue add column colour text default 'red' not null;
update public.job_queue set colour = 'blue';
create function jobqueue.paint() returns text language sql set search_path = '' as $$ select 'it''s \\n 100 %' $$;
revoke all on function jobqueue.paint() from public;
""",
    "certificates": """
alter table public.events add column language text default 'en' not null;
create index events_language on public.events (language);
""",
}
ENQUEUE = "select public.enqueue_job('t.add', '[1, 2]', '{\"user_id\": \"ann\"}')"


@pytest.fixture(scope="session")
def today(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The schema folder as it was when the first test asked, though somebody may be working on it."""
    copy = tmp_path_factory.mktemp("today") / "schema"
    shutil.copytree(ROOT / "db" / "schema", copy, ignore=shutil.ignore_patterns("__*"))
    return copy


@pytest.fixture
def folder(today: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The code's schema folder: a copy with tomorrow's migrations, which the test may change."""
    copy = tmp_path / "schema"
    shutil.copytree(today, copy)
    monkeypatch.setattr(needed, "SCHEMA", copy)
    monkeypatch.setattr(migrate, "migrations", migrate.migrations.__wrapped__)
    for line, text in TOMORROW.items():
        (copy / line / f"{needed.newest(line) + 1:04d}_tomorrow.sql").write_text(text)
    return copy


def cut(folder: Path, versions: int) -> Callable[[], None]:
    """Make the code an older one that knows this many versions of the queue; returns what makes it new again."""
    hidden = [path for path in sorted((folder / "queue").iterdir()) if int(path.name[:4]) > versions]
    for path in hidden:
        path.rename(path.with_suffix(".later"))

    def restore() -> None:
        for path in hidden:
            path.with_suffix(".later").rename(path)

    return restore


def paste(url: str, text: str) -> None:
    """Run the text as an SQL editor does: one string, the simple query protocol, no parameters."""
    with psycopg.connect(url, autocommit=True) as conn:
        result = conn.pgconn.exec_(text.encode())
        assert result.status == ExecStatus.COMMAND_OK, result.error_message.decode()
        assert conn.info.transaction_status == psycopg.pq.TransactionStatus.IDLE


def ledger(url: str) -> list[tuple[object, ...]]:
    return [tuple(row.values()) for row in rows(
        url, "select line, version, name, sha256 from jobqueue.migration order by line, version")]


def together(*actions: Callable[[], object]) -> list[object]:
    """Run the actions at the same moment; their results. Raises what the first of them raised."""
    gate, results = threading.Barrier(len(actions)), [SimpleNamespace(value=None, error=None) for _ in actions]

    def run(action: Callable[[], object], result: SimpleNamespace) -> None:
        gate.wait(10)
        try:
            result.value = action()
        except Exception as error:
            result.error = error

    threads = [threading.Thread(target=run, args=pair) for pair in zip(actions, results, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for result in results:
        if result.error is not None:
            raise result.error
    return [result.value for result in results]


def by_runner(url: str, folder: Path) -> None:
    migrate.migrate(url, migrate.LINES)
    assert migrate.migrate(url, migrate.LINES) == []


def one_line_then_the_other(url: str, folder: Path) -> None:
    migrate.migrate(url)
    assert [status.missing for status in migrate.status(url)] == [0, needed.newest("certificates")]
    migrate.migrate(url, migrate.LINES)


def in_steps(url: str, folder: Path) -> None:
    for version in range(1, needed.newest("queue") + 1):
        restore = cut(folder, version)
        assert [applied.version for applied in migrate.migrate(url)] == [version]
        rows(url, ENQUEUE)
        restore()
    migrate.migrate(url, migrate.LINES)
    colours = [row["colour"] for row in rows(url, "select colour from job_queue order by created_at")]
    assert colours == ["blue"] * (needed.newest("queue") - 1) + ["red"]


def on_an_autocommit_connection(url: str, folder: Path) -> None:
    with psycopg.connect(url, autocommit=True) as conn:
        migrate.migrate(conn, migrate.LINES)


def inside_the_callers_transaction(url: str, folder: Path) -> None:
    with psycopg.connect(url) as conn:
        conn.execute("select 1")
        migrate.migrate(conn, migrate.LINES)


def pasted_twice(url: str, folder: Path) -> None:
    for line in (*migrate.LINES, *migrate.LINES):
        paste(url, migrate.bundle(line))


def pasted_in_the_wrong_order_first(url: str, folder: Path) -> None:
    with psycopg.connect(url, autocommit=True) as conn:
        refused = conn.pgconn.exec_(migrate.bundle("certificates").encode())
    assert "run create_job_queue_table.sql (jobqueue migrate) first" in refused.error_message.decode()
    assert one(url, "select to_regnamespace('jobqueue')") is None, "nothing of it stays"
    pasted_twice(url, folder)


def pasted_into_the_editors_transaction(url: str, folder: Path) -> None:
    for line in migrate.LINES:
        paste(url, f"begin;{migrate.bundle(line)}")


def pasted_over_an_older_paste(url: str, folder: Path) -> None:
    restore = cut(folder, 1)
    paste(url, migrate.bundle("queue"))
    restore()
    rows(url, ENQUEUE)
    pasted_twice(url, folder)
    assert rows(url, "select user_id, colour from job_queue") == [{"user_id": "ann", "colour": "blue"}]


def pasted_over_the_runners(url: str, folder: Path) -> None:
    restore = cut(folder, needed.newest("queue") - 1)
    migrate.migrate(url, migrate.LINES)
    rows(url, ENQUEUE)
    restore()
    pasted_twice(url, folder)
    assert rows(url, "select user_id, colour from job_queue") == [{"user_id": "ann", "colour": "blue"}]


def run_over_a_paste(url: str, folder: Path) -> None:
    restore = cut(folder, 1)
    paste(url, migrate.bundle("queue"))
    restore()
    migrate.migrate(url, migrate.LINES)


def several_at_once(url: str, folder: Path) -> None:
    runners = [partial(migrate.migrate, url, migrate.LINES) for _ in range(3)]
    pastes = [partial(paste, url, "".join(map(migrate.bundle, migrate.LINES))) for _ in range(2)]
    together(*runners, *pastes)


WAYS = [one_line_then_the_other, in_steps, on_an_autocommit_connection, inside_the_callers_transaction, pasted_twice,
        pasted_in_the_wrong_order_first, pasted_into_the_editors_transaction, pasted_over_an_older_paste, pasted_over_the_runners,
        run_over_a_paste, several_at_once]


@pytest.fixture(scope="session")
def references() -> dict[int, tuple[str, list[tuple[object, ...]]]]:
    return {}


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("major", MAJORS)
def test_every_way_leads_to_the_same_schema(major: int, way: Callable[[str, Path], None], servers: Servers, folder: Path,
                                            references: dict[int, tuple[str, list[tuple[object, ...]]]]) -> None:
    server = servers.url(major)
    if major not in references:
        with fresh_database(server) as url:
            by_runner(url, folder)
            references[major] = dump(url, major), ledger(url)
    with fresh_database(server) as url:
        way(url, folder)
        assert ledger(url) == references[major][1]
        assert dump(url, major) == references[major][0]


def test_a_dump_sees_a_difference(servers: Servers, folder: Path) -> None:
    with fresh_database(servers.url(NEWEST)) as url:
        by_runner(url, folder)
        before = dump(url, NEWEST)
        assert "job_queue_claim" in before
        for change in ("grant select on job_queue to public", "drop policy own_jobs on job_queue",
                       "alter function jobqueue.paint() cost 7", "alter table events alter language drop default"):
            rows(url, change)
            assert dump(url, NEWEST) != before, change
            before = dump(url, NEWEST)


@pytest.mark.needs_pgbouncer
def test_through_a_pooler_in_transaction_mode(servers: Servers, folder: Path) -> None:
    server = servers.url(NEWEST)
    with fresh_database(server) as url, fresh_database(server) as direct, pgbouncer(server) as pooler:
        pooled = f"{pooler.url(url)}?pooler=transaction"
        with psycopg.connect(libpq_dsn(pooled)) as other:  # somebody else's transaction holds another server connection
            other.execute("select 1")
            restore = cut(folder, 1)
            migrate.migrate(pooled, migrate.LINES)
            restore()
            assert [status.missing for status in migrate.status(pooled)] == [needed.newest("queue") - 1, 0]
            paste(libpq_dsn(pooled), migrate.bundle("queue"))
        assert not any(left_behind(pooler.url(url)).values())
        by_runner(direct, folder)
        assert (dump(url, NEWEST), ledger(url)) == (dump(direct, NEWEST), ledger(direct))


@pytest.mark.parametrize(("line", "file"), [
    ("queue", "create_job_queue_table.sql"), ("certificates", "create_certificate_tables.sql")])
def test_the_committed_text_is_what_the_migrations_generate(line: str, file: str) -> None:
    assert (ROOT / "db" / file).read_text(encoding="utf-8") == migrate.bundle(line), "run `make bundle`"


def test_an_edited_file_is_refused_by_name(empty_database_url: str, folder: Path) -> None:
    migrate.migrate(empty_database_url, migrate.LINES)
    file = folder / "certificates" / "0001_certificates.sql"
    file.write_text(file.read_text() + "-- one more thought\n")
    with pytest.raises(SchemaError, match=r"certificates/0001_certificates\.sql was edited.*new migration"):
        migrate.migrate(empty_database_url, migrate.LINES)
    assert migrate.migrate(empty_database_url, ("queue",)) == []


def test_windows_line_ends_are_no_edit(empty_database_url: str, folder: Path) -> None:
    migrate.migrate(empty_database_url, migrate.LINES)
    texts = [migrate.bundle(line) for line in migrate.LINES]
    for file in folder.glob("*/*.sql"):
        file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    assert migrate.migrate(empty_database_url, migrate.LINES) == []
    assert [migrate.bundle(line) for line in migrate.LINES] == texts
    unix, windows = (migrate.checked("queue", [("0001_a.sql", f"select 1;{end}select 2;{end}")])[0] for end in ("\n", "\r\n"))
    assert unix == windows


def test_a_database_newer_than_the_code_is_refused(empty_database_url: str, folder: Path) -> None:
    migrate.migrate(empty_database_url)
    before = ledger(empty_database_url)
    known = needed.newest("queue") - 1
    cut(folder, known)
    with pytest.raises(SchemaError, match=rf"version {known + 1}, newer than this code \({known}\): upgrade celery-jobqueue"):
        migrate.migrate(empty_database_url)
    assert migrate.status(empty_database_url)[0].missing == -1
    assert ledger(empty_database_url) == before


def test_a_server_older_than_ours_is_refused(empty_database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(needed, "OLDEST_SERVER", 99)
    with pytest.raises(SchemaError, match="is too old: this needs 99"):
        migrate.migrate(empty_database_url)
    assert one(empty_database_url, "select to_regnamespace('jobqueue')") is None
    monkeypatch.undo()
    assert needed.OLDEST_SERVER == OLDEST


@pytest.mark.parametrize(("files", "named"), [
    ([("0001_a.sql", "select 1;"), ("0003_b.sql", "select 1;")], "0003_b.sql: expected number 0002"),
    ([("0001_a.sql", "select 1;"), ("0001_b.sql", "select 1;")], "0001_b.sql: expected number 0002"),
    ([("0001_a.sql", "select 1;\n  COMMIT ;")], "0001_a.sql: no transaction"),
    ([("0001_a.sql", "create index concurrently i on t (c);")], "0001_a.sql: no transaction"),
    ([("0001_a.sql", "select $mig$x$mig$;")], "0001_a.sql: no transaction"),
])
def test_what_a_migration_must_not_hold(files: Sequence[tuple[str, str]], named: str) -> None:
    with pytest.raises(SchemaError, match=named):
        migrate.checked("queue", files)


@pytest.mark.parametrize("pasted", [False, True])
def test_a_migration_that_fails_leaves_nothing(pasted: bool, empty_database_url: str, folder: Path) -> None:
    (folder / "queue" / f"{needed.newest('queue') + 1:04d}_wrong.sql").write_text("select 1; select no_such_column;")
    with pytest.raises((psycopg.errors.UndefinedColumn, AssertionError), match="no_such_column"):
        paste(empty_database_url, migrate.bundle("queue")) if pasted else migrate.migrate(empty_database_url)
    assert one(empty_database_url, "select to_regnamespace('jobqueue')") is None
    assert one(empty_database_url, "select to_regclass('public.job_queue')") is None


@pytest.mark.parametrize("pasted", [False, True])
def test_somebody_elses_job_queue_is_left_alone(pasted: bool, empty_database_url: str) -> None:
    rows(empty_database_url, "create table public.job_queue (mine text)")
    with pytest.raises((psycopg.errors.DuplicateTable, AssertionError), match="already exists"):
        paste(empty_database_url, migrate.bundle("queue")) if pasted else migrate.migrate(empty_database_url)
    assert one(empty_database_url, "select to_regnamespace('jobqueue')") is None
    assert rows(empty_database_url, "select mine from public.job_queue") == []


@pytest.mark.parametrize("major", [OLDEST, NEWEST])
def test_roles_belong_to_the_whole_server(major: int, tmp_path: Path) -> None:
    """A server of its own, because what roles there are is the point."""
    servers = Servers(tmp_path)
    try:
        server = servers.url(major)
        rows(server, "create role tenant login password 'tenant'")
        names = "select rolname from pg_roles where rolname like 'jobqueue_%' order by 1"
        for database in ("run", "pasted", "first", "second"):
            rows(server, f"create database {database}" + (" owner tenant" if database in ("run", "pasted") else ""))
        owned = sibling(server.replace(server.partition("://")[2].partition("@")[0], "tenant:tenant"), "run")

        # Without the right to create roles: a notice, and the owner does all the work.
        said: list[str] = []
        migrate.migrate(owned, migrate.LINES, notice=said.append)
        assert said == [f"role jobqueue_{name} was not created: no privilege to create roles"
                        for name in ("publisher", "worker", "monitor")]
        paste(sibling(owned, "pasted"), migrate.bundle("queue"))
        assert rows(server, names) == []
        for url in (owned, sibling(owned, "pasted")):
            rows(url, ENQUEUE)
            job = rows(url, "select id, lease_token from public.get_next_job()")[0]
            assert one(url, "select public.complete_job(%(id)s, %(lease_token)s)", job) is True
        assert migrate.migrate(owned, migrate.LINES, notice=said.append) == []
        assert len(said) == 3

        # With it: several databases of one server at the same moment, whose locks do not know each other.
        together(*(partial(migrate.migrate, sibling(server, database)) for database in ("first", "second")))
        assert [row["rolname"] for row in rows(server, names)] == ["jobqueue_monitor", "jobqueue_publisher", "jobqueue_worker"]
        assert dump(sibling(server, "first"), major) == dump(sibling(server, "second"), major)
        assert "jobqueue_worker" in dump(sibling(server, "first"), major)
    finally:
        servers.stop()
