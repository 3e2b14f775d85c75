"""What models in service say of a stretch of signal, and how they come from a gateway's memory."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import brought, bundle_of, regressor_of, with_preparation
from fedmq_edge_node.alarms import Raised
from fedmq_edge_node.machines import Machine
from fedmq_edge_node.memory import GatewayState, InService, Memory
from fedmq_edge_node.operating import OperatingSettings
from fedmq_edge_node.opinions import ScoringModel
from fedmq_edge_node.runtimes import GraphStopped, make_engine, make_preparation
from fedmq_edge_node.samples import FEATURES, featured
from fedmq_edge_node.watching import Watcher, WatchPolicy, Window
from fedmq_models.bundle import from_bytes
from fedmq_protocol.task import ModelSpec, Task, Windowing, initial_steps, to_parameters

from fedmq.watch.program import Models

RATE_HZ = 12_000.0
SIGNAL = 0.1 * np.random.default_rng(0).normal(size=(24_000, 1))


def state(kind: str = "softmax", steps: Any = None, version: int = 1, **more: Any) -> GatewayState:
    values: dict[str, Any] = {
        "softmax": {"sizes": (FEATURES, 2)},
        "autoencoder": {"sizes": (FEATURES, 4, FEATURES)},
        "regressor": {"sizes": (FEATURES, 4, 1)},
    }[kind]
    model = ModelSpec(kind=kind, **values)  # type: ignore[arg-type]
    windowing = Windowing(scaling="none", **more)
    classes = ("normal", "ball") if kind == "softmax" else ()
    task = Task(name=kind, model=model, classes=classes, initial=bytes(8), windowing=windowing)
    flat = np.zeros(model.parameters, dtype=np.int32) if steps is None else steps(model.parameters)
    service = InService(task=task, lineage=1, version=version, digest=bytes([version] * 32), steps=flat, scaler=None)
    return GatewayState(
        lineage=1,
        task=task,
        steps=flat,
        residual=np.zeros(model.parameters, dtype=np.float32),
        in_service=service,
    )


def saved(path: Path, *states: GatewayState) -> Path:
    memory = Memory(path / "gateway.sqlite")
    memory.load()
    for one in states:
        memory.save(one)
    memory.close()
    return path / "gateway.sqlite"


def models(path: Path, *states: GatewayState) -> dict[str, Any]:
    found = Models(saved(path, *states), "auto")()
    assert found is not None
    return {model.name: model for model in found}


def test_probabilities_scores_and_lives_are_told_by_objective(tmp_path: Path) -> None:
    found = models(tmp_path, state(), state("autoencoder"), state("regressor", remaining_most=50_000))
    said = {name: model.opinion(SIGNAL, RATE_HZ) for name, model in found.items()}
    assert said["softmax"].classes == pytest.approx({"normal": 0.5, "ball": 0.5})
    assert said["autoencoder"].score > 0
    assert 0 <= said["regressor"].remaining <= said["regressor"].remaining_most == 50_000


@pytest.mark.parametrize(
    ("signal", "rate_hz"), [(SIGNAL, 6000.0), (SIGNAL[:1000], RATE_HZ)], ids=["another rate", "too short"]
)
def test_a_signal_that_does_not_fit_has_no_opinion(tmp_path: Path, signal: Any, rate_hz: float) -> None:
    assert models(tmp_path, state())["softmax"].opinion(signal, rate_hz) is None


def test_models_are_given_again_only_when_the_memory_has_changed(tmp_path: Path) -> None:
    path = saved(tmp_path, state())
    look = Models(path, "auto")
    (first,) = look() or ()
    assert look() is None
    saved(tmp_path, state(version=2))
    (second,) = look() or ()
    assert isinstance(first, ScoringModel)
    assert isinstance(second, ScoringModel)
    assert (first.version, second.version) == (1, 2)
    assert first.mark != second.mark


def test_without_a_memory_there_is_nothing_to_ask(tmp_path: Path) -> None:
    assert Models(tmp_path / "gateway.sqlite", "auto")() is None
    assert not (tmp_path / "gateway.sqlite").exists()
    assert Models(None, "auto")() is None


def test_a_damaged_memory_is_told_and_the_watch_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "gateway.sqlite").write_bytes(b"no database" * 100)
    assert Models(tmp_path / "gateway.sqlite", "auto")() is None
    assert "cannot be read" in caplog.text


# --- somebody's own models -------------------------------------------------------------------------------------------

BUNDLES = Path(__file__).parents[1] / "vectors" / "bundles"
CLASSES = ("normal", "inner_race", "ball", "outer_race")
RAW: dict[str, Any] = {"features": "raw", "samples": 1024, "hop": 1024}
MACHINE = Machine(name="pump-3", operating=OperatingSettings(running_from_g=0.05, dwell_seconds=0.0))


def golden(name: str) -> tuple[bytes, ModelSpec]:
    data = (BUNDLES / f"{name}.fedmq").read_bytes()
    return data, from_bytes(data).model(hashlib.sha256(data).digest(), len(data))


def served(path: Path, data: bytes, model: ModelSpec, **windowing: Any) -> Path:
    """A gateway's memory with that model in service."""
    classes = CLASSES[: model.sizes[-1]] if model.objective == "classify" else ()
    task = Task(
        name="brought",
        model=model,
        classes=classes,
        initial=bytes(8),
        windowing=Windowing(**({"scaling": "none"} | windowing)),
    )
    steps = initial_steps(model, 1, task.grid_bits)
    service = InService(task=task, lineage=1, version=1, digest=bytes([1] * 32), steps=steps, scaler=None)
    residual = np.zeros(model.parameters, dtype=np.float32)
    found = saved(path, GatewayState(lineage=1, task=task, steps=steps, residual=residual, in_service=service))
    memory = Memory(found)
    memory.put(f"bundle {model.bundle.hex()}", data)
    memory.close()
    return found


