"""The door: a model delta to bytes and back.

Owns the order of the parts (residual, choice, levels, indices, frame) and the payload's head. docs/compression.md has
the layout byte by byte. Refuses to know rounds, gateways and files.

Rules:
- The law: decoded + new residual == delta + old residual, to float32 rounding. What is not sent is never lost here.
- Deterministic: no randomness, ties by index. `Encoded.sent` is what `decode` gives at the other end, exactly.
- Length, spec and contexts come from the task and the base version, never from the payload. The checksum covers
  them, so that a payload made for others is refused.
- Bytes from outside raise `PayloadError` and nothing else; memory is bounded by length and payload.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fedmq_compression import compiled
from fedmq_compression.bits import BitReader, Bits, natural_divisor
from fedmq_compression.contexts import Contexts, code_ranked, code_signs, read_ranked, read_signs
from fedmq_compression.frame import PayloadError, Reader, deflate, inflate, scale_bytes, seal, unseal, varint
from fedmq_compression.indices import Layout, code_support, read_support
from fedmq_compression.integers import decode_integers, encode_integers
from fedmq_compression.quantize import LIMIT, codes_size, from_codes, levels_of, to_codes
from fedmq_compression.sparsify import largest

__all__ = [
    "CodecSpec",
    "Contexts",
    "Decoded",
    "Encoded",
    "PayloadError",
    "decode",
    "decode_integers",
    "encode",
    "encode_integers",
]

MAX_LENGTH = (1 << 31) - 1
INT64 = np.dtype(np.int64)

LAYOUTS = tuple(Layout)
"""By number. An enum is a slow dictionary, and this is looked up for every payload."""

# The head byte: a layout in its high half, and in its low half what else is there.
COUNT_STATED = 1
DIVISOR_STATED = 2
VALUES_PACKED = 4
FLAGS = {
    Layout.DENSE: 0,
    Layout.GAPS: COUNT_STATED | DIVISOR_STATED,
    Layout.UNSENT_GAPS: COUNT_STATED | DIVISOR_STATED,
    Layout.BITMAP: COUNT_STATED,
    Layout.RANKED: COUNT_STATED,
}
"""What a layout may have. 4- and 8-bit values may be packed with each."""


@dataclass(frozen=True, kw_only=True)
class CodecSpec:
    """How a delta is coded in one direction; both ends hold the same."""

    bits: int
    """Bits of a value: 1, 4, 8, or 32 for float32."""
    density: float
    """Share of the coordinates that is sent, largest first; 1.0 sends all."""
    step: float
    """Every decoded value is a whole number of steps of this size, a power of two from 2^-24 to 2^-4."""

    def __post_init__(self) -> None:
        if self.bits not in (1, 4, 8, 32):
            raise ValueError(f"bits is {self.bits}, expected 1, 4, 8 or 32")
        if not 0 < self.density <= 1:
            raise ValueError(f"density is {self.density}, expected more than 0 and at most 1")
        if not 2.0**-24 <= self.step <= 2.0**-4 or math.frexp(self.step)[0] != 0.5:
            raise ValueError(f"step is {self.step}, expected a power of two from 2^-24 to 2^-4")

    def target(self, length: int) -> int:
        """Coordinates to send out of `length`; fewer go where the others round to nothing."""
        return max(1, round(self.density * length))

    def agreed(self, length: int) -> bytes:
        """What both ends must agree on before a payload means anything: the checksum starts with it."""
        return struct.pack("<BbII", self.bits, math.frexp(self.step)[1] - 1, length, self.target(length))


@dataclass(frozen=True, kw_only=True, eq=False)
class Decoded:
    """A delta as it was sent: a whole number of steps for each coordinate that was."""

    length: int
    indices: NDArray[np.int64] | None = field(repr=False)
    """Coordinates, strictly increasing; None: all of them, in order."""
    steps: NDArray[np.int64] = field(repr=False)
    """One for each index."""
    step: float

    def dense(self) -> NDArray[np.float32]:
        """All coordinates, `(length,) float32`, exact."""
        values = (self.steps * self.step).astype(np.float32)
        if self.indices is None:
            return values
        whole = np.zeros(self.length, dtype=np.float32)
        whole[self.indices] = values
        return whole

    def add_to(self, total: NDArray[np.int64], weight: int) -> None:
        """Adds `weight` times the steps to `total`, `(length,) int64`, in place: exact, so in any order the same."""
        if total.shape != (self.length,) or total.dtype != INT64:
            raise ValueError(f"total is {total.shape} {total.dtype}, expected ({self.length},) int64")
        if self.indices is None:
            total += self.steps * weight
        elif not compiled.add(total, self.indices, self.steps, weight):
            # No index comes twice, so that this needs no np.add.at.
            total[self.indices] += self.steps * weight

    def whole_steps(self) -> NDArray[np.int32]:
        """Steps of all coordinates, `(length,) int32`: what a broadcast delta adds to the integer model."""
        if self.indices is None:
            return self.steps.astype(np.int32)
        whole = np.zeros(self.length, dtype=np.int32)
        whole[self.indices] = self.steps
        return whole

    def norm(self) -> float:
        """L2 norm of the values."""
        return float(np.sqrt(np.sum(np.square(self.steps.astype(np.float64))))) * self.step


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoded:
    """A delta as bytes, and what those bytes leave out."""

    payload: bytes = field(repr=False)
    sent: Decoded
    """What the other end decodes, exactly."""
    residual: NDArray[np.float32] = field(repr=False)
    """What was not sent, `(length,) float32`: goes into the next `encode`."""
    plain: bytes = field(repr=False)
    """The same as `payload` to who has no contexts: what to keep where these will be gone. Seldom shorter."""


def encode(
    delta: NDArray[np.float32],
    spec: CodecSpec,
    residual: NDArray[np.float32] | None = None,
    *,
    contexts: Contexts | None = None,
    gain: float = 1.0,
) -> Encoded:
    """Codes `delta + residual`, `(length,) float32`, with error feedback (Seide et al. 2014; Stich et al. 2018).

    With `contexts` the payload is shorter, and whoever decodes it needs the same.

    `gain`, at least 1 and less than 2, is a factor on the scale of 1-bit values where only some coordinates are sent:
    what was sent has waited, and more of the same is on its way. What overshoots is in the residual, and comes back.
    `decode` needs no word of it. Where all coordinates are sent it is 1, for there most would overshoot.

    Raises ValueError where the sum is not finite or not below 64 in magnitude.
    """
    wanted, magnitudes = _sum(delta, residual)
    length = wanted.size
    count = spec.target(length)
    indices: NDArray[np.int64] | None = None
    if count == length:
        del magnitudes
        levels, scale = levels_of(wanted, spec.bits, spec.step, dense=True)
    else:
        # Below half a step a value rounds to nothing whatever its level.
        indices = largest(magnitudes, count, spec.step / 2)
        del magnitudes
        levels, scale = _sparse_levels(wanted[indices], spec, gain)
        if not levels.all():
            indices, levels = indices[levels != 0], levels[levels != 0]
    if not levels.any():
        indices, levels = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    sent = Decoded(length=length, indices=indices, steps=levels * scale, step=spec.step)
    agreed = _agreed(length, spec, contexts)
    plain = _body(levels, scale, indices, length, spec)
    body = plain if contexts is None else _ranked_body(plain, levels, scale, indices, length, spec, contexts)
    payload = seal(body, agreed)
    return Encoded(
        payload=payload,
        sent=sent,
        residual=_left(wanted, sent),
        plain=payload if contexts is None else seal(plain, spec.agreed(length)),
    )


def decode(payload: bytes, length: int, spec: CodecSpec, *, contexts: Contexts | None = None) -> Decoded:
    """What `encode` made for this length, spec and contexts; anything else is a `PayloadError`."""
    _check_length(length)
    agreed = _agreed(length, spec, contexts)
    # Values, two bits a coordinate for the indices, and the head: the smallest layout is never larger.
    at_most = codes_size(length, spec.bits + 2) + 64
    reader = Reader(unseal(payload, agreed, at_most=at_most))
    head = reader.byte()
    flags = head & 15
    target = spec.target(length)
    if head >> 4 >= len(LAYOUTS):
        raise PayloadError(f"a layout {head >> 4}, expected one of 0 to {max(Layout)}: made by a newer version?")
    layout = LAYOUTS[head >> 4]
    if layout is Layout.NOTHING:
        if flags or reader.rest():
            raise PayloadError("an empty delta carries more than its head")
        nothing = np.zeros(0, dtype=np.int64)
        return Decoded(length=length, indices=nothing, steps=nothing, step=spec.step)
    if (layout is Layout.DENSE) != (target == length):
        raise PayloadError(f"layout {layout.name}, where {target} of {length} coordinates are expected")
    if layout is Layout.RANKED and contexts is None:
        raise PayloadError("the payload is coded along a ranking, and there are no contexts")
    _check_flags(flags, layout, spec)
    count = target
    if flags & COUNT_STATED:
        count = reader.varint(what="the count", at_least=1, at_most=min(2 * target + 16, length - 1))
        if count == target:
            raise PayloadError(f"a count of {count} is stated, which is expected anyway")
    divisor = None
    if flags & DIVISOR_STATED:
        divisor = reader.varint(what="the divisor", at_least=1, at_most=MAX_LENGTH)
    scale = 1 if spec.bits == 32 else reader.scale()
    return _sections(reader, layout, length, count, divisor, scale, bool(flags & VALUES_PACKED), spec, contexts)


# --- encoding --------------------------------------------------------------------------------------------------------


def _sum(
    delta: NDArray[np.float32], residual: NDArray[np.float32] | None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The sum, an array of its own, and its magnitudes."""
    if delta.ndim != 1:
        raise ValueError(f"delta has shape {delta.shape}, expected (length,)")
    _check_length(delta.size)
    if residual is not None and residual.shape != delta.shape:
        raise ValueError(f"residual has shape {residual.shape}, expected that of the delta, {delta.shape}")
    if residual is None:
        wanted = delta.astype(np.float32)
    else:
        with np.errstate(over="ignore", invalid="ignore"):  # found right below
            wanted = delta.astype(np.float32, copy=False) + residual.astype(np.float32, copy=False)
    magnitudes = np.abs(wanted)
    largest_magnitude = float(magnitudes.max())
    if not largest_magnitude < LIMIT:  # not a number is not below anything
        raise ValueError(f"delta plus residual reaches {largest_magnitude}, expected finite and below {LIMIT}")
    return wanted, magnitudes


