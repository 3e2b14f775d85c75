"""Epochs over an engine: from the model of the round to this gateway's own delta, and what a model is worth.

Owns the optimisers (stochastic gradient descent with momentum, Adam), FedProx's proximal term, the clipping of the
delta and the metrics. Works on the flat vector alone, so that any engine can be trained. Refuses to know about
recordings, rounds, codecs and clocks: features come in scaled, randomness comes in as a generator, time as a function,
and whether to go on is asked before every batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from fedmq_protocol.task import Objective, Recipe
from numpy.typing import NDArray

from fedmq_edge_node.runtimes import Engine, anomaly_score

__all__ = ["Evaluation", "TrainResult", "batches", "evaluate", "infer_all", "judge", "optimizer", "recalls", "train"]

Floats = NDArray[np.float32]

ADAM_BETAS = (0.9, 0.999)
ADAM_EPSILON = 1e-8
"""What Kingma and Ba recommend (2015, arXiv:1412.6980, algorithm 1)."""

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
    """`macro_f1` for classes; for an autoencoder `auc` where healthy and faulty windows are at hand, else `r2`;
    for a regressor `rmse` in samples, of which less is better."""
    accuracy: float
    """Share of windows with the right class; nan for a model that does not classify."""
    windows: int


def train(
    engine: Engine,
    start: Floats,
    x: Floats,
    y: NDArray[np.int64] | Floats,
    recipe: Recipe,
    rng: np.random.Generator,
    keep_going: Callable[[], bool],
    now: Callable[[], float] | None = None,
) -> TrainResult:
    """Trains from `start` `(P,)` on scaled features `(n, inputs)` and labels `(n,)`; `start` stays as it is.

    `now` tells seconds since whenever: by it the recipe's time budget is kept, after one step at least. Without it the
    epochs alone say when training ends.
    Raises ValueError without windows, and when the loss or the delta is not finite (a learning rate too high).
    """
    if len(x) == 0 or len(x) != len(y):
        raise ValueError(f"expected as many labels as windows, and at least one, got {len(y)} for {len(x)}")
    flat = start.copy()
    step_down = optimizer(recipe)
    ends_at = now() + recipe.time_budget_seconds if now is not None and recipe.time_budget_seconds else math.inf
    steps, stopped, spent, loss_sum, seen = 0, False, False, 0.0, 0.0
    for _ in range(recipe.local_epochs):
        spent = spent or bool(steps and now is not None and now() >= ends_at)
        if stopped or spent:
            break
        loss_sum, seen = 0.0, 0.0
        for rows, weights in batches(len(x), recipe.batch_size, rng):
            if not keep_going():
                stopped = True
                break
            if seen and now is not None and now() >= ends_at:
                spent = True
                break
            gradient, loss = engine.loss_grad(flat, x[rows], y[rows], weights)
            if recipe.proximal:
                # FedProx, Li et al. 2020 (arXiv:1812.06127), eq. 2: + mu/2 |flat - start|^2.
                gradient = gradient + np.float32(recipe.proximal) * (flat - start)
            flat -= step_down(gradient)
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


def optimizer(recipe: Recipe) -> Callable[[Floats], Floats]:
    """From a gradient to what it takes off the parameters, both `(P,)`; its memory of earlier ones begins at 0."""
    return _adam(recipe) if recipe.optimizer == "adam" else _descent(recipe)


def _descent(recipe: Recipe) -> Callable[[Floats], Floats]:
    momentum, rate = np.float32(recipe.momentum), np.float32(recipe.learning_rate)
    velocity: Floats | np.float32 = np.float32(0)

    def step(gradient: Floats) -> Floats:
        nonlocal velocity
        velocity = momentum * velocity + gradient
        return np.asarray(rate * velocity, dtype=np.float32)

    return step


def _adam(recipe: Recipe) -> Callable[[Floats], Floats]:
    """Adam (Kingma, Ba 2015, arXiv:1412.6980, algorithm 1)."""
    keep_first, keep_second = ADAM_BETAS
    first: Floats | np.float32 = np.float32(0)
    second: Floats | np.float32 = np.float32(0)
    count = 0

    def step(gradient: Floats) -> Floats:
        nonlocal first, second, count
        count += 1
        first = np.float32(keep_first) * first + np.float32(1 - keep_first) * gradient
        second = np.float32(keep_second) * second + np.float32(1 - keep_second) * gradient * gradient
        rate = np.float32(recipe.learning_rate / (1 - keep_first**count))
        spread = np.sqrt(second / np.float32(1 - keep_second**count)) + np.float32(ADAM_EPSILON)
        return np.asarray(rate * first / spread, dtype=np.float32)

    return step


def evaluate(
    engine: Engine,
    flat: Floats,
    x: Floats,
    y: NDArray[np.int64] | Floats,
    objective: Objective,
    remaining_most: float = 1.0,
) -> Evaluation:
    """Loss and metric on scaled features `(n, inputs)` with labels or targets `(n,)`; see `judge`. Raises ValueError
    without windows."""
    if len(x) == 0 or len(x) != len(y):
        raise ValueError(f"expected as many labels as windows, and at least one, got {len(y)} for {len(x)}")
    return judge(infer_all(lambda part: engine.infer(flat, part), x), x, y, objective, remaining_most)


def infer_all(infer: Callable[[Floats], Floats], x: Floats) -> Floats:
    """What `infer` says of each window, `(n, outputs)`, some at a time: all at once may not fit into memory."""
    return np.concatenate([infer(x[start : start + EVALUATION_BATCH]) for start in range(0, len(x), EVALUATION_BATCH)])


def judge(
    out: Floats,
    x: Floats,
    y: NDArray[np.int64] | Floats,
    objective: Objective,
    remaining_most: float = 1.0,
) -> Evaluation:
    """Loss and metric of what was said, `out` `(n, outputs)`, of scaled features `(n, inputs)` with labels or targets.

    Macro-F1 is the plain mean of F1 over the labels *present in y*: a class that no window has is left out, but
    predicting it is still wrong. For an autoencoder a label is 0 (healthy) or another number (faulty); R2 is over
    the healthy windows where there are some. A regressor's targets are float32 shares of `remaining_most` samples:
    its loss is in those shares, its RMSE in samples.
    """
    if objective == "regress":
        squared = float(np.mean((out[:, 0].astype(np.float64) - y) ** 2))
        rmse = remaining_most * math.sqrt(squared)
        return Evaluation(loss=squared, metric=rmse, metric_name="rmse", accuracy=float("nan"), windows=len(y))
    if objective == "classify":
        labels = np.asarray(y, dtype=np.int64)
        likelihood = np.maximum(out[np.arange(len(y)), labels].astype(np.float64), 1e-12)
        predicted = out.argmax(axis=1)
        return Evaluation(
            loss=-float(np.log(likelihood).mean()),
            metric=macro_f1(labels, predicted),
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


def recalls(y: NDArray[np.int64], predicted: NDArray[np.int64]) -> dict[int, float]:
    """Share of the windows of each label present in `y` that were recognised; both `(n,)`."""
    return {int(label): float(np.mean(predicted[y == label] == label)) for label in np.unique(y)}


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


def batches(
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
