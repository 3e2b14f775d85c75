"""Who is asked in vain, and for how long nobody asks them. Pure: what is on record and a round come in and go out.

A gateway that stays silent for a whole round, or sends what has to be refused, too many times in a row is set aside: it
is not asked and not waited for, for one round, then for 2, 4 and so on. After each pause it is asked again, and one
answer of use, a decline included, makes all of that forgotten. It hears the plans all the while. A new boot nonce ends
a pause, but not the record: a gateway that was restarted may have been repaired, and one that dies each time may not.

Owns the counting. Refuses to know rounds, the ledger and why a gateway fails.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import msgspec

__all__ = ["ABSENT", "Absence", "after_round", "from_bytes", "set_aside", "to_bytes"]

ABSENT = "absent"
"""Key of the ledger's state under which they are kept."""

LONGEST_PAUSE = 6
"""Rounds of a pause, as a power of two."""


class Absence(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """One gateway's failing; a gateway that does not fail has none."""

    missed: int
    """Rounds in a row that it was asked in vain."""
    pauses: int = 0
    """How often it was set aside since its last answer."""
    left: int = 0
    """Rounds of its pause that are still to close."""
    nonce: bytes = b""
    """Boot nonce that it had when it was set aside."""


def to_bytes(absences: Mapping[str, Absence]) -> bytes:
    return msgspec.msgpack.encode(absences)


def from_bytes(kept: bytes | None) -> dict[str, Absence]:
    return {} if kept is None else msgspec.msgpack.decode(kept, type=dict[str, Absence])


def after_round(
    absences: Mapping[str, Absence],
    *,
    asked: Collection[str],
    failed: Collection[str],
    heard: Collection[str],
    nonces: Mapping[str, bytes],
    patience: int,
) -> dict[str, Absence]:
    """What is on record once a round has closed that `asked` some, of whom those `failed`, and `heard` some.

    Who was asked and is neither among the failed nor among the heard was not given the time.
    `patience` is how many rounds in a row may go by; 0 is for ever, and nothing is kept.
    """
    if not patience:
        return {}
    kept = {name: absence for name, absence in absences.items() if name not in heard}
    for name, absence in kept.items():
        if absence.left and name not in asked:
            kept[name] = msgspec.structs.replace(absence, left=absence.left - 1)
    for name in sorted(failed):
        before = kept.get(name, Absence(missed=0))
        missed = before.missed + 1
        if missed < patience:
            kept[name] = msgspec.structs.replace(before, missed=missed)
        else:
            kept[name] = Absence(
                missed=missed,
                pauses=before.pauses + 1,
                left=1 << min(before.pauses, LONGEST_PAUSE),
                nonce=nonces.get(name, b""),
            )
    return kept


def set_aside(absences: Mapping[str, Absence], nonces: Mapping[str, bytes]) -> frozenset[str]:
    """Who is not asked in the next round. `nonces` are those of the gateways' last births."""
    return frozenset(
        name for name, absence in absences.items() if absence.left > 0 and absence.nonce == nonces.get(name, b"")
    )
