"""A real PgBouncer, for as long as a test needs it."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg

from tests.support.database import rows
from tests.support.waiting import wait_until

POOL_SIZE = 3


class PgBouncer:
    """A running pooler in front of one server; it may be stopped and started again on its port."""

    def __init__(self, server: str, folder: Path, mode: str) -> None:
        self._server = urlsplit(server)
        self._mode = mode
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self._configure()

    def _configure(self) -> None:
        version = re.search(r"PgBouncer (\d+)\.(\d+)", subprocess.run(
            ["pgbouncer", "--version"], capture_output=True, text=True, check=True).stdout)
        assert version is not None
        # Since 1.21 it can carry prepared statements; we want to see that none are used.
        prepared = "max_prepared_statements = 0\n" if (int(version[1]), int(version[2])) >= (1, 21) else ""
        (self._folder / "users.txt").write_text(f'"{self._server.username}" "{self._server.password}"\n')
        (self._folder / "pgbouncer.ini").write_text(f"""\
[databases]
* = host={self._server.hostname} port={self._server.port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {self.port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {self._folder}/users.txt
admin_users = {self._server.username}
pool_mode = {self._mode}
default_pool_size = {POOL_SIZE if self._mode == "transaction" else 50}
max_client_conn = 100
{prepared}""")

    def start(self) -> None:
        """Return when it answers."""
        # It refuses to run as root.
        account: dict[str, Any] = {}
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            account = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            for path in (self._folder, *self._folder.iterdir()):
                os.chown(path, nobody.pw_uid, nobody.pw_gid)
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(["pgbouncer", str(self._folder / "pgbouncer.ini")], cwd="/", stdout=log, stderr=log,
                                             stdin=subprocess.DEVNULL, start_new_session=True, **account)
        wait_until(self._answers, f"PgBouncer answers:\n{self.log}", 10)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log
        try:
            self.show("version")
        except psycopg.OperationalError:
            return False
        return True

    def stop(self) -> None:
        """End it at once, as a crash does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    @property
    def log(self) -> str:
        """What it has logged so far."""
        return (self._folder / "log").read_text()

    def url(self, database_url: str) -> str:
        """The same database, through the pooler."""
        parts = urlsplit(database_url)
        return urlunsplit(parts._replace(netloc=f"{parts.username}:{parts.password}@127.0.0.1:{self.port}"))

    def show(self, what: str) -> list[dict[str, Any]]:
        """SHOW … of its console."""
        return rows(self.url(urlunsplit(self._server._replace(path="/pgbouncer"))), f"show {what}")


@contextmanager
def pgbouncer(server: str, mode: str = "transaction") -> Iterator[PgBouncer]:
    """A pooler; in transaction mode with POOL_SIZE server connections per database."""
    folder = Path(tempfile.mkdtemp(prefix="pgbouncer-"))
    running = PgBouncer(server, folder, mode)
    try:
        running.start()
        yield running
    finally:
        running.stop()
        shutil.rmtree(folder)


def left_behind(url: str) -> dict[int, dict[str, Any]]:
    """What clients have left on each server connection of the pool, by its process id; empty dictionaries are clean ones."""
    found: dict[int, dict[str, Any]] = {}
    with ExitStack() as stack:
        for _ in range(POOL_SIZE):  # transactions at the same time, so each has a server connection of its own
            conn = stack.enter_context(psycopg.connect(url, prepare_threshold=None))
            stack.enter_context(conn.transaction(force_rollback=True))
            row = conn.execute("""
                select pg_backend_pid(),
                       array(select pg_listening_channels()),
                       array(select name from pg_prepared_statements),
                       array(select objid::text from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()),
                       array(select relname::text from pg_class where relnamespace = pg_my_temp_schema()),
                       array(select name || '=' || setting from pg_settings where source = 'session' and name <> all (array[
                             'application_name', 'client_encoding', 'DateStyle', 'TimeZone', 'standard_conforming_strings'])),
                       current_setting('synchronous_commit'), current_user <> session_user""").fetchone()
            assert row is not None
            names = ("listens", "prepared", "locks", "temporary", "settings")
            left = {name: value for name, value in zip(names, row[1:6], strict=True) if value}
            if row[6] != "on":
                left["synchronous_commit"] = row[6]
            if row[7]:
                left["role"] = row[7]
            found[row[0]] = left
    return found
