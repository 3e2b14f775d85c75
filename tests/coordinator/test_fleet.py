"""Limits that most gateways agree on, and kinds of machines that have drifted."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
import pytest
from fedmq_coordinator.condition import Drift, Limit, Summed
from fedmq_coordinator.fleet import drifts, limits
from fedmq_protocol.sketch import Summary
from hypothesis import given
from hypothesis import strategies as st
from machine_rows import a_machine, a_summary


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
