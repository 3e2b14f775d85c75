"""TFLite in integers: nothing in it is float, it is near the float model, and what it cannot keep is refused."""

from __future__ import annotations

import hashlib
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from fedmq_edge_node.runtimes import make_engine
from fedmq_edge_node.trainer import train
from fedmq_models.build import Builder
from fedmq_models.builtin import infer_graph
from fedmq_models.bundle import from_bytes
from fedmq_models.graph import Graph, GraphError
from fedmq_models.standalone import standalone
from fedmq_models.tflite_format import to_tflite
from fedmq_models.tflite_int8 import (
    PRECISIONS,
    Calibration,
    IntegerTensor,
    Precision,
    TFLiteModel,
    operators_in_float,
)
from fedmq_protocol.task import ModelSpec, Recipe, initial_steps, to_parameters

pytest.importorskip("ai_edge_quantizer", reason="it makes integers of a TFLite file: pip install 'fedmq[export]'")
pytest.importorskip("ai_edge_litert", reason="it runs TFLite files")

TOO_COARSE = {("cnn_with_pooling", "int8")}
"""Its BatchNorm and its greatest values lose too much there, which is what wider activations are for."""
BUNDLES = Path(__file__).parents[1] / "vectors" / "bundles"


@cache
def learnt(name: str) -> tuple[Graph, np.ndarray, np.ndarray]:
    """A golden bundle that has learnt its few windows by heart, as a graph of its own; windows and labels."""
    data = (BUNDLES / f"{name}.fedmq").read_bytes()
    bundle = from_bytes(data)
    model = bundle.model(hashlib.sha256(data).digest(), len(data))
    with np.load(BUNDLES / f"{name}.npz", allow_pickle=False) as golden:
        x, y = golden["x"], golden["y"]
    flat = to_parameters(initial_steps(model, 1, 16), 16)
    recipe = Recipe(learning_rate=0.1, momentum=0.9, local_epochs=40, batch_size=bundle.manifest.batch)
    engine = make_engine(model, "auto", bundle)
    flat = flat + train(engine, flat, x, y, recipe, np.random.default_rng(0), lambda: True).delta
    return standalone(bundle.infer_one, flat), x, y


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", sorted(path.stem for path in BUNDLES.glob("*.fedmq")))
def test_every_kind_of_brought_model_runs_in_integers_alone(name: str, precision: Precision) -> None:
    graph, x, _ = learnt(name)
    calibration = Calibration(graph, x)
    data = calibration.quantize(precision)
    assert operators_in_float(calibration.in_float), "the check finds nothing where all is float"
    assert operators_in_float(data) == []
    model = TFLiteModel(data)
    assert {model.input.dtype, model.output.dtype} == {"int8" if precision == "int8" else "int16"}
    expected = TFLiteModel(calibration.in_float).run(x)
    off = np.abs(model.run(x) - expected).max() / np.ptp(expected)
    near = off < {"int8": 0.15, "mixed": 0.03, "int16": 0.01}[precision]
    assert near == ((name, precision) not in TOO_COARSE), off


def test_a_cnn_that_was_brought_keeps_its_classes() -> None:
    graph, x, y = learnt("cnn")
    calibration = Calibration(graph, x)
    assert (TFLiteModel(calibration.in_float).run(x).argmax(axis=1) == y).all(), "it has learnt nothing"
    assert (TFLiteModel(calibration.quantize("int8")).run(x).argmax(axis=1) == y).all()


def test_weights_have_a_scale_for_each_output_and_a_layer_is_one_operator() -> None:
    from ai_edge_litert import schema_py_generated as schema

    model = ModelSpec(kind="mlp", sizes=(6, 5, 3))
    flat = np.random.default_rng(0).normal(size=model.parameters).astype(np.float32)
    graph = standalone(infer_graph(model, 1), flat)
    windows = np.random.default_rng(1).normal(size=(50, 6)).astype(np.float32)
    read = schema.ModelT.InitFromObj(schema.Model.GetRootAs(Calibration(graph, windows).quantize("int8")))
    (part,) = read.subgraphs
    codes = [read.operatorCodes[operator.opcodeIndex].builtinCode for operator in part.operators]
    dense = schema.BuiltinOperator.FULLY_CONNECTED
    assert codes == [dense, dense, schema.BuiltinOperator.SOFTMAX]
    weights = [part.tensors[operator.inputs[1]].quantization.scale for operator in part.operators[:2]]
    assert [len(set(scales.tolist())) for scales in weights] == [5, 3]


