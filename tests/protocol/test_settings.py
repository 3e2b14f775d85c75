from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest
from fedmq_protocol.settings import ConnectionSettings, SettingsError, Table, document, load
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta

Percent = Annotated[float, Meta(ge=0, le=100)]


@dataclass(frozen=True, kw_only=True)
class Gates(Table):
    """When to train."""

    battery_min_pct: Annotated[Percent, Meta(description="Least charge, in per cent.")] = 30.0
    battery_max_pct: Annotated[Percent | None, Meta(description="Most charge.", examples=[90])] = None
    links: Annotated[tuple[Literal["wifi", "ethernet"], ...], Meta(description="Links.", min_length=1)] = ("wifi",)

    def check(self) -> Iterator[tuple[str, str]]:
        if self.battery_max_pct is not None and self.battery_max_pct < self.battery_min_pct:
            yield "battery_max_pct", "expected at least battery_min_pct"


@dataclass(frozen=True, kw_only=True)
class Program(Table):
    """Settings of a program."""

    name: Annotated[str, Meta(min_length=1, max_length=8, description="Its name.", examples=["gw-1"])]
    folder: Annotated[Path | None, Meta(description="A folder.", examples=["data"])] = None
    count: Annotated[int, Meta(ge=1, description="How many.")] = 1
    hidden: Annotated[tuple[int, ...], Meta(description="Layers.")] = (32,)
    loud: Annotated[bool, Meta(description="Whether it is loud.")] = False
    gates: Gates = field(default_factory=Gates)
    connection: ConnectionSettings = field(default_factory=ConnectionSettings)


@dataclass(frozen=True, kw_only=True)
class Pin(Table):
    """A pin."""

    number: Annotated[int, Meta(ge=0, description="Which one.", examples=[4])]


@dataclass(frozen=True, kw_only=True)
class Port(Table):
    """A port."""

    name: Annotated[str, Meta(min_length=1, description="Its name.", examples=["motor"])]
    file: Annotated[Path | None, Meta(description="A file.", examples=["a"])] = None
    baud: Annotated[int, Meta(ge=300, description="Bits a second.")] = 9600
    pin: Annotated[tuple[Pin, ...], Meta(max_length=2, description="A pin of it.")] = ()

    def check(self) -> Iterator[tuple[str, str]]:
        if self.name == "ghost":
            yield "name", "expected one that there is"


@dataclass(frozen=True, kw_only=True)
class Ports(Table):
    """A program with ports."""

    port: Annotated[tuple[Port, ...], Meta(max_length=3, description="A port.", extra={"stated": True})] = ()
    level: Annotated[int, Meta(description="A level.")] = 1


