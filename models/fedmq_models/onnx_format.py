"""A checked graph as an ONNX file (operator set 18): for the runtime that a gateway has, and for export.

Owns the few messages of ONNX's protobuf format (onnx.proto3, IR version 8) that a graph needs, so that a gateway needs
neither the `onnx` package nor protobuf. Only writes: nothing that comes from outside is read in this format.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from fedmq_compression.frame import varint

from fedmq_models.graph import Attribute, Checked, Constant, Graph, Node, Tensor, check

__all__ = ["OPSET", "to_onnx"]

OPSET = 18
IR_VERSION = 8
ELEMENTS = {"float32": 1, "int64": 7, "bool": 9}
"""TensorProto.DataType."""
PRODUCER = b"fedmq"


def to_onnx(
    graph: Graph, *, output_names: tuple[str, ...], name: str = "fedmq", checked: Checked | None = None
) -> bytes:
    """ModelProto bytes. `output_names` has one for each output. Raises GraphError."""
    checked = checked or check(graph)
    return _Writer(graph, checked, output_names, name).model()


class _Writer:
    def __init__(self, graph: Graph, checked: Checked, output_names: tuple[str, ...], name: str) -> None:
        if len(output_names) != len(graph.outputs):
            raise ValueError(f"expected {len(graph.outputs)} names of outputs, got {len(output_names)}")
        self._graph = graph
        self._checked = checked
        self._name = name
        self._output_names = output_names
        self._initializers: list[bytes] = []
        self._nodes: list[bytes] = []
        self._made = 0
        self._names = [name for name, _ in graph.inputs]
        self._names += [f"v{number}" for number in range(len(graph.inputs), len(checked.values))]

    def model(self) -> bytes:
        graph = self._graph
        for number, constant in enumerate(graph.constants, start=len(graph.inputs)):
            self._initializers.append(_tensor(self._names[number], constant))
        first = len(graph.inputs) + len(graph.constants)
        for number, node in enumerate(graph.nodes, start=first):
            self._node(node, self._names[number])
        outputs = []
        for number, name in zip(graph.outputs, self._output_names, strict=True):
            self._put("Identity", [self._names[number]], name, {})
            outputs.append(_value(name, self._checked.values[number]))
        inputs = [_value(name, tensor) for name, tensor in graph.inputs]
        body = b"".join(
            [
                *(_bytes(1, node) for node in self._nodes),
                _bytes(2, self._name.encode()),
                *(_bytes(5, tensor) for tensor in self._initializers),
                *(_bytes(11, value) for value in inputs),
                *(_bytes(12, value) for value in outputs),
            ]
        )
        opset = _bytes(1, b"") + _number(2, OPSET)
        return _number(1, IR_VERSION) + _bytes(2, PRODUCER) + _bytes(7, body) + _bytes(8, opset)

    def _node(self, node: Node, output: str) -> None:
        inputs = [self._names[number] for number in node.inputs]
        attributes = dict(node.attributes)
        match node.op:
            case "Reshape" | "Expand":
                inputs.append(self._integers(attributes.pop("shape")))
            case "ReduceSum" | "ReduceMean" | "ReduceMax" | "ReduceMin":
                inputs.append(self._integers(attributes.pop("axes")))
            case "Slice":
                inputs += [self._integers(attributes.pop(name)) for name in ("starts", "ends", "axes", "steps")]
            case "Pad":
                inputs.append(self._integers(attributes.pop("pads")))
                value = attributes.pop("value")
                assert isinstance(value, int | float)
                inputs.append(self._initializer(Constant(Tensor("float32", ()), struct.pack("<f", value))))
            case "Conv" | "ConvTranspose":
                attributes["strides"] = (attributes.pop("stride"),)  # type: ignore[assignment]
                attributes["dilations"] = (attributes.pop("dilation"),)  # type: ignore[assignment]
                if node.op == "ConvTranspose":
                    attributes["output_padding"] = (attributes["output_padding"],)  # type: ignore[assignment]
            case "Cast":
                attributes["to"] = ELEMENTS[str(attributes["to"])]
        self._put(node.op, inputs, output, attributes)

    def _put(self, op: str, inputs: Iterable[str], output: str, attributes: dict[str, Attribute]) -> None:
        self._nodes.append(
            b"".join(
                [
                    *(_bytes(1, name.encode()) for name in inputs),
                    _bytes(2, output.encode()),
                    _bytes(4, op.encode()),
                    *(_bytes(5, _attribute(name, value)) for name, value in attributes.items()),
                ]
            )
        )

    def _integers(self, value: Attribute) -> str:
        assert isinstance(value, tuple)
        return self._initializer(Constant(Tensor("int64", (len(value),)), struct.pack(f"<{len(value)}q", *value)))

    def _initializer(self, constant: Constant) -> str:
        self._made += 1
        name = f"c{self._made}"
        self._initializers.append(_tensor(name, constant))
        return name


def _attribute(name: str, value: Attribute) -> bytes:
    head = _bytes(1, name.encode())
    if isinstance(value, tuple):
        return head + b"".join(_number(8, item) for item in value) + _number(20, 7)
    if isinstance(value, float):
        return head + _key(2, 5) + struct.pack("<f", value) + _number(20, 1)
    if isinstance(value, str):
        return head + _bytes(4, value.encode()) + _number(20, 3)
    return head + _number(3, value) + _number(20, 2)


def _tensor(name: str, constant: Constant) -> bytes:
    dims = b"".join(_number(1, size) for size in constant.type.shape)
    return dims + _number(2, ELEMENTS[constant.type.dtype]) + _bytes(8, name.encode()) + _bytes(9, constant.data)


def _value(name: str, tensor: Tensor) -> bytes:
    shape = b"".join(_bytes(1, _number(1, size)) for size in tensor.shape)
    kind = _number(1, ELEMENTS[tensor.dtype]) + _bytes(2, shape)
    return _bytes(1, name.encode()) + _bytes(2, _bytes(1, kind))


def _key(field: int, wire_type: int) -> bytes:
    return varint(field << 3 | wire_type)


def _number(field: int, value: int) -> bytes:
    return _key(field, 0) + varint(value & (1 << 64) - 1)


def _bytes(field: int, data: bytes) -> bytes:
    return _key(field, 2) + varint(len(data)) + data
