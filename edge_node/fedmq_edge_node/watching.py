"""One machine, window by window: what state it is in, how it is, what is normal for it, and what to say of it.

Owns the order of judging, and what a machine's normal is made of. Refuses to know files, clocks, stores and outputs.
Pure: windows come in the order of their time, and everything that must survive a restart goes out by `dump`.

    window -> state -> condition (zone, bearing lines) -> models in service -> learnt limits -> readings -> alerts

The rules kept here:

- Only steady running windows are judged. A sudden change leaves one window in doubt: it counts, late, if the next one
  is like it (a fault that broke out), and is dropped if not (a run-up).
- Only those teach what is normal, and late: once the machine has run on steadily for `ramp_seconds`. A slow ramp, and a
  fault that grows, are told from chance only when they have gone on for some time.
- Normal is learnt for each sensor, band of speed and load, and measure; a model's score for each version of the model
  too. Bands of speed are set, or follow from the speed that is measured or that the vibration tells (`turning`). It is
  learnt once, until there are enough windows over a long enough time, and stands then: what creeps is not followed.
- What is suspected is never learnt from, also while learning: zones and bearing lines hold from the first window on,
  and from the `ROBUST_FROM`-th a robust bound over what has been learnt so far.
- At another speed than the one that the machine is known at, a model may never have heard it. What it names there (a
  fault, an end of life) counts once it has been quiet for as many windows as normal is learnt from. Until then it
  neither raises nor ends an alert and is no suspicion, but it is told (`Seen.unproven`).
- A bearing's lines count only where the speed that they are looked for by is measured, or the vibration confirms it.
- An event (`baseline`) starts all of it anew for this machine alone.
- A dismissed alert raises the learnt limits, or that of the bearing line, that it went by to what was seen meanwhile,
  and has the version of the model that named the fault not name it again here. Nothing else does; a zone limit is moved
  in the machine's settings alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec
import numpy as np
from fedmq_protocol.spread import Counts, Shares, as_many_as, by_chance, counts_of, shares_of, stability, typical
from numpy.typing import NDArray

from fedmq_edge_node.alarms import Alarms, Cleared, Evidence, Kind, Outcome, Policy, Raised, Reading
from fedmq_edge_node.condition import Condition, measure, zone
from fedmq_edge_node.machines import Machine
from fedmq_edge_node.operating import Operating, State, level_g
from fedmq_edge_node.thresholds import (
    Rule,
    Summary,
    limit,
    lower_limit,
    robust_bound,
)
from fedmq_edge_node.turning import Turn, Turning

__all__ = [
    "ROBUST_FROM",
    "Drift",
    "Learning",
    "Learnt",
    "Model",
    "Opinion",
    "Seen",
    "WatchPolicy",
    "Watcher",
    "Window",
    "learnt",
]

ROBUST_FROM = 10
"""Windows; before, a spread cannot be told."""
ALLOWED_BEYOND = 1.25
"""After a dismissal, how far a limit is above the highest that was seen."""
KEPT_POINTS = 24
"""Of a measure's history, evenly over all of its time."""
DRIFTED = 0.25
"""Population stability index from which on a distribution is said to have changed."""
DRIFT_EPOCHS = 3
"""In a row: a hot day is no drift."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Window:
    """What one sensor of the machine said, without a gap. Times are Unix seconds."""

    sensor: str
    from_at: float
    to_at: float
    signal: NDArray[np.float64]
    """`(n, channels)` in g."""
    rate_hz: float
    speed_hz: float | None = None
    """Measured turns a second, where something measures them."""
    load: float | None = None


@dataclass(frozen=True, kw_only=True)
class Opinion:
    """What a model says of a window; None of what it is not made for."""

    score: float | None = None
    """Of an autoencoder: how badly it knows the window again."""
    classes: Mapping[str, float] | None = None
    """Probabilities by label."""
    remaining: float | None = None
    """Samples of life that are left,"""
    remaining_most: float = 0.0
    """and how many the model can tell at most."""


class Model(Protocol):
    """A model in service."""

    @property
    def name(self) -> str:
        """Of its task."""

    @property
    def mark(self) -> str:
        """Another one for another version: its scores are not comparable."""

    def opinion(self, signal: NDArray[np.float64], rate_hz: float) -> Opinion | None:
        """None where the signal does not fit the model. `(n, channels)` in g."""


class WatchPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """How a machine is judged."""

    alarms: Policy = Policy()
    learning_windows: int = 1000
    learning_seconds: float = 86_400.0
    """Both: a machine by day is not the same as by night."""
    quantile: float = 0.99
    margin: float = 1.5
    least_factor: float = 1.5
    lower_limits: bool = True
    """Whether a machine that has become much quieter than it was is an anomaly, too."""
    healthy: str = "normal"
    fault_share: float = 0.7
    """Probability of a fault's class that is level 1."""
    life_share: float = 0.32
    """Of the remaining life that a model can tell at most: level 1."""
    drift_windows: int = 8640

    @property
    def rule(self) -> Rule:
        return Rule(quantile=self.quantile, margin=self.margin, least_factor=self.least_factor)


