"""What stays the same from round to round: the task, and the integer model that it trains.

Owns the description of a built-in model (its layers, and where each lies in the flat vector), the recipe, and the
model as *integers*: every parameter is a whole number of steps of 2^-grid_bits. Integers are what makes a
chain of deltas, a merged delta and a keyframe lead to the same bytes, so that a digest means something.

Refuses to know how a model is trained, coded or stored. Gateways and coordinator both start from `initial_steps`,
which is drawn from the task's seed and therefore never sent.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from functools import lru_cache
from typing import Annotated, Literal

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

__all__ = [
    "MAX_LEVEL",
    "MAX_REMAINING",
    "UPLINK_STEP",
    "Codec",
    "Layer",
    "ModelSpec",
    "Objective",
    "Recipe",
    "Task",
    "Windowing",
    "initial_steps",
    "model_digest",
    "short",
    "to_parameters",
]

LEVEL_FACTOR = 4
"""How much denser each level is than the one before."""

DENSE_BITS = 4
"""Bits of a value at the last level, where all are sent. Most of them are then zero, and packed away: at 1 bit all
would be signs, which takes as many bytes and learns slower."""

MAX_LEVEL = 15
"""No task has more levels: 15 times four times any density in use is all coordinates."""

SHORT_DIGEST = 8
"""Bytes of a sha256 that travel where the full digest is bound by other means. Enough to notice, not to prove."""

UPLINK_STEP = 2.0**-24
"""Values of an update are whole numbers of this, so that the coordinator's fixed-point sum is exact."""

MAX_BUNDLE_BYTES = 8 << 20
"""Of a bundle of graphs: those of a model for a gateway take some kilobytes."""

MAX_REMAINING = 100_000
"""Samples that a target of remaining life is capped at, at most: its error must fit the wire's whole 1/10,000."""

MAX_PARAMETERS = 50_000_000
"""No task is larger: a bound for what a message may make a process allocate (200 MB of float32)."""


REGRESSOR_WEIGHTS = 0.1
REGRESSOR_BIAS = 0.5
"""Start of a regressor's last layer: the share of the usual weights, and the bias, of targets from 0 to 1."""

Objective = Literal["classify", "reconstruct", "regress"]
"""What a model is trained to do: name a window's class, give its inputs back, or say how long it has left."""

OBJECTIVES: dict[str, Objective] = {
    "cross_entropy": "classify",
    "reconstruction": "reconstruct",
    "squared_error": "regress",
}
"""By the loss of a `graph`."""

_KEPT_PARAMETERS = 1 << 17
"""Parameters up to which a seeded start stays in memory (512 KiB) once it was drawn: every round needs it."""


