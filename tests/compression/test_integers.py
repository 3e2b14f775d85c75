"""Merged deltas and keyframes come back bit for bit, and junk is refused."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from fedmq_compression.frame import seal
from fedmq_compression.integers import Plan, layouts
from fedmq_compression.integers import _agreed as agreed
from fedmq_compression.pipeline import CodecSpec, PayloadError, decode_integers, encode, encode_integers
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray


def keyframe(length: int, seed: int = 0) -> NDArray[np.int32]:
    """Small differences to the start, of another size in each layer."""
    rng = np.random.default_rng(seed)
    third = length // 3
    sizes = np.concatenate([np.full(third, 4.0), np.full(third, 40.0), np.full(length - 2 * third, 9.0)])
    return np.rint(rng.normal(size=length) * sizes).astype(np.int32)


def merged(length: int, versions: int, seed: int = 0) -> NDArray[np.int32]:
    """The sum of a few 1 % deltas of one bit."""
    rng = np.random.default_rng(seed)
    total = np.zeros(length, dtype=np.int32)
    for _ in range(versions):
        at = rng.choice(length, length // 100, replace=False)
        total[at] += (rng.integers(0, 2, at.size) * 2 - 1).astype(np.int32) * int(rng.integers(30, 60))
    return total


@st.composite
def vectors(draw: st.DrawFn) -> NDArray[np.int32]:
    length = draw(st.integers(1, 3000))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    largest = draw(st.sampled_from([0, 1, 3, 200, 70_000, 2**24, 2**30]))
    values = rng.integers(-largest, largest + 1, length)
    return (values * (rng.random(length) < draw(st.sampled_from([0.01, 0.2, 1.0])))).astype(np.int32)


@pytest.mark.parametrize("magnitude", [1, 2**24, 2**30 - 1, 2**30])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("zeros", [0, 1, 99])
def test_numbers_at_the_bound_survive(magnitude: int, sign: int, zeros: int) -> None:
    values = np.array([0] * zeros + [sign * magnitude] * 3 + [-sign * magnitude], dtype=np.int32)
    for body in layouts(values.astype(np.int64)):
        assert np.array_equal(decode_integers(seal(body, agreed(values.size)), values.size), values)


@settings(max_examples=300, deadline=None)
@given(values=vectors())
def test_every_layout_gives_the_numbers_back(values: NDArray[np.int32]) -> None:
    assert np.array_equal(decode_integers(encode_integers(values), values.size), values)
    for body in layouts(values.astype(np.int64)):
        assert np.array_equal(decode_integers(seal(body, agreed(values.size)), values.size), values)


def test_each_layout_wins_somewhere() -> None:
    blocks = np.repeat(np.arange(40, dtype=np.int32) * 1000 - 7, 100)
    one_of_a_kind = np.zeros(10_000, dtype=np.int32)
    one_of_a_kind[::100] = np.arange(1, 101) * 37
    wide = np.rint(np.random.default_rng(3).normal(size=3000) * 1e5).astype(np.int32)
    examples = [np.zeros(10, np.int32), blocks, wide, one_of_a_kind, merged(18_308, 1), merged(18_308, 10)]
    heads = [encode_integers(values)[0] for values in examples]
    assert sorted(head & 0x7F for head in heads) == sorted(Plan)


def test_a_merged_delta_is_smaller_than_the_chain_it_replaces() -> None:
    # Supports overlap from round to round: here all fall into the same fifth of the coordinates.
    rng = np.random.default_rng(2)
    hot = rng.choice(18_308, 3600, replace=False)
    spec = CodecSpec(bits=1, density=0.01, step=2.0**-12)
    total = np.zeros(18_308, dtype=np.int64)
    chain = 0
    for _ in range(20):
        delta = np.zeros(18_308, dtype=np.float32)
        delta[rng.choice(hot, 183, replace=False)] = rng.choice([-0.01, 0.01], 183)
        encoded = encode(delta, spec)
        encoded.sent.add_to(total, 1)
        chain += len(encoded.payload)
    assert len(encode_integers(total.astype(np.int32))) < 0.7 * chain


def test_a_keyframe_costs_about_its_entropy() -> None:
    values = keyframe(18_000)
    third = values.size // 3
    bits = 0.0
    for size in (4.0, 40.0, 9.0):
        bits += third * (np.log2(size) + 2.047)  # of a rounded normal distribution
    assert len(encode_integers(values)) < 1.15 * bits / 8


def test_numbers_out_of_bounds_are_refused() -> None:
    with pytest.raises(ValueError, match="at most"):
        encode_integers(np.array([2**30 + 1], dtype=np.int32))
    with pytest.raises(ValueError, match="at most"):
        encode_integers(np.array([-(2**31)], dtype=np.int32))
    with pytest.raises(ValueError, match="int32"):
        encode_integers(np.array([1], dtype=np.int64))  # type: ignore[arg-type]
    payload = encode_integers(np.array([5, -100], dtype=np.int32))
    assert decode_integers(payload, 2, max_abs=100).tolist() == [5, -100]
    with pytest.raises(PayloadError, match="magnitude 100"):
        decode_integers(payload, 2, max_abs=99)


def test_another_length_is_refused() -> None:
    payload = encode_integers(merged(1000, 3))
    for length in (999, 1001, 1):
        with pytest.raises(PayloadError):
            decode_integers(payload, length)


@pytest.mark.parametrize("plan", sorted(Plan), ids=lambda plan: plan.name)
def test_no_bytes_bring_anything_but_a_payload_error(plan: Plan) -> None:
    rng = np.random.default_rng(9)
    length = 500
    bodies = [
        body
        for values in (merged(length, 4), keyframe(length), np.zeros(length, np.int32))
        for body in layouts(values.astype(np.int64))
        if body[0] & 0x7F == plan
    ]
    refused = 0
    tracemalloc.start()
    try:
        for trial in range(3000):
            body = bytearray(bodies[trial % len(bodies)])
            kind = trial % 5
            if kind == 0:
                for at in rng.integers(0, len(body), rng.integers(1, 4)):
                    body[at] ^= 1 << rng.integers(8)
            elif kind == 1:
                body[rng.integers(min(8, len(body)))] = rng.integers(256)
            elif kind == 2:
                del body[rng.integers(len(body)) :]
            elif kind == 3:
                body += rng.bytes(rng.integers(1, 20))
            else:
                body = bytearray(bytes([0x80 | plan]) + rng.bytes(rng.integers(0, 100)))
            try:
                values = decode_integers(seal(bytes(body), agreed(length)), length, max_abs=1 << 20)
            except PayloadError:
                refused += 1
                continue
            assert values.shape == (length,)
            assert np.abs(values).max() <= 1 << 20
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    assert refused > 1000
