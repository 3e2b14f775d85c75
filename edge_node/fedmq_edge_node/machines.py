"""The machines of a plant: what each is, how fast it turns, which bearing carries it, and what it may vibrate.

Owns the settings of a machine, the geometry of rolling bearings with the frequencies that follow from it, and the
zone limits of ISO 20816-3. Refuses to know signals and alerts: `condition` measures, others judge over time.

The frequencies are kinematics of a bearing whose outer ring stands still and whose elements roll without slipping. Real
elements slip by 1 to 2 % (Randall, Antoni 2011, Mech. Syst. Signal Process. 25(2), 485-520), so that whoever looks for
a line looks beside it too. The inside of a bearing is its maker's affair: no standard states it, and two makers'
bearings of one type number may differ by a ball. Geometry that a machine states wins over the table here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from math import cos, radians
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
from fedmq_protocol.settings import Table, load, named
from msgspec import Meta
from numpy.typing import NDArray

from fedmq_edge_node.operating import OperatingSettings, tacho_hz

__all__ = [
    "BALL",
    "BEARINGS",
    "CAGE",
    "DEFECTS",
    "INNER",
    "ISO_LIMITS",
    "OUTER",
    "Bearing",
    "Machine",
    "Machines",
    "ZoneLimits",
    "bearing_of",
    "load_machines",
]

OUTER, INNER, BALL, CAGE = "outer race", "inner race", "ball", "cage"
DEFECTS = (OUTER, INNER, BALL, CAGE)


@dataclass(frozen=True, kw_only=True)
class Bearing:
    """Geometry of a rolling bearing. Raises ValueError for one that cannot be."""

    elements: int
    ball_diameter_mm: float
    """Of a ball or a roller."""
    pitch_diameter_mm: float
    """Of the circle through the elements' centres."""
    contact_angle_deg: float = 0.0

    def __post_init__(self) -> None:
        if not 3 <= self.elements <= 200:
            raise ValueError(f"elements: expected 3 to 200, got {self.elements}")
        if not 0 < self.ball_diameter_mm < self.pitch_diameter_mm:
            raise ValueError(
                f"ball_diameter_mm: expected above 0 and below the pitch diameter ({self.pitch_diameter_mm:g} mm), "
                f"got {self.ball_diameter_mm:g}"
            )
        if not 0 <= self.contact_angle_deg < 90:
            raise ValueError(f"contact_angle_deg: expected 0 to below 90, got {self.contact_angle_deg:g}")

    @property
    def ratio(self) -> float:
        """Ball over pitch diameter, as the contact angle sees it."""
        return self.ball_diameter_mm / self.pitch_diameter_mm * cos(radians(self.contact_angle_deg))

    def defect_hz(self, shaft_hz: float) -> dict[str, float]:
        """Strikes a second of a point defect, by where it is (Harris, Kotzalas 2006, Rolling Bearing Analysis;
        McFadden, Smith 1984, J. Sound Vib. 96(1), 69-82):

        - outer race, n/2 f (1 - r): BPFO; inner race, n/2 f (1 + r): BPFI; cage, f/2 (1 - r): FTF;
        - ball, D/d f (1 - r^2): twice the ball's spin (BSF), as its defect strikes both races in one turn.

        r is d/D cos a. Linear in the shaft's speed f.
        """
        ratio = self.ratio
        return {
            OUTER: self.elements / 2 * shaft_hz * (1 - ratio),
            INNER: self.elements / 2 * shaft_hz * (1 + ratio),
            BALL: self.pitch_diameter_mm / self.ball_diameter_mm * shaft_hz * (1 - ratio**2),
            CAGE: shaft_hz / 2 * (1 - ratio),
        }


def _deep_groove(elements: int, ball_mm: float, pitch_mm: float) -> Bearing:
    return Bearing(elements=elements, ball_diameter_mm=ball_mm, pitch_diameter_mm=pitch_mm)


