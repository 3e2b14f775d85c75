"""What a check came to, and how that is shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

import msgspec

__all__ = ["Finding", "Status", "as_json", "as_text", "failed", "ok", "unknown", "warned"]


class Status(Enum):
    OK = "ok"
    WARN = "warn"
    """It works, and will not for ever, or not for everybody."""
    FAIL = "FAIL"
    """It does not work, or lets in who should not be."""
    UNKNOWN = "unknown"
    """It could not be found out from here."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One check: what was looked at, what was found, and what to do where that is not well."""

    check: str
    status: Status
    said: str
    todo: str = ""


def ok(check: str, said: str) -> Finding:
    return Finding(check=check, status=Status.OK, said=said)


def warned(check: str, said: str, todo: str) -> Finding:
    return Finding(check=check, status=Status.WARN, said=said, todo=todo)


def failed(check: str, said: str, todo: str) -> Finding:
    return Finding(check=check, status=Status.FAIL, said=said, todo=todo)


def unknown(check: str, said: str, todo: str = "") -> Finding:
    return Finding(check=check, status=Status.UNKNOWN, said=said, todo=todo)


def as_text(findings: Sequence[Finding]) -> str:
    """A line a check, what to do below it, and how many there are of each."""
    width = max((len(finding.check) for finding in findings), default=0)
    lines = []
    for finding in findings:
        lines.append(f"{finding.status.value:7}  {finding.check:{width}}  {_safe(finding.said)}")
        if finding.todo:
            lines.append(f"{'':7}  {'':{width}}  -> {_safe(finding.todo)}")
    return "\n".join([*lines, _counted(findings)])


def _counted(findings: Iterable[Finding]) -> str:
    counts = Counter(finding.status for finding in findings)
    return ", ".join(f"{counts[status]} {status.value}" for status in Status if counts[status])


def as_json(role: str, findings: Sequence[Finding]) -> str:
    return msgspec.json.encode(
        {
            "role": role,
            "sound": all(finding.status is not Status.FAIL for finding in findings),
            "findings": [
                {"check": one.check, "status": one.status.value, "said": one.said, "todo": one.todo or None}
                for one in findings
            ],
        }
    ).decode()


def _safe(text: str) -> str:
    """A certificate's or a broker's own words must not steer a terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)
