"""A pager and a mail server that tests play, on the loopback address."""

from __future__ import annotations

import email
import json
import socketserver
import threading
from email import policy
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Pager(ThreadingHTTPServer):
    """Notes what is posted; answers with the statuses that a test has it answer, then 204."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Posted)
        self.got: list[tuple[str, str | None, Any]] = []
        self.statuses: list[int] = []
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hook"


class _Posted(BaseHTTPRequestHandler):
    server: Pager

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.got.append((self.headers["Idempotency-Key"], self.headers["Authorization"], body))
        self.send_response(self.server.statuses.pop(0) if self.server.statuses else 204)
        self.send_header("Location", "/elsewhere")
        self.end_headers()

    def do_GET(self) -> None:
        raise AssertionError("a redirect was followed")

    def log_message(self, *arguments: Any) -> None:
        pass


class Post(socketserver.ThreadingTCPServer):
    """As little of RFC 5321 as a client needs."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Mailed)
        self.got: list[tuple[list[str], email.message.EmailMessage]] = []
        self.refuse: set[str] = set()
        self.busy = 0
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def port(self) -> int:
        return int(self.server_address[1])


class _Mailed(socketserver.StreamRequestHandler):
    server: Post

    def handle(self) -> None:
        to: list[str] = []
        self._say("220 here")
        while line := self.rfile.readline().decode().strip():
            word = line.upper().split()[0]
            if word == "DATA":
                self._say("354 go on")
                body = b""
                while (part := self.rfile.readline()) != b".\r\n":
                    body += part[1:] if part.startswith(b"..") else part
                if self.server.busy:
                    self.server.busy -= 1
                    self._say("451 busy")
                    continue
                self.server.got.append((to, email.message_from_bytes(body, policy=policy.default)))
                self._say("250 taken")
            elif word == "RCPT":
                who = line.partition("<")[2].partition(">")[0]
                if who in self.server.refuse:
                    self._say("550 unknown")
                    continue
                to.append(who)
                self._say("250 ok")
            elif word == "QUIT":
                self._say("221 bye")
                return
            else:
                self._say("250 ok")

    def _say(self, text: str) -> None:
        self.wfile.write(f"{text}\r\n".encode())
