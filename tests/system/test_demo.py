"""The demo, as a newcomer starts it; and that its byte counts are what was on the wire, and no signal among them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from broker_fixtures import joined
from counting_proxy import CountingProxy
from fedmq_broker_config.render import BrokerSettings
from fedmq_broker_config.run import LocalBroker, embedded_version, find_mosquitto
from fedmq_edge_node.runtimes import available_engines
from fedmq_protocol.session import Connection, Dropped, MqttSession, Received
from processes import PATIENCE_SECONDS, Site, environment, fedmq, small_fleet

pytestmark = pytest.mark.slow

NUMBER = (int, float)
FIGURES: dict[str, type | tuple[type, ...]] = {
    "data": str,
    "split": str,
    "gateways": int,
    "rounds": int,
    "params": int,
    "broker": str,
    "codec": str,
    "metric_name": str,
    "metric_by_round": list,
    "metric_final": NUMBER,
    "metric_local_only_mean": (*NUMBER, type(None)),
    "metric_pooled": (*NUMBER, type(None)),
    "payload_up_bytes": int,
    "payload_down_bytes": int,
    "wire_up_bytes": int,
    "wire_down_bytes": int,
    "dense_up_bytes": int,
    "dense_down_bytes": int,
    "raw_data_bytes": int,
    "declines": dict,
    "round_seconds_median": NUMBER,
    "gateway_rss_bytes_max": int,
    "coordinator_rss_bytes": int,
    "wall_seconds": NUMBER,
}


def demo(directory: Path, *words: str) -> dict[str, Any]:
    """Figures of a short run without the screen's progress; its output is beside them under `output`."""
    figures = directory.with_suffix(".json")
    fixed = ("--rounds", "3", "--gateways", "3", "--no-progress", "--json", str(figures), "--directory", str(directory))
    ended = fedmq("demo", *fixed, *words)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    read: dict[str, Any] = json.loads(figures.read_text(encoding="utf-8"))
    return read | {"output": ended.stdout}


def check(figures: dict[str, Any]) -> None:
    """Every key with its type, and figures that agree with each other."""
    for key, kind in FIGURES.items():
        assert isinstance(figures[key], kind), f"{key}: {figures.get(key)!r}"
        assert not isinstance(figures[key], bool)
    assert figures["gateways"] == 3
    assert figures["rounds"] == len(figures["metric_by_round"]) == 3
    assert figures["metric_final"] == figures["metric_by_round"][-1]
    assert 0 < figures["payload_up_bytes"] < figures["wire_up_bytes"]
    assert 0 < figures["payload_down_bytes"] < figures["wire_down_bytes"]
    assert figures["dense_up_bytes"] == figures["dense_down_bytes"] == 3 * 3 * 4 * figures["params"]


def test_the_demo_runs_on_the_embedded_broker_and_ends_with_a_table_and_a_page(tmp_path: Path) -> None:
    if embedded_version() is None:
        pytest.skip("needs iotcore: pip install 'fedmq[demo]'")
    directory = tmp_path / "embedded"
    figures = demo(directory, "--broker", "embedded")
    check(figures)
    assert figures["data"] == "simulated"
    assert figures["declines"] == {}
    assert 0 <= figures["metric_local_only_mean"] <= 1
    assert 0 <= figures["metric_pooled"] <= 1
    for line in (
        "before training",
        "each gateway alone",
        "federated",
        "all data pooled",
        "dense float32",
        "raw signal",
    ):
        assert line in figures["output"]
    page = re.search(r"^report: (.+)$", figures["output"], re.MULTILINE)
    assert page is not None
    assert page.group(1) == (directory / "report.html").resolve().as_uri()
    assert figures["output"].rstrip().endswith(page.group(0)), "the link is the last line"
    assert (directory / "report.html").stat().st_size > 10_000


@pytest.mark.broker
def test_the_same_seed_gives_the_same_model_bit_for_bit(tmp_path: Path, mosquitto: LocalBroker) -> None:
    del mosquitto  # only to skip where there is none
    words = ("--broker", "mosquitto", "--no-baselines", "--seed", "5")
    first, again = (demo(tmp_path / name, *words) for name in ("first", "again"))
    check(first)
    assert first["broker"].startswith("Mosquitto")
    assert re.fullmatch("[0-9a-f]{64}", first["model_digest"])
    assert first["model_digest"] == again["model_digest"]
    assert first["metric_by_round"] == again["metric_by_round"]
    assert first["payload_up_bytes"] == again["payload_up_bytes"]


