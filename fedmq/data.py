"""Where the demo's recordings come from, and the folder each gateway is given.

Owns the importers (CWRU bearings, a gearbox, turbofan engines, handwritten digits, a folder of one's own) and the
layout on disk that a gateway reads. The demo plays the plant: it deals recordings out to folders, and from then on each
gateway's process reads its own folder and no other. A fleet says how its recordings are best cut into windows; refuses
to know how that is done, and models. Rules it keeps: no pickle, no download, sizes bounded, one `DataError` line for
what is wrong.
"""

from __future__ import annotations

import csv
import gzip
import itertools
import shutil
import wave
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from fedmq_coordinator.settings import WindowingSettings
from fedmq_edge_node.samples import RAW, SampleError, open_recording, read_settings
from fedmq_protocol.topics import check_name
from numpy.typing import NDArray

__all__ = [
    "DataError",
    "Fleet",
    "GatewayData",
    "Recording",
    "cmapss",
    "cwru",
    "digits",
    "gearbox",
    "lay_out",
    "own_folder",
    "recordings_at",
    "signal_of",
]

Split = Literal["fault", "severity", "load"]

MAX_SAMPLES = 1 << 28
"""Of one recording: 512 MB as int16."""
CWRU_RATE_HZ = 12_000.0
CWRU_CLASSES = ("normal", "inner_race", "ball", "outer_race")
CWRU_LOADS = (0, 1, 2, 3)
OWN_SUFFIXES = (".npy", ".csv", ".wav")
MOST_CHANNELS = 16
"""Of a recording that is read whole, as many as a sensor's frames have."""
TEST_FOLDER = "test"
UNSEEN_FOLDER = "unseen"


class DataError(ValueError):
    """Recordings that cannot be used: where, what was expected, what came."""


@dataclass(frozen=True, kw_only=True)
class Recording:
    """One labelled recording, or the file it lies in."""

    label: str
    name: str
    signal: NDArray[np.int16] | NDArray[np.float32] | Path
    """`(n,)` or `(n, channels)` int16 steps or float32 in g; a path is a user's own file, copied as it is."""
    scale: float | None = None
    """g per step, which int16 needs; None leaves it to the format."""
    sampling_rate_hz: float
    remaining: float = 0.0
    """Samples that were left after its end, until the machine's own."""


@dataclass(frozen=True, kw_only=True)
class GatewayData:
    name: str
    recordings: tuple[Recording, ...]
    unseen: tuple[Recording, ...] = ()
    """Of its own machine and sensor, where the test set has some: what the gateway will meet and has not got."""


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """What every gateway has, and the test set where there is one. Labels of all are among `classes`."""

    name: str
    windowing: WindowingSettings = field(default_factory=WindowingSettings)
    """How its recordings become windows and features, with the rate that they all have."""
    classes: tuple[str, ...]
    gateways: tuple[GatewayData, ...]
    test: tuple[Recording, ...] | None
    split: str
    remark: str = ""
    """What one must know of these data to read results on them rightly."""

    def __post_init__(self) -> None:
        names = [gateway.name for gateway in self.gateways]
        for name in names:
            check_name(name, "gateway")
        if len(set(names)) != len(names):
            raise DataError(f"a gateway is named twice in {names}")
        if not names:
            raise DataError(f"{self.name}: expected at least one gateway, got none")

    @property
    def sampling_rate_hz(self) -> float:
        return self.windowing.sampling_rate_hz


def lay_out(fleet: Fleet, directory: Path) -> dict[str, Path]:
    """Writes each gateway's own folder `directory/<gateway>/<label>/<name>.npy`, and `test/` where there is one.

    Gives back the folder of each gateway, that of the test set under the name `test`, and under `unseen/<gateway>` that
    of its own part of it. Raises DataError when
    `directory` already holds one of them: another run's recordings must not mix in.
    """
    parts = {gateway.name: gateway.recordings for gateway in fleet.gateways}
    if fleet.test is not None:
        parts[TEST_FOLDER] = fleet.test
    parts |= {f"{UNSEEN_FOLDER}/{gateway.name}": gateway.unseen for gateway in fleet.gateways if gateway.unseen}
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
    if recording.remaining:
        lines.append(f"remaining = {float(recording.remaining)!r}")
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
        windowing=WindowingSettings(sampling_rate_hz=CWRU_RATE_HZ),
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


