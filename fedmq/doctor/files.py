"""Files and folders: whether they are there, who may read and write them, and what disk they are on. Only looks.

`os.path` is asked whether something is there: a Path raises where a folder on the way may not be entered.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import shutil
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

from fedmq.doctor.findings import Finding, failed, ok, unknown, warned

__all__ = ["can_tell", "check_public", "check_secret", "check_state", "filesystem_of", "is_open"]

LEAST_FREE_BYTES = 32 << 20
FEW_FREE_BYTES = 256 << 20

_IN_MEMORY = {"tmpfs", "ramfs", "devtmpfs"}


def check_secret(check: str, path: Path) -> Finding:
    """A key or a password: only its owner, and at most its group, may read it; only its owner may write it."""
    mode = _mode(path)
    if isinstance(mode, str):
        return failed(check, f"{path}: {mode}", "see to it that the file is there, and to its owner")
    if mode & 0o027:
        return failed(
            check,
            f"{path}: may be {'read' if mode & 0o004 else 'changed or used'} by others ({mode:04o})",
            f"chmod 600 {path}; if others use this machine, take the key for lost and have a new one issued",
        )
    if not os.access(path, os.R_OK):
        return failed(check, f"{path}: cannot be read by user {_me()}", "run this as the program's own user")
    return ok(check, f"{path}, mode {mode:04o}")


def check_public(check: str, path: Path) -> Finding:
    """A file that all may read, and nobody but its owner may change: settings, certificates, an ACL."""
    mode = _mode(path)
    if isinstance(mode, str):
        return failed(check, f"{path}: {mode}", "see to it that the file is there, and to its owner")
    if mode & 0o002:
        return failed(check, f"{path}: anyone may change it ({mode:04o})", f"chmod o-w {path}")
    folder = path.resolve().parent
    inside = folder.stat().st_mode
    if inside & 0o002 and not inside & stat.S_ISVTX:
        return failed(check, f"{folder}: anyone may put another {path.name} there", f"chmod o-w {folder}")
    if not os.access(path, os.R_OK):
        return failed(check, f"{path}: cannot be read by user {_me()}", "run this as the program's own user")
    if mode & 0o020:
        return warned(check, f"{path}: its group may change it ({mode:04o})", f"chmod g-w {path}, unless that is meant")
    return ok(check, f"{path}, mode {mode:04o}")


def check_state(check: str, folder: Path) -> Iterator[Finding]:
    """A folder that must outlive a power cut."""
    there = next(parent for parent in (folder, *folder.resolve().parents) if os.path.exists(parent))
    if there is not folder:
        if os.access(there, os.W_OK):
            yield warned(check, f"{folder} is not there yet", "nothing, if the program has never run: it makes it")
        else:
            yield failed(check, f"{folder} is not there, or not for user {_me()}", "make it, for the program's user")
    elif not os.path.isdir(folder):
        yield failed(check, f"{folder} is no folder", "name another one in the settings, or move that file away")
        return
    elif not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        yield failed(
            check,
            f"{folder}: user {_me()} cannot write there",
            "chown it to the program's user, and run this as that user",
        )
    elif folder.stat().st_mode & 0o002:
        yield failed(check, f"{folder}: anyone may write there", f"chmod 700 {folder}")
    else:
        yield ok(check, f"{folder}, mode {stat.S_IMODE(folder.stat().st_mode):04o}")
    yield _disk(f"{check}'s disk", there)
    yield _space(f"{check}'s space", there)


def _disk(check: str, folder: Path) -> Finding:
    if os.statvfs(folder).f_flag & os.ST_RDONLY:
        return failed(
            check, f"{folder} is on a disk that is mounted for reading only", "mount it for writing; see to the disk"
        )
    kind = filesystem_of(folder)
    if kind is None:
        return unknown(check, f"which file system {folder} is on cannot be found out here")
    if kind in _IN_MEMORY:
        return failed(
            check,
            f"{folder} is in memory ({kind}): a power cut takes what was learnt and not yet sent",
            "name a folder on real storage in the settings",
        )
    return ok(check, f"{folder} is on {kind}")


def _space(check: str, folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free
    told = os.statvfs(folder)
    if told.f_files and not told.f_favail:
        return failed(check, f"{folder}: the disk takes no more files", "make room")
    if free < LEAST_FREE_BYTES:
        return failed(
            check, f"{folder}: {free >> 20:,} MiB are free", f"make room: {LEAST_FREE_BYTES >> 20} MiB at least"
        )
    if free < FEW_FREE_BYTES:
        return warned(check, f"{folder}: {free >> 20:,} MiB are free", "make room soon")
    return ok(check, f"{free >> 20:,} MiB are free")


def filesystem_of(folder: Path) -> str | None:
    """As Linux calls it; None where that cannot be found out."""
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return None
    found: tuple[int, str] | None = None
    resolved = folder.resolve()
    for line in lines:
        # "36 35 98:0 /root /mount/point options … - type source options" (proc(5)); a blank is written as \040.
        before, _, after = line.partition(" - ")
        point = Path(before.split()[4].replace("\\040", " "))
        # Of several on one point the last one counts.
        if (resolved == point or point in resolved.parents) and (found is None or len(point.parts) >= found[0]):
            found = len(point.parts), after.split()[0]
    return None if found is None else found[1]


def is_open(database: Path) -> bool | None:
    """Whether a process has an SQLite file in WAL mode open. None: this user may not look.

    Each of its connections holds a lock on one byte of the index beside it, which the kernel gives back when the
    process ends, however it ends (SQLite's "Write-Ahead Logging", os_unix.c: the dead man's switch). It is only asked
    about, so that nobody is kept waiting.
    """
    try:
        with database.with_name(f"{database.name}-shm").open("rb") as file:
            asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, _DEAD_MANS_SWITCH, 1, 0)
            told = fcntl.fcntl(file, fcntl.F_GETLK, asked)
    except FileNotFoundError:
        return False  # the last one that closes it takes the index away
    except OSError:
        return None
    kind: int = struct.unpack(_FLOCK, told[: len(asked)])[0]
    return kind != fcntl.F_UNLCK


def can_tell(path: Path) -> bool:
    """Whether this user can find out about a file: it may be read, or is surely not there."""
    try:
        path.open("rb").close()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


_FLOCK = "hhqqi"
"""As `struct flock` begins on Linux."""
_DEAD_MANS_SWITCH = 128


def _mode(path: Path) -> int | str:
    try:
        told = path.stat()
    except OSError as error:
        return error.strerror or str(error)
    return stat.S_IMODE(told.st_mode) if stat.S_ISREG(told.st_mode) else "is no file"


def _me() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
