"""The folders in which programs keep their state: made for their user alone, and no file in them is a link elsewhere.

Owns one rule, which gateway, coordinator and bridge keep before they open a file to write it. A link in the place of a
database, of its journal or of a model would have the program write over somebody else's file, with its own rights; and
in a folder that everybody may write, such a link could come at any moment. Both are refused before anything is opened.

Refuses to know what the files hold. Modes are given as they are made; what is there already keeps its own.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

__all__ = [
    "DATABASE",
    "FILE_MODE",
    "FOLDER_MODE",
    "PlaceError",
    "check_place",
    "make_folder",
    "make_place",
    "open_state",
]

FOLDER_MODE = 0o700
FILE_MODE = 0o600

DATABASE = ("", "-wal", "-shm", "-journal")
"""What SQLite writes: the file, and beside it those with these endings."""


class PlaceError(ValueError):
    """A place that state is not to be written to. Its text names path, what is wrong, and what to do."""


def make_folder(folder: Path) -> None:
    """Make it for this user alone, where it is missing. Raises PlaceError for one that others may write; OSError."""
    folder.mkdir(parents=True, exist_ok=True, mode=FOLDER_MODE)
    _check_folder(folder)


def check_place(path: Path, suffixes: tuple[str, ...] = ("",)) -> None:
    """Nothing stands in the place of these files but files. Raises PlaceError."""
    if path.parent.is_dir():
        _check_folder(path.parent)
    for suffix in suffixes:
        place = path.with_name(path.name + suffix)
        try:
            mode = place.lstat().st_mode
        except OSError:
            continue  # nothing there, or nothing to be had: opening it tells
        if stat.S_ISLNK(mode):
            raise PlaceError(
                f"{place} is a link to {os.readlink(place)}: expected a file of our own; take the link away"
            )
        if not stat.S_ISREG(mode):
            raise PlaceError(
                f"{place} is no file: expected a file of our own, or nothing; move it away to start afresh"
            )


def make_place(path: Path) -> None:
    """For a database that SQLite is about to open: its folder and an empty file for this user alone, where they are
    missing. Raises PlaceError and OSError."""
    make_folder(path.parent)
    check_place(path, DATABASE)
    # What is there is not opened beside SQLite: closing it would give up the locks that this process has on it.
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE))


def open_state(path: Path, flags: int) -> int:
    """A descriptor of a file of our own, made for this user alone. Raises PlaceError and OSError."""
    check_place(path)
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE)


def _check_folder(folder: Path) -> None:
    mode = stat.S_IMODE(folder.stat().st_mode)
    if mode & stat.S_IWOTH:
        raise PlaceError(
            f"{folder} has mode {mode:04o}, so that everybody on this machine may write there: chmod o-w {folder}, or"
            " name another folder"
        )
