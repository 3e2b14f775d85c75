"""Machine code and numpy agree on every payload, valid or not, and no kernel reaches beyond its arrays."""

from __future__ import annotations

import binascii
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fedmq_compression import compiled, contexts, indices, kernels, pipeline
from fedmq_compression.bits import golomb, natural_divisor
from fedmq_compression.contexts import Contexts, SignPlan
from fedmq_compression.frame import CHECKSUM_BYTES, seal
from fedmq_compression.indices import Layout
from fedmq_compression.pipeline import CodecSpec, Decoded, PayloadError, decode, encode
from hypothesis import given, settings
from hypothesis import strategies as st

needs_numba = pytest.mark.skipif(not compiled.enabled, reason="needs numba, pip install 'fedmq[fast]', and it enabled")


class Case(SimpleNamespace):
    """A payload, and what its decoder is told."""

    payload: bytes
    length: int
    spec: CodecSpec
    contexts: Contexts | None

    def agreed(self) -> bytes:
        return self.spec.agreed(self.length) + (b"" if self.contexts is None else self.contexts.mark)


def case(seed: int, longest: int = 3000) -> Case:
    """Any length, density and bits, with and without contexts, supports spread or in clusters."""
    rng = np.random.default_rng(seed)
    shapes = [tuple(rng.integers(1, 2 + int(longest**0.5 / 2), 2).tolist()) for _ in range(rng.integers(1, 5))]
    length = sum(rows * columns for rows, columns in shapes)
    moved = np.concatenate([np.outer(rng.random(a) ** 4, rng.random(b) ** 4).ravel() for a, b in shapes])
    spread = rng.choice([0.0, 0.1, 1.0])
    signs = rng.choice([-1, 1], length) if rng.random() < 0.5 else np.ones(length)
    delta = ((moved + spread) * rng.exponential(size=length) * signs * 10 ** rng.uniform(-7, 0)).astype(np.float32)
    if rng.random() < 0.2:
        delta[rng.random(length) < rng.random()] = 0
    elif rng.random() < 0.1:
        delta[rng.integers(0, length) :] = 0
    spec = CodecSpec(
        bits=int(rng.choice([1, 1, 4, 8, 32])),
        density=float(rng.choice([0.01, 0.1, 0.4, 0.7, 0.97, 1, rng.uniform(0.001, 1)])),
        step=2.0 ** -int(rng.integers(4, 25)),
    )
    given = None
    if rng.random() < 0.7:
        displacement = moved * 2 ** rng.uniform(0, 20) * signs * (rng.random(length) < rng.random())
        given = Contexts.of(displacement.astype(np.int32), shapes)
    payload = encode(delta, spec, contexts=given).payload
    return Case(payload=payload, length=length, spec=spec, contexts=given)


def mutated(given: Case, seed: int) -> Case:
    """Bits turned, bytes put in, taken out or cut off, and the checksum made to fit again."""
    rng = np.random.default_rng(seed)
    body = bytearray(given.payload[:-CHECKSUM_BYTES])
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(0, len(body) + 1) if rng.random() < 0.6 else min(len(body), rng.integers(0, 8)))
        kind = rng.integers(0, 5)
        if kind <= 1 and at < len(body):
            body[at] ^= 1 << int(rng.integers(0, 8))
        elif kind == 2:
            body[at:at] = rng.bytes(int(rng.integers(1, 4)))
        elif kind == 3:
            del body[at : at + int(rng.integers(1, 4))]
        else:
            body[at:] = rng.choice([0, 0xFF, int(rng.integers(0, 256))], len(body) - at).astype(np.uint8).tobytes()
    return Case(**vars(given) | {"payload": seal(bytes(body), given.agreed())})


