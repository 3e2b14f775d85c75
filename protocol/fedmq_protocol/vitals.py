"""What a gateway tells of its battery and its link: four readings in one whole number.

It goes with every answer, where each byte is paid for by volume: a gateway on mains fits in one byte, one with a
battery in three. From the lowest bit on, and fixed for ever:

    3 bits   kind of link: 0 unknown, else its place in LINKS, counted from 1
    2 bits   whether the link is metered      0 unknown, 1 no, 2 yes
    2 bits   whether there is mains power     the same
    7 bits   battery: 0 unknown or none, else its charge in per cent, plus 1

What a newer sender says in other ways is unknown here, so that its answers are still read.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self, TypeAlias, get_args

import msgspec
from msgspec import Meta

__all__ = ["LINKS", "LinkKind", "ToldVitals", "VitalsCode"]

LinkKind = Literal["ethernet", "wifi", "cellular", "loopback", "other"]
LINKS: tuple[LinkKind, ...] = get_args(LinkKind)
"""In the order of their numbers: a new one goes to the end, and 7 is the last number that there is room for."""

VitalsCode: TypeAlias = Annotated[int, Meta(ge=0, le=0xFFFF)]
"""0: the gateway tells, and knows nothing. What fits in three bytes of MessagePack."""

_FLAGS: tuple[bool | None, ...] = (None, False, True, None)
_LINKS: tuple[LinkKind | None, ...] = (None, *LINKS, None, None)
"""By number."""


class ToldVitals(msgspec.Struct, frozen=True, kw_only=True):
    """Each is None while the gateway does not know it. A machine without a battery has no charge."""

    battery_pct: Annotated[int, Meta(ge=0, le=100)] | None = None
    on_mains: bool | None = None
    link: LinkKind | None = None
    metered: bool | None = None
    """Whether data over the link is paid for by volume."""

    @property
    def code(self) -> int:
        """As it goes over the wire: a `VitalsCode`."""
        return (
            _LINKS.index(self.link)
            | _FLAGS.index(self.metered) << 3
            | _FLAGS.index(self.on_mains) << 5
            | (0 if self.battery_pct is None else self.battery_pct + 1) << 7
        )

    @classmethod
    def of(cls, code: int) -> Self:
        """What a number says. Never raises for one of 0 or more."""
        charge = (code >> 7 & 127) - 1
        return cls(
            battery_pct=charge if 0 <= charge <= 100 else None,
            on_mains=_FLAGS[code >> 5 & 3],
            link=_LINKS[code & 7],
            metered=_FLAGS[code >> 3 & 3],
        )

    def __str__(self) -> str:
        """For people: 'battery 42 %, not on mains, wifi, metered'."""
        said = [
            *([] if self.battery_pct is None else [f"battery {self.battery_pct} %"]),
            *([] if self.on_mains is None else ["on mains" if self.on_mains else "not on mains"]),
            *([] if self.link is None else [self.link]),
            *([] if self.metered is None else ["metered" if self.metered else "not metered"]),
        ]
        return ", ".join(said) or "nothing known"
