"""What the demo prints: a line a round while it runs, and a table at its end. Knows figures and rows, nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedmq_coordinator.ledger import Answer, Round
from rich.console import Console
from rich.table import Table

__all__ = ["Progress", "Screen", "bytes_text"]

_BAR = "▏▎▍▌▋▊▉█"


def bytes_text(count: float) -> str:
    """Bytes as people read them, in powers of ten."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable: the last unit takes everything")


class Progress:
    """Rounds as they close."""

    def __init__(self, console: Console | None, rounds: int, metric_name: str) -> None:
        self._console = console
        self._metric_name = metric_name
        self._rounds = rounds
        self._trained = 0
        self._level = 0

    def show(self, row: Round, answers: Sequence[Answer]) -> None:
        """A line for a round that has closed."""
        training = row.kind == "training"
        self._trained += training
        if self._console is None:
            return
        updates = [a for a in answers if a.kind != "decline" and a.verdict == "accepted"]
        declines = [a for a in answers if a.kind == "decline"]
        parts = [f"{len(updates)} of {row.drawn} answered"]
        if declines:
            reasons = sorted({a.reason or "?" for a in declines})
            parts.append(f"{len(declines)} declined ({', '.join(reasons)})")
        payload = sum(a.payload_bytes for a in updates)
        if training and updates:
            parts.append(f"{payload / len(updates):6.0f} B an update")
        if training and row.level != self._level:
            self._level = row.level
            parts.append(f"level {row.level}")
        if row.outcome != "applied":
            parts.append(row.outcome)
        seconds = (row.closed_at or row.opened_at) - row.opened_at
        name = f"round {self._trained:3d}/{self._rounds}" if training else "feature scaling"
        # An error has no full bar: it may be of any size.
        bar = _bar(row.metric) if row.metric is not None and row.metric <= 1 else ""
        metric = f"{self._metric_name} {row.metric:.3f} {bar}" if row.metric is not None else ""
        self._console.print(
            f"{name:15} {metric:{len(self._metric_name) + 27}}  {seconds:5.2f} s  {', '.join(parts)}", highlight=False
        )


def _bar(share: float, width: int = 20) -> str:
    eighths = round(max(0.0, min(1.0, share)) * width * 8)
    whole, rest = divmod(eighths, 8)
    return ("█" * whole + (_BAR[rest - 1] if rest else "")).ljust(width)


class Screen:
    """The terminal. Without progress only the result is printed."""

    def __init__(self, *, progress: bool) -> None:
        self._console = Console(soft_wrap=True)
        self._progress = progress

    def say(self, text: str) -> None:
        if self._progress:
            self._console.print(text, highlight=False, markup=False)

    @contextmanager
    def busy(self, text: str) -> Iterator[None]:
        """Something that takes a while and has no steps to show."""
        if not self._progress:
            yield
        elif self._console.is_terminal:
            with self._console.status(text):
                yield
        else:
            self.say(text)
            yield

    def rounds(self, total: int, metric_name: str) -> Progress:
        return Progress(self._console if self._progress else None, total, metric_name)

    def result(self, figures: dict[str, Any], sentences: Sequence[str], findings: Sequence[str], page: Path) -> None:
        """The tables that the demo ends with, what they come to, and where the report is: a link, the last line."""
        learnt = Table(
            title=f"What was learnt ({figures['metric_name']} on {figures['metric_source']})", title_justify="left"
        )
        learnt.add_column("model")
        learnt.add_column(figures["metric_name"], justify="right")
        for name, key in (
            ("before training", "metric_before"),
            ("each gateway alone, mean", "metric_local_only_mean"),
            (f"federated, after {figures['rounds']} rounds", "metric_final"),
            ("all data pooled in one place", "metric_pooled"),
        ):
            if figures.get(key) is not None:
                style = "bold" if key == "metric_final" else None
                learnt.add_row(name, f"{figures[key]:.3f}", style=style)
        self._console.print()
        self._console.print(learnt)

        if figures.get("personal"):
            self._console.print(_personal_table(figures["personal"], figures["metric_name"]))

        cost = Table(title="What it cost, all gateways and rounds together", title_justify="left")
        cost.add_column("way")
        cost.add_column("up", justify="right")
        cost.add_column("down", justify="right")
        cost.add_column("in all", justify="right")
        cost.add_column("times", justify="right")
        wire_up, wire_down = figures["wire_up_bytes"], figures["wire_down_bytes"]
        wire = wire_up + wire_down
        for name, up, down in (
            ("on the wire, everything counted", wire_up, wire_down),
            ("  of it coded deltas", figures["payload_up_bytes"], figures["payload_down_bytes"]),
            ("dense float32, same rounds", figures["dense_up_bytes"], figures["dense_down_bytes"]),
            ("raw signal, uploaded once", figures["raw_data_bytes"], 0),
        ):
            times = (up + down) / wire if wire else 0.0
            cost.add_row(
                name,
                bytes_text(up),
                bytes_text(down) if down else "",
                bytes_text(up + down),
                f"{times:.0f} ×" if times >= 10 else f"{times:.2f} ×",
                style="bold" if up == wire_up else None,
            )
        self._console.print(cost)
        for finding in findings:
            self._console.print(f"- {finding}", highlight=False, markup=False)
        declines = figures["declines"]
        if declines:
            said = ", ".join(f"{count} × {reason}" for reason, count in sorted(declines.items()))
            self._console.print(f"declines: {said}", highlight=False)
        self._console.print(
            f"{figures['gateways']} gateways, {figures['params']:,} parameters, {figures['codec']} codec, "
            f"{figures['broker']}{', everything signed, over TLS' if figures['secure'] else ''}; a round takes "
            f"{figures['round_seconds_median']:.2f} s (median), a gateway "
            f"{bytes_text(figures['gateway_rss_bytes_max'])} of memory at most, the whole demo "
            f"{figures['wall_seconds']:.0f} s",
            highlight=False,
        )
        self._console.print()
        for sentence in sentences:
            self._console.print(sentence, highlight=False, markup=False, style="bold")
        # Whole and alone on its line: a terminal makes it a link, and a pipe keeps it in one piece.
        self._console.print(f"report: {page.resolve().as_uri()}", highlight=False, markup=False, soft_wrap=True)


def _personal_table(lines: Sequence[dict[str, Any]], metric_name: str) -> Table:
    """The released model and the gateway's own on the same windows; the own one only where one was made."""
    table = Table(title=f"Personal models ({metric_name} on each gateway's own held-out windows)", title_justify="left")
    table.add_column("gateway")
    tested = any("personal_on_test" in line for line in lines)
    for heading in ("windows", "shared", "personal", *(("shared, unseen", "personal, unseen") if tested else ())):
        table.add_column(heading, justify="right")
    table.add_column("scores there")

    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.3f}"

    for line in lines:
        serves = line["outcome"] == "serves"
        cells = [line["gateway"], f"{line['windows']:,}", number(line["shared"]), number(line["personal"])]
        if tested:
            cells += [number(line.get("shared_on_test")), number(line.get("personal_on_test"))]
        table.add_row(*cells, "personal" if serves else f"shared ({line['outcome'].replace('_', ' ')})")
    return table
