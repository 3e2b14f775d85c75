"""Bugs that are planted on purpose: the simulation finds each within a few schedules, and tells a short story of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from fedmq_coordinator import intake
from fedmq_coordinator.aggregate import WeightedMean
from fedmq_coordinator.ledger import Book, Ledger
from fedmq_coordinator.lineage import Lineage
from fedmq_coordinator.rounds import Judgement
from fedmq_coordinator.run import Run
from fedmq_coordinator.service import Coordinator
from fedmq_edge_node import work
from fedmq_edge_node.job import Job
from fedmq_edge_node.memory import GatewayState, Memory
from fedmq_protocol.messages import Receipt, Verdict
from fedmq_protocol.task import Task

from fedmq.simulate.schedules import scenario_of
from fedmq.simulate.shrink import Story, play, read, shortest

Patch = pytest.MonkeyPatch


def receipts_before_their_commit(patch: Patch) -> None:
    commit = Coordinator._commit

    def forgetful(self: Coordinator) -> None:
        if all(said.channel != "receipt" for said in self._outbox._waiting):
            commit(self)

    patch.setattr(Coordinator, "_commit", forgetful)


def an_accepted_update_put_back(patch: Patch) -> None:
    settle = work.settle

    def wrong(state: GatewayState, receipt: Receipt) -> GatewayState:
        settled = settle(state, receipt)
        return replace(settled, residual=state.residual) if receipt.verdict is Verdict.ACCEPTED else settled

    patch.setattr(work, "settle", wrong)


def a_refused_update_subtracted(patch: Patch) -> None:
    settle = work.settle

    def wrong(state: GatewayState, receipt: Receipt) -> GatewayState:
        closed = receipt.verdict is Verdict.CLOSED
        return settle(state, msgspec.structs.replace(receipt, verdict=Verdict.ACCEPTED) if closed else receipt)

    patch.setattr(work, "settle", wrong)


def a_repeat_counted_again(patch: Patch) -> None:
    admit, insert = intake.admit, Ledger.insert

    def wrong(**given: object) -> Judgement | None:
        judgement = admit(**given)  # type: ignore[arg-type]
        repeat = judgement is not None and judgement.repeat and judgement.verdict is Verdict.ACCEPTED
        return None if repeat and given["round_"] is not None else judgement

    patch.setattr(intake, "admit", wrong)
    patch.setattr(
        Ledger, "insert", lambda self, table, row, **more: insert(self, table, row, **more | {"replace": True})
    )


def an_open_sum_forgotten_at_a_restart(patch: Patch) -> None:
    reopen = Run._reopen

    def wrong(self: Run, opened: object) -> None:
        reopen(self, opened)  # type: ignore[arg-type]
        if self.mean is not None:
            self.mean = WeightedMean(len(self.mean._sum))

    patch.setattr(Run, "_reopen", wrong)


def what_the_downlink_left_out_forgotten_at_a_restart(patch: Patch) -> None:
    restore = Lineage._restore

    def wrong(self: Lineage) -> None:
        restore(self)
        self._server = replace(self._server, residual=np.zeros_like(self._server.residual))

    patch.setattr(Lineage, "_restore", wrong)


def an_update_sent_before_it_is_saved(patch: Patch) -> None:
    save = Memory.save

    def wrong(self: Memory, state: GatewayState) -> None:
        if state.pending is None:
            save(self, state)

    patch.setattr(Memory, "save", wrong)


def a_late_update_owed_again_by_the_version_that_holds_it(patch: Patch) -> None:
    erase = Book.erase_payloads

    def wrong(self: Book) -> None:
        newest = self.last_round()
        late = [] if newest is None else [answer for answer in self.summed(newest.id) if answer.late]
        erase(self)
        for answer in late:
            self.ledger.write(
                "UPDATE answers SET owed = 1, payload = ? WHERE round = ? AND gateway = ?",
                (answer.payload, answer.round, answer.gateway),
            )

    patch.setattr(Book, "erase_payloads", wrong)


def an_update_staler_than_allowed_accepted(patch: Patch) -> None:
    init = Lineage.__init__

    def wrong(self: Lineage, federation: str, task: Task, *rest: object, **more: object) -> None:
        init(self, federation, task, *rest, **more)  # type: ignore[arg-type]
        if task.staleness:
            self.task = msgspec.structs.replace(task, staleness=task.staleness + 1)

    patch.setattr(Lineage, "__init__", wrong)


def a_late_update_put_back_though_accepted(patch: Patch) -> None:
    on_receipt = Job.on_receipt

    def wrong(self: Job, receipt: Receipt, now: float) -> None:
        late = self._newest is not None and self._newest.round_id > receipt.round_id
        if late and receipt.verdict is Verdict.ACCEPTED:
            receipt = msgspec.structs.replace(receipt, verdict=Verdict.CLOSED)
        on_receipt(self, receipt, now)

    patch.setattr(Job, "on_receipt", wrong)


PLANTED: list[tuple[Callable[[Patch], None], str, set[str]]] = [
    (receipts_before_their_commit, "none", {"receipt"}),
    (an_accepted_update_put_back, "none", {"law"}),
    (a_refused_update_subtracted, "network", {"law"}),
    (a_repeat_counted_again, "network", {"once"}),
    (an_open_sum_forgotten_at_a_restart, "crashes", {"restart"}),
    (what_the_downlink_left_out_forgotten_at_a_restart, "crashes", {"applied"}),
    (an_update_sent_before_it_is_saved, "crashes", {"law", "restart"}),
    (a_late_update_owed_again_by_the_version_that_holds_it, "slow", {"once"}),
    (an_update_staler_than_allowed_accepted, "slow", {"late"}),
    (a_late_update_put_back_though_accepted, "slow", {"law"}),
]


def told(profile: str, *, within: int) -> Story:
    """The shortest story of the first few schedules that break a promise: one of two gateways ends the search."""
    stories: list[Story] = []
    for seed in range(within):
        scenario = scenario_of(seed, gateways=5, rounds=6, profile=profile)
        violation = play(scenario).violation
        if violation is not None:
            stories.append(shortest(scenario, violation.invariant, most_runs=150))
            if len(stories) == 4 or len(stories[-1].scenario.units) <= 2:
                break
    assert stories, f"{within} schedules, and nothing was found"
    return min(stories, key=lambda story: len(story.scenario.units))


@pytest.mark.parametrize(("plant", "profile", "broken"), PLANTED, ids=lambda value: getattr(value, "__name__", ""))
def test_a_planted_bug_is_found_and_told_in_a_short_story(
    plant: Callable[[Patch], None], profile: str, broken: set[str], monkeypatch: Patch
) -> None:
    plant(monkeypatch)
    story = told(profile, within=60)
    violation = story.outcome.violation
    assert violation is not None
    assert violation.invariant in broken, violation
    # An over-drawn round that closes on somebody needs two others who have answered.
    assert len(story.scenario.units) <= 3
    assert len(story.scenario.faults) + len(story.scenario.mishaps or ()) <= 3
    assert len(story.lines) < 150
    assert read(story.lines[-1]).split()[2] == "BROKEN"


def test_without_a_planted_bug_there_is_no_story() -> None:
    with pytest.raises(ValueError, match="does not break"):
        shortest(scenario_of(0, gateways=2, rounds=2, profile="none"), "law")
