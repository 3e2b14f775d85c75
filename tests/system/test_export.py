"""`fedmq export` on the folder of a coordinator that has run: what is written, what is said, what is refused."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fedmq_coordinator.job import TaskPlan
from fedmq_coordinator.ledger import Ledger
from fedmq_coordinator.settings import RoundSettings
from fedmq_edge_node.folder import Folder
from fedmq_edge_node.runtimes import NumpyEngine
from fedmq_edge_node.samples import FEATURES, load_test
from fedmq_edge_node.work import read_scaler
from fedmq_models.tflite_int8 import TFLiteModel, operators_in_float
from fedmq_protocol.task import Codec, ModelSpec, Recipe, Task, initial_steps, model_digest, short
from plant import Plant, make_task

from fedmq.cli import main
from fedmq.data import lay_out
from fedmq.export import read_version
from fedmq.simulator import CLASSES, simulate_fleet

GATEWAYS = 3
ROUNDS = 8


@dataclass(frozen=True, kw_only=True)
class Site:
    state: Path
    recordings: Path
    plant: Plant

    def export(self, *words: str) -> int:
        return main(["export", "--state", str(self.state), *words])


def healthy_task() -> Task:
    model = ModelSpec(kind="autoencoder", sizes=(FEATURES, 8, FEATURES))
    recipe = Recipe(learning_rate=0.1, momentum=0.5, local_epochs=5, batch_size=16)
    initial = short(model_digest(initial_steps(model, 0, 12)))
    codec = Codec(bits=8, density=1.0)
    return make_task(
        name="health", model=model, classes=(), recipe=recipe, initial=initial, grid_bits=12, up=codec, down=codec
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Three gateways with recordings of simulated bearings, and two tasks, which they have learnt. Only the last one
    has healthy bearings, which the second task learns from."""
    directory = tmp_path_factory.mktemp("export")
    folders = lay_out(simulate_fleet(gateways=GATEWAYS), directory / "recordings")
    settings = RoundSettings(max_rounds=ROUNDS, min_gateways=GATEWAYS)
    alone = RoundSettings(max_rounds=ROUNDS, min_gateways=GATEWAYS, quorum_share=0.1)
    recipe = Recipe(learning_rate=0.2, momentum=0.5, local_epochs=3, batch_size=32)
    plant = Plant(
        directory / "state",
        gateways=0,
        task=make_task(name="faults", sizes=(FEATURES, 16, 4), dense=True, classes=CLASSES, recipe=recipe),
        settings=settings,
        more=[TaskPlan(task=healthy_task(), rounds=alone)],
    )
    test = folders.pop("test")
    for place, folder in enumerate(folders.values()):
        plant.folders[f"g{place}"] = Folder(folder)  # type: ignore[assignment]
        plant.start_gateway(f"g{place}")
    plant.run_until(lambda: all(job.resting for job in plant.coordinator.jobs))
    return Site(state=directory / "state", recordings=test, plant=plant)


