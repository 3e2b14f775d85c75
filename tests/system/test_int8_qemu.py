"""The exported C on a Cortex-M3: 1,000 windows, every byte as the reference has it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from fedmq_models import int8
from small_models import KINDS, small_model

pytestmark = pytest.mark.slow

WINDOWS = 1000
BOARD = Path(__file__).resolve().parents[1] / "support" / "mcu"
COMPILE = (
    *("arm-none-eabi-gcc", "-std=c99", "-Wall", "-Wextra", "-Werror", "-O2", "-mcpu=cortex-m3", "-mthumb"),
    *("-ffreestanding", "-DFEDMQ_SELF_TEST"),
)
QEMU = (
    *("qemu-system-arm", "-M", "mps2-an385", "-display", "none", "-monitor", "none"),
    *("-semihosting-config", "enable=on,target=native"),
)
CODE_BYTES = 1024
"""That the documentation of `flash_bytes` allows for."""


@pytest.fixture(autouse=True)
def _tools() -> None:
    for tool in ("arm-none-eabi-gcc", "qemu-system-arm"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}: apt-get install gcc-arm-none-eabi qemu-system-arm")


@pytest.mark.parametrize("kind", KINDS)
def test_a_thousand_windows_on_a_cortex_m3_are_bit_for_bit_as_the_reference_has_them(kind: str, tmp_path: Path) -> None:
    model, windows = small_model(kind, 7)
    inputs, outputs = model.spec.sizes[0], model.spec.sizes[-1]
    rng = np.random.default_rng(7)
    drawn = windows.mean(axis=0) + 3 * windows.std(axis=0) * rng.normal(size=(WINDOWS - 100, inputs))
    far = rng.integers(-(1 << 31), 1 << 31, size=(100, inputs)).astype(np.int32)
    fixed = np.concatenate([int8.to_fixed(model, drawn.astype(np.float32)), far])

    said = np.frombuffer(run(int8.to_c(model), fixed, kind, tmp_path), dtype=np.uint8)

    assert said.size == WINDOWS * (inputs + outputs + 4)
    rows = said.reshape(WINDOWS, inputs + outputs + 4)
    x, out = rows[:, :inputs].view(np.int8), rows[:, inputs:-4].view(np.int8)
    results = np.ascontiguousarray(rows[:, -4:]).view("<i4").ravel()
    expected_x = int8.quantize_inputs(model, fixed)
    expected = int8.reference(model, expected_x)
    assert np.array_equal(x, expected_x)
    assert np.array_equal(out, expected)
    assert len(np.unique(expected)) > 20, "hardly any output differs: this proves little"
    wanted = int8.anomaly_score(expected_x, expected) if kind == "autoencoder" else int8.classes(expected)
    assert np.array_equal(results, wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_it_takes_the_flash_that_is_said_and_no_variables_and_calls_nothing(kind: str, tmp_path: Path) -> None:
    model, _ = small_model(kind, 7)
    source, compiled = tmp_path / "model.c", tmp_path / "model.o"
    source.write_text(int8.to_c(model), encoding="ascii")
    flags = [flag for flag in COMPILE if flag != "-DFEDMQ_SELF_TEST"]
    subprocess.run([*flags, "-Os", "-c", str(source), "-o", str(compiled)], check=True)
    listed = subprocess.run(["arm-none-eabi-size", str(compiled)], capture_output=True, text=True, check=True)
    text, data, bss = (int(cell) for cell in listed.stdout.splitlines()[1].split()[:3])
    assert (data, bss) == (0, 0)
    assert model.flash_bytes <= text <= model.flash_bytes + CODE_BYTES
    unknown = subprocess.run(["arm-none-eabi-nm", "-u", str(compiled)], capture_output=True, text=True, check=True)
    # The compiler's own 64-bit shifts are no library.
    assert {line.split()[-1] for line in unknown.stdout.splitlines()} <= {"__aeabi_lasr", "__aeabi_llsl"}


def run(text: str, fixed: np.ndarray, kind: str, directory: Path) -> bytes:
    """What the program says over its UART, after it has ended with status 0."""
    (directory / "model.c").write_text(text, encoding="ascii")
    rows = ",\n".join(
        "{" + ", ".join(f"INT32_C({v})" if v > -(1 << 31) else "INT32_MIN" for v in row) + "}" for row in fixed.tolist()
    )
    (directory / "windows.h").write_text(
        f"#define WINDOWS {len(fixed)}\nstatic const int32_t features[WINDOWS][FEDMQ_INPUTS] = {{\n{rows}}};\n",
        encoding="ascii",
    )
    program, said = directory / "program.elf", directory / "uart.bin"
    sources = [directory / "model.c", BOARD / "infer_main.c", BOARD / "mps2_an385.c"]
    words = [*COMPILE, "-nostartfiles", "-nostdlib", "-T", str(BOARD / "mps2_an385.ld"), f"-I{directory}", f"-I{BOARD}"]
    words += ["-DRECONSTRUCTS"] if kind == "autoencoder" else []
    ended = subprocess.run([*words, *map(str, sources), "-lgcc", "-o", str(program)], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    emulated = subprocess.run(
        [*QEMU, "-serial", f"file:{said}", "-kernel", str(program)], capture_output=True, text=True, timeout=120
    )
    assert emulated.returncode == 0, emulated.stderr or "the self-test failed"
    return said.read_bytes()
