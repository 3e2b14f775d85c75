"""Who is told, how often, and that what was not taken goes again: local servers stand in for pagers and mail."""

from __future__ import annotations

import getpass
import json
import socket
import subprocess
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from broker_fixtures import eventually, expect, joined
from fedmq_broker_config.run import LocalBroker, find_mosquitto, free_port
from fedmq_edge_node.alarms import Changed, Cleared, Evidence, Raised
from fedmq_edge_node.alertbook import Alertbook, BookError
from fedmq_protocol.session import Connection, MqttSession, Received
from paging import Pager, Post
from watched import MACHINE, PUMP

from fedmq.watch.outputs import GIVE_UP_SECONDS, Mail, MqttOutput, Webhook, deliver, state_of
from fedmq.watch.program import obey
from fedmq.watch.settings import EmailSettings, WebhookSettings

EVIDENCE = (
    Evidence(
        name="velocity", value=9.0, limit=4.5, unit="mm/s", was=1.2, was_at=1.7e9, trend=((1.7e9, 1.2), (1.7e9 + 60, 9))
    ),
)


@pytest.fixture
def pager() -> Iterator[Pager]:
    server = Pager()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def post() -> Iterator[Post]:
    server = Post()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def site_port(tmp_path: Path) -> Iterator[int]:
    """A broker on site, which is not the federation's: no rendered ACL."""
    program = find_mosquitto()
    if program is None:
        pytest.skip("needs Mosquitto: apt-get install mosquitto")
    port = free_port("127.0.0.1")
    conf = tmp_path / "site.conf"
    conf.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\nuser {getpass.getuser()}\n")
    broker = subprocess.Popen([str(program), "-c", str(conf)], stderr=subprocess.DEVNULL, start_new_session=True)

    def answers() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        eventually(answers, "Mosquitto")
        yield port
    finally:
        broker.terminate()
        broker.wait()


@pytest.fixture
def book(tmp_path: Path) -> Iterator[Alertbook]:
    opened = Alertbook(tmp_path / "alerts.sqlite")
    yield opened
    opened.close()


def hook(pager: Pager, **more: Any) -> Webhook:
    return Webhook(WebhookSettings(**({"name": "pager", "url": pager.url, "least_seconds": 0.0} | more)))


def mail(post: Post, **more: Any) -> Mail:
    values = {
        "name": "maintenance",
        "host": "127.0.0.1",
        "port": post.port,
        "security": "none",
        "sender": "fedmq@plant.example",
        "to": ("ann@plant.example", "ben@plant.example"),
        "least_seconds": 0.0,
    }
    return Mail(EmailSettings(**(values | more)))  # type: ignore[arg-type]


def told(book: Alertbook, *outputs: Any) -> None:
    book.tell({output.name: list(output.tells) for output in outputs})


def outcome(cls: Any = Raised, machine: str = PUMP, at: float = 1.7e9, **more: Any) -> Any:
    values: dict[str, Any] = {
        "machine": machine,
        "kind": "vibration",
        "at": at,
        "from_at": at - 10,
        "level": 2.0,
        "severity": "alarm",
        "evidence": EVIDENCE,
    }
    return cls(**(values | more))


def cleared(machine: str = PUMP, at: float = 1.7e9 + 60) -> Cleared:
    return Cleared(machine=machine, kind="vibration", at=at, to_at=at - 30, level=2.0)


