"""The state directory: one coordinator at a time, and a backup in its place."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fedmq_coordinator import folder
from fedmq_coordinator.folder import FolderError
from fedmq_coordinator.ledger import Ledger, LedgerError
from fedmq_coordinator.models import ModelError
from plant import FEDERATION, START, Plant

HOLD = """
import sys
from pathlib import Path
from fedmq_coordinator import folder
held = folder.hold(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state directory after three versions."""
    plant = Plant(tmp_path / "state", rounds=3)
    plant.run_to_rest()
    plant.kill_coordinator()
    return tmp_path / "state"


def contents(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != "lock" and not path.name.endswith("-shm")
    }


def test_a_second_coordinator_on_the_folder_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        assert folder.is_held(tmp_path)
        with pytest.raises(FolderError, match=f"another coordinator works in {tmp_path}"):
            folder.hold(tmp_path)
        with pytest.raises(FolderError, match="another coordinator works"):
            folder.recover(tmp_path, make_backup(tmp_path), FEDERATION, now=START)
        other.kill()
        other.wait()
    assert not folder.is_held(tmp_path)
    folder.hold(tmp_path).close()


def make_backup(tmp_path: Path) -> Path:
    plant = Plant(tmp_path / "of-backup", rounds=1)
    plant.run_to_rest()
    plant.kill_coordinator()
    return tmp_path / "of-backup"


def test_a_folder_that_nobody_holds_is_not_held(tmp_path: Path) -> None:
    assert not folder.is_held(tmp_path / "nowhere")
    folder.hold(tmp_path).close()
    assert not folder.is_held(tmp_path)


def test_what_was_there_is_moved_aside_whole(state: Path, tmp_path: Path) -> None:
    backup = shutil.copytree(state, tmp_path / "backup")
    with_more = Plant(state, rounds=5)
    with_more.run_to_rest()
    with_more.kill_coordinator()
    lost = {name: data for name, data in contents(state).items() if name.startswith(("ledger", "models"))}

    folder.recover(state, backup / "ledger.sqlite", FEDERATION, now=START + 1e6)

    (aside,) = state.glob("before-*")
    assert contents(aside) == lost
    assert not (state / folder.RECOVERING).exists()
    ledger = Ledger(state / "ledger.sqlite")
    lineage = int(ledger.only.get("lineage") or 0)
    newest = ledger.last_version(lineage)
    assert newest is not None
    assert newest.number == 1
    assert lineage == START + 1e6


def test_a_backup_into_an_empty_folder_needs_nothing_moved(state: Path, tmp_path: Path) -> None:
    done = folder.recover(tmp_path / "new", state, FEDERATION, now=START + 1e6)
    assert [sentence.split(":")[0] for sentence in done] == ["task 'story'", "start the coordinator"]
    assert not list((tmp_path / "new").glob("before-*"))


@pytest.mark.parametrize("broken", ["ledger", "model", "no model", "other federation", "nothing", "itself"])
def test_a_backup_that_cannot_be_used_is_refused_and_nothing_is_touched(
    state: Path, tmp_path: Path, broken: str
) -> None:
    backup = shutil.copytree(state, tmp_path / "backup")
    federation = FEDERATION
    newest = sorted((backup / "models").glob("*.i32"))[-1]
    if broken == "ledger":
        content = bytearray((backup / "ledger.sqlite").read_bytes())
        content[40 * 4096 :] = b"\xff" * (len(content) - 40 * 4096)
        (backup / "ledger.sqlite").write_bytes(content)
    elif broken == "model":
        newest.write_bytes(b"\x01" + newest.read_bytes()[1:])
    elif broken == "no model":
        newest.unlink()
    elif broken == "other federation":
        federation = "another"
    elif broken == "nothing":
        backup = tmp_path / "nowhere"
    else:
        backup = state
    before = contents(state)

    with pytest.raises((FolderError, LedgerError, ModelError)):
        folder.recover(state, backup, federation, now=START + 1e6)

    assert contents(state) == before
    folder.hold(state).close()


@pytest.mark.parametrize("cut_at", [1, 2, 3, 4])
def test_a_recovery_that_was_cut_short_is_noticed_and_can_be_done_again(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut_at: int
) -> None:
    backup = shutil.copytree(state, tmp_path / "backup")
    rename = Path.rename
    left = cut_at

    def cut(self: Path, target: Path) -> Path:
        nonlocal left
        left -= 1
        if left == 0:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", cut)
    with pytest.raises(KeyboardInterrupt):
        folder.recover(state, backup, FEDERATION, now=START + 1e6)
    monkeypatch.undo()
    with pytest.raises(FolderError, match="was cut short: run"):
        folder.hold(state)

    folder.recover(state, backup, FEDERATION, now=START + 2e6)

    folder.hold(state).close()
    ledger = Ledger(state / "ledger.sqlite")
    assert int(ledger.only.get("lineage") or 0) == START + 2e6