def _sparse_levels(values: NDArray[np.float32], spec: CodecSpec, gain: float) -> tuple[NDArray[np.int64], int]:
    if not values.size:
        return np.zeros(0, dtype=np.int64), 1
    return levels_of(values, spec.bits, spec.step, dense=False, gain=gain)


def _body(
    levels: NDArray[np.int64],
    scale: int,
    indices: NDArray[np.int64] | None,
    length: int,
    spec: CodecSpec,
) -> bytes:
    """Everything but the checksum, to who has no contexts."""
    if not levels.size:
        return bytes([Layout.NOTHING << 4])
    flags, numbers, told_scale = _head(levels.size, scale, length, spec)
    codes = to_codes(levels, spec.bits, spec.step, dense=indices is None)
    if indices is None:
        sections, packed = _values(codes, levels.size, np.zeros(0, dtype=np.uint8), spec, dense=True)
        return bytes([Layout.DENSE << 4 | flags | packed]) + numbers + told_scale + sections
    support = code_support(indices, length)
    divisor = b""
    divisor_flag = 0
    if support.divisor is not None:
        divisor_flag, divisor = DIVISOR_STATED, varint(support.divisor)
    sections, packed = _values(codes, levels.size, support.bits, spec, dense=False)
    return bytes([support.layout << 4 | flags | divisor_flag | packed]) + numbers + divisor + told_scale + sections