def compiled(source: Path) -> ctypes.CDLL:
    if shutil.which("gcc") is None:
        pytest.skip("no gcc on this machine to compile the C file with")
    library = source.with_suffix(".so")
    flags = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "-DFEDMQ_SELF_TEST", "-shared", "-fPIC"]
    ended = subprocess.run(["gcc", *flags, str(source), "-o", str(library)], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ctypes.CDLL(str(library))


def contents(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(("-shm", "-wal"))]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_classifier_becomes_c_that_gives_the_classes_of_the_trained_model(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "model.c"
    before = contents(site.state)
    assert site.export("--task", "faults", "--c-int8", str(target), "--calibrate", str(site.recordings)) == 0
    said = capsys.readouterr().out
    assert contents(site.state) == before, "an export changed the coordinator's folder"

    job = site.plant.coordinator.job("faults")
    task, line = job.line.task, job.line
    x, y = load_test(site.recordings, task.windowing, task.classes)
    expected = NumpyEngine(task.model).infer(line.parameters, read_scaler(line.scaler, task).apply(x)).argmax(axis=1)
    library = compiled(target)
    text = target.read_text(encoding="ascii")
    fraction_bits = int(re.search(r"#define FEDMQ_FRACTION_BITS (\d+)", text).group(1))  # type: ignore[union-attr]
    found = []
    for row in np.rint(x.astype(np.float64) * 2.0**fraction_bits).astype(np.int32):
        given, out = np.zeros(FEATURES, dtype=np.int8), np.zeros(4, dtype=np.int8)
        places = [ctypes.c_void_p(array.ctypes.data) for array in (row, given, out)]
        library.fedmq_quantize(places[0], places[1])
        library.fedmq_infer(places[1], places[2])
        found.append(library.fedmq_class(places[2]))
    assert library.fedmq_self_test() == 0

    agreement, accuracy = np.mean(found == expected), np.mean(found == y)
    assert np.mean(expected == y) > 0.6, "the federation has learnt nothing: this proves little"
    assert agreement >= 0.98
    assert f"agreement {100 * agreement:.1f} % of windows" in said
    assert f"accuracy {100 * accuracy:.1f} %, in float {100 * np.mean(expected == y):.1f} %" in said
    assert f"version {line.version}: mlp 22-16-4, {task.model.parameters} parameters" in said
    assert f"flash {22 * 9 + 22 * 16 + 16 * 4 + 20 * 9:,} bytes" in said
    assert f"RAM {2 * 16 + 22 + 4} bytes" in said
    for told in (f"lineage {line.number}, version {line.version}", "  3  outer_race", "  0  rms_log10_g"):
        assert told in text


def test_an_autoencoder_becomes_c_and_both_aucs_are_told(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "health.c"
    words = ("--task", "health", "--c-int8", str(target), "--calibrate", str(site.recordings), "--prefix", "health")
    assert site.export(*words) == 0
    said = capsys.readouterr().out
    auc, float_auc = map(float, re.search(r"AUC ([\d.]+), in float ([\d.]+)", said).groups())  # type: ignore[union-attr]
    assert float_auc > 0.7, "the federation has learnt nothing: this proves little"
    assert abs(auc - float_auc) <= 0.01
    assert "int32_t health_score(" in target.read_text(encoding="ascii")


def test_an_older_version_is_exported_also_where_its_file_is_gone(site: Site, tmp_path: Path) -> None:
    newest = site.plant.coordinator.job("faults").line
    assert not (site.state / "models" / f"model-{newest.number}-1.i32").exists()
    source = read_version(site.state, "faults", 1)
    assert source.version == 1
    assert source.digest == newest.digest_of(1)
    assert not np.array_equal(source.flat, newest.parameters)
    target = tmp_path / "model.c"
    words = ("--task", "faults", "--version", "1", "--c-int8", str(target), "--calibrate", str(site.recordings))
    assert site.export(*words) == 0
    assert source.digest.hex() in target.read_text(encoding="ascii")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--task", "faults"), "expected a format to write: --onnx FILE"),
        (("--c-int8", "OUT"), "--task: expected one of faults, health"),
        (("--c-int8", "OUT", "--task", "fault"), "no task 'fault' in"),
        (("--c-int8", "OUT", "--task", "faults"), "--c-int8 needs --calibrate DIR"),
        (("--c-int8", "OUT", "--task", "faults", "--version", "99"), f"--version: expected 0 to {ROUNDS} of task"),
        (("--c-int8", "OUT", "--task", "faults", "--calibrate", "nowhere"), "expected a folder of recordings"),
        (("--c-int8", "OUT", "--task", "faults", "--calibrate", "HERE", "--prefix", "9"), "expected a prefix"),
        (("--tflite-int8", "OUT", "--task", "faults"), "--tflite-int8 needs --calibrate DIR"),
        (
            ("--sensor-image", "OUT", "--task", "faults", "--sample-scale", "1", "--calibrate", "HERE"),
            "expected a task that learns from raw samples",
        ),
        (("--c-int8", "OUT", "--task", "faults", "--calibrate", "HERE", "--compare", "nowhere"), "expected a folder"),
        (("--c-int8", "OUT/x/y.c", "--task", "faults", "--calibrate", "HERE"), "No such file or directory"),
    ],
)
def test_what_is_wrong_is_told_in_a_line_and_nothing_is_written(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], told: str
) -> None:
    target = tmp_path / "model.c"
    given = [word.replace("OUT", str(target)).replace("HERE", str(site.recordings)) for word in words]
    assert site.export(*given) == 1
    err = capsys.readouterr().err
    assert told in err
    assert err.startswith("fedmq export: ")
    assert err.count("\n") == 1
    assert not target.exists()


