"""Gradients as graphs, against what defines them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fedmq_models.build import MOST_SHIFTS, Builder, Value
from fedmq_models.graph import Graph
from fedmq_models.interpreter import Interpreter
from numpy.typing import NDArray

RNG = np.random.default_rng(3)


def whole(*shape: int) -> NDArray[np.float32]:
    """Small whole numbers: sums of their products are exact."""
    return RNG.integers(-3, 4, shape).astype(np.float32)


def run(graph: Graph, *inputs: NDArray[np.float32]) -> list[Any]:
    return Interpreter(graph).run(inputs)


def total(b: Builder, value: Value, weights: Value) -> Value:
    return b.reduce("ReduceSum", b.node("Mul", value, weights), *range(len(b.shape(value))))


CONVOLUTIONS = [
    # length, kernel, stride, pads, dilation
    (9, 1, 1, (0, 0), 1),
    (9, 3, 1, (1, 1), 1),
    (9, 4, 1, (3, 0), 1),
    (9, 5, 2, (2, 2), 1),
    (10, 5, 2, (2, 2), 1),
    (11, 2, 3, (0, 0), 1),  # some of x is in no window
    (13, 3, 5, (0, 1), 1),
    (12, 8, 8, (4, 4), 1),
    (8, 8, 1, (0, 0), 1),  # one window
    (20, 2 * MOST_SHIFTS + 1, 2, (8, 8), 1),  # more copies than are held
    (12, 3, 2, (1, 1), 2),
]


@pytest.mark.parametrize(("length", "kernel", "stride", "pads", "dilation"), CONVOLUTIONS)
def test_the_gradients_of_a_convolution_are_what_each_element_contributes(
    length: int, kernel: int, stride: int, pads: tuple[int, int], dilation: int
) -> None:
    spread = {"stride": stride, "pads": pads, "dilation": dilation}
    x, weight = whole(2, 3, length), whole(4, 3, kernel)
    b = Builder()
    given = b.input("x", "float32", x.shape), b.input("weight", "float32", weight.shape)
    out = b.node("Conv", *given, **spread)
    by = whole(*b.shape(out))
    loss = total(b, out, b.constant(by))
    to_x, to_weight = run(b.graph(*b.gradient(loss, given)), x, weight)
    # The loss is linear in each of both: alone, and 1, an element gives its own gradient.
    alone = b.graph(loss)
    for place in np.ndindex(x.shape):
        one = np.zeros_like(x)
        one[place] = 1
        assert to_x[place] == run(alone, one, weight)[0]
    for place in np.ndindex(weight.shape):
        one = np.zeros_like(weight)
        one[place] = 1
        assert to_weight[place] == run(alone, x, one)[0]


def test_the_gradient_of_the_weights_alone_is_the_same() -> None:
    x, weight = whole(2, 3, 10), whole(4, 3, 5)
    b = Builder()
    given = b.input("x", "float32", x.shape), b.input("weight", "float32", weight.shape)
    loss = total(b, out := b.node("Conv", *given, stride=2, pads=(2, 2), dilation=1), b.constant(whole(2, 4, 5)))
    assert b.shape(out) == (2, 4, 5)
    _, of_both = b.gradient(loss, given)
    (alone,) = b.gradient(loss, given[1:])
    one, other = run(b.graph(of_both, alone), x, weight)
    assert np.array_equal(one, other)


def plain_norm(b: Builder, x: Value, groups: int, scale: Value, shift: Value, epsilon: float) -> Value:
    """The same, from nodes that each have their own rule."""
    n, channels, length = b.shape(x)
    grouped = b.reshape(x, n, groups, channels // groups * length)
    centred = b.node("Sub", grouped, b.reduce("ReduceMean", grouped, 2, keep=True))
    variance = b.reduce("ReduceMean", b.node("Mul", centred, centred), 2, keep=True)
    normed = b.node("Div", centred, b.node("Sqrt", b.node("Add", variance, b.constant(epsilon))))
    scaled = b.node("Mul", b.reshape(normed, n, channels, length), b.reshape(scale, channels, 1))
    return b.node("Add", scaled, b.reshape(shift, channels, 1))


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_a_group_norm_and_its_gradients_are_those_of_its_single_steps(groups: int) -> None:
    inputs = [RNG.normal(2.0, 3.0, shape).astype(np.float32) for shape in ((4, 6, 5), (6,), (6,))]
    by = RNG.normal(size=(4, 6, 5)).astype(np.float32)
    found = []
    for norm in (Builder.group_norm, plain_norm):
        b = Builder()
        x, scale, shift = (
            b.input(name, "float32", array.shape) for name, array in zip(("x", "scale", "shift"), inputs, strict=True)
        )
        out = norm(b, x, groups, scale, shift, 1e-5)
        found.append(run(b.graph(out, *b.gradient(total(b, out, b.constant(by)), [x, scale, shift])), *inputs))
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_what_is_expanded_for_an_operator_that_broadcasts_is_not() -> None:
    b = Builder()
    x, y = b.input("x", "float32", (3, 1)), b.input("y", "float32", (3, 4))
    wide = b.node("Expand", x, shape=(3, 4))
    half = b.node("Mul", wide, b.constant(0.5))
    graph = b.graph(b.node("Add", half, y), half)
    assert [node.op for node in graph.nodes] == ["Mul", "Expand", "Add"]
    given = [whole(3, 1), whole(3, 4)]
    added, expanded = run(graph, *given)
    assert np.array_equal(added, given[0] / 2 + given[1])
    assert np.array_equal(expanded, np.broadcast_to(given[0] / 2, (3, 4)))


def test_a_node_that_is_there_is_not_made_again() -> None:
    b = Builder()
    x = b.input("x", "float32", (2, 3))
    assert b.node("Transpose", x, perm=(1, 0)) == b.node("Transpose", x, perm=(1, 0))
    assert b.node("Relu", x) != b.node("Neg", x)
    assert b.reshape(b.reshape(x, 6), 2, 3) == x