BEARINGS: dict[str, Bearing] = {
    "6203": _deep_groove(8, 6.746, 28.5),
    "6204": _deep_groove(8, 7.938, 33.5),
    "6205": _deep_groove(9, 7.94, 39.04),
    "6206": _deep_groove(9, 9.525, 46.0),
    "6207": _deep_groove(9, 11.112, 53.5),
    "6208": _deep_groove(9, 11.906, 60.0),
    "6210": _deep_groove(10, 12.7, 70.0),
    "6211": _deep_groove(10, 14.288, 77.5),
    "6212": _deep_groove(10, 15.875, 85.0),
    "6304": _deep_groove(7, 9.525, 36.0),
    "6306": _deep_groove(8, 11.906, 51.0),
    "6307": _deep_groove(8, 13.494, 57.5),
    "6308": _deep_groove(8, 15.081, 65.0),
    "6309": _deep_groove(8, 17.462, 72.5),
    "6310": _deep_groove(8, 19.05, 80.0),
    "6311": _deep_groove(8, 20.638, 87.5),
    "6312": _deep_groove(8, 22.225, 95.0),
}
"""Common deep-groove ball bearings. 6203 and 6205: CWRU Bearing Data Center, for SKF's. The others: elements half-way
between bore and outside diameter (ISO 15), and such balls, in the inch sizes that are made, as give the basic dynamic
load rating of makers' catalogues by the formula of ISO 281; the tests hold them against each other, and against the
frequency coefficients that Timken states (Ball Bearing Housed Unit Catalog, table A-9): 12 of the 17 agree to 0.15 %,
the 6205 to 0.3 % in its races. Makers differ in the others: Timken's 6208, 6307 and 6308 have larger balls (races
differ by up to 2 %, the ball's rate by up to 7 %), its 6306 seven of them and not eight (19 %). Better state what your
maker says."""


class ZoneLimits(NamedTuple):
    """Where zones meet, in mm/s RMS."""

    a_b: float
    b_c: float
    c_d: float


ISO_LIMITS: dict[tuple[int, str], ZoneLimits] = {
    (1, "rigid"): ZoneLimits(2.3, 4.5, 7.1),
    (1, "flexible"): ZoneLimits(3.5, 7.1, 11.0),
    (2, "rigid"): ZoneLimits(1.4, 2.8, 4.5),
    (2, "flexible"): ZoneLimits(2.3, 4.5, 7.1),
}
"""Velocity on bearing housings by machine group and foundation: ISO 10816-3:2009, tables A.1 (group 1) and A.2 (group
2), which ISO 20816-3:2022 goes on with in its own tables A.1 and A.2. Held against public sources, for the standard's
text itself was not at hand: docs/alerts-day-one.md names them, and what the standard does not cover. The numbers alone:
the text, which says what they hold for and how to measure, is to be had from ISO."""

_NAME = Meta(
    pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z",
    extra={"expected": "1 to 63 letters, digits, '.', '_' or '-'"},
)
_WORD = Meta(min_length=1, max_length=64)
_Band = Annotated[float, Meta(gt=0, le=1e6)]


