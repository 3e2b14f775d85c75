"""A rule that another package brings: installed from its own metadata, named in the settings, run through a plant."""

from __future__ import annotations

import importlib
import random
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from shutil import copy
from statistics import mean

import numpy as np
import pytest
from fedmq_compression.pipeline import Decoded
from fedmq_coordinator.aggregate import FIXED_POINT_BITS, AggregationRule, rule_named
from fedmq_coordinator.settings import RoundSettings
from fedmq_protocol.settings import SettingsError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plant import Plant, make_task

EXAMPLE = Path(__file__).parents[2] / "examples" / "trimmed_mean"
MODULE = "fedmq_trimmed_mean"
LARGEST = (1 << 30) - 1


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As pip leaves it: the module, and beside it the entry points that its pyproject.toml states."""
    site = tmp_path / "site"
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    metadata = site / f"{MODULE}-{project['version']}.dist-info"
    metadata.mkdir(parents=True)
    copy(EXAMPLE / f"{MODULE}.py", site)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 0.1.0\n")
    lines = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
    (metadata / "entry_points.txt").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(str(site))
    yield
    sys.modules.pop(MODULE, None)


def update(*values: int) -> Decoded:
    return Decoded(
        length=len(values), indices=None, steps=np.array(values, dtype=np.int64), step=2.0**-FIXED_POINT_BITS
    )


def test_without_its_package_the_rule_is_unknown() -> None:
    with pytest.raises(SettingsError, match=r"^rule: expected one of .*mean"):
        RoundSettings(rule="trimmed-mean")


@pytest.mark.usefixtures("installed")
def test_a_package_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    (tmp_path / "site" / f"{MODULE}.py").write_text("import a_module_that_is_not_there\n")
    importlib.invalidate_caches()
    with pytest.raises(ValueError, match=r"fedmq_trimmed_mean:TrimmedMean, which cannot be loaded: .*not_there"):
        rule_named("trimmed-mean")


@pytest.mark.usefixtures("installed")
def test_the_trimmed_mean_leaves_out_the_extremes_of_each_parameter() -> None:
    rule: AggregationRule = rule_named("trimmed-mean")(2)
    one = 1 << FIXED_POINT_BITS
    for first, second in ((1, 60), (2, 2), (3, 3), (4, 4), (-60, 5)):
        rule.add(update(first * one, second * one), 7)
    assert rule.mean().tolist() == [mean((1, 2, 3)), mean((3, 4, 5))]
    assert (rule.updates, rule.weight) == (5, 35)


@pytest.mark.usefixtures("installed")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(
    answers=st.lists(
        st.tuples(st.integers(-LARGEST, LARGEST) | st.sampled_from([0, 1, LARGEST]), st.integers(1, 1 << 12)),
        min_size=1,
        max_size=30,
    ),
    seed=st.integers(0, 99),
)
def test_the_trimmed_mean_keeps_the_laws_of_a_rule(answers: list[tuple[int, int]], seed: int) -> None:
    made = []
    for order in (answers, random.Random(seed).sample(answers, len(answers))):
        rule = rule_named("trimmed-mean")(1)
        for value, weight in order:
            rule.add(update(value), weight)
        made.append((rule.mean().tobytes(), rule.weight, rule.updates))
    assert made[0] == made[1]
    values = [value for value, _ in answers]
    told = float(np.frombuffer(made[0][0])[0]) * 2.0**FIXED_POINT_BITS
    assert min(values) - 1 <= told <= max(values) + 1


@pytest.mark.usefixtures("installed")
def test_the_trimmed_mean_refuses_what_is_not_of_this_model_and_changes_nothing() -> None:
    rule = rule_named("trimmed-mean")(2)
    for wrong, weight in ((update(1), 1), (update(1, 2), 0), (update(1, 2), 1 << 13)):
        with pytest.raises(ValueError, match=r"expected 2 values|a weight is"):
            rule.add(wrong, weight)
    with pytest.raises(ValueError, match="no update was added"):
        rule.mean()


@pytest.mark.usefixtures("installed")
def test_a_federation_learns_by_the_rule_of_another_package_and_restarts_to_the_same_model(tmp_path: Path) -> None:
    digests = []
    for name, killed in (("undisturbed", False), ("killed", True)):
        rounds = RoundSettings(max_rounds=6, min_gateways=5, rule="trimmed-mean")
        plant = Plant(tmp_path / name, gateways=5, task=make_task(dense=True), settings=rounds)
        plant.run_until(lambda plant=plant: plant.version == 2)  # type: ignore[misc]
        assert type(plant.job.run.mean).__name__ == "TrimmedMean"
        if killed:
            plant.kill_coordinator()
            plant.start_coordinator()
        plant.run_to_rest()
        assert set(plant.digests().values()) == {plant.digest}
        metrics = [r.metric for r in plant.book.rounds() if r.metric is not None]
        assert metrics[-1] > metrics[0] + 0.1
        digests.append(plant.digest)
    assert digests[0] == digests[1]
