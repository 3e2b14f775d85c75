from __future__ import annotations

import gzip
import os
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
from fedmq_edge_node.samples import Samples, feature_count, load, load_test
from fedmq_protocol.task import Windowing

from fedmq.data import (
    CWRU_CLASSES,
    CWRU_TABLE,
    DataError,
    Fleet,
    GatewayData,
    Recording,
    by_sensor,
    cmapss,
    cwru,
    digits,
    gearbox,
    lay_out,
    own_folder,
)

REPOSITORY = Path(__file__).resolve().parents[2]
RECORDINGS = Path(os.environ.get("FEDMQ_DATA", REPOSITORY.parent / "shared" / "data")) / "cwru"


def signal(seconds: float = 1.0, rate: float = 12_000.0, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, int(seconds * rate))


def make_npz(path: Path, numbers: list[int], **changed: object) -> None:
    parts: dict[str, object] = {
        "fs": np.int32(12_000),
        "recording": np.array(numbers),
        "scale": np.full(len(numbers), 1e-4),
    }
    for index, number in enumerate(numbers):
        parts[f"x{index:02d}"] = np.rint(signal(seed=number) * 1e4).astype(np.int16)
    np.savez_compressed(path, **(parts | changed))  # type: ignore[arg-type]


def labels(recordings: tuple[Recording, ...]) -> set[str]:
    return {recording.label for recording in recordings}


EVERY = [run.number for run in CWRU_TABLE]


def test_the_table_knows_cwrus_file_numbers() -> None:
    known = {run.number: (run.label, run.diameter_mil, run.load_hp) for run in CWRU_TABLE}
    assert len(known) == 40
    assert known[97] == ("normal", 0, 0)
    assert known[106] == ("inner_race", 7, 1)
    assert known[121] == ("ball", 7, 3)
    assert known[130] == ("outer_race", 7, 0)
    assert known[199] == ("outer_race", 14, 2)
    assert known[223] == ("ball", 21, 1)
    assert known[212] == ("inner_race", 21, 3)


def test_split_by_fault_gives_each_gateway_one_load_and_one_fault_with_all_severities(tmp_path: Path) -> None:
    make_npz(tmp_path / "c.npz", [97, *(number for number in EVERY if number > 100)])
    fleet = cwru(tmp_path, "fault", test_load=2)
    assert [gateway.name for gateway in fleet.gateways] == [
        "healthy",
        *(f"load{hp}-{fault}" for hp in (0, 1, 3) for fault in ("ball", "inner-race", "outer-race")),
    ]
    for gateway in fleet.gateways[1:]:
        assert len(gateway.recordings) == 3
        assert len(labels(gateway.recordings)) == 1
    assert labels(fleet.gateways[0].recordings) == {"normal"}
    assert fleet.test is not None
    assert sorted(int(recording.name) for recording in fleet.test) == [107, 120, 132, 171, 187, 199, 211, 224, 236]
    assert fleet.classes == CWRU_CLASSES


def test_no_recording_of_the_test_load_reaches_a_gateway(tmp_path: Path) -> None:
    make_npz(tmp_path / "c.npz", EVERY)
    loads = {str(run.number): run.load_hp for run in CWRU_TABLE}
    for split in ("fault", "severity", "load"):
        for test_load in range(4):
            fleet = cwru(tmp_path, split, test_load)  # type: ignore[arg-type]
            seen = {loads[recording.name] for gateway in fleet.gateways for recording in gateway.recordings}
            assert seen == {0, 1, 2, 3} - {test_load}
            assert fleet.test is not None
            assert {loads[recording.name] for recording in fleet.test} == {test_load}
            assert labels(fleet.test) == set(CWRU_CLASSES) - {"normal"}


def test_split_by_severity_gives_each_gateway_one_load_and_one_diameter(tmp_path: Path) -> None:
    make_npz(tmp_path / "c.npz", [number for number in EVERY if number > 100])
    fleet = cwru(tmp_path, "severity", test_load=None)
    assert len(fleet.gateways) == 12
    assert fleet.test is None
    diameters = {str(run.number): (run.load_hp, run.diameter_mil) for run in CWRU_TABLE}
    for gateway in fleet.gateways:
        assert len({diameters[recording.name] for recording in gateway.recordings}) == 1
        assert labels(gateway.recordings) == set(CWRU_CLASSES) - {"normal"}


