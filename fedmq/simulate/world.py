"""One schedule: a broker, a coordinator and gateways that run in virtual time, and the faults that meet them.

Owns the nodes: each has a clock, a disk, a link, and is busy while it works. What a process publishes leaves at its own
time; what comes in waits until it is free. Nothing ticks: a node is woken by a message, or when it has said that
something is due. Refuses to know what is right: `invariants` does.

A schedule runs until its faults are over, then calms down: links heal, everyone is started again, and the run must come
to its end. Everything is drawn from the scenario's seed, each part from a generator of its own name, so that the course
of one part does not change with what another one draws.
"""

from __future__ import annotations

import math
import traceback
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from random import Random
from typing import Any

import numpy as np
from fedmq_coordinator.run import Score
from fedmq_coordinator.service import Coordinator
from fedmq_coordinator.settings import LimitSettings, RoundSettings
from fedmq_edge_node.gates import Vitals
from fedmq_edge_node.memory import GatewayState
from fedmq_edge_node.runtimes import Engine
from fedmq_edge_node.service import Gateway, Source, will
from fedmq_models.bundle import Bundle
from fedmq_protocol.session import Event, Received, Will
from fedmq_protocol.task import Task
from numpy.typing import NDArray

from fedmq.simulate import fleet
from fedmq.simulate.broker import Broker
from fedmq.simulate.disks import Crash, Disk
from fedmq.simulate.faults import BROKER, COORDINATOR, Fault
from fedmq.simulate.fleet import Doings, DrawnEngine, DrawnSource, TimedEngine, WatchedEngine
from fedmq.simulate.invariants import Checker, Violation
from fedmq.simulate.network import Link, LinkedSession, Mishap, Mishaps, Noise, Shape
from fedmq.simulate.scheduler import Scheduler, Trace
from fedmq.simulate.sealing import Keys
from fedmq.simulate.sharing import shared

__all__ = ["Outcome", "Scenario", "Unit", "World"]

START = 1_700_000_000.0
"""The coordinator's clock as a simulation begins, unix seconds."""

CALM_SECONDS = 6 * 3600.0
"""Of virtual time, after the last fault, within which everything must come to rest."""

LOW = Vitals(battery_pct=5.0, on_mains=False)
CHARGED = Vitals(battery_pct=90.0, on_mains=False)

MOST_EVENTS = 1_000_000
"""In ten minutes of virtual time: more is a loop that never waits."""


@dataclass(frozen=True, kw_only=True)
class Unit:
    """What one gateway is like."""

    name: str
    windows: int = 16
    seconds_per_window: float = 0.05
    link: Shape = field(default_factory=Shape)
    clock_offset: float = 0.0
    clock_rate: float = 1.0
    commit_seconds: float = 0.005
    starts_at: float = 0.0
    wild: float = 0.0
    """Share of trainings that come to something far too long."""
    leaves: float = 0.0
    """Share of trainings in which it is killed."""
    away_seconds: float = 60.0
    battery_low: Callable[[float], bool] | None = None
    """By virtual seconds since the start."""


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """All that a schedule is made of. The same scenario has the same course, to the byte."""

    seed: str
    units: tuple[Unit, ...]
    task: Task
    rounds: RoundSettings
    limits: LimitSettings = field(default_factory=lambda: LimitSettings(catch_up_gather_seconds=0.5))
    coordinator_link: Shape = field(default_factory=lambda: Shape(latency=0.001))
    coordinator_commit_seconds: float = 0.002
    faults: tuple[Fault, ...] = ()
    faults_end: float = 0.0
    """Seconds from the start after which it is calm."""
    mishaps: tuple[Mishap, ...] | None = None
    """Messages that meet with a mishap; None draws them."""
    sources: Callable[[Unit, Task], Source] | None = None
    engines: Callable[[Unit, Task, Bundle | None], Engine] | None = None
    bundle: bytes = b""
    """Of a task of kind `graph`: gateways fetch it."""
    evaluate: Callable[[Any, bytes | None], Score] | None = None
    metric_name: str = "metric"
    watch: Callable[[Coordinator], None] | None = None
    """Told of the coordinator after each of its steps."""
    most_seconds: float = CALM_SECONDS
    most_events: int = MOST_EVENTS
    checked: bool = True
    sealed: bool = False
    """Whether messages are signed and carry MACs."""
    shares: bool = True
    """Whether what all gateways would work out alike is worked out once, see `sharing`."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a schedule."""

    events: int
    acknowledgements: int
    """Of the events."""
    seconds: float
    """Of virtual time."""
    digest: str
    """Of the trace."""
    violation: Violation | None
    mishaps: tuple[Mishap, ...]
    """Those that were drawn."""


