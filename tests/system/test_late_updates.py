"""Updates that come after their round has closed, and rounds that wait for nobody: both told with slow gateways."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import numpy as np
import pytest
from fedmq_coordinator.aggregate import AggregationRule
from fedmq_coordinator.ledger import Answer, Folded
from fedmq_coordinator.settings import RoundSettings
from fedmq_edge_node.memory import GatewayState
from fedmq_edge_node.service import Gateway
from fedmq_edge_node.work import sent_by
from fedmq_protocol.messages import Chunk, Receipt, RoundPlan, Update, Verdict, from_bytes
from fedmq_protocol.session import Received
from fedmq_protocol.task import Task
from fedmq_protocol.topics import parse
from numpy.typing import NDArray
from plant import Plant, make_task

BUFFERED = {"aggregation": "buffered", "buffer_updates": 3}
WEIGHED = {"late": "weigh"}


class SlowPlant(Plant):
    """A plant whose gateways need `seconds` until their updates reach the coordinator; the task is the settings'."""

    def __init__(self, directory: Path, *, gateways: int = 4, **settings: Any) -> None:
        self.seconds: dict[str, float] = {}
        self.held: list[tuple[float, Received]] = []
        self.books = Books()
        self.held_in: dict[int, int] = {}
        """How many updates each version was made of, by its round."""
        values = {"max_rounds": 12, "min_gateways": gateways, "closing_seconds": 10.0} | settings
        rounds = RoundSettings(**values)
        task = make_task(staleness=rounds.staleness)
        super().__init__(directory, gateways=gateways, task=task, settings=rounds)
        self.lose = self.hold

    def start_gateway(self, name: str) -> Gateway:
        gateway = super().start_gateway(name)
        self.books.watch(name, gateway, self.task)
        return gateway

    def start_coordinator(self, *, new_lineage: bool = False) -> None:
        super().start_coordinator(new_lineage=new_lineage)
        line = self.job.line
        apply = line.apply

        def applying(mean: AggregationRule, round_id: int, **words: Any) -> int:
            self.held_in[round_id] = mean.updates
            return apply(mean, round_id, **words)

        line.apply = applying  # type: ignore[method-assign]

    def hold(self, client: str, received: Received) -> bool:
        """An update of a slow gateway waits."""
        if client != "coordinator" or not isinstance(message(received), Update):
            return False
        name = parse(received.topic).gateway or ""
        if not self.seconds.get(name):
            return False
        if received not in [held for _, held in self.held]:
            self.held.append((self.now + self.seconds[name], received))
        return True

    def tick(self, seconds: float = 0.05) -> None:
        for due, received in list(self.held):
            if due <= self.now and self.coordinator_session.connected:
                self.held.remove((due, received))
                self.coordinator.step([received], self.now)
        super().tick(seconds)

    def updates(self, verdict: str = "accepted") -> list[Answer]:
        return [a for a in self.book.answers() if a.kind == "update" and a.verdict == verdict]

    def receipts(self, name: str) -> list[Receipt]:
        """To a gateway."""
        found = []
        for published in self.broker.log:
            if f"/cmd/{name}/receipt" in published.topic:
                said = from_bytes(parse(published.topic).spec, published.payload)
                if isinstance(said, Receipt):
                    found.append(said)
        return found

    def run_to_quiet(self) -> None:
        """The run rests, and every gateway knows what became of its update."""
        self.run_until(lambda: self.job.resting is not None, seconds=3000.0)
        self.run_until(lambda: not self.held and all(g.state.pending is None for g in self.gateways.values()))


def message(received: Received) -> object:
    return from_bytes(parse(received.topic).spec, received.payload)


class Books:
    """What every gateway has learnt, and what each of its updates came to, by counter."""

    def __init__(self) -> None:
        self.learnt: dict[str, NDArray[np.float64]] = {}
        self.coded: dict[tuple[str, int], NDArray[np.float32]] = {}

    def watch(self, name: str, gateway: Gateway, task: Task) -> None:
        self.learnt.setdefault(name, np.zeros(task.model.parameters))
        memory = gateway._memory
        save: Callable[[GatewayState], None] = memory.save

        def saving(state: GatewayState) -> None:
            before, pending = memory.saved(task.name), state.pending
            if pending is not None and (name, pending.counter) not in self.coded:
                self.coded[name, pending.counter] = sent_by(pending, task)
                # Of an update that was pending until now a plan has said that it was accepted.
                settled = 0.0 if before.pending is None else self.coded[name, before.pending.counter]
                self.learnt[name] += state.residual - (before.residual - settled)
            save(state)

        memory.save = saving  # type: ignore[method-assign]


