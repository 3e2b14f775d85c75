"""A ledger as a plausible federation leaves it, and rows to make others of."""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedmq_coordinator.ledger import Answer, CatchUp, Gateway, Ledger, Round, Version, Wire
from fedmq_coordinator.report import METRIC_NAME
from fedmq_coordinator.vitals import LastVitals, keep
from fedmq_protocol.vitals import ToldVitals

START = 1_760_000_000.0
DENSE = 72_456


def a_gateway(name: str, roster: int, **changes: object) -> Gateway:
    gateway = Gateway(
        name=name,
        roster=roster,
        first_seen=START,
        last_seen=START,
        present=True,
        software="0.1.0",
        engines="numpy",
        windows=320,
        signal_bytes=2_000_000,
        nonce=name.encode(),
    )
    return replace(gateway, **changes)  # type: ignore[arg-type]


def a_round(id_: int, **changes: object) -> Round:
    opened_at = START + 60.0 * id_
    round_ = Round(
        id=id_,
        lineage=1,
        kind="training",
        base=id_ - 1,
        opened_at=opened_at,
        closes_at=opened_at + 30,
        closed_at=opened_at + 3,
        outcome="applied",
        drawn=2,
        plan_bytes=300,
        version=id_,
        metric=None,
        loss=None,
        metric_source=None,
    )
    return replace(round_, **changes)  # type: ignore[arg-type]


def an_answer(round_id: int, gateway: str, sent: int = 0, received: int = 0, **changes: object) -> Answer:
    answer = Answer(
        round=round_id,
        gateway=gateway,
        received_at=START + 60.0 * round_id + 1,
        kind="update",
        verdict="accepted",
        reason=None,
        counter=round_id,
        digest=b"digest",
        samples=320,
        weight=320,
        payload_bytes=200,
        dense_bytes=DENSE,
        nonce=gateway.encode(),
        sent=sent,
        received=received,
        held_out_metric=None,
        held_out_loss=None,
        held_out_windows=None,
        owed=False,
        payload=None,
        counted_in=round_id,
    )
    return replace(answer, **changes)  # type: ignore[arg-type]


def a_decline(round_id: int, gateway: str, reason: str, **changes: object) -> Answer:
    return an_answer(
        round_id, gateway, kind="decline", reason=reason, payload_bytes=0, dense_bytes=0, samples=0, weight=0, **changes
    )


def tell(ledger: Ledger, gateway: str, at: float = START, **told: Any) -> None:
    """What `gateway` has told of its battery and link."""
    keep(ledger, gateway, LastVitals(at=at, nonce=b"12345678", sent=0, told=ToldVitals(**told)))


def a_wire(gateway: str, sent: int, received: int, **changes: object) -> Wire:
    wire = Wire(
        gateway=gateway, nonce=gateway.encode(), sent=sent, received=received, reported_at=START + 5, final=True
    )
    return replace(wire, **changes)  # type: ignore[arg-type]


