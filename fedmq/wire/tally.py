"""What went by, added up: bytes by message and by field, the largest message, and what of it was computed from data.

Owns the sums and the sentences of the summary. They claim no more than was seen: where something could not be
explained, they say so in place of the claim.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from fedmq.wire.fields import ABOUT, Origin
from fedmq.wire.reading import Seen

__all__ = ["Tally"]

NO_FIELD = "envelope and type"
SEALS = "seals"


class Tally:
    """Add what was seen; ask for the sums at the end."""

    def __init__(self) -> None:
        self.messages: Counter[tuple[str, str, str]] = Counter()
        """By direction, channel and type."""
        self.bytes: Counter[tuple[str, str, str]] = Counter()
        self.fields: Counter[tuple[str, str]] = Counter()
        """Bytes by direction and field."""
        self.largest: Seen | None = None
        self.unexplained: Counter[str] = Counter()
        """What could not be read, or is not described, and how often."""
        self.signal_samples: dict[str, int] = {}
        """Samples of signal that each gateway's newest birth has told."""

    def add(self, seen: Seen) -> None:
        row = (seen.direction, seen.channel, seen.kind)
        self.messages[row] += 1
        self.bytes[row] += seen.size
        if self.largest is None or seen.size > self.largest.size:
            self.largest = seen
        if seen.problem:
            self.unexplained[f"{seen.topic}: {seen.problem}"] += 1
            self.fields[seen.direction, "no message of ours"] += seen.size
            return
        for field in seen.fields:
            self.fields[seen.direction, field.key or f"{seen.kind}.{field.name}"] += field.size
        if seen.overhead:
            self.fields[seen.direction, NO_FIELD] += seen.overhead
        if seen.seal_bytes:
            self.fields[seen.direction, SEALS] += seen.seal_bytes
        for field in seen.unexplained:
            self.unexplained[f"{seen.kind}, {field.key or field.name}: {field.problem}"] += 1
        if seen.kind == "Birth":
            told = next((f.value for f in seen.fields if f.key == "Birth.signal_samples"), None)
            self.signal_samples[seen.gateway] = sum(told.values()) if isinstance(told, dict) else 0

    def from_data(self, direction: str) -> dict[str, int]:
        """Fields in this direction that were computed from data, with their bytes, the largest first."""
        found = {
            key: size
            for (way, key), size in self.fields.items()
            if way == direction and key in ABOUT and ABOUT[key].origin is Origin.DATA
        }
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def up_bytes(self) -> int:
        return sum(size for (direction, _, _), size in self.bytes.items() if direction == "up")

    def statement(self) -> list[str]:
        """What can be said of it, in sentences."""
        found, up = self.from_data("up"), self.up_bytes()
        if not up:
            lines = ["No gateway has said anything in this time."]
        elif found:
            listed = ", ".join(f"{key} {size:,} B" for key, size in found.items())
            lines = [
                f"Of {up:,} bytes from gateways {sum(found.values()):,} hold numbers computed from recordings: "
                f"{listed}.",
                *(f"  {key}: {ABOUT[key].tells}." for key in found),
            ]
        else:
            lines = [f"None of the {up:,} bytes from gateways holds numbers computed from recordings."]
        if self.unexplained:
            count = sum(self.unexplained.values())
            lines.append(
                f"{count:,} fields or messages could not be explained, and nothing can be said of what they carry:"
            )
            lines += [f"  {text} ({times:,} times)" for text, times in self.unexplained.most_common(20)]
        elif up:
            lines.append(
                "Every byte belongs to a field that is described, and no field is a signal, a window or a file."
            )
        samples = sum(self.signal_samples.values())
        if samples:
            lines.append(
                f"The gateways say that they hold {samples:,} samples of signal: {2 * samples:,} bytes or more."
            )
        return lines

    def as_json(self) -> dict[str, Any]:
        largest = self.largest
        return {
            "messages": [
                {"direction": row[0], "channel": row[1], "type": row[2], "messages": count, "bytes": self.bytes[row]}
                for row, count in sorted(self.messages.items())
            ],
            "fields": [
                {
                    "direction": way,
                    "field": key,
                    "bytes": size,
                    "from": ABOUT[key].origin.value if key in ABOUT else None,
                }
                for (way, key), size in sorted(self.fields.items(), key=lambda item: -item[1])
            ],
            "largest": None
            if largest is None
            else {"topic": largest.topic, "type": largest.kind, "bytes": largest.size},
            "unexplained": [{"what": what, "times": times} for what, times in self.unexplained.most_common()],
            "signal_samples_at_gateways": sum(self.signal_samples.values()),
            "statement": self.statement(),
        }
