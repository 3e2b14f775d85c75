"""What bytes cost, and how an amount reads. Pure.

Owns the rule: a gigabyte is 10^9 bytes, as data plans count them, and every byte costs the same. Refuses to know
thresholds, flat rates and roaming of a plan, and which bytes are billed.
"""

from __future__ import annotations

import math
import re

import msgspec

__all__ = ["DEFAULT", "MONEY", "Price", "amount", "cost", "from_bytes", "price_of", "to_bytes"]

GIGABYTE = 1_000_000_000

MONEY = "money"
"""Key of the ledger's state under which the coordinator keeps its price, for who reads the file alone."""

MOST_PER_GB = 1_000_000.0

CURRENCY = r"^[A-Z]{3}\Z"
"""A code of ISO 4217."""

SMALLEST = 0.000_001
"""No smaller amount is written out."""


class Price(msgspec.Struct, frozen=True, kw_only=True):
    """Of a gigabyte of mobile data. Raises ValueError for what is no price."""

    per_gb: float = 10.0
    currency: str = "EUR"

    def __post_init__(self) -> None:
        if not 0 <= self.per_gb <= MOST_PER_GB:  # false for what is not a number, too
            raise ValueError(f"price per GB: expected a number from 0 to {MOST_PER_GB:,.0f}, got {self.per_gb}")
        if not re.match(CURRENCY, self.currency):
            raise ValueError(f"currency: expected three capital letters such as EUR, got {self.currency!r}")


DEFAULT = Price()


def cost(size: float, price: Price) -> float:
    """Of so many bytes, in the price's currency."""
    return size / GIGABYTE * price.per_gb


def amount(value: float, currency: str) -> str:
    """For people: '1,234.50 EUR', '0.31 EUR'; below a tenth with two digits that count: '0.0012 EUR'."""
    size = abs(value)
    if size == 0 or size >= 0.0995:
        return f"{value:,.2f} {currency}"
    if size < SMALLEST:
        return f"less than {SMALLEST:.6f} {currency}"
    return f"{value:.{1 - math.floor(math.log10(size))}f} {currency}"


def price_of(price: Price, *, per_gb: float | None = None, currency: str | None = None) -> Price:
    """This price, with what somebody has named in its place. Raises ValueError."""
    return Price(
        per_gb=price.per_gb if per_gb is None else per_gb, currency=price.currency if currency is None else currency
    )


def to_bytes(price: Price) -> bytes:
    return msgspec.json.encode(price)


def from_bytes(stored: bytes | None) -> Price:
    """The default where nothing was kept, or what was kept is no price: other software may have written the file."""
    if stored is None:
        return DEFAULT
    try:
        return msgspec.json.decode(stored, type=Price)
    except msgspec.MsgspecError:
        return DEFAULT
