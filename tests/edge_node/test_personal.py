"""A gateway's own variant of the model in service scores only where it is shown to be better there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from fedmq_edge_node.memory import InService, Personal
from fedmq_edge_node.personal import HELD_LEAST, Fitting, better_by, describe, first_free, scorer
from fedmq_edge_node.runtimes import Engine, NumpyEngine
from fedmq_edge_node.samples import Samples
from fedmq_edge_node.trainer import train
from fedmq_protocol.messages import PersonalOutcome, PersonalPolicy
from fedmq_protocol.task import (
    Block,
    ModelSpec,
    Recipe,
    Task,
    Windowing,
    initial_steps,
    model_digest,
    short,
    to_parameters,
)

CLASSES = ("normal", "ball", "inner")
HEAD = PersonalPolicy(mode="head", margin=0.02, epochs=20)
COPY = msgspec.structs.replace(HEAD, mode="copy")


def a_task(model: ModelSpec, **changes: object) -> Task:
    values: dict[str, object] = {
        "name": "bearings",
        "model": model,
        "classes": CLASSES if model.objective == "classify" else (),
        "windowing": Windowing(features="raw", samples=model.sizes[0], scaling="none"),
        "recipe": Recipe(learning_rate=0.3, batch_size=16),
        "initial": short(model_digest(initial_steps(model, 0, 12))),
        "min_windows": 1,
    }
    return Task(**(values | changes))  # type: ignore[arg-type]


MLP = a_task(ModelSpec(kind="mlp", sizes=(4, 12, 3)))


def windows(seed: int, count: int, swapped: bool = False, kept: Sequence[int] = (0, 1, 2)) -> tuple[np.ndarray, ...]:
    """Separable windows. `swapped`: what shows as class 0 elsewhere is class 1 here, and the other way round."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(20 * count, 4)).astype(np.float32)
    y = (x @ np.random.default_rng(7).normal(size=(4, 3))).argmax(axis=1)
    found = np.isin(y, kept)
    x, y = x[found][:count], y[found][:count]
    return x, np.array([1, 0, 2])[y] if swapped else y


def some_samples(seed: int, *, swapped: bool = False, kept: Sequence[int] = (0, 1, 2), held: int = 60) -> Samples:
    x, y = windows(seed, 200 + held, swapped, kept)
    return Samples(train_x=x[held:], train_y=y[held:], held_x=x[:held], held_y=y[:held], raw_bytes=0, recordings=1)


def in_service(task: Task, steps: np.ndarray) -> InService:
    return InService(task=task, lineage=1, version=5, digest=model_digest(steps), steps=steps, scaler=None)


def learnt() -> InService:
    """What the fleet has learnt, where nothing is swapped."""
    x, y = windows(1, 600)
    flat = to_parameters(initial_steps(MLP.model, 0, 12), 12)
    recipe = Recipe(learning_rate=0.3, local_epochs=30, batch_size=16, clip_norm=1e6)
    flat = flat + train(NumpyEngine(MLP.model), flat, x, y, recipe, np.random.default_rng(0), lambda: True).delta
    return in_service(MLP, np.rint(flat / MLP.grid_step).astype(np.int32))


SHARED = learnt()


def made(
    model: InService, policy: PersonalPolicy, samples: Samples, engine: Engine | None = None, gateway: str = "g0"
) -> Personal:
    engine = engine or NumpyEngine(model.task.model)
    fitting = Fitting(model, policy, samples, engine, gateway=gateway)
    while fitting.step():
        pass
    return fitting.finish()


class Script:
    """An engine that says what is written in the windows: column 0 as the shared model, column 1 as any other."""

    def __init__(self, shared: np.ndarray) -> None:
        self.shared = shared.copy()
        self.steps = 0

    def loss_grad(self, flat: np.ndarray, x: np.ndarray, y: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, float]:
        self.steps += 1
        return np.ones_like(flat), 1.0

    def infer(self, flat: np.ndarray, x: np.ndarray) -> np.ndarray:
        said = x[:, 0 if np.array_equal(flat, self.shared) else 1]
        return np.eye(3, dtype=np.float32)[said.astype(int)]


def scripted(y: Sequence[int], shared: Sequence[int], own: Sequence[int], seen: Sequence[int] = (0, 1, 2)) -> Personal:
    x = np.array([shared, own, shared, own], dtype=np.float32).T
    train_y = np.array(list(seen) * 10)
    samples = Samples(
        train_x=np.zeros((len(train_y), 4), dtype=np.float32),
        train_y=train_y,
        held_x=x,
        held_y=np.array(y),
        raw_bytes=0,
        recordings=1,
    )
    return made(SHARED, HEAD, samples, Script(to_parameters(SHARED.steps, 12)))


