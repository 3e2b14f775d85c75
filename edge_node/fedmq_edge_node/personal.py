"""A gateway's own variant of the model in service, and which of the two scores there.

Owns the choice of what is fitted (the last layer, as FedPer and FedRep keep it: Arivazhagan et al. 2019,
arXiv:1912.00818; Collins et al. 2021, arXiv:2102.07078; or a copy of all, as Yu et al. 2020, arXiv:2002.04758), the
fitting, one step at a time, and the comparison. Refuses to know when there is time for it, what is saved and what is
told: that is `job`'s. Nothing here touches the model in training, so that a round is the same with it and without.

The rules kept here:

- A personal model begins at the version in service, never at an earlier personal model: it depends on that version, on
  the gateway's training windows and on nothing else, and cannot drift away over months.
- It is measured on held-out windows, which it was not fitted to, and must be better by the margin, there and as it
  would score there.
- No class may be recognised less often than by the shared model, by more than the margin: a fault that is missed for
  the sake of fewer false alarms would hide in the mean.
- Of a class that the gateway has no training windows of, the shared model keeps the word: what it takes for such a
  class stays that. A gateway that has only seen healthy machines therefore cannot unlearn a fault.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from fedmq_protocol.messages import PersonalOutcome, PersonalPolicy, PersonalTrial
from fedmq_protocol.task import ModelSpec, Objective, Recipe, Task, short, to_parameters

from fedmq_edge_node.memory import InService, Personal
from fedmq_edge_node.runtimes import Engine
from fedmq_edge_node.samples import Floats, Samples, Scaler, Targets
from fedmq_edge_node.trainer import batches, infer_all, judge, optimizer, recalls
from fedmq_edge_node.work import metric_told, read_scaler

__all__ = [
    "HELD_LEAST",
    "Fitting",
    "Scorer",
    "belongs",
    "better_by",
    "describe",
    "first_free",
    "scorer",
    "windows_mark",
]

HELD_LEAST = 30
"""Held-out windows below which a difference says nothing: one window is then more than any sensible margin."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scorer:
    """What scores windows on this gateway: the version in service, or the gateway's own variant of it."""

    task: Task
    version: int
    """In service, which the personal model was made of."""
    engine: Engine
    scaler: Scaler
    shared: Floats
    """`(P,) float32`, the version in service."""
    own: Floats | None
    """`(P,) float32`, the personal model; None where the shared one scores."""
    seen: tuple[int, ...] = ()
    """Classes that the personal model was fitted to."""

    @property
    def personal(self) -> bool:
        return self.own is not None

    def infer(self, windows: Floats) -> Floats:
        """Unscaled features `(n, features)` to class probabilities `(n, classes)`, or what else the model gives."""
        return infer_all(self._infer, self.scaler.apply(windows))

    def _infer(self, x: Floats) -> Floats:
        if self.own is None:
            return self.engine.infer(self.shared, x)
        out = self.engine.infer(self.own, x)
        if self.task.objective != "classify" or len(self.seen) == len(self.task.classes):
            return out
        shared = self.engine.infer(self.shared, x)
        unseen = ~np.isin(shared.argmax(axis=1), self.seen)
        return np.where(unseen[:, None], shared, out)


def scorer(model: InService, personal: Personal | None, engine: Engine) -> Scorer:
    """The one place that says which of the two scores. Raises ValueError where the scaler is not the task's."""
    shared = to_parameters(model.steps, model.task.grid_bits)
    own: Floats | None = None
    seen: tuple[int, ...] = ()
    if personal is not None and belongs(personal, model) and personal.found.outcome is PersonalOutcome.SERVES:
        own, seen = shared.copy(), personal.seen
        own[len(own) - len(personal.values) :] = personal.values
    return Scorer(
        task=model.task,
        version=model.version,
        engine=engine,
        scaler=read_scaler(model.scaler, model.task),
        shared=shared,
        own=own,
        seen=seen,
    )


