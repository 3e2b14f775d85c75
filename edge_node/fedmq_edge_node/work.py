"""One message to one new state of the gateway, and one plan to one answer. Pure: no clock, no disk, no network.

The rules kept here:

- One update at most is pending. While it is, `residual` holds y = delta + old residual, and the payload is not yet
  subtracted. Its verdict settles it, once: accepted, residual = y - payload; put back, residual = y; refused for what
  it is, residual = 0 (put back, it would be refused for ever). A plan is a verdict, too, on an accepted update to the
  round before it.
- The model is integers. A delta, a chain, a merged delta and a keyframe all end on the digest that was promised,
  or the state does not change.
- Another lineage means: another history. Residual, pending update and model start again. The model in service stays:
  only a trial, on the windows that this gateway holds out, puts another in its place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import msgspec
import numpy as np
from fedmq_compression.pipeline import (
    CodecSpec,
    Contexts,
    PayloadError,
    decode,
    decode_integers,
    encode,
)
from fedmq_protocol.messages import (
    Assignment,
    CatchUp,
    CatchUpKind,
    Evaluation,
    Level,
    Receipt,
    Release,
    RoundKind,
    RoundPlan,
    Trial,
    Verdict,
    check_of,
)
from fedmq_protocol.task import UPLINK_STEP, Codec, ModelSpec, Task, initial_steps, model_digest, short, to_parameters
from numpy.typing import NDArray

from fedmq_edge_node.memory import GatewayState, InService, Pending, Tried
from fedmq_edge_node.runtimes import Engine
from fedmq_edge_node.samples import PREPARED, Samples, Scaler
from fedmq_edge_node.trainer import evaluate, train

__all__ = [
    "ModelMismatch",
    "Trained",
    "adopt",
    "advance",
    "catch_up",
    "comparable",
    "decided",
    "held_mark",
    "keyframe",
    "read_scaler",
    "sent_by",
    "serves",
    "settle",
    "settle_by_plan",
    "start_over",
    "train_update",
    "trial",
]

EVALUATION_SCALE = 10_000
"""Metrics and losses travel as whole 1/10,000."""

KEPT_CONTEXTS = 1 << 16
"""Parameters up to which contexts stay in memory: those that an update was coded along also decode the next delta."""

LARGEST_LOSS = 1e6
LARGEST_METRIC = (1 << 31) - 1
"""In whole 1/10,000, either way."""

LARGEST_VALUE = np.float32(63.0)

MAX_CHAIN = 500
"""Deltas in a chain, of which each costs a ranking of all parameters; the coordinator sends no longer one."""


class ModelMismatch(ValueError):
    """What came does not lead to the model that was promised."""


def adopt(state: GatewayState, welcome: Assignment, start: NDArray[np.int32] | None = None) -> GatewayState:
    """The state after a welcome. `start` is version 0 where the task's bundle holds it; None: the seed draws it.

    Raises ModelMismatch when that is not what the task says its initial parameters are.
    """
    task = welcome.task or state.task
    if task is None:
        raise ModelMismatch("the welcome brings no task, and none is at hand")
    new_lineage = welcome.lineage != state.lineage or (welcome.task is not None and welcome.task != state.task)
    restored = not new_lineage and state.counter < welcome.counter
    if start is not state.start:
        state = replace(state, start=start)
    if new_lineage:
        first = _start(state, task)
        if short(model_digest(first)) != task.initial:
            raise ModelMismatch(
                f"the initial parameters of task {task.name!r} have digest "
                f"{short(model_digest(first)).hex()} here, {task.initial.hex()} expected: different software?"
            )
        state = replace(state, lineage=welcome.lineage, task=task, scaler=None, version=0, steps=first, answered=0)
    if new_lineage or restored:
        # A counter behind the coordinator's record: this disk was restored from an old image, and its residual
        # and pending update may have been counted already.
        state = replace(state, residual=np.zeros(task.model.parameters, dtype=np.float32), pending=None)
    if restored and welcome.plan is not None and welcome.plan.kind is not RoundKind.REST:
        # It may have answered this round before, with other bytes: the next plan would say "accepted" of those.
        state = replace(state, answered=max(state.answered, welcome.plan.round_id))
    if state.counter < welcome.counter:
        state = replace(state, counter=welcome.counter)
    if welcome.scaler is not None and welcome.scaler != state.scaler:
        state = replace(state, scaler=welcome.scaler)
    return state


def advance(state: GatewayState, plan: RoundPlan, delta: bytes | None) -> GatewayState:
    """The state at the plan's base version, given the plan's `delta` (already fetched where it came in chunks).

    Raises ModelMismatch when the gateway is at neither the base nor the version before: it must catch up.
    """
    if plan.scaler is not None and plan.scaler != state.scaler:
        state = replace(state, scaler=plan.scaler)
    if state.version == plan.base:
        if check_of(model_digest(state.steps)) != plan.model:
            raise ModelMismatch(f"version {state.version} here is not the coordinator's")
        return state
    if state.version + 1 != plan.base or delta is None:
        raise ModelMismatch(f"version {state.version} is at hand, the plan starts from {plan.base}")
    steps = state.steps + _delta_steps(state, state.steps, plan.level, delta)
    found = check_of(model_digest(steps))
    if found != plan.model:
        raise ModelMismatch(f"version {plan.base} has check {found:08x} here, {plan.model:08x} promised")
    return replace(state, version=plan.base, steps=steps)


def start_over(state: GatewayState) -> GatewayState:
    """Back to version 0, which is all that is left in common when histories differ. The residual stays."""
    return replace(state, version=0, steps=_start(state, _task(state)))


def catch_up(state: GatewayState, message: CatchUp, body: bytes) -> GatewayState:
    """The state after a catch-up, or the same state where it starts elsewhere. Raises ModelMismatch."""
    task = _task(state)
    if message.lineage != state.lineage or message.number <= state.version:
        return state
    if message.kind is not CatchUpKind.KEYFRAME and message.start != state.version:
        return state
    try:
        if message.kind is CatchUpKind.CHAIN:
            chain = msgspec.msgpack.decode(body, type=list[tuple[Level, bytes]])
            if len(chain) > MAX_CHAIN:
                raise ModelMismatch(f"a chain of {len(chain)} deltas, at most {MAX_CHAIN} expected")
            steps = state.steps
            for level, delta in chain:
                steps = steps + _delta_steps(state, steps, level, delta)
        elif message.kind is CatchUpKind.MERGED:
            steps = state.steps + decode_integers(body, task.model.parameters)
        else:
            return replace(state, version=message.number, steps=keyframe(state, message, body))
    except (PayloadError, msgspec.MsgspecError) as error:
        raise ModelMismatch(f"catch-up to version {message.number}: {error}") from error
    found = short(model_digest(steps))
    if found != message.model:
        raise ModelMismatch(f"version {message.number} has digest {found.hex()} here, {message.model.hex()} promised")
    return replace(state, version=message.number, steps=steps)


def keyframe(state: GatewayState, message: CatchUp, body: bytes) -> NDArray[np.int32]:
    """The model that a keyframe holds, `(P,) int32`. Raises ModelMismatch."""
    task = _task(state)
    try:
        steps = _start(state, task) + decode_integers(body, task.model.parameters)
    except PayloadError as error:
        raise ModelMismatch(f"keyframe of version {message.number}: {error}") from error
    found = short(model_digest(steps))
    if found != message.model:
        raise ModelMismatch(f"version {message.number} has digest {found.hex()} here, {message.model.hex()} promised")
    return steps


def settle(state: GatewayState, receipt: Receipt) -> GatewayState:
    """The state after a verdict; the same state for a verdict on anything but the pending update."""
    pending = state.pending
    if pending is None or (receipt.round_id, receipt.counter) != (pending.round_id, pending.counter):
        return state
    if receipt.verdict is Verdict.UNKNOWN:
        return state
    if receipt.verdict is Verdict.ACCEPTED:
        return replace(state, pending=None, residual=state.residual - sent_by(pending, _task(state)))
    if receipt.verdict in (Verdict.NORM, Verdict.NON_FINITE, Verdict.MALFORMED):
        return replace(state, pending=None, residual=np.zeros_like(state.residual))
    return replace(state, pending=None)


def sent_by(pending: Pending, task: Task) -> NDArray[np.float32]:
    """What the coordinator adds to its sum for an update, `(P,) float32`."""
    length = task.model.parameters
    if pending.sent and pending.sent[0] & 0x80:
        # As whole numbers: a file that earlier software wrote.
        return (decode_integers(pending.sent, length) * UPLINK_STEP).astype(np.float32)
    return decode(pending.sent or pending.payload, length, uplink(task.up.at(pending.level))).dense()


def settle_by_plan(state: GatewayState, plan: RoundPlan, place: int) -> GatewayState:
    """The state after a plan of the same lineage, for the gateway at this place of the roster.

    The same state where the plan does not say that the pending update was accepted: it is to ask for its verdict.
    """
    pending = state.pending
    if pending is None or plan.lineage != state.lineage or not plan.settles(pending.round_id, place):
        return state
    return settle(state, Receipt(round_id=pending.round_id, counter=pending.counter, verdict=Verdict.ACCEPTED))


@dataclass(frozen=True, kw_only=True)
class Trained:
    """`state` holds the pending update and must be on disk before it is sent."""

    state: GatewayState
    loss: float
    stopped: bool


def train_update(
    state: GatewayState,
    plan: RoundPlan,
    samples: Samples,
    engine: Engine,
    *,
    gateway: str,
    keep_going: Callable[[], bool],
    now: Callable[[], float] | None = None,
) -> Trained:
    """Train from the plan's base on the gateway's own windows and code the delta.

    The same task, gateway, round, data and residual give the same payload, unless the recipe's time budget ends the
    training, which is kept by `now`. When `keep_going` says no, `stopped` is
    true and the state is as it was. Raises ValueError where training is impossible or diverges.
    """
    task = _task(state)
    if state.scaler is None and task.windowing.scaling == "learnt":
        raise ValueError("no feature scaling has been learnt yet")
    if state.pending is not None:
        raise ValueError(f"the update of round {state.pending.round_id} has no verdict yet")
    scaler = read_scaler(state.scaler, task)
    flat = to_parameters(state.steps, task.grid_bits)
    seed = hashlib.sha256(task.digest + gateway.encode() + plan.round_id.to_bytes(8, "little")).digest()
    result = train(
        engine,
        flat,
        scaler.apply(samples.train_x),
        samples.train_y,
        task.recipe,
        np.random.Generator(np.random.PCG64(int.from_bytes(seed[:16], "little"))),
        keep_going,
        now,
    )
    if result.stopped:
        return Trained(state=state, loss=result.loss, stopped=True)
    wanted = result.delta + state.residual
    # The codec's values end at 64; what lies beyond goes with later rounds, since all of `wanted` is kept.
    codec = task.up.at(plan.level)
    spec = uplink(codec)
    contexts = _contexts(state, state.steps, spec)
    bounded = np.clip(wanted, -LARGEST_VALUE, LARGEST_VALUE)
    encoded = encode(bounded, spec, gain=codec.gain, contexts=contexts)
    pending = Pending(
        round_id=plan.round_id,
        base_mark=plan.base_mark,
        counter=state.counter + 1,
        level=plan.level,
        loss=loss_told(result.loss),
        payload=encoded.payload,
        sent=b"" if contexts is None else encoded.plain,
        evaluation=_evaluation(task, engine, flat, samples, scaler) if task.held_out_reports else None,
    )
    state = replace(
        state, residual=wanted, pending=pending, counter=pending.counter, answered=max(state.answered, plan.round_id)
    )
    return Trained(state=state, loss=result.loss, stopped=False)


def serves(state: GatewayState, release: Release) -> bool:
    """Whether a released version of the state's lineage is the one in service."""
    model = state.in_service
    return model is not None and (model.lineage, model.version, short(model.digest)) == (
        state.lineage,
        release.version,
        release.model,
    )