# --- what is fitted --------------------------------------------------------------------------------------------------


def test_a_head_is_the_last_layer_and_a_copy_is_all() -> None:
    graph = ModelSpec(
        kind="graph",
        sizes=(8, 3),
        bundle=bytes(32),
        bundle_bytes=1,
        parts=(Block(shape=(4, 1, 3)), Block(shape=(4,)), Block(shape=(3, 8)), Block(shape=(3,)), Block(shape=(3,))),
        loss="cross_entropy",
    )
    cnn = ModelSpec(kind="cnn1d", sizes=(128, 8, 16, 3))
    for model, head in (
        (ModelSpec(kind="mlp", sizes=(22, 16, 8, 3)), 8 * 3 + 3),
        (ModelSpec(kind="autoencoder", sizes=(22, 4, 22)), 4 * 22 + 22),
        (ModelSpec(kind="regressor", sizes=(22, 16, 1)), 17),
        (cnn, 16 * 3 + 3),
        (graph, 3 * 8 + 3 + 3),
    ):
        assert model.parameters - first_free(model, HEAD) == head
        assert first_free(model, COPY) == 0
    assert first_free(ModelSpec(kind="softmax", sizes=(22, 3)), HEAD) == 0, "it has no other layer"


def test_with_a_head_all_that_lies_before_it_stays_the_shared_model_s() -> None:
    samples = some_samples(2, swapped=True)
    head, copy = (scorer(SHARED, made(SHARED, policy, samples), NumpyEngine(MLP.model)) for policy in (HEAD, COPY))
    assert head.own is not None
    assert copy.own is not None
    body = first_free(MLP.model, HEAD)
    assert np.array_equal(head.own[:body], head.shared[:body])
    assert not np.array_equal(head.own[body:], head.shared[body:])
    assert not np.array_equal(copy.own[:body], copy.shared[:body])


def test_fitting_a_head_is_fitting_a_softmax_to_what_the_shared_layers_give() -> None:
    # All windows in one batch, so that their order changes nothing; and small ones, for features are kept within ±8.
    recipe = Recipe(learning_rate=0.3, batch_size=200)
    policy = msgspec.structs.replace(HEAD, epochs=100)
    drawn = some_samples(2, swapped=True)
    samples = replace(drawn, train_x=drawn.train_x / 4, held_x=drawn.held_x / 4)
    steps = initial_steps(MLP.model, 0, 12)
    own = made(in_service(msgspec.structs.replace(MLP, recipe=recipe), steps), policy, samples)
    flat, first = to_parameters(steps, 12), MLP.model.layers[0]
    weights = flat[: first.bias_start].reshape(first.inputs, first.outputs)
    train_x, held_x = (
        np.maximum(x @ weights + flat[first.bias_start : first.stop], np.float32(0))
        for x in (samples.train_x, samples.held_x)
    )
    assert train_x.max() < 8.0
    last = a_task(ModelSpec(kind="softmax", sizes=(12, 3)), recipe=recipe)
    alone = made(
        in_service(last, steps[first_free(MLP.model, HEAD) :]),
        msgspec.structs.replace(policy, mode="copy"),
        replace(samples, train_x=train_x, held_x=held_x),
    )
    assert own.found.outcome is alone.found.outcome is PersonalOutcome.SERVES
    np.testing.assert_allclose(own.values, alone.values, atol=1e-4)


def test_the_recipe_s_proximal_term_holds_it_to_the_shared_model() -> None:
    held_to = msgspec.structs.replace(MLP, recipe=Recipe(learning_rate=0.1, batch_size=16, proximal=1.0))
    free = msgspec.structs.replace(MLP, recipe=Recipe(learning_rate=0.1, batch_size=16))
    shared = to_parameters(SHARED.steps, 12)
    far = [
        float(np.linalg.norm(made(replace(SHARED, task=task), COPY, some_samples(2, swapped=True)).values - shared))
        for task in (held_to, free)
    ]
    assert far[0] < 0.5 * far[1]