@contextmanager
def switched(**attributes: Any) -> Iterator[None]:
    """`compiled` with other attributes."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in attributes.items():
            patch.setattr(compiled, name, value)
        yield


def outcome(given: Case) -> Any:
    """All that decoding and adding lead to, or the complaint."""
    try:
        decoded = decode(given.payload, given.length, given.spec, contexts=given.contexts)
    except PayloadError as refused:
        return str(refused)
    total = np.arange(given.length, dtype=np.int64)
    decoded.add_to(total, 7)
    found = None if decoded.indices is None else decoded.indices.tolist()
    return found, decoded.steps.tolist(), decoded.steps.dtype, total.tolist()


def numpys(given: Case) -> Any:
    with switched(enabled=False):
        return outcome(given)


class Guarded(np.ndarray[Any, Any]):
    """An array that is read and written only where it is: an index below 0 is none."""

    def _check(self, at: Any) -> None:
        for part, size in zip(at if isinstance(at, tuple) else (at,), self.shape, strict=False):
            if not isinstance(part, slice):
                assert 0 <= part < size, f"index {part} of {size}"
            elif part.stop is not None:
                assert 0 <= part.start <= part.stop <= size, f"{part} of {size}"

    def __getitem__(self, at: Any) -> Any:
        self._check(at)
        return super().__getitem__(at)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.tolist())

    def __setitem__(self, at: Any, value: Any) -> None:
        self._check(at)
        super().__setitem__(at, value)


class GuardedBytes(bytes):
    def __getitem__(self, at: Any) -> Any:
        assert 0 <= at < len(self), f"byte {at} of {len(self)}"
        return super().__getitem__(at)


def guarded(kernel: Any) -> Any:
    """The kernel as plain Python, where every access is checked."""

    def checked(thing: Any) -> Any:
        if isinstance(thing, np.ndarray):
            return thing.view(Guarded)
        return GuardedBytes(thing) if isinstance(thing, bytes) else thing

    def made(maker: Any) -> Any:
        return lambda *words, **more: maker(*words, **more).view(Guarded)

    makers = {name: made(getattr(np, name)) for name in ("empty", "zeros", "full", "empty_like")}
    types = {name: getattr(np, name) for name in ("int64", "uint8")}

    def run(*words: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kernels, "np", SimpleNamespace(**makers, **types))
            return kernel(*[checked(word) for word in words])

    return run


# --- the same, either way --------------------------------------------------------------------------------------------


@needs_numba
@settings(max_examples=600, deadline=None)
@given(st.integers(0, 2**32))
def test_a_payload_decodes_to_the_same_with_machine_code_and_with_numpy(seed: int) -> None:
    given = case(seed)
    assert outcome(given) == numpys(given)
    assert not isinstance(outcome(given), str)


@needs_numba
@settings(max_examples=600, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 2**32))
def test_a_broken_payload_leads_to_the_same_with_machine_code_and_with_numpy(seed: int, mutation: int) -> None:
    given = mutated(case(seed), mutation)
    assert outcome(given) == numpys(given)


@needs_numba
@pytest.mark.parametrize("seed", range(40))
def test_a_payload_broken_in_a_hundred_ways_leads_to_the_same(seed: int) -> None:
    given = case(seed)
    for mutation in range(100):
        broken = mutated(given, mutation)
        assert outcome(broken) == numpys(broken), f"case {seed}, mutation {mutation}"


@needs_numba
@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32))
def test_encoding_makes_the_same_bytes_with_machine_code_and_with_numpy(seed: int) -> None:
    with switched(enabled=False):
        given = case(seed)
    assert case(seed).payload == given.payload


@pytest.mark.parametrize("seed", range(150))
def test_no_kernel_reaches_beyond_its_arrays(seed: int) -> None:
    given = case(seed, longest=800)
    for broken in [given, *(mutated(given, mutation) for mutation in range(25))]:
        with switched(enabled=True, _compiled=guarded):
            found = outcome(broken)
        assert found == numpys(broken)


@pytest.mark.parametrize("told", [[98, 1, 0], [0, 97, 1], [99, 0, 0], [300, 0, 0], [97, 0, 1]])
def test_a_gap_that_leaves_no_room_for_the_next_fills_nothing_beyond_the_end(told: list[int]) -> None:
    """Two of a hundred coordinates are sent, so that 98 are told; these begin with three, the others follow at once."""
    spec = CodecSpec(bits=1, density=0.02, step=2.0**-12)
    gaps = np.array([*told, *[0] * 95], dtype=np.int64)
    bits = np.concatenate([np.zeros(2, dtype=np.uint8), golomb(gaps, natural_divisor(100, 98))])
    body = bytes([Layout.UNSENT_GAPS << 4, 1]) + np.packbits(bits).tobytes()
    given = Case(payload=seal(body, spec.agreed(100)), length=100, spec=spec, contexts=None)
    with switched(enabled=True, _compiled=guarded):
        found = outcome(given)
    assert found == numpys(given)
    assert "is sent, expected less than 100" in found or "expected 100 at most" in found


def test_the_cases_meet_every_layout_and_the_mutations_are_often_valid_and_often_not() -> None:
    given = [case(seed) for seed in range(300)]
    assert {one.payload[0] >> 4 for one in given} == set(Layout)
    assert {(one.spec.bits, one.payload[0] >> 4 == Layout.RANKED) for one in given} >= {
        (bits, ranked) for bits in (1, 4, 8, 32) for ranked in (False, True)
    }
    refused = sum(isinstance(numpys(mutated(one, 1)), str) for one in given)
    assert 60 < refused < 290


@needs_numba
@pytest.mark.parametrize("seed", range(60))
def test_a_valid_payload_of_gaps_or_ranks_is_left_to_the_kernels(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    given = case(seed)
    expected = numpys(given)
    if given.payload[0] >> 4 in (Layout.GAPS, Layout.UNSENT_GAPS, Layout.RANKED):
        monkeypatch.setattr(indices, "BitReader", None)
        monkeypatch.setattr(pipeline, "BitReader", None)
    assert outcome(given) == expected


def test_the_kernels_hold_the_numbers_of_the_modules_they_stand_for() -> None:
    assert (kernels.SHARE_BITS, kernels.FIRST_SHARE) == (contexts.SHARE_BITS, contexts.FIRST_SHARE)
    assert tuple(SignPlan) == (kernels.PLAIN, kernels.COLUMN, kernels.LEAN)
    longest = Contexts.of(np.zeros(5, dtype=np.int32), [(5, 1)])
    for length in (1, 7, 8, 9, 100, 18308, (1 << 31) - 1):
        object.__setattr__(longest, "length", length)
        for count in (1, 9, 100, length):
            bounds = np.empty(kernels.MOST_CLASSES + 1, dtype=np.int64)
            classes = kernels.class_ends(length, count, bounds)
            assert bounds[: classes + 1].tolist() == [0, *longest.ends(count)]
            assert kernels.natural_divisor(length, count) == natural_divisor(length, count)


@needs_numba
@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), st.integers(0, 0xFFFF))
def test_the_checksum_is_that_of_the_standard_library(data: bytes, start: int) -> None:
    assert compiled.checksum(data, start) == binascii.crc_hqx(data, start)


# --- adding ----------------------------------------------------------------------------------------------------------


def delta(where: list[int], steps: list[int], length: int = 10) -> Decoded:
    numbers = (np.array(given, dtype=np.int64) for given in (where, steps))
    return Decoded(length=length, indices=next(numbers), steps=next(numbers), step=0.5)


@pytest.mark.parametrize("enabled", [False, pytest.param(True, marks=needs_numba)])
class TestAdding:
    @pytest.fixture(autouse=True)
    def _switched(self, enabled: bool) -> Iterator[None]:
        with switched(enabled=enabled):
            yield

    def test_steps_are_added_where_they_belong(self) -> None:
        total = np.arange(10, dtype=np.int64)
        delta([0, 3, 9], [5, -1, 2**20]).add_to(total, -3)
        assert total.tolist() == [-15, 1, 2, 6, 4, 5, 6, 7, 8, 9 - 3 * 2**20]

    def test_nothing_is_added_to_nothing(self) -> None:
        total = np.arange(10, dtype=np.int64)
        delta([], []).add_to(total, 4)
        assert total.tolist() == list(range(10))

    @pytest.mark.parametrize("where", [[3, 10], [-11, 3], [3, 2**40]])
    def test_an_index_that_is_none_is_an_error_and_nothing_is_added(self, where: list[int]) -> None:
        total = np.arange(10, dtype=np.int64)
        with pytest.raises(IndexError):
            delta(where, [1, 1]).add_to(total, 1)
        assert total.tolist() == list(range(10))

    def test_a_sum_that_lies_scattered_in_memory_is_added_to(self) -> None:
        total = np.zeros(30, dtype=np.int64)
        delta([1, 4], [2, 3]).add_to(total[::3], 1)
        assert total[[3, 12]].tolist() == [2, 3]
        assert total.sum() == 5

    def test_a_delta_that_is_read_only_or_scattered_is_added(self) -> None:
        where = np.array([1, 0, 4, 0])[::2]
        steps = np.array([2, 3])
        steps.flags.writeable = False
        total = np.zeros(10, dtype=np.int64)
        Decoded(length=10, indices=where, steps=steps, step=0.5).add_to(total, 1)
        assert total[[1, 4]].tolist() == [2, 3]

    def test_a_read_only_sum_is_refused(self) -> None:
        total = np.zeros(10, dtype=np.int64)
        total.flags.writeable = False
        with pytest.raises(ValueError, match="read-only"):
            delta([1], [2]).add_to(total, 1)

    def test_a_weight_that_is_not_whole_is_refused(self) -> None:
        with pytest.raises(TypeError):
            delta([1], [2]).add_to(np.zeros(10, dtype=np.int64), 1.5)  # type: ignore[arg-type]


# --- where numba is not, or not well ---------------------------------------------------------------------------------

DECODING = """
import logging, sys
logging.basicConfig(level=logging.WARNING, stream=sys.stdout)
from fedmq_compression import compiled
from fedmq_compression.pipeline import CodecSpec, decode
assert "numba" not in sys.modules
crc = compiled.checksum(b"123456789", 0xFFFF)
payload = bytes.fromhex("20 84 00 4c 99 d9 10 67 2d")
if len(sys.argv) > 1:
    assert decode(payload, 50, CodecSpec(bits=1, density=0.1, step=2.0**-12)).indices.tolist() == [3, 11, 12, 30, 49]
