"""A bridge's state as text, as JSON and as metrics. Knows the store's reports, nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fedmq_firmware_bridge.health import states
from fedmq_firmware_bridge.store import Store

__all__ = ["as_json", "as_prometheus", "as_text", "gather"]

STALE_FLUSHES = 3.0
"""A bridge that has not written for so many flushes does not run."""


def as_json(store: Store, now: float) -> str:
    return json.dumps(_gather(store, now), indent=2) + "\n"


def as_text(store: Store, now: float) -> str:
    gathered = _gather(store, now)
    lines = [f"{store.path}: {gathered['sample_bytes']:,} bytes of samples"]
    if not gathered["running"]:
        lines.append(f"no bridge is running, or it cannot write: its last word is of {_ago(gathered['age_seconds'])}")
    if gathered["lost"]:
        lines.append(f"note: {gathered['lost']}")
    if gathered["dropped_bytes"]:
        lines.append(f"the disk did not take {gathered['dropped_bytes']:,} bytes of samples, which are dropped")
    lines += ["", *_table(("source", "state", "opened", "bytes", "bad sums", "malformed"), _source_rows(gathered))]
    if devices := list(_device_rows(gathered)):
        lines += ["", *_table(_DEVICE_HEADS, iter(devices))]
    lines += ["", *_table(_SENSOR_HEADS, _sensor_rows(gathered))]
    return "\n".join(lines) + "\n"


_WORDS = {"source", "state", "sensor", "machine", "refused"}
_DEVICE_HEADS = (
    "source",
    "address",
    "machine",
    "state",
    "requests",
    "answers",
    "silent",
    "garbled",
    "skipped",
    "refused",
)
_SENSOR_HEADS = ("sensor", "machine", "state", "rate", "promised", "seen", "lost", "gaps", "restarts", "overruns")


def _source_rows(gathered: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for name, source in gathered["sources"].items():
        state = "open" if source["connected"] else source["problem"] or "closed"
        counts = (source["opened"], source["bytes"], source["failed"], source["malformed"])
        yield (name, state, *(f"{count:,}" for count in counts))


def _device_rows(gathered: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for name, source in gathered["sources"].items():
        for device in source.get("devices", ()):
            refused = ", ".join(f"{count:,} × {code}" for code, count in device["refused"].items())
            keys = ("requests", "answers", "silent", "garbled", "skipped")
            counts = (f"{device[key]:,}" for key in keys)
            yield (name, str(device["address"]), device["machine"], _device_state(device), *counts, refused or "-")


def _device_state(device: dict[str, Any]) -> str:
    if not device["requests"]:
        return "not asked yet"
    if device["failures_in_a_row"]:
        return "missing" if device["silent"] >= device["garbled"] else "garbled"
    return "answers" if device["answers"] else "refuses"


def _sensor_rows(gathered: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for sensor in gathered["sensors"]:
        rate = "?" if sensor["achieved_hz"] is None else f"{sensor['achieved_hz']:,.5g}"
        counts = (sensor["lost_frames"], sensor["gaps"], sensor["restarts"], sensor["overruns"])
        yield (
            sensor["name"],
            sensor["machine"],
            ", ".join(sensor["states"]) or "well",
            rate,
            f"{sensor['promised_hz']:,.5g}",
            _ago(sensor["silent_seconds"]),
            *(f"{count:,}" for count in counts),
        )


def as_prometheus(store: Store, now: float) -> str:
    """Raises MissingExtraError."""
    from fedmq.metrics.bridge import samples
    from fedmq.metrics.serving import to_text

    return to_text(samples(_gather(store, now)))


def _gather(store: Store, now: float) -> dict[str, Any]:
    return gather(store.reports(), store.sample_bytes(), now)


def gather(reports: Mapping[str, Any], sample_bytes: int, now: float) -> dict[str, Any]:
    """How a bridge is, from what it notes of itself with each flush."""
    at, every = reports.get("at", 0.0), reports.get("flush_seconds", 0.0)
    age = max(0.0, now - at)
    return {
        "running": age <= STALE_FLUSHES * every + 5.0,
        "at": at,
        "age_seconds": age,
        "sample_bytes": sample_bytes,
        "lost": reports.get("lost"),
        "dropped_bytes": reports.get("dropped_bytes", 0),
        "sources": reports.get("sources", {}),
        "sensors": [
            sensor
            # As of the last flush: that it has not been heard since is not known.
            | {"states": states(sensor, at), "silent_seconds": max(0.0, now - sensor["last_seen_at"])}
            for sensor in reports.get("sensors", ())
        ],
    }


def _table(heads: Sequence[str], rows: Iterator[tuple[str, ...]]) -> list[str]:
    """Columns as wide as what stands in them: words to the left, numbers to the right."""
    table = [tuple(heads), *rows]
    widths = [max(len(row[place]) for row in table) for place in range(len(heads))]
    words = [head in _WORDS for head in heads]
    return [
        "  ".join(
            cell.ljust(width) if left else cell.rjust(width)
            for cell, width, left in zip(row, widths, words, strict=True)
        ).rstrip()
        for row in table
    ]


def _ago(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s ago"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min ago"
    return f"{seconds / 3600:,.0f} h ago"
