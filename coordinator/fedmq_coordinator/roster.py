"""Who belongs to the federation, who is here, and how many bytes each has counted on its socket.

A gateway gets a place at its first birth and keeps it for ever: the plan's bitmap counts by place. Its windows and its
raw signal are as its last birth has them, its battery and link as its last word. Written through to the ledger.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Set
from dataclasses import replace
from typing import TypeAlias

from fedmq_protocol.messages import BEYOND_UNIT, Birth, Decline, Leave, Statistics, Update
from fedmq_protocol.task import Windowing
from fedmq_protocol.vitals import ToldVitals

from fedmq_coordinator.ledger import Gateway, Ledger, Wire
from fedmq_coordinator.vitals import LastVitals, keep, vitals_of

__all__ = ["SENSORS_OF", "Members", "Roster", "beyond_bytes"]

log = logging.getLogger("fedmq.coordinator")

SENSORS_OF = "sensors of "
"""Before a gateway's name: the ledger's key of what its last birth told of its sensors, as JSON."""


LABELS_OF = "labels of "
"""The same of the labels that it has recordings of, one a line."""

Answering: TypeAlias = Update | Decline | Statistics

Told: TypeAlias = Birth | Leave | Answering
"""What a gateway tells its byte counts with."""


class Roster:
    """`windowing` is the first task's: by it the ledger and the report count windows and raw signal."""

    def __init__(self, ledger: Ledger, *, windowing: Windowing) -> None:
        self._ledger = ledger
        self._windowing = windowing
        self._gateways = {gateway.name: gateway for gateway in ledger.gateways()}
        self._superseded = {wire.nonce for wire in ledger.wires()} - {g.nonce for g in self._gateways.values()}
        """Of earlier starts."""
        self._labels = {name: _lines(ledger.get(LABELS_OF + name)) for name in self._gateways}
        self.changes = 0
        """Counts up whenever somebody comes or goes, or is born with other recordings."""

    def __len__(self) -> int:
        """Places given, of gateways here or not."""
        return len(self._gateways)

    def get(self, name: str) -> Gateway | None:
        return self._gateways.get(name)

    def place(self, name: str) -> int | None:
        gateway = self._gateways.get(name)
        return None if gateway is None else gateway.roster

    def all(self) -> list[Gateway]:
        return list(self._gateways.values())

    def born(self, name: str, birth: Birth, now: float) -> Gateway:
        """A gateway has come, for the first time or again.

        What an earlier start of it said, and comes late, changes nothing but the byte counts of that start: the record
        stays with the newest, for it is that one whose answers and good-bye are to come.
        """
        known = self._gateways.get(name)
        if known is not None and birth.nonce in self._superseded:
            log.error(
                "an earlier start of %s is heard again: where that goes on, two gateways have this name; "
                "give each its own name and certificate",
                name,
            )
            self._count(replace(known, nonce=birth.nonce), birth, now)
            return known
        if known is not None and known.nonce != birth.nonce:
            self._superseded.add(known.nonce)
        samples = sum(birth.signal_samples.values())
        gateway = Gateway(
            name=name,
            roster=known.roster if known is not None else len(self._gateways),
            first_seen=known.first_seen if known is not None else now,
            last_seen=now,
            present=True,
            software=birth.software,
            engines=",".join(birth.engines),
            windows=samples // self._windowing.hop,
            signal_bytes=2 * samples * self._windowing.channels,
            nonce=birth.nonce,
            samples=samples,
            tags="\n".join(sorted(tag for tag in birth.tags if "\n" not in tag)),
        )
        self._gateways[name] = gateway
        self.changes += 1
        self._ledger.save_gateway(gateway)
        grown = samples - (0 if known is None else known.samples)
        if grown > 0:
            self._ledger.gather(name, 2 * grown * self._windowing.channels, now)
        labels = frozenset(label for label, count in birth.signal_samples.items() if count and "\n" not in label)
        if labels != self._labels.get(name):
            self._labels[name] = labels
            self._ledger.put(LABELS_OF + name, "\n".join(sorted(labels)).encode())
        before = vitals_of(self._ledger, name)
        # Else it is the broker's copy of a birth, and answers have told more since.
        if before is None or before.nonce != birth.nonce or before.sent <= birth.sent:
            self._note_vitals(gateway, birth, now)
        self._count(gateway, birth, now)
        return gateway

    def labels(self, name: str) -> frozenset[str]:
        """Of which it has recordings, at its last birth."""
        return self._labels.get(name, frozenset())

    def left(self, name: str, leave: Leave, now: float) -> None:
        """A gateway has gone; the last word of an earlier start of its is passed over."""
        known = self._gateways.get(name)
        if known is None or known.nonce != leave.nonce:
            return
        self._gateways[name] = replace(known, present=False, last_seen=now)
        self.changes += 1
        self._ledger.set_presence(name, False, now)
        if leave.clean:
            self._count(known, leave, now, final=True)

    def dismissed(self, name: str, now: float) -> None:
        """A gateway is believed no more: nobody waits for it."""
        known = self._gateways.get(name)
        if known is not None and known.present:
            self._gateways[name] = replace(known, present=False)
            self.changes += 1
            self._ledger.set_presence(name, False, now)

    def heard(self, name: str, said: Answering, now: float) -> bytes:
        """A gateway has answered; returns the boot nonce that its byte counts belong to."""
        known = self._gateways.get(name)
        if known is None:
            return bytes(8)
        self._gateways[name] = replace(known, present=True, last_seen=now)
        self.changes += not known.present
        self._ledger.set_presence(name, True, now)
        self._note_vitals(known, said, now)
        self._count(known, said, now)
        return known.nonce

    def _note_vitals(self, gateway: Gateway, said: Birth | Answering, now: float) -> None:
        last = None
        if said.vitals is not None:
            told = ToldVitals.of(said.vitals)
            last = LastVitals(at=now, nonce=gateway.nonce, sent=said.sent, told=told)
        keep(self._ledger, gateway.name, last)

    def _count(self, gateway: Gateway, said: Told, now: float, *, final: bool = False) -> None:
        self._ledger.save_wire(
            Wire(
                gateway=gateway.name,
                nonce=gateway.nonce,
                sent=said.sent,
                received=said.received,
                reported_at=now,
                final=final,
                beyond=beyond_bytes(said),
            )
        )


