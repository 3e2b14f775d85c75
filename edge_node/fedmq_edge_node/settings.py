"""The settings of a gateway. `edge_node/gateway.example.toml` is rendered from them: `document(GatewaySettings)`.

Owns which knobs a gateway has, their bounds and defaults. Refuses to know how a file is read, and what the task is:
the coordinator says that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from fedmq_protocol.observing import MetricsSettings
from fedmq_protocol.settings import ConnectionSettings, Table, named
from msgspec import Meta

from fedmq_edge_node.gates import Limits

__all__ = ["BridgeSettings", "GatewaySettings"]


@dataclass(frozen=True, kw_only=True)
class BridgeSettings(Table):
    """The store of a bridge to sensors, in place of data_dir: what `fedmq bridge run` writes on this machine."""

    store: Annotated[
        Path | None,
        Meta(
            examples=["/var/lib/fedmq/bridge.sqlite"],
            description="The bridge's file. Accelerations are learnt from in g, other channels in the sensor's unit.",
        ),
    ] = None
    kept: Annotated[
        Path | None,
        Meta(
            examples=["/var/lib/fedmq/watch/kept"],
            description="Recordings of alerts that somebody has judged, as `fedmq watch` keeps them (kept in its"
            " state_dir). They are learnt from too, once the store has them no more.",
        ),
    ] = None
    machines: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=64)], ...],
        Meta(
            max_length=64,
            examples=[["pump-3"]],
            description="Machines to learn from. Empty: all whose sensors have the task's rate and channels.",
        ),
    ] = ()
    machines_file: Annotated[
        Path | None,
        Meta(
            examples=["/etc/fedmq/machines.toml"],
            description="The file of fedmq machine. Of machines that stand in it nothing is learnt from while they"
            " stand, start, stop or change their speed.",
        ),
    ] = None
    fresh_seconds: Annotated[
        float,
        Meta(
            ge=0,
            le=86_400,
            description="A sensor that the windows come from and that is silent for longer shuts the gate of samples."
            " Well above the bridge's flush_seconds. 0: never.",
        ),
    ] = 300.0
    most_windows: Annotated[
        int,
        Meta(ge=1, le=200_000, description="Windows of each sensor and label, the newest, that are learnt from."),
    ] = 4000
    renew_seconds: Annotated[
        float,
        Meta(
            ge=1,
            le=604_800,
            description="Seconds after which windows are cut anew and the coordinator is told, where there are more"
            " samples. New labels are taken up at once.",
        ),
    ] = 3600.0


@dataclass(frozen=True, kw_only=True)
class GatewaySettings(Table):
    """Settings of one fedmq gateway. Start it with: fedmq gateway --config FILE"""

    name: Annotated[
        str,
        Meta(
            examples=["gateway-1"],
            description="Name of this gateway, one of its own in the federation. With client certificates it is the CN:"
            " letters, digits, '.', '_' and '-'.",
        ),
    ]
    data_dir: Annotated[
        Path | None,
        Meta(
            examples=["/var/lib/fedmq/data"],
            description="Folder of this gateway's recordings: one folder for each label, with .npy, .csv or .wav files."
            " They are only read, and never leave this machine. Without it the gateway learns from sensors: see"
            " [bridge].",
            extra={"stated": True},
        ),
    ] = None
    state_dir: Annotated[
        Path,
        Meta(
            examples=["/var/lib/fedmq/gateway"],
            description="Folder of what must survive a power cut: what is learnt and not yet sent, the update that"
            " waits"
            " for its receipt, the bytes used. On real storage, not on a RAM disk; one gateway, one folder.",
        ),
    ]
    tags: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=32)], ...],
        Meta(
            max_length=16,
            examples=[["pump", "hall-2"]],
            description="What this gateway is and what it watches. At the coordinator a task, a pause or a release can"
            " be for gateways with some tags only.",
        ),
    ] = ()
    watch_state: Annotated[
        Path | None,
        Meta(
            examples=["/var/lib/fedmq/watch"],
            description="state_dir of the watch on this machine (fedmq watch). The coordinator then hears how its"
            " machines are, of its alerts and of what is normal, and people there can say what an alert was.",
        ),
    ] = None
    watch_seconds: Annotated[
        float,
        Meta(
            ge=5,
            le=86_400,
            description="Seconds at least between two words on how machines are, and only where that has changed."
            " Alerts are told at once.",
        ),
    ] = 60.0
    vitals_file: Annotated[
        Path | None,
        Meta(
            examples=["vitals.toml"],
            description="File that states battery, load and link in place of this machine's own sensors, read before"
            " each round: for trials, or where another program measures them. A key that it lacks is unknown.",
        ),
    ] = None
    tell_vitals: Annotated[
        bool,
        Meta(
            description="Whether the coordinator is told with each birth and answer how full the battery is, whether"
            " there is mains power, the kind of link and whether that is metered: 1 to 3 bytes. false: it hears which"
            " gate is shut, and no more."
        ),
    ] = True
    nice: Annotated[
        int,
        Meta(
            ge=0,
            le=19,
            description="How far this process stands back for others: its nice value, with the disk at idle priority."
            " 0 leaves the priority as it is.",
        ),
    ] = 10
    engine: Annotated[
        Literal["auto", "onnxruntime", "litert", "tflite", "numpy"],
        Meta(
            description='What computes the model: "auto" takes numpy for dense models, and for others onnxruntime where'
            ' it is installed (the extra "onnx"), then LiteRT ("litert"), the older tflite-runtime ("tflite"), else'
            " numpy.",
        ),
    ] = "auto"
    ask_jitter_seconds: Annotated[
        float,
        Meta(
            ge=0,
            le=3600,
            description="A gateway that missed versions of the model asks for them after a random time up to this many"
            " seconds, so that one answer can serve many.",
        ),
    ] = 2.0
    answer_jitter_seconds: Annotated[
        float,
        Meta(
            ge=0,
            le=3600,
            description="An answer is sent after a random time up to this many seconds, so that a large fleet does not"
            " answer all at once. Keep it well below the coordinator's closing time.",
        ),
    ] = 0.0
    look_every_seconds: Annotated[
        float,
        Meta(ge=1, le=86_400, description="Seconds between two looks for new recordings while no round asks for any."),
    ] = 60.0
    stale_hours: Annotated[
        float,
        Meta(
            gt=0,
            le=8760,
            description="With connection.identity_dir: hours without anything new that the coordinator has signed,"
            " after which an alert is logged and shown by `fedmq gateway --show`: it is down, or somebody keeps its"
            " messages from this gateway. Well above the coordinator's limits.head_hours.",
        ),
    ] = 24.0
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="Least grave message that is logged.")
    ] = "info"
    log_format: Annotated[
        Literal["console", "json"] | None,
        Meta(
            examples=["json"],
            description='How log lines look: "console" for people, "json" an object a line, for programs. Without it'
            " the environment variable FEDMQ_LOG_FORMAT says so, else it is console.",
        ),
    ] = None
    bridge: BridgeSettings = field(default_factory=BridgeSettings)
    connection: ConnectionSettings = field(default_factory=ConnectionSettings)
    gates: Limits = field(default_factory=Limits)
    metrics: MetricsSettings = field(default_factory=MetricsSettings)

    def check(self) -> Iterator[tuple[str, str]]:
        yield from named("name", self.name)
        if self.data_dir is None and self.bridge.store is None:
            yield "data_dir", "missing; expected a path to a folder of recordings, or bridge.store"
        if self.data_dir is not None and self.bridge.store is not None:
            yield "bridge.store", "expected this or data_dir, got both: a gateway learns from one of them"
        if self.bridge.kept is not None and self.bridge.store is None:
            yield "bridge.kept", "has no effect without bridge.store; set that, or take this key out"
