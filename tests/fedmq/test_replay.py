"""Recordings played to a bridge: what a script becomes, and what of it stands in a store."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from fedmq_edge_node.alertbook import Position
from fedmq_edge_node.machines import Machine
from fedmq_edge_node.operating import OperatingSettings
from fedmq_edge_node.sensors import Sensors
from fedmq_firmware_bridge.port import Port
from fedmq_firmware_bridge.service import Bridge
from fedmq_firmware_bridge.sources import Native
from fedmq_firmware_bridge.store import Recorder, Store, StoreError
from fedmq_protocol.task import Windowing
from numpy.typing import NDArray

from fedmq.cli import main
from fedmq.data import DataError, recordings_at, signal_of
from fedmq.watch.feeding import feed
from fedmq.watch.playing import FADE_SECONDS, Player, ScriptError, Take, parse_script, whole
from fedmq.watch.replay import Firmware, play_into, play_to_socket, simulated_machine, to_takes

RATE_HZ = 2000.0
START = 1_800_000_000.0

Floats = NDArray[np.float64]


def tone(hz: float, seconds: float = 4.0, height: float = 1.0) -> Floats:
    return height * np.sin(2 * np.pi * hz * np.arange(round(seconds * RATE_HZ)) / RATE_HZ)[:, None]


def takes() -> list[Take]:
    return [
        Take(label="normal", name="calm", values=tone(100.0)),
        Take(label="ball", name="rough", values=tone(250.0, height=2.0)),
        Take(label="ball", name="rougher", values=tone(300.0, height=3.0)),
    ]


def player(script: str, **more: float) -> Player:
    return Player(takes(), parse_script(script), rate_hz=RATE_HZ, noise_g=1e-3, **more)  # type: ignore[arg-type]


def played(one: Player, samples: int = 100) -> Floats:
    return np.concatenate([block.values for block in one.blocks(samples)])


def between(values: Floats, from_at: float, to_at: float) -> Floats:
    return values[round(from_at * RATE_HZ) : round(to_at * RATE_HZ), 0]


def pitch(values: Floats) -> float:
    """Of the loudest line, in Hz."""
    spectrum = np.abs(np.fft.rfft(values * np.hanning(len(values)), 1 << 16))
    return float(np.argmax(spectrum) * RATE_HZ / (1 << 16))


def rms(values: Floats) -> float:
    return float(np.sqrt(np.mean(values**2)))


# --- scripts ---------------------------------------------------------------------------------------------------------


def test_a_script_says_what_is_the_matter_when() -> None:
    one = player("healthy:30s,stop:10s,start,ball@rough:1m", ramp_seconds=2.0)
    told = [(span.state, span.label, span.recording, span.from_at, span.to_at) for span in one.spans]
    assert told == [
        ("running", "normal", "calm", 0.0, 30.0),
        ("stopping", "normal", "calm", 30.0, 32.0),
        ("stopped", "", "", 32.0, 42.0),
        ("starting", "ball", "rough", 42.0, 45.0),
        ("running", "ball", "rough", 45.0, 105.0),
    ]
    assert one.seconds == 105.0


def test_recordings_of_a_label_take_turns() -> None:
    spans = player("ball:1s,ball:1s,normal:1s,ball:1s").spans
    assert [span.recording for span in spans] == ["rough", "rougher", "calm", "rough"]


def test_without_a_script_each_recording_is_played_once() -> None:
    spans = Player(takes(), whole(takes(), RATE_HZ), rate_hz=RATE_HZ).spans
    assert [(span.recording, span.to_at - span.from_at) for span in spans] == [
        ("calm", 4.0),
        ("rough", 4.0),
        ("rougher", 4.0),
    ]


@pytest.mark.parametrize(
    "script",
    [
        "",
        "normal",
        "normal:0s",
        "normal:ten",
        "normal:5s;ball:5s",
        "speed=3:5s,normal:5s",
        "speed=1.2.3,normal:5s",
        "normal=0.5:5s",
        "stop@calm:5s",
        "oil:5s",
        "normal@rough:5s",
        "normal:5s,stop,ball:5s",
        "normal:5s,start",
        "normal:5s,stop:5s,stop:1h" + ",normal:24h" * 500,
    ],
)
def test_what_cannot_be_played_is_told(script: str) -> None:
    with pytest.raises(ScriptError, match="expected"):
        player(script)


# --- what is heard ---------------------------------------------------------------------------------------------------


def test_a_recording_is_heard_as_it_is() -> None:
    assert np.array_equal(between(played(player("normal:3s")), 0.0, 3.0), tone(100.0)[:6000, 0])


def test_blocks_of_any_size_make_the_same_signal() -> None:
    script = "normal:5s,ball:2s,stop:1s,start,ball:1s,speed=0.7:1s,normal:2s"
    assert np.array_equal(played(player(script), 64), played(player(script), 64))
    # Noise is drawn as it is needed, channel by channel, so that only the signal behind it must agree.
    assert np.abs(played(player(script), 64) - played(player(script), 999)).max() < 0.02


def test_a_recording_that_is_too_short_goes_on_without_a_click() -> None:
    values = between(played(player("normal:20s")), 0.0, 20.0)
    steepest = 2 * np.pi * 100.0 / RATE_HZ
    assert np.abs(np.diff(values)).max() < 1.5 * steepest
    assert pitch(values[-4000:]) == pytest.approx(100.0, abs=0.5)


def test_one_recording_fades_into_the_next() -> None:
    values = between(played(player("normal:2s,ball:2s")), 0.0, 4.0)
    assert pitch(values[: 2 * 2000]) == pytest.approx(100.0, abs=0.5)
    behind = values[round((2.0 + FADE_SECONDS) * RATE_HZ) :]
    assert np.array_equal(behind, tone(250.0, height=2.0)[round(FADE_SECONDS * RATE_HZ) : 4000, 0])
    assert np.abs(np.diff(values)).max() < 1.2 * 2.0 * 2 * np.pi * 250.0 / RATE_HZ


def test_a_stop_runs_down_to_the_noise_of_the_sensor() -> None:
    values = played(player("normal:3s,stop:5s,start:2s,normal:3s", ramp_seconds=2.0))
    assert rms(between(values, 5.1, 9.9)) == pytest.approx(1e-3, rel=0.05)
    levels = [rms(between(values, at, at + 0.2)) for at in np.arange(3.0, 5.0, 0.2)]
    assert levels == sorted(levels, reverse=True)
    assert rms(between(values, 12.5, 14.5)) == pytest.approx(1 / np.sqrt(2), rel=0.05)


def test_another_speed_moves_the_lines_and_lowers_the_forces() -> None:
    values = played(player("normal:3s,speed=0.8:1s,normal:3s,speed=1.25:1s,normal:3s"))
    slow, fast = between(values, 4.2, 6.8), between(values, 8.2, 10.8)
    assert (pitch(slow), pitch(fast)) == pytest.approx((80.0, 125.0), abs=0.5)
    assert (rms(slow), rms(fast)) == pytest.approx((0.64 / np.sqrt(2), 1.25**2 / np.sqrt(2)), rel=0.02)


def test_what_a_higher_speed_would_fold_back_is_kept_out() -> None:
    high = [Take(label="normal", name="high", values=tone(900.0))]
    one = Player(high, parse_script("speed=1.5,normal:3s"), rate_hz=RATE_HZ)
    # 1,350 Hz is more than the sampling rate can hold.
    assert rms(played(one)[:, 0]) < 0.05


# --- in a store ------------------------------------------------------------------------------------------------------


def kept(path: Path, machine: str = "pump-3") -> list[tuple[float, float, Floats]]:
    store = Store(path)
    try:
        runs = store.runs(machine=machine)
        return [(run.taken_at, run.ended_at, store.read(run, run.start, run.stop) * run.scale) for run in runs]
    finally:
        store.close()


def test_a_store_has_every_sample_in_the_time_of_the_replay(tmp_path: Path) -> None:
    one = player("normal:30s,ball:40s")
    told = play_into(tmp_path / "bridge.sqlite", one, machine="pump-3", from_at=START)
    ((taken_at, ended_at, values),) = kept(tmp_path / "bridge.sqlite")
    assert (taken_at, ended_at) == pytest.approx((START, START + 70.0), abs=0.1)
    assert (told.from_at, told.to_at, told.lost_frames) == (START, pytest.approx(START + 70.0), 0)
    step = one.peak_g / 32_767
    assert np.abs(values - played(player("normal:30s,ball:40s"))).max() <= step


def test_speed_is_a_wait_on_the_clock_and_nothing_else(tmp_path: Path) -> None:
    now = [100.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    flushed: list[tuple[float, float]] = []
    told = play_into(
        tmp_path / "bridge.sqlite",
        player("normal:60s"),
        machine="pump-3",
        from_at=START,
        speed=20.0,
        clock=lambda: now[0],
        sleep=sleep,
        flushed=lambda at: flushed.append((at, now[0] - 100.0)),
    )
    assert told.took_seconds == pytest.approx(3.0)
    assert len(flushed) > 3
    for at, waited in flushed:
        assert waited == pytest.approx(at / 20.0)


def test_a_second_replay_goes_behind_the_first_and_not_into_it(tmp_path: Path) -> None:
    store = tmp_path / "bridge.sqlite"
    play_into(store, player("normal:10s"), machine="pump-3", from_at=START)
    with pytest.raises(StoreError, match="begins after"):
        play_into(store, player("normal:10s"), machine="pump-3", from_at=START + 5.0)
    play_into(store, player("ball:10s"), machine="pump-3", from_at=START + 12.0)
    play_into(store, player("ball:10s"), machine="pump-4", from_at=START + 5.0)
    assert [len(values) for _, _, values in kept(store)] == [20_000, 20_000]
    assert [len(values) for _, _, values in kept(store, "pump-4")] == [20_000]


def test_labels_are_given_to_a_machine_that_runs_and_to_no_transition(tmp_path: Path) -> None:
    store = tmp_path / "bridge.sqlite"
    script = "normal:60s,stop:20s,start,ball:60s"
    play_into(store, player(script), machine="pump-3", from_at=START, label=True)
    counts = Sensors(store, unix=lambda: START + 150.0).signal_samples()
    assert counts.keys() == {"normal", "ball", "unlabelled"}
    assert (counts["normal"], counts["ball"]) == pytest.approx((120_000, 120_000), abs=500)
    windowing = Windowing(samples=500, hop=500, sampling_rate_hz=RATE_HZ, features="vibration-1", held_out=0.0)
    found = Sensors(store, unix=lambda: START + 150.0).load(windowing, ("normal", "ball"), "normal")
    # The end of a run is a recording only once it is long enough.
    assert set(found.train_y.tolist()) == {0, 1}
    assert 300 < len(found.train_x) <= 482
    # RMS, the first feature: of the tones alone, none of a machine that runs down, stands or runs up.
    levels = 10.0 ** found.train_x[:, 0]
    assert levels[found.train_y == 0] == pytest.approx(1 / np.sqrt(2), rel=0.1)
    assert levels[found.train_y == 1] == pytest.approx(2 / np.sqrt(2), rel=0.1)


def test_no_training_window_is_of_a_machine_that_stands_or_changes_its_speed(tmp_path: Path) -> None:
    store = tmp_path / "bridge.sqlite"
    one = player("normal:100s,stop:40s,start:8s,normal:60s,speed=0.7:10s,normal:60s,stop:30s,start,normal:90s")
    play_into(store, one, machine="pump-3", from_at=START)
    # Somebody says that all of it was normal, stops and all.
    writer = Store(store)
    writer.label("pump-3", START, START + one.seconds, "normal", noted_at=START)
    writer.close()
    windowing = Windowing(samples=400, hop=400, sampling_rate_hz=RATE_HZ, features="vibration-1", held_out=0.25)

    def levels(**more: Mapping[str, OperatingSettings]) -> list[float]:
        """RMS of each window, by the first feature."""
        found = Sensors(store, unix=lambda: START + one.seconds, **more).load(windowing, ("normal",), "normal")
        return [float(level) for level in 10.0 ** np.concatenate([found.train_x, found.held_x])[:, 0]]

    # At full speed and at 0.7 times that; between these, and below, it moves or stands.
    # Where a tone fades into itself it is louder for a moment.
    full, slow = pytest.approx(0.707, rel=0.12), pytest.approx(0.49 * 0.707, rel=0.12)
    assert any(level not in (full, slow) for level in levels())
    running = levels(operating={"pump-3": OperatingSettings()})
    assert len(running) > 700
    assert [level for level in running if level not in (full, slow)] == []
    assert any(level == slow for level in running)
    assert levels(operating={"pump-4": OperatingSettings()}) == levels()


def test_no_training_window_is_of_a_slow_change_of_speed_that_its_level_hardly_shows(tmp_path: Path) -> None:
    store = tmp_path / "bridge.sqlite"
    orders = sum(tone(20.0 * order) / order for order in range(1, 12))
    rng = np.random.default_rng(0)
    machine = Take(label="normal", name="shaft", values=orders + rng.normal(0.0, 0.02, orders.shape))
    script = "normal:100s,speed=0.95:40s,normal:100s,speed=1:60s,normal:100s"
    one = Player([machine], parse_script(script), rate_hz=RATE_HZ, noise_g=1e-3)
    play_into(store, one, machine="pump-3", from_at=START)
    writer = Store(store)
    writer.label("pump-3", START, START + one.seconds, "normal", noted_at=START)
    writer.close()
    windowing = Windowing(samples=2000, hop=2000, sampling_rate_hz=RATE_HZ, features="raw", held_out=0.25)

    def pitches(**more: Mapping[str, OperatingSettings]) -> list[float]:
        found = Sensors(store, unix=lambda: START + one.seconds, **more).load(windowing, ("normal",), "normal")
        return [pitch(window) for window in np.concatenate([found.train_x, found.held_x])]

    steady = pytest.approx(20.0, abs=0.1), pytest.approx(19.0, abs=0.1)
    assert any(hz not in steady for hz in pitches())
    running = pitches(operating={"pump-3": OperatingSettings()})
    assert len(running) > 120
    assert [hz for hz in running if hz not in steady] == []
    assert any(hz == steady[1] for hz in running)


# --- to a bridge that runs -------------------------------------------------------------------------------------------


def test_a_running_bridge_hears_it_on_a_socket(tmp_path: Path) -> None:
    path, store = tmp_path / "s.sock", tmp_path / "bridge.sqlite"
    bridge = Bridge(
        sources=[Port("motor", str(path), Native(source="motor", machine="pump-3"))],
        recorder=Recorder(store, max_bytes=1 << 26, opened_at=START),
        flush_seconds=0.2,
        flush_bytes=1 << 20,
    )
    running = threading.Thread(target=bridge.run)
    running.start()
    try:
        told = play_to_socket(path, player("normal:1s,ball:1s"), sensor="replayed")
    finally:
        bridge.stopping = True
        running.join()
    assert told.lost_frames == 0
    ((taken_at, ended_at, values),) = kept(store)
    assert ended_at - taken_at == pytest.approx(2.0, abs=0.5)
    # The last frames may be cut off where the sensor goes away.
    assert len(values) > 3_000
    assert np.abs(values - played(player("normal:1s,ball:1s"))[: len(values)]).max() < 1e-3


# --- recordings ------------------------------------------------------------------------------------------------------


def write(folder: Path, label: str, name: str, seconds: float = 3.0) -> Path:
    (folder / label).mkdir(parents=True, exist_ok=True)
    np.save(folder / label / f"{name}.npy", tone(100.0, seconds).astype(np.float32))
    (folder / label / f"{name}.toml").write_text(f"sampling_rate_hz = {RATE_HZ}\n")
    return folder / label / f"{name}.npy"


def test_recordings_are_found_in_folders_of_labels_and_of_gateways_and_alone(tmp_path: Path) -> None:
    file = write(tmp_path / "plant" / "pump", "normal", "a")
    write(tmp_path / "plant" / "pump", "ball", "b")
    for path, names in ((tmp_path / "plant", ["b", "a"]), (tmp_path / "plant" / "pump", ["b", "a"]), (file, ["a"])):
        assert [one.name for one in recordings_at(path)] == names
    (one,) = recordings_at(file)
    assert (one.label, one.sampling_rate_hz, signal_of(one).shape) == ("normal", RATE_HZ, (6000, 1))
    with pytest.raises(DataError, match="at most 100"):
        signal_of(one, 100)
    with pytest.raises(DataError, match="expected a folder"):
        recordings_at(tmp_path / "absent")


def test_the_simulated_machine_has_each_fault_at_one_speed() -> None:
    every = simulated_machine(3, seconds=2.0)
    assert [one.label for one in every] == ["normal", "inner_race", "ball", "outer_race"]
    assert np.array_equal(signal_of(every[1]), signal_of(simulated_machine(3, seconds=2.0)[1]))
    firmware = Firmware(
        Player(to_takes(every), parse_script("normal:1s"), rate_hz=12_000.0), name="a name of more than sixteen"
    )
    assert firmware.hello()


def test_the_command_plays_and_says_what_was_when(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "plant", "normal", "a")
    write(tmp_path / "plant", "ball", "b")
    store = str(tmp_path / "bridge.sqlite")
    words = ["replay", str(tmp_path / "plant"), "--store", store, "--machine", "pump-3"]
    assert main([*words, "--script", "healthy:20s,stop:5s,start,ball:20s", "--from", "2026-11-29T08:00:00+00:00"]) == 0
    out = capsys.readouterr().out
    assert "played 51.0 s of pump-3" in out
    assert [line.split()[6] for line in out.splitlines()[1:]] == ["normal", "normal", "-", "ball", "ball"]
    assert main([*words, "--script", "healthy:20s"]) == 0  # it ends now, which is long after
    assert len(kept(Path(store))) == 2

    for wrong, said in (
        (["--script", "oil:5s"], "expected labels"),
        (["--script", "healthy"], "how long"),
        (["--speed", "fast"], "--speed"),
        (["--speed", "-1"], "--speed"),
        (["--from", "noon"], "expected a time"),
    ):
        assert main([*words, *wrong]) == 1
        assert said in capsys.readouterr().err
    assert main(["replay", str(tmp_path / "plant"), "--socket", str(tmp_path / "s"), "--speed", "5"]) == 1
    assert "broken" in capsys.readouterr().err


def test_two_machines_in_one_store_and_at_one_time_are_both_judged(tmp_path: Path) -> None:
    """Each is a line of its own: a position in the one is none in the other."""
    store = tmp_path / "bridge.sqlite"
    for machine in ("pump-1", "pump-2"):
        words = ["replay", "simulated", "--store", str(store), "--machine", machine, "--from", "2026-11-29T08:00"]
        assert main([*words, "--script", "normal:10s"]) == 0
    machines = {name: Machine(name=name) for name in ("pump-1", "pump-2")}
    positions: dict[str, Position] = {}
    windows: list[str] = []
    with contextlib.closing(Store(store)) as opened:
        while every := list(feed(opened, machines, positions, window_seconds=1.0, every_seconds=1.0, most=3)):
            for one in every:
                positions[one.key] = one.position
                windows.append(one.machine)
    assert windows.count("pump-1") == windows.count("pump-2") == 10
