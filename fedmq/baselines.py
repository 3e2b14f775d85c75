"""The two yardsticks of federated learning: each gateway alone, and everything pooled.

Owns their training, with the task's own recipe and as many epochs as the federation has in all. Each gateway alone
scales features by its own statistics; the pooled model scales by pooled statistics and sees all windows at once,
which is exactly what a federation must not do: it is there to compare with, and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from fedmq_edge_node.runtimes import make_engine
from fedmq_edge_node.samples import Floats, Samples, Scaler, Targets, statistics
from fedmq_edge_node.trainer import evaluate, train
from fedmq_edge_node.work import read_scaler
from fedmq_models.bundle import from_bytes, start_of
from fedmq_protocol.task import Task, to_parameters

__all__ = ["local_only", "pooled"]

Labelled = tuple[Floats, Targets]


def local_only(
    gateways: Sequence[Samples], task: Task, rounds: int, test: Labelled | None = None, bundle: bytes | None = None
) -> list[float]:
    """The metric of each gateway's own model, on `test` (unscaled features and labels), else on its held-out windows.

    Gateways that have too few windows for the task are left out, as the federation leaves them out.
    """
    metrics = []
    for number, own in enumerate(gateways):
        if own.train_windows < task.min_windows:
            continue
        x, y = test if test is not None else (own.held_x, own.held_y)
        metrics.append(_train_and_evaluate((own.train_x, own.train_y), (x, y), task, rounds, number, bundle))
    return metrics


def pooled(
    gateways: Sequence[Samples], task: Task, rounds: int, test: Labelled | None = None, bundle: bytes | None = None
) -> float:
    """The metric of one model trained on all windows together, on `test`, else on all held-out windows."""
    everything = (
        np.concatenate([own.train_x for own in gateways]),
        np.concatenate([own.train_y for own in gateways]),
    )
    held = (
        np.concatenate([own.held_x for own in gateways]),
        np.concatenate([own.held_y for own in gateways]),
    )
    return _train_and_evaluate(everything, held if test is None else test, task, rounds, len(gateways), bundle)


def _train_and_evaluate(
    own: Labelled, test: Labelled, task: Task, rounds: int, stream: int, bundle: bytes | None
) -> float:
    if task.windowing.scaling == "none":
        scaler = read_scaler(None, task)
    else:
        count, mean, m2 = statistics(own[0])
        spread = np.sqrt(m2 / count)
        scaler = Scaler(mean=mean.astype(np.float32), scale=np.where(spread > 1e-6, spread, 1.0).astype(np.float32))
    opened = from_bytes(bundle) if bundle else None
    engine = make_engine(task.model, bundle=opened)
    rng = np.random.default_rng((task.seed, stream))
    flat = to_parameters(start_of(task.model, task.seed, task.grid_bits, opened), task.grid_bits)
    x = scaler.apply(own[0])
    for _ in range(rounds):
        flat = flat + train(engine, flat, x, own[1], task.recipe, rng, lambda: True).delta
    x = scaler.apply(test[0])
    return evaluate(engine, flat, x, test[1], task.objective, task.windowing.remaining_most).metric
