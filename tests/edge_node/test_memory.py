"""What a gateway knows survives a power cut whole, or the file is refused by name with what to do."""

from __future__ import annotations

import random
import sqlite3
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fedmq_edge_node.memory import GatewayState, Memory, Pending, StateError
from fedmq_protocol.messages import Evaluation
from fedmq_protocol.task import ModelSpec, Task

MODEL = ModelSpec(kind="mlp", sizes=(4, 3, 2))
TASK = Task(name="bearings", model=MODEL, classes=("normal", "inner race"), initial=bytes(8))
PENDING = Pending(
    round_id=41,
    base_mark=40,
    counter=8,
    level=2,
    loss=4_321,
    payload=b"coded \x00 delta",
    evaluation=Evaluation(metric=9_871, loss=432, windows=120),
)


def full(seed: int = 0) -> GatewayState:
    rng = np.random.default_rng(seed)
    return GatewayState(
        lineage=2,
        task=TASK,
        scaler=rng.bytes(32),
        version=40,
        steps=rng.integers(-(1 << 31), 1 << 31, MODEL.parameters).astype(np.int32),
        residual=rng.normal(size=MODEL.parameters).astype(np.float32),
        pending=PENDING,
        counter=8,
        answered=41,
    )


def same(one: GatewayState, other: GatewayState) -> bool:
    return (
        (one.lineage, one.task, one.scaler, one.version, one.pending, one.counter, one.answered)
        == (other.lineage, other.task, other.scaler, other.version, other.pending, other.counter, other.answered)
        and one.steps.dtype == other.steps.dtype == np.int32
        and one.residual.dtype == other.residual.dtype == np.float32
        and one.steps.tobytes() == other.steps.tobytes()
        and one.residual.tobytes() == other.residual.tobytes()
    )


def loaded(path: Path) -> GatewayState:
    memory = Memory(path)
    try:
        return memory.load()
    finally:
        memory.close()


def saved(path: Path, *states: GatewayState) -> None:
    memory = Memory(path)
    memory.load()
    for state in states:
        memory.save(state)
    memory.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "gateway.db"


# --- there and back --------------------------------------------------------------------------------------------------


def test_a_new_gateway_knows_nothing(path: Path) -> None:
    assert same(loaded(path), GatewayState())
    assert same(loaded(path), GatewayState())


def test_everything_comes_back_after_a_restart(path: Path) -> None:
    state = full()
    saved(path, state)
    assert same(loaded(path), state)


@pytest.mark.parametrize(
    "changes",
    [
        {"pending": None},
        {"task": None},
        {"scaler": None},
        {"counter": 9},
        {"answered": 42},
        {"version": 41, "steps": np.zeros(MODEL.parameters, dtype=np.int32)},
        {"residual": np.zeros(MODEL.parameters, dtype=np.float32), "pending": None},
        {"lineage": 3, "version": 0},
        {"counter": 1 << 60},
    ],
    ids=lambda changes: "+".join(changes),
)
def test_each_part_changes_by_itself(path: Path, changes: dict[str, object]) -> None:
    changed = replace(full(), **changes)  # type: ignore[arg-type]
    saved(path, full(), changed)
    assert same(loaded(path), changed)
    # Also when another process saved the first one.
    saved(path, full())
    saved(path, changed)
    assert same(loaded(path), changed)


def test_the_first_state_may_be_of_few_parts(path: Path) -> None:
    for state in (GatewayState(counter=3), GatewayState(scaler=bytes(8)), GatewayState(task=TASK)):
        here = path.with_name(f"{state.counter}-{state.scaler is None}-{state.task is None}.db")
        saved(here, state)
        assert same(loaded(here), state)


def test_arrays_that_were_loaded_can_be_worked_on(path: Path) -> None:
    saved(path, full())
    state = loaded(path)
    residual, steps = state.residual, state.steps
    residual += 1
    steps += 1


def test_a_long_story_ends_as_it_was_told(path: Path) -> None:
    rng = random.Random(4)
    state = GatewayState()
    for step in range(60):
        memory = Memory(path)
        assert same(memory.load(), state)
        for _ in range(rng.randrange(4)):
            changes = {name: getattr(full(step), name) for name in rng.sample(list(full().__dataclass_fields__), 3)}
            changes |= {"counter": state.counter + 1}
            # Arrays go together, as a model has them.
            changes |= {"steps": full(step).steps, "residual": full(step).residual}
            state = replace(state, **changes)
            memory.save(state)
        memory.close()


# --- only what changed -----------------------------------------------------------------------------------------------


