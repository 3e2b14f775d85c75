"""Which part of the ledger a report is of: a span of time, some gateways, and how they are put together. Pure.

Owns how a moment is said on the command line, and which gateways belong to a site. The coordinator knows of sites what
gateways tell: one with the tag `site:north` belongs to the site north, as the broker's settings call it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

__all__ = ["EVERYTHING", "SITE", "By", "View", "moment", "site_of", "utc"]

SITE = "site:"
"""Before a site's name: the tag of its gateways."""

By = Literal["round", "gateway", "site", "tag"]

_SECONDS = {"m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 7 * 86_400.0}
_AGO = re.compile(r"([0-9]{1,6})([mhdw])\Z")
_LATEST = 1 << 34
"""The year 2514, before calendars of 32 or 64 bits object."""

_Moment = Annotated[float, Meta(ge=0, le=_LATEST)]
_Names = Annotated[tuple[Annotated[str, Meta(min_length=1, max_length=64)], ...], Meta(max_length=256)]


class View(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Rounds that opened from `since` until before `until`, both unix seconds, and gateways that are in each of the
    lists that are not empty: by name, of one of the sites, with one of the tags."""

    since: _Moment | None = None
    until: _Moment | None = None
    gateways: _Names = ()
    sites: _Names = ()
    tags: _Names = ()
    by: By = "round"

    def __post_init__(self) -> None:
        for what, at in (("since", self.since), ("until", self.until)):
            if at is not None and not 0 <= at <= _LATEST:  # false for what is not a number, too
                raise ValueError(f"{what}: expected a time of 0 to {_LATEST} unix seconds, got {at}")
        if self.since is not None and self.until is not None and self.since >= self.until:
            raise ValueError(f"expected a beginning before the end, got {utc(self.since)} and {utc(self.until)}")

    @property
    def in_time(self) -> bool:
        """Whether it is of a span of time."""
        return self.since is not None or self.until is not None

    @property
    def of_some(self) -> bool:
        """Whether it is of some gateways."""
        return bool(self.gateways or self.sites or self.tags)

    def holds(self, at: float) -> bool:
        """Whether this moment lies in its span."""
        return (self.since is None or at >= self.since) and (self.until is None or at < self.until)

    def chooses(self, gateway: str, tags: frozenset[str]) -> bool:
        return (
            (not self.gateways or gateway in self.gateways)
            and (not self.sites or site_of(tags) in self.sites)
            and (not self.tags or not tags.isdisjoint(self.tags))
        )

    def told(self) -> str:
        """In words, for the head of a page; empty where it is of everything."""
        parts = [self.span] if self.in_time else []
        for what, names in (("gateway", self.gateways), ("site", self.sites), ("tag", self.tags)):
            parts += [f"{what} {' or '.join(names)}"] if names else []
        return ", ".join(parts)

    @property
    def span(self) -> str:
        """In words; empty where it is of all time."""
        if self.until is None:
            return "" if self.since is None else f"since {utc(self.since)} UTC"
        if self.since is None:
            return f"until {utc(self.until)} UTC"
        return f"from {utc(self.since)} to {utc(self.until)} UTC"


EVERYTHING = View()


def site_of(tags: Iterable[str]) -> str:
    """Of a gateway with these tags; empty where none of them says it."""
    return min((tag[len(SITE) :] for tag in tags if tag.startswith(SITE)), default="")


def moment(text: str, now: float) -> float:
    """Unix seconds of '7d', '36h', '90m' or '2w' ago, or of a date or time such as 2026-11-01 or 2026-11-01T06:00.

    That is UTC where it does not say otherwise. Raises ValueError.
    """
    found = _AGO.match(text)
    if found is not None:
        return max(0.0, now - int(found[1]) * _SECONDS[found[2]])
    try:
        at = datetime.fromisoformat(text)
        seconds = (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        seconds = math.nan
    if not 0 <= seconds <= _LATEST:
        raise ValueError(f"expected 90m, 36h, 7d or 2w, or a date such as 2026-11-01 or 2026-11-01T06:00, got {text!r}")
    return seconds


def utc(at: float) -> str:
    """A moment for people; without its time where that is midnight."""
    when = datetime.fromtimestamp(at, tz=UTC)
    return when.strftime("%Y-%m-%d" if when.hour == when.minute == when.second == 0 else "%Y-%m-%d %H:%M")
