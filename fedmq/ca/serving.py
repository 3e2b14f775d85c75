"""Enrolment and renewal over HTTPS, for gateways that make their own keys.

Owns the requests, their bounds, and what is answered. Who is given what, `authority` decides. Four of them:

    GET  /ca.crt, /trust, /revoked.crl     public; a gateway checks ca.crt by the fingerprint in its token
    POST /enrol   {token, csr, agreement}  a one-time token's worth, for the name that it is for
    POST /renew   {csr, agreement}         by TLS with a client certificate that is in force

Whoever can reach the port can try: so threads, connections of one address, bytes and seconds of a request are bounded,
and an address that tries tokens out is put off. One request a connection; the handshake is the thread's, so that a
client that says nothing keeps nobody waiting.
"""

from __future__ import annotations

import base64
import logging
import socket
import socketserver
import ssl
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler
from typing import Any

import msgspec
from fedmq_protocol import identity

from fedmq.ca.authority import Authority, Enrolled, Request, TokenRefused
from fedmq.ca.exchange import Answer, Enrol, Refusal, Renew
from fedmq.ca.folder import FolderError

__all__ = ["Server", "Tries"]

log = logging.getLogger("fedmq.ca")

MAX_BODY = 16 * 1024
MAX_REQUEST = 32 * 1024
"""Headers too: a client certificate is told by TLS, and nothing else is long."""
MAX_THREADS = 64
MAX_OF_ADDRESS = 16
REQUEST_SECONDS = 20.0
"""From the first byte to the last, handshake and all; who is slower is cut off."""
STEP_SECONDS = 10.0
LOOK_SECONDS = 0.25
CERTIFICATE_EVERY_SECONDS = 3600.0

WRONG_TOKENS = 5
REFUSED = 30
TRIES_SECONDS = 60.0
"""So many tokens that nobody made, or other requests in vain, come from an address in a minute; each leaves a line."""
ADDRESSES_KEPT = 4096

PUBLIC = {
    f"/{name}": (name, kind)
    for name, kind in (
        (identity.CA_CERTIFICATE, "application/x-pem-file"),
        (identity.TRUST, "text/plain; charset=ascii"),
        (identity.REVOKED, "application/x-pem-file"),
    )
}


