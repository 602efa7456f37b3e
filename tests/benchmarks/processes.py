"""Processor time and memory of a process with all its children."""

from __future__ import annotations

import psutil


def family(pid: int) -> list[psutil.Process]:
    """The process and everything below it that still lives."""
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


class Meter:
    """Processor time that a process and its children use from now on. Nothing for nobody (None)."""

    def __init__(self, pid: int | None) -> None:
        self._pid = pid
        self._before = self._now()

    def _now(self) -> dict[int, float]:
        found: dict[int, float] = {}
        for process in family(self._pid) if self._pid is not None else []:
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            found[process.pid] = times.user + times.system
        return found

    def seconds(self) -> float:
        """Since it was made. A child that has ended meanwhile is not counted."""
        return sum(now - self._before.get(pid, 0.0) for pid, now in self._now().items())
