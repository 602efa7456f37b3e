"""STORAGE_URL: which storage, and where."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from celery_jobqueue.db import embedded
from celery_jobqueue.db.errors import ConfigurationError
from tasks.certificates.storage.base import Storage, checked_key
from tasks.certificates.storage.folder import Folder
from tasks.certificates.storage.objects import azure, gcs, s3

__all__ = ["linked_file", "storage_from_url"]

_FORMS = {
    "file": ("file:///absolute/path?links=https://…", {"links"}),
    "s3": ("s3://bucket/prefix?endpoint=https://…&region=…", {"endpoint", "region"}),
    "gs": ("gs://bucket/prefix", set[str]()),
    "az": ("az://container/prefix?account=…&endpoint=https://…", {"account", "endpoint"}),
}
_CREDENTIALS = {"s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY", "gs": "GOOGLE_SERVICE_ACCOUNT (a file)",
                "az": "AZURE_STORAGE_ACCOUNT_KEY"}


def storage_from_url(url: str | None = None) -> Storage:
    """The storage of this URL, else of STORAGE_URL, else the local folder. Raises ConfigurationError naming the fix."""
    url = url or os.environ.get("STORAGE_URL", "").strip() or (embedded.home().parent / "certificates").as_uri()
    parts = urlsplit(url)
    if parts.scheme not in _FORMS:
        raise ConfigurationError(f"STORAGE_URL begins with {parts.scheme or 'nothing'}://: use file://, s3://, gs:// or az://")
    form, known = _FORMS[parts.scheme]
    if "@" in parts.netloc:
        place = _CREDENTIALS.get(parts.scheme, "the environment")
        raise ConfigurationError(f"STORAGE_URL: credentials belong in {place}, not in it")
    options = dict(parse_qsl(parts.query))
    unknown = sorted(set(options) - known)
    if unknown:
        raise ConfigurationError(f"STORAGE_URL: write {form} (unknown: {unknown[0]})")
    if parts.scheme == "file":
        return _folder(parts, options, url)
    if not parts.netloc:
        what = "container" if parts.scheme == "az" else "bucket"
        raise ConfigurationError(f"STORAGE_URL: write {form} (the {what} is missing)")
    endpoint, prefix = options.get("endpoint"), unquote(parts.path).strip("/")
    if endpoint and not endpoint.startswith(("https://", "http://")):
        raise ConfigurationError(f"STORAGE_URL: endpoint={endpoint} must begin with https:// or http://")
    try:
        prefix = checked_key(prefix) if prefix else ""
    except ValueError as error:
        raise ConfigurationError(f"STORAGE_URL: {error}") from None
    match parts.scheme:
        case "s3":
            return s3(parts.netloc, prefix, endpoint, options.get("region"))
        case "gs":
            return gcs(parts.netloc, prefix)
        case _:
            return azure(parts.netloc, prefix, options.get("account"), endpoint)


def linked_file(key: str, query: Mapping[str, str], url: str | None = None) -> Path:
    """The file that a signed link of a local folder leads to; for the web route that STORAGE_URL's `links` names.

    key: the path below the route, unquoted. query: the link's parameters. Raises LinkRefused for a link that was changed
    or has expired, NoSuchFile, and ConfigurationError where STORAGE_URL has no such links.
    """
    storage = storage_from_url(url)
    if not isinstance(storage, Folder):
        raise ConfigurationError("STORAGE_URL is an object storage, which serves its links itself")
    return storage.linked(key, query)


def _folder(parts: SplitResult, options: Mapping[str, str], url: str) -> Folder:
    if parts.netloc not in ("", "localhost") or not parts.path:
        raise ConfigurationError(f"STORAGE_URL={url}: a folder is written file:///absolute/path")
    return Folder(Path(unquote(parts.path)), options.get("links"))
