"""The dashboard as it answers: its figures are the report's, and what means harm gets nowhere. Over real sockets."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from certificates import Authority
from dashboards import OPERATOR, VIEWER, Visitor, served, with_tokens
from fedmq_coordinator.ledger import Flag, Ledger
from fedmq_coordinator.report import METRIC_NAME, build, size
from fedmq_coordinator.roster import SENSORS_OF
from fedmq_coordinator.settings import HttpSettings
from fedmq_coordinator.web import service
from fedmq_coordinator.web.app import HEADERS, MAX_BODY_BYTES
from fedmq_coordinator.web.files import FILES
from fedmq_coordinator.web.views import FLEET
from fedmq_protocol.messages import SensorHealth
from ledgers import a_decline, a_gateway, a_round, a_wire, an_answer, tell, write_plant
from machine_rows import EVEN, RAISED_AT, a_drift, a_fleet_spread, a_machine, a_watch, an_alert

PAGES = ("/", "/gateway?name=bay1-press", "/round?id=17", "/login")
DATA = ("/api/overview", "/api/fleet", "/api/gateway?name=bay1-press", "/api/round?id=17")


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plant") / "ledger.sqlite"
    write_plant(path).close()
    return path


@pytest.fixture(scope="module")
def site(plant: Path) -> Iterator[Visitor]:
    with served(plant) as visitor:
        yield visitor


@pytest.fixture(scope="module")
def guarded(plant: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visitor]:
    """One that asks for a token."""
    with served(plant, **with_tokens(tmp_path_factory.mktemp("tokens"))) as visitor:
        yield visitor


def wait_for(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)
    return found


# -- figures ---------------------------------------------------------------------------------------------------


def test_its_figures_are_those_of_the_report(site: Visitor, plant: Path) -> None:
    with closing(Ledger(plant, read_only=True)) as ledger:
        report = build(ledger)
    about = site.get("/api/overview").json()
    assert about["wire"] == {"up": report.wire.up, "down": report.wire.down}
    assert [saving["other"] for saving in about["savings"]] == [report.dense.total, report.raw_bytes]
    assert about["savings"][0]["saved"] == report.savings.dense.saved_bytes
    assert about["savings"][1]["worth"] == report.savings.raw.saved_money
    assert about["price"] == {"per_gb": 10.0, "currency": "EUR"}
    assert about["savings"][0]["factor"] == report.factors.dense_over_wire
    assert about["rounds"]["metric"] == [line.metric for line in report.rounds]
    assert about["rounds"]["wire_up"] == [line.wire.up for line in report.rounds]
    assert about["rounds"]["cumulative_up"][-1] + about["rounds"]["cumulative_down"][-1] == report.wire.total
    fleet = site.get("/api/fleet").json()
    assert tuple(fleet["columns"]) == FLEET
    rows = {row[0]: dict(zip(FLEET, row, strict=True)) for row in fleet["rows"]}
    for line in report.gateways:
        row = rows[line.name]
        assert (row["up"], row["down"], row["dense"], row["raw"]) == (
            line.wire.up,
            line.wire.down,
            line.dense.total,
            line.raw_bytes,
        )
        assert (row["accepted"], row["declined"]) == (line.accepted, line.declined)


def test_the_essential_figures_stand_in_the_page_without_a_script(site: Visitor, plant: Path) -> None:
    with closing(Ledger(plant, read_only=True)) as ledger:
        report = build(ledger)
    page = site.get("/").text
    assert f"{report.factors.dense_over_wire:,.0f} times fewer bytes" in page
    for text in (size(report.wire.total), f"{report.metric_last:.3f}", "bay2-pump-north", "boiler-feed", "battery"):
        assert text in page
    assert page.count('<th scope="row">') >= len(report.gateways) + len(report.rounds)


def test_one_gateways_page_divides_its_bytes_by_round(site: Visitor, plant: Path) -> None:
    view = site.get("/api/gateway?name=bay2-fan").json()
    shares = [answer["wire"] for answer in view["answers"] if answer["wire"]]
    line = view["line"]
    assert sum(share["up"] for share in shares) + line["joining"]["up"] == line["wire"]["up"]
    page = site.get("/gateway?name=bay2-fan").text
    assert "restarts</dt><dd>1<" in page


def test_one_rounds_page_has_every_answer(site: Visitor, plant: Path) -> None:
    view = site.get("/api/round?id=9").json()
    assert {answer["gateway"]: answer["reason"] for answer in view["answers"]}["boiler-feed"] == "battery"
    assert (view["earlier"], view["later"]) == (8, 10)
    page = site.get("/round?id=9").text
    assert "declined: battery" in page


def test_who_deserves_a_look_stands_first(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    book = ledger.book("bearings")
    sick = SensorHealth(name="axle", rate_pct=100, silent_seconds=900)
    for place, name in enumerate(["a-well", "b-away", "c-flagged", "d-deaf", "e-declines"]):
        ledger.save_gateway(a_gateway(name, place, present=name != "b-away"))
    for number in range(1, 5):
        book.open_round(a_round(number))
        book.save_answer(a_decline(number, "e-declines", "battery"))
        book.save_answer(an_answer(number, "a-well"))
    book.save_flag(Flag(gateway="c-flagged", at=1.0, round=1, state="flagged", reason="against", evidence="cosine"))
    ledger.put(SENSORS_OF + "d-deaf", msgspec.json.encode([sick]))
    ledger.save_gateway(a_gateway("f-flat", 5))
    tell(ledger, "f-flat", battery_pct=9, on_mains=False, link="cellular", metered=True)
    tell(ledger, "a-well", on_mains=True, link="ethernet")
    tell(ledger, "c-flagged")
    ledger.commit()
    ledger.close()
    with served(tmp_path / "ledger.sqlite") as site:
        rows = [dict(zip(FLEET, row, strict=True)) for row in site.get("/api/fleet").json()["rows"]]
        page, flat = site.get("/").text, site.get("/gateway?name=f-flat").text
        deaf = site.get("/gateway?name=d-deaf").text
    assert {row["name"]: row["look"] for row in rows} == {
        "a-well": "",
        "b-away": "away",
        "c-flagged": "points away from the others",
        "d-deaf": "sensor trouble",
        "e-declines": "declines often",
        "f-flat": "battery low",
    }
    assert rows[-1]["name"] == "a-well"
    assert {row["name"]: (row["battery"], row["link"]) for row in rows} == {
        "a-well": ("mains", "ethernet"),
        "b-away": (None, None),
        "c-flagged": ("", ""),
        "d-deaf": (None, None),
        "e-declines": (None, None),
        "f-flat": ("9 %", "cellular, metered"),
    }
    for cell in ("9 %", "cellular, metered", "mains", "ethernet", "–", "not told"):
        assert f"<td>{cell}</td>" in page
    assert "battery</dt><dd>9 %<" in flat
    assert "battery and link told</dt><dd><time" in flat
    assert "battery</dt><dd>not told<" in deaf
    assert "battery and link told" not in deaf
    assert rows[2]["sensors"] == "axle silent for 900 s"


def test_where_federation_cost_more_the_headline_says_so(tmp_path: Path) -> None:
    with closing(Ledger(tmp_path / "ledger.sqlite")) as ledger:
        book = ledger.book("bearings")
        ledger.save_gateway(a_gateway("a", 0, signal_bytes=1000))
        book.open_round(a_round(1, drawn=1))
        book.save_answer(an_answer(1, "a", dense_bytes=500))
        ledger.save_wire(a_wire("a", 6000, 4000))
        ledger.commit()
    with served(tmp_path / "ledger.sqlite") as site:
        page = site.get("/").text
    assert "10.0 times MORE bytes than plain FedAvg" in page
    assert 'class="warn"' in page
    assert re.search(r"1\d\.\d kB were sent on top", page), "more than the 9.5 kB on the wire: packets count, too"


def test_an_empty_ledger_has_a_page_too(tmp_path: Path) -> None:
    Ledger(tmp_path / "ledger.sqlite").close()
    with served(tmp_path / "ledger.sqlite") as site:
        answer = site.get("/")
    assert answer.status == 200
    assert "No round has been opened yet" in answer.text


def test_several_tasks_each_have_their_own(tmp_path: Path) -> None:
    ledger = write_plant(tmp_path / "ledger.sqlite")
    ledger.book("pumps").open_round(a_round(900))
    ledger.commit()
    ledger.close()
    with served(tmp_path / "ledger.sqlite") as site:
        assert site.get("/api/overview").json()["tasks"] == ["bearings", "pumps"]
        assert site.get("/api/overview?task=pumps").json()["rounds"]["id"] == [900]
        assert "aria-current" in site.get("/?task=pumps").text
        assert site.get("/api/overview?task=mills").status == 404


def test_without_a_ledger_it_says_so_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with served(path) as site:
        wait_for(lambda: site.get("/healthz").status == 503)
        page = site.get("/")
        assert page.status == 503
        assert "no ledger at" in page.text
        write_plant(path).close()
        wait_for(lambda: site.get("/healthz").status == 200)
        assert site.get("/").status == 200


def test_what_is_unchanged_is_not_sent_again(site: Visitor) -> None:
    for path in ("/api/overview", "/api/fleet", "/static/charts.js"):
        first = site.get(path)
        again = site.get(path, if_none_match=first.headers["etag"])
        assert (again.status, again.body) == (304, b"")


# -- what is new -----------------------------------------------------------------------------------------------


class Stream:
    """A page that listens."""

    def __init__(self, site: Visitor) -> None:
        self._socket = socket.create_connection(("127.0.0.1", site.port), 20.0)
        self._socket.sendall(f"GET /api/events HTTP/1.1\r\nhost: {site.host}\r\n\r\n".encode())
        self._file = self._socket.makefile("rb")
        self.status = int(self._file.readline().split()[1])

    def next(self, kind: str) -> dict[str, Any]:
        event, until = "", time.monotonic() + 60.0
        while line := self._file.readline():
            # Pings go on for ever.
            assert time.monotonic() < until, f"nothing of {kind!r} came"
            if line.startswith(b"event: "):
                event = line[7:].strip().decode()
            elif line.startswith(b"data: ") and event == kind:
                return dict(json.loads(line[6:]))
        raise AssertionError("the stream has ended")

    def close(self) -> None:
        self._file.close()
        self._socket.close()


def test_a_round_that_closes_is_told_at_once_and_then_stands_in_the_figures(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    ledger = write_plant(path, rounds=5)
    with served(path) as site:
        before = site.get("/api/overview").json()
        assert before["open_round"]["id"] == 4
        with closing(Stream(site)) as stream:
            while stream.next("round")["id"] != 4:
                pass
            ledger.book("bearings").close_round(4, at=1_760_000_300.0, outcome="applied", version=4)
            ledger.book("bearings").set_metric(4, metric=0.75, loss=0.5, source="test set")
            ledger.commit()
            closed = stream.next("round")
            assert (closed["id"], closed["outcome"], closed["metric"]) == (4, "applied", 0.75)
            mark = stream.next("fresh")["mark"]
        after = site.get("/api/overview")
        assert mark in after.headers["etag"]
        assert after.json()["open_round"] is None
        assert after.json()["rounds"]["metric"][-1] == 0.75
    ledger.close()


def test_who_listens_before_the_first_look_hears_of_the_rounds_too(plant: Path) -> None:
    async def heard() -> bytes | None:
        watcher = service.Watcher(plant)
        queue = watcher.listen()
        assert queue is not None
        assert queue.empty()
        running = asyncio.create_task(watcher.run())
        try:
            return await asyncio.wait_for(queue.get(), 60.0)
        finally:
            running.cancel()

    assert b"event: round" in (asyncio.run(heard()) or b"")


def test_no_more_pages_listen_than_may(plant: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "MAX_STREAMS", 2)
    with served(plant) as site:
        first, second = Stream(site), Stream(site)
        assert (first.status, second.status) == (200, 200)
        assert site.get("/api/events").status == 503
        first.close()
        wait_for(lambda: closing_status(site) == 200)
        second.close()


def closing_status(site: Visitor) -> int:
    with closing(Stream(site)) as stream:
        return stream.status


# -- who may look ----------------------------------------------------------------------------------------------


def test_without_a_token_nothing_answers_but_health_and_the_form_for_one(guarded: Visitor) -> None:
    assert guarded.get("/healthz").text == "ok\n"
    for path in (*PAGES[:3], *DATA, "/api/events", "/static/dashboard.js", "/static/charts.js", "/nowhere"):
        assert guarded.get(path).status == 401, path
        assert b"bay" not in guarded.get(path).body
    asked = guarded.get("/", accept="text/html")
    assert (asked.status, asked.headers["location"]) == (303, "/login")
    form = guarded.get("/login")
    assert form.status == 200
    assert "bay" not in form.text


def test_a_token_opens_everything(guarded: Visitor) -> None:
    for path in (*PAGES, *DATA, "/static/dashboard.js"):
        assert guarded.get(path, authorization=f"Bearer {VIEWER}").status == 200, path


def test_what_is_not_there_is_behind_the_same_door(guarded: Visitor) -> None:
    assert guarded.get("/more").status == 401
    answer = guarded.get("/more", authorization=f"Bearer {VIEWER}")
    assert answer.status == 404
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_wrong_token_opens_nothing_and_soon_nobody_looks_at_another(plant: Path, tmp_path: Path) -> None:
    with served(plant, **with_tokens(tmp_path)) as site:
        statuses = [site.get("/", authorization=f"Bearer {'x' * number}").status for number in range(30, 36)]
        assert statuses == [401] * 5 + [429]
        answer = site.get("/", authorization=f"Bearer {VIEWER}")
        assert answer.status == 429
        assert 1 <= int(answer.headers["retry-after"]) <= 61
        assert site.post("/login", {"token": VIEWER}).status == 429
        assert site.get("/healthz").status == 200


@pytest.mark.parametrize("value", ["Bearer", "Bearer ", "Basic dXNlcjpwYXNz", "bearer\t", VIEWER])
def test_what_is_no_token_is_refused(guarded: Visitor, plant: Path, tmp_path: Path, value: str) -> None:
    with served(plant, **with_tokens(tmp_path)) as site:
        assert site.get("/", authorization=value).status in (400, 401)


def test_whoever_signs_in_gets_a_cookie_that_scripts_and_other_sites_do_not(guarded: Visitor) -> None:
    answer = guarded.post("/login", {"token": VIEWER})
    assert answer.status == 303
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert VIEWER not in cookie
    signed_in = guarded.sign_in(VIEWER)
    assert signed_in.get("/").status == 200
    assert signed_in.get("/", cookie="fedmq=" + "0" * 64).status == 401


def test_a_cookie_is_for_https_alone_where_a_proxy_speaks_it(plant: Path, tmp_path: Path) -> None:
    with served(plant, behind_proxy=True, **with_tokens(tmp_path)) as site:
        own = {"host": "plant.example", "origin": "https://plant.example"}
        answer = site.post("/login", {"token": VIEWER}, **own)
        assert answer.status == 303
        assert answer.headers["set-cookie"].startswith("__Host-fedmq=")
        assert "Secure" in answer.headers["set-cookie"]


def test_with_a_certificate_it_speaks_https_and_nothing_else(plant: Path, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    certificate, key = authority.issue("dashboard", address="127.0.0.1")
    key.chmod(0o600)
    with served(plant, certificate_file=certificate, key_file=key, **with_tokens(tmp_path)) as site:
        context = ssl.create_default_context(cafile=authority.ca_file)
        with (
            socket.create_connection(("127.0.0.1", site.port), 20.0) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1") as one,
        ):
            form = f"token={VIEWER}".encode()
            head = f"POST /login HTTP/1.1\r\nhost: {site.host}\r\norigin: https://{site.host}\r\nconnection: close\r\n"
            head += f"content-type: application/x-www-form-urlencoded\r\ncontent-length: {len(form)}\r\n\r\n"
            one.sendall(head.encode() + form)
            came = b""
            while part := one.recv(4096):
                came += part
        assert came.startswith(b"HTTP/1.1 303")
        assert b"set-cookie: __Host-fedmq=" in came
        assert not site.talk(b"GET /healthz HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n").startswith(b"HTTP/1.1 200")


def test_a_key_that_others_may_read_is_not_used(plant: Path, tmp_path: Path) -> None:
    certificate, key = Authority(tmp_path / "ca").issue("dashboard", address="127.0.0.1")
    key.chmod(0o644)
    settings = HttpSettings(listen="127.0.0.1:0", certificate_file=certificate, key_file=key)
    with service.bind("127.0.0.1", 0) as listener, pytest.raises(ValueError, match="chmod 600"):
        service.Dashboard(plant, settings).serve(listener)


def test_behind_a_proxy_one_visitor_does_not_lock_out_another(plant: Path, tmp_path: Path) -> None:
    with served(plant, behind_proxy=True, **with_tokens(tmp_path)) as site:
        for _ in range(6):
            last = site.get("/", authorization="Bearer wrong", x_forwarded_for="203.0.113.9, 192.0.2.1")
        assert last.status == 429
        # What a visitor writes into the header itself stands before what the proxy appends.
        assert site.get("/", authorization="Bearer x", x_forwarded_for="203.0.113.77, 192.0.2.1").status == 429
        assert site.get("/", authorization=f"Bearer {VIEWER}", x_forwarded_for="192.0.2.1, 203.0.113.9").status == 200


def test_who_has_signed_out_is_out(guarded: Visitor) -> None:
    signed_in = guarded.sign_in(VIEWER)
    proof = re.findall(r'name="proof" value="([0-9a-f]+)"', signed_in.get("/").text)[0]
    assert signed_in.post("/logout", {"proof": proof}).status == 303
    assert signed_in.get("/").status == 401


# -- pages of others -------------------------------------------------------------------------------------------


def test_a_name_that_was_made_to_point_here_is_refused(site: Visitor) -> None:
    for host in ("evil.example", "evil.example:8080", "127.0.0.1.evil.example", ""):
        answer = site.get("/", host=host) if host else None
        if answer is not None:
            assert answer.status == 421
    assert site.talk(b"GET / HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 421")
    assert site.get("/", host=f"localhost:{site.port}").status == 200


@pytest.mark.parametrize(
    "sent",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": ""},
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
    ],
)
def test_a_page_of_another_site_sends_no_form(guarded: Visitor, sent: dict[str, str]) -> None:
    signed_in = guarded.sign_in(OPERATOR)
    proof = re.findall(r'name="proof" value="([0-9a-f]+)"', signed_in.get("/").text)[0]
    assert signed_in.post("/logout", {"proof": proof}, **sent).status == 403
    assert guarded.post("/login", {"token": VIEWER}, **sent).status == 403
    assert signed_in.get("/").status == 200, "the session goes on"


def test_a_form_without_its_sessions_proof_is_refused(guarded: Visitor) -> None:
    signed_in, other = guarded.sign_in(OPERATOR), guarded.sign_in(OPERATOR)
    proof = re.findall(r'name="proof" value="([0-9a-f]+)"', other.get("/").text)[0]
    for form in ({}, {"proof": ""}, {"proof": proof}):
        assert signed_in.post("/logout", form).status == 403


def test_every_answer_says_what_a_browser_may_do_with_it(site: Visitor, guarded: Visitor) -> None:
    answers = [site.get(path) for path in (*PAGES, *DATA, "/healthz", "/nowhere", "/static/base.css")]
    answers += [guarded.get("/"), site.get("/", host="evil.example"), site.ask("DELETE", "/")]
    answers += [site.post("/login", {"token": "x" * 2 * MAX_BODY_BYTES})]
    for answer in answers:
        assert {name: answer.headers.get(name) for name in HEADERS} == HEADERS, answer
    policy = HEADERS["content-security-policy"]
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy


def test_no_page_holds_a_script_or_a_style_of_its_own(site: Visitor) -> None:
    for path in PAGES:
        page = site.get(path).text
        assert not re.findall(r"<style|style=|\son\w+=|javascript:", page)
        for attributes, content in re.findall(r"<script([^>]*)>(.*?)</script>", page, re.DOTALL):
            assert re.search(r'src="/static/[\w./-]+"', attributes)
            assert not content
        for address in re.findall(r'(?:src|href)="([^"]*)"', page):
            assert address.startswith(("/", "#")), address
            assert not address.startswith("//")


HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp;\u2028"


def test_whatever_came_from_outside_stays_text(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    ledger = write_plant(path, rounds=6)
    book = ledger.book("bearings")
    book.put(METRIC_NAME, HOSTILE.encode())
    ledger.put("federation", HOSTILE.encode())
    ledger.save_gateway(a_gateway(HOSTILE, 90, software=HOSTILE, engines=HOSTILE, tags=HOSTILE, nonce=b"hostile"))
    book.save_answer(a_decline(3, HOSTILE, HOSTILE))
    book.save_flag(Flag(gateway=HOSTILE, at=1.0, round=3, state="flagged", reason=HOSTILE, evidence=HOSTILE))
    sensor = {"name": HOSTILE[:16], "rate_pct": 3, "silent_seconds": 9}
    ledger.put(SENSORS_OF + HOSTILE, msgspec.json.encode([list(sensor.values())]))
    ledger.commit()
    ledger.close()
    with served(path) as site:
        from urllib.parse import quote

        for where in ("/", f"/gateway?name={quote(HOSTILE)}", "/round?id=3", f"/gateway?name={quote('<b>')}"):
            page = site.get(where).text
            assert "<script>alert" not in page
            assert "<img" not in page
            assert "alert(1)" in page or "&lt;b&gt;" in page
            assert not re.search(r"<[^>]*\sonerror=", re.sub(r'"[^"]*"', '""', page))
        data = site.get("/api/fleet")
        assert data.headers["content-type"] == "application/json"
        assert HOSTILE in [row[0] for row in data.json()["rows"]]


# -- alerts, and what people say of them -----------------------------------------------------------------------


@pytest.fixture
def watched(tmp_path: Path) -> Path:
    """A ledger with machines, an alert that waits and one that is decided."""
    path = tmp_path / "ledger.sqlite"
    ledger = write_plant(path, rounds=6)
    ledger.save_watch(a_watch("bay2-fan"))
    ledger.save_machine(a_machine("bay2-fan", "fan-2", kind="fan", level=1.21, drift="kurtosis"))
    ledger.save_machine(a_machine("bay2-fan", "pump-1"))
    ledger.save_alert(an_alert("bay2-fan", 3, machine="fan-2", severity="alarm", label="inner_race"))
    ledger.save_alert(an_alert("bay2-fan", 2, machine="fan-2", state="confirmed", verdict="ball"))
    ledger.save_fleet_drifts([a_drift()])
    ledger.save_fleet_spreads([a_fleet_spread(), a_fleet_spread("velocity", shares=EVEN, stability=0.0, since=None)])
    ledger.commit()
    ledger.close()
    return path


def proof_of(page: str) -> str:
    return str(re.findall(r'name="proof" value="([0-9a-f]+)"', page)[0])


def orders_of(path: Path) -> list[tuple[str, str]]:
    with closing(Ledger(path, read_only=True)) as ledger:
        return [(order.verb, order.task) for order in ledger.alert_orders_waiting()]


def test_alerts_stand_there_with_what_they_go_by(watched: Path) -> None:
    with served(watched) as site:
        page = site.get("/").text
        assert "it looks like inner_race" in page
        assert "velocity 3.4 mm/s, limit 2.8, was 1.1" in page
        assert "4 of 10 pumps at 3 gateways are not what they were" in page
        assert "<form" not in page, "nobody can give orders here"
        (waiting,) = site.get("/api/alerts").json()["waiting"]
        assert (waiting["place"], len(waiting["evidence"][0]["trend"])) == ("bay2-fan/3", 24)
        machine = site.get("/machine?gateway=bay2-fan&name=fan-2").text
        assert "1.21 × its limit" in machine
        assert "confirmed: ball" in machine
        assert "fan-2" in site.get("/gateway?name=bay2-fan").text
        assert site.get("/machine?gateway=bay2-fan&name=none").status == 404


def test_how_machines_hold_to_what_is_normal_stands_there_with_its_tenths(watched: Path) -> None:
    with served(watched) as site:
        page = site.get("/").text
        drift = (
            "acceleration of 12 pumps at 5 gateways together is higher: 29 % of windows lie in the top tenth of normal"
        )
        assert drift in page
        part = page[page.index('id="spreads"') :].partition("</section>")[0]
        assert part.count("<svg") == 2
        assert 'aria-label="2 %, 3 %, 4 %, 6 %, 8 %, 10 %, 11 %, 12 %, 15 %, 29 %"' in part
        assert part.index("acceleration") < part.index("velocity")
        (first, second) = site.get("/api/alerts").json()["spreads"]
        assert (first["measure"], first["index"], first["shares"][-1]) == ("acceleration", 0.45, 0.29)
        assert (second["index"], second["drifting_since"]) == (0.0, None)


def test_where_no_machine_has_told_how_it_holds_to_its_normal_nothing_stands_there(tmp_path: Path) -> None:
    write_plant(tmp_path / "ledger.sqlite", rounds=2).close()
    with served(tmp_path / "ledger.sqlite") as site:
        assert 'id="spreads"' not in site.get("/").text


@pytest.mark.parametrize(
    ("what", "fault"),
    [("confirm", "inner_race"), ("confirm", "other: loose foot"), ("dismiss", "left in the field"), ("ack", "")],
)
def test_an_operators_verdict_goes_on_record_with_who_gave_it(
    watched: Path, tmp_path: Path, what: str, fault: str
) -> None:
    with served(watched, **with_tokens(tmp_path)) as site:
        operator = site.sign_in(OPERATOR)
        page = operator.get("/").text
        form = {
            "proof": proof_of(page),
            "alert": "bay2-fan/3",
            "fault": fault,
            "said_by": "Ann",
            "back": "/?task=bearings#alerts",
        }
        answer = operator.post("/orders", form | {"what": what})
        assert (answer.status, answer.headers["location"]) == (303, "/?task=bearings#alerts")
        assert orders_of(watched) == [(what, "bay2-fan/3")]
        assert "waits for the gateway to hear of it" in operator.get("/").text
    noted = (watched.parent / "audit.log").read_text(encoding="utf-8")
    assert f"order {what}" in noted
    assert "Ann (dashboard, session " in noted


@pytest.mark.parametrize(("what", "expected"), [("dismiss", 2), ("ack", 1)])
def test_a_verdict_is_given_of_the_alerts_that_overlap_where_that_is_asked_for(
    watched: Path, tmp_path: Path, what: str, expected: int
) -> None:
    with closing(Ledger(watched)) as ledger:
        ledger.save_alert(an_alert("bay2-fan", 4, machine="fan-2", kind="defect", from_at=RAISED_AT, to_at=None))
        ledger.save_alert(an_alert("bay2-fan", 5, machine="fan-2", kind="anomaly", from_at=1.0, to_at=2.0))
        ledger.commit()
    with served(watched, **with_tokens(tmp_path)) as site:
        operator = site.sign_in(OPERATOR)
        page = operator.get("/").text
        assert "and so were 4 (defect)" in page
        assert "5 (anomaly)" not in page
        form = {"proof": proof_of(page), "alert": "bay2-fan/3", "what": what, "others": "too"}
        assert operator.post("/orders", form).status == 303
    assert orders_of(watched) == [(what, "bay2-fan/3"), (what, "bay2-fan/4")][:expected]


def test_a_viewer_and_a_stranger_give_no_orders(watched: Path, tmp_path: Path) -> None:
    with served(watched, **with_tokens(tmp_path)) as site:
        viewer = site.sign_in(VIEWER)
        page = viewer.get("/").text
        assert "Sign in as an operator" in page
        form = {"alert": "bay2-fan/3", "what": "dismiss"}
        assert viewer.post("/orders", form | {"proof": proof_of(page)}).status == 403
        assert site.post("/orders", form).status == 401
        assert site.post("/orders", form, authorization=f"Bearer {VIEWER}").status == 403
    assert orders_of(watched) == []


def test_on_a_dashboard_without_tokens_nobody_gives_orders(watched: Path) -> None:
    with served(watched) as site:
        assert site.post("/orders", {"alert": "bay2-fan/3", "what": "dismiss"}).status == 403
    assert orders_of(watched) == []


def test_a_page_of_another_site_gives_no_order_in_an_operators_name(watched: Path, tmp_path: Path) -> None:
    with served(watched, **with_tokens(tmp_path)) as site:
        operator = site.sign_in(OPERATOR)
        proof = proof_of(operator.get("/").text)
        form = {"alert": "bay2-fan/3", "what": "dismiss"}
        assert operator.post("/orders", form | {"proof": proof}, origin="http://evil.example").status == 403
        assert operator.post("/orders", form | {"proof": proof}, origin="null").status == 403
        assert operator.post("/orders", form | {"proof": proof}, origin="").status == 403
        assert operator.post("/orders", form | {"proof": proof}, sec_fetch_site="cross-site").status == 403
        assert operator.post("/orders", form).status == 403
        assert operator.get("/orders?alert=bay2-fan/3&what=dismiss").status == 405
        assert operator.post("/orders", form | {"proof": proof}, content_type="text/plain").status == 415
    assert orders_of(watched) == []


@pytest.mark.parametrize(
    "form",
    [
        {"alert": "bay2-fan/99", "what": "dismiss"},
        {"alert": "nobody/3", "what": "dismiss"},
        {"alert": "bay2-fan/-3", "what": "dismiss"},
        {"alert": "bay2-fan/3", "what": "delete"},
        {"alert": "bay2-fan/3", "what": "confirm"},
        {"alert": "bay2-fan/3", "what": "confirm", "fault": "x" * 65},
        {"alert": "bay2-fan/3", "what": "confirm", "fault": "a\nb"},
        {"alert": "bay2-fan/3", "what": "ack", "said_by": "a\x00b"},
        {"alert": "", "what": ""},
        {},
    ],
)
def test_what_is_no_order_changes_nothing(watched: Path, tmp_path: Path, form: dict[str, str]) -> None:
    with served(watched, **with_tokens(tmp_path)) as site:
        assert site.post("/orders", form, authorization=f"Bearer {OPERATOR}").status == 400
    assert orders_of(watched) == []


@pytest.mark.parametrize(
    "back", ["//evil.example", "/\\evil.example", "https://evil.example", "/?x\r\nset-cookie: a=b", "javascript:1"]
)
def test_an_order_leads_back_to_a_page_of_ours_alone(watched: Path, tmp_path: Path, back: str) -> None:
    with served(watched, **with_tokens(tmp_path)) as site:
        form = {"alert": "bay2-fan/3", "what": "ack", "back": back}
        answer = site.post("/orders", form, authorization=f"Bearer {OPERATOR}")
        assert (answer.status, answer.headers["location"]) == (303, "/")


# -- requests that mean harm -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/static/../app.py",
        "/static/..%2fapp.py",
        "/static/%2e%2e/%2e%2e/ledger.py",
        "/static/vendor/../../service.py",
        "//etc/passwd",
        "/static//etc/passwd",
        "/static/base.css%00.js",
        "/static/",
        "/static",
        "/static/app.py",
        "/static/vendor/uplot/README.md",
        "/..\\..\\windows",
        "/static/base.css/..",
    ],
)
def test_no_path_leads_out_of_the_list_of_files(site: Visitor, path: str) -> None:
    answer = site.get(path)
    assert answer.status in (307, 400, 404)
    assert b"import" not in answer.body
    assert b"root:" not in answer.body


def test_every_file_of_the_list_is_there(site: Visitor) -> None:
    for name, kind in FILES.items():
        answer = site.get(f"/static/{name}")
        assert (answer.status, answer.headers["content-type"].partition(";")[0]) == (200, kind.partition(";")[0])
        packed = site.get(f"/static/{name}", accept_encoding="gzip")
        assert packed.body == answer.body


def test_what_is_too_long_is_refused_unread(site: Visitor, guarded: Visitor) -> None:
    host = f"host: {site.host}\r\n"
    for length in (str(MAX_BODY_BYTES + 1), "9" * 30, "0x10", "-1", "1_0"):
        came = site.talk(f"POST /login HTTP/1.1\r\n{host}content-length: {length}\r\n\r\n".encode())
        assert came.split()[1] in (b"413", b"400"), length
    chunk = b"1000\r\n" + b"x" * 4096 + b"\r\n"
    form = "content-type: application/x-www-form-urlencoded\r\n"
    origin = f"origin: http://{site.host}\r\n"
    head = f"POST /login HTTP/1.1\r\n{host}{origin}{form}transfer-encoding: chunked\r\n\r\n".encode()
    came = site.talk(head + 3 * chunk + b"0\r\n\r\n")
    assert came.split()[1] == b"413"
    came = site.talk(b"GET / HTTP/1.1\r\n" + host.encode() + b"x: " + b"y" * 100_000 + b"\r\n\r\n")
    assert came.split()[1] in (b"400", b"431")
    assert site.get("/" + "a" * 20_000).status in (400, 431)


@pytest.mark.parametrize(
    "said",
    [
        b"nonsense\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\nhost: evil.example\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\nx : a\r\n\r\n",
        b"POST /login HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /login HTTP/1.1\r\nhost: 127.0.0.1\r\ntransfer-encoding: chunked\r\n\r\nzzzz\r\n",
        b"POST /login HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
    ],
)
def test_what_is_no_request_is_refused_and_others_are_served(site: Visitor, said: bytes) -> None:
    with socket.create_connection(("127.0.0.1", site.port), 20.0) as one:
        one.sendall(said)
        one.shutdown(socket.SHUT_WR)
        came = b""
        while part := one.recv(4096):
            came += part
    assert not came or int(came.split()[1]) >= 400
    assert b"bay1-press" not in came
    assert site.get("/healthz").status == 200


def test_a_websocket_is_not_opened(site: Visitor) -> None:
    answer = site.get("/", connection="upgrade, close", upgrade="websocket", sec_websocket_version="13")
    assert answer.status != 101


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "TRACE", "CONNECT", "OPTIONS"])
def test_other_methods_do_nothing(site: Visitor, guarded: Visitor, method: str) -> None:
    for where in (site, guarded):
        assert where.ask(method, "/", origin=f"http://{where.host}").status in (400, 401, 405)


@pytest.mark.parametrize(
    "path",
    [
        "/round?id=-1",
        "/round?id=99999999999999999999",
        "/round?id=1e3",
        "/round?id=%D9%A3",
        "/round",
        "/round?id=12345",
        "/gateway",
        "/gateway?name=" + "x" * 5000,
        "/gateway?name=%00",
        "/gateway?name=%FF%FE",
        "/gateway?name=bay1-press&task=%22%3E",
        "/api/overview?task=x'%20OR%201=1--",
        "/api/gateway?name=x'%20OR%201=1--",
    ],
)
def test_what_is_not_there_is_not_found(site: Visitor, path: str) -> None:
    assert site.get(path).status == 404


def test_names_from_outside_do_not_fill_the_memory(plant: Path) -> None:
    with served(plant) as site:
        for number in range(20):
            assert site.get(f"/api/overview?task=task-{number}").status == 404
        assert site.get("/api/overview").status == 200


def test_who_takes_too_long_to_say_what_is_wanted_is_hung_up_on(plant: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "REQUEST_SECONDS", 0.3)
    with served(plant) as site:
        slow = [socket.create_connection(("127.0.0.1", site.port), 20.0) for _ in range(3)]
        slow[1].sendall(b"GET / HTTP/1.1\r\n")
        slow[2].sendall(f"GET /healthz HTTP/1.1\r\nhost: {site.host}\r\n\r\nGET / HT".encode())
        for one in slow:
            came = b""
            try:
                while part := one.recv(4096):
                    came += part
            except ConnectionResetError:
                pass
            assert came.count(b"HTTP/1.1") <= 1
            one.close()
        assert site.get("/").status == 200


def test_a_slow_body_is_not_waited_for(plant: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedmq_coordinator.web import app

    monkeypatch.setattr(app, "BODY_SECONDS", 0.3)
    with served(plant) as site:
        head = f"POST /login HTTP/1.1\r\nhost: {site.host}\r\norigin: http://{site.host}\r\n"
        form = "content-type: application/x-www-form-urlencoded\r\ncontent-length: 100\r\n\r\ntoken="
        came = site.talk((head + form).encode())
        assert came.split()[1] == b"408"


def test_too_many_connections_do_not_keep_others_out_for_long(plant: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "MAX_CONNECTIONS", 8)
    monkeypatch.setattr(service, "REQUEST_SECONDS", 1.0)
    with served(plant) as site:
        crowd = [socket.create_connection(("127.0.0.1", site.port), 20.0) for _ in range(12)]

        def answers() -> bool:
            try:
                return site.get("/healthz").status == 200
            except (ConnectionError, IndexError):
                return False

        wait_for(answers)
        for one in crowd:
            one.close()


def test_who_does_not_take_an_answer_is_hung_up_on(plant: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedmq_coordinator.web import app

    monkeypatch.setattr(app, "WRITE_SECONDS", 0.3)
    with served(plant) as site:
        with socket.socket() as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            one.settimeout(20.0)
            one.connect(("127.0.0.1", site.port))
            request = f"GET /static/vendor/uplot/uPlot.iife.min.js HTTP/1.1\r\nhost: {site.host}\r\n\r\n".encode()
            # Pipelined: more answers than any buffer holds, and nobody reads one.
            one.sendall(request * 100)
            time.sleep(2.0)
            came = bytearray()
            try:
                while part := one.recv(1 << 16):
                    came += part
            except ConnectionResetError:
                pass
        assert came.count(b"HTTP/1.1 200") < 100
        assert site.get("/").status == 200
