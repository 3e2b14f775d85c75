"""The main job on one machine: a broker, a coordinator and gateways, each a process of its own, and what came of it.

The demo plays the plant: it puts each gateway's recordings into that gateway's own folder, writes the settings that
an engineer would write, starts the same programs, and then only watches the ledger. It learns nothing itself, but for
the baselines, which are trained in this process afterwards and are marked as what they are.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, cast

import msgspec
import psutil
from fedmq_broker_config.render import BrokerSettings, Certificates, Guarded
from fedmq_broker_config.run import choose, find_mosquitto
from fedmq_coordinator import report as savings
from fedmq_coordinator.audit import local_user
from fedmq_coordinator.control import place_order
from fedmq_coordinator.ledger import Ledger
from fedmq_coordinator.report_html import to_html
from fedmq_coordinator.settings import PersonalSettings
from fedmq_coordinator.tasks import Wish
from fedmq_edge_node.memory import Memory
from fedmq_edge_node.personal import score, scorer
from fedmq_edge_node.runtimes import make_engine, make_preparation
from fedmq_edge_node.samples import UNLABELLED, load, load_test
from fedmq_models.bundle import from_bytes

from fedmq.baselines import local_only, pooled
from fedmq.bridge.ports import SERIAL, Collecting, parse_ports
from fedmq.ca.authority import Authority
from fedmq.data import UNSEEN_FOLDER, Fleet, Split, by_sensor, cmapss, cwru, digits, gearbox, lay_out, own_folder
from fedmq.defaults import Kind, bundle_windowing, raw_windowing, round_settings, task_settings
from fedmq.programs import audit_log, ledger_path, load_task, read_bundle
from fedmq.showing import Screen
from fedmq.simulator import simulate_fleet

__all__ = ["DemoError", "DemoOptions", "Identities", "Plant", "broker_settings", "open_fleet", "run"]

FEDERATION = "demo"
POLL_SECONDS = 0.1
START_SECONDS = 60.0
LEAVE_SECONDS = 30.0

DASHBOARD = r"dashboard: (https?://\S+)"
"""As the coordinator logs where it is."""

PERSONAL = PersonalSettings()
PERSONAL_HELD_OUT = 0.25
"""Share that a gateway keeps for the comparison, where the data's own test set would make that unnecessary."""
PERSONAL_SECONDS = 120.0


class DemoError(ValueError):
    """The demo cannot go on: says which part, and the end of its log."""


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """The command line; see `fedmq demo --help`."""

    data: str = "sim"
    split: str = "fault"
    test_load: int | None = None
    sampling_rate: float | None = None
    features: str | None = None
    channels: int | None = None
    window: int | None = None
    hop: int | None = None
    remaining_most: float | None = None
    collect: int = 64
    rounds: int = 40
    gateways: int | None = None
    seed: int = 0
    model: str = "mlp"
    bundle: Path | None = None
    engine: str = "auto"
    hidden: tuple[int, ...] | None = None
    codec: str = "sparse"
    dial: float | None = None
    local_epochs: int | None = None
    personal: Literal["none", "head", "copy"] = "none"
    personal_margin: float = PERSONAL.margin
    personal_epochs: int = PERSONAL.epochs
    baselines: bool = True
    broker: str = "auto"
    secure: bool = False
    gates: str = "healthy"
    closing: float = 30.0
    json: Path | None = None
    csv: Path | None = None
    report: Path | None = None
    directory: Path | None = None
    http: str | None = None
    progress: bool = True


