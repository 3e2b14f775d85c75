"""One suite for every engine that runs graphs: the numpy interpreter is the measure.

It needs pytest, numpy, msgspec and what an engine needs, so that it runs where only one engine can be installed.
"""

from __future__ import annotations

from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from fedmq_edge_node.runtimes import ENGINES, available_engines, load_tflite
from fedmq_edge_node.watchdog import Watch
from fedmq_models.build import Builder
from fedmq_models.builtin import grad_graph, infer_graph
from fedmq_models.graph import OPERATORS, Graph, GraphError
from fedmq_models.interpreter import Interpreter
from fedmq_protocol.task import ModelSpec, initial_steps, to_parameters

TFLITE = ("litert", "tflite")
NAMES = [*(name for name in ENGINES if name != "numpy"), *(f"{name}-without-delegate" for name in TFLITE)]
"""The runtimes of TFLite also without XNNPACK, which computes most of a graph where it is there."""
MODELS = [
    ModelSpec(kind="softmax", sizes=(22, 4)),
    ModelSpec(kind="mlp", sizes=(22, 32, 16, 4)),
    ModelSpec(kind="autoencoder", sizes=(22, 8, 22)),
    ModelSpec(kind="cnn1d", sizes=(1024, 8, 16, 16, 4)),
]
BATCH = 8


def loader(name: str) -> Any:
    engine, _, plain = name.partition("-")
    if engine not in available_engines():
        pytest.skip(f"the package {ENGINES[engine][0]} of the engine {engine} is not installed here")
    if engine in TFLITE and find_spec("flatbuffers") is None:
        pytest.skip("the package flatbuffers, which writes TFLite, is not installed here")
    if not plain:
        return ENGINES[engine][1]
    package = import_module(f"{ENGINES[engine][0]}.interpreter")
    resolver = package.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    return partial(load_tflite, partial(package.Interpreter, experimental_op_resolver_type=resolver))


def load(name: str, graph: Graph) -> Any:
    """Makes the graph runnable, or skips where the engine has no such operator, which its error must name."""
    refused = ""
    try:
        run = loader(name)(graph, tuple(f"out{place}" for place in range(len(graph.outputs))))
        return lambda given: run(given, Watch())
    except GraphError as error:
        refused = str(error)
    assert any(f"({node.op})" in refused for node in graph.nodes), refused
    pytest.skip(f"{name}: {refused}")


# --- operators ---------------------------------------------------------------------------------------------------

RNG = np.random.default_rng(5)


def floats(*shape: int, low: float = -2.0, high: float = 2.0) -> np.ndarray:
    return RNG.uniform(low, high, shape).astype(np.float32)


def whole(*shape: int, low: int = -5, high: int = 6) -> np.ndarray:
    return RNG.integers(low, high, shape)


def bools(*shape: int) -> np.ndarray:
    return RNG.random(shape) < 0.5


Case = tuple[str, str, list[np.ndarray], dict[str, Any]]


