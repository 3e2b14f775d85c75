"""Gateways with a model of their own beside the released one; told with the real services."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
from fedmq_coordinator.report import build
from fedmq_coordinator.report_text import to_text
from fedmq_coordinator.status_text import status
from fedmq_edge_node.personal import Scorer
from fedmq_edge_node.trainer import macro_f1
from fedmq_protocol.messages import PersonalPolicy
from fedmq_protocol.task import Recipe
from plant import FakeFolder, Plant, make_task

HEAD = PersonalPolicy(mode="head", margin=0.1, epochs=40)
TASK = make_task(dense=True, recipe=Recipe(learning_rate=0.1, local_epochs=3, batch_size=16))
ODD = "g3"
"""Where what shows as `normal` elsewhere is `ball`, and the other way round: a sensor that is mounted otherwise."""


def a_plant(directory: Path, policy: PersonalPolicy | None = HEAD, rounds: int = 15) -> Plant:
    plant = Plant(directory, rounds=rounds, task=TASK, personal=policy)
    for place, name in enumerate(plant.folders):
        folder = FakeFolder(place, windows=400)
        plant.folders[name].samples = folder.samples
    mine, turned = plant.folders[ODD].samples, np.array([1, 0, 2])
    plant.folders[ODD].samples = replace(mine, train_y=turned[mine.train_y], held_y=turned[mine.held_y])
    return plant


def told(plant: Plant) -> dict[str, str | None]:
    return {trial.gateway: trial.personal for trial in plant.book.trials()}


def release(plant: Plant, version: int | None = None) -> None:
    assert plant.order("promote", version=version).done
    wanted = plant.version if version is None else version
    plant.run_until(
        lambda: [t.in_service for t in plant.book.trials() if t.personal is not None] == [wanted] * len(plant.folders)
    )


def scorers(plant: Plant) -> dict[str, Scorer]:
    found = {name: gateway.scorer("story") for name, gateway in plant.gateways.items()}
    return {name: one for name, one in found.items() if one is not None}


def serving(plant: Plant) -> set[str]:
    return {name for name, one in scorers(plant).items() if one.personal}


def f1(plant: Plant, name: str, one: Scorer) -> float:
    held = plant.folders[name].samples
    return macro_f1(np.asarray(held.held_y, dtype=np.int64), one.infer(held.held_x).argmax(axis=1))


def test_only_the_gateway_whose_machine_is_another_scores_with_its_own_model(tmp_path: Path) -> None:
    plain = a_plant(tmp_path / "plain", None)
    plain.run_to_rest()
    plant = a_plant(tmp_path / "plant")
    plant.run_to_rest()
    assert serving(plant) == set(), "nothing has been released yet"

    release(plant)

    assert serving(plant) == {ODD}
    assert told(plant) == {"g0": "no_better", "g1": "no_better", "g2": "no_better", ODD: "serves"}
    assert plant.digest == plain.digest, "the rounds know nothing of it"
    own = scorers(plant)[ODD]
    assert f1(plant, ODD, own) >= f1(plant, ODD, replace(own, own=None)) + HEAD.margin
    report = build(plant.ledger)
    assert [line.gateway for line in report.personal if line.serves] == [ODD]
    assert "1 of 4 gateways" in status(plant.ledger, plant.now)
    text = to_text(report)
    assert "Personal models" in text
    assert "scores" in text


def test_a_personal_model_is_given_up_once_a_release_is_as_good(tmp_path: Path) -> None:
    plant = a_plant(tmp_path, msgspec.structs.replace(HEAD, margin=0.05))
    plant.run_to_rest()
    release(plant, 1)
    assert "g0" in serving(plant), "the fleet has not learnt much yet"

    release(plant)

    assert "g0" not in serving(plant)
    assert told(plant)["g0"] == "no_better"
    assert all(one.version == plant.version for one in scorers(plant).values())


def test_a_gateway_that_has_seen_healthy_machines_only_still_tells_a_fault(tmp_path: Path) -> None:
    plant = a_plant(tmp_path, msgspec.structs.replace(HEAD, margin=0.001))
    mine = plant.folders["g2"].samples
    train, held = mine.train_y == 0, mine.held_y == 0
    plant.folders["g2"].samples = replace(
        mine,
        train_x=mine.train_x[train],
        train_y=mine.train_y[train],
        held_x=mine.held_x[held],
        held_y=mine.held_y[held],
    )
    plant.run_to_rest()
    release(plant, 1)  # far from good, so that on healthy windows alone another one would look better

    assert told(plant)["g2"] == "one_class"
    one = scorers(plant)["g2"]
    assert not one.personal
    everything = plant.folders["g0"].samples.held_x
    assert set(one.infer(everything).argmax(axis=1)) > {0}


def test_a_gateway_comes_back_with_its_own_model_and_gives_it_up_when_the_setting_is_gone(tmp_path: Path) -> None:
    plant = a_plant(tmp_path)
    plant.run_to_rest()
    release(plant)
    before = scorers(plant)[ODD].own
    plant.kill_gateway(ODD)
    plant.start_gateway(ODD)
    after = scorers(plant)[ODD].own
    assert before is not None
    assert after is not None
    assert np.array_equal(before, after), "before it has heard of anyone"

    plant.kill_coordinator()
    plant.personal = None
    plant.start_coordinator()
    plant.run_until(lambda: not serving(plant))
    plant.run_until(lambda: set(told(plant).values()) == {None})
    lineage = plant.lineage

    plant.kill_coordinator()
    plant.personal = msgspec.structs.replace(HEAD, mode="copy")
    plant.start_coordinator()
    plant.run_until(lambda: told(plant)[ODD] == "serves")
    assert plant.lineage == lineage, "it is no other task"
    own = plant.gateways[ODD].state.personal
    assert own is not None
    assert len(own.values) == TASK.model.parameters
