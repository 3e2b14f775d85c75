"""`fedmq task build`, `check` and `show`: bundles, on the workstation of whoever brings a model.

Owns the words of these commands and what they print. Only `build` needs PyTorch (the extra "authoring").
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

__all__ = ["add_verbs"]

_BUILD = """\
examples:
  fedmq task build my_model.py:Model --loss cross_entropy --example 1x1024 --output my_model.fedmq
  fedmq task build my_model.py:Model --loss squared_error --example windows.npy --output my_model.fedmq

NAME is a class that needs no arguments, a function that gives a module, or a module. The example says the shape of one
window as the module takes it; a .npy holds windows (n, …), float32. The file goes to the coordinator (task.bundle),
gateways fetch it from there: graphs and numbers, no code. `fedmq task check` proves it on the engines that are here.

What you recommend of windows and training goes into the bundle. It holds for every key of the coordinator's [task] that
its settings leave out; where they say otherwise, they win. `fedmq task show BUNDLE --toml` prints those keys.
"""

_CHECK = """\
example:
  fedmq task check my_model.fedmq

Holds the training graph's gradient against central differences of its loss, and the engines that are installed against
each other: 1e-3 and 1e-5 of the largest gradient at most.
"""

_SHOW = """\
examples:
  fedmq task show my_model.fedmq
  fedmq task show my_model.fedmq --toml >> coordinator.toml
  fedmq task show my_model.fedmq --onnx graphs/

