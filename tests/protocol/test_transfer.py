"""A blob arrives whole from chunks in any order, or the receiver says why not; nobody makes it reserve memory."""

from __future__ import annotations

import hashlib
import random
import tracemalloc

import pytest
from fedmq_protocol.messages import MAX_BLOB, MAX_MISSING, BlobRef, Chunk
from fedmq_protocol.transfer import Incoming, TransferError, chunks, refer
from hypothesis import given, settings
from hypothesis import strategies as st

BLOB = random.Random(1).randbytes(1_000)
REF = refer(BLOB, 256)


def pieces(blob: bytes = BLOB, chunk_bytes: int = 256) -> list[Chunk]:
    return list(chunks(blob, refer(blob, chunk_bytes)))


def receive(incoming: Incoming, coming: list[Chunk]) -> bytes:
    for chunk in coming:
        incoming.add(chunk)
    return incoming.blob()


@settings(max_examples=150, deadline=None)
@given(blob=st.binary(min_size=1, max_size=6_000), chunk_bytes=st.integers(256, 2_000), seed=st.integers(0, 2**32))
def test_chunks_in_any_order_and_more_than_once_make_the_same_blob(blob: bytes, chunk_bytes: int, seed: int) -> None:
    rng = random.Random(seed)
    ref = refer(blob, chunk_bytes)
    sent = list(chunks(blob, ref))
    assert b"".join(chunk.data for chunk in sent) == blob
    coming = sent + rng.choices(sent, k=rng.randrange(5))
    rng.shuffle(coming)
    incoming = Incoming(ref, max_bytes=len(blob))
    seen: set[int] = set()
    for chunk in coming:
        seen.add(chunk.index)
        whole = len(seen) == len(sent)
        assert incoming.add(chunk) is whole
        assert incoming.complete is whole
        assert incoming.missing() == tuple(i for i in range(len(sent)) if i not in seen)
    assert incoming.blob() == blob


@settings(max_examples=100, deadline=None)
@given(length=st.integers(1, 20_000), lost=st.floats(0, 1), seed=st.integers(0, 2**32))
def test_what_is_missing_is_asked_for_until_the_blob_is_whole(length: int, lost: float, seed: int) -> None:
    rng = random.Random(seed)
    blob = rng.randbytes(length)
    ref = refer(blob, 256)
    incoming = Incoming(ref, max_bytes=length)
    for chunk in chunks(blob, ref):
        if rng.random() >= lost:
            incoming.add(chunk)
    asked = 0
    while missing := incoming.missing():
        asked += 1
        answer = list(chunks(blob, ref, missing))
        assert [chunk.index for chunk in answer] == list(missing)
        # At least one gets through, so that this comes to an end.
        for chunk in answer[: rng.randrange(1, len(answer) + 1)]:
            incoming.add(chunk)
    assert asked <= -(-length // 256)
    assert incoming.blob() == blob


def test_the_list_of_missing_chunks_is_as_long_as_a_message_may_be() -> None:
    ref = BlobRef(digest=bytes(32), length=256 * 2_000, chunk_bytes=256)
    assert Incoming(ref, max_bytes=ref.length).missing() == tuple(range(MAX_MISSING))


def test_a_blob_longer_than_expected_is_refused_before_a_chunk_is_taken() -> None:
    with pytest.raises(TransferError, match="1000 bytes, at most 999 expected"):
        Incoming(REF, max_bytes=999)
    assert Incoming(REF, max_bytes=1_000).missing() == (0, 1, 2, 3)


def test_a_reference_reserves_no_memory_whatever_it_claims() -> None:
    tracemalloc.start()
    incoming = Incoming(BlobRef(digest=bytes(32), length=MAX_BLOB, chunk_bytes=256), max_bytes=MAX_BLOB)
    incoming.missing()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000


@pytest.mark.parametrize(("index", "size"), [(0, 255), (0, 257), (3, 256), (3, 231), (3, 233), (4, 1), (1 << 24, 256)])
def test_a_chunk_of_the_wrong_size_or_beyond_the_end_is_refused_and_changes_nothing(index: int, size: int) -> None:
    incoming = Incoming(REF, max_bytes=1_000)
    for chunk in pieces()[:2]:
        incoming.add(chunk)
    with pytest.raises(TransferError, match=f"chunk {index} of 4 has {size} bytes"):
        incoming.add(Chunk(transfer=incoming.transfer, index=index, data=bytes(size)))
    with pytest.raises(TransferError):
        incoming.add(Chunk(transfer=incoming.transfer, index=-1, data=bytes(256)))
    assert incoming.missing() == (2, 3)
    for chunk in pieces()[2:]:
        incoming.add(chunk)
    assert incoming.blob() == BLOB


def test_a_chunk_of_another_transfer_is_passed_over() -> None:
    incoming = Incoming(REF, max_bytes=1_000)
    for chunk in pieces(bytes(1_000)):
        assert not incoming.add(chunk)
    assert incoming.missing() == (0, 1, 2, 3)


def test_a_repeat_with_other_bytes_does_not_replace_what_came_first() -> None:
    incoming = Incoming(REF, max_bytes=1_000)
    for chunk in pieces():
        incoming.add(chunk)
        incoming.add(Chunk(transfer=chunk.transfer, index=chunk.index, data=bytes(len(chunk.data))))
    assert incoming.blob() == BLOB


def test_a_digest_that_lies_is_noticed_and_everything_must_come_again() -> None:
    incoming = Incoming(REF, max_bytes=1_000)
    good = pieces()
    for chunk in [Chunk(transfer=incoming.transfer, index=0, data=bytes(256)), *good[1:]]:
        incoming.add(chunk)
    with pytest.raises(TransferError, match="digest"):
        incoming.blob()
    assert incoming.missing() == (0, 1, 2, 3)
    for chunk in good:
        incoming.add(chunk)
    assert incoming.blob() == BLOB


def test_the_short_digest_names_the_transfer_and_the_full_one_proves_it() -> None:
    lie = BlobRef(digest=REF.digest[:8] + bytes(24), length=1_000, chunk_bytes=256)
    incoming = Incoming(lie, max_bytes=1_000)
    for chunk in pieces():
        incoming.add(chunk)
    with pytest.raises(TransferError, match="digest"):
        incoming.blob()
    assert REF.digest == hashlib.sha256(BLOB).digest()


def test_a_blob_with_gaps_is_not_given_out() -> None:
    incoming = Incoming(REF, max_bytes=1_000)
    incoming.add(pieces()[1])
    with pytest.raises(TransferError, match="1 of 4"):
        incoming.blob()


def test_a_length_that_lies_never_completes_with_the_chunks_of_the_true_one() -> None:
    for length in (999, 1_001, 768, 1_024, 1_025):
        incoming = Incoming(BlobRef(digest=REF.digest, length=length, chunk_bytes=256), max_bytes=2_000)
        with pytest.raises(TransferError):
            receive(incoming, pieces())


def test_what_is_asked_for_beyond_either_end_is_passed_over() -> None:
    assert [chunk.index for chunk in chunks(BLOB, REF, [3, 4, -1, 1 << 24, 0])] == [3, 0]


def test_a_chunk_asked_for_many_times_in_one_message_is_sent_once() -> None:
    assert [chunk.index for chunk in chunks(BLOB, REF, [2] * MAX_MISSING)] == [2]
