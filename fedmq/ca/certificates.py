"""X.509 as values: keys, certificates, requests, and lists of revoked certificates. Pure but for drawing keys.

Owns what a certificate of a federation looks like, and is the one door to X.509 here. Refuses to know files, clocks and
who may have one (see `authority`). The rules, which TLS libraries hold both sides to:

- Keys are ECDSA on P-256 or, where a gateway brings its own, on P-384; signatures are with SHA-256.
- A broker's certificate is for servers alone, every other for clients alone (extended key usage): a gateway that was
  broken into cannot stand in for the broker.
- The CN of a client is its user name at the broker, and stands in topics and in the broker's ACL, where `+`, `#` and
  `/` would mean more than one: only names that `check_name` lets pass are issued. Nothing else of a request is used.
- Serial numbers are random and of 63 bits, so that a gateway's card can have the same one.
"""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from fedmq_broker_config.revocation import name_extension
from fedmq_protocol.topics import check_name

__all__ = [
    "REASONS",
    "Certificate",
    "CertificateError",
    "Certified",
    "Moment",
    "PrivateKey",
    "PublicKey",
    "Revoked",
    "fingerprint",
    "issue",
    "list_number",
    "make_authority",
    "make_request",
    "new_agreement_key",
    "new_key",
    "new_serial",
    "new_signing_key",
    "pem_of",
    "read_agreement_public",
    "read_certificate",
    "read_key",
    "read_request",
    "revocation_list",
    "same_key",
    "to_agreement_public",
    "to_pem",
    "utc",
]

PublicKey: TypeAlias = ec.EllipticCurvePublicKey
PrivateKey: TypeAlias = ec.EllipticCurvePrivateKey
Certificate: TypeAlias = x509.Certificate
Moment: TypeAlias = datetime

SERIAL_BITS = 63

BACKDATED = timedelta(hours=24)
"""A gateway without a clock of its own may be behind, and must not find a new certificate not valid yet."""

LIST_YEARS = 10
"""How long a list of revoked certificates holds. One that has run out stops the plant: OpenSSL, and so Mosquitto, then
refuses every client, and nobody may be there to make another. What a short life would buy, that an old list is noticed,
is not worth that here: the list is pushed to one broker, and numbered."""

REASONS = {
    "unspecified": x509.ReasonFlags.unspecified,
    "key-compromise": x509.ReasonFlags.key_compromise,
    "superseded": x509.ReasonFlags.superseded,
    "affiliation-changed": x509.ReasonFlags.affiliation_changed,
    "cessation-of-operation": x509.ReasonFlags.cessation_of_operation,
}
"""Why a certificate may be revoked, after RFC 5280, section 5.3.1."""


class CertificateError(ValueError):
    """A certificate, a key or a request that cannot be used; its text holds nothing of a key."""


@dataclass(frozen=True, kw_only=True)
class Certified:
    """What a certificate says, as far as anything here asks."""

    name: str
    serial: int
    key: PublicKey
    begins: datetime
    expires: datetime
    hosts: tuple[str, ...]
    certificate: x509.Certificate


@dataclass(frozen=True, kw_only=True)
class Revoked:
    """One line of a list."""

    serial: int
    name: str
    reason: str
    at: datetime


# -- keys -----------------------------------------------------------------------------------------------------------


def new_key() -> ec.EllipticCurvePrivateKey:
    """For TLS."""
    return ec.generate_private_key(ec.SECP256R1())


def new_signing_key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.generate()


def new_agreement_key() -> X25519PrivateKey:
    return X25519PrivateKey.generate()


def new_serial() -> int:
    return secrets.randbelow((1 << SERIAL_BITS) - 1) + 1


def to_pem(thing: ec.EllipticCurvePrivateKey | x509.Certificate | x509.CertificateSigningRequest) -> bytes:
    """A private key comes as PKCS #8 without a passphrase: who may read the file has the key."""
    if isinstance(thing, ec.EllipticCurvePrivateKey):
        return thing.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return thing.public_bytes(Encoding.PEM)


def pem_of(der: bytes) -> bytes:
    """A certificate as TLS gives it, as files have it. Raises CertificateError."""
    try:
        return to_pem(x509.load_der_x509_certificate(der))
    except ValueError:
        raise CertificateError("expected a certificate in DER") from None