# --- A gearbox -------------------------------------------------------------------------------------------------------

GEARBOX_CHANNELS = 4
GEARBOX_LABELS = {"healthy": "normal", "broken": "broken_tooth"}
GEARBOX_WINDOWING = WindowingSettings(sampling_rate_hz=12_000.0, hop=512, channels=GEARBOX_CHANNELS, held_out=0.0)
"""The rate is nominal: see the remark. A shorter hop than usual, as there is one recording of each condition only; and
there always is a test set, so that gateways need not hold anything back to measure the model with."""
GEARBOX_TEST_SHARE = 0.25
GEARBOX_REMARK = (
    "the sampling rate of these recordings is not documented; 12,000 is nominal, so that the bands of the features are"
    " shares of whatever the Nyquist frequency was, and no hertz"
)
GEARBOX_HEALTHY_REMARK = (
    "on three of the four accelerometers the broken recordings differ so much that a window's distance from the mean of"
    " the healthy ones finds every broken tooth without a model: an AUC near 1 does not show that anything was learnt"
)


def gearbox(directory: Path, test_load: int | None = None, *, healthy: bool = False) -> Fleet:
    """The SpectraQuest gearbox of Pandya and Parey (OEDI submission 623) as a fleet: a gateway per load.

    `directory` holds a `.npz` per load, with int16 `healthy` and `broken` `(n, 4)`, `healthy_scale` and `broken_scale`
    `(4,)`, and `load_percent`. Recordings at `test_load` (in %) are the test set; without one it is the last quarter of
    every recording, which no gateway is given. With `healthy` no gateway has seen a broken tooth, which the test set
    has beside healthy recordings: what an autoencoder is to tell apart. Without a `test_load` it is then of two loads,
    the middle one and the highest, for the end of a recording would not be an unseen load. Raises DataError.
    """
    archives = sorted(directory.glob("*.npz")) if directory.is_dir() else []
    if not archives:
        raise DataError(f"{directory}: expected a folder with a .npz for each load, found none")
    loads: dict[int, tuple[Recording, ...]] = {}
    for path in archives:
        load, recordings = _read_gearbox(path)
        if load in loads:
            raise DataError(f"{path}: expected one file for each load, but {load} % was there before")
        loads[load] = tuple(recordings)
    if test_load is not None and test_load not in loads:
        raise DataError(f"{directory}: expected the test load {test_load} % among the loads {sorted(loads)}")
    held_back = {test_load} if test_load is not None else _unseen(loads) if healthy else set()
    if held_back:
        test = tuple(r for load in sorted(held_back) for r in loads.pop(load))
    else:
        test = tuple(_part(r, 1 - GEARBOX_TEST_SHARE, 1.0) for own in loads.values() for r in own)
        loads = {load: tuple(_part(r, 0.0, 1 - GEARBOX_TEST_SHARE) for r in own) for load, own in loads.items()}
    if not loads:
        raise DataError(f"{directory}: nothing is left to train on besides the test load of {max(held_back)} %")
    if healthy:
        loads = {load: tuple(r for r in own if r.label == "normal") for load, own in loads.items()}
    return Fleet(
        name="gearbox",
        windowing=GEARBOX_WINDOWING,
        classes=tuple(GEARBOX_LABELS.values()),
        gateways=tuple(GatewayData(name=f"load{load:02d}", recordings=own) for load, own in sorted(loads.items())),
        test=test,
        split="load",
        remark=f"{GEARBOX_REMARK}; {GEARBOX_HEALTHY_REMARK}" if healthy else GEARBOX_REMARK,
    )


