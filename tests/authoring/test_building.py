"""From a module to a bundle: what it starts from."""

from __future__ import annotations

import numpy as np
import torch
from fedmq_edge_node.runtimes import make_engine
from fedmq_models.bundle import Bundle, from_bytes, start_of, to_bytes
from fedmq_protocol.task import initial_steps, to_parameters
from torch import nn

from fedmq.authoring.building import Initial, build

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
