"""How much memory this process took at most, as the kernel counts it: what a library in C takes is in it."""

from __future__ import annotations

import contextlib
import resource
from pathlib import Path

__all__ = ["MEBIBYTE", "Peak"]

MEBIBYTE = 1 << 20


class Peak:
    """By how much the highest resident size rose since it was made, in bytes."""

    def __init__(self) -> None:
        self._start = 0
        self.restart()

    def restart(self) -> None:
        # Linux forgets the peak so far; elsewhere it stays, and less is noticed.
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        self._start = _highest()

    def risen(self) -> int:
        return _highest() - self._start


def _highest() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
