"""A gateway's folder of recordings as it changes: what is at hand, and whether something is new.

What a recording is and how it becomes windows is in `samples`.
"""

from __future__ import annotations

from pathlib import Path

from fedmq_protocol.messages import SensorHealth
from fedmq_protocol.task import Windowing

from fedmq_edge_node.samples import Preparation, Samples, list_recordings, load, signal_lengths

__all__ = ["Folder"]


class Folder:
    """Raises SampleError where there is nothing to read, so that a wrong path is told at the start."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._seen = self._look()

    def signal_samples(self) -> dict[str, int]:
        """Samples of signal by label, from the recordings' heads: no task is needed to count them."""
        return signal_lengths(self._directory)

    def load(
        self, windowing: Windowing, classes: tuple[str, ...], healthy: str, preparation: Preparation | None = None
    ) -> Samples:
        """`healthy` is the label that an autoencoder trains on; `preparation` makes the features of the set `bundle`.

        Raises SampleError.
        """
        self._seen = self._look()
        return load(self._directory, windowing, classes, healthy, preparation)

    def changed(self) -> bool:
        """Whether a recording came, went or grew since the last `load`."""
        return self._look() != self._seen

    def silent(self) -> str:
        """Nothing is expected to come into a folder."""
        return ""

    def health(self) -> tuple[SensorHealth, ...]:
        return ()

    def _look(self) -> tuple[tuple[str, int, int], ...]:
        return tuple((str(p), (s := p.stat()).st_size, s.st_mtime_ns) for p in list_recordings(self._directory))
