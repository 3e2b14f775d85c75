"""What was done to a CA, by whom, and what came of it: a line of JSON each, behind the last."""

from __future__ import annotations

import getpass
import os
import time
from pathlib import Path

import msgspec

__all__ = ["Audit", "whoever"]


class Audit:
    """Lines are only ever added. None of them holds a key or a token."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def record(self, *, who: str, action: str, subject: str, outcome: str) -> None:
        """On disk when this returns. Raises OSError."""
        line = {"at": round(time.time(), 3), "who": who, "action": action, "subject": subject, "outcome": outcome}
        opened = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            os.write(opened, msgspec.json.encode(line) + b"\n")
            os.fsync(opened)
        finally:
            os.close(opened)


def whoever() -> str:
    """The person at the keyboard, also behind sudo."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    behind = os.environ.get("SUDO_USER")
    return f"{behind} as {user}" if behind and behind != user else user
