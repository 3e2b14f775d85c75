"""What a gateway can tell of itself while it works: plain values, for whoever shows them.

Owns the counts of this process, which only the gateway's loop changes, and the picture of one moment that is made of
them. Reading takes no lock: each value is replaced whole, and a picture whose parts are a moment apart is good enough
for a graph.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from fedmq_protocol.reasons import Reason

__all__ = ["Figures", "Tally", "TaskFigures"]


@dataclass(kw_only=True)
class Tally:
    """Since the process started."""

    updates: int = 0
    """Rounds that were answered with an update; sent again it counts once."""
    statistics: int = 0
    declines: Counter[Reason] = field(default_factory=Counter)
    trainings: int = 0
    training_seconds: float = 0.0
    training_cpu_seconds: float = 0.0
    """Of the whole process while it trained."""
    _counted: int = -1

    def count_update(self, round_id: int) -> None:
        if round_id > self._counted:
            self._counted = round_id
            self.updates += 1

    def count_training(self, seconds: float, cpu_seconds: float) -> None:
        self.trainings += 1
        self.training_seconds += max(0.0, seconds)
        self.training_cpu_seconds += max(0.0, cpu_seconds)


@dataclass(frozen=True, kw_only=True)
class TaskFigures:
    """Windows are None until they are cut."""

    name: str
    version: int
    in_service: int | None
    """Version of the model that scores; None before the first release."""
    train_windows: int | None
    held_windows: int | None
    windows_by_class: dict[str, int]
    """Of a task that tells classes apart."""
    min_windows: int


@dataclass(frozen=True, kw_only=True)
class Figures:
    tally: Tally
    connected: bool
    welcomed: bool
    stale: bool
    heard_seconds: float
    """Since the coordinator was last heard, with news."""
    bytes_sent: int
    bytes_received: int
    bytes_today: int
    bytes_month: int
    silent: bool
    """Whether a sensor that should be heard was not, when a round last asked."""
    tasks: tuple[TaskFigures, ...]
