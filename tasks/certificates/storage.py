"""Where files go: a local folder or an S3-compatible service, behind five methods.

Keys are deterministic and writing overwrites, so doing it twice leaves one file. STORAGE_URL says where:
`file:///var/certificates`, or `s3://bucket/prefix?endpoint=https://…&region=…` with the credentials in
AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. Unset: `certificates` in JOBQUEUE_HOME, else in `.local`.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qsl, unquote, urlsplit

from celery_jobqueue.db import embedded
from celery_jobqueue.db.errors import ConfigurationError, JobQueueError

__all__ = ["Storage", "StorageError", "storage_from_url"]


class StorageError(JobQueueError):
    """The storage could not be read or written; trying again may help."""


class Storage(Protocol):
    """A place for files under keys such as `events/42/certificate.pdf`."""

    def put(self, key: str, content: bytes, content_type: str) -> None:
        """Write the file, replacing what was there, completely or not at all. Raises StorageError."""

    def exists(self, key: str) -> bool:
        """Whether there is such a file. Raises StorageError."""

    def open(self, key: str) -> bytes:
        """The file's content. Raises StorageError when it cannot be read."""

    def location(self, key: str) -> str:
        """Where the file lies: always the same for a key, and no secret."""

    def url(self, key: str, ttl: timedelta = timedelta(hours=1)) -> str:
        """A link to the file, which may stop working after `ttl` (at most 7 days)."""

    def delete(self, key: str) -> None:
        """Remove the file; fine when it is not there. Raises StorageError."""


def storage_from_url(url: str | None = None) -> Storage:
    """The storage of this URL, else of STORAGE_URL, else the local folder. Raises ConfigurationError naming the fix."""
    url = url or os.environ.get("STORAGE_URL", "").strip() or (embedded.home().parent / "certificates").as_uri()
    parts = urlsplit(url)
    options = dict(parse_qsl(parts.query))
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost") or not parts.path:
            raise ConfigurationError(f"STORAGE_URL={url}: a folder is written file:///absolute/path")
        return _Folder(Path(unquote(parts.path)))
    if parts.scheme == "s3":
        unknown = sorted(set(options) - {"endpoint", "region"})
        if not parts.netloc or unknown:
            raise ConfigurationError(f"STORAGE_URL: write s3://bucket/prefix?endpoint=https://…&region=… "
                                     f"({'unknown: ' + unknown[0] if unknown else 'the bucket is missing'})")
        if "@" in parts.netloc:
            raise ConfigurationError("STORAGE_URL: credentials belong in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, not in it")
        endpoint, prefix = options.get("endpoint"), unquote(parts.path).strip("/")
        if endpoint and not endpoint.startswith(("https://", "http://")):
            raise ConfigurationError(f"STORAGE_URL: endpoint={endpoint} must begin with https:// or http://")
        try:
            return _S3(parts.netloc, _checked(prefix) if prefix else "", endpoint, options.get("region"))
        except ValueError as error:
            raise ConfigurationError(f"STORAGE_URL: {error}") from None
    raise ConfigurationError(f"STORAGE_URL begins with {parts.scheme or 'nothing'}://: use file:// or s3://")


def _checked(key: str) -> str:
    if "\\" in key or not key.isprintable():
        raise ValueError(f"storage key {key[:300]!r}: use printable characters, no backslash")
    if not key or any(part in ("", ".", "..") or len(part.encode()) > 255 for part in key.split("/")):
        raise ValueError(f"storage key {key[:300]!r}: use relative parts separated by single slashes, without . and ..")
    return key


