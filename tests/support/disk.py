"""A disk that is full when a test wants it: a tablespace on a small tmpfs."""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from tests.support.database import sibling

_MEGABYTES = 48


class Disk:
    """The disk that the database `url` lies on. Its WAL lies elsewhere: without room for that PostgreSQL stops by itself."""

    def __init__(self, folder: Path, url: str) -> None:
        self._filler = folder / "filler"
        self.url = url

    def fill(self) -> None:
        """Leave no room. PostgreSQL may still use what is free inside of its files."""
        with self._filler.open("ab", buffering=0) as file:
            for size in (1 << 20, 1 << 12):
                try:
                    while True:
                        file.write(b"\0" * size)
                except OSError:
                    continue

    def free(self) -> None:
        """There is room again."""
        self._filler.unlink(missing_ok=True)


@contextmanager
def small_disk(server: str, template: str, folder: Path) -> Iterator[Disk]:
    """A copy of the template database on a disk of its own. Skips where no file system can be mounted."""
    as_root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    if as_root and shutil.which("sudo") is None:
        pytest.skip("needs root or sudo to mount a tmpfs")
    folder.mkdir()
    mounted = subprocess.run([*as_root, "mount", "-t", "tmpfs", "-o", f"size={_MEGABYTES}m,mode=777", "tmpfs", folder],
                             capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"needs the right to mount a tmpfs: {mounted.stderr.strip()}")
    name = f"small_{uuid.uuid4().hex[:12]}"
    identifier = sql.Identifier(name)
    try:
        with psycopg.connect(server, autocommit=True) as conn:
            (folder / "space").mkdir()
            (data,) = conn.execute("show data_directory").fetchone() or ("",)
            owner = Path(str(data)).stat()
            if owner.st_uid != os.geteuid():
                os.chown(folder / "space", owner.st_uid, owner.st_gid)
            conn.execute(sql.SQL("create tablespace {} location {}").format(identifier, str(folder / "space")))
            try:
                conn.execute(sql.SQL("create database {} template {} tablespace {}").format(
                    identifier, sql.Identifier(template), identifier))
                disk = Disk(folder, sibling(server, name))
                yield disk
            finally:
                (folder / "filler").unlink(missing_ok=True)
                conn.execute(sql.SQL("drop database if exists {} with (force)").format(identifier))
                conn.execute(sql.SQL("drop tablespace {}").format(identifier))
    finally:
        subprocess.run([*as_root, "umount", "--lazy", folder], check=False)
