"""A gateway's own folder of recordings: signal -> windows -> features, and the split for evaluation.

    <directory>/<label>/<recording>.npy | .csv | .wav      folder names are the labels
    <directory>/recording.toml                             sampling_rate_hz and scale of every recording
    <directory>/<label>/<recording>.toml                   the same for one recording, key by key stronger

For a task of remaining life (`windowing.remaining_most`) folder names say nothing, and a recording is one life. It runs
to its end, unless its .toml says `remaining`: the samples that were left after it. A window's target is what is left
after the window, at most `remaining_most`, as a share of that.

A `.npy` holds float32 or float64 in g (times `scale`, if one is given), or int16 that needs a `scale` in g per step;
a `.csv` holds numbers in g (times `scale`), one row per sample, after at most one heading line; a `.wav` carries its
own rate, and its full scale is 1 g unless `scale` gives the g per step. A recording has one channel or several, side
by side. It must have as many as the task says; only where that is one, `vibration-1` uses the *first* of several.

A feature set is a name in the task: `vibration-1` makes 22 features of each channel's window, channel after channel;
`raw` takes a window's samples as they are, in whatever unit, row after row; `bundle` hands these to a `Preparation`
that came with somebody's model. With windows of one sample, `raw` reads a
table: a row is a window, a column a channel (it has no rate: state 1 in the task and in recording.toml).

Owns reading, cutting, the features and their scaling. Refuses to know about models and rounds. Rules it keeps: no
pickle; a recording is read in blocks and its signal forgotten once it has become features; sizes are bounded before
anything is read; what is wrong is one `SampleError` line that says which file, what was expected and what came.
"""

from __future__ import annotations

import math
import os
import tomllib
import wave
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from fedmq_protocol.task import Windowing
from numpy.typing import NDArray

__all__ = [
    "BLOCK_VALUES",
    "FEATURES",
    "FEATURE_NAMES",
    "PREPARED",
    "RAW",
    "UNLABELLED",
    "Preparation",
    "SampleError",
    "Samples",
    "Scaler",
    "Signal",
    "check_channels",
    "cut_up",
    "feature_count",
    "featured",
    "features",
    "list_recordings",
    "load",
    "load_test",
    "most_windows",
    "number_of",
    "open_recording",
    "rates_agree",
    "read_settings",
    "signal_lengths",
    "statistics",
]

Floats = NDArray[np.float32]
Targets = NDArray[np.int64] | NDArray[np.float32]
"""int64 labels, or float32 shares of the cap on remaining life."""

BANDS = 7
"""Equal bands of the spectrum, from 0 to half the sampling rate."""
ENVELOPE_EDGES_HZ = (10.0, 25.0, 45.0, 75.0, 95.0, 115.0, 135.0, 152.0, 175.0, 205.0, 240.0, 330.0, 500.0)
"""Edges of the envelope-spectrum bands. At about 1,800 rpm a common ball bearing's cage, shaft, outer-race, ball and
inner-race rates and their second harmonics each fall into a band of their own, with room for slip and load."""
ENVELOPE_FROM_HZ = 500.0
"""Below it lie the shaft's harmonics, which would beat in the envelope; impacts ring above."""

FEATURE_NAMES: tuple[str, ...] = (
    "rms_log10_g",
    "kurtosis_log10",
    "crest_factor_log10",
    *(f"band_{band + 1}_of_{BANDS}_log10_share" for band in range(BANDS)),
    *(f"envelope_{low:g}_{high:g}_hz_log10" for low, high in pairwise(ENVELOPE_EDGES_HZ)),
)
"""What `features` gives for a channel, in order: the feature set `vibration-1`."""
FEATURES = len(FEATURE_NAMES)
VIBRATION = "vibration-1"
RAW = "raw"
PREPARED = "bundle"

MIN_VIBRATION_SAMPLES = 64
"""A shorter window has too few lines for its spectrum's bands."""
MAX_FEATURES = 4096
"""Of a window: their scaling must fit one message."""

UNLABELLED = "unlabelled"
"""Folder of recordings nobody has labelled: taken as healthy by an autoencoder, and left out by any other model."""

