"""A dense model as 8-bit integers: quantized after training, run by numpy, and written as one C99 file.

Owns the arithmetic, which is the same to the last bit in `reference` and in what `to_c` writes:

    accumulator = bias + sum of weight * input            int32; cannot overflow, or the model is refused
    output      = clamp(rescale(accumulator))             int8 within ±127, from 0 on where ReLU follows
    rescale(a)  = a * multiplier / 2^shift, rounded half away from zero; the product is int64

Weights are symmetric, with a scale for each output unit; activations are symmetric, with a scale for each layer, from
calibration windows (Jacob et al. 2018, arXiv:1712.05877, without zero points: these models gain nothing from them).
A classifier gives logits, and its class is the first of the largest. Logits are taken less their mean over the
classes, which changes no class and leaves more steps to what tells them apart. An autoencoder gives its reconstruction
in the steps of its input, and the sum of squared differences is its anomaly score.

Features come as fixed-point int32, and the federation's scaler is folded into one multiplier and one offset for each.
Refuses to know recordings, ledgers and where parameters came from.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from fedmq_protocol.task import ModelSpec
from numpy.typing import NDArray

__all__ = [
    "MAX_PARAMETERS",
    "SCALED_LIMIT",
    "Int8Layer",
    "Int8Model",
    "anomaly_score",
    "classes",
    "quantize",
    "quantize_inputs",
    "reference",
    "to_c",
    "to_fixed",
]

Floats = NDArray[np.float32]

MAX_PARAMETERS = 1 << 20
"""A megabyte of flash, which is as much as a microcontroller of this class has."""
SCALED_LIMIT = 8.0
"""Scaled features are clipped here in training, and so here."""
LIMIT = 127
LOWEST_INPUT = 128
"""Magnitude of the least int8: `quantize_inputs` never gives it, but a caller's own code may."""
ACCUMULATOR_LIMIT = (1 << 31) - 1
BIAS_LIMIT = 1 << 30
"""Beside weights of 65,536 inputs it still fits an accumulator."""
MULTIPLIER_BITS = 31
INPUT_MULTIPLIER_BITS = 30
"""One less: a feature less its offset needs 33 bits."""
MAX_SHIFT = 62
FRACTION_BITS = 16
"""Of features, where their range allows."""
BATCH = 512
"""Windows that go through the layers at a time."""
SELF_TEST_WINDOWS = 4
SCORE_INPUTS = ACCUMULATOR_LIMIT // 255**2


@dataclass(frozen=True, kw_only=True)
class Int8Layer:
    """One dense layer. Raises ValueError where an input could make its accumulator overflow."""

    weights: NDArray[np.int8]
    """`(inputs, outputs)`, within ±127."""
    biases: NDArray[np.int32]
    """`(outputs,)`, in steps of the accumulator."""
    multipliers: NDArray[np.int32]
    """`(outputs,)`, 0 or above."""
    shifts: NDArray[np.uint8]
    """`(outputs,)`, 1 to 62."""
    relu: bool

    def __post_init__(self) -> None:
        outputs = self.weights.shape[1:]
        if not outputs == self.biases.shape == self.multipliers.shape == self.shifts.shape:
            raise ValueError(
                f"expected a bias, a multiplier and a shift for each of {outputs} outputs, got "
                f"{self.biases.shape}, {self.multipliers.shape} and {self.shifts.shape}"
            )
        # Whatever the order of the sum, no part of it exceeds the sum of the magnitudes.
        worst = np.abs(self.biases.astype(np.int64))
        worst += np.abs(self.weights.astype(np.int64)).sum(axis=0) * LOWEST_INPUT
        if int(worst.max()) > ACCUMULATOR_LIMIT:
            raise ValueError(
                f"expected accumulators within ±{ACCUMULATOR_LIMIT:,}, but output {int(worst.argmax())} of a layer "
                f"with {len(self.weights):,} inputs may reach {int(worst.max()):,}: take fewer inputs"
            )
        if int(self.multipliers.min()) < 0 or not 1 <= int(self.shifts.min()) <= int(self.shifts.max()) <= MAX_SHIFT:
            raise ValueError(f"expected multipliers of at least 0 and shifts from 1 to {MAX_SHIFT}")


