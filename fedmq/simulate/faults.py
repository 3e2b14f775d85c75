"""What goes wrong, and when: one explicit list for each schedule, drawn from its seed.

Every schedule draws its own mix and rates (swarm testing: Groce et al. 2012, ISSTA), since a run in which everything
goes wrong at once hides what only goes wrong when most things are right. A list is all that a run needs to go wrong in
the same way, so that a shorter one can be tried.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from fedmq_coordinator import service
from fedmq_edge_node import service as edge_service

from fedmq.simulate.network import Noise

__all__ = ["COORDINATOR", "PROFILES", "Fault", "draw"]

COORDINATOR = "coordinator"
BROKER = "broker"

_NEVER = ("forget", "budget", "leave", "trial", "chunk", "chunks question", "model rename", "condition")
"""What has no occasion here: tasks that end, budgets, releases, transfers in chunks, files with a name of their own, a
watch."""

COORDINATOR_POINTS = tuple(point for point in service.CRASH_POINTS if point.split(" ", 1)[1] not in _NEVER)
GATEWAY_POINTS = (*(p for p in edge_service.CRASH_POINTS if p.split(" ", 1)[1] not in _NEVER), "training")
"""Where a crash may wait for a process. "training": between two batches."""


@dataclass(frozen=True, kw_only=True, order=True)
class Fault:
    """One thing that goes wrong at a time, for `seconds` where it lasts."""

    at: float
    kind: str
    """noise | cut | partition | crash | power | broker | clock | slow | gate | disk"""
    target: str
    seconds: float = 0.0
    point: str = ""
    """Of a crash: where in its work, the `number`th time; anywhere else, at once."""
    number: int = 1
    value: float = 0.0
    """Of a clock: the step in seconds. Of slow: the factor. Of a broker: 1 where it keeps what is on its disk. Of a
    partition: seconds after which the connection is held to be lost."""
    noise: Noise | None = None

    def __str__(self) -> str:
        lasting = f" for {self.seconds:.1f} s" if self.seconds else ""
        match self.kind:
            case "noise" if self.noise is not None:
                shares = (("lost", self.noise.lose), ("doubled", self.noise.double), ("late", self.noise.delay))
                told = ", ".join(f"{share:.0%} {name}" for name, share in shares if share)
                return f"the link of {self.target} is disturbed{lasting}: {told}"
            case "cut":
                return f"the connection of {self.target} breaks"
            case "partition":
                return f"nothing passes between {self.target} and the broker{lasting}"
            case "crash" if self.point:
                return f"{self.target} is killed {self.point} (time {self.number}), and is away{lasting}"
            case "crash":
                return f"{self.target} is killed, and is away{lasting}"
            case "power":
                return f"{self.target} loses power{lasting}"
            case "broker":
                kept = "keeps what is on its disk" if self.value else "forgets sessions, queues and retained messages"
                return f"the broker is killed, {kept}, and is away{lasting}"
            case "clock":
                return f"the clock of {self.target} steps by {self.value:+.1f} s"
            case "slow":
                return f"{self.target} works {self.value:.0f} times slower{lasting}"
            case "gate":
                return f"the battery of {self.target} is low{lasting}"
            case _:
                return f"the disk of {self.target} is full{lasting}"


_Draw = Callable[[Random, Sequence[str], float], list[Fault]]


def _times(rng: Random, rate: float, until: float) -> list[float]:
    """Of a Poisson process of `rate` an hour."""
    times, at = [], rng.expovariate(rate / 3600)
    while at < until:
        times.append(at)
        at += rng.expovariate(rate / 3600)
    return times


def _rate(rng: Random) -> float:
    """Times an hour, from now and then to all the time."""
    return float(10 ** rng.uniform(0.8, 2.3))


def _network(rng: Random, gateways: Sequence[str], until: float) -> list[Fault]:
    found = []
    kinds = [kind for kind in ("noise", "cut", "partition") if rng.random() < 0.7] or ["noise"]
    for kind in kinds:
        for at in _times(rng, _rate(rng), until):
            # The coordinator's own link is as good a target as all the others together.
            target = COORDINATOR if rng.random() < 0.2 else rng.choice(gateways)
            if kind == "noise":
                most = rng.choice((0.05, 0.2, 0.6))
                noise = Noise(
                    lose=rng.random() * most * rng.choice((0, 1)),
                    double=rng.random() * most * rng.choice((0, 1)),
                    delay=rng.random() * most * rng.choice((0, 1)),
                    swallow=rng.random() * 0.02 * rng.choice((0, 0, 0, 1)),
                )
                found.append(
                    Fault(at=at, kind=kind, target=target, seconds=float(rng.choice((10, 60, 300))), noise=noise)
                )
            else:
                seconds = 0.0 if kind == "cut" else float(rng.choice((2, 20, 200, 900)) * rng.uniform(0.5, 1.5))
                found_out = float(rng.choice((1, 15, 90)))
                found.append(Fault(at=at, kind=kind, target=target, seconds=seconds, value=found_out))
    return found


def _crashes(rng: Random, gateways: Sequence[str], until: float) -> list[Fault]:
    found = []
    at_coordinator = rng.choice((0.0, 0.3, 0.7))
    for at in _times(rng, _rate(rng), until):
        coordinator = rng.random() < at_coordinator
        target = COORDINATOR if coordinator else rng.choice(gateways)
        seconds = rng.choice((0.1, 2.0, 30.0, 700.0)) * rng.uniform(0.5, 1.5)
        point = rng.choice(COORDINATOR_POINTS if coordinator else GATEWAY_POINTS) if rng.random() < 0.7 else ""
        kind = "crash" if point or rng.random() < 0.7 else "power"
        found.append(
            Fault(at=at, kind=kind, target=target, seconds=seconds, point=point, number=rng.choice((1, 1, 2, 3, 5)))
        )
    return found


def _broker(rng: Random, gateways: Sequence[str], until: float) -> list[Fault]:
    return [
        Fault(
            at=at,
            kind="broker",
            target=BROKER,
            seconds=rng.choice((0.5, 5.0, 60.0)) * rng.uniform(0.5, 1.5),
            value=float(rng.choice((0, 0, 1))),
        )
        for at in _times(rng, _rate(rng) / 4, until)
    ]


def _clocks(rng: Random, gateways: Sequence[str], until: float) -> list[Fault]:
    return [
        Fault(at=at, kind="clock", target=COORDINATOR, value=float(rng.choice((0.5, 10, 300, 4000))) * rng.random())
        for at in _times(rng, _rate(rng) / 4, until)
    ]


def _slow(rng: Random, gateways: Sequence[str], until: float) -> list[Fault]:
    found = []
    for at in _times(rng, _rate(rng), until):
        kind = rng.choice(("slow", "gate", "flap"))
        target, seconds = rng.choice(gateways), rng.uniform(10, 300)
        if kind == "flap":
            found += [
                Fault(at=at + offset, kind="cut", target=target)
                for offset in sorted(rng.uniform(0, seconds) for _ in range(rng.randint(2, 8)))
            ]
        else:
            value = rng.choice((3.0, 20.0, 100.0)) if kind == "slow" else 0.0
            found.append(Fault(at=at, kind=kind, target=target, seconds=seconds, value=value))
    return found


def _disks(rng: Random, gateways: Sequence[str], until: float) -> list[Fault]:
    return [
        Fault(
            at=at,
            kind="disk",
            target=COORDINATOR if rng.random() < 0.3 else rng.choice(gateways),
            seconds=rng.choice((1.0, 20.0, 120.0)) * rng.uniform(0.5, 1.5),
        )
        for at in _times(rng, _rate(rng) / 2, until)
    ]


PROFILES: dict[str, tuple[_Draw, ...]] = {
    "none": (),
    "network": (_network,),
    "crashes": (_crashes,),
    "broker": (_broker,),
    "clocks": (_clocks,),
    "slow": (_slow,),
    "disks": (_disks,),
    "all": (_network, _crashes, _broker, _clocks, _slow, _disks),
}


def draw(profile: str, rng: Random, gateways: Sequence[str], until: float) -> tuple[Fault, ...]:
    """The faults of one schedule, in order, all before `until` seconds. Of `all`, each schedule has some kinds."""
    kinds = PROFILES[profile]
    chosen = [kind for kind in kinds if len(kinds) == 1 or rng.random() < 0.5]
    return tuple(sorted(fault for kind in chosen for fault in kind(rng, gateways, until)))
