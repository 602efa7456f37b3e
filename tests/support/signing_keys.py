"""Keys that sign certificates in tests: made here, worth nothing elsewhere."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import pkcs12

__all__ = ["make_key"]


def make_key(folder: Path, password: str = "", kind: str = "ec", name: str = "Northern Lights Academy") -> Path:
    """A PKCS#12 file with a key and a certificate that says so itself. The certificate alone stands beside it as .pem."""
    key = ec.generate_private_key(ec.SECP256R1()) if kind == "ec" else rsa.generate_private_key(65537, 2048)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    usage = x509.KeyUsage(True, True, False, False, False, True, False, False, False)
    certificate = (
        x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=30))
        .add_extension(usage, critical=True).add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256()))
    secret = serialization.BestAvailableEncryption(password.encode()) if password else serialization.NoEncryption()
    path = folder / "issuer.p12"
    path.write_bytes(pkcs12.serialize_key_and_certificates(b"issuer", key, certificate, None, secret))
    path.with_suffix(".pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return path
