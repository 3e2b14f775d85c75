"""The settings of a watch. `edge_node/watch.example.toml` is rendered from them: `document(WatchSettings)`.

Owns which knobs there are, their bounds and defaults. What a machine is, is in a file of its own: `machines`.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from fedmq_edge_node.alarms import Policy
from fedmq_edge_node.watching import WatchPolicy
from fedmq_protocol.observing import MetricsSettings
from fedmq_protocol.settings import Table
from msgspec import Meta

__all__ = ["EmailSettings", "JudgingSettings", "MqttSettings", "WatchSettings", "WebhookSettings"]

_NAME = Meta(
    pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z",
    extra={"expected": "1 to 63 letters, digits, '.', '_' or '-'"},
)
_Step = Literal["raised", "changed", "cleared", "acknowledged", "confirmed", "dismissed", "event", "drift"]
_ADDRESS = Meta(
    pattern=r"^[^@\s<>,;]{1,64}@[^@\s<>,;]{1,255}\Z", extra={"expected": "a bare address such as ann@plant.example"}
)


@dataclass(frozen=True, kw_only=True)
class JudgingSettings(Table):
    """When an alert is raised and over, and how long normal behaviour is learnt."""

    raise_windows: Annotated[
        int, Meta(ge=1, le=1000, description="Windows in a row at the limit or above, before an alert is raised.")
    ] = 2
    raise_seconds: Annotated[
        float, Meta(ge=0, le=86_400, description="They must span so many seconds, too: a minimum duration.")
    ] = 0.0
    clear_level: Annotated[
        float,
        Meta(gt=0, le=1, description="Share of the limit below which windows count towards the end of an alert."),
    ] = 0.8
    clear_windows: Annotated[int, Meta(ge=1, le=10_000, description="So many in a row of each sensor end it.")] = 5
    severe_level: Annotated[
        float, Meta(ge=1, le=100, description="Multiple of the limit from which on a warning becomes an alarm.")
    ] = 1.55
    learning_windows: Annotated[
        int,
        Meta(
            ge=20,
            le=10_000_000,
            description="Running windows of each sensor, and band of speed and load, that nobody suspects, until its"
            " limits are learnt. Until then zones, bearing lines and a robust bound hold.",
        ),
    ] = 1000
    learning_hours: Annotated[
        float, Meta(ge=0, le=8760, description="They must span so many hours, too: days differ from nights.")
    ] = 24.0
    quantile: Annotated[float, Meta(gt=0.5, lt=1, description="Of what is normal; limits lie above it.")] = 0.99
    margin: Annotated[
        float,
        Meta(ge=0, le=100, description="How far above, in distances of that quantile from the median."),
    ] = 1.5
    least_factor: Annotated[
        float, Meta(ge=1, le=100, description="A learnt limit is so many medians at least, however steady a machine.")
    ] = 1.5
    lower_limits: Annotated[
        bool,
        Meta(
            description="Whether a machine that has become much quieter than it was is an anomaly, too. Turn it off for"
            " machines that idle, or carry little, for longer than learning_hours at a time."
        ),
    ] = True
    healthy: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=64,
            description="The class and label of healthy windows; what a dismissed alert is labelled.",
        ),
    ] = "normal"
    fault_share: Annotated[
        float, Meta(gt=0, le=1, description="Probability of a class of fault that is its limit.")
    ] = 0.7
    life_share: Annotated[
        float,
        Meta(gt=0, le=1, description="Remaining life that is its limit, as share of what the model can tell."),
    ] = 0.32
    drift_windows: Annotated[
        int,
        Meta(
            ge=100,
            le=10_000_000,
            description="Windows after which a machine's measures are held against their baseline. Three times in a row"
            " another distribution is told as drift; limits stay.",
        ),
    ] = 8640

    @property
    def policy(self) -> WatchPolicy:
        return WatchPolicy(
            alarms=Policy(
                raise_windows=self.raise_windows,
                raise_seconds=self.raise_seconds,
                clear_level=self.clear_level,
                clear_windows=self.clear_windows,
                severe_level=self.severe_level,
            ),
            learning_windows=self.learning_windows,
            learning_seconds=self.learning_hours * 3600.0,
            quantile=self.quantile,
            margin=self.margin,
            least_factor=self.least_factor,
            lower_limits=self.lower_limits,
            healthy=self.healthy,
            fault_share=self.fault_share,
            life_share=self.life_share,
            drift_windows=self.drift_windows,
        )


@dataclass(frozen=True, kw_only=True)
class MqttSettings(Table):
    """Alerts as JSON on the site's broker, and of each machine a retained state. See docs/alerts.md for the schema."""

    enabled: Annotated[bool, Meta(description="Whether alerts go there.")] = False
    host: Annotated[str, Meta(min_length=1, max_length=253, description="Host name or address.")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=1, le=65_535, description="Its port.")] = 1883
    username: Annotated[
        str | None, Meta(min_length=1, max_length=256, examples=["watch"], description="Where it asks for one.")
    ] = None
    password_file: Annotated[
        Path | None,
        Meta(
            examples=["secrets/broker-password"],
            extra={"credential": True},
            description="File whose first line is the password, which only this program's user may read (chmod 600).",
        ),
    ] = None
    tls: Annotated[bool, Meta(description="Whether to speak TLS.")] = False
    ca_file: Annotated[
        Path | None,
        Meta(
            examples=["tls/ca.crt"],
            extra={"credential": True},
            description="PEM file of the CAs that may sign the broker's certificate. Else the system's.",
        ),
    ] = None
    client_id: Annotated[str, _NAME, Meta(description="One of its own at the broker.")] = "fedmq-watch"
    prefix: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=200,
            pattern=r"^[^#+$/][^#+]*[^#+/]\Z",
            description="Topics begin with it: PREFIX/MACHINE/alert and PREFIX/MACHINE/state.",
        ),
    ] = "fedmq/watch"
    orders: Annotated[
        bool,
        Meta(
            description="Whether acknowledgements, verdicts and events are taken from PREFIX/do: whoever may publish"
            " there says what windows are labelled. Let the broker's ACL see to it."
        ),
    ] = False

    def check(self) -> Iterator[tuple[str, str]]:
        if self.password_file is not None and self.username is None:
            yield "username", "required where there is a password_file"
        if self.ca_file is not None and not self.tls:
            yield "ca_file", "has no effect without tls = true; set that, or take this key out"


