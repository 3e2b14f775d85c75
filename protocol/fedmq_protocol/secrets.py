"""Secrets in files: who may touch such a file, and how it is read.

Owns the rules for passwords, private keys and settings files. A file is judged by the descriptor that it is then read
from, so that nobody can put another one in its place between the look and the reading:

- a secret is refused where others may read or write it, or its group may write it;
- settings are refused where others may write them or replace them in their folder; their group may (Ubuntu's umask is
  002);
- `credential:NAME` in a settings file is the file that systemd hands to the service (systemd.exec(5), LoadCredential=).

Refuses to know what a secret is for. No message holds what a file holds.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = [
    "CREDENTIAL",
    "SecretError",
    "check_keys",
    "credential",
    "open_secret",
    "open_settings",
    "read_secret",
    "writable_by_others",
]

CREDENTIAL = "credential:"
"""Begins the value of a setting that names a credential of systemd."""

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,255}")


class SecretError(ValueError):
    """A file that is not to be trusted with a secret, or cannot be read. Its text names path, mode and what to do."""


def read_secret(path: Path, most: int) -> bytes:
    """The whole file, of at most so many bytes. Raises SecretError."""
    with open_secret(path) as file:
        content = b""
        while len(content) <= most and (part := os.read(file, most + 1 - len(content))):
            content += part
    if len(content) > most:
        raise SecretError(f"{path}: expected at most {most:,} bytes, got more")
    return content


@contextmanager
def open_secret(path: Path) -> Iterator[int]:
    """The descriptor of a file that has been judged; for a library that only takes a path, `/proc/self/fd/N` is that
    very file. Raises SecretError."""
    file = _open(path)
    try:
        state = os.fstat(file)
        if not stat.S_ISREG(state.st_mode):
            raise SecretError(f"{path}: expected a file with a secret, got something else")
        mode = stat.S_IMODE(state.st_mode)
        wrong = [
            what
            for bit, what in (
                (stat.S_IROTH, "everybody on this machine may read it"),
                (stat.S_IWOTH, "everybody on this machine may write it"),
                (stat.S_IWGRP, "its group may write it"),
            )
            if mode & bit
        ]
        if wrong:
            raise SecretError(f"{path}: holds a secret and has mode {mode:04o}, so that {wrong[0]}: chmod 600 {path}")
        yield file
    finally:
        os.close(file)


@contextmanager
def open_settings(path: Path) -> Iterator[int]:
    """The descriptor of a settings file that only those may change who are meant to. Raises SecretError, and OSError
    for a file that cannot be read."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        mode = stat.S_IMODE(os.fstat(file).st_mode)
        if mode & stat.S_IWOTH and not _read_only(file):
            raise SecretError(
                f"{path}: has mode {mode:04o}, so that everybody on this machine may change these settings:"
                f" chmod o-w {path}"
            )
        # Where the name is a link, whoever may replace the link or the file chooses the settings.
        for folder in dict.fromkeys((path.parent, path.resolve().parent)):
            open_mode = writable_by_others(folder)
            if open_mode is not None:
                raise SecretError(
                    f"{path}: its folder has mode {open_mode:04o}, so that everybody on this machine may put other"
                    f" settings there: chmod o-w {folder}"
                )
        yield file
    finally:
        os.close(file)


def writable_by_others(folder: Path) -> int | None:
    """The mode of a folder in which everybody may replace what others have put there; None where it is none."""
    mode = stat.S_IMODE(folder.stat().st_mode)
    return mode if mode & stat.S_IWOTH and not mode & stat.S_ISVTX and not _read_only(folder) else None


def check_keys(folder: Path) -> None:
    """Every `*.key` of an identity folder is a secret as it should be, and so is the folder. Raises SecretError."""
    try:
        mode = writable_by_others(folder)
        names = sorted(path for path in folder.iterdir() if path.suffix == ".key")
    except OSError as error:
        raise SecretError(f"{folder}: cannot be read: {error.strerror or error}") from None
    if mode is not None:
        raise SecretError(f"{folder}: holds keys and has mode {mode:04o}: chmod o-w {folder}")
    for path in names:
        with open_secret(path):
            pass


def credential(text: str) -> Path:
    """`credential:NAME` as a path; `credential:.` is the folder of all of them. Raises SecretError."""
    name = text.removeprefix(CREDENTIAL)
    if not _NAME.fullmatch(name) or name == "..":
        raise SecretError(
            f"expected the name of a systemd credential after {CREDENTIAL!r}, such as {CREDENTIAL}client.key"
        )
    folder = os.environ.get("CREDENTIALS_DIRECTORY", "")
    if not folder:
        raise SecretError(
            f"{CREDENTIAL}{name} needs the variable CREDENTIALS_DIRECTORY, which systemd sets for a service with"
            f" LoadCredential={name}:FILE: add that to the unit, or name a file"
        )
    return Path(folder) / name


def _read_only(place: Path | int) -> bool:
    """Whether it is mounted so that nobody writes, whatever its mode: as Kubernetes hands over settings."""
    return bool(os.statvfs(place).f_flag & os.ST_RDONLY)


def _open(path: Path) -> int:
    try:
        # Without waiting: a pipe in its place would hold the program up for ever.
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise SecretError(f"{path}: cannot be read: {error.strerror or error}") from None
