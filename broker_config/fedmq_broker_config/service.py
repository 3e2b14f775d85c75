"""The guard: runs beside Mosquitto, and sees to it that who is revoked is out at once.

Owns what Mosquitto lacks. It reads a list of revoked certificates at a reload, and looks at it when somebody connects:
who is connected stays so, and nothing in it cuts a client off. The guard watches the list that the CA writes, checks
it (`revocation`), and brings it into force in this order:

1. the checked list takes the place of Mosquitto's copy, and Mosquitto reloads (SIGHUP): nobody on it gets in any more.
   Mosquitto makes its TLS context anew then, so that no old session is resumed either;
2. whoever is newly on it is cut off: the guard connects on its own listener under that client id, which takes over the
   session, starts it clean, and leaves. The last will goes out meanwhile, as whenever a connection breaks;
3. the ACL shuts out every name on the list, Mosquitto reloads again, and they are cut off once more. For a connection
   that was through with its handshake before step 1, and had not said who it is, still gets in: for 90 seconds, or as
   long as it sends its first packet byte by byte. From here on nothing passes on it.

A list that does not pass is an error in the log, and the one before stays in force. It does so while Mosquitto is not
there, too; what is left to do is done when it is. Refuses to know who issues lists, and any client's key.

Mosquitto is found by its socket: the system says which process listens there (SO_PEERCRED), where a file with its
number may be an old one. So the guard runs as Mosquitto's user (or root), on the same machine, which is Linux.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import stat
import struct
import threading
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from fedmq_broker_config.render import GUARD_USER, BrokerSettings, Certificates, Guarded, render_acl, render_site_acl
from fedmq_broker_config.revocation import MAX_LIST_BYTES, RevocationError, Revocations, Revoked, read_revocations
from fedmq_broker_config.run import replace_file

__all__ = ["Guard", "GuardError", "cut_off", "mosquitto_behind"]

log = logging.getLogger("fedmq.broker")

_LOOK_SECONDS = 1.0
_PATIENCE_SECONDS = 5.0
"""How long Mosquitto may take to answer on its socket."""

_WARN_BEFORE = timedelta(days=3)
_WARN_EVERY = timedelta(hours=6)

_MAX_CA_BYTES = 1 << 20


class GuardError(OSError):
    """Mosquitto could not be told: where, what happened, what to do."""


class Guard:
    """Watches the list and keeps Mosquitto to it. Raises ValueError for settings without a list.

    With `site` it guards the broker of that site, whose ACL is another one.
    """

    def __init__(self, settings: BrokerSettings, *, site: str | None = None) -> None:
        if not isinstance(settings.access, Certificates) or settings.access.guarded is None:
            raise ValueError('guard: expected access = "certificates" with revoked_file and guard_dir')
        if site is not None:
            settings.site(site)
        self._settings = settings
        self._site = site
        self._guarded: Guarded = settings.access.guarded
        self._ca_file = settings.access.ca_file
        self._list = self._list_in_force()
        self._stamp: tuple[int, ...] = ()
        self._to_cut: frozenset[Revoked] = frozenset(() if self._list is None else self._list.entries)
        self._reload = True
        self._said: dict[str, str] = {}
        self._warned: datetime | None = None

    @property
    def revocations(self) -> Revocations | None:
        """The lists as they were last checked; None before the first."""
        return self._list

    def run(self, stopping: threading.Event, alive: Callable[[], None] = lambda: None) -> None:
        """Look at the list every second until told to stop. `alive` is called at each look."""
        log.info("guarding %s with %s", self._guarded.socket, self._guarded.revoked_file)
        while True:
            alive()
            self.look()
            if stopping.wait(_LOOK_SECONDS):
                return

    def look(self) -> bool:
        """Look once, and bring into force what is new. Whether nothing is left to do; what is, is in the log."""
        try:
            self._read()
        except (RevocationError, OSError) as error:
            self._complain("list", f"{self._guarded.revoked_file}: {error}; the list before it stays in force")
            self._warn_of_end()
            # What was checked before must be in force all the same, while the file is as it is.
            self._enforce_quietly()
            return False
        self._warn_of_end()
        return self._enforce_quietly()

    def _enforce_quietly(self) -> bool:
        try:
            self._enforce()
        except OSError as error:
            self._complain("mosquitto", f"{error}; trying again")
            return False
        return True

    def _read(self) -> None:
        """Take the file's list where the file has changed."""
        path = self._guarded.revoked_file
        stamp = _stamp(path)
        if stamp == self._stamp:
            return
        new = read_revocations(
            _bounded(path, MAX_LIST_BYTES), _bounded(self._ca_file, _MAX_CA_BYTES), datetime.now(UTC), self._list
        )
        fresh = new.entries - (frozenset() if self._list is None else self._list.entries)
        changed = self._list is None or new.data != self._list.data
        if changed:
            replace_file(self._guarded.list_file, new.data)
            self._list, self._to_cut, self._reload = new, self._to_cut | fresh, True
        self._stamp = stamp
        self._said.pop("list", None)
        if not changed:
            return
        log.info("a new list with %d entries, %d of them new", len(new.entries), len(fresh))
        for entry in fresh:
            if entry.name is None:
                log.error("the list does not name the owner of serial %x: its connection is not cut off", entry.serial)
            else:
                log.warning("revoked: %s%s", entry, ", which has a newer certificate" if entry.replaced else "")

    def _enforce(self) -> None:
        names = sorted({entry.name for entry in self._to_cut if entry.name is not None})
        acl = self._acl().encode()
        if not self._reload and _same(self._guarded.acl_file, acl):
            return
        if self._reload and names:
            self._tell()
            self._cut(names)
        replace_file(self._guarded.acl_file, acl)
        self._tell()
        shut_out = frozenset() if self._list is None else self._list.shut_out
        self._cut(name for name in names if name in shut_out)
        if names:
            log.info("cut off, if they were connected: %s", ", ".join(names))
        self._to_cut, self._reload = frozenset(), False
        self._said.pop("mosquitto", None)

    def _acl(self) -> str:
        out = frozenset() if self._list is None else self._list.shut_out
        if self._site is not None:
            return render_site_acl(self._settings, self._site, out)
        return render_acl(self._settings, out)

    def _tell(self) -> None:
        """Make Mosquitto reload, and return when it has."""
        # It listens before it minds signals, and one that came in between would end it: first it must have answered.
        self._cut([GUARD_USER])
        with _connected(self._guarded.socket) as link:
            pid = mosquitto_behind(link)
        try:
            os.kill(pid, signal.SIGHUP)
        except OSError as error:
            raise GuardError(
                f"Mosquitto (process {pid}) cannot be made to reload: {error.strerror}; run the guard as the same user"
            ) from error
        # Mosquitto reloads between two looks at its sockets: who comes and goes after the signal has seen it do so.
        self._cut([GUARD_USER])

    def _cut(self, names: Iterable[str]) -> None:
        secret = _bounded(self._guarded.secret_file, 256).decode().strip()
        for name in names:
            cut_off(self._guarded.socket, name, secret)

    def _list_in_force(self) -> Revocations | None:
        """Mosquitto's copy as an earlier run left it, which a new list must follow."""
        path = self._guarded.list_file
        try:
            data, authorities = _bounded(path, MAX_LIST_BYTES), _bounded(self._ca_file, _MAX_CA_BYTES)
            # Even one that has run out: who is on it stays out.
            return read_revocations(data, authorities, None)
        except FileNotFoundError:
            return None
        except RevocationError as error:
            log.error("%s, the list in force: %s; the next one is taken without comparing them", path, error)
            return None

    def _warn_of_end(self) -> None:
        now = datetime.now(UTC)
        if self._list is None or self._list.expires - now > _WARN_BEFORE:
            return
        if self._warned is None or now - self._warned >= _WARN_EVERY:
            self._warned = now
            log.error(
                "the list in force holds until %s UTC, and Mosquitto turns everybody away afterwards: make a new one",
                f"{self._list.expires:%Y-%m-%d %H:%M:%S}",
            )

    def _complain(self, about: str, text: str) -> None:
        """Once, and not every second."""
        if text != self._said.get(about):
            self._said[about] = text
            log.error("%s", text)


