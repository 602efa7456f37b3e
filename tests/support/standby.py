"""A primary and its streaming standby, made by pg_basebackup from the same programs."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg

from celery_jobqueue.db import embedded
from tests.support.database import one, rows
from tests.support.embedded import kill_server
from tests.support.waiting import wait_until


@dataclass(frozen=True)
class Pair:
    """Two servers; every commit is on both. Their URLs differ in the port only."""

    homes: tuple[Path, Path]
    primary: str
    standby: str

    def url(self, of: str) -> str:
        """The database of this URL with both hosts, as an application names it."""
        first, second = urlsplit(self.primary), urlsplit(self.standby)
        hosts = f"{first.hostname}:{first.port},{second.hostname}:{second.port}"
        return urlunsplit(urlsplit(of)._replace(netloc=f"{first.username}:{first.password}@{hosts}"))

    def demote(self) -> None:
        """The primary takes no writes any more, on connections that it has either."""
        rows(self.primary, "alter system set default_transaction_read_only = on")
        rows(self.primary, "select pg_reload_conf()")

    def crash(self) -> None:
        """kill -9 of the primary."""
        kill_server(self.homes[0])

    def promote(self) -> None:
        """The standby takes over."""
        assert one(self.standby, "select pg_promote(true, 60)")


@contextmanager
def replicated(folder: Path) -> Iterator[Pair]:
    """Both running, in step."""
    homes = folder / "primary", folder / "standby"
    primary = embedded.ensure(homes[0])
    copied = None
    try:
        copied = _copy(primary, homes)
        with suppress(psycopg.errors.ReadOnlySqlTransaction):  # it would like to make its database
            embedded.ensure(homes[1])
        standby = embedded.status(homes[1]).url
        assert standby is not None
        try:
            assert one(standby, "select pg_is_in_recovery()")
            wait_until(lambda: one(primary, "select count(*) from pg_stat_replication where state = 'streaming'"), "it streams")
            rows(primary, "alter system set synchronous_standby_names = '*'")
            rows(primary, "select pg_reload_conf()")
            yield Pair(homes, primary, standby)
        finally:
            embedded.down(homes[1])
    finally:
        embedded.down(homes[0])
        if copied is not None:
            shutil.rmtree(copied, ignore_errors=True)


def _copy(primary: str, homes: tuple[Path, Path]) -> Path:
    """Make the standby's data directory, and tell where."""
    place, original = homes[1] / "postgres", Path(one(primary, "show data_directory"))
    place.mkdir(parents=True, mode=0o700)
    shutil.copy(homes[0] / "postgres" / "password", place)
    base = place
    if original.parent != homes[0] / "postgres":  # as root without user namespaces it lives below /var/lib, as somebody else's
        base = original.parent.with_name(f"{original.parent.name}-standby")
        base.mkdir()
        base.chmod(0o711)
        (place / "elsewhere").write_text(str(base))
    programs = Path(one(primary, "select setting from pg_config where name = 'BINDIR'"))
    subprocess.run([programs / "pg_basebackup", "--dbname", primary, "--pgdata", base / "data", "--write-recovery-conf",
                    "--checkpoint", "fast", "--wal-method", "stream"], check=True, capture_output=True)
    owner = original.stat()
    for path in (base / "data", *(base / "data").rglob("*")):
        os.lchown(path, owner.st_uid, owner.st_gid)
    return base
