"""A disk that is full, or cannot be written, or has forgotten something: told clearly, and nothing half done counts."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from fedmq_coordinator.job import TaskPlan
from fedmq_coordinator.ledger import Ledger, LedgerError
from fedmq_coordinator.models import ModelError, ModelStore
from fedmq_coordinator.service import Coordinator
from fedmq_coordinator.settings import RoundSettings
from plant import FEDERATION, Plant, make_task

SETTINGS = RoundSettings(max_rounds=5, min_gateways=4)


class Disk:
    """Connections to a file that cannot grow beyond so many pages of 4 KiB."""

    def __init__(self) -> None:
        self.connection: sqlite3.Connection | None = None

    def connect(self, path: str) -> sqlite3.Connection:
        self.connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        return self.connection

    def fill(self) -> None:
        assert self.connection is not None
        self.connection.execute("VACUUM")  # no room inside either
        pages = self.connection.execute("PRAGMA page_count").fetchone()[0]
        self.connection.execute(f"PRAGMA max_page_count = {pages}")


def test_on_a_full_disk_it_ends_and_what_was_not_committed_was_not_said(tmp_path: Path) -> None:
    large = make_task(dense=True)  # one update does not fit into what is left of a page
    undisturbed = Plant(tmp_path / "undisturbed", settings=SETTINGS, task=large)
    undisturbed.run_to_rest()
    plant = Plant(tmp_path / "full", settings=SETTINGS, task=large)
    plant.run_until(lambda: plant.version == 2)
    plant.kill_coordinator()
    disk = Disk()
    plant.ledger = Ledger(plant.directory / "ledger.sqlite", connect=disk.connect)
    plant.coordinator_session = plant.broker.session("coordinator")
    plant.coordinator = Coordinator(
        federation=FEDERATION,
        tasks=[TaskPlan(task=plant.task, rounds=SETTINGS)],
        limits=plant.limits,
        session=plant.coordinator_session,
        ledger=plant.ledger,
        models=ModelStore(plant.directory / "models"),
        clock=lambda: plant.now,
    )
    plant.coordinator_session.start()
    disk.fill()

    with pytest.raises(LedgerError, match=r"cannot use the ledger .*ledger\.sqlite: .*; the disk is full: make room"):
        plant.run_until(lambda: False)

    plant.kill_coordinator()
    plant.start_coordinator()
    plant.run_to_rest()
    assert plant.digest == undisturbed.digest
    assert {a.verdict for a in plant.ledger.answers()} == {"accepted"}


def test_a_write_that_fails_takes_everything_back(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    disk = Disk()
    ledger = Ledger(path, connect=disk.connect)
    ledger.put("kept", b"1")
    ledger.commit()
    disk.fill()

    for number in range(3):
        ledger.put(f"small {number}", b"")
    with pytest.raises(LedgerError, match="the disk is full"):
        ledger.put("large", bytes(100_000))
    ledger.rollback()

    assert not ledger.changed
    assert ledger.get("kept") == b"1"
    assert ledger.get("small 0") is None


def test_a_file_that_cannot_be_written_is_named_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    Ledger(path).close()

    with pytest.raises(LedgerError, match=r"ledger\.sqlite: .*; it cannot be written: mount its disk for writing"):
        Ledger(path, connect=lambda name: sqlite3.connect(f"file:{name}?mode=ro", uri=True, isolation_level=None)).put(
            "key", b"value"
        )


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(LedgerError, match=r"cannot use the ledger .*/file/state/ledger\.sqlite"):
        Ledger(tmp_path / "file" / "state" / "ledger.sqlite")
    with pytest.raises(ModelError, match=r"cannot write .*/file/models: .*; see to room and rights on its disk"):
        ModelStore(tmp_path / "file" / "models")


@pytest.mark.parametrize("place", [0, 100, -1])
def test_a_model_file_with_a_flipped_bit_stops_the_start_and_is_named(tmp_path: Path, place: int) -> None:
    plant = Plant(tmp_path, settings=SETTINGS)
    plant.run_until(lambda: plant.version == 3)
    plant.kill_coordinator()
    file = tmp_path / "models" / f"model-{plant.job.line.number}-3.i32"
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)

    with pytest.raises(ModelError, match=f"{file.name} is not version 3 as the ledger has it: restore it"):
        plant.start_coordinator()
