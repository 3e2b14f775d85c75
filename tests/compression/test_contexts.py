"""The ranking, and the codes along it: the same at both ends, exact for every support, and unmoved by junk."""

from __future__ import annotations

import numpy as np
import pytest
from fedmq_compression import contexts as module
from fedmq_compression.bits import BitReader
from fedmq_compression.contexts import Contexts, SignPlan, code_ranked, code_signs, read_ranked, read_signs
from fedmq_compression.pipeline import CodecSpec, PayloadError, decode, encode
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

SHAPES = ((23, 16), (17, 12), (13, 4))
LENGTH = sum(rows * columns for rows, columns in SHAPES)


def displacement(seed: int = 0, size: int = 40, length: int = LENGTH) -> NDArray[np.int32]:
    rng = np.random.default_rng(seed)
    return (rng.integers(-size, size + 1, length) * (rng.random(length) < 0.3)).astype(np.int32)


@st.composite
def ranked(draw: st.DrawFn) -> tuple[Contexts, NDArray[np.int64], NDArray[np.bool_]]:
    """Contexts of any shape, with a support of any density and signs."""
    shapes = draw(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=5))
    length = sum(rows * columns for rows, columns in shapes)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    moved = rng.integers(-(2 ** draw(st.integers(0, 30))), 2 ** draw(st.integers(0, 30)), length)
    moved[rng.random(length) < draw(st.floats(0, 1))] = 0
    contexts = Contexts.of(moved.astype(np.int32), shapes)
    count = draw(st.integers(1, length))
    likely = rng.random(length) * np.where(contexts.rank < length // 4, draw(st.sampled_from([1.0, 5.0])), 1.0)
    indices = np.sort(np.argsort(-likely, kind="stable")[:count])
    return contexts, indices, rng.random(count) < draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))


def reader_of(bits: NDArray[np.uint8]) -> BitReader:
    return BitReader(np.packbits(bits).tobytes())


@settings(max_examples=300, deadline=None)
@given(ranked())
def test_a_support_along_a_ranking_is_told_exactly(
    case: tuple[Contexts, NDArray[np.int64], NDArray[np.bool_]],
) -> None:
    contexts, indices, _ = case
    reader = reader_of(code_ranked(contexts, indices))
    assert np.array_equal(read_ranked(reader, contexts, indices.size), indices)
    reader.end()


@pytest.mark.parametrize("plan", list(SignPlan))
@settings(max_examples=100, deadline=None)
@given(case=ranked())
def test_signs_are_told_exactly_by_every_plan(
    plan: SignPlan, case: tuple[Contexts, NDArray[np.int64], NDArray[np.bool_]]
) -> None:
    contexts, indices, negative = case
    told = {
        SignPlan.PLAIN: lambda: negative.astype(np.uint8),
        SignPlan.COLUMN: lambda: module._code_by_column(contexts, indices, negative),
        SignPlan.LEAN: lambda: module._code_by_lean(contexts, indices, negative),
    }[plan]()
    reader = reader_of(np.concatenate([np.array([plan >> 1, plan & 1], dtype=np.uint8), told]))
    assert np.array_equal(read_signs(reader, contexts, indices), negative)
    reader.end()


@settings(max_examples=100, deadline=None)
@given(ranked())
def test_the_cheapest_plan_for_signs_is_taken(case: tuple[Contexts, NDArray[np.int64], NDArray[np.bool_]]) -> None:
    contexts, indices, negative = case
    told = code_signs(contexts, indices, negative)
    assert told.size <= 2 + indices.size
    reader = reader_of(told)
    assert np.array_equal(read_signs(reader, contexts, indices), negative)


@settings(max_examples=200, deadline=None)
@given(ranked(), st.sampled_from([1, 4, 8, 32]))
def test_a_payload_with_contexts_decodes_to_what_was_sent(
    case: tuple[Contexts, NDArray[np.int64], NDArray[np.bool_]], bits: int
) -> None:
    contexts, indices, negative = case
    delta = np.zeros(contexts.length, dtype=np.float32)
    delta[indices] = np.where(negative, -0.25, 0.25)
    spec = CodecSpec(bits=bits, density=min(1.0, indices.size / contexts.length), step=2.0**-12)
    encoded = encode(delta, spec, contexts=contexts)
    decoded = decode(encoded.payload, contexts.length, spec, contexts=contexts)
    assert np.array_equal(decoded.dense(), encoded.sent.dense())
    assert np.array_equal(encoded.residual + encoded.sent.dense(), delta)
    assert len(encoded.payload) <= len(encode(delta, spec).payload)


