"""Makes the pictures of the README from a real run: docs/demo.svg, docs/report.png, and the table as text.

    .venv/bin/python docs/make_pictures.py

Runs `scripts/demo --broker embedded` with no other arguments and shows what it printed, to the byte, but for its last
line: that one names a file of the machine it ran on. The report is a screenshot by a Chromium without a window. The
table between the two marks in README.md is replaced; the date and machine beside it are for a person to mend.
"""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import unquote, urlsplit

from rich.console import Console
from rich.terminal_theme import DIMMED_MONOKAI
from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- begin: end of the demo -->", "<!-- end: end of the demo -->"
COLUMNS = 118
REPORT_PIXELS = (1000, 1150)

SVG = """\
<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<title>What scripts/demo --broker embedded prints: rounds of federated learning on simulated bearings</title>
<style>
.{unique_id}-matrix {{ font-family: Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: {char_height}px;
  line-height: {line_height}px; }}
.{unique_id}-title {{ font-size: 18px; font-weight: bold; font-family: arial, sans-serif; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal"><rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" />
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""
"""Rich's own template without its web font: a picture in a README loads nothing."""


def demo() -> str:
    """What the demo prints, without the line that names the report's file."""
    run = subprocess.run(
        [str(ROOT / "scripts" / "demo"), "--broker", "embedded"],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
    lines = run.stdout.splitlines(keepends=True)
    if not lines[-1].startswith("report: "):
        raise ValueError(f"expected the demo's last line to name its report, got {lines[-1]!r}")
    page = unquote(urlsplit(lines[-1].removeprefix("report: ").strip()).path)
    screenshot(Path(page), ROOT / "docs" / "report.png")
    return "".join(lines[:-1])


def draw(printed: str, target: Path) -> None:
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    for line in printed.splitlines():
        text = Text(line)
        text.highlight_regex(r"F1 [0-9.]+", "bold")
        text.highlight_regex("[█▏▎▍▌▋▊▉]+", "green")
        console.print(text, soft_wrap=False)
    svg = console.export_svg(
        title="scripts/demo --broker embedded", theme=DIMMED_MONOKAI, code_format=SVG, unique_id="demo"
    )
    target.write_text("\n".join(line.rstrip() for line in svg.splitlines()) + "\n", encoding="utf-8")


def screenshot(page: Path, target: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        raise FileNotFoundError("a screenshot of the report needs chromium or google-chrome")
    with tempfile.TemporaryDirectory() as profile:
        subprocess.run(
            [
                browser,
                *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
                f"--user-data-dir={profile}",
                f"--window-size={REPORT_PIXELS[0]},{REPORT_PIXELS[1]}",
                "--virtual-time-budget=5000",
                f"--screenshot={target}",
                page.as_uri(),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )


def show_in_readme(printed: str, readme: Path) -> None:
    ending = printed[printed.index("What was learnt") :]
    text = readme.read_text(encoding="utf-8")
    block = f"{BEGIN}\n```text\n{ending}```\n{END}"
    replaced, count = re.subn(f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: block, text, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"{readme}: expected the marks {BEGIN} and {END} once, found them {count} times")
    readme.write_text(replaced, encoding="utf-8")


def main() -> int:
    printed = demo()
    draw(printed, ROOT / "docs" / "demo.svg")
    show_in_readme(printed, ROOT / "README.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
