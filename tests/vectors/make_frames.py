"""Writes the golden frames beside this file. Run it only when a kind is added: old ones never change.

    python tests/vectors/make_frames.py

`frames.json`: a list of frames, each with its head, its payload in hex, and `encoded`: the bytes on the line in hex,
delimiter included. Samples and hellos also have their fields by name; a float stands as the bits of its float32. A
decoder or encoder in any language is right when it agrees with these.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from fedmq_firmware_bridge.frames import AskHello, Channel, Frame, Hello, Opaque, Samples, encode

HERE = Path(__file__).parent


def steps(count: int, channels: int, seed: int, most: int = 32767) -> np.ndarray[Any, np.dtype[np.int16]]:
    """(count, channels) int16 within `most`, of a generator that needs no library."""
    made = []
    for _ in range(count * channels):
        seed = (seed * 1664525 + 1013904223) % 2**32
        made.append((seed >> 8) % (2 * most + 1) - most)
    return np.array(made, dtype=np.int16).reshape(count, channels)


def cases() -> dict[str, Frame]:
    usual: dict[str, Any] = {
        "sensor": 3,
        "boot": 0x1A2B,
        "taken_us": 20_480_000,
        "rate_mhz": 3_125_000,
        "scale": 0.0383,
    }
    axes = tuple(Channel(name=name, unit="m/s2", offset=0.25 * index, gain=1.01) for index, name in enumerate("xyz"))
    hello: dict[str, Any] = {
        "sensor": 3,
        "boot": 0x1A2B,
        "uid": bytes.fromhex("0123456789abcdef01234567") + bytes(4),
        "name": "pump-3",
        "firmware": "1.4.2",
        "now_us": 20_480_123,
        "rate_mhz": 3_125_000,
        "scale": 0.0383,
    }
    full = np.full((494, 1), 0x0101, dtype=np.int16)
    return {
        "three axes, 64 samples": Samples(sequence=1, values=steps(64, 3, 7, 300), **usual),
        "two samples, the example of docs/frames.md": Samples(
            sequence=258, values=np.array([[1, -2, 256], [0, 3, -256]], dtype=np.int16), **usual
        ),
        "one sample of one channel": Samples(sequence=2, values=steps(1, 1, 8), **usual),
        "sixteen channels": Samples(sequence=3, values=steps(30, 16, 9), **usual),
        "the ends of int16": Samples(sequence=4, values=np.array([[-32768, 32767], [-1, 0]], dtype=np.int16), **usual),
        "all zero": Samples(sequence=5, values=np.zeros((100, 3), dtype=np.int16), **usual),
        "no zero among the samples, the longest payload": Samples(sequence=6, values=full, **usual),
        "after an overrun": Samples(sequence=7, overrun=True, values=steps(8, 3, 10), **usual),
        "the largest of every number": Samples(
            sensor=0xFFFF,
            boot=0xFFFF,
            sequence=0xFFFFFFFF,
            taken_us=2**64 - 1,
            rate_mhz=0xFFFFFFFF,
            scale=3.0e38,
            values=steps(3, 3, 11),
        ),
        "a hello of three axes": Hello(sequence=0, channels=axes, **hello),
        "a hello with the longest texts": Hello(
            sequence=0xFFFFFFFF,
            channels=(Channel(name="12345678", unit="abcdefgh", offset=-1.5, gain=-1),),
            **hello | {"uid": bytes(range(1, 17)), "name": "0123456789abcdef", "firmware": "v1.2.3-45-g0123"},
        ),
        "a hello of sixteen channels": Hello(
            sequence=9, channels=tuple(Channel(name=f"c{index}", unit="") for index in range(16)), **hello
        ),
        "a question to all": AskHello(sensor=0xFFFF, sequence=0),
        "a kind that is reserved": Opaque(kind=0x82, sensor=3, sequence=1, payload=bytes(range(256))),
        "a kind that nobody knows, empty": Opaque(kind=0x7F, sensor=3, sequence=1, payload=b""),
        # A COBS block is full with 254 bytes: these come to 253 to 256 without a zero, and to two full blocks.
        **{
            f"{length} bytes with no zero in the payload": Opaque(
                kind=0x82, sensor=0x0101, boot=0x0101, sequence=0x01010101, payload=b"\x01" * length
            )
            for length in (236, 237, 238, 239, 240, 241, 491, 492, 493, 1008)
        },
    }


def bits(number: float) -> int:
    (as_whole,) = struct.unpack("<I", struct.pack("<f", number))
    return int(as_whole)


def described(frame: Frame) -> dict[str, Any]:
    if isinstance(frame, Samples):
        return {
            "samples": {
                "taken_us": frame.taken_us,
                "rate_mhz": frame.rate_mhz,
                "scale_bits": bits(frame.scale),
                "overrun": int(frame.overrun),
                "values": frame.values.tolist(),
            }
        }
    if isinstance(frame, Hello):
        return {
            "hello": {
                "uid": frame.uid.hex(),
                "name": frame.name,
                "firmware": frame.firmware,
                "now_us": frame.now_us,
                "rate_mhz": frame.rate_mhz,
                "scale_bits": bits(frame.scale),
                "channels": [
                    {
                        "name": channel.name,
                        "unit": channel.unit,
                        "offset_bits": bits(channel.offset),
                        "gain_bits": bits(channel.gain),
                    }
                    for channel in frame.channels
                ],
            }
        }
    return {}


def main() -> None:
    told = []
    for name, frame in cases().items():
        encoded = encode(frame)
        body = unstuffed(encoded)
        head = {"kind": body[1], "sensor": frame.sensor, "boot": frame.boot, "sequence": frame.sequence}
        told.append(
            {"name": name} | head | {"payload": body[10:-6].hex()} | described(frame) | {"encoded": encoded.hex()}
        )
    text = "[\n" + ",\n".join(json.dumps(case) for case in told) + "\n]\n"
    (HERE / "frames.json").write_text(text, encoding="ascii")


def unstuffed(encoded: bytes) -> bytes:
    """COBS by its definition, apart from the library: what stands in the vectors is right by two."""
    out, at = bytearray(), 0
    while encoded[at]:
        code = encoded[at]
        out += encoded[at + 1 : at + code]
        at += code
        if code < 255 and encoded[at]:
            out.append(0)
    return bytes(out)


if __name__ == "__main__":
    main()