def _ranked_body(
    plain: bytes,
    levels: NDArray[np.int64],
    scale: int,
    indices: NDArray[np.int64] | None,
    length: int,
    spec: CodecSpec,
    contexts: Contexts,
) -> bytes:
    """The same along the contexts' ranking, or the plain one where that is no longer."""
    if indices is None or not levels.size:
        return plain
    flags, numbers, told_scale = _head(levels.size, scale, length, spec)
    ranked = code_ranked(contexts, indices)
    if spec.bits == 1:
        sections, packed = np.packbits(np.concatenate([ranked, code_signs(contexts, indices, levels < 0)])).tobytes(), 0
    else:
        codes = to_codes(levels, spec.bits, spec.step, dense=False)
        sections, packed = _values(codes, levels.size, ranked, spec, dense=False)
    rival = bytes([Layout.RANKED << 4 | flags | packed]) + numbers + told_scale + sections
    return rival if len(rival) < len(plain) else plain


def _head(count: int, scale: int, length: int, spec: CodecSpec) -> tuple[int, bytes, bytes]:
    """Flags, the count where it is stated, and the scale."""
    told_scale = b"" if spec.bits == 32 else scale_bytes(scale)
    return (0, b"", told_scale) if count == spec.target(length) else (COUNT_STATED, varint(count), told_scale)


def _values(codes: bytes, count: int, support: Bits, spec: CodecSpec, *, dense: bool) -> tuple[bytes, int]:
    """The codes, and right behind their last bit those of the indices; with the flag of what was done to them."""
    sections = codes
    if not dense:
        bits = np.unpackbits(np.frombuffer(codes, dtype=np.uint8), count=count * spec.bits)
        sections = np.packbits(np.concatenate([bits, support])).tobytes()
    if spec.bits in (4, 8):
        frame = deflate(codes)
        packed = (b"" if dense else varint(len(frame))) + frame + np.packbits(support).tobytes()
        if len(packed) < len(sections):
            return packed, VALUES_PACKED
    return sections, 0


