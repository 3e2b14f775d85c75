"""How far memory rises while each of the worst inputs is decoded, in a process of its own: `measure.py FOLDER LENGTH`.

A file of the folder has the name of its case in `worst`. Prints a JSON object of bytes by name. The kernel gives this
process 64 MiB more than it has at the start and not a byte after that, so that a decoder which wants more gets a
MemoryError, which nothing here catches.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from memory import MEBIBYTE, Peak
from worst import WORST, ranking, read

__all__ = ["measure"]


def measure(names: Iterable[str], length: int, folder: Path) -> dict[str, int]:
    """Bytes by name; raises MemoryError where one of the inputs asked for too much."""
    for name in names:
        (folder / name).write_bytes(WORST[name](length))
    # Arrays come from the kernel and go back to it: none is there to be used again, unseen, by the next input.
    settings = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(folder), str(length)]
    ended = subprocess.run(command, env=settings, capture_output=True, text=True)
    if ended.returncode:
        raise MemoryError(f"the measuring process ended with {ended.returncode}: {ended.stderr[-1000:]}")
    return dict(json.loads(ended.stdout))


def main() -> None:
    folder, length = Path(sys.argv[1]), int(sys.argv[2])
    paths = sorted(folder.iterdir())
    for path in paths:  # what is loaded or made once is not what an input costs
        read(path.name, WORST[path.name](64), 64)
    ranking(length)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    largest = max(path.stat().st_size for path in paths)
    resource.setrlimit(resource.RLIMIT_AS, (mapped + largest + 64 * MEBIBYTE, resource.RLIM_INFINITY))
    peak, risen = Peak(), {}
    for path in paths:
        data = path.read_bytes()
        peak.restart()
        try:
            read(path.name, data, length)
        except MemoryError as error:
            raise MemoryError(f"{path.name}: {error}") from error
        risen[path.name] = peak.risen()
    print(json.dumps(risen))


if __name__ == "__main__":
    main()
