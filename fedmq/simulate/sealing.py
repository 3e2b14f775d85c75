"""The keys of a simulated federation, out of its seed: the same schedule seals its messages to the same bytes."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

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

from fedmq.simulate.fleet import FEDERATION

__all__ = ["Keys"]

FOR_EVER = 1 << 33


class Keys:
    """One root, and a card for whoever asks."""

    def __init__(self, seed: str) -> None:
        rng = Random(f"{seed}/keys")
        root, self._issuer, self._signing = (Ed25519PrivateKey.from_private_bytes(rng.randbytes(32)) for _ in range(3))
        self._agreement = X25519PrivateKey.from_private_bytes(rng.randbytes(32))
        self._seed = seed
        body = Root(
            federation=FEDERATION,
            version=1,
            root=public_bytes(root),
            issuer=public_bytes(self._issuer),
            coordinator=public_bytes(self._signing),
            agreement=public_bytes(self._agreement),
            begins=0,
            expires=FOR_EVER,
        )
        self._chain = Chain([sign_root(body, root)])

    def coordinator(self, unix: Callable[[], float]) -> CoordinatorSeals:
        return CoordinatorSeals(
            federation=FEDERATION,
            chain=self._chain,
            signing=self._signing,
            agreement=self._agreement,
            unix=unix,
        )

    def gateway(self, name: str, nonce: bytes) -> GatewaySeals:
        """Of one start."""
        key = X25519PrivateKey.from_private_bytes(Random(f"{self._seed}/key of {name}").randbytes(32))
        card = Card(serial=1, agreement=public_bytes(key), begins=0, expires=FOR_EVER)
        return GatewaySeals(
            federation=FEDERATION,
            gateway=name,
            nonce=nonce,
            chain=self._chain,
            card=issue_card(card, federation=FEDERATION, gateway=name, issuer=self._issuer),
            agreement=key,
            unix=lambda: 0.0,
        )
