"""What `fedmq bench codec` shows: progress, tables for a terminal and for a page, and a picture.

Owns words and layout; every figure comes from a `Result`. Percentages are of the bound, above it (+) or below (-).
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from fedmq.bench.codec import BOTH, Case, Result, Sizes, Way
from fedmq.bench.rivals import RIVALS

__all__ = [
    "BEGIN",
    "END",
    "MissingPlotError",
    "TerminalWatcher",
    "check_page",
    "check_plot",
    "put_markdown",
    "save_plot",
    "show",
    "to_markdown",
]

BEGIN, END = "<!-- begin: fedmq bench codec -->", "<!-- end: fedmq bench codec -->"
"""Between these marks of a page its tables stand."""

MARKED = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", flags=re.DOTALL)

BYTES_HEADINGS = ("density", "sent", "bound B", "fedmq", "no\nhistory", "first", *(rival.name for rival in RIVALS))
TIME_HEADINGS = ("by", "copy", "encode", "no\nhistory", "decode", "no\nhistory", "contexts", "memory")

USUAL_DENSITY = 0.01
PAGE_DENSITIES = (0.0025, 0.01, 0.05)
SAY_EVERY_SECONDS = 2.0


class MissingPlotError(ImportError):
    """matplotlib is not installed."""


class TerminalWatcher:
    """A bar on stderr where that is a terminal, else a line every few seconds."""

    def __init__(self, console: Console, progress: Progress | None) -> None:
        self._console = console
        self._progress = progress
        self._task: TaskID | None = None if progress is None else progress.add_task("", total=None)
        self._said = time.monotonic()
        self._whole, self._so_far = 1.0, 0.0

    @classmethod
    @contextmanager
    def watching(cls, *, shown: bool) -> Iterator[TerminalWatcher]:
        console = Console(stderr=True, quiet=not shown, soft_wrap=True)
        if not (shown and console.is_terminal):
            yield cls(console, None)
            return
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TimeElapsedColumn())
        with Progress(*columns, TextColumn("left:"), TimeRemainingColumn(), console=console, transient=True) as bar:
            yield cls(console, bar)

    def plan(self, work: float) -> None:
        self._whole = work
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, total=work)

    def at(self, text: str) -> None:
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, description=text)
        elif time.monotonic() - self._said > SAY_EVERY_SECONDS:
            self._said = time.monotonic()
            self._console.print(f"{self._so_far / self._whole:4.0%}  {text}", highlight=False, markup=False)

    def done(self, work: float) -> None:
        self._so_far += work
        if self._progress is not None and self._task is not None:
            self._progress.advance(self._task, work)


# --- Tables ----------------------------------------------------------------------------------------------------------


def show(result: Result, console: Console | None = None) -> None:
    """All tables, as wide as the terminal allows."""
    console = console or Console()
    missing: list[str] = []
    for group in _by_model(result):
        _say(console, f"\n{_title(group[0])}", style="bold")
        if group[0].metric is not None:
            metrics = ", ".join(f"{case.metric:.2f}" for case in group if case.metric is not None)
            _say(console, f"{group[0].gateways} gateways; test metric after {group[0].rounds} rounds: {metrics}")
        missing = _print(console, BYTES_HEADINGS, [_bytes_row(case) for case in group])
    usual = _usual(result)
    _say(console, f"\nTime and memory at {100 * usual[0].density:g} %", style="bold")
    headings = ("data", "parameters", *TIME_HEADINGS)
    _print(
        console,
        headings,
        [(case.data, f"{case.parameters:,}", *_time_row(case, way)) for case in usual for way in case.copies],
    )
    if missing:
        _say(console, f"- A wider terminal shows {' and '.join(missing)}, too; --json has everything.")
    for line in notes(result):
        _say(console, f"- {line}")


def to_markdown(result: Result) -> str:
    """Tables for a page: bytes at three densities, time and memory at the usual one, and what they mean."""
    rows = [
        (case.data, f"{case.parameters:,}", *_bytes_row(case))
        for group in _by_model(result)
        for case in sorted(
            {id(case): case for case in (_nearest(group, at) for at in PAGE_DENSITIES)}.values(),
            key=lambda case: case.density,
        )
    ]
    time_rows = [
        (case.data, f"{case.parameters:,}", f"{100 * case.density:g} %", *_time_row(case, way))
        for case in _usual(result)
        for way in case.copies
    ]
    bytes_table = _markdown_table(("data", "parameters", *BYTES_HEADINGS), rows)
    time_table = _markdown_table(("data", "parameters", "density", *TIME_HEADINGS), time_rows)
    bullets = "\n".join(f"- {line}" for line in notes(result))
    return f"{bytes_table}\n{time_table}\n{bullets}\n"


def put_markdown(result: Result, page: Path) -> None:
    """Writes the tables between the marks of a page, or makes a new page. Raises ValueError for one without marks."""
    check_page(page)
    block = f"{BEGIN}\n\n{to_markdown(result)}{END}"
    text = page.read_text(encoding="utf-8") if page.exists() else f"{BEGIN}{END}\n"
    page.write_text(MARKED.sub(lambda _: block, text), encoding="utf-8")


def check_page(page: Path) -> None:
    """Raises ValueError where `put_markdown` could not tell where the tables go."""
    count = len(MARKED.findall(page.read_text(encoding="utf-8"))) if page.exists() else 1
    if count != 1:
        raise ValueError(f"{page}: expected the marks {BEGIN} and {END} once, found them {count} times")


def notes(result: Result) -> list[str]:
    """What the figures mean, and where they are from."""
    case, machine = result.cases[0], result.machine
    by = (
        "decoding as machine code, and by numpy alone"
        if result.compiled
        else "numpy alone, machine code was not in use"
    )
    versions = ", ".join(f"{name} {number}" for name, number in result.versions.items())
    return [
        f"Bytes: one uplink and one downlink together, means over rounds {_span(case.middle_rounds)} of {case.rounds} "
        "(the middle third; models above 300,000 parameters train half as many rounds), 1 bit a value.",
        "Bound: log2 C(parameters, sent) plus the empirical entropy of the signs. It holds for supports that know "
        "nothing of earlier rounds; other columns say how much larger (+) or smaller (-) a message is than it.",
        "fedmq, with history and without: the whole payload, with head, scale and checksum. "
        f"first: with history, rounds {_span(case.first_rounds)}. "
        "Rivals tell the same indices and signs, and are given the same head, scale and checksum.",
        "Time: in copies of the dense float32 vector, least of several repeats that take turns, one thread. encode "
        f"holds the choice of coordinates, decode the adding to an int64 sum. By: {by}. Memory: of one encode, its "
        "results and its contexts included, in dense vectors.",
        f"{result.date}, {machine.processor}, {machine.cores} cores, {machine.memory_bytes / 1e9:.0f} GB, "
        f"{machine.system}; {versions}; seed {result.seed}; took {result.seconds:.0f} s.",
    ]


def _by_model(result: Result) -> list[list[Case]]:
    return [list(group) for _, group in groupby(result.cases, key=lambda case: (case.data, case.layers))]


def _title(case: Case) -> str:
    return f"{case.data}: {case.parameters:,} parameters ({case.model} {'-'.join(map(str, case.layers))})"


def _span(rounds: tuple[int, int]) -> str:
    return f"{rounds[0]} to {rounds[1]}"


def _usual(result: Result) -> list[Case]:
    """Of each model the case with the density nearest to the usual one."""
    return [_nearest(group, USUAL_DENSITY) for group in _by_model(result)]


def _nearest(cases: Sequence[Case], density: float) -> Case:
    return min(cases, key=lambda case: abs(math.log(case.density / density)))


def _bytes_row(case: Case) -> tuple[str, ...]:
    middle = (case.middle_up, case.middle_down)
    first = (case.first_up, case.first_down)
    ours = [_above(middle, history=True), _above(middle, history=False), _above(first, history=True)]
    return (
        f"{100 * case.density:g} %",
        f"{sum(way.count for way in middle) / 2:,.0f}",
        f"{_bound(middle):,.0f}",
        *map(_percent, ours),
        *(_percent(_rival_above(middle, rival.name)) for rival in RIVALS),
    )


def _time_row(case: Case, way: Way) -> tuple[str, ...]:
    names = ("encode_history", "encode", "decode_history", "decode", "contexts")
    return (
        way,
        _seconds(case.copy_seconds),
        *(_number(case.copies[way][name]) for name in names),
        f"{case.vectors[BOTH]:.1f}",
    )


def _bound(ways: Sequence[Sizes]) -> float:
    return sum(way.bound_bytes for way in ways)


def _above(ways: Sequence[Sizes], *, history: bool) -> float:
    sent = [way.history_bytes if history else way.plain_bytes for way in ways]
    return sum(sent) / _bound(ways) - 1


def _rival_above(ways: Sequence[Sizes], name: str) -> float:
    return sum(way.rival_bytes[name] for way in ways) / _bound(ways) - 1


def _percent(share: float) -> str:
    return f"{100 * share:+,.0f} %" if abs(share) >= 0.0995 else f"{100 * share:+.1f} %"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 9.95 else f"{value:.1f}"


def _seconds(value: float) -> str:
    return f"{value * 1e6:.1f} µs" if value < 1e-3 else f"{value * 1e3:.1f} ms"


def _say(console: Console, text: str, style: str | None = None) -> None:
    console.print(text, style=style, highlight=False, markup=False)


def _print(console: Console, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """As many columns as fit; gives back the headings of the others, which are those of the worst rivals."""
    cells = [[cell.replace(" %", "%") for cell in row] for row in rows]
    widths = [
        max(len(text) for text in (*heading.split("\n"), *(row[place] for row in cells)))
        for place, heading in enumerate(headings)
    ]
    # A space on either side of the table and between its columns, and one more where there is room.
    kept = len(headings)
    while kept > 1 and sum(widths[:kept]) + kept + 1 > console.width:
        kept -= 1
    room = sum(widths[:kept]) + 2 * kept + 1 <= console.width
    table = Table(box=SIMPLE_HEAD, padding=(0, int(room), 0, 0), pad_edge=False)
    for heading in headings[:kept]:
        justify: Literal["left", "right"] = "left" if heading == "data" else "right"
        table.add_column(heading, justify=justify, no_wrap=True, style="bold" if heading == "fedmq" else None)
    for row in cells:
        table.add_row(*row[:kept])
    console.print(table)
    return [heading.replace("\n", " ") for heading in headings[kept:]]


def _markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [[heading.replace("\n", " ") for heading in headings], ["---", *["---:"] * (len(headings) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


# --- The picture -----------------------------------------------------------------------------------------------------

RIVAL_LOOKS = {
    "Rice": ("#E69F00", "s"),
    "Elias-Fano": ("#009E73", "^"),
    "varint": ("#CC79A7", "v"),
    "zstd-19": ("#D55E00", "D"),
    "roaring": ("#8C6D31", "P"),
    "bitmap": ("#777777", "X"),
}
"""Colours of Okabe and Ito (2008), which the colour-blind tell apart, and a mark for each, for print in grey."""

OURS, PLAIN = "#0072B2", "#56B4E9"
DATA_LINES = ("-", "--", ":", "-.")
TICKS = (-30, -20, -10, 0, 10, 20, 30, 100, 300, 1000, 10_000)
LINEAR_TO = 30
LINEAR_HEIGHT = 1.6
"""Of the linear part above zero, in decades of the logarithmic one."""


def check_plot(target: Path) -> None:
    """Raises where `save_plot` could not draw: ValueError for the name, MissingPlotError without matplotlib."""
    if target.suffix.lower() not in (".svg", ".png"):
        raise ValueError(f"--plot {target}: expected a name that ends in .svg or .png")
    if find_spec("matplotlib") is None:
        raise MissingPlotError("a plot needs matplotlib: pip install 'fedmq[bench]' (or matplotlib alone)")


def save_plot(result: Result, target: Path) -> None:
    """Bytes against the bound for each size, and time; `.svg` or `.png`, legible at 900 pixels."""
    check_plot(target)
    import matplotlib
    from matplotlib.figure import Figure

    style: dict[str, Any] = {
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "svg.hashsalt": "fedmq",
    }
    style |= {"svg.fonttype": "path", "font.family": "DejaVu Sans"}
    pyplot_free: Any = matplotlib
    with pyplot_free.rc_context(style):
        figure: Any = Figure(figsize=(10, 6.4), layout="constrained")
        bytes_side, time_side = figure.subfigures(1, 2, width_ratios=(2.05, 1))
        _draw_bytes(result, bytes_side)
        _draw_time(result, time_side)
        metadata = {"Date": None} if target.suffix.lower() == ".svg" else None
        figure.savefig(target, dpi=180, metadata=metadata, facecolor="white")


def _draw_bytes(result: Result, figure: Any) -> None:
    """A small plot for each size; lines of ours for each data set, of a rival the mean over them."""
    wanted = _sizes_of(result)
    columns = 2 if len(wanted) > 1 else 1
    rows = -(-len(wanted) // columns)
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    lines = dict(zip(dict.fromkeys(case.data for case in result.cases), DATA_LINES * len(result.cases), strict=False))
    ours = [("fedmq", True, OURS, 2.4), ("fedmq, no history", False, PLAIN, 1.8)]
    for place, (label, cases) in enumerate(wanted):
        axis = axes[place // columns][place % columns]
        axis.set_title(label, fontsize=10, loc="left")
        densities = sorted({case.density for case in cases})
        axis.axhline(0, color="black", lw=0.9)
        for rival in RIVALS:
            colour, mark = RIVAL_LOOKS[rival.name]
            means = [_mean_above(cases, density, rival.name) for density in densities]
            axis.plot(_per_cent(densities), _per_cent(means), color=colour, marker=mark, ms=4, lw=1)
        for data, line in lines.items():
            own = sorted((case for case in cases if case.data == data), key=lambda case: case.density)
            for _, history, colour, width in reversed(ours):
                y = [_above((case.middle_up, case.middle_down), history=history) for case in own]
                x = _per_cent([case.density for case in own])
                axis.plot(x, _per_cent(y), color=colour, lw=width, ls=line, marker="o", ms=3.5)
        _scale_axis(axis, densities)
    for axis in axes.flat[len(wanted) :]:
        axis.set_axis_off()
    for axis in axes.flat[max(0, len(wanted) - columns) : len(wanted)]:
        axis.xaxis.set_tick_params(labelbottom=True)
        axis.set_xlabel("coordinates sent, % of all", fontsize=9)
    _explain(figure, ours, lines)
    figure.supylabel("bytes above (+) or below (−) the bound", fontsize=10)
    figure.suptitle("Size of an update against log2 C(d, k) + entropy of the signs", fontsize=11)


def _explain(figure: Any, ours: Sequence[tuple[str, bool, str, float]], lines: dict[str, str]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=colour, lw=width, marker="o", ms=4, label=name) for name, _, colour, width in ours]
    for rival, (colour, mark) in RIVAL_LOOKS.items():
        handles.append(Line2D([], [], color=colour, marker=mark, ms=4, lw=1, label=rival))
    if len(lines) > 1:
        handles += [Line2D([], [], color="black", lw=1.5, ls=line, label=f"on {data}") for data, line in lines.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9)


def _scale_axis(axis: Any, densities: Sequence[float]) -> None:
    axis.set_xscale("log")
    axis.set_xticks(_per_cent(densities), [f"{100 * d:g}" for d in densities], fontsize=8)
    axis.minorticks_off()
    axis.set_yscale("symlog", linthresh=LINEAR_TO, linscale=LINEAR_HEIGHT)
    low, high = axis.get_ylim()
    ticks = [tick for tick in TICKS if low <= tick <= high]
    axis.set_yticks(ticks, [f"{tick:+,} %" if tick else "bound" for tick in ticks], fontsize=8)
    axis.minorticks_off()
    axis.grid(axis="y", color="#dddddd", lw=0.6)
    axis.set_axisbelow(True)


def _draw_time(result: Result, figure: Any) -> None:
    """At the density nearest to 1 %, by size; the mean over the data sets."""
    axis = figure.subplots()
    usual = _usual(result)
    sizes = _sizes_of(result)
    # Machine code decodes; the rest is numpy's either way, and one line tells it.
    lines: list[tuple[Way, str, str, str, str, str]] = [
        ("numpy", "encode_history", "choose and encode", OURS, "o", "-"),
        ("numpy", "encode", "choose and encode, no history", PLAIN, "o", "--"),
        ("numpy", "decode_history", "decode and add, numpy", "#D55E00", "s", "-"),
        ("numpy", "decode", "decode and add, numpy, no history", "#E69F00", "s", "--"),
        ("compiled", "decode_history", "decode and add, compiled", "#009E73", "D", "-"),
        ("compiled", "decode", "decode and add, compiled, no history", "#CC79A7", "D", "--"),
        ("numpy", "contexts", "contexts of a round", "#777777", "^", ":"),
    ]
    for way, name, label, colour, mark, line in lines:
        points = []
        for _, cases in sizes:
            own = [case for case in usual if case in cases and way in case.copies]
            if own:
                logs = [math.log(case.copies[way][name]) for case in own]
                points.append((_mean_of([case.parameters for case in own]), math.exp(_mean_of(logs))))
        if points:
            x, y = zip(*points, strict=True)
            axis.plot(x, y, color=colour, marker=mark, ls=line, ms=5, lw=1.8, label=label)
    axis.set_xscale("log")
    axis.set_yscale("log")
    ticks = [_mean_of([case.parameters for case in cases]) for _, cases in sizes]
    axis.set_xticks(ticks, [_short(tick) for tick in ticks], fontsize=9)
    axis.minorticks_off()
    low, high = axis.get_ylim()
    marks = [m * 10**e for e in range(-1, 6) for m in (1, 2, 5) if low <= m * 10**e <= high]
    axis.set_yticks(marks, [f"{tick:,g}" for tick in marks], fontsize=9)
    axis.minorticks_off()
    axis.grid(axis="y", color="#dddddd", lw=0.6)
    axis.set_axisbelow(True)
    axis.set_xlabel("parameters")
    axis.set_ylabel("copies of the dense float32 vector")
    figure.legend(loc="outside lower center", ncols=1, frameon=False, fontsize=9)
    figure.suptitle(f"Time on one core, {100 * usual[0].density:g} % sent", fontsize=11)


def _sizes_of(result: Result) -> list[tuple[str, list[Case]]]:
    """Cases of about the same number of parameters, smallest first, with a name for them."""
    groups: list[list[Case]] = []
    for case in sorted(result.cases, key=lambda case: case.parameters):
        if groups and case.parameters < 1.6 * groups[-1][0].parameters:
            groups[-1].append(case)
        else:
            groups.append([case])
    named = []
    for cases in groups:
        exact = sorted({case.parameters for case in cases})
        label = f"{exact[0]:,}" if len(exact) == 1 else f"about {_short(_mean_of(exact))}"
        named.append((f"{label} parameters", cases))
    return named


def _mean_above(cases: Sequence[Case], density: float, rival: str) -> float:
    return _mean_of(
        [_rival_above((case.middle_up, case.middle_down), rival) for case in cases if case.density == density]
    )


def _mean_of(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _per_cent(shares: Sequence[float]) -> list[float]:
    return [100 * share for share in shares]


def _short(count: float) -> str:
    return f"{count / 1e6:.2g}M" if count >= 9.5e5 else f"{count / 1e3:.0f}k"
