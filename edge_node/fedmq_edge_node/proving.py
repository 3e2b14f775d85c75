"""The first run of a foreign graph, in a process of its own: what kills that process does not kill the gateway.

Owns the bounds: memory, CPU time, and seconds by the wall. Shapes are static and there are no loops, so that later runs
take what this one took. Refuses to judge what a graph computes.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable

import numpy as np
from fedmq_models.bundle import Bundle, BundleError, from_bytes, to_bytes

from fedmq_edge_node.runtimes import make_engine, make_preparation

__all__ = ["PROVING_SECONDS", "prover"]

PROVING_SECONDS = 60.0
"""For starting, loading the engine, one step of training and one window, on a slow gateway."""

PROVING_BYTES = 4 << 30
"""Address space, of which a runtime reserves much more than it uses."""

SAID_BYTES = 2000


def prover(engine: str, seconds: float = PROVING_SECONDS) -> Callable[[Bundle], None]:
    """Runs a bundle's graphs once on the engine of this name; raises BundleError where that does not go well."""

    def prove(bundle: Bundle) -> None:
        command = [sys.executable, "-m", "fedmq_edge_node.proving", engine, str(int(seconds))]
        try:
            done = subprocess.run(command, input=to_bytes(bundle), capture_output=True, timeout=seconds, check=False)
        except subprocess.TimeoutExpired:
            raise BundleError(f"its graphs ran for more than {seconds:.0f} s and were stopped") from None
        if done.returncode:
            said = done.stderr[-SAID_BYTES:].decode("utf-8", "replace").strip().splitlines()
            ended = f"signal {-done.returncode}" if done.returncode < 0 else f"status {done.returncode}"
            raise BundleError(f"its graphs do not run here ({ended}): {said[-1] if said else 'nothing was said'}")

    return prove


def run(bundle: Bundle, engine: str) -> None:
    """One step and one window, on zeros, and a raw window where the bundle prepares them.

    Raises ValueError where an output is not what it is to be.
    """
    manifest = bundle.manifest
    model = bundle.model(bytes(32), 1)
    runs = make_engine(model, engine, bundle)
    flat = np.zeros(model.parameters, dtype=np.float32)
    x = np.zeros((manifest.batch, model.sizes[0]), dtype=np.float32)
    if manifest.loss == "cross_entropy":
        gradient, _ = runs.loss_grad(flat, x, np.zeros(manifest.batch, dtype=np.int64), x[:, 0] + 1)
    else:
        gradient, _ = runs.loss_grad(flat, x, x[:, 0], x[:, 0] + 1)
    out = runs.infer(flat, x[:1])
    runs.infer(flat, x)
    preparation = make_preparation(bundle, engine)
    if preparation is not None and manifest.windowing is not None:
        windows = np.zeros((1, manifest.windowing.samples * manifest.windowing.channels), dtype=np.float32)
        preparation.run(windows + np.linspace(-1, 1, windows.size, dtype=np.float32))
    if gradient.shape != flat.shape or out.shape != (1, model.sizes[1]):
        raise ValueError(
            f"expected shapes {flat.shape} and {(1, model.sizes[1])}, got {gradient.shape} and {out.shape}"
        )


def main() -> None:
    engine, seconds = sys.argv[1], int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_AS, (PROVING_BYTES, PROVING_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    run(from_bytes(sys.stdin.buffer.read()), engine)


if __name__ == "__main__":
    main()
