"""Whether somebody has put something of his own into the place of Celery's, and may want to be called as Celery calls it."""

from __future__ import annotations

from typing import Any

__all__ = ["inherits", "is_wrapped"]


def inherits(thing: Any, method: str, kind: type) -> bool:
    """Whether the object's method is the one of this class of Celery's."""
    return getattr(getattr(thing, method), "__func__", None) is getattr(kind, method)


def is_wrapped(method: Any) -> bool:
    """Whether a library has wrapped a method of Celery's, or replaced it."""
    return not method.__module__.startswith("celery.") or hasattr(method, "__wrapped__")