@dataclass(frozen=True, kw_only=True)
class WebhookSettings(Table):
    """A web address that alerts are posted to as JSON; one such table for each."""

    name: Annotated[str, _NAME, Meta(examples=["pager"], description="What it is called; no two are alike.")]
    url: Annotated[
        str, Meta(min_length=8, max_length=2048, examples=["https://pager.example/fedmq"], description="http or https.")
    ]
    token_file: Annotated[
        Path | None,
        Meta(
            examples=["secrets/pager-token"],
            extra={"credential": True},
            description="File whose first line goes with it as a bearer token; only this program's user may read it.",
        ),
    ] = None
    ca_file: Annotated[
        Path | None,
        Meta(
            examples=["tls/ca.crt"],
            extra={"credential": True},
            description="PEM file of the CAs that may sign the server's certificate. Else the system's.",
        ),
    ] = None
    tell: Annotated[tuple[_Step, ...], Meta(max_length=8, description="Steps of alerts that are told.")] = (
        "raised",
        "changed",
        "cleared",
        "confirmed",
        "dismissed",
        "drift",
    )
    least_seconds: Annotated[
        float,
        Meta(ge=0, le=86_400, description="Between two messages about a machine; what comes between goes together."),
    ] = 60.0
    most_per_hour: Annotated[int, Meta(ge=1, le=100_000, description="Messages; what is beyond waits.")] = 120
    timeout_seconds: Annotated[float, Meta(gt=0, le=60, description="For one try.")] = 10.0

    def check(self) -> Iterator[tuple[str, str]]:
        try:
            parts = urllib.parse.urlsplit(self.url)
            right = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            right = False
        if not right or not self.url.isprintable() or " " in self.url:
            yield "url", "expected an address that begins with http:// or https://"
        elif self.ca_file is not None and parts.scheme != "https":
            yield "ca_file", "has no effect on an address that begins with http://; take this key out, or use https"


@dataclass(frozen=True, kw_only=True)
class EmailSettings(Table):
    """People who are told by e-mail; one such table for each group."""

    name: Annotated[str, _NAME, Meta(examples=["maintenance"], description="What it is called; no two are alike.")]
    host: Annotated[
        str, Meta(min_length=1, max_length=253, examples=["mail.plant.example"], description="The mail server.")
    ]
    port: Annotated[int, Meta(ge=1, le=65_535, description="Its port: 587 with starttls, 465 with tls, else 25.")] = 587
    security: Annotated[
        Literal["starttls", "tls", "none"],
        Meta(description="How the connection is protected; none only on a network that you trust."),
    ] = "starttls"
    username: Annotated[
        str | None, Meta(min_length=1, max_length=256, examples=["fedmq"], description="Where it asks for one.")
    ] = None
    password_file: Annotated[
        Path | None,
        Meta(
            examples=["secrets/mail-password"],
            extra={"credential": True},
            description="File whose first line is the password, which only this program's user may read (chmod 600).",
        ),
    ] = None
    ca_file: Annotated[
        Path | None,
        Meta(
            examples=["tls/ca.crt"],
            extra={"credential": True},
            description="PEM file of the CAs that may sign the server's certificate. Else the system's.",
        ),
    ] = None
    sender: Annotated[str, _ADDRESS, Meta(examples=["fedmq@plant.example"], description="Address that it comes from.")]
    to: Annotated[
        tuple[Annotated[str, _ADDRESS], ...],
        Meta(min_length=1, max_length=32, examples=[["ann@plant.example"]], description="Addresses that it goes to."),
    ]
    tell: Annotated[tuple[_Step, ...], Meta(max_length=8, description="Steps of alerts that are told.")] = (
        "raised",
        "changed",
        "drift",
    )
    least_seconds: Annotated[
        float,
        Meta(ge=0, le=86_400, description="Between two mails about a machine; what comes between goes together."),
    ] = 600.0
    most_per_hour: Annotated[int, Meta(ge=1, le=1000, description="Mails; what is beyond waits.")] = 12
    timeout_seconds: Annotated[float, Meta(gt=0, le=60, description="For one try.")] = 10.0

    def check(self) -> Iterator[tuple[str, str]]:
        if (self.password_file is None) != (self.username is None):
            missing = "username" if self.username is None else "password_file"
            yield missing, "username and password_file: expected both or neither"
        if self.ca_file is not None and self.security == "none":
            yield "ca_file", 'has no effect with security = "none"; set starttls or tls, or take this key out'
        if self.username is not None and self.security == "none":
            yield "security", "a password does not go over an open connection: starttls or tls"


