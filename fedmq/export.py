"""`fedmq export`: a version of a task's model as a file for machines that run no fedmq.

Owns the command's words, how a version and its scaler are found in a coordinator's folder, which is read and never
written, and how far the file agrees with the model that was trained. What a format is stands in `fedmq_models`; each
one has an option here that takes the file's name, and a function in `_WRITERS`.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import numpy as np
    from fedmq_edge_node.samples import Scaler
    from fedmq_models.graph import Graph
    from fedmq_models.int8 import Int8Model
    from fedmq_protocol.task import Task
    from numpy.typing import NDArray

__all__ = ["Source", "add_parser", "read_version"]

_ABOUT = """\
Writes a version of a task's model as a file for other machines, from a coordinator's state directory, also while the
coordinator runs. --onnx and --tflite make a graph for one window, with the scaling of features inside: what they take
are features as a gateway makes them, or raw samples where the task has those. --c-int8 makes one C99 file in 8-bit
integers for microcontrollers, with the scaling folded in: no float, no allocation, no library. Its comment says how it
is used. The ranges of its integers come from recordings (--calibrate), on which it is then compared with the model as
it was trained.
"""

_EPILOG = """\
examples:
  fedmq export --onnx model.onnx --tflite model.tflite --state /var/lib/fedmq/coordinator
  fedmq export --c-int8 model.c --state /var/lib/fedmq/coordinator --calibrate recordings
  fedmq export --c-int8 pump.c --prefix pump --task pumps --version 40 --state DIR --calibrate recordings

recordings holds <label>/<name>.npy, .csv or .wav, as a gateway's data_dir does. A few minutes of each condition that
the model will meet are enough. For an autoencoder healthy ones do, but what lies far beyond them is then cut off inside
the model: with faulty ones beside them its scores of faults are closer to those in float, and both AUCs are told.

To see that a microcontroller computes what it should, compile with -DFEDMQ_SELF_TEST and call fedmq_self_test().
"""

BATCH = 512
"""Windows that go through the float model at a time."""

RELATIVE_FLOOR = 1e-9
"""Scores are compared relative to the float one, or to this."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    export = commands.add_parser(
        "export",
        help="write a model for other machines, such as C for microcontrollers",
        description=_ABOUT,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    formats = export.add_argument_group("formats")
    formats.add_argument("--onnx", type=Path, metavar="FILE", help="ONNX, operator set 18, for one window")
    formats.add_argument("--tflite", type=Path, metavar="FILE", help="TFLite in float32, for one window")
    formats.add_argument("--c-int8", type=Path, metavar="FILE", help="one C99 file, in 8-bit integers")
    which = export.add_argument_group("which model")
    which.add_argument(
        "--state", type=Path, required=True, metavar="DIR", help="the coordinator's state directory (its state_dir)"
    )
    which.add_argument("--task", metavar="NAME", help="of this task (default: the only one)")
    which.add_argument("--version", type=_version, metavar="N", help="of the lineage in force (default: the newest)")
    integers = export.add_argument_group("with --c-int8")
    integers.add_argument(
        "--calibrate", type=Path, metavar="DIR", help="recordings that ranges are taken from (needed)"
    )
    integers.add_argument(
        "--prefix", default="fedmq", metavar="NAME", help="that every name in the file begins with (default: fedmq)"
    )
    export.set_defaults(run=_export)


def _version(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"expected a version, 0 or more, got {text}")
    return number


@dataclass(frozen=True, kw_only=True)
class Source:
    """A version as it is exported."""

    task: Task
    lineage: int
    version: int
    digest: bytes
    flat: NDArray[np.float32]
    """`(P,)` parameters."""
    scaler: Scaler | None
    """None where the task takes features as they are."""
    bundle: bytes | None = None
    """Of a model that somebody brought."""

    @property
    def title(self) -> str:
        return f"task {self.task.name}, lineage {self.lineage}, version {self.version}"


