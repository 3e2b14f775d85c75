"""One machine, window by window: what is learnt, what is suspected, and what an event and a verdict do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
from fedmq_edge_node.alarms import Cleared, Evidence, Policy, Raised
from fedmq_edge_node.machines import Machine
from fedmq_edge_node.operating import OperatingSettings, State
from fedmq_edge_node.watching import Opinion, Seen, Watcher, WatchPolicy, Window
from fedmq_edge_node.watching import learnt as learnt_of
from numpy.typing import NDArray

from fedmq.simulator import simulate_vibration

RATE_HZ = 12_000.0
SECONDS = 1.0
EVERY = 10.0
POLICY = WatchPolicy(
    alarms=Policy(clear_windows=3), learning_windows=30, learning_seconds=0.0, drift_windows=20, least_factor=1.5
)
MACHINE = Machine(
    name="pump-3",
    speed_rpm=1800,
    bearing="6205",
    iso_group=2,
    operating=OperatingSettings(running_from_g=0.05, dwell_seconds=5.0),
)
PLAIN = Machine(name="pump-3", operating=OperatingSettings(running_from_g=0.05, dwell_seconds=5.0))
"""Neither bearing nor limits are known."""


def shaking(n: int, label: str = "normal", severity: float = 20.0, gain: float = 1.0) -> NDArray[np.float64]:
    signal = simulate_vibration(
        label=label,
        severity=0.0 if label == "normal" else severity,
        shaft_hz=30.0,
        load=1.0,
        resonance_hz=3200.0,
        seconds=SECONDS,
        rng=np.random.default_rng((n, 7)),
    )
    return gain * np.asarray(signal, dtype=np.float64).reshape(-1, 1)


class Line:
    """A machine whose windows a test makes, one every ten seconds."""

    def __init__(self, machine: Machine = MACHINE, models: Sequence[Any] = (), policy: WatchPolicy = POLICY) -> None:
        self.watcher = Watcher(machine, policy, models)
        self.n = 0

    def window(self, signal: NDArray[np.float64], **more: Any) -> Window:
        at = EVERY * self.n
        self.n += 1
        return Window(sensor="s", from_at=at, to_at=at + SECONDS, signal=signal, rate_hz=RATE_HZ, **more)

    def run(self, count: int, label: str = "normal", **more: Any) -> list[Seen]:
        return [self.watcher.step(self.window(shaking(self.n, label, **more))) for _ in range(count)]

    def stand(self, count: int) -> list[Seen]:
        rng = np.random.default_rng(self.n)
        return [self.watcher.step(self.window(1e-3 * rng.normal(size=(12_000, 1)))) for _ in range(count)]


def raised(seen: Sequence[Seen]) -> list[tuple[int, str]]:
    return [(n, o.kind) for n, one in enumerate(seen) for o in one.outcomes if isinstance(o, Raised)]


def test_healthy_windows_are_learnt_until_there_are_enough_and_raise_nothing() -> None:
    seen = Line().run(80)
    assert raised(seen) == []
    learnt = [one.learning for one in seen if one.learning is not None]
    assert not learnt[0].done
    assert learnt[-1].done
    assert learnt[-1].windows == POLICY.learning_windows


@pytest.mark.parametrize("label", ["inner_race", "outer_race", "ball"])
def test_a_fault_is_told_within_two_windows_of_its_start(label: str) -> None:
    line = Line()
    line.run(50)
    seen = line.run(4, label)
    assert raised(seen)[0][0] == 1
    kinds = {kind for _, kind in raised(seen)}
    assert {"anomaly", "defect"} <= kinds


def test_the_alert_names_what_is_behind_it_with_limit_what_it_was_and_its_trend() -> None:
    line = Line(PLAIN)
    line.run(50)
    first = next(o for one in line.run(4, "outer_race") for o in one.outcomes if isinstance(o, Raised))
    worst = first.evidence[0]
    assert worst.level == first.level >= 1
    assert worst.was is not None
    assert worst.value > worst.limit > worst.was
    assert worst.was_at == 10.0
    assert len(worst.trend) > 3


@pytest.mark.parametrize(("healthy", "known"), [(0, False), (5, False), (20, True)])
def test_a_bearings_line_was_nothing_typical_before_it_has_been_heard_for_some_time(healthy: int, known: bool) -> None:
    line = Line()
    line.run(healthy)
    first = next(o for one in line.run(4, "outer_race") for o in one.outcomes if o.kind == "defect")
    assert isinstance(first, Raised)
    assert (first.evidence[0].was is not None, first.evidence[0].was_at is not None) == (known, known)


def test_a_bearings_line_that_was_high_from_the_start_was_never_something_else() -> None:
    line = Line()
    seen = line.run(30, "outer_race")
    (last,) = (reading for reading in seen[-1].readings if reading.kind == "defect")
    assert last.level >= 1
    assert last.evidence[0].was is None


def test_before_anything_is_learnt_zones_and_bearing_lines_hold() -> None:
    seen = Line().run(6, "outer_race")
    assert "defect" in {kind for _, kind in raised(seen)}
    assert not any(one.learnt for one in seen if one.used)


def test_a_fault_that_comes_while_it_learns_is_told_and_not_learnt() -> None:
    line = Line(PLAIN)
    line.run(18)
    seen = line.run(20, "outer_race")
    assert [kind for _, kind in raised(seen)] == ["anomaly"]
    assert not any(one.learnt for one in seen)
    later = line.run(10)
    assert any(isinstance(o, Cleared) for one in later for o in one.outcomes)


def test_stopping_standing_and_starting_raise_and_teach_nothing() -> None:
    line = Line()
    line.run(50)
    seen = [*line.stand(10), *line.run(20)]
    assert raised(seen) == []
    assert {one.state for one in seen} >= {State.STOPPED, State.RUNNING}
    assert not any(one.used for one in seen[:10])


def test_a_run_up_is_not_judged_though_it_is_loud() -> None:
    line = Line(PLAIN)
    line.run(50)
    loud = [line.watcher.step(line.window(shaking(line.n, gain=gain))) for gain in (2.0, 4.0, 8.0, 3.0, 1.0, 1.0)]
    assert raised(loud) == []


def test_an_event_starts_this_machine_anew() -> None:
    line = Line(PLAIN)
    line.run(50)
    line.run(4, "outer_race")
    over = line.watcher.baseline(EVERY * line.n, "bearing-changed")
    assert [o.kind for o in over] == ["anomaly"]
    # Louder than before, and normal now.
    seen = line.run(60, gain=3.0)
    assert raised(seen) == []
    assert seen[1].learning is not None
    assert not seen[1].learning.done
    assert seen[-1].learning is not None
    assert seen[-1].learning.done
    assert raised(line.run(4, "outer_race", gain=3.0)) != []


def test_windows_from_before_an_event_are_left_alone() -> None:
    line = Line()
    line.watcher.baseline(EVERY * 10, "replaced")
    seen = line.run(20, "outer_race")
    assert not any(one.used for one in seen[:10])
    assert any(one.used for one in seen[10:])


def test_a_dismissed_anomaly_is_normal_from_then_on_and_a_confirmed_one_is_not() -> None:
    for fault in (None, "outer_race"):
        line = Line(PLAIN)
        line.run(50)
        assert raised(line.run(5, "outer_race")) != []
        line.watcher.verdict("anomaly", fault=fault)
        line.run(10)
        again = raised(line.run(5, "outer_race"))
        assert (again == []) is (fault is None)


class Said:
    """A model that says what the test has it say."""

    def __init__(self, mark: str = "1") -> None:
        self.name, self.mark = "bearings", mark
        self.next = Opinion()

    def opinion(self, signal: NDArray[np.float64], rate_hz: float) -> Opinion:
        return self.next


def test_a_class_and_little_remaining_life_are_alerts_of_their_own() -> None:
    model = Said()
    line = Line(PLAIN, [model])
    model.next = Opinion(classes={"normal": 0.9, "ball": 0.1}, remaining=90.0, remaining_most=100.0)
    assert raised(line.run(10)) == []
    model.next = Opinion(classes={"normal": 0.1, "ball": 0.9}, remaining=10.0, remaining_most=100.0)
    seen = line.run(3)
    assert {kind for _, kind in raised(seen)} == {"fault", "life"}
    assert [o.label for one in seen for o in one.outcomes if isinstance(o, Raised) and o.kind == "fault"] == ["ball"]


def test_a_class_dismissed_is_not_named_again_by_that_version() -> None:
    model = Said()
    line = Line(PLAIN, [model])
    model.next = Opinion(classes={"normal": 0.1, "ball": 0.9})
    assert {kind for _, kind in raised(line.run(5))} == {"fault"}
    line.watcher.verdict("fault", fault=None, label="ball")
    assert raised(line.run(10)) == []
    other = Said(mark="2")
    other.next = model.next
    line.watcher.use([other])
    assert {kind for _, kind in raised(line.run(5))} == {"fault"}


def test_scores_are_learnt_for_each_version_alone() -> None:
    model = Said()
    line = Line(PLAIN, [model])
    model.next = Opinion(score=0.1)
    line.run(50)
    other = Said(mark="2")
    other.next = Opinion(score=5.0)
    line.watcher.use([other])
    assert raised(line.run(40)) == []
    other.next = Opinion(score=50.0)
    assert [kind for _, kind in raised(line.run(3))] == ["anomaly"]


@pytest.mark.parametrize("cut", [5, 25, 52, 53, 60, 75])
def test_a_restart_at_any_window_changes_nothing(cut: int) -> None:
    def windows() -> list[Window]:
        line = Line()
        made = [line.window(shaking(n)) for n in range(52)]
        made += [line.window(shaking(n, "outer_race")) for n in range(52, 60)]
        return made + [line.window(shaking(n)) for n in range(60, 80)]

    whole, first, second = Watcher(MACHINE, POLICY), Watcher(MACHINE, POLICY), Watcher(MACHINE, POLICY)
    expected = [one.outcomes for one in map(whole.step, windows())]
    found = [one.outcomes for one in map(first.step, windows()[:cut])]
    second.load(first.dump())
    found += [one.outcomes for one in map(second.step, windows()[cut:])]
    assert found == expected
    assert second.dump() == whole.dump()


def test_drift_is_told_once_when_it_lasts_and_moves_no_limit() -> None:
    line = Line(PLAIN)
    line.run(50)
    before = line.watcher.summaries()
    assert not any(one.drift for one in line.run(80))
    seen = line.run(100, gain=1.2)
    drifts = [drift for one in seen for drift in one.drift if drift.measure == "acceleration"]
    assert len(drifts) == 1
    assert drifts[0].now > drifts[0].was
    assert line.watcher.summaries() == before


def spread_of(watcher: Watcher, measure: str = "acceleration") -> tuple[float, ...]:
    (found,) = (one.spread for one in learnt_of(watcher.dump()) if one.measure == measure)
    return found


def test_how_a_machine_holds_to_its_normal_is_known_after_three_epochs_and_a_hot_day_is_not_in_it() -> None:
    line = Line(PLAIN)
    line.run(50)
    line.run(POLICY.drift_windows)
    assert spread_of(line.watcher) == ()
    line.run(2 * POLICY.drift_windows)
    usual = spread_of(line.watcher)
    assert sum(usual) == pytest.approx(1.0)
    assert max(usual) < 0.5
    line.run(POLICY.drift_windows, gain=1.2)
    assert spread_of(line.watcher)[-1] < 0.5
    line.run(2 * POLICY.drift_windows, gain=1.2)
    assert spread_of(line.watcher)[-1] > 0.9
    line.watcher.baseline(EVERY * line.n, "bearing-changed")
    line.run(60)
    assert spread_of(line.watcher) == ()


def test_a_book_from_before_spreads_were_known_is_read_and_goes_on() -> None:
    line = Line(PLAIN)
    line.run(150)
    older = {}
    for key, part in line.watcher.dump().items():
        older[key] = part
        if key.startswith("normal\n"):
            fields = msgspec.msgpack.decode(part)
            del fields["epochs"]
            older[key] = msgspec.msgpack.encode(fields)
    line.watcher.load(older)
    assert spread_of(line.watcher) == ()
    line.run(3 * POLICY.drift_windows + 10)
    assert sum(spread_of(line.watcher)) == pytest.approx(1.0)


def by_the_fleet(seen: Sequence[Seen]) -> list[Evidence]:
    return [
        evidence
        for one in seen
        for reading in one.readings
        if reading.kind == "anomaly"
        for evidence in reading.evidence
        if evidence.by == "fleet"
    ]


def test_the_fleets_limit_holds_while_the_machines_own_is_learnt_and_no_longer() -> None:
    line = Line(PLAIN)
    line.watcher.heed({("all", "acceleration"): 1e-3})
    seen = line.run(6)
    told = by_the_fleet(seen)
    assert {(one.name, one.limit) for one in told} == {("acceleration", 1e-3)}
    assert [kind for _, kind in raised(seen)] == ["anomaly"]
    learning = Line(PLAIN)
    learning.run(80)
    learning.watcher.heed({("all", "acceleration"): 1e-3})
    later = learning.run(4)
    assert any(one.learning is not None and one.learning.done for one in later)
    assert by_the_fleet(later) == []
    assert raised(later) == []


def test_a_dismissal_raises_the_fleets_limit_for_this_machine_too() -> None:
    line = Line(PLAIN)
    line.watcher.heed({("all", "acceleration"): 1e-3})
    assert [kind for _, kind in raised(line.run(6))] == ["anomaly"]
    line.watcher.verdict("anomaly", fault=None)
    assert {one.level < 1 for one in by_the_fleet(line.run(4))} == {True}


def test_the_fleets_limit_is_never_above_the_machines_own_zones() -> None:
    zones = MACHINE.zone_limits
    assert zones is not None
    line = Line()
    line.watcher.heed({("all", "velocity"): 100 * zones.b_c, ("all", "kurtosis"): 50.0})
    limits = {one.name: one.limit for one in by_the_fleet(line.run(6))}
    assert limits == {"velocity": zones.b_c, "kurtosis": 50.0}


def test_only_what_is_learnt_and_comparable_is_for_the_fleet() -> None:
    model = Said("1-7-abcd-own")
    model.next = Opinion(score=0.1)
    line = Line(PLAIN, [model])
    line.run(15)
    assert learnt_of(line.watcher.dump()) == []
    line.run(60)
    found = {one.measure: one for one in learnt_of(line.watcher.dump())}
    assert found["acceleration"].shared
    assert found["acceleration"].summary.count >= POLICY.learning_windows
    (score,) = [one for name, one in found.items() if name.startswith("score of ")]
    assert not score.shared


def test_a_machine_much_quieter_than_it_was_is_an_anomaly_and_standing_or_a_dismissal_is_none() -> None:
    line = Line(PLAIN)
    line.run(50)
    assert raised(line.run(5, gain=0.8)) == []
    seen = line.run(5, gain=0.5)
    assert [kind for _, kind in raised(seen)] == ["anomaly"]
    first = next(o for one in seen for o in one.outcomes if isinstance(o, Raised))
    assert {one.name for one in first.evidence[:2]} == {"quieter acceleration", "quieter velocity"}
    assert first.evidence[0].value == pytest.approx(2.0, rel=0.1)
    assert first.evidence[0].limit == pytest.approx(1.5, rel=0.05)
    line.watcher.verdict("anomaly", fault=None)
    line.run(10)
    assert raised([*line.run(5, gain=0.5), *line.stand(8), *line.run(8)]) == []
    off = Line(PLAIN, policy=msgspec.structs.replace(POLICY, lower_limits=False))
    off.run(50)
    assert raised(off.run(8, gain=0.5)) == []


def test_while_it_learns_nothing_is_too_quiet() -> None:
    line = Line(PLAIN)
    line.run(20)
    assert raised(line.run(8, gain=0.5)) == []


def at_speed(line: Line, speed: float, count: int, label: str = "normal") -> list[Seen]:
    """The orders move, and what the structure rings at does not."""
    seen = []
    for _ in range(count):
        signal = simulate_vibration(
            label=label,
            severity=0.0 if label == "normal" else 20.0,
            shaft_hz=30.0 * speed,
            load=1.0,
            resonance_hz=3200.0,
            seconds=SECONDS,
            rng=np.random.default_rng((line.n, 7)),
        )
        seen.append(line.watcher.step(line.window(np.asarray(signal, dtype=np.float64).reshape(-1, 1))))
    return seen


def test_another_speed_is_told_by_the_vibration_and_has_a_normal_of_its_own() -> None:
    line = Line()
    at_speed(line, 1.0, 50)
    seen = at_speed(line, 1.2, 50)
    assert raised(seen) == []
    assert {one.band for one in seen if one.used} == {"1.21 x speed"}
    assert seen[-1].learning is not None
    assert 25 <= seen[-1].learning.windows <= POLICY.learning_windows
    # The bearing's lines are looked for where the shaft is now.
    faulty = at_speed(line, 1.2, 4, "outer_race")
    assert faulty[-1].condition is not None
    assert faulty[-1].condition.shaft_hz == pytest.approx(36.0, rel=0.01)
    assert "defect" in {kind for _, kind in raised(faulty)}


def test_bearing_lines_say_nothing_where_the_shafts_do_not_confirm_its_speed() -> None:
    """A fault's strikes without a shaft in them: whatever they are, nobody knows how fast it turns."""
    line = Line()
    seen = []
    for _ in range(8):
        signal = shaking(line.n, "outer_race", severity=20.0)
        spectrum = np.fft.rfft(signal[:, 0])
        spectrum[:120] = 0.0
        seen.append(line.watcher.step(line.window(np.fft.irfft(spectrum, len(signal))[:, None])))
    assert all("defect" not in {reading.kind for reading in one.readings} for one in seen)
    assert any(one.condition is not None and max(one.condition.defects.values()) > 3.5 for one in seen)
    # A sensor that measures it is believed.
    told = Line()
    told.run(0)
    seen = [told.watcher.step(told.window(shaking(told.n, "outer_race"), speed_hz=30.0)) for _ in range(6)]
    assert "defect" in {kind for _, kind in raised(seen)}


