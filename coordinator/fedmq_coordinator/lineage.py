"""One line of model versions: what the ledger and the model store have of it, and how the next version is made.

Owns the integer model in force, the scaler, the server's optimiser and its residual, and how dense the next round is.
A version is made by `apply` in the ledger's running transaction, after its file is on disk; the service commits.
Another task, or an order to learn afresh, starts another lineage from version 0, which the task's seed draws or its
bundle holds, and gateways then forget their residuals.

Refuses to know gateways, rounds in progress and messages under way.
"""

from __future__ import annotations

import logging

import numpy as np
from fedmq_compression.pipeline import CodecSpec, Contexts, Decoded, decode, decode_integers, encode_integers
from fedmq_models.bundle import from_bytes, start_of
from fedmq_protocol.task import UPLINK_STEP, Codec, Task, model_digest, short, to_parameters
from numpy.typing import NDArray

from fedmq_coordinator import scaling
from fedmq_coordinator.aggregate import AggregationRule, ServerState, server_step
from fedmq_coordinator.density import Course
from fedmq_coordinator.ledger import Book, LedgerError, Version
from fedmq_coordinator.models import ModelError, ModelStore, Route, catch_up

__all__ = ["Lineage", "spec_of", "statistics_of", "steps_of"]

log = logging.getLogger("fedmq.coordinator")

RANKED_VERSIONS = 4
"""Versions whose contexts are kept at hand; those of others that late updates start from are made again. Each takes
about nine bytes a parameter."""

LONGEST_CHAIN = 500
"""Versions behind which only a keyframe is considered: a chain of 500 is longer than any keyframe."""


