"""What the models in service say of a stretch of signal, for `watching`.

Owns how a stretch becomes a task's windows, and many windows' answers one opinion: probabilities are averaged, scores
and remaining lives are medians, so that one odd window says little. Somebody's own model, from a bundle, is held to the
same: by its objective it tells classes, a score or a remaining life. Refuses to know which of the shared and the
personal model scores (`personal.scorer` does), where the memory lies, and what follows from an opinion.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping

import numpy as np
from fedmq_models.bundle import Bundle
from fedmq_models.graph import GraphError
from fedmq_protocol.task import ModelSpec, Task
from numpy.typing import NDArray

from fedmq_edge_node.memory import GatewayState
from fedmq_edge_node.personal import Scorer, scorer
from fedmq_edge_node.runtimes import Engine, GraphStopped, anomaly_score
from fedmq_edge_node.samples import Preparation, featured, rates_agree
from fedmq_edge_node.watching import Opinion

__all__ = ["ScoringModel", "in_service"]

log = logging.getLogger("fedmq.watch")

MOST_WINDOWS = 64
"""Of a stretch, evenly over it: a gateway has other work too."""


class ScoringModel:
    """A `watching.Model` of a task's version in service, or of the gateway's own variant of it."""

    def __init__(self, one: Scorer, mark: str, preparation: Preparation | None = None) -> None:
        self._scorer = one
        self._preparation = preparation
        self._mark = mark
        self._failed = False

    @property
    def name(self) -> str:
        return self._scorer.task.name

    @property
    def mark(self) -> str:
        return self._mark

    @property
    def version(self) -> int:
        return self._scorer.version

    def opinion(self, signal: NDArray[np.float64], rate_hz: float) -> Opinion | None:
        task = self._scorer.task
        windows = None if self._failed else _windows(signal, rate_hz, task)
        if windows is None:
            return None
        try:
            x = featured(windows, task.windowing, self._preparation)
            out = self._scorer.infer(x).astype(np.float64)
            if not np.isfinite(out).all():
                raise GraphError("it answers with what is no number")
        except (GraphStopped, GraphError) as error:
            # A graph's time and memory are bounded, but not for every window again; zones and limits judge on.
            self._failed = True
            log.error("%s: version %d does not score here any more: %s", task.name, self.version, error)
            return None
        if task.objective == "classify":
            return Opinion(classes=dict(zip(task.classes, out.mean(axis=0).tolist(), strict=True)))
        if task.objective == "regress":
            most = task.windowing.remaining_most
            left = float(np.median(out[:, 0])) * most
            return Opinion(remaining=min(max(left, 0.0), most), remaining_most=most)
        scaled = self._scorer.scaler.apply(x)
        return Opinion(score=float(np.median(anomaly_score(scaled, out.astype(np.float32)))))


def in_service(
    states: Mapping[str, GatewayState],
    engine: Callable[[Task, Bundle | None], Engine],
    wanted: Iterable[str] = (),
    *,
    bundles: Callable[[ModelSpec], Bundle | None] = lambda model: None,
    preparation: Callable[[Bundle], Preparation | None] = lambda bundle: None,
) -> list[ScoringModel]:
    """The model of each task that has one in service; `wanted` names tasks, none stands for all.

    `bundles` finds the bundle of a graph, and `preparation` makes what takes raw windows to its inputs. A model that
    cannot be used (an engine that is not installed, a bundle that is not at hand) is told and left out.
    """
    names = set(wanted)
    models = []
    for name, state in states.items():
        service = state.in_service
        if service is None or (names and name not in names):
            continue
        bundle = bundles(service.task.model)
        if service.task.model.bundle and bundle is None:
            log.warning("%s: version %d does not score here: its bundle is not at hand", name, service.version)
            continue
        try:
            one = scorer(service, state.personal, engine(service.task, bundle))
            prepared = None if bundle is None else preparation(bundle)
        except ValueError as error:
            log.warning("%s: version %d does not score here: %s", name, service.version, error)
            continue
        own = "own" if one.personal else "shared"
        models.append(
            ScoringModel(one, f"{service.lineage}-{service.version}-{service.digest[:4].hex()}-{own}", prepared)
        )
    return models


def _windows(signal: NDArray[np.float64], rate_hz: float, task: Task) -> NDArray[np.float64] | None:
    """`(n, channels, samples)`; None where the signal does not fit the task."""
    windowing = task.windowing
    if not rates_agree(rate_hz, windowing.sampling_rate_hz) or len(signal) < windowing.samples:
        return None
    first_is_enough = windowing.features == "vibration-1" and windowing.channels == 1
    if signal.shape[1] != windowing.channels and not first_is_enough:
        return None
    every = np.lib.stride_tricks.sliding_window_view(signal[:, : windowing.channels], windowing.samples, axis=0)
    cut = every[:: windowing.hop]
    return cut[:: -(-len(cut) // MOST_WINDOWS)]
