"""A blob in chunks: what to send, what has come, what to ask for again.

Pure: whoever sends and receives lives in the services. QoS 1 and the connection's window of messages in flight pace
the chunks; this module only cuts, collects and checks. Chunks may come twice, late and in any order. Nothing larger
than the receiver's own bound is ever reserved, whatever the reference claims.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

from fedmq_protocol.messages import MAX_MISSING, BlobRef, Chunk
from fedmq_protocol.task import short

__all__ = ["BUNDLE_CHUNK_BYTES", "Incoming", "TransferError", "chunks", "refer"]


BUNDLE_CHUNK_BYTES = 8 * 1024
"""Of a task's bundle, whatever the coordinator's chunks are: a gateway must name them before it has heard of any."""


class TransferError(ValueError):
    """A blob that cannot be taken: longer than allowed, pieces of the wrong size, another digest than promised."""


def refer(blob: bytes, chunk_bytes: int) -> BlobRef:
    """What stands in a message for `blob`."""
    return BlobRef(digest=hashlib.sha256(blob).digest(), length=len(blob), chunk_bytes=chunk_bytes)


def chunks(blob: bytes, ref: BlobRef, wanted: Iterable[int] | None = None) -> Iterator[Chunk]:
    """All chunks in order, or those that were asked for, each once; a number that there is not is passed over."""
    last = -(-ref.length // ref.chunk_bytes)
    # A number may come many times in a request: it must not turn a small message into megabytes.
    for index in range(last) if wanted is None else dict.fromkeys(wanted):
        if 0 <= index < last:
            data = blob[index * ref.chunk_bytes : (index + 1) * ref.chunk_bytes]
            yield Chunk(transfer=short(ref.digest), index=index, data=data)


class Incoming:
    """Collects one blob. `max_bytes` is what the receiver expects at most; raises TransferError beyond."""

    def __init__(self, ref: BlobRef, max_bytes: int) -> None:
        if ref.length > max_bytes:
            raise TransferError(f"a blob of {ref.length} bytes, at most {max_bytes} expected")
        self.ref = ref
        self.transfer = short(ref.digest)
        self._count = -(-ref.length // ref.chunk_bytes)
        self._pieces: dict[int, bytes] = {}

    def add(self, chunk: Chunk) -> bool:
        """Take a piece; True once all are here. A repeat changes nothing; raises TransferError for a wrong size."""
        if chunk.transfer != self.transfer:
            return self.complete
        expected = min(self.ref.chunk_bytes, self.ref.length - chunk.index * self.ref.chunk_bytes)
        if not 0 <= chunk.index < self._count or len(chunk.data) != expected:
            raise TransferError(f"chunk {chunk.index} of {self._count} has {len(chunk.data)} bytes")
        self._pieces.setdefault(chunk.index, chunk.data)
        return self.complete

    @property
    def complete(self) -> bool:
        return len(self._pieces) == self._count

    def missing(self) -> tuple[int, ...]:
        """The first chunks that have not come, at most as many as one message may ask for."""
        absent = (i for i in range(self._count) if i not in self._pieces)
        return tuple(i for _, i in zip(range(MAX_MISSING), absent, strict=False))

    def blob(self) -> bytes:
        """The whole; raises TransferError when it is not what the digest promised (and all must come again)."""
        if not self.complete:
            raise TransferError(f"{len(self._pieces)} of {self._count} chunks are here")
        whole = b"".join(self._pieces[i] for i in range(self._count))
        if hashlib.sha256(whole).digest() != self.ref.digest:
            self._pieces.clear()
            raise TransferError("the blob's digest is not the one promised")
        return whole
