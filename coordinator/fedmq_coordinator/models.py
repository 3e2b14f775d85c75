"""Model versions on disk, and the cheapest way to bring a gateway from an older one to the newest.

A version is a file of little-endian int32 grid steps, written beside its name, fsynced, renamed, and checked
against the ledger's digest whenever it is read. All ways of catching up are lossless: they end on the same integers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from fedmq_compression.pipeline import encode_integers
from fedmq_protocol.messages import CatchUpKind
from fedmq_protocol.state import PlaceError, check_place, make_folder, open_state
from fedmq_protocol.task import model_digest
from numpy.typing import NDArray

__all__ = ["ModelError", "ModelStore", "Route", "catch_up"]


class ModelError(ValueError):
    """A stored version is missing, damaged or not the one that the ledger names."""


class ModelStore:
    """The folder of versions. `keep` newest files of a lineage stay, and those that are pinned."""

    def __init__(
        self, directory: Path, *, keep: int = 5, crash_point: Callable[[str], None] = lambda name: None
    ) -> None:
        """Raises ModelError where the folder cannot be made."""
        self._directory = directory
        self._keep = keep
        self.crash_point = crash_point
        try:
            make_folder(directory)
        except PlaceError as error:
            raise ModelError(str(error)) from error
        except OSError as error:
            raise _unwritten(directory, error) from error

    def path(self, lineage: int, number: int) -> Path:
        return self._directory / f"model-{lineage}-{number}.i32"

    def save(self, lineage: int, number: int, steps: NDArray[np.int32]) -> None:
        """Durable when it returns; saving the same version again after a crash is harmless.

        Raises ModelError where the disk does not take it; the version is then as it was, absent or whole.
        """
        path = self.path(lineage, number)
        partial = path.with_suffix(".partial")
        self.crash_point("before model file")
        try:
            check_place(path)
            with os.fdopen(open_state(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "wb") as file:
                file.write(steps.astype("<i4").tobytes())
                file.flush()
                os.fsync(file.fileno())
            self.crash_point("before model rename")
            partial.replace(path)
            folder = os.open(self._directory, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except PlaceError as error:
            raise ModelError(str(error)) from error
        except OSError as error:
            raise _unwritten(path, error) from error
        self.crash_point("after model file")

    def has(self, lineage: int, number: int) -> bool:
        return self.path(lineage, number).is_file()

    def load(self, lineage: int, number: int, digest: bytes) -> NDArray[np.int32]:
        """`(P,) int32`. Raises ModelError when the file is absent or its digest is not the ledger's."""
        path = self.path(lineage, number)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ModelError(
                f"version {number} of lineage {lineage} cannot be read: {error}; restore it from a backup"
            ) from error
        steps = np.frombuffer(data, dtype="<i4").astype(np.int32) if len(data) % 4 == 0 else np.zeros(0, np.int32)
        if model_digest(steps) != digest:
            raise ModelError(f"{path} is not version {number} as the ledger has it: restore it from a backup")
        return steps

    def prune(self, lineage: int, newest: int, *, pinned: Set[int] = frozenset()) -> None:
        """Delete what is older than the newest few and not pinned, and what crashes left half written."""
        keep = {self.path(lineage, number) for number in {*range(newest - self._keep + 1, newest + 1), *pinned}}
        for file in [*self._directory.glob(f"model-{lineage}-*.i32"), *self._directory.glob("*.partial")]:
            if file not in keep:
                file.unlink()


def _unwritten(path: Path, error: OSError) -> ModelError:
    return ModelError(
        f"cannot write {path}: {error.strerror or error}; see to room and rights on its disk, then start again"
    )


@dataclass(frozen=True, kw_only=True)
class Route:
    kind: CatchUpKind
    start: int
    body: bytes


def catch_up(
    have: int,
    deltas: Sequence[tuple[int, bytes]],
    steps: Iterable[NDArray[np.int32]],
    current: NDArray[np.int32],
    initial: NDArray[np.int32],
) -> Route:
    """The cheapest way from version `have` to the newest, by measured size.

    `deltas` is the level and the delta broadcast for each version after `have`, `steps` what each added, `(P,) int32`.
    Where they are empty, because the gap is unknown or too long to be worth a look, only the keyframe remains.
    """
    routes = [Route(kind=CatchUpKind.KEYFRAME, start=0, body=encode_integers(current - initial))]
    if deltas:
        merged = np.zeros_like(current)
        for added in steps:
            merged += added
        routes.append(Route(kind=CatchUpKind.CHAIN, start=have, body=msgspec.msgpack.encode(list(deltas))))
        routes.append(Route(kind=CatchUpKind.MERGED, start=have, body=encode_integers(merged)))
    return min(routes, key=lambda route: len(route.body))
