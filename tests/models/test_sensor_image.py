"""Models as data: what a sensor computes is what the gateway does, and no bytes that say otherwise are taken."""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fedmq_models import int8
from fedmq_models.sensor_image import ImageError, SensorImage, from_bytes, image_id, to_bytes
from fedmq_protocol.task import ModelSpec
from sensor_images import KINDS, STEP, mended, sensor_image, shaft

GOLDEN = json.loads((Path(__file__).parents[1] / "vectors" / "downloads.json").read_text(encoding="ascii"))
HEADER = 44


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_an_image_comes_back_as_it_was(kind: str, scaled: bool) -> None:
    image = sensor_image(kind, version=41, scaled=scaled)
    data = to_bytes(image)
    back = from_bytes(data)
    assert to_bytes(back) == data
    assert (back.version, back.digest, back.rate_mhz, back.channels, back.hop) == (
        41,
        image.digest,
        image.rate_mhz,
        3,
        image.hop,
    )
    assert back.model.spec == image.model.spec
    assert back.result_scale == pytest.approx(image.result_scale, rel=1e-6)
    windows = shaft(image.model.spec.sizes[0], 100, np.random.default_rng(1)).reshape(100, image.samples, 3)
    for found, expected in zip(back.run(windows), image.run(windows), strict=True):
        assert np.array_equal(found, expected)
    assert image_id(data) == zlib.crc32(data[:-4])


def test_one_scaler_for_all_inputs_stands_there_once() -> None:
    inputs = KINDS["mlp"].sizes[0]
    apart = len(to_bytes(sensor_image("mlp"))) - len(to_bytes(sensor_image("mlp", scaled=False)))
    assert apart == 9 * (inputs - 1)


@pytest.mark.parametrize("kind", ["mlp", "autoencoder"])
def test_whole_steps_of_samples_give_what_samples_in_units_give(kind: str) -> None:
    """The same model twice: for steps as a sensor streams them, and for the units that a gateway learns from."""
    image = sensor_image(kind)
    in_units = int8.quantize(*_quantized_of(kind))
    windows = shaft(image.model.spec.sizes[0], 200, np.random.default_rng(1))
    outputs, scores = image.run(windows.reshape(200, image.samples, 3))
    x = int8.quantize_inputs(in_units, int8.to_fixed(in_units, (windows * STEP).astype(np.float32)))
    expected = int8.reference(in_units, x)
    assert np.abs(outputs.astype(int) - expected).max() <= 3
    assert np.abs(outputs.astype(int) - expected).mean() < 0.2
    assert len(np.unique(expected)) > 50, "hardly any output differs: this proves little"
    if kind == "autoencoder":
        assert np.median(np.abs(scores / int8.anomaly_score(x, expected) - 1)) < 0.01


