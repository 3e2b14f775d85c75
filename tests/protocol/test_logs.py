"""One message is one line, in either form, whatever stands in it; and a line says what it belongs to."""

from __future__ import annotations

import io
import json
import logging
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from fedmq_protocol.logs import FORMS, Form, about, fields, formatter, printable
from hypothesis import given
from hypothesis import strategies as st

FORGED = "g1\n2026-11-30 00:00:00,000 CRITICAL fedmq.coordinator: everything is well"


class Program:
    """A logger of its own, and what it has written."""

    def __init__(self, form: Form, gateway: str | None = None) -> None:
        self.out = io.StringIO()
        self.log = logging.Logger("fedmq.test", logging.DEBUG)
        handler = logging.StreamHandler(self.out)
        handler.setFormatter(formatter(form, gateway=gateway))
        self.log.addHandler(handler)

    @property
    def lines(self) -> list[str]:
        return self.out.getvalue().splitlines()

    @property
    def objects(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.getvalue().split("\n") if line]


@pytest.fixture
def console() -> Iterator[Program]:
    return Program("console")


@pytest.fixture
def as_json() -> Iterator[Program]:
    return Program("json")


def test_a_line_for_people_is_time_level_program_and_message(console: Program) -> None:
    console.log.warning("round %d: %s", 3, "late")
    (line,) = console.lines
    assert line.endswith(" WARNING fedmq.test: round 3: late")
    assert datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f")


def test_a_line_for_programs_is_an_object_with_time_in_utc_by_rfc_3339(as_json: Program) -> None:
    before = datetime.now(tz=UTC)
    as_json.log.info("round %d: %s", 3, "done")
    (line,) = as_json.objects
    assert list(line) == ["time", "level", "logger", "message"]
    assert (line["level"], line["logger"], line["message"]) == ("info", "fedmq.test", "round 3: done")
    assert line["time"].endswith("Z")
    assert before <= datetime.fromisoformat(line["time"]) <= datetime.now(tz=UTC)


def test_what_a_line_is_about_stands_in_it(console: Program, as_json: Program) -> None:
    for program in (console, as_json):
        with about(task="pumps", round=7), about(gateway="press-1"):
            program.log.info("inside")
        program.log.info("outside")
    assert console.lines[0].endswith("inside [task=pumps round=7 gateway=press-1]")
    assert console.lines[1].endswith(": outside")
    inside, outside = as_json.objects
    assert (inside["task"], inside["round"], inside["gateway"]) == ("pumps", 7, "press-1")
    assert not {"task", "round", "gateway"} & outside.keys()


def test_a_field_that_changes_is_asked_as_the_line_is_written(as_json: Program) -> None:
    rounds = [1]
    with about(round=lambda: rounds[-1]):
        as_json.log.info("closes")
        rounds.append(2)
        as_json.log.info("opens")
    assert [line["round"] for line in as_json.objects] == [1, 2]


def test_what_is_not_known_is_left_out(as_json: Program) -> None:
    with about(task="pumps"), about(task=None, round=lambda: None):
        as_json.log.info("nothing is known of a round")
        assert fields() == {"task": "pumps"}
    assert as_json.objects[0].keys() == {"time", "level", "logger", "message", "task"}


def test_a_gateways_lines_for_programs_name_it_and_those_for_people_need_not() -> None:
    program, people = Program("json", "press-1"), Program("console", "press-1")
    program.log.info("connected")
    people.log.info("connected")
    assert program.objects[0]["gateway"] == "press-1"
    assert "press-1" not in people.lines[0]


def test_another_thread_speaks_of_something_else(as_json: Program) -> None:
    with about(round=7):
        other = threading.Thread(target=as_json.log.info, args=("elsewhere",))
        other.start()
        other.join()
    assert "round" not in as_json.objects[0]


@pytest.mark.parametrize("form", FORMS)
def test_a_line_end_in_what_came_from_a_gateway_forges_no_line(form: Form) -> None:
    program = Program(form)
    with about(gateway=FORGED, task=FORGED):
        program.log.warning("dropped what %s said", FORGED)
    assert len(program.lines) == 1
    assert not program.out.getvalue()[:-1].count("\n")


@pytest.mark.parametrize("form", FORMS)
def test_nor_does_one_in_an_error(form: Form) -> None:
    program = Program(form)
    try:
        raise ValueError(FORGED)
    except ValueError:
        program.log.exception("it failed")
    first, *others = program.lines
    assert "it failed" in first
    assert all(line.startswith("    | ") for line in others)
    if form == "json":
        assert not others
        assert "CRITICAL" in json.loads(first)["exception"]


def test_a_field_cannot_take_the_place_of_another_part(console: Program) -> None:
    with about(task="pumps round=9 gateway=other", round=3):
        console.log.info("x")
    assert console.lines[0].endswith('[task="pumps round=9 gateway=other" round=3]')


def test_a_terminal_is_not_spoken_to(console: Program) -> None:
    console.log.info("%s", "\x1b[2J\x07\r\u202egnp\u2028\udcff")
    (line,) = console.lines
    assert line.endswith(r"\x1b[2J\x07\r\u202egnp\u2028\udcff")


@given(st.text())
def test_whatever_is_said_is_one_line_that_can_be_read_back(text: str) -> None:
    people, programs = Program("console"), Program("json")
    for program in (people, programs):
        with about(gateway=text or "-", task=text or "-"):
            program.log.info("%s", text)
        assert len(program.out.getvalue().splitlines()) == 1
    assert programs.objects[0]["message"] == text
    assert printable(text).isprintable()
