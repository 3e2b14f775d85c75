"""The text of a one-time token: groups that a person can copy, from a screen or from paper. Pure but for drawing one.

    fingerprint   32 bytes   SHA-256 of the CA's certificate: the gateway tells by it whom it may show the token to
    secret        16 bytes   what the CA knows the hash of
    check          2 bytes   of the 48 before: a slip is found before anybody is asked

50 bytes are 80 characters of base32, which has neither 0 nor 1 to be taken for O and I, in 16 groups of 5. The secret
is drawn, not chosen, so that one SHA-256 of it tells nothing.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
from typing import NamedTuple

__all__ = ["MAX_TEXT", "TokenText", "draw", "hashed", "read"]

_FINGERPRINT = 32
_SECRET = 16
_CHECK = 2
_GROUP = 5

MAX_TEXT = 256
"""Characters that are looked at, with blanks and hyphens."""


class TokenText(NamedTuple):
    fingerprint: bytes
    secret: bytes

    def text(self) -> str:
        body = self.fingerprint + self.secret
        letters = base64.b32encode(body + _check(body)).decode()
        return "-".join(letters[place : place + _GROUP] for place in range(0, len(letters), _GROUP))

    def __repr__(self) -> str:
        return f"TokenText({self.fingerprint.hex()[:8]}…)"


def draw(fingerprint: bytes) -> TokenText:
    return TokenText(fingerprint, secrets.token_bytes(_SECRET))


def hashed(secret: bytes) -> str:
    """What the CA keeps of a token."""
    return hashlib.sha256(b"fedmq token 1\0" + secret).hexdigest()


def read(text: str) -> TokenText:
    """Raises ValueError, which repeats nothing of it: it may be nearly right."""
    letters = "".join(text[: MAX_TEXT + 1].split()).replace("-", "").upper()
    try:
        data = base64.b32decode(letters)
    except binascii.Error:
        data = b""
    body, check = data[:-_CHECK], data[-_CHECK:]
    if len(data) != _FINGERPRINT + _SECRET + _CHECK or check != _check(body):
        raise ValueError("not a token as `fedmq ca token` prints it: 16 groups of 5 letters and digits; is it whole?")
    return TokenText(body[:_FINGERPRINT], body[_FINGERPRINT:])


def _check(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()[:_CHECK]
