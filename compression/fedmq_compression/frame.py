"""The bytes around a coded delta: small numbers, the checksum, and zstd with a bound.

Owns what every layout shares: variable-length integers, the two-byte scale, the CRC that also binds what both ends
must agree on beforehand, and the only door to zstandard. Refuses to know what a section means.

Rules:
- Whatever a payload says about its own size is checked before anything of that size is allocated.
- A number has one spelling: a longer one than needed is refused, so that equal deltas are equal bytes.
- Every complaint about bytes from outside is a `PayloadError`, and nothing else.
"""

from __future__ import annotations

import binascii
import math
from functools import lru_cache

import zstandard

from fedmq_compression import compiled

__all__ = [
    "LEAST_FRAME_BITS",
    "MAX_SCALE",
    "PayloadError",
    "Reader",
    "checksum",
    "deflate",
    "inflate",
    "scale_bytes",
    "seal",
    "snap_scale",
    "unseal",
    "varint",
]

CHECKSUM_BYTES = 2

SCALE_MANTISSA_BITS = 11
"""Significant bits of a scale. With a level of at most 8 bits the product keeps within float32's 24."""

MAX_SCALE = ((1 << SCALE_MANTISSA_BITS) - 1) << 30
"""Largest scale that two bytes can say, in steps."""

ZSTD_LEVEL = 12
"""Payloads are small and made once a round: past this level zstd gains nothing on entropy-coded numbers."""

LEAST_FRAME_BITS = 48
"""Of a zstd frame without magic number: two bytes that say the content's size, three of a block's head, one in it."""

COMPILED_FROM = 2048
"""Bytes from which the checksum is worth a call of machine code."""

MAX_WINDOW_BYTES = 1 << 27
"""No frame may ask for more window than this; a frame of ours is one segment, its window its content."""


class PayloadError(ValueError):
    """The bytes are not a payload for this length and spec."""


# --- numbers ---------------------------------------------------------------------------------------------------------


def varint(number: int) -> bytes:
    """A whole number >= 0 in groups of seven bits, lowest first (LEB128)."""
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def snap_scale(scale: float, *, at_most: int, upwards: bool = False) -> int:
    """The whole number from 1 to `at_most` nearest to `scale` (or the next above) that `scale_bytes` can say."""
    unit = 1 << max(0, int(scale).bit_length() - SCALE_MANTISSA_BITS)
    snapped = (math.ceil(scale / unit) if upwards else round(scale / unit)) * unit
    return max(1, snapped if snapped <= at_most else snapped - unit)


def scale_bytes(scale: int) -> bytes:
    """A snapped scale: one byte below 128, else two bytes, 1 | exponent (5 bits) | mantissa (10 bits).

    Exponent 0 says `mantissa`; exponent e above says `(1024 + mantissa) << (e - 1)`, like a half-precision float.
    """
    if scale < 0x80:
        return bytes([scale])
    exponent = max(0, scale.bit_length() - SCALE_MANTISSA_BITS + 1)
    mantissa = scale if exponent == 0 else (scale >> (exponent - 1)) - 1024
    return (0x8000 | exponent << 10 | mantissa).to_bytes(2, "big")