def decided(state: GatewayState, release: Release, held: bytes | None) -> bool:
    """Whether there is nothing to try: it serves already, or it was worse on the windows that are held out still.

    `held` is their mark, None where they have not been looked at since the start: they are then taken to be the same.
    """
    if serves(state, release):
        return True
    tried = state.tried
    return (
        not release.forced
        and tried is not None
        and (tried.trial.lineage, tried.trial.version) == (state.lineage, release.version)
        and held in (None, tried.held)
    )


def held_mark(samples: Samples | None) -> bytes:
    """Tells held-out windows from others, 8 bytes; none at all have a mark, too."""
    marked = hashlib.sha256()
    if samples is not None:
        marked.update(np.ascontiguousarray(samples.held_x).tobytes())
        marked.update(np.ascontiguousarray(samples.held_y).tobytes())
    return short(marked.digest())


def trial(
    state: GatewayState,
    release: Release,
    steps: NDArray[np.int32],
    samples: Samples | None,
    engine: Callable[[Task], Engine],
) -> GatewayState:
    """The state after a released version, `steps`, was held against the model in service; `state.tried` tells of it.

    It takes over where it is no worse on the held-out windows, each model with its own scaler; at once where nothing is
    in service, where what is there answers another question (other windows, other classes), or where it is forced.
    Without a held-out window nothing is known, and what serves stays. Raises ValueError where a model cannot be run.
    """
    task = _task(state)
    new = InService(
        task=task,
        lineage=state.lineage,
        version=release.version,
        digest=model_digest(steps),
        steps=steps,
        scaler=state.scaler,
    )
    old = state.in_service
    rival = old if old is not None and comparable(old.task, task) else None
    windows, metric, before = 0, 0, None
    if samples is not None and len(samples.held_y) and not release.forced:
        windows = len(samples.held_y)
        metric = _score(new, samples, engine)
        before = None if rival is None else _score(rival, samples, engine)
    wins = (
        release.forced
        or rival is None
        or (before is not None and metric is not None and task.direction * metric >= task.direction * before)
    )
    chosen = new if wins or old is None else old
    told = Trial(
        lineage=state.lineage,
        version=release.version,
        in_service=chosen.version,
        windows=windows,
        metric=metric,
        before=before,
    )
    return replace(
        state,
        in_service=chosen,
        tried=Tried(trial=told, held=held_mark(samples)),
        # It was made of what served until now.
        personal=state.personal if chosen is old else None,
    )


