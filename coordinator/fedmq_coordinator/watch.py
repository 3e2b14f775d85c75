"""The coordinator's eye on its gateways, on record: norms, directions, flags, and who is set aside.

Owns what the ledger has of it, of one task: the history of norms, each gateway's direction, and the flags. All in the
running transaction, and read from there each time, so that a restart changes nothing. What to make of it is decided in
`norms` and `conduct`. Refuses to know rounds in progress and what an answer says.

A flag stays until an operator lifts it: `readmit`. Who is set aside, by order or by the setting limits.flagged, is not
drawn, and what it sends is refused as such.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Sequence

import msgspec
import numpy as np
from fedmq_compression.pipeline import Decoded
from fedmq_protocol.logs import about
from numpy.typing import NDArray

from fedmq_coordinator import conduct
from fedmq_coordinator.ledger import Answer, Book, Conduct, Flag
from fedmq_coordinator.norms import NORMS, Norms
from fedmq_coordinator.settings import LimitSettings

__all__ = ["Watch"]

log = logging.getLogger("fedmq.coordinator")

DIRECTION = "direction"
"""Key of the ledger's state under which the sum of all gateways' directions is kept."""


class _Sum(msgspec.Struct, frozen=True):
    lineage: int
    version: int
    direction: bytes


class Watch:
    """Of one task and lineage."""

    def __init__(self, *, ledger: Book, lineage: int, limits: LimitSettings) -> None:
        self._ledger = ledger
        self._lineage = lineage
        self._limits = limits
        self._norms = Norms.read(ledger.get(NORMS), lineage)
        self._flags = {flag.gateway: flag for flag in ledger.flags()}

    # -- norms ---------------------------------------------------------------------------------------------------

    @property
    def norm_bound(self) -> float | None:
        """The longest update that is accepted, by what the fleet has sent; None while that is not known."""
        return self._norms.bound(self._limits.norm_factor)

    def note_norm(self, gateway: str, norm: float, *, beyond: bool) -> None:
        """An update was accepted, or was beyond the bound."""
        before = self._norms
        self._norms = before.after(gateway, norm, beyond=beyond)
        if before.accepted and not self._norms.accepted:
            log.warning("most gateways send longer updates than were usual: what is usual is learnt afresh")
        self._ledger.put(NORMS, self._norms.write())

    # -- directions ----------------------------------------------------------------------------------------------

    def compare(self, version: int, total: NDArray[np.int64], updates: Iterable[tuple[Answer, Decoded, int]]) -> None:
        """Put on record where each update of the version being made points: (answer, decoded, weight there).

        `total` is their weighted sum in steps. One update at a time is in memory.
        """
        rest = total.astype(np.float64)
        square = float(rest @ rest)
        whole = self._whole(version)
        names: set[str] = set()
        for answer, decoded, weight in updates:
            found = conduct.agreement(decoded, weight, rest, square)
            if found is not None:
                self._ledger.set_cosine(answer.round, answer.gateway, found)
            added = conduct.sketch(decoded, weight)
            whole = whole + added
            self._add(answer.gateway, version, added)
            names.add(answer.gateway)
        for name in sorted(names):
            own = self._ledger.conduct(name)
            assert own is not None  # it was saved just now
            direction = np.frombuffer(own.direction, "<f4").astype(np.float64)
            self._ledger.set_toward(name, conduct.cosine(direction, whole - direction))
        self._keep_whole(whole, version)

    def _add(self, name: str, version: int, added: NDArray[np.float64]) -> None:
        """One more update of a gateway in this version: what came before fades."""
        before = self._ledger.conduct(name)
        updates = 0
        if before is not None and before.lineage == self._lineage:
            updates = before.updates
            added = added + conduct.faded(np.frombuffer(before.direction, "<f4"), version - before.version)
        self._ledger.save_conduct(
            Conduct(
                gateway=name,
                lineage=self._lineage,
                version=version,
                updates=updates + 1,
                direction=added.astype("<f4").tobytes(),
                toward=None,
            )
        )

    def _keep_whole(self, whole: NDArray[np.float64], version: int) -> None:
        kept = _Sum(lineage=self._lineage, version=version, direction=whole.astype("<f4").tobytes())
        self._ledger.put(DIRECTION, msgspec.msgpack.encode(kept))

    def _whole(self, version: int) -> NDArray[np.float64]:
        kept = self._ledger.get(DIRECTION)
        found = None if kept is None else msgspec.msgpack.decode(kept, type=_Sum)
        if found is None or found.lineage != self._lineage:
            return np.zeros(conduct.WIDTH)
        return conduct.faded(np.frombuffer(found.direction, "<f4"), version - found.version)

    # -- flags ---------------------------------------------------------------------------------------------------

    def judge(self, names: Iterable[str], round_id: int, now: float, *, alone: Collection[str] = ()) -> None:
        """Flag those of these gateways who give reason to, once a round has closed that they sent something to.

        Where one points is not held against those who are `alone` with what they have seen.
        """
        fleet: list[float] | None = None
        for name in sorted(names):
            known = self._flags.get(name)
            if known is not None and known.state != "readmitted":
                continue
            since = 0 if known is None else known.round
            found = conduct.refused_again(self._ledger.latest_updates(name, after=since, last=conduct.REFUSED_OF))
            reason = "refused"
            if found is None:
                own = None if name in alone else self._ledger.conduct(name)
                if own is None or own.lineage != self._lineage or own.updates < conduct.LEAST_UPDATES:
                    continue
                if fleet is None:
                    fleet = self._ledger.towards(self._lineage, conduct.LEAST_UPDATES)
                cosines = self._ledger.latest_cosines(name, self._lineage, after=since, last=conduct.COSINES)
                found, reason = conduct.against(own.toward, fleet, cosines), "against"
            if found is not None:
                self._save(Flag(gateway=name, at=now, round=round_id, state="flagged", reason=reason, evidence=found))
                with about(gateway=name):
                    log.warning("%s is flagged: %s", name, found)

    def set_aside(self, name: str, round_id: int, now: float) -> None:
        """By order. What was found of it stays beside that."""
        known = self._flags.get(name)
        ordered = known is None or known.state != "flagged"
        self._save(
            Flag(
                gateway=name,
                at=now,
                round=round_id,
                state="aside",
                reason="ordered" if ordered or known is None else known.reason,
                evidence="by order" if ordered or known is None else known.evidence,
            )
        )

    def readmit(self, name: str, round_id: int, now: float) -> None:
        """Lift its flag; from now on it is judged as if it were new."""
        self._save(
            Flag(gateway=name, at=now, round=round_id, state="readmitted", reason="ordered", evidence="by order")
        )
        own = self._ledger.conduct(name)
        kept = self._ledger.get(DIRECTION)
        if own is not None and own.lineage == self._lineage and kept is not None:
            # What it sent before is no longer held against it, nor for it.
            version = msgspec.msgpack.decode(kept, type=_Sum).version
            whole = self._whole(version) - conduct.faded(np.frombuffer(own.direction, "<f4"), version - own.version)
            self._keep_whole(whole, version)
        self._ledger.forget_conduct(name)

    def flag_of(self, name: str) -> Flag | None:
        """None where there is none, or it was lifted."""
        found = self._flags.get(name)
        return None if found is None or found.state == "readmitted" else found

    @property
    def flagged(self) -> Sequence[Flag]:
        """That were not lifted."""
        return [flag for flag in self._flags.values() if flag.state != "readmitted"]

    @property
    def aside(self) -> frozenset[str]:
        return frozenset(name for name, flag in self._flags.items() if flag.sets_aside(self._limits.flagged))

    def _save(self, flag: Flag) -> None:
        self._ledger.save_flag(flag)
        self._flags[flag.gateway] = flag