@dataclass(kw_only=True)
class _Child:
    """A program that the demo started, and the most memory it was seen with."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    rss_bytes: int = 0

    def look(self) -> None:
        """Note its memory; raises DemoError when it has ended by itself."""
        status = self.process.poll()
        if status is not None:
            raise DemoError(f"{self.name} ended with status {status}; the end of {self.log}:\n{_tail(self.log)}")
        try:
            self.rss_bytes = max(self.rss_bytes, psutil.Process(self.process.pid).memory_info().rss)
        except psutil.NoSuchProcess:
            return  # the next look says so


def run(options: DemoOptions) -> int:
    """The whole demo; returns its exit status."""
    began = time.monotonic()
    screen = Screen(progress=options.progress)
    ports = parse_ports(options.data) if options.data.startswith(SERIAL) else ()
    if any(port.label is None for port in ports) and options.model != "autoencoder":
        raise DemoError(
            f"--data {options.data}: only --model autoencoder learns from signal without labels; give each port one,"
            " as in serial:normal=PORT,knocking=PORT"
        )
    if options.secure and (options.broker not in ("auto", "mosquitto") or find_mosquitto() is None):
        raise DemoError(
            f"--secure with --broker {options.broker}: certificates and an ACL need a Mosquitto that the demo starts;"
            " install it (apt-get install mosquitto), and leave --broker out"
        )
    fleet = None if ports else open_fleet(options)
    directory = options.directory or Path("runs") / datetime.now().strftime("demo-%Y%m%d-%H%M%S")
    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.iterdir()):
        raise DemoError(f"{directory} is not empty: name another --directory, for a run starts from nothing")
    directory = directory.resolve()
    with contextlib.ExitStack() as bridges:
        stores: dict[str, Path] = {}
        if fleet is None:
            collecting = bridges.enter_context(Collecting(ports, directory / "bridges"))
            fleet = open_fleet(options, collecting.fleet(screen.say))
            collecting.wait(fleet.windowing, options.collect, screen.say)
            stores = collecting.stores
        return _run(options, screen, fleet, stores, directory, began)


def _run(
    options: DemoOptions, screen: Screen, fleet: Fleet, stores: dict[str, Path], directory: Path, began: float
) -> int:
    folders = lay_out(fleet, directory / "plant")
    _say_data(screen, fleet)
    identities = None
    if options.secure:
        identities = Identities.make(directory / "identities", [gateway.name for gateway in fleet.gateways])
        screen.say(
            f"secure: a certificate authority for this run in {identities.directory / 'ca'}; TLS with client"
            " certificates, plans and welcomes signed, a MAC on every other message"
        )
    with (
        tempfile.TemporaryDirectory(prefix="fedmq-") as short,
        choose(options.broker, broker_settings(identities, Path(short)), directory=directory / "broker") as broker,
    ):
        about = broker.about
        screen.say(f"broker: {about}")
        screen.say(
            "gates: injected healthy vitals, so every gate is open (--gates real reads this machine)"
            if options.gates == "healthy"
            else "gates: this machine's own vitals"
        )
        plant = Plant(
            fleet=fleet,
            options=options,
            stores=stores,
            directory=directory,
            host=about.host,
            port=about.port,
            identities=identities,
        )
        with plant.running():
            ledger = plant.watch(screen)
            if options.personal != "none":
                plant.release(ledger, screen)
            plant.shut_down(ledger)
    ledger = Ledger(ledger_path(plant.state), read_only=True)
    built = savings.build(ledger)
    ledger.close()
    figures = _figures(plant, fleet, built, f"{about.name} {about.version}".strip())
    if options.baselines:
        figures |= _baselines(plant, fleet, folders, figures["rounds"], screen)
    if options.personal != "none":
        figures["personal"] = _personal(plant, fleet, folders, built)
    figures["wall_seconds"] = round(time.monotonic() - began, 2)
    page = options.report or directory / "report.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(to_html(built), encoding="utf-8")
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    if options.csv is not None:
        options.csv.parent.mkdir(parents=True, exist_ok=True)
        options.csv.write_text(savings.to_csv(built), encoding="utf-8", newline="")
    screen.result(figures, built.sentences, built.findings, page)
    return 0


def open_fleet(options: DemoOptions, found: Fleet | None = None) -> Fleet:
    """The recordings that `--data` names, or those that were found, and how they are cut. Raises ValueError for what
    cannot be used."""
    fleet = found or _find_fleet(options)
    if options.channels is not None:
        fleet = replace(fleet, windowing=replace(fleet.windowing, channels=options.channels))
    if options.bundle is not None:
        manifest = from_bytes(read_bundle(options.bundle)).manifest
        fleet = replace(fleet, windowing=bundle_windowing(manifest, fleet.windowing))
    elif options.model == "cnn1d":
        fleet = replace(fleet, windowing=raw_windowing(fleet.windowing))
    wishes: dict[str, Any] = {
        "features": options.features,
        "samples": options.window,
        "hop": options.hop,
        "remaining_most": options.remaining_most,
    }
    if options.personal != "none" and fleet.windowing.held_out == 0:
        wishes["held_out"] = PERSONAL_HELD_OUT
    given = {name: value for name, value in wishes.items() if value is not None}
    fleet = replace(fleet, windowing=replace(fleet.windowing, **given)) if given else fleet
    if (options.model == "regressor") != (fleet.windowing.remaining_most > 0):
        raise DemoError(
            f"--model {options.model}: a regressor learns how long a machine has left, and no other does; expected it"
            " with --data cmapss:DIR, or with --remaining-most on recordings that run to failure, and only there"
        )
    return fleet


def _find_fleet(options: DemoOptions) -> Fleet:
    if options.test_load is not None and not options.data.startswith(("cwru:", "gearbox:")):
        raise DemoError(f"--test-load: only cwru:DIR and gearbox:DIR have loads, --data is {options.data}")
    if options.split == "sensor" and not options.data.startswith("gearbox:"):
        raise DemoError(f"--split sensor: only gearbox:DIR has several sensors, --data is {options.data}")
    healthy = options.model == "autoencoder"
    if options.data == "sim":
        return simulate_fleet(gateways=options.gateways or 7, seed=options.seed, healthy=healthy)
    if options.data == "digits":
        return digits(gateways=options.gateways or 8, seed=options.seed)
    kind, colon, folder = options.data.partition(":")
    if kind == "cwru" and colon:
        fleet = cwru(Path(folder), split=cast(Split, options.split), test_load=options.test_load)
    elif kind == "gearbox" and colon:
        fleet = gearbox(Path(folder), options.test_load, healthy=healthy)
        if options.split == "sensor":
            fleet = by_sensor(fleet)
    elif kind == "cmapss" and colon:
        fleet = cmapss(Path(folder))
    else:
        fleet = own_folder(Path(options.data), sampling_rate_hz=options.sampling_rate)
    if options.gateways is not None and options.gateways != len(fleet.gateways):
        if options.gateways > len(fleet.gateways):
            raise DemoError(f"--gateways {options.gateways}: {options.data} has recordings for {len(fleet.gateways)}")
        fleet = replace(fleet, gateways=fleet.gateways[: options.gateways])
    if options.model == "autoencoder":
        able = [g.name for g in fleet.gateways if any(r.label in ("normal", UNLABELLED) for r in g.recordings)]
        if 2 * len(able) < len(fleet.gateways):
            raise DemoError(
                f"an autoencoder learns from healthy recordings (normal or {UNLABELLED}), which only {len(able)} of "
                f"{len(fleet.gateways)} gateways have with --split {fleet.split}: try another split, or --data sim"
            )
    return fleet


def _say_data(screen: Screen, fleet: Fleet) -> None:
    what = "simulated bearings" if fleet.name == "simulated" else f"recordings of {fleet.name}"
    # A table has no rate: its rows do not follow each other in time.
    rate = f", {fleet.sampling_rate_hz:,.0f} samples a second" if fleet.windowing.samples > 1 else ""
    screen.say(f"data: {what}{rate}, split by {fleet.split}")
    if fleet.remark:
        screen.say(f"  {fleet.remark}")
    for gateway in fleet.gateways:
        labels = sorted({recording.label for recording in gateway.recordings})
        if labels:
            screen.say(f"  {gateway.name}: {len(gateway.recordings)} recordings of {', '.join(labels)}")
    if fleet.test is not None:
        screen.say(f"  test set, which no gateway has: {len(fleet.test)} recordings")


@dataclass(frozen=True, kw_only=True)
class Identities:
    """A certificate authority for one run, and what it has issued."""

    directory: Path

    @classmethod
    def make(cls, directory: Path, gateways: list[str]) -> Identities:
        """An authority, and an identity for each gateway: here in one place, in a plant each on its gateway."""
        directory.mkdir(parents=True)
        authority = Authority.create(directory / "ca", federation=FEDERATION, hosts=["127.0.0.1"], years=1)
        for name in gateways:
            authority.issue(name, "gateway", days=30, out=directory / name)
        return cls(directory=directory)

    def broker(self, guard: Path) -> Certificates:
        folder = self.directory / "ca" / "broker"
        return Certificates(
            ca_file=folder / "ca.crt",
            cert_file=folder / "broker.crt",
            key_file=folder / "broker.key",
            guarded=Guarded(revoked_file=self.directory / "ca" / "revoked.crl", directory=guard),
        )

    def of(self, name: str) -> Path:
        return self.directory / ("ca/coordinator" if name == "coordinator" else name)


def broker_settings(identities: Identities | None, guard: Path) -> BrokerSettings:
    """Of the demo's broker. `guard` is a folder with a short path, for it holds a Unix socket."""
    open_to_all = BrokerSettings(federation=FEDERATION)
    return open_to_all if identities is None else replace(open_to_all, access=identities.broker(guard))


