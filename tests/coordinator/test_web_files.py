"""What dashboard and report share: colours, charts and the library that draws them."""

from __future__ import annotations

import hashlib
import re
from importlib import resources
from itertools import product

import pytest

WEB = resources.files("fedmq_coordinator").joinpath("web")
BASE = WEB.joinpath("base.css").read_text(encoding="utf-8")


def blocks() -> dict[str, dict[str, str]]:
    """Variables of each theme, and of the dark one both lists."""
    light, dark, switched = (
        dict(re.findall(r"--([a-z]+): (#[0-9a-f]{6});", found))
        for found in re.findall(r"\{\s*(?:color-scheme: light dark;\s*)?(--paper: [^}]*)\}", BASE)
    )
    return {"light": light, "dark": dark, "switched": switched}


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2)."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_the_switch_to_dark_has_the_colours_of_who_prefers_dark() -> None:
    themes = blocks()
    assert themes["dark"] == themes["switched"]
    assert themes["dark"].keys() == themes["light"].keys()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_colour_of_text_can_be_read_on_every_ground(theme: str) -> None:
    colours = blocks()[theme]
    grounds = ("paper", "panel", "raised")
    inks = [name for name in colours if name not in (*grounds, "rule")]
    assert {"ink", "quiet", "up", "down", "warn", "good"} <= set(inks)
    for ink, ground in product(inks, grounds):
        found = contrast(colours[ink], colours[ground])
        assert found >= 4.5, f"--{ink} on --{ground}: {found:.2f}"


def test_the_charts_library_is_what_its_readme_says() -> None:
    vendored = WEB.joinpath("vendor", "uplot")
    readme = vendored.joinpath("README.md").read_text(encoding="utf-8")
    told = {name: digest for digest, name in re.findall(r"sha256  ([0-9a-f]{64})  (\S+)", readme)}
    assert set(told) == {"uPlot.iife.min.js", "uPlot.min.css"}
    for name, digest in told.items():
        assert hashlib.sha256(vendored.joinpath(name).read_bytes()).hexdigest() == digest
    assert "MIT License" in vendored.joinpath("LICENSE").read_text(encoding="utf-8")


def test_the_charts_may_stand_inside_a_page() -> None:
    script = WEB.joinpath("charts.js").read_text(encoding="utf-8")
    assert "</script" not in script
    assert "<!--" not in script
    assert not re.search(r"^\s*(import|export)\b", script, re.MULTILINE), "a module cannot be inlined as it is"
