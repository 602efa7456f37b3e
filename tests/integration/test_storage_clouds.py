"""Google Cloud Storage and Azure, as far as this machine can tell.

Google's: no emulator that can be had speaks the XML API that obstore uses (fake-gcs-server and gcp-storage-emulator refuse its
PUT or HEAD). That API is S3's but for the credentials, so an S3-compatible server without credentials plays Google; links are
checked against Google's published algorithm. Azure's emulator, Azurite, comes from npm: `make clouds` runs the same behaviour
on it (tests/clouds/azurite.py); here its links are checked against Azure's published algorithm.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from tasks.certificates.storage import StorageError, storage_from_url
from tests.support.s3 import S3, s3_server
from tests.support.storages import keeps_files, refuses_key

KEY = "events/42/Zoë 1.pdf"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """A server of the XML API that asks nobody who he is."""
    with s3_server(tmp_path_factory.mktemp("gcs"), checks=False) as running:
        yield running


@pytest.fixture
def account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A service account's file that needs no token."""
    for name in ("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SERVICE_ACCOUNT_KEY", "GOOGLE_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    file = tmp_path / "account.json"
    file.write_text(json.dumps({"disable_oauth": True, "client_email": "", "private_key": "", "private_key_id": ""}))
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(file))
    return file


def test_google_keeps_files(server: S3, account: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GOOGLE_BASE_URL", f"http://127.0.0.1:{server.port}")
    storage = storage_from_url("gs://certificates/pre%20fix")
    keeps_files(storage, KEY)
    refuses_key(storage, "../outside")
    assert storage.location(KEY) == f"gs://certificates/pre fix/{KEY}"
    big = tmp_path / "all.zip"
    big.write_bytes(b"0123456789abc" * 1_000_000)
    storage.put("all.zip", big, "application/zip")
    assert (server.bucket / "pre fix" / "all.zip").read_bytes() == big.read_bytes()
    with pytest.raises(StorageError, match=r"^gs://nowhere/a: no such file or bucket"):
        storage_from_url("gs://nowhere").put("a", b"x", "text/plain")


def test_google_can_check_our_links(account: Path) -> None:
    """cloud.google.com/storage/docs/authentication/signatures: what is signed, and how."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    account.write_text(json.dumps({"type": "service_account", "client_email": "a@b.example.org", "private_key": pem.decode(),
                                   "private_key_id": "1"}))
    link = urlsplit(storage_from_url("gs://certificates/pre%20fix").url(KEY, timedelta(minutes=5)))
    assert (link.scheme, link.netloc, unquote(link.path)) == ("https", "storage.googleapis.com", f"/certificates/pre fix/{KEY}")
    query = dict(parse_qsl(link.query))
    signature = bytes.fromhex(query.pop("X-Goog-Signature"))
    assert query["X-Goog-Expires"] == "300"
    asked = "\n".join(["GET", link.path, urlencode(sorted(query.items())), f"host:{link.netloc}", "", "host", "UNSIGNED-PAYLOAD"])
    scope = query["X-Goog-Credential"].partition("/")[2]
    text = "\n".join(["GOOG4-RSA-SHA256", query["X-Goog-Date"], scope, hashlib.sha256(asked.encode()).hexdigest()])
    key.public_key().verify(signature, text.encode(), padding.PKCS1v15(), hashes.SHA256())


def test_azure_can_check_our_links(monkeypatch: pytest.MonkeyPatch) -> None:
    """learn.microsoft.com/rest/api/storageservices/create-service-sas: what is signed since version 2020-12-06."""
    secret = b"0123456789abcdef" * 4
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", base64.b64encode(secret).decode())
    storage = storage_from_url("az://certificates/prefix?account=mine")
    assert storage.location(KEY) == f"az://certificates/prefix/{KEY}"
    link = urlsplit(storage.url("events/42/A-1.pdf", timedelta(minutes=5)))
    assert (link.scheme, link.netloc) == ("https", "mine.blob.core.windows.net")
    assert link.path == "/certificates/prefix/events/42/A-1.pdf"
    query = dict(parse_qsl(link.query))
    assert query["sp"] == "r"
    fields = [query["sp"], query["st"], query["se"], f"/blob/mine{link.path}", "", "", "", query["sv"], query["sr"], *[""] * 7]
    signed = hmac.new(secret, "\n".join(fields).encode(), hashlib.sha256).digest()
    assert query["sig"] == base64.b64encode(signed).decode()
    # Quoted names would get a signature that Azure refuses.
    with pytest.raises(ValueError, match="for links on Azure use letters, digits"):
        storage.url(KEY)
