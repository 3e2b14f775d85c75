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
    from fedmq_models.tflite_int8 import Precision, TFLiteModel
    from fedmq_protocol.task import Task
    from numpy.typing import NDArray

__all__ = ["Source", "add_parser", "read_version"]

_ABOUT = """\
Writes a version of a task's model as a file for other machines, from a coordinator's state directory, also while the
coordinator runs. --onnx and --tflite make a graph for one window, with the scaling of features inside: what they take
are features as a gateway makes them, or raw samples where the task has those.

--tflite-int8 makes a TFLite file in integers alone, input and output too, for TFLite Micro and for accelerators that
have no float. What it takes are scaled features; FILE.json beside it says how to scale them, and what its integers are
worth. It needs pip install 'fedmq[export]'. --c-int8 makes one C99 file in 8-bit integers for microcontrollers, with
the scaling folded in: no float, no allocation, no library. Its comment says how it is used. The ranges of both come
from recordings (--calibrate), and on recordings (--compare) each is compared with the model as it was trained.

--sensor-image makes the same integers as data, for a sensor that takes models over its line and runs them on its own
samples: docs/frames.md. It is for tasks that learn from raw samples, and needs --sample-scale.
"""

_EPILOG = """\
examples:
  fedmq export --onnx model.onnx --tflite model.tflite --state /var/lib/fedmq/coordinator
  fedmq export --tflite-int8 model.tflite --state /var/lib/fedmq/coordinator --calibrate recordings --compare others
  fedmq export --c-int8 model.c --state /var/lib/fedmq/coordinator --calibrate recordings
  fedmq export --sensor-image model.img --sample-scale 0.03824 --state DIR --calibrate recordings
  fedmq export --c-int8 pump.c --prefix pump --task pumps --version 40 --state DIR --calibrate recordings

recordings holds <label>/<name>.npy, .csv or .wav, as a gateway's data_dir does. A few minutes of each condition that
the model will meet are enough. For an autoencoder healthy ones do, but what lies far beyond them is then cut off inside
the model: with faulty ones beside them its scores of faults are closer to those in float, and both AUCs are told.

A --tflite-int8 file that loses more than 1 % is made again with 16-bit activations, first between the layers and then
everywhere. That is told. If it still loses more, it is not written.

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
    formats.add_argument("--tflite-int8", type=Path, metavar="FILE", help="TFLite in integers alone, for one window")
    formats.add_argument("--c-int8", type=Path, metavar="FILE", help="one C99 file, in 8-bit integers")
    formats.add_argument(
        "--sensor-image", type=Path, metavar="FILE", help="8-bit integers as data, for a sensor's slot"
    )
    which = export.add_argument_group("which model")
    which.add_argument(
        "--state", type=Path, required=True, metavar="DIR", help="the coordinator's state directory (its state_dir)"
    )
    which.add_argument("--task", metavar="NAME", help="of this task (default: the only one)")
    which.add_argument("--version", type=_version, metavar="N", help="of the lineage in force (default: the newest)")
    integers = export.add_argument_group("with --tflite-int8, --c-int8 and --sensor-image")
    integers.add_argument(
        "--calibrate", type=Path, metavar="DIR", help="recordings that ranges are taken from (needed)"
    )
    integers.add_argument(
        "--compare",
        type=Path,
        metavar="DIR",
        help="recordings that integers and float are compared on (default: those of --calibrate)",
    )
    integers.add_argument(
        "--prefix",
        default="fedmq",
        metavar="NAME",
        help="that every name in the C file begins with (default: fedmq)",
    )
    integers.add_argument(
        "--sample-scale",
        type=float,
        metavar="UNITS",
        help="what one step of the sensor's samples is worth, in the units of the recordings (--sensor-image needs it)",
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


def _graph(source: Source, *, scaling: bool = True) -> Graph:
    """For one window of unscaled features, or of raw samples where the model's bundle makes its features. Without
    `scaling` for one of scaled features."""
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
    if not scaling:
        return standalone(infer, source.flat)
    graph = standalone(infer, source.flat, *(() if scaler is None else (scaler.mean, scaler.scale)))
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


# -- TFLite in integers -------------------------------------------------------------------------------------------


def _tflite_int8(source: Source, target: Path, arguments: argparse.Namespace) -> Iterable[str]:
    """In the narrowest integers that lose little."""
    from fedmq_models.graph import GraphError
    from fedmq_models.tflite_int8 import CALIBRATION_WINDOWS, PRECISIONS, Calibration, TFLiteModel

    task = source.task
    windows = _windows(task, arguments, "--tflite-int8", most=CALIBRATION_WINDOWS)
    x = _scaled(source, windows.x)
    graph = _graph(source, scaling=False)
    calibration = Calibration(graph, _scaled(source, windows.calibrate))
    expected = TFLiteModel(calibration.in_float).run(x)
    lost = []
    for precision in PRECISIONS:
        try:
            data = calibration.quantize(precision)
            model = TFLiteModel(data)
            found = model.run(x)
        except (GraphError, RuntimeError) as error:
            lost.append(f"with {_ACTIVATIONS[precision]} it does not run ({str(error).splitlines()[0]})")
            continue
        enough, told = _compared(task, x, windows.y, found, expected)
        if enough:
            break
        lost.append(f"with {_ACTIVATIONS[precision]} it loses too much ({told})")
    else:
        raise ValueError(f"{source.title}: {'; '.join(lost)}; --tflite writes it in float")
    target.write_bytes(data)
    beside = target.with_name(f"{target.name}.json")
    beside.write_text(_about_integers(source, model), encoding="utf-8")
    return [
        *lost,
        windows.told,
        told,
        f"integers throughout: int8 weights, {_ACTIVATIONS[precision]}",
        f"{len(data):,} bytes, in float {len(calibration.in_float):,}",
        f"takes {graph.inputs[0][0]} {graph.inputs[0][1].shape} as {model.input.dtype}; {beside} says how",
    ]


_ACTIVATIONS: dict[Precision, str] = {
    "int8": "int8 activations",
    "mixed": "int16 activations, int8 where they meet weights",
    "int16": "int16 activations",
}
MOST_LOSS = 0.01
"""What integers may lose: of accuracy, AUC and R2 as a difference, of an RMSE as a share of it."""


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Of recordings, as unscaled features."""

    calibrate: NDArray[np.float32]
    """`(n, features)` that ranges are taken from."""
    x: NDArray[np.float32]
    """`(m, features)` to compare on, with labels or targets `y` `(m,)`."""
    y: NDArray[np.int64] | NDArray[np.float32]
    told: str


