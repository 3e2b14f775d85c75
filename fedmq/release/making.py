"""From wheelhouses to a folder that any HTTPS server can serve.

Owns that folder: `index`, and VERSION/PLATFORM/ with the files of each build. What goes in is checked against what
scripts/wheelhouse wrote beside it, so that a signature never covers half a wheelhouse. Files come first and the index
last, by one rename: a machine that looks meanwhile finds the release before, whole. A release never changes: a build
that is there is the same, or refused.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec

from fedmq.ca import folder
from fedmq.release.index import (
    ANY,
    INDEX,
    REQUIREMENTS,
    Build,
    File,
    Index,
    ReleaseError,
    ReleaseKey,
    Version,
    read,
    sign,
)

__all__ = ["make"]

SUMS = "SHA256SUMS"
MAX_TEXT_BYTES = 4 << 20
_WHEEL = re.compile(
    r"(?P<name>[^-]+)-(?P<version>[^-]+)(?:-\d[^-]*)?-(?P<python>[^-]+)-(?P<abi>[^-]+)-(?P<tags>.+)\.whl\Z"
)
_MACHINE = re.compile(r"(?:manylinux(?:1|2010|2014|_\d+_\d+)|musllinux_\d+_\d+|linux)_(.+)\Z")


def make(
    houses: Sequence[Path],
    *,
    version: str,
    key: ReleaseKey,
    out: Path,
    platforms: Sequence[str] = (),
    channel: str = "stable",
    days: int = 90,
    now: float,
) -> Index:
    """Put a release, or further builds of the one that is there, into `out`, and sign a new index for it. Raises
    ReleaseError and OSError; then the index is the one before."""
    if platforms and len(houses) > 1:
        raise ReleaseError("--platform says what one wheelhouse is for: give it with one at a time")
    try:
        msgspec.convert(version, Version)
    except msgspec.ValidationError:
        raise ReleaseError(f"--version: expected one such as 0.2.0 or 0.2.0-2, got {version!r}") from None
    out.mkdir(parents=True, exist_ok=True)
    before = _before(out, key)
    if before is not None and before.channel != channel:
        raise ReleaseError(f"{out} is of channel {before.channel}: make the releases of {channel} in another folder")
    looked = [_look(house, tuple(platforms)) for house in houses]
    software = {own for _, own in looked}
    if len(software) > 1:
        raise ReleaseError(f"expected wheelhouses of one fedmq, got {', '.join(sorted(software))}")
    (own,) = software
    if version != own and not version.startswith(f"{own}-"):
        raise ReleaseError(
            f"expected --version {own}, which is the fedmq in {houses[0]}, or {own}-LABEL where only other wheels"
            f" differ; got {version}"
        )
    builds = {build.folder: build for build in before.builds} if before and before.version == version else {}
    for house, (build, _) in zip(houses, looked, strict=True):
        _place(house, build, out / version)
        builds[build.folder] = build
    try:
        index = Index(
            # By the time, too: a folder that was lost and is made anew goes on above what machines have seen.
            serial=max(int(now), before.serial + 1 if before else 1),
            channel=channel,
            version=version,
            software=own,
            made_at=int(now),
            expires=int(now) + days * 86_400,
            builds=tuple(builds[name] for name in sorted(builds)),
        )
        data = sign(index, key)
        read(data, [key.public])  # what machines would refuse is not published
    except ValueError as error:
        raise ReleaseError(f"this makes no index: {error}") from None
    folder.put(out / INDEX, data, folder.PUBLIC)
    return index


def _before(out: Path, key: ReleaseKey) -> Index | None:
    path = out / INDEX
    if not path.exists():
        return None
    try:
        return read(folder.read(path), [key.public])
    except ReleaseError as error:
        raise ReleaseError(
            f"{path}: {error}. With a new key, make releases in a new folder; machines need the key in their settings"
        ) from None


def _look(house: Path, platforms: tuple[str, ...]) -> tuple[Build, str]:
    """What a wheelhouse holds, and the version of fedmq in it. Raises ReleaseError."""
    sums = _sums(house)
    files = []
    for name, sha256 in sorted(sums.items()):
        path = house / name
        if not path.is_file() or path.is_symlink():
            raise ReleaseError(f"{path}: in {SUMS}, and not there: fill the wheelhouse again")
        if _sha256(path) != sha256:
            raise ReleaseError(f"{path}: not what {SUMS} says: fill the wheelhouse again")
        files.append((name, path.stat().st_size, sha256))
    strange = {path.name for path in house.iterdir()} - set(sums) - {SUMS}
    if strange:
        raise ReleaseError(f"{house}: {', '.join(sorted(strange))} is not in {SUMS}: fill the wheelhouse again")
    if REQUIREMENTS not in sums:
        raise ReleaseError(f"{house}: no {REQUIREMENTS}: expected a folder that scripts/wheelhouse has filled")
    wheels = {name: sha256 for name, sha256 in sums.items() if name.endswith(".whl")}
    pinned = set(re.findall(r"--hash=sha256:([0-9a-f]{64})", _text(house / REQUIREMENTS)))
    if pinned != set(wheels.values()):
        raise ReleaseError(f"{house}: {REQUIREMENTS} and the wheels differ: fill the wheelhouse again")
    parts = [_parts(house, name) for name in wheels]
    own = [part["version"] for part in parts if part["name"] == "fedmq"]
    if len(own) != 1:
        raise ReleaseError(f"{house}: expected one wheel of fedmq, got {len(own)}")
    found = platforms or (_platform(house, parts),)
    try:
        build = Build(
            folder=found[0],
            platforms=found,
            files=tuple(File(name=name, bytes=size, sha256=sha256) for name, size, sha256 in files),
        )
    except ValueError as error:
        raise ReleaseError(f"{house}: {error}") from None
    return build, own[0]


def _sums(house: Path) -> dict[str, str]:
    if not (house / SUMS).is_file():
        raise ReleaseError(f"{house}: no {SUMS}: expected a folder that scripts/wheelhouse has filled")
    sums = {}
    for line in _text(house / SUMS).splitlines():
        found = re.fullmatch(r"([0-9a-f]{64}) [ *]([^/]+)", line)
        if found is None:
            raise ReleaseError(f"{house / SUMS}: expected lines of hash and file name, got {line[:80]!r}")
        sums[found[2]] = found[1]
    return sums


def _parts(house: Path, name: str) -> dict[str, str]:
    found = _WHEEL.match(name)
    if found is None:
        raise ReleaseError(f"{house / name}: expected a wheel's file name")
    return found.groupdict()


def _platform(house: Path, parts: Sequence[dict[str, str]]) -> str:
    """The machine and Python that compiled wheels name; one build for this Python alone decides it."""
    machines = {
        machine[1] for part in parts for tag in part["tags"].split(".") if (machine := _MACHINE.match(tag)) is not None
    }
    pythons = {
        f"{found[1]}.{found[2]}" for part in parts if (found := re.fullmatch(r"cp(3)(\d+)t?", part["abi"])) is not None
    }
    if not machines and not pythons:
        return ANY
    if len(machines) != 1 or len(pythons) != 1:
        raise ReleaseError(
            f"{house}: its wheels are for {', '.join(sorted(machines)) or 'no machine'} and Python"
            f" {', '.join(sorted(pythons)) or 'of any version'}: say with --platform what it is for, such as"
            " aarch64-python3.11"
        )
    return f"{machines.pop()}-python{pythons.pop()}"


def _place(house: Path, build: Build, where: Path) -> None:
    """The files of a build, in one step."""
    final, beside = where / build.folder, where / f".{build.folder}.new"
    if final.exists():
        there = {path.name: _sha256(path) for path in final.iterdir()}
        if there != {file.name: file.sha256 for file in build.files}:
            raise ReleaseError(
                f"{final} was made of other files than {house} holds. A release never changes: give this one a version"
                " of its own"
            )
        return
    shutil.rmtree(beside, ignore_errors=True)  # of one that was cut short
    beside.mkdir(parents=True)
    for file in build.files:
        shutil.copyfile(house / file.name, beside / file.name)
        (beside / file.name).chmod(folder.PUBLIC)
        if _sha256(beside / file.name) != file.sha256:
            raise ReleaseError(f"{house / file.name}: changed while it was read")
    for made in (where, beside):
        made.chmod(0o755)  # whatever the umask: a server's user reads it
    os.sync()
    beside.rename(final)


def _text(path: Path) -> str:
    if path.stat().st_size > MAX_TEXT_BYTES:
        raise ReleaseError(f"{path}: expected at most {MAX_TEXT_BYTES:,} bytes")
    return path.read_text(encoding="utf-8", errors="replace")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
