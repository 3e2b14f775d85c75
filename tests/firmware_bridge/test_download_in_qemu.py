"""Models down the line to an emulated Cortex-M3: scores are the gateway's, and whatever ends an update, one runs."""

from __future__ import annotations

import socket
import struct
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from fedmq_firmware_bridge.downloads import Download, Stage, drive
from fedmq_firmware_bridge.frames import Decoder, Frame, Opaque, encode
from fedmq_firmware_bridge.readings import Line
from fedmq_firmware_bridge.scores import Score, read_score
from fedmq_models.sensor_image import SensorImage, image_id, to_bytes
from qemu_sensor import SAMPLE_HZ, accelerations, build_firmware, reset, running
from sensor_images import KINDS, sensor_image

pytestmark = pytest.mark.slow

WINDOWS = 500
SENSOR = 1


@pytest.fixture(scope="module")
def firmware(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_firmware(tmp_path_factory.mktemp("firmware"))


@dataclass
class Gateway:
    """The other end of the line. Keeps what comes beside a download."""

    uart: socket.socket
    folder: Path
    decoder: Decoder = field(default_factory=Decoder)
    line: Line = field(default_factory=Line)
    scores: list[Score] = field(default_factory=list)
    sequence: int = 0

    def read(self, seconds: float) -> list[Frame]:
        self.uart.settimeout(max(seconds, 0.01))
        try:
            frames = self.decoder.feed(self.uart.recv(1 << 16))
        except TimeoutError:
            return []
        self.line.take(frames, 0.0)
        self.scores += [read_score(one) for one in frames if isinstance(one, Opaque) and one.kind == 0x03]
        return frames

    def send(self, image: bytes, upto: int | None = None) -> Download:
        """All of it, or until the sensor has so many bytes; then the sender is gone."""
        download = Download(sensor=SENSOR, image=image, sequence=self.sequence)
        if upto is None:
            drive(download, self.uart.sendall, self.read, time.monotonic)
        while not download.ended and download.received < (upto or 0):
            for frame in download.due(time.monotonic()):
                self.uart.sendall(encode(frame))
            for came in self.read(download.next_at - time.monotonic()):
                download.take(came, time.monotonic())
        self.sequence = download.sequence
        return download

    def next_scores(self, count: int = WINDOWS) -> list[Score]:
        """That have been computed from now on, however many wait in buffers."""
        self.scores.clear()
        deadline = time.monotonic() + 60
        while len(self.scores) < count and time.monotonic() < deadline:
            self.read(1.0)
        assert len(self.scores) >= count, f"{len(self.scores)} scores came"
        return self.scores[:count]

    def reset(self) -> None:
        """What is under way from before is taken first, so that the rest is of the new start."""
        counts = self.line.sensors[SENSOR].counts
        restarts = counts.restarts
        reset(self.folder)
        while counts.restarts == restarts:
            self.read(1.0)
        self.scores.clear()


@pytest.fixture
def gateway(firmware: Path, tmp_path: Path) -> Iterator[Gateway]:
    with running(firmware, tmp_path) as uart:
        yield Gateway(uart=uart, folder=tmp_path)


def image_for_qemu(kind: str, version: int = 1, seed: int = 0) -> SensorImage:
    return replace(sensor_image(kind, seed, version), rate_mhz=SAMPLE_HZ * 1000)


def assert_of(image: SensorImage, scores: list[Score]) -> None:
    """Every score is the one that the gateway's reference has for the samples of its window."""
    begins = [score.taken_us * SAMPLE_HZ // 1_000_000 for score in scores]
    outputs, found = image.run(np.stack([accelerations(begin, image.samples) for begin in begins]))
    wanted = found[:, None] if image.model.spec.kind == "autoencoder" else outputs.astype(np.int32)
    assert np.array_equal(np.stack([score.integers for score in scores]), wanted)
    assert len(np.unique(wanted)) > 20, "hardly any score differs: this proves little"
    assert {score.image for score in scores} == {image_id(to_bytes(image))}
    assert {np.float32(score.scale) for score in scores} == {np.float32(image.result_scale)}
    # Windows follow each other, and every score came.
    assert set(np.diff(begins)) == {image.hop}
    assert set(np.diff([score.sequence for score in scores])) == {1}


def spoilt(image: SensorImage) -> bytes:
    """One expected output of its test is another; its CRC-32 holds."""
    data = bytearray(to_bytes(image))
    data[-9] ^= 1
    data[-4:] = struct.pack("<I", zlib.crc32(bytes(data[:-4])))
    return bytes(data)


def test_on_a_line_that_damages_every_fourth_order_and_loses_every_fifth_answer_it_comes_into_force(
    gateway: Gateway,
) -> None:
    image = image_for_qemu("mlp")
    written, answers = 0, 0

    def write(data: bytes) -> None:
        nonlocal written
        written += 1
        gateway.uart.sendall(data if written % 4 else data[:9] + data[10:])

    def read(seconds: float) -> list[Frame]:
        nonlocal answers
        kept = []
        for frame in gateway.read(seconds):
            answers += frame_is_ack(frame)
            if not (frame_is_ack(frame) and answers % 5 == 0):
                kept.append(frame)
        return kept

    download = Download(sensor=SENSOR, image=to_bytes(image))
    drive(download, write, read, time.monotonic)
    assert (download.stage, download.reason) == (Stage.IN_FORCE, "")
    assert download.repeated_frames >= 4
    assert_of(image, gateway.next_scores())


def frame_is_ack(frame: Frame) -> bool:
    return isinstance(frame, Opaque) and frame.kind == 0x04


@pytest.mark.parametrize("kind", KINDS)
def test_scores_of_a_model_that_came_down_the_line_are_bit_for_bit_the_gateways(gateway: Gateway, kind: str) -> None:
    image = image_for_qemu(kind)
    while SENSOR not in gateway.line.sensors or gateway.line.sensors[SENSOR].counts.frames < 50:
        gateway.read(1.0)
    assert gateway.scores == [], "there is no model yet"
    download = gateway.send(to_bytes(image))
    assert (download.stage, download.begins) == (Stage.IN_FORCE, 1)
    assert_of(image, gateway.next_scores())
    counts = gateway.line.sensors[SENSOR].counts
    assert (counts.lost_frames, counts.gaps, counts.overruns, counts.restarts, counts.jumps) == (0, 0, 0, 0, 0)
    assert gateway.decoder.counts.failed + gateway.decoder.counts.malformed == 0


def test_an_update_cut_half_way_leaves_the_old_model_running_and_goes_on_where_it_was_cut(gateway: Gateway) -> None:
    old, new = image_for_qemu("autoencoder", 1), image_for_qemu("autoencoder", 2, seed=1)
    assert gateway.send(to_bytes(old)).stage is Stage.IN_FORCE
    half = len(to_bytes(new)) // 2
    cut = gateway.send(to_bytes(new), upto=half)
    assert (cut.stage, half <= cut.received < len(to_bytes(new))) == (Stage.SENDING, True)
    assert_of(old, gateway.next_scores())
    resumed = gateway.send(to_bytes(new))
    assert (resumed.stage, resumed.begins) == (Stage.IN_FORCE, 0), "it need not begin anew"
    assert_of(new, gateway.next_scores())


def test_a_restart_half_way_leaves_the_old_model_and_one_after_it_the_new_one(gateway: Gateway) -> None:
    old, new = image_for_qemu("mlp", 1), image_for_qemu("mlp", 2, seed=1)
    assert gateway.send(to_bytes(old)).stage is Stage.IN_FORCE
    gateway.send(to_bytes(new), upto=len(to_bytes(new)) // 2)
    gateway.reset()
    assert_of(old, gateway.next_scores())
    anew = gateway.send(to_bytes(new))
    assert (anew.stage, anew.begins) == (Stage.IN_FORCE, 1)
    gateway.reset()
    assert_of(new, gateway.next_scores())


def test_a_model_that_fails_its_self_test_never_runs(gateway: Gateway) -> None:
    old, new = image_for_qemu("mlp", 1), image_for_qemu("mlp", 2, seed=1)
    failed = gateway.send(spoilt(new))
    assert failed.stage is Stage.FAILED
    assert "computes other numbers" in failed.reason
    assert gateway.send(to_bytes(old)).stage is Stage.IN_FORCE
    assert gateway.send(spoilt(new)).stage is Stage.FAILED
    assert_of(old, gateway.next_scores())
    gateway.reset()
    assert_of(old, gateway.next_scores())
