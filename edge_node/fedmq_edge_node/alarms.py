"""From readings to alerts: when is one raised, does it change, is it over.

Owns hysteresis, the minimum duration, and that there is one alert of a machine and kind at a time. Refuses to know how
a level comes about, who is told, and what people say of an alert: `watching` and `alertbook` do. Pure: all times are
those of the readings. Rules kept here:

- Level 1.0 is the limit. An alert is raised when so many readings of a sensor in a row are at it or above, and they
  span so many seconds: one bad window pages nobody.
- It is over when so many in a row of *each* sensor are below `clear_level`; between that and the limit nothing
  changes. A reading that does not come (a machine that stands) neither raises nor clears.
- It changes when it becomes severe, or when another fault is named by most of the latest readings. Else it goes on
  quietly; its worst level and evidence are kept.
"""

from __future__ import annotations

from collections import Counter

import msgspec
from fedmq_protocol.condition import ALERT_KINDS, AlertKind, AlertSeverity

__all__ = [
    "KINDS",
    "Alarms",
    "Changed",
    "Cleared",
    "Evidence",
    "Kind",
    "Outcome",
    "Policy",
    "Raised",
    "Reading",
    "Severity",
]

Kind = AlertKind
KINDS = ALERT_KINDS
Severity = AlertSeverity

KEPT_EVIDENCE = 6
KEPT_LABELS = 5
"""Readings of which most must name a fault before an alert takes its name."""


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was measured, and what it was before."""

    name: str
    value: float
    limit: float
    unit: str = ""
    was: float | None = None
    """Typical of the start of the machine's baseline, or of what is known of it; None where that is nothing yet."""
    was_at: float | None = None
    trend: tuple[tuple[float, float], ...] = ()
    """Times and values since then, few and evenly spread."""
    by: str = ""
    """Whose limit it is: "fleet" where the machine's own is still being learnt."""

    @property
    def level(self) -> float:
        return self.value / self.limit if self.limit else 0.0


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """What one window says of one kind."""

    at: float
    machine: str
    kind: Kind
    level: float
    """1.0 is the limit."""
    evidence: tuple[Evidence, ...]
    from_at: float
    to_at: float
    label: str | None = None
    """The fault that it names, where it does."""
    sensor: str = ""


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """How much it takes."""

    raise_windows: int = 2
    raise_seconds: float = 0.0
    clear_level: float = 0.8
    clear_windows: int = 5
    severe_level: float = 1.55
    """About where ISO 20816-3 has zone D, with zone C at 1.0."""


