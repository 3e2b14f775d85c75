"""Two network namespaces with a cable between them, whose counters say what a bill for a SIM card would.

Needs root and iproute2; who has neither skips, with the reason. Everything in a namespace is gone when it is left.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

ETHERNET_BYTES = 14
"""Header of a frame, which the interface counts and IP does not."""

HUB, FAR = "10.77.7.1", "10.77.7.2"

_CLONE_NEWNET = 0x4000_0000


def missing() -> str:
    """Why there cannot be any, in words; empty where there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    return "" if shutil.which("ip") else "needs the ip command: apt-get install iproute2"


class Cable:
    """`hub` is where a broker may be, `far` where a gateway is."""

    def __init__(self) -> None:
        self.hub, self.far = f"fedmq-{os.getpid()}-hub", f"fedmq-{os.getpid()}-far"

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as undo:
            for name in (self.hub, self.far):
                _ip("netns", "add", name)
                undo.callback(_ip, "netns", "delete", name)
            _ip("link", "add", "hub0", "netns", self.hub, "type", "veth", "peer", "name", "far0", "netns", self.far)
            ends = ((self.hub, "hub0", HUB), (self.far, "far0", FAR))
            macs = {end: json.loads(_ip("-n", name, "-j", "link", "show", end))[0]["address"] for name, end, _ in ends}
            for name, end, address in ends:
                # No neighbour discovery, no IPv6: all that passes is what was asked for. And one segment a frame, for
                # a frame is counted once.
                with self.inside(name):
                    Path(f"/proc/sys/net/ipv6/conf/{end}/disable_ipv6").write_text("1")
                _ip("-n", name, "link", "set", end, "gso_max_segs", "1", "up")
                _ip("-n", name, "link", "set", "lo", "up")
                _ip("-n", name, "address", "add", f"{address}/24", "dev", end)
            for (name, end, _), (_, other, address) in zip(ends, reversed(ends), strict=True):
                _ip("-n", name, "neighbour", "add", address, "lladdr", macs[other], "dev", end, "nud", "permanent")
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.close()

    @contextlib.contextmanager
    def inside(self, name: str) -> Iterator[None]:
        """Sockets of this thread, and processes that it starts, are in the namespace."""
        with open("/proc/thread-self/ns/net") as before, open(f"/run/netns/{name}") as there:
            _set_namespace(there.fileno())
            try:
                yield
            finally:
                _set_namespace(before.fileno())

    def ip_bytes(self) -> int:
        """That have passed at the far end, both ways, from the first one on."""
        counts = json.loads(_ip("-n", self.far, "-s", "-j", "link", "show", "far0"))[0]["stats64"]
        return sum(counts[way]["bytes"] - ETHERNET_BYTES * counts[way]["packets"] for way in ("rx", "tx"))


def _set_namespace(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def _ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout
