"""The one loader of settings: a TOML file and the command line become a frozen dataclass that is right.

Owns the rule of what a setting is: a field of a `Table`, annotated with its bounds and its description
(`Annotated[int, Meta(ge=1, description="…")]`). From those annotations alone come the checks, the messages and
the example file. A field that is itself a `Table` is a table of the file; a tuple of them is a list of tables, as
`[[port]]` begins one.

Refuses to know any program's settings but the connection's, which gateway and coordinator share.

Rules it keeps:

- Every mistake is reported, all at once, each with its full key, what was expected and what came.
- A value that exists is right: a `Table` made in code is checked as one that was loaded.
- Relative paths in a file start at the file's folder; on the command line and in code, where the program stands.
- Secrets are named by the file that holds them, are read when they are used, and reach no message and no repr.
- A settings file that everybody on the machine may change is refused, and a secret that they may read; see `secrets`.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import os
import re
import textwrap
import tomllib
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from fedmq_protocol.secrets import CREDENTIAL, SecretError, credential, open_settings, read_secret
from fedmq_protocol.topics import check_name

__all__ = ["ConnectionSettings", "Mistake", "SettingsError", "Table", "document", "load", "named"]

MAX_FILE_BYTES = 1 << 20
"""A settings file is read no further: a wrong path (a disk image, a recording) must not fill the memory."""

MAX_SECRET_BYTES = 4096

MAX_ROWS = 256
"""Tables of one list."""

SHOWN = 60
"""Characters of a wrong value that a message repeats."""

TableT = TypeVar("TableT", bound="Table")


class Mistake(NamedTuple):
    """One thing to mend. `key` is dotted, and empty when the whole file or command line is meant."""

    key: str
    text: str

    def __str__(self) -> str:
        return f"{self.key}: {self.text}" if self.key else self.text


class SettingsError(ValueError):
    """Settings that cannot be used. Its text lists every mistake, one a line."""

    def __init__(self, mistakes: Sequence[Mistake]) -> None:
        self.mistakes = tuple(mistakes)
        super().__init__("\n".join(map(str, self.mistakes)))


@dataclass(frozen=True, kw_only=True)
class Table:
    """Base of every settings dataclass: checks its fields as it is made. Raises SettingsError."""

    def __post_init__(self) -> None:
        mistakes: list[Mistake] = []
        for setting in _settings(type(self)):
            value = getattr(self, setting.key)
            if setting.rows is not None:
                mistakes += [Mistake(setting.key, text) for text in _wrong_rows(value, setting)]
            elif setting.table is None:
                _, text = _fit(value, setting)
                if text:
                    mistakes.append(Mistake(setting.key, text))
            elif not isinstance(value, setting.table):
                mistakes.append(Mistake(setting.key, f"expected a {setting.table.__name__}, got {_shown(value)}"))
        if not mistakes:
            mistakes.extend(Mistake(key, text) for key, text in self.check())
        if mistakes:
            raise SettingsError(mistakes)

    def check(self) -> Iterable[tuple[str, str]]:
        """Mistakes in how the fields relate, each a key of this table and a text. Each field alone is right by then."""
        return ()


@dataclass(frozen=True, kw_only=True)
class ConnectionSettings(Table):
    """The broker, and how this program reaches it."""

    federation: Annotated[
        str, Meta(description="Name of the federation: the part of every topic that keeps two apart.")
    ] = "plant"
    host: Annotated[str, Meta(min_length=1, max_length=253, description="Host name or address of the MQTT broker.")] = (
        "127.0.0.1"
    )
    port: Annotated[
        int, Meta(ge=1, le=65_535, description="Port of the broker: usually 1883, and 8883 where TLS is spoken.")
    ] = 1883
    protocol: Annotated[
        Literal["auto", "5", "3.1.1"],
        Meta(description='Version of MQTT. "auto" tries 5 and falls back to 3.1.1 where the broker refuses it.'),
    ] = "auto"
    keepalive_seconds: Annotated[
        int,
        Meta(
            ge=5,
            le=3600,
            description="Seconds of silence after which the client pings the broker. The broker declares it gone after"
            " one and a half times as long. At 60 an idle gateway's pings are about 6 kB a day.",
        ),
    ] = 60
    username: Annotated[
        str | None,
        Meta(
            min_length=1,
            max_length=256,
            examples=["gateway-1"],
            description="User name at the broker, where it asks for one. With client certificates leave it out.",
        ),
    ] = None
    password_file: Annotated[
        Path | None,
        Meta(
            examples=["secrets/broker-password"],
            extra={"credential": True},
            description="File whose first line is the password, which only this program's user may read (chmod 600)."
            ' "credential:NAME", here and for the files below, is a credential of systemd.',
        ),
    ] = None
    identity_dir: Annotated[
        Path | None,
        Meta(
            examples=["/etc/fedmq/identity"],
            extra={"credential": True},
            description="Folder of this program's identity, as `fedmq ca issue` or `fedmq gateway enrol` makes it:"
            " certificate, keys, and whom to believe. With it TLS is spoken, and messages are signed or carry a MAC, so"
            " that neither the broker nor another gateway can forge one. The three files below may be elsewhere.",
        ),
    ] = None
    tls: Annotated[
        bool, Meta(description="Whether to speak TLS. Without ca_file the broker is checked against the system's CAs.")
    ] = False
    ca_file: Annotated[
        Path | None,
        Meta(
            examples=["tls/ca.crt"],
            extra={"credential": True},
            description="PEM file of the CAs that may sign the broker's certificate.",
        ),
    ] = None
    certificate_file: Annotated[
        Path | None,
        Meta(
            examples=["tls/client.crt"],
            extra={"credential": True},
            description="PEM file of this client's own certificate; its CN is the identity.",
        ),
    ] = None
    key_file: Annotated[
        Path | None,
        Meta(
            examples=["tls/client.key"],
            extra={"credential": True},
            description="PEM file of the key of certificate_file, which only this program's user may read (chmod 600).",
        ),
    ] = None
    reconnect_min_seconds: Annotated[
        float,
        Meta(
            ge=0.05,
            le=3600,
            description="Seconds before the first attempt to reconnect. It doubles with each, with jitter.",
        ),
    ] = 1.0
    reconnect_max_seconds: Annotated[
        float, Meta(ge=0.05, le=86_400, description="Seconds that the wait between two attempts never exceeds.")
    ] = 120.0

    def check(self) -> Iterator[tuple[str, str]]:
        yield from named("federation", self.federation)
        if self.reconnect_max_seconds < self.reconnect_min_seconds:
            yield (
                "reconnect_max_seconds",
                f"expected at least reconnect_min_seconds ({self.reconnect_min_seconds:g}),"
                f" got {self.reconnect_max_seconds:g}",
            )
        if self.password_file is not None and self.username is None:
            yield "username", "required where there is a password_file"
        if (self.certificate_file is None) != (self.key_file is None):
            missing, given = (
                ("key_file", "certificate_file") if self.key_file is None else ("certificate_file", "key_file")
            )
            yield missing, f"required where there is a {given}"
        if not self.tls and self.identity_dir is None:
            for key in ("ca_file", "certificate_file", "key_file"):
                if getattr(self, key) is not None:
                    yield key, "has no effect without tls = true or identity_dir; set that, or take this key out"

    def password(self) -> str | None:
        """The password as its file holds it now, None where there is none. Raises SettingsError if unreadable."""
        return None if self.password_file is None else _secret("password_file", self.password_file)


def named(key: str, name: str) -> Iterator[tuple[str, str]]:
    """For a `check`: the mistake of a name that cannot stand in a topic."""
    try:
        check_name(name, key)
    except ValueError as error:
        yield key, str(error).partition(": ")[2] + f", got {_shown(name)}"


def load(
    cls: type[TableT], path: Path | None, overrides: Sequence[str] = (), below: Mapping[str, Any] | None = None
) -> TableT:
    """Settings from a TOML file (JSON where it ends in .json), then from `overrides`, which win.

    An override is `key=value` or `table.key=value`. The value is read as TOML where that fits the setting, else as
    bare text: `name=gw-1` needs no quotes, and a list no brackets. Nothing after `=` gives back the default.
    `below` are values that hold where neither says anything, table by table. Raises SettingsError with all mistakes of
    both.
    """
    mistakes: list[Mistake] = []
    given: Mapping[str, Any] = {}
    if path is not None:
        try:
            given = _read(path)
        except SettingsError as error:
            mistakes.extend(error.mistakes)
    read = not mistakes
    builder = _Builder(cls, path, mistakes)
    built = builder.build(cls, _over(below or {}, given), builder.overridden(overrides), "", complete=read)
    if built is None or mistakes:
        raise SettingsError(mistakes)
    return built


def _over(below: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Both, table by table; what is given wins."""
    whole = {**below, **given}
    for key, value in below.items():
        if isinstance(value, Mapping) and isinstance(given.get(key), Mapping):
            whole[key] = _over(value, given[key])
    return whole