def written(folder: Path, text: str, name: str = "program.toml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def mistakes(path: Path | None, *overrides: str) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load(Program, path, overrides)
    return str(caught.value).splitlines()


def test_a_file_becomes_a_nested_dataclass(tmp_path: Path) -> None:
    path = written(tmp_path, 'name = "a"\nhidden = [1, 2]\n[gates]\nbattery_min_pct = 50\nlinks = ["ethernet"]\n')
    settings = load(Program, path)
    assert settings == Program(name="a", hidden=(1, 2), gates=Gates(battery_min_pct=50.0, links=("ethernet",)))
    assert isinstance(settings.gates.battery_min_pct, float)


def test_every_mistake_is_reported_with_its_full_key(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        'count = 0\nhidden = ["x"]\nloud = 1\nfolder = 3\n'
        '[gates]\nbattery_min_pct = "low"\nlinks = []\n[connection]\nport = 70000\nprotocol = "4"\n',
    )
    lines = mistakes(path)
    where = f" (in {path})"
    assert sorted(lines) == sorted(
        line + where
        for line in (
            "name: missing; expected a text of 1 to 8 characters",
            "count: expected a whole number of at least 1, got 0",
            'hidden: expected a list, each a whole number, got ["x"]',
            "loud: expected true or false, got 1",
            "folder: expected a path, got 3",
            'gates.battery_min_pct: expected a number from 0 to 100, got "low"',
            'gates.links: expected a list of at least 1 entries, each one of "wifi", "ethernet", got []',
            "connection.port: expected a whole number from 1 to 65,535, got 70000",
            'connection.protocol: expected one of "auto", "5", "3.1.1", got "4"',
        )
    )


@pytest.mark.parametrize(
    ("text", "key", "suggestion"),
    [
        ("[gates]\nbatery_min_pct = 3", "gates.batery_min_pct", "gates.battery_min_pct"),
        ("battery_min_pct = 3", "battery_min_pct", "gates.battery_min_pct"),
        ("[gate]\nx = 3", "gate", "gates"),
        ("[gates]\ncount = 3", "gates.count", "count"),
    ],
)
def test_an_unknown_key_comes_with_the_nearest_known_one(tmp_path: Path, text: str, key: str, suggestion: str) -> None:
    (line,) = mistakes(written(tmp_path, text), "name=a")
    assert line.startswith(f"{key}: no such setting; did you mean {suggestion}?")


def test_an_unknown_key_like_no_other_gets_no_suggestion(tmp_path: Path) -> None:
    (line,) = mistakes(written(tmp_path, "zzzz = 3"), "name=a")
    assert line.startswith("zzzz: no such setting (")


def test_a_relation_between_fields_is_reported_under_its_table(tmp_path: Path) -> None:
    (line,) = mistakes(written(tmp_path, 'name = "a"\n[gates]\nbattery_max_pct = 3'))
    assert line.startswith("gates.battery_max_pct: expected at least battery_min_pct")


def test_a_relation_broken_by_file_and_command_line_together_blames_neither(tmp_path: Path) -> None:
    path = written(tmp_path, 'name = "a"\n[gates]\nbattery_max_pct = 50')
    assert mistakes(path, "gates.battery_min_pct=60") == ["gates.battery_max_pct: expected at least battery_min_pct"]


def test_a_value_where_a_table_belongs_is_a_mistake_and_the_other_way_round(tmp_path: Path) -> None:
    lines = mistakes(written(tmp_path, 'gates = 3\nname = "a"\n[count]\nx = 1'))
    assert [line.split(":")[0] for line in lines] == ["count", "gates"]


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    for number in ("nan", "inf", "-inf"):
        (line,) = mistakes(written(tmp_path, f"[gates]\nbattery_min_pct = {number}"), "name=a")
        assert "expected a number from 0 to 100" in line


def test_a_table_made_in_code_is_checked_alike() -> None:
    with pytest.raises(SettingsError, match=r"battery_min_pct: expected a number from 0 to 100, got 101"):
        Gates(battery_min_pct=101)
    with pytest.raises(SettingsError, match=r"battery_max_pct: expected at least battery_min_pct"):
        Gates(battery_max_pct=1)
    with pytest.raises(SettingsError, match=r"gates: expected a Gates"):
        Program(name="a", gates=None)  # type: ignore[arg-type]


def test_an_override_wins_over_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, 'name = "a"\ncount = 3\n[gates]\nbattery_min_pct = "low"\n')
    settings = load(Program, path, ["count=4", "gates.battery_min_pct=10.5", "count=5"])
    assert (settings.count, settings.gates.battery_min_pct) == (5, 10.5)


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("name=gw-1", "name", "gw-1"),
        ('name="gw-1"', "name", "gw-1"),
        ("name=7", "name", "7"),
        ("hidden=64,128,64", "hidden", (64, 128, 64)),
        ("hidden=[64, 128]", "hidden", (64, 128)),
        ("hidden=9", "hidden", (9,)),
        ("loud=true", "loud", True),
    ],
)
def test_an_override_needs_neither_quotes_nor_brackets(override: str, key: str, value: object) -> None:
    assert getattr(load(Program, None, ["name=a", override]), key) == value


def test_a_list_of_words_needs_no_quotes_on_the_command_line() -> None:
    assert load(Program, None, ["name=a", "gates.links=wifi, ethernet"]).gates.links == ("wifi", "ethernet")


def test_a_number_needs_no_leading_zero_on_the_command_line() -> None:
    assert load(Program, None, ["name=a", "gates.battery_min_pct=.5"]).gates.battery_min_pct == 0.5


def test_an_empty_override_gives_back_the_default(tmp_path: Path) -> None:
    assert load(Program, written(tmp_path, 'name = "a"\ncount = 3\n'), ["count="]).count == 1


def test_mistakes_on_the_command_line_say_so() -> None:
    lines = mistakes(None, "name=a", "count=many", "speed", "gates.x=1", "gates=3", "count.x=1")
    assert all(line.endswith("(on the command line)") for line in lines)
    assert lines[0].startswith('expected key=value or table.key=value, got "speed"')
    (line,) = mistakes(None, "name=a", "count=many")
    assert line == 'count: expected a whole number of at least 1, got "many" (on the command line)'


def test_an_override_cannot_smuggle_in_another_key() -> None:
    (line,) = mistakes(None, "name=a", "count=1\nloud=true")
    assert line.startswith("count: expected a whole number")


