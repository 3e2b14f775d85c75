"""What technicians' verdicts are worth: alerts on real recordings are confirmed and dismissed, and the next rounds'
classifier is held against the one before on windows that no gateway trains on.

Everything but the technician is the real thing: three gateways with a bridge's store each, `fedmq replay` into the
stores, `fedmq watch run`, `fedmq alert confirm` and `dismiss`, `fedmq gateway` and `fedmq coordinator` over a broker.
The technician opens the machine and sees what was played: he is never wrong.

Data: the gearbox of Pandya and Parey, healthy and with a broken tooth, at seven loads with four accelerometers. Each
accelerometer at each load is a machine; recordings at the loads of `--test-loads` are the test set, whole, and the
other five loads times four make twenty machines. What is played, of each machine, and no second of it twice:

1. `learn`: healthy, at its own load. Labelled `normal` on the day it is set up; normal is learnt from it.
2. `other`: healthy, at another load: what is unusual and nothing.
3. `back`: healthy, at its own load, so that the first alert's cause is gone.
4. `broken`: the broken tooth, first half. Then `back` again, and the second half.

One machine that is no longer there (`scrapped`) had a broken tooth that was found by hand and labelled; so the
classifier before the verdicts knows both classes. A control takes as many rounds more on the labels from before,
without verdicts: what training longer alone would have brought.
"""

from __future__ import annotations

import os

os.environ["OPENBLAS_NUM_THREADS"] = "1"

import argparse
import contextlib
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from fedmq_broker_config.render import BrokerSettings
from fedmq_broker_config.run import choose
from fedmq_coordinator import report as savings
from fedmq_coordinator.ledger import Ledger
from fedmq_coordinator.settings import WindowingSettings
from fedmq_edge_node.memory import GatewayState, InService, Memory
from fedmq_edge_node.personal import scorer
from fedmq_edge_node.runtimes import make_engine
from fedmq_edge_node.samples import load_test
from fedmq_firmware_bridge.store import Store
from numpy.typing import NDArray

from fedmq.data import GEARBOX_WINDOWING, Recording, recordings_at, signal_of
from fedmq.defaults import Kind, round_settings, task_settings
from fedmq.demo import HEALTHY_VITALS
from fedmq.demo import _toml as toml
from fedmq.programs import ledger_path
from fedmq.simulator import simulate_vibration

Floats = NDArray[np.float32]

