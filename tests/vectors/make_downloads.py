"""Writes the golden download beside this file. Run it only when the format gets a new version: old ones never change.

    python tests/vectors/make_downloads.py

`downloads.json`:

- `images`: models as data, in hex, with windows of samples and what must come of them: `outputs` in int8, and `scores`,
  which are 0 where the result is the outputs.
- `conversation`: orders to sensor 3 and what it answers, frame by frame as they stand on the line, in hex. The sensor
  has slots of 32,768 bytes, nothing in them, and samples as the first image wants them; its boot is 7.
- `scores`: frames that this sensor sends of the first image's windows, `taken_us` one million apart.

Numbers in it come from `fedmq_models.int8`, and what a sensor answers is written here by hand.
"""

from __future__ import annotations

import json
import struct
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from fedmq_firmware_bridge.downloads import Order, order
from fedmq_firmware_bridge.frames import Opaque, encode
from fedmq_models.int8 import Int8Layer, Int8Model
from fedmq_models.sensor_image import SensorImage, image_id, to_bytes
from fedmq_protocol.task import ModelSpec

HERE = Path(__file__).parent
ROOM = 32768 - 16
NONE = 0xFF


class Numbers:
    """Of a generator that needs no library."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __call__(self, shape: tuple[int, ...], least: int, most: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        made = []
        for _ in range(int(np.prod(shape))):
            self.seed = (self.seed * 6364136223846793005 + 1442695040888963407) % 2**64
            made.append((self.seed >> 33) % (most - least + 1) + least)
        return np.array(made, dtype=np.int64).reshape(shape)


def image(kind: Any, sizes: tuple[int, ...], seed: int, channels: int, **other: Any) -> SensorImage:
    draw = Numbers(seed)
    fraction_bits = other.pop("fraction_bits", 16)
    unit = min(fraction_bits, 16)
    layers = []
    for place, (inputs, outputs) in enumerate(pairwise(sizes), start=2):
        layers.append(
            Int8Layer(
                weights=draw((inputs, outputs), -127, 127).astype(np.int8),
                biases=draw((outputs,), -20_000, 20_000).astype(np.int32),
                multipliers=draw((outputs,), 1 << 30, (1 << 31) - 1).astype(np.int32),
                shifts=draw((outputs,), 37, 39).astype(np.uint8),
                relu=place < len(sizes),
            )
        )
    model = Int8Model(
        spec=ModelSpec(kind=kind, sizes=sizes),
        fraction_bits=fraction_bits,
        offsets=draw((sizes[0],), -20 << unit, 20 << unit).astype(np.int32),
        input_multipliers=draw((sizes[0],), 1 << 29, (1 << 30) - 1).astype(np.int32),
        input_shifts=draw((sizes[0],), unit + 31, unit + 32).astype(np.uint8),
        layers=tuple(layers),
        input_scale=0.0625,
        output_scale=0.125,
    )
    told: dict[str, Any] = {
        "version": 40 + seed,
        "digest": bytes(range(8)),
        "rate_mhz": 3_125_000,
        "sample_scale": 0.0383,
    }
    told |= {"hop": sizes[0] // channels}
    return SensorImage(model=model, channels=channels, **told | other)


def images() -> dict[str, SensorImage]:
    return {
        "an autoencoder of 4 samples of 3 axes": image("autoencoder", (12, 5, 12), 1, 3),
        "a softmax of one sample of one channel, for any sensor": image(
            "softmax", (1, 3), 2, 1, rate_mhz=0, sample_scale=0.0, version=0xFFFFFFFF
        ),
        "an mlp of three layers, a window in four": image("mlp", (16, 7, 6, 2), 3, 2, hop=32, fraction_bits=8),
        "fraction bits that saturate": image("mlp", (8, 4, 3), 4, 2, fraction_bits=30),
    }


def conversation(first: bytes) -> list[dict[str, str]]:
    """What the sensor has is kept here by hand: (order, its fields; outcome, slot, in force, version, incoming,
    received)."""
    one, length = image_id(first), len(first)
    version = int.from_bytes(first[12:16], "little")
    half = length // 2
    nothing = (NONE, 0, 0, 0, 0)
    begun = (NONE, 0, 0, one, 0)
    some = (NONE, 0, 0, one, half)
    whole = (NONE, 0, 0, one, length)
    running = (0, one, version, 0, 0)
    begin, chunk = Order.BEGIN, Order.CHUNK
    said: list[tuple[Order, dict[str, Any], int, tuple[int, ...]]] = [
        (Order.ASK, {}, 0, nothing),
        (chunk, {"image": one, "number": 0, "chunk": first[:half]}, 2, nothing),
        (begin, {"image": one, "number": ROOM + 1}, 4, nothing),
        (begin, {"image": one, "number": length}, 0, begun),
        (Order.FINISH, {"image": one}, 3, begun),
        (chunk, {"image": one, "number": half, "chunk": first[half:]}, 0, begun),
        (chunk, {"image": one, "number": 0, "chunk": first[:half]}, 0, some),
        (chunk, {"image": one, "number": 0, "chunk": first[:half]}, 0, some),
        (begin, {"image": one, "number": length}, 0, some),
        (chunk, {"image": one ^ 1, "number": half, "chunk": b"x"}, 2, some),
        (chunk, {"image": one, "number": half, "chunk": first[half:] + b"x"}, 4, some),
        (chunk, {"image": one, "number": half, "chunk": first[half:]}, 0, whole),
        (Order.FINISH, {"image": one}, 0, running),
        (Order.FINISH, {"image": one}, 0, running),
        (begin, {"image": one, "number": length}, 0, running),
        # Another one, which is no image: it is refused, again when it is asked again, and the first goes on running.
        (begin, {"image": 5, "number": 50}, 0, (0, one, version, 5, 0)),
        (chunk, {"image": 5, "number": 0, "chunk": bytes(50)}, 0, (0, one, version, 5, 50)),
        (Order.FINISH, {"image": 5}, 7, running),
        (Order.FINISH, {"image": 5}, 7, running),
        (Order.ASK, {}, 0, running),
    ]
    told = []
    for number, (what, fields, outcome, has) in enumerate(said):
        asked = order(what, sensor=3, sequence=1000 + number, **fields)
        slot, in_force, of_version, incoming, received = has
        payload = struct.pack("<BBBB", what, outcome, slot, 0)
        payload += struct.pack("<IIIIII", 1000 + number, in_force, of_version, incoming, received, ROOM)
        answered = Opaque(kind=0x04, sensor=3, boot=7, sequence=number, payload=payload)
        told.append({"order": encode(asked).hex(), "ack": encode(answered).hex()})
    return told


def main() -> None:
    told: dict[str, Any] = {"images": []}
    draw = Numbers(9)
    for name, one in images().items():
        windows = draw((6, one.samples, one.channels), -200, 200).astype(np.int16)
        windows[0], windows[1, 0] = 32767, -32768
        outputs, scores = one.run(windows)
        told["images"].append(
            {
                "name": name,
                "image": to_bytes(one).hex(),
                "windows": windows.reshape(len(windows), -1).tolist(),
                "outputs": outputs.tolist(),
                "scores": scores.tolist(),
            }
        )
    first = bytes.fromhex(told["images"][0]["image"])
    told["conversation"] = conversation(first)
    told["scores"] = []
    for number, score in enumerate(told["images"][0]["scores"]):
        payload = struct.pack("<QIfBBH", number * 1_000_000, image_id(first), 0.0625**2 / 12, 1, 0, 1)
        payload += struct.pack("<i", score)
        told["scores"].append(encode(Opaque(kind=0x03, sensor=3, boot=7, sequence=number, payload=payload)).hex())
    text = json.dumps(told, indent=1)
    (HERE / "downloads.json").write_text(text + "\n", encoding="ascii")


if __name__ == "__main__":
    main()
