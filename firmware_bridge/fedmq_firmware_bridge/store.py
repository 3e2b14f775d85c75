"""What sensors said, on disk: a ring of bounded size in one SQLite file, which survives whatever ends its writer.

Owns the file, and the rule of what stays when it is full. Refuses to know ports, frames and windows. Times are Unix
seconds, and arguments.

    run    consecutive samples of one sensor, at one rate, scale and calibration. No sample is missing inside one
    batch  what of a run was written at once, with a CRC-32
    label  a span of time of one machine, and what was the matter with it. It may come long after the samples

Rules:
- One `Recorder` at a time writes samples; it holds a lock that the kernel gives back. Any number of `Store`s read
  meanwhile, and may add labels.
- Samples gather in memory and are written by `flush`, one transaction each: SD cards wear by writes. What ends the
  process costs what has gathered since the last flush, and nothing else; the next start says so.
- Above `max_bytes` the oldest batches go. Those with a label go last, as long as they take at most half of the room:
  labels are dear, and a sensor that is heard for months must still find room.
- Of two labels for the same time the one that came later holds. `UNLABELLED` takes a label back, and `SET_ASIDE` is
  no reason to keep anything longer either.
- What is damaged on disk is missing, told by `StoreError`, and never given out as signal.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import sqlite3
import threading
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from fedmq_firmware_bridge.frames import Channel, Int16s
from fedmq_firmware_bridge.readings import Float32s, Stretch

__all__ = ["SET_ASIDE", "UNLABELLED", "Lost", "Piece", "Recorder", "Run", "SensorInfo", "Store", "StoreError"]

UNLABELLED = "unlabelled"
SET_ASIDE = "set-aside"
"""Label of what is not learnt from any more: the machine is another one since, or its sensor sits elsewhere."""

SCHEMA_VERSION = 1
ROW_BYTES = 200
"""What a batch takes beside its samples, about."""
LABELLED_SHARE = 0.5
ROOM_SHARE = 0.02
"""So much is freed at once."""
WAL_BYTES = 16 << 20
"""To which the log is cut back after a reader has held it up."""
MAX_LABEL = 64
MAX_NAME = 64
MAX_LABELS = 100_000
BUSY_MS = 10_000

DType = Literal["<i2", "<f4"]


class StoreError(ValueError):
    """A store that cannot be used, or a part of it: what was expected, what came, what to do."""


@dataclass(frozen=True, kw_only=True)
class SensorInfo:
    """Who a sensor is, and on which machine it sits."""

    source: str
    """Where it is heard: a port or topic, by its name in the settings."""
    number: int
    """Which one there."""
    name: str
    machine: str
    channels: tuple[Channel, ...] = ()
    """Empty while the sensor has not said what it measures."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A part of a run for which one label holds. Samples count from the run's first one."""

    start: int
    stop: int
    label: str


@dataclass(frozen=True, kw_only=True)
class _Batch:
    id: int
    first: int
    count: int
    taken_at: float
    ended_at: float


@dataclass(frozen=True, kw_only=True)
class Run:
    """Consecutive samples of one sensor, as far as they are still there."""

    id: int
    sensor: SensorInfo
    rate_hz: float
    scale: float
    width: int
    """Channels."""
    dtype: DType
    batches: tuple[_Batch, ...]

    @property
    def start(self) -> int:
        """The first sample that is there: the ring may have taken those before."""
        return self.batches[0].first

    @property
    def stop(self) -> int:
        return self.batches[-1].first + self.batches[-1].count

    @property
    def taken_at(self) -> float:
        return self.batches[0].taken_at

    @property
    def ended_at(self) -> float:
        return self.batches[-1].ended_at

    def sample_at(self, at: float) -> int:
        """The first sample at or after a time; `stop` where there is none."""
        return _sample_at(self, at)

    def time_of(self, sample: int) -> float:
        """When a sample was taken, or for `stop` when the last one ended."""
        for batch in self.batches:
            if sample < batch.first + batch.count:
                share = max(0, sample - batch.first) / batch.count
                return batch.taken_at + share * (batch.ended_at - batch.taken_at)
        return self.ended_at


