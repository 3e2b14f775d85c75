"""Telling people and programs of alerts: MQTT on the site's broker, webhooks, e-mail.

Owns what a message says, how often one may go, and how it goes. What waits, and what has gone, is in the alertbook. The
rules kept here:

- A message is made once, whole bytes with a key, and sent until the other side has said yes: the broker by its PUBACK,
  a web server by a status from 200 to 299, a mail server by its answer to DATA. A kill between that yes and the book's
  noting it sends the same message once more, with the same key: `id` in MQTT, the header `Idempotency-Key` of a
  webhook, `Message-ID` of a mail. Nothing else is sent twice.
- A machine's notes that come within `least_seconds` of its last message wait, and go together. So does what is beyond
  `most_per_hour` of an output. Nothing is dropped for that.
- What does not go is tried again after 5 s, then twice as long each time up to an hour, for `GIVE_UP_SECONDS`; then it
  is given up, told in the log and shown by `fedmq watch status`.
"""

from __future__ import annotations

import logging
import smtplib
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from email.message import EmailMessage
from email.policy import SMTP
from pathlib import Path
from typing import Any, Protocol

import msgspec
from fedmq_edge_node.alarms import Evidence
from fedmq_edge_node.alertbook import Alert, Alertbook, Message, Note
from fedmq_protocol.secrets import read_secret
from fedmq_protocol.session import Connected, ConnectFailed, Denied, Disconnected, Received, Session

from fedmq.watch.settings import EmailSettings, WebhookSettings

__all__ = [
    "SCHEMA",
    "Mail",
    "MqttOutput",
    "Output",
    "SendError",
    "Webhook",
    "deliver",
    "described",
    "named",
    "state_of",
]

log = logging.getLogger("fedmq.watch")

SCHEMA = 1
"""Of the JSON; a new key does not change it, another meaning does."""
FIRST_RETRY_SECONDS = 5.0
MOST_RETRY_SECONDS = 3600.0
GIVE_UP_SECONDS = 7 * 86_400.0
MAX_SECRET_BYTES = 4096
MAX_ANSWER_BYTES = 64 << 10
MAX_COMMAND_BYTES = 1024


class SendError(ValueError):
    """The other side has not said yes."""


class Output(Protocol):
    """Where messages go."""

    @property
    def name(self) -> str: ...

    @property
    def tells(self) -> Sequence[str]:
        """Steps that it is told of."""

    @property
    def least_seconds(self) -> float: ...

    @property
    def most_per_hour(self) -> int: ...

    def compose(self, key: str, notes: Sequence[Note]) -> bytes:
        """The whole message."""

    def send(self, message: Message) -> bool:
        """True: the other side has said yes; False: it has yet to. Raises SendError."""


def deliver(
    book: Alertbook,
    outputs: Sequence[Output],
    now: float,
    crash_point: Callable[[str], None] = lambda name: None,
) -> None:
    """One turn: what waits becomes messages, as far as the limits let it, and what is due is sent."""
    for output in outputs:
        _compose(book, output, now, crash_point)
        for message in book.due(output.name, now):
            crash_point("before send")
            try:
                gone = output.send(message)
            except SendError as error:
                _put_off(book, message, str(error), now)
                continue
            if gone:
                crash_point("after send")
                book.sent([message.id], at=now)
                crash_point("after sent")


def _compose(book: Alertbook, output: Output, now: float, crash_point: Callable[[str], None]) -> None:
    by_machine: dict[str, list[Note]] = {}
    for note in book.notes(output.name):
        by_machine.setdefault(note.machine, []).append(note)
    if not by_machine:
        return
    made = book.made_since(output.name, now - max(3600.0, output.least_seconds))
    in_hour = sum(at > now - 3600.0 for _, at in made)
    for machine, notes in by_machine.items():
        last = max((at for name, at in made if name == machine), default=-1e18)
        # A clock that was set back must not hold an alert up.
        if 0 <= now - last < output.least_seconds or in_hour >= output.most_per_hour:
            continue
        crash_point("before message")
        book.compose(notes, output.compose(book.key(notes), notes), at=now)
        crash_point("after message")
        in_hour += 1


