"""Versions survive on disk or are refused by name, and every way of catching up ends on the same integers."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from itertools import starmap
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from fedmq_compression.pipeline import CodecSpec, decode, decode_integers
from fedmq_coordinator.aggregate import ServerState, server_step
from fedmq_coordinator.models import ModelError, ModelStore, Route, catch_up
from fedmq_protocol.messages import CatchUpKind
from fedmq_protocol.task import ModelSpec, initial_steps, model_digest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

Steps = NDArray[np.int32]


def steps_of_version(number: int, length: int = 50) -> Steps:
    return np.random.default_rng(number).integers(-5_000, 5_000, length).astype(np.int32)


def files(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


# --- on disk ---------------------------------------------------------------------------------------------------------


def test_a_version_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "new" / "folder")
    extremes = np.array([0, 1, -1, (1 << 31) - 1, -(1 << 31)], dtype=np.int32)
    for lineage, number, steps in [(1, 0, extremes), (1, 7, steps_of_version(7)), (2, 7, steps_of_version(8))]:
        store.save(lineage, number, steps)
    for lineage, number, steps in [(1, 0, extremes), (1, 7, steps_of_version(7)), (2, 7, steps_of_version(8))]:
        loaded = ModelStore(tmp_path / "new" / "folder").load(lineage, number, model_digest(steps))
        assert loaded.dtype == np.int32
        assert np.array_equal(loaded, steps)
        loaded += 1  # a copy of one's own, not the file's


def test_the_file_is_little_endian_integers_that_anybody_can_read(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    store.save(1, 2, np.array([1, -2], dtype=np.int32))
    assert store.path(1, 2).read_bytes() == b"\x01\x00\x00\x00\xfe\xff\xff\xff"
    assert files(tmp_path) == {"model-1-2.i32"}


def test_saving_a_version_again_after_a_crash_is_harmless(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    steps = steps_of_version(3)
    store.path(1, 3).with_suffix(".partial").write_bytes(b"half")
    store.save(1, 3, steps)
    store.save(1, 3, steps)
    assert np.array_equal(store.load(1, 3, model_digest(steps)), steps)
    assert files(tmp_path) == {"model-1-3.i32"}


def test_a_power_cut_before_the_rename_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ModelStore(tmp_path)
    old, new = steps_of_version(1), steps_of_version(2)
    store.save(1, 3, old)

    def cut(self: Path, target: Any) -> Path:
        raise OSError("the power is out")

    monkeypatch.setattr(Path, "replace", cut)
    with pytest.raises(ModelError, match="the power is out"):
        store.save(1, 3, new)
    assert np.array_equal(store.load(1, 3, model_digest(old)), old)


def test_the_file_and_the_folder_are_synced_before_and_after_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    sync, rename = os.fsync, Path.replace

    def note_sync(descriptor: int) -> None:
        done.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        sync(descriptor)

    def note_rename(self: Path, target: Any) -> Path:
        done.append("rename")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(Path, "replace", note_rename)
    ModelStore(tmp_path).save(1, 1, steps_of_version(1))
    assert done == ["file", "rename", "folder"]


@pytest.mark.parametrize("harm", ["flipped bit", "truncated", "truncated to a whole number", "longer", "empty"])
def test_a_damaged_file_is_refused_by_its_path(tmp_path: Path, harm: str) -> None:
    store = ModelStore(tmp_path)
    steps = steps_of_version(4)
    store.save(1, 4, steps)
    data = store.path(1, 4).read_bytes()
    harmed = {
        "flipped bit": data[:20] + bytes([data[20] ^ 1]) + data[21:],
        "truncated": data[:-3],
        "truncated to a whole number": data[:-4],
        "longer": data + bytes(4),
        "empty": b"",
    }[harm]
    store.path(1, 4).write_bytes(harmed)
    with pytest.raises(ModelError, match="restore it from a backup") as raised:
        store.load(1, 4, model_digest(steps))
    assert str(store.path(1, 4)) in str(raised.value)


def test_a_file_of_another_version_is_refused_by_its_path(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    store.save(1, 4, steps_of_version(5))
    with pytest.raises(ModelError, match=str(store.path(1, 4))):
        store.load(1, 4, model_digest(steps_of_version(4)))


def test_a_version_that_is_not_there_is_refused_by_its_path_and_with_advice(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    with pytest.raises(ModelError, match="version 4 of lineage 1 cannot be read") as raised:
        store.load(1, 4, bytes(32))
    assert str(store.path(1, 4)) in str(raised.value)
    assert "restore it from a backup" in str(raised.value)


def test_a_folder_where_the_file_should_be_is_refused(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    store.path(1, 4).mkdir()
    with pytest.raises(ModelError, match="cannot be read"):
        store.load(1, 4, bytes(32))


def test_pruning_keeps_the_newest_few_of_its_lineage_and_every_other_lineage(tmp_path: Path) -> None:
    store = ModelStore(tmp_path, keep=3)
    for number in range(12):
        store.save(1, number, steps_of_version(number))
    store.save(11, 0, steps_of_version(0))
    store.save(2, 5, steps_of_version(0))
    (tmp_path / "notes.txt").write_text("somebody's own")
    store.prune(1, 10)
    # Version 11 was written by a pass that never committed it.
    assert files(tmp_path) == {
        "model-1-8.i32",
        "model-1-9.i32",
        "model-1-10.i32",
        "model-11-0.i32",
        "model-2-5.i32",
        "notes.txt",
    }
    store.prune(1, 10)
    assert np.array_equal(store.load(1, 8, model_digest(steps_of_version(8))), steps_of_version(8))


def test_pruning_early_in_a_lineage_deletes_nothing(tmp_path: Path) -> None:
    store = ModelStore(tmp_path, keep=5)
    for number in range(3):
        store.save(1, number, steps_of_version(number))
    store.prune(1, 2)
    assert len(files(tmp_path)) == 3


def test_what_a_crash_left_half_written_is_removed(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    store.save(1, 1, steps_of_version(1))
    (tmp_path / "model-1-2.partial").write_bytes(b"half")
    (tmp_path / "model-9-9.partial").write_bytes(b"")
    store.prune(1, 1)
    assert files(tmp_path) == {"model-1-1.i32"}


# --- catching up -----------------------------------------------------------------------------------------------------

MODEL = ModelSpec(kind="mlp", sizes=(20, 30, 4))
LENGTH = MODEL.parameters
DOWN = CodecSpec(bits=1, density=0.1, step=2.0**-12)
START = initial_steps(MODEL, 1, 12)


def spec(level: int) -> CodecSpec:
    """The codec of every other version is denser."""
    return replace(DOWN, density=DOWN.density * (1 + 3 * level))


def delta_steps(level: int, delta: bytes) -> Steps:
    return decode(delta, LENGTH, spec(level)).whole_steps()


def history(versions: int, seed: int = 0, size: float = 0.01) -> tuple[list[tuple[int, bytes]], list[Steps]]:
    """The level and the bytes of what was broadcast for versions 1 and up, and the model of every version from 0."""
    rng = np.random.default_rng(seed)
    state = ServerState.start(LENGTH)
    deltas, models = [], [START]
    for number in range(versions):
        codec = spec((number + 1) % 2)
        made = server_step(rng.normal(size=LENGTH) * size, state, codec, momentum=0.0, learning_rate=1.0)
        state = made.state
        deltas.append(((number + 1) % 2, made.delta))
        models.append(models[-1] + made.steps)
    return deltas, models


def follow(route: Route, have: Steps) -> Steps:
    """What a gateway does with a route, by hand."""
    if route.kind is CatchUpKind.KEYFRAME:
        assert route.start == 0
        return START + decode_integers(route.body, LENGTH)
    if route.kind is CatchUpKind.MERGED:
        return have + decode_integers(route.body, LENGTH)
    steps = have
    for level, delta in msgspec.msgpack.decode(route.body, type=list[tuple[int, bytes]]):
        steps = steps + delta_steps(level, delta)
    return steps


@settings(max_examples=25, deadline=None)
@given(versions=st.integers(1, 40), behind=st.integers(1, 40), seed=st.integers(0, 2**32))
def test_the_route_that_is_taken_leads_to_the_newest_version(versions: int, behind: int, seed: int) -> None:
    deltas, models = history(versions, seed)
    have = max(0, versions - behind)
    route = catch_up(have, deltas[have:], starmap(delta_steps, deltas[have:]), models[-1], START)
    assert model_digest(follow(route, models[have])) == model_digest(models[-1])
    if route.kind is not CatchUpKind.KEYFRAME:
        assert route.start == have


def test_every_kind_is_the_cheapest_for_somebody_and_the_smallest_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    deltas, models = history(60)
    # All three, by letting only one through at a time.
    seen = {}
    for have in (58, 50, 30, 10, 0):
        routes: list[Route] = []

        def note(found: list[Route], *, key: Any, into: list[Route] = routes) -> Route:
            into.extend(found)
            return min(found, key=key)

        monkeypatch.setattr("fedmq_coordinator.models.min", note, raising=False)
        taken = catch_up(have, deltas[have:], starmap(delta_steps, deltas[have:]), models[-1], START)
        assert {route.kind for route in routes} == set(CatchUpKind)
        assert len(taken.body) == min(len(route.body) for route in routes)
        for route in routes:
            assert model_digest(follow(route, models[have])) == model_digest(models[-1])
        seen[have] = taken.kind
    assert seen[58] is CatchUpKind.CHAIN
    assert seen[0] is not CatchUpKind.CHAIN


def test_where_deltas_undo_each_other_one_merged_delta_is_sent() -> None:
    rng = np.random.default_rng(3)
    _, models = history(30, size=0.05)
    there = server_step(rng.normal(size=LENGTH), ServerState.start(LENGTH), DOWN, momentum=0.0, learning_rate=1.0)
    back = server_step(
        -np.float64(DOWN.step) * there.steps.astype(np.float64),
        ServerState.start(LENGTH),
        DOWN,
        momentum=0.0,
        learning_rate=1.0,
    )
    assert not (there.steps + back.steps).any()
    there_and_back = [(0, there.delta), (0, back.delta)] * 5
    added = (delta_steps(level, delta) for level, delta in there_and_back)
    route = catch_up(30, there_and_back, added, models[-1], START)
    assert route.kind is CatchUpKind.MERGED
    assert len(route.body) < 8
    assert np.array_equal(follow(route, models[-1]), models[-1])


def test_where_the_gap_is_unknown_only_the_keyframe_remains() -> None:
    _, models = history(20)
    for have in (-1, 3, 20):
        route = catch_up(have, [], starmap(delta_steps, []), models[-1], START)
        assert (route.kind, route.start) == (CatchUpKind.KEYFRAME, 0)
        assert np.array_equal(follow(route, START), models[-1])


def test_looking_for_a_route_changes_neither_model() -> None:
    deltas, models = history(5)
    newest, start = models[-1].copy(), START.copy()
    catch_up(0, deltas, starmap(delta_steps, deltas), models[-1], START)
    assert np.array_equal(models[-1], newest)
    assert np.array_equal(START, start)
