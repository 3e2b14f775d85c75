"""The bundle: what it promises, and what is refused."""

from __future__ import annotations

import hashlib

import msgspec
import numpy as np
import pytest
from bundles import BATCH, brought, bundle_of, with_noise, with_preparation, with_values
from fedmq_compression.frame import deflate
from fedmq_edge_node.runtimes import NumpyEngine, available_engines, make_engine, make_preparation
from fedmq_models.bundle import MAX_CONTENT_BYTES, Bundle, BundleError, from_bytes, start_of, to_bytes
from fedmq_models.graph import GraphError, Node, Tensor
from fedmq_models.interpreter import Interpreter
from fedmq_models.standalone import chained, standalone
from fedmq_protocol.task import MAX_BUNDLE_BYTES, ModelSpec, initial_steps, to_parameters

MODEL = ModelSpec(kind="mlp", sizes=(22, 8, 3))


def sealed(content: bytes, size: int | None = None) -> bytes:
    """A file whose digest fits, whatever is in it."""
    body = (len(content) if size is None else size).to_bytes(4, "big") + deflate(content)
    return b"FMQB\x01" + hashlib.sha256(body).digest() + body


def unchecked(bundle: Bundle) -> bytes:
    return sealed(msgspec.msgpack.encode(bundle))


def replaced_node(bundle: Bundle, place: int, node: Node) -> Bundle:
    nodes = list(bundle.grad.nodes)
    nodes[place] = node
    return msgspec.structs.replace(bundle, grad=msgspec.structs.replace(bundle.grad, nodes=tuple(nodes)))


def test_a_bundle_comes_back_as_it_was() -> None:
    bundle = bundle_of(MODEL)
    assert from_bytes(to_bytes(bundle)) == bundle


def test_a_bundle_of_a_small_model_takes_few_bytes() -> None:
    assert len(to_bytes(bundle_of(MODEL))) < 3000
    assert len(to_bytes(bundle_of(ModelSpec(kind="cnn1d", sizes=(1024, 16, 32, 64, 4))))) < 6000


def test_initial_parameters_come_back_as_they_were_to_half_a_step() -> None:
    bundle = from_bytes(to_bytes(with_values(bundle_of(MODEL))))
    _, model = brought(bundle)
    assert bundle.values is not None
    for grid_bits in (12, 20):
        found = to_parameters(start_of(model, 3, grid_bits, bundle), grid_bits)
        assert np.abs(found - bundle.values).max() <= 2.0 ** -(grid_bits + 1)


def test_a_start_that_no_bundle_holds_is_drawn_from_the_seed() -> None:
    _, model = brought(bundle_of(MODEL))
    for bundle in (None, bundle_of(MODEL)):
        assert np.array_equal(start_of(model, 3, 12, bundle), initial_steps(model, 3, 12))


@pytest.mark.parametrize(
    ("initial", "why"),
    [
        (bytes(4), "expected initial parameters of 844 bytes, got 4"),
        (bytes(843), "expected initial parameters of 844 bytes, got 843"),
        (np.full(211, np.nan, dtype="<f4").tobytes(), "between -1000 and 1000"),
        (np.full(211, -np.inf, dtype="<f4").tobytes(), "between -1000 and 1000"),
        (np.full(211, 1e4, dtype="<f4").tobytes(), "between -1000 and 1000"),
    ],
)
def test_initial_parameters_that_are_none_are_refused(initial: bytes, why: str) -> None:
    with pytest.raises(BundleError, match=why):
        from_bytes(unchecked(msgspec.structs.replace(bundle_of(MODEL), initial=initial)))


def test_initial_parameters_that_are_too_large_for_the_grid_are_refused_with_what_to_do() -> None:
    _, model = brought(bundle_of(MODEL))
    bundle = msgspec.structs.replace(bundle_of(MODEL), initial=np.full(211, 65, dtype="<f4").tobytes())
    assert start_of(model, 0, 12, bundle).max() == 65 << 12
    with pytest.raises(BundleError, match=r"up to 64 with task\.grid_bits = 24, got 65: lower"):
        start_of(model, 0, 24, bundle)


