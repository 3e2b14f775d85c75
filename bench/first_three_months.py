"""The first three months of forty motors, played: every command of docs/first-three-months.md with what it says.

The motors are *simulated*. Everything else is the programs themselves: `fedmq machine`, `replay` (through a bridge of
its own into the store), `watch run`, `alert`, `label`, three gateways and a coordinator over a broker. So that three
months take minutes, each command runs with a clock that this program sets and that goes on from there; nothing else of
it is changed. Of a day some seconds are played, and what is normal is learnt from so many windows fewer (`WATCH`).

`--write` puts each command and its output between the page's marks, and draws the page's picture from the evidence of
an alert. Without it what came is printed.
"""

from __future__ import annotations

import os

os.environ["OPENBLAS_NUM_THREADS"] = "1"

import argparse
import contextlib
import json
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

PAGE = Path(__file__).resolve().parents[1] / "docs" / "first-three-months.md"
PICTURE = PAGE.with_name("first-three-months.svg")
FIRST_DAY = datetime(2026, 9, 1, 8, 0, tzinfo=UTC).timestamp()
HOUR, DAY = 3600.0, 86_400.0
MOTORS = tuple(f"motor-{number:02d}" for number in range(1, 41))
SHIFT_SECONDS = 12.0
"""Of signal a day, of each motor."""
RATE_HZ = 12_000.0
WHO = "ann"
WATCH = """\
store = "bridge.sqlite"
machines = "machines.toml"
state_dir = "watch"
gateway_state = "gateway"
faults = ["inner_race", "ball", "outer_race"]
every_seconds = 2.0

[judging]
learning_windows = 40       # 1,000 where all of a day is heard
learning_hours = 120
drift_windows = 100         # 8,640 where all of a day is heard
"""


BLOCKS = (
    *("add", "list", "settings", "first status", "first alerts", "first show", "zone show", "ack"),
    *("confirm", "event", "other", "learning", "learnt", "false show", "dismiss", "after dismissal"),
    *("month show", "month confirm", "month event", "labels", "drift"),
    *("tasks", "report", "promote", "named list", "named show", "last status"),
)
"""The page's marks, in their order."""


# --- a command with a clock of its own -------------------------------------------------------------------------------


def run_at(at: float, lines: Sequence[Sequence[str]]) -> int:
    """`fedmq` with these words, one line after another, in this process, whose clock starts at `at`."""
    import datetime as clocks

    behind = time.time() - at
    clock = time.time

    class Moved(datetime):
        @classmethod
        def now(cls, tz: clocks.tzinfo | None = None) -> Moved:
            return cls.fromtimestamp(clock() - behind, tz)

    # Before anything of fedmq is loaded, which takes them from there.
    vars(time)["time"] = lambda: clock() - behind
    vars(clocks)["datetime"] = Moved
    from fedmq.cli import main

    for words in lines:
        if status := main(list(words)):
            return int(status)
    return 0


def started_at(at: float, lines: Sequence[Sequence[str]]) -> list[str]:
    return [sys.executable, str(Path(__file__).resolve()), "--at", repr(at), "--lines", json.dumps(lines)]


# --- the plant -------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Motor:
    """A simulated motor: how it is now decides what is heard of it."""

    name: str
    shaft_hz: float
    resonance_hz: float
    rng: np.random.Generator
    label: str = "normal"
    severity: float = 0.0
    load: float = 1.0
    unbalance_mm_s: float = 0.0
    """RMS of a velocity at the shaft's rate, on top of the rest."""

    def heard(self, seconds: float) -> Floats:
        from fedmq.simulator import simulate_vibration

        signal_g = simulate_vibration(
            label=self.label,
            severity=self.severity,
            shaft_hz=self.shaft_hz,
            load=self.load,
            resonance_hz=self.resonance_hz,
            seconds=seconds,
            rng=self.rng,
        )
        height_g = self.unbalance_mm_s * np.sqrt(2) * 2 * np.pi * self.shaft_hz / 9806.65
        at = np.arange(len(signal_g)) / RATE_HZ
        return (signal_g + height_g * np.sin(2 * np.pi * self.shaft_hz * at)).astype(np.float32)