class Lineage:
    """The line in force of one federation and task; restored from the ledger, or started there.

    `bundle` is that of a `graph`. Raises LedgerError for a ledger of another federation or one that lacks something,
    ModelError for a damaged file, BundleError for a bundle that cannot be used.
    """

    def __init__(
        self,
        federation: str,
        task: Task,
        ledger: Book,
        models: ModelStore,
        *,
        now: float,
        start_new: bool = False,
        bundle: bytes | None = None,
    ) -> None:
        self.task = task
        self._ledger = ledger
        self._models = models
        self._course = Course(sparse=task.sparse_levels, highest=task.levels)
        self.level = 0
        """Of the version in force: its delta was coded at it, and updates that start from it are."""
        opened = from_bytes(bundle) if bundle else None
        self.initial = start_of(task.model, task.seed, task.grid_bits, opened)
        """Version 0 of every lineage of the task."""
        self._ranked: dict[bytes, Contexts] = {}
        """What the past of a version tells, by its digest, the one used last at the end."""
        self.scaler: bytes | None = None
        """Means, then scales, little-endian float32."""
        known = ledger.ledger.get("federation")
        if known is not None and known.decode() != federation:
            raise LedgerError(
                f"{ledger.path} belongs to federation {known.decode()!r}, not {federation!r}: "
                "name another state directory"
            )
        self.number = int(ledger.get("lineage") or 0)
        if self.number == 0 or start_new or ledger.get("task") != task.digest:
            ledger.ledger.put("federation", federation.encode())
            self._start(now)
        else:
            self._restore()

    def _start(self, now: float) -> None:
        newest = self._ledger.last_round()
        if newest is not None and newest.closed_at is None:
            self._ledger.close_round(newest.id, at=now, outcome="abandoned", version=None)
        # The time, not a count: a coordinator that lost its disk would count from 1 again, and its gateways would take
        # the new line for the old one.
        self.number = max(self.number + 1, self._ledger.ledger.newest_lineage() + 1, int(now))
        self.version, self.steps, self.level = 0, self.initial, 0
        self.digest = model_digest(self.steps)
        if short(self.digest) != self.task.initial:
            raise ValueError("the task's initial digest is not that of its seed or bundle: build the task again")
        self._server = ServerState.start(self.task.model.parameters)
        self._models.save(self.number, 0, self.steps)
        self._ledger.put("lineage", str(self.number).encode())
        self._ledger.put("task", self.task.digest)
        self.scaler = None
        for key in ("scaler", "opened", "rest", "began", "emptied"):
            self._ledger.forget(key)
        self._save_server()
        self._ledger.erase_payloads()
        self._save_version(parent=b"", round_id=None, delta=b"", steps=b"", now=now)
        self._course = Course(sparse=self.task.sparse_levels, highest=self.task.levels)
        self._ranked = {}
        log.info("started lineage %d: %d parameters", self.number, self.task.model.parameters)

    def start_afresh(self, now: float) -> None:
        """Another lineage from version 0, in the running transaction."""
        self._start(now)

    def go_back(self, lineage: int, number: int, now: float) -> None:
        """Another lineage, whose version 1 is this older version, in the running transaction; the scaler stays.

        Version 0 is what it ever was, and version 1 has no delta: whoever is at 0 asks, and gets a keyframe. Raises
        ModelError, before anything is changed, for a version that cannot be had any more.
        """
        steps, scaler = self.model(lineage, number), self.scaler
        came_from = self._ledger.version(lineage, number)
        assert came_from is not None  # its model was found by it
        self._start(now)
        first = self.digest
        self.version, self.steps, self.level = 1, steps, came_from.level
        self.digest = model_digest(steps)
        self._models.save(self.number, 1, steps)
        if scaler is not None:
            self.scaler = scaler
            self._ledger.put("scaler", scaler)
        self._save_version(parent=first, round_id=None, delta=b"", steps=encode_integers(steps - self.initial), now=now)
        log.info("lineage %d goes on from version %d of lineage %d", self.number, number, lineage)

    def model(self, lineage: int, number: int) -> NDArray[np.int32]:
        """`(P,) int32` of a version, old ones too. Raises ModelError for one that cannot be had."""
        return steps_of(self._ledger, self._models, lineage, number, self.task)

    def _restore(self) -> None:
        newest = self._ledger.last_version(self.number)
        momentum, residual = self._ledger.get("momentum"), self._ledger.get("residual")
        if newest is None or momentum is None or residual is None:
            raise LedgerError(f"{self._ledger.path} lacks a part of lineage {self.number}: restore it from a backup")
        self.version, self.digest, self.level = newest.number, newest.digest, newest.level
        self.steps = self._models.load(self.number, newest.number, newest.digest)
        self.scaler = self._ledger.get("scaler")
        self._server = ServerState(momentum=np.frombuffer(momentum, "<f8"), residual=np.frombuffer(residual, "<f8"))
        for loss in self._ledger.losses(self.number):
            self._course = self._course.after(loss)
        log.info("resumed lineage %d at version %d", self.number, self.version)

    @property
    def has_scaling(self) -> bool:
        """Whether features can be used: their scaling is learnt, or none is wanted."""
        return self.scaler is not None or self.task.windowing.scaling == "none"

    @property
    def parameters(self) -> NDArray[np.float32]:
        """The model in force, `(P,) float32`."""
        return to_parameters(self.steps, self.task.grid_bits)

    @property
    def newest_delta(self) -> bytes:
        """What was broadcast for the version in force; empty at the start."""
        newest = self._ledger.last_version(self.number)
        return b"" if newest is None else newest.delta

    def decode(self, payload: bytes, level: int, base: int) -> Decoded:
        """The payload of an update to a round of this level and base version. Raises PayloadError.

        An older base than the version in force is made again from what each version since has added; LedgerError where
        that does not lead to it.
        """
        spec = spec_of(self.task.up.at(level), UPLINK_STEP)
        return decode(payload, self.task.model.parameters, spec, contexts=self._contexts(spec, base))

    def learn_scaler(self, round_id: int) -> None:
        """From the statistics that the round's gateways told."""
        told = [
            statistics_of(answer.samples, answer.payload)
            for answer in self._ledger.answers(round_id)
            if answer.kind == "statistics" and answer.payload is not None
        ]
        mean, scale = scaling.combine(told)
        self.scaler = mean.astype("<f4").tobytes() + scale.astype("<f4").tobytes()
        self._ledger.put("scaler", self.scaler)
        self._ledger.erase_payloads()

    def apply(
        self,
        mean: AggregationRule,
        round_id: int,
        *,
        loss: float,
        momentum: float,
        learning_rate: float,
        now: float,
    ) -> int:
        """Make the next version from a round's mean and training loss; returns its number.

        What it contains is no longer owed. The loss sets the level, of this version's delta already.
        """
        self._course = self._course.after(loss)
        if self._course.level != self.level:
            log.info("training loss %.4f: from level %d to %d", loss, self.level, self._course.level)
        self.level = self._course.level
        codec = self.task.down.at(self.level)
        spec = spec_of(codec, self.task.grid_step)
        made = server_step(
            mean.mean(),
            self._server,
            spec,
            momentum=momentum,
            learning_rate=learning_rate,
            gain=codec.gain,
            contexts=self._contexts(spec, self.version),
        )
        parent = self.digest
        self.steps = self.steps + made.steps
        self.digest = model_digest(self.steps)
        self.version += 1
        self._server = made.state
        self._models.save(self.number, self.version, self.steps)
        steps = encode_integers(made.steps)
        self._save_version(parent=parent, round_id=round_id, delta=made.delta, steps=steps, now=now)
        self._save_server()
        self._ledger.erase_payloads()
        return self.version

    def prune(self) -> None:
        """Delete old versions' files, but for released ones; and deltas that are too old to be asked for."""
        released = {r.version for r in self._ledger.releases() if r.lineage == self.number}
        self._models.prune(self.number, self.version, pinned=released)
        self._ledger.empty_deltas(self.number, self.version - LONGEST_CHAIN - self.task.staleness)

    def route(self, have: int) -> Route:
        """The cheapest lossless way from version `have` to the newest; a negative one knows nothing of this line."""
        missed: list[Version] = []
        if 0 <= have < self.version and self.version - have <= LONGEST_CHAIN:
            missed = self._ledger.versions(self.number, after=have)
            if not all(version.delta for version in missed):
                missed = []  # the first version after the plant went back has none
        length = self.task.model.parameters
        return catch_up(
            have,
            [(version.level, version.delta) for version in missed],
            (decode_integers(version.steps, length) for version in missed),
            self.steps,
            self.initial,
        )

    def keyframe(self, number: int) -> bytes:
        """A version of this line, as its difference to version 0. Raises ModelError."""
        return encode_integers(self.model(self.number, number) - self.initial)

    def digest_of(self, number: int) -> bytes:
        """Raises ModelError for a version that never was."""
        version = self._ledger.version(self.number, number)
        if version is None:
            raise ModelError(f"there is no version {number} in lineage {self.number} of task {self.task.name!r}")
        return version.digest

    def _contexts(self, spec: CodecSpec, version: int) -> Contexts | None:
        """Of a version; a dense delta has no use for them."""
        if spec.density == 1:
            return None
        digest = self.digest if version == self.version else self.digest_of(version)
        contexts = self._ranked.pop(digest, None)
        if contexts is None:
            steps = self.steps if version == self.version else self.model(self.number, version)
            contexts = Contexts.of(steps - self.initial, self.task.model.shapes)
        self._ranked[digest] = contexts
        while len(self._ranked) > RANKED_VERSIONS:
            del self._ranked[next(iter(self._ranked))]
        return contexts

    def _save_version(self, *, parent: bytes, round_id: int | None, delta: bytes, steps: bytes, now: float) -> None:
        self._ledger.save_version(
            Version(
                lineage=self.number,
                number=self.version,
                digest=self.digest,
                parent=parent,
                round=round_id,
                created_at=now,
                delta=delta,
                steps=steps,
                level=self.level,
            )
        )

    def _save_server(self) -> None:
        self._ledger.put("momentum", self._server.momentum.astype("<f8").tobytes())
        self._ledger.put("residual", self._server.residual.astype("<f8").tobytes())


