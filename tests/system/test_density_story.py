"""Density that follows the loss, told with the real services on a broker in memory."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from fedmq_compression.pipeline import CodecSpec, Contexts, decode, decode_integers
from fedmq_coordinator.density import LOOKS
from fedmq_coordinator.settings import RoundSettings
from fedmq_edge_node.work import ModelMismatch, catch_up, settle_by_plan
from fedmq_protocol.messages import CatchUp, CatchUpKind, RoundKind, RoundPlan, Statistics, Update, from_bytes
from fedmq_protocol.task import (
    MAX_LEVEL,
    UPLINK_STEP,
    Codec,
    Recipe,
    Task,
    Windowing,
    initial_steps,
    model_digest,
    short,
)
from fedmq_protocol.topics import parse
from plant import Plant, make_task

CODEC = Codec(density=0.02, gain=1.5, most=0.1)
STILL = Recipe(learning_rate=1e-3, batch_size=256)
"""So little is learnt in a round that the loss stalls; the only batch of a gateway is all it has."""


def steered(recipe: Recipe = STILL, **changes: object) -> Task:
    return make_task(recipe=recipe, up=CODEC, down=CODEC, levels=CODEC.highest, **changes)


def messages(plant: Plant, kind: type) -> list[tuple[str, object]]:
    told = [p for p in plant.broker.log if not p.topic.endswith("/report")]
    found = [(p.client_id, from_bytes(parse(p.topic).spec, p.payload)) for p in told]
    return [(client, message) for client, message in found if isinstance(message, kind)]


def plans_at(plant: Plant, level: int) -> list[RoundPlan]:
    return [plan for _, plan in messages(plant, RoundPlan) if isinstance(plan, RoundPlan) and plan.level == level]


def levels(plant: Plant) -> list[int]:
    return [row.level for row in plant.ledger.rounds() if row.kind == "training"]


def test_a_federation_that_stalls_is_given_more_and_all_agree_on_the_model(tmp_path: Path) -> None:
    plant = Plant(tmp_path, rounds=4 * LOOKS[0], task=steered())
    plant.run_to_rest()
    assert levels(plant)[: LOOKS[0] + 1] == [0] * LOOKS[0] + [1]
    assert max(levels(plant)) >= 2
    assert set(plant.digests().values()) == {plant.digest}
    # What a gateway was asked for is what it sent, and so did the coordinator in the plan that asked.
    asked = {p.round_id: p for _, p in messages(plant, RoundPlan) if isinstance(p, RoundPlan)}
    model = plant.task.model
    moved = [np.zeros(model.parameters, dtype=np.int32)]
    for version in plant.ledger.versions(plant.lineage, after=0):
        moved.append(moved[-1] + decode_integers(version.steps, model.parameters))
    for _, update in messages(plant, Update):
        assert isinstance(update, Update)
        assert isinstance(update.payload, bytes)
        plan = asked[update.round_id]
        for codec, payload, step, base in (
            (plant.task.up, update.payload, UPLINK_STEP, plan.base),
            (plant.task.down, plan.delta, plant.task.grid_step, plan.base - 1),
        ):
            there = codec.at(plan.level)
            if isinstance(payload, bytes):
                spec = CodecSpec(bits=there.bits, density=there.density, step=step)
                contexts = None if there.density == 1 else Contexts.of(moved[base], model.shapes)
                assert decode(payload, model.parameters, spec, contexts=contexts).length == model.parameters
    for version in plant.ledger.versions(plant.lineage):
        made = plant.ledger.round(version.round or 0)
        following = plant.ledger.round((version.round or 0) + 1)
        if made is not None and following is not None:
            assert version.level == following.level


def test_a_federation_that_learns_is_left_as_it_is(tmp_path: Path) -> None:
    plant = Plant(tmp_path, rounds=3 * LOOKS[0], task=steered(Recipe(learning_rate=0.1, local_epochs=2, batch_size=32)))
    plant.run_to_rest()
    assert set(levels(plant)) == {0}
    losses = plant.book.losses(plant.lineage)
    assert len(losses) == 3 * LOOKS[0]
    assert losses[-1] < 0.8 * losses[0]


def test_the_round_s_loss_is_the_mean_over_windows_of_what_the_updates_tell(tmp_path: Path) -> None:
    plant = Plant(tmp_path, rounds=2, task=steered())
    plant.run_to_rest()
    for row in plant.ledger.rounds():
        if row.kind == "training":
            told = {a.gateway: a for a in plant.ledger.answers(row.id)}
            weights = [a.weight for a in told.values()]
            expected = np.average([a.training_loss or 0.0 for a in told.values()], weights=weights)
            assert row.training_loss == pytest.approx(expected)
            assert row.training_loss is not None
            assert row.training_loss > 0


@pytest.mark.parametrize("after", [LOOKS[0] - 2, LOOKS[0], 2 * LOOKS[0] + 1])
def test_a_restart_goes_on_at_the_same_level_to_the_same_model(tmp_path: Path, after: int) -> None:
    rounds = 3 * LOOKS[0]
    whole = Plant(tmp_path / "whole", rounds=rounds, task=steered())
    whole.run_to_rest()
    broken = Plant(tmp_path / "broken", rounds=rounds, task=steered())
    broken.run_until(lambda: broken.version == after)
    broken.kill_coordinator()
    broken.start_coordinator()
    broken.run_to_rest()
    assert levels(broken) == levels(whole)
    assert broken.digest == whole.digest
    assert set(broken.digests().values()) == {broken.digest}


def test_a_gateway_that_was_away_over_a_change_of_level_catches_up(tmp_path: Path) -> None:
    settings = RoundSettings(max_rounds=LOOKS[0] + 3, min_gateways=3)
    plant = Plant(tmp_path, task=steered(), settings=settings)
    plant.run_until(lambda: plant.version == LOOKS[0] - 2)
    left = plant.gateways["g0"].state
    plant.kill_gateway("g0")
    plant.run_until(lambda: plant.version == LOOKS[0] + 2)
    plant.start_gateway("g0")
    plant.run_to_rest()
    assert plant.ledger.catch_ups()
    assert set(plant.digests().values()) == {plant.digest}
    # And by the chain, whether it was the cheapest here or not.
    versions = plant.ledger.versions(plant.lineage, after=left.version)
    assert len({version.level for version in versions}) > 1
    chain = CatchUp(
        lineage=plant.lineage,
        kind=CatchUpKind.CHAIN,
        start=left.version,
        number=plant.version,
        model=short(plant.digest),
        body=b"",
    )
    body = msgspec.msgpack.encode([(version.level, version.delta) for version in versions])
    assert model_digest(catch_up(left, chain, body).steps) == plant.digest
    for level in (-1, MAX_LEVEL + 1):
        with pytest.raises(ModelMismatch):
            catch_up(left, chain, msgspec.msgpack.encode([(level, version.delta) for version in versions]))


def test_an_owed_update_is_read_at_the_level_of_its_own_round(tmp_path: Path) -> None:
    settings = RoundSettings(max_rounds=LOOKS[0] + 3, min_gateways=2, quorum_share=0.75, closing_seconds=20.0)
    plant = Plant(tmp_path, task=steered(), settings=settings)
    plant.run_until(lambda: plant.version == LOOKS[0] - 1)
    for name in ("g0", "g1"):
        plant.kill_gateway(name)
    plant.run_until(lambda: any(r.outcome == "below quorum" for r in plant.ledger.rounds()))
    owed = plant.ledger.owed()
    assert {a.gateway for a in owed} == {"g2", "g3"}
    before = plant.version
    plant.kill_coordinator()
    plant.start_coordinator()
    for name in ("g0", "g1"):
        plant.start_gateway(name)
    plant.run_until(lambda: plant.version > before)
    assert not plant.ledger.owed()
    plant.run_to_rest()
    assert max(levels(plant)) >= 1
    assert set(plant.digests().values()) == {plant.digest}


def test_an_update_that_is_pending_over_a_change_of_level_is_settled_at_its_own(tmp_path: Path) -> None:
    """The next plan, at another level, says that it was accepted: what is subtracted is what was sent."""
    plant = Plant(tmp_path, rounds=LOOKS[0] + 1, task=steered())
    plant.run_until(lambda: plant.gateways["g0"].state.pending is not None and plant.version == LOOKS[0] - 1)
    state = plant.gateways["g0"].state
    assert state.pending is not None
    assert state.pending.level == 0
    start = initial_steps(plant.task.model, plant.task.seed, plant.task.grid_bits)
    sent = decode(
        state.pending.payload,
        plant.task.model.parameters,
        CodecSpec(bits=1, density=CODEC.density, step=UPLINK_STEP),
        contexts=Contexts.of(state.steps - start, plant.task.model.shapes),
    ).dense()
    plant.run_until(lambda: plans_at(plant, 1))
    plan = plans_at(plant, 1)[0]
    assert plan.settles(state.pending.round_id, 0)
    settled = settle_by_plan(state, plan, 0)
    assert settled.pending is None
    assert np.array_equal(settled.residual, state.residual - sent)


def test_where_features_are_on_one_scale_the_first_round_trains(tmp_path: Path) -> None:
    task = make_task(windowing=Windowing(scaling="none"))
    plant = Plant(tmp_path, rounds=12, task=task)
    plant.run_to_rest()
    assert {row.kind for row in plant.ledger.rounds()} == {"training"}
    assert not messages(plant, Statistics)
    plans = [p for _, p in messages(plant, RoundPlan) if isinstance(p, RoundPlan)]
    assert {p.scaler for p in plans} == {None}
    assert RoundKind.STATISTICS not in {p.kind for p in plans}
    metrics = [row.metric for row in plant.ledger.rounds() if row.metric is not None]
    assert metrics[-1] > metrics[0]
    # Also for whoever comes later.
    assert set(plant.digests().values()) == {plant.digest}
    assert msgspec.msgpack.decode(plant.book.get("task_body") or b"", type=Task).windowing.scaling == "none"
