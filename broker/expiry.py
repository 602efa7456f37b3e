"""How long results stay, in Celery's settings."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, NamedTuple

__all__ = ["Expiries", "interval"]


class Expiries(NamedTuple):
    """Seconds after which results, failures and chords are emptied; None: never."""

    results: float | None = None
    failures: float | None = None
    chords: float | None = None

    @classmethod
    def of(cls, conf: Any) -> Expiries:
        """`result_expires`, `result_failure_expires` and `result_chord_expires`, which default to the first. 0 is never."""
        return cls(*(_seconds(conf.result_expires if expires is None else expires)
                     for expires in (None, conf.result_failure_expires, conf.result_chord_expires)))


def interval(seconds: float | None) -> str | None:
    """As PostgreSQL reads it; never stays None."""
    return None if seconds is None else f"{seconds} seconds"


def _seconds(expires: timedelta | float | None) -> float | None:
    seconds = expires.total_seconds() if isinstance(expires, timedelta) else expires
    return float(seconds) if seconds else None
