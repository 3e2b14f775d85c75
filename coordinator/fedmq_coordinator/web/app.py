"""The dashboard as an application of HTTP: routes, and the door that every request passes.

Owns what may be asked and how an answer is dressed. Who may ask is `access`'s rule, what is shown `views`' and
`pages`'.

The door, in this order: the Host header, on the loopback; the size of what is sent; the token or the session; for an
order, where it came from. Without a token nothing answers but /healthz, the form to enter one, and its style sheets.
"""

from __future__ import annotations

import asyncio
import gzip
import hmac
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar
from urllib.parse import parse_qs

import msgspec
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fedmq_coordinator.control import ControlError
from fedmq_coordinator.ledger import Ledger, LedgerError
from fedmq_coordinator.web import pages
from fedmq_coordinator.web.access import Attempts, Role, Session, Sessions, Tokens, is_own_host, is_own_origin
from fedmq_coordinator.web.files import FILES, read_file
from fedmq_coordinator.web.machines import MachineView, machine_view
from fedmq_coordinator.web.views import MissingError, Snapshot, gateway_view, round_view

__all__ = ["Gate", "Kept", "Source", "make_app"]

T = TypeVar("T")

COOKIE = "fedmq"
SECURE_COOKIE = "__Host-fedmq"
"""Browsers take this name over HTTPS alone, and from no other host."""

MAX_HEAD_BYTES = 16 * 1024
MAX_BODY_BYTES = 8 * 1024
BODY_SECONDS = 10.0
"""To send a request's body."""
WRITE_SECONDS = 20.0
"""To take one part of an answer."""

HEARTBEAT_SECONDS = 15.0
STREAM_SECONDS = 3600.0
"""After which a stream of events ends and the page asks anew: who may look is asked again then."""

PUBLIC = frozenset({"/login", "/static/base.css", "/static/dashboard.css", "/static/theme.js", "/static/icon.svg"})
"""What answers without a token, beside /healthz: a form, and how it looks."""

HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self';"
    " connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    # Not no-referrer: browsers then send no Origin with a form either, by which an order is known to be ours.
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A snapshot, and what the page's script asks of it, coded and compressed once."""

    snapshot: Snapshot
    mark: str
    """Another one for each that is made: an ETag without its quotes."""
    overview: bytes
    fleet: bytes
    """Both JSON, compressed by gzip."""


class Source(Protocol):
    """Where what is shown comes from."""

    @property
    def trouble(self) -> str:
        """Why the ledger cannot be read; empty where it can."""

    def now(self) -> float: ...

    async def kept(self, task: str | None) -> Kept:
        """Raises LedgerError."""

    async def read(self, use: Callable[[Ledger], T]) -> T:
        """In a thread, by a connection of its own. Raises LedgerError."""

    async def order(self, *, place: str, what: str, fault: str, said_by: str, session: str, with_others: bool) -> None:
        """Put a verdict on record, and of the alerts that overlap this one. Raises ControlError for what is none."""

    def listen(self) -> asyncio.Queue[bytes | None] | None:
        """Events as they come, coded; None is the last. None in its place where too many listen."""

    def leave(self, queue: asyncio.Queue[bytes | None]) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Gate:
    """Who is let in."""

    tokens: Tokens
    sessions: Sessions
    loopback: bool
    """Whether it listens for this machine alone."""
    behind_proxy: bool = False
    secure: bool = False
    """Whether browsers speak HTTPS with it."""
    clock: Callable[[], float]
    attempts: Attempts = field(default_factory=Attempts)

    @property
    def cookie(self) -> str:
        return SECURE_COOKIE if self.secure else COOKIE


