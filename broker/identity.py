"""Who this process is to the queue: the owner of the jobs it claims."""

from __future__ import annotations

import os
import socket
import uuid
from dataclasses import dataclass, field

__all__ = ["Identity", "identity"]


@dataclass(slots=True)
class Identity:
    """A process. It keeps its id across reconnects, so that jobs running during a cut stay its own."""

    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    pid: int = field(default_factory=os.getpid)
    host: str = field(default_factory=socket.gethostname)
    name: str = ""
    #: The connection (its id()) whose session holds this process's advisory lock.
    lock_holder: int | None = None
    #: Of a worker's consuming connection, in monotonic seconds: when it was made, and while there is none when it was lost.
    connected_at: float | None = None
    cut_off_at: float | None = None
    #: Seconds that it was lost the last time; seconds to wait before the next one, because they keep breaking.
    outage: float = 0.0
    pause: float = 0.0

    def __post_init__(self) -> None:
        self.name = self.name or f"{self.pid}@{self.host}"


_current: Identity | None = None


def identity() -> Identity:
    """The identity of this process; a forked child gets its own."""
    global _current
    if _current is None or _current.pid != os.getpid():
        _current = Identity()
    return _current
