"""How much is sent follows from size, dial, fraction and losses, and from nothing else."""

from __future__ import annotations

import math

import numpy as np
import pytest
from fedmq_coordinator.density import LOOKS, Course, Densities, densities, falling, level
from fedmq_protocol.task import Objective
from hypothesis import given, settings
from hypothesis import strategies as st

losses_of_any_kind = st.lists(st.floats(0.0, 1e6), max_size=150)


def shares(
    *, dial: float = 0.3, parameters: int = 17_000, objective: Objective = "classify", fraction: float = 1.0
) -> Densities:
    return densities(
        dial=dial,
        parameters=parameters,
        objective=objective,
        fraction=fraction,
        least=0.0005,
        most=0.1,
        min_coordinates=32,
    )


# --- the dial --------------------------------------------------------------------------------------------------------


def test_the_dial_goes_from_fewest_bytes_to_fewest_rounds() -> None:
    assert shares(dial=0.0) == Densities(up=0.002, down=0.004)
    assert shares(dial=1.0).down == pytest.approx(0.05)
    assert shares(dial=0.3).down == pytest.approx(0.0085, rel=0.01)


def test_a_larger_model_moves_a_smaller_share_of_itself() -> None:
    assert shares(parameters=96_000).down == pytest.approx(shares().down / 2, rel=0.01)
    assert shares(parameters=50_000_000).up == 0.0005


def test_a_small_model_has_a_floor_of_coordinates() -> None:
    assert shares(parameters=400).up * 400 == pytest.approx(32)
    assert shares(parameters=20).down == 1.0


def test_where_fewer_are_asked_each_sends_more() -> None:
    assert shares(fraction=0.5).up == pytest.approx(2 * shares().up)
    assert shares(fraction=0.5).down == shares().down
    assert shares(fraction=0.001).up == 0.1


def test_what_gives_back_its_inputs_begins_denser() -> None:
    assert shares(objective="reconstruct").down == pytest.approx(4 * shares().down)
    assert shares(objective="regress").down == pytest.approx(8 * shares().down)
    assert shares(objective="reconstruct", dial=1.0).down == 0.1


@given(
    dial=st.floats(0, 1), parameters=st.integers(1, 50_000_000), fraction=st.floats(0.001, 1), fixed=st.floats(1e-3, 1)
)
def test_densities_keep_within_their_limits(dial: float, parameters: int, fraction: float, fixed: float) -> None:
    for least, most in ((0.0005, 0.1), (fixed, fixed)):
        found = densities(
            dial=dial,
            parameters=parameters,
            objective="classify",
            fraction=fraction,
            least=least,
            most=most,
            min_coordinates=1,
        )
        for share in (found.up, found.down):
            assert least <= share <= max(most, 1 / parameters)


# --- the level -------------------------------------------------------------------------------------------------------


def plateau(
    rounds: int, *, fall: float = 0.001, noise: float = 0.001, seed: int = 0, start: float = 1.0
) -> list[float]:
    rng = np.random.default_rng(seed)
    return [start * math.exp(-fall * n + noise * float(rng.normal())) for n in range(rounds)]


def test_nothing_is_said_before_a_few_rounds() -> None:
    assert level(plateau(LOOKS[0] - 1), sparse=2, highest=3) == 0


def test_training_that_stalls_is_given_more_step_by_step_and_stays_sparse_while_it_moves_at_all() -> None:
    levels = [level(plateau(rounds), sparse=2, highest=3) for rounds in range(60)]
    assert levels[LOOKS[0]] == 1
    assert sorted(levels) == levels
    assert max(levels) == 2


def test_where_nothing_moves_all_is_sent_and_where_that_does_not_help_either_little_again() -> None:
    still = plateau(300, fall=0.0)
    levels = [level(still[:rounds], sparse=2, highest=3) for rounds in range(300)]
    assert max(levels) == 3
    assert levels[-1] == 0
    # At rest until the loss is another.
    assert level([*still, *plateau(5, start=1.3)], sparse=2, highest=3) == 0
    assert level([*still, *plateau(10, start=1.3)], sparse=2, highest=3) == 1


@pytest.mark.parametrize("seed", range(5))
def test_training_that_moves_is_left_alone_however_much_its_losses_differ(seed: int) -> None:
    moving = plateau(60, fall=0.04, noise=0.1, seed=seed)
    assert max(level(moving[:rounds], sparse=3, highest=4) for rounds in range(60)) == 0


def test_a_loss_that_is_nearly_gone_is_no_stall() -> None:
    learnt = [1.0, *plateau(100, fall=0.0, start=0.09)]
    assert level(learnt, sparse=2, highest=3) == 0
    assert level([1.0, *plateau(100, fall=0.0, start=0.3)][:40], sparse=2, highest=3) > 0


def test_training_that_moves_again_is_thinned_out() -> None:
    stalled = plateau(20)
    assert level(stalled, sparse=2, highest=3) == 2
    assert level([*stalled, *plateau(8, fall=0.05)], sparse=2, highest=3) == 1
    assert level([*stalled, *plateau(18, fall=0.05)], sparse=2, highest=3) == 0


@settings(max_examples=60, deadline=None)
@given(losses=losses_of_any_kind, sparse=st.integers(0, 4), more=st.integers(0, 1))
def test_whatever_the_losses_are_the_level_is_within_bounds_and_moves_by_one(
    losses: list[float], sparse: int, more: int
) -> None:
    course = Course(sparse=sparse, highest=sparse + more)
    for loss in losses:
        after = course.after(loss)
        assert 0 <= after.level <= sparse + more
        assert after.level - course.level in (-1, 0, 1) or after.at_rest
        assert len(after.recent) <= LOOKS[-1]
        course = after
    assert course.level == level(losses, sparse=sparse, highest=sparse + more)


def test_where_there_are_no_levels_there_is_only_one() -> None:
    assert level(plateau(200, fall=0.0), sparse=0, highest=0) == 0


@given(fall=st.floats(-0.2, 0.2), count=st.integers(3, 48))
def test_a_steady_fall_is_found_exactly(fall: float, count: int) -> None:
    found, error = falling([math.exp(-fall * n) for n in range(count)])
    assert found == pytest.approx(fall, abs=1e-9)
    assert error < 1e-9


def test_a_loss_of_zero_has_a_fall_too() -> None:
    assert falling([0.0] * 6) == (0.0, 0.0)
