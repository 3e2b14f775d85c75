"""The coordinator's memory: one SQLite file with every round, answer, verdict and byte count of every task.

Owns the file and its transactions; its tables are in `schema`. `Ledger` is the open file, and what belongs to the
fleet: gateways, their bytes, refused junk, orders. `Book` is one task's part of the same file and of the same
transaction. Nothing is published before `commit` returns: the service collects what it wants to say, commits, and only
then speaks, so one fsync serves all answers that came together (group commit). A gateway's payload is kept until the
version that contains it is committed, and erased in that same transaction unless the settings keep it.

Refuses to know what an answer is worth (`rounds`), how the report looks (`report`, which reads this file alone) and
what of old rounds may be summed up (`retention`). Times are unix seconds by the coordinator's clock; sizes are bytes.

A file is looked through as it is opened (`PRAGMA quick_check`), up to CHECKED_BYTES: that costs about a second for
each 400 MB, and a coordinator shall be back in its round within seconds. In a larger one damage is found when a
damaged page is read. Either way it is a LedgerError that names the file and what to do.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from fedmq_protocol.state import DATABASE, PlaceError, check_place, make_place

from fedmq_coordinator.machines import Alert, Drift, FleetSpread, Limit, Machine, Proposal, Spread, Summed, Watch
from fedmq_coordinator.schema import MIGRATIONS, SCHEMA, SCHEMA_VERSION, SchemaError

__all__ = [
    "FLAGGED",
    "Answer",
    "Book",
    "CatchUp",
    "Conduct",
    "Flag",
    "Folded",
    "Gateway",
    "Ledger",
    "LedgerError",
    "Mark",
    "Order",
    "Release",
    "Round",
    "TaskRow",
    "Trial",
    "Version",
    "Wire",
]

CHECKED_BYTES = 256 * 1024 * 1024
"""Larger files are not looked through as they are opened."""

MOST_REASONS = 64
"""Reasons for which junk on one channel is counted one by one."""

OTHER_REASONS = "for other reasons"

FLAGGED = "flagged"
"""Key of a task's state under which the setting limits.flagged is kept, for who reads the file alone."""

T = TypeVar("T")


class LedgerError(ValueError):
    """The file cannot be used: it is not ours, of another schema, damaged, or the disk does not take it."""


@dataclass(frozen=True, kw_only=True)
class Gateway:
    name: str
    roster: int
    first_seen: float
    last_seen: float
    present: bool
    software: str
    engines: str
    windows: int
    signal_bytes: int
    nonce: bytes
    samples: int = 0
    tags: str = ""
    """One a line."""

    @cached_property
    def tag_set(self) -> frozenset[str]:
        return frozenset(self.tags.split("\n")) - {""}


@dataclass(frozen=True, kw_only=True)
class Round:
    id: int
    lineage: int
    kind: str
    base: int
    opened_at: float
    closes_at: float
    closed_at: float | None
    outcome: str
    drawn: int
    plan_bytes: int
    version: int | None
    metric: float | None
    loss: float | None
    metric_source: str | None
    level: int = 0
    training_loss: float | None = None
    totals: bytes | None = None
    """`Folded` of its answers that are summed up."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    round: int
    gateway: str
    received_at: float
    kind: str
    verdict: str
    reason: str | None
    counter: int
    digest: bytes
    samples: int
    weight: int
    payload_bytes: int
    dense_bytes: int
    nonce: bytes
    sent: int
    received: int
    held_out_metric: float | None
    held_out_loss: float | None
    held_out_windows: int | None
    owed: bool
    payload: bytes | None
    training_loss: float | None = None
    counted_in: int | None = None
    norm: float | None = None
    """L2, as decoded."""
    cosine: float | None = None
    """With the sum of the others in the same version."""
    conflicts: int = 0
    """How often other bytes came for the same round."""
    beyond: int | None = None
    """As `Wire` has it, just before the answer was sent."""
    cpu: int | None = None
    """CPU time that the gateway's process spent on it, in 1/100 s."""

    @property
    def late(self) -> bool:
        """It was accepted after its own round had closed."""
        return self.kind == "update" and self.verdict == "accepted" and self.counted_in != self.round


@dataclass(frozen=True, kw_only=True)
class Wire:
    gateway: str
    nonce: bytes
    sent: int
    received: int
    reported_at: float
    final: bool
    beyond: int | None = None
    """Bytes that TCP/IP and TLS have put around both, as the gateway's system counts; None where it cannot tell."""


@dataclass(frozen=True, kw_only=True)
class Version:
    lineage: int
    number: int
    digest: bytes
    parent: bytes
    round: int | None
    created_at: float
    delta: bytes
    steps: bytes
    level: int = 0
    delta_bytes: int | None = None
    """Of the delta as it was broadcast; None: it is the one at hand."""


@dataclass(frozen=True, kw_only=True)
class CatchUp:
    at: float
    kind: str
    from_version: int
    to_version: int
    bytes: int
    askers: int


@dataclass(frozen=True, kw_only=True)
class TaskRow:
    id: int
    name: str
    state: str
    """running | paused | stopped"""
    configured: bool
    paused_tags: str
    """One a line."""


@dataclass(frozen=True, kw_only=True)
class Order:
    id: int
    at: float
    verb: str
    task: str
    details: bytes
    done_at: float | None
    done: bool | None
    result: str | None


@dataclass(frozen=True, kw_only=True)
class Release:
    number: int
    at: float
    lineage: int
    version: int
    canary_pct: float
    tags: str
    forced: bool


@dataclass(frozen=True, kw_only=True)
class Trial:
    gateway: str
    at: float
    lineage: int
    version: int
    in_service: int
    windows: int
    metric: float
    before: float | None
    personal: str | None = None
    """`PersonalOutcome` in lower case; None where the gateway keeps no model of its own, or has not told yet."""
    personal_windows: int = 0
    """Held-out windows that it was measured on, beside the shared one."""
    personal_metric: float | None = None
    shared_metric: float | None = None


@dataclass(frozen=True, kw_only=True)
class Conduct:
    """Where a gateway's updates have pointed lately; see `conduct`."""

    gateway: str
    lineage: int
    version: int
    updates: int
    direction: bytes
    toward: float | None


@dataclass(frozen=True, kw_only=True)
class Flag:
    """A gateway that somebody should look at, or that was looked at."""

    gateway: str
    at: float
    round: int
    state: str
    """flagged | aside | readmitted"""
    reason: str
    """refused | against | ordered"""
    evidence: str

    def sets_aside(self, flagged: str) -> bool:
        """Whether the gateway is set aside: by order, or because the setting limits.flagged says so."""
        return self.state == "aside" or (self.state == "flagged" and flagged == "set_aside")


@dataclass(frozen=True, kw_only=True)
class Mark:
    """Where the counters of a process stood when the last answer of it that is summed up was sent."""

    gateway: str
    nonce: bytes
    round: int
    sent: int
    received: int
    joined_sent: int
    joined_received: int
    beyond: int = 0
    joined_beyond: int = 0