def _left(wanted: NDArray[np.float32], sent: Decoded) -> NDArray[np.float32]:
    """What is left of the sum, in its place."""
    values = (sent.steps * sent.step).astype(np.float32)
    if sent.indices is None:
        wanted -= values
    else:
        wanted[sent.indices] -= values
    return wanted


# --- decoding --------------------------------------------------------------------------------------------------------


def _sections(
    reader: Reader,
    layout: Layout,
    length: int,
    count: int,
    divisor: int | None,
    scale: int,
    packed: bool,
    spec: CodecSpec,
    contexts: Contexts | None,
) -> Decoded:
    if spec.bits == 1 and scale * spec.step < LIMIT:
        rest = reader.rest()
        at_once = _at_once(rest, 0, layout, length, count, divisor, contexts, scale)
        if at_once is not None:
            return Decoded(length=length, indices=at_once[0], steps=at_once[1], step=spec.step)
        reader = Reader(rest)
    if layout is Layout.RANKED and spec.bits == 1 and contexts is not None:
        bits = BitReader(reader.rest())
        indices = read_ranked(bits, contexts, count)
        negative = read_signs(bits, contexts, indices)
        bits.end()
        signs = np.packbits(negative).tobytes()
        steps = from_codes(signs, count, 1, scale, spec.step, dense=False)
        return Decoded(length=length, indices=indices, steps=steps, step=spec.step)
    dense = layout is Layout.DENSE
    size = codes_size(count, spec.bits)
    if packed:
        frame_size = None if dense else reader.varint(what="the size of a zstd frame", at_least=1, at_most=size)
        codes = inflate(reader.rest() if frame_size is None else reader.take(frame_size), size)
        rest, start = reader.rest(), 0
        _check_padding(codes, count * spec.bits)
    else:
        rest, start = reader.rest(), count * spec.bits
        if len(rest) < size or (dense and len(rest) > size):
            raise PayloadError(f"{len(rest)} bytes of values, expected {'' if dense else 'at least '}{size}")
        codes = rest[:size]
    at_once = None if spec.bits == 1 else _at_once(rest, start, layout, length, count, divisor, contexts)
    found = None if at_once is None else at_once[0]
    if dense:
        _check_padding(codes, count * spec.bits)
    elif found is None and layout is Layout.RANKED and contexts is not None:
        bits = BitReader(rest, start)
        found = read_ranked(bits, contexts, count)
        bits.end()
    elif found is None:
        found = read_support(BitReader(rest, start), layout, length, count, divisor)
    steps = from_codes(codes, count, spec.bits, scale, spec.step, dense=dense)
    return Decoded(length=length, indices=found, steps=steps, step=spec.step)


def _at_once(
    data: bytes,
    start: int,
    layout: Layout,
    length: int,
    count: int,
    divisor: int | None,
    contexts: Contexts | None,
    scale: int = 0,
) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """All indices from bit `start` on, with a scale also the steps of 1 bit; None where numpy is to read them."""
    if layout is Layout.RANKED and contexts is not None:
        return compiled.ranked(data, start, count, contexts.order, contexts.lean, contexts.blocks, scale)
    if layout not in (Layout.GAPS, Layout.UNSENT_GAPS):
        return None
    unsent = layout is Layout.UNSENT_GAPS
    natural = natural_divisor(length, length - count if unsent else count)
    if divisor == natural:  # stated for nothing
        return None
    return compiled.gaps(data, start, length, count, divisor or natural, unsent=unsent, scale=scale)


def _agreed(length: int, spec: CodecSpec, contexts: Contexts | None) -> bytes:
    if contexts is None:
        return spec.agreed(length)
    if contexts.length != length:
        raise ValueError(f"contexts of {contexts.length} coordinates for a delta of {length}")
    return spec.agreed(length) + contexts.mark


def _check_length(length: int) -> None:
    if not 1 <= length <= MAX_LENGTH:
        raise ValueError(f"a delta of {length} coordinates, expected 1 to {MAX_LENGTH}")


def _check_flags(flags: int, layout: Layout, spec: CodecSpec) -> None:
    allowed = FLAGS[layout] | (VALUES_PACKED if spec.bits in (4, 8) else 0)
    if flags & ~allowed:
        raise PayloadError(
            f"flags {flags:#x} with layout {layout.name} at {spec.bits} bits, expected {allowed:#x} only"
        )


def _check_padding(codes: bytes, used_bits: int) -> None:
    """The bits of the last byte that no code uses must be zero."""
    if used_bits % 8 and codes[-1] & (0xFF >> used_bits % 8):
        raise PayloadError("the padding after the values is not zero")