class Reader:
    """A cursor over bytes from outside; reading past the end is a `PayloadError`."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        if count > len(self._data) - self._at:
            raise PayloadError(f"{count} more bytes expected at offset {self._at}, {len(self._data) - self._at} there")
        self._at += count
        return self._data[self._at - count : self._at]

    def rest(self) -> bytes:
        return self.take(len(self._data) - self._at)

    def byte(self) -> int:
        if self._at >= len(self._data):
            raise PayloadError(f"1 more byte expected at offset {self._at}, 0 there")
        self._at += 1
        return self._data[self._at - 1]

    def varint(self, *, what: str, at_least: int, at_most: int) -> int:
        """A number in its shortest spelling, within bounds; `what` names it in the complaint."""
        number = shift = 0
        while True:
            byte = self.byte()
            number |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
            if shift > 42:
                raise PayloadError(f"{what} is spelt with more than 7 bytes")
        if byte == 0 and shift > 7:
            raise PayloadError(f"{what} is spelt longer than needed")
        if not at_least <= number <= at_most:
            raise PayloadError(f"{what} is {number}, expected {at_least} to {at_most}")
        return number

    def scale(self) -> int:
        first = self.byte()
        if first < 0x80:
            scale = first
        else:
            code = (first & 0x7F) << 8 | self.byte()
            exponent, mantissa = code >> 10, code & 0x3FF
            scale = mantissa if exponent == 0 else (1024 + mantissa) << (exponent - 1)
            if scale < 0x80:
                raise PayloadError(f"a scale of {scale} is spelt with two bytes, expected one")
        if scale == 0:
            raise PayloadError("a scale of 0 steps, expected at least 1")
        return scale


# --- checksum --------------------------------------------------------------------------------------------------------


def checksum(data: bytes, agreed: bytes) -> bytes:
    """CRC-16/IBM-3740 over what both ends agreed on and the data, two bytes, high byte first."""
    start = binascii.crc_hqx(agreed, 0xFFFF)
    # Of a short one the library is done before a kernel has been called.
    crc = compiled.checksum(data, start) if len(data) >= COMPILED_FROM else None
    return (binascii.crc_hqx(data, start) if crc is None else crc).to_bytes(CHECKSUM_BYTES, "big")


def seal(body: bytes, agreed: bytes) -> bytes:
    """The body with its checksum behind it."""
    return body + checksum(body, agreed)


def unseal(payload: bytes, agreed: bytes, *, at_most: int) -> bytes:
    """The body of a payload of at most `at_most` bytes whose checksum fits."""
    if not CHECKSUM_BYTES < len(payload) <= at_most:
        raise PayloadError(f"a payload of {len(payload)} bytes, expected {CHECKSUM_BYTES + 1} to {at_most}")
    body = payload[:-CHECKSUM_BYTES]
    if checksum(body, agreed) != payload[-CHECKSUM_BYTES:]:
        raise PayloadError("the checksum does not fit: bytes were changed, or made for another length or codec")
    return body


# --- zstd ------------------------------------------------------------------------------------------------------------


def deflate(data: bytes) -> bytes:
    """One zstd frame (RFC 8878) without its magic number, which says the content's size and nothing else."""
    compressor = zstandard.ZstdCompressor(compression_params=_parameters(len(data)))
    return compressor.compress(data)[len(zstandard.FRAME_HEADER) :]


@lru_cache(maxsize=64)
def _parameters(size: int) -> zstandard.ZstdCompressionParameters:
    return zstandard.ZstdCompressionParameters.from_level(
        ZSTD_LEVEL, source_size=size, write_content_size=1, write_checksum=0, write_dict_id=0
    )


def inflate(frame: bytes, size: int) -> bytes:
    """The content of exactly one frame without magic number that holds exactly `size` bytes.

    The size that a frame states is not enforced by the library while it decompresses (32 KB became 1 GiB in spite
    of max_output_size), so the statement is checked first and the stream is cut at `size` all the same.
    """
    whole = zstandard.FRAME_HEADER + frame
    try:
        stated = zstandard.get_frame_parameters(whole)
        if stated.content_size != size or stated.dict_id or stated.has_checksum:
            raise PayloadError(f"a zstd frame of {stated.content_size} bytes, expected a plain one of {size}")
        if stated.window_size > min(MAX_WINDOW_BYTES, max(size, 1024)):
            raise PayloadError(f"a zstd window of {stated.window_size} bytes for a content of {size}")
        end = _end_of_frame(whole, zstandard.frame_header_size(whole))
        if end != len(whole):
            raise PayloadError(f"a zstd frame ends after {end} bytes, expected {len(whole)}")
        with zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES).stream_reader(whole) as stream:
            content = stream.read(size)
            more = stream.read(1)
    except zstandard.ZstdError as broken:
        raise PayloadError(f"a zstd frame is broken: {broken}") from None
    if len(content) != size or more:
        raise PayloadError(f"a zstd frame holds {len(content)}{'+' if more else ''} bytes, expected {size}")
    return content


def _end_of_frame(frame: bytes, at: int) -> int:
    """Where the blocks that start at `at` end, by their headers (RFC 8878, 3.1.1.2): a stream ignores a tail."""
    last = False
    while not last:
        if at + 3 > len(frame):
            raise PayloadError(f"a zstd frame of {len(frame)} bytes breaks off in a block header")
        header = int.from_bytes(frame[at : at + 3], "little")
        last = bool(header & 1)
        run_length = header >> 1 & 3 == 1
        at += 3 + (1 if run_length else header >> 3)
    return at
