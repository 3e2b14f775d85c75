"""ONNX as others write it becomes the same graph; what has no place in one is named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fedmq_models.builtin import grad_graph, infer_graph
from fedmq_models.interpreter import Interpreter
from fedmq_models.onnx_format import to_onnx
from fedmq_protocol.task import ModelSpec, initial_steps, to_parameters

onnx = pytest.importorskip("onnx", reason="the conversion reads ONNX with the package of that name")

from fedmq.authoring.conversion import AuthoringError, to_graph  # noqa: E402

FLOAT, INT = 1, 7
MODELS = [
    ModelSpec(kind="mlp", sizes=(22, 8, 3)),
    ModelSpec(kind="autoencoder", sizes=(12, 4, 12)),
    ModelSpec(kind="cnn1d", sizes=(256, 8, 8, 3)),
]


def model_of(*nodes: Any, inputs: dict[str, tuple[int, ...]], output: tuple[int, ...], **constants: Any) -> Any:
    helper = onnx.helper
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info("out", FLOAT, output)],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])


def expected_of(model: Any, *inputs: Any) -> Any:
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(model)
    return evaluator.run(None, dict(zip(evaluator.input_names, inputs, strict=True)))[0]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.kind)
def test_what_we_write_is_read_back_as_the_same_computation(model: ModelSpec) -> None:
    rng = np.random.default_rng(0)
    flat = to_parameters(initial_steps(model, 0, 12), 12)
    x = rng.normal(size=(4, model.sizes[0])).astype(np.float32)
    y, w = rng.integers(0, 3, 4), np.ones(4, dtype=np.float32)
    for graph, names, inputs in (
        (grad_graph(model, 4), ("grad", "loss"), [flat, x, y, w]),
        (infer_graph(model, 4), ("out",), [flat, x]),
    ):
        data = to_onnx(graph, output_names=names)
        loaded = onnx.load_from_string(data)
        onnx.checker.check_model(loaded, full_check=True)
        back = to_graph(loaded)
        for one, other in zip(Interpreter(back).run(inputs), Interpreter(graph).run(inputs), strict=True):
            assert np.array_equal(one, other)


CASES: dict[str, tuple[Any, tuple[int, ...], dict[str, Any]]] = {
    "gemm": (("Gemm", ["x", "b", "c"], {"transB": 1, "alpha": 0.5}), (3, 2), {"b": np.ones((2, 4)), "c": np.ones(2)}),
    "flatten": (("Flatten", ["x"], {"axis": 0}), (1, 12), {}),
    "clip": (("Clip", ["x", "b", "c"], {}), (3, 4), {"b": -0.5, "c": 0.5}),
    "gather": (("Gather", ["x", "i"], {"axis": 1}), (3, 2), {"i": np.array([3, -4])}),
    "gather one": (("Gather", ["x", "i"], {"axis": 0}), (4,), {"i": np.array(2)}),
    "slice backwards from the end": (
        ("Slice", ["x", "s", "e", "a"], {}),
        (3, 2),
        {"s": np.array([-3]), "e": np.array([-1]), "a": np.array([1])},
    ),
    "squeeze": (("Unsqueeze", ["x", "a"], {}), (3, 1, 4), {"a": np.array([1])}),
    "mean of all": (("ReduceMean", ["x"], {"keepdims": 0}), (), {}),
    "pad": (("Pad", ["x", "p", "c"], {}), (4, 6), {"p": np.array([1, 0, 0, 2]), "c": np.float32(7)}),
    "square": (("Pow", ["x", "c"], {}), (3, 4), {"c": np.float32(2)}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_spelling_becomes_the_operator_that_it_means(case: str) -> None:
    (op, inputs, attributes), output, constants = CASES[case]
    whole = {
        key: value if np.asarray(value).dtype.kind == "i" else np.asarray(value, dtype=np.float32)
        for key, value in constants.items()
    }
    node = onnx.helper.make_node(op, inputs, ["out"], **attributes)
    model = model_of(node, inputs={"x": (3, 4)}, output=output, **whole)
    x = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)
    (found,) = Interpreter(to_graph(model)).run([x])
    assert found.shape == output
    assert np.allclose(found, expected_of(model, x), atol=1e-6)


def test_an_operator_without_a_place_is_named_with_a_way_out() -> None:
    node = onnx.helper.make_node("TopK", ["x", "k"], ["out", "i"], name="/head/TopK")
    model = model_of(node, inputs={"x": (3, 4)}, output=(3, 2), k=np.array([2]))
    with pytest.raises(AuthoringError, match=r"TopK \(/head/TopK\) cannot be part .*: use max along an axis"):
        to_graph(model)


def test_a_shape_that_depends_on_data_is_refused() -> None:
    nodes = [
        onnx.helper.make_node("Cast", ["x"], ["s"], to=INT),
        onnx.helper.make_node("Reshape", ["x", "s"], ["out"]),
    ]
    with pytest.raises(AuthoringError, match=r"Reshape: expected a shape known beforehand"):
        to_graph(model_of(*nodes, inputs={"x": (4,)}, output=(2, 2)))


def test_an_input_without_a_fixed_shape_is_refused() -> None:
    node = onnx.helper.make_node("Relu", ["x"], ["out"])
    model = model_of(node, inputs={"x": (3, 4)}, output=(3, 4))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    with pytest.raises(AuthoringError, match="of a fixed shape"):
        to_graph(model)
