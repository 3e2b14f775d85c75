"""The native stream: every frame there and back, cut anywhere, and nothing false out of any damage."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cobs import cobs
from fedmq_firmware_bridge.frames import (
    MAX_ENCODED,
    MAX_PAYLOAD,
    AskHello,
    Channel,
    Decoder,
    Frame,
    FrameError,
    Hello,
    Opaque,
    Samples,
    encode,
)
from hypothesis import given
from hypothesis import strategies as st

from bench.frames import run

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "frames.json").read_text(encoding="ascii"))

u16, u32, u64 = (st.integers(0, 2**size - 1) for size in (16, 32, 64))
heads = {"sensor": u16, "boot": u16, "sequence": u32}
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
scales = st.floats(min_value=2.0**-126, width=32, allow_infinity=False)


def texts(most: int) -> st.SearchStrategy[str]:
    return st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=most)


@st.composite
def blocks(draw: st.DrawFn) -> np.ndarray[Any, np.dtype[np.int16]]:
    channels = draw(st.integers(1, 16))
    count = draw(st.integers(1, (MAX_PAYLOAD - 20) // (2 * channels)))
    # Whole blocks of one temper, since COBS cares for zeros: none, some, all.
    most = draw(st.sampled_from([0, 1, 300, 32767]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return rng.integers(-most, most, (count, channels), endpoint=True).astype(np.int16)


channels = st.builds(Channel, name=texts(8), unit=texts(8), offset=finite, gain=finite.filter(lambda gain: gain != 0))
clocked = {"rate_mhz": st.integers(1, 2**32 - 1), "scale": scales}
samples = st.builds(Samples, **heads, **clocked, taken_us=u64, overrun=st.booleans(), values=blocks())
hellos = st.builds(
    Hello,
    **heads,
    **clocked,
    uid=st.binary(min_size=16, max_size=16),
    name=texts(16),
    firmware=texts(16),
    now_us=u64,
    channels=st.lists(channels, min_size=1, max_size=16).map(tuple),
)
opaques = st.builds(
    Opaque,
    **heads,
    kind=st.integers(0, 255).filter(lambda kind: kind not in (1, 2, 0x81)),
    payload=st.binary(max_size=MAX_PAYLOAD),
)
frames = st.one_of(samples, hellos, opaques, st.builds(AskHello, **heads))


def block(sequence: int = 0, **other: Any) -> Samples:
    values = np.arange(6, dtype=np.int16).reshape(2, 3)
    fields: dict[str, Any] = {"sensor": 1, "taken_us": 5, "rate_mhz": 1000, "scale": 1.0, "values": values}
    return Samples(**fields | {"sequence": sequence} | other)


def hello(**other: Any) -> Hello:
    fields: dict[str, Any] = {"sensor": 1, "sequence": 0, "uid": bytes(16), "name": "pump-3", "firmware": "1.4.2"}
    fields |= {"now_us": 7, "rate_mhz": 1000, "scale": 1.0, "channels": (Channel(name="x", unit="g"),)}
    return Hello(**fields | other)


def sealed(kind: int, payload: bytes, version: int = 1) -> bytes:
    """A frame on the line whose checks hold, whatever it says."""
    body = struct.pack("<BBHHI", version, kind, 1, 0, 0) + payload
    return bytes(cobs.encode(body + struct.pack("<IH", crc32(body), crc16(body)))) + b"\0"


def crc16(data: bytes) -> int:
    """CRC-16/IBM-3740 by its definition: not by the library that the package uses."""
    crc = 0xFFFF
    for byte in data:
        crc ^= byte << 8
        for _ in range(8):
            crc = (crc << 1 ^ 0x1021 if crc & 0x8000 else crc << 1) & 0xFFFF
    return crc


def crc32(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ 0xEDB88320 if crc & 1 else crc >> 1
    return crc ^ 0xFFFFFFFF


# --- there and back --------------------------------------------------------------------------------------------------


@given(frames)
def test_a_frame_comes_back_as_it_was(frame: Frame) -> None:
    encoded = encode(frame)
    assert encoded.endswith(b"\0")
    assert b"\0" not in encoded[:-1]
    assert len(encoded) <= MAX_ENCODED + 1
    assert Decoder().feed(encoded) == [frame]


@given(st.lists(frames, max_size=4), st.data())
def test_it_does_not_matter_where_the_stream_is_cut(sent: list[Frame], data: st.DataObject) -> None:
    stream = b"\0".join(map(encode, sent))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=20)))
    decoder, came = Decoder(), []
    for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        came += decoder.feed(stream[begin:end])
    assert came == sent
    assert (decoder.counts.bytes, decoder.counts.frames) == (len(stream), len(sent))
    assert (decoder.counts.failed, decoder.counts.malformed, decoder.counts.oversized) == (0, 0, 0)


def test_byte_by_byte_comes_to_the_same() -> None:
    sent = [block(number) for number in range(20)]
    decoder = Decoder()
    came = [frame for byte in b"".join(map(encode, sent)) for frame in decoder.feed(bytes([byte]))]
    assert came == sent


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_a_golden_frame_is_read_and_written_as_ever(vector: dict[str, Any]) -> None:
    encoded = bytes.fromhex(vector["encoded"])
    (frame,) = Decoder().feed(encoded)
    assert (frame.sensor, frame.boot, frame.sequence) == (vector["sensor"], vector["boot"], vector["sequence"])
    assert encode(frame) == encoded
    if "samples" in vector:
        told = vector["samples"]
        assert isinstance(frame, Samples)
        assert frame.values.tolist() == told["values"]
        assert (frame.taken_us, frame.rate_mhz, frame.overrun) == (
            told["taken_us"],
            told["rate_mhz"],
            bool(told["overrun"]),
        )
        assert struct.pack("<f", frame.scale) == struct.pack("<I", told["scale_bits"])
    elif "hello" in vector:
        told = vector["hello"]
        assert isinstance(frame, Hello)
        assert (frame.uid.hex(), frame.name, frame.firmware) == (told["uid"], told["name"], told["firmware"])
        assert (frame.now_us, frame.rate_mhz) == (told["now_us"], told["rate_mhz"])
        assert [(channel.name, channel.unit) for channel in frame.channels] == [
            (channel["name"], channel["unit"]) for channel in told["channels"]
        ]


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_a_golden_frame_holds_both_checksums_by_their_definition(vector: dict[str, Any]) -> None:
    body = cobs.decode(bytes.fromhex(vector["encoded"])[:-1])
    assert body[10:-6].hex() == vector["payload"]
    assert body[-6:] == struct.pack("<IH", crc32(body[:-6]), crc16(body[:-6]))


def test_the_example_of_the_documentation_is_a_golden_frame() -> None:
    text = (Path(__file__).parents[2] / "docs" / "frames.md").read_text(encoding="utf-8")
    fields, stuffed = text.split("## One frame, byte by byte")[1].split("## Why")[0].split("After COBS")
    told = [line[4:30] for line in fields.splitlines() if line.startswith("    ")]
    (golden,) = (bytes.fromhex(vector["encoded"]) for vector in VECTORS if "example of docs" in vector["name"])
    assert bytes.fromhex(" ".join(told)) == cobs.decode(golden[:-1])
    assert bytes.fromhex(" ".join(line for line in stuffed.splitlines() if line.startswith("    "))) == golden


def test_the_checksums_are_those_of_the_catalogue() -> None:
    assert (crc16(b"123456789"), crc32(b"123456789")) == (0x29B1, 0xCBF43926)


# --- damage ----------------------------------------------------------------------------------------------------------


def test_no_flip_of_one_bit_lets_a_frame_pass() -> None:
    encoded = encode(block())
    for bit in range(8 * (len(encoded) - 1)):
        changed = bytearray(encoded)
        changed[bit // 8] ^= 1 << bit % 8
        decoder = Decoder()
        assert decoder.feed(bytes(changed)) == []
        assert decoder.counts.failed + decoder.counts.malformed >= 1


def test_no_byte_lost_or_inserted_lets_a_false_frame_pass() -> None:
    sent = [block(0), block(1)]
    stream = b"".join(map(encode, sent))
    for at in range(len(stream)):
        for changed in (stream[:at] + stream[at + 1 :], *(stream[:at] + bytes([b]) + stream[at:] for b in range(256))):
            came = Decoder().feed(changed + b"\0")
            assert all(frame in sent for frame in came)
            assert len(came) >= 1 or changed == stream[:at] + stream[at + 1 :]


def test_a_damaged_frame_takes_no_other_with_it() -> None:
    first, second = encode(block(0)), encode(block(1))
    decoder = Decoder()
    assert decoder.feed(first[:10] + b"\0" + first[11:] + second) == [block(1)]


def test_a_lost_delimiter_costs_the_two_frames_beside_it_and_no_more() -> None:
    stream = encode(block(0))[:-1] + b"".join(encode(block(number)) for number in (1, 2))
    assert Decoder().feed(stream) == [block(2)]


def test_both_checksums_must_hold() -> None:
    body = cobs.decode(encode(block())[:-1])
    for changed in (body[:-6] + bytes([body[-6] ^ 1]) + body[-5:], body[:-1] + bytes([body[-1] ^ 1])):
        decoder = Decoder()
        assert decoder.feed(cobs.encode(changed) + b"\0") == []
        assert decoder.counts.failed == 1


@pytest.mark.parametrize("seed", range(3))
def test_on_a_noisy_line_what_is_accepted_was_sent_and_what_was_lost_is_counted(seed: int) -> None:
    outcome = run(frames=10_000, samples=64, rates=(1e-4, 1e-4, 1e-4), seed=seed)
    assert outcome.false == 0
    assert outcome.counted_lost == outcome.sent - outcome.accepted
    assert 500 < outcome.counted_lost < 3000, "the noise is none, or drowns all"


def test_on_a_line_that_is_nearly_useless_the_same_holds() -> None:
    outcome = run(frames=5_000, samples=32, rates=(2e-3, 2e-3, 2e-3), seed=4)
    assert outcome.right
    assert 0 < outcome.accepted < 2500


# --- hostile input ---------------------------------------------------------------------------------------------------


@given(st.binary(max_size=4000))
def test_bytes_of_no_meaning_bring_nothing_and_end_nothing(noise: bytes) -> None:
    decoder = Decoder()
    assert decoder.feed(noise) == []
    assert decoder.feed(b"\0" + encode(block())) == [block()]


def test_a_flood_without_delimiter_is_not_kept_and_counts_once() -> None:
    decoder = Decoder()
    for _ in range(100):
        decoder.feed(b"\x01" * 10_000)
        assert len(decoder._begun) <= MAX_ENCODED
    assert decoder.feed(b"\0" + encode(block())) == [block()]
    assert decoder.counts.oversized == 1


def test_the_longest_frame_passes_and_one_byte_more_does_not() -> None:
    decoder = Decoder()
    (frame,) = decoder.feed(sealed(0x82, b"\x01" * MAX_PAYLOAD))
    assert frame == Opaque(kind=0x82, sensor=1, sequence=0, payload=b"\x01" * MAX_PAYLOAD)
    assert decoder.feed(sealed(0x82, b"\0" * (MAX_PAYLOAD + 1))) == []
    assert decoder.feed(sealed(0x82, b"\x01" * (MAX_PAYLOAD + 1))) == []
    assert decoder.counts.oversized == 2


def test_delimiters_in_a_row_say_nothing() -> None:
    decoder = Decoder()
    assert decoder.feed(b"\0\0\0" + encode(block()) + b"\0\0") == [block()]
    assert (decoder.counts.malformed, decoder.counts.oversized) == (0, 0)


def test_a_kind_from_the_future_is_handed_on_and_a_version_from_the_future_is_counted() -> None:
    decoder = Decoder()
    assert decoder.feed(sealed(0x55, b"new")) == [Opaque(kind=0x55, sensor=1, sequence=0, payload=b"new")]
    assert decoder.feed(sealed(0x02, b"new", version=2)) == []
    assert decoder.counts.malformed == 1


HEAD = struct.pack("<QIf", 0, 1000, 1.0)
HELLO_HEAD = bytes(16) + b"pump".ljust(16, b"\0") + b"1.0".ljust(16, b"\0") + HEAD
CHANNEL = b"x".ljust(8, b"\0") + b"g".ljust(8, b"\0") + struct.pack("<ff", 0, 1)


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        (0x02, b""),
        (0x02, HEAD + struct.pack("<BBH", 3, 0, 2) + bytes(11)),
        (0x02, HEAD + struct.pack("<BBH", 3, 0, 2) + bytes(14)),
        (0x02, HEAD + struct.pack("<BBH", 0, 0, 2)),
        (0x02, HEAD + struct.pack("<BBH", 3, 0, 0)),
        (0x02, HEAD + struct.pack("<BBH", 17, 0, 1) + bytes(34)),
        (0x02, HEAD + struct.pack("<BBH", 1, 2, 1) + bytes(2)),
        (0x02, struct.pack("<QIf", 0, 0, 1.0) + struct.pack("<BBH", 1, 0, 1) + bytes(2)),
        (0x02, struct.pack("<QIf", 0, 1, float("nan")) + struct.pack("<BBH", 1, 0, 1) + bytes(2)),
        (0x02, struct.pack("<QIf", 0, 1, float("inf")) + struct.pack("<BBH", 1, 0, 1) + bytes(2)),
        (0x02, struct.pack("<QIf", 0, 1, -1.0) + struct.pack("<BBH", 1, 0, 1) + bytes(2)),
        (0x01, b""),
        (0x01, HELLO_HEAD + bytes([0, 0])),
        (0x01, HELLO_HEAD + bytes([2, 0]) + CHANNEL),
        (0x01, HELLO_HEAD + bytes([1, 1]) + CHANNEL),
        (0x01, HELLO_HEAD + bytes([1, 0]) + b"\xff" + CHANNEL[1:]),
        (0x01, HELLO_HEAD + bytes([1, 0]) + b"x\0y" + CHANNEL[3:]),
        (0x01, HELLO_HEAD + bytes([1, 0]) + CHANNEL[:-4] + bytes(4)),
        (0x01, HELLO_HEAD + bytes([17, 0]) + 17 * CHANNEL),
        (0x81, b"x"),
    ],
)
def test_a_payload_that_contradicts_itself_is_malformed(kind: int, payload: bytes) -> None:
    decoder = Decoder()
    assert decoder.feed(sealed(kind, payload)) == []
    assert (decoder.counts.malformed, decoder.counts.failed) == (1, 0)


def test_what_those_payloads_are_made_of_is_taken_where_it_is_right() -> None:
    decoder = Decoder()
    assert len(decoder.feed(sealed(0x02, HEAD + struct.pack("<BBH", 3, 1, 2) + bytes(12)))) == 1
    assert len(decoder.feed(sealed(0x01, HELLO_HEAD + bytes([1, 0]) + CHANNEL))) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"sensor": 1 << 16},
        {"sequence": -1},
        {"taken_us": 1 << 64},
        {"rate_mhz": 0},
        {"scale": 0.0},
        {"scale": 1e39},
        {"values": np.zeros((2, 3), dtype=np.int32)},
        {"values": np.zeros(6, dtype=np.int16)},
        {"values": np.zeros((0, 3), dtype=np.int16)},
        {"values": np.zeros((165, 3), dtype=np.int16)},
        {"values": np.zeros((1, 17), dtype=np.int16)},
    ],
)
def test_values_that_make_no_frame_are_refused_as_they_are_made(change: dict[str, Any]) -> None:
    with pytest.raises(FrameError, match=next(iter(change)).replace("values", "values|samples|channels")):
        block(**change)


@pytest.mark.parametrize(
    "change", [{"uid": b"short"}, {"name": "a name of 17 chars"}, {"firmware": "é"}, {"name": "a\nb"}, {"channels": ()}]
)
def test_a_hello_that_could_not_be_told_is_refused_as_it_is_made(change: dict[str, Any]) -> None:
    with pytest.raises(FrameError, match=next(iter(change))):
        hello(**change)


def test_a_scale_is_what_the_line_can_carry() -> None:
    assert block(scale=0.1).scale == np.float32(0.1)


@pytest.mark.parametrize("words", [("velocity_x", "g"), ("x", "millimetres"), ("x", "°C"), ("x\n", "g")])
def test_a_hello_holds_only_names_and_units_that_fit_it(words: tuple[str, str]) -> None:
    name, unit = words
    with pytest.raises(FrameError, match="up to 8 printable characters of ASCII expected"):
        hello(channels=(Channel(name=name, unit=unit),))