def beyond_bytes(said: Told) -> int | None:
    """What a gateway tells of TCP/IP and TLS, in bytes."""
    return None if said.beyond is None else said.beyond * BEYOND_UNIT


def _lines(kept: bytes | None) -> frozenset[str]:
    return frozenset((kept or b"").decode().split("\n")) - {""}


class Members:
    """The gateways that take part in one task: those with one of its tags, or all where it has none.

    `windowing` is the task's: what turns a signal into windows.
    """

    def __init__(self, roster: Roster, *, windowing: Windowing, tags: Set[str] = frozenset()) -> None:
        self._roster = roster
        self._windowing = windowing
        self._tags = tags
        self.paused_tags: Set[str] = frozenset()
        """Gateways with one of these are not drawn. In a fleet of more than 64 the plan cannot leave them out: what
        they send is taken, only nobody waits for it."""
        self.aside: Set[str] = frozenset()
        """Names of gateways that are set aside: not drawn, and what they send is refused."""

    def __len__(self) -> int:
        """Places given in the whole roster: by place the plan's bitmap counts."""
        return len(self._roster)

    @property
    def mark(self) -> object:
        """Equal as long as nothing has changed of who takes part."""
        return self._roster.changes, self.paused_tags, self.aside

    def belongs(self, gateway: Gateway) -> bool:
        return not self._tags or not self._tags.isdisjoint(gateway.tag_set)

    def get(self, name: str) -> Gateway | None:
        """None for a gateway that is no member."""
        gateway = self._roster.get(name)
        return gateway if gateway is not None and self.belongs(gateway) else None

    def place(self, name: str) -> int | None:
        gateway = self.get(name)
        return None if gateway is None else gateway.roster

    def present(self) -> dict[str, int]:
        """Names of those who are here, do not pause and are not set aside, each with its place."""
        return {
            gateway.name: gateway.roster
            for gateway in self._roster.all()
            if gateway.present
            and gateway.name not in self.aside
            and self.belongs(gateway)
            and self.paused_tags.isdisjoint(gateway.tag_set)
        }

    def sole_holders(self, classes: Collection[str]) -> frozenset[str]:
        """Who has recordings of one of these classes that no other gateway has any of."""
        holders: dict[str, list[str]] = {label: [] for label in classes}
        for gateway in self._roster.all():
            if self.belongs(gateway):
                for label in self._roster.labels(gateway.name) & holders.keys():
                    holders[label].append(gateway.name)
        return frozenset(names[0] for names in holders.values() if len(names) == 1)

    @property
    def aside_here(self) -> int:
        """How many are here and set aside."""
        return sum((gateway := self.get(name)) is not None and gateway.present for name in self.aside)

    def windows(self, name: str) -> int:
        """As this task cuts them, at the gateway's last birth."""
        gateway = self._roster.get(name)
        return 0 if gateway is None else gateway.samples // self._windowing.hop

    def fleet_windows(self) -> list[int]:
        """Of each gateway that takes part, here or not, and is not set aside."""
        return [self.windows(g.name) for g in self._roster.all() if self.belongs(g) and g.name not in self.aside]

    @property
    def all_windows(self) -> int:
        return sum(self.windows(gateway.name) for gateway in self._roster.all() if self.belongs(gateway))

    def heard(self, name: str, said: Answering, now: float) -> bytes:
        """A gateway has answered; returns the boot nonce that its byte counts belong to."""
        return self._roster.heard(name, said, now)