def test_a_webhook_is_told_once_with_what_is_behind_the_alert(book: Alertbook, pager: Pager, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("secret\n")
    token.chmod(0o600)
    output = hook(pager, token_file=token)
    told(book, output)
    book.step(at=0.0, outcomes=[outcome()])
    for now in (1.0, 2.0, 3.0):
        deliver(book, [output], now)
    ((key, bearer, body),) = pager.got
    assert bearer == "Bearer secret"
    assert body["id"] == key
    (step,) = body["steps"]
    assert (step["machine"], step["step"], step["kind"], step["state"]) == (PUMP, "raised", "vibration", "open")
    assert step["evidence"][0]["value"] == 9.0
    assert step["evidence"][0]["limit"] == 4.5
    assert len(step["evidence"][0]["trend"]) == 2
    assert book.outbox() == []


@pytest.mark.parametrize("status", [500, 503, 429, 404, 302])
def test_what_a_webhook_does_not_take_goes_again_with_the_same_key(book: Alertbook, pager: Pager, status: int) -> None:
    output = hook(pager)
    told(book, output)
    pager.statuses = [status, status]
    book.step(at=0.0, outcomes=[outcome()])
    for now in (0.0, 4.0, 6.0, 14.0, 17.0, 100.0):
        deliver(book, [output], now)
    # At once, after 5 s, and after 10 s more.
    assert len(pager.got) == 3
    assert len({key for key, _, _ in pager.got}) == 1
    assert book.outbox() == []


def test_nobody_at_home_is_tried_for_a_week_and_then_given_up(book: Alertbook, pager: Pager) -> None:
    output = hook(pager)
    told(book, output)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        output = hook(pager, url=f"http://127.0.0.1:{taken.getsockname()[1]}/")
        book.step(at=0.0, outcomes=[outcome()])
        deliver(book, [output], 0.0)
        ((_, state, count, error),) = book.outbox()
        assert (state, count) == ("waiting", 1)
        assert error
        deliver(book, [output], GIVE_UP_SECONDS + 10)
    assert [row[1] for row in book.outbox()] == ["given up"]
    deliver(book, [output], GIVE_UP_SECONDS + 1e6)
    assert pager.got == []


def test_what_comes_soon_after_waits_and_goes_together(book: Alertbook, pager: Pager) -> None:
    output = hook(pager, least_seconds=60.0)
    told(book, output)
    book.step(at=0.0, outcomes=[outcome()])
    deliver(book, [output], 0.0)
    book.step(at=1.0, outcomes=[outcome(kind="defect"), outcome(Changed, level=3.0)])
    book.step(at=1.0, outcomes=[outcome(machine="fan-1")])
    for now in (1.0, 30.0, 59.0):
        deliver(book, [output], now)
    assert [[step["machine"] for step in body["steps"]] for _, _, body in pager.got] == [[PUMP], ["fan-1"]]
    deliver(book, [output], 61.0)
    assert [[step["step"] for step in body["steps"]] for _, _, body in pager.got][2] == ["raised", "changed"]


def test_no_more_than_so_many_messages_go_in_an_hour_and_none_is_lost(book: Alertbook, pager: Pager) -> None:
    output = hook(pager, most_per_hour=3)
    told(book, output)
    book.step(at=0.0, outcomes=[outcome(machine=f"m{n}") for n in range(8)])
    for now in (0.0, 100.0, 3500.0):
        deliver(book, [output], now)
    assert len(pager.got) == 3
    for now in (3601.0, 7300.0):
        deliver(book, [output], now)
    assert sorted(body["steps"][0]["machine"] for _, _, body in pager.got) == [f"m{n}" for n in range(8)]


def test_a_mail_goes_once_to_all_with_a_message_id_of_its_own(book: Alertbook, post: Post) -> None:
    output = mail(post)
    told(book, output)
    book.step(at=0.0, outcomes=[outcome(label="outer race")])
    deliver(book, [output], 1.0)
    deliver(book, [output], 2.0)
    ((to, sent),) = post.got
    assert to == ["ann@plant.example", "ben@plant.example"]
    assert sent["Message-ID"].endswith("@plant.example>")
    assert "pump-3: vibration (outer race) alert 1 raised" in sent["Subject"]
    text = sent.get_content()
    assert "velocity 9 mm/s (limit 4.5, typically 1.2" in text
    assert "fedmq alert confirm 1 KIND" in text


def test_a_message_names_what_else_goes_on_at_the_machine(book: Alertbook, post: Post, pager: Pager) -> None:
    outputs = [mail(post), hook(pager)]
    told(book, *outputs)
    book.step(at=0.0, outcomes=[outcome(), outcome(kind="defect"), outcome(machine="fan-1")])
    deliver(book, outputs, 1.0)
    assert [[step["others"] for step in body["steps"]] for _, _, body in pager.got] == [[[2], [1]], [[]]]
    ours, theirs = (sent.get_content() for _, sent in post.got)
    assert "at the same time: 2 (defect); --overlapping says the same of them at once" in ours
    assert "at the same time" not in theirs


def test_a_busy_mail_server_is_asked_again_and_one_wrong_address_is_not_a_second_mail(
    book: Alertbook, post: Post
) -> None:
    output = mail(post)
    told(book, output)
    post.busy = 1
    post.refuse = {"ben@plant.example"}
    book.step(at=0.0, outcomes=[outcome()])
    for now in (0.0, 6.0, 20.0, 100.0):
        deliver(book, [output], now)
    assert [to for to, _ in post.got] == [["ann@plant.example"]]


def test_people_are_not_mailed_what_people_said(book: Alertbook, post: Post, pager: Pager) -> None:
    outputs = [mail(post), hook(pager)]
    told(book, *outputs)
    book.step(at=0.0, outcomes=[outcome()])
    book.decide(1, "ball", who="ann", at=1.0)
    book.step(at=2.0, outcomes=[cleared()])
    deliver(book, outputs, 3.0)
    assert len(post.got) == 1
    steps = [(step["step"], step["verdict"]) for _, _, body in pager.got for step in body["steps"]]
    assert [step for step, _ in steps] == ["raised", "confirmed", "cleared"]


def test_an_output_that_is_taken_out_leaves_nothing_behind(book: Alertbook, post: Post, pager: Pager) -> None:
    told(book, mail(post), hook(pager))
    book.step(at=0.0, outcomes=[outcome()])
    told(book, hook(pager))
    assert [row[0] for row in book.outbox()] == ["webhook pager"]


@pytest.mark.broker
def test_mqtt_has_each_step_and_a_retained_state(book: Alertbook, site_port: int) -> None:
    ear = MqttSession(Connection(host="127.0.0.1", port=site_port, client_id="ear"))
    ear.subscribe("plant/#")
    ear.start()
    joined(ear)
    output = MqttOutput(
        MqttSession(Connection(host="127.0.0.1", port=site_port, client_id="watch")),
        "plant",
        lambda payload: obey(book, payload, {PUMP: MACHINE}, datetime.now().astimezone()),
    )
    told(book, output)
    output.start()
    book.step(at=0.0, outcomes=[outcome()])

    def pump(until: Any, what: str) -> None:
        def turn() -> bool:
            output.listen(0.01)
            deliver(book, [output], 1.0)
            output.state(PUMP, state_of(PUMP, {"state": "running", "at": 1.0}, book.alerts()))
            return bool(until())

        eventually(turn, what)

    pump(lambda: book.outbox() == [], "the broker's word")
    heard = expect(ear, Received, lambda event: event.topic == f"plant/{PUMP}/alert")
    body = json.loads(heard.payload)
    assert body["schema"] == 1
    assert body["steps"][0]["step"] == "raised"
    late = MqttSession(Connection(host="127.0.0.1", port=site_port, client_id="late"))
    late.subscribe(f"plant/{PUMP}/state")
    late.start()
    state = expect(late, Received)
    assert state.retained
    assert json.loads(state.payload)["alerts"][0]["state"] == "open"
    ear.publish("plant/do", b'{"do": "confirm", "alert": 1, "fault": "ball", "who": "ann"}')
    pump(lambda: book.alert(1).verdict == "ball", "the order")
    assert book.steps(1)[-1].who == "ann (MQTT)"
    for session in (ear, late):
        session.stop(flush_seconds=0.0)
    output.stop()


@pytest.mark.broker
def test_what_the_broker_does_not_take_waits_and_says_why(book: Alertbook, mosquitto: LocalBroker) -> None:
    """The federation's own broker has no such topic in its ACL."""
    output = MqttOutput(MqttSession(Connection(host="127.0.0.1", port=mosquitto.port, client_id="watch")), "plant")
    told(book, output)
    output.start()
    book.step(at=0.0, outcomes=[outcome()])

    def refused() -> bool:
        output.listen(0.01)
        deliver(book, [output], 1.0)
        return "does not take plant/pump-3/alert" in book.outbox()[0][3]

    eventually(refused, "the broker's refusal")
    assert [row[1] for row in book.outbox()] == ["waiting"]
    output.stop()


@pytest.mark.broker
def test_what_the_broker_never_acknowledged_goes_again(book: Alertbook, site_port: int) -> None:
    output = MqttOutput(
        MqttSession(Connection(host="127.0.0.1", port=site_port, client_id="watch", reconnect_min_seconds=0.05)),
        "plant",
    )
    told(book, output)
    book.step(at=0.0, outcomes=[outcome()])
    deliver(book, [output], 0.0)
    assert [row[1] for row in book.outbox()] == ["waiting"]
    output.start()

    def gone() -> bool:
        output.listen(0.01)
        deliver(book, [output], 1.0)
        return book.outbox() == []

    eventually(gone, "the broker's word")
    output.stop()


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"[]",
        b"x" * 2000,
        b'{"do": "confirm", "alert": 1, "who": "a"}',
        b'{"do": "confirm", "alert": true, "fault": "ball", "who": "a"}',
        b'{"do": "confirm", "alert": 1, "fault": ".hidden", "who": "a"}',
        b'{"do": "confirm", "alert": 1, "fault": "a/b", "who": "a"}',
        b'{"do": "ack", "alert": 99, "who": "a"}',
        b'{"do": "dismiss", "alert": 1}',
        b'{"do": "dismiss", "alert": 1, "overlapping": "yes", "who": "a"}',
        b'{"do": "ack", "alert": 1, "overlapping": true, "who": "a"}',
        b'{"do": "replaced", "machine": "nobody", "who": "a"}',
        b'{"do": "burnt", "machine": "pump-3", "who": "a"}',
        b'{"do": "replaced", "machine": "pump-3", "who": "a", "at": 5}',
        b'{"do": "replaced", "machine": "pump-3", "who": "a", "more": 1}',
        b"[" * 1000,
    ],
)
def test_an_order_that_makes_no_sense_is_refused_and_changes_nothing(book: Alertbook, payload: bytes) -> None:
    book.step(at=0.0, outcomes=[outcome()])
    with pytest.raises(ValueError, match=r"expected|there is no"):
        obey(book, payload, {PUMP: MACHINE}, datetime.now().astimezone())
    assert book.alert(1).state == "open"
    assert book.orders() == []


