"""`fedmq status` where a person looks, and where a program does."""

from __future__ import annotations

import contextlib
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from ledgers import write_plant


@pytest.fixture
def state(tmp_path: Path) -> Path:
    write_plant(tmp_path / "ledger.sqlite").close()
    return tmp_path


def on_a_terminal(state: Path, **environment: str) -> str:
    master, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "fedmq", "status", "--state", str(state)],
        stdin=subprocess.DEVNULL,
        stdout=terminal,
        stderr=terminal,
        env={**os.environ, "TERM": "xterm", "NO_COLOR": "", "COLUMNS": "80", **environment},
    )
    os.close(terminal)
    said = bytearray()
    with contextlib.suppress(OSError):  # what reading comes to once the other end is closed
        while data := os.read(master, 65_536):
            said += data
    os.close(master)
    assert process.wait(30) == 0, said
    return said.decode().replace("\r\n", "\n")


def test_colours_are_for_terminals_and_not_where_somebody_wants_none(state: Path) -> None:
    shaded = on_a_terminal(state)
    assert "\x1b[" in shaded
    for plain in (on_a_terminal(state, NO_COLOR="1"), on_a_terminal(state, TERM="dumb")):
        assert "\x1b" not in plain
        assert "attention" in plain
    piped = subprocess.run(
        [sys.executable, "-m", "fedmq", "status", "--state", str(state)], capture_output=True, text=True, check=True
    )
    assert "\x1b" not in piped.stdout


def test_lines_are_no_longer_than_the_window(state: Path) -> None:
    assert max(map(len, on_a_terminal(state, NO_COLOR="1").splitlines())) <= 80