def balance(plant: SlowPlant) -> None:
    """Accepted + residual = learnt, for each gateway; and what was accepted is in one version, or owed to the next."""
    accepted = plant.updates()
    assert len({(a.gateway, a.counter) for a in accepted}) == len(accepted)
    for name, gateway in plant.gateways.items():
        counted = sum(plant.books.coded[name, a.counter] for a in accepted if a.gateway == name)
        np.testing.assert_allclose(counted + gateway.state.residual, plant.books.learnt[name], atol=2e-5)
    applied = [r for r in plant.book.rounds() if r.outcome == "applied" and r.kind == "training"]
    assert [r.version for r in applied] == list(range(1, plant.version + 1))
    waiting = sum(a.payload is not None for a in accepted)
    assert sum(plant.held_in[r.id] for r in applied) == len(accepted) - waiting


# --- late ------------------------------------------------------------------------------------------------------------


def test_one_to_a_round_that_is_summed_up_already_is_put_back_and_not_taken_without_a_record(tmp_path: Path) -> None:
    plant = SlowPlant(tmp_path, **WEIGHED)
    plant.run_until(lambda: plant.version == 1)
    plant.seconds["g3"] = 13.0
    plant.run_until(lambda: plant.held)
    update = message(plant.held[0][1])
    assert isinstance(update, Update)
    plant.run_until(lambda: (row := plant.book.round(update.round_id)) and row.closed_at is not None)
    plant.ledger.fold_round(update.round_id, msgspec.msgpack.encode(Folded()))
    plant.ledger.commit()
    plant.run_until(lambda: not plant.held)
    told = [receipt.verdict for receipt in plant.receipts("g3") if receipt.round_id == update.round_id]
    assert Verdict.ACCEPTED not in told, "it is on record nowhere"
    assert told[-1] is Verdict.CLOSED
    assert plant.book.answer(update.round_id, "g3") is None


def test_a_late_update_counts_in_the_round_that_is_open_then_and_hears_of_it_at_once(tmp_path: Path) -> None:
    plant = SlowPlant(tmp_path, **WEIGHED)
    plant.run_until(lambda: plant.version == 1)
    plant.seconds["g3"] = 13.0
    plant.run_until(lambda: any(a.late for a in plant.updates()))
    (late,) = [a for a in plant.updates() if a.late]
    asked, counted = plant.book.round(late.round), plant.book.round(late.counted_in or 0)
    assert asked is not None
    assert counted is not None
    assert asked.closed_at is not None
    assert asked.closed_at < late.received_at
    assert counted.outcome == "open"
    assert (late.gateway, counted.id, counted.base) == ("g3", asked.id + 1, asked.base + 1)
    assert plant.receipts("g3")[-1] == Receipt(round_id=asked.id, counter=late.counter, verdict=Verdict.ACCEPTED)
    plant.seconds.clear()
    plant.run_to_quiet()
    balance(plant)
    assert {a.verdict for a in plant.book.answers()} == {"accepted"}
    assert set(plant.digests().values()) == {plant.digest}


def test_a_late_update_weighs_less_by_the_rounds_since_its_own(tmp_path: Path) -> None:
    plant = SlowPlant(tmp_path, staleness_exponent=1.0, **WEIGHED)
    plant.run_until(lambda: plant.version == 1)
    plant.seconds["g3"] = 25.0
    plant.run_until(lambda: any(a.late for a in plant.updates()))
    (late,) = [a for a in plant.updates() if a.late]
    waited = plant.book.rounds_between(plant.lineage, late.round, late.counted_in or 0)
    assert waited == 2
    mean = plant.job.run.mean
    assert mean is not None
    others = sum(a.weight for a in plant.updates() if a.round == late.counted_in)
    assert late.weight == 120, "as much as it would have had in time"
    assert mean.weight == others + 40


def test_where_late_ones_are_refused_the_gateway_keeps_what_it_learnt(tmp_path: Path) -> None:
    plant = SlowPlant(tmp_path)
    plant.run_until(lambda: plant.version == 1)
    plant.seconds["g3"] = 13.0
    plant.run_until(lambda: plant.updates("closed") or plant.receipts("g3"))
    plant.seconds.clear()
    plant.run_to_quiet()
    balance(plant)
    assert not any(a.late for a in plant.updates())


