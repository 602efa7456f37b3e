"""Other programs that use the same embedded server, and a look at it from outside."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from celery_jobqueue.db import embedded
from tests.support.waiting import wait_until
from tests.support.workers import ROOT

ENSURE = "from celery_jobqueue.db import embedded; print(embedded.ensure(), flush=True)"
DOWN = "from celery_jobqueue.db import embedded; print(embedded.down(), embedded.down())"


def python(code: str, home: Path, environment: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """A Python of its own in a session of its own: another program in another terminal, which uses the same server."""
    environment = {**os.environ, "JOBQUEUE_HOME": str(home), "DATABASE_URL": "", **(environment or {})}
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment, text=True, start_new_session=True,
                            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def answer(process: subprocess.Popen[str]) -> str:
    """What it printed. Fails with its traceback."""
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return out.strip()


def place(home: Path) -> Path:
    return home / "postgres"


def log(home: Path) -> str:
    return (place(home) / "server.log").read_text(errors="replace")


def pid_of(home: Path) -> int:
    pid = embedded.status(home).pid
    assert pid is not None
    return pid


def running_in(home: Path) -> list[int]:
    """Processes whose working directory is below that folder, as every process of a PostgreSQL has."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if home in (process / "cwd").readlink().parents:
                found.append(int(process.name))
    return found


def kill_server(home: Path) -> None:
    pid = pid_of(home)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: embedded.status(home).pid is None, "the server is dead")
