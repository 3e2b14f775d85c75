"""Where updates point, and what speaks against a gateway."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
from fedmq_compression.pipeline import CodecSpec, Decoded, encode
from fedmq_coordinator import conduct
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

STEP = 2.0**-24
SPARSE = CodecSpec(bits=1, density=0.02, step=STEP)


def decoded(values: NDArray[np.float64], *, sparse: bool) -> Decoded:
    steps = np.rint(values / STEP).astype(np.int64)
    if not sparse:
        return Decoded(length=len(values), indices=None, steps=steps, step=STEP)
    where = np.flatnonzero(steps)
    return Decoded(length=len(values), indices=where, steps=steps[where], step=STEP)


@settings(deadline=None)
@given(st.integers(0, 1 << 32), st.integers(2, 8), st.booleans())
def test_an_update_is_compared_with_the_sum_of_the_others(seed: int, gateways: int, sparse: bool) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(gateways, 50)) * (rng.random((gateways, 50)) < 0.3)
    weights = [int(w) for w in rng.integers(1, 4096, gateways)]
    updates = [decoded(v, sparse=sparse) for v in values]
    total = np.zeros(50, dtype=np.int64)
    for update, weight in zip(updates, weights, strict=True):
        update.add_to(total, weight)
    rest = total.astype(np.float64)
    for n, (update, weight) in enumerate(zip(updates, weights, strict=True)):
        others = sum(w * v for m, (w, v) in enumerate(zip(weights, values, strict=True)) if m != n)
        found = conduct.agreement(update, weight, rest, float(rest @ rest))
        lengths = np.linalg.norm(values[n]) * np.linalg.norm(others)
        if found is None:
            assert lengths == 0
        else:
            assert found == pytest.approx(values[n] @ others / lengths, abs=1e-5)


@given(st.integers(0, 1 << 32))
def test_who_is_alone_is_compared_with_nobody(seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=40)
    update = decoded(values, sparse=False)
    total = np.zeros(40, dtype=np.int64)
    update.add_to(total, 7)
    assert conduct.agreement(update, 7, total.astype(np.float64), float(total.astype(np.float64) @ total)) is None


@settings(deadline=None)
@given(st.integers(0, 1 << 32), st.booleans())
def test_sketches_add_up_as_updates_do(seed: int, sparse: bool) -> None:
    rng = np.random.default_rng(seed)
    one, other = (np.rint(rng.normal(size=3000) * (rng.random(3000) < 0.1) / STEP) * STEP for _ in range(2))
    together = conduct.sketch(decoded(one + other, sparse=sparse), 3)
    apart = conduct.sketch(decoded(one, sparse=sparse), 3) + conduct.sketch(decoded(other, sparse=sparse), 3)
    assert together == pytest.approx(apart, abs=1e-6)


@pytest.mark.parametrize("length", [500, 20_000, 300_000])
@pytest.mark.parametrize("wanted", [-0.8, -0.3, 0.0, 0.4])
def test_sketches_keep_cosines(length: int, wanted: float) -> None:
    rng = np.random.default_rng(length)
    one, noise = rng.normal(size=(2, length))
    noise -= one * (one @ noise) / (one @ one)
    other = wanted * one / np.linalg.norm(one) + math.sqrt(1 - wanted**2) * noise / np.linalg.norm(noise)
    found = conduct.cosine(
        conduct.sketch(decoded(one, sparse=False), 1), conduct.sketch(decoded(other, sparse=False), 1)
    )
    assert found == pytest.approx(wanted, abs=4 / math.sqrt(conduct.WIDTH))


def test_a_sketch_is_the_same_on_every_machine_and_for_ever() -> None:
    """It is kept on disk: another one would be compared with what is there."""
    ones = conduct.sketch(decoded(np.ones(5000), sparse=False), 1)
    assert hashlib.sha256(ones.astype("<f4").tobytes()).hexdigest() == (
        "6728041eae90f4e7c518a3d7f6d26575a267c8531b93a3c9da2e2bec84aaab3c"
    )


class Fleet:
    """Gateways with sparse 1-bit updates and error feedback, that learn what they have in common and what is theirs."""

    def __init__(self, gateways: int, *, common: float, length: int = 2_000, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.common = common
        self.shared = self.rng.normal(size=length)
        self.own = self.rng.normal(size=(gateways, length))
        self.residuals = np.zeros((gateways, length), dtype=np.float32)
        self.directions = np.zeros((gateways, conduct.WIDTH))
        self.cosines: list[list[float]] = [[] for _ in range(gateways)]

    def round(self, liars: frozenset[int] = frozenset()) -> None:
        updates = []
        for n, own in enumerate(self.own):
            delta = self.common * self.shared + own + self.rng.normal(size=len(own))
            sign = -1 if n in liars else 1
            encoded = encode((sign * 0.01 * delta).astype(np.float32), SPARSE, self.residuals[n])
            self.residuals[n] = encoded.residual
            updates.append(encoded.sent)
        total = np.zeros(len(self.shared), dtype=np.int64)
        for update in updates:
            update.add_to(total, 100)
        rest = total.astype(np.float64)
        for n, update in enumerate(updates):
            found = conduct.agreement(update, 100, rest, float(rest @ rest))
            assert found is not None
            self.cosines[n] = [found, *self.cosines[n]][: conduct.COSINES]
            self.directions[n] = conduct.faded(self.directions[n], 1) + conduct.sketch(update, 100)

    def accused(self) -> dict[int, str]:
        whole = self.directions.sum(axis=0)
        toward = [conduct.cosine(own, whole - own) for own in self.directions]
        fleet = [t for t in toward if t is not None]
        found = {n: conduct.against(t, fleet, self.cosines[n]) for n, t in enumerate(toward)}
        return {n: why for n, why in found.items() if why is not None}


@pytest.mark.parametrize("common", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("gateways", [4, 10])
def test_who_learns_something_of_his_own_is_not_accused(common: float, gateways: int) -> None:
    fleet = Fleet(gateways, common=common)
    for _ in range(40):
        fleet.round()
        assert fleet.accused() == {}


@pytest.mark.parametrize("gateways", [5, 10])
def test_who_turns_his_updates_round_is_accused_within_fifteen_rounds_and_nobody_else(gateways: int) -> None:
    fleet = Fleet(gateways, common=2.0)
    for n in range(15):
        assert n >= conduct.LEAST_UPDATES or fleet.accused() == {}
        fleet.round(liars=frozenset({2}))
    accused = fleet.accused()
    assert list(accused) == [2]
    assert "point away from the others'" in accused[2]


def test_of_few_nobody_can_say_who_is_right() -> None:
    assert conduct.against(-1.0, [-1.0, -1.0, 0.9], [-0.5] * 16) is None
    assert conduct.against(-1.0, [-1.0, 0.9, 0.9, 0.9], [-0.5] * 7) is None
    assert conduct.against(None, [-1.0, 0.9, 0.9, 0.9], [-0.5] * 16) is None
    assert conduct.against(-1.0, [-1.0, 0.9, 0.9, 0.9], [-0.5] * 16) is not None


def test_a_fleet_that_pulls_in_all_directions_accuses_nobody() -> None:
    assert conduct.against(-0.5, [-0.5, -0.4, -0.3, -0.3], [-0.5] * 16) is None


def test_what_may_be_chance_is_not_held_against_anybody() -> None:
    assert conduct.against(-0.9, [-0.9, 0.5, 0.5, 0.5], [-0.5, 0.5] * 8) is None


@pytest.mark.parametrize(
    ("latest", "expected"),
    [
        ([("accepted", 0)] * 8, None),
        ([("norm", 0)] * 3 + [("accepted", 0)] * 5, None),
        ([("closed", 0)] * 8, None),
        ([("not drawn", 0), ("wrong base", 0), ("abandoned", 0), ("set aside", 0)] * 2, None),
        ([("norm", 0)] * 4 + [("accepted", 0)] * 4, "4 of its last 8 updates were at fault: norm 4"),
        (
            [("malformed", 0), ("accepted", 3), ("norm", 1), ("non finite", 0)],
            "4 of its last 4 updates were at fault: conflict 1, malformed 1, non finite 1, norm 1",
        ),
        ([("accepted", 0)] * 8 + [("norm", 0)] * 8, None),
    ],
)
def test_refused_again_and_again(latest: list[tuple[str, int]], expected: str | None) -> None:
    assert conduct.refused_again(latest) == expected