def test_an_update_too_many_versions_behind_is_put_back(tmp_path: Path) -> None:
    plant = SlowPlant(tmp_path, max_staleness=2, **WEIGHED)
    plant.run_until(lambda: plant.version == 1)
    plant.seconds["g3"] = 45.0
    plant.run_until(lambda: plant.receipts("g3"))
    plant.run_until(lambda: plant.updates("closed"))
    assert {r.verdict for r in plant.receipts("g3")} <= {Verdict.CLOSED, Verdict.UNKNOWN}
    plant.seconds.clear()
    plant.run_to_quiet()
    balance(plant)


def test_a_late_update_that_comes_while_no_round_is_open_is_owed_to_the_next(tmp_path: Path) -> None:
    plant = SlowPlant(tmp_path, interval_seconds=60.0, max_rounds=4, **WEIGHED)
    plant.run_until(lambda: plant.version == 1)
    plant.seconds["g3"] = 30.0
    plant.run_until(lambda: plant.book.owed(), seconds=1000.0)
    (owed,) = plant.book.owed()
    assert plant.job.run.round is None
    assert (owed.gateway, owed.counted_in) == ("g3", None)
    plant.kill_coordinator()
    plant.start_coordinator()
    plant.run_until(lambda: plant.job.run.round is not None)
    (counted,) = plant.book.owed()
    assert plant.job.run.round is not None
    assert counted.counted_in == plant.job.run.round.plan.round_id
    plant.run_until(lambda: plant.version == 3, seconds=1000.0)
    assert owed.counter not in [a.counter for a in plant.book.owed() if a.gateway == "g3"]


def test_a_late_update_that_was_lost_is_asked_for_again_and_counts(tmp_path: Path) -> None:
    plant = SlowPlant(tmp_path, **WEIGHED)
    plant.run_until(lambda: plant.version == 1)
    plant.lose = lambda client, received: (
        client == "coordinator"
        and isinstance(message(received), Update)
        and parse(received.topic).gateway == "g3"
        and plant.version == 1
    )
    plant.run_until(lambda: any(a.late for a in plant.updates()))
    assert Verdict.UNKNOWN in {r.verdict for r in plant.receipts("g3")}
    plant.run_to_quiet()
    assert set(plant.digests().values()) == {plant.digest}


@pytest.mark.parametrize("mode", [WEIGHED | {"quorum_share": 0.75}, BUFFERED | {"buffer_updates": 6}])
def test_a_restart_makes_the_same_sum_again_of_fresh_late_and_owed_updates(
    tmp_path: Path, mode: dict[str, Any]
) -> None:
    plant = SlowPlant(tmp_path, gateways=6, staleness_exponent=0.3, **mode)
    plant.run_until(lambda: plant.version == 1)
    # A round misses its quorum: three are late. The next one begins with the other three, hears one again, then a late
    # one, and waits.
    plant.seconds |= {"g3": 13.0, "g4": 15.0, "g5": 16.0}
    plant.run_until(lambda: any(r.outcome == "below quorum" for r in plant.book.rounds()))
    plant.seconds |= {"g0": 1.0, "g1": 8.0, "g2": 8.0}

    def mixed() -> bool:
        counting = plant.job.run.counting
        summed = [] if counting is None else plant.book.summed(counting)
        return {(False, False), (True, False), (False, True)} <= {(a.late, a.owed) for a in summed}

    plant.run_until(mixed)
    run = plant.job.run
    assert run.mean is not None
    assert run.round is not None
    before = (run.mean.mean().tobytes(), run.mean.weight, run.mean.updates)
    standing = (run.round.updates, run.round.summed, run.round.heard)
    plant.kill_coordinator()
    plant.start_coordinator()
    run = plant.job.run
    assert run.mean is not None
    assert run.round is not None
    assert (run.mean.mean().tobytes(), run.mean.weight, run.mean.updates) == before
    assert (run.round.updates, run.round.summed, run.round.heard) == standing
    assert run.mean.updates == run.round.summed


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("mode", [WEIGHED, BUFFERED], ids=["weighed", "buffered"])
def test_nothing_is_lost_or_counted_twice_whoever_is_slow_or_killed(
    tmp_path: Path, mode: dict[str, Any], seed: int
) -> None:
    rng = Random(seed)
    settings = {"min_gateways": 2, "first_gateways": 4, "max_rounds": 30, "max_staleness": 4, "closing_seconds": 3.0}
    plant = SlowPlant(tmp_path, **settings, **mode)
    plant.run_until(lambda: plant.version == 1)
    plant.lose = lambda client, received: rng.random() < 0.05 or plant.hold(client, received)
    for _ in range(1500):
        plant.tick(0.03)
        event, name = rng.random(), rng.choice(["g0", "g1", "g2", "g3"])
        if event < 0.02:
            plant.seconds[name] = rng.choice([0.0, 1.0, 4.0, 9.0])
        elif event < 0.025:
            plant.kill_gateway(name)
            plant.start_gateway(name)
        elif event < 0.03:
            plant.kill_coordinator()
            plant.start_coordinator()
        elif event < 0.033:
            plant.broker.restart(keeps=rng.random() < 0.5)
    plant.seconds.clear()
    plant.lose = lambda client, received: False
    plant.run_to_quiet()
    balance(plant)
    assert any(a.late for a in plant.updates())


