"""A graph of standard operators as a plain value, and the check that everything in it is what it says.

Owns which operators there are, what shapes they give, and what a graph costs in memory and in work, all before anything
runs: shapes are static, so that nothing depends on data. Refuses to know how an operator is computed.

An operator has the name and the meaning of ONNX's, operator set 18, with two differences that make a graph easier to
check: what ONNX passes in small integer tensors (axes, shapes, pads) is an attribute here, and each node has exactly
one output. Values are numbered: first the inputs, then the constants, then one for each node, which may use only
earlier ones. So a graph has no loops and no names, and what is checked is all there is to run: nothing of it comes from
a file format that another parser could read otherwise.

Every complaint is a `GraphError`, which names the node and its operator.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

__all__ = [
    "DTYPES",
    "OPERATORS",
    "Array",
    "Attribute",
    "Checked",
    "Constant",
    "Dtype",
    "Graph",
    "GraphError",
    "Node",
    "Tensor",
    "check",
]

MAX_RANK = 8
MAX_ELEMENTS = 1 << 26
"""Of one value: 256 MB of float32."""

Array: TypeAlias = NDArray[np.float32] | NDArray[np.int64] | NDArray[np.bool_]
Dtype = Literal["float32", "int64", "bool"]
DTYPES: dict[str, np.dtype] = {
    "float32": np.dtype("<f4"),
    "int64": np.dtype("<i8"),
    "bool": np.dtype("?"),
}

Attribute: TypeAlias = int | float | str | tuple[int, ...]
Dimension: TypeAlias = Annotated[int, Meta(ge=1, le=MAX_ELEMENTS)]
Shape: TypeAlias = Annotated[tuple[Dimension, ...], Meta(max_length=MAX_RANK)]


class GraphError(ValueError):
    """A graph that cannot be used: which node, what was expected, what came."""


class Tensor(msgspec.Struct, frozen=True, array_like=True):
    """What is known of a value before it is computed."""

    dtype: Dtype
    shape: Shape

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.elements * DTYPES[self.dtype].itemsize

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"


class Constant(msgspec.Struct, frozen=True, array_like=True):
    """A value that stands in the graph: little-endian, row-major."""

    type: Tensor
    data: bytes

    @classmethod
    def of(cls, array: Array) -> Constant:
        """Raises GraphError for a dtype that graphs have not."""
        name = next((name for name, dtype in DTYPES.items() if dtype == array.dtype), None)
        if name is None:
            raise GraphError(f"expected a constant of {', '.join(DTYPES)}, got {array.dtype}")
        return cls(Tensor(name, tuple(array.shape)), np.ascontiguousarray(array).tobytes())  # type: ignore[arg-type]

    def array(self) -> Array:
        return np.frombuffer(self.data, dtype=DTYPES[self.type.dtype]).reshape(self.type.shape)


class Node(msgspec.Struct, frozen=True, array_like=True):
    """One operator. `inputs` are numbers of values."""

    op: Annotated[str, Meta(max_length=32)]
    inputs: Annotated[tuple[Annotated[int, Meta(ge=0)], ...], Meta(max_length=4096)]
    attributes: Annotated[dict[Annotated[str, Meta(max_length=32)], Attribute], Meta(max_length=8)] = {}


class Graph(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """`outputs` are numbers of values. Only `check` says whether a graph is one."""

    inputs: Annotated[tuple[tuple[Annotated[str, Meta(max_length=64)], Tensor], ...], Meta(max_length=64)]
    constants: Annotated[tuple[Constant, ...], Meta(max_length=20_000)]
    nodes: Annotated[tuple[Node, ...], Meta(max_length=20_000)]
    outputs: Annotated[tuple[Annotated[int, Meta(ge=0)], ...], Meta(min_length=1, max_length=8)]


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What `check` found out."""

    values: tuple[Tensor, ...]
    """Of each value, by its number."""
    last_use: tuple[int, ...]
    """The last node that each value is an input of; beyond the last node where it is an output."""
    peak_bytes: int
    """Most memory that values need at one time when each is dropped after its last use."""
    operations: int
    """Multiplications, additions and comparisons of one run, about."""


