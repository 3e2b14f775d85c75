"""Numbers have one spelling, and a zstd frame is exactly what was announced."""

from __future__ import annotations

import numpy as np
import pytest
import zstandard
from fedmq_compression.frame import MAX_SCALE, PayloadError, Reader, deflate, inflate, scale_bytes, snap_scale, varint
from hypothesis import given
from hypothesis import strategies as st


@given(number=st.integers(0, 1 << 40))
def test_a_number_is_read_back(number: int) -> None:
    assert Reader(varint(number)).varint(what="it", at_least=0, at_most=1 << 40) == number


@pytest.mark.parametrize("spelt", [b"", b"\x80", b"\x81\x00", b"\xff" * 20, b"\x0b"])
def test_a_number_spelt_wrongly_or_out_of_bounds_is_refused(spelt: bytes) -> None:
    with pytest.raises(PayloadError):
        Reader(spelt).varint(what="it", at_least=0, at_most=10)


@given(scale=st.floats(0.0, float(MAX_SCALE)))
def test_a_snapped_scale_survives_its_bytes_and_is_near(scale: float) -> None:
    snapped = snap_scale(scale, at_most=MAX_SCALE)
    assert Reader(scale_bytes(snapped)).scale() == snapped
    assert abs(snapped - scale) <= max(1.0, scale * 2.0**-11)
    assert snap_scale(scale, at_most=MAX_SCALE, upwards=True) >= min(scale, MAX_SCALE)


@given(at_most=st.integers(1, 1 << 30))
def test_a_snapped_scale_keeps_its_bound(at_most: int) -> None:
    assert 1 <= snap_scale(float(at_most), at_most=at_most, upwards=True) <= at_most


def test_each_of_the_scales_has_one_spelling() -> None:
    read = set()
    for code in range(1 << 15):
        try:
            read.add(Reader((0x8000 | code).to_bytes(2, "big")).scale())
        except PayloadError:
            assert code < 0x80
    assert len(read) == (1 << 15) - 0x80
    with pytest.raises(PayloadError, match="at least 1"):
        Reader(b"\0").scale()


def frames(content: bytes) -> dict[str, bytes]:
    """Frames that a zstd library would take, each with something that `inflate` must not."""
    plain = deflate(content)
    stream = zstandard.ZstdCompressor().compressobj()
    no_size = stream.compress(content) + stream.flush()
    checksum = zstandard.ZstdCompressor(write_checksum=True).compress(content)
    return {
        "trailing byte": plain + b"\0",
        "second frame": plain + zstandard.FRAME_HEADER + plain,
        "cut": plain[:-1],
        "empty": b"",
        "no size": no_size[4:],
        "checksum": checksum[4:],
        "with its magic number": zstandard.FRAME_HEADER + plain,
        "another size": deflate(content + b"a"),
    }


def test_a_frame_is_read_back() -> None:
    for content in (b"", b"a", bytes(100_000), np.random.default_rng(0).bytes(300_000)):
        assert inflate(deflate(content), len(content)) == content


@pytest.mark.parametrize("case", sorted(frames(b"")))
def test_a_frame_that_is_not_exactly_what_was_announced_is_refused(case: str) -> None:
    content = b"abc" * 1000
    with pytest.raises(PayloadError):
        inflate(frames(content)[case], len(content))