@pytest.mark.parametrize("policy", [HEAD, COPY], ids=["head", "copy"])
def test_where_the_machines_differ_it_is_better_and_scores(policy: PersonalPolicy) -> None:
    own = made(SHARED, policy, some_samples(2, swapped=True))
    assert own.found.outcome is PersonalOutcome.SERVES
    assert own.found.shared is not None
    assert own.found.metric is not None
    assert own.found.metric > own.found.shared + 2_000
    fresh_x, fresh_y = windows(3, 300, swapped=True)
    engine = NumpyEngine(MLP.model)
    right = [
        float(np.mean(scorer(SHARED, which, engine).infer(fresh_x).argmax(axis=1) == fresh_y)) for which in (None, own)
    ]
    assert right[1] > right[0] + 0.2, "on windows of this gateway that neither has seen"


def test_the_same_windows_make_the_same_model_and_another_gateway_takes_them_in_another_order() -> None:
    samples = some_samples(2, swapped=True)
    one, again, other = (made(SHARED, HEAD, samples, gateway=name).values for name in ("g0", "g0", "g1"))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


# --- when it scores --------------------------------------------------------------------------------------------------


def test_where_the_shared_model_is_as_good_that_scores_and_nothing_is_kept() -> None:
    own = made(SHARED, HEAD, some_samples(2))
    assert own.found.outcome is PersonalOutcome.NO_BETTER
    assert len(own.values) == 0
    assert not scorer(SHARED, own, NumpyEngine(MLP.model)).personal


def test_it_must_be_better_by_the_margin() -> None:
    samples = some_samples(2, swapped=True)
    found = made(SHARED, HEAD, samples).found
    assert found.metric is not None
    assert found.shared is not None
    gained = (found.metric - found.shared) / 1e4
    for margin, outcome in ((gained - 0.01, PersonalOutcome.SERVES), (gained + 0.01, PersonalOutcome.NO_BETTER)):
        assert made(SHARED, msgspec.structs.replace(HEAD, margin=margin), samples).found.outcome is outcome


def test_an_error_must_be_smaller_by_the_margin_s_share() -> None:
    assert better_by(0.02, 9.8, 10.0, "regress")
    assert not better_by(0.02, 9.81, 10.0, "regress")
    assert not better_by(0.02, 0.0, 0.0, "regress")
    assert better_by(0.02, 0.75, 0.73, "classify")
    assert not better_by(0.02, 0.74, 0.73, "classify")


def test_a_gateway_of_one_class_trains_nothing_for_it_could_only_unlearn_the_others() -> None:
    engine = Script(to_parameters(SHARED.steps, 12))
    samples = some_samples(2, kept=(0,))
    own = made(SHARED, HEAD, samples, engine)
    assert own.found.outcome is PersonalOutcome.ONE_CLASS
    assert engine.steps == 0
    # Nor where another class is at hand in only one of the two parts.
    strange = replace(samples, held_y=np.where(np.arange(60) < 30, 0, 1))
    assert made(SHARED, HEAD, strange, engine).found.outcome is PersonalOutcome.ONE_CLASS


def test_few_held_out_windows_tell_nothing() -> None:
    assert made(SHARED, HEAD, some_samples(2, swapped=True, held=HELD_LEAST - 1)).found.outcome is (
        PersonalOutcome.FEW_WINDOWS
    )
    assert made(SHARED, HEAD, some_samples(2, swapped=True, held=HELD_LEAST)).found.outcome is PersonalOutcome.SERVES


def test_it_may_be_worse_at_no_class_though_it_is_better_on_the_whole() -> None:
    y = [0] * 40 + [1] * 40 + [2] * 40
    shared = [0] * 20 + [1] * 20 + [1] * 40 + [2] * 40
    better = scripted(y, shared, own=[0] * 40 + [1] * 40 + [2] * 40)
    assert better.found.outcome is PersonalOutcome.SERVES
    loses = scripted(y, shared, own=[0] * 40 + [1] * 37 + [0] * 3 + [2] * 40)
    assert loses.found.metric is not None
    assert loses.found.shared is not None
    assert loses.found.metric > loses.found.shared + 1_000
    assert loses.found.outcome is PersonalOutcome.CLASS_LOST
    assert len(loses.values) == 0


def test_of_a_class_that_was_never_seen_here_the_shared_model_keeps_the_word() -> None:
    y = [0] * 40 + [1] * 40
    own = scripted(y, shared=[0] * 20 + [1] * 20 + [1] * 40, own=y, seen=(0, 1))
    assert own.found.outcome is PersonalOutcome.SERVES
    one = scorer(SHARED, own, Script(to_parameters(SHARED.steps, 12)))
    said = one.infer(np.array([[2, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0]], dtype=np.float32)).argmax(axis=1)
    assert said.tolist() == [2, 0, 1], "a fault that only others have seen stays one"


