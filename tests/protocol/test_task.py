"""Every machine draws the same start and names the same task, to the bit."""

from __future__ import annotations

import math
from typing import Literal

import msgspec
import numpy as np
import pytest
from fedmq_protocol.task import (
    MAX_LEVEL,
    MAX_PARAMETERS,
    Codec,
    ModelSpec,
    Recipe,
    Task,
    Windowing,
    initial_steps,
    model_digest,
    short,
    to_parameters,
)
from hypothesis import given, settings
from hypothesis import strategies as st

SMALL = ModelSpec(kind="mlp", sizes=(3, 4, 2))


def task(**changes: object) -> Task:
    given_ = {"name": "bearings", "model": SMALL, "classes": ("normal", "inner race"), "initial": bytes(8)}
    return Task(**(given_ | changes))  # type: ignore[arg-type]


@st.composite
def models(draw: st.DrawFn) -> ModelSpec:
    sizes = tuple(draw(st.lists(st.integers(1, 40), min_size=2, max_size=6)))
    if len(sizes) == 2 and draw(st.booleans()):
        return ModelSpec(kind="softmax", sizes=sizes)
    if draw(st.booleans()):
        return ModelSpec(kind="autoencoder", sizes=(*sizes, sizes[0]))
    return ModelSpec(kind="mlp", sizes=sizes)


def splitmix64(seed: int, count: int) -> list[int]:
    """The generator as published (Steele, Lea, Flood 2014), in Python's own integers."""
    mask = (1 << 64) - 1
    out = []
    for _ in range(count):
        seed = (seed + 0x9E3779B97F4A7C15) & mask
        z = seed
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        out.append(z ^ (z >> 31))
    return out


# --- the start -------------------------------------------------------------------------------------------------------


def test_the_generator_is_the_published_one() -> None:
    assert splitmix64(1234567, 3) == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_the_start_is_the_one_written_down() -> None:
    assert initial_steps(SMALL, seed=0, grid_bits=12).tolist() == [
        4441,
        -793,
        -5486,
        5455,
        -4561,
        -2000,
        -3778,
        3146,
        -2946,
        5237,
        -1199,
        3024,
        0,
        0,
        0,
        0,
        -111,
        2658,
        -2963,
        3453,
        3567,
        1607,
        4310,
        -1713,
        0,
        0,
    ]
    digest = model_digest(initial_steps(ModelSpec(kind="mlp", sizes=(22, 64, 128, 64, 4)), seed=2024, grid_bits=12))
    assert digest.hex() == "2fd7410e87b0565cb16b65f18469705ef1a367771abb8c49a4ad151e16af1910"
    largest = initial_steps(ModelSpec(kind="softmax", sizes=(1, 2)), seed=(1 << 63) - 1, grid_bits=24)
    assert largest.tolist() == [-27480887, 36615841, 0, 0]


@settings(max_examples=40, deadline=None)
@given(model=models(), seed=st.integers(0, (1 << 63) - 1), grid_bits=st.integers(4, 24))
def test_the_start_follows_from_the_published_generator_alone(model: ModelSpec, seed: int, grid_bits: int) -> None:
    stream = splitmix64(seed, model.parameters)
    expected = [0] * model.parameters
    for layer in model.layers:
        limit = math.sqrt(6.0 / layer.inputs) * 2.0**grid_bits
        for i in range(layer.start, layer.bias_start):
            expected[i] = round(((stream[i] >> 11) - (1 << 52)) * 2.0**-52 * limit)
    assert initial_steps(model, seed, grid_bits).tolist() == expected


@settings(max_examples=60, deadline=None)
@given(model=models(), seed=st.integers(0, (1 << 63) - 1), grid_bits=st.integers(4, 24))
def test_weights_keep_within_he_s_bound_and_biases_are_zero(model: ModelSpec, seed: int, grid_bits: int) -> None:
    steps = initial_steps(model, seed, grid_bits)
    assert steps.shape == (model.parameters,)
    assert steps.dtype == np.int32
    for layer in model.layers:
        limit = math.sqrt(6.0 / layer.inputs) * 2.0**grid_bits
        assert np.abs(steps[layer.start : layer.bias_start]).max() <= math.ceil(limit)
        assert not steps[layer.bias_start : layer.stop].any()