@pytest.mark.broker
def test_secure_it_learns_the_same_model_for_at_most_100_bytes_more(tmp_path: Path, mosquitto: LocalBroker) -> None:
    """Signatures, MACs and identities of 21 rounds, before TLS."""
    del mosquitto
    words = ("--no-baselines", "--rounds", "20", "--no-progress")
    plain = demo(tmp_path / "open", "--broker", "mosquitto", *words)
    secure = demo(tmp_path / "secure", "--secure", *words)
    assert (plain["secure"], secure["secure"]) == (False, True)
    assert secure["model_digest"] == plain["model_digest"]
    more = sum(secure[key] - plain[key] for key in ("wire_up_bytes", "wire_down_bytes"))
    assert 64 < more / 3 / 21 <= 100
    logs = "".join(path.read_text(encoding="utf-8") for path in (tmp_path / "secure" / "logs").glob("*.log"))
    assert " WARNING " not in logs
    assert " ERROR " not in logs
    keys = list((tmp_path / "secure" / "identities").rglob("*.key"))
    assert len(keys) > 8
    assert all(path.stat().st_mode & 0o077 == 0 for path in keys)


def test_secure_needs_a_broker_that_can_be_told_who_may_what(tmp_path: Path) -> None:
    ended = fedmq("demo", "--secure", "--broker", "embedded", "--directory", str(tmp_path / "run"))
    assert ended.returncode == 1
    assert "--secure with --broker embedded" in ended.stderr
    assert "apt-get install mosquitto" in ended.stderr


@pytest.mark.broker
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_demo_reads_this_machine_where_it_is_told_to_and_ends_with_its_children(
    tmp_path: Path, number: signal.Signals
) -> None:
    """Gates may be open or shut here and now, so all that is expected of a round is that it is told of."""
    if find_mosquitto() is None:
        pytest.skip("needs Mosquitto: apt-get install mosquitto")
    if signal.getsignal(number) == signal.SIG_IGN:
        pytest.skip(f"{number.name} is ignored here, as in what a script starts with '&', and so it is by all children")
    with LocalBroker(BrokerSettings(federation="demo")) as broker, (tmp_path / "output").open("wb") as output:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "fedmq", "demo", "--gates", "real", "--rounds", "1000", "--gateways", "2"),
                *("--broker", f"127.0.0.1:{broker.port}", "--closing", "4", "--directory", str(tmp_path / "run")),
            ],
            stdout=output,
            stderr=output,
            env=environment(),
            start_new_session=True,
        )
        try:
            until = time.monotonic() + PATIENCE_SECONDS
            while " of 2 answered" not in (said := (tmp_path / "output").read_text(encoding="utf-8")):
                assert process.poll() is None, said
                assert time.monotonic() < until, said
                time.sleep(0.05)
            children = psutil.Process(process.pid).children(recursive=True)
            assert len(children) == 3
            process.send_signal(number)
            assert process.wait(PATIENCE_SECONDS) == 130
        finally:
            # The demo ends its own children; killed here, it could not.
            if process.poll() is None:
                process.terminate()
                process.wait()
    said = (tmp_path / "output").read_text(encoding="utf-8")
    assert "gates: this machine's own vitals" in said
    assert "Traceback" not in said
    assert not [child for child in children if child.is_running()]


@pytest.mark.broker
def test_the_counted_bytes_are_those_on_the_wire_and_no_signal_is_among_them(
    tmp_path: Path, mosquitto: LocalBroker
) -> None:
    """One proxy for each gateway, before the broker: what passed there is what the ledger ends with, save the leave
    itself with its acknowledgement and the DISCONNECT, which cannot count themselves."""
    fleet = small_fleet(3)
    listener = MqttSession(Connection(host="127.0.0.1", port=mosquitto.port, client_id="listener"))
    listener.subscribe("#")
    listener.start()
    with ExitStack() as stack:
        stack.callback(listener.stop, flush_seconds=1.0)
        joined(listener)
        proxies = {own.name: stack.enter_context(CountingProxy("127.0.0.1", mosquitto.port)) for own in fleet.gateways}
        site = stack.enter_context(
            Site(
                tmp_path,
                fleet,
                port=mosquitto.port,
                rounds=40,
                port_of={name: proxy.port for name, proxy in proxies.items()},
            )
        )
        site.start()
        site.wait_for_rest()
        site.finish()
        for wire in site.ledger.wires():
            proxy = proxies[wire.gateway]
            assert wire.final
            assert proxy.connections == 1
            assert 0 <= proxy.bytes_up - wire.sent < 100, f"{proxy.bytes_up} up on the wire, {wire.sent} counted"
            assert 0 <= proxy.bytes_down - wire.received <= 8, f"{proxy.bytes_down} down, {wire.received} counted"
        assert sum(p.bytes_up for p in proxies.values()) > 5_000

        payloads = []
        while (event := listener.next(0.3)) is not None:
            assert not isinstance(event, Dropped)
            if isinstance(event, Received):
                payloads.append(event.payload)
        assert len(payloads) > 40 * 4, "the listener did not hear the run"
        crossed = b"\0".join(payloads)
        for own in fleet.gateways:
            for recording in own.recordings:
                assert isinstance(recording.signal, np.ndarray)
                assert not shared(recording.signal, crossed), f"a piece of {own.name}'s signal was published"


