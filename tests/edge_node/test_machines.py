from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fedmq_edge_node.machines import (
    BALL,
    BEARINGS,
    CAGE,
    INNER,
    OUTER,
    Bearing,
    Machine,
    Machines,
    ZoneLimits,
    bearing_of,
    load_machines,
)
from fedmq_edge_node.operating import OperatingSettings
from fedmq_protocol.settings import SettingsError, document
from hypothesis import given
from hypothesis import strategies as st

EXAMPLE = Path(__file__).parents[2] / "edge_node" / "machines.example.toml"


@st.composite
def bearings(draw: st.DrawFn) -> Bearing:
    pitch_mm = draw(st.floats(5, 1000))
    return Bearing(
        elements=draw(st.integers(3, 60)),
        ball_diameter_mm=pitch_mm * draw(st.floats(0.02, 0.5)),
        pitch_diameter_mm=pitch_mm,
        contact_angle_deg=draw(st.floats(0, 45)),
    )


def test_the_example_file_is_what_is_rendered() -> None:
    assert EXAMPLE.read_text() == document(Machines)


def test_the_example_file_loads_as_one_machine_with_every_default() -> None:
    assert load_machines(EXAMPLE) == {"pump-3": Machine(name="pump-3")}


def test_defect_rates_are_those_that_cwru_gives_for_its_bearings() -> None:
    # In multiples of the shaft speed, from the data centre's page; its ball factor counts strikes on both races.
    drive_end = BEARINGS["6205"].defect_hz(1.0)
    assert drive_end[INNER] == pytest.approx(5.4152, abs=2e-3)
    assert drive_end[OUTER] == pytest.approx(3.5848, abs=2e-3)
    assert drive_end[CAGE] == pytest.approx(0.39828, abs=2e-4)
    assert drive_end[BALL] == pytest.approx(4.7135, abs=2e-3)
    fan_end = BEARINGS["6203"].defect_hz(1.0)
    assert fan_end[INNER] == pytest.approx(4.9469, abs=2e-3)
    assert fan_end[OUTER] == pytest.approx(3.0530, abs=2e-3)
    assert fan_end[CAGE] == pytest.approx(0.3817, abs=2e-4)
    assert fan_end[BALL] == pytest.approx(3.9874, abs=2e-3)


@given(bearings(), st.floats(0.1, 500))
def test_defect_rates_keep_their_laws(bearing: Bearing, shaft_hz: float) -> None:
    rates = bearing.defect_hz(shaft_hz)
    # Every element passes each race once for every turn between cage and race.
    assert rates[OUTER] + rates[INNER] == pytest.approx(bearing.elements * shaft_hz)
    assert rates[OUTER] == pytest.approx(bearing.elements * rates[CAGE])
    assert 0 < rates[CAGE] < shaft_hz / 2 < rates[INNER]
    double = bearing.defect_hz(2 * shaft_hz)
    assert all(double[where] == pytest.approx(2 * rate) for where, rate in rates.items())


RATINGS_KN = {
    "6203": 9.55,
    "6204": 12.8,
    "6205": 14.0,
    "6206": 19.5,
    "6207": 25.7,
    "6208": 29.1,
    "6210": 35.0,
    "6211": 43.5,
    "6212": 52.5,
    "6304": 15.9,
    "6306": 26.7,
    "6307": 33.5,
    "6308": 40.5,
    "6309": 53.0,
    "6310": 62.0,
    "6311": 71.5,
    "6312": 82.0,
}
"""Basic dynamic load ratings, in kN, as the makers' catalogues have them (NSK, NTN)."""


@pytest.mark.parametrize("name", BEARINGS)
def test_geometry_gives_the_load_rating_that_catalogues_state(name: str) -> None:
    bearing = BEARINGS[name]
    # ISO 281: C = 1.3 fc Z^(2/3) D^1.8, with fc over Dw/Dpw for single-row deep-groove bearings; D in mm, C in N.
    shares = [0.14, 0.16, 0.18, 0.20, 0.22, 0.24, 0.26, 0.28]
    fc = np.interp(bearing.ratio, shares, [58.8, 59.6, 59.9, 59.9, 59.6, 59.0, 58.2, 57.1])
    rating_kn = 1.3 * fc * bearing.elements ** (2 / 3) * bearing.ball_diameter_mm**1.8 / 1000
    assert rating_kn == pytest.approx(RATINGS_KN[name], rel=0.015)


