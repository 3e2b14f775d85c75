"""Register maps: reads, decoding and mistakes."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fedmq_firmware_bridge.registers import (
    MAX_READ,
    Channel,
    Group,
    Read,
    included_maps,
    load,
    parse,
)
from fedmq_firmware_bridge.tables import TableError
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]

MAP = """
title = "A sensor"
source = "its manual, section 3"

[[group]]
name = "vibration"
period_seconds = 1

[[group.channel]]
name = "velocity"
address = 10
type = "uint16"
unit = "mm/s"
"""


def channel(address: int, **more: Any) -> Channel:
    return Channel(**{"name": f"c{address}", "address": address, "type": "int16", "unit": "", **more})


def group(*channels: Channel, **more: Any) -> Group:
    return Group(name="g", period_seconds=1.0, channels=channels, **more)


def spans(of: Group) -> list[tuple[int, int]]:
    return [(read.address, read.count) for read in of.reads]


@pytest.mark.parametrize(
    ("kind", "registers", "value"),
    [
        ("int16", [0xFFFE], -2),
        ("uint16", [0xFFFE], 65_534),
        ("int32", [0xFFFF, 0xFFFE], -2),
        ("uint32", [0x0001, 0x0002], 65_538),
        ("float32", [0x41BC, 0x0000], 23.5),
    ],
)
def test_each_type_is_decoded(kind: str, registers: list[int], value: float) -> None:
    assert channel(0, type=kind).decode(registers) == value


@pytest.mark.parametrize(
    ("orders", "registers"),
    [
        ({}, [0x0102, 0x0304]),
        ({"word_order": "little"}, [0x0304, 0x0102]),
        ({"byte_order": "little"}, [0x0201, 0x0403]),
        ({"word_order": "little", "byte_order": "little"}, [0x0403, 0x0201]),
    ],
)
def test_words_and_bytes_come_in_any_order(orders: dict[str, str], registers: list[int]) -> None:
    assert channel(0, type="uint32", **orders).decode(registers) == 0x01020304


def test_a_value_is_raw_times_scale_plus_offset() -> None:
    assert channel(0, scale=0.5, offset=-40.0).decode([100]) == 10.0


@given(value=st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_a_float_comes_through_as_it_is(value: float) -> None:
    registers = list(struct.unpack(">HH", struct.pack(">f", value)))
    assert group(channel(0, type="float32")).decode([registers])[0] == np.float32(value)


def test_registers_side_by_side_are_one_read() -> None:
    assert spans(group(channel(4), channel(2), channel(3))) == [(2, 3)]


def test_a_gap_is_read_across_only_as_far_as_the_map_allows() -> None:
    channels = channel(2), channel(6)
    assert spans(group(*channels)) == [(2, 1), (6, 1)]
    assert spans(group(*channels, read_across=2)) == [(2, 1), (6, 1)]
    assert spans(group(*channels, read_across=3)) == [(2, 5)]


def test_a_channel_of_two_registers_is_never_split() -> None:
    assert spans(group(channel(0), channel(1, type="int32"), registers_per_read=2)) == [(0, 1), (1, 2)]


def test_a_register_may_be_told_in_two_ways() -> None:
    twice = group(channel(7), channel(7, name="unsigned", type="uint16"))
    assert spans(twice) == [(7, 1)]
    assert twice.decode([[0xFFFF]]).tolist() == [-1.0, 65_535.0]


@given(
    addresses=st.sets(st.integers(0, 600), min_size=1, max_size=128),
    across=st.integers(0, 20),
    most=st.integers(2, MAX_READ),
    wide=st.booleans(),
)
def test_reads_are_within_bounds_and_bring_every_channel(
    addresses: set[int], across: int, most: int, wide: bool
) -> None:
    kind = "uint32" if wide else "uint16"
    channels = [channel(address, type=kind) for address in addresses]
    made = group(*channels, read_across=across, registers_per_read=most)
    assert all(1 <= read.count <= most for read in made.reads)
    answers = [range(read.address, read.address + read.count) for read in made.reads]
    expected = [address << 16 | address + 1 if wide else address for address in addresses]
    assert made.decode(answers).tolist() == np.array(expected, dtype=np.float32).tolist()


def test_a_row_has_its_channels_in_the_order_of_the_map() -> None:
    row = group(channel(3), channel(1)).decode([[10], [30]])
    assert row.dtype == np.float32
    assert row.tolist() == [30.0, 10.0]


def test_every_mistake_is_named_with_its_key() -> None:
    text = """
titel = "A sensor"
source = ""

[[group]]
name = "Vibration"
period_seconds = 0
registers_per_read = 126
function = "coil"

[[group.channel]]
name = "velocity"
address = -1
type = "int16"
unit = "mm/s"

