"""A checked graph as a TFLite file (schema version 3): for LiteRT and for the older tflite-runtime.

Owns the few tables of TFLite's flatbuffer format that a graph needs, by the numbers of their fields, and by which of
TFLite's operators each of a graph's is computed. A gateway writes the file itself, so that one graph serves every
engine. Only writes: nothing that comes from outside is read in this format.

What TFLite cannot compute is refused with a `GraphError` that names the operator, never left out. TFLite's kernels take
few dimensions: where a tensor has more, those that are treated alike are taken together, which costs a reshape. A
product with constant weights becomes FULLY_CONNECTED, with the bias and the ReLU that follow it: what every runtime
is quickest at, and what has a scale for each output where numbers are quantized. A division by a root becomes a product
with RSQRT: in integers a root of little is 0, which nothing is divided by, and its reciprocal is merely large.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from fedmq_models.graph import MAX_ELEMENTS, Checked, Graph, GraphError, Node, Tensor, check

__all__ = ["SIGNATURE", "to_tflite"]

TYPES = {"float32": 0, "int32": 2, "int64": 4, "bool": 6}
"""TensorType."""
SIGNATURE = "serving_default"
"""What runtimes call the one function of a file."""
VALID = 1
"""Padding."""
BROADCAST_RANK = 4
"""Most dimensions of a kernel that broadcasts, in the oldest runtime that is meant."""
MOVING_RANK = 5
"""Most dimensions of a kernel that only moves elements."""
EXPAND_RANK = 8

Shape: TypeAlias = tuple[int, ...]


def to_tflite(graph: Graph, *, output_names: tuple[str, ...], checked: Checked | None = None) -> bytes:
    """A model of one subgraph. Its inputs are the tensors 0, 1, … in the graph's order, its outputs are named
    `output_names`. Raises GraphError where TFLite has no operator for one of the graph's, and ImportError where the
    package `flatbuffers` is missing.
    """
    try:
        import flatbuffers  # type: ignore[import-untyped,unused-ignore]
    except ImportError as error:
        raise ImportError("writing TFLite needs the package flatbuffers (pip install flatbuffers)") from error
    if len(output_names) != len(graph.outputs):
        raise ValueError(f"expected {len(graph.outputs)} names of outputs, got {len(output_names)}")
    lowering = _Lowering(graph, checked or check(graph))
    outputs = lowering.outputs(output_names)
    return _Writer(flatbuffers).model(lowering, outputs)


# --- which operators ---------------------------------------------------------------------------------------------


class Field(NamedTuple):
    """One field of a table of options."""

    slot: int
    kind: str
    value: int | float


class Options(NamedTuple):
    """A table of options: its number in the union BuiltinOptions, and its fields that are not as they are by default.
    Empty tables are left out: a runtime takes all defaults."""

    union: int
    fields: tuple[Field, ...]


@dataclass(frozen=True)
class Value:
    """A tensor of the model. `data` is there for a constant."""

    dtype: str
    shape: Shape
    data: bytes | None = None

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Step:
    """One operator of TFLite: its code, version, inputs, output."""

    code: int
    version: int
    inputs: tuple[int, ...]
    output: int
    options: Options | None


# BuiltinOperator of schema version 3.
CONCATENATION, CONV_2D, FULLY_CONNECTED, LOGISTIC, RELU, RESHAPE, SOFTMAX, TANH = 2, 3, 9, 14, 19, 22, 25, 28
SQRT, RSQRT, TRANSPOSE, STRIDED_SLICE, LOG_SOFTMAX, CAST, ARG_MAX, PADV2 = 75, 76, 39, 45, 50, 53, 56, 60
TRANSPOSE_CONV, SELECT_V2, BATCH_MATMUL, BROADCAST_TO = 67, 123, 126, 130
_UNARY = {
    "Neg": 59,
    "Abs": 101,
    "Exp": 47,
    "Log": 73,
    "Sqrt": SQRT,
    "Tanh": TANH,
    "Sigmoid": LOGISTIC,
    "Relu": RELU,
    "Not": 87,  # LOGICAL_NOT
}
_BROADCAST = {
    "Add": 0,
    "Sub": 41,
    "Mul": 18,
    "Div": 42,
    "Max": 55,  # MAXIMUM
    "Min": 57,  # MINIMUM
    "Pow": 78,
    "Equal": 71,
    "Greater": 61,
    "GreaterOrEqual": 62,
    "Less": 58,
    "LessOrEqual": 63,
    "And": 86,  # LOGICAL_AND
    "Or": 84,  # LOGICAL_OR
    "Where": SELECT_V2,
}
_REDUCED = {"ReduceSum": 74, "ReduceMean": 40, "ReduceMax": 82, "ReduceMin": 89}
_VERSIONS = {BROADCAST_TO: 2}
"""Version 1 of it was withdrawn; every other operator here is the first of its kind."""


class _Lowering:
    """Steps for a graph's nodes. `values` are numbered: the inputs, then whatever comes."""

    def __init__(self, graph: Graph, checked: Checked) -> None:
        self.values: list[Value] = [Value(tensor.dtype, tensor.shape) for _, tensor in graph.inputs]
        self.names: dict[int, str] = {number: name for number, (name, _) in enumerate(graph.inputs)}
        self.inputs = tuple(range(len(graph.inputs)))
        self.steps: list[Step] = []
        self._constants: dict[Value, int] = {}
        self._turned: dict[int, tuple[int, Shape]] = {}
        """What a transposed value was made of, and by which order of axes."""
        self._reshaped: dict[int, int] = {}
        """What a reshaped value was made of."""
        self._expanded: dict[int, int] = {}
        """What an expanded value was made of."""
        self._dense: dict[int, tuple[int, int, int | None]] = {}
        """Input, weights and bias of what FULLY_CONNECTED gives, before any ReLU."""
        self._roots: dict[int, int] = {}
        """What SQRT took, by what it gives."""
        self._known: dict[tuple[int, tuple[int, ...], Shape, Options | None], int] = {}
        """Steps by what they compute: the same twice is one."""
        self._graph = graph
        numbers = list(self.inputs)
        for constant in graph.constants:
            numbers.append(self._constant(constant.array()))
        for place, node in enumerate(graph.nodes):
            result = checked.values[len(numbers)]
            try:
                number = self._node(node, [numbers[given] for given in node.inputs], result)
            except GraphError as error:
                raise GraphError(f"node {place} ({node.op}): {error}") from None
            assert self.values[number].shape == result.shape, (node, self.values[number], result)
            numbers.append(number)
        self._numbers = numbers

    def outputs(self, names: Sequence[str]) -> tuple[int, ...]:
        """The outputs as values of their own, and no step that none of them needs."""
        outputs: list[int] = []
        for number, name in zip((self._numbers[given] for given in self._graph.outputs), names, strict=True):
            value = self.values[number]
            if number in self.inputs or number in outputs or value.data is not None:
                number = self._step(RESHAPE, [number, self._ints(value.shape)], value.dtype, value.shape)
            self.names[number] = name
            outputs.append(number)
        needed, steps = set(outputs), []
        for step in reversed(self.steps):
            if step.output in needed:
                needed.update(step.inputs)
                steps.append(step)
        self.steps = steps[::-1]
        return tuple(outputs)

    # -- values and steps --------------------------------------------------------------------------------------

    def _add(self, value: Value) -> int:
        if value.elements > MAX_ELEMENTS:
            raise GraphError(
                f"TFLite needs {value.elements:,} elements on the way, at most {MAX_ELEMENTS:,} are allowed"
            )
        self.values.append(value)
        return len(self.values) - 1

    def _constant(self, array: np.ndarray[Any, Any]) -> int:
        value = Value(array.dtype.name, array.shape, np.ascontiguousarray(array).tobytes())
        if value not in self._constants:
            self._constants[value] = self._add(value)
        return self._constants[value]

    def _array(self, number: int) -> np.ndarray[Any, Any]:
        """Of a constant."""
        value = self.values[number]
        assert value.data is not None
        return np.frombuffer(value.data, dtype=value.dtype).reshape(value.shape)

    def _ints(self, values: Iterable[int], *shape: int) -> int:
        array = np.array(list(values), dtype=np.int32)
        return self._constant(array.reshape(shape) if shape else array)

    def _put(self, code: int, inputs: Sequence[int], dtype: str, shape: Shape, options: Options | None = None) -> int:
        key = (code, tuple(inputs), shape, options)
        if key not in self._known:
            self._known[key] = self._step(code, inputs, dtype, shape, options)
        return self._known[key]

    def _step(self, code: int, inputs: Sequence[int], dtype: str, shape: Shape, options: Options | None = None) -> int:
        output = self._add(Value(dtype, shape))
        self.steps.append(Step(code, _VERSIONS.get(code, 1), tuple(inputs), output, options))
        return output

    def _shape(self, number: int) -> Shape:
        return self.values[number].shape

    def _reshape(self, number: int, shape: Shape) -> int:
        if self._shape(number) == shape:
            return number
        if self.values[number].data is not None:
            return self._constant(self._array(number).reshape(shape))
        source = self._reshaped.get(number, number)
        if self._shape(source) == shape:
            return source
        out = self._put(RESHAPE, [source, self._ints(shape)], self.values[source].dtype, shape)
        self._reshaped[out] = source
        return out

    # -- nodes -------------------------------------------------------------------------------------------------

    def _node(self, node: Node, inputs: list[int], result: Tensor) -> int:
        op, a = node.op, dict[str, Any](node.attributes)
        x, shape = inputs[0], result.shape
        if op == "Relu" and x in self._dense:
            return self._fully_connected(*self._dense[x], shape, relu=True)
        if op == "Add" and (biased := self._biased(inputs, shape)) is not None:
            return biased
        if op in ("Div", "Reciprocal") and inputs[-1] in self._roots:
            inverse = self._put(RSQRT, [self._roots[inputs[-1]]], "float32", self._shape(inputs[-1]))
            return inverse if op == "Reciprocal" else self._broadcast(_BROADCAST["Mul"], [x, inverse], "float32", shape)
        if op == "Sqrt":
            root = self._put(SQRT, inputs, "float32", shape)
            self._roots[root] = x
            return root
        if op in _UNARY:
            return self._put(_UNARY[op], inputs, result.dtype, shape)
        if op in _BROADCAST:
            if op == "Div" and result.dtype == "int64":
                raise GraphError("TFLite does not divide int64")
            return self._broadcast(_BROADCAST[op], inputs, result.dtype, shape)
        if op in _REDUCED:
            return self._reduce(_REDUCED[op], x, a["axes"], shape)
        match op:
            case "Reciprocal":
                one = self._constant(np.ones((), dtype=np.float32))
                return self._broadcast(_BROADCAST["Div"], [one, x], "float32", shape)
            case "Sign":
                zero = self._constant(np.zeros((), dtype=np.float32))
                above, below = (
                    self._cast(self._broadcast(_BROADCAST[compared], [x, zero], "bool", shape), "float32")
                    for compared in ("Greater", "Less")
                )
                return self._broadcast(_BROADCAST["Sub"], [above, below], "float32", shape)
            case "Cast":
                return self._cast(x, a["to"])
            case "MatMul":
                return self._matmul(inputs[0], inputs[1], shape)
            case "Conv":
                return self._conv(inputs, a, shape)
            case "ConvTranspose":
                return self._conv_transpose(inputs[0], inputs[1], a)
            case "ArgMax":
                return self._arg_max(x, a["axis"], shape)
            case "Softmax":
                return self._softmax(SOFTMAX, x, a["axis"], Options(9, (Field(0, "Float32", 1.0),)))  # beta
            case "LogSoftmax":
                return self._softmax(LOG_SOFTMAX, x, a["axis"], None)
            case "Reshape":
                return self._reshape(x, shape)
            case "Transpose":
                return self._transpose(x, a["perm"])
            case "Expand":
                return self._expand(x, shape)
            case "Concat":
                options = Options(10, (Field(0, "Int32", a["axis"] % len(shape)),))  # axis
                return self._put(CONCATENATION, inputs, result.dtype, shape, options)
            case "Slice":
                return self._slice(x, a)
            case "Pad":
                rank = len(shape)
                each = tuple((a["pads"][axis], a["pads"][axis + rank]) for axis in range(rank))
                return self._pad(x, each, a["value"])
        raise GraphError("TFLite has no operator that computes it exactly; onnxruntime and numpy do")

    def _broadcast(self, code: int, inputs: Sequence[int], dtype: str, shape: Shape) -> int:
        if len(shape) <= BROADCAST_RANK:
            return self._put(code, self._unexpanded(inputs, shape), dtype, shape)
        aligned = [(1,) * (len(shape) - len(self._shape(x))) + self._shape(x) for x in inputs]
        runs = _runs([tuple(own[axis] == 1 for own in aligned) if size > 1 else ... for axis, size in enumerate(shape)])
        if len(runs) > BROADCAST_RANK:
            runs, aligned = [list(range(len(shape)))], [shape for _ in inputs]
            inputs = [self._expand(x, shape) for x in inputs]
        given = [self._reshape(x, _joined(own, runs)) for x, own in zip(inputs, aligned, strict=True)]
        return self._reshape(self._put(code, given, dtype, _joined(shape, runs)), shape)

    def _unexpanded(self, inputs: Sequence[int], shape: Shape) -> Sequence[int]:
        """Inputs as they were before they were expanded, where an operator that broadcasts does that itself."""
        small = [self._expanded.get(x, x) for x in inputs]
        return small if np.broadcast_shapes(*(self._shape(x) for x in small)) == shape else inputs

    def _cast(self, x: int, to: str) -> int:
        value = self.values[x]
        options = Options(37, (Field(0, "Int8", TYPES[value.dtype]), Field(1, "Int8", TYPES[to])))  # in, out data_type
        return self._put(CAST, [x], to, value.shape, options)

    def _reduce(self, code: int, x: int, axes: Sequence[int], shape: Shape) -> int:
        own = self._shape(x)
        reduced = {axis % len(own) for axis in axes}
        runs = _runs([axis in reduced if size > 1 else ... for axis, size in enumerate(own)])
        over = [place for place, run in enumerate(runs) if any(axis in reduced and own[axis] > 1 for axis in run)]
        if not over:
            return self._reshape(x, shape)
        _few(len(runs), BROADCAST_RANK)
        x = self._reshape(x, _joined(own, runs))
        kept = tuple(size for place, size in enumerate(self._shape(x)) if place not in over)
        return self._reshape(self._put(code, [x, self._ints(over)], "float32", kept), shape)  # keep_dims is false

    def _matmul(self, x: int, y: int, shape: Shape) -> int:
        rank = len(shape)
        if len(self._shape(y)) == 2 and rank > 2:
            *_, k = self._shape(x)
            flat = self._reshape(x, (self.values[x].elements // k, k))
            return self._reshape(self._matmul(flat, y, (self._shape(flat)[0], shape[-1])), shape)
        if rank == 2 and self.values[y].data is not None:
            weights = self._transpose(y, (1, 0))
            return self._fully_connected(x, weights, None, shape)
        if rank == 2:
            x, turned_x = self._untransposed(x)
            y, turned_y = self._untransposed(y)
            options = Options(101, (Field(0, "Bool", turned_x), Field(1, "Bool", turned_y)))  # adj_x, adj_y
            return self._put(BATCH_MATMUL, [x, y], "float32", shape, options)
        own = [(1,) * (rank - len(self._shape(given))) + self._shape(given) for given in (x, y)]
        runs = _runs([tuple(each[axis] == 1 for each in own) for axis in range(rank - 2)])
        _few(len(runs) + 2, MOVING_RANK)
        given = [
            self._reshape(number, (*_joined(each[:-2], runs), *each[-2:]))
            for number, each in zip((x, y), own, strict=True)
        ]
        joined = (*_joined(shape[:-2], runs), *shape[-2:])
        return self._reshape(self._put(BATCH_MATMUL, given, "float32", joined), shape)

    def _fully_connected(self, x: int, weights: int, bias: int | None, shape: Shape, *, relu: bool = False) -> int:
        """`x` (n, inputs) by constant `weights` (outputs, inputs)."""
        outputs = self._shape(weights)[0]
        added = self._constant(np.zeros(outputs, dtype=np.float32)) if bias is None else bias
        options = Options(8, (Field(0, "Int8", 1),) if relu else ())  # fused_activation_function
        out = self._put(FULLY_CONNECTED, [x, weights, added], "float32", shape, options)
        if not relu:
            self._dense[out] = (x, weights, bias)
        return out

    def _biased(self, inputs: Sequence[int], shape: Shape) -> int | None:
        """A product and a constant for each output as one operator; the product alone then serves no one."""
        for out, other in (inputs, inputs[::-1]):
            x, weights, bias = self._dense.get(out, (0, 0, out))
            if bias is not None or self.values[other].data is None or self._shape(out) != shape:
                continue
            if self._shape(other) in ((shape[-1],), (1, shape[-1])):
                return self._fully_connected(x, weights, self._reshape(other, (shape[-1],)), shape)
        return None

    def _untransposed(self, x: int) -> tuple[int, bool]:
        """The matrix that this one is the transpose of, if it is one."""
        source, order = self._turned.get(x, (x, ()))
        return (source, True) if order == (1, 0) else (x, False)

    def _conv(self, inputs: Sequence[int], a: dict[str, Any], shape: Shape) -> int:
        """As a convolution of images of height 1: NHWC by OHWI, without padding."""
        x, weight = inputs[:2]
        outputs, channels, kernel = self._shape(weight)
        x = self._pad(self._transpose(x, (0, 2, 1)), ((0, 0), a["pads"], (0, 0)), 0.0)
        n, length, _ = self._shape(x)
        # Further than x reaches is as far as any other number, and those may not fit into 32 bits.
        stride, dilation = min(a["stride"], length), min(a["dilation"], length)
        x = self._reshape(x, (n, 1, length, channels))
        weight = self._reshape(self._transpose(weight, (0, 2, 1)), (outputs, 1, kernel, channels))
        bias = inputs[2] if len(inputs) == 3 else self._constant(np.zeros(outputs, dtype=np.float32))
        fields = (
            Field(0, "Int8", VALID),  # padding
            Field(1, "Int32", stride),  # stride_w
            Field(2, "Int32", 1),  # stride_h
            Field(4, "Int32", dilation),  # dilation_w_factor
            Field(5, "Int32", 1),  # dilation_h_factor
        )
        out = self._put(CONV_2D, [x, weight, bias], "float32", (n, 1, shape[2], outputs), Options(1, fields))
        return self._transpose(self._reshape(out, (n, shape[2], outputs)), (0, 2, 1))

    def _conv_transpose(self, x: int, weight: int, a: dict[str, Any]) -> int:
        stride, dilation, (before, after) = a["stride"], a["dilation"], a["pads"]
        more = a["output_padding"]
        n, channels, length = self._shape(x)
        _, outputs, kernel = self._shape(weight)
        stride, dilation = stride if length > 1 else 1, dilation if kernel > 1 else 1
        reach = dilation * (kernel - 1) + 1
        if dilation > 1:
            # TRANSPOSE_CONV has no dilation: zeros between the weights are the same.
            spread = self._pad(
                self._reshape(weight, (channels * outputs, kernel, 1)), ((0, 0), (0, 0), (0, dilation - 1))
            )
            flat = self._reshape(spread, (channels * outputs, kernel * dilation))
            weight = self._reshape(self._part(flat, 1, 0, reach), (channels, outputs, reach))
        weight = self._reshape(self._transpose(weight, (1, 2, 0)), (outputs, 1, reach, channels))
        x = self._reshape(self._transpose(x, (0, 2, 1)), (n, 1, length, channels))
        whole = (length - 1) * stride + reach
        fields = (
            Field(0, "Int8", VALID),
            Field(1, "Int32", stride),
            Field(2, "Int32", 1),
        )  # padding, stride_w, stride_h
        out_shape = (n, 1, whole, outputs)
        out = self._put(TRANSPOSE_CONV, [self._ints(out_shape), weight, x], "float32", out_shape, Options(49, fields))
        out = self._reshape(out, (n, whole, outputs))
        # The kernel takes no padding but what follows from the sizes: what is too much is cut off afterwards.
        out = self._pad(out, ((0, 0), (0, max(0, more - after)), (0, 0)))
        return self._transpose(self._part(out, 1, before, whole + more - after), (0, 2, 1))

    def _arg_max(self, x: int, axis: int, shape: Shape) -> int:
        own = self._shape(x)
        axis %= len(own)
        options = Options(40, (Field(0, "Int8", TYPES["int64"]),))  # output_type
        # As three dimensions: kernels differ in how many they take.
        folded = (math.prod(own[:axis]), own[axis], math.prod(own[axis + 1 :]))
        number = self._put(
            ARG_MAX,
            [self._reshape(x, folded), self._constant(np.array(1, dtype=np.int32))],
            "int64",
            (folded[0], folded[2]),
            options,
        )
        return self._reshape(number, shape)

    def _softmax(self, code: int, x: int, axis: int, options: Options | None) -> int:
        """Over the last axis of a matrix."""
        own = self._shape(x)
        axis %= len(own)
        last = len(own) - 1
        order = (*(place for place in range(len(own)) if place != axis), axis)
        moved = self._transpose(x, order) if axis != last else x
        flat = self._reshape(moved, (math.prod(own) // own[axis], own[axis]))
        out = self._reshape(self._put(code, [flat], "float32", self._shape(flat), options), self._shape(moved))
        back = tuple(int(place) for place in np.argsort(order))
        return self._transpose(out, back) if axis != last else out

    def _transpose(self, x: int, order: Sequence[int]) -> int:
        source, before = self._turned.get(x, (x, tuple(range(len(order)))))
        order = tuple(before[axis] for axis in order)
        value = self.values[source]
        shape = tuple(value.shape[axis] for axis in order)
        if order == tuple(range(len(order))):
            return source
        if value.data is not None:
            return self._remember(self._constant(self._array(source).transpose(order)), source, order)
        # Axes that stay side by side are moved as one, and those of size 1 need no moving.
        wide = [axis for axis in order if value.shape[axis] > 1]
        if wide == sorted(wide):
            return self._remember(self._reshape(source, shape), source, order)
        groups: list[list[int]] = []
        ranked = {axis: place for place, axis in enumerate(sorted(wide))}
        for axis in wide:
            if groups and ranked[axis] == ranked[groups[-1][-1]] + 1:
                groups[-1].append(axis)
            else:
                groups.append([axis])
        _few(len(groups), MOVING_RANK)
        if len(order) <= 3:
            out = self._put(TRANSPOSE, [source, self._ints(order)], value.dtype, shape)
        else:
            first = sorted(groups)
            folded = self._reshape(source, _joined(value.shape, first))
            perm = [first.index(group) for group in groups]
            moved = self._put(TRANSPOSE, [folded, self._ints(perm)], value.dtype, _joined(value.shape, groups))
            out = self._reshape(moved, shape)
        return self._remember(out, source, order)

    def _remember(self, out: int, source: int, order: Shape) -> int:
        self._turned[out] = (source, order)
        return out

    def _expand(self, x: int, shape: Shape) -> int:
        value = self.values[x]
        _few(len(shape), EXPAND_RANK)
        if value.shape == shape:
            return x
        own = (1,) * (len(shape) - len(value.shape)) + value.shape
        runs = _runs([size == 1 for size in own])
        given, joined = self._reshape(x, _joined(own, runs)), _joined(shape, runs)
        out = self._put(BROADCAST_TO, [given, self._ints(joined)], value.dtype, joined)
        out = self._reshape(out, shape)
        self._expanded[out] = x
        return out

    def _slice(self, x: int, a: dict[str, Any]) -> int:
        shape = self._shape(x)
        cuts = [(0, size, 1) for size in shape]
        for axis, *cut in zip(a["axes"], a["starts"], a["ends"], a["steps"], strict=True):
            cuts[axis] = (cut[0], cut[1], min(cut[2], cut[1] - cut[0]))
        whole = [cut == (0, size, 1) for cut, size in zip(cuts, shape, strict=True)]
        if all(whole):
            return x
        runs = _runs([None if whole[axis] else axis for axis in range(len(shape))])
        _few(len(runs), MOVING_RANK)
        folded = _joined(shape, runs)
        each = [cuts[run[0]] if not whole[run[0]] else (0, size, 1) for run, size in zip(runs, folded, strict=True)]
        return self._cut(self._reshape(x, folded), each, tuple(-(-(cut[1] - cut[0]) // cut[2]) for cut in cuts))

    def _cut(self, x: int, cuts: Sequence[tuple[int, int, int]], shape: Shape) -> int:
        value = self.values[x]
        folded = tuple(-(-(end - start) // step) for start, end, step in cuts)
        bounds = [self._ints(part) for part in zip(*cuts, strict=True)]
        return self._reshape(self._put(STRIDED_SLICE, [x, *bounds], value.dtype, folded), shape)

    def _part(self, x: int, axis: int, start: int, end: int) -> int:
        if (start, end) == (0, self._shape(x)[axis]):
            return x
        return self._slice(x, {"axes": (axis,), "starts": (start,), "ends": (end,), "steps": (1,)})

    def _pad(self, x: int, pads: Sequence[tuple[int, int]], fill: float = 0.0) -> int:
        value = self.values[x]
        if not any(map(any, pads)):
            return x
        runs = _runs([axis if any(pad) else None for axis, pad in enumerate(pads)])
        _few(len(runs), MOVING_RANK)
        folded = self._reshape(x, _joined(value.shape, runs))
        each = [pads[run[0]] for run in runs]
        padded = tuple(size + sum(pad) for size, pad in zip(self._shape(folded), each, strict=True))
        amounts = self._ints((amount for pad in each for amount in pad), len(each), 2)
        filled = self._constant(np.array(fill, dtype=np.float32))
        shape = tuple(size + sum(pad) for size, pad in zip(value.shape, pads, strict=True))
        return self._reshape(self._put(PADV2, [folded, amounts, filled], "float32", padded), shape)


def _runs(kinds: Sequence[object]) -> list[list[int]]:
    """Neighbouring axes of one kind, together. `...` is of any kind."""
    runs: list[list[int]] = []
    last: object = ...
    for axis, kind in enumerate(kinds):
        if runs and (kind is ... or last is ... or kind == last):
            runs[-1].append(axis)
        else:
            runs.append([axis])
        last = last if kind is ... else kind
    return runs


def _joined(shape: Shape, runs: Iterable[Iterable[int]]) -> Shape:
    return tuple(math.prod(shape[axis] for axis in run) for run in runs)


def _few(rank: int, most: int) -> None:
    if rank > most:
        raise GraphError(f"TFLite takes at most {most} dimensions here, and {rank} are left with alike ones joined")


# --- the file ----------------------------------------------------------------------------------------------------


class _Writer:
    """Tables by their slots: a slot is the number of a field in its table, from 0, as the schema lists them."""

    def __init__(self, flatbuffers: Any) -> None:
        self._b = flatbuffers.Builder(1 << 16)

    def model(self, lowering: _Lowering, outputs: tuple[int, ...]) -> bytes:
        steps = lowering.steps
        used = sorted(
            {*lowering.inputs, *outputs, *(number for step in steps for number in (*step.inputs, step.output))}
        )
        place = {number: index for index, number in enumerate(used)}
        buffers = [self._table(1)]  # Buffer 0 is empty, by convention.
        tensors = []
        for number in used:
            value = lowering.values[number]
            buffer = 0
            if value.data is not None:
                data = self._data(value.data)
                buffer = len(buffers)
                buffers.append(self._table(1, (0, "offset", data)))  # data
            tensors.append(self._tensor(value, buffer, lowering.names.get(number, f"v{number}")))
        codes = sorted({(step.code, step.version) for step in steps})
        operators = [self._operator(step, codes.index((step.code, step.version)), place) for step in steps]
        subgraph = self._table(
            5,
            (0, "offset", self._offsets(tensors)),  # tensors
            (1, "offset", self._numbers([place[number] for number in lowering.inputs])),  # inputs
            (2, "offset", self._numbers([place[number] for number in outputs])),  # outputs
            (3, "offset", self._offsets(operators)),  # operators
            (4, "offset", self._b.CreateString("main")),  # name
        )
        made = [
            self._table(
                4,
                (0, "Int8", min(code, 127)),  # deprecated_builtin_code
                (2, "Int32", version),  # version; slot 1 is custom_code
                (3, "Int32", code),  # builtin_code
            )
            for code, version in codes
        ]
        maps = [
            self._offsets([self._named(lowering.names[number], place[number]) for number in numbers])
            for numbers in (lowering.inputs, outputs)
        ]
        signature = self._table(
            5,
            (0, "offset", maps[0]),  # inputs
            (1, "offset", maps[1]),  # outputs
            (2, "offset", self._b.CreateString(SIGNATURE)),  # signature_key; slot 3 is deprecated
            (4, "Uint32", 0),  # subgraph_index
        )
        model = self._table(
            8,
            (0, "Uint32", 3),  # version
            (1, "offset", self._offsets(made)),  # operator_codes
            (2, "offset", self._offsets([subgraph])),  # subgraphs
            (3, "offset", self._b.CreateString("fedmq")),  # description
            (4, "offset", self._offsets(buffers)),  # buffers; then metadata, twice
            (7, "offset", self._offsets([signature])),  # signature_defs
        )
        self._b.Finish(model, file_identifier=b"TFL3")
        return bytes(self._b.Output())

    def _named(self, name: str, place: int) -> int:
        return self._table(2, (0, "offset", self._b.CreateString(name)), (1, "Uint32", place))  # name, tensor_index

    def _tensor(self, value: Value, buffer: int, name: str) -> int:
        return self._table(
            9,
            (0, "offset", self._numbers(value.shape)),  # shape
            (1, "Int8", TYPES[value.dtype]),  # type
            (2, "Uint32", buffer),  # buffer
            (3, "offset", self._b.CreateString(name)),  # name; then quantization, is_variable, sparsity, signature
            (8, "Bool", True),  # has_rank: an empty shape is a scalar
        )

    def _operator(self, step: Step, code: int, place: dict[int, int]) -> int:
        fields: list[tuple[int, str, Any]] = [
            (0, "Uint32", code),  # opcode_index
            (1, "offset", self._numbers([place[number] for number in step.inputs])),  # inputs
            (2, "offset", self._numbers([place[step.output]])),  # outputs
        ]
        if step.options is not None:
            options = self._table(6, *step.options.fields)
            fields += [
                (3, "Uint8", step.options.union),
                (4, "offset", options),
            ]  # builtin_options_type, builtin_options
        return self._table(5, *fields)

    def _table(self, slots: int, *fields: tuple[int, str, Any]) -> int:
        b = self._b
        b.StartObject(slots)
        for slot, kind, value in fields:
            if kind == "offset":
                b.PrependUOffsetTRelativeSlot(slot, value, 0)
            else:
                # None is no default: the field is written, whatever the schema takes where it is not.
                getattr(b, f"Prepend{kind}Slot")(slot, value, None)
        return int(b.EndObject())

    def _numbers(self, numbers: Sequence[int]) -> int:
        self._b.StartVector(4, len(numbers), 4)
        for number in reversed(numbers):
            self._b.PrependInt32(number)
        return int(self._b.EndVector())

    def _offsets(self, offsets: Sequence[int]) -> int:
        self._b.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            self._b.PrependUOffsetTRelative(offset)
        return int(self._b.EndVector())

    def _data(self, data: bytes) -> int:
        """Bytes that begin at a multiple of 16, as kernels expect of constants."""
        b = self._b
        b.StartVector(1, len(data), 16)
        b.head = b.Head() - len(data)
        b.Bytes[b.Head() : b.Head() + len(data)] = data
        return int(b.EndVector())
