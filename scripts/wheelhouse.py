"""Fills a folder from which a machine without internet installs fedmq, and says what is in it.

    wheels               the project's own, built here, and all that it needs, from the package index
    requirements.txt     each with its version and sha256, for `pip install --require-hashes`
    sbom.cdx.json        the same as a CycloneDX 1.6 bill of materials: versions, hashes, licences, who needs whom
    SHA256SUMS           of all files above, for `sha256sum --check`

A gateway's wheels may be fetched on another kind of machine (--platform, --python-version). pip reads conditions in
requirements (`; python_version < "3.12"`) for the machine that it runs on; so what is needed on the target is worked
out once more here, and a wheel that is missing for it is an error.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import uuid
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.message import Message
from email.parser import BytesParser
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if TYPE_CHECKING:
    from cyclonedx.model.license import DisjunctiveLicense, LicenseExpression

ROOT = Path(__file__).resolve().parents[1]
PROJECT = "fedmq"

EPILOG = """\
examples:
  scripts/wheelhouse wheels                                   for machines like this one
  scripts/wheelhouse wheels bridge onnx                       with extras
  scripts/wheelhouse wheels --platform manylinux2014_aarch64 --platform manylinux_2_28_aarch64 --python-version 3.11
  scripts/wheelhouse wheels --platform linux_armv7l --python-version 3.11 \\
      --extra-index-url https://www.piwheels.org/simple       32-bit Raspberry Pi OS

on the machine without internet:
  (cd wheels && sha256sum --check SHA256SUMS)
  python3 -m venv /opt/fedmq
  /opt/fedmq/bin/pip install --no-index --find-links wheels --require-hashes -r wheels/requirements.txt
"""


class WheelhouseError(ValueError):
    """It cannot be filled; the text says why."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """The machine that is to install it. Empty: one like this."""

    platforms: tuple[str, ...] = ()
    python_version: str = ""

    def pip_words(self) -> Iterator[str]:
        for platform in self.platforms:
            yield f"--platform={platform}"
        if self.python_version:
            yield f"--python-version={self.python_version}"

    def environment(self) -> dict[str, str]:
        """What conditions in requirements are read against, where it is not this machine's."""
        found = {}
        if self.python_version:
            found["python_version"] = self.python_version
            found["python_full_version"] = f"{self.python_version}.0"
        machines = {machine for platform in self.platforms if (machine := _machine(platform))}
        if len(machines) > 1:
            raise WheelhouseError(
                f"--platform: expected tags of one kind of machine, got {', '.join(sorted(machines))}"
            )
        if machines:
            found |= {"platform_machine": machines.pop(), "sys_platform": "linux", "platform_system": "Linux"}
        return found


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """One file of the folder."""

    path: Path
    name: str
    """In the form in which names are compared."""
    version: str
    sha256: str
    metadata: Message
    needs: tuple[Requirement, ...] = field(default=())


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/wheelhouse",
        description="Fills a folder from which a machine without internet installs fedmq: wheels, hashes, SBOM.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="where to; it must be empty, or not there yet")
    parser.add_argument("extras", nargs="*", metavar="EXTRA", help="such as bridge, onnx, coordinator (default: none)")
    parser.add_argument(
        "--platform",
        action="append",
        default=[],
        metavar="TAG",
        help="of the machine that installs it, as wheels name it; may be given several times (default: like this one)",
    )
    parser.add_argument("--python-version", default="", metavar="X.Y", help="of that machine (default: like this one)")
    parser.add_argument("--extra-index-url", action="append", default=[], metavar="URL", help="another package index")
    arguments = parser.parse_args(argv)
    try:
        if arguments.python_version and not re.fullmatch(r"3\.\d{1,2}", arguments.python_version):
            raise WheelhouseError(f"--python-version: expected one such as 3.11, got {arguments.python_version!r}")
        target = Target(platforms=tuple(arguments.platform), python_version=arguments.python_version)
        count = fill(arguments.directory, tuple(arguments.extras), target, arguments.extra_index_url)
    except (WheelhouseError, OSError) as error:
        print(f"scripts/wheelhouse: {error}", file=sys.stderr)
        return 1
    print(f"{count} wheels, requirements.txt, sbom.cdx.json and SHA256SUMS are in {arguments.directory}")
    return 0


