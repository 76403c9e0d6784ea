"""Certificates for tests: an authority, and what it signs."""

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

PEM = serialization.Encoding.PEM


@dataclass(frozen=True)
class Identity:
    certificate: bytes  # PEM
    key: bytes  # PEM

    def write(self, folder: Path) -> tuple[Path, Path]:
        (folder / "certificate.pem").write_bytes(self.certificate)
        (folder / "key.pem").write_bytes(self.key)
        return folder / "certificate.pem", folder / "key.pem"


class Authority:
    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name.from_rfc4514_string("CN=authority")
        self._certificate = self._sign(self._name, self._key.public_key(), is_authority=True)
        self.certificate = self._certificate.public_bytes(PEM)

    def identity(self, name: str) -> Identity:
        key = ec.generate_private_key(ec.SECP256R1())
        signed = self._sign(x509.Name.from_rfc4514_string(f"CN={name}"), key.public_key(), is_authority=False)
        plain = serialization.NoEncryption()
        return Identity(signed.public_bytes(PEM), key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, plain))

    def _sign(self, name: x509.Name, key: ec.EllipticCurvePublicKey, *, is_authority: bool) -> x509.Certificate:
        now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
        local = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        builder = x509.CertificateBuilder().subject_name(name).issuer_name(self._name).public_key(key)
        builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now - day)
        builder = builder.not_valid_after(now + 30 * day)
        builder = builder.add_extension(x509.BasicConstraints(is_authority, None), critical=True)
        builder = builder.add_extension(x509.SubjectAlternativeName(local), critical=False)
        return builder.sign(self._key, hashes.SHA256())
