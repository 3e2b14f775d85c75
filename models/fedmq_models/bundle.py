"""A model that somebody brings, as one file: what it takes and gives, its parameters, the graphs that compute it.

Owns the file's layout, its bounds, and the check that graphs and manifest say the same. There is no code in it, only
graphs and numbers.

    magic "FMQB", version (1 byte), sha256 of what follows (32), length of the content (4, big-endian), one zstd frame

The content is a msgpack array: manifest, training graph, inference graph of a batch, and of a single window; then the
initial parameters where they are not drawn from the task's seed, and the graph that makes a model's inputs of a raw
window, if any. Whatever the file says of its own size is checked before anything of that size is made. Every complaint
is a `BundleError`.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal

import msgspec
import numpy as np
from fedmq_compression.frame import PayloadError, deflate, inflate
from fedmq_protocol.task import MAX_BUNDLE_BYTES, Block, ModelSpec, Recipe, Windowing, Wire, initial_steps
from msgspec import Meta
from numpy.typing import NDArray

from fedmq_models.graph import Checked, Graph, GraphError, Tensor, check

__all__ = [
    "MAX_RUN_BYTES",
    "MAX_RUN_OPERATIONS",
    "PREPARED",
    "Bundle",
    "BundleError",
    "Coding",
    "Manifest",
    "Parameter",
    "from_bytes",
    "start_of",
    "to_bytes",
]

MAGIC = b"FMQB"
VERSION = 1
HEAD = len(MAGIC) + 1 + 32 + 4
MAX_CONTENT_BYTES = 4 * MAX_BUNDLE_BYTES
MAX_RUN_BYTES = 64 << 20
"""Memory that one run of a graph may need."""
MAX_RUN_OPERATIONS = 4_000_000_000
"""Operations that one run may take: some seconds on a small gateway."""

PREPARED = "bundle"
"""Name of the feature set that a bundle brings itself."""

LARGEST_INITIAL = 1000.0
LARGEST_STEPS = 1 << 30
"""Of an initial parameter: what training adds must fit into int32, too."""

Size = Annotated[int, Meta(ge=1, le=1 << 24)]


class BundleError(ValueError):
    """A bundle that cannot be used: what was expected, and what came."""


class Parameter(Wire, frozen=True, kw_only=True):
    """One of the model's tensors; they lie in the flat vector one after the other."""

    name: Annotated[str, Meta(max_length=200)]
    block: Block
    trainable: bool = True


class Coding(Wire, frozen=True, kw_only=True):
    """How the author wants updates to be coded, as the coordinator's `[task.codec]` has it; None: nothing is wished."""

    dial: Annotated[float, Meta(ge=0, le=1)] | None = None
    up_bits: Literal[1, 4, 8] | None = None
    down_bits: Literal[1, 4, 8] | None = None
    least_density: Annotated[float, Meta(gt=0, le=1)] | None = None
    most_density: Annotated[float, Meta(gt=0, le=1)] | None = None


