"""A checked graph, computed with numpy: the engine where nothing else is installed, and the measure of the others.

Owns what each operator computes. Refuses to check shapes again: `graph.check` has. Values are dropped after their last
use, so that the memory is what the check said, and whether to go on is asked before every node.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedmq_models.graph import DTYPES, Array, Checked, Graph, GraphError, check

__all__ = ["Interpreter"]

Floats: TypeAlias = NDArray[np.float32]
Any_: TypeAlias = NDArray[Any]


class Interpreter:
    """Runs one graph. Raises GraphError where it is none."""

    def __init__(self, graph: Graph, checked: Checked | None = None) -> None:
        self._graph = graph
        self._checked = checked or check(graph)
        self._constants = [constant.array() for constant in graph.constants]
        first = len(graph.inputs) + len(graph.constants)
        self._dropped: list[list[int]] = [[] for _ in graph.nodes]
        for number, place in enumerate(self._checked.last_use):
            if place < len(graph.nodes) and number >= first:
                self._dropped[max(place, number - first)].append(number)

    def run(self, inputs: Sequence[Array], keep_going: Callable[[], bool] = lambda: True) -> list[Array]:
        """The outputs. Raises GraphError for inputs of another shape or dtype, and where `keep_going` says no."""
        graph = self._graph
        if len(inputs) != len(graph.inputs):
            raise GraphError(f"expected {len(graph.inputs)} inputs, got {len(inputs)}")
        values: list[Any] = []
        for (name, tensor), array in zip(graph.inputs, inputs, strict=True):
            if array.dtype != DTYPES[tensor.dtype] or array.shape != tensor.shape:
                raise GraphError(f"input {name!r}: expected {tensor}, got {array.dtype}{list(array.shape)}")
            values.append(array)
        values += self._constants
        # A float that overflows becomes infinity, as on any engine: the trainer refuses what is not finite.
        with np.errstate(all="ignore"):
            for place, node in enumerate(graph.nodes):
                if not keep_going():
                    raise GraphError(f"stopped before node {place} of {len(graph.nodes)}: it took too long")
                values.append(KERNELS[node.op]([values[number] for number in node.inputs], node.attributes))
                for number in self._dropped[place]:
                    values[number] = None
        return [values[number] for number in graph.outputs]


Kernel: TypeAlias = Callable[[list[Any], dict[str, Any]], Any]


def _erf(x: Floats) -> Floats:
    return np.array([math.erf(value) for value in x.ravel().tolist()], dtype=np.float32).reshape(x.shape)


def _sigmoid(x: Floats) -> Floats:
    # From tanh, which does not overflow.
    return np.asarray(np.float32(0.5) * np.tanh(np.float32(0.5) * x) + np.float32(0.5), dtype=np.float32)


def _divide(a: Any_, b: Any_) -> Any_:
    # Whole numbers are divided towards zero, as in C.
    return a / b if a.dtype.kind == "f" else (np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b))).astype(a.dtype)


def _windows(x: Floats, kernel: int, stride: int, dilation: int) -> Floats:
    """`(n, channels, length)` to `(n, channels, outputs, kernel)`."""
    reach = dilation * (kernel - 1) + 1
    return np.lib.stride_tricks.sliding_window_view(x, reach, axis=2)[:, :, ::stride, ::dilation]


def _conv(inputs: list[Any], a: dict[str, Any]) -> Floats:
    x, weight = inputs[0], inputs[1]
    padded = np.pad(x, ((0, 0), (0, 0), a["pads"]))
    windows = _windows(padded, weight.shape[2], a["stride"], a["dilation"])
    n, channels, length, kernel = windows.shape
    columns = windows.transpose(0, 2, 1, 3).reshape(n * length, channels * kernel)
    out = (columns @ weight.reshape(weight.shape[0], -1).T).reshape(n, length, -1).transpose(0, 2, 1)
    return np.ascontiguousarray(out if len(inputs) == 2 else out + inputs[2][:, None])


def _conv_transpose(inputs: list[Any], a: dict[str, Any]) -> Floats:
    x, weight = inputs
    n, _, length = x.shape
    _, outputs, kernel = weight.shape
    stride, dilation, (before, after) = a["stride"], a["dilation"], a["pads"]
    whole = (length - 1) * stride + dilation * (kernel - 1) + 1 + a["output_padding"]
    out = np.zeros((n, outputs, whole), dtype=np.float32)
    # (n, length, outputs * kernel): one product, and then a sum of as many shifted pieces as the kernel is long.
    pieces = np.tensordot(x, weight, axes=([1], [0]))
    for place in range(kernel):
        start = place * dilation
        out[:, :, start : start + (length - 1) * stride + 1 : stride] += pieces[:, :, :, place].transpose(0, 2, 1)
    return np.ascontiguousarray(out[:, :, before : whole - after])


def _log_softmax(x: Floats, axis: int) -> Floats:
    shifted = x - x.max(axis=axis, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True)), dtype=np.float32)


def _sliced(x: Any_, a: dict[str, Any]) -> Any_:
    where: list[slice] = [slice(None)] * x.ndim
    for axis, start, end, step in zip(a["axes"], a["starts"], a["ends"], a["steps"], strict=True):
        where[axis] = slice(start, end, step)
    return x[tuple(where)]


def _padded(x: Floats, a: dict[str, Any]) -> Floats:
    pads = a["pads"]
    each = [(pads[axis], pads[axis + x.ndim]) for axis in range(x.ndim)]
    return np.pad(x, each, constant_values=np.float32(a["value"]))


def _reduced(function: Callable[..., Any]) -> Kernel:
    def kernel(inputs: list[Any], a: dict[str, Any]) -> Any:
        return function(inputs[0], axis=a["axes"], keepdims=bool(a["keepdims"])).astype(np.float32, copy=False)

    return kernel


def _plain(function: Callable[..., Any]) -> Kernel:
    return lambda inputs, attributes: function(*inputs)


KERNELS: dict[str, Kernel] = {
    "Neg": _plain(np.negative),
    "Abs": _plain(np.abs),
    "Exp": _plain(np.exp),
    "Log": _plain(np.log),
    "Sqrt": _plain(np.sqrt),
    "Reciprocal": _plain(np.reciprocal),
    "Tanh": _plain(np.tanh),
    "Sigmoid": _plain(_sigmoid),
    "Relu": _plain(lambda x: np.maximum(x, np.float32(0))),
    "Erf": _plain(_erf),
    "Sign": _plain(np.sign),
    "Add": _plain(np.add),
    "Sub": _plain(np.subtract),
    "Mul": _plain(np.multiply),
    "Div": _plain(_divide),
    "Max": _plain(np.maximum),
    "Min": _plain(np.minimum),
    "Pow": _plain(np.power),
    "Equal": _plain(np.equal),
    "Greater": _plain(np.greater),
    "GreaterOrEqual": _plain(np.greater_equal),
    "Less": _plain(np.less),
    "LessOrEqual": _plain(np.less_equal),
    "Not": _plain(np.logical_not),
    "And": _plain(np.logical_and),
    "Or": _plain(np.logical_or),
    "Where": _plain(np.where),
    "Cast": lambda inputs, a: inputs[0].astype(DTYPES[a["to"]]),
    "MatMul": _plain(np.matmul),
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "ReduceSum": _reduced(np.sum),
    "ReduceMean": _reduced(np.mean),
    "ReduceMax": _reduced(np.max),
    "ReduceMin": _reduced(np.min),
    "ArgMax": lambda inputs, a: _arg_max(inputs[0], a),
    "Softmax": lambda inputs, a: np.exp(_log_softmax(inputs[0], a["axis"])),
    "LogSoftmax": lambda inputs, a: _log_softmax(inputs[0], a["axis"]),
    "Reshape": lambda inputs, a: inputs[0].reshape(a["shape"]),
    "Transpose": lambda inputs, a: inputs[0].transpose(a["perm"]),
    "Expand": lambda inputs, a: np.broadcast_to(inputs[0], a["shape"]),
    "Concat": lambda inputs, a: np.concatenate(inputs, axis=a["axis"]),
    "Slice": lambda inputs, a: _sliced(inputs[0], a),
    "Pad": lambda inputs, a: _padded(inputs[0], a),
}


def _arg_max(x: Floats, a: dict[str, Any]) -> NDArray[np.int64]:
    return np.asarray(np.argmax(x, axis=a["axis"], keepdims=bool(a["keepdims"])), dtype=np.int64)
