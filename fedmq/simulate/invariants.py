"""What must hold after every step, whatever goes wrong; checked from outside, against books of the checker's own.

Cheap, since only what a step touched is looked at. The promises, by the name that a violation carries:

- *once*: one update for each gateway and round counts at most once;
- *late*: an update whose round has closed counts only where the task lets it, and no further behind than that;
- *law*: for each gateway, what it learnt == what was taken of it + its residual + what was discarded, to float32
  rounding; what was taken of it is what the coordinator has accepted, and both know it once all is quiet;
- *receipt*: nothing that says "accepted" leaves before that is committed;
- *chain*: versions go up by one, each names the digest of the one before, and everyone who holds one holds the same;
- *restart*: after a restart the version is the one that was committed, and the open round's sum is that of the
  committed updates, to the bit;
- *applied*: what a version adds, and what waits at the coordinator, is the weighted mean of what was accepted;
- *bytes*: the ledger's bytes are those that the links carried;
- *quiet*: once nothing goes wrong any more, the run ends, everyone holds the newest version, and nothing is pending.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from fedmq_coordinator.aggregate import staleness
from fedmq_coordinator.service import Coordinator
from fedmq_edge_node.memory import GatewayState, Pending
from fedmq_edge_node.service import Gateway
from fedmq_protocol.messages import Birth, MessageError, Receipt, RoundPlan, Verdict, from_bytes, split
from fedmq_protocol.task import Task, model_digest, short
from fedmq_protocol.topics import parse
from fedmq_protocol.transfer import refer
from numpy.typing import NDArray

from fedmq.simulate import fleet
from fedmq.simulate.disks import Disk

__all__ = ["Checker", "Violation"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

TOLERANCE = 1e-4
"""Of float32 sums over a run, where values stay below 64."""


class Violation(Exception):
    """A promise that was not kept: which one, and with what values."""

    def __init__(self, invariant: str, text: str) -> None:
        super().__init__(f"{invariant}: {text}")
        self.invariant = invariant
        self.text = text


@dataclass(frozen=True, kw_only=True)
class _Account:
    """A gateway's, as of one state of its. Arrays are never altered."""

    pending: Pending | None
    residual: NDArray[np.float32]
    learnt: Floats
    taken: Floats
    discarded: Floats
    settled: tuple[tuple[int, bool], ...] = ()
    """Updates by counter, and whether as accepted, that were settled since the last state on disk."""


@dataclass(kw_only=True)
class _Books:
    """The checker's record of one gateway."""

    state: GatewayState
    disk_state: GatewayState
    account: _Account
    on_disk: _Account
    settled: dict[int, bool] = field(default_factory=dict)
    """Updates by counter that are settled on its disk, and whether as accepted."""
    sent: dict[int, Floats] = field(default_factory=dict)
    """By counter: what the update of that number decodes to."""
    whole: dict[bytes, Integers] = field(default_factory=dict)
    """The same by the payload's digest, in whole steps of 2^-24, for the coordinator's sum."""


@dataclass(frozen=True, kw_only=True)
class _Accepted:
    round_id: int
    gateway: str
    counter: int
    digest: bytes
    weight: int


