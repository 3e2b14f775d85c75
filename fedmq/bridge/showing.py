"""A bridge's state as text, as JSON and as metrics. Knows the store's reports, nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from fedmq_firmware_bridge.health import states
from fedmq_firmware_bridge.store import Store

__all__ = ["as_json", "as_prometheus", "as_text"]

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
    gathered = _gather(store, now)
    lines = []

    def family(name: str, kind: str, about: str, samples: Sequence[tuple[str, float]]) -> None:
        lines.extend([f"# HELP fedmq_{name} {about}", f"# TYPE fedmq_{name} {kind}"])
        lines.extend(f"fedmq_{name}{{{labels}}} {value:.10g}" for labels, value in samples)

    sources = [(_labels(source=name), source) for name, source in gathered["sources"].items()]
    for key, kind, name, about in (
        ("connected", "gauge", "bridge_source_connected", "Whether the port is open."),
        ("opened", "counter", "bridge_source_opened_total", "How often the port was opened."),
        ("bytes", "counter", "bridge_source_bytes_total", "Bytes heard."),
        ("failed", "counter", "bridge_source_checksum_errors_total", "Frames whose checksum did not hold."),
        ("malformed", "counter", "bridge_source_malformed_total", "Frames or lines that could not be read."),
    ):
        family(name, kind, about, [(labels, float(source[key])) for labels, source in sources])
    devices = [
        (_labels(source=name, address=str(device["address"]), machine=device["machine"]), device)
        for name, source in gathered["sources"].items()
        for device in source.get("devices", ())
    ]
    for key, about in (
        ("requests", "Requests to a device of a Modbus line."),
        ("answers", "Answers with registers."),
        ("silent", "Requests that nothing came of."),
        ("garbled", "Answers that made no sense, such as a wrong checksum."),
        ("skipped", "Rows that were not asked for, as the line was busy."),
    ):
        family(f"modbus_{key}_total", "counter", about, [(labels, float(device[key])) for labels, device in devices])
    refused = [
        (f'{labels},exception="{code}"', float(count))
        for labels, device in devices
        for code, count in device["refused"].items()
    ]
    family("modbus_refused_total", "counter", "Exceptions that a device answered with.", refused)
    sensors = [
        (_labels(source=sensor["source"], sensor=sensor["name"], machine=sensor["machine"]), sensor)
        for sensor in gathered["sensors"]
    ]
    for key, kind, name, about in (
        ("promised_hz", "gauge", "sensor_promised_hz", "Samples a second that the sensor promises."),
        ("achieved_hz", "gauge", "sensor_achieved_hz", "Samples a second in the last minute."),
        ("silent_seconds", "gauge", "sensor_silent_seconds", "Seconds since it was heard."),
        ("clipped_share", "gauge", "sensor_clipped_share", "Share of samples at the end of the scale."),
        ("lost_frames", "counter", "sensor_lost_frames_total", "Frames that were sent and did not come."),
        ("gaps", "counter", "sensor_gaps_total", "How often some were missing."),
        ("duplicates", "counter", "sensor_duplicates_total", "Frames that came twice."),
        ("restarts", "counter", "sensor_restarts_total", "Restarts of the sensor."),
        ("overruns", "counter", "sensor_overruns_total", "Losses on the sensor itself."),
    ):
        family(name, kind, about, [(labels, sensor[key]) for labels, sensor in sensors if sensor[key] is not None])
    flat = [(labels, float(len(sensor["flat_channels"]))) for labels, sensor in sensors]
    family("sensor_flat_channels", "gauge", "Channels that show one number all the time.", flat)
    return "\n".join(lines) + "\n"


def _labels(**values: str) -> str:
    escaped = {
        key: value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n") for key, value in values.items()
    }
    return ",".join(f'{key}="{value}"' for key, value in escaped.items())


def _gather(store: Store, now: float) -> dict[str, Any]:
    reports = store.reports()
    at, every = reports.get("at", 0.0), reports.get("flush_seconds", 0.0)
    age = max(0.0, now - at)
    return {
        "running": age <= STALE_FLUSHES * every + 5.0,
        "age_seconds": age,
        "sample_bytes": store.sample_bytes(),
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
