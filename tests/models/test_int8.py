"""8-bit models: what firmware compiles agrees with the reference to the last bit, and with the float model closely."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fedmq_edge_node import samples
from fedmq_edge_node.runtimes import NumpyEngine
from fedmq_edge_node.runtimes import anomaly_score as float_score
from fedmq_edge_node.samples import Scaler
from fedmq_edge_node.trainer import area_under_curve
from fedmq_models import int8
from fedmq_models.int8 import Int8Layer, Int8Model
from fedmq_protocol.task import ModelSpec
from small_models import KINDS, bearings, small_model

STRICT = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "-Wconversion", "-Wmissing-prototypes", "-Wshadow")


class Library:
    """The C file as the host's compiler has it."""

    def __init__(self, model: Int8Model, directory: Path, *flags: str) -> None:
        if shutil.which("gcc") is None:
            pytest.skip("no gcc on this machine to compile the C file with")
        source, library = directory / "model.c", directory / "model.so"
        source.write_text(int8.to_c(model), encoding="ascii")
        words = [
            "gcc",
            *STRICT,
            "-O2",
            "-DFEDMQ_SELF_TEST",
            *flags,
            "-shared",
            "-fPIC",
            str(source),
            "-o",
            str(library),
        ]
        ended = subprocess.run(words, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        self._library = ctypes.CDLL(str(library))
        self._outputs = model.spec.sizes[-1]

    def infer(self, x: np.ndarray) -> np.ndarray:
        out = np.zeros((len(x), self._outputs), dtype=np.int8)
        for given, place in zip(x, out, strict=True):
            self._library.fedmq_infer(ctypes.c_void_p(given.ctypes.data), ctypes.c_void_p(place.ctypes.data))
        return out

    def quantize(self, fixed: np.ndarray) -> np.ndarray:
        x = np.zeros(fixed.shape, dtype=np.int8)
        for given, place in zip(fixed, x, strict=True):
            self._library.fedmq_quantize(ctypes.c_void_p(given.ctypes.data), ctypes.c_void_p(place.ctypes.data))
        return x

    def classes(self, out: np.ndarray) -> list[int]:
        return [self._library.fedmq_class(ctypes.c_void_p(row.ctypes.data)) for row in out]

    def scores(self, x: np.ndarray, out: np.ndarray) -> list[int]:
        pairs = zip(x, out, strict=True)
        return [
            self._library.fedmq_score(ctypes.c_void_p(a.ctypes.data), ctypes.c_void_p(b.ctypes.data)) for a, b in pairs
        ]

    def self_test(self) -> int:
        return int(self._library.fedmq_self_test())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_c_agrees_with_the_reference_bit_for_bit(kind: str, seed: int, tmp_path: Path) -> None:
    model, _ = small_model(kind, seed)
    library = Library(model, tmp_path, "-fsanitize=undefined", "-fno-sanitize-recover=all")
    rng = np.random.default_rng(seed)
    x = rng.integers(-128, 128, size=(1000, model.spec.sizes[0])).astype(np.int8)
    out = library.infer(x)
    assert np.array_equal(out, int8.reference(model, x))
    assert len(np.unique(out)) > 20, "hardly any output differs: this proves little"
    if kind == "autoencoder":
        assert library.scores(x, out) == int8.anomaly_score(x, out).tolist()
    else:
        assert library.classes(out) == int8.classes(out).tolist()
    assert library.self_test() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_c_quantizes_features_as_the_reference_does_to_the_ends_of_int32(kind: str, tmp_path: Path) -> None:
    model, windows = small_model(kind, 5)
    library = Library(model, tmp_path, "-fsanitize=undefined", "-fno-sanitize-recover=all")
    rng = np.random.default_rng(1)
    anything = rng.integers(-(1 << 31), 1 << 31, size=(500, model.spec.sizes[0])).astype(np.int32)
    ends = np.array([-(1 << 31), (1 << 31) - 1, 0, -1, 1], dtype=np.int32)[:, None].repeat(model.spec.sizes[0], axis=1)
    fixed = np.concatenate([int8.to_fixed(model, windows), anything, ends])
    assert np.array_equal(library.quantize(fixed), int8.quantize_inputs(model, fixed))


def test_the_self_test_tells_a_machine_that_computes_otherwise(tmp_path: Path) -> None:
    model, _ = small_model("mlp", 0)
    text = int8.to_c(model)
    broken = text.replace("(half + product) >> shift", "product >> shift")
    assert broken != text
    source, program = tmp_path / "model.c", tmp_path / "program"
    source.write_text(broken + "int main(void) { return fedmq_self_test(); }\n", encoding="ascii")
    if shutil.which("gcc") is None:
        pytest.skip("no gcc on this machine to compile the C file with")
    subprocess.run(["gcc", "-std=c99", "-DFEDMQ_SELF_TEST", str(source), "-o", str(program)], check=True)
    assert subprocess.run([str(program)]).returncode > 0


def test_two_models_are_linked_into_one_program_and_declared_in_another_file(tmp_path: Path) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("no gcc on this machine to compile the C file with")
    for prefix, kind in (("pump", "mlp"), ("fan", "autoencoder")):
        model, _ = small_model(kind, 0)
        (tmp_path / f"{prefix}.c").write_text(int8.to_c(model, prefix=prefix), encoding="ascii")
    (tmp_path / "main.c").write_text(
        """\
#define PUMP_DECLARATIONS_ONLY
#include "pump.c"
#define FAN_DECLARATIONS_ONLY
#include "fan.c"
int main(void)
{
    int8_t a[PUMP_INPUTS] = {0}, b[PUMP_OUTPUTS], c[FAN_INPUTS] = {0}, d[FAN_OUTPUTS];
    pump_infer(a, b);
    fan_infer(c, d);
    return pump_class(b) < 0 || fan_score(c, d) < 0;
}
""",
        encoding="ascii",
    )
    files = [str(tmp_path / name) for name in ("main.c", "pump.c", "fan.c")]
    ended = subprocess.run(["gcc", *STRICT, *files, "-o", str(tmp_path / "both")], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert subprocess.run([str(tmp_path / "both")]).returncode == 0


def test_the_file_has_integers_only_and_nothing_of_what_settings_say_ends_its_comment() -> None:
    model, _ = small_model("mlp", 0)
    labels = ["normal", "*/ int x; /*", "a\nb", "ö \\"]
    text = int8.to_c(model, about=["task */ system(1); \\"], labels=labels)
    text.encode("ascii")
    code = text[text.index("*/") + 2 :]
    assert text.index("*/") > text.index("Classes, in order")
    for word in ("float", "double", "malloc", "system", "math.h", "stdlib"):
        assert word not in code
    assert code.count("#include") == 1
    assert "\\" not in text
    assert int8.to_c(model) == int8.to_c(model)


def test_a_half_is_rounded_away_from_zero_in_both(tmp_path: Path) -> None:
    """An input times weight 1, divided by 2."""
    layer = Int8Layer(
        weights=np.array([[1]], dtype=np.int8),
        biases=np.zeros(1, dtype=np.int32),
        multipliers=np.array([1 << 30], dtype=np.int32),
        shifts=np.array([31], dtype=np.uint8),
        relu=False,
    )
    model, _ = small_model("softmax", 0)
    tiny = replace(model, spec=ModelSpec(kind="softmax", sizes=(1, 1)), layers=(layer,))
    x = np.array([[-3], [-2], [-1], [0], [1], [2], [3]], dtype=np.int8)
    expected = [-2, -1, -1, 0, 1, 1, 2]
    assert int8.reference(tiny, x).ravel().tolist() == expected
    assert Library(tiny, tmp_path).infer(x).ravel().tolist() == expected


def test_an_accumulator_that_could_overflow_is_refused() -> None:
    def layer(bias: int) -> Int8Layer:
        return Int8Layer(
            weights=np.full((1000, 1), 127, dtype=np.int8),
            biases=np.array([bias], dtype=np.int32),
            multipliers=np.array([1], dtype=np.int32),
            shifts=np.array([1], dtype=np.uint8),
            relu=False,
        )

    room = (1 << 31) - 1 - 1000 * 127 * 128
    assert layer(room).biases[0] == room
    assert layer(-room).biases[0] == -room
    for bias in (room + 1, -room - 1):
        with pytest.raises(ValueError, match="expected accumulators within"):
            layer(bias)


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_of_any_size_give_a_model(kind: str) -> None:
    """Dead units, huge biases and tiny weights: what training may leave must not become a wrong number."""
    spec = KINDS[kind]
    rng = np.random.default_rng(3)
    windows = rng.normal(size=(50, spec.sizes[0])).astype(np.float32)
    for exponent in (-30, -8, 0, 2):
        flat = (rng.normal(size=spec.parameters) * 10.0**exponent).astype(np.float32)
        for layer in spec.layers:
            flat[layer.start : layer.bias_start : 3] *= np.float32(1e-6)
            flat[layer.bias_start : layer.stop : 2] = np.float32(1e4)
            flat[layer.start : layer.bias_start].reshape(layer.inputs, layer.outputs)[:, 0] = 0
        model = int8.quantize(spec, flat, None, None, windows)
        out = int8.reference(model, int8.quantize_inputs(model, int8.to_fixed(model, windows)))
        assert np.abs(out.astype(int)).max() <= 127
    zero = int8.quantize(spec, np.zeros(spec.parameters, dtype=np.float32), None, None, windows)
    assert not int8.reference(zero, int8.quantize_inputs(zero, int8.to_fixed(zero, windows))).any()


def test_what_cannot_be_quantized_is_told() -> None:
    spec = KINDS["softmax"]
    flat, windows = np.zeros(spec.parameters, dtype=np.float32), np.ones((3, spec.sizes[0]), dtype=np.float32)
    ones = np.ones(spec.sizes[0], dtype=np.float32)
    for match, words in (
        ("parameters", (flat[1:], None, None, windows)),
        ("calibration windows", (flat, None, None, windows[:0])),
        ("calibration windows", (flat, None, None, windows[:, 1:])),
        ("finite", (flat, None, None, windows * np.float32(np.nan))),
        ("a mean and a scale, or neither", (flat, ones, None, windows)),
        ("scales above 0", (flat, ones, ones * 0, windows)),
        ("another unit", (flat, ones * np.float32(1e12), ones * np.float32(1e-3), windows)),
    ):
        with pytest.raises(ValueError, match=match):
            int8.quantize(spec, *words)
    far_out = ModelSpec(kind="autoencoder", sizes=(2, 2))
    with pytest.raises(ValueError, match="differ too much"):
        int8.quantize(far_out, np.full(6, 1e30, dtype=np.float32), None, None, np.ones((1, 2), dtype=np.float32))
    large = ModelSpec(kind="softmax", sizes=(60_000, 20))
    with pytest.raises(ValueError, match="at most 1,048,576 parameters"):
        int8.quantize(large, np.zeros(large.parameters, np.float32), None, None, np.zeros((1, 60_000), np.float32))
    model, _ = small_model("mlp", 0)
    for prefix in ("", "1x", "a-b", "A", "x" * 40, "a\n"):
        with pytest.raises(ValueError, match="expected a prefix"):
            int8.to_c(model, prefix=prefix)
    with pytest.raises(ValueError, match="int8"):
        int8.reference(model, np.zeros((1, 3), dtype=np.int8))


def test_features_of_any_unit_are_scaled_as_the_float_scaler_does() -> None:
    """Within half a step, from millionths to tens of thousands; and clipped where training clips."""
    assert int8.SCALED_LIMIT == samples.SCALED_LIMIT
    spec = ModelSpec(kind="autoencoder", sizes=(6, 3, 6))
    rng = np.random.default_rng(0)
    for size in (1e-4, 1.0, 2e4):
        spread = (size * rng.uniform(0.5, 2.0, 6)).astype(np.float32)
        mean = (size * rng.normal(size=6)).astype(np.float32)
        windows = (mean + spread * rng.normal(scale=4.0, size=(300, 6))).astype(np.float32)
        flat = rng.normal(size=spec.parameters).astype(np.float32)
        model = int8.quantize(spec, flat, mean, spread, windows)
        x = int8.quantize_inputs(model, int8.to_fixed(model, windows)) * model.input_scale
        assert np.abs(x - Scaler(mean=mean, scale=spread).apply(windows)).max() <= 0.55 * model.input_scale


@pytest.mark.parametrize("kind", ["softmax", "mlp"])
def test_bearings_are_told_apart_as_well_as_in_float(kind: str) -> None:
    job = bearings(kind)
    model = int8.quantize(job.spec, job.flat, job.scaler.mean, job.scaler.scale, job.train_x)
    found = int8.classes(int8.reference(model, int8.quantize_inputs(model, int8.to_fixed(model, job.test_x))))
    expected = NumpyEngine(job.spec).infer(job.flat, job.scaler.apply(job.test_x)).argmax(axis=1)
    accuracy, float_accuracy = np.mean(found == job.test_y), np.mean(expected == job.test_y)
    assert float_accuracy > 0.8, "the float model has learnt nothing: this proves little"
    assert accuracy >= float_accuracy - 0.01
    assert np.mean(found == expected) >= 0.98


def test_logits_are_those_in_float_less_their_mean() -> None:
    job = bearings("mlp")
    model = int8.quantize(job.spec, job.flat, job.scaler.mean, job.scaler.scale, job.train_x)
    out = int8.reference(model, int8.quantize_inputs(model, int8.to_fixed(model, job.train_x))) * model.output_scale
    # The logarithm of a probability is its logit less the same for all classes.
    logits = np.log(np.maximum(NumpyEngine(job.spec).infer(job.flat, job.scaler.apply(job.train_x)), 1e-30))
    expected = logits - logits.mean(axis=1, keepdims=True)
    assert np.abs(out - expected).mean() < 2 * model.output_scale


@pytest.mark.parametrize(("calibrated", "apart"), [("healthy", 0.1), ("all", 0.02)])
def test_faults_of_bearings_are_found_as_well_as_in_float(calibrated: str, apart: float) -> None:
    """With faults among the windows of calibration scores of faults are close as well, not only their order."""
    job = bearings("autoencoder")
    windows = job.train_x if calibrated == "healthy" else np.concatenate([job.train_x, job.test_x[::2]])
    model = int8.quantize(job.spec, job.flat, job.scaler.mean, job.scaler.scale, windows)
    x = int8.quantize_inputs(model, int8.to_fixed(model, job.test_x))
    scores = int8.anomaly_score(x, int8.reference(model, x)) * (model.input_scale**2 / job.spec.sizes[0])
    scaled = job.scaler.apply(job.test_x)
    expected = float_score(scaled, NumpyEngine(job.spec).infer(job.flat, scaled)).astype(np.float64)
    faulty = job.test_y != 0
    auc = area_under_curve(scores[faulty], scores[~faulty])
    float_auc = area_under_curve(expected[faulty], expected[~faulty])
    assert float_auc > 0.8, "the float model has learnt nothing: this proves little"
    assert auc >= float_auc - 0.01
    for which in (faulty, ~faulty):
        assert np.median(np.abs(scores - expected)[which] / expected[which]) < apart