class Wire(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """A value that crosses the broker, coded by position. New fields go to the end, with a default."""


class Layer(msgspec.Struct, frozen=True, kw_only=True):
    """Where one dense layer lies in the flat vector: weights `(inputs, outputs)` row-major, then biases."""

    start: int
    inputs: int
    outputs: int

    @property
    def bias_start(self) -> int:
        return self.start + self.inputs * self.outputs

    @property
    def stop(self) -> int:
        return self.bias_start + self.outputs


class Block(Wire, frozen=True, kw_only=True):
    """A part of the flat vector that belongs together, row-major, and how it is drawn at the start."""

    shape: Annotated[tuple[Annotated[int, Meta(ge=1, le=MAX_PARAMETERS)], ...], Meta(max_length=8)]
    limit: Annotated[float, Meta(ge=0, le=1e3)] = 0.0
    """Drawn evenly from -limit to limit. 0: all are `filled`."""
    filled: Annotated[float, Meta(ge=-1e3, le=1e3)] = 0.0

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def columns(self) -> int:
        return math.prod(self.shape[1:]) if len(self.shape) > 1 else self.count


class Convolution(msgspec.Struct, frozen=True, kw_only=True):
    """One convolution of a CNN along time; padded by half its kernel at both ends, and then pooled by its maximum."""

    channels: int
    outputs: int
    kernel: int
    stride: int


FIRST_KERNEL, FIRST_STRIDE = 64, 8
"""A wide first kernel, as raw vibration wants it (Zhang et al. 2017, Sensors 17(2), 425: WDCNN)."""
NEXT_KERNEL, NEXT_STRIDE = 3, 1
POOLED = 2
"""Neighbours in time of which each convolution hands on the largest."""


class ModelSpec(Wire, frozen=True, kw_only=True):
    """A built-in model. `sizes` counts units from inputs to outputs, for instance (22, 32, 4).

    `softmax` has two sizes and no hidden layer; `mlp` has ReLU between its layers and a softmax at its end;
    `autoencoder` has ReLU between its layers, a linear end, and as many outputs as inputs; `regressor` has ReLU
    between its layers, a linear end, and one output; `cnn1d` takes a window of raw samples of one channel, its hidden
    sizes are channels of convolutions, and it ends as an `mlp` does. `graph` is somebody's own model: its graphs come
    in a bundle, its sizes are inputs and outputs.
    """

    kind: Literal["softmax", "mlp", "autoencoder", "cnn1d", "graph", "regressor"]
    sizes: Annotated[tuple[Annotated[int, Meta(ge=1, le=65_536)], ...], Meta(min_length=2, max_length=32)]

    bundle: Annotated[bytes, Meta(max_length=32)] = b""
    """sha256 of a `graph`'s bundle; empty for the others."""
    bundle_bytes: Annotated[int, Meta(ge=0, le=MAX_BUNDLE_BYTES)] = 0
    parts: Annotated[tuple[Block, ...], Meta(max_length=4096)] = ()
    """Of a `graph`: its flat vector, in order."""
    loss: Literal["", "cross_entropy", "squared_error", "reconstruction"] = ""
    """Of a `graph`: what it is trained for."""

    def __post_init__(self) -> None:
        if (self.kind == "graph") != bool(self.bundle and self.bundle_bytes and self.parts and self.loss):
            raise ValueError(f"expected a bundle, parts and a loss of a graph, and of nothing else, got {self.kind}")
        if self.kind == "graph" and (len(self.bundle) != 32 or len(self.sizes) != 2):
            raise ValueError(f"a graph has a digest of 32 bytes, an input and an output size, got {self.sizes}")
        if self.kind == "softmax" and len(self.sizes) != 2:
            raise ValueError(f"a softmax model has an input and an output size, got {self.sizes}")
        if self.kind == "autoencoder" and self.sizes[0] != self.sizes[-1]:
            raise ValueError(f"an autoencoder gives back its inputs, got sizes {self.sizes}")
        if self.kind == "cnn1d":
            shortest = max(FIRST_KERNEL, FIRST_STRIDE * POOLED ** (len(self.sizes) - 2))
            if len(self.sizes) < 3 or self.sizes[0] < shortest:
                raise ValueError(
                    f"a cnn1d has one convolution or more, and windows of at least {shortest} samples for"
                    f" {len(self.sizes) - 2} of them, got {self.sizes}"
                )
        if self.kind == "regressor" and self.sizes[-1] != 1:
            raise ValueError(f"a regressor has one output, got sizes {self.sizes}")
        if self.parameters > MAX_PARAMETERS:
            raise ValueError(f"a model has at most {MAX_PARAMETERS:,} parameters, got {self.parameters:,}")

    @property
    def objective(self) -> Objective:
        """What the model is trained to do."""
        match self.kind:
            case "autoencoder":
                return "reconstruct"
            case "regressor":
                return "regress"
            case "graph":
                return OBJECTIVES[self.loss]
            case _:
                return "classify"

    @property
    def parameters(self) -> int:
        """Length of the flat vector."""
        if self.kind in ("cnn1d", "graph"):
            return sum(block.count for block in self.blocks)
        return _parameters(self.sizes)

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """The flat vector as matrices (rows, columns): a layer's weights, with its biases as the last row."""
        if self.kind == "graph":
            # Rows and columns of vectors and of higher dimensions, too.
            return tuple((block.shape[0] if len(block.shape) > 1 else 1, block.columns) for block in self.parts)
        if self.kind != "cnn1d":
            return tuple((layer.inputs + 1, layer.outputs) for layer in self.layers)
        shapes = []
        for conv in self.convolutions:
            shapes += [(conv.outputs, conv.channels * conv.kernel), (2, conv.outputs)]
        return (*shapes, (self.sizes[-2] + 1, self.sizes[-1]))

    @property
    def blocks(self) -> tuple[Block, ...]:
        """All of the flat vector, in order."""
        if self.kind == "graph":
            return self.parts
        if self.kind != "cnn1d":
            dense = [
                block
                for layer in self.layers
                for block in (
                    Block(shape=(layer.inputs, layer.outputs), limit=_he(layer.inputs)),
                    Block(shape=(layer.outputs,)),
                )
            ]
            if self.kind == "regressor":
                weights = msgspec.structs.replace(dense[-2], limit=REGRESSOR_WEIGHTS * dense[-2].limit)
                dense[-2:] = [weights, Block(shape=(1,), filled=REGRESSOR_BIAS)]
            return tuple(dense)
        blocks = []
        for conv in self.convolutions:
            shape = (conv.outputs, conv.channels, conv.kernel)
            blocks += [
                Block(shape=shape, limit=_narrow(conv.channels * conv.kernel)),
                Block(shape=(conv.outputs,), filled=1.0),
                Block(shape=(conv.outputs,)),
            ]
        inputs, outputs = self.sizes[-2:]
        return (*blocks, Block(shape=(inputs, outputs), limit=_narrow(inputs)), Block(shape=(outputs,)))

    @property
    def convolutions(self) -> tuple[Convolution, ...]:
        """Of a `cnn1d`, from the window on."""
        made: list[Convolution] = []
        for outputs in self.sizes[1:-1]:
            channels = made[-1].outputs if made else 1
            kernel, stride = (NEXT_KERNEL, NEXT_STRIDE) if made else (FIRST_KERNEL, FIRST_STRIDE)
            made.append(Convolution(channels=channels, outputs=outputs, kernel=kernel, stride=stride))
        return tuple(made)

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Of a dense model."""
        layers = []
        start = 0
        for inputs, outputs in zip(self.sizes, self.sizes[1:], strict=False):
            layers.append(Layer(start=start, inputs=inputs, outputs=outputs))
            start = layers[-1].stop
        return tuple(layers)


def _he(fan_in: int) -> float:
    """Bound of evenly drawn weights with so many inputs (He et al. 2015, eq. 10)."""
    return math.sqrt(6.0 / fan_in)


def _narrow(fan_in: int) -> float:
    """The same where a norm follows, so that only the direction of weights counts: from shorter ones a step turns
    further. PyTorch draws its convolutions so."""
    return 1.0 / math.sqrt(fan_in)


@lru_cache(maxsize=64)
def _parameters(sizes: tuple[int, ...]) -> int:
    return sum((i + 1) * o for i, o in itertools.pairwise(sizes))


class Windowing(Wire, frozen=True, kw_only=True):
    """How a recording becomes windows, and a window becomes features."""

    samples: Annotated[int, Meta(ge=1, le=1 << 20)] = 2048
    """Samples of a window, of each channel. A feature set may need more than one."""
    hop: Annotated[int, Meta(ge=1, le=1 << 20)] = 1024
    """Samples from one window's start to the next one's."""
    sampling_rate_hz: Annotated[float, Meta(gt=0, le=1e6)] = 12_000.0
    """Expected rate. A recording at another rate is refused: band edges would shift."""
    features: Annotated[str, Meta(max_length=32)] = "vibration-1"
    """Name of the feature set. A gateway that does not know it declines."""
    held_out: Annotated[float, Meta(ge=0, lt=1)] = 0.25
    """Share of each recording's end that is kept for evaluation on the gateway."""
    channels: Annotated[int, Meta(ge=1, le=4096)] = 1
    """Channels of a recording that become features."""
    scaling: Literal["learnt", "none"] = "learnt"
    """Whether the federation learns a centre and a scale for each feature first, or takes features as they are."""
    remaining_most: Annotated[float, Meta(ge=0, le=MAX_REMAINING)] = 0.0
    """Samples. Above 0 a window's target is how many are left after it until the end of life that its recording runs
    to, at most so many; 0: its target is its folder's label."""


class Recipe(Wire, frozen=True, kw_only=True):
    """How a gateway trains: steps down the gradient of batches, on the flat vector."""

    learning_rate: Annotated[float, Meta(gt=0, le=100)] = 0.2
    momentum: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    local_epochs: Annotated[int, Meta(ge=1, le=10_000)] = 1
    batch_size: Annotated[int, Meta(ge=1, le=65_536)] = 64
    proximal: Annotated[float, Meta(ge=0, le=1e3)] = 0.0
    """FedProx's mu (Li et al. 2020, arXiv:1812.06127): pulls the local model back to the global one."""
    clip_norm: Annotated[float, Meta(gt=0, le=1e6)] = 10.0
    """L2 bound on a gateway's own delta of a round, before the residual is added."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """`adam` scales each parameter's step (Kingma, Ba 2015, arXiv:1412.6980) and takes no heed of `momentum`."""
    time_budget_seconds: Annotated[float, Meta(ge=0, le=86_400)] = 0.0
    """After so long a gateway's training of a round ends, and what it came to is sent. 0: it ends with its epochs."""


class Codec(Wire, frozen=True, kw_only=True):
    """How a delta is coded in one direction."""

    bits: Literal[1, 4, 8, 32] = 1
    """Bits of a value: 1 is a sign with one scale for all, 32 is float32."""
    density: Annotated[float, Meta(gt=0, le=1)] = 0.01
    """Share of the coordinates that is sent, largest first; 1 sends all."""
    gain: Annotated[float, Meta(ge=1, lt=2)] = 1.0
    """Factor on the scale of 1-bit values where not all are sent. For who codes; a decoder needs no word of it."""
    most: Annotated[float, Meta(gt=0, le=1)] = 0.1
    """Density up to which a level thickens, before all coordinates are sent."""

    @property
    def highest(self) -> int:
        """Highest level that still changes something."""
        return 0 if self.density == 1 else self.sparse_levels + 1

    def at(self, level: int) -> Codec:
        """The codec at a level: four times as dense with each, up to `most`; then all, at 4 bits or more.

        Beyond its highest level it stays as it is there.
        """
        if level <= 0 or self.density == 1:
            return self
        if level > self.sparse_levels:
            return msgspec.structs.replace(self, bits=max(self.bits, DENSE_BITS), density=1.0)
        return msgspec.structs.replace(self, density=min(self.most, self.density * float(LEVEL_FACTOR) ** level))

    @property
    def sparse_levels(self) -> int:
        """Highest level at which not all coordinates are sent."""
        return max(0, math.ceil(math.log(self.most / self.density, LEVEL_FACTOR) - 1e-9))


class Task(Wire, frozen=True, kw_only=True):
    """All that does not change from round to round. Its digest names it."""

    name: Annotated[str, Meta(min_length=1, max_length=64)]
    model: ModelSpec
    classes: Annotated[tuple[Annotated[str, Meta(min_length=1, max_length=64)], ...], Meta(max_length=1024)] = ()
    """Labels in the order of the model's outputs; empty for a model that does not classify."""
    windowing: Windowing = Windowing()
    recipe: Recipe = Recipe()
    up: Codec = Codec()
    down: Codec = Codec()
    grid_bits: Annotated[int, Meta(ge=4, le=24)] = 12
    """A parameter is a whole number of steps of 2^-grid_bits."""
    seed: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)] = 0
    """Seed of the initial parameters."""
    initial: Annotated[bytes, Meta(min_length=SHORT_DIGEST, max_length=SHORT_DIGEST)]
    """Short digest of the initial parameters: a gateway that draws others must not take part."""
    min_windows: Annotated[int, Meta(ge=1, le=1 << 31)] = 20
    """Training windows that a gateway must have to take part."""
    max_norm: Annotated[float, Meta(gt=0, le=1e9)] = 1_000.0
    """L2 bound on a decoded update; the coordinator refuses what exceeds it."""
    held_out_reports: bool = True
    """Whether updates carry the base version's score on the gateway's own held-out windows. Off where the
    coordinator has a test set: it saves a few bytes a round."""
    anomaly_label: Annotated[str, Meta(max_length=64)] = "normal"
    """The label of healthy windows: the only ones that an autoencoder trains on."""
    levels: Annotated[int, Meta(ge=0, le=MAX_LEVEL)] = 0
    """Highest level to which both codecs are thickened when training stalls; 0: they stay as they are."""
    staleness: Annotated[int, Meta(ge=0, le=1000)] = 0
    """Versions that the model may have gone on meanwhile, for an update to count still. 0: an update counts in its own
    round, and a gateway gives up when that closes."""

    def __post_init__(self) -> None:
        if self.objective == "classify" and len(self.classes) != self.model.sizes[-1]:
            raise ValueError(f"{len(self.classes)} classes for a model of {self.model.sizes[-1]} outputs")
        if self.objective == "regress" and self.classes:
            raise ValueError(f"a regressor has no classes, got {self.classes}")
        if (self.objective == "regress") != (self.windowing.remaining_most > 0):
            raise ValueError(
                f"windowing.remaining_most goes with a regressor: expected it above 0 there and 0 elsewhere, got "
                f"{self.windowing.remaining_most:g} for kind {self.model.kind!r}"
            )
        if len(set(self.classes)) != len(self.classes):
            raise ValueError(f"a class is named twice in {self.classes}")

    @property
    def objective(self) -> Objective:
        """What the model is trained to do."""
        return self.model.objective

    @property
    def direction(self) -> Literal[1, -1]:
        """Which way the metric is better: 1 upwards; -1 downwards, as it is an error. A metric times this can be
        compared as if higher were better: nobody else need know."""
        return -1 if self.objective == "regress" else 1

    @property
    def sparse_levels(self) -> int:
        """Highest level at which neither direction sends all."""
        return min(self.levels, self.up.sparse_levels, self.down.sparse_levels)

    @property
    def grid_step(self) -> float:
        """Size of a parameter's step; values of a broadcast delta are whole numbers of it."""
        return 2.0**-self.grid_bits

    @property
    def digest(self) -> bytes:
        """sha256 of the coded task, 32 bytes."""
        return hashlib.sha256(msgspec.msgpack.encode(self)).digest()