class Folded(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Answers that are summed up: of one round, or of one gateway."""

    answered: int = 0
    kinds: dict[str, int] = msgspec.field(default_factory=dict)
    """Answers by kind and verdict, a comma between."""
    reasons: dict[str, int] = msgspec.field(default_factory=dict)
    """Declines by reason."""
    payload_bytes: int = 0
    dense_bytes: int = 0
    """Of accepted updates alone."""
    sent: int = 0
    received: int = 0
    """Socket bytes that belong to rounds."""
    last_round: int = 0
    cosines: int = 0
    """Updates of which a cosine is known."""
    cosine_sum: int = 0
    """Of theirs, each in whole 1/10,000: sums of whole numbers do not depend on their order."""
    conflicts: int = 0
    beyond: int = 0
    """Of TCP/IP and TLS around the socket bytes, where the gateways told it."""
    untold: int = 0
    """Answers of gateways that did not tell that."""
    cpu: int = 0
    """CPU time in 1/100 s, of the answers that told it."""
    cpu_told: int = 0
    """How many these are."""


_ALERT_VERBS = "('ack', 'confirm', 'dismiss')"
"""Of orders that are for a gateway's watch, and done when that says so."""

_BOOLEANS = {"present", "final", "owed", "configured", "forced", "done"}

ADVICE = {
    "SQLITE_FULL": "the disk is full: make room, then start again",
    "SQLITE_READONLY": "it cannot be written: mount its disk for writing and see to its owner, then start again",
    "SQLITE_CANTOPEN": "see to the folder's owner and whether its disk is mounted for writing",
    "SQLITE_CORRUPT": "it is damaged: put a backup in its place with `fedmq coordinator recover BACKUP`",
    "SQLITE_NOTADB": "it is damaged, or no ledger: put a backup in its place with `fedmq coordinator recover BACKUP`",
    "SQLITE_IOERR": "the disk does not answer as it should: look into the system's log, then start again",
    "SQLITE_BUSY": "another program holds it: end that one first",
}
"""What to do, by the beginning of SQLite's own name of an error."""


def connect_file(path: str) -> sqlite3.Connection:
    """A file on this machine. Transactions are begun and ended here, and by nobody else. Raises PlaceError."""
    if path != ":memory:":
        check_place(Path(path), DATABASE)
    return sqlite3.connect(path, isolation_level=None, check_same_thread=False)


@cache
def _columns(kind: type) -> tuple[tuple[str, ...], str]:
    """Of the table that holds rows of this kind."""
    names = tuple(kind.__dataclass_fields__)  # type: ignore[attr-defined]
    return names, ", ".join(names)


class _Records:
    """What can be read of one task, or of all: rounds and lineages are numbered through all tasks."""

    path: Path
    _db: sqlite3.Connection
    _task: int | None
    """None: all tasks."""

    def _execute(self, sql: str, values: Sequence[object] = ()) -> sqlite3.Cursor:
        try:
            return self._db.execute(sql, values)
        except sqlite3.IntegrityError:
            raise
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def _failed(self, error: sqlite3.Error) -> LedgerError:
        name = getattr(error, "sqlite_errorname", "") or ""
        advice = next((text for code, text in ADVICE.items() if name.startswith(code)), "")
        if not advice:
            advice = "look into the system's log, then start again"
        return LedgerError(f"cannot use the ledger {self.path}: {error}; {advice}")

    def _select(self, kind: type[T], table: str, clause: str, values: Sequence[object] = ()) -> list[T]:
        names, listed = _columns(kind)  # type: ignore[arg-type]
        rows = self._execute(f"SELECT {listed} FROM {table} {clause}", values)  # noqa: S608
        try:
            found = rows.fetchall()
        except sqlite3.Error as error:
            raise self._failed(error) from error
        kept = _BOOLEANS.intersection(names)
        if not kept:
            return [kind(**dict(zip(names, row, strict=True))) for row in found]
        return [
            kind(**{n: bool(v) if n in kept and v is not None else v for n, v in zip(names, row, strict=True)})
            for row in found
        ]

    def _one(self, sql: str, values: Sequence[object] = ()) -> Any:
        """The first column of the first row, or None."""
        try:
            row = self._execute(sql, values).fetchone()
        except sqlite3.Error as error:
            raise self._failed(error) from error
        return None if row is None else row[0]

    def _of_task(self, column: str = "task") -> str:
        return "1" if self._task is None else f"{column} = {self._task}"

    @property
    def _of_rounds(self) -> str:
        return "1" if self._task is None else f"round IN (SELECT id FROM rounds WHERE task = {self._task})"  # noqa: S608 - a number of ours

    def rounds(self, last: int | None = None) -> list[Round]:
        """In order; all, or the last so many."""
        limit = "" if last is None else f"DESC LIMIT {last}"
        found = self._select(Round, "rounds", f"WHERE {self._of_task()} ORDER BY id {limit}")
        return found if last is None else found[::-1]

    def last_round(self) -> Round | None:
        return next(iter(self.rounds(last=1)), None)

    def round(self, round_id: int) -> Round | None:
        return next(iter(self._select(Round, "rounds", "WHERE id = ?", (round_id,))), None)

    def answers(self, round_id: int | None = None) -> list[Answer]:
        """In order of round and arrival; payloads only where they are not erased yet."""
        if round_id is None:
            return self._select(Answer, "answers", f"WHERE {self._of_rounds} ORDER BY round, received_at, gateway")
        return self._select(Answer, "answers", "WHERE round = ? ORDER BY received_at, gateway", (round_id,))

    def answer(self, round_id: int, gateway: str) -> Answer | None:
        clause = "WHERE round = ? AND gateway = ?"
        return next(iter(self._select(Answer, "answers", clause, (round_id, gateway))), None)

    def owed(self) -> list[Answer]:
        return self._select(Answer, "answers", f"WHERE owed = 1 AND {self._of_rounds} ORDER BY round, gateway")

    def versions(self, lineage: int, after: int = -1) -> list[Version]:
        return self._select(Version, "versions", "WHERE lineage = ? AND number > ? ORDER BY number", (lineage, after))

    def version(self, lineage: int, number: int) -> Version | None:
        rows = self._select(Version, "versions", "WHERE lineage = ? AND number = ?", (lineage, number))
        return next(iter(rows), None)

    def last_version(self, lineage: int) -> Version | None:
        rows = self._select(Version, "versions", "WHERE lineage = ? ORDER BY number DESC LIMIT 1", (lineage,))
        return next(iter(rows), None)

    def catch_ups(self) -> list[CatchUp]:
        return self._select(CatchUp, "catch_ups", f"WHERE {self._of_task()} ORDER BY at")


class Ledger(_Records):
    """One open file. Writing methods change the running transaction; `commit` makes it durable.

    `connect` opens the file; a simulation hands in another.
    """

    def __init__(
        self,
        path: Path,
        *,
        read_only: bool = False,
        visit: bool = False,
        connect: Callable[[str], sqlite3.Connection] = connect_file,
    ) -> None:
        """Open; create or bring up to date unless `read_only`. Raises LedgerError, naming the file and what to do.

        `visit`: to write an order beside the coordinator that owns the file. It is taken as it is, or not at all.
        """
        self.path = path
        self._task = None
        self._books: dict[str, Book] = {}
        self._seen = -1
        owner = not read_only and not visit
        try:
            if not owner and not path.is_file():
                raise LedgerError(f"no ledger at {path}: name the coordinator's state directory")
        except PermissionError as error:
            raise LedgerError(
                f"this user may not look into {path.parent}: ask the coordinator by its socket (--control), which its"
                " settings open to operators and viewers"
            ) from error
        try:
            if owner and connect is connect_file and str(path) != ":memory:":
                make_place(path)
            # Read-only still opens read-write where it may: a WAL that a killed coordinator left must be replayed.
            self._db = connect(str(path))
        except sqlite3.Error as error:
            raise self._failed(error) from error
        except (OSError, PlaceError) as error:
            raise LedgerError(f"cannot use the ledger {path}: {error}") from error
        try:
            self._open(owner=owner, read_only=read_only)
        except LedgerError:
            self._db.close()
            raise
        except (sqlite3.Error, UnicodeDecodeError) as error:
            # The latter where SQLite quotes a damaged schema.
            self._db.close()
            if isinstance(error, sqlite3.Error):
                raise self._failed(error) from error
            raise LedgerError(f"cannot use the ledger {path}: {error}; {ADVICE['SQLITE_CORRUPT']}") from error

    def _open(self, *, owner: bool, read_only: bool) -> None:
        """Look before anything is changed: the file may be somebody else's."""
        self._db.execute("PRAGMA busy_timeout = 5000")
        if read_only:
            self._db.execute("PRAGMA query_only = 1")
        found = int(self._db.execute("PRAGMA user_version").fetchone()[0])
        tables = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if found == 0 and tables:
            raise LedgerError(f"{self.path} is an SQLite file, but not a ledger of fedmq: name another state directory")
        if found > SCHEMA_VERSION or (found and found < min(MIGRATIONS)):
            age = "newer" if found > SCHEMA_VERSION else "older"
            raise LedgerError(
                f"{self.path} has schema {found}, which is {age} than this software can read ({min(MIGRATIONS)} to"
                f" {SCHEMA_VERSION}): use the software that wrote it"
            )
        if not owner:
            if found != SCHEMA_VERSION:
                raise LedgerError(
                    f"{self.path} has schema {found}, this software reads {SCHEMA_VERSION}: start its coordinator with"
                    " this software once, which brings the file up to date"
                )
            return
        self._check_pages()
        # Only now: it changes the file, and a file that is refused stays as it was.
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        if not found:
            self._db.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
        elif found < SCHEMA_VERSION:
            self._migrate(found)

    def _check_pages(self) -> None:
        pages, size = (self._db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size"))
        if pages * size > CHECKED_BYTES:
            return
        said = self._db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if said != "ok":
            text = " ".join(str(said).split())
            raise LedgerError(f"cannot use the ledger {self.path}: {text}; {ADVICE['SQLITE_CORRUPT']}")

    def _migrate(self, found: int) -> None:
        """All steps in one transaction: a file is of the old schema, or of the new one."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            for version in range(found, SCHEMA_VERSION):
                MIGRATIONS[version](self._db.execute)
            self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            self._db.execute("COMMIT")
        except SchemaError as error:
            self.rollback()
            raise LedgerError(f"cannot bring {self.path} from schema {found} to {SCHEMA_VERSION}: {error}") from error
        except sqlite3.Error:
            self.rollback()
            raise

    def close(self) -> None:
        self.rollback()
        self._db.close()

    # -- transactions ------------------------------------------------------------------------------------------

    @property
    def changed(self) -> bool:
        """Whether there is anything to commit."""
        return self._db.in_transaction

    def commit(self) -> None:
        """Durable when it returns. Does nothing where nothing changed.

        Raises LedgerError where the disk does not take it; nothing of the transaction counts then.
        """
        if not self._db.in_transaction:
            return
        try:
            self._execute("COMMIT")
        except LedgerError:
            self.rollback()
            raise

    def rollback(self) -> None:
        # SQLite rolls back by itself where the disk is full, and a second time would be an error of its own.
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

    def write(self, sql: str, values: Sequence[object] = ()) -> sqlite3.Cursor:
        """For this module and `retention`: a statement of the running transaction, which it begins."""
        if not self._db.in_transaction:
            self._execute("BEGIN IMMEDIATE")
        return self._execute(sql, values)

    def insert(self, table: str, row: object, *, replace: bool = False, **more: object) -> None:
        names = [*type(row).__dataclass_fields__, *more]  # type: ignore[attr-defined]
        values = [more[name] if name in more else getattr(row, name) for name in names]
        verb = "INSERT OR REPLACE" if replace else "INSERT"
        # Table and columns are names of this module, never data.
        self.write(
            f"{verb} INTO {table} ({', '.join(names)}) VALUES ({', '.join('?' * len(values))})",
            [int(value) if isinstance(value, bool) else value for value in values],
        )

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Everything read inside comes from one moment, whatever the coordinator writes meanwhile.

        Raises LedgerError where a page turns out to be damaged: opening to read looks at no more than the file's head.
        """
        self._execute("BEGIN")
        try:
            yield
        except sqlite3.Error as error:
            raise LedgerError(f"cannot read the ledger {self.path}: {error}") from error
        finally:
            self.rollback()

    # -- tasks -------------------------------------------------------------------------------------------------

    def tasks(self) -> list[TaskRow]:
        """In the order in which they came."""
        return self._select(TaskRow, "tasks", "ORDER BY id")

    def book(self, name: str, *, keep_payloads: bool = False) -> Book:
        """The part of this task, which is entered where there is none yet.

        Raises LedgerError for one that is not there while the file is only read.
        """
        if name not in self._books:
            number = self._one("SELECT id FROM tasks WHERE name = ?", (name,))
            if number is None:
                if self._one("PRAGMA query_only"):
                    known = ", ".join(task.name for task in self.tasks()) or "none yet"
                    raise LedgerError(f"no task {name!r} in {self.path}; there is {known}")
                self.write(
                    "INSERT INTO tasks (name, state, configured, paused_tags) VALUES (?, 'running', 1, '')", (name,)
                )
                number = self._one("SELECT id FROM tasks WHERE name = ?", (name,))
            self._books[name] = Book(self, int(number), name)
        book = self._books[name]
        book.keep_payloads = book.keep_payloads or keep_payloads
        return book

    @property
    def only(self) -> Book:
        """The part of the only task that is configured. Raises LedgerError where there are several, or none yet."""
        tasks = [task for task in self.tasks() if task.configured]
        if len(tasks) != 1:
            named = ", ".join(task.name for task in tasks) or "none yet"
            raise LedgerError(f"{self.path} holds {len(tasks)} tasks ({named}): name one")
        return self.book(tasks[0].name)

    def configure(self, names: Sequence[str], now: float) -> None:
        """Only these tasks go on; a round of another that is open is given up."""
        for task in self.tasks():
            self.write("UPDATE tasks SET configured = ? WHERE id = ?", (int(task.name in names), task.id))
            if task.name not in names:
                self.write(
                    "UPDATE rounds SET closed_at = ?, outcome = 'abandoned' WHERE task = ? AND outcome = 'open'",
                    (now, task.id),
                )

    def task_of_round(self, round_id: int) -> str | None:
        name = self._one("SELECT name FROM rounds JOIN tasks ON tasks.id = task WHERE rounds.id = ?", (round_id,))
        return None if name is None else str(name)

    def newest_round(self) -> int:
        """Of all tasks; 0 before the first."""
        return int(self._one("SELECT max(id) FROM rounds") or 0)

    def newest_lineage(self) -> int:
        """The highest number that any task of this ledger has had."""
        return int(self._one("SELECT max(lineage) FROM versions") or 0)

    # -- orders ------------------------------------------------------------------------------------------------

    def order(self, verb: str, task: str, details: bytes, at: float) -> int:
        """Put down what the coordinator shall do; returns the order's number."""
        values = (at, verb, task, details)
        return int(
            self.write("INSERT INTO orders (at, verb, task, details) VALUES (?, ?, ?, ?)", values).lastrowid or 0
        )

    def orders_waiting(self) -> list[Order]:
        """Of tasks."""
        return self._select(Order, "orders", f"WHERE done_at IS NULL AND verb NOT IN {_ALERT_VERBS} ORDER BY id")

    def get_order(self, number: int) -> Order | None:
        return next(iter(self._select(Order, "orders", "WHERE id = ?", (number,))), None)

    def finish_order(self, number: int, *, at: float, done: bool, result: str) -> None:
        values = (at, int(done), result, number)
        self.write("UPDATE orders SET done_at = ?, done = ?, result = ? WHERE id = ?", values)

    def touched(self) -> bool:
        """Whether another connection has committed since the last look; true the first time."""
        seen = int(self._one("PRAGMA data_version"))
        if seen == self._seen:
            return False
        self._seen = seen
        return True

    def orders_of_alert(self, gateway: str, number: int) -> list[Order]:
        """What people have ordered of an alert (ack, confirm, dismiss), oldest first; `done` is None until the gateway
        has said what came of it."""
        place = f"{gateway}/{number}"
        return self._select(Order, "orders", f"WHERE task = ? AND verb IN {_ALERT_VERBS} ORDER BY id", (place,))

    def alert_orders_waiting(self) -> list[Order]:
        """Of all gateways, as they came."""
        return self._select(Order, "orders", f"WHERE done_at IS NULL AND verb IN {_ALERT_VERBS} ORDER BY id")

    # -- the fleet's machines ------------------------------------------------------------------------------------

    def watches(self) -> list[Watch]:
        """Gateways that have told of machines, by name."""
        return self._select(Watch, "watches", "ORDER BY gateway")

    def watch_of(self, gateway: str) -> Watch | None:
        return next(iter(self._select(Watch, "watches", "WHERE gateway = ?", (gateway,))), None)

    def save_watch(self, watch: Watch) -> None:
        self.insert("watches", watch, replace=True)

    def machines(self, gateway: str | None = None) -> list[Machine]:
        """Of all gateways or one, by gateway and name."""
        clause = "WHERE (?1 IS NULL OR gateway = ?1) ORDER BY gateway, name"
        return self._select(Machine, "machines", clause, (gateway,))

    def machine(self, gateway: str, name: str) -> Machine | None:
        return next(iter(self._select(Machine, "machines", "WHERE gateway = ? AND name = ?", (gateway, name))), None)

    def save_machine(self, machine: Machine) -> None:
        self.insert("machines", machine, replace=True)

    def forget_machine(self, gateway: str, name: str) -> None:
        self.write("DELETE FROM machines WHERE gateway = ? AND name = ?", (gateway, name))

    def forget_told(self, gateway: str) -> None:
        """Machines, summaries and spreads of a gateway, which are told anew; alerts stay."""
        for table in ("machines", "summaries", "spreads"):
            self.write(f"DELETE FROM {table} WHERE gateway = ?", (gateway,))  # noqa: S608 - a name of ours

    def alerts(
        self,
        *,
        gateway: str | None = None,
        machine: str | None = None,
        states: Sequence[str] | None = None,
        since: float | None = None,
        last: int | None = None,
    ) -> list[Alert]:
        """Newest first by when they were raised; `since` is that time at least, `last` how many at most.

        `condition.WAITING` are the states in which nobody has said yet what it was.
        """
        wanted = "1" if states is None else f"state IN ({', '.join('?' * len(states))})"
        limit = -1 if last is None else last
        return self._select(
            Alert,
            "alerts",
            f"WHERE (?1 IS NULL OR gateway = ?1) AND (?2 IS NULL OR machine = ?2) AND (?3 IS NULL OR opened_at >= ?3)"
            f" AND {wanted} ORDER BY opened_at DESC, gateway, number DESC LIMIT {limit}",
            (gateway, machine, since, *(states or ())),
        )

    def alert(self, gateway: str, number: int) -> Alert | None:
        """Of the gateway's book in force."""
        clause = "WHERE gateway = ?1 AND number = ?2 AND book = (SELECT book FROM watches WHERE watches.gateway = ?1)"
        return next(iter(self._select(Alert, "alerts", clause, (gateway, number))), None)

    def count_machines(self) -> dict[str, int]:
        """How many there are, by state."""
        rows = self._execute("SELECT state, count(*) FROM machines GROUP BY state ORDER BY 1")
        return {str(state): int(count) for state, count in rows}

    def count_alerts(self) -> dict[tuple[str, str], int]:
        """How many there are, by state and severity."""
        rows = self._execute("SELECT state, severity, count(*) FROM alerts GROUP BY state, severity ORDER BY 1, 2")
        return {(str(state), str(severity)): int(count) for state, severity, count in rows}

    def save_alert(self, alert: Alert) -> None:
        self.insert("alerts", alert, replace=True)

    def lose_alerts(self, gateway: str, book: bytes, state: str, waiting: Sequence[str]) -> None:
        """Of a gateway's other books: nobody can say any more what they were."""
        marks = ", ".join("?" * len(waiting))
        self.write(
            f"UPDATE alerts SET state = ? WHERE gateway = ? AND book != ? AND state IN ({marks})",  # noqa: S608
            (state, gateway, book, *waiting),
        )

    def trim_alerts(self, gateway: str, most: int, waiting: Sequence[str]) -> None:
        """Keep so many of a gateway: the decided go before those that wait, the oldest first."""
        marks = ", ".join("?" * len(waiting))
        self.write(
            "DELETE FROM alerts WHERE rowid IN (SELECT rowid FROM alerts WHERE gateway = ?"  # noqa: S608
            f" ORDER BY state IN ({marks}) DESC, opened_at DESC, number DESC LIMIT -1 OFFSET ?)",
            (gateway, *waiting, most),
        )

    def summaries(self, gateway: str | None = None) -> list[Summed]:
        """What is normal, of all gateways or one, by kind of machine, band and measure."""
        clause = "WHERE (?1 IS NULL OR gateway = ?1) ORDER BY kind, band, measure, gateway"
        return self._select(Summed, "summaries", clause, (gateway,))

    def save_summary(self, summary: Summed) -> None:
        self.insert("summaries", summary, replace=True)

    def forget_summary(self, gateway: str, kind: str, band: str, measure: str) -> None:
        self.write(
            "DELETE FROM summaries WHERE gateway = ? AND kind = ? AND band = ? AND measure = ?",
            (gateway, kind, band, measure),
        )

    def spreads(self, gateway: str | None = None) -> list[Spread]:
        """How machines hold to what is normal for them, of all gateways or one, by kind, band and measure."""
        clause = "WHERE (?1 IS NULL OR gateway = ?1) ORDER BY kind, band, measure, gateway"
        return self._select(Spread, "spreads", clause, (gateway,))

    def save_spread(self, spread: Spread) -> None:
        self.insert("spreads", spread, replace=True)

    def forget_spread(self, gateway: str, kind: str, band: str, measure: str) -> None:
        self.write(
            "DELETE FROM spreads WHERE gateway = ? AND kind = ? AND band = ? AND measure = ?",
            (gateway, kind, band, measure),
        )

    def merged_limits(self) -> list[Limit]:
        """The fleet's limits in force, by kind of machine, band and measure."""
        return self._select(Limit, "merged", "ORDER BY kind, band, measure")

    def save_merged(self, limits: Sequence[Limit]) -> None:
        """These and no others are in force."""
        self.write("DELETE FROM merged")
        for limit in limits:
            self.insert("merged", limit)

    def fleet_drifts(self) -> list[Drift]:
        """Kinds of machines of which many have drifted, by kind."""
        return self._select(Drift, "fleet_drift", "ORDER BY kind")

    def save_fleet_drifts(self, drifts: Sequence[Drift]) -> None:
        """These and no others."""
        self.write("DELETE FROM fleet_drift")
        for drift in drifts:
            self.insert("fleet_drift", drift)

    def fleet_spreads(self) -> list[FleetSpread]:
        """How all machines of a kind hold to what is normal for them, by kind, band and measure."""
        return self._select(FleetSpread, "fleet_spreads", "ORDER BY kind, band, measure")

    def save_fleet_spreads(self, spreads: Sequence[FleetSpread]) -> None:
        """These and no others."""
        self.write("DELETE FROM fleet_spreads")
        for spread in spreads:
            self.insert("fleet_spreads", spread)

    # -- state that belongs to no task -------------------------------------------------------------------------

    def get(self, key: str) -> bytes | None:
        value = self._one("SELECT value FROM state WHERE task = 0 AND key = ?", (key,))
        return None if value is None else bytes(value)

    def put(self, key: str, value: bytes) -> None:
        self.write("INSERT OR REPLACE INTO state VALUES (0, ?, ?)", (key, value))

    def forget(self, key: str) -> None:
        self.write("DELETE FROM state WHERE task = 0 AND key = ?", (key,))

    # -- the fleet ---------------------------------------------------------------------------------------------

    def gateways(self) -> list[Gateway]:
        """By place in the roster."""
        return self._select(Gateway, "gateways", "ORDER BY roster")

    def save_gateway(self, gateway: Gateway) -> None:
        self.insert("gateways", gateway, replace=True)

    def set_presence(self, name: str, present: bool, at: float) -> None:
        self.write("UPDATE gateways SET present = ?, last_seen = ? WHERE name = ?", (int(present), at, name))

    def last_answers(self, rounds: int) -> list[tuple[str, int, float, str, str, str | None]]:
        """Of each gateway that answered in so many newest rounds: name, round, when, kind, verdict and reason of its
        last answer."""
        # SQLite gives the other columns of the row that holds the maximum (lang_select.html, "bare columns").
        found = self._execute(
            "SELECT gateway, round, max(received_at), kind, verdict, reason FROM answers WHERE round > ?"
            " GROUP BY gateway ORDER BY gateway",
            (self.newest_round() - rounds,),
        )
        try:
            return [(str(g), int(r), float(at), str(k), str(v), why) for g, r, at, k, v, why in found.fetchall()]
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def answers_of(self, gateway: str, last: int) -> list[Answer]:
        """A gateway's last answers to whichever task, in order."""
        found = self._select(Answer, "answers", "WHERE gateway = ? ORDER BY round DESC LIMIT ?", (gateway, last))
        return found[::-1]

    def told(self, prefix: str) -> dict[str, bytes]:
        """What `put` has kept under keys that begin so, by the rest of the key."""
        rows = self._execute(
            "SELECT substr(key, ?), value FROM state WHERE task = 0 AND substr(key, 1, ?) = ?",
            (len(prefix) + 1, len(prefix), prefix),
        )
        return {str(rest): bytes(value) for rest, value in rows.fetchall()}

    def tally(self, round_id: int) -> dict[tuple[str, str], int]:
        """A round's answers by kind and verdict."""
        rows = self._execute(
            "SELECT kind, verdict, count(*) FROM answers WHERE round = ? GROUP BY kind, verdict", (round_id,)
        )
        return {(str(kind), str(verdict)): int(count) for kind, verdict, count in rows.fetchall()}

    def wires(self) -> list[Wire]:
        return self._select(Wire, "wire", "ORDER BY gateway, reported_at")

    def wire_totals(self) -> tuple[int, int]:
        """Bytes sent and received by all gateways, as far as they have told."""
        row = self._execute("SELECT total(sent), total(received) FROM wire").fetchone()
        return int(row[0]), int(row[1])

    def counters_of_answers(self) -> Iterator[tuple[str, bytes, int, int, int]]:
        """Gateway, boot nonce, task, bytes sent and received as each answer told them; by process, in order of time.

        Read as they are taken: to be used up within one snapshot.
        """
        yield from self._execute(
            "SELECT gateway, nonce, rounds.task, sent, received FROM answers JOIN rounds ON rounds.id = round"
            " ORDER BY gateway, nonce, received_at, round"
        )

    def folded_totals(self, task: int) -> list[bytes]:
        """`Folded` of each gateway, of a task by its number."""
        return [bytes(totals) for (totals,) in self._execute("SELECT totals FROM folded WHERE task = ?", (task,))]

    def save_wire(self, wire: Wire) -> None:
        """Cumulative: an older report that arrives late never lowers a newer one."""
        self.write(
            "INSERT INTO wire (gateway, nonce, sent, received, reported_at, final, beyond) VALUES (?, ?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (gateway, nonce) DO UPDATE SET"
            " sent = max(sent, excluded.sent), received = max(received, excluded.received),"
            " reported_at = max(reported_at, excluded.reported_at), final = max(final, excluded.final),"
            " beyond = coalesce(max(beyond, excluded.beyond), beyond, excluded.beyond)",
            (wire.gateway, wire.nonce, wire.sent, wire.received, wire.reported_at, int(wire.final), wire.beyond),
        )

    def gathered(self) -> list[tuple[str, float, int]]:
        """(gateway, when it began, bytes): by how much the signal that each holds has grown, day by day."""
        rows = self._execute("SELECT gateway, at, bytes FROM gathered ORDER BY gateway, day")
        try:
            return [(str(gateway), float(at), int(size)) for gateway, at, size in rows.fetchall()]
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def gather(self, gateway: str, size: int, at: float) -> None:
        """The signal that a gateway holds has grown by so many bytes."""
        self.write(
            "INSERT INTO gathered VALUES (?, ?, ?, ?) ON CONFLICT (gateway, day) DO UPDATE SET"
            " bytes = bytes + excluded.bytes",
            (gateway, int(at // 86_400), at, size),
        )

    def refused(self) -> list[tuple[str, str, int, int]]:
        """(channel, reason, messages, bytes)."""
        return list(self._execute("SELECT channel, reason, messages, bytes FROM refused ORDER BY 1, 2"))

    def count_refused(self, channel: str, reason: str, size: int, messages: int = 1) -> None:
        """Beyond MOST_REASONS of one channel, whatever is new is counted as others: a reason may quote what came."""
        known = self._one("SELECT 1 FROM refused WHERE channel = ? AND reason = ?", (channel, reason))
        if not known and self._one("SELECT count(*) FROM refused WHERE channel = ?", (channel,)) >= MOST_REASONS:
            reason = OTHER_REASONS
        self.write(
            "INSERT INTO refused VALUES (?, ?, ?, ?) ON CONFLICT (channel, reason) DO UPDATE SET"
            " messages = messages + excluded.messages, bytes = bytes + excluded.bytes",
            (channel, reason, messages, size),
        )

    # -- what is summed up -------------------------------------------------------------------------------------

    def marks(self) -> list[Mark]:
        return self._select(Mark, "marks", "")

    def unfolded(self, upto: int, before: float) -> list[Answer]:
        """Answers to rounds up to this one that came before that time, and to no round that owes any of them."""
        return self._select(
            Answer,
            "answers",
            "WHERE round <= ? AND received_at < ? ORDER BY received_at, round, gateway",
            (upto, before),
        )

    def owes_before(self, upto: int) -> bool:
        return self._one("SELECT 1 FROM answers WHERE owed = 1 AND round <= ?", (upto,)) is not None

    def fold_round(self, round_id: int, totals: bytes) -> None:
        """The round's answers are summed up, and it takes no more."""
        self.write("UPDATE rounds SET totals = ? WHERE id = ?", (totals, round_id))

    def folded_of(self, task: int, gateway: str) -> bytes | None:
        value = self._one("SELECT totals FROM folded WHERE task = ? AND gateway = ?", (task, gateway))
        return None if value is None else bytes(value)

    def save_folded(self, task: int, gateway: str, totals: bytes) -> None:
        self.write("INSERT OR REPLACE INTO folded VALUES (?, ?, ?)", (task, gateway, totals))

    def save_mark(self, mark: Mark) -> None:
        self.insert("marks", mark, replace=True)

    def erase_answer(self, round_id: int, gateway: str) -> None:
        self.write("DELETE FROM answers WHERE round = ? AND gateway = ?", (round_id, gateway))

    def task_id_of_round(self, round_id: int) -> int:
        return int(self._one("SELECT task FROM rounds WHERE id = ?", (round_id,)))

    def first_unfolded(self) -> int | None:
        """The oldest round whose answers are still one by one."""
        first = self._one("SELECT id FROM rounds WHERE id > ? ORDER BY id LIMIT 1", (int(self.get("folded") or 0),))
        return None if first is None else int(first)


class Book(_Records):
    """One task's part of a ledger. Writing methods change the ledger's running transaction."""

    def __init__(self, ledger: Ledger, number: int, name: str) -> None:
        self.ledger = ledger
        self.path = ledger.path
        self.name = name
        self.number = number
        self.keep_payloads = False
        self._task = number
        self._db = ledger._db

    def commit(self) -> None:
        self.ledger.commit()

    def row(self) -> TaskRow:
        return self._select(TaskRow, "tasks", "WHERE id = ?", (self.number,))[0]

    def set_state(self, state: str, paused_tags: str) -> None:
        """running | paused | stopped, and tags of gateways that pause, one a line."""
        values = (state, paused_tags, self.number)
        self.ledger.write("UPDATE tasks SET state = ?, paused_tags = ? WHERE id = ?", values)

    # -- state -------------------------------------------------------------------------------------------------

    def get(self, key: str) -> bytes | None:
        value = self._one("SELECT value FROM state WHERE task = ? AND key = ?", (self.number, key))
        return None if value is None else bytes(value)

    def put(self, key: str, value: bytes) -> None:
        self.ledger.write("INSERT OR REPLACE INTO state VALUES (?, ?, ?)", (self.number, key, value))

    def forget(self, key: str) -> None:
        self.ledger.write("DELETE FROM state WHERE task = ? AND key = ?", (self.number, key))

    def proposal(self) -> Proposal | None:
        """Whether the task should be trained anew because many machines have drifted, and what became of that."""
        value = self.get("proposal")
        return None if value is None else msgspec.json.decode(value, type=Proposal)

    def save_proposal(self, proposal: Proposal) -> None:
        self.put("proposal", msgspec.json.encode(proposal))

    # -- rounds ------------------------------------------------------------------------------------------------

    def next_round(self) -> int:
        """Number of the round that opens next: they count through all tasks."""
        return self.ledger.newest_round() + 1

    def open_round(self, round_: Round) -> None:
        self.ledger.insert("rounds", round_, task=self.number)

    def close_round(
        self, round_id: int, *, at: float, outcome: str, version: int | None, training_loss: float | None = None
    ) -> None:
        self.ledger.write(
            "UPDATE rounds SET closed_at = ?, outcome = ?, version = ?, training_loss = ? WHERE id = ?",
            (at, outcome, version, training_loss, round_id),
        )

    def set_metric(self, round_id: int, *, metric: float | None, loss: float | None, source: str) -> None:
        self.ledger.write(
            "UPDATE rounds SET metric = ?, loss = ?, metric_source = ? WHERE id = ?", (metric, loss, source, round_id)
        )

    def has_round(self, round_id: int) -> bool:
        """Whether this task has had the round, and its answers are still kept one by one."""
        found = "SELECT 1 FROM rounds WHERE id = ? AND task = ? AND totals IS NULL"
        return self._one(found, (round_id, self.number)) is not None

    def training_rounds(self, lineage: int, *, after: int = 0, most: int = 1 << 40) -> int:
        """How many training rounds the lineage has had since this one; counted no further than `most`."""
        return int(
            self._one(
                "SELECT count(*) FROM"
                " (SELECT 1 FROM rounds WHERE lineage = ? AND kind = 'training' AND id > ? LIMIT ?)",
                (lineage, after, most),
            )
        )

    def latest_training(self, lineage: int, last: int) -> list[Round]:
        """The lineage's last training rounds, in order."""
        clause = "WHERE lineage = ? AND kind = 'training' ORDER BY id DESC LIMIT ?"
        return self._select(Round, "rounds", clause, (lineage, last))[::-1]

    def metrics(self, lineage: int, *, after: int = 0, last: int = 2, direction: int = 1) -> list[float]:
        """Metrics of the lineage's last training rounds since this one, behind the best of those before:
        the highest, or with `direction` -1 the lowest."""
        found = self._execute(
            "SELECT id, metric FROM rounds WHERE lineage = ? AND kind = 'training' AND id > ? AND metric IS NOT NULL"
            " ORDER BY id DESC LIMIT ?",
            (lineage, after, last),
        ).fetchall()
        latest = [float(metric) for _, metric in reversed(found)]
        if len(found) < last:
            return latest
        highest = (
            "SELECT metric FROM rounds WHERE lineage = ? AND metric IS NOT NULL AND kind = 'training' AND id > ?"
            " AND id < ? ORDER BY metric DESC LIMIT 1"
        )
        query = highest if direction > 0 else highest.replace("DESC", "ASC")
        best = self._one(query, (lineage, after, found[-1][0]))
        return latest if best is None else [float(best), *latest]

    def count_rounds(self) -> int:
        return int(self._one("SELECT count(*) FROM rounds WHERE task = ?", (self.number,)))

    def last_metric(self) -> float | None:
        """Of the last round that has one."""
        last = "SELECT metric FROM rounds WHERE task = ? AND metric IS NOT NULL ORDER BY id DESC LIMIT 1"
        found = self._one(last, (self.number,))
        return None if found is None else float(found)

    def failures(self, most: int = 64) -> int:
        """Rounds below quorum in a row, up to the last one; counted no further than `most`."""
        newest_first = "SELECT outcome FROM rounds WHERE task = ? ORDER BY id DESC LIMIT ?"
        outcomes = [str(outcome) for (outcome,) in self._execute(newest_first, (self.number, most))]
        return next((n for n, outcome in enumerate(outcomes) if outcome != "below quorum"), len(outcomes))

    def openings(self, last: int) -> list[float]:
        """When the last rounds opened, in order."""
        return [row.opened_at for row in self.rounds(last=last)]

    def losses(self, lineage: int) -> list[float]:
        """Training losses of a lineage's applied rounds, in order."""
        rows = self._execute(
            "SELECT training_loss FROM rounds WHERE lineage = ? AND outcome = 'applied' AND training_loss IS NOT NULL"
            " ORDER BY id",
            (lineage,),
        )
        return [float(loss) for (loss,) in rows]

    # -- answers -----------------------------------------------------------------------------------------------

    def save_answer(self, answer: Answer) -> None:
        self.ledger.insert("answers", answer)

    def updates_since(self, round_id: int) -> int:
        """Updates of this round and all later ones that were accepted while their round was open."""
        return int(
            self._one(
                "SELECT count(*) FROM answers WHERE round >= ? AND kind = 'update' AND verdict = 'accepted'"  # noqa: S608
                f" AND counted_in = round AND {self._of_rounds}",
                (round_id,),
            )
        )

    def accepted(self, round_id: int, lineage: int) -> list[str]:
        """Gateways whose update to this round was accepted; none where the round was of another lineage."""
        rows = self._execute(
            "SELECT gateway FROM answers JOIN rounds ON rounds.id = answers.round"
            " WHERE round = ? AND lineage = ? AND answers.kind = 'update' AND verdict = 'accepted' ORDER BY gateway",
            (round_id, lineage),
        )
        return [str(name) for (name,) in rows]

    def verdict(self, gateway: str) -> tuple[int, int, bytes, str] | None:
        """(round, counter, digest, verdict) of the gateway's last answer."""
        row = self._execute(
            "SELECT round, counter, digest, verdict FROM verdicts WHERE task = ? AND gateway = ?",
            (self.number, gateway),
        ).fetchone()
        return None if row is None else (int(row[0]), int(row[1]), bytes(row[2]), str(row[3]))

    def save_verdict(self, gateway: str, round_id: int, counter: int, digest: bytes, verdict: str) -> None:
        """The counter never goes back: what an old image of a gateway's disk sends does not replace what was newer."""
        self.ledger.write(
            "INSERT INTO verdicts VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (task, gateway) DO UPDATE SET"
            " round = excluded.round, counter = excluded.counter, digest = excluded.digest, verdict = excluded.verdict"
            " WHERE excluded.counter > counter",
            (self.number, gateway, round_id, counter, digest, verdict),
        )

    def owe(self, round_id: int) -> None:
        """What is in the round's sum counts in the next round that is applied."""
        self.ledger.write(
            "UPDATE answers SET owed = 1 WHERE counted_in = ? AND kind = 'update' AND verdict = 'accepted'", (round_id,)
        )

    def count_owed(self, round_id: int) -> None:
        """Updates that came late, while no round was open, are in the sum of this one."""
        self.ledger.write(
            f"UPDATE answers SET counted_in = ? WHERE owed = 1 AND counted_in IS NULL AND {self._of_rounds}",  # noqa: S608
            (round_id,),
        )

    def summed(self, round_id: int) -> list[Answer]:
        """Updates in the sum of this training round, the newest: its own, late ones of others, and what is owed."""
        return self._select(Answer, "answers", f"WHERE {self._in_sum} ORDER BY round, gateway", (round_id,))

    def summed_losses(self, round_id: int) -> list[tuple[int, int, float]]:
        """Of the same updates the round that each answers, its weight and its training loss."""
        return list(
            self._execute(
                f"SELECT round, weight, training_loss FROM answers WHERE {self._in_sum}"  # noqa: S608
                " AND training_loss IS NOT NULL ORDER BY round, gateway",
                (round_id,),
            )
        )

    @property
    def _in_sum(self) -> str:
        return f"kind = 'update' AND verdict = 'accepted' AND (counted_in = ? OR (owed = 1 AND {self._of_rounds}))"

    def rounds_between(self, lineage: int, earlier: int, later: int) -> int:
        """How many rounds of a lineage came after the earlier one, up to the later one."""
        return int(
            self._one("SELECT count(*) FROM rounds WHERE lineage = ? AND id > ? AND id <= ?", (lineage, earlier, later))
        )

    def erase_payloads(self) -> None:
        """In the transaction that commits a version: what it contains is no longer owed, and no longer kept."""
        self.ledger.write(f"UPDATE answers SET owed = 0 WHERE owed = 1 AND {self._of_rounds}")  # noqa: S608
        if not self.keep_payloads:
            # Also what an earlier setting has kept.
            self.ledger.write(f"UPDATE answers SET payload = NULL WHERE payload IS NOT NULL AND {self._of_rounds}")  # noqa: S608

    def count_refused(self, channel: str, reason: str, size: int) -> None:
        self.ledger.count_refused(channel, reason, size)

    # -- sums, for figures that are asked for again and again ----------------------------------------------------

    def closings(self) -> list[tuple[str, float, float]]:
        """Outcome, opening and close of each closed round, in order."""
        found = self._execute(
            "SELECT outcome, opened_at, closed_at FROM rounds WHERE task = ? AND closed_at IS NOT NULL ORDER BY id",
            (self.number,),
        )
        return [(str(outcome), float(opened_at), float(closed_at)) for outcome, opened_at, closed_at in found]

    def answer_sums(self) -> list[tuple[str, str, str | None, int, int, int, int, int]]:
        """Of the answers that are kept one by one, for each gateway, kind and reason: how many, bytes of payloads, what
        accepted updates would have taken dense, CPU time, and how many told of that. Kinds are those of `Folded`."""
        found = self._execute(
            "SELECT gateway, CASE WHEN kind = 'update' AND verdict = 'accepted' AND counted_in IS NOT round"  # noqa: S608
            " THEN 'update,accepted late' ELSE kind || ',' || verdict END AS counted, reason, count(*),"
            " total(payload_bytes),"
            " total(CASE WHEN kind = 'update' AND verdict = 'accepted' THEN dense_bytes ELSE 0 END),"
            " total(cpu), count(cpu)"
            f" FROM answers WHERE {self._of_rounds} GROUP BY gateway, counted, reason"
        )
        return [
            (str(name), str(kind), why, int(count), int(payload), int(dense), int(cpu), int(told))
            for name, kind, why, count, payload, dense, cpu, told in found
        ]

    def delivered_bytes(self) -> int:
        """Of broadcast deltas, each as often as it was heard: by who answered its round or was about while it ran."""
        return int(
            self._one(
                "SELECT total(delta_bytes * (SELECT count(*) FROM (SELECT gateway FROM answers WHERE round = made.id"
                " UNION SELECT name FROM gateways WHERE first_seen <= coalesce(made.closed_at, made.closes_at)"
                " AND (present OR last_seen >= made.opened_at))))"
                " FROM versions JOIN rounds AS made ON made.id = versions.round"
                " WHERE versions.task = ? AND delta_bytes > 0",
                (self.number,),
            )
        )

    def count_owed_answers(self) -> int:
        return int(self._one(f"SELECT count(*) FROM answers WHERE owed = 1 AND {self._of_rounds}"))  # noqa: S608

    def last_scored(self) -> tuple[float, float | None, str | None] | None:
        """Metric, loss and source of the last round that has a metric."""
        row = self._execute(
            "SELECT metric, loss, metric_source FROM rounds WHERE task = ? AND metric IS NOT NULL"
            " ORDER BY id DESC LIMIT 1",
            (self.number,),
        ).fetchone()
        return None if row is None else (float(row[0]), row[1], row[2])

    def catch_up_sums(self) -> list[tuple[str, int, int]]:
        """Kind, how many were published, bytes."""
        found = self._execute(
            "SELECT kind, count(*), total(bytes) FROM catch_ups WHERE task = ? GROUP BY kind ORDER BY kind",
            (self.number,),
        )
        return [(str(kind), int(count), int(size)) for kind, count, size in found]

    # -- who should be looked at ---------------------------------------------------------------------------------

    def count_conflict(self, round_id: int, gateway: str) -> None:
        """Other bytes than those on record have come for this round."""
        self.ledger.write(
            "UPDATE answers SET conflicts = conflicts + 1 WHERE round = ? AND gateway = ?", (round_id, gateway)
        )

    def set_cosine(self, round_id: int, gateway: str, cosine: float) -> None:
        self.ledger.write("UPDATE answers SET cosine = ? WHERE round = ? AND gateway = ?", (cosine, round_id, gateway))

    def latest_updates(self, gateway: str, *, after: int, last: int) -> list[tuple[str, int]]:
        """(verdict, conflicts) of a gateway's last updates to this task since that round, the newest first."""
        return list(
            self._execute(
                "SELECT verdict, conflicts FROM answers JOIN rounds ON rounds.id = answers.round"
                " WHERE gateway = ? AND answers.kind = 'update' AND round > ? AND task = ? ORDER BY round DESC LIMIT ?",
                (gateway, after, self.number, last),
            )
        )

    def latest_cosines(self, gateway: str, lineage: int, *, after: int, last: int) -> list[float]:
        """Of a gateway's last updates in versions of a lineage since that round, the newest first."""
        rows = self._execute(
            "SELECT cosine FROM answers JOIN rounds ON rounds.id = answers.round WHERE gateway = ?"
            " AND answers.kind = 'update' AND round > ? AND lineage = ? AND cosine IS NOT NULL"
            " ORDER BY round DESC LIMIT ?",
            (gateway, after, lineage, last),
        )
        return [float(cosine) for (cosine,) in rows]

    def conduct(self, gateway: str) -> Conduct | None:
        clause = "WHERE task = ? AND gateway = ?"
        return next(iter(self._select(Conduct, "conduct", clause, (self.number, gateway))), None)

    def save_conduct(self, conduct: Conduct) -> None:
        self.ledger.insert("conduct", conduct, replace=True, task=self.number)

    def set_toward(self, gateway: str, toward: float | None) -> None:
        self.ledger.write(
            "UPDATE conduct SET toward = ? WHERE task = ? AND gateway = ?", (toward, self.number, gateway)
        )

    def forget_conduct(self, gateway: str) -> None:
        self.ledger.write("DELETE FROM conduct WHERE task = ? AND gateway = ?", (self.number, gateway))

    def towards(self, lineage: int, least: int) -> list[float]:
        """Where the gateways of a lineage point that have so many updates in its versions."""
        rows = self._execute(
            "SELECT toward FROM conduct WHERE task = ? AND lineage = ? AND updates >= ? AND toward IS NOT NULL",
            (self.number, lineage, least),
        )
        return [float(toward) for (toward,) in rows]

    def flags(self) -> list[Flag]:
        """Of all gateways that have one, lifted or not."""
        return self._select(Flag, "flags", "WHERE task = ? ORDER BY gateway", (self.number,))

    def save_flag(self, flag: Flag) -> None:
        self.ledger.insert("flags", flag, replace=True, task=self.number)

    # -- versions ----------------------------------------------------------------------------------------------

    def save_version(self, version: Version) -> None:
        size = len(version.delta) if version.delta_bytes is None else version.delta_bytes
        self.ledger.insert("versions", version, task=self.number, delta_bytes=size)

    def empty_deltas(self, lineage: int, upto: int) -> None:
        """Versions up to this one lose their deltas; what they were, and how many bytes they took, stays."""
        # Only those that have not been emptied yet are touched: the newest few of them.
        first = int(self.get("emptied") or 0)
        if upto > first:
            self.ledger.write(
                "UPDATE versions SET delta = x'', steps = x'' WHERE lineage = ? AND number > ? AND number <= ?",
                (lineage, first, upto),
            )
            self.put("emptied", str(upto).encode())

    def lineages(self) -> list[int]:
        """Of this task, in order."""
        rows = self._execute("SELECT DISTINCT lineage FROM versions WHERE task = ? ORDER BY 1", (self.number,))
        return [int(number) for (number,) in rows]

    def owns(self, lineage: int) -> bool:
        return self._one("SELECT 1 FROM versions WHERE task = ? AND lineage = ?", (self.number, lineage)) is not None

    def save_catch_up(self, catch_up: CatchUp) -> None:
        self.ledger.insert("catch_ups", catch_up, task=self.number)

    # -- service -----------------------------------------------------------------------------------------------

    def releases(self) -> list[Release]:
        """In order."""
        return self._select(Release, "releases", "WHERE task = ? ORDER BY number", (self.number,))

    def last_release(self) -> int:
        """Number of the newest one; 0 before the first."""
        return int(self._one("SELECT max(number) FROM releases WHERE task = ?", (self.number,)) or 0)

    def save_release(self, release: Release) -> None:
        self.ledger.insert("releases", release, task=self.number)

    def trials(self) -> list[Trial]:
        return self._select(Trial, "trials", "WHERE task = ? ORDER BY gateway", (self.number,))

    def save_trial(self, trial: Trial) -> None:
        self.ledger.insert("trials", trial, replace=True, task=self.number)

    def folded(self) -> dict[str, bytes]:
        """`Folded` of each gateway."""
        rows = self._execute("SELECT gateway, totals FROM folded WHERE task = ?", (self.number,))
        return {str(name): bytes(totals) for name, totals in rows}
