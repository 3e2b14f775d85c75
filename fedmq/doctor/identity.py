"""An identity folder: whether it is whole, and whether what is in it belongs together.

The files are those of the setting `connection.identity_dir`. Certificates are checked by `certificates`; what seals
rest on, the chain of roots, the keys that it names and a gateway's card, by `check_seals`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from fedmq_protocol.identity import (
    AGREEMENT_KEY,
    CA_CERTIFICATE,
    CARD,
    CERTIFICATE,
    CERTIFICATE_KEY,
    REVOKED,
    SIGNING_KEY,
    TRUST,
    read_agreement,
    read_card_file,
    read_chain,
    read_signing,
)
from fedmq_protocol.signing import Root, TrustError, public_bytes, read_card

from fedmq.doctor.certificates import (
    SOON,
    check_certificate,
    check_names,
    check_revoked,
    common_name,
    read_certificates,
    read_key,
)
from fedmq.doctor.files import check_public, check_secret
from fedmq.doctor.findings import Finding, failed, ok, warned

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
    if os.path.exists(folder / "broker.crt") or os.path.exists(folder / "broker.key"):
        return "broker"
    if os.path.exists(folder / "signing.key"):
        return "coordinator"
    return "gateway" if os.path.exists(folder / "card") or os.path.exists(folder / "agreement.key") else "observer"


def check_folder(
    folder: Path, kind: Kind, *, name: str | None, federation: str, now: datetime,
    elsewhere: Mapping[str, Path] | None = None,
) -> Iterator[Finding]:  # fmt: skip
    """`name`: what the certificate's CN must be, None where any may be. `elsewhere`: files that the settings name one
    by one, in place of those of the folder."""
    a_kind = f"a{'n' if kind == 'observer' else ''} {kind}"
    what = f"identity of {a_kind}"
    if not os.path.isdir(folder):
        yield failed(what, f"{folder} is no folder", "name what `fedmq ca issue` or `fedmq gateway enrol` has made")
        return
    places = {file: folder / file for file in FILES[kind]} | dict(elsewhere or {})
    missing = [file for file in FILES[kind] if not os.path.isfile(places[file])]
    if missing:
        yield failed(what, f"{folder} lacks {', '.join(missing)}", "have it issued again, whole: fedmq ca issue")
    else:
        yield ok(what, f"{folder} has all that {a_kind} needs")
    there = {file: path for file, path in places.items() if file not in missing}
    for file, path in there.items():
        yield check_secret(file, path) if file.endswith(".key") else check_public(file, path)
    certificate, key = ("broker.crt", "broker.key") if kind == "broker" else (CERTIFICATE, CERTIFICATE_KEY)
    if {certificate, key, CA_CERTIFICATE} <= there.keys():
        yield from check_certificate(
            "certificate", there[certificate], there[key], there[CA_CERTIFICATE], name=name, now=now
        )
        own = read_certificates(there[certificate])
        if kind == "broker" and not isinstance(own, str):
            yield check_names("certificate", own[0])
            if REVOKED in there:
                yield from check_revoked(REVOKED, there[REVOKED], there[CA_CERTIFICATE], own[:1], now)
    for file in _KEYS.keys() & there.keys():
        yield _kind_of_key(file, there[file])
    if TRUST in there:
        yield from check_seals(folder, kind, name=name, federation=federation, now=now)


def _kind_of_key(file: str, path: Path) -> Finding:
    key, wanted = read_key(path), _KEYS[file].__name__.removesuffix("PrivateKey")
    if isinstance(key, str):
        return failed(f"{file}'s kind", key, "have the identity issued again")
    if not isinstance(key, _KEYS[file]):
        return failed(f"{file}'s kind", f"expected a key for {wanted}, got another", "have the identity issued again")
    return ok(f"{file}'s kind", f"for {wanted}")


def check_seals(folder: Path, kind: Kind, *, name: str | None, federation: str, now: datetime) -> Iterator[Finding]:
    """What seals rest on: the chain of roots in `trust`, and that card and keys are those that it names.

    A gateway may have walked on to newer roots since, which are in its memory: the folder is what it began with.
    """
    again = "have the identity issued again: fedmq ca issue"
    try:
        root = read_chain(folder, federation).newest
    except TrustError as error:
        yield failed("trust", str(error), again)
        return
    said = f"root {root.version} of federation {root.federation}"
    yield _dated("trust", said, root.begins, root.expires, now, "make the next root: fedmq ca")
    try:
        if kind == "gateway" and os.path.isfile(folder / CARD):
            yield from _check_card(folder, root, name or _own_name(folder), federation, now)
        if kind == "coordinator" and os.path.isfile(folder / SIGNING_KEY):
            own = public_bytes(read_signing(folder)) == root.coordinator
            yield _belongs("signing.key's place", own, said)
        if kind == "coordinator" and os.path.isfile(folder / AGREEMENT_KEY):
            own = public_bytes(read_agreement(folder)) == root.agreement
            yield _belongs("agreement.key's place", own, said)
    except TrustError as error:
        yield failed("trust", str(error), again)


def _check_card(folder: Path, root: Root, name: str, federation: str, now: datetime) -> Iterator[Finding]:
    try:
        card = read_card(read_card_file(folder), federation=federation, gateway=name, issuer=root.issuer)
    except TrustError as error:
        yield failed("card", str(error), "have the identity issued again: fedmq ca issue")
        return
    yield _dated("card", f"of {name}", card.begins, card.expires, now, "have the identity issued again: fedmq ca issue")
    if os.path.isfile(folder / AGREEMENT_KEY):
        yield _belongs("agreement.key's place", public_bytes(read_agreement(folder)) == card.agreement, "the card")
    own = read_certificates(folder / CERTIFICATE)
    if not isinstance(own, str) and own[0].serial_number != card.serial:
        yield warned(
            "card's number",
            f"is {card.serial:x}, the certificate's is {own[0].serial_number:x}: to revoke one leaves the other",
            "have both issued again, together: fedmq ca issue",
        )


def _own_name(folder: Path) -> str:
    own = read_certificates(folder / CERTIFICATE)
    return "" if isinstance(own, str) else common_name(own[0])


def _belongs(check: str, own: bool, what: str) -> Finding:
    if own:
        return ok(check, f"is the key that {what} names")
    return failed(check, f"is another key than {what} names: nobody would believe it", "take all files of one issue")


def _dated(check: str, said: str, begins: int, expires: int, now: datetime, todo: str) -> Finding:
    first, last = (datetime.fromtimestamp(unix, tz=UTC) for unix in (begins, expires))
    if now < first:
        return failed(check, f"{said} begins on {first:%Y-%m-%d}, and here it is {now:%Y-%m-%d}", "set the clock")
    if now > last:
        return failed(check, f"{said} has expired on {last:%Y-%m-%d}", todo)
    if last - now < SOON:
        return warned(check, f"{said} expires on {last:%Y-%m-%d}", f"in time: {todo}")
    return ok(check, f"{said}, until {last:%Y-%m-%d}")