class Tries:
    """How often addresses have tried in vain: `most` times in `TRIES_SECONDS`, then they are put off. Time comes in."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._of: OrderedDict[str, deque[float]] = OrderedDict()
        self._lock = threading.Lock()

    def is_put_off(self, address: str, now: float) -> bool:
        with self._lock:
            tried = self._of.get(address)
            return tried is not None and len(tried) == self._most and now - tried[0] < TRIES_SECONDS

    def note(self, address: str, now: float) -> None:
        with self._lock:
            self._of.setdefault(address, deque(maxlen=self._most)).append(now)
            self._of.move_to_end(address)
            while len(self._of) > ADDRESSES_KEPT:
                self._of.popitem(last=False)


class Server(socketserver.TCPServer):
    """Listens from when it is made until `stopping` is set. `hosts` are the names by which gateways reach it."""

    allow_reuse_address = True
    request_queue_size = 128
    timeout = LOOK_SECONDS

    def __init__(
        self,
        authority: Callable[[str | None], Authority],
        address: tuple[str, int],
        *,
        hosts: Sequence[str],
        days: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`authority` opens the CA, with the address of whoever asks for its audit log."""
        self.authority = authority
        self.days = days
        self.clock = clock
        self.wrong = Tries(WRONG_TOKENS)
        self.refused = Tries(REFUSED)
        self.stopping = False
        self._hosts = tuple(hosts)
        self._threads = threading.BoundedSemaphore(MAX_THREADS)
        self._addresses: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._tls = self._context()
        self._looked_at = clock()
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, _Handler)

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def run(self) -> None:
        """Until `stopping`. Requests that are going on then have their time to end."""
        log.info("enrolment on port %d, as %s", self.port, ", ".join(self._hosts))
        try:
            while not self.stopping:
                self.handle_request()
                if self.clock() - self._looked_at > CERTIFICATE_EVERY_SECONDS:
                    self._looked_at = self.clock()
                    self._take_certificate()
        finally:
            self.server_close()
            until = time.monotonic() + REQUEST_SECONDS
            while self._addresses and time.monotonic() < until:
                time.sleep(0.02)

    def _context(self) -> ssl.SSLContext:
        own = self.authority(None).serving(self._hosts)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(own.certificate, own.key)
        # Whoever shows a certificate shows one of ours, for clients and in force by its dates; who must show one, and
        # whether it is revoked, is asked where it counts.
        context.load_verify_locations(own.ca)
        context.verify_mode = ssl.CERT_OPTIONAL
        return context

    def _take_certificate(self) -> None:
        """Its own one runs out as well."""
        try:
            own = self.authority(None).serving(self._hosts)
            self._tls.load_cert_chain(own.certificate, own.key)
        except (ValueError, OSError) as error:
            log.error("no new certificate for this server, the old one stays: %s", error)

    # -- one connection ---------------------------------------------------------------------------------------------

    def process_request(self, request: Any, client_address: Any) -> None:
        host = str(client_address[0])
        with self._lock:
            free = self._addresses[host] < MAX_OF_ADDRESS and self._threads.acquire(blocking=False)
            if free:
                self._addresses[host] += 1
        if not free:
            log.warning("turned %s away: too many connections at once", host)
            request.close()
            return
        try:
            threading.Thread(target=self._serve, args=(request, client_address), daemon=True).start()
        except RuntimeError as error:
            self._left(host)
            raise OSError(f"no thread for it: {error}") from None

    def _serve(self, plain: socket.socket, client_address: Any) -> None:
        try:
            plain.settimeout(STEP_SECONDS)
            with self._tls.wrap_socket(plain, server_side=True, do_handshake_on_connect=False) as connection:
                watchdog = threading.Timer(REQUEST_SECONDS, _cut, (connection,))
                watchdog.daemon = True
                watchdog.start()
                try:
                    connection.do_handshake()
                    _Handler(connection, client_address, self)
                finally:
                    watchdog.cancel()
        except OSError as error:
            # Also what TLS finds wrong: the far side's doing, and for its log more than for ours.
            log.info("%s: %s", client_address[0], error)
        finally:
            plain.close()
            self._left(str(client_address[0]))

    def _left(self, host: str) -> None:
        with self._lock:
            self._addresses[host] -= 1
            if not self._addresses[host]:
                del self._addresses[host]
        self._threads.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.exception("a connection from %s could not be served", client_address[0])


def _cut(connection: socket.socket) -> None:
    """From another thread: whatever waits on it ends with an error."""
    try:
        socket.socket.shutdown(connection, socket.SHUT_RDWR)
    except OSError as error:
        log.debug("nothing left to cut: %s", error)


class _Bounded:
    """A stream that ends after so many bytes, whatever comes."""

    def __init__(self, stream: Any, most: int) -> None:
        self._stream = stream
        self._left = most

    def readline(self, size: int = -1) -> bytes:
        return self._took(self._stream.readline(self._left if size < 0 else min(size, self._left)))

    def read(self, size: int = -1) -> bytes:
        return self._took(self._stream.read(self._left if size < 0 else min(size, self._left)))

    def close(self) -> None:
        self._stream.close()

    @property
    def closed(self) -> bool:
        return bool(self._stream.closed)

    def _took(self, data: bytes) -> bytes:
        self._left -= len(data)
        return data


