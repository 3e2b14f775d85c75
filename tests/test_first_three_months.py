"""The newcomer's page is what its script plays, and each command on it is one that there is."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import pytest

from fedmq.cli import _parser

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "first-three-months.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^\$ (fedmq .+)$", PAGE, flags=re.MULTILINE)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    place = importlib.util.spec_from_file_location("first_three_months", ROOT / "bench" / "first_three_months.py")
    assert place is not None
    assert place.loader is not None
    module = importlib.util.module_from_spec(place)
    sys.modules[place.name] = module  # dataclasses look their module up
    place.loader.exec_module(module)
    return module


def test_the_marks_of_the_page_are_those_of_the_script(script: ModuleType) -> None:
    assert tuple(re.findall(r"<!-- begin: (.+?) -->", PAGE)) == script.BLOCKS
    assert tuple(re.findall(r"<!-- end: (.+?) -->", PAGE)) == script.BLOCKS


def test_every_mark_holds_what_came_of_a_command(script: ModuleType) -> None:
    for name in script.BLOCKS:
        block = PAGE.partition(f"<!-- begin: {name} -->")[2].partition(f"<!-- end: {name} -->")[0]
        assert len(block.splitlines()) > 3, f"{name} is empty: `bench/first_three_months --write` fills it"


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_of_the_page_is_still_one(command: str) -> None:
    words = shlex.split(command.partition(" | ")[0])[1:]
    assert callable(_parser().parse_args(words).run)


def test_a_block_is_written_between_its_marks_and_nowhere_else(script: ModuleType) -> None:
    page = "a\n<!-- begin: one -->\nold\n<!-- end: one -->\nb\n<!-- begin: two -->\n<!-- end: two -->\n"
    written = script.written(page, {"one": "$ fedmq x \\1\nsaid\n", "two": "y\n"})
    assert "old" not in written
    assert "$ fedmq x \\1\nsaid\n```\n<!-- end: one -->\nb\n" in written
    with pytest.raises(ValueError, match="expected the marks two"):
        script.written(page, {"two": "y\n"})


def test_the_picture_is_small_and_says_what_it_shows(script: ModuleType) -> None:
    picture = (ROOT / "docs" / "first-three-months.svg").read_text(encoding="utf-8")
    assert len(picture) < 20_000
    assert "simulated" in picture
    assert "limit" in picture
