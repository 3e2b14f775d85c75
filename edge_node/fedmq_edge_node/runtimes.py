"""The engines: a flat parameter vector and a batch go in, a gradient or an output comes out.

Owns the arithmetic of the built-in dense models (softmax regression, multi-layer perceptron, autoencoder, regressor) on
numpy, and the runtimes that compute a model's graph: onnxruntime, LiteRT, tflite-runtime, and numpy where there is
none. Refuses to know about rounds, optimisers, clipping or where a batch came from. Every array is float32, and a model
is one flat vector laid out as `ModelSpec.blocks` says. Rows with weight 0 pad a batch to its fixed size and change
nothing.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
from fedmq_models.builtin import grad_graph, infer_graph
from fedmq_models.bundle import Bundle
from fedmq_models.graph import DTYPES, Graph, GraphError
from fedmq_models.interpreter import Interpreter
from fedmq_models.onnx_format import to_onnx
from fedmq_models.tflite_format import to_tflite
from fedmq_protocol.task import ModelSpec
from numpy.typing import NDArray

from fedmq_edge_node.samples import Preparation
from fedmq_edge_node.watchdog import Watch, Watchdog

__all__ = [
    "ENGINES",
    "Engine",
    "GraphEngine",
    "GraphStopped",
    "NumpyEngine",
    "anomaly_score",
    "available_engines",
    "load_tflite",
    "make_engine",
    "make_preparation",
    "unknown_engine",
]

Floats = NDArray[np.float32]

INFER_BATCH = 32
"""Rows of a run where there are many; a single window is a run of its own."""


class Engine(Protocol):
    """What a trainer needs of a model: its gradient and its output."""

    def loss_grad(self, flat: Floats, x: Floats, y: NDArray[np.int64] | Floats, w: Floats) -> tuple[Floats, float]:
        """Gradient `(P,)` of the weighted mean loss, and that loss.

        flat: `(P,)` parameters; x: `(n, inputs)`; y: `(n,)` int64 labels, or whatever the loss compares with
        (an autoencoder ignores it, a regressor takes `(n,)` float32); w: `(n,)` weights, not all zero.
        """
        ...

    def infer(self, flat: Floats, x: Floats) -> Floats:
        """Class probabilities `(n, classes)`, the reconstruction `(n, inputs)` of an autoencoder, or the `(n, 1)` that
        a regressor predicts."""
        ...


Run = Callable[[Sequence[NDArray[Any]], Watch], Sequence[NDArray[Any]]]
"""Computes one graph: its inputs in order -> its outputs. What can be stopped on the way heeds the watch."""

RUN_SECONDS = 60.0
"""For one step or one batch: many times what a slow gateway takes for the most operations that a bundle may ask for."""


class GraphStopped(ValueError):
    """A run that took longer than it may."""


class Graphs(Protocol):
    """A model's graphs by their batch. Raise ValueError for a batch that they are not made for."""

    @property
    def batch(self) -> int:
        """Rows of `infer` where there are many."""

    @property
    def frozen(self) -> NDArray[np.bool_] | None:
        """Which parameters `(P,)` are not trained; None: all are."""

    def grad(self, batch: int) -> Graph: ...

    def infer(self, batch: int) -> Graph: ...


class BuiltinGraphs:
    """Made here, for any batch."""

    batch = INFER_BATCH
    frozen = None

    def __init__(self, model: ModelSpec) -> None:
        self._model = model

    def grad(self, batch: int) -> Graph:
        return grad_graph(self._model, batch)

    def infer(self, batch: int) -> Graph:
        return infer_graph(self._model, batch)


