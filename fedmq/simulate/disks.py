"""Disks: SQLite files and model files that live as long as the simulation, and processes that do not.

Owns what a crash leaves behind: what was committed stays, what was not is rolled back, a model file that was written
stays whatever the ledger says. Refuses to know what is stored. Every durable step may find the disk full; before
and after it the services pass their own points, where the simulation may end the process.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
from fedmq_coordinator.ledger import LedgerError
from fedmq_coordinator.models import ModelError, ModelStore
from fedmq_edge_node.memory import StateError
from fedmq_protocol.task import model_digest
from numpy.typing import NDArray

__all__ = ["Crash", "Disk", "MemoryModels"]


class Crash(BaseException):
    """The process ends here, at once. No `except Exception` catches it, as none catches kill -9."""


_execute = sqlite3.Connection.execute

_WRITES = {"INSERT", "UPDATE", "DELETE"}
"""Statements that commit by themselves where no transaction is open."""


class _Connection(sqlite3.Connection):
    """A connection whose commits take time, and room. Closing it closes the process's view of it, not the file."""

    disk: Disk

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        if sql != "COMMIT" and (sql[:6] not in _WRITES or self.in_transaction):
            return _execute(self, sql, parameters)
        disk = self.disk
        if disk.full:
            if self.in_transaction:
                _execute(self, "ROLLBACK")
            raise sqlite3.OperationalError("database or disk is full")
        done = _execute(self, sql, parameters)
        disk.committed()
        return done

    def close(self) -> None:
        if self.in_transaction:
            _execute(self, "ROLLBACK")


class Disk:
    """One machine's disk. `point` is told of model files, before and after each; `committed` of each commit."""

    def __init__(self, *, point: Callable[[str], None], committed: Callable[[], None]) -> None:
        self.point = point
        self.committed = committed
        self.full = False
        self.models: dict[tuple[int, int], NDArray[np.int32]] = {}
        self.connection: _Connection | None = None

    def connect(self, path: str) -> sqlite3.Connection:
        """The one file of this disk, whatever its name."""
        if self.connection is None:
            self.connection = sqlite3.connect(
                ":memory:", isolation_level=None, check_same_thread=False, factory=_Connection
            )
            self.connection.disk = self
        return self.connection

    def explains(self, error: Exception) -> bool:
        """Whether a process may end with this error because the disk is full."""
        return self.full and isinstance(error, LedgerError | ModelError | StateError)

    def crash(self) -> None:
        """What was not committed is gone."""
        if self.connection is not None and self.connection.in_transaction:
            _execute(self.connection, "ROLLBACK")

    def rows(self, sql: str, values: Sequence[object] = ()) -> list[Any]:
        """For who looks on from outside."""
        return [] if self.connection is None else self.connection.execute(sql, values).fetchall()

    @property
    def changes(self) -> int:
        """Rows that were changed so far: the same number, the same content."""
        return 0 if self.connection is None else self.connection.total_changes

    def destroy(self) -> None:
        if self.connection is not None:
            sqlite3.Connection.close(self.connection)
            self.connection = None


class MemoryModels(ModelStore):
    """A folder of versions on such a disk."""

    def __init__(self, disk: Disk, *, keep: int = 5) -> None:
        self._disk = disk
        self._keep = keep
        self.crash_point = disk.point

    def path(self, lineage: int, number: int) -> Path:
        return Path(f"model-{lineage}-{number}.i32")

    def save(self, lineage: int, number: int, steps: NDArray[np.int32]) -> None:
        self._disk.point("before model file")
        if self._disk.full:
            raise ModelError("no space left on device")
        self._disk.models[lineage, number] = steps.copy()
        self._disk.point("after model file")

    def has(self, lineage: int, number: int) -> bool:
        return (lineage, number) in self._disk.models

    def load(self, lineage: int, number: int, digest: bytes) -> NDArray[np.int32]:
        steps = self._disk.models.get((lineage, number))
        if steps is None or model_digest(steps) != digest:
            raise ModelError(f"version {number} of lineage {lineage} cannot be read: restore it from a backup")
        return steps

    def prune(self, lineage: int, newest: int, *, pinned: Set[int] = frozenset()) -> None:
        models = self._disk.models
        kept = {*range(newest - self._keep + 1, newest + 1), *pinned}
        for key in [key for key in models if key[0] == lineage and key[1] not in kept]:
            del models[key]
