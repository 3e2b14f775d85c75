"""The sampled threshold finds exactly what a full sort would."""

from __future__ import annotations

import numpy as np
from fedmq_compression.sparsify import largest
from hypothesis import given, settings
from hypothesis import strategies as st


@settings(max_examples=150, deadline=None)
@given(
    length=st.integers(1, 60_000),
    share=st.floats(0.001, 1.0),
    seed=st.integers(0, 2**32),
    kind=st.sampled_from(["normal", "ties", "mostly zero", "rising", "striped"]),
)
def test_the_choice_is_the_exact_one_and_ties_go_to_the_lower_index(
    length: int, share: float, seed: int, kind: str
) -> None:
    rng = np.random.default_rng(seed)
    values = {
        "normal": lambda: np.abs(rng.normal(size=length)),
        "ties": lambda: rng.integers(0, 4, length),
        "mostly zero": lambda: rng.random(length) * (rng.random(length) < 0.01),
        "rising": lambda: np.arange(length),
        "striped": lambda: np.where(np.arange(length) % 3 == 0, 5.0, rng.random(length)),
    }[kind]()
    magnitudes = np.asarray(values, dtype=np.float32)
    count = max(1, round(share * length))
    by_size = np.lexsort((np.arange(length), -magnitudes))[:count]
    assert np.array_equal(largest(magnitudes, count, 0.0), np.sort(by_size))


def test_what_is_below_the_least_is_not_chosen() -> None:
    magnitudes = np.array([0.1, 0.5, 0.2, 0.9], dtype=np.float32)
    assert largest(magnitudes, 3, 0.3).tolist() == [1, 3]
    assert largest(magnitudes, 4, 0.3).tolist() == [1, 3]
    assert largest(magnitudes, 2, 1.0).tolist() == []
