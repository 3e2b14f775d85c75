"""What `fedmq wire` does with its command line, and the connection of the observer.

The observer subscribes to everything of one federation and publishes nothing. It has a client id of its own, drawn anew
each time; where the broker makes a client id of the user name (as the rendered configuration does with passwords and
certificates), give it an identity of its own too, or it takes the place of the program whose identity it has.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from fedmq_protocol.session import Connected, ConnectFailed, Denied, Disconnected, Dropped, MqttSession, Received
from fedmq_protocol.settings import ConnectionSettings, Table, document, load
from fedmq_protocol.topics import ROOT

from fedmq.programs import connection_of
from fedmq.wire.fields import markdown, put_markdown
from fedmq.wire.reading import Watch
from fedmq.wire.showing import as_json, as_text, summary
from fedmq.wire.tally import Tally

__all__ = ["WireSettings", "fields", "show", "watch"]


@dataclass(frozen=True, kw_only=True)
class WireSettings(Table):
    """Settings of an observer of the traffic. Start it with: fedmq wire show --config FILE"""

    connection: ConnectionSettings = field(default_factory=ConnectionSettings)


def fields(arguments: argparse.Namespace) -> None:
    page: Path | None = arguments.write
    if page is None:
        print(markdown(), end="")
        return
    page.write_text(put_markdown(page.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"wrote {page}", file=sys.stderr)


def show(arguments: argparse.Namespace) -> None:
    if arguments.example:
        print(document(WireSettings), end="")
        return
    settings = load(WireSettings, arguments.config, arguments.overrides)
    watch(settings.connection, seconds=arguments.seconds, lines_of_json=arguments.json)


def watch(settings: ConnectionSettings, *, seconds: float | None, lines_of_json: bool) -> Tally:
    """Prints what goes by until the time is over or Ctrl-C, then the summary. Raises ValueError where the broker lets
    nobody in, or lets us read nothing."""
    connection = connection_of(settings, f"wire-{os.urandom(4).hex()}")
    session = MqttSession(replace(connection, session_expiry_seconds=0))
    session.subscribe(f"{ROOT}/{settings.federation}/#")
    until = None if seconds is None else time.monotonic() + seconds
    reader, tally = Watch(), Tally()
    colour = sys.stdout.isatty()
    # Also where a shell has started it in the background and has it ignore Ctrl-C; and at the end of a service.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    session.start()
    try:
        while (left := None if until is None else until - time.monotonic()) is None or left > 0:
            match session.next(1.0 if left is None else min(1.0, left)):
                case Received() as message:
                    seen = reader.read(message.topic, message.payload, retained=message.retained, at=time.time())
                    tally.add(seen)
                    print(as_json(seen) if lines_of_json else as_text(seen, colour=colour), flush=True)
                case Connected() as event:
                    _say(f"connected with MQTT {event.protocol} as an observer of {ROOT}/{settings.federation}/#")
                case Denied() as event:
                    raise ValueError(f"the broker does not let us read {event.topic}: {event.reason}")
                case ConnectFailed() | Disconnected() as event:
                    _say(event.reason)
                case Dropped() as event:
                    _say(f"{event.messages:,} messages came faster than they could be shown, and are missing here")
                    tally.unexplained["messages that came too fast to be read"] += event.messages
    except KeyboardInterrupt:
        pass  # the usual end: the summary is what it was for
    finally:
        session.stop(flush_seconds=0.5)
    print(summary(tally, as_one_json=lines_of_json), flush=True)
    if not tally.messages:
        _say(
            "nothing was seen: nobody spoke in this time, or the broker's ACL lets this user read nothing"
            " (Mosquitto grants every subscription, and then delivers only what is allowed)"
        )
    return tally


def _say(text: str) -> None:
    print(f"fedmq wire: {text}", file=sys.stderr, flush=True)
