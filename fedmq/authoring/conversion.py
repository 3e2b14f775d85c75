"""From ONNX, as an exporter writes it, to a graph as a task carries it.

Owns which spellings of ONNX (operator set 18) become which operator of `fedmq_models.graph`: what an exporter writes as
small integer tensors becomes attributes, and operators that are others in disguise (Gemm, Flatten, Split) become those.
What has no place in a graph is an `AuthoringError` that names the operator, where it stands, and a way out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from fedmq_models.build import Builder, Value
from fedmq_models.graph import Graph, GraphError
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx

__all__ = ["AuthoringError", "to_graph"]

LARGEST = (1 << 63) - 1


class AuthoringError(ValueError):
    """A model that cannot become a task's: what stands in the way, and what to do."""


def to_graph(model: onnx.ModelProto) -> Graph:
    """The same computation; inputs and outputs in the same order. Raises AuthoringError."""
    return _Converter(model).graph()


class _Converter:
    def __init__(self, model: onnx.ModelProto) -> None:
        self._graph = model.graph
        self._b = Builder()
        self._values: dict[str, Value] = {}
        self._constants: dict[str, NDArray[Any]] = {}

    def graph(self) -> Graph:
        from onnx import numpy_helper

        for tensor in self._graph.initializer:
            self._constants[tensor.name] = numpy_helper.to_array(tensor)
        for given in self._graph.input:
            if given.name not in self._constants:
                self._input(given)
        for node in self._graph.node:
            self._node(node)
        return self._b.graph(*(self._value(out.name) for out in self._graph.output))

    def _input(self, given: Any) -> None:
        kind = given.type.tensor_type
        dtype = {1: "float32", 7: "int64", 9: "bool"}.get(kind.elem_type)
        shape = tuple(int(dim.dim_value) for dim in kind.shape.dim)
        if dtype is None or any(size < 1 for size in shape):
            raise AuthoringError(
                f"input {given.name!r}: expected float32, int64 or bool of a fixed shape, got type {kind.elem_type} "
                f"{list(shape)}"
            )
        self._values[given.name] = self._b.input(given.name, dtype, shape)  # type: ignore[arg-type]

    def _node(self, node: Any) -> None:
        rule = _RULES.get(node.op_type)
        if rule is None or node.domain not in ("", "ai.onnx"):
            raise AuthoringError(self._unknown(node))
        attributes = {a.name: _attribute(a) for a in node.attribute}
        try:
            rule(self, node, attributes)
        except (GraphError, KeyError, IndexError) as error:
            raise AuthoringError(f"{node.op_type}{_where(node)}: {error}") from None

    def _unknown(self, node: Any) -> str:
        way = _WAYS.get(node.op_type, "write it with other operations, or leave it out of the model")
        return f"the operator {node.op_type}{_where(node)} cannot be part of a task's graph: {way}"

    # -- values ------------------------------------------------------------------------------------------------

    def _value(self, name: str) -> Value:
        if name not in self._values:
            self._values[name] = self._b.constant(_portable(self._constants[name]))
        return self._values[name]

    def inputs(self, node: Any) -> list[Value]:
        return [self._value(name) for name in node.input if name]

    def constant(self, node: Any, place: int, what: str) -> NDArray[Any] | None:
        """An input that must be known; None where it was left out."""
        if place >= len(node.input) or not node.input[place]:
            return None
        if node.input[place] not in self._constants:
            raise GraphError(f"expected {what} known beforehand, not made of data")
        return self._constants[node.input[place]]

    def integers(self, node: Any, place: int, what: str) -> tuple[int, ...] | None:
        array = self.constant(node, place, what)
        return None if array is None else tuple(int(item) for item in array.ravel())

    def give(self, node: Any, value: Value, place: int = 0) -> None:
        self._values[node.output[place]] = value

    def know(self, node: Any, array: NDArray[Any]) -> None:
        self._constants[node.output[0]] = array

    def add(self, op: str, *inputs: Value, **attributes: Any) -> Value:
        return self._b.node(op, *inputs, **attributes)

    def shape(self, value: Value) -> tuple[int, ...]:
        return self._b.shape(value)

    def number(self, value: float) -> Value:
        return self._b.constant(float(value))

    def reshape(self, value: Value, shape: tuple[int, ...]) -> Value:
        return self._b.reshape(value, *shape)

    def known(self, node: Any) -> list[NDArray[Any]] | None:
        """All inputs, where none depends on data."""
        if not all(name in self._constants for name in node.input):
            return None
        return [self._constants[name] for name in node.input]


def _attribute(attribute: Any) -> Any:
    from onnx import helper

    return helper.get_attribute_value(attribute)


def _portable(array: NDArray[Any]) -> NDArray[Any]:
    """In a dtype that graphs have."""
    if array.dtype.kind == "f":
        return array.astype(np.float32)
    return array.astype(np.int64) if array.dtype.kind in "iu" else array