def test_a_late_update_in_chunks_is_put_together_after_its_round_has_closed(tmp_path: Path) -> None:
    rounds = RoundSettings(max_rounds=4, min_gateways=3, closing_seconds=6.0, late="weigh")
    task = make_task(sizes=(22, 128, 64, 3), dense=True, staleness=rounds.staleness)
    plant = Plant(tmp_path, gateways=3, task=task, settings=rounds)
    plant.lose = lambda client, received: (
        client == "coordinator"
        and isinstance(message(received), Chunk)
        and parse(received.topic).gateway == "g1"
        and plant.version == 0
    )
    plant.run_until(lambda: plant.version == 4)
    closed = [r.id for r in plant.book.rounds() if r.kind == "training"]
    late = [a for a in plant.book.answers() if a.late]
    assert [(a.gateway, a.round) for a in late] == [("g1", closed[0])]
    assert late[0].payload_bytes > 40_000
    plant.run_until(lambda: set(plant.digests().values()) == {plant.digest})


def test_what_is_kept_of_closed_rounds_is_bounded_though_no_version_is_made_all_day(tmp_path: Path) -> None:
    plant = SlowPlant(
        tmp_path,
        gateways=3,
        quorum_share=1.0,
        closing_seconds=1.0,
        retry_most_seconds=1.0,
        max_rounds=60,
        max_staleness=1,
        set_aside_after=0,
        **WEIGHED,
    )
    plant.seconds["g2"] = 1e9
    plant.run_until(lambda: len(plant.book.rounds()) > 40)
    newest = plant.job.run.newest_round()
    kept = sorted(plant.job.run._closed)
    assert len(kept) == 22
    assert kept[-1] >= newest - 1
    assert plant.version == 0
    plant.kill_coordinator()
    plant.start_coordinator()
    assert sorted(plant.job.run._closed) == kept


# --- buffered --------------------------------------------------------------------------------------------------------


def test_buffered_rounds_wait_for_nobody_and_each_version_holds_as_many_updates(tmp_path: Path) -> None:
    plant = SlowPlant(
        tmp_path, gateways=6, max_rounds=25, closing_seconds=120.0, buffer_updates=4, aggregation="buffered"
    )
    plant.seconds |= {"g1": 1.0, "g2": 2.0, "g5": 8.0}
    plant.run_to_quiet()
    balance(plant)
    assert len(plant.held_in) == 25
    assert set(plant.held_in.values()) == {4}
    rounds = [r for r in plant.book.rounds() if r.kind == "training"]
    assert {r.outcome for r in rounds} == {"applied"}
    by_gateway = Counter(a.gateway for a in plant.updates())
    assert set(by_gateway) == set(plant.gateways), "slow ones count, too"
    assert any(a.late for a in plant.updates() if a.gateway == "g5")
    assert by_gateway["g0"] > by_gateway["g5"]
    plant.run_until(lambda: set(plant.digests().values()) == {plant.digest})


def test_buffered_rounds_take_less_time_than_synchronous_ones_where_one_gateway_is_slow(tmp_path: Path) -> None:
    took = {}
    for name, mode in (("sync", {}), ("buffered", BUFFERED)):
        plant = SlowPlant(tmp_path / name, closing_seconds=60.0, max_rounds=8, **mode)
        plant.seconds["g3"] = 10.0
        plant.run_until(lambda plant=plant: plant.version == 8, seconds=3000.0)  # type: ignore[misc]
        took[name] = plant.now
    assert took["buffered"] < took["sync"] - 8 * 5.0


