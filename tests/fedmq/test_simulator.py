from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fedmq_edge_node.machines import BEARINGS
from fedmq_edge_node.samples import load, load_test
from fedmq_protocol.task import Windowing

from fedmq.baselines import local_only, pooled
from fedmq.data import lay_out
from fedmq.defaults import task_of, task_settings
from fedmq.simulator import CLASSES, simulate_fleet, simulate_vibration


def vibration(label: str, severity: float = 30.0, shaft_hz: float = 29.0, seed: int = 0) -> np.ndarray:
    return simulate_vibration(
        label=label,
        severity=severity,
        shaft_hz=shaft_hz,
        load=1.0,
        resonance_hz=3000.0,
        seconds=8.0,
        rng=np.random.default_rng(seed),
    )


def test_a_fault_that_no_bearing_has_is_refused() -> None:
    with pytest.raises(ValueError, match="expected one of normal, inner_race, ball, outer_race, got 'gear'"):
        vibration("gear")


@pytest.mark.parametrize("label", ["inner_race", "outer_race"])
def test_the_envelope_of_a_faulty_bearing_peaks_at_its_defect_rate(label: str) -> None:
    signal = vibration(label).astype(np.float64)
    spectrum = np.fft.fft(signal)
    spectrum[: (500 * 8)] = 0
    spectrum[len(signal) // 2 :] = 0
    lines = np.abs(np.fft.rfft(np.abs(np.fft.ifft(spectrum)) ** 2))
    frequencies = np.fft.rfftfreq(len(signal), 1 / 12_000)
    searched = (frequencies > 60) & (frequencies < 190)
    # Lines around the peak are smeared by slip: the strongest 5 Hz count.
    smooth = np.convolve(lines, np.ones(40), mode="same")
    peak = frequencies[searched][np.argmax(smooth[searched])]
    assert peak == pytest.approx(BEARINGS["6205"].defect_hz(29.0)[label.replace("_", " ")], abs=4.0)


def test_a_worse_defect_makes_the_vibration_stronger_and_more_impulsive() -> None:
    rms = [float(np.std(vibration("outer_race", severity))) for severity in (1.0, 10.0, 40.0)]
    assert rms == sorted(rms)
    strong = vibration("outer_race", 40.0).astype(np.float64)
    assert np.mean((strong - strong.mean()) ** 4) / strong.var() ** 2 > 4.0


def test_the_same_seed_gives_the_same_recordings_and_another_seed_others() -> None:
    assert vibration("ball").tobytes() == vibration("ball").tobytes()
    assert vibration("ball").tobytes() != vibration("ball", seed=1).tobytes()
    first, again, other = simulate_fleet(gateways=2), simulate_fleet(gateways=2), simulate_fleet(gateways=2, seed=1)
    signals = [
        [np.asarray(recording.signal).tobytes() for gateway in fleet.gateways for recording in gateway.recordings]
        for fleet in (first, again, other)
    ]
    assert signals[0] == signals[1]
    assert signals[0] != signals[2]


def test_each_gateway_has_seen_one_kind_and_the_test_set_has_all() -> None:
    fleet = simulate_fleet(gateways=7)
    seen = [{recording.label for recording in gateway.recordings} for gateway in fleet.gateways]
    assert all(len(labels) == 1 for labels in seen)
    assert set().union(*seen) == set(CLASSES)
    assert fleet.test is not None
    assert {recording.label for recording in fleet.test} == set(CLASSES)
    assert "simulated" in fleet.name
    assert all("simulated" in recording.name for gateway in fleet.gateways for recording in gateway.recordings)


@pytest.mark.parametrize("gateways", [2, 3, 10])
def test_a_fleet_of_any_size_has_a_healthy_gateway_and_names_of_its_own(gateways: int) -> None:
    fleet = simulate_fleet(gateways=gateways)
    assert len({gateway.name for gateway in fleet.gateways}) == gateways
    assert fleet.gateways[-1].recordings[0].label == "normal"


def test_a_fleet_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match="2 to 1,000"):
        simulate_fleet(gateways=1)


def test_what_a_gateway_cannot_learn_alone_can_be_learnt_from_all(tmp_path: Path) -> None:
    fleet = simulate_fleet()
    folders = lay_out(fleet, tmp_path / "plant")
    test = load_test(folders.pop("test"), Windowing(), fleet.classes)
    gateways = [load(folder, Windowing(), fleet.classes) for folder in folders.values()]
    task = task_of(task_settings(name="test", classes=fleet.classes, windowing=fleet.windowing))
    alone = local_only(gateways, task, 10, test)
    assert len(alone) == 7
    assert max(alone) < 0.4
    assert 0.85 < pooled(gateways, task, 20, test) < 1.0