def cases() -> list[Case]:
    """Name, operator, inputs, attributes."""
    found: list[Case] = []

    def case(op: str, what: str, *inputs: np.ndarray, **attributes: Any) -> None:
        found.append((f"{op}-{what}", op, list(inputs), attributes))

    for op in ("Neg", "Abs", "Exp", "Tanh", "Sigmoid", "Relu", "Erf", "Sign"):
        case(op, "matrix", floats(3, 5))
        case(op, "wide", floats(2, 3, low=-30, high=30))
        case(op, "scalar", floats())
        case(op, "rank6", floats(2, 1, 3, 2, 1, 2))
    case("Sign", "zero", np.array([0.0, -1.0, 2.0], dtype=np.float32))
    for op in ("Log", "Sqrt", "Reciprocal"):
        case(op, "matrix", floats(3, 5, low=0.1))
        case(op, "rank6", floats(2, 1, 3, 2, 1, 2, low=0.1))
    for op in ("Add", "Sub", "Mul", "Div", "Max", "Min"):
        case(op, "float", floats(3, 4), floats(3, 4, low=0.5))
        case(op, "rows", floats(3, 4), floats(4, low=0.5))
        case(op, "columns", floats(3, 1), floats(1, 4, low=0.5))
        case(op, "scalar", floats(2, 3, 4), floats(low=0.5))
        case(op, "scalars", floats(), floats(low=0.5))
        case(op, "channels", floats(2, 3, 4), floats(3, 1, low=0.5))
        case(op, "rank5", floats(2, 3, 2, 2, 3), floats(2, 2, 3, low=0.5))
        case(op, "rank5outer", floats(2, 3, 1, 1, 3), floats(2, 2, 1, low=0.5))
        case(op, "int64", whole(3, 4), whole(4, low=1, high=5))
    for op in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"):
        case(op, "int64", whole(6, 1, low=0, high=4), whole(4, low=0, high=4))
        case(op, "float", whole(3, 4).astype(np.float32), whole(4).astype(np.float32))
        case(op, "large", whole(4) + (1 << 40), whole(4) + (1 << 40))
        case(op, "rank5", floats(2, 3, 2, 2, 3), floats(2, 2, 3))
    case("Pow", "square", floats(3, 4), np.array(2.0, dtype=np.float32))
    case("Pow", "float", floats(3, 4, low=0.1), floats(4))
    case("Not", "matrix", bools(3, 4))
    for op in ("And", "Or"):
        case(op, "rows", bools(3, 4), bools(4))
        case(op, "rank5", bools(2, 2, 2, 2, 2), bools(2, 2))
    case("Where", "float", bools(3, 4), floats(3, 4), floats(3, 4))
    case("Where", "scalar", bools(3, 4), floats(3, 4), floats())
    case("Where", "rows", bools(3, 1), floats(4), floats(3, 4))
    case("Where", "int64", bools(3, 4), whole(3, 4), whole(4))
    case("Where", "rank5", bools(2, 1, 2, 1, 3), floats(2, 3, 2, 2, 3), floats(3))
    for to in ("float32", "int64", "bool"):
        case("Cast", f"float-to-{to}", np.array([[0.0, -1.5, 2.75], [0.25, 3.0, -0.5]], dtype=np.float32), to=to)
        case("Cast", f"int64-to-{to}", whole(3, 4), to=to)
        case("Cast", f"bool-to-{to}", bools(3, 4), to=to)
    case("MatMul", "matrices", floats(3, 5), floats(5, 4))
    case("MatMul", "row", floats(1, 5), floats(5, 1))
    case("MatMul", "batch", floats(2, 3, 5), floats(2, 5, 4))
    case("MatMul", "weights", floats(2, 3, 5), floats(5, 4))
    case("MatMul", "left", floats(3, 5), floats(2, 5, 4))
    case("MatMul", "rank4", floats(2, 1, 3, 5), floats(2, 5, 4))
    case("MatMul", "rank6", floats(2, 2, 1, 2, 3, 5), floats(2, 2, 1, 2, 5, 2))
    for stride in (1, 2, 3):
        for dilation in (1, 2, 4):
            for pads in ((0, 0), (2, 1), (3, 3)):
                what = f"stride{stride}-dilation{dilation}-pads{pads[0]}{pads[1]}"
                spread = {"stride": stride, "dilation": dilation, "pads": pads}
                case("Conv", what, floats(2, 3, 17), floats(4, 3, 3), **spread)
                case("ConvTranspose", what, floats(2, 3, 6), floats(3, 4, 3), output_padding=0, **spread)
    plain = {"stride": 1, "dilation": 1, "pads": (1, 1)}
    case("Conv", "bias", floats(2, 3, 17), floats(4, 3, 3), floats(4), **plain)
    case("Conv", "one-channel", floats(2, 1, 17), floats(4, 1, 5), **plain)
    case("Conv", "kernel1", floats(2, 3, 17), floats(4, 3, 1), **plain)
    case("Conv", "weights-as-long-as-x", floats(3, 4, 33), floats(5, 4, 8), stride=1, dilation=4, pads=(1, 1))
    case("Conv", "one-row", floats(1, 1, 9), floats(1, 1, 9), stride=1, dilation=1, pads=(0, 0))
    for more, pads in ((1, (0, 0)), (1, (1, 1)), (1, (1, 0)), (2, (2, 1)), (2, (0, 3))):
        what = f"padded{more}-{pads[0]}{pads[1]}"
        case(
            "ConvTranspose",
            what,
            floats(2, 3, 5),
            floats(3, 4, 4),
            stride=3,
            dilation=1,
            pads=pads,
            output_padding=more,
        )
    case(
        "ConvTranspose",
        "only-padding",
        floats(1, 1, 1),
        floats(1, 1, 1),
        stride=2,
        dilation=1,
        pads=(1, 0),
        output_padding=1,
    )
    far = 1 << 40
    case("Conv", "far", floats(1, 2, 5), floats(3, 2, 1), stride=1 << 30, dilation=1 << 30, pads=(0, 1))
    case(
        "ConvTranspose",
        "far",
        floats(1, 2, 1),
        floats(2, 3, 1),
        stride=1 << 30,
        dilation=1 << 30,
        pads=(0, 0),
        output_padding=2,
    )
    case("Slice", "far", floats(9), starts=(2,), ends=(7,), axes=(0,), steps=(far,))
    for op in ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin"):
        for keep in (0, 1):
            case(op, f"last-keep{keep}", floats(3, 4, 5), axes=(2,), keepdims=keep)
            case(op, f"negative-keep{keep}", floats(3, 4, 5), axes=(-2,), keepdims=keep)
            case(op, f"outer-keep{keep}", floats(3, 4, 5), axes=(0, 2), keepdims=keep)
            case(op, f"all-keep{keep}", floats(3, 4), axes=(0, 1), keepdims=keep)
            case(op, f"rank6-keep{keep}", floats(2, 3, 2, 1, 2, 2), axes=(1, 2, 5), keepdims=keep)
    for keep in (0, 1):
        for axis in (0, 1, -1):
            case("ArgMax", f"axis{axis}-keep{keep}", floats(3, 4, 5), axis=axis, keepdims=keep)
    case("ArgMax", "first-of-equals", np.array([[1, 3, 3], [2, 2, 0]], dtype=np.float32), axis=1, keepdims=0)
    case("ArgMax", "vector", floats(7), axis=0, keepdims=0)
    for op in ("Softmax", "LogSoftmax"):
        for axis in (0, 1, -1):
            case(op, f"axis{axis}", floats(3, 4, 5, low=-8, high=8), axis=axis)
        case(op, "wild", np.array([[500, -500, 0], [-90, 0, 90]], dtype=np.float32), axis=1)
        case(op, "rank5", floats(2, 2, 2, 2, 3), axis=2)
    case("Reshape", "float", floats(3, 4), shape=(2, 6))
    case("Reshape", "scalar", floats(1, 1), shape=())
    case("Reshape", "int64", whole(3, 4), shape=(12,))
    case("Reshape", "bool", bools(3, 4), shape=(4, 3))
    case("Transpose", "matrix", floats(3, 4), perm=(1, 0))
    case("Transpose", "int64", whole(3, 4), perm=(1, 0))
    case("Transpose", "bool", bools(3, 4), perm=(1, 0))
    for perm in ((0, 2, 1), (1, 0, 2), (2, 1, 0), (1, 2, 0)):
        case("Transpose", "".join(map(str, perm)), floats(2, 3, 4), perm=perm)
    case("Transpose", "ones", floats(1, 3, 1, 4), perm=(1, 2, 3, 0))
    case("Transpose", "rank5", floats(2, 3, 2, 4, 3), perm=(4, 2, 0, 1, 3))
    case("Transpose", "rank7", floats(2, 3, 2, 2, 1, 2, 2), perm=(4, 5, 6, 0, 1, 2, 3))
    case("Expand", "rows", floats(1, 4), shape=(3, 4))
    case("Expand", "scalar", floats(), shape=(2, 3))
    case("Expand", "rank5", floats(3, 1, 2), shape=(2, 2, 3, 4, 2))
    case("Expand", "int64", whole(3, 1), shape=(3, 2))
    case("Expand", "bool", bools(3, 1), shape=(3, 2))
    case("Concat", "rows", floats(2, 3), floats(1, 3), floats(4, 3), axis=0)
    case("Concat", "columns", floats(2, 3), floats(2, 1), axis=-1)
    case("Concat", "int64", whole(3), whole(2), axis=0)
    case("Concat", "bool", bools(3), bools(2), axis=0)
    case("Slice", "part", floats(9), starts=(2,), ends=(7,), axes=(0,), steps=(1,))
    case("Slice", "steps", floats(9, 5), starts=(1, 0), ends=(8, 5), axes=(0, 1), steps=(3, 2))
    case("Slice", "negative", floats(2, 3, 6), starts=(1,), ends=(4,), axes=(-1,), steps=(1,))
    case("Slice", "int64", whole(4, 4), starts=(1,), ends=(3,), axes=(1,), steps=(1,))
    case("Slice", "bool", bools(4, 4), starts=(1,), ends=(3,), axes=(1,), steps=(1,))
    case("Slice", "rank7", floats(2, 2, 2, 4, 2, 2, 2), starts=(1,), ends=(3,), axes=(3,), steps=(1,))
    case("Pad", "zeros", floats(2, 3), pads=(1, 0, 0, 2), value=0.0)
    case("Pad", "value", floats(2, 3, 4), pads=(1, 0, 2, 0, 0, 1), value=-1.5)
    case("Pad", "nothing", floats(2, 3), pads=(0, 0, 0, 0), value=1.0)
    case("Pad", "rank7", floats(2, 2, 2, 3, 2, 2, 2), pads=(0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0), value=0.0)
    return found