def test_a_buffered_version_needs_no_more_updates_than_gateways_are_there(tmp_path: Path) -> None:
    plant = SlowPlant(tmp_path, gateways=3, max_rounds=3, aggregation="buffered")
    assert plant.settings.buffer_updates == 10
    plant.run_to_quiet()
    assert plant.version == 3
    assert not plant.updates("closed")


def test_a_buffered_round_that_runs_out_of_time_owes_what_it_has_to_the_next_which_counts_it(tmp_path: Path) -> None:
    plant = SlowPlant(tmp_path, **(BUFFERED | {"buffer_updates": 4}))
    plant.run_until(lambda: plant.version == 1)
    plant.seconds["g1"] = 60.0
    plant.run_until(lambda: any(r.outcome == "below quorum" for r in plant.book.rounds()))
    failed = next(r for r in plant.book.rounds() if r.outcome == "below quorum")
    assert failed.closed_at is not None
    assert failed.closed_at >= failed.closes_at
    assert {a.gateway for a in plant.book.owed()} == {"g0", "g2", "g3"}
    plant.run_until(lambda: plant.version == 2)
    following = plant.book.round(failed.id + 1)
    assert following is not None
    assert following.outcome == "applied"
    assert following.closed_at is not None
    assert following.closed_at < following.closes_at, "three were owed, and one came: it did not wait"
    assert following.opened_at - failed.closed_at < 0.5, "it had come further: no pause"


def test_a_gateway_that_has_answered_answers_the_next_round_at_once(tmp_path: Path) -> None:
    plant = SlowPlant(tmp_path, closing_seconds=600.0, **BUFFERED)
    plant.seconds["g3"] = 30.0
    plant.run_until(lambda: plant.version == 6)
    fast = [a.round for a in plant.updates() if a.gateway == "g0"]
    assert fast == [r.id for r in plant.book.rounds() if r.kind == "training"][: len(fast)]
    assert len(fast) >= 6


# --- stragglers and leavers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mode", [{}, WEIGHED, BUFFERED | {"buffer_updates": 7}], ids=["refused", "weighed", "buffered"]
)
@pytest.mark.parametrize("fault", ["slow", "leave"])
def test_with_a_third_of_the_fleet_slow_or_leaving_every_round_closes_within_its_time(
    tmp_path: Path, mode: dict[str, Any], fault: str
) -> None:
    plant = SlowPlant(
        tmp_path, gateways=10, closing_seconds=6.0, max_rounds=10, min_gateways=7, quorum_share=0.5, **mode
    )
    plant.run_until(lambda: plant.version == 1)
    bad = ["g2", "g5", "g8"]
    if fault == "slow":
        plant.seconds |= dict.fromkeys(bad, 8.0)
    left = 0
    while plant.job.resting is None:
        if fault == "leave" and plant.job.run.round is not None:
            # In the middle of a round each of them goes without a word, and comes back while another is open.
            round_id = plant.job.run.round.plan.round_id
            name = bad[round_id % 3]
            if name in plant.gateways and round_id % 2:
                plant.kill_gateway(name)
                left += 1
            for other in bad:
                if other not in plant.gateways and not round_id % 2:
                    plant.start_gateway(other)
        plant.tick()
        assert plant.now < 1_700_002_000.0
    assert fault == "slow" or left >= 3
    for row in plant.book.rounds():
        assert row.closed_at is not None
        assert row.closed_at <= row.closes_at + 0.1
        assert row.closes_at <= row.opened_at + 7.0
    outcomes = Counter(r.outcome for r in plant.book.rounds() if r.kind == "training")
    assert outcomes["applied"] == 10


# --- set aside -------------------------------------------------------------------------------------------------------