def document(cls: type[Table]) -> str:
    """The example file: every key with its description and bounds, `#key = value` where that is the default.

    A key that is required, or whose Meta has `extra={"stated": True}`, is stated with its first example, so that the
    file can be loaded as it is.
    """
    lines = [*_comment(_about(cls)), "#"]
    lines += _comment(
        "A line that begins with '#' and a key is that setting's default, or an example where there is none."
    )
    lines += _document(cls, "")
    return "\n".join(lines) + "\n"


@dataclass(frozen=True, kw_only=True)
class _Setting:
    """What the annotation of one field says."""

    key: str
    kind: Any
    """The type without None and without Meta."""
    metas: tuple[Meta, ...]
    optional: bool
    default: Any
    """dataclasses.MISSING where the setting is required."""

    @property
    def table(self) -> type[Table] | None:
        return self.kind if isinstance(self.kind, type) and issubclass(self.kind, Table) else None

    @property
    def rows(self) -> type[Table] | None:
        """The table of each entry, where the setting is a list of tables."""
        entry = get_args(self.kind)[0] if get_origin(self.kind) is tuple else None
        return entry if isinstance(entry, type) and issubclass(entry, Table) else None

    @property
    def required(self) -> bool:
        return self.default is dataclasses.MISSING

    def said(self, attribute: str) -> Any:
        """The outermost Meta that says something of it, None if none does."""
        return next((v for m in reversed(self.metas) if (v := getattr(m, attribute)) is not None), None)

    @property
    def expected(self) -> str:
        return _expected(self.kind, self.metas)


