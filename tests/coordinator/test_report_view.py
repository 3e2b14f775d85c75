"""The report of a part of the ledger: by time, by site and gateway, in bytes and in money, and what it cannot say."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from fedmq_coordinator import report_html, report_text, retention
from fedmq_coordinator.job import TaskPlan
from fedmq_coordinator.ledger import Ledger, LedgerError
from fedmq_coordinator.money import MONEY, Price, to_bytes
from fedmq_coordinator.report import Report, Traffic, View, build, to_csv, to_json
from fedmq_coordinator.report_view import moment
from fedmq_coordinator.settings import RoundSettings
from ledgers import START, a_gateway, a_round, a_wire, an_answer, write_plant
from scripted_fleet import ScriptedFleet, scripted_task

NORTH = ("bay1-press", "bay1-spindle", "bay2-fan")


@pytest.fixture
def plant(tmp_path: Path) -> Ledger:
    """Forty rounds, 62 s apart; gateways of two sites, which tell of CPU time and of what TCP/IP and TLS add."""
    ledger = write_plant(tmp_path / "ledger.sqlite")
    for gateway in ledger.gateways():
        site = "site:north" if gateway.name in NORTH else "site:south"
        ledger.save_gateway(replace(gateway, tags=f"press\n{site}" if gateway.name == "bay1-press" else site))
    ledger.write("UPDATE answers SET cpu = 30 + round, beyond = (sent + received) / 2")
    ledger.write("UPDATE wire SET beyond = (sent + received) / 2")
    ledger.commit()
    return ledger


def at_round(number: int) -> float:
    return START + 62.0 * number


def fold(ledger: Ledger, keep: int) -> None:
    while retention.fold(ledger, keep_rounds=keep):
        ledger.commit()


def whole(lines: list[Traffic]) -> int:
    return sum(line.total for line in lines)


# -- time --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90m", 1_000_000 - 5_400),
        ("36h", 1_000_000 - 36 * 3_600),
        ("7d", 1_000_000 - 7 * 86_400),
        ("1w", 1_000_000 - 7 * 86_400),
        ("1970-01-02", 86_400),
        ("1970-01-02T01:00", 90_000),
        ("1970-01-02T01:00+01:00", 86_400),
    ],
)
def test_a_moment_is_said_as_so_long_ago_or_as_a_date(text: str, seconds: float) -> None:
    assert moment(text, 1_000_000.0) == seconds


@pytest.mark.parametrize("text", ["", "7", "d", "yesterday", "-1d", "1969-01-01", "99999999d x", "9999-01-01", "nan"])
def test_what_is_no_moment_is_refused_with_what_was_expected(text: str) -> None:
    with pytest.raises(ValueError, match="expected 90m, 36h, 7d or 2w, or a date"):
        moment(text, 1_000_000.0)


def test_a_span_that_ends_before_it_begins_is_refused() -> None:
    with pytest.raises(ValueError, match="a beginning before the end"):
        View(since=10.0, until=10.0)


def test_spans_that_lie_side_by_side_have_every_byte_once(plant: Ledger) -> None:
    everything = build(plant)
    cuts = [None, at_round(3), at_round(20), at_round(39) + 1, None]

    parts = [build(plant, view=View(since=a, until=b)) for a, b in pairwise(cuts)]

    assert [len(part.rounds) for part in parts] == [3, 17, 20, 0]
    assert sum(part.wire.total for part in parts) == everything.wire.total
    assert sum(part.ip.bytes for part in parts) == everything.ip.bytes
    assert sum(part.dense.total for part in parts) == everything.dense.total
    assert sum(part.cpu_seconds or 0 for part in parts) == pytest.approx(everything.cpu_seconds)
    assert all(part.gaps == [] for part in parts)


def test_a_restart_is_joining_in_the_span_in_which_it_answered_first(plant: Ledger) -> None:
    before = build(plant, view=View(until=at_round(20)))
    after = build(plant, view=View(since=at_round(20)))
    fan = {line.name: line.joining.total for line in after.gateways}
    assert before.joining.total > 0
    assert after.joining.total == fan["bay2-fan"] > 0
    assert build(plant).joining.total == before.joining.total + after.joining.total


@pytest.mark.parametrize("keep", [4, 20, 30])
def test_a_span_with_all_or_nothing_of_what_is_summed_up_says_the_same_as_before(plant: Ledger, keep: int) -> None:
    views = [View(since=at_round(40 - keep)), View(until=at_round(39)), View(since=0.0)]
    before = [build(plant, view=view) for view in views]

    fold(plant, keep)

    def same(report: Report) -> Report:
        return msgspec.structs.replace(report, folded_rounds=0, wire_per_gateway_round_median=None)

    after = [build(plant, view=view) for view in views]
    assert [same(report) for report in after] == [same(report) for report in before]
    assert [report.gaps for report in after] == [[], [], []]


def test_a_span_that_cuts_through_what_is_summed_up_says_so_and_does_not_guess(plant: Ledger) -> None:
    view = View(since=at_round(10))
    before = build(plant, view=view)
    fold(plant, 20)

    after = build(plant, view=view)

    assert len(after.gaps) == 1
    assert "Rounds 10 to 19 are summed up together with rounds outside of this span" in after.gaps[0]
    assert "tables of gateways and sites do not" in after.gaps[0]
    # Rounds are known one by one, gateways are not.
    assert [line.wire for line in after.rounds] == [line.wire for line in before.rounds]
    assert [line.ip_bytes for line in after.rounds] == [line.ip_bytes for line in before.rounds]
    assert after.dense == before.dense
    assert after.declines == before.declines
    assert whole([line.wire for line in after.gateways]) < whole([line.wire for line in before.gateways])
    for page in (report_text.to_text(after), report_html.to_html(after)):
        assert "are summed up" in page


def test_of_some_gateways_a_span_that_cuts_through_is_too_low_and_says_so(plant: Ledger) -> None:
    fold(plant, 20)
    report = build(plant, view=View(since=at_round(10), sites=("north",)))
    assert [line.id for line in report.rounds] == list(range(20, 40))
    assert "All figures are without these rounds, and so too low." in report.gaps[0]


def test_the_signal_of_a_span_is_what_was_gathered_in_it(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger.save_gateway(a_gateway("a", 0, signal_bytes=9_000))
    ledger.gather("a", 5_000, START)
    ledger.gather("a", 3_000, START + 86_400)
    ledger.gather("a", 1_000, START + 86_400 + 60)
    for number in (1, 2_000):
        ledger.book("bearings").open_round(a_round(number))
    ledger.book("bearings").save_answer(an_answer(2_000, "a", 10, 10))
    ledger.save_wire(a_wire("a", 40, 60))
    ledger.commit()
    assert build(ledger).raw_bytes == 9_000
    assert build(ledger, view=View(until=START + 86_000)).raw_bytes == 5_000
    assert build(ledger, view=View(since=START + 86_000)).raw_bytes == 4_000
    nothing = build(ledger, view=View(since=START + 100_000))
    assert nothing.raw_bytes == 0
    assert "there was nothing to upload" in nothing.sentences[1]


# -- sites and gateways ------------------------------------------------------------------------------------------


def test_sites_are_told_by_their_gateways_and_sum_to_the_whole(plant: Ledger) -> None:
    report = build(plant)
    assert [(group.name, group.gateways) for group in report.groups] == [("north", 3), ("south", 4)]
    assert whole([group.wire for group in report.groups]) == report.wire.total
    assert sum(group.ip_bytes for group in report.groups) == report.ip.bytes
    assert sum(group.money for group in report.groups) == pytest.approx(report.savings.money)


def test_of_one_site_every_figure_is_that_of_its_gateways(plant: Ledger) -> None:
    everything = build(plant)
    report = build(plant, view=View(sites=("north",)))
    assert {line.name for line in report.gateways} == set(NORTH)
    (north,) = report.groups
    assert report.groups == [group for group in everything.groups if group.name == "north"]
    assert (report.wire, report.ip.bytes) == (north.wire, north.ip_bytes)
    assert report.joining + _sum(line.wire for line in report.rounds) == report.wire


def _sum(parts: object) -> Traffic:
    total = Traffic()
    for part in parts:  # type: ignore[attr-defined]
        total += part
    return total


def test_a_tag_chooses_and_groups(plant: Ledger) -> None:
    assert [line.name for line in build(plant, view=View(tags=("press",))).gateways] == ["bay1-press"]
    groups = build(plant, view=View(by="tag")).groups
    assert [(group.name, group.gateways) for group in groups] == [("press", 1), ("site:north", 3), ("site:south", 4)]


@pytest.mark.parametrize(
    ("view", "told"),
    [
        (View(gateways=("bay9",)), "no gateway 'bay9' in the ledger; there is 'bay1-press'"),
        (View(sites=("west",)), "no site 'west' in the ledger; there is 'north', 'south'"),
        (View(tags=("pump",)), "no tag 'pump' in the ledger"),
    ],
)
def test_a_name_that_nobody_has_is_refused(plant: Ledger, view: View, told: str) -> None:
    with pytest.raises(LedgerError, match=told):
        build(plant, view=view)


@pytest.mark.parametrize(("by", "heads"), [("gateway", 7), ("site", 2), ("tag", 3)])
def test_csv_has_a_line_for_each_of_what_was_asked_for(plant: Ledger, by: str, heads: int) -> None:
    report = build(plant, view=View(by=by))  # type: ignore[arg-type]
    lines = list(csv.DictReader(io.StringIO(to_csv(report))))
    assert len(lines) == heads
    if by != "tag":
        assert sum(int(line["ip_bytes"]) for line in lines) == report.ip.bytes
        assert sum(float(line["cpu_seconds"]) for line in lines) == pytest.approx(report.cpu_seconds)
    assert {line["currency"] for line in lines} == {"EUR"}
    text = report_text.to_text(report, 120)
    assert max(map(len, text.splitlines())) <= 120
    assert "Rounds" not in text


def test_csv_of_rounds_has_later_columns_behind_what_it_had(plant: Ledger) -> None:
    report = build(plant)
    lines = list(csv.DictReader(io.StringIO(to_csv(report))))
    assert list(lines[0])[-3:] == ["ip_bytes", "cpu_seconds", "task"]
    assert float(lines[1]["cpu_seconds"]) == pytest.approx(7 * 0.31)


# -- CPU time and IP bytes ---------------------------------------------------------------------------------------


def test_what_tcp_and_tls_add_is_divided_as_the_bytes_are(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger.save_gateway(a_gateway("a", 0))
    for number in (1, 2):
        ledger.book("bearings").open_round(a_round(number))
    ledger.book("bearings").save_answer(an_answer(1, "a", 100, 1_000, beyond=5_000, cpu=12))
    ledger.book("bearings").save_answer(an_answer(2, "a", 150, 1_600, beyond=5_400))
    ledger.save_wire(a_wire("a", 180, 1_900, beyond=5_500))
    ledger.commit()

    report = build(ledger)

    assert [line.ip_bytes for line in report.rounds] == [650 + 400, 330 + 100]
    assert report.ip.bytes == 180 + 1_900 + 5_500
    assert report.ip.counted_pct == 100
    assert [line.cpu_seconds for line in report.rounds] == [0.12, None]
    assert report.cpu_seconds == 0.12
    assert [line.ip_bytes for line in report.gateways] == [report.ip.bytes]


def test_what_answers_tell_of_their_cost_and_births_of_their_signal_is_on_record(tmp_path: Path) -> None:
    plan = TaskPlan(task=scripted_task("pumps"), rounds=RoundSettings(max_rounds=2, min_gateways=2))
    fleet = ScriptedFleet(tmp_path, tasks=[plan], tags={"g0": (), "g1": ()})
    fleet.gateways["g0"].beyond, fleet.gateways["g0"].cpu = 7, 31
    fleet.run_to_rest()

    updates = [a for a in fleet.ledger.answers() if a.kind == "update"]

    assert {(a.gateway, a.beyond, a.cpu) for a in updates} == {("g0", 7 * 64, 31), ("g1", None, None)}
    assert [(name, size) for name, _, size in fleet.ledger.gathered()] == [
        ("g0", 2 * 120 * 1024),
        ("g1", 2 * 120 * 1024),
    ]
    report = build(fleet.ledger)
    assert [(line.name, line.cpu_seconds) for line in report.gateways] == [("g0", 0.62), ("g1", None)]


def test_folding_keeps_cpu_time_and_ip_bytes(plant: Ledger) -> None:
    before = build(plant)
    fold(plant, 5)
    after = build(plant)
    assert after.folded_rounds > 30
    assert (after.ip, after.cpu_seconds) == (before.ip, before.cpu_seconds)
    assert [(line.ip_bytes, line.cpu_seconds) for line in after.rounds] == [
        (line.ip_bytes, line.cpu_seconds) for line in before.rounds
    ]
    assert after.gateways == before.gateways


# -- money -------------------------------------------------------------------------------------------------------


def test_the_three_sentences_say_bytes_and_money_without_jargon(plant: Ledger) -> None:
    plant.put(MONEY, to_bytes(Price(per_gb=20.0, currency="CHF")))
    plant.commit()

    report = build(plant)

    assert len(report.sentences) == 3
    assert "7 gateways used" in report.sentences[0]
    assert "CHF at 20.00 CHF a gigabyte" in report.sentences[0]
    assert report.savings.money == pytest.approx(report.savings.bytes / 1e9 * 20)
    assert report.savings.raw.saved_bytes == report.raw_bytes - report.savings.bytes  # type: ignore[operator]
    assert all("were saved" in sentence for sentence in report.sentences[1:])
    for word in ("FedAvg", "float32", "delta", "quorum", "MQTT"):
        assert word not in " ".join(report.sentences)


def test_another_price_changes_the_money_and_no_byte(plant: Ledger) -> None:
    dear, cheap = (build(plant, price=Price(per_gb=price)) for price in (100.0, 1.0))
    assert dear.savings.money == pytest.approx(100 * cheap.savings.money)
    assert dear.savings.bytes == cheap.savings.bytes
    assert "EUR" not in " ".join(build(plant, price=Price(per_gb=0.0)).sentences)


def test_federation_that_costs_more_says_so_in_bytes_and_money_in_every_view(plant: Ledger) -> None:
    for gateway in plant.gateways():
        plant.save_gateway(replace(gateway, signal_bytes=1_000))
    plant.commit()

    report = build(plant)

    more = report.savings.bytes - 7_000
    assert report.savings.raw.saved_bytes == -more
    assert report.savings.raw.saved_money == pytest.approx(-more / 1e9 * 10)
    assert json.loads(to_json(report))["savings"]["raw"]["saved_bytes"] == -more
    assert (
        "Uploading their signal once would have used only 7.00 kB (0.000070 EUR): learning together used"
        in (report.sentences[1])
    )
    assert " EUR MORE, " in report.sentences[1]
    page = report_html.to_html(report)
    assert '<p class="more">Uploading their signal once' in page
    assert "EUR MORE" in " ".join(report_text.to_text(report).split())


def test_the_page_opens_with_the_sentences_and_the_chart_before_any_script(plant: Ledger) -> None:
    report = build(plant)
    page = report_html.to_html(report)
    opening = page[page.index("<main>") : page.index('<section class="details">')]
    assert opening.count("<p>") == 3
    assert opening.count('style="width:') == 3
    assert "<script" not in opening
    for words in ("Learning together, as it was", "Uploading the signal once", "The whole model both ways"):
        assert words in opening


def test_a_bar_that_would_hide_the_others_is_told_instead(plant: Ledger) -> None:
    for gateway in plant.gateways():
        plant.save_gateway(replace(gateway, signal_bytes=1_000))
    plant.commit()
    page = report_html.to_html(build(plant))
    opening = page[page.index("<main>") : page.index('<section class="details">')]
    assert opening.count('style="width:') == 2
    assert "would be far off the chart" in opening


def test_hostile_tags_stay_text(plant: Ledger) -> None:
    evil = "site:<script>alert(1)</script>"[:32]
    plant.save_gateway(replace(plant.gateways()[0], tags=evil))
    plant.commit()
    report = build(plant)
    assert "<script>alert" not in report_html.to_html(report)
    assert evil.removeprefix("site:") in [group.name for group in report.groups]
