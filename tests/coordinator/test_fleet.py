"""Limits that most gateways agree on, and kinds of machines that have drifted."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
import pytest
from fedmq_coordinator.fleet import drifts, limits, spreads
from fedmq_coordinator.machines import Drift, FleetSpread, Limit, Spread, Summed
from fedmq_protocol.sketch import Summary
from hypothesis import given
from hypothesis import strategies as st
from machine_rows import EVEN, HIGHER, a_machine, a_spread, a_summary


def told(gateway: str, values: Iterable[float], **changes: object) -> Summed:
    sketch = Summary().seen(*values).to_bytes()
    return a_summary(gateway, sketch=sketch, mark=hashlib.blake2b(sketch, digest_size=8).digest(), **changes)


def spread(centre: float, seed: int, n: int = 300) -> list[float]:
    return [float(value) for value in np.random.default_rng(seed).lognormal(np.log(centre), 0.1, n)]


def merged(summaries: list[Summed], *, before: tuple[Limit, ...] = (), aside: tuple[str, ...] = ()) -> list[Limit]:
    return limits(summaries, before, least_gateways=3, aside=aside, now=9.0)


HONEST = [told(f"g{n}", spread(1 + n / 50, n)) for n in range(3)]


def test_two_gateways_make_no_limit_and_three_do() -> None:
    assert merged(HONEST[:2]) == []
    (limit,) = merged(HONEST)
    assert (limit.kind, limit.band, limit.measure, limit.gateways, limit.at) == ("pump", "all", "acceleration", 3, 9.0)
    quantiles = list(limit.by_share.values())
    assert quantiles == sorted(quantiles)


def test_a_gateway_that_was_set_aside_has_no_voice() -> None:
    assert merged(HONEST, aside=("g1",)) == []


def test_what_is_no_summary_has_no_voice() -> None:
    assert (
        merged([*HONEST[:2], a_summary("g7", sketch=b"nonsense"), a_summary("g8", sketch=Summary().to_bytes())]) == []
    )


def test_measures_bands_and_kinds_of_machines_are_not_mixed() -> None:
    others = [told("g2", spread(1, 5), **{what: "other"}) for what in ("kind", "band", "measure")]
    assert merged([*HONEST[:2], *others]) == []


@given(
    honest=st.integers(2, 6),
    liars=st.integers(1, 5),
    lie=st.lists(st.floats(0, 1e9), min_size=1, max_size=5),
    windows=st.integers(1, 1000),
)
def test_fewer_liars_than_honest_gateways_move_no_quantile_beyond_those_of_honest_ones(
    honest: int, liars: int, lie: list[float], windows: int
) -> None:
    liars = min(liars, honest - 1)
    truth = [told(f"g{n}", spread(1 + n / 10, n, 60)) for n in range(honest)]
    # However many windows they claim to have seen: each has one voice.
    lies = [told(f"x{n}", lie * windows) for n in range(liars)]
    found = merged([*truth, *lies])
    if honest + liars < 3:
        assert found == []
        return
    (limit,) = found
    for share, value in limit.by_share.items():
        own = [Summary.from_bytes(one.sketch).quantile(share) for one in truth]
        assert min(own) * (1 - 1e-6) <= value <= max(own) * (1 + 1e-6)


def test_a_limit_that_hardly_moves_stays_as_it_was() -> None:
    (first,) = merged(HONEST)
    nearly = [told(f"g{n}", spread(1.02 + n / 50, n)) for n in range(3)]
    assert merged(nearly, before=(first,)) == [first]
    others = [told(f"g{n}", spread(1.5, n)) for n in range(3)]
    assert merged(others, before=(first,)) != [first]


def drifted(*names: str, before: tuple[Drift, ...] = (), now: float = 100.0) -> list[Drift]:
    machines = [
        a_machine(f"g{n % 5}", f"pump-{n}", drift="acceleration\nkurtosis" if f"pump-{n}" in names else "")
        for n in range(10)
    ]
    return drifts(machines, before, share=0.3, least_gateways=2, now=now)


def test_a_share_of_the_machines_at_two_gateways_is_drift_of_the_fleet() -> None:
    assert drifted("pump-0", "pump-1") == []
    (drift,) = drifted("pump-0", "pump-1", "pump-2")
    assert (drift.kind, drift.machines, drift.drifting, drift.gateways) == ("pump", 10, 3, 3)
    assert drift.measures.split("\n") == ["acceleration", "kurtosis"]


def test_one_gateway_alone_brings_about_none_however_many_machines_it_has() -> None:
    machines = [a_machine("g0", f"pump-{n}", drift="acceleration") for n in range(200)]
    assert drifts([*machines, a_machine("g1")], (), share=0.3, least_gateways=2, now=1.0) == []


def test_it_is_known_since_when_it_lasts() -> None:
    (first,) = drifted("pump-0", "pump-1", "pump-2", now=100.0)
    (later,) = drifted("pump-0", "pump-1", "pump-2", "pump-3", before=(first,), now=500.0)
    assert (first.since, later.since, later.drifting) == (100.0, 100.0, 4)


def test_machines_that_still_learn_are_not_counted() -> None:
    machines = [a_machine(f"g{n}", drift="acceleration") for n in range(2)]
    learning = [a_machine(f"g{n}", "pump-2", learnt_pct=40) for n in range(10)]
    (drift,) = drifts([*machines, *learning], (), share=0.9, least_gateways=2, now=1.0)
    assert drift.share == pytest.approx(1.0)


TOP = (0,) * 9 + (1000,)


def of_fleet(
    *told: Spread, before: tuple[FleetSpread, ...] = (), least: int = 2, aside: tuple[str, ...] = (), now: float = 100.0
) -> FleetSpread:
    (found,) = spreads(told, before, index=0.1, least_gateways=least, aside=aside, now=now)
    return found


def test_a_shift_at_all_gateways_is_drift_of_the_fleet_and_none_of_it_is_none() -> None:
    even = of_fleet(*(a_spread(f"g{n}") for n in range(5)))
    assert (even.machines, even.gateways, even.shares, even.stability, even.since) == (5, 5, EVEN, 0.0, None)
    higher = of_fleet(*(a_spread(f"g{n}", shares=HIGHER) for n in range(5)))
    assert higher.shares == HIGHER
    assert higher.since == 100.0
    assert higher.how == "higher: 29 % of windows lie in the top tenth of normal, where 10 % did"


def test_no_one_gateway_brings_drift_about_however_many_machines_it_says_it_has() -> None:
    alone = of_fleet(a_spread("g0", shares=TOP, machines=256), *(a_spread(f"g{n}") for n in range(1, 5)))
    assert alone.stability > 1
    assert alone.of_others == pytest.approx(0.0)
    assert alone.since is None
    assert of_fleet(a_spread("g0", shares=TOP)).of_others is None
    assert of_fleet(a_spread("g0", shares=TOP)).since is None
    two = of_fleet(*(a_spread(f"g{n}", shares=TOP) for n in range(2)), *(a_spread(f"g{n}") for n in range(2, 5)))
    assert two.since is not None


def test_so_many_gateways_must_show_it_as_the_settings_say() -> None:
    told = [a_spread(f"g{n}", shares=TOP if n < 3 else EVEN) for n in range(6)]
    assert [of_fleet(*told, least=least).since is not None for least in (2, 3, 4, 7)] == [True, True, False, False]


def test_each_machine_weighs_alike() -> None:
    found = of_fleet(a_spread("g0", shares=TOP), a_spread("g1", machines=9))
    assert found.machines == 10
    assert found.shares == (90,) * 9 + (190,)


def test_of_few_windows_the_same_shift_may_be_chance() -> None:
    few = of_fleet(*(a_spread(f"g{n}", shares=HIGHER, windows=20) for n in range(3)))
    many = of_fleet(*(a_spread(f"g{n}", shares=HIGHER, windows=2000) for n in range(3)))
    assert few.stability == many.stability
    assert (few.since, many.since) == (None, 100.0)
    # So many machines together are less so than each alone.
    assert of_fleet(*(a_spread(f"g{n}", shares=HIGHER, windows=40) for n in range(9))).since == 100.0


def test_a_gateway_that_was_set_aside_does_not_count_for_drift() -> None:
    told = [a_spread("g0", shares=TOP), a_spread("g1", shares=TOP), *(a_spread(f"g{n}") for n in range(2, 5))]
    assert of_fleet(*told, aside=("g1",)).since is None


def test_it_is_known_since_when_a_measure_has_drifted_and_that_is_over_when_it_is() -> None:
    told = [a_spread(f"g{n}", shares=HIGHER) for n in range(3)]
    first = of_fleet(*told)
    later = of_fleet(*told, before=(first,), now=500.0)
    over = of_fleet(*(a_spread(f"g{n}") for n in range(3)), before=(later,), now=900.0)
    assert (first.since, later.since, over.since) == (100.0, 100.0, None)


def test_kinds_bands_and_measures_are_held_apart() -> None:
    told = [a_spread("g0"), *(a_spread("g0", **{what: "other"}) for what in ("kind", "band", "measure"))]
    assert len(spreads(told, (), index=0.1, least_gateways=2, now=1.0)) == 4


@pytest.mark.parametrize(
    ("shares", "how"),
    [
        (HIGHER[::-1], "lower: 29 % of windows lie in the lowest tenth of normal, where 10 % did"),
        (
            (300, 50, 50, 50, 50, 50, 50, 50, 50, 300),
            "more scattered: 60 % of windows lie in the lowest and the top tenth of normal, where 20 % did",
        ),
        (
            (10, 50, 140, 150, 150, 150, 150, 140, 50, 10),
            "less scattered: 2 % of windows lie in the lowest and the top tenth of normal, where 20 % did",
        ),
    ],
)
def test_it_is_told_which_way_a_measure_differs(shares: tuple[int, ...], how: str) -> None:
    assert of_fleet(a_spread("g0", shares=shares)).how == how


def test_a_score_is_of_the_task_whose_model_gives_it() -> None:
    score = of_fleet(a_spread("g0", "score of pump of version 2 of version 1-7-abcd"))
    assert score.task == "pump of version 2"
    assert of_fleet(a_spread("g0", "velocity")).task is None
