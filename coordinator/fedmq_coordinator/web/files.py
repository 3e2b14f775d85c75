"""The files that a browser may ask for: a fixed list, read once. No path that came from outside ever reaches a disk."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from functools import cache
from importlib import resources

__all__ = ["FILES", "File", "read_file", "text"]

FILES = {
    "base.css": "text/css; charset=utf-8",
    "dashboard.css": "text/css; charset=utf-8",
    "theme.js": "text/javascript; charset=utf-8",
    "charts.js": "text/javascript; charset=utf-8",
    "fleet.js": "text/javascript; charset=utf-8",
    "dashboard.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
    "vendor/uplot/uPlot.iife.min.js": "text/javascript; charset=utf-8",
    "vendor/uplot/uPlot.min.css": "text/css; charset=utf-8",
    "vendor/uplot/LICENSE": "text/plain; charset=utf-8",
}
"""By name, with what they are."""


@dataclass(frozen=True, kw_only=True)
class File:
    body: bytes
    packed: bytes
    """The same, compressed by gzip."""
    kind: str
    mark: str
    """Another one for other content: an ETag."""


@cache
def read_file(name: str) -> File:
    """Raises KeyError for what is not in the list."""
    kind = FILES[name]
    body = resources.files("fedmq_coordinator").joinpath("web", name).read_bytes()
    mark = f'"{hashlib.sha256(body).hexdigest()[:16]}"'
    return File(body=body, packed=gzip.compress(body, mtime=0), kind=kind, mark=mark)


def text(name: str) -> str:
    """One of them as it stands in a page that needs no server. Raises KeyError."""
    return read_file(name).body.decode("utf-8")
