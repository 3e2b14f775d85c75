"""The coordinator's memory: one SQLite file with every round, answer, verdict and byte count.

Owns the schema and the transactions. Nothing is published before `commit` returns: the service collects what it
wants to say, commits, and only then speaks, so one fsync serves all answers that came together (group commit).
A gateway's payload is kept until the version that contains it is committed, and erased in that same transaction.

Refuses to know what an answer is worth (`rounds`) and how the report looks (`report`, which reads this file alone).
Times are unix seconds by the coordinator's clock; sizes are bytes.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

__all__ = ["Answer", "CatchUp", "Gateway", "Ledger", "LedgerError", "Round", "Version", "Wire"]

SCHEMA_VERSION = 3

T = TypeVar("T")

_SCHEMA = """
CREATE TABLE state (
    key TEXT PRIMARY KEY,
    value BLOB NOT NULL
) STRICT;
CREATE TABLE gateways (
    name TEXT PRIMARY KEY,
    roster INTEGER NOT NULL UNIQUE,       -- place in the plan's bitmap, for ever
    first_seen REAL NOT NULL,
    last_seen REAL NOT NULL,
    present INTEGER NOT NULL,             -- 0 after the last will or a leave
    software TEXT NOT NULL,
    engines TEXT NOT NULL,                -- names, comma separated
    windows INTEGER NOT NULL,             -- training windows at its last birth
    signal_bytes INTEGER NOT NULL,        -- raw signal it holds, at 16 bits a sample
    nonce BLOB NOT NULL                   -- boot nonce of its last birth
) STRICT;
CREATE TABLE verdicts (                   -- the last answer of every gateway, kept for ever
    gateway TEXT PRIMARY KEY,
    round INTEGER NOT NULL,
    counter INTEGER NOT NULL,
    digest BLOB NOT NULL,
    verdict TEXT NOT NULL
) STRICT;
CREATE TABLE wire (                       -- socket bytes, cumulative, as one process of a gateway counted them
    gateway TEXT NOT NULL,
    nonce BLOB NOT NULL,
    sent INTEGER NOT NULL,
    received INTEGER NOT NULL,
    reported_at REAL NOT NULL,
    final INTEGER NOT NULL,               -- 1: said on leaving, nothing follows; 0: a tail may not be reported yet
    PRIMARY KEY (gateway, nonce)
) STRICT;
CREATE TABLE rounds (
    id INTEGER PRIMARY KEY,
    lineage INTEGER NOT NULL,
    kind TEXT NOT NULL,                   -- statistics | training
    base INTEGER NOT NULL,                -- version trained from
    opened_at REAL NOT NULL,
    closes_at REAL NOT NULL,
    closed_at REAL,                       -- NULL while open
    outcome TEXT NOT NULL,                -- open | applied | below quorum | abandoned
    drawn INTEGER NOT NULL,               -- gateways drawn
    plan_bytes INTEGER NOT NULL,          -- the plan as published, model delta included
    level INTEGER NOT NULL,               -- how dense its updates were asked for
    training_loss REAL,                   -- weighted mean over its updates, of an applied one: what levels are set by
    version INTEGER,                      -- the version that came of it
    metric REAL,                          -- of that version
    loss REAL,
    metric_source TEXT                    -- test set | held-out windows
) STRICT;
CREATE TABLE answers (
    round INTEGER NOT NULL,
    gateway TEXT NOT NULL,
    received_at REAL NOT NULL,
    kind TEXT NOT NULL,                   -- update | decline | statistics
    verdict TEXT NOT NULL,
    reason TEXT,                          -- of a decline
    counter INTEGER NOT NULL,
    digest BLOB NOT NULL,
    samples INTEGER NOT NULL,             -- windows: of an update as its gateway's birth told, of statistics as counted
    weight INTEGER NOT NULL,
    payload_bytes INTEGER NOT NULL,       -- the coded delta alone
    dense_bytes INTEGER NOT NULL,         -- the same delta as float32
    nonce BLOB NOT NULL,                  -- with sent and received: the gateway's cumulative socket bytes
    sent INTEGER NOT NULL,
    received INTEGER NOT NULL,
    training_loss REAL,                   -- mean over the gateway's windows, as its update tells
    held_out_metric REAL,
    held_out_loss REAL,
    held_out_windows INTEGER,
    owed INTEGER NOT NULL DEFAULT 0,      -- accepted, but its round closed below quorum: counts in the next
    payload BLOB,                         -- NULL once its version is committed
    PRIMARY KEY (round, gateway)
) STRICT;
CREATE TABLE versions (
    lineage INTEGER NOT NULL,
    number INTEGER NOT NULL,
    digest BLOB NOT NULL,                 -- sha256 of the integer parameters
    parent BLOB NOT NULL,                 -- digest of the version before: the chain
    round INTEGER,
    created_at REAL NOT NULL,
    level INTEGER NOT NULL,               -- how dense its delta was coded, and the updates that start from it
    delta BLOB NOT NULL,                  -- as broadcast; empty for the start of a lineage
    steps BLOB NOT NULL,                  -- the same as whole numbers, which need no contexts to be read
    PRIMARY KEY (lineage, number)
) STRICT;
CREATE TABLE catch_ups (                  -- answers to gateways that missed deltas, published once for all askers
    at REAL NOT NULL,
    kind TEXT NOT NULL,                   -- chain | merged | keyframe
    from_version INTEGER NOT NULL,
    to_version INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    askers INTEGER NOT NULL
) STRICT;
CREATE TABLE refused (                    -- junk, counted by topic channel and reason
    channel TEXT NOT NULL,
    reason TEXT NOT NULL,
    messages INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    PRIMARY KEY (channel, reason)
) STRICT;
"""


class LedgerError(ValueError):
    """The file cannot be used: it is not ours, of another schema, or damaged."""


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


@dataclass(frozen=True, kw_only=True)
class Wire:
    gateway: str
    nonce: bytes
    sent: int
    received: int
    reported_at: float
    final: bool


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


@dataclass(frozen=True, kw_only=True)
class CatchUp:
    at: float
    kind: str
    from_version: int
    to_version: int
    bytes: int
    askers: int


_BOOLEANS = {"present", "final", "owed"}


class Ledger:
    """One open file. Writing methods change the running transaction; `commit` makes it durable."""

    def __init__(
        self,
        path: Path,
        *,
        read_only: bool = False,
        connect: Callable[[str], sqlite3.Connection] | None = None,
    ) -> None:
        """Open, or create unless `read_only`. Raises LedgerError, naming the file and what to do."""
        self.path = path
        self._read_only = read_only
        self._rounds: list[Round] | None = None
        if read_only and not path.is_file():
            raise LedgerError(f"no ledger at {path}: name the coordinator's state directory")
        try:
            if not read_only:
                path.parent.mkdir(parents=True, exist_ok=True)
            # Read-only still opens read-write where it may: a WAL that a killed coordinator left must be replayed.
            if connect is not None:
                self._db = connect(str(path))
            else:
                self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA busy_timeout = 5000")
            if read_only:
                self._db.execute("PRAGMA query_only = 1")
            found = self._db.execute("PRAGMA user_version").fetchone()[0]
            if found == 0 and not read_only:
                tables = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
                if tables:
                    raise LedgerError(
                        f"{path} is an SQLite file, but not a ledger of fedmq: name another state directory"
                    )
                self._db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
            elif found != SCHEMA_VERSION:
                raise LedgerError(
                    f"{path} has schema {found}, this software reads {SCHEMA_VERSION}: use the software that wrote it"
                )
            if not read_only:
                # Only now: it changes the file, and a file that is refused stays as it was.
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.execute("PRAGMA synchronous = FULL")
        except (sqlite3.Error, OSError) as error:
            raise LedgerError(f"cannot use the ledger {path}: {error}") from error

    def close(self) -> None:
        if self._db.in_transaction:
            self._db.rollback()
        self._db.close()

    # -- transactions ------------------------------------------------------------------------------------------

    def commit(self) -> None:
        """Durable when it returns. Does nothing where nothing changed."""
        if self._db.in_transaction:
            self._db.execute("COMMIT")

    def rollback(self) -> None:
        self._rounds = None
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

    def _write(self, sql: str, values: Sequence[object] = ()) -> sqlite3.Cursor:
        if not self._db.in_transaction:
            self._db.execute("BEGIN IMMEDIATE")
        return self._db.execute(sql, values)

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Everything read inside comes from one moment, whatever the coordinator writes meanwhile.

        Raises LedgerError where a page turns out to be damaged: opening reads no more than the file's head.
        """
        self._db.execute("BEGIN")
        try:
            yield
        except sqlite3.Error as error:
            raise LedgerError(f"cannot read the ledger {self.path}: {error}") from error
        finally:
            self.rollback()

    # -- state -------------------------------------------------------------------------------------------------

    def get(self, key: str) -> bytes | None:
        row = self._db.execute("SELECT value FROM state WHERE key = ?", (key,)).fetchone()
        return None if row is None else bytes(row[0])

    def put(self, key: str, value: bytes) -> None:
        self._write("INSERT OR REPLACE INTO state VALUES (?, ?)", (key, value))

    def forget(self, key: str) -> None:
        self._write("DELETE FROM state WHERE key = ?", (key,))

    # -- writing -----------------------------------------------------------------------------------------------

    def save_gateway(self, gateway: Gateway) -> None:
        self._insert("gateways", gateway, replace=True)

    def set_presence(self, name: str, present: bool, at: float) -> None:
        self._write("UPDATE gateways SET present = ?, last_seen = ? WHERE name = ?", (int(present), at, name))

    def save_wire(self, wire: Wire) -> None:
        """Cumulative: an older report that arrives late never lowers a newer one."""
        self._write(
            "INSERT INTO wire VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (gateway, nonce) DO UPDATE SET"
            " sent = max(sent, excluded.sent), received = max(received, excluded.received),"
            " reported_at = max(reported_at, excluded.reported_at), final = max(final, excluded.final)",
            (wire.gateway, wire.nonce, wire.sent, wire.received, wire.reported_at, int(wire.final)),
        )

    def open_round(self, round_: Round) -> None:
        self._rounds = None
        self._insert("rounds", round_)

    def close_round(
        self, round_id: int, *, at: float, outcome: str, version: int | None, training_loss: float | None = None
    ) -> None:
        self._rounds = None
        self._write(
            "UPDATE rounds SET closed_at = ?, outcome = ?, version = ?, training_loss = ? WHERE id = ?",
            (at, outcome, version, training_loss, round_id),
        )

    def set_metric(self, round_id: int, *, metric: float | None, loss: float | None, source: str) -> None:
        self._rounds = None
        self._write(
            "UPDATE rounds SET metric = ?, loss = ?, metric_source = ? WHERE id = ?", (metric, loss, source, round_id)
        )

    def save_answer(self, answer: Answer) -> None:
        self._insert("answers", answer)

    def save_verdict(self, gateway: str, round_id: int, counter: int, digest: bytes, verdict: str) -> None:
        """The counter never goes back: what an old image of a gateway's disk sends does not replace what was newer."""
        self._write(
            "INSERT INTO verdicts VALUES (?, ?, ?, ?, ?) ON CONFLICT (gateway) DO UPDATE SET round = excluded.round,"
            " counter = excluded.counter, digest = excluded.digest, verdict = excluded.verdict"
            " WHERE excluded.counter > counter",
            (gateway, round_id, counter, digest, verdict),
        )

    def owe(self, round_id: int) -> None:
        """The round's accepted updates count in the next round that is applied."""
        self._write(
            "UPDATE answers SET owed = 1 WHERE round = ? AND kind = 'update' AND verdict = 'accepted'", (round_id,)
        )

    def erase_payloads(self) -> None:
        """In the transaction that commits a version: what it contains is no longer owed, and no longer kept."""
        self._write("UPDATE answers SET owed = 0, payload = NULL WHERE payload IS NOT NULL")

    def save_version(self, version: Version) -> None:
        self._insert("versions", version)

    def save_catch_up(self, catch_up: CatchUp) -> None:
        self._insert("catch_ups", catch_up)

    def count_refused(self, channel: str, reason: str, size: int) -> None:
        self._write(
            "INSERT INTO refused VALUES (?, ?, 1, ?) ON CONFLICT (channel, reason) DO UPDATE SET"
            " messages = messages + 1, bytes = bytes + excluded.bytes",
            (channel, reason, size),
        )

    def _insert(self, table: str, row: object, *, replace: bool = False) -> None:
        names, columns, _ = _columns(type(row))  # type: ignore[arg-type]  # a type is hashable
        verb = "INSERT OR REPLACE" if replace else "INSERT"
        # Table and columns are names of this module, never data. SQLite takes True as 1.
        self._write(
            f"{verb} INTO {table} ({columns}) VALUES ({', '.join('?' * len(names))})",
            [getattr(row, name) for name in names],
        )

    # -- reading -----------------------------------------------------------------------------------------------

    def gateways(self) -> list[Gateway]:
        """By place in the roster."""
        return self._select(Gateway, "gateways", "ORDER BY roster")

    def rounds(self) -> list[Round]:
        # Asked for several times a round, and the same ever since the last change.
        if self._rounds is None or self._read_only:
            self._rounds = self._select(Round, "rounds", "ORDER BY id")
        return list(self._rounds)

    def last_round(self) -> Round | None:
        if self._rounds and not self._read_only:
            return self._rounds[-1]
        return next(iter(self._select(Round, "rounds", "ORDER BY id DESC LIMIT 1")), None)

    def round(self, round_id: int) -> Round | None:
        return next(iter(self._select(Round, "rounds", "WHERE id = ?", (round_id,))), None)

    def has_round(self, round_id: int) -> bool:
        return self._db.execute("SELECT 1 FROM rounds WHERE id = ?", (round_id,)).fetchone() is not None

    def answer(self, round_id: int, gateway: str) -> Answer | None:
        clause = "WHERE round = ? AND gateway = ?"
        return next(iter(self._select(Answer, "answers", clause, (round_id, gateway))), None)

    def losses(self, lineage: int) -> list[float]:
        """Training losses of a lineage's applied rounds, in order."""
        rows = self._db.execute(
            "SELECT training_loss FROM rounds WHERE lineage = ? AND outcome = 'applied' AND training_loss IS NOT NULL"
            " ORDER BY id",
            (lineage,),
        )
        return [float(loss) for (loss,) in rows]

    def updates_since(self, round_id: int) -> int:
        """Accepted updates of this round and all later ones."""
        row = self._db.execute(
            "SELECT count(*) FROM answers WHERE round >= ? AND kind = 'update' AND verdict = 'accepted'", (round_id,)
        ).fetchone()
        return int(row[0])

    def accepted(self, round_id: int, lineage: int) -> list[str]:
        """Gateways whose update to this round was accepted; none where the round was of another lineage."""
        rows = self._db.execute(
            "SELECT gateway FROM answers JOIN rounds ON rounds.id = answers.round"
            " WHERE round = ? AND lineage = ? AND answers.kind = 'update' AND verdict = 'accepted' ORDER BY gateway",
            (round_id, lineage),
        )
        return [str(name) for (name,) in rows]

    def answers(self, round_id: int | None = None) -> list[Answer]:
        """In order of round and arrival; payloads only where they are not erased yet."""
        if round_id is None:
            return self._select(Answer, "answers", "ORDER BY round, received_at, gateway")
        return self._select(Answer, "answers", "WHERE round = ? ORDER BY received_at, gateway", (round_id,))

    def owed(self) -> list[Answer]:
        return self._select(Answer, "answers", "WHERE owed = 1 ORDER BY round, gateway")

    def verdict(self, gateway: str) -> tuple[int, int, bytes, str] | None:
        """(round, counter, digest, verdict) of the gateway's last answer."""
        row = self._db.execute(
            "SELECT round, counter, digest, verdict FROM verdicts WHERE gateway = ?", (gateway,)
        ).fetchone()
        return None if row is None else (int(row[0]), int(row[1]), bytes(row[2]), str(row[3]))

    def wires(self) -> list[Wire]:
        return self._select(Wire, "wire", "ORDER BY gateway, reported_at")

    def versions(self, lineage: int, after: int = -1) -> list[Version]:
        return self._select(Version, "versions", "WHERE lineage = ? AND number > ? ORDER BY number", (lineage, after))

    def version(self, lineage: int, number: int) -> Version | None:
        rows = self._select(Version, "versions", "WHERE lineage = ? AND number = ?", (lineage, number))
        return next(iter(rows), None)

    def last_version(self, lineage: int) -> Version | None:
        rows = self._select(Version, "versions", "WHERE lineage = ? ORDER BY number DESC LIMIT 1", (lineage,))
        return next(iter(rows), None)

    def catch_ups(self) -> list[CatchUp]:
        return self._select(CatchUp, "catch_ups", "ORDER BY at")

    def refused(self) -> list[tuple[str, str, int, int]]:
        """(channel, reason, messages, bytes)."""
        return list(self._db.execute("SELECT channel, reason, messages, bytes FROM refused ORDER BY 1, 2"))

    def _select(self, kind: type[T], table: str, clause: str, values: Sequence[object] = ()) -> list[T]:
        names, columns, booleans = _columns(kind)  # type: ignore[arg-type]  # a type is hashable
        rows = self._db.execute(f"SELECT {columns} FROM {table} {clause}", values)  # noqa: S608
        if not booleans:
            return [kind(**dict(zip(names, row, strict=True))) for row in rows]
        return [kind(**{n: bool(v) if n in booleans else v for n, v in zip(names, row, strict=True)}) for row in rows]


@cache
def _columns(kind: Any) -> tuple[tuple[str, ...], str, frozenset[str]]:
    """Names of a row's fields, the same as SQL, and those that are true or false."""
    names = tuple(kind.__dataclass_fields__)
    return names, ", ".join(names), frozenset(_BOOLEANS & set(names))