def read_key(pem: bytes, where: str) -> ec.EllipticCurvePrivateKey:
    """`where` is the file, for the message. Raises CertificateError."""
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise CertificateError(f"{where}: expected a private key in PEM without a passphrase") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise CertificateError(f"{where}: expected a key on an elliptic curve (P-256), got another kind")
    return key


def to_agreement_public(raw: bytes) -> bytes:
    """A public X25519 key as a file holds it: PEM, SubjectPublicKeyInfo."""
    return X25519PublicKey.from_public_bytes(raw).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def read_agreement_public(pem: bytes, where: str) -> bytes:
    """The 32 bytes of a public X25519 key. Raises CertificateError, also for a private one: it should not be here."""
    if b"PRIVATE KEY" in pem:
        raise CertificateError(
            f"{where}: this is a private key, which should never leave its gateway; give its public part"
            " (agreement.pub of `fedmq gateway request`)"
        )
    try:
        key = load_pem_public_key(pem)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise CertificateError(f"{where}: expected a public key in PEM (agreement.pub)") from None
    if not isinstance(key, X25519PublicKey):
        raise CertificateError(f"{where}: expected an X25519 key, got another kind")
    try:
        new_agreement_key().exchange(key)
    except ValueError:
        # A point of low order: everybody would know the secret that it makes (RFC 7748, section 6.1).
        raise CertificateError(f"{where}: not a key that anybody has drawn: all secrets made with it are 0") from None
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw)


def same_key(one: PublicKey, other: PublicKey) -> bool:
    return _spki(one) == _spki(other)


def _spki(key: PublicKey) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _checked(key: Any, where: str) -> PublicKey:
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1):
        raise CertificateError(f"{where}: expected a key on the curve P-256 or P-384, got another kind")
    return key


# -- requests -------------------------------------------------------------------------------------------------------


def make_request(name: str, key: ec.EllipticCurvePrivateKey) -> bytes:
    """A signing request in PEM: that somebody has the key, and wants this name."""
    subject = _name(check_name(name))
    return to_pem(x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, SHA256()))


def read_request(pem: bytes, name: str, where: str) -> PublicKey:
    """The key of a request that is for `name` and no other. Raises CertificateError."""
    try:
        request = x509.load_pem_x509_csr(pem)
        good = request.is_signature_valid
        wanted = [str(part.value) for part in request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        key = _checked(request.public_key(), where)
    except CertificateError:
        raise
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature):
        raise CertificateError(f"{where}: expected a signing request in PEM (BEGIN CERTIFICATE REQUEST)") from None
    if not good:
        raise CertificateError(f"{where}: not signed by the key that it brings")
    if wanted != [name]:
        raise CertificateError(f"{where}: expected a request for {name!r}, got one for {_listed(wanted)}")
    return key


def _listed(names: Sequence[str]) -> str:
    return ", ".join(repr(name[:80]) for name in names) or "nobody (no CN)"


# -- certificates ---------------------------------------------------------------------------------------------------


def make_authority(
    federation: str, key: ec.EllipticCurvePrivateKey, *, now: datetime, expires: datetime
) -> x509.Certificate:
    """The CA's own certificate. Below it there are no further CAs."""
    # A name with blanks: no client can have it, since `check_name` refuses it.
    subject = _name(f"fedmq CA of {check_name(federation, 'federation')}")
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(new_serial())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(expires)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, SHA256())
    )


def issue(
    name: str,
    key: PublicKey,
    *,
    serial: int,
    hosts: Sequence[str] = (),
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
    now: datetime,
    expires: datetime,
) -> x509.Certificate:
    """A certificate: with `hosts` for a server there, without for a client. Raises CertificateError."""
    if not same_key(authority_key.public_key(), _checked(authority.public_key(), "ca.crt")):
        raise CertificateError("ca.key is not the key of ca.crt: put back the two that belong together")
    if expires > authority.not_valid_after_utc:
        raise CertificateError(
            f"the CA's own certificate ends on {authority.not_valid_after_utc:%Y-%m-%d}, before the {expires:%Y-%m-%d}"
            " that was asked for; ask for fewer days, or make a new CA"
        )
    purpose = ExtendedKeyUsageOID.SERVER_AUTH if hosts else ExtendedKeyUsageOID.CLIENT_AUTH
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(check_name(name)))
        .issuer_name(authority.subject)
        .public_key(key)
        .serial_number(serial)
        .not_valid_before(max(now - BACKDATED, authority.not_valid_before_utc))
        .not_valid_after(expires)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(_issuer_key(authority), critical=False)
    )
    if hosts:
        builder = builder.add_extension(x509.SubjectAlternativeName([_host(host) for host in hosts]), critical=False)
    return builder.sign(authority_key, SHA256())


