"""A TFLite file in integers alone, quantized after training, and what it gives: for microcontrollers and accelerators
that have no float.

Owns how `ai-edge-quantizer` is asked (static: ranges of activations come from windows, the least and the greatest that
occur), and the check that nothing in the result computes in float: input and output are integers, too. Weights are
int8, with a scale for each output of a layer; activations are int8 with a scale and a zero point for each tensor, or
int16 with a scale (TFLite's own 16x8). Refuses to know what the numbers mean, and how much may be lost.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedmq_models.build import Builder, Value
from fedmq_models.graph import Graph, GraphError, Node
from fedmq_models.tflite_format import SIGNATURE, to_tflite

__all__ = [
    "CALIBRATION_WINDOWS",
    "PRECISIONS",
    "Calibration",
    "IntegerTensor",
    "Precision",
    "TFLiteModel",
    "operators_in_float",
]

Floats = NDArray[np.float32]
Precision = Literal["int8", "mixed", "int16"]
PRECISIONS: tuple[Precision, ...] = ("int8", "mixed", "int16")
"""Of activations, the narrowest first. `mixed` is int8 where weights are multiplied, which is nearly all of the work,
and int16 in between: a variance, and what is divided by it, need more steps than 256."""

CALIBRATION_WINDOWS = 2000
"""As many as are enough to take ranges from."""


class Calibration:
    """A graph of one window and one output, with the ranges that its values take.

    `windows` `(n, …)` are of what it is going to see. Raises ImportError where ai-edge-quantizer is not installed,
    ValueError without windows, and GraphError for a graph that TFLite cannot compute.
    """

    def __init__(self, graph: Graph, windows: Floats) -> None:
        try:
            from ai_edge_quantizer import calibrator
            from ai_edge_quantizer.utils import qsv_utils
        except ImportError as error:
            raise ImportError("TFLite in integers needs ai-edge-quantizer: pip install 'fedmq[export]'") from error
        if len(windows) == 0:
            raise ValueError("expected windows to take the integers' ranges from, got none")
        (name, tensor), *_ = graph.inputs
        given = windows.reshape(-1, *tensor.shape)
        self.in_float = to_tflite(_pairwise(graph), output_names=("out",))
        with _silence():
            # Its own habit is a moving average, which forgets the recordings that came first.
            ranges = calibrator.Calibrator(self.in_float, num_threads=1, qsv_update_func=qsv_utils.min_max_update)
            ranges.calibrate({SIGNATURE: [{name: window} for window in given]}, _rules("int8"))
            self._ranges = ranges.get_model_qsvs()

    def quantize(self, precision: Precision) -> bytes:
        """The file. Raises GraphError for an operator that would stay in float."""
        from ai_edge_quantizer import quantizer

        with _silence():
            made = quantizer.Quantizer(self.in_float, _rules(precision).get_quantization_recipe())
            data = bytes(made.quantize(self._ranges).quantized_model or b"")
        if floats := operators_in_float(data):
            # Around them stand those that turn integers into float and back.
            named = [name for name in floats if name not in ("QUANTIZE", "DEQUANTIZE")] or floats
            raise GraphError(f"expected operators that are computed in integers too, got {', '.join(named)}")
        return data


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """The quantizer tells its progress and its sizes to whoever reads the terminal."""
    nowhere = io.StringIO()
    with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


MOST_COMPARED = 16


def _pairwise(graph: Graph) -> Graph:
    """The same with the largest of a few found two by two, as the quantizer knows it: it has no REDUCE_MAX."""
    b = Builder()
    values = [b.input(name, tensor.dtype, tensor.shape) for name, tensor in graph.inputs]
    values += [b.constant(constant.array()) for constant in graph.constants]
    for node in graph.nodes:
        given = [values[number] for number in node.inputs]
        whole = b.node(node.op, *given, **node.attributes)
        values.append(_largest(b, given[0], node, b.shape(whole)) if node.op == "ReduceMax" else whole)
    return b.graph(*(values[number] for number in graph.outputs))


def _largest(b: Builder, x: Value, node: Node, shape: tuple[int, ...]) -> Value:
    """ReduceMax by slices; of more than `MOST_COMPARED` it stays as it is."""
    axes = node.attributes["axes"]
    assert isinstance(axes, tuple)
    for axis in axes:
        count = b.shape(x)[axis]
        if count > MOST_COMPARED:
            return b.node(node.op, x, **node.attributes)
        parts = [b.node("Slice", x, starts=(n,), ends=(n + 1,), axes=(axis,), steps=(1,)) for n in range(count)]
        x = reduce(lambda one, other: b.node("Max", one, other), parts)
    return b.reshape(x, *shape)


_ALL = ("*",)
_WEIGHTED = ("CONV_2D", "CONV_2D_TRANSPOSE", "FULLY_CONNECTED", "BATCH_MATMUL")
_RULES: dict[Precision, dict[tuple[str, ...], int]] = {
    "int8": {_ALL: 8},
    "mixed": {_ALL: 16, _WEIGHTED: 8},
    "int16": {_ALL: 16},
}
"""Bits of activations, by the quantizer's names of operators; a later rule goes before an earlier one."""


