"""The laws of the codec, for every layout and not only the one that wins, and for values at the ends of float32."""

from __future__ import annotations

import numpy as np
import pytest
from decoders import chosen_support, contexts_of, ranked_payloads
from fedmq_compression.contexts import Contexts
from fedmq_compression.frame import checksum, deflate, seal, varint
from fedmq_compression.indices import Layout, rivals
from fedmq_compression.pipeline import CodecSpec, Decoded, PayloadError, decode, encode
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

VALUES_PACKED = 4
SMALLEST = float(np.finfo(np.float32).smallest_subnormal)
LARGEST = 63.9
SPECIAL = (0.0, -0.0, SMALLEST, -SMALLEST, 1e-40, 2.0**-25, -(2.0**-13), 1.0, LARGEST, -LARGEST)

specs = st.builds(
    CodecSpec,
    bits=st.sampled_from([1, 4, 8, 32]),
    density=st.one_of(st.sampled_from([0.01, 0.3, 0.8, 1.0]), st.floats(1e-4, 1.0)),
    step=st.integers(4, 24).map(lambda bits: 2.0**-bits),
)


@st.composite
def deltas(draw: st.DrawFn, at_most: int = 1000) -> NDArray[np.float32]:
    """Ordinary values, with some that are as large, as small or as alike as can be strewn in, or nothing else."""
    length = draw(st.integers(1, at_most))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    values = rng.normal(size=length) * draw(st.sampled_from([0.0, 1e-42, 1e-7, 1e-3, 1.0, 12.0]))
    special = rng.choice(draw(st.lists(st.sampled_from(SPECIAL), min_size=1, max_size=4)), length)
    strewn = rng.random(length) < draw(st.sampled_from([0.0, 0.01, 0.5, 1.0]))
    return np.clip(np.where(strewn, special, values), -LARGEST, LARGEST).astype(np.float32)