def by_sensor(fleet: Fleet) -> Fleet:
    """The same machine as another fleet: a gateway for each accelerometer, with that channel of all recordings.

    Sensors sit at other places, so that the same state sounds otherwise to each: no two gateways have alike windows.
    """

    def channel(recordings: Iterable[Recording], place: int) -> tuple[Recording, ...]:
        picked = []
        for recording in recordings:
            assert not isinstance(recording.signal, Path)
            signal = np.array(recording.signal[:, place], dtype=np.float32)
            picked.append(replace(recording, name=f"{recording.name}-{sensor(place)}", signal=signal))
        return tuple(picked)

    def sensor(place: int) -> str:
        return f"sensor{place + 1}"

    places = range(fleet.windowing.channels)
    every = [recording for gateway in fleet.gateways for recording in gateway.recordings]
    tests = [channel(fleet.test or (), place) for place in places]
    return replace(
        fleet,
        windowing=replace(fleet.windowing, channels=1),
        gateways=tuple(
            GatewayData(name=sensor(place), recordings=channel(every, place), unseen=tests[place]) for place in places
        ),
        test=tuple(recording for test in tests for recording in test),
        split="sensor",
    )


def _unseen(loads: Iterable[int]) -> set[int]:
    """The middle load and the highest: one between loads that gateways have, one beyond them."""
    ordered = sorted(loads)
    return {ordered[len(ordered) // 2], ordered[-1]}


def _part(recording: Recording, start: float, stop: float) -> Recording:
    """A share of a recording in memory."""
    assert not isinstance(recording.signal, Path)
    length = len(recording.signal)
    return replace(recording, signal=recording.signal[round(start * length) : round(stop * length)])


def _read_gearbox(path: Path) -> tuple[int, list[Recording]]:
    """Load in % and both recordings of one archive, in the source's unit (which is not documented)."""
    recordings = []
    try:
        with np.load(path, allow_pickle=False) as archive:
            load = int(archive["load_percent"])
            for key, label in GEARBOX_LABELS.items():
                steps, scale = archive[key], archive[f"{key}_scale"]
                if steps.dtype != np.int16 or steps.ndim != 2 or steps.shape[1] != GEARBOX_CHANNELS:
                    raise DataError(
                        f"{path}: expected {key} as (n, {GEARBOX_CHANNELS}) int16, got {steps.shape} {steps.dtype}"
                    )
                if steps.size > MAX_SAMPLES or scale.shape != (GEARBOX_CHANNELS,) or scale.dtype.kind != "f":
                    raise DataError(
                        f"{path}: expected at most {MAX_SAMPLES:,} samples and {key}_scale of {GEARBOX_CHANNELS} "
                        f"numbers, got {steps.size:,} and {scale.shape} {scale.dtype}"
                    )
                recordings.append(
                    Recording(
                        label=label,
                        name=f"load{load:02d}",
                        signal=(steps * scale).astype(np.float32),
                        sampling_rate_hz=GEARBOX_WINDOWING.sampling_rate_hz,
                    )
                )
    except DataError:
        raise
    except (KeyError, TypeError, ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{path}: expected the keys load_percent, healthy, healthy_scale, broken and broken_scale: {error}"
        ) from None
    return load, recordings


# --- Turbofan engines ------------------------------------------------------------------------------------------------

CMAPSS_WINDOW = 30
"""Flight cycles, as much as the shortest test engine of FD001 has."""
CMAPSS_MOST = 125.0
"""Cycles of remaining life that are told apart (Heimes 2008, PHM conference): before that an engine wears unseen."""
CMAPSS_ENGINES = 10
"""Of a gateway."""
CMAPSS_LABEL = "run_to_failure"
CMAPSS_KEYS = ("unit", "cycle")
MAX_CMAPSS_LINE = 10_000
MAX_CMAPSS_ROWS = 200_000
"""Of one table: the largest of the four sets has 61,249."""


def cmapss(directory: Path) -> Fleet:
    """NASA's simulated turbofan engines (Saxena, Goebel 2008), a gateway for ten engines, numbered in their order.

    `directory` holds `train_X.csv.gz` (run to failure), `test_X.csv.gz` (cut before) and `RUL_X.csv` (`unit,rul`:
    cycles left after that), of one set X such as FD001. A recording is an engine: a row a flight cycle, a column a
    sensor; sensors with two values at most in all training rows are left out. A cycle counts as a second. Raises
    DataError.
    """
    tables = sorted(directory.glob("train_*.csv.gz")) if directory.is_dir() else []
    if len(tables) != 1:
        raise DataError(f"{directory}: expected one file train_X.csv.gz, such as train_FD001.csv.gz, got {len(tables)}")
    part = tables[0].name.removeprefix("train_").removesuffix(".csv.gz")
    names, rows = _read_cmapss(tables[0])
    tested, test_rows = _read_cmapss(directory / f"test_{part}.csv.gz")
    left_names, left_rows = _read_cmapss(directory / f"RUL_{part}.csv")
    sensors = [name for name in names if name not in CMAPSS_KEYS and not name.startswith("setting")]
    sensors = [name for name in sensors if len(np.unique(rows[:, names.index(name)])) > 2]
    if tested != names or left_names != ["unit", "rul"] or not sensors:
        raise DataError(
            f"{directory}: expected test_{part}.csv.gz with the columns of train_{part}.csv.gz, sensors that move, and "
            f"RUL_{part}.csv with unit,rul; got {tested}, {sensors} and {left_names}"
        )
    left = {int(unit): float(cycles) for unit, cycles in left_rows}
    lives = _engines(names, rows, sensors, {})
    test = _engines(names, test_rows, sensors, left)
    if len(left) != len(test):
        raise DataError(
            f"{directory}: expected a line in RUL_{part}.csv for each of {len(test)} engines, got {len(left)}"
        )
    return Fleet(
        name=f"cmapss-{part}",
        # A cycle has no duration: its rate is nominal. There is a test set, so that gateways hold no engine back.
        windowing=WindowingSettings(
            samples=CMAPSS_WINDOW,
            hop=1,
            sampling_rate_hz=1.0,
            features=RAW,
            channels=len(sensors),
            held_out=0.0,
            remaining_most=CMAPSS_MOST,
        ),
        classes=(),
        gateways=tuple(
            GatewayData(name=f"engines-{number:02d}", recordings=lives[place : place + CMAPSS_ENGINES])
            for number, place in enumerate(range(0, len(lives), CMAPSS_ENGINES), start=1)
        ),
        test=test,
        split="engines",
        remark="a row is a flight cycle; RMSE is in cycles of remaining life at each test engine's end: less is better",
    )


def _engines(
    names: list[str], rows: NDArray[np.float64], sensors: list[str], left: dict[int, float]
) -> tuple[Recording, ...]:
    """Each engine's rows `(cycles, sensors)` as a recording; `left` are the cycles after its end."""
    columns = [names.index(name) for name in sensors]
    units = rows[:, names.index("unit")].astype(np.int64)
    return tuple(
        Recording(
            label=CMAPSS_LABEL,
            name=f"engine-{unit:03d}",
            signal=rows[units == unit][:, columns].astype(np.float32),
            sampling_rate_hz=1.0,
            remaining=left.get(unit, 0.0),
        )
        for unit in np.unique(units).tolist()
    )


def _read_cmapss(path: Path) -> tuple[list[str], NDArray[np.float64]]:
    """Column names and `(rows, columns)` of a table with one heading line. Raises DataError."""
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="ascii") as file:
            lines = csv.reader(line[:MAX_CMAPSS_LINE] for line in file)
            names = next(lines, [])
            rows = [[float(cell) for cell in row] for row in itertools.islice(lines, MAX_CMAPSS_ROWS + 1)]
    except (OSError, EOFError, ValueError, zlib.error, csv.Error) as error:
        raise DataError(f"{path}: expected a table of numbers after a heading line, got: {error}") from None
    if not 0 < len(rows) <= MAX_CMAPSS_ROWS or any(len(row) != len(names) for row in rows) or "unit" not in names:
        raise DataError(
            f"{path}: expected a column unit and 1 to {MAX_CMAPSS_ROWS:,} rows of {len(names)} numbers each, got "
            f"{len(rows):,} rows of {sorted({len(row) for row in rows})}"
        )
    table = np.array(rows, dtype=np.float64)
    if not np.isfinite(table).all():
        raise DataError(f"{path}: expected finite numbers, found nan or infinity")
    return names, table


# --- Handwritten digits ----------------------------------------------------------------------------------------------

DIGITS_PIXELS = 64
DIGITS_MAXIMUM = 16
DIGITS_TEST_SHARE = 0.2
DIGITS_CONCENTRATION = 0.3
DIGITS_LEAST = 20
"""Images that every gateway must have."""
DIGITS_DRAWS = 1000


def digits(*, gateways: int = 8, seed: int = 0) -> Fleet:
    """scikit-learn's 1,797 images of handwritten digits, 8 by 8 pixels from 0 to 1, dealt out unevenly by label.

    A fifth of each digit is the test set; of the rest each digit is shared out by proportions drawn from a Dirichlet
    distribution with concentration 0.3 (Li et al. 2022, arXiv:2102.02079, section 3.2), again and again until every
    gateway has 20 images at least. An image is a row of 64 channels and a window. Raises DataError.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise DataError("the digits are scikit-learn's, which is not installed: pip install 'fedmq[bench]'") from None
    images, numbers = load_digits(return_X_y=True)
    images = images.astype(np.int16)
    rng = np.random.default_rng((seed, 0xD161))
    test: dict[int, NDArray[np.int64]] = {}
    rest: dict[int, NDArray[np.int64]] = {}
    for number in range(10):
        rows = rng.permutation(np.flatnonzero(numbers == number))
        test[number], rest[number] = np.split(rows, [round(DIGITS_TEST_SHARE * len(rows))])
    dealt = _deal(rest, gateways, rng)

    def recordings(rows: dict[int, NDArray[np.int64]]) -> tuple[Recording, ...]:
        return tuple(
            Recording(
                label=str(number),
                name="digits",
                signal=images[own],
                scale=1 / DIGITS_MAXIMUM,
                sampling_rate_hz=1.0,
            )
            for number, own in rows.items()
            if len(own)
        )

    return Fleet(
        name="digits",
        # The test set measures the model, so that gateways need not hold anything back for that.
        windowing=WindowingSettings(
            samples=1, hop=1, sampling_rate_hz=1.0, features=RAW, channels=DIGITS_PIXELS, held_out=0.0, scaling="none"
        ),
        classes=tuple(str(number) for number in range(10)),
        gateways=tuple(
            GatewayData(name=f"digits-{place + 1:02d}", recordings=recordings(own)) for place, own in enumerate(dealt)
        ),
        test=recordings(test),
        split=f"Dirichlet({DIGITS_CONCENTRATION})",
    )


def _deal(
    rows: dict[int, NDArray[np.int64]], gateways: int, rng: np.random.Generator
) -> list[dict[int, NDArray[np.int64]]]:
    """Each gateway's rows of each digit."""
    for _ in range(DIGITS_DRAWS):
        dealt: list[dict[int, NDArray[np.int64]]] = [{} for _ in range(gateways)]
        for number, own in rows.items():
            shares = rng.dirichlet(np.full(gateways, DIGITS_CONCENTRATION))
            cuts = np.rint(np.cumsum(shares)[:-1] * len(own)).astype(np.int64)
            for gateway, part in zip(dealt, np.split(own, cuts), strict=True):
                gateway[number] = part
        if min(sum(len(part) for part in gateway.values()) for gateway in dealt) >= DIGITS_LEAST:
            return dealt
    total = sum(len(own) for own in rows.values())
    raise DataError(
        f"digits: expected so many gateways that each gets {DIGITS_LEAST} of {total:,} images in one of "
        f"{DIGITS_DRAWS:,} draws, got {gateways}: take fewer"
    )


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
        windowing=WindowingSettings(sampling_rate_hz=rates[0]),
        classes=tuple(sorted(labels, key=lambda label: (label != "normal", label))),
        gateways=gateways,
        test=test or None,
        split="folders",
    )