MAX_FILES = 10_000
MAX_FILE_BYTES = 4 << 30
MAX_CSV_SAMPLES = 2_000_000
"""Of all channels. A .csv cannot be read from its middle, so that it is kept whole: 8 MB."""
MAX_LINE = 10_000
MAX_SETTINGS_BYTES = 64 << 10
MAX_WINDOWS = 200_000
"""Over all recordings: 18 MB of features of one channel's vibration."""
MAX_TABLE_VALUES = 1 << 24
"""Features of all windows together: 67 MB."""
BLOCK_SAMPLES = 1 << 16
"""Signal of all channels in memory at a time, and at least one window."""
BLOCK_VALUES = 1 << 18
"""Samples of the windows that become features at a time, however much they overlap: 2 MB, and at least one window."""
RATE_TOLERANCE = 1e-3
SCALED_LIMIT = 8.0
"""Scaled features are clipped here: a sensor that goes wild must not throw the model."""
FLOOR = 1e-12
"""Below every ratio of interest; keeps the logarithm of a silent band finite."""


class SampleError(ValueError):
    """A recording that cannot be used: file, what was expected, what came."""


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """Makes features of raw windows, `(n, samples * channels)` float32 to `(n, features)` float32."""

    features: int
    run: Callable[[Floats], Floats]


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Windows as unscaled features. Training and held-out windows share no sample of the signal."""

    train_x: Floats
    """`(n, features)` float32."""
    train_y: Targets
    """`(n,)` positions in the task's classes; for an autoencoder 0, as it trains on healthy windows only. For a task of
    remaining life float32 shares of `remaining_most`."""
    held_x: Floats
    held_y: Targets
    """For an autoencoder 0 is healthy and 1 is everything else."""
    raw_bytes: int
    """What is used of the signal at 2 bytes a sample, as a 16-bit converter gives it: what uploading it would cost."""
    recordings: int

    @property
    def train_windows(self) -> int:
        return len(self.train_x)

    @property
    def held_windows(self) -> int:
        return len(self.held_x)


@dataclass(frozen=True, kw_only=True)
class Scaler:
    """Brings features to about mean 0 and spread 1: `(features,)` float32 each."""

    mean: Floats
    scale: Floats
    """Spread that a feature is divided by; all above 0."""

    def __post_init__(self) -> None:
        if self.mean.shape != self.scale.shape or self.mean.ndim != 1:
            raise ValueError(f"expected a mean and a scale per feature, got {self.mean.shape} and {self.scale.shape}")
        if not (np.isfinite(self.mean).all() and np.isfinite(self.scale).all() and (self.scale > 0).all()):
            raise ValueError("expected finite means and scales above 0")

    def apply(self, x: Floats) -> Floats:
        """Features `(n, features)` to scaled float32, within ±8."""
        scaled = (x - self.mean) / self.scale
        return np.asarray(np.clip(scaled, -SCALED_LIMIT, SCALED_LIMIT), dtype=np.float32)


def statistics(x: Floats) -> tuple[int, NDArray[np.float64], NDArray[np.float64]]:
    """Count, mean and M2 (sum of squared differences from the mean) of each feature, in float64.

    Two passes: sums of squares in float32 gave negative variances.
    """
    if len(x) == 0:
        raise ValueError("statistics need at least one window, got none")
    wide = x.astype(np.float64)
    mean = wide.mean(axis=0)
    return len(x), mean, np.sum((wide - mean) ** 2, axis=0)


def feature_count(windowing: Windowing, prepared: int | None = None) -> int:
    """Features that a window becomes; `prepared` are those of a bundle's own set. Raises SampleError for an unknown
    feature set, or where it cannot be had."""
    if windowing.features == VIBRATION:
        if windowing.samples < MIN_VIBRATION_SAMPLES:
            raise SampleError(
                f"windowing.samples: expected at least {MIN_VIBRATION_SAMPLES} for the feature set {VIBRATION!r}, "
                f"got {windowing.samples}"
            )
        count = FEATURES * windowing.channels
    elif windowing.features == RAW:
        count = windowing.samples * windowing.channels
    elif windowing.features == PREPARED and prepared is not None:
        count = prepared
    else:
        raise SampleError(
            f"windowing.features: expected the feature set {VIBRATION!r} or {RAW!r}, or {PREPARED!r} with a bundle "
            f"that prepares windows, the task asks for {windowing.features!r}"
        )
    if count > MAX_FEATURES:
        raise SampleError(
            f"windowing: expected at most {MAX_FEATURES:,} features of a window, got {count:,} "
            f"({windowing.features} of {windowing.samples:,} samples and {windowing.channels:,} channels)"
        )
    return count


def load(
    directory: Path,
    windowing: Windowing,
    classes: tuple[str, ...],
    healthy: str = "normal",
    preparation: Preparation | None = None,
) -> Samples:
    """Every recording below `directory` as features; the last `held_out` share of each recording is held out.

    A folder whose name is not among `classes` is an error, except `unlabelled`, which is left out. Without classes
    (an autoencoder) folders `healthy` and `unlabelled` are trained on, and of any other only the held-out end is
    used, as faulty. For a task of remaining life the last `held_out` share of the recordings, by name, is held out
    whole: the ends of all would be every failure there is. `preparation` goes with the feature set `bundle`. Raises
    SampleError.
    """
    # What cannot become features is told before anything is read.
    feature_count(windowing, None if preparation is None else preparation.features)
    every = list(_recordings(directory, windowing, classes, healthy))
    if not windowing.remaining_most:
        return cut_up(every, windowing, classes, preparation)
    trained_on = len(every) - int(len(every) * windowing.held_out)
    parts = ((signal, number, signal.length * (place < trained_on)) for place, (signal, number) in enumerate(every))
    return _gather(parts, windowing, classes, preparation)


def cut_up(
    signals: Iterable[tuple[Signal, int]],
    windowing: Windowing,
    classes: tuple[str, ...],
    preparation: Preparation | None = None,
) -> Samples:
    """Signals with their labels' numbers, of each the last `held_out` share held out. For an autoencoder 0 is healthy.
    One after another, so that none need stay in memory. Raises SampleError."""
    parts = ((signal, number, signal.length - int(signal.length * windowing.held_out)) for signal, number in signals)
    return _gather(parts, windowing, classes, preparation)


def _gather(
    parts: Iterable[tuple[Signal, int, int]],
    windowing: Windowing,
    classes: tuple[str, ...],
    preparation: Preparation | None,
) -> Samples:
    """Of each signal what is before the cut is trained on, and what is behind it held out."""
    train = _Table(windowing, preparation)
    held = _Table(windowing, preparation)
    raw_bytes, recordings = 0, 0
    for signal, number, cut in parts:
        if classes or number == 0:
            train.add(signal, 0, cut, number)
        held.add(signal, cut, signal.length, number)
        raw_bytes += 2 * signal.length * windowing.channels
        recordings += 1
    train_x, train_y = train.arrays()
    held_x, held_y = held.arrays()
    return Samples(
        train_x=train_x, train_y=train_y, held_x=held_x, held_y=held_y, raw_bytes=raw_bytes, recordings=recordings
    )


def load_test(
    directory: Path,
    windowing: Windowing,
    classes: tuple[str, ...],
    healthy: str = "normal",
    preparation: Preparation | None = None,
) -> tuple[Floats, Targets]:
    """A test set, whole: every window as unscaled features `(n, features)` and labels `(n,)`. Of a task of remaining
    life each recording's last window alone: what is asked is how long each has left now. Raises as `load`."""
    table = _Table(windowing, preparation)
    for signal, number in _recordings(directory, windowing, classes, healthy):
        first = max(0, signal.length - windowing.samples) if windowing.remaining_most else 0
        table.add(signal, first, signal.length, number)
    x, y = table.arrays()
    if len(x) == 0:
        raise SampleError(f"{directory}: expected a test recording of at least {windowing.samples:,} samples")
    return x, y