@dataclass(frozen=True, kw_only=True)
class Int8Model:
    """What `quantize` gives. The scales are for people: no inference needs them."""

    spec: ModelSpec
    fraction_bits: int
    """Features are whole numbers of 2^-fraction_bits."""
    offsets: NDArray[np.int32]
    """`(inputs,)`: what is taken off a fixed-point feature."""
    input_multipliers: NDArray[np.int32]
    input_shifts: NDArray[np.uint8]
    layers: tuple[Int8Layer, ...]
    input_scale: float
    """Scaled units of one step of the input."""
    output_scale: float
    """The same of the output: logits, or scaled features."""

    @property
    def flash_bytes(self) -> int:
        """Of its constants; code comes to it, under a kilobyte on a Cortex-M3."""
        tables: list[NDArray[Any]] = [self.offsets, self.input_multipliers, self.input_shifts]
        for layer in self.layers:
            tables += [layer.weights, layer.biases, layer.multipliers, layer.shifts]
        return sum(table.nbytes for table in tables)

    @property
    def buffer_bytes(self) -> int:
        """Each of the two between layers; 0 without hidden layers."""
        return max(self.spec.sizes[1:-1], default=0)

    @property
    def ram_bytes(self) -> int:
        """Buffers on the stack and the caller's input and output."""
        return 2 * self.buffer_bytes + self.spec.sizes[0] + self.spec.sizes[-1]


# -- quantization ----------------------------------------------------------------------------------------------


def quantize(
    spec: ModelSpec,
    flat: Floats,
    mean: Floats | None,
    scale: Floats | None,
    windows: Floats,
    *,
    step: float = 1.0,
) -> Int8Model:
    """Parameters `(P,)` float32 and a scaler `(inputs,)` float32 each, or None, to 8-bit integers.

    windows: `(n, inputs)` float32, features before scaling, from all conditions that the model will meet: the largest
    activations on them become the ranges, and what lies beyond is cut off. step: what the firmware's features are
    counted in, in units of `windows`; a sensor's samples are whole steps of its own. Raises ValueError for what does
    not fit, or is not finite.
    """
    centre, spread = _checked(spec, flat, mean, scale, windows)
    if not (math.isfinite(step) and step > 0):
        raise ValueError(f"expected a step above 0, got {step:g}")
    if step != 1.0:
        windows, centre, spread = (windows / step).astype(np.float32), centre / step, spread / step
    dense = _dense(spec, flat)
    largest = np.max([_largest(dense, centre, spread, part) for part in _batches(windows)], axis=0)
    # What an autoencoder is to find lies beyond its healthy windows, and must not be clipped where training did not.
    whole_range = spec.kind == "autoencoder" and mean is not None
    input_scale = SCALED_LIMIT / LIMIT if whole_range else _step(largest[0])
    fraction_bits = _fraction_bits(centre, spread, windows, input_scale)
    unit = 2.0**fraction_bits
    coded = [_multiplier(1.0 / (float(one) * unit * input_scale), INPUT_MULTIPLIER_BITS) for one in spread]

    layers = []
    step = input_scale
    for place, (weights, biases) in enumerate(dense, start=1):
        last = place == len(dense)
        next_step = input_scale if last and spec.kind == "autoencoder" else _step(largest[place])
        layers.append(_layer(weights, biases, step, next_step, relu=not last))
        step = next_step
    return Int8Model(
        spec=spec,
        fraction_bits=fraction_bits,
        offsets=np.rint(centre * unit).astype(np.int32),
        input_multipliers=np.array([multiplier for multiplier, _ in coded], dtype=np.int32),
        input_shifts=np.array([shift for _, shift in coded], dtype=np.uint8),
        layers=tuple(layers),
        input_scale=input_scale,
        output_scale=step,
    )


