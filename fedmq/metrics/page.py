"""All metrics by program, the table of docs/metrics.md, and where the files for Prometheus and Grafana are."""

from __future__ import annotations

import sys
from pathlib import Path

from fedmq.metrics import bridge, coordinator, gateway, serving, watch
from fedmq.metrics.families import Metric, page

__all__ = ["FILES", "groups", "rewrite"]

_FOLDER = Path(__file__).parent / "files"
FILES = (_FOLDER / "fedmq.rules.yml", _FOLDER / "fedmq.json")

BEGIN, END = "<!-- begin: fedmq metrics -->", "<!-- end: fedmq metrics -->"


def groups() -> tuple[tuple[str, tuple[Metric, ...]], ...]:
    return (
        ("Coordinator", coordinator.METRICS),
        ("Gateway", gateway.METRICS),
        ("Bridge", bridge.METRICS),
        ("Watch", watch.METRICS),
        ("Every page", serving.METRICS),
    )


def rewrite(text: str) -> str:
    """A page of Markdown with the tables of now between its marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{page(groups())}\n{END}{after}"


if __name__ == "__main__":
    document = Path(sys.argv[1])
    document.write_text(rewrite(document.read_text(encoding="utf-8")), encoding="utf-8")