def _quantized_of(kind: str) -> tuple[Any, ...]:
    """The arguments of `int8.quantize` that `sensor_image` takes, in units."""
    taken: list[tuple[Any, ...]] = []
    original = int8.quantize

    def watched(*words: Any, step: float) -> int8.Int8Model:
        taken.append(words)
        return original(*words, step=step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sensor_images.quantize", watched)
        sensor_image(kind)
    return taken[0]


@pytest.mark.parametrize("golden", GOLDEN["images"], ids=lambda golden: golden["name"])
def test_a_golden_image_is_read_and_computes_as_ever(golden: dict[str, Any]) -> None:
    data = bytes.fromhex(golden["image"])
    image = from_bytes(data)
    assert to_bytes(image) == data
    windows = np.array(golden["windows"], dtype=np.int16).reshape(-1, image.samples, image.channels)
    outputs, scores = image.run(windows)
    assert outputs.tolist() == golden["outputs"]
    assert scores.tolist() == golden["scores"]


def test_no_byte_that_is_changed_passes_unseen() -> None:
    data = to_bytes(sensor_image("softmax"))
    for at in range(len(data)):
        with pytest.raises(ImageError):
            from_bytes(data[:at] + bytes([data[at] ^ 0x40]) + data[at + 1 :])


def test_no_part_of_an_image_is_taken_for_a_whole_one() -> None:
    data = to_bytes(sensor_image("softmax"))
    for length in range(len(data)):
        with pytest.raises(ImageError):
            from_bytes(data[:length])
        if length > 16:
            with pytest.raises(ImageError):
                from_bytes(mended(data[:length]))
    with pytest.raises(ImageError):
        from_bytes(mended(data[:-4] + bytes(5)))


@pytest.mark.parametrize(
    ("at", "put", "told"),
    [
        (0, b"FQMX", "format 1"),
        (4, b"\x02", "format 1"),
        (5, b"\x02", "result 2"),
        (5, b"\x01", "as many outputs as inputs"),
        (6, b"\x00", "0 layers"),
        (6, b"\x11", "17 layers"),
        (6, b"\x10", "multipliers"),
        (7, b"\x1f", "31 fraction bits"),
        (36, b"\x04", "do not fit"),
        (36, b"\x00", "do not fit"),
        (37, b"\x01", "header says"),
        (38, b"\x09\x00", "do not fit"),
        (40, b"\x02\x00", "do not fit"),
        (42, b"\x07\x00", "a hop of 8 to"),
        (28, struct.pack("<f", float("nan")), "sample_scale"),
        (32, struct.pack("<f", float("inf")), "result_scale"),
        (32, struct.pack("<f", 0.0), "result_scale"),
        (HEADER + 2, b"\x00\x00", "do not fit"),
        (HEADER + 2, b"\xff\xff", "behind its header"),
        (HEADER + 4 + 4, struct.pack("<i", -1), "multipliers"),
        (HEADER + 4 + 4, struct.pack("<i", 1 << 30), "multipliers"),
        (HEADER + 4 + 8, b"\x00", "shifts"),
        (HEADER + 4 + 8, b"\x3f", "shifts"),
        (HEADER + 4 + 24 * 9, struct.pack("<i", -(1 << 31)), "accumulators within"),
        (-13, b"\x55", "its test gives other numbers"),
        (-5, b"\x01", "its test gives other numbers"),
    ],
)
def test_an_image_that_contradicts_itself_is_refused_though_its_checksum_holds(at: int, put: bytes, told: str) -> None:
    data = bytearray(to_bytes(sensor_image("softmax")))
    at %= len(data)
    data[at : at + len(put)] = put
    with pytest.raises(ImageError, match=told):
        from_bytes(mended(bytes(data)))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"channels": 5}, "channels that divide 48"),
        ({"channels": 0}, "channels"),
        ({"hop": 15}, "hop of 16"),
        ({"hop": 1 << 16}, "hop of 16"),
        ({"digest": b"short"}, "8 bytes of a digest"),
        ({"version": -1}, "version"),
        ({"rate_mhz": 1 << 32}, "rate"),
        ({"sample_scale": float("nan")}, "sample_scale"),
    ],
)
def test_what_makes_no_image_is_refused_as_it_is_made(change: dict[str, Any], told: str) -> None:
    with pytest.raises(ImageError, match=told):
        replace(sensor_image("mlp"), **change)


@pytest.mark.parametrize(
    ("kind", "sizes", "told"),
    [
        ("regressor", (48, 1), "got a regressor"),
        ("mlp", (48, *[4] * 16, 2), "up to 16 layers"),
        ("softmax", (48, 989), "at most 988 outputs"),
        ("autoencoder", (33_027, 1, 33_027), "at most 33,025 inputs"),
    ],
)
def test_a_model_that_no_sensor_could_run_is_refused(kind: Any, sizes: tuple[int, ...], told: str) -> None:
    image = sensor_image("mlp")
    with pytest.raises(ImageError, match=told):
        replace(image, model=replace(image.model, spec=ModelSpec(kind=kind, sizes=sizes)))


def test_windows_of_another_shape_are_refused() -> None:
    image: SensorImage = sensor_image("mlp")
    with pytest.raises(ImageError, match="expected windows"):
        image.run(np.zeros((1, 48), dtype=np.int16))


def test_a_step_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a step above 0"):
        int8.quantize(*_quantized_of("mlp"), step=0.0)
