"""Who this process is to the queue: the owner of the jobs it claims."""

from __future__ import annotations

import os
import socket
import uuid
from dataclasses import dataclass, field
from math import inf
from typing import Protocol
from weakref import WeakSet

__all__ = ["Holder", "Identity", "identity"]


class Holder(Protocol):
    """Something that was given jobs."""

    def held(self) -> set[str]:
        """Their ids, until they are settled."""


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
    #: A worker that has begun to shut down, whoever said so.
    leaving: bool = False
    #: Of any connection: when it was lost, in monotonic seconds.
    lost_at: float = -inf
    #: What holds jobs of this process: each tells their ids.
    holders: WeakSet[Holder] = field(default_factory=WeakSet)

    def __post_init__(self) -> None:
        self.name = self.name or f"{self.pid}@{self.host}"

    def held(self) -> set[str]:
        """Ids of all jobs that this process knows to be its own, on whichever connection they came."""
        return {id_ for holder in list(self.holders) for id_ in holder.held()}


_current: Identity | None = None


def identity() -> Identity:
    """The identity of this process; a forked child gets its own."""
    global _current
    if _current is None or _current.pid != os.getpid():
        _current = Identity()
    return _current
