"""Coding a delta takes a few times the vector's own memory, and no more: a gateway has not much."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from fedmq_compression.pipeline import CodecSpec, Contexts, encode
from numpy.typing import NDArray

LENGTH = 1_000_000


def normal(seed: int, size: float) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(LENGTH, dtype=np.float32) * np.float32(size)


@pytest.mark.parametrize("bits", [1, 4, 8, 32])
@pytest.mark.parametrize("density", [0.01, 0.1])
@pytest.mark.parametrize("with_residual", [False, True], ids=["no residual", "residual"])
def test_coding_a_million_parameters_takes_at_most_four_times_their_memory(
    bits: int, density: float, with_residual: bool
) -> None:
    delta, residual = normal(1, 0.01), normal(2, 0.001) if with_residual else None
    spec = CodecSpec(bits=bits, density=density, step=2.0**-24)
    tracemalloc.start()
    try:
        encoded = encode(delta, spec, residual)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert encoded.sent.steps.size > 0.99 * density * LENGTH
    assert peak <= 4 * delta.nbytes


def test_contexts_take_nothing_more_at_one_percent() -> None:
    moved = np.rint(np.random.default_rng(3).standard_cauchy(LENGTH)).clip(-999, 999).astype(np.int32)
    contexts = Contexts.of(moved, ((5000, 200),))
    delta, residual = normal(1, 0.01), normal(2, 0.001)
    tracemalloc.start()
    try:
        encode(delta, CodecSpec(bits=1, density=0.01, step=2.0**-24), residual, contexts=contexts)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak <= 4 * delta.nbytes


def test_the_callers_vectors_stay_as_they_are() -> None:
    delta, residual = normal(1, 0.01)[:5000], normal(2, 0.001)[:5000]
    kept = delta.copy(), residual.copy()
    for density in (0.01, 1.0):
        encoded = encode(delta, CodecSpec(bits=1, density=density, step=2.0**-24), residual)
        encoded.residual[:] = 7
        assert np.array_equal(delta, kept[0])
        assert np.array_equal(residual, kept[1])
        alone = encode(delta, CodecSpec(bits=1, density=density, step=2.0**-24))
        alone.residual[:] = 7
        assert np.array_equal(delta, kept[0])
