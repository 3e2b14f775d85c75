"""7. Roles and playbooks pass ansible-lint offline, and what docs/deploy.md tells a newcomer to type exists."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ANSIBLE = ROOT / "ansible"
BIN = Path(sys.executable).parent
PLAYBOOKS = sorted(path.name for path in ANSIBLE.glob("*.yml"))


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "NO_COLOR": "1"}
    # In a namespace of its own there is no network at all.
    offline = ["unshare", "--net"] if shutil.which("unshare") else []
    return subprocess.run(
        [*offline, *command], cwd=ANSIBLE, env=environment, capture_output=True, text=True, check=False
    )


def test_ansible_lint_has_nothing_to_say_in_its_production_profile() -> None:
    done = run(BIN / "ansible-lint", "--offline", "--strict", "--profile", "production")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Profile 'production' was required, and it passed" in done.stderr


def test_the_page_for_newcomers_names_playbooks_and_knobs_that_exist() -> None:
    text = (ROOT / "docs/deploy.md").read_text()
    typed = set(re.findall(r"ansible-playbook[^\n]*?\b([a-z_]+\.yml)", text))
    assert typed <= set(PLAYBOOKS)
    assert [playbook for playbook in PLAYBOOKS if playbook not in text] == []
    knobs = {
        knob
        for defaults in ANSIBLE.glob("roles/*/defaults/main.yml")
        for knob in re.findall(r"(?m)^(\w+):", defaults.read_text())
    }
    roles = "|".join(path.name for path in (ANSIBLE / "roles").iterdir() if path.is_dir())
    mentioned = set(re.findall(rf"`((?:{roles})_[a-z_]+)`", text))
    assert mentioned <= knobs, mentioned - knobs
