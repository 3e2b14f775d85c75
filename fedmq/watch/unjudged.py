"""Why a machine has not been judged yet: what a newcomer asks first, and a watch alone cannot say.

Owns the reasons, from the machines' file and the bridge's store. Refuses to know alerts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence

from fedmq_edge_node.machines import Machine, load_machines
from fedmq_firmware_bridge.store import Run, Store, StoreError

from fedmq.watch.feeding import LEAST_RATE_HZ, watched
from fedmq.watch.settings import WatchSettings

__all__ = ["reasons", "strangers", "why_unjudged"]


def why_unjudged(settings: WatchSettings, judged: Collection[str]) -> dict[str, str]:
    """By machine; also of machines that the store has and the file has not. Raises ValueError for either."""
    machines = load_machines(settings.machines)
    try:
        with contextlib.closing(Store(settings.store)) as store:
            runs = store.runs()
    except StoreError as error:
        return {name: str(error) for name in machines if name not in judged}
    return reasons(machines, runs, judged, window_seconds=settings.window_seconds)


def reasons(
    machines: Mapping[str, Machine], runs: Sequence[Run], judged: Collection[str], *, window_seconds: float
) -> dict[str, str]:
    """Those that are not among the `judged`, each with what is missing."""
    alone = strangers(machines, runs)
    found = {}
    for name, machine in machines.items():
        if name in judged:
            continue
        own = [run for run in runs if run.sensor.machine == name]
        fit = [run for run in own if watched(run, machine)]
        if name in alone:
            found[name] = alone[name]
        elif not fit:
            sensors = ", ".join(sorted({run.sensor.name for run in own}))
            found[name] = (
                f"expected a sensor of acceleration (in g, mg or m/s2) at {LEAST_RATE_HZ:g} Hz or more"
                f"{' among ' + ', '.join(machine.sensors) if machine.sensors else ''}, got {sensors}"
            )
        else:
            longest = max((run.stop - run.start) / run.rate_hz for run in fit)
            short = f"its longest recording has {longest:.1f} s, and a window takes {window_seconds:g} s"
            found[name] = short if longest < window_seconds else "`fedmq watch run` has not come to it: does it run?"
    return found | {name: why for name, why in alone.items() if name not in machines}


def strangers(machines: Mapping[str, Machine], runs: Sequence[Run]) -> dict[str, str]:
    """Machines that either the file or the store does not know, each with what is missing: most likely a name is spelt
    in two ways."""
    heard = {run.sensor.machine: "" for run in runs}
    unknown = [name for name in heard if name not in machines]
    beside = f"; the store has {', '.join(unknown)} beside, which the machines' file has not" if unknown else ""
    found = {
        name: f"the bridge's store has no sensor on a machine of that name{beside}"
        for name in machines
        if name not in heard
    }
    why = "the bridge's store has it, the machines' file has not: `fedmq machine add` adds it"
    return found | dict.fromkeys(unknown, why)
