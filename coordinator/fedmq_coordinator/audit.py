"""The audit log: who did what to a federation, with what outcome; a file that only grows, in which a change shows.

Owns one file of JSON lines. Each line tells when, who, what, to what and what came of it, and holds the sha256 of the
line before. So whoever changes or takes out a line breaks the chain there, unless they write all later lines anew; and
whoever cuts lines off the end leaves a chain that is whole. Against both only a copy of the head that was put elsewhere
helps: `head` is that hash, to be written down or shipped, and `verify` finds it again.

    {"time": "…Z", "who": {"user": "anna", "uid": 1000, "how": "socket"}, "action": "task pause", "subject": "pumps",
     "outcome": "…", "previous": "<sha256 of the line before, without its line break>"}

Rules:
- A line is on disk before what it tells goes on: `record` returns after fsync, and raises where the disk does not take
  it. It takes a lock on the file, so that several programs may write to one.
- What a power cut left of a last line stays. The next line begins on a line of its own, says `"torn": true`, and its
  chain goes on over what is left.
- No secret is ever recorded: subjects are names, and outcomes the sentences that people see.

It knows nothing of tasks or certificates, and other programs use it as it is. It reads the clock itself: what is noted
later than it happened is worth less.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import pwd
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import msgspec
from fedmq_protocol.state import FILE_MODE, PlaceError, open_state

__all__ = ["AUDIT_FILE", "AuditError", "AuditLog", "Entry", "Finding", "Verified", "Who", "local_user", "user_name"]

AUDIT_FILE = "audit.log"
"""In a state directory."""

BEGINNING = "0" * 64
"""What the first line holds in the place of the line before."""

MAX_TEXT = 1000
"""Characters of one field; what is longer is cut."""

MAX_LINE_BYTES = 64 * 1024
"""Above what `record` ever writes."""


class AuditError(ValueError):
    """The log cannot be written or read: what it tells of must not go on as if it could."""


class Who(msgspec.Struct, frozen=True, kw_only=True):
    """A person, or the user that a program runs as."""

    user: str
    uid: int
    how: Literal["local", "socket"]
    """`local`: with the rights of a process on the files themselves. `socket`: as the kernel told of the other end."""

    def __str__(self) -> str:
        return f"{self.user} (uid {self.uid}, {self.how})"


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One line."""

    time: str
    """UTC, ISO 8601, in milliseconds."""
    who: Who
    action: str
    subject: str
    outcome: str
    previous: str
    torn: bool = False
    """The line before was cut short by a power cut, and this one was written after it."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A place where the chain does not hold."""

    line: int
    """From 1."""
    text: str


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What `verify` found."""

    lines: int
    head: str
    findings: tuple[Finding, ...]
    torn: int
    """How often a power cut left something behind, noted by the line after it."""
    heads: frozenset[str]
    """The hash of every line: a head that was noted earlier is among them, or lines are gone."""


def user_name(uid: int) -> str:
    """The name of a user, the number where there is none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def local_user() -> Who:
    """Whom this process works for; of root also who is behind sudo, as sudo tells."""
    uid = os.getuid()
    user, behind = user_name(uid), os.environ.get("SUDO_USER", "") if uid == 0 else ""
    return Who(user=f"{behind} as {user}" if behind not in ("", user) else user, uid=uid, how="local")