@settings(max_examples=300, deadline=None)
@given(ranked(), st.binary(max_size=400))
def test_junk_is_a_payload_error_and_nothing_else(
    case: tuple[Contexts, NDArray[np.int64], NDArray[np.bool_]], junk: bytes
) -> None:
    contexts, indices, _ = case
    try:
        reader = BitReader(junk)
        found = read_ranked(reader, contexts, indices.size)
        assert found.size == indices.size
        assert (np.diff(found) > 0).all()
        read_signs(reader, contexts, found)
        reader.end()
    except PayloadError:
        pass


def test_the_likeliest_coordinates_come_first() -> None:
    moved = np.zeros((4, 5), dtype=np.int32)
    moved[2] = 7
    moved[:, 3] += 9
    contexts = Contexts.of(moved.ravel(), ((4, 5),))
    assert contexts.order[0] == 2 * 5 + 3
    assert set(contexts.order[:5] // 5) == {2}
    assert np.array_equal(contexts.rank[contexts.order], np.arange(20))


def test_a_support_where_the_model_has_moved_costs_less_than_one_spread_at_random() -> None:
    rng = np.random.default_rng(1)
    moved = np.outer(rng.random(120) ** 6, rng.random(80) ** 6).ravel()
    contexts = Contexts.of((moved * 1000).astype(np.int32), ((120, 80),))
    spec = CodecSpec(bits=1, density=0.01, step=2.0**-12)
    likely = (moved * rng.exponential(size=moved.size) + 0.001).astype(np.float32)
    anywhere = rng.exponential(size=moved.size).astype(np.float32)
    assert len(encode(likely, spec, contexts=contexts).payload) < 0.8 * len(encode(likely, spec).payload)
    assert len(encode(anywhere, spec, contexts=contexts).payload) <= len(encode(anywhere, spec).payload)


def test_contexts_of_another_model_are_refused_by_the_checksum() -> None:
    spec = CodecSpec(bits=1, density=0.05, step=2.0**-12)
    delta = np.random.default_rng(3).normal(size=LENGTH).astype(np.float32)
    payload = encode(delta, spec, contexts=Contexts.of(displacement(1), SHAPES)).payload
    other = displacement(1)
    other[5] += 1
    with pytest.raises(PayloadError, match="checksum"):
        decode(payload, LENGTH, spec, contexts=Contexts.of(other, SHAPES))
    with pytest.raises(PayloadError, match="checksum"):
        decode(payload, LENGTH, spec)


def test_a_ranked_payload_without_contexts_says_what_is_missing() -> None:
    from fedmq_compression.frame import seal

    spec = CodecSpec(bits=1, density=0.05, step=2.0**-12)
    with pytest.raises(PayloadError, match="there are no contexts"):
        decode(seal(bytes([0x50, 1, 2, 3]), spec.agreed(LENGTH)), LENGTH, spec)


@pytest.mark.parametrize(
    ("moved", "shapes"),
    [
        (np.zeros(10, dtype=np.int32), ((3, 4),)),
        (np.zeros(12, dtype=np.int64), ((3, 4),)),
        (np.zeros((3, 4), dtype=np.int32), ((3, 4),)),
    ],
)
def test_a_displacement_that_does_not_fit_its_shapes_is_refused(
    moved: NDArray[np.int32], shapes: tuple[tuple[int, int], ...]
) -> None:
    with pytest.raises(ValueError, match="expected"):
        Contexts.of(moved, shapes)


def test_contexts_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match="contexts of"):
        encode(
            np.ones(9, dtype=np.float32),
            CodecSpec(bits=1, density=0.5, step=2.0**-12),
            contexts=Contexts.of(displacement(), SHAPES),
        )


def test_the_logarithms_of_the_ranking_are_exact_at_every_threshold() -> None:
    for eighth, threshold in enumerate(module._LOG_TABLE.tolist(), start=1):
        assert (threshold - 1) ** 8 < 2**eighth <= threshold**8


def test_a_model_that_moved_as_far_as_a_model_can_has_contexts() -> None:
    far = np.full(LENGTH, -(2**30), dtype=np.int32)
    far[::7] = 2**30
    assert Contexts.of(far, SHAPES).order.size == LENGTH
