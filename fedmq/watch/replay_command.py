"""`fedmq replay`: the command's words. What it does is in `replay`, which is loaded when it is asked for: it needs what
only a machine with a bridge has installed."""

from __future__ import annotations

import argparse
from pathlib import Path

from fedmq.watch.playing import NOISE_G, RAMP_SECONDS

__all__ = ["add_parser"]

_EPILOG = """\
examples:
  fedmq replay recordings/ --store FILE --machine pump-3                   each once, as fast as the disk takes it
  fedmq replay cwru/ --store FILE --script 'healthy:5m,stop:10s,start,inner_race:1m' --speed 60
  fedmq replay simulated --socket /run/sensor.sock --script 'healthy:1m,outer_race:1m'     in real time, to a bridge
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    replay = commands.add_parser(
        "replay",
        help="play recordings to a bridge as a sensor would, also many times faster",
        description="Plays recordings as a sensor on a machine: to a bridge that runs (--socket, in real time), or\n"
        "through a bridge of its own into a store (--store, at any speed), which `fedmq watch` and gateways read.\n"
        "A recording is a folder of <label>/<name>.npy, .csv or .wav, CWRU's or the gearbox's .npz, or `simulated`.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    replay.add_argument("recording", nargs="+", metavar="RECORDING", help="folder or file, or `simulated`")
    way = replay.add_mutually_exclusive_group(required=True)
    way.add_argument(
        "--store", type=Path, metavar="FILE", help="a bridge's store to play into; made where there is none"
    )
    way.add_argument(
        "--socket", type=Path, metavar="PATH", help="a Unix socket to serve, for a port of a running bridge"
    )
    replay.add_argument("--machine", default="replay", help="the machine that the sensor sits on (default: replay)")
    replay.add_argument("--sensor", default="replay", help="what the sensor says it is called (default: replay)")
    replay.add_argument(
        "--script", metavar="WORDS", help="such as healthy:30s,stop:10s,start,inner_race:20s,speed=0.8:5s"
    )
    replay.add_argument(
        "--speed", default="max", metavar="N", help="times real time, or max (default: max; a socket has 1 only)"
    )
    replay.add_argument(
        "--from",
        dest="begin",
        metavar="TIME",
        help="when it was, such as 2026-11-29T08:00 or 2h (default: it ends now)",
    )
    replay.add_argument("--label", action="store_true", help="also give the spans their labels in the store")
    replay.add_argument(
        "--ramp", type=float, default=RAMP_SECONDS, metavar="SECONDS", help=f"of running down ({RAMP_SECONDS:g})"
    )
    replay.add_argument(
        "--noise",
        type=float,
        default=NOISE_G,
        metavar="G",
        help=f"RMS of a standing machine's sensor ({NOISE_G:g} g)",
    )
    replay.add_argument("--sampling-rate", type=float, metavar="HZ", help="of recordings that do not state theirs")
    replay.add_argument("--seed", type=int, default=0, help="of what is simulated, and of noise (default: 0)")
    replay.add_argument(
        "--watch",
        type=Path,
        metavar="BOOK",
        help="alertbook of `fedmq watch run`: say at the end which alerts came of it",
    )
    replay.add_argument(
        "--wait",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="with --watch: at most so long for a watch that runs to judge all of it (default: 0)",
    )
    replay.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from fedmq.watch.replay import run

    return run(arguments)
