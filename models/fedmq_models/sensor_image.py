"""An int8 model as data: bytes that a sensor receives over its line, checks, and runs out of a slot of its flash.

Owns the layout, byte by byte, and its checks. The arithmetic is `int8`'s, and nobody's else: `to_bytes` writes what
`int8.reference` computes with, and `firmware_bridge/firmware/fedmq_model.c` interprets it to the last bit. Refuses to
know how the bytes travel (`fedmq_firmware_bridge.downloads`).

    image  = header | sizes | scalers | rows | test | CRC-32                    all little-endian, nothing aligned
    header = magic "FQMI" | format u8 | result u8 | layers u8 | fraction_bits u8 | length u32 | version u32
             | digest 8 | rate_mhz u32 | sample_scale f32 | result_scale f32 | channels u8 | 0 u8 | samples u16
             | scalers u16 | hop u16
    sizes  = units u16                                              layers + 1 of them, from inputs to outputs
    scaler = offset i32 | multiplier i32 | shift u8                 of each input, or one for all
    row    = bias i32 | multiplier i32 | shift u8 | weights i8      of each unit, layer after layer
    test   = samples i16 | outputs i8 | result i32                  one window, made up, and what must come of it

Rules:
- What a model takes are raw samples, int16 as the sensor streams them: `samples` of each of `channels`, the first one
  of every channel, then the second. It takes no features: those are computed on a gateway.
- An image that passes `from_bytes` makes no accumulator overflow and no shift undefined, whoever wrote it. The sensor
  checks the same.
- The CRC-32 at the end names the image, on the line and in scores.
- ReLU stands behind every layer but the last.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
from fedmq_protocol.task import ModelSpec
from numpy.typing import NDArray

from fedmq_models import int8
from fedmq_models.int8 import Int8Layer, Int8Model

__all__ = [
    "FORMAT",
    "MAX_CHANNELS",
    "MAX_LAYERS",
    "MAX_SIZE",
    "ImageError",
    "SensorImage",
    "from_bytes",
    "image_id",
    "to_bytes",
]

MAGIC = b"FQMI"
FORMAT = 1
MAX_LAYERS = 16
MAX_SIZE = 0xFFFF
"""Units of a layer."""
MAX_CHANNELS = 16
MAX_OUTPUTS = 988
"""Of a model whose result they are: what a frame with a score holds."""
MAX_BYTES = 1 << 21
"""A model of `int8.MAX_PARAMETERS` with all that stands around it."""
OUTPUTS, ANOMALY = 0, 1
"""What a window's result is: the outputs as they are, or the sum of squared differences from the input."""

T = TypeVar("T")
Units = NDArray[Any]
"""Structured: a bias, a multiplier and a shift each."""

_HEADER = struct.Struct("<4sBBBBII8sIffBBHHH")
_UNIT = np.dtype([("bias", "<i4"), ("multiplier", "<i4"), ("shift", "u1")])
_RESULT = struct.Struct("<i")
_CRC = struct.Struct("<I")


class ImageError(ValueError):
    """The model does not make an image, or the bytes do not hold one."""


@dataclass(frozen=True, kw_only=True)
class SensorImage:
    """A model, and what a sensor must know to feed it."""

    model: Int8Model
    """Quantized for whole steps of int16 samples: `int8.quantize` with `step` = `sample_scale`."""
    version: int
    """Of its lineage: for people."""
    digest: bytes
    """8 bytes: how the digest of that version's parameters begins."""
    rate_mhz: int
    """Samples per second of one channel, times 1,000; 0 takes any."""
    sample_scale: float
    """Units of one step of a sample, as float32: a sensor with another one must not run it. 0 takes any."""
    channels: int
    hop: int
    """Samples from one window's start to the next one's; no fewer than a window has."""

    def __post_init__(self) -> None:
        spec = self.model.spec
        if spec.kind not in ("softmax", "mlp", "autoencoder"):
            raise ImageError(f"expected a softmax, mlp or autoencoder, got a {spec.kind}")
        if not 1 <= len(spec.sizes) - 1 <= MAX_LAYERS or max(spec.sizes) > MAX_SIZE:
            raise ImageError(f"expected up to {MAX_LAYERS} layers of up to {MAX_SIZE:,} units, got {spec.sizes}")
        if spec.kind == "autoencoder" and spec.sizes[0] > int8.SCORE_INPUTS:
            raise ImageError(f"expected at most {int8.SCORE_INPUTS:,} inputs, so that a score fits int32")
        if self.result == OUTPUTS and spec.sizes[-1] > MAX_OUTPUTS:
            raise ImageError(f"expected at most {MAX_OUTPUTS} outputs, which a frame can hold, got {spec.sizes[-1]:,}")
        if not 1 <= self.channels <= MAX_CHANNELS or spec.sizes[0] % self.channels:
            raise ImageError(
                f"expected 1 to {MAX_CHANNELS} channels that divide {spec.sizes[0]} inputs, got {self.channels}"
            )
        if not self.samples <= self.hop <= 0xFFFF:
            raise ImageError(f"expected a hop of {self.samples} to 65,535 samples, got {self.hop}")
        if len(self.digest) != 8:
            raise ImageError(f"expected 8 bytes of a digest, got {len(self.digest)}")
        for what, value in (("version", self.version), ("rate", self.rate_mhz)):
            if not 0 <= value <= 0xFFFFFFFF:
                raise ImageError(f"expected a {what} that fits 32 bits, got {value}")
        object.__setattr__(self, "sample_scale", _float32("sample_scale", self.sample_scale, 0.0))
        _float32("result_scale", self.result_scale, 2.0**-149)

    @property
    def samples(self) -> int:
        """Of a window, of each channel."""
        return self.model.spec.sizes[0] // self.channels

    @property
    def result(self) -> int:
        return ANOMALY if self.model.spec.kind == "autoencoder" else OUTPUTS

    @property
    def result_scale(self) -> float:
        """What one step of a result is worth: of a logit, or of the mean squared difference in scaled units."""
        model = self.model
        return model.input_scale**2 / model.spec.sizes[0] if self.result == ANOMALY else model.output_scale

    def run(self, windows: NDArray[np.int16]) -> tuple[NDArray[np.int8], NDArray[np.int32]]:
        """Windows `(n, samples, channels)` int16 to outputs `(n, outputs)` and anomaly scores `(n,)`, 0 where the
        result is the outputs: what a sensor gives, to the last bit."""
        if windows.dtype != np.int16 or windows.shape[1:] != (self.samples, self.channels):
            raise ImageError(
                f"expected windows (n, {self.samples}, {self.channels}) int16, got {windows.shape} {windows.dtype}"
            )
        flat = windows.reshape(len(windows), -1).astype(np.float32)
        x = int8.quantize_inputs(self.model, int8.to_fixed(self.model, flat))
        out = int8.reference(self.model, x)
        scores = int8.anomaly_score(x, out) if self.result == ANOMALY else np.zeros(len(out), dtype=np.int32)
        return out, scores