def test_weights_are_spread_evenly_over_he_s_range() -> None:
    steps = initial_steps(ModelSpec(kind="softmax", sizes=(500, 200)), seed=3, grid_bits=20)[: 500 * 200]
    scaled = steps / (math.sqrt(6 / 500) * 2**20)
    # Uniform on [-1, 1): mean 0, variance 1/3; bounds of five standard errors.
    assert abs(scaled.mean()) < 5 * math.sqrt(1 / 3 / len(scaled))
    assert abs(scaled.var() - 1 / 3) < 5 * math.sqrt(4 / 45 / len(scaled))
    assert abs(np.corrcoef(scaled[1:], scaled[:-1])[0, 1]) < 5 / math.sqrt(len(scaled))


def test_another_seed_draws_another_start() -> None:
    digests = {model_digest(initial_steps(SMALL, seed, 12)) for seed in range(100)}
    assert len(digests) == 100


# --- the flat vector -------------------------------------------------------------------------------------------------


@given(model=models())
def test_layers_tile_the_vector_without_gap_or_overlap(model: ModelSpec) -> None:
    place = 0
    for layer, inputs, outputs in zip(model.layers, model.sizes, model.sizes[1:], strict=False):
        assert (layer.start, layer.inputs, layer.outputs) == (place, inputs, outputs)
        assert layer.bias_start == place + inputs * outputs
        assert layer.stop == layer.bias_start + outputs
        place = layer.stop
    assert place == model.parameters


@given(
    steps=st.lists(st.integers(-(1 << 24) + 1, (1 << 24) - 1), min_size=1, max_size=50),
    grid_bits=st.integers(4, 24),
)
def test_parameters_are_exactly_their_grid_steps(steps: list[int], grid_bits: int) -> None:
    parameters = to_parameters(np.array(steps, dtype=np.int32), grid_bits)
    assert parameters.dtype == np.float32
    assert [float(value) * 2**grid_bits for value in parameters] == steps


def test_the_model_s_digest_is_that_of_little_endian_integers() -> None:
    steps = np.array([0, 1, -1, 1 << 30], dtype=np.int32)
    assert model_digest(steps).hex() == "2a1a4ac22159e0cf4e5cadd657dada45cf72b3a6e4ce1930afa862d4a1967d39"
    assert model_digest(steps.astype(">i4")) == model_digest(steps)
    assert short(model_digest(steps)) == model_digest(steps)[:8]


# --- the task --------------------------------------------------------------------------------------------------------


def test_the_task_s_digest_is_the_one_written_down() -> None:
    assert task().digest.hex() == "a071b47245a8afc57ab4feb9760941a5a023bb10246d784dbeaf2fcbe9de7875"


def test_the_digest_survives_the_wire_and_changes_with_every_field() -> None:
    changed = [
        task(),
        task(name="pumps"),
        task(model=ModelSpec(kind="mlp", sizes=(3, 5, 2))),
        task(classes=("inner race", "normal")),
        task(windowing=Windowing(hop=2048)),
        task(recipe=Recipe(clip_norm=1.0)),
        task(up=Codec(density=0.1)),
        task(down=Codec(bits=4)),
        task(grid_bits=13),
        task(seed=1),
        task(initial=b"8 others"),
        task(min_windows=21),
        task(max_norm=10.0),
        task(held_out_reports=False),
        task(anomaly_label="healthy"),
        task(levels=2),
        task(staleness=3),
    ]
    assert len({one.digest for one in changed}) == len(changed) == 1 + len(task().__struct_fields__)
    for one in changed:
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(one), type=Task).digest == one.digest


