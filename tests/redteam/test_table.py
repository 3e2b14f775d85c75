"""The table that `scripts/redteam` prints, and that no attack of it is without a test."""

from __future__ import annotations

import re
from pathlib import Path

from redteam import ATTACKS, Line, read_table, table_of, write_table


def test_every_attack_has_a_test() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    marked = set(re.findall(r'^@pytest\.mark\.attack\("(.+)"\)$', text, re.MULTILINE))
    assert marked == set(ATTACKS)


def test_one_failed_test_is_enough_for_an_attack_to_count_as_not_stopped(tmp_path: Path) -> None:
    lines = table_of(
        [
            (ATTACKS[0], True, "refused", "coordinator: MAC"),
            (ATTACKS[0], True, "refused", "broker: ACL"),
            (ATTACKS[1], True, "refused", "broker: ACL"),
            (ATTACKS[1], False, "", ""),
        ]
    )
    write_table(tmp_path / "table.json", lines)
    told = read_table(tmp_path / "table.json")
    assert told[0] == Line(attack=ATTACKS[0], outcome="refused", stopped_at="broker: ACL; coordinator: MAC")
    assert told[1].outcome == "NOT STOPPED"
    assert {line.outcome for line in told[2:]} == {"not tried"}
    assert [line.attack for line in told] == list(ATTACKS)