def write_plant(path: Path, rounds: int = 40) -> Ledger:
    """A plausible federation: 7 gateways with declines, a restart, a round below quorum; the last round is open."""
    ledger = Ledger(path)
    draw = random.Random(7)
    names = ["bay1-press", "bay1-spindle", "bay2-fan", "bay2-pump-north", "bay3-conveyor", "bay3-mixer", "boiler-feed"]
    sent = {name: 460 + draw.randrange(60) for name in names}
    received = {name: 900 + draw.randrange(60) for name in names}
    nonce = {name: b"1" + name.encode() for name in names}
    ledger.book("bearings").put(METRIC_NAME, b"macro-F1")
    parent = b"\0" * 32
    ledger.book("bearings").save_version(
        Version(
            lineage=1, number=0, digest=b"0" * 32, parent=parent, round=None, created_at=START, delta=b"", steps=b""
        )
    )
    number = 0
    for id_ in range(rounds):
        statistics = id_ == 0
        opened_at = START + id_ * 62.0
        last = id_ == rounds - 1
        below = id_ == 17
        ledger.book("bearings").open_round(
            a_round(
                id_,
                kind="statistics" if statistics else "training",
                base=number,
                opened_at=opened_at,
                closes_at=opened_at + 60,
                closed_at=None,
                outcome="open",
                drawn=7,
                version=None,
            )
        )
        for place, name in enumerate(names):
            if below and place > 1:
                continue
            if name == "bay2-fan" and 20 <= id_ < 23:  # killed in round 20, back in 23 as another process
                continue
            if last and place > 3:
                continue
            if name == "bay2-fan" and id_ == 23:
                nonce[name] = b"2" + name.encode()
                sent[name], received[name] = 510, 2_950
            at = opened_at + 0.6 + draw.random() * 1.5
            shared = {
                "sent": sent[name],
                "received": received[name],
                "nonce": nonce[name],
                "received_at": at,
                "digest": hashlib.sha256(f"{id_}{name}".encode()).digest(),
            }
            if statistics:
                answer = an_answer(id_, name, kind="statistics", payload_bytes=560, dense_bytes=0, **shared)
            elif name == "boiler-feed" and id_ in (9, 10, 11, 30):
                answer = a_decline(id_, name, "cpu busy" if id_ == 30 else "battery", **shared)
            elif name == "bay3-mixer" and id_ == 25:
                answer = an_answer(id_, name, verdict="late", payload_bytes=231, **shared)
            else:
                payload = draw.randbytes(215 + draw.randrange(30))
                answer = an_answer(id_, name, payload_bytes=len(payload), payload=payload, **shared)
            ledger.book("bearings").save_answer(answer)
            ledger.book("bearings").save_verdict(name, id_, id_ + 1, answer.digest, answer.verdict)
            sent[name] += answer.payload_bytes + 70 + draw.randrange(12)
            received[name] += 345 + draw.randrange(40)
            ledger.save_wire(a_wire(name, sent[name], received[name], nonce=nonce[name], reported_at=at, final=False))
        if below:
            ledger.book("bearings").close_round(id_, at=opened_at + 60, outcome="below quorum", version=None)
            ledger.book("bearings").owe(id_)
        elif not last:
            number += 1
            ledger.book("bearings").erase_payloads()
            delta = draw.randbytes(225 + draw.randrange(20)) if not statistics else b""
            digest = hashlib.sha256(bytes([number])).digest()
            ledger.book("bearings").save_version(
                Version(
                    lineage=1,
                    number=number,
                    digest=digest,
                    parent=parent,
                    round=id_,
                    created_at=opened_at + 3,
                    delta=delta,
                    steps=b"",
                )
            )
            parent = digest
            closed = 60.0 if 20 <= id_ < 23 else 2.2 + draw.random()
            ledger.book("bearings").close_round(id_, at=opened_at + closed, outcome="applied", version=number)
            if not statistics:
                metric = 0.992 - 0.62 * 0.83**id_ + draw.uniform(-0.008, 0.008)
                loss = 0.06 + 1.2 * 0.87**id_
                ledger.book("bearings").set_metric(id_, metric=metric, loss=loss, source="test set")
    end = START + (rounds - 1) * 62.0
    for place, name in enumerate(names):
        ledger.save_gateway(
            a_gateway(
                name,
                place,
                last_seen=end + 1 if name != "bay3-mixer" else end - 190,
                present=name != "bay3-mixer",
                windows=280 + 31 * place,
                signal_bytes=1_900_000 + 260_000 * place,
                nonce=nonce[name],
            )
        )
    ledger.save_wire(
        a_wire("boiler-feed", sent["boiler-feed"] + 40, received["boiler-feed"] + 4, nonce=nonce["boiler-feed"])
    )
    ledger.book("bearings").save_catch_up(
        CatchUp(at=START + 1430, kind="merged", from_version=19, to_version=22, bytes=1_210, askers=1)
    )
    ledger.count_refused("answer", "truncated", 17)
    ledger.count_refused("answer", "truncated", 21)
    ledger.count_refused("status", "identity", 120)
    ledger.commit()
    return ledger


def write_large_fleet(path: Path, gateways: int = 5_000, rounds: int = 20) -> Ledger:
    """A fleet of many, of which a tenth answers each round: some decline, some are away, some have silent sensors."""
    ledger = Ledger(path)
    draw = random.Random(11)
    book = ledger.book("bearings")
    book.put(METRIC_NAME, b"macro-F1")
    names = [f"line{number % 40:02d}-gw{number:05d}" for number in range(gateways)]
    sent, received = dict.fromkeys(names, 400), dict.fromkeys(names, 900)
    for number in range(1, rounds + 1):
        drawn = names[number % 10 :: 10]
        opened_at = START + 60.0 * number
        book.open_round(a_round(number, drawn=len(drawn)))
        for name in drawn:
            at = {"received_at": opened_at + 2 * draw.random(), "sent": sent[name], "received": received[name]}
            if draw.random() < 0.1:
                book.save_answer(a_decline(number, name, draw.choice(["battery", "cpu", "metered"]), **at))
            else:
                book.save_answer(an_answer(number, name, **at))
            sent[name] += 310
            received[name] += 360
        book.set_metric(number, metric=0.95 - 0.5 * 0.8**number, loss=0.1 + 0.85**number, source="test set")
    for place, name in enumerate(names):
        tags = "\n".join(sorted({f"line-{place % 40}", draw.choice(["pump", "fan", "press"])}))
        engine = draw.choice(["numpy", "onnxruntime,numpy"])
        present = draw.random() > 0.03
        ledger.save_gateway(a_gateway(name, place, present=present, tags=tags, engines=engine, last_seen=START + place))
        ledger.save_wire(a_wire(name, sent[name], received[name], final=False))
        if place % 7 == 0:
            silent = 900 if place % 91 == 0 else 0
            health = [{"name": "axle", "rate_pct": 100, "silent_seconds": silent}]
            ledger.put(f"sensors of {name}", json.dumps([list(health[0].values())]).encode())
    ledger.commit()
    return ledger


def split_plant(ledger: Ledger) -> None:
    """As if every other round had been another task's."""
    other = ledger.book("fans")
    other.put(METRIC_NAME, b"RMSE")
    ledger.write("UPDATE rounds SET task = ? WHERE id % 2", (other.number,))
    ledger.write("UPDATE versions SET task = ?, lineage = 2 WHERE round % 2", (other.number,))
    ledger.commit()
