"""A bridge's store as what a gateway learns from."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fedmq_edge_node.samples import RAW, SampleError, Samples
from fedmq_edge_node.sensors import Sensors
from fedmq_firmware_bridge.frames import Channel
from fedmq_firmware_bridge.store import UNLABELLED, Recorder
from fedmq_protocol.task import Windowing
from sensors import CHANNELS, INFO, numbers, stretch

CLASSES = ("normal", "ball")
SAMPLES = 100


def windowing(**changes: Any) -> Windowing:
    values: dict[str, Any] = {
        "samples": SAMPLES,
        "hop": SAMPLES,
        "sampling_rate_hz": 1000.0,
        "features": RAW,
        "channels": 3,
        "held_out": 0.25,
    }
    return Windowing(**(values | changes))


class Site:
    """A bridge that a test plays, and a gateway's look at its store."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "bridge.sqlite"
        self.recorder = Recorder(self.path, max_bytes=1 << 30, opened_at=0.0)
        self.now = 0.0
        self.made = 0

    def hear(self, seconds: float, *, info: Any = INFO, follows: bool = True, **more: Any) -> None:
        count = round(seconds * 1000)
        self.recorder.append(info, stretch(self.made, count, follows=follows, **more), 0.0)
        self.made += count
        self.now = self.made / 1000
        self.recorder.flush(self.now, {})

    def look(self, **more: Any) -> Sensors:
        return Sensors(self.path, unix=lambda: self.now, **more)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    opened = Site(tmp_path)
    yield opened
    opened.recorder.close()


def load(site: Site, classes: tuple[str, ...] = (), sensors: Sensors | None = None, **changes: Any) -> Samples:
    return (sensors or site.look()).load(windowing(**changes), classes, "normal")


def sample_numbers(samples: Samples) -> list[list[int]]:
    """Of every window, which samples it holds: `counting` wrote their numbers into the first two channels."""
    windows = np.concatenate([samples.train_x, samples.held_x]).reshape(-1, SAMPLES, 3) * 9.80665 / 0.01
    return [numbers(np.rint(window)).tolist() for window in windows]


def test_no_window_spans_a_gap(site: Site) -> None:
    for number in range(21):
        gap = number % 3 == 0
        site.made += 17 * gap
        site.hear(0.35, follows=not gap)
    windows = sample_numbers(load(site))
    assert len(windows) == 7 * (7 + 2), "what is left over at either side of a cut is no window"
    assert all(np.diff(window).tolist() == [1] * (SAMPLES - 1) for window in windows)


def test_every_sample_is_in_one_window_at_most_whether_trained_on_or_held_out(site: Site) -> None:
    site.hear(30.0)
    site.hear(30.0)
    samples = load(site)
    every = [number for window in sample_numbers(samples) for number in window]
    assert len(every) == len(set(every)) == 60_000
    assert (samples.train_windows, samples.held_windows) == (450, 150)


def test_held_out_windows_stay_held_out_as_a_run_grows(site: Site) -> None:
    sensors = site.look()
    site.hear(130.0)
    before = load(site, sensors=sensors)
    held = {tuple(window) for window in sample_numbers(before)[before.train_windows :]}
    site.hear(130.0)
    after = load(site, sensors=sensors)
    trained = {tuple(window) for window in sample_numbers(after)[: after.train_windows]}
    assert held
    assert not held & trained


