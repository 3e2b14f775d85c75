"""The control socket: how people on the machine look at a coordinator and give it orders, and who may do what.

Owns the socket, its thread and the roles. One connection carries one request and one answer, each a line of JSON of
bounded size. Who asks is what the kernel says of the other end (SO_PEERCRED), never what a request says:

    operator   gives orders, and looks           the coordinator's own user, root, and `control.operators`
    viewer     looks                             `control.viewers`
    nobody     is refused everything             everybody else

An order becomes a row of the ledger, as it does without a socket, with the name of who gave it. So one that was taken
survives a crash, and the coordinator's loop knows nothing of sockets. Each order and each refusal is in the audit log;
an order whose line cannot be written is not taken.

This is the one module of the coordinator beside `service` that waits: it has a thread of its own, so that who asks is
answered while the loop waits for the broker, and a time for each connection, so that one that says nothing holds up
nobody. At most MAX_CONNECTIONS are served at once, others wait in the kernel's queue; of one user MAX_OF_ONE_USER,
more are hung up on.
"""

from __future__ import annotations

import contextlib
import grp
import logging
import os
import pwd
import selectors
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Annotated, Literal, Self

import msgspec
from fedmq_protocol.condition import AlertVerb
from fedmq_protocol.secrets import writable_by_others

from fedmq_coordinator import report, tallies
from fedmq_coordinator.audit import AuditLog, Who, user_name
from fedmq_coordinator.ledger import Ledger
from fedmq_coordinator.machines import alerts_of, machines_of
from fedmq_coordinator.money import MONEY, from_bytes, price_of
from fedmq_coordinator.report_view import EVERYTHING, View
from fedmq_coordinator.tasks import VERBS, AlertWish, Wish, standing, state_of_affairs

__all__ = [
    "SOCKET",
    "AlertOrder",
    "Answer",
    "Control",
    "ControlError",
    "Look",
    "Order",
    "Outcome",
    "Roles",
    "Server",
    "ask",
    "is_there",
    "place_alert_order",
    "place_order",
]

log = logging.getLogger("fedmq.coordinator")

SOCKET = "control.sock"
"""In the state directory, where the settings name no other place."""

MAX_REQUEST_BYTES = 16 * 1024
MAX_ANSWER_BYTES = 64 * 1024 * 1024
MAX_CONNECTIONS = 16
MAX_OF_ONE_USER = 4
"""So that nobody alone can keep all others out."""
REQUEST_SECONDS = 5.0
"""From connecting to the end of the request."""
ANSWER_SECONDS = 30.0
"""To take an answer: a report of many rounds may be long."""

MOST_ALERT_ORDERS = 64
"""That wait for one gateway."""

REFUSALS_AN_HOUR = 60
"""Of one user, that the audit log keeps: whoever is refused shall not be able to fill the disk."""

_PEER = struct.Struct("3i")
"""struct ucred: process, user, group."""

Role = Literal["operator", "viewer"]


class ControlError(ValueError):
    """The socket cannot be opened or reached, or the coordinator refuses what was asked."""


# -- what is said ----------------------------------------------------------------------------------------------


class Order(msgspec.Struct, frozen=True, kw_only=True, tag="order", tag_field="ask", forbid_unknown_fields=True):
    """Do this to a task. The answer has the number of the order."""

    task: str
    wish: Wish


class AlertOrder(
    msgspec.Struct, frozen=True, kw_only=True, tag="alert-order", tag_field="ask", forbid_unknown_fields=True
):
    """Tell a gateway's watch what an alert of its is. The answer has the number of the order, which is done once the
    gateway says so: ask for its `Outcome`, or see `ledger.orders_of_alert`."""

    gateway: Annotated[str, msgspec.Meta(min_length=1, max_length=63)]
    alert: Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]
    """Its number at that gateway."""
    what: AlertVerb
    fault: Annotated[str, msgspec.Meta(max_length=64)] = ""
    """Of a confirmation, such as inner_race."""
    on_behalf: Annotated[str, msgspec.Meta(max_length=64)] = ""
    """Who says so, where that is somebody else than who asks: a person at a page that a program serves."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True, tag="outcome", tag_field="ask", forbid_unknown_fields=True):
    """What came of an order."""

    order: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


class Look(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    tag="look",
    tag_field="ask",
    forbid_unknown_fields=True,
    omit_defaults=True,
):
    """Something to read: how it goes, the savings, or as JSON how each task stands, the machines, the alerts."""

    what: Literal["status", "report", "tasks", "tallies", "machines", "alerts"]
    task: str | None = None
    """None: each."""
    form: Literal["text", "json", "csv", "html"] = "text"
    width: int = 80
    colour: bool = False
    """Of the status."""
    view: View = EVERYTHING
    """Of the report."""
    price_per_gb: float | None = None
    """In place of the one in the coordinator's settings; the currency, too."""
    currency: Annotated[str, msgspec.Meta(max_length=16)] | None = None