def by_the_engine(data: bytes, model: ModelSpec, x: Any) -> Any:
    """Of features `(n, inputs)`; that engines come to what PyTorch does, the golden vectors say."""
    flat = to_parameters(initial_steps(model, 1, 12), 12)
    return make_engine(model, "numpy", from_bytes(data)).infer(flat, x)


def cut(samples: int, hop: int) -> Any:
    return np.stack([SIGNAL[at : at + samples, 0] for at in range(0, len(SIGNAL) - samples + 1, hop)])


def test_a_golden_bundle_that_tells_classes_scores_as_its_graphs_do(tmp_path: Path) -> None:
    data, model = golden("cnn")
    (found,) = Models(served(tmp_path, data, model, **RAW), "auto")() or ()
    said = found.opinion(SIGNAL, RATE_HZ)
    assert said is not None
    assert said.classes is not None
    expected = by_the_engine(data, model, cut(1024, 1024).astype(np.float32)).mean(axis=0)
    assert list(said.classes) == list(CLASSES)
    assert list(said.classes.values()) == pytest.approx(expected.tolist(), abs=1e-5)
    assert found.opinion(SIGNAL[:500], RATE_HZ) is None


def test_a_golden_bundle_on_features_scores_as_its_graphs_do(tmp_path: Path) -> None:
    data, model = golden("mlp")
    (found,) = Models(served(tmp_path, data, model), "auto")() or ()
    said = found.opinion(SIGNAL, RATE_HZ)
    assert said is not None
    assert said.classes is not None
    windowing = Windowing(scaling="none")
    x = featured(cut(windowing.samples, windowing.hop)[:, None, :], windowing)
    assert list(said.classes.values()) == pytest.approx(by_the_engine(data, model, x).mean(axis=0).tolist(), abs=1e-5)


def test_a_golden_autoencoder_scores_how_badly_it_knows_a_window_again(tmp_path: Path) -> None:
    data, model = golden("autoencoder")
    (found,) = Models(served(tmp_path, data, model, features="raw", samples=32, hop=1000), "auto")() or ()
    said = found.opinion(SIGNAL, RATE_HZ)
    assert said is not None
    x = cut(32, 1000).astype(np.float32)
    errors = ((by_the_engine(data, model, x) - x) ** 2).mean(axis=1)
    assert said.score == pytest.approx(float(np.median(errors)), rel=1e-4)