def test_ranges_are_of_all_windows_whatever_their_order() -> None:
    model = ModelSpec(kind="mlp", sizes=(6, 5, 3))
    rng = np.random.default_rng(0)
    graph = standalone(infer_graph(model, 1), rng.normal(size=model.parameters).astype(np.float32))
    x = rng.normal(size=(300, 6)).astype(np.float32)
    loudest = np.argsort(np.abs(x).max(axis=1))
    files = {Calibration(graph, rows).quantize("int8") for rows in (x[loudest], x[loudest[::-1]])}
    assert len(files) == 1
    step = TFLiteModel(files.pop()).input
    assert step.scale == pytest.approx(np.ptp(x) / 255, rel=1e-3)


def test_an_operator_without_integers_is_refused_by_its_name() -> None:
    b = Builder()
    graph = b.graph(b.node("Exp", b.input("x", "float32", (1, 4))))
    with pytest.raises(GraphError, match="computed in integers too, got EXP"):
        Calibration(graph, np.ones((3, 4), dtype=np.float32)).quantize("int8")


def test_without_windows_there_are_no_ranges() -> None:
    graph = standalone(infer_graph(ModelSpec(kind="softmax", sizes=(4, 2)), 1), np.ones(10, dtype=np.float32))
    with pytest.raises(ValueError, match="expected windows"):
        Calibration(graph, np.zeros((0, 4), dtype=np.float32))


def test_a_missing_quantizer_is_told_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = standalone(infer_graph(ModelSpec(kind="softmax", sizes=(4, 2)), 1), np.ones(10, dtype=np.float32))
    monkeypatch.setitem(sys.modules, "ai_edge_quantizer", None)
    with pytest.raises(ImportError, match=r"pip install 'fedmq\[export\]'"):
        Calibration(graph, np.ones((3, 4), dtype=np.float32))


def test_numbers_become_the_nearest_integers_and_what_lies_beyond_is_cut_off() -> None:
    tensor = IntegerTensor(dtype="int8", scale=0.5, zero_point=10)
    given = np.array([0.0, 0.2, 0.3, -1.0, 1000.0, -1000.0], dtype=np.float32)
    integers = tensor.integers(given)
    assert integers.dtype == np.int8
    assert integers.tolist() == [10, 10, 11, 8, 127, -128]
    assert tensor.values(integers).tolist() == [0.0, 0.0, 0.5, -1.0, 58.5, -69.0]


@pytest.mark.parametrize("shape", [(3,), (1, 3)])
@pytest.mark.parametrize("turned", [False, True])
def test_a_product_its_bias_and_its_relu_are_one_operator_that_gives_the_same(
    shape: tuple[int, ...], turned: bool
) -> None:
    rng = np.random.default_rng(3)
    weights, bias = rng.normal(size=(4, 3)).astype(np.float32), rng.normal(size=shape).astype(np.float32)
    x = rng.normal(size=(1, 4)).astype(np.float32)
    b = Builder()
    product = b.node("MatMul", b.input("x", "float32", (1, 4)), b.constant(weights))
    added = b.constant(bias)
    layer = b.node("Relu", b.node("Add", *((added, product) if turned else (product, added))))
    # The product alone is asked for, too, so that it must stay.
    graph = b.graph(b.node("Concat", layer, product, axis=1))
    expected = np.concatenate([np.maximum(x @ weights + bias, 0), x @ weights], axis=1)
    data = to_tflite(graph, output_names=("out",))
    assert np.abs(TFLiteModel(data).run(x) - expected).max() < 1e-5
    assert operators_in_float(data) == ["CONCATENATION", "FULLY_CONNECTED"]


@pytest.mark.parametrize("kind", ["mlp", "autoencoder", "regressor", "cnn1d"])
def test_tflite_micro_runs_what_was_made_and_gives_nearly_the_same(kind: str) -> None:
    micro = pytest.importorskip(
        "tflite_micro.python.tflite_micro", reason="it is TFLite Micro on a workstation: pip install tflite-micro"
    )
    sizes = {"mlp": (6, 5, 3), "autoencoder": (6, 2, 6), "regressor": (6, 5, 1), "cnn1d": (128, 8, 16, 3)}
    model = ModelSpec(kind=kind, sizes=sizes[kind])  # type: ignore[arg-type]
    rng = np.random.default_rng(0)
    flat = to_parameters(initial_steps(model, 1, 12), 12)
    x = rng.normal(size=(100, model.sizes[0])).astype(np.float32)
    data = Calibration(standalone(infer_graph(model, 1), flat), x).quantize("int8")
    here, there = TFLiteModel(data), micro.runtime.Interpreter.from_bytes(data)
    expected, found = here.output.integers(here.run(x)).astype(int), []
    for window in here.input.integers(x):
        there.set_input(window[None], 0)
        there.invoke()
        found.append(there.get_output(0).reshape(-1).astype(int))
    # LiteRT's own kernels round some accumulators the other way, and a variance makes more of it.
    assert np.abs(np.array(found) - expected).max() <= (8 if kind == "cnn1d" else 2)
