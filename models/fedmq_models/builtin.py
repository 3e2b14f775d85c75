"""The built-in models as graphs: dense ones for export and for other engines than numpy, and a CNN on raw windows.

Owns their layers, and how a flat vector lies in them. A graph is made from a `ModelSpec` alone and is the same on every
machine, so that it never travels. Refuses to know how a graph is run.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from fedmq_protocol.task import POOLED, ModelSpec

from fedmq_models.build import Builder, Value
from fedmq_models.graph import Graph

__all__ = ["grad_graph", "infer_graph"]

NORM_EPSILON = 1e-5
GROUP_CHANNELS = 8
"""Channels that are normalised together (Wu, He 2018, arXiv:1803.08494)."""


@lru_cache(maxsize=16)
def grad_graph(model: ModelSpec, batch: int) -> Graph:
    """flat `(P,)`, x `(batch, inputs)`, y `(batch,)` int64 or float32, w `(batch,)` -> gradient `(P,)`, loss `()`.

    The loss is the weighted mean of cross-entropy, or of the mean squared error; y of a model that gives back its
    inputs is not looked at. w is not all zero.
    """
    b = Builder()
    flat, x = b.input("flat", "float32", (model.parameters,)), b.input("x", "float32", (batch, model.sizes[0]))
    classifies = _classifies(model)
    y = b.input("y", "int64" if classifies or model.kind == "autoencoder" else "float32", (batch,))
    w = b.input("w", "float32", (batch,))
    parameters = _parameters(b, model, flat)
    out = _forward(b, model, parameters, x)
    if classifies:
        kinds = b.constant(np.arange(model.sizes[-1], dtype=np.int64))
        right = b.node("Equal", b.reshape(y, batch, 1), kinds)
        logs = b.node("LogSoftmax", out, axis=1)
        losses = b.node("Neg", b.reduce("ReduceSum", b.node("Mul", logs, b.node("Cast", right, to="float32")), 1))
    else:
        target = x if model.kind == "autoencoder" else b.reshape(y, batch, 1)
        error = b.node("Sub", out, target)
        losses = b.reduce("ReduceMean", b.node("Mul", error, error), 1)
    share = b.node("Div", w, b.reduce("ReduceSum", w, 0))
    loss = b.reduce("ReduceSum", b.node("Mul", losses, share), 0)
    gradients = b.gradient(loss, parameters)
    parts = [b.reshape(part, int(np.prod(b.shape(part)))) for part in gradients]
    return b.graph(b.node("Concat", *parts, axis=0), loss)


@lru_cache(maxsize=16)
def infer_graph(model: ModelSpec, batch: int) -> Graph:
    """flat `(P,)`, x `(batch, inputs)` -> class probabilities `(batch, classes)`, or what the last layer gives."""
    b = Builder()
    flat, x = b.input("flat", "float32", (model.parameters,)), b.input("x", "float32", (batch, model.sizes[0]))
    out = _forward(b, model, _parameters(b, model, flat), x)
    return b.graph(b.node("Softmax", out, axis=1) if _classifies(model) else out)


def _classifies(model: ModelSpec) -> bool:
    return model.kind in ("softmax", "mlp", "cnn1d")


def _parameters(b: Builder, model: ModelSpec, flat: Value) -> list[Value]:
    """Each block of the flat vector, in order."""
    values, start = [], 0
    for block in model.blocks:
        stop = start + block.count
        part = b.node("Slice", flat, starts=(start,), ends=(stop,), axes=(0,), steps=(1,))
        values.append(b.reshape(part, *block.shape))
        start = stop
    return values


def _forward(b: Builder, model: ModelSpec, parameters: list[Value], x: Value) -> Value:
    if model.kind == "cnn1d":
        return _cnn(b, model, parameters, x)
    for place in range(0, len(parameters), 2):
        weight, bias = parameters[place : place + 2]
        x = b.node("Add", b.node("MatMul", x, weight), bias)
        if place + 2 < len(parameters):
            x = b.node("Relu", x)
    return x


def _cnn(b: Builder, model: ModelSpec, parameters: list[Value], x: Value) -> Value:
    """Each window to mean 0 and spread 1, since the level differs from machine to machine; convolutions, each with
    GroupNorm, the larger of two neighbours in time, and ReLU; the mean over time; a dense layer."""
    batch, samples = b.shape(x)
    x = _normalised(b, x)
    x = b.reshape(x, batch, 1, samples)
    *layers, weight, bias = parameters
    for place, conv in enumerate(model.convolutions):
        kernel, scale, shift = layers[3 * place : 3 * place + 3]
        pad = conv.kernel // 2
        x = b.node("Conv", x, kernel, stride=conv.stride, pads=(pad, pad), dilation=1)
        x = b.group_norm(x, max(1, conv.outputs // GROUP_CHANNELS), scale, shift, NORM_EPSILON)
        x = b.node("Relu", _pooled(b, x))
    return b.node("Add", b.node("MatMul", b.reduce("ReduceMean", x, 2), weight), bias)


def _pooled(b: Builder, x: Value) -> Value:
    """The largest of `POOLED` neighbours in time; what is over at the end is left out."""
    batch, channels, length = b.shape(x)
    count = length // POOLED
    if length % POOLED:
        x = b.node("Slice", x, starts=(0,), ends=(count * POOLED,), axes=(2,), steps=(1,))
    # Runtimes are slow where the last axis is short. The shapes differ so that onnxruntime does not undo the transpose.
    turned = b.node("Transpose", b.reshape(x, batch * channels, count, POOLED), perm=(0, 2, 1))
    return b.reduce("ReduceMax", b.reshape(turned, batch, channels, POOLED, count), 2)


def _normalised(b: Builder, x: Value) -> Value:
    """To mean 0 and spread 1 along the last axis."""
    last = len(b.shape(x)) - 1
    centred = b.node("Sub", x, b.reduce("ReduceMean", x, last, keep=True))
    variance = b.reduce("ReduceMean", b.node("Mul", centred, centred), last, keep=True)
    return b.node("Div", centred, b.node("Sqrt", b.node("Add", variance, b.constant(NORM_EPSILON))))
