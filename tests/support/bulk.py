"""The command `python -m tasks.bulk`, as people and programs run it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support.workers import ROOT

__all__ = ["bulk", "bulk_each", "documents", "write_attendees"]


def bulk(url: str, folder: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run it to its end, without a terminal."""
    return subprocess.run([sys.executable, "-W", "error", "-m", "tasks.bulk", *arguments], cwd=ROOT, stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, timeout=120, check=False,
                          env={**os.environ, "DATABASE_URL": url, "STORAGE_URL": folder.as_uri(), **env})


_EACH = """
import json, sys
from click.testing import CliRunner
from tasks.bulk.__main__ import main
for arguments in json.loads(sys.argv[1]):
    done = CliRunner().invoke(main, arguments)
    print(json.dumps([done.exit_code, done.stdout, done.stderr]))
"""


def bulk_each(url: str, folder: Path, *calls: Sequence[str]) -> list[tuple[int, str, str]]:
    """Run it several times in one process, which is quicker; exit code, output and errors of each."""
    done = subprocess.run([sys.executable, "-W", "error", "-c", _EACH, json.dumps(calls)], cwd=ROOT, stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, timeout=120, check=False,
                          env={**os.environ, "DATABASE_URL": url, "STORAGE_URL": folder.as_uri()})
    assert (done.returncode, done.stderr) == (0, "")
    return [(code, out, err) for code, out, err in map(json.loads, done.stdout.splitlines())]


def documents(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """What it said with --json: plan, queued, progress, summary; the last of each kind."""
    found: dict[str, Any] = {}
    for line in done.stdout.splitlines():
        document = json.loads(line)
        found[next(iter(document))] = document
    return found


def write_attendees(path: Path, *rows: str, header: str = "recipient_name,email", encoding: str = "utf-8") -> Path:
    """A CSV file."""
    path.write_bytes("".join(f"{row}\r\n" for row in (header, *rows)).encode(encoding))
    return path
