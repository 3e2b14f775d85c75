"""The folder of releases on a machine.

    releases/VERSION    a virtual environment each; whole once `requirements.txt` is in it, which comes last
    current, previous   links to two of them; a new link is renamed over the old one, so there is no moment without
    downloads/SHA256    wheels by their hash: what two releases have in common is fetched once
    state               the last serial number seen, the trial that is on, and what failed here

Owns these files and each single step; refuses to know their order, which is `pulling`'s. Every step may be cut short
at any instant, and done again. It is the layout that the Ansible roles make, which may take turns with this.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from fedmq.ca import folder
from fedmq.release.fetching import CUT_SHORT
from fedmq.release.index import REQUIREMENTS, Build, File, Index, ReleaseError, Version

__all__ = ["Bad", "Ended", "Failure", "Releases", "State", "Trial", "run"]

STATE = "state"
CURRENT, PREVIOUS = "current", "previous"

ROOM_FACTOR = 5
"""So many times the size of its wheels a release may need while it is installed."""

CHECKS = "import fedmq.cli, fedmq.programs, fedmq.release.pulling, fedmq_edge_node.service, fedmq_protocol.signing"
"""What a gateway loads must be there, and made for this machine; and so must what pulls the release after it."""

_OUTPUT = 2000


class Failure(ReleaseError):
    """The release itself is at fault: another try on this machine ends the same."""


class Ended(msgspec.Struct, frozen=True):
    """How a program ended, and the end of what it said."""

    status: int
    said: str = ""


Run = Callable[[Sequence[str], float, Mapping[str, str]], Ended]


def run(words: Sequence[str], seconds: float, more: Mapping[str, str]) -> Ended:
    """Without a shell, and with nothing of this process's environment but what programs need."""
    environment = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR", "HOME") if name in os.environ}
    try:
        done = subprocess.run(
            list(words),
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=seconds,
            check=False,
            umask=0o022,  # programs run as another user, who reads what root installs
            env={**environment, **more},
        )
    except subprocess.TimeoutExpired:
        return Ended(124, f"not done after {seconds:g} s")
    except OSError as error:
        return Ended(127, f"{words[0]}: {error.strerror}")
    said = (done.stdout + b"\n" + done.stderr).decode("utf-8", "replace").strip()
    return Ended(done.returncode, said[-_OUTPUT:])


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """A switch whose outcome is not known yet."""

    version: Version
    software: Version
    before: Version | None
    failed: Annotated[str, Meta(max_length=4096)] = ""
    """Why it goes back; empty while it may still be good."""


class Bad(msgspec.Struct, frozen=True, kw_only=True):
    """A release that failed here."""

    why: Annotated[str, Meta(max_length=4096)]
    at: float
    tries: int
    given_up: bool
    boot: str = ""
    """The start of the gateway that was welcomed last by then: while none has been since, the release waits."""


class State(msgspec.Struct, frozen=True, kw_only=True):
    serial: int = 0
    checked_at: float = 0.0
    outcome: str = ""
    failed: bool = False
    """Whether the last pull ended with an error."""
    trial: Trial | None = None
    bad: dict[str, Bad] = {}


