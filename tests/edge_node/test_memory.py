"""What a gateway knows survives a power cut whole, or the file is refused by name with what to do."""

from __future__ import annotations

import random
import re
import sqlite3
import threading
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from fedmq_edge_node.memory import GatewayState, InService, Memory, Pending, Personal, StateError, Tried
from fedmq_protocol.messages import Evaluation, PersonalOutcome, PersonalPolicy, PersonalTrial, Trial
from fedmq_protocol.task import ModelSpec, Task
from small_disk import SmallDisk

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
TRIED = Tried(trial=Trial(lineage=2, version=39, in_service=30, windows=12, metric=9_000, before=9_100), held=bytes(8))
KEYS = ("numbers", "task", "scaler", "pending", "steps", "residual", "service", "service-steps", "tried")
LATER = ("personal", "personal-values")
"""They came to schema 4 afterwards."""


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
        in_service=InService(
            task=TASK,
            lineage=1,
            version=30,
            digest=rng.bytes(32),
            steps=rng.integers(-(1 << 31), 1 << 31, MODEL.parameters).astype(np.int32),
            scaler=rng.bytes(32),
        ),
        tried=TRIED,
        personal=Personal(
            base=rng.bytes(32),
            policy=PersonalPolicy(mode="head", margin=0.02, epochs=10),
            windows=rng.bytes(8),
            found=PersonalTrial(outcome=PersonalOutcome.SERVES, windows=40, metric=9_500, shared=9_000),
            seen=(0, 1),
            values=rng.normal(size=8).astype(np.float32),
        ),
    )


def personal_parts(own: Personal | None) -> object:
    if own is None:
        return None
    return own.base, own.policy, own.windows, own.found, own.seen, own.values.dtype, own.values.tobytes()


def parts(model: InService | None) -> object:
    if model is None:
        return None
    return (
        *(model.task, model.lineage, model.version, model.digest, model.scaler),
        *(model.steps.dtype, model.steps.tobytes()),
    )


def same(one: GatewayState, other: GatewayState) -> bool:
    return (
        (one.lineage, one.task, one.scaler, one.version, one.pending, one.counter, one.answered)
        == (other.lineage, other.task, other.scaler, other.version, other.pending, other.counter, other.answered)
        and (one.tried, parts(one.in_service)) == (other.tried, parts(other.in_service))
        and personal_parts(one.personal) == personal_parts(other.personal)
        and one.steps.dtype == other.steps.dtype == np.int32
        and one.residual.dtype == other.residual.dtype == np.float32
        and one.steps.tobytes() == other.steps.tobytes()
        and one.residual.tobytes() == other.residual.tobytes()
    )


def loaded(path: Path) -> GatewayState:
    memory = Memory(path)
    try:
        return memory.load().get(TASK.name, GatewayState())
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
        {"in_service": None},
        {"tried": None},
        {"personal": None},
        {"in_service": None, "tried": None, "personal": None},
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
    for state in (
        GatewayState(task=TASK),
        GatewayState(task=TASK, counter=3),
        GatewayState(task=TASK, scaler=bytes(8)),
    ):
        here = path.with_name(f"{state.counter}-{state.scaler is None}.db")
        saved(here, state)
        assert same(loaded(here), state)


def test_a_state_of_no_task_has_no_place(path: Path) -> None:
    with pytest.raises(ValueError, match="expected the state of a task"):
        saved(path, GatewayState(counter=3))


# --- several tasks ---------------------------------------------------------------------------------------------------

PUMPS = Task(name="pumps \u2192 hall 2", model=MODEL, classes=("normal", "cavitation"), initial=bytes(8))


def test_each_task_has_a_state_of_its_own(path: Path) -> None:
    bearings, pumps = full(), replace(full(1), task=PUMPS, counter=3, pending=None)
    saved(path, bearings, pumps)
    memory = Memory(path)
    states = memory.load()
    assert set(states) == {TASK.name, PUMPS.name}
    assert same(states[TASK.name], bearings)
    assert same(states[PUMPS.name], pumps)
    memory.save(replace(states[PUMPS.name], counter=4))
    memory.close()
    memory = Memory(path)
    states = memory.load()
    assert same(states[TASK.name], bearings)
    assert states[PUMPS.name].counter == 4
    assert same(memory.saved(TASK.name), bearings)
    assert same(memory.saved("another"), GatewayState())
    memory.close()


