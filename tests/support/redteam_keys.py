"""Identities as an attacker has them: enrolled like anybody's, or such as `fedmq ca` would never issue.

The federation's own are made by the certificate authority as a plant uses it. The others are signed by hand with its
key, as of an authority that was careless: out of date, or with a name that is a pattern.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from fedmq_protocol import identity
from fedmq_protocol.signing import CoordinatorSeals, GatewaySeals
from processes import FEDERATION

from fedmq.ca.authority import CA_KEY, Authority
from fedmq.ca.certificates import read_key
from fedmq.ca.records import Kind

DAYS = 30


@dataclass(frozen=True, kw_only=True)
class Identity:
    """A certificate and its key, as files; `folder` is the whole identity, where there is one."""

    name: str
    cert_file: Path
    key_file: Path
    folder: Path | None = None

    def seals(self, nonce: bytes, name: str | None = None) -> GatewaySeals:
        """Of one start of this gateway."""
        assert self.folder is not None
        return GatewaySeals(
            federation=FEDERATION,
            gateway=name or self.name,
            nonce=nonce,
            chain=identity.read_chain(self.folder, FEDERATION),
            card=identity.read_card_file(self.folder),
            agreement=identity.read_agreement(self.folder),
            unix=lambda: datetime.now(UTC).timestamp(),
        )


class Keys:
    """A federation's authority below one directory, and what it has issued."""

    def __init__(self, directory: Path) -> None:
        self.authority = Authority.create(directory / "ca", federation=FEDERATION, hosts=("127.0.0.1",), years=5)
        self.ca_file = directory / "ca" / identity.CA_CERTIFICATE
        self.crl_file = directory / "ca" / identity.REVOKED
        self.coordinator_folder = directory / "ca" / "coordinator"
        self.broker_cert = directory / "ca" / "broker" / "broker.crt"
        self.broker_key = directory / "ca" / "broker" / "broker.key"
        self._directory = directory
        self._issued: dict[str, Identity] = {}
        self._forged = 0

    def issue(self, name: str, kind: Kind = "gateway") -> Identity:
        """The identity of a name; the same one again where it has one."""
        if name not in self._issued:
            folder = self.authority.issue(name, kind, days=DAYS)
            self._issued[name] = Identity(
                name=name,
                cert_file=folder / identity.CERTIFICATE,
                key_file=folder / identity.CERTIFICATE_KEY,
                folder=folder,
            )
        return self._issued[name]

    def revoke(self, name: str) -> None:
        """On the list from now on. Broker and coordinator look at it by themselves, or not at all."""
        self.authority.revoke(name, "key-compromise")

    def coordinator_seals(self) -> CoordinatorSeals:
        """With the coordinator's own keys: of one that has turned, or whose machine was taken."""
        folder = self.coordinator_folder
        return CoordinatorSeals(
            federation=FEDERATION,
            chain=identity.read_chain(folder, FEDERATION),
            signing=identity.read_signing(folder),
            agreement=identity.read_agreement(folder),
            unix=lambda: datetime.now(UTC).timestamp(),
        )

    def forge(self, name: str, *, begins_days: float = -1, days: float = 2) -> Identity:
        """A certificate that the authority signs for any CN and any time."""
        self._forged += 1
        key = ec.generate_private_key(ec.SECP256R1())
        begins = datetime.now(UTC) + timedelta(days=begins_days)
        signer = read_key((self._directory / "ca" / CA_KEY).read_bytes(), CA_KEY)
        cert = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(self.authority.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begins)
            .not_valid_after(begins + timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
            .sign(signer, hashes.SHA256())
        )
        # A name may be one that no file can have.
        stem = self._directory / f"forged-{self._forged:03}"
        made = Identity(name=name, cert_file=stem.with_suffix(".crt"), key_file=stem.with_suffix(".key"))
        made.cert_file.write_bytes(cert.public_bytes(serialization.Encoding.PEM))
        made.key_file.touch(mode=0o600)
        made.key_file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return made
