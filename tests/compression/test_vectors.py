"""Golden payloads: what was written once is read for ever, and written the same."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fedmq_compression.contexts import Contexts
from fedmq_compression.indices import Layout
from fedmq_compression.integers import Plan
from fedmq_compression.pipeline import CodecSpec, decode, decode_integers, encode, encode_integers

pytestmark = pytest.mark.usefixtures("either_way")

VECTORS = Path(__file__).parent.parent / "vectors"


def plain_decoder() -> Any:
    spec = importlib.util.spec_from_file_location("plain_decoder", Path(__file__).parent / "plain_decoder.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PLAIN = plain_decoder()


def cases(name: str) -> list[Any]:
    return [pytest.param(case, id=case["name"]) for case in json.loads((VECTORS / f"{name}.json").read_text())]


@pytest.mark.parametrize("case", cases("deltas"))
def test_a_golden_delta_decodes_to_its_steps(case: dict[str, Any]) -> None:
    spec = CodecSpec(bits=case["bits"], density=case["density"], step=2.0 ** case["step_exponent"])
    decoded = decode(bytes.fromhex(case["payload"]), case["length"], spec)
    assert decoded.steps.tolist() == case["steps"]
    assert (None if decoded.indices is None else decoded.indices.tolist()) == case["indices"]


@pytest.mark.parametrize("case", cases("ranked"))
def test_a_golden_delta_along_a_ranking_decodes_to_its_steps(case: dict[str, Any]) -> None:
    spec = CodecSpec(bits=case["bits"], density=case["density"], step=2.0 ** case["step_exponent"])
    displacement = np.array(case["displacement"], dtype=np.int32)
    contexts = Contexts.of(displacement, [tuple(shape) for shape in case["shapes"]])
    decoded = decode(bytes.fromhex(case["payload"]), displacement.size, spec, contexts=contexts)
    assert decoded.steps.tolist() == case["steps"]
    assert decoded.indices is not None
    assert decoded.indices.tolist() == case["indices"]


@pytest.mark.parametrize("case", cases("ranked"))
def test_the_documented_layout_suffices_to_decode_along_a_ranking(case: dict[str, Any]) -> None:
    payload = bytes.fromhex(case["payload"])
    given = (case["bits"], case["density"], case["step_exponent"], case["displacement"], case["shapes"])
    assert PLAIN.decode(payload, len(case["displacement"]), *given) == (case["indices"], case["steps"])


@pytest.mark.parametrize("case", cases("integers"))
def test_golden_integers_decode_to_their_values(case: dict[str, Any]) -> None:
    assert decode_integers(bytes.fromhex(case["payload"]), case["length"]).tolist() == case["values"]


@pytest.mark.parametrize("case", cases("deltas"))
def test_the_documented_layout_suffices_to_decode_a_golden_delta(case: dict[str, Any]) -> None:
    payload = bytes.fromhex(case["payload"])
    indices, steps = PLAIN.decode(payload, case["length"], case["bits"], case["density"], case["step_exponent"])
    assert steps == case["steps"]
    assert indices == case["indices"]


@pytest.mark.parametrize("case", cases("integers"))
def test_the_documented_layout_suffices_to_decode_golden_integers(case: dict[str, Any]) -> None:
    assert PLAIN.decode_integers(bytes.fromhex(case["payload"]), case["length"]) == case["values"]


def test_the_example_of_the_documentation_is_what_is_made() -> None:
    delta = np.zeros(50, dtype=np.float32)
    delta[[3, 11, 12, 30, 49]] = [0.25, -0.25, 0.25, 0.25, -0.25]
    spec = CodecSpec(bits=1, density=0.1, step=2.0**-12)
    assert spec.agreed(50).hex(" ") == "01 f4 32 00 00 00 05 00 00 00"
    assert encode(delta, spec).payload.hex(" ") == "20 84 00 4c 99 d9 10 67 2d"


def test_there_is_a_golden_payload_of_every_layout() -> None:
    made = cases("deltas") + cases("ranked")
    deltas = {int(parameter.values[0]["payload"][0], 16) for parameter in made}
    integers = {int(parameter.values[0]["payload"][:2], 16) & 0x7F for parameter in cases("integers")}
    assert deltas == set(Layout)
    assert integers == set(Plan)


def test_what_a_golden_delta_decodes_to_is_coded_to_the_same_coordinates() -> None:
    for parameter in cases("deltas"):
        (case,) = parameter.values
        spec = CodecSpec(bits=case["bits"], density=case["density"], step=2.0 ** case["step_exponent"])
        sent = decode(bytes.fromhex(case["payload"]), case["length"], spec)
        again = encode(sent.dense(), spec).sent
        if spec.bits in (1, 32):
            assert np.array_equal(again.dense(), sent.dense()), case["name"]


def test_golden_integers_cost_no_more_than_when_they_were_written() -> None:
    smallest: dict[str, int] = {}
    for parameter in cases("integers"):
        (case,) = parameter.values
        key = case["name"].split(",")[0]
        smallest[key] = min(smallest.get(key, 1 << 30), len(case["payload"]) // 2)
        assert len(encode_integers(np.array(case["values"], dtype=np.int32))) <= smallest[key]
