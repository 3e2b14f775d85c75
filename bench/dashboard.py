"""What the dashboard costs and how it looks: scripts in a browser by size of the fleet, and the report behind it.

    python bench/dashboard.py                       seconds of scripts and of the report: 50, 500, 5,000 gateways
    python bench/dashboard.py --pictures docs       the pictures of docs/dashboard.md anew, from a simulated plant

The browser is Debian's chromium; seconds of scripts are its own count (`ScriptDuration` of the DevTools protocol), from
an empty profile to a page that is whole, and again for sorting and filtering all rows.
"""

from __future__ import annotations

import argparse
import gzip
import re
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Literal

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests" / "support"))

import psutil  # noqa: E402
from browsers import browser, missing, visit  # noqa: E402 - its folder must be found first
from dashboards import served  # noqa: E402
from fedmq_coordinator.ledger import Ledger  # noqa: E402
from fedmq_coordinator.web.views import snapshot  # noqa: E402
from ledgers import write_large_fleet  # noqa: E402

SIZES = (50, 500, 5_000)
REPEATS = 3
SHOWN_AT = 40
"""Round of the run from which the pictures are taken."""

SHOTS: tuple[tuple[str, Literal["light", "dark"], dict[str, Any]], ...] = (
    ("dashboard-light", "light", {"width": 1280, "height": 1500}),
    ("dashboard-dark", "dark", {"width": 1280, "height": 1500}),
    ("dashboard-phone", "light", {"width": 390, "height": 844}),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="take the pictures in place of measuring")
    options = parser.parse_args()
    if why := missing():
        print(why, file=sys.stderr)
        return 1
    if options.pictures is not None:
        take_pictures(options.pictures)
        return 0
    print("gateways  scripts  sort and filter  rows in page  report  JSON of the fleet")
    for size in SIZES:
        print(measure(size), flush=True)
    return 0


def measure(gateways: int) -> str:
    with tempfile.TemporaryDirectory(prefix="fedmq-dashboard-") as folder:
        path = Path(folder) / "ledger.sqlite"
        write_large_fleet(path, gateways).close()
        began = time.perf_counter()
        with closing(Ledger(path, read_only=True)) as ledger:
            snapshot(ledger, None, time.time())
        report = time.perf_counter() - began
        loads, sorts = [], []
        with served(path) as site, browser() as chromium:
            packed = len(gzip.compress(site.get("/api/fleet").body, 5))
            for _ in range(REPEATS):
                with visit(chromium, f"http://{site.host}/") as seen:
                    loaded = seen.figures()["ScriptDuration"]
                    loads.append(loaded)
                    rows = seen.page.locator("#fleet tbody tr:not(.gap)").count()
                    seen.page.locator("#fleet th[data-field=up] button").click()
                    seen.page.get_by_role("searchbox").fill("pump")
                    seen.page.get_by_label("Show").select_option("online")
                    sorts.append(seen.figures()["ScriptDuration"] - loaded)
    return (
        f"{gateways:>8,}  {statistics.median(loads):>5.2f} s  {statistics.median(sorts):>13.2f} s  {rows:>12}"
        f"  {report:>4.2f} s  {packed / 1000:>8.0f} kB, compressed"
    )


def take_pictures(folder: Path) -> None:
    """Of `fedmq demo` as it runs: light, dark, and on a phone."""
    with tempfile.TemporaryDirectory(prefix="fedmq-dashboard-") as place:
        words = ["demo", "--rounds", str(10 * SHOWN_AT), "--http", "0", "--no-baselines", "--directory", f"{place}/run"]
        demo = subprocess.Popen(
            [sys.executable, "-m", "fedmq", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        try:
            assert demo.stdout is not None
            address = next(found[0] for line in demo.stdout if (found := re.findall(r"dashboard: (http://\S+)", line)))
            with browser() as chromium, ExitStack() as pages:
                opened = {
                    name: pages.enter_context(
                        visit(chromium, address, faultless=False, ready=False, color_scheme=scheme, viewport=size)
                    )
                    for name, scheme, size in SHOTS
                }
                # Live, while the run goes on.
                newest = opened["dashboard-light"].page.locator("#latest a").first
                newest.wait_for(state="attached", timeout=600_000)
                while int(newest.inner_text().removeprefix("Round ")) < SHOWN_AT:
                    time.sleep(0.05)
                # A round of the demo takes less time than a picture: everything is to be of one moment.
                gateways = [
                    one for one in psutil.Process(demo.pid).children(recursive=True) if "gateway" in one.cmdline()
                ]
                for one in gateways:
                    one.suspend()
                time.sleep(5.0)
                for name, seen in opened.items():
                    seen.page.screenshot(path=folder / f"{name}.png")
                    print(f"{folder / name}.png", flush=True)
                for one in gateways:
                    one.resume()
        finally:
            demo.terminate()
            demo.wait()


if __name__ == "__main__":
    sys.exit(main())