def test_mat_files_are_read_by_number_and_healthy_ones_brought_to_12_khz(tmp_path: Path) -> None:
    savemat = pytest.importorskip("scipy.io", reason="needs scipy").savemat
    time = np.arange(48_000) / 48_000
    tone = np.sin(2 * np.pi * 300 * time)
    savemat(tmp_path / "97.mat", {"X097_DE_time": tone[:, None], "X097_FE_time": -tone[:, None]})
    own = signal()
    savemat(tmp_path / "105.mat", {"X105_DE_time": own[:, None], "X105RPM": [[1797]]})
    savemat(tmp_path / "107.mat", {"X107_DE_time": own[:, None]})
    savemat(tmp_path / "99.mat", {"X098_DE_time": own[:, None], "X099_DE_time": tone[:, None]})
    fleet = cwru(tmp_path, "fault", test_load=2)
    healthy, faulty = fleet.gateways
    assert healthy.name == "healthy"
    decimated = np.asarray(healthy.recordings[0].signal)
    assert decimated.shape == (12_000,)
    np.testing.assert_allclose(decimated[100:-100], tone[::4][100:-100], atol=0.01)
    np.testing.assert_allclose(np.asarray(faulty.recordings[0].signal), own.astype(np.float32))


@pytest.mark.parametrize(
    ("what", "about"),
    [
        ("nowhere", "found none"),
        ("empty", "found none"),
        ("healthy only", "found none"),
        ("no test load", "test load of 2 hp, found loads"),
        ("other rate", "expected fs = 12000"),
        ("float signal", "expected x00 as"),
        ("no scale", "expected the keys"),
        ("broken zip", "expected"),
        ("broken mat", "expected a MATLAB file"),
        ("mat without the channel", "expected the variable X105_DE_time"),
    ],
)
def test_what_is_not_cwru_is_named_in_one_line(tmp_path: Path, what: str, about: str) -> None:
    folder = tmp_path
    match what:
        case "nowhere":
            folder = tmp_path / "nowhere"
        case "healthy only":
            make_npz(tmp_path / "c.npz", [97])
        case "no test load":
            make_npz(tmp_path / "c.npz", [97, 105, 106])
        case "other rate":
            make_npz(tmp_path / "c.npz", EVERY[4:], fs=np.int32(48_000))
        case "float signal":
            make_npz(tmp_path / "c.npz", EVERY[4:], x00=signal())
        case "no scale":
            np.savez(tmp_path / "c.npz", fs=np.int32(12_000), recording=np.array([105]))
        case "broken zip":
            (tmp_path / "c.npz").write_bytes(b"PK\x03\x04" + b"\xff" * 200)
        case "broken mat":
            pytest.importorskip("scipy.io", reason="needs scipy")
            (tmp_path / "105.mat").write_bytes(b"MATLAB 5.0" + b"\xff" * 300)
        case "mat without the channel":
            savemat = pytest.importorskip("scipy.io", reason="needs scipy").savemat
            savemat(tmp_path / "105.mat", {"X105_FE_time": signal()})
    with pytest.raises(DataError, match=about) as caught:
        cwru(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_gateway_reads_what_was_laid_out_for_it(tmp_path: Path) -> None:
    steps = np.rint(signal() * 1e4).astype(np.int16)
    recordings = (
        Recording(label="ball", name="steps", signal=steps, scale=1e-4, sampling_rate_hz=12_000.0),
        Recording(label="normal", name="g", signal=signal(seed=1).astype(np.float32), sampling_rate_hz=12_000.0),
    )
    fleet = Fleet(
        name="made",
        classes=("normal", "ball"),
        gateways=(GatewayData(name="press-1", recordings=recordings),),
        test=recordings[:1],
        split="none",
    )
    folders = lay_out(fleet, tmp_path)
    samples = load(folders["press-1"], Windowing(), fleet.classes)
    assert set(samples.train_y.tolist()) == {0, 1}
    assert samples.raw_bytes == 2 * 24_000
    # Both kinds of signal come out in g.
    np.testing.assert_allclose(10 ** samples.train_x[:, 0], 0.1, rtol=0.1)
    assert load_test(folders["test"], Windowing(), fleet.classes)[1].tolist() == [1] * 10


def test_a_folder_that_already_exists_is_not_mixed_with(tmp_path: Path) -> None:
    make_npz(tmp_path / "c.npz", EVERY)
    fleet = cwru(tmp_path)
    lay_out(fleet, tmp_path / "plant")
    with pytest.raises(DataError, match="expected a new folder"):
        lay_out(fleet, tmp_path / "plant")


@pytest.mark.parametrize("name", ["../outside", "a/b", "", "é"])
def test_a_gateway_name_that_is_no_topic_level_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="gateway"):
        Fleet(
            name="made",
            classes=("normal",),
            gateways=(GatewayData(name=name, recordings=()),),
            test=None,
            split="none",
        )


