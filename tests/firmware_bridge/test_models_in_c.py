"""Models as data in C: the same numbers as the gateway's reference, the same images taken and refused, no harm done."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cobs import cobs
from fedmq_firmware_bridge.downloads import CHUNK_BYTES, Order, Outcome, order, read_ack
from fedmq_firmware_bridge.frames import MAX_PAYLOAD, Decoder, Opaque, encode
from fedmq_firmware_bridge.scores import read_score
from fedmq_models import sensor_image as images
from fedmq_models.sensor_image import ImageError, from_bytes, image_id, to_bytes
from sensor_images import KINDS, LIBRARY, SOURCES, STEP_BITS, STRICT, CSensor, build, mended, sensor_image, shaft

GOLDEN = json.loads((Path(__file__).parents[1] / "vectors" / "downloads.json").read_text(encoding="ascii"))
HARNESS = Path(__file__).parents[1] / "support" / "models_c" / "sensor.c"
SANITIZED = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
MODEL_BYTES, SLOTS_BYTES = 1536, 1400
"""Of code on a Cortex-M, which the documentation allows for."""


@pytest.fixture(scope="module")
def sensor(tmp_path_factory: pytest.TempPathFactory) -> CSensor:
    return CSensor(tmp_path_factory.mktemp("sensor"))


def orders_of(data: bytes) -> list[Opaque]:
    """All that a whole download says."""
    one, number = {"sensor": 3, "image": image_id(data)}, iter(range(1 << 20))
    return [
        order(Order.BEGIN, sequence=next(number), number=len(data), **one),
        *(
            order(Order.CHUNK, sequence=next(number), number=at, chunk=data[at : at + CHUNK_BYTES], **one)
            for at in range(0, len(data), CHUNK_BYTES)
        ),
        order(Order.FINISH, sequence=next(number), **one),
    ]


def outcome_of(sensor: CSensor, data: bytes) -> Outcome:
    """What comes of a download."""
    for one in orders_of(data):
        (answer,) = Decoder().feed(sensor.feed(encode(one)))
        assert isinstance(answer, Opaque)
        ack = read_ack(answer)
        if ack.outcome != Outcome.DONE:
            break
    return Outcome(ack.outcome)


# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(2))
def test_c_agrees_with_the_reference_bit_for_bit(sensor: CSensor, kind: str, seed: int, scaled: bool) -> None:
    image = sensor_image(kind, seed, scaled=scaled)
    inputs = image.model.spec.sizes[0]
    rng = np.random.default_rng(seed)
    anything = rng.integers(-32768, 32768, size=(300, inputs)).astype(np.int16)
    ends = np.array([-32768, 32767, 0, -1], dtype=np.int16)[:, None].repeat(inputs, axis=1)
    windows = np.concatenate([shaft(inputs, 700, rng), anything, ends]).reshape(-1, image.samples, 3)
    sensor.format()
    assert outcome_of(sensor, to_bytes(image)) is Outcome.DONE
    found = sensor.run(windows)
    assert found is not None
    for mine, expected in zip(found, image.run(windows), strict=True):
        assert np.array_equal(mine, expected)
    assert len(np.unique(found[0])) > 20, "hardly any output differs: this proves little"


@pytest.mark.parametrize("golden", GOLDEN["images"], ids=lambda golden: golden["name"])
def test_a_golden_image_computes_in_c_as_ever(sensor: CSensor, golden: dict[str, Any]) -> None:
    data = bytes.fromhex(golden["image"])
    step = int.from_bytes(data[28:32], "little")
    sensor.format()
    sensor.start(step=step or STEP_BITS, channels=data[36])
    assert outcome_of(sensor, data) is Outcome.DONE
    found = sensor.run(np.array(golden["windows"]))
    assert found is not None
    assert (found[0].tolist(), found[1].tolist()) == (golden["outputs"], golden["scores"])


def test_a_golden_conversation_is_answered_byte_for_byte_and_its_scores_are_sent(sensor: CSensor) -> None:
    first = GOLDEN["images"][0]
    data = bytes.fromhex(first["image"])
    sensor.format()
    sensor.start(step=int.from_bytes(data[28:32], "little"))
    for turn in GOLDEN["conversation"]:
        assert sensor.feed(bytes.fromhex(turn["order"])).hex() == turn["ack"]
    for number, (window, sent) in enumerate(zip(first["windows"], GOLDEN["scores"], strict=True)):
        assert sensor.score(number * 1_000_000, np.array(window)).hex() == sent


def test_the_example_of_the_documentation_is_of_the_golden_conversation() -> None:
    text = (Path(__file__).parents[2] / "docs" / "frames.md").read_text(encoding="utf-8")
    part = text.split("### One order and its ack, byte by byte")[1].split("###")[0]
    told = bytes.fromhex(" ".join(line[4:46] for line in part.splitlines() if line.startswith("    ")))
    bodies = [
        tuple(cobs.decode(bytes.fromhex(turn[what])[:-1])[:-6] for what in ("order", "ack"))
        for turn in GOLDEN["conversation"]
    ]
    assert told in [one + answer for one, answer in bodies]


@pytest.mark.parametrize("kind", KINDS)
def test_a_score_says_what_the_model_found(sensor: CSensor, kind: str) -> None:
    image = sensor_image(kind)
    sensor.format()
    assert outcome_of(sensor, to_bytes(image)) is Outcome.DONE
    window = shaft(image.model.spec.sizes[0], 1, np.random.default_rng(4))
    outputs, scores = image.run(window.reshape(1, image.samples, 3))
    (frame,) = Decoder().feed(sensor.score((1 << 40) + 5, window))
    assert isinstance(frame, Opaque)
    score = read_score(frame)
    assert (score.sensor, score.boot, score.taken_us, score.image) == (3, 7, (1 << 40) + 5, image_id(to_bytes(image)))
    assert score.anomaly == (kind == "autoencoder")
    assert score.integers.tolist() == (scores.tolist() if score.anomaly else outputs[0].tolist())
    assert np.allclose(score.values, score.integers * image.result_scale, rtol=1e-6)


# --- what is taken ---------------------------------------------------------------------------------------------------


def test_c_and_python_take_and_refuse_the_same_images(sensor: CSensor) -> None:
    """Damaged in any way and with a checksum that holds; beside one another, so that no check is missing in either."""
    rng = np.random.default_rng(3)
    ends = (0x00, 0x01, 0x7F, 0x80, 0xFE, 0xFF)
    counts = {True: 0, False: 0}
    for number in range(3000):
        kind = tuple(KINDS)[number % 3]
        data = bytearray(to_bytes(sensor_image_of(kind)))
        # The two scales are floats, which a sensor passes on and does not read.
        places = [*range(28), *range(36, 120), *range(len(data) - 150, len(data) - 4)]
        for _ in range(rng.integers(1, 3)):
            data[rng.choice(places)] = rng.choice(ends) if rng.random() < 0.7 else rng.integers(0, 256)
        whole = mended(bytes(data))
        try:
            from_bytes(whole)
            taken = True
        except ImageError:
            taken = False
        sensor.format()
        sensor.start(rate_mhz=int.from_bytes(whole[24:28], "little"), channels=whole[36])
        assert (outcome_of(sensor, whole) is Outcome.DONE) == taken, whole.hex()
        counts[taken] += 1
    assert min(counts.values()) > 300, f"{counts}: this proves little"


_KEPT: dict[str, images.SensorImage] = {}


def sensor_image_of(kind: str) -> images.SensorImage:
    return _KEPT.setdefault(kind, sensor_image(kind))


@pytest.mark.parametrize(
    ("other", "outcome"),
    [
        ({"rate_mhz": 3_200_000}, Outcome.UNFIT),
        ({"step": STEP_BITS + 1}, Outcome.UNFIT),
        ({"channels": 2}, Outcome.UNFIT),
        ({"work": 48 + 2 * 20 - 1}, Outcome.UNFIT),
        ({"work": 48 + 2 * 20}, Outcome.DONE),
    ],
)
def test_a_model_for_another_sensor_is_refused(sensor: CSensor, other: dict[str, int], outcome: Outcome) -> None:
    sensor.format()
    sensor.start(**other)
    assert outcome_of(sensor, to_bytes(sensor_image("mlp"))) is outcome
    assert (sensor.active is None) == (outcome is not Outcome.DONE)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("(half + product) >> unit[8]", "product >> unit[8]"),
        ("int32_t sum = i32_at(row);", "int32_t sum = 0;"),
        ("layer + 1u < m->layers ? 0 : -LIMIT", "0"),
        ("sum += apart * apart", "sum += apart"),
    ],
)
def test_a_machine_that_computes_otherwise_refuses_every_model(right: str, wrong: str, tmp_path: Path) -> None:
    text = (LIBRARY / "fedmq_model.c").read_text(encoding="ascii")
    assert text.count(right) == 1
    (tmp_path / "fedmq_model.c").write_text(text.replace(right, wrong), encoding="ascii")
    firmware = tuple(tmp_path / path.name if path.name == "fedmq_model.c" else path for path in SOURCES)
    broken = CSensor(tmp_path, firmware)
    data = bytes.fromhex(GOLDEN["images"][0]["image"])
    broken.start(step=int.from_bytes(data[28:32], "little"))
    assert outcome_of(broken, data) is Outcome.SELF_TEST
    assert broken.active is None


# --- sanitizers ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = tmp_path_factory.mktemp("fuzz") / "sensor"
    build(["gcc", *STRICT, *SANITIZED, f"-I{LIBRARY}", *map(str, (*SOURCES, HARNESS)), "-o", str(built)])
    return built


def fuzz(program: Path, what: str, cases: int, data: bytes, directory: Path) -> list[int]:
    (directory / "image").write_bytes(data)
    words = [str(program), what, str(cases), "1", str(directory / "image")]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr
    return [int(word) for word in ended.stdout.split() if word.isdigit()]


@pytest.mark.parametrize("number", range(4))
def test_a_hundred_thousand_damaged_images_do_no_harm(program: Path, number: int, tmp_path: Path) -> None:
    """25,000 of each golden image, opened and run in buffers of exactly the size that is said."""
    data = bytes.fromhex(GOLDEN["images"][number]["image"])
    taken, malformed, checksum = fuzz(program, "images", 25_000, data, tmp_path)
    assert min(taken, malformed) > 2000, "one outcome hardly ever: this proves little"
    assert checksum > 200


def test_a_hundred_thousand_orders_in_any_sequence_leave_a_model_that_ran_running(
    program: Path, tmp_path: Path
) -> None:
    """Right ones, wrong ones, cut ones, restarts and power that goes in the middle of a write."""
    changes, refused = fuzz(program, "orders", 100_000, bytes.fromhex(GOLDEN["images"][0]["image"]), tmp_path)
    assert changes > 500
    assert refused > 50


# --- size and form ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("core", ["cortex-m0", "cortex-m3", "cortex-m4"])
def test_they_take_the_flash_that_is_said_no_variables_and_no_library(core: str, tmp_path: Path) -> None:
    if shutil.which("arm-none-eabi-gcc") is None:
        pytest.skip("needs arm-none-eabi-gcc: apt-get install gcc-arm-none-eabi")
    for name, most in (("model", MODEL_BYTES), ("slots", SLOTS_BYTES)):
        compiled = tmp_path / f"{name}.o"
        flags = [*STRICT, "-Os", f"-mcpu={core}", "-mthumb", "-ffreestanding"]
        build(["arm-none-eabi-gcc", *flags, "-c", str(LIBRARY / f"fedmq_{name}.c"), "-o", str(compiled)])
        listed = subprocess.run(["arm-none-eabi-size", str(compiled)], capture_output=True, text=True, check=True)
        text, data, bss = (int(cell) for cell in listed.stdout.splitlines()[1].split()[:3])
        assert text < most
        assert (data, bss) == (0, 0)
        unknown = subprocess.run(["arm-none-eabi-nm", "-u", str(compiled)], capture_output=True, text=True, check=True)
        names = {line.split()[-1] for line in unknown.stdout.splitlines()}
        # The compiler's own 64-bit products and shifts are no library.
        strangers = {name for name in names if not name.startswith("fedmq_")}
        assert strangers <= {"__aeabi_lasr", "__aeabi_llsl", "__aeabi_lmul"}


@pytest.mark.parametrize("name", ["model", "slots"])
def test_they_are_also_cxx(name: str, tmp_path: Path) -> None:
    flags = ["-std=c++11", "-Wall", "-Wextra", "-Werror", "-x", "c++"]
    build(["g++", *flags, "-c", str(LIBRARY / f"fedmq_{name}.c"), "-o", str(tmp_path / "library.o")])


def test_the_headers_name_the_numbers_that_python_has() -> None:
    model, slots = ((LIBRARY / f"fedmq_{name}.h").read_text(encoding="ascii") for name in ("model", "slots"))
    assert f"FEDMQ_MODEL_FORMAT = {images.FORMAT}," in model
    assert f"FEDMQ_MODEL_LAYERS_MAX = {images.MAX_LAYERS}," in model
    assert images.MAX_OUTPUTS == MAX_PAYLOAD - 20
    for outcome in Outcome:
        name = outcome.name
        assert f"FEDMQ_{name} = {outcome}" in slots or f"FEDMQ_MODEL_{name} = {outcome}" in model, name
    for what in Order:
        assert f"FEDMQ_{what.name} = {what}" in slots