def test_a_task_that_is_over_leaves_nothing_and_the_others_stay(path: Path) -> None:
    bearings, pumps = full(), replace(full(1), task=PUMPS)
    memory = Memory(path)
    memory.load()
    memory.put("budget", b"1")
    for state in (bearings, pumps):
        memory.save(state)
    memory.forget(TASK.name)
    memory.forget("never heard of")
    assert same(memory.saved(TASK.name), GatewayState())
    memory.close()
    memory = Memory(path)
    assert set(memory.load()) == {PUMPS.name}
    assert memory.get("budget") == b"1"
    fresh = GatewayState(task=TASK, counter=8)
    memory.save(fresh)
    memory.close()
    assert same(loaded(path), fresh)


def test_a_state_under_another_task_s_name_is_noticed(path: Path) -> None:
    saved(path, full(), replace(full(1), task=PUMPS))
    harm(path, "DELETE FROM state WHERE task = ?", TASK.name)
    harm(path, "UPDATE state SET task = ?", TASK.name)
    assert "damaged" in refused(path)


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
        assert same(memory.load().get(TASK.name, GatewayState()), state)
        for _ in range(rng.randrange(4)):
            changes = {name: getattr(full(step), name) for name in rng.sample(list(full().__dataclass_fields__), 3)}
            changes |= {"counter": state.counter + 1}
            # Arrays go together, as a model has them; the task stays.
            changes |= {"steps": full(step).steps, "residual": full(step).residual, "task": TASK}
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
        return {key for text in statements for key in re.findall(r"\('[^']*', ?'([a-z-]+)'", text)}

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
    state = replace(state, in_service=None)
    assert written(state) == {"service", "service-steps"}
    state = replace(state, tried=None)
    assert written(state) == {"tried"}
    state = replace(state, personal=None)
    assert written(state) == {"personal", "personal-values"}
    state = replace(state, residual=state.residual + 1, counter=10)
    assert written(state) == {"residual", "numbers"}
    assert len(statements) == 1  # which is a transaction by itself
    memory.close()
    assert same(loaded(path), state)


def test_a_state_that_was_loaded_and_not_changed_is_not_written(path: Path) -> None:
    saved(path, full())
    memory = Memory(path)
    state = memory.load()[TASK.name]
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
    memory.load()
    for state in states[1:]:
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


def test_a_file_of_a_newer_schema_is_refused_and_left_alone(path: Path) -> None:
    saved(path, full())
    harm(path, "PRAGMA user_version = 5")
    before = path.read_bytes()
    assert "schema 5, newer than this software" in refused(path)
    assert path.read_bytes() == before


def test_a_file_of_a_schema_that_nobody_reads_any_more_is_refused(path: Path) -> None:
    saved(path, full())
    harm(path, "PRAGMA user_version = 2")
    assert "schema 2, older than this software" in refused(path)


def harm(path: Path, statement: str, *values: bytes | str) -> None:
    database = sqlite3.connect(path)
    database.execute(statement, values)
    database.commit()
    database.close()


@pytest.mark.parametrize("key", [*KEYS, *LATER])
def test_a_part_that_is_missing_is_noticed(path: Path, key: str) -> None:
    saved(path, full())
    harm(path, f"DELETE FROM state WHERE key = '{key}'")
    assert "damaged" in refused(path)


@pytest.mark.parametrize("key", [*KEYS, *LATER])
def test_a_part_that_is_junk_is_noticed(path: Path, key: str) -> None:
    for junk in (b"\xc1", b"\x93\x01", b"\xff" * 7):
        saved(path, full())
        harm(path, f"UPDATE state SET value = ? WHERE key = '{key}'", junk)
        assert "damaged" in refused(path)
        path.unlink()