TIMKEN = {
    "6203": (0.382, 1.994, 3.053, 4.947),
    "6204": (0.382, 1.992, 3.052, 4.948),
    "6205": (0.397, 2.328, 3.574, 5.426),
    "6206": (0.396, 2.311, 3.568, 5.432),
    "6207": (0.396, 2.303, 3.565, 5.435),
    "6208": (0.394, 2.256, 3.547, 5.453),
    "6210": (0.409, 2.665, 4.093, 5.907),
    "6211": (0.408, 2.620, 4.078, 5.922),
    "6212": (0.407, 2.584, 4.066, 5.934),
    "6304": (0.368, 1.757, 2.574, 4.426),
    "6307": (0.376, 1.888, 3.006, 4.994),
    "6308": (0.378, 1.925, 3.023, 4.977),
    "6309": (0.380, 1.955, 3.037, 4.963),
    "6310": (0.381, 1.981, 3.047, 4.953),
    "6311": (0.382, 2.002, 3.057, 4.943),
    "6312": (0.383, 2.020, 3.064, 4.936),
}
"""Cage, ball spin, outer and inner race, per turn: Ball Bearing Housed Unit Catalog, table A-9. Its 6306 has seven
balls, and is another bearing than ours."""
LARGER_BALLS = {"6208": 12.7, "6307": 14.288, "6308": 15.875}
"""mm, which come to that maker's coefficients."""


@pytest.mark.parametrize("name", TIMKEN)
def test_defect_rates_are_those_of_a_makers_catalogue(name: str) -> None:
    cage, spin, outer, inner = TIMKEN[name]
    ours = BEARINGS[name]
    if name in LARGER_BALLS:
        rates = ours.defect_hz(1.0)
        assert rates[OUTER] == pytest.approx(outer, rel=0.02)  # as far as lines are looked for
        ours = replace(ours, ball_diameter_mm=LARGER_BALLS[name])
    rates = ours.defect_hz(1.0)
    tolerance = 0.004 if name == "6205" else 0.0015
    assert (rates[CAGE], rates[OUTER], rates[INNER]) == pytest.approx((cage, outer, inner), rel=tolerance)
    # A ball's defect strikes twice a spin.
    assert rates[BALL] == pytest.approx(2 * spin, rel=4 * tolerance)


def test_a_type_number_is_found_with_its_suffix_and_an_unknown_one_is_not() -> None:
    assert bearing_of("6205-2RS") == bearing_of(" 6205/C3") == bearing_of("6205zz") == BEARINGS["6205"]
    assert bearing_of("62050") is None
    assert bearing_of("NU205") is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"elements": 2}, "elements: expected 3 to 200"),
        ({"ball_diameter_mm": 39.04}, "ball_diameter_mm: expected above 0 and below the pitch diameter"),
        ({"contact_angle_deg": 90}, "contact_angle_deg: expected 0 to below 90"),
    ],
)
def test_a_bearing_that_cannot_be_is_refused(change: dict[str, float], said: str) -> None:
    geometry = {"elements": 9, "ball_diameter_mm": 7.94, "pitch_diameter_mm": 39.04, **change}
    with pytest.raises(ValueError, match=said):
        Bearing(**geometry)  # type: ignore[arg-type]


def test_stated_geometry_wins_over_the_type_number() -> None:
    machine = Machine(name="m", bearing="6208", bearing_elements=9, bearing_ball_mm=12.7, bearing_pitch_mm=60.0)
    assert machine.geometry == Bearing(elements=9, ball_diameter_mm=12.7, pitch_diameter_mm=60.0)
    assert Machine(name="m", bearing="6208").geometry == BEARINGS["6208"]
    assert Machine(name="m").geometry is None
    # A type that is not in the table needs its geometry, and then is only a name.
    assert (
        Machine(name="m", bearing="NU205", bearing_elements=13, bearing_ball_mm=7.5, bearing_pitch_mm=38.5).geometry
        is not None
    )


