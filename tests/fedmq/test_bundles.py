"""`fedmq task check` and `show`: what they say of a bundle."""

from __future__ import annotations

from pathlib import Path

import pytest
from bundles import bundle_of, with_values
from fedmq_models.bundle import Bundle, to_bytes
from fedmq_protocol.task import ModelSpec

from fedmq.cli import main

MODEL = ModelSpec(kind="mlp", sizes=(22, 8, 3))


def file_of(directory: Path, bundle: Bundle) -> str:
    path = directory / "model.fedmq"
    path.write_bytes(to_bytes(bundle))
    return str(path)


def run(*arguments: str) -> int:
    try:
        return int(main(arguments) or 0)
    except SystemExit as ended:
        return int(ended.code or 0)


def test_show_says_where_each_parameter_lies_and_how_it_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("task", "show", file_of(tmp_path, bundle_of(MODEL))) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("drawn from the task's seed" in line for line in lines)
    starts = {line.split()[0]: line for line in lines if "  starts " in line}
    assert list(starts) == ["p0", "p1", "p2", "p3"]
    assert [line.split("from")[1].split()[0] for line in starts.values()] == ["0", "176", "184", "208"]
    assert "starts evenly within" in starts["p0"]
    assert starts["p1"].endswith("starts 0")


def test_show_says_that_a_bundle_has_parameters_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("task", "show", file_of(tmp_path, with_values(bundle_of(MODEL)))) == 0
    said = capsys.readouterr().out
    assert "of its own, 844 bytes" in said
    assert said.count("starts with values from -") == 4


def test_check_holds_a_gradient_at_the_parameters_that_training_starts_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("task", "check", file_of(tmp_path, bundle_of(MODEL))) == 0
    drawn = capsys.readouterr().out
    assert drawn.endswith("good\n")
    assert run("task", "check", file_of(tmp_path, with_values(bundle_of(MODEL)))) == 0
    held = capsys.readouterr().out
    assert held.endswith("good\n")
    assert held.split("gradient of norm")[1].split()[0] != drawn.split("gradient of norm")[1].split()[0]
