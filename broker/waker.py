"""What interrupts a loop that sleeps, from another thread or from a signal's handler."""

from __future__ import annotations

import contextlib
import socket

__all__ = ["Waker"]


class Waker:
    """A pair of sockets, made when somebody first sleeps on it."""

    def __init__(self) -> None:
        self._ends: tuple[socket.socket, socket.socket] | None = None

    def wake(self) -> None:
        """Who sleeps wakes up, or does not fall asleep."""
        with contextlib.suppress(OSError):
            if self._ends is not None:
                self._ends[1].send(b"x")

    def fileno(self) -> int:
        """What to sleep on."""
        if self._ends is None:
            ends = socket.socketpair()
            for end in ends:
                end.setblocking(False)
            self._ends = ends
        return self._ends[0].fileno()

    def clear(self) -> None:
        """Whoever sleeps from now on is not woken by what was before."""
        with contextlib.suppress(BlockingIOError):
            while self._ends is not None and self._ends[0].recv(4096):
                pass

    def close(self) -> None:
        """Nobody sleeps on it any more; harmless when nobody has."""
        ends, self._ends = self._ends, None
        for end in ends or ():
            end.close()
