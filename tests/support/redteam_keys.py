"""Certificates as an attacker needs them: valid, out of date, of another authority, revoked, or with no name at all.

Made by hand, so that what `fedmq ca` would never issue can be tried on the broker all the same.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass(frozen=True, kw_only=True)
class Identity:
    """A certificate and its key, as files."""

    name: str
    cert_file: Path
    key_file: Path
    serial: int


class Issuer:
    """A certificate authority below one directory, with a list of what it has revoked."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _named("plant authority")
        self._revoked: list[int] = []
        self._issued = 0
        now = datetime.now(UTC)
        cert = (
            x509.CertificateBuilder()
            .subject_name(self._name)
            .issuer_name(self._name)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=3))
            .not_valid_after(now + timedelta(days=3))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        self.ca_file = directory / "ca.crt"
        self.ca_file.write_bytes(cert.public_bytes(serialization.Encoding.PEM))
        self.crl_file = directory / "revoked.crl"
        self._write_crl()

    def issue(self, name: str, *, address: str | None = None, begins_days: float = -1, days: float = 2) -> Identity:
        """A certificate for a CN, whatever that is; with an address, for a server there."""
        self._issued += 1
        key = ec.generate_private_key(ec.SECP256R1())
        begins = datetime.now(UTC) + timedelta(days=begins_days)
        builder = (
            x509.CertificateBuilder()
            .subject_name(_named(name))
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begins)
            .not_valid_after(begins + timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs=False), critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        if address is not None:
            names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
            builder = builder.add_extension(names, critical=False)
        cert = builder.sign(self._key, hashes.SHA256())
        # A name may be one that no file can have.
        stem = self._directory / f"{self._issued:03}"
        identity = Identity(
            name=name,
            cert_file=stem.with_suffix(".crt"),
            key_file=stem.with_suffix(".key"),
            serial=cert.serial_number,
        )
        identity.cert_file.write_bytes(cert.public_bytes(serialization.Encoding.PEM))
        identity.key_file.touch(mode=0o600)
        identity.key_file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return identity

    def revoke(self, identity: Identity) -> None:
        """On the list from now on. A broker that runs must be told to read it."""
        self._revoked.append(identity.serial)
        self._write_crl()

    def _write_crl(self) -> None:
        now = datetime.now(UTC)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._name)
            .last_update(now - timedelta(hours=1))
            .next_update(now + timedelta(days=2))
        )
        for serial in self._revoked:
            one = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now - timedelta(hours=1))
            builder = builder.add_revoked_certificate(one.build())
        crl = builder.sign(self._key, hashes.SHA256())
        fresh = self.crl_file.with_suffix(".new")
        fresh.write_bytes(crl.public_bytes(serialization.Encoding.PEM))
        fresh.replace(self.crl_file)


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