def make_app(
    source: Source,
    gate: Gate,
    *,
    lifespan: Callable[[Starlette], AbstractAsyncContextManager[None]] | None = None,
) -> ASGIApp:
    site = _Site(source, gate)
    routes = [
        Route("/healthz", site.healthz),
        Route("/login", site.login, methods=["GET", "POST"]),
        Route("/logout", site.logout, methods=["POST"]),
        Route("/", site.overview_page),
        Route("/gateway", site.gateway_page),
        Route("/round", site.round_page),
        Route("/machine", site.machine_page),
        Route("/orders", site.orders, methods=["POST"]),
        Route("/api/overview", site.overview),
        Route("/api/fleet", site.fleet),
        Route("/api/gateway", site.gateway),
        Route("/api/round", site.round),
        Route("/api/alerts", site.alerts),
        Route("/api/machine", site.machine),
        Route("/api/events", site.events),
        *(Route(f"/static/{name}", site.file) for name in FILES),
    ]
    return Starlette(
        routes=routes,
        middleware=[Middleware(_Door, gate=gate)],
        exception_handlers={HTTPException: _told, LedgerError: _ledger_trouble},
        lifespan=lifespan,
    )


# -- the door --------------------------------------------------------------------------------------------------


class _TooSlow(Exception):
    """Somebody takes an answer too slowly: the connection is given up."""


class _Door:
    """What every request passes; see the head of this module."""

    def __init__(self, app: ASGIApp, gate: Gate) -> None:
        self._app = app
        self._gate = gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            # Its own life; there are no WebSockets, and a server without their library refuses them.
            await self._app(scope, receive, send)
            return
        dressed = _patient(_dressed(send))
        refusal = self._judge(scope)
        if refusal is not None:
            await refusal(scope, receive, dressed)
            return
        try:
            await self._app(scope, _bounded(receive), dressed)
        except _TooSlow:
            # The response has begun and cannot be finished: uvicorn closes the connection.
            return

    def _judge(self, scope: Scope) -> Response | None:
        """None lets it in, with its role and session in the request's state."""
        gate, headers, path = self._gate, Headers(scope=scope), scope["path"]
        state = scope.setdefault("state", {})
        state["role"], state["session"] = None, None
        if gate.loopback and not gate.behind_proxy and not is_own_host(headers.get("host", "")):
            return _plain(421, "This dashboard answers to localhost, 127.0.0.1 and [::1] alone.")
        if len(scope["raw_path"]) + len(scope["query_string"]) + _size(headers) > MAX_HEAD_BYTES:
            return _plain(431, f"Expected a head of at most {MAX_HEAD_BYTES:,} bytes.")
        if _length(headers) > MAX_BODY_BYTES:
            return _plain(413, f"Expected at most {MAX_BODY_BYTES:,} bytes.")
        if path == "/healthz":
            return None
        now = gate.clock()
        bearer = headers.get("authorization", "")
        if bearer:
            refusal = self._take_token(bearer, address_of(scope, gate), now, state)
            if refusal is not None:
                return refusal
        else:
            session = gate.sessions.get(_cookie(headers, gate.cookie), now)
            if session is not None:
                state["session"], state["role"] = session, session.role
            elif gate.tokens.open:
                state["role"] = "viewer"
        if state["role"] is None and path not in PUBLIC:
            if (
                scope["method"] in ("GET", "HEAD")
                and not path.startswith("/api/")
                and "text/html" in headers.get("accept", "")
            ):
                return RedirectResponse("/login", 303)
            return _plain(401, "A token is needed.", {"www-authenticate": 'Bearer realm="fedmq"'})
        if scope["method"] not in ("GET", "HEAD"):
            return self._judge_order(headers, bool(bearer))
        return None

    def _take_token(self, bearer: str, address: str, now: float, state: dict[str, Any]) -> Response | None:
        wait = self._gate.attempts.wait_seconds(address, now)
        if wait > 0:
            return _wait(wait)
        kind, _, token = bearer.partition(" ")
        role = self._gate.tokens.role_of(token.strip()) if kind.lower() == "bearer" else None
        if role is None:
            self._gate.attempts.failed(address, now)
            return _plain(401, "This is no token of this dashboard.", {"www-authenticate": 'Bearer realm="fedmq"'})
        state["role"] = role
        return None

    def _judge_order(self, headers: Headers, by_token: bool) -> Response | None:
        """Whether a page of ours sends it: browsers name the origin of every form, and scripts name what they like."""
        origin, host = headers.get("origin"), _host(headers, self._gate)
        if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return _plain(403, "This was sent by a page of another site.")
        if origin is None and by_token:
            return None
        if origin is None or not is_own_origin(origin, host):
            return _plain(403, f"Expected a request from a page of {host}, this one is from {origin or 'nowhere'}.")
        return None