def test_more_initial_parameters_than_a_bundle_takes_are_refused_with_what_to_do() -> None:
    large = bundle_of(ModelSpec(kind="softmax", sizes=(4096, 600)))
    assert len(to_bytes(large)) < 3000
    with pytest.raises(BundleError, match="of them initial parameters: draw these"):
        to_bytes(with_values(large))


@pytest.mark.parametrize("engine", available_engines())
def test_a_bundled_model_is_the_built_in_one(engine: str) -> None:
    data, model = brought(bundle_of(MODEL))
    rng = np.random.default_rng(1)
    flat = to_parameters(initial_steps(model, 5, 12), 12)
    assert np.array_equal(flat, to_parameters(initial_steps(MODEL, 5, 12), 12))
    x, y = rng.normal(size=(BATCH, 22)).astype(np.float32), rng.integers(0, 3, BATCH)
    w = np.ones(BATCH, dtype=np.float32)
    w[-5:] = 0
    own = make_engine(model, engine, from_bytes(data))
    gradient, loss = own.loss_grad(flat, x, y, w)
    expected, expected_loss = NumpyEngine(MODEL).loss_grad(flat, x, y, w)
    assert np.abs(gradient - expected).max() < 1e-5
    assert loss == pytest.approx(expected_loss, abs=1e-5)
    for rows in (1, 7, 50):
        more = rng.normal(size=(rows, 22)).astype(np.float32)
        assert np.abs(own.infer(flat, more) - NumpyEngine(MODEL).infer(flat, more)).max() < 1e-5


def test_what_is_not_trainable_has_no_gradient() -> None:
    bundle = bundle_of(MODEL)
    first, *rest = bundle.manifest.parameters
    parameters = (msgspec.structs.replace(first, trainable=False), *rest)
    bundle = msgspec.structs.replace(bundle, manifest=msgspec.structs.replace(bundle.manifest, parameters=parameters))
    _, model = brought(bundle)
    flat = to_parameters(initial_steps(model, 0, 12), 12)
    x = np.random.default_rng(0).normal(size=(BATCH, 22)).astype(np.float32)
    gradient, _ = make_engine(model, "numpy", bundle).loss_grad(
        flat, x, np.zeros(BATCH, dtype=np.int64), np.ones(BATCH, dtype=np.float32)
    )
    assert not gradient[: first.block.count].any()
    assert gradient[first.block.count :].any()


def test_what_is_drawn_for_a_step_depends_on_its_windows_and_can_be_drawn_again() -> None:
    plain, noisy = bundle_of(MODEL), with_noise(bundle_of(MODEL))
    _, model = brought(noisy)
    flat, w = to_parameters(initial_steps(model, 0, 12), 12), np.ones(BATCH, dtype=np.float32)
    y = np.zeros(BATCH, dtype=np.int64)
    two = [np.random.default_rng(seed).normal(size=(BATCH, 22)).astype(np.float32) for seed in (0, 1)]

    def drawn(x: np.ndarray, flat: np.ndarray) -> float:
        with_it, without = (make_engine(model, "numpy", b).loss_grad(flat, x, y, w)[1] for b in (noisy, plain))
        return with_it - without

    first = drawn(two[0], flat)
    assert first == pytest.approx(0.5, abs=0.2)
    assert drawn(two[0], flat) == first
    assert drawn(two[1], flat) != pytest.approx(first, abs=1e-4)
    assert drawn(two[0][::-1].copy(), flat) != pytest.approx(first, abs=1e-4)
    assert drawn(two[0], flat + np.float32(1e-3)) != pytest.approx(first, abs=1e-4)


