"""Battery and link of each gateway as it told them last: kept in the ledger, read and put into words for every page.

Owns the ledger's key and what lies there, and when a battery counts as low. Nothing is decided by it: it is for people.
A gateway without a record has not told: it is set not to, or its software is older.
"""

from __future__ import annotations

from typing import Any

import msgspec
from fedmq_protocol.vitals import ToldVitals

from fedmq_coordinator.ledger import Ledger

__all__ = ["LOW_PCT", "LastVitals", "battery_text", "keep", "link_text", "vitals_of", "vitals_of_fleet"]

_KEY = "vitals of "
"""Before a gateway's name."""

LOW_PCT = 20
"""Per cent of its charge below which a battery deserves a look, unless there is mains power."""


class LastVitals(msgspec.Struct, frozen=True, kw_only=True):
    """As they lie in the ledger, in JSON."""

    at: float
    """When they were heard, in unix seconds."""
    nonce: bytes
    """Of the start of the process that told them,"""
    sent: int
    """and the bytes that it had sent by then: what tells with fewer is older."""
    told: ToldVitals

    @property
    def low(self) -> bool:
        pct = self.told.battery_pct
        return pct is not None and pct < LOW_PCT and not self.told.on_mains

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {**msgspec.structs.asdict(self.told), "low": self.low, "at": self.at}


def keep(ledger: Ledger, gateway: str, last: LastVitals | None) -> None:
    """In the ledger's running transaction. None: it tells no more, and what it told is forgotten."""
    if last is not None:
        ledger.put(_KEY + gateway, msgspec.json.encode(last))
    elif ledger.get(_KEY + gateway) is not None:
        ledger.forget(_KEY + gateway)


def vitals_of(ledger: Ledger, gateway: str) -> LastVitals | None:
    return _read(ledger.get(_KEY + gateway))


def vitals_of_fleet(ledger: Ledger) -> dict[str, LastVitals]:
    """By the names of the gateways that have told."""
    found = {name: _read(stored) for name, stored in ledger.told(_KEY).items()}
    return {name: last for name, last in found.items() if last is not None}


def _read(stored: bytes | None) -> LastVitals | None:
    """None also where that cannot be read: other software may have written the file."""
    try:
        return None if stored is None else msgspec.json.decode(stored, type=LastVitals)
    except msgspec.MsgspecError:
        return None


def battery_text(last: LastVitals | None) -> str | None:
    """'42 %', '80 %, on mains', 'mains'; empty where it knows of no battery, None where it has not told."""
    if last is None:
        return None
    pct, mains = last.told.battery_pct, last.told.on_mains
    if pct is None:
        return {True: "mains", False: "not on mains", None: ""}[mains]
    return f"{pct} %, on mains" if mains else f"{pct} %"


def link_text(last: LastVitals | None) -> str | None:
    """'cellular, metered'; empty where it does not know, None where it has not told."""
    if last is None:
        return None
    return ", ".join(
        [*([] if last.told.link is None else [last.told.link]), *(["metered"] if last.told.metered else [])]
    )