def _checked(
    spec: ModelSpec, flat: Floats, mean: Floats | None, scale: Floats | None, windows: Floats
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    inputs = spec.sizes[0]
    if spec.parameters > MAX_PARAMETERS:
        raise ValueError(
            f"expected at most {MAX_PARAMETERS:,} parameters for a microcontroller, got {spec.parameters:,}"
        )
    if spec.kind == "autoencoder" and inputs > SCORE_INPUTS:
        raise ValueError(f"expected at most {SCORE_INPUTS:,} features, so that a score fits int32, got {inputs:,}")
    if flat.dtype != np.float32 or flat.shape != (spec.parameters,):
        raise ValueError(f"expected ({spec.parameters},) float32 parameters, got {flat.shape} {flat.dtype}")
    if windows.dtype != np.float32 or windows.ndim != 2 or windows.shape[1] != inputs or len(windows) == 0:
        raise ValueError(
            f"expected calibration windows (n, {inputs}) float32, one at least, got {windows.shape} {windows.dtype}"
        )
    if (mean is None) != (scale is None):
        raise ValueError("expected a mean and a scale, or neither")
    wide_mean = np.zeros(inputs) if mean is None else mean.astype(np.float64)
    wide_scale = np.ones(inputs) if scale is None else scale.astype(np.float64)
    if wide_mean.shape != (inputs,) or wide_scale.shape != (inputs,):
        raise ValueError(
            f"expected a mean and a scale for {inputs} features, got {wide_mean.shape}, {wide_scale.shape}"
        )
    if not all(np.isfinite(values).all() for values in (flat, windows, wide_mean, wide_scale)):
        raise ValueError("expected finite parameters, windows, means and scales, got nan or infinity")
    if not (wide_scale > 0).all():
        raise ValueError(f"expected scales above 0, got {wide_scale.min():g}")
    return wide_mean, wide_scale


def _dense(spec: ModelSpec, flat: Floats) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Weights `(inputs, outputs)` and biases `(outputs,)` of each layer; a classifier's last less their means."""
    dense = []
    for layer in spec.layers:
        weights = flat[layer.start : layer.bias_start].reshape(layer.inputs, layer.outputs).astype(np.float64)
        biases = flat[layer.bias_start : layer.stop].astype(np.float64)
        dense.append((weights, biases))
    if spec.kind != "autoencoder":
        weights, biases = dense.pop()
        dense.append((weights - weights.mean(axis=1, keepdims=True), biases - biases.mean()))
    return dense


def _largest(
    dense: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]],
    centre: NDArray[np.float64],
    spread: NDArray[np.float64],
    windows: Floats,
) -> list[float]:
    """Largest magnitudes of the scaled features, and of what each layer gives."""
    given = np.clip((windows - centre) / spread, -SCALED_LIMIT, SCALED_LIMIT)
    found = [float(np.abs(given).max())]
    for place, (weights, biases) in enumerate(dense, start=1):
        given = given @ weights + biases
        if place < len(dense):
            given = np.maximum(given, 0.0)
        found.append(float(np.abs(given).max()))
    return found


