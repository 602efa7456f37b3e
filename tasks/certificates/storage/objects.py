"""Object storage through obstore: S3 and what speaks like it, Google Cloud Storage, Azure Blob Storage."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from celery_jobqueue.db.errors import ConfigurationError
from tasks.certificates.storage.base import NoSuchFile, StorageError, checked_key, checked_ttl

__all__ = ["ObjectStorage", "azure", "gcs", "s3"]

# A job's own attempts do the long waiting.
_PATIENCE: dict[str, Any] = {"connect_timeout": "5s", "timeout": "20s"}
_RETRIES: dict[str, Any] = {"max_retries": 2, "retry_timeout": timedelta(seconds=20)}


@dataclass(frozen=True, slots=True)
class _Service:
    """What differs between the services. kind: the class in obstore.store. credentials: where to look when they are refused."""

    kind: str
    scheme: str
    credentials: str
    config: dict[str, Any]
    plain_http: bool = False
    plain_links_only: bool = False


def s3(bucket: str, prefix: str, endpoint: str | None, region: str | None) -> ObjectStorage:
    """An S3-compatible service: AWS, MinIO, R2, Supabase Storage, Google's with its HMAC keys … Raises ConfigurationError."""
    config = {"region": region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"}
    if endpoint:
        # Without them the client would ask Amazon's metadata service, and wait for it.
        _need(f"the endpoint {endpoint}", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
        config |= {"endpoint": endpoint, "virtual_hosted_style_request": "false"}
    return ObjectStorage(bucket, prefix, _Service("S3Store", "s3", "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY", config,
                                                  _is_plain(endpoint)))


def gcs(bucket: str, prefix: str) -> ObjectStorage:
    """Google Cloud Storage; the credentials are Google's own: GOOGLE_SERVICE_ACCOUNT, GOOGLE_APPLICATION_CREDENTIALS …"""
    return ObjectStorage(bucket, prefix, _Service("GCSStore", "gs", "GOOGLE_SERVICE_ACCOUNT", {},
                                                  _is_plain(os.environ.get("GOOGLE_BASE_URL"))))


def azure(container: str, prefix: str, account: str | None, endpoint: str | None) -> ObjectStorage:
    """Azure Blob Storage. Raises ConfigurationError."""
    account = account or os.environ.get("AZURE_STORAGE_ACCOUNT_NAME", "").strip()
    if not account:
        raise ConfigurationError("STORAGE_URL: write az://container/prefix?account=…, or set AZURE_STORAGE_ACCOUNT_NAME")
    config = {"account_name": account}
    if endpoint:
        _need(f"the endpoint {endpoint}", "AZURE_STORAGE_ACCOUNT_KEY")
        config["endpoint"] = endpoint
    return ObjectStorage(container, prefix, _Service("AzureStore", "az", "AZURE_STORAGE_ACCOUNT_KEY", config,
                                                     _is_plain(endpoint), plain_links_only=True))


def _is_plain(endpoint: str | None) -> bool:
    return bool(endpoint) and str(endpoint).startswith("http://")


def _need(what: str, *names: str) -> None:
    if not all(os.environ.get(name) for name in names):
        raise ConfigurationError(f"STORAGE_URL names {what}: set {' and '.join(names)} too")


class ObjectStorage:
    """Files in a bucket, below a prefix."""

    # obstore's threads do not survive a fork: used in a parent, any store of the child would hang. A message is better.
    _used_in: int | None = None

    def __init__(self, bucket: str, prefix: str, service: _Service) -> None:
        self._bucket, self._prefix, self._service = bucket, prefix, service
        self._store: Any = None

    def _client(self) -> Any:
        if ObjectStorage._used_in not in (None, os.getpid()):
            raise StorageError("object storage was used before this process forked, which its client does not survive: "
                               "use it first in the process that runs the tasks")
        if self._store is None:
            import obstore.store

            kind = getattr(obstore.store, self._service.kind)
            self._store = kind(self._bucket, prefix=self._prefix or None, config=self._service.config or None,
                               client_options={**_PATIENCE, "allow_http": self._service.plain_http}, retry_config=_RETRIES)
        ObjectStorage._used_in = os.getpid()
        return self._store

    def put(self, key: str, content: bytes | Path, content_type: str) -> None:
        """See Storage. A large file goes up in parts."""
        import obstore

        self._try(obstore.put, key, content, attributes={"Content-Type": content_type})

    def exists(self, key: str) -> bool:
        """See Storage."""
        import obstore

        try:
            self._try(obstore.head, key)
        except NoSuchFile:
            return False
        return True

    def open(self, key: str) -> bytes:
        """See Storage."""
        import obstore

        return bytes(self._try(lambda store, path: obstore.get(store, path).bytes(), key))

    def location(self, key: str) -> str:
        """See Storage."""
        return f"{self._service.scheme}://{self._bucket}/{self._prefix}{'/' if self._prefix else ''}{checked_key(key)}"

    def url(self, key: str, ttl: timedelta = timedelta(hours=1)) -> str:
        """A link that the service itself checks: SigV4, Google's V4, Azure's SAS."""
        import obstore

        checked_ttl(ttl)
        if self._service.plain_links_only and not re.fullmatch(r"[A-Za-z0-9/._~-]*", f"{self._prefix}/{key}"):
            # obstore 0.12 signs the quoted name, Azure checks the unquoted one (measured against Azurite).
            raise ValueError(f"storage key {self.location(key)!r}: for links on Azure use letters, digits and /._~- only")
        return str(self._try(lambda store, path: obstore.sign(store, "GET", path, ttl), key))

    def delete(self, key: str) -> None:
        """See Storage."""
        import obstore

        try:
            self._try(obstore.delete, key)
        except NoSuchFile:
            return  # Azure says so, the others do not

    def _try(self, operation: Callable[..., Any], key: str, *args: Any, **kwargs: Any) -> Any:
        place = self.location(key)
        try:
            return operation(self._client(), key, *args, **kwargs)
        except StorageError:
            raise
        except Exception as error:
            # What the client says, without its pages of details; the service's own code where there is one.
            message = str(error).partition("\n\nDebug source")[0]
            code = re.search(r"<Code>(\w+)</Code>", message) or re.search(r"status code: (\d{3} [A-Z][A-Za-z ]+)", message)
            why = code[1] if code else message.strip()[:500]
            if type(error).__name__ in ("PermissionDeniedError", "UnauthenticatedError"):
                raise StorageError(f"{place}: access denied ({why}): check {self._service.credentials}, "
                                   "and what they may do there") from error
            if isinstance(error, FileNotFoundError):
                raise NoSuchFile(f"{place}: no such file or bucket ({why})") from error
            raise StorageError(f"{place}: {why}") from error
