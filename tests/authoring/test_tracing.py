"""Gradients of traced graphs, run by onnxruntime, against torch's own; and what is said where tracing fails."""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: run scripts/test-authoring")
ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: run scripts/test-authoring")
pytest.importorskip("onnxscript", reason="onnxscript is not installed: run scripts/test-authoring")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from fedmq.authoring.tracing import OPERATORS, AuthoringError, check_gradients, trace  # noqa: E402

BATCH = 6
torch.set_num_threads(1)


def _zoo() -> Any:
    spec = importlib.util.spec_from_file_location("authoring_zoo", Path(__file__).with_name("zoo.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["authoring_zoo"] = module
    spec.loader.exec_module(module)
    return module


zoo = _zoo()


@pytest.fixture(scope="module", autouse=True)
def _one_registry() -> Iterator[None]:
    """The exporter reads all of its functions anew for each graph, which is half of the time; here it does so once."""
    registry = importlib.import_module("torch.onnx._internal.exporter._registration").ONNXRegistry
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "from_torchlib", staticmethod(functools.cache(registry.from_torchlib)))
        yield


def _run(model: Any, feed: dict[str, Any]) -> list[Any]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feed)


def _windows(sample: tuple[int, ...], n: int = BATCH, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal((n, *sample)).astype(np.float32)


def _feed(traced: Any, x: Any, seed: int = 1) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    shape = tuple(d.dim_value for d in traced.grad.graph.input[2].type.tensor_type.shape.dim)
    if traced.loss == "cross_entropy":
        classes = traced.infer.graph.output[0].type.tensor_type.shape.dim[1].dim_value
        y: Any = rng.integers(0, classes, shape)
    else:
        y = rng.standard_normal(shape).astype(np.float32)
    w = np.array([1.0, 0.5, 2.0, 0.0, 1.0, 3.0], np.float32)
    noise = {f"noise_{i}": rng.random(shape, np.float32) for i, shape in enumerate(traced.noise)}
    return {"flat": traced.flat, "x": x, "y": y, "w": w, **noise}


def _loss(kind: str, output: Any, feed: dict[str, Any]) -> Any:
    """As torch has it, example by example."""
    w = torch.from_numpy(feed["w"])
    if kind == "cross_entropy":
        each = F.cross_entropy(output, torch.from_numpy(feed["y"]), reduction="none")
    else:
        target = torch.from_numpy(feed["y" if kind == "mse" else "x"])
        each = F.mse_loss(output, target, reduction="none").flatten(1).mean(1)
    return (w * each).sum() / w.sum()


def _assert_agrees(traced: Any, module: Any, feed: dict[str, Any]) -> None:
    loss = _loss(traced.loss, module(torch.from_numpy(feed["x"])), feed)
    wanted = torch.autograd.grad(loss, [p for p in module.parameters() if p.requires_grad])
    expected = np.concatenate([g.numpy().ravel() for g in wanted])
    assert np.abs(expected).max() > 1e-3
    gradient, value = _run(traced.grad, feed)
    assert gradient.dtype == np.float32
    assert gradient.shape == traced.flat.shape
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(value, loss.item(), rtol=1e-5)


class _GivenDropout(nn.Module):
    """Dropout by torch's formula, with the numbers given."""

    def __init__(self, p: float, noise: Any) -> None:
        super().__init__()
        self.p, self.noise = p, torch.from_numpy(noise)

    def forward(self, x: Any) -> Any:
        return torch.where(self.noise >= self.p, x / (1 - self.p), 0.0)


@pytest.mark.parametrize("name", zoo.ZOO)
def test_the_gradient_is_torchs_own(name: str) -> None:
    torch.manual_seed(3)
    specimen = zoo.ZOO[name]
    module = specimen.build()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    x = _windows(specimen.sample)
    traced = trace(module, example_x=x, batch=BATCH, **specimen.options)

    assert {key: torch.equal(value, before[key]) for key, value in module.state_dict().items()} == dict.fromkeys(
        before, True
    )
    for p in traced.parameters:
        own = module.get_parameter(p.name).detach().numpy()
        np.testing.assert_array_equal(traced.flat[p.offset : p.offset + own.size].reshape(p.shape), own)
    for graph in (traced.grad, traced.infer, traced.infer_one):
        assert {node.op_type for node in graph.graph.node} <= OPERATORS
        assert {node.domain for node in graph.graph.node} <= {""}

    feed = _feed(traced, x)
    with torch.no_grad():
        output = module.eval()(torch.from_numpy(x))
        output = torch.softmax(output, 1) if traced.loss == "cross_entropy" else output
    (inferred,) = _run(traced.infer, {"flat": traced.flat, "x": x})
    np.testing.assert_allclose(inferred, output.numpy(), rtol=0, atol=1e-5)
    (single,) = _run(traced.infer_one, {"flat": traced.flat, "x": x[2:3]})
    np.testing.assert_allclose(single, output.numpy()[2:3], rtol=0, atol=1e-5)

    if traced.noise:
        drops = [i for i, layer in enumerate(module) if isinstance(layer, nn.Dropout)]
        assert len(drops) == len(traced.noise)
        for i, at in enumerate(drops):
            module[at] = _GivenDropout(module[at].p, feed[f"noise_{i}"])
    _assert_agrees(traced, module.train(), feed)


def test_the_cnn_is_of_the_size_it_is_said_to_be() -> None:
    assert 10_000 < sum(p.numel() for p in zoo.cnn().parameters()) < 12_000


def test_other_noise_and_other_weights_give_another_gradient() -> None:
    module = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.Linear(8, 2))
    x = _windows((5,))
    traced = trace(module, loss="cross_entropy", classes=2, example_x=x, batch=BATCH)
    feed = _feed(traced, x)
    first = _run(traced.grad, feed)[0]
    other_noise = _run(traced.grad, {**feed, "noise_0": 1 - feed["noise_0"]})[0]
    other_weights = _run(traced.grad, {**feed, "w": np.ones(BATCH, np.float32)})[0]
    assert np.abs(first - other_noise).max() > 1e-3
    assert np.abs(first - other_weights).max() > 1e-3


