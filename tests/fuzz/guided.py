"""One decoder under atheris: `guided.py DECODER SEEDS… -libfuzzer_option=…`. `run.py` starts it and reads its word."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["fedmq_compression", "fedmq_protocol", "fedmq_edge_node"]):
    import decoders

from memory import MEBIBYTE, Peak
from run import MOST_MEMORY


def main() -> None:
    decoder = decoders.decoders()[sys.argv[1]]
    peak = Peak()

    def one(data: bytes) -> None:
        # Atheris itself grows all the time: only what one input adds counts.
        peak.restart()
        decoder.read(data)
        if peak.risen() > MOST_MEMORY:
            raise MemoryError(f"memory rose by {peak.risen() // MEBIBYTE} MiB")

    atheris.Setup([sys.argv[0], *sys.argv[2:]], one)
    atheris.Fuzz()


main()