def test_a_folder_without_a_ledger_and_a_task_that_has_not_begun_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", "--c-int8", str(tmp_path / "m.c"), "--state", str(tmp_path)]
    assert main(words) == 1
    assert "name the coordinator's state directory" in capsys.readouterr().err
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger.book("pumps")
    ledger.commit()
    ledger.close()
    assert main(words) == 1
    assert "task 'pumps' in" in (said := capsys.readouterr().err)
    assert "has no version yet" in said
    plant = Plant(tmp_path / "begun", gateways=0, settings=RoundSettings())
    plant.tick()
    assert main([*words[:-1], str(tmp_path / "begun")]) == 1
    assert "has no scaler yet" in capsys.readouterr().err


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    said = capsys.readouterr().out
    assert "fedmq export --c-int8 model.c --state" in said
    assert "fedmq_self_test()" in said
    assert "fedmq export --tflite-int8 model.tflite --state" in said


@pytest.mark.parametrize("task", ["faults", "health"])
def test_onnx_and_tflite_files_are_the_model_with_its_scaling(site: Site, tmp_path: Path, task: str) -> None:
    onnx_file, tflite_file = tmp_path / "model.onnx", tmp_path / "model.tflite"
    pytest.importorskip("flatbuffers", reason="TFLite files are written with the package of that name")
    assert not site.export("--task", task, "--onnx", str(onnx_file), "--tflite", str(tflite_file))
    source = read_version(site.state, task)
    x, _ = load_test(site.recordings, source.task.windowing, source.task.classes)
    x = x[:50]
    assert source.scaler is not None
    expected = NumpyEngine(source.task.model).infer(source.flat, source.scaler.apply(x))
    onnxruntime = pytest.importorskip("onnxruntime", reason="it runs ONNX files")
    session = onnxruntime.InferenceSession(str(onnx_file), providers=["CPUExecutionProvider"])
    found = np.concatenate([session.run(None, {"x": row[None]})[0] for row in x])
    assert np.abs(found - expected).max() < 1e-4
    litert = pytest.importorskip("ai_edge_litert.interpreter", reason="it runs TFLite files")
    interpreter = litert.Interpreter(model_path=str(tflite_file), num_threads=1)
    interpreter.allocate_tensors()
    rows = []
    for row in x:
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], row[None])
        interpreter.invoke()
        rows.append(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]))
    assert np.abs(np.concatenate(rows) - expected).max() < 1e-4


def integers_by_hand(x: np.ndarray, about: dict[str, Any]) -> np.ndarray:
    """Unscaled features as the file beside a model says they become its input."""
    scaling, given = about["scaling"], about["input"]
    scaled = np.clip(
        (x - np.float32(scaling["mean"])) / np.float32(scaling["scale"]), -scaling["limit"], scaling["limit"]
    )
    nearest = np.rint(scaled / given["scale"]) + given["zero_point"]
    return np.clip(nearest, -128, 127).astype(given["dtype"])