def read_version(state_dir: Path, task_name: str | None = None, number: int | None = None) -> Source:
    """A version of the lineage in force, the newest where none is named; nothing is written.

    Raises LedgerError for a folder without a ledger, ModelError for a version that cannot be had, ValueError for a
    task that is not there or has no scaler yet.
    """
    from fedmq_coordinator.lineage import steps_of
    from fedmq_coordinator.models import ModelStore
    from fedmq_edge_node.work import read_scaler
    from fedmq_protocol.task import to_parameters

    from fedmq.programs import load_task, open_ledger

    ledger = open_ledger(state_dir)
    try:
        with ledger.snapshot():
            rows = ledger.tasks()
            names = [row.name for row in rows if row.configured] or [row.name for row in rows]
            if task_name is None and len(names) != 1:
                raise ValueError(f"--task: expected one of {', '.join(names) or 'none yet'} in {state_dir}, got none")
            book = ledger.book(names[0] if task_name is None else task_name)
            lineage = int(book.get("lineage") or 0)
            newest = book.last_version(lineage)
            if newest is None:
                raise ValueError(f"task {book.name!r} in {state_dir} has no version yet: its coordinator has not begun")
            task = load_task(book)
            wanted = newest if number is None else book.version(lineage, number)
            if wanted is None:
                raise ValueError(
                    f"--version: expected 0 to {newest.number} of task {book.name!r} (lineage {lineage}), got {number}"
                )
            if not (state_dir / "models").is_dir():
                raise ValueError(f"{state_dir / 'models'}: expected the folder of model versions, found none")
            steps = steps_of(book, ModelStore(state_dir / "models"), lineage, wanted.number, task)
            stored, bundle = book.get("scaler"), book.get("bundle")
    finally:
        ledger.close()
    if task.windowing.scaling != "none" and stored is None:
        raise ValueError(f"task {book.name!r} has no scaler yet: export it after its round of statistics")
    return Source(
        task=task,
        lineage=lineage,
        version=wanted.number,
        digest=wanted.digest,
        flat=to_parameters(steps, task.grid_bits),
        scaler=None if task.windowing.scaling == "none" else read_scaler(stored, task),
        bundle=bundle or None,
    )


def _export(arguments: argparse.Namespace) -> None:
    wanted = {name: target for name in _WRITERS if (target := getattr(arguments, name)) is not None}
    if not wanted:
        options = ", ".join(f"--{name.replace('_', '-')} FILE" for name in _WRITERS)
        raise ValueError(f"expected a format to write: {options}")
    source = read_version(arguments.state, arguments.task, arguments.version)
    model = source.task.model
    sizes = "-".join(str(size) for size in model.sizes)
    print(f"{source.title}: {model.kind} {sizes}, {model.parameters:,} parameters")
    for name, target in wanted.items():
        for line in _WRITERS[name](source, target, arguments):
            print(line)
        print(f"wrote {target}")


# -- graphs ------------------------------------------------------------------------------------------------------


def _graph(source: Source) -> Graph:
    """For one window of unscaled features, or of raw samples where the model's bundle makes its features."""
    from fedmq_models.builtin import infer_graph
    from fedmq_models.bundle import from_bytes
    from fedmq_models.standalone import chained, standalone

    model, scaler, prepare = source.task.model, source.scaler, None
    if model.kind != "graph":
        infer = infer_graph(model, 1)
    elif source.bundle is not None:
        bundle = from_bytes(source.bundle)
        infer, prepare = bundle.infer_one, bundle.prepare
    else:
        raise ValueError(f"{source.title}: the bundle of its model is not in the ledger")
    if scaler is None:
        graph = standalone(infer, source.flat)
    else:
        graph = standalone(infer, source.flat, scaler.mean, scaler.scale)
    return graph if prepare is None else chained(prepare, graph)


def _takes(graph: Graph, source: Source) -> str:
    raw = source.task.windowing.features in ("raw", "bundle")
    what = "raw samples, row after row, channels side by side" if raw else "unscaled features as a gateway makes them"
    return f"takes {graph.inputs[0][0]} {graph.inputs[0][1]}, {what}"


def _onnx(source: Source, target: Path, arguments: argparse.Namespace) -> Iterable[str]:
    from fedmq_models.onnx_format import to_onnx

    graph = _graph(source)
    target.write_bytes(to_onnx(graph, output_names=("out",), name=source.task.name))
    return [_takes(graph, source)]


def _tflite(source: Source, target: Path, arguments: argparse.Namespace) -> Iterable[str]:
    from fedmq_models.tflite_format import to_tflite

    graph = _graph(source)
    target.write_bytes(to_tflite(graph, output_names=("out",)))
    return [_takes(graph, source)]


# -- C in 8-bit integers -----------------------------------------------------------------------------------------


