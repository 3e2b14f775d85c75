"""numpy on one thread for a while, in a process that has loaded it already.

A gateway's process sets OPENBLAS_NUM_THREADS before it loads numpy; in a notebook it is too late for that, so OpenBLAS
is told through its own functions. It matters twice: with matrices as small as these, threads wait for each other most
of the time, and a sum over several threads may differ in its last bit from a gateway's.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

__all__ = ["one_thread"]

MAPS = Path("/proc/self/maps")

NAMES = tuple(
    (f"{prefix}openblas_get_num_threads{suffix}", f"{prefix}openblas_set_num_threads{suffix}")
    for prefix in ("scipy_", "")
    for suffix in ("64_", "_64", "")
)
"""As the builds of OpenBLAS name them: numpy's own wheels, distributions, conda."""


@contextmanager
def one_thread() -> Iterator[None]:
    """While this lasts, every OpenBLAS in this process has one thread. With another library nothing happens."""
    with ExitStack() as stack:
        for get, set_ in _openblas():
            stack.callback(set_, get())
            set_(1)
        yield


def _openblas() -> Iterator[tuple[Callable[[], int], Callable[[int], object]]]:
    """How many threads it has, and what sets them, of each one that is loaded."""
    if not MAPS.is_file():
        return
    lines = (line.split(maxsplit=5) for line in MAPS.read_text(encoding="utf-8", errors="replace").splitlines())
    paths = {parts[5] for parts in lines if len(parts) == 6}
    for path in sorted(path for path in paths if "openblas" in Path(path).name):
        library = ctypes.CDLL(path)
        for get, set_ in NAMES:
            if hasattr(library, get) and hasattr(library, set_):
                yield getattr(library, get), getattr(library, set_)
                break
