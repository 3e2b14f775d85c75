"""Writes the golden payloads beside this file. Run it only when a layout is added: old ones never change.

    python tests/vectors/make_vectors.py

`deltas.json`: a payload in hex, and what it decodes to: `indices` (null where dense) and `steps`, whole numbers of
2^`step_exponent`. `ranked.json`: the same, with `displacement` and `shapes`, of which both ends make the ranking.
`integers.json`: a payload in hex and the numbers. A decoder in any language is right when it gives these.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from fedmq_compression.contexts import Contexts
from fedmq_compression.frame import seal
from fedmq_compression.integers import layouts
from fedmq_compression.pipeline import CodecSpec, encode, encode_integers

HERE = Path(__file__).parent


def values(length: int, seed: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Whole thousandths that need no generator of a library: the same everywhere."""
    state = np.uint64(seed)
    made = []
    for _ in range(length):
        state = np.uint64((int(state) * 6364136223846793005 + 1442695040888963407) % 2**64)
        made.append(((int(state) >> 33) % 2001 - 1000) / 1024)
    return np.array(made, dtype=np.float32) ** 3


def delta_cases() -> dict[str, tuple[np.ndarray[Any, np.dtype[np.float32]], CodecSpec]]:
    cases = {}
    for bits in (1, 4, 8, 32):
        for density in (0.02, 0.3, 0.8, 1.0):
            for exponent in (24, 12):
                spec = CodecSpec(bits=bits, density=density, step=2.0**-exponent)
                cases[f"{bits} bits, density {density}, step 2^-{exponent}"] = (values(203, bits), spec)
    lumps = np.zeros(2000, dtype=np.float32)
    for start in range(0, 2000, 500):
        lumps[start : start + 120] = 0.25
    coarse = 2.0**-12
    cases["bitmap"] = (lumps, CodecSpec(bits=1, density=0.24, step=coarse))
    cases["packed sparse values"] = (lumps * 3, CodecSpec(bits=8, density=0.24, step=coarse))
    cases["packed dense values"] = (lumps, CodecSpec(bits=4, density=1.0, step=coarse))
    cases["stated count"] = (lumps * (np.arange(2000) % 100 == 3), CodecSpec(bits=1, density=0.24, step=coarse))
    cases["nothing"] = (np.zeros(50, dtype=np.float32), CodecSpec(bits=1, density=0.1, step=coarse))
    return cases


def integer_cases() -> dict[str, list[int]]:
    blocks = [number * 1000 - 7 for number in range(10) for _ in range(30)]
    small = [round(float(value) * 50) for value in values(300, 5)]
    lonely = [37 * at if at % 20 == 0 else 0 for at in range(400)]
    repeated = [(-40 if at % 3 else 25) if at % 17 == 0 else 0 for at in range(2000)]
    return {"zeros": [0] * 30, "blocks": blocks, "small": small, "lonely": lonely, "repeated": repeated}


def make_deltas() -> list[dict[str, Any]]:
    made = []
    for name, (delta, spec) in delta_cases().items():
        encoded = encode(delta, spec)
        indices = encoded.sent.indices
        made.append(
            {
                "name": name,
                "bits": spec.bits,
                "density": spec.density,
                "step_exponent": int(np.log2(spec.step)),
                "length": delta.size,
                "payload": encoded.payload.hex(),
                "indices": None if indices is None else indices.tolist(),
                "steps": encoded.sent.steps.tolist(),
            }
        )
    return made


SHAPES = ((14, 12), (13, 9), (10, 4))


def ranked_cases() -> dict[str, tuple[np.ndarray[Any, np.dtype[np.float32]], CodecSpec, np.ndarray[Any, Any]]]:
    """Deltas that lie where the model has moved before: a few rows and columns of each block."""
    length = sum(rows * columns for rows, columns in SHAPES)
    drawn = values(length, 7)
    where = []
    for rows, columns in SHAPES:
        row, column = np.indices((rows, columns))
        where.append(((row % 4 == 1) * 3 + (column % 5 == 2) * 2 + (row + column) % 2).ravel())
    likely = np.concatenate(where)
    moved = (likely * likely * (1 + np.arange(length) % 3)).astype(np.int32)
    signs = np.where(np.concatenate([np.indices(shape)[1].ravel() for shape in SHAPES]) % 3 == 0, -1, 1)
    leaning = moved * np.where(drawn < 0, -1, 1).astype(np.int32)
    size = np.abs(drawn) * likely + np.float32(2.0**-10)
    cases = {}
    for bits in (1, 4, 8, 32):
        for density in (0.06, 0.2):
            spec = CodecSpec(bits=bits, density=density, step=2.0**-12)
            cases[f"{bits} bits, density {density}, signs by column"] = ((size * signs).astype(np.float32), spec, moved)
            lean = (size * np.sign(drawn)).astype(np.float32)
            cases[f"{bits} bits, density {density}, signs as they lean"] = (lean, spec, leaning)
    return cases


def make_ranked() -> list[dict[str, Any]]:
    made = []
    for name, (delta, spec, displacement) in ranked_cases().items():
        contexts = Contexts.of(displacement.astype(np.int32), SHAPES)
        encoded = encode(delta, spec, contexts=contexts)
        assert encoded.sent.indices is not None
        made.append(
            {
                "name": name,
                "bits": spec.bits,
                "density": spec.density,
                "step_exponent": int(np.log2(spec.step)),
                "shapes": SHAPES,
                "displacement": displacement.tolist(),
                "payload": encoded.payload.hex(),
                "indices": encoded.sent.indices.tolist(),
                "steps": encoded.sent.steps.tolist(),
            }
        )
    return made


def make_integers() -> list[dict[str, Any]]:
    made = []
    for name, numbers in integer_cases().items():
        array = np.array(numbers, dtype=np.int32)
        made.append({"name": name, "length": array.size, "payload": encode_integers(array).hex(), "values": numbers})
        for body in layouts(array.astype(np.int64)):
            payload = seal(body, b"\0" + array.size.to_bytes(4, "little"))
            if payload.hex() != made[-1]["payload"]:
                name_of = f"{name}, layout {body[0] & 0x7F}"
                made.append({"name": name_of, "length": array.size, "payload": payload.hex(), "values": numbers})
    return made


def main() -> None:
    for name, made in (("deltas", make_deltas()), ("ranked", make_ranked()), ("integers", make_integers())):
        lines = ",\n".join(json.dumps(case) for case in made)
        (HERE / f"{name}.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
