"""The coordinate-wise trimmed mean (Yin et al. 2018, arXiv:1803.01498), as an aggregation rule of fedmq.

For each parameter the largest and the smallest values of a round are left out, and what remains is averaged by weight.
So a few gateways that send nonsense, within the bound on an update's length, cannot move the model as they like.

It keeps the laws of `fedmq_coordinator.aggregate.AggregationRule`: values are whole numbers and ties are broken by
weight, so that the order of updates does not matter. Memory is 4 bytes for each update and parameter: 400 MB for a
hundred updates of a million parameters.
"""

from __future__ import annotations

import numpy as np
from fedmq_compression.pipeline import Decoded
from fedmq_coordinator.aggregate import FIXED_POINT_BITS, MAX_WEIGHT
from numpy.typing import NDArray

__all__ = ["TrimmedMean"]

TRIMMED = 0.2
"""Share of the updates that is left out at either end, the paper's beta. Up to so many gateways may lie."""


class TrimmedMean:
    def __init__(self, length: int) -> None:
        self._length = length
        self._steps: list[NDArray[np.int32]] = []
        self._weights: list[int] = []

    @property
    def weight(self) -> int:
        return sum(self._weights)

    @property
    def updates(self) -> int:
        return len(self._weights)

    def add(self, update: Decoded, weight: int) -> None:
        if update.step != 2.0**-FIXED_POINT_BITS or update.length != self._length:
            raise ValueError(f"expected {self._length} values in steps of 2^-{FIXED_POINT_BITS}")
        if not 1 <= weight <= MAX_WEIGHT:
            raise ValueError(f"a weight is 1 to {MAX_WEIGHT}, got {weight}")
        self._steps.append(update.whole_steps())
        self._weights.append(weight)

    def mean(self) -> NDArray[np.float64]:
        if not self._steps:
            raise ValueError("no update was added: there is no mean")
        count = len(self._steps)
        cut = int(TRIMMED * count)
        steps = np.stack(self._steps)
        weights = np.broadcast_to(np.array(self._weights, dtype=np.int64)[:, None], steps.shape)
        # By value, and where two are equal by weight: the same whoever came first.
        order = np.lexsort((weights, steps), axis=0)[cut : count - cut]
        kept = np.take_along_axis(steps, order, axis=0).astype(np.int64)
        by = np.take_along_axis(weights, order, axis=0)
        return np.asarray((kept * by).sum(axis=0) / (by.sum(axis=0) * 2.0**FIXED_POINT_BITS))