def test_a_bundle_that_predicts_remaining_life_is_held_to_what_it_can_tell(tmp_path: Path) -> None:
    data, model = brought(regressor_of(ModelSpec(kind="regressor", sizes=(FEATURES, 4, 1))))
    (found,) = Models(served(tmp_path, data, model, remaining_most=50_000), "auto")() or ()
    said = found.opinion(SIGNAL, RATE_HZ)
    assert said is not None
    assert said.remaining_most == 50_000
    windowing = Windowing(scaling="none", remaining_most=50_000)
    x = featured(cut(windowing.samples, windowing.hop)[:, None, :], windowing)
    left = float(np.median(by_the_engine(data, model, x)[:, 0])) * 50_000
    assert said.remaining == pytest.approx(min(max(left, 0.0), 50_000), rel=1e-4)


def test_a_bundle_that_prepares_raw_windows_itself_does_so_here(tmp_path: Path) -> None:
    data, model = brought(with_preparation(bundle_of(ModelSpec(kind="mlp", sizes=(22, 8, 3))), samples=64, channels=1))
    (found,) = Models(served(tmp_path, data, model, features="bundle", samples=64, hop=1000), "auto")() or ()
    preparation = make_preparation(from_bytes(data), "numpy")
    said = found.opinion(SIGNAL, RATE_HZ)
    assert preparation is not None
    assert said is not None
    assert said.classes is not None
    expected = by_the_engine(data, model, preparation.run(cut(64, 1000).astype(np.float32))).mean(axis=0)
    assert list(said.classes.values()) == pytest.approx(expected.tolist(), abs=1e-5)


def test_a_bundle_that_is_not_at_hand_is_told_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data, model = golden("mlp")
    path = served(tmp_path, data, model)
    memory = Memory(path)
    memory.drop(f"bundle {model.bundle.hex()}")
    memory.close()
    assert Models(path, "auto")() == []
    assert "its bundle is not at hand" in caplog.text


class Stopping:
    """An engine that takes too long."""

    def infer(self, flat: Any, x: Any) -> Any:
        raise GraphStopped("it ran for more than 5 s")


def test_a_graph_that_takes_too_long_is_not_asked_again_and_the_rest_judges(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data, model = golden("cnn")
    (found,) = Models(served(tmp_path, data, model, **RAW), "auto")() or ()
    assert isinstance(found, ScoringModel)
    stopping = replace(found._scorer, engine=Stopping())  # type: ignore[arg-type]
    slow = ScoringModel(stopping, "1")
    assert slow.opinion(SIGNAL, RATE_HZ) is None
    assert slow.opinion(SIGNAL, RATE_HZ) is None
    assert caplog.text.count("does not score here any more") == 1


@pytest.mark.parametrize("name", ["cnn", "autoencoder"])
def test_what_a_golden_bundle_says_is_judged_in_the_watch(tmp_path: Path, name: str) -> None:
    data, model = golden(name)
    windowing = RAW if name == "cnn" else {"features": "raw", "samples": 32, "hop": 1000}
    found = Models(served(tmp_path, data, model, **windowing), "auto")() or ()
    # Parameters that nobody trained say something of everything: the class that they name is a fault here.
    said = found[0].opinion(SIGNAL, RATE_HZ)
    assert said is not None
    shares = said.classes or {}
    policy = WatchPolicy(healthy="none of them", fault_share=0.9 * max(shares.values(), default=1.0))
    watcher = Watcher(MACHINE, policy, found)
    seen = [
        watcher.step(Window(sensor="x", from_at=10.0 * n, to_at=10.0 * n + 2, signal=signal, rate_hz=RATE_HZ))
        for n, signal in enumerate([SIGNAL] * 20 + [3 * SIGNAL] * 4)
    ]
    raised = {outcome.kind: outcome for one in seen for outcome in one.outcomes if isinstance(outcome, Raised)}
    if name == "cnn":
        assert raised["fault"].label == max(shares, key=lambda label: shares[label])
    else:
        assert "score of brought" in {one.name.partition(" of version")[0] for one in raised["anomaly"].evidence}
