"""A coordinator's figures from where they are: its ledger, beside the coordinator or in it, or its control socket."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
from fedmq_coordinator.control import Look, ask
from fedmq_coordinator.ledger import Ledger
from fedmq_coordinator.tallies import FleetTally
from fedmq_coordinator.tallies import build as tally_of
from fedmq_coordinator.tasks import state_of_affairs

from fedmq.metrics.coordinator import GATEWAYS_MOST, Live, samples
from fedmq.metrics.families import Sample
from fedmq.metrics.serving import require, to_text

__all__ = ["FromLedger", "by_control", "by_ledger"]


def by_ledger(state_dir: Path) -> str:
    """What `fedmq status --prometheus` prints. Raises MissingExtraError, LedgerError."""
    require()
    return to_text(FromLedger(state_dir, GATEWAYS_MOST)())


def by_control(socket: Path) -> str:
    """The same, from what the coordinator says by its control socket. Raises MissingExtraError, ControlError."""
    require()
    state = msgspec.json.decode(ask(socket, Look(what="status", form="json")).text, type=dict[str, Any])
    tally = msgspec.json.decode(ask(socket, Look(what="tallies", form="json")).text, type=FleetTally)
    return to_text(samples(state, tally))


class FromLedger:
    """Reads the file beside its writer, and no more than its head where nothing has been written since.

    One thread at a time. Raises LedgerError where there is no ledger, or a damaged one.
    """

    def __init__(
        self, state_dir: Path, gateways_most: int, connected: Callable[[], bool | None] = lambda: None
    ) -> None:
        self._state_dir = state_dir
        self._gateways_most = gateways_most
        self._connected = connected
        self._ledger: Ledger | None = None
        self._read: tuple[Sample, ...] = ()

    def __call__(self) -> Iterator[Sample]:
        try:
            if self._ledger is None:
                self._ledger = Ledger(self._path, read_only=True)
            if self._ledger.touched():
                self._read = tuple(self._samples(self._ledger))
        except ValueError:
            # Looked at anew the next time: by then another file may be in its place.
            if self._ledger is not None:
                self._ledger.close()
            self._ledger = None
            raise
        yield from self._read
        yield from Live(
            ledger_bytes=self._ledger_bytes(),
            free_bytes=shutil.disk_usage(self._state_dir).free,
            connected=self._connected(),
        ).samples()

    @property
    def _path(self) -> Path:
        return self._state_dir / "ledger.sqlite"

    def _samples(self, ledger: Ledger) -> Iterator[Sample]:
        yield from samples(state_of_affairs(ledger, time.time()), tally_of(ledger), self._gateways_most)

    def _ledger_bytes(self) -> int:
        """With what SQLite keeps beside the file."""
        whole = 0
        for suffix in ("", "-wal"):
            try:
                whole += os.stat(f"{self._path}{suffix}").st_size
            except FileNotFoundError:
                continue
        return whole
