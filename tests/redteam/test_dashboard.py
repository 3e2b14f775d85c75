"""Whoever reaches the dashboard's port, and whose page an operator has open beside it."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
from dashboards import OPERATOR, VIEWER, Visitor, served, with_tokens
from fedmq_coordinator.ledger import Ledger
from fedmq_coordinator.web import service
from ledgers import a_gateway, write_plant
from machine_rows import a_machine, a_watch, an_alert
from redteam import Outcome

SECRET = "bay2-pump-north"
"""A name that stands in the figures, and in nothing that a stranger may read."""


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    path = tmp_path / "ledger.sqlite"
    ledger = write_plant(path, rounds=8)
    ledger.save_watch(a_watch("bay2-fan"))
    ledger.save_machine(a_machine("bay2-fan", "fan-2"))
    ledger.save_alert(an_alert("bay2-fan", 3, machine="fan-2"))
    ledger.commit()
    ledger.close()
    return path


@pytest.fixture
def guarded(ledger: Path, tmp_path: Path) -> Iterator[Visitor]:
    with served(ledger, **with_tokens(tmp_path)) as site:
        yield site


@pytest.fixture
def on_loopback(ledger: Path) -> Iterator[Visitor]:
    with served(ledger) as site:
        yield site


@pytest.mark.attack("dashboard without a token")
def test_who_has_no_token_reads_nothing(guarded: Visitor, outcome: Outcome) -> None:
    paths = ["/", "/gateway?name=" + SECRET, "/round?id=3", "/machine?gateway=bay2-fan&name=fan-2", "/orders"]
    paths += [
        "/api/overview",
        "/api/fleet",
        "/api/alerts",
        "/api/machine",
        "/api/events",
        "/metrics",
        "/static/fleet.js",
    ]
    for path in paths:
        for headers in ({}, {"cookie": "fedmq=" + "0" * 64}, {"x-forwarded-for": "127.0.0.1"}):
            answer = guarded.get(path, **headers)
            assert answer.status == 401, path
            assert SECRET.encode() not in answer.body
    assert guarded.get("/healthz").body == b"ok\n"
    outcome("dashboard: the door")


@pytest.mark.attack("dashboard, one wrong token after the other")
def test_whoever_guesses_is_soon_not_heard(guarded: Visitor, outcome: Outcome) -> None:
    statuses = [guarded.get("/", authorization=f"Bearer guess-{number}").status for number in range(12)]
    assert statuses == [401] * 5 + [429] * 7
    assert guarded.post("/login", {"token": VIEWER}).status == 429, "not even the right one"
    outcome("dashboard: attempts of an address")


@pytest.mark.attack("dashboard by a name that was made to point here")
def test_a_page_that_has_its_name_point_here_reads_nothing(on_loopback: Visitor, outcome: Outcome) -> None:
    assert SECRET in on_loopback.get("/").text
    for host in ("evil.example", f"evil.example:{on_loopback.port}", "localhost.evil.example"):
        answer = on_loopback.get("/", host=host)
        assert answer.status == 421
        assert SECRET not in answer.text
    outcome("dashboard: the Host header")


@pytest.mark.attack("order that another site's page sends")
def test_a_page_beside_the_dashboard_gives_no_orders(guarded: Visitor, ledger: Path, outcome: Outcome) -> None:
    operator = guarded.sign_in(OPERATOR)
    proof = re.findall(r'name="proof" value="([0-9a-f]+)"', operator.get("/").text)[0]
    form = {"alert": "bay2-fan/3", "what": "dismiss"}
    # A browser would not even send the cookie; here it does, and a stolen proof too.
    for headers in ({"origin": "http://evil.example"}, {"origin": "null"}, {"sec_fetch_site": "cross-site"}):
        assert operator.post("/orders", form | {"proof": proof}, **headers).status == 403
    assert operator.post("/orders", form).status == 403, "without the proof"
    with closing(Ledger(ledger, read_only=True)) as read:
        assert read.alert_orders_waiting() == []
    assert operator.post("/orders", form | {"proof": proof}).status == 303, "its own page does"
    outcome("dashboard: Origin, Sec-Fetch-Site, and the session's proof")


@pytest.mark.attack("script in a gateway's name")
def test_a_gateways_name_is_text_and_nothing_else(ledger: Path, outcome: Outcome) -> None:
    hostile = "<script>alert(1)</script>\"onload=x'"
    with closing(Ledger(ledger)) as writing:
        writing.save_gateway(a_gateway(hostile, 77, software=hostile, tags=hostile, engines=hostile))
        writing.commit()
    with served(ledger) as site:
        answer = site.get("/")
        assert "&lt;script&gt;alert(1)" in answer.text
        assert "<script>alert" not in answer.text
        policy = answer.headers["content-security-policy"]
        assert "script-src 'self'" in policy
        assert "unsafe" not in policy
    outcome("dashboard: escaped wherever it stands; then the page's policy")


@pytest.mark.attack("path out of the dashboard's files")
@pytest.mark.parametrize(
    "path", ["/static/../app.py", "/static/%2e%2e/%2e%2e/ledger.py", "/static/..%2f..%2fledger.py", "//etc/passwd"]
)
def test_files_are_those_of_a_list(on_loopback: Visitor, outcome: Outcome, path: str) -> None:
    answer = on_loopback.get(path)
    assert answer.status == 404
    assert b"import" not in answer.body
    outcome("dashboard: a list of files, no path")


@pytest.mark.attack("slow, many and oversized requests to the dashboard")
def test_who_takes_too_long_or_too_much_is_hung_up_on_and_others_are_served(
    ledger: Path, outcome: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "REQUEST_SECONDS", 0.5)
    monkeypatch.setattr(service, "MAX_CONNECTIONS", 16)
    with served(ledger) as site:
        crowd = []
        for _ in range(30):
            one = socket.create_connection(("127.0.0.1", site.port), 20.0)
            one.sendall(b"GET / HTTP/1.1\r\nx-slow: ")
            crowd.append(one)
        for one in crowd:
            with one, suppress(ConnectionResetError):
                assert one.recv(1000) == b""
        host = f"host: {site.host}\r\n".encode()
        too_long = site.talk(b"POST /login HTTP/1.1\r\n" + host + b"content-length: 1000000000\r\n\r\n")
        assert too_long.startswith(b"HTTP/1.1 413")
        assert site.get("/healthz").status == 200
    outcome("dashboard: time and room of a request")