def image_id(data: bytes) -> int:
    """By which a sensor and its scores name the image: the CRC-32 that it ends with."""
    return int(_CRC.unpack(data[-_CRC.size :])[0])


# -- writing ---------------------------------------------------------------------------------------------------


def to_bytes(image: SensorImage) -> bytes:
    """The same image gives the same bytes."""
    model = image.model
    scalers = _units(model.offsets, model.input_multipliers, model.input_shifts)
    if len(np.unique(scalers)) == 1:
        scalers = scalers[:1]
    parts = [np.array(model.spec.sizes, dtype="<u2").tobytes(), scalers.tobytes()]
    for layer in model.layers:
        units = _units(layer.biases, layer.multipliers, layer.shifts)
        for unit, weights in zip(units, layer.weights.T, strict=True):
            parts += [unit.tobytes(), weights.tobytes()]
    window = _made_up_window(image)
    (outputs,), (score,) = image.run(window)
    parts += [window.astype("<i2").tobytes(), outputs.tobytes(), _RESULT.pack(score)]
    body = b"".join(parts)
    header = _HEADER.pack(
        MAGIC,
        FORMAT,
        image.result,
        len(model.layers),
        model.fraction_bits,
        _HEADER.size + len(body) + _CRC.size,
        image.version,
        image.digest,
        image.rate_mhz,
        image.sample_scale,
        image.result_scale,
        image.channels,
        0,
        image.samples,
        len(scalers),
        image.hop,
    )
    return header + body + _CRC.pack(zlib.crc32(header + body))


def _units(biases: NDArray[np.int32], multipliers: NDArray[np.int32], shifts: NDArray[np.uint8]) -> Units:
    units = np.zeros(len(biases), dtype=_UNIT)
    units["bias"], units["multiplier"], units["shift"] = biases, multipliers, shifts
    return units


def _made_up_window(image: SensorImage) -> NDArray[np.int16]:
    """`(1, samples, channels)`: drawn from a fixed seed over the range of the input, so that no window of a plant is in
    the image."""
    model = image.model
    wanted = np.random.default_rng(8).integers(-int8.LIMIT, int8.LIMIT + 1, size=model.spec.sizes[0])
    steps = wanted * 2.0 ** model.input_shifts.astype(np.float64) / np.maximum(model.input_multipliers, 1)
    window = np.clip(np.rint((steps + model.offsets) / 2.0**model.fraction_bits), -(2**15), 2**15 - 1)
    return np.asarray(window.astype(np.int16).reshape(1, image.samples, image.channels))


# -- reading ---------------------------------------------------------------------------------------------------