@dataclass(kw_only=True)
class Plant:
    """The processes of one run, and their folders."""

    fleet: Fleet
    options: DemoOptions
    stores: dict[str, Path]
    """Of bridges, by gateway; the others have folders."""
    directory: Path
    host: str
    port: int
    identities: Identities | None = None
    children: list[_Child] = field(default_factory=list)
    digest: str = ""
    """Of the last model version, in hex."""

    @property
    def state(self) -> Path:
        return self.directory / "coordinator"

    @contextmanager
    def running(self) -> Iterator[None]:
        """All programs, started; ended whatever happens."""
        try:
            self._start_coordinator()
            for gateway in self.fleet.gateways:
                self._start_gateway(gateway.name)
            yield
        finally:
            for child in self.children:
                if child.process.poll() is None:
                    child.process.terminate()
            for child in self.children:
                try:
                    child.process.wait(LEAVE_SECONDS)
                except subprocess.TimeoutExpired:
                    child.process.kill()
                    child.process.wait()

    def _start_coordinator(self) -> None:
        options = self.options
        config = self.directory / "coordinator.toml"
        config.write_text(
            _toml(
                {
                    "state_dir": str(self.state),
                    "log_level": "info",
                    **({"test_data": str(self.directory / "plant" / "test")} if self.fleet.test is not None else {}),
                    "connection": self.connection("coordinator"),
                    "task": self._task(),
                    "rounds": asdict(
                        round_settings(
                            self._kind,
                            gateways=len(self.fleet.gateways),
                            rounds=options.rounds,
                            closing_seconds=options.closing,
                        )
                    ),
                    "personal": {
                        "mode": options.personal,
                        "margin": options.personal_margin,
                        "epochs": options.personal_epochs,
                    },
                    "limits": {"catch_up_gather_seconds": 0.3},
                    **({} if options.http is None else {"http": {"listen": options.http}}),
                }
            ),
            encoding="utf-8",
        )
        self._start("coordinator", ["coordinator", "--config", str(config)])

    def _start_gateway(self, name: str) -> None:
        folder = self.directory / "gateways" / name
        folder.mkdir(parents=True)
        vitals: dict[str, str] = {}
        if self.options.gates == "healthy":
            (folder / "vitals.toml").write_text(HEALTHY_VITALS, encoding="utf-8")
            vitals = {"vitals_file": "vitals.toml"}
        store = self.stores.get(name)
        config = folder / "gateway.toml"
        config.write_text(
            _toml(
                {
                    "name": name,
                    "data_dir": None if store is not None else str(self.directory / "plant" / name),
                    "state_dir": "state",
                    **vitals,
                    "engine": self.options.engine,
                    "ask_jitter_seconds": 0.2,
                    **({"bridge": {"store": str(store)}} if store is not None else {}),
                    "connection": self.connection(name),
                }
            ),
            encoding="utf-8",
        )
        self._start(name, ["gateway", "--config", str(config)])

    @property
    def _kind(self) -> Kind:
        return "graph" if self.options.bundle is not None else cast(Kind, self.options.model)

    def _task(self) -> dict[str, Any]:
        options = self.options
        settings = task_settings(
            name=self.fleet.name,
            kind=self._kind,
            bundle=options.bundle,
            manifest=None if options.bundle is None else from_bytes(read_bundle(options.bundle)).manifest,
            hidden=options.hidden,
            classes=self.fleet.classes,
            windowing=self.fleet.windowing,
            codec=options.codec,
            dial=options.dial,
            seed=options.seed,
            local_epochs=options.local_epochs,
        )
        table = asdict(settings)
        if options.bundle is not None:
            table["bundle"] = str(options.bundle.resolve())
        return table

    def connection(self, name: str) -> dict[str, Any]:
        return {
            **({"identity_dir": str(self.identities.of(name))} if self.identities is not None else {}),
            "host": self.host,
            "port": self.port,
            "federation": FEDERATION,
            "reconnect_min_seconds": 0.2,
            "reconnect_max_seconds": 2.0,
        }

    def _start(self, name: str, words: list[str]) -> None:
        log = self.directory / "logs" / f"{name}.log"
        log.parent.mkdir(exist_ok=True)
        with log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "fedmq", *words],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
                # A Ctrl-C in the terminal reaches the demo alone, which then ends its children in order.
                start_new_session=True,
            )
        self.children.append(_Child(name=name, process=process, log=log))

    def watch(self, screen: Screen) -> Ledger:
        """Show rounds until the run rests; returns the ledger."""
        path = ledger_path(self.state)
        self._wait(lambda: path.is_file() and path.stat().st_size > 0, "the coordinator to make its ledger")
        self._wait(lambda: _opens(path), "the coordinator to make its ledger")
        if self.options.http is not None:
            said = self.children[0].log
            self._wait(lambda: bool(re.search(DASHBOARD, said.read_text(encoding="utf-8"))), "the dashboard")
            (address,) = re.findall(DASHBOARD, said.read_text(encoding="utf-8"))[:1]
            screen.say(f"dashboard: {address} as long as this goes on")
        ledger = Ledger(path, read_only=True)
        shown = 0
        stalled_since = time.monotonic()
        progress = screen.rounds(self.options.rounds, (ledger.only.get(savings.METRIC_NAME) or b"metric").decode())
        while True:
            for child in self.children:
                child.look()
            closed = [r for r in ledger.rounds() if r.closed_at is not None]
            for row in closed[shown:]:
                progress.show(row, ledger.answers(row.id))
                stalled_since = time.monotonic()
            shown = len(closed)
            if ledger.only.get("rest") is not None:
                return ledger
            if time.monotonic() - stalled_since > START_SECONDS + 2 * self.options.closing:
                raise DemoError(self._stall(START_SECONDS + 2 * self.options.closing))
            time.sleep(POLL_SECONDS)

    def release(self, ledger: Ledger, screen: Screen) -> None:
        """Put the last version in service, and wait for what the gateways make of it for themselves."""
        with contextlib.closing(Ledger(ledger_path(self.state), visit=True)) as visitor:
            wish = Wish(verb="promote")
            place_order(visitor, audit_log(self.state), local_user(), ledger.only.name, wish, time.time())
        wanted = {gateway.name for gateway in self.fleet.gateways}
        until = time.monotonic() + PERSONAL_SECONDS
        with screen.busy("the last version is released, and each gateway fits a model of its own to its windows"):
            while {trial.gateway for trial in ledger.only.trials() if trial.personal is not None} != wanted:
                for child in self.children:
                    child.look()
                if time.monotonic() > until:
                    screen.say(f"not every gateway has told of a personal model within {PERSONAL_SECONDS:.0f} s")
                    return
                time.sleep(POLL_SECONDS)

    def _stall(self, seconds: float) -> str:
        """Why nothing moves, as far as the programs say it: their errors, else the end of the coordinator's log."""
        lines = {child.name: child.log.read_text(encoding="utf-8", errors="replace") for child in self.children}
        errors = [f"{name}: {line}" for name, text in lines.items() for line in text.splitlines() if " ERROR " in line]
        said = "\n".join(errors[-12:]) or f"the end of {self.children[0].log}:\n{_tail(self.children[0].log)}"
        return f"no round closed for {seconds:.0f} s; {said}"

    def shut_down(self, ledger: Ledger) -> None:
        """Gateways leave first, so that their last byte counts reach the ledger; then the coordinator."""
        coordinator, *gateways = self.children
        # The last delta travels with the message that says the run rests: let it arrive and be applied.
        time.sleep(1.0)
        for child in gateways:
            child.look()
            child.process.send_signal(signal.SIGTERM)
        for child in gateways:
            status = self._left(child)
            if status != 0:
                raise DemoError(f"{child.name} left with status {status}:\n{_tail(child.log)}")
        until = time.monotonic() + LEAVE_SECONDS
        while time.monotonic() < until and any(g.present for g in ledger.gateways()):
            time.sleep(POLL_SECONDS)
        newest = ledger.last_version(int(ledger.only.get("lineage") or 0))
        self.digest = newest.digest.hex() if newest is not None else ""
        ledger.close()
        coordinator.look()
        coordinator.process.send_signal(signal.SIGTERM)
        self._left(coordinator)

    def _left(self, child: _Child) -> int:
        """The status with which it ended."""
        try:
            return child.process.wait(LEAVE_SECONDS)
        except subprocess.TimeoutExpired:
            raise DemoError(
                f"{child.name} did not end within {LEAVE_SECONDS:.0f} s of being asked to:\n{_tail(child.log)}"
            ) from None

    def _wait(self, ready: Callable[[], bool], what: str) -> None:
        until = time.monotonic() + START_SECONDS
        while not ready():
            for child in self.children:
                child.look()
            if time.monotonic() > until:
                raise DemoError(f"waited {START_SECONDS:.0f} s for {what}, in vain")
            time.sleep(POLL_SECONDS)