def test_zone_limits_are_those_of_the_group_and_foundation_unless_own_ones_are_set() -> None:
    assert Machine(name="m").zone_limits is None
    assert Machine(name="m", iso_group=1).zone_limits == (2.3, 4.5, 7.1)
    assert Machine(name="m", iso_group=1, foundation="flexible").zone_limits == (3.5, 7.1, 11.0)
    assert Machine(name="m", iso_group=2).zone_limits == (1.4, 2.8, 4.5)
    assert Machine(name="m", iso_group=2, foundation="flexible").zone_limits == (2.3, 4.5, 7.1)
    assert Machine(name="m", iso_group=2, limits_mm_s=(1.0, 2.0, 3.0)).zone_limits == ZoneLimits(1.0, 2.0, 3.0)


def test_all_mistakes_of_a_file_are_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "machines.toml"
    path.write_text(
        """
[[machine]]
name = "a/b"
iso_group = 3

[[machine]]
name = "fan"
spede_rpm = 3
[machine.operating]
dwell_seconds = -1
"""
    )
    with pytest.raises(SettingsError) as caught:
        load_machines(path)
    said = str(caught.value)
    assert "machine[1].name: expected 1 to 63 letters, digits, '.', '_' or '-', got \"a/b\"" in said
    assert "machine[1].iso_group: expected one of 1, 2, got 3" in said
    assert "machine[2].spede_rpm: no such setting; did you mean machine[2].speed_rpm?" in said or "spede_rpm" in said
    assert "machine[2].operating.dwell_seconds: expected a number from 0 to 86,400, got -1" in said


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"bearing": "9999"}, r'bearing: no geometry is known of "9999"; known are 6203, .*set bearing_elements'),
        ({"bearing_elements": 9}, "bearing_ball_mm: required where there is a bearing_elements"),
        (
            {"bearing_elements": 9, "bearing_ball_mm": 8.0, "bearing_pitch_mm": 8.0},
            "bearing_ball_mm: expected less than bearing_pitch_mm",
        ),
        ({"limits_mm_s": (1.0, 2.0)}, "limits_mm_s: expected 3 limits"),
        ({"limits_mm_s": (1.0, 1.0, 2.0)}, "limits_mm_s: expected each above the one before"),
        ({"speed_from": "tacho"}, 'speed_sensor: required where speed_from = "tacho"'),
        ({"speed_sensor": "x"}, "speed_sensor: has no effect without"),
    ],
)
def test_keys_that_do_not_fit_together_are_a_mistake(keys: dict[str, object], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        Machine(name="m", **keys)  # type: ignore[arg-type]


def test_a_name_stands_once() -> None:
    with pytest.raises(SettingsError, match=r'machine\[2\]\.name: expected every name once, got "m" again'):
        Machines(machine=(Machine(name="m"), Machine(name="m")))


def test_a_measured_speed_is_counted_or_read() -> None:
    pulses = (np.arange(4_000) / 4_000.0 * 50 % 1 < 0.2) * 1.0
    tacho = Machine(name="m", speed_from="tacho", speed_sensor="s", pulses_per_turn=2)
    assert tacho.measured_hz(pulses, 4_000.0) == pytest.approx(25.0, rel=0.01)
    register = Machine(name="m", speed_from="modbus", speed_sensor="s", speed_scale=0.1)
    assert register.measured_hz(np.array([14_970.0, 0.0, 14_970.0, np.nan]), 1.0) == pytest.approx(24.95)
    # Backwards is as fast.
    assert register.measured_hz(np.array([-14_970.0]), 1.0) == pytest.approx(24.95)
    for machine in (tacho, register, Machine(name="m", speed_rpm=1500)):
        assert machine.measured_hz(np.zeros(0), 1.0) is None


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"stopped_below_g": 0.01}, "running_from_g: required"),
        ({"stopped_below_g": 0.02, "running_from_g": 0.01}, "stopped_below_g: expected at most running_from_g"),
        ({"speed_bands_rpm": (1500.0, 1000.0)}, "speed_bands_rpm: expected each edge above the one before"),
    ],
)
def test_operating_settings_that_do_not_fit_together_are_a_mistake(keys: dict[str, object], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        OperatingSettings(**keys)  # type: ignore[arg-type]