print(crc, "numba" in sys.modules)
"""


def decoding(*words: str, **environment: str) -> str:
    ended = subprocess.run(
        [sys.executable, "-c", DECODING, *words],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"FEDMQ_COMPILED": "1"} | environment,
    )
    return ended.stdout.strip()


def test_switched_off_numba_is_not_even_imported() -> None:
    assert decoding("decode", FEDMQ_COMPILED="0") == "None False"


@pytest.mark.parametrize("enabled", [False, pytest.param(True, marks=needs_numba)])
def test_other_bytes_than_bytes_are_decoded_too(enabled: bool) -> None:
    given = next(one for one in map(case, range(100)) if one.payload[0] >> 4 == Layout.GAPS)
    expected = outcome(given)
    with switched(enabled=enabled):
        assert outcome(Case(**vars(given) | {"payload": bytearray(given.payload)})) == expected


@needs_numba
def test_kernels_are_compiled_where_no_cache_can_be_written() -> None:
    assert decoding(NUMBA_CACHE_DIR="/dev/null/nowhere") == "10673 True"


@needs_numba
def test_kernels_are_compiled_where_the_cache_is_broken(tmp_path: Path) -> None:
    assert decoding(NUMBA_CACHE_DIR=str(tmp_path)) == "10673 True"
    kept = [path for path in tmp_path.rglob("*") if path.suffix in (".nbi", ".nbc")]
    assert kept
    for path in kept:
        path.write_bytes(b"")
    assert decoding(NUMBA_CACHE_DIR=str(tmp_path)) == "10673 True"


def test_a_numba_that_cannot_be_imported_leaves_the_work_to_numpy_and_says_so_once(tmp_path: Path) -> None:
    (tmp_path / "numba.py").write_text("raise ImportError('numba needs an older numpy')")
    told, found = decoding("decode", PYTHONPATH=str(tmp_path)).rsplit("\n", 1)
    assert told.count("numba needs an older numpy") == 1
    assert found == "None False"