def own(tmp_path: Path) -> Path:
    root = tmp_path / "plant"
    for gateway, label, name in (
        ("pump-a", "normal", "monday.npy"),
        ("pump-a", "leak", "friday.csv"),
        ("pump-b", "cavitation", "x.wav"),
        ("test", "leak", "other.npy"),
    ):
        path = root / gateway / label / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".npy":
            np.save(path, signal())
        elif path.suffix == ".csv":
            path.write_text("\n".join(map(repr, signal(seed=2).tolist())))
        else:
            with wave.open(str(path), "wb") as file:
                file.setnchannels(1)
                file.setsampwidth(2)
                file.setframerate(12_000)
                file.writeframes(np.rint(signal() * 3e4).astype("<i2").tobytes())
    (root / "recording.toml").write_text("sampling_rate_hz = 12000\n")
    return root


def test_a_folder_of_ones_own_becomes_a_fleet_that_gateways_can_read(tmp_path: Path) -> None:
    fleet = own_folder(own(tmp_path))
    assert fleet.name == "plant"
    assert fleet.classes == ("normal", "cavitation", "leak")
    assert [gateway.name for gateway in fleet.gateways] == ["pump-a", "pump-b"]
    assert fleet.sampling_rate_hz == 12_000.0
    folders = lay_out(fleet, tmp_path / "out")
    assert set(load(folders["pump-a"], Windowing(), fleet.classes).train_y.tolist()) == {0, 2}
    assert set(load(folders["pump-b"], Windowing(), fleet.classes).train_y.tolist()) == {1}
    assert set(load_test(folders["test"], Windowing(), fleet.classes)[1].tolist()) == {2}


def test_recordings_at_different_rates_are_refused_before_anything_runs(tmp_path: Path) -> None:
    root = own(tmp_path)
    (root / "pump-a" / "recording.toml").write_text("sampling_rate_hz = 6000\n")
    with pytest.raises(DataError, match=r"one sampling rate .* \[6000.0, 12000.0\]"):
        own_folder(root)


def test_a_rate_that_is_nowhere_is_asked_for(tmp_path: Path) -> None:
    root = own(tmp_path)
    (root / "recording.toml").unlink()
    with pytest.raises(DataError, match=r"sampling_rate_hz = ….*recording.toml"):
        own_folder(root)


def test_a_test_label_that_no_gateway_has_is_refused(tmp_path: Path) -> None:
    root = own(tmp_path)
    (root / "test" / "leak").rename(root / "test" / "crack")
    with pytest.raises(DataError, match="no gateway has recordings of crack"):
        own_folder(root)


def test_the_real_recordings_make_seven_gateways() -> None:
    if not RECORDINGS.is_dir():
        pytest.skip(f"no CWRU recordings in {RECORDINGS}; name their parent folder with FEDMQ_DATA")
    fleet = cwru(RECORDINGS, "fault", test_load=2)
    assert len(fleet.gateways) == 7
    assert fleet.test is not None
    assert len(fleet.test) == 9
    rms = [float(np.std(np.asarray(r.signal) * (r.scale or 1.0))) for g in fleet.gateways for r in g.recordings]
    assert all(0.02 < level < 3.0 for level in rms)


def test_a_rate_that_no_file_states_may_be_given_and_never_overrides_one(tmp_path: Path) -> None:
    for gateway in ("g1", "g2"):
        folder = tmp_path / gateway / "normal"
        folder.mkdir(parents=True)
        np.save(folder / "a.npy", np.zeros(4096, dtype=np.float32))
    with pytest.raises(DataError, match="--sampling-rate"):
        own_folder(tmp_path)
    assert own_folder(tmp_path, sampling_rate_hz=25_600.0).sampling_rate_hz == 25_600.0
    (tmp_path / "recording.toml").write_text("sampling_rate_hz = 12000.0\n")
    assert own_folder(tmp_path, sampling_rate_hz=25_600.0).sampling_rate_hz == 12_000.0


# --- the gearbox -----------------------------------------------------------------------------------------------------