def test_a_mistake_is_one_line_whatever_the_file_holds(tmp_path: Path) -> None:
    lines = mistakes(written(tmp_path, '"a\\nb" = 1\nname = "c\\nd and far too long"\n'))
    assert len(lines) == 2


def test_mistakes_of_file_and_command_line_come_together(tmp_path: Path) -> None:
    lines = mistakes(written(tmp_path, "count = 0"), "gates.battery_min_pct=-1")
    assert [line.split(":")[0] for line in lines] == ["name", "count", "gates.battery_min_pct"]


def test_a_relative_path_starts_at_the_files_folder(tmp_path: Path) -> None:
    path = written(tmp_path, 'name = "a"\nfolder = "data"\n')
    assert load(Program, path).folder == tmp_path / "data"
    assert load(Program, path, ["folder=data"]).folder == Path("data")
    assert load(Program, written(tmp_path, 'name = "a"\nfolder = "/data"\n')).folder == Path("/data")


def test_a_json_file_is_read_alike_and_null_is_not_set(tmp_path: Path) -> None:
    path = written(tmp_path, '{"name": "a", "gates": {"battery_max_pct": null}, "folder": "x"}', "program.json")
    assert load(Program, path) == Program(name="a", folder=tmp_path / "x")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"name = ", "is not TOML"),
        (b"name = '\xff'", "is not TOML: not UTF-8 at byte 8"),
        (b"name = 'a'\nname = 'b'", "is not TOML"),
        (b"x = " + b"[" * 50_000, "is not TOML: nested too deeply"),
        (b"#" * (2 << 20), "at most 1,048,576 bytes"),
    ],
)
def test_a_file_that_is_no_settings_file_is_one_clear_line(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    (line,) = mistakes(path, "name=a")
    assert line.startswith(f"{path}: ")
    assert says in line


def test_an_absent_file_is_one_clear_line_and_the_overrides_are_still_checked(tmp_path: Path) -> None:
    lines = mistakes(tmp_path / "none.toml", "count=0")
    assert lines[0] == f"{tmp_path / 'none.toml'}: cannot be read: No such file or directory"
    assert lines[1].startswith("count: ")
    assert len(lines) == 2  # no complaint that the name is missing: nobody could read it


def refusal(overrides: list[str]) -> str:
    """What is said of the overrides, empty where they load."""
    try:
        load(Program, None, ["name=a", *overrides])
    except SettingsError as error:
        return str(error)
    return ""


@given(st.integers(max_value=0) | st.floats() | st.booleans() | st.text() | st.lists(st.integers()) | st.none())
def test_any_wrong_value_is_a_short_mistake_of_its_key(value: object) -> None:
    with pytest.raises(SettingsError) as caught:
        Program(name="a", count=value)  # type: ignore[arg-type]
    assert str(caught.value).startswith("count: expected a whole number of at least 1, got ")
    assert len(str(caught.value)) < 500


@given(st.text())
def test_any_command_line_loads_or_is_refused_as_such(text: str) -> None:
    said = refusal([text])
    assert said == "" or said.endswith("(on the command line)")
    assert said or "=" in text


def test_a_password_is_read_from_its_file_and_shown_nowhere(tmp_path: Path) -> None:
    written(tmp_path, "hunter2\nsecond line\n", "password").chmod(0o600)
    path = written(tmp_path, 'name = "a"\n[connection]\nusername = "u"\npassword_file = "password"\n')
    settings = load(Program, path)
    assert settings.connection.password() == "hunter2"
    assert "hunter2" not in repr(settings)
    assert ConnectionSettings().password() is None


@pytest.mark.parametrize("content", [None, b"", b"\n", b"\xff\xfehunter2", b"hunter2" * 1000])
def test_an_unusable_password_file_is_named_without_its_content(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "password"
    if content is not None:
        path.write_bytes(content)
        path.chmod(0o600)
    with pytest.raises(SettingsError) as caught:
        ConnectionSettings(username="u", password_file=path).password()
    assert str(caught.value).startswith(f"password_file: {path}: ")
    assert "hunter2" not in str(caught.value)


def test_secrets_in_the_wrong_place_are_not_repeated(tmp_path: Path) -> None:
    path = written(tmp_path, 'name = "mqtt://u:hunter2@host"\n[connection]\npassword = "hunter2"\n')
    lines = mistakes(path, "connection.password=hunter2")
    assert "hunter2" not in "\n".join(lines)
    assert "connection.password: no such setting; did you mean connection.password_file?" in "\n".join(lines)


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({"federation": "a/b"}, "federation"),
        ({"reconnect_min_seconds": 9.0, "reconnect_max_seconds": 3.0}, "reconnect_max_seconds"),
        ({"password_file": Path("x")}, "username"),
        ({"tls": True, "certificate_file": Path("x")}, "key_file"),
        ({"tls": True, "key_file": Path("x")}, "certificate_file"),
        ({"ca_file": Path("x")}, "ca_file"),
    ],
)
def test_a_connection_that_does_not_add_up_is_a_mistake(given: dict[str, object], key: str) -> None:
    with pytest.raises(SettingsError) as caught:
        ConnectionSettings(**given)  # type: ignore[arg-type]
    assert [mistake.key for mistake in caught.value.mistakes] == [key]