def _windows(task: Task, arguments: argparse.Namespace, option: str, most: int | None = None) -> Windows:
    """`most` are calibrated on; of more, as many are taken evenly."""
    import numpy as np
    from fedmq_edge_node.samples import load, load_test

    if arguments.calibrate is None:
        raise ValueError(f"{option} needs --calibrate DIR, a folder of recordings to take the integers' ranges from")
    calibrate, compare = arguments.calibrate, arguments.compare or arguments.calibrate
    given = (task.windowing, task.classes, task.anomaly_label)
    x, y = load_test(compare, *given)
    if task.windowing.remaining_most:
        # A test has each recording's last window alone, which is all of a range that there may be.
        samples = load(calibrate, *given)
        windows = np.concatenate([samples.train_x, samples.held_x])
    else:
        windows = x if calibrate == compare else load_test(calibrate, *given)[0]
    if most is not None:
        windows = windows[:: -(-len(windows) // most)]
    told = f"calibrated on {len(windows):,} windows of {calibrate}, compared on {len(x):,} of {compare}"
    return Windows(calibrate=windows, x=x, y=y, told=told)


def _scaled(source: Source, x: NDArray[np.float32]) -> NDArray[np.float32]:
    from fedmq_edge_node.work import read_scaler

    return (source.scaler or read_scaler(None, source.task)).apply(x)


def _compared(
    task: Task,
    x: NDArray[np.float32],
    y: NDArray[np.int64] | NDArray[np.float32],
    found: NDArray[np.float32],
    expected: NDArray[np.float32],
) -> tuple[bool, str]:
    """Whether integers (`found`) are near enough to float (`expected`), and in words."""
    from fedmq_edge_node.trainer import judge

    integers, floats = (judge(out, x, y, task.objective, task.windowing.remaining_most) for out in (found, expected))
    if task.objective == "classify":
        same = (found.argmax(axis=1) == expected.argmax(axis=1)).mean()
        told = (
            f"accuracy {_percent(integers.accuracy)}, in float {_percent(floats.accuracy)}; "
            f"{_percent(same)} of windows are given the same class"
        )
        return floats.accuracy - integers.accuracy <= MOST_LOSS, told
    if task.objective == "regress":
        told = f"RMSE {integers.metric:.3f} samples, in float {floats.metric:.3f}"
        return integers.metric <= (1 + MOST_LOSS) * floats.metric, told
    told = f"{integers.metric_name.upper()} {integers.metric:.4f}, in float {floats.metric:.4f}"
    return floats.metric - integers.metric <= MOST_LOSS, told


def _about_integers(source: Source, model: TFLiteModel) -> str:
    """What a program must know to use the file, as JSON."""
    import json
    from dataclasses import asdict

    from fedmq_edge_node.samples import SCALED_LIMIT

    task, scaler = source.task, source.scaler
    about: dict[str, object] = {
        "title": source.title,
        "parameters_sha256": source.digest.hex(),
        "objective": task.objective,
        "input": asdict(model.input),
        "output": asdict(model.output),
    }
    if scaler is not None:
        scaling = {"mean": scaler.mean.tolist(), "scale": scaler.scale.tolist(), "limit": SCALED_LIMIT}
        about["scaling"] = scaling
    if names := _feature_names(task):
        about["features"] = names
    if task.classes:
        about["classes"] = list(task.classes)
    if task.windowing.remaining_most:
        about["remaining_most"] = task.windowing.remaining_most
    return json.dumps(about, indent=2) + "\n"


# -- C in 8-bit integers -----------------------------------------------------------------------------------------


def _c_int8(source: Source, target: Path, arguments: argparse.Namespace) -> Iterable[str]:
    import numpy as np
    from fedmq_models import int8

    task, scaler = source.task, source.scaler
    if task.model.kind not in INTEGER_KINDS:
        raise ValueError(f"--c-int8: expected a model of {', '.join(INTEGER_KINDS)}, the task has {task.model.kind}")
    windows = _windows(task, arguments, "--c-int8")
    x, y = windows.x, windows.y.astype(np.int64)
    model = int8.quantize(
        task.model,
        source.flat,
        None if scaler is None else scaler.mean,
        None if scaler is None else scaler.scale,
        windows.calibrate,
    )
    about = [
        source.title,
        f"parameters sha256 {source.digest.hex()}",
        f"calibrated on {len(windows.calibrate):,} windows",
    ]
    text = int8.to_c(model, prefix=arguments.prefix, about=about, labels=task.classes, features=_feature_names(task))
    agreement = [
        windows.told,
        *(_classes_agree(source, model, x, y) if task.classes else _scores_agree(source, model, x, y)),
        f"flash {model.flash_bytes:,} bytes of constants (float32: {4 * task.model.parameters:,}), and its code",
        f"RAM {model.ram_bytes:,} bytes: {2 * model.buffer_bytes:,} of buffers on the stack, "
        f"{model.spec.sizes[0] + model.spec.sizes[-1]:,} of input and output",
    ]
    target.write_text(text, encoding="ascii")
    return agreement


# -- a sensor's image --------------------------------------------------------------------------------------------


def _sensor_image(source: Source, target: Path, arguments: argparse.Namespace) -> Iterable[str]:
    import numpy as np
    from fedmq_edge_node.samples import RAW
    from fedmq_models import int8
    from fedmq_models.sensor_image import SensorImage, image_id, to_bytes

    task, scaler = source.task, source.scaler
    windowing = task.windowing
    if task.model.kind not in INTEGER_KINDS:
        raise ValueError(
            f"--sensor-image: expected a model of {', '.join(INTEGER_KINDS)}, the task has {task.model.kind}"
        )
    if windowing.features != RAW:
        raise ValueError(
            f"--sensor-image: expected a task that learns from raw samples (task.windowing.features = {RAW!r}), since "
            f"a sensor computes no features; the task has {windowing.features!r}"
        )
    if arguments.sample_scale is None:
        raise ValueError("--sensor-image needs --sample-scale UNITS: what one step of the sensor's samples is worth")
    step = float(np.float32(arguments.sample_scale))
    windows = _windows(task, arguments, "--sensor-image")
    x, y = windows.x, windows.y.astype(np.int64)
    mean, scale = (None, None) if scaler is None else (scaler.mean, scaler.scale)
    model = int8.quantize(task.model, source.flat, mean, scale, windows.calibrate, step=step)
    image = SensorImage(
        model=model,
        version=source.version,
        digest=source.digest[:8],
        rate_mhz=round(windowing.sampling_rate_hz * 1000),
        sample_scale=step,
        channels=windowing.channels,
        hop=max(windowing.hop, windowing.samples),
    )
    data = to_bytes(image)
    agreement = [
        windows.told,
        *(_classes_agree(source, model, x, y, step) if task.classes else _scores_agree(source, model, x, y, step)),
        f"takes {windowing.samples:,} samples of {windowing.channels} channels at {windowing.sampling_rate_hz:g} Hz, "
        f"{step:.9g} a step, {image.hop:,} samples from window to window",
        f"id {image_id(data):#010x}, {len(data):,} bytes in a slot, {_work_bytes(model):,} bytes of RAM",
    ]
    target.write_bytes(data)
    return agreement


def _work_bytes(model: Int8Model) -> int:
    """That `fedmq_model.c` runs it in: its inputs, and two buffers as wide as the widest layer."""
    return model.spec.sizes[0] + 2 * max(model.spec.sizes[1:])


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

    scaled = _scaled(source, x)
    engine = NumpyEngine(source.task.model)
    parts = [engine.infer(source.flat, scaled[start : start + BATCH]) for start in range(0, len(x), BATCH)]
    return scaled, np.concatenate(parts)


def _integers(
    model: Int8Model, x: NDArray[np.float32], step: float | None = None
) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
    """The same in integers; of samples in whole steps where there is a `step`."""
    import numpy as np
    from fedmq_models import int8

    if step is not None:
        x = np.clip(np.rint(x / step), -(2**15), 2**15 - 1).astype(np.float32)
    given = int8.quantize_inputs(model, int8.to_fixed(model, x))
    return given, int8.reference(model, given)


def _classes_agree(
    source: Source, model: Int8Model, x: NDArray[np.float32], y: NDArray[np.int64], step: float | None = None
) -> list[str]:
    from fedmq_models import int8

    expected = _floats(source, x)[1].argmax(axis=1)
    found = int8.classes(_integers(model, x, step)[1])
    return [
        f"agreement {_percent((found == expected).mean())} of windows are given the same class as in float",
        f"accuracy {_percent((found == y).mean())}, in float {_percent((expected == y).mean())}",
    ]


def _scores_agree(
    source: Source, model: Int8Model, x: NDArray[np.float32], y: NDArray[np.int64], step: float | None = None
) -> list[str]:
    import numpy as np
    from fedmq_edge_node.runtimes import anomaly_score
    from fedmq_edge_node.trainer import area_under_curve
    from fedmq_models import int8

    scaled, reconstruction = _floats(source, x)
    expected = anomaly_score(scaled, reconstruction).astype(np.float64)
    given, out = _integers(model, x, step)
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
    "tflite_int8": _tflite_int8,
    "c_int8": _c_int8,
    "sensor_image": _sensor_image,
}
"""By the name of the option: writes the file, and gives back what to say of it."""
