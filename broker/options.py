"""How a consumer keeps time."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Options"]


@dataclass(frozen=True, slots=True)
class Options:
    """How a consumer keeps time; all in seconds. pooled: LISTEN and session locks do not work on this connection.

    keep_completed, keep_failed: how long finished jobs stay in the table; None: for ever.
    """

    pooled: bool = False
    poll: float = 5.0
    heartbeat: float = 15.0
    heartbeat_limit: float = 75.0
    rescue: float = 1.5
    grace: float = 3.0  # a worker's lock may be free (a cut connection); with the 1.5 s a dead worker's jobs are back within 5 s
    touch: float = 5.0  # the mailboxes of remote control expire after 10 s without
    reap: float = 10.0
    retire: float = 10.0
    keep_completed: float | None = 7 * 86400.0
    keep_failed: float | None = 30 * 86400.0
