"""Models on raw samples as images for sensors, and a sensor in C to run them."""

from __future__ import annotations

import ctypes
import shutil
import struct
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
from fedmq_models.int8 import quantize
from fedmq_models.sensor_image import SensorImage
from fedmq_protocol.task import ModelSpec, initial_steps, to_parameters

LIBRARY = Path(__file__).resolve().parents[2] / "firmware_bridge" / "firmware"
SOURCES = tuple(LIBRARY / f"fedmq_{name}.c" for name in ("sensor", "model", "slots"))
STRICT = ("-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Wmissing-prototypes", "-Werror")
UNDEFINED = ("-fsanitize=undefined", "-fno-sanitize-recover=all")

CHANNELS, RATE_MHZ, STEP = 3, 3_125_000, 0.03824
STEP_BITS = struct.unpack("<I", struct.pack("<f", STEP))[0]

KINDS = {
    "softmax": ModelSpec(kind="softmax", sizes=(24, 4)),
    "mlp": ModelSpec(kind="mlp", sizes=(48, 20, 9, 5)),
    "autoencoder": ModelSpec(kind="autoencoder", sizes=(96, 16, 6, 16, 96)),
}


def sensor_image(kind: str, seed: int = 0, version: int = 1, *, scaled: bool = True, step: float = STEP) -> SensorImage:
    """Drawn parameters, calibrated on a shaft's turning with noise."""
    spec = KINDS[kind]
    rng = np.random.default_rng(seed)
    flat = to_parameters(initial_steps(spec, seed, 12), 12)
    for layer in spec.layers:
        flat[layer.start : layer.bias_start] *= 2
        flat[layer.bias_start : layer.stop] = rng.normal(scale=0.2, size=layer.outputs)
    windows = (shaft(spec.sizes[0], 300, rng) * step).astype(np.float32)
    mean = scale = None
    if scaled:
        mean, scale = windows.mean(axis=0), windows.std(axis=0)
    model = quantize(spec, flat, mean, scale, windows, step=step)
    return SensorImage(
        model=model,
        version=version,
        digest=bytes(range(8)),
        rate_mhz=RATE_MHZ,
        sample_scale=step,
        channels=CHANNELS,
        hop=spec.sizes[0] // CHANNELS,
    )


def shaft(inputs: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Windows `(count, inputs)` int16 of three axes."""
    n = np.arange(inputs // CHANNELS)[None, :, None] + rng.integers(0, 64, size=(count, 1, 1))
    axes = np.arange(CHANNELS)[None, None, :]
    values = 400 * np.sin(2 * np.pi * (n + 16 * axes) / 64) + rng.normal(scale=30, size=(count, inputs // CHANNELS, 3))
    return np.rint(values).astype(np.int16).reshape(count, inputs)


def mended(data: bytes) -> bytes:
    """With the length and the checksum that belong to it."""
    data = data[:8] + struct.pack("<I", len(data)) + data[12:-4]
    return data + struct.pack("<I", zlib.crc32(data))


def build(words: list[str]) -> None:
    if shutil.which(words[0]) is None:
        pytest.skip(f"needs {words[0]}: apt-get install gcc libc6-dev")
    ended = subprocess.run(words, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


class CSensor:
    """The one sensor of `models_c/sensor.c`: number 3. Its flash outlasts `start`."""

    ROOM = 32768
    WORK = 8192

    def __init__(self, directory: Path, firmware: tuple[Path, ...] = SOURCES) -> None:
        library = directory / "sensor.so"
        harness = Path(__file__).parent / "models_c" / "sensor.c"
        sources = [str(path) for path in (*firmware, harness)]
        build(
            ["gcc", *STRICT, "-O1", "-g", *UNDEFINED, "-shared", "-fPIC", f"-I{LIBRARY}", *sources, "-o", str(library)]
        )
        self._c = ctypes.CDLL(str(library))
        for name in ("feed", "score"):
            getattr(self._c, f"sensor_{name}").restype = ctypes.c_size_t
        self._c.sensor_memory.restype = ctypes.c_void_p
        self.format()

    def format(self) -> None:
        self._c.sensor_format()
        self.start()

    def start(self, *, rate_mhz: int = RATE_MHZ, step: int = STEP_BITS, channels: int = 3, work: int = WORK) -> None:
        self._c.sensor_start(ctypes.c_uint32(rate_mhz), ctypes.c_uint32(step), ctypes.c_uint8(channels), work)

    def cut_after(self, count: int) -> None:
        """Power goes once so many bytes were erased or written; until `start` it hears and says nothing."""
        self._c.sensor_cut_after(ctypes.c_long(count))

    def feed(self, data: bytes) -> bytes:
        out = ctypes.create_string_buffer(1 << 16)
        length = self._c.sensor_feed(data, ctypes.c_size_t(len(data)), out, ctypes.c_size_t(len(out)))
        return out.raw[:length]

    @property
    def active(self) -> int | None:
        slot = self._c.sensor_active()
        return None if slot < 0 else int(slot)

    def memory(self, slot: int) -> ctypes.Array[ctypes.c_uint8]:
        return (ctypes.c_uint8 * self.ROOM).from_address(self._c.sensor_memory(slot))

    def run(self, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Outputs and scores, or None: no model is in force."""
        outs, scores = [], []
        for window in np.ascontiguousarray(windows, dtype=np.int16).reshape(len(windows), -1):
            out, score = np.zeros(self.WORK, dtype=np.int8), ctypes.c_int32()
            places = (ctypes.c_void_p(window.ctypes.data), ctypes.c_void_p(out.ctypes.data), ctypes.byref(score))
            count = self._c.sensor_run(*places)
            if count < 0:
                return None
            outs.append(out[:count])
            scores.append(score.value)
        return np.stack(outs), np.array(scores, dtype=np.int32)

    def score(self, taken_us: int, window: np.ndarray) -> bytes:
        out = ctypes.create_string_buffer(2048)
        given = np.ascontiguousarray(window, dtype=np.int16)
        place = ctypes.c_void_p(given.ctypes.data)
        length = self._c.sensor_score(ctypes.c_uint64(taken_us), place, out, ctypes.c_size_t(len(out)))
        return out.raw[:length]
