"""Lists of revoked certificates as values: bytes and the time in, who is out. Pure.

Owns what makes a list fit to be put in Mosquitto's hands, for Mosquitto asks little: signed by one of the CAs that the
broker trusts, in force now, no older than the list before it, whole and bounded. OpenSSL refuses *every* client while
a list is not yet or no longer in force, so such a one is refused here, and the one before stays.

Refuses to know files, sockets and Mosquitto (see `service`).

A list holds serials (RFC 5280, section 5), and Mosquitto knows clients by name. So the CA puts the name beside the
serial, under the same signature: as an extension of the list's entry (`name_extension`), not critical, so that others
pass over it. An entry whose reason is `superseded` says that its name has a newer certificate: who connected with the
old one is cut off, and the name stays welcome. Any other reason, and none, shuts the name out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from fedmq_protocol.topics import check_name

__all__ = [
    "MAX_LIST_BYTES",
    "NAME_OID",
    "RevocationError",
    "Revocations",
    "Revoked",
    "name_extension",
    "read_revocations",
]

MAX_LIST_BYTES = 8 << 20
"""About fifty thousand entries with names."""

NAME_OID = x509.ObjectIdentifier("2.25.288094313837124417215873264182645918321")
"""The name of a revoked certificate's owner, a UTF8String; an arc of its own by a UUID (ITU-T X.667)."""

_UTF8_STRING = 0x0C
_AHEAD = timedelta(minutes=5)
"""What the CA's clock may well be ahead of ours. OpenSSL allows nothing: such a list is taken when it is time."""

_BLOCK = re.compile(rb"-----BEGIN X509 CRL-----.+?-----END X509 CRL-----", re.DOTALL)


class RevocationError(ValueError):
    """A list that must not be put in force: what was expected, what came."""


@dataclass(frozen=True, kw_only=True)
class Revoked:
    """One entry."""

    serial: int
    name: str | None
    """None where the list does not say."""
    replaced: bool
    """Its name has a newer certificate."""

    def __str__(self) -> str:
        return f"{self.name or 'nobody named'} (serial {self.serial:x})"


@dataclass(frozen=True, kw_only=True)
class _Head:
    """What tells one list of a CA from the next."""

    issuer: bytes
    digest: bytes
    number: int | None
    begins: datetime
    expires: datetime


@dataclass(frozen=True, kw_only=True)
class Revocations:
    """The lists of one file, one for each CA."""

    data: bytes
    """The file, as it was read."""
    heads: tuple[_Head, ...]
    entries: frozenset[Revoked]

    @property
    def expires(self) -> datetime:
        """When Mosquitto begins to turn everybody away, unless a newer list has come."""
        return min(head.expires for head in self.heads)

    @property
    def shut_out(self) -> frozenset[str]:
        """Names that may do nothing at the broker."""
        return frozenset(entry.name for entry in self.entries if entry.name is not None and not entry.replaced)


def read_revocations(
    data: bytes, authorities: bytes, now: datetime | None, before: Revocations | None = None
) -> Revocations:
    """The lists of a PEM file, checked against the CAs (PEM) and the lists in force. Raises RevocationError.

    Without `now`, whether they hold at this time is not looked at.
    """
    if len(data) > MAX_LIST_BYTES:
        raise RevocationError(f"expected at most {MAX_LIST_BYTES:,} bytes, got more")
    blocks = _BLOCK.findall(data)
    if not blocks:
        raise RevocationError("expected a list of revoked certificates in PEM (BEGIN X509 CRL), found none")
    try:
        trusted = x509.load_pem_x509_certificates(authorities)
        lists = [x509.load_pem_x509_crl(block) for block in blocks]
        heads = tuple(_head(one, trusted, now) for one in lists)
        entries = frozenset(entry for one in lists for entry in _entries(one))
    except RevocationError:
        raise
    except (ValueError, UnsupportedAlgorithm, InvalidSignature) as error:
        # ValueError is all that the parser promises; its text names no content of ours.
        raise RevocationError(f"not to be read as lists and CAs in PEM: {error}") from None
    if len({head.issuer for head in heads}) != len(heads):
        raise RevocationError("expected one list of each CA, got two of the same one")
    for old in before.heads if before is not None else ():
        _check_follows(old, heads, trusted)
    return Revocations(data=data, heads=heads, entries=entries)


