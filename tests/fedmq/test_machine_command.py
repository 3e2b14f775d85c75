from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from fedmq_edge_node.machines import Machine, load_machines
from fedmq_edge_node.operating import OperatingSettings
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmq.cli import main
from fedmq.watch.machines_command import add_machine


def machine(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = main(["machine", *words])
    out, err = capsys.readouterr()
    return status, out, err


def test_a_machine_is_added_and_shown_with_what_follows_from_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(tmp_path / "machines.toml")
    status, out, _ = machine(
        capsys, "add", "pump-3", "--machines", file, "--bearing", "6205", "--speed-rpm", "1797", "--iso-group", "2"
    )
    assert status == 0
    assert f"added pump-3 to {file}" in out
    assert load_machines(Path(file)) == {"pump-3": Machine(name="pump-3", bearing="6205", speed_rpm=1797, iso_group=2)}
    status, out, _ = machine(capsys, "show", "pump-3", "--machines", file)
    assert status == 0
    assert "A up to 1.4, B up to 2.8, C up to 4.5, D above mm/s RMS" in out
    assert "outer race  3.5848 x shaft =   107.36 Hz" in out
    status, out, _ = machine(capsys, "show", "pump-3", "--machines", file, "--json")
    assert json.loads(out)["defects_hz"]["inner race"] == pytest.approx(162.19, abs=0.01)
    status, out, _ = machine(capsys, "list", "--machines", file)
    assert " ".join(out.splitlines()[1].split()) == "pump-3 motor - 1797 rpm 6205 1.4 / 2.8 / 4.5 all"


def test_what_is_in_the_file_stays_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "machines.toml"
    before = '# Hall 2.\n[[machine]]\nname = "a"  # the old one\n\n[machine.operating]\ndwell_seconds = 3\n# end'
    file.write_text(before)
    file.chmod(0o640)
    assert machine(capsys, "add", "b", "--machines", str(file), "--set", "operating.dwell_seconds=5")[0] == 0
    assert file.read_text().startswith(before + "\n")
    assert file.stat().st_mode & 0o777 == 0o640
    machines = load_machines(file)
    assert list(machines) == ["a", "b"]
    assert [one.operating.dwell_seconds for one in machines.values()] == [3, 5]


def test_mistakes_are_told_together_and_change_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "machines.toml"
    status, _, err = machine(
        capsys, "add", "a/b", "--machines", str(file), "--speed-rpm", "-3", "--set", "operating.dwell=5"
    )
    assert status == 1
    assert "name: expected 1 to 63 letters" in err
    assert "speed_rpm: expected a number above 0" in err
    assert "operating.dwell: no such setting; did you mean operating.dwell_seconds?" in err
    assert not file.exists()
    assert machine(capsys, "add", "a", "--machines", str(file))[0] == 0
    before = file.read_bytes()
    status, _, err = machine(capsys, "add", "a", "--machines", str(file))
    assert (status, file.read_bytes()) == (1, before)
    assert f'name: there is a machine "a" in {file} already' in err


def test_a_file_that_does_not_load_or_cannot_be_appended_to_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "machines.toml"
    for before, said in (("machine = []\n", "a machine cannot be appended"), ("[[machine]\n", "is not TOML")):
        file.write_text(before)
        status, _, err = machine(capsys, "add", "a", "--machines", str(file))
        assert (status, file.read_text()) == (1, before)
        assert said in err
    assert [path.name for path in tmp_path.iterdir()] == ["machines.toml"]


def test_a_machine_that_is_not_there_is_told_with_those_that_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(tmp_path / "machines.toml")
    status, _, err = machine(capsys, "list", "--machines", file)
    assert (status, "fedmq machine add" in err) == (1, True)
    machine(capsys, "add", "a", "--machines", file)
    status, _, err = machine(capsys, "show", "b", "--machines", file)
    assert (status, err.strip()) == (1, f'fedmq machine: there is no machine "b" in {file}; there is a')


def test_the_example_and_the_bearings_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    example = Path(__file__).parents[2] / "edge_node" / "machines.example.toml"
    assert machine(capsys, "add", "--example")[1] == example.read_text()
    assert any(
        line.split()[:4] == ["6205", "9", "7.940", "39.04"] for line in machine(capsys, "bearings")[1].split("\n")
    )


def test_of_two_that_add_at_once_neither_loses_the_others(tmp_path: Path) -> None:
    file = tmp_path / "machines.toml"
    names = [f"m{number}" for number in range(16)]
    threads = [threading.Thread(target=add_machine, args=(file, {"name": name}, [])) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(load_machines(file)) == set(names)


_TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)


@settings(deadline=None)  # it writes to the disk, which others use too
@given(
    st.builds(
        Machine,
        name=st.from_regex(r"[a-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
        kind=_TEXT,
        site=st.none() | _TEXT,
        tags=st.lists(_TEXT, max_size=3).map(tuple),
        speed_rpm=st.none() | st.floats(1e-6, 200_000),
        limits_mm_s=st.just(()) | st.just((0.1, 1 / 3, 7e5)),
        foundation=st.sampled_from(["rigid", "flexible"]),
        operating=st.builds(OperatingSettings, dwell_seconds=st.floats(0, 86_400), load_bands=st.just((0.5, 2.0))),
    )
)
def test_whatever_a_machine_is_it_loads_as_it_was_added(
    tmp_path_factory: pytest.TempPathFactory, added: Machine
) -> None:
    import dataclasses

    file = tmp_path_factory.mktemp("machines") / "machines.toml"
    given = {key: value for key, value in dataclasses.asdict(added).items() if value is not None}
    given = {key: list(value) if isinstance(value, tuple) else value for key, value in given.items()}
    operating = given.pop("operating")
    given["operating"] = {
        key: list(value) if isinstance(value, tuple) else value for key, value in operating.items() if value is not None
    }
    add_machine(file, {"name": "first"}, [])
    add_machine(file, given, [])
    assert load_machines(file)[added.name] == added
