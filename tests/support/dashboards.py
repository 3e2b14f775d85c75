"""A dashboard that serves, and what speaks to it: whole requests, or any bytes at all.

with served(ledger) as site:
    assert site.get("/healthz").status == 200
    assert site.talk(b"nonsense").startswith(b"HTTP/1.1 400")
"""

from __future__ import annotations

import gzip
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from fedmq_coordinator.settings import HttpSettings
from fedmq_coordinator.web.service import Dashboard, bind

PATIENCE_SECONDS = 20.0

VIEWER = "a-token-to-look-with-0123456789"
OPERATOR = "a-token-to-give-orders-0123456789"


@dataclass(frozen=True, kw_only=True)
class Answer:
    status: int
    headers: dict[str, str]
    """Names in lower case; of several of one name the last."""
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode("utf-8")

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(kw_only=True)
class Visitor:
    """Who asks, with what it brings each time."""

    port: int
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def talk(self, said: bytes, *, seconds: float = PATIENCE_SECONDS) -> bytes:
        """All that comes back until the other end hangs up. Raises TimeoutError where it does not, in all that time."""
        until = time.monotonic() + seconds
        with socket.create_connection(("127.0.0.1", self.port), seconds) as one:
            one.sendall(said)
            came = bytearray()
            while part := one.recv(1 << 16):
                came += part
                one.settimeout(max(0.01, until - time.monotonic()))
        return bytes(came)

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, **headers)

    def post(self, path: str, form: dict[str, str], **headers: str) -> Answer:
        body = urlencode(form).encode()
        kind = {"content-type": "application/x-www-form-urlencoded", "origin": f"http://{self.host}"}
        return self.ask("POST", path, body, **(kind | headers))

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> Answer:
        """`_` in a header's name stands for `-`; an empty value leaves the header out."""
        said = {"host": self.host, "connection": "close"} | self.headers
        said |= {name.replace("_", "-"): value for name, value in headers.items()}
        if body or method == "POST":
            said.setdefault("content-length", str(len(body)))
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in said.items() if value)]
        return read_answer(self.talk("\r\n".join(lines).encode() + b"\r\n\r\n" + body))

    def sign_in(self, token: str) -> Visitor:
        """A browser that has shown a token."""
        answer = self.post("/login", {"token": token})
        assert answer.status == 303, answer
        return Visitor(
            port=self.port, headers=self.headers | {"cookie": answer.headers["set-cookie"].partition(";")[0]}
        )


def read_answer(came: bytes) -> Answer:
    head, _, body = came.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if headers.get("transfer-encoding") == "chunked":
        body = unchunked(body)
    if headers.get("content-encoding") == "gzip":
        body = gzip.decompress(body)
    return Answer(status=int(first.split()[1]), headers=headers, body=body)


def unchunked(body: bytes) -> bytes:
    whole = bytearray()
    while body:
        size, _, body = body.partition(b"\r\n")
        length = int(size, 16)
        whole += body[:length]
        body = body[length + 2 :]
        if not length:
            break
    return bytes(whole)


@contextmanager
def served(ledger: Path, **settings: Any) -> Iterator[Visitor]:
    """A dashboard of this ledger on a free port, in a thread; `settings` of the table `http`."""
    with bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        dashboard = Dashboard(ledger, HttpSettings(**({"listen": f"127.0.0.1:{port}"} | settings)))
        pipe, alive = os.pipe()
        # A daemon: one that does not end fails its test, and does not keep all of them from ending.
        words = {"with_parent": pipe}
        thread = threading.Thread(target=dashboard.serve, args=(listener,), kwargs=words, daemon=True)
        thread.start()
        try:
            yield Visitor(port=port)
        finally:
            os.close(alive)
            thread.join(PATIENCE_SECONDS)
            os.close(pipe)
            assert not thread.is_alive(), "the dashboard does not end"


def secret(path: Path, text: str) -> Path:
    path.write_text(text + "\n", encoding="utf-8")
    path.chmod(0o600)
    return path


def with_tokens(folder: Path) -> dict[str, Path]:
    """Settings of a dashboard that asks who one is."""
    return {
        "token_file": secret(folder / "viewer.token", VIEWER),
        "operator_token_file": secret(folder / "operator.token", OPERATOR),
    }
