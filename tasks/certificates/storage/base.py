"""What a place for files can do, and what goes wrong with it."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Protocol

from celery_jobqueue.db.errors import FinalError, JobQueueError

__all__ = ["LONGEST_LINK", "LinkRefused", "NoSuchFile", "Storage", "StorageError", "checked_key", "checked_ttl"]

#: What S3 signs at most; the same everywhere, so that an application may change its storage.
LONGEST_LINK = timedelta(days=7)


class StorageError(JobQueueError):
    """The storage could not be read or written; trying again may help."""


class NoSuchFile(StorageError):
    """There is no file under this key, or no such bucket."""


class LinkRefused(FinalError):
    """A link to a file was not signed by this application, was changed, or has expired."""


class Storage(Protocol):
    """A place for files under keys such as `events/42/certificate.pdf`."""

    def put(self, key: str, content: bytes | Path, content_type: str) -> None:
        """Write the file, replacing what was there, completely or not at all; a Path is copied in pieces. Raises StorageError."""

    def exists(self, key: str) -> bool:
        """Whether there is such a file. Raises StorageError."""

    def open(self, key: str) -> bytes:
        """The file's content. Raises StorageError when it cannot be read, NoSuchFile when there is none."""

    def location(self, key: str) -> str:
        """Where the file lies: always the same for a key, and no secret."""

    def url(self, key: str, ttl: timedelta = timedelta(hours=1)) -> str:
        """A link to the file, which may stop working after `ttl`. Raises ValueError beyond 7 days."""

    def delete(self, key: str) -> None:
        """Remove the file; fine when it is not there. Raises StorageError."""


def checked_key(key: str) -> str:
    """The key. Raises ValueError when it could lead out of the storage, or is no name on every one of them."""
    if "\\" in key or not key.isprintable():
        raise ValueError(f"storage key {key[:300]!r}: use printable characters, no backslash")
    if not key or any(part in ("", ".", "..") or len(part.encode()) > 255 for part in key.split("/")):
        raise ValueError(f"storage key {key[:300]!r}: use relative parts separated by single slashes, without . and ..")
    return key


def checked_ttl(ttl: timedelta) -> timedelta:
    """The lifetime of a link. Raises ValueError when no storage could sign it."""
    if not timedelta(seconds=1) <= ttl <= LONGEST_LINK:
        raise ValueError(f"a link's ttl of {ttl} is out of range: from 1 second to 7 days")
    return ttl