def check(graph: Graph, *, max_bytes: int | None = None, max_operations: int | None = None) -> Checked:
    """All shapes, and what a run costs. Raises GraphError, also where it costs more than the bounds allow."""
    values: list[Tensor] = []
    for name, tensor in graph.inputs:
        _bounded(tensor, f"input {name!r}")
        values.append(tensor)
    for constant in graph.constants:
        _bounded(constant.type, "a constant")
        if len(constant.data) != constant.type.bytes:
            raise GraphError(f"a constant of {constant.type} has {len(constant.data)} bytes")
        values.append(constant.type)
    given = len(values)
    operations = 0
    for place, node in enumerate(graph.nodes):
        where = f"node {place} ({node.op})"
        operator = OPERATORS.get(node.op)
        if operator is None:
            raise GraphError(f"node {place}: the operator {node.op!r} is not among those of a task's graph")
        if any(number >= len(values) for number in node.inputs):
            raise GraphError(f"{where}: expected inputs among the {len(values)} values before it, got {node.inputs}")
        if not operator.least_inputs <= len(node.inputs) <= operator.most_inputs:
            raise GraphError(
                f"{where}: expected {operator.least_inputs} to {operator.most_inputs} inputs, got {len(node.inputs)}"
            )
        unknown = set(node.attributes) - set(operator.attributes)
        missing = set(operator.attributes) - set(node.attributes)
        if unknown or missing:
            raise GraphError(
                f"{where}: expected the attributes {list(operator.attributes)}, got {list(node.attributes)}"
            )
        for name, kind in operator.attributes.items():
            value = node.attributes[name]
            if type(value) is not kind and not (kind is float and type(value) is int):
                raise GraphError(f"{where}: expected {name} as {kind.__name__}, got {value!r}")
        given_types = [values[number] for number in node.inputs]
        try:
            result, cost = operator.infer(given_types, node.attributes)
        except (GraphError, ValueError, IndexError, TypeError) as error:
            raise GraphError(f"{where} of {', '.join(map(str, given_types))}: {error}") from None
        _bounded(result, where)
        values.append(result)
        operations += cost
        if max_operations is not None and operations > max_operations:
            raise GraphError(f"{where}: a run would take more than the {max_operations:,} operations allowed")
    if any(number >= len(values) for number in graph.outputs):
        raise GraphError(f"expected outputs among the {len(values)} values, got {graph.outputs}")
    last_use = [-1] * len(values)
    for place, node in enumerate(graph.nodes):
        for number in node.inputs:
            last_use[number] = place
    for number in graph.outputs:
        last_use[number] = len(graph.nodes)
    peak = _peak(graph, values, last_use, given)
    if max_bytes is not None and peak > max_bytes:
        raise GraphError(f"a run would need {peak:,} bytes, at most {max_bytes:,} are allowed")
    return Checked(values=tuple(values), last_use=tuple(last_use), peak_bytes=peak, operations=operations)


def _peak(graph: Graph, values: Sequence[Tensor], last_use: Sequence[int], given: int) -> int:
    ends: dict[int, int] = {}
    for number in range(given, len(values)):
        if last_use[number] < len(graph.nodes):
            end = max(last_use[number], number - given)
            ends[end] = ends.get(end, 0) + values[number].bytes
    live = peak = sum(value.bytes for value in values[:given])
    for place in range(len(graph.nodes)):
        live += values[given + place].bytes
        peak = max(peak, live)
        live -= ends.get(place, 0)
    return peak


def _bounded(tensor: Tensor, where: str) -> None:
    if len(tensor.shape) > MAX_RANK:
        raise GraphError(f"{where}: expected at most {MAX_RANK} dimensions, got {tensor}")
    if any(size < 1 for size in tensor.shape):
        raise GraphError(f"{where}: expected sizes of at least 1, got {tensor}")
    if tensor.elements > MAX_ELEMENTS:
        raise GraphError(f"{where}: expected at most {MAX_ELEMENTS:,} elements, got {tensor}")


# --- operators -------------------------------------------------------------------------------------------------------

Attributes: TypeAlias = dict[str, Attribute]
Infer: TypeAlias = Callable[[Sequence[Tensor], Attributes], tuple[Tensor, int]]


@dataclass(frozen=True, kw_only=True)
class Operator:
    infer: Infer
    least_inputs: int
    most_inputs: int
    attributes: dict[str, type]