Request = Order | AlertOrder | Outcome | Look


class Answer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`error` is empty where it was done."""

    error: str = ""
    order: int = 0
    done: bool | None = None
    """Of an order; None: not carried out yet."""
    text: str = ""


# -- who may do what -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Roles:
    """`anna` is a user, `@plant-operators` the members of a group."""

    operators: tuple[str, ...] = ()
    viewers: tuple[str, ...] = ()
    own_uid: int = field(default_factory=os.getuid)

    def of(self, uid: int, gid: int) -> Role | None:
        """Looked up anew each time: who is taken out of a group has lost its role at once."""
        if uid in (0, self.own_uid):
            return "operator"
        groups = _groups_of(uid, gid)
        if any(_is(name, uid, groups) for name in self.operators):
            return "operator"
        return "viewer" if any(_is(name, uid, groups) for name in self.viewers) else None

    def strangers(self) -> Iterator[str]:
        """Names that this machine does not know, which are most likely misspelt."""
        for name in (*self.operators, *self.viewers):
            try:
                grp.getgrnam(name[1:]) if name.startswith("@") else pwd.getpwnam(name)
            except KeyError:
                yield name


def _is(name: str, uid: int, groups: frozenset[int]) -> bool:
    try:
        if name.startswith("@"):
            return grp.getgrnam(name[1:]).gr_gid in groups
        return pwd.getpwnam(name).pw_uid == uid
    except KeyError:
        return False


def _groups_of(uid: int, gid: int) -> frozenset[int]:
    """The group that a process runs with, and those that its user is a member of."""
    try:
        return frozenset([gid, *os.getgrouplist(pwd.getpwuid(uid).pw_name, gid)])
    except KeyError:
        return frozenset([gid])


# -- what is done ----------------------------------------------------------------------------------------------


def place_order(ledger: Ledger, audit: AuditLog, who: Who, task: str, wish: Wish, now: float) -> int:
    """Put an order into the ledger, and on disk; returns its number. Raises ValueError for a task that is not there,
    and AuditError, before anything is changed."""
    known = [row.name for row in ledger.tasks()]
    if wish.verb not in VERBS:
        raise ControlError(f"expected {', '.join(VERBS)}, got {wish.verb!r}")
    if task not in known:
        raise ControlError(f"no task {task!r}; there is {', '.join(known) or 'none yet'}")
    action, subject = f"order {wish.verb}", f"task {task}"
    audit.record(who=who, action=action, subject=subject, outcome=f"ordered{wish.told()}")
    try:
        number = ledger.order(wish.verb, task, msgspec.structs.replace(wish, by=who).write(), now)
        ledger.commit()
    except ValueError as error:
        audit.record(who=who, action=action, subject=subject, outcome=f"not taken: {error}")
        raise
    return number


def place_alert_order(ledger: Ledger, audit: AuditLog, who: Who, order: AlertOrder, now: float) -> int:
    """Put an order for a gateway's watch into the ledger, and on disk; returns its number. Raises ControlError for one
    that makes no sense by what is on record, and AuditError, before anything is changed."""
    place = f"{order.gateway}/{order.alert}"
    alert = ledger.alert(order.gateway, order.alert)
    if alert is None:
        raise ControlError(f"no alert {place} is on record: `fedmq alert list` names those that there are")
    if (order.what == "confirm") != bool(order.fault):
        raise ControlError("expected a fault with confirm, and with nothing else")
    if not order.fault.isprintable() or not order.on_behalf.isprintable():
        raise ControlError("expected printable texts for the fault, and for who says so")
    if sum(row.task.startswith(f"{order.gateway}/") for row in ledger.alert_orders_waiting()) >= MOST_ALERT_ORDERS:
        raise ControlError(
            f"{MOST_ALERT_ORDERS} orders wait for {order.gateway} already: is it connected, and does it run its watch?"
        )
    said_by = f"{order.on_behalf} by {who.user}" if order.on_behalf else who.user
    action, told = f"order {order.what}", f": {order.fault}" if order.fault else ""
    behalf = f" for {order.on_behalf}" if order.on_behalf else ""
    audit.record(who=who, action=action, subject=f"alert {place}", outcome=f"ordered{told}{behalf}")
    wish = AlertWish(book=alert.book, fault=order.fault, said_by=said_by[:64], by=who)
    try:
        number = ledger.order(order.what, place, wish.write(), now)
        ledger.commit()
    except ValueError as error:
        audit.record(who=who, action=action, subject=f"alert {place}", outcome=f"not taken: {error}")
        raise
    return number


class Control:
    """Answers requests from the ledger's file, whoever brings them. Its own door to the file, for any thread."""

    def __init__(self, ledger: Path, audit: AuditLog, roles: Roles, clock: Callable[[], float] = time.time) -> None:
        self._ledger = ledger
        self._audit = audit
        self._roles = roles
        self._clock = clock
        self._refused: dict[int, list[float]] = {}

    def answer(self, line: bytes, uid: int, gid: int) -> Answer:
        """Never raises for what is asked: a refusal is an answer, and says why."""
        who = Who(user=user_name(uid), uid=uid, how="socket")
        role = self._roles.of(uid, gid)
        try:
            request = _request(line)
            if role is None:
                self._refuse(who, _action(request), _subject(request), "neither an operator nor a viewer")
            if role == "viewer" and isinstance(request, Order | AlertOrder):
                self._refuse(who, _action(request), _subject(request), "a viewer, and orders are for operators")
            return self._carry_out(request, who)
        except (ValueError, ImportError) as error:
            return Answer(error=str(error))

    def _carry_out(self, request: Request, who: Who) -> Answer:
        match request:
            case Order():
                with contextlib.closing(Ledger(self._ledger, visit=True)) as ledger:
                    number = place_order(ledger, self._audit, who, request.task, request.wish, self._clock())
                return Answer(order=number)
            case AlertOrder():
                with contextlib.closing(Ledger(self._ledger, visit=True)) as ledger:
                    return Answer(order=place_alert_order(ledger, self._audit, who, request, self._clock()))
            case Outcome():
                with contextlib.closing(Ledger(self._ledger, read_only=True)) as ledger:
                    order = ledger.get_order(request.order)
                if order is None:
                    raise ControlError(f"there is no order {request.order}")
                return Answer(order=order.id, done=order.done, text=order.result or "")
            case Look():
                with contextlib.closing(Ledger(self._ledger, read_only=True)) as ledger:
                    return Answer(text=_look(ledger, request, self._clock()))

    def _refuse(self, who: Who, action: str, subject: str, why: str) -> None:
        """Raises ControlError, always."""
        text = f"refused: {who.user} (uid {who.uid}) is {why}; control.operators and control.viewers name them"
        log.warning("%s %s: %s", action, subject, text)
        now = self._clock()
        lately = [at for at in self._refused.get(who.uid, []) if now - 3600 < at <= now]
        if len(lately) < REFUSALS_AN_HOUR:
            more = "" if len(lately) + 1 < REFUSALS_AN_HOUR else "; no more of this user are noted within the hour"
            self._audit.record(who=who, action=action, subject=subject, outcome=text + more)
            lately.append(now)
        self._refused[who.uid] = lately
        raise ControlError(text)


