"""What a thousand gateways would each work out from the same bytes, worked out once.

Only for functions that are pure, and only where their inputs are the same: the bytes of a plan, a broadcast delta on
the same base version, and what one's own payload decodes to. The first gateway runs the real code, the others are given
its result; so they also share the arrays of a version. Nothing that differs between gateways is shared.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
from fedmq_edge_node import service, work
from fedmq_edge_node.memory import GatewayState, Pending
from fedmq_protocol.messages import CatchUp, Message, RoundPlan, check_of, from_bytes
from fedmq_protocol.task import Task
from fedmq_protocol.topics import Channel, TopicSpec
from numpy.typing import NDArray

__all__ = ["shared"]

MOST = 64
"""Results that are kept at a time: versions in use, and updates under way, are fewer."""


@contextmanager
def shared() -> Iterator[None]:
    """While this lasts, `work.advance`, `work.catch_up` and `work.sent_by` remember, and gateways read a plan once."""
    read = from_bytes
    advance, catch_up, sent_by = work.advance, work.catch_up, work.sent_by
    models: dict[tuple[int, int, int, bytes], tuple[NDArray[np.int32], NDArray[np.int32]]] = {}
    versions: dict[tuple[int, int], NDArray[np.int32]] = {}
    """By number and check: all ways end on the digest that was promised, so they end on one array."""
    sent: dict[int, tuple[Pending, NDArray[np.float32]]] = {}

    def one_of(number: int, check: int, steps: NDArray[np.int32]) -> NDArray[np.int32]:
        if len(versions) >= MOST:
            versions.clear()
        return versions.setdefault((number, check), steps)

    def shared_advance(state: GatewayState, plan: RoundPlan, delta: bytes | None) -> GatewayState:
        if delta is None or state.version + 1 != plan.base:
            return advance(state, plan, delta)
        # The array is kept, so that its identity stays its own.
        key = (id(state.steps), plan.model, plan.level, delta)
        known = models.get(key)
        if known is not None:
            if plan.scaler is None:
                # What `replace` does, without a look at each field: this is what most gateways do most of the time.
                listening = object.__new__(GatewayState)
                listening.__dict__.update(state.__dict__, version=plan.base, steps=known[1])
                return listening
            return advance(replace(state, version=plan.base, steps=known[1]), plan, None)
        made = advance(state, plan, delta)
        made = replace(made, steps=one_of(plan.base, plan.model, made.steps))
        if len(models) >= MOST:
            models.clear()
        models[key] = state.steps, made.steps
        return made

    def shared_catch_up(state: GatewayState, message: CatchUp, body: bytes) -> GatewayState:
        made = catch_up(state, message, body)
        if made is state:
            return made
        return replace(made, steps=one_of(message.number, check_of(message.model), made.steps))

    def shared_sent_by(pending: Pending, task: Task) -> NDArray[np.float32]:
        known = sent.get(id(pending))
        if known is not None and known[0] is pending:
            return known[1]
        made = sent_by(pending, task)
        if len(sent) >= 16 * MOST:
            sent.clear()
        sent[id(pending)] = pending, made
        return made

    plans: dict[bytes, Message] = {}

    def shared_read(spec: TopicSpec, data: bytes) -> Message:
        if spec.channel is not Channel.PLAN:
            return read(spec, data)
        known = plans.get(data)
        if known is None:
            if len(plans) >= MOST:
                plans.clear()
            known = plans[data] = read(spec, data)
        return known

    work.advance, work.catch_up, work.sent_by = shared_advance, shared_catch_up, shared_sent_by
    vars(service)["from_bytes"] = shared_read
    try:
        yield
    finally:
        work.advance, work.catch_up, work.sent_by = advance, catch_up, sent_by
        vars(service)["from_bytes"] = read
