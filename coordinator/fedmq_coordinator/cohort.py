"""Who is drawn for a round. Pure and seeded: a round can be replayed, and a gateway can check its own turn.

Rounds come in cycles of `slots` = 1 / fraction rounds. In each cycle every gateway falls into one slot, by a hash that
the cycle's seed salts, and round i of the cycle draws slot i: everyone's turn comes once a cycle, where independent
draws let somebody wait four times as long. Up to 64 gateways the plan carries a bitmap and slots are cut evenly;
above, it carries the slot alone and a million gateways cost one message.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from fedmq_protocol.messages import Bitmap, Slot

__all__ = ["BITMAP_FLEET", "Cohort", "draw"]

BITMAP_FLEET = 64


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """`asked` are the present gateways that were drawn; `target` is how many updates the round hopes for."""

    drawn: Bitmap | Slot
    asked: frozenset[str]
    target: int


def draw(
    present: Mapping[str, int], roster_size: int, *, fraction: float, answer_rate: float, seed: int, turn: int
) -> Cohort:
    """Draw for the `turn`-th training round from `present` (name to place in the roster).

    `answer_rate` is the share of the drawn that answered with an update lately; more are drawn to make up for it.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"the fraction of the fleet to draw must be in (0, 1], got {fraction}")
    widened = min(1.0, fraction / max(answer_rate, 0.1))
    slots = max(1, round(1 / widened))
    cycle, slot = divmod(turn, slots)
    salt = hashlib.sha256(f"{seed}:{slots}:{cycle}".encode()).digest()[:8]
    target = max(1, round(fraction * len(present)))
    if roster_size > BITMAP_FLEET:
        rule = Slot(seed=salt, slots=slots, slot=slot)
        if present:
            # The next slot that somebody here falls into: an empty round would never open, nor the one after it.
            ahead = min((rule.slot_of(name) - slot) % slots for name in present)
            rule = Slot(seed=salt, slots=slots, slot=(slot + ahead) % slots)
        asked = frozenset(name for name, place in present.items() if rule.includes(place, name))
        return Cohort(drawn=rule, asked=asked, target=min(target, max(1, len(asked))))
    order = sorted(present, key=lambda name: hashlib.sha256(salt + name.encode()).digest())
    if 0 < len(order) < slots:
        # Fewer gateways than slots: an empty round would help nobody, so turns go round, one by one.
        asked = frozenset({order[slot % len(order)]})
    else:
        asked = frozenset(name for i, name in enumerate(order) if i * slots // len(order) == slot)
    return Cohort(drawn=Bitmap.of(present[name] for name in asked), asked=asked, target=min(target, max(1, len(asked))))
