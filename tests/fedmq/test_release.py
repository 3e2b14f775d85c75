"""Signed releases over a real HTTPS server, and upgrades on a machine whose programs are played."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import ssl
import stat
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from time import time

import msgspec
import pytest
from certificates import Authority
from fedmq_protocol.settings import SettingsError, document, load
from fedmq_protocol.signing import key_to_pem

from fedmq import welcome
from fedmq.ca import certificates as ca_certificates
from fedmq.ca import folder
from fedmq.cli import main
from fedmq.release import making
from fedmq.release.index import Index, ReleaseError, key_to_text, read, read_key, sign
from fedmq.release.installing import Ended, Releases
from fedmq.release.pulling import CRASH_POINTS, TRIES, Pull, World
from fedmq.release.settings import HealthSettings, ReleaseSettings

NOW = 1_790_000_000.0
DAY = 86_400.0
PLATFORM = "aarch64-python3.11"
KEY = read_key(key_to_pem(ca_certificates.new_signing_key()), "key")
OTHER_KEY = read_key(key_to_pem(ca_certificates.new_signing_key()), "key")


class Killed(BaseException):
    """This process is no more."""


# -- a server ------------------------------------------------------------------------------------------------------


@dataclass
class Site:
    """A static HTTPS server. `cut` is after how many bytes of an answer by path the connection breaks, each once."""

    directory: Path
    url: str = ""
    ca_file: Path = Path()
    cut: dict[str, int] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    """Paths and ranges."""
    sent: int = 0
    moved: bool = False

    def serve(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path.removeprefix("/fedmq/")
        wanted = request.headers.get("Range", "")
        self.asked.append((path, wanted))
        file = self.directory / path
        if self.moved:
            request.send_response(302)
            request.send_header("Location", "https://127.0.0.2/")
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        if not file.is_file():
            request.send_error(404)
            return
        data = file.read_bytes()
        begin = int(found[1]) if (found := re.fullmatch(r"bytes=(\d+)-", wanted)) else 0
        request.send_response(206 if begin else 200)
        if begin:
            request.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
        request.send_header("Content-Length", str(len(data) - begin))
        request.end_headers()
        answer = data[begin:][: self.cut.pop(path, len(data))]
        request.wfile.write(answer)
        self.sent += len(answer)
        request.close_connection = True


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[Authority, Path, Path]:
    made = Authority(tmp_path_factory.mktemp("authority"))
    return made, *made.issue("server", address="127.0.0.1")


@pytest.fixture
def site(tmp_path: Path, authority: tuple[Authority, Path, Path]) -> Iterator[Site]:
    made, certificate, key = authority
    shown = Site(tmp_path / "served", ca_file=made.ca_file)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            shown.serve(self)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    shown.url = f"https://127.0.0.1:{server.server_port}/fedmq"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield shown
    server.shutdown()
    server.server_close()
    thread.join()


# -- a machine -----------------------------------------------------------------------------------------------------


@dataclass
class Machine:
    """Plays pip, the programs of a release, systemctl and the coordinator. What a release does is written in its
    wheel: `good`, `mute` (never welcomed), `dead` (its unit does not start), `wrong` (another version), `hollow`
    (cannot be loaded), `fickle` (begins anew after a good start), `astray` (its unit runs another version)."""

    root: Path
    state_dir: Path
    boots: int = 0
    running: str = ""
    seconds: float = 0.0
    now: float = NOW
    coordinator: bool = True
    pip_works: bool = True
    crash_at: str = ""
    passed: list[str] = field(default_factory=list)

    def world(self) -> World:
        return World(
            run=self.run,
            clock=lambda: self.now,
            monotonic=lambda: self.seconds,
            sleep=self.sleep,
            rng=Random(1),
            crash_point=self.crash_point,
        )

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds
        if self.running.endswith(" fickle"):
            self.boot()

    def crash_point(self, name: str) -> None:
        assert name in CRASH_POINTS
        self.passed.append(name)
        if name == self.crash_at:
            self.crash_at = ""
            raise Killed(name)

    def run(self, words: Sequence[str], seconds: float, more: Mapping[str, str]) -> Ended:
        match list(words):
            case [_, "-I", "-c", program] if "platform.machine" in program:
                return Ended(0, PLATFORM)
            case [_, "-I", "-m", "venv", where]:
                (Path(where) / "bin").mkdir(parents=True)
                return Ended(0)
            case [python, "-I", "-m", "pip", "install", *options]:
                return self.pip(Path(python).parent, options)
            case [program, "--version"]:
                version, kind = Path(program).read_text().split()
                return Ended(0, f"fedmq {'9.9' if kind == 'wrong' else version}")
            case [python, "-I", "-c", _]:
                hollow = (Path(python).parent / "fedmq").read_text().endswith(" hollow")
                return Ended(1, "ImportError: libssl.so.4") if hollow else Ended(0)
            case ["restart"]:
                self.running = (self.root / "current" / "bin" / "fedmq").read_text()
                if self.running.endswith(" dead"):
                    return Ended(1, "Job failed")
                self.boot()
                return Ended(0)
            case ["healthy"]:
                assert more["FEDMQ_RELEASE"] == (self.root / "current").readlink().name
                return Ended(0 if self.running else 3)
        raise AssertionError(f"nobody runs {words}")

    def boot(self) -> None:
        version, kind = self.running.split()
        self.boots += 1
        version = "0.0.1" if kind == "astray" else version
        if self.coordinator and kind != "mute":
            note = welcome.Welcomed(software=f"fedmq {version}", boot=f"{self.boots:016x}", at=self.now)
            welcome.write(self.state_dir, note)

    def pip(self, bin_: Path, options: Sequence[str]) -> Ended:
        if not self.pip_works:
            return Ended(1, "ERROR: no space left on device")
        given = dict(option.split("=", 1) for option in options if "=" in option)
        pinned = re.findall(r"--hash=sha256:(\w+)", Path(given["--requirement"]).read_text())
        wheels = sorted(Path(given["--find-links"]).glob("*.whl"))
        assert [hashlib.sha256(wheel.read_bytes()).hexdigest() for wheel in wheels] == pinned
        assert "--require-hashes" in options
        assert "--no-index" in options
        (own,) = (wheel for wheel in wheels if wheel.name.startswith("fedmq-"))
        (bin_ / "fedmq").write_text(f"{own.name.split('-')[1]} {own.read_text().split()[0]}")
        return Ended(0)

    @property
    def version(self) -> str:
        """What current leads to, which must be whole."""
        version = (self.root / "current").readlink().name
        assert (self.root / "current" / "requirements.txt").is_file()
        assert (self.root / "current" / "bin" / "fedmq").read_text().startswith(version.partition("-")[0])
        return version


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    (tmp_path / "gateway").mkdir()
    return Machine(root=tmp_path / "fedmq", state_dir=tmp_path / "gateway")


@pytest.fixture
def settings(site: Site, machine: Machine) -> ReleaseSettings:
    return ReleaseSettings(
        url=site.url,
        release_key=key_to_text(KEY.public),
        ca_file=site.ca_file,
        root=machine.root,
        restart=("restart",),
        jitter_seconds=0.0,
        health=HealthSettings(command=("healthy",), state_dir=machine.state_dir, seconds=60.0, settle_seconds=10.0),
    )


def house(directory: Path, version: str, kind: str = "good", other: str = "numpy-2.0.0", size: int = 5000) -> Path:
    """A wheelhouse, as scripts/wheelhouse leaves it. Its wheels are no more than their names."""
    directory.mkdir(parents=True)
    tag = "cp311-cp311-manylinux_2_28_aarch64"
    wheels = {
        f"fedmq-{version}-py3-none-any.whl": f"{kind} {version}".encode(),
        f"{other}-{tag}.whl": Random(other).randbytes(size),
    }
    lines = []
    for name, data in wheels.items():
        (directory / name).write_bytes(data)
        project, its_version = name.split("-")[:2]
        lines.append(f"{project}=={its_version} \\\n    --hash=sha256:{hashlib.sha256(data).hexdigest()}\n")
    (directory / "requirements.txt").write_text("".join(lines))
    (directory / "sbom.cdx.json").write_text("{}\n")
    seal(directory)
    return directory


def seal(directory: Path) -> None:
    names = sorted(path.name for path in directory.iterdir() if path.name != "SHA256SUMS")
    sums = (f"{hashlib.sha256((directory / name).read_bytes()).hexdigest()}  {name}\n" for name in names)
    (directory / "SHA256SUMS").write_text("".join(sums))


Publish = Callable[..., Index]


@pytest.fixture
def publish(tmp_path: Path, site: Site, machine: Machine) -> Publish:
    made = 0

    def publish(version: str, kind: str = "good", **more: object) -> Index:
        nonlocal made
        made += 1
        other = str(more.pop("other", "numpy-2.0.0"))
        where = house(tmp_path / f"house-{made}", version, kind, other)
        given = {"key": KEY, "out": site.directory, "now": machine.now + made, **more}
        return making.make([where], version=version, **given)  # type: ignore[arg-type]

    return publish


def pull(settings: ReleaseSettings, machine: Machine, **words: bool) -> str:
    return Pull(settings, machine.world()).run(now=True, **words)


def refused(settings: ReleaseSettings, machine: Machine, match: str) -> None:
    with pytest.raises(ReleaseError, match=match):
        pull(settings, machine)


# -- what a machine does -------------------------------------------------------------------------------------------


def test_a_release_is_fetched_installed_and_switched_to(
    settings: ReleaseSettings, machine: Machine, publish: Publish, site: Site
) -> None:
    publish("0.1.0")
    assert pull(settings, machine) == "0.1.0 is current and works"
    assert machine.version == "0.1.0"
    asked = len(site.asked)
    assert pull(settings, machine) == "0.1.0 is current, and what channel stable offers"
    assert site.asked[asked:] == [("index", "")], "what is there is not fetched again"
    sent = site.sent
    publish("0.2.0")
    assert pull(settings, machine) == "0.2.0 is current and works, after 0.1.0"
    assert machine.version == "0.2.0"
    assert machine.running == "0.2.0 good"
    assert (machine.root / "previous").readlink().name == "0.1.0"
    assert site.sent - sent < 5000, "the wheel that both have in common is fetched once"
    assert not [path for path, _ in site.asked if path.endswith("sbom.cdx.json")]


def test_old_releases_go(settings: ReleaseSettings, machine: Machine, publish: Publish) -> None:
    for version in ("0.1.0", "0.2.0", "0.3.0", "0.4.0"):
        publish(version, other=f"numpy-2.{version[2]}.0")
        pull(settings, machine)
    assert sorted(path.name for path in (machine.root / "releases").iterdir()) == ["0.3.0", "0.4.0"]
    wheels = {path.name for path in (machine.root / "downloads").iterdir() if path.is_file()}
    assert len(wheels) == 3, "two wheels of one release, and its requirements"


def test_another_signature_is_refused(settings: ReleaseSettings, machine: Machine, publish: Publish) -> None:
    publish("0.1.0", key=OTHER_KEY)
    refused(settings, machine, "not signed by the release key")
    assert not (machine.root / "releases").exists()
    spare = replace(settings, spare_key=key_to_text(OTHER_KEY.public))
    assert pull(spare, machine) == "0.1.0 is current and works"


@pytest.mark.parametrize("place", [0, 20, 200, -3])
def test_an_index_in_which_one_byte_is_changed_is_refused(
    settings: ReleaseSettings, machine: Machine, publish: Publish, site: Site, place: int
) -> None:
    publish("0.1.0")
    data = bytearray((site.directory / "index").read_bytes())
    data[place] ^= 1
    (site.directory / "index").write_bytes(data)
    refused(settings, machine, r"not signed|something else|no signature")


def test_an_expired_index_is_refused(settings: ReleaseSettings, machine: Machine, publish: Publish) -> None:
    publish("0.1.0", days=30)
    machine.now += 31 * DAY
    refused(settings, machine, "the index has expired on ")


def test_an_index_from_the_future_says_that_the_clock_is_wrong(
    settings: ReleaseSettings, machine: Machine, publish: Publish
) -> None:
    publish("0.1.0")
    machine.now -= 3 * DAY
    refused(settings, machine, "in the future here: is this machine's clock right")


def test_an_older_serial_number_is_refused(
    settings: ReleaseSettings, machine: Machine, publish: Publish, site: Site
) -> None:
    publish("0.1.0")
    old = (site.directory / "index").read_bytes()
    pull(settings, machine)
    publish("0.2.0")
    pull(settings, machine)
    (site.directory / "index").write_bytes(old)
    refused(settings, machine, "an old one is shown again")
    assert machine.version == "0.2.0"


def test_back_to_an_older_release_on_purpose(
    settings: ReleaseSettings, machine: Machine, publish: Publish, site: Site
) -> None:
    for version in ("0.1.0", "0.2.0", "0.1.0"):
        publish(version)
        pull(settings, machine)
    assert machine.version == "0.1.0"
    assert machine.running == "0.1.0 good"


def test_another_channel_is_refused(settings: ReleaseSettings, machine: Machine, publish: Publish) -> None:
    publish("0.1.0", channel="beta")
    refused(settings, machine, "expected an index of channel stable, got one of beta")


def test_a_machine_of_another_kind_finds_no_build(
    settings: ReleaseSettings, machine: Machine, publish: Publish
) -> None:
    publish("0.1.0", platforms=["x86_64-python3.13"])
    refused(settings, machine, f"no build for {PLATFORM}, only for x86_64-python3.13")


def test_a_build_for_this_machine_goes_before_the_one_for_any(publish: Publish) -> None:
    publish("0.1.0", platforms=["any"])
    index = publish("0.1.0")
    assert [build.folder for build in index.builds] == [PLATFORM, "any"]
    assert index.build_for(PLATFORM).folder == PLATFORM
    assert index.build_for("armv7l-python3.9").folder == "any"


@pytest.mark.parametrize("change", [b"", b"longer than it was", b"x"])
def test_a_changed_file_is_refused_and_thrown_away(
    settings: ReleaseSettings, machine: Machine, publish: Publish, site: Site, change: bytes
) -> None:
    publish("0.1.0")
    (wheel,) = (site.directory / "0.1.0" / PLATFORM).glob("fedmq-*.whl")
    right = wheel.read_bytes()
    wheel.write_bytes(bytes(len(right)) if not change else right + change if len(change) > 1 else b"")
    refused(settings, machine, "not the .* bytes that the index names|got more|stopped after 0 of")
    assert not (machine.root / "current").exists()
    wheel.write_bytes(right)
    assert pull(settings, machine) == "0.1.0 is current and works"


def test_an_oversize_index_is_read_no_further(settings: ReleaseSettings, machine: Machine, site: Site) -> None:
    site.directory.mkdir()
    (site.directory / "index").write_bytes(b"fedmq release 1\n" + bytes(3 << 20))
    refused(settings, machine, "expected at most 1,048,576 bytes, got more")


def test_a_release_larger_than_allowed_is_not_fetched(
    settings: ReleaseSettings, machine: Machine, publish: Publish, site: Site
) -> None:
    publish("0.1.0")
    path = site.directory / "index"
    index = read(path.read_bytes(), [KEY.public])
    (build,) = index.builds
    vast = msgspec.structs.replace(build.files[0], bytes=1 << 31)
    huge = msgspec.structs.replace(build, files=(vast, *build.files[1:]))
    path.write_bytes(sign(msgspec.structs.replace(index, builds=(huge,)), KEY))
    refused(settings, machine, "and max_bytes is")
    assert site.asked == [("index", "")]


def test_a_download_that_is_cut_goes_on_where_it_was(
    settings: ReleaseSettings, machine: Machine, publish: Publish, site: Site
) -> None:
    index = publish("0.1.0")
    path = f"0.1.0/{PLATFORM}/numpy-2.0.0-cp311-cp311-manylinux_2_28_aarch64.whl"
    site.cut[path] = 3000
    assert pull(settings, machine) == "0.1.0 is current and works"
    assert [asked for asked in site.asked if asked[0] == path] == [(path, ""), (path, "bytes=3000-")]
    (build,) = index.builds
    assert site.sent == sum(file.bytes for file in build.needed) + (site.directory / "index").stat().st_size


def test_a_download_goes_on_in_the_next_pull(
    settings: ReleaseSettings, machine: Machine, publish: Publish, site: Site
) -> None:
    publish("0.1.0")
    path = f"0.1.0/{PLATFORM}/numpy-2.0.0-cp311-cp311-manylinux_2_28_aarch64.whl"
    site.cut[path] = 4000
    serve = site.serve

    def only_once(request: BaseHTTPRequestHandler) -> None:
        serve(request)
        if request.path.endswith(path):
            site.cut[path] = 0  # the link is gone

    site.serve = only_once  # type: ignore[method-assign]
    refused(settings, machine, "stopped after 4,000 of 5,000 bytes; what has come is kept")
    site.serve = serve  # type: ignore[method-assign]
    site.cut.clear()
    site.asked.clear()
    assert pull(settings, machine) == "0.1.0 is current and works"
    assert (path, "bytes=4000-") in site.asked


def test_a_wheel_that_the_disk_has_spoilt_is_fetched_again(
    settings: ReleaseSettings, machine: Machine, publish: Publish, site: Site
) -> None:
    publish("0.1.0")
    pull(settings, machine)
    for path in (machine.root / "downloads").iterdir():
        if path.is_file():
            path.write_bytes(bytes(path.stat().st_size))
    publish("0.2.0")
    site.asked.clear()
    assert pull(settings, machine) == "0.2.0 is current and works, after 0.1.0"
    assert [path for path, _ in site.asked if "numpy" in path]


def test_who_leads_elsewhere_is_not_followed(settings: ReleaseSettings, machine: Machine, site: Site) -> None:
    site.moved = True
    refused(settings, machine, "got 302, which leads elsewhere")


def test_a_server_of_another_ca_is_not_believed(
    settings: ReleaseSettings, machine: Machine, publish: Publish, site: Site, tmp_path: Path
) -> None:
    publish("0.1.0")
    stranger = Authority(tmp_path / "stranger", name="stranger")
    refused(replace(settings, ca_file=stranger.ca_file), machine, "cannot be believed")
    assert site.asked == []


# -- a release that fails --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("mute", "after 60 s the gateway has not been welcomed"),
        ("dead", "`restart` ended with 1: Job failed"),
        ("fickle", "began anew"),
        ("astray", "was welcomed as fedmq 0.0.1, not as fedmq 0.2.0: does it run from current"),
    ],
)
def test_a_release_that_fails_is_taken_back_and_not_tried_again(
    settings: ReleaseSettings, machine: Machine, publish: Publish, site: Site, kind: str, why: str
) -> None:
    publish("0.1.0")
    pull(settings, machine)
    publish("0.2.0", kind)
    refused(settings, machine, f"release 0.2.0 fails: .*{why}.*; 0.1.0 is current again and works; 0.2.0 is not tried")
    assert machine.version == "0.1.0"
    assert machine.running == "0.1.0 good"
    boots = machine.boots
    assert pull(settings, machine).startswith("0.1.0 stays: 0.2.0 failed here and is not tried again")
    assert machine.boots == boots
    publish("0.3.0")
    assert pull(settings, machine) == "0.3.0 is current and works, after 0.1.0"


@pytest.mark.parametrize(("kind", "why"), [("wrong", "got 'fedmq 9.9'"), ("hollow", "cannot be loaded")])
def test_a_release_that_fails_its_own_check_is_never_current(
    settings: ReleaseSettings, machine: Machine, publish: Publish, kind: str, why: str
) -> None:
    publish("0.1.0")
    pull(settings, machine)
    boots = machine.boots
    publish("0.2.0", kind)
    refused(settings, machine, f"release 0.2.0 is no good: .*{why}")
    assert (machine.version, machine.boots) == ("0.1.0", boots)
    assert not (machine.root / "releases" / "0.2.0").exists()
    assert "not tried again" in pull(settings, machine)


def test_a_full_disk_is_not_the_releases_fault(settings: ReleaseSettings, machine: Machine, publish: Publish) -> None:
    publish("0.1.0")
    pull(settings, machine)
    publish("0.2.0")
    machine.pip_works = False
    refused(settings, machine, "pip install.* failed: .*no space left")
    assert machine.version == "0.1.0"
    machine.pip_works = True
    assert pull(settings, machine) == "0.2.0 is current and works, after 0.1.0"


def test_while_no_coordinator_answers_no_release_is_blamed_at_once(
    settings: ReleaseSettings, machine: Machine, publish: Publish
) -> None:
    publish("0.1.0")
    pull(settings, machine)
    publish("0.2.0")
    machine.coordinator = False
    refused(settings, machine, "may be neither's fault; 0.2.0 is tried again once it works")
    assert machine.version == "0.1.0"
    boots = machine.boots
    for _ in range(TRIES):
        assert "0.2.0 waits until it has" in pull(settings, machine)
    assert machine.boots == boots, "it is left in peace while nobody answers"
    machine.coordinator = True
    machine.boot()
    assert pull(settings, machine) == "0.2.0 is current and works, after 0.1.0"


def test_a_release_after_which_nothing_works_is_given_up_in_the_end(
    settings: ReleaseSettings, machine: Machine, publish: Publish
) -> None:
    publish("0.1.0")
    pull(settings, machine)
    publish("0.2.0")
    for _ in range(TRIES):
        machine.coordinator = False
        refused(settings, machine, "0.1.0 is current again, and fails as well")
        machine.coordinator = True
        machine.boot()
    assert "is not tried again" in pull(settings, machine)
    assert pull(settings, machine, again=True) == "0.2.0 is current and works, after 0.1.0"


def test_a_first_release_that_fails_stays_and_says_so(
    settings: ReleaseSettings, machine: Machine, publish: Publish
) -> None:
    publish("0.1.0", "mute")
    refused(settings, machine, "release 0.1.0 fails: .* there is none before to go back to")
    publish("0.2.0")
    assert pull(settings, machine) == "0.2.0 is current and works, after 0.1.0"


def test_where_the_welcome_cannot_be_seen_nothing_is_switched(
    settings: ReleaseSettings, machine: Machine, publish: Publish, tmp_path: Path
) -> None:
    publish("0.1.0")
    pull(settings, machine)
    publish("0.2.0")
    (tmp_path / "file").write_text("")
    blind = replace(settings, health=replace(settings.health, state_dir=tmp_path / "file"))
    refused(blind, machine, "cannot be read")
    assert machine.version == "0.1.0"
    without = replace(blind, health=replace(blind.health, welcome=False))
    assert pull(without, machine) == "0.2.0 is current and works, after 0.1.0"


def test_a_release_does_not_change_under_its_version(
    settings: ReleaseSettings, machine: Machine, publish: Publish, site: Site
) -> None:
    for version in ("0.1.0", "0.2.0"):
        publish(version)
        pull(settings, machine)
    for path in sorted(site.directory.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    publish("0.1.0", "another")
    refused(settings, machine, "was made of other wheels than the index names")
    assert machine.version == "0.2.0"


# -- killed --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", CRASH_POINTS)
def test_killed_anywhere_current_works_and_the_next_pull_goes_on(
    settings: ReleaseSettings, machine: Machine, publish: Publish, point: str
) -> None:
    publish("0.1.0")
    pull(settings, machine)
    publish("0.2.0")
    machine.crash_at = point
    with pytest.raises(Killed):
        pull(settings, machine)
    assert machine.version in ("0.1.0", "0.2.0")
    said = pull(settings, machine)
    assert "0.2.0 is current" in said
    assert machine.version == "0.2.0"
    assert machine.running == "0.2.0 good"
    state = Releases(root=machine.root, python=Path("python3"), seconds=1.0).state()
    assert (state.trial, state.bad) == (None, {})


@pytest.mark.parametrize("nth", range(1, 8))
def test_killed_anywhere_on_the_way_back_it_goes_back_all_the_same(
    settings: ReleaseSettings, machine: Machine, publish: Publish, nth: int
) -> None:
    publish("0.1.0")
    pull(settings, machine)
    publish("0.2.0", "mute")
    machine.passed.clear()
    passed = 0
    plain = machine.crash_point

    def dying(name: str) -> None:
        nonlocal passed
        plain(name)
        passed += "current switched" in machine.passed
        if passed == nth:
            raise Killed(name)

    with pytest.raises(Killed):
        Pull(settings, replace(machine.world(), crash_point=dying)).run(now=True)
    assert machine.version in ("0.1.0", "0.2.0")
    said = []
    for _ in range(2):
        try:
            said.append(pull(settings, machine))
        except ReleaseError as error:
            said.append(str(error))
    assert "0.2.0 failed here and is not tried again" in said[-1], said
    assert machine.version == "0.1.0"
    assert machine.running == "0.1.0 good"


def test_a_trial_goes_on_without_the_network(
    settings: ReleaseSettings, machine: Machine, publish: Publish, site: Site
) -> None:
    publish("0.1.0")
    pull(settings, machine)
    publish("0.2.0", "mute")
    machine.crash_at = "current switched"
    with pytest.raises(Killed):
        pull(settings, machine)
    assert machine.version == "0.2.0"
    away = replace(settings, url="https://127.0.0.1:9/fedmq")
    refused(away, machine, "release 0.2.0 fails")
    assert machine.version == "0.1.0"


def test_who_has_switched_meanwhile_is_not_switched_back(
    settings: ReleaseSettings, machine: Machine, publish: Publish
) -> None:
    for version in ("0.1.0", "0.2.0"):
        publish(version)
        pull(settings, machine)
    publish("0.3.0", "mute")
    machine.passed.clear()

    def killed_on_the_way_back(name: str) -> None:
        machine.passed.append(name)
        if machine.passed.count("state") == 3:
            raise Killed(name)

    with pytest.raises(Killed):
        Pull(settings, replace(machine.world(), crash_point=killed_on_the_way_back)).run(now=True)
    releases = Releases(root=machine.root, python=Path("python3"), seconds=1.0)
    trial = releases.state().trial
    assert trial is not None
    assert (trial.before, trial.failed != "") == ("0.2.0", True)
    releases.switch("0.1.0")
    publish("0.1.0")
    boots = machine.boots
    assert pull(settings, machine) == "0.1.0 is current, and what channel stable offers"
    assert (machine.version, machine.boots) == ("0.1.0", boots)


def test_what_is_half_removed_is_not_taken_for_a_release(
    settings: ReleaseSettings, machine: Machine, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish("0.1.0")
    pull(settings, machine)
    releases = Releases(root=machine.root, python=Path("python3"), seconds=1.0)

    def cut_short(path: Path) -> None:
        raise Killed

    monkeypatch.setattr("shutil.rmtree", cut_short)
    with pytest.raises(Killed):
        releases.remove("0.1.0")
    assert releases.installed() == [("0.1.0", False)]


def test_two_pulls_at_once(settings: ReleaseSettings, machine: Machine, publish: Publish, site: Site) -> None:
    publish("0.1.0")
    machine.root.mkdir()
    with folder.locked(machine.root):
        with pytest.raises(folder.FolderError, match="another command works in"):
            pull(settings, machine)
        assert site.asked == []
    assert pull(settings, machine) == "0.1.0 is current and works"


def test_a_trial_is_decided_without_waiting(settings: ReleaseSettings, machine: Machine, publish: Publish) -> None:
    publish("0.1.0")
    machine.crash_at = "current switched"
    with pytest.raises(Killed):
        pull(settings, machine)
    Pull(replace(settings, jitter_seconds=86_400.0), machine.world()).run()
    assert machine.seconds < 100


def test_a_pull_waits_a_random_time_unless_it_is_to_be_now(
    settings: ReleaseSettings, machine: Machine, publish: Publish
) -> None:
    publish("0.1.0")
    late = replace(settings, jitter_seconds=600.0)
    Pull(late, machine.world()).run(now=True)
    began = machine.seconds
    Pull(late, machine.world()).run()
    assert 0 < machine.seconds - began <= 600


# -- where releases are made ---------------------------------------------------------------------------------------


def test_the_platform_comes_from_the_wheels(publish: Publish, site: Site) -> None:
    index = publish("0.1.0")
    (build,) = index.builds
    assert build.platforms == (PLATFORM,)
    assert stat.S_IMODE((site.directory / "0.1.0" / PLATFORM).stat().st_mode) == 0o755
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o644 for path in site.directory.rglob("*") if path.is_file())


def test_serial_numbers_only_go_up_also_where_the_folder_was_lost(publish: Publish, site: Site) -> None:
    first = publish("0.1.0", now=NOW)
    second = publish("0.1.0", now=NOW - 10 * DAY)
    assert second.serial == first.serial + 1
    (site.directory / "index").unlink()
    assert publish("0.1.0", now=NOW + 60).serial > second.serial


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (lambda where: (where / "SHA256SUMS").unlink(), "no SHA256SUMS"),
        (lambda where: (where / "requirements.txt").write_text("other\n"), "not what SHA256SUMS says"),
        (lambda where: next(where.glob("fedmq*")).unlink(), "and not there"),
        (lambda where: (where / "extra.whl").write_text("x"), "extra.whl is not in SHA256SUMS"),
        (lambda where: ((where / "a-1-py3-none-any.whl").write_text("x"), seal(where)), "and the wheels differ"),
    ],
)
def test_half_a_wheelhouse_is_not_signed(tmp_path: Path, spoil: Callable[[Path], object], match: str) -> None:
    where = house(tmp_path / "house", "0.1.0")
    spoil(where)
    with pytest.raises(ReleaseError, match=match):
        making.make([where], version="0.1.0", key=KEY, out=tmp_path / "out", now=NOW)
    assert not (tmp_path / "out" / "index").exists()


def test_a_made_release_never_changes(publish: Publish) -> None:
    publish("0.1.0")
    with pytest.raises(ReleaseError, match="A release never changes"):
        publish("0.1.0", "another")


@pytest.mark.parametrize(
    ("version", "right"),
    [("0.1.0", True), ("0.1.0-2", True), ("0.2.0", False), ("../x", False), ("0.1.0-/../../x", False)],
)
def test_a_release_is_called_by_the_fedmq_in_it(tmp_path: Path, version: str, right: bool) -> None:
    where = house(tmp_path / "house", "0.1.0")
    if right:
        index = making.make([where], version=version, key=KEY, out=tmp_path / "out", now=NOW)
        assert (index.version, index.software) == (version, "0.1.0")
        return
    with pytest.raises(ReleaseError, match=r"expected --version 0\.1\.0|expected one such as"):
        making.make([where], version=version, key=KEY, out=tmp_path / "out", now=NOW)


def test_other_wheels_around_the_same_fedmq(settings: ReleaseSettings, machine: Machine, publish: Publish) -> None:
    publish("0.1.0")
    pull(settings, machine)
    making.make(
        [house(settings.root.parent / "patched", "0.1.0", other="numpy-2.0.1")],
        version="0.1.0-2",
        key=KEY,
        out=settings.root.parent / "served",
        now=machine.now + 50,
    )
    assert pull(settings, machine) == "0.1.0-2 is current and works, after 0.1.0"


def test_a_name_that_leads_out_of_the_folder_is_refused_though_signed(publish: Publish) -> None:
    index = msgspec.to_builtins(publish("0.1.0"))
    for change in (
        {"version": "../0.1.0"},
        {"builds": [{**index["builds"][0], "folder": ".."}]},
        {"builds": [{**index["builds"][0], "files": [{**index["builds"][0]["files"][0], "name": "../../x.whl"}]}]},
        {"channel": "Stable"},
        {"more": 1},
    ):
        body = json.dumps({**index, **change}).encode()
        signed = sign_raw(body)
        with pytest.raises(ReleaseError, match="not of a form that is known here"):
            read(signed, [KEY.public])


def sign_raw(body: bytes) -> bytes:
    signature = base64.b64encode(KEY.sign(b"fedmq release 1\0" + body))
    return b"\n".join((b"fedmq release 1", signature, body)) + b"\n"


# -- the command ---------------------------------------------------------------------------------------------------


def test_a_key_is_made_once_and_for_its_owner(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "release.key"
    assert main(["release", "key", "--out", str(path)]) == 0
    line = capsys.readouterr().out
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    settings = tmp_path / "release.toml"
    settings.write_text(f'url = "https://releases.example/x"\n{line}')
    (key,) = load(ReleaseSettings, settings).keys
    where = house(tmp_path / "house", "0.1.0")
    words = ["release", "make", str(where), "--version", "0.1.0", "--key", str(path), "--out", str(tmp_path / "out")]
    assert main(words) == 0
    assert f"release 0.1.0 of channel stable for {PLATFORM}" in capsys.readouterr().out
    assert read((tmp_path / "out" / "index").read_bytes(), [key]).version == "0.1.0"
    assert main(["release", "key", "--out", str(path)]) == 1
    assert "is there already" in capsys.readouterr().err
    path.chmod(0o644)
    assert main(words) == 1
    assert "0644" in capsys.readouterr().err


def test_show_says_what_there_is(
    settings: ReleaseSettings, machine: Machine, publish: Publish, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["release", "show", "--root", str(machine.root)]
    assert main(words) == 0
    assert "nothing is current" in capsys.readouterr().out
    for version, kind in (("0.1.0", "good"), ("0.2.0", "good"), ("0.3.0", "mute")):
        publish(version, kind)
        if kind == "good":
            pull(settings, machine)
        else:
            refused(settings, machine, "fails")
    assert main(words) == 0
    said = capsys.readouterr().out
    assert re.search(r"^0\.2\.0 +current$", said, re.MULTILINE)
    assert re.search(r"^0\.1\.0 +previous$", said, re.MULTILINE)
    assert "failed: 0.3.0 on 2026-09-21, not tried again: after 60 s the gateway" in said
    assert "UTC, failed, serial" in said
    assert main([*words, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["current"] == "0.2.0"
    assert shown["state"]["bad"]["0.3.0"]["given_up"] is True


def test_the_example_is_right_once_it_is_filled_in(tmp_path: Path) -> None:
    text = document(ReleaseSettings)
    path = tmp_path / "release.toml"
    path.write_text(text)
    read_back = load(ReleaseSettings, path)
    assert read_back.url == "https://releases.plant.example/fedmq"
    assert read_back.health == HealthSettings()


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ('url = "http://releases.example/x"', "url"),
        (f'spare_key = "{"x" * 44}"', "spare_key"),
        ("keep = 1", "keep"),
        ("health.command = []", "health.command"),
        ('restart = "systemctl restart fedmq-gateway"', "restart"),
    ],
)
def test_settings_that_cannot_be_used(tmp_path: Path, line: str, key: str) -> None:
    path = tmp_path / "release.toml"
    lines = {"url": 'url = "https://releases.example/x"', "key": f'release_key = "{key_to_text(KEY.public)}"'}
    path.write_text("\n".join([*({**lines, key: line} if key == "url" else {**lines, "more": line}).values()]))
    with pytest.raises(SettingsError) as found:
        load(ReleaseSettings, path)
    assert [mistake.key for mistake in found.value.mistakes] == [key]


def test_a_note_of_a_welcome_comes_back_and_junk_is_none(tmp_path: Path) -> None:
    assert welcome.read(tmp_path) is None
    note = welcome.Welcomed(software="fedmq 0.1.0", boot="ab", at=NOW)
    welcome.write(tmp_path, note)
    assert welcome.read(tmp_path) == note
    (tmp_path / welcome.WELCOME).write_bytes(b"{")
    assert welcome.read(tmp_path) is None


# -- real programs -------------------------------------------------------------------------------------------------

_RESTART = """\
import json, os, pathlib, subprocess, sys
root, state = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
said = subprocess.run([root / "current/bin/fedmq", "--version"], capture_output=True, text=True, check=True).stdout
if said.strip() != "fedmq 0.3.0":
    state.mkdir(exist_ok=True)
    note = {"software": said.strip(), "boot": os.urandom(8).hex(), "at": 1.0}
    (state / "welcome.json").write_text(json.dumps(note))
