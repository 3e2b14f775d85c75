"""What gateways tell of machines, through a whole federation in virtual time: nothing is lost and nothing doubled."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from fedmq_coordinator.audit import AuditLog, Who
from fedmq_coordinator.control import AlertOrder, place_alert_order
from fedmq_coordinator.ledger import Ledger, Order
from fedmq_coordinator.machines import LOST, Alert, FleetSpread
from fedmq_coordinator.settings import DriftSettings, FleetSettings
from fedmq_edge_node.service import CRASH_POINTS
from fedmq_protocol.condition import AlertOrders, Condition, FleetLimits, Noted
from fedmq_protocol.messages import Message, from_bytes, split
from fedmq_protocol.session import Received
from fedmq_protocol.topics import parse
from machine_rows import HIGHER
from plant import Plant
from trust import TrustAuthority
from watched_machines import LivingMachine, WatchedMachines

ANN = Who(user="ann", uid=1000, how="local")


@contextlib.contextmanager
def plant_of(directory: Path, gateways: int = 1, **more: object) -> Iterator[tuple[Plant, list[WatchedMachines]]]:
    watches = [WatchedMachines(directory / f"g{n}" / "watch" / "alerts.sqlite") for n in range(gateways)]
    yield Plant(directory, gateways=gateways, rounds=1, watched=True, **more), watches  # type: ignore[arg-type]
    for watch in watches:
        watch.book.close()


def message_of(received: Received) -> Message:
    return from_bytes(parse(received.topic).spec, split(received.payload).plain)


def about_machines(received: Received) -> bool:
    return received.topic.endswith("/condition")


def order(plant: Plant, gateway: str, alert: int, what: str, fault: str = "") -> int:
    with contextlib.closing(Ledger(plant.directory / "ledger.sqlite", visit=True)) as visitor:
        wanted = AlertOrder(gateway=gateway, alert=alert, what=what, fault=fault)  # type: ignore[arg-type]
        return place_alert_order(visitor, AuditLog(plant.directory / "audit.log"), ANN, wanted, plant.now)


def result(plant: Plant, number: int) -> Order:
    found = plant.ledger.get_order(number)
    assert found is not None
    return found


def the_alert(plant: Plant, gateway: str, number: int) -> Alert | None:
    return plant.ledger.alert(gateway, number)


@pytest.mark.parametrize("sealed", [False, True], ids=["open", "sealed"])
def test_the_coordinator_hears_of_machines_alerts_and_what_is_normal(tmp_path: Path, sealed: bool) -> None:
    authority = TrustAuthority() if sealed else None
    with plant_of(tmp_path, authority=authority) as (plant, (watch,)):
        watch.stand(windows=40, zone="B", level=0.6)
        watch.stand("fan-1", kind="fan", state="stopped", zone=None)
        summary = watch.learn()
        number = watch.raise_alert(level=1.2)
        plant.run_until(lambda: the_alert(plant, "g0", number) is not None and len(plant.ledger.machines()) == 2)
        alert = the_alert(plant, "g0", number)
        assert alert is not None
        assert (alert.machine, alert.kind, alert.state, alert.severity, alert.level) == (
            "pump-1",
            "vibration",
            "open",
            "warning",
            1.2,
        )
        assert [one.name for one in alert.evidence] == ["velocity", "kurtosis"]
        assert len(alert.evidence[0].trend) == 24
        fan, pump = plant.ledger.machines()
        assert (fan.name, fan.kind, fan.state, fan.zone) == ("fan-1", "fan", "stopped", None)
        assert (pump.learnt_pct, pump.zone, pump.level) == (40, "B", 0.6)
        plant.run_until(lambda: plant.ledger.summaries())
        (told,) = plant.ledger.summaries()
        assert (told.kind, told.band, told.measure) == ("pump", "all", "acceleration")
        assert told.sketch == summary.to_bytes()


def test_where_nothing_changes_nothing_is_sent_also_after_a_restart_of_either_side(tmp_path: Path) -> None:
    with plant_of(tmp_path) as (plant, (watch,)):
        watch.stand()
        watch.learn()
        watch.raise_alert()
        plant.run_until(lambda: plant.ledger.summaries() and plant.ledger.alerts())
        plant.run_until(lambda: plant.job.resting)
        said: Counter[str] = Counter()

        def count(client: str, received: Received) -> bool:
            said[client] += about_machines(received)
            return False

        plant.lose = count
        for _ in range(2):
            until = plant.now + 120
            plant.run_until(lambda until=until: plant.now > until)
            plant.kill_gateway("g0")
            plant.start_gateway("g0")
            until = plant.now + 120
            plant.run_until(lambda until=until: plant.now > until)
            plant.kill_coordinator()
            plant.start_coordinator()
        # How it moves within its class is worth no word; that it has stopped is.
        watch.stand(level=0.6, at=1_700_000_500.0)
        until = plant.now + 60
        plant.run_until(lambda: plant.now > until)
        assert not +said
        watch.stand(state="stopped")
        plant.run_until(lambda: plant.ledger.machines()[0].state == "stopped")
        assert said["coordinator"] == 1


@pytest.mark.parametrize("seed", range(3))
def test_however_many_messages_are_lost_or_doubled_both_sides_come_to_the_same(tmp_path: Path, seed: int) -> None:
    with plant_of(tmp_path, 2) as (plant, watches):
        rng = Random(seed)
        kept: list[tuple[str, Received]] = []

        def lose(client: str, received: Received) -> bool:
            if not about_machines(received):
                return False
            if rng.random() < 0.2:
                kept.append((client, received))
            return rng.random() < 0.3

        plant.lose = lose
        raised = [0, 0]
        orders = []
        for turn in range(12):
            for n, watch in enumerate(watches):
                watch.stand(windows=8 * turn, state=rng.choice(["running", "stopped"]))
                watch.raise_alert(f"pump-{turn}")
                raised[n] += 1
                if turn % 3 == 0:
                    watch.clear(f"pump-{turn}")
            until = plant.now + rng.uniform(5, 40)
            plant.run_until(lambda until=until: plant.now > until)
            for client, received in kept[-2:]:
                # What came before comes once more, late.
                if client == "coordinator":
                    plant.coordinator.step([received], plant.now)
            if turn == 5:
                plant.kill_gateway("g0")
                plant.start_gateway("g0")
            if turn == 7:
                plant.kill_coordinator()
                plant.start_coordinator()
            if plant.ledger.alert("g1", turn) is not None:
                orders.append(order(plant, "g1", turn, "confirm", "ball"))
        plant.run_until(lambda: len(plant.ledger.alerts()) == sum(raised), seconds=20_000)
        plant.run_until(lambda: all(result(plant, number).done for number in orders), seconds=20_000)
        plant.lose = lambda client, received: False
        plant.run_until(
            lambda: all(
                {one.number: (one.state, one.machine) for one in plant.ledger.alerts(gateway=f"g{n}")}
                == {one.id: (one.state, one.machine) for one in watch.book.alerts()}
                for n, watch in enumerate(watches)
            ),
            seconds=20_000,
        )
        for n, watch in enumerate(watches):
            assert len(plant.ledger.alerts(gateway=f"g{n}")) == len(watch.book.alerts()) == 12
            for alert in watch.book.alerts():
                said = Counter(step.what for step in watch.book.steps(alert.id))
                assert said["confirmed"] <= 1
        assert orders


def test_an_order_is_carried_out_once_and_survives_restarts_of_both_sides(tmp_path: Path) -> None:
    with plant_of(tmp_path) as (plant, (watch,)):
        watch.stand()
        number = watch.raise_alert()
        plant.run_until(lambda: the_alert(plant, "g0", number) is not None)
        plant.kill_gateway("g0")
        plant.run_until(lambda: not any(g.present for g in plant.ledger.gateways()))
        ack, confirm = order(plant, "g0", number, "ack"), order(plant, "g0", number, "confirm", "ball")
        plant.tick(2.0)
        plant.kill_coordinator()
        plant.start_coordinator()
        plant.start_gateway("g0")
        plant.run_until(lambda: result(plant, confirm).done is not None)
        assert (result(plant, ack).done, result(plant, confirm).done) == (True, True)
        said = [(step.what, step.who, step.text) for step in watch.book.steps(number)]
        assert said[1:] == [("acknowledged", "ann", ""), ("confirmed", "ann", "ball")]
        assert [order.what for order in watch.book.orders()] == ["confirmed"]
        plant.run_until(lambda: plant.ledger.alerts()[0].state == "confirmed")
        assert plant.ledger.alerts()[0].verdict == "ball"
        assert plant.ledger.alert_orders_waiting() == []


def test_an_order_that_cannot_be_carried_out_is_told_with_the_reason(tmp_path: Path) -> None:
    with plant_of(tmp_path) as (plant, (watch,)):
        watch.book.take_only(["inner_race"])
        watch.stand()
        number = watch.raise_alert()
        plant.run_until(lambda: the_alert(plant, "g0", number) is not None)
        wrong = order(plant, "g0", number, "confirm", "gremlins")
        plant.run_until(lambda: result(plant, wrong).done is not None)
        assert result(plant, wrong).done is False
        assert "expected one of inner_race" in (result(plant, wrong).result or "")
        assert watch.book.alert(number).state == "open"
        other = order(plant, "g0", number, "confirm", "other: gremlins")
        plant.run_until(lambda: result(plant, other).done is not None)
        assert result(plant, other).done is True
        plant.run_until(lambda: plant.ledger.alerts()[0].verdict == "other: gremlins")


def test_after_the_word_of_what_was_done_is_lost_it_is_not_done_again(tmp_path: Path) -> None:
    with plant_of(tmp_path) as (plant, (watch,)):
        watch.stand()
        number = watch.raise_alert()
        plant.run_until(lambda: the_alert(plant, "g0", number) is not None)
        said = []

        def lose(client: str, received: Received) -> bool:
            if not about_machines(received):
                return False
            message = message_of(received)
            if isinstance(message, AlertOrders):
                said.append(message)
            return isinstance(message, Condition) and bool(message.done) and len(said) < 3

        plant.lose = lose
        ack = order(plant, "g0", number, "ack")
        plant.run_until(lambda: result(plant, ack).done is not None, seconds=3600)
        assert len({message.orders[0].key for message in said}) == 1
        assert [step.what for step in watch.book.steps(number)] == ["raised", "acknowledged"]


def test_a_coordinator_put_back_from_an_older_copy_hears_everything_anew(tmp_path: Path) -> None:
    with plant_of(tmp_path) as (plant, (watch,)):
        watch.stand()
        watch.raise_alert()
        plant.run_until(lambda: plant.ledger.alerts())
        plant.run_until(lambda: plant.job.resting)
        plant.kill_coordinator()
        older = (tmp_path / "ledger.sqlite").read_bytes()
        plant.start_coordinator()
        watch.raise_alert("pump-2")
        watch.stand("pump-2")
        plant.run_until(lambda: len(plant.ledger.alerts()) == 2 and len(plant.ledger.machines()) == 2)
        plant.kill_coordinator()
        for suffix in ("-wal", "-shm"):
            (tmp_path / f"ledger.sqlite{suffix}").unlink(missing_ok=True)
        (tmp_path / "ledger.sqlite").write_bytes(older)
        plant.start_coordinator()
        assert len(plant.ledger.alerts()) == 1
        plant.run_until(lambda: len(plant.ledger.alerts()) == 2 and len(plant.ledger.machines()) == 2)


def test_another_book_counts_anew_and_alerts_of_the_lost_one_are_told_as_lost(tmp_path: Path) -> None:
    with plant_of(tmp_path) as (plant, (watch,)):
        watch.stand()
        watch.raise_alert()
        plant.run_until(lambda: plant.ledger.alerts())
        plant.kill_gateway("g0")
        watch.book.close()
        for path in plant.book_of("g0").parent.iterdir():
            path.unlink()
        again = WatchedMachines(plant.book_of("g0"))
        again.stand("pump-7")
        again.raise_alert("pump-7")
        plant.start_gateway("g0")
        plant.run_until(lambda: len(plant.ledger.alerts()) == 2)
        assert {one.machine: one.state for one in plant.ledger.alerts()} == {"pump-1": LOST, "pump-7": "open"}
        plant.run_until(lambda: [one.name for one in plant.ledger.machines()] == ["pump-7"])
        again.book.close()


def test_what_is_normal_at_three_gateways_becomes_a_limit_and_one_liar_does_not_move_it(tmp_path: Path) -> None:
    settings = FleetSettings(merge_minutes=0.0)
    with plant_of(tmp_path, 4, fleet=settings) as (plant, watches):
        for n, watch in enumerate(watches[:2]):
            watch.stand()
            watch.learn(centre=1.0 + n / 100, seed=n)
        watches[3].stand(windows=10)
        plant.run_until(lambda: len(plant.ledger.summaries()) == 2)
        until = plant.now + 30
        plant.run_until(lambda: plant.now > until)
        assert plant.ledger.merged_limits() == []
        assert watches[3].book.fleet_limits() == ""
        watches[2].stand()
        watches[2].learn(centre=1000.0, seed=9)
        plant.run_until(lambda: watches[3].book.fleet_limits())
        (limit,) = plant.ledger.merged_limits()
        assert (limit.kind, limit.measure, limit.gateways) == ("pump", "acceleration", 3)
        assert limit.by_share[0.5] == pytest.approx(1.0, rel=0.05)
        assert limit.by_share[0.99] < 1.4
        plant.run_until(lambda: all(watch.limits for watch in plant.ledger.watches()))


def drifting_plant(
    directory: Path, retrain: str
) -> contextlib.AbstractContextManager[tuple[Plant, list[WatchedMachines]]]:
    settings = DriftSettings(retrain=retrain, hours=0.5, share=0.3, min_gateways=2)  # type: ignore[arg-type]
    return plant_of(directory, 3, drift=settings)


def proposal_state(plant: Plant) -> str:
    proposal = plant.book.proposal()
    assert proposal is not None
    return proposal.state


@pytest.mark.parametrize("retrain", ["propose", "open"])
def test_drift_that_lasts_at_many_machines_is_proposed_or_opens_rounds(tmp_path: Path, retrain: str) -> None:
    with drifting_plant(tmp_path, retrain) as (plant, watches):
        for n, watch in enumerate(watches):
            watch.stand()
            watch.learn(drifting=3 if n == 0 else 0)
        plant.run_until(lambda: plant.job.resting and len(plant.ledger.machines()) == 3)
        rounds = len(plant.ledger.rounds())
        until = plant.now + 3600
        plant.run_until(lambda: plant.now > until, seconds=4000)
        assert plant.ledger.fleet_drifts() == []  # one gateway alone brings none about
        watches[1].learn(drifting=4)
        plant.run_until(lambda: plant.ledger.fleet_drifts())
        (drift,) = plant.ledger.fleet_drifts()
        assert (drift.machines, drift.drifting, drift.gateways, drift.measures) == (3, 2, 2, "acceleration")
        assert plant.book.proposal() is None
        plant.run_until(lambda: plant.book.proposal() is not None, seconds=4000)
        proposal = plant.book.proposal()
        assert proposal is not None
        assert "2 of 3 pumps at 2 gateways" in proposal.reason
        if retrain == "propose":
            assert proposal.state == "proposed"
            assert len(plant.ledger.rounds()) == rounds
            assert plant.order("retrain").done
        plant.run_until(lambda: len(plant.ledger.rounds()) > rounds)
        assert proposal_state(plant) == "opened"
        plant.run_until(lambda: plant.job.resting)


def test_drift_that_goes_again_before_anybody_orders_anything_is_over(tmp_path: Path) -> None:
    with drifting_plant(tmp_path, "propose") as (plant, watches):
        for watch in watches:
            watch.stand()
            watch.learn(drifting=3)
        plant.run_until(lambda: plant.book.proposal() is not None, seconds=4000)
        for watch in watches:
            watch.learn(drifting=0)
        plant.run_until(lambda: proposal_state(plant) == "over", seconds=400)
        assert plant.ledger.fleet_drifts() == []


# -- how all machines hold to what is normal for them ----------------------------------------------------------

DAY = 92
"""Windows, about, of which each machine makes one look: some are dropped where its level changes suddenly."""
MACHINES = 3
"""At each gateway."""


@functools.cache
def lived(name: str, level_g: float, seed: int) -> LivingMachine:
    """Its normal is learnt, and a few days more."""
    machine = LivingMachine(name, level_g=level_g, seed=seed)
    machine.run(2 * DAY + 3 * DAY)
    return machine


class Pumps:
    """Of very different levels, some at each gateway."""

    def __init__(self, watches: list[WatchedMachines]) -> None:
        self.watches = watches
        count = MACHINES * len(watches)
        self.machines = [copy.deepcopy(lived(f"pump-{n}", 0.1 * (1 + n), n)) for n in range(count)]
        self.run(0)

    def run(self, days: int, *, louder: float = 0.0, which: slice = slice(None)) -> None:
        for n, machine in list(enumerate(self.machines))[which]:
            machine.run(days * DAY, louder=louder)
            machine.tell(self.watches[n // MACHINES])


def run_for(plant: Plant, seconds: float) -> None:
    until = plant.now + seconds
    plant.run_until(lambda: plant.now > until, seconds=seconds + 100)


def spread_of(plant: Plant, measure: str) -> FleetSpread:
    (found,) = (one for one in plant.ledger.fleet_spreads() if one.measure == measure)
    return found


def test_a_season_that_shifts_all_machines_a_little_is_drift_of_the_fleet_and_of_no_machine(tmp_path: Path) -> None:
    with drifting_plant(tmp_path, "propose") as (plant, watches):
        pumps = Pumps(watches)
        plant.run_until(lambda: len(plant.ledger.spreads()) == 12 and plant.job.resting)
        run_for(plant, 120)
        before = plant.ledger.fleet_spreads()
        assert {one.measure for one in before} == {"acceleration", "velocity", "kurtosis", "crest"}
        assert {(one.machines, one.gateways, one.since) for one in before} == {(9, 3, None)}
        for shift in (0.2, 0.4, 0.5):
            pumps.run(1, louder=shift)
            run_for(plant, 120)
        pumps.run(1, louder=0.5)
        plant.run_until(lambda: spread_of(plant, "acceleration").since is not None)
        loud = spread_of(plant, "acceleration")
        assert loud.how.startswith("higher: ")
        assert loud.stability < 0.4
        assert {one.drift for one in plant.ledger.machines()} == {""}
        assert plant.ledger.fleet_drifts() == []
        assert (spread_of(plant, "kurtosis").since, spread_of(plant, "crest").since) == (None, None)
        assert plant.book.proposal() is None
        plant.run_until(lambda: plant.book.proposal() is not None, seconds=4000)
        proposal = plant.book.proposal()
        assert proposal is not None
        assert "acceleration of 9 pumps at 3 gateways together is higher: " in proposal.reason
        assert proposal.state == "proposed"
        # The season goes, and with it what was proposed.
        pumps.run(2)
        plant.run_until(lambda: proposal_state(plant) == "over", seconds=400)


def test_one_machine_that_drifts_is_told_as_itself_and_moves_no_fleet(tmp_path: Path) -> None:
    with drifting_plant(tmp_path, "open") as (plant, watches):
        pumps = Pumps(watches)
        pumps.run(4, louder=2.0, which=slice(4, 5))
        plant.run_until(lambda: any(one.drift for one in plant.ledger.machines()) and plant.job.resting)
        rounds = len(plant.ledger.rounds())
        run_for(plant, 4000)
        (drifting,) = (one for one in plant.ledger.machines() if one.drift)
        assert drifting.name == "pump-4"
        loud = spread_of(plant, "acceleration")
        assert loud.of_others is not None
        assert loud.stability > 2 * loud.of_others
        assert loud.shares[-1] > 150
        assert {one.since for one in plant.ledger.fleet_spreads()} == {None}
        assert plant.book.proposal() is None
        assert len(plant.ledger.rounds()) == rounds


def test_a_machine_that_stands_still_for_days_is_no_drift(tmp_path: Path) -> None:
    with drifting_plant(tmp_path, "open") as (plant, watches):
        pumps = Pumps(watches)
        plant.run_until(lambda: len(plant.ledger.spreads()) == 12)
        # The loudest ones stand: what all of them measure together is something else than it was.
        pumps.run(2, which=slice(-2))
        run_for(plant, 4000)
        assert {(one.machines, one.since) for one in plant.ledger.fleet_spreads()} == {(9, None)}
        assert plant.book.proposal() is None


@pytest.mark.parametrize("retrain", ["propose", "open"])
def test_a_measure_that_has_drifted_over_all_machines_is_a_reason_for_the_tasks_that_it_concerns(
    tmp_path: Path, retrain: str
) -> None:
    with drifting_plant(tmp_path, retrain) as (plant, watches):
        # Two gateways of three tell, the third has software that knows nothing of it.
        for n, watch in enumerate(watches):
            watch.stand()
            watch.learn(epochs=[HIGHER] * 3 if n else [], measures=["score of another task of version 1-2-ab"])
        plant.run_until(lambda: plant.job.resting and plant.ledger.fleet_spreads())
        rounds = len(plant.ledger.rounds())
        run_for(plant, 4000)
        assert spread_of(plant, "score of another task of version 1-2-ab").since is not None
        assert plant.book.proposal() is None
        for watch in watches[1:]:
            watch.learn(epochs=[HIGHER] * 3, measures=["score of story of version 1-2-ab"])
        plant.run_until(lambda: plant.book.proposal() is not None, seconds=4000)
        proposal = plant.book.proposal()
        assert proposal is not None
        assert proposal.reason.startswith(
            "score of story of version 1-2-ab of 2 pumps at 2 gateways together is higher"
        )
        if retrain == "propose":
            assert (proposal.state, len(plant.ledger.rounds())) == ("proposed", rounds)
        else:
            plant.run_until(lambda: len(plant.ledger.rounds()) > rounds)


def test_spreads_are_still_known_after_a_restart_of_either_side_and_nothing_is_said_for_it(tmp_path: Path) -> None:
    with drifting_plant(tmp_path, "propose") as (plant, watches):
        for n, watch in enumerate(watches):
            watch.stand()
            watch.learn(epochs=[HIGHER] * 3, seed=n)
        plant.run_until(lambda: len(plant.ledger.spreads()) == 3 and plant.ledger.fleet_spreads())
        plant.run_until(lambda: plant.job.resting)
        run_for(plant, 1200)  # the fleet's limits are told, too
        (before,) = plant.ledger.fleet_spreads()
        said = [watch.messages for watch in plant.ledger.watches()]
        plant.kill_coordinator()
        plant.kill_gateway("g0")
        plant.start_coordinator()
        plant.start_gateway("g0")
        run_for(plant, 600)
        assert plant.ledger.fleet_spreads() == [before]
        assert [watch.messages for watch in plant.ledger.watches()] == said


@pytest.mark.parametrize("point", ["before condition", "after condition"])
def test_a_courier_killed_around_its_message_loses_and_doubles_nothing(tmp_path: Path, point: str) -> None:
    assert point in CRASH_POINTS

    class Killed(BaseException):
        pass

    with plant_of(tmp_path) as (plant, (watch,)):
        watch.stand()
        left = 3

        def at(passed: str) -> None:
            nonlocal left
            if passed == point:
                left -= 1
                if left >= 0:
                    raise Killed

        plant.gateways["g0"]._crash_point = at
        raised = 0
        until = plant.now + 600
        while len(plant.ledger.alerts()) < 6 or left > 0:
            assert plant.now < until
            if raised < 6:
                raised += 1
                watch.raise_alert(f"pump-{raised}")
            try:
                for _ in range(120):
                    plant.tick()
            except Killed:
                plant.kill_gateway("g0")
                plant.start_gateway("g0")._crash_point = at
        assert sorted(one.number for one in plant.ledger.alerts()) == [1, 2, 3, 4, 5, 6]


def test_gateways_without_a_watch_say_and_hear_nothing_of_machines(tmp_path: Path) -> None:
    plant = Plant(tmp_path, gateways=2, rounds=1)
    heard = []

    def note(client: str, received: Received) -> bool:
        if about_machines(received):
            heard.append(message_of(received))
        return False

    plant.lose = note
    plant.run_to_rest()
    assert not [one for one in heard if isinstance(one, Condition | Noted | FleetLimits | AlertOrders)]
    assert plant.ledger.watches() == []
