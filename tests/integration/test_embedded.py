"""The embedded server: shared by all who ask, outliving them, private, and recovering from whatever was killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from celery_jobqueue.db import embedded, migrate
from celery_jobqueue.db.errors import ConfigurationError
from tests.support.database import one, rows
from tests.support.embedded import ENSURE, answer, kill_server, log, pid_of, place, python, running_in
from tests.support.postgres_versions import binaries
from tests.support.waiting import wait_until


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """Where a server may be; whatever runs there is stopped."""
    yield tmp_path / "home"
    with suppress(OSError):
        embedded.down(tmp_path / "home")


@pytest.fixture
def url(home: Path) -> str:
    """A running server."""
    return embedded.ensure(home)


def test_all_who_start_it_at_once_get_the_same_server(home: Path) -> None:
    urls = {answer(process) for process in [python(ENSURE, home) for _ in range(5)]}
    assert len(urls) == 1
    assert embedded.ensure(home) == urls.pop()
    assert log(home).count("starting PostgreSQL") == 1


@pytest.mark.parametrize("end", ["it exits", "it is killed", "Ctrl-C in its terminal", "its terminal is closed"])
def test_it_survives_its_starter(end: str, home: Path) -> None:
    wait = "" if end == "it exits" else "; import signal; signal.pause()"
    starter = python(ENSURE + wait, home)
    assert starter.stdout is not None
    url = starter.stdout.readline().strip()
    with psycopg.connect(url, autocommit=True) as conn:
        if end != "it exits":
            number = {"it is killed": signal.SIGKILL, "Ctrl-C in its terminal": signal.SIGINT}.get(end, signal.SIGHUP)
            os.killpg(starter.pid, number)
        starter.communicate(timeout=20)
        server = pid_of(home)
        assert os.getsid(server) != starter.pid
        # A signal that had reached it would by now have ended this session, and stopped it from taking another.
        assert conn.execute("select pg_sleep(0.2)").fetchone() is not None
    assert answer(python(ENSURE, home)) == url
    assert pid_of(home) == server
    assert "shutdown request" not in log(home)


@pytest.mark.parametrize("by", ["its starter", "another process"])
def test_after_kill_9_the_next_one_recovers_it_with_its_data(by: str, home: Path) -> None:
    url = embedded.ensure(home) if by == "its starter" else answer(python(ENSURE, home))
    rows(url, "create table kept as select 42 as answer")
    for _ in range(2):
        os.kill(pid_of(home), signal.SIGKILL)
        assert (embedded.ensure(home) if by == "its starter" else answer(python(ENSURE, home))) == url
        assert one(url, "select answer from kept") == 42
    assert "was not properly shut down" in log(home)


def test_a_backend_that_outlives_the_server_for_a_moment_is_waited_for(home: Path, url: str) -> None:
    busy, got = psycopg.connect(url), list[str]()
    busy.pgconn.send_query(b"do $$ begin while (pg_stat_file('go', true)).size is null and clock_timestamp()"
                           b" < now() + interval '30 seconds' loop null; end loop; end $$")
    working = "select count(*) from pg_stat_activity where state = 'active' and query like 'do %'"
    wait_until(lambda: one(url, working), "it is busy")
    kill_server(home)
    waiting = threading.Thread(target=lambda: got.append(embedded.ensure(home)))
    waiting.start()
    try:
        wait_until(lambda: "still in use" in log(home), "the server would not start yet")
    finally:
        (place(home) / "data" / "go").touch()
        busy.close()
        waiting.join(30)
    assert got == [url]


def test_a_pid_that_belongs_to_a_stranger_now(home: Path, url: str) -> None:
    """After a crash the number in the lock file may be anybody's, in a new container it often is."""
    kill_server(home)
    lock = place(home) / "data" / "postmaster.pid"
    with subprocess.Popen(["sleep", "600"]) as stranger:
        try:
            lock.write_text(lock.read_text().replace(lock.read_text().splitlines()[0], str(stranger.pid), 1))
            assert embedded.down(home) is False
            assert stranger.poll() is None
            assert embedded.ensure(home) == url
            assert stranger.poll() is None
        finally:
            stranger.kill()