def _put_off(book: Alertbook, message: Message, error: str, now: float) -> None:
    give_up = now - message.made_at > GIVE_UP_SECONDS
    wait = min(FIRST_RETRY_SECONDS * 2.0 ** min(message.tries, 20), MOST_RETRY_SECONDS)
    book.put_off(message.id, error, due_at=now + wait, give_up=give_up)
    if give_up:
        log.error("%s: message %s is given up: %s", message.output, message.key, error)
    else:
        log.warning("%s: message %s did not go, next try in %.0f s: %s", message.output, message.key, wait, error)


# -- what a message says ---------------------------------------------------------------------------------------


def described(note: Note) -> dict[str, Any]:
    """One step, as JSON holds it: docs/alerts.md has the schema."""
    step, alert = note.step, note.alert
    said: dict[str, Any] = {
        "machine": step.machine,
        "step": step.what,
        "at": _time(step.at),
        "who": step.who,
        "text": step.text,
    }
    if alert is None:
        return said
    return said | {
        "alert": alert.id,
        "sensor": alert.sensor,
        "kind": alert.kind,
        "state": alert.state,
        "severity": step.severity or alert.severity,
        "level": round(step.level, 4),
        "label": step.label or alert.label,
        "verdict": alert.verdict,
        "from": _time(alert.from_at),
        "to": None if alert.to_at is None else _time(alert.to_at),
        "others": [one.id for one in note.others],
        "evidence": [_evidence(one) for one in step.evidence],
    }


def state_of(machine: str, standing: dict[str, Any], alerts: Sequence[Alert]) -> dict[str, Any]:
    """A machine's retained state."""
    return {
        "schema": SCHEMA,
        "machine": machine,
        **standing,
        "alerts": [
            {"alert": one.id, "kind": one.kind, "state": one.state, "severity": one.severity, "label": one.label}
            for one in alerts
        ],
    }


def sentence(note: Note) -> str:
    """One step for people."""
    step, alert = note.step, note.alert
    if alert is None:
        return f"{step.machine}: {step.what}: {step.text}"
    label = step.label or alert.label
    named = f" ({label})" if label else ""
    head = f"{step.machine}: {alert.kind}{named} alert {alert.id} {step.what}"
    if step.what in ("raised", "changed"):
        return f"{head}, {step.severity}: {step.level:.2f} times its limit"
    return head if step.who == "watch" else f"{head} by {step.who}" + (f": {step.text}" if step.text else "")


def named(alerts: Iterable[Alert]) -> str:
    """Their numbers and kinds, for people."""
    return ", ".join(f"{one.id} ({one.kind})" for one in alerts)


def evidence_line(one: Evidence) -> str:
    unit = f" {one.unit}" if one.unit else ""
    was = "" if one.was is None or one.was_at is None else f", typically {one.was:.3g} since {_time(one.was_at)[:16]}"
    trend = " -> ".join(f"{value:.3g}" for _, value in one.trend[-6:])
    whose = "the fleet's limit" if one.by == "fleet" else "limit"
    return f"{one.name} {one.value:.3g}{unit} ({whose} {one.limit:.3g}{was})" + (f"; {trend}" if trend else "")


def _evidence(one: Evidence) -> dict[str, Any]:
    return {
        "name": one.name,
        "value": one.value,
        "limit": one.limit,
        "by": one.by,
        "unit": one.unit,
        "was": one.was,
        "was_at": None if one.was_at is None else _time(one.was_at),
        "trend": [[_time(at), value] for at, value in one.trend],
    }


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")


# -- who is believed -------------------------------------------------------------------------------------------


def trusting(ca_file: Path | None) -> ssl.SSLContext:
    """Certificates of these CAs, else of the system's, for the name that was called. Raises SendError."""
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise SendError(f"ca_file {ca_file}: expected CAs in PEM, got {error}") from error


def reason_of(error: Exception, ca_file: Path | None) -> str:
    """Why it did not go, for people: of a certificate what is wrong with it, and what it is held against."""
    inner = error.reason if isinstance(error, urllib.error.URLError) else error
    if not isinstance(inner, ssl.SSLCertVerificationError):
        return f"{error}"
    held_against = "this system's CAs" if ca_file is None else f"the CAs in {ca_file}"
    return f"the server's certificate is not believed, and nothing was sent: {inner.verify_message} (by {held_against})"