def _rules(precision: Precision) -> Any:
    from ai_edge_quantizer import recipe_manager

    rules = recipe_manager.RecipeManager()
    for operators, bits in _RULES[precision].items():
        for operator in operators:
            rules.add_static_config(".*", operator, activation_num_bits=bits, weight_num_bits=8)
    return rules


def operators_in_float(model: bytes) -> list[str]:
    """Names of a TFLite file's operators that take or give floating-point numbers, each once."""
    from ai_edge_litert import schema_py_generated as schema

    names = {number: name for name, number in vars(schema.BuiltinOperator).items() if isinstance(number, int)}
    floats = {schema.TensorType.FLOAT16, schema.TensorType.FLOAT32, schema.TensorType.FLOAT64}
    read = schema.ModelT.InitFromObj(schema.Model.GetRootAs(model))
    found = set()
    for part in read.subgraphs:
        for operator in part.operators:
            tensors = [part.tensors[place] for place in (*operator.inputs, *operator.outputs) if place >= 0]
            if any(tensor.type in floats for tensor in tensors):
                found.add(names[read.operatorCodes[operator.opcodeIndex].builtinCode])
    return sorted(found)


@dataclass(frozen=True, kw_only=True)
class IntegerTensor:
    """What a number in a model's input or output is worth: (number - zero_point) * scale. Float has scale 0."""

    dtype: str
    scale: float
    zero_point: int

    def integers(self, values: Floats) -> NDArray[Any]:
        """The nearest that there are."""
        if not self.scale:
            return values
        bounds = np.iinfo(self.dtype)
        nearest = np.rint(values.astype(np.float64) / self.scale) + self.zero_point
        return np.asarray(np.clip(nearest, bounds.min, bounds.max), dtype=self.dtype)

    def values(self, integers: NDArray[Any]) -> Floats:
        if not self.scale:
            return integers
        return np.asarray((integers.astype(np.float64) - self.zero_point) * self.scale, dtype=np.float32)


class TFLiteModel:
    """A file of one input and one output, for one window, run by LiteRT. `model` may be in float, too."""

    def __init__(self, model: bytes) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self._interpreter = Interpreter(model_content=model, num_threads=1)
        self._interpreter.allocate_tensors()
        (given,), (made,) = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        self._shape, self._input, self._output = tuple(given["shape"]), int(given["index"]), int(made["index"])
        self.input, self.output = _integer_tensor(given), _integer_tensor(made)

    def run(self, windows: Floats) -> Floats:
        """`(n, …)` -> `(n, outputs)`, both in float. Raises RuntimeError where its integers divide by zero."""
        rows = []
        for window in self.input.integers(windows):
            self._interpreter.set_tensor(self._input, np.ascontiguousarray(window.reshape(self._shape)))
            self._interpreter.invoke()
            rows.append(self._interpreter.get_tensor(self._output).reshape(-1))
        return self.output.values(np.array(rows))


def _integer_tensor(details: dict[str, Any]) -> IntegerTensor:
    scale, zero_point = details["quantization"]
    return IntegerTensor(dtype=np.dtype(details["dtype"]).name, scale=float(scale), zero_point=int(zero_point))