@dataclass(frozen=True, kw_only=True)
class Machine(Table):
    """A machine that is watched."""

    name: Annotated[
        str,
        _NAME,
        Meta(
            examples=["pump-3"],
            description="Name of the machine, as the bridge's settings call it. One of its own at this gateway.",
        ),
    ]
    kind: Annotated[str, _WORD, Meta(description="What it is, such as motor, pump, fan or gearbox.")] = "motor"
    site: Annotated[str | None, _WORD, Meta(examples=["hall-2"], description="Where it stands.")] = None
    tags: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=32)], ...],
        Meta(max_length=16, examples=[["line-2"]], description="Whatever else it should be found by."),
    ] = ()
    sensors: Annotated[
        tuple[Annotated[str, _WORD], ...],
        Meta(
            max_length=32,
            examples=[["pump-3-drive-end"]],
            description="Its vibration sensors, by the names in the bridge's settings. Empty: all of this machine.",
        ),
    ] = ()
    speed_rpm: Annotated[
        float | None,
        Meta(
            gt=0,
            le=200_000,
            examples=[1797],
            description="Turns a minute of the shaft in the bearing. Needed for the bearing's defect frequencies,"
            " unless speed_from measures it. With slip: what the shaft does, not what the mains would have.",
        ),
    ] = None
    speed_from: Annotated[
        Literal["none", "tacho", "modbus"],
        Meta(
            description='Where the speed is measured: "tacho" is a sensor whose pulses are counted, "modbus" one whose'
            ' value is the speed (a register that the bridge reads, or any other number). "none" takes speed_rpm.'
        ),
    ] = "none"
    speed_sensor: Annotated[
        str | None,
        _WORD,
        Meta(examples=["pump-3-speed"], description="Name in the bridge's settings of the sensor of the speed."),
    ] = None
    speed_scale: Annotated[
        float, Meta(gt=0, le=1e6, description='Turns a minute for each step of the value, with speed_from = "modbus".')
    ] = 1.0
    pulses_per_turn: Annotated[
        float, Meta(gt=0, le=10_000, description='Pulses for each turn of the shaft, with speed_from = "tacho".')
    ] = 1.0
    bearing: Annotated[
        str | None,
        Meta(
            min_length=1,
            max_length=32,
            examples=["6205"],
            description="Type number of its rolling bearing, such as 6205 or 6205-2RS: `fedmq machine bearings` lists"
            " those that are known. For another one state its geometry, in the four keys below.",
        ),
    ] = None
    bearing_elements: Annotated[
        int | None, Meta(ge=3, le=200, examples=[9], description="Balls or rollers in the bearing.")
    ] = None
    bearing_ball_mm: Annotated[
        float | None, Meta(gt=0, le=1000, examples=[7.94], description="Diameter of a ball or roller, in mm.")
    ] = None
    bearing_pitch_mm: Annotated[
        float | None,
        Meta(gt=0, le=10_000, examples=[39.04], description="Diameter of the circle through their centres, in mm."),
    ] = None
    bearing_angle_deg: Annotated[
        float, Meta(ge=0, lt=90, description="Contact angle of the bearing, in degrees. 0 for a deep-groove bearing.")
    ] = 0.0
    iso_group: Annotated[
        Literal[1, 2] | None,
        Meta(
            examples=[2],
            description="Group of ISO 20816-3 whose zone limits hold: 1 for machines of 300 kW to 50 MW, 2 for 15 to"
            " 300 kW. For any other machine set limits_mm_s.",
        ),
    ] = None
    foundation: Annotated[
        Literal["rigid", "flexible"],
        Meta(
            description="How it stands: rigid where the lowest natural frequency of machine and foundation, in the"
            " direction measured, lies well above the speed; else flexible."
        ),
    ] = "rigid"
    limits_mm_s: Annotated[
        tuple[_Band, ...],
        Meta(
            max_length=3,
            examples=[[1.4, 2.8, 4.5]],
            description="Own limits between the zones A and B, B and C, C and D, in mm/s RMS from 10 to 1,000 Hz. They"
            " win over iso_group.",
        ),
    ] = ()
    defect_limit: Annotated[
        float,
        Meta(
            gt=1,
            le=1000,
            description="Height of a bearing's line in the envelope's spectrum, in multiples of what is around it, from"
            " which on it is a defect. Healthy ones that were simulated stay below 2.6.",
        ),
    ] = 3.5
    operating: OperatingSettings = field(default_factory=OperatingSettings)

    def check(self) -> Iterator[tuple[str, str]]:
        yield from named("name", self.name)
        if self.speed_from != "none" and self.speed_sensor is None:
            yield "speed_sensor", f'required where speed_from = "{self.speed_from}"'
        if self.speed_from == "none" and self.speed_sensor is not None:
            yield "speed_sensor", 'has no effect without speed_from = "tacho" or "modbus"; set that, or take it out'
        geometry = ("bearing_elements", "bearing_ball_mm", "bearing_pitch_mm")
        given = [key for key in geometry if getattr(self, key) is not None]
        for key in geometry:
            if given and key not in given:
                yield key, f"required where there is a {given[0]}"
        if self.bearing is not None and not given and bearing_of(self.bearing) is None:
            known = ", ".join(BEARINGS)
            yield (
                "bearing",
                f'no geometry is known of "{self.bearing}"; known are {known}. For another one set '
                + ", ".join(geometry),
            )
        if self.bearing_ball_mm and self.bearing_pitch_mm and self.bearing_ball_mm >= self.bearing_pitch_mm:
            yield "bearing_ball_mm", f"expected less than bearing_pitch_mm ({self.bearing_pitch_mm:g})"
        if self.limits_mm_s and len(self.limits_mm_s) != 3:
            yield "limits_mm_s", f"expected 3 limits (A/B, B/C, C/D), got {len(self.limits_mm_s)}"
        elif any(upper <= lower for lower, upper in pairwise(self.limits_mm_s)):
            yield "limits_mm_s", f"expected each above the one before, got {list(self.limits_mm_s)}"

    @property
    def geometry(self) -> Bearing | None:
        """Of its bearing: what is stated, else what the table says of the type number."""
        if self.bearing_elements is None or self.bearing_ball_mm is None or self.bearing_pitch_mm is None:
            return None if self.bearing is None else bearing_of(self.bearing)
        return Bearing(
            elements=self.bearing_elements,
            ball_diameter_mm=self.bearing_ball_mm,
            pitch_diameter_mm=self.bearing_pitch_mm,
            contact_angle_deg=self.bearing_angle_deg,
        )

    @property
    def shaft_hz(self) -> float | None:
        """Turns a second as stated, None where nothing is."""
        return None if self.speed_rpm is None else self.speed_rpm / 60.0

    def measured_hz(self, values: NDArray[np.float64], rate_hz: float) -> float | None:
        """Turns a second from a stretch of its speed's sensor, `(n,)`; None where that tells nothing, or none is set.

        A tacho's pulses are counted; of a register's values the median is taken, as one may be misread.
        """
        if self.speed_from == "tacho":
            return tacho_hz(values, rate_hz, self.pulses_per_turn) if len(values) else None
        told = values[np.isfinite(values)]
        if self.speed_from == "none" or not len(told):
            return None
        return abs(float(np.median(told))) * self.speed_scale / 60.0

    @property
    def zone_limits(self) -> ZoneLimits | None:
        """Own limits, else those of its group in ISO 20816-3, else None: its vibration is not judged by zones."""
        if self.limits_mm_s:
            return ZoneLimits(*self.limits_mm_s)
        return None if self.iso_group is None else ISO_LIMITS[self.iso_group, self.foundation]


@dataclass(frozen=True, kw_only=True)
class Machines(Table):
    """Machines that fedmq watches. `fedmq machine add` appends to it, and `fedmq machine show` says what follows."""

    machine: Annotated[
        tuple[Machine, ...],
        Meta(
            max_length=256,
            description="A machine, each begun by [[machine]].",
            extra={"stated": True},
        ),
    ] = ()

    def check(self) -> Iterator[tuple[str, str]]:
        seen: set[str] = set()
        for place, machine in enumerate(self.machine, start=1):
            if machine.name in seen:
                yield f"machine[{place}].name", f'expected every name once, got "{machine.name}" again'
            seen.add(machine.name)


def bearing_of(type_number: str) -> Bearing | None:
    """Geometry by type number; what follows the digits (seals, cage, clearance) does not change it. None if unknown."""
    digits = type_number.strip().upper()
    digits = digits[: len(digits) - len(digits.lstrip("0123456789"))]
    return BEARINGS.get(digits)


def load_machines(path: Path) -> dict[str, Machine]:
    """The machines of a machines.toml by name, in the file's order. Raises SettingsError with every mistake."""
    return {machine.name: machine for machine in load(Machines, path).machine}