class _Refused(Exception):
    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    server: Server
    server_version = "fedmq-ca"
    sys_version = ""
    _data: bytes | None = None

    def setup(self) -> None:
        super().setup()
        self.rfile = _Bounded(self.rfile, MAX_REQUEST)  # type: ignore[assignment]

    def do_GET(self) -> None:
        found = PUBLIC.get(self.path)
        if found is None:
            self._say(404, msgspec.json.encode(Refusal(error=f"there are {', '.join(PUBLIC)}, /enrol and /renew")))
            return
        self._answered(lambda: self.server.authority(self._address()).public(found[0]), found[1])

    def do_POST(self) -> None:
        # First of all: a connection that is closed with something unread is reset, and the answer with it.
        self._data = self._read_body()
        doing = {"/enrol": self._enrol, "/renew": self._renew}.get(self.path)
        if doing is None:
            self._say(404, msgspec.json.encode(Refusal(error="there are /enrol and /renew")))
            return
        for tries in (self.server.wrong, self.server.refused):
            if tries.is_put_off(self._address(), self.server.clock()):
                self._say(429, msgspec.json.encode(Refusal(error="too many tries in vain: try again in a minute")))
                return
        self._answered(lambda: msgspec.json.encode(_answer(doing())), "application/json")

    def _answered(self, doing: Callable[[], bytes], kind: str) -> None:
        try:
            data = doing()
        except _Refused as refused:
            self._refuse(refused.status, refused)
        except TokenRefused as error:
            if error.wrong:
                self.server.wrong.note(self._address(), self.server.clock())
            self._refuse(403, error)
        except (FolderError, OSError) as error:
            # Of this machine, not of the request: for its own log alone.
            log.error("%s %s from %s: %s", self.command, self.path, self._address(), error)
            self._say(500, msgspec.json.encode(Refusal(error="the CA cannot do it now; its log says why")))
        except ValueError as error:
            self._refuse(403, error)
        else:
            self._say(200, data, kind)

    def _refuse(self, status: int, why: Exception) -> None:
        log.warning("%s from %s refused: %s", self.path, self._address(), why)
        self.server.refused.note(self._address(), self.server.clock())
        self._say(status, msgspec.json.encode(Refusal(error=str(why))))

    def _enrol(self) -> Enrolled:
        body = self._body(Enrol)
        authority = self.server.authority(self._address())
        return authority.redeem(body.token, _request(body.csr, body.agreement), days=self.server.days)

    def _renew(self) -> Enrolled:
        connection = self.connection
        shown = connection.getpeercert(binary_form=True) if isinstance(connection, ssl.SSLSocket) else None
        if shown is None:
            raise _Refused(403, "renewal takes TLS with the certificate that is still in force")
        body = self._body(Renew)
        authority = self.server.authority(self._address())
        return authority.renew_held(shown, _request(body.csr, body.agreement), days=self.server.days)

    def _read_body(self) -> bytes | None:
        """None for one that is too long, or does not say how long it is."""
        said = self.headers.get("Content-Length", "")
        if not (said.isascii() and said.isdigit() and len(said) <= 12):
            return None
        data = self.rfile.read(int(said))
        return data if int(said) <= MAX_BODY else None

    def _body(self, kind: type[Any]) -> Any:
        data = self._data
        if data is None:
            raise _Refused(413, f"expected a body of at most {MAX_BODY:,} bytes, with its Content-Length")
        try:
            return msgspec.json.decode(data, type=kind)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            raise _Refused(400, f"expected JSON with {', '.join(kind.__struct_fields__)}") from None

    def _address(self) -> str:
        return str(self.client_address[0])

    def _say(self, status: int, data: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Paths and numbers alone come here; what a request brings is not logged."""
        log.info("%s: %s", self._address(), (format % args).encode("ascii", "backslashreplace").decode()[:200])


def _request(csr: str, agreement: str | None) -> Request:
    return Request(csr=csr.encode(), agreement=None if agreement is None else agreement.encode())


def _answer(enrolled: Enrolled) -> Answer:
    return Answer(
        certificate=enrolled.certificate.decode(),
        ca=enrolled.ca.decode(),
        trust=enrolled.trust.decode(),
        card=None if enrolled.card is None else base64.b64encode(enrolled.card).decode(),
    )