def test_a_classifier_becomes_tflite_in_integers_which_the_file_beside_it_explains(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ai_edge_quantizer", reason="it makes integers of a TFLite file: pip install 'fedmq[export]'")
    litert = pytest.importorskip("ai_edge_litert.interpreter", reason="it runs TFLite files")
    target = tmp_path / "model.tflite"
    before = contents(site.state)
    assert site.export("--task", "faults", "--tflite-int8", str(target), "--calibrate", str(site.recordings)) == 0
    said = capsys.readouterr().out
    assert contents(site.state) == before, "an export changed the coordinator's folder"

    source = read_version(site.state, "faults")
    assert source.scaler is not None
    x, y = load_test(site.recordings, source.task.windowing, source.task.classes)
    in_float = NumpyEngine(source.task.model).infer(source.flat, source.scaler.apply(x)).argmax(axis=1)
    about = json.loads((tmp_path / "model.tflite.json").read_text(encoding="utf-8"))
    assert about["parameters_sha256"] == source.digest.hex()
    assert tuple(about["classes"]) == CLASSES
    assert (about["features"][0], len(about["features"])) == ("rms_log10_g", FEATURES)
    interpreter = litert.Interpreter(model_path=str(target), num_threads=1)
    interpreter.allocate_tensors()
    (given,), (made,) = interpreter.get_input_details(), interpreter.get_output_details()
    assert (given["dtype"], made["dtype"]) == (np.int8, np.int8)
    assert operators_in_float(target.read_bytes()) == []
    found = []
    for row in integers_by_hand(x, about):
        interpreter.set_tensor(given["index"], row[None])
        interpreter.invoke()
        found.append(int(interpreter.get_tensor(made["index"]).argmax()))
    accuracy, float_accuracy = np.mean(found == y), np.mean(in_float == y)
    assert float_accuracy > 0.6, "the federation has learnt nothing: this proves little"
    assert accuracy >= float_accuracy - 0.01
    assert f"accuracy {100 * accuracy:.1f} %, in float {100 * float_accuracy:.1f} %" in said
    assert "int8 weights, int8 activations" in said
    assert f"{target.stat().st_size:,} bytes, in float" in said


def test_an_autoencoder_becomes_tflite_in_integers_that_was_compared_on_other_recordings(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ai_edge_quantizer", reason="it makes integers of a TFLite file: pip install 'fedmq[export]'")
    healthy, target = tmp_path / "healthy", tmp_path / "health.tflite"
    shutil.copytree(site.recordings / "normal", healthy / "normal")
    for settings in site.recordings.glob("*.toml"):
        shutil.copy(settings, healthy)
    words = ("--task", "health", "--tflite-int8", str(target), "--calibrate", str(healthy))
    assert site.export(*words, "--compare", str(site.recordings)) == 0
    said = capsys.readouterr().out
    auc, float_auc = map(float, re.search(r"AUC ([\d.]+), in float ([\d.]+)", said).groups())  # type: ignore[union-attr]
    assert float_auc > 0.7, "the federation has learnt nothing: this proves little"
    assert auc >= float_auc - 0.01
    windows, compared = (
        len(load_test(folder, site.plant.coordinator.job("health").line.task.windowing, ())[0])
        for folder in (healthy, site.recordings)
    )
    assert windows < compared
    assert f"calibrated on {windows} windows of {healthy}, compared on {compared} of {site.recordings}" in said


def test_integers_that_lose_too_much_are_widened_and_then_refused(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ai_edge_quantizer", reason="it makes integers of a TFLite file: pip install 'fedmq[export]'")
    words = ("--task", "faults", "--tflite-int8", str(tmp_path / "model.tflite"), "--calibrate", str(site.recordings))
    near = TFLiteModel.run

    def coarse(model: TFLiteModel, windows: np.ndarray) -> np.ndarray:
        return np.zeros((len(windows), 4), np.float32) if model.input.dtype == "int8" else near(model, windows)

    monkeypatch.setattr(TFLiteModel, "run", coarse)
    assert site.export(*words) == 0
    said = capsys.readouterr().out
    assert "with int8 activations it loses too much (accuracy" in said
    assert "int8 weights, int16 activations, int8 where they meet weights" in said
    for path in tmp_path.iterdir():
        path.unlink()

    def broken(model: TFLiteModel, windows: np.ndarray) -> np.ndarray:
        if model.input.scale:
            raise RuntimeError("division by zero")
        return near(model, windows)

    monkeypatch.setattr(TFLiteModel, "run", broken)
    assert site.export(*words) == 1
    err = capsys.readouterr().err
    assert "with int16 activations it does not run (division by zero); --tflite writes it in float" in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("data", "words", "told"),
    [
        ("cwru", ("--split", "fault", "--test-load", "2", "--model", "cnn1d", "--rounds", "30"), "accuracy"),
        ("cmapss", ("--model", "regressor", "--gateways", "10", "--rounds", "15"), "RMSE"),
        ("gearbox", ("--model", "autoencoder", "--rounds", "15"), "AUC"),
    ],
)
def test_real_recordings_lose_little_in_integers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], data: str, words: tuple[str, ...], told: str
) -> None:
    pytest.importorskip("ai_edge_quantizer", reason="it makes integers of a TFLite file: pip install 'fedmq[export]'")
    folder = Path(os.environ.get("FEDMQ_DATA", Path(__file__).resolve().parents[3] / "shared" / "data")) / data
    if not folder.is_dir():
        pytest.skip(f"no recordings in {folder}; name their parent folder with FEDMQ_DATA")
    run = tmp_path / "run"
    ended = main(
        ["demo", "--data", f"{data}:{folder}", *words, "--directory", str(run), "--no-baselines", "--no-progress"]
    )
    assert ended == 0
    (ledger,) = run.rglob("ledger.sqlite")
    test, target = run / "plant" / "test", tmp_path / "model.tflite"
    words = ("--tflite-int8", str(target), "--calibrate", str(test))
    assert main(["export", "--state", str(ledger.parent), *words]) == 0
    said = capsys.readouterr().out
    found, in_float = map(float, re.search(rf"{told} ([\d.]+).*, in float ([\d.]+)", said).groups())  # type: ignore[union-attr]
    assert operators_in_float(target.read_bytes()) == []
    if told == "RMSE":
        assert found <= 1.01 * in_float
    else:
        assert found >= in_float - (1 if told == "accuracy" else 0.01)