def address_of(scope: Scope, gate: Gate) -> str:
    """Who asks: the other end of the connection, or as the proxy tells, which appends whom it has seen."""
    if gate.behind_proxy:
        told = Headers(scope=scope).getlist("x-forwarded-for")
        if told:
            return told[-1].rpartition(",")[2].strip()
    client = scope.get("client")
    return str(client[0]) if client else "?"


def _host(headers: Headers, gate: Gate) -> str:
    told = headers.get("x-forwarded-host") if gate.behind_proxy else None
    return (told or headers.get("host", "")).rpartition(",")[2].strip()


def _size(headers: Headers) -> int:
    return sum(len(name) + len(value) for name, value in headers.raw)


def _length(headers: Headers) -> int:
    text = headers.get("content-length", "0")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else MAX_BODY_BYTES + 1


def _cookie(headers: Headers, name: str) -> str:
    for part in headers.get("cookie", "").split(";"):
        key, _, value = part.strip().partition("=")
        if key == name:
            return value
    return ""


def _dressed(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
            headers.setdefault("cache-control", "no-store")
        await send(message)

    return sending


def _patient(send: Send) -> Send:
    """A part of an answer that nobody takes for so long is the last one."""

    async def sending(message: Message) -> None:
        try:
            async with asyncio.timeout(WRITE_SECONDS):
                await send(message)
        except TimeoutError:
            raise _TooSlow from None

    return sending


def _bounded(receive: Receive) -> Receive:
    """No more of a body than may be, whatever its head said, and not for longer."""
    came = 0
    whole = False

    async def receiving() -> Message:
        nonlocal came, whole
        if whole:
            return await receive()  # the end of the connection, for which a stream of events waits long
        try:
            async with asyncio.timeout(BODY_SECONDS):
                message = await receive()
        except TimeoutError:
            raise HTTPException(408, "The request took too long.") from None
        came += len(message.get("body", b""))
        whole = not message.get("more_body", False)
        if came > MAX_BODY_BYTES:
            raise HTTPException(413, f"Expected at most {MAX_BODY_BYTES:,} bytes.")
        return message

    return receiving


def _plain(status: int, text: str, headers: dict[str, str] | None = None) -> Response:
    # What was not read of a request must not be taken for the next one.
    return PlainTextResponse(text + "\n", status, {**(headers or {}), "connection": "close"})


def _wait(seconds: float) -> Response:
    whole = max(1, round(seconds + 0.5))
    return _plain(429, f"Too many wrong tokens: wait {whole} s.", {"retry-after": str(whole)})


async def _told(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if request.url.path.startswith("/api/") or error.status_code in (405, 408, 413):
        return _plain(error.status_code, error.detail)
    return _html(pages.trouble(_who(request), error.detail), error.status_code)


async def _ledger_trouble(request: Request, error: Exception) -> Response:
    return await _told(request, HTTPException(404 if isinstance(error, MissingError) else 503, str(error)))


def _html(text: str, status: int = 200) -> Response:
    return Response(text, status, media_type="text/html; charset=utf-8")


def _who(request: Request) -> pages.Who:
    state = request.scope.get("state", {})
    session: Session | None = state.get("session")
    role: Role | None = state.get("role")
    return pages.Who(
        signed_in=session is not None,
        operator=role == "operator",
        proof="" if session is None else session.proof,
        may_sign_in=state.get("may_sign_in", False),
        may_order=state.get("may_order", False),
    )


# -- the routes ------------------------------------------------------------------------------------------------


class _Site:
    def __init__(self, source: Source, gate: Gate) -> None:
        self._source = source
        self._gate = gate

    def _who(self, request: Request) -> pages.Who:
        tokens = self._gate.tokens
        request.scope["state"]["may_sign_in"] = not tokens.open or tokens.operator is not None
        request.scope["state"]["may_order"] = tokens.operator is not None
        return _who(request)

    async def healthz(self, request: Request) -> Response:
        trouble = self._source.trouble
        # Why is for those who may look: it may name paths.
        return PlainTextResponse("ok\n" if not trouble else "the ledger cannot be read\n", 503 if trouble else 200)

    async def file(self, request: Request) -> Response:
        found = read_file(request.url.path.removeprefix("/static/"))
        headers = {"etag": found.mark, "cache-control": "no-cache", "vary": "accept-encoding"}
        if request.headers.get("if-none-match") == found.mark:
            return Response(status_code=304, headers=headers)
        if "gzip" in request.headers.get("accept-encoding", ""):
            return Response(found.packed, headers=headers | {"content-encoding": "gzip"}, media_type=found.kind)
        return Response(found.body, headers=headers, media_type=found.kind)

    # -- signing in --------------------------------------------------------------------------------------------

    async def login(self, request: Request) -> Response:
        who = self._who(request)
        if request.method in ("GET", "HEAD"):
            return _html(pages.login(who))
        gate, now = self._gate, self._gate.clock()
        address = address_of(request.scope, gate)
        wait = gate.attempts.wait_seconds(address, now)
        if wait > 0:
            return _wait(wait)
        token = (await _form(request)).get("token", "").strip()
        role = gate.tokens.role_of(token)
        if role is None:
            gate.attempts.failed(address, now)
            return _html(pages.login(who, wrong=True), 403)
        answer = RedirectResponse("/", 303)
        answer.set_cookie(
            gate.cookie,
            gate.sessions.begin(role, now),
            httponly=True,
            samesite="strict",
            secure=gate.secure,
            path="/",
        )
        return answer

    async def logout(self, request: Request) -> Response:
        await self._proven(request)
        self._gate.sessions.end(request.cookies.get(self._gate.cookie, ""))
        answer = RedirectResponse("/" if self._gate.tokens.open else "/login", 303)
        answer.delete_cookie(self._gate.cookie, path="/", secure=self._gate.secure, httponly=True, samesite="strict")
        return answer

    async def _proven(self, request: Request) -> dict[str, str]:
        """The form of a request that a page of this session sent. Raises HTTPException."""
        form = await _form(request)
        session: Session | None = request.scope["state"]["session"]
        if session is not None and not _same(form.get("proof", ""), session.proof):
            raise HTTPException(403, "The page is too old: load it again.")
        return form

    # -- looking -----------------------------------------------------------------------------------------------

    async def overview_page(self, request: Request) -> Response:
        kept = await self._source.kept(_task(request))
        return _html(pages.overview(kept.snapshot, self._who(request)))

    async def gateway_page(self, request: Request) -> Response:
        kept = await self._source.kept(_task(request))
        name, now = _word(request, "name"), self._source.now()
        view = await self._source.read(lambda ledger: gateway_view(ledger, kept.snapshot, name, now))
        return _html(pages.gateway(view, kept.snapshot, self._who(request)))

    async def round_page(self, request: Request) -> Response:
        kept = await self._source.kept(_task(request))
        number, now = _number(request, "id"), self._source.now()
        view = await self._source.read(lambda ledger: round_view(ledger, kept.snapshot, number, now))
        return _html(pages.round_(view, kept.snapshot, self._who(request)))

    async def machine_page(self, request: Request) -> Response:
        kept = await self._source.kept(_task(request))
        return _html(pages.machine(await self._machine(request), kept.snapshot, self._who(request)))

    async def _machine(self, request: Request) -> MachineView:
        gateway, name = _word(request, "gateway"), _word(request, "name")
        view = await self._source.read(lambda ledger: machine_view(ledger, gateway, name))
        if view is None:
            raise MissingError(f"no machine {name!r} of a gateway {gateway!r} is on record")
        return view

    async def overview(self, request: Request) -> Response:
        kept = await self._source.kept(_task(request))
        return _packed(request, kept.overview, f'"{kept.mark}"')

    async def fleet(self, request: Request) -> Response:
        kept = await self._source.kept(_task(request))
        return _packed(request, kept.fleet, f'"{kept.mark}-fleet"')

    async def gateway(self, request: Request) -> Response:
        kept = await self._source.kept(_task(request))
        name, now = _word(request, "name"), self._source.now()
        return _json(await self._source.read(lambda ledger: gateway_view(ledger, kept.snapshot, name, now)))

    async def round(self, request: Request) -> Response:
        kept = await self._source.kept(_task(request))
        number, now = _number(request, "id"), self._source.now()
        return _json(await self._source.read(lambda ledger: round_view(ledger, kept.snapshot, number, now)))

    async def alerts(self, request: Request) -> Response:
        kept = await self._source.kept(_task(request))
        return _json(kept.snapshot.conditions)

    async def machine(self, request: Request) -> Response:
        return _json(await self._machine(request))

    # -- orders ------------------------------------------------------------------------------------------------

    async def orders(self, request: Request) -> Response:
        """A verdict on an alert, as a page's form sends it."""
        if request.scope["state"]["role"] != "operator":
            raise HTTPException(403, "Orders are for operators: sign in with the token for orders.")
        form = await self._proven(request)
        session: Session | None = request.scope["state"]["session"]
        order = {key: form.get(key, "").strip() for key in ("alert", "what", "fault", "said_by")}
        if order["what"] != "confirm":
            order["fault"] = ""  # what stood in the field beside the button
        try:
            await self._source.order(
                place=order["alert"],
                what=order["what"],
                fault=order["fault"],
                said_by=order["said_by"][:24],
                session="none" if session is None else session.name,
                with_others=form.get("others", "") == "too" and order["what"] != "ack",
            )
        except ControlError as error:
            raise HTTPException(400, str(error)) from None
        back = form.get("back", "")
        # Nowhere but to a page of ours: `//host` and `/\\host` would lead elsewhere.
        leads_on = back.startswith(("/?", "/#", "/machine?")) and back.isprintable() and "\\" not in back
        return RedirectResponse(back if leads_on else "/", 303)

    async def events(self, request: Request) -> Response:
        queue = self._source.listen()
        if queue is None:
            return _plain(503, "Too many pages listen already.", {"retry-after": "60"})
        return StreamingResponse(
            self._stream(queue), media_type="text/event-stream", headers={"x-accel-buffering": "no"}
        )

    async def _stream(self, queue: asyncio.Queue[bytes | None]) -> AsyncIterator[bytes]:
        loop = asyncio.get_running_loop()
        until = loop.time() + STREAM_SECONDS
        try:
            yield b"retry: 3000\n\n"
            while loop.time() < until:
                try:
                    event = await asyncio.wait_for(queue.get(), HEARTBEAT_SECONDS)
                except TimeoutError:
                    event = b": still here\n\n"
                if event is None:
                    return
                yield event
        finally:
            self._source.leave(queue)


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(), other.encode())


async def _form(request: Request) -> dict[str, str]:
    """Raises HTTPException for what is no form."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise HTTPException(415, "Expected a form.")
    try:
        fields = parse_qs((await request.body()).decode("utf-8"), max_num_fields=32, strict_parsing=False)
    except (UnicodeDecodeError, ValueError):
        raise HTTPException(400, "Expected a form.") from None
    return {key: values[0] for key, values in fields.items()}


def _task(request: Request) -> str | None:
    return request.query_params.get("task") or None


def _word(request: Request, key: str) -> str:
    return request.query_params.get(key, "")[:200]


def _number(request: Request, key: str) -> int:
    text = request.query_params.get(key, "")
    if not (text.isascii() and text.isdecimal() and len(text) < 16):
        raise HTTPException(404, "There is no such round.")
    return int(text)


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")


def _packed(request: Request, packed: bytes, mark: str) -> Response:
    """What is kept is compressed; every browser takes it so, and who does not gets it plain."""
    headers = {"etag": mark, "cache-control": "no-cache", "vary": "accept-encoding"}
    if request.headers.get("if-none-match") == mark:
        return Response(status_code=304, headers=headers)
    if "gzip" in request.headers.get("accept-encoding", ""):
        return Response(packed, headers=headers | {"content-encoding": "gzip"}, media_type="application/json")
    return Response(gzip.decompress(packed), headers=headers, media_type="application/json")
