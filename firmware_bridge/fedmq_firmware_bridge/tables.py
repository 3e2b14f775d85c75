"""From TOML tables to frozen dataclasses: every mistake at once, each with its key.

Owns the walk through the tables. Refuses to know what they say: a dataclass derives from `Table`, its fields have the
bounds that they are declared with, and its `check` says what is wrong between them. The package is a leaf, so this is a
small cousin of the settings of the programs.

A field is named as its key, unless its metadata has `key`: TOML says `[[channel]]` where code says `channels`. With
`read` in its metadata a field is made of the text that the file has; `read` may raise TableError. Keys in messages
count arrays from 1: `group[2].channel[1].scale`.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

__all__ = ["Table", "TableError", "build", "build_all", "number", "tables", "text"]

MAX_TABLES = 1000
"""Of one array."""

SHOWN = 60
"""Characters of a wrong value that a message repeats."""

TableT = TypeVar("TableT", bound="Table")


class TableError(ValueError):
    """Tables that cannot be used. `mistakes`: key and text; the text of the error lists them, one a line."""

    def __init__(self, mistakes: Sequence[tuple[str, str]]) -> None:
        self.mistakes = tuple(mistakes)
        super().__init__("\n".join(f"{key}: {told}" if key else told for key, told in self.mistakes))


@dataclass(frozen=True, kw_only=True)
class Table:
    """Base of what comes from a table. A value that exists is right: it is checked as it is made. Raises TableError."""

    def __post_init__(self) -> None:
        mistakes = [
            (_key(field), wrong)
            for field in dataclasses.fields(self)
            if (wrong := _wrong(field, getattr(self, field.name)))
        ]
        mistakes = mistakes or list(self.check())
        if mistakes:
            raise TableError(mistakes)

    def check(self) -> Iterable[tuple[str, str]]:
        """Keys and what is wrong between them. Each alone is right by then."""
        return ()


def number(least: float, most: float, **more: Any) -> Any:
    """A field for a number within bounds. `more`: as for `dataclasses.field`."""

    def wrong(value: float) -> str:
        return "" if least <= value <= most else f"expected {least:,} to {most:,}, got {value:,}"

    return dataclasses.field(metadata={"wrong": wrong}, **more)


def text(pattern: str, expected: str, **more: Any) -> Any:
    """A field for a text that matches a pattern as a whole; `expected` says it in words."""

    def wrong(value: str) -> str:
        return "" if re.fullmatch(pattern, value) else f"expected {expected}, got {_shown(value)}"

    return dataclasses.field(metadata={"wrong": wrong}, **more)


def tables(key: str, most: int) -> Any:
    """A field for an array of tables, `[[key]]`: one at least."""

    def wrong(value: Sequence[Table]) -> str:
        return "" if 1 <= len(value) <= most else f"expected one [[{key}]] or more, up to {most:,}; got {len(value):,}"

    return dataclasses.field(metadata={"key": key, "wrong": wrong})


def _key(field: dataclasses.Field[Any]) -> str:
    key: str = field.metadata.get("key", field.name)
    return key


def _wrong(field: dataclasses.Field[Any], value: Any) -> str:
    """What is wrong with a value of the right type, else nothing."""
    wrong: str = field.metadata["wrong"](value) if "wrong" in field.metadata else ""
    return wrong


def build(cls: type[TableT], table: Any, *, key: str = "") -> TableT:
    """The dataclass of a table. `key`: where the table stands in its file. Raises TableError."""
    mistakes: list[tuple[str, str]] = []
    made = _build(cls, table, key, mistakes)
    if made is None:
        raise TableError(mistakes)
    return made


def build_all(cls: type[TableT], tables: Any, *, key: str) -> tuple[TableT, ...]:
    """The dataclasses of an array of tables, such as `[[modbus]]`. Raises TableError."""
    mistakes: list[tuple[str, str]] = []
    made = _build_all(cls, tables, key, mistakes)
    if mistakes:
        raise TableError(mistakes)
    return made


def _build(cls: type[TableT], table: Any, key: str, mistakes: list[tuple[str, str]]) -> TableT | None:
    if not isinstance(table, Mapping):
        mistakes.append((key, f"expected a table, got {_shown(table)}"))
        return None
    before = len(mistakes)
    prefix = f"{key}." if key else ""
    types = get_type_hints(cls)
    fields = {_key(field): field for field in dataclasses.fields(cls)}
    for strange in sorted(map(str, table.keys() - fields.keys())):
        near = difflib.get_close_matches(strange, fields, n=1)
        mistakes.append((prefix + strange[:SHOWN], "no such key" + (f"; did you mean {near[0]}?" if near else "")))
    values: dict[str, Any] = {}
    for name, field in fields.items():
        if name in table:
            values[field.name] = _value(field, types[field.name], table[name], prefix + name, mistakes)
        elif field.default is dataclasses.MISSING:
            mistakes.append((prefix + name, "is missing"))
    if len(mistakes) > before:
        return None
    try:
        return cls(**values)
    except TableError as error:
        mistakes.extend((prefix + name, told) for name, told in error.mistakes)
    return None


def _build_all(cls: type[TableT], given: Any, key: str, mistakes: list[tuple[str, str]]) -> tuple[TableT, ...]:
    if not isinstance(given, list):
        mistakes.append((key, f"expected [[{key.rpartition('.')[2]}]], an array of tables, got {_shown(given)}"))
        return ()
    if len(given) > MAX_TABLES:
        mistakes.append((key, f"expected up to {MAX_TABLES:,} tables, got {len(given):,}"))
        return ()
    made = [_build(cls, table, f"{key}[{position}]", mistakes) for position, table in enumerate(given, 1)]
    return tuple(one for one in made if one is not None)


def _value(field: dataclasses.Field[Any], kind: Any, given: Any, key: str, mistakes: list[tuple[str, str]]) -> Any:
    """The value of a key; None, and a mistake or more, where there is none."""
    before = len(mistakes)
    value: Any
    if get_origin(kind) is tuple:
        value = _build_all(get_args(kind)[0], given, key, mistakes)
    elif "read" in field.metadata:
        value = _read(field.metadata["read"], given, key, mistakes)
    else:
        value = _plain(kind, given, key, mistakes)
    if len(mistakes) == before and (wrong := _wrong(field, value)):
        mistakes.append((key, wrong))
    return value


def _read(read: Callable[[str], Any], given: Any, key: str, mistakes: list[tuple[str, str]]) -> Any:
    if not isinstance(given, str):
        mistakes.append((key, f"expected a text, got {_shown(given)}"))
        return None
    try:
        return read(given)
    except TableError as error:
        mistakes.extend((f"{key}: {name}" if name else key, told) for name, told in error.mistakes)
    return None


def _plain(kind: Any, given: Any, key: str, mistakes: list[tuple[str, str]]) -> Any:
    if get_origin(kind) is Literal:
        # True equals 1, and is not one of 1 and 2 to anybody who writes a file.
        if any(given == choice and type(given) is type(choice) for choice in get_args(kind)):
            return given
        expected = "one of " + ", ".join(map(_shown, get_args(kind)))
    else:
        if kind is float and type(given) is int and abs(given) < 1 << 53:
            given = float(given)
        if type(given) is kind and (kind is not float or math.isfinite(given)):
            return given
        expected = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}[kind]
    mistakes.append((key, f"expected {expected}, got {_shown(given)}"))
    return None


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return "a table"
    told = f'"{value}"' if isinstance(value, str) else str(value)
    return told if len(told) <= SHOWN else told[:SHOWN] + "…"