def short(digest: bytes) -> bytes:
    """First bytes of a digest, as they travel."""
    return digest[:SHORT_DIGEST]


def model_digest(steps: NDArray[np.int32]) -> bytes:
    """sha256 over the parameters as little-endian int32, 32 bytes."""
    return hashlib.sha256(steps.astype("<i4").tobytes()).digest()


def to_parameters(steps: NDArray[np.int32], grid_bits: int) -> NDArray[np.float32]:
    """Grid steps `(P,) int32` to parameters `(P,) float32`; exact while |steps| < 2^24."""
    return (steps.astype(np.float64) * 2.0**-grid_bits).astype(np.float32)


def initial_steps(model: ModelSpec, seed: int, grid_bits: int) -> NDArray[np.int32]:
    """The seeded start, `(P,) int32` in grid steps: He-uniform weights (He et al. 2015), zero biases, scales 1.

    A regressor's last layer starts with a tenth of such weights and a bias in the middle of its range, so that what it
    predicts at first is no accident that rounds are spent on: with sparse deltas they would be many.

    Drawn with our own generator and in whole numbers but for one multiplication in float64, so that every
    machine and every numpy draws the same: numpy promises no such thing of its own distributions (NEP 19).
    Of a small model it is drawn once, and the array is not to be written to.
    """
    if model.parameters <= _KEPT_PARAMETERS:
        return _kept_steps(model, seed, grid_bits)
    return _drawn_steps(model, seed, grid_bits)


