"""`fedmq export --sensor-image`: what a federation has learnt of raw samples, in a sensor's slot."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from fedmq_coordinator.settings import RoundSettings
from fedmq_edge_node.folder import Folder
from fedmq_edge_node.runtimes import NumpyEngine, anomaly_score
from fedmq_edge_node.samples import load_test
from fedmq_edge_node.work import read_scaler
from fedmq_firmware_bridge.downloads import Download, Stage, drive
from fedmq_firmware_bridge.frames import Decoder, Frame
from fedmq_models.sensor_image import from_bytes, image_id
from fedmq_protocol.task import Codec, ModelSpec, Recipe, Windowing, initial_steps, model_digest, short
from plant import Plant, make_task
from sensor_images import CSensor

from fedmq.cli import main
from fedmq.data import lay_out
from fedmq.simulator import simulate_fleet

SAMPLES, RATE_HZ = 64, 12_000
SAMPLE_SCALE = 0.002


@dataclass(frozen=True, kw_only=True)
class Site:
    state: Path
    recordings: Path
    plant: Plant

    def export(self, *words: str) -> int:
        return main(["export", "--state", str(self.state), *words])


@pytest.fixture(scope="module", params=["learnt", "none"])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Two gateways that have learnt how healthy bearings sound, from raw samples, scaled and as they are."""
    directory = tmp_path_factory.mktemp("raw")
    folders = lay_out(simulate_fleet(gateways=2, healthy=True), directory / "recordings")
    model = ModelSpec(kind="autoencoder", sizes=(SAMPLES, 16, SAMPLES))
    codec = Codec(bits=8, density=1.0)
    task = make_task(
        name="health",
        model=model,
        classes=(),
        windowing=Windowing(
            samples=SAMPLES, hop=SAMPLES // 2, sampling_rate_hz=RATE_HZ, features="raw", scaling=request.param
        ),
        recipe=Recipe(learning_rate=0.1, momentum=0.5, local_epochs=1, batch_size=64),
        initial=short(model_digest(initial_steps(model, 0, 12))),
        grid_bits=12,
        up=codec,
        down=codec,
    )
    plant = Plant(directory / "state", gateways=0, task=task, settings=RoundSettings(max_rounds=3, min_gateways=2))
    test = folders.pop("test")
    for place, folder in enumerate(folders.values()):
        plant.folders[f"g{place}"] = Folder(folder)  # type: ignore[assignment]
        plant.start_gateway(f"g{place}")
    plant.run_until(lambda: all(job.resting for job in plant.coordinator.jobs))
    return Site(state=directory / "state", recordings=test, plant=plant)


def test_what_was_learnt_runs_on_a_sensor_and_finds_what_it_finds_in_float(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "model.img"
    words = ("--sensor-image", str(target), "--sample-scale", str(SAMPLE_SCALE), "--calibrate", str(site.recordings))
    assert site.export(*words) == 0
    said = capsys.readouterr().out
    data = target.read_bytes()
    image = from_bytes(data)
    line = site.plant.coordinator.job("health").line
    assert (image.version, image.digest) == (line.version, line.digest_of(line.version)[:8])
    assert (image.samples, image.channels, image.hop, image.rate_mhz) == (SAMPLES, 1, SAMPLES, RATE_HZ * 1000)
    assert f"id {image_id(data):#010x}, {len(data):,} bytes in a slot, {3 * SAMPLES} bytes of RAM" in said

    sensor = CSensor(tmp_path)
    sensor.start(rate_mhz=RATE_HZ * 1000, step=int.from_bytes(data[28:32], "little"), channels=1, work=3 * SAMPLES)
    acks: list[bytes] = []
    decoder = Decoder()

    def read(seconds: float) -> list[Frame]:
        return decoder.feed(acks.pop(0))

    download = Download(sensor=3, image=data)
    drive(download, lambda sent: acks.append(sensor.feed(sent)), read, lambda: 0.0)
    assert (download.stage, download.reason) == (Stage.IN_FORCE, "")

    x, _ = load_test(site.recordings, line.task.windowing, ())
    x = x[:500]
    steps = np.clip(np.rint(x / np.float32(SAMPLE_SCALE)), -32768, 32767).astype(np.int16)
    found = sensor.run(steps)
    assert found is not None
    outputs, scores = image.run(steps.reshape(len(steps), SAMPLES, 1))
    assert np.array_equal(found[0], outputs)
    assert np.array_equal(found[1], scores)
    scaled = read_scaler(line.scaler, line.task).apply(x)
    expected = anomaly_score(scaled, NumpyEngine(line.task.model).infer(line.parameters, scaled)).astype(np.float64)
    apart = np.abs(scores * image.result_scale - expected) / expected
    told = re.search(r"anomaly scores differ from float by ([\d.]+) %", said)
    assert told is not None
    assert float(told.group(1)) < 5
    assert np.median(apart) < 0.05


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--calibrate", "HERE"), "--sensor-image needs --sample-scale UNITS"),
        (("--sample-scale", "0.01"), "--sensor-image needs --calibrate DIR"),
        (("--sample-scale", "0", "--calibrate", "HERE"), "expected a step above 0"),
        (("--sample-scale", "nan", "--calibrate", "HERE"), "expected a step above 0"),
    ],
)
def test_what_is_missing_is_told_in_a_line_and_nothing_is_written(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], told: str
) -> None:
    target = tmp_path / "model.img"
    given = [word.replace("HERE", str(site.recordings)) for word in words]
    assert site.export("--sensor-image", str(target), *given) == 1
    err = capsys.readouterr().err
    assert told in err
    assert err.count("\n") == 1
    assert not target.exists()
