"""When each job began: one record of 16 bytes appended per job, by whatever process or thread ran it.

An append is atomic and costs a microsecond, the same for every contender; CLOCK_MONOTONIC is the machine's, so records of
different processes compare. The driver reads the file's size while a run lasts, and all the times afterwards.
"""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path

_RECORD = struct.Struct("<qq")


class Journal:
    """A file of (published, began) in nanoseconds; published is 0 where nobody asks for latency."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, published: int = 0) -> None:
        """A job that was published then begins now."""
        os.write(self._file, _RECORD.pack(published, time.monotonic_ns()))

    def __len__(self) -> int:
        return self._path.stat().st_size // _RECORD.size

    def records(self) -> list[tuple[int, int]]:
        """Every (published, began) so far, in the order of their beginning."""
        return sorted(_RECORD.iter_unpack(self._path.read_bytes()), key=lambda record: record[1])

    def clear(self) -> None:
        """Forget everything."""
        os.truncate(self._path, 0)

    def rate(self, begin: float = 0.1, end: float = 1.0) -> float:
        """Jobs per second in a part of the run. Without the first tenth by default: processes warm up there."""
        began = [record[1] for record in self.records()]
        began = began[int(len(began) * begin):int(len(began) * end)]
        return (len(began) - 1) / (began[-1] - began[0]) * 1e9 if len(began) > 2 else 0.0
