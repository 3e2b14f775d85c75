"""The state of affairs as metrics for Prometheus, as node_exporter's textfile collector reads them. Pure.

Owns names and labels of the metrics. What they say comes from `tasks.state_of_affairs`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["to_metrics"]

_HELP = {
    "fedmq_rounds": "Rounds that were opened.",
    "fedmq_round_opened_seconds": "When the newest round was opened, in Unix time.",
    "fedmq_round_drawn": "Gateways that the newest round asked.",
    "fedmq_round_accepted": "Updates of the newest round that were accepted.",
    "fedmq_round_declined": "Gateways that declined the newest round.",
    "fedmq_gateway_present": "1 while the gateway is connected.",
    "fedmq_gateway_last_seen_seconds": "When the gateway was last heard, in Unix time.",
    "fedmq_gateway_last_answer_seconds": "When the gateway last answered a round, in Unix time.",
    "fedmq_gateway_software_info": "1, with the version that the gateway runs.",
}


def to_metrics(state: Mapping[str, Any]) -> str:
    """`state` as `state_of_affairs` gives it."""
    samples: dict[str, list[str]] = {name: [] for name in _HELP}
    for name, labels, value in _samples(state):
        shown = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
        samples[name].append(f"{name}{{{shown}}} {value}")
    lines: list[str] = []
    for name, said in samples.items():
        if said:
            lines += [f"# HELP {name} {_HELP[name]}", f"# TYPE {name} gauge", *said]
    return "".join(f"{line}\n" for line in lines)


def _samples(state: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, str], float | int]]:
    for task in state["tasks"]:
        of_task = {"task": task["name"]}
        yield "fedmq_rounds", of_task, task["rounds"]
        round_ = task["round"]
        if round_ is not None:
            yield "fedmq_round_opened_seconds", of_task, round_["opened_at"]
            yield "fedmq_round_drawn", of_task, round_["drawn"]
            yield "fedmq_round_accepted", of_task, round_["accepted"]
            yield "fedmq_round_declined", of_task, round_["declined"]
    for gateway in state["gateways"]:
        of_gateway = {"gateway": gateway["name"]}
        yield "fedmq_gateway_present", of_gateway, int(gateway["present"])
        yield "fedmq_gateway_last_seen_seconds", of_gateway, gateway["last_seen"]
        if gateway["answer"] is not None:
            yield "fedmq_gateway_last_answer_seconds", of_gateway, gateway["answer"]["at"]
        yield "fedmq_gateway_software_info", {**of_gateway, "software": gateway["software"]}, 1


def _escaped(text: str) -> str:
    """What came from a gateway must not end its label."""
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
