"""The savings report: what it counts, how it divides, and that every view says the same."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
from pathlib import Path

import msgspec
import pytest
from fedmq_coordinator import report_html, report_text, retention
from fedmq_coordinator.absent import ABSENT, Absence, to_bytes
from fedmq_coordinator.ledger import Answer, CatchUp, Ledger, Round, Trial, Version, Wire
from fedmq_coordinator.report import (
    METRIC_NAME,
    Report,
    Reports,
    Traffic,
    View,
    build,
    build_all,
    divide,
    size,
    to_csv,
    to_json,
)
from fedmq_coordinator.report_html import to_html
from fedmq_coordinator.report_shares import TCP_JOIN_BYTES, TLS_JOIN_BYTES
from fedmq_coordinator.report_text import to_text
from fedmq_coordinator.status_text import status
from hypothesis import given, settings
from hypothesis import strategies as st
from ledgers import DENSE, START, a_decline, a_gateway, a_round, a_wire, an_answer, split_plant, write_plant
from machine_rows import a_fleet_spread


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    return write_plant(tmp_path_factory.mktemp("plant") / "ledger.sqlite")


@pytest.fixture(scope="module")
def report(plant: Ledger) -> Report:
    return build(plant)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger.sqlite")


# -- dividing the wire table -----------------------------------------------------------------------------------


def test_bytes_after_an_answer_belong_to_its_round_and_bytes_before_the_first_to_joining() -> None:
    answers = [an_answer(1, "a", 100, 1000), an_answer(2, "a", 150, 1600)]

    shares = divide([a_wire("a", 180, 1900)], answers)

    assert shares == {
        ("a", None): Traffic(up=100, down=1000),
        ("a", 1): Traffic(up=50, down=600),
        ("a", 2): Traffic(up=30, down=300),
    }


def test_after_a_restart_the_counter_begins_at_zero_and_the_gateway_joins_again() -> None:
    answers = [an_answer(1, "a", 100, 1000, nonce=b"1"), an_answer(2, "a", 40, 700, nonce=b"2")]
    wires = [a_wire("a", 130, 1100, nonce=b"1", final=False), a_wire("a", 90, 1000, nonce=b"2")]

    shares = divide(wires, answers)

    assert shares == {
        ("a", None): Traffic(up=140, down=1700),
        ("a", 1): Traffic(up=30, down=100),
        ("a", 2): Traffic(up=50, down=300),
    }


def test_a_process_that_never_answered_was_only_joining() -> None:
    assert divide([a_wire("a", 70, 80)], []) == {("a", None): Traffic(up=70, down=80)}


def test_a_counter_that_falls_back_or_overshoots_gives_no_negative_share() -> None:
    answers = [an_answer(1, "a", 100, 10), an_answer(2, "a", 40, 5), an_answer(3, "a", 9_999, 20)]

    shares = divide([a_wire("a", 200, 30)], answers)

    assert shares["a", 1] == Traffic()
    assert shares["a", 2] == Traffic(up=100, down=10)
    assert shares["a", 3] == Traffic(up=0, down=10)


counts = st.integers(0, 10**12)


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[Round], list[Answer], list[Wire]]:
    """Any wire table and any answers, consistent or not: processes without answers, answers without wire."""
    rounds = [a_round(id_) for id_ in range(draw(st.integers(0, 6)))]
    gateways = ["a", "b", "c"]
    nonces = st.sampled_from([b"1", b"2", b"3"])
    wires = [
        a_wire(gateway, draw(counts), draw(counts), nonce=nonce, final=draw(st.booleans()))
        for gateway in gateways
        for nonce in sorted(draw(st.sets(nonces)))
    ]
    answers = [
        an_answer(
            round_.id, gateway, draw(counts), draw(counts), nonce=draw(nonces), received_at=draw(st.floats(0, 1e6))
        )
        for round_ in rounds
        for gateway in gateways
        if draw(st.booleans())
    ]
    return rounds, answers, wires


@settings(max_examples=60, deadline=None)
@given(histories())
def test_rounds_and_joining_sum_to_the_wire_table(history: tuple[list[Round], list[Answer], list[Wire]]) -> None:
    rounds, answers, wires = history
    ledger = Ledger(Path(":memory:"))
    for round_ in rounds:
        ledger.book("bearings").open_round(round_)
    for answer in answers:
        ledger.book("bearings").save_answer(answer)
    for wire in wires:
        ledger.save_wire(wire)
    ledger.commit()

    report = build(ledger)
    ledger.close()

    table = Traffic(up=sum(w.sent for w in wires), down=sum(w.received for w in wires))
    by_round = report.joining
    for line in report.rounds:
        assert line.wire.up >= 0
        assert line.wire.down >= 0
        by_round += line.wire
    by_gateway = Traffic()
    for gateway in report.gateways:
        by_gateway += gateway.wire
    assert report.wire == table
    assert by_round == table
    assert by_gateway == table


# -- what is counted -------------------------------------------------------------------------------------------


def test_payload_dense_and_raw_are_counted_by_their_rules(ledger: Ledger) -> None:
    ledger.save_gateway(a_gateway("a", 0, signal_bytes=500))
    ledger.save_gateway(a_gateway("b", 1, signal_bytes=700))
    ledger.save_gateway(a_gateway("later", 2, first_seen=START + 9_999, signal_bytes=0))
    ledger.book("bearings").open_round(a_round(1))
    ledger.book("bearings").save_answer(an_answer(1, "a", payload_bytes=210))
    ledger.book("bearings").save_answer(a_decline(1, "b", "battery"))
    ledger.book("bearings").save_version(
        Version(lineage=1, number=1, digest=b"d", parent=b"p", round=1, created_at=START, delta=b"x" * 90, steps=b"")
    )
    ledger.commit()

    report = build(ledger)

    assert report.payload == Traffic(up=210, down=2 * 90)
    assert report.rounds[0].payload == report.payload
    assert report.dense == Traffic(up=DENSE, down=DENSE)
    assert report.raw_bytes == 1_200
    assert report.declines == {"battery": 1}
    assert [g.declines for g in report.gateways] == [{}, {"battery": 1}, {}]
    assert [g.payload.down for g in report.gateways] == [90, 90, 0]


def test_an_update_that_was_not_accepted_counts_as_payload_but_not_as_dense(ledger: Ledger) -> None:
    ledger.book("bearings").open_round(a_round(1))
    ledger.book("bearings").save_answer(an_answer(1, "a", payload_bytes=210, verdict="late"))
    ledger.commit()

    report = build(ledger)

    assert report.payload.up == 210
    assert report.dense == Traffic()
    assert [(v.kind, v.verdict, v.answers) for v in report.verdicts] == [("update", "late", 1)]


def test_factors_divide_dense_and_raw_by_what_was_sent(ledger: Ledger) -> None:
    ledger.save_gateway(a_gateway("a", 0, signal_bytes=3_000))
    ledger.book("bearings").open_round(a_round(1))
    ledger.book("bearings").save_answer(an_answer(1, "a", payload_bytes=100, dense_bytes=6_000))
    ledger.save_wire(a_wire("a", 400, 600))
    ledger.commit()

    report = build(ledger)

    assert report.factors.dense_over_wire == 12.0
    assert report.factors.raw_over_wire == 3.0
    assert report.factors.dense_over_payload == 120.0
    # Nobody has counted at the IP level: the answer and the start of the process are estimated.
    assert report.ip.bytes == 1_000 + 200 + 66 + TCP_JOIN_BYTES + TLS_JOIN_BYTES
    assert report.ip.counted_pct == 0


def test_federation_that_costs_more_than_uploading_says_so_and_by_how_much(ledger: Ledger) -> None:
    ledger.save_gateway(a_gateway("a", 0, signal_bytes=400))
    ledger.book("bearings").open_round(a_round(1))
    ledger.book("bearings").save_answer(an_answer(1, "a"))
    ledger.save_wire(a_wire("a", 400, 600))
    ledger.commit()

    words = " ".join(build(ledger).findings)

    assert "cost MORE than uploading the raw signal once: 1.00 kB instead of 400 B, 600 B more, 2.5 times" in words
    assert "cheaper to upload" in words


def test_a_gateway_without_a_last_word_has_a_tail_since_its_last_report(ledger: Ledger) -> None:
    ledger.save_gateway(a_gateway("done", 0))
    ledger.save_gateway(a_gateway("running", 1))
    ledger.save_gateway(a_gateway("away", 2, present=False))
    ledger.save_gateway(a_gateway("reborn", 3, nonce=b"new"))
    ledger.save_gateway(a_gateway("silent", 4))
    ledger.save_wire(a_wire("done", 1, 1))
    for name in ("running", "away", "reborn"):
        ledger.save_wire(a_wire(name, 1, 1, final=False, reported_at=START + 8))
    ledger.commit()

    tails = [(t.gateway, t.since - START, t.state) for t in build(ledger).tails]

    assert tails == [
        ("away", 8, "away"),
        ("reborn", 8, "lost"),
        ("reborn", 8, "running"),
        ("running", 8, "running"),
        ("silent", 0, "running"),
    ]


def test_updates_of_a_round_below_quorum_are_owed_until_a_version_holds_them(ledger: Ledger) -> None:
    ledger.book("bearings").open_round(a_round(1, outcome="below quorum", version=None))
    ledger.book("bearings").save_answer(an_answer(1, "a", payload=b"payload"))
    ledger.book("bearings").owe(1)
    ledger.commit()

    report = build(ledger)

    assert (report.below_quorum, report.owed, report.rounds[0].owed) == ([1], 1, 1)
    assert "Updates owed to the next round: 1" in report_text.to_text(report)


def test_the_plant_is_reported_whole(report: Report) -> None:
    assert len(report.rounds) == 40
    assert len(report.gateways) == 7
    assert report.metric_name == "macro-F1"
    assert report.below_quorum == [17]
    assert report.owed == 0
    assert report.declines == {"battery": 3, "cpu busy": 1}
    assert [(c.kind, c.bytes, c.askers) for c in report.catch_ups] == [("merged", 1_210, 1)]
    assert [(r.reason, r.messages, r.bytes) for r in report.refused] == [("truncated", 2, 38), ("identity", 1, 120)]
    assert [g.processes for g in report.gateways] == [1, 1, 2, 1, 1, 1, 1]
    assert report.seconds_median == pytest.approx(2.7, abs=0.5)
    assert report.wire_per_gateway_round_median == pytest.approx(680, abs=60)


def test_an_empty_ledger_gives_a_report_that_says_so(ledger: Ledger) -> None:
    report = build(ledger)

    assert report.findings == ["No round has been opened yet."]
    assert report.factors.dense_over_wire is None
    assert "No round" in report_text.to_text(report)
    assert "No round" in report_html.to_html(report)
    assert "No round" in status(ledger, START)
    assert len(to_csv(report).splitlines()) == 1


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 B"), (999, "999 B"), (1_000, "1.00 kB"), (9_996, "10.0 kB"), (123_456, "123 kB"), (999_600, "1.00 MB")],
)
def test_sizes_have_three_digits_in_decimal_units(count: int, words: str) -> None:
    assert size(count) == words


# -- several tasks ---------------------------------------------------------------------------------------------


@pytest.fixture
def halves(tmp_path: Path) -> tuple[Report, Ledger]:
    """The report of one task, and its ledger once its rounds are those of two."""
    ledger = write_plant(tmp_path / "plant.sqlite")
    whole = build(ledger)
    split_plant(ledger)
    return whole, ledger


@pytest.mark.parametrize("keep", [None, 10])
def test_what_several_tasks_come_to_together_is_what_one_of_all_their_rounds_would(
    halves: tuple[Report, Ledger], keep: int | None
) -> None:
    whole, ledger = halves
    while keep is not None and retention.fold(ledger, keep_rounds=keep):
        ledger.commit()
    reports = build_all(ledger)
    assert isinstance(reports, Reports)
    together = reports.together
    for name in ("wire", "joining", "payload", "dense", "raw_bytes", "ip", "savings", "sentences", "gateways"):
        assert getattr(together, name) == getattr(whole, name), name
    assert together.metric_last is None
    assert [one.task for one in reports.tasks] == ["bearings", "fans"]
    assert [one.metric_name for one in reports.tasks] == ["macro-F1", "RMSE"]


def test_tasks_and_joining_are_all_that_there_is(halves: tuple[Report, Ledger]) -> None:
    reports = build_all(halves[1])
    assert isinstance(reports, Reports)
    wires = [reports.together.joining, *(one.wire for one in reports.tasks)]
    assert sum(one.up for one in wires) == reports.together.wire.up
    assert sum(one.down for one in wires) == reports.together.wire.down
    assert reports.of_no_task >= reports.together.joining.total > 0


def test_csv_of_several_tasks_has_every_round_with_its_task_and_by_site_all_bytes(
    halves: tuple[Report, Ledger],
) -> None:
    whole, ledger = halves
    lines = list(csv.DictReader(io.StringIO(to_csv(build_all(ledger)))))
    assert [int(line["round"]) for line in lines] == [line.id for line in whole.rounds]
    assert {int(line["round"]) % 2: line["task"] for line in lines} == {0: "bearings", 1: "fans"}
    by_site = build_all(ledger, view=View(by="site"))
    (site,) = csv.DictReader(io.StringIO(to_csv(by_site)))
    assert int(site["wire_up_bytes"]) == whole.wire.up


def test_text_and_page_of_several_tasks_begin_with_all_of_them(halves: tuple[Report, Ledger]) -> None:
    whole, ledger = halves
    reports = build_all(ledger)
    text = report_text.to_text(reports, 100)
    page = _markup(report_html.to_html(reports))
    titles = [f"Bandwidth report of {which}" for which in ("2 tasks together", "task bearings", "task fans")]
    assert [line for line in text.splitlines() if line in titles] == titles
    assert page.count('class="answer"') == page.count('class="ways"') == 1
    assert re.findall(r'id="task-\d">([^<]+)<', page) == ["Task bearings", "Task fans"]
    assert whole.sentences[0].partition(",")[0] in text
    assert max(map(len, text.splitlines())) <= 100


# -- views -----------------------------------------------------------------------------------------------------


def test_json_holds_the_report_as_it_is(report: Report) -> None:
    assert msgspec.json.decode(to_json(report), type=Report) == report


def test_csv_has_a_line_for_every_round_whose_bytes_sum_to_the_total(report: Report) -> None:
    lines = list(csv.DictReader(io.StringIO(to_csv(report))))

    assert [line["round"] for line in lines] == [str(line.id) for line in report.rounds]
    assert sum(int(line["wire_up_bytes"]) for line in lines) + report.joining.up == report.wire.up


@pytest.mark.parametrize("width", [80, 120])
def test_text_fits_its_width_and_has_no_control_codes(report: Report, width: int) -> None:
    text = report_text.to_text(report, width)

    assert max(map(len, text.splitlines())) <= width
    assert all(c.isprintable() or c == "\n" for c in text)
    for words in ("macro-F1", "bay2-pump-north", "battery", "below", "merged", "truncated", "joining", "raw signal"):
        assert words in text


def test_text_of_hostile_names_cannot_move_the_cursor(ledger: Ledger) -> None:
    ledger.book("bearings").open_round(a_round(1))
    ledger.book("bearings").save_answer(a_decline(1, "a", "\x1b[2J\x1b]0;owned\x07 [bold]reason[/bold]"))
    ledger.commit()

    text = report_text.to_text(build(ledger)) + status(ledger, START)

    assert "\x1b" not in text
    assert "\x07" not in text
    assert "[bold]reason[/bold]" in text.replace("\n", "")


# -- the page --------------------------------------------------------------------------------------------------


def test_the_page_asks_for_nothing_from_outside(report: Report) -> None:
    page = report_html.to_html(report)

    assert not re.search(r"""(?:src|href|action|data|poster)\s*=\s*["']?(?!#|data:,)[^"'\s>]""", _markup(page))
    assert "@import" not in page
    assert not re.search(r"url\(", page)
    assert "default-src 'none'" in page
    assert not re.search(r"\b(?:fetch|XMLHttpRequest|WebSocket|sendBeacon)\(", page)


def test_the_page_holds_its_figures_in_tables_for_readers_without_scripts(report: Report) -> None:
    markup = _markup(report_html.to_html(report))

    for words in (size(report.wire.total), size(report.dense.total), "bay2-pump-north", "battery", "below quorum"):
        assert words in markup
    assert markup.count("<table") >= 6
    assert len(re.findall("<tr>", markup)) > 40 + 7


def test_hostile_text_stays_text_in_the_page(ledger: Ledger) -> None:
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\u2028'\"&"
    ledger.book("bearings").put(METRIC_NAME, evil.encode())
    ledger.save_gateway(a_gateway(evil, 0))
    ledger.book("bearings").open_round(a_round(1, metric=0.5, metric_source=evil, outcome=evil))
    ledger.book("bearings").save_answer(a_decline(1, evil, evil))
    ledger.count_refused(evil, evil, 1)
    ledger.book("bearings").save_catch_up(CatchUp(at=START, kind=evil, from_version=0, to_version=1, bytes=1, askers=1))
    ledger.save_wire(a_wire(evil, 10, 10, final=False))
    ledger.commit()

    page = report_html.to_html(build(ledger))

    assert "<script>alert" not in page
    assert "<img" not in page
    assert page.lower().count("</script") == 4  # the data, the chart library, the shared charts, our own
    data = re.search(r'<script type="application/json" id="report-data">(.*?)</script>', page, re.S)
    assert data is not None
    assert json.loads(data[1])[0]["metric_name"] == evil


def test_only_the_three_scripts_of_the_page_may_run(report: Report) -> None:
    page = report_html.to_html(report)

    allowed = re.search(r"script-src ([^;]*);", page)
    assert allowed is not None
    assert allowed[1].count("'sha256-") == 3
    assert "unsafe" not in allowed[1]


def _markup(page: str) -> str:
    """The page without scripts and styles."""
    return re.sub(r"<(script|style)\b.*?</\1>", "", page, flags=re.S)


def test_a_late_update_does_not_change_what_its_round_came_to(ledger: Ledger) -> None:
    book = ledger.book("bearings")
    book.open_round(a_round(1, drawn=2))
    book.save_answer(an_answer(1, "a"))
    book.save_answer(an_answer(1, "b", counted_in=2))
    ledger.commit()
    (line,) = build(ledger).rounds
    assert (line.answered, line.accepted, line.late, line.drawn) == (1, 1, 1, 2)
    assert [(g.name, g.accepted) for g in build(ledger).gateways] == [("a", 1), ("b", 1)]


def test_who_is_set_aside_is_named_with_the_rounds_to_come(plant: Ledger) -> None:
    gateway = plant.gateways()[2]
    plant.only.put(ABSENT, to_bytes({gateway.name: Absence(missed=6, pauses=2, left=2, nonce=gateway.nonce)}))
    plant.commit()
    report = build(plant)
    assert [(line.gateway, line.missed, line.left) for line in report.set_aside] == [(gateway.name, 6, 2)]
    for page in (report_text.to_text(report), status(plant, START)):
        assert f"{gateway.name} (for 2 rounds)" in " ".join(page.split())
    assert f"{gateway.name} (2 more)" in report_html.to_html(report)


def test_where_personal_models_score_is_told_with_the_gain_and_why_not_elsewhere(tmp_path: Path) -> None:
    plant = write_plant(tmp_path / "ledger.sqlite")

    def trial(gateway: str, personal: str | None, metric: float | None = None, shared: float | None = None) -> Trial:
        return Trial(
            gateway=gateway,
            at=START,
            lineage=1,
            version=38,
            in_service=38,
            windows=40,
            metric=0.9,
            before=None,
            personal=personal,
            personal_windows=40,
            personal_metric=metric,
            shared_metric=shared,
        )

    told = [
        trial("bay3-mixer", "serves", 0.95, 0.91),
        trial("boiler-feed", "serves", 0.98, 0.9),
        trial("bay3-conveyor", "no_better", 0.9, 0.9),
        trial("press-line", "one_class"),
        trial("without", None),
    ]
    for one in told:
        plant.only.save_trial(one)
    plant.commit()
    built = build(plant)
    said = "2 of 4 gateways, 0.060 better there on own held-out windows (median); else no better 1, one class 1"
    assert built.findings[-1] == f"Personal models: {said}."
    text = report_text.to_text(built)
    assert re.search(r"bay3-mixer +38 +scores +40 +0.950 +0.910", text)
    assert re.search(r"press-line +38 +one class +40", text)
    assert "personal" in status(plant, START)


def test_how_machines_hold_to_what_is_normal_is_in_every_form_of_the_report(tmp_path: Path) -> None:
    with contextlib.closing(write_plant(tmp_path / "ledger.sqlite")) as ledger:
        assert build(ledger).spreads == []
        ledger.save_fleet_spreads([a_fleet_spread(), a_fleet_spread("velocity", stability=0.01, since=None)])
        ledger.commit()
        report = build(ledger)
        assert [line.measure for line in report.spreads] == ["acceleration", "velocity"]
        (drift,) = (text for text in report.findings if text.startswith("Drift: "))
        assert "acceleration of 12 pumps at 5 gateways together is higher: 29 % of windows" in drift
        text = to_text(report, 120)
        assert "2 3 4 6 8 10 11 12 15 29" in text
        page = to_html(report)
        assert page.count('<svg class="columns"') == 2
        assert "higher: 29\u00a0% of windows lie in the top tenth of normal" in page
        assert json.loads(to_json(report))["spreads"][0]["shares"][-1] == 0.29
        # They are of now and of all gateways: a part of the ledger has none.
        assert build(ledger, view=View(until=START + 1e6)).spreads == []
        assert build(ledger, view=View(gateways=(ledger.gateways()[0].name,))).spreads == []
        # Of several tasks they stand with what is of all of them, once.
        split_plant(ledger)
        reports = build_all(ledger)
        assert isinstance(reports, Reports)
        assert [line.measure for line in reports.together.spreads] == ["acceleration", "velocity"]
        assert [task.spreads for task in reports.tasks] == [[], []]
        assert to_html(reports).count('<svg class="columns"') == 2
        assert to_text(reports, 120).count("Machines against what is normal") == 1


def test_without_personal_models_the_report_says_nothing_of_them(report: Report) -> None:
    assert report.personal == []
    assert "ersonal" not in report_text.to_text(report)