def fill(directory: Path, extras: tuple[str, ...], target: Target, indexes: Sequence[str] = ()) -> int:
    """Returns how many wheels there are. Raises WheelhouseError and OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.iterdir()):
        raise WheelhouseError(f"{directory}: expected an empty folder: old wheels would be installed with the new ones")
    try:
        return _fill(directory, extras, target, indexes)
    except BaseException:
        for path in directory.iterdir():  # half a folder would be taken for a whole one
            path.unlink()
        raise


def _fill(directory: Path, extras: tuple[str, ...], target: Target, indexes: Sequence[str]) -> int:
    environment = target.environment()
    isolation = ["--no-build-isolation"] if importlib.util.find_spec("hatchling") else []
    _pip("wheel", "--no-deps", *isolation, "--wheel-dir", str(directory), str(ROOT))
    (own,) = directory.glob(f"{PROJECT}-*.whl")
    wanted = f"{own}[{','.join(extras)}]" if extras else str(own)
    # No source packages: a gateway has no compiler, and building runs what the package says.
    _pip(
        *("download", "--only-binary=:all:", "--dest", str(directory)),
        *target.pip_words(),
        *(f"--extra-index-url={url}" for url in indexes),
        wanted,
    )
    wheels = {wheel.name: wheel for wheel in map(_read, sorted(directory.glob("*.whl")))}
    edges = _needed(wheels, extras, environment)
    (directory / "requirements.txt").write_text(_requirements(wheels, extras), encoding="utf-8")
    (directory / "sbom.cdx.json").write_text(_sbom(wheels, edges), encoding="utf-8")
    files = sorted(path for path in directory.iterdir() if path.is_file())
    sums = "".join(f"{_sha256(path)}  {path.name}\n" for path in files)
    (directory / "SHA256SUMS").write_text(sums, encoding="utf-8")
    return len(wheels)


def _pip(*words: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *words]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise WheelhouseError(f"pip {words[0]} failed:\n{ended.stderr.strip()}")


def _read(path: Path) -> Wheel:
    with zipfile.ZipFile(path) as archive:
        (inside,) = (name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name))
        metadata = BytesParser().parsebytes(archive.read(inside))
    return Wheel(
        path=path,
        name=canonicalize_name(str(metadata["Name"])),
        version=str(metadata["Version"]),
        sha256=_sha256(path),
        metadata=metadata,
        needs=tuple(Requirement(str(text)) for text in metadata.get_all("Requires-Dist", [])),
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _machine(platform: str) -> str:
    """`manylinux2014_aarch64` is for `aarch64`."""
    found = re.fullmatch(r"(?:manylinux(?:1|2010|2014|_\d+_\d+)|musllinux_\d+_\d+|linux)_(.+)", platform)
    return found[1] if found else ""


def _needed(wheels: dict[str, Wheel], extras: tuple[str, ...], environment: dict[str, str]) -> dict[str, set[str]]:
    """Of each wheel that the target needs, those that it needs in turn. Raises WheelhouseError for one that is missing,
    and for an extra that is not there."""
    known = {canonicalize_name(str(extra)) for extra in wheels[PROJECT].metadata.get_all("Provides-Extra", [])}
    strange = [extra for extra in extras if canonicalize_name(extra) not in known]
    if strange:
        raise WheelhouseError(f"no extra {', '.join(strange)}; there is {', '.join(sorted(known))}")
    edges: dict[str, set[str]] = {}
    done: set[tuple[str, str]] = set()
    todo = [(PROJECT, extra) for extra in ("", *extras)]
    while todo:
        name, extra = todo.pop()
        if (name, extra) in done:
            continue
        done.add((name, extra))
        edges.setdefault(name, set())
        for need in wheels[name].needs:
            if need.marker is not None and not need.marker.evaluate({**environment, "extra": extra}):
                continue
            other = canonicalize_name(need.name)
            if other not in wheels or not need.specifier.contains(wheels[other].version, prereleases=True):
                raise WheelhouseError(f"{name} needs {need} on that machine, and pip has not fetched it from this one")
            if other != name:
                edges[name].add(other)
            todo += [(other, part) for part in ("", *need.extras)]
    return edges


def _requirements(wheels: dict[str, Wheel], extras: tuple[str, ...]) -> str:
    lines = []
    for wheel in wheels.values():
        asked = f"[{','.join(extras)}]" if extras and wheel.name == PROJECT else ""
        lines.append(f"{wheel.name}{asked}=={wheel.version} \\\n    --hash=sha256:{wheel.sha256}\n")
    return "".join(lines)


def _sbom(wheels: dict[str, Wheel], edges: dict[str, set[str]]) -> str:
    """CycloneDX 1.6, checked against its schema."""
    from cyclonedx.model import HashAlgorithm, HashType
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.output.json import JsonV1Dot6
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator
    from packageurl import PackageURL

    components = {}
    for wheel in wheels.values():
        purl = PackageURL(type="pypi", name=wheel.name, version=wheel.version)
        components[wheel.name] = Component(
            type=ComponentType.APPLICATION if wheel.name == PROJECT else ComponentType.LIBRARY,
            name=wheel.name,
            version=wheel.version,
            description=str(wheel.metadata.get("Summary", "")) or None,
            bom_ref=purl.to_string(),
            purl=purl,
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=wheel.sha256)],
            licenses=_licences(wheel.metadata),
        )
    bom = Bom(components=[one for name, one in components.items() if name != PROJECT])
    bom.metadata.component = components[PROJECT]
    # The same wheels make the same number; the time can be held, too.
    bom.serial_number = uuid.uuid5(uuid.NAMESPACE_OID, " ".join(sorted(wheel.sha256 for wheel in wheels.values())))
    if held := os.environ.get("SOURCE_DATE_EPOCH"):
        bom.metadata.timestamp = datetime.fromtimestamp(int(held), tz=UTC)
    for name, needs in edges.items():
        bom.register_dependency(components[name], [components[other] for other in sorted(needs)])
    text = str(JsonV1Dot6(bom).output_as_string(indent=2))
    wrong = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if wrong is not None:
        raise WheelhouseError(f"the bill of materials does not follow its own schema: {wrong}")
    return json.dumps(json.loads(text), indent=2, ensure_ascii=False) + "\n"


def _licences(metadata: Message) -> list[LicenseExpression | DisjunctiveLicense]:
    """As the author says: an SPDX expression, else what the classifiers name, else the first line of the text."""
    from cyclonedx.model.license import DisjunctiveLicense, LicenseExpression

    expression = str(metadata.get("License-Expression", "")).strip()
    if expression:
        return [LicenseExpression(expression)]
    classifiers = [str(text) for text in metadata.get_all("Classifier", []) if str(text).startswith("License ::")]
    names = [text.rpartition(" :: ")[2] for text in classifiers if text.count("::") > 1]
    plain = str(metadata.get("License", "")).strip().partition("\n")[0].strip()
    if not names and plain:
        names = [plain]
    return [DisjunctiveLicense(name=name) for name in dict.fromkeys(names)]


if __name__ == "__main__":
    sys.exit(main())