FEDERATION = "verdicts"
CLASSIFIER, ANOMALIES = "tooth", "anomalies"
GATEWAYS = ("hall-1", "hall-2", "hall-3")
SCRAPPED = "scrapped"
WANTED = 20
"""Of each verdict."""
WINDOW_SECONDS = 0.2
"""Recordings last eight seconds, and limits are learnt from 20 windows at least."""
LEARN, BACK, AGAIN = 0.6, 0.7, 0.8
"""Shares of a healthy recording at which its parts end; what is behind is `other` of another machine."""
START_SECONDS = 300.0
"""That a federation may take until it rests."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A machine, and what happens to it: `(label, signal)` by episode."""

    name: str
    gateway: str
    fault: str
    episodes: Mapping[str, tuple[str, Floats]]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The whole story."""

    name: str
    classes: tuple[str, ...]
    windowing: WindowingSettings
    subjects: tuple[Subject, ...]
    known: tuple[str, Floats]
    """The fault that was known before, of a machine that is not watched any more."""
    test: tuple[Recording, ...]


# --- what is played --------------------------------------------------------------------------------------------------


def gearbox_plan(directory: Path, test_loads: Sequence[int]) -> Plan:
    every = {(one.label, int(one.name.removeprefix("load"))): one for one in recordings_at(directory)}
    loads = sorted({load for _, load in every} - set(test_loads))
    # Two steps on: loads that lie apart, and each healthy recording's end is `other` of one machine.
    others = {load: loads[(place + 2) % len(loads)] for place, load in enumerate(loads)}

    def part(label: str, load: int, sensor: int, start: float, stop: float) -> tuple[str, Floats]:
        values = signal_of(every[label, load])[:, sensor]
        return label, values[round(start * len(values)) : round(stop * len(values))].astype(np.float32)

    machines = [(sensor, load) for sensor in range(4) for load in loads]
    first = machines[0]
    subjects = []
    for place, (sensor, load) in enumerate(machines):
        # What the plant knew of before is not found a second time.
        begin = 1 / 3 if (sensor, load) == first else 0.0
        middle = (1 + begin) / 2
        episodes = {
            "learn": part("normal", load, sensor, 0.0, LEARN),
            "other": part("normal", others[load], sensor, AGAIN, 1.0),
            "back": part("normal", load, sensor, LEARN, BACK),
            "broken": part("broken_tooth", load, sensor, begin, middle),
            "back again": part("normal", load, sensor, BACK, AGAIN),
            "broken again": part("broken_tooth", load, sensor, middle, 1.0),
        }
        subjects.append(
            Subject(
                name=f"gear-{sensor + 1}-{load:02d}",
                gateway=GATEWAYS[place * len(GATEWAYS) // len(machines)],
                fault="broken_tooth",
                episodes=episodes,
            )
        )
    test = tuple(
        replace(every[label, load], name=f"load{load:02d}-{sensor + 1}", signal=part(label, load, sensor, 0, 1)[1])
        for label in ("normal", "broken_tooth")
        for load in test_loads
        for sensor in range(4)
    )
    return Plan(
        name="gearbox",
        classes=("normal", "broken_tooth"),
        windowing=replace(GEARBOX_WINDOWING, channels=1),
        subjects=tuple(subjects),
        known=part("broken_tooth", first[1], first[0], 0.0, 1 / 3),
        test=tuple(replace(one, scale=None) for one in test),
    )


SIMULATED_FAULTS = ("inner_race", "ball", "outer_race")


def simulated_plan(seed: int, machines: int) -> Plan:
    """The same story on bearings of the simulator, named as what they are."""
    rng = np.random.default_rng((seed, 0x5E4D1C7))
    subjects = []
    for place in range(machines):
        fault = SIMULATED_FAULTS[place % 3]
        shaft_hz, resonance_hz = rng.uniform(29.0, 29.8), 3000.0 * rng.uniform(0.8, 1.2)

        def heard(label: str, seconds: float, load: float, severity: float = 0.0) -> tuple[str, Floats]:
            return label, simulate_vibration(
                label=label,
                severity=severity,
                shaft_hz=shaft_hz,  # noqa: B023  called in this turn alone
                load=load,
                resonance_hz=resonance_hz,  # noqa: B023
                seconds=seconds,
                rng=rng,
            )

        severity = rng.uniform(12.0, 24.0)
        episodes = {
            "learn": heard("normal", 4.5, 1.0),
            "other": heard("normal", 2.0, 2.0),
            "back": heard("normal", 1.0, 1.0),
            "broken": heard(fault, 4.0, 1.0, severity),
            "back again": heard("normal", 1.0, 1.0),
            "broken again": heard(fault, 4.0, 1.0, severity),
        }
        if place == 0:
            known = heard(fault, 3.0, 1.0, severity)
        gateway = GATEWAYS[place * len(GATEWAYS) // machines]
        subjects.append(Subject(name=f"sim-{place + 1:02d}", gateway=gateway, fault=fault, episodes=episodes))
    test = tuple(
        Recording(
            label=label,
            name=f"simulated-{number}",
            signal=simulate_vibration(
                label=label,
                severity=rng.uniform(12.0, 24.0),
                shaft_hz=rng.uniform(29.0, 29.8),
                load=rng.uniform(1.0, 2.0) if label == "normal" else 1.0,
                resonance_hz=3000.0 * rng.uniform(0.8, 1.2),
                seconds=4.0,
                rng=rng,
            ),
            sampling_rate_hz=12_000.0,
        )
        for label in ("normal", *SIMULATED_FAULTS)
        for number in range(6)
    )
    return Plan(
        name="simulated",
        classes=("normal", *SIMULATED_FAULTS),
        windowing=WindowingSettings(sampling_rate_hz=12_000.0, hop=512, held_out=0.0),
        subjects=tuple(subjects),
        known=known,
        test=test,
    )


def lay_out(recordings: Sequence[Recording], folder: Path) -> None:
    for one in recordings:
        assert not isinstance(one.signal, Path)
        place = folder / one.label
        place.mkdir(parents=True, exist_ok=True)
        np.save(place / f"{one.name}.npy", one.signal, allow_pickle=False)
        (place / f"{one.name}.toml").write_text(f"sampling_rate_hz = {one.sampling_rate_hz!r}\n")


# --- a gateway with its bridge's store, and its watch ----------------------------------------------------------------


def command(words: Sequence[str], folder: Path) -> str:
    """What a `fedmq` command says; it must succeed."""
    done = subprocess.run(
        [sys.executable, "-m", "fedmq", *words], cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"fedmq {' '.join(words)}: status {done.returncode}\n{done.stderr}")
    return done.stdout


@dataclass(kw_only=True)
class Site:
    """One gateway's folder."""

    name: str
    folder: Path
    plan: Plan
    played: dict[tuple[str, str], tuple[float, float]] = field(default_factory=dict)
    """Unix times by machine and episode."""

    @property
    def subjects(self) -> list[Subject]:
        return [one for one in self.plan.subjects if one.gateway == self.name]

    def set_up(self) -> None:
        self.folder.mkdir(parents=True)
        for one in self.subjects:
            words = ["machine", "add", one.name, "--kind", "gearbox" if self.plan.name == "gearbox" else "motor"]
            # A standing machine is not played; so each runs from its first sample on.
            sets = ("operating.running_from_g=0.01", "operating.dwell_seconds=0", "operating.ramp_seconds=0")
            command([*words, *(word for one in sets for word in ("--set", one))], self.folder)
        faults = [label for label in self.plan.classes if label != "normal"]
        (self.folder / "watch.toml").write_text(
            toml(
                {
                    "store": "bridge.sqlite",
                    "machines": "machines.toml",
                    "state_dir": "watch",
                    "gateway_state": "gateway",
                    "faults": faults,
                    "window_seconds": WINDOW_SECONDS,
                    "every_seconds": WINDOW_SECONDS,
                    "commit_seconds": 0,
                    "log_level": "warning",
                    # Set tight, so that much is told: false alarms are what dismissals are for.
                    "judging": {
                        "raise_windows": 2,
                        "clear_windows": 2,
                        "clear_level": 1.0,
                        "learning_windows": 20,
                        "learning_hours": 0,
                        "quantile": 0.9,
                        "margin": 0.25,
                        "least_factor": 1.02,
                    },
                }
            )
        )

    def play(self, episode: str) -> None:
        for one in self.subjects:
            self.play_one(one.name, episode, *one.episodes[episode])

    def play_one(self, machine: str, episode: str, label: str, signal_g: Floats) -> None:
        folder = self.folder / "played" / machine / episode.replace(" ", "-")
        lay_out([Recording(label=label, name=machine, signal=signal_g, sampling_rate_hz=12_000.0)], folder)
        command(
            ["replay", str(folder), "--store", "bridge.sqlite", "--machine", machine, "--sensor", machine],
            self.folder,
        )
        with contextlib.closing(Store(self.folder / "bridge.sqlite")) as store:
            run = store.runs(machine=machine)[-1]
        self.played[machine, episode] = run.taken_at, run.ended_at

    def label(self, machine: str, episode: str, label: str) -> None:
        begin, end = (datetime.fromtimestamp(at).astimezone().isoformat() for at in self.played[machine, episode])
        command(
            ["label", "--store", "bridge.sqlite", "--machine", machine, "--from", begin, "--to", end, label],
            self.folder,
        )

    def watch(self) -> None:
        command(["watch", "run", "--config", "watch.toml", "--until-done"], self.folder)

    def waiting(self) -> list[dict[str, Any]]:
        """Alerts that nobody has judged, oldest first."""
        said = command(["alert", "list", "--json", "--book", "watch/alerts.sqlite"], self.folder)
        every = json.loads(said)
        return sorted(every, key=lambda alert: alert["id"])

    def decide(self, alert: Mapping[str, Any], fault: str | None) -> None:
        words = ["dismiss", str(alert["id"])] if fault is None else ["confirm", str(alert["id"]), fault]
        command(["alert", *words, "--who", "technician", "--book", "watch/alerts.sqlite"], self.folder)

    def truth(self, alert: Mapping[str, Any]) -> str | None:
        """What whoever opens the machine finds: the fault that was played when the alert began; None if none was."""
        for one in self.subjects:
            for episode, (label, _) in one.episodes.items():
                begin, end = self.played.get((one.name, episode), (0.0, 0.0))
                middle = alert["from_at"] + WINDOW_SECONDS / 2
                if one.name == alert["machine"] and begin <= middle <= end:
                    return None if label == "normal" else label
        raise RuntimeError(f"alert {alert['id']} of {alert['machine']} began while nothing was played")


