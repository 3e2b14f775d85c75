"""A ledger of an older schema is brought up to date whole, or not at all."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import msgspec
import pytest
from fedmq_coordinator.ledger import Ledger, LedgerError
from fedmq_coordinator.report import Report, build
from fedmq_coordinator.vitals import vitals_of_fleet
from fedmq_edge_node.gates import Vitals
from fedmq_protocol.vitals import ToldVitals
from machine_rows import a_machine, a_spread
from plant import Plant

SCHEMA_3 = (Path(__file__).parents[1] / "support" / "ledger_schema_3.sql").read_text(encoding="utf-8")
TABLES = ("gateways", "verdicts", "wire", "rounds", "answers", "versions", "catch_ups", "refused")


def turn_back(path: Path) -> None:
    """The same ledger, as software of schema 3 would have written it."""
    newer = path.with_suffix(".newer")
    path.rename(newer)
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript(SCHEMA_3)
        db.execute("ATTACH ? AS newer", (str(newer),))
        for table in TABLES:
            columns = ", ".join(name for _, name, *_ in db.execute(f"PRAGMA table_info({table})"))
            db.execute(f"INSERT INTO main.{table} ({columns}) SELECT {columns} FROM newer.{table}")
        db.execute("INSERT INTO main.state SELECT key, value FROM newer.state WHERE key NOT IN ('tags', 'emptied')")
        db.execute("PRAGMA user_version = 3")
        db.commit()
    newer.unlink()


def stopped_at(directory: Path, version: int) -> Plant:
    plant = Plant(directory, rounds=5)
    plant.run_until(lambda: plant.version == version)
    plant.run_until(lambda: plant.job.run.round is not None)
    plant.kill_coordinator()
    return plant


def turn_back_to_8(db: sqlite3.Connection) -> None:
    """Without what schema 9 has brought."""
    for table in ("spreads", "fleet_spreads"):
        db.execute(f"DROP TABLE {table}")
    db.execute("PRAGMA user_version = 8")


def turn_back_to_7(db: sqlite3.Connection) -> None:
    """Without what schema 8 has brought, and later ones."""
    turn_back_to_8(db)
    for table, column in (
        ("answers", "beyond"),
        ("answers", "cpu"),
        ("wire", "beyond"),
        ("marks", "beyond"),
        ("marks", "joined_beyond"),
    ):
        db.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
    db.execute("DROP TABLE gathered")
    db.execute("PRAGMA user_version = 7")


def turn_back_to_6(db: sqlite3.Connection) -> None:
    """Without what schema 7 has brought, and later ones."""
    turn_back_to_7(db)
    for table in ("watches", "machines", "alerts", "summaries", "merged", "fleet_drift"):
        db.execute(f"DROP TABLE {table}")
    db.execute("PRAGMA user_version = 6")


def turn_back_to_5(db: sqlite3.Connection) -> None:
    """Without what schema 6 has brought, and later ones."""
    turn_back_to_6(db)
    db.execute("DROP INDEX updates_of_gateway")
    for column in ("norm", "cosine", "conflicts"):
        db.execute(f"ALTER TABLE answers DROP COLUMN {column}")
    for table in ("conduct", "flags"):
        db.execute(f"DROP TABLE {table}")
    db.execute("PRAGMA user_version = 5")


def without_cosines(report: Report) -> Report:
    """But for what older schemas had no place for."""
    lines = [msgspec.structs.replace(line, cosine=None) for line in report.gateways]
    return msgspec.structs.replace(report, gateways=lines)


def rows(path: Path, sql: str) -> list[tuple[object, ...]]:
    with contextlib.closing(sqlite3.connect(path)) as db:
        return list(db.execute(sql))


def test_a_run_that_began_under_schema_3_goes_on_to_the_same_model(tmp_path: Path) -> None:
    undisturbed = Plant(tmp_path / "undisturbed", rounds=5)
    undisturbed.run_to_rest()
    plant = stopped_at(tmp_path / "plant", 2)
    lineage = plant.job.line.number
    turn_back(plant.directory / "ledger.sqlite")

    plant.start_coordinator()

    assert (plant.version, plant.lineage) == (2, lineage)
    plant.run_to_rest()
    assert plant.digest == undisturbed.digest
    assert len(plant.ledger.rounds()) == 6


def test_nothing_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    stopped_at(tmp_path, 2)
    ledger = Ledger(path)
    before = build(ledger)
    ledger.close()
    counts = {table: rows(path, f"SELECT count(*) FROM {table}") for table in TABLES}
    turn_back(path)

    ledger = Ledger(path)

    assert without_cosines(build(ledger)) == without_cosines(before)
    assert ledger.only.name == "story"
    assert {gateway.samples for gateway in ledger.gateways()} == {120 * 1024}
    ledger.close()
    assert {table: rows(path, f"SELECT count(*) FROM {table}") for table in TABLES} == counts


def test_an_old_ledger_and_a_new_one_have_the_same_tables(tmp_path: Path) -> None:
    stopped_at(tmp_path / "old", 1)
    old, new = tmp_path / "old" / "ledger.sqlite", tmp_path / "new.sqlite"
    turn_back(old)
    for path in (old, new):
        Ledger(path).close()

    def shape(path: Path) -> dict[str, set[tuple[object, ...]]]:
        names = [str(name) for (name,) in rows(path, "SELECT name FROM sqlite_master WHERE type = 'table'")]
        # Name, type, whether it may be empty, and its place in the key; columns that came later stand at the end.
        return {n: {(c[1], c[2], c[3], c[5]) for c in rows(path, f"PRAGMA table_info({n})")} for n in names}

    assert shape(old) == shape(new)
    indices = "SELECT name FROM sqlite_master WHERE type = 'index' ORDER BY 1"
    assert rows(old, indices) == rows(new, indices)


def test_when_a_run_woke_up_is_still_known(tmp_path: Path) -> None:
    stopped_at(tmp_path, 3)
    path = tmp_path / "ledger.sqlite"
    turn_back(path)
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("INSERT INTO state VALUES ('began', x'32')")  # two training rounds before that
        db.commit()
    ledger = Ledger(path)
    assert ledger.only.get("began") == b"3"  # the first round learnt the scaling
    ledger.close()


def test_a_ledger_of_schema_4_keeps_what_gateways_told_of_releases(tmp_path: Path) -> None:
    stopped_at(tmp_path, 2)
    path = tmp_path / "ledger.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute(
            "INSERT INTO trials (task, gateway, at, lineage, version, in_service, windows, metric)"
            " VALUES (1, 'g0', 7.0, 5, 2, 2, 30, 0.9)"
        )
        for column in ("personal", "personal_windows", "personal_metric", "shared_metric"):
            db.execute(f"ALTER TABLE trials DROP COLUMN {column}")
        turn_back_to_5(db)
        db.execute("PRAGMA user_version = 4")
        db.commit()
    ledger = Ledger(path)
    (trial,) = ledger.book("story").trials()
    assert (trial.gateway, trial.in_service, trial.metric, trial.personal) == ("g0", 2, 0.9, None)
    ledger.close()


def test_a_run_of_schema_5_goes_on_and_its_updates_are_compared_from_then_on(tmp_path: Path) -> None:
    undisturbed = Plant(tmp_path / "undisturbed", rounds=5)
    undisturbed.run_to_rest()
    plant = stopped_at(tmp_path / "plant", 2)
    with contextlib.closing(sqlite3.connect(plant.directory / "ledger.sqlite")) as db:
        turn_back_to_5(db)
        db.commit()

    plant.start_coordinator()
    plant.run_to_rest()

    assert plant.digest == undisturbed.digest
    cosines = {row.version: [a.cosine for a in plant.ledger.answers(row.id)] for row in plant.ledger.rounds()}
    assert all(cosine is None for version in (1, 2) for cosine in cosines[version])
    assert all(cosine is not None for version in (3, 4, 5) for cosine in cosines[version])


def test_a_run_of_schema_7_goes_on_and_its_signal_came_with_its_gateways(tmp_path: Path) -> None:
    plant = stopped_at(tmp_path / "plant", 2)
    path = plant.directory / "ledger.sqlite"
    before = rows(path, "SELECT gateway, at, bytes FROM gathered ORDER BY gateway, day")
    with contextlib.closing(sqlite3.connect(path)) as db:
        turn_back_to_7(db)
        db.commit()

    plant.start_coordinator()
    plant.run_to_rest()

    held = {gateway.name: gateway.signal_bytes for gateway in plant.ledger.gateways()}
    assert {name: size for name, _, size in plant.ledger.gathered()} == held
    assert plant.ledger.gathered() == before
    assert {answer.cpu for answer in plant.ledger.answers()} == {None}


def test_a_ledger_of_schema_8_takes_how_machines_hold_to_what_is_normal(tmp_path: Path) -> None:
    plant = stopped_at(tmp_path, 1)
    path = tmp_path / "ledger.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as db:
        turn_back_to_8(db)
        db.commit()
    with contextlib.closing(Ledger(path)) as ledger:
        ledger.save_machine(a_machine("g0"))
        ledger.commit()
    plant.start_coordinator()
    assert (plant.ledger.spreads(), plant.ledger.fleet_spreads()) == ([], [])
    plant.ledger.save_spread(a_spread("g0"))
    assert plant.ledger.spreads("g0") == [a_spread("g0")]
    assert [one.name for one in plant.ledger.machines()] == ["pump-1"]


def test_a_ledger_from_before_gateways_told_of_battery_and_link_takes_it_up(tmp_path: Path) -> None:
    """No table had to change for it: there is nothing on record, and then there is."""
    plant = stopped_at(tmp_path / "plant", 1)
    path = plant.directory / "ledger.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("DELETE FROM state WHERE key LIKE 'vitals of %'")
        turn_back_to_7(db)
        db.commit()
    plant.vitals["g0"] = Vitals(battery_pct=64.0, link_kind="wifi")

    plant.start_coordinator()
    assert vitals_of_fleet(plant.ledger) == {}
    plant.run_to_rest()

    told = {name: last.told for name, last in vitals_of_fleet(plant.ledger).items()}
    assert told.pop("g0") == ToldVitals(battery_pct=64, link="wifi")
    assert told == dict.fromkeys(["g1", "g2", "g3"], ToldVitals())


def test_a_ledger_of_schema_6_takes_what_gateways_tell_of_machines(tmp_path: Path) -> None:
    stopped_at(tmp_path, 1)
    path = tmp_path / "ledger.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as db:
        turn_back_to_6(db)
        db.commit()
    ledger = Ledger(path)
    assert (ledger.machines(), ledger.alerts(), ledger.summaries(), ledger.watches()) == ([], [], [], [])
    assert ledger.book("story").proposal() is None
    ledger.close()


def test_a_migration_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    stopped_at(tmp_path, 1)
    path = tmp_path / "ledger.sqlite"
    turn_back(path)
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE state SET value = x'c1' WHERE key = 'task_body'")
        db.commit()
    before = rows(path, "SELECT sql FROM sqlite_master"), rows(path, "SELECT * FROM state")

    with pytest.raises(LedgerError, match=r"cannot bring .*ledger\.sqlite from schema 3 to 9: its task cannot be read"):
        Ledger(path)

    assert (rows(path, "SELECT sql FROM sqlite_master"), rows(path, "SELECT * FROM state")) == before
    assert rows(path, "PRAGMA user_version") == [(3,)]


@pytest.mark.parametrize("how", ["read_only", "visit"])
def test_who_does_not_own_the_file_leaves_it_to_its_coordinator(tmp_path: Path, how: str) -> None:
    stopped_at(tmp_path, 1)
    path = tmp_path / "ledger.sqlite"
    turn_back(path)

    with pytest.raises(LedgerError, match="start its coordinator with this software once"):
        Ledger(path, **{how: True})  # type: ignore[arg-type]

    assert rows(path, "PRAGMA user_version") == [(3,)]


@pytest.mark.parametrize(("version", "age"), [(10, "newer"), (2, "older")])
def test_a_schema_that_nobody_here_can_read_is_refused(tmp_path: Path, version: int, age: str) -> None:
    path = tmp_path / "ledger.sqlite"
    Ledger(path).close()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version = {version}")

    with pytest.raises(LedgerError, match=f"schema {version}, which is {age} than this software can read"):
        Ledger(path)
