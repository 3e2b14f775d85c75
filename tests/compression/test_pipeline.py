"""The law, the door's promises, and every kind of junk that a network can bring."""

from __future__ import annotations

import math
import struct
import tracemalloc

import numpy as np
import pytest
import zstandard
from fedmq_compression.frame import seal
from fedmq_compression.indices import Layout
from fedmq_compression.pipeline import CodecSpec, Decoded, PayloadError, decode, encode
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

pytestmark = pytest.mark.usefixtures("either_way")

UPLINK = 2.0**-24
DOWNLINK = 2.0**-12

specs = st.builds(
    CodecSpec,
    bits=st.sampled_from([1, 4, 8, 32]),
    density=st.one_of(st.sampled_from([0.01, 0.5, 1.0]), st.floats(1e-4, 1.0)),
    step=st.integers(4, 24).map(lambda bits: 2.0**-bits),
)


@st.composite
def deltas(draw: st.DrawFn) -> NDArray[np.float32]:
    """Vectors of many shapes: gaussian, heavy-tailed, ties, sparse, tiny, huge, zero."""
    length = draw(st.integers(1, 6000))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    size = draw(st.sampled_from([1e-9, 1e-6, 1e-3, 0.1, 1.0, 10.0]))
    kind = draw(st.sampled_from(["normal", "heavy", "ties", "sparse", "zero", "outlier"]))
    if kind == "normal":
        values = rng.normal(size=length)
    elif kind == "heavy":
        values = rng.standard_cauchy(length)
    elif kind == "ties":
        values = rng.integers(-2, 3, length).astype(float)
    elif kind == "sparse":
        values = rng.normal(size=length) * (rng.random(length) < 0.02)
    elif kind == "zero":
        values = np.zeros(length)
    else:
        values = rng.normal(size=length) * 1e-3
        values[length // 2] = 30.0
    return np.clip(values * size, -31.9, 31.9).astype(np.float32)


def normal(length: int, seed: int = 0, size: float = 0.01) -> NDArray[np.float32]:
    return (np.random.default_rng(seed).normal(size=length) * size).astype(np.float32)


def same(one: Decoded, other: Decoded) -> bool:
    if (one.indices is None) != (other.indices is None):
        return False
    if one.indices is not None and not np.array_equal(one.indices, other.indices):
        return False
    return one.length == other.length and one.step == other.step and np.array_equal(one.steps, other.steps)


# --- the law ---------------------------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(delta=deltas(), spec=specs, seed=st.integers(0, 2**32), gain=st.floats(1.0, 1.99))
def test_what_is_decoded_plus_the_residual_is_what_was_put_in(
    delta: NDArray[np.float32], spec: CodecSpec, seed: int, gain: float
) -> None:
    residual = normal(delta.size, seed)
    encoded = encode(delta, spec, residual, gain=gain)
    decoded = decode(encoded.payload, delta.size, spec)
    assert same(decoded, encoded.sent)
    wanted = delta + residual
    # One subtraction in float32: half a unit in the last place of the larger of the two.
    slack = np.maximum(np.abs(wanted), np.abs(decoded.dense())) * 2.0**-23
    assert np.all(np.abs(decoded.dense().astype(float) + encoded.residual - wanted) <= slack)


@settings(max_examples=200, deadline=None)
@given(delta=deltas(), spec=specs)
def test_decoded_values_are_whole_steps_below_64_and_exact_in_float32(
    delta: NDArray[np.float32], spec: CodecSpec
) -> None:
    sent = encode(delta, spec).sent
    values = sent.steps * spec.step
    assert np.array_equal(values.astype(np.float32).astype(float), values)
    assert np.all(np.abs(values) < 64)
    if sent.indices is not None:
        assert sent.steps.all()
        assert np.all(np.diff(sent.indices) > 0)
        assert sent.steps.size <= spec.target(delta.size)


def test_a_gain_makes_the_sparse_signs_larger_and_changes_nothing_else() -> None:
    delta = normal(5000)
    spec = CodecSpec(bits=1, density=0.02, step=UPLINK)
    plain, more = encode(delta, spec), encode(delta, spec, gain=1.5)
    assert np.array_equal(plain.sent.indices, more.sent.indices)
    assert np.array_equal(np.sign(plain.sent.steps), np.sign(more.sent.steps))
    assert more.sent.steps / plain.sent.steps == pytest.approx(1.5, rel=2e-3)
    assert len(more.payload) == len(plain.payload)


@pytest.mark.parametrize(("bits", "density"), [(1, 1.0), (4, 0.1), (4, 1.0), (32, 0.1)])
def test_a_gain_is_for_sparse_signs_alone(bits: int, density: float) -> None:
    spec = CodecSpec(bits=bits, density=density, step=UPLINK)
    delta = normal(500)
    assert encode(delta, spec, gain=1.5).payload == encode(delta, spec).payload


@pytest.mark.parametrize("gain", [0.99, 2.0, math.nan, math.inf])
def test_a_gain_that_does_not_settle_is_refused(gain: float) -> None:
    with pytest.raises(ValueError, match="gain is"):
        encode(normal(500), CodecSpec(bits=1, density=0.02, step=UPLINK), gain=gain)


@pytest.mark.parametrize("bits", [1, 4, 8, 32])
@pytest.mark.parametrize("density", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("gain", [1.0, 1.5])
def test_with_error_feedback_everything_arrives_in_the_end(bits: int, density: float, gain: float) -> None:
    spec = CodecSpec(bits=bits, density=density, step=UPLINK)
    delta = normal(2000)
    residual = None
    arrived = np.zeros(2000)
    for number in range(300):
        encoded = encode(delta if number == 0 else np.zeros(2000, np.float32), spec, residual, gain=gain)
        arrived += encoded.sent.dense()
        residual = encoded.residual
    assert np.linalg.norm(arrived - delta) < 0.1 * np.linalg.norm(delta)


def test_32_bits_and_full_density_leave_less_than_half_a_step() -> None:
    encoded = encode(normal(5000), CodecSpec(bits=32, density=1.0, step=UPLINK))
    assert np.abs(encoded.residual).max() <= UPLINK / 2
    assert encoded.sent.indices is None


@pytest.mark.parametrize("bits", [1, 4, 8, 32])
@pytest.mark.parametrize("density", [0.01, 1.0])
def test_a_delta_of_zeros_costs_three_bytes_and_decodes_to_zeros(bits: int, density: float) -> None:
    spec = CodecSpec(bits=bits, density=density, step=UPLINK)
    encoded = encode(np.zeros(1000, np.float32), spec)
    assert len(encoded.payload) == 3
    assert not decode(encoded.payload, 1000, spec).dense().any()


def test_what_rounds_to_less_than_half_a_step_stays_in_the_residual() -> None:
    spec = CodecSpec(bits=1, density=0.01, step=DOWNLINK)
    delta = np.full(1000, DOWNLINK / 4, np.float32)
    delta[7] = 3 * DOWNLINK
    encoded = encode(delta, spec)
    assert encoded.sent.indices is not None
    assert encoded.sent.indices.tolist() == [7]
    assert encoded.residual[7] == 0


@settings(max_examples=100, deadline=None)
@given(delta=deltas(), spec=specs)
def test_the_same_input_gives_the_same_bytes(delta: NDArray[np.float32], spec: CodecSpec) -> None:
    kept = delta.copy()
    assert encode(delta, spec).payload == encode(delta.copy(), spec).payload
    assert np.array_equal(kept, delta), "the caller's vector was changed"


def test_values_up_to_the_bound_survive_at_every_width_and_step() -> None:
    edge = np.float32(np.nextafter(np.float32(64), np.float32(0)))
    for bits in (1, 4, 8, 32):
        for exponent in (4, 12, 24):
            for density in (0.01, 1.0):
                spec = CodecSpec(bits=bits, density=density, step=2.0**-exponent)
                delta = np.full(300, -edge, np.float32)
                encoded = encode(delta, spec)
                assert same(decode(encoded.payload, 300, spec), encoded.sent)
                assert np.abs(encoded.sent.dense()).max() < 64
                assert np.abs(encoded.sent.dense()).max() >= 56  # seven eighths: 128 levels of 7 coarse steps


# --- size ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [18_308, 100_000])
@pytest.mark.parametrize("density", [0.0025, 0.01, 0.02, 0.05, 0.1, 0.5, 0.9])
def test_bytes_stay_within_three_percent_of_the_entropy_and_a_head_of_six(length: int, density: float) -> None:
    spec = CodecSpec(bits=1, density=density, step=UPLINK)
    count = spec.target(length)
    ways = math.lgamma(length + 1) - math.lgamma(count + 1) - math.lgamma(length - count + 1)
    bits = ways / math.log(2) + count
    assert len(encode(normal(length), spec).payload) <= 1.03 * bits / 8 + 6


def test_one_percent_of_18308_coordinates_is_under_220_bytes() -> None:
    spec = CodecSpec(bits=1, density=0.01, step=UPLINK)
    for seed in range(5):
        assert len(encode(normal(18_308, seed), spec).payload) < 220


def test_a_support_in_clusters_costs_less_than_a_scattered_one() -> None:
    spec = CodecSpec(bits=1, density=0.05, step=UPLINK)
    scattered, clustered = normal(20_000, size=1e-4), normal(20_000, size=1e-4)
    scattered[np.random.default_rng(1).choice(20_000, 1000, replace=False)] = 0.5
    for start in range(0, 20_000, 2000):
        clustered[start : start + 100] = 0.5
    assert 2 * len(encode(clustered, spec).payload) < len(encode(scattered, spec).payload)


def test_values_that_repeat_are_packed() -> None:
    delta = np.zeros(10_000, np.float32)
    delta[::5] = 0.25
    delta[0] = 1.0
    for bits in (4, 8):
        spec = CodecSpec(bits=bits, density=1.0, step=UPLINK)
        encoded = encode(delta, spec)
        assert len(encoded.payload) < 200
        assert same(decode(encoded.payload, delta.size, spec), encoded.sent)


# --- use of what was decoded -----------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(delta=deltas(), spec=specs, weight=st.integers(0, 1 << 12))
def test_adding_is_the_weighted_sum_in_whole_steps(delta: NDArray[np.float32], spec: CodecSpec, weight: int) -> None:
    sent = encode(delta, spec).sent
    total = np.arange(delta.size, dtype=np.int64)
    sent.add_to(total, weight)
    whole = np.rint(sent.dense().astype(float) / spec.step).astype(np.int64)
    assert np.array_equal(total, np.arange(delta.size) + weight * whole)
    assert sent.norm() == pytest.approx(float(np.linalg.norm(sent.dense().astype(float))), rel=1e-9)


def test_adding_to_a_total_of_another_length_or_type_is_refused() -> None:
    sent = encode(normal(100), CodecSpec(bits=1, density=0.1, step=UPLINK)).sent
    with pytest.raises(ValueError, match="expected \\(100,\\) int64"):
        sent.add_to(np.zeros(101, np.int64), 1)
    with pytest.raises(ValueError, match="expected \\(100,\\) int64"):
        sent.add_to(np.zeros(100, np.int32), 1)  # type: ignore[arg-type]


# --- what encode refuses ---------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 64.0, -1e30])
def test_a_value_that_is_not_finite_or_too_large_is_refused(bad: float) -> None:
    delta = normal(100)
    delta[3] = bad
    with pytest.raises(ValueError, match="below 64"):
        encode(delta, CodecSpec(bits=1, density=0.1, step=UPLINK))


@pytest.mark.filterwarnings("error")
def test_infinities_that_cancel_are_refused() -> None:
    infinite = np.full(10, np.inf, np.float32)
    with pytest.raises(ValueError, match="below 64"):
        encode(infinite, CodecSpec(bits=1, density=0.1, step=UPLINK), -infinite)


def test_delta_and_residual_that_sum_to_the_bound_are_refused() -> None:
    half = np.full(10, 32, np.float32)
    with pytest.raises(ValueError, match="below 64"):
        encode(half, CodecSpec(bits=1, density=0.1, step=UPLINK), half)


def test_a_residual_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="residual has shape"):
        encode(normal(10), CodecSpec(bits=1, density=0.1, step=UPLINK), normal(11))


@pytest.mark.parametrize(
    ("bits", "density", "step"),
    [(2, 0.1, UPLINK), (1, 0.0, UPLINK), (1, 1.5, UPLINK), (1, math.nan, UPLINK), (1, 0.1, 0.001), (1, 0.1, 2.0**-25)],
)
def test_a_spec_that_makes_no_sense_is_refused(bits: int, density: float, step: float) -> None:
    with pytest.raises(ValueError, match="expected"):
        CodecSpec(bits=bits, density=density, step=step)


# --- bytes from outside ----------------------------------------------------------------------------------------------


def test_a_payload_for_another_length_or_spec_is_refused() -> None:
    spec = CodecSpec(bits=1, density=0.01, step=UPLINK)
    payload = encode(normal(18_308), spec).payload
    others = [
        (18_307, spec),
        (18_309, spec),
        (18_308, CodecSpec(bits=4, density=0.01, step=UPLINK)),
        (18_308, CodecSpec(bits=1, density=0.02, step=UPLINK)),
        (18_308, CodecSpec(bits=1, density=0.01, step=DOWNLINK)),
    ]
    for length, other in others:
        with pytest.raises(PayloadError):
            decode(payload, length, other)


def test_every_single_bit_error_is_noticed() -> None:
    spec = CodecSpec(bits=1, density=0.01, step=UPLINK)
    payload = encode(normal(3000), spec).payload
    for at in range(8 * len(payload)):
        broken = bytearray(payload)
        broken[at // 8] ^= 1 << at % 8
        with pytest.raises(PayloadError):
            decode(bytes(broken), 3000, spec)


def test_every_truncation_and_every_tail_is_refused() -> None:
    for bits in (1, 4, 8, 32):
        for density in (0.05, 1.0):
            spec = CodecSpec(bits=bits, density=density, step=UPLINK)
            payload = encode(normal(400), spec).payload
            body = payload[:-2]
            for broken in [body[:cut] for cut in range(len(body))] + [body + b"\0", body + body]:
                with pytest.raises(PayloadError):
                    decode(seal(broken, spec.agreed(400)), 400, spec)
                with pytest.raises(PayloadError):
                    decode(broken, 400, spec)


FUZZED = [
    CodecSpec(bits=bits, density=density, step=step)
    for bits in (1, 4, 8, 32)
    for density, step in ((0.02, UPLINK), (0.3, DOWNLINK), (0.8, DOWNLINK), (1.0, UPLINK))
]


@pytest.mark.parametrize("spec", FUZZED, ids=lambda spec: f"{spec.bits}-bits-{spec.density}")
def test_no_bytes_bring_anything_but_a_payload_error(spec: CodecSpec) -> None:
    """Mutations with a checksum that fits, so that they reach the parser; and what is accepted is well-formed."""
    rng = np.random.default_rng(5)
    length = 700
    lumps = np.zeros(length, np.float32)
    lumps[100:300] = 0.5
    bodies = [
        encode(values, spec).payload[:-2] for values in (normal(length), lumps, lumps + normal(length, size=1e-3))
    ]
    refused = 0
    for trial in range(1500):
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
            head = bytes([rng.integers(6) << 4 | rng.integers(8)])
            body = bytearray(head + rng.bytes(rng.integers(0, 200)))
        try:
            decoded = decode(seal(bytes(body), spec.agreed(length)), length, spec)
        except PayloadError:
            refused += 1
            continue
        values = decoded.dense()
        assert values.shape == (length,)
        assert np.isfinite(values).all()
        assert np.abs(values).max() < 64
        if decoded.indices is not None:
            assert np.all(np.diff(decoded.indices, prepend=-1) > 0)
            assert decoded.indices.size <= 2 * spec.target(length) + 16
    assert refused > 300


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("word", ["0000c07f", "0100807f", "0000807f", "000080ff", "00008042", "01000000", "ffff7f7f"])
def test_a_float_that_is_not_finite_too_large_or_no_whole_step_is_refused(word: str) -> None:
    spec = CodecSpec(bits=32, density=1.0, step=UPLINK)
    payload = seal(bytes([Layout.DENSE << 4]) + bytes.fromhex(word), spec.agreed(1))
    with pytest.raises(PayloadError, match="a value is not"):
        decode(payload, 1, spec)


def test_random_bytes_are_refused() -> None:
    rng = np.random.default_rng(6)
    spec = CodecSpec(bits=1, density=0.01, step=UPLINK)
    accepted = 0
    for _ in range(20_000):
        try:
            decode(rng.bytes(rng.integers(0, 300)), 18_308, spec)
        except PayloadError:
            continue
        accepted += 1
    assert accepted <= 2  # the checksum has 16 bits


def bomb(says: int, holds: int) -> bytes:
    """A zstd frame without magic number that says one size and holds another: runs of zeros, four bytes each."""
    run = min(says, 1 << 17)
    blocks = [struct.pack("<I", run << 3 | 1 << 1)] * (holds // run)
    blocks[-1] = struct.pack("<I", run << 3 | 1 << 1 | 1)
    # One segment, four bytes of content size (RFC 8878, 3.1.1.1).
    return b"\xa0" + struct.pack("<I", says) + b"".join(blocks)


def test_the_bomb_below_is_one() -> None:
    frame = zstandard.FRAME_HEADER + bomb(1 << 20, 1 << 20)
    assert zstandard.ZstdDecompressor().decompress(frame) == bytes(1 << 20)


def test_a_zstd_bomb_is_refused_without_being_inflated() -> None:
    length = 100_000
    sparse = CodecSpec(bits=1, density=0.5, step=UPLINK)
    dense = CodecSpec(bits=8, density=1.0, step=UPLINK)
    holds = 1 << 26
    tracemalloc.start()
    try:
        for says in (holds, (length + 7) // 8, length):
            bitmap = bytes([Layout.BITMAP << 4, 1]) + bytes(6250) + bomb(says, holds)
            values = bytes([Layout.DENSE << 4 | 4, 1]) + bomb(says, holds)
            with pytest.raises(PayloadError):
                decode(seal(bitmap, sparse.agreed(length)), length, sparse)
            with pytest.raises(PayloadError):
                decode(seal(values, dense.agreed(length)), length, dense)
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


def test_memory_while_decoding_is_bounded_by_length_and_payload() -> None:
    rng = np.random.default_rng(7)
    length = 100_000
    tracemalloc.start()
    try:
        for spec in FUZZED:
            for layout in Layout:
                for flags in range(8):
                    body = bytes([layout << 4 | flags]) + b"\xff\xff\xff\xff\x0f" * (flags & 1) + rng.bytes(3000)
                    with pytest.raises(PayloadError):
                        decode(seal(body, spec.agreed(length)), length, spec)
        assert tracemalloc.get_traced_memory()[1] < 60 * length
    finally:
        tracemalloc.stop()


def test_a_payload_that_is_larger_than_any_could_be_is_refused_unread() -> None:
    spec = CodecSpec(bits=1, density=0.01, step=UPLINK)
    with pytest.raises(PayloadError, match="expected 3 to"):
        decode(bytes(1 << 20), 1000, spec)


def test_a_layout_of_the_future_is_named_in_the_complaint() -> None:
    spec = CodecSpec(bits=1, density=0.01, step=UPLINK)
    with pytest.raises(PayloadError, match="newer version"):
        decode(seal(b"\xf0", spec.agreed(1000)), 1000, spec)