HEALTHY_VITALS = """\
# Injected by the demo: a gateway on mains, idle, cool, on a network that costs nothing.
battery_pct = 100.0
on_mains = true
cpu_idle_pct = 90.0
memory_available_bytes = 1000000000
temperature_c = 40.0
link_up = true
link_kind = "ethernet"
metered = false
"""


def _figures(plant: Plant, fleet: Fleet, built: savings.Report, broker: str) -> dict[str, Any]:
    """What `--json` writes. Wire bytes are sums over gateways; lists have one entry a training round."""
    options = plant.options
    ledger = Ledger(ledger_path(plant.state), read_only=True)
    task = load_task(ledger.only)
    ledger.close()
    training = [row for row in built.rounds if row.kind == "training"]
    before = [row.metric for row in built.rounds if row.kind == "statistics" and row.metric is not None]
    metrics = [row.metric for row in training]
    coordinator, *gateways = plant.children
    return {
        "data": fleet.name,
        "split": fleet.split,
        "gateways": len(fleet.gateways),
        "rounds": len(training),
        "params": task.model.parameters,
        "model": task.model.kind,
        "hidden": list(task.model.sizes[1:-1]),
        "seed": options.seed,
        "broker": broker,
        "codec": options.codec,
        "secure": options.secure,
        "metric_name": built.metric_name,
        "metric_source": next((row.metric_source for row in training if row.metric_source), "nothing"),
        "metric_before": before[-1] if before else None,
        "metric_by_round": metrics,
        "metric_final": next((m for m in reversed(metrics) if m is not None), None),
        "metric_local_only_mean": None,
        "metric_pooled": None,
        "payload_up_bytes": built.payload.up,
        "payload_down_bytes": built.payload.down,
        "wire_up_bytes": built.wire.up,
        "wire_down_bytes": built.wire.down,
        "wire_up_bytes_by_round": [row.wire.up for row in training],
        "wire_down_bytes_by_round": [row.wire.down for row in training],
        "dense_up_bytes": built.dense.up,
        "dense_down_bytes": built.dense.down,
        "raw_data_bytes": built.raw_bytes,
        "ip_bytes": built.ip.bytes,
        "ip_counted_pct": built.ip.counted_pct,
        "savings": msgspec.to_builtins(built.savings),
        "price": msgspec.to_builtins(built.price),
        "cpu_seconds": built.cpu_seconds,
        "declines": built.declines,
        "density_up": task.up.density,
        "density_down": task.down.density,
        "level_by_round": [row.level for row in training],
        "answers_by_round": [row.accepted for row in training],
        "round_seconds_median": built.seconds_median,
        "gateway_rss_bytes_max": max(child.rss_bytes for child in gateways),
        "coordinator_rss_bytes": coordinator.rss_bytes,
        "model_digest": plant.digest,
    }


