"""Where the demo's recordings come from, and the folder each gateway is given.

Owns the importers (CWRU bearings, a folder of one's own) and the layout on disk that a gateway reads. The demo plays
the plant: it deals recordings out to folders, and from then on each gateway's process reads its own folder and no
other. Refuses to know about windows, features and models. Rules it keeps: no pickle, no download, sizes bounded, one
`DataError` line for what is wrong.
"""

from __future__ import annotations

import shutil
import wave
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from fedmq_edge_node.samples import SampleError, read_settings
from fedmq_protocol.topics import check_name
from numpy.typing import NDArray

__all__ = ["DataError", "Fleet", "GatewayData", "Recording", "cwru", "lay_out", "own_folder"]

Split = Literal["fault", "severity", "load"]

MAX_SAMPLES = 1 << 28
"""Of one recording: 512 MB as int16."""
CWRU_RATE_HZ = 12_000.0
CWRU_CLASSES = ("normal", "inner_race", "ball", "outer_race")
CWRU_LOADS = (0, 1, 2, 3)
TEST_FOLDER = "test"


class DataError(ValueError):
    """Recordings that cannot be used: where, what was expected, what came."""


@dataclass(frozen=True, kw_only=True)
class Recording:
    """One labelled recording of one channel, or the file it lies in."""

    label: str
    name: str
    signal: NDArray[np.int16] | NDArray[np.float32] | Path
    """`(n,)` int16 steps or float32 in g; a path is a user's own file, copied as it is."""
    scale: float | None = None
    """g per step, which int16 needs; None leaves it to the format."""
    sampling_rate_hz: float


@dataclass(frozen=True, kw_only=True)
class GatewayData:
    name: str
    recordings: tuple[Recording, ...]


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """What every gateway has, and the test set where there is one. Labels of all are among `classes`."""

    name: str
    sampling_rate_hz: float
    classes: tuple[str, ...]
    gateways: tuple[GatewayData, ...]
    test: tuple[Recording, ...] | None
    split: str

    def __post_init__(self) -> None:
        names = [gateway.name for gateway in self.gateways]
        for name in names:
            check_name(name, "gateway")
        if len(set(names)) != len(names):
            raise DataError(f"a gateway is named twice in {names}")
        if not names:
            raise DataError(f"{self.name}: expected at least one gateway, got none")


def lay_out(fleet: Fleet, directory: Path) -> dict[str, Path]:
    """Writes each gateway's own folder `directory/<gateway>/<label>/<name>.npy`, and `test/` where there is one.

    Gives back the folder of each gateway, and that of the test set under the name `test`. Raises DataError when
    `directory` already holds one of them: another run's recordings must not mix in.
    """
    parts = {gateway.name: gateway.recordings for gateway in fleet.gateways}
    if fleet.test is not None:
        parts[TEST_FOLDER] = fleet.test
    folders = {name: directory / name for name in parts}
    for folder in folders.values():
        if folder.exists():
            raise DataError(f"{folder}: expected a new folder to lay recordings out in, but it exists")
    for name, recordings in parts.items():
        for recording in recordings:
            _write(recording, folders[name])
    return folders


def _write(recording: Recording, folder: Path) -> None:
    label = folder / recording.label
    label.mkdir(parents=True, exist_ok=True)
    if isinstance(recording.signal, Path):
        target = label / recording.signal.name
        shutil.copyfile(recording.signal, target)
    else:
        target = label / f"{recording.name}.npy"
        np.save(target, recording.signal, allow_pickle=False)
    lines = [] if target.suffix.lower() == ".wav" else [f"sampling_rate_hz = {recording.sampling_rate_hz!r}"]
    if recording.scale is not None:
        lines.append(f"scale = {float(recording.scale)!r}")
    if lines:
        target.with_suffix(".toml").write_text("\n".join(lines) + "\n", encoding="utf-8")


# --- CWRU ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Run:
    """One row of CWRU's table of 12 kHz drive-end recordings."""

    number: int
    label: str
    diameter_mil: int
    load_hp: int


def _table() -> tuple[_Run, ...]:
    """File numbers of https://engineering.case.edu/bearingdatacenter: a fault's four loads are numbered in a row."""
    first = {
        ("inner_race", 7): 105,
        ("ball", 7): 118,
        ("outer_race", 7): 130,  # the defect at 6 o'clock, centred in the load zone
        ("inner_race", 14): 169,
        ("ball", 14): 185,
        ("outer_race", 14): 197,
        ("inner_race", 21): 209,
        ("ball", 21): 222,
        ("outer_race", 21): 234,
    }
    healthy = [_Run(number=97 + load, label="normal", diameter_mil=0, load_hp=load) for load in CWRU_LOADS]
    faulty = [
        _Run(number=number + load, label=label, diameter_mil=mil, load_hp=load)
        for (label, mil), number in first.items()
        for load in CWRU_LOADS
    ]
    return tuple(healthy + faulty)


