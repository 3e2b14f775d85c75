from __future__ import annotations

import argparse
from collections.abc import Iterator

import pytest

from fedmq.arguments import add_override, add_settings
from fedmq.cli import _parser as make_parser


def test_all_flags_that_override_settings_go_into_one_list_in_their_order() -> None:
    parser = argparse.ArgumentParser()
    add_override(parser, "--port", "connection.port", "its port")
    add_settings(parser, "a.toml", "log_level=debug")
    assert parser.parse_args([]).overrides == []
    assert parser.parse_args(["--set", "a=1", "--port", "2", "--set", "b=3"]).overrides == [
        "a=1",
        "connection.port=2",
        "b=3",
    ]
    assert parser.parse_args([]).overrides == [], "what one command line said is not the next one's"


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from parsers(below)


def test_without_any_flag_every_command_has_an_empty_list() -> None:
    """Argparse takes the default of whichever flag was added first."""
    found = [
        (parser.prog, action.default)
        for parser in parsers(make_parser())
        for action in parser._actions
        if action.dest == "overrides"
    ]
    assert len(found) > 10
    assert [prog for prog, default in found if default != []] == []


@pytest.mark.parametrize("command", ["coordinator", "gateway", "broker"])
def test_the_help_shows_an_example_of_an_override(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        make_parser().parse_args([command, "--help"])
    assert "--set KEY=VALUE" in capsys.readouterr().out