"""


def tiny_house(directory: Path, version: str) -> Path:
    """A wheelhouse of one real wheel: a program that says its version, and what is loaded to try it."""
    directory.mkdir(parents=True)
    dist = f"fedmq-{version}.dist-info"
    files = {
        "fedmq/__init__.py": "",
        "fedmq/cli.py": f"def main():\n    print('fedmq {version}')\n",
        "fedmq/programs.py": "",
        "fedmq/release/__init__.py": "",
        "fedmq/release/pulling.py": "",
        "fedmq_edge_node/service.py": "",
        "fedmq_protocol/signing.py": "",
        f"{dist}/METADATA": f"Metadata-Version: 2.1\nName: fedmq\nVersion: {version}\n",
        f"{dist}/WHEEL": "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{dist}/entry_points.txt": "[console_scripts]\nfedmq = fedmq.cli:main\n",
    }
    files[f"{dist}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{dist}/RECORD"])
    wheel = directory / f"fedmq-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    (directory / "requirements.txt").write_text(f"fedmq=={version} \\\n    --hash=sha256:{sha256}\n")
    seal(directory)
    return directory


@pytest.mark.slow
def test_real_environments_by_the_command_killed_and_taken_back(tmp_path: Path, site: Site) -> None:
    root, state = tmp_path / "fedmq", tmp_path / "state"
    script = tmp_path / "restart.py"
    script.write_text(_RESTART)
    settings = tmp_path / "release.toml"
    settings.write_text(
        f"""\
