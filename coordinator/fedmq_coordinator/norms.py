"""How long an update may be, learnt from those that were accepted before. Pure: histories come in, and go out.

The task's `max_norm` is a bound for what is absurd; this one knows what this model's updates are like. It is a factor
times the median of a hundred accepted ones, and in force only once enough gateways have sent enough of them.

The factor is wide, since norms rise with the level at which updates are coded. They fall as a model settles, and the
bound does not fall with them: it goes by the largest median of the lineage, for a board that joins late begins with
updates as long as everybody's were in the beginning. Where more than half of the gateways that were judged lately are
beyond it, it is the bound that is wrong, and it is learnt afresh: it must not lock a fleet out whose machines have
changed.

Refuses to know rounds, the ledger and what becomes of a gateway whose updates are too long.
"""

from __future__ import annotations

from statistics import median

import msgspec

__all__ = ["LEAST_GATEWAYS", "LEAST_UPDATES", "NORMS", "Norms"]

NORMS = "norms"
"""Key of the ledger's state under which the history is kept."""

LEAST_UPDATES = 20
LEAST_GATEWAYS = 3
"""Accepted updates, and gateways that they came from, before the bound is in force."""

KEPT = 100
"""Accepted updates that are remembered."""

LATELY = 20
"""Judged ones, by the newest of which it is seen that the bound itself is wrong."""


class _Accepted(msgspec.Struct, frozen=True, array_like=True):
    gateway: str
    norm: float


class _Judged(msgspec.Struct, frozen=True, array_like=True):
    gateway: str
    beyond: bool
    """It was refused by this bound."""


class Norms(msgspec.Struct, frozen=True):
    """The history of one lineage, the oldest first. What was refused pushes out nothing of what was accepted."""

    lineage: int
    accepted: tuple[_Accepted, ...] = ()
    lately: tuple[_Judged, ...] = ()
    largest: float = 0.0
    """Median so far, since it was learnt afresh."""

    @classmethod
    def read(cls, kept: bytes | None, lineage: int) -> Norms:
        """As it was written; empty where that was of another lineage."""
        found = cls(lineage) if kept is None else msgspec.msgpack.decode(kept, type=cls)
        return found if found.lineage == lineage else cls(lineage)

    def write(self) -> bytes:
        return msgspec.msgpack.encode(self)

    def bound(self, factor: float) -> float | None:
        """The longest that is accepted; None while too little is known, or nothing but zeros."""
        return factor * self.largest if factor and self.largest > 0 else None

    def after(self, gateway: str, norm: float, *, beyond: bool) -> Norms:
        """With one more update, accepted or `beyond` the bound."""
        lately = (*self.lately, _Judged(gateway, beyond))[-LATELY:]
        if _is_wrong(lately):
            return Norms(self.lineage)
        accepted = self.accepted if beyond else (*self.accepted, _Accepted(gateway, norm))[-KEPT:]
        enough = len(accepted) >= LEAST_UPDATES and len({one.gateway for one in accepted}) >= LEAST_GATEWAYS
        middle = median(one.norm for one in accepted) if enough else 0.0
        return Norms(self.lineage, accepted, lately, max(self.largest, middle))


def _is_wrong(lately: tuple[_Judged, ...]) -> bool:
    """Whether most of the gateways that were judged lately were refused, and in most of their updates."""
    beyond = {one.gateway for one in lately if one.beyond}
    return (
        len(beyond) >= LEAST_GATEWAYS
        and 2 * len(beyond) > len({one.gateway for one in lately})
        and 2 * sum(one.beyond for one in lately) > LATELY
    )
