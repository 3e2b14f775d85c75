"""`fedmq gateway --show`: what a gateway scores with, from its memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fedmq_edge_node.memory import GatewayState, InService, Memory, Personal
from fedmq_protocol.messages import PersonalOutcome, PersonalPolicy, PersonalTrial
from fedmq_protocol.task import ModelSpec, Task

from fedmq import welcome
from fedmq.cli import main

TASK = Task(name="bearings", model=ModelSpec(kind="softmax", sizes=(2, 2)), classes=("a", "b"), initial=bytes(8))
STEPS = np.zeros(6, dtype=np.int32)
SERVICE = InService(task=TASK, lineage=1, version=5, digest=bytes(32), steps=STEPS, scaler=None)
OWN = Personal(
    base=bytes(32),
    policy=PersonalPolicy(mode="head", margin=0.02, epochs=10),
    windows=bytes(8),
    found=PersonalTrial(outcome=PersonalOutcome.SERVES, windows=40, metric=9_500, shared=9_000),
    seen=(0, 1),
    values=np.zeros(6, dtype=np.float32),
)
STATE = GatewayState(lineage=2, task=TASK, version=7, steps=STEPS, residual=np.zeros(6, dtype=np.float32))


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (None, ["nothing yet"]),
        (STATE, ["version 7 of lineage 2 is in training", "nothing is in service"]),
        (replace(STATE, in_service=SERVICE), ["version 7 of", "version 5 of lineage 1 is in service"]),
        (
            replace(STATE, in_service=SERVICE, personal=OWN),
            [
                "version 7 of",
                "version 5 of lineage 1 is in service",
                "the personal model of version 5 scores here (0.950, 0.900 shared, on 40 held-out windows) (head)",
            ],
        ),
        (replace(STATE, in_service=SERVICE, personal=replace(OWN, base=b"x" * 32)), ["version 7 of", "version 5 of"]),
    ],
    ids=["new", "no release", "shared", "personal", "of another version"],
)
def test_what_a_gateway_scores_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], state: GatewayState | None, said: list[str]
) -> None:
    if state is not None:
        memory = Memory(tmp_path / "state" / "gateway.sqlite")
        memory.load()
        memory.save(state)
        memory.close()
    config = tmp_path / "gateway.toml"
    config.write_text('name = "g0"\ndata_dir = "data"\nstate_dir = "state"\n[connection]\nhost = "broker"\n')
    assert main(["gateway", "--config", str(config), "--show"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(said)
    assert all(text in line for text, line in zip(said, lines, strict=True))
    assert (tmp_path / "state").exists() == (state is not None), "looking makes nothing"


def test_when_the_coordinator_welcomed_which_version(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    memory = Memory(tmp_path / "state" / "gateway.sqlite")
    memory.load()
    memory.save(STATE)
    memory.close()
    welcome.write(tmp_path / "state", welcome.Welcomed(software="fedmq 0.1.0", boot="00", at=1_790_000_000.0))
    config = tmp_path / "gateway.toml"
    config.write_text('name = "g0"\ndata_dir = "data"\nstate_dir = "state"\n[connection]\nhost = "broker"\n')
    assert main(["gateway", "--config", str(config), "--show"]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first == "fedmq 0.1.0 was last welcomed by the coordinator at 2026-09-21 14:13:20 UTC"