def comparable(one: Task, other: Task) -> bool:
    """Whether their models answer the same question, of the same windows."""

    def question(task: Task) -> tuple[object, ...]:
        # Features of the same name, from another bundle, are others.
        own = task.model.bundle if task.windowing.features == PREPARED else b""
        return task.objective, task.windowing, task.classes, task.anomaly_label, own

    return question(one) == question(other)


def _score(model: InService, samples: Samples, engine: Callable[[Task], Engine]) -> int:
    """Its metric on all held-out windows, as it travels."""
    scaler = read_scaler(model.scaler, model.task)
    flat = to_parameters(model.steps, model.task.grid_bits)
    task = model.task
    x, y = scaler.apply(samples.held_x), samples.held_y
    return metric_told(evaluate(engine(task), flat, x, y, task.objective, task.windowing.remaining_most).metric)


def read_scaler(data: bytes | None, task: Task) -> Scaler:
    """From little-endian float32 means, then scales, as they travel; where the task wants none, one that changes
    nothing. Raises ValueError."""
    features = task.model.sizes[0]
    if task.windowing.scaling == "none":
        return Scaler(mean=np.zeros(features, dtype=np.float32), scale=np.ones(features, dtype=np.float32))
    if data is None:
        raise ValueError(f"expected a scaler of {8 * features} bytes for {features} features, got none")
    if len(data) != 8 * features:
        raise ValueError(f"expected a scaler of {8 * features} bytes for {features} features, got {len(data)}")
    both = np.frombuffer(data, dtype="<f4").astype(np.float32)
    return Scaler(mean=both[:features], scale=both[features:])


