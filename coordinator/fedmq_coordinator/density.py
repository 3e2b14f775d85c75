"""How much of the model is sent: by its size, by one dial, by how many are asked, and by what the loss does.

Owns the rule that makes two densities of the settings, and the rule by which training that stalls is given more. Both
are functions of what is on record and of nothing else, so that a restart comes to the same. Refuses to know codecs,
rounds and the ledger. docs/decisions/0009-density-by-size-dial-and-loss.md has the measurements.

The level is a small number: 0 is as dense as the task says, and each one above doubles that, until at last everything
is sent (`fedmq_protocol.task.Codec.at`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from fedmq_protocol.task import Objective

__all__ = ["Course", "Densities", "densities", "level"]

REFERENCE_PARAMETERS = 17_000
"""Size of the model that the dial was measured with."""

FEWEST_BYTES = 0.004
"""Density down at dial 0, for a model of the reference size."""

FEWEST_ROUNDS = 0.05
"""The same at dial 1."""

SIZE_EXPONENT = 0.4
"""Between 17,000 and 100,000 parameters the best density halves: a larger model learns in fewer of its coordinates."""

THICKER: dict[Objective, float] = {"classify": 1.0, "reconstruct": 4.0, "regress": 8.0}
"""How much denser a model begins that ends without a softmax. Its first rounds mostly move the last layer; where only
the largest changes go, the hidden units that are to do the rest are left behind, and later rounds do not find them.
A regressor's one output sums up whatever each value sent has too much or too little: at four times its error still
swung by a tenth from round to round."""

LOOKS = (6, 12, 24, 48)
"""Rounds at one level that are looked at together: the last few, where these say enough, or else more of them."""

CERTAIN = 3.0
"""Standard errors of the fall that must lie between it and a threshold. Losses differ from round to round by a tenth
where batches are few and by a thousandth where they are many: the first need a long look, the second a short one."""

STALLED = 0.004
"""Fall of the loss in a round, as a share of it, below which more is sent."""

STUCK = 0.0005
"""The same, below which it is worth sending all; and where not even that helps, density is not what holds it up."""

MOVING = 0.02
"""The same, above which less is sent again."""

LEARNT = 0.1
"""Share of the first loss below which little is left to win, so that nothing is thickened any more."""

SMALLEST = 1e-6
"""Stands for a loss of zero, of which there is no logarithm."""

DEPARTED = 0.1
"""Change of a loss at rest, as a share of it, that makes it worth looking at again: the data are others now."""


@dataclass(frozen=True, kw_only=True)
class Densities:
    up: float
    down: float


def densities(
    *,
    dial: float,
    parameters: int,
    objective: Objective,
    fraction: float,
    least: float,
    most: float,
    min_coordinates: int,
) -> Densities:
    """Shares of the parameters to send at level 0, each from `least` to `most` or what `min_coordinates` make.

    Half of what comes down goes up where all gateways are asked, for they choose different parameters; where only a
    `fraction` is, each of them stands for more.
    """
    base = FEWEST_BYTES * (FEWEST_ROUNDS / FEWEST_BYTES) ** dial * THICKER[objective]
    down = base * (REFERENCE_PARAMETERS / parameters) ** SIZE_EXPONENT
    floor = min_coordinates / parameters

    def bounded(share: float) -> float:
        return min(1.0, max(floor, least, min(most, share)))

    return Densities(up=bounded(down / 2 / fraction), down=bounded(down))


@dataclass(frozen=True, kw_only=True)
class Course:
    """What the losses up to a round came to. `sparse` is the highest level at which not all is sent, `highest` the
    last of all."""

    sparse: int
    highest: int
    level: int = 0
    """Of the next round."""
    first: float = 0.0
    """Loss of the first round."""
    recent: tuple[float, ...] = ()
    """Losses at this level, as many as are looked at."""
    at_rest: float = 0.0
    """Loss at which all was sent and nothing moved; 0 while that has not been."""

    def after(self, loss: float) -> Course:
        """With the mean training loss of one more round."""
        first = self.first or loss
        here = replace(self, first=first, recent=(*self.recent, loss)[-LOOKS[-1] :])
        if here.at_rest:
            departed = abs(loss - here.at_rest) > DEPARTED * here.at_rest
            return replace(here, at_rest=0.0, recent=()) if departed else here
        falls = [falling(here.recent[-rounds:]) for rounds in LOOKS if rounds <= len(here.recent)]
        if here.level > 0 and any(fall - CERTAIN * error > MOVING for fall, error in falls):
            return replace(here, level=here.level - 1, recent=())
        if loss <= LEARNT * first:
            return here
        # To send all is dear, so that it takes a closer look.
        stalled, looks = (STALLED, falls) if here.level < here.sparse else (STUCK, falls[2:])
        if here.level < here.highest and any(fall + CERTAIN * error < stalled for fall, error in looks):
            return replace(here, level=here.level + 1, recent=())
        if here.level == here.highest > 0 and len(falls) == len(LOOKS):
            fall, error = falls[-1]
            if fall + CERTAIN * error < STUCK:
                return replace(here, level=0, recent=(), at_rest=math.fsum(here.recent) / len(here.recent))
        return here


def level(losses: Iterable[float], *, sparse: int, highest: int) -> int:
    """The level of the round after those with these mean training losses, 0 to `highest`."""
    course = Course(sparse=sparse, highest=highest)
    for loss in losses:
        course = course.after(loss)
    return course.level


def falling(losses: Sequence[float]) -> tuple[float, float]:
    """Mean fall of the loss in a round as a share of it, negative where it rises, and its standard error.

    The slope of a line through the logarithms, by least squares. Three losses at least.
    """
    count = len(losses)
    logs = [math.log(max(loss, SMALLEST)) for loss in losses]
    middle, mean = (count - 1) / 2, math.fsum(logs) / count
    spread = count * (count * count - 1) / 12
    slope = math.fsum((number - middle) * (value - mean) for number, value in enumerate(logs)) / spread
    left = math.fsum((value - mean - slope * (number - middle)) ** 2 for number, value in enumerate(logs))
    return -slope, math.sqrt(left / (count - 2) / spread)