def steps_of(ledger: Book, models: ModelStore, lineage: int, number: int, task: Task) -> NDArray[np.int32]:
    """`(P,) int32` of a version, old ones too; nothing is written. Raises ModelError for one that cannot be had.

    From its file where that is still kept, else by taking back from the lineage's newest what came after it: that
    needs no more than the whole numbers of the versions between, which are kept for LONGEST_CHAIN versions.
    """
    wanted, newest = ledger.version(lineage, number), ledger.last_version(lineage)
    if wanted is None or newest is None:
        raise ModelError(f"there is no version {number} in lineage {lineage} of task {task.name!r}")
    if models.has(lineage, number):
        return models.load(lineage, number, wanted.digest)
    steps = models.load(lineage, newest.number, newest.digest)
    for version in ledger.versions(lineage, after=number):
        if not version.steps and version.digest != version.parent:
            raise ModelError(
                f"version {number} of lineage {lineage} cannot be had any more: the last {LONGEST_CHAIN} versions"
                " can, and those that were released"
            )
        if version.steps:
            steps = steps - decode_integers(version.steps, task.model.parameters)
    if model_digest(steps) != wanted.digest:
        raise ModelError(f"version {number} of lineage {lineage} cannot be made again: restore a backup")
    return steps


def spec_of(codec: Codec, step: float) -> CodecSpec:
    return CodecSpec(bits=codec.bits, density=codec.density, step=step)


def statistics_of(count: int, data: bytes) -> tuple[int, NDArray[np.float64], NDArray[np.float64]]:
    """Means, then M2s, as they travel and are kept. Raises ValueError for a length that does not divide."""
    mean, m2 = np.split(np.frombuffer(data, dtype="<f4").astype(np.float64), 2)
    return count, mean, m2
