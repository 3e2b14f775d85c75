"""Downloads against the firmware's own slots in C: whatever the line does, a whole model runs, and the new one wins."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from fedmq_firmware_bridge.downloads import (
    CHUNK_BYTES,
    FIRST_TIMEOUT_S,
    LONGEST_TIMEOUT_S,
    MOST_BEGINS,
    PATIENCE_S,
    Download,
    Order,
    Outcome,
    Stage,
    drive,
    order,
    read_ack,
)
from fedmq_firmware_bridge.frames import MAX_PAYLOAD, AskHello, Decoder, Frame, FrameError, Opaque, encode
from fedmq_firmware_bridge.scores import read_score
from fedmq_models.sensor_image import SensorImage, image_id, to_bytes
from hypothesis import given, settings
from hypothesis import strategies as st
from sensor_images import CSensor, mended, sensor_image, shaft

SENSOR = 3


@pytest.fixture(scope="module")
def sensor(tmp_path_factory: pytest.TempPathFactory) -> CSensor:
    return CSensor(tmp_path_factory.mktemp("sensor"))


@pytest.fixture(scope="module")
def models() -> tuple[SensorImage, SensorImage]:
    """The one that runs, and the one that comes."""
    return sensor_image("mlp", 0, version=1), sensor_image("mlp", 1, version=2)


@dataclass
class Link:
    """A line in virtual time, which does to one order after another what `fates` say, and then nothing more."""

    sensor: CSensor
    fates: list[str] = field(default_factory=list)
    now: float = 0.0
    watch: Callable[[], None] = lambda: None
    """Called after everything that happens."""
    coming: list[tuple[float, bytes]] = field(default_factory=list)
    decoder: Decoder = field(default_factory=Decoder)

    def write(self, data: bytes) -> None:
        fate = self.fates.pop(0) if self.fates else "arrives"
        if fate == "restart":
            self.sensor.start()
        if fate.startswith("power"):
            self.sensor.cut_after(int(fate.split()[1]))
        if fate == "damaged":
            data = data[:5] + bytes([data[5] ^ 0x10 or 1]) + data[6:]
        acks = self.sensor.feed(data) if fate != "lost" else b""
        if fate == "twice":
            acks += self.sensor.feed(data)
        if fate.startswith("power"):
            self.sensor.start()
        late = {"late": 1.5 * FIRST_TIMEOUT_S, "very late": 5.0}.get(fate, 0.001)
        if fate == "ack damaged":
            acks = acks[:8] + bytes([acks[8] ^ 0x10 or 1]) + acks[9:]
        if acks and fate != "ack lost":
            self.coming.append((self.now + late, acks))
        self.watch()

    def read(self, seconds: float) -> list[Frame]:
        self.coming.sort(key=lambda one: one[0])
        until = self.now + seconds
        if self.coming and self.coming[0][0] <= until:
            at, data = self.coming.pop(0)
            self.now = max(self.now, at)
            return self.decoder.feed(data)
        self.now = until
        return []

    def clock(self) -> float:
        return self.now

    def run(self, image: bytes, sequence: int = 0) -> Download:
        download = Download(sensor=SENSOR, image=image, sequence=sequence)
        drive(download, self.write, self.read, self.clock)
        return download


def runs(sensor: CSensor, image: SensorImage) -> bool:
    windows = shaft(image.model.spec.sizes[0], 3, np.random.default_rng(0))
    found = sensor.run(windows)
    return found is not None and np.array_equal(found[0], image.run(windows.reshape(3, image.samples, 3))[0])


def spoilt(image: SensorImage) -> bytes:
    """An image whose test expects another output."""
    data = bytearray(to_bytes(image))
    data[-9] ^= 1
    return mended(bytes(data))


# --- on a line that does no harm -------------------------------------------------------------------------------------


def test_a_model_is_sent_in_as_few_frames_as_it_takes(sensor: CSensor, models: tuple[SensorImage, ...]) -> None:
    sensor.format()
    data = to_bytes(models[0])
    link = Link(sensor)
    download = link.run(data)
    assert (download.stage, download.reason, download.received) == (Stage.IN_FORCE, "", len(data))
    assert download.sent_frames == 1 + 1 + -(-len(data) // CHUNK_BYTES) + 1
    assert (download.repeated_frames, download.begins) == (0, 1)
    assert runs(sensor, models[0])


def test_updates_go_from_slot_to_slot_and_the_newest_one_runs_after_a_restart(
    sensor: CSensor, models: tuple[SensorImage, ...]
) -> None:
    sensor.format()
    for number in range(5):
        assert Link(sensor).run(to_bytes(models[number % 2])).stage is Stage.IN_FORCE
        assert sensor.active == number % 2
        sensor.start()
        assert runs(sensor, models[number % 2])


def test_a_model_that_runs_already_is_not_sent_again(sensor: CSensor, models: tuple[SensorImage, ...]) -> None:
    sensor.format()
    Link(sensor).run(to_bytes(models[0]))
    assert Link(sensor).run(to_bytes(models[0])).sent_frames == 1


def test_another_sender_goes_on_where_the_first_was_cut(sensor: CSensor, models: tuple[SensorImage, ...]) -> None:
    sensor.format()
    data, link = to_bytes(models[0]), Link(sensor)
    first = Download(sensor=SENSOR, image=data)
    while first.received < len(data) // 2:
        for frame in first.due(link.now):
            link.write(encode(frame))
        for came in link.read(1.0):
            first.take(came, link.now)
    second = link.run(data, sequence=500)
    assert (second.stage, second.begins) == (Stage.IN_FORCE, 0)
    assert first.sent_frames + second.sent_frames <= 4 + -(-len(data) // CHUNK_BYTES) + 1


def test_another_image_ends_what_had_begun(sensor: CSensor, models: tuple[SensorImage, ...]) -> None:
    sensor.format()
    begun = order(Order.BEGIN, sensor=SENSOR, sequence=0, image=9, number=5000)
    sensor.feed(encode(begun))
    assert Link(sensor).run(to_bytes(models[0])).stage is Stage.IN_FORCE


# --- on a line that does ---------------------------------------------------------------------------------------------


MILD = ("arrives", "arrives", "lost", "ack lost", "damaged", "ack damaged", "twice", "late", "very late")
fates = st.lists(st.sampled_from(MILD), max_size=30)


@settings(max_examples=300, deadline=None)
@given(fates=fates, seed=st.integers(0, 3))
def test_through_losses_damage_repeats_and_delays_the_new_model_comes_into_force(
    sensor: CSensor, models: tuple[SensorImage, ...], fates: list[str], seed: int
) -> None:
    # No more in a row than patience bears.
    fates = [fate if at % 5 else "arrives" for at, fate in enumerate(fates)]
    old, new = models
    sensor.format()
    Link(sensor).run(to_bytes(old))
    link = Link(sensor, fates)
    download = link.run(to_bytes(new), sequence=2**32 - 1 - seed)
    assert (download.stage, download.reason) == (Stage.IN_FORCE, "")
    assert runs(sensor, new)


severe = st.one_of(
    st.sampled_from((*MILD, "restart", "restart")),
    st.integers(0, 3000).map(lambda count: f"power {count}"),
    st.integers(32_700, 32_800).map(lambda count: f"power {count}"),
)


@settings(max_examples=300, deadline=None)
@given(fates=st.lists(severe, max_size=60))
def test_whatever_happens_one_whole_model_runs_and_on_a_quiet_line_the_new_one_comes_into_force(
    sensor: CSensor, models: tuple[SensorImage, ...], fates: list[str]
) -> None:
    old, new = models
    sensor.format()
    Link(sensor).run(to_bytes(old))

    def watch() -> None:
        assert runs(sensor, old) or runs(sensor, new)

    link = Link(sensor, list(fates), watch=watch)
    download = link.run(to_bytes(new), sequence=100)
    if download.stage is Stage.FAILED:
        assert (
            "no progress" in download.reason
            or "no answer" in download.reason
            or f"{MOST_BEGINS} times" in download.reason
        )
    link.fates.clear()
    assert link.run(to_bytes(new), sequence=download.sequence).stage is Stage.IN_FORCE
    sensor.start()
    assert runs(sensor, new)


def test_a_record_cut_at_any_byte_leaves_the_old_model_or_the_new_one(
    sensor: CSensor, models: tuple[SensorImage, ...]
) -> None:
    old, new = models
    data = to_bytes(new)
    came = []
    for count in range(17):
        sensor.format()
        Link(sensor).run(to_bytes(old))
        fates = ["arrives"] * (2 + -(-len(data) // CHUNK_BYTES)) + [f"power {count}" if count < 16 else "restart"]
        link = Link(sensor, fates[:-1])
        download = Download(sensor=SENSOR, image=data)
        while download.stage is not Stage.FINISHING:
            for frame in download.due(link.now):
                link.write(encode(frame))
            for frame in link.read(1.0):
                download.take(frame, link.now)
        sensor.cut_after(count if count < 16 else -1)
        for frame in download.due(link.now):
            sensor.feed(encode(frame))
        sensor.start()
        came.append(runs(sensor, new))
        assert came[-1] or runs(sensor, old)
    assert came == [False] * 16 + [True]


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "outcome", "told"),
    [
        (spoilt, Outcome.SELF_TEST, "computes other numbers"),
        (lambda new: mended(b"no model at all, but with a checksum" + bytes(40)), Outcome.MALFORMED, "cannot read"),
        (lambda new: to_bytes(replace(new, rate_mhz=1)), Outcome.UNFIT, "another rate"),
        (lambda new: mended(to_bytes(new) + bytes(32_768)), Outcome.TOO_LONG, "slots hold 32,752"),
    ],
)
def test_what_the_sensor_refuses_ends_a_download_with_its_reason_and_the_old_model_runs(
    sensor: CSensor, models: tuple[SensorImage, ...], make: Callable[[SensorImage], bytes], outcome: Outcome, told: str
) -> None:
    old, new = models
    sensor.format()
    link = Link(sensor)
    link.run(to_bytes(old))
    # Also where the answer to its last order is lost: the sensor says it again.
    chunks = -(-len(make(new)) // CHUNK_BYTES)
    link.fates = ["arrives"] * (2 + chunks) + ["ack lost"]
    failed = link.run(make(new), sequence=100)
    assert failed.stage is Stage.FAILED
    assert told in failed.reason
    assert failed.begins <= 1
    assert runs(sensor, old)
    sensor.start()
    assert runs(sensor, old)
    assert link.run(to_bytes(new), sequence=500).stage is Stage.IN_FORCE, "a refused model is in nobody's way"


def test_where_the_newest_model_is_damaged_in_its_flash_the_one_before_it_runs(
    sensor: CSensor, models: tuple[SensorImage, ...]
) -> None:
    sensor.format()
    for model in models:
        Link(sensor).run(to_bytes(model))
    assert sensor.active == 1
    sensor.memory(1)[300] ^= 1
    sensor.start()
    assert sensor.active == 0
    assert runs(sensor, models[0])
    sensor.memory(0)[300] ^= 1
    sensor.start()
    assert sensor.active is None
    assert sensor.run(np.zeros((1, 48))) is None
    assert Link(sensor).run(to_bytes(models[0])).stage is Stage.IN_FORCE


def test_the_newer_model_runs_also_where_the_sequence_of_records_wraps(
    sensor: CSensor, models: tuple[SensorImage, ...]
) -> None:
    sensor.format()
    Link(sensor).run(to_bytes(models[0]))
    record = struct.pack("<4sII", b"FQMS", 2**32 - 1, image_id(to_bytes(models[0])))
    record += struct.pack("<I", zlib.crc32(record))
    for at, byte in enumerate(record):
        sensor.memory(0)[CSensor.ROOM - 16 + at] = byte
    sensor.start()
    assert runs(sensor, models[0])
    assert Link(sensor).run(to_bytes(models[1])).stage is Stage.IN_FORCE
    sensor.start()
    assert runs(sensor, models[1])


def test_damage_that_both_checksums_of_a_frame_let_pass_is_found_by_the_images_own(
    sensor: CSensor, models: tuple[SensorImage, ...]
) -> None:
    """One chunk arrives as another, once: the sensor says so, and all is sent again."""
    sensor.format()
    data = to_bytes(models[0])
    sensor.feed(encode(order(Order.BEGIN, sensor=SENSOR, sequence=0, image=image_id(data), number=len(data))))
    wrong = bytes(CHUNK_BYTES)
    sensor.feed(encode(order(Order.CHUNK, sensor=SENSOR, sequence=1, image=image_id(data), number=0, chunk=wrong)))
    first = data[:CHUNK_BYTES]
    assert first != wrong
    sensor.memory(0)[0:12] = [*first[:12]]  # so that it looks like an image
    download = Link(sensor).run(data, sequence=10)
    assert (download.stage, download.begins) == (Stage.IN_FORCE, 1)


# --- time ------------------------------------------------------------------------------------------------------------


def test_without_an_answer_orders_come_more_and_more_rarely_and_then_no_more(models: tuple[SensorImage, ...]) -> None:
    download = Download(sensor=SENSOR, image=to_bytes(models[0]))
    at: list[float] = []
    now = 0.0
    while not download.ended:
        at += [now] * len(download.due(now))
        assert download.due(now) == [], "one order at a time"
        now = max(now, download.next_at)
    gaps = np.diff(at)
    assert gaps[0] == FIRST_TIMEOUT_S
    assert gaps.max() == LONGEST_TIMEOUT_S
    assert np.all(np.diff(gaps) >= 0)
    assert PATIENCE_S <= now <= PATIENCE_S + LONGEST_TIMEOUT_S
    assert "no answer within 60 s: is sensor 3 on this line" in download.reason
    assert download.repeated_frames == download.sent_frames - 1


def acked(**other: Any) -> Opaque:
    fields = {"order": 0, "outcome": 0, "slot": 0xFF, "answers": 0, "in_force": 0, "version": 0, "incoming": 0}
    fields |= {"received": 0, "room": 1 << 20} | other
    sensor = fields.pop("sensor", SENSOR)
    return Opaque(kind=0x04, sensor=sensor, sequence=0, payload=struct.pack("<BBBxIIIIII", *fields.values()))


def test_only_an_ack_of_this_sensor_to_the_last_order_counts(models: tuple[SensorImage, ...]) -> None:
    download = Download(sensor=SENSOR, image=to_bytes(models[0]), sequence=7)
    download.due(0.0)
    done = {"slot": 0, "in_force": download.id}
    for stray in (
        acked(answers=6, **done),
        acked(answers=8, **done),
        acked(answers=7, sensor=4, **done),
        AskHello(sensor=SENSOR, sequence=7),
        Opaque(kind=0x04, sensor=SENSOR, sequence=0, payload=bytes(27)),
        Opaque(kind=0x05, sensor=SENSOR, sequence=0, payload=acked(answers=7, **done).payload),
    ):
        download.take(stray, 0.1)
        assert download.stage is Stage.ASKING
    download.take(acked(answers=7, **done), 0.1)
    assert download.stage is Stage.IN_FORCE
    assert download.due(100.0) == []


def test_a_sensor_that_answers_and_never_gets_on_ends_a_download(models: tuple[SensorImage, ...]) -> None:
    stuck = Download(sensor=SENSOR, image=to_bytes(models[0]))
    now = 0.0
    while not stuck.ended and now < 1000:
        for frame in stuck.due(now):
            stuck.take(acked(answers=frame.sequence, incoming=stuck.id, received=CHUNK_BYTES), now + 0.25)
        now += 0.5
    assert "no progress within 60 s while sending chunks, 256 bytes there" in stuck.reason
    forgetful = Download(sensor=SENSOR, image=to_bytes(models[0]))
    for now in range(1000):
        for frame in forgetful.due(now):
            forgetful.take(acked(answers=frame.sequence), now + 0.5)
    assert f"{MOST_BEGINS} times" in forgetful.reason


@given(st.binary(max_size=40) | st.binary(min_size=28, max_size=28), st.integers(0, 255))
def test_no_ack_that_a_sensor_could_send_raises_in_a_download(payload: bytes, kind: int) -> None:
    download = Download(sensor=SENSOR, image=mended(bytes(600)), sequence=0)
    download.due(0.0)
    payload = payload[:4] + bytes(4) + payload[8:]
    for frame in (Opaque(kind=kind if kind not in (1, 2, 0x81) else 4, sensor=SENSOR, sequence=0, payload=payload),):
        download.take(frame, 0.1)
    download.take(Opaque(kind=4, sensor=SENSOR, sequence=0, payload=payload), 0.1)
    assert 0 <= download.received <= len(download.image)
    for frame in download.due(1e6):
        assert len(frame.payload) <= 12 + CHUNK_BYTES


# --- bytes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"1234", bytes(100), b"123456789"])
def test_bytes_that_do_not_end_with_their_checksum_are_not_sent(data: bytes) -> None:
    with pytest.raises(FrameError, match="ends with its CRC-32 expected"):
        Download(sensor=SENSOR, image=data)


@pytest.mark.parametrize(
    ("kind", "payload"), [(0x04, bytes(27)), (0x04, bytes(29)), (0x05, bytes(28)), (0x04, b"\0\0\x02" + bytes(25))]
)
def test_what_is_no_ack_is_refused(kind: int, payload: bytes) -> None:
    with pytest.raises(FrameError, match="ack"):
        read_ack(Opaque(kind=kind, sensor=1, sequence=0, payload=payload))


HEAD = struct.pack("<QIf", 5, 6, 0.5)


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        (0x03, HEAD),
        (0x05, HEAD + struct.pack("<BBHb", 0, 0, 1, 5)),
        (0x03, HEAD + struct.pack("<BBH", 0, 0, 0)),
        (0x03, HEAD + struct.pack("<BBHb", 0, 0, 2, 5)),
        (0x03, HEAD + struct.pack("<BBHb", 0, 1, 1, 5)),
        (0x03, HEAD + struct.pack("<BBHb", 2, 0, 1, 5)),
        (0x03, HEAD + struct.pack("<BBHii", 1, 0, 2, 5, 5)),
        (0x03, HEAD + struct.pack("<BBHi", 1, 0, 1, -1)),
        (0x03, struct.pack("<QIf", 5, 6, float("nan")) + struct.pack("<BBHb", 0, 0, 1, 5)),
        (0x03, struct.pack("<QIf", 5, 6, 0.0) + struct.pack("<BBHb", 0, 0, 1, 5)),
    ],
)
def test_what_is_no_score_is_refused(kind: int, payload: bytes) -> None:
    with pytest.raises(FrameError, match="score"):
        read_score(Opaque(kind=kind, sensor=1, sequence=0, payload=payload))


def test_a_score_is_read_to_its_ends() -> None:
    most = MAX_PAYLOAD - 20
    payload = HEAD + struct.pack("<BBH", 0, 0, most) + bytes([0x80, 0x7F]) + bytes(most - 2)
    score = read_score(Opaque(kind=0x03, sensor=1, boot=2, sequence=3, payload=payload))
    assert (score.integers[:3].tolist(), score.values[0], len(score.values)) == ([-128, 127, 0], -64.0, most)
    payload = HEAD + struct.pack("<BBHi", 1, 0, 1, 2**31 - 1)
    assert read_score(Opaque(kind=0x03, sensor=1, sequence=3, payload=payload)).values.tolist() == [(2**31 - 1) / 2]