class BundledGraphs:
    """As a bundle has them: for the batch that they were traced with, and for one window."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self.batch = bundle.manifest.batch
        parts = [np.full(p.block.count, not p.trainable) for p in bundle.manifest.parameters]
        frozen = np.concatenate(parts)
        self.frozen = frozen if frozen.any() else None

    def grad(self, batch: int) -> Graph:
        if batch != self.batch:
            raise ValueError(f"the bundle was made for batches of {self.batch} windows, the task has {batch}")
        return self._bundle.grad

    def infer(self, batch: int) -> Graph:
        return self._bundle.infer_one if batch == 1 else self._bundle.infer


class GraphEngine:
    """A model as graphs of fixed batch, which `load` makes runnable; each is loaded when it is first needed.

    Raises GraphStopped for a run of more than `run_seconds`, and GraphError where the engine gives up.
    """

    def __init__(
        self,
        model: ModelSpec,
        graphs: Graphs,
        load: Callable[[Graph, tuple[str, ...]], Run],
        run_seconds: float = RUN_SECONDS,
    ) -> None:
        self._model = model
        self._graphs = graphs
        self._load = load
        self._watchdog = Watchdog(run_seconds)
        self._grad: dict[int, _Loaded] = {}
        self._infer: dict[int, _Loaded] = {}

    def loss_grad(self, flat: Floats, x: Floats, y: NDArray[np.int64] | Floats, w: Floats) -> tuple[Floats, float]:
        """As `Engine` has it. A batch of another size is another graph: keep to one."""
        _check(self._model, flat, x)
        total = float(w.sum())
        if len(w) != len(x) or not total > 0:
            raise ValueError(f"expected {len(x)} weights that add to more than 0, got {len(w)} that add to {total}")
        if len(x) not in self._grad:
            graph = self._graphs.grad(len(x))
            self._grad[len(x)] = _Loaded(graph, self._load(graph, ("grad", "loss")))
        loaded = self._grad[len(x)]
        noise = self._noise(flat, x, w, loaded.graph)
        if self._model.objective == "reconstruct":
            y = np.zeros(0, dtype=np.float32)  # nobody looks at it
        gradient, loss = self._run(loaded, [flat, *loaded.shaped(1, x, y), w, *noise])
        gradient = np.asarray(gradient, dtype=np.float32)
        if self._graphs.frozen is not None:
            gradient = np.where(self._graphs.frozen, np.float32(0), gradient)
        return gradient, float(loss)

    def _noise(self, flat: Floats, x: Floats, w: Floats, graph: Graph) -> list[Floats]:
        """The same for the same parameters and windows, so that a round that is trained again comes to the same.

        Parameters alone would not do: all gateways have the same ones at a round's first step, and would drop the same
        units. Their windows differ, and those of one gateway's steps, too, as they are shuffled anew.
        """
        wanted = graph.inputs[4:]
        if not wanted:
            return []
        drawn_from = hashlib.sha256(flat.tobytes())
        drawn_from.update(x.tobytes())
        drawn_from.update(w.tobytes())
        rng = np.random.Generator(np.random.PCG64(int.from_bytes(drawn_from.digest()[:16], "little")))
        return [rng.random(tensor.shape, dtype=np.float32) for _, tensor in wanted]

    def infer(self, flat: Floats, x: Floats) -> Floats:
        """As `Engine` has it, for any number of rows."""
        _check(self._model, flat, x)
        if len(x) == 1:
            return self._batch(flat, x)
        parts = []
        batch = self._graphs.batch
        for start in range(0, len(x), batch):
            part = x[start : start + batch]
            missing = batch - len(part)
            padded = np.pad(part, ((0, missing), (0, 0))) if missing else part
            parts.append(self._batch(flat, padded)[: len(part)])
        return np.concatenate(parts) if parts else np.zeros((0, self._model.sizes[-1]), dtype=np.float32)

    def _batch(self, flat: Floats, x: Floats) -> Floats:
        if len(x) not in self._infer:
            graph = self._graphs.infer(len(x))
            self._infer[len(x)] = _Loaded(graph, self._load(graph, ("out",)))
        loaded = self._infer[len(x)]
        (out,) = self._run(loaded, [flat, *loaded.shaped(1, x)])
        return np.asarray(out, dtype=np.float32).reshape(len(x), -1)

    def _run(self, loaded: _Loaded, inputs: list[NDArray[Any]]) -> Sequence[NDArray[Any]]:
        return _watched(loaded, inputs, self._watchdog)


@dataclass(frozen=True)
class _Loaded:
    graph: Graph
    run: Run

    def shaped(self, first: int, *arrays: NDArray[Any]) -> list[NDArray[Any]]:
        """Rows as the graph's inputs from `first` on take them: a window may have more than one dimension.

        An empty one becomes zeros. Raises ValueError for any other number of elements.
        """
        shaped: list[NDArray[Any]] = []
        for (_, tensor), array in zip(self.graph.inputs[first:], arrays, strict=False):
            if array.size not in (0, tensor.elements):
                raise ValueError(f"expected {tensor} in the graph, got {array.shape}")
            given = array if array.size else np.zeros(tensor.shape)
            shaped.append(given.reshape(tensor.shape).astype(DTYPES[tensor.dtype], copy=False))
        return shaped


def _watched(loaded: _Loaded, inputs: list[NDArray[Any]], watchdog: Watchdog) -> Sequence[NDArray[Any]]:
    """One run. Raises GraphStopped where it takes too long, and GraphError where the engine gives up."""
    nodes = len(loaded.graph.nodes)
    with watchdog.watching() as watch:
        try:
            outputs = loaded.run(inputs, watch)
        except Exception as error:  # each runtime raises its own
            if not watch.late:
                raise GraphError(f"the graph of {nodes} nodes cannot be run: {error}") from error
    if watch.late:
        raise GraphStopped(f"a run of its graph of {nodes} nodes took more than {watchdog.seconds:g} s and was stopped")
    return outputs


def _load_numpy(graph: Graph, output_names: tuple[str, ...]) -> Run:
    interpreter = Interpreter(graph)
    return lambda inputs, watch: interpreter.run(inputs, lambda: not watch.late)


def _load_onnxruntime(graph: Graph, output_names: tuple[str, ...]) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # A gateway has other work to do.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    # Tensors come from the session's own arena: from the system, which wants freed memory back, a step of a CNN takes
    # twice the time. Without a plan of one block for all of them, which would take half as much memory again.
    options.enable_mem_pattern = False
    session = onnxruntime.InferenceSession(
        to_onnx(graph, output_names=output_names), options, providers=["CPUExecutionProvider"]
    )
    names = [name for name, _ in graph.inputs]

    def run(inputs: Sequence[NDArray[Any]], watch: Watch) -> Sequence[NDArray[Any]]:
        limits = onnxruntime.RunOptions()
        # Heeded between two nodes.
        watch.stop = lambda: setattr(limits, "terminate", True)
        given = dict(zip(names, map(_row_major, inputs), strict=True))
        outputs: Sequence[NDArray[Any]] = session.run(list(output_names), given, limits)
        return outputs

    return run


def _row_major(array: NDArray[Any]) -> NDArray[Any]:
    # Not ascontiguousarray, which makes a vector of a scalar.
    return np.asarray(array, order="C")


def _load_litert(graph: Graph, output_names: tuple[str, ...]) -> Run:
    from ai_edge_litert.interpreter import (
        Interpreter as LiteRT,
    )

    return load_tflite(LiteRT, graph, output_names)


def _load_tflite_runtime(graph: Graph, output_names: tuple[str, ...]) -> Run:
    from tflite_runtime.interpreter import (
        Interpreter as TFLite,
    )

    return load_tflite(TFLite, graph, output_names)


def load_tflite(make: Callable[..., Any], graph: Graph, output_names: tuple[str, ...]) -> Run:
    """`make` is the Interpreter of either package: they have one interface.

    A run cannot be stopped from outside: what takes too long is noticed when it ends, and was bounded by the proof in a
    process of its own. Raises GraphError where TFLite lacks an operator.
    """
    interpreter = make(model_content=to_tflite(graph, output_names=output_names), num_threads=1)
    interpreter.allocate_tensors()
    # The tensors 0, 1, … are the inputs; a runtime may list them, and the outputs, in an order of its own.
    listed = {int(one["index"]): one for one in interpreter.get_input_details()}
    found = [(tuple(listed[place]["shape"]), listed[place]["dtype"]) for place in sorted(listed)]
    wanted = [(tensor.shape, DTYPES[tensor.dtype]) for _, tensor in graph.inputs]
    if sorted(listed) != list(range(len(wanted))) or found != wanted:
        raise GraphError(f"expected a runtime that takes {wanted}, got one that takes {found}")
    named = {one["name"]: int(one["index"]) for one in interpreter.get_output_details()}
    if sorted(named) != sorted(output_names):
        raise GraphError(f"expected a runtime that gives {sorted(output_names)}, got one that gives {sorted(named)}")
    outputs = [named[name] for name in output_names]

    def run(inputs: Sequence[NDArray[Any]], watch: Watch) -> list[NDArray[Any]]:
        for place, array in enumerate(inputs):
            interpreter.set_tensor(place, _row_major(array))
        interpreter.invoke()
        # Copies: a view would keep the interpreter from its next run.
        return [np.asarray(interpreter.get_tensor(place)) for place in outputs]

    return run


ENGINES: dict[str, tuple[str | None, Callable[[Graph, tuple[str, ...]], Run]]] = {
    "onnxruntime": ("onnxruntime", _load_onnxruntime),
    "litert": ("ai_edge_litert", _load_litert),
    "tflite": ("tflite_runtime", _load_tflite_runtime),
    "numpy": (None, _load_numpy),
}
"""By name: the package that it needs, and what makes a graph runnable. The first that is there is taken."""


def available_engines() -> tuple[str, ...]:
    """Those whose package is installed, the preferred one first."""
    return tuple(name for name, (package, _) in ENGINES.items() if package is None or find_spec(package) is not None)


def make_engine(
    model: ModelSpec, name: str = "auto", bundle: Bundle | None = None, run_seconds: float = RUN_SECONDS
) -> Engine:
    """The engine of this name. `auto`: numpy for dense models, which it does as fast and in half the memory; for
    others the first that is installed. `bundle` is that of a `graph`; no run of a graph may take more than
    `run_seconds`. Raises ValueError for a name that there is not, or that is not installed, and for a graph without its
    bundle.
    """
    known = available_engines()
    if name not in ("auto", *known):
        raise ValueError(unknown_engine(name))
    if model.kind not in ("cnn1d", "graph") and name in ("auto", "numpy"):
        return NumpyEngine(model)
    graphs: Graphs
    if model.kind != "graph":
        graphs = BuiltinGraphs(model)
    elif bundle is not None:
        graphs = BundledGraphs(bundle)
    else:
        raise ValueError("expected the bundle of a graph, got none")
    return GraphEngine(model, graphs, ENGINES[known[0] if name == "auto" else name][1], run_seconds)


def make_preparation(bundle: Bundle, name: str = "auto", run_seconds: float = RUN_SECONDS) -> Preparation | None:
    """What makes the model's inputs of raw windows, on the engine of this name; None where the bundle does not.

    Raises ValueError for an engine that is not installed. Its runs raise GraphStopped, and GraphError where the engine
    gives up or features are not finite.
    """
    graph = bundle.prepare
    if graph is None:
        return None
    known = available_engines()
    if name not in ("auto", *known):
        raise ValueError(unknown_engine(name))
    loaded = _Loaded(graph, ENGINES[known[0] if name == "auto" else name][1](graph, ("features",)))
    watchdog = Watchdog(run_seconds)
    (_, window), features = graph.inputs[0], math.prod(bundle.manifest.inputs)

    def run(windows: Floats) -> Floats:
        made = np.empty((len(windows), features), dtype=np.float32)
        for row, one in zip(made, windows, strict=True):
            row[:] = _watched(loaded, [one.reshape(window.shape)], watchdog)[0].reshape(-1)
        if not np.isfinite(made).all():
            raise GraphError("the bundle's preparation makes features of a window that are not finite")
        return made

    return Preparation(features=features, run=run)


def unknown_engine(name: str) -> str:
    """What to say of an engine that is not here."""
    extra = {"onnxruntime": "onnx", "litert": "litert", "tflite": "tflite"}.get(name)
    how = f" (pip install 'fedmq[{extra}]')" if extra else ""
    here = ", ".join(available_engines())
    return f"engine: expected auto or one that is installed here ({here}), got {name!r}{how}"


class NumpyEngine:
    """The built-in dense models, forward and backward, in numpy."""

    def __init__(self, model: ModelSpec) -> None:
        self._model = model
        self._layers = model.layers
        self._objective = model.objective

    def loss_grad(self, flat: Floats, x: Floats, y: NDArray[np.int64] | Floats, w: Floats) -> tuple[Floats, float]:
        """Cross-entropy of a classifier; mean squared error of a regressor, and over the features of an autoencoder."""
        _check(self._model, flat, x)
        total = float(w.sum())
        if len(w) != len(x) or not total > 0:
            raise ValueError(f"expected {len(x)} weights that add to more than 0, got {len(w)} that add to {total}")
        inputs = self._forward(flat, x)
        out = inputs.pop()
        share = (w / np.float32(total)).astype(np.float32)
        if self._objective == "classify":
            rows = np.arange(len(x))
            labels = np.asarray(y, dtype=np.int64)
            logs = _log_softmax(out)
            loss = -float(share @ logs[rows, labels])
            error = np.exp(logs)
            error[rows, labels] -= 1.0
            error *= share[:, None]
        else:
            wanted = x if self._objective == "reconstruct" else np.asarray(y, dtype=np.float32)[:, None]
            difference = out - wanted
            loss = float(share @ np.mean(difference * difference, axis=1))
            error = difference * (share[:, None] * np.float32(2.0 / out.shape[1]))
        gradient = np.empty_like(flat)
        for layer, given in zip(reversed(self._layers), reversed(inputs), strict=True):
            gradient[layer.start : layer.bias_start] = (given.T @ error).ravel()
            gradient[layer.bias_start : layer.stop] = error.sum(axis=0)
            if layer.start:
                weights = flat[layer.start : layer.bias_start].reshape(layer.inputs, layer.outputs)
                error = (error @ weights.T) * (given > 0)
        return gradient, loss

    def infer(self, flat: Floats, x: Floats) -> Floats:
        """Softmax probabilities `(n, classes)`, the reconstruction `(n, inputs)`, or predictions `(n, 1)`."""
        _check(self._model, flat, x)
        out = self._forward(flat, x)[-1]
        return np.exp(_log_softmax(out)) if self._objective == "classify" else out

    def _forward(self, flat: Floats, x: Floats) -> list[Floats]:
        """What each layer was given, and last what the last one gave, before any softmax."""
        given = [x]
        for layer in self._layers:
            weights = flat[layer.start : layer.bias_start].reshape(layer.inputs, layer.outputs)
            out = given[-1] @ weights + flat[layer.bias_start : layer.stop]
            given.append(out if layer is self._layers[-1] else np.maximum(out, np.float32(0)))
        return given


def _check(model: ModelSpec, flat: Floats, x: Floats) -> None:
    if flat.dtype != np.float32 or flat.shape != (model.parameters,):
        raise ValueError(f"expected ({model.parameters},) float32 parameters, got {flat.shape} {flat.dtype}")
    if x.dtype != np.float32 or x.ndim != 2 or x.shape[1] != model.sizes[0]:
        raise ValueError(f"expected (n, {model.sizes[0]}) float32 features, got {x.shape} {x.dtype}")


def anomaly_score(x: Floats, reconstruction: Floats) -> Floats:
    """Mean squared difference per window `(n,)`, in units of the scaled features: about 1 explains nothing."""
    return np.asarray(np.mean((x - reconstruction) ** 2, axis=1), dtype=np.float32)


def _log_softmax(out: Floats) -> Floats:
    shifted = out - out.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)), dtype=np.float32)
