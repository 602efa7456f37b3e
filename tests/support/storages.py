"""What every storage has to do: the same for a folder, S3, Google's and Azure's."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from tasks.certificates.storage import NoSuchFile, Storage

__all__ = ["keeps_files", "refuses_key"]


def keeps_files(storage: Storage, key: str) -> None:
    """Writing overwrites, from memory and from a file; deleting twice is fine; what is not there is said so."""
    assert not storage.exists(key)
    with pytest.raises(NoSuchFile):
        storage.open(key)
    storage.put(key, b"first", "application/pdf")
    storage.put(key, b"second", "application/pdf")
    assert storage.exists(key)
    assert storage.open(key) == b"second"
    storage.put(key, Path(__file__), "text/plain")
    assert storage.open(key) == Path(__file__).read_bytes()
    storage.put(key, b"", "text/plain")
    assert storage.open(key) == b""
    for ttl in (timedelta(0), timedelta(days=7, seconds=1)):
        with pytest.raises(ValueError, match="from 1 second to 7 days"):
            storage.url(key, ttl)
    storage.delete(key)
    storage.delete(key)
    assert not storage.exists(key)


def refuses_key(storage: Storage, key: str) -> None:
    """No operation takes it."""
    for act in (lambda: storage.put(key, b"x", "text/plain"), lambda: storage.open(key), lambda: storage.exists(key),
                lambda: storage.delete(key), lambda: storage.url(key), lambda: storage.location(key)):
        with pytest.raises(ValueError, match=r"^storage key"):
            act()
