"""An identity folder: whether it is whole, and whether what is in it belongs together.

The files are those of the setting `connection.identity_dir`. Certificates are checked by `certificates`; what seals
rest on, the chain of roots and a gateway's card, is `check_seals` alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedmq.doctor.certificates import check_certificate, check_names, check_revoked, read_certificates, read_key
from fedmq.doctor.files import check_public, check_secret
from fedmq.doctor.findings import Finding, failed, ok, unknown

__all__ = ["FILES", "Kind", "check_folder", "check_seals", "kind_of"]

Kind = Literal["gateway", "coordinator", "broker", "observer"]

FILES: dict[Kind, tuple[str, ...]] = {
    "gateway": ("ca.crt", "client.crt", "client.key", "trust", "card", "agreement.key"),
    "coordinator": ("ca.crt", "client.crt", "client.key", "trust", "signing.key", "agreement.key"),
    "broker": ("ca.crt", "broker.crt", "broker.key", "revoked.crl"),
    "observer": ("ca.crt", "client.crt", "client.key", "trust"),
}
"""What each kind needs. A site's folder is as an observer's."""

_KEYS: dict[str, type[X25519PrivateKey] | type[Ed25519PrivateKey]] = {
    "agreement.key": X25519PrivateKey,
    "signing.key": Ed25519PrivateKey,
}


def kind_of(folder: Path) -> Kind:
    """What a folder is of, by the files that only one kind has."""
    if (folder / "broker.crt").exists() or (folder / "broker.key").exists():
        return "broker"
    if (folder / "signing.key").exists():
        return "coordinator"
    return "gateway" if (folder / "card").exists() or (folder / "agreement.key").exists() else "observer"


def check_folder(folder: Path, kind: Kind, *, name: str | None, federation: str, now: datetime) -> Iterator[Finding]:
    """`name`: what the certificate's CN must be, None where any may be."""
    what = f"identity of a{'n' if kind == 'observer' else ''} {kind}"
    if not folder.is_dir():
        yield failed(what, f"{folder} is no folder", "name what `fedmq ca issue` or `fedmq gateway enrol` has made")
        return
    missing = [file for file in FILES[kind] if not (folder / file).is_file()]
    if missing:
        yield failed(what, f"{folder} lacks {', '.join(missing)}", "have it issued again, whole: fedmq ca issue")
    else:
        yield ok(what, f"{folder} has all that a{'n' if kind == 'observer' else ''} {kind} needs")
    there = [file for file in FILES[kind] if file not in missing]
    for file in there:
        yield check_secret(file, folder / file) if file.endswith(".key") else check_public(file, folder / file)
    pair = ("broker.crt", "broker.key") if kind == "broker" else ("client.crt", "client.key")
    if not {*pair, "ca.crt"} & set(missing):
        certificate = folder / pair[0]
        yield from check_certificate(
            "certificate", certificate, folder / pair[1], folder / "ca.crt", name=name, now=now
        )
        own = read_certificates(certificate)
        if kind == "broker" and not isinstance(own, str):
            yield check_names("certificate", own[0])
            if "revoked.crl" in there:
                yield from check_revoked("revoked.crl", folder / "revoked.crl", folder / "ca.crt", own[:1], now)
    for file in there:
        if file in _KEYS:
            key = read_key(folder / file)
            if isinstance(key, str):
                yield failed(f"{file}'s kind", key, "have the identity issued again")
            elif not isinstance(key, _KEYS[file]):
                wanted = _KEYS[file].__name__.removesuffix("PrivateKey")
                yield failed(
                    f"{file}'s kind", f"expected a key for {wanted}, got another", "have the identity issued again"
                )
            else:
                yield ok(f"{file}'s kind", f"for {_KEYS[file].__name__.removesuffix('PrivateKey')}")
    if "trust" in there:
        yield from check_seals(folder, kind, name=name, federation=federation, now=now)


def check_seals(folder: Path, kind: Kind, *, name: str | None, federation: str, now: datetime) -> Iterator[Finding]:
    """Whether the chain of roots in `trust` verifies, and a gateway's card is in date, for this federation, this name
    and the key beside it.

    Both need `fedmq_protocol.signing`, which says what a root and a card are.
    """
    yield unknown("trust", f"the chain of roots in {folder / 'trust'} was not verified: this version cannot")
    if kind == "gateway" and (folder / "card").is_file():
        yield unknown("card", f"{folder / 'card'} was not verified: this version cannot")
