"""What a fleet would need: the same coordinator and gateways under given links, speeds and batteries, without faults.

Owns the reading of a run's ledger and links into one table. Refuses to know how the run came about.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from fedmq.simulate.network import Shape
from fedmq.simulate.world import START, World

__all__ = ["Sizing", "battery_pattern", "link_shape", "measure", "speeds", "to_text"]

LATE_SECONDS = 1.0
"""Later than this past its closing time a round closed late: plans tell closing times in whole seconds."""


@dataclass(frozen=True, kw_only=True)
class Reached:
    """The first version that had the target metric as the version before had it, too: one alone may be luck."""

    seconds: float
    """Of virtual time, since the start."""
    version: int
    round: int


@dataclass(frozen=True, kw_only=True)
class Sizing:
    """Figures of one run. Bytes are those of MQTT on the gateways' links; TCP, IP and TLS come on top."""

    gateways: int
    parameters: int
    rounds: int
    applied: int
    below_quorum: int
    closed_late: int
    versions: int
    updates: int
    late: int
    """Updates among those that counted in a later round than the one they answer."""
    refused: int
    silent: int
    declines: dict[str, int]
    bytes_up: int
    bytes_down: int
    coordinator_up: int
    coordinator_down: int
    bytes_per_gateway_and_round: float
    bytes_per_update: float
    seconds: float
    round_seconds_median: float
    round_seconds_most: float
    metric_name: str
    metrics: tuple[tuple[float, float | None], ...]
    """Virtual seconds since the start, and the metric, for each version."""
    training_seconds_least: float
    training_seconds_most: float
    """What a whole local training takes on the fastest and on the slowest gateway."""
    target: float | None
    reached: Reached | None
    """None also where no target was set."""
    events: int
    digest: str


