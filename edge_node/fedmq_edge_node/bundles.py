"""The bundles of a gateway's tasks: at hand, coming in chunks, or refused with a reason.

Owns when one is asked for, what is done with it before anything trusts it, and where it is kept. A bundle is taken when
its digest is the task's, everything in it was checked, its manifest is what the task says of it, and `prove` has seen
its graphs run. What was refused, then or later, is not asked for again while this process lives: the same bytes come to
the same end.
Whatever a task had before goes on being used until then. Never waits: it is told of what came and of the time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from fedmq_models.bundle import Bundle, BundleError, from_bytes
from fedmq_protocol.messages import AskChunks, BlobRef, Chunk
from fedmq_protocol.task import MAX_BUNDLE_BYTES, ModelSpec
from fedmq_protocol.transfer import BUNDLE_CHUNK_BYTES, TransferError

from fedmq_edge_node.transfers import CHUNK_PAUSE_SECONDS, Downloads

__all__ = ["Shelf"]

log = logging.getLogger("fedmq.gateway")

ASK_AGAIN_SECONDS = 60.0
"""After a transfer that nobody answered."""


class Shelf:
    """`get`, `put` and `drop` keep bytes by a name, durably. `prove` raises BundleError for graphs that do not run."""

    def __init__(
        self,
        *,
        get: Callable[[str], bytes | None],
        put: Callable[[str, bytes], None],
        drop: Callable[[str], None],
        prove: Callable[[Bundle], None] = lambda bundle: None,
    ) -> None:
        self._get, self._put, self._drop = get, put, drop
        self._prove = prove
        self._bundles: dict[bytes, Bundle] = {}
        self._refused: dict[bytes, str] = {}
        self._coming: Downloads[ModelSpec] = Downloads()

    def find(self, model: ModelSpec) -> Bundle | None:
        """The bundle of a `graph` where it is at hand; None for other models, too."""
        if not model.bundle:
            return None
        if model.bundle not in self._bundles:
            data = self._get(_key(model))
            if data is None or model.bundle in self._refused:
                return None
            try:
                self._bundles[model.bundle] = _read(data, model)
            except BundleError as error:
                self.refuse(model, error)
                return None
        return self._bundles[model.bundle]

    def refusal(self, model: ModelSpec) -> str | None:
        """Why it was refused; None where it was not."""
        return self._refused.get(model.bundle)

    def refuse(self, model: ModelSpec, error: Exception) -> None:
        """Nothing is trained with it any more; a version of it that is in service goes on."""
        self._refused[model.bundle] = str(error)
        log.error("bundle %s is refused: %s", model.bundle.hex()[:16], error)

    def fetch(self, model: ModelSpec, now: float, received: int, delay_seconds: float) -> None:
        """Ask for a bundle that is not at hand, after `delay_seconds`; one that is coming in already goes on."""
        ref = BlobRef(digest=model.bundle, length=model.bundle_bytes, chunk_bytes=BUNDLE_CHUNK_BYTES)
        # Nobody has sent it before it is asked for.
        delay = delay_seconds - CHUNK_PAUSE_SECONDS
        try:
            self._coming.begin(
                model.bundle.hex(), model, ref, MAX_BUNDLE_BYTES, now=now, received=received, delay_seconds=delay
            )
        except TransferError as error:
            self.refuse(model, error)

    def add(self, chunk: Chunk, now: float, received: int) -> bool:
        """Take a piece; True where that decided about a bundle: it is at hand now, or refused."""
        try:
            whole = self._coming.add(chunk, now, received)
        except TransferError as error:
            log.warning("a bundle: %s", error)
            return False
        if whole is None:
            return False
        data, uses = whole
        for model in uses.values():
            try:
                bundle = _read(data, model)
                self._prove(bundle)
            except BundleError as error:
                self.refuse(model, error)
                continue
            self._put(_key(model), data)
            self._bundles[model.bundle] = bundle
            log.info("bundle %s is at hand: %d bytes", model.bundle.hex()[:16], len(data))
        return True

    def keep(self, models: Iterable[ModelSpec]) -> None:
        """Drop what none of these needs."""
        needed = {model.bundle for model in models}
        for digest in set(self._bundles) - needed:
            self._drop(f"bundle {digest.hex()}")
            del self._bundles[digest]

    @property
    def idle(self) -> bool:
        """Whether nothing is coming in."""
        return self._coming.idle

    def ask(self, now: float, received: int) -> list[AskChunks]:
        """The questions that are due."""
        return [AskChunks(transfer=key, missing=missing) for key, missing in self._coming.due(now, received)]

    def give_up(self) -> bool:
        """True where a transfer was given up, because nobody answers."""
        return bool(self._coming.give_up())

    def resume(self, now: float, received: int, delay_seconds: float) -> None:
        """The connection is new."""
        self._coming.resume(now, received, delay_seconds)

    def due_at(self) -> float:
        return min(self._coming.due_at(), default=float("inf"))


def _key(model: ModelSpec) -> str:
    return f"bundle {model.bundle.hex()}"


def _read(data: bytes, model: ModelSpec) -> Bundle:
    bundle = from_bytes(data)
    said = bundle.model(model.bundle, model.bundle_bytes)
    if said != model:
        raise BundleError(
            f"the task says {model.sizes} inputs and outputs, {model.parameters:,} parameters and {model.loss}, the "
            f"bundle {said.sizes}, {said.parameters:,} and {said.loss}"
        )
    return bundle