def recordings_at(path: Path, *, sampling_rate_hz: float | None = None) -> tuple[Recording, ...]:
    """Every recording of a folder or file, whole and in the order of names, whatever a fleet would hold back of it.

    A folder is CWRU's `.mat` files, one `.npz` of them, the gearbox's `.npz` files, or one's own: `<label>/<name>.npy`,
    `.csv` or `.wav`, also below a folder for each gateway. A file is one of these; the folder of a `.npy`, `.csv` or
    `.wav` is its label. Raises DataError.
    """
    common = {} if sampling_rate_hz is None else {"sampling_rate_hz": sampling_rate_hz}
    if path.suffix.lower() == ".npz" and path.is_file():
        return tuple(_in_archive(path))
    if path.is_file() and path.suffix.lower() in OWN_SUFFIXES:
        folder = path.resolve().parent
        every = _own_recordings(folder.parent, common | _settings(folder.parent.parent / "recording.toml"))
        return tuple(one for one in every if one.signal == folder / path.name)
    if not path.is_dir():
        raise DataError(f"{path}: expected a folder of recordings, or a .npz, .npy, .csv or .wav file")
    if archives := sorted(path.glob("*.npz")):
        return tuple(one for archive in archives for one in _in_archive(archive))
    if any(path.glob("*.mat")):
        return tuple(recording for _, recording in _read_mats(path))
    common |= _settings(path / "recording.toml")
    folders = sorted(one for one in path.iterdir() if one.is_dir() and not one.name.startswith("."))
    found = [*_own_recordings(path, common), *(one for folder in folders for one in _own_recordings(folder, common))]
    if not found:
        raise DataError(f"{path}: expected recordings as <label>/<name>.npy, .csv or .wav, found none")
    return tuple(found)