CASES = cases()


def test_every_operator_has_a_case() -> None:
    assert {op for _, op, _, _ in CASES} == set(OPERATORS)


def single(
    op: str, arrays: list[np.ndarray], attributes: dict[str, Any], constant: set[int]
) -> tuple[Graph, list[Any]]:
    """A graph of one node, whose inputs are given, or stand in it as constants."""
    b = Builder()
    dtypes: Any = [array.dtype.name for array in arrays]
    values = [
        b.constant(array) if place in constant else b.input(f"x{place}", dtypes[place], array.shape)
        for place, array in enumerate(arrays)
    ]
    given = [array for place, array in enumerate(arrays) if place not in constant]
    return b.graph(b.node(op, *values, **attributes)), given


def agree(got: Any, expected: np.ndarray) -> None:
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    if expected.dtype == np.float32:
        np.testing.assert_allclose(got, expected, rtol=2e-6, atol=2e-6)
    else:
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("op", "arrays", "attributes"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_an_operator_gives_what_numpy_gives(name: str, op: str, arrays: list[np.ndarray], attributes: Any) -> None:
    graph, given = single(op, arrays, attributes, set())
    (expected,) = Interpreter(graph).run(given)
    run = load(name, graph)
    agree(run(given)[0], expected)
    # Again with other numbers: nothing of the first run may be kept.
    others = [array if array.dtype == bool else array[...] + array.dtype.type(1) for array in given]
    (expected,) = Interpreter(graph).run(others)
    agree(run(others)[0], expected)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("op", "arrays", "attributes"),
    [case[1:] for case in CASES if len(case[2]) > 1],
    ids=[case[0] for case in CASES if len(case[2]) > 1],
)
def test_so_it_does_with_constants(name: str, op: str, arrays: list[np.ndarray], attributes: Any) -> None:
    graph, given = single(op, arrays, attributes, set(range(1, len(arrays))))
    (expected,) = Interpreter(graph).run(given)
    agree(load(name, graph)(given)[0], expected)


