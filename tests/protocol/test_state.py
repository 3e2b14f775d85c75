"""Where programs keep their state: no links, no open folders, and modes that shut others out."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fedmq_coordinator import folder
from fedmq_coordinator.folder import FolderError
from fedmq_coordinator.ledger import Ledger, LedgerError
from fedmq_coordinator.models import ModelError, ModelStore
from fedmq_edge_node.memory import Memory, StateError
from fedmq_firmware_bridge.store import Recorder, StoreError

from fedmq.bridge.program import check_store


def open_ledger(place: Path) -> None:
    Ledger(place / "ledger.sqlite").close()


def open_memory(place: Path) -> None:
    memory = Memory(place / "gateway.sqlite")
    memory.load()
    memory.close()


def save_model(place: Path) -> None:
    ModelStore(place).save(1, 2, np.zeros(3, np.int32))


def hold(place: Path) -> None:
    folder.hold(place).close()


def record(place: Path) -> None:
    check_store(place / "bridge.sqlite")
    Recorder(place / "bridge.sqlite", max_bytes=1 << 20, opened_at=0.0).close()


EVERY = [
    (open_ledger, "ledger.sqlite", LedgerError),
    (open_ledger, "ledger.sqlite-wal", LedgerError),
    (open_ledger, "ledger.sqlite-shm", LedgerError),
    (open_ledger, "ledger.sqlite-journal", LedgerError),
    (open_memory, "gateway.sqlite", StateError),
    (open_memory, "gateway.sqlite-wal", StateError),
    (save_model, "model-1-2.i32", ModelError),
    (save_model, "model-1-2.partial", ModelError),
    (hold, "lock", FolderError),
    (record, "bridge.sqlite", StoreError),
    (record, "bridge.sqlite-wal", StoreError),
    (record, "bridge.sqlite.lock", StoreError),
]


@pytest.mark.parametrize(("work", "name", "error"), EVERY, ids=lambda part: part if isinstance(part, str) else "")
def test_a_link_in_the_place_of_a_file_is_refused_and_what_it_leads_to_is_untouched(
    tmp_path: Path, work: Callable[[Path], None], name: str, error: type[ValueError]
) -> None:
    place = tmp_path / "state"
    place.mkdir()
    precious = tmp_path / "precious"
    precious.write_bytes(b"do not write over me")
    (place / name).symlink_to(precious)
    with pytest.raises(error, match=f"{name} is a link to {precious}"):
        work(place)
    assert precious.read_bytes() == b"do not write over me"
    (place / name).unlink()
    work(place)


@pytest.mark.parametrize(("work", "name", "error"), EVERY, ids=lambda part: part if isinstance(part, str) else "")
def test_a_dangling_link_makes_no_file_elsewhere(
    tmp_path: Path, work: Callable[[Path], None], name: str, error: type[ValueError]
) -> None:
    place = tmp_path / "state"
    place.mkdir()
    (place / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(error):
        work(place)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    ("work", "error"),
    [
        (open_ledger, LedgerError),
        (open_memory, StateError),
        (save_model, ModelError),
        (hold, FolderError),
        (record, StoreError),
    ],
)
@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o702])
def test_a_folder_that_everybody_may_write_is_refused(
    tmp_path: Path, work: Callable[[Path], None], error: type[ValueError], mode: int
) -> None:
    place = tmp_path / "state"
    place.mkdir()
    place.chmod(mode)
    with pytest.raises(error, match=f"mode {mode:04o}.*chmod o-w {place}"):
        work(place)
    assert not list(place.iterdir())


@pytest.mark.parametrize("work", [open_ledger, open_memory, save_model, hold, record])
def test_what_is_made_is_for_its_user_alone(tmp_path: Path, work: Callable[[Path], None]) -> None:
    place = tmp_path / "state"
    work(place)
    made = [place, *place.iterdir()]
    assert len(made) > 1
    for path in made:
        assert stat.S_IMODE(path.stat().st_mode) & 0o027 == 0, path


def test_journals_have_the_mode_of_their_database(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "state" / "ledger.sqlite")
    ledger.put("federation", b"plant")
    ledger.commit()
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "state").iterdir()} == {
        "ledger.sqlite": 0o600,
        "ledger.sqlite-wal": 0o600,
        "ledger.sqlite-shm": 0o600,
    }
    ledger.close()


def test_a_folder_behind_a_link_is_as_good_as_any(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "state").symlink_to(tmp_path / "real")
    open_ledger(tmp_path / "state")
    assert (tmp_path / "real" / "ledger.sqlite").is_file()
