"""The audit log: what it holds, that a change in it shows, and that nothing stops it."""

from __future__ import annotations

import json
import multiprocessing
import os
import stat
import tempfile
from pathlib import Path

import pytest
from fedmq_coordinator.audit import BEGINNING, MAX_TEXT, AuditError, AuditLog, Entry, Who, local_user
from hypothesis import given
from hypothesis import strategies as st
from small_disk import SmallDisk

from fedmq.cli import main

ANNA = Who(user="anna", uid=1000, how="socket")


def log_of(folder: Path) -> AuditLog:
    return AuditLog(folder / "audit.log", clock=lambda: 1_700_000_000.25)


def filled(folder: Path, lines: int = 5) -> AuditLog:
    log = log_of(folder)
    for number in range(lines):
        log.record(who=ANNA, action="pause", subject=f"task {number}", outcome="done")
    return log


def test_a_line_says_when_who_what_and_what_came_of_it(tmp_path: Path) -> None:
    log = log_of(tmp_path)
    head = log.record(who=ANNA, action="order pause", subject="task pumps", outcome="ordered")
    (line,) = log.path.read_text().splitlines()
    assert json.loads(line) == {
        "time": "2023-11-14T22:13:20.250Z",
        "who": {"user": "anna", "uid": 1000, "how": "socket"},
        "action": "order pause",
        "subject": "task pumps",
        "outcome": "ordered",
        "previous": BEGINNING,
    }
    log.record(who=ANNA, action="pause", subject="task pumps", outcome="done")
    entries = list(log.entries())
    assert isinstance(entries[1], Entry)
    assert entries[1].previous == head
    assert stat.S_IMODE(log.path.stat().st_mode) == 0o600


def test_this_process_knows_whom_it_works_for() -> None:
    who = local_user()
    assert (who.uid, who.how) == (os.getuid(), "local")
    assert who.user


@pytest.mark.parametrize(("uid", "user"), [(0, "anna as root"), (1, "daemon")])
def test_who_is_behind_sudo_is_told_of_root_alone(monkeypatch: pytest.MonkeyPatch, uid: int, user: str) -> None:
    monkeypatch.setattr(os, "getuid", lambda: uid)
    monkeypatch.setenv("SUDO_USER", "anna")
    assert local_user() == Who(user=user, uid=uid, how="local")


def test_a_log_that_nobody_touched_is_whole(tmp_path: Path) -> None:
    log = filled(tmp_path)
    found = log.verify()
    assert (found.lines, found.findings, found.torn) == (5, (), 0)
    assert log.head() == (5, found.head)
    assert log_of(tmp_path / "..").path.exists() is False


@pytest.mark.parametrize("place", range(4))
def test_a_changed_line_shows(tmp_path: Path, place: int) -> None:
    log = filled(tmp_path)
    lines = log.path.read_text().splitlines(keepends=True)
    lines[place] = lines[place].replace("anna", "bert")
    log.path.write_text("".join(lines))
    assert [finding.line for finding in log.verify().findings] == [place + 2]


@pytest.mark.parametrize("place", range(4))
def test_a_line_that_was_taken_out_or_put_in_shows(tmp_path: Path, place: int) -> None:
    log = filled(tmp_path)
    lines = log.path.read_text().splitlines(keepends=True)
    log.path.write_text("".join(lines[:place] + lines[place + 1 :]))
    assert [finding.line for finding in log.verify().findings] == [place + 1]
    log.path.write_text("".join([*lines[: place + 1], lines[place], *lines[place + 1 :]]))
    assert [finding.line for finding in log.verify().findings] == [place + 2]
    log.path.write_text("".join([*lines[: place + 1], "not ours\n", *lines[place + 1 :]]))
    assert {finding.line for finding in log.verify().findings} == {place + 2, place + 3}


def test_a_cut_tail_shows_against_a_head_that_was_kept_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = filled(tmp_path)
    assert main(["audit", "head", "--state", str(tmp_path)]) == 0
    head, count = capsys.readouterr().out.split()
    assert (head, count) == (log.verify().head, "5")
    log.record(who=ANNA, action="later", subject="s", outcome="o")
    assert main(["audit", "verify", "--state", str(tmp_path), "--head", head]) == 0
    assert capsys.readouterr().out.startswith("6 lines, each follows from the one before; head ")
    lines = log.path.read_text().splitlines(keepends=True)
    log.path.write_text("".join(lines[:4]))
    assert main(["audit", "verify", "--state", str(tmp_path)]) == 0, "by itself a cut tail does not show"
    assert main(["audit", "verify", "--state", str(tmp_path), "--head", head]) == 1
    assert "lines were cut off the end" in capsys.readouterr().err


@pytest.mark.parametrize("left", [1, 2, 40, 150])
def test_a_line_that_a_power_cut_tore_stops_nobody_and_is_noted(tmp_path: Path, left: int) -> None:
    log = filled(tmp_path, 3)
    whole = log.path.read_bytes()
    log.path.write_bytes(whole + whole.splitlines()[-1][:left])
    assert [finding.line for finding in log.verify().findings] == [4]
    log.record(who=ANNA, action="start", subject="coordinator", outcome="done")
    log.record(who=ANNA, action="stop", subject="coordinator", outcome="done")
    last = [entry for entry in log.entries() if isinstance(entry, Entry)][-2:]
    assert [entry.torn for entry in last] == [True, False]
    found = log.verify()
    assert (found.lines, found.findings, found.torn) == (6, (), 1)


