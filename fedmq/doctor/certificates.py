"""Certificates and revocation lists on disk: dates, name, key and signature. Values and the time in, findings out.

What a TLS library would only say as "handshake failure" is told apart here, before anybody connects.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509.oid import NameOID

from fedmq.doctor.findings import Finding, failed, ok, warned

__all__ = [
    "check_certificate",
    "check_dates",
    "check_names",
    "check_revoked",
    "common_name",
    "describe",
    "read_certificates",
    "read_key",
]

SOON = timedelta(days=30)
SOON_CRL = timedelta(days=7)


def check_certificate(
    what: str, certificate: Path, key: Path, authorities: Path | None, *, name: str | None, now: datetime
) -> Iterator[Finding]:
    """The certificate of a program: dates, its name, its key, and who signed it.

    `name`: what its CN must be, None where any may be. `authorities` is the file of the CAs, None for those of the
    system, which are not looked at.
    """
    chain = read_certificates(certificate)
    if isinstance(chain, str):
        yield failed(what, chain, "have it issued again: fedmq ca issue")
        return
    own = chain[0]
    yield check_dates(what, own, now)
    if name is not None:
        said = common_name(own)
        if said == name:
            yield ok(f"{what}'s name", f"CN {said}")
        else:
            yield failed(
                f"{what}'s name",
                f"CN is {said!r}, the settings' name is {name!r}: the broker lets it write under the former only",
                f"correct the name in the settings, or have a certificate issued for {name}",
            )
    yield _check_key(f"{what}'s key", own, key)
    if authorities is not None:
        yield from _check_signature(what, chain, authorities, now)


def check_dates(what: str, certificate: x509.Certificate, now: datetime) -> Finding:
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now < begins:
        return failed(
            what,
            f"is not valid before {_day(begins)}, and here it is {_day(now)}: most likely the clock here is wrong",
            "set the clock (timedatectl), and let it follow a time server",
        )
    if now > ends:
        return failed(
            what, f"has expired on {_day(ends)} (here it is {_day(now)})", "have it issued again, or set the clock"
        )
    if ends - now < SOON:
        return warned(what, f"expires on {_day(ends)}, in {(ends - now).days} days", "have it issued again in time")
    return ok(what, f"{describe(certificate)}, until {_day(ends)}")


def check_names(what: str, certificate: x509.Certificate) -> Finding:
    """A broker's certificate says under which names and addresses it can be reached: clients look at nothing else."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return failed(
            f"{what}'s names",
            "it has no subjectAltName: every client refuses it",
            "have it issued for the broker's host name and address",
        )
    told = [str(name) for name in names.get_values_for_type(x509.DNSName)]
    told += [str(address) for address in names.get_values_for_type(x509.IPAddress)]
    return ok(f"{what}'s names", f"for {', '.join(told)}")


def check_revoked(
    what: str, revoked: Path | None, authorities: Path, certificates: Sequence[x509.Certificate], now: datetime
) -> Iterator[Finding]:
    """The list of revoked certificates that a broker goes by."""
    if revoked is None:
        yield warned(
            what, "there is none: a certificate once issued is good until it expires", "name one in the settings"
        )
        return
    try:
        listed = x509.load_pem_x509_crl(revoked.read_bytes())
    except (OSError, ValueError) as error:
        yield failed(
            what, f"{revoked}: {_said(error)}", "have it made again: fedmq ca; without it the broker does not start"
        )
        return
    signers = read_certificates(authorities)
    if isinstance(signers, str) or not any(_signs_list(signer, listed) for signer in signers):
        yield failed(what, f"{revoked} is not signed by a CA of {authorities}", "take the list of this federation's CA")
        return
    ends = listed.next_update_utc
    if listed.last_update_utc > now:
        yield failed(what, f"{revoked} is from {_day(listed.last_update_utc)}, which is still to come", "set the clock")
    elif ends is None:
        yield warned(what, f"{revoked} does not say until when it holds", "have it made again: fedmq ca")
    elif ends < now:
        yield failed(
            what,
            f"{revoked} held until {_day(ends)}: with an expired list the broker lets nobody in",
            "have it made again, put it in place, and let the broker read it (SIGHUP)",
        )
    elif ends - now < SOON_CRL:
        yield warned(what, f"{revoked} holds until {_day(ends)}", "have it made again in time: later nobody gets in")
    else:
        yield ok(what, f"{revoked}: {len(listed)} revoked, holds until {_day(ends)}")
    for certificate in certificates:
        if listed.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None:
            yield failed(what, f"{describe(certificate)} is revoked by {revoked}", "have a new one issued")


def read_certificates(path: Path) -> list[x509.Certificate] | str:
    """One or more, as PEM; or why not."""
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except (OSError, ValueError) as error:
        return f"{path}: {_said(error)}"


def read_key(path: Path) -> PrivateKeyTypes | str:
    """A private key without a password, as PEM; or why not. Never anything of its content."""
    try:
        return load_pem_private_key(path.read_bytes(), password=None)
    except TypeError:
        return f"{path} is locked by a password, which no program here could enter"
    except OSError as error:
        return f"{path}: {_said(error)}"
    except (ValueError, UnsupportedAlgorithm):
        return f"{path} is no private key in PEM"


def common_name(certificate: x509.Certificate) -> str:
    """Empty where it has none."""
    found = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value) if found else ""


def describe(certificate: x509.Certificate) -> str:
    return f"{common_name(certificate) or 'without a name'} (serial {certificate.serial_number:x})"


def _check_key(what: str, certificate: x509.Certificate, path: Path) -> Finding:
    key = read_key(path)
    if isinstance(key, str):
        return failed(what, key, "have certificate and key issued again")
    both = [
        public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        for public in (key.public_key(), certificate.public_key())
    ]
    if both[0] != both[1]:
        return failed(what, f"{path} is not the key of this certificate", "put the two that belong together in place")
    return ok(what, f"{path} belongs to it")


def _check_signature(
    what: str, chain: Sequence[x509.Certificate], authorities: Path, now: datetime
) -> Iterator[Finding]:
    roots = read_certificates(authorities)
    if isinstance(roots, str):
        yield failed(f"{what}'s CA", roots, "put the CA's certificate there")
        return
    link, between = chain[0], list(chain[1:])
    for _ in range(len(chain)):
        signer = next((root for root in roots if _signs(root, link)), None)
        if signer is not None:
            yield check_dates(f"{what}'s CA", signer, now)
            return
        following = next((one for one in between if _signs(one, link)), None)
        if following is None:
            break
        between.remove(following)
        link = following
    yield failed(
        f"{what}'s CA",
        f"{describe(chain[0])} is not signed by {authorities}, but by {chain[0].issuer.rfc4514_string()}",
        "take certificate and CA of the same federation",
    )


def _signs(signer: x509.Certificate, signed: x509.Certificate) -> bool:
    try:
        signed.verify_directly_issued_by(signer)
    except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm):
        return False
    return True


def _signs_list(signer: x509.Certificate, listed: x509.CertificateRevocationList) -> bool:
    try:
        return listed.is_signature_valid(signer.public_key())  # type: ignore[arg-type]
    except (TypeError, UnsupportedAlgorithm):
        return False


def _day(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _said(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return "expected PEM, got something else"