def test_it_is_measured_as_it_scores_with_the_shared_model_s_word_on_unseen_classes() -> None:
    # False alarms of a class that this gateway never had: its own model would not raise them, but may not speak there.
    y = [0] * 40 + [1] * 40
    own = scripted(y, shared=[2] * 20 + [0] * 20 + [1] * 40, own=y, seen=(0, 1))
    assert own.found.metric == own.found.shared
    assert own.found.outcome is PersonalOutcome.NO_BETTER


def test_an_autoencoder_needs_faulty_windows_to_be_told_a_good_one() -> None:
    task = a_task(ModelSpec(kind="autoencoder", sizes=(4, 2, 4)))
    steps = initial_steps(task.model, 0, 12)
    x = np.random.default_rng(0).normal(size=(100, 4)).astype(np.float32)
    zeros = np.zeros(100, dtype=np.int64)
    samples = Samples(train_x=x, train_y=zeros, held_x=x, held_y=zeros, raw_bytes=0, recordings=1)
    assert made(in_service(task, steps), COPY, samples).found.outcome is PersonalOutcome.ONE_CLASS
    # Healthy windows lie along a line; of what lies elsewhere nothing was seen.
    line = (np.linspace(-1, 1, 100)[:, None] * np.array([1, -1, 0.5, 2])).astype(np.float32)
    faulty = replace(
        samples,
        train_x=line,
        held_x=np.concatenate([line[::2], x[:50]]),
        held_y=np.repeat([0, 1], 50),
    )
    own = made(in_service(task, steps), COPY, faulty)
    assert own.found.metric is not None
    assert own.found.shared is not None
    assert (own.found.outcome, own.found.metric > own.found.shared) == (PersonalOutcome.SERVES, True)


def test_a_regressor_s_own_head_serves_where_its_error_is_smaller() -> None:
    task = a_task(
        ModelSpec(kind="regressor", sizes=(1, 1)),
        windowing=Windowing(features="raw", samples=1, hop=1, scaling="none", remaining_most=100.0),
    )
    steps = np.array([1 / task.grid_step, 0.25 / task.grid_step], dtype=np.int32)
    x = np.linspace(0, 1, 50, dtype=np.float32)[:, None]
    samples = Samples(train_x=x, train_y=x[:, 0], held_x=x, held_y=x[:, 0], raw_bytes=0, recordings=1)
    own = made(in_service(task, steps), HEAD, samples)
    assert own.found.outcome is PersonalOutcome.SERVES
    assert own.found.shared == pytest.approx(25 * 10_000, rel=1e-3)
    assert own.found.metric is not None
    assert own.found.metric < 20 * 10_000


# --- what ends it ----------------------------------------------------------------------------------------------------


def test_training_that_comes_to_no_numbers_is_given_up() -> None:
    class Wild(Script):
        def loss_grad(self, flat: np.ndarray, x: np.ndarray, y: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, float]:
            return np.full_like(flat, np.nan), 1.0

    own = made(SHARED, HEAD, some_samples(2, swapped=True), Wild(to_parameters(SHARED.steps, 12)))
    assert own.found.outcome is PersonalOutcome.FAILED
    assert len(own.values) == 0


def test_a_time_budget_ends_the_training_and_what_it_came_to_is_judged() -> None:
    task = msgspec.structs.replace(MLP, recipe=Recipe(learning_rate=0.3, batch_size=16, time_budget_seconds=2.0))
    fitting = Fitting(
        replace(SHARED, task=task), HEAD, some_samples(2, swapped=True), NumpyEngine(MLP.model), gateway="g0"
    )
    assert fitting.step()
    fitting.seconds = 2.0
    assert not fitting.step()
    assert fitting.finish().found.metric is not None


def test_a_personal_model_of_another_version_does_not_score() -> None:
    own = made(SHARED, HEAD, some_samples(2, swapped=True))
    newer = in_service(MLP, SHARED.steps + 1)
    assert scorer(SHARED, own, NumpyEngine(MLP.model)).personal
    assert not scorer(newer, own, NumpyEngine(MLP.model)).personal


@pytest.mark.parametrize("outcome", PersonalOutcome)
def test_every_outcome_can_be_told_to_people(outcome: PersonalOutcome) -> None:
    found = made(SHARED, HEAD, some_samples(2, swapped=True)).found
    text = describe(msgspec.structs.replace(found, outcome=outcome), 5)
    assert "version 5" in text
    assert ("without a personal model" in text) == (outcome is not PersonalOutcome.SERVES)
