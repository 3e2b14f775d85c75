"""Serial ports as a demo's data: a bridge for each, and the wait until it has heard enough to learn from.

The bridge's own modules are imported where they are used: a demo without ports runs without the extra that they need.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

from fedmq_coordinator.settings import WindowingSettings
from fedmq_edge_node.samples import UNLABELLED, rates_agree

from fedmq.data import DataError, Fleet, GatewayData

if TYPE_CHECKING:
    from fedmq_firmware_bridge.store import Run, Store

__all__ = ["SERIAL", "Collecting", "LabelledPort", "parse_ports"]

SERIAL = "serial:"
T = TypeVar("T")
PATIENCE_SECONDS = 60.0
"""So long nothing new may come from a port."""
LOOK_SECONDS = 0.2
FLUSH_SECONDS = 0.5
LABELLED_SECONDS = 86_400.0


@dataclass(frozen=True, kw_only=True)
class LabelledPort:
    """`name` is the gateway's, and the machine's."""

    name: str
    port: str
    label: str | None


def parse_ports(text: str) -> tuple[LabelledPort, ...]:
    """`serial:PORT` or `serial:LABEL=PORT,…`. Raises DataError."""
    ports = []
    for place, part in enumerate(text.removeprefix(SERIAL).split(","), start=1):
        label, equals, port = part.partition("=")
        if not equals:
            label, port = "", part
        if not port or (equals and not label):
            raise DataError(f"--data {text}: expected serial:PORT or serial:LABEL=PORT,LABEL=PORT")
        ports.append(LabelledPort(name=f"port-{place}", port=port, label=label or None))
    if len({port.label is None for port in ports}) > 1:
        raise DataError(f"--data {text}: expected a label for every port or for none")
    return tuple(ports)


class Collecting:
    """Bridges that run while the demo does."""

    def __init__(self, ports: Sequence[LabelledPort], directory: Path) -> None:
        self._ports = ports
        self._directory = directory
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.stores = {port.name: directory / port.name / "bridge.sqlite" for port in ports}

    def __enter__(self) -> Self:
        for port in self._ports:
            folder = self._directory / port.name
            folder.mkdir(parents=True)
            config = folder / "bridge.toml"
            # A path is the user's, from where the user stands.
            path = port.port if "://" in port.port else str(Path(port.port).absolute())
            config.write_text(
                f'store = "bridge.sqlite"\nflush_seconds = {FLUSH_SECONDS}\n\n[[port]]\n'
                f"name = {json.dumps(port.name)}\nport = {json.dumps(path)}\n",
                encoding="utf-8",
            )
            with (folder / "bridge.log").open("ab") as output:
                self._processes[port.name] = subprocess.Popen(
                    [sys.executable, "-m", "fedmq", "bridge", "run", "--config", str(config)],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
                    start_new_session=True,
                )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            process.wait()

    def fleet(self, say: Callable[[str], None]) -> Fleet:
        """What the sensors have said they are. Raises DataError where one says nothing, or they are not alike."""
        runs: dict[str, Run] = {}
        for port in self._ports:
            say(f"listening on {port.port}")
            runs[port.name] = self._wait(port, self._first_run)
            self._label(port)
        run = next(iter(runs.values()))
        for name, other in runs.items():
            if not rates_agree(other.rate_hz, run.rate_hz) or other.width != run.width:
                raise DataError(
                    f"{name}: expected {run.width} channels at {run.rate_hz:g} Hz as the first port has, got"
                    f" {other.width} at {other.rate_hz:g} Hz"
                )
        labels = {port.label for port in self._ports if port.label not in (None, UNLABELLED)}
        return Fleet(
            name="serial",
            windowing=WindowingSettings(sampling_rate_hz=run.rate_hz, channels=run.width),
            classes=tuple(sorted((label for label in labels if label), key=lambda label: (label != "normal", label))),
            gateways=tuple(GatewayData(name=port.name, recordings=()) for port in self._ports),
            test=None,
            split="ports",
            remark="live: what the sensors say now is what is learnt from; gateways hold a part of it out",
        )

    def wait(self, windowing: WindowingSettings, windows: int, say: Callable[[str], None]) -> None:
        """Until each port has brought so many windows without a gap. Raises DataError."""
        for port in self._ports:
            say(f"waiting for {windows} windows of {port.name}")
            self._wait(port, lambda store: _windows(store, windowing) >= windows or None)

    def _wait(self, port: LabelledPort, ready: Callable[[Store], T | None]) -> T:
        from fedmq_firmware_bridge.store import Store

        path = self.stores[port.name]
        store: Store | None = None
        heard, heard_at = 0, time.monotonic()
        try:
            while True:
                if self._processes[port.name].poll() is not None:
                    raise DataError(f"the bridge of {port.port} ended; see {path.with_name('bridge.log')}")
                if store is None and path.is_file():
                    store = Store(path)
                if store is not None:
                    found = ready(store)
                    if found is not None:
                        return found
                    newest = store.mark()[1]
                    if newest != heard:
                        heard, heard_at = newest, time.monotonic()
                if time.monotonic() - heard_at > PATIENCE_SECONDS:
                    raise DataError(
                        f"{port.port}: expected samples, none came for {PATIENCE_SECONDS:.0f} s; try `fedmq bridge"
                        f" probe {port.port}`, and see {path.with_name('bridge.log')}"
                    )
                time.sleep(LOOK_SECONDS)
        finally:
            if store is not None:
                store.close()

    def _first_run(self, store: Store) -> Run | None:
        return next((run for run in store.runs() if run.sensor.channels), None)

    def _label(self, port: LabelledPort) -> None:
        if port.label is None:
            return
        from fedmq_firmware_bridge.store import Store

        now = time.time()
        store = Store(self.stores[port.name])
        store.label(port.name, now - LABELLED_SECONDS, now + LABELLED_SECONDS, port.label, noted_at=now)
        store.close()


def _windows(store: Store, windowing: WindowingSettings) -> int:
    return sum(
        max(0, (run.stop - run.start - windowing.samples) // windowing.hop + 1)
        for run in store.runs()
        if run.sensor.channels and rates_agree(run.rate_hz, windowing.sampling_rate_hz)
    )