class Raised(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A new alert. `from_at` is where the first of the readings that led to it began."""

    machine: str
    kind: Kind
    at: float
    from_at: float
    level: float
    severity: Severity
    evidence: tuple[Evidence, ...]
    label: str | None = None
    sensor: str = ""


class Changed(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The alert of this machine and kind is now severe, or names another fault."""

    machine: str
    kind: Kind
    at: float
    from_at: float
    level: float
    severity: Severity
    evidence: tuple[Evidence, ...]
    label: str | None = None
    sensor: str = ""


class Cleared(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """It is over. `to_at` is the end of the last reading that was at the limit or above."""

    machine: str
    kind: Kind
    at: float
    to_at: float
    level: float
    """The highest it came to."""


Outcome = Raised | Changed | Cleared


class _Track(msgspec.Struct, kw_only=True):
    """One sensor's readings of one kind."""

    above: int = 0
    severe: int = 0
    began_at: float = 0.0
    below: int = 0


class _Open(msgspec.Struct, kw_only=True):
    """The alert of one kind."""

    severity: Severity
    label: str | None
    level: float
    last_above_at: float
    evidence: tuple[Evidence, ...]


class _State(msgspec.Struct, kw_only=True):
    tracks: dict[str, _Track] = {}
    """By kind and sensor, a line break between."""
    open: dict[str, _Open] = {}
    """By kind."""
    labels: dict[str, list[str]] = {}


class Alarms:
    """Those of one machine."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._state = _State()

    def step(self, reading: Reading) -> Outcome | None:
        policy, kind = self._policy, reading.kind
        track = self._state.tracks.setdefault(f"{kind}\n{reading.sensor}", _Track())
        names = self._state.labels.setdefault(kind, [])
        if reading.level >= 1.0:
            if not track.above:
                track.began_at = reading.from_at
            track.above, track.below = track.above + 1, 0
            track.severe = track.severe + 1 if reading.level >= policy.severe_level else 0
            if reading.label is not None:
                names[:] = [*names, reading.label][-KEPT_LABELS:]
        else:
            track.above = track.severe = 0
            track.below = track.below + 1 if reading.level < policy.clear_level else 0
        alert = self._state.open.get(kind)
        if alert is None:
            if track.above < policy.raise_windows or reading.to_at - track.began_at < policy.raise_seconds:
                if reading.level < 1.0:
                    names.clear()
                return None
            return self._raise(reading, track, _most(names))
        if reading.level >= 1.0:
            return self._go_on(alert, reading, _most(names))
        if self._is_over(kind):
            del self._state.open[kind]
            names.clear()
            return Cleared(
                machine=reading.machine, kind=kind, at=reading.to_at, to_at=alert.last_above_at, level=alert.level
            )
        return None

    def _raise(self, reading: Reading, track: _Track, label: str | None) -> Raised:
        severity: Severity = "alarm" if track.severe >= self._policy.raise_windows else "warning"
        evidence = reading.evidence[:KEPT_EVIDENCE]
        self._state.open[reading.kind] = _Open(
            severity=severity, label=label, level=reading.level, last_above_at=reading.to_at, evidence=evidence
        )
        return Raised(
            machine=reading.machine,
            kind=reading.kind,
            at=reading.to_at,
            from_at=track.began_at,
            level=reading.level,
            severity=severity,
            evidence=evidence,
            label=label,
            sensor=reading.sensor,
        )

    def _go_on(self, alert: _Open, reading: Reading, label: str | None) -> Changed | None:
        alert.last_above_at = max(alert.last_above_at, reading.to_at)
        if reading.level > alert.level:
            alert.level, alert.evidence = reading.level, reading.evidence[:KEPT_EVIDENCE]
        track = self._state.tracks[f"{reading.kind}\n{reading.sensor}"]
        severe = alert.severity == "warning" and track.severe >= self._policy.raise_windows
        renamed = label is not None and label != alert.label
        if not severe and not renamed:
            return None
        alert.severity = "alarm" if severe else alert.severity
        alert.label = label if renamed else alert.label
        return Changed(
            machine=reading.machine,
            kind=reading.kind,
            at=reading.to_at,
            from_at=track.began_at or reading.from_at,
            level=reading.level,
            severity=alert.severity,
            evidence=reading.evidence[:KEPT_EVIDENCE],
            label=alert.label,
            sensor=reading.sensor,
        )

    def _is_over(self, kind: Kind) -> bool:
        mine = [track for key, track in self._state.tracks.items() if key.partition("\n")[0] == kind]
        return all(track.below >= self._policy.clear_windows for track in mine)

    def suspect(self) -> bool:
        """Whether anything is raised, or on its way to be: such windows are not taken as normal."""
        return bool(self._state.open) or any(track.above for track in self._state.tracks.values())

    def is_open(self, kind: Kind) -> bool:
        return kind in self._state.open

    def forget(self, kind: Kind) -> None:
        """Nobody tells of this any more: what was on its way to an alert is none. One that is raised stays."""
        if kind not in self._state.open:
            tracks = self._state.tracks
            self._state.tracks = {key: one for key, one in tracks.items() if key.partition("\n")[0] != kind}
            self._state.labels.pop(kind, None)

    def reset(self, at: float, machine: str) -> list[Cleared]:
        """Begin anew, as after a repair; what was open is over."""
        over = [
            Cleared(machine=machine, kind=kind, at=at, to_at=min(at, one.last_above_at), level=one.level)
            for kind in KINDS
            if (one := self._state.open.get(kind)) is not None
        ]
        self._state = _State()
        return over

    def dump(self) -> bytes:
        return msgspec.json.encode(self._state)

    def load(self, data: bytes) -> None:
        """Raises msgspec.MsgspecError."""
        self._state = msgspec.json.decode(data, type=_State)


def _most(names: list[str]) -> str | None:
    """What most of them say; of equals the latest."""
    if not names:
        return None
    counts = Counter(names)
    most = max(counts.values())
    return next(name for name in reversed(names) if counts[name] == most)