class _Session(LinkedSession):
    """Lets the checker hear what the coordinator says."""

    node: Node

    def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, expiry_seconds: int | None = None
    ) -> bool:
        self.node.speaks(topic, payload)
        return super().publish(topic, payload, qos=qos, retain=retain, expiry_seconds=expiry_seconds)


class Node:
    """One machine: a clock, a disk, a link, and the process that runs on it, if one does."""

    def __init__(self, world: World, name: str, shape: Shape, commit_seconds: float) -> None:
        self.world = world
        self.name = name
        self.link = Link(name, shape, world.random("link", name), world.mishaps_of(name))
        self.disk = Disk(point=self.point, committed=self._committed)
        self.session: _Session | None = None
        self.alive = False
        self.inbox: deque[Event] = deque()
        self.busy_until = 0.0
        self.spent = 0.0
        """Seconds of work since the step began."""
        self.factor = 1.0
        self.starts = 0
        self.armed: Fault | None = None
        self._passed = 0
        self._killed_by: Fault | None = None
        self._commit_seconds = commit_seconds
        self._wake_at = math.inf

    # -- what its process does ---------------------------------------------------------------------------------

    def sends_at(self) -> float:
        return self.world.scheduler.now + self.spent

    def spend(self, seconds: float) -> None:
        self.spent += seconds * self.factor

    def _committed(self) -> None:
        self.spent += self._commit_seconds

    def arm(self, fault: Fault | None) -> None:
        """The process dies where the fault says, once it comes there."""
        self.armed, self._passed = fault, 0

    def point(self, name: str) -> None:
        """A named point of its work: where a crash waits for it, it dies."""
        armed = self.armed
        if armed is None or armed.point != name:
            return
        self._passed += 1
        if self._passed >= armed.number:
            self.armed = None
            self.die(armed)

    def die(self, fault: Fault) -> None:
        self._killed_by = fault
        raise Crash

    def speaks(self, topic: str, payload: bytes) -> None:
        """It publishes this now."""

    def connect(self, client_id: str, last_will: Will | None, rng: Random) -> _Session:
        world = self.world
        session = _Session(
            world.broker,
            client_id,
            last_will,
            link=self.link,
            scheduler=world.scheduler,
            trace=world.trace,
            rng=rng,
            sends_at=self.sends_at,
            deliver=self.deliver,
        )
        session.node = self
        self.session = session
        return session

    # -- its life ----------------------------------------------------------------------------------------------

    def begin(self, _: object = None) -> None:
        """Start the process, on what the disk holds."""
        if self.alive:
            return
        world = self.world
        self.starts += 1
        self.spent = 0.0
        self.inbox.clear()
        self._wake_at = math.inf
        if self.starts > 1:
            world.trace.event(world.scheduler.now, "restart", self.name)
        if self.run(self.open):
            self.alive = True
            self.busy_until = world.scheduler.now + self.spent
            self.spent = 0.0
            self.look_ahead()

    def open(self) -> None:
        """Build the process."""
        raise NotImplementedError

    def run(self, doing: Callable[[], None]) -> bool:
        """Let the process do something; False where that was its end."""
        world = self.world
        try:
            doing()
        except Crash:
            fault = self._killed_by
            assert fault is not None
            world.trace.event(world.scheduler.now, "killed", self.name, fault.point)
            self.end(fault.seconds)
            return False
        except Violation:
            raise
        except Exception as error:
            if not self.disk.explains(error):
                text = f"{self.name} ends: {type(error).__name__}: {error}\n{_innermost(error)}"
                raise Violation("error", text) from error
            world.trace.event(world.scheduler.now, "ends: disk full", self.name)
            self.end(5.0)
            return False
        return True

    def end(self, away_seconds: float, *, power: bool = False) -> None:
        """The process is gone; another one starts later."""
        world = self.world
        self.alive = False
        self.inbox.clear()
        self.armed = None
        if self.session is not None and not self.session.dead:
            if power:
                self.session.lose_power()
            else:
                self.session.kill()
        self.disk.crash()
        world.scheduler.at(world.scheduler.now + self.spent + away_seconds, self.begin)
        self.spent = 0.0

    def deliver(self, event: Event) -> None:
        if not self.alive and self.session is not None and self.session.dead:
            return
        self.inbox.append(event)
        if len(self.inbox) > 1 or not self.alive:
            return  # it is busy, and comes back for all of it
        scheduler = self.world.scheduler
        if scheduler.now >= self.busy_until:
            self.serve()
        else:
            scheduler.at(self.busy_until, self._free, self.starts)

    def _free(self, start: int) -> None:
        if not self.alive or start != self.starts or not self.inbox:
            return
        if self.world.scheduler.now < self.busy_until:
            self.world.scheduler.at(self.busy_until, self._free, start)
        else:
            self.serve()

    def serve(self) -> None:
        """Let the process work on what has come, or on what is due; then find out when to come back."""
        scheduler = self.world.scheduler
        self.spent = 0.0
        if not self.run(self.work):
            return
        if self.spent:
            self.busy_until = scheduler.now + self.spent
            self.spent = 0.0
        if self.inbox:
            scheduler.at(self.busy_until, self._free, self.starts)
        self.look_ahead()

    def work(self) -> None:
        raise NotImplementedError

    def wait(self) -> float:
        """Seconds until something is due, by the scheduler's clock."""
        raise NotImplementedError

    @property
    def is_idle(self) -> bool:
        """Connected, with nothing to do."""
        return self.alive and not self.inbox and self.session is not None and self.session.connected

    def look_ahead(self) -> None:
        wait = self.wait()
        if wait == math.inf:
            return
        scheduler = self.world.scheduler
        # Rounding must not make it wake a hair too early, again and again.
        at = max(scheduler.now + wait + 1e-6, self.busy_until)
        if at < self._wake_at - 1e-9 or self._wake_at <= scheduler.now:
            self._wake_at = at
            scheduler.at(at, self._wake, (self.starts, at))

    def _wake(self, what: tuple[int, float]) -> None:
        start, at = what
        if not self.alive or start != self.starts or at != self._wake_at:
            return  # woken otherwise since
        scheduler = self.world.scheduler
        self._wake_at = math.inf
        if scheduler.now < self.busy_until or self.inbox or self.wait() > 1e-5:
            self.look_ahead()
            return
        self.world.trace.event(scheduler.now, "timer", self.name)
        self.serve()


