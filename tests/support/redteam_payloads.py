"""Payloads of updates as no honest gateway makes them, each wrong in one way and right in all others.

    forger = Forger(task, plan, steps)
    mallory.answer(plan, forger.packed(bomb(4_000_000)))

Built part by part after the layout in `fedmq_compression`, with the checksum that the coordinator expects: what is
refused is refused for what is wrong, and for nothing before that. Two layouts are made: of a sparse codec of 8 bits
(the gaps, and values that may be a zstd frame), and of a dense one of float32.
"""

from __future__ import annotations

import numpy as np
import zstandard
from fedmq_compression.bits import gaps_of, golomb, natural_divisor
from fedmq_compression.frame import deflate, scale_bytes, seal, varint
from fedmq_compression.indices import Layout
from fedmq_compression.pipeline import (
    COUNT_STATED,
    VALUES_PACKED,
    CodecSpec,
    Contexts,
    decode,
    encode,
)
from fedmq_protocol.messages import RoundPlan
from fedmq_protocol.task import UPLINK_STEP, Task, initial_steps
from numpy.typing import NDArray

SMALL = 1e-4
"""Of an honest value."""


class Forger:
    """Makes payloads for one plan. `steps` is the plan's base model, which every member of the federation has."""

    def __init__(self, task: Task, plan: RoundPlan, steps: NDArray[np.int32]) -> None:
        codec = task.up.at(plan.level)
        self.spec = CodecSpec(bits=codec.bits, density=codec.density, step=UPLINK_STEP)
        self.length = task.model.parameters
        self.count = self.spec.target(self.length)
        self.contexts: Contexts | None = None
        if self.spec.density < 1:
            initial = initial_steps(task.model, task.seed, task.grid_bits)
            self.contexts = Contexts.of(steps - initial, task.model.shapes)
        mark = b"" if self.contexts is None else self.contexts.mark
        self.agreed = self.spec.agreed(self.length) + mark
        self.indices = np.arange(self.count, dtype=np.int64) * (self.length // self.count)

    def honest(self, *, length: int | None = None, bits: int | None = None, size: float = SMALL) -> bytes:
        """What `encode` makes of a small delta: for this length and codec, or for others."""
        spec = self.spec if bits is None else CodecSpec(bits=bits, density=self.spec.density, step=self.spec.step)
        delta = np.linspace(-size, size, length or self.length).astype(np.float32)
        return encode(delta, spec, contexts=self.contexts if length is None else None).payload

    def is_taken(self, payload: bytes) -> bool:
        """Whether the coordinator's decoder takes it; raises PayloadError where it does not."""
        return decode(payload, self.length, self.spec, contexts=self.contexts).length == self.length

    # -- sparse, 8 bits ------------------------------------------------------------------------------------------

    def packed(self, frame: bytes, *, scale: int = 8) -> bytes:
        """Values as this zstd frame, whatever it is, and indices that are right."""
        support = np.packbits(self._gaps(gaps_of(self.indices)))
        body = bytes([Layout.GAPS << 4 | VALUES_PACKED]) + scale_bytes(scale)
        return self.sealed(body + varint(len(frame)) + frame + support.tobytes())

    def with_gaps(self, gaps: NDArray[np.int64]) -> bytes:
        """Values that are right, and these gaps between indices."""
        support = np.packbits(self._gaps(gaps)).tobytes()
        return self.sealed(bytes([Layout.GAPS << 4]) + scale_bytes(8) + bytes(self.count) + support)

    def with_bitmap(self, mask: NDArray[np.bool_], count: int) -> bytes:
        """`count` values that are right, and this bitmap of the coordinates that they are said to be for."""
        head = bytes([Layout.BITMAP << 4 | COUNT_STATED]) + varint(count) + scale_bytes(8)
        return self.sealed(head + bytes(count) + deflate(np.packbits(mask).tobytes()))

    def with_scale(self, scale: int) -> bytes:
        return self.packed(honest_frame(self.count), scale=scale)

    # -- dense, float32 ------------------------------------------------------------------------------------------

    def floats(self, values: NDArray[np.float32]) -> bytes:
        return self.sealed(bytes([Layout.DENSE << 4]) + values.astype("<f4").tobytes())

    # ------------------------------------------------------------------------------------------------------------

    def sealed(self, body: bytes) -> bytes:
        """With the checksum that fits."""
        return seal(body, self.agreed)

    def _gaps(self, gaps: NDArray[np.int64]) -> NDArray[np.uint8]:
        return golomb(gaps, natural_divisor(self.length, self.count))


def honest_frame(count: int) -> bytes:
    """Of so many values, not all alike, so that the frame has something in it."""
    return deflate(bytes(n % 5 for n in range(count)))


def bomb(size: int) -> bytes:
    """A frame that says openly how much it holds."""
    frame = zstandard.ZstdCompressor(level=19, write_content_size=True).compress(bytes(size))
    return frame[len(zstandard.FRAME_HEADER) :]


def lying_bomb(stated: int, blocks: int) -> bytes:
    """A frame that says `stated` bytes (256 to 65,791), and in so many blocks holds `stated` each, by run length."""
    # RFC 8878, 3.1.1.1: a single segment whose content size takes two bytes, less 256.
    head = bytes([0b0110_0000]) + (stated - 256).to_bytes(2, "little")
    # 3.1.1.2: a block's size, its kind (1: one byte, so many times), and whether it is the last.
    block = (stated << 3 | 1 << 1).to_bytes(3, "little") + b"\x00"
    last = (stated << 3 | 1 << 1 | 1).to_bytes(3, "little") + b"\x00"
    return head + block * (blocks - 1) + last
