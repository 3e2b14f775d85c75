"""What a model on a sensor found: the payload of frames of kind 0x03.

Owns the layout and its checks. Refuses to know models: a score names its image by id, and whoever sent that image knows
the rest. Windows follow each other without overlap, so that a frame that is missing by its sequence is one score lost.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedmq_firmware_bridge.frames import FrameError, Kind, Opaque

__all__ = ["Score", "read_score"]

_SCORE = struct.Struct("<QIfBBH")
_OUTPUTS, _ANOMALY = 0, 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Score:
    """One window's result."""

    sensor: int
    boot: int
    sequence: int
    """Of this sensor's scores since its start."""
    taken_us: int
    """Microseconds on the sensor's own clock, at the window's first sample: as in samples."""
    image: int
    """Id of the image that computed it."""
    anomaly: bool
    """Whether it is an anomaly score, and not a model's outputs."""
    integers: np.ndarray[Any, np.dtype[np.int32]]
    """`(1,)`: the sum of squared differences; or `(outputs,)`: logits in int8. To the last bit as on a gateway."""
    scale: float
    """What one step of them is worth."""

    @property
    def values(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """The mean squared difference in scaled units; or logits."""
        return self.integers.astype(np.float64) * np.float64(self.scale)


def read_score(frame: Opaque) -> Score:
    """Raises FrameError for another kind, or a payload that contradicts itself."""
    payload = frame.payload
    if frame.kind != Kind.SCORE or len(payload) < _SCORE.size:
        raise FrameError(
            f"score: {_SCORE.size} bytes or more of kind {Kind.SCORE:#04x} expected, {len(payload)} of "
            f"{frame.kind:#04x} came"
        )
    taken_us, image, scale, result, zero, count = _SCORE.unpack_from(payload)
    width = {_OUTPUTS: 1, _ANOMALY: 4}.get(result)
    if width is None or zero or count < 1 or len(payload) != _SCORE.size + width * count:
        raise FrameError(f"score: result {result}, {count} numbers do not make {len(payload)} bytes")
    if result == _ANOMALY and count != 1:
        raise FrameError(f"score: one anomaly score expected, {count} came")
    if not (math.isfinite(scale) and scale > 0):
        raise FrameError(f"score: a scale above 0 expected, {scale} came")
    integers = np.frombuffer(payload, dtype=f"<i{width}", offset=_SCORE.size).astype(np.int32)
    if result == _ANOMALY and integers[0] < 0:
        raise FrameError(f"score: an anomaly score of 0 or more expected, {integers[0]} came")
    return Score(
        sensor=frame.sensor,
        boot=frame.boot,
        sequence=frame.sequence,
        taken_us=taken_us,
        image=image,
        anomaly=result == _ANOMALY,
        integers=integers,
        scale=scale,
    )