def signal_lengths(directory: Path) -> dict[str, int]:
    """Samples of signal by label, from the recordings' heads. Raises SampleError."""
    counts: dict[str, int] = {}
    common = read_settings(directory / "recording.toml")
    for path in list_recordings(directory):
        signal = open_recording(path, common | read_settings(path.with_suffix(".toml")), 1)
        counts[path.parent.name] = counts.get(path.parent.name, 0) + signal.length
    return counts


def features(windows: NDArray[np.float64], sampling_rate_hz: float) -> Floats:
    """One channel's `vibration-1`: windows `(n, samples)` in g to `(n, FEATURES)` float32, all logarithms to base 10.

    - RMS of the vibration about its mean, the level that ISO 20816-1:2016 judges (here of acceleration, in g).
    - Kurtosis (4th moment over squared variance, 3 for noise) and crest factor (peak over RMS): the impulsiveness
      that a local defect brings (Randall, Antoni 2011, Mech. Syst. Signal Process. 25(2), section 3).
    - Share of the power in equal bands: where the resonances lie that the impacts ring. Free of the level.
    - Highest line in bands of the spectrum of the squared envelope, over the RMS of all lines from 10 to 500 Hz: how
      often the impacts come, not how hard they are (McFadden, Smith 1984, Tribology Int. 17(1); Randall, Antoni 2011,
      section 4). The envelope is that of the signal above 500 Hz.
    """
    samples = windows.shape[1]
    centred = windows - windows.mean(axis=1, keepdims=True)
    power = np.mean(centred**2, axis=1)
    silent = np.maximum(power, FLOOR**2)
    kurtosis = np.mean(centred**4, axis=1) / silent**2
    crest = np.abs(centred).max(axis=1) / np.sqrt(silent)

    # A Hann window against leakage, for the spectrum only; the envelope needs the signal as it is.
    spectrum = np.abs(np.fft.rfft(centred * np.hanning(samples), axis=1)) ** 2
    edges = np.linspace(0, spectrum.shape[1], BANDS + 1).astype(np.int64)
    shares = np.add.reduceat(spectrum, edges[:-1], axis=1)
    shares /= np.maximum(spectrum.sum(axis=1, keepdims=True), FLOOR**2)

    envelope = _squared_envelope(centred, sampling_rate_hz)
    envelope = envelope / np.maximum(envelope.mean(axis=1, keepdims=True), FLOOR**2) - 1.0
    lines = np.abs(np.fft.rfft(envelope * np.hanning(samples), axis=1))
    frequencies = np.fft.rfftfreq(samples, 1.0 / sampling_rate_hz)
    # A short window may have no line in a narrow band: the next one speaks for it.
    places = np.minimum(np.searchsorted(frequencies, ENVELOPE_EDGES_HZ), len(frequencies) - 1)
    peaks = np.stack([lines[:, low : max(high, low + 1)].max(axis=1) for low, high in pairwise(places)], axis=1)
    common = np.sqrt(np.mean(lines[:, places[0] : max(places[-1], places[0] + 1)] ** 2, axis=1, keepdims=True))
    peaks /= np.maximum(common, FLOOR)

    table = np.concatenate([np.stack([np.sqrt(power), kurtosis, crest], axis=1), shares, peaks], axis=1)
    return np.asarray(np.log10(np.maximum(table, FLOOR)), dtype=np.float32)


