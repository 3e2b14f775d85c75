"""The words of `fedmq doctor`. What it does is in `program`, which is imported only then."""

from __future__ import annotations

import argparse


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    commands.add_parser("doctor")