def score(one: Scorer, windows: Floats, y: Targets) -> float:
    """The metric of what it says, on unscaled features `(n, features)` with labels or targets `(n,)`."""
    task = one.task
    found = judge(one.infer(windows), one.scaler.apply(windows), y, task.objective, task.windowing.remaining_most)
    return found.metric


def belongs(personal: Personal, model: InService) -> bool:
    """Whether it was made of this version."""
    return personal.base == model.digest and len(personal.values) <= len(model.steps)


_WHY = {
    PersonalOutcome.NO_BETTER: "it is not better by the margin",
    PersonalOutcome.CLASS_LOST: "it is worse at one of the classes",
    PersonalOutcome.FEW_WINDOWS: f"too few windows (at least {HELD_LEAST} must be held out)",
    PersonalOutcome.ONE_CLASS: "only one class is at hand here, so that nothing can be told apart",
    PersonalOutcome.FAILED: "it could not be trained",
}


def describe(found: PersonalTrial, version: int) -> str:
    """In a sentence, for people."""
    metrics = ""
    if found.metric is not None and found.shared is not None:
        metrics = f" ({found.metric / 1e4:.3f}, {found.shared / 1e4:.3f} shared, on {found.windows:,} held-out windows)"
    if found.outcome is PersonalOutcome.SERVES:
        return f"the personal model of version {version} scores here{metrics}"
    return f"version {version} scores here without a personal model: {_WHY[found.outcome]}{metrics}"


def first_free(model: ModelSpec, policy: PersonalPolicy) -> int:
    """Where in the flat vector what is fitted begins; it goes to the end.

    The head is the last block with more than one dimension, and what lies behind it: weights and biases of the last
    layer. Of somebody's own graph these are the last parameters of the module.
    """
    if policy.mode == "copy":
        return 0
    start = model.parameters
    for block in reversed(model.blocks):
        start -= block.count
        if len(block.shape) > 1:
            return start
    return 0


def windows_mark(samples: Samples) -> bytes:
    """Tells a gateway's windows from others, 8 bytes."""
    marked = hashlib.sha256()
    for array in (samples.train_x, samples.train_y, samples.held_x, samples.held_y):
        marked.update(np.ascontiguousarray(array).tobytes())
    return short(marked.digest())


class Fitting:
    """A personal model in the making. `step` until it says False, then `finish`; or leave it at any time.

    The same version, windows, policy and gateway give the same personal model on one engine.
    """

    def __init__(
        self, model: InService, policy: PersonalPolicy, samples: Samples, engine: Engine, *, gateway: str
    ) -> None:
        """Raises ValueError where the scaler is not the task's."""
        self.base = model.digest
        self.policy = policy
        self.seconds = 0.0
        """Spent so far; kept by whoever calls `step`."""
        self._model = model
        self._samples = samples
        self._free = first_free(model.task.model, policy)
        self._windows = windows_mark(samples)
        self._shared = scorer(model, None, engine)
        self._unsuited = _unsuited(model.task, samples)
        self._flat = self._shared.shared
        seed = hashlib.sha256(b"personal" + model.digest + gateway.encode()).digest()
        self._steps = _fit(
            engine,
            self._shared.shared,
            self._free,
            self._shared.scaler.apply(samples.train_x),
            samples.train_y,
            model.task.recipe,
            policy.epochs,
            np.random.Generator(np.random.PCG64(int.from_bytes(seed[:16], "little"))),
        )

    def step(self) -> bool:
        """One step of training; False when there is none left, or no use in any. Raises ValueError as the engine."""
        budget = self._model.task.recipe.time_budget_seconds
        if self._unsuited is not None or (budget and self.seconds >= budget):
            return False
        flat = next(self._steps, None)
        if flat is None:
            return False
        self._flat = flat
        return True

    def finish(self) -> Personal:
        """What came of it. Raises ValueError as the engine."""
        if self._unsuited is not None:
            return self._found(self._unsuited)
        values = self._flat[self._free :].copy()
        if not np.isfinite(values).all():
            return self._found(PersonalOutcome.FAILED)
        task, x = self._model.task, self._samples.held_x
        made = self._found(PersonalOutcome.SERVES, values=values)
        outs = [one.infer(x) for one in (self._shared, scorer(self._model, made, self._shared.engine))]
        y, scaled, most = self._samples.held_y, self._shared.scaler.apply(x), task.windowing.remaining_most
        shared, own = (judge(out, scaled, y, task.objective, most).metric for out in outs)
        outcome = PersonalOutcome.SERVES
        if not math.isfinite(own) or not better_by(self.policy.margin, own, shared, task.objective):
            outcome = PersonalOutcome.NO_BETTER
        elif task.objective == "classify" and _loses_a_class(self.policy.margin, y, *outs):
            outcome = PersonalOutcome.CLASS_LOST
        serves = outcome is PersonalOutcome.SERVES
        return self._found(
            outcome,
            values=values if serves else values[:0],
            metric=metric_told(own) if math.isfinite(own) else None,
            shared=metric_told(shared),
        )

    def failed(self) -> Personal:
        """Where it raised: not tried again with the same version and windows."""
        return self._found(PersonalOutcome.FAILED)

    def _found(
        self,
        outcome: PersonalOutcome,
        *,
        values: Floats | None = None,
        metric: int | None = None,
        shared: int | None = None,
    ) -> Personal:
        task = self._model.task
        return Personal(
            base=self.base,
            policy=self.policy,
            windows=self._windows,
            found=PersonalTrial(outcome=outcome, windows=len(self._samples.held_y), metric=metric, shared=shared),
            seen=_labels(self._samples.train_y) if task.objective == "classify" else (),
            values=np.zeros(0, dtype=np.float32) if values is None else values,
        )