url = "{site.url}"
release_key = "{key_to_text(KEY.public)}"
ca_file = "{site.ca_file}"
root = "{root}"
python = "{sys.executable}"
restart = ["{sys.executable}", "{script}", "{root}", "{state}"]
[health]
command = ["true"]
state_dir = "{state}"
seconds = 1
every_seconds = 0.1
settle_seconds = 0.1
"""
    )

    def pull(**environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "fedmq", "release", "pull", "--config", str(settings), "--now"],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    def publish(version: str) -> None:
        making.make([tiny_house(tmp_path / version, version)], version=version, key=KEY, out=site.directory, now=time())

    state.mkdir()
    publish("0.2.0")
    killed = pull(FEDMQ_CRASH_AT="current switched")
    assert killed.returncode == -9, killed.stderr
    assert (root / "current").readlink() == Path("releases/0.2.0")
    again = pull()
    assert again.returncode == 0, again.stderr
    assert again.stdout == "0.2.0 is current and works; 0.2.0 is current, and what channel stable offers\n"
    publish("0.3.0")
    failed = pull()
    assert failed.returncode == 1
    assert failed.stderr.startswith("fedmq release: release 0.3.0 fails: after 1 s the gateway has not been welcomed")
    assert "0.2.0 is current again and works" in failed.stderr
    assert len(failed.stderr.splitlines()) == 1
    current = [str(root / "current/bin/fedmq"), "--version"]
    said = subprocess.run(current, env={}, capture_output=True, text=True, check=True).stdout
    assert said == "fedmq 0.2.0\n"
