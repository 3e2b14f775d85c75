"""A trained model as a graph of its own: parameters and feature scaling inside, windows in, answers out.

Owns how the two are folded in, how a bundle's own preparation goes before, and that what follows from constants alone
is computed once, here: a layer's weights are a constant in the file, not a piece that is cut out of all parameters at
every run. For export: a gateway keeps parameters apart, because they change with every round.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fedmq_models.graph import Array, Constant, Graph, GraphError, Node, check
from fedmq_models.interpreter import KERNELS

__all__ = ["chained", "standalone"]


def standalone(
    infer: Graph,
    flat: NDArray[np.float32],
    mean: NDArray[np.float32] | None = None,
    scale: NDArray[np.float32] | None = None,
    *,
    limit: float = 8.0,
) -> Graph:
    """`infer` (flat `(P,)`, x -> out) at these parameters, as x -> out.

    With `mean` and `scale` `(features,)`, x is unscaled: it becomes (x - mean) / scale within ±`limit`, as a gateway
    does it. Raises GraphError where they do not fit.
    """
    if len(infer.inputs) != 2 or infer.inputs[0][1].shape != flat.shape:
        raise GraphError(f"expected an inference graph over {flat.shape} parameters, got {infer.inputs}")
    x_type = infer.inputs[1][1]
    constants = [Constant.of(flat.astype(np.float32))]
    nodes: list[Node] = []
    if mean is not None and scale is not None:
        shape = x_type.shape[1:]
        folded = [mean.reshape(shape), scale.reshape(shape), np.float32(-limit), np.float32(limit)]
        constants += [Constant.of(np.asarray(value, dtype=np.float32)) for value in folded]
    own = 1 + len(constants) + len(infer.constants)
    if len(constants) > 1:
        # Values: 0 is x, 1 flat, 2 to 5 what the scaling needs.
        nodes = [Node("Sub", (0, 2)), Node("Div", (own, 3)), Node("Max", (own + 1, 4)), Node("Min", (own + 2, 5))]
    number = {0: 1, 1: own + 3 if nodes else 0}
    before = 1 + len(constants)
    for place in range(len(infer.constants)):
        number[2 + place] = before + place
    first = 2 + len(infer.constants)
    for place in range(len(infer.nodes)):
        number[first + place] = own + len(nodes) + place
    graph = Graph(
        inputs=(infer.inputs[1],),
        constants=(*constants, *infer.constants),
        nodes=(*nodes, *(Node(n.op, tuple(number[value] for value in n.inputs), n.attributes) for n in infer.nodes)),
        outputs=tuple(number[value] for value in infer.outputs),
    )
    check(graph)
    return _folded(graph)


def _folded(graph: Graph) -> Graph:
    """The same function with what depends on no input as constants, and without what no output needs. An expanded
    constant stays an operator: it says the same in less."""
    first = len(graph.inputs) + len(graph.constants)
    known: dict[int, Array] = {len(graph.inputs) + place: c.array() for place, c in enumerate(graph.constants)}
    for place, node in enumerate(graph.nodes):
        if node.op != "Expand" and all(number in known for number in node.inputs):
            known[first + place] = KERNELS[node.op]([known[number] for number in node.inputs], node.attributes)
    needed = set(graph.outputs)
    for number in range(first + len(graph.nodes) - 1, first - 1, -1):
        if number in needed and number not in known:
            needed.update(graph.nodes[number - first].inputs)
    constants = sorted(needed & known.keys())
    kept = [number for number in sorted(needed - known.keys()) if number >= first]
    order = [*range(len(graph.inputs)), *constants, *kept]
    place_of = {number: place for place, number in enumerate(order)}
    nodes = (graph.nodes[number - first] for number in kept)
    return Graph(
        inputs=graph.inputs,
        constants=tuple(Constant.of(known[number]) for number in constants),
        nodes=tuple(Node(n.op, tuple(place_of[given] for given in n.inputs), n.attributes) for n in nodes),
        outputs=tuple(place_of[number] for number in graph.outputs),
    )


def chained(first: Graph, second: Graph) -> Graph:
    """What `second`, of one input, makes of the one output of `first`. Raises GraphError where they do not fit."""
    inputs, known, own, nodes = len(first.inputs), len(first.constants), len(second.constants), len(first.nodes)

    def of_first(value: int) -> int:
        return value if value < inputs + known else value + own

    def of_second(value: int) -> int:
        if value == 0:
            return of_first(first.outputs[0])
        return inputs + known + value - 1 + (0 if value <= own else nodes)

    def moved(node: Node, to: Callable[[int], int]) -> Node:
        return Node(node.op, tuple(map(to, node.inputs)), node.attributes)

    between = check(first).values[first.outputs[0]]
    if len(first.outputs) != 1 or [tensor for _, tensor in second.inputs] != [between]:
        raise GraphError(f"expected a graph that takes {between}, got {second.inputs}")
    graph = Graph(
        inputs=first.inputs,
        constants=(*first.constants, *second.constants),
        nodes=(*(moved(n, of_first) for n in first.nodes), *(moved(n, of_second) for n in second.nodes)),
        outputs=tuple(map(of_second, second.outputs)),
    )
    check(graph)
    return graph
