"""The coordinator's state directory: who works in it, and how a backup takes the place of what is there.

Owns the layout (`ledger.sqlite`, `models/`, `lock`) and two rules. One program at a time: whoever works in the folder
holds a lock on a file in it, which the kernel gives back when that program ends, however it ends. And nothing is ever
deleted: what a backup replaces is moved into a folder beside it. A recovery that was cut short is noticed by what it
left, and the coordinator does not start on it: half of two states would be neither.

A backup starts a new lineage, for the fleet has gone on since: gateways know rounds and versions that the backup does
not, and would stay silent. They keep nothing of the line that was lost, and go on from the backup's newest version.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

import msgspec
from fedmq_protocol.state import FILE_MODE, FOLDER_MODE, PlaceError, make_folder, open_state
from fedmq_protocol.task import Task

from fedmq_coordinator.ledger import Ledger, LedgerError
from fedmq_coordinator.lineage import Lineage
from fedmq_coordinator.models import ModelError, ModelStore

__all__ = ["FolderError", "hold", "is_held", "recover"]

LEDGER = "ledger.sqlite"
MODELS = "models"
PARTS = (LEDGER, f"{LEDGER}-wal", f"{LEDGER}-shm", MODELS)
RECOVERING = "recovering"
"""Folder of a backup that has been checked and is not in its place yet."""


class FolderError(ValueError):
    """The state directory is not to be worked in: another program does, or it is half of two states."""


def hold(state_dir: Path, *, recovering: bool = False) -> IO[bytes]:
    """Take the folder for this process; it is given back when what is returned is closed, or the process ends.

    Raises FolderError where another one holds it, or a recovery was cut short.
    """
    path = state_dir / "lock"
    try:
        make_folder(state_dir)
        file = os.fdopen(open_state(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "ab")
    except PlaceError as error:
        raise FolderError(str(error)) from error
    except OSError as error:
        raise FolderError(
            f"cannot use the state directory {state_dir}: {error.strerror or error}; see to its owner, and whether its"
            " disk is mounted for writing"
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise FolderError(f"another coordinator works in {state_dir}: stop it first, or name another folder") from error
    # A second lock, of the kind that can be asked about without being taken; what counts is the first.
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if not recovering and (state_dir / RECOVERING).exists():
        file.close()
        raise FolderError(
            f"a recovery of {state_dir} was cut short: run `fedmq coordinator recover BACKUP` again before the"
            " coordinator starts"
        )
    return file


def is_held(state_dir: Path) -> bool:
    """Whether another process holds the folder. Takes nothing, so that it is in nobody's way."""
    try:
        with (state_dir / "lock").open("rb") as file:
            asked = struct.pack("hhqqi", fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
            kind: int = struct.unpack("hhqqi", fcntl.fcntl(file, fcntl.F_GETLK, asked)[: len(asked)])[0]
            return kind != fcntl.F_UNLCK
    except OSError:
        return False  # no such folder, or nobody has worked in it yet


def recover(state_dir: Path, backup: Path, federation: str, *, now: float) -> list[str]:
    """Put a backup in the place of what is in the state directory; returns what was done, in sentences.

    `backup` is a copy of a state directory, or of its ledger with the models beside it. It is only read. Raises
    FolderError, LedgerError or ModelError; the state directory is as it was then.
    """
    source = backup.parent if backup.is_file() else backup
    ledger = backup if backup.is_file() else backup / LEDGER
    if not ledger.is_file():
        raise FolderError(f"no backup at {backup}: expected a copy of a state directory, or of its {LEDGER}")
    if state_dir.exists() and source.resolve() == state_dir.resolve():
        raise FolderError(f"the backup {backup} is the state directory itself: name a copy of it")
    lock = hold(state_dir, recovering=True)
    try:
        prepared = state_dir / RECOVERING
        aside = state_dir / f"before-{datetime.fromtimestamp(now, tz=UTC):%Y%m%d-%H%M%S}"
        if aside.exists():
            raise FolderError(f"{aside} is there already: wait for a second")
        interrupted = prepared.exists() and not (state_dir / LEDGER).exists()
        # What an earlier recovery has prepared and not put in place is a copy, and can be made again.
        shutil.rmtree(prepared, ignore_errors=True)
        try:
            done = _prepare(prepared, ledger, source / MODELS, federation, now)
        except (ValueError, OSError) as error:
            if not interrupted:
                shutil.rmtree(prepared, ignore_errors=True)
            if isinstance(error, OSError):
                raise FolderError(f"cannot copy {backup} to {prepared}: {error.strerror or error}") from error
            raise
        moved = _exchange(state_dir, prepared, aside)
        if moved:
            done.append(f"what was in {state_dir} is in {aside} now")
        done.append("start the coordinator: the fleet follows")
        return done
    finally:
        lock.close()


def _prepare(prepared: Path, ledger_file: Path, models: Path, federation: str, now: float) -> list[str]:
    """A whole state directory with a new lineage for each task, on disk when it returns."""
    prepared.mkdir(parents=True, mode=FOLDER_MODE)
    for suffix in ("", "-wal"):
        part = ledger_file.with_name(ledger_file.name + suffix)
        if part.is_file():
            copy = prepared / (LEDGER + suffix)
            shutil.copyfile(part, copy)
            copy.chmod(FILE_MODE)
    if models.is_dir():
        shutil.copytree(models, prepared / MODELS)
    ledger = Ledger(prepared / LEDGER)
    try:
        store = ModelStore(prepared / MODELS)
        tasks = ledger.tasks()
        if not tasks:
            raise FolderError(f"the backup {ledger_file} holds no task: nothing can be recovered from it")
        done = [_go_on(ledger, store, task.name, federation, now) for task in tasks if task.state != "stopped"]
        ledger.commit()
    finally:
        ledger.close()
    for path in [*prepared.rglob("*"), prepared]:
        _sync(path)
    return done


def _go_on(ledger: Ledger, models: ModelStore, name: str, federation: str, now: float) -> str:
    book = ledger.book(name)
    try:
        task = msgspec.msgpack.decode(book.get("task_body") or b"", type=Task)
    except msgspec.MsgspecError as error:
        raise LedgerError(f"task {name!r} of the backup cannot be read: {error}; take another backup") from error
    book.put("task", task.digest)  # fields may have come since the backup was made
    lineage = int(book.get("lineage") or 0)
    before = b""
    for version in book.versions(lineage):
        if version.number and version.parent != before:
            raise LedgerError(
                f"version {version.number} of task {name!r} in the backup does not follow from the one before: take"
                " another backup"
            )
        before = version.digest
    newest = book.last_version(lineage)
    if newest is None:
        raise LedgerError(f"task {name!r} of the backup has no version: take another backup")
    try:
        line = Lineage(federation, task, book, models, now=now, bundle=book.get("bundle"))
    except ModelError as error:
        raise ModelError(f"the backup lacks a model of task {name!r}: {error}") from error
    if line.version == 0:
        line.start_afresh(now)
        return f"task {name!r}: lineage {line.number} starts afresh, for the backup has no version beyond the start"
    line.go_back(lineage, newest.number, now)
    return f"task {name!r}: lineage {line.number} goes on from version {newest.number} of lineage {lineage}"


def _exchange(state_dir: Path, prepared: Path, aside: Path) -> bool:
    """Each step is a rename within one folder; while `prepared` is there no coordinator starts."""
    old = [state_dir / part for part in PARTS if (state_dir / part).exists()]
    if old:
        aside.mkdir(mode=FOLDER_MODE)
        for path in old:
            path.rename(aside / path.name)
        _sync(aside)
    for path in prepared.iterdir():
        path.rename(state_dir / path.name)
    _sync(state_dir)
    prepared.rmdir()
    _sync(state_dir)
    return bool(old)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