# -- webhooks --------------------------------------------------------------------------------------------------


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """urllib would make a GET of a POST on its way, and take its answer for a yes."""

    def redirect_request(self, *arguments: Any, **keywords: Any) -> None:
        return None


class Webhook:
    """JSON by HTTP POST."""

    def __init__(self, settings: WebhookSettings) -> None:
        self._settings = settings
        self.name = f"webhook {settings.name}"
        self.tells = settings.tell
        self.least_seconds = settings.least_seconds
        self.most_per_hour = settings.most_per_hour
        trusting(settings.ca_file)  # a wrong path is told at the start

    def compose(self, key: str, notes: Sequence[Note]) -> bytes:
        return msgspec.json.encode({"schema": SCHEMA, "id": key, "steps": [described(note) for note in notes]})

    def send(self, message: Message) -> bool:
        headers = {"Content-Type": "application/json", "Idempotency-Key": message.key, "User-Agent": "fedmq"}
        try:
            if self._settings.token_file is not None:
                token = read_secret(self._settings.token_file, MAX_SECRET_BYTES).decode().partition("\n")[0].strip()
                headers["Authorization"] = f"Bearer {token}"
            request = urllib.request.Request(  # noqa: S310 - settings take http and https alone
                self._settings.url, data=message.payload, headers=headers, method="POST"
            )
            handler = urllib.request.HTTPSHandler(context=trusting(self._settings.ca_file))
            opener = urllib.request.build_opener(_NoRedirect, handler)
            with opener.open(request, timeout=self._settings.timeout_seconds) as answer:
                answer.read(MAX_ANSWER_BYTES)
        except urllib.error.HTTPError as error:
            with error:
                raise SendError(f"expected a status from 200 to 299, got {error.code} {error.reason}") from None
        except (OSError, ValueError) as error:
            raise SendError(reason_of(error, self._settings.ca_file)) from error
        return True


# -- e-mail ----------------------------------------------------------------------------------------------------


class Mail:
    """Plain text by SMTP."""

    def __init__(self, settings: EmailSettings) -> None:
        self._settings = settings
        self.name = f"email {settings.name}"
        self.tells = settings.tell
        self.least_seconds = settings.least_seconds
        self.most_per_hour = settings.most_per_hour
        trusting(settings.ca_file)  # a wrong path is told at the start

    def compose(self, key: str, notes: Sequence[Note]) -> bytes:
        settings = self._settings
        mail = EmailMessage(policy=SMTP)
        mail["From"] = settings.sender
        mail["To"] = ", ".join(settings.to)
        more = f" (and {len(notes) - 1} more)" if len(notes) > 1 else ""
        mail["Subject"] = f"[fedmq] {sentence(notes[0])}{more}"
        mail["Message-ID"] = f"<{key}@{settings.sender.rpartition('@')[2]}>"
        mail["Date"] = datetime.fromtimestamp(notes[-1].step.at, UTC)
        mail["Auto-Submitted"] = "auto-generated"
        lines = []
        for note in notes:
            lines.append(f"{_time(note.step.at)[:19]}Z  {sentence(note)}")
            lines += [f"    {evidence_line(one)}" for one in note.step.evidence[:4]]
        others = {note.alert.id: note.others for note in notes if note.alert is not None}
        if others:
            lines += ["", "What it was, once somebody has looked:"]
        for number in sorted(others):
            lines.append(f"    fedmq alert confirm {number} KIND    or    fedmq alert dismiss {number}")
            if others[number]:
                lines.append(
                    f"        at the same time: {named(others[number])}; --overlapping says the same of them at once"
                )
        mail.set_content("\n".join(lines) + "\n")
        return mail.as_bytes()

    def send(self, message: Message) -> bool:
        settings = self._settings
        try:
            context = trusting(settings.ca_file) if settings.security != "none" else None
            server: smtplib.SMTP
            if settings.security == "tls":
                server = smtplib.SMTP_SSL(
                    settings.host, settings.port, timeout=settings.timeout_seconds, context=context
                )
            else:
                server = smtplib.SMTP(settings.host, settings.port, timeout=settings.timeout_seconds)
            with server:
                if settings.security == "starttls":
                    server.starttls(context=context)
                if settings.username is not None and settings.password_file is not None:
                    password = read_secret(settings.password_file, MAX_SECRET_BYTES).decode().partition("\n")[0]
                    server.login(settings.username, password)
                refused = server.sendmail(settings.sender, settings.to, message.payload)
        except (OSError, smtplib.SMTPException, ValueError) as error:
            raise SendError(reason_of(error, settings.ca_file)) from error
        if refused:
            # The others have it: a repeat would be a second mail to them.
            log.error("%s: message %s: the server refused %s", self.name, message.key, ", ".join(sorted(refused)))
        return True