@st.composite
def sums(draw: st.DrawFn) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A delta and a residual that together stay below the bound."""
    delta = draw(deltas())
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    size = draw(st.sampled_from([0.0, SMALLEST, 1e-9, 1e-3, 1.0, 100.0]))
    wanted = np.clip(rng.normal(size=delta.size) * size, -LARGEST, LARGEST)
    return delta, (wanted - delta * draw(st.sampled_from([0.0, 1.0]))).clip(-LARGEST - delta, LARGEST - delta).astype(
        np.float32
    )


@st.composite
def contexts_for(draw: st.DrawFn, length: int) -> Contexts | None:
    if draw(st.booleans()):
        return None
    columns = draw(st.sampled_from([count for count in (1, 2, 3, 5, 7, 10) if length % count == 0]))
    return contexts_of(((length // columns, columns),), draw(st.integers(0, 99)))


def same(one: Decoded, other: Decoded) -> bool:
    alike = (one.indices is None) == (other.indices is None) and one.length == other.length and one.step == other.step
    if alike and one.indices is not None and other.indices is not None:
        alike = np.array_equal(one.indices, other.indices)
    return alike and np.array_equal(one.steps, other.steps)


# --- nothing is lost -------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(given_sum=sums(), spec=specs, data=st.data())
def test_decoded_plus_residual_is_delta_plus_old_residual_to_float32_rounding(
    given_sum: tuple[NDArray[np.float32], NDArray[np.float32]], spec: CodecSpec, data: st.DataObject
) -> None:
    delta, old = given_sum
    contexts = data.draw(contexts_for(delta.size))
    encoded = encode(delta, spec, old, contexts=contexts)
    decoded = decode(encoded.payload, delta.size, spec, contexts=contexts).dense().astype(np.float64)
    exact = delta.astype(np.float64) + old
    # Two roundings: of the sum, and of what is left of it. Each is half a unit in the last place of the largest.
    slack = np.maximum(np.abs(exact), np.abs(decoded)) * 2.0**-23 + SMALLEST
    assert np.all(np.abs(decoded + encoded.residual - exact) <= slack)
    assert encoded.residual.dtype == np.float32


@settings(max_examples=150, deadline=None)
@given(given_sum=sums(), spec=specs)
def test_what_is_not_sent_stays_to_the_bit(
    given_sum: tuple[NDArray[np.float32], NDArray[np.float32]], spec: CodecSpec
) -> None:
    delta, old = given_sum
    encoded = encode(delta, spec, old)
    kept = np.ones(delta.size, dtype=bool)
    if encoded.sent.indices is not None:
        kept[encoded.sent.indices] = False
        assert np.array_equal(encoded.residual[kept], (delta + old)[kept])
    assert np.array_equal(encoded.payload, encode(delta + old, spec).payload)


# --- every layout is the identity ------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(delta=deltas(), spec=specs, data=st.data())
def test_every_layout_decodes_to_what_was_sent(
    delta: NDArray[np.float32], spec: CodecSpec, data: st.DataObject
) -> None:
    won = encode(delta, spec)
    assert same(decode(won.payload, delta.size, spec), won.sent)
    for payload in forced(won.sent, won.payload, delta, spec):
        assert same(decode(payload, delta.size, spec), won.sent)
    contexts = data.draw(contexts_for(delta.size))
    if contexts is not None:
        for payload, encoded in ranked_payloads(delta, spec, contexts):
            assert same(decode(payload, delta.size, spec, contexts=contexts), won.sent)
            assert same(encoded.sent, won.sent), "contexts change how a delta is told, not what is sent"


def forced(sent: Decoded, won: bytes, delta: NDArray[np.float32], spec: CodecSpec) -> list[bytes]:
    """A payload of each layout that can tell `sent`, each with values both plain and, at 4 and 8 bits, packed."""
    nothing = np.zeros(0, dtype=np.uint8)
    if not sent.steps.size:
        return []
    plain = [(won, nothing)]
    if sent.indices is not None:
        plain = []
        for support in rivals(sent.indices, delta.size):
            with chosen_support(support):
                plain.append((encode(delta, spec).payload, support.bits))
    made = [payload for payload, _ in plain]
    if spec.bits in (4, 8):
        for payload, bits in plain:
            if not payload[0] & VALUES_PACKED:
                made += packed(payload[:-2], bits, sent, spec)
    return made


def packed(body: bytes, support: NDArray[np.uint8], sent: Decoded, spec: CodecSpec) -> list[bytes]:
    """The same with its values in a zstd frame, unless that is longer than they are: no decoder takes it then."""
    code_bits = sent.steps.size * spec.bits
    size = (code_bits + support.size + 7) // 8
    head, sections = body[:-size], np.frombuffer(body[-size:], dtype=np.uint8)
    codes = np.packbits(np.unpackbits(sections)[:code_bits]).tobytes()
    frame = deflate(codes)
    if len(frame) > len(codes):
        return []
    told = b"" if sent.indices is None else varint(len(frame))
    body = bytes([head[0] | VALUES_PACKED]) + head[1:] + told + frame + np.packbits(support).tobytes()
    return [seal(body, spec.agreed(sent.length))]


def test_each_layout_is_among_those_that_are_forced() -> None:
    rng = np.random.default_rng(0)
    seen = set()
    for bits in (1, 4, 8, 32):
        for density in (0.02, 0.7, 1.0):
            spec = CodecSpec(bits=bits, density=density, step=2.0**-24)
            delta = np.where(rng.random(400) < 0.03, 1.0, 0.5).astype(np.float32)
            won = encode(delta, spec)
            seen |= {(payload[0] >> 4, bool(payload[0] & 4)) for payload in forced(won.sent, won.payload, delta, spec)}
            for payload, _ in ranked_payloads(delta, spec, contexts_of(((40, 10),), 1)):
                seen.add((payload[0] >> 4, False))
    plain = {layout for layout, values_packed in seen if not values_packed}
    assert plain == {Layout.DENSE, Layout.GAPS, Layout.UNSENT_GAPS, Layout.BITMAP, Layout.RANKED}
    assert {layout for layout, values_packed in seen if values_packed} == plain - {Layout.RANKED}


# --- one delta, one payload ------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(delta=deltas(), spec=specs, data=st.data())
def test_equal_deltas_are_equal_bytes(delta: NDArray[np.float32], spec: CodecSpec, data: st.DataObject) -> None:
    contexts = data.draw(contexts_for(delta.size))
    payload = encode(delta, spec, contexts=contexts).payload
    other_zeros = np.where(delta == 0, np.float32(-0.0), delta)
    every_second = np.zeros(2 * delta.size, dtype=np.float32)
    every_second[::2] = delta
    read_only = delta.copy()
    read_only.flags.writeable = False
    for equal in (other_zeros, every_second[::2], delta.astype(">f4"), read_only, delta.astype(np.float64)):
        assert encode(equal, spec, contexts=contexts).payload == payload  # type: ignore[arg-type]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(delta=deltas(at_most=300), spec=specs, other=specs, length=st.integers(1, 300), data=st.data())
def test_a_payload_is_refused_by_whoever_expects_another_length_spec_or_base(
    delta: NDArray[np.float32], spec: CodecSpec, other: CodecSpec, length: int, data: st.DataObject
) -> None:
    contexts = data.draw(contexts_for(delta.size))
    expected = data.draw(contexts_for(length))
    payload = encode(delta, spec, contexts=contexts).payload
    here = spec.agreed(delta.size) + (contexts.mark if contexts else b"")
    there = other.agreed(length) + (expected.mark if expected else b"")
    assume(here != there)
    # One in 65,536 has the same checksum for both: the examples are the same in every run, and none of them is one.
    assert checksum(payload[:-2], here) != checksum(payload[:-2], there)
    with pytest.raises(PayloadError, match=r"checksum|bytes, expected"):
        decode(payload, length, other, contexts=expected)