def _request(line: bytes) -> Request:
    try:
        request = msgspec.json.decode(line, type=Request)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ControlError(f"expected a request as a line of JSON, got something else: {error}") from None
    if isinstance(request, Look) and not 20 <= request.width <= 1000:
        raise ControlError(f"width: expected 20 to 1,000, got {request.width}")
    return request


def _action(request: Request) -> str:
    match request:
        case Order():
            return f"order {request.wish.verb}"
        case AlertOrder():
            return f"order {request.what}"
        case Outcome():
            return "look at an order"
        case Look():
            return f"look at {request.what}"


def _subject(request: Request) -> str:
    match request:
        case Order():
            return f"task {request.task}"
        case AlertOrder():
            return f"alert {request.gateway}/{request.alert}"
        case Outcome():
            return f"order {request.order}"
        case Look():
            return "coordinator" if request.task is None else f"task {request.task}"


def _look(ledger: Ledger, look: Look, now: float) -> str:
    """What people get to read. Raises LedgerError for a task that is not there, ControlError for a form that is not."""
    if look.what == "tasks":
        with ledger.snapshot():
            gateways = ledger.gateways()
            return msgspec.json.encode([standing(ledger.book(row.name), gateways) for row in ledger.tasks()]).decode()
    if look.what in ("machines", "alerts"):
        with ledger.snapshot():
            rows = machines_of(ledger) if look.what == "machines" else alerts_of(ledger)
        return msgspec.json.encode(rows).decode()
    if look.what == "tallies":
        return msgspec.json.encode(tallies.build(ledger)).decode()
    if look.what == "status" and look.form == "json":
        return msgspec.json.encode(state_of_affairs(ledger, now)).decode()
    if look.what == "status":
        from fedmq_coordinator.status_text import status

        names: list[str | None] = [look.task]
        known = [row.name for row in ledger.tasks()]
        if look.task is None and len(known) > 1:
            names = list(known)
        return "\n".join(status(ledger, now, look.width, name, colour=look.colour) for name in names)
    price = price_of(from_bytes(ledger.get(MONEY)), per_gb=look.price_per_gb, currency=look.currency)
    if look.task is None:
        built = report.build_all(ledger, view=look.view, price=price)
    else:
        built = report.build(ledger, look.task, view=look.view, price=price)
    match look.form:
        case "json":
            return report.to_json(built).decode()
        case "csv":
            return report.to_csv(built)
        case "html":
            from fedmq_coordinator.report_html import to_html

            return to_html(built)
        case "text":
            from fedmq_coordinator.report_text import to_text

            return to_text(built, look.width)


