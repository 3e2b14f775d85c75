"""The identity folder of a program: its certificate, its keys, and whom it believes.

Owns the names of the files there, and reads them. What they mean, `signing` says; `fedmq ca issue` and `fedmq gateway
enrol` write them. No message of a failure holds what is in a key's file.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedmq_protocol.secrets import SecretError, read_secret
from fedmq_protocol.signing import Chain, TrustError, read_ed25519, read_x25519

__all__ = [
    "AGREEMENT_KEY",
    "CARD",
    "CA_CERTIFICATE",
    "CERTIFICATE",
    "CERTIFICATE_KEY",
    "REVOKED",
    "SIGNING_KEY",
    "TRUST",
    "RevokedList",
    "read_agreement",
    "read_card_file",
    "read_chain",
    "read_signing",
]

log = logging.getLogger("fedmq.trust")

CA_CERTIFICATE = "ca.crt"
"""Who signs the broker's certificate."""
CERTIFICATE = "client.crt"
CERTIFICATE_KEY = "client.key"
TRUST = "trust"
CARD = "card"
AGREEMENT_KEY = "agreement.key"
SIGNING_KEY = "signing.key"
REVOKED = "revoked.crl"

MAX_BYTES = 256 * 1024
MAX_LIST_BYTES = 16 << 20
"""A list of a million revoked certificates is about so long."""


def read_chain(folder: Path, federation: str) -> Chain:
    """The roots of `trust`. Raises TrustError."""
    path = folder / TRUST
    try:
        return Chain.read(_read(path).decode("ascii", "replace"), federation)
    except TrustError as error:
        raise TrustError(f"{path}: {error}") from None


def read_card_file(folder: Path) -> bytes:
    """A gateway's card, as it came. Raises TrustError."""
    return _read(folder / CARD)


def read_agreement(folder: Path) -> X25519PrivateKey:
    """Raises TrustError."""
    path = folder / AGREEMENT_KEY
    return read_x25519(_read_key(path), str(path))


def read_signing(folder: Path) -> Ed25519PrivateKey:
    """Raises TrustError."""
    path = folder / SIGNING_KEY
    return read_ed25519(_read_key(path), str(path))


class RevokedList:
    """The serial numbers of `revoked.crl`, read again whenever the file is another. Calling it gives them.

    Believed is a list that the authority of `ca.crt` has signed; the one before stays in force where a new one cannot
    be read. Raises TrustError where the first one cannot; where there is no file, nothing is revoked yet.
    """

    def __init__(self, path: Path, authority: Path) -> None:
        self._path = path
        try:
            self._authority = x509.load_pem_x509_certificate(_read(authority))
        except ValueError as error:
            raise TrustError(f"{authority}: {error}") from None
        self._seen: tuple[int, int, int] | None = None
        self._serials: frozenset[int] = frozenset()
        seen = self._mark()
        if seen is not None:
            self._serials = self._load()
            self._seen = seen

    def __call__(self) -> frozenset[int]:
        seen = self._mark()
        if seen is not None and seen != self._seen:
            self._seen = seen
            try:
                self._serials = self._load()
            except TrustError as error:
                log.error("%s; the list before stays in force", error)
        return self._serials

    def _mark(self) -> tuple[int, int, int] | None:
        try:
            found = os.stat(self._path)
        except FileNotFoundError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _load(self) -> frozenset[int]:
        data = _read(self._path, MAX_LIST_BYTES)
        try:
            found = x509.load_pem_x509_crl(data)
        except ValueError:
            raise TrustError(f"{self._path}: expected a list of revoked certificates in PEM") from None
        if not found.is_signature_valid(self._authority.public_key()):  # type: ignore[arg-type]
            raise TrustError(f"{self._path}: not signed by the authority of {CA_CERTIFICATE}")
        return frozenset(entry.serial_number for entry in found)


def _read_key(path: Path) -> bytes:
    try:
        return read_secret(path, MAX_BYTES)
    except SecretError as error:
        raise TrustError(str(error)) from None


def _read(path: Path, most: int = MAX_BYTES) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except FileNotFoundError:
        raise TrustError(
            f"{path}: not there; an identity folder is made by `fedmq ca issue` or `fedmq gateway enrol`"
        ) from None
    except OSError as error:
        raise TrustError(f"{path}: cannot be read: {error.strerror}") from None
    if len(data) > most:
        raise TrustError(f"{path}: expected at most {most:,} bytes, got more")
    return data