def test_initdb_may_be_killed(home: Path, tmp_path: Path) -> None:
    """An initdb that stops in the middle, so that the moment does not depend on the machine."""
    programs, stopped = tmp_path / "bin", tmp_path / "stopped"
    programs.mkdir()
    real = embedded._binaries()
    (programs / "postgres").symlink_to(real / "postgres")
    (programs / "initdb").write_text(f"""#!/bin/sh
exec 3<&0
"{real}/initdb" "$@" <&3 &
until [ -e "{place(home)}/data.new/PG_VERSION" ]; do kill -0 $! || exit 1; done
kill -STOP $!
touch "{stopped}"
exec sleep 600
""")
    (programs / "initdb").chmod(0o755)
    starter = python(ENSURE, home, {"JOBQUEUE_PG_BIN": str(programs)})
    try:
        wait_until(lambda: stopped.exists() or starter.poll() is not None, "initdb is at work")
    finally:
        os.killpg(starter.pid, signal.SIGKILL)
        said = starter.communicate(timeout=10)
    assert stopped.exists(), said
    assert not (place(home) / "data").exists()
    assert one(embedded.ensure(home), "select 1") == 1
    assert not (place(home) / "data.new").exists()


def test_a_starter_killed_before_it_made_the_database(home: Path, url: str) -> None:
    server = pid_of(home)
    postgres = urlsplit(url)._replace(path="/postgres").geturl()
    rows(postgres, "drop database jobqueue with (force)")
    assert embedded.ensure(home) == url
    assert (one(url, "select current_database()"), pid_of(home)) == ("jobqueue", server)


def test_a_server_without_a_free_connection_is_waited_for(home: Path, url: str) -> None:
    server, refused = pid_of(home), "too many clients"
    crowd = []
    with suppress(psycopg.OperationalError):
        while True:
            crowd.append(psycopg.connect(url))
    seen = log(home).count(refused)
    got: list[str] = []
    waiting = threading.Thread(target=lambda: got.append(embedded.ensure(home)))
    waiting.start()
    wait_until(lambda: log(home).count(refused) > seen + 3, "it was refused several times")
    assert waiting.is_alive()
    for conn in crowd:
        conn.close()
    waiting.join(20)
    assert (got, pid_of(home)) == ([url], server)


def test_down_stops_it_and_keeps_data_and_address(home: Path, url: str) -> None:
    rows(url, "create table kept as select 42 as answer")
    assert pid_of(home) in running_in(home)
    assert embedded.down(home) is True
    assert embedded.down(home) is False
    assert running_in(home) == [], "it runs on"
    with pytest.raises(psycopg.OperationalError, match="refused"):
        psycopg.connect(url)
    assert (embedded.status(home).running, embedded.status(home).url) == (False, None)
    assert embedded.ensure(home) == url
    assert one(url, "select answer from kept") == 42
    assert "was not properly shut down" not in log(home)


def test_an_applications_own_tables_do_not_meet_the_queues(home: Path, url: str) -> None:
    migrate.migrate(url)
    rows(url, "create table message (mine text)")
    assert one(url, "select count(*) from public.message") == 0
    assert one(url, "select to_regclass('worker')") is None


def test_down_where_nothing_ever_was(home: Path) -> None:
    assert embedded.down(home) is False
    assert not home.exists()


def test_another_port_when_somebody_has_taken_it(home: Path, url: str) -> None:
    embedded.down(home)
    port = urlsplit(url).port
    with socket.socket() as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        thief.bind(("127.0.0.1", port))
        thief.listen()
        moved = embedded.ensure(home)
    assert urlsplit(moved).port != port
    assert embedded.ensure(home) == moved


