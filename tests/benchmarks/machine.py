"""On what it was measured: hardware, versions, and how durable each server was."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psycopg

_SETTINGS = ("server_version", "fsync", "synchronous_commit", "full_page_writes", "wal_sync_method", "shared_buffers",
             "autovacuum")
_PACKAGES = ("celery", "kombu", "billiard", "amqp", "psycopg", "redis")


def describe(database: str | None = None) -> list[str]:
    """Lines to print above every result."""
    memory = int(re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())[1]) / 2**20  # type: ignore[index]
    lines = [
        (f"machine: {os.cpu_count()} × {_processor()}, {memory:.0f} GiB, {platform.system()} {platform.release()}, "
         f"Python {platform.python_version()}; one fdatasync of 8 KiB: {_sync_time() * 1e6:.0f} µs, "
         f"load before the run {os.getloadavg()[0]:.1f}"),
        "packages: " + ", ".join(f"{name} {found}" for name in _PACKAGES if (found := _version(name))),
    ]
    if database:
        with psycopg.connect(database, autocommit=True) as conn:
            row = conn.execute("select " + ", ".join(f"current_setting('{name}')" for name in _SETTINGS)).fetchone()
            assert row
            lines.append("PostgreSQL: " + ", ".join(f"{name} {value}" for name, value in zip(_SETTINGS, row, strict=True)))
    lines += [line for line in (_said("rabbitmq-server", "durable queue, persistent messages"),
                                _said("redis-server", "its defaults: snapshots, no append-only file, so not durable")) if line]
    return lines


def _version(package: str) -> str | None:
    with suppress(PackageNotFoundError):
        return version(package)
    return None


def _said(package: str, how: str) -> str | None:
    with suppress(OSError):
        found = subprocess.run(["dpkg-query", "--show", "--showformat", "${Version}", package], capture_output=True, text=True,
                               check=False).stdout
        return f"{package} {found}: {how}" if found else None
    return None


def _processor() -> str:
    found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    return found[1] if found else platform.machine()


def _sync_time() -> float:
    """Seconds, the median of some."""
    path = Path(".local/benchmarks/sync")
    path.parent.mkdir(parents=True, exist_ok=True)
    taken = []
    with path.open("wb", buffering=0) as file:
        for _ in range(100):
            file.write(b"x" * 8192)
            began = time.perf_counter()
            os.fdatasync(file.fileno())
            taken.append(time.perf_counter() - began)
    path.unlink()
    return sorted(taken)[50]
