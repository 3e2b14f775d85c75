"""What follows from many machines: limits that most gateways agree on, and kinds of machines that have drifted. Pure.

Owns both rules. Refuses to know how summaries and machines come here, and who is told.

Limits are medians over *gateways* of each one's quantiles, and no quantiles of pooled counts: a gateway has one voice,
however many windows it says it has seen. With n gateways, of which fewer than half lie, each median lies between values
of honest ones, so nobody can loosen everybody's limit alone; docs/decisions/0017-limits-are-medians-over-gateways.md
has the reasons.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from statistics import median_low

from fedmq_protocol.condition import QUANTILES, to_quantiles
from fedmq_protocol.sketch import Summary, SummaryError

from fedmq_coordinator.condition import Drift, Limit, Machine, Summed

__all__ = ["SAME_SHARE", "drifts", "limits"]

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
