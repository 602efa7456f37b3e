"""The peers' servers, each with a data directory and ports of its own, on the loopback, gone at the end.

Debian packages come through the project's script. What cannot be had raises Missing, and its contenders are skipped by name.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from celery_jobqueue.db import embedded
from tests.support.waiting import wait_until
from tests.support.workers import ROOT

_RABBITMQ_BIN = Path("/usr/lib/rabbitmq/bin")  # Debian's; the programs on PATH want to be root or rabbitmq
_DEBIAN_INSTALLER = ROOT / ".ci" / "install-debian-packages"


class Missing(Exception):
    """A program or a package is not there and cannot be installed; says why."""


def _install(package: str, present: Path | str | None) -> None:
    if present is not None and Path(present).exists():
        return
    done = subprocess.run([str(_DEBIAN_INSTALLER), package], capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise Missing(f"the Debian package {package} cannot be installed: {said[-1] if said else done.returncode}")


def free_port() -> int:
    """A port that nobody uses at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(port: int, process: subprocess.Popen[bytes], log: Path) -> bool:
    if process.poll() is not None:
        raise Missing(f"{process.args!r} ended:\n{log.read_text(errors='replace')[-2000:]}")
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


@contextmanager
def running(command: list[str], port: int, folder: Path, environment: dict[str, str] | None = None,
            seconds: float = 60) -> Iterator[subprocess.Popen[bytes]]:
    """A process, once it answers on that port; ended with everything it has started."""
    log = folder / "server.log"
    with log.open("ab") as file:
        process = subprocess.Popen(command, cwd=folder, env={**os.environ, **(environment or {})}, stdin=subprocess.DEVNULL,
                                   stdout=file, stderr=file, start_new_session=True)
    try:
        wait_until(lambda: _answers(port, process, log), f"{command[0]} answers on port {port}", seconds)
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


@contextmanager
def postgresql(folder: Path) -> Iterator[tuple[str, int]]:
    """An embedded server that is nobody else's, with PostgreSQL's defaults: URL and process id, as of every server here."""
    url = embedded.ensure(folder)
    pid = embedded.status(folder).pid
    assert pid is not None
    try:
        yield url, pid
    finally:
        embedded.down(folder)


@contextmanager
def redis(folder: Path) -> Iterator[tuple[str, int]]:
    """A Redis with its own defaults: snapshots from time to time, no append-only file."""
    program = shutil.which("redis-server")
    _install("redis-server", program)
    program = shutil.which("redis-server")
    if program is None:
        raise Missing("redis-server is not on PATH")
    port = free_port()
    with running([program, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(_fresh(folder))], port, folder) as process:
        yield f"redis://127.0.0.1:{port}/0", process.pid


@contextmanager
def rabbitmq(folder: Path) -> Iterator[tuple[str, int]]:
    """A RabbitMQ node with its own defaults, its own epmd and its own cookie."""
    server = _RABBITMQ_BIN / "rabbitmq-server"
    _install("rabbitmq-server", server)
    if not server.exists():
        raise Missing(f"{server} is missing")
    _fresh(folder)
    port, epmd_port = free_port(), free_port()
    environment = {
        "HOME": str(folder), "RABBITMQ_NODENAME": f"bench{port}@localhost", "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODE_PORT": str(port), "RABBITMQ_DIST_PORT": str(free_port()), "RABBITMQ_MNESIA_BASE": str(folder / "data"),
        "RABBITMQ_LOG_BASE": str(folder / "log"), "RABBITMQ_CONF_ENV_FILE": str(folder / "no.conf"),
        "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq"), "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
        "RABBITMQ_PID_FILE": str(folder / "pid"),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        "ERL_EPMD_PORT": str(epmd_port), "ERL_EPMD_ADDRESS": "127.0.0.1",
    }
    try:
        with running([str(server)], port, folder, environment, seconds=90) as process:
            yield f"amqp://guest:guest@127.0.0.1:{port}//", process.pid
    finally:
        # The node has started this name server in a session of its own; it would outlive it.
        if epmd := next(iter(Path("/usr").glob("lib/erlang/erts-*/bin/epmd")), None):
            subprocess.run([str(epmd), "-port", str(epmd_port), "-kill"], capture_output=True, check=False, timeout=20)