class AuditLog:
    """One file; made with its first line, for its user alone. Any number of programs may use one at once."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self._clock = clock

    def record(self, *, who: Who, action: str, subject: str, outcome: str) -> str:
        """Note it; on disk when it returns. Returns the new head. Raises AuditError."""
        try:
            with self._locked() as file:
                last, ended = _last_line(file)
                torn = last is not None and (not ended or _entry(last) is None)
                line = _line(
                    {
                        "time": _stamp(self._clock()),
                        "who": {"user": _bounded(who.user), "uid": who.uid, "how": who.how},
                        "action": _bounded(action),
                        "subject": _bounded(subject),
                        "outcome": _bounded(outcome),
                        "previous": BEGINNING if last is None else _hash(last),
                        **({"torn": True} if torn else {}),
                    }
                )
                _write(file, (b"" if ended else b"\n") + line + b"\n")
        except PlaceError as error:
            raise AuditError(str(error)) from error
        except OSError as error:
            raise AuditError(
                f"cannot write to the audit log {self.path}: {error.strerror or error}; see to its owner and to room on"
                " its disk: nothing that is to be noted there goes on without it"
            ) from error
        return _hash(line)

    def head(self) -> tuple[int, str]:
        """How many lines there are, and the hash of the last one. Raises AuditError."""
        count, last = 0, None
        for line in self._lines():
            count, last = count + 1, line
        return count, BEGINNING if last is None else _hash(last)

    def entries(self) -> Iterator[Entry | bytes]:
        """Every line in order; as it stands there where it is none of ours. Raises AuditError."""
        for line in self._lines():
            yield _entry(line) or line

    def verify(self) -> Verified:
        """Goes through the whole file. Raises AuditError where it cannot be read."""
        findings: list[Finding] = []
        heads: set[str] = set()
        head, number, torn = BEGINNING, 0, 0
        unread: list[int] = []
        for number, line in enumerate(self._lines(), start=1):
            entry = _entry(line)
            if entry is None:
                unread.append(number)
            else:
                if entry.previous != head:
                    findings.append(
                        Finding(line=number, text="does not follow from the line before: one was changed or taken out")
                    )
                if not entry.torn:
                    findings += [Finding(line=one, text="is no line of an audit log") for one in unread]
                torn += entry.torn
                unread = []
            head = _hash(line)
            heads.add(head)
        findings += [Finding(line=one, text="is cut short; the next line will say so") for one in unread]
        return Verified(lines=number, head=head, findings=tuple(findings), torn=torn, heads=frozenset(heads))

    def _lines(self) -> Iterator[bytes]:
        try:
            with self.path.open("rb") as file:
                while line := file.readline(MAX_LINE_BYTES):
                    yield line.removesuffix(b"\n")
        except OSError as error:
            raise AuditError(f"cannot read the audit log {self.path}: {error.strerror or error}") from error

    @contextmanager
    def _locked(self) -> Iterator[int]:
        new = not self.path.exists()
        file = open_state(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            if new:
                self._settle(file)
            yield file
        finally:
            os.close(file)

    def _settle(self, file: int) -> None:
        """A new file: its name on disk, and its owner that of the folder where root works in somebody else's."""
        os.fchmod(file, FILE_MODE)
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if os.geteuid() == 0:
                owner = os.fstat(folder)
                os.fchown(file, owner.st_uid, owner.st_gid)
            os.fsync(folder)
        finally:
            os.close(folder)


def _last_line(file: int) -> tuple[bytes | None, bool]:
    """The last line, None in an empty file; and whether another one may follow at once."""
    size = os.fstat(file).st_size
    if size == 0:
        return None, True
    length = min(size, MAX_LINE_BYTES)
    tail = os.pread(file, length, size - length)
    return tail.removesuffix(b"\n").rpartition(b"\n")[2], tail.endswith(b"\n")


def _write(file: int, data: bytes) -> None:
    written = os.write(file, data)
    if written != len(data):
        raise OSError(f"only {written} of {len(data)} bytes were taken")
    os.fsync(file)


def _line(fields: dict[str, Any]) -> bytes:
    """One line of ASCII: what came from outside can neither end it nor move a cursor."""
    return json.dumps(fields, ensure_ascii=True, separators=(", ", ": ")).encode("ascii")


def _entry(line: bytes) -> Entry | None:
    try:
        return msgspec.json.decode(line, type=Entry)
    except (msgspec.MsgspecError, RecursionError):
        return None


def _bounded(text: str) -> str:
    # Surrogates would be no JSON that others can read.
    clean = re.sub(r"[\ud800-\udfff]", "?", text)
    return clean if len(clean) <= MAX_TEXT else clean[: MAX_TEXT - 1] + "…"


def _hash(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()


def _stamp(at: float) -> str:
    return datetime.fromtimestamp(at, tz=UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