def test_a_gateway_that_stays_silent_is_set_aside_so_that_rounds_need_not_wait_and_is_tried_again(
    tmp_path: Path,
) -> None:
    plant = SlowPlant(tmp_path, set_aside_after=2, max_rounds=20)
    plant.run_until(lambda: plant.version == 1)
    plant.seconds["g3"] = 1e9
    plant.run_until(lambda: plant.job.resting is not None, seconds=3000.0)
    rounds = [r for r in plant.book.rounds() if r.kind == "training"][1:]
    assert [r.drawn for r in rounds] == [4, 4, 3, 4, 3, 3, 4, 3, 3, 3, 3, 4, 3, 3, 3, 3, 3, 3, 3]
    for row in rounds:
        assert row.closed_at is not None
        assert (row.closed_at - row.opened_at > 9.0) == (row.drawn == 4), "nobody waits for one that is set aside"
    assert plant.gateways["g3"].state.version == plant.version, "it listens all the same"


def test_one_answer_brings_it_back_for_good_and_a_restart_of_the_coordinator_forgets_nothing(tmp_path: Path) -> None:
    plant = SlowPlant(tmp_path, set_aside_after=2, max_rounds=14)
    plant.run_until(lambda: plant.version == 1)
    plant.seconds["g3"] = 1e9

    def drawn() -> list[int]:
        return [r.drawn for r in plant.book.rounds() if r.kind == "training"][1:]

    plant.run_until(lambda: drawn()[-2:] == [4, 3])
    plant.kill_coordinator()
    plant.start_coordinator()
    plant.run_until(lambda: drawn()[:5] == [4, 4, 3, 4, 3])
    plant.seconds.clear()
    plant.held.clear()
    plant.run_to_quiet()
    assert drawn() == [4, 4, 3, 4, 3, 3, 4, 4, 4, 4, 4, 4, 4]


def test_a_gateway_that_was_restarted_is_asked_at_once(tmp_path: Path) -> None:
    plant = SlowPlant(tmp_path, set_aside_after=2, max_rounds=40)
    plant.run_until(lambda: plant.version == 1)
    plant.seconds["g3"] = 1e9

    def drawn() -> list[int]:
        return [r.drawn for r in plant.book.rounds() if r.kind == "training"][1:]

    # The third pause, of four rounds, has just begun.
    plant.run_until(lambda: drawn()[-8:] == [4, 4, 3, 4, 3, 3, 4, 3])
    plant.seconds.clear()
    plant.held.clear()
    plant.kill_gateway("g3")
    plant.start_gateway("g3")
    plant.run_until(lambda: len(drawn()) >= 11)
    assert drawn()[9:11] == [4, 4]


def test_where_too_few_would_be_left_those_set_aside_are_asked_all_the_same(tmp_path: Path) -> None:
    plant = SlowPlant(tmp_path, set_aside_after=1, max_rounds=6, quorum_gateways=3, min_gateways=4)
    plant.run_until(lambda: plant.version == 1)
    plant.seconds |= {"g2": 1e9, "g3": 1e9}
    plant.run_until(lambda: len(plant.book.rounds()) >= 5)
    assert {r.drawn for r in plant.book.rounds()[1:]} == {4}


def test_a_slow_gateway_whose_late_updates_count_is_not_set_aside(tmp_path: Path) -> None:
    plant = SlowPlant(tmp_path, set_aside_after=3, max_rounds=15, **WEIGHED)
    plant.run_until(lambda: plant.version == 1)
    plant.seconds["g3"] = 13.0
    plant.run_until(lambda: plant.job.resting is not None, seconds=3000.0)
    assert {r.drawn for r in plant.book.rounds()} == {4}
    assert sum(a.late for a in plant.updates()) >= 5


def test_in_buffered_rounds_which_close_before_their_time_a_slow_gateway_is_not_set_aside(tmp_path: Path) -> None:
    plant = SlowPlant(tmp_path, set_aside_after=2, max_rounds=15, **BUFFERED)
    plant.seconds["g3"] = 8.0
    plant.run_to_quiet()
    assert {r.drawn for r in plant.book.rounds()} == {4}
    balance(plant)


def test_the_plans_of_a_set_aside_gateway_do_not_draw_it(tmp_path: Path) -> None:
    plant = SlowPlant(tmp_path, set_aside_after=1, max_rounds=5)
    plant.run_until(lambda: plant.version == 1)
    plant.seconds["g3"] = 1e9
    plant.run_until(lambda: plant.job.resting is not None, seconds=3000.0)
    plans = {
        said.round_id: said
        for published in plant.broker.log
        if published.topic.endswith("/plan")
        and isinstance(said := from_bytes(parse(published.topic).spec, published.payload), RoundPlan)
    }
    for row in plant.book.rounds():
        assert plans[row.id].draws(3, "g3") == (row.drawn == 4)
