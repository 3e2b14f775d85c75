"""What a gateway keeps through a power cut: of each task its model, residual, pending update and counter, the model in
service, in one SQLite file.

Owns the file and its one rule: a task's state is saved whole, in one transaction, before anything that depends on it is
sent. Refuses to know what a state means; `work` makes one state from another. Only what changed is written, for SD
cards wear out; every value carries a checksum, for they also forget, and SQLite would not notice. A file of the schema
before is brought to this one as it is opened, in one transaction.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path

import msgspec
import numpy as np
from fedmq_protocol.messages import Evaluation, PersonalPolicy, PersonalTrial, Trial
from fedmq_protocol.state import PlaceError, make_place
from fedmq_protocol.task import Task
from numpy.typing import NDArray

__all__ = ["GatewayState", "InService", "Memory", "Pending", "Personal", "StateError", "Tried"]

SCHEMA_VERSION = 4
MIGRATES_FROM = 3
"""The oldest schema that is brought to this one: of one task, without a model in service."""


class StateError(ValueError):
    """The file cannot be used: damaged, not ours, of a newer schema, or on a disk that takes nothing."""


class Pending(msgspec.Struct, frozen=True, kw_only=True):
    """The one update of a task that has no verdict yet."""

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
    """The payload as it is coded without contexts, for those are gone once the model has moved on. Empty where the
    payload is dense, and needs none."""
    evaluation: Evaluation | None = None
    cpu: int | None = None
    """CPU time of the process that went into it, in 1/100 s."""


def _nothing() -> NDArray[np.float32]:
    return np.zeros(0, dtype=np.float32)


def _no_steps() -> NDArray[np.int32]:
    return np.zeros(0, dtype=np.int32)


class Tried(msgspec.Struct, frozen=True, kw_only=True):
    """What came of the last released version that was held against the one in service."""

    trial: Trial
    held: bytes
    """`work.held_mark` of the windows that decided it: with others the answer may be another."""


@dataclass(frozen=True, kw_only=True, eq=False)
class InService:
    """The model that this gateway infers with: whole by itself, whatever the task has become since."""

    task: Task
    lineage: int
    version: int
    digest: bytes
    """sha256 over `steps`, 32 bytes."""
    steps: NDArray[np.int32]
    """`(P,) int32`."""
    scaler: bytes | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Personal:
    """What came of fitting the model in service to this gateway's own windows. It belongs to that model alone."""

    base: bytes
    """`InService.digest` of the version that it was made of."""
    policy: PersonalPolicy
    windows: bytes
    """`personal.windows_mark` of the windows that it was fitted to and measured on."""
    found: PersonalTrial
    seen: tuple[int, ...]
    """Classes that it was fitted to, by position; empty for a model that does not classify."""
    values: NDArray[np.float32]
    """`(n,) float32`, the last n parameters in place of the shared ones; none where it does not serve."""


@dataclass(frozen=True, kw_only=True, eq=False)
class GatewayState:
    """All that a gateway knows of one task. Lineage 0 means: none joined yet."""

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
    in_service: InService | None = None
    tried: Tried | None = None
    personal: Personal | None = None
    start: NDArray[np.int32] | None = None
    """`(P,) int32`, version 0, where the task's bundle holds it; it is not written beside the bundle. None: drawn from
    the task's seed."""


class _Service(msgspec.Struct, frozen=True, kw_only=True):
    """`InService` but for its steps, as it lies in the file."""

    task: Task
    lineage: int
    version: int
    digest: bytes
    scaler: bytes | None


class _Personal(msgspec.Struct, frozen=True, kw_only=True):
    """`Personal` but for its values, as it lies in the file."""

    base: bytes
    policy: PersonalPolicy
    windows: bytes
    found: PersonalTrial
    seen: tuple[int, ...]


def _connect(path: str) -> sqlite3.Connection:
    make_place(Path(path))
    return sqlite3.connect(path)


