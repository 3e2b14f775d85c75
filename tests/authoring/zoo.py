"""Six small modules of the kinds that a plant trains; `ZOO` says how each is traced."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


class Residual(nn.Module):
    """Two convolutions around a shortcut; `(batch, channels, length)` stays as it is."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv1d(channels, channels, 3, padding=1),
            nn.GroupNorm(4, channels),
            nn.ReLU(),
            nn.Conv1d(channels, channels, 3, padding=1),
            nn.GroupNorm(4, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.body(x))


class Recurrent(nn.Module):
    """A GRU over `(batch, 24, 4)`; the last state decides."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.gru = nn.GRU(4, 16, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        steps, _ = self.gru(self.norm(x))
        return self.head(steps[:, -1])


def logistic() -> nn.Module:
    return nn.Linear(32, 4)


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(32, 48), nn.ReLU(), nn.Dropout(0.2), nn.Linear(48, 24), nn.GELU(), nn.Dropout(0.5), nn.Linear(24, 3)
    )


def autoencoder() -> nn.Module:
    return nn.Sequential(
        nn.Linear(32, 16), nn.Tanh(), nn.Linear(16, 4), nn.Sigmoid(), nn.Linear(4, 16), nn.SiLU(), nn.Linear(16, 32)
    )


def cnn() -> nn.Module:
    """About 11,000 parameters on 1,024 raw samples."""
    return nn.Sequential(
        nn.Conv1d(1, 16, 16, stride=4, padding=6),
        nn.GroupNorm(4, 16),
        nn.ReLU(),
        nn.Conv1d(16, 32, 8, stride=4, padding=2),
        nn.GroupNorm(8, 32),
        nn.ReLU(),
        Residual(32),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(32, 4),
    )


def cnn_with_pooling() -> nn.Module:
    """Windows that overlap, windows that do not, and one with padding."""
    return nn.Sequential(
        nn.Conv1d(2, 8, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Conv1d(8, 12, 3),
        nn.ReLU(),
        nn.MaxPool1d(3, stride=2),
        nn.Conv1d(12, 12, 3, stride=2, dilation=2),
        nn.MaxPool1d(3, stride=1, padding=1),
        nn.Flatten(),
        nn.Linear(12 * 13, 4),
    )


@dataclass(frozen=True, kw_only=True)
class Specimen:
    build: Callable[[], nn.Module]
    sample: tuple[int, ...]
    """Of one window."""
    options: dict[str, Any]
    """For `trace`: the loss and its width."""


ZOO = {
    "logistic regression": Specimen(build=logistic, sample=(32,), options={"loss": "cross_entropy", "classes": 4}),
    "mlp": Specimen(build=mlp, sample=(32,), options={"loss": "mse", "outputs": 3}),
    "autoencoder": Specimen(build=autoencoder, sample=(32,), options={"loss": "reconstruction"}),
    "cnn": Specimen(build=cnn, sample=(1, 1024), options={"loss": "cross_entropy", "classes": 4}),
    "cnn with pooling": Specimen(
        build=cnn_with_pooling, sample=(2, 128), options={"loss": "cross_entropy", "classes": 4}
    ),
    "gru": Specimen(build=Recurrent, sample=(24, 4), options={"loss": "cross_entropy", "classes": 3}),
}