CWRU_TABLE = _table()


def cwru(directory: Path, split: Split = "fault", test_load: int | None = 2) -> Fleet:
    """CWRU drive-end recordings as a fleet, from a folder of CWRU's own `<number>.mat` files or from one `.npz`.

    Recordings of `test_load` (motor load in hp) are the test set, faults only; the gateways share the other loads:
    `fault`     a gateway per load and fault type, with every severity, and one that has seen healthy only;
    `severity`  a gateway per load and defect diameter, with every fault type;
    `load`      a gateway per load.
    In the last two the healthy recordings go to the gateways of their load. Raises DataError.
    """
    recordings = _read_cwru(directory)
    # The test is over the faults: healthy recordings at other loads are not in every copy of the data.
    test = [(run, recording) for run, recording in recordings if run.load_hp == test_load and run.label != "normal"]
    training = [(run, recording) for run, recording in recordings if run.load_hp != test_load]
    if test_load is not None and not test:
        loads = sorted({run.load_hp for run, _ in recordings if run.label != "normal"})
        raise DataError(f"{directory}: expected recordings at the test load of {test_load} hp, found loads {loads}")
    dealt: dict[str, list[Recording]] = {}
    for run, recording in training:
        for name in _gateways_of(run, split):
            dealt.setdefault(name, []).append(recording)
    if not dealt:
        raise DataError(f"{directory}: nothing is left to train on besides the test load of {test_load} hp")
    return Fleet(
        name="cwru",
        sampling_rate_hz=CWRU_RATE_HZ,
        classes=CWRU_CLASSES,
        gateways=tuple(GatewayData(name=name, recordings=tuple(own)) for name, own in sorted(dealt.items())),
        test=tuple(recording for _, recording in test) if test_load is not None else None,
        split=split,
    )


def _gateways_of(run: _Run, split: Split) -> tuple[str, ...]:
    if split == "fault":
        return ("healthy",) if run.label == "normal" else (f"load{run.load_hp}-{run.label.replace('_', '-')}",)
    if split == "severity":
        mils = (7, 14, 21) if run.label == "normal" else (run.diameter_mil,)
        return tuple(f"load{run.load_hp}-{mil:02d}mil" for mil in mils)
    if split == "load":
        return (f"load{run.load_hp}",)
    raise DataError(f"expected the split fault, severity or load, got {split!r}")


def _read_cwru(directory: Path) -> list[tuple[_Run, Recording]]:
    if not directory.is_dir():
        raise DataError(f"{directory}: expected a folder with CWRU's .mat files or a .npz of them, found none")
    archives = sorted(directory.glob("*.npz"))
    found = _read_npz(archives[0]) if archives else _read_mats(directory)
    if not any(run.label != "normal" for run, _ in found):
        raise DataError(
            f"{directory}: expected CWRU's 12 kHz drive-end recordings (such as 105.mat to 108.mat), found none"
        )
    return found


