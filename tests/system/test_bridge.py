"""The bridge as people run it: from a microcontroller's UART to what gateways learn, over kills, and by a broker."""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fedmq_broker_config.run import find_mosquitto, free_port
from fedmq_firmware_bridge.store import Store
from fedmq_protocol.session import Connected, Connection, MqttSession
from processes import PATIENCE_SECONDS, environment, fedmq
from qemu import build, emulated
from sensors import Cable, CountingSensor, is_whole, kept

pytestmark = pytest.mark.slow


def wait(ready: Callable[[], Any], what: str) -> Any:
    until = time.monotonic() + PATIENCE_SECONDS
    while not (found := ready()):
        assert time.monotonic() < until, f"waited for {what}"
        time.sleep(0.02)
    return found


@contextmanager
def bridge(config: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "fedmq", "bridge", "run", "--config", str(config)],
            stdout=output,
            stderr=output,
            env=environment(),
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def is_connected(path: Path, source: str) -> bool:
    """As of the bridge's last flush."""
    if not path.is_file():
        return False
    sources = Store(path).reports().get("sources", {})
    return bool(source in sources and sources[source]["connected"])


def firmware_signal(count: int, knock: int) -> np.ndarray[Any, np.dtype[np.int16]]:
    """`acceleration` of the example firmware's main.c, in its z axis, which is where machines differ."""
    n = np.arange(count, dtype=np.int64)
    sine = np.rint(400 * np.sin(2 * np.pi * np.arange(64) / 64)).astype(np.int64)
    noise = ((n * 3 + 2) * 2654435761 % 2**32 >> 26) - 32
    second = np.trunc(sine / 2).astype(np.int64)[2 * n & 63]
    return (sine[(n + 32) & 63] + noise + second + np.where(n % 500 < 4, knock, 0)).astype(np.int16)


@pytest.mark.broker
def test_from_a_microcontrollers_uart_to_a_model_and_not_one_frame_is_lost(tmp_path: Path) -> None:
    """Two machines, one of which knocks: firmware, UART, bridge, store, gateways, rounds."""
    knocks = {"normal": 0, "knocking": 2000}
    with ExitStack() as emulators:
        for label, knock in knocks.items():
            elf = build(tmp_path / label, FIFO_DEPTH=1_000_000, KNOCK=knock)
            emulators.enter_context(emulated(elf, tmp_path / f"{label}.sock"))
        ports = ",".join(f"{label}={tmp_path / label}.sock" for label in knocks)
        ended = fedmq(
            *("demo", "--data", f"serial:{ports}", "--rounds", "6", "--window", "1024", "--hop", "256"),
            *("--collect", "60", "--directory", str(tmp_path / "run"), "--json", str(tmp_path / "run.json")),
            seconds=4 * PATIENCE_SECONDS,
        )
    assert ended.returncode == 0, ended.stderr
    figures = json.loads((tmp_path / "run.json").read_text())
    assert (figures["gateways"], figures["rounds"], figures["declines"]) == (2, 6, {})
    assert figures["metric_final"] > 0.95, "machines that knock are told from those that do not"

    for place, knock in enumerate(knocks.values(), start=1):
        store = Store(tmp_path / "run" / "bridges" / f"port-{place}" / "bridge.sqlite")
        reports = store.reports()
        (sensor,) = reports["sensors"]
        names = ("lost_frames", "gaps", "duplicates", "restarts", "overruns", "jumps")
        assert [sensor[name] for name in names] == [0] * 6
        (source,) = reports["sources"].values()
        assert (source["failed"], source["malformed"], source["opened"]) == (0, 0, 1)
        (run,) = store.runs()
        values = store.read(run, run.start, run.stop)
        assert run.start == 0
        assert np.array_equal(values[:, 2], firmware_signal(len(values), knock)), "sample for sample what it made"
        assert re.fullmatch(r"port-\d", run.sensor.machine)