def _settings(cls: type[Table]) -> tuple[_Setting, ...]:
    return _inspect(cast(Any, cls))


@cache
def _inspect(cls: type[Any]) -> tuple[_Setting, ...]:
    hints = get_type_hints(cls, include_extras=True)
    settings = []
    for field in dataclasses.fields(cls):
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        kind, metas, optional = _take_apart(hints[field.name])
        settings.append(_Setting(key=field.name, kind=kind, metas=metas, optional=optional, default=default))
    return tuple(settings)


def _take_apart(annotation: Any) -> tuple[Any, tuple[Meta, ...], bool]:
    """`Annotated[X | None, Meta…]` as X, its Metas from inner to outer, and whether None is allowed."""
    if get_origin(annotation) is Annotated:
        inner, *extras = get_args(annotation)
        kind, metas, optional = _take_apart(inner)
        return kind, metas + tuple(m for m in extras if isinstance(m, Meta)), optional
    if get_origin(annotation) in (Union, types.UnionType):
        members = [member for member in get_args(annotation) if member is not types.NoneType]
        if len(members) == 1:
            kind, metas, _ = _take_apart(members[0])
            return kind, metas, True
        raise TypeError(f"a setting has one type, or one type and None: {annotation}")
    return annotation, (), False


class _Builder:
    """One loading: walks the tables, and gathers mistakes on the way."""

    def __init__(self, cls: type[Table], path: Path | None, mistakes: list[Mistake]) -> None:
        self.cls = cls
        self.path = path
        self.mistakes = mistakes

    def wrong(self, key: str, text: str, *, override: bool | None) -> None:
        """Notes a mistake of the command line, of the file, or, where `override` is None, of both together."""
        if not key.isprintable() or len(key) > 2 * SHOWN:
            key = json.dumps(key[: 2 * SHOWN])  # a key is the file's text too: it must not break the line
        origin = "on the command line" if override else f"in {self.path}" if self.path and override is False else ""
        self.mistakes.append(Mistake(key, f"{text} ({origin})" if origin else text))

    def overridden(self, overrides: Sequence[str]) -> dict[str, Any]:
        """The overrides as nested tables; the leaves are the raw texts."""
        root: dict[str, Any] = {}
        for override in overrides:
            key, equals, text = override.partition("=")
            key = key.strip()
            parts = key.split(".")
            if not equals or not all(parts):
                self.wrong("", f"expected key=value or table.key=value, got {_shown(key)}", override=True)
                continue
            table = root
            for part in parts[:-1]:
                if not isinstance(table.get(part), dict):
                    table[part] = {}
                table = table[part]
            table[parts[-1]] = text.strip()
        return root

    def build(
        self,
        cls: type[TableT],
        given: Mapping[str, Any],
        over: Mapping[str, Any],
        prefix: str,
        *,
        complete: bool = True,
    ) -> TableT | None:
        """The table, or None when anything in it is wrong. `complete`: whether a key not given is really missing."""
        before = len(self.mistakes)
        settings = {setting.key: setting for setting in _settings(cls)}
        for source in (given, over):
            for key in source:
                if key not in settings:
                    self.wrong(prefix + key, self.unknown(prefix, key), override=source is over)
        values: dict[str, Any] = {}
        for key, setting in settings.items():
            if setting.table is not None:
                self.build_table(setting, given.get(key, {}), over.get(key, {}), prefix + key, values, complete)
                continue
            if setting.rows is not None:
                self.build_rows(setting, given.get(key, []), key in over, prefix + key, values)
                continue
            chosen, override = (over[key], True) if key in over else (given.get(key), False)
            if override and isinstance(chosen, dict):
                self.wrong(prefix + key, "is a value, not a table", override=True)
            elif chosen is None or chosen == "" == over.get(key):
                if setting.required and complete:
                    self.wrong(prefix + key, f"missing; expected {setting.expected}", override=False)
            else:
                if _is_credential(chosen, setting):
                    value, text = _credential(chosen)
                elif override:
                    value, text = self.parsed(chosen, setting)
                else:
                    value, text = _fit(self.placed(chosen, setting), setting)
                if text:
                    self.wrong(prefix + key, text, override=override)
                values[key] = value
        if len(self.mistakes) > before or not complete:
            return None
        try:
            return cls(**values)
        except SettingsError as error:
            for mistake in error.mistakes:
                self.wrong(prefix + mistake.key, mistake.text, override=None)
        return None

    def build_table(
        self, setting: _Setting, given: Any, over: Any, key: str, values: dict[str, Any], complete: bool
    ) -> None:
        assert setting.table is not None
        for source in (given, over):
            if not isinstance(source, Mapping):
                text = f"expected a table: set its keys, as in {key}.{_settings(setting.table)[0].key} = …"
                self.wrong(key, text, override=source is over)
                return
        values[setting.key] = self.build(setting.table, given, over, key + ".", complete=complete)

    def build_rows(self, setting: _Setting, given: Any, overridden: bool, key: str, values: dict[str, Any]) -> None:
        assert setting.rows is not None
        if overridden:
            self.wrong(key, "is a list of tables, which only a file can state", override=True)
            return
        if not isinstance(given, list) or not all(isinstance(row, Mapping) for row in given):
            self.wrong(key, f"expected tables, each begun by [[{key}]]", override=False)
            return
        built = [self.build(setting.rows, row, {}, f"{key}[{place}].") for place, row in enumerate(given, start=1)]
        values[setting.key] = tuple(row for row in built if row is not None)

    def placed(self, value: Any, setting: _Setting) -> Any:
        """A path of the file, from the file's folder."""
        if setting.kind is Path and isinstance(value, str) and value and self.path is not None:
            return self.path.parent / value
        if (setting.said("extra") or {}).get("paths") and isinstance(value, list) and self.path is not None:
            return [str(self.path.parent / part) if isinstance(part, str) else part for part in value]
        return value

    def parsed(self, text: str, setting: _Setting) -> tuple[Any, str]:
        """The value of an override: the first reading that fits, else the mistake of the likeliest one."""
        readings = []
        parsed = _toml_value(text)
        if parsed is not None:
            readings.append(parsed)
        if setting.kind is float and re.fullmatch(r"[+-]?\.\d{1,20}", text):
            readings.append(float(text))  # TOML has no .5
        if get_origin(setting.kind) is tuple:
            listed = _toml_value(f"[{text}]")
            readings += [listed] if listed is not None else []
            readings.append([part.strip() for part in text.split(",")])
        readings.append(text)
        outcomes = [_fit(reading, setting) for reading in readings]
        return next((outcome for outcome in outcomes if not outcome[1]), outcomes[0])

    def unknown(self, prefix: str, key: str) -> str:
        """Names the nearest key: one that sounds alike in the same table, else the same key in another one."""
        everywhere = dict(_keys(self.cls, ""))
        here = [
            name[len(prefix) :] for name in everywhere if name.startswith(prefix) and "." not in name[len(prefix) :]
        ]
        near = [prefix + match for match in difflib.get_close_matches(key, here, n=1, cutoff=0.6)]
        last = key.rpartition(".")[2]
        near += [name for name, leaf in everywhere.items() if leaf == last]
        near += difflib.get_close_matches(prefix + key, everywhere, n=1, cutoff=0.75)
        return "no such setting" + (f"; did you mean {near[0]}?" if near else "")


