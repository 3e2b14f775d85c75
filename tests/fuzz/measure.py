"""How far memory rises while each file of a folder is decoded, in a process of its own: `measure.py FOLDER`.

A file's name begins with its decoder's. Prints a JSON object of bytes by name. The kernel gives this process 64 MiB
more than it has at the start and not a byte after that, so that a decoder which wants more gets a MemoryError, which
nothing here catches.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from memory import MEBIBYTE, Peak

__all__ = ["measure"]


def measure(inputs: Mapping[str, bytes], folder: Path) -> dict[str, int]:
    """Bytes by name; raises CalledProcessError where one of the inputs asked for too much."""
    for name, data in inputs.items():
        (folder / name).write_bytes(data)
    # Arrays come from the kernel and go back to it: none is there to be used again, unseen, by the next input.
    settings = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(folder)]
    ended = subprocess.run(command, env=settings, capture_output=True, text=True)
    if ended.returncode:
        raise MemoryError(f"the measuring process ended with {ended.returncode}: {ended.stderr[-1000:]}")
    return dict(json.loads(ended.stdout))


def main() -> None:
    from decoders import read_delta, read_integers
    from worst import WORST

    for name in WORST:  # what is loaded or made once is not what an input costs
        (read_integers if name.startswith("integers") else read_delta)(WORST[name](64))
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    largest = max(path.stat().st_size for path in Path(sys.argv[1]).iterdir())
    resource.setrlimit(resource.RLIMIT_AS, (mapped + largest + 64 * MEBIBYTE, resource.RLIM_INFINITY))
    peak, risen = Peak(), {}
    for path in sorted(Path(sys.argv[1]).iterdir()):
        data = path.read_bytes()
        peak.restart()
        try:
            (read_integers if path.name.startswith("integers") else read_delta)(data)
        except MemoryError as error:
            raise MemoryError(f"{path.name}: {error}") from error
        risen[path.name] = peak.risen()
    print(json.dumps(risen))


if __name__ == "__main__":
    main()