class Drift(msgspec.Struct, frozen=True, kw_only=True):
    """A measure is not distributed as in the machine's baseline, and has not been for some time."""

    at: float
    machine: str
    sensor: str
    band: str
    measure: str
    index: float
    """Population stability index."""
    was: float
    """Median then,"""
    now: float
    """and now."""


class Learning(msgspec.Struct, frozen=True, kw_only=True):
    """How far normal behaviour is learnt, where the machine works now."""

    windows: int
    wanted: int
    done: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class Seen:
    """What came of one window."""

    at: float
    sensor: str
    state: State
    used: bool
    """Whether it was judged: the machine ran, and steadily."""
    band: str = "all"
    condition: Condition | None = None
    zone: str | None = None
    values: Mapping[str, float] = field(default_factory=dict)
    """Measures by name, scores too."""
    opinions: Mapping[str, Opinion] = field(default_factory=dict)
    """By task."""
    readings: tuple[Reading, ...] = ()
    outcomes: tuple[Outcome, ...] = ()
    learning: Learning | None = None
    learnt: tuple[float, ...] = ()
    """Begins of the windows that were taken as normal with this one: earlier ones."""
    drift: tuple[Drift, ...] = ()
    unproven: tuple[str, ...] = ()
    """What models name, and did not count: they have not shown yet that they know the machine at this speed."""


class _Normal(msgspec.Struct, kw_only=True):
    """One measure of one sensor in one band."""

    first_at: float
    summary: bytes = Summary().to_bytes()
    done: bool = False
    recent: bytes = Summary().to_bytes()
    """Since the last look for drift."""
    drifting: int = 0
    """Epochs in a row."""
    epochs: list[Counts] = []
    """How the values of the last `DRIFT_EPOCHS` epochs lay among the tenths of `summary`."""


@dataclass(frozen=True, kw_only=True)
class Learnt:
    """What is normal of one measure of one sensor in one band, and stands."""

    band: str
    measure: str
    summary: Summary
    drifting: bool
    """It has not been distributed so for long."""
    spread: Shares
    """How its values lie lately among the tenths of what is normal, typically; empty until that is known."""
    windows: float
    """As how many that is: `spread.as_many_as`."""
    shared: bool
    """Comparable with other gateways': not the score of a model that is this gateway's own."""


def learnt(parts: Mapping[str, bytes]) -> list[Learnt]:
    """Of what `Watcher.dump` gave. Raises ValueError."""
    found = []
    for key, value in parts.items():
        word, *place = key.split("\n")
        if word != "normal" or len(place) != 3:
            continue
        normal = msgspec.msgpack.decode(value, type=_Normal)
        if normal.done:
            summary = Summary.from_bytes(normal.summary)
            known = len(normal.epochs) >= DRIFT_EPOCHS
            found.append(
                Learnt(
                    band=place[1],
                    measure=place[2],
                    summary=summary,
                    drifting=normal.drifting >= DRIFT_EPOCHS,
                    spread=typical(normal.epochs) if known else (),
                    windows=as_many_as(summary.count, sum(normal.epochs[-1])) if known else 0.0,
                    shared=not (_is_score(key) and key.endswith("-own")),
                )
            )
    return found


class _History(msgspec.Struct, kw_only=True):
    """Of a measure, `KEPT_POINTS` at most, each the mean of `every` values."""

    points: list[tuple[float, float]] = []
    every: int = 1
    gathered: int = 0
    total: float = 0.0