def _keys(cls: type[Table], prefix: str) -> Iterator[tuple[str, str]]:
    """Every key with its table, and alone."""
    for setting in _settings(cls):
        yield prefix + setting.key, setting.key
        inner = setting.table or setting.rows
        if inner is not None:
            yield from _keys(inner, f"{prefix}{setting.key}.")


def _read(path: Path) -> Mapping[str, Any]:
    try:
        with open_settings(path) as handle, os.fdopen(handle, "rb", closefd=False) as file:
            content = file.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise SettingsError([Mistake("", f"{path}: expected a settings file of at most {MAX_FILE_BYTES:,} bytes")])
        values = json.loads(content) if path.suffix == ".json" else tomllib.loads(content.decode())
    except OSError as error:
        raise SettingsError([Mistake("", f"{path}: cannot be read: {error.strerror or error}")]) from None
    except SecretError as error:
        raise SettingsError([Mistake("", str(error))]) from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, SettingsError):
            raise
        language = "JSON" if path.suffix == ".json" else "TOML"
        raise SettingsError([Mistake("", f"{path}: is not {language}: {_shown_error(error)}")]) from None
    if not isinstance(values, dict):
        raise SettingsError([Mistake("", f"{path}: expected a table of settings, got {_shown(values)}")])
    return values


