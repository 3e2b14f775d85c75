"""docs/compression.md in plain Python, one bit at a time: what a port to another language would look like.

Written from that page, without the package and without numpy, so that the page is known to suffice. It trusts its
input: only the package itself is meant for bytes from outside.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import zstandard

ZSTD_MAGIC = bytes.fromhex("28b52ffd")


class Bits:
    def __init__(self, data: bytes) -> None:
        self.stream = iter([byte >> shift & 1 for byte in data for shift in range(7, -1, -1)])

    def field(self, width: int) -> int:
        number = 0
        for _ in range(width):
            number = 2 * number + next(self.stream)
        return number

    def golomb(self, count: int, divisor: int) -> list[int]:
        width = divisor.bit_length() - 1
        short = 2 ** (width + 1) - divisor
        rests = [self.field(width) for _ in range(count)]
        rests = [rest if rest < short else 2 * rest + next(self.stream) - short for rest in rests]
        numbers = []
        for rest in rests:
            quotient = 0
            while next(self.stream) == 0:
                quotient += 1
            numbers.append(quotient * divisor + rest)
        return numbers

    def indices(self, count: int, divisor: int) -> list[int]:
        at = -1
        found = []
        for gap in self.golomb(count, divisor):
            at += gap + 1
            found.append(at)
        return found


def varint(data: Iterator[int]) -> int:
    number = shift = 0
    while True:
        byte = next(data)
        number |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return number


def crc(data: bytes) -> int:
    value = 0xFFFF
    for byte in data:
        value ^= byte << 8
        for _ in range(8):
            value = (value << 1 ^ 0x1021 if value & 0x8000 else value << 1) & 0xFFFF
    return value


def natural(total: int, count: int) -> int:
    return max(1, total * 355 // (max(1, count) * 512))


def unzstd(frame: bytes) -> bytes:
    return zstandard.ZstdDecompressor().decompress(ZSTD_MAGIC + frame)


def decode(payload: bytes, length: int, bits: int, density: float, exponent: int) -> tuple[list[int] | None, list[int]]:
    """`(indices, steps)` of a delta; indices are None where all are sent."""
    sent = max(1, round(density * length))
    assert crc(struct.pack("<BbII", bits, exponent, length, sent) + payload[:-2]) == int.from_bytes(payload[-2:], "big")
    data = iter(payload[:-2])
    layout, flags = divmod(next(data), 16)
    if layout == 0:
        return [], []
    count = varint(data) if flags & 1 else sent
    divisor = varint(data) if flags & 2 else natural(length, count if layout == 2 else length - count)
    scale = 1 if bits == 32 else read_scale(data)
    size = (count * bits + 7) // 8
    if flags & 4:
        frame_size = varint(data) if layout != 1 else None
        rest = bytes(data)
        values = Bits(unzstd(rest[:frame_size]))
        places = Bits(rest[frame_size:] if frame_size else b"")
    else:
        values = places = Bits(bytes(data))
    if bits == 32:
        floats = struct.unpack(f"<{count}f", bytes(values.field(8) for _ in range(size)))
        steps = [int(value / 2.0**exponent) for value in floats]
    else:
        steps = [level(values.field(bits), bits, layout == 1) * scale for _ in range(count)]
    if layout == 1:
        return None, steps
    if layout == 2:
        return places.indices(count, divisor), steps
    if layout == 3:
        unsent = set(places.indices(length - count, divisor))
        return [index for index in range(length) if index not in unsent], steps
    # Values may end within a byte, and the frame starts right there.
    left = list(places.stream)
    frame = bytes(int("".join(map(str, left[start : start + 8])), 2) for start in range(0, len(left) // 8 * 8, 8))
    bitmap = Bits(unzstd(frame))
    return [index for index in range(length) if next(bitmap.stream)], steps


def level(code: int, bits: int, dense: bool) -> int:
    half = 1 << (bits - 1)
    if bits == 1:
        return -1 if code else 1
    if dense:
        return code - half
    return -(code - half + 1) if code >= half else code + 1


def read_scale(data: Iterator[int]) -> int:
    first = next(data)
    if first < 128:
        return first
    exponent, mantissa = divmod((first & 127) << 8 | next(data), 1024)
    return mantissa if exponent == 0 else (1024 + mantissa) << (exponent - 1)


def decode_integers(payload: bytes, length: int) -> list[int]:
    assert crc(b"\0" + struct.pack("<I", length) + payload[:-2]) == int.from_bytes(payload[-2:], "big")
    data = iter(payload[:-2])
    plan = next(data) - 0x80
    if plan == 0:
        return [0] * length
    if plan == 1:
        return [unzigzag(number) for number in from_planes(unzstd(bytes(data)[1:]), length)]
    if plan == 2:
        divisor = varint(data)
        return [unzigzag(number) for number in Bits(bytes(data)).golomb(length, divisor)]
    count, gap_divisor, divisor = varint(data), varint(data), varint(data)
    names = varint(data) if plan != 3 else 0
    which: list[int] = []
    if plan == 5:
        size = varint(data)
        which = from_planes(unzstd(bytes(next(data) for _ in range(size))), count)
    bits = Bits(bytes(data))
    signs = [next(bits.stream) for _ in range(count)]
    indices = bits.indices(count, gap_divisor)
    if plan == 3:
        magnitudes = [number + 1 for number in bits.golomb(count, divisor)]
    else:
        listed = [number + 1 for number in bits.indices(names, divisor)]
        if plan == 4:
            which = [bits.field((names - 1).bit_length()) for _ in range(count)]
        magnitudes = [listed[at] for at in which]
    values = [0] * length
    for index, sign, magnitude in zip(indices, signs, magnitudes, strict=True):
        values[index] = -magnitude if sign else magnitude
    return values


def from_planes(content: bytes, count: int) -> list[int]:
    planes = [content[start : start + count] for start in range(0, len(content), count)]
    return [sum(plane[at] << 8 * number for number, plane in enumerate(planes)) for at in range(count)]


def unzigzag(number: int) -> int:
    return -(number + 1) // 2 if number % 2 else number // 2
