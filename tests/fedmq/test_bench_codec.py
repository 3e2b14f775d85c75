"""`fedmq bench codec`: real deltas, payloads that decode, and the pages and pictures that come of them."""

from __future__ import annotations

import io
import itertools
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from fedmq_compression import compiled, pipeline
from fedmq_compression.pipeline import Contexts
from fedmq_coordinator.settings import CodecSettings, RoundSettings
from fedmq_protocol.task import Task, initial_steps
from rich.console import Console

from fedmq.bench import codec as measuring
from fedmq.bench.codec import BOTH, CodecOptions, Result, measure
from fedmq.bench.rivals import RIVALS, entropy_bits, log2_choose
from fedmq.bench.showing import BEGIN, END, check_plot, notes, put_markdown, save_plot, show, to_markdown
from fedmq.bench.training import Plant, Played, at_density, hidden_for, play, prepare, task_for
from fedmq.cli import main
from fedmq.demo import DemoOptions

pytest.importorskip("pyroaring", reason="needs pyroaring: pip install 'fedmq[bench]'")

TINY = ["--sizes", "2000", "--densities", "0.01,0.05", "--rounds", "6", "--no-progress"]


class Quiet:
    """A watcher that adds up what it is told."""

    def __init__(self) -> None:
        self.planned, self.reached = 0.0, 0.0
        self.texts: list[str] = []

    def plan(self, work: float) -> None:
        self.planned = work

    def at(self, text: str) -> None:
        self.texts.append(text)

    def done(self, work: float) -> None:
        self.reached += work


@pytest.fixture(scope="module")
def plant() -> Plant:
    return prepare(DemoOptions(gateways=3))


@pytest.fixture(scope="module")
def task(plant: Plant) -> Task:
    return at_density(task_for(plant.fleet, "mlp", hidden_for(plant.fleet, "mlp", 2000), 0), 0.02, 0.02)


@pytest.fixture(scope="module")
def played(plant: Plant, task: Task) -> list[Played]:
    return list(play(task, plant.gateways, plant.test, 4))


@pytest.fixture(scope="module")
def measured() -> tuple[Result, Quiet]:
    watcher = Quiet()
    options = CodecOptions(sizes=(2_000, 17_000), densities=(0.01, 0.1), rounds=6, seconds=0.02)
    return measure(options, watcher), watcher


@pytest.fixture
def result(measured: tuple[Result, Quiet]) -> Result:
    return measured[0]


# --- training --------------------------------------------------------------------------------------------------------


def test_a_round_starts_where_the_broadcast_before_it_led(task: Task, played: list[Played]) -> None:
    np.testing.assert_array_equal(played[0].base, initial_steps(task.model, 0, task.grid_bits))
    for before, after in itertools.pairwise(played):
        moved = np.zeros(before.base.size, dtype=np.int64)
        before.down.encoded.sent.add_to(moved, 1)
        assert moved.any()
        np.testing.assert_array_equal(after.base, before.base + moved)
        np.testing.assert_array_equal(after.base, before.after)
        np.testing.assert_array_equal(after.displacement, after.base - played[0].base)


def test_a_gateway_meets_the_residual_that_it_left(played: list[Played]) -> None:
    assert not any(message.residual.any() for message in played[0].up)
    for before, after in itertools.pairwise(played):
        for left, met in zip(before.up, after.up, strict=True):
            np.testing.assert_array_equal(met.residual, left.encoded.residual)


def test_the_same_seed_trains_the_same_deltas(plant: Plant, task: Task, played: list[Played]) -> None:
    again = next(play(task, plant.gateways, plant.test, 1))
    assert [m.encoded.payload for m in again.up] == [m.encoded.payload for m in played[0].up]


def test_payloads_are_those_of_the_wire_with_the_history_as_context(task: Task, played: list[Played]) -> None:
    for done in played:
        contexts = Contexts.of(done.displacement, task.model.shapes)
        for message in (*done.up, done.down):
            got = pipeline.decode(message.encoded.payload, task.model.parameters, message.spec, contexts=contexts)
            np.testing.assert_array_equal(got.dense(), message.encoded.sent.dense())


