"""Metrics say what the state of affairs says, and a gateway's own words stay within their label."""

from __future__ import annotations

from typing import Any

from fedmq_coordinator.metrics import to_metrics


def state(**gateway: Any) -> dict[str, Any]:
    told = {"name": "g0", "present": True, "software": "fedmq 0.1.0", "last_seen": 12.5, "answer": None, **gateway}
    return {"now": 13.0, "tasks": [{"name": "pumps", "rounds": 0, "round": None}], "gateways": [told]}


def test_a_gateway_that_has_answered_nothing_yet_has_no_time_of_an_answer() -> None:
    assert to_metrics(state()) == (
        "# HELP fedmq_rounds Rounds that were opened.\n"
        "# TYPE fedmq_rounds gauge\n"
        'fedmq_rounds{task="pumps"} 0\n'
        "# HELP fedmq_gateway_present 1 while the gateway is connected.\n"
        "# TYPE fedmq_gateway_present gauge\n"
        'fedmq_gateway_present{gateway="g0"} 1\n'
        "# HELP fedmq_gateway_last_seen_seconds When the gateway was last heard, in Unix time.\n"
        "# TYPE fedmq_gateway_last_seen_seconds gauge\n"
        'fedmq_gateway_last_seen_seconds{gateway="g0"} 12.5\n'
        "# HELP fedmq_gateway_software_info 1, with the version that the gateway runs.\n"
        "# TYPE fedmq_gateway_software_info gauge\n"
        'fedmq_gateway_software_info{gateway="g0",software="fedmq 0.1.0"} 1\n'
    )


def test_what_a_gateway_says_stays_within_its_label() -> None:
    text = to_metrics(state(software='x"} 1\nfedmq_rounds{task="pumps\\'))
    (line,) = [line for line in text.splitlines() if line.startswith("fedmq_gateway_software_info")]
    assert line == 'fedmq_gateway_software_info{gateway="g0",software="x\\"} 1\\nfedmq_rounds{task=\\"pumps\\\\"} 1'
