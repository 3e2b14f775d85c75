"""Valid inputs made wrong, from a seed: what random mutation tries where no coverage guides it."""

from __future__ import annotations

import random
from collections.abc import Sequence

__all__ = ["mutate"]

EDGES = (0, 1, 7, 8, 0x7F, 0x80, 0x81, 0xFE, 0xFF)
NUMBERS = (0, 1, 0x7F, 0x80, 0x3FFF, 0xFFFF, 0x10000, (1 << 30) - 1, 1 << 30, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)


def mutate(rng: random.Random, seeds: Sequence[bytes], chosen: int, *, at_most: int = 1 << 16) -> bytes:
    """A seed with a few mutations. The first `chosen` bytes, which choose length and spec, mostly stay."""
    data = bytearray(rng.choice(seeds))
    head, body = data[:chosen], data[chosen:]
    if rng.randrange(16) == 0:
        head[rng.randrange(chosen)] = rng.randrange(256)
    if rng.randrange(32) == 0:
        body = bytearray(rng.randbytes(rng.randrange(80)))
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        body = _once(rng, body, seeds, chosen)
    return bytes(head + body[:at_most])


def _once(rng: random.Random, body: bytearray, seeds: Sequence[bytes], chosen: int) -> bytearray:
    # What decides most stands at the front.
    at = rng.randrange(min(len(body), 12) or 1) if rng.randrange(2) else rng.randrange(len(body) or 1)
    end = min(len(body), at + rng.choice((1, 2, 4, 16, 64)))
    match rng.randrange(9 if body else 1):
        case 0:
            body[at:at] = rng.randbytes(rng.choice((1, 1, 2, 5, 20)))
        case 1:
            body[at] ^= 1 << rng.randrange(8)
        case 2:
            body[at] = rng.choice(EDGES) if rng.randrange(2) else rng.randrange(256)
        case 3:
            del body[at:]
        case 4:
            del body[at:end]
        case 5:
            body[at:at] = body[at:end] * rng.choice((1, 1, 2, 30))
        case 6:
            number = rng.choice(NUMBERS)
            body[at : at + 4] = number.to_bytes(4, "big" if rng.randrange(2) else "little")
        case 7:
            body[at : at + rng.choice((0, 1, 2))] = _varint(rng.choice(NUMBERS) + rng.randrange(-1, 2))
        case _:
            other = rng.choice(seeds)[chosen:]
            start = rng.randrange(len(other) or 1)
            body[at:end] = other[start : start + rng.choice((1, 4, 16, 64, 1 << 16))]
    return body


def _varint(number: int) -> bytes:
    number = max(0, number)
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes(out) + bytes([number])