def read_certificate(
    pem: bytes, where: str, *, authority: x509.Certificate | None = None, any_key: bool = False
) -> Certified:
    """With `authority`, only one that it has issued; with `any_key`, also of kinds that are not issued here. Dates are
    the caller's to check. Raises CertificateError."""
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        names = [str(part.value) for part in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        key = certificate.public_key()
        hosts = _hosts(certificate)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise CertificateError(f"{where}: expected a certificate in PEM (BEGIN CERTIFICATE)") from None
    if authority is not None:
        try:
            certificate.verify_directly_issued_by(authority)
        except (ValueError, TypeError, InvalidSignature):
            raise CertificateError(f"{where}: not issued by this federation's CA") from None
    if len(names) != 1:
        raise CertificateError(f"{where}: expected a certificate of one name, got {_listed(names)}")
    return Certified(
        name=names[0],
        serial=certificate.serial_number,
        key=key if any_key else _checked(key, where),  # type: ignore[arg-type]
        begins=certificate.not_valid_before_utc,
        expires=certificate.not_valid_after_utc,
        hosts=hosts,
        certificate=certificate,
    )


def fingerprint(certificate: x509.Certificate) -> bytes:
    """32 bytes: SHA-256 of the certificate."""
    return certificate.fingerprint(SHA256())


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _usage(**given: bool) -> x509.KeyUsage:
    kinds = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    return x509.KeyUsage(**{kind: given.get(kind, False) for kind in kinds})


def _issuer_key(authority: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    own = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)


def _host(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        pass
    labels = text.rstrip(".").split(".")
    if not all(0 < len(label) <= 63 and label.isascii() and label.replace("-", "").isalnum() for label in labels):
        raise CertificateError(f"expected a host name or an IP address of the server, got {text[:80]!r}")
    return x509.DNSName(text.rstrip("."))


def _hosts(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return (*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress)))


# -- lists of revoked certificates ----------------------------------------------------------------------------------


def revocation_list(
    revoked: Iterable[Revoked],
    *,
    before: bytes | None,
    replaced: Collection[str] = (),
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
    now: datetime,
) -> bytes:
    """The list behind `before` (PEM; None for the first), with the next number. `replaced` are names that are in force
    again by a newer certificate: the old one is out, and the name is not."""
    last = None if before is None else _read_list(before)
    # Backdated for the clocks of others, and never older than the list before, though this clock may have gone back.
    begins = (now - timedelta(hours=1)).replace(microsecond=0)
    if last is not None:
        begins = max(begins, last.last_update_utc)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority.subject)
        .last_update(begins)
        .next_update(begins + timedelta(days=LIST_YEARS * 365))
        .add_extension(x509.CRLNumber(1 if last is None else _number(last) + 1), critical=False)
        .add_extension(_issuer_key(authority), critical=False)
    )
    for one in revoked:
        reason = "superseded" if one.name in replaced else one.reason
        entry = x509.RevokedCertificateBuilder().serial_number(one.serial).revocation_date(one.at)
        if reason != "unspecified":  # RFC 5280, section 5.3.1: then there is to be no reason
            entry = entry.add_extension(x509.CRLReason(REASONS[reason]), critical=False)
        # Mosquitto knows clients by name: by this the broker's guard can cut off one that is connected.
        entry = entry.add_extension(name_extension(one.name), critical=False)
        builder = builder.add_revoked_certificate(entry.build())
    return builder.sign(authority_key, SHA256()).public_bytes(Encoding.PEM)


def list_number(pem: bytes) -> int:
    """Raises CertificateError."""
    return _number(_read_list(pem))


def _read_list(pem: bytes) -> x509.CertificateRevocationList:
    try:
        return x509.load_pem_x509_crl(pem)
    except ValueError:
        raise CertificateError(
            "revoked.crl: expected a list of revoked certificates in PEM; put back the copy that the broker has"
        ) from None


def _number(one: x509.CertificateRevocationList) -> int:
    return one.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number


def utc(unix: float) -> datetime:
    """As certificates hold times: in whole seconds."""
    return datetime.fromtimestamp(int(unix), UTC)
