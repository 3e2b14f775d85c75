"""From a module to a bundle: what it starts from, what is recommended with it, and features of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fedmq_edge_node.runtimes import available_engines, make_engine, make_preparation
from fedmq_models.bundle import Bundle, Coding, from_bytes, start_of, to_bytes
from fedmq_protocol.task import Recipe, Windowing, initial_steps, to_parameters

torch = pytest.importorskip("torch", reason="torch is not installed: run scripts/test-authoring")
pytest.importorskip("onnxscript", reason="onnxscript is not installed: run scripts/test-authoring")

from torch import nn  # noqa: E402

from fedmq.authoring.building import Initial, build  # noqa: E402
from fedmq.authoring.conversion import AuthoringError  # noqa: E402
from fedmq.cli import main  # noqa: E402

GRID_BITS = 20
X = np.random.default_rng(0).normal(size=(64, 1, 40)).astype(np.float32)


class Network(nn.Module):
    """A convolution, a norm of the batch's statistics, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv1d(1, 8, 5, stride=2), nn.BatchNorm1d(8), nn.ReLU(), nn.Flatten())
        self.head = nn.Linear(8 * 18, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


def trained() -> Network:
    """Some steps of training: its statistics and parameters are nobody's defaults any more."""
    torch.manual_seed(3)
    network = Network()
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    y = torch.from_numpy(np.random.default_rng(1).integers(0, 3, len(X)))
    for _ in range(20):
        optimiser.zero_grad()
        nn.functional.cross_entropy(network(torch.from_numpy(X)), y).backward()
        optimiser.step()
    return network


def bundle_of(module: nn.Module, initial: Initial = "module") -> Bundle:
    made = build(module, name="network", loss="cross_entropy", example=X, batch=8, initial=initial)
    return from_bytes(to_bytes(made))


def probabilities(bundle: Bundle) -> np.ndarray:  # type: ignore[type-arg]
    """At the start of a task that is made of it."""
    model = bundle.model(bytes(32), 1)
    flat = to_parameters(start_of(model, 0, GRID_BITS, bundle), GRID_BITS)
    return make_engine(model, "numpy", bundle).infer(flat, X.reshape(len(X), -1))


def of_torch(module: nn.Module) -> np.ndarray:  # type: ignore[type-arg]
    with torch.no_grad():
        return torch.softmax(module.eval()(torch.from_numpy(X)), 1).numpy()


def test_a_task_starts_with_what_the_module_has_learnt() -> None:
    module = trained()
    assert np.abs(probabilities(bundle_of(module)) - of_torch(module)).max() < 1e-4


def test_layers_that_are_held_keep_what_they_have_learnt() -> None:
    module = trained()
    for parameter in module.body.parameters():
        parameter.requires_grad = False
    bundle = bundle_of(module)
    assert [part.name for part in bundle.manifest.parameters] == ["head.weight", "head.bias"]
    assert np.abs(probabilities(bundle) - of_torch(module)).max() < 1e-4


def test_a_start_from_the_seed_keeps_nothing_and_says_so() -> None:
    module = trained()
    bundle = bundle_of(module, "seed")
    assert bundle.values is None
    assert "had learnt is not kept" in bundle.manifest.remarks[-1]
    model = bundle.model(bytes(32), 1)
    assert np.array_equal(start_of(model, 4, GRID_BITS, bundle), initial_steps(model, 4, GRID_BITS))
    assert np.abs(probabilities(bundle) - of_torch(module)).max() > 0.01


FOUR = np.random.default_rng(5).normal(size=(16, 4, 40)).astype(np.float32)
FOUR_CHANNELS = Windowing(features="raw", samples=40, hop=20, channels=4, scaling="none")


def convolutions() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Conv1d(4, 6, 5), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 3))


def test_windows_of_several_channels_come_to_a_convolution_as_it_takes_them() -> None:
    module = convolutions()
    bundle = build(
        module, name="four", loss="cross_entropy", example=FOUR, batch=8, windowing=FOUR_CHANNELS, initial="module"
    )
    assert bundle.manifest.inputs == (40, 4)
    assert "turned before the module" in bundle.manifest.remarks[-1]
    model = bundle.model(bytes(32), 1)
    flat = to_parameters(start_of(model, 0, GRID_BITS, bundle), GRID_BITS)
    raw = np.ascontiguousarray(FOUR.transpose(0, 2, 1)).reshape(16, -1)  # as a gateway cuts them
    with torch.no_grad():
        expected = torch.softmax(module(torch.from_numpy(FOUR)), 1).numpy()
    assert np.abs(make_engine(model, "numpy", bundle).infer(flat, raw) - expected).max() < 1e-4


def test_an_autoencoder_of_several_channels_gives_windows_back_as_they_came() -> None:
    torch.manual_seed(6)
    module = nn.Sequential(nn.Conv1d(4, 3, 5, padding=2), nn.Tanh(), nn.Conv1d(3, 4, 5, padding=2))
    bundle = build(module, name="four", loss="reconstruction", example=FOUR, batch=8, windowing=FOUR_CHANNELS)
    model = bundle.model(bytes(32), 1)
    flat = to_parameters(start_of(model, 0, GRID_BITS, bundle), GRID_BITS)
    raw = np.ascontiguousarray(FOUR.transpose(0, 2, 1)).reshape(16, -1)
    with torch.no_grad():
        expected = module(torch.from_numpy(FOUR)).numpy().transpose(0, 2, 1).reshape(16, -1)
    assert np.abs(make_engine(model, "numpy", bundle).infer(flat, raw) - expected).max() < 1e-4