def test_what_is_learnt_is_learnt_late_and_not_before_a_change() -> None:
    line = Line(PLAIN)
    seen = line.run(12)
    learnt = [begin for one in seen for begin in one.learnt]
    assert learnt == sorted(learnt)
    assert max(learnt) == pytest.approx(EVERY * (12 - 1) - 20.0, abs=EVERY)
    # What ran steadily before it stopped, but not for long enough, is never learnt.
    stopped_at = EVERY * line.n
    seen += [*line.stand(6), *line.run(20)]
    learnt = [begin for one in seen for begin in one.learnt]
    assert not [begin for begin in learnt if stopped_at - 20.0 < begin < stopped_at + 60.0]
    assert [begin for begin in learnt if begin > stopped_at + 60.0]


def says(share: float) -> Opinion:
    return Opinion(classes={"normal": 1.0 - share, "ball": share})


def at_other_speed(model: Said, share: float, policy: WatchPolicy = POLICY) -> Line:
    """A machine whose normal is learnt, and that has come to another speed, where the model names a fault."""
    line = Line(PLAIN, [model], policy)
    model.next = says(0.1)
    at_speed(line, 1.0, 50)
    model.next = says(share)
    return line


def test_what_a_model_names_at_a_speed_that_it_has_not_proven_itself_at_is_told_and_raises_nothing() -> None:
    model = Said()
    line = at_other_speed(model, 0.95)
    seen = at_speed(line, 1.2, 45)
    assert raised(seen) == []
    assert seen[-1].band == "1.21 x speed"
    assert seen[-1].unproven == ("ball by bearings",)
    # It is no suspicion either: else nothing would ever be learnt at this speed.
    assert seen[-1].learning is not None
    assert seen[-1].learning.done
    # And it has named something too often to be heard there later.
    assert raised(at_speed(line, 1.2, 20)) == []
    # At the usual speed it counts as ever.
    assert {kind for _, kind in raised(at_speed(line, 1.0, 6))} == {"fault"}


