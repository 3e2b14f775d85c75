"""The way to the folder of releases: HTTPS, and nothing of it believed.

Owns the connection: bounded in size, in silence and in time altogether. What was begun is gone on with: a partial file
stays on the disk, and the next request asks for the rest of it (RFC 9110, section 14). Who answers is checked against
the CAs of the settings; what comes is checked by size and hash here, and by the index's signature elsewhere.
Redirections are not followed: they lead where nobody has written down that they may.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, urlsplit

from fedmq.release.index import File, ReleaseError

__all__ = ["CUT_SHORT", "Server", "Unreachable"]

CUT_SHORT = ".part"
_PIECE = 64 * 1024


class Unreachable(ReleaseError):
    """It does not answer, or stopped in the middle: what has come is kept, and another try may do."""


class Server:
    """A folder behind an address. `seconds` is how long it may be silent."""

    def __init__(
        self,
        url: str,
        ca_file: Path | None,
        *,
        seconds: float,
        monotonic: Callable[[], float] = time.monotonic,
        passed: Callable[[str], None] = lambda name: None,
    ) -> None:
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ReleaseError(f"url: {error}") from None
        if parts.scheme != "https" or not parts.hostname or parts.query or parts.fragment or parts.username:
            raise ReleaseError(f"url: expected an address such as https://releases.plant.example/fedmq, got {url!r}")
        self._host, self._port, self._path = parts.hostname, port, parts.path.rstrip("/")
        self._url = f"https://{parts.netloc}{self._path}"
        self._seconds = seconds
        self._monotonic = monotonic
        self._passed = passed
        try:
            self._context = ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
        except (ssl.SSLError, OSError) as error:
            raise ReleaseError(f"ca_file {ca_file}: expected certificates of CAs in PEM: {error}") from None
        self._context.minimum_version = ssl.TLSVersion.TLSv1_2

    def get(self, path: str, most: int) -> bytes:
        """A small file, whole. Raises ReleaseError for one of more bytes."""
        connection, answer = self._ask(path, {})
        until = self._monotonic() + 2 * self._seconds
        data = bytearray()
        try:
            self._expect(path, answer, 200)
            while piece := self._read(path, answer):
                data += piece
                if len(data) > most:
                    raise ReleaseError(f"{self._url}/{path}: expected at most {most:,} bytes, got more")
                self._in_time(path, until)
            self._whole(path, answer)
        finally:
            connection.close()
        return bytes(data)

    def download(self, path: str, file: File, to: Path, *, until: float) -> None:
        """Fetch what is missing of a file; it is at `to` once size and hash are right. Raises ReleaseError for other
        bytes, which are thrown away, and Unreachable."""
        part = to.with_name(to.name + CUT_SHORT)
        have = part.stat().st_size if part.exists() else 0
        if have > file.bytes:
            part.unlink()
            have = 0
        if have < file.bytes:
            self._go_on(path, file, part, have, until)
        self._passed("download")
        if part.stat().st_size != file.bytes or _sha256(part) != file.sha256:
            part.unlink()
            raise ReleaseError(
                f"{self._url}/{path}: not the {file.bytes:,} bytes that the index names; it was changed on the server"
                " or on the way, and is not used"
            )
        os.replace(part, to)

    def _go_on(self, path: str, file: File, part: Path, have: int, until: float) -> None:
        connection, answer = self._ask(path, {"Range": f"bytes={have}-"} if have else {})
        try:
            if have and answer.status == 206:
                said = answer.getheader("Content-Range", "")
                if not said.startswith(f"bytes {have}-"):
                    raise ReleaseError(f"{self._url}/{path}: asked for bytes from {have:,} on, got {said[:80]!r}")
            else:
                # A server that knows no ranges sends all of it again.
                self._expect(path, answer, 200)
                have = 0
            with part.open("ab" if have else "wb") as kept:
                while piece := self._read(path, answer):
                    have += len(piece)
                    if have > file.bytes:
                        kept.truncate(0)
                        raise ReleaseError(f"{self._url}/{path}: expected {file.bytes:,} bytes, got more")
                    kept.write(piece)
                    self._in_time(path, until)
                kept.flush()
                os.fsync(kept.fileno())
            if have < file.bytes:
                raise Unreachable(f"{self._url}/{path}: stopped after {have:,} of {file.bytes:,} bytes")
        finally:
            connection.close()

    def _ask(self, path: str, headers: dict[str, str]) -> tuple[http.client.HTTPSConnection, http.client.HTTPResponse]:
        connection = http.client.HTTPSConnection(self._host, self._port, timeout=self._seconds, context=self._context)
        try:
            connection.request("GET", f"{self._path}/{quote(path)}", headers={"User-Agent": "fedmq", **headers})
            return connection, connection.getresponse()
        except ssl.SSLCertVerificationError as error:
            connection.close()
            raise ReleaseError(
                f"{self._url} cannot be believed: {error.verify_message}; is this the right address, ca_file the CA of"
                " its certificate, and this machine's clock right?"
            ) from None
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise Unreachable(f"{self._url} cannot be reached: {error}") from None

    def _expect(self, path: str, answer: http.client.HTTPResponse, status: int) -> None:
        if answer.status == status:
            return
        said = f"{self._url}/{path}: expected an answer {status}, got {answer.status}"
        if answer.status >= 500:
            raise Unreachable(said)
        if 300 <= answer.status < 400:
            said += ", which leads elsewhere: give the address where the files are"
        raise ReleaseError(said)

    def _read(self, path: str, answer: http.client.HTTPResponse) -> bytes:
        try:
            return answer.read1(_PIECE)
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(f"{self._url}/{path}: stopped: {error}") from None

    def _whole(self, path: str, answer: http.client.HTTPResponse) -> None:
        if answer.length:
            raise Unreachable(f"{self._url}/{path}: stopped with {answer.length:,} bytes missing")

    def _in_time(self, path: str, until: float) -> None:
        if self._monotonic() > until:
            raise Unreachable(f"{self._url}/{path}: took too long; what has come is kept")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
