"""The tree that every test machine boots from: Debian 12 with systemd, built once by mmdebstrap and kept.

Owns which packages a machine has and how the tree is made fit to boot under systemd-nspawn. Refuses to know how many
machines there are: each lays a tree of its own over this one and leaves it as it is. Building needs a Debian mirror;
from then on no machine and no test needs a network outside.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["ADMIN", "cache", "held", "tree"]

SUITE = "bookworm"
ADMIN = "admin"
"""Whom Ansible logs in as: not root, with sudo, as on a Raspberry Pi."""
PACKAGES = (
    "systemd",
    "systemd-sysv",
    "dbus",
    "udev",
    "python3",
    "python3-venv",
    "python3-apt",
    "openssh-server",
    "iproute2",
    "ca-certificates",
    "sudo",
    "procps",
    # What the roles take from the distribution. It lies here switched off, for no machine reaches a mirror.
    "mosquitto",
    "nftables",
    "logrotate",
)
SWITCHED_OFF = ("mosquitto", "nftables")


def cache() -> Path:
    """Where trees and beds lie: FEDMQ_FLEET_CACHE, or /var/tmp/fedmq-fleet."""
    return Path(os.environ.get("FEDMQ_FLEET_CACHE", "/var/tmp/fedmq-fleet"))


@contextmanager
def held(path: Path, *, wait: bool) -> Iterator[None]:
    """A lock on the file for this process. Raises BlockingIOError where another has it and `wait` is false."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield


def tree(say: Callable[[str], None]) -> Path:
    """The tree, built first where there is none of these very packages."""
    key = hashlib.sha256(repr((SUITE, PACKAGES, SWITCHED_OFF, ADMIN)).encode()).hexdigest()[:12]
    done = cache() / f"image-{key}"
    with held(cache() / "image.lock", wait=True):
        if not done.is_dir():
            new = done.with_suffix(".new")
            if new.exists():
                shutil.rmtree(new)
            say(f"building the image of Debian {SUITE}, once, into {done}")
            _build(new)
            new.rename(done)
    return done


def _build(root: Path) -> None:
    command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE, str(root)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise RuntimeError(f"mmdebstrap ended with {ran.returncode}; expected a tree in {root}:\n{ran.stderr}")
    for name in SWITCHED_OFF:
        (root / f"etc/systemd/system/multi-user.target.wants/{name}.service").unlink(missing_ok=True)
        (root / f"etc/systemd/system/sysinit.target.wants/{name}.service").unlink(missing_ok=True)
    (root / "etc/resolv.conf").unlink(missing_ok=True)
    # So that the journal outlives a power cut, and can be read of a machine that is off.
    (root / "var/log/journal").mkdir(exist_ok=True)
    add = ["chroot", str(root), "useradd", "--create-home", "--shell", "/bin/bash", ADMIN]
    subprocess.run(add, check=True, capture_output=True)
    (root / f"etc/sudoers.d/{ADMIN}").write_text(f"{ADMIN} ALL=(ALL) NOPASSWD: ALL\n")
    # Answers come at once, also where no name server does.
    (root / "etc/ssh/sshd_config.d/fleet.conf").write_text("UseDNS no\nGSSAPIAuthentication no\n")
