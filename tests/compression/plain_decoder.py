"""docs/compression.md in plain Python, one bit at a time: what a port to another language would look like.

Written from that page, without the package and without numpy, so that the page is known to suffice. It trusts its
input: only the package itself is meant for bytes from outside.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from math import isqrt

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
        return self.ragged([divisor] * count)

    def ragged(self, divisors: list[int]) -> list[int]:
        rests = [self.field(divisor.bit_length() - 1) for divisor in divisors]
        for at, divisor in enumerate(divisors):
            short = 2 ** divisor.bit_length() - divisor
            if rests[at] >= short:
                rests[at] += rests[at] + next(self.stream) - short
        numbers = []
        for rest, divisor in zip(rests, divisors, strict=True):
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


def eighths(number: int) -> int:
    """The largest e with 2^(e/8) <= number: compared as eighth powers, in whole numbers."""
    found = 0
    while 2 ** (found + 1) <= number**8:
        found += 1
    return found


def ranking(displacement: list[int], shapes: list[list[int]]) -> list[int]:
    """Coordinates, the likeliest first."""
    moved = [abs(number) for number in displacement]
    scale = max(1, (sum(moved) << 8) // len(moved) // 64)
    scores = []
    start = 0
    for rows, columns in shapes:
        block = [moved[start + row * columns : start + (row + 1) * columns] for row in range(rows)]
        along_rows = [eighths((sum(row) << 8) // columns // scale + 1) for row in block]
        along_columns = [eighths((sum(column) << 8) // rows // scale + 1) for column in zip(*block, strict=True)]
        scores += [4 * row + 3 * column for row in along_rows for column in along_columns]
        start += rows * columns
    return sorted(range(len(scores)), key=lambda index: (-scores[index], index))


def class_ends(length: int, count: int) -> list[int]:
    ends = [length]
    while True:
        end = length >> len(ends) // 2
        if len(ends) % 2:
            end = end * 181 >> 8
        if end < max(8, count):
            return ends[::-1]
        ends.append(end)


def class_counts(bits: Bits, count: int, classes: int) -> list[int]:
    """How many are sent below each class's end."""
    within, share = [count], 860
    for _ in range(classes - 1):
        n = within[-1]
        middle = (n * share + 512) >> 10
        divisor = max(1, isqrt(n * share * (1024 - share)) * 5 >> 12)
        folded = bits.golomb(1, divisor)[0]
        sides = min(middle, n - middle)
        if folded > 2 * sides:
            inner = middle - (folded - sides) if middle > n - middle else middle + (folded - sides)
        else:
            inner = middle + folded // 2 if folded % 2 == 0 else middle - (folded + 1) // 2
        if n >= 4:
            share = min(992, max(32, (share + (inner * 1024 + 512) // (n + 1)) // 2))
        within.append(inner)
    return within[::-1]


def ranked_indices(bits: Bits, order: list[int], count: int) -> list[int]:
    ends = class_ends(len(order), count)
    within = class_counts(bits, count, len(ends))
    classes = []
    for start, end, first, last in zip([0, *ends], ends, [0, *within], within, strict=False):
        size, sent = end - start, last - first
        told = size - sent if 2 * sent > size else sent
        classes.append((start, size, sent, told, natural(size, told)))
    divisors = [divisor for _, _, _, told, divisor in classes for _ in range(told)]
    gaps = iter(bits.ragged(divisors))
    ranks = []
    for start, size, sent, told, _ in classes:
        at = -1
        places = []
        for _ in range(told):
            at += next(gaps) + 1
            places.append(at)
        if told != sent:
            places = sorted(set(range(size)) - set(places))
        ranks += [start + place for place in places]
    return sorted(order[rank] for rank in ranks)


def rare(bits: Bits, size: int) -> list[bool]:
    count = bits.field(size.bit_length())
    few = min(count, size - count)
    told = set(bits.indices(few, natural(size, few))) if few else set()
    return [(place in told) != (2 * count > size) for place in range(size)]


def ranked_signs(bits: Bits, indices: list[int], displacement: list[int], shapes: list[list[int]]) -> list[bool]:
    """Which are negative."""
    plan = bits.field(2)
    if plan == 0:
        return [bits.field(1) == 1 for _ in indices]
    if plan == 2:
        plain = {index: bits.field(1) == 1 for index in indices if displacement[index] == 0}
        leaning = [index for index in indices if displacement[index] != 0]
        turns = dict(zip(leaning, rare(bits, len(leaning)), strict=True))
        return [plain[i] if i in plain else turns[i] != (displacement[i] < 0) for i in indices]
    column_of = []
    for number, (rows, columns) in enumerate(shapes):
        column_of += [(number, at % columns) for at in range(rows * columns)]
    by_column = sorted(indices, key=lambda index: (column_of[index], index))
    opens = [at == 0 or column_of[by_column[at - 1]] != column_of[index] for at, index in enumerate(by_column)]
    firsts = [bits.field(1) == 1 for opened in opens if opened]
    turns_left = iter(rare(bits, len(indices) - len(firsts)))
    first = iter(firsts)
    negative: dict[int, bool] = {}
    last = False
    for index, opened in zip(by_column, opens, strict=True):
        last = next(first) if opened else last != next(turns_left)
        negative[index] = last
    return [negative[index] for index in indices]


def decode(
    payload: bytes,
    length: int,
    bits: int,
    density: float,
    exponent: int,
    displacement: list[int] | None = None,
    shapes: list[list[int]] | None = None,
) -> tuple[list[int] | None, list[int]]:
    """`(indices, steps)` of a delta; indices are None where all are sent."""
    sent = max(1, round(density * length))
    agreed = struct.pack("<BbII", bits, exponent, length, sent)
    if displacement is not None:
        agreed += zlib.crc32(struct.pack(f"<{length}i", *displacement)).to_bytes(4, "big")
    assert crc(agreed + payload[:-2]) == int.from_bytes(payload[-2:], "big")
    data = iter(payload[:-2])
    layout, flags = divmod(next(data), 16)
    if layout == 0:
        return [], []
    count = varint(data) if flags & 1 else sent
    divisor = varint(data) if flags & 2 else natural(length, count if layout == 2 else length - count)
    scale = 1 if bits == 32 else read_scale(data)
    size = (count * bits + 7) // 8
    if layout == 5 and bits == 1:
        stream = Bits(bytes(data))
        indices = ranked_indices(stream, ranking(displacement or [], shapes or []), count)
        signs = ranked_signs(stream, indices, displacement or [], shapes or [])
        return indices, [-scale if negative else scale for negative in signs]
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
    if layout == 5:
        return ranked_indices(places, ranking(displacement or [], shapes or []), count), steps
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
