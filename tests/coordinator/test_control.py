"""The control socket: who may do what, what is noted of it, and that nobody who hangs holds up the others."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from broker_fixtures import eventually
from fedmq_coordinator import control
from fedmq_coordinator.audit import AuditLog, Entry
from fedmq_coordinator.control import (
    MAX_OF_ONE_USER,
    MAX_REQUEST_BYTES,
    REFUSALS_AN_HOUR,
    Answer,
    Control,
    ControlError,
    Look,
    Order,
    Outcome,
    Roles,
    Server,
    ask,
)
from fedmq_coordinator.job import TaskPlan
from fedmq_coordinator.ledger import Ledger, LedgerError
from fedmq_coordinator.report_view import View
from fedmq_coordinator.settings import RoundSettings
from fedmq_coordinator.tasks import Wish
from hypothesis import given
from hypothesis import strategies as st
from ledgers import tell
from processes import environment, fedmq
from scripted_fleet import ScriptedFleet, scripted_task

from fedmq.programs import open_ledger

DAEMON, BIN, SYS = (1, 1), (2, 2), (3, 3)
"""User and group of users that every Debian has; none of them is the one who runs the tests."""
ROLES = Roles(operators=("daemon",), viewers=("@bin",), own_uid=4242)


@pytest.fixture
def fleet(tmp_path: Path) -> ScriptedFleet:
    plan = TaskPlan(task=scripted_task("pumps"), rounds=RoundSettings(max_rounds=3, min_gateways=2))
    fleet = ScriptedFleet(tmp_path, tasks=[plan], tags={"g0": (), "g1": ()})
    fleet.run_to_rest()
    return fleet


def control_of(fleet: ScriptedFleet, roles: Roles = ROLES) -> Control:
    return Control(fleet.directory / "ledger.sqlite", audit_of(fleet), roles, clock=lambda: fleet.now)


def audit_of(fleet: ScriptedFleet) -> AuditLog:
    return AuditLog(fleet.directory / "audit.log", clock=lambda: fleet.now)


def noted(fleet: ScriptedFleet) -> list[tuple[str, str, str, str]]:
    entries = [entry for entry in audit_of(fleet).entries() if isinstance(entry, Entry)]
    assert not audit_of(fleet).verify().findings
    return [(str(entry.who), entry.action, entry.subject, entry.outcome) for entry in entries]


def asked(fleet: ScriptedFleet, request: Any, who: tuple[int, int], roles: Roles = ROLES) -> Answer:
    return control_of(fleet, roles).answer(msgspec.json.encode(request), *who)


PAUSE = Order(task="pumps", wish=Wish(verb="pause"))


# -- roles -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("who", "role"),
    [
        ((0, 0), "operator"),
        ((4242, 4242), "operator"),
        (DAEMON, "operator"),
        (BIN, "viewer"),
        (SYS, None),
        ((4, 65534), None),
        ((999_999, 999_999), None),
        ((999_999, 2), "viewer"),
        ((3, 2), "viewer"),
    ],
)
def test_a_role_is_of_a_user_or_of_one_of_its_groups(who: tuple[int, int], role: str | None) -> None:
    assert ROLES.of(*who) == role


def test_an_operator_who_is_a_viewer_too_is_an_operator() -> None:
    assert Roles(operators=("@bin",), viewers=("bin",), own_uid=4242).of(*BIN) == "operator"


def test_names_that_the_machine_does_not_know_give_nobody_a_role() -> None:
    roles = Roles(operators=("no-such-user", "@no-such-group", "daemon"), own_uid=4242)
    assert list(roles.strangers()) == ["no-such-user", "@no-such-group"]
    assert roles.of(*BIN) is None


# -- what they get ---------------------------------------------------------------------------------------------


def test_the_state_of_affairs_is_there_for_programs(fleet: ScriptedFleet) -> None:
    told = json.loads(asked(fleet, Look(what="status", form="json"), BIN).text)
    (task,) = told["tasks"]
    assert (task["name"], task["state"]) == ("pumps", "running")
    with contextlib.closing(open_ledger(fleet.directory)) as ledger:
        assert task["round"]["number"] == ledger.newest_round()
    assert [(one["name"], one["present"]) for one in told["gateways"]] == [("g0", True), ("g1", True)]
    for one in told["gateways"]:
        assert one["last_seen"] <= told["now"]
        assert one["answer"]["kind"] in ("update", "statistics")
        assert one["answer"]["verdict"] == "accepted"
        assert one["answer"]["at"] <= told["now"]
        assert one["vitals"] is None, "they do not tell"


def test_battery_and_link_are_there_for_programs_with_the_time_of_the_last_word(fleet: ScriptedFleet) -> None:
    with contextlib.closing(Ledger(fleet.directory / "ledger.sqlite", visit=True)) as ledger:
        tell(ledger, "g1", 5.0, battery_pct=12, on_mains=False, link="wifi", metered=True)
        ledger.commit()
    told = json.loads(asked(fleet, Look(what="status", form="json"), BIN).text)
    assert [one["vitals"] for one in told["gateways"]] == [
        None,
        {"battery_pct": 12, "on_mains": False, "link": "wifi", "metered": True, "low": True, "at": 5.0},
    ]


def test_an_operator_s_order_is_carried_out_and_noted_with_who_gave_it(fleet: ScriptedFleet) -> None:
    number = asked(fleet, PAUSE, DAEMON).order
    assert asked(fleet, Outcome(order=number), DAEMON) == Answer(order=number)
    fleet.run_for(2.0)
    answer = asked(fleet, Outcome(order=number), BIN)
    assert (answer.done, answer.text) == (True, "no round opens any more")
    assert fleet.coordinator.job("pumps").run.paused
    assert noted(fleet)[-2:] == [
        ("daemon (uid 1, socket)", "order pause", "task pumps", "ordered"),
        ("daemon (uid 1, socket)", "pause", "task pumps", "done: no round opens any more"),
    ]


def test_an_order_survives_a_crash_and_keeps_who_gave_it(fleet: ScriptedFleet) -> None:
    promote = Order(task="pumps", wish=Wish(verb="promote", version=2, canary_pct=5.0, tags=("a",), forced=True))
    number = asked(fleet, promote, DAEMON).order
    fleet.kill_coordinator()
    fleet.start_coordinator()
    fleet.run_for(2.0)
    order = fleet.ledger.get_order(number)
    assert order is not None
    assert order.done
    assert noted(fleet)[-2] == (
        "daemon (uid 1, socket)",
        "order promote",
        "task pumps",
        "ordered: version 2; tags a; 5 %; without a comparison",
    )
    assert noted(fleet)[-1][0:2] == ("daemon (uid 1, socket)", "promote")
    assert noted(fleet)[-1][3].startswith("done: release 1: version 2 for 5 %")


def test_an_order_that_cannot_be_carried_out_is_noted_too(fleet: ScriptedFleet) -> None:
    asked(fleet, Order(task="pumps", wish=Wish(verb="rollback", version=99)), DAEMON)
    fleet.run_for(2.0)
    assert noted(fleet)[-1][1] == "rollback"
    assert noted(fleet)[-1][3].startswith("could not be carried out: there is no version 99")


def test_a_lineage_that_begins_is_noted(fleet: ScriptedFleet) -> None:
    number = fleet.coordinator.only.line.number
    assert noted(fleet)[0][1:] == ("new lineage", "task pumps", f"lineage {number} begins: the first")
    lines = len(noted(fleet))
    fleet.kill_coordinator()
    fleet.start_coordinator()
    assert len(noted(fleet)) == lines, "a restart goes on with the same"


def test_an_order_that_the_ledger_does_not_take_is_noted_as_such(
    fleet: ScriptedFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(*_: object) -> int:
        raise LedgerError("the ledger is locked")

    monkeypatch.setattr(Ledger, "order", busy)
    assert asked(fleet, PAUSE, DAEMON).error == "the ledger is locked"
    assert [outcome for *_, outcome in noted(fleet)[-2:]] == ["ordered", "not taken: the ledger is locked"]


def test_a_number_that_no_ledger_can_hold_stops_no_coordinator(fleet: ScriptedFleet) -> None:
    order = fleet.order("rollback", "pumps", version=1, lineage=1 << 63)
    assert not order.done
    assert "cannot be read" in (order.result or "")


def test_who_gave_an_order_is_the_kernel_s_word(fleet: ScriptedFleet) -> None:
    claimed = msgspec.json.decode(msgspec.json.encode(PAUSE))
    claimed["wish"]["by"] = {"user": "root", "uid": 0, "how": "local"}
    assert asked(fleet, claimed, DAEMON).order
    fleet.run_for(2.0)
    assert [who for who, *_ in noted(fleet)[-2:]] == ["daemon (uid 1, socket)"] * 2


def test_a_viewer_looks_and_its_orders_are_refused_and_noted(fleet: ScriptedFleet) -> None:
    assert "(training)" in asked(fleet, Look(what="status"), BIN).text
    assert json.loads(asked(fleet, Look(what="report", form="json"), BIN).text)["rounds"]
    assert asked(fleet, Look(what="report", form="html"), BIN).text.startswith("<!doctype html>")
    assert asked(fleet, Look(what="report", form="csv"), BIN).text.startswith("round,")
    assert asked(fleet, Look(what="report", task="pumps"), BIN).text
    part = Look(what="report", form="json", view=View(gateways=("g0",)), price_per_gb=2.0, currency="CHF")
    found = json.loads(asked(fleet, part, BIN).text)
    assert [line["name"] for line in found["gateways"]] == ["g0"]
    assert found["price"] == {"per_gb": 2.0, "currency": "CHF"}
    assert "no gateway 'g9'" in asked(fleet, Look(what="report", view=View(gateways=("g9",))), BIN).error
    assert "three capital letters" in asked(fleet, Look(what="report", currency="euro"), BIN).error
    (line,) = json.loads(asked(fleet, Look(what="tasks"), BIN).text)
    assert (line["name"], line["version"]) == ("pumps", 3)
    before = noted(fleet)

    answer = asked(fleet, PAUSE, BIN)
    why = "refused: bin (uid 2) is a viewer, and orders are for operators"
    why += "; control.operators and control.viewers name them"
    assert answer == Answer(error=why)
    assert not fleet.ledger.orders_waiting()
    assert noted(fleet) == [*before, ("bin (uid 2, socket)", "order pause", "task pumps", why)]


def test_what_nobody_asked_for_is_not_said_so_that_an_older_coordinator_understands() -> None:
    assert json.loads(msgspec.json.encode(Look(what="report"))) == {"ask": "look", "what": "report"}


@pytest.mark.parametrize(
    "request_",
    [PAUSE, Outcome(order=1), Look(what="status"), Look(what="report", form="json"), Look(what="tasks")],
)
def test_somebody_without_a_role_is_refused_everything(fleet: ScriptedFleet, request_: Any) -> None:
    answer = asked(fleet, request_, SYS)
    assert answer.error.startswith("refused: sys (uid 3) is neither an operator nor a viewer")
    assert not answer.text
    assert not fleet.ledger.orders_waiting()
    assert noted(fleet)[-1][0] == "sys (uid 3, socket)"


def test_who_is_refused_again_and_again_does_not_fill_the_log(fleet: ScriptedFleet) -> None:
    before = len(noted(fleet))
    server = control_of(fleet)
    for _ in range(3 * REFUSALS_AN_HOUR):
        assert server.answer(msgspec.json.encode(PAUSE), *SYS).error.startswith("refused")
    assert len(noted(fleet)) == before + REFUSALS_AN_HOUR
    assert noted(fleet)[-1][3].endswith("no more of this user are noted within the hour")
    server.answer(msgspec.json.encode(PAUSE), *BIN)
    assert noted(fleet)[-1][0] == "bin (uid 2, socket)", "others are noted still"
    fleet.now += 3601
    server.answer(msgspec.json.encode(PAUSE), *SYS)
    assert noted(fleet)[-1][0] == "sys (uid 3, socket)"


def test_an_order_that_cannot_be_noted_is_not_taken(fleet: ScriptedFleet, tmp_path: Path) -> None:
    audit_of(fleet).path.rename(tmp_path / "moved")
    audit_of(fleet).path.symlink_to(tmp_path / "moved")
    assert "is a link to" in asked(fleet, PAUSE, DAEMON).error
    assert not fleet.ledger.orders_waiting()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"", "expected a request as a line of JSON"),
        (b"{}", "expected a request as a line of JSON"),
        (b'{"ask": "shell", "command": "ls"}', "expected a request as a line of JSON"),
        (b'{"ask": "order", "task": "pumps", "wish": {"verb": "pause"}, "more": 1}', "expected a request"),
        (b'{"ask": "order", "task": "pumps", "wish": {"verb": "explode"}}', "expected pause, resume"),
        (b'{"ask": "order", "task": "fans", "wish": {"verb": "pause"}}', "no task 'fans'; there is pumps"),
        (b'{"ask": "order", "task": "pumps", "wish": {"verb": "promote", "canary_pct": 900}}', "expected a request"),
        (
            b'{"ask": "order", "task": "pumps", "wish": {"verb": "rollback", "lineage": 9223372036854775808}}',
            "expected a",
        ),
        (b'{"ask": "outcome", "order": 99}', "there is no order 99"),
        (b'{"ask": "outcome", "order": 9223372036854775808}', "expected a request"),
        (b'{"ask": "look", "what": "status", "width": 100000}', "width: expected 20 to 1,000"),
        (b'{"ask": "look", "what": "status", "task": "fans"}', "no task 'fans'"),
        (b'{"ask": "look", "what": "passwords"}', "expected a request as a line of JSON"),
        (b"\xff\xfe\x00", "expected a request as a line of JSON"),
        (b"[" * 9000, "expected a request as a line of JSON"),
        (
            b'{"ask": "order", "task": "pumps", "wish": {"verb": "pause", "x": ' + b"[" * 7000 + b"]" * 7000 + b"}}",
            "expected a request as a line of JSON",
        ),
    ],
)
def test_what_is_no_request_is_an_answer(fleet: ScriptedFleet, line: bytes, said: str) -> None:
    assert said in control_of(fleet).answer(line, *DAEMON).error
    assert not fleet.ledger.orders_waiting()


@given(st.binary(max_size=300) | st.text(max_size=100).map(str.encode))
def test_anything_is_a_request_or_refused_as_none(line: bytes) -> None:
    try:
        request = control._request(line)
    except ControlError:
        return
    assert isinstance(request, Order | Outcome | Look)


# -- the socket ------------------------------------------------------------------------------------------------


@pytest.fixture
def served(fleet: ScriptedFleet) -> Iterator[Path]:
    path = fleet.directory / "control.sock"
    with Server(path, control_of(fleet, Roles()), open_to_all=False):
        yield path
    assert not path.exists()


def connect(path: Path) -> socket.socket:
    one = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    one.settimeout(30)
    with control._short(path) as name:
        one.connect(name)
    return one


def test_a_request_and_its_answer_go_through_the_socket(served: Path, fleet: ScriptedFleet) -> None:
    assert stat.S_IMODE(served.stat().st_mode) == 0o600
    number = ask(served, PAUSE).order
    fleet.run_for(2.0)
    assert ask(served, Outcome(order=number)).done is True
    assert "pumps" in ask(served, Look(what="status")).text
    with pytest.raises(ControlError, match="no task 'fans'"):
        ask(served, Look(what="report", task="fans"))


def test_a_request_may_come_in_pieces(served: Path) -> None:
    with connect(served) as one:
        for byte in msgspec.json.encode(Look(what="tasks")) + b"\n":
            one.sendall(bytes([byte]))
        assert msgspec.json.decode(one.makefile("rb").readline(), type=Answer).text.startswith("[")


def test_who_hangs_holds_up_nobody(served: Path) -> None:
    silent, half, deaf = connect(served), connect(served), connect(served)
    half.sendall(b'{"ask": ')
    deaf.sendall(msgspec.json.encode(Look(what="report", form="html")) + b"\n")
    for _ in range(3):
        assert ask(served, Look(what="tasks")).text
    for one in (silent, half, deaf):
        one.close()
    assert ask(served, Look(what="tasks")).text


def test_who_says_nothing_is_hung_up_on(fleet: ScriptedFleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "REQUEST_SECONDS", 0.05)
    path = fleet.directory / "control.sock"
    with Server(path, control_of(fleet, Roles()), open_to_all=False), connect(path) as one:
        assert one.recv(1) == b""


def test_one_user_has_so_many_connections_and_no_more(served: Path) -> None:
    kept = [connect(served) for _ in range(MAX_OF_ONE_USER)]
    with connect(served) as one:
        assert one.recv(1) == b""
    for one in kept:
        one.close()

    def served_again() -> bool:
        try:
            return bool(ask(served, Look(what="tasks")).text)
        except ControlError:
            return False  # it has not seen the others go yet

    eventually(served_again, "a connection after the others are gone")


def test_a_request_without_end_is_refused(served: Path) -> None:
    with connect(served) as one:
        one.sendall(b"x" * (MAX_REQUEST_BYTES + 1))
        answer = msgspec.json.decode(one.makefile("rb").readline(), type=Answer)
    assert answer.error == f"expected a request of at most {MAX_REQUEST_BYTES:,} bytes"


def test_a_fault_of_ours_is_told_and_the_next_one_is_served(served: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Answer:
        raise RuntimeError("a bug")

    with monkeypatch.context() as broken:
        broken.setattr(Control, "answer", fail)
        with pytest.raises(ControlError, match=r"failed to answer \(RuntimeError\); its log tells more"):
            ask(served, Look(what="tasks"))
    assert ask(served, Look(what="tasks")).text


def test_the_socket_of_a_killed_coordinator_is_taken_over_and_no_other_thing(fleet: ScriptedFleet) -> None:
    path = fleet.directory / "control.sock"
    words = {"control": control_of(fleet, Roles()), "open_to_all": False}
    left = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with control._short(path) as name:
        left.bind(name)
    left.close()
    assert path.exists()
    with pytest.raises(ControlError, match="no coordinator listens there"):
        ask(path, PAUSE)
    with Server(path, **words):
        with pytest.raises(ControlError, match="another coordinator listens"):
            Server(path, **words)
        assert ask(path, Look(what="tasks")).text, "it is still the first one's"
    path.write_text("a file")
    with pytest.raises(ControlError, match="there is something else"):
        Server(path, **words)
    assert path.read_text() == "a file"
    with pytest.raises(ControlError, match="cannot reach the coordinator: No such file"):
        ask(fleet.directory / "nothing", PAUSE)


def test_a_socket_lies_below_a_long_path_and_in_no_open_folder(fleet: ScriptedFleet) -> None:
    words = {"control": control_of(fleet, Roles()), "open_to_all": True}
    path = fleet.directory / ("long-" * 20) / ("path-" * 20) / "control.sock"
    with Server(path, **words):
        assert stat.S_IMODE(path.stat().st_mode) == 0o666
        assert ask(path, Look(what="tasks")).text
    path.parent.chmod(0o777)
    with pytest.raises(ControlError, match="mode 0777, so that everybody may put another socket there"):
        Server(path, **words)


# -- real users ------------------------------------------------------------------------------------------------


def as_user(uid: int, gid: int, path: Path, request: Any) -> str:
    """What another user's process is answered; the kernel says who it is."""
    come, go = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(come)
            os.setgroups([])
            os.setgid(gid)
            os.setuid(uid)
            try:
                said = ask(path, request).text or "taken"
            except ControlError as error:
                said = str(error)
            os.write(go, said.encode()[:4000])
        finally:
            os._exit(0)
    os.close(go)
    with os.fdopen(come, "rb") as file:
        said = file.read().decode()
    os.waitpid(child, 0)
    return said


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users may enter; pytest's own are shut to them."""
    if os.geteuid() != 0:
        pytest.skip("only root can become other users")
    folder = Path(tempfile.mkdtemp(prefix="fedmq-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_the_kernel_says_who_asks(fleet: ScriptedFleet, open_folder: Path) -> None:
    path = open_folder / "control.sock"
    roles = Roles(operators=("@daemon",), viewers=("bin",))
    with Server(path, control_of(fleet, roles), open_to_all=True):
        assert as_user(*DAEMON, path, PAUSE) == "taken"
        assert "(training)" in as_user(*BIN, path, Look(what="status"))
        assert as_user(*BIN, path, PAUSE).startswith("refused: bin (uid 2) is a viewer")
        assert as_user(*SYS, path, Look(what="status")).startswith("refused: sys (uid 3) is neither")
        path.chmod(0o600)
        assert "this user may not connect there" in as_user(*DAEMON, path, PAUSE)
    assert [order.verb for order in fleet.ledger.orders_waiting()] == ["pause"]


def test_a_shut_folder_says_to_use_the_socket(fleet: ScriptedFleet, open_folder: Path) -> None:
    shut = open_folder / "state"
    shutil.copytree(fleet.directory, shut)
    shut.chmod(0o700)
    come, go = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(1)
            os.setuid(1)
            try:
                open_ledger(shut)
            except LedgerError as error:
                os.write(go, str(error).encode())
        finally:
            os._exit(0)
    os.close(go)
    with os.fdopen(come) as file:
        said = file.read()
    os.waitpid(child, 0)
    assert f"this user may not look into {shut}: ask the coordinator by its socket (--control)" in said


# -- the command -----------------------------------------------------------------------------------------------


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """A real coordinator, whose broker does not answer: orders need none. Its state directory, and its process."""
    state = tmp_path / "state"
    config = tmp_path / "coordinator.toml"
    config.write_text(
        f'state_dir = "{state}"\n[connection]\nport = 1\n[task]\nname = "pumps"\nclasses = ["normal", "inner"]\n'
    )
    words = [sys.executable, "-m", "fedmq", "coordinator", "--config", str(config)]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment(), start_new_session=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "127.0.0.1:1" in line:
            break
    yield state, process
    if process.poll() is None:
        process.kill()
    process.wait()
    process.stderr.close()


def test_the_command_goes_through_the_socket_and_all_is_on_record(
    running: tuple[Path, subprocess.Popen[str]], tmp_path: Path
) -> None:
    state, process = running
    by_socket = ("--control", str(state / "control.sock"))
    paused = fedmq("task", "pause", "pumps", "--state", str(state), "--wait", "60")
    assert (paused.returncode, paused.stdout) == (0, "pumps: no round opens any more\n"), paused.stderr
    resumed = fedmq("task", "resume", "pumps", *by_socket, "--wait", "60")
    assert resumed.stdout.startswith("pumps: goes on"), resumed.stderr
    missing = fedmq("task", "pause", "fans", *by_socket)
    assert (missing.returncode, missing.stderr) == (1, "fedmq task: no task 'fans'; there is pumps\n")
    failed = fedmq("task", "promote", "pumps", *by_socket, "--wait", "60")
    assert (failed.returncode, failed.stderr) == (1, "fedmq task: there is no version to promote yet\n")

    for words in (["status"], ["report"], ["report", "--json"], ["report", "--csv"], ["task", "list", "--json"]):
        both = [fedmq(*words, *place) for place in (("--state", str(state)), by_socket)]
        assert [one.returncode for one in both] == [0, 0], both[1].stderr
        assert len(both[0].stdout.splitlines()) == len(both[1].stdout.splitlines()) > 0
    page = tmp_path / "page.html"
    assert fedmq("report", *by_socket, "--html", str(page)).returncode == 0
    assert page.read_text().startswith("<!doctype html>")

    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert not (state / "control.sock").exists()
    shown = fedmq("audit", "show", "--state", str(state), "--json").stdout.splitlines()
    entries = [json.loads(line) for line in shown]
    own = {"user": entries[0]["who"]["user"], "uid": os.getuid()}
    assert {(entry["who"]["user"], entry["who"]["uid"]) for entry in entries} == {tuple(own.values())}
    assert [(entry["action"], entry["who"]["how"]) for entry in entries] == [
        ("new lineage", "local"),
        ("start", "local"),
        ("order pause", "socket"),
        ("pause", "socket"),
        ("order resume", "socket"),
        ("resume", "socket"),
        ("order promote", "socket"),
        ("promote", "socket"),
        ("stop", "local"),
    ]
    assert "settings sha256:" in entries[1]["outcome"]
    assert entries[-1]["outcome"] == "in order"
    assert fedmq("audit", "verify", "--state", str(state)).returncode == 0

    # Nobody runs: whoever may write the folder orders directly, and that is noted, too.
    waits = fedmq("task", "pause", "pumps", "--state", str(state))
    assert waits.stderr == f"no coordinator runs in {state}: the order waits for its next start\n"
    last = json.loads(fedmq("audit", "show", "--state", str(state), "--json", "--last", "1").stdout)
    assert (last["action"], last["who"]["how"]) == ("order pause", "local")
    assert fedmq("status", *by_socket).returncode == 1
