"""An autoencoder that never saw a broken tooth, on the real gearbox: a federation in this process, loads unseen."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from fedmq_coordinator.scaling import combine
from fedmq_edge_node.samples import Scaler, statistics
from fedmq_edge_node.trainer import area_under_curve

from fedmq.bench.training import Plant, play, prepare, task_for
from fedmq.demo import DemoOptions

REPOSITORY = Path(__file__).resolve().parents[2]
GEARBOX = Path(os.environ.get("FEDMQ_DATA", REPOSITORY.parent / "shared" / "data")) / "gearbox"


def plant(test_load: int | None) -> Plant:
    if not GEARBOX.is_dir():
        pytest.skip(f"no gearbox recordings in {GEARBOX}; name their parent folder with FEDMQ_DATA")
    return prepare(DemoOptions(data=f"gearbox:{GEARBOX}", model="autoencoder", test_load=test_load))


@pytest.mark.parametrize("test_load", [None, 0, 60])
def test_broken_teeth_at_unseen_loads_are_found_by_the_defaults(test_load: int | None) -> None:
    own = plant(test_load)
    assert own.test is not None
    assert set(own.test[1].tolist()) == {0, 1}
    rounds = list(play(task_for(own.fleet, "autoencoder", None, 0), own.gateways, own.test, 8))
    assert rounds[-1].metric is not None
    assert rounds[-1].metric >= 0.99
    # The metric alone would not tell: see below.
    assert rounds[-1].loss < 0.8 * rounds[0].loss


def test_the_distance_from_the_healthy_mean_finds_them_without_a_model() -> None:
    """What the remark on these data says. Once it fails, the remark is wrong and the AUC means more."""
    own = plant(60)
    assert own.test is not None
    mean, scale = combine([statistics(gateway.train_x) for gateway in own.gateways])
    distance = np.mean(Scaler(mean=mean, scale=scale).apply(own.test[0]).astype(np.float64) ** 2, axis=1)
    broken = own.test[1] == 1
    assert area_under_curve(distance[broken], distance[~broken]) >= 0.99
    assert "without a model" in own.fleet.remark
