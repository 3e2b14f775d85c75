"""One upgrade, from the index to a verdict; and what is gone on with where one was cut short.

Owns the order of the steps, and what counts as a good release. Refuses to know how each is done: `fetching` and
`installing` do. The rules:

- Whatever is killed whenever, ROOT/current leads to a whole release that has passed its own check. What a trial is on
  stands in the state before the link is switched, so the next pull goes on where this one was cut off: before the
  network is asked for anything.
- A release is good when the unit was restarted, the health command ends with 0, and the coordinator has welcomed the
  gateway with the new version since; and all that once more a little later. Else the one before comes back.
- A release is bad, and never tried again here, when it fails and the one before works. Where that fails as well, it may
  be the network or the coordinator: the release is tried again once the one before has been welcomed, three times in
  all.
- The serial number is kept as soon as an index is believed, before anything is done for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import msgspec

from fedmq import welcome
from fedmq.ca import folder
from fedmq.release.fetching import Server, Unreachable
from fedmq.release.index import INDEX, MAX_INDEX_BYTES, File, Index, ReleaseError, read
from fedmq.release.installing import Bad, Failure, Releases, Run, State, Trial, run
from fedmq.release.settings import ReleaseSettings

__all__ = ["CRASH_POINTS", "TRIES", "Pull", "World"]

TRIES = 3
ATTEMPTS = 4
"""So often a download is gone on with in one pull, where it breaks off."""

PAUSE_SECONDS = 10.0
RESTART_SECONDS = 300.0
_KEPT_BAD = 32

CRASH_POINTS = (
    "index",
    "state",
    "download",
    "downloaded",
    "venv",
    "pip",
    "checked",
    "installed",
    "current link",
    "current switched",
    "restarted",
    "healthy",
    "previous link",
    "previous switched",
    "settled",
)
"""Where a test can end a pull."""


@dataclass(frozen=True, kw_only=True)
class World:
    """What a pull touches beside its own folder and the network; a test gives it another one."""

    run: Run = run
    clock: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    rng: Random = field(default_factory=Random)
    crash_point: Callable[[str], None] = lambda name: None
    runs_from: Path | None = None
    """The virtual environment of this process, which must not be pruned under its feet."""


class Pull:
    """One pull. `run` returns a sentence, or raises ReleaseError, or FolderError for another one at work."""

    def __init__(self, settings: ReleaseSettings, world: World | None = None) -> None:
        self._settings = settings
        self._world = world or World()
        self._releases = Releases(
            root=settings.root,
            python=settings.python,
            seconds=settings.install_seconds,
            run=self._world.run,
            passed=self._world.crash_point,
        )

    def run(self, *, now: bool = False, again: bool = False) -> str:
        """With `now` at once, as where a trial is to be decided; `again` also what failed here before."""
        if not now and self._releases.state().trial is None:
            self._world.sleep(self._world.rng.uniform(0.0, self._settings.jitter_seconds))
        root = self._settings.root
        root.mkdir(mode=0o755, parents=True, exist_ok=True)
        with folder.locked(root, seconds=0.0):
            state = self._releases.state()
            try:
                said = self._finish(state) if state.trial is not None else ""
                said = "; ".join(part for part in (said, self._upgrade(again)) if part)
            except (ValueError, OSError) as error:
                self._note(str(error), failed=True)
                raise
            self._note(said, failed=False)
        return said

    def _note(self, outcome: str, *, failed: bool) -> None:
        state = self._releases.state()
        self._releases.keep(
            msgspec.structs.replace(state, outcome=outcome, failed=failed, checked_at=self._world.clock())
        )

    # -- to a release that is installed -----------------------------------------------------------------------------

    def _upgrade(self, again: bool) -> str:
        server = Server(
            self._settings.url,
            self._settings.ca_file,
            seconds=self._settings.timeout_seconds,
            monotonic=self._world.monotonic,
            passed=self._world.crash_point,
        )
        index = self._index(server)
        before = self._releases.current
        if index.version == before:
            return f"{before} is current, and what channel {index.channel} offers"
        bad = self._releases.state().bad.get(index.version)
        if bad is not None and bad.given_up and not again:
            return f"{before} stays: {index.version} failed here and is not tried again ({bad.why})"
        if bad is not None and not again and self._settings.health.welcome and self._welcomed() == bad.boot:
            return f"{before} stays, and the coordinator has not welcomed it since: {index.version} waits until it has"
        build = index.build_for(self._releases.platform())
        if not self._releases.is_whole(index.version):
            left = self._releases.missing(build)
            self._releases.check_room(build, left, self._settings.max_bytes)
            until = self._world.monotonic() + self._settings.download_hours * 3600
            for file in left:
                self._fetch(server, f"{index.version}/{build.folder}/{file.name}", file, until)
            self._world.crash_point("downloaded")
        try:
            self._releases.install(index, build)
        except Failure as error:
            self._releases.remove(index.version)
            self._condemn(index.version, str(error), sure=True)
            raise ReleaseError(
                f"release {index.version} is no good: {error}; {before or 'nothing'} stays, and it is not tried again"
            ) from None
        self._releases.forget_downloads(build)
        return self._try(Trial(version=index.version, software=index.software, before=before))

    def _index(self, server: Server) -> Index:
        data = server.get(INDEX, MAX_INDEX_BYTES)
        index = read(data, self._settings.keys)
        state = self._releases.state()
        index.check(channel=self._settings.channel, last_serial=state.serial, now=self._world.clock())
        self._world.crash_point("index")
        self._releases.keep(msgspec.structs.replace(state, serial=index.serial))
        return index

    def _fetch(self, server: Server, path: str, file: File, until: float) -> None:
        """Go on after a break, a few times; what has come counts."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                server.download(path, file, self._releases.place(file), until=until)
            except Unreachable as error:
                if attempt == ATTEMPTS or self._world.monotonic() > until:
                    raise Unreachable(f"{error}; what has come is kept, and the next pull goes on") from None
                self._world.sleep(PAUSE_SECONDS)
            else:
                return

    # -- the trial --------------------------------------------------------------------------------------------------

    def _try(self, trial: Trial) -> str:
        if self._settings.health.welcome:
            self._note_of_welcome()  # where it may not be read, nothing is switched
        self._releases.keep(msgspec.structs.replace(self._releases.state(), trial=trial))
        self._releases.switch(trial.version)
        return self._judge(trial)

    def _finish(self, state: State) -> str:
        """Of a pull that was cut off: what the link says tells how far it came."""
        trial = state.trial
        assert trial is not None
        current = self._releases.current
        if trial.failed and current in (trial.version, trial.before):
            return self._go_back(trial)
        if current == trial.version:
            return self._judge(trial)
        # Not switched yet; or somebody else has switched since, and what came of it is theirs to see.
        self._settle(trial, trial.failed or None)
        return ""

    def _judge(self, trial: Trial) -> str:
        """Restart into what is current, and see."""
        why = self._restart_and_look(trial.software)
        if why:
            return self._go_back(msgspec.structs.replace(trial, failed=why))
        self._world.crash_point("healthy")
        if trial.before != trial.version:
            self._releases.remember(trial.before)
        self._settle(trial, None)
        running = self._world.runs_from
        self._releases.prune(self._settings.keep, None if running is None else running.name)
        return f"{trial.version} is current and works" + (f", after {trial.before}" if trial.before else "")

    def _go_back(self, trial: Trial) -> str:
        """To the release before, which most often works. Always raises ReleaseError."""
        self._releases.keep(msgspec.structs.replace(self._releases.state(), trial=trial))
        before = trial.before
        if before is None or not self._releases.is_whole(before):
            self._settle(trial, trial.failed, sure=True)
            raise ReleaseError(f"release {trial.version} fails: {trial.failed}; there is none before to go back to")
        self._releases.switch(before)
        why = self._restart_and_look(None)
        if not why:
            self._settle(trial, trial.failed, sure=True)
            raise ReleaseError(
                f"release {trial.version} fails: {trial.failed}; {before} is current again and works;"
                f" {trial.version} is not tried again"
            )
        given_up = self._settle(trial, trial.failed, sure=False)
        raise ReleaseError(
            f"release {trial.version} fails: {trial.failed}; {before} is current again, and fails as well: {why}. It"
            f" may be neither's fault; {trial.version} is"
            f" {'not tried again' if given_up else 'tried again once it works'}"
        )

    def _settle(self, trial: Trial, why: str | None, *, sure: bool = False) -> bool:
        """The trial is over; one write says so and what came of it. Returns whether it is given up."""
        state = self._releases.state()
        bad = dict(state.bad)
        given_up = False
        if why is not None:
            given_up = self._add_bad(bad, trial.version, why, sure)
        elif self._releases.current == trial.version:
            bad.pop(trial.version, None)
        self._releases.keep(msgspec.structs.replace(state, trial=None, bad=bad))
        self._world.crash_point("settled")
        return given_up

    def _condemn(self, version: str, why: str, *, sure: bool) -> None:
        state = self._releases.state()
        bad = dict(state.bad)
        self._add_bad(bad, version, why, sure)
        self._releases.keep(msgspec.structs.replace(state, bad=bad))

    def _add_bad(self, bad: dict[str, Bad], version: str, why: str, sure: bool) -> bool:
        earlier = bad.pop(version, None)
        tries = (earlier.tries if earlier else 0) + 1
        given_up = sure or tries >= TRIES
        bad[version] = Bad(
            why=why[:1000], at=self._world.clock(), tries=tries, given_up=given_up, boot=self._welcomed()
        )
        for oldest in list(bad)[:-_KEPT_BAD]:
            del bad[oldest]
        return given_up

    # -- health -----------------------------------------------------------------------------------------------------

    def _restart_and_look(self, software: str | None) -> str:
        """Empty, or what is wrong. `software` is what the gateway must have been welcomed with; None for any."""
        health = self._settings.health
        boot = self._welcomed()
        ended = self._world.run(self._settings.restart, RESTART_SECONDS, self._told())
        if ended.status:
            return f"`{' '.join(self._settings.restart)}` ended with {ended.status}: {ended.said[-300:]}"
        self._world.crash_point("restarted")
        until = self._world.monotonic() + health.seconds
        while why := self._ails(software, boot):
            if self._world.monotonic() >= until:
                return f"after {health.seconds:g} s {why}"
            self._world.sleep(health.every_seconds)
        first = self._welcomed()
        self._world.sleep(health.settle_seconds)
        if why := self._ails(software, boot):
            return f"{health.settle_seconds:g} s after a good start {why}"
        if health.welcome and self._welcomed() != first:
            return f"within {health.settle_seconds:g} s after a good start the gateway began anew"
        return ""

    def _ails(self, software: str | None, boot: str) -> str:
        health = self._settings.health
        ended = self._world.run(health.command, health.seconds, self._told())
        if ended.status:
            said = f": {ended.said.splitlines()[-1][:300]}" if ended.said else ""
            return f"`{' '.join(health.command)}` ended with {ended.status}{said}"
        if not health.welcome:
            return ""
        try:
            note = self._note_of_welcome()
        except ReleaseError as error:
            return str(error)
        if note is None or note.boot == boot:
            return "the gateway has not been welcomed by the coordinator"
        if software is not None and note.software != f"fedmq {software}":
            return f"the gateway was welcomed as {note.software}, not as fedmq {software}: does it run from current?"
        return ""

    def _told(self) -> dict[str, str]:
        return {"FEDMQ_RELEASE": self._releases.current or ""}

    def _welcomed(self) -> str:
        """The start of the gateway that was welcomed last; empty where none was."""
        try:
            note = self._note_of_welcome() if self._settings.health.welcome else None
        except ReleaseError:
            return ""  # `_ails` says so
        return "" if note is None else note.boot

    def _note_of_welcome(self) -> welcome.Welcomed | None:
        try:
            return welcome.read(self._settings.health.state_dir)
        except OSError as error:
            raise ReleaseError(
                f"{self._settings.health.state_dir}: cannot be read: {error.strerror}; run this as root, or set"
                " health.welcome = false"
            ) from None