class Memory:
    """One open file. Raises StateError where it cannot be used, naming it and what to do.

    `connect` opens the database that the path names; a simulation gives one that lies in memory.
    """

    def __init__(self, path: Path, *, connect: Callable[[str], sqlite3.Connection] = _connect) -> None:
        self._path = path
        try:
            self._db = connect(str(path))
        except PlaceError as error:
            raise StateError(str(error)) from error
        except (sqlite3.Error, OSError) as error:
            raise self._unusable(error) from error
        self._db.isolation_level = None
        try:
            self._open()
        except StateError:
            self._db.close()
            raise
        except (sqlite3.Error, UnicodeDecodeError) as error:
            # The latter where SQLite quotes a damaged schema.
            self._db.close()
            raise self._unusable(error) from error
        self._saved: dict[str, GatewayState] = {}

    def _open(self) -> None:
        """Look before anything is changed: the file may be somebody else's."""
        self._db.execute("PRAGMA busy_timeout = 5000")
        found = self._db.execute("PRAGMA user_version").fetchone()[0]
        if found == 0 and self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            raise StateError(f"{self._path} is a database of another program: move it away to start afresh")
        if found not in (0, MIGRATES_FROM, SCHEMA_VERSION):
            age = "newer" if found > SCHEMA_VERSION else "older"
            raise StateError(
                f"{self._path} has schema {found}, {age} than this software, which reads {MIGRATES_FROM} and "
                f"{SCHEMA_VERSION}: run the software that wrote it, or move it away to start afresh"
            )
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        if found != SCHEMA_VERSION:
            self._transact(self._bring_up_to_date)

    def _bring_up_to_date(self) -> None:
        # Looked at again: another process may have done it before this one had its turn.
        found = self._db.execute("PRAGMA user_version").fetchone()[0]
        if found == 0:
            self._create()
        elif found == MIGRATES_FROM:
            self._migrate()

    def _create(self) -> None:
        self._db.execute(
            "CREATE TABLE state (task TEXT NOT NULL, key TEXT NOT NULL, value BLOB NOT NULL, PRIMARY KEY (task, key)) "
            "STRICT"
        )
        self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _migrate(self) -> None:
        """From schema 3: one task's values by key. They move under its name; beside them stand the new ones, empty."""
        try:
            rows = {key: _unseal(key, value) for key, value in self._db.execute("SELECT key, value FROM state")}
            beside = {key: value for key, value in rows.items() if key.startswith(_BESIDE)}
            values = _FRESH | {key: value for key, value in rows.items() if key not in beside}
            missing = _FRESH.keys() - _ADDED - rows.keys()
            if missing and len(rows) > len(beside):
                raise ValueError(f"{', '.join(sorted(missing))} is missing")
            state = _state_of(values)
        except (msgspec.MsgspecError, KeyError, TypeError, ValueError) as error:
            raise self._damaged(error) from error
        self._db.execute("DROP TABLE state")
        self._create()
        self._write(_NOBODY, {key.removeprefix(_BESIDE): value for key, value in beside.items()})
        if state.task is not None:
            self._write(state.task.name, values)

    def load(self) -> dict[str, GatewayState]:
        """The last state saved of each task, by its name; none in a new file."""
        tasks: dict[str, dict[str, bytes]] = {}
        try:
            for task, key, value in self._db.execute("SELECT task, key, value FROM state"):
                tasks.setdefault(task, {})[key] = _unseal(_place(task, key), value)
            tasks.pop(_NOBODY, None)
            self._saved = {name: _state_of(values) for name, values in tasks.items()}
            for name, state in self._saved.items():
                if state.task is None or state.task.name != name:
                    raise ValueError(f"what stands under task {name!r} is not that task's")
        except (sqlite3.Error, msgspec.MsgspecError, KeyError, TypeError, ValueError) as error:
            raise self._damaged(error) from error
        return dict(self._saved)

    def saved(self, task: str) -> GatewayState:
        """What a restart would find of a task; a fresh state where there is nothing. Only after `load`."""
        return self._saved.get(task, GatewayState())

    def save(self, state: GatewayState) -> None:
        """Durable when it returns. Raises StateError where the disk does not take it; the old state stands then.

        An array, task or other part that is the same object counts as unchanged: never alter one in place.
        """
        if state.task is None:
            raise ValueError("expected the state of a task, got one without")
        name = state.task.name
        old = self._saved.get(name)
        if state is old:
            return
        keys: Iterable[str] = _FRESH
        if old is not None:
            changed = [
                key for key, new, before in zip(_PARTS, _parts(state), _parts(old), strict=True) if new is not before
            ]
            keys = changed if _numbers_of(state) == _numbers_of(old) else ["numbers", *changed]
        values = {key: _CODED[key](state) for key in keys}
        if not values:
            return
        self._transact(lambda: self._write(name, values), one_statement=True)
        self._saved[name] = state

    def forget(self, task: str) -> None:
        """Leave nothing of a task. Durable when it returns."""
        self._transact(lambda: self._db.execute("DELETE FROM state WHERE task = ?", (task,)))
        self._saved.pop(task, None)

    def get(self, key: str) -> bytes | None:
        """A small value beside the tasks, such as the data budget."""
        try:
            row = self._db.execute("SELECT value FROM state WHERE task = ? AND key = ?", (_NOBODY, key)).fetchone()
            return None if row is None else _unseal(_place(_NOBODY, key), row[0])
        except (sqlite3.Error, TypeError, ValueError) as error:
            raise self._damaged(error) from error

    def put(self, key: str, value: bytes) -> None:
        """Durable when it returns."""
        self._transact(lambda: self._write(_NOBODY, {key: value}), one_statement=True)

    def drop(self, key: str) -> None:
        """Forget such a value. Durable when it returns."""
        self._transact(
            lambda: self._db.execute("DELETE FROM state WHERE task = ? AND key = ?", (_NOBODY, key)), one_statement=True
        )

    def close(self) -> None:
        self._db.close()

    def _write(self, task: str, values: dict[str, bytes]) -> None:
        """In one statement, which is a transaction by itself where none is open."""
        if not values:
            return
        row: list[str | bytes] = []
        for key, value in values.items():
            row += (task, key, _seal(_place(task, key), value))
        self._db.execute(f"INSERT OR REPLACE INTO state VALUES {', '.join(['(?, ?, ?)'] * len(values))}", row)  # noqa: S608

    def _transact(self, work: Callable[[], object], *, one_statement: bool = False) -> None:
        """All or nothing."""
        try:
            if one_statement:
                work()
                return
            self._db.execute("BEGIN IMMEDIATE")
            work()
            self._db.execute("COMMIT")
        except StateError:
            self._db.execute("ROLLBACK")
            raise
        except sqlite3.Error as error:
            # SQLite rolls back by itself where the disk is full, and a second time would be an error of its own.
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            if _code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise self._damaged(error) from error
            raise StateError(
                f"cannot write the gateway's memory {self._path}: {error}; "
                "is the disk full, or may this user not write there?"
            ) from error

    def _unusable(self, error: Exception) -> StateError:
        why = ""
        if isinstance(error, OSError) or _code(error) in _NO_PLACE:
            why = "see that its folder can be written and has room, or "
        return StateError(f"cannot use the gateway's memory {self._path}: {error}; {why}move it away to start afresh")

    def _damaged(self, error: Exception) -> StateError:
        return StateError(f"the gateway's memory {self._path} is damaged ({error}): move it away to start afresh")


