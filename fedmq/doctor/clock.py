"""The clock: whether it follows a time server, and whether it stands where it cannot.

MQTT tells no time, so nobody is asked. What is signed with a date, and what this machine itself wrote, bounds it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from fedmq.doctor.findings import Finding, failed, ok, unknown, warned

__all__ = ["check_against", "check_clock", "follows_time_server"]

SLACK = timedelta(minutes=5)
_MARK = Path("/run/systemd/timesync/synchronized")


def check_clock(now: datetime, written: Sequence[Path]) -> Iterator[Finding]:
    """`written` are files that were written by this machine's clock: it is not before them."""
    yield check_against(now, written)
    follows = follows_time_server()
    if follows is None:
        yield unknown(
            "time server",
            "whether the clock follows one cannot be found out here",
            "see to it: where certificates have dates, a clock that drifts locks this machine out one day",
        )
    elif follows:
        yield ok("time server", "the clock follows one")
    else:
        yield warned("time server", "the clock follows none", "timedatectl set-ntp true, or let chrony do it")


def check_against(now: datetime, written: Sequence[Path]) -> Finding:
    times = {path: datetime.fromtimestamp(path.stat().st_mtime, tz=UTC) for path in written if os.path.isfile(path)}
    newest = max(times, key=lambda path: times[path], default=None)
    if newest is not None and times[newest] - now > SLACK:
        return failed(
            "clock",
            f"it is {now:%Y-%m-%d %H:%M} UTC here, but {newest} was written at {times[newest]:%Y-%m-%d %H:%M}",
            "set it (timedatectl), and let it follow a time server",
        )
    return ok("clock", f"{now:%Y-%m-%d %H:%M:%S} UTC")


def follows_time_server() -> bool | None:
    """None: it cannot be found out."""
    program = shutil.which("timedatectl")
    if program is not None:
        try:
            asked = subprocess.run(
                [program, "show", "-p", "NTPSynchronized", "--value"],
                capture_output=True, text=True, check=False, timeout=5,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired):
            return True if _MARK.exists() else None
        if asked.returncode == 0 and asked.stdout.strip() in ("yes", "no"):
            return asked.stdout.strip() == "yes"
    return True if _MARK.exists() else None
