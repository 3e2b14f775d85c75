"""The costliest inputs that can be thought of, each at any length of the task: `WORST[name](length)`.

`read(name, data, length)` decodes one. Two kinds: honest ones, where everything is sent in the most wasteful layout,
and lies that would make a trusting decoder allocate or work without end. Inputs as in `decoders`: a choice, then the
body.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import cache

import numpy as np
from decoders import (
    LENGTHS,
    chosen_support,
    contexts_of,
    delta_choice,
    likely,
    ranked_payloads,
    read_delta,
    read_integers,
)
from fedmq_compression.bits import golomb
from fedmq_compression.contexts import Contexts
from fedmq_compression.frame import varint
from fedmq_compression.indices import Layout, rivals
from fedmq_compression.integers import Plan, layouts
from fedmq_compression.pipeline import CodecSpec, encode

__all__ = ["HONEST", "LIES", "WORST", "bomb", "ranking", "read"]

STEP = 2.0**-24


def bomb(says: int, holds: int) -> bytes:
    """A zstd frame without magic number that says one size and holds another: runs of zeros, four bytes each."""
    run = min(max(1, says), 1 << 17)
    blocks = [struct.pack("<I", run << 3 | 1 << 1)] * max(1, holds // run)
    blocks[-1] = struct.pack("<I", run << 3 | 1 << 1 | 1)
    # One segment, four bytes of content size (RFC 8878, 3.1.1.1).
    return b"\xa0" + struct.pack("<I", says) + b"".join(blocks)


def honest_delta(bits: int, density: float, layout: Layout) -> Callable[[int], bytes]:
    def make(length: int) -> bytes:
        delta = np.random.default_rng(length).normal(size=length).astype(np.float32)
        spec = CodecSpec(bits=bits, density=density, step=STEP)
        encoded = encode(delta, spec)
        if encoded.sent.indices is not None:
            (support, *_) = (one for one in rivals(encoded.sent.indices, length) if one.layout is layout)
            with chosen_support(support):
                encoded = encode(delta, spec)
        return delta_choice(bits, density, STEP, length) + encoded.payload[:-2]

    return make


def lying_delta(bits: int, density: float, body: Callable[[int], bytes]) -> Callable[[int], bytes]:
    return lambda length: delta_choice(bits, density, STEP, length) + body(length)


def most_bytes(length: int, bits: int) -> int:
    """What a payload may have at most, less a head."""
    return (length * (bits + 2) + 7) // 8 + 40


def honest_integers(plan: Plan, largest: int, share: float) -> Callable[[int], bytes]:
    def make(length: int) -> bytes:
        rng = np.random.default_rng(length)
        values = rng.integers(-largest, largest + 1, length) * (rng.random(length) < share)
        values[-1] = largest
        (body,) = (one for one in layouts(values) if one[0] & 0x7F == plan)
        return integers_choice(length) + body

    return make


def integers_choice(length: int) -> bytes:
    return bytes([0, LENGTHS.index(length)])


def wide_golomb(length: int) -> bytes:
    """Every number takes 32 bits."""
    numbers = np.full(length, (1 << 31) - 1, dtype=np.int64)
    body = bytes([0x80 | Plan.GOLOMB]) + varint(1 << 30) + np.packbits(golomb(numbers, 1 << 30)).tobytes()
    return integers_choice(length) + body


def lying_integers(body: Callable[[int], bytes]) -> Callable[[int], bytes]:
    return lambda length: integers_choice(length) + body(length)


@cache
def ranking(length: int) -> Contexts:
    shapes = ((length // 20, 20),) if length % 20 == 0 else ((length, 1),)
    return contexts_of(shapes, length)


def honest_ranked(bits: int, density: float) -> Callable[[int], bytes]:
    def make(length: int) -> bytes:
        spec = CodecSpec(bits=bits, density=density, step=STEP)
        (_, (payload, _)) = ranked_payloads(likely(ranking(length), length), spec, ranking(length))
        assert payload[0] >> 4 == Layout.RANKED
        return delta_choice(bits, density, STEP, length) + payload[:-2]

    return make


def read(name: str, data: bytes, length: int) -> bool:
    if name.startswith("integers"):
        return read_integers(data, code_again=False)
    return read_delta(data, ranking(length) if name.startswith("ranked") else None)


HONEST: dict[str, Callable[[int], bytes]] = {
    **{
        f"{bits} bits, density {density}, {layout.name.lower()}": honest_delta(bits, density, layout)
        for bits in (1, 4, 8, 32)
        for density, layout in (
            (0.01, Layout.GAPS),
            (0.8, Layout.GAPS),
            (0.8, Layout.UNSENT_GAPS),
            (0.3, Layout.BITMAP),
            (1.0, Layout.DENSE),
        )
    },
    **{
        f"integers, {plan.name.lower()}, {share:.0%}": honest_integers(plan, largest, share)
        for plan, largest, share in (
            (Plan.PLANES, 1 << 30, 1.0),
            (Plan.SPARSE_GOLOMB, 1 << 14, 0.9),
            (Plan.SPARSE_NAMED, 9, 0.9),
            (Plan.SPARSE_NAMED, 1 << 14, 0.9),
            (Plan.SPARSE_PACKED, 1 << 14, 0.9),
        )
    },
    "integers, golomb, 32 bits each": wide_golomb,
    **{
        f"ranked, {bits} bits, density {density}": honest_ranked(bits, density)
        for bits, density in ((1, 0.01), (1, 0.3), (1, 0.8), (8, 0.3), (32, 0.8))
    },
}

LIES: dict[str, Callable[[int], bytes]] = {
    "one float, then nothing but ends": lying_delta(
        32, 0.8, lambda n: b"\x21\x01" + b"\x00\x00\x80\x3f" + b"\xff" * most_bytes(n, 31)
    ),
    "many signs, then nothing but ends": lying_delta(1, 0.8, lambda n: b"\x20\x01" + b"\xff" * most_bytes(n, 0)),
    "one unsent, then nothing but ends": lying_delta(
        8, 0.8, lambda n: b"\x31" + varint(n - 1) + b"\x01" + b"\x7f" * (n - 1) + b"\xff" * (n // 4)
    ),
    "a zero run without an end": lying_delta(32, 0.8, lambda n: b"\x21\x01" + b"\x00\x00\x80\x3f" + bytes(4 * n)),
    "a count beyond all": lying_delta(1, 0.5, lambda n: b"\x21" + varint((1 << 42) - 1) + bytes(n // 4)),
    "a divisor beyond all": lying_delta(
        1, 0.5, lambda n: b"\x22" + varint((1 << 31) - 1) + b"\x01" + b"\xff" * (n // 4)
    ),
    "values that are a bomb": lying_delta(8, 1.0, lambda n: b"\x14\x01" + bomb(n, 1 << 26)),
    "values that say they are a bomb": lying_delta(8, 1.0, lambda n: b"\x14\x01" + bomb(1 << 26, 1 << 26)),
    "a bitmap that is a bomb": lying_delta(
        1, 0.5, lambda n: b"\x40\x01" + bytes(n // 16) + bomb((n + 7) // 8, 1 << 26)[: n // 4]
    ),
    "a frame of empty blocks": lying_delta(8, 1.0, lambda n: b"\x14\x01\xa0" + struct.pack("<I", n) + bytes(n)),
    "ranked, nothing but ends": lying_delta(1, 0.8, lambda n: b"\x50\x01" + b"\xff" * most_bytes(n, 0)),
    "ranked, no end": lying_delta(1, 0.5, lambda n: b"\x50\x01" + bytes(most_bytes(n, 0))),
    "ranked, junk": lying_delta(1, 0.3, lambda n: b"\x50\x01" + np.random.default_rng(n).bytes(most_bytes(n, 0))),
    "integers, nothing but ends": lying_integers(lambda n: b"\x82\x01" + b"\xff" * (5 * n)),
    "integers, no end": lying_integers(lambda n: b"\x82\x01" + bytes(5 * n)),
    "integers, the widest fields": lying_integers(lambda n: b"\x82" + varint((1 << 31) - 1) + b"\xff" * (5 * n)),
    "integers, all of one gap": lying_integers(lambda n: b"\x83" + varint(n) + b"\x01\x01" + b"\xff" * (n // 2)),
    "integers, one and nothing but ends": lying_integers(lambda n: b"\x83\x01\x01\x01" + b"\xff" * (5 * n)),
    "integers, planes that are a bomb": lying_integers(lambda n: b"\x81\x04" + bomb(4 * n, 1 << 26)),
}

WORST = HONEST | LIES
