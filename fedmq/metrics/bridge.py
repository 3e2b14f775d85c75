"""The figures of a bridge: its ports, its Modbus devices and its sensors, from what the bridge notes of them. Pure.

A sensor is named by its source, its number on the line and the machine of the settings: what it calls itself comes from
its firmware, and is no label.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fedmq.metrics.families import OTHER, Metric, Sample

__all__ = ["METRICS", "samples"]


def _metric(name: str, kind: Any, about: str, *labels: str) -> Metric:
    return Metric(name=f"fedmq_{name}", kind=kind, about=about, labels=labels)


STORE = _metric("bridge_store_bytes", "gauge", "Bytes of samples in the store.")
DROPPED = _metric("bridge_dropped_bytes", "counter", "Bytes of samples that the disk did not take.")
WORD = _metric(
    "bridge_last_word_timestamp_seconds", "gauge", "When the bridge last said how it is, in Unix time: each flush."
)
SOURCES = {
    "connected": _metric("bridge_source_connected", "gauge", "1 while the port is open.", "source"),
    "opened": _metric("bridge_source_opened", "counter", "How often the port was opened.", "source"),
    "bytes": _metric("bridge_source_bytes", "counter", "Bytes heard.", "source"),
    "failed": _metric(
        "bridge_source_checksum_errors", "counter", "Frames whose checksum (CRC) did not hold.", "source"
    ),
    "malformed": _metric(
        "bridge_source_malformed", "counter", "Frames or lines that could not be read otherwise.", "source"
    ),
}
_DEVICE = ("source", "address", "machine")
DEVICES = {
    "requests": _metric("modbus_requests", "counter", "Requests to a device of a Modbus line.", *_DEVICE),
    "answers": _metric("modbus_answers", "counter", "Answers with registers.", *_DEVICE),
    "silent": _metric("modbus_silent", "counter", "Requests that nothing came of.", *_DEVICE),
    "garbled": _metric("modbus_garbled", "counter", "Answers that made no sense, such as a wrong checksum.", *_DEVICE),
    "skipped": _metric("modbus_skipped", "counter", "Rows that were not asked for, as the line was busy.", *_DEVICE),
}
EXCEPTIONS = _metric(
    "modbus_refused", "counter", "Exceptions that a device answered with, by code.", *_DEVICE, "exception"
)
_SENSOR = ("source", "number", "machine")
SENSORS = {
    "promised_hz": _metric("sensor_promised_hertz", "gauge", "Samples a second that the sensor promises.", *_SENSOR),
    "achieved_hz": _metric("sensor_achieved_hertz", "gauge", "Samples a second in the last minute.", *_SENSOR),
    "silent_seconds": _metric("sensor_silent_seconds", "gauge", "Seconds since it was heard.", *_SENSOR),
    "clipped_share": _metric("sensor_clipped_ratio", "gauge", "Share of samples at the end of the scale.", *_SENSOR),
    "samples": _metric("sensor_samples", "counter", "Samples heard since the bridge started.", *_SENSOR),
    "lost_frames": _metric("sensor_lost_frames", "counter", "Frames that were sent and did not come.", *_SENSOR),
    "gaps": _metric("sensor_gaps", "counter", "How often some were missing.", *_SENSOR),
    "duplicates": _metric("sensor_duplicates", "counter", "Frames that came twice.", *_SENSOR),
    "restarts": _metric("sensor_restarts", "counter", "Restarts of the sensor.", *_SENSOR),
    "overruns": _metric("sensor_overruns", "counter", "Losses on the sensor itself.", *_SENSOR),
}
FLAT = _metric("sensor_flat_channels", "gauge", "Channels that show one number all the time.", *_SENSOR)
UNWELL = _metric(
    "sensor_unwell", "gauge", "1 for what is wrong with it: silent, slow, flat, clipping, no hello.", *_SENSOR, "state"
)

METRICS = (*(STORE, DROPPED, WORD, *SOURCES.values(), *DEVICES.values(), EXCEPTIONS, *SENSORS.values(), FLAT, UNWELL),)

WRONG = ("silent", "slow", "flat", "clipping", "no hello")
EXCEPTION_CODES = frozenset(str(code) for code in range(1, 12))


def samples(gathered: Mapping[str, Any]) -> Iterator[Sample]:
    """`gathered` as `showing.gather` gives it."""
    yield Sample(metric=STORE, value=gathered["sample_bytes"])
    yield Sample(metric=DROPPED, value=gathered["dropped_bytes"])
    if gathered["at"]:
        yield Sample(metric=WORD, value=gathered["at"])
    for name, source in gathered["sources"].items():
        for key, metric in SOURCES.items():
            yield Sample(metric=metric, value=float(source[key]), labels=(name,))
        for device in source.get("devices", ()):
            of_device = (name, str(device["address"]), device["machine"])
            for key, metric in DEVICES.items():
                yield Sample(metric=metric, value=device[key], labels=of_device)
            yield from _exceptions(device["refused"], of_device)
    for sensor in gathered["sensors"]:
        of_sensor = (sensor["source"], str(sensor["number"]), sensor["machine"])
        for key, metric in SENSORS.items():
            if sensor[key] is not None:
                yield Sample(metric=metric, value=sensor[key], labels=of_sensor)
        yield Sample(metric=FLAT, value=len(sensor["flat_channels"]), labels=of_sensor)
        for wrong in WRONG:
            yield Sample(metric=UNWELL, value=float(wrong in sensor["states"]), labels=(*of_sensor, wrong))


def _exceptions(refused: Mapping[str, int], of_device: tuple[str, ...]) -> Iterator[Sample]:
    counts: dict[str, int] = {}
    for code, count in refused.items():
        shown = str(code) if str(code) in EXCEPTION_CODES else OTHER
        counts[shown] = counts.get(shown, 0) + count
    for shown, count in sorted(counts.items()):
        yield Sample(metric=EXCEPTIONS, value=count, labels=(*of_device, shown))