class GatewayNode(Node):
    def __init__(self, world: World, unit: Unit) -> None:
        super().__init__(world, unit.name, unit.link, unit.commit_seconds)
        scenario = world.scenario
        self.unit = unit
        self.service: Gateway | None = None
        self.engine: WatchedEngine | None = None
        """Of the checker."""
        self.rng = world.random("gateway", unit.name)
        self.low_until = 0.0
        self.nonce = b""
        self.lives: list[tuple[bytes, int, int, bool]] = []
        """Of each process: its boot nonce, bytes carried up and down, and whether it left in good order."""
        self._carried = (0, 0)
        self._offset = 0.0
        self.source: Source = (
            DrawnSource(scenario.task, unit.windows)
            if scenario.sources is None
            else scenario.sources(unit, scenario.task)
        )

    def monotonic(self) -> float:
        return (self.world.scheduler.now + self.spent) * self.unit.clock_rate + self._offset

    def vitals(self) -> Vitals:
        now = self.sends_at()
        low = now < self.low_until or (self.unit.battery_low is not None and self.unit.battery_low(now))
        return LOW if low else CHARGED

    def point(self, name: str) -> None:
        if self.unit.leaves and name == "training" and self.rng.random() < self.unit.leaves:
            away = self.unit.away_seconds * self.rng.uniform(0.2, 1.8)
            self.die(Fault(at=0.0, kind="crash", target=self.name, point="training", seconds=away))
        super().point(name)

    def open(self) -> None:
        self.note_life(left=False)
        rng = self.rng
        # A monotonic clock begins where it likes.
        self._offset = self.unit.clock_offset + rng.uniform(0, 1e5)
        self.nonce = rng.getrandbits(64).to_bytes(8, "little")
        session = self.connect(self.name, will(fleet.FEDERATION, self.name, self.nonce), Random(rng.getrandbits(64)))
        doings = Doings(spend=self.spend, point=self.point, saved=self._saved)
        self.engine = None
        self.service = fleet.make_gateway(
            name=self.name,
            session=session,
            disk=self.disk,
            source=self.source,
            vitals=self.vitals,
            monotonic=self.monotonic,
            rng=Random(rng.getrandbits(64)),
            nonce=self.nonce,
            doings=doings,
            seals=None if self.world.keys is None else self.world.keys.gateway(self.name, self.nonce),
            engine=lambda task, bundle: self._make_engine(task, bundle, doings),
        )
        if self.world.checker is not None:
            self.world.checker.gateway_started(self.name, self.service)
        session.start()

    def note_life(self, *, left: bool) -> None:
        """A process is over: what the link has carried since it began is its own."""
        up, down = self.link.up.carried, self.link.down.arrived
        if self.nonce:
            self.lives.append((self.nonce, up - self._carried[0], down - self._carried[1], left))
        self._carried = up, down

    def _make_engine(self, task: Task, bundle: Bundle | None, doings: Doings) -> Engine:
        world, unit = self.world, self.unit
        make = world.scenario.engines
        inner = make(unit, task, bundle) if make is not None else DrawnEngine(task, unit.name, unit.wild, world.table)
        if world.checker is not None:
            inner = self.engine = WatchedEngine(inner, task.recipe)
        return TimedEngine(inner, doings, unit.seconds_per_window)

    def _saved(self, state: GatewayState) -> None:
        if self.world.checker is not None:
            self.world.checker.gateway_saved(self.name, state, self._learnt)

    def _learnt(self) -> NDArray[np.float32]:
        if self.engine is None:
            raise Violation("law", f"{self.name} has an update without having trained")
        return self.engine.learnt

    def work(self) -> None:
        service = self.service
        assert service is not None
        service.step(self.inbox.popleft() if self.inbox else None, self.monotonic())
        if self.world.checker is not None:
            self.world.checker.gateway_stepped(self.name, fleet.state_of(service), self._learnt)

    def speaks(self, topic: str, payload: bytes) -> None:
        if self.world.checker is not None:
            self.world.checker.gateway_speaks(self.name, topic, payload)

    def wait(self) -> float:
        assert self.service is not None
        return fleet.gateway_wait(self.service, self.monotonic()) / self.unit.clock_rate