def test_labels_are_classes_and_what_has_none_is_left_out(site: Site) -> None:
    site.hear(10.0)
    site.recorder.label("pump-3", 2.0, 4.0, "normal", noted_at=0.0)
    site.recorder.label("pump-3", 6.0, 8.0, "ball", noted_at=0.0)
    samples = load(site, CLASSES)
    labels = np.concatenate([samples.train_y, samples.held_y]).tolist()
    windows = sample_numbers(samples)
    assert len(windows) == 2 * (15 + 5)
    assert {(window[0] // 2000, label) for window, label in zip(windows, labels, strict=True)} == {(1, 0), (3, 1)}
    assert site.look().signal_samples() == {UNLABELLED: 6000, "normal": 2000, "ball": 2000}


def test_an_autoencoder_learns_from_what_nobody_has_labelled_and_from_what_is_healthy(site: Site) -> None:
    site.hear(8.0)
    site.recorder.label("pump-3", 4.0, 8.0, "ball", noted_at=0.0)
    samples = load(site)
    assert samples.train_windows == 30
    assert samples.held_y.tolist() == [0] * 10 + [1] * 10


def test_a_label_that_is_no_class_is_told_with_what_to_do(site: Site) -> None:
    site.hear(2.0)
    site.recorder.label("pump-3", 0.0, 2.0, "bal", noted_at=0.0)
    with pytest.raises(SampleError, match=r"expected labels that are classes .*got 'bal' for pump-3; `fedmq label`"):
        load(site, CLASSES)


@pytest.mark.parametrize(("unit", "in_g"), [("g", 1.0), ("mg", 1e-3), ("m/s2", 1 / 9.80665), ("degC", 1.0)])
def test_accelerations_come_in_g_with_the_sensors_own_calibration(site: Site, unit: str, in_g: float) -> None:
    channels = (Channel(name="x", unit=unit, offset=0.5, gain=2.0), *CHANNELS[1:])
    site.hear(2.0, info=replace(INFO, channels=channels))
    first = load(site, held_out=0.0).train_x[0].reshape(SAMPLES, 3)
    assert first[:, 0] == pytest.approx((np.arange(SAMPLES) * 0.01 - 0.5) * 2.0 * in_g, rel=1e-5)


def test_a_sensor_that_has_not_said_what_it_measures_is_left_out(site: Site) -> None:
    site.hear(2.0, info=replace(INFO, channels=()))
    with pytest.raises(SampleError, match=r"expected a sensor with 3 channels at 1000 Hz.* got none so far"):
        load(site)


@pytest.mark.parametrize("changes", [{"sampling_rate_hz": 900.0}, {"channels": 2}])
def test_a_sensor_of_another_rate_or_shape_is_told(site: Site, changes: dict[str, Any]) -> None:
    site.hear(2.0)
    with pytest.raises(SampleError, match="got counting on pump-3 with 3 channels at 1000 Hz"):
        load(site, **changes)


def test_machines_can_be_chosen(site: Site) -> None:
    site.hear(2.0)
    site.hear(4.0, info=replace(INFO, source="fan", machine="fan-1"))
    assert load(site, sensors=site.look(machines=("fan-1",))).recordings == 1
    assert site.look(machines=("fan-1",)).signal_samples() == {UNLABELLED: 4000}
    assert load(site).recordings == 2


def test_the_newest_windows_are_learnt_from(site: Site) -> None:
    for _ in range(5):
        site.hear(60.0, follows=False)
    windows = sample_numbers(load(site, sensors=site.look(windows=1200)))
    assert (len(windows), min(window[0] for window in windows)) == (1200, 180_000)


def test_damaged_samples_are_left_out_and_the_rest_is_learnt_from(site: Site) -> None:
    site.hear(60.0, follows=False)
    site.hear(60.0, follows=False)
    with sqlite3.connect(site.path) as db:
        db.execute("UPDATE samples SET crc = crc + 1 WHERE batch = 1")
    samples = load(site)
    assert min(window[0] for window in sample_numbers(samples)) == 60_000


def test_windows_are_cut_anew_for_a_label_for_more_samples_and_after_a_while(site: Site) -> None:
    sensors = site.look(renew_seconds=100.0)
    site.hear(20.0)
    assert sensors.changed(), "the first samples"
    load(site, sensors=sensors)
    assert not sensors.changed()
    site.hear(1.0)
    assert not sensors.changed(), "a little more is not worth it"
    site.recorder.label("pump-3", 0.0, 1.0, "normal", noted_at=0.0)
    assert sensors.changed()
    load(site, sensors=sensors)
    site.hear(10.0)
    assert sensors.changed(), "half as much again"
    load(site, sensors=sensors)
    site.hear(1.0)
    site.now += 100.0
    assert sensors.changed(), "a while ago"


def test_a_sensor_that_falls_silent_is_told_and_one_that_nobody_learns_from_is_not(site: Site) -> None:
    sensors = site.look(fresh_seconds=60.0)
    site.hear(2.0, info=replace(INFO, source="old", machine="old"), rate_hz=500.0)
    site.hear(2.0)
    assert sensors.silent() == ""
    load(site, sensors=sensors)
    site.now += 59.0
    assert sensors.silent() == ""
    site.now += 3.0
    assert sensors.silent() == "silent: counting on pump-3 for 62 s; limit 60 s"
    never = site.look(fresh_seconds=0.0)
    load(site, sensors=never)
    assert never.silent() == ""


def test_a_sensor_that_is_heard_and_not_kept_is_not_silent(site: Site) -> None:
    sensors = site.look(fresh_seconds=60.0)
    site.hear(2.0)
    load(site, sensors=sensors)
    site.now += 100.0
    report = {"source": "motor", "number": 1, "last_seen_at": site.now - 5}
    site.recorder.flush(site.now, {"at": site.now, "sensors": [report]})
    assert sensors.silent() == ""


def test_lives_that_ran_to_their_end_are_not_in_a_store(site: Site) -> None:
    site.hear(2.0)
    with pytest.raises(SampleError, match="machines that ran to their end"):
        load(site, remaining_most=100.0)


def test_without_a_store_a_gateway_says_so_at_its_start(tmp_path: Path) -> None:
    with pytest.raises(SampleError, match="fedmq bridge run"):
        Sensors(tmp_path / "none.sqlite", unix=lambda: 0.0)


def test_a_ring_that_fails_is_recordings_that_cannot_be_read(site: Site) -> None:
    sensors = site.look()
    with sqlite3.connect(site.path) as db:
        db.execute("ALTER TABLE batches RENAME TO elsewhere")
    with pytest.raises(SampleError, match="no such table"):
        sensors.changed()