def _where(node: Any) -> str:
    return f" ({node.name})" if node.name else ""


Rule = Callable[[_Converter, Any, dict[str, Any]], None]


def _plain(c: _Converter, node: Any, a: dict[str, Any]) -> None:
    c.give(node, c.add(node.op_type, *c.inputs(node)))


def _alias(c: _Converter, node: Any, a: dict[str, Any]) -> None:
    if node.input[0] in c._constants:
        c.know(node, c._constants[node.input[0]])
    else:
        c.give(node, c._value(node.input[0]))


def _chain(c: _Converter, node: Any, a: dict[str, Any]) -> None:
    first, *rest = c.inputs(node)
    for value in rest:
        first = c.add(node.op_type, first, value)
    c.give(node, first)


def _constant(c: _Converter, node: Any, a: dict[str, Any]) -> None:
    from onnx import numpy_helper

    if "value" in a:
        c.know(node, numpy_helper.to_array(a["value"]))
    else:
        (value,) = a.values()
        c.know(node, np.asarray(value, dtype=np.float32 if isinstance(value, float) else None))


def _constant_of_shape(c: _Converter, node: Any, a: dict[str, Any]) -> None:
    from onnx import numpy_helper

    shape = c.integers(node, 0, "a shape")
    fill = numpy_helper.to_array(a["value"]) if "value" in a else np.zeros(1, dtype=np.float32)
    assert shape is not None
    c.know(node, np.broadcast_to(fill, shape).copy())


def _cast(c: _Converter, node: Any, a: dict[str, Any]) -> None:
    to = {1: "float32", 10: "float32", 11: "float32", 6: "int64", 7: "int64", 9: "bool"}.get(a["to"])
    if to is None:
        raise GraphError(f"expected a cast to float, int64 or bool, got ONNX type {a['to']}")
    known = c.known(node)
    if known is not None:
        c.know(node, known[0].astype({"float32": np.float32, "int64": np.int64, "bool": np.bool_}[to]))
    else:
        c.give(node, c.add("Cast", *c.inputs(node), to=to))


def _reduce(c: _Converter, node: Any, a: dict[str, Any]) -> None:
    x = c._value(node.input[0])
    axes = a["axes"] if "axes" in a else c.integers(node, 1, "axes")
    if not axes:
        if a.get("noop_with_empty_axes"):
            c.give(node, x)
            return
        axes = tuple(range(len(c.shape(x))))
    keep = int(a.get("keepdims", 1))
    if not c.shape(x):
        c.give(node, x)
        return
    c.give(node, c.add(node.op_type, x, axes=tuple(int(axis) for axis in axes), keepdims=keep))


def _arg_max(c: _Converter, node: Any, a: dict[str, Any]) -> None:
    if a.get("select_last_index"):
        raise GraphError("expected the first of equal values")
    (x,) = c.inputs(node)
    c.give(node, c.add("ArgMax", x, axis=int(a.get("axis", 0)), keepdims=int(a.get("keepdims", 1))))


def _softmax(c: _Converter, node: Any, a: dict[str, Any]) -> None:
    c.give(node, c.add(node.op_type, *c.inputs(node), axis=int(a.get("axis", -1))))


def _gemm(c: _Converter, node: Any, a: dict[str, Any]) -> None:
    x, w, *bias = c.inputs(node)
    if a.get("transA"):
        x = c.add("Transpose", x, perm=(1, 0))
    if a.get("transB"):
        w = c.add("Transpose", w, perm=(1, 0))
    out = c.add("MatMul", x, w)
    if a.get("alpha", 1.0) != 1.0:
        out = c.add("Mul", out, c.number(a["alpha"]))
    if bias:
        added = bias[0] if a.get("beta", 1.0) == 1.0 else c.add("Mul", bias[0], c.number(a["beta"]))
        out = c.add("Add", out, added)
    c.give(node, out)


def _matmul(c: _Converter, node: Any, a: dict[str, Any]) -> None:
    x, w = c.inputs(node)
    left, right = c.shape(x), c.shape(w)
    out = c.add(
        "MatMul",
        c.reshape(x, (1, *left)) if len(left) == 1 else x,
        c.reshape(w, (*right, 1)) if len(right) == 1 else w,
    )
    shape = list(c.shape(out))
    if len(right) == 1:
        del shape[-1]
    if len(left) == 1:
        del shape[-1 if len(right) == 1 else -2]
    c.give(node, c.reshape(out, tuple(shape)))