def test_the_document_loads_as_it_stands_to_the_defaults(tmp_path: Path) -> None:
    assert load(Program, written(tmp_path, document(Program))) == Program(name="gw-1")


def test_the_document_states_every_key_with_its_default() -> None:
    uncommented = "\n".join(
        line.removeprefix("#") if line.startswith("#") and not line.startswith("# ") else line
        for line in document(Program).splitlines()
    )
    values = tomllib.loads(uncommented)
    assert values["gates"] == {"battery_min_pct": 30.0, "battery_max_pct": 90, "links": ["wifi"]}
    assert values["count"] == 1
    assert set(values["connection"]) == set(ConnectionSettings.__dataclass_fields__)


def test_the_document_says_what_a_key_is_and_its_bounds() -> None:
    assert "# Least charge, in per cent. A number from 0 to 100.\n#battery_min_pct = 30.0\n" in document(Program)
    assert '# Its name. A text of 1 to 8 characters. Required.\nname = "gw-1"\n' in document(Program)


def test_a_list_of_tables_is_a_tuple_of_dataclasses(tmp_path: Path) -> None:
    text = '[[port]]\nname = "a"\nfile = "x"\n[[port.pin]]\nnumber = 1\n[[port]]\nname = "b"\nbaud = 300\n'
    assert load(Ports, written(tmp_path, text)).port == (
        Port(name="a", file=tmp_path / "x", pin=(Pin(number=1),)),
        Port(name="b", baud=300),
    )


def test_every_mistake_in_a_list_of_tables_is_told_with_its_place(tmp_path: Path) -> None:
    text = '[[port]]\nname = "ghost"\n[[port]]\nbaud = 1\n[[port.pin]]\nnumber = -1\n[[port]]\nname = "c"\nbaudd = 2\n'
    with pytest.raises(SettingsError) as caught:
        load(Ports, written(tmp_path, text))
    assert [mistake.key for mistake in caught.value.mistakes] == [
        *("port[1].name", "port[2].name", "port[2].baud", "port[2].pin[1].number", "port[3].baudd")
    ]
    assert "did you mean port[3].baud?" in str(caught.value) or "did you mean port.baud?" in str(caught.value)


@pytest.mark.parametrize("text", ["port = 3", '[port]\nname = "a"', "port = [1, 2]"])
def test_what_is_no_list_of_tables_is_a_mistake(tmp_path: Path, text: str) -> None:
    with pytest.raises(SettingsError, match=r"port: expected tables, each begun by \[\[port\]\]"):
        load(Ports, written(tmp_path, text))


def test_too_many_tables_and_tables_on_the_command_line_are_mistakes(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"expected 0 to 3 tables \[\[port\]\], got 4"):
        load(Ports, written(tmp_path, '[[port]]\nname = "a"\n' * 4))
    with pytest.raises(SettingsError, match="a list of tables, which only a file can state"):
        load(Ports, None, ["port=a"])
    with pytest.raises(SettingsError, match="expected a tuple of Port"):
        Ports(port=[Port(name="a")])  # type: ignore[arg-type]


def test_the_document_has_one_table_of_a_list_as_an_example(tmp_path: Path) -> None:
    assert load(Ports, written(tmp_path, document(Ports))) == Ports(port=(Port(name="motor"),))
    uncommented = "\n".join(
        line.removeprefix("#") if line.startswith("#") and not line.startswith("# ") else line
        for line in document(Ports).splitlines()
    )
    assert tomllib.loads(uncommented) == {
        "level": 1,
        "port": [{"name": "motor", "file": "a", "baud": 9600, "pin": [{"number": 4}]}],
    }


def test_a_setting_without_description_cannot_be_documented() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Silent(Table):
        key: int = 1

    with pytest.raises(TypeError, match="key has no description"):
        document(Silent)