@pytest.mark.parametrize(
    ("kind", "sizes", "complaint"),
    [
        ("softmax", (3, 4, 2), "an input and an output size"),
        ("autoencoder", (3, 2, 4), "gives back its inputs"),
        ("mlp", (65_536, 1_000), "at most 50,000,000 parameters, got 65,537,000"),
    ],
)
def test_a_model_that_makes_no_sense_is_not_made(kind: str, sizes: tuple[int, ...], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        ModelSpec(kind=kind, sizes=sizes)  # type: ignore[arg-type]


def test_the_largest_model_may_be_described() -> None:
    assert ModelSpec(kind="mlp", sizes=(4_999, 10_000)).parameters == MAX_PARAMETERS


def test_classes_are_as_many_as_outputs_and_each_is_named_once() -> None:
    with pytest.raises(ValueError, match="1 classes for a model of 2 outputs"):
        task(classes=("normal",))
    with pytest.raises(ValueError, match="named twice"):
        task(classes=("normal", "normal"))
    assert task(model=ModelSpec(kind="autoencoder", sizes=(3, 2, 3)), classes=()).classes == ()


# --- the levels ------------------------------------------------------------------------------------------------------


def test_each_level_is_four_times_as_dense_until_all_are_sent_at_four_bits() -> None:
    codec = Codec(density=0.004, gain=1.5, most=0.1)
    rungs = [codec.at(level) for level in range(6)]
    assert [(rung.bits, rung.density) for rung in rungs] == [
        (1, 0.004),
        (1, 0.016),
        (1, 0.064),
        (1, 0.1),
        (4, 1.0),
        (4, 1.0),
    ]
    assert (codec.sparse_levels, codec.highest) == (3, 4)
    assert {rung.gain for rung in rungs} == {1.5}


@pytest.mark.parametrize("codec", [Codec(bits=32, density=1.0), Codec(bits=8, density=1.0)])
def test_what_sends_all_already_has_no_levels(codec: Codec) -> None:
    assert codec.highest == 0
    assert codec.at(3) == codec


def test_bits_are_never_fewer_than_before() -> None:
    assert Codec(bits=8, density=0.05).at(2) == Codec(bits=8, density=1.0)


@given(
    density=st.floats(1e-6, 1.0),
    most=st.floats(1e-6, 1.0),
    bits=st.sampled_from([1, 4, 8]),
    level=st.integers(0, MAX_LEVEL),
)
def test_a_higher_level_is_never_thinner_and_ends_where_it_says(
    density: float, most: float, bits: Literal[1, 4, 8], level: int
) -> None:
    codec = Codec(bits=bits, density=density, most=most)
    assert codec.at(0) == codec
    here, above = codec.at(level), codec.at(level + 1)
    assert (above.density, above.bits) >= (here.density, here.bits)
    assert (here == above) == (level >= codec.highest)
    assert (here.density < 1.0) >= (level <= codec.sparse_levels and codec.density < 1.0 and most < 1.0)


def test_a_task_is_sparse_where_both_directions_are() -> None:
    up, down = Codec(density=0.004), Codec(density=0.05)
    assert task(up=up, down=down, levels=4).sparse_levels == 1
    assert task(up=up, down=down).sparse_levels == 0


# --- regressors ------------------------------------------------------------------------------------------------------

LIFE = Windowing(features="raw", samples=30, channels=2, remaining_most=125.0)


def test_a_regressor_has_a_cap_on_what_is_left_no_classes_and_a_metric_that_falls() -> None:
    model = ModelSpec(kind="regressor", sizes=(60, 8, 1))
    made = task(model=model, classes=(), windowing=LIFE)
    assert (made.objective, made.direction) == ("regress", -1)
    assert (task().objective, task().direction) == ("classify", 1)
    for wrong, about in (
        ({"classes": ()}, "remaining_most"),
        ({"windowing": LIFE}, "no classes"),
    ):
        with pytest.raises(ValueError, match=about):
            task(model=model, **wrong)
    with pytest.raises(ValueError, match="remaining_most"):
        task(windowing=LIFE)
    with pytest.raises(ValueError, match="one output"):
        ModelSpec(kind="regressor", sizes=(60, 8, 2))


def test_a_regressor_starts_in_the_middle_of_its_range_with_little_else() -> None:
    model = ModelSpec(kind="regressor", sizes=(60, 8, 1))
    start = to_parameters(initial_steps(model, 0, 12), 12)
    last = model.layers[-1]
    assert start[last.bias_start] == 0.5
    usual = np.sqrt(6 / 8)
    assert 0 < np.abs(start[last.start : last.bias_start]).max() <= 0.1 * usual + 2**-12
