"""Windows as arrays in the place of a gateway's recordings, as an engineer has them in a notebook.

    x   (n, …) numbers: windows as they were cut, which nobody cuts again; each has the shape that the task's windowing
        says, (samples, channels), or that of a bundle's inputs; (samples,) will do for one channel
    y   (n,) labels: names, or their places in the task's classes. For an autoencoder names, or 0 for healthy; it takes
        x alone for windows that are all healthy. For a regressor the life that is left, in samples.

Owns what such arrays must be, and which of a gateway's windows are held out: the last `held_out` share of each label's.
Features are made of them as a gateway makes them of recordings. Refuses to know about models and rounds. What is wrong
is one `ArrayError`, which says whose it is, what was expected and what came.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from fedmq_edge_node.samples import (
    BLOCK_VALUES,
    UNLABELLED,
    Floats,
    Preparation,
    Samples,
    Targets,
    feature_count,
    featured,
)
from fedmq_edge_node.service import Source
from fedmq_protocol.task import Task, Windowing
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "ArrayError",
    "ArraySource",
    "Arrays",
    "Given",
    "classes_in",
    "features_of",
    "life_in",
    "shape_of",
    "windows_of",
]

Given = ArrayLike | tuple[ArrayLike, ArrayLike]
"""What somebody gives for a gateway: `(x, y)`, or x alone."""

MOST_LABELS_TOLD = 32
MOST_LETTERS_TOLD = 512
"""Of labels in a gateway's birth, which is bounded; where there are more, they are told as one."""


class ArrayError(ValueError):
    """Arrays that cannot be used: whose, what was expected, what came."""


@dataclass(frozen=True, kw_only=True)
class Arrays:
    """What was given, looked at so far as that needs no task."""

    where: str
    """Whose it is, for a complaint."""
    x: NDArray[Any]
    """`(n, …)` finite numbers, n at least 1."""
    y: NDArray[Any] | None
    """`(n,)` strings, integers or finite floats."""


def windows_of(where: str, given: Given) -> Arrays:
    """Raises ArrayError for what is no windows, or holds what is no number."""
    if isinstance(given, tuple) and len(given) != 2:
        raise ArrayError(f"{where}: expected (windows, labels), got a tuple of {len(given)}")
    x = _array(f"{where}, windows", given[0] if isinstance(given, tuple) else given)
    if x.ndim < 2 or x.dtype.kind not in "fiu":
        raise ArrayError(
            f"{where}: expected windows (n, …) of numbers, or the tuple (windows, labels), got {x.shape} of {x.dtype};"
            " a single window is x[None]"
        )
    if not len(x):
        raise ArrayError(f"{where}: expected at least one window, got none: leave it out")
    finite = np.isfinite(x.reshape(len(x), -1)).all(axis=1)
    if not finite.all():
        bad = np.flatnonzero(~finite)
        raise ArrayError(
            f"{where}: expected finite numbers, got NaN or infinity in {len(bad):,} of {len(x):,} windows, first in"
            f" window {bad[0]:,}: drop them"
        )
    y = None if not isinstance(given, tuple) else _read_labels(where, _array(f"{where}, labels", given[1]), len(x))
    return Arrays(where=where, x=x, y=y)


def _array(what: str, given: ArrayLike) -> NDArray[Any]:
    try:
        return np.asarray(given)
    except ValueError as error:
        raise ArrayError(f"{what}: expected an array, got what makes none: {error}") from None


def _read_labels(where: str, y: NDArray[Any], windows: int) -> NDArray[Any]:
    """`(n,)` strings, integers or finite floats."""
    if y.dtype.kind == "O":
        y = np.array([str(label) for label in y.ravel()]).reshape(y.shape)
    if y.shape != (windows,) or y.dtype.kind not in "Ufiub":
        raise ArrayError(
            f"{where}: expected labels ({windows:,},), one for each window, got {y.shape} of {y.dtype}; of one-hot rows"
            " take y.argmax(axis=1)"
        )
    if y.dtype.kind == "f" and not np.isfinite(y).all():
        first = np.flatnonzero(~np.isfinite(y))[0]
        raise ArrayError(f"{where}: expected finite labels, got NaN or infinity, first at {first:,}")
    return y.astype(np.int64) if y.dtype.kind == "b" else y


def shape_of(every: Sequence[Arrays]) -> tuple[int, ...]:
    """The shape of one window, which all have. Raises ArrayError."""
    first = every[0]
    for arrays in every:
        if arrays.x.shape[1:] != first.x.shape[1:]:
            raise ArrayError(
                f"{arrays.where}: expected windows of the shape {first.x.shape[1:]}, as {first.where} has, got"
                f" {arrays.x.shape[1:]}"
            )
    return first.x.shape[1:]


def classes_in(every: Iterable[Arrays]) -> tuple[str, ...]:
    """The labels of all: names by the alphabet with `normal` first, or "0" to the largest number. Raises ArrayError."""
    names: set[str] = set()
    largest = -1
    for arrays in every:
        labels = _labels(arrays)
        if labels.dtype.kind == "U":
            names.update(labels.tolist())
        else:
            largest = max(largest, int(labels.max()))
        if names and largest >= 0:
            raise ArrayError(
                f"{arrays.where}: expected labels of one kind everywhere, got names here and numbers there"
            )
    return tuple(sorted(names, key=lambda name: (name != "normal", name)) or map(str, range(largest + 1)))


def life_in(every: Iterable[Arrays]) -> float:
    """The longest life left of all, in samples. Raises ArrayError."""
    return max(float(_life(arrays).max()) for arrays in every)