def from_bytes(data: bytes) -> SensorImage:
    """The image, checked as the sensor checks it, its test included. Raises ImageError."""
    if not _HEADER.size + _CRC.size <= len(data) <= MAX_BYTES:
        raise ImageError(f"expected {_HEADER.size + _CRC.size} to {MAX_BYTES:,} bytes, got {len(data):,}")
    magic, form, result, layers, fraction_bits, length, version, digest, *rest = _HEADER.unpack_from(data)
    rate_mhz, sample_scale, result_scale, channels, zero, samples, scaler_count, hop = rest
    if magic != MAGIC or form != FORMAT:
        raise ImageError(f"expected an image of format {FORMAT}, which begins with {MAGIC!r}, got {data[:5]!r}")
    if length != len(data):
        raise ImageError(f"expected the {length:,} bytes that its header tells, got {len(data):,}")
    if zlib.crc32(data[: -_CRC.size]) != image_id(data):
        raise ImageError("its CRC-32 does not hold: it was damaged on its way, or written half")
    if result not in (OUTPUTS, ANOMALY) or zero or not 1 <= layers <= MAX_LAYERS or fraction_bits > 30:
        raise ImageError(f"its header says result {result}, {layers} layers, {fraction_bits} fraction bits, {zero}")
    take = _Taker(data[_HEADER.size : -_CRC.size])
    sizes = tuple(take(np.dtype("<u2"), layers + 1).tolist())
    if min(sizes) < 1 or sizes[0] != samples * channels or scaler_count not in (1, sizes[0]):
        raise ImageError(f"{samples} samples of {channels} channels and {scaler_count} scalers do not fit {sizes}")
    if result == ANOMALY and sizes[0] != sizes[-1]:
        raise ImageError(f"expected as many outputs as inputs, to take one from the other, got {sizes}")
    scalers = np.resize(take(_UNIT, scaler_count), sizes[0])
    _within(scalers, int8.INPUT_MULTIPLIER_BITS)
    dense = []
    for place, (inputs, outputs) in enumerate(pairwise(sizes), start=1):
        rows = take(np.dtype([("unit", _UNIT), ("weights", "i1", (inputs,))]), outputs)
        _within(rows["unit"], int8.MULTIPLIER_BITS)
        dense.append(_layer(rows, relu=place < layers))
    window = take(np.dtype("<i2"), sizes[0]).astype(np.int16)
    expected = take(np.dtype("i1"), sizes[-1])
    (expected_score,) = _RESULT.unpack(take(np.dtype("u1"), _RESULT.size).tobytes())
    take.end()
    kind = "autoencoder" if result == ANOMALY else "softmax" if layers == 1 else "mlp"
    for what, scale in (("sample_scale", sample_scale), ("result_scale", result_scale)):
        _float32(what, scale, 0.0)
    image = _checked(
        lambda: SensorImage(
            model=Int8Model(
                spec=ModelSpec(kind=kind, sizes=sizes),  # type: ignore[arg-type]
                fraction_bits=fraction_bits,
                offsets=scalers["bias"].astype(np.int32),
                input_multipliers=scalers["multiplier"].astype(np.int32),
                input_shifts=scalers["shift"].astype(np.uint8),
                layers=tuple(dense),
                input_scale=math.sqrt(result_scale * sizes[0]) if result == ANOMALY else 1.0,
                output_scale=result_scale,
            ),
            version=version,
            digest=digest,
            rate_mhz=rate_mhz,
            sample_scale=sample_scale,
            channels=channels,
            hop=hop,
        )
    )
    (outputs_now,), (score_now,) = image.run(window.reshape(1, samples, channels))
    if not np.array_equal(outputs_now, expected) or score_now != expected_score:
        raise ImageError("its test gives other numbers than it says: it was written by another arithmetic")
    return image


class _Taker:
    """Arrays off the front of bytes; never more than there are."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def __call__(self, kind: np.dtype[Any], count: int) -> NDArray[Any]:
        stop = self._at + kind.itemsize * count
        if stop > len(self._data):
            raise ImageError(f"expected {stop:,} bytes behind its header at least, got {len(self._data):,}")
        taken = np.frombuffer(self._data, dtype=kind, offset=self._at, count=count)
        self._at = stop
        return taken

    def end(self) -> None:
        if self._at != len(self._data):
            raise ImageError(f"{len(self._data) - self._at:,} bytes stand behind its end")


def _layer(rows: Units, *, relu: bool) -> Int8Layer:
    units = rows["unit"]
    return _checked(
        lambda: Int8Layer(
            weights=rows["weights"].T.astype(np.int8),
            biases=units["bias"].astype(np.int32),
            multipliers=units["multiplier"].astype(np.int32),
            shifts=units["shift"].astype(np.uint8),
            relu=relu,
        )
    )


def _within(units: Units, bits: int) -> None:
    """So that every product fits int64."""
    multipliers, shifts = units["multiplier"], units["shift"]
    if int(multipliers.min()) < 0 or int(multipliers.max()) >= 1 << bits:
        raise ImageError(f"expected multipliers of 0 to 2^{bits} - 1")
    if not 1 <= int(shifts.min()) <= int(shifts.max()) <= int8.MAX_SHIFT:
        raise ImageError(f"expected shifts of 1 to {int8.MAX_SHIFT}")


def _checked(make: Callable[[], T]) -> T:
    """What does not fit together, as an ImageError."""
    try:
        return make()
    except ImageError:
        raise
    except ValueError as error:
        raise ImageError(str(error)) from error


def _float32(what: str, value: float, least: float) -> float:
    rounded = float(np.float32(value))
    if not math.isfinite(rounded) or rounded < least:
        raise ImageError(f"{what}: expected a number of {least:g} or more that float32 can hold, got {value}")
    return rounded
