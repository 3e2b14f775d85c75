"""A TCP server that answers connections from a script: the brokers one cannot install."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

Script = Callable[[socket.socket, bytes], None]


class ScriptedBroker:
    """Calls `script(connection, first_packet)` for each connection, in turn, and closes the connection after it."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.protocol_levels: list[int] = []
        """The protocol level of each CONNECT: 5 is MQTT 5, 4 is 3.1.1."""

    def __enter__(self) -> Self:
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.settimeout(10.0)
                first = connection.recv(4096)
                if len(first) < 9:
                    continue  # the client left before it said anything
                self.protocol_levels.append(first[8])
                self._script(connection, first)


CONNACK_311 = bytes.fromhex("20020000")
CONNACK_311_WRONG_PROTOCOL = bytes.fromhex("20020001")
CONNACK_5 = bytes.fromhex("2003000000")


def hold(connection: socket.socket) -> None:
    """Stay until the client leaves."""
    with contextlib.suppress(OSError):
        while connection.recv(4096):
            pass
