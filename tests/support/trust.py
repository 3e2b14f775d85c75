"""A federation's keys in memory: roots, cards, and the seals made with them."""

from __future__ import annotations

from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from fedmq_protocol.signing import (
    Card,
    Chain,
    CoordinatorSeals,
    GatewaySeals,
    Root,
    issue_card,
    public_bytes,
    sign_root,
)

LONG_AGO, LONG_AFTER = 1_600_000_000, 4_000_000_000


class TrustAuthority:
    """Keys of one federation. `rotate` makes the next root; gateways keep the chain that they were started with."""

    def __init__(self, federation: str = "test", *, expires: int = LONG_AFTER) -> None:
        self.federation = federation
        self.expires = expires
        self.root_key = Ed25519PrivateKey.generate()
        self.issuer = Ed25519PrivateKey.generate()
        self.signing = Ed25519PrivateKey.generate()
        self.agreement = X25519PrivateKey.generate()
        self.revoked: set[int] = set()
        self.serials: dict[str, int] = {}
        self.keys: dict[str, X25519PrivateKey] = {}
        self.signed = [sign_root(self._root(1), self.root_key)]
        self.kept: dict[str, Chain] = {}

    def _root(self, version: int) -> Root:
        return Root(
            federation=self.federation,
            version=version,
            root=public_bytes(self.root_key),
            issuer=public_bytes(self.issuer),
            coordinator=public_bytes(self.signing),
            agreement=public_bytes(self.agreement),
            begins=LONG_AGO,
            expires=self.expires,
        )

    @property
    def chain(self) -> Chain:
        return Chain(self.signed, self.federation)

    def rotate(self) -> None:
        """All of the coordinator's keys and the root key, to the next version."""
        before = self.root_key
        self.root_key = Ed25519PrivateKey.generate()
        self.signing = Ed25519PrivateKey.generate()
        self.agreement = X25519PrivateKey.generate()
        self.signed.append(sign_root(self._root(len(self.signed) + 1), self.root_key, before))

    def card(self, name: str, *, begins: int = LONG_AGO, expires: int = LONG_AFTER) -> bytes:
        self.serials.setdefault(name, len(self.serials) + 1)
        key = self.keys.setdefault(name, X25519PrivateKey.generate())
        card = Card(serial=self.serials[name], agreement=public_bytes(key), begins=begins, expires=expires)
        return issue_card(card, federation=self.federation, gateway=name, issuer=self.issuer)

    def gateway(self, name: str, nonce: bytes, unix: Callable[[], float] = lambda: 1.7e9) -> GatewaySeals:
        """Of one start; from the chain that an earlier start has kept."""
        card = self.card(name)
        return GatewaySeals(
            federation=self.federation,
            gateway=name,
            nonce=nonce,
            chain=self.kept.setdefault(name, self.chain),
            card=card,
            agreement=self.keys[name],
            unix=unix,
            keep=lambda chain: self.kept.update({name: chain}),
        )

    def coordinator(self, unix: Callable[[], float] = lambda: 1.7e9) -> CoordinatorSeals:
        return CoordinatorSeals(
            federation=self.federation,
            chain=self.chain,
            signing=self.signing,
            agreement=self.agreement,
            unix=unix,
            revoked=lambda: frozenset(self.revoked),
        )
