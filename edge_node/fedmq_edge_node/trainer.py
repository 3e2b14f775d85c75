"""Epochs over an engine: from the model of the round to this gateway's own delta, and what a model is worth.

Owns the optimiser (stochastic gradient descent with momentum), FedProx's proximal term, the clipping of the delta and
the metrics. Works on the flat vector alone, so that any engine can be trained. Refuses to know about recordings,
rounds, codecs and clocks: features come in scaled, randomness comes in as a generator, and whether to go on is asked
before every batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from fedmq_protocol.task import Recipe
from numpy.typing import NDArray

from fedmq_edge_node.runtimes import Engine, anomaly_score

__all__ = ["Evaluation", "TrainResult", "evaluate", "train"]

Floats = NDArray[np.float32]

EVALUATION_BATCH = 1024


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What local training came to. `delta` is `(P,)` float32 and at most `Recipe.clip_norm` long."""

    delta: Floats
    loss: float
    """Mean over the windows of the last epoch that was begun, as they were seen; nan when no step was made."""
    steps: int
    stopped: bool
    """True when `keep_going` said no: the delta then holds the work done so far."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A model on labelled windows."""

    loss: float
    metric: float
    metric_name: str
    """`macro_f1` for classes; for an autoencoder `auc` where healthy and faulty windows are at hand, else `r2`."""
    accuracy: float
    """Share of windows with the right class; nan for an autoencoder."""
    windows: int


def train(
    engine: Engine,
    start: Floats,
    x: Floats,
    y: NDArray[np.int64],
    recipe: Recipe,
    rng: np.random.Generator,
    keep_going: Callable[[], bool],
) -> TrainResult:
    """Trains from `start` `(P,)` on scaled features `(n, inputs)` and labels `(n,)`; `start` stays as it is.

    Raises ValueError without windows, and when the loss or the delta is not finite (a learning rate too high).
    """
    if len(x) == 0 or len(x) != len(y):
        raise ValueError(f"expected as many labels as windows, and at least one, got {len(y)} for {len(x)}")
    flat = start.copy()
    velocity = np.zeros_like(flat)
    steps, stopped, loss_sum, seen = 0, False, 0.0, 0.0
    for _ in range(recipe.local_epochs):
        if stopped:
            break
        loss_sum, seen = 0.0, 0.0
        for rows, weights in _batches(len(x), recipe.batch_size, rng):
            if not keep_going():
                stopped = True
                break
            gradient, loss = engine.loss_grad(flat, x[rows], y[rows], weights)
            if recipe.proximal:
                # FedProx, Li et al. 2020 (arXiv:1812.06127), eq. 2: + mu/2 |flat - start|^2.
                gradient = gradient + np.float32(recipe.proximal) * (flat - start)
            velocity = np.float32(recipe.momentum) * velocity + gradient
            flat -= np.float32(recipe.learning_rate) * velocity
            steps += 1
            filled = float(weights.sum())
            loss_sum += loss * filled
            seen += filled
    delta = flat - start
    norm = float(np.linalg.norm(delta.astype(np.float64)))
    if not np.isfinite(norm) or not np.isfinite(loss_sum):
        raise ValueError(
            f"training diverged after {steps} steps: expected a finite loss and delta, got loss {loss_sum} and norm "
            f"{norm}; lower the task's learning_rate ({recipe.learning_rate})"
        )
    if norm > recipe.clip_norm:
        delta *= np.float32(recipe.clip_norm / norm)
    return TrainResult(delta=delta, loss=loss_sum / seen if seen else float("nan"), steps=steps, stopped=stopped)


def evaluate(engine: Engine, flat: Floats, x: Floats, y: NDArray[np.int64], classes: Sequence[str]) -> Evaluation:
    """Loss and metric on scaled features `(n, inputs)` with labels `(n,)`; no classes means an autoencoder.

    Macro-F1 is the plain mean of F1 over the labels *present in y*: a class that no window has is left out, but
    predicting it is still wrong. For an autoencoder a label is 0 (healthy) or another number (faulty); R2 is over
    the healthy windows where there are some. Raises ValueError without windows.
    """
    if len(x) == 0 or len(x) != len(y):
        raise ValueError(f"expected as many labels as windows, and at least one, got {len(y)} for {len(x)}")
    out = np.concatenate(
        [engine.infer(flat, x[start : start + EVALUATION_BATCH]) for start in range(0, len(x), EVALUATION_BATCH)]
    )
    if classes:
        likelihood = np.maximum(out[np.arange(len(y)), y].astype(np.float64), 1e-12)
        predicted = out.argmax(axis=1)
        return Evaluation(
            loss=-float(np.log(likelihood).mean()),
            metric=macro_f1(y, predicted),
            metric_name="macro_f1",
            accuracy=float(np.mean(predicted == y)),
            windows=len(y),
        )
    scores = anomaly_score(x, out).astype(np.float64)
    healthy = y == 0
    counted = healthy if healthy.any() else np.ones(len(y), dtype=bool)
    if healthy.any() and not healthy.all():
        name, metric = "auc", area_under_curve(scores[~healthy], scores[healthy])
    else:
        name, metric = "r2", _r2(x[counted], out[counted])
    return Evaluation(
        loss=float(scores[counted].mean()), metric=metric, metric_name=name, accuracy=float("nan"), windows=len(y)
    )


def macro_f1(y: NDArray[np.int64], predicted: NDArray[np.int64]) -> float:
    """Plain mean of F1 over the labels present in `y`; both `(n,)`."""
    scores = []
    for label in np.unique(y):
        right = int(np.sum((y == label) & (predicted == label)))
        scores.append(2.0 * right / (int(np.sum(y == label)) + int(np.sum(predicted == label))))
    return float(np.mean(scores))


def area_under_curve(faulty: NDArray[np.float64], healthy: NDArray[np.float64]) -> float:
    """Chance that a faulty window scores above a healthy one, ties half: area under the ROC (Hanley, McNeil 1982)."""
    ordered = np.sort(healthy)
    below = np.searchsorted(ordered, faulty, side="left")
    not_above = np.searchsorted(ordered, faulty, side="right")
    return float(np.mean((below + not_above) / 2.0) / len(healthy))


def _r2(x: Floats, reconstruction: Floats) -> float:
    """Share of the variance that is explained; 0 where there is no variance to explain."""
    wide = x.astype(np.float64)
    total = float(np.sum((wide - wide.mean(axis=0)) ** 2))
    return 1.0 - float(np.sum((wide - reconstruction) ** 2)) / total if total > 0 else 0.0


def _batches(
    windows: int, size: int, rng: np.random.Generator
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Row numbers and weights of one epoch, shuffled; the last batch is padded with row 0 at weight 0."""
    order = rng.permutation(windows).astype(np.int64)
    for start in range(0, windows, size):
        rows = np.zeros(size, dtype=np.int64)
        weights = np.zeros(size, dtype=np.float32)
        part = order[start : start + size]
        rows[: len(part)] = part
        weights[: len(part)] = 1.0
        yield rows, weights