@dataclass(frozen=True, kw_only=True)
class Lost:
    """What a writer that was killed may have taken with it."""

    opened_at: float
    flushed_at: float
    """Its last flush: what came after it is gone."""
    flush_seconds: float
    flush_bytes: int
    """At most so much had gathered since."""

    def __str__(self) -> str:
        return (
            f"the bridge before this one was not stopped in order: what it read after its last flush is gone, "
            f"at most {self.flush_seconds:g} s or {self.flush_bytes:,} bytes of samples; all that was flushed is here"
        )


@dataclass(frozen=True, kw_only=True)
class _Label:
    from_at: float
    to_at: float
    label: str


@dataclass(slots=True)
class _Load:
    """What of a run is to be written at once."""

    run: _Growing
    blocks: list[Int16s | Float32s] = field(default_factory=list)
    taken_at: float = 0.0
    ended_at: float = 0.0


@dataclass(slots=True)
class _Growing:
    """The run that a sensor is in."""

    info: SensorInfo
    shape: tuple[float, float, int, DType]
    id: int | None = None
    written: int = 0
    """Samples on disk."""


class Store:
    """An existing store, to read and to label. Raises StoreError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise StoreError(f"{path}: expected a bridge's store, found none; `fedmq bridge run` makes it")
        try:
            self._db = _connect(path)
            found = self._db.execute("PRAGMA user_version").fetchone()[0]
        except sqlite3.Error as error:
            raise StoreError(f"{path}: expected a bridge's store, got: {error}") from error
        if found != SCHEMA_VERSION:
            self._db.close()
            raise StoreError(f"{path}: expected a bridge's store of schema {SCHEMA_VERSION}, got {found}")

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """All that is read inside belongs together, whatever the bridge writes meanwhile."""
        self._execute("BEGIN")
        try:
            yield
        finally:
            self._execute("ROLLBACK")

    def mark(self) -> tuple[int, int, int]:
        """Samples that are there, the newest batch and the newest label: they tell cheaply whether anything is new."""
        samples, batch = self._execute("SELECT total(count), max(id) FROM batches").fetchone()
        label = self._execute("SELECT max(id) FROM labels").fetchone()[0]
        return int(samples), batch or 0, label or 0

    def runs(self, *, machine: str | None = None) -> list[Run]:
        """Oldest first."""
        batches: dict[int, list[_Batch]] = {}
        for run, *fields in self._execute(
            "SELECT run, id, first, count, taken_at, ended_at FROM batches ORDER BY run, first"
        ):
            number, first, count, taken_at, ended_at = fields
            batches.setdefault(run, []).append(
                _Batch(id=number, first=first, count=count, taken_at=taken_at, ended_at=ended_at)
            )
        rows = self._execute(
            "SELECT id, source, number, name, machine, channels, rate_hz, scale, width, dtype FROM runs "
            "WHERE ?1 IS NULL OR machine = ?1 ORDER BY id",
            (machine,),
        )
        runs = []
        for row in rows:
            number, *who, channels, rate_hz, scale, width, dtype = row
            if number not in batches:
                continue
            source, sensor, name, at_machine = who
            info = SensorInfo(
                source=source, number=sensor, name=name, machine=at_machine, channels=_channels_of(channels)
            )
            # A ring that took a labelled batch's elders leaves a hole: what is behind it is another run.
            runs += [
                Run(id=number, sensor=info, rate_hz=rate_hz, scale=scale, width=width, dtype=dtype, batches=tuple(part))
                for part in _unbroken(batches[number])
            ]
        return runs

    def pieces(self, run: Run) -> list[Piece]:
        """The run, whole, cut where its label changes."""
        labels = self._labels(run.sensor.machine, run.taken_at, run.ended_at)
        edges = {run.start, run.stop}
        spans = []
        for label in labels:
            start, stop = _sample_at(run, label.from_at), _sample_at(run, label.to_at)
            spans.append((start, stop, label.label))
            edges |= {start, stop}
        pieces: list[Piece] = []
        ordered = sorted(edges)
        for start, stop in itertools.pairwise(ordered):
            name = next((text for low, high, text in reversed(spans) if low <= start and stop <= high), UNLABELLED)
            if pieces and pieces[-1].label == name:
                pieces[-1] = Piece(start=pieces[-1].start, stop=stop, label=name)
            else:
                pieces.append(Piece(start=start, stop=stop, label=name))
        return pieces

    def read(self, run: Run, start: int, stop: int) -> Int16s | Float32s:
        """Samples `[start, stop)` of the run, (n, channels), in steps. Raises StoreError where they are damaged or
        gone."""
        parts = []
        for batch in run.batches:
            low, high = max(start, batch.first), min(stop, batch.first + batch.count)
            if low >= high:
                continue
            row = self._execute("SELECT crc, samples FROM samples WHERE batch = ?", (batch.id,)).fetchone()
            if row is None:
                raise StoreError(f"{self.path}: samples of {run.sensor.name} are gone: the ring has gone round")
            if zlib.crc32(row[1]) != row[0] or len(row[1]) != batch.count * run.width * int(run.dtype[2]):
                raise StoreError(f"{self.path}: samples of {run.sensor.name} are damaged on disk (batch {batch.id})")
            values = np.frombuffer(row[1], dtype=run.dtype).reshape(-1, run.width)
            parts.append(values[low - batch.first : high - batch.first])
        if sum(map(len, parts)) != stop - start:
            raise StoreError(f"{self.path}: expected samples {start} to {stop} of {run.sensor.name}, not all are there")
        return np.concatenate(parts)

    def label(self, machine: str, from_at: float, to_at: float, label: str, *, noted_at: float) -> int:
        """Give a label to a machine's span of time, and say how many batches it meets. Durable when it returns."""
        self.label_all(machine, [(from_at, to_at, label)], noted_at=noted_at)
        row = self._execute(
            "SELECT count(*) FROM batches JOIN runs ON runs.id = batches.run "
            "WHERE machine = ? AND taken_at < ? AND ended_at > ?",
            (machine, to_at, from_at),
        ).fetchone()
        return int(row[0])

    def label_all(self, machine: str, spans: Sequence[tuple[float, float, str]], *, noted_at: float) -> None:
        """Several labels of one machine (from, to, label), in this order, all or none. Durable when it returns."""
        _check_text("machine", machine, MAX_NAME)
        for from_at, to_at, label in spans:
            _check_text("label", label, MAX_LABEL)
            if label.startswith(".") or "/" in label:
                raise StoreError(f"label: expected a name that could be a folder's, got {label!r}")
            if not from_at < to_at:
                raise StoreError("label: expected a time from which it holds, and a later one to which")
        with self._transaction():
            if self._execute("SELECT count(*) FROM labels").fetchone()[0] + len(spans) > MAX_LABELS:
                raise StoreError(f"{self.path}: expected at most {MAX_LABELS:,} labels")
            for from_at, to_at, label in spans:
                self._execute(
                    "INSERT INTO labels (machine, from_at, to_at, label, noted_at) VALUES (?, ?, ?, ?, ?)",
                    (machine, from_at, to_at, label, noted_at),
                )

    def labels(self) -> list[tuple[str, float, float, str]]:
        """Machine, from, to and label, as they came."""
        return list(self._execute("SELECT machine, from_at, to_at, label FROM labels ORDER BY id"))

    def machines(self) -> list[str]:
        return [row[0] for row in self._execute("SELECT DISTINCT machine FROM runs ORDER BY machine")]

    def reports(self) -> dict[str, Any]:
        """What the bridge noted last of its sources and sensors; empty where it has noted nothing."""
        row = self._execute("SELECT value FROM meta WHERE key = 'reports'").fetchone()
        return {} if row is None else dict(json.loads(row[0]))

    def sample_bytes(self) -> int:
        return int(self._execute("SELECT total(bytes) FROM batches").fetchone()[0])

    def _labels(self, machine: str, from_at: float, to_at: float) -> list[_Label]:
        rows = self._execute(
            "SELECT from_at, to_at, label FROM labels WHERE machine = ? AND from_at < ? AND to_at > ? ORDER BY id",
            (machine, to_at, from_at),
        )
        return [_Label(from_at=row[0], to_at=row[1], label=row[2]) for row in rows]

    def _execute(self, sql: str, values: Sequence[Any] | Mapping[str, Any] = ()) -> sqlite3.Cursor:
        try:
            return self._db.execute(sql, values)
        except sqlite3.Error as error:
            raise StoreError(
                f"{self.path}: {error}; is the disk full or damaged, or may this user not write?"
            ) from error

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All or nothing."""
        self._execute("BEGIN IMMEDIATE")
        try:
            yield
            self._execute("COMMIT")
        except BaseException:
            # SQLite rolls back by itself where the disk is full, and a second time would be an error of its own.
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise


class Recorder(Store):
    """The one writer of a store. `lost` says what the writer before it took with it. Raises StoreError.

    `flush_seconds` and `flush_bytes` are the caller's promise of how often it flushes; the next start repeats them.
    """

    def __init__(
        self, path: Path, *, max_bytes: int, opened_at: float, flush_seconds: float = 0.0, flush_bytes: int = 0
    ) -> None:
        self._lock = _hold(path)
        try:
            if not path.exists():
                _create(path)
            super().__init__(path)
            self._max_bytes = max_bytes
            self._flush_seconds, self._flush_bytes = flush_seconds, flush_bytes
            self._gathering = threading.Lock()
            """Over what gathers. Never held while the disk works: it may take seconds, and ports do not wait."""
            self._growing: dict[tuple[str, int], _Growing] = {}
            self._pending: dict[int, _Load] = {}
            """By the identity of their runs, in the order in which they began."""
            self.pending_bytes = 0
            self._kept_bytes = self.sample_bytes()
            self._opened_at = opened_at
            self.lost = self._take_over(opened_at)
        except BaseException:
            self._lock.close()
            raise

    def _take_over(self, opened_at: float) -> Lost | None:
        row = self._execute("SELECT value FROM meta WHERE key = 'open'").fetchone()
        with self._transaction():
            self._note_open(opened_at)
        return None if row is None else Lost(**json.loads(row[0]))

    def _note_open(self, flushed_at: float) -> None:
        note = {
            "opened_at": self._opened_at,
            "flushed_at": flushed_at,
            "flush_seconds": self._flush_seconds,
            "flush_bytes": self._flush_bytes,
        }
        self._put("open", note)

    def append(self, info: SensorInfo, stretch: Stretch, clock_offset: float) -> None:
        """Take a stretch, from any thread. `clock_offset` is Unix time less the clock of its `taken_at`."""
        values = stretch.values
        shape = (stretch.rate_hz, stretch.scale, values.shape[1], _dtype(values))
        key = (info.source, info.number)
        taken_at = stretch.taken_at + clock_offset
        with self._gathering:
            run = self._growing.get(key)
            if run is None or not stretch.follows or run.shape != shape or run.info != info:
                run = self._growing[key] = _Growing(info=info, shape=shape)
            load = self._pending.get(id(run))
            if load is None:
                load = self._pending[id(run)] = _Load(run=run, taken_at=taken_at)
            load.blocks.append(values)
            load.ended_at = max(taken_at + len(values) / stretch.rate_hz, load.taken_at)
            self.pending_bytes += values.nbytes

    def forget_pending(self) -> int:
        """Drop what has gathered, where the disk does not take it, and say how many bytes that was: a gap."""
        with self._gathering:
            dropped, self.pending_bytes = self.pending_bytes, 0
            self._growing.clear()
            self._pending.clear()
        return dropped

    def flush(self, now: float, reports: Mapping[str, Any]) -> int:
        """Write what has gathered, and `reports` with it. Bytes of samples that were written; durable when it returns.

        Raises StoreError where the disk does not take it: nothing has changed then, and the same can be tried again.
        """
        with self._gathering:
            loads, self._pending = self._pending, {}
        written = sum(block.nbytes for load in loads.values() for block in load.blocks)
        ids: list[int] = []
        try:
            with self._transaction():
                ids += [self._write(load) for load in loads.values()]
                self._put("reports", reports)
                self._note_open(now)
                kept = self._kept_bytes + written + ROW_BYTES * len(loads)
                kept -= self._evict(kept)
        except StoreError:
            with self._gathering:
                self._put_back(loads)
            raise
        with self._gathering:
            self._count_pending()
        self._kept_bytes = kept
        for load, number in zip(loads.values(), ids, strict=True):
            load.run.id = number
            load.run.written += sum(map(len, load.blocks))
        return written

    def _put_back(self, loads: dict[int, _Load]) -> None:
        for key, load in loads.items():
            later = self._pending.get(key)
            if later is not None:
                load.blocks += later.blocks
                load.ended_at = later.ended_at
        self._pending = loads | {key: later for key, later in self._pending.items() if key not in loads}
        self._count_pending()

    def _count_pending(self) -> None:
        self.pending_bytes = sum(block.nbytes for load in self._pending.values() for block in load.blocks)

    def close(self) -> None:
        """Give the store back, in order where all is flushed: the next start then finds that nothing was lost."""
        if not self.pending_bytes:
            self._execute("DELETE FROM meta WHERE key = 'open'")
        super().close()
        self._lock.close()

    def _write(self, load: _Load) -> int:
        """The id of its run."""
        run = load.run
        rate_hz, scale, width, dtype = run.shape
        if run.id is None or not self._execute("SELECT 1 FROM runs WHERE id = ?", (run.id,)).fetchone():
            # The second: of a run that goes on, the ring may have taken all that was there.
            info = run.info
            channels = json.dumps([[one.name, one.unit, one.offset, one.gain] for one in info.channels])
            number = self._execute(
                "INSERT INTO runs (source, number, name, machine, channels, rate_hz, scale, width, dtype) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (info.source, info.number, info.name, info.machine, channels, rate_hz, scale, width, dtype),
            ).lastrowid
            assert number is not None
        else:
            number = run.id
        values = np.concatenate(load.blocks).astype(dtype, copy=False)
        samples = values.tobytes()
        batch = self._execute(
            "INSERT INTO batches (run, first, count, taken_at, ended_at, bytes) VALUES (?, ?, ?, ?, ?, ?)",
            (number, run.written, len(values), load.taken_at, load.ended_at, len(samples) + ROW_BYTES),
        ).lastrowid
        self._execute("INSERT INTO samples VALUES (?, ?, ?)", (batch, zlib.crc32(samples), samples))
        return number

    def _evict(self, total: int) -> int:
        """Where `total` bytes are too many, take the oldest until there is some room again; bytes that went."""
        if total <= self._max_bytes:
            return 0
        # All batches are looked at, which is not to happen with every flush.
        over = total - int(self._max_bytes * (1 - ROOM_SHARE))
        rows = self._execute(
            "SELECT batches.id, bytes, EXISTS (SELECT 1 FROM labels WHERE labels.machine = runs.machine "
            "AND from_at < ended_at AND to_at > taken_at AND label NOT IN (?, ?)) "
            "FROM batches JOIN runs ON runs.id = batches.run ORDER BY batches.id",
            (UNLABELLED, SET_ASIDE),
        ).fetchall()
        labelled = sum(row[1] for row in rows if row[2])
        gone: dict[int, int] = {}
        spare = labelled - int(self._max_bytes * LABELLED_SHARE)
        """So many labelled bytes are above their share."""
        for number, size, has_label in rows:
            if over <= 0:
                break
            if has_label:
                if spare <= 0:
                    continue
                spare -= size
            gone[number] = size
            over -= size
        # One label for all there is leaves nothing else to take.
        for number, size, _ in rows:
            if over <= 0:
                break
            if number not in gone:
                gone[number] = size
                over -= size
        for number in gone:
            self._execute("DELETE FROM samples WHERE batch = ?", (number,))
            self._execute("DELETE FROM batches WHERE id = ?", (number,))
        self._execute("DELETE FROM runs WHERE id NOT IN (SELECT run FROM batches)")
        return sum(gone.values())

    def _put(self, key: str, value: Mapping[str, Any]) -> None:
        self._execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, json.dumps(value)))


def _connect(path: Path) -> sqlite3.Connection:
    # A bridge flushes from its main thread and is filled from those of its ports, one at a time.
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    db.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
    db.execute("PRAGMA synchronous = FULL")
    # Debian's SQLite writes zeros over what is deleted: half as many bytes again on a ring that has gone round.
    db.execute("PRAGMA secure_delete = OFF")
    db.execute(f"PRAGMA journal_size_limit = {WAL_BYTES}")
    return db


def _create(path: Path) -> None:
    """Whole or not at all: a writer that is killed here leaves a file that the next one replaces."""
    draft = path.with_name(path.name + ".new")
    for left in (draft, draft.with_name(draft.name + "-wal"), draft.with_name(draft.name + "-shm")):
        left.unlink(missing_ok=True)
    try:
        # SQLite gives its journals the mode of the file. A gateway of the same group may read it.
        os.close(os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640))
        db = _connect(draft)
        db.executescript(_SCHEMA)
        db.close()
    except (sqlite3.Error, OSError) as error:
        raise StoreError(f"cannot make the store {path}: {error}; is there room, and may this user write?") from error
    draft.rename(path)


_SCHEMA = f"""
PRAGMA journal_mode = WAL;
BEGIN;
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE runs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    source TEXT NOT NULL, number INTEGER NOT NULL, name TEXT NOT NULL, machine TEXT NOT NULL,
    channels TEXT NOT NULL,               -- JSON: name, unit, offset and gain of each
    rate_hz REAL NOT NULL, scale REAL NOT NULL, width INTEGER NOT NULL, dtype TEXT NOT NULL
) STRICT;
CREATE TABLE batches (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    run INTEGER NOT NULL, first INTEGER NOT NULL, count INTEGER NOT NULL,
    taken_at REAL NOT NULL, ended_at REAL NOT NULL,
    bytes INTEGER NOT NULL
) STRICT;
-- Apart, so that going through batches reads no samples.
CREATE TABLE samples (batch INTEGER PRIMARY KEY, crc INTEGER NOT NULL, samples BLOB NOT NULL) STRICT;
CREATE INDEX batches_of_run ON batches (run, first);
CREATE TABLE labels (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    machine TEXT NOT NULL, from_at REAL NOT NULL, to_at REAL NOT NULL, label TEXT NOT NULL, noted_at REAL NOT NULL
) STRICT;
CREATE INDEX labels_of_machine ON labels (machine, from_at);
PRAGMA user_version = {SCHEMA_VERSION};
COMMIT;
"""


def _hold(path: Path) -> IO[bytes]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
        lock = path.with_name(path.name + ".lock")
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.fdopen(os.open(lock, flags, 0o640), "ab")
    except OSError as error:
        raise StoreError(f"cannot use the folder {path.parent}: {error.strerror or error}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise StoreError(f"another bridge writes to {path}: stop it first, or name another store") from error
    return file


def _dtype(values: Int16s | Float32s) -> DType:
    return "<i2" if values.dtype == np.int16 else "<f4"


def _unbroken(batches: Sequence[_Batch]) -> Iterator[list[_Batch]]:
    part: list[_Batch] = []
    for batch in batches:
        if part and part[-1].first + part[-1].count != batch.first:
            yield part
            part = []
        part.append(batch)
    yield part


def _sample_at(run: Run, at: float) -> int:
    """The first sample at or after a time. Each batch has its own times, so that a wrong rate adds nothing up."""
    for batch in run.batches:
        if at < batch.ended_at:
            share = max(0.0, (at - batch.taken_at) / max(batch.ended_at - batch.taken_at, 1e-9))
            return batch.first + min(batch.count, int(np.ceil(share * batch.count)))
    return run.stop


@lru_cache(maxsize=64)
def _channels_of(text: str) -> tuple[Channel, ...]:
    return tuple(
        Channel(name=name, unit=unit, offset=offset, gain=gain) for name, unit, offset, gain in json.loads(text)
    )


def _check_text(what: str, text: str, most: int) -> None:
    if not 0 < len(text) <= most or not text.isprintable() or text != text.strip():
        raise StoreError(f"{what}: expected 1 to {most} printable characters, got {text[:most]!r}")
