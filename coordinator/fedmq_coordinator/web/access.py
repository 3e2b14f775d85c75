"""Who may look at the dashboard and who may give orders: tokens, sessions, and requests that are not what they seem.

Owns the rules; values and the time come in, answers come out. Refuses to know HTTP beyond the headers that it judges.

- A token is compared in constant time, with both that there are, whichever fits.
- A session is 32 random bytes in a cookie; what is kept of it is their hash. There are so many at most, for so long.
- Who sends wrong tokens waits: five within a minute from one address, six hundred from everywhere. An address of IPv6
  counts by its /64, which is what one customer has.
- On the loopback a request names this machine in its Host header, or a page from elsewhere has had its own name point
  here (DNS rebinding).
- An order comes from a page of ours: its Origin names the host that was asked, and it brings its session's own token.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from fedmq_protocol.secrets import read_secret

from fedmq_coordinator.settings import is_loopback

__all__ = ["Attempts", "Role", "Session", "Sessions", "TokenError", "Tokens", "is_own_host", "is_own_origin", "network"]

Role = Literal["viewer", "operator"]

LEAST_TOKEN = 24
"""Characters. Sixteen random bytes in hex are 32."""
MAX_TOKEN_FILE_BYTES = 4096

SESSION_SECONDS = 12 * 3600.0
MOST_SESSIONS = 256

WRONG_SECONDS = 60.0
MOST_WRONG_OF_ONE = 5
MOST_WRONG = 600
MOST_ADDRESSES = 1024


class TokenError(ValueError):
    """A token file that cannot be used. Its text says what to do, and nothing of the token."""


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """None: nobody needs one to look; nobody can give orders."""

    viewer: str | None = field(default=None, repr=False)
    operator: str | None = field(default=None, repr=False)

    @classmethod
    def read(cls, viewer: Path | None, operator: Path | None) -> Tokens:
        """Raises SecretError for a file that others may read, TokenError for a token that is too short."""
        read = {key: None if path is None else _token(path) for key, path in (("v", viewer), ("o", operator))}
        if read["v"] is not None and read["v"] == read["o"]:
            raise TokenError("http.operator_token_file: expected another token than the one that lets people look")
        return cls(viewer=read["v"], operator=read["o"])

    @property
    def open(self) -> bool:
        """Whether everybody who gets here may look."""
        return self.viewer is None

    def role_of(self, token: str) -> Role | None:
        fits = {role: _same(token, wanted) for role, wanted in (("operator", self.operator), ("viewer", self.viewer))}
        return "operator" if fits["operator"] else "viewer" if fits["viewer"] else None


def _token(path: Path) -> str:
    lines = read_secret(path, MAX_TOKEN_FILE_BYTES).decode("utf-8", "replace").splitlines()
    token = lines[0].strip() if lines else ""
    if len(token) < LEAST_TOKEN:
        raise TokenError(
            f"{path}: expected a token of {LEAST_TOKEN} characters or more on the first line, got {len(token)}:"
            f" openssl rand -hex 32 > {path}"
        )
    return token


def _same(one: str, other: str | None) -> bool:
    # Hashed first: lengths then tell nothing either.
    left, right = (hashlib.sha256((text or "").encode()).digest() for text in (one, other))
    return hmac.compare_digest(left, right) and other is not None


@dataclass(frozen=True, kw_only=True)
class Session:
    role: Role
    until: float
    proof: str = field(repr=False)
    """What an order of this session must bring, beside its cookie."""
    name: str
    """The first digits of the cookie's hash: tells sessions apart in the audit log."""


class Sessions:
    """Of people who have shown a token. `draw` gives so many random bytes."""

    def __init__(self, draw: Callable[[int], bytes]) -> None:
        self._draw = draw
        self._of: OrderedDict[bytes, Session] = OrderedDict()

    def begin(self, role: Role, now: float) -> str:
        """A session's cookie; the oldest one ends where there are too many."""
        cookie = self._draw(32).hex()
        key = _key(cookie)
        self._of[key] = Session(role=role, until=now + SESSION_SECONDS, proof=self._draw(32).hex(), name=key.hex()[:8])
        while len(self._of) > MOST_SESSIONS:
            self._of.popitem(last=False)
        return cookie

    def get(self, cookie: str, now: float) -> Session | None:
        # By its hash: how long the search takes tells nothing of the cookie.
        session = self._of.get(_key(cookie))
        if session is not None and session.until <= now:
            del self._of[_key(cookie)]
            return None
        return session

    def end(self, cookie: str) -> None:
        self._of.pop(_key(cookie), None)


def _key(cookie: str) -> bytes:
    return hashlib.sha256(cookie.encode("utf-8", "replace")).digest()


class Attempts:
    """Wrong tokens of the last minute, by where they came from."""

    def __init__(self) -> None:
        self._all: deque[float] = deque()
        self._of: OrderedDict[str, deque[float]] = OrderedDict()

    def wait_seconds(self, address: str, now: float) -> float:
        """How long this address has to wait before another token of its is looked at; 0: not at all."""
        waits = [_left(self._all, MOST_WRONG, now)]
        own = self._of.get(network(address))
        if own is not None:
            waits.append(_left(own, MOST_WRONG_OF_ONE, now))
        return max(waits)

    def failed(self, address: str, now: float) -> None:
        self._all.append(now)
        own = self._of.setdefault(network(address), deque(maxlen=MOST_WRONG_OF_ONE))
        own.append(now)
        self._of.move_to_end(network(address))
        while len(self._of) > MOST_ADDRESSES:
            self._of.popitem(last=False)


def _left(times: deque[float], most: int, now: float) -> float:
    while times and times[0] <= now - WRONG_SECONDS:
        times.popleft()
    return 0.0 if len(times) < most else max(0.0, times[0] + WRONG_SECONDS - now)


def network(address: str) -> str:
    """What counts as one place: an address of IPv4, a /64 of IPv6."""
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return "?"
    if isinstance(found, IPv6Address):
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        return str(IPv6Address(int(found) >> 64 << 64)) + "/64"
    return str(found)


def is_own_host(host: str) -> bool:
    """Whether a Host header names this machine itself."""
    try:
        name = urlsplit(f"//{host}").hostname
    except ValueError:
        return False
    return name is not None and is_loopback(name)


def is_own_origin(origin: str, host: str) -> bool:
    """Whether an Origin header names the host that a request was sent to."""
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and parts.netloc.lower() == host.lower() and bool(host)
