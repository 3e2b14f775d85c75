"""The flag `--log-format` of every program that logs, and what it is where nobody says.

The command line wins over the settings, they over the environment variable FEDMQ_LOG_FORMAT, which a unit or a
container sets for all programs at once.
"""

from __future__ import annotations

import argparse
import os

__all__ = ["add_log_format", "start_logging"]

VARIABLE = "FEDMQ_LOG_FORMAT"
_FORMS = ("console", "json")
_HELP = "console: lines for people; json: an object a line, for programs (default: $FEDMQ_LOG_FORMAT, else console)"


def add_log_format(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--log-format", choices=_FORMS, help=_HELP)


def start_logging(level: str, *wishes: str | None, gateway: str | None = None) -> None:
    """In the first form that is wished for, or the environment's. Raises ValueError where that one names another."""
    from fedmq_protocol.logs import FORMS, configure

    wanted = next((wish for wish in (*wishes, os.environ.get(VARIABLE)) if wish), "console")
    for form in FORMS:
        if form == wanted:
            configure(level, form, gateway=gateway)
            return
    raise ValueError(f"{VARIABLE}: expected {' or '.join(FORMS)}, got {wanted!r}")
