"""Where files go: a local folder or an S3-compatible service, behind five methods.

Keys are deterministic and writing overwrites, so doing it twice leaves one file. STORAGE_URL says where:
`file:///var/certificates`, or `s3://bucket/prefix?endpoint=https://…&region=…` with the credentials in
AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. Unset: `.local/certificates`.
"""

from __future__ import annotations

import os
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qsl, unquote, urlsplit

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

    def url(self, key: str, ttl: timedelta = timedelta(hours=1)) -> str:
        """A link to the file, which may stop working after `ttl`."""

    def delete(self, key: str) -> None:
        """Remove the file; fine when it is not there. Raises StorageError."""


def storage_from_url(url: str | None = None) -> Storage:
    """The storage of this URL, else of STORAGE_URL, else the local folder. Raises ConfigurationError naming the fix."""
    url = url or os.environ.get("STORAGE_URL", "").strip() or Path(".local/certificates").absolute().as_uri()
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
        return _S3(parts.netloc, unquote(parts.path).strip("/"), options.get("endpoint"), options.get("region", "us-east-1"))
    raise ConfigurationError(f"STORAGE_URL begins with {parts.scheme or 'nothing'}://: use file:// or s3://")


def _checked(key: str) -> str:
    if not key or key.startswith("/") or "\\" in key or "\0" in key or any(part in ("", ".", "..") for part in key.split("/")):
        raise ValueError(f"storage key {key!r}: use relative parts separated by single slashes, without . and ..")
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
            path.parent.mkdir(parents=True, exist_ok=True)
            # A reader sees the old file or the new one, and after a power cut the name leads to a whole file.
            descriptor, name = tempfile.mkstemp(prefix=".", suffix=".part", dir=path.parent)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                Path(name).chmod(0o644)
                Path(name).replace(path)
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise
        except OSError as error:
            raise StorageError(f"{path} could not be written: {error}") from error

    def exists(self, key: str) -> bool:
        return self._path(key).is_file()

    def open(self, key: str) -> bytes:
        try:
            return self._path(key).read_bytes()
        except OSError as error:
            raise StorageError(f"{key} could not be read: {error}") from error

    def url(self, key: str, ttl: timedelta = timedelta(hours=1)) -> str:
        return self._path(key).absolute().as_uri()

    def delete(self, key: str) -> None:
        try:
            self._path(key).unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"{key} could not be deleted: {error}") from error


class _S3:
    """An S3-compatible service, through obstore."""

    def __init__(self, bucket: str, prefix: str, endpoint: str | None, region: str) -> None:
        self._bucket, self._prefix, self._endpoint, self._region = bucket, prefix, endpoint, region
        self._store: Any = None
        self._pid = 0

    def _client(self) -> Any:
        # obstore's threads do not survive a fork: used in a parent, it hangs in the child. A message is better.
        if self._store is not None and self._pid != os.getpid():
            raise StorageError("this storage was used before the process forked: make it anew in each process")
        if self._store is None:
            from obstore.store import S3Store

            config: dict[str, Any] = {"region": self._region}
            options: dict[str, Any] = {}
            if self._endpoint:
                config |= {"endpoint": self._endpoint, "virtual_hosted_style_request": False}
                options["allow_http"] = self._endpoint.startswith("http://")
            self._store = S3Store(self._bucket, prefix=self._prefix or None, config=config, client_options=options)
            self._pid = os.getpid()
        return self._store

    def put(self, key: str, content: bytes, content_type: str) -> None:
        import obstore

        self._try(obstore.put, _checked(key), content, attributes={"Content-Type": content_type})

    def exists(self, key: str) -> bool:
        import obstore

        try:
            self._try(obstore.head, _checked(key))
        except FileNotFoundError:
            return False
        return True

    def open(self, key: str) -> bytes:
        import obstore

        try:
            return bytes(self._try(obstore.get, _checked(key)).bytes())
        except FileNotFoundError as error:
            raise StorageError(f"{key} could not be read: {error}") from error

    def url(self, key: str, ttl: timedelta = timedelta(hours=1)) -> str:
        import obstore

        return str(obstore.sign(self._client(), "GET", _checked(key), ttl))

    def delete(self, key: str) -> None:
        import obstore

        self._try(obstore.delete, _checked(key))

    def _try(self, operation: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return operation(self._client(), *args, **kwargs)
        except (FileNotFoundError, StorageError):
            raise
        except Exception as error:
            raise StorageError(f"s3://{self._bucket}/{args[0]}: {error}") from error
