"""A model as a graph of its own: the same function, with what depends on no window computed beforehand."""

from __future__ import annotations

import numpy as np
import pytest
from fedmq_models.build import Builder
from fedmq_models.builtin import infer_graph
from fedmq_models.graph import GraphError, check
from fedmq_models.interpreter import Interpreter
from fedmq_models.standalone import standalone
from fedmq_protocol.task import ModelSpec

MODELS = [
    ModelSpec(kind="mlp", sizes=(6, 5, 3)),
    ModelSpec(kind="regressor", sizes=(6, 5, 1)),
    ModelSpec(kind="autoencoder", sizes=(6, 2, 6)),
    ModelSpec(kind="cnn1d", sizes=(128, 8, 16, 3)),
]


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.kind)
def test_it_computes_the_same_and_has_each_layers_weights_as_a_constant(model: ModelSpec, scaled: bool) -> None:
    rng = np.random.default_rng(0)
    flat = rng.normal(scale=0.3, size=model.parameters).astype(np.float32)
    x = rng.normal(scale=4, size=(1, model.sizes[0])).astype(np.float32)
    mean, scale = (rng.uniform(0.2, 2, size=model.sizes[0]).astype(np.float32) for _ in range(2))
    graph = standalone(infer_graph(model, 1), flat, *((mean, scale) if scaled else ()))
    check(graph)
    given = np.clip((x - mean) / scale, -8, 8) if scaled else x
    (expected,) = Interpreter(infer_graph(model, 1)).run([flat, given])
    (found,) = Interpreter(graph).run([x])
    assert np.abs(found - expected).max() < 1e-5
    constants = range(len(graph.inputs), len(graph.inputs) + len(graph.constants))
    assert not [node for node in graph.nodes if node.op == "Slice" and node.inputs[0] in constants]
    parameters = [constant.type for constant in graph.constants if constant.type.elements > 1]
    assert sum(tensor.elements for tensor in parameters) <= model.parameters + 2 * model.sizes[0]
    assert [tensor.shape for tensor in parameters if len(tensor.shape) > 1]


def test_an_output_may_be_a_constant_and_an_expanded_one_stays_small() -> None:
    b = Builder()
    flat, x = b.input("flat", "float32", (2,)), b.input("x", "float32", (1, 2))
    wide = b.node("Expand", b.reshape(flat, 1, 2), shape=(50, 2))
    graph = standalone(b.graph(b.node("Add", flat, flat), b.node("Add", wide, x)), np.array([1, 2], dtype=np.float32))
    found = Interpreter(graph).run([np.ones((1, 2), dtype=np.float32)])
    assert found[0].tolist() == [2, 4]
    assert found[1].tolist() == [[2, 3]] * 50
    assert max(constant.type.elements for constant in graph.constants) == 2


def test_parameters_of_another_model_are_refused() -> None:
    with pytest.raises(GraphError, match="expected an inference graph over"):
        standalone(infer_graph(MODELS[0], 1), np.ones(3, dtype=np.float32))