def measure(world: World, events: int, digest: str, *, target: float | None = None) -> Sizing:
    """From the ledger and the links of a run that has ended."""
    rows = world.coordinator.disk.rows
    rounds = rows(
        "SELECT opened_at, closed_at, closes_at, outcome, drawn, metric, version, id FROM rounds"
        " WHERE kind = 'training' ORDER BY id"
    )
    closed = [row for row in rounds if row[1] is not None]
    lasted = sorted(row[1] - row[0] for row in closed)
    answers = rows(
        "SELECT kind, verdict, reason, count(*), sum(payload_bytes) FROM answers"
        " WHERE round IN (SELECT id FROM rounds WHERE kind = 'training') GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"
    )
    updates = sum(n for kind, verdict, _, n, _ in answers if kind == "update" and verdict == "accepted")
    refused = sum(n for kind, verdict, _, n, _ in answers if kind == "update" and verdict != "accepted")
    payload = sum(size for kind, verdict, _, _, size in answers if kind == "update" and verdict == "accepted")
    late = rows("SELECT count(*) FROM answers WHERE kind = 'update' AND verdict = 'accepted' AND counted_in > round")
    declines = {reason or "?": n for kind, _, reason, n, _ in answers if kind == "decline"}
    up = sum(node.link.up.carried for node in world.gateways.values())
    down = sum(node.link.down.arrived for node in world.gateways.values())
    task = world.scenario.task
    made = [row for row in closed if row[6] is not None]
    trainings = [u.seconds_per_window * u.windows * task.recipe.local_epochs for u in world.scenario.units]
    return Sizing(
        gateways=len(world.gateways),
        parameters=task.model.parameters,
        rounds=len(rounds),
        applied=sum(row[3] == "applied" for row in rounds),
        below_quorum=sum(row[3] == "below quorum" for row in rounds),
        closed_late=sum(row[1] > row[2] + LATE_SECONDS for row in closed),
        versions=int(rows("SELECT max(number) FROM versions")[0][0] or 0),
        updates=updates,
        late=int(late[0][0]),
        refused=refused,
        silent=sum(row[4] for row in rounds) - updates - refused - sum(declines.values()),
        declines=declines,
        bytes_up=up,
        bytes_down=down,
        coordinator_up=world.coordinator.link.up.carried,
        coordinator_down=world.coordinator.link.down.arrived,
        bytes_per_gateway_and_round=(up + down) / max(1, len(world.gateways) * len(rounds)),
        bytes_per_update=payload / max(1, updates),
        seconds=max((row[1] for row in closed), default=START) - START,
        round_seconds_median=lasted[len(lasted) // 2] if lasted else 0.0,
        round_seconds_most=lasted[-1] if lasted else 0.0,
        metric_name=world.scenario.metric_name,
        metrics=tuple((row[1] - START, row[5]) for row in made),
        training_seconds_least=min(trainings),
        training_seconds_most=max(trainings),
        target=target,
        reached=None if target is None else _reached(made, target, task.direction),
        events=events,
        digest=digest,
    )


def _reached(made: list[Any], target: float, direction: int) -> Reached | None:
    for before, row in pairwise(made):
        if all(one[5] is not None and direction * one[5] >= direction * target for one in (before, row)):
            return Reached(seconds=row[1] - START, version=row[6], round=row[7])
    return None


def to_text(sizing: Sizing) -> str:
    """A table for a terminal."""
    final = next((metric for _, metric in reversed(sizing.metrics) if metric is not None), None)
    table: list[tuple[str, str]] = [
        ("gateways", f"{sizing.gateways:,}"),
        ("parameters", f"{sizing.parameters:,}"),
        ("training rounds", f"{sizing.rounds:,} ({sizing.applied:,} applied, {sizing.below_quorum:,} below quorum)"),
        ("closed late", f"{sizing.closed_late:,}"),
        ("model versions", f"{sizing.versions:,}"),
        *([(sizing.metric_name, f"{final:.4f}")] if final is not None else []),
        *([] if sizing.target is None else [(f"{sizing.metric_name} {sizing.target:g}", _when(sizing))]),
        ("virtual time", _duration(sizing.seconds)),
        (
            "a training takes",
            f"{_short(sizing.training_seconds_least)} on the fastest gateway, "
            f"{_short(sizing.training_seconds_most)} on the slowest",
        ),
        (
            "a round took",
            f"{_short(sizing.round_seconds_median)} (median), {_short(sizing.round_seconds_most)} at most",
        ),
        (
            "updates accepted",
            f"{sizing.updates:,}, {sizing.bytes_per_update:,.0f} B of payload each; "
            f"{sizing.late:,} after their round had closed",
        ),
        ("updates refused", f"{sizing.refused:,}"),
        ("declines", _declines(sizing.declines)),
        (
            "no answer",
            f"{sizing.silent:,}" + (": away, too slow, or busy with an earlier round" if sizing.silent else ""),
        ),
        ("a gateway and round", f"{sizing.bytes_per_gateway_and_round:,.0f} B, both ways"),
        ("all gateways, up", _bytes(sizing.bytes_up)),
        ("all gateways, down", _bytes(sizing.bytes_down)),
        ("coordinator, up", _bytes(sizing.coordinator_up)),
        ("coordinator, down", _bytes(sizing.coordinator_down)),
    ]
    width = max(len(name) for name, _ in table)
    return "".join(f"{name:{width}}  {value}\n" for name, value in table)


def as_json(sizing: Sizing) -> dict[str, Any]:
    return asdict(sizing)


def link_shape(text: str) -> Shape:
    """From words like `2kB/s,300ms,5%`, each at most once, in any order. Raises ValueError."""
    rate, latency, loss = 0.0, Shape().latency, 0.0
    for word in text.split(","):
        word = word.strip()
        try:
            if word.endswith("B/s"):
                number = word[:-3]
                factor = {"k": 1e3, "M": 1e6}.get(number[-1:], 1.0)
                rate = float(number[:-1] if factor > 1 else number) * factor
            elif word.endswith("ms"):
                latency = float(word[:-2]) / 1e3
            elif word.endswith("%"):
                loss = float(word[:-1]) / 100
            elif word.endswith("s"):
                latency = float(word[:-1])
            else:
                raise ValueError
            if rate < 0 or latency < 0 or not 0 <= loss < 0.9:
                raise ValueError
        except ValueError:
            raise ValueError(f"--link: expected words like 2kB/s,300ms,5% (loss below 90 %), got {text!r}") from None
    return Shape(rate=rate, latency=latency, jitter=latency / 10, loss=loss)


def speeds(text: str) -> tuple[float, float]:
    """From `1:20`: the slowest and the fastest gateway, as factors. Raises ValueError."""
    try:
        slowest, fastest = (float(part) for part in text.split(":"))
        if not 0 < slowest <= fastest:
            raise ValueError
    except ValueError:
        raise ValueError(f"--speeds: expected SLOWEST:FASTEST such as 1:20, got {text!r}") from None
    return slowest, fastest


def battery_pattern(text: str, seed: int) -> Callable[[str, float], bool] | None:
    """Whether a gateway's battery gate is shut at a time, from `night` or a share. Raises ValueError."""
    if text == "night":
        return lambda name, at: 6.0 <= ((START + at) / 3600) % 24 < 22.0
    try:
        share = float(text)
        if not 0 <= share <= 1:
            raise ValueError
    except ValueError:
        raise ValueError(f"--battery: expected `night`, or a share of 0 to 1, got {text!r}") from None
    if share == 0:
        return None

    def shut(name: str, at: float) -> bool:
        return zlib.crc32(f"{seed}/{name}/{math.floor(at / 3600)}".encode()) < share * 2**32

    return shut


def _declines(declines: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in sorted(declines.items())) or "none"


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.2f} {unit}"
        count /= 1000
    return f"{count:,.2f} GB"


def _when(sizing: Sizing) -> str:
    reached = sizing.reached
    if reached is None:
        return "not reached twice in a row"
    return f"after {_short(reached.seconds)}, with version {reached.version} of round {reached.round} (twice in a row)"


def _short(seconds: float) -> str:
    """Tenths matter of a second, and not of an hour."""
    return f"{seconds:.3g} s" if seconds < 100 else _duration(seconds)


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours} h {rest // 60:02d} min {rest % 60:02d} s" if hours else f"{rest // 60} min {rest % 60:02d} s"