def test_only_what_changed_is_written(path: Path) -> None:
    memory = Memory(path)
    memory.load()
    state = full()
    memory.save(state)
    statements: list[str] = []
    memory._db.set_trace_callback(statements.append)

    def written(new: GatewayState) -> set[str]:
        statements.clear()
        memory.save(new)
        return {text.split("'")[1] for text in statements if text.startswith("INSERT")}

    assert written(state) == set()
    assert statements == []
    state = replace(state, answered=42)
    assert written(state) == {"numbers"}
    state = replace(state, pending=None)
    assert written(state) == {"pending"}
    state = replace(state, residual=state.residual + 1, counter=9, pending=PENDING)
    assert written(state) == {"residual", "numbers", "pending"}
    state = replace(state, steps=state.steps + 1, version=41)
    assert written(state) == {"steps", "numbers"}
    state = replace(state, scaler=bytes(32))
    assert written(state) == {"scaler"}
    assert statements[0].startswith("BEGIN")
    assert statements[-1] == "COMMIT"
    memory.close()
    assert same(loaded(path), state)


def test_a_state_that_was_loaded_and_not_changed_is_not_written(path: Path) -> None:
    saved(path, full())
    memory = Memory(path)
    state = memory.load()
    before = memory._db.total_changes
    memory.save(state)
    memory.save(replace(state))
    assert memory._db.total_changes == before
    memory.close()


# --- power cuts ------------------------------------------------------------------------------------------------------


def copy_as_after_a_power_cut(path: Path, to: Path) -> Path:
    """The file and its log as they lie on the disk this very moment, with nobody tidying up."""
    to.mkdir()
    for name in (path.name, path.name + "-wal"):
        if path.with_name(name).exists():
            (to / name).write_bytes(path.with_name(name).read_bytes())
    return to / path.name


def test_without_a_commit_the_old_state_stands(path: Path, tmp_path: Path) -> None:
    first, second = full(), replace(full(1), counter=9, pending=None)
    memory = Memory(path)
    memory.load()
    memory.save(first)
    # The same statements as a save, cut short before its end.
    memory._db.execute("BEGIN IMMEDIATE")
    memory._db.execute("UPDATE state SET value = ? WHERE key = 'steps'", (second.steps.tobytes(),))
    memory._db.execute("UPDATE state SET value = x'c0' WHERE key = 'pending'")
    cut = copy_as_after_a_power_cut(path, tmp_path / "cut")
    memory.close()
    assert same(loaded(path), first)
    assert same(loaded(cut), first)


def test_after_a_save_the_new_state_stands_though_nothing_was_closed(path: Path, tmp_path: Path) -> None:
    memory = Memory(path)
    memory.load()
    for number, state in enumerate([full(), full(1), replace(full(2), pending=None)]):
        memory.save(state)
        assert same(loaded(copy_as_after_a_power_cut(path, tmp_path / str(number))), state)
    memory.close()


def test_a_log_cut_anywhere_leaves_one_whole_state(path: Path, tmp_path: Path) -> None:
    states = [GatewayState(), full(), replace(full(1), counter=9, pending=None)]
    memory = Memory(path)
    for state in [memory.load(), *states[1:]]:
        memory.save(state)
    whole = copy_as_after_a_power_cut(path, tmp_path / "whole")
    memory.close()
    log = whole.with_name(whole.name + "-wal").read_bytes()
    seen = set()
    for number, end in enumerate(range(0, len(log) + 1, 997)):
        folder = tmp_path / f"cut-{number}"
        folder.mkdir()
        (folder / whole.name).write_bytes(whole.read_bytes())
        (folder / (whole.name + "-wal")).write_bytes(log[:end])
        found = loaded(folder / whole.name)
        (match,) = (i for i, state in enumerate(states) if same(found, state))
        seen.add(match)
    assert seen >= {0, 1}


def test_a_save_that_fails_changes_nothing_and_can_be_made_again(path: Path) -> None:
    memory = Memory(path)
    memory.load()
    memory.save(full())
    # A disk that is full: SQLite ends the transaction by itself.
    pages = memory._db.execute("PRAGMA page_count").fetchone()[0]
    memory._db.execute(f"PRAGMA max_page_count = {pages}")
    large = replace(
        full(1), pending=Pending(round_id=42, base_mark=41, counter=9, level=0, loss=0, payload=bytes(200_000))
    )
    with pytest.raises(StateError, match="is the disk full"):
        memory.save(large)
    assert not memory._db.in_transaction
    assert same(loaded(path), full())
    memory._db.execute("PRAGMA max_page_count = 100000")
    memory.save(large)
    memory.close()
    assert same(loaded(path), large)


# --- files that cannot be used ---------------------------------------------------------------------------------------


def refused(path: Path) -> str:
    with pytest.raises(StateError) as raised:
        loaded(path)
    message = str(raised.value)
    assert str(path) in message
    assert "move it away to start afresh" in message
    return message


def test_a_text_file_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text("battery_pct = 20\n" * 100)
    refused(path)
    assert path.read_text() == "battery_pct = 20\n" * 100