def test_a_cause_that_is_no_class_is_ordered_by_mqtt_as_a_fault_is(book: Alertbook) -> None:
    book.take_only(("ball",))
    book.step(at=0.0, outcomes=[outcome()])
    order = b'{"do": "confirm", "alert": 1, "fault": "other: unbalance", "who": "ann"}'
    obey(book, order, {PUMP: MACHINE}, datetime.now().astimezone())
    assert (book.alert(1).state, book.alert(1).verdict) == ("confirmed", "other: unbalance")


def test_by_mqtt_one_verdict_will_do_for_alerts_that_overlap(book: Alertbook) -> None:
    book.step(at=0.0, outcomes=[outcome(), outcome(kind="defect")])
    order = b'{"do": "dismiss", "alert": 2, "overlapping": true, "who": "ann"}'
    obey(book, order, {PUMP: MACHINE}, datetime.now().astimezone())
    assert [alert.state for alert in book.alerts()] == ["dismissed", "dismissed"]


def test_a_verdict_twice_is_one_order_and_another_one_is_a_second(book: Alertbook) -> None:
    book.step(at=0.0, outcomes=[outcome()])
    for fault in ("ball", "ball", None):
        book.decide(1, fault, who="ann", at=1.0)
    assert [(order.what, order.detail) for order in book.orders()] == [("confirmed", "ball"), ("dismissed", "")]
    with pytest.raises(BookError, match="dismissed"):
        book.acknowledge(1, who="ann", at=2.0)


def test_what_was_dismissed_and_becomes_worse_is_another_alert(book: Alertbook) -> None:
    book.step(at=0.0, outcomes=[outcome(severity="warning", level=1.2)])
    book.decide(1, None, who="ann", at=1.0)
    assert book.step(at=2.0, outcomes=[outcome(Changed, at=1.7e9 + 100, level=3.0)]) == [2]
    assert [alert.state for alert in book.alerts()] == ["open", "dismissed"]
