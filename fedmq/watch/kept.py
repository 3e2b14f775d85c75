"""What an alert's windows sounded like, kept beyond the age limit of the bridge's ring.

Owns a folder in the format of a gateway's data_dir: `<label>/<alert>--<sensor>--<from>-<to>.npy`, float32 in g, each
with a .toml that says its rate. Until somebody has said what it was, a recording lies in `.waiting`, which gateways
pass over. All of it can be done again: what is there already stays, and a file appears whole or not at all.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from fedmq_edge_node.alertbook import Alert
from fedmq_edge_node.machines import Machine
from fedmq_edge_node.sensors import in_g, plain_name
from fedmq_firmware_bridge.store import Store, StoreError
from fedmq_protocol.state import make_folder

from fedmq.watch.feeding import watched

__all__ = ["ASIDE", "WAITING", "Kept"]

log = logging.getLogger("fedmq.watch")

WAITING = ".waiting"
ASIDE = ".set-aside"
"""Of a machine that is another one since, or of a cause that is no class."""
LEAST_SECONDS = 0.5
"""Of a run: less is no recording."""


class Kept:
    """`most_bytes` bound the folder, oldest alerts first. Raises PlaceError and OSError."""

    def __init__(self, folder: Path, *, seconds: float, most_bytes: int) -> None:
        self.folder = folder
        self._seconds = seconds
        self._most_bytes = most_bytes
        make_folder(folder)

    def due(self, alert: Alert, judged_at: float) -> bool:
        """Whether all is there that is to be kept of it, and nothing is kept yet."""
        over = alert.to_at is not None or judged_at >= alert.from_at + self._seconds
        return self._seconds > 0 and over and next(self._of(alert.id), None) is None

    def keep(
        self, store: Store, machine: Machine, alert: Alert, label: str | None, decided_at: float = math.inf
    ) -> int:
        """Recordings made, of what came before the verdict. Raises StoreError where the store cannot be read."""
        ended_at = min(math.inf if alert.to_at is None else alert.to_at, decided_at)
        until = min(alert.from_at + self._seconds, max(ended_at, alert.from_at + LEAST_SECONDS))
        made = 0
        for run in store.runs(machine=alert.machine):
            if not watched(run, machine) or run.ended_at <= alert.from_at or run.taken_at >= until:
                continue
            start, stop = run.sample_at(alert.from_at), run.sample_at(until)
            if stop - start < LEAST_SECONDS * run.rate_hz:
                continue
            try:
                signal = in_g(store.read(run, start, stop), run).astype(np.float32)
            except StoreError as error:
                log.warning("%s: not kept", error)
                continue
            times = f"{round(run.time_of(start) * 1000)}-{round(run.time_of(stop) * 1000)}"
            name = f"{alert.id}--{plain_name(run.sensor.name)}--{times}"
            self._write(label or WAITING, name, signal, run.rate_hz)
            made += 1
        self._bound()
        return made

    def name(self, number: int, label: str) -> None:
        """An alert's recordings have this label from now on."""
        folder = self.folder / label
        for path in list(self._of(number)):
            if path.parent == folder:
                continue
            make_folder(folder)
            # The .toml first: a recording without its rate would be a mistake to whoever reads the folder.
            for one in (path.with_suffix(".toml"), path):
                if one.is_file():
                    one.rename(folder / one.name)
            _sync(folder)

    def _of(self, number: int) -> Iterator[Path]:
        return self.folder.glob(f"*/{number}--*.npy")

    def _write(
        self, label: str, name: str, signal: np.ndarray[tuple[int, ...], np.dtype[np.float32]], rate: float
    ) -> None:
        folder = self.folder / label
        make_folder(folder)
        _whole(folder / f"{name}.toml", f"sampling_rate_hz = {rate!r}\n".encode())
        draft = folder / f".{name}.new"
        with draft.open("wb") as file:
            np.save(file, signal, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(folder / f"{name}.npy")
        _sync(folder)

    def _bound(self) -> None:
        files = sorted(self.folder.glob("*/*.npy"), key=lambda path: int(path.name.partition("--")[0]))
        over = sum(path.stat().st_size for path in files) - self._most_bytes
        for path in files:
            if over <= 0:
                break
            over -= path.stat().st_size
            log.info("%s goes: kept recordings take more than keep_bytes", path)
            path.unlink()
            path.with_suffix(".toml").unlink(missing_ok=True)


def _whole(path: Path, content: bytes) -> None:
    draft = path.with_name(f".{path.name}.new")
    with draft.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.rename(path)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