def _c_int8(source: Source, target: Path, arguments: argparse.Namespace) -> Iterable[str]:
    import numpy as np
    from fedmq_edge_node.samples import load_test
    from fedmq_models import int8

    if arguments.calibrate is None:
        raise ValueError("--c-int8 needs --calibrate DIR, a folder of recordings to take the integers' ranges from")
    task, scaler = source.task, source.scaler
    if task.model.kind not in INTEGER_KINDS:
        raise ValueError(f"--c-int8: expected a model of {', '.join(INTEGER_KINDS)}, the task has {task.model.kind}")
    x, targets = load_test(arguments.calibrate, task.windowing, task.classes, task.anomaly_label)
    y = targets.astype(np.int64)
    model = int8.quantize(
        task.model,
        source.flat,
        None if scaler is None else scaler.mean,
        None if scaler is None else scaler.scale,
        x,
    )
    about = [source.title, f"parameters sha256 {source.digest.hex()}", f"calibrated on {len(x):,} windows"]
    text = int8.to_c(model, prefix=arguments.prefix, about=about, labels=task.classes, features=_feature_names(task))
    agreement = [
        f"calibrated and compared on {len(x):,} windows of {arguments.calibrate}",
        *(_classes_agree(source, model, x, y) if task.classes else _scores_agree(source, model, x, y)),
        f"flash {model.flash_bytes:,} bytes of constants (float32: {4 * task.model.parameters:,}), and its code",
        f"RAM {model.ram_bytes:,} bytes: {2 * model.buffer_bytes:,} of buffers on the stack, "
        f"{model.spec.sizes[0] + model.spec.sizes[-1]:,} of input and output",
    ]
    target.write_text(text, encoding="ascii")
    return agreement


INTEGER_KINDS = ("softmax", "mlp", "autoencoder")
"""Models whose integers are known to keep what they say."""


def _feature_names(task: Task) -> list[str]:
    from fedmq_edge_node.samples import FEATURE_NAMES

    channels = task.windowing.channels
    if task.model.sizes[0] != channels * len(FEATURE_NAMES) or task.windowing.features == "raw":
        return []
    prefixes = [""] if channels == 1 else [f"channel_{number + 1}_" for number in range(channels)]
    return [prefix + name for prefix in prefixes for name in FEATURE_NAMES]


def _floats(source: Source, x: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Scaled features `(n, inputs)` and what the model makes of them, `(n, outputs)`."""
    import numpy as np
    from fedmq_edge_node.runtimes import NumpyEngine
    from fedmq_edge_node.work import read_scaler

    scaled = (source.scaler or read_scaler(None, source.task)).apply(x)
    engine = NumpyEngine(source.task.model)
    parts = [engine.infer(source.flat, scaled[start : start + BATCH]) for start in range(0, len(x), BATCH)]
    return scaled, np.concatenate(parts)


def _integers(model: Int8Model, x: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
    """The same in integers."""
    from fedmq_models import int8

    given = int8.quantize_inputs(model, int8.to_fixed(model, x))
    return given, int8.reference(model, given)


def _classes_agree(source: Source, model: Int8Model, x: NDArray[np.float32], y: NDArray[np.int64]) -> list[str]:
    from fedmq_models import int8

    expected = _floats(source, x)[1].argmax(axis=1)
    found = int8.classes(_integers(model, x)[1])
    return [
        f"agreement {_percent((found == expected).mean())} of windows are given the same class as in float",
        f"accuracy {_percent((found == y).mean())}, in float {_percent((expected == y).mean())}",
    ]


def _scores_agree(source: Source, model: Int8Model, x: NDArray[np.float32], y: NDArray[np.int64]) -> list[str]:
    import numpy as np
    from fedmq_edge_node.runtimes import anomaly_score
    from fedmq_edge_node.trainer import area_under_curve
    from fedmq_models import int8

    scaled, reconstruction = _floats(source, x)
    expected = anomaly_score(scaled, reconstruction).astype(np.float64)
    given, out = _integers(model, x)
    found = int8.anomaly_score(given, out) * (model.input_scale**2 / model.spec.sizes[0])
    apart = np.abs(found - expected) / np.maximum(expected, RELATIVE_FLOOR)
    lines = [f"agreement anomaly scores differ from float by {_percent(float(np.median(apart)))} (median)"]
    faulty = y != 0
    if faulty.any() and not faulty.all():
        auc, float_auc = (area_under_curve(scores[faulty], scores[~faulty]) for scores in (found, expected))
        lines.append(f"AUC {auc:.4f}, in float {float_auc:.4f}")
    return lines


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


_WRITERS: dict[str, Callable[[Source, Path, argparse.Namespace], Iterable[str]]] = {
    "onnx": _onnx,
    "tflite": _tflite,
    "c_int8": _c_int8,
}
"""By the name of the option: writes the file, and gives back what to say of it."""