def _life(arrays: Arrays) -> NDArray[np.float64]:
    """Samples of life left, `(n,)`."""
    y = arrays.y
    if y is None or y.dtype.kind == "U" or y.min() < 0:
        got = "windows alone" if y is None else "names" if y.dtype.kind == "U" else f"{y.min()}"
        raise ArrayError(f"{arrays.where}: expected for each window the samples of life left, 0 or more, got {got}")
    return y.astype(np.float64)


def _labels(arrays: Arrays) -> NDArray[Any]:
    """Names or places, `(n,)`."""
    if arrays.y is None:
        raise ArrayError(f"{arrays.where}: expected (windows, labels), got windows alone")
    if arrays.y.dtype.kind == "f":
        raise ArrayError(
            f"{arrays.where}: expected labels as names or whole numbers, got {arrays.y.dtype}: y.astype(int)"
        )
    if arrays.y.dtype.kind != "U" and arrays.y.min() < 0:
        raise ArrayError(f"{arrays.where}: expected labels of 0 or more, got {arrays.y.min()}")
    return arrays.y


class ArraySource(Source):
    """What a gateway knows of its recordings, made of arrays; `x` and `y` are as `Samples` has them, all of them.

    Raises ArrayError for windows and labels that do not fit the task.
    """

    def __init__(
        self,
        arrays: Arrays,
        task: Task,
        inputs: tuple[int, ...] | None = None,
        preparation: Preparation | None = None,
    ) -> None:
        windowing = task.windowing
        self.x = features_of(arrays, windowing, inputs, preparation)
        self.y = _targets(arrays, task)
        self.samples = _split(self.x, self.y, task)
        names = np.full(len(self.x), "windows") if arrays.y is None or arrays.y.dtype.kind == "f" else arrays.y
        labels, counts = np.unique(names, return_counts=True)
        if len(labels) > MOST_LABELS_TOLD or sum(len(str(label).encode()) for label in labels) > MOST_LETTERS_TOLD:
            labels, counts = np.array(["windows"]), np.array([len(self.x)])
        self._signal = {str(label): int(count) * windowing.hop for label, count in zip(labels, counts, strict=True)}

    def signal_samples(self) -> dict[str, int]:
        return self._signal

    def load(
        self, windowing: Windowing, classes: tuple[str, ...], healthy: str, preparation: Preparation | None = None
    ) -> Samples:
        return self.samples

    def changed(self) -> bool:
        return False


def features_of(
    arrays: Arrays,
    windowing: Windowing,
    inputs: tuple[int, ...] | None = None,
    preparation: Preparation | None = None,
) -> Floats:
    """As a gateway makes them of recordings, `(n, features)` float32; `inputs` is a shape that windows may have beside
    the windowing's own, `preparation` makes the features of the set `bundle`. Raises ArrayError."""
    wanted = windowing.samples, windowing.channels
    shapes = {_squeezed(shape) for shape in (wanted, inputs or wanted, (math.prod(wanted),))}
    if _squeezed(arrays.x.shape[1:]) not in shapes:
        expected = f"{wanted} (samples, channels)" if inputs is None else f"{inputs}, as the bundle's model takes them"
        raise ArrayError(
            f"{arrays.where}: expected windows of the shape {expected}, got {arrays.x.shape[1:]}; cut them so, or name"
            " another task.windowing"
        )
    windows = arrays.x.reshape(len(arrays.x), *wanted)
    at_once = max(1, BLOCK_VALUES // math.prod(wanted))
    made = [
        featured(windows[start : start + at_once].astype(np.float64).transpose(0, 2, 1), windowing, preparation)
        for start in range(0, len(windows), at_once)
    ]
    x = np.concatenate(made)
    assert x.shape[1] == (feature_count(windowing) if preparation is None else preparation.features)
    return x


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def _targets(arrays: Arrays, task: Task) -> Targets:
    """`(n,)` as `Samples` has them."""
    if task.objective == "regress":
        most = task.windowing.remaining_most
        return np.asarray(np.minimum(_life(arrays), most) / most, dtype=np.float32)
    if task.objective == "reconstruct" and arrays.y is None:
        return np.zeros(len(arrays.x), dtype=np.int64)
    labels = _labels(arrays)
    if task.objective == "reconstruct":
        healthy = np.isin(labels, (task.anomaly_label, UNLABELLED)) if labels.dtype.kind == "U" else labels == 0
        return (~healthy).astype(np.int64)
    if labels.dtype.kind == "U":
        places = {name: place for place, name in enumerate(task.classes)}
        y = np.array([places.get(name, -1) for name in labels.tolist()], dtype=np.int64)
    else:
        y = np.where(labels < len(task.classes), labels.astype(np.int64), -1)
    if (strange := labels[y < 0]).size:
        known = ", ".join(task.classes[:20]) + (", …" if len(task.classes) > 20 else "")
        places_text = "" if labels.dtype.kind == "U" else f" by their places 0 to {len(task.classes) - 1}"
        raise ArrayError(
            f"{arrays.where}: expected labels among the task's classes ({known}){places_text}, got"
            f" {str(strange[0])!r} in {len(strange):,} of {len(labels):,} windows"
        )
    return y


def _split(x: Floats, y: Targets, task: Task) -> Samples:
    """An autoencoder trains on healthy windows alone, and of others only the held-out end is used."""
    held = np.zeros(len(y), dtype=bool)
    groups = (
        [np.arange(len(y))] if task.objective == "regress" else [np.flatnonzero(y == label) for label in np.unique(y)]
    )
    for rows in groups:
        held[rows[len(rows) - int(len(rows) * task.windowing.held_out) :]] = True
    trained = ~held & (y == 0) if task.objective == "reconstruct" else ~held
    return Samples(
        train_x=x[trained],
        train_y=y[trained],
        held_x=x[held],
        held_y=y[held],
        raw_bytes=2 * len(x) * task.windowing.hop * task.windowing.channels,
        recordings=1,
    )