class CoordinatorNode(Node):
    def __init__(self, world: World) -> None:
        scenario = world.scenario
        super().__init__(world, COORDINATOR, scenario.coordinator_link, scenario.coordinator_commit_seconds)
        self.service: Coordinator | None = None
        self.clock_offset = START

    def clock(self) -> float:
        return self.world.scheduler.now + self.spent + self.clock_offset

    def open(self) -> None:
        scenario = self.world.scenario
        rng = self.world.random(COORDINATOR, str(self.starts))
        session = self.connect(COORDINATOR, None, rng)
        self.service = fleet.make_coordinator(
            task=scenario.task,
            rounds=scenario.rounds,
            limits=scenario.limits,
            session=session,
            disk=self.disk,
            clock=self.clock,
            evaluate=scenario.evaluate,
            metric_name=scenario.metric_name,
            bundle=scenario.bundle,
            seals=None if self.world.keys is None else self.world.keys.coordinator(self.clock),
        )
        if self.world.checker is not None:
            self.world.checker.coordinator_started(self.service, self.disk)
        session.start()

    def speaks(self, topic: str, payload: bytes) -> None:
        if self.world.checker is not None:
            assert self.service is not None
            self.world.checker.coordinator_speaks(self.service, self.disk, topic, payload)

    def work(self) -> None:
        service = self.service
        assert service is not None
        events = list(self.inbox)
        self.inbox.clear()
        if self.world.checker is not None:
            for event in events:
                if isinstance(event, Received) and event.payload:
                    self.world.checker.coordinator_hears(self.disk, event.topic, event.payload)
        service.step(events, self.clock())
        if self.world.checker is not None:
            self.world.checker.coordinator_stepped(service, self.disk)
        if self.world.scenario.watch is not None:
            self.world.scenario.watch(service)

    def wait(self) -> float:
        assert self.service is not None
        return fleet.coordinator_wait(self.service, self.clock())


