"""What a gateway and the server of a CA say to each other: JSON, each field bounded. Nothing in an answer is secret."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

__all__ = ["Answer", "Enrol", "Refusal", "Renew"]

Pem = Annotated[str, Meta(max_length=8192)]


class Enrol(msgspec.Struct, frozen=True, kw_only=True):
    token: Annotated[str, Meta(max_length=256)]
    csr: Pem
    agreement: Pem | None = None


class Renew(msgspec.Struct, frozen=True, kw_only=True):
    csr: Pem
    agreement: Pem | None = None


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a gateway is given; `card` in base64."""

    certificate: Pem
    ca: Pem
    trust: Annotated[str, Meta(max_length=256 * 1024)]
    card: Annotated[str, Meta(max_length=1024)] | None = None


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    error: Annotated[str, Meta(max_length=4096)]