def test_what_is_coded_again_as_the_message_says_is_the_same_payload(played: list[Played]) -> None:
    for message in (*played[2].up, played[2].down):
        again = pipeline.encode(
            message.delta, message.spec, message.residual, contexts=message.contexts, gain=message.gain
        )
        assert again.payload == message.encoded.payload


def test_where_half_is_asked_everyone_is_asked_once_in_two_rounds(plant: Plant) -> None:
    settings = RoundSettings(fraction=0.5)
    task = task_for(plant.fleet, "mlp", None, 0, settings)
    rounds = list(play(task, plant.gateways, plant.test, 4, settings))
    assert all(len(done.up) == len(done.asked) for done in rounds)
    for first, second in (rounds[:2], rounds[2:]):
        assert sorted(first.asked + second.asked) == [0, 1, 2]


def test_somebody_is_asked_however_small_the_share(plant: Plant) -> None:
    settings = RoundSettings(fraction=0.01)
    task = task_for(plant.fleet, "mlp", None, 0, settings)
    rounds = play(task, plant.gateways, plant.test, 3, settings)
    assert sorted(place for done in rounds for place in done.asked) == [0, 1, 2]


def test_dense_messages_have_no_contexts(plant: Plant) -> None:
    done = next(play(task_for(plant.fleet, "mlp", None, 0, codec="dense"), plant.gateways, plant.test, 1))
    assert [message.contexts for message in (*done.up, done.down)] == [None] * 4
    assert done.down.encoded.sent.indices is None


def test_without_learning_the_level_rises_and_uplinks_thicken_with_it(plant: Plant) -> None:
    still = task_for(plant.fleet, "mlp", None, 0, learning_rate=1e-6)
    rounds = list(play(still, plant.gateways, None, 10))
    assert rounds[0].level == 0
    assert rounds[-1].level > 0
    assert all(done.up[0].spec.density == still.up.at(done.level).density for done in rounds)
    assert all(done.metric is None for done in rounds)
    fixed = at_density(still, still.up.density, still.down.density)
    assert {done.level for done in play(fixed, plant.gateways, None, 10)} == {0}


@pytest.mark.parametrize("wanted", [2_000, 17_000, 100_000, 1_000_000])
@pytest.mark.parametrize("kind", ["mlp", "autoencoder"])
def test_a_model_has_about_as_many_parameters_as_wished_for(plant: Plant, kind: Any, wanted: int) -> None:
    task = task_for(plant.fleet, kind, hidden_for(plant.fleet, kind, wanted), 0)
    assert task.model.parameters == pytest.approx(wanted, rel=0.1)


def test_both_ways_are_signs_at_the_density_wished_for(plant: Plant) -> None:
    task = at_density(task_for(plant.fleet, "mlp", (8,), 0), 0.025, 0.025)
    assert (task.up.bits, task.up.density) == (task.down.bits, task.down.density) == (1, 0.025)
    assert (task.up.gain, task.down.gain) == (CodecSettings().up_gain, CodecSettings().down_gain)
    assert task.levels == 0


# --- measuring -------------------------------------------------------------------------------------------------------


def test_every_case_is_measured_and_progress_ends_at_its_plan(measured: tuple[Result, Quiet]) -> None:
    result, watcher = measured
    assert [(case.parameters, case.density) for case in result.cases] == [
        *((1961, 0.01), (1961, 0.1), (18_308, 0.01), (18_308, 0.1)),
    ]
    assert watcher.reached == pytest.approx(watcher.planned)
    assert watcher.texts[0].startswith("sim")


