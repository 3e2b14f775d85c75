"""What a program tells systemd of itself: that it is ready, that it is alive, that it is about to stop.

Owns the datagrams of sd_notify(3), which are all there is to it: no library is needed. Without NOTIFY_SOCKET, as
outside of a unit with `Type=notify`, nothing is said.

A program says that it is alive from the loop that must not hang, and from a long training between two of its steps. So
a loop that hangs is noticed by what it does not say (WatchdogSec= of its unit), and a training is not taken for one.
No thread of its own does this: it would go on saying so whatever hangs.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Mapping

__all__ = ["Notifier"]

log = logging.getLogger("fedmq.notify")

ALIVE_EVERY_SECONDS = 1.0
"""More often nobody is told, however fast the loop turns."""


class Notifier:
    """Speaks to the socket of the environment, or to nobody. A datagram that is not taken ends no program."""

    def __init__(
        self, environment: Mapping[str, str] = os.environ, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._address = _address(environment.get("NOTIFY_SOCKET", ""))
        self._monotonic = monotonic
        self._alive_at: float | None = None
        self._complained = False

    def ready(self) -> None:
        """Everything that may fail at a start is done."""
        self._say("READY=1")

    def alive(self) -> None:
        """The loop turns."""
        if self._address is None:
            return
        now = self._monotonic()
        if self._alive_at is None or now - self._alive_at >= ALIVE_EVERY_SECONDS:
            self._alive_at = now
            self._say("WATCHDOG=1")

    def stopping(self) -> None:
        """It was told to stop, and does."""
        self._say("STOPPING=1")

    def _say(self, state: str) -> None:
        if self._address is None:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as link:
                # Without waiting: a manager that does not read must not be what makes the loop hang.
                link.setblocking(False)
                link.sendto(state.encode(), self._address)
        except OSError as error:
            if not self._complained:
                self._complained = True
                log.warning("systemd cannot be told %s: %s", state, error.strerror or error)


def _address(named: str) -> str | None:
    """An abstract socket begins with `@` in the variable, and with a zero byte for the kernel. Others are none of ours:
    sd_notify(3) knows sockets of virtual machines, too."""
    if named.startswith("@"):
        return "\0" + named[1:]
    return named if named.startswith("/") else None
