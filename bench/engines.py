"""What a step of training and one window cost on each engine that is here, and beside PyTorch where that is, too.

    python bench/engines.py
    python bench/engines.py --seconds 3 --json engines.json

One thread, batches of 32. Times are of the processor, so that what else the machine does is left out. The engines take
turns in one process, so that all meet the same machine; a turn is a few calls one after the other, as training makes
them, and the medians are over all but the first of each. The models: an MLP of 22-64-32-4 and the built-in CNN on 1,024
raw samples. PyTorch runs them eagerly, with the same layers; its step is forward, loss and backward to the gradient of
all parameters, as an engine's is.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

# The runtimes read the number of threads as they are loaded.
import numpy as np  # noqa: E402
from fedmq_edge_node.runtimes import available_engines, make_engine  # noqa: E402
from fedmq_protocol.task import ModelSpec, initial_steps, to_parameters  # noqa: E402

BATCH = 32
TURN = 8
MODELS = {
    "mlp": ModelSpec(kind="mlp", sizes=(22, 64, 32, 4)),
    "cnn1d": ModelSpec(kind="cnn1d", sizes=(1024, 16, 32, 64, 4)),
}


def torch_calls(model: ModelSpec, x: Any, y: Any) -> dict[str, Callable[[], object]] | None:
    """The same layers in PyTorch; None where it is not installed."""
    try:
        import torch
        from torch import nn
    except ImportError:
        return None
    torch.set_num_threads(1)
    layers: list[nn.Module] = []
    if model.kind == "cnn1d":
        layers.append(nn.Unflatten(1, (1, model.sizes[0])))
        for conv in model.convolutions:
            layers.append(
                nn.Conv1d(conv.channels, conv.outputs, conv.kernel, conv.stride, padding=conv.kernel // 2, bias=False)
            )
            layers += [nn.GroupNorm(max(1, conv.outputs // 8), conv.outputs), nn.MaxPool1d(2), nn.ReLU()]
        layers += [nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(model.sizes[-2], model.sizes[-1])]
    else:
        for inputs, outputs in zip(model.sizes, model.sizes[1:], strict=False):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        layers.pop()
    module = nn.Sequential(*layers)
    count = sum(p.numel() for p in module.parameters())
    assert count == model.parameters, f"PyTorch has {count} parameters, the built-in model {model.parameters}"
    inputs, labels = torch.from_numpy(x), torch.from_numpy(y)
    parameters = list(module.parameters())

    def step() -> object:
        loss = nn.functional.cross_entropy(module(inputs), labels)
        return torch.autograd.grad(loss, parameters)

    def window() -> object:
        with torch.no_grad():
            return torch.softmax(module(inputs[:1]), dim=1)

    return {"step": step, "window": window}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each model, engine and call (default: 2)")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    for name, model in MODELS.items():
        rng = np.random.default_rng(0)
        x = rng.normal(size=(BATCH, model.sizes[0])).astype(np.float32)
        y = rng.integers(0, model.sizes[-1], BATCH)
        w = np.ones(BATCH, dtype=np.float32)
        flat = to_parameters(initial_steps(model, 0, 12), 12)
        calls: dict[tuple[str, str], Callable[[], object]] = {}
        for engine in available_engines():
            made = make_engine(model, engine)
            calls[engine, "step"] = partial(made.loss_grad, flat, x, y, w)
            calls[engine, "window"] = partial(made.infer, flat, x[:1])
        for what, call in (torch_calls(model, x, y) or {}).items():
            calls["torch", what] = call
        times: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
        for call in calls.values():
            for _ in range(5):
                call()
        until = time.perf_counter() + options.seconds * len(calls)
        while time.perf_counter() < until:
            for key, call in calls.items():
                call()  # what the others left in the caches is not this one's to pay for
                for _ in range(TURN - 1):
                    began = time.process_time()
                    call()
                    times[key].append(time.process_time() - began)
        for (engine, what), found in times.items():
            median, p99 = np.percentile(found, [50, 99]) * 1e6
            row = {
                "model": name,
                "engine": engine,
                "what": what,
                "median_us": median,
                "p99_us": p99,
                "runs": len(found),
            }
            if ("torch", what) in times:
                row["of_torch"] = median / (np.median(times["torch", what]) * 1e6)
            rows.append(row)
            beside = f", {row['of_torch']:.2f} of torch" if "of_torch" in row else ""
            print(f"{name:6s} {engine:12s} {what:7s} median {median:9.1f} us, p99 {p99:9.1f} us{beside}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
