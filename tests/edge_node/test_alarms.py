"""When an alert is raised, changes and is over."""

from __future__ import annotations

from typing import Any

import pytest
from fedmq_edge_node.alarms import Alarms, Changed, Cleared, Evidence, Outcome, Policy, Raised, Reading

POLICY = Policy(raise_windows=2, clear_windows=3, clear_level=0.8, severe_level=1.6)


def reading(at: float, level: float, **more: Any) -> Reading:
    values: dict[str, Any] = {
        "at": at,
        "machine": "pump-3",
        "kind": "anomaly",
        "level": level,
        "evidence": (Evidence(name="score", value=level, limit=1.0),),
        "from_at": at - 2,
        "to_at": at,
        "sensor": "s",
    }
    return Reading(**(values | more))


def run(levels: list[float], policy: Policy = POLICY, **more: Any) -> list[Outcome | None]:
    alarms = Alarms(policy)
    return [alarms.step(reading(10.0 * n, level, **more)) for n, level in enumerate(levels)]


def test_one_bad_window_pages_nobody_and_two_do() -> None:
    outcomes = run([0.5, 5.0, 0.5, 5.0, 0.5, 1.2, 1.1, 1.3])
    assert [n for n, outcome in enumerate(outcomes) if outcome is not None] == [6]
    raised = outcomes[6]
    assert isinstance(raised, Raised)
    assert (raised.from_at, raised.at, raised.severity) == (48.0, 60.0, "warning")


def test_a_minimum_duration_holds_beside_the_number_of_windows() -> None:
    outcomes = run([2.0] * 8, Policy(raise_windows=2, raise_seconds=45.0))
    assert [n for n, outcome in enumerate(outcomes) if outcome is not None] == [5]


def test_between_clear_level_and_limit_nothing_changes() -> None:
    assert [type(o) for o in run([1.5, 1.5, 0.9, 0.9, 0.9, 0.9, 1.5, 1.5]) if o] == [Raised]


def test_it_is_over_after_enough_low_windows_and_tells_its_highest_and_its_end() -> None:
    outcomes = run([1.2, 1.5, 1.3, 0.1, 0.1, 1.1, 0.1, 0.1, 0.1])
    over = outcomes[-1]
    assert isinstance(over, Cleared)
    assert (over.level, over.to_at) == (1.5, 50.0)
    assert [type(o) for o in outcomes if o] == [Raised, Cleared]


def test_there_is_one_alert_however_many_sensors_see_it_and_it_ends_when_all_are_well() -> None:
    alarms = Alarms(POLICY)
    found = []
    for n in range(4):
        for sensor in ("a", "b"):
            found.append(alarms.step(reading(10.0 * n, 1.2, sensor=sensor)))
    for n in range(4, 9):
        found.append(alarms.step(reading(10.0 * n, 0.1, sensor="a")))
    assert [type(o) for o in found if o] == [Raised]
    for n in range(9, 12):
        found.append(alarms.step(reading(10.0 * n, 0.1, sensor="b")))
    assert [type(o) for o in found if o] == [Raised, Cleared]


def test_it_changes_once_when_it_becomes_severe_and_not_for_one_window() -> None:
    outcomes = run([1.2, 1.2, 2.0, 1.2, 2.0, 2.0, 2.0, 2.0])
    assert [n for n, outcome in enumerate(outcomes) if isinstance(outcome, Changed)] == [5]
    assert isinstance(outcomes[5], Changed)
    assert outcomes[5].severity == "alarm"


def test_it_takes_the_name_that_most_of_the_latest_windows_say() -> None:
    alarms = Alarms(POLICY)
    labels = ["ball", "ball", "inner", "ball", "inner", "inner", "inner"]
    found = [alarms.step(reading(10.0 * n, 1.2, label=label)) for n, label in enumerate(labels)]
    named = [(n, o.label) for n, o in enumerate(found) if isinstance(o, Raised | Changed)]
    assert named == [(1, "ball"), (5, "inner")]


@pytest.mark.parametrize("cut", range(9))
def test_a_restart_at_any_window_changes_nothing(cut: int) -> None:
    levels = [1.2, 1.2, 2.0, 2.0, 0.1, 0.1, 0.1, 1.2, 1.2]
    before, after = Alarms(POLICY), Alarms(POLICY)
    found = [before.step(reading(10.0 * n, level)) for n, level in enumerate(levels[:cut])]
    after.load(before.dump())
    found += [after.step(reading(10.0 * n, level)) for n, level in enumerate(levels[cut:], start=cut)]
    assert found == run(levels)


def test_a_repair_ends_what_is_open() -> None:
    alarms = Alarms(POLICY)
    for n in range(2):
        alarms.step(reading(10.0 * n, 1.2))
    assert [o.kind for o in alarms.reset(15.0, "pump-3")] == ["anomaly"]
    assert not alarms.suspect()
    assert alarms.step(reading(20.0, 1.2)) is None