def shared(signal: np.ndarray[Any, Any], crossed: bytes) -> bool:
    """Whether eight samples in a row, at any place, stand in what was published: as they are, or as a float."""
    for form in (signal.astype("<i2"), signal.astype("<f4"), signal.astype("<f8")):
        data, width = form.tobytes(), form.itemsize * 8
        if any(data[start : start + width] in crossed for start in range(0, len(data) - width, width)):
            return True
    return False


def test_the_search_for_signal_would_find_it() -> None:
    signal = small_fleet(3).gateways[0].recordings[0].signal
    assert isinstance(signal, np.ndarray)
    assert shared(signal, b"before" + signal[1000:1016].tobytes() + b"after")
    assert not shared(signal, sys.version.encode())


def test_engines_teach_each_other_how_long_they_have_left(tmp_path: Path) -> None:
    folder = Path(os.environ.get("FEDMQ_DATA", Path(__file__).resolve().parents[3] / "shared" / "data")) / "cmapss"
    if not folder.is_dir():
        pytest.skip(f"no C-MAPSS tables in {folder}; name their parent folder with FEDMQ_DATA")
    words = ("--data", f"cmapss:{folder}", "--model", "regressor", "--gateways", "10", "--rounds", "25")
    figures = demo(tmp_path / "run", *words, "--no-baselines")
    assert (figures["gateways"], figures["rounds"], figures["metric_name"]) == (10, 25, "RMSE")
    assert figures["metric_before"] > 35
    # In cycles, of at most 125. Pooled comes to 13.8; guessing the middle is what it began with.
    assert np.median(figures["metric_by_round"][-5:]) < 21


@pytest.mark.parametrize("engine", available_engines())
def test_a_module_of_pytorch_is_learnt_by_real_programs_on_every_engine(tmp_path: Path, engine: str) -> None:
    bundle = Path(__file__).parents[1] / "vectors" / "bundles" / "cnn.fedmq"
    figures = demo(tmp_path / "run", "--bundle", str(bundle), "--engine", engine, "--no-baselines")
    assert (figures["model"], figures["params"], figures["declines"]) == ("graph", 10_964, {})
    assert len(figures["metric_by_round"]) >= 3
    for log in (tmp_path / "run" / "logs").glob("*.log"):
        assert " ERROR " not in log.read_text(encoding="utf-8")


def test_a_cnn_is_learnt_from_raw_windows(tmp_path: Path) -> None:
    figures = demo(tmp_path / "run", "--model", "cnn1d", "--no-baselines")
    assert (figures["model"], figures["params"]) == ("cnn1d", 9_188)
    assert figures["gateway_rss_bytes_max"] < 110e6


def test_the_demo_releases_its_last_version_and_shows_where_personal_models_are_better(tmp_path: Path) -> None:
    if embedded_version() is None:
        pytest.skip("needs iotcore: pip install 'fedmq[demo]'")
    figures = demo(tmp_path / "personal", "--broker", "embedded", "--no-baselines", "--personal", "head")
    check(figures)
    # Of the simulated fleet each gateway has seen one kind of fault: nothing can be told apart there.
    assert [line["outcome"] for line in figures["personal"]] == ["one_class"] * 3
    assert len({line["gateway"] for line in figures["personal"]}) == 3
    assert "shared (one class)" in figures["output"]
    assert "Personal models: 0 of 3 gateways; else one class 3." in figures["output"]