class _Proof(msgspec.Struct, kw_only=True):
    """Of one version of a model, at one other speed: windows that were learnt as normal, and in how many of them it
    named something."""

    windows: int = 0
    named: int = 0


class _State(msgspec.Struct, kw_only=True):
    baseline_at: float = 0.0
    event: str = ""
    highest: dict[str, float] = {}
    """Of each thing that the newest alert of its kind went by; keys begin with the kind."""
    allowed: dict[str, float] = {}
    """By the same keys: after dismissals a limit is this at least."""
    passed_over: list[str] = []
    """Task, version and fault that a model has named wrongly here."""
    proofs: dict[str, _Proof] = {}
    """By sensor, band and `_measure_of`."""


class _Held(msgspec.Struct, frozen=True, kw_only=True):
    """A window after a sudden change, until the next one tells what it was."""

    speed_hz: float | None
    readings: tuple[Reading, ...]


class _Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A window that is normal if the machine runs on steadily for a while."""

    from_at: float
    to_at: float
    band: str
    values: dict[str, float]
    turn: Turn | None
    """None where the reference of speed needs no more of them."""
    shaft_hz: float | None
    """As measured, or found in the vibration."""
    doubted: dict[str, bool] = {}
    """By `_measure_of` the models that had not proven themselves at this speed, and whether they named something."""
    void: bool = False
    """Something came that says it was not; until its time is over it counts for what is suspect all the same."""


class Watcher:
    """One machine's. `step` takes its windows in the order of their ends."""

    def __init__(self, machine: Machine, policy: WatchPolicy | None = None, models: Sequence[Model] = ()) -> None:
        self.machine = machine
        self.policy = policy or WatchPolicy()
        self._models = tuple(models)
        self._alarms = Alarms(self.policy.alarms)
        self._operating: dict[str, Operating] = {}
        self._state = _State()
        self._normal: dict[str, _Normal] = {}
        self._summaries: dict[str, Summary] = {}
        """Decoded, as far as they have been looked at."""
        self._recent: dict[str, Summary] = {}
        self._limits: dict[str, float] = {}
        """Of what is done: it does not change."""
        self._lower_limits: dict[str, float | None] = {}
        self._history: dict[str, _History] = {}
        self._held: dict[str, _Held] = {}
        self._turning: dict[str, Turning] = {}
        self._candidates: dict[str, list[_Candidate]] = {}
        self._fleet: dict[tuple[str, str], float] = {}
        """The fleet's limits, by band and measure: they hold while this machine's own are being learnt."""

    # -- what comes in -----------------------------------------------------------------------------------------

    def step(self, window: Window) -> Seen:
        """Raises ValueError for a signal that cannot be measured."""
        operating = self._operating.setdefault(window.sensor, Operating(self.machine.operating))
        turning = self._turning.setdefault(window.sensor, Turning())
        turn = turning.step(window.signal, window.rate_hz, window.speed_hz)
        state = operating.step(
            window.to_at, level_g(window.signal), window.speed_hz, turned=turn.ratio, moving=turn.moving
        )
        held = self._held.pop(window.sensor, None)
        if not operating.usable:
            # Neither did what led to it run steadily.
            self._void(window.sensor)
        if window.from_at < self._state.baseline_at or state is not State.RUNNING or turn.moving:
            return Seen(at=window.to_at, sensor=window.sensor, state=state, used=False)
        band = self._band(window, operating, turning)
        told_hz = turning.shaft_hz() if window.speed_hz is None else window.speed_hz
        condition = measure(
            window.signal,
            window.rate_hz,
            told_hz or self.machine.shaft_hz,
            self.machine.geometry,
            speed_measured=window.speed_hz is not None,
        )
        opinions = {
            model.name: said
            for model in self._models
            if (said := model.opinion(window.signal, window.rate_hz)) is not None
        }
        values = self._values(condition, opinions)
        keys = {name: self._key(window.sensor, band, name) for name in values}
        confirmed = told_hz is not None or condition.shaft_found
        doubted = {} if turning.is_usual() else self._doubted(window, band, opinions)
        readings = (
            *self._readings(window, condition, values, keys, confirmed),
            *self._by_models(window, {name: said for name, said in opinions.items() if name not in doubted}),
        )
        if not operating.usable:
            self._held[window.sensor] = _Held(speed_hz=window.speed_hz, readings=readings)
            return Seen(at=window.to_at, sensor=window.sensor, state=state, used=False, band=band, condition=condition)
        late = held.readings if held is not None and _same_speed(held.speed_hz, window.speed_hz) else ()
        outcomes = tuple(
            outcome for reading in (*late, *readings) if (outcome := self._alarms.step(reading)) is not None
        )
        suspect = self._alarms.suspect() or any(reading.level >= 1.0 for reading in readings)
        for reading in (*late, *readings):
            self._note_highest(reading)
        if any(isinstance(outcome, Raised) for outcome in outcomes):
            # What led to an alert is not normal, even where it reached no limit yet.
            self._void(window.sensor)
        learnt, drift = self._learn_late(window)
        if not suspect:
            self._candidates.setdefault(window.sensor, []).append(
                _Candidate(
                    from_at=window.from_at,
                    to_at=window.to_at,
                    band=band,
                    values=values,
                    turn=turn if turning.learns else None,
                    shaft_hz=condition.shaft_hz if condition.shaft_found else window.speed_hz,
                    doubted={
                        self._measure_of(model): bool(doubted[model.name])
                        for model in self._models
                        if model.name in doubted
                    },
                )
            )
        for name, value in values.items():
            self._remember(window, name, value)
        for name, height in condition.defects.items() if confirmed else ():
            self._remember(window, f"{name} line", height)
        return Seen(
            at=window.to_at,
            sensor=window.sensor,
            state=state,
            used=True,
            band=band,
            condition=condition,
            zone=zone(condition.velocity_mm_s, self.machine),
            values=values,
            opinions=opinions,
            readings=readings,
            outcomes=outcomes,
            learning=self._learning(window.sensor, band),
            learnt=learnt,
            drift=drift,
            unproven=tuple(named for names in doubted.values() for named in names),
        )

    def heed(self, limits: Mapping[tuple[str, str], float]) -> None:
        """The fleet's limits for machines of this kind, by band and measure. None is above the machine's own zones."""
        zones = self.machine.zone_limits
        self._fleet = {
            place: min(bound, zones.b_c) if place[1] == "velocity" and zones is not None else bound
            for place, bound in limits.items()
        }

    def use(self, models: Sequence[Model]) -> None:
        """Other models are in service now. Scores of versions that are gone are forgotten with their limits."""
        self._models = tuple(models)
        for kind in _BY_MODELS:
            self._alarms.forget(kind)
        marks = {self._measure_of(model) for model in models}
        gone = [key for key in self._normal if _is_score(key) and key.rpartition("\n")[2] not in marks]
        for key in gone:
            for table in (self._normal, self._summaries, self._recent, self._limits, self._lower_limits):
                table.pop(key, None)
        proofs = self._state.proofs
        self._state.proofs = {key: proof for key, proof in proofs.items() if key.rpartition("\n")[2] in marks}
        for sensor, every in self._candidates.items():
            self._candidates[sensor] = [
                msgspec.structs.replace(
                    one,
                    values={name: value for name, value in one.values.items() if not _is_score(name) or name in marks},
                    doubted={name: named for name, named in one.doubted.items() if name in marks},
                )
                for one in every
            ]

    def baseline(self, at: float, event: str) -> list[Cleared]:
        """The machine is another one from `at` on: windows before are left alone, and what is normal is learnt anew."""
        over = self._alarms.reset(at, self.machine.name)
        self._state = _State(baseline_at=at, event=event)
        for table in (
            self._normal,
            self._summaries,
            self._recent,
            self._limits,
            self._lower_limits,
            self._history,
            self._held,
        ):
            table.clear()
        self._candidates.clear()
        self._turning.clear()
        return over

    def verdict(self, kind: Kind, *, fault: str | None, label: str | None = None) -> None:
        """Somebody has looked at an alert that named `label`: it was that `fault`, or none."""
        state = self._state
        if fault is None and kind == "fault" and label is not None:
            state.passed_over += [f"{self._measure_of(model)}\n{label}" for model in self._models]
        for key in [key for key in state.highest if key.partition("\n")[0] == kind]:
            highest = state.highest.pop(key)
            if fault is None and kind in _LEARNS_FROM_DISMISSALS:
                state.allowed[key] = max(state.allowed.get(key, 0.0), ALLOWED_BEYOND * highest)

    # -- what goes out -----------------------------------------------------------------------------------------

    @property
    def baseline_at(self) -> float:
        """0 where there has been no event."""
        return self._state.baseline_at

    @property
    def event(self) -> str:
        return self._state.event

    def summaries(self) -> dict[str, Summary]:
        """What is normal, by sensor, band and measure with line breaks between: mergeable over gateways."""
        return {key: self._summary(key) for key in self._normal}

    def dump(self) -> dict[str, bytes]:
        """All that must survive a restart, in parts, of which most stay the same from window to window."""
        for key, summary in self._summaries.items():
            self._normal[key].summary = summary.to_bytes()
        for key, summary in self._recent.items():
            self._normal[key].recent = summary.to_bytes()
        operating = {sensor: one.memory() for sensor, one in self._operating.items()}
        return {
            "state": msgspec.json.encode(self._state),
            "alarms": self._alarms.dump(),
            "operating": msgspec.json.encode(operating),
            "history": msgspec.msgpack.encode(self._history),
            "held": msgspec.msgpack.encode(self._held),
            "turning": msgspec.msgpack.encode({sensor: one.dump() for sensor, one in self._turning.items()}),
            "candidates": msgspec.msgpack.encode(self._candidates),
        } | {f"normal\n{key}": msgspec.msgpack.encode(normal) for key, normal in self._normal.items()}

    def load(self, parts: Mapping[str, bytes]) -> None:
        """What `dump` gave. Raises ValueError."""
        if not parts:
            return
        self._state = msgspec.json.decode(parts["state"], type=_State)
        self._alarms.load(parts["alarms"])
        memories = msgspec.json.decode(parts["operating"], type=dict[str, dict[str, Any]])
        self._operating = {
            sensor: Operating(self.machine.operating, memory=memory) for sensor, memory in memories.items()
        }
        self._history = msgspec.msgpack.decode(parts["history"], type=dict[str, _History])
        self._normal = {
            key.partition("\n")[2]: msgspec.msgpack.decode(value, type=_Normal)
            for key, value in parts.items()
            if key.startswith("normal\n")
        }
        self._held = msgspec.msgpack.decode(parts["held"], type=dict[str, _Held])
        # A book of an earlier version has neither.
        if "turning" in parts:
            turning = msgspec.msgpack.decode(parts["turning"], type=dict[str, bytes])
            self._turning = {sensor: Turning(memory) for sensor, memory in turning.items()}
        if "candidates" in parts:
            self._candidates = msgspec.msgpack.decode(parts["candidates"], type=dict[str, list[_Candidate]])
        for table in (self._summaries, self._recent, self._limits, self._lower_limits):
            table.clear()

    # -- judging -----------------------------------------------------------------------------------------------

    def _band(self, window: Window, operating: Operating, turning: Turning) -> str:
        """As it is set; bands of speed that nobody set follow from how it turns against how it turned."""
        if self.machine.operating.speed_bands_rpm:
            told_hz = turning.shaft_hz() if window.speed_hz is None else window.speed_hz
            return operating.band(told_hz or self.machine.shaft_hz, window.load)
        parts = [part for part in (turning.band(), operating.band(None, window.load)) if part != "all"]
        return " ".join(parts) or "all"

    def _values(self, condition: Condition, opinions: Mapping[str, Opinion]) -> dict[str, float]:
        values = {
            "acceleration": condition.acceleration_rms_g,
            "kurtosis": condition.kurtosis,
            "crest": condition.crest,
        }
        low_hz, high_hz = condition.velocity_band_hz
        if low_hz < high_hz:
            values["velocity"] = condition.velocity_mm_s
        for model in self._models:
            said = opinions.get(model.name)
            if said is not None and said.score is not None:
                values[self._measure_of(model)] = said.score
        return values

    def _readings(
        self,
        window: Window,
        condition: Condition,
        values: Mapping[str, float],
        keys: Mapping[str, str],
        confirmed: bool,
    ) -> Iterable[Reading]:
        """What is measured, against zones, bearing lines and what is learnt."""
        limits = self.machine.zone_limits
        if limits is not None and "velocity" in values:
            yield self._reading(
                window,
                "vibration",
                [self._evidence(window, "velocity", values["velocity"], limits.b_c, keys["velocity"])],
            )
        if condition.defects and confirmed:
            worst = max(condition.defects, key=lambda name: condition.defects[name])
            found = []
            for name, height in condition.defects.items():
                allowed = self._state.allowed.get(f"defect\n{window.sensor}\n{name} line", 0.0)
                bound = max(self.machine.defect_limit, allowed)
                found.append(self._line(window, f"{name} line", height, bound))
            yield self._reading(window, "defect", found, worst)
        learnt = [
            self._evidence(
                window, name, value, learnt_limit, keys[name], by="fleet" if self._fleets(keys[name]) else ""
            )
            for name, value in values.items()
            if (learnt_limit := self._limit(keys[name])) is not None
        ]
        if self.policy.lower_limits:
            learnt += [
                one
                for name in _LEVELS
                if name in values and (one := self._quieter(window, name, values[name], keys[name])) is not None
            ]
        if learnt:
            yield self._reading(window, "anomaly", learnt)

    def _by_models(self, window: Window, opinions: Mapping[str, Opinion]) -> Iterable[Reading]:
        """What the models name, of those whose opinions are given."""
        if faults := list(self._faults(opinions)):
            label, named = max(faults, key=lambda one: one[1].level)
            yield self._reading(window, "fault", [named], label)
        least = self.policy.life_share
        lives = [
            # The level grows as the life shrinks; no life left is level 100, and not infinity.
            Evidence(
                name=f"{least:g} of the life that {name} can tell, over what is left",
                value=least / max(said.remaining / said.remaining_most, least / 100),
                limit=1.0,
            )
            for name, said in opinions.items()
            if said.remaining is not None and said.remaining_most
        ]
        if lives:
            yield self._reading(window, "life", lives)

    def _reading(self, window: Window, kind: Kind, evidence: Iterable[Evidence], label: str | None = None) -> Reading:
        ordered = tuple(sorted(evidence, key=lambda one: -one.level))
        level = ordered[0].level
        return Reading(
            at=window.to_at,
            machine=self.machine.name,
            kind=kind,
            level=level,
            evidence=ordered,
            from_at=window.from_at,
            to_at=window.to_at,
            label=label if level >= 1.0 else None,
            sensor=window.sensor,
        )

    def _doubted(self, window: Window, band: str, opinions: Mapping[str, Opinion]) -> dict[str, tuple[str, ...]]:
        """Models that have not proven themselves in this band, by name, with what they name now."""
        doubted = {}
        for model in self._models:
            said = opinions.get(model.name)
            if said is None or (said.classes is None and said.remaining is None):
                continue
            proof = self._state.proofs.get(self._key(window.sensor, band, self._measure_of(model)), _Proof())
            often = (1 - self.policy.quantile) * proof.windows
            if proof.windows < self.policy.learning_windows or proof.named > often:
                readings = self._by_models(window, {model.name: said})
                doubted[model.name] = tuple(one.evidence[0].name for one in readings if one.level >= 1.0)
        return doubted

    def _faults(self, opinions: Mapping[str, Opinion]) -> Iterable[tuple[str, Evidence]]:
        """Of each model that tells faults apart the most probable one; what was dismissed of this version is none."""
        policy = self.policy
        for model in self._models:
            said = opinions.get(model.name)
            if said is None or said.classes is None:
                continue
            shares = {
                label: 0.0 if f"{self._measure_of(model)}\n{label}" in self._state.passed_over else share
                for label, share in said.classes.items()
                if label != policy.healthy
            }
            if shares:
                worst = max(shares, key=lambda label: shares[label])
                name = f"{worst} by {model.name}"
                yield worst, Evidence(name=name, value=shares[worst], limit=policy.fault_share, unit="probability")

    def _evidence(self, window: Window, name: str, value: float, bound: float, key: str, by: str = "") -> Evidence:
        summary = self._summary(key)
        history = self._history.get(f"{window.sensor}\n{name}")
        return Evidence(
            name=name,
            value=value,
            limit=bound,
            unit={"velocity": "mm/s", "acceleration": "g"}.get(name, ""),
            was=summary.quantile(0.5) if summary.count else None,
            was_at=self._normal[key].first_at if key in self._normal else None,
            trend=tuple(history.points) if history is not None else (),
            by=by,
        )

    def _quieter(self, window: Window, name: str, value: float, key: str) -> Evidence | None:
        """By how much less the machine shakes than is typical, once that is learnt: a decrease is a change as an
        increase is (ISO 20816-1:2016, criterion II). A tooth that is gone meshes no more."""
        normal = self._normal.get(key)
        if normal is None or not normal.done:
            return None
        if key not in self._lower_limits:
            self._lower_limits[key] = lower_limit(self._summary(key), self.policy.rule)
        lowest, median = self._lower_limits[key], self._summary(key).quantile(0.5)
        # Whoever shakes as usual, or more, is not quieter: that would be no evidence of anything.
        if lowest is None or value >= median:
            return None
        quieter = f"quieter {name}"
        return Evidence(
            name=quieter,
            value=median / max(value, median / MOST_QUIETER),
            limit=max(median / lowest, self._state.allowed.get(_highest_key("anomaly", window.sensor, quieter), 0.0)),
            unit="times less",
            was=1.0,
            was_at=normal.first_at,
        )

    def _line(self, window: Window, name: str, height: float, bound: float) -> Evidence:
        history = self._history.get(f"{window.sensor}\n{name}")
        points = tuple(history.points) if history is not None else ()
        was_at, was = None, None
        # A few windows show nothing typical, and where the fault was there from the start the first ones neither.
        if history is not None and len(points) * history.every >= ROBUST_FROM and points[0][1] < bound:
            was_at, was = points[0]
        return Evidence(
            name=name, value=height, limit=bound, unit="times the floor", was=was, was_at=was_at, trend=points
        )

    # -- what is normal ----------------------------------------------------------------------------------------

    def _limit(self, key: str) -> float | None:
        """Learnt, or as good as can be had so far; None where nothing can be said yet."""
        normal = self._normal.get(key)
        allowed = self._state.allowed.get(_highest_key("anomaly", *key.split("\n")[::2]), 0.0)
        if (fleet := self._fleets(key)) is not None:
            return max(fleet, allowed)
        if normal is not None and normal.done:
            if key not in self._limits:
                self._limits[key] = limit(self._summary(key), self.policy.rule)
            return max(self._limits[key], allowed)
        sensor, band, name = key.split("\n")
        waiting = [one for one in self._candidates.get(sensor, ()) if one.band == band]
        summary = self._summary(key).seen(*(one.values[name] for one in waiting if name in one.values))
        if summary.count < ROBUST_FROM:
            return None
        return max(robust_bound(summary, self.policy.rule), allowed)

    def _fleets(self, key: str) -> float | None:
        """The fleet's limit where it holds: while this machine's own is not learnt."""
        normal = self._normal.get(key)
        if normal is not None and normal.done:
            return None
        _, band, name = key.split("\n")
        return self._fleet.get((band, name))

    def _learn_late(self, window: Window) -> tuple[tuple[float, ...], tuple[Drift, ...]]:
        """Windows after which the sensor's machine has run on steadily for long enough, and what drifted by them."""
        settled = window.to_at - self.machine.operating.ramp_seconds
        every = self._candidates.get(window.sensor, [])
        due = [one for one in every if one.to_at <= settled]
        self._candidates[window.sensor] = every[len(due) :]
        normal = [one for one in due if not one.void]
        drifts: list[Drift] = []
        for one in normal:
            if one.turn is not None:
                self._turning[window.sensor].learn(one.turn, one.shaft_hz)
            drifts += self._learn(window.sensor, one)
        return tuple(one.from_at for one in normal), tuple(drifts)

    def _void(self, sensor: str) -> None:
        self._candidates[sensor] = [
            msgspec.structs.replace(one, void=True, turn=None) for one in self._candidates.get(sensor, ())
        ]

    def _learn(self, sensor: str, one: _Candidate) -> Iterable[Drift]:
        drifts = []
        for model, named in one.doubted.items():
            proof = self._state.proofs.setdefault(self._key(sensor, one.band, model), _Proof())
            if proof.windows < self.policy.learning_windows:
                proof.windows, proof.named = proof.windows + 1, proof.named + named
        for name, value in one.values.items():
            key = self._key(sensor, one.band, name)
            normal = self._normal.setdefault(key, _Normal(first_at=one.from_at))
            if normal.done:
                drift = self._drift(sensor, one, name, key, value)
                drifts += [drift] if drift is not None else []
                continue
            summary = self._summaries[key] = self._summary(key).seen(value)
            long_enough = one.to_at - normal.first_at >= self.policy.learning_seconds
            normal.done = summary.count >= self.policy.learning_windows and long_enough
        return drifts

    def _drift(self, sensor: str, one: _Candidate, name: str, key: str, value: float) -> Drift | None:
        normal = self._normal[key]
        if key not in self._recent:
            self._recent[key] = Summary.from_bytes(normal.recent)
        recent = self._recent[key] = self._recent[key].seen(value)
        if recent.count < self.policy.drift_windows:
            return None
        then = self._summary(key)
        counts = counts_of(then, recent)
        index = stability(shares_of(counts), 0.5 / recent.count)
        self._recent[key] = Summary()
        normal.epochs = [*normal.epochs, counts][-DRIFT_EPOCHS:]
        drifted = index > DRIFTED + by_chance(as_many_as(then.count, recent.count))
        normal.drifting = normal.drifting + 1 if drifted else 0
        if normal.drifting != DRIFT_EPOCHS:
            return None
        return Drift(
            at=one.to_at,
            machine=self.machine.name,
            sensor=sensor,
            band=one.band,
            measure=name.partition(" of version ")[0],
            index=index,
            was=then.quantile(0.5),
            now=recent.quantile(0.5),
        )

    def _summary(self, key: str) -> Summary:
        if key not in self._summaries:
            normal = self._normal.get(key)
            if normal is None:
                return Summary()
            self._summaries[key] = Summary.from_bytes(normal.summary)
        return self._summaries[key]

    def _learning(self, sensor: str, band: str) -> Learning:
        key = self._key(sensor, band, "acceleration")
        normal = self._normal.get(key)
        return Learning(
            windows=self._summary(key).count,
            wanted=self.policy.learning_windows,
            done=normal is not None and normal.done,
        )

    def _note_highest(self, reading: Reading) -> None:
        """What a dismissal would say is normal: all that was at its limit since the alert's first reading."""
        kind, highest = reading.kind, self._state.highest
        if kind not in _LEARNS_FROM_DISMISSALS:
            return
        for one in reading.evidence:
            if one.level >= 1.0:
                key = _highest_key(kind, reading.sensor, one.name)
                highest[key] = max(one.value, highest.get(key, 0.0))

    def _remember(self, window: Window, name: str, value: float) -> None:
        history = self._history.setdefault(f"{window.sensor}\n{name}", _History())
        history.gathered, history.total = history.gathered + 1, history.total + value
        if history.gathered < history.every:
            return
        history.points.append((window.to_at, history.total / history.gathered))
        history.gathered, history.total = 0, 0.0
        if len(history.points) >= KEPT_POINTS:
            pairs = zip(history.points[::2], history.points[1::2], strict=False)
            history.points = [(last[0], (first[1] + last[1]) / 2) for first, last in pairs]
            history.every *= 2

    @staticmethod
    def _key(sensor: str, band: str, name: str) -> str:
        return f"{sensor}\n{band}\n{name}"

    @staticmethod
    def _measure_of(model: Model) -> str:
        return f"score of {model.name} of version {model.mark}"


_BY_MODELS: tuple[Kind, ...] = ("fault", "life")
_LEVELS = ("velocity", "acceleration")
MOST_QUIETER = 100.0
_LEARNS_FROM_DISMISSALS = ("anomaly", "defect")


def _highest_key(kind: Kind, sensor: str, name: str) -> str:
    return f"{kind}\n{sensor}\n{name}"


def _is_score(key: str) -> bool:
    return key.rpartition("\n")[2].startswith("score of ")


def _same_speed(before_hz: float | None, after_hz: float | None) -> bool:
    """As far as it is measured, to 3 %."""
    if before_hz is None or after_hz is None:
        return True
    return abs(before_hz - after_hz) <= 0.03 * max(before_hz, after_hz)
