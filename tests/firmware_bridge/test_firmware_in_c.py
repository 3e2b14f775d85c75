"""The C library beside the Python one: the same bytes, the same frames out of noise, no byte touched beyond its own."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import zlib
from pathlib import Path
from typing import Any

import fastcrc
import numpy as np
import pytest
from cobs import cobs
from fedmq_firmware_bridge import frames
from fedmq_firmware_bridge.frames import AskHello, Decoder, Frame, Opaque, encode

from bench.frames import damaged, sent

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = ROOT / "firmware_bridge" / "firmware"
HARNESS = ROOT / "tests" / "support" / "frames_c" / "harness.c"
VECTORS = json.loads((ROOT / "tests" / "vectors" / "frames.json").read_text(encoding="ascii"))
STRICT = ("-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror")
CODE_BYTES = 1024
ROOM = 1024
"""Of the decoder's buffer: what the longest frame takes."""


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library as a program, with AddressSanitizer and UndefinedBehaviorSanitizer."""
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc: apt-get install gcc libc6-dev")
    directory = tmp_path_factory.mktemp("frames_c")
    library, program = directory / "library.o", directory / "harness"
    sanitized = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", f"-I{LIBRARY}")
    build(["gcc", *STRICT, *sanitized, "-c", str(LIBRARY / "fedmq_sensor.c"), "-o", str(library)])
    build(
        ["gcc", "-std=c99", "-Wall", "-Wextra", "-Werror", *sanitized, str(HARNESS), str(library), "-o", str(program)]
    )
    return program


def build(words: list[str]) -> None:
    ended = subprocess.run(words, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def call(harness: Path, *words: str, given: bytes = b"") -> bytes:
    ended = subprocess.run([str(harness), *words], input=given, capture_output=True, timeout=300)
    assert ended.returncode == 0, ended.stderr.decode()
    return ended.stdout


def in_c(harness: Path, stream: bytes, room: int = ROOM) -> tuple[list[str], int]:
    """Frames as `described` writes them, and the count of damaged ones."""
    *lines, last = call(harness, "decode", str(room), given=stream).decode("ascii").splitlines()
    return lines, int(last.removeprefix("damaged "))


def described(frame: Frame) -> str:
    body = cobs.decode(encode(frame)[:-1])
    return f"{body[1]} {frame.sensor} {frame.boot} {frame.sequence} {body[10:-6].hex() or '-'}"


def in_python(stream: bytes) -> tuple[list[str], int]:
    decoder = Decoder()
    lines = [described(frame) for frame in decoder.feed(stream)]
    counts = decoder.counts
    return lines, counts.failed + counts.malformed + counts.oversized


# --- shared vectors --------------------------------------------------------------------------------------------------


def hexed(text: str) -> str:
    return text.encode("ascii").hex() or "-"


def asked_for(vector: dict[str, Any]) -> str:
    """The vector as a line for `harness encode`, by its fields where it has some."""
    head = f"{vector['sensor']} {vector['boot']} {vector['sequence']}"
    if "samples" in vector:
        told = vector["samples"]
        rows = told["values"]
        steps = " ".join(str(step) for row in rows for step in row)
        fields = (
            f"{told['taken_us']} {told['rate_mhz']} {told['scale_bits']} {len(rows[0])} {told['overrun']} {len(rows)}"
        )
        return f"samples {head} {fields} {steps}"
    if "hello" in vector:
        told = vector["hello"]
        texts = f"{told['uid']} {hexed(told['name'])} {hexed(told['firmware'])}"
        fields = f"{told['now_us']} {told['rate_mhz']} {told['scale_bits']} {len(told['channels'])}"
        channels = " ".join(
            f"{hexed(one['name'])} {hexed(one['unit'])} {one['offset_bits']} {one['gain_bits']}"
            for one in told["channels"]
        )
        return f"hello {head} {texts} {fields} {channels}"
    return f"raw 1030 {vector['kind']} {head} {vector['payload'] or '-'}"


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_a_golden_frame_comes_out_of_c_byte_for_byte(harness: Path, vector: dict[str, Any]) -> None:
    assert call(harness, "encode", given=asked_for(vector).encode("ascii")).hex() == vector["encoded"]


def test_every_golden_frame_is_read_by_c(harness: Path) -> None:
    stream = b"".join(bytes.fromhex(vector["encoded"]) for vector in VECTORS)
    lines, spoilt = in_c(harness, stream)
    assert spoilt == 0
    assert lines == [
        f"{one['kind']} {one['sensor']} {one['boot']} {one['sequence']} {one['payload'] or '-'}" for one in VECTORS
    ]


@pytest.mark.parametrize("length", [0, 1, 237, 238, 239, 492, 1008])
def test_c_writes_what_fits_to_the_byte_and_nothing_of_what_does_not(harness: Path, length: int) -> None:
    whole = encode(Opaque(kind=0x82, sensor=257, boot=257, sequence=0x01010101, payload=b"\x01" * length))
    line = f"{0x82} 257 257 {0x01010101} {'01' * length or '-'}"
    assert call(harness, "encode", given=f"raw {len(whole)} {line}".encode()) == whole
    for room in {0, 1, 2, len(whole) // 2, len(whole) - 1}:
        assert call(harness, "encode", given=f"raw {room} {line}".encode()) == b""


# --- noise -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [1e-4, 1e-3, 1e-2])
def test_out_of_noise_c_takes_the_same_frames_and_refuses_as_many(harness: Path, rate: float) -> None:
    rng = np.random.default_rng(5)
    clean = b"".join(map(encode, sent(2000, 48, seed=3)))
    stream = damaged(clean, rng, rate, rate, rate) + b"\0"
    came, spoilt = in_python(stream)
    assert in_c(harness, stream) == (came, spoilt)
    assert spoilt > 50
    assert set(came) <= {described(frame) for frame in sent(2000, 48, seed=3)}


def test_out_of_bytes_that_only_look_like_cobs_c_makes_the_same(harness: Path) -> None:
    """Short parts of small numbers, full blocks and ends that are missing: where two decoders differ, if they do."""
    rng = np.random.default_rng(6)
    parts = []
    for _ in range(20_000):
        payload = rng.integers(0, 3, rng.integers(0, 600), dtype=np.uint8).tobytes()
        part = bytearray(encode(Opaque(kind=0x90, sensor=1, sequence=0, payload=payload))[:-1])
        for _ in range(rng.integers(0, 3)):
            part[rng.integers(0, len(part))] = rng.choice([1, 2, 3, 254, 255])
        parts.append(bytes(part[: rng.integers(0, len(part) + 1)] if rng.random() < 0.3 else part))
    stream = b"\0".join(parts) + b"\0"
    came, spoilt = in_python(stream)
    assert in_c(harness, stream) == (came, spoilt)
    assert min(len(came), spoilt) > 1000


def test_what_is_too_long_costs_c_that_frame_and_no_other(harness: Path) -> None:
    long, short = Opaque(kind=0x82, sensor=1, sequence=0, payload=bytes(9)), AskHello(sensor=1, sequence=0)
    stream = encode(short) + encode(long) + encode(short)
    assert in_c(harness, stream, room=16) == ([described(short)] * 2, 1)
    assert in_c(harness, stream, room=0) == ([], 3)
    assert in_c(harness, b"\x01" * 100_000 + b"\0" + encode(short)) == ([described(short)], 1)


def sealed(body: bytes, behind: bytes = b"") -> bytes:
    """Any bytes with checksums that hold, and what comes behind them."""
    sums = struct.pack("<IH", zlib.crc32(body), fastcrc.crc16.ibm_3740(body))
    return bytes(cobs.encode(body + sums + behind)) + b"\0"


def test_what_holds_its_checksums_and_is_no_frame_is_refused_by_both(harness: Path) -> None:
    whole = struct.pack("<BBHHI", 1, 0x90, 1, 0, 0)
    bodies = [whole[:length] for length in range(10)] + [bytes([version]) + whole[1:] for version in (0, 2, 255)]
    stream = b"".join(map(sealed, bodies)) + sealed(whole, behind=b"\x05") + sealed(whole)
    expected = (["144 1 0 0 -"], len(bodies) + 1)
    assert in_python(stream) == expected
    assert in_c(harness, stream) == expected
    assert in_c(harness, stream, room=16) == expected, "a buffer that a whole frame fills, and more comes"


def test_three_hundred_thousand_random_cases_do_no_harm(harness: Path) -> None:
    """Under both sanitizers, with buffers of exactly the size that is said; the harness aborts on a false frame."""
    said = call(harness, "fuzz", "300000", "1").decode("ascii")
    assert said.startswith("300000 cases, ")
    assert int(said.split()[2]) > 50_000, "hardly a frame came through: this proves little"


# --- size ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("core", ["cortex-m0", "cortex-m3", "cortex-m4"])
def test_all_of_it_takes_less_than_a_kilobyte_no_variables_and_no_library(core: str, tmp_path: Path) -> None:
    if shutil.which("arm-none-eabi-gcc") is None:
        pytest.skip("needs arm-none-eabi-gcc: apt-get install gcc-arm-none-eabi")
    compiled = tmp_path / "library.o"
    flags = [*STRICT, "-Os", f"-mcpu={core}", "-mthumb", "-ffreestanding"]
    build(["arm-none-eabi-gcc", *flags, "-c", str(LIBRARY / "fedmq_sensor.c"), "-o", str(compiled)])
    listed = subprocess.run(["arm-none-eabi-size", str(compiled)], capture_output=True, text=True, check=True)
    text, data, bss = (int(cell) for cell in listed.stdout.splitlines()[1].split()[:3])
    assert text < CODE_BYTES
    assert (data, bss) == (0, 0)
    unknown = subprocess.run(["arm-none-eabi-nm", "-u", str(compiled)], capture_output=True, text=True, check=True)
    assert unknown.stdout == ""


def test_it_is_also_cxx(tmp_path: Path) -> None:
    if shutil.which("g++") is None:
        pytest.skip("needs g++: apt-get install g++")
    flags = ["-std=c++11", "-Wall", "-Wextra", "-Werror", "-x", "c++"]
    build(["g++", *flags, "-c", str(LIBRARY / "fedmq_sensor.c"), "-o", str(tmp_path / "library.o")])


def test_the_header_names_the_numbers_that_python_has() -> None:
    header = (LIBRARY / "fedmq_sensor.h").read_text(encoding="ascii")
    assert f"FEDMQ_VERSION = {frames.VERSION}," in header
    assert f"FEDMQ_PAYLOAD_MAX = {frames.MAX_PAYLOAD}," in header
    assert f"FEDMQ_CHANNELS_MAX = {frames.MAX_CHANNELS}\n" in header
