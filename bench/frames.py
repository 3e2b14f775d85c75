"""What noise does to the native stream, and what decoding costs: `python bench/frames.py --help`.

Frames of three axes go through a line that flips bits, drops bytes and inserts bytes, each with the rate given for
every byte, into the decoder and the bookkeeping of a gateway. Every frame that is accepted is held against the one that
was sent with its number, byte for byte; those that the bookkeeping calls lost are held against those that did not come.
Exit status 1 if one is not as it should be. Beside it stands how many damaged frames CRC-16 alone would have let pass.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import fastcrc
import numpy as np
from cobs import cobs
from fedmq_firmware_bridge.frames import Decoder, Samples, encode
from fedmq_firmware_bridge.readings import Line

RATE_MHZ = 3_200_000
CHANNELS = 3


def sent(count: int, samples: int, seed: int) -> Iterator[Samples]:
    """Frames of small noise on a slow sine, as an accelerometer at rest on a machine gives: many high bytes are 0."""
    rng = np.random.default_rng(seed)
    block_us = samples * 1_000_000_000 // RATE_MHZ
    at = np.arange(samples)[:, None] + np.array([0, 21, 42])
    for sequence in range(count):
        values = 120 * np.sin(2 * np.pi * (at + sequence * samples) / 64) + rng.normal(0, 40, (samples, CHANNELS))
        yield Samples(
            sensor=1,
            boot=7,
            sequence=sequence,
            taken_us=sequence * block_us,
            rate_mhz=RATE_MHZ,
            scale=0.0383,
            values=values.astype(np.int16),
        )


def damaged(stream: bytes, rng: np.random.Generator, flips: float, drops: float, inserts: float) -> bytes:
    """The stream after a line that flips one bit of a byte, drops a byte or inserts a random one before it."""
    data = np.frombuffer(stream, dtype=np.uint8).copy()
    hit = np.flatnonzero(rng.random(data.size) < flips)
    data[hit] ^= (1 << rng.integers(0, 8, hit.size)).astype(np.uint8)
    kept = data[rng.random(data.size) >= drops]
    at = np.flatnonzero(rng.random(kept.size) < inserts)
    inserted: np.ndarray[Any, np.dtype[np.uint8]] = rng.integers(0, 256, at.size).astype(np.uint8)
    return bytes(np.insert(kept, at, inserted))


def past_crc16(stream: bytes) -> Iterator[bytes]:
    """Header and payload of what COBS and CRC-16/IBM-3740 let pass, whatever the CRC-32 says."""
    for part in stream.split(b"\0"):
        try:
            body = cobs.decode(part)
        except cobs.DecodeError:
            continue
        if len(body) >= 16 and fastcrc.crc16.ibm_3740(body[:-6]) == int.from_bytes(body[-2:], "little"):
            yield body[:-6]


@dataclass(kw_only=True)
class Outcome:
    sent: int = 0
    accepted: int = 0
    false: int = 0
    """Accepted, and not sent so."""
    counted_lost: int = 0
    failed: int = 0
    malformed: int = 0
    oversized: int = 0
    by_crc16_alone: int = 0
    """False frames that would have been accepted without the CRC-32."""
    bytes: int = 0
    decoding_s: float = 0.0
    """CPU of decoder and bookkeeping."""

    @property
    def right(self) -> bool:
        return self.false == 0 and self.counted_lost == self.sent - self.accepted


def run(frames: int, samples: int, rates: tuple[float, float, float], seed: int, batch: int = 2000) -> Outcome:
    """The first and the last frame go undamaged: what is missing before the one and behind the other nobody knows."""
    rng = np.random.default_rng([seed, 1])
    decoder, line, outcome = Decoder(), Line(), Outcome(sent=frames)
    recent: deque[dict[int, bytes]] = deque(maxlen=2)
    bodies: deque[set[bytes]] = deque(maxlen=2)
    waiting: list[Samples] = []

    def pass_on(stream: bytes) -> None:
        outcome.by_crc16_alone += sum(not any(body in old for old in bodies) for body in past_crc16(stream))
        began = time.process_time()
        came = []
        for at in range(0, len(stream), 1024):
            chunk = decoder.feed(stream[at : at + 1024])
            line.take(chunk, 0.0)
            came += chunk
        outcome.decoding_s += time.process_time() - began
        outcome.bytes += len(stream)
        outcome.accepted += len(came)
        for frame in came:
            right = {old.get(frame.sequence) for old in recent}
            outcome.false += encode(frame) not in right

    for number, frame in enumerate(sent(frames, samples, seed)):
        waiting.append(frame)
        ends = number in (0, frames - 1)
        if len(waiting) < batch and not ends and number != frames - 2:
            continue
        recent.append({one.sequence: encode(one) for one in waiting})
        bodies.append({cobs.decode(encoded[:-1])[:-6] for encoded in recent[-1].values()})
        stream = b"".join(recent[-1].values())
        # What is left over of a damaged frame must not spoil the last one.
        pass_on((b"\0" + stream) if ends else damaged(stream, rng, *rates))
        waiting.clear()
    counts, sensor = decoder.counts, line.sensors[1].counts
    outcome.failed, outcome.malformed, outcome.oversized = counts.failed, counts.malformed, counts.oversized
    outcome.counted_lost = sensor.lost_frames
    return outcome


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--samples", type=int, default=64, help="of each axis in a frame (64)")
    parser.add_argument("--flips", type=float, default=1e-4, help="bit flips per byte (1e-4)")
    parser.add_argument("--drops", type=float, default=1e-4, help="bytes dropped, per byte (1e-4)")
    parser.add_argument("--inserts", type=float, default=1e-4, help="bytes inserted, per byte (1e-4)")
    parser.add_argument("--seed", type=int, default=0)
    words = parser.parse_args()
    outcome = run(words.frames, words.samples, (words.flips, words.drops, words.inserts), words.seed)
    lost = outcome.sent - outcome.accepted
    print(f"{platform.machine()}, Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}")
    print(f"sent                  {outcome.sent:>12,} frames of {words.samples} x {CHANNELS}, {outcome.bytes:,} bytes")
    print(f"accepted              {outcome.accepted:>12,}   {outcome.false} of them not as sent")
    print(f"did not come          {lost:>12,}   {outcome.counted_lost:,} counted as lost")
    print(f"refused: checksum     {outcome.failed:>12,}   CRC-16 alone would have passed {outcome.by_crc16_alone}")
    print(f"refused: malformed    {outcome.malformed:>12,}")
    print(f"refused: too long     {outcome.oversized:>12,}")
    each = outcome.decoding_s / outcome.sent
    load = 4 * RATE_MHZ / 1000 / words.samples * each
    print(
        f"decoding              {each * 1e6:>12.1f}   us of CPU a frame: 4 ports at 3.2 kHz take {load:.2%} of a core"
    )
    return 0 if outcome.right else 1


if __name__ == "__main__":
    sys.exit(main())