def test_zeros_and_a_lost_line_break_are_torn_lines_too(tmp_path: Path) -> None:
    log = filled(tmp_path, 3)
    whole = log.path.read_bytes()
    for ending in (whole[:-1], whole + bytes(100), whole + b"{half\n"):
        log.path.write_bytes(ending)
        log.record(who=ANNA, action="start", subject="coordinator", outcome="done")
        assert log.path.read_bytes().startswith(ending)
        found = log.verify()
        assert (found.findings, found.torn) == ((), 1)


def test_what_comes_from_outside_stays_in_its_line(tmp_path: Path) -> None:
    log = log_of(tmp_path)
    evil = Who(user='a"\n\x1b[2J', uid=1, how="socket")
    log.record(who=evil, action="x\r\n", subject="\ud800\u2028" + "long" * MAX_TEXT, outcome="é\x00")
    raw = log.path.read_bytes()
    assert raw.isascii()
    assert raw.count(b"\n") == 1
    (entry,) = log.entries()
    assert isinstance(entry, Entry)
    assert len(entry.subject) == MAX_TEXT
    assert entry.who.user == evil.user
    assert not log.verify().findings


@given(st.lists(st.binary(max_size=200), max_size=5), st.integers(0, 3))
def test_whatever_the_file_holds_it_is_gone_through_and_goes_on(parts: list[bytes], whole: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        log = filled(Path(folder), whole)
        before = log.path.read_bytes() if whole else b""
        log.path.write_bytes(before + b"\n".join(parts))
        log.verify()
        log.record(who=ANNA, action="start", subject="coordinator", outcome="done")
        found = log.verify()
        assert not found.findings, "what was left is noted as such by the line that follows it"
        assert log.path.read_bytes().startswith(before + b"\n".join(parts))


def _write_many(path: Path, name: str) -> None:
    log = AuditLog(path)
    for number in range(30):
        log.record(who=Who(user=name, uid=1, how="local"), action="a", subject=str(number), outcome="o")


def test_several_programs_write_to_one_log(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    programs = [context.Process(target=_write_many, args=(tmp_path / "audit.log", name)) for name in ("a", "b", "c")]
    for program in programs:
        program.start()
    for program in programs:
        program.join()
    found = AuditLog(tmp_path / "audit.log").verify()
    assert (found.lines, found.findings) == (90, ())


def test_a_log_that_is_a_link_or_lies_open_is_not_written(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    log = log_of(folder)
    log.path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(AuditError, match="is a link to"):
        log.record(who=ANNA, action="a", subject="s", outcome="o")
    assert not (tmp_path / "elsewhere").exists()
    log.path.unlink()
    folder.chmod(0o777)
    with pytest.raises(AuditError, match="mode 0777"):
        log.record(who=ANNA, action="a", subject="s", outcome="o")


def test_a_line_of_root_s_leaves_the_log_to_the_folder_s_owner(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root works in other users' folders")
    folder = tmp_path / "state"
    folder.mkdir()
    os.chown(folder, 1, 1)
    filled(folder, 1)
    state = (folder / "audit.log").stat()
    assert (state.st_uid, state.st_gid, stat.S_IMODE(state.st_mode)) == (1, 1, 0o600)


def test_a_full_disk_is_told_and_the_log_goes_on_afterwards(small_disk: SmallDisk) -> None:
    log = filled(small_disk.place, 3)
    small_disk.fill()

    def record_many() -> None:
        for _ in range(100):
            log.record(who=ANNA, action="a", subject="s", outcome="o" * 900)

    with pytest.raises(AuditError, match="cannot write to the audit log"):
        record_many()
    small_disk.empty()
    log.record(who=ANNA, action="a", subject="s", outcome="o")
    assert not log.verify().findings


def test_the_log_is_shown_as_text_and_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = filled(tmp_path, 3)
    with log.path.open("ab") as file:
        file.write(b"to\x1brn")
    log.record(who=ANNA, action="start", subject="coordinator", outcome="done")
    assert main(["audit", "show", "--state", str(tmp_path)]) == 0
    text = capsys.readouterr().out.splitlines()
    assert text[0] == "2023-11-14T22:13:20.250Z  anna (uid 1000, socket)  pause  task 0: done"
    assert text[3] == "damaged: to?rn"
    assert text[4].endswith("coordinator: done  (after a line that was cut short)")
    assert main(["audit", "show", "--state", str(tmp_path), "--json", "--last", "2"]) == 0
    damaged, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert damaged == {"damaged": "to\x1brn"}
    assert (last["who"]["user"], last["torn"]) == ("anna", True)


def test_a_log_that_is_not_there_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "verify", "--state", str(tmp_path)]) == 1
    assert f"cannot read the audit log {tmp_path / 'audit.log'}" in capsys.readouterr().err