def test_a_batch_that_the_graphs_are_not_made_for_is_refused() -> None:
    _, model = brought(bundle_of(MODEL))
    engine = make_engine(model, "numpy", bundle_of(MODEL))
    x = np.zeros((8, 22), dtype=np.float32)
    with pytest.raises(ValueError, match="batches of 32 windows, the task has 8"):
        engine.loss_grad(np.zeros(model.parameters, dtype=np.float32), x, np.zeros(8, dtype=np.int64), x[:, 0] + 1)


@pytest.mark.parametrize("place", [0, 4, 10, 40, 60, -1])
def test_a_changed_byte_is_noticed(place: int) -> None:
    data = bytearray(to_bytes(bundle_of(MODEL)))
    data[place] ^= 1
    with pytest.raises(BundleError):
        from_bytes(bytes(data))


@pytest.mark.parametrize("length", [0, 3, 40, 41, 100])
def test_a_file_that_breaks_off_is_refused(length: int) -> None:
    with pytest.raises(BundleError):
        from_bytes(to_bytes(bundle_of(MODEL))[:length])


def test_what_claims_to_be_too_large_is_refused_before_it_is_unpacked() -> None:
    with pytest.raises(BundleError, match="bytes of graphs"):
        from_bytes(sealed(b"x", MAX_CONTENT_BYTES + 1))
    with pytest.raises(BundleError, match="at most"):
        from_bytes(bytes(MAX_BUNDLE_BYTES + 1))


def test_a_frame_that_holds_more_than_it_says_is_refused() -> None:
    with pytest.raises(BundleError, match="zstd frame"):
        from_bytes(sealed(bytes(1 << 20), 1000))


def test_an_operator_that_is_none_of_ours_is_refused_by_its_name() -> None:
    bundle = replaced_node(bundle_of(MODEL), 3, Node("Loop", (0, 1)))
    with pytest.raises(BundleError, match="graph 'grad': node 3: the operator 'Loop'"):
        from_bytes(unchecked(bundle))


def test_a_graph_that_grows_beyond_its_bound_is_refused_before_it_runs() -> None:
    bundle = bundle_of(MODEL)
    wide = Node("Expand", (3,), {"shape": (1 << 20, BATCH)})
    graph = msgspec.structs.replace(bundle.grad, nodes=(*bundle.grad.nodes, wide))
    with pytest.raises(BundleError, match=r"would need [\d,]+ bytes, at most"):
        from_bytes(unchecked(msgspec.structs.replace(bundle, grad=graph)))


def test_a_graph_that_would_take_too_long_is_refused_before_it_runs() -> None:
    bundle = bundle_of(MODEL)
    count = len(bundle.grad.inputs) + len(bundle.grad.constants) + len(bundle.grad.nodes)
    square = Node("Reshape", (3,), {"shape": (1, BATCH)})
    large = [square, Node("Expand", (count,), {"shape": (32, BATCH)})]
    large += [Node("Concat", (count + 1,) * 64, {"axis": 0}), Node("Transpose", (count + 2,), {"perm": (1, 0)})]
    large += [Node("MatMul", (count + 2, count + 3)) for _ in range(40)]
    nodes = (*bundle.grad.nodes, *large)
    with pytest.raises(BundleError, match=r"more than the [\d,]+ operations allowed|bytes, at most"):
        from_bytes(unchecked(msgspec.structs.replace(bundle, grad=msgspec.structs.replace(bundle.grad, nodes=nodes))))


def test_graphs_that_are_not_what_the_manifest_says_are_refused() -> None:
    bundle = bundle_of(MODEL)
    other = msgspec.structs.replace(bundle.manifest, outputs=4)
    with pytest.raises(BundleError, match="expected the outputs"):
        from_bytes(unchecked(msgspec.structs.replace(bundle, manifest=other)))
    swapped = msgspec.structs.replace(bundle, infer=bundle.infer_one)
    with pytest.raises(BundleError, match="graph 'infer': expected the inputs"):
        from_bytes(unchecked(swapped))