@pytest.mark.parametrize("name", NAMES)
def test_outputs_may_be_inputs_constants_and_one_another(name: str) -> None:
    b = Builder()
    x, unused = b.input("same", "float32", (3,)), b.input("same", "float32", (2,))
    constant = b.constant(np.arange(4, dtype=np.int64))
    y = b.node("Add", x, x)
    graph = b.graph(y, constant, x, y, b.reshape(y, 3, 1), unused)
    if name == "onnxruntime":
        pytest.skip("onnxruntime: inputs are told apart by their names")
    given = [np.array([1, 2, 3], dtype=np.float32), np.array([4, 5], dtype=np.float32)]
    for got, expected in zip(load(name, graph)(given), Interpreter(graph).run(given), strict=True):
        agree(got, expected)


@pytest.mark.parametrize("name", NAMES)
def test_transposes_that_undo_each_other_are_right(name: str) -> None:
    b = Builder()
    x = b.input("x", "float32", (2, 3, 4))
    once = b.node("Transpose", x, perm=(1, 2, 0))
    twice = b.node("Transpose", once, perm=(1, 2, 0))
    back = b.node("Transpose", twice, perm=(1, 2, 0))
    graph = b.graph(once, twice, back)
    given = [floats(2, 3, 4)]
    for got, expected in zip(load(name, graph)(given), Interpreter(graph).run(given), strict=True):
        agree(got, expected)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("turned", ["left", "right", "both", "none"])
