"""`fedmq dashboard`, and the same beside a coordinator: a process of its own, which ends with it.

The coordinator binds the socket itself, so that a port that is taken is told before anything starts, and hands it to
its companion. A companion that dies is started again, and whoever asks meanwhile waits in the kernel's queue. A
coordinator that dies, however it does, takes it along: the companion watches one end of a pipe.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from fedmq.arguments import add_override, add_settings
from fedmq.logs import add_log_format, start_logging

if TYPE_CHECKING:
    from fedmq_coordinator.settings import CoordinatorSettings, HttpSettings

__all__ = ["add_http", "add_parser", "beside"]

log = logging.getLogger("fedmq.dashboard")

LEAVE_SECONDS = 10.0
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0
NICE = 5
"""The rounds go before the pictures of them."""
OOM_SCORE_ADJ = 500
"""In thousandths of the memory that there is: the kernel takes this process before another of the same size."""

DEFAULT_LISTEN = "127.0.0.1:8080"


def add_http(parser: argparse.ArgumentParser, text: str) -> None:
    add_override(parser, "--http", "http.listen", text, metavar="[HOST:]PORT")


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    dashboard = commands.add_parser(
        "dashboard",
        help="a web page of rounds, savings and the fleet",
        description="Serves the dashboard by itself: of a coordinator that runs without one, with the coordinator's own"
        " settings, or of a copy of its state directory. It reads the ledger and nothing else. `fedmq coordinator"
        " --http` serves the same page beside the coordinator.",
    )
    add_settings(
        dashboard, "coordinator.toml", "http.token_file=FILE", help_config="the coordinator's settings in TOML"
    )
    dashboard.add_argument(
        "--state", type=Path, metavar="DIR", help="in place of settings: a coordinator's state directory"
    )
    add_http(dashboard, f"where it listens (default: as the settings say, or {DEFAULT_LISTEN})")
    add_log_format(dashboard)
    dashboard.add_argument("--inherited", type=_descriptors, help=argparse.SUPPRESS)
    dashboard.set_defaults(run=_run)


def _descriptors(text: str) -> tuple[int, int]:
    """Of the socket that listens and of the pipe, as a coordinator hands them on."""
    listener, _, pipe = text.partition(",")
    return int(listener), int(pipe)


def _run(arguments: argparse.Namespace) -> None:
    from fedmq_coordinator.settings import CoordinatorSettings
    from fedmq_protocol.settings import load

    if (arguments.config is None) == (arguments.state is None):
        raise ValueError("expected --config FILE or --state DIR, and not both")
    level, form = "info", None
    if arguments.config is not None:
        settings = load(CoordinatorSettings, arguments.config, arguments.overrides)
        http, state_dir, level, form = settings.http, settings.state_dir, settings.log_level, settings.log_format
    else:
        http, state_dir = _http_alone(arguments.overrides), arguments.state
    start_logging(level, arguments.log_format, form)
    from fedmq_coordinator.web.service import Dashboard, bind

    from fedmq.programs import ledger_path

    dashboard = Dashboard(ledger_path(state_dir), http)
    if arguments.inherited is not None:
        _stand_back()
        number, pipe = arguments.inherited
        dashboard.serve(socket.socket(fileno=number), with_parent=pipe)
        return
    host, port = http.address or _default()
    with bind(host, port) as listener:
        print(f"dashboard: {url(http, listener)}", file=sys.stderr, flush=True)
        dashboard.serve(listener)


def _stand_back() -> None:
    """Where processor or memory are short, the coordinator has them."""
    try:
        os.nice(NICE)
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE_ADJ), encoding="ascii")
    except OSError as error:
        # A unit's filter of system calls may not allow it; then the kernel treats both alike.
        log.info("the dashboard stands back no further than its unit lets it: %s", error)


def _http_alone(overrides: Sequence[str]) -> HttpSettings:
    """Of a state directory without settings: those of the table `http` on the command line."""
    from fedmq_coordinator.settings import HttpSettings
    from fedmq_protocol.settings import load

    strange = [text.partition("=")[0] for text in overrides if not text.startswith("http.")]
    if strange:
        raise ValueError(f"--set {strange[0]}: with --state only settings of the table http have an effect")
    return load(HttpSettings, None, [text.removeprefix("http.") for text in overrides])


def _default() -> tuple[str, int]:
    from fedmq_coordinator.settings import parse_listen

    return parse_listen(DEFAULT_LISTEN)


def url(http: HttpSettings, listener: socket.socket) -> str:
    """As somebody on this machine opens it."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):  # noqa: S104 - told, not bound
        host = "localhost"
    name = f"[{host}]" if ":" in host else host
    return f"{'https' if http.certificate_file is not None else 'http'}://{name}:{port}/"


# -- beside a coordinator --------------------------------------------------------------------------------------


@contextlib.contextmanager
def beside(settings: CoordinatorSettings, arguments: argparse.Namespace) -> Iterator[None]:
    """By the command line of `fedmq coordinator`: with the dashboard that the settings ask for, or with none.

    Raises ValueError where it cannot be.
    """
    address = settings.http.address
    if address is None:
        yield
        return
    from fedmq_coordinator.web.access import Tokens
    from fedmq_coordinator.web.service import bind

    # What is wrong with the tokens is told now, and not by a companion that ends again and again.
    Tokens.read(settings.http.token_file, settings.http.operator_token_file)
    words = ["dashboard", *([] if arguments.config is None else ["--config", str(arguments.config)])]
    words += [] if arguments.log_format is None else ["--log-format", arguments.log_format]
    for override in arguments.overrides:
        words += ["--set", override]
    with bind(*address) as listener, Companion(words, listener):
        log.info("dashboard: %s", url(settings.http, listener))
        yield


class Companion:
    """The process, started again when it ends by itself; ended with the `with`."""

    def __init__(self, words: Sequence[str], listener: socket.socket) -> None:
        self._words = tuple(words)
        self._listener = listener
        self._pipe, self._alive = os.pipe()
        self._ending = threading.Event()
        self._process = self._start()
        self._thread = threading.Thread(target=self._mind, name="dashboard", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        os.close(self._alive)
        self._thread.join(LEAVE_SECONDS)
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        os.close(self._pipe)

    def _start(self) -> subprocess.Popen[bytes]:
        inherited = (self._listener.fileno(), self._pipe)
        return subprocess.Popen(
            [sys.executable, "-m", "fedmq", *self._words, "--inherited", ",".join(map(str, inherited))],
            stdin=subprocess.DEVNULL,
            pass_fds=inherited,
            # A Ctrl-C is for the coordinator, which ends this one.
            start_new_session=True,
        )

    def _mind(self) -> None:
        pause = FIRST_PAUSE_SECONDS
        while True:
            status = self._process.wait()
            if self._ending.is_set():
                return
            log.error("the dashboard has ended with status %d; it is started again in %.0f s", status, pause)
            if self._ending.wait(pause):
                return
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
            self._process = self._start()
