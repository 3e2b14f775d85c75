"""Files that are there whole or not at all, and one program at a time in a folder.

Owns how files of a CA and of an identity come to the disk: each is written beside its place, flushed, and renamed, so
that a program that reads it meanwhile, or after a power cut, finds the old one or the new one. Refuses to know what is
in them. What is secret is readable by its owner alone from its first byte on.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

__all__ = ["PUBLIC", "SECRET", "FolderError", "is_secret", "locked", "make", "put", "put_all", "read"]

SECRET = 0o600
PUBLIC = 0o644

LOCK = "lock"
LOCK_SECONDS = 15.0
"""A command waits so long for another one that works in the folder."""

MAX_BYTES = 64 << 20


class FolderError(ValueError):
    """A folder or a file that cannot be used: which one, why, and what to do."""


def is_secret(name: str) -> bool:
    """By its name: keys are for their owner's eyes."""
    return name.endswith((".key", ".key.next"))


def make(folder: Path) -> None:
    """The folder, for its owner alone. One that is there stays as it is."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise FolderError(f"cannot make the folder {folder}: {error.strerror}") from None


def put(path: Path, data: bytes, mode: int | None = None) -> None:
    """Write a file in one step. `mode` is SECRET for a name that says so, else PUBLIC."""
    put_all(path.parent, {path.name: data}, mode)


def put_all(folder: Path, files: Mapping[str, bytes], mode: int | None = None) -> None:
    """Write files, all of them first and then renamed in this order: a full disk changes nothing."""
    ready: list[tuple[Path, Path]] = []
    try:
        try:
            for name, data in files.items():
                beside = folder / f".{name}.{secrets.token_hex(4)}"
                wanted = mode if mode is not None else SECRET if is_secret(name) else PUBLIC
                ready.append((beside, folder / name))
                _write(beside, data, wanted)
            for beside, path in ready:
                os.replace(beside, path)
        finally:
            for beside, _ in ready:
                beside.unlink(missing_ok=True)
        _flush(folder)
    except OSError as error:
        raise FolderError(
            f"cannot write {', '.join(files)} in {folder}: {error.strerror}; see to its owner and its disk"
        ) from None


def _write(path: Path, data: bytes, mode: int) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), "wb") as file:
        os.fchmod(file.fileno(), mode)  # whatever the umask
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _flush(folder: Path) -> None:
    """Renames are on disk as well."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def read(path: Path, otherwise: str = "") -> bytes:
    """Raises FolderError, with what to do where it is not there."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise FolderError(f"{path}: not there{'; ' + otherwise if otherwise else ''}") from None
    except OSError as error:
        raise FolderError(f"{path}: cannot be read: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise FolderError(f"{path}: expected at most {MAX_BYTES:,} bytes, got more")
    return data


@contextmanager
def locked(folder: Path, seconds: float = LOCK_SECONDS) -> Iterator[None]:
    """One program at a time; given back by the kernel however the program ends. Raises FolderError."""
    try:
        file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, SECRET)
    except OSError as error:
        raise FolderError(f"cannot work in {folder}: {error.strerror}") from None
    until = time.monotonic() + seconds
    try:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise FolderError(f"another command works in {folder}; try again when it has ended") from None
                time.sleep(0.02)
        yield
    finally:
        os.close(file)
