"""A signed certificate, checked by Poppler's pdfsig, which shares no code with what signed it."""

from __future__ import annotations

from pathlib import Path

import pytest

from celery_jobqueue.db.errors import ConfigurationError
from tasks.certificates.signing import Signer, signer_from_environment
from tests.support.certificates import image_of, rendered, text_of
from tests.support.poppler import needs, poppler
from tests.support.signing_keys import make_key


@needs("pdfsig")
@pytest.mark.parametrize("kind", ["ec", "rsa"])
def test_an_independent_reader_finds_the_signature_valid(kind: str, tmp_path: Path) -> None:
    pdf = rendered("Zoë محمد 山田")
    signed = Signer(make_key(tmp_path, "secret", kind), "secret").sign(pdf, reason="Issued by us")
    report = poppler("pdfsig", signed, "-nocert")
    assert "Signature is Valid." in report
    assert "Signer Certificate Common Name: Northern Lights Academy" in report
    assert "Total document signed" in report
    assert signed.startswith(pdf)
    assert text_of(signed) == text_of(pdf)
    assert image_of(signed, 0.5).tobytes() == image_of(pdf, 0.5).tobytes()


@needs("pdfsig")
def test_a_changed_file_is_found_out(tmp_path: Path) -> None:
    pdf = rendered("Ada")
    signed = Signer(make_key(tmp_path), "").sign(pdf, reason="Issued by us")
    at = signed.index(b"MediaBox") + 20
    report = poppler("pdfsig", signed[:at] + bytes([signed[at] ^ 1]) + signed[at + 1:], "-nocert")
    assert "Signature is Valid." not in report
    assert "Signature" in report


def test_what_is_signed_already_is_not_signed_again(tmp_path: Path) -> None:
    first, other = Signer(make_key(tmp_path), ""), Signer(make_key(tmp_path), "")
    pdf = rendered("Ada")
    signed = first.sign(pdf, reason="Issued by us")
    assert first.sign(pdf, reason="Issued by us") != signed  # the time, the random number
    assert first.sign(pdf, reason="Issued by us", before=signed) == signed
    assert other.sign(pdf, reason="Issued by us", before=signed) != signed
    assert first.sign(rendered("Eve"), reason="Issued by us", before=signed) != signed


def test_the_key_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CERTIFICATE_SIGNING_KEY", raising=False)
    assert signer_from_environment() is None
    monkeypatch.setenv("CERTIFICATE_SIGNING_KEY", str(make_key(tmp_path, "secret")))
    monkeypatch.setenv("CERTIFICATE_SIGNING_PASSWORD", "secret")
    signer = signer_from_environment()
    assert signer is not None
    assert b"/ByteRange" in signer.sign(rendered("Ada"), reason="Issued by us")


@pytest.mark.parametrize(("name", "password", "message"), [
    ("missing.p12", "", "cannot be read: No such file"),
    ("issuer.p12", "wrong", "is no PKCS#12 file that CERTIFICATE_SIGNING_PASSWORD opens"),
    ("issuer.p12", "", "is no PKCS#12 file that CERTIFICATE_SIGNING_PASSWORD opens"),
    ("issuer.pem", "", "is no PKCS#12 file"),
])
def test_a_key_that_cannot_be_used_says_why(name: str, password: str, message: str, tmp_path: Path) -> None:
    make_key(tmp_path, "secret")
    with pytest.raises(ConfigurationError, match=r"^CERTIFICATE_SIGNING_KEY") as caught:
        Signer(tmp_path / name, password)
    assert message in str(caught.value)
