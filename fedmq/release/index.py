"""What a release consists of, under one signature.

Owns the form of the file `index` and what makes one believable. Refuses to know connections, folders and clocks: the
time comes in as an argument. The rules, after The Update Framework, whose specification (1.0.33, section 5) names the
attacks:

- The signature is checked before a single field is read, and it is over a domain of its own: nothing else that an
  Ed25519 key has signed can be taken for an index.
- It ends: whoever keeps newer ones away can do so until then, and not longer.
- Its serial number only goes up. A machine that has seen one believes no lower one: an old release with known holes
  cannot be brought back by showing its old index. To go back on purpose, the older version gets a new index.
- Names are plain file names. Every size is stated and bounded, so that nothing is read further than it says.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated

import msgspec
from msgspec import Meta

__all__ = [
    "ANY",
    "INDEX",
    "MAX_INDEX_BYTES",
    "REQUIREMENTS",
    "Build",
    "File",
    "Index",
    "ReleaseError",
    "ReleaseKey",
    "Version",
    "key_from_text",
    "key_to_text",
    "read",
    "read_key",
    "sign",
]

INDEX = "index"
REQUIREMENTS = "requirements.txt"

ANY = "any"
"""The platform of a build whose wheels run everywhere."""

MAX_INDEX_BYTES = 1 << 20
AHEAD_SECONDS = 86_400
"""An index from so far in the future says that this machine's clock is wrong."""

_FIRST_LINE = b"fedmq release 1"
_SIGNED = b"fedmq release 1\0"

_NAME = Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+!-]{0,199}\Z")
_VERSION = Meta(pattern=r"^[0-9][A-Za-z0-9._+!-]{0,63}\Z")
Name = Annotated[str, _NAME]
Version = Annotated[str, _VERSION]
Platform = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}\Z")]
Channel = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,31}\Z")]
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
UnixSeconds = Annotated[int, Meta(ge=0, le=1 << 34)]


class ReleaseError(ValueError):
    """A release that is not made, not believed, or not installed: what was expected, what came, what to do."""


class File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: Name
    bytes: Annotated[int, Meta(ge=1, le=1 << 31)]
    sha256: Sha256


class Build(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A release for one kind of machine. Its files lie in VERSION/FOLDER, beside the index."""

    folder: Platform
    platforms: Annotated[tuple[Platform, ...], Meta(min_length=1, max_length=16)]
    """Such as `aarch64-python3.11`, or `any`."""
    files: Annotated[tuple[File, ...], Meta(min_length=2, max_length=512)]

    def __post_init__(self) -> None:
        names = [file.name for file in self.files]
        if len(set(names)) != len(names):
            raise ValueError("expected every file once")
        if REQUIREMENTS not in names:
            raise ValueError(f"expected {REQUIREMENTS} among the files")

    @property
    def needed(self) -> tuple[File, ...]:
        """What a machine fetches: wheels, and which of them to install. The bill of materials is for people."""
        return tuple(file for file in self.files if file.name.endswith(".whl") or file.name == REQUIREMENTS)

    @property
    def requirements(self) -> File:
        return next(file for file in self.files if file.name == REQUIREMENTS)


class Index(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    serial: Annotated[int, Meta(ge=1, le=1 << 48)]
    channel: Channel
    version: Version
    """Of the release, and the name of its folder."""
    software: Version
    """Of fedmq in it, as `fedmq --version` says."""
    made_at: UnixSeconds
    expires: UnixSeconds
    builds: Annotated[tuple[Build, ...], Meta(min_length=1, max_length=32)]

    def __post_init__(self) -> None:
        folders = [build.folder for build in self.builds]
        platforms = [platform for build in self.builds for platform in build.platforms]
        if len(set(folders)) != len(folders) or len(set(platforms)) != len(platforms):
            raise ValueError("expected every platform once")

    def build_for(self, platform: str) -> Build:
        """The build for exactly this platform, else the one for any. Raises ReleaseError."""
        for wanted in (platform, ANY):
            for build in self.builds:
                if wanted in build.platforms:
                    return build
        known = ", ".join(name for build in self.builds for name in build.platforms)
        raise ReleaseError(
            f"release {self.version} has no build for {platform}, only for {known}: make one of a wheelhouse for it"
        )

    def check(self, *, channel: str, last_serial: int, now: float) -> None:
        """Whether a machine may follow it. Raises ReleaseError."""
        if self.channel != channel:
            raise ReleaseError(f"expected an index of channel {channel}, got one of {self.channel}: is url right?")
        if self.made_at > now + AHEAD_SECONDS:
            raise ReleaseError(
                f"the index is of {_day(self.made_at)}, which is in the future here: is this machine's clock right?"
            )
        if now >= self.expires:
            raise ReleaseError(
                f"the index has expired on {_day(self.expires)}: somebody keeps newer ones away, or none was made;"
                " `fedmq release make` makes one"
            )
        if self.serial < last_serial:
            raise ReleaseError(
                f"expected an index of serial number {last_serial} or later, got {self.serial}: an old one is shown"
                " again"
            )


@dataclass(frozen=True, kw_only=True)
class ReleaseKey:
    """What releases are signed with."""

    public: bytes
    sign: Callable[[bytes], bytes]


def read_key(pem: bytes, where: str) -> ReleaseKey:
    """`where` is the file, for the message. Raises TrustError, which holds nothing of the key."""
    from fedmq_protocol.signing import public_bytes, read_ed25519

    key = read_ed25519(pem, where)
    return ReleaseKey(public=public_bytes(key), sign=key.sign)


def sign(index: Index, key: ReleaseKey) -> bytes:
    """The file's bytes. Raises ReleaseError for one that is too large."""
    body = msgspec.json.format(msgspec.json.encode(index), indent=1)
    signature = base64.b64encode(key.sign(_SIGNED + body))
    data = b"\n".join((_FIRST_LINE, signature, body)) + b"\n"
    if len(data) > MAX_INDEX_BYTES:
        raise ReleaseError(f"the index would have {len(data):,} bytes, and machines read {MAX_INDEX_BYTES:,} at most")
    return data


def read(data: bytes, keys: Sequence[bytes]) -> Index:
    """What one of these public keys has signed. Raises ReleaseError."""
    from fedmq_protocol.signing import TrustError, check_signature

    first, _, rest = data.partition(b"\n")
    signature_text, _, body = rest.partition(b"\n")
    if first != _FIRST_LINE or not body.endswith(b"\n") or len(data) > MAX_INDEX_BYTES:
        raise ReleaseError("expected an index as `fedmq release make` writes it, got something else")
    try:
        signature = base64.b64decode(signature_text, validate=True)
    except (binascii.Error, ValueError):
        raise ReleaseError("the index has no signature that can be read") from None
    refused = "the index is not signed by the release key of the settings: nothing of it is believed"
    for key in keys:
        try:
            check_signature(key, signature, _SIGNED + body[:-1], refused)
        except TrustError:
            continue
        break
    else:
        raise ReleaseError(refused)
    try:
        return msgspec.json.decode(body, type=Index)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ReleaseError(f"the index is signed, and not of a form that is known here: {error}") from None


def key_to_text(public: bytes) -> str:
    """As it stands in settings."""
    return base64.b64encode(public).decode()


def key_from_text(text: str) -> bytes:
    """32 bytes. Raises ReleaseError."""
    try:
        key = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != 32:
        raise ReleaseError("expected a public key as `fedmq release key` prints it: 44 characters in base64")
    return key


def _day(unix: float) -> str:
    return datetime.fromtimestamp(unix, UTC).strftime("%Y-%m-%d")
