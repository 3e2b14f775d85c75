"""A model that somebody brought, on a whole federation in one process: fetched, run, refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from bundles import BATCH, brought, bundle_of, slow, with_preparation, with_values
from fedmq_coordinator.settings import RoundSettings
from fedmq_edge_node import work
from fedmq_edge_node.folder import Folder
from fedmq_edge_node.memory import Memory
from fedmq_edge_node.runtimes import GraphStopped, NumpyEngine, available_engines, make_engine, make_preparation
from fedmq_edge_node.samples import Preparation
from fedmq_edge_node.service import Gateway
from fedmq_models.bundle import Bundle, BundleError, from_bytes, start_of
from fedmq_models.graph import GraphError
from fedmq_protocol.messages import Chunk
from fedmq_protocol.messages import from_bytes as message_of
from fedmq_protocol.reasons import Reason
from fedmq_protocol.session import Received
from fedmq_protocol.task import ModelSpec, Recipe, Task, initial_steps, model_digest, short, to_parameters
from fedmq_protocol.topics import parse
from numpy.typing import NDArray
from plant import CLASSES, FEATURES, Plant, make_task

MODEL = ModelSpec(kind="mlp", sizes=(FEATURES, 16, 3))
WIDE = ModelSpec(kind="mlp", sizes=(FEATURES, 16, 16, 3))


def task_of(model: ModelSpec, bundle: Bundle | None = None) -> Task:
    start = start_of(model, 0, 12, bundle)
    recipe = Recipe(learning_rate=0.05, local_epochs=2, batch_size=BATCH)
    return make_task(model=model, initial=short(model_digest(start)), recipe=recipe)


def test_a_fleet_learns_a_model_that_came_in_a_bundle(tmp_path: Path) -> None:
    data, model = brought(bundle_of(MODEL))
    plant = Plant(tmp_path, gateways=3, task=task_of(model), bundle=data)
    plant.run_to_rest()
    assert plant.version == 5
    assert set(plant.digests().values()) == {plant.digest}
    assert plant.book.get("bundle") == data
    assert (plant.gateways["g0"].state.steps != initial_steps(model, 0, 12)).any()


def plant_with_values(directory: Path, gateways: int = 3, **wishes: Any) -> Plant:
    bundle = with_values(bundle_of(MODEL))
    data, model = brought(bundle)
    return Plant(directory, gateways=gateways, task=task_of(model, bundle), bundle=data, **wishes)


def start_in(plant: Plant) -> NDArray[np.int32]:
    task = plant.task
    return start_of(task.model, task.seed, task.grid_bits, from_bytes(plant.bundle))


def test_a_fleet_goes_on_from_the_parameters_that_a_bundle_holds(tmp_path: Path) -> None:
    plant = plant_with_values(tmp_path)
    start = start_in(plant)
    assert (start != initial_steps(plant.task.model, 0, 12)).mean() > 0.9
    plant.run_until(lambda: all(g.state.lineage for g in plant.gateways.values()))
    assert {name: g.state.version for name, g in plant.gateways.items()} == dict.fromkeys(plant.gateways, 0)
    assert all(np.array_equal(g.state.steps, start) for g in plant.gateways.values())
    plant.run_to_rest()
    assert plant.version == 5
    assert set(plant.digests().values()) == {plant.digest}
    # A tenth of the parameters moves in a round: what lies far from the start is what nobody has moved.
    assert 0 < (plant.job.line.steps != start).mean() < 0.9


def test_a_gateway_that_comes_late_starts_from_the_same_parameters(tmp_path: Path) -> None:
    plant = plant_with_values(tmp_path)
    plant.kill_gateway("g2")
    plant.settings = RoundSettings(max_rounds=5, min_gateways=2)
    plant.kill_coordinator()
    plant.start_coordinator()
    plant.run_until(lambda: plant.version >= 3)
    plant.start_gateway("g2")
    plant.run_to_rest()
    assert set(plant.digests().values()) == {plant.digest}


def test_everyone_finds_the_parameters_of_a_bundle_again_after_a_power_cut(tmp_path: Path) -> None:
    plant = plant_with_values(tmp_path)
    plant.run_until(lambda: plant.version >= 2)
    plant.kill_coordinator()
    for name in list(plant.gateways):
        plant.kill_gateway(name)
    plant.start_coordinator()
    for name in plant.folders:
        assert np.array_equal(plant.start_gateway(name).states["story"].start, start_in(plant))  # type: ignore[arg-type]
    plant.run_to_rest()
    plant.order("promote")
    plant.run_until(lambda: all(g.in_service("story") is not None for g in plant.gateways.values()))
    plant.order("rollback", version=1)
    plant.run_until(lambda: all(g.state.version == plant.version for g in plant.gateways.values()))
    assert set(plant.digests().values()) == {plant.digest}


def test_a_gateway_that_lost_its_bundle_fetches_it_again(tmp_path: Path) -> None:
    plant = plant_with_values(tmp_path)
    plant.run_until(lambda: plant.version >= 2)
    plant.kill_gateway("g0")
    memory = Memory(tmp_path / "g0" / "gateway.sqlite")
    memory.drop(f"bundle {plant.task.model.bundle.hex()}")
    memory.close()
    plant.start_gateway("g0")
    plant.run_to_rest()
    assert set(plant.digests().values()) == {plant.digest}
    assert any(answer.gateway == "g0" and answer.round == 5 for answer in plant.book.answers())


def test_other_parameters_than_the_task_promises_are_not_trained(tmp_path: Path) -> None:
    bundle = with_values(bundle_of(MODEL))
    data, model = brought(bundle)
    plant = Plant(tmp_path, gateways=1, task=task_of(model, bundle), bundle=data)
    gateway = plant.gateways["g0"]
    gateway.start_of = lambda task: start_of(model, 0, 12, None)  # type: ignore[method-assign]
    plant.run_until(lambda: gateway._strange)
    assert not gateway.states


def test_a_bundle_is_fetched_once_and_found_again_after_a_restart(tmp_path: Path) -> None:
    data, model = brought(bundle_of(WIDE))
    plant = Plant(tmp_path, gateways=2, task=task_of(model), bundle=data, rounds=3)
    chunks: Counter[str] = Counter()

    def count(client: str, received: Received) -> bool:
        message = message_of(parse(received.topic).spec, received.payload)
        chunks[client] += isinstance(message, Chunk)
        return False

    plant.lose = count
    plant.run_until(lambda: plant.version >= 1)
    plant.kill_gateway("g0")
    plant.start_gateway("g0")
    plant.run_to_rest()
    assert (chunks["g0"], chunks["g1"]) == (1, 1)


def sent_chunks(plant: Plant) -> Counter[str]:
    """Of the coordinator, by topic, from now on."""
    chunky = ("/chunk", "/model")
    sent: Counter[str] = Counter()
    publish = plant.coordinator_session.publish

    def count(topic: str, payload: bytes, **wishes: Any) -> bool:
        if topic.endswith(chunky):
            sent[topic] += isinstance(message_of(parse(topic).spec, payload), Chunk)
        return publish(topic, payload, **wishes)

    plant.coordinator_session.publish = count  # type: ignore[method-assign]
    return sent


def test_a_bundle_is_sent_once_for_all_who_ask_for_it_together(tmp_path: Path) -> None:
    data, model = brought(bundle_of(MODEL))
    plant = Plant(tmp_path, gateways=4, task=task_of(model), bundle=data, rounds=2)
    sent = sent_chunks(plant)
    plant.run_to_rest()
    assert +sent == {"fl/1/test/down/model": 1}
    assert set(plant.digests().values()) == {plant.digest}


def test_who_asks_alone_for_a_bundle_is_answered_alone(tmp_path: Path) -> None:
    data, model = brought(bundle_of(MODEL))
    plant = Plant(tmp_path, gateways=2, task=task_of(model), bundle=data, rounds=2)
    plant.kill_gateway("g1")
    sent = sent_chunks(plant)
    plant.run_until(lambda: plant.gateways["g0"].state.lineage)
    assert +sent == {"fl/1/test/cmd/g0/chunk": 1}
    plant.start_gateway("g1")
    plant.run_to_rest()
    assert +sent == {"fl/1/test/cmd/g0/chunk": 1, "fl/1/test/cmd/g1/chunk": 1}
    assert not any(gateway._listening for gateway in plant.gateways.values())


def test_chunks_that_are_lost_are_asked_for_again(tmp_path: Path) -> None:
    bundle = bundle_of(MODEL)
    # Nothing that compresses, so that it takes several chunks.
    remarks = tuple(str(hash((place, "x")) ** 7)[:120] + f"{place:05d}" for place in range(32))
    parameters = tuple(
        msgspec.structs.replace(p, name=p.name + remarks[i]) for i, p in enumerate(bundle.manifest.parameters)
    )
    manifest = msgspec.structs.replace(bundle.manifest, remarks=remarks, parameters=parameters)
    data, model = brought(msgspec.structs.replace(bundle, manifest=manifest))
    plant = Plant(tmp_path, gateways=2, task=task_of(model), bundle=data, rounds=2)
    seen: Counter[str] = Counter()

    def lose(client: str, received: Received) -> bool:
        if not isinstance(message_of(parse(received.topic).spec, received.payload), Chunk):
            return False
        seen[client] += 1
        return seen[client] == 1

    plant.lose = lose
    plant.run_to_rest()
    assert set(plant.digests().values()) == {plant.digest}
    assert min(seen.values()) >= 2


@pytest.mark.parametrize("point", ["before bundle", "after bundle"])
def test_a_gateway_killed_while_it_keeps_a_bundle_comes_back(tmp_path: Path, point: str) -> None:
    class Killed(BaseException):
        pass

    def crash(name: str) -> None:
        if name == point:
            raise Killed

    data, model = brought(bundle_of(MODEL))
    plant = Plant(tmp_path, gateways=2, task=task_of(model), bundle=data, rounds=2)
    plant.gateways["g0"]._crash_point = crash
    with pytest.raises(Killed):
        plant.run_to_rest()
    plant.kill_gateway("g0")
    plant.start_gateway("g0")
    plant.run_to_rest()
    assert set(plant.digests().values()) == {plant.digest}


def refusing(gateway: Gateway, why: str) -> None:
    def prove(bundle: Bundle) -> None:
        raise BundleError(why)

    gateway._shelf._prove = prove


def test_a_gateway_that_refuses_a_bundle_declines_and_the_others_go_on(tmp_path: Path) -> None:
    data, model = brought(bundle_of(MODEL))
    plant = Plant(tmp_path, gateways=3, task=task_of(model), bundle=data, rounds=3)
    refusing(plant.gateways["g0"], "its graphs ran for more than 60 s and were stopped")
    plant.run_until(lambda: plant.job.resting is not None)
    answers = plant.book.answers()
    declined = [a for a in answers if a.gateway == "g0"]
    assert declined
    assert {a.reason for a in declined} == {Reason.TASK.name.lower()}
    assert {a.gateway for a in answers if a.kind == "update"} == {"g1", "g2"}


class Recordings(Folder):
    """Of two channels, which only the sum of their squares tells apart."""

    def __init__(self, directory: Path, seed: int) -> None:
        rng = np.random.default_rng(seed)
        for number, label in enumerate(CLASSES):
            (directory / label).mkdir(parents=True)
            loud = rng.normal(size=(8 * 60, 2)) * (1 + number)
            np.save(directory / label / "a.npy", loud.astype(np.float32))
        (directory / "recording.toml").write_text("sampling_rate_hz = 12000\n", encoding="utf-8")
        super().__init__(directory)


def prepared_plant(directory: Path, **wishes: Any) -> Plant:
    bundle = with_preparation(bundle_of(MODEL))
    data, model = brought(bundle)
    assert bundle.manifest.windowing is not None
    task = msgspec.structs.replace(task_of(model), windowing=bundle.manifest.windowing)
    plant = Plant(directory, gateways=2, task=task, bundle=data, **wishes)
    for seed, name in enumerate(plant.folders):
        plant.folders[name] = Recordings(directory / "data" / name, seed)  # type: ignore[assignment]
        plant.kill_gateway(name)
        plant.start_gateway(name)
    return plant


def test_gateways_learn_from_features_that_a_bundle_makes_itself(tmp_path: Path) -> None:
    plant = prepared_plant(tmp_path)
    plant.run_to_rest()
    assert set(plant.digests().values()) == {plant.digest}
    samples = plant.gateways["g0"]._jobs["story"]._samples
    assert samples is not None
    raw = np.load(tmp_path / "data" / "g0" / "ball" / "a.npy")[:8].reshape(1, -1)
    preparation = make_preparation(with_preparation(bundle_of(MODEL)), "numpy")
    assert preparation is not None
    assert np.allclose(samples.train_x[samples.train_y == 1][0], preparation.run(raw)[0], atol=1e-3)


def test_a_preparation_that_takes_too_long_is_stopped_and_declined(tmp_path: Path) -> None:
    plant = prepared_plant(tmp_path, rounds=3)

    def never(bundle: Bundle) -> Preparation:
        def run(windows: NDArray[np.float32]) -> NDArray[np.float32]:
            raise GraphStopped("a run of its graph of 9 nodes took more than 60 s and was stopped")

        return Preparation(features=FEATURES, run=run)

    plant.gateways["g0"]._make_preparation = never
    plant.run_until(lambda: plant.job.resting is not None)
    reasons = {(a.gateway, a.kind, a.reason) for a in plant.book.answers() if a.kind != "statistics"}
    assert reasons == {("g0", "decline", Reason.TASK.name.lower()), ("g1", "update", None)}


def test_models_on_features_of_two_bundles_are_not_held_against_each_other(tmp_path: Path) -> None:
    plant = prepared_plant(tmp_path, rounds=2)
    plant.run_to_rest()
    plant.order("promote")
    plant.run_until(lambda: all(g.in_service("story") is not None for g in plant.gateways.values()))
    state = plant.gateways["g0"].state
    assert state.task is not None
    serving = state.in_service
    other = msgspec.structs.replace(state.task, model=msgspec.structs.replace(state.task.model, bundle=bytes(32)))
    assert serving is not None
    assert work.comparable(serving.task, state.task)
    assert not work.comparable(serving.task, other)


def on_a_short_leash(plant: Plant, engine: str) -> None:
    """g0 stops what takes long; g1 computes the same without the detour."""
    plant.gateways["g0"]._make_engine = lambda task, bundle: make_engine(task.model, engine, bundle, run_seconds=0.02)
    plant.gateways["g1"]._make_engine = lambda task, bundle: NumpyEngine(MODEL)


@pytest.mark.parametrize("engine", available_engines())
def test_a_run_that_takes_too_long_is_stopped_and_the_model_in_service_goes_on(tmp_path: Path, engine: str) -> None:
    data, model = brought(bundle_of(MODEL))
    plant = Plant(tmp_path, gateways=2, task=task_of(model), bundle=data, rounds=2)
    plant.run_to_rest()
    plant.order("promote")
    plant.run_until(lambda: all(g.in_service("story") is not None for g in plant.gateways.values()))
    before = max(answer.round for answer in plant.book.answers())
    plant.kill_coordinator()
    plant.bundle, long = brought(slow(bundle_of(MODEL)))
    plant.task = task_of(long)
    plant.settings = RoundSettings(max_rounds=5, min_gateways=2)
    plant.start_coordinator()
    on_a_short_leash(plant, engine)
    plant.run_until(lambda: plant.job.resting is not None)
    gateway = plant.gateways["g0"]
    assert "took more than 0.02 s and was stopped" in str(gateway._shelf.refusal(long))
    answers = [answer for answer in plant.book.answers() if answer.round > before and answer.kind != "statistics"]
    reasons = {(answer.gateway, answer.kind, answer.reason) for answer in answers}
    assert reasons == {("g0", "decline", Reason.TASK.name.lower()), ("g1", "update", None)}
    assert plant.version > 1
    serving = gateway.in_service("story")
    assert serving is not None
    assert serving.task.model == model
    x = plant.folders["g0"].samples.held_x
    assert np.isfinite(gateway.make_engine(serving.task).infer(to_parameters(serving.steps, 12), x)).all()


def test_a_gateway_that_stopped_a_run_tries_once_more_after_a_restart(tmp_path: Path) -> None:
    data, model = brought(slow(bundle_of(MODEL)))
    plant = Plant(tmp_path, gateways=2, task=task_of(model), bundle=data, rounds=2)
    on_a_short_leash(plant, "numpy")
    plant.run_until(lambda: plant.gateways["g0"]._shelf.refusal(model) is not None)
    plant.kill_gateway("g0")
    plant.start_gateway("g0")
    plant.run_until(lambda: plant.job.resting is not None)
    assert "update" in {answer.kind for answer in plant.book.answers() if answer.gateway == "g0"}


def test_an_engine_that_gives_up_costs_a_round_and_not_the_process(tmp_path: Path) -> None:
    class Broken:
        def loss_grad(self, *_: object) -> Any:
            raise GraphError("the graph of 9 nodes cannot be run: no memory")

        infer = loss_grad

    data, model = brought(bundle_of(MODEL))
    plant = Plant(tmp_path, gateways=2, task=task_of(model), bundle=data, rounds=3)
    plant.gateways["g0"]._make_engine = lambda task, bundle: Broken()
    plant.run_until(lambda: plant.job.resting is not None)
    reasons = {answer.reason for answer in plant.book.answers() if answer.gateway == "g0"}
    assert reasons == {None, Reason.ERROR.name.lower()}  # None: of the statistics
    assert plant.gateways["g0"]._shelf.refusal(model) is None


def test_the_model_in_service_stays_while_the_next_one_is_refused(tmp_path: Path) -> None:
    data, model = brought(bundle_of(MODEL))
    plant = Plant(tmp_path, gateways=2, task=task_of(model), bundle=data, rounds=2)
    plant.run_to_rest()
    plant.order("promote")
    plant.run_until(lambda: all(g.in_service("story") is not None for g in plant.gateways.values()))
    plant.kill_coordinator()
    plant.bundle, wide = brought(bundle_of(WIDE))
    plant.task = task_of(wide)
    for gateway in plant.gateways.values():
        refusing(gateway, "no")
    plant.start_coordinator()
    plant.run_until(lambda: all(g._unfit for g in plant.gateways.values()))
    for gateway in plant.gateways.values():
        serving = gateway.in_service("story")
        assert serving is not None
        assert serving.task.model == model
        assert gateway._shelf.find(model) is not None


def test_bytes_that_are_not_the_task_s_are_refused_with_both(tmp_path: Path) -> None:
    data, model = brought(bundle_of(MODEL))
    lying = msgspec.structs.replace(model, loss="reconstruction", sizes=(FEATURES, FEATURES))
    task = make_task(model=lying, classes=(), initial=short(model_digest(initial_steps(lying, 0, 12))), name="story")
    plant = Plant(tmp_path, gateways=1, task=task, bundle=data, rounds=1)
    plant.run_until(lambda: plant.gateways["g0"]._shelf.refusal(lying) is not None)
    assert "the task says" in str(plant.gateways["g0"]._shelf.refusal(lying))
