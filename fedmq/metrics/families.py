"""What a metric is: a name, a kind, a sentence, its labels; and a sample of it. Pure.

Names are those of OpenMetrics: units are base units and stand in the name (`_seconds`, `_bytes`, `_ratio`), a counter
has `_total` behind its name where it is shown. A label's values are few and known: names of tasks, gateways and
machines, which the plant gives, and words of ours. What came as free text, an error or a version, is never one; `word`
keeps to a list.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["OTHER", "Histogram", "Metric", "Sample", "histogram", "page", "states", "word"]

Kind = Literal["counter", "gauge", "info", "histogram"]

OTHER = "other"
"""What stands for every value of a label that is not on its list."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    name: str
    """Without the `_total` of a counter and the `_info` of an info."""
    kind: Kind
    about: str
    labels: tuple[str, ...] = ()

    @property
    def shown(self) -> str:
        """As a query names it."""
        return self.name + {"counter": "_total", "info": "_info"}.get(self.kind, "")


@dataclass(frozen=True, kw_only=True)
class Histogram:
    buckets: tuple[tuple[str, int], ...]
    """Upper bounds with how many were no larger, up to `+Inf`."""
    total: float


@dataclass(frozen=True, kw_only=True)
class Sample:
    metric: Metric
    value: float | Histogram
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.labels) != len(self.metric.labels):
            raise ValueError(f"{self.metric.name}: expected labels {self.metric.labels}, got {self.labels}")


def histogram(values: Iterable[float], bounds: Sequence[float]) -> Histogram:
    known = list(values)
    counted = [(f"{float(bound)}", sum(value <= bound for value in known)) for bound in bounds]
    return Histogram(buckets=(*counted, ("+Inf", len(known))), total=sum(known))


def word(text: str, known: Collection[str]) -> str:
    """The text where it is one of those that are known, else `OTHER`."""
    return text if text in known else OTHER


def states(metric: Metric, now: str, known: Iterable[str], *labels: str) -> Iterator[Sample]:
    """1 for the state that is, 0 for each other one: a state that is over does not linger in a graph."""
    for state in known:
        yield Sample(metric=metric, value=float(state == now), labels=(*labels, state))


def page(groups: Iterable[tuple[str, Iterable[Metric]]]) -> str:
    """Tables of all metrics in Markdown, one for each program, as docs/metrics.md has them."""
    lines = []
    for title, metrics in groups:
        lines += [f"### {title}", "", "| Metric | Kind | Labels | What it says |", "|---|---|---|---|"]
        for metric in metrics:
            labels = ", ".join(f"`{label}`" for label in metric.labels)
            lines.append(f"| `{metric.shown}` | {metric.kind} | {labels} | {metric.about} |")
        lines.append("")
    return "\n".join(lines)