@dataclass(kw_only=True)
class Plant:
    """The folder of a plant, its motors, and what time it is there."""

    folder: Path
    now: float = FIRST_DAY
    blocks: dict[str, str] = field(default_factory=dict)
    """What each of the page's marks holds."""
    motors: dict[str, Motor] = field(default_factory=dict)
    played: int = 0

    def __post_init__(self) -> None:
        for place, name in enumerate(MOTORS):
            rng = np.random.default_rng((place, 0x40))
            shaft_hz, resonance_hz = rng.uniform(29.3, 29.7), 3000.0 * rng.uniform(0.85, 1.15)
            self.motors[name] = Motor(name=name, shaft_hz=shaft_hz, resonance_hz=resonance_hz, rng=rng)

    def fedmq(self, *lines: Sequence[str]) -> str:
        """What they say, on both channels; they must succeed."""
        environment = os.environ | {"TZ": "UTC", "LOGNAME": WHO, "FEDMQ_BOOK": "watch/alerts.sqlite", "COLUMNS": "110"}
        done = subprocess.run(
            started_at(self.now, lines),
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{[shlex.join(words) for words in lines]}: status {done.returncode}\n{done.stdout}")
        return done.stdout

    def show(self, name: str, *commands: str) -> str:
        """Run commands as they stand on the page, `| head -N` and `| grep WORD` included, and keep what they say."""
        text = ""
        for command in commands:
            words, _, rest = command.partition(" | ")
            said = self.fedmq(shlex.split(words)[1:])
            lines = said.splitlines()
            if found := re.fullmatch(r"head -(\d+)", rest):
                lines = lines[: int(found[1])]
            elif rest:
                lines = [line for line in lines if rest.removeprefix("grep ") in line]
            text += "\n".join([f"$ {command}", *lines, ""])
            self.now += 60
        self.blocks[name] = text
        return text

    def hear(self, names: Sequence[str] = MOTORS, seconds: float = SHIFT_SECONDS) -> None:
        """So much of each motor, in the store from now on, and judged."""
        lines = []
        for name in names:
            motor = self.motors[name]
            self.played += 1
            place = self.folder / "recordings" / f"{self.played:05d}" / motor.label
            place.mkdir(parents=True)
            np.save(place / f"{name}.npy", motor.heard(seconds), allow_pickle=False)
            (place / f"{name}.toml").write_text(f"sampling_rate_hz = {RATE_HZ!r}\n")
            begin = datetime.fromtimestamp(self.now, UTC).isoformat()
            line = [
                "replay",
                str(place.parent),
                "--store",
                "bridge.sqlite",
                "--machine",
                name,
                "--sensor",
                f"{name}-de",
            ]
            lines.append([*line, "--from", begin])
        self.now += seconds + 5
        self.fedmq(*lines)
        self.watch()

    def watch(self) -> None:
        self.fedmq(["watch", "run", "--config", "watch.toml", "--until-done", "--set", "log_level=error"])

    def on(self, day: float, hour: float = 8.0) -> None:
        """Day 1 is the first one."""
        self.now = max(self.now, FIRST_DAY - 8 * HOUR + (day - 1) * DAY + hour * HOUR)


def alert_of(plant: Plant, machine: str) -> int:
    """The newest alert of a machine."""
    return alerts_of(plant, machine)[0]


def alerts_of(plant: Plant, machine: str) -> list[int]:
    """Newest first."""
    said = plant.fedmq(["alert", "list", "--machine", machine, "--all", "--json"])
    return [int(alert["id"]) for alert in json.loads(said)]


# --- the story -------------------------------------------------------------------------------------------------------

ADD = "--bearing 6205 --speed-rpm 1770 --iso-group 2"


def day_one(plant: Plant) -> None:
    plant.show("add", f"fedmq machine add motor-01 {ADD}")
    plant.fedmq(*(["machine", "add", name, *shlex.split(ADD)] for name in MOTORS[1:]))
    plant.show("list", "fedmq machine list | head -4")
    (plant.folder / "watch.toml").write_text(WATCH)
    plant.blocks["settings"] = WATCH
    # What is the matter on the first day already.
    plant.motors["motor-07"].label, plant.motors["motor-07"].severity = "outer_race", 10.0
    plant.motors["motor-19"].unbalance_mm_s = 3.4
    plant.hear(seconds=30.0)
    plant.show("first status", "fedmq watch status | head -6")
    plant.show("first alerts", "fedmq alert list")
    number = alert_of(plant, "motor-07")
    plant.show("first show", f"fedmq alert show {number}")
    plant.show("zone show", f"fedmq alert show {alert_of(plant, 'motor-19')}")
    plant.show("ack", f"fedmq alert ack {number}")
    plant.watch()


def week_one(plant: Plant) -> None:
    plant.on(2, 14)
    number = alert_of(plant, "motor-07")
    plant.show("confirm", f"fedmq alert confirm {number} outer_race")
    plant.watch()
    plant.motors["motor-07"].label, plant.motors["motor-07"].severity = "normal", 0.0
    plant.on(2, 16)
    plant.show("event", "fedmq machine event motor-07 bearing-changed --at 15:30")
    plant.watch()
    plant.motors["motor-19"].unbalance_mm_s = 0.0  # it has been balanced
    plant.show("other", f"fedmq alert confirm {alert_of(plant, 'motor-19')} --other unbalance")
    plant.watch()
    for day in range(3, 9):
        plant.on(day)
        plant.hear()
    plant.show("learning", "fedmq watch status --machine motor-07", "fedmq watch status --machine motor-12")
    for day in range(9, 11):
        plant.on(day)
        plant.hear()
    plant.show("learnt", "fedmq watch status | head -3")
    # Motor 12 gets more to do: louder, and well.
    plant.on(11)
    plant.motors["motor-12"].load = 2.4
    plant.hear()
    number = alert_of(plant, "motor-12")
    plant.show("false show", f"fedmq alert show {number}")
    plant.show("dismiss", f"fedmq alert dismiss {number}")
    plant.watch()
    plant.on(12)
    plant.hear()
    plant.show("after dismissal", "fedmq watch status --machine motor-12")


def month_two(plant: Plant) -> str:
    """An inner race that goes bad within two weeks, and a motor whose load creeps up; returns the evidence of it."""
    creeping, worn = plant.motors["motor-35"], plant.motors["motor-23"]
    for step in range(14):
        plant.on(20 + 3 * step)
        creeping.load = 1.0 + 0.03 * step
        if step >= 6:
            worn.label, worn.severity = "inner_race", 1.5 * (step - 5)
        plant.hear(("motor-35", "motor-23"), seconds=60.0)
    numbers = alerts_of(plant, "motor-23")[::-1]
    plant.show("month show", "fedmq alert list --machine motor-23", f"fedmq alert show {numbers[0]}")
    evidence = plant.fedmq(["alert", "list", "--machine", "motor-23", "--all", "--json"])
    plant.show("month confirm", f"fedmq alert confirm {numbers[0]} inner_race --overlapping")
    plant.watch()
    plant.show("month event", "fedmq machine event motor-23 bearing-changed")
    plant.watch()
    worn.label, worn.severity = "normal", 0.0
    plant.show("labels", "fedmq label --store bridge.sqlite --list | head -8")
    plant.show("drift", "fedmq watch status --machine motor-35")
    return evidence


def month_three(plant: Plant) -> None:
    """What the verdicts of three halls come to: a classifier, which names a fault that this hall never had."""
    from fedmq_broker_config.render import BrokerSettings
    from fedmq_broker_config.run import choose

    plant.on(84)
    plant.hear(("motor-07", "motor-12", "motor-23", "motor-31"))
    for name in ("motor-07", "motor-12", "motor-31"):
        begin = datetime.fromtimestamp(plant.now - 3 * HOUR, UTC).isoformat()
        plant.fedmq(["label", "--store", "bridge.sqlite", "--machine", name, "--from", begin, "normal"])
    (plant.folder / "broker").mkdir()
    with choose("auto", BrokerSettings(federation="plant"), directory=plant.folder / "broker") as broker:
        federation = Federation(plant=plant, host=broker.about.host, port=broker.about.port)
        federation.write()
        with federation.running():
            federation.until(lambda: federation.rounds() >= ROUNDS, f"{ROUNDS} rounds")
            plant.on(85)
            plant.show("tasks", "fedmq task list --state coordinator")
            plant.show("report", "fedmq report --state coordinator | grep macro-F1 went")
            plant.show("promote", "fedmq task promote faults --state coordinator")
            federation.until(federation.in_service, "the release")
    plant.on(86)
    plant.motors["motor-31"].label, plant.motors["motor-31"].severity = "ball", 24.0
    plant.hear(("motor-31",))
    number = alert_of(plant, "motor-31")
    plant.show("named list", "fedmq alert list --machine motor-31")
    plant.show("named show", f"fedmq alert show {number}")
    plant.show("last status", "fedmq watch status | head -1")


ROUNDS = 30


@dataclass(kw_only=True)
class Federation:
    """A coordinator and three halls: the plant's own with its bridge's store, and two others with recordings."""

    plant: Plant
    host: str
    port: int
    children: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def write(self) -> None:
        from fedmq.data import Fleet, GatewayData, lay_out
        from fedmq.defaults import round_settings, task_settings
        from fedmq.demo import HEALTHY_VITALS
        from fedmq.demo import _toml as toml
        from fedmq.simulator import simulate_fleet

        folder = self.plant.folder
        fleet = simulate_fleet(gateways=7, seed=3)
        by_label = {one.name.partition("-")[2].partition("-")[2]: one for one in fleet.gateways}
        halls = {
            "hall-2": by_label["ball"].recordings + by_label["normal"].recordings,
            "hall-3": by_label["inner-race"].recordings + by_label["outer-race"].recordings,
        }
        others = tuple(GatewayData(name=name, recordings=recordings) for name, recordings in halls.items())
        dealt = Fleet(
            name="halls", windowing=fleet.windowing, classes=fleet.classes, gateways=others, test=fleet.test, split=""
        )
        lay_out(dealt, folder / "others")
        connection = {"host": self.host, "port": self.port, "reconnect_min_seconds": 0.2}
        (folder / "coordinator.toml").write_text(
            toml(
                {
                    "state_dir": str(folder / "coordinator"),
                    "test_data": str(folder / "others" / "test"),
                    "connection": connection,
                    "task": asdict(
                        task_settings(name="faults", classes=fleet.classes, windowing=replace(fleet.windowing, hop=512))
                    ),
                    "rounds": asdict(round_settings("mlp", gateways=3, rounds=ROUNDS)),
                }
            )
        )
        (folder / "vitals.toml").write_text(HEALTHY_VITALS)
        bridge = {"store": str(folder / "bridge.sqlite"), "kept": str(folder / "watch" / "kept"), "fresh_seconds": 0}
        sources: dict[str, dict[str, Any]] = {"hall-1": {"bridge": bridge}}
        sources |= {name: {"data_dir": str(folder / "others" / name)} for name in halls}
        for name, source in sources.items():
            state = folder / ("gateway" if name == "hall-1" else f"others/state-{name}")
            table = {
                "name": name,
                **{key: value for key, value in source.items() if key != "bridge"},
                "state_dir": str(state),
                "vitals_file": str(folder / "vitals.toml"),
                "ask_jitter_seconds": 0.2,
                "connection": connection,
                **{key: value for key, value in source.items() if key == "bridge"},
            }
            (folder / f"{name}.toml").write_text(toml(table))

    @contextmanager
    def running(self) -> Iterator[None]:
        programs = {"coordinator": ["coordinator", "--config", "coordinator.toml"]}
        programs |= {f"hall-{n}": ["gateway", "--config", f"hall-{n}.toml"] for n in (1, 2, 3)}
        with contextlib.ExitStack() as stack:
            for name, words in programs.items():
                log = stack.enter_context((self.plant.folder / f"{name}.log").open("wb"))
                self.children[name] = subprocess.Popen(
                    started_at(self.plant.now, [words]), cwd=self.plant.folder, stdout=log, stderr=log
                )
            try:
                yield
            finally:
                for child in reversed(self.children.values()):
                    child.send_signal(signal.SIGTERM)
                for child in self.children.values():
                    child.wait(60)

    def until(self, done: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + 240.0
        while not done():
            for name, child in self.children.items():
                if child.poll() is not None or time.monotonic() > deadline:
                    tail = (self.plant.folder / f"{name}.log").read_text()[-2000:]
                    raise RuntimeError(f"waited for {what}; the end of {name}.log:\n{tail}")
            time.sleep(0.2)

    def rounds(self) -> int:
        from fedmq_coordinator import report
        from fedmq_coordinator.ledger import Ledger

        try:
            with contextlib.closing(
                Ledger(self.plant.folder / "coordinator" / "ledger.sqlite", read_only=True)
            ) as ledger:
                lines = report.build(ledger).rounds
        except ValueError:
            return 0
        return sum(line.kind == "training" and line.closed_at is not None for line in lines)

    def in_service(self) -> bool:
        from fedmq_edge_node.memory import Memory

        with contextlib.closing(Memory(self.plant.folder / "gateway" / "gateway.sqlite")) as memory:
            return any(state.in_service is not None for state in memory.load().values())


# --- the page --------------------------------------------------------------------------------------------------------


def written(page: str, blocks: dict[str, str]) -> str:
    """The page with each block between its marks. Raises ValueError where the marks are not those of the story."""
    marks = re.findall(r"<!-- begin: (.+?) -->", page)
    if marks != list(blocks):
        raise ValueError(f"expected the marks {', '.join(blocks)}, in this order; got {', '.join(marks)}")
    for name, text in blocks.items():
        kind = "toml" if name == "settings" else "console"
        block = f"<!-- begin: {name} -->\n```{kind}\n{text}```\n<!-- end: {name} -->"
        page = re.sub(
            rf"<!-- begin: {re.escape(name)} -->.*?<!-- end: {re.escape(name)} -->",
            block.replace("\\", r"\\"),
            page,
            flags=re.DOTALL,
        )
    return page


def picture(evidence: str) -> str:
    """The trend of what raised the alert, with its limit, as SVG; from the alert's own JSON."""
    alert = json.loads(evidence)[-1]  # the first one
    worst = max(alert["evidence"], key=lambda one: one["value"] / one["limit"])
    points = [(at, value) for at, value in worst["trend"]]
    left, right, top, bottom = 60.0, 700.0, 30.0, 230.0
    first, last = points[0][0], points[-1][0]
    most = 1.25 * max(worst["limit"], *(value for _, value in points))

    def x(at: float) -> float:
        return left + (right - left) * (at - first) / (last - first)

    def y(value: float) -> float:
        return bottom - (bottom - top) * value / most

    line = " ".join(f"{x(at):.1f},{y(value):.1f}" for at, value in points)
    raised = x(min(max(alert["opened_at"], first), last))
    days = [first + share * (last - first) for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
    ticks = "".join(
        f'<text x="{x(at):.0f}" y="{bottom + 18:.0f}" text-anchor="middle">'
        f"{datetime.fromtimestamp(at, UTC):%b %d}</text>"
        for at in days
    )
    heights = "".join(
        f'<text x="{left - 8:.0f}" y="{y(value) + 4:.0f}" text-anchor="end">{value:.3g}</text>'
        for value in (0.0, most / 2, most)
    )
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 740 270" font-family="sans-serif" font-size="12">
<title>{alert["machine"]}: {worst["name"]}, its limit, and when the alert was raised</title>
<rect width="740" height="270" fill="white"/>
<text x="{left:.0f}" y="18" font-size="13">{alert["machine"]} (simulated): {worst["name"]}, {worst["unit"]}</text>
<path d="M{left},{top}V{bottom}H{right}" fill="none" stroke="#666"/>
{ticks}{heights}
<path d="M{left},{y(worst["limit"]):.1f}H{right}" stroke="#c0392b" stroke-dasharray="6 4"/>
<text x="{left + 6:.0f}" y="{y(worst["limit"]) - 6:.1f}" fill="#c0392b">limit {worst["limit"]:.3g}</text>
<path d="M{raised:.1f},{top}V{bottom}" stroke="#2c3e50" stroke-dasharray="2 3"/>
<text x="{raised - 6:.1f}" y="{top + 12:.0f}" text-anchor="end">alert {alert["id"]} raised</text>
<polyline points="{line}" fill="none" stroke="#2471a3" stroke-width="2"/>
</svg>
"""


def play(folder: Path) -> tuple[dict[str, str], str]:
    """The blocks in the order of the page, and the picture."""
    plant = Plant(folder=folder)
    day_one(plant)
    week_one(plant)
    evidence = month_two(plant)
    month_three(plant)
    return plant.blocks, picture(evidence)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the page and its picture")
    parser.add_argument("--directory", type=Path, help="a new folder to keep the plant in (default: none is kept)")
    parser.add_argument("--at", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--lines", help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.at is not None:
        return run_at(given.at, json.loads(given.lines))
    with contextlib.ExitStack() as stack:
        folder = given.directory or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fedmq-")))
        folder.mkdir(parents=True, exist_ok=True)
        blocks, drawn = play(folder.resolve())
    if given.write:
        PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), blocks), encoding="utf-8")
        PICTURE.write_text(drawn, encoding="utf-8")
        return 0
    for name, text in blocks.items():
        print(f"--- {name}\n{text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
