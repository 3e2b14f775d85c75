from __future__ import annotations

import os

import pytest

from fedmq import dashboard


def test_where_its_unit_lets_no_program_change_its_priority_it_serves_all_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(increment: int) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "nice", refuse)
    with caplog.at_level("INFO", "fedmq.dashboard"):
        dashboard._stand_back()
    assert "stands back no further than its unit lets it" in caplog.text