def _ints(attributes: Attributes, name: str) -> tuple[int, ...]:
    value = attributes[name]
    assert isinstance(value, tuple)  # checked before
    return value


def _int(attributes: Attributes, name: str) -> int:
    value = attributes[name]
    assert isinstance(value, int)
    return value


def _expect(tensor: Tensor, *dtypes: str) -> None:
    if tensor.dtype not in dtypes:
        raise GraphError(f"expected {' or '.join(dtypes)}, got {tensor}")


def _axis(axis: int, rank: int) -> int:
    if not -rank <= axis < rank:
        raise GraphError(f"expected an axis of a tensor with {rank} dimensions, got {axis}")
    return axis % rank


def _axes(attributes: Attributes, rank: int) -> tuple[int, ...]:
    axes = tuple(_axis(axis, rank) for axis in _ints(attributes, "axes"))
    if len(set(axes)) != len(axes) or not axes:
        raise GraphError(f"expected axes, each once, got {axes}")
    return axes


def _broadcast(tensors: Sequence[Tensor]) -> tuple[int, ...]:
    rank = max(len(tensor.shape) for tensor in tensors)
    shape = [1] * rank
    for tensor in tensors:
        for place, size in enumerate(tensor.shape, start=rank - len(tensor.shape)):
            if size != 1 and shape[place] not in (1, size):
                raise GraphError("shapes that do not go together")
            shape[place] = max(shape[place], size)
    return tuple(shape)


def _elementwise(*dtypes: str, gives: Dtype | None = None) -> Infer:
    def infer(inputs: Sequence[Tensor], attributes: Attributes) -> tuple[Tensor, int]:
        for tensor in inputs:
            _expect(tensor, *dtypes)
            if tensor.dtype != inputs[0].dtype:
                raise GraphError("expected inputs of one dtype")
        result = Tensor(gives or inputs[0].dtype, _broadcast(inputs))
        return result, result.elements

    return infer


def _where(inputs: Sequence[Tensor], attributes: Attributes) -> tuple[Tensor, int]:
    _expect(inputs[0], "bool")
    if inputs[1].dtype != inputs[2].dtype:
        raise GraphError("expected two choices of one dtype")
    result = Tensor(inputs[1].dtype, _broadcast(inputs))
    return result, result.elements


def _cast(inputs: Sequence[Tensor], attributes: Attributes) -> tuple[Tensor, int]:
    to = attributes["to"]
    if to not in DTYPES:
        raise GraphError(f"expected one of {', '.join(DTYPES)}, got {to!r}")
    return Tensor(to, inputs[0].shape), inputs[0].elements  # type: ignore[arg-type]


def _matmul(inputs: Sequence[Tensor], attributes: Attributes) -> tuple[Tensor, int]:
    a, b = inputs
    _expect(a, "float32")
    _expect(b, "float32")
    if min(len(a.shape), len(b.shape)) < 2 or a.shape[-1] != b.shape[-2]:
        raise GraphError("expected matrices (…, m, k) and (…, k, n)")
    batch = _broadcast([Tensor("float32", a.shape[:-2]), Tensor("float32", b.shape[:-2])])
    result = Tensor("float32", (*batch, a.shape[-2], b.shape[-1]))
    return result, 2 * result.elements * a.shape[-1]


def _spread(kernel: int, attributes: Attributes) -> tuple[int, int, int, int, int]:
    """Stride, padding before and after, dilation, and how far a kernel reaches."""
    stride, dilation = _int(attributes, "stride"), _int(attributes, "dilation")
    pads = _ints(attributes, "pads")
    if stride < 1 or dilation < 1 or len(pads) != 2 or min(pads) < 0:
        raise GraphError("expected a stride and a dilation of at least 1, and two pads of at least 0")
    return stride, pads[0], pads[1], dilation, dilation * (kernel - 1) + 1