# -- MQTT ------------------------------------------------------------------------------------------------------


class MqttOutput:
    """A JSON message for each step, and of each machine a retained state, on the site's broker.

    Topics: `<prefix>/<machine>/alert`, `<prefix>/<machine>/state`; orders come on `<prefix>/do`.
    """

    name = "mqtt"
    tells = ("raised", "changed", "cleared", "acknowledged", "confirmed", "dismissed", "event", "drift")
    least_seconds = 0.0
    most_per_hour = 1_000_000

    def __init__(self, session: Session, prefix: str, on_order: Callable[[bytes], None] | None = None) -> None:
        self._session = session
        self._prefix = prefix
        self._on_order = on_order
        self._connected = False
        self._under_way: set[int] = set()
        """Messages that were handed over, and that the broker has not acknowledged yet."""
        self._denied: dict[str, str] = {}
        """Topics that the broker did not take, and why: MQTT 5 acknowledges and refuses in one word."""
        self._stated: dict[str, bytes] = {}

    def start(self) -> None:
        if self._on_order is not None:
            self._session.subscribe(f"{self._prefix}/do")
        self._session.start()

    def stop(self) -> None:
        self._session.stop(flush_seconds=1.0)

    def listen(self, timeout_seconds: float) -> None:
        """Take what has happened on the connection, for so long at least."""
        event = self._session.next(timeout_seconds)
        while event is not None:
            match event:
                case Connected():
                    self._connected = True
                    self._under_way.clear()
                    self._stated.clear()
                case Disconnected() | ConnectFailed():
                    # What the broker has not acknowledged may not have come: it goes again.
                    self._connected = False
                    self._under_way.clear()
                    log.warning("the site's broker: %s", event.reason)
                case Denied():
                    self._denied[event.topic] = event.reason
                    log.error("the site's broker denies %s: %s", event.topic, event.reason)
                case Received() if self._on_order is not None and not event.retained:
                    self._on_order(event.payload)
            event = self._session.next(0.0)

    def compose(self, key: str, notes: Sequence[Note]) -> bytes:
        return msgspec.json.encode({"schema": SCHEMA, "id": key, "steps": [described(note) for note in notes]})

    def send(self, message: Message) -> bool:
        topic = f"{self._prefix}/{message.machine}/alert"
        if message.id in self._under_way:
            if self._session.outstanding:
                return False
            # What the connection has said meanwhile comes first: that it was cut, or that the broker refused.
            self.listen(0.0)
            if message.id not in self._under_way:
                return False
            self._under_way.discard(message.id)
            if topic in self._denied:
                raise SendError(f"the broker does not take {topic}: {self._denied[topic]}")
            return True
        if not self._connected:
            return False
        self._denied.pop(topic, None)
        try:
            if self._session.publish(topic, message.payload):
                self._under_way.add(message.id)
        except ValueError as error:
            raise SendError(str(error)) from error
        return False

    def state(self, machine: str, state: dict[str, Any]) -> None:
        """Publish it where it has changed since; not kept, for the next one says it again."""
        payload = msgspec.json.encode(state)
        if not self._connected or self._stated.get(machine) == payload:
            return
        if self._session.publish(f"{self._prefix}/{machine}/state", payload, retain=True):
            self._stated[machine] = payload