# -- the socket ------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class _Guest:
    """One connection: it reads until a line is whole, then writes until the answer is out."""

    uid: int
    gid: int
    until: float
    came: bytearray = field(default_factory=bytearray)
    left: memoryview | None = None
    """Of the answer."""


class Server:
    """The open socket, and inside its `with` the thread that serves it. Raises ControlError if it cannot be opened."""

    def __init__(
        self, path: Path, control: Control, *, open_to_all: bool, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        """`open_to_all`: whether users other than this one may connect at all; who they are is looked at then."""
        self.path = path
        self._control = control
        self._monotonic = monotonic
        self._listener = _listen(path, 0o666 if open_to_all else 0o600)
        self._wake, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, name="control", daemon=True)
        self._guests: dict[socket.socket, _Guest] = {}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # No more is taken; what was ordered is in the ledger.
        self._wake.close()
        self._thread.join(10.0)
        with contextlib.suppress(OSError):
            self.path.unlink()

    def _serve(self) -> None:
        with selectors.DefaultSelector() as selector, self._listener, self._woken:
            selector.register(self._woken, selectors.EVENT_READ)
            listening = False
            try:
                while True:
                    # One more than there may be is left in the kernel's queue.
                    room = len(self._guests) < MAX_CONNECTIONS
                    if room and not listening:
                        selector.register(self._listener, selectors.EVENT_READ)
                    elif listening and not room:
                        selector.unregister(self._listener)
                    listening = room
                    wait = min((guest.until for guest in self._guests.values()), default=self._monotonic() + 60.0)
                    for key, _ in selector.select(max(0.0, wait - self._monotonic())):
                        if key.fileobj is self._woken:
                            return
                        if key.fileobj is self._listener:
                            self._welcome(selector)
                        else:
                            assert isinstance(key.fileobj, socket.socket)
                            self._go_on(selector, key.fileobj)
                    now = self._monotonic()
                    for one in [one for one, guest in self._guests.items() if guest.until <= now]:
                        self._leave(selector, one)
            finally:
                for one in list(self._guests):
                    self._leave(selector, one)

    def _welcome(self, selector: selectors.BaseSelector) -> None:
        try:
            one, _ = self._listener.accept()
        except BlockingIOError:
            return  # it has gone again
        except OSError as error:
            log.warning("the control socket cannot take a connection: %s", error)
            time.sleep(0.1)  # where descriptors are short, it would be asked again at once
            return
        one.setblocking(False)
        _, uid, gid = _PEER.unpack(one.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
        if sum(guest.uid == uid for guest in self._guests.values()) >= MAX_OF_ONE_USER:
            one.close()
            return
        self._guests[one] = _Guest(uid=uid, gid=gid, until=self._monotonic() + REQUEST_SECONDS)
        selector.register(one, selectors.EVENT_READ)

    def _go_on(self, selector: selectors.BaseSelector, one: socket.socket) -> None:
        guest = self._guests[one]
        try:
            if guest.left is None:
                self._read(selector, one, guest)
            if guest.left is not None:
                guest.left = guest.left[one.send(guest.left) :]
                if not guest.left:
                    self._leave(selector, one)
        except BlockingIOError:
            return
        except OSError:
            self._leave(selector, one)

    def _read(self, selector: selectors.BaseSelector, one: socket.socket, guest: _Guest) -> None:
        part = one.recv(MAX_REQUEST_BYTES)
        if not part:
            self._leave(selector, one)
            return
        guest.came += part
        line, ended, _ = bytes(guest.came).partition(b"\n")
        if len(line) > MAX_REQUEST_BYTES:
            answer = Answer(error=f"expected a request of at most {MAX_REQUEST_BYTES:,} bytes")
        elif not ended:
            return
        else:
            answer = self._answered(line, guest)
        said = msgspec.json.encode(answer)
        if len(said) >= MAX_ANSWER_BYTES:
            said = msgspec.json.encode(Answer(error=f"the answer is longer than {MAX_ANSWER_BYTES:,} bytes"))
        guest.left = memoryview(said + b"\n")
        guest.until = self._monotonic() + ANSWER_SECONDS
        selector.modify(one, selectors.EVENT_WRITE)

    def _answered(self, line: bytes, guest: _Guest) -> Answer:
        try:
            return self._control.answer(line, guest.uid, guest.gid)
        except Exception as error:
            # A fault of ours: it is told, and must not end the thread that serves the others.
            log.exception("the control socket failed to answer")
            return Answer(error=f"the coordinator failed to answer ({type(error).__name__}); its log tells more")

    def _leave(self, selector: selectors.BaseSelector, one: socket.socket) -> None:
        if self._guests.pop(one, None) is not None:
            selector.unregister(one)
            one.close()


def is_there(path: Path) -> bool:
    """Whether a socket lies there; nobody may be listening."""
    try:
        return stat.S_ISSOCK(path.lstat().st_mode)
    except OSError:
        return False


def ask(path: Path, request: Request, seconds: float = 60.0) -> Answer:
    """One request, and its answer. Raises ControlError where nobody answers, or it is refused."""
    try:
        with _short(path) as name, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as one:
            one.settimeout(seconds)
            one.connect(name)
            one.sendall(msgspec.json.encode(request) + b"\n")
            came = bytearray()
            while not came.endswith(b"\n"):
                part = one.recv(1 << 16)
                if not part or len(came) > MAX_ANSWER_BYTES:
                    raise ControlError(f"{path}: expected an answer of the coordinator, it hung up")
                came += part
        answer = msgspec.json.decode(bytes(came), type=Answer)
    except ConnectionRefusedError:
        raise ControlError(f"{path}: no coordinator listens there: is it running?") from None
    except PermissionError:
        raise ControlError(
            f"{path}: this user may not connect there: ask to be named in control.operators or control.viewers, and for"
            " a place that you may reach (control.socket)"
        ) from None
    except OSError as error:
        raise ControlError(f"{path}: cannot reach the coordinator: {error.strerror or error}") from error
    except msgspec.MsgspecError as error:
        raise ControlError(f"{path}: expected an answer of the coordinator, got something else: {error}") from error
    if answer.error:
        raise ControlError(answer.error)
    return answer


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    """The path by its folder's descriptor: a socket's name may have 107 bytes at most, and a folder's is longer."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def _listen(path: Path, mode: int) -> socket.socket:
    """Raises ControlError."""
    one = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        open_mode = writable_by_others(path.parent)
        if open_mode is not None:
            raise ControlError(
                f"control.socket: {path.parent} has mode {open_mode:04o}, so that everybody may put another socket"
                f" there: chmod o-w {path.parent}"
            )
        with _short(path) as name:
            _make_room(path, name)
            one.bind(name)
        # Before it listens: nobody can have connected by another mode.
        path.chmod(mode)
        one.listen(MAX_CONNECTIONS)
        one.setblocking(False)
    except OSError as error:
        one.close()
        raise ControlError(
            f"control.socket: cannot open {path}: {error.strerror or error}; name another place, or set"
            " control.enabled = false"
        ) from error
    except ControlError:
        one.close()
        raise
    return one


def _make_room(path: Path, name: str) -> None:
    """Take away what a killed coordinator left there, and nothing else."""
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise ControlError(f"control.socket: expected nothing or a socket at {path}, there is something else")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(name)
        except ConnectionRefusedError:
            path.unlink()
            return
    raise ControlError(f"control.socket: another coordinator listens at {path}: name another place")
