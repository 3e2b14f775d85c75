"""`fedmq dashboard`, and `--http` of the coordinator: what their command lines make of themselves."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import pytest
from dashboards import secret
from ledgers import write_plant
from processes import environment, fedmq


def test_it_serves_a_state_directory_by_itself_until_it_is_stopped(tmp_path: Path) -> None:
    write_plant(tmp_path / "ledger.sqlite", rounds=5).close()
    words = [sys.executable, "-m", "fedmq", "dashboard", "--state", str(tmp_path), "--http", "0"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment()) as running:
        assert running.stderr is not None
        (address,) = re.findall(r"dashboard: (http://\S+)", running.stderr.readline())
        with urlopen(f"{address}api/overview", timeout=30) as answer:
            assert b'"macro-F1"' in answer.read()
        os.kill(running.pid, signal.SIGTERM)
        assert running.wait(30) in (0, -signal.SIGTERM)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "--config FILE or --state DIR"),
        (["--state", ".", "--config", "x.toml"], "and not both"),
        (["--state", ".", "--set", "limits.max_norm=3"], "--set limits.max_norm"),
        (["--state", ".", "--http", "0.0.0.0:80"], "name a token_file"),
        (["--state", ".", "--http", "nonsense"], "expected a port"),
        (["--state", ".", "--set", "http.token_file=nowhere"], "nowhere"),
        (["--state", ".", "--set", "http.certificate_file=x"], "key_file: required"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(tmp_path: Path, words: list[str], reason: str) -> None:
    ended = fedmq("dashboard", *words, cwd=tmp_path)
    assert ended.returncode == 1
    assert reason in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_token_that_can_be_guessed_keeps_it_from_starting(tmp_path: Path) -> None:
    short = secret(tmp_path / "token", "1234")
    ended = fedmq("dashboard", "--state", str(tmp_path), "--set", f"http.token_file={short}")
    assert ended.returncode == 1
    assert "expected a token of 24 characters or more" in ended.stderr
    assert "1234" not in ended.stderr
