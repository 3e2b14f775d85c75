"""Bundles of the built-in models: what somebody would have brought, made without any authoring tool."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec
import numpy as np
from fedmq_models.build import Builder
from fedmq_models.builtin import grad_graph, infer_graph
from fedmq_models.bundle import Bundle, Manifest, Parameter, to_bytes
from fedmq_models.graph import Node, Tensor
from fedmq_protocol.task import ModelSpec, Windowing

BATCH = 32


def bundle_of(model: ModelSpec, **changes: Any) -> Bundle:
    """The graphs of a built-in classifier as a bundle."""
    manifest: dict[str, Any] = {
        "name": "brought",
        "inputs": (model.sizes[0],),
        "outputs": model.sizes[-1],
        "loss": "cross_entropy",
        "batch": BATCH,
        "parameters": tuple(Parameter(name=f"p{i}", block=block) for i, block in enumerate(model.blocks)),
    }
    return Bundle(
        manifest=Manifest(**(manifest | changes)),
        grad=grad_graph(model, BATCH),
        infer=infer_graph(model, BATCH),
        infer_one=infer_graph(model, 1),
    )


def regressor_of(model: ModelSpec) -> Bundle:
    """The graphs of a built-in regressor as a bundle, whose targets are a column, as PyTorch has them."""
    bundle = bundle_of(model)
    graph = bundle.grad
    first = len(graph.inputs) + len(graph.constants)

    def moved(number: int) -> int:
        return first if number == 2 else number + (number >= first)

    nodes = [msgspec.structs.replace(node, inputs=tuple(map(moved, node.inputs))) for node in graph.nodes]
    grad = msgspec.structs.replace(
        graph,
        inputs=(*graph.inputs[:2], ("y", Tensor("float32", (BATCH, 1))), *graph.inputs[3:]),
        nodes=(Node("Reshape", (2,), {"shape": (BATCH,)}), *nodes),
        outputs=tuple(map(moved, graph.outputs)),
    )
    manifest = msgspec.structs.replace(bundle.manifest, loss="squared_error")
    return msgspec.structs.replace(bundle, grad=grad, manifest=manifest)


def with_values(bundle: Bundle, seed: int = 7) -> Bundle:
    """The same that starts from parameters which somebody has trained, or at least which no task's seed draws."""
    values = np.random.default_rng(seed).normal(size=bundle.manifest.length) / 4
    return msgspec.structs.replace(bundle, initial=values.astype("<f4").tobytes())


def with_preparation(bundle: Bundle, samples: int = 8, channels: int = 2) -> Bundle:
    """The same that takes what it makes itself of raw windows: each feature is a mix of the samples' squares."""
    features = bundle.manifest.inputs[0]
    b = Builder()
    window = b.input("window", "float32", (1, samples * channels))
    mixed = np.random.default_rng(1).normal(size=(samples * channels, features)).astype(np.float32)
    out = b.node("MatMul", b.node("Mul", window, window), b.constant(mixed))
    windowing = Windowing(features="bundle", samples=samples, hop=samples, channels=channels, scaling="none")
    return msgspec.structs.replace(
        bundle, prepare=b.graph(out), manifest=msgspec.structs.replace(bundle.manifest, windowing=windowing)
    )


def with_noise(bundle: Bundle) -> Bundle:
    """The same with a number drawn for each window of a step, whose mean is added to the loss."""
    graph = bundle.grad
    place = len(graph.inputs)

    def moved(number: int) -> int:
        return number if number < place else number + 1

    nodes = [msgspec.structs.replace(node, inputs=tuple(map(moved, node.inputs))) for node in graph.nodes]
    last = place + 1 + len(graph.constants) + len(nodes)
    nodes += [Node("ReduceMean", (place,), {"axes": (0,), "keepdims": 0}), Node("Add", (moved(graph.outputs[1]), last))]
    grad = msgspec.structs.replace(
        graph,
        inputs=(*graph.inputs, ("noise_0", Tensor("float32", (BATCH,)))),
        nodes=tuple(nodes),
        outputs=(moved(graph.outputs[0]), last + 1),
    )
    return msgspec.structs.replace(
        bundle, grad=grad, manifest=msgspec.structs.replace(bundle.manifest, noise=((BATCH,),))
    )


def slow(bundle: Bundle, nodes: int = 300, side: int = 1024) -> Bundle:
    """The same, but that a step takes some tenths of a second: a long chain over a large square, within all bounds."""
    graph = bundle.grad
    first = len(graph.inputs) + len(graph.constants) + len(graph.nodes)
    square = [Node("Reshape", (3,), {"shape": (1, BATCH)}), Node("Expand", (first,), {"shape": (side, BATCH)})]
    square.append(Node("Concat", (first + 1,) * (side // BATCH), {"axis": 1}))
    chain = [Node("Tanh", (first + 2 + place,)) for place in range(nodes)]
    last = first + 2 + nodes
    # Part of the loss, so that no engine leaves it out.
    end = [Node("ReduceMean", (last,), {"axes": (0, 1), "keepdims": 0}), Node("Add", (graph.outputs[1], last + 1))]
    grad = msgspec.structs.replace(
        graph, nodes=(*graph.nodes, *square, *chain, *end), outputs=(graph.outputs[0], last + 2)
    )
    return msgspec.structs.replace(bundle, grad=grad)


def brought(bundle: Bundle) -> tuple[bytes, ModelSpec]:
    """The file, and the model as a task names it."""
    data = to_bytes(bundle)
    return data, bundle.model(hashlib.sha256(data).digest(), len(data))