def test_a_folder_and_a_path_below_a_file_are_refused(tmp_path: Path) -> None:
    refused(tmp_path)
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file" / "gateway.db")


def test_another_program_s_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "recipes.db"
    other = sqlite3.connect(path)
    other.executescript("CREATE TABLE recipe (name TEXT); INSERT INTO recipe VALUES ('lasagne');")
    other.close()
    before = path.read_bytes()
    assert "another program" in refused(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("table", ["state (a TEXT, b TEXT, c TEXT)", "state (key TEXT, value TEXT)", "other (a TEXT)"])
def test_another_program_s_database_with_our_version_number_is_refused(tmp_path: Path, table: str) -> None:
    path = tmp_path / "other.db"
    other = sqlite3.connect(path)
    other.executescript(f"CREATE TABLE {table}; PRAGMA user_version = 1;")
    if "value" in table:
        other.execute("INSERT INTO state VALUES ('numbers', 'text')")
        other.commit()
    other.close()
    refused(path)


def test_a_file_of_a_newer_schema_is_refused(path: Path) -> None:
    saved(path, full())
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 4")
    database.close()
    assert "schema 4" in refused(path)


def harm(path: Path, statement: str, *values: bytes) -> None:
    database = sqlite3.connect(path)
    database.execute(statement, values)
    database.commit()
    database.close()


@pytest.mark.parametrize("key", ["numbers", "task", "scaler", "pending", "steps", "residual"])
def test_a_part_that_is_missing_is_noticed(path: Path, key: str) -> None:
    saved(path, full())
    harm(path, f"DELETE FROM state WHERE key = '{key}'")
    assert "damaged" in refused(path)


@pytest.mark.parametrize("key", ["numbers", "task", "scaler", "pending", "steps", "residual"])
def test_a_part_that_is_junk_is_noticed(path: Path, key: str) -> None:
    for junk in (b"\xc1", b"\x93\x01", b"\xff" * 7):
        saved(path, full())
        harm(path, f"UPDATE state SET value = ? WHERE key = '{key}'", junk)
        assert "damaged" in refused(path)
        path.unlink()


def test_one_flipped_bit_is_noticed(path: Path) -> None:
    saved(path, full())
    database = sqlite3.connect(path)
    good = dict(database.execute("SELECT key, value FROM state"))
    database.close()
    rng = random.Random(5)
    for key, value in good.items():
        bad = bytearray(value)
        bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        harm(path, f"UPDATE state SET value = ? WHERE key = '{key}'", bytes(bad))
        assert "damaged" in refused(path)
        harm(path, f"UPDATE state SET value = ? WHERE key = '{key}'", value)
        assert same(loaded(path), full())


def test_two_values_that_changed_places_are_noticed(path: Path) -> None:
    saved(path, full())
    harm(path, "UPDATE state SET value = (SELECT value FROM state WHERE key = 'steps') WHERE key = 'residual'")
    assert "damaged" in refused(path)


def test_a_file_with_scrambled_pages_is_refused_or_read_whole(path: Path) -> None:
    state = full()
    saved(path, state)
    good = path.read_bytes()
    rng = random.Random(6)
    refusals = 0
    for _ in range(80):
        bad = bytearray(good)
        start = rng.choice([place for place in range(len(good)) if good[place]])
        bad[start : start + 64] = rng.randbytes(len(bad[start : start + 64]))
        path.write_bytes(bad)
        try:
            found = loaded(path)
        except StateError:
            refusals += 1
        else:
            assert same(found, state)
    assert refusals > 20


@pytest.mark.parametrize("size", [50, 100, 1_000, 4_096, 5_000, 8_192])
def test_a_truncated_file_is_refused(path: Path, size: int) -> None:
    saved(path, full())
    data = path.read_bytes()
    assert len(data) > size
    path.write_bytes(data[:size])
    refused(path)


# --- small values beside the state -----------------------------------------------------------------------------------


def test_small_values_stand_beside_the_state_and_do_not_touch_it(path: Path) -> None:
    memory = Memory(path)
    assert memory.get("budget") is None
    memory.put("budget", b"1")
    memory.put("numbers", b"not the state's")
    assert same(memory.load(), GatewayState())
    memory.save(full())
    memory.put("budget", b"2\x00")
    memory.close()
    memory = Memory(path)
    assert same(memory.load(), full())
    assert (memory.get("budget"), memory.get("numbers"), memory.get("none")) == (b"2\x00", b"not the state's", None)
    memory.put("budget", b"")
    assert memory.get("budget") == b""
    memory.close()


def test_a_small_value_is_kept_at_once(path: Path, tmp_path: Path) -> None:
    memory = Memory(path)
    memory.put("budget", b"42")
    cut = Memory(copy_as_after_a_power_cut(path, tmp_path / "cut"))
    assert cut.get("budget") == b"42"
    cut.close()
    memory.close()
