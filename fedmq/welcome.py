"""What can be seen from outside of how a gateway stands with its coordinator: a small file in its state directory.

Owns that file. A gateway writes it whenever the coordinator has welcomed it; whoever has replaced the program, and
wants to know whether the new one is back, reads it. `boot` differs from start to start: no clocks have to be compared.
It is a note and no state: the gateway itself never reads it, and goes on where it cannot be written.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

__all__ = ["WELCOME", "Welcomed", "read", "write"]

log = logging.getLogger("fedmq.welcome")

WELCOME = "welcome.json"
_MAX_BYTES = 4096


class Welcomed(msgspec.Struct, frozen=True, kw_only=True):
    software: Annotated[str, Meta(max_length=128)]
    """As the gateway tells the coordinator: `fedmq 0.1.0`."""
    boot: Annotated[str, Meta(max_length=64)]
    """Of this start of the program."""
    at: Annotated[float, Meta(ge=0, le=1 << 34)]
    """Unix seconds by the coordinator's clock."""


def write(state_dir: Path, welcomed: Welcomed) -> None:
    """By a rename. It is not flushed: after a power cut there is another welcome soon."""
    beside = state_dir / f".{WELCOME}.new"
    try:
        beside.write_bytes(msgspec.json.encode(welcomed) + b"\n")
        os.replace(beside, state_dir / WELCOME)
    except OSError as error:
        log.warning("cannot note the welcome in %s: %s", state_dir / WELCOME, error.strerror)


def read(state_dir: Path) -> Welcomed | None:
    """None where no gateway has been welcomed, or what is there is no such note. Raises OSError where it may not be
    read."""
    try:
        with (state_dir / WELCOME).open("rb") as file:
            data = file.read(_MAX_BYTES)
    except FileNotFoundError:
        return None
    try:
        return msgspec.json.decode(data, type=Welcomed)
    except (msgspec.MsgspecError, ValueError):
        return None
