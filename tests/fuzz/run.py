"""Hostile input in bulk: random mutation, then coverage-guided, over every decoder. See `scripts/fuzz --help`.

What it calls a finding: an exception that is not the decoder's own, a result that is not well formed, memory that
rises by more than 64 MiB over the start, or an input that takes longer than its size and the task's explain. Each is
written to `tests/fuzz/corpus/`, where the tests read it ever after.

The guided half runs in a process for each decoder, because atheris ends its process when it is done.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import re
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import numpy as np
from decoders import Decoder, decoders
from measure import measure
from memory import MEBIBYTE, Peak
from mutations import mutate
from worst import WORST, read

CORPUS = Path(__file__).parent / "corpus"
MOST_MEMORY = 64 * MEBIBYTE


def most_seconds(decoder: Decoder, data: bytes) -> float:
    """Far above what a quiet machine needs, and proportional to input and task: what it catches is another order."""
    return 0.05 + 2e-6 * (len(data) + decoder.units(data))


@dataclass(kw_only=True)
class Tally:
    """What came of one decoder."""

    inputs: int = 0
    taken: int = 0
    findings: dict[str, bytes] = field(default_factory=dict)
    """The smallest input of each kind."""

    def found(self, what: str, data: bytes) -> None:
        kind = re.sub(r"-?\d[\d.,e+-]*", "N", what)
        if kind not in self.findings or len(data) < len(self.findings[kind]):
            self.findings[kind] = data


def attempt(decoder: Decoder, data: bytes, tally: Tally, peak: Peak) -> None:
    """One input, with everything that is asked of it."""
    tally.inputs += 1
    began = time.perf_counter()
    try:
        tally.taken += decoder.read(data)
    except Exception as error:  # whatever gets out is what is looked for
        where = traceback.extract_tb(error.__traceback__)[-1]
        tally.found(f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.name})", data)
    if time.perf_counter() - began > most_seconds(decoder, data):
        tally_if_slow(decoder, data, tally)
    if tally.inputs % 16 == 0 and (risen := peak.risen()) > MOST_MEMORY:
        tally.found(f"memory rose by {risen // MEBIBYTE} MiB", data)
        peak.restart()


def tally_if_slow(decoder: Decoder, data: bytes, tally: Tally) -> None:
    """Twice more, since another process may have had the core."""
    for _ in range(2):
        began = time.process_time()
        with contextlib.suppress(Exception):  # has been counted already
            decoder.read(data)
        if time.process_time() - began <= most_seconds(decoder, data):
            return
    tally.found(f"slower than {most_seconds(decoder, data):.2f} s", data)


def random_mutation(decoder: Decoder, inputs: int, seed: int, until: float) -> Tally:
    tally, peak = Tally(), Peak()
    rng = Random(f"{decoder.name} {seed}")
    while tally.inputs < inputs and (tally.inputs % 256 or time.monotonic() < until):
        attempt(decoder, mutate(rng, decoder.seeds, decoder.chosen), tally, peak)
    return tally


def guided(decoder: Decoder, inputs: int, seed: int, until: float) -> Tally:
    """Another process with atheris (libFuzzer); it starts from the seeds and the kept corpus."""
    tally = Tally()
    seconds = int(until - time.monotonic())
    if seconds < 1:
        return tally
    with tempfile.TemporaryDirectory() as folder:
        start, found = Path(folder, "seeds"), Path(folder, "found")
        start.mkdir()
        found.mkdir()
        for data in [*decoder.seeds, *kept(decoder.name)]:
            (start / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
        ended = subprocess.run(
            [
                *(sys.executable, str(Path(__file__).with_name("guided.py")), decoder.name, str(start)),
                *(f"-runs={inputs}", f"-max_total_time={seconds}", f"-seed={seed + 1}", f"-artifact_prefix={found}/"),
                *("-print_final_stats=1", "-max_len=20000", "-timeout=20", "-rss_limit_mb=0", "-verbosity=0"),
            ],
            capture_output=True,
            text=True,
        )
        counted = re.search(r"stat::number_of_executed_units:\s*(\d+)", ended.stderr)
        tally.inputs = int(counted[1]) if counted else 0
        for path in found.iterdir():
            complaint = re.search(r"=== Uncaught Python exception: ===\n(.*)", ended.stderr)
            tally.found(complaint[1] if complaint else path.name.partition("-")[0], path.read_bytes())
        if ended.returncode and not tally.findings:
            raise RuntimeError(f"the guided fuzzer broke off:\n{ended.stdout[-2000:]}\n{ended.stderr[-4000:]}")
    return tally


def kept(name: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted(CORPUS.glob(f"{name}-*.bin"))]


def keep(decoder: Decoder, tally: Tally) -> None:
    CORPUS.mkdir(exist_ok=True)
    for kind, data in tally.findings.items():
        path = CORPUS / f"{decoder.name}-{hashlib.sha256(data).hexdigest()[:12]}.bin"
        path.write_bytes(data)
        print(f"  FOUND {kind}\n        kept as tests/fuzz/corpus/{path.name}")


def fit() -> None:
    """Prints how long each of the worst inputs takes at four lengths of the task, and the slope of that in logarithms.

    1 is proportional to the length, below it a fixed part weighs; what is quadratic shows 2.
    """
    lengths = (1_000, 10_000, 100_000, 1_000_000)
    print(
        f"{'milliseconds for a task of':45}" + "".join(f"{length:>11,}" for length in lengths) + "   slope, last decade"
    )
    for name, make in WORST.items():
        took = []
        for length in lengths:
            data = make(length)
            read(name, data, length)
            rounds = []
            for _ in range(5):
                began = time.process_time()
                read(name, data, length)
                rounds.append(time.process_time() - began)
            took.append(min(rounds))
        slope = float(np.polyfit(np.log(lengths), np.log(took), 1)[0])
        newest = float(np.log10(took[-1] / took[-2]))
        print(
            f"{name:45}" + "".join(f"{1e3 * one:11.3f}" for one in took) + f"  {slope:6.2f} {newest:12.2f}", flush=True
        )
    with tempfile.TemporaryDirectory() as folder:
        risen = measure(WORST, lengths[-1], Path(folder))
    for name, size in sorted(risen.items(), key=lambda item: -item[1])[:8]:
        print(f"{name:45}{size / MEBIBYTE:8.1f} MiB over the start, at {lengths[-1]:,}")


def has_atheris() -> bool:
    try:
        import atheris  # noqa: F401
    except ImportError:
        return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description="Hostile input over every decoder.")
    parser.add_argument("--inputs", type=int, default=100_000, help="inputs in all (%(default)s)")
    parser.add_argument("--seconds", type=float, default=3_600, help="stop after so long (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another seed tries other inputs (%(default)s)")
    parser.add_argument("--decoder", action="append", help="only this one; may be given more than once")
    parser.add_argument(
        "--guided", type=float, default=0.3, help="share, 0 to 1, that atheris runs, where there is (%(default)s)"
    )
    parser.add_argument("--fit", action="store_true", help="instead: time and memory of the costliest inputs by length")
    given = parser.parse_args()
    if not 0 <= given.guided <= 1:
        parser.error(f"--guided is a share: expected 0 to 1, got {given.guided:g}")
    if given.fit:
        fit()
        return 0

    every = decoders()
    if unknown := set(given.decoder or ()) - set(every):
        parser.error(f"no decoder {', '.join(sorted(unknown))}; there are {', '.join(every)}")
    chosen = [every[name] for name in given.decoder or every]
    share = given.guided
    if share and not has_atheris():
        print("atheris is not installed (there is none for this Python or machine): random mutation only")
        share = 0.0
    began = time.monotonic()
    total, findings = 0, 0
    for number, decoder in enumerate(chosen):
        left = given.seconds - (time.monotonic() - began)
        until = time.monotonic() + left / (len(chosen) - number)
        inputs = (given.inputs - total) // (len(chosen) - number)
        by_coverage = round(share * inputs)
        for way, run, count in (("random", random_mutation, inputs - by_coverage), ("guided", guided, by_coverage)):
            if count:
                started = time.monotonic()
                tally = run(decoder, count, given.seed, until)
                total += tally.inputs
                findings += len(tally.findings)
                taken = f", {tally.taken:,} taken" if way == "random" else ""
                seconds = time.monotonic() - started
                print(f"{decoder.name:10} {way}: {tally.inputs:,} inputs{taken}, {seconds:.0f} s", flush=True)
                keep(decoder, tally)
    print(f"{total:,} inputs, {findings} findings, {time.monotonic() - began:.0f} s")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