def test_where_values_tie_the_first_of_a_window_takes_the_gradient() -> None:
    module = nn.Sequential(nn.Conv1d(1, 3, 3), nn.ReLU(), nn.MaxPool1d(4, stride=3), nn.Flatten(), nn.Linear(9, 2))
    x = np.round(_windows((1, 13)))  # many zeros after ReLU, many equal values
    x[:, :, :6] = 1.0
    traced = trace(module, loss="cross_entropy", classes=2, example_x=x, batch=BATCH)
    _assert_agrees(traced, module, _feed(traced, x))


@pytest.mark.parametrize(
    "layer",
    [
        nn.SiLU(),
        nn.Mish(),
        nn.ELU(),
        nn.SELU(),
        nn.LeakyReLU(0.2),
        nn.Softplus(),
        nn.Hardtanh(),
        nn.Hardswish(),
        nn.ReLU6(),
        nn.GELU(approximate="tanh"),
        nn.Softmax(1),
        nn.LogSigmoid(),
        nn.AdaptiveAvgPool1d(4),
        nn.PReLU(),
        nn.AvgPool1d(3, stride=2, padding=1),
        nn.ConvTranspose1d(2, 2, 4, stride=2, padding=1),
        nn.Conv1d(2, 2, 3, stride=2, padding=1),
        nn.Conv1d(2, 2, 5, stride=3, padding=4),
        nn.Conv1d(2, 2, 12, padding=6),
        nn.Conv1d(2, 2, 3, padding="same", dilation=2, bias=False),
        nn.LayerNorm([2, 12]),
        nn.GroupNorm(1, 2, affine=False),
        nn.InstanceNorm1d(2),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_a_layer_between_two_others(layer: Any) -> None:
    torch.manual_seed(4)
    x = _windows((2, 14))
    body = nn.Sequential(nn.Conv1d(2, 2, 3), layer, nn.Flatten())
    module = nn.Sequential(body, nn.Linear(body(torch.from_numpy(x)).shape[1], 3))
    traced = trace(module, loss="mse", outputs=3, example_x=x, batch=BATCH)
    _assert_agrees(traced, module, _feed(traced, x))


def test_where_relu_is_flat_no_gradient_comes_through_however_large_it_is() -> None:
    class Root(nn.Module):
        def forward(self, x: Any) -> Any:
            return torch.sqrt(torch.relu(x))  # infinitely steep at 0

    torch.manual_seed(4)
    module, x = nn.Sequential(nn.Linear(6, 8), Root(), nn.Linear(8, 3)), _windows((6,))
    assert (module[0](torch.from_numpy(x)) < 0).any()
    traced = trace(module, loss="mse", outputs=3, example_x=x, batch=BATCH)
    _assert_agrees(traced, module, _feed(traced, x))


def test_two_layers_of_a_gru_both_ways_round() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru = nn.GRU(3, 5, num_layers=2, bidirectional=True, bias=False)
            self.head = nn.Linear(10, 2)

        def forward(self, x: Any) -> Any:
            return self.head(self.gru(x.transpose(0, 1))[0].mean(0))

    module, x = Both(), _windows((7, 3))
    traced = trace(module, loss="cross_entropy", classes=2, example_x=x, batch=BATCH)
    _assert_agrees(traced, module, _feed(traced, x))


def test_attention_and_its_dropout() -> None:
    class Attending(nn.Module):
        def __init__(self, dropout: float) -> None:
            super().__init__()
            self.project, self.head, self.dropout = nn.Linear(4, 24), nn.Linear(8, 2), dropout

        def forward(self, x: Any) -> Any:
            query, key, value = self.project(x).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
            drop = self.dropout if self.training else 0.0
            attended = F.scaled_dot_product_attention(query, key, value, dropout_p=drop, is_causal=True)
            return self.head(attended.transpose(1, 2).flatten(2).mean(1))

    module, x = Attending(0.0), _windows((6, 4))
    traced = trace(module, loss="cross_entropy", classes=2, example_x=x, batch=BATCH)
    _assert_agrees(traced, module, _feed(traced, x))
    noisy = trace(Attending(0.1), loss="cross_entropy", classes=2, example_x=x, batch=BATCH)
    assert noisy.noise == ((BATCH, 2, 6, 6),)


def test_dropout_of_channels_takes_one_number_for_each() -> None:
    module = nn.Sequential(nn.Conv1d(1, 4, 3), nn.Dropout1d(0.5), nn.Flatten(), nn.Linear(4 * 6, 2))
    x = _windows((1, 8))
    traced = trace(module, loss="cross_entropy", classes=2, example_x=x, batch=BATCH)
    assert traced.noise == ((BATCH, 4, 1),)
    feed = _feed(traced, x)
    module[1] = _GivenDropout(0.5, feed["noise_0"])
    _assert_agrees(traced, module, feed)


def test_a_fresh_batchnorm_becomes_a_groupnorm_and_is_remarked_on() -> None:
    module = nn.Sequential(nn.Conv1d(1, 8, 3), nn.BatchNorm1d(8), nn.Flatten(), nn.Linear(8 * 10, 2))
    x = _windows((1, 12))
    traced = trace(module, loss="cross_entropy", classes=2, example_x=x, batch=BATCH)
    assert isinstance(module[1], nn.BatchNorm1d)
    (remark,) = traced.remarks
    assert remark.startswith("1: BatchNorm replaced by GroupNorm(2, 8)")
    replaced = nn.Sequential(module[0], nn.GroupNorm(2, 8), module[2], module[3])
    _assert_agrees(traced, replaced, _feed(traced, x))


def test_a_trained_batchnorm_is_frozen_and_is_remarked_on() -> None:
    module = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    x = _windows((6,))
    module(torch.from_numpy(_windows((6,), n=64, seed=9) * 3 + 1))
    traced = trace(module, loss="cross_entropy", classes=2, example_x=x, batch=BATCH)
    (remark,) = traced.remarks
    assert remark.startswith("1: BatchNorm, trained, is frozen")
    _assert_agrees(traced, module.eval(), _feed(traced, x))


def test_what_requires_no_gradient_is_a_constant() -> None:
    module = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))
    module[0].requires_grad_(False)
    x = _windows((6,))
    traced = trace(module, loss="cross_entropy", classes=2, example_x=x, batch=BATCH)
    assert [p.name for p in traced.parameters] == ["2.weight", "2.bias"]
    assert traced.remarks == ("held as constants, for they require no gradient: 0.weight, 0.bias",)
    _assert_agrees(traced, module, _feed(traced, x))