def test_a_window_that_the_module_does_not_take_is_refused_with_both_sizes() -> None:
    with pytest.raises(AuthoringError, match=r"160 features which a window becomes.* got one of 1 x 40 = 40"):
        build(Network(), name="n", loss="cross_entropy", example=X, batch=8, windowing=FOUR_CHANNELS)


def test_a_recommendation_is_in_the_bundle() -> None:
    bundle = build(
        nn.Linear(22, 3),
        name="linear",
        loss="cross_entropy",
        example=np.zeros((1, 22), dtype=np.float32),
        optimizer="adam",
        learning_rate=0.001,
        clip_norm=2.0,
        windowing=Windowing(),
        coding=Coding(dial=1.0),
        min_windows=9,
    )
    manifest = from_bytes(to_bytes(bundle)).manifest
    assert manifest.recipe == Recipe(optimizer="adam", learning_rate=0.001, clip_norm=2.0, batch_size=32)
    assert (manifest.windowing, manifest.coding, manifest.min_windows) == (Windowing(), Coding(dial=1.0), 9)


class Loudness(nn.Module):
    """Of each channel in eight stretches, as logarithms; and the largest value."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        stretches = x.reshape(x.shape[0], x.shape[1], 8, -1)
        loud = torch.log(torch.sqrt((stretches * stretches).mean(3)) + 1e-6)
        return torch.cat([loud.flatten(1), x.abs().amax((1, 2)).unsqueeze(1)], 1)


def peaks(x: torch.Tensor) -> torch.Tensor:
    return x.abs().amax(2)


@pytest.mark.parametrize(("preprocess", "features"), [(Loudness(), 33), (peaks, 4)])
def test_preprocessing_is_done_on_a_gateway_as_in_pytorch(preprocess: Any, features: int) -> None:
    torch.manual_seed(7)
    bundle = build(
        nn.Linear(features, 3), name="loud", loss="cross_entropy", example=FOUR, batch=8, preprocess=preprocess
    )
    bundle = from_bytes(to_bytes(bundle))
    assert bundle.manifest.windowing == Windowing(features="bundle", channels=4, samples=40, hop=20)
    assert bundle.manifest.inputs == (features,)
    raw = np.ascontiguousarray(FOUR.transpose(0, 2, 1)).reshape(16, -1)
    expected = preprocess(torch.from_numpy(FOUR)).numpy()
    for engine in available_engines():
        preparation = make_preparation(bundle, engine)
        assert preparation is not None
        assert np.abs(preparation.run(raw) - expected).max() < 1e-5


def test_preprocessing_with_a_foreign_operator_is_refused_by_its_name() -> None:
    with pytest.raises(AuthoringError, match=r"operator DFT cannot.*cosines and sines"):
        build(
            nn.Linear(21, 3),
            name="spectrum",
            loss="cross_entropy",
            example=X,
            batch=8,
            preprocess=lambda x: torch.fft.rfft(x).abs().flatten(1),
        )


MODEL_FILE = """
import torch
from torch import nn


def prepare(x):
    return torch.log(x.reshape(x.shape[0], x.shape[1], 8, -1).abs().mean(3) + 1e-3).flatten(1)


class Model(nn.Linear):
    def __init__(self):
        super().__init__(16, 3)
"""


def test_the_command_makes_a_bundle_with_all_that_was_said(tmp_path: Path) -> None:
    file, output = tmp_path / "my_model.py", tmp_path / "my_model.fedmq"
    file.write_text(MODEL_FILE, encoding="utf-8")
    words = ["--loss", "cross_entropy", "--example", "2x64", "--preprocess", f"{file}:prepare", "--hop", "16"]
    words += ["--optimizer", "adam", "--learning-rate", "0.002", "--bits", "4", "--density", "0.1", "--batch", "16"]
    words += ["--sampling-rate", "50", "--min-windows", "5", "--initial", "seed", "--output", str(output)]
    assert main(["task", "build", f"{file}:Model", *words]) == 0
    bundle = from_bytes(output.read_bytes())
    assert bundle.values is None
    assert bundle.manifest.windowing == Windowing(
        features="bundle", channels=2, samples=64, hop=16, sampling_rate_hz=50.0
    )
    assert bundle.manifest.recipe == Recipe(optimizer="adam", learning_rate=0.002, batch_size=16)
    assert bundle.manifest.coding == Coding(up_bits=4, down_bits=4, least_density=0.1, most_density=0.1)
    assert (bundle.manifest.name, bundle.manifest.min_windows) == ("Model", 5)


def test_the_command_refuses_what_no_task_could_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, output = tmp_path / "my_model.py", tmp_path / "my_model.fedmq"
    file.write_text(MODEL_FILE, encoding="utf-8")
    words = ["--loss", "cross_entropy", "--example", "16", "--hop", "-3", "--output", str(output)]
    assert main(["task", "build", f"{file}:Model", *words]) == 1
    assert "hop" in capsys.readouterr().err
    assert not output.exists()
