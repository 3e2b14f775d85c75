"""The flag `--metrics` of programs, and `fedmq metrics`: what there is, and files for Prometheus and Grafana."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fedmq.arguments import add_override

__all__ = ["add_metrics", "add_parser"]

_ABOUT = """\
Prints every metric that fedmq's programs tell, with its labels. With --write, writes the alert rules for Prometheus and
the dashboard for Grafana into a folder; files that are there already are replaced where they differ. docs/metrics.md
says how programs are scraped.
"""


def add_metrics(parser: argparse._ActionsContainer) -> None:
    """Short for `--set metrics.listen=…`."""
    add_override(
        parser,
        "--metrics",
        "metrics.listen",
        "serve figures for Prometheus there, on loopback where no host is named (default: nowhere)",
        metavar="[HOST:]PORT",
    )


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "metrics", help="what Prometheus can be told; alert rules, and a dashboard for Grafana", description=_ABOUT
    )
    parser.add_argument("--write", type=Path, metavar="DIR", help="write fedmq.rules.yml and fedmq.json there")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    if arguments.write is not None:
        _write(arguments.write)
        return
    from fedmq.metrics.page import groups

    for title, metrics in groups():
        print(f"{title}:")
        for metric in metrics:
            labels = "{" + ", ".join(metric.labels) + "}" if metric.labels else ""
            print(f"  {metric.shown}{labels}  {metric.kind}\n      {metric.about}")


def _write(folder: Path) -> None:
    from fedmq.metrics.page import FILES

    folder.mkdir(parents=True, exist_ok=True)
    for source in FILES:
        there, wanted = folder / source.name, source.read_bytes()
        if there.is_file() and there.read_bytes() == wanted:
            continue
        there.write_bytes(wanted)
        print(f"wrote {there}", file=sys.stderr)