def _conv(inputs: Sequence[Tensor], attributes: Attributes) -> tuple[Tensor, int]:
    x, weight = inputs[0], inputs[1]
    for tensor in inputs:
        _expect(tensor, "float32")
    if len(x.shape) != 3 or len(weight.shape) != 3 or x.shape[1] != weight.shape[1]:
        raise GraphError("expected x (n, channels, length) and weights (outputs, channels, kernel)")
    if len(inputs) == 3 and inputs[2].shape != (weight.shape[0],):
        raise GraphError("expected a bias for each output")
    stride, before, after, _, reach = _spread(weight.shape[2], attributes)
    # What is padded stands in memory, however little a long stride then takes of it.
    _bounded(Tensor("float32", (*x.shape[:2], x.shape[2] + before + after)), "x with its pads")
    length = (x.shape[2] + before + after - reach) // stride + 1
    result = Tensor("float32", (x.shape[0], weight.shape[0], length))
    return result, 2 * result.elements * weight.shape[1] * weight.shape[2]


def _conv_transpose(inputs: Sequence[Tensor], attributes: Attributes) -> tuple[Tensor, int]:
    x, weight = inputs
    for tensor in inputs:
        _expect(tensor, "float32")
    if len(x.shape) != 3 or len(weight.shape) != 3 or x.shape[1] != weight.shape[0]:
        raise GraphError("expected x (n, channels, length) and weights (channels, outputs, kernel)")
    stride, before, after, _, reach = _spread(weight.shape[2], attributes)
    more = _int(attributes, "output_padding")
    if not 0 <= more < stride:
        raise GraphError(f"expected an output_padding below the stride, got {more}")
    whole = (x.shape[2] - 1) * stride + reach + more
    _bounded(Tensor("float32", (x.shape[0], weight.shape[1], whole)), "what the pads are cut from")
    length = whole - before - after
    result = Tensor("float32", (x.shape[0], weight.shape[1], length))
    return result, 2 * x.elements * weight.shape[1] * weight.shape[2]


def _reduce(inputs: Sequence[Tensor], attributes: Attributes) -> tuple[Tensor, int]:
    (x,) = inputs
    _expect(x, "float32")
    axes = _axes(attributes, len(x.shape))
    keep = _int(attributes, "keepdims")
    if keep not in (0, 1):
        raise GraphError(f"expected keepdims 0 or 1, got {keep}")
    shape = [1 if axis in axes else size for axis, size in enumerate(x.shape) if keep or axis not in axes]
    return Tensor("float32", tuple(shape)), x.elements


def _arg_max(inputs: Sequence[Tensor], attributes: Attributes) -> tuple[Tensor, int]:
    result, cost = _reduce(inputs, {"axes": (_int(attributes, "axis"),), "keepdims": attributes["keepdims"]})
    return Tensor("int64", result.shape), cost


def _softmax(inputs: Sequence[Tensor], attributes: Attributes) -> tuple[Tensor, int]:
    _expect(inputs[0], "float32")
    _axis(_int(attributes, "axis"), len(inputs[0].shape))
    return inputs[0], 4 * inputs[0].elements


def _reshape(inputs: Sequence[Tensor], attributes: Attributes) -> tuple[Tensor, int]:
    shape = _ints(attributes, "shape")
    if any(size < 1 for size in shape) or math.prod(shape) != inputs[0].elements:
        raise GraphError(f"expected a shape of {inputs[0].elements} elements, got {list(shape)}")
    return Tensor(inputs[0].dtype, shape), 0


def _transpose(inputs: Sequence[Tensor], attributes: Attributes) -> tuple[Tensor, int]:
    order, shape = _ints(attributes, "perm"), inputs[0].shape
    if sorted(order) != list(range(len(shape))):
        raise GraphError(f"expected an order of {len(shape)} axes, got {order}")
    return Tensor(inputs[0].dtype, tuple(shape[axis] for axis in order)), inputs[0].elements


def _expand(inputs: Sequence[Tensor], attributes: Attributes) -> tuple[Tensor, int]:
    shape = _ints(attributes, "shape")
    wanted = Tensor(inputs[0].dtype, shape)
    _bounded(wanted, "shape")
    if _broadcast([inputs[0], wanted]) != shape:
        raise GraphError(f"cannot be expanded to {list(shape)}")
    return wanted, wanted.elements


