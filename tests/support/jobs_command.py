"""`celery jobs`, in this process and in one of its own."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from celery import Celery
from celery.bin.base import CLIContext
from click.testing import CliRunner

from celery_jobqueue.broker.commands import jobs
from tests.support.workers import ROOT


class Told:
    """What a command said, and its exit code."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err
        assert "Traceback" not in err, err

    @property
    def lines(self) -> list[str]:
        """The lines of standard output."""
        return self.out.splitlines()

    @property
    def table(self) -> list[dict[str, str]]:
        """The lines of a table by heading, where no cell is empty; none holds two spaces in a row."""
        heading, *lines = self.lines
        names = heading.split()
        cells = [[part for part in line.split("  ") if part.strip()] for line in lines]
        assert all(len(parts) == len(names) for parts in cells), self.out
        return [dict(zip(names, map(str.strip, parts), strict=True)) for parts in cells]

    @property
    def document(self) -> Any:
        """The one JSON document."""
        return json.loads(self.out)

    @property
    def documents(self) -> list[Any]:
        """A JSON document per line."""
        return [json.loads(line) for line in self.lines]


def jobs_of(app: Celery, *arguments: str, columns: int | None = None) -> Told:
    """The command in this process, for this application."""
    result = CliRunner().invoke(jobs, list(arguments), obj=CLIContext(app=app, no_color=True, workdir=None),
                                env={"COLUMNS": None if columns is None else str(columns)})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Told(result.exit_code, result.stdout, result.stderr)


def jobs_process(url: str, *arguments: str, app: str = "tests.support.app", **environment: str) -> subprocess.Popen[str]:
    """The command as people type it, in a pipe."""
    return subprocess.Popen(_command(app, arguments), cwd=ROOT, env=_environment(url, environment), text=True,
                            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def told_by(process: subprocess.Popen[str], timeout: float = 60) -> Told:
    """What it said, once it has ended."""
    out, err = process.communicate(timeout=timeout)
    return Told(process.returncode, out, err)


class Terminal:
    """The command in a terminal of this size."""

    def __init__(self, url: str, *arguments: str, columns: int, lines: int) -> None:
        ours, theirs = pty.openpty()
        self._written = bytearray()
        self.process = subprocess.Popen(
            _command("tests.support.app", arguments), cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs,
            env=_environment(url, {"TERM": "xterm", "COLUMNS": str(columns), "LINES": str(lines)}))
        os.close(theirs)
        self._reader = threading.Thread(target=self._read, args=(ours,))
        self._reader.start()

    def _read(self, terminal: int) -> None:
        with open(terminal, "rb", buffering=0) as file:
            try:
                while data := file.read(65536):
                    self._written += data
            except OSError:  # Linux' way to say that nobody writes any more
                pass

    @property
    def text(self) -> str:
        """Everything written to it."""
        return self._written.decode(errors="replace")

    def wait(self, timeout: float = 30) -> int:
        """The exit code, once all output is here."""
        code = self.process.wait(timeout)
        self._reader.join(timeout)
        return code

    def kill(self) -> None:
        """For the end of a test."""
        if self.process.poll() is None:
            self.process.kill()
        self.wait()


def _command(app: str, arguments: tuple[str, ...]) -> list[str]:
    return [sys.executable, "-W", "ignore", "-m", "celery", "-A", app, "jobs", *arguments]


def _environment(url: str, more: dict[str, str]) -> dict[str, str]:
    inherited = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")}
    return {**inherited, "DATABASE_URL": url, "PYTHONPATH": str(Path(ROOT)), **more}
