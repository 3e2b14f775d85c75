"""Times as people write them, for labels: to Unix seconds. Pure."""

from __future__ import annotations

import re
from datetime import datetime

__all__ = ["parse_time"]

_AGO = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

EXPECTED = (
    "expected a time such as 2026-11-29T08:00 (local, or with an offset), 08:00 (today), now, or 90m, 2h, 1d (ago)"
)


def parse_time(text: str, now: datetime) -> float:
    """Unix seconds. `now` is local and knows its zone; a time without an offset is in that zone. Raises ValueError."""
    text = text.strip()
    if text == "now":
        return now.timestamp()
    if ago := re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?)([smhd])", text):
        return now.timestamp() - float(ago[1]) * _AGO[ago[2]]
    try:
        if re.fullmatch(r"\d{1,2}:\d{2}(:\d{2})?", text):
            hour, minute, *second = (int(part) for part in text.split(":"))
            return now.replace(hour=hour, minute=minute, second=second[0] if second else 0, microsecond=0).timestamp()
        parsed = datetime.fromisoformat(text)
        # Without an offset: as the clock on this machine's wall shows it, also where summer time begins in between.
        return parsed.timestamp()
    except (ValueError, OverflowError, OSError):
        raise ValueError(f"{EXPECTED}; got {text[:40]!r}") from None