def _concat(inputs: Sequence[Tensor], attributes: Attributes) -> tuple[Tensor, int]:
    first = inputs[0]
    axis = _axis(_int(attributes, "axis"), len(first.shape))
    for tensor in inputs:
        same = tensor.dtype == first.dtype and len(tensor.shape) == len(first.shape)
        if not same or tensor.shape[:axis] + tensor.shape[axis + 1 :] != first.shape[:axis] + first.shape[axis + 1 :]:
            raise GraphError("expected tensors that differ in that axis only")
    size = sum(tensor.shape[axis] for tensor in inputs)
    result = Tensor(first.dtype, (*first.shape[:axis], size, *first.shape[axis + 1 :]))
    return result, result.elements


def _slice(inputs: Sequence[Tensor], attributes: Attributes) -> tuple[Tensor, int]:
    shape = list(inputs[0].shape)
    starts, ends, steps = (_ints(attributes, name) for name in ("starts", "ends", "steps"))
    axes = _axes(attributes, len(shape))
    if not len(starts) == len(ends) == len(steps) == len(axes):
        raise GraphError("expected as many starts, ends and steps as axes")
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if not 0 <= start < end <= shape[axis] or step < 1:
            raise GraphError(
                f"expected 0 <= start < end <= {shape[axis]} and a step of 1 or more, got {start, end, step}"
            )
        shape[axis] = -(-(end - start) // step)
    result = Tensor(inputs[0].dtype, tuple(shape))
    return result, result.elements


def _pad(inputs: Sequence[Tensor], attributes: Attributes) -> tuple[Tensor, int]:
    _expect(inputs[0], "float32")
    shape, pads = inputs[0].shape, _ints(attributes, "pads")
    if len(pads) != 2 * len(shape) or any(pad < 0 for pad in pads):
        raise GraphError(f"expected {2 * len(shape)} pads of at least 0, got {pads}")
    value = attributes["value"]
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise GraphError(f"expected a finite value, got {value}")
    padded = tuple(size + pads[axis] + pads[axis + len(shape)] for axis, size in enumerate(shape))
    result = Tensor("float32", padded)
    return result, result.elements


_UNARY = ("Neg", "Abs", "Exp", "Log", "Sqrt", "Reciprocal", "Tanh", "Sigmoid", "Relu", "Erf", "Sign")
_BINARY = ("Add", "Sub", "Mul", "Div", "Max", "Min")
_COMPARED = ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
_REDUCED = ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin")
_SPREAD: dict[str, type] = {"stride": int, "pads": tuple, "dilation": int}


def _operator(infer: Infer, least: int, most: int | None = None, **attributes: type) -> Operator:
    return Operator(infer=infer, least_inputs=least, most_inputs=most or least, attributes=attributes)


OPERATORS: dict[str, Operator] = {
    **{op: _operator(_elementwise("float32"), 1) for op in _UNARY},
    **{op: _operator(_elementwise("float32", "int64"), 2) for op in _BINARY},
    "Pow": _operator(_elementwise("float32"), 2),
    **{op: _operator(_elementwise("float32", "int64", gives="bool"), 2) for op in _COMPARED},
    "Not": _operator(_elementwise("bool"), 1),
    "And": _operator(_elementwise("bool"), 2),
    "Or": _operator(_elementwise("bool"), 2),
    "Where": _operator(_where, 3),
    "Cast": _operator(_cast, 1, to=str),
    "MatMul": _operator(_matmul, 2),
    "Conv": _operator(_conv, 2, 3, **_SPREAD),
    "ConvTranspose": _operator(_conv_transpose, 2, 2, output_padding=int, **_SPREAD),
    **{op: _operator(_reduce, 1, axes=tuple, keepdims=int) for op in _REDUCED},
    "ArgMax": _operator(_arg_max, 1, axis=int, keepdims=int),
    "Softmax": _operator(_softmax, 1, axis=int),
    "LogSoftmax": _operator(_softmax, 1, axis=int),
    "Reshape": _operator(_reshape, 1, shape=tuple),
    "Transpose": _operator(_transpose, 1, perm=tuple),
    "Expand": _operator(_expand, 1, shape=tuple),
    "Concat": _operator(_concat, 1, 4096, axis=int),
    "Slice": _operator(_slice, 1, starts=tuple, ends=tuple, axes=tuple, steps=tuple),
    "Pad": _operator(_pad, 1, pads=tuple, value=float),
}
"""What a graph may be made of. `Conv` and `ConvTranspose` are of one dimension, without groups."""