class _Folder:
    """Files below a folder."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def _path(self, key: str) -> Path:
        return self._root / _checked(key)

    def put(self, key: str, content: bytes, content_type: str) -> None:
        path = self._path(key)
        try:
            _make_folder(path.parent)
            # A reader sees the old file or the new one, and after a power cut the name leads to a whole file.
            descriptor, name = tempfile.mkstemp(prefix=".", suffix=".part", dir=path.parent)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                Path(name).chmod(0o644)
                Path(name).replace(path)
                _sync(path.parent)
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise
        except OSError as error:
            raise StorageError(f"{path} could not be written: {error}") from error

    def exists(self, key: str) -> bool:
        try:
            return self._path(key).is_file()
        except OSError as error:
            raise StorageError(f"{key} could not be looked for: {error}") from error

    def open(self, key: str) -> bytes:
        try:
            return self._path(key).read_bytes()
        except OSError as error:
            raise StorageError(f"{key} could not be read: {error}") from error

    def location(self, key: str) -> str:
        return self._path(key).absolute().as_uri()

    def url(self, key: str, ttl: timedelta = timedelta(hours=1)) -> str:
        return self.location(key)

    def delete(self, key: str) -> None:
        try:
            self._path(key).unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"{key} could not be deleted: {error}") from error


def _make_folder(folder: Path) -> None:
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync(folder.parent)


def _sync(folder: Path) -> None:
    """What the folder holds survives a power cut from now on."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _S3:
    """An S3-compatible service, through obstore."""

    # obstore's threads do not survive a fork: used in a parent, any store of the child would hang. A message is better.
    _used_in: int | None = None

    def __init__(self, bucket: str, prefix: str, endpoint: str | None, region: str | None) -> None:
        if endpoint and not (os.environ.get("AWS_ACCESS_KEY_ID") and os.environ.get("AWS_SECRET_ACCESS_KEY")):
            # Without them the client would ask Amazon's metadata service, and wait for it.
            raise ConfigurationError(
                f"STORAGE_URL names the endpoint {endpoint}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY too")
        self._bucket, self._prefix, self._endpoint = bucket, prefix, endpoint
        self._region = region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
        self._store: Any = None

    def _client(self) -> Any:
        if _S3._used_in not in (None, os.getpid()):
            raise StorageError("object storage was used before this process forked, which its client does not survive: "
                               "use it first in the process that runs the tasks")
        if self._store is None:
            from obstore.store import S3Store

            config: dict[str, Any] = {"region": self._region}
            # A job's own attempts do the long waiting.
            options: dict[str, Any] = {"connect_timeout": "5s", "timeout": "20s"}
            retries: Any = {"max_retries": 2, "retry_timeout": timedelta(seconds=20)}
            if self._endpoint:
                config |= {"endpoint": self._endpoint, "virtual_hosted_style_request": False}
                options["allow_http"] = self._endpoint.startswith("http://")
            self._store = S3Store(self._bucket, prefix=self._prefix or None, config=config, client_options=options,
                                  retry_config=retries)
        _S3._used_in = os.getpid()
        return self._store

    def put(self, key: str, content: bytes, content_type: str) -> None:
        import obstore

        self._try(obstore.put, key, content, attributes={"Content-Type": content_type})

    def exists(self, key: str) -> bool:
        import obstore

        try:
            self._try(obstore.head, key)
        except _NoSuchFile:
            return False
        return True

    def open(self, key: str) -> bytes:
        import obstore

        return bytes(self._try(lambda store, path: obstore.get(store, path).bytes(), key))

    def location(self, key: str) -> str:
        return f"s3://{self._bucket}/{self._prefix}{'/' if self._prefix else ''}{_checked(key)}"

    def url(self, key: str, ttl: timedelta = timedelta(hours=1)) -> str:
        import obstore

        return str(self._try(lambda store, path: obstore.sign(store, "GET", path, ttl), key))

    def delete(self, key: str) -> None:
        import obstore

        self._try(obstore.delete, key)

    def _try(self, operation: Callable[..., Any], key: str, *args: Any, **kwargs: Any) -> Any:
        store, place = self._client(), self.location(key)
        try:
            return operation(store, key, *args, **kwargs)
        except Exception as error:
            # What the client says, without its pages of details; the service's own code where there is one.
            message = str(error).partition("\n\nDebug source")[0]
            code = re.search(r"<Code>(\w+)</Code>", message) or re.search(r"status code: (\d{3} [A-Z][A-Za-z ]+)", message)
            why = code[1] if code else message.strip()[:500]
            if type(error).__name__ in ("PermissionDeniedError", "UnauthenticatedError"):
                raise StorageError(f"{place}: access denied ({why}): check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
                                   "and what they may do there") from error
            if isinstance(error, FileNotFoundError):
                raise _NoSuchFile(f"{place}: no such file or bucket ({why})") from error
            raise StorageError(f"{place}: {why}") from error


class _NoSuchFile(StorageError):
    pass