def featured(windows: NDArray[np.float64], windowing: Windowing, preparation: Preparation | None = None) -> Floats:
    """Windows `(n, channels, samples)` to the task's features `(n, features)` float32."""
    if windowing.features in (RAW, PREPARED):
        raw = windows.transpose(0, 2, 1).reshape(len(windows), -1).astype(np.float32)
        return raw if preparation is None else preparation.run(raw)
    channels = [features(windows[:, channel], windowing.sampling_rate_hz) for channel in range(windowing.channels)]
    return np.concatenate(channels, axis=1)


def _squared_envelope(x: NDArray[np.float64], sampling_rate_hz: float) -> NDArray[np.float64]:
    """Squared magnitude of the analytic signal above 500 Hz, made by zeroing the rest of the spectrum.

    The Hilbert transform by FFT, as in Randall, Antoni 2011, section 4.1; `(n, samples)` to `(n, samples)`.
    """
    samples = x.shape[1]
    spectrum = np.fft.fft(x, axis=1)
    first = int(ENVELOPE_FROM_HZ / sampling_rate_hz * samples)
    spectrum[:, :first] = 0.0
    spectrum[:, (samples + 1) // 2 :] = 0.0
    return np.asarray(np.abs(np.fft.ifft(2.0 * spectrum, axis=1)) ** 2, dtype=np.float64)


@dataclass(frozen=True, kw_only=True)
class Signal:
    """An opened recording: `read(start, stop)` gives that part of the first `wanted` channels it was opened with, as
    `(samples, wanted)` float64 in g."""

    where: str
    """Its file, or what else a message should call it."""
    length: int
    channels: int
    """Of the recording, wanted or not."""
    sampling_rate_hz: float
    read: Callable[[int, int], NDArray[np.float64]]
    remaining: float = 0.0
    """Samples that were left after its end."""


class _Table:
    """Features and labels as they gather."""

    def __init__(self, windowing: Windowing, preparation: Preparation | None) -> None:
        self._windowing = windowing
        self._preparation = preparation
        self._features = feature_count(windowing, None if preparation is None else preparation.features)
        self._most = most_windows(windowing, preparation)
        self._x: list[Floats] = [np.zeros((0, self._features), dtype=np.float32)]
        self._y: list[NDArray[Any]] = [np.zeros(0, dtype=np.float32 if windowing.remaining_most else np.int64)]
        self._count = 0

    def add(self, signal: Signal, start: int, stop: int, number: int) -> None:
        hop, most = self._windowing.hop, self._windowing.remaining_most
        end = start + self._windowing.samples
        for block in _windows(signal, start, stop, self._windowing):
            self._count += len(block)
            if self._count > self._most:
                raise SampleError(
                    f"{signal.where}: expected at most {self._most:,} windows in all; raise the task's hop"
                )
            self._x.append(featured(block, self._windowing, self._preparation))
            if most:
                left = signal.length - end - hop * np.arange(len(block)) + signal.remaining
                self._y.append((np.minimum(left, most) / most).astype(np.float32))
                end += hop * len(block)
            else:
                self._y.append(np.full(len(block), number, dtype=np.int64))

    def arrays(self) -> tuple[Floats, Targets]:
        return np.concatenate(self._x), np.concatenate(self._y)


def _recordings(
    directory: Path, windowing: Windowing, classes: tuple[str, ...], healthy: str
) -> Iterator[tuple[Signal, int]]:
    """Each recording, opened, with its label's number."""
    common = read_settings(directory / "recording.toml")
    for path in list_recordings(directory):
        label = path.parent.name
        if label == UNLABELLED and (classes or windowing.remaining_most):
            continue
        if classes and label not in classes:
            raise SampleError(f"{path.parent}: expected a folder named after a class ({', '.join(classes)})")
        signal = open_recording(path, common | read_settings(path.with_suffix(".toml")), windowing.channels)
        check_channels(signal, windowing)
        if not rates_agree(signal.sampling_rate_hz, windowing.sampling_rate_hz):
            raise SampleError(
                f"{path}: expected {windowing.sampling_rate_hz:g} samples a second as the task has it, "
                f"got {signal.sampling_rate_hz:g}"
            )
        if windowing.remaining_most:
            yield signal, 0
        else:
            yield signal, number_of(label, classes, healthy)


def number_of(label: str, classes: tuple[str, ...], healthy: str) -> int:
    """The label's number: its place among the classes, or for an autoencoder 0 where it is healthy, else 1."""
    return classes.index(label) if classes else int(label not in (healthy, UNLABELLED))


def rates_agree(rate_hz: float, wanted_hz: float) -> bool:
    return abs(rate_hz - wanted_hz) <= RATE_TOLERANCE * wanted_hz


def most_windows(windowing: Windowing, preparation: Preparation | None = None) -> int:
    """So many windows fit in memory as features."""
    prepared = None if preparation is None else preparation.features
    return min(MAX_WINDOWS, MAX_TABLE_VALUES // feature_count(windowing, prepared))


def check_channels(signal: Signal, windowing: Windowing) -> None:
    first_is_enough = windowing.features == VIBRATION and windowing.channels == 1
    if signal.channels != windowing.channels and not first_is_enough:
        raise SampleError(
            f"{signal.where}: expected {windowing.channels:,} channels as the task has it (windowing.channels), "
            f"got {signal.channels:,}"
        )


def _windows(signal: Signal, start: int, stop: int, windowing: Windowing) -> Iterator[NDArray[np.float64]]:
    """Windows that lie wholly within `[start, stop)`, a block at a time, `(n, channels, samples)`."""
    count = (stop - start - windowing.samples) // windowing.hop + 1 if stop - start >= windowing.samples else 0
    signal_at_once = (BLOCK_SAMPLES // windowing.channels - windowing.samples) // windowing.hop
    at_once = max(1, min(signal_at_once, BLOCK_VALUES // (windowing.samples * windowing.channels)))
    for first in range(0, count, at_once):
        number = min(at_once, count - first)
        begin = start + first * windowing.hop
        part = signal.read(begin, begin + (number - 1) * windowing.hop + windowing.samples)
        if not np.isfinite(part).all():
            raise SampleError(f"{signal.where}: expected finite numbers, found nan or infinity after sample {begin:,}")
        yield np.lib.stride_tricks.sliding_window_view(part, windowing.samples, axis=0)[:: windowing.hop]


def list_recordings(directory: Path) -> list[Path]:
    """Recordings in `<directory>/<label>/`, sorted by name, so that every machine sees the same order."""
    if not directory.is_dir():
        raise SampleError(f"{directory}: expected a folder of recordings, found none")
    files = sorted(
        path
        for folder in directory.iterdir()
        if folder.is_dir() and not folder.name.startswith(".")
        for path in folder.iterdir()
        if path.suffix.lower() in _READERS and path.is_file()
    )
    if not files:
        raise SampleError(f"{directory}: expected recordings as <label>/<name>.npy, .csv or .wav, found none")
    if len(files) > MAX_FILES:
        raise SampleError(f"{directory}: expected at most {MAX_FILES:,} recordings, found {len(files):,}")
    return files


def read_settings(path: Path) -> dict[str, float]:
    """`sampling_rate_hz`, `scale` and `remaining` of a recording.toml or sidecar; empty where there is none."""
    if not path.is_file():
        return {}
    if path.stat().st_size > MAX_SETTINGS_BYTES:
        raise SampleError(f"{path}: expected at most {MAX_SETTINGS_BYTES:,} bytes, got {path.stat().st_size:,}")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SampleError(f"{path}: expected TOML, got: {error}") from None
    known = ("sampling_rate_hz", "scale", "remaining")
    for key, value in table.items():
        if key not in known:
            raise SampleError(f"{path}: expected the keys {', '.join(known)}, got {key!r}")
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if key == "remaining":
            if not number or not 0 <= value < math.inf:
                raise SampleError(f"{path}: expected a number of samples, 0 or more, for {key}, got {value!r}")
        elif not number or not 0 < value < math.inf:
            raise SampleError(f"{path}: expected a number above 0 for {key}, got {value!r}")
    return {key: float(value) for key, value in table.items()}


def open_recording(path: Path, settings: dict[str, float], wanted: int) -> Signal:
    """A `.npy`, `.csv` or `.wav` file. `wanted` channels, counted from the first, are what `read` gives, or fewer where
    there are fewer. Raises SampleError."""
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise SampleError(f"{path}: expected at most {MAX_FILE_BYTES:,} bytes, got {size:,}")
    return replace(_READERS[path.suffix.lower()](path, settings, wanted), remaining=settings.get("remaining", 0.0))


def _rate(path: Path, settings: dict[str, float]) -> float:
    if "sampling_rate_hz" not in settings:
        raise SampleError(
            f"{path}: its sampling rate is not known; expected `sampling_rate_hz = …` in recording.toml in the "
            f"gateway's folder, or in {path.with_suffix('.toml').name} beside it"
        )
    return settings["sampling_rate_hz"]


def _open_npy(path: Path, settings: dict[str, float], wanted: int) -> Signal:
    """Reads the header only, and later each part from its place: mapped pages would count as resident memory."""
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            shape, columns_first, dtype = read_header[version](file)
            offset = file.tell()
    except (ValueError, KeyError, EOFError) as error:
        raise SampleError(f"{path}: expected a .npy file of version 1 or 2, got: {str(error)[:200]}") from None
    if dtype.hasobject or dtype.kind + str(dtype.itemsize) not in ("f4", "f8", "i2"):
        raise SampleError(f"{path}: expected float32, float64 or int16, got {dtype}")
    if len(shape) not in (1, 2) or min(shape) < 1:
        raise SampleError(f"{path}: expected samples (n,) or (n, channels), got the shape {shape}")
    if dtype.kind == "i" and "scale" not in settings:
        raise SampleError(f"{path}: int16 needs `scale = …` (g per step) in a .toml beside it or in recording.toml")
    length, channels = int(shape[0]), int(shape[1]) if len(shape) == 2 else 1
    # Columns that lie one after another are read one by one; else whole rows are, at once.
    places, stride = (range(min(wanted, channels)), 1) if columns_first else (range(1), channels)
    needed = offset + dtype.itemsize * math.prod(shape)
    if path.stat().st_size < needed:
        raise SampleError(f"{path}: expected {needed:,} bytes for its shape {shape}, got {path.stat().st_size:,}")
    scale = settings.get("scale", 1.0)

    def read(start: int, stop: int) -> NDArray[np.float64]:
        parts = []
        with path.open("rb") as file:
            for place in places:
                file.seek(offset + (place * length + start * stride) * dtype.itemsize)
                part = np.fromfile(file, dtype=dtype, count=(stop - start) * stride)
                if len(part) != (stop - start) * stride:
                    raise SampleError(f"{path}: became shorter while it was read")
                parts.append(part.reshape(stop - start, stride)[:, :wanted])
        return np.concatenate(parts, axis=1).astype(np.float64) * scale

    return Signal(where=str(path), length=length, channels=channels, sampling_rate_hz=_rate(path, settings), read=read)


def _open_csv(path: Path, settings: dict[str, float], wanted: int) -> Signal:
    values = array("f")
    channels = 0
    with path.open(encoding="utf-8", errors="replace") as file:
        number = 0
        while line := file.readline(MAX_LINE):
            number += 1
            if len(line) == MAX_LINE:
                raise SampleError(
                    f"{path}: expected lines of less than {MAX_LINE:,} characters, line {number} is longer"
                )
            cells = [cell.strip() for cell in line.rstrip(" ,;\r\n").replace(";", ",").split(",")]
            if cells == [""]:
                continue
            try:
                row = [float(cell) for cell in cells[:wanted]]
            except ValueError:
                if number > 1:
                    raise SampleError(
                        f"{path}: expected a number in line {number}, got {line[:40].strip()!r}"
                    ) from None
                continue
            channels = channels or len(cells)
            if len(row) != min(wanted, channels):
                raise SampleError(f"{path}: expected {channels} numbers in line {number} as above, got {len(cells)}")
            values.extend(row)
            if len(values) > MAX_CSV_SAMPLES:
                raise SampleError(f"{path}: expected at most {MAX_CSV_SAMPLES:,} numbers; store a longer one as .npy")
    channels = max(channels, 1)
    signal = np.array(values, dtype=np.float32).reshape(-1, min(wanted, channels))
    scale = settings.get("scale", 1.0)
    return Signal(
        where=str(path),
        length=len(signal),
        channels=channels,
        sampling_rate_hz=_rate(path, settings),
        read=lambda start, stop: signal[start:stop].astype(np.float64) * scale,
    )


def _open_wav(path: Path, settings: dict[str, float], wanted: int) -> Signal:
    try:
        with wave.open(os.fspath(path), "rb") as file:
            channels, width, rate, length = (
                file.getnchannels(),
                file.getsampwidth(),
                file.getframerate(),
                file.getnframes(),
            )
    except (wave.Error, EOFError) as error:
        raise SampleError(f"{path}: expected a PCM .wav file, got: {error or 'a truncated one'}") from None
    if width not in (2, 3, 4):
        raise SampleError(f"{path}: expected PCM of 16, 24 or 32 bits, got {8 * width}")
    if "sampling_rate_hz" in settings and abs(settings["sampling_rate_hz"] - rate) > RATE_TOLERANCE * rate:
        raise SampleError(f"{path}: its .toml says {settings['sampling_rate_hz']:g} samples a second, the file {rate}")
    scale = settings.get("scale", 2.0 ** (1 - 8 * width))
    used = min(wanted, channels)

    def read(start: int, stop: int) -> NDArray[np.float64]:
        with wave.open(os.fspath(path), "rb") as file:
            file.setpos(start)
            data = file.readframes(stop - start)
        if len(data) != (stop - start) * channels * width:
            raise SampleError(f"{path}: expected {length:,} frames as its header says, the file is shorter")
        frames = np.frombuffer(data, dtype=np.uint8).reshape(stop - start, channels, width)[:, :used]
        # Left-aligned in 32 bits, so that 24-bit values carry their sign.
        padded = np.zeros((stop - start, used, 4), dtype=np.uint8)
        padded[:, :, 4 - width :] = frames
        return (padded.view("<i4")[:, :, 0] >> (32 - 8 * width)).astype(np.float64) * scale

    return Signal(where=str(path), length=length, channels=channels, sampling_rate_hz=float(rate), read=read)


_READERS: dict[str, Callable[[Path, dict[str, float], int], Signal]] = {
    ".npy": _open_npy,
    ".csv": _open_csv,
    ".wav": _open_wav,
}
