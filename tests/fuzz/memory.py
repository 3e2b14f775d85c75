"""How much memory this process took at most, as Linux counts it: what a library in C takes is in it."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["MEBIBYTE", "Peak"]

MEBIBYTE = 1 << 20


class Peak:
    """By how much the highest resident size rose since it was made or restarted, in bytes; 0 elsewhere than on Linux.

    Not `getrusage`: its peak is never forgotten, and a child begins with its parent's.
    """

    def __init__(self) -> None:
        self._start = 0
        self.restart()

    def restart(self) -> None:
        if STATUS.exists():
            Path("/proc/self/clear_refs").write_text("5")
        self._start = _highest()

    def risen(self) -> int:
        return _highest() - self._start


STATUS = Path("/proc/self/status")


def _highest() -> int:
    if not STATUS.exists():
        return 0
    found = re.search(rb"VmHWM:\s*(\d+) kB", STATUS.read_bytes())
    assert found is not None
    return int(found[1]) * 1024