def _in_archive(path: Path) -> list[Recording]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            keys = set(archive.files)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: expected a .npz file, got: {error}") from None
    return _read_gearbox(path)[1] if "load_percent" in keys else [one for _, one in _read_npz(path)]


def signal_of(recording: Recording, most: int = MAX_SAMPLES) -> NDArray[np.float64]:
    """Its samples, whole, `(n, channels)` in g. Raises DataError where there are more than `most` of all channels."""
    signal = recording.signal
    if isinstance(signal, Path):
        settings = {"sampling_rate_hz": recording.sampling_rate_hz}
        settings |= {} if recording.scale is None else {"scale": recording.scale}
        try:
            opened = open_recording(signal, settings, MOST_CHANNELS)
            if opened.length * min(opened.channels, MOST_CHANNELS) > most:
                raise DataError(f"{signal}: expected at most {most:,} samples, got {opened.length * opened.channels:,}")
            return opened.read(0, opened.length)
        except SampleError as error:
            raise DataError(str(error)) from None
    values = signal.astype(np.float64) * (1.0 if recording.scale is None else recording.scale)
    return values.reshape(len(values), -1)


def _own_recordings(folder: Path, common: dict[str, float]) -> Iterable[Recording]:
    settings = common | _settings(folder / "recording.toml")
    for label in sorted(path for path in folder.iterdir() if path.is_dir()):
        for path in sorted(label.iterdir()):
            if path.suffix.lower() not in OWN_SUFFIXES:
                continue
            own = settings | _settings(path.with_suffix(".toml"))
            rate = _wav_rate(path) if path.suffix.lower() == ".wav" else own.get("sampling_rate_hz")
            if rate is None:
                raise DataError(
                    f"{path}: its sampling rate is not known; write `sampling_rate_hz = …` into "
                    f"{folder.parent / 'recording.toml'}, or give it with --sampling-rate"
                )
            yield Recording(
                label=label.name,
                name=path.stem,
                signal=path,
                scale=own.get("scale"),
                sampling_rate_hz=rate,
                remaining=own.get("remaining", 0.0),
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
