"""Why nothing is said of a machine: what a newcomer asks first."""

from __future__ import annotations

from pathlib import Path

import pytest
from fedmq_protocol.settings import load
from watched import PUMP, Plant, finish

from fedmq.cli import main
from fedmq.watch.program import build_watch
from fedmq.watch.settings import WatchSettings

SETTINGS = 'store = "bridge.sqlite"\nmachines = "machines.toml"\nstate_dir = "watch"\nwindow_seconds = 1\n'


def plant_with(directory: Path, *machines: str) -> Plant:
    """A store that has the pump's sensor, and a machines' file with these names."""
    plant = Plant(directory)
    plant.hear(12)
    plant.recorder.close()
    (directory / "machines.toml").write_text("".join(f'[[machine]]\nname = "{name}"\n' for name in machines))
    (directory / "watch.toml").write_text(SETTINGS)
    return plant


def status(directory: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["watch", "status", "--config", str(directory / "watch.toml"), *words]) in (0, None)
    return capsys.readouterr().out


def test_a_name_that_is_spelt_otherwise_is_told_with_those_that_there_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plant = plant_with(tmp_path, "pump-03")
    plant.book().close()
    said = status(tmp_path, capsys)
    assert (
        f"pump-03: not judged yet: the bridge's store has no sensor on a machine of that name; the store has {PUMP}"
        in said
    )
    assert f"{PUMP}: not judged yet: the bridge's store has it, the machines' file has not" in said


def test_a_watch_says_at_its_start_which_machines_file_or_store_does_not_know(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plant_with(tmp_path, "pump-03")
    settings = load(WatchSettings, tmp_path / "watch.toml", [])
    build_watch(settings)
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["pump-03", PUMP]
    assert "the machines' file has not" in caplog.text


def test_a_watch_whose_machines_are_all_known_says_nothing_of_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plant_with(tmp_path, PUMP)
    build_watch(load(WatchSettings, tmp_path / "watch.toml", []))
    assert caplog.records == []


def test_a_sensor_that_is_no_acceleration_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plant = plant_with(tmp_path, PUMP)
    (tmp_path / "machines.toml").write_text(f'[[machine]]\nname = "{PUMP}"\nsensors = ["another"]\n')
    plant.book().close()
    assert f"at 200 Hz or more among another, got {PUMP}-x" in status(tmp_path, capsys)


def test_a_recording_shorter_than_a_window_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plant = plant_with(tmp_path, PUMP)
    (tmp_path / "watch.toml").write_text(SETTINGS.replace("window_seconds = 1", "window_seconds = 5"))
    plant.book().close()
    assert "its longest recording has 1.0 s, and a window takes 5 s" in status(tmp_path, capsys)


def test_a_machine_that_waits_for_the_watch_is_told_and_then_is_no_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plant = plant_with(tmp_path, PUMP)
    plant.book().close()
    assert "`fedmq watch run` has not come to it" in status(tmp_path, capsys, "--machine", PUMP)
    finish(plant.watch())
    said = status(tmp_path, capsys)
    assert "not judged yet" not in said
    assert f"{PUMP}: running" in said


def test_a_store_that_is_not_there_is_the_reason_of_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plant = plant_with(tmp_path, PUMP)
    plant.book().close()
    (tmp_path / "bridge.sqlite").unlink()
    assert f"{PUMP}: not judged yet: {tmp_path / 'bridge.sqlite'}" in status(tmp_path, capsys)


def test_the_folder_of_the_watch_is_as_good_as_its_book(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plant = plant_with(tmp_path, PUMP)
    plant.book().close()
    assert main(["alert", "list", "--book", str(tmp_path / "watch")]) in (0, None)
    assert "no alerts wait" in capsys.readouterr().out


def test_alerts_of_a_machine_that_there_is_not_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plant = plant_with(tmp_path, PUMP)
    finish(plant.watch())
    assert main(["alert", "list", "--book", str(tmp_path / "watch"), "--machine", "pmp-3"]) == 1
    assert f"no machine 'pmp-3' has been judged; there are {PUMP}" in capsys.readouterr().err
