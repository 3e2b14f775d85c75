"""Filters of these roles: settings as TOML, and the version that a wheelhouse holds.

JSON's strings, numbers, booleans and lists of them are TOML's as well. What JSON has and TOML lacks is left out (null)
or an error. A table's plain values come before the tables in it, as TOML wants.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleFilterError

_BARE = re.compile(r"[A-Za-z0-9_-]+\Z")


def to_toml(document: Mapping[str, Any]) -> str:
    """A mapping as a TOML document; what is null is left out, and so keeps its default."""
    if not isinstance(document, Mapping):
        raise AnsibleFilterError(f"to_toml: expected a mapping, got {type(document).__name__}")
    return "\n".join(_table(document, "")).strip() + "\n"


def _table(table: Mapping[str, Any], prefix: str) -> Iterator[str]:
    later = []
    for name, value in table.items():
        key = _key(str(name))
        if value is None:
            continue
        if isinstance(value, Mapping):
            later.append(("[{}]", prefix + key, value))
        elif isinstance(value, list) and value and all(isinstance(entry, Mapping) for entry in value):
            later += [("[[{}]]", prefix + key, entry) for entry in value]
        else:
            yield f"{key} = {_value(value, prefix + key)}"
    for heading, path, value in later:
        yield ""
        yield heading.format(path)
        yield from _table(value, f"{path}.")


def _key(name: str) -> str:
    return name if _BARE.match(name) else json.dumps(name)


def _value(value: Any, where: str) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_value(entry, where) for entry in value) + "]"
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    if isinstance(value, str):
        # As a plain str: Ansible's own kinds of text are subclasses of it. TOML wants DEL escaped, JSON does not.
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    raise AnsibleFilterError(f"to_toml: {where}: expected a text, a number, a boolean or a list, got {value!r}")


def wheelhouse_version(folder: str) -> str:
    """Of the fedmq in a wheelhouse."""
    found = sorted(Path(folder).glob("fedmq-*.whl"))
    if len(found) != 1:
        raise AnsibleFilterError(
            f"{folder}: expected a wheelhouse with one wheel of fedmq, got {len(found)}: make it with"
            " `scripts/wheelhouse` or `ansible-playbook wheelhouse.yml`, or name another one (release_wheelhouse)"
        )
    return found[0].name.split("-")[1]


class FilterModule:
    """As Ansible finds them."""

    def filters(self) -> dict[str, Any]:
        return {"to_toml": to_toml, "wheelhouse_version": wheelhouse_version}
