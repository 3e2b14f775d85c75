"""When the next round opens, and when the run rests. Pure: history and time come in, a decision goes out.

A run rests when its target is reached, when it has made its rounds, or when the metric has stopped getting better; it
goes on when enough new data has come in since.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, time, timedelta

__all__ = ["Pace", "may_resume", "next_opening", "reason_to_rest", "rounds_tonight"]


@dataclass(frozen=True, kw_only=True)
class Pace:
    """The schedule's settings; None or 0 switches a rule off."""

    interval_seconds: float = 0.0
    nightly: time | None = None
    rounds_per_night: int = 1
    retry_most_seconds: float = 300.0
    max_rounds: int = 0
    target_metric: float | None = None
    plateau_rounds: int = 0
    plateau_delta: float = 0.0
    new_windows_min: int = 0
    resume_windows: int = 0


def next_opening(
    pace: Pace, *, last_opened: float, last_closed: float, failures: int = 0, tonight: int | None = None
) -> float:
    """Unix time from which the round after one may open: at once, an interval after its opening, or at night.

    `tonight` counts the rounds of the night's series so far; None takes it as complete. After rounds below quorum the
    pause doubles with each, so that a fleet that cannot answer is not asked all day.
    """
    if pace.nightly is not None and (tonight is None or tonight >= pace.rounds_per_night):
        # Without a zone, so that each date's own offset counts: the clocks may change between two nights.
        due = datetime.combine(datetime.fromtimestamp(last_opened).date(), pace.nightly)
        if due.timestamp() <= last_opened:
            due += timedelta(days=1)
        return due.timestamp()
    pause = min(2.0 ** min(failures - 1, 30), pace.retry_most_seconds) if failures else 0.0
    return max(last_closed + pause, last_opened + pace.interval_seconds)


def rounds_tonight(pace: Pace, openings: Sequence[float]) -> int:
    """How many of the rounds, opened at these times in order, belong to the series of the last one's night."""
    if pace.nightly is None or not openings:
        return 0
    began = datetime.combine(datetime.fromtimestamp(openings[-1]).date(), pace.nightly)
    if began.timestamp() > openings[-1]:
        began -= timedelta(days=1)
    return sum(opened >= began.timestamp() for opened in openings)


def reason_to_rest(pace: Pace, *, rounds: int, metrics: Sequence[float], direction: int = 1) -> str | None:
    """Why no further round opens, or None. `metrics` are those of the applied rounds since the last rest; `direction`
    is the task's: -1 where less is better."""
    if pace.max_rounds and rounds >= pace.max_rounds:
        return f"{rounds} rounds made"
    target = pace.target_metric
    metrics = [direction * metric for metric in metrics]
    # One by one: what min() makes of NaN depends on where it stands.
    if target is not None and len(metrics) >= 2 and all(metric >= direction * target for metric in metrics[-2:]):
        return f"target {target:g} reached twice in a row"
    if pace.plateau_rounds and len(metrics) > pace.plateau_rounds:
        before = max(metrics[: -pace.plateau_rounds])
        lately = max(metrics[-pace.plateau_rounds :])
        if lately <= before or lately < before + pace.plateau_delta:
            return f"no gain of {pace.plateau_delta:g} in {pace.plateau_rounds} rounds"
    return None


def may_resume(pace: Pace, *, windows_at_rest: int, windows_now: int) -> bool:
    """Enough new training windows have come in across the fleet since the run came to rest."""
    return bool(pace.resume_windows) and windows_now - windows_at_rest >= pace.resume_windows