@lru_cache(maxsize=8)
def _kept_steps(model: ModelSpec, seed: int, grid_bits: int) -> NDArray[np.int32]:
    steps = _drawn_steps(model, seed, grid_bits)
    steps.setflags(write=False)
    return steps


def _drawn_steps(model: ModelSpec, seed: int, grid_bits: int) -> NDArray[np.int32]:
    steps = np.zeros(model.parameters, dtype=np.int32)
    start = 0
    for block in model.blocks:
        part = steps[start : start + block.count]
        if block.limit:
            # 53 random bits, centred, so that the product below is one correctly rounded operation.
            drawn = (_splitmix64(seed, start, block.count) >> np.uint64(11)).astype(np.int64) - (1 << 52)
            limit = block.limit * 2.0**grid_bits
            part[:] = np.rint(drawn.astype(np.float64) * 2.0**-52 * limit)
        else:
            part[:] = round(block.filled * 2.0**grid_bits)
        start += block.count
    return steps


def _splitmix64(seed: int, offset: int, count: int) -> NDArray[np.uint64]:
    """Numbers `offset` to `offset + count` of the SplitMix64 stream (Steele, Lea, Flood 2014), `(count,) uint64`."""
    with np.errstate(over="ignore"):
        counter = np.arange(offset + 1, offset + count + 1, dtype=np.uint64)
        z = np.uint64(seed) + counter * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(z ^ (z >> np.uint64(31)), dtype=np.uint64)
