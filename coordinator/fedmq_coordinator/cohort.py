"""Who is drawn for a round. Pure and seeded: a round can be replayed, and a gateway can check its own turn.

Rounds come in cycles of `slots` = 1 / fraction rounds. In each cycle every gateway falls into one slot, by a hash that
the cycle's seed salts, and round i of the cycle draws slot i: everyone's turn comes once a cycle, where independent
draws let somebody wait four times as long. Up to 64 gateways the plan carries a bitmap and slots are cut evenly;
above, it carries the slot alone and a million gateways cost one message.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
from fedmq_protocol.messages import Slot, bitmap

__all__ = ["BITMAP_FLEET", "Cohort", "Turn", "draw", "following"]

BITMAP_FLEET = 64
"""Places of the roster up to which a plan names gateways one by one: drawn, and accepted."""


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """`asked` are the present gateways that were drawn; `target` is how many updates the round hopes for."""

    drawn: int | Slot
    """`Places` in a fleet of at most BITMAP_FLEET."""
    asked: frozenset[str]
    target: int


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """Where in the draw the federation stands; kept by the ledger, so that a restart breaks no cycle."""

    cycle: int
    slots: int
    slot: int


def following(turn: Turn | None, *, fraction: float, answer_rate: float) -> Turn:
    """The turn after this one; None begins.

    `answer_rate` is the share of the drawn that answered with an update lately; more are drawn to make up for it. It
    sets the number of slots for a whole cycle: changed in between, it would let somebody wait for several.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"the fraction of the fleet to draw must be in (0, 1], got {fraction}")
    if turn is not None and turn.slot + 1 < turn.slots:
        return Turn(cycle=turn.cycle, slots=turn.slots, slot=turn.slot + 1)
    # No more than one answers for each that was asked, and what nobody asked for does not make up for others.
    widened = min(1.0, fraction / min(max(answer_rate, 0.1), 1.0))
    # Rounded down, to draw at least what was asked for; a hair above a whole number is that number.
    slots = max(1, math.floor(1 / widened + 1e-9))
    return Turn(cycle=0 if turn is None else turn.cycle + 1, slots=slots, slot=0)


def draw(present: Mapping[str, int], roster_size: int, *, fraction: float, seed: int, turn: Turn) -> Cohort:
    """Draw for a turn from `present` (name to place in the roster)."""
    slots, slot = turn.slots, turn.slot
    salt = hashlib.sha256(f"{seed}:{slots}:{turn.cycle}".encode()).digest()[:8]
    target = max(1, round(fraction * len(present)))
    if roster_size > BITMAP_FLEET:
        rule = Slot(seed=salt, slots=slots, slot=slot)
        if present:
            # The next slot that somebody here falls into: an empty round would never open, nor the one after it.
            ahead = min((rule.slot_of(name) - slot) % slots for name in present)
            rule = Slot(seed=salt, slots=slots, slot=(slot + ahead) % slots)
        asked = frozenset(name for name in present if rule.includes(name))
        return Cohort(drawn=rule, asked=asked, target=min(target, max(1, len(asked))))
    order = sorted(present, key=lambda name: hashlib.sha256(salt + name.encode()).digest())
    if 0 < len(order) < slots:
        # Fewer gateways than slots: an empty round would help nobody, so turns go round, one by one.
        asked = frozenset({order[slot % len(order)]})
    else:
        asked = frozenset(name for i, name in enumerate(order) if i * slots // len(order) == slot)
    return Cohort(drawn=bitmap(present[name] for name in asked), asked=asked, target=min(target, max(1, len(asked))))
