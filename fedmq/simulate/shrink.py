"""From a schedule that broke a promise to the shortest story of it, told in lines that a person can read.

First what happened by chance is written down, message by message; then faults, mishaps, gateways and rounds are left
out for as long as the same promise is still broken (delta debugging: Zeller, Hildebrandt 2002, IEEE TSE 28(2)).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import msgspec
from fedmq_protocol.messages import (
    AskModel,
    AskVerdict,
    Birth,
    CatchUp,
    Decline,
    Leave,
    MessageError,
    Receipt,
    RoundKind,
    RoundPlan,
    Statistics,
    Update,
    Welcome,
    from_bytes,
    split,
)
from fedmq_protocol.topics import parse

from fedmq.simulate.faults import Fault
from fedmq.simulate.network import Mishap
from fedmq.simulate.scheduler import Line
from fedmq.simulate.world import Outcome, Scenario, World

__all__ = ["Story", "play", "read", "shortest"]

T = TypeVar("T")

MOST_RUNS = 600

_PLAIN: tuple[tuple[str, Any], ...] = (
    ("fraction", 1.0),
    ("set_aside_after", 0),
    ("interval_seconds", 0.0),
    ("close_when_all_answered", False),
    ("buffer_updates", 1),
    ("quorum_share", 0.3),
)
"""Settings of rounds that make fewer gateways do: with few, a round that ends as soon as all have answered is over
before anything can go wrong."""


@dataclass(frozen=True, kw_only=True)
class Story:
    """A schedule that breaks a promise, with nothing in it that is not needed, as far as was tried."""

    scenario: Scenario
    outcome: Outcome
    lines: tuple[Line, ...]
    runs: int


def play(scenario: Scenario) -> Outcome:
    """One schedule, without its trace."""
    world = World(scenario)
    try:
        return world.run()
    finally:
        world.close()


def shortest(scenario: Scenario, invariant: str, *, most_runs: int = MOST_RUNS) -> Story:
    """The story of a schedule that is known to break this promise."""
    search = _Search(invariant, most_runs)
    outcome = search.try_(scenario)
    if outcome is None:
        raise ValueError(f"schedule {scenario.seed} does not break {invariant!r}")
    written_down = replace(
        scenario,
        mishaps=outcome.mishaps,
        faults=tuple(fault for fault in scenario.faults if fault.kind != "noise"),
    )
    if search.try_(written_down) is not None:
        scenario = written_down
    before: Scenario | None = None
    while scenario is not before:
        before = scenario
        scenario = _with_plain_settings(scenario, search)
        scenario = _without_rounds(scenario, search)
        scenario = _without_gateways(scenario, search)
        scenario = _without_faults(scenario, search)
    world = World(scenario, keep_trace=True)
    outcome = world.run()
    world.close()
    assert outcome.violation is not None  # as it did a moment ago
    return Story(scenario=scenario, outcome=outcome, lines=tuple(world.trace.lines), runs=search.runs)


class _Search:
    def __init__(self, invariant: str, most_runs: int) -> None:
        self.runs = 0
        self._invariant = invariant
        self._most = most_runs

    def try_(self, scenario: Scenario) -> Outcome | None:
        """The outcome where the same promise is broken; None otherwise, and when enough was tried."""
        if self.runs >= self._most:
            return None
        self.runs += 1
        outcome = play(scenario)
        broken = outcome.violation is not None and outcome.violation.invariant == self._invariant
        return outcome if broken else None

    def fewest(self, items: Sequence[T], breaks: Callable[[Sequence[T]], bool]) -> list[T]:
        """Delta debugging: a part of the items from which no single one can be left out."""
        kept, parts = list(items), 2
        while len(kept) >= 1:
            size = max(1, len(kept) // parts)
            for start in range(0, len(kept), size):
                rest = kept[:start] + kept[start + size :]
                if breaks(rest):
                    kept, parts = rest, max(2, parts - 1)
                    break
            else:
                if size == 1:
                    break
                parts = min(len(kept), 2 * parts)
        return kept


def _with_plain_settings(scenario: Scenario, search: _Search) -> Scenario:
    """The settings that say most of a story one by one: first without late updates, then all asked, and so on."""
    in_step = replace(scenario.rounds, aggregation="sync", late="refuse")
    if in_step != scenario.rounds:
        tried = replace(scenario, rounds=in_step, task=msgspec.structs.replace(scenario.task, staleness=0))
        if search.try_(tried) is not None:
            scenario = tried
    for name, value in _PLAIN:
        tried = replace(scenario, rounds=replace(scenario.rounds, **{name: value}))
        if tried.rounds != scenario.rounds and search.try_(tried) is not None:
            scenario = tried
    return scenario


def _without_rounds(scenario: Scenario, search: _Search) -> Scenario:
    rounds = scenario.rounds.max_rounds or 1
    for fewer in sorted({1, 2, 3, rounds // 2, rounds - 1}):
        if 0 < fewer < rounds:
            tried = replace(scenario, rounds=replace(scenario.rounds, max_rounds=fewer))
            if search.try_(tried) is not None:
                return tried
    return scenario


def _without_gateways(scenario: Scenario, search: _Search) -> Scenario:
    def with_units(units: Sequence[object]) -> Scenario:
        names = {unit.name for unit in scenario.units if unit in units}
        gone = {unit.name for unit in scenario.units} - names
        mishaps = scenario.mishaps
        return replace(
            scenario,
            units=tuple(unit for unit in scenario.units if unit.name in names),
            rounds=replace(scenario.rounds, min_gateways=max(1, min(scenario.rounds.min_gateways, len(names) // 2))),
            faults=tuple(fault for fault in scenario.faults if fault.target not in gone),
            mishaps=None if mishaps is None else tuple(mishap for mishap in mishaps if mishap.link not in gone),
        )

    units = search.fewest(scenario.units, lambda units: bool(units) and search.try_(with_units(units)) is not None)
    return with_units(units) if len(units) < len(scenario.units) else scenario


def _without_faults(scenario: Scenario, search: _Search) -> Scenario:
    def with_items(items: Sequence[Fault | Mishap]) -> Scenario:
        return replace(
            scenario,
            faults=tuple(item for item in items if isinstance(item, Fault)),
            mishaps=None if scenario.mishaps is None else tuple(item for item in items if isinstance(item, Mishap)),
        )

    items: list[Fault | Mishap] = [*scenario.faults, *(scenario.mishaps or ())]
    fewer = search.fewest(items, lambda items: search.try_(with_items(items)) is not None)
    return with_items(fewer) if len(fewer) < len(items) else scenario


# -- telling it ---------------------------------------------------------------------------------------------------


def read(line: Line) -> str:
    """One line of a trace, for a person."""
    said = _said(line.topic, line.payload) if line.payload else line.topic
    match line.what:
        case "to broker":
            text = f"{line.who} says: {said}"
        case "from broker":
            text = f"{line.who} hears: {said}"
        case "lost" | "doubled":
            text = f"{line.what} on the way to or from {line.who}: {said}"
        case "fault:":
            text = f"FAULT  {said}"
        case "killed":
            text = f"{line.who} is killed {said}".rstrip()
        case "restart":
            text = f"{line.who} starts again"
        case "timer":
            text = f"{line.who} looks at what is due"
        case "violation:":
            text = f"BROKEN {line.who}: {said}"
        case _:
            text = f"{line.who} {line.what} {said}".rstrip()
    return f"{line.at:10.3f} s  {text}"


def _said(topic: str, payload: bytes) -> str:
    try:
        where = parse(topic)
        message = from_bytes(where.spec, split(payload).plain)
    except (MessageError, ValueError):
        return f"{len(payload)} bytes on {topic}"
    to = f" to {where.gateway}" if where.gateway is not None and where.direction.value == "cmd" else ""
    match message:
        case RoundPlan(kind=RoundKind.REST):
            text = f"rest at version {message.base}{_accepted(message)}"
        case RoundPlan():
            text = f"plan of round {message.round_id} from version {message.base}{_accepted(message)}"
        case Update():
            text = f"update {message.counter} to round {message.round_id}"
        case Receipt():
            text = f"update {message.counter} to round {message.round_id}: {message.verdict.name.lower()}"
        case AskVerdict():
            text = f"what became of update {message.counter} to round {message.round_id}?"
        case Decline():
            text = f"declines round {message.round_id}: {message.reason.name.lower()}"
        case Statistics():
            text = f"statistics for round {message.round_id}"
        case AskModel():
            text = f"has version {message.version}, asks for the newest"
        case CatchUp():
            text = f"{message.kind.name.lower()} to version {message.number}"
        case Birth():
            held = message.held[0] if message.held else None
            text = (
                "born, with nothing" if held is None else f"born, with version {held.version}, counter {held.counter}"
            )
        case Leave():
            text = "leaves" if message.clean else "is gone (last will)"
        case Welcome():
            text = "welcome"
        case _:
            text = type(message).__name__.lower()
    return text + to


def _accepted(plan: RoundPlan) -> str:
    places = [str(place) for place in range(64) if plan.accepted >> place & 1]
    return f"; accepted of the last round: places {', '.join(places)}" if places else ""