def test_the_figures_of_a_case_are_those_of_its_messages(played: list[Played]) -> None:
    message = played[1].up[0]
    sizes = measuring._sizes(message)
    indices, steps = message.encoded.sent.indices, message.encoded.sent.steps
    assert indices is not None
    assert sizes.history_bytes == len(message.encoded.payload)
    plain = pipeline.encode(message.delta, message.spec, message.residual, gain=message.gain)
    assert sizes.plain_bytes == len(plain.payload)
    assert sizes.count == indices.size
    bits = log2_choose(message.delta.size, indices.size) + entropy_bits(steps < 0)
    assert sizes.bound_bytes == pytest.approx(bits / 8)
    assert set(sizes.rival_bytes) == {rival.name for rival in RIVALS}
    # Head, a scale of two bytes at most, checksum.
    bitmap = -(-(message.delta.size + indices.size) // 8)
    assert bitmap + 4 <= sizes.rival_bytes["bitmap"] <= bitmap + 5


def test_the_codec_is_near_the_bound_and_a_bitmap_is_not(result: Result) -> None:
    large = [case for case in result.cases if case.parameters > 10_000]
    for case in large:
        for sizes in (case.middle_up, case.middle_down):
            assert sizes.plain_bytes < 1.1 * sizes.bound_bytes
            assert sizes.rival_bytes["bitmap"] > 1.5 * sizes.bound_bytes


def test_time_and_memory_are_given_for_every_step(result: Result) -> None:
    expected = {"encode", "decode", "contexts", "encode_history", "decode_history"}
    for case in result.cases:
        assert set(case.vectors) == {*expected, BOTH}
        assert list(case.copies) == (["numpy", "compiled"] if result.compiled else ["numpy"])
        assert case.copy_seconds > 0
        for steps in case.copies.values():
            assert set(steps) == expected
            assert min(steps.values()) > 0
        # The residual alone is one vector.
        assert case.vectors["encode"] >= 1


def test_each_way_is_timed_with_machine_code_as_it_says(played: list[Played], monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(compiled, "enabled", False)
    for way in ("numpy", "compiled"):
        measuring._once(way, lambda: seen.append(compiled.enabled), 2)
    assert seen == [False, False, True, True]
    assert not compiled.enabled


def test_without_machine_code_there_are_times_of_numpy_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "enabled", False)
    result = measure(CodecOptions(sizes=(2_000,), densities=(0.01,), rounds=3, seconds=0.0), Quiet())
    assert not result.compiled
    assert list(result.cases[0].copies) == ["numpy"]
    assert any("machine code was not in use" in line for line in notes(result))
    assert "compiled" not in to_markdown(result)


def test_a_codec_that_decodes_something_else_is_not_counted(
    played: list[Played], monkeypatch: pytest.MonkeyPatch
) -> None:
    message = played[0].up[0]
    wrong = replace(message.encoded.sent, steps=-message.encoded.sent.steps)
    monkeypatch.setattr(pipeline, "decode", lambda *_, **__: wrong)
    with pytest.raises(ValueError, match="the codec is wrong"):
        measuring._sizes(message)


def test_uplinks_are_taken_from_every_gateway_in_turn() -> None:
    stretch = measuring._Stretch(start=8, stop=16, up=[], down=[])
    assert stretch.chosen(7, 7, 1_000_000) == []
    chosen = [stretch.chosen(number, 7, 1_000_000) for number in range(8, 16)]
    assert {place for places in chosen for place in places} == set(range(7))
    assert sum(map(len, chosen)) <= measuring.MESSAGES


# --- showing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_tables_keep_to_the_width_of_the_terminal(result: Result, width: int) -> None:
    out = io.StringIO()
    show(result, Console(file=out, width=width))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert "…" not in out.getvalue()
    assert ("bitmap" in out.getvalue().split("Time and memory")[0]) == (width >= 100)


def test_a_page_has_a_row_for_each_case_and_one_of_time_for_each_model(result: Result) -> None:
    rows = [line for line in to_markdown(result).splitlines() if line.startswith("| sim ")]
    assert len(rows) == len(result.cases) + 2 * len(result.cases[0].copies)
    assert all(f"- {line}" in to_markdown(result) for line in notes(result))


def test_a_page_has_three_densities_at_most(result: Result) -> None:
    case = result.cases[0]
    many = replace(result, cases=[replace(case, density=share) for share in (0.001, 0.0025, 0.005, 0.01, 0.03, 0.1)])
    rows = [line.split("|")[3].strip() for line in to_markdown(many).splitlines() if line.startswith("| sim ")]
    assert rows == ["0.25 %", "1 %", "3 %", *["1 %"] * len(case.copies)]


def test_a_page_is_changed_between_its_marks_only(result: Result, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    put_markdown(result, page)
    put_markdown(result, page)
    assert page.read_text(encoding="utf-8") == f"before\n{BEGIN}\n\n{to_markdown(result)}{END}\nafter\n"


def test_a_page_without_marks_is_left_alone(result: Result, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("no marks", encoding="utf-8")
    with pytest.raises(ValueError, match="expected the marks"):
        put_markdown(result, page)
    assert page.read_text(encoding="utf-8") == "no marks"


def test_the_same_result_draws_the_same_picture(result: Result, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'fedmq[bench]'")
    for name in ("one.svg", "two.svg"):
        save_plot(result, tmp_path / name)
    assert ElementTree.parse(tmp_path / "one.svg").getroot().tag.endswith("svg")
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


def test_a_plot_needs_a_name_that_it_can_draw(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ends in \.svg or \.png"):
        check_plot(tmp_path / "plot.gif")


def test_without_matplotlib_the_error_names_the_line_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'fedmq\[bench\]'"):
        check_plot(tmp_path / "plot.svg")


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command sets these for its process, which is ours here."""
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        monkeypatch.setenv(name, "1")


@pytest.mark.usefixtures("threads")
def test_the_command_measures_draws_and_writes_and_can_show_it_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'fedmq[bench]'")
    written, plot, page = tmp_path / "codec.json", tmp_path / "codec.svg", tmp_path / "page.md"
    wanted = ["--json", str(written), "--plot", str(plot), "--markdown", str(page)]
    assert main(["bench", "codec", "--quick", *TINY, *wanted]) == 0
    shown = capsys.readouterr()
    assert "sim: 1,961 parameters" in shown.out
    assert shown.err == ""
    figures = json.loads(written.read_text(encoding="utf-8"))
    assert [case["density"] for case in figures["cases"]] == [0.01, 0.05]
    assert figures["cases"][0]["rounds"] == 6
    assert figures["machine"]["cores"] >= 1
    assert figures["versions"]["numpy"] == np.__version__
    assert ElementTree.parse(plot).getroot().tag.endswith("svg")
    assert BEGIN in page.read_text(encoding="utf-8")

    assert main(["bench", "codec", "--from", str(written)]) == 0
    assert capsys.readouterr().out == shown.out


@pytest.mark.usefixtures("threads")
def test_the_command_refuses_what_it_cannot_use_before_it_measures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("measured in spite of a mistake")

    monkeypatch.setattr("fedmq.bench.program.measure", never)
    other = tmp_path / "other.json"
    other.write_text('{"date": 1}', encoding="utf-8")
    for words, said in (
        (["--plot", "plot.gif"], "ends in .svg or .png"),
        (["--from", str(other)], "expected what --json wrote"),
        (["--rounds", "2"], "expected 3 or more"),
        (["--markdown", str(other)], "expected the marks"),
    ):
        assert main(["bench", "codec", *words]) == 1
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--densities", "0.01,2"], ["--sizes", "7"], ["--densities", "x"], ["--sizes", "x"]])
def test_sizes_and_densities_out_of_range_are_named(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bench", "codec", *words])
    assert ended.value.code == 2
    assert words[0] in capsys.readouterr().err


def test_help_says_what_is_measured_and_against_what(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bench", "codec", "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    for word in ("log2 C(d, k)", "copy of the dense", "--json", "--plot", "--quick", "roaring", "fedmq bench codec"):
        assert word in said
