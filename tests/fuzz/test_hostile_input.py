"""A short share of what `scripts/fuzz` does at length: nothing that a network can bring does more than get refused."""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

import pytest
from decoders import Decoder, decoders
from measure import measure
from mutations import mutate
from worst import HONEST, LIES, WORST, read

CORPUS = sorted((Path(__file__).parent / "corpus").glob("*.bin"))
DECODERS = decoders()
by_name = pytest.mark.parametrize("decoder", DECODERS.values(), ids=list(DECODERS))


@by_name
def test_every_valid_input_to_start_from_is_taken(decoder: Decoder) -> None:
    assert len(decoder.seeds) >= 5
    assert all(map(decoder.read, decoder.seeds))


@by_name
def test_damaged_input_is_refused_or_decodes_to_something_well_formed(decoder: Decoder) -> None:
    rng = random.Random(f"{decoder.name} in the suite")
    inputs = [mutate(rng, decoder.seeds, decoder.chosen) for _ in range(1000)]
    taken = sum(map(decoder.read, inputs))
    assert 0 < taken < 900, "the damage is too coarse to get anywhere, or none at all"


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_what_once_broke_a_decoder_does_so_no_more(path: Path) -> None:
    """Found by the fuzzer: in a decoder of ours, or in one from which a single check was taken to try the fuzzer."""
    DECODERS[path.stem.rpartition("-")[0]].read(path.read_bytes())


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's own bound on memory is Linux's here")
def test_no_input_for_a_million_parameters_takes_64_mebibytes(tmp_path: Path) -> None:
    heavy = [*LIES, *(name for name in HONEST if name.startswith(("32 bits, density 0.8", "integers", "ranked")))]
    risen = measure(heavy, 1_000_000, tmp_path)
    assert set(risen) == set(heavy)
    assert max(risen.values()) < 64 << 20


@pytest.mark.parametrize("name", WORST)
def test_ten_times_the_length_takes_no_more_than_some_ten_times_the_work(name: str) -> None:
    """As a ratio within one run, and far from it: what is quadratic takes a hundred times."""
    took = []
    for length in (10_000, 100_000):
        data = WORST[name](length)
        assert read(name, data, length) is (name in HONEST)
        rounds = []
        for _ in range(5):
            began = time.process_time()
            read(name, data, length)
            rounds.append(time.process_time() - began)
        took.append(min(rounds))
    assert took[1] <= 40 * took[0]
