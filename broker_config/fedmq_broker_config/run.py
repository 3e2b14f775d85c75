"""Starting a broker for development, for the demo and for tests: Mosquitto where installed, else the embedded one.

Owns child processes and the files they read. Every broker here listens on the loopback address unless its settings say
otherwise, answers `about` with what it is, and is a context manager that leaves nothing behind.

The embedded broker is rumqttd inside the wheel of iotcore 0.4.0. Tried with our own session, over both protocols:
retained messages, wills, kept sessions, clean starts, message expiry and QoS 1 do what they should. What differs:

- MQTT 5 and 3.1.1 have a port each; each closes the connection without a word when it is addressed in the other
  (a session then tries the other protocol on the same port, so give each client the port of its protocol);
- no access control, nothing on disk: a restart forgets retained messages and sessions;
- a session's expiry is not honoured: sessions are kept until the broker ends;
- CONNACK announces neither a packet limit nor a receive maximum, and the default limit of 20,480 bytes is below one
  chunk, so a larger one is set here.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import importlib.metadata
import importlib.util
import logging
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from fedmq_broker_config.render import (
    ACL_NAME,
    CONF_NAME,
    GUARD_USER,
    Anonymous,
    BrokerSettings,
    Certificates,
    Guarded,
    Upstream,
    render_acl,
    render_conf,
    render_site_acl,
    render_site_conf,
)

if TYPE_CHECKING:
    from fedmq_broker_config.revocation import Revocations

__all__ = [
    "About",
    "Broker",
    "BrokerError",
    "EmbeddedBroker",
    "ExternalBroker",
    "LocalBroker",
    "choose",
    "embedded_version",
    "find_mosquitto",
    "free_port",
    "replace_file",
    "serve",
    "write_configuration",
    "write_site_configuration",
]

log = logging.getLogger("fedmq.broker")

LOOPBACK = "127.0.0.1"
LISTENED_PORTS = range(20_000, 32_768)
TRIED_PORTS = 100

_START_SECONDS = 10.0
_STOP_SECONDS = 5.0
_PROBE_SECONDS = 0.02


class BrokerError(OSError):
    """There is no broker: which one was tried, what happened, and what to do."""


@dataclass(frozen=True, kw_only=True)
class About:
    """What a broker is and where."""

    name: str
    version: str
    host: str
    port: int
    """Where to connect. A session with protocol `auto` finds the right one here."""
    ports: tuple[tuple[str, int], ...]
    """MQTT versions with the port that speaks them."""
    notes: tuple[str, ...] = ()
    """What one should know before relying on it."""

    def __str__(self) -> str:
        versions = ", ".join(f"MQTT {protocol} on port {port}" for protocol, port in self.ports)
        text = f"{self.name} {self.version}".strip() + f" at {self.host}:{self.port} ({versions})"
        return "; ".join((text, *self.notes))


class Broker(Protocol):
    """A broker that may have to be started and stopped."""

    @property
    def about(self) -> About:
        """What it is; complete once it has started."""

    def start(self) -> None:
        """Return once it accepts connections; raises BrokerError when it does not come to that."""

    def check(self) -> None:
        """Raise BrokerError if it has ended by itself."""

    def stop(self) -> None:
        """End it; nothing happens when it is not running."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def find_mosquitto() -> Path | None:
    """The Mosquitto of this machine; distributions put it where a user's PATH does not look."""
    places = [os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin", "/usr/local/opt/bin"]
    found = shutil.which("mosquitto", path=os.pathsep.join(places))
    return None if found is None else Path(found)


def embedded_version() -> str | None:
    """The version of iotcore, or None where it is not installed."""
    if importlib.util.find_spec("iotcore") is None:
        return None
    return importlib.metadata.version("iotcore")


def free_port(address: str = LOOPBACK) -> int:
    """A TCP port that nobody uses right now, and that no outgoing connection is given before it is listened on: from
    below the range that systems take these from (Linux: net.ipv4.ip_local_port_range, 32768 and up). Raises OSError
    where there is none."""
    for _ in range(TRIED_PORTS):
        port = secrets.choice(LISTENED_PORTS)
        with socket.socket(_family(address)) as probe, contextlib.suppress(OSError):
            probe.bind((address, port))
            return port
    with socket.socket(_family(address)) as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def write_configuration(settings: BrokerSettings, directory: Path) -> tuple[Path, Path]:
    """Write mosquitto.conf and the ACL into a directory, and return their paths. The conf names the ACL by its path.

    With a guard, the ACL is in the guard's folder, with what else Mosquitto and the guard share; then the list of
    revoked certificates must be there, and is checked. What is secret is readable by its owner alone: that is
    `settings.user` where root writes it, and else who writes it; a Mosquitto that runs as another user must be given
    it (chown). Raises OSError, and ValueError for a list that must not be put in force.
    """
    conf, acl = _places(settings, directory)
    return _written(settings, conf, render_conf(settings, acl), acl, render_acl(settings, _prepared(settings)))


def write_site_configuration(settings: BrokerSettings, upstream: Upstream, directory: Path) -> tuple[Path, Path]:
    """The same for the broker of a site, with its bridge to the federation's."""
    conf, acl = _places(settings, directory)
    text = render_site_conf(settings, upstream, acl)
    return _written(settings, conf, text, acl, render_site_acl(settings, upstream.site, _prepared(settings)))


def replace_file(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Write a file as a whole: whoever reads it has the old content or the new. A link in its place is replaced.

    What root writes belongs to the owner of the folder: Mosquitto must be able to read what a guard of root's left.
    """
    beside = path.with_name(f"{path.name}.{secrets.token_hex(4)}.new")
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    try:
        with open(handle, "wb") as file:
            os.fchmod(file.fileno(), mode)
            if os.geteuid() == 0:
                folder = path.parent.stat()
                os.fchown(file.fileno(), folder.st_uid, folder.st_gid)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def _places(settings: BrokerSettings, directory: Path) -> tuple[Path, Path]:
    directory = directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    guarded = settings.guarded
    return directory / CONF_NAME, directory / ACL_NAME if guarded is None else guarded.acl_file


def _written(settings: BrokerSettings, conf: Path, conf_text: str, acl: Path, acl_text: str) -> tuple[Path, Path]:
    # Newer Mosquittos warn of an ACL file that everyone can read, and announce that they will refuse it.
    replace_file(acl, acl_text.encode())
    replace_file(conf, conf_text.encode(), mode=0o644)
    return conf, acl


def _prepared(settings: BrokerSettings) -> frozenset[str]:
    """Make the guard's folder, where there is to be one; the names that its list shuts out."""
    if not isinstance(settings.access, Certificates) or settings.access.guarded is None:
        return frozenset()
    guarded = settings.access.guarded
    guarded.directory.mkdir(parents=True, exist_ok=True)
    guarded.directory.chmod(0o700)
    if settings.user is not None and os.geteuid() == 0:
        try:
            found = pwd.getpwnam(settings.user)
        except KeyError:
            raise BrokerError(f"user {settings.user}: no such user on this machine; it comes with Mosquitto") from None
        os.chown(guarded.directory, found.pw_uid, found.pw_gid)
    revocations = _list_to_begin_with(guarded, settings.access.ca_file)
    replace_file(guarded.list_file, revocations.data)
    if not guarded.secret_file.exists() or not guarded.password_file.exists():
        secret = secrets.token_urlsafe(32)
        replace_file(guarded.secret_file, secret.encode())
        replace_file(guarded.password_file, f"{GUARD_USER}:{_hashed(secret)}\n".encode())
    return revocations.shut_out


def _list_to_begin_with(guarded: Guarded, ca_file: Path) -> Revocations:
    """The list that somebody put here; where that does not pass, the one that is in force from before."""
    # A broker without revocation needs no cryptography.
    from datetime import UTC, datetime

    from fedmq_broker_config.revocation import RevocationError, read_revocations

    authorities, before = ca_file.read_bytes(), None
    if guarded.list_file.exists():
        try:
            before = read_revocations(guarded.list_file.read_bytes(), authorities, None)
        except RevocationError as error:
            log.warning("%s: %s; it is made anew", guarded.list_file, error)
    try:
        return read_revocations(guarded.revoked_file.read_bytes(), authorities, datetime.now(UTC), before)
    except (RevocationError, OSError) as error:
        if before is None:
            raise RevocationError(f"revoked_file: {guarded.revoked_file}: {error}") from error
        log.error("%s: %s; the list before it stays in force", guarded.revoked_file, error)
        return before


def _hashed(secret: str) -> str:
    """A password as mosquitto_passwd writes it: PBKDF2 with SHA-512, salt of 12 bytes, hash of 64."""
    salt, rounds = secrets.token_bytes(12), 101
    found = hashlib.pbkdf2_hmac("sha512", secret.encode(), salt, rounds)
    return f"$7${rounds}${base64.b64encode(salt).decode()}${base64.b64encode(found).decode()}"


class _Child(ABC):
    """One broker in a child process, with its log in a file."""

    def __init__(self, directory: Path | None) -> None:
        self._given_directory = directory
        self._own_directory: tempfile.TemporaryDirectory[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def directory(self) -> Path:
        """Where its configuration and log are; made on first use, removed on leaving when it was not given."""
        if self._given_directory is not None:
            self._given_directory.mkdir(parents=True, exist_ok=True)
            return self._given_directory.resolve()
        if self._own_directory is None:
            self._own_directory = tempfile.TemporaryDirectory(prefix="fedmq-broker-")
        return Path(self._own_directory.name)

    @property
    @abstractmethod
    def about(self) -> About: ...

    @property
    def log_file(self) -> Path:
        return self.directory / "broker.log"

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @abstractmethod
    def start(self) -> None: ...

    def check(self) -> None:
        if self._process is None or self._process.poll() is not None:
            raise BrokerError(f"{self.about.name} is not running{self._last_words()}")

    def stop(self) -> None:
        """SIGTERM, and SIGKILL when that does not help."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL: what a power cut does to the process."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Stop it, and start it again on the same port."""
        self.stop()
        self.start()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if self._own_directory is not None:
            self._own_directory.cleanup()
            self._own_directory = None

    def _spawn(self, command: list[str], ports: tuple[int, ...]) -> None:
        """Start the child and wait until it accepts on every port."""
        host = self.about.host
        for port in ports:
            _check_free(self.about.name, host, port)
        with self.log_file.open("ab") as log:
            # A pipe for its input: the embedded broker ends when it closes, that is, when we do.
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        deadline = time.monotonic() + _START_SECONDS
        waiting = list(ports)
        while waiting:
            if self._process.poll() is not None:
                words = self._last_words()
                self._end(signal.SIGKILL)
                raise BrokerError(f"{self.about.name} ended as it started on {host}:{ports[0]}{words}")
            if time.monotonic() > deadline:
                words = self._last_words()
                self._end(signal.SIGKILL)
                raise BrokerError(f"{self.about.name} did not accept on {host}:{waiting[0]} in time{words}")
            if _accepts(host, waiting[0]):
                waiting.pop(0)
            else:
                time.sleep(_PROBE_SECONDS)

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(number)
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if process.stdin is not None:
            process.stdin.close()

    def _last_words(self) -> str:
        try:
            lines = self.log_file.read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return ""
        return "; the end of its log:\n  " + "\n  ".join(lines[-5:]) if lines else ""


class LocalBroker(_Child):
    """Mosquitto as a child process, with the rendered configuration.

    `settings.port` is taken where `port` is None, and 0 picks a free one. Raises BrokerError where there is no
    Mosquitto. What `directory` holds is overwritten: mosquitto.conf, acl, broker.log. With `upstream` it is the broker
    of a site. Who is on the list of revoked certificates is turned away; to be cut off as well takes a guard beside it.
    """

    def __init__(
        self,
        settings: BrokerSettings | None = None,
        *,
        port: int | None = 0,
        directory: Path | None = None,
        program: Path | None = None,
        upstream: Upstream | None = None,
    ) -> None:
        super().__init__(directory)
        found = program or find_mosquitto()
        if found is None:
            raise BrokerError("no Mosquitto on this machine: install it (apt-get install mosquitto)")
        settings = settings or BrokerSettings()
        if settings.user is None and os.geteuid() == 0:
            # Started by root, Mosquitto would change to a user that cannot read the directory.
            settings = replace(settings, user=pwd.getpwuid(os.geteuid()).pw_name)
        self._program = found
        self._upstream = upstream
        self._settings = settings if port is None else replace(settings, port=port or free_port(settings.address))
        self._version = _mosquitto_version(found)

    @property
    def settings(self) -> BrokerSettings:
        return self._settings

    @property
    def port(self) -> int:
        return self._settings.port

    @property
    def about(self) -> About:
        port = self._settings.port
        return About(
            name="Mosquitto",
            version=self._version,
            host=_reachable(self._settings.address),
            port=port,
            ports=(("5", port), ("3.1.1", port)),
        )

    def start(self) -> None:
        if self._upstream is None:
            conf, _ = write_configuration(self._settings, self.directory)
        else:
            conf, _ = write_site_configuration(self._settings, self._upstream, self.directory)
        if self._settings.persistence_dir is not None:
            self._settings.persistence_dir.mkdir(parents=True, exist_ok=True)
        self._spawn([str(self._program), "-c", str(conf)], (self._settings.port,))


class EmbeddedBroker(_Child):
    """iotcore's broker in a child process, on the loopback address; it ends when this process does.

    MQTT 5 is on `port` and 3.1.1 on `port_311`; 0 picks free ones. Raises BrokerError where iotcore is not installed.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        port_311: int = 0,
        max_packet_bytes: int = 262_144,
        max_inflight: int = 100,
        directory: Path | None = None,
    ) -> None:
        super().__init__(directory)
        version = embedded_version()
        if version is None:
            raise BrokerError("no embedded broker: install it with pip install 'fedmq[demo]'")
        self._version = version
        self._port = port or free_port()
        self._port_311 = port_311 or free_port()
        self._max_packet_bytes = max_packet_bytes
        self._max_inflight = max_inflight

    @property
    def port(self) -> int:
        return self._port

    @property
    def port_311(self) -> int:
        return self._port_311

    @property
    def about(self) -> About:
        return About(
            name="iotcore (embedded broker)",
            version=self._version,
            host=LOOPBACK,
            port=self._port,
            ports=(("5", self._port), ("3.1.1", self._port_311)),
            notes=("no access control and nothing on disk: for trying out only",),
        )

    def start(self) -> None:
        configuration = self.directory / "embedded.toml"
        configuration.write_text(self._configuration(), encoding="utf-8")
        # -P: a folder that happens to be named iotcore in the working directory is not what shall be imported.
        command = [sys.executable, "-P", "-m", "fedmq_broker_config.run", str(configuration)]
        self._spawn(command, (self._port, self._port_311))

    def _configuration(self) -> str:
        """rumqttd's own settings; it accepts no others, and knows no access control."""
        listeners = "".join(
            f"""
[{table}.1]
name = "{table}"
listen = "{LOOPBACK}:{port}"
next_connection_delay_ms = 1
[{table}.1.connections]
connection_timeout_ms = 60000
max_payload_size = {self._max_packet_bytes}
max_inflight_count = {self._max_inflight}
dynamic_filters = true
"""
            for table, port in (("v5", self._port), ("v4", self._port_311))
        )
        return f"""id = 0
[router]
id = 0
max_connections = 10010
max_outgoing_packet_count = 200
max_segment_size = 104857600
max_segment_count = 10
{listeners}"""


class ExternalBroker:
    """A broker that somebody else runs: all that is done is to look whether it answers."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port

    @property
    def about(self) -> About:
        ports = (("5 or 3.1.1", self._port),)
        return About(name="a broker", version="", host=self._host, port=self._port, ports=ports)

    def start(self) -> None:
        self.check()

    def check(self) -> None:
        try:
            socket.create_connection((self._host, self._port), timeout=_STOP_SECONDS).close()
        except OSError as error:
            raise BrokerError(f"no broker at {self._host}:{self._port}: {error.strerror or error}") from error

    def stop(self) -> None:
        """Not ours to stop."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def choose(
    spec: str, settings: BrokerSettings | None = None, *, port: int | None = 0, directory: Path | None = None
) -> Broker:
    """The broker that `auto`, `mosquitto`, `embedded` or `HOST:PORT` names, not started yet.

    `auto` is Mosquitto where installed, else the embedded one. Port 0 picks a free one, None takes the settings'.
    Raises BrokerError when it is not there, ValueError for a spec that names none.
    """
    settings = settings or BrokerSettings()
    if spec == "mosquitto" or (spec == "auto" and find_mosquitto() is not None):
        return LocalBroker(settings, port=port, directory=directory)
    if spec == "embedded" or (spec == "auto" and embedded_version() is not None):
        if not isinstance(settings.access, Anonymous):
            raise BrokerError(
                "the embedded broker asks nobody who they are, and the settings want passwords or certificates: "
                "install Mosquitto (apt-get install mosquitto)"
            )
        if settings.address != LOOPBACK:
            raise BrokerError(f"the embedded broker has no access control and listens on {LOOPBACK} only")
        return EmbeddedBroker(
            port=settings.port if port is None else port,
            max_packet_bytes=settings.max_packet_bytes,
            directory=directory,
        )
    if spec == "auto":
        raise BrokerError(
            "no broker on this machine: install Mosquitto (apt-get install mosquitto), or the embedded one "
            "(pip install 'fedmq[demo]'), or name a broker as HOST:PORT"
        )
    host, separator, number = spec.rpartition(":")
    if not separator or not host or not number.isdecimal() or not 1 <= int(number) <= 65_535:
        raise ValueError(f"broker: expected auto, mosquitto, embedded or HOST:PORT, got {spec!r}")
    return ExternalBroker(host.strip("[]"), int(number))


def serve(
    settings: BrokerSettings,
    *,
    spec: str = "auto",
    directory: Path | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Run a broker on the settings' port until SIGTERM or SIGINT. Call it from the main thread.

    `say` is told what runs and where, once it accepts. Raises BrokerError when it does not start, or ends by itself.
    """
    stopping = threading.Event()
    wanted = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, lambda *_: stopping.set()) for number in wanted}
    try:
        with choose(spec, settings, port=None, directory=directory) as broker:
            say(str(broker.about))
            while not stopping.wait(0.2):
                broker.check()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _mosquitto_version(program: Path) -> str:
    # It prints its help with exit code 3.
    text = subprocess.run([program, "-h"], capture_output=True, text=True, check=False, timeout=_START_SECONDS).stdout
    words = text.split(maxsplit=3)
    return words[2] if words[:2] == ["mosquitto", "version"] else "of an unknown version"


def _check_free(name: str, host: str, port: int) -> None:
    with socket.socket(_family(host)) as probe:
        # As the brokers do: else a port is "in use" for a minute after its last connection.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise BrokerError(
                f"{name} cannot listen on {host}:{port}: {error.strerror}; another broker may run there, "
                "stop it or choose another port"
            ) from error


def _accepts(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=1.0).close()
    except OSError:
        return False
    return True


def _reachable(address: str) -> str:
    return {"0.0.0.0": LOOPBACK, "::": "::1"}.get(address, address)  # noqa: S104 - read, not bound


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _run_embedded(configuration: str) -> None:
    """The child of EmbeddedBroker: rumqttd has no way to be stopped, so it gets a process of its own."""
    from iotcore import IotCoreBroker

    # rumqttd reports every packet as an error when it is let.
    logging.getLogger("rumqttd").setLevel(logging.CRITICAL)
    logging.basicConfig(level=logging.WARNING)

    def end_with_parent() -> None:
        sys.stdin.buffer.read()
        os._exit(0)

    threading.Thread(target=end_with_parent, daemon=True).start()
    IotCoreBroker(config_path=configuration).run_forever()


if __name__ == "__main__":
    _run_embedded(sys.argv[1])
