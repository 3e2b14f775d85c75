"""Writes tests/vectors/bundles: six PyTorch modules as bundles, each with the gradient that PyTorch itself computes.

    python tests/vectors/make_bundles.py

Needs the extra "authoring" with torch 2.13.0. The bundles are what every engine must agree with PyTorch on, where there
is no PyTorch: x, y, w, the loss and the gradient at the parameters that seed 1 draws.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.func import functional_call

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "authoring"))

from fedmq_models.bundle import to_bytes
from fedmq_protocol.task import initial_steps, to_parameters
from zoo import ZOO

from fedmq.authoring.building import build

FOLDER = Path(__file__).with_name("bundles")
BATCH = 8


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(22, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4))


def main() -> None:
    cases = {name.replace(" ", "_"): (s.build, s.sample, str(s.options["loss"])) for name, s in ZOO.items()}
    cases["mlp"] = (mlp, (22,), "cross_entropy")
    FOLDER.mkdir(exist_ok=True)
    for name, (make, sample, loss) in cases.items():
        torch.manual_seed(0)
        module = make()
        rng = np.random.default_rng(len(name))
        x = rng.normal(size=(BATCH, *sample)).astype(np.float32)
        bundle = build(module, name=name, loss=loss, example=x, batch=BATCH, initial="seed")  # type: ignore[arg-type]
        assert not bundle.manifest.noise
        data = to_bytes(bundle)
        model = bundle.model(hashlib.sha256(data).digest(), len(data))
        flat = to_parameters(initial_steps(model, 1, 16), 16)
        y = rng.integers(0, bundle.manifest.outputs, BATCH)
        w = np.ones(BATCH, dtype=np.float32)
        w[-2:] = (0.5, 0.0)
        expected, value = gradient(module, bundle, flat, x, y, w)
        (FOLDER / f"{name}.fedmq").write_bytes(data)
        np.savez_compressed(FOLDER / f"{name}.npz", x=x.reshape(BATCH, -1), y=y, w=w, gradient=expected, loss=value)
        print(f"{name}: {model.parameters:,} parameters, {len(data):,} bytes")


def gradient(module: nn.Module, bundle, flat, x, y, w):  # type: ignore[no-untyped-def]
    """By torch's autograd in float64, rounded at the end."""
    module = module.double()
    parameters, start = {}, 0
    for part in bundle.manifest.parameters:
        values = torch.from_numpy(flat[start : start + part.block.count].astype(np.float64)).reshape(part.block.shape)
        parameters[part.name] = values.requires_grad_()
        start += part.block.count
    inputs = torch.from_numpy(x.astype(np.float64))
    out = functional_call(module, parameters, (inputs,))
    weights = torch.from_numpy(w.astype(np.float64))
    if bundle.manifest.loss == "cross_entropy":
        losses = nn.functional.cross_entropy(out, torch.from_numpy(y), reduction="none")
    else:
        losses = ((out - inputs) ** 2).flatten(1).mean(dim=1)
    loss = (losses * weights).sum() / weights.sum()
    loss.backward()
    found = torch.cat([value.grad.flatten() for value in parameters.values()])
    return found.numpy().astype(np.float32), float(loss)


if __name__ == "__main__":
    main()