class Checker:
    def __init__(self, task: Task) -> None:
        self._task = task
        self._parameters = task.model.parameters
        self._books: dict[str, _Books] = {}
        self._digests: dict[int, bytes] = {}
        """Of the one lineage, by version."""
        self._arrays: dict[int, tuple[NDArray[np.int32], int]] = {}
        """Models that were found right, by identity."""
        self._last_row = 0
        self._changes = -1
        self._accepted: dict[tuple[str, int], _Accepted] = {}
        """By gateway and counter."""
        self._by_round: dict[int, set[str]] = {}
        self._unapplied: list[_Accepted] = []
        self._version = -1
        self._residual: Floats = np.zeros(self._parameters)
        self._steps: NDArray[np.int32] | None = None
        self._open: int | None = None

        self._starts: dict[str, list[bytes]] = {}
        """Boot nonces of each gateway, in order."""
        self._newest_heard: dict[str, int] = {}
        self._said: dict[bytes, tuple[str, int]] = {}
        """Of each answer the gateway, and which start of it."""
        self._muddled: set[str] = set()
        """Gateways of which the coordinator has heard an answer, or for the first time a birth, of a start after a
        later one: it cannot tell which is which, and may put bytes down to the wrong one."""

    # -- gateways ----------------------------------------------------------------------------------------------

    def gateway_started(self, name: str, gateway: Gateway) -> None:
        """A process has begun, on what its disk holds."""
        self._starts.setdefault(name, []).append(gateway._nonce)
        state = fleet.state_of(gateway)
        books = self._books.get(name)
        if books is None:
            nothing = np.zeros(self._parameters)
            account = _account(state, nothing, nothing, nothing)
            self._books[name] = _Books(state=state, disk_state=state, account=account, on_disk=account)
            return
        before = books.disk_state
        same = (
            state.counter == before.counter
            and state.version == before.version
            and (state.pending is None) == (before.pending is None)
            and np.array_equal(state.residual, before.residual)
        )
        if not same:
            raise Violation("restart", f"{name} begins with another state than the one it saved last")
        books.state = books.disk_state = state
        books.account = books.on_disk = replace(books.on_disk, pending=state.pending, residual=state.residual)

    def gateway_saved(self, name: str, state: GatewayState, learnt: Callable[[], NDArray[np.float32]]) -> None:
        """This state is on disk."""
        self.gateway_stepped(name, state, learnt)
        books = self._books[name]
        for number, accepted in books.account.settled:
            books.settled[number] = accepted
            del books.sent[number]
        if books.account.settled:
            books.account = replace(books.account, settled=())
        books.on_disk, books.disk_state = books.account, state

    def gateway_stepped(self, name: str, state: GatewayState, learnt: Callable[[], NDArray[np.float32]]) -> None:
        """The gateway is in this state now; `learnt` is what its last training came to."""
        books = self._books[name]
        old = books.state
        if state is old:
            return
        books.state = state
        if state.steps is not old.steps:
            self._check_model(name, state)
        if state.residual is old.residual and state.pending is old.pending:
            return
        if old.lineage != state.lineage:
            nothing = np.zeros(self._parameters)
            books.account = _account(state, nothing, nothing, nothing)
            return
        account = books.account
        trained = state.counter != old.counter
        gained = learnt().astype(np.float64) if trained else None
        # What the residual would be if nothing but training had changed it.
        change = state.residual.astype(np.float64)
        change -= account.residual
        if gained is not None:
            change -= gained
        if account.pending is not None and state.pending is not account.pending:
            account = self._settled(name, books, account, change)
        elif not _is_zero(change):
            raise Violation("law", f"{name} has a residual that differs by {_size(change)} from what it learnt")
        books.account = replace(
            account,
            pending=state.pending,
            residual=state.residual,
            learnt=account.learnt if gained is None else account.learnt + gained,
        )
        if trained:
            assert state.pending is not None
            sent = fleet.sent_in(state).astype(np.float64)
            books.sent[state.counter] = sent
            digest = short(refer(state.pending.payload, 256).digest)
            books.whole[digest] = np.rint(sent * 2.0**24).astype(np.int64)

    def _settled(self, name: str, books: _Books, account: _Account, change: Floats) -> _Account:
        """What the gateway made of its pending update, read off how its residual changed. `change` is used up."""
        pending = account.pending
        assert pending is not None
        number = pending.counter
        sent = books.sent[number]
        # More than one may fit: a dense update that is refused leaves nothing, as one that is taken does.
        if (name, number) in self._accepted:
            change += sent
            if _is_zero(change):
                return replace(account, taken=account.taken + sent, settled=(*account.settled, (number, True)))
            raise Violation(
                "law",
                f"{name} does not subtract its update {number} of round {pending.round_id}, which is accepted: "
                f"its residual is {_size(change)} off",
            )
        settled = (*account.settled, (number, False))
        if _is_zero(change):
            return replace(account, settled=settled)
        if _is_zero(change + account.residual):
            return replace(account, discarded=account.discarded + account.residual, settled=settled)
        raise Violation(
            "law",
            f"{name} neither puts back nor discards its update {number} of round {pending.round_id}, which is not "
            f"accepted: its residual is {_size(change)} off",
        )

    def _check_model(self, name: str, state: GatewayState) -> None:
        known = self._arrays.get(id(state.steps))
        if known is not None and known[0] is state.steps and known[1] == state.version:
            return
        digest = model_digest(state.steps)
        expected = self._digests.get(state.version)
        if digest != expected:
            raise Violation(
                "chain",
                f"{name} holds a version {state.version} with digest {digest[:4].hex()}, the coordinator's is "
                f"{'not made yet' if expected is None else expected[:4].hex()}",
            )
        if len(self._arrays) > 4096:
            self._arrays.clear()
        self._arrays[id(state.steps)] = state.steps, state.version

    # -- the coordinator ---------------------------------------------------------------------------------------

    def coordinator_started(self, coordinator: Coordinator, disk: Disk) -> None:
        """A process has begun, on what its disk holds."""
        self._sync(coordinator, disk)
        if coordinator.only.version != self._version:
            raise Violation("restart", f"version {self._version} was applied, {coordinator.only.version} is in force")
        if coordinator.only.model_digest != self._digests[coordinator.only.version]:
            raise Violation("restart", f"version {coordinator.only.version} has another digest than before")
        self._check_sum(coordinator, "restart")

    def coordinator_stepped(self, coordinator: Coordinator, disk: Disk) -> None:
        if self._sync(coordinator, disk):
            self._check_sum(coordinator, "once")

    def gateway_speaks(self, name: str, topic: str, payload: bytes) -> None:
        """It publishes this now."""
        if not topic.endswith("/status"):
            self._said[payload] = name, len(self._starts[name]) - 1

    def coordinator_hears(self, disk: Disk, topic: str, payload: bytes) -> None:
        """It is about to work on this."""
        said = self._said.get(payload)
        if said is not None and said[1] < self._newest_heard.get(said[0], -1):
            self._muddled.add(said[0])  # an answer does not say which start it is of
        if not topic.endswith("/status"):
            return
        where = parse(topic)
        message, name = from_bytes(where.spec, split(payload).plain), where.gateway or ""
        if not isinstance(message, Birth):
            return
        start = self._starts[name].index(message.nonce)
        newest = self._newest_heard.get(name, -1)
        if start > newest:
            self._newest_heard[name] = start
        elif start < newest and not disk.rows(
            "SELECT 1 FROM wire WHERE gateway = ? AND nonce = ?", (name, message.nonce)
        ):
            self._muddled.add(name)

    def coordinator_speaks(self, coordinator: Coordinator, disk: Disk, topic: str, payload: bytes) -> None:
        """It publishes this now."""
        if fleet.in_transaction(coordinator):
            raise Violation("receipt", f"the coordinator speaks on {topic} before it has committed")
        receipt = topic.endswith("/receipt")
        if not receipt and not topic.endswith("/plan"):
            return
        where = parse(topic)
        try:
            message = from_bytes(where.spec, split(payload).plain)
        except MessageError as error:
            raise Violation("receipt", f"the coordinator says on {topic} what nobody can read: {error}") from error
        if isinstance(message, Receipt):
            if message.verdict is not Verdict.ACCEPTED:
                return
            self._read_answers(disk)
            if (where.gateway or "", message.counter) not in self._accepted:
                raise Violation(
                    "receipt",
                    f"{where.gateway} hears that its update {message.counter} of round {message.round_id} is accepted, "
                    "and that is not on record",
                )
        elif isinstance(message, RoundPlan):
            if message.base != self._version:
                self._sync(coordinator, disk)
            if not message.accepted:
                return
            self._read_answers(disk)
            told = {n for place, n in fleet.places_of(coordinator).items() if message.accepted >> place & 1}
            round_id = message.round_id - message.since
            wrong = told - self._by_round.get(round_id, set())
            if wrong:
                raise Violation(
                    "receipt", f"a plan says that {sorted(wrong)} are accepted in round {round_id}: not on record"
                )

    def _read_answers(self, disk: Disk) -> bool:
        """Answers that are on record since the last look; True where updates were accepted."""
        if disk.changes == self._changes:
            return False
        self._changes = disk.changes
        rows = disk.rows(
            "SELECT answers.rowid, round, gateway, counter, digest, weight, answers.kind, verdict, base,"
            " received_at > closed_at FROM answers JOIN rounds ON rounds.id = round WHERE answers.rowid > ?"
            " ORDER BY answers.rowid",
            (self._last_row,),
        )
        found = False
        for row, round_id, gateway, counter, digest, weight, kind, verdict, base, late in rows:
            self._last_row = row
            if kind != "update" or verdict != "accepted":
                continue
            found = True
            # Answers are read before the version that their commit may have made.
            behind = self._version - base
            if behind > self._task.staleness or (late and not self._task.staleness):
                raise Violation(
                    "late",
                    f"update {counter} of {gateway} to {'closed' if late else 'open'} round {round_id} counts, "
                    f"{behind} versions behind; at most {self._task.staleness} are allowed",
                )
            books = self._books.get(gateway)
            known = self._accepted.get((gateway, counter))
            if known is not None:
                raise Violation(
                    "once", f"update {counter} of {gateway} counts in round {known.round_id} and again in {round_id}"
                )
            if gateway in self._by_round.setdefault(round_id, set()):
                raise Violation("once", f"two updates of {gateway} count in round {round_id}")
            if books is not None and (books.settled.get(counter) is False or (counter, False) in books.account.settled):
                raise Violation("law", f"update {counter} of {gateway} counts, which it has put back")
            self._by_round[round_id].add(gateway)
            accepted = _Accepted(
                round_id=round_id, gateway=gateway, counter=counter, digest=bytes(digest), weight=weight
            )
            self._accepted[gateway, counter] = accepted
            self._unapplied.append(accepted)
        return found

    def _sync(self, coordinator: Coordinator, disk: Disk) -> bool:
        """Read what was committed; True where the open sum may have changed."""
        changed = self._read_answers(disk)
        if coordinator.only.version != self._version:
            self._new_version(coordinator, disk)
            changed = True
        found = fleet.open_sum(coordinator)
        opened = None if found is None else found[0]
        if opened != self._open:
            self._open = opened
            changed = True
        return changed

    def _new_version(self, coordinator: Coordinator, disk: Disk) -> None:
        rows = disk.rows(
            "SELECT number, digest, parent FROM versions WHERE lineage = ? AND number > ? ORDER BY number",
            (fleet.lineage_of(coordinator), self._version),
        )
        for number, digest, parent in rows:
            if number != self._version + 1:
                raise Violation("chain", f"version {number} comes after {self._version}")
            if number and bytes(parent) != self._digests[number - 1]:
                raise Violation("chain", f"version {number} does not name the digest of version {number - 1}")
            self._digests[number] = bytes(digest)
            self._version = number
        if coordinator.only.version != self._version or coordinator.only.model_digest != self._digests[self._version]:
            raise Violation("chain", f"version {coordinator.only.version} is in force, {self._version} is committed")
        self._check_applied(coordinator, disk)

    def _check_applied(self, coordinator: Coordinator, disk: Disk) -> None:
        steps = coordinator.only.line.steps
        stored = disk.rows("SELECT value FROM state WHERE key = 'residual'")
        residual = np.frombuffer(stored[0][0], "<f8") if stored else np.zeros(self._parameters)
        old_steps, old_residual = self._steps, self._residual
        self._steps, self._residual = steps, residual
        if old_steps is None:
            return
        # Those that were in the sum of the round that made it, or owed from before; none that has come since.
        made_by = disk.rows("SELECT round FROM versions WHERE number = ? ORDER BY lineage DESC", (self._version,))[0][0]
        waiting = {
            (round_id, gateway)
            for round_id, gateway in disk.rows(
                "SELECT round, gateway FROM answers WHERE kind = 'update' AND verdict = 'accepted'"
                " AND (counted_in IS NULL OR counted_in > ?)",
                (made_by,),
            )
        }
        counted = [a for a in self._unapplied if (a.round_id, a.gateway) not in waiting]
        self._unapplied = [a for a in self._unapplied if (a.round_id, a.gateway) in waiting]
        total, weight = self._sum(coordinator, counted, made_by)
        settings = fleet.settings_of(coordinator)
        if settings.server_momentum or not weight:
            return
        wanted = settings.server_learning_rate * total / (weight * 2.0**24)
        got = (steps - old_steps) * self._task.grid_step + (residual - old_residual)
        wrong = float(np.abs(wanted - got).max())
        if not wrong <= TOLERANCE:
            raise Violation(
                "applied",
                f"version {self._version} adds something else than the mean of {len(counted)} updates: {wrong:.3g} off",
            )
        for accepted in counted:
            self._books[accepted.gateway].whole.pop(accepted.digest, None)

    def _sum(self, coordinator: Coordinator, counted: list[_Accepted], round_id: int) -> tuple[Integers, int]:
        """Made again from what each gateway has sent: `(P,) int64`, and the weight."""
        exponent = fleet.settings_of(coordinator).staleness_exponent
        total, whole_weight = np.zeros(self._parameters, dtype=np.int64), 0
        for accepted in counted:
            weight = accepted.weight
            if accepted.round_id != round_id:
                weight = staleness(weight, round_id - accepted.round_id, exponent)
            total += self._books[accepted.gateway].whole[accepted.digest] * weight
            whole_weight += weight
        return total, whole_weight

    def _check_sum(self, coordinator: Coordinator, invariant: str) -> None:
        found = fleet.open_sum(coordinator)
        if found is None:
            return
        round_id, total, weight, updates = found
        if updates != len(self._unapplied):
            raise Violation(
                invariant, f"round {round_id} has counted {updates} updates, {len(self._unapplied)} are on record"
            )
        expected, expected_weight = self._sum(coordinator, self._unapplied, round_id)
        if weight != expected_weight or not np.array_equal(total, expected):
            raise Violation(
                invariant,
                f"the sum of round {round_id} is not that of its {updates} updates: weight {weight}, "
                f"{expected_weight} expected",
            )

    # -- at the end --------------------------------------------------------------------------------------------

    def quiet(self) -> None:
        """Nothing is under way any more: both sides know the same."""
        accepted: dict[str, set[int]] = {}
        for gateway, counter in self._accepted:
            accepted.setdefault(gateway, set()).add(counter)
        for name, books in self._books.items():
            account = books.account
            whole = account.taken + account.residual + account.discarded
            if not _is_zero((account.learnt - whole) / (1 + np.abs(account.learnt))):
                raise Violation("law", f"{name} has learnt {_size(account.learnt - whole)} more than can be found")
            if account.pending is not None:
                raise Violation("quiet", f"update {account.pending.counter} of {name} is still pending")
            own = {number for number, taken in (books.settled | dict(account.settled)).items() if taken}
            mine = accepted.get(name, set())
            if own != mine:
                raise Violation(
                    "law",
                    f"{name} has settled {sorted(own - mine)} as accepted that the coordinator has not, "
                    f"and not {sorted(mine - own)} that it has",
                )

    def bytes(self, disk: Disk, carried: dict[tuple[str, bytes], tuple[int, int, bool]]) -> None:
        """`carried`: by gateway and boot nonce, bytes up and down, and whether the process left in good order.

        A process that was killed has reported no more than was carried; one that left, all but its last words.
        """
        told = {(n, bytes(c)): (s, r) for n, c, s, r in disk.rows("SELECT gateway, nonce, sent, received FROM wire")}
        for key, (up, down, left) in carried.items():
            if key not in told or key[0] in self._muddled:
                continue
            sent, received = told[key]
            name = key[0]
            # Its last word, the DISCONNECT and what came while it said so.
            slack = 250 + (up + down) // 100
            if sent > up + slack or received > down + slack:
                raise Violation(
                    "bytes", f"{name} tells of {sent} bytes up and {received} down; its link carried {up} and {down}"
                )
            if left and (up - sent > slack or down - received > slack):
                raise Violation(
                    "bytes", f"{name} tells of {sent} bytes up and {received} down; its link carried {up} and {down}"
                )


def _account(state: GatewayState, learnt: Floats, taken: Floats, discarded: Floats) -> _Account:
    return _Account(pending=state.pending, residual=state.residual, learnt=learnt, taken=taken, discarded=discarded)


def _is_zero(values: Floats) -> bool:
    """To float32 rounding. Also false for what is not a number."""
    return bool(values.max() <= TOLERANCE and values.min() >= -TOLERANCE)


def _size(values: Floats) -> str:
    return f"{float(np.abs(values).max()):.3g}"