[[group.channel]]
name = "temperature"
address = "0x40"
type = "int8"
unit = 5
"""
    with pytest.raises(TableError) as caught:
        parse(text)
    named = {key for key, _ in caught.value.mistakes}
    assert named == {
        "titel",
        "title",
        "source",
        "group[1].name",
        "group[1].period_seconds",
        "group[1].registers_per_read",
        "group[1].function",
        "group[1].channel[1].address",
        "group[1].channel[2].address",
        "group[1].channel[2].type",
        "group[1].channel[2].unit",
    }
    assert "did you mean title?" in str(caught.value)
    assert 'expected a whole number, got "0x40"' in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("period_seconds = 1", "period_seconds = 0.001", "group[1].period_seconds"),
        ("period_seconds = 1", "period_seconds = nan", "group[1].period_seconds"),
        ("period_seconds = 1", "period_seconds = true", "group[1].period_seconds"),
        ("address = 10", "address = 65536", "group[1].channel[1].address"),
        ('type = "uint16"', 'type = "float32"\nscale = 0', "group[1].channel[1].scale"),
        ('type = "uint16"', 'type = "float32"\nscale = inf', "group[1].channel[1].scale"),
        ('type = "uint16"', 'type = "int16"\nword_order = "little"', "group[1].channel[1].word_order"),
        ('"mm/s"', '"millimetres a second"', "group[1].channel[1].unit"),
        ('source = "its manual, section 3"', 'source = " "', "source"),
        ("period_seconds = 1", "period_seconds = 1\nregisters_per_read = 126", "group[1].registers_per_read"),
    ],
)
def test_what_is_out_of_bounds_is_refused(old: str, new: str, key: str) -> None:
    assert parse(MAP)
    with pytest.raises(TableError) as caught:
        parse(MAP.replace(old, new))
    assert [named for named, _ in caught.value.mistakes] == [key]


def test_a_channel_of_two_registers_ends_within_the_address_space() -> None:
    assert channel(65_534, type="int32")
    with pytest.raises(TableError, match="address"):
        channel(65_535, type="int32")


def test_names_are_told_apart() -> None:
    with pytest.raises(TableError, match="c1 is there twice"):
        group(channel(1), channel(1))


@pytest.mark.parametrize("text", ["", "group = 3", "[[group]", "group = []", "[" * 5000])
def test_what_is_no_map_is_refused(text: str) -> None:
    with pytest.raises(TableError):
        parse(text)


def test_a_map_of_ones_own_is_named_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(MAP, encoding="utf-8")
    assert load(str(path)).groups[0].reads == (Read(function="holding", address=10, count=1),)


@pytest.mark.parametrize(
    ("content", "told"),
    [(b"\xff", "not UTF-8"), (b"#" * 70_000, "at most 65,536 bytes"), (b"title = 3", "title: expected a text, got 3")],
)
def test_a_map_that_cannot_be_read_is_named(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    with pytest.raises(TableError) as caught:
        load(str(path))
    assert told in str(caught.value)
    assert str(path) in str(caught.value)


def test_an_unknown_map_names_those_that_there_are() -> None:
    with pytest.raises(TableError, match="witmotion-wtvb01-485"):
        load("witmotion")


@pytest.mark.parametrize("name", included_maps())
def test_an_included_map_is_one_read_and_cites_its_source(name: str) -> None:
    made = load(name)
    assert all(len(one.reads) == 1 for one in made.groups)
    assert len(made.source) > 20


def test_the_wtvb01_is_read_as_its_manual_says() -> None:
    """Section 6.4: signed; velocity in mm/s and displacement in µm as they are, °C in hundredths, Hz in tenths."""
    (vibration,) = load("witmotion-wtvb01-485").groups
    told = {0x3A: 3, 0x3B: 4, 0x3C: 5, 0x40: -250, 0x41: 120, 0x42: 30_000, 0x43: 7, 0x44: 497, 0x45: 50, 0x46: 1000}
    (read,) = vibration.reads
    row = vibration.decode([[told.get(read.address + at, 0) & 0xFFFF for at in range(read.count)]])
    expected = [3, 4, 5, -2.5, 120, 30_000, 7, 49.7, 5.0, 100.0]
    np.testing.assert_allclose(row, np.array(expected, dtype=np.float32))
    assert [one.unit for one in vibration.channels] == ["mm/s"] * 3 + ["°C"] + ["µm"] * 3 + ["Hz"] * 3


def test_the_qm30vt2_says_what_another_program_read_from_a_real_one() -> None:
    """The reading that Golioth's reference design shows, as registers by its own table, comes out as it does there."""
    (vibration,) = load("banner-qm30vt2").groups
    told = {5201: 17_998, 5203: 2196, 5205: 134, 5206: 78, 5207: 90, 5208: 97, 5209: 122, 5210: 248, 5211: 7}
    told |= {5212: 3231, 5213: 25_063, 5214: 3986, 5215: 12_258, 5217: 25_453, 5219: 190, 5220: 19, 5221: 7}
    (read,) = vibration.reads
    row = vibration.decode([[told.get(read.address + at, 0) for at in range(read.count)]])
    said = dict(zip((one.name for one in vibration.channels), row.tolist(), strict=True))
    assert said == pytest.approx(
        {
            "velocity_rms_z": 17.998,
            "temperature": 21.96,
            "velocity_rms_x": 0.134,
            "acceleration_peak_z": 0.078,
            "acceleration_peak_x": 0.09,
            "peak_frequency_z": 9.7,
            "peak_frequency_x": 12.2,
            "acceleration_rms_z": 0.248,
            "acceleration_rms_x": 0.007,
            "kurtosis_z": 3.231,
            "kurtosis_x": 25.063,
            "crest_factor_z": 3.986,
            "crest_factor_x": 12.258,
            "velocity_peak_z": 25.453,
            "velocity_peak_x": 0.19,
            "acceleration_rms_hf_z": 0.019,
            "acceleration_rms_hf_x": 0.007,
        },
        rel=1e-6,
    )


def test_every_included_map_is_in_the_documentation_with_each_of_its_channels() -> None:
    text = (ROOT / "docs" / "modbus.md").read_text(encoding="utf-8")
    for name in included_maps():
        section = text.partition(f"### {load(name).title}")[2].partition("\n## ")[0].partition("\n### ")[0]
        assert f"`{name}`" in section
        for one in load(name).groups[0].channels:
            cells = f"| {one.address} | {one.address:#06x} | {one.type} | {one.scale:g} | {one.unit or '–'} |"
            assert f"| `{one.name}` {cells}" in section, f"{name}: {one.name} {cells}"