@pytest.mark.parametrize("engine", available_engines())
def test_a_bundle_makes_its_own_features_of_raw_windows(engine: str) -> None:
    bundle = from_bytes(to_bytes(with_preparation(bundle_of(MODEL))))
    preparation = make_preparation(bundle, engine)
    assert preparation is not None
    windows = np.random.default_rng(2).normal(size=(5, 16)).astype(np.float32)
    mixed = np.random.default_rng(1).normal(size=(16, 22)).astype(np.float32)
    assert preparation.features == 22
    assert np.abs(preparation.run(windows) - (windows * windows) @ mixed).max() < 1e-4
    assert make_preparation(bundle_of(MODEL), engine) is None


@pytest.mark.parametrize("scaled", [False, True])
def test_a_preparation_can_go_before_a_trained_model_in_one_graph(scaled: bool) -> None:
    bundle = with_preparation(bundle_of(MODEL))
    _, model = brought(bundle)
    preparation = make_preparation(bundle, "numpy")
    assert preparation is not None
    assert bundle.prepare is not None
    rng = np.random.default_rng(3)
    flat = to_parameters(initial_steps(model, 0, 12), 12)
    window = rng.normal(size=(1, 16)).astype(np.float32)
    mean, scale = np.zeros(22, dtype=np.float32), np.ones(22, dtype=np.float32)
    if scaled:
        mean, scale = rng.normal(size=22).astype(np.float32), rng.uniform(2, 3, 22).astype(np.float32)
    alone = standalone(bundle.infer_one, flat, mean, scale) if scaled else standalone(bundle.infer_one, flat)
    (out,) = Interpreter(chained(bundle.prepare, alone)).run([window])
    features = (preparation.run(window) - mean) / scale
    limited = np.clip(features, -8, 8) if scaled else features
    assert np.abs(out - NumpyEngine(MODEL).infer(flat, limited)).max() < 1e-5
    with pytest.raises(GraphError, match="expected a graph that takes"):
        chained(bundle.prepare, bundle.infer_one)


def test_features_that_are_not_finite_are_told() -> None:
    preparation = make_preparation(with_preparation(bundle_of(MODEL)), "numpy")
    assert preparation is not None
    with pytest.raises(GraphError, match="not finite"):
        preparation.run(np.full((1, 16), 1e30, dtype=np.float32))


def test_a_preparation_that_does_not_fit_its_windows_or_its_model_is_refused() -> None:
    bundle = with_preparation(bundle_of(MODEL))
    with pytest.raises(BundleError, match="graph 'prepare': expected the outputs"):
        from_bytes(sealed_with(bundle, samples=8, features=21))
    with pytest.raises(BundleError, match="graph 'prepare': expected the inputs"):
        from_bytes(sealed_with(bundle, samples=9, features=22))
    with pytest.raises(BundleError, match="expected a graph 'prepare' with"):
        from_bytes(unchecked(msgspec.structs.replace(bundle, prepare=None)))
    with pytest.raises(BundleError, match="expected a graph 'prepare' with"):
        from_bytes(unchecked(msgspec.structs.replace(bundle_of(MODEL), prepare=bundle.prepare)))


def sealed_with(bundle: Bundle, *, samples: int, features: int) -> bytes:
    """Whose preparation is for other windows, or another model."""
    other = with_preparation(bundle_of(ModelSpec(kind="mlp", sizes=(features, 8, 3))), samples=samples)
    return unchecked(msgspec.structs.replace(bundle, prepare=other.prepare))


def test_a_node_may_only_use_what_comes_before_it() -> None:
    bundle = replaced_node(bundle_of(MODEL), 0, Node("Neg", (10_000,)))
    with pytest.raises(BundleError, match="expected inputs among"):
        from_bytes(unchecked(bundle))


def test_tensors_say_what_they_are() -> None:
    assert str(Tensor("float32", (2, 3))) == "float32[2, 3]"
