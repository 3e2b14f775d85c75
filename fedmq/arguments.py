"""Words of the command line that several commands share: a settings file, and what overrides a setting of it.

Every override of a command goes into one list, in the order typed, whichever flag it came by; `load` reads that list.
"""

from __future__ import annotations

import argparse
from pathlib import Path

__all__ = ["add_override", "add_settings"]


def add_settings(
    parser: argparse._ActionsContainer, example: str, override: str, *, help_config: str | None = None
) -> None:
    """`--config FILE` and `--set KEY=VALUE`; `override` is one that a user may want."""
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help=help_config or f"settings in TOML, such as {example}"
    )
    _add(
        parser,
        "--set",
        metavar="KEY=VALUE",
        help=f"override a setting, such as --set {override}; may be given several times",
    )


def add_override(
    parser: argparse._ActionsContainer, flag: str, key: str, text: str, *, metavar: str | None = None
) -> None:
    """A flag that is short for `--set KEY=VALUE`."""
    _add(parser, flag, key=key, metavar=metavar or key.rpartition(".")[2].upper(), help=text)


def _add(parser: argparse._ActionsContainer, flag: str, *, metavar: str, help: str, key: str | None = None) -> None:
    # The default of the first flag that a destination has is the one that counts: all of them have the same.
    parser.add_argument(
        flag,
        dest="overrides",
        action="append",
        default=[],
        type=str if key is None else lambda value: f"{key}={value}",
        metavar=metavar,
        help=help,
    )
