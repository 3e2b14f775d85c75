"""What a CA has issued, and the tokens that it has given out: lines of JSON, and what follows from them. Pure.

Owns the two files' form and the sentence who is in force. Refuses to know folders and keys. No line holds a secret: of
a token there is a hash.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta

from fedmq.ca.certificates import Revoked, utc

__all__ = [
    "CLIENTS",
    "KINDS",
    "Issued",
    "Kind",
    "RecordError",
    "Token",
    "in_force",
    "newest",
    "read_lines",
    "revoked",
    "write_lines",
]

Kind = Literal["gateway", "observer", "site", "broker", "coordinator"]
KINDS: tuple[Kind, ...] = ("gateway", "observer", "site", "broker", "coordinator")
CLIENTS: tuple[Kind, ...] = ("gateway", "observer", "site")
"""Kinds that any number may have, and that a token may be for."""

RecordT = TypeVar("RecordT", bound=msgspec.Struct)


class RecordError(ValueError):
    """A file of records that cannot be read: which line."""


class Issued(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One certificate, or a card alone where the certificate is a company CA's."""

    name: str
    serial: Annotated[str, Meta(pattern=r"^[0-9a-f]{1,16}$")]
    """In hexadecimal: JSON's numbers end at 53 bits for many readers."""
    kind: Kind
    begins: int
    expires: int
    """Unix seconds, as the others."""
    card_alone: bool = False
    revoked: int | None = None
    reason: str | None = None

    @property
    def number(self) -> int:
        return int(self.serial, 16)

    def is_in_force(self, now: float) -> bool:
        return self.revoked is None and now < self.expires

    def days_left(self, now: float) -> int:
        return int((self.expires - now) // 86_400)


class Token(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A one-time token, by what its secret hashes to."""

    hash: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]
    name: str
    kind: Kind
    made: int
    expires: int
    replace: bool = False
    """Whether it may be used while a certificate of this name is in force, which is revoked then."""
    used: int | None = None
    serial: str | None = None
    """What it was used for."""
    withdrawn: int | None = None


def in_force(issued: Iterable[Issued], name: str, now: float) -> list[Issued]:
    """Oldest first."""
    return [one for one in issued if one.name == name and one.is_in_force(now)]


def newest(issued: Sequence[Issued], name: str) -> Issued | None:
    """The last that was issued to a name, whatever became of it."""
    return next((one for one in reversed(issued) if one.name == name), None)


def revoked(issued: Iterable[Issued]) -> list[Revoked]:
    return [
        Revoked(serial=one.number, name=one.name, reason=one.reason or "unspecified", at=utc(one.revoked))
        for one in issued
        if one.revoked is not None
    ]


def read_lines(data: bytes, kind: type[RecordT], where: str) -> list[RecordT]:
    """Raises RecordError."""
    found = []
    for place, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        try:
            found.append(msgspec.json.decode(line, type=kind))
        except (msgspec.MsgspecError, ValueError) as error:
            raise RecordError(f"{where}, line {place}: {error}; put the file back from a copy") from None
    return found


def write_lines(records: Iterable[msgspec.Struct]) -> bytes:
    return b"".join(msgspec.json.encode(record) + b"\n" for record in records)
