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
        self._made: dict[tuple[object, ...], Value] = {}
        """By operator, inputs and attributes."""
        self._wholes: dict[Value, tuple[tuple[Value, ...], Rule]] = {}
        """Values of several nodes that have one rule for all: what they are made of, and that rule."""

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
        """The same node twice is one. Raises GraphError where the operator does not go with its inputs."""
        kind, _ = OPERATORS[op].infer([self._types[value] for value in inputs], attributes)
        if op in BROADCASTING:
            # What was expanded for an operator that does that by itself is expanded after it, if at all.
            small = tuple(self._source("Expand", value) for value in inputs)
            if small != inputs:
                value = self.node(op, *small, **attributes)
                return value if self.shape(value) == kind.shape else self.node("Expand", value, shape=kind.shape)
        key = (op, inputs, tuple(sorted(attributes.items())))
        if key not in self._made:
            value = self._made[key] = self._add(kind)
            self._nodes[value] = Node(op, inputs, attributes)
        return self._made[key]

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
        source = self._source("Reshape", value)
        return source if self.shape(source) == shape else self.node("Reshape", source, shape=shape)

    def _source(self, op: str, value: Value) -> Value:
        """What the value was made of by this operator, or the value itself."""
        if value in self._wholes:  # its gradient goes past its last node
            return value
        node = self._nodes.get(value)
        return node.inputs[0] if node is not None and node.op == op else value

    def reduce(self, op: str, value: Value, *axes: int, keep: bool = False) -> Value:
        return self.node(op, value, axes=axes, keepdims=int(keep))

    def resize(self, value: Value, axis: int, before: int = 0, after: int = 0) -> Value:
        """So many zeros more at the ends of one axis, or, below 0, so many elements less."""
        shape = self.shape(value)
        if min(before, after) < 0:
            start, end = max(-before, 0), shape[axis] - max(-after, 0)
            value = self.node("Slice", value, starts=(start,), ends=(end,), axes=(axis,), steps=(1,))
        pads = [0] * (2 * len(shape))
        pads[axis], pads[axis + len(shape)] = max(before, 0), max(after, 0)
        return self.node("Pad", value, pads=tuple(pads), value=0.0) if any(pads) else value

    def group_norm(self, x: Value, groups: int, scale: Value, shift: Value, epsilon: float) -> Value:
        """x `(n, channels, length)` with each group of channels at mean 0 and spread 1; then scaled and shifted by
        channel (Wu, He 2018, arXiv:1803.08494). scale and shift: `(channels,)`.

        Its gradient is written out, in fewer passes over x than the rules of the single nodes take: sums over the
        length come first, so that little is left to do for a channel, a group or the parameters.
        """
        n, channels, length = self.shape(x)
        each = channels // groups
        x_by_group = self.reshape(x, n, groups, each, length)
        centred = self.node("Sub", x_by_group, self.reduce("ReduceMean", x_by_group, 2, 3, keep=True))
        variance = self.reduce("ReduceMean", self.node("Mul", centred, centred), 2, 3, keep=True)
        inverse = self.node("Reciprocal", self.node("Sqrt", self.node("Add", variance, self.constant(epsilon))))
        by_channel = self.reshape(scale, groups, each, 1)
        factor = self.node("Mul", inverse, by_channel)
        scaled = self.node("Mul", centred, factor)
        out = self.reshape(self.node("Add", scaled, self.reshape(shift, groups, each, 1)), n, channels, length)

        def rule(b: Builder, node: Node, out: Value, g: Value, wanted: list[bool]) -> list[Value | None]:
            g = b.reshape(g, n, groups, each, length)
            plain = b.reduce("ReduceSum", g, 3, keep=True)
            along = b.node("Mul", b.reduce("ReduceSum", b.node("Mul", g, centred), 3, keep=True), inverse)

            share = b.node("Mul", inverse, b.constant(1.0 / (each * length)))

            def of_group(sums: Value) -> Value:
                return b.node("Mul", b.reduce("ReduceSum", b.node("Mul", sums, by_channel), 2, keep=True), share)

            bend = b.node("Mul", centred, b.node("Mul", of_group(along), inverse))
            to_x = b.node("Sub", b.node("Mul", g, factor), b.node("Add", bend, of_group(plain)))
            return [
                b.reshape(to_x, n, channels, length),
                b.reshape(b.reduce("ReduceSum", along, 0), channels),
                b.reshape(b.reduce("ReduceSum", plain, 0), channels),
            ]

        self._wholes[out] = (x, scale, shift), rule
        return out

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
            inputs, rule = self._wholes.get(value, (node.inputs, _RULES.get(node.op)))
            if rule is None:
                raise GraphError(f"there is no rule for the gradient of {node.op}")
            wanted = [given in towards for given in inputs]
            for given, part in zip(inputs, rule(self, node, value, gradients[value], wanted), strict=True):
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


