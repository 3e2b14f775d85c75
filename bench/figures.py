"""What a scrape costs a coordinator: the sums that the ledger makes, beside the report that has every line.

    python bench/figures.py --gateways 50 --rounds 2000

Makes a ledger with so many answers, takes both from it, and prints CPU time and how far memory rose with each.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

# The rows are the tests'.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

from fedmq_coordinator import report, tallies
from fedmq_coordinator.ledger import Ledger, Version
from ledgers import START, a_gateway, a_round, a_wire, an_answer


def make(path: Path, gateways: int, rounds: int) -> None:
    ledger = Ledger(path)
    book = ledger.book("bearings")
    names = [f"g{place}" for place in range(gateways)]
    for place, name in enumerate(names):
        ledger.save_gateway(a_gateway(name, place))
        ledger.save_wire(a_wire(name, rounds * 200, rounds * 400))
    for number in range(1, rounds + 1):
        book.open_round(a_round(number, drawn=gateways))
        book.save_version(
            Version(
                lineage=1,
                number=number,
                digest=b"0" * 32,
                parent=b"0" * 32,
                round=number,
                created_at=START,
                delta=b"x" * 200,
                steps=b"",
            )
        )
        for name in names:
            book.save_answer(an_answer(number, name, sent=number * 200, received=number * 400))
    ledger.commit()
    ledger.close()


def cost(work: Callable[[], object]) -> str:
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    work()
    spent, after = time.process_time() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return f"{spent:.2f} CPU s, {(after - before) / 1024:.0f} MB more memory"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gateways", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=2000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.sqlite"
        make(path, arguments.gateways, arguments.rounds)
        ledger = Ledger(path, read_only=True)
        print(f"{arguments.gateways * arguments.rounds:,} answers")
        print("sums:  ", cost(lambda: tallies.build(ledger)))
        print("report:", cost(lambda: report.build(ledger)))
        ledger.close()


if __name__ == "__main__":
    main()