def _fit(
    engine: Engine,
    start: Floats,
    free: int,
    x: Floats,
    y: Targets,
    recipe: Recipe,
    epochs: int,
    rng: np.random.Generator,
) -> Iterator[Floats]:
    """The parameters `(P,)` after each step, in one array that goes on changing; before `free` they stay as in `start`.

    With the recipe's proximal term this is Ditto's local objective (Li et al. 2021, arXiv:2012.04221, eq. 2).
    """
    flat = start.copy()
    step_down = optimizer(recipe)
    for _ in range(epochs):
        for rows, weights in batches(len(x), recipe.batch_size, rng):
            gradient, _ = engine.loss_grad(flat, x[rows], y[rows], weights)
            if recipe.proximal:
                gradient = gradient + np.float32(recipe.proximal) * (flat - start)
            flat[free:] -= step_down(gradient)[free:]
            yield flat


def _unsuited(task: Task, samples: Samples) -> PersonalOutcome | None:
    """Why these windows cannot tell a good personal model from a bad one; None where they can."""
    if len(samples.train_x) < task.min_windows or len(samples.held_x) < HELD_LEAST:
        return PersonalOutcome.FEW_WINDOWS
    if task.objective == "classify":
        both = set(_labels(samples.train_y)) & set(_labels(samples.held_y))
        return PersonalOutcome.ONE_CLASS if len(both) < 2 else None
    if task.objective == "reconstruct":
        # On healthy windows alone a copy that gives back everything, faults too, would look best.
        return PersonalOutcome.ONE_CLASS if len(_labels(samples.held_y)) < 2 else None
    return None


def better_by(margin: float, own: float, shared: float, objective: Objective) -> bool:
    """Whether a metric is better than another by the margin: in its own units, or of an error by that share of it."""
    if objective == "regress":
        return own <= (1.0 - margin) * shared and own < shared
    return own >= shared + margin


def _loses_a_class(margin: float, y: Targets, shared: Floats, own: Floats) -> bool:
    labels = np.asarray(y, dtype=np.int64)
    before, after = (recalls(labels, out.argmax(axis=1)) for out in (shared, own))
    return any(after[label] < before[label] - margin for label in before)


def _labels(y: Targets) -> tuple[int, ...]:
    return tuple(int(label) for label in np.unique(y))
