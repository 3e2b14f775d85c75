"""The layouts that the codec is held against: each tells the indices and signs that it was given."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmq.bench.rivals import RIVALS, MissingRivalError, Rival, entropy_bits, log2_choose

NAMED = {rival.name: rival for rival in RIVALS}


@st.composite
def supports(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int]:
    length = draw(st.integers(1, 200_000))
    count = draw(st.integers(1, min(length, 300)))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    indices = np.sort(rng.choice(length, count, replace=False)).astype(np.int64)
    return indices, rng.random(count) < 0.5, length


@pytest.mark.parametrize("rival", RIVALS, ids=lambda rival: rival.name)
@given(support=supports())
@settings(max_examples=60, deadline=None)
def test_a_rival_tells_what_it_was_given(rival: Rival, support: tuple[np.ndarray, np.ndarray, int]) -> None:
    if rival.name == "roaring":
        pytest.importorskip("pyroaring", reason="needs pyroaring: pip install 'fedmq[bench]'")
    indices, negative, length = support
    got, got_negative = rival.decode(rival.encode(indices, negative, length), length, indices.size)
    np.testing.assert_array_equal(got, indices)
    np.testing.assert_array_equal(got_negative, negative)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        # Signs 0 1 1, then a bit for each of 16 coordinates.
        ("bitmap", "011" + "0100000010000001"),
        # Gaps 0-based: 1, 6, 6, each a byte.
        ("varint", "011" + "00000001" + "00000110" + "00000110"),
        # 16 // 3 = 5: two low bits 01, 00, 11; high parts 0, 2, 3.
        ("Elias-Fano", "011" + "010011" + "1" + "001" + "01"),
        # Density 3 / 16: two bits of gaps 1, 6, 6: 01, 10, 10, quotients 0, 1, 1.
        ("Rice", "011" + "011010" + "1" + "01" + "01"),
    ],
)
def test_a_layout_is_the_one_that_the_books_describe(name: str, data: str) -> None:
    padded = data + "0" * (-len(data) % 8)
    expected = bytes(int(padded[at : at + 8], 2) for at in range(0, len(padded), 8))
    indices = np.array([1, 8, 15], dtype=np.int64)
    assert NAMED[name].encode(indices, np.array([False, True, True]), 16) == expected


def test_a_long_gap_takes_more_bytes_as_a_varint() -> None:
    signs = np.zeros(1, dtype=bool)
    sizes = [len(NAMED["varint"].encode(np.array([at]), signs, 1 << 22)) for at in (127, 128, 16_383, 16_384)]
    assert sizes == [2, 3, 3, 4]  # a sign bit and its padding are one byte


def test_rice_at_random_stays_close_to_the_bound_and_the_others_lie_above() -> None:
    length, count = 100_000, 1000
    rng = np.random.default_rng(0)
    indices = np.sort(rng.choice(length, count, replace=False)).astype(np.int64)
    negative = rng.random(count) < 0.5
    bound = (log2_choose(length, count) + count) / 8
    sizes = {r.name: len(r.encode(indices, negative, length)) for r in RIVALS if r.name != "roaring"}
    assert bound < sizes["Rice"] < 1.03 * bound
    assert sizes["Rice"] < sizes["Elias-Fano"] < sizes["varint"] < sizes["bitmap"]


@given(st.integers(1, 200), st.data())
def test_the_bound_counts_the_ways_to_choose(length: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, length))
    assert log2_choose(length, count) == pytest.approx(math.log2(math.comb(length, count)), abs=1e-6)


def test_signs_of_one_kind_have_no_entropy_and_even_ones_a_bit_each() -> None:
    assert entropy_bits(np.zeros(50, dtype=bool)) == 0
    assert entropy_bits(np.arange(50) % 2 == 0) == pytest.approx(50)
    assert entropy_bits(np.zeros(0, dtype=bool)) == 0


def test_without_pyroaring_the_error_names_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyroaring", None)
    with pytest.raises(MissingRivalError, match=r"pip install 'fedmq\[bench\]'"):
        NAMED["roaring"].encode(np.array([3]), np.zeros(1, dtype=bool), 10)
