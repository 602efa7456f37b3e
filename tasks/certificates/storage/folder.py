"""A local folder, with links that the application signs and a web server checks."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import shutil
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from urllib.parse import quote, urlencode

from celery_jobqueue.db.errors import ConfigurationError
from tasks.certificates.storage.base import LinkRefused, NoSuchFile, StorageError, checked_key, checked_ttl

__all__ = ["Folder"]

_SHORTEST_SECRET = 32  # characters: 128 bits in hexadecimal digits


class Folder:
    """Files below a folder.

    links: address of the web application's route for files, where it has one; without it links are file:// URLs.
    """

    def __init__(self, root: Path, links: str | None = None) -> None:
        self._root, self._links = root.absolute(), links.rstrip("/") if links else None
        self._uri = self._root.as_uri()
        if self._links:
            if not self._links.startswith(("https://", "http://")):
                raise ConfigurationError(f"STORAGE_URL: links={links} must begin with https:// or http://")
            secret = os.environ.get("STORAGE_LINK_SECRET", "").strip()
            if len(secret) < _SHORTEST_SECRET:
                raise ConfigurationError(f"STORAGE_URL has links=…: set STORAGE_LINK_SECRET to at least {_SHORTEST_SECRET} "
                                         "random characters, the same for workers and web (openssl rand -hex 32)")
            self._secret = secret.encode()

    def _path(self, key: str) -> Path:
        return self._root / checked_key(key)

    def put(self, key: str, content: bytes | Path, content_type: str) -> None:
        """A reader sees the old file or the new one, and after a power cut the name leads to a whole file."""
        path = self._path(key)
        try:
            _make_folder(path.parent)
            part = path.with_name(f".{secrets.token_hex(8)}.part")
            try:
                with part.open("xb") as file:
                    if isinstance(content, Path):
                        with content.open("rb") as source:
                            shutil.copyfileobj(source, file, 1 << 20)
                    else:
                        file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                part.chmod(0o644)  # whatever the umask
                part.replace(path)
                _sync(path.parent)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
        except OSError as error:
            raise StorageError(f"{path} could not be written: {error}") from error

    def exists(self, key: str) -> bool:
        """See Storage."""
        try:
            return self._path(key).is_file()
        except OSError as error:
            raise StorageError(f"{key} could not be looked for: {error}") from error

    def open(self, key: str) -> bytes:
        """See Storage."""
        try:
            return self._path(key).read_bytes()
        except OSError as error:
            kind = NoSuchFile if isinstance(error, FileNotFoundError) else StorageError
            raise kind(f"{key} could not be read: {error}") from error

    def location(self, key: str) -> str:
        """See Storage."""
        return f"{self._uri}/{quote(checked_key(key))}"

    def url(self, key: str, ttl: timedelta = timedelta(hours=1)) -> str:
        """A link to the web application's route, signed and with its end; without `links` the file's own URL."""
        checked_ttl(ttl)
        if self._links is None:
            return self.location(key)
        expires = int(time.time() + ttl.total_seconds())
        query = urlencode({"expires": expires, "signature": self._signature(key, expires)})
        return f"{self._links}/{quote(checked_key(key))}?{query}"

    def linked(self, key: str, query: Mapping[str, str]) -> Path:
        """The file that a link leads to: for the route that `links` names.

        key: the path below the route, unquoted. query: the link's parameters. Raises LinkRefused, NoSuchFile.
        """
        if self._links is None:
            raise ConfigurationError("STORAGE_URL names no route for links: file:///folder?links=https://app.example.org/files")
        expires, signature = query.get("expires", ""), query.get("signature", "")
        # One moment is written in one way; the signature is checked first, so that a forger learns nothing but "no".
        plain = expires.isascii() and expires.isdigit() and len(expires) <= 12 and not expires.startswith("0")
        if not plain or not hmac.compare_digest(self._signature(key, int(expires)).encode(), signature.encode(errors="replace")):
            raise LinkRefused("this link is not valid: it was changed, or not made by this application")
        if time.time() >= int(expires):
            raise LinkRefused("this link has expired: ask for a new one")
        path = self._path(key)
        if not path.is_file():
            raise NoSuchFile(f"{key} is not there")
        return path

    def delete(self, key: str) -> None:
        """See Storage."""
        try:
            self._path(key).unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"{key} could not be deleted: {error}") from error

    def _signature(self, key: str, expires: int) -> str:
        return hmac.new(self._secret, f"GET\n{expires}\n{key}".encode(errors="surrogatepass"), hashlib.sha256).hexdigest()


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
