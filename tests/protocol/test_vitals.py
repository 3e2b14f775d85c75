"""Battery and link in one number: nothing is lost on the way, its meaning is fixed, and no number is too strange."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest
from fedmq_protocol.vitals import LINKS, ToldVitals

FLAGS = (None, False, True)


def test_whatever_a_gateway_tells_comes_back() -> None:
    for charge, mains, link, metered in itertools.product((None, 0, 1, 42, 100), FLAGS, (None, *LINKS), FLAGS):
        told = ToldVitals(battery_pct=charge, on_mains=mains, link=link, metered=metered)
        assert ToldVitals.of(told.code) == told


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (0, ToldVitals()),
        (0b10_01_001, ToldVitals(on_mains=True, link="ethernet", metered=False)),
        (0b01_10_011, ToldVitals(on_mains=False, link="cellular", metered=True)),
        (0b0000001_01_00_010, ToldVitals(battery_pct=0, on_mains=False, link="wifi")),
        (0b1100101_10_00_101, ToldVitals(battery_pct=100, on_mains=True, link="other")),
    ],
)
def test_the_numbers_are_what_software_of_other_versions_goes_by(code: int, told: ToldVitals) -> None:
    assert told.code == code
    assert ToldVitals.of(code) == told


def test_what_a_newer_sender_says_in_other_ways_is_unknown() -> None:
    assert ToldVitals.of(0b1111111_11_11_111) == ToldVitals()
    assert ToldVitals.of(0b1100110_11_11_110) == ToldVitals(), "101 per cent is no charge, and 6 no link"
    assert ToldVitals.of(1 << 14 | 1) == ToldVitals(link="ethernet"), "what stands above is passed over"
    for code in range(1 << 16):
        told = ToldVitals.of(code)
        assert msgspec.convert(msgspec.to_builtins(told), ToldVitals) == told, "within its bounds"


def test_a_gateway_on_mains_fits_in_a_byte_and_one_with_a_battery_in_three() -> None:
    def size(**known: Any) -> int:
        return len(msgspec.msgpack.encode(ToldVitals(**known).code))

    assert size() == 1
    assert size(on_mains=True, link="other", metered=True) == 1
    assert size(battery_pct=100, on_mains=True, link="other", metered=True) == 3


def test_people_read_what_is_known() -> None:
    assert str(ToldVitals()) == "nothing known"
    assert str(ToldVitals(battery_pct=42, on_mains=False, link="wifi", metered=True)) == (
        "battery 42 %, not on mains, wifi, metered"
    )
