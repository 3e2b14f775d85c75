"""Makes graphs: node by node, with the gradient of one value with respect to others.

Owns the numbering, and reverse-mode differentiation (Griewank, Walther 2008, chapter 3) for the operators that the
built-in models are made of. For a model that somebody brings, the gradient is traced by what they wrote it in.
Refuses to know any model. Shapes are inferred as nodes are added, so that a mistake shows where it is made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from fedmq_models.graph import OPERATORS, Array, Attribute, Constant, Dtype, Graph, GraphError, Node, Tensor

__all__ = ["Builder", "Value"]

Value: TypeAlias = int
"""Names a value of one builder; its number in the finished graph is another."""


class Builder:
    """A graph in the making."""

    def __init__(self) -> None:
        self._types: list[Tensor] = []
        self._inputs: list[tuple[Value, str]] = []
        self._constants: dict[Value, Constant] = {}
        self._known: dict[tuple[Tensor, bytes], Value] = {}
        self._nodes: dict[Value, Node] = {}

    def input(self, name: str, dtype: Dtype, shape: tuple[int, ...]) -> Value:
        value = self._add(Tensor(dtype, shape))
        self._inputs.append((value, name))
        return value

    def constant(self, array: Array | float) -> Value:
        """A float becomes a scalar of float32. Equal constants are one."""
        constant = Constant.of(np.asarray(array, dtype=np.float32) if isinstance(array, float) else array)
        key = (constant.type, constant.data)
        if key not in self._known:
            self._known[key] = self._add(constant.type)
            self._constants[self._known[key]] = constant
        return self._known[key]

    def node(self, op: str, *inputs: Value, **attributes: Attribute) -> Value:
        """Raises GraphError where the operator does not go with its inputs."""
        kind, _ = OPERATORS[op].infer([self._types[value] for value in inputs], attributes)
        value = self._add(kind)
        self._nodes[value] = Node(op, inputs, attributes)
        return value

    def shape(self, value: Value) -> tuple[int, ...]:
        return self._types[value].shape

    def _add(self, kind: Tensor) -> Value:
        self._types.append(kind)
        return len(self._types) - 1

    def graph(self, *outputs: Value) -> Graph:
        """What the outputs need, and nothing else."""
        needed = set(outputs)
        for value in reversed(self._nodes):
            if value in needed:
                needed.update(self._nodes[value].inputs)
        constants = [value for value in self._constants if value in needed]
        nodes = [value for value in self._nodes if value in needed]
        order = [value for value, _ in self._inputs] + constants + nodes
        number = {value: place for place, value in enumerate(order)}
        return Graph(
            inputs=tuple((name, self._types[value]) for value, name in self._inputs),
            constants=tuple(self._constants[value] for value in constants),
            nodes=tuple(
                Node(node.op, tuple(number[value] for value in node.inputs), node.attributes)
                for node in (self._nodes[value] for value in nodes)
            ),
            outputs=tuple(number[value] for value in outputs),
        )

    # -- shorthand ---------------------------------------------------------------------------------------------

    def reshape(self, value: Value, *shape: int) -> Value:
        return value if self.shape(value) == shape else self.node("Reshape", value, shape=shape)

    def reduce(self, op: str, value: Value, *axes: int, keep: bool = False) -> Value:
        return self.node(op, value, axes=axes, keepdims=int(keep))

    # -- gradients ---------------------------------------------------------------------------------------------

    def gradient(self, of: Value, wrt: Sequence[Value]) -> list[Value]:
        """Gradients of a scalar. Raises GraphError for an operator that has no rule, or where nothing depends."""
        if self.shape(of) != ():
            raise GraphError(f"expected a scalar to differentiate, got {self._types[of]}")
        towards = set(wrt)
        for value, node in self._nodes.items():
            if any(given in towards for given in node.inputs):
                towards.add(value)
        gradients: dict[Value, Value] = {of: self.constant(1.0)}
        for value in sorted((v for v in self._nodes if v in towards and v <= of), reverse=True):
            if value not in gradients or value in wrt:
                continue
            node = self._nodes[value]
            rule = _RULES.get(node.op)
            if rule is None:
                raise GraphError(f"there is no rule for the gradient of {node.op}")
            wanted = [given in towards for given in node.inputs]
            for given, part in zip(node.inputs, rule(self, node, value, gradients[value], wanted), strict=True):
                if part is None or given not in towards:
                    continue
                part = self._unbroadcast(part, self.shape(given))
                gradients[given] = self.node("Add", gradients[given], part) if given in gradients else part
        missing = [value for value in wrt if value not in gradients]
        if missing:
            raise GraphError(f"nothing depends on {missing}")
        return [gradients[value] for value in wrt]

    def _unbroadcast(self, value: Value, shape: tuple[int, ...]) -> Value:
        """Sums what was broadcast."""
        own = self.shape(value)
        if own == shape:
            return value
        more = len(own) - len(shape)
        axes = (*range(more), *(axis + more for axis, size in enumerate(shape) if size == 1 and own[axis + more] > 1))
        if axes:
            value = self.reduce("ReduceSum", value, *axes, keep=True)
        if self.shape(value) != (1,) * more + shape:
            value = self.node("Expand", value, shape=(1,) * more + shape)
        return self.reshape(value, *shape)


Rule: TypeAlias = Callable[[Builder, Node, Value, Value, list[bool]], list[Value | None]]
"""Builder, node, what it gave, the gradient of that, and for which inputs one is wanted -> theirs."""


def _reduction(b: Builder, node: Node, out: Value, g: Value, wanted: list[bool]) -> list[Value | None]:
    (x,) = node.inputs
    shape, axes = b.shape(x), node.attributes["axes"]
    assert isinstance(axes, tuple)
    reduced = {axis % len(shape) for axis in axes}
    kept = tuple(1 if axis in reduced else size for axis, size in enumerate(shape))
    g = b.reshape(g, *kept)
    if node.op == "ReduceMean":
        count = np.prod([shape[axis] for axis in reduced])
        g = b.node("Mul", g, b.constant(float(1.0 / count)))
    return [b.node("Expand", g, shape=shape)]


def _matmul(b: Builder, node: Node, out: Value, g: Value, wanted: list[bool]) -> list[Value | None]:
    x, w = node.inputs

    def turned(value: Value) -> Value:
        rank = len(b.shape(value))
        return b.node("Transpose", value, perm=(*range(rank - 2), rank - 1, rank - 2))

    return [
        b.node("MatMul", g, turned(w)) if wanted[0] else None,
        b.node("MatMul", turned(x), g) if wanted[1] else None,
    ]


def _conv(b: Builder, node: Node, out: Value, g: Value, wanted: list[bool]) -> list[Value | None]:
    x, weight = node.inputs[:2]
    stride, dilation, pads = (node.attributes[name] for name in ("stride", "dilation", "pads"))
    assert isinstance(stride, int)
    assert isinstance(dilation, int)
    assert isinstance(pads, tuple)
    length, kernel = b.shape(x)[2], b.shape(weight)[2]
    left = (length + sum(pads) - dilation * (kernel - 1) - 1) % stride
    gradients: list[Value | None] = [None, None]
    if wanted[0]:
        gradients[0] = b.node(
            "ConvTranspose", g, weight, stride=stride, pads=pads, dilation=dilation, output_padding=left
        )
    if wanted[1]:
        # The same product with channels for windows: x (c, n, l) by g (o, n, l'), which steps as the kernel spreads.
        swap = (1, 0, 2)
        product = b.node(
            "Conv",
            b.node("Transpose", x, perm=swap),
            b.node("Transpose", g, perm=swap),
            stride=dilation,
            pads=pads,
            dilation=stride,
        )
        if b.shape(product)[2] > kernel:
            product = b.node("Slice", product, starts=(0,), ends=(kernel,), axes=(2,), steps=(1,))
        gradients[1] = b.node("Transpose", product, perm=swap)
    if len(node.inputs) == 3:
        gradients.append(b.reduce("ReduceSum", g, 0, 2))
    return gradients


def _slice(b: Builder, node: Node, out: Value, g: Value, wanted: list[bool]) -> list[Value | None]:
    shape = b.shape(node.inputs[0])
    starts, ends, axes, steps = (node.attributes[name] for name in ("starts", "ends", "axes", "steps"))
    assert isinstance(starts, tuple)
    assert isinstance(ends, tuple)
    assert isinstance(axes, tuple)
    if steps != (1,) * len(axes):
        raise GraphError("there is no rule for the gradient of a Slice with steps")
    before, after = [0] * len(shape), [0] * len(shape)
    for axis, start, end in zip(axes, starts, ends, strict=True):
        before[axis], after[axis] = start, shape[axis] - end
    return [b.node("Pad", g, pads=(*before, *after), value=0.0)]


def _log_softmax(b: Builder, node: Node, out: Value, g: Value, wanted: list[bool]) -> list[Value | None]:
    axis = node.attributes["axis"]
    assert isinstance(axis, int)
    total = b.reduce("ReduceSum", g, axis, keep=True)
    return [b.node("Sub", g, b.node("Mul", b.node("Exp", out), total))]


def _transpose(b: Builder, node: Node, out: Value, g: Value, wanted: list[bool]) -> list[Value | None]:
    order = node.attributes["perm"]
    assert isinstance(order, tuple)
    return [b.node("Transpose", g, perm=tuple(int(place) for place in np.argsort(order)))]


def _relu(b: Builder, node: Node, out: Value, g: Value, wanted: list[bool]) -> list[Value | None]:
    # Flat at 0 itself, as most take it.
    return [b.node("Where", b.node("Greater", out, b.constant(0.0)), g, b.constant(0.0))]


def _divide(b: Builder, node: Node, out: Value, g: Value, wanted: list[bool]) -> list[Value | None]:
    to_x = b.node("Div", g, node.inputs[1])
    return [to_x, b.node("Neg", b.node("Mul", to_x, out)) if wanted[1] else None]


_RULES: dict[str, Rule] = {
    "Add": lambda b, node, out, g, wanted: [g, g],
    "Sub": lambda b, node, out, g, wanted: [g, b.node("Neg", g) if wanted[1] else None],
    "Mul": lambda b, node, out, g, wanted: [
        b.node("Mul", g, node.inputs[1]) if wanted[0] else None,
        b.node("Mul", g, node.inputs[0]) if wanted[1] else None,
    ],
    "Div": _divide,
    "Neg": lambda b, node, out, g, wanted: [b.node("Neg", g)],
    "Exp": lambda b, node, out, g, wanted: [b.node("Mul", g, out)],
    "Log": lambda b, node, out, g, wanted: [b.node("Div", g, node.inputs[0])],
    "Sqrt": lambda b, node, out, g, wanted: [b.node("Div", b.node("Mul", g, b.constant(0.5)), out)],
    "Tanh": lambda b, node, out, g, wanted: [b.node("Mul", g, b.node("Sub", b.constant(1.0), b.node("Mul", out, out)))],
    "Sigmoid": lambda b, node, out, g, wanted: [
        b.node("Mul", g, b.node("Mul", out, b.node("Sub", b.constant(1.0), out)))
    ],
    "Relu": _relu,
    "MatMul": _matmul,
    "Conv": _conv,
    "ReduceSum": _reduction,
    "ReduceMean": _reduction,
    "Reshape": lambda b, node, out, g, wanted: [b.reshape(g, *b.shape(node.inputs[0]))],
    "Transpose": _transpose,
    "Slice": _slice,
    "LogSoftmax": _log_softmax,
}
