"""What follows from many machines: limits that most gateways agree on, kinds of machines of which many have drifted,
and measures that have drifted over all machines of a kind. Pure.

Owns the three rules. Refuses to know how summaries, machines and spreads come here, and who is told.

Limits are medians over *gateways* of each one's quantiles, and no quantiles of pooled counts: a gateway has one voice,
however many windows it says it has seen. With n gateways, of which fewer than half lie, each median lies between values
of honest ones, so nobody can loosen everybody's limit alone; docs/decisions/0017-limits-are-medians-over-gateways.md
has the reasons.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median_low

from fedmq_protocol.condition import QUANTILES, to_quantiles
from fedmq_protocol.sketch import Summary, SummaryError
from fedmq_protocol.spread import Shares, by_chance, per_mille, shares_of, stability

from fedmq_coordinator.machines import Drift, FleetSpread, Limit, Machine, Spread, Summed, coded

__all__ = ["SAME_SHARE", "drifts", "limits", "spreads"]

SAME_SHARE = 0.05
"""By less than that a limit does not move: sending it anew would cost more than it says."""


def limits(
    summaries: Iterable[Summed],
    before: Sequence[Limit],
    *,
    least_gateways: int,
    aside: Collection[str] = (),
    now: float,
    known: dict[bytes, tuple[float, ...]] | None = None,
) -> list[Limit]:
    """By kind of machine, band and measure, where so many gateways have learnt what is normal; gateways set `aside`
    have no voice. Of `before` those stay as they are that have hardly moved. `known` keeps quantiles by the summary's
    mark from one time to the next."""
    seen = {} if known is None else known
    voices: dict[tuple[str, str, str], list[tuple[float, ...]]] = {}
    for one in summaries:
        if one.gateway in aside:
            continue
        quantiles = seen.get(one.mark) or _quantiles(one.sketch)
        if quantiles is not None:
            seen[one.mark] = quantiles
            voices.setdefault((one.kind, one.band, one.measure), []).append(quantiles)
    standing = {(one.kind, one.band, one.measure): one for one in before}
    found = []
    for place, said in sorted(voices.items()):
        if len(said) < max(1, least_gateways):
            continue
        medians = [median_low(column) for column in zip(*said, strict=True)]
        kind, band, measure = place
        fresh = Limit(
            kind=kind, band=band, measure=measure, gateways=len(said), at=now, quantiles=to_quantiles(medians)
        )
        old = standing.get(place)
        found.append(old if old is not None and _same(old, fresh) else fresh)
    return found


def _quantiles(sketch: bytes) -> tuple[float, ...] | None:
    try:
        summary = Summary.from_bytes(sketch)
    except SummaryError:
        return None  # other software has written it
    return tuple(summary.quantile(share) for share in QUANTILES) if summary.count else None


def _same(old: Limit, fresh: Limit) -> bool:
    pairs = zip(old.by_share.values(), fresh.by_share.values(), strict=True)
    return all(abs(then - now) <= SAME_SHARE * max(then, now) for then, now in pairs)


def drifts(
    machines: Iterable[Machine], before: Sequence[Drift], *, share: float, least_gateways: int, now: float
) -> list[Drift]:
    """Kinds of machines of which at least this share, at so many gateways, is not distributed as in its baseline. Only
    machines whose normal is learnt count: others have none yet. One gateway alone brings about none."""
    since = {one.kind: one.since for one in before}
    by_kind: dict[str, list[Machine]] = {}
    for machine in machines:
        if machine.learnt or machine.drifting:
            by_kind.setdefault(machine.kind, []).append(machine)
    found = []
    for kind, every in sorted(by_kind.items()):
        drifting = [machine for machine in every if machine.drifting]
        gateways = {machine.gateway for machine in drifting}
        if len(gateways) < max(1, least_gateways) or len(drifting) < share * len(every):
            continue
        measures = Counter(measure for machine in drifting for measure in machine.drifting)
        found.append(
            Drift(
                kind=kind,
                since=since.get(kind, now),
                machines=len(every),
                drifting=len(drifting),
                gateways=len(gateways),
                measures="\n".join(sorted(measures, key=lambda one: (-measures[one], one))),
            )
        )
    return found


LEAST_SHARE = 0.0005
"""Half a per mille: what a share that was told as 0 may have been."""


@dataclass(frozen=True, kw_only=True)
class _Mixture:
    """Of several gateways' machines, each of which weighs alike."""

    parts: tuple[Spread, ...]
    machines: int
    counts: tuple[int, ...]
    """Per mille, once for each machine."""

    @classmethod
    def of(cls, parts: Sequence[Spread]) -> _Mixture:
        columns = zip(*([share * one.machines for share in one.shares] for one in parts), strict=True)
        return cls(
            parts=tuple(parts),
            machines=sum(one.machines for one in parts),
            counts=tuple(map(sum, columns)),
        )

    def without_the_farthest(self) -> _Mixture:
        """The gateway is left out without which the index is least."""

        def rest(part: Spread) -> tuple[int, ...]:
            pairs = zip(self.counts, part.shares, strict=True)
            return tuple(count - share * part.machines for count, share in pairs)

        farthest = min(self.parts, key=lambda part: stability(shares_of(rest(part)), LEAST_SHARE))
        return _Mixture(
            parts=tuple(one for one in self.parts if one is not farthest),
            machines=self.machines - farthest.machines,
            counts=rest(farthest),
        )

    @cached_property
    def shares(self) -> Shares:
        return shares_of(self.counts)

    @cached_property
    def stability(self) -> float:
        return stability(self.shares, LEAST_SHARE)

    @property
    def by_chance(self) -> float:
        # Variances add up, by the squares of the weights.
        return by_chance(1 / sum((one.machines / self.machines) ** 2 / one.windows for one in self.parts))


def spreads(
    told: Iterable[Spread],
    before: Sequence[FleetSpread],
    *,
    index: float,
    least_gateways: int,
    aside: Collection[str] = (),
    now: float,
) -> list[FleetSpread]:
    """How each measure holds to what is normal over all machines of a kind, by kind, band and measure: the mean over
    the machines, each of which was held against its own; gateways set `aside` have no voice.

    It has drifted where the index of stability is beyond `index` and what chance explains, without the gateways that
    move it most, too: all but the last of `least_gateways`. So no one machine, and no one gateway, brings drift about.
    """
    since = {(one.kind, one.band, one.measure): one.since for one in before}
    by_place: dict[tuple[str, str, str], list[Spread]] = {}
    for one in told:
        if one.gateway not in aside:
            by_place.setdefault((one.kind, one.band, one.measure), []).append(one)
    found = []
    for place, every in sorted(by_place.items()):
        whole, others = _Mixture.of(every), None
        if len(every) >= least_gateways:
            others = whole
            for _ in range(least_gateways - 1):
                others = others.without_the_farthest()
        bound = index + (others or whole).by_chance
        drifted = others is not None and others.stability > bound
        began = since.get(place)
        kind, band, measure = place
        found.append(
            FleetSpread(
                kind=kind,
                band=band,
                measure=measure,
                machines=sum(one.machines for one in every),
                gateways=len(every),
                coded_shares=coded(per_mille(whole.shares)),
                stability=whole.stability,
                of_others=None if others is None else others.stability,
                bound=bound,
                since=None if not drifted else now if began is None else began,
            )
        )
    return found