def _secret(key: str, path: Path) -> str:
    """The first line of a file. The message of a failure holds its path, never its content."""
    try:
        line = read_secret(path, MAX_SECRET_BYTES).decode().partition("\n")[0].rstrip("\r")
    except SecretError as error:
        raise SettingsError([Mistake(key, str(error))]) from None
    except UnicodeDecodeError:
        raise SettingsError([Mistake(key, f"{path}: expected a line of UTF-8 text")]) from None
    if not line:
        raise SettingsError([Mistake(key, f"{path}: expected a secret on the first line, which is empty")])
    return line


def _is_credential(value: Any, setting: _Setting) -> bool:
    wanted = bool((setting.said("extra") or {}).get("credential"))
    return wanted and isinstance(value, str) and value.strip('"').startswith(CREDENTIAL)


def _credential(text: str) -> tuple[Any, str]:
    try:
        return credential(text.strip('"')), ""
    except SecretError as error:
        return text, str(error)


def _toml_value(text: str) -> Any:
    """What TOML makes of the text, None if nothing."""
    try:
        document = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return None
    # A line break in the text could have smuggled in further keys.
    return document["value"] if len(document) == 1 else None


def _fit(value: Any, setting: _Setting) -> tuple[Any, str]:
    """The value as the setting's type, and an empty text, or what is wrong with it."""
    if value is None and setting.optional:
        return None, ""
    refused = f"expected {setting.expected}, got {_shown(value)}"
    if setting.kind is Path:
        return (Path(value), "") if isinstance(value, Path) or (isinstance(value, str) and value) else (value, refused)
    parts = value if isinstance(value, list | tuple) else (value,)
    if any(isinstance(part, float) and not math.isfinite(part) for part in parts):
        return value, refused
    try:
        return msgspec.convert(value, Annotated[(setting.kind, *setting.metas)] if setting.metas else setting.kind), ""
    except msgspec.ValidationError:
        return value, refused


def _expected(annotation: Any, metas: Sequence[Meta] = ()) -> str:
    """The type and its bounds in words."""
    kind, inner, _ = _take_apart(annotation)
    metas = (*inner, *metas)
    said = [meta.extra["expected"] for meta in metas if meta.extra and "expected" in meta.extra]
    if said:
        return str(said[-1])
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(_toml(choice) for choice in get_args(kind))
    if get_origin(kind) is tuple:
        return f"a list{_bounds(metas, 'entries')}, each {_expected(get_args(kind)[0])}"
    return _PLAIN[kind] + _bounds(metas, "characters" if kind is str else "")


_PLAIN = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", Path: "a path"}


