"""What talks on a port, and how: bytes that were heard for a while, to a sensor, a rate and the settings for it. Pure.

At a wrong baud rate a UART shows bytes, too: noise with no frame and no line in it. So the right rate is the one at
which something makes sense, and the native stream, with its two checksums, cannot be mistaken.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from fedmq_firmware_bridge.frames import Decoder, Hello, Samples

__all__ = ["BAUDS", "Found", "probe", "recognise"]

BAUDS = (115_200, 230_400, 460_800, 921_600, 1_000_000, 2_000_000, 57_600, 38_400, 9_600)
LEAST_LINES = 2
READABLE_SHARE = 0.8
"""Of the lines; a program that starts also says other things."""
MAX_LINES = 1000


@dataclass(frozen=True, kw_only=True)
class Found:
    """What makes sense of the bytes. `refused` counts what did not."""

    kind: str
    about: tuple[str, ...]
    """A line of words for each sensor."""
    refused: int
    rate_hz: float = 0.0
    """Of lines: as they came."""
    columns: tuple[str, ...] = ()

    def settings(self, name: str, port: str, baud: int) -> str:
        """TOML that can stand in the bridge's settings as it is."""
        lines = ["[[port]]", f"name = {json.dumps(name)}", f"port = {json.dumps(port)}", f"baud = {baud}"]
        if self.kind != "native":
            lines += [f"kind = {json.dumps(self.kind)}", "[port.line]", f"columns = {json.dumps(list(self.columns))}"]
            lines += [f"rate_hz = {self.rate_hz:.4g}  # as it came: write what is promised"]
        return "\n".join(lines) + "\n"


def probe(listen: Callable[[int], tuple[bytes, float]], bauds: Iterable[int] = BAUDS) -> tuple[int, Found] | None:
    """The first rate at which something is understood. `listen` gives what was heard at a rate, and for how long."""
    for baud in bauds:
        data, seconds = listen(baud)
        found = recognise(data, seconds)
        if found is not None:
            return baud, found
    return None


def recognise(data: bytes, seconds: float) -> Found | None:
    """What the bytes are; None where they are nothing that is known."""
    return _native(data) or _text(data, seconds)


def _native(data: bytes) -> Found | None:
    decoder = Decoder()
    # The first frame may have begun before anybody listened: it is no failure.
    frames = decoder.feed(data.partition(b"\0")[2])
    hellos = {frame.sensor: frame for frame in frames if isinstance(frame, Hello)}
    samples = {frame.sensor: frame for frame in frames if isinstance(frame, Samples)}
    if not hellos and not samples:
        return None
    about = []
    for sensor in sorted(hellos.keys() | samples.keys()):
        if sensor in hellos:
            hello = hellos[sensor]
            channels = ", ".join(f"{channel.name} in {channel.unit or '?'}" for channel in hello.channels)
            words = f"{hello.name or 'no name'}, firmware {hello.firmware or '?'}, {channels}"
            rate_hz = hello.rate_mhz / 1000
        else:
            words, rate_hz = f"{samples[sensor].values.shape[1]} channels, no hello yet", samples[sensor].rate_hz
        about.append(f"sensor {sensor}: {words}, {rate_hz:,.6g} samples a second")
    counts = decoder.counts
    return Found(kind="native", about=tuple(about), refused=counts.failed + counts.malformed + counts.oversized)


def _text(data: bytes, seconds: float) -> Found | None:
    lines = [line for line in data.split(b"\n")[1:-1] if line.strip()][:MAX_LINES]
    if len(lines) < LEAST_LINES:
        return None
    for kind, read in (("json", _json_columns), ("csv", _csv_columns)):
        read_lines = [columns for line in lines if (columns := read(line)) is not None]
        usual = max(set(read_lines), key=read_lines.count, default=())
        good = read_lines.count(usual)
        if usual and good >= READABLE_SHARE * len(lines):
            rate_hz = good / seconds if seconds > 0 else 0.0
            return Found(
                kind=kind,
                about=(f"lines of {kind.upper()} with {', '.join(usual)}, {rate_hz:,.4g} a second",),
                refused=len(lines) - good,
                rate_hz=rate_hz,
                columns=usual,
            )
    return None


def _json_columns(line: bytes) -> tuple[str, ...] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return tuple(_numbers(value, "")) or None if isinstance(value, dict) else None


def _numbers(value: dict[str, object], prefix: str) -> Iterable[str]:
    for key, inner in value.items():
        if isinstance(inner, dict) and not prefix:
            yield from _numbers(inner, f"{key}.")
        elif isinstance(inner, int | float):
            yield prefix + key


def _csv_columns(line: bytes) -> tuple[str, ...] | None:
    cells = line.replace(b";", b",").split(b",")
    try:
        for cell in cells:
            float(cell)
    except ValueError:
        return None
    return tuple(f"column{place}" for place in range(1, len(cells) + 1))