def test_the_check_of_gradients_sees_right_and_wrong() -> None:
    module = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 2))
    traced = trace(module, loss="cross_entropy", classes=2, example_x=_windows((5,)), batch=BATCH)
    found = check_gradients(traced, module)
    assert max(found.autograd, found.finite_differences) < 1e-6
    assert found.coordinates == 16
    other = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 2))
    with pytest.raises(AuthoringError, match=r"should agree with torch's within .*, and is off by"):
        check_gradients(traced, other)


class _Apply(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Any) -> Any:
        return self.function(x)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            lambda x: torch.cumsum(x, 1),
            r"operator CumSum .*, in module 1\.part \(_Apply\): multiply with a constant tri",
        ),
        (lambda x: torch.sin(x), r"operator (Sin|Cos) .*in module 1\.part \(_Apply\): replace it by what the allowed"),
        (lambda x: torch.sort(x, 1)[0], r"1\.part \(_Apply\)"),
        (lambda x: x if x.sum() > 0 else -x, "branches on the values of a tensor: use torch.where"),
        (lambda x: x + torch.rand_like(x), "use nn.Dropout for noise|draw no numbers but by nn.Dropout"),
        (lambda x: F.max_pool1d(x, 2, ceil_mode=True), "MaxPool1d with ceil_mode cannot be traced: leave it off"),
    ],
    ids=["cumsum", "sin", "sort", "branch", "noise", "ceil_mode"],
)
def test_what_cannot_be_traced_is_named_with_a_way_out(function: Any, message: str) -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = _Apply(function)

        def forward(self, x: Any) -> Any:
            return self.part(x).flatten(1)[:, :4]

    module = nn.Sequential(nn.Linear(8, 8), Outer(), nn.Linear(4, 2))
    with pytest.raises(AuthoringError, match=message):
        trace(module, loss="cross_entropy", classes=2, example_x=_windows((8,)), batch=BATCH)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": None}, "needs classes, at least 1"),
        ({"outputs": 2}, "has no outputs: leave it out"),
        ({"loss": "hinge"}, "loss should be one of cross_entropy, mse, reconstruction"),
        ({"classes": 3}, r"should return one tensor of shape \(6, 3\), and returned shape \(6, 2\)"),
        ({"batch": 0}, "at least one window"),
        ({"example_x": np.zeros((2, 8))}, "should be float32"),
    ],
)
def test_what_is_asked_for_is_checked(change: dict[str, Any], message: str) -> None:
    options: dict[str, Any] = {
        "loss": "cross_entropy",
        "classes": 2,
        "example_x": _windows((8,)),
        "batch": BATCH,
        **change,
    }
    with pytest.raises(AuthoringError, match=message):
        trace(nn.Linear(8, 2), **options)


def test_a_recurrence_does_not_grow_beyond_its_length() -> None:
    """Nodes per step are bounded, or a sequence of 32 would be too much for a gateway."""
    counts = []
    for length in (8, 16):
        module, x = zoo.Recurrent(), _windows((length, 4))
        traced = trace(module, loss="cross_entropy", classes=3, example_x=x, batch=BATCH)
        counts.append(sum(Counter(node.op_type for node in traced.grad.graph.node).values()))
    assert counts[1] - counts[0] <= 8 * 60