def _bounds(metas: Sequence[Meta], unit: str) -> str:
    bound = {name: _number(value) for meta in metas for name in _BOUNDS if (value := getattr(meta, name)) is not None}
    if unit:
        low, high = bound.get("min_length", "0"), bound.get("max_length")
        if high is None:
            return f" of at least {low} {unit}" if low != "0" else ""
        return f" of up to {high} {unit}" if low == "0" else f" of {low} to {high} {unit}"
    if "ge" in bound and "le" in bound:
        return f" from {bound['ge']} to {bound['le']}"
    words = [f"{word} {bound[name]}" for name, word in _COMPARISONS if name in bound]
    return " " + " and ".join(words) if words else ""


_BOUNDS = ("ge", "gt", "le", "lt", "min_length", "max_length")
_COMPARISONS = (("ge", "of at least"), ("gt", "above"), ("le", "up to"), ("lt", "below"))


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.10g}"


def _shown(value: Any) -> str:
    """A wrong value for a message: short, and without what stands before an '@' (credentials of a URL)."""
    text = value if isinstance(value, str) else _toml(value)
    text = re.sub(r"[^\s/]+@", "…@", text)
    text = text if len(text) <= SHOWN else text[:SHOWN] + "…"
    return json.dumps(text, ensure_ascii=False) if isinstance(value, str) else text


def _shown_error(error: BaseException) -> str:
    # The text of a decoding error repeats the bytes; its type and place are enough.
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 at byte {error.start}"
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return str(error)


def _toml(value: Any) -> str:
    """A value as a TOML file would state it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return f"{value:_}" if abs(value) >= 100_000 else str(value)
    if isinstance(value, str | Path):
        return json.dumps(str(value), ensure_ascii=False)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, Mapping):
        return "a table"
    return str(value)


def _about(cls: type[Table]) -> str:
    return " ".join((cls.__doc__ or "").split())


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, width=100, initial_indent="# ", subsequent_indent="# ")


def _wrong_rows(value: Any, setting: _Setting) -> Iterator[str]:
    assert setting.rows is not None
    least, most = setting.said("min_length") or 0, setting.said("max_length") or MAX_ROWS
    if not isinstance(value, tuple) or not all(isinstance(row, setting.rows) for row in value):
        yield f"expected a tuple of {setting.rows.__name__}, got {_shown(value)}"
    elif not least <= len(value) <= most:
        yield f"expected {least:,} to {most:,} tables [[{setting.key}]], got {len(value):,}"


def _document(cls: type[Table], prefix: str) -> list[str]:
    """The keys of a table, then its tables: TOML ends a table where the next begins."""
    lines: list[str] = []
    settings = _settings(cls)
    for setting in settings:
        if setting.table is None and setting.rows is None:
            lines += ["", *_document_key(setting)]
    for setting in settings:
        if setting.rows is not None:
            lines += ["", "", *_document_rows(setting, f"{prefix}{setting.key}")]
    for setting in settings:
        if setting.table is not None:
            about = setting.said("description") or _about(setting.table)
            lines += ["", "", *_comment(about), f"[{prefix}{setting.key}]"]
            lines += _document(setting.table, f"{prefix}{setting.key}.")
    return lines


def _document_rows(setting: _Setting, key: str) -> list[str]:
    """One entry of a list of tables: an example, which is a comment unless the setting is stated."""
    assert setting.rows is not None
    stated = setting.required or bool((setting.said("extra") or {}).get("stated"))
    about = setting.said("description") or _about(setting.rows)
    lines = [f"[[{key}]]", *_document(setting.rows, f"{key}.")]
    return [*_comment(about), *(line if stated or line.startswith("#") or not line else f"#{line}" for line in lines)]


def _document_key(setting: _Setting) -> list[str]:
    words = setting.said("description")
    if words is None:
        raise TypeError(f"the setting {setting.key} has no description")
    expected = setting.expected
    # A plain value says what it may be.
    bounds = "" if expected in _PLAIN.values() else f" {expected[0].upper()}{expected[1:]}."
    note = " Required." if setting.required else " Not set by default." if setting.default is None else ""
    value = setting.default
    stated = setting.required or bool((setting.said("extra") or {}).get("stated"))
    if stated or setting.default is None:
        examples = setting.said("examples")
        if not examples:
            raise TypeError(f"the setting {setting.key} has neither a default nor an example")
        value = examples[0]
    return [*_comment(f"{words}{bounds}{note}"), f"{'' if stated else '#'}{setting.key} = {_toml(value)}"]