def _batches(windows: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Few enough rows at a time that wide layers take little memory."""
    for start in range(0, len(windows), BATCH):
        yield windows[start : start + BATCH]


def _layer(
    weights: NDArray[np.float64], biases: NDArray[np.float64], step: float, next_step: float, *, relu: bool
) -> Int8Layer:
    """`step` and `next_step`: what one step of its inputs and of its outputs is worth."""
    # A unit with small weights and a large bias takes coarser weights, so that its bias fits.
    steps = np.maximum(np.abs(weights).max(axis=0) / LIMIT, np.abs(biases) / (step * BIAS_LIMIT))
    steps = np.where(steps > 0, steps, next_step / step)
    coded = [_multiplier(float(one) * step / next_step, MULTIPLIER_BITS) for one in steps]
    return Int8Layer(
        weights=np.clip(np.rint(weights / steps), -LIMIT, LIMIT).astype(np.int8),
        biases=np.rint(biases / (steps * step)).astype(np.int32),
        multipliers=np.array([multiplier for multiplier, _ in coded], dtype=np.int32),
        shifts=np.array([shift for _, shift in coded], dtype=np.uint8),
        relu=relu,
    )


def _step(largest: float) -> float:
    """What one int8 step is worth, so that this magnitude fits."""
    return float(largest) / LIMIT or 1.0


def _multiplier(ratio: float, bits: int) -> tuple[int, int]:
    """Multiplier below 2^bits and shift, nearest to a ratio above 0. Raises ValueError for one that is too large."""
    mantissa, exponent = math.frexp(ratio)
    multiplier, shift = round(mantissa * 2**bits), bits - exponent
    if multiplier == 1 << bits:
        multiplier, shift = multiplier >> 1, shift - 1
    if shift > MAX_SHIFT:
        multiplier, shift = round(ratio * 2.0**MAX_SHIFT), MAX_SHIFT
    if shift < 1:
        raise ValueError(
            f"expected a ratio of scales below {2.0 ** (bits - 1):g}, got {ratio:g}: the model's layers differ too much"
        )
    return multiplier, shift


def _fraction_bits(mean: NDArray[np.float64], scale: NDArray[np.float64], windows: Floats, input_scale: float) -> int:
    """16 where features fit and are fine enough with them; fewer for large ones, more for small ones."""
    finest = float(scale.min()) * input_scale
    largest = max(float((np.abs(mean) + SCALED_LIMIT * scale).max()), float(np.abs(windows).max()))
    fits = 30 - math.ceil(math.log2(largest))
    wanted = max(FRACTION_BITS, math.ceil(math.log2(16 / finest)))
    bits = min(wanted, fits, 30)
    if bits < 0 or finest * 2.0**bits < 1:
        raise ValueError(
            f"expected features that int32 can hold, got values up to {largest:g} of which differences of {finest:g} "
            "matter: give them another unit"
        )
    return bits


# -- inference in numpy ----------------------------------------------------------------------------------------


def to_fixed(model: Int8Model, x: Floats) -> NDArray[np.int32]:
    """Features `(n, inputs)` as they are measured to fixed point, saturated: what firmware computes for itself."""
    fixed = np.rint(x.astype(np.float64) * 2.0**model.fraction_bits)
    return np.clip(fixed, -(2.0**31), 2.0**31 - 1).astype(np.int32)


def quantize_inputs(model: Int8Model, fixed: NDArray[np.int32]) -> NDArray[np.int8]:
    """Fixed-point features `(n, inputs)` to the model's input, scaled and within ±127."""
    apart = fixed.astype(np.int64) - model.offsets
    return np.clip(_rescale(apart, model.input_multipliers, model.input_shifts), -LIMIT, LIMIT).astype(np.int8)


def reference(model: Int8Model, x: NDArray[np.int8]) -> NDArray[np.int8]:
    """Inputs `(n, inputs)` int8 to outputs `(n, outputs)` int8, bit for bit as the C file gives them."""
    if x.dtype != np.int8 or x.ndim != 2 or x.shape[1] != model.spec.sizes[0]:
        raise ValueError(f"expected (n, {model.spec.sizes[0]}) int8, got {x.shape} {x.dtype}")
    parts = [_forward(model, part) for part in _batches(x)]
    return np.concatenate([np.zeros((0, model.spec.sizes[-1]), dtype=np.int8), *parts])


def _forward(model: Int8Model, x: NDArray[np.int8]) -> NDArray[np.int8]:
    for layer in model.layers:
        sums = x.astype(np.int32) @ layer.weights.astype(np.int32) + layer.biases
        scaled = _rescale(sums.astype(np.int64), layer.multipliers, layer.shifts)
        x = np.clip(scaled, 0 if layer.relu else -LIMIT, LIMIT).astype(np.int8)
    return x


def classes(out: NDArray[np.int8]) -> NDArray[np.int64]:
    """Logits `(n, classes)` to the first of the largest, `(n,)`."""
    return np.asarray(out.argmax(axis=1), dtype=np.int64)


def anomaly_score(x: NDArray[np.int8], out: NDArray[np.int8]) -> NDArray[np.int32]:
    """Sum of squared differences, `(n,)`. Times input_scale^2 / inputs, it is the score of the float model."""
    apart = x.astype(np.int32) - out.astype(np.int32)
    return np.asarray((apart * apart).sum(axis=1, dtype=np.int32), dtype=np.int32)


def _rescale(values: NDArray[np.int64], multipliers: NDArray[np.int32], shifts: NDArray[np.uint8]) -> NDArray[np.int64]:
    """times multiplier / 2^shift, rounded half away from zero: no right shift of a negative number, which C99 leaves
    to the compiler."""
    products = values * multipliers.astype(np.int64)
    wide = shifts.astype(np.int64)
    magnitudes = (np.abs(products) + (np.int64(1) << (wide - 1))) >> wide
    return np.asarray(np.where(products < 0, -magnitudes, magnitudes), dtype=np.int64)


# -- C ---------------------------------------------------------------------------------------------------------


def to_c(
    model: Int8Model,
    *,
    prefix: str = "fedmq",
    about: Sequence[str] = (),
    labels: Sequence[str] = (),
    features: Sequence[str] = (),
) -> str:
    """One C99 file: integers only, nothing allocated, no library called. The same arguments give the same text.

    prefix: of every name in it, so that several models can be in one firmware; about: lines for the comment at its
    head, such as task and version; labels, features: names of outputs and inputs, for that comment as well. Raises
    ValueError for a prefix that is no identifier.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,30}", prefix):
        raise ValueError(f"expected a prefix of a-z, 0-9 and _ that begins with a letter, 31 at most, got {prefix!r}")
    for names, size, what in ((labels, model.spec.sizes[-1], "outputs"), (features, model.spec.sizes[0], "inputs")):
        if names and len(names) != size:
            raise ValueError(f"expected names for {size} {what}, got {len(names)}")
    upper = prefix.upper()
    parts = [
        _head(model, prefix, about, labels, features),
        _declarations(model, prefix),
        f"#ifndef {upper}_DECLARATIONS_ONLY\n",
        _tables(model, prefix),
        _functions(model, prefix),
        _self_test(model, prefix),
        f"#endif /* {upper}_DECLARATIONS_ONLY */",
    ]
    return "\n".join(parts) + "\n"


def _head(model: Int8Model, prefix: str, about: Sequence[str], labels: Sequence[str], features: Sequence[str]) -> str:
    spec, upper = model.spec, prefix.upper()
    unit = 2**model.fraction_bits
    if spec.kind == "autoencoder":
        result = [
            "out[] is the reconstruction of in[], in the same steps.",
            f"{prefix}_score(in, out) is the sum of (in - out)^2. The score of the float model, the mean squared",
            f"difference in scaled units, is about {prefix}_score * {model.input_scale**2 / spec.sizes[0]:.9g}.",
            "Compare it with a threshold of your own, as a whole number.",
        ]
    else:
        result = [
            f"out[] is a logit for each class, less their mean; a step is {model.output_scale:.9g}.",
            f"{prefix}_class(out) is the position of the largest, the first one where several are.",
        ]
    lines = [
        f"{spec.kind} of {' - '.join(str(size) for size in spec.sizes)} units in 8-bit integers, by fedmq.",
        *(_plain(line) for line in about),
        "",
        "C99. Integers only: no float, no allocation, no library, no state; may be called from any task at once.",
        f"Constants: {model.flash_bytes:,} bytes. Stack: {2 * model.buffer_bytes:,} bytes, and what calls take.",
        "",
        "How to use it",
        "  Compile this file as it is. Elsewhere, for the declarations alone:",
        f"      #define {upper}_DECLARATIONS_ONLY",
        '      #include "this file"',
        f"      int32_t features[{upper}_INPUTS];  int8_t in[{upper}_INPUTS], out[{upper}_OUTPUTS];",
        f"      {prefix}_quantize(features, in);",
        f"      {prefix}_infer(in, out);                 in and out must not overlap",
        f"  With -D{upper}_SELF_TEST there is also int {prefix}_self_test(void): 0 where this machine computes what",
        "  it should, else the number of the first made-up window that came out otherwise, from 1.",
        "",
        "Input",
        f"  features[] are the features of a window before any scaling, times {unit} (Q{31 - model.fraction_bits}."
        f"{model.fraction_bits}), rounded to the",
        f"  nearest int32. {prefix}_quantize takes off each one's offset and multiplies; the federation's",
        "  scaler and its clipping are in these numbers:",
        "      in[i] = clamp((features[i] - offset[i]) * multiplier[i] / 2^shift[i], -127, 127)",
        f"  A step of in[] is {model.input_scale:.9g} in scaled units.",
        "",
        "Output",
        *(f"  {line}" for line in result),
        "",
        "Arithmetic",
        "  accumulator = bias + sum of weight * in, in int32; no int8 input can make it overflow.",
        "  out = clamp(accumulator * multiplier / 2^shift), by an int64 product, rounded half away from zero;",
        "  within -127 to 127, and from 0 on where ReLU follows. All products fit int64: |accumulator| < 2^31 and",
        "  multiplier < 2^31; |features[i] - offset[i]| < 2^32 and multiplier[i] < 2^30; shifts are 1 to 62.",
    ]
    if features:
        lines += ["", "Features, in order", *(f"  {place}  {_plain(name)}" for place, name in enumerate(features))]
    if labels:
        lines += ["", "Classes, in order", *(f"  {place}  {_plain(name)}" for place, name in enumerate(labels))]
    return "/*\n" + "\n".join(f" * {line}".rstrip() for line in lines) + "\n */\n"


def _plain(text: str) -> str:
    """What came from settings must not end a comment, nor continue a line."""
    return re.sub(r"[^A-Za-z0-9 _.,:;()+=@-]", "?", text)


def _declarations(model: Int8Model, prefix: str) -> str:
    upper, spec = prefix.upper(), model.spec
    extra = (
        f"/* Sum of squared differences, 0 or more. */\n"
        f"int32_t {prefix}_score(const int8_t in[{upper}_INPUTS], const int8_t out[{upper}_OUTPUTS]);"
        if spec.kind == "autoencoder"
        else f"/* Position of the largest logit, 0 to {upper}_OUTPUTS - 1. */\n"
        f"int32_t {prefix}_class(const int8_t out[{upper}_OUTPUTS]);"
    )
    return f"""\
#ifndef {upper}_MODEL_DECLARED
#define {upper}_MODEL_DECLARED

#include <stdint.h>

#ifdef __cplusplus
extern "C" {{
#endif

#define {upper}_INPUTS {spec.sizes[0]}
#define {upper}_OUTPUTS {spec.sizes[-1]}
#define {upper}_FRACTION_BITS {model.fraction_bits}

/* Fixed-point features, before scaling, to the model's input. */
void {prefix}_quantize(const int32_t features[{upper}_INPUTS], int8_t in[{upper}_INPUTS]);
void {prefix}_infer(const int8_t in[{upper}_INPUTS], int8_t out[{upper}_OUTPUTS]);
{extra}
#ifdef {upper}_SELF_TEST
int {prefix}_self_test(void);
#endif

#ifdef __cplusplus
}}
#endif

#endif /* {upper}_MODEL_DECLARED */
"""


def _tables(model: Int8Model, prefix: str) -> str:
    tables = [
        _table("int32_t", f"{prefix}_in_offset", model.offsets),
        _table("int32_t", f"{prefix}_in_multiplier", model.input_multipliers),
        _table("uint8_t", f"{prefix}_in_shift", model.input_shifts),
    ]
    for number, layer in enumerate(model.layers, start=1):
        tables += [
            f"/* Layer {number}: weights of one output after another. */",
            _table("int8_t", f"{prefix}_weights_{number}", layer.weights.T),
            _table("int32_t", f"{prefix}_bias_{number}", layer.biases),
            _table("int32_t", f"{prefix}_multiplier_{number}", layer.multipliers),
            _table("uint8_t", f"{prefix}_shift_{number}", layer.shifts),
        ]
    return "\n".join(tables) + "\n"


def _table(kind: str, name: str, values: NDArray[np.generic]) -> str:
    # -2147483648 is no int in C: a minus before a number that does not fit.
    texts = ["(-2147483647 - 1)" if value == -(1 << 31) else str(value) for value in values.ravel().tolist()]
    width = 24 if kind != "int32_t" else 9
    rows = [", ".join(texts[start : start + width]) for start in range(0, len(texts), width)]
    return f"static const {kind} {name}[{len(texts)}] = {{\n    " + ",\n    ".join(rows) + "};"


def _functions(model: Int8Model, prefix: str) -> str:
    upper, spec = prefix.upper(), model.spec
    calls = []
    for number, layer in enumerate(model.layers, start=1):
        given = "in" if number == 1 else f"hidden_{number % 2}"
        target = "out" if number == len(model.layers) else f"hidden_{(number + 1) % 2}"
        tables = ", ".join(f"{prefix}_{what}_{number}" for what in ("weights", "bias", "multiplier", "shift"))
        rows, columns = layer.weights.shape
        calls.append(
            f"    {prefix}_dense({given}, {rows}, {tables}, {columns}, {0 if layer.relu else -LIMIT}, {target});"
        )
    hidden = len(model.layers) - 1
    buffers = "".join(f"    int8_t hidden_{place}[{model.buffer_bytes}];\n" for place in range(min(hidden, 2)))
    body = buffers + "\n".join(calls)
    if spec.kind == "autoencoder":
        extra = f"""\
int32_t {prefix}_score(const int8_t in[{upper}_INPUTS], const int8_t out[{upper}_OUTPUTS])
{{
    int32_t sum = 0;
    for (int32_t i = 0; i < {upper}_INPUTS; i++) {{
        int32_t apart = (int32_t)in[i] - out[i];
        sum += apart * apart;
    }}
    return sum;
}}
"""
    else:
        extra = f"""\
int32_t {prefix}_class(const int8_t out[{upper}_OUTPUTS])
{{
    int32_t best = 0;
    for (int32_t i = 1; i < {upper}_OUTPUTS; i++) {{
        if (out[i] > out[best]) {{
            best = i;
        }}
    }}
    return best;
}}
"""
    return f"""\
/* value * multiplier / 2^shift, rounded half away from zero, within low to 127. The product fits: see "Arithmetic". */
static int8_t {prefix}_rescale(int64_t value, int32_t multiplier, uint8_t shift, int32_t low)
{{
    int64_t product = value * multiplier;
    int64_t half = (int64_t)1 << (shift - 1);
    int64_t scaled = product < 0 ? -((half - product) >> shift) : (half + product) >> shift;
    return (int8_t)(scaled < low ? low : scaled > {LIMIT} ? {LIMIT} : scaled);
}}

static void {prefix}_dense(const int8_t *in, int32_t inputs, const int8_t *weights, const int32_t *bias,
                  const int32_t *multiplier, const uint8_t *shift, int32_t outputs, int32_t low, int8_t *out)
{{
    for (int32_t o = 0; o < outputs; o++) {{
        int32_t sum = bias[o];
        for (int32_t i = 0; i < inputs; i++) {{
            sum += (int32_t)weights[i] * in[i];
        }}
        weights += inputs;
        out[o] = {prefix}_rescale(sum, multiplier[o], shift[o], low);
    }}
}}

void {prefix}_quantize(const int32_t features[{upper}_INPUTS], int8_t in[{upper}_INPUTS])
{{
    for (int32_t i = 0; i < {upper}_INPUTS; i++) {{
        int64_t apart = (int64_t)features[i] - {prefix}_in_offset[i];
        in[i] = {prefix}_rescale(apart, {prefix}_in_multiplier[i], {prefix}_in_shift[i], -{LIMIT});
    }}
}}

void {prefix}_infer(const int8_t in[{upper}_INPUTS], int8_t out[{upper}_OUTPUTS])
{{
{body}
}}

{extra}"""


def _self_test(model: Int8Model, prefix: str) -> str:
    """Windows made up from a fixed seed, so that no window of a plant is in the file."""
    upper, spec = prefix.upper(), model.spec
    rng = np.random.default_rng(8)
    x = rng.integers(-LIMIT, LIMIT + 1, size=(SELF_TEST_WINDOWS, spec.sizes[0])).astype(np.int8)
    return f"""\
#ifdef {upper}_SELF_TEST
{_table("int8_t", f"{prefix}_test_in", x)}
{_table("int8_t", f"{prefix}_test_out", reference(model, x))}

int {prefix}_self_test(void)
{{
    int8_t out[{upper}_OUTPUTS];
    for (int32_t window = 0; window < {SELF_TEST_WINDOWS}; window++) {{
        {prefix}_infer({prefix}_test_in + window * {upper}_INPUTS, out);
        for (int32_t i = 0; i < {upper}_OUTPUTS; i++) {{
            if (out[i] != {prefix}_test_out[window * {upper}_OUTPUTS + i]) {{
                return (int)window + 1;
            }}
        }}
    }}
    return 0;
}}
#endif
"""