# --- the federation --------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Federation:
    """Coordinator and gateways of one folder, as processes."""

    folder: Path
    plan: Plan
    host: str
    port: int
    seed: int
    rounds: int

    @property
    def state(self) -> Path:
        return self.folder / "coordinator"

    def write(self, rounds: int) -> None:
        """Settings of all: so many rounds, then a rest."""
        pace = round_settings("mlp", gateways=len(GATEWAYS), rounds=rounds)
        pace = replace(pace, resume_on_new_data=True, interval_seconds=0.2, min_gateways=len(GATEWAYS))
        test = str(self.folder / "test")
        tasks: dict[str, dict[str, Any]] = {}
        kinds: dict[str, Kind] = {CLASSIFIER: "mlp", ANOMALIES: "autoencoder"}
        for name, kind in kinds.items():
            task = task_settings(
                name=name,
                kind=kind,
                classes=self.plan.classes,
                windowing=self.plan.windowing,
                seed=self.seed,
            )
            tasks[name] = {"test_data": test, "task": asdict(task), "rounds": asdict(pace)}
        (self.folder / "anomalies.toml").write_text(toml(tasks[ANOMALIES]))
        (self.folder / "coordinator.toml").write_text(
            toml(
                {
                    "state_dir": str(self.state),
                    "test_data": test,
                    "more_tasks": ["anomalies.toml"],
                    "connection": self.connection(),
                    "task": tasks[CLASSIFIER]["task"],
                    "rounds": tasks[CLASSIFIER]["rounds"],
                    "limits": {"catch_up_gather_seconds": 0.3},
                }
            )
        )
        for name in GATEWAYS:
            site = self.folder / name
            (site / "vitals.toml").write_text(HEALTHY_VITALS)
            (site / "gateway.toml").write_text(
                toml(
                    {
                        "name": name,
                        "state_dir": str(site / "gateway"),
                        "vitals_file": str(site / "vitals.toml"),
                        "ask_jitter_seconds": 0.2,
                        "look_every_seconds": 1.0,
                        # A replay is over as soon as it has been played: its sensor is silent ever after.
                        "bridge": {
                            "store": str(site / "bridge.sqlite"),
                            "kept": str(site / "watch" / "kept"),
                            "fresh_seconds": 0,
                        },
                        "connection": self.connection(),
                    }
                )
            )

    def connection(self) -> dict[str, Any]:
        return {"host": self.host, "port": self.port, "federation": FEDERATION, "reconnect_min_seconds": 0.2}

    @contextmanager
    def running(self) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
        programs = {"coordinator": ["coordinator", "--config", str(self.folder / "coordinator.toml")]}
        for name in GATEWAYS:
            programs[name] = ["gateway", "--config", str(self.folder / name / "gateway.toml")]
        with contextlib.ExitStack() as stack:
            children = {}
            for name, words in programs.items():
                log = stack.enter_context((self.folder / f"{name}.log").open("ab"))
                children[name] = subprocess.Popen(
                    [sys.executable, "-m", "fedmq", *words],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            try:
                yield children
            finally:
                for child in reversed(children.values()):
                    child.send_signal(signal.SIGTERM)
                for child in children.values():
                    child.wait(60)

    def until(self, done: Callable[[], bool], children: Mapping[str, subprocess.Popen[bytes]], what: str) -> None:
        until = time.monotonic() + START_SECONDS
        while not done():
            for name, child in children.items():
                if child.poll() is not None or time.monotonic() > until:
                    tail = (self.folder / f"{name}.log").read_text()[-2000:]
                    raise RuntimeError(f"waited for {what}; the end of {name}.log:\n{tail}")
            time.sleep(0.2)

    def rounds_of(self, task: str) -> list[savings.RoundLine]:
        """Closed training rounds."""
        try:
            with contextlib.closing(Ledger(ledger_path(self.state), read_only=True)) as ledger:
                built = savings.build(ledger, task)
        except ValueError:
            return []  # the ledger is being made at this moment
        return [line for line in built.rounds if line.kind == "training" and line.closed_at is not None]

    def train(self, total: int) -> None:
        """On to so many rounds of each task."""
        with self.running() as children:
            self.until(
                lambda: all(len(self.rounds_of(task)) >= total for task in (CLASSIFIER, ANOMALIES)),
                children,
                f"{total} rounds",
            )
            time.sleep(1.0)  # the last delta travels with the word that the run rests

    def release(self) -> None:
        """Both tasks' newest versions, in service on all gateways."""
        with self.running() as children:
            time.sleep(1.0)
            for task in (CLASSIFIER, ANOMALIES):
                command(["task", "promote", task, "--state", str(self.state), "--force", "--wait", "30"], self.folder)
            self.until(
                lambda: all(state.in_service is not None for name in GATEWAYS for state in self.memory(name).values()),
                children,
                "all gateways to have both models in service",
            )

    def memory(self, name: str) -> dict[str, GatewayState]:
        with contextlib.closing(Memory(self.folder / name / "gateway" / "gateway.sqlite")) as memory:
            return memory.load()

    def judged(self) -> Judged:
        """The newest classifier on the test set, as a gateway would have it in service."""
        state = self.memory(GATEWAYS[0])[CLASSIFIER]
        assert state.task is not None
        model = InService(
            task=state.task,
            lineage=state.lineage,
            version=state.version,
            digest=b"",
            steps=state.steps,
            scaler=state.scaler,
        )
        x, y = load_test(self.folder / "test", state.task.windowing, state.task.classes)
        said = scorer(model, None, make_engine(state.task.model)).infer(x).argmax(axis=1)
        metric = next(line.metric for line in reversed(self.rounds_of(CLASSIFIER)) if line.metric is not None)
        found = {label: float(np.mean(said[y == place] == place)) for place, label in enumerate(state.task.classes)}
        return Judged(
            macro_f1=metric,
            found=found,
            windows=len(y),
            per_class={label: int(np.sum(y == place)) for place, label in enumerate(state.task.classes)},
            version=state.version,
            rounds=len(self.rounds_of(CLASSIFIER)),
        )


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A classifier on held-out windows."""

    macro_f1: float
    found: dict[str, float]
    """Share of each class's windows that are named rightly."""
    windows: int
    per_class: dict[str, int]
    version: int
    rounds: int

    def __str__(self) -> str:
        shares = ", ".join(f"{label} {share:.3f}" for label, share in self.found.items())
        return f"macro-F1 {self.macro_f1:.4f}; named rightly: {shares} (version {self.version}, {self.rounds} rounds)"


# --- the story -------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Technicians:
    """One at each gateway, who opens machines and says what was the matter: so many times each, and no more."""

    wanted: Mapping[str, int]
    """Of each verdict, by gateway."""
    confirmed: Counter[str] = field(default_factory=Counter)
    dismissed: Counter[str] = field(default_factory=Counter)
    """By gateway."""
    kinds: Counter[str] = field(default_factory=Counter)

    def visit(self, site: Site) -> None:
        for alert in site.waiting():
            fault = site.truth(alert)
            given = self.dismissed if fault is None else self.confirmed
            if given[site.name] < self.wanted[site.name]:
                site.decide(alert, fault)
                given[site.name] += 1
                self.kinds[f"{alert['kind']} {'dismissed' if fault is None else 'confirmed'}"] += 1


def shared_out(wanted: int) -> dict[str, int]:
    """Over the gateways, such as 7, 7 and 6."""
    return {name: (wanted + len(GATEWAYS) - 1 - place) // len(GATEWAYS) for place, name in enumerate(GATEWAYS)}


EPISODES = ("other", "back", "broken", "back again", "broken again")


def story(plan: Plan, folder: Path, *, seed: int, rounds: int, wanted: int, broker: str) -> dict[str, Any]:
    sites = [Site(name=name, folder=folder / "plant" / name, plan=plan) for name in GATEWAYS]
    lay_out(plan.test, folder / "plant" / "test")
    for site in sites:
        site.set_up()
        site.play("learn")
        for one in site.subjects:
            site.label(one.name, "learn", "normal")
    sites[0].play_one(SCRAPPED, "history", *plan.known)
    sites[0].label(SCRAPPED, "history", plan.known[0])
    (folder / "broker").mkdir()
    with choose(broker, BrokerSettings(federation=FEDERATION), directory=folder / "broker") as running:
        where = {"host": running.about.host, "port": running.about.port, "seed": seed, "rounds": rounds}
        federation = Federation(folder=folder / "plant", plan=plan, **where)
        federation.write(rounds)
        federation.train(rounds)
        before = federation.judged()
        say(f"before: {before}")
        federation.release()
        shutil.copytree(folder / "plant", folder / "control", ignore=shutil.ignore_patterns("*.sock"))
        technicians = Technicians(wanted=shared_out(wanted))
        for site in sites:
            site.watch()
        for episode in EPISODES:
            for site in sites:
                site.play(episode)
                site.watch()
                technicians.visit(site)
                site.watch()
        left = sum(len(site.waiting()) for site in sites)
        say(
            f"verdicts: {technicians.confirmed.total()} confirmed {dict(technicians.confirmed)},"
            f" {technicians.dismissed.total()} dismissed {dict(technicians.dismissed)};"
            f" {dict(technicians.kinds)}; {left} alerts more that nobody judged"
        )
        federation.train(2 * rounds)
        after = federation.judged()
        say(f"after:  {after}")
    with choose(broker, BrokerSettings(federation=FEDERATION), directory=folder / "broker-2") as running:
        where = {"host": running.about.host, "port": running.about.port, "seed": seed, "rounds": rounds}
        control = Federation(folder=folder / "control", plan=plan, **where)
        control.write(2 * rounds)
        control.train(2 * rounds)
        without = control.judged()
        say(f"as many rounds without verdicts: {without}")
    return {
        "data": plan.name,
        "seed": seed,
        "windows": before.windows,
        "per_class": before.per_class,
        "before": asdict(before),
        "after": asdict(after),
        "control": asdict(without),
        "confirmed": technicians.confirmed,
        "dismissed": technicians.dismissed,
        "kinds": technicians.kinds,
        "left": left,
        "kept": sorted(
            str(path.relative_to(folder / "plant")) for path in (folder / "plant").glob("*/watch/kept/[!.]*/*.npy")
        ),
    }


def say(text: str) -> None:
    print(f"{datetime.now():%H:%M:%S} {text}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="sim", metavar="gearbox:DIR|sim", help="what is played (default: sim)")
    parser.add_argument("--test-loads", default="20,50", help="of the gearbox, in %% (default: 20,50)")
    parser.add_argument("--machines", type=int, default=21, help="simulated ones (default: 21)")
    parser.add_argument("--wanted", type=int, default=WANTED, help=f"verdicts of each kind ({WANTED})")
    parser.add_argument("--rounds", type=int, default=20, help="before, and again after (default: 20)")
    parser.add_argument("--seeds", default="0", help="with commas between (default: 0)")
    parser.add_argument("--broker", default="auto")
    parser.add_argument("--directory", type=Path, help="to keep everything in (default: none)")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(argv)
    found = []
    for seed in (int(part) for part in given.seeds.split(",")):
        kind, _, directory = given.data.partition(":")
        if kind == "gearbox":
            plan = gearbox_plan(Path(directory), [int(part) for part in given.test_loads.split(",")])
        else:
            plan = simulated_plan(seed, given.machines)
        say(f"{plan.name}, seed {seed}: {len(plan.subjects)} machines, {len(plan.test)} test recordings")
        with contextlib.ExitStack() as stack:
            folder = given.directory or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fedmq-")))
            folder = folder.resolve() / f"seed-{seed}"
            folder.mkdir(parents=True)
            began = time.monotonic()
            one = story(plan, folder, seed=seed, rounds=given.rounds, wanted=given.wanted, broker=given.broker)
            say(f"took {time.monotonic() - began:.0f} s")
        found.append(one)
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