--toml prints the [task] table of the coordinator's settings. Keys of windowing, recipe and codec that you leave out
there are taken from the bundle; those that you state win.
"""

AGREEMENT = 1e-5
DIFFERENCES = 1e-3
COORDINATES = 24


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    def verb(name: str, about: str, epilog: str, run: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        parser = verbs.add_parser(
            name,
            help=about,
            description=about[0].upper() + about[1:] + ".",
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.set_defaults(run=run)
        return parser

    build = verb("build", "make a bundle of a PyTorch module", _BUILD, _build)
    build.add_argument("model", metavar="FILE.py:NAME", help="the module")
    build.add_argument(
        "--loss",
        required=True,
        choices=("cross_entropy", "squared_error", "reconstruction"),
        help="what it is trained for: classes, a number, or its own input",
    )
    build.add_argument("--example", required=True, metavar="SHAPE|FILE.npy", help="one window's shape, or windows")
    build.add_argument(
        "--preprocess",
        metavar="FILE.py:NAME",
        help="a function or module that makes the model's input of windows (n, channels, samples); the example is then"
        " one such window, CHANNELSxSAMPLES",
    )
    build.add_argument("--output", type=Path, required=True, metavar="FILE", help="where the bundle goes")
    build.add_argument("--name", help="of the model (default: NAME)")
    build.add_argument("--batch", type=int, default=32, metavar="N", help="windows of one step (default: 32)")
    build.add_argument(
        "--initial",
        choices=("module", "seed"),
        default="module",
        help="start from the module's own parameters, trained or not, which adds 4 bytes a parameter to the bundle, or"
        " from what the task's seed draws as widely, which adds nothing (default: module)",
    )
    _add_advice(build)
    check = verb("check", "verify a bundle: its gradient, and that engines agree", _CHECK, _check)
    check.add_argument("bundle", type=Path, metavar="BUNDLE")
    show = verb("show", "print what is in a bundle", _SHOW, _show)
    show.add_argument("bundle", type=Path, metavar="BUNDLE")
    show.add_argument("--toml", action="store_true", help="print the [task] table for the coordinator's settings")
    show.add_argument("--onnx", type=Path, metavar="DIR", help="write its graphs as ONNX files, to be looked at")


def _add_advice(build: argparse.ArgumentParser) -> None:
    cut = build.add_argument_group(
        "windows that you recommend", "as in [task.windowing]; the coordinator's settings may say otherwise"
    )
    cut.add_argument("--features", default="raw", metavar="NAME", help="raw or vibration-1 (default: raw)")
    cut.add_argument("--channels", type=int, metavar="N", help="of a recording (default: 1)")
    cut.add_argument("--samples", type=int, metavar="N", help="of a window (default for raw: what the module takes)")
    cut.add_argument("--hop", type=int, metavar="N", help="samples from window to window (default: half a window)")
    cut.add_argument("--sampling-rate", type=float, metavar="HZ", help="of recordings (default: 12000)")
    cut.add_argument("--scaling", choices=("learnt", "none"), help="of features (default for raw: none)")
    cut.add_argument("--held-out", type=float, metavar="X", help="share kept for evaluation (default: 0.25)")
    cut.add_argument("--remaining-most", type=float, metavar="N", help="samples of life left that are told apart")
    recipe = build.add_argument_group(
        "training that you recommend", "as in [task.recipe], [task.codec] and [task]; the same holds"
    )
    recipe.add_argument("--learning-rate", type=float, default=0.05, metavar="X", help="default: 0.05")
    recipe.add_argument("--momentum", type=float, default=0.0, metavar="X", help="default: 0")
    recipe.add_argument("--local-epochs", type=int, default=1, metavar="N", help="passes in a round (default: 1)")
    recipe.add_argument("--optimizer", choices=("sgd", "adam"), default="sgd", help="default: sgd")
    recipe.add_argument("--proximal", type=float, default=0.0, metavar="X", help="FedProx's mu (default: 0)")
    recipe.add_argument("--clip-norm", type=float, default=10.0, metavar="X", help="of a round's delta (default: 10)")
    recipe.add_argument(
        "--time-budget",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="end a round's training early (default: 0, no)",
    )
    recipe.add_argument("--dial", type=float, metavar="X", help="0: fewest bytes, 1: fewest rounds")
    recipe.add_argument("--bits", type=int, choices=(1, 4, 8), help="of a value that is sent, both ways")
    recipe.add_argument(
        "--density", type=float, metavar="X", help="share of the parameters that is sent, in every round"
    )
    recipe.add_argument("--min-windows", type=int, metavar="N", help="that a gateway must have to take part")


def _windowing(arguments: argparse.Namespace, shape: tuple[int, ...]) -> Any:
    """What is recommended for a module that takes windows of this shape. Raises ValueError."""
    from fedmq_edge_node.samples import PREPARED, RAW
    from fedmq_protocol.task import Windowing

    raw, prepared = arguments.features == RAW, arguments.preprocess is not None
    channels = arguments.channels
    if channels is None:
        channels = shape[0] if prepared and len(shape) == 2 else 1
    if channels < 1:
        raise ValueError(f"--channels: expected at least 1, got {channels}")
    samples = arguments.samples or (max(1, int(np.prod(shape)) // channels) if raw else Windowing().samples)
    wishes = {
        "features": PREPARED if prepared else arguments.features,
        "channels": channels,
        "samples": samples,
        "hop": arguments.hop or max(1, samples // 2),
        "sampling_rate_hz": arguments.sampling_rate,
        "scaling": arguments.scaling or ("none" if raw and not prepared else "learnt"),
        "held_out": arguments.held_out,
        "remaining_most": arguments.remaining_most,
    }
    return Windowing(**{key: value for key, value in wishes.items() if value is not None})


def _build(arguments: argparse.Namespace) -> int:
    from fedmq_coordinator.settings import CodecSettings, RecipeSettings, WindowingSettings
    from fedmq_models.bundle import Coding, to_bytes

    try:
        from fedmq.authoring.building import build, load_function, load_module

        module = load_module(arguments.model)
        preprocess = None if arguments.preprocess is None else load_function(arguments.preprocess)
    except ImportError as error:
        if error.name not in ("torch", "onnx", "onnxscript"):
            raise
        raise ValueError(f"a bundle is built with PyTorch, and {error.name} is not here: {INSTALL}") from None
    began = time.monotonic()
    print("tracing a training step …", file=sys.stderr)
    example = _example(arguments.example)
    windowing = _windowing(arguments, example.shape[1:])
    coding = Coding(
        dial=arguments.dial,
        up_bits=arguments.bits,
        down_bits=arguments.bits,
        least_density=arguments.density,
        most_density=arguments.density,
    )
    recipe = {
        "learning_rate": arguments.learning_rate,
        "momentum": arguments.momentum,
        "local_epochs": arguments.local_epochs,
        "optimizer": arguments.optimizer,
        "proximal": arguments.proximal,
        "clip_norm": arguments.clip_norm,
        "time_budget_seconds": arguments.time_budget,
    }
    # What no coordinator would take is told before the module is traced.
    WindowingSettings(**msgspec.structs.asdict(windowing))
    RecipeSettings(**recipe, batch_size=arguments.batch)
    CodecSettings(**{key: value for key, value in msgspec.structs.asdict(coding).items() if value is not None})
    bundle = build(
        module,
        name=arguments.name or arguments.model.rpartition(":")[2],
        loss=arguments.loss,
        example=example,
        batch=arguments.batch,
        **recipe,
        initial=arguments.initial,
        windowing=windowing,
        coding=coding,
        min_windows=arguments.min_windows,
        preprocess=preprocess,
    )
    data = to_bytes(bundle)
    arguments.output.write_bytes(data)
    _print(data)
    print(f"wrote {arguments.output} in {time.monotonic() - began:.0f} s", file=sys.stderr)
    return 0


INSTALL = "pip install 'fedmq[authoring]'"


def _example(text: str) -> Any:
    """Windows `(n, …)` float32. Raises ValueError."""
    path = Path(text)
    if path.suffix == ".npy":
        try:
            array = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ValueError(f"--example: {path}: expected windows (n, …) as .npy: {error}") from None
        if array.ndim < 2 or array.dtype.kind not in "fiu" or not len(array):
            raise ValueError(f"--example: {path}: expected windows (n, …) of numbers, got {array.shape} {array.dtype}")
        return array.astype(np.float32)
    try:
        shape = tuple(int(size) for size in text.split("x"))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1 or np.prod(shape, dtype=float) > 1 << 24:
        raise ValueError(f"--example: expected one window's shape, such as 1x1024, or a .npy, got {text!r}")
    return np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)


def _read(path: Path) -> bytes:
    from fedmq.programs import read_bundle

    return read_bundle(path)


def _show(arguments: argparse.Namespace) -> int:
    from fedmq_models.bundle import from_bytes
    from fedmq_models.onnx_format import to_onnx

    data = _read(arguments.bundle)
    bundle = from_bytes(data)
    if arguments.onnx is not None:
        arguments.onnx.mkdir(parents=True, exist_ok=True)
        for name, graph, outputs in (
            ("grad", bundle.grad, ("grad", "loss")),
            ("infer", bundle.infer, ("out",)),
            ("infer_one", bundle.infer_one, ("out",)),
            *([] if bundle.prepare is None else [("prepare", bundle.prepare, ("features",))]),
        ):
            path = arguments.onnx / f"{name}.onnx"
            path.write_bytes(to_onnx(graph, output_names=outputs, name=name))
            print(f"wrote {path}", file=sys.stderr)
        return 0
    if arguments.toml:
        print(_toml(arguments.bundle, data))
        return 0
    _print(data)
    return 0


def _toml(path: Path, data: bytes) -> str:
    from fedmq_models.bundle import from_bytes

    from fedmq.defaults import advice

    manifest = from_bytes(data).manifest
    lines = ["[task]", f"name = {_value(manifest.name)}", 'kind = "graph"', f"bundle = {_value(str(path))}"]
    if manifest.loss == "cross_entropy":
        classes = [f"class-{number}" for number in range(manifest.outputs)]
        lines.append(f"classes = {_value(classes)}  # the names of your folders, in the order of the model's outputs")
    tables = advice(manifest)
    if not tables["windowing"]:
        tables["windowing"] = {"features": "raw", "samples": int(np.prod(manifest.inputs)), "scaling": "none"}
    lines += [f"{key} = {_value(value)}" for key, value in tables.items() if not isinstance(value, dict)]
    lines += ["", "# What follows stands in the bundle, too, and holds where these lines are left out."]
    for key, table in tables.items():
        if isinstance(table, dict) and table:
            lines += ["", f"[task.{key}]", *(f"{name} = {_value(value)}" for name, value in table.items())]
            if manifest.loss == "squared_error" and key == "windowing" and not table.get("remaining_most"):
                lines = [line for line in lines if not line.startswith("remaining_most")]
                lines.append("# remaining_most = 125.0, say: how many samples of life left are to be told apart")
    return "\n".join(lines)


def _value(value: Any) -> str:
    """As TOML writes it."""
    return json.dumps(value, ensure_ascii=False)


def _print(data: bytes) -> None:
    import hashlib

    from fedmq_models.bundle import from_bytes
    from fedmq_models.graph import check

    bundle = from_bytes(data)
    manifest = bundle.manifest
    print(f"{manifest.name}: {manifest.length:,} parameters, {len(data):,} bytes")
    print(f"  digest     {hashlib.sha256(data).hexdigest()}")
    print(f"  a window   {' x '.join(map(str, manifest.inputs))} float32 -> {manifest.outputs}, for {manifest.loss}")
    print(f"  a step     {manifest.batch} windows, {_recipe(manifest)}")
    print(f"  a metric   {METRICS[manifest.loss]}")
    if manifest.windowing is not None:
        print(f"  windowing  {_listed(msgspec.structs.asdict(manifest.windowing))}")
    if coding := {key: value for key, value in msgspec.structs.asdict(manifest.coding).items() if value is not None}:
        print(f"  codec      {_listed(coding)}")
    if manifest.min_windows is not None:
        print(f"  gateways   with {manifest.min_windows:,} windows or more")
    values = bundle.values
    start = "drawn from the task's seed" if values is None else f"of its own, {len(bundle.initial):,} bytes"
    print(f"  start      {start}")
    if manifest.noise:
        print(f"  noise      {len(manifest.noise)} inputs of even random numbers")
    graphs = [("grad", bundle.grad), ("infer", bundle.infer), ("infer_one", bundle.infer_one)]
    for name, graph in [*graphs, *([] if bundle.prepare is None else [("prepare", bundle.prepare)])]:
        found = check(graph)
        operators = sorted({node.op for node in graph.nodes})
        print(
            f"  {name:10s} {len(graph.nodes):,} nodes, {found.operations / 1e6:,.1f} million operations, "
            f"{found.peak_bytes / 1e6:,.1f} MB: {', '.join(operators)}"
        )
    width = max(len(parameter.name) for parameter in manifest.parameters)
    offset = 0
    for parameter in manifest.parameters:
        block = parameter.block
        part = None if values is None else values[offset : offset + block.count]
        frozen = "" if parameter.trainable else ", not trained"
        shape = " x ".join(map(str, block.shape))
        print(f"  {parameter.name:{width}s}  {shape:>14s}  from {offset:>9,}  {_start(block, part)}{frozen}")
        offset += block.count
    for remark in manifest.remarks:
        print(f"  note: {remark}")


METRICS = {
    "cross_entropy": "macro-F1",
    "squared_error": "root mean square error, in samples",
    "reconstruction": "R2 on healthy windows; AUC with a test set of healthy and faulty ones",
}
"""By the loss: what gateways and the coordinator measure a model with."""


def _recipe(manifest: Any) -> str:
    """How a gateway trains."""
    recipe = msgspec.structs.asdict(manifest.recipe)
    del recipe["batch_size"]
    return _listed(recipe)


def _listed(values: dict[str, Any]) -> str:
    return ", ".join(
        f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}" for key, value in values.items()
    )


def _start(block: Any, values: Any) -> str:
    """How a parameter starts."""
    if values is not None and len(values) > 1 and values.min() != values.max():
        return f"starts with values from {values.min():.3g} to {values.max():.3g}"
    if values is None and block.limit:
        return f"starts evenly within ±{block.limit:.3g}"
    return f"starts {block.filled if values is None else values[0]:g}"


def _check(arguments: argparse.Namespace) -> int:
    from fedmq_edge_node.runtimes import available_engines, make_engine
    from fedmq_models.bundle import from_bytes, start_of
    from fedmq_protocol.task import to_parameters

    bundle = from_bytes(_read(arguments.bundle))
    manifest = bundle.manifest
    model = bundle.model(bytes(32), 1)
    rng = np.random.default_rng(0)
    flat = to_parameters(start_of(model, 1, 20, bundle), 20)
    x = rng.normal(size=(manifest.batch, model.sizes[0])).astype(np.float32)
    w = np.ones(manifest.batch, dtype=np.float32)
    w[-1] = 0 if manifest.batch > 1 else 1
    if manifest.loss == "cross_entropy":
        y: Any = rng.integers(0, manifest.outputs, manifest.batch)
    else:
        y = rng.normal(size=(manifest.batch, manifest.outputs)).astype(np.float32)
    gradients = {}
    for name in available_engines():
        gradients[name], loss = make_engine(model, name, bundle).loss_grad(flat, x, y, w)
        print(f"{name:12s} loss {loss:.6f}, gradient of norm {np.linalg.norm(gradients[name]):.6f}")
    first = next(iter(gradients.values()))
    scale = max(1.0, float(np.abs(first).max()))
    if not _prepared_alike(bundle, rng):
        return 1
    apart = max(float(np.abs(other - first).max()) for other in gradients.values()) / scale
    print(f"engines differ by {apart:.1e} of the largest gradient or of 1, at most {AGREEMENT:g} expected")
    off = _differences(bundle, flat, x, y, w, rng) / scale
    print(f"central differences are off by {off:.1e}, at most {DIFFERENCES:g} expected")
    if apart > AGREEMENT or off > DIFFERENCES:
        print("the bundle is NOT good: its gradient is not that of its loss, or engines disagree", file=sys.stderr)
        return 1
    print("good")
    return 0


def _prepared_alike(bundle: Any, rng: np.random.Generator) -> bool:
    """Whether the engines make the same features of raw windows; also where the bundle makes none."""
    from fedmq_edge_node.runtimes import available_engines, make_preparation

    windowing = bundle.manifest.windowing
    if bundle.prepare is None or windowing is None:
        return True
    windows = rng.normal(size=(4, windowing.samples * windowing.channels)).astype(np.float32)
    made = [preparation.run(windows) for name in available_engines() if (preparation := make_preparation(bundle, name))]
    scale = max(1.0, float(np.abs(made[0]).max()))
    apart = max(float(np.abs(other - made[0]).max()) for other in made) / scale
    print(f"features differ by {apart:.1e} of the largest or of 1, at most {AGREEMENT:g} expected")
    if apart > AGREEMENT:
        print("the bundle is NOT good: engines prepare windows differently", file=sys.stderr)
    return apart <= AGREEMENT


def _differences(bundle: Any, flat: Any, x: Any, y: Any, w: Any, rng: np.random.Generator) -> float:
    """Largest difference to central differences along random directions, over which rounding averages out.

    What is drawn for dropout stays the same meanwhile. A long step may pass the kink of a ReLU, and a short one drowns
    in rounding: of two the better one counts.
    """
    from fedmq_models.interpreter import Interpreter

    interpreter = Interpreter(bundle.grad)
    _, x_type, y_type, _, *noise_types = (tensor for _, tensor in bundle.grad.inputs)
    windows = x.reshape(x_type.shape)
    wanted = y.reshape(y_type.shape) if y.size == y_type.elements else np.zeros(y_type.shape, dtype=np.float32)
    noise = [rng.random(tensor.shape, dtype=np.float32) for tensor in noise_types]
    gradient = interpreter.run([flat, windows, wanted, w, *noise])[0]
    frozen = np.concatenate([np.full(p.block.count, not p.trainable) for p in bundle.manifest.parameters])
    worst = 0.0
    for _ in range(COORDINATES):
        direction = rng.normal(size=flat.shape)
        direction[frozen] = 0
        direction /= np.linalg.norm(direction)
        slope, off = float(gradient @ direction), []
        for step in (1e-2, 2e-3):
            ends = [(flat + side * step * direction).astype(np.float32) for side in (1, -1)]
            up, down = (float(interpreter.run([end, windows, wanted, w, *noise])[1]) for end in ends)
            off.append(abs((up - down) / (2 * step) - slope))
        worst = max(worst, min(off))
    return worst