class Manifest(Wire, frozen=True, kw_only=True):
    """What is to be known of a model besides its graphs.

    Inputs, outputs, loss, batch and parameters bind whoever uses the graphs. All else is what the author recommends: it
    becomes part of a task where the coordinator's settings say nothing of their own.
    """

    name: Annotated[str, Meta(min_length=1, max_length=64)]
    inputs: Annotated[tuple[Size, ...], Meta(min_length=1, max_length=7)]
    """Shape of one window as the model takes it; windows travel flat, row-major."""
    outputs: Size
    loss: Literal["cross_entropy", "squared_error", "reconstruction"]
    batch: Annotated[int, Meta(ge=1, le=65_536)]
    """Windows of one step of training."""
    parameters: Annotated[tuple[Parameter, ...], Meta(min_length=1, max_length=4096)]
    noise: Annotated[tuple[tuple[Size, ...], ...], Meta(max_length=64)] = ()
    """Shapes of what is drawn evenly from 0 to 1 for each step of training, such as for dropout."""
    learning_rate: Annotated[float, Meta(gt=0, le=100)] = 0.05
    momentum: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    local_epochs: Annotated[int, Meta(ge=1, le=10_000)] = 1
    made_with: Annotated[str, Meta(max_length=200)] = ""
    remarks: Annotated[tuple[Annotated[str, Meta(max_length=500)], ...], Meta(max_length=32)] = ()
    """What was changed on the way, for people."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    proximal: Annotated[float, Meta(ge=0, le=1e3)] = 0.0
    clip_norm: Annotated[float, Meta(gt=0, le=1e6)] = 10.0
    time_budget_seconds: Annotated[float, Meta(ge=0, le=86_400)] = 0.0
    windowing: Windowing | None = None
    """How a recording becomes windows, and a window the features that the model takes."""
    coding: Coding = Coding()
    min_windows: Annotated[int, Meta(ge=1, le=1 << 31)] | None = None
    """Training windows that a gateway must have to take part."""

    @property
    def recipe(self) -> Recipe:
        """How a gateway trains."""
        return Recipe(
            learning_rate=self.learning_rate,
            momentum=self.momentum,
            local_epochs=self.local_epochs,
            batch_size=self.batch,
            proximal=self.proximal,
            clip_norm=self.clip_norm,
            optimizer=self.optimizer,
            time_budget_seconds=self.time_budget_seconds,
        )

    @property
    def length(self) -> int:
        """Of the flat vector."""
        return sum(parameter.block.count for parameter in self.parameters)


class Bundle(Wire, frozen=True, kw_only=True):
    """`grad`: flat, x, y, w, noise… -> gradient, loss. `infer`, `infer_one`: flat, x -> out, of a batch and of one."""

    manifest: Manifest
    grad: Graph
    infer: Graph
    infer_one: Graph
    initial: Annotated[bytes, Meta(max_length=MAX_CONTENT_BYTES)] = b""
    """The initial parameters, little-endian float32 in the order of the manifest; empty: drawn from the task's seed."""
    prepare: Graph | None = None
    """One raw window, `(1, samples * channels)` row after row with its channels side by side -> what the model takes of
    it, where that is neither raw samples nor a feature set that gateways know."""

    @property
    def values(self) -> NDArray[np.float32] | None:
        """The initial parameters `(P,)`; None where they are drawn."""
        return np.frombuffer(self.initial, dtype="<f4").astype(np.float32) if self.initial else None

    def model(self, digest: bytes, length: int) -> ModelSpec:
        """As a task names it; `digest` and `length` are the file's."""
        manifest = self.manifest
        inputs = 1
        for size in manifest.inputs:
            inputs *= size
        return ModelSpec(
            kind="graph",
            sizes=(inputs, manifest.outputs),
            bundle=digest,
            bundle_bytes=length,
            parts=tuple(parameter.block for parameter in manifest.parameters),
            loss=manifest.loss,
        )


def start_of(model: ModelSpec, seed: int, grid_bits: int, bundle: Bundle | None = None) -> NDArray[np.int32]:
    """What a task's first version is, `(P,) int32` in grid steps: the values that its bundle holds, each rounded to the
    nearest step, else what its seed draws. The same on every machine: `Task.initial` is its digest.

    Not to be written to. Raises BundleError where steps as fine as these cannot hold a value.
    """
    values = None if bundle is None else bundle.values
    if values is None:
        return initial_steps(model, seed, grid_bits)
    steps = np.rint(values.astype(np.float64) * 2.0**grid_bits)
    largest = float(np.abs(steps).max())
    if largest > LARGEST_STEPS:
        raise BundleError(
            f"expected initial parameters up to {LARGEST_STEPS * 2.0**-grid_bits:g} with task.grid_bits = {grid_bits}, "
            f"got {largest * 2.0**-grid_bits:g}: lower task.grid_bits"
        )
    return steps.astype(np.int32)


_DECODER = msgspec.msgpack.Decoder(Bundle)


def to_bytes(bundle: Bundle) -> bytes:
    """The file. Raises BundleError for one that `from_bytes` would refuse."""
    verify(bundle)
    content = msgspec.msgpack.encode(bundle)
    try:
        _DECODER.decode(content)
    except msgspec.MsgspecError as error:
        raise BundleError(f"the bundle cannot be made: {error}") from None
    if len(content) > MAX_CONTENT_BYTES:
        raise BundleError(f"expected at most {MAX_CONTENT_BYTES:,} bytes of graphs, got {len(content):,}")
    body = len(content).to_bytes(4, "big") + deflate(content)
    data = MAGIC + bytes([VERSION]) + hashlib.sha256(body).digest() + body
    if len(data) > MAX_BUNDLE_BYTES:
        own = f", {len(bundle.initial):,} of them initial parameters: draw these" if bundle.initial else ""
        raise BundleError(f"expected a bundle of at most {MAX_BUNDLE_BYTES:,} bytes, got {len(data):,}{own}")
    return data


