"""What has come stays, and no chunk is asked for or sent more often than the link makes necessary."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest
from fedmq_edge_node.transfers import (
    ASKS_WITHOUT_A_CHUNK,
    CHUNK_PAUSE_SECONDS,
    LONGEST_PAUSE_SECONDS,
    UPLINK_CHUNK_BYTES,
    WINDOW_FIRST,
    WINDOW_MOST,
    Downloads,
    Fetch,
    Upload,
)
from fedmq_protocol.messages import BlobRef
from fedmq_protocol.transfer import Incoming, TransferError, chunks, refer
from hypothesis import given
from hypothesis import strategies as st

CHUNK = 1024
BLOB = Random(0).randbytes(10 * CHUNK - 100)
REF = refer(BLOB, CHUNK)
PIECES = list(chunks(BLOB, REF))


def fetch(now: float = 0.0) -> Fetch:
    return Fetch(REF, 1 << 20, now=now, received=0, delay_seconds=0.0)


# --- coming in -------------------------------------------------------------------------------------------------------


def test_only_what_is_missing_is_asked_for_and_only_after_a_pause() -> None:
    transfer = fetch()
    for piece in PIECES[:4] + PIECES[6:]:
        assert transfer.add(piece, 0.1, 0) is None
    assert transfer.due(0.1 + CHUNK_PAUSE_SECONDS / 2, 0) == ()
    assert transfer.due(0.1 + CHUNK_PAUSE_SECONDS, 0) == (4, 5)
    assert transfer.add(PIECES[4], 3.0, 0) is None
    assert transfer.add(PIECES[5], 3.0, 0) == BLOB


def test_a_blob_that_is_too_long_is_refused() -> None:
    with pytest.raises(TransferError):
        Fetch(REF, len(BLOB) - 1, now=0.0, received=0, delay_seconds=0.0)


def test_on_a_slow_link_nothing_is_asked_for_that_is_on_its_way() -> None:
    """A chunk takes 16 s at 2 kB/s; its bytes come all the while."""
    blob = Random(2).randbytes(320 * CHUNK)
    ref = refer(blob, 32 * CHUNK)
    transfer = Fetch(ref, 1 << 20, now=0.0, received=0, delay_seconds=0.0)
    now, received = 0.0, 0
    for piece in list(chunks(blob, ref))[:-1]:
        for _ in range(160):
            now += 0.1
            received += len(piece.data) // 160
            assert transfer.due(now, received) == ()
        assert transfer.add(piece, now, received) is None
    # The pause has grown with what a chunk took, for links whose bytes cannot be seen coming.
    assert transfer.due(now + 120.0, received) == ()
    assert transfer.due(now + 130.0, received) == (9,)


def test_other_messages_that_move_the_socket_do_not_keep_a_transfer_silent_for_ever() -> None:
    transfer, now, received = fetch(), 0.0, 0
    while not (missing := transfer.due(now, received)):
        now += 1.0
        received += 300
        assert now < 60.0
    assert missing == tuple(range(10))


def test_pauses_grow_while_nothing_comes_and_then_the_transfer_is_given_up() -> None:
    transfer, asked = fetch(), []
    now = 0.0
    while not transfer.stalled:
        now = transfer.at
        if transfer.due(now, 0):
            asked.append(now)
    pauses = [later - sooner for sooner, later in pairwise(asked)]
    assert len(asked) == ASKS_WITHOUT_A_CHUNK
    assert pauses == sorted(pauses)
    assert pauses[-1] > pauses[0]
    assert max(pauses) <= LONGEST_PAUSE_SECONDS


def test_a_transfer_that_moves_is_not_given_up() -> None:
    transfer, now = fetch(), 0.0
    for piece in PIECES[:-1]:
        now = transfer.at
        assert transfer.due(now, 0)
        assert not transfer.stalled
        transfer.add(piece, now + 0.1, 0)


def test_on_a_new_connection_what_has_come_stays_and_the_broker_may_first_bring_what_it_kept() -> None:
    transfer = fetch()
    for piece in PIECES[:7]:
        transfer.add(piece, 0.0, 0)
    transfer.resume(1000.0, 5000, 0.0)
    assert transfer.due(1000.0, 5000) == ()
    assert transfer.due(1000.0 + CHUNK_PAUSE_SECONDS, 5000) == (7, 8, 9)


# --- going out -------------------------------------------------------------------------------------------------------

PAYLOAD = Random(1).randbytes(100_000)
COUNT = -(-len(PAYLOAD) // UPLINK_CHUNK_BYTES)


def taken(upload: Upload, outstanding: int) -> list[int]:
    indexes = []
    while (chunk := upload.take(outstanding)) is not None:
        indexes.append(chunk.index)
        outstanding += 1
    return indexes


def test_only_few_chunks_are_under_way_at_a_time_on_a_slow_link() -> None:
    upload = Upload(PAYLOAD)
    upload.want(None, 0)
    assert taken(upload, 0) == [0, 1]
    assert taken(upload, WINDOW_FIRST) == []
    assert taken(upload, WINDOW_FIRST - 1) == [2]
    assert upload.waiting


def test_a_link_that_carries_the_whole_window_between_two_looks_gets_a_wider_one() -> None:
    upload = Upload(PAYLOAD)
    upload.want(None, 0)
    sizes = []
    while upload.waiting:
        sizes.append(len(taken(upload, 0)))
    assert sizes[:3] == [2, 4, 7]
    assert max(sizes) <= WINDOW_MOST
    assert sum(sizes) == COUNT


def test_what_waits_or_is_under_way_is_not_sent_twice_because_it_is_missed() -> None:
    upload = Upload(PAYLOAD)
    upload.want(None, 0)
    sent = taken(upload, 0)
    upload.want(range(COUNT), outstanding=2)
    sent += taken(upload, 1) + taken(upload, 0) + taken(upload, 0) + taken(upload, 0)
    assert sorted(sent) == list(range(COUNT))
    upload.want((3, 3, COUNT, 1 << 20), outstanding=0)
    assert taken(upload, 0) == [3]


def test_after_a_cut_only_what_is_missed_goes_out() -> None:
    upload = Upload(PAYLOAD)
    upload.want(None, 0)
    taken(upload, 0)
    upload.interrupt()
    assert not upload.waiting
    upload.want((1, 5), outstanding=0)
    assert taken(upload, 0) == [1, 5]


@given(seed=st.integers(0, 1000), loss=st.floats(0.0, 0.6))
def test_over_any_loss_a_payload_arrives_whole_and_each_chunk_goes_only_as_often_as_it_was_lost(
    seed: int, loss: float
) -> None:
    rng, upload = Random(seed), Upload(PAYLOAD)
    incoming = Incoming(upload.ref, len(PAYLOAD))
    sent, lost = [0] * COUNT, [0] * COUNT
    upload.want(None, 0)
    while not incoming.complete:
        if not upload.waiting:
            upload.want(incoming.missing(), 0)
        chunk = upload.take(0)
        assert chunk is not None
        sent[chunk.index] += 1
        if rng.random() < loss:
            lost[chunk.index] += 1
        else:
            incoming.add(chunk)
    assert incoming.blob() == PAYLOAD
    assert sent == [1 + count for count in lost]


# --- several at once -------------------------------------------------------------------------------------------------

OTHER = Random(3).randbytes(3 * CHUNK)
OTHER_REF = refer(OTHER, CHUNK)


def begin(downloads: Downloads[str], kind: str, use: str, ref: BlobRef = REF) -> None:
    downloads.begin(kind, use, ref, 1 << 20, now=0.0, received=0, delay_seconds=0.0)


def test_a_blob_may_serve_two_purposes_and_comes_once() -> None:
    downloads: Downloads[str] = Downloads()
    begin(downloads, "catch-up", "one")
    begin(downloads, "release", "two")
    assert [missing for _, missing in downloads.due(5.0, 0)] == [tuple(range(10))]
    for piece in PIECES[:-1]:
        assert downloads.add(piece, 5.0, 0) is None
    assert downloads.add(PIECES[-1], 5.0, 0) == (BLOB, {"catch-up": "one", "release": "two"})
    assert not downloads.under_way("catch-up")
    assert downloads.add(PIECES[-1], 5.0, 0) is None


def test_what_has_begun_goes_on_and_what_has_not_makes_room() -> None:
    downloads: Downloads[str] = Downloads()
    begin(downloads, "delta", "old")
    begin(downloads, "delta", "new", OTHER_REF)
    assert [key for key, _ in downloads.due(5.0, 0)] == [OTHER_REF.digest[:8]]
    downloads.add(next(chunks(OTHER, OTHER_REF)), 5.0, 0)
    begin(downloads, "delta", "newest", REF)
    begin(downloads, "release", "another kind", REF)
    for piece in chunks(OTHER, OTHER_REF):
        whole = downloads.add(piece, 6.0, 0)
    assert whole == (OTHER, {"delta": "new"})
    assert downloads.under_way("release")
    assert not downloads.under_way("delta")


def test_what_has_stalled_is_dropped_and_told() -> None:
    downloads: Downloads[str] = Downloads()
    begin(downloads, "delta", "old")
    asked = 0
    for now in range(200):
        asked += len(list(downloads.due(float(now), 0)))
        for uses in downloads.give_up():
            assert uses == {"delta": "old"}
            assert asked == ASKS_WITHOUT_A_CHUNK
    assert not downloads.under_way("delta")
    assert list(downloads.due_at()) == []