def cut_off(path: Path, client: str, secret: str) -> None:
    """Take over the session of a client id on Mosquitto's socket, start it clean and leave. Raises GuardError.

    MQTT 3.1.1, sections 3.1 and 3.14: "If the ClientId represents a Client already connected to the Server then the
    Server MUST disconnect the existing Client". Nothing happens to who is not connected, but for a kept session, which
    ends.
    """
    with _connected(path) as link:
        try:
            link.sendall(_connect_packet(client, secret))
            answer = _exactly(link, 4)
            if answer[:2] != b"\x20\x02" or answer[3] != 0:
                raise GuardError(
                    f"{path}: Mosquitto refused the guard (CONNACK {answer.hex()}); do {GUARD_USER}'s secret and the"
                    " password file belong together?"
                )
            link.sendall(b"\xe0\x00")
            # The end says that Mosquitto is through with it.
            link.recv(1)
        except OSError as error:
            if isinstance(error, GuardError):
                raise
            raise GuardError(f"{path}: Mosquitto did not answer the guard: {error}") from error


def mosquitto_behind(link: socket.socket) -> int:
    """The process that listens at the other end of a Unix socket. Raises GuardError where the system does not say."""
    size = struct.calcsize("3i")
    pid, _, _ = struct.unpack("3i", link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    if pid <= 0:
        raise GuardError("Mosquitto's process is not to be seen from here; run the guard beside it, not in a container")
    return int(pid)


def _connected(path: Path) -> socket.socket:
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        link.settimeout(_PATIENCE_SECONDS)
        link.connect(str(path))
    except OSError as error:
        link.close()
        raise GuardError(f"{path}: {error.strerror or error}; does Mosquitto run, with this guard_dir?") from error
    return link


def _connect_packet(client: str, secret: str) -> bytes:
    """CONNECT of MQTT 3.1.1: clean session, user name, password, a keepalive of 10 s."""
    fields = b"".join(
        struct.pack("!H", len(raw)) + raw for raw in (client.encode(), GUARD_USER.encode(), secret.encode())
    )
    body = b"\x00\x04MQTT\x04\xc2" + struct.pack("!H", 10) + fields
    length = len(body)
    head = bytes([length]) if length < 128 else bytes([length % 128 | 128, length // 128])
    return b"\x10" + head + body


def _exactly(link: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = link.recv(count - len(data))
        if not piece:
            raise ConnectionError("it closed the connection")
        data += piece
    return data


def _stamp(path: Path) -> tuple[int, ...]:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _bounded(path: Path, most: int) -> bytes:
    """A regular file's content, one byte more than `most` at the longest. Raises OSError."""
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(f"{path}: expected a file")
        return file.read(most + 1)


def _same(path: Path, content: bytes) -> bool:
    try:
        return path.read_bytes() == content
    except FileNotFoundError:
        return False
