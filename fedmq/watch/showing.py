"""A watch's figures from its alertbook, beside the watch or in it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedmq.metrics.families import Sample

__all__ = ["as_prometheus", "from_book"]


def from_book(path: Path) -> Iterable[Sample]:
    """Raises BookError where there is none."""
    from fedmq_edge_node.alertbook import Alertbook

    from fedmq.metrics.watch import WAITING, samples

    with contextlib.closing(Alertbook.existing(path)) as book:
        return list(samples(book.standings(), book.alerts(states=WAITING), book.outbox()))


def as_prometheus(path: Path) -> str:
    """Raises BookError, MissingExtraError."""
    from fedmq.metrics.serving import require, to_text

    require()
    return to_text(from_book(path))
