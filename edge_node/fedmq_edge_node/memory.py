"""What a gateway keeps through a power cut: its model, residual, pending update and counter, in one SQLite file.

Owns the file and its one rule: a state is saved whole, in one transaction, before anything that depends on it is
sent. Refuses to know what a state means; `work` makes one state from another. Only what changed is written, for SD
cards wear out; every value carries a checksum, for they also forget, and SQLite would not notice.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
from fedmq_protocol.messages import Evaluation
from fedmq_protocol.task import Task
from numpy.typing import NDArray

__all__ = ["GatewayState", "Memory", "Pending", "StateError"]

SCHEMA_VERSION = 3


class StateError(ValueError):
    """The file cannot be used: damaged, not ours, or of another schema."""


class Pending(msgspec.Struct, frozen=True, kw_only=True):
    """The one update that has no verdict yet."""

    round_id: int
    base_mark: int
    """As its plan has it: what the update says of the model that it was trained from."""
    counter: int
    level: int
    """Of its plan: how the payload is coded."""
    loss: int
    """Mean over the windows while training, in whole 1/10,000."""
    payload: bytes
    sent: bytes = b""
    """What the payload decodes to, as whole numbers (`encode_integers`): its contexts are gone once the model has moved
    on. Empty where the payload is dense, and needs none."""
    evaluation: Evaluation | None = None


def _nothing() -> NDArray[np.float32]:
    return np.zeros(0, dtype=np.float32)


def _no_steps() -> NDArray[np.int32]:
    return np.zeros(0, dtype=np.int32)


@dataclass(frozen=True, kw_only=True, eq=False)
class GatewayState:
    """All that a gateway knows of the federation. Lineage 0 means: none joined yet."""

    lineage: int = 0
    task: Task | None = None
    scaler: bytes | None = None
    version: int = 0
    steps: NDArray[np.int32] = field(default_factory=_no_steps)
    """`(P,) int32`, the integer model of `version`."""
    residual: NDArray[np.float32] = field(default_factory=_nothing)
    """`(P,) float32`. While an update is pending: y, of which the payload is not subtracted yet."""
    pending: Pending | None = None
    counter: int = 0
    answered: int = 0
    """Newest round that was answered, in whichever way."""


class Memory:
    """One open file. Raises StateError where it cannot be used, naming it and what to do."""

    def __init__(self, path: Path, *, connect: Callable[[str], sqlite3.Connection] | None = None) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, isolation_level=None) if connect is None else connect(str(path))
        except (sqlite3.Error, OSError) as error:
            raise self._unusable(error) from error
        try:
            self._open()
        except StateError:
            self._db.close()
            raise
        except (sqlite3.Error, UnicodeDecodeError) as error:
            # The latter where SQLite quotes a damaged schema.
            self._db.close()
            raise self._unusable(error) from error
        self._saved = GatewayState()
        self._fresh = True

    def _open(self) -> None:
        """Look before anything is changed: the file may be somebody else's."""
        self._db.execute("PRAGMA busy_timeout = 5000")
        found = self._db.execute("PRAGMA user_version").fetchone()[0]
        if found == 0 and self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            raise StateError(f"{self._path} is a database of another program: move it away to start afresh")
        if found not in (0, SCHEMA_VERSION):
            raise StateError(
                f"{self._path} has schema {found}, this software reads {SCHEMA_VERSION}: "
                "run the software that wrote it, or move it away to start afresh"
            )
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        if found == 0:
            self._db.executescript(
                "BEGIN; CREATE TABLE state (key TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT;"
                f"PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
            )

    def load(self) -> GatewayState:
        """The last state saved; a fresh one where there is none."""
        try:
            rows = {key: _unseal(key, value) for key, value in self._db.execute("SELECT key, value FROM state")}
            if any(not key.startswith("extra-") for key in rows):
                self._fresh = False
                numbers = msgspec.msgpack.decode(rows["numbers"], type=dict[str, int])
                self._saved = GatewayState(
                    **numbers,
                    task=msgspec.msgpack.decode(rows["task"], type=Task | None),
                    scaler=rows["scaler"] or None,
                    pending=msgspec.msgpack.decode(rows["pending"], type=Pending | None),
                    steps=np.frombuffer(rows["steps"], dtype="<i4").astype(np.int32),
                    residual=np.frombuffer(rows["residual"], dtype="<f4").astype(np.float32),
                )
        except (sqlite3.Error, msgspec.MsgspecError, KeyError, TypeError, ValueError) as error:
            raise self._damaged(error) from error
        return self._saved

    def save(self, state: GatewayState) -> None:
        """Durable when it returns. Raises StateError where the disk does not take it; the old state stands then.

        An array or task that is the same object counts as unchanged: never alter one in place.
        """
        old = self._saved
        if state is old:
            return
        changed: dict[str, bytes] = {}
        counts = (state.lineage, state.version, state.counter, state.answered)
        if counts != (old.lineage, old.version, old.counter, old.answered):
            changed["numbers"] = msgspec.msgpack.encode(_numbers(state))
        if state.task is not old.task:
            changed["task"] = msgspec.msgpack.encode(state.task)
        if state.scaler != old.scaler:
            changed["scaler"] = state.scaler or b""
        if state.pending is not old.pending:
            changed["pending"] = msgspec.msgpack.encode(state.pending)
        if state.steps is not old.steps:
            changed["steps"] = state.steps.astype("<i4").tobytes()
        if state.residual is not old.residual:
            changed["residual"] = state.residual.astype("<f4").tobytes()
        if not changed:
            return
        if self._fresh:
            changed = _DEFAULTS | changed
        self._write(changed)
        self._saved = state
        self._fresh = False

    def get(self, key: str) -> bytes | None:
        """A small value beside the state, such as the data budget."""
        key = "extra-" + key
        try:
            row = self._db.execute("SELECT value FROM state WHERE key = ?", (key,)).fetchone()
            return None if row is None else _unseal(key, row[0])
        except (sqlite3.Error, TypeError, ValueError) as error:
            raise self._damaged(error) from error

    def put(self, key: str, value: bytes) -> None:
        """Durable when it returns."""
        self._write({"extra-" + key: value})

    def close(self) -> None:
        self._db.close()

    def _write(self, values: dict[str, bytes]) -> None:
        """All or nothing."""
        rows = [(key, _seal(key, value)) for key, value in values.items()]
        try:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany("INSERT OR REPLACE INTO state VALUES (?, ?)", rows)
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            # SQLite rolls back by itself where the disk is full, and a second time would be an error of its own.
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise StateError(f"cannot write the gateway's memory {self._path}: {error}; is the disk full?") from error

    def _unusable(self, error: Exception) -> StateError:
        return StateError(f"cannot use the gateway's memory {self._path}: {error}; move it away to start afresh")

    def _damaged(self, error: Exception) -> StateError:
        return StateError(f"the gateway's memory {self._path} is damaged ({error}): move it away to start afresh")


def _seal(key: str, value: bytes) -> bytes:
    """The value behind its CRC-32, which covers the key too."""
    return zlib.crc32(key.encode() + value).to_bytes(4, "little") + value


def _unseal(key: object, sealed: object) -> bytes:
    """Raises ValueError where checksum and value do not match; in a damaged file they may be of any type."""
    if not isinstance(key, str) or not isinstance(sealed, bytes):
        raise ValueError(f"a {type(sealed).__name__} under {key!r}")
    if _seal(key, sealed[4:]) != sealed:
        raise ValueError(f"the checksum of {key!r} does not match")
    return sealed[4:]


def _numbers(state: GatewayState) -> dict[str, int]:
    return {
        "lineage": state.lineage,
        "version": state.version,
        "counter": state.counter,
        "answered": state.answered,
    }


_DEFAULTS = {
    "numbers": msgspec.msgpack.encode(_numbers(GatewayState())),
    "task": msgspec.msgpack.encode(None),
    "scaler": b"",
    "pending": msgspec.msgpack.encode(None),
    "steps": b"",
    "residual": b"",
}