BROADCASTING = ("Add", "Sub", "Mul", "Div", "Max", "Min", "Where")

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


def _reduce_max(b: Builder, node: Node, out: Value, g: Value, wanted: list[bool]) -> list[Value | None]:
    # Of equal ones each gets the whole: of signals they are as good as never equal.
    (x,) = node.inputs
    axes = node.attributes["axes"]
    assert isinstance(axes, tuple)
    kept = tuple(1 if axis in {a % len(b.shape(x)) for a in axes} else size for axis, size in enumerate(b.shape(x)))
    largest = b.node("Cast", b.node("Equal", x, b.reshape(out, *kept)), to="float32")
    return [b.node("Mul", largest, b.reshape(g, *kept))]


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
    gradients: list[Value | None] = [None, None]
    if all(wanted[:2]) and dilation == 1 and -(-kernel // stride) <= MOST_SHIFTS:
        gradients = [*_conv_by_products(b, x, weight, g, stride, pads)]
    else:
        if wanted[0]:
            left = (length + sum(pads) - dilation * (kernel - 1) - 1) % stride
            gradients[0] = b.node(
                "ConvTranspose", g, weight, stride=stride, pads=pads, dilation=dilation, output_padding=left
            )
        if wanted[1]:
            # The same with channels for windows: x (c, n, l) by g (o, n, l'), which steps as the kernel spreads.
            swap = (1, 0, 2)
            product = b.node(
                "Conv",
                b.node("Transpose", x, perm=swap),
                b.node("Transpose", g, perm=swap),
                stride=dilation,
                pads=pads,
                dilation=stride,
            )
            gradients[1] = b.node("Transpose", b.resize(product, 2, after=kernel - b.shape(product)[2]), perm=swap)
    if len(node.inputs) == 3:
        gradients.append(b.reduce("ReduceSum", g, 0, 2))
    return gradients


MOST_SHIFTS = 8
"""So many copies of a convolution's gradient are held at most."""


def _conv_by_products(
    b: Builder, x: Value, weight: Value, g: Value, stride: int, pads: tuple[int, ...]
) -> tuple[Value, Value]:
    """Gradients of x `(n, channels, length)` and weight `(outputs, channels, kernel)`: a product of matrices for each,
    which runtimes do in half the time of a transposed convolution and of one with a kernel as long as x.

    x is cut into blocks of one stride. A window is then a few whole blocks, one beside the other, and what a block is
    given back comes from as many copies of g `(n, outputs, places)`, each shifted by one block more.
    """
    n, channels, length = b.shape(x)
    _, outputs, places = b.shape(g)
    shifts = -(-b.shape(weight)[2] // stride)
    more = shifts * stride - b.shape(weight)[2]
    blocks = places + shifts - 1
    after = blocks * stride - pads[0] - length

    def last(value: Value) -> Value:
        """The last two axes in the other order."""
        return b.node("Transpose", value, perm=(0, 2, 1))

    copies = [b.resize(last(g), 1, shift, shifts - 1 - shift) for shift in range(shifts)]
    shifted = b.reshape(b.node("Concat", *copies, axis=2), n * blocks, shifts * outputs)

    parts = b.reshape(b.resize(last(weight), 1, after=more), outputs, shifts, stride * channels)
    rows = b.reshape(b.node("Transpose", parts, perm=(1, 0, 2)), shifts * outputs, stride * channels)
    to_x = b.reshape(b.node("MatMul", shifted, rows), n, blocks * stride, channels)

    cut = b.reshape(b.resize(last(x), 1, pads[0], after), n * blocks, stride * channels)
    product = b.node("MatMul", b.node("Transpose", shifted, perm=(1, 0)), cut)
    parts = b.node("Transpose", b.reshape(product, shifts, outputs, stride * channels), perm=(1, 0, 2))
    to_weight = b.reshape(parts, outputs, shifts * stride, channels)
    return last(b.resize(to_x, 1, -pads[0], -after)), last(b.resize(to_weight, 1, after=-more))


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
    # Flat at 0 itself, as most take it. A product, since it is many times faster than Where in onnxruntime.
    return [b.node("Mul", g, b.node("Cast", b.node("Greater", out, b.constant(0.0)), to="float32"))]


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
    "ReduceMax": _reduce_max,
    "Reshape": lambda b, node, out, g, wanted: [b.reshape(g, *b.shape(node.inputs[0]))],
    "Transpose": _transpose,
    "Slice": _slice,
    "LogSoftmax": _log_softmax,
}