def test_data_of_another_major_version(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOBQUEUE_PG_BIN", str(binaries(16)))
    url = embedded.ensure(home)
    rows(url, "create table kept as select 42 as answer")
    embedded.down(home)
    monkeypatch.setenv("JOBQUEUE_PG_BIN", str(binaries(17)))
    with pytest.raises(ConfigurationError, match=r"belongs to PostgreSQL 16, .* 17: use PostgreSQL 16 \(JOBQUEUE_PG_BIN\)"):
        embedded.ensure(home)
    monkeypatch.setenv("JOBQUEUE_PG_BIN", str(binaries(16)))
    assert one(embedded.ensure(home), "select answer from kept") == 42


def test_programs_that_are_not_there(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOBQUEUE_PG_BIN", str(home / "nowhere"))
    with pytest.raises(ConfigurationError, match=r"JOBQUEUE_PG_BIN=.*nowhere holds no `postgres`"):
        embedded.ensure(home)


def test_only_with_the_password_and_only_from_this_machine(home: Path, url: str) -> None:
    password, port = urlsplit(url).password, urlsplit(url).port
    assert password is not None
    assert len(password) >= 20
    for wrong in (url.replace(password, "wrong"), url.replace(f":{password}", "")):
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(wrong)
    methods = {row["auth_method"] for row in rows(url, "select auth_method from pg_hba_file_rules")}
    assert methods == {"scram-sha-256"}
    assert one(url, "select rolpassword from pg_authid where rolname = 'jobqueue'").startswith("SCRAM-SHA-256$")
    assert one(url, "select current_setting('unix_socket_directories')") == ""
    # Field 2 is the address (network order), field 4 the state (0A: listening).
    sockets = [line.split() for family in ("tcp", "tcp6") for line in Path(f"/proc/net/{family}").read_text().splitlines()]
    listening = [fields[1] for fields in sockets if fields[3] == "0A" and fields[1].endswith(f":{port:04X}")]
    assert listening == [f"0100007F:{port:04X}"]


def test_its_files_are_private_and_the_password_is_nowhere_else(home: Path, url: str) -> None:
    password, server = urlsplit(url).password, pid_of(home)
    assert password is not None
    assert [oct((place(home) / name).stat().st_mode & 0o777) for name in (".", "data", "password")] == ["0o700", "0o700", "0o600"]
    for process in (server, *map(int, Path(f"/proc/{server}/task/{server}/children").read_text().split())):
        for file in ("cmdline", "environ"):
            with suppress(FileNotFoundError, ProcessLookupError):  # a backend that has ended meanwhile
                assert password.encode() not in Path(f"/proc/{process}/{file}").read_bytes()
    holders = [path.name for path in place(home).rglob("*") if path.is_file() and password.encode() in path.read_bytes()]
    assert holders == ["password"]


def state_of_the_machine(*folders: Path) -> dict[str, object]:
    watched = {parent for folder in folders for parent in (folder, *folder.parents)}
    modes = {str(path): (path.stat().st_mode, path.stat().st_uid, path.stat().st_gid) for path in watched}
    accounts = {name: Path("/etc", name).read_text() for name in ("passwd", "group")}
    return {**modes, **accounts, "/var/lib": sorted(Path("/var/lib").iterdir())}


def test_nothing_of_the_machine_is_changed(tmp_path: Path) -> None:
    """Also where no other user can look: a private folder stays private."""
    home = tmp_path / "closed" / "home"
    home.mkdir(parents=True)
    home.parent.chmod(0o700)
    programs = embedded._binaries()
    before = state_of_the_machine(home, programs, Path(sys.executable))
    try:
        answer(python(ENSURE, home))
        assert state_of_the_machine(home, programs, Path(sys.executable)) == before
    finally:
        embedded.down(home)
    assert state_of_the_machine(home, programs, Path(sys.executable)) == before