def name_extension(name: str) -> x509.UnrecognizedExtension:
    """What a CA adds to an entry of its list, not critical: `RevokedCertificateBuilder.add_extension(…, False)`."""
    text = check_name(name).encode()
    return x509.UnrecognizedExtension(NAME_OID, bytes([_UTF8_STRING, len(text)]) + text)


def _head(one: x509.CertificateRevocationList, trusted: list[x509.Certificate], now: datetime | None) -> _Head:
    said = one.issuer.rfc4514_string()
    signers = [authority for authority in trusted if authority.subject == one.issuer]
    if not signers:
        raise RevocationError(f"the list of {said!r} is of no CA in ca_file")
    if not any(one.is_signature_valid(signer.public_key()) for signer in signers):  # type: ignore[arg-type]
        raise RevocationError(f"the list of {said!r} is not signed by that CA of ca_file")
    for extension in one.extensions:
        if extension.critical or isinstance(extension.value, x509.DeltaCRLIndicator):
            raise RevocationError(f"the list of {said!r} is in part only ({extension.oid.dotted_string}); expected all")
    begins, expires = one.last_update_utc, one.next_update_utc
    if expires is None:
        raise RevocationError(f"the list of {said!r} does not say until when it holds")
    if now is not None and begins > now:
        again = "; it is looked at again" if begins - now < _AHEAD else "; are the clocks right?"
        raise RevocationError(f"the list of {said!r} holds from {begins:%Y-%m-%d %H:%M:%S} UTC only{again}")
    if now is not None and expires <= now:
        raise RevocationError(
            f"the list of {said!r} has run out on {expires:%Y-%m-%d %H:%M:%S} UTC: with it Mosquitto would turn"
            " everybody away; make a new one"
        )
    return _Head(
        issuer=one.issuer.public_bytes(),
        digest=one.fingerprint(hashes.SHA256()),
        number=_number(one),
        begins=begins,
        expires=expires,
    )


def _number(one: x509.CertificateRevocationList) -> int | None:
    try:
        return one.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except x509.ExtensionNotFound:
        return None


def _check_follows(old: _Head, heads: tuple[_Head, ...], trusted: list[x509.Certificate]) -> None:
    new = next((head for head in heads if head.issuer == old.issuer), None)
    if new is None:
        if any(authority.subject.public_bytes() == old.issuer for authority in trusted):
            raise RevocationError(
                "a CA that is still in ca_file had a list and has none here: nobody of it could connect"
            )
        return
    if new.digest == old.digest:
        return
    if new.number is not None and old.number is not None and new.number <= old.number:
        raise RevocationError(f"expected a number above {old.number}, that of the list in force, got {new.number}")
    if new.begins < old.begins or (new.number is None and old.number is not None):
        raise RevocationError(
            f"expected a list after that in force, of {old.begins:%Y-%m-%d %H:%M:%S} UTC with number {old.number},"
            f" got one of {new.begins:%Y-%m-%d %H:%M:%S} with number {new.number}"
        )


def _entries(one: x509.CertificateRevocationList) -> Iterator[Revoked]:
    for entry in one:
        reason = next((e.value for e in entry.extensions if isinstance(e.value, x509.CRLReason)), None)
        yield Revoked(
            serial=entry.serial_number,
            name=_name(entry),
            replaced=reason is not None and reason.reason is x509.ReasonFlags.superseded,
        )


def _name(entry: x509.RevokedCertificate) -> str | None:
    for extension in entry.extensions:
        value = extension.value
        if isinstance(value, x509.UnrecognizedExtension) and value.oid == NAME_OID:
            raw = value.value
            if len(raw) < 2 or raw[0] != _UTF8_STRING or raw[1] != len(raw) - 2:
                raise RevocationError(f"serial {entry.serial_number:x}: its name is not a short UTF8String")
            return check_name(raw[2:].decode(), f"serial {entry.serial_number:x}: name")
    return None
