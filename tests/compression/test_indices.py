"""Every rival coding of a support decodes to it, whichever wins."""

from __future__ import annotations

import numpy as np
import pytest
from fedmq_compression.bits import BitReader, best_divisor, golomb, golomb_bits, natural_divisor
from fedmq_compression.frame import PayloadError
from fedmq_compression.indices import Layout, code_support, read_support, rivals
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray


@st.composite
def supports(draw: st.DrawFn) -> tuple[NDArray[np.int64], int]:
    length = draw(st.integers(2, 3000))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    if draw(st.booleans()):
        count = draw(st.integers(1, length - 1))
        return np.sort(rng.choice(length, count, replace=False)), length
    start = draw(st.integers(0, length - 2))
    stop = draw(st.integers(start + 1, length - 1))
    return np.arange(start, stop), length


@settings(max_examples=300, deadline=None)
@given(support=supports())
def test_every_rival_decodes_to_the_same_indices(support: tuple[NDArray[np.int64], int]) -> None:
    indices, length = support
    for coded in rivals(indices, length):
        reader = BitReader(np.packbits(coded.bits).tobytes())
        read = read_support(reader, coded.layout, length, indices.size, coded.divisor)
        assert np.array_equal(read, indices), coded.layout


def test_each_layout_wins_somewhere() -> None:
    rng = np.random.default_rng(0)
    length = 8000
    scattered = np.sort(rng.choice(length, 80, replace=False))
    most = np.sort(rng.choice(length, 7600, replace=False))
    blocks = np.concatenate([np.arange(start, start + 200) for start in range(0, length, 800)])
    winners = {code_support(indices, length).layout for indices in (scattered, most, blocks)}
    assert winners == {Layout.GAPS, Layout.UNSENT_GAPS, Layout.BITMAP}


@settings(max_examples=200, deadline=None)
@given(numbers=st.lists(st.integers(0, 5000), max_size=200), divisor=st.integers(1, 5000))
def test_golomb_code_is_read_back_and_its_length_foretold(numbers: list[int], divisor: int) -> None:
    array = np.array(numbers, dtype=np.int64)
    bits = golomb(array, divisor)
    assert bits.size == golomb_bits(array, divisor)
    reader = BitReader(np.packbits(bits).tobytes())
    assert np.array_equal(reader.golomb(array.size, divisor, each=5000), array)
    reader.end()


def test_the_divisor_found_is_within_a_half_percent_of_the_best_there_is() -> None:
    rng = np.random.default_rng(1)
    for mean in (0.3, 3.0, 90.0, 2000.0):
        numbers = rng.geometric(1 / (1 + mean), 2000).astype(np.int64) - 1
        _, found = best_divisor(numbers, natural_divisor(int(numbers.sum()), numbers.size))
        best = min(golomb_bits(numbers, divisor) for divisor in range(1, 4000, 1 if mean < 100 else 37))
        assert found <= 1.005 * best


def test_an_index_past_the_length_is_refused() -> None:
    bits = golomb(np.array([5, 5], dtype=np.int64), 4)
    with pytest.raises(PayloadError, match="expected less than 11"):
        read_support(BitReader(np.packbits(bits).tobytes()), Layout.GAPS, 11, 2, 4)


def test_numbers_that_would_overflow_are_refused() -> None:
    bits = np.concatenate([np.zeros(31 + 5000, np.uint8), np.ones(1, np.uint8)])
    with pytest.raises(PayloadError, match="expected 100 at most"):
        BitReader(np.packbits(bits).tobytes()).golomb(1, (1 << 31) - 1, each=100)


def test_padding_that_is_not_zero_is_refused() -> None:
    reader = BitReader(b"\x81")
    reader.bits(4)
    with pytest.raises(PayloadError, match="all zero"):
        reader.end()
    with pytest.raises(PayloadError, match="fewer than 8"):
        BitReader(b"\0").end()
