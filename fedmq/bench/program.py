"""What `fedmq bench codec` does with its command line: measure or read, show, and write what was asked for."""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path

import msgspec

from fedmq.bench.codec import CodecOptions, Result, measure
from fedmq.bench.rivals import MissingRivalError
from fedmq.bench.showing import TerminalWatcher, check_page, check_plot, put_markdown, save_plot, show

__all__ = ["run_codec"]

QUICK = {"sizes": (2_000, 17_000, 100_000), "densities": (0.0025, 0.01, 0.05), "rounds": 12, "seconds": 0.25}


def run_codec(arguments: argparse.Namespace) -> None:
    """Raises ValueError, OSError or ImportError with one line that says what to do."""
    # What is missing is said now, and not after minutes of measuring.
    if arguments.plot is not None:
        check_plot(arguments.plot)
    if arguments.markdown is not None:
        check_page(arguments.markdown)
    result = _measured(arguments) if arguments.source is None else _read(arguments.source)
    show(result)
    if arguments.json is not None:
        arguments.json.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")
    if arguments.plot is not None:
        save_plot(result, arguments.plot)
    if arguments.markdown is not None:
        put_markdown(result, arguments.markdown)


def _measured(arguments: argparse.Namespace) -> Result:
    if find_spec("pyroaring") is None:
        raise MissingRivalError("the roaring rival needs pyroaring: pip install 'fedmq[bench]'")
    wishes = QUICK if arguments.quick else {}
    given = {name: getattr(arguments, name) for name in ("sizes", "densities", "rounds", "test_load")}
    options = CodecOptions(
        data=tuple(arguments.data or ("sim",)),
        model=arguments.model,
        seed=arguments.seed,
        **{**wishes, **{name: value for name, value in given.items() if value is not None}},
    )
    with TerminalWatcher.watching(shown=arguments.progress) as watcher:
        return measure(options, watcher)


def _read(source: Path) -> Result:
    try:
        return msgspec.json.decode(source.read_bytes(), type=Result)
    except msgspec.MsgspecError as error:
        raise ValueError(f"{source}: expected what --json wrote: {error}") from None
