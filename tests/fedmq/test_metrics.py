"""Metrics say what the report says; labels are few and ours; a scrape costs no more than it may."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
from fedmq_coordinator import tallies
from fedmq_coordinator.ledger import Ledger, LedgerError
from fedmq_coordinator.report import build
from fedmq_coordinator.settings import CoordinatorSettings
from fedmq_coordinator.tallies import FleetTally
from fedmq_coordinator.tasks import state_of_affairs
from fedmq_edge_node.alertbook import Alert
from fedmq_edge_node.figures import Figures, Tally, TaskFigures
from fedmq_edge_node.gates import Limits, Vitals
from fedmq_protocol.observing import MetricsSettings, place
from fedmq_protocol.reasons import Reason
from fedmq_protocol.settings import SettingsError
from ledgers import START, a_decline, a_gateway, a_round, a_wire, tell, write_plant

from fedmq.metrics import bridge, coordinator, gateway, watch
from fedmq.metrics.families import Metric, Sample, histogram
from fedmq.metrics.gathering import FromLedger, by_ledger
from fedmq.metrics.page import FILES, groups, rewrite
from fedmq.metrics.serving import Cached, Endpoint, to_text

ROOT = Path(__file__).resolve().parents[2]
EVERY = [metric for _, metrics in groups() for metric in metrics]

Page = dict[str, dict[tuple[tuple[str, str], ...], float]]


def read(text: str) -> Page:
    """Values by name and labels."""
    page: Page = {}
    for line in text.splitlines():
        found = re.fullmatch(r"([a-z_]+)(?:\{(.*)\})? ([0-9.e+-]+|\+Inf|NaN)", line)
        if found:
            labels = re.findall(r'([a-z_]+)="((?:[^"\\]|\\.)*)"', found[2] or "")
            page.setdefault(found[1], {})[tuple(sorted(labels))] = float(found[3])
    return page


def value(page: Page, name: str, **labels: str) -> float:
    return page[name][tuple(sorted(labels.items()))]


@pytest.fixture
def state(tmp_path: Path) -> Path:
    write_plant(tmp_path / "ledger.sqlite").close()
    return tmp_path


@pytest.fixture
def ledger(state: Path) -> Iterator[Ledger]:
    opened = Ledger(state / "ledger.sqlite")
    yield opened
    opened.close()


# -- what a metric is ------------------------------------------------------------------------------------------


def test_names_are_those_of_openmetrics() -> None:
    names = [metric.name for metric in EVERY]
    assert len(set(names)) == len(names)
    for metric in EVERY:
        assert re.fullmatch(r"fedmq(_[a-z0-9]+)+", metric.name)
        assert not metric.name.endswith(("_total", "_info", "_count", "_sum", "_bucket"))
        assert metric.about.endswith(".")
        assert "|" not in metric.about
        if metric.name.endswith("_timestamp_seconds"):
            assert "Unix time" in metric.about


def test_a_unit_is_a_base_unit() -> None:
    assert not [m.name for m in EVERY if re.search(r"_(ms|pct|percent|hz|kb|mb|minutes|hours|c|share)(_|$)", m.name)]


def test_a_sample_has_the_labels_of_its_metric() -> None:
    with pytest.raises(ValueError, match="expected labels"):
        Sample(metric=Metric(name="fedmq_x", kind="gauge", about="X.", labels=("task",)), value=1)


def test_a_histogram_counts_up_to_each_bound_and_all() -> None:
    found = histogram([0.5, 2, 2, 90], (1, 5, 60))
    assert found.buckets == (("1.0", 1), ("5.0", 3), ("60.0", 3), ("+Inf", 4))
    assert found.total == 94.5


def test_the_page_of_the_docs_is_made_of_the_code() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert text == rewrite(text), "python -m fedmq.metrics.page docs/metrics.md writes it anew"


# -- the coordinator -------------------------------------------------------------------------------------------


def test_bytes_are_the_reports_to_the_last_byte(state: Path, ledger: Ledger) -> None:
    page, report = read(by_ledger(state)), build(ledger)
    for name, traffic in (
        ("fedmq_task_wire_bytes_total", report.wire),
        ("fedmq_task_payload_bytes_total", report.payload),
        ("fedmq_task_dense_bytes_total", report.dense),
    ):
        assert value(page, name, task="bearings", direction="up") == traffic.up
        assert value(page, name, task="bearings", direction="down") == traffic.down
    assert value(page, "fedmq_wire_bytes_total", direction="up") == report.wire.up
    assert value(page, "fedmq_wire_bytes_total", direction="down") == report.wire.down
    assert sum(page["fedmq_gateway_wire_bytes_total"].values()) == report.wire.total
    assert value(page, "fedmq_raw_signal_bytes") == report.raw_bytes
    assert value(page, "fedmq_task_savings_ratio", task="bearings", against="dense") == pytest.approx(
        report.dense.total / report.wire.total
    )


def test_rounds_and_answers_are_counted_by_what_came_of_them(state: Path, ledger: Ledger) -> None:
    page, report = read(by_ledger(state)), build(ledger)
    assert value(page, "fedmq_rounds_total", task="bearings", outcome="below quorum") == 1
    assert sum(page["fedmq_rounds_total"].values()) == len(report.rounds) - 1, "one is open"
    assert value(page, "fedmq_round_open", task="bearings") == 1
    answers = dict(page["fedmq_answers_total"].items())
    assert sum(answers.values()) == len(ledger.answers())
    assert value(page, "fedmq_answers_total", task="bearings", kind="statistics", verdict="accepted") == 7
    assert value(page, "fedmq_answers_total", task="bearings", kind="decline", verdict="accepted") == 4
    assert value(page, "fedmq_declines_total", task="bearings", reason="battery") == 3
    assert value(page, "fedmq_declines_total", task="bearings", reason="temperature") == 0
    assert value(page, "fedmq_round_duration_seconds_count", task="bearings") == len(report.rounds) - 1


def test_a_reason_that_is_none_of_ours_is_no_label(state: Path, ledger: Ledger) -> None:
    ledger.book("bearings").save_answer(a_decline(39, "bay3-mixer", 'x"} 1\nfedmq_rounds_total{task="y\\'))
    ledger.commit()
    page = read(by_ledger(state))
    reasons = {dict(labels)["reason"] for labels in page["fedmq_declines_total"]}
    assert reasons == {reason.name.lower() for reason in Reason} | {"other"}
    assert value(page, "fedmq_declines_total", task="bearings", reason="other") == 2, "and 'cpu busy' of the plant"


@pytest.mark.parametrize(
    ("software", "shown"),
    [
        ("fedmq 0.1.0", "0.1.0"),
        ("fedmq 1.12.3rc1", "1.12.3rc1"),
        ('x"} 1\nfedmq_rounds{task="pumps\\', "other"),
        ("fedmq 0.1.0" + "0" * 80, "other"),
        ("", "other"),
    ],
)
def test_a_gateway_cannot_write_a_label(state: Path, ledger: Ledger, software: str, shown: str) -> None:
    ledger.save_gateway(replace(ledger.gateways()[0], software=software))
    ledger.commit()
    (first,) = [
        dict(labels)["version"]
        for labels in read(by_ledger(state))["fedmq_gateway_software_info"]
        if dict(labels)["gateway"] == "bay1-press"
    ]
    assert first == shown


def test_single_gateways_have_series_up_to_a_number_and_every_sum_counts_all(state: Path, ledger: Ledger) -> None:
    for place_ in range(7, 50):
        ledger.save_gateway(a_gateway(f"g{place_}", place_))
        ledger.save_wire(a_wire(f"g{place_}", 100, 200))
    ledger.commit()

    def page(most: int) -> Page:
        return read(to_text(FromLedger(state, most)()))

    few, all_ = page(5), page(200)
    assert len(few["fedmq_gateway_present"]) == 5
    assert value(few, "fedmq_gateways_left_out") == 45
    assert value(all_, "fedmq_gateways_left_out") == 0
    assert len(all_["fedmq_gateway_present"]) == 50
    for name in ("fedmq_gateways", "fedmq_wire_bytes_total"):
        assert few[name] == all_[name]
    assert set(page(4)["fedmq_gateway_present"]) < set(few["fedmq_gateway_present"])
    assert "fedmq_gateway_present" not in page(0)


def test_batteries_and_links_are_shown_of_gateways_that_tell_and_counted_of_all(state: Path, ledger: Ledger) -> None:
    assert value(read(by_ledger(state)), "fedmq_gateways_battery_low") == 0
    tell(ledger, "bay1-press", battery_pct=12, on_mains=False, metered=True)
    tell(ledger, "bay2-fan", on_mains=True)
    tell(ledger, "boiler-feed", battery_pct=3)
    ledger.commit()
    page = read(by_ledger(state))
    assert page["fedmq_gateway_battery_ratio"] == {
        (("gateway", "bay1-press"),): 0.12,
        (("gateway", "boiler-feed"),): 0.03,
    }
    assert page["fedmq_gateway_on_mains"] == {(("gateway", "bay1-press"),): 0, (("gateway", "bay2-fan"),): 1}
    assert page["fedmq_gateway_link_metered"] == {(("gateway", "bay1-press"),): 1}
    few = read(to_text(FromLedger(state, 1)()))
    assert len(few["fedmq_gateway_battery_ratio"]) <= 1
    assert value(few, "fedmq_gateways_battery_low") == 2


def test_bytes_of_a_fleet_with_several_tasks_are_whole_though_joining_is_of_none(state: Path, ledger: Ledger) -> None:
    ledger.book("pumps").open_round(a_round(40, drawn=1))
    ledger.commit()
    page = read(by_ledger(state))
    wires = ledger.wires()
    assert value(page, "fedmq_wire_bytes_total", direction="up") == sum(wire.sent for wire in wires)
    assert sum(page["fedmq_task_wire_bytes_total"].values()) < sum(page["fedmq_wire_bytes_total"].values())
    assert {dict(labels)["task"] for labels in page["fedmq_round"]} == {"bearings", "pumps"}


def test_before_the_first_round_there_is_a_page(tmp_path: Path) -> None:
    Ledger(tmp_path / "ledger.sqlite").close()
    page = read(by_ledger(tmp_path))
    assert value(page, "fedmq_gateways", state="present") == 0
    assert "fedmq_round" not in page


def test_figures_are_made_anew_where_something_was_written_and_only_then(
    state: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def counted(ledger: Ledger) -> FleetTally:
        made.append(1)
        return tallies.build(ledger)

    monkeypatch.setattr("fedmq.metrics.gathering.tally_of", counted)
    figures = FromLedger(state, 200)
    first = list(figures())
    assert [s for s in figures() if s.metric is coordinator.WIRE] == [s for s in first if s.metric is coordinator.WIRE]
    assert len(made) == 1
    ledger.save_wire(a_wire("bay1-press", 10**9, 10**9))
    ledger.commit()
    assert [s for s in figures() if s.metric is coordinator.WIRE] != [s for s in first if s.metric is coordinator.WIRE]
    assert len(made) == 2


def test_a_ledger_that_is_not_there_is_told_and_looked_for_again(tmp_path: Path) -> None:
    figures = FromLedger(tmp_path, 200)
    with pytest.raises(LedgerError, match="no ledger"):
        list(figures())
    write_plant(tmp_path / "ledger.sqlite").close()
    assert list(figures())


# -- gateway, bridge, watch ------------------------------------------------------------------------------------


def figures(**changes: object) -> Figures:
    told = Figures(
        tally=Tally(),
        connected=True,
        welcomed=True,
        stale=False,
        heard_seconds=3.0,
        bytes_sent=1_000,
        bytes_received=2_000,
        bytes_today=0,
        bytes_month=0,
        silent=False,
        tasks=(),
    )
    return replace(told, **changes)  # type: ignore[arg-type]


NOON = datetime(2026, 5, 4, 12, 0)


def of_gateway(told: Figures, vitals: Vitals | None = None, limits: Limits | None = None) -> Page:
    return read(to_text(gateway.samples(told, vitals or Vitals(), limits or Limits(), NOON)))


def test_a_shut_gate_is_zero_and_what_is_not_known_is_not_there() -> None:
    page = of_gateway(figures(), Vitals(battery_pct=5.0, on_mains=False, temperature_c=40.0))
    assert value(page, "fedmq_edge_gate_open", reason="battery") == 0
    assert value(page, "fedmq_edge_gate_open", reason="temperature") == 1
    assert value(page, "fedmq_edge_battery_ratio") == 0.05
    assert value(page, "fedmq_edge_temperature_celsius") == 40
    assert "fedmq_edge_cpu_idle_ratio" not in page


def test_a_gateway_tells_what_it_has_answered_and_what_that_took() -> None:
    tally = Tally()
    for round_id in (4, 4, 5):
        tally.count_update(round_id)
    tally.declines[Reason.BATTERY] += 2
    tally.count_training(1.5, 1.25)
    page = of_gateway(figures(tally=tally))
    assert value(page, "fedmq_edge_answers_total", kind="update") == 2, "sent again it counts once"
    assert value(page, "fedmq_edge_answers_total", kind="decline") == 2
    assert value(page, "fedmq_edge_declines_total", reason="battery") == 2
    assert value(page, "fedmq_edge_training_seconds_total") == 1.5
    assert value(page, "fedmq_edge_training_cpu_seconds_total") == 1.25
    assert value(page, "fedmq_edge_wire_bytes_total", direction="down") == 2_000


def test_windows_are_told_by_class_and_too_few_shut_the_gate() -> None:
    task = TaskFigures(
        name="bearings",
        version=7,
        in_service=None,
        train_windows=30,
        held_windows=10,
        windows_by_class={"normal": 20, "ball": 10},
        min_windows=40,
    )
    page = of_gateway(figures(tasks=(task,)))
    assert value(page, "fedmq_edge_label_windows", task="bearings", label="ball") == 10
    assert value(page, "fedmq_edge_windows", task="bearings", use="held out") == 10
    assert value(page, "fedmq_edge_gate_open", reason="samples") == 0
    uncut = replace(task, train_windows=None, held_windows=None, windows_by_class={})
    page = of_gateway(figures(tasks=(uncut,)))
    assert value(page, "fedmq_edge_gate_open", reason="samples") == 1, "nothing is known of them yet"
    assert "fedmq_edge_windows" not in page


def test_a_budget_is_told_where_there_is_one() -> None:
    page = of_gateway(figures(bytes_today=900), limits=Limits(daily_bytes=1_000))
    assert value(page, "fedmq_edge_budget_used_bytes", period="day") == 900
    assert len(page["fedmq_edge_budget_bytes"]) == 1
    assert "fedmq_edge_budget_bytes" not in of_gateway(figures())


def test_what_a_sensor_calls_itself_is_no_label() -> None:
    sensor = dict.fromkeys(bridge.SENSORS, 1.0) | {
        "source": "motor",
        "number": 3,
        "name": 'x"} 1\n',
        "machine": "pump-3",
        "flat_channels": [0],
        "states": ["silent", "flat"],
        "achieved_hz": None,
    }
    source = dict.fromkeys(bridge.SOURCES, 2)
    device = dict.fromkeys(bridge.DEVICES, 1) | {"address": 80, "machine": "fan", "refused": {"2": 3, "no code": 4}}
    gathered = {
        "sample_bytes": 10,
        "dropped_bytes": 0,
        "at": START,
        "sources": {"motor": source | {"devices": [device]}},
        "sensors": [sensor],
    }
    text = to_text(bridge.samples(gathered))
    page = read(text)
    assert "x" not in {dict(labels).get("sensor", "")[:1] for labels in page["fedmq_sensor_gaps_total"]}
    assert 'x\\"}' not in text
    of_sensor = {"source": "motor", "number": "3", "machine": "pump-3"}
    assert value(page, "fedmq_sensor_unwell", **of_sensor, state="flat") == 1
    assert value(page, "fedmq_sensor_unwell", **of_sensor, state="slow") == 0
    assert "fedmq_sensor_achieved_hertz" not in page
    assert value(page, "fedmq_bridge_source_checksum_errors_total", source="motor") == 2
    of_device = {"source": "motor", "address": "80", "machine": "fan"}
    assert value(page, "fedmq_modbus_refused_total", **of_device, exception="other") == 4


def alert(number: int, machine: str, state: str, at: float = START) -> Alert:
    return Alert(
        id=number,
        machine=machine,
        sensor="s",
        kind="vibration",
        state=state,
        severity="alarm",
        level=1.0,
        label=None,
        verdict=None,
        opened_at=at,
        from_at=at,
        to_at=None,
        evidence=(),
    )


def test_alerts_that_wait_are_counted_by_kind_and_machine() -> None:
    standings = {
        "pump-1": {"at": START, "state": "running", "zone": "C"},
        "pump-2": {"at": START, "state": "stopped", "learning": {"done": False, "windows": 30, "wanted": 120}},
        "pump-3": {"at": START, "state": "anything\n"},
    }
    alerts = [
        *(alert(1, "pump-1", "open", START + 5), alert(2, "pump-1", "open"), alert(3, "pump-1", "acknowledged")),
        alert(4, "pump-2", "confirmed"),
    ]
    page = read(to_text(watch.samples(standings, alerts, [("mqtt", "waiting", 2, "")])))
    assert value(page, "fedmq_machines", state="running") == 1
    assert value(page, "fedmq_machines", state="other") == 1
    assert value(page, "fedmq_alerts", kind="vibration", severity="alarm", state="open") == 2
    assert value(page, "fedmq_alerts", kind="life", severity="warning", state="open") == 0
    assert value(page, "fedmq_machine_alerts", machine="pump-1", severity="alarm", state="acknowledged") == 1
    assert value(page, "fedmq_machine_alerts", machine="pump-2", severity="alarm", state="open") == 0
    assert page["fedmq_machine_alert_opened_timestamp_seconds"] == {(("machine", "pump-1"),): START}
    assert value(page, "fedmq_machine_zone", machine="pump-1", zone="C") == 1
    assert value(page, "fedmq_machine_learnt_ratio", machine="pump-2") == 0.25
    assert value(page, "fedmq_watch_messages", output="mqtt", state="waiting") == 2


# -- how they are served ---------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_figures_are_made_again_after_a_second_and_after_ten_times_what_they_took() -> None:
    clock, made = Clock(), []

    def make() -> list[Sample]:
        made.append(clock.now)
        clock.now += cost
        return []

    cached, cost = Cached(make, clock), 0.01
    for _ in range(3):
        cached()
    clock.now += 0.9
    cached()
    assert len(made) == 1
    clock.now += 0.2
    cost = 2.0
    cached()
    assert len(made) == 2
    clock.now += 19.9
    cached()
    assert len(made) == 2, "what takes two seconds is not made again within twenty"
    clock.now += 0.2
    cached()
    assert len(made) == 3


def test_figures_that_cannot_be_made_are_not_there_and_the_page_says_so(caplog: pytest.LogCaptureFixture) -> None:
    clock, fails = Clock(), True

    def make() -> list[Sample]:
        if fails:
            raise LedgerError("the disk is full")
        return [Sample(metric=coordinator.LEFT_OUT, value=0)]

    cached = Cached(make, clock)
    for _ in range(3):
        page = read(to_text(cached()))
        assert value(page, "fedmq_scrape_ok") == 0
        assert "fedmq_gateways_left_out" not in page
        clock.now += 2
    assert [record.getMessage() for record in caplog.records] == ["the figures cannot be made: the disk is full"]
    fails = False
    page = read(to_text(cached()))
    assert value(page, "fedmq_scrape_ok") == 1
    assert "fedmq_gateways_left_out" in page


def fetch(port: int, accept: str = "text/plain") -> tuple[str, str]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.headers["Content-Type"], answer.read().decode()


def test_a_page_is_served_on_loopback_and_no_more_once_it_is_closed(state: Path) -> None:
    with Endpoint("0", FromLedger(state, 200)) as page:
        kind, text = fetch(page.port)
        assert kind.startswith("text/plain")
        assert value(read(text), "fedmq_scrape_ok") == 1
        assert "fedmq_build_info" in text
        assert "process_cpu_seconds_total" in text
        kind, text = fetch(page.port, "application/openmetrics-text; version=1.0.0")
        assert kind.startswith("application/openmetrics-text")
        assert text.endswith("# EOF\n")
    with pytest.raises(OSError, match=r".+"):
        fetch(page.port)


def test_many_who_ask_at_once_get_one_making(state: Path) -> None:
    made = []
    begun = threading.Event()

    def make() -> list[Sample]:
        made.append(1)
        begun.wait(5)
        return []

    with Endpoint("127.0.0.1:0", make) as page:
        askers = [threading.Thread(target=fetch, args=(page.port,)) for _ in range(6)]
        for asker in askers:
            asker.start()
        begun.set()
        for asker in askers:
            asker.join()
    assert len(made) == 1


def test_a_port_that_is_taken_is_told_in_a_sentence() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(OSError, match=r"metrics\.listen: cannot listen"),
    ):
        Endpoint(f"127.0.0.1:{taken.getsockname()[1]}", list).start()


@pytest.mark.parametrize(
    ("listen", "found"),
    [
        ("9464", ("127.0.0.1", 9464)),
        (":9464", ("127.0.0.1", 9464)),
        ("0.0.0.0:9464", ("0.0.0.0", 9464)),
        ("[::1]:9464", ("::1", 9464)),
        ("plant.example:80", ("plant.example", 80)),
    ],
)
def test_a_place_is_a_port_with_or_without_a_host(listen: str, found: tuple[str, int]) -> None:
    assert place(listen) == found


@pytest.mark.parametrize(
    "listen", ["", "host", "host:", "host:x", "1:2:3", "[::1", "[x]:1", "h:70000", "h o:1", "a:-1"]
)
def test_what_is_no_place_is_a_mistake_of_the_setting(listen: str) -> None:
    with pytest.raises(SettingsError, match="listen: expected"):
        MetricsSettings(listen=listen)


def test_nothing_is_served_unless_it_is_asked_for() -> None:
    assert MetricsSettings().listen is None
    assert CoordinatorSettings.__dataclass_fields__["metrics"].default_factory().listen is None


@pytest.mark.parametrize("program", ["coordinator", "gateway", "bridge", "watch"])
def test_without_the_extra_a_program_says_what_to_install(program: str, tmp_path: Path) -> None:
    words = [program, "run"] if program in ("bridge", "watch") else [program]
    settings = {
        "coordinator": ["--set", "task.name=t", "--set", "task.classes=a,b", "--set", f"state_dir={tmp_path}/c"],
        "gateway": ["--set", "name=g", "--set", f"data_dir={tmp_path}", "--set", f"state_dir={tmp_path}/g"],
        "bridge": ["--set", f"store={tmp_path}/b.sqlite"],
        "watch": [
            "--set",
            f"store={tmp_path}/b",
            "--set",
            f"machines={tmp_path}/m",
            "--set",
            f"state_dir={tmp_path}/w",
        ],
    }[program]
    code = (
        "import sys; sys.modules['prometheus_client'] = None; from fedmq.cli import main;"
        f"sys.exit(main({[*words, '--metrics', '9464', *settings]!r}))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert "pip install 'fedmq[metrics]'" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool: apt-get install prometheus")
def test_promtool_finds_nothing_amiss_with_any_page(state: Path) -> None:
    every = [
        by_ledger(state),
        to_text(gateway.samples(figures(), Vitals(battery_pct=5.0, temperature_c=40.0), Limits(), NOON)),
        to_text(watch.samples({"p": {"at": START, "state": "running"}}, [alert(1, "p", "open")])),
    ]
    for text in every:
        checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True)
        assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_the_command_lists_every_metric_and_writes_the_files(tmp_path: Path) -> None:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "fedmq", "metrics", *words], capture_output=True, text=True)

    listed = run().stdout
    assert not [metric.shown for metric in EVERY if f"  {metric.shown}" not in listed]
    first, again = run("--write", str(tmp_path)), run("--write", str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fedmq.json", "fedmq.rules.yml"]
    assert [(tmp_path / file.name).read_bytes() == file.read_bytes() for file in FILES] == [True, True]
    assert first.stderr.count("wrote") == 2
    assert not again.stderr, "what is there already is left alone"


def test_every_sum_is_of_one_moment_of_the_ledger(state: Path, ledger: Ledger) -> None:
    told = state_of_affairs(ledger, START)
    assert told["wire"]["sent"] == sum(line["sent"] for line in told["gateways"])
    assert told["tasks"][0]["version"] == 0, "the plant's state has no lineage in force"