@dataclass(frozen=True, kw_only=True)
class WatchSettings(Table):
    """Settings of the watch over a gateway's machines. Start it with: fedmq watch run --config FILE"""

    store: Annotated[
        Path,
        Meta(
            examples=["/var/lib/fedmq/bridge.sqlite"],
            description="The bridge's file. It is read; verdicts and events are written to it as labels.",
        ),
    ]
    machines: Annotated[
        Path,
        Meta(
            examples=["/etc/fedmq/machines.toml"],
            description="File of the machines: `fedmq machine add` writes it. Those alone are watched.",
        ),
    ]
    state_dir: Annotated[
        Path,
        Meta(
            examples=["/var/lib/fedmq/watch"],
            description="Folder of the alertbook (alerts.sqlite) and of kept recordings (kept). On real storage.",
        ),
    ]
    gateway_state: Annotated[
        Path | None,
        Meta(
            examples=["/var/lib/fedmq/gateway"],
            description="state_dir of the gateway on this machine, whose models in service score. Without it zones,"
            " bearing lines and learnt limits alone judge.",
        ),
    ] = None
    tasks: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=64)], ...],
        Meta(max_length=16, examples=[["bearings"]], description="Tasks whose models score. Empty: all in service."),
    ] = ()
    faults: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=64)], ...],
        Meta(
            max_length=64,
            examples=[["inner_race", "ball", "outer_race"]],
            description="Faults that a verdict may name: the classes of the task, for a gateway learns nothing while"
            " windows have a label that is none of them. Empty: any.",
        ),
    ] = ()
    engine: Annotated[
        Literal["auto", "onnxruntime", "litert", "tflite", "numpy"],
        Meta(description="What computes models, as in the gateway's settings."),
    ] = "auto"
    window_seconds: Annotated[
        float,
        Meta(
            ge=0.1,
            le=60,
            description="Signal that is judged at once. Below 0.5 s a velocity from 10 Hz on cannot be told.",
        ),
    ] = 2.0
    every_seconds: Annotated[
        float, Meta(ge=0.1, le=86_400, description="From one window's start to the next one's.")
    ] = 10.0
    poll_seconds: Annotated[
        float, Meta(ge=0.05, le=3600, description="Between two looks for new samples, orders and messages.")
    ] = 5.0
    commit_seconds: Annotated[
        float,
        Meta(
            ge=0,
            le=3600,
            description="How often progress without news is written: SD cards wear. News is written at once; what was"
            " not written is judged again.",
        ),
    ] = 60.0
    keep_seconds: Annotated[
        float,
        Meta(ge=0, le=3600, description="Signal of each alert that is kept as a recording, for training. 0: none."),
    ] = 60.0
    keep_bytes: Annotated[int, Meta(ge=1 << 20, description="Bytes of kept recordings; then the oldest go.")] = (
        500_000_000
    )
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
    judging: JudgingSettings = field(default_factory=JudgingSettings)
    mqtt: MqttSettings = field(default_factory=MqttSettings)
    metrics: MetricsSettings = field(default_factory=MetricsSettings)
    webhook: Annotated[
        tuple[WebhookSettings, ...],
        Meta(max_length=16, description="A web address that alerts are posted to as JSON; one such table for each."),
    ] = ()
    email: Annotated[
        tuple[EmailSettings, ...],
        Meta(max_length=16, description="People who are told by e-mail; one such table for each group."),
    ] = ()

    def check(self) -> Iterator[tuple[str, str]]:
        if self.every_seconds < self.window_seconds:
            yield "every_seconds", f"expected at least window_seconds ({self.window_seconds:g})"
        for key, rows in (("webhook", self.webhook), ("email", self.email)):
            names = [row.name for row in rows]
            for name in sorted({name for name in names if names.count(name) > 1}):
                yield key, f'"{name}" is the name of more than one'

    @property
    def book(self) -> Path:
        return self.state_dir / "alerts.sqlite"

    @property
    def kept(self) -> Path:
        return self.state_dir / "kept"