_NOBODY = ""
"""Stands as the task of what belongs to none."""

_BESIDE = "extra-"
"""How such values began in schema 3."""


_NO_PLACE = {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_FULL}


def _code(error: Exception) -> int:
    """SQLite's primary result code (https://sqlite.org/rescode.html), 0 for what does not come from it."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _place(task: str, key: str) -> str:
    return f"{task}\0{key}"


def _seal(place: str, value: bytes) -> bytes:
    """The value behind its CRC-32, which covers its place too."""
    return zlib.crc32(place.encode() + value).to_bytes(4, "little") + value


def _unseal(place: object, sealed: object) -> bytes:
    """Raises ValueError where checksum and value do not match; in a damaged file they may be of any type."""
    if not isinstance(place, str) or not isinstance(sealed, bytes):
        raise ValueError(f"a {type(sealed).__name__} under {place!r}")
    if _seal(place, sealed[4:]) != sealed:
        raise ValueError(f"the checksum of {place!r} does not match")
    return sealed[4:]


_NUMBERS = ("lineage", "version", "counter", "answered")
_numbers_of = attrgetter(*_NUMBERS)


def _numbers(state: GatewayState) -> dict[str, int]:
    return dict(zip(_NUMBERS, _numbers_of(state), strict=True))


def _service(state: GatewayState) -> _Service | None:
    model = state.in_service
    if model is None:
        return None
    return _Service(
        task=model.task, lineage=model.lineage, version=model.version, digest=model.digest, scaler=model.scaler
    )


def _personal(state: GatewayState) -> _Personal | None:
    own = state.personal
    if own is None:
        return None
    return _Personal(base=own.base, policy=own.policy, windows=own.windows, found=own.found, seen=own.seen)


_PARTS = (
    *("task", "scaler", "pending", "steps", "residual", "service", "service-steps", "tried"),
    *("personal", "personal-values"),
)
_parts = attrgetter(
    *("task", "scaler", "pending", "steps", "residual", "in_service", "in_service", "tried", "personal", "personal")
)
"""What each key but the numbers holds; the same object is not written again."""

_CODED: dict[str, Callable[[GatewayState], bytes]] = {
    "numbers": lambda state: msgspec.msgpack.encode(_numbers(state)),
    "task": lambda state: msgspec.msgpack.encode(state.task),
    "scaler": lambda state: state.scaler or b"",
    "pending": lambda state: msgspec.msgpack.encode(state.pending),
    "steps": lambda state: state.steps.astype("<i4").tobytes(),
    "residual": lambda state: state.residual.astype("<f4").tobytes(),
    "service": lambda state: msgspec.msgpack.encode(_service(state)),
    "service-steps": lambda state: b"" if state.in_service is None else state.in_service.steps.astype("<i4").tobytes(),
    "tried": lambda state: msgspec.msgpack.encode(state.tried),
    "personal": lambda state: msgspec.msgpack.encode(_personal(state)),
    "personal-values": lambda state: b"" if state.personal is None else state.personal.values.astype("<f4").tobytes(),
}

_FRESH = {key: coded(GatewayState()) for key, coded in _CODED.items()}

_LATER = {"personal", "personal-values"}
"""Keys that came to schema 4 afterwards. A file without them is whole, and software that does not know them passes them
over, so that the schema keeps its number."""

_ADDED = {"service", "service-steps", "tried"} | _LATER
"""Keys that schema 3 did not have."""


def _state_of(values: dict[str, bytes]) -> GatewayState:
    """From its coded parts. Raises KeyError, ValueError or MsgspecError where they are not whole."""
    if not _LATER & values.keys():
        values = {key: _FRESH[key] for key in _LATER} | values
    service = msgspec.msgpack.decode(values["service"], type=_Service | None)
    own = msgspec.msgpack.decode(values["personal"], type=_Personal | None)
    return GatewayState(
        **msgspec.msgpack.decode(values["numbers"], type=dict[str, int]),
        start=None,
        task=msgspec.msgpack.decode(values["task"], type=Task | None),
        scaler=values["scaler"] or None,
        pending=msgspec.msgpack.decode(values["pending"], type=Pending | None),
        steps=np.frombuffer(values["steps"], dtype="<i4").astype(np.int32),
        residual=np.frombuffer(values["residual"], dtype="<f4").astype(np.float32),
        in_service=None
        if service is None
        else InService(
            task=service.task,
            lineage=service.lineage,
            version=service.version,
            digest=service.digest,
            scaler=service.scaler,
            steps=np.frombuffer(values["service-steps"], dtype="<i4").astype(np.int32),
        ),
        tried=msgspec.msgpack.decode(values["tried"], type=Tried | None),
        personal=None
        if own is None
        else Personal(
            base=own.base,
            policy=own.policy,
            windows=own.windows,
            found=own.found,
            seen=own.seen,
            values=np.frombuffer(values["personal-values"], dtype="<f4").astype(np.float32),
        ),
    )