def test_killed_again_and_again_the_bridge_comes_back_loses_one_batch_at_most_and_says_so(tmp_path: Path) -> None:
    cable = Cable(tmp_path / "by-id-motor")
    cable.plug()
    config = tmp_path / "bridge.toml"
    config.write_text(
        f'store = "bridge.sqlite"\nflush_seconds = 0.2\n[[port]]\nname = "motor"\nport = "{cable.name}"\n'
        'machine = "pump-3"\n'
    )
    path, log = tmp_path / "bridge.sqlite", tmp_path / "bridge.log"
    sensor, rng = CountingSensor(), random.Random(7)
    kills = 5
    for kill in range(kills):
        with bridge(config, log) as process:
            wait(lambda kill=kill: log.read_text().count("is open") == kill + 1, "the port to open")
            cable.send(sensor.hello())
            before = Store(path).mark()[0]

            def play(before: int = before) -> bool:
                cable.send(sensor.frame())
                return Store(path).mark()[0] > before

            wait(play, "a flush")
            for _ in range(rng.randrange(30)):
                cable.send(sensor.frame())
                time.sleep(0.005)
            # What is on disk now, stays.
            flushed = {number for _, numbers in kept(Store(path)) for number in numbers.tolist()}
            process.send_signal(signal.SIGKILL)
            process.wait()
        after = [number for _, numbers in kept(Store(path)) for number in numbers.tolist()]
        assert flushed <= set(after)
        assert len(after) == len(set(after)), "nothing comes twice"
        assert all(is_whole(numbers) for _, numbers in kept(Store(path)))
    with bridge(config, log) as process:
        wait(lambda: log.read_text().count("is open") == kills + 1, "the port to open")
        process.terminate()
        assert process.wait(PATIENCE_SECONDS) == 0
    assert log.read_text().count("was not stopped in order: what it read after its last flush is gone") == kills
    assert "at most 0.2 s or 4,000,000 bytes" in log.read_text()
    with bridge(config, log) as process:
        wait(lambda: log.read_text().count("is open") == kills + 2, "the port to open")
    assert log.read_text().count("was not stopped in order") == kills, "the one before was"