class World:
    """One schedule, from its start to its outcome."""

    def __init__(self, scenario: Scenario, *, keep_trace: bool = False) -> None:
        self.scenario = scenario
        self.scheduler = Scheduler()
        self.trace = Trace(keep=keep_trace)
        self.broker = Broker(clock=lambda: self.scheduler.now, keep_log=False)
        self.checker = Checker(scenario.task) if scenario.checked else None
        self.keys = Keys(scenario.seed) if scenario.sealed else None
        self._mishaps: dict[str, Mishaps] = {}
        for mishap in scenario.mishaps or ():
            self._mishaps.setdefault(mishap.link, {})[mishap.way, mishap.topic, mishap.number] = mishap
        self.coordinator = CoordinatorNode(self)
        self.gateways = {unit.name: GatewayNode(self, unit) for unit in scenario.units}

    @cached_property
    def table(self) -> NDArray[np.float32]:
        """What drawn engines draw from."""
        return DrawnEngine.table(self.scenario.task, 1)

    def random(self, *names: str) -> Random:
        """A generator of its own for each part, so that none depends on what another one draws."""
        return Random("/".join((self.scenario.seed, *names)))

    def mishaps_of(self, link: str) -> Mishaps | None:
        return None if self.scenario.mishaps is None else self._mishaps.get(link, {})

    def run(self) -> Outcome:
        violation = None
        try:
            with shared() if self.scenario.shares else nullcontext():
                self._start()
                self._run_until(self.scenario.faults_end)
                self._calm_down()
                self._part()
        except Violation as found:
            violation = found
            self.trace.note(self.scheduler.now, "violation:", found.invariant, found.text.splitlines()[0])
        happened = [mishap for node in self._nodes() for mishap in node.link.happened]
        return Outcome(
            events=self.trace.events,
            acknowledgements=self.trace.acknowledgements,
            seconds=self.scheduler.now,
            digest=self.trace.digest,
            violation=violation,
            mishaps=tuple(sorted(happened)),
        )

    def close(self) -> None:
        """Give back what the disks hold."""
        for node in self._nodes():
            node.disk.destroy()

    def _nodes(self) -> list[Node]:
        return [self.coordinator, *self.gateways.values()]

    # -- the course --------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self.coordinator.begin()
        for node in self.gateways.values():
            self.scheduler.at(node.unit.starts_at, node.begin)
        for fault in self.scenario.faults:
            self.scheduler.at(fault.at, self._meet, fault)

    def _run_until(self, time: float) -> None:
        scheduler = self.scheduler
        while scheduler.now < time:
            before, events = scheduler.now, self.trace.events
            most = self.scenario.most_events
            scheduler.run_until(min(time, before + 600.0), self.trace, events + most)
            if self.trace.events - events >= most:
                raise Violation("quiet", f"{most:,} events in {scheduler.now - before:.0f} s: a loop")

    def _calm_down(self) -> None:
        """Nothing goes wrong any more: the run must come to its end."""
        self.trace.note(self.scheduler.now, "calm", "everything")
        if not self.broker.up:
            self.broker.start()
        for node in self._nodes():
            node.armed, node.factor, node.disk.full = None, 1.0, False
            node.link.noise, node.link.blocked_until = None, 0.0
            if node.link.swallowed and node.session is not None:
                # What a broker has lost without a word, it makes good when the client comes again.
                node.session.cut()
        for gateway in self.gateways.values():
            gateway.low_until = 0.0
        until = self.scheduler.now + self.scenario.most_seconds
        while not self._is_quiet():
            if self.scheduler.now >= until or self.scheduler.next_at is None:
                raise Violation("quiet", self._unrest())
            self._run_until(max(self.scheduler.now + 5.0, min(self.scheduler.next_at, until)))
        if self.checker is not None:
            self.checker.quiet()

    def _is_quiet(self) -> bool:
        coordinator = self.coordinator
        if coordinator.service is None or not coordinator.is_idle:
            return False
        if not fleet.is_at_rest(coordinator.service):
            return False
        version = coordinator.service.only.version
        for node in self.gateways.values():
            if node.service is None or not node.is_idle:
                return False
            state = fleet.state_of(node.service)
            if state.version != version or state.pending is not None:
                return False
        return True

    def _unrest(self) -> str:
        coordinator = self.coordinator
        told = [f"no rest {self.scenario.most_seconds:.0f} s after the last fault"]
        if coordinator.service is not None:
            rest = fleet.is_at_rest(coordinator.service)
            told.append(
                f"the coordinator is at version {coordinator.service.only.version}, {'' if rest else 'not '}at rest"
            )
        for node in self.gateways.values():
            if node.service is None or not node.alive:
                told.append(f"{node.name} is away")
                continue
            state = fleet.state_of(node.service)
            pending = "" if state.pending is None else f", update {state.pending.counter} pending"
            if pending or coordinator.service is None or state.version != coordinator.service.only.version:
                told.append(f"{node.name} is at version {state.version}{pending}")
        return "; ".join(told[:8])

    def _part(self) -> None:
        """Everyone leaves, and the books are closed."""
        for node in self.gateways.values():
            assert node.service is not None
            node.spent = 0.0
            node.run(node.service.leave)
            node.alive = False
        self.scheduler.run_until(self.scheduler.now + 120.0, self.trace, None)
        carried = {}
        for node in self.gateways.values():
            node.note_life(left=True)
            for nonce, up, down, left in node.lives:
                carried[node.name, nonce] = (up, down, left)
        if self.checker is not None:
            self.checker.bytes(self.coordinator.disk, carried)

    # -- faults ------------------------------------------------------------------------------------------------

    def _meet(self, fault: Fault) -> None:
        scheduler = self.scheduler
        if scheduler.now > self.scenario.faults_end:
            return
        self.trace.event(scheduler.now, "fault:", fault.target, str(fault))
        over = scheduler.now + fault.seconds
        if fault.kind == "broker":
            if self.broker.up:
                self.broker.stop(keeps=bool(fault.value))
                scheduler.at(over, self._broker_back)
            return
        node = self.coordinator if fault.target == COORDINATOR else self.gateways.get(fault.target)
        if node is None:
            return
        match fault.kind:
            case "noise":
                node.link.noise = fault.noise
                scheduler.at(over, self._noise_ends, (node, fault.noise))
            case "cut":
                if node.session is not None:
                    node.session.cut()
            case "partition":
                node.link.blocked_until = max(node.link.blocked_until, over)
                if fault.value < fault.seconds and node.session is not None:
                    scheduler.at(scheduler.now + fault.value, self._found_out, (node, node.session))
            case "crash" if fault.point:
                if node.alive:
                    node.arm(fault)
            case "crash" | "power":
                # What it is busy with, it has done already, here: it dies as it ends.
                scheduler.at(max(scheduler.now, node.busy_until), self._kill, (node, fault))
            case "clock":
                self.coordinator.clock_offset += fault.value
                if self.coordinator.alive:
                    self.coordinator.look_ahead()
            case "slow":
                node.factor = fault.value
                scheduler.at(over, self._fast_again, node)
            case "gate" if isinstance(node, GatewayNode):
                node.low_until = over
            case "disk":
                node.disk.full = True
                scheduler.at(over, self._disk_has_room, node)

    def _broker_back(self, _: object) -> None:
        self.trace.event(self.scheduler.now, "restart", BROKER)
        self.broker.start()

    def _noise_ends(self, what: tuple[Node, Noise]) -> None:
        node, noise = what
        if node.link.noise is noise:
            node.link.noise = None

    def _found_out(self, what: tuple[Node, _Session]) -> None:
        node, session = what
        if node.link.blocked_until > self.scheduler.now:
            session.cut()

    def _kill(self, what: tuple[Node, Fault]) -> None:
        node, fault = what
        if node.alive:
            self.trace.event(self.scheduler.now, "killed", node.name)
            node.end(fault.seconds, power=fault.kind == "power")

    def _fast_again(self, node: Node) -> None:
        node.factor = 1.0

    def _disk_has_room(self, node: Node) -> None:
        node.disk.full = False


def _innermost(error: BaseException) -> str:
    """Where it was raised, in two lines."""
    frames = traceback.extract_tb(error.__traceback__)[-2:]
    return "\n".join(f"  {frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.line}" for frame in frames)