def test_a_fault_at_another_speed_is_told_by_what_is_measured_and_named_by_no_model_that_has_not_proven_itself() -> (
    None
):
    model = Said()
    line = at_other_speed(model, 0.95)
    at_speed(line, 1.2, 45)
    assert {kind for _, kind in raised(at_speed(line, 1.2, 5, "outer_race"))} == {"anomaly"}


def test_a_model_that_was_quiet_at_another_speed_for_long_enough_counts_there() -> None:
    model = Said()
    line = at_other_speed(model, 0.1)
    at_speed(line, 1.2, POLICY.learning_windows - 5)
    model.next = says(0.95)
    assert raised(at_speed(line, 1.2, 2)) == []
    model.next = says(0.1)
    at_speed(line, 1.2, 20)
    # One of thirty is more than one of a hundred.
    model.next = says(0.95)
    assert raised(at_speed(line, 1.2, 5)) == []
    other = Said(mark="2")
    other.next = says(0.1)
    line.watcher.use([other])
    at_speed(line, 1.2, POLICY.learning_windows + 5)
    restarted = Watcher(PLAIN, POLICY, [other])
    restarted.load(line.watcher.dump())
    line.watcher = restarted
    other.next = says(0.95)
    assert {kind for _, kind in raised(at_speed(line, 1.2, 3))} == {"fault"}


def test_a_model_that_has_not_proven_itself_ends_no_alert_either() -> None:
    model = Said()
    line = at_other_speed(model, 0.1)
    model.next = says(0.95)
    assert {kind for _, kind in raised(at_speed(line, 1.0, 5))} == {"fault"}
    model.next = says(0.1)
    seen = at_speed(line, 1.2, 20)
    assert not any(isinstance(o, Cleared) for one in seen for o in one.outcomes)
    seen = at_speed(line, 1.0, 10)
    assert any(isinstance(o, Cleared) for one in seen for o in one.outcomes)