def test_probe_status_and_label_say_what_an_engineer_wants_to_know(tmp_path: Path) -> None:
    cable = Cable(tmp_path / "by-id-motor")
    cable.plug()
    sensor = CountingSensor()
    probed = threading.Event()

    def talk() -> None:
        # What waits in the port as it is opened is thrown away: nobody knows how old it is.
        while not probed.wait(0.05):
            cable.send(sensor.hello() + sensor.frame())

    talking = threading.Thread(target=talk)
    talking.start()
    ended = fedmq("bridge", "probe", str(cable.name), "--baud", "921600")
    probed.set()
    talking.join()
    assert ended.returncode == 0, ended.stderr
    assert "sensor 1: counting, firmware 1, x in m/s2, y in m/s2, z in m/s2, 3,200 samples a second" in ended.stdout

    config, path = tmp_path / "bridge.toml", tmp_path / "bridge.sqlite"
    config.write_text('store = "bridge.sqlite"\nflush_seconds = 0.1\n' + ended.stdout)
    with bridge(config, tmp_path / "log") as process:
        wait(lambda: is_connected(path, "sensor-1"), "the port to open")
        cable.send(sensor.hello() + sensor.frame())
        sensor.frame()
        cable.send(sensor.frame())
        wait(lambda: Store(path).mark()[0] == 128, "two frames")
        process.terminate()
        assert process.wait(PATIENCE_SECONDS) == 0

    status = fedmq("bridge", "status", "--store", str(path))
    assert status.returncode == 0, status.stderr
    row = next(line.split() for line in status.stdout.splitlines() if line.startswith("counting"))
    assert row[:2] == ["counting", "sensor-1"]
    assert row[-4:] == ["1", "1", "0", "0"], "one frame lost, in one gap"
    gathered = json.loads(fedmq("bridge", "status", "--store", str(path), "--json").stdout)
    assert gathered["sensors"][0]["gaps"] == 1
    metrics = fedmq("bridge", "status", "--store", str(path), "--prometheus").stdout
    assert 'fedmq_sensor_lost_frames_total{machine="sensor-1",number="1",source="sensor-1"} 1.0' in metrics

    labelled = fedmq("label", "--store", str(path), "--machine", "sensor-1", "--from", "1h", "inner-race")
    assert labelled.returncode == 0, labelled.stderr
    assert "inner-race; 2 batches of samples so far" in labelled.stdout
    assert "inner-race" in fedmq("label", "--store", str(path), "--list").stdout
    unknown = fedmq("label", "--store", str(path), "--machine", "pump-9", "--from", "1h", "normal")
    assert "no sensor is on a machine of that name; there are sensor-1" in unknown.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("bridge", "probe", "/nowhere/tty"), "cannot open /nowhere/tty"),
        (("bridge", "status", "--store", "/nowhere/b.sqlite"), "fedmq bridge run"),
        (("bridge", "run", "--set", "store=/tmp/nowhere.sqlite"), "expected a [[port]], a [[modbus]] or a [[topic]]"),
        (("label", "--store", "/nowhere/b.sqlite", "--machine", "m", "--from", "1h", "x"), "expected a bridge's store"),
    ],
)
def test_what_cannot_be_done_is_one_clear_line_and_status_1(words: tuple[str, ...], said: str) -> None:
    ended = fedmq(*words)
    assert ended.returncode == 1
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.broker
def test_a_topic_is_a_sensor_and_a_label_may_come_by_message(tmp_path: Path) -> None:
    """Zigbee2MQTT's objects and ESPHome's bare numbers, on a broker of the site's own."""
    config, path, log = tmp_path / "bridge.toml", tmp_path / "bridge.sqlite", tmp_path / "log"
    with open_broker(tmp_path) as port:
        config.write_text(
            f"""store = "bridge.sqlite"
flush_seconds = 0.1
[mqtt]
port = {port}
label_topic = "plant/labels"
[[topic]]
name = "hall"
topic = "zigbee2mqtt/hall"
machine = "pump-3"
message.columns = ["temperature"]
message.units = ["degC"]
[[topic]]
name = "oil"
topic = "esp/sensor/oil/state"
"""
        )
        session = MqttSession(Connection(host="127.0.0.1", port=port, client_id="site", session_expiry_seconds=0))
        session.start()
        assert wait(lambda: isinstance(session.next(1.0), Connected), "the broker")
        with bridge(config, log):
            wait(lambda: is_connected(path, "mqtt"), "the bridge to connect")

            def told() -> bool:
                session.publish("zigbee2mqtt/hall", b'{"temperature": 21.5, "battery": 97}')
                session.publish("zigbee2mqtt/hall", b'{"battery": 97}')
                session.publish("esp/sensor/oil/state", b"66.25")
                time.sleep(0.1)
                return len(Store(path).runs()) >= 2

            wait(told, "both sensors")
            now = time.time()
            session.publish("plant/labels", b'{"machine": 3}')
            label = {"machine": "pump-3", "from": now - 60, "to": "now", "label": "normal"}
            session.publish("plant/labels", json.dumps(label).encode())
            (found,) = wait(lambda: Store(path).labels(), "the label")
        session.stop(flush_seconds=1.0)
    assert (found[0], found[1], found[3]) == ("pump-3", now - 60, "normal")
    assert "label: expected an object with the keys" in log.read_text()
    store = Store(path)
    values = {run.sensor.name: store.read(run, run.start, run.stop)[0, 0] for run in store.runs()}
    assert values == {"hall": 21.5, "oil": 66.25}
    assert {run.sensor.machine for run in store.runs()} == {"pump-3", "oil"}


@contextmanager
def open_broker(directory: Path) -> Iterator[int]:
    """A site's own Mosquitto, without the federation's rules."""
    program = find_mosquitto()
    if program is None:
        pytest.skip("needs Mosquitto: apt-get install mosquitto")
    port = free_port("127.0.0.1")
    config = directory / "site.conf"
    config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n")
    process = subprocess.Popen([str(program), "-c", str(config)], stderr=subprocess.DEVNULL)
    try:
        yield port
    finally:
        process.terminate()
        process.wait(PATIENCE_SECONDS)