def make_gearbox(folder: Path, percent: int, **changed: object) -> Path:
    folder.mkdir(exist_ok=True)
    steps = np.rint(noise_steps(percent)).astype(np.int16)
    parts: dict[str, object] = {
        "healthy": steps,
        "broken": -steps,
        "healthy_scale": np.array([1e-3, 2e-3, 3e-3, 4e-3], dtype=np.float32),
        "broken_scale": np.full(4, 1e-3, dtype=np.float32),
        "load_percent": np.int32(percent),
    }
    path = folder / f"gearbox_30hz_load{percent:02d}.npz"
    np.savez_compressed(path, **{key: value for key, value in (parts | changed).items() if value is not None})  # type: ignore[arg-type]
    return path


def noise_steps(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1000, (8000, 4))


def test_a_gateway_has_one_load_of_the_gearbox_and_the_test_load_is_nobody_s(tmp_path: Path) -> None:
    for percent in (0, 10, 30):
        make_gearbox(tmp_path / "in", percent)
    fleet = gearbox(tmp_path / "in", 10)
    assert [gateway.name for gateway in fleet.gateways] == ["load00", "load30"]
    assert fleet.classes == ("normal", "broken_tooth")
    assert "not documented" in fleet.remark
    assert fleet.test is not None
    assert {recording.name for recording in fleet.test} == {"load10"}
    assert labels(fleet.test) == labels(fleet.gateways[0].recordings) == set(fleet.classes)
    np.testing.assert_allclose(
        np.asarray(fleet.gateways[1].recordings[0].signal)[:, 3], np.rint(noise_steps(30))[:, 3] * 4e-3, rtol=1e-6
    )
    folders = lay_out(fleet, tmp_path / "plant")
    windowing = Windowing(**{name: getattr(fleet.windowing, name) for name in Windowing.__struct_fields__})
    samples = load(folders["load00"], windowing, fleet.classes)
    assert samples.train_x.shape == (2 * ((8000 - 2048) // 512 + 1), 88)
    assert feature_count(windowing) == 88


def test_without_a_test_load_the_end_of_every_gearbox_recording_is_nobody_s(tmp_path: Path) -> None:
    make_gearbox(tmp_path, 0)
    make_gearbox(tmp_path, 60)
    fleet = gearbox(tmp_path)
    assert fleet.test is not None
    assert len(fleet.test) == 4
    for gateway in fleet.gateways:
        for own in gateway.recordings:
            (end,) = (r for r in fleet.test if (r.label, r.name) == (own.label, own.name))
            assert len(np.asarray(own.signal)) == 3 * len(np.asarray(end.signal)) == 6000


def test_by_sensor_each_gateway_has_one_channel_of_every_load_and_its_own_part_of_the_test_set(tmp_path: Path) -> None:
    for percent in (0, 10, 30):
        make_gearbox(tmp_path / "in", percent)
    fleet = by_sensor(gearbox(tmp_path / "in", 10))
    assert [gateway.name for gateway in fleet.gateways] == ["sensor1", "sensor2", "sensor3", "sensor4"]
    assert fleet.windowing.channels == 1
    fourth = fleet.gateways[3]
    assert {recording.name for recording in fourth.recordings} == {"load00-sensor4", "load30-sensor4"}
    assert {recording.name for recording in fourth.unseen} == {"load10-sensor4"}
    assert fleet.test is not None
    assert len(fleet.test) == 8
    (healthy,) = (r for r in fourth.recordings if (r.label, r.name) == ("normal", "load30-sensor4"))
    np.testing.assert_allclose(np.asarray(healthy.signal), np.rint(noise_steps(30))[:, 3] * 4e-3, rtol=1e-6)
    folders = lay_out(fleet, tmp_path / "plant")
    windowing = Windowing(**{name: getattr(fleet.windowing, name) for name in Windowing.__struct_fields__})
    x, _ = load_test(folders["unseen/sensor4"], windowing, fleet.classes)
    everything, _ = load_test(folders["test"], windowing, fleet.classes)
    assert 4 * len(x) == len(everything)


def test_for_an_autoencoder_only_the_test_load_of_the_gearbox_has_broken_teeth(tmp_path: Path) -> None:
    for percent in (0, 10, 30):
        make_gearbox(tmp_path, percent)
    fleet = gearbox(tmp_path, 10, healthy=True)
    assert [gateway.name for gateway in fleet.gateways] == ["load00", "load30"]
    assert [labels(gateway.recordings) for gateway in fleet.gateways] == [{"normal"}] * 2
    assert fleet.test is not None
    assert [(r.label, r.name) for r in fleet.test] == [("normal", "load10"), ("broken_tooth", "load10")]
    assert "does not show that anything was learnt" in fleet.remark
    assert "does not show" not in gearbox(tmp_path, 10).remark


@pytest.mark.parametrize(
    ("loads", "unseen"),
    [
        ((0, 10, 20, 30, 40, 50, 60), {"load30", "load60"}),
        ((0, 20, 40, 60), {"load40", "load60"}),
        ((0, 60), {"load60"}),
    ],
)
def test_without_a_test_load_an_autoencoder_is_tested_at_whole_loads_that_no_gateway_has(
    tmp_path: Path, loads: tuple[int, ...], unseen: set[str]
) -> None:
    for percent in loads:
        make_gearbox(tmp_path, percent)
    fleet = gearbox(tmp_path, healthy=True)
    assert fleet.test is not None
    assert {(r.label, r.name) for r in fleet.test} == {(label, name) for name in unseen for label in fleet.classes}
    assert {len(np.asarray(r.signal)) for r in fleet.test} == {8000}
    assert {gateway.name for gateway in fleet.gateways} == {f"load{percent:02d}" for percent in loads} - unseen
    assert all(labels(gateway.recordings) == {"normal"} for gateway in fleet.gateways)


@pytest.mark.parametrize("test_load", [None, 30])
def test_a_gearbox_of_one_load_leaves_an_autoencoder_nothing_to_train_on(tmp_path: Path, test_load: int | None) -> None:
    make_gearbox(tmp_path, 30)
    with pytest.raises(DataError, match="nothing is left to train on besides the test load of 30 %"):
        gearbox(tmp_path, test_load, healthy=True)


@pytest.mark.parametrize(
    ("changed", "about"),
    [
        ({"healthy": None}, "expected the keys"),
        ({"load_percent": None}, "expected the keys"),
        ({"load_percent": np.array(["ten"])}, "expected the keys"),
        ({"broken": np.zeros((100, 3), dtype=np.int16)}, r"expected broken as \(n, 4\) int16, got \(100, 3\)"),
        ({"healthy": np.zeros((100, 4), dtype=np.float32)}, "expected healthy as .* float32"),
        ({"healthy_scale": np.float32(1.0)}, "healthy_scale of 4 numbers"),
    ],
)
def test_a_gearbox_archive_that_cannot_be_used_is_named(tmp_path: Path, changed: dict[str, object], about: str) -> None:
    path = make_gearbox(tmp_path, 10, **changed)
    with pytest.raises(DataError, match=about) as caught:
        gearbox(tmp_path)
    assert str(caught.value).startswith(str(path))


def test_a_folder_without_the_gearbox_or_without_the_test_load_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found none"):
        gearbox(tmp_path)
    make_gearbox(tmp_path, 10)
    with pytest.raises(DataError, match=r"test load 25 % among the loads \[10\]"):
        gearbox(tmp_path, 25)
    (tmp_path / "junk.npz").write_bytes(b"PK\x03\x04" + b"\xff" * 50)
    with pytest.raises(DataError, match=r"junk\.npz"):
        gearbox(tmp_path)


def test_the_real_gearbox_has_seven_loads() -> None:
    folder = RECORDINGS.parent / "gearbox"
    if not folder.is_dir():
        pytest.skip(f"no gearbox recordings in {folder}; name their parent folder with FEDMQ_DATA")
    fleet = gearbox(folder, 30)
    assert [gateway.name for gateway in fleet.gateways] == [f"load{percent:02d}" for percent in (0, 10, 20, 40, 50, 60)]


# --- digits ----------------------------------------------------------------------------------------------------------


def load_digits(tmp_path: Path, fleet: Fleet) -> tuple[list[Samples], tuple[np.ndarray, np.ndarray]]:
    folders = lay_out(fleet, tmp_path / "plant")
    windowing = Windowing(**{name: getattr(fleet.windowing, name) for name in Windowing.__struct_fields__})
    test = load_test(folders.pop("test"), windowing, fleet.classes)
    return [load(folder, windowing, fleet.classes) for folder in folders.values()], test


def test_every_digit_goes_to_one_gateway_or_the_test_set(tmp_path: Path) -> None:
    datasets = pytest.importorskip("sklearn.datasets", reason="needs scikit-learn")
    fleet = digits(gateways=8, seed=3)
    assert fleet.classes == tuple("0123456789")
    own, (test_x, test_y) = load_digits(tmp_path, fleet)
    assert min(samples.train_windows for samples in own) >= 20
    images, labels_of = datasets.load_digits(return_X_y=True)
    assert np.bincount(test_y).tolist() == np.rint(np.bincount(labels_of) / 5).tolist()
    dealt = np.concatenate([test_x, *(samples.train_x for samples in own)])
    numbers = np.concatenate([test_y, *(samples.train_y for samples in own)])
    meant = np.column_stack([images / 16, labels_of])
    got = np.column_stack([dealt, numbers])
    assert (got[np.lexsort(got.T)] == meant[np.lexsort(meant.T)]).all()


def test_digits_are_dealt_out_by_the_seed() -> None:
    pytest.importorskip("sklearn", reason="needs scikit-learn")

    def sizes(seed: int) -> list[dict[str, int]]:
        return [{r.label: len(np.asarray(r.signal)) for r in g.recordings} for g in digits(seed=seed).gateways]

    assert sizes(1) == sizes(1) != sizes(2)
    # Uneven by label: most gateways lack a digit.
    assert sum(len(own) < 10 for own in sizes(1)) >= 4


def test_more_gateways_than_there_are_digits_for_are_refused() -> None:
    pytest.importorskip("sklearn", reason="needs scikit-learn")
    with pytest.raises(DataError, match="got 70: take fewer"):
        digits(gateways=70)


def test_without_scikit_learn_the_digits_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match=r"pip install 'fedmq\[bench\]'"):
        digits()


# --- turbofan engines ------------------------------------------------------------------------------------------------


def put_engines(folder: Path, *, rul: str = "unit,rul\n1,7\n2,9\n") -> None:
    """Eleven engines of four cycles and two for the test; `s1` never moves, `s3` has two values."""
    heading = "unit,cycle,setting1,s1,s2,s3\n"

    def rows(engines: int) -> str:
        return heading + "".join(f"{u},{c},0.{c},5,{u}.{c},{c % 2}\n" for u in range(1, engines + 1) for c in range(4))

    for name, engines in (("train", 11), ("test", 2)):
        (folder / f"{name}_X.csv.gz").write_bytes(gzip.compress(rows(engines).encode()))
    (folder / "RUL_X.csv").write_text(rul)


def test_engines_are_recordings_of_the_sensors_that_move_ten_to_a_gateway(tmp_path: Path) -> None:
    put_engines(tmp_path)
    fleet = cmapss(tmp_path)
    assert [len(gateway.recordings) for gateway in fleet.gateways] == [10, 1]
    assert fleet.windowing.channels == 1
    first = fleet.gateways[0].recordings[0]
    assert np.asarray(first.signal).ravel().tolist() == pytest.approx([1.0, 1.1, 1.2, 1.3])
    assert first.remaining == 0
    assert fleet.test is not None
    assert [engine.remaining for engine in fleet.test] == [7, 9]
    folders = lay_out(fleet, tmp_path / "plant")
    windowing = Windowing(features="raw", samples=2, hop=1, sampling_rate_hz=1.0, remaining_most=10.0, held_out=0.0)
    assert load_test(folders["test"], windowing, ())[1].tolist() == pytest.approx([0.7, 0.9])
    assert load(folders["engines-02"], windowing, ()).train_y.tolist() == pytest.approx([0.2, 0.1, 0.0])


@pytest.mark.parametrize("rul", ["unit,rul\n1,7\n", "engine,rul\n1,7\n2,9\n", "unit,rul\n1,7\n2,soon\n"])
def test_engines_without_their_remaining_life_are_refused(tmp_path: Path, rul: str) -> None:
    put_engines(tmp_path, rul=rul)
    with pytest.raises(DataError, match=r"RUL_X\.csv"):
        cmapss(tmp_path)


def test_the_real_engines_are_ten_gateways_of_ten() -> None:
    folder = RECORDINGS.parent / "cmapss"
    if not folder.is_dir():
        pytest.skip(f"no C-MAPSS tables in {folder}; name their parent folder with FEDMQ_DATA")
    fleet = cmapss(folder)
    assert [len(gateway.recordings) for gateway in fleet.gateways] == [10] * 10
    assert fleet.windowing.channels == 14
    assert fleet.test is not None
    assert len(fleet.test) == 100
    assert {min(engine.remaining for engine in fleet.test), max(engine.remaining for engine in fleet.test)} == {7, 145}
