from __future__ import annotations

import wave
from pathlib import Path

import msgspec
import numpy as np
import pytest
from fedmq_edge_node.samples import (
    FEATURE_NAMES,
    FEATURES,
    MAX_FEATURES,
    SampleError,
    Scaler,
    feature_count,
    features,
    load,
    load_test,
    statistics,
)
from fedmq_protocol.task import Windowing
from hypothesis import given, settings
from hypothesis import strategies as st

RATE = 12_000.0
WINDOWING = Windowing(samples=1024, hop=512, held_out=0.25)
CLASSES = ("normal", "ball")


def noise(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, count)


def put(folder: Path, label: str, name: str, signal: np.ndarray, toml: str | None = "sampling_rate_hz = 12000") -> Path:
    path = folder / label / f"{name}.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, signal)
    if toml is not None:
        path.with_suffix(".toml").write_text(toml)
    return path


def put_wav(path: Path, steps: np.ndarray, width: int, channels: int = 1, rate: int = 12_000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = steps.astype("<i4").view(np.uint8).reshape(-1, 4)[:, :width].tobytes()
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(data)


def column(name: str) -> int:
    return next(place for place, own in enumerate(FEATURE_NAMES) if own.startswith(name))


# --- features --------------------------------------------------------------------------------------------------------


def test_there_are_22_features_with_names_of_their_own() -> None:
    assert FEATURES == len(set(FEATURE_NAMES)) == 22


def test_a_sine_has_the_rms_the_kurtosis_and_the_crest_factor_of_a_sine() -> None:
    time = np.arange(2048) / RATE
    table = features(3.0 * np.sin(2 * np.pi * 375.0 * time)[None, :], RATE)
    assert table.dtype == np.float32
    assert 10 ** table[0, column("rms")] == pytest.approx(3 / np.sqrt(2), rel=1e-3)
    assert 10 ** table[0, column("kurtosis")] == pytest.approx(1.5, rel=1e-3)
    assert 10 ** table[0, column("crest")] == pytest.approx(np.sqrt(2), rel=1e-2)
    bands = [place for place, name in enumerate(FEATURE_NAMES) if name.startswith("band")]
    assert 10 ** table[0, bands[0]] == pytest.approx(1.0, abs=1e-3)
    assert np.sum(10 ** table[0, bands].astype(np.float64)) == pytest.approx(1.0, rel=1e-4)


def test_gaussian_noise_has_a_kurtosis_of_three() -> None:
    table = features(noise(200_000).reshape(-1, 2000), RATE)
    assert np.mean(10.0 ** table[:, column("kurtosis")]) == pytest.approx(3.0, abs=0.1)


@pytest.mark.parametrize("rate", [84.0, 106.0, 142.0, 164.0, 220.0])
def test_impacts_show_in_the_envelope_band_of_their_rate(rate: float) -> None:
    time = np.arange(4096) / RATE
    since = time % (1 / rate)
    impacts = np.exp(-800 * since) * np.sin(2 * np.pi * 3000 * since)
    table = features((impacts + 0.1 * noise(4096))[None, :], RATE)
    bands = {name: table[0, place] for place, name in enumerate(FEATURE_NAMES) if name.startswith("envelope")}
    strongest = max(bands, key=lambda name: bands[name])
    low, high = (float(edge) for edge in strongest.split("_")[1:3])
    assert low <= rate < high


@settings(max_examples=30, deadline=None)
@given(gain=st.floats(1e-3, 1e3), seed=st.integers(0, 1000))
def test_only_the_rms_knows_the_gain(gain: float, seed: int) -> None:
    signal = noise(2048, seed)[None, :]
    before, after = features(signal, RATE)[0], features(gain * signal, RATE)[0]
    assert after[0] - before[0] == pytest.approx(np.log10(gain), abs=1e-4)
    np.testing.assert_allclose(after[1:], before[1:], atol=1e-4)


@pytest.mark.parametrize("samples", [64, 100, 1023, 2048])
def test_windows_of_silence_and_of_any_length_give_finite_features(samples: int) -> None:
    windows = np.stack([np.zeros(samples), np.full(samples, 7.0), noise(samples), np.eye(1, samples)[0]])
    table = features(windows, RATE)
    assert table.shape == (4, FEATURES)
    assert np.isfinite(table).all()


# --- scaling ---------------------------------------------------------------------------------------------------------


def test_statistics_are_the_count_the_mean_and_the_squared_differences() -> None:
    x = noise(220).reshape(10, 22).astype(np.float32)
    count, mean, m2 = statistics(x)
    assert count == 10
    np.testing.assert_allclose(mean, x.astype(np.float64).mean(axis=0))
    np.testing.assert_allclose(m2 / count, x.astype(np.float64).var(axis=0))
    assert mean.dtype == m2.dtype == np.float64


def test_statistics_of_a_large_offset_have_no_negative_spread() -> None:
    x = (1e6 + noise(22_000).reshape(1000, 22)).astype(np.float32)
    assert (statistics(x)[2] >= 0).all()


def test_scaled_features_have_mean_zero_and_spread_one_and_are_bounded() -> None:
    x = (5 + 3 * noise(22_000).reshape(1000, 22)).astype(np.float32)
    count, mean, m2 = statistics(x)
    scaler = Scaler(mean=mean.astype(np.float32), scale=np.sqrt(m2 / count).astype(np.float32))
    scaled = scaler.apply(x)
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled.mean(axis=0), 0, atol=1e-3)
    np.testing.assert_allclose(scaled.std(axis=0), 1, atol=1e-2)
    assert np.abs(scaler.apply(x * 1000)).max() == 8.0


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf])
def test_a_scale_that_is_not_above_zero_is_refused(scale: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        Scaler(mean=np.zeros(2, dtype=np.float32), scale=np.array([1.0, scale], dtype=np.float32))


# --- loading ---------------------------------------------------------------------------------------------------------


def test_the_end_of_each_recording_is_held_out_and_no_window_overlaps_both_parts(tmp_path: Path) -> None:
    signal = noise(12_000)
    put(tmp_path, "ball", "a", signal)
    before = load(tmp_path, WINDOWING, CLASSES)
    assert before.train_windows == (9000 - 1024) // 512 + 1
    assert before.held_windows == (3000 - 1024) // 512 + 1
    # What lies in the held-out quarter does not reach a single training window, nor the other way round.
    put(tmp_path, "ball", "a", np.concatenate([signal[:9000], 100 * noise(3000, 1)]))
    after = load(tmp_path, WINDOWING, CLASSES)
    assert (after.train_x == before.train_x).all()
    assert (after.held_x != before.held_x).any(axis=1).all()


def test_labels_are_positions_in_the_classes_and_every_recording_counts(tmp_path: Path) -> None:
    put(tmp_path, "ball", "a", noise(12_000))
    put(tmp_path, "normal", "b", noise(8_000))
    put(tmp_path, "unlabelled", "c", noise(8_000))
    samples = load(tmp_path, WINDOWING, CLASSES)
    assert set(samples.train_y.tolist()) == {0, 1}
    assert np.sum(samples.train_y == 0) == (6000 - 1024) // 512 + 1
    assert samples.raw_bytes == 2 * 20_000
    assert samples.recordings == 2
    assert samples.train_x.dtype == np.float32
    assert samples.train_y.dtype == np.int64


def test_an_autoencoder_trains_on_healthy_windows_and_holds_out_faulty_ones(tmp_path: Path) -> None:
    put(tmp_path, "ball", "a", noise(12_000))
    put(tmp_path, "normal", "b", noise(12_000))
    put(tmp_path, "unlabelled", "c", noise(12_000))
    samples = load(tmp_path, WINDOWING, ())
    assert samples.train_windows == 2 * ((9000 - 1024) // 512 + 1)
    assert not samples.train_y.any()
    assert np.sum(samples.held_y == 0) == 2 * np.sum(samples.held_y == 1) > 0


def test_a_test_set_is_taken_whole(tmp_path: Path) -> None:
    put(tmp_path, "ball", "a", noise(12_000))
    x, y = load_test(tmp_path, WINDOWING, CLASSES)
    assert len(x) == len(y) == (12_000 - 1024) // 512 + 1
    assert (y == 1).all()


def test_a_recording_shorter_than_a_window_gives_no_windows(tmp_path: Path) -> None:
    put(tmp_path, "ball", "a", noise(500))
    assert load(tmp_path, WINDOWING, CLASSES).train_windows == 0
    with pytest.raises(SampleError, match="at least 1,024 samples"):
        load_test(tmp_path, WINDOWING, CLASSES)


@pytest.mark.parametrize("samples", [1024, 70_000])
def test_features_do_not_depend_on_the_block_in_which_they_are_read(tmp_path: Path, samples: int) -> None:
    signal = noise(300_000).astype(np.float32)
    put(tmp_path, "ball", "a", signal)
    windowing = msgspec.structs.replace(WINDOWING, samples=samples, hop=samples // 2, held_out=0.0)
    loaded = load(tmp_path, windowing, CLASSES).train_x
    whole = np.lib.stride_tricks.sliding_window_view(signal.astype(np.float64), samples)[:: samples // 2]
    np.testing.assert_allclose(loaded, features(whole, RATE), atol=1e-6)


def test_every_format_gives_the_same_features(tmp_path: Path) -> None:
    steps = np.rint(noise(6000) * 10_000).astype(np.int16)
    signal = steps / 32_768
    put(tmp_path / "f8", "ball", "a", signal)
    put(tmp_path / "f4", "ball", "a", signal.astype(np.float32))
    put(tmp_path / "i2", "ball", "a", steps, f"sampling_rate_hz = 12000\nscale = {2.0**-15!r}")
    put(tmp_path / "channels", "ball", "a", np.stack([signal, noise(6000, 5)], axis=1))
    put(tmp_path / "columns", "ball", "a", np.asfortranarray(np.stack([signal, noise(6000, 5)], axis=1)))
    put_wav(tmp_path / "wav16" / "ball" / "a.wav", steps, 2)
    put_wav(tmp_path / "wav24" / "ball" / "a.wav", steps.astype(np.int32) << 8, 3)
    put_wav(tmp_path / "wav32" / "ball" / "a.wav", steps.astype(np.int32) << 16, 4)
    two = np.stack([steps, steps[::-1]], axis=1).ravel()
    put_wav(tmp_path / "wav_stereo" / "ball" / "a.wav", two, 2, channels=2)
    for name, comma in (("csv", ","), ("csv_semicolon", ";")):
        folder = tmp_path / name
        (folder / "ball").mkdir(parents=True)
        lines = ["acceleration" + comma + "other", *(f"{value!r}{comma}7" for value in signal.tolist())]
        (folder / "ball" / "a.csv").write_text("\n".join(lines) + "\n")
        (folder / "recording.toml").write_text("sampling_rate_hz = 12_000")
    expected = load(tmp_path / "f8", WINDOWING, CLASSES)
    for folder in sorted(tmp_path.iterdir()):
        loaded = load(folder, WINDOWING, CLASSES)
        np.testing.assert_allclose(loaded.train_x, expected.train_x, atol=1e-4, err_msg=folder.name)
        np.testing.assert_allclose(loaded.held_x, expected.held_x, atol=1e-4, err_msg=folder.name)
        assert loaded.raw_bytes == 12_000


def test_what_stands_beside_a_recording_is_stronger_than_what_stands_in_the_folder(tmp_path: Path) -> None:
    (tmp_path / "recording.toml").write_text("sampling_rate_hz = 48000\nscale = 0.5")
    put(tmp_path, "ball", "a", noise(6000), "sampling_rate_hz = 12000")
    halved = load(tmp_path, WINDOWING, CLASSES).train_x[:, 0]
    (tmp_path / "ball" / "a.toml").write_text("sampling_rate_hz = 12000\nscale = 1")
    np.testing.assert_allclose(load(tmp_path, WINDOWING, CLASSES).train_x[:, 0] - halved, np.log10(2), atol=1e-5)


# --- raw windows and several channels --------------------------------------------------------------------------------


def raw(channels: int = 1, samples: int = 1, hop: int = 1, held_out: float = 0.0) -> Windowing:
    return Windowing(
        features="raw", samples=samples, hop=hop, channels=channels, held_out=held_out, sampling_rate_hz=RATE
    )


@pytest.mark.parametrize(
    ("windowing", "count"),
    [
        (Windowing(), 22),
        (Windowing(channels=4), 88),
        (raw(channels=64), 64),
        (raw(samples=28, channels=28), 784),
        (Windowing(samples=64), 22),
    ],
)
def test_a_window_has_as_many_features_as_its_set_and_channels_make(windowing: Windowing, count: int) -> None:
    assert feature_count(windowing) == count


@pytest.mark.parametrize(
    ("windowing", "about"),
    [
        (Windowing(samples=63), "samples: expected at least 64 for the feature set 'vibration-1', got 63"),
        (
            Windowing(features="sound-1"),
            "'raw', or 'bundle' with a bundle that prepares windows, the task asks for 'sound-1'",
        ),
        (raw(samples=MAX_FEATURES + 1), "expected at most 4,096 features of a window, got 4,097"),
        (Windowing(channels=187), "expected at most 4,096 features of a window, got 4,114"),
    ],
)
def test_a_window_that_cannot_become_features_is_refused(tmp_path: Path, windowing: Windowing, about: str) -> None:
    with pytest.raises(SampleError, match=about):
        feature_count(windowing)
    put(tmp_path, "ball", "a", noise(6000))
    with pytest.raises(SampleError, match=about):
        load(tmp_path, windowing, CLASSES)


def test_the_rows_of_a_table_are_windows_and_the_last_of_them_are_held_out(tmp_path: Path) -> None:
    table = noise(700).reshape(100, 7).astype(np.float32)
    put(tmp_path, "ball", "a", table)
    samples = load(tmp_path, raw(channels=7, held_out=0.2), CLASSES)
    assert (samples.train_x == table[:80]).all()
    assert (samples.held_x == table[80:]).all()
    assert samples.raw_bytes == 2 * 700


def test_raw_windows_hold_their_samples_row_after_row(tmp_path: Path) -> None:
    signal = np.arange(24, dtype=np.float32).reshape(12, 2)
    put(tmp_path, "ball", "a", signal)
    x = load(tmp_path, raw(channels=2, samples=3, hop=4), CLASSES).train_x
    assert x.tolist() == [[0, 1, 2, 3, 4, 5], [8, 9, 10, 11, 12, 13], [16, 17, 18, 19, 20, 21]]


@settings(max_examples=25, deadline=None)
@given(
    length=st.integers(1, 300),
    channels=st.integers(1, 5),
    samples=st.integers(1, 20),
    hop=st.integers(1, 30),
    block=st.integers(1, 200),
)
def test_raw_windows_do_not_depend_on_the_block_in_which_they_are_read(
    tmp_path_factory: pytest.TempPathFactory, length: int, channels: int, samples: int, hop: int, block: int
) -> None:
    folder = tmp_path_factory.mktemp("raw")
    signal = np.arange(length * channels, dtype=np.float32).reshape(length, channels)
    put(folder, "ball", "a", signal)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedmq_edge_node.samples.BLOCK_SAMPLES", block)
        x = load(folder, raw(channels=channels, samples=samples, hop=hop), CLASSES).train_x
    expected = [signal[start : start + samples].ravel() for start in range(0, length - samples + 1, hop)]
    assert x.tolist() == [row.tolist() for row in expected]


def test_several_channels_are_features_side_by_side_in_every_format(tmp_path: Path) -> None:
    steps = np.rint(noise(18_000).reshape(6000, 3) * 10_000).astype(np.int16)
    signal = steps / 32_768
    put(tmp_path / "rows", "ball", "a", signal)
    put(tmp_path / "columns", "ball", "a", np.asfortranarray(signal))
    put(tmp_path / "i2", "ball", "a", steps, f"sampling_rate_hz = 12000\nscale = {2.0**-15!r}")
    put_wav(tmp_path / "wav16" / "ball" / "a.wav", steps.ravel(), 2, channels=3)
    put_wav(tmp_path / "wav24" / "ball" / "a.wav", steps.astype(np.int32).ravel() << 8, 3, channels=3)
    (tmp_path / "csv" / "ball").mkdir(parents=True)
    lines = ["x;y;z", *(";".join(map(repr, row)) for row in signal.tolist())]
    (tmp_path / "csv" / "ball" / "a.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "csv" / "recording.toml").write_text("sampling_rate_hz = 12_000")
    alone = []
    for channel in range(3):
        put(tmp_path / f"only{channel}", "ball", "a", signal[:, channel])
        alone.append(load(tmp_path / f"only{channel}", WINDOWING, CLASSES).train_x)
    expected = np.concatenate(alone, axis=1)
    for name in ("rows", "columns", "i2", "wav16", "wav24", "csv"):
        loaded = load(tmp_path / name, msgspec.structs.replace(WINDOWING, channels=3), CLASSES)
        np.testing.assert_allclose(loaded.train_x, expected, atol=1e-4, err_msg=name)
        assert loaded.raw_bytes == 36_000


@pytest.mark.parametrize(
    ("windowing", "got"), [(Windowing(channels=4), 3), (Windowing(channels=2), 3), (raw(), 3), (raw(channels=4), 3)]
)
@pytest.mark.parametrize("kind", ["npy", "csv", "wav"])
def test_another_number_of_channels_than_the_task_s_is_refused(
    tmp_path: Path, windowing: Windowing, got: int, kind: str
) -> None:
    steps = np.rint(noise(9000).reshape(3000, 3) * 10_000).astype(np.int16)
    label = tmp_path / "ball"
    match kind:
        case "npy":
            put(tmp_path, "ball", "a", steps / 32_768)
        case "csv":
            label.mkdir()
            (label / "a.csv").write_text("\n".join(",".join(map(str, row)) for row in steps.tolist()))
            (label / "a.toml").write_text("sampling_rate_hz = 12000")
        case "wav":
            put_wav(label / "a.wav", steps.ravel(), 2, channels=3)
    with pytest.raises(SampleError, match=f"expected {windowing.channels} channels as the task has it.*got {got}"):
        load(tmp_path, windowing, CLASSES)


def test_a_csv_row_that_lacks_a_number_is_named(tmp_path: Path) -> None:
    (tmp_path / "ball").mkdir()
    (tmp_path / "ball" / "a.csv").write_text("a,b,c\n1,2,3\n4,5\n")
    (tmp_path / "recording.toml").write_text("sampling_rate_hz = 12000")
    with pytest.raises(SampleError, match=r"expected 3 numbers in line 3 as above, got 2"):
        load(tmp_path, raw(channels=3), CLASSES)


def test_windows_of_all_recordings_together_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "ball", "a", noise(101).astype(np.float32))
    monkeypatch.setattr("fedmq_edge_node.samples.MAX_TABLE_VALUES", 200)
    assert load(tmp_path, raw(samples=2), CLASSES).train_windows == 100
    put(tmp_path, "ball", "b", noise(2).astype(np.float32))
    with pytest.raises(SampleError, match="at most 100 windows in all"):
        load(tmp_path, raw(samples=2), CLASSES)


# --- what is wrong is said in one line -------------------------------------------------------------------------------


def broken(tmp_path: Path, what: str) -> None:
    good = noise(6000)
    label = tmp_path / "ball"
    label.mkdir(exist_ok=True)
    match what:
        case "no recordings":
            pass
        case "unknown label":
            put(tmp_path, "gearbox", "a", good)
        case "no rate":
            put(tmp_path, "ball", "a", good, None)
        case "other rate":
            put(tmp_path, "ball", "a", good, "sampling_rate_hz = 48000")
        case "int16 without scale":
            put(tmp_path, "ball", "a", good.astype(np.int16))
        case "objects":
            np.save(label / "a.npy", np.array([{"a": 1}]), allow_pickle=True)
            (label / "a.toml").write_text("sampling_rate_hz = 12000")
        case "complex":
            put(tmp_path, "ball", "a", good.astype(np.complex64))
        case "three dimensions":
            put(tmp_path, "ball", "a", good.reshape(10, 20, 30))
        case "truncated npy":
            path = put(tmp_path, "ball", "a", good)
            path.write_bytes(path.read_bytes()[:-100])
        case "junk npy":
            put(tmp_path, "ball", "a", good).write_bytes(b"\x93NUMPY\x01\x00" + b"\xff" * 100)
        case "empty npy":
            put(tmp_path, "ball", "a", good).write_bytes(b"")
        case "nan":
            good[3210] = np.nan
            put(tmp_path, "ball", "a", good)
        case "words in csv":
            (label / "a.csv").write_text("g\n0.1\n0.2\nbroken\n")
            (label / "a.toml").write_text("sampling_rate_hz = 12000")
        case "endless line":
            (label / "a.csv").write_text("1," * 6000)
        case "empty csv":
            (label / "a.csv").write_text("")
        case "negative shape":
            path = put(tmp_path, "ball", "a", good)
            path.write_bytes(path.read_bytes().replace(b"(6000,), ", b"(-600,), "))
        case "junk wav":
            (label / "a.wav").write_bytes(b"RIFF" + b"\xff" * 60)
        case "truncated wav":
            put_wav(label / "a.wav", (good * 1000).astype(np.int16), 2)
            (label / "a.wav").write_bytes((label / "a.wav").read_bytes()[:-4000])
        case "junk toml":
            put(tmp_path, "ball", "a", good, "sampling_rate_hz = ")
        case "unknown key":
            put(tmp_path, "ball", "a", good, "sampling_rate = 12000")
        case "rate as text":
            put(tmp_path, "ball", "a", good, 'sampling_rate_hz = "12000"')
        case "negative scale":
            put(tmp_path, "ball", "a", good, "sampling_rate_hz = 12000\nscale = -1")


@pytest.mark.parametrize(
    ("what", "about"),
    [
        ("no recordings", "found none"),
        ("unknown label", "gearbox: expected a folder named after a class"),
        ("no rate", "sampling rate is not known"),
        ("other rate", "expected 12000 .* got 48000"),
        ("int16 without scale", "needs `scale"),
        ("objects", "expected float32, float64 or int16"),
        ("complex", "expected float32, float64 or int16, got complex64"),
        ("three dimensions", r"got the shape \(10, 20, 30\)"),
        ("truncated npy", "bytes for its shape"),
        ("junk npy", "expected a .npy file"),
        ("empty npy", "expected a .npy file"),
        ("nan", "expected finite numbers"),
        ("words in csv", "in line 4, got 'broken'"),
        ("endless line", "line 1 is longer"),
        ("empty csv", "sampling rate is not known"),
        ("negative shape", r"got the shape \(-600,\)"),
        ("junk wav", "expected a PCM .wav file"),
        ("truncated wav", "shorter"),
        ("junk toml", "expected TOML"),
        ("unknown key", "got 'sampling_rate'"),
        ("rate as text", "expected a number above 0"),
        ("negative scale", "expected a number above 0 for scale"),
    ],
)
def test_what_cannot_be_used_is_named_in_one_line(tmp_path: Path, what: str, about: str) -> None:
    broken(tmp_path, what)
    with pytest.raises(SampleError, match=about) as caught:
        load(tmp_path, WINDOWING, CLASSES)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SampleError, match="expected a folder of recordings"):
        load(tmp_path / "nowhere", WINDOWING, CLASSES)


def test_features_that_are_not_known_are_refused(tmp_path: Path) -> None:
    put(tmp_path, "ball", "a", noise(6000))
    with pytest.raises(SampleError, match="vibration-9"):
        load(tmp_path, msgspec.structs.replace(WINDOWING, features="vibration-9"), CLASSES)


@settings(max_examples=150, deadline=None)
@given(junk=st.binary(max_size=300), suffix=st.sampled_from(["npy", "csv", "wav"]), head=st.booleans())
def test_junk_is_refused_or_read_but_never_raises_anything_else(
    tmp_path_factory: pytest.TempPathFactory, junk: bytes, suffix: str, head: bool
) -> None:
    folder = tmp_path_factory.mktemp("junk")
    (folder / "ball").mkdir()
    heads = {
        "npy": b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'fortran_order': False, 'shape': (",
        "csv": b"1\n",
        "wav": b"RIFF",
    }
    (folder / "ball" / f"a.{suffix}").write_bytes((heads[suffix] if head else b"") + junk)
    (folder / "recording.toml").write_text("sampling_rate_hz = 12000")
    try:
        samples = load(folder, WINDOWING, CLASSES)
    except SampleError as error:
        line = str(error)
    else:
        line = ""
        assert np.isfinite(samples.train_x).all()
    assert "\n" not in line


# --- remaining life --------------------------------------------------------------------------------------------------

LIFE = Windowing(features="raw", samples=3, hop=1, sampling_rate_hz=1.0, remaining_most=4.0, held_out=0.0)


def put_life(folder: Path, name: str, length: int, remaining: float | None = None) -> None:
    toml = "sampling_rate_hz = 1.0\n" + ("" if remaining is None else f"remaining = {remaining}\n")
    put(folder, "run_to_failure", name, np.arange(length, dtype=np.float32), toml)


def test_a_window_s_target_is_what_is_left_after_it_up_to_the_cap(tmp_path: Path) -> None:
    put_life(tmp_path, "a", 9)
    samples = load(tmp_path, LIFE, ())
    assert samples.train_x[:, -1].tolist() == [2, 3, 4, 5, 6, 7, 8]
    assert samples.train_y.dtype == np.float32
    # After the window that ends with sample 2, six are left, told apart up to four.
    assert samples.train_y.tolist() == [1, 1, 1, 0.75, 0.5, 0.25, 0]
    hopped = load(tmp_path, msgspec.structs.replace(LIFE, hop=2), ())
    assert hopped.train_y.tolist() == [1, 1, 0.5, 0]


def test_targets_go_on_from_block_to_block(tmp_path: Path) -> None:
    length = (1 << 17) + 100
    put_life(tmp_path, "a", length)
    windowing = msgspec.structs.replace(LIFE, remaining_most=100_000.0)
    loaded = load(tmp_path, windowing, ()).train_y
    assert len(loaded) == length - 2
    np.testing.assert_allclose(loaded, np.minimum(np.arange(length - 3, -1, -1), 100_000) / 100_000, atol=1e-7)


def test_what_was_left_after_a_recording_s_end_counts(tmp_path: Path) -> None:
    put_life(tmp_path, "a", 5, remaining=2)
    assert load(tmp_path, LIFE, ()).train_y.tolist() == [1, 0.75, 0.5]


def test_whole_lives_are_held_out_and_not_the_ends_of_all(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d"):
        put_life(tmp_path, name, 9)
    put(tmp_path, "unlabelled", "e", np.zeros(9), "sampling_rate_hz = 1.0")
    samples = load(tmp_path, msgspec.structs.replace(LIFE, held_out=0.25), ())
    assert (samples.train_windows, samples.held_windows, samples.recordings) == (21, 7, 4)
    assert samples.train_y.tolist().count(0) == 3
    assert samples.held_y.tolist().count(0) == 1


def test_of_a_test_recording_the_last_window_alone_is_asked(tmp_path: Path) -> None:
    put_life(tmp_path, "a", 9, remaining=3)
    put_life(tmp_path, "b", 5, remaining=1)
    put_life(tmp_path, "too-short", 2)
    x, y = load_test(tmp_path, LIFE, ())
    assert x.tolist() == [[6, 7, 8], [2, 3, 4]]
    assert y.tolist() == [0.75, 0.25]


@pytest.mark.parametrize("said", ["-1", "true", "inf", "'long'"])
def test_a_remaining_life_that_is_no_number_of_samples_is_refused(tmp_path: Path, said: str) -> None:
    put(tmp_path, "run_to_failure", "a", np.zeros(9), f"sampling_rate_hz = 1.0\nremaining = {said}")
    with pytest.raises(SampleError, match=r"a\.toml: expected a number of samples, 0 or more, for remaining"):
        load(tmp_path, LIFE, ())