def _read_npz(path: Path) -> list[tuple[_Run, Recording]]:
    """Keys `fs`, `recording`, `scale` and `x00`, `x01`, …: signal in g is x * scale."""
    by_number = {run.number: run for run in CWRU_TABLE}
    found = []
    try:
        with np.load(path, allow_pickle=False) as archive:
            if float(archive["fs"]) != CWRU_RATE_HZ:
                raise DataError(f"{path}: expected fs = {CWRU_RATE_HZ:g}, got {archive['fs']}")
            for index, number in enumerate(archive["recording"].tolist()):
                if (run := by_number.get(number)) is None:
                    continue
                signal = archive[f"x{index:02d}"]
                if signal.dtype != np.int16 or signal.ndim != 1:
                    raise DataError(f"{path}: expected x{index:02d} as (n,) int16, got {signal.shape} {signal.dtype}")
                scale = float(archive["scale"][index])
                found.append((run, _recording(run, signal, scale)))
    except (KeyError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: expected the keys fs, recording, scale and x00, …: {error}") from None
    return found


def _read_mats(directory: Path) -> list[tuple[_Run, Recording]]:
    found = []
    for run in CWRU_TABLE:
        path = directory / f"{run.number}.mat"
        if path.is_file():
            signal = _read_mat(path, run)
            found.append((run, _recording(run, signal, None)))
    return found


def _read_mat(path: Path, run: _Run) -> NDArray[np.float32]:
    """The drive-end accelerometer in g at 12 kHz; CWRU names it X105_DE_time, with the file's number."""
    try:
        from scipy.io import loadmat
    except ImportError:
        raise DataError(f"{path}: reading CWRU's .mat files needs scipy: pip install 'fedmq[demo]'") from None
    try:
        variables: dict[str, Any] = loadmat(path, variable_names=[f"X{run.number:03d}_DE_time"])
    except Exception as error:  # scipy raises whatever the broken file makes it stumble over
        raise DataError(f"{path}: expected a MATLAB file, got: {type(error).__name__}: {error}") from None
    signal = variables.get(f"X{run.number:03d}_DE_time")
    if signal is None or signal.size == 0 or signal.size > MAX_SAMPLES:
        raise DataError(f"{path}: expected the variable X{run.number:03d}_DE_time with 1 to {MAX_SAMPLES:,} samples")
    wide = np.asarray(signal, dtype=np.float64).ravel()
    if run.label == "normal":
        # Healthy recordings are 48 kHz, whatever the table says: mains lines and the shaft comb only fit there.
        from scipy.signal import decimate

        wide = decimate(wide, 4, ftype="fir", zero_phase=True)
    return np.asarray(wide, dtype=np.float32)


def _recording(run: _Run, signal: NDArray[np.int16] | NDArray[np.float32], scale: float | None) -> Recording:
    return Recording(label=run.label, name=str(run.number), signal=signal, scale=scale, sampling_rate_hz=CWRU_RATE_HZ)


# --- One's own folder ------------------------------------------------------------------------------------------------


def own_folder(directory: Path, *, sampling_rate_hz: float | None = None) -> Fleet:
    """`directory/<gateway>/<label>/*.{npy,csv,wav}`, and `directory/test/<label>/…` as the test set if it is there.

    The sampling rate and scale come from a .toml beside a recording, else from `recording.toml` in the gateway's
    folder, else from `recording.toml` in `directory`; a rate that none of them states is `sampling_rate_hz`. All
    recordings must have one rate. Classes are the labels of
    all gateways, in alphabetical order with `normal` first; `unlabelled` is none. Raises DataError.
    """
    if not directory.is_dir():
        raise DataError(f"{directory}: expected a folder with a folder per gateway, found none")
    folders = sorted(path for path in directory.iterdir() if path.is_dir() and not path.name.startswith("."))
    common = _settings(directory / "recording.toml")
    if sampling_rate_hz is not None:
        common = {"sampling_rate_hz": sampling_rate_hz} | common
    recordings = {folder.name: tuple(_own_recordings(folder, common)) for folder in folders}
    test = recordings.pop(TEST_FOLDER, None)
    gateways = tuple(GatewayData(name=name, recordings=own) for name, own in recordings.items() if own)
    if not gateways:
        raise DataError(f"{directory}: expected recordings as <gateway>/<label>/<name>.npy, .csv or .wav, found none")
    every = [recording for gateway in gateways for recording in gateway.recordings]
    rates = sorted({recording.sampling_rate_hz for recording in every + list(test or ())})
    if len(rates) != 1:
        raise DataError(f"{directory}: expected one sampling rate for all recordings, got {rates} Hz")
    labels = {recording.label for recording in every} - {"unlabelled"}
    if test is not None and (strange := {recording.label for recording in test} - labels):
        raise DataError(f"{directory / TEST_FOLDER}: no gateway has recordings of {', '.join(sorted(strange))}")
    return Fleet(
        name=directory.resolve().name,
        sampling_rate_hz=rates[0],
        classes=tuple(sorted(labels, key=lambda label: (label != "normal", label))),
        gateways=gateways,
        test=test or None,
        split="folders",
    )


def _own_recordings(folder: Path, common: dict[str, float]) -> Iterable[Recording]:
    settings = common | _settings(folder / "recording.toml")
    for label in sorted(path for path in folder.iterdir() if path.is_dir()):
        for path in sorted(label.iterdir()):
            if path.suffix.lower() not in (".npy", ".csv", ".wav"):
                continue
            own = settings | _settings(path.with_suffix(".toml"))
            rate = _wav_rate(path) if path.suffix.lower() == ".wav" else own.get("sampling_rate_hz")
            if rate is None:
                raise DataError(
                    f"{path}: its sampling rate is not known; write `sampling_rate_hz = …` into "
                    f"{folder.parent / 'recording.toml'}, or give it with --sampling-rate"
                )
            yield Recording(
                label=label.name, name=path.stem, signal=path, scale=own.get("scale"), sampling_rate_hz=rate
            )


def _settings(path: Path) -> dict[str, float]:
    """A recording.toml by the rules of the gateway that will read the copies."""
    try:
        return read_settings(path)
    except SampleError as error:
        raise DataError(str(error)) from None


def _wav_rate(path: Path) -> float:
    try:
        with wave.open(str(path), "rb") as file:
            return float(file.getframerate())
    except (wave.Error, EOFError) as error:
        raise DataError(f"{path}: expected a PCM .wav file, got: {error or 'a truncated one'}") from None