@dataclass(frozen=True, kw_only=True)
class Releases:
    """`python` is what virtual environments are made with; `run` starts programs."""

    root: Path
    python: Path
    seconds: float
    run: Run = run
    passed: Callable[[str], None] = lambda name: None

    # -- looking --------------------------------------------------------------------------------------------------

    @property
    def current(self) -> str | None:
        return self._link(CURRENT)

    @property
    def previous(self) -> str | None:
        return self._link(PREVIOUS)

    def _link(self, name: str) -> str | None:
        """The version that a link leads to; None where there is none, or what it leads to is not there."""
        path = self.root / name
        return path.readlink().name if path.is_symlink() and path.exists() else None

    def installed(self) -> list[tuple[str, bool]]:
        """Versions, and whether each is whole; the oldest first."""
        found = [path for path in (self.root / "releases").glob("*") if path.is_dir() and not path.is_symlink()]
        found.sort(key=lambda path: (path.stat().st_mtime, path.name))
        return [(path.name, (path / REQUIREMENTS).is_file()) for path in found]

    def is_whole(self, version: str) -> bool:
        return (self._release(version) / REQUIREMENTS).is_file()

    def _release(self, version: str) -> Path:
        return self.root / "releases" / version

    def platform(self) -> str:
        """Such as `aarch64-python3.11`. A 32-bit Python on a 64-bit kernel takes 32-bit wheels, whatever uname says."""
        asked = self.run(
            [
                *(str(self.python), "-I", "-c"),
                "import platform, sys; m = platform.machine().lower(); "
                "m = m if sys.maxsize > 2**32 else {'aarch64': 'armv7l', 'x86_64': 'i686'}.get(m, m); "
                "print('%s-python%d.%d' % (m, *sys.version_info[:2]))",
            ],
            60.0,
            {},
        )
        if asked.status or len(asked.said.split()) != 1:
            raise ReleaseError(f"{self.python} does not work: {asked.said or asked.status}; see the setting python")
        return asked.said

    # -- the state ------------------------------------------------------------------------------------------------

    def state(self) -> State:
        """Raises ReleaseError for a damaged one: the serial number in it keeps old releases away."""
        path = self.root / STATE
        if not path.exists():
            return State()
        try:
            return msgspec.json.decode(folder.read(path), type=State)
        except (msgspec.MsgspecError, ValueError) as error:
            raise ReleaseError(
                f"{path} is damaged: {error}. Without it an old release could be shown as new; see that"
                f" {self.root}/current is what it should be, and remove the file"
            ) from None

    def keep(self, state: State) -> State:
        folder.put(self.root / STATE, msgspec.json.format(msgspec.json.encode(state), indent=1) + b"\n", folder.PUBLIC)
        self.passed("state")
        return state

    # -- downloads ------------------------------------------------------------------------------------------------

    def place(self, file: File) -> Path:
        """Where its bytes lie, or will."""
        return self.root / "downloads" / file.sha256

    def missing(self, build: Build) -> list[File]:
        """What is to be fetched. A file that is here by its name and not by its hash goes."""
        self._folder(self.root / "downloads")
        left = []
        for file in build.needed:
            path = self.place(file)
            if path.exists() and _sha256(path) != file.sha256:
                path.unlink()
            if not path.exists():
                left.append(file)
        return left

    def check_room(self, build: Build, left: Sequence[File], most: int) -> None:
        whole = sum(file.bytes for file in build.needed)
        if whole > most:
            raise ReleaseError(f"the release has {whole:,} bytes, and max_bytes is {most:,}")
        need = sum(file.bytes for file in left) + ROOM_FACTOR * whole
        free = shutil.disk_usage(self.root).free
        if free < need:
            raise ReleaseError(f"{self.root}: expected {need:,} bytes free for the release, there are {free:,}")

    def forget_downloads(self, wanted: Build) -> None:
        """Those of other releases: they would fill the disk with time."""
        kept = {file.sha256 for file in wanted.needed}
        for path in (self.root / "downloads").glob("*"):
            if path.is_file() and path.name.removesuffix(CUT_SHORT) not in kept:
                path.unlink()

    # -- installing -----------------------------------------------------------------------------------------------

    def install(self, index: Index, build: Build) -> None:
        """Make the release of what was downloaded, and try it. Raises Failure where the release is at fault, and
        ReleaseError where it may be the machine."""
        release, requirements = self._release(index.version), self.place(build.requirements)
        if self.is_whole(index.version):
            if _sha256(release / REQUIREMENTS) != build.requirements.sha256:
                raise ReleaseError(
                    f"{release} was made of other wheels than the index names. A release never changes: give the new"
                    " one a version of its own"
                )
            return
        self._folder(self.root / "releases")
        if release.exists():  # cut short
            shutil.rmtree(release)
        wheels = self._wheels(build)
        self._must(
            [str(self.python), "-I", "-m", "venv", str(release)],
            "; is python3-venv of the distribution installed?",
        )
        self.passed("venv")
        python = str(release / "bin" / "python")
        self._must(
            [
                *(python, "-I", "-m", "pip", "install", "--quiet", "--no-index", f"--find-links={wheels}"),
                *("--only-binary=:all:", "--require-hashes", f"--requirement={requirements}"),
            ],
        )
        self.passed("pip")
        said = self.run([str(release / "bin" / "fedmq"), "--version"], self.seconds, {})
        if said.status or said.said != f"fedmq {index.software}":
            raise Failure(f"expected fedmq {index.software} to say its version, got {_tail(said)}")
        loaded = self.run([python, "-I", "-c", CHECKS], self.seconds, {})
        if loaded.status:
            raise Failure(f"it cannot be loaded: {_tail(loaded)}")
        self.passed("checked")
        # On the disk before anything says so: after a power cut a link must not lead to empty files.
        os.sync()
        folder.put(release / REQUIREMENTS, folder.read(requirements), folder.PUBLIC)
        release.chmod(0o755)
        shutil.rmtree(wheels)
        self.passed("installed")

    def _wheels(self, build: Build) -> Path:
        """A folder of the wheels by their own names, as pip looks for them."""
        wheels = self.root / "downloads" / "wheels"
        if wheels.exists():
            shutil.rmtree(wheels)
        self._folder(wheels)
        for file in build.needed:
            os.link(self.place(file), wheels / file.name)
        return wheels

    def _must(self, words: Sequence[str], hint: str = "") -> None:
        ended = self.run(
            words,
            self.seconds,
            {
                "PIP_CONFIG_FILE": os.devnull,
                "PIP_NO_CACHE_DIR": "1",
                "PIP_DISABLE_PIP_VERSION_CHECK": "1",
                "PIP_ROOT_USER_ACTION": "ignore",
            },
        )
        if ended.status:
            raise ReleaseError(f"{' '.join(words[2:5])} failed: {_tail(ended)}{hint}")

    def remove(self, version: str) -> None:
        """The mark goes first: what is left where this is cut short is not taken for a release."""
        release = self._release(version)
        (release / REQUIREMENTS).unlink(missing_ok=True)
        if release.exists():
            shutil.rmtree(release)

    # -- switching ------------------------------------------------------------------------------------------------

    def switch(self, version: str) -> None:
        if not self.is_whole(version):
            raise ReleaseError(f"{self._release(version)} is not whole: {self.root}/current stays as it is")
        self._lead(CURRENT, version)

    def remember(self, version: str | None) -> None:
        """The one before, for whoever goes back by hand."""
        if version is not None and self.is_whole(version):
            self._lead(PREVIOUS, version)

    def _lead(self, name: str, version: str) -> None:
        beside = self.root / f".{name}.new"
        beside.unlink(missing_ok=True)
        beside.symlink_to(Path("releases") / version)
        self.passed(f"{name} link")
        os.replace(beside, self.root / name)
        opened = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
        self.passed(f"{name} switched")

    def prune(self, keep: int, in_use: str | None) -> None:
        """All but the links', the one that this process runs from, and the newest up to `keep` in all."""
        held = {version for version in (self.current, self.previous, in_use) if version is not None}
        others = [version for version, _ in reversed(self.installed()) if version not in held]
        for version in others[max(0, keep - len(held)) :]:
            self.remove(version)

    def _folder(self, path: Path) -> None:
        path.mkdir(mode=0o755, parents=True, exist_ok=True)
        path.chmod(0o755)


def _tail(ended: Ended) -> str:
    """Its last line, which is the one that tells."""
    lines = ended.said.splitlines()
    return f"{lines[-1][:300]!r} (status {ended.status})" if lines else f"nothing (status {ended.status})"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
