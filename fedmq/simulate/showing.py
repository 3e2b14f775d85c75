"""A run's course as a picture: the metric, or the versions, over virtual time. Needs matplotlib."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fedmq.simulate.sizing import Sizing

__all__ = ["check_plot", "save_plot"]


def check_plot(target: Path) -> None:
    """Raises where `save_plot` could not draw: ValueError for the name, ImportError without matplotlib."""
    if target.suffix.lower() not in (".svg", ".png"):
        raise ValueError(f"--plot {target}: expected a name that ends in .svg or .png")
    if find_spec("matplotlib") is None:
        raise ImportError("a plot needs matplotlib: pip install 'fedmq[bench]' (or matplotlib alone)")


def save_plot(sizing: Sizing, target: Path) -> None:
    """`.svg` or `.png`."""
    check_plot(target)
    from matplotlib.figure import Figure

    figure: Any = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    minutes = [at / 60 for at, _ in sizing.metrics]
    scored = [(at / 60, metric) for at, metric in sizing.metrics if metric is not None]
    if scored:
        axes.plot(*zip(*scored, strict=True), marker=".")
        axes.set_ylabel(sizing.metric_name)
    else:
        axes.step(minutes, range(1, len(minutes) + 1), where="post")
        axes.set_ylabel("model version")
    axes.set_xlabel("virtual time, minutes")
    axes.grid(alpha=0.3)
    figure.savefig(target, dpi=150)
