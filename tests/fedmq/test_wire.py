"""What the observer shows: every byte of every message, also of those that it does not know."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest
from broker_fixtures import PATIENCE_SECONDS, eventually, expect
from fedmq_broker_config.run import LocalBroker
from fedmq_protocol.messages import (
    AskVerdict,
    Assignment,
    Birth,
    BlobRef,
    Chunk,
    Decline,
    Evaluation,
    Held,
    Leave,
    RoundKind,
    RoundPlan,
    Seal,
    SensorHealth,
    Statistics,
    Update,
    Welcome,
    to_bytes,
)
from fedmq_protocol.reasons import Reason
from fedmq_protocol.session import Connected, Connection, MqttSession
from fedmq_protocol.task import Codec, ModelSpec, Task, short
from fedmq_protocol.topics import Channel, Direction, topic
from fedmq_protocol.vitals import ToldVitals
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta, inspect
from processes import Site, environment, fedmq, small_fleet

from fedmq.wire import fields, reading
from fedmq.wire.reading import Seen, Watch
from fedmq.wire.showing import as_json, as_text, summary
from fedmq.wire.tally import Tally

PAGE = Path(__file__).parents[2] / "docs" / "data-flows.md"
PLANT = "plant"
TASK = Task(
    name="bearings",
    model=ModelSpec(kind="softmax", sizes=(22, 4)),
    classes=("a", "b", "c", "d"),
    up=Codec(density=0.25),
    down=Codec(density=0.25),
    initial=b"12345678",
)
BIRTH = Birth(
    nonce=b"n" * 8,
    software="fedmq 1",
    engines=("numpy",),
    signal_samples={"normal": 1000, "inner": 500},
    sent=10,
    received=20,
    held=(Held(lineage=7, version=1, task=b"t" * 8, counter=3),),
    sensors=(SensorHealth(name="x", rate_pct=99, silent_seconds=0),),
)
PLAN = RoundPlan(
    round_id=5, lineage=7, kind=RoundKind.TRAINING, base=1, model=9, closes_after=60, drawn=1, accepted=0, since=1,
    level=0, delta=b"d" * 20,
)  # fmt: skip
WELCOME = Welcome(
    nonce=b"n" * 8, now=1e9, roster=0, spread=1, tasks=(Assignment(lineage=7, counter=0, task=TASK, plan=PLAN),)
)


SAID = [
    ("fl/1/plant/up/gateway-1/status", to_bytes(BIRTH)),
    ("fl/1/plant/down/plan", to_bytes(PLAN)),
    ("fl/1/plant/cmd/gateway-1/welcome", to_bytes(WELCOME)),
    ("fl/1/plant/down/report", b'{"task": "bearings", "round": 3}'),
]


def up(channel: Channel, gateway: str = "gateway-1") -> str:
    return topic(PLANT, Direction.UP, channel, gateway)


def read(watch: Watch, where: str, payload: bytes) -> Seen:
    return watch.read(where, payload, retained=False, at=0.0)


def values(seen: Seen) -> dict[str, Any]:
    return {field.name: field.value for top in seen.fields for field in top.walk()}


def test_the_page_of_data_flows_is_what_is_rendered() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert fields.put_markdown(page) == page, "renew it: fedmq wire fields --write docs/data-flows.md"


@pytest.mark.parametrize("direction", list(Direction))
def test_of_every_field_somebody_has_said_what_it_tells(direction: Direction) -> None:
    keys = {leaf.key for leaf in fields.leaves(direction)}
    assert keys
    assert keys <= fields.ABOUT.keys(), f"expected a line in fedmq/wire/fields.py: {keys - fields.ABOUT.keys()}"


def test_no_words_are_left_of_fields_that_are_gone() -> None:
    known = {leaf.key for direction in Direction for leaf in fields.leaves(direction)}
    assert fields.ABOUT.keys() <= known


def test_a_field_without_words_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(fields.ABOUT, "Update.loss")
    with pytest.raises(ValueError, match=r"Update\.loss"):
        fields.markdown()


@pytest.mark.parametrize(
    ("channel", "message"),
    [
        (Channel.STATUS, BIRTH),
        (Channel.STATUS, Leave(nonce=b"n" * 8, clean=True, sent=1, received=1 << 40)),
        (Channel.ANSWER, Decline(round_id=1, reason=Reason.BATTERY, sent=1, received=2)),
        (Channel.ANSWER, Decline(round_id=1, reason=Reason.CPU, sent=1, received=2, vitals=0xFFFF)),
        (Channel.STATISTICS, Statistics(round_id=1, count=3, mean=b"abcd" * 22, m2=b"abcd" * 22, sent=0, received=0)),
        (Channel.ASK, AskVerdict(round_id=1, counter=2, digest=b"d" * 8)),
        (
            Channel.ANSWER,
            Update(
                round_id=5, base=1, counter=1, payload=b"p" * 300, sent=1, received=2, loss=70_000,
                evaluation=Evaluation(metric=-5, loss=3, windows=12),
            ),
        ),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_every_byte_of_a_message_belongs_to_something(channel: Channel, message: Any) -> None:
    data = to_bytes(message)
    for end, seal in ((b"", Seal.NONE), (b"s" * 64, Seal.SIGNATURE), (b"m" * 8, Seal.MAC)):
        sealed = bytes([data[0] | seal]) + data[1:] + end
        seen = read(Watch(), up(channel), sealed)
        assert (seen.kind, seen.seal, seen.problem) == (type(message).__name__, seal, "")
        assert sum(f.size for f in seen.fields) + seen.overhead + seen.seal_bytes == len(sealed)
        # The envelope, MessagePack's array and the type's number: nothing hides there.
        assert 3 <= seen.overhead <= 5
        assert not seen.unexplained


def test_fields_have_their_names_and_values() -> None:
    seen = read(Watch(), up(Channel.STATUS), to_bytes(BIRTH))
    told = values(seen)
    assert told["software"] == "fedmq 1"
    assert told["signal_samples"] == {"normal": 1000, "inner": 500}
    assert told["nonce"]["bytes"] == 8
    assert (told["lineage"], told["rate_pct"]) == (7, 99)
    assert "software fedmq 1" in as_text(seen)
    reason = read(Watch(), up(Channel.ANSWER), to_bytes(Decline(round_id=1, reason=Reason.BATTERY, sent=1, received=2)))
    assert values(reason)["reason"] == "battery"


def test_battery_and_link_are_put_into_words() -> None:
    told = ToldVitals(battery_pct=42, on_mains=False, link="cellular", metered=True)
    decline = Decline(round_id=1, reason=Reason.CPU, sent=1, received=2, vitals=told.code)
    seen = read(Watch(), up(Channel.ANSWER), to_bytes(decline))
    assert values(seen)["vitals"] == told.code
    assert seen.notes == ("vitals: battery 42 %, not on mains, cellular, metered",)
    birth = read(Watch(), up(Channel.STATUS), to_bytes(msgspec.structs.replace(BIRTH, vitals=0)))
    assert birth.notes == ("vitals: nothing known",)
    assert read(Watch(), up(Channel.STATUS), to_bytes(BIRTH)).notes == (), "it does not tell"


def test_an_update_is_explained_by_the_task_that_a_welcome_brought() -> None:
    watch = Watch()
    update = Update(round_id=5, base=1, counter=1, payload=b"p" * 30, sent=1, received=2, loss=7)
    before = read(watch, up(Channel.ANSWER), to_bytes(update))
    assert "not known" in before.notes[0]
    read(watch, topic(PLANT, Direction.CMD, Channel.WELCOME, "gateway-1"), to_bytes(WELCOME))
    after = read(watch, up(Channel.ANSWER), to_bytes(update))
    assert "coded delta of 92 parameters" in after.notes[0]
    assert "at most 23 of them (25.000%), 1 bit each" in after.notes[0]


def test_a_chunk_is_the_nth_of_what_was_announced() -> None:
    watch = Watch()
    digest = bytes(range(32))
    ref = BlobRef(digest=digest, length=1000, chunk_bytes=256)
    chunk = to_bytes(Chunk(transfer=short(digest), index=1, data=b"x" * 256))
    assert "was not seen" in read(watch, up(Channel.CHUNK), chunk).notes[0]
    update = Update(round_id=5, base=1, counter=1, payload=ref, sent=1, received=2, loss=7)
    read(watch, up(Channel.ANSWER), to_bytes(update))
    assert read(watch, up(Channel.CHUNK), chunk).notes == ("chunk 2 of 4 of the update of gateway-1 to round 5",)


def test_elements_behind_those_of_a_type_are_shown_and_marked() -> None:
    """A decoder passes over them; whoever would carry something out in them must not be able to."""
    data = to_bytes(Decline(round_id=1, reason=Reason.CPU, sent=1, received=2))
    body = msgspec.msgpack.decode(data[1:])
    empty = [None] * (1 + len(Decline.__struct_fields__) - len(body))
    smuggled = data[:1] + msgspec.msgpack.encode([*body, *empty, b"signal" * 50])
    seen = read(Watch(), up(Channel.ANSWER), smuggled)
    assert seen.kind == "Decline"
    (found,) = seen.unexplained
    assert found.value["bytes"] == 300
    assert found.size > 300
    assert "!" in as_text(seen)
    tally = Tally()
    tally.add(seen)
    text = summary(tally)
    assert "could not be explained" in text
    assert "no field is a signal" not in text


def test_elements_behind_those_of_an_inner_type_are_marked_too() -> None:
    body = msgspec.msgpack.decode(to_bytes(BIRTH)[1:])
    body[7][0].append("more")
    seen = read(Watch(), up(Channel.STATUS), to_bytes(BIRTH)[:1] + msgspec.msgpack.encode(body))
    assert [field.value for field in seen.unexplained] == ["more"]


@pytest.mark.parametrize("way", ["a key twice", "a number in more bytes than it needs"])
def test_what_a_decoder_would_pass_over_is_marked(way: str) -> None:
    plain = to_bytes(msgspec.structs.replace(BIRTH, signal_samples={"normal": 77}, held=(), sensors=()))
    entry = msgspec.msgpack.encode({"normal": 77})
    if way == "a key twice":
        other = b"\x82" + msgspec.msgpack.encode({"normal": 1234})[1:] + entry[1:]
    else:
        other = entry[:-1] + b"\xcd\x00\x4d"
    sealed = plain.replace(entry, other)
    seen = read(Watch(), up(Channel.STATUS), sealed)
    assert seen.kind == "Birth"
    assert [field.name for field in seen.unexplained] == ["coding"]
    assert read(Watch(), up(Channel.STATUS), plain).unexplained == ()


def test_a_new_field_shows_by_itself_and_says_that_nobody_described_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(fields.ABOUT, "Leave.clean")
    seen = read(Watch(), up(Channel.STATUS), to_bytes(Leave(nonce=b"n" * 8, clean=True)))
    (found,) = seen.unexplained
    assert (found.name, found.value) == ("clean", True)


def test_a_field_of_a_type_that_is_not_known_is_shown() -> None:
    class Odd(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag=99):
        at: Annotated[msgspec.Raw, Meta(description="anything")]

    found = reading._struct(inspect.type_info(Odd), msgspec.msgpack.encode([99, {"a": 1}]))
    (field,) = found
    assert field.problem
    assert field.value == {"a": 1}


@pytest.mark.parametrize(
    "payload",
    [
        b"not ours",
        b"\x30",
        b"\x30\xc0",
        b"\x3f" + b"x" * 80,
        b"\x32short",
        b"\x31" + b"x" * 64,
        b"\xff" * 100,
        b"\x30\x91\x01",
    ],
    ids=lambda payload: payload[:2].hex() + str(len(payload)),
)
def test_what_is_no_message_is_shown_with_its_size_and_digest(payload: bytes) -> None:
    seen = read(Watch(), up(Channel.ANSWER), payload)
    assert seen.kind == "?"
    assert seen.problem
    assert seen.fields[0].value["bytes"] == len(payload)
    assert "! not a message of ours" in as_text(seen)
    assert json.loads(as_json(seen))["problem"]


@given(st.data())
def test_whatever_comes_is_shown_and_every_byte_is_counted(data: st.DataObject) -> None:
    where, whole = data.draw(st.sampled_from(SAID))
    payload = bytearray(whole)
    for _ in range(data.draw(st.integers(0, 4))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    payload += data.draw(st.binary(max_size=4))
    seen = read(Watch(), where, bytes(payload))
    assert sum(field.size for field in seen.fields) + seen.overhead + seen.seal_bytes == len(payload)
    assert as_text(seen).replace("\n", "").isprintable()
    json.loads(as_json(seen))


@given(
    st.one_of(
        st.binary(max_size=200), st.sampled_from([b'{"a":' + b"[" * 100_000, b'{"\\u001b": 1}', b'{"a": "\xff"}'])
    )
)
def test_a_report_may_hold_anything(payload: bytes) -> None:
    seen = read(Watch(), topic(PLANT, Direction.DOWN, Channel.REPORT), payload)
    assert seen.size == len(payload)
    assert as_text(seen).replace("\n", "").isprintable()


@pytest.mark.parametrize(
    "where", ["fl/1/plant/up/gateway-1/secret", "fl/1/plant/elsewhere", f"fl/1/plant/up/{'x' * 99}/ask"]
)
def test_a_topic_that_is_none_of_the_table_is_shown(where: str) -> None:
    seen = read(Watch(), where, b"something")
    assert (seen.direction, seen.size) == ("?", 9)
    assert where in as_text(seen)


def test_a_message_without_its_seal_is_remarked_once_others_are_sealed() -> None:
    watch = Watch()
    plain = to_bytes(Decline(round_id=1, reason=Reason.CPU, sent=1, received=2))
    assert read(watch, up(Channel.ANSWER), plain).notes == ()
    assert read(watch, up(Channel.ANSWER), bytes([plain[0] | Seal.MAC]) + plain[1:] + b"m" * 8).notes == ()
    assert read(watch, up(Channel.ANSWER), plain).notes == ("! seal none, mac expected: its receivers drop it",)


def test_terminal_codes_in_a_text_do_not_reach_the_terminal() -> None:
    birth = msgspec.structs.replace(BIRTH, software="\x1b[2Jgone")
    assert "\x1b" not in as_text(read(Watch(), up(Channel.STATUS), to_bytes(birth)))


def test_the_summary_adds_up_to_what_was_seen() -> None:
    watch, tally = Watch(), Tally()
    messages = [(Channel.STATUS, BIRTH), (Channel.STATUS, Leave(nonce=b"n" * 8, clean=False))]
    sizes = 0
    for channel, message in messages:
        data = to_bytes(message)
        sizes += len(data)
        tally.add(read(watch, up(channel), data))
    told = tally.as_json()
    assert sum(row["bytes"] for row in told["messages"]) == sizes
    assert sum(row["bytes"] for row in told["fields"]) == sizes
    assert told["largest"]["type"] == "Birth"
    assert told["signal_samples_at_gateways"] == 1500
    assert any("no field is a signal" in line for line in told["statement"])


def watching(broker: LocalBroker, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "fedmq", "wire", "show", "--port", str(broker.port), *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(), start_new_session=True,
    )  # fmt: skip


@pytest.mark.broker
@pytest.mark.slow
def test_a_federation_is_watched_from_birth_to_leave(tmp_path: Path, mosquitto: LocalBroker) -> None:
    watcher = watching(mosquitto, "--json")
    try:
        assert watcher.stderr is not None
        assert "connected" in watcher.stderr.readline()
        with Site(tmp_path, small_fleet(2), port=mosquitto.port, rounds=2) as site:
            site.start()
            site.wait_for_rest()
            site.finish()
        watcher.send_signal(signal.SIGINT)
        out, _ = watcher.communicate(timeout=6 * PATIENCE_SECONDS)  # a program starts and ends on a busy machine
    finally:
        if watcher.poll() is None:
            watcher.kill()
            watcher.wait()
    assert watcher.returncode == 0
    *messages, last = [json.loads(line) for line in out.splitlines()]
    kinds = {message["type"] for message in messages}
    assert {"Birth", "Welcome", "RoundPlan", "Statistics", "Update", "Leave", "report"} <= kinds
    assert not [message for message in messages if message["problem"]]
    assert any(
        "coded delta of 868 parameters" in note for m in messages if m["type"] == "Update" for note in m["notes"]
    )
    told = last["summary"]
    assert told["unexplained"] == []
    assert sum(row["bytes"] for row in told["messages"]) == sum(message["bytes"] for message in messages)
    assert any("no field is a signal" in line for line in told["statement"])


@pytest.mark.broker
def test_what_is_no_message_is_shown_live(tmp_path: Path, mosquitto: LocalBroker) -> None:
    shown = tmp_path / "shown"
    speaker = MqttSession(
        Connection(host="127.0.0.1", port=mosquitto.port, client_id="speaker", session_expiry_seconds=0)
    )
    with shown.open("wb") as output:
        watcher = subprocess.Popen(
            [sys.executable, "-m", "fedmq", "wire", "show", "--port", str(mosquitto.port)],
            stdout=output, stderr=subprocess.PIPE, env=environment(), start_new_session=True,
        )  # fmt: skip
    speaker.start()
    try:
        assert watcher.stderr is not None
        assert b"connected" in watcher.stderr.readline()
        expect(speaker, Connected)

        def is_shown() -> bool:
            # Its subscription may come later: it is said again until it is heard.
            speaker.publish(up(Channel.ANSWER), b"\x00raw signal")
            time.sleep(0.05)
            return b"! not a message of ours" in shown.read_bytes()

        eventually(is_shown, "the observer to show it")
    finally:
        speaker.stop(flush_seconds=1)
        watcher.kill()
        watcher.wait()


@pytest.mark.broker
def test_where_nothing_may_be_read_that_is_said(tmp_path: Path, mosquitto: LocalBroker) -> None:
    ended = fedmq("wire", "show", "--port", str(mosquitto.port), "--federation", "another", "--seconds", "1")
    assert ended.returncode == 0
    assert "nothing was seen" in ended.stderr
    assert "No gateway has said anything" in ended.stdout


def test_the_command_renders_the_tables_and_an_example() -> None:
    assert fedmq("wire", "fields", "--markdown").stdout == fields.markdown()
    assert "[connection]" in fedmq("wire", "show", "--example").stdout
