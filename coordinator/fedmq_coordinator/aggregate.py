"""Many updates to one step of the model: a rule that makes one of them, then the server's optimiser.

The rule is a streaming weighted mean in fixed point, or one that another package registers as an entry point of the
group `fedmq.aggregation_rules`: a callable that takes the number of parameters and returns an `AggregationRule`.

The mean's sum is int64: values are whole numbers of 2^-24 below 64 in size (30 bits), weights at most 2^12. Integer
addition commutes, so the order in which answers arrive does not matter, and a restart that adds the stored payloads
again gets the same sum to the bit. Memory is that of the parameters, however many gateways answer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import entry_points
from statistics import median_low
from typing import Protocol

import numpy as np
from fedmq_compression.pipeline import CodecSpec, Contexts, Decoded, encode
from numpy.typing import NDArray

__all__ = [
    "FIXED_POINT_BITS",
    "MAX_WEIGHT",
    "RULES",
    "AggregationRule",
    "RuleMaker",
    "ServerState",
    "ServerStep",
    "WeightedMean",
    "most_windows",
    "rule_named",
    "server_step",
    "staleness",
    "weigh",
    "weights",
]

RULES = "fedmq.aggregation_rules"
"""Group of entry points."""

DEFAULT_RULE = "mean"

FIXED_POINT_BITS = 24
MAX_WEIGHT = 1 << 12
_MAX_TOTAL_WEIGHT = 1 << 32
_MOST_IN_A_STEP = 63.0
"""The codec takes values below 64."""


class AggregationRule(Protocol):
    """What many updates come to. One is made for each round, with the number of parameters.

    Laws: the order of `add` does not matter, to the bit. The same updates with the same weights give the same, so that
    a coordinator that is started again comes to what it had. Where more than O(parameters) is kept, it says so.
    """

    @property
    def weight(self) -> int:
        """Of all updates together."""

    @property
    def updates(self) -> int:
        """How many were added."""

    def add(self, update: Decoded, weight: int) -> None:
        """Take in one update in steps of 2^-FIXED_POINT_BITS, with a weight of 1 to MAX_WEIGHT.

        Raises ValueError for anything else, before anything changes.
        """

    def mean(self) -> NDArray[np.float64]:
        """`(length,) float64`, finite. Raises ValueError while nothing was added."""


class RuleMaker(Protocol):
    def __call__(self, length: int, /) -> AggregationRule: ...


def rule_named(name: str) -> RuleMaker:
    """The rule that is registered under this name. Raises ValueError, which lists those that are."""
    if name == DEFAULT_RULE:
        # Registered like any other, but to be had wherever this file is.
        return WeightedMean
    registered = entry_points(group=RULES)
    for point in registered:
        if point.name == name:
            try:
                made: RuleMaker = point.load()
            except (ImportError, AttributeError) as error:
                raise ValueError(f"{name!r} is registered as {point.value}, which cannot be loaded: {error}") from error
            return made
    known = ", ".join(sorted({DEFAULT_RULE, *registered.names}))
    raise ValueError(f"expected one of {known}, got {name!r}: is the package that brings it installed here?")


class WeightedMean:
    """FedAvg's weighted mean (McMahan et al. 2017, arXiv:1602.05629) over `length` parameters."""

    def __init__(self, length: int) -> None:
        self._sum: NDArray[np.int64] = np.zeros(length, dtype=np.int64)
        self.weight = 0
        self.updates = 0

    def add(self, update: Decoded, weight: int) -> None:
        """Raises ValueError for a weight or a step outside the fixed point's range, before anything changes."""
        if update.step != 2.0**-FIXED_POINT_BITS or update.length != len(self._sum):
            raise ValueError(f"expected {len(self._sum)} values in steps of 2^-{FIXED_POINT_BITS}")
        if not 1 <= weight <= MAX_WEIGHT or self.weight + weight > _MAX_TOTAL_WEIGHT:
            raise ValueError(f"a weight is 1 to {MAX_WEIGHT}, got {weight} on top of {self.weight}")
        update.add_to(self._sum, weight)
        self.weight += weight
        self.updates += 1

    @property
    def total(self) -> NDArray[np.int64]:
        """The weighted sum in steps, `(length,) int64`: to look at, not to write to."""
        return self._sum

    def mean(self) -> NDArray[np.float64]:
        """`(length,) float64`. Raises ValueError while nothing was added."""
        if not self.weight:
            raise ValueError("no update was added: there is no mean")
        return self._sum / (self.weight * 2.0**FIXED_POINT_BITS)


def most_windows(fleet: Iterable[int]) -> float:
    """How many windows of a gateway count at most: four times the fleet's median.

    One gateway with a huge archive must not speak for the whole fleet; nor one that says it had one. So of two, the
    smaller number is the median. Gateways without windows have nothing to say, and are not asked here.
    """
    counts = [count for count in fleet if count > 0]
    return max(1.0, 4 * median_low(counts)) if counts else 1.0


def weigh(windows: int, most: float) -> int:
    """Weight of a gateway's update from its windows, of which `most` count: 1 to MAX_WEIGHT."""
    return max(1, round(min(windows, most) * min(1.0, MAX_WEIGHT / most)))


def weights(fleet: Iterable[int]) -> list[int]:
    """Of each gateway of a fleet, from the windows of all."""
    counts = list(fleet)
    most = most_windows(counts)
    return [weigh(count, most) for count in counts]


def staleness(weight: int, rounds: int, exponent: float) -> int:
    """Weight of an update that waited: w / (1 + rounds)^exponent (Xie et al. 2019, arXiv:1903.03934), at least 1."""
    return max(1, round(weight / math.pow(1 + rounds, exponent)))


@dataclass(frozen=True, kw_only=True)
class ServerState:
    """What the coordinator carries from round to round beside the model, both `(P,) float64`."""

    momentum: NDArray[np.float64]
    residual: NDArray[np.float64]
    """What the downlink codec has not sent yet."""

    @classmethod
    def start(cls, length: int) -> ServerState:
        return cls(momentum=np.zeros(length), residual=np.zeros(length))


@dataclass(frozen=True, kw_only=True)
class ServerStep:
    delta: bytes
    """As broadcast."""
    steps: NDArray[np.int32]
    """What it adds to the integer model."""
    state: ServerState


def server_step(
    mean: NDArray[np.float64],
    state: ServerState,
    codec: CodecSpec,
    *,
    momentum: float,
    learning_rate: float,
    gain: float = 1.0,
    contexts: Contexts | None = None,
) -> ServerStep:
    """One step of FedAvgM (Hsu, Qi, Brown 2019, arXiv:1909.06335), coded with error feedback for the way down.

    `contexts` are those of the version it starts from.
    The law: steps * codec.step + new residual == learning_rate * velocity + old residual.
    """
    velocity = momentum * state.momentum + mean
    wanted = learning_rate * velocity + state.residual
    # Momentum can carry updates that were within bounds beyond what the codec takes: the rest waits in the residual.
    bounded = np.clip(wanted, -_MOST_IN_A_STEP, _MOST_IN_A_STEP).astype(np.float32)
    encoded = encode(bounded, codec, gain=gain, contexts=contexts)
    residual = wanted - encoded.sent.dense()
    return ServerStep(
        delta=encoded.payload,
        steps=encoded.sent.whole_steps(),
        state=ServerState(momentum=velocity, residual=residual),
    )