def _spread(a: dict[str, Any]) -> dict[str, Any]:
    if a.get("auto_pad", b"NOTSET") not in (b"NOTSET", "NOTSET") or a.get("group", 1) != 1 or "output_shape" in a:
        raise GraphError("expected a convolution without groups and with its padding stated")
    strides, dilations = a.get("strides", [1]), a.get("dilations", [1])
    if len(strides) != 1:
        raise GraphError(f"expected a convolution along one dimension (Conv1d), got {len(strides)}")
    return {
        "stride": int(strides[0]),
        "dilation": int(dilations[0]),
        "pads": tuple(int(pad) for pad in a.get("pads", [0, 0])),
    }


def _conv(c: _Converter, node: Any, a: dict[str, Any]) -> None:
    c.give(node, c.add("Conv", *c.inputs(node), **_spread(a)))


def _conv_transpose(c: _Converter, node: Any, a: dict[str, Any]) -> None:
    x, weight, *bias = c.inputs(node)
    padding = int(a.get("output_padding", [0])[0])
    out = c.add("ConvTranspose", x, weight, output_padding=padding, **_spread(a))
    if bias:
        out = c.add("Add", out, c.reshape(bias[0], (*c.shape(bias[0]), 1)))
    c.give(node, out)


def _reshape(c: _Converter, node: Any, a: dict[str, Any]) -> None:
    shape = c.integers(node, 1, "a shape")
    assert shape is not None
    if node.input[0] in c._constants:
        c.know(node, c._constants[node.input[0]].reshape(shape))
        return
    x = c._value(node.input[0])
    own = c.shape(x)
    if not a.get("allowzero"):
        shape = tuple(own[place] if size == 0 else size for place, size in enumerate(shape))
    if -1 in shape:
        rest = int(np.prod([size for size in shape if size != -1]))
        shape = tuple(int(np.prod(own)) // rest if size == -1 else size for size in shape)
    c.give(node, c.reshape(x, shape))


def _squeeze(c: _Converter, node: Any, a: dict[str, Any]) -> None:
    axes = c.integers(node, 1, "axes")
    if node.input[0] in c._constants:
        c.know(node, np.squeeze(c._constants[node.input[0]], axis=axes))
        return
    x = c._value(node.input[0])
    own = c.shape(x)
    gone = {axis % len(own) for axis in axes} if axes is not None else {i for i, size in enumerate(own) if size == 1}
    c.give(node, c.reshape(x, tuple(size for place, size in enumerate(own) if place not in gone)))


def _unsqueeze(c: _Converter, node: Any, a: dict[str, Any]) -> None:
    axes = c.integers(node, 1, "axes")
    assert axes is not None
    if node.input[0] in c._constants:
        c.know(node, np.expand_dims(c._constants[node.input[0]], axes))
        return
    x = c._value(node.input[0])
    own = list(c.shape(x))
    rank = len(own) + len(axes)
    new = {axis % rank for axis in axes}
    c.give(node, c.reshape(x, tuple(1 if place in new else own.pop(0) for place in range(rank))))


def _flatten(c: _Converter, node: Any, a: dict[str, Any]) -> None:
    (x,) = c.inputs(node)
    own = c.shape(x)
    axis = int(a.get("axis", 1)) % (len(own) + 1)
    c.give(node, c.reshape(x, (int(np.prod(own[:axis])), int(np.prod(own[axis:])))))


def _transpose(c: _Converter, node: Any, a: dict[str, Any]) -> None:
    (x,) = c.inputs(node)
    order = a.get("perm", range(len(c.shape(x)))[::-1])
    c.give(node, c.add("Transpose", x, perm=tuple(int(axis) for axis in order)))


def _expand(c: _Converter, node: Any, a: dict[str, Any]) -> None:
    shape = c.integers(node, 1, "a shape")
    assert shape is not None
    if node.input[0] in c._constants:
        array = c._constants[node.input[0]]
        c.know(node, np.broadcast_to(array, np.broadcast_shapes(array.shape, shape)).copy())
        return
    x = c._value(node.input[0])
    wanted = np.broadcast_shapes(c.shape(x), shape)
    c.give(node, x if wanted == c.shape(x) else c.add("Expand", x, shape=wanted))


def _concat(c: _Converter, node: Any, a: dict[str, Any]) -> None:
    known = c.known(node)
    if known is not None:
        c.know(node, np.concatenate(known, axis=int(a["axis"])))
        return
    c.give(node, c.add("Concat", *c.inputs(node), axis=int(a["axis"])))


def _slice(c: _Converter, node: Any, a: dict[str, Any]) -> None:
    starts, ends = c.integers(node, 1, "starts"), c.integers(node, 2, "ends")
    assert starts is not None
    assert ends is not None
    axes = c.integers(node, 3, "axes") or tuple(range(len(starts)))
    steps = c.integers(node, 4, "steps") or (1,) * len(starts)
    x = c._value(node.input[0])
    own = c.shape(x)
    ranges = [
        range(own[axis])[slice(start, end if abs(end) < LARGEST else None, step)]
        for start, end, axis, step in zip(starts, ends, axes, steps, strict=True)
    ]
    if any(step < 1 for step in steps):
        raise GraphError("expected steps forwards")
    c.give(
        node,
        c.add(
            "Slice",
            x,
            starts=tuple(part.start for part in ranges),
            ends=tuple(part.stop for part in ranges),
            axes=tuple(axes),
            steps=tuple(steps),
        ),
    )


def _split(c: _Converter, node: Any, a: dict[str, Any]) -> None:
    x = c._value(node.input[0])
    axis = int(a.get("axis", 0)) % len(c.shape(x))
    size = c.shape(x)[axis]
    each = -(-size // len(node.output))
    sizes = c.integers(node, 1, "sizes") or tuple(min(each, size - place * each) for place in range(len(node.output)))
    start = 0
    for place, part in enumerate(sizes):
        stop = start + part
        c.give(node, c.add("Slice", x, starts=(start,), ends=(stop,), axes=(axis,), steps=(1,)), place)
        start = stop


def _pad(c: _Converter, node: Any, a: dict[str, Any]) -> None:
    if a.get("mode", b"constant") not in (b"constant", "constant"):
        raise GraphError("expected padding with a constant")
    x = c._value(node.input[0])
    pads, value = c.integers(node, 1, "pads"), c.constant(node, 2, "values")
    axes = c.integers(node, 3, "axes")
    assert pads is not None
    rank = len(c.shape(x))
    whole = [0] * (2 * rank)
    for place, axis in enumerate(range(rank) if axes is None else axes):
        whole[axis % rank], whole[axis % rank + rank] = pads[place], pads[place + len(pads) // 2]
    c.give(node, c.add("Pad", x, pads=tuple(whole), value=0.0 if value is None else float(value.ravel()[0])))


def _gather(c: _Converter, node: Any, a: dict[str, Any]) -> None:
    indices = c.constant(node, 1, "indices")
    assert indices is not None
    x = c._value(node.input[0])
    own = c.shape(x)
    axis = int(a.get("axis", 0)) % len(own)
    parts = []
    for index in indices.ravel().tolist():
        start = int(index) % own[axis]
        parts.append(c.add("Slice", x, starts=(start,), ends=(start + 1,), axes=(axis,), steps=(1,)))
    whole = parts[0] if len(parts) == 1 else c.add("Concat", *parts, axis=axis)
    c.give(node, c.reshape(whole, own[:axis] + indices.shape + own[axis + 1 :]))


def _clip(c: _Converter, node: Any, a: dict[str, Any]) -> None:
    value = c._value(node.input[0])
    for place, op in ((1, "Max"), (2, "Min")):
        if place < len(node.input) and node.input[place]:
            value = c.add(op, value, c._value(node.input[place]))
    c.give(node, value)


def _pow(c: _Converter, node: Any, a: dict[str, Any]) -> None:
    x = c._value(node.input[0])
    exponent = c._constants.get(node.input[1])
    if exponent is not None and exponent.size == 1 and float(exponent.ravel()[0]) == 2.0:
        c.give(node, c.add("Mul", x, x))
        return
    power = c._value(node.input[1]) if exponent is None else c._b.constant(exponent.astype(np.float32))
    c.give(node, c.add("Pow", x, power))


_PLAIN = (
    *("Neg", "Abs", "Exp", "Log", "Sqrt", "Reciprocal", "Tanh", "Sigmoid", "Relu", "Erf", "Sign", "Not"),
    *("Add", "Sub", "Mul", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Where"),
)

_RULES: dict[str, Rule] = {
    **dict.fromkeys(_PLAIN, _plain),
    **dict.fromkeys(("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin"), _reduce),
    "Identity": _alias,
    "Max": _chain,
    "Min": _chain,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Cast": _cast,
    "ArgMax": _arg_max,
    "Softmax": _softmax,
    "LogSoftmax": _softmax,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Flatten": _flatten,
    "Transpose": _transpose,
    "Expand": _expand,
    "Concat": _concat,
    "Slice": _slice,
    "Split": _split,
    "Pad": _pad,
    "Gather": _gather,
    "Clip": _clip,
    "Pow": _pow,
}

_WAYS = {
    "BatchNormalization": "use GroupNorm or LayerNorm; statistics of a batch do not average over gateways",
    "Loop": "unroll it over a fixed length",
    "If": "a task's graph takes the same way for all data; use torch.where",
    "ScatterElements": "compare indices with torch.arange and multiply",
    "GatherElements": "compare indices with torch.arange and multiply",
    "TopK": "use max along an axis",
    "MaxPool": "use torch.nn.MaxPool1d, which is traced as windows and their maximum",
}
"""What to do instead, by operator."""