def uplink(codec: Codec) -> CodecSpec:
    return CodecSpec(bits=codec.bits, density=codec.density, step=UPLINK_STEP)


def loss_told(loss: float) -> int:
    """A loss as it travels, in whole 1/10,000 and bounded."""
    return round(min(loss, LARGEST_LOSS) * EVALUATION_SCALE)


def metric_told(metric: float) -> int:
    """A metric as it travels, in whole 1/10,000 and bounded: R2 has no lower end and an error no upper one."""
    return round(min(max(metric * EVALUATION_SCALE, -LARGEST_METRIC), LARGEST_METRIC))


def _evaluation(
    task: Task, engine: Engine, flat: NDArray[np.float32], samples: Samples, scaler: Scaler
) -> Evaluation | None:
    # Of an autoencoder only R2 on healthy windows can be averaged: some gateways have seen faults, and some none.
    counted = samples.held_y == 0 if task.objective == "reconstruct" else np.ones(len(samples.held_y), dtype=bool)
    if not counted.any():
        return None
    x, y = scaler.apply(samples.held_x[counted]), samples.held_y[counted]
    found = evaluate(engine, flat, x, y, task.objective, task.windowing.remaining_most)
    return Evaluation(
        metric=metric_told(found.metric),
        loss=loss_told(found.loss),
        windows=found.windows,
    )


def _task(state: GatewayState) -> Task:
    if state.task is None:
        raise ModelMismatch("no task is at hand")
    return state.task


def _start(state: GatewayState, task: Task) -> NDArray[np.int32]:
    """Version 0 of the task's lineages, `(P,) int32`."""
    return initial_steps(task.model, task.seed, task.grid_bits) if state.start is None else state.start


def _contexts(state: GatewayState, steps: NDArray[np.int32], spec: CodecSpec) -> Contexts | None:
    """Of the version that a delta starts from; a dense delta has no use for them."""
    if spec.density == 1:
        return None
    task = _task(state)
    displacement = steps - _start(state, task)
    if len(displacement) > KEPT_CONTEXTS:
        return Contexts.of(displacement, task.model.shapes)
    return _kept_contexts(displacement.tobytes(), task.model)


@lru_cache(maxsize=4)
def _kept_contexts(displacement: bytes, model: ModelSpec) -> Contexts:
    return Contexts.of(np.frombuffer(displacement, dtype=np.int32), model.shapes)


def _delta_steps(state: GatewayState, steps: NDArray[np.int32], level: int, delta: bytes) -> NDArray[np.int32]:
    task = _task(state)
    codec = task.down.at(level)
    spec = CodecSpec(bits=codec.bits, density=codec.density, step=task.grid_step)
    try:
        return decode(delta, task.model.parameters, spec, contexts=_contexts(state, steps, spec)).whole_steps()
    except PayloadError as error:
        raise ModelMismatch(f"the broadcast delta cannot be read: {error}") from error