def test_products_of_transposed_matrices(name: str, turned: str) -> None:
    b = Builder()
    left, right = turned in ("left", "both"), turned in ("right", "both")
    shapes = ((5, 3) if left else (3, 5), (4, 5) if right else (5, 4))
    x, y = b.input("x", "float32", shapes[0]), b.input("y", "float32", shapes[1])
    graph = b.graph(
        b.node(
            "MatMul",
            b.node("Transpose", x, perm=(1, 0)) if left else x,
            b.node("Transpose", y, perm=(1, 0)) if right else y,
        )
    )
    run = load(name, graph)
    for _ in range(2):
        given = [floats(*shape) for shape in shapes]
        agree(run(given)[0], Interpreter(graph).run(given)[0])


def some_graph(rng: np.random.Generator) -> Graph:
    """Operators that move elements, between some that compute with them: where a writer that takes steps together can
    mistake one value for another."""
    b = Builder()
    values = [
        b.input(f"x{place}", "float32", shape) for place, shape in enumerate(((2, 3, 4), (3, 1), (4,), (2, 1, 1)))
    ]
    for _ in range(25):
        value = values[rng.integers(len(values))]
        shape = b.shape(value)
        match rng.integers(8):
            case 0:
                values.append(b.node("Transpose", value, perm=tuple(int(axis) for axis in rng.permutation(len(shape)))))
            case 1:
                split = [size for size in (2, 3, 4) if np.prod(shape) % size == 0]
                head = int(rng.choice(split)) if split else 1
                values.append(b.node("Reshape", value, shape=(head, int(np.prod(shape)) // head)))
            case 2:
                values.append(b.node("Reshape", value, shape=(int(np.prod(shape)),)))
            case 3 if np.prod(shape) <= 48:
                more = (2,) * int(rng.integers(0, 2))
                wide = tuple(size if size > 1 else int(rng.integers(1, 4)) for size in shape)
                values.append(b.node("Expand", value, shape=(*more, *wide)))
            case 4 if len(shape) > 1:
                axis = int(rng.integers(len(shape)))
                values.append(b.node("ReduceMean", value, axes=(axis,), keepdims=int(rng.integers(2))))
            case 5 if shape and shape[0] > 1:
                values.append(b.node("Slice", value, starts=(1,), ends=(shape[0],), axes=(0,), steps=(1,)))
            case _:
                others = [other for other in values if goes_with(b.shape(other), shape)]
                op = ("Add", "Sub", "Mul")[rng.integers(3)]
                values.append(b.node(op, value, others[rng.integers(len(others))]))
    return b.graph(*(int(value) for value in rng.choice(values, 8)))


def goes_with(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    try:
        return int(np.prod(np.broadcast_shapes(a, b))) <= 256
    except ValueError:
        return False


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(60))
def test_some_graph_gives_what_numpy_gives(name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    graph = some_graph(rng)
    run = load(name, graph)
    given = [rng.uniform(-1, 1, tensor.shape).astype(np.float32) for _, tensor in graph.inputs]
    for got, expected in zip(run(given), Interpreter(graph).run(given), strict=True):
        assert got.shape == expected.shape
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


# --- models ------------------------------------------------------------------------------------------------------


def start(model: ModelSpec, seed: int = 3) -> np.ndarray:
    return to_parameters(initial_steps(model, seed, 12), 12)


def batch(model: ModelSpec, rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, model.sizes[0])).astype(np.float32)
    y = rng.integers(0, model.sizes[-1], rows)
    # Of each class another level and another tone, so that there is something to learn.
    x += 0.3 * y[:, None] + np.sin(np.arange(model.sizes[0]) * 0.05 * (1 + y[:, None])).astype(np.float32)
    return x.astype(np.float32), y, rng.uniform(0.2, 2.0, rows).astype(np.float32)


each_model = pytest.mark.parametrize("model", MODELS, ids=lambda model: model.kind)


@pytest.mark.parametrize("name", NAMES)
@each_model
def test_gradients_are_numpys(name: str, model: ModelSpec) -> None:
    graph = grad_graph(model, BATCH)
    run, measure = load(name, graph), Interpreter(graph)
    for seed in (1, 2):
        given = [start(model, seed), *batch(model, BATCH, seed)]
        expected, loss = measure.run(given)
        got, got_loss = run(given)
        # As far apart as float32 sums in another order are.
        np.testing.assert_allclose(got, expected, atol=1e-5 * max(1.0, float(abs(expected).max())), rtol=0)
        assert float(got_loss) == pytest.approx(float(loss), rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
@each_model
@pytest.mark.parametrize("rows", [1, BATCH])
def test_what_a_model_gives_is_numpys(name: str, model: ModelSpec, rows: int) -> None:
    graph = infer_graph(model, rows)
    given = [start(model), batch(model, rows)[0]]
    np.testing.assert_allclose(load(name, graph)(given)[0], Interpreter(graph).run(given)[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", NAMES)
@each_model
def test_the_same_steps_give_the_same_losses(name: str, model: ModelSpec) -> None:
    graph = grad_graph(model, BATCH)

    def losses(run: Any) -> list[float]:
        flat, found = start(model), []
        for step in range(20):
            gradient, loss = run([flat, *batch(model, BATCH, step % 4)])
            flat = flat - np.float32(0.1) * gradient
            found.append(float(loss))
        return found

    expected = losses(Interpreter(graph).run)
    assert expected[-1] < expected[0]
    np.testing.assert_allclose(losses(load(name, graph)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [*NAMES, "numpy"])
@each_model
def test_gradients_agree_with_finite_differences(name: str, model: ModelSpec) -> None:
    run = load(name, grad_graph(model, BATCH))
    flat, (x, y, w) = start(model), batch(model, BATCH)
    gradient, _ = run([flat, x, y, w])
    # Along random directions; float32 forward passes leave about 1e-3 of relative error at this step.
    rng = np.random.default_rng(1)
    for _ in range(10):
        direction = rng.normal(size=flat.size)
        direction = (direction / np.linalg.norm(direction)).astype(np.float32)
        step = np.float32(1e-2)
        ahead, behind = (float(run([flat + sign * step * direction, x, y, w])[1]) for sign in (1, -1))
        assert (ahead - behind) / (2 * step) == pytest.approx(float(gradient @ direction), abs=3e-3)