def _baselines(plant: Plant, fleet: Fleet, folders: dict[str, Path], rounds: int, screen: Screen) -> dict[str, Any]:
    """The same recipe without federation, on the same test set, trained in this process."""
    ledger = Ledger(ledger_path(plant.state), read_only=True)
    task, bundle = load_task(ledger.only), ledger.only.get("bundle")
    ledger.close()
    if fleet.test is None:
        screen.say("no test set, so no baselines to compare with")
        return {}
    with screen.busy(
        "baselines: each gateway alone, then all data pooled (this breaks no rule: it is only to compare)"
    ):
        cut = (
            task.windowing,
            task.classes,
            task.anomaly_label,
            make_preparation(from_bytes(bundle)) if bundle else None,
        )
        test = load_test(folders["test"], *cut)
        own = [load(folders[g.name], *cut) for g in fleet.gateways]
        alone = local_only(own, task, rounds, test, bundle)
        together = pooled(own, task, rounds, test, bundle)
    return {
        "metric_local_only": alone,
        "metric_local_only_mean": sum(alone) / len(alone) if alone else None,
        "metric_pooled": together,
    }


def _personal(
    plant: Plant, fleet: Fleet, folders: dict[str, Path], built: savings.Report
) -> list[dict[str, str | int | float | None]]:
    """What each gateway has told, and where a personal model scores, both on recordings that no gateway has: of this
    one's own sensor where they are known, else the test set of all, where a personal model may well be worse."""
    ledger = Ledger(ledger_path(plant.state), read_only=True)
    task, bundle = load_task(ledger.only), ledger.only.get("bundle")
    ledger.close()
    engine = make_engine(task.model, bundle=from_bytes(bundle) if bundle else None)
    lines = []
    for told in built.personal:
        line: dict[str, str | int | float | None] = {
            "gateway": told.gateway,
            "outcome": told.outcome,
            "windows": told.windows,
            "shared": told.shared,
            "personal": told.metric,
        }
        folder = folders.get(f"{UNSEEN_FOLDER}/{told.gateway}") or folders.get("test")
        if folder is not None and told.serves:
            memory = Memory(plant.directory / "gateways" / told.gateway / "state" / "gateway.sqlite")
            state = memory.load()[task.name]
            memory.close()
            assert state.in_service is not None  # it has told of it
            test = load_test(folder, task.windowing, task.classes, task.anomaly_label)
            for name, own in (("shared_on_test", None), ("personal_on_test", state.personal)):
                line[name] = score(scorer(state.in_service, own, engine), *test)
        lines.append(line)
    return lines


def _opens(path: Path) -> bool:
    try:
        with contextlib.closing(Ledger(path, read_only=True)) as ledger:
            return bool(ledger.only.name)
    except ValueError:
        return False  # being made at this moment


def _tail(path: Path, lines: int = 12) -> str:
    return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


def _toml(table: dict[str, Any], prefix: str = "") -> str:
    """Plain values and nested tables as TOML; JSON's strings, numbers, booleans and lists are TOML's."""
    plain = {key: value for key, value in table.items() if not isinstance(value, dict)}
    lines = [f"{key} = {json.dumps(value)}" for key, value in plain.items() if value is not None]
    text = (f"[{prefix}]\n" if prefix else "") + "\n".join(lines) + "\n"
    for key, value in table.items():
        if isinstance(value, dict):
            text += "\n" + _toml(value, f"{prefix}.{key}" if prefix else key)
    return text