def test_a_file_from_before_there_were_personal_models_opens_without_one(path: Path) -> None:
    saved(path, full())
    harm(path, "DELETE FROM state WHERE key IN ('personal', 'personal-values')")
    assert same(loaded(path), replace(full(), personal=None))


def test_one_flipped_bit_is_noticed(path: Path) -> None:
    saved(path, full())
    database = sqlite3.connect(path)
    good = dict(database.execute("SELECT key, value FROM state WHERE task <> ''"))
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
    assert memory.load() == {}
    memory.save(full())
    memory.put("budget", b"2\x00")
    memory.close()
    memory = Memory(path)
    assert same(memory.load()[TASK.name], full())
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


# --- from the schema before ------------------------------------------------------------------------------------------


def write_schema_3(path: Path, state: GatewayState, **extras: bytes) -> None:
    """As the software of schema 3 laid it down: one task's values by key, each behind the CRC-32 of key and value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    numbers = {name: getattr(state, name) for name in ("lineage", "version", "counter", "answered")}
    values = {
        "numbers": msgspec.msgpack.encode(numbers),
        "task": msgspec.msgpack.encode(state.task),
        "scaler": state.scaler or b"",
        "pending": msgspec.msgpack.encode(state.pending),
        "steps": state.steps.astype("<i4").tobytes(),
        "residual": state.residual.astype("<f4").tobytes(),
    } | {f"extra-{key}": value for key, value in extras.items()}
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("PRAGMA journal_mode = WAL")
    database.executescript(
        "BEGIN; CREATE TABLE state (key TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT; PRAGMA user_version = 3; COMMIT;"
    )
    database.execute("BEGIN IMMEDIATE")
    for key, value in values.items():
        sealed = zlib.crc32(key.encode() + value).to_bytes(4, "little") + value
        database.execute("INSERT INTO state VALUES (?, ?)", (key, sealed))
    database.execute("COMMIT")
    database.close()


OLD = replace(full(), in_service=None, tried=None, personal=None)


def test_a_file_of_schema_3_opens_and_nothing_is_lost(path: Path) -> None:
    write_schema_3(path, OLD, budget=b"42")
    for _ in range(2):
        memory = Memory(path)
        assert same(memory.load()[TASK.name], OLD)
        assert memory.get("budget") == b"42"
        memory.close()
    saved(path, full(1))
    assert same(loaded(path), full(1))


def test_a_file_of_schema_3_in_which_nothing_was_joined_yet_opens(path: Path) -> None:
    write_schema_3(path, GatewayState(), budget=b"42")
    memory = Memory(path)
    assert memory.load() == {}
    assert memory.get("budget") == b"42"
    memory.close()


def test_a_migration_cut_short_leaves_the_old_file(path: Path) -> None:
    write_schema_3(path, OLD, budget=b"42")

    class Cut(Exception):
        pass

    class Dying(sqlite3.Connection):
        """Dies at the last word of the migration."""

        def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
            if sql == "COMMIT":
                self.close()
                raise Cut
            return super().execute(sql, *values)

    with pytest.raises(Cut):
        Memory(path, connect=lambda name: sqlite3.connect(name, factory=Dying))
    database = sqlite3.connect(path)
    assert database.execute("PRAGMA user_version").fetchone() == (3,)
    assert database.execute("SELECT count(*) FROM state").fetchone() == (7,)
    database.close()
    assert same(loaded(path), OLD)


@pytest.mark.parametrize("key", ["numbers", "task", "pending", "steps", "residual", "extra-budget"])
def test_a_damaged_file_of_schema_3_is_refused_and_left_as_it_is(path: Path, key: str) -> None:
    write_schema_3(path, OLD, budget=b"42")
    harm(path, "UPDATE state SET value = x'00112233' WHERE key = ?", key)
    assert "damaged" in refused(path)
    database = sqlite3.connect(path)
    assert database.execute("PRAGMA user_version").fetchone() == (3,)
    database.close()


@pytest.mark.parametrize("key", ["numbers", "task", "pending", "steps", "residual"])
def test_a_file_of_schema_3_that_lacks_a_part_is_refused(path: Path, key: str) -> None:
    write_schema_3(path, OLD)
    harm(path, "DELETE FROM state WHERE key = ?", key)
    assert "damaged" in refused(path)


def test_two_processes_may_open_a_file_of_schema_3_at_once(path: Path) -> None:
    write_schema_3(path, OLD)
    found: list[bool] = []

    def open_it() -> None:
        found.append(same(loaded(path), OLD))

    threads = [threading.Thread(target=open_it) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 8


# --- disks -----------------------------------------------------------------------------------------------------------


def test_a_database_may_lie_elsewhere(tmp_path: Path) -> None:
    kept = sqlite3.connect("file:elsewhere?mode=memory&cache=shared", uri=True)

    def connect(name: str) -> sqlite3.Connection:
        assert name == str(tmp_path / "no" / "g1")
        return sqlite3.connect("file:elsewhere?mode=memory&cache=shared", uri=True)

    for expected in ({}, {TASK.name}):
        memory = Memory(tmp_path / "no" / "g1", connect=connect)
        assert set(memory.load()) == set(expected)
        memory.save(full())
        memory.close()
    kept.close()
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_told_and_the_state_before_stands(small_disk: SmallDisk) -> None:
    path = small_disk.place / "state" / "gateway.sqlite"
    memory = Memory(path)
    memory.load()
    state = full()
    memory.save(state)
    small_disk.fill()
    payload = random.Random(0).randbytes(60_000)
    large = Pending(round_id=42, base_mark=1, counter=9, level=0, loss=0, payload=payload)
    with pytest.raises(StateError, match=r"gateway\.sqlite.*is the disk full"):
        memory.save(replace(full(1), pending=large, counter=9))
    assert same(memory.saved(TASK.name), state)
    memory.close()
    small_disk.empty()
    assert same(loaded(path), state)
    saved(path, full(1))
    assert same(loaded(path), full(1))


def test_a_full_disk_with_a_file_of_schema_3_leaves_that(small_disk: SmallDisk) -> None:
    path = small_disk.place / "gateway.sqlite"
    write_schema_3(path, replace(OLD, residual=np.ones(8_000, dtype=np.float32)))
    small_disk.fill()
    with pytest.raises(StateError, match=r"gateway\.sqlite"):
        Memory(path)
    small_disk.empty()
    assert loaded(path).counter == OLD.counter


def test_a_read_only_disk_is_told(small_disk: SmallDisk) -> None:
    path = small_disk.place / "gateway.sqlite"
    saved(path, full())
    small_disk.make_read_only()
    assert "see that its folder can be written" in refused(path)


def test_a_folder_that_cannot_be_written_is_told(path: Path) -> None:
    saved(path, full())
    memory = Memory(path, connect=lambda name: sqlite3.connect(f"file:{name}?mode=ro", uri=True))
    assert same(memory.load()[TASK.name], full())
    with pytest.raises(StateError, match="may this user not write there"):
        memory.save(full(1))
    assert same(memory.saved(TASK.name), full())
    memory.close()
    assert same(loaded(path), full())


def test_bytes_that_flip_while_a_gateway_runs_are_not_written_over(path: Path) -> None:
    memory = Memory(path)
    memory.load()
    memory.save(full())
    memory._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    data = bytearray(path.read_bytes())
    # The root page of the table: where its rows are found.
    for place in range(4096, 4096 + 200):
        data[place] ^= 0xFF
    path.write_bytes(data)
    # The cache of pages would hide it for a while.
    memory._db.execute("PRAGMA shrink_memory")
    with pytest.raises(StateError, match=r"gateway\.db is damaged"):
        memory.save(full(1))
    memory.close()
    assert path.read_bytes()[4096 : 4096 + 200] == bytes(data[4096 : 4096 + 200])
    assert "damaged" in refused(path)
