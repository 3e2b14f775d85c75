"""The settings of a machine that pulls its releases: `fedmq release pull --example` prints them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from fedmq_protocol.settings import Table
from msgspec import Meta

from fedmq.release.index import ReleaseError, key_from_text

__all__ = ["HealthSettings", "ReleaseSettings"]

_WORD = Annotated[str, Meta(min_length=1, max_length=512)]
_KEY = Meta(min_length=44, max_length=44)


@dataclass(frozen=True, kw_only=True)
class HealthSettings(Table):
    """Whether the new release works. If not, the one before comes back."""

    command: Annotated[
        tuple[_WORD, ...],
        Meta(
            min_length=1,
            max_length=32,
            description="Program and its words, run again and again without a shell until it ends with 0. It finds the"
            " release in the environment variable FEDMQ_RELEASE.",
        ),
    ] = ("systemctl", "is-active", "--quiet", "fedmq-gateway.service")
    welcome: Annotated[
        bool,
        Meta(
            description="Whether the coordinator must have welcomed the gateway, too, since it was restarted and with"
            " the new version. The gateway notes that in its state directory."
        ),
    ] = True
    state_dir: Annotated[Path, Meta(description="The gateway's state_dir.")] = Path("/var/lib/fedmq/gateway")
    seconds: Annotated[
        float,
        Meta(gt=0, le=86_400, description="Seconds from the restart until both must be so. A slow link needs more."),
    ] = 300.0
    every_seconds: Annotated[float, Meta(gt=0, le=3600, description="Seconds between two looks.")] = 5.0
    settle_seconds: Annotated[
        float,
        Meta(ge=0, le=3600, description="Seconds later it is looked again: a program may fail after a good start."),
    ] = 15.0


@dataclass(frozen=True, kw_only=True)
class ReleaseSettings(Table):
    """How this machine pulls its releases. Use it with: fedmq release pull --config FILE"""

    url: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=512,
            examples=["https://releases.plant.example/fedmq"],
            description="Address of the folder that `fedmq release make` fills. HTTPS alone.",
        ),
    ]
    release_key: Annotated[
        str,
        _KEY,
        Meta(
            examples=["11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="],
            description="Public key that releases are signed with, as `fedmq release key` prints it.",
        ),
    ]
    spare_key: Annotated[
        str | None,
        _KEY,
        Meta(
            examples=["PUAXw+hDiVqStwqnTRt+vJyYLM8uxJaMwM1V8Sr0Zgw="],
            description="A second one that is believed as well. Its private part lies in a safe until the first is"
            " lost: settings on a machine that nobody can reach are hard to change.",
        ),
    ] = None
    channel: Annotated[
        str,
        Meta(
            pattern=r"^[a-z0-9][a-z0-9-]{0,31}\Z",
            extra={"expected": "1 to 32 small letters, digits or '-'"},
            description="Channel of the releases at that address; others are refused.",
        ),
    ] = "stable"
    ca_file: Annotated[
        Path | None,
        Meta(
            examples=["/etc/fedmq/identity/ca.crt"],
            description="PEM file of the CAs that may vouch for the server. Without, the system's.",
        ),
    ] = None
    root: Annotated[
        Path,
        Meta(description="Folder of the releases. ROOT/current leads to the one in use, as the unit names it."),
    ] = Path("/opt/fedmq")
    python: Annotated[Path, Meta(description="The machine's Python that releases are built on.")] = Path(
        "/usr/bin/python3"
    )
    keep: Annotated[
        int, Meta(ge=2, le=10, description="Releases that are kept: the one in use, the one before, and older ones.")
    ] = 2
    restart: Annotated[
        tuple[_WORD, ...],
        Meta(
            min_length=1,
            max_length=32,
            description="Program and its words that restart what runs from ROOT/current. No shell reads them.",
        ),
    ] = ("systemctl", "restart", "fedmq-gateway.service")
    jitter_seconds: Annotated[
        float,
        Meta(
            ge=0,
            le=86_400,
            description="A pull waits a random time up to this many seconds first, so that a fleet does not come all at"
            " once. `--now` does not wait.",
        ),
    ] = 300.0
    timeout_seconds: Annotated[float, Meta(ge=1, le=3600, description="Seconds that the server may be silent.")] = 60.0
    download_hours: Annotated[
        float,
        Meta(
            gt=0,
            le=168,
            description="Hours that the downloads of one pull may take. What has come is kept, and the next pull goes"
            " on.",
        ),
    ] = 6.0
    install_seconds: Annotated[
        float, Meta(ge=1, le=86_400, description="Seconds that each step of the installation may take.")
    ] = 1800.0
    max_bytes: Annotated[int, Meta(ge=1 << 20, description="Bytes that the files of a release may have together.")] = (
        1_000_000_000
    )
    health: HealthSettings = field(default_factory=HealthSettings)

    @property
    def keys(self) -> tuple[bytes, ...]:
        return tuple(key_from_text(text) for text in (self.release_key, self.spare_key) if text is not None)

    def check(self) -> Iterator[tuple[str, str]]:
        try:
            right = urlsplit(self.url).scheme == "https" and bool(urlsplit(self.url).hostname)
        except ValueError:
            right = False
        if not right:
            yield "url", "expected an address that begins with https://"
        for key in ("release_key", "spare_key"):
            text = getattr(self, key)
            try:
                if text is not None:
                    key_from_text(text)
            except ReleaseError as error:
                yield key, str(error)
        for key in ("root", "python"):
            if not getattr(self, key).is_absolute():
                yield key, f"expected an absolute path, got {getattr(self, key)}"
