"""Verdicts on alerts become labels, and the next rounds' classifier is better for them: three gateways as processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EACH = 6


@pytest.mark.slow
def test_the_classifier_after_the_verdicts_beats_the_one_before_on_windows_nobody_trains_on(tmp_path: Path) -> None:
    told = tmp_path / "told.json"
    words = ["--data", "sim", "--machines", "6", "--wanted", str(EACH), "--rounds", "12"]
    words += ["--directory", str(tmp_path / "plant"), "--json", str(told)]
    done = subprocess.run(
        [sys.executable, str(ROOT / "bench" / "verdicts.py"), *words],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = json.loads(told.read_text())
    assert sum(found["confirmed"].values()) == EACH
    assert sum(found["dismissed"].values()) == EACH
    before, after, control = (found[key]["macro_f1"] for key in ("before", "after", "control"))
    assert after > before + 0.1, done.stdout
    assert after > control + 0.1, f"as many rounds more without verdicts are as good: {done.stdout}"
    # What was judged is kept under its verdict, for when the store has it no more.
    labels = {Path(path).parent.name for path in found["kept"]}
    assert "normal" in labels
    assert labels & {"inner_race", "ball", "outer_race"}
