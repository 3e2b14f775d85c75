"""Scenarios out of a seed: the fleet, the task, the settings of the rounds and what goes wrong, each drawn anew."""

from __future__ import annotations

import math
from random import Random

from fedmq_coordinator.settings import RoundSettings
from fedmq_protocol.task import Codec

from fedmq.simulate import faults
from fedmq.simulate.fleet import make_task
from fedmq.simulate.network import Shape
from fedmq.simulate.world import Scenario, Unit

__all__ = ["scenario_of"]


SEALED = 0.2
"""Of the schedules, those whose messages carry seals: it takes more time, and changes no decision."""

_FRACTIONS = {False: (1.0, 0.5, 0.3), True: (0.3, 0.1, 0.1, 0.05)}
"""Of the fleet that a round asks, for fewer than ten gateways and for more: in a small fleet all speak."""


def scenario_of(seed: int, *, gateways: int, rounds: int, profile: str) -> Scenario:
    """The schedule of a seed."""
    name = str(seed)
    rng = Random(f"{name}/scenario")
    sparse = Codec(bits=1, density=rng.choice((0.2, 0.4)), gain=rng.choice((1.0, 1.5)), most=0.5)
    dense = Codec(bits=32, density=1.0)
    coded = rng.choice((sparse, sparse, sparse, dense, Codec(bits=8, density=1.0), Codec(bits=4, density=1.0)))
    mode = rng.choice(("refuse", "refuse", "weigh", "buffered"))
    max_staleness = rng.choice((1, 3, 20))
    task = make_task(
        sizes=rng.choice(((9, 3), (12, 3), (4, 5, 3))),
        up=coded,
        down=coded,
        grid_bits=12 if coded is sparse else 20,
        learnt_scaling=rng.random() < 0.5,
        held_out_reports=rng.random() < 0.1,
        batch_size=rng.choice((32, 32, 12)),
        max_norm=rng.choice((1.0, 1000.0)),
        levels=rng.choice((0, 1)) if coded is sparse else 0,
        staleness=0 if mode == "refuse" else max_staleness,
    )
    closing = rng.choice((15.0, 30.0, 90.0))
    settings = RoundSettings(
        max_rounds=rounds,
        min_gateways=max(1, gateways // 2),
        fraction=1.0 if mode == "buffered" else rng.choice(_FRACTIONS[gateways >= 10]),
        aggregation="buffered" if mode == "buffered" else "sync",
        buffer_updates=rng.choice((1, 2, 3, 8)),
        late="weigh" if mode == "weigh" else "refuse",
        max_staleness=max_staleness,
        set_aside_after=rng.choice((0, 2, 5)),
        quorum_share=rng.choice((0.3, 0.5, 0.8)),
        closing_seconds=closing,
        close_when_all_answered=rng.random() < 0.7,
        interval_seconds=rng.choice((0.0, 0.0, 10.0, 40.0)),
        retry_most_seconds=30.0,
        resume_on_new_data=False,
        staleness_exponent=rng.choice((0.0, 0.5)),
    )
    slowest = rng.choice((0.1, 1.0)) * closing / 32 if profile in ("slow", "all") else 0.02
    wild = rng.choice((0.0, 0.0, 0.05))
    units = tuple(_unit(Random(f"{name}/unit/{i}"), f"g{i}", slowest, wild, profile) for i in range(gateways))
    end = rng.uniform(0.3, 1.2) * rounds * max(closing * 0.5, settings.interval_seconds) + 20.0
    return Scenario(
        seed=name,
        units=units,
        task=task,
        rounds=settings,
        coordinator_commit_seconds=rng.choice((0.0, 0.002, 0.2)),
        faults=faults.draw(profile, rng, [unit.name for unit in units], end),
        sealed=Random(f"{name}/sealed").random() < SEALED,
        faults_end=end if profile != "none" else 0.0,
    )


def _unit(rng: Random, name: str, slowest: float, wild: float, profile: str) -> Unit:
    uneven = profile in ("slow", "all")
    return Unit(
        name=name,
        windows=rng.randint(20, 32),
        seconds_per_window=slowest / (math.exp(rng.uniform(0, math.log(20))) if uneven else 1.0),
        link=Shape(
            rate=rng.choice((0.0, 0.0, 2000.0, 20_000.0)),
            latency=rng.choice((0.002, 0.05, 0.6)),
            jitter=rng.choice((0.0, 0.05)),
            loss=rng.choice((0.0, 0.0, 0.05)) if profile in ("network", "all") else 0.0,
        ),
        clock_offset=rng.uniform(0, 1e6),
        clock_rate=1.0 + rng.uniform(-2e-3, 2e-3) if profile in ("clocks", "all") else 1.0,
        commit_seconds=rng.choice((0.0, 0.005, 0.1)),
        starts_at=rng.uniform(0, 5),
        wild=wild,
    )
