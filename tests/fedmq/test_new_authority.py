"""A certificate authority as it is made, while the clock goes on."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from fedmq.ca.authority import Authority


@pytest.mark.parametrize("years", [1, 2, 10])
def test_an_authority_is_made_though_seconds_go_by_meanwhile(tmp_path: Path, years: int) -> None:
    ticks = itertools.count(1_700_000_000)
    authority = Authority.create(
        tmp_path / "ca", federation="plant", hosts=("127.0.0.1",), years=years, clock=lambda: next(ticks)
    )
    ends = authority.certificate.not_valid_after_utc.timestamp()
    assert [one.name for one in authority.issued()] == ["coordinator", "broker"]
    assert all(one.expires <= ends for one in authority.issued())
