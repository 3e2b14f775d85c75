"""The engines: a flat parameter vector and a batch go in, a gradient or an output comes out.

Owns the arithmetic of the built-in dense models (softmax regression, multi-layer perceptron, autoencoder,
regressor) on numpy.
Refuses to know about rounds, optimisers, clipping or where a batch came from: whatever offers the two calls of
`Engine` can take the place of `NumpyEngine`. Every array is float32, and a model is one flat vector laid out as
`ModelSpec.layers` says. Rows with weight 0 pad a batch to its fixed size and change nothing.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from fedmq_protocol.task import ModelSpec
from numpy.typing import NDArray

__all__ = ["Engine", "NumpyEngine", "anomaly_score"]

Floats = NDArray[np.float32]


class Engine(Protocol):
    """What a trainer needs of a model: its gradient and its output."""

    def loss_grad(self, flat: Floats, x: Floats, y: NDArray[np.int64] | Floats, w: Floats) -> tuple[Floats, float]:
        """Gradient `(P,)` of the weighted mean loss, and that loss.

        flat: `(P,)` parameters; x: `(n, inputs)`; y: `(n,)` int64 labels, or whatever the loss compares with
        (an autoencoder ignores it, a regressor takes `(n,)` float32); w: `(n,)` weights, not all zero.
        """
        ...

    def infer(self, flat: Floats, x: Floats) -> Floats:
        """Class probabilities `(n, classes)`, the reconstruction `(n, inputs)` of an autoencoder, or the `(n, 1)` that
        a regressor predicts."""
        ...


class NumpyEngine:
    """The built-in dense models, forward and backward, in numpy."""

    def __init__(self, model: ModelSpec) -> None:
        self._model = model
        self._layers = model.layers
        self._objective = model.objective

    def loss_grad(self, flat: Floats, x: Floats, y: NDArray[np.int64] | Floats, w: Floats) -> tuple[Floats, float]:
        """Cross-entropy of a classifier; mean squared error of a regressor, and over the features of an autoencoder."""
        self._check(flat, x)
        total = float(w.sum())
        if len(w) != len(x) or not total > 0:
            raise ValueError(f"expected {len(x)} weights that add to more than 0, got {len(w)} that add to {total}")
        inputs = self._forward(flat, x)
        out = inputs.pop()
        share = (w / np.float32(total)).astype(np.float32)
        if self._objective == "classify":
            rows = np.arange(len(x))
            labels = np.asarray(y, dtype=np.int64)
            logs = _log_softmax(out)
            loss = -float(share @ logs[rows, labels])
            error = np.exp(logs)
            error[rows, labels] -= 1.0
            error *= share[:, None]
        else:
            wanted = x if self._objective == "reconstruct" else np.asarray(y, dtype=np.float32)[:, None]
            difference = out - wanted
            loss = float(share @ np.mean(difference * difference, axis=1))
            error = difference * (share[:, None] * np.float32(2.0 / out.shape[1]))
        gradient = np.empty_like(flat)
        for layer, given in zip(reversed(self._layers), reversed(inputs), strict=True):
            gradient[layer.start : layer.bias_start] = (given.T @ error).ravel()
            gradient[layer.bias_start : layer.stop] = error.sum(axis=0)
            if layer.start:
                weights = flat[layer.start : layer.bias_start].reshape(layer.inputs, layer.outputs)
                error = (error @ weights.T) * (given > 0)
        return gradient, loss

    def infer(self, flat: Floats, x: Floats) -> Floats:
        """Softmax probabilities `(n, classes)`, the reconstruction `(n, inputs)`, or predictions `(n, 1)`."""
        self._check(flat, x)
        out = self._forward(flat, x)[-1]
        return np.exp(_log_softmax(out)) if self._objective == "classify" else out

    def _forward(self, flat: Floats, x: Floats) -> list[Floats]:
        """What each layer was given, and last what the last one gave, before any softmax."""
        given = [x]
        for layer in self._layers:
            weights = flat[layer.start : layer.bias_start].reshape(layer.inputs, layer.outputs)
            out = given[-1] @ weights + flat[layer.bias_start : layer.stop]
            given.append(out if layer is self._layers[-1] else np.maximum(out, np.float32(0)))
        return given

    def _check(self, flat: Floats, x: Floats) -> None:
        if flat.dtype != np.float32 or flat.shape != (self._model.parameters,):
            raise ValueError(f"expected ({self._model.parameters},) float32 parameters, got {flat.shape} {flat.dtype}")
        if x.dtype != np.float32 or x.ndim != 2 or x.shape[1] != self._model.sizes[0]:
            raise ValueError(f"expected (n, {self._model.sizes[0]}) float32 features, got {x.shape} {x.dtype}")


def anomaly_score(x: Floats, reconstruction: Floats) -> Floats:
    """Mean squared difference per window `(n,)`, in units of the scaled features: about 1 explains nothing."""
    return np.asarray(np.mean((x - reconstruction) ** 2, axis=1), dtype=np.float32)


def _log_softmax(out: Floats) -> Floats:
    shifted = out - out.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)), dtype=np.float32)
