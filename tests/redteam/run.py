"""The red-team suite, and what came of it as a table: each attack, its outcome, and where it was stopped."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "support"))

from redteam import TABLE_VARIABLE, Line, read_table  # noqa: E402 - its folder must be found first

HEADS = ("Attack", "Outcome", "Stopped at")


def main() -> int:
    epilog = "Other arguments go to pytest: `scripts/redteam -k receipt`."
    parser = argparse.ArgumentParser(prog="scripts/redteam", description=__doc__, epilog=epilog)
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    options, more = parser.parse_known_args()
    with tempfile.TemporaryDirectory(prefix="fedmq-redteam-") as folder:
        path = Path(folder) / "table.json"
        ended = subprocess.run(
            [sys.executable, "-m", "pytest", str(HERE), "-q", *more],
            env=os.environ | {TABLE_VARIABLE: str(path)},
            # So that the table alone is what goes to the standard output.
            stdout=sys.stderr,
            check=False,
        )
        if not path.is_file():
            return ended.returncode or 1
        lines = read_table(path)
    print(markdown(lines) if options.markdown else plain(lines))
    return ended.returncode


def rows_of(lines: list[Line]) -> list[tuple[str, str, str]]:
    return [HEADS, *((line.attack, line.outcome, line.stopped_at) for line in lines)]


def plain(lines: list[Line]) -> str:
    rows = rows_of(lines)
    widths = [max(len(row[place]) for row in rows) for place in range(2)]
    return "\n".join(f"{attack:<{widths[0]}}  {outcome:<{widths[1]}}  {at}".rstrip() for attack, outcome, at in rows)


def markdown(lines: list[Line]) -> str:
    head, *rest = rows_of(lines)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ("---",) * 3, *rest])


if __name__ == "__main__":
    sys.exit(main())