def from_bytes(data: bytes) -> Bundle:
    """A bundle in which everything has been checked. Raises BundleError."""
    if len(data) > MAX_BUNDLE_BYTES:
        raise BundleError(f"expected a bundle of at most {MAX_BUNDLE_BYTES:,} bytes, got {len(data):,}")
    if len(data) <= HEAD or data[: len(MAGIC)] != MAGIC:
        raise BundleError("expected a bundle as `fedmq task build` makes it, got something else")
    if data[len(MAGIC)] != VERSION:
        raise BundleError(f"expected a bundle of version {VERSION}, got {data[len(MAGIC)]}: other software made it")
    body = data[HEAD - 4 :]
    if hashlib.sha256(body).digest() != data[len(MAGIC) + 1 : HEAD - 4]:
        raise BundleError("the bundle is damaged: its digest is not the one that stands in it")
    size = int.from_bytes(body[:4], "big")
    if size > MAX_CONTENT_BYTES:
        raise BundleError(f"expected at most {MAX_CONTENT_BYTES:,} bytes of graphs, the bundle has {size:,}")
    try:
        bundle = _DECODER.decode(inflate(body[4:], size))
    except (PayloadError, msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BundleError(f"the bundle cannot be read: {error}") from None
    verify(bundle)
    return bundle


def verify(bundle: Bundle) -> None:
    """Raises BundleError where a graph is none, costs more than a gateway gives, or is not what the manifest says."""
    manifest = bundle.manifest
    batch, length = manifest.batch, manifest.length
    flat, x = Tensor("float32", (length,)), Tensor("float32", (batch, *manifest.inputs))
    y = {
        "cross_entropy": Tensor("int64", (batch,)),
        "squared_error": Tensor("float32", (batch, manifest.outputs)),
        "reconstruction": x,
    }[manifest.loss]
    w = Tensor("float32", (batch,))
    noise = tuple(Tensor("float32", shape) for shape in manifest.noise)
    out = Tensor("float32", (batch, manifest.outputs))
    if manifest.loss == "reconstruction":
        out = x
        if manifest.outputs != x.elements // batch:
            raise BundleError(f"a model that gives back its inputs has as many outputs, got {manifest.outputs}")
    if len(bundle.initial) not in (0, 4 * length):
        raise BundleError(f"expected initial parameters of {4 * length:,} bytes, got {len(bundle.initial):,}")
    values = bundle.values
    if values is not None and not (np.abs(values) <= LARGEST_INITIAL).all():
        raise BundleError(f"expected initial parameters between -{LARGEST_INITIAL:g} and {LARGEST_INITIAL:g}")
    if manifest.optimizer == "adam" and manifest.momentum:
        raise BundleError(f"expected a momentum of 0 with adam, which has its own, got {manifest.momentum:g}")
    one = tuple(Tensor("float32", (1, *tensor.shape[1:])) for tensor in (x, out))
    windowing = manifest.windowing
    if (bundle.prepare is not None) != (windowing is not None and windowing.features == PREPARED):
        raise BundleError(f"expected a graph 'prepare' with windowing.features = {PREPARED!r}, and with nothing else")
    if bundle.prepare is not None and windowing is not None:
        window = Tensor("float32", (1, windowing.samples * windowing.channels))
        _verify(bundle.prepare, "prepare", (window,), (Tensor("float32", (1, *manifest.inputs)),))
    _verify(bundle.grad, "grad", (flat, x, y, w, *noise), (flat, Tensor("float32", ())))
    _verify(bundle.infer, "infer", (flat, x), (out,))
    _verify(bundle.infer_one, "infer_one", (flat, one[0]), (one[1],))


def _verify(graph: Graph, name: str, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> Checked:
    try:
        checked = check(graph, max_bytes=MAX_RUN_BYTES, max_operations=MAX_RUN_OPERATIONS)
    except GraphError as error:
        raise BundleError(f"graph {name!r}: {error}") from None
    for what, wanted, found in (
        ("inputs", inputs, tuple(tensor for _, tensor in graph.inputs)),
        ("outputs", outputs, tuple(checked.values[number] for number in graph.outputs)),
    ):
        if wanted != found:
            raise BundleError(
                f"graph {name!r}: expected the {what} {', '.join(map(str, wanted))}, got {', '.join(map(str, found))}"
            )
    return checked
