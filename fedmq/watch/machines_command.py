"""`fedmq machine`: the machines that are watched, told, listed and shown.

Owns the command's words and how a machine is added to machines.toml: at its end, so that comments and the order of what
is there stay, and in one step, so that a full disk leaves the file as it was. What a machine is, and what follows from
its bearing and limits, is `fedmq_edge_node.machines`.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedmq.watch.command import add_event

if TYPE_CHECKING:
    from fedmq_edge_node.machines import Machine

__all__ = ["MACHINES", "add_machine", "add_parser"]

MACHINES = Path("machines.toml")

_EPILOG = """\
examples:
  fedmq machine add pump-3 --bearing 6205 --speed-rpm 1797 --iso-group 2
  fedmq machine add fan-1 --kind fan --limits 1.8,4.5,7.1 --set operating.running_from_g=0.05
  fedmq machine list
  fedmq machine show pump-3                    where its bearing's defects would show, and what it may vibrate
  fedmq machine bearings                       type numbers whose geometry is known
"""

_LIST_EPILOG = """\
examples:
  fedmq machine list --machines /etc/fedmq/machines.toml
  fedmq machine list --json
"""

_SHOW_EPILOG = """\
examples:
  fedmq machine show pump-3 --machines /etc/fedmq/machines.toml
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    machine = commands.add_parser(
        "machine",
        help="the machines that are watched: what each is, and what follows from it",
        description="Machines that are watched, in a settings file of their own (machines.toml): speed, bearing,\n"
        "sensors and limits. From these alone, with nothing learnt, come limits for the first day.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = machine.add_subparsers(dest="verb", required=True, metavar="VERB")
    _add_add(verbs)

    listed = verbs.add_parser(
        "list",
        help="every machine, a line each",
        description="Every machine of the file: what it is, and the limits that follow. How each is now says\n"
        "`fedmq watch status`.",
        epilog=_LIST_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_place(listed)
    listed.add_argument("--json", action="store_true", help="print JSON instead of a table")
    listed.set_defaults(run=_list)

    show = verbs.add_parser(
        "show",
        help="one machine, with its bearing's defect frequencies and its limits",
        description="What follows from what is stated of a machine, with nothing measured: the zones of its velocity,\n"
        "and how often a defect of its bearing would be struck.",
        epilog=_SHOW_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    show.add_argument("name", metavar="NAME", help="of the machine")
    _add_place(show)
    show.add_argument("--json", action="store_true", help="print JSON instead of text")
    show.set_defaults(run=_show)

    bearings = verbs.add_parser("bearings", help="type numbers whose geometry is known")
    bearings.set_defaults(run=_bearings)
    add_event(verbs)


def _add_add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    add = verbs.add_parser(
        "add",
        help="add a machine",
        description="Appends a machine to the file, which is made where there is none. What is there stays as it is.",
    )
    add.add_argument("name", metavar="NAME", nargs="?", help="as the bridge's settings call it")
    _add_place(add)
    add.add_argument("--kind", help="such as motor, pump, fan or gearbox (default: motor)")
    add.add_argument("--site", help="where it stands")
    add.add_argument("--tag", dest="tags", action="append", metavar="TAG", help="may be given several times")
    add.add_argument(
        "--sensor",
        dest="sensors",
        action="append",
        metavar="NAME",
        help="a vibration sensor of it; may be given several times (default: all that the bridge says are its)",
    )
    add.add_argument("--speed-rpm", type=float, metavar="N", help="turns a minute of the shaft, with slip")
    add.add_argument("--bearing", metavar="TYPE", help="type number, such as 6205: see `fedmq machine bearings`")
    add.add_argument("--iso-group", type=int, choices=(1, 2), help="of ISO 20816-3: 1 from 300 kW on, 2 from 15 kW on")
    add.add_argument("--foundation", choices=("rigid", "flexible"), help="how it stands (default: rigid)")
    add.add_argument(
        "--limits",
        dest="limits_mm_s",
        type=_limits,
        metavar="A/B,B/C,C/D",
        help="own zone limits in mm/s RMS, in place of --iso-group",
    )
    add.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any other key, such as --set bearing_elements=9 or --set operating.dwell_seconds=30",
    )
    add.add_argument("--example", action="store_true", help="print a file with every key, and end")
    add.set_defaults(run=_add)


def _add_place(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--machines", type=Path, default=MACHINES, metavar="FILE", help=f"the machines' file (default: {MACHINES})"
    )


def _limits(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers with commas between, got {text!r}") from None


def _add(arguments: argparse.Namespace) -> None:
    if arguments.example:
        from fedmq_edge_node.machines import Machines
        from fedmq_protocol.settings import document

        print(document(Machines), end="")
        return
    if arguments.name is None:
        raise ValueError("add: expected a NAME for the machine, as the bridge's settings call it, such as pump-3")
    keys = ("name", "kind", "site", "tags", "sensors", "speed_rpm", "bearing", "iso_group", "foundation", "limits_mm_s")
    given = {key: value for key in keys if (value := getattr(arguments, key)) is not None}
    machine = add_machine(arguments.machines, given, arguments.overrides)
    print(f"added {machine.name} to {arguments.machines}")
    for line in _said(machine):
        print(line)


def add_machine(path: Path, given: dict[str, Any], overrides: list[str]) -> Machine:
    """Append a machine with these keys to the file at `path`, or make it.

    Raises SettingsError with every mistake, of the machine or of the file, and then changes nothing.
    """
    from fedmq_edge_node.machines import Machine, load_machines
    from fedmq_protocol.settings import Mistake, SettingsError, load

    from fedmq.ca.folder import put

    machine = load(Machine, None, overrides, below=given)
    path = path.resolve()  # of a link the file itself is replaced
    with _alone(path.parent):
        text, mode = "", 0o644
        if path.exists():
            if machine.name in load_machines(path):
                raise SettingsError([Mistake("name", f'there is a machine "{machine.name}" in {path} already')])
            text, mode = path.read_bytes().decode(), path.stat().st_mode & 0o777
        text = (text.rstrip("\n") + "\n\n" if text.strip() else text) + _rendered(machine)
        _check(path, text, machine)
        put(path, text.encode(), mode)
    return machine


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One at a time: of two that add at once, neither loses the other's machine."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _check(path: Path, text: str, machine: Machine) -> None:
    """That the file would say what it is meant to say: TOML lets nothing be appended to `machine = []`."""
    import tomllib

    try:
        names = [row["name"] for row in tomllib.loads(text)["machine"]]
    except tomllib.TOMLDecodeError as error:
        raise ValueError(
            f"{path}: a machine cannot be appended: {error}; expected machines that each begin with [[machine]]"
        ) from None
    assert names[-1] == machine.name


def _rendered(machine: Machine) -> str:
    """The table of a machine, with the keys that are no defaults."""
    lines = ["[[machine]]", *_rendered_keys(machine)]
    operating = _rendered_keys(machine.operating)
    return "\n".join(lines + (["", "[machine.operating]", *operating] if operating else [])) + "\n"


def _rendered_keys(table: Any) -> list[str]:
    import dataclasses

    return [
        f"{field.name} = {_toml(value)}"
        for field in dataclasses.fields(table)
        if field.name != "operating" and (value := getattr(table, field.name)) is not None and value != field.default
    ]


def _toml(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    # A JSON text is a basic string of TOML, but for DEL.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _machines(path: Path) -> dict[str, Machine]:
    from fedmq_edge_node.machines import load_machines

    if not path.exists():
        raise ValueError(
            f"{path}: expected the machines' file, found none: `fedmq machine add NAME` makes it, or name another one"
            " with --machines"
        )
    return load_machines(path)


def _list(arguments: argparse.Namespace) -> None:
    machines = _machines(arguments.machines)
    if arguments.json:
        print(json.dumps([_as_json(machine) for machine in machines.values()], indent=2))
        return
    if not machines:
        print(f"no machine in {arguments.machines}: `fedmq machine add` adds one")
        return
    rows = [("machine", "kind", "site", "speed", "bearing", "zones (mm/s)", "sensors")]
    for machine in machines.values():
        limits = machine.zone_limits
        rows.append(
            (
                machine.name,
                machine.kind,
                machine.site or "-",
                _speed(machine),
                machine.bearing or ("-" if machine.geometry is None else "own geometry"),
                "-" if limits is None else " / ".join(f"{limit:g}" for limit in limits),
                ", ".join(machine.sensors) or "all",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _show(arguments: argparse.Namespace) -> None:
    machines = _machines(arguments.machines)
    if arguments.name not in machines:
        known = ", ".join(machines) or "none"
        raise ValueError(f'there is no machine "{arguments.name}" in {arguments.machines}; there is {known}')
    machine = machines[arguments.name]
    if arguments.json:
        print(json.dumps(_as_json(machine), indent=2))
        return
    print(f"{machine.name}: {machine.kind}{'' if machine.site is None else f' at {machine.site}'}")
    for word, value in (
        ("tags", ", ".join(machine.tags)),
        ("sensors", ", ".join(machine.sensors) or "all that the bridge says are its"),
        ("speed", _speed(machine)),
    ):
        if value:
            print(f"  {word:10}  {value}")
    for line in _said(machine):
        print(line)


def _said(machine: Machine) -> Iterator[str]:
    """What follows from a machine: zones, and where its bearing's defects would show."""
    limits = machine.zone_limits
    if limits is None:
        yield "  zones       none: set iso_group or limits_mm_s for limits of its vibration"
    else:
        whence = (
            "own limits" if machine.limits_mm_s else f"ISO 20816-3, group {machine.iso_group}, {machine.foundation}"
        )
        edges = f"A up to {limits.a_b:g}, B up to {limits.b_c:g}, C up to {limits.c_d:g}, D above"
        yield f"  zones       {edges} mm/s RMS, 10 to 1,000 Hz ({whence})"
    geometry = machine.geometry
    if geometry is None:
        yield "  bearing     none known: set bearing, or its geometry, for its defects' frequencies"
        return
    angle = f", {geometry.contact_angle_deg:g} degrees" if geometry.contact_angle_deg else ""
    yield (
        f"  bearing     {machine.bearing or 'own geometry'}: {geometry.elements} elements of"
        f" {geometry.ball_diameter_mm:g} mm on {geometry.pitch_diameter_mm:g} mm{angle}"
    )
    shaft_hz = machine.shaft_hz
    for where, factor in geometry.defect_hz(1.0).items():
        at = "" if shaft_hz is None else f" = {factor * shaft_hz:8.2f} Hz"
        yield f"    {where:10}  {factor:.4f} x shaft{at}"


def _speed(machine: Machine) -> str:
    stated = "" if machine.speed_rpm is None else f"{machine.speed_rpm:g} rpm"
    measured = "" if machine.speed_from == "none" else f"{machine.speed_from} {machine.speed_sensor}"
    return ", ".join(filter(None, (measured, stated))) or "-"


def _as_json(machine: Machine) -> dict[str, Any]:
    import dataclasses

    geometry, limits = machine.geometry, machine.zone_limits
    return {
        **dataclasses.asdict(machine),
        "zone_limits_mm_s": None if limits is None else list(limits),
        "geometry": None if geometry is None else dataclasses.asdict(geometry),
        "defects_per_turn": None if geometry is None else geometry.defect_hz(1.0),
        "defects_hz": None if geometry is None or machine.shaft_hz is None else geometry.defect_hz(machine.shaft_hz),
    }


def _bearings(arguments: argparse.Namespace) -> None:
    from fedmq_edge_node.machines import BEARINGS, DEFECTS

    print("type    elements  of mm   on mm  " + "  ".join(f"{where:>10}" for where in DEFECTS) + "   (x shaft)")
    for name, bearing in BEARINGS.items():
        factors = bearing.defect_hz(1.0)
        print(
            f"{name:6}  {bearing.elements:8}  {bearing.ball_diameter_mm:6.3f}  {bearing.pitch_diameter_mm:5.2f}  "
            + "  ".join(f"{factors[where]:10.4f}" for where in DEFECTS)
        )
