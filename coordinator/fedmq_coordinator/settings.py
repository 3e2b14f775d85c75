"""The settings of the coordinator. `coordinator/coordinator.example.toml` is rendered from them.

Owns which knobs the coordinator has, their bounds and defaults: plain values. Refuses to know how a file is read and
how a task is built from them. Bounds of what becomes part of a task are those of `fedmq_protocol.task`, or narrower.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import time
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal

from fedmq_protocol.messages import MAX_TASKS, PersonalPolicy
from fedmq_protocol.observing import MetricsSettings
from fedmq_protocol.settings import ConnectionSettings, Table, named
from fedmq_protocol.task import MAX_REMAINING, Recipe, Windowing
from fedmq_protocol.topics import CHUNK_BYTES
from msgspec import Meta

from fedmq_coordinator.aggregate import rule_named
from fedmq_coordinator.money import CURRENCY, DEFAULT, MOST_PER_GB, Price
from fedmq_coordinator.schedule import Pace

__all__ = [
    "CodecSettings",
    "ControlSettings",
    "CoordinatorSettings",
    "DriftSettings",
    "FleetMetricsSettings",
    "FleetSettings",
    "HttpSettings",
    "LimitSettings",
    "MoneySettings",
    "MoreTaskSettings",
    "PersonalSettings",
    "PublishSettings",
    "RecipeSettings",
    "RoundSettings",
    "TaskSettings",
    "WindowingSettings",
    "is_loopback",
    "parse_listen",
]

_WINDOWING = Windowing()
_RECIPE = Recipe()

Bits = Literal[1, 4, 8]


@dataclass(frozen=True, kw_only=True)
class WindowingSettings(Table):
    """How a recording becomes windows, and a window becomes features, on every gateway alike."""

    samples: Annotated[
        int,
        Meta(
            ge=1,
            le=1 << 20,
            description="Samples of a window, of each channel. vibration-1 needs 64; a table whose rows are windows"
            " has 1, and a hop of 1.",
        ),
    ] = _WINDOWING.samples
    hop: Annotated[int, Meta(ge=1, le=1 << 20, description="Samples from one window's start to the next one's.")] = (
        _WINDOWING.hop
    )
    sampling_rate_hz: Annotated[
        float,
        Meta(
            gt=0,
            le=1e6,
            description="Samples a second that recordings must have. A gateway with another rate declines:"
            " frequency bands"
            " would shift.",
        ),
    ] = _WINDOWING.sampling_rate_hz
    features: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=32,
            description='Name of the feature set: "vibration-1" makes 22 features of each channel of a vibration;'
            ' "raw" takes the'
            ' samples of all channels as they are; "bundle" has features made by the graph that the task\'s bundle'
            " brings.",
        ),
    ] = _WINDOWING.features
    held_out: Annotated[
        float,
        Meta(
            ge=0,
            lt=1,
            description="Share of each recording's end that a gateway does not train on, and measures the model with.",
        ),
    ] = _WINDOWING.held_out
    channels: Annotated[
        int,
        Meta(
            ge=1,
            le=4096,
            description="Channels that a recording must have; each becomes features. With 1, vibration-1 uses the"
            " first of however many there are.",
        ),
    ] = _WINDOWING.channels
    scaling: Annotated[
        Literal["learnt", "none"],
        Meta(
            description='"learnt": the first round learns a centre and a scale for each feature. "none": features are'
            " used as they are, for tables and images that are on one scale already; there is no such round then.",
        ),
    ] = _WINDOWING.scaling
    remaining_most: Annotated[
        float,
        Meta(
            ge=0,
            le=MAX_REMAINING,
            description="For a regressor: the samples of life left after a window that are told apart, at most; all"
            " beyond count as so many. 0: for the other kinds.",
        ),
    ] = _WINDOWING.remaining_most


@dataclass(frozen=True, kw_only=True)
class RecipeSettings(Table):
    """How a gateway trains: steps down the gradient, batch by batch."""

    learning_rate: Annotated[float, Meta(gt=0, le=100, description="Step size of a gateway's own training.")] = (
        _RECIPE.learning_rate
    )
    momentum: Annotated[
        float, Meta(ge=0, lt=1, description="Momentum of a gateway's own training; it begins at 0 in every round.")
    ] = _RECIPE.momentum
    local_epochs: Annotated[
        int, Meta(ge=1, le=10_000, description="Passes over its own windows that a gateway makes in a round.")
    ] = _RECIPE.local_epochs
    batch_size: Annotated[int, Meta(ge=1, le=65_536, description="Windows of one step.")] = _RECIPE.batch_size
    proximal: Annotated[
        float,
        Meta(
            ge=0,
            le=1e3,
            description="FedProx's mu: how strongly a gateway is held to the shared model while it trains. 0: not"
            " at all.",
        ),
    ] = _RECIPE.proximal
    clip_norm: Annotated[
        float,
        Meta(gt=0, le=1e6, description="Length (L2 norm) to which a gateway shortens what it learnt in one round."),
    ] = _RECIPE.clip_norm
    optimizer: Annotated[
        Literal["sgd", "adam"],
        Meta(
            description='"sgd" is stochastic gradient descent; "adam" scales the step of each parameter by its'
            " gradient's recent size, wants a learning rate near 0.0002, and has no use for momentum. A regressor is"
            " best trained by it."
        ),
    ] = _RECIPE.optimizer
    time_budget_seconds: Annotated[
        float,
        Meta(
            ge=0,
            le=86_400,
            description="Seconds after which a gateway ends a round's training, passes left or not, and sends what it"
            " has. 0: no such end.",
        ),
    ] = _RECIPE.time_budget_seconds

    def check(self) -> Iterator[tuple[str, str]]:
        if self.optimizer == "adam" and self.momentum > 0:
            yield "momentum", f'expected 0 with optimizer = "adam", which has its own, got {self.momentum:g}'


@dataclass(frozen=True, kw_only=True)
class CodecSettings(Table):
    """How what was learnt is coded on the wire."""

    kind: Annotated[
        Literal["sparse", "dense"],
        Meta(
            description='"sparse" sends the largest changes and keeps the rest for later rounds; "dense" sends'
            " float32 both"
            " ways, which is plain federated averaging. With dense the other keys of this table have no effect.",
        ),
    ] = "sparse"
    dial: Annotated[
        float,
        Meta(
            ge=0,
            le=1,
            description="From 0, the fewest bytes until the model is good, to 1, the fewest rounds. It says how many"
            " of the parameters a round moves: of 17,000 about 0.4 % at 0, 0.9 % at 0.3 and 5 % at 1; of a larger"
            " model a smaller share. A gateway sends half of that share, or more where only a fraction of the fleet"
            " is asked.",
        ),
    ] = 0.3
    least_density: Annotated[
        float,
        Meta(gt=0, le=1, description="Share of the parameters that is sent at least, up and down."),
    ] = 0.0005
    most_density: Annotated[
        float,
        Meta(
            gt=0,
            le=1,
            description="Share of the parameters up to which a round is thickened when the loss stalls, four times as"
            " many each time; after that all are sent. Equal to least_density: that share both ways, and it stays so.",
        ),
    ] = 0.1
    min_coordinates: Annotated[
        int,
        Meta(
            ge=1,
            le=1 << 20,
            description="Parameters that are sent at least, whatever the density makes: a hundredth of a small model"
            " would take too many rounds.",
        ),
    ] = 32
    up_bits: Annotated[
        Bits, Meta(description="Bits of each value that a gateway sends: 1 is a sign, with one scale for all.")
    ] = 1
    down_bits: Annotated[Bits, Meta(description="Bits of each value that the coordinator sends.")] = 1
    up_gain: Annotated[
        float,
        Meta(
            ge=1,
            lt=2,
            description="Factor on the size of what a gateway sends at 1 bit. Above 1 it overshoots, gets back what"
            " was too much in later rounds, and arrives in fewer.",
        ),
    ] = 1.5
    down_gain: Annotated[float, Meta(ge=1, lt=2, description="The same factor on what the coordinator sends.")] = 1.2

    def check(self) -> Iterator[tuple[str, str]]:
        if self.least_density > self.most_density:
            yield (
                "least_density",
                f"expected at most most_density ({self.most_density:g}), got {self.least_density:g}",
            )


@dataclass(frozen=True, kw_only=True)
class TaskSettings(Table):
    """What is learnt. Changing anything here or below it makes another task, which starts anew."""

    name: Annotated[
        str, Meta(min_length=1, max_length=64, examples=["bearing-faults"], description="Name of the task.")
    ]
    kind: Annotated[
        Literal["softmax", "mlp", "autoencoder", "regressor", "cnn1d", "graph"],
        Meta(
            description='Model: "softmax" is linear, "mlp" has hidden layers, "autoencoder" learns what healthy'
            " looks like"
            ' and scores how far a window is from that, "regressor" says how long a machine will run on, "cnn1d" learns'
            ' from raw windows (features = "raw") with convolutions, and its hidden layers are their channels; "graph"'
            " is your own, from a bundle. Where this table, those below it and rounds.server_momentum say nothing, a"
            " kind has its own values: autoencoder, regressor and cnn1d others than the defaults that stand here.",
        ),
    ] = "mlp"
    bundle: Annotated[
        Path | None,
        Meta(
            examples=["my_model.fedmq"],
            description='File that `fedmq task build` made, for kind = "graph". Gateways fetch it once. What its author'
            " recommends holds for every key of this table and of those below it that is left out here.",
        ),
    ] = None
    hidden: Annotated[
        tuple[Annotated[int, Meta(ge=1, le=65_536)], ...],
        Meta(max_length=30, description="Units of each hidden layer, from inputs to outputs. Empty for softmax."),
    ] = (32,)
    classes: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=64)], ...],
        Meta(
            max_length=1024,
            examples=[("normal", "inner", "ball", "outer")],
            extra={"stated": True},
            description="Labels that the model tells apart: the names of the folders on the gateways. Required for"
            " softmax and mlp; not for the others.",
        ),
    ] = ()
    anomaly_label: Annotated[
        str,
        Meta(min_length=1, max_length=64, description="Label of healthy windows: an autoencoder trains on no others."),
    ] = "normal"
    seed: Annotated[
        int,
        Meta(
            ge=0,
            le=(1 << 63) - 1,
            description="Seed of the initial parameters, which every gateway draws for itself.",
        ),
    ] = 0
    grid_bits: Annotated[
        int, Meta(ge=4, le=24, description="A parameter is a whole number of steps of 2 to the power of minus this.")
    ] = 12
    min_windows: Annotated[
        int, Meta(ge=1, le=1 << 31, description="Training windows that a gateway must have to take part.")
    ] = 20
    windowing: WindowingSettings = field(default_factory=WindowingSettings)
    recipe: RecipeSettings = field(default_factory=RecipeSettings)
    codec: CodecSettings = field(default_factory=CodecSettings)

    def check(self) -> Iterator[tuple[str, str]]:
        if (self.kind == "graph") != (self.bundle is not None):
            yield "bundle", f'expected a file for kind = "graph" and for no other, got {self.bundle} for "{self.kind}"'
        if self.kind == "graph":
            return
        if self.kind == "softmax" and self.hidden:
            yield "hidden", f"expected [] for a softmax model, which has no hidden layer, got {list(self.hidden)}"
        if self.kind != "softmax" and not self.hidden:
            yield "hidden", f'expected at least one hidden layer for kind = "{self.kind}"'
        if self.kind == "autoencoder":
            if self.classes:
                yield "classes", "expected none for an autoencoder, which gives back its inputs"
        elif self.kind == "regressor":
            if self.classes:
                yield "classes", "expected none for a regressor, which tells a number"
        elif len(self.classes) < 2:
            yield "classes", f'expected at least two labels for kind = "{self.kind}", got {len(self.classes)}'
        for label in sorted({label for label in self.classes if self.classes.count(label) > 1}):
            yield "classes", f'the label "{label}" stands there twice'
        most = self.windowing.remaining_most
        if self.kind == "regressor" and not most:
            yield "windowing.remaining_most", 'expected samples above 0 for kind = "regressor", got 0'
        if self.kind != "regressor" and most:
            yield "windowing.remaining_most", f'expected 0 for kind = "{self.kind}", got {most:g}'

    def check_target(self, rounds: RoundSettings) -> Iterator[tuple[str, str]]:
        """Mistakes in a target that this task's metric can never come to: all but a regressor's end at 1."""
        target = rounds.target_metric
        if self.kind != "regressor" and target is not None and target > 1:
            yield "rounds.target_metric", f'expected at most 1 for kind = "{self.kind}", got {target:g}'


@dataclass(frozen=True, kw_only=True)
class RoundSettings(Table):
    """When rounds open and close, who is asked, and when to stop."""

    min_gateways: Annotated[
        int, Meta(ge=1, le=10_000_000, description="Gateways that must be online before a round opens.")
    ] = 1
    first_gateways: Annotated[
        int,
        Meta(
            ge=0,
            le=10_000_000,
            description="Gateways that must be online before the very first round opens, which learns the scaling of"
            " features from them. 0: min_gateways.",
        ),
    ] = 0
    fraction: Annotated[
        float,
        Meta(
            gt=0,
            le=1,
            description="Share of the gateways online that is asked in a round; everyone's turn comes. How much each"
            " sends depends on it, so that another share makes another task, which starts anew.",
        ),
    ] = 1.0
    quorum_share: Annotated[
        float,
        Meta(
            gt=0,
            le=1,
            description="Share of the gateways asked whose updates a round needs. With fewer at closing time the"
            " model stays"
            " as it is, and what came in counts in the next round.",
        ),
    ] = 0.5
    quorum_gateways: Annotated[
        int, Meta(ge=1, le=10_000_000, description="Updates that a round needs in any case, whatever the share makes.")
    ] = 1
    closing_seconds: Annotated[
        float, Meta(gt=0, le=7 * 86_400, description="Seconds after which a round closes with what has come in.")
    ] = 120.0
    close_when_all_answered: Annotated[
        bool, Meta(description="Whether a round closes at once when every gateway asked has answered, yes or no.")
    ] = True
    interval_seconds: Annotated[
        float,
        Meta(
            ge=0,
            le=31 * 86_400,
            description="Seconds from one round's opening to the next one's. 0: one after another.",
        ),
    ] = 0.0
    retry_most_seconds: Annotated[
        float,
        Meta(
            ge=1,
            le=86_400,
            description="Longest pause after rounds that missed their quorum; it begins at a second and doubles with"
            " each.",
        ),
    ] = 300.0
    nightly: Annotated[
        str | None,
        Meta(
            pattern=r"^([01]\d|2[0-3]):[0-5]\d\Z",
            extra={"expected": 'a time of day such as "02:30"'},
            examples=["02:30"],
            description="Local time at which a night's series of rounds begins. Without it rounds go on all day.",
        ),
    ] = None
    rounds_per_night: Annotated[
        int, Meta(ge=1, le=100_000, description="Rounds of a night's series. No effect without nightly.")
    ] = 10
    new_windows_min: Annotated[
        int | None,
        Meta(
            ge=1,
            le=1 << 40,
            examples=[500],
            description="A round opens only when gateways have reported this many windows that were not there at"
            " the last one.",
        ),
    ] = None
    max_rounds: Annotated[int | None, Meta(ge=1, le=1 << 31, examples=[100], description="Stop after this round.")] = (
        None
    )
    target_metric: Annotated[
        float | None,
        Meta(
            ge=0,
            le=MAX_REMAINING,
            examples=[0.98],
            description="Stop when the task's metric reaches this value: macro-F1, at most 1, from below; of a"
            " regressor the root mean square error in samples, from above.",
        ),
    ] = None
    plateau_rounds: Annotated[
        int | None,
        Meta(
            ge=1,
            le=1 << 31,
            examples=[20],
            description="Stop when the best metric has not got better by plateau_delta within this many rounds.",
        ),
    ] = None
    plateau_delta: Annotated[
        float,
        Meta(
            ge=0,
            le=MAX_REMAINING,
            description="Least gain in the metric that counts. No effect without plateau_rounds.",
        ),
    ] = 0.001
    resume_on_new_data: Annotated[
        bool,
        Meta(
            description="Whether a run that stopped at its target or plateau goes on when gateways report new windows."
        ),
    ] = True
    server_momentum: Annotated[
        float,
        Meta(
            ge=0,
            lt=1,
            description="Momentum of the shared model (FedAvgM). Behind a sparse downlink it overshoots; below full"
            " participation (fraction under 1) it has been seen to break training, and is refused.",
        ),
    ] = 0.0
    set_aside_after: Annotated[
        int,
        Meta(
            ge=0,
            le=10_000,
            description="A gateway that was asked so often in a row, and stayed silent until closing time or sent what"
            " had to be refused, is not asked for a round, then for 2, for 4 and up to 64, until it answers again."
            " Restarting it ends its pause. 0: never.",
        ),
    ] = 5
    aggregation: Annotated[
        Literal["sync", "buffered"],
        Meta(
            description='"sync": a round waits for those whom it asked. "buffered" (FedBuff): everybody works at his'
            " own pace, and a new version is made of every buffer_updates updates, whichever rounds they belong to."
            " Changing this, late or max_staleness may make another task, which starts anew.",
        ),
    ] = "sync"
    buffer_updates: Annotated[
        int,
        Meta(
            ge=1,
            le=1_000_000,
            description='Updates of a version with aggregation = "buffered"; where fewer gateways are online, as'
            " many as those. It takes the place of the quorum.",
        ),
    ] = 10
    late: Annotated[
        Literal["refuse", "weigh"],
        Meta(
            description='What becomes of an update whose round has closed: "refuse", and its gateway keeps what it'
            ' learnt for its next one; or "weigh", and it counts in the round that is open then, with less weight.'
            ' With aggregation = "buffered" it is always weighed.',
        ),
    ] = "refuse"
    max_staleness: Annotated[
        int,
        Meta(
            ge=1,
            le=1000,
            description="Versions that the model may have gone on meanwhile for a late update to count still. No"
            " effect where late ones are refused.",
        ),
    ] = 20
    rule: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=64,
            description='How updates become one: "mean" is the weighted mean. Others come with packages that register'
            " one (see examples/trimmed_mean).",
        ),
    ] = "mean"
    server_learning_rate: Annotated[
        float, Meta(gt=0, le=100, description="Factor on the mean of the updates before the model takes it.")
    ] = 1.0
    staleness_exponent: Annotated[
        float,
        Meta(
            ge=0,
            le=10,
            description="An update that counts s rounds after its own, late or because that missed its quorum, weighs"
            " (1 + s) to the power of minus this. 0: as much as a fresh one.",
        ),
    ] = 0.5
    tags: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=32)], ...],
        Meta(
            max_length=16,
            examples=[("pump",)],
            description="Which gateways take part: those with at least one of these tags in their own settings. Empty:"
            " every gateway.",
        ),
    ] = ()

    @property
    def staleness(self) -> int:
        """Versions that an update's base may be behind; 0 where what comes late is refused."""
        return self.max_staleness if self.aggregation == "buffered" or self.late == "weigh" else 0

    @property
    def pace(self) -> Pace:
        """The schedule alone."""
        resume = self.new_windows_min or 1
        return Pace(
            interval_seconds=self.interval_seconds,
            nightly=None if self.nightly is None else time.fromisoformat(self.nightly),
            rounds_per_night=self.rounds_per_night,
            retry_most_seconds=self.retry_most_seconds,
            max_rounds=self.max_rounds or 0,
            target_metric=self.target_metric,
            plateau_rounds=self.plateau_rounds or 0,
            plateau_delta=self.plateau_delta,
            new_windows_min=self.new_windows_min or 0,
            resume_windows=resume if self.resume_on_new_data else 0,
        )

    def check(self) -> Iterator[tuple[str, str]]:
        if self.server_momentum > 0 and self.fraction < 1:
            yield (
                "server_momentum",
                f"expected 0 while fraction is below 1 ({self.fraction:g}): momentum breaks training there",
            )
        if self.aggregation == "buffered" and self.fraction < 1:
            yield (
                "fraction",
                f'expected 1 with aggregation = "buffered", which asks everybody, got {self.fraction:g}',
            )
        try:
            rule_named(self.rule)
        except ValueError as error:
            yield "rule", str(error)


@dataclass(frozen=True, kw_only=True)
class PersonalSettings(Table):
    """Whether each gateway makes a model of its own out of the released one. Changing this starts nothing anew."""

    mode: Annotated[
        Literal["none", "head", "copy"],
        Meta(
            description='"none": every gateway scores with the released version. "head": each gateway also fits the'
            ' last layer to its own windows, on the shared ones before it; "copy": all layers. What it fits stays on'
            " the gateway, and scores there only where it is better on held-out windows; the rounds go on as without."
        ),
    ] = "none"
    margin: Annotated[
        float,
        Meta(
            gt=0,
            lt=1,
            description="How much better it must be: 0.02 is macro-F1 (or AUC) higher by 0.02; of a regressor, an error"
            " smaller by 2 %. No class may be recognised less often by more than this.",
        ),
    ] = 0.02
    epochs: Annotated[
        int,
        Meta(ge=1, le=1000, description="Passes over its own windows that a gateway makes for it, once a release."),
    ] = 10

    @property
    def policy(self) -> PersonalPolicy | None:
        """As gateways hear it."""
        if self.mode == "none":
            return None
        return PersonalPolicy(mode=self.mode, margin=self.margin, epochs=self.epochs)


@dataclass(frozen=True, kw_only=True)
class LimitSettings(Table):
    """What the coordinator refuses, and how it sends."""

    max_norm: Annotated[
        float, Meta(gt=0, le=1e9, description="Length (L2 norm) of a decoded update above which it is refused.")
    ] = 1_000.0
    norm_factor: Annotated[
        float,
        Meta(
            ge=0,
            le=1e6,
            description="An update is also refused when it is so many times as long as the largest median that 100"
            " accepted ones have had; once 20 were, from 3 gateways. 0: never. docs/robustness.md has what honest ones"
            " come to.",
        ),
    ] = 20.0
    flagged: Annotated[
        Literal["report", "set_aside"],
        Meta(
            description="What becomes of a gateway whose updates are refused again and again, or point away from those"
            ' of the others: "report" names it in `fedmq status` and in the report; "set_aside" also draws it no more'
            " and refuses what it sends, until `fedmq task readmit`. docs/robustness.md says what the rules can tell"
            " and what they cannot."
        ),
    ] = "report"
    messages_per_second: Annotated[
        float,
        Meta(
            gt=0,
            le=1e6,
            description="Messages of one gateway that are read within a second, for long. More are dropped unread, and"
            " counted in the report.",
        ),
    ] = 200.0
    messages_burst: Annotated[
        int,
        Meta(
            ge=10,
            le=1_000_000,
            description="Messages of one gateway that are read at once, after it was still for a while: an update in"
            " several hundred chunks, and what goes with it.",
        ),
    ] = 2_000
    births_per_minute: Annotated[
        float,
        Meta(
            ge=1,
            le=1e6,
            description="Births and questions for a model of one gateway that are answered within a minute, for long;"
            " and of each so many at once.",
        ),
    ] = 60.0
    served_bytes_per_minute: Annotated[
        int,
        Meta(
            ge=1024,
            le=1 << 40,
            description="Bytes that one gateway is sent because it asks, within a minute, for long: welcomes, models,"
            " bundles, chunks. At once it gets as much, or four times all there is to fetch where that is more.",
        ),
    ] = 4 * 1024 * 1024
    chunk_bytes: Annotated[
        int,
        Meta(
            ge=1024,
            le=2 * CHUNK_BYTES,
            description="Bytes of one message of a transfer that needs several. AWS IoT Core takes 128 KB a"
            " message, Azure"
            " Event Grid 64 KB in flight.",
        ),
    ] = CHUNK_BYTES
    catch_up_gather_seconds: Annotated[
        float,
        Meta(
            ge=0,
            le=3600,
            description="Seconds that the coordinator gathers requests for missed versions before it answers all at"
            " once.",
        ),
    ] = 1.0
    reconnects_per_second: Annotated[
        int,
        Meta(
            ge=1,
            le=1_000_000,
            description="Gateways that the broker can take in within a second. When a larger fleet comes back all at"
            " once, as after a restart of the broker, its gateways spread out over as many seconds as that makes.",
        ),
    ] = 200
    head_hours: Annotated[
        float,
        Meta(
            gt=0,
            le=8760,
            description="Where messages are signed: hours without a round after which the state of affairs is signed"
            " and said again, so that gateways know that nothing is kept from them. Well below their stale_hours.",
        ),
    ] = 6.0
    keep_payloads: Annotated[
        bool,
        Meta(
            description="Whether the updates of single gateways are kept in the ledger. Without, each is erased with"
            " the version that contains it; what is kept lets people look into what one site has sent."
        ),
    ] = False
    keep_rounds: Annotated[
        int,
        Meta(
            ge=100,
            le=1 << 40,
            description="Newest rounds, of all tasks together, whose answers stay in the ledger one by one. Those of"
            " older rounds are summed up, which keeps the report as it is, but for single answers and the median of"
            " one gateway's bytes.",
        ),
    ] = 10_000


_ROLE = Meta(
    pattern=r"^@?[A-Za-z0-9_][A-Za-z0-9._-]{0,62}\$?\Z",
    extra={"expected": "the name of a user, or of a group after an @"},
)


@dataclass(frozen=True, kw_only=True)
class ControlSettings(Table):
    """Who may look at the coordinator and give it orders, through a socket on this machine. Who asks is what the kernel
    says. Changing this starts nothing anew."""

    enabled: Annotated[
        bool,
        Meta(description="Whether there is a socket. Without one, only who may write to state_dir gives orders."),
    ] = True
    socket: Annotated[
        Path | None,
        Meta(
            examples=["/run/fedmq/control.sock"],
            description="Where the socket lies, in place of control.sock in state_dir, which others cannot reach as"
            " long as that folder is for this program's user alone.",
        ),
    ] = None
    operators: Annotated[
        tuple[Annotated[str, _ROLE], ...],
        Meta(
            max_length=64,
            examples=[("anna", "@plant-operators")],
            description="Who gives orders (fedmq task), and looks: users, and groups after an @. This program's own"
            " user and root always may.",
        ),
    ] = ()
    viewers: Annotated[
        tuple[Annotated[str, _ROLE], ...],
        Meta(
            max_length=64,
            examples=[("@maintenance",)],
            description="Who only looks (fedmq status, report, task list).",
        ),
    ] = ()


@dataclass(frozen=True, kw_only=True)
class PublishSettings(Table):
    """What is told to people's tools at the broker, such as Telegraf and Node-RED: see docs/metrics.md."""

    rounds: Annotated[
        bool, Meta(description="Whether each closed round is published on down/report: a JSON of 400 bytes, retained.")
    ] = True
    fleet_seconds: Annotated[
        float | None,
        Meta(
            ge=1,
            le=86_400,
            examples=[60],
            description="How often the state of the fleet is published on down/fleet: a JSON of some 500 bytes and 200"
            " for each task more, retained. Without it, never.",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class FleetMetricsSettings(MetricsSettings):
    """Figures for Prometheus: see docs/metrics.md. They need the extra "metrics"."""

    gateways_most: Annotated[
        int,
        Meta(
            ge=0,
            le=100_000,
            description="Gateways that have series of their own, by their place in the roster. Each costs Prometheus"
            " some ten. The others are in every sum, and counted as fedmq_gateways_left_out.",
        ),
    ] = 200


@dataclass(frozen=True, kw_only=True)
class MoneySettings(Table):
    """What the report and the dashboard reckon in money with. Changing this starts nothing anew."""

    per_gb: Annotated[
        float,
        Meta(
            ge=0,
            le=MOST_PER_GB,
            description="Price of a gigabyte (10^9 bytes) of the gateways' mobile data, up or down alike.",
        ),
    ] = DEFAULT.per_gb
    currency: Annotated[
        str,
        Meta(
            pattern=CURRENCY,
            extra={"expected": "three capital letters, such as EUR"},
            description="What the price is in: a code of ISO 4217. Nothing is converted.",
        ),
    ] = DEFAULT.currency

    @property
    def price(self) -> Price:
        return Price(per_gb=self.per_gb, currency=self.currency)


@dataclass(frozen=True, kw_only=True)
class HttpSettings(Table):
    """The dashboard: a web page with the rounds as they go, what they save, and the fleet. Changing this starts nothing
    anew."""

    listen: Annotated[
        str | None,
        Meta(
            max_length=300,
            examples=["127.0.0.1:8080"],
            description="Address and port that it listens on; a port alone is on 127.0.0.1. Beyond this machine it"
            " takes a token_file, or behind_proxy = true. Without this key there is no dashboard.",
        ),
    ] = None
    token_file: Annotated[
        Path | None,
        Meta(
            examples=["/etc/fedmq/dashboard.token"],
            extra={"credential": True},
            description="File whose first line, of 24 characters or more, lets people look; only this program's user"
            " may read it (chmod 600). `openssl rand -hex 32` makes a good one. Without it everybody on this machine"
            " may look, and behind a proxy everybody whom that lets through.",
        ),
    ] = None
    operator_token_file: Annotated[
        Path | None,
        Meta(
            examples=["/etc/fedmq/dashboard-operator.token"],
            extra={"credential": True},
            description="The same with a token that also lets people give orders, such as the verdict on an alert."
            " Without it the page shows things and changes nothing.",
        ),
    ] = None
    certificate_file: Annotated[
        Path | None,
        Meta(
            examples=["/etc/fedmq/dashboard.crt"],
            extra={"credential": True},
            description="PEM file of a certificate, with those that lead to its CA: the dashboard then speaks HTTPS.",
        ),
    ] = None
    key_file: Annotated[
        Path | None,
        Meta(
            examples=["/etc/fedmq/dashboard.key"],
            extra={"credential": True},
            description="PEM file of the key of certificate_file, which only this program's user may read (chmod 600).",
        ),
    ] = None
    behind_proxy: Annotated[
        bool,
        Meta(
            description="Whether a reverse proxy stands in front, speaks HTTPS to browsers, and is the only one that"
            " reaches the port. It is then believed about who asks (X-Forwarded-For) and by which name, and cookies"
            " are for HTTPS alone."
        ),
    ] = False

    @property
    def address(self) -> tuple[str, int] | None:
        """Host and port; None where there is no dashboard."""
        return None if self.listen is None else parse_listen(self.listen)

    def check(self) -> Iterator[tuple[str, str]]:
        if (self.certificate_file is None) != (self.key_file is None):
            missing, given = (
                ("key_file", "certificate_file") if self.key_file is None else ("certificate_file", "key_file")
            )
            yield missing, f"required where there is a {given}"
        if self.listen is None:
            return
        try:
            host, _ = parse_listen(self.listen)
        except ValueError as error:
            yield "listen", str(error)
            return
        if not is_loopback(host) and self.token_file is None and not self.behind_proxy:
            yield (
                "listen",
                f"{host} can be reached from other machines: name a token_file, or say behind_proxy = true where a"
                " proxy asks people who they are",
            )


def parse_listen(text: str) -> tuple[str, int]:
    """`8080`, `127.0.0.1:8080`, `[::1]:8080` or `host:8080`. Raises ValueError."""
    host, _, port = text.rpartition(":")
    if not (port.isascii() and port.isdecimal()) or int(port) > 65_535 or (":" in host and not host.startswith("[")):
        raise ValueError(f"expected a port, HOST:PORT or [ADDRESS]:PORT, got {text[:60]!r}")
    return (host.removeprefix("[").removesuffix("]") or "127.0.0.1"), int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it. A name other than localhost may mean anything, and does not."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True, kw_only=True)
class MoreTaskSettings(Table):
    """Settings of one more task on the same fleet. The coordinator's own settings name this file in `more_tasks`."""

    test_data: Annotated[
        Path | None,
        Meta(
            examples=["/var/lib/fedmq/test-data"],
            description="Folder of labelled recordings to measure this task's model with: one folder for each label.",
        ),
    ] = None
    task: TaskSettings
    rounds: RoundSettings = field(default_factory=RoundSettings)
    personal: PersonalSettings = field(default_factory=PersonalSettings)

    def check(self) -> Iterator[tuple[str, str]]:
        yield from self.task.check_target(self.rounds)


@dataclass(frozen=True, kw_only=True)
class FleetSettings(Table):
    """What gateways with a watch tell of their machines, and what the others get to know of it."""

    limits: Annotated[
        bool,
        Meta(
            description="Whether limits are made of what is normal at many gateways, for machines whose own are still"
            " being learnt. They are medians over gateways, by kind of machine, band of speed and load, and measure."
        ),
    ] = True
    min_gateways: Annotated[
        int,
        Meta(ge=3, le=1_000_000, description="Gateways that must have learnt it. Of n, fewer than n/2 may lie."),
    ] = 3
    merge_minutes: Annotated[
        float, Meta(ge=0, le=10_080, description="Minutes between two such merges, where anything new has come.")
    ] = 10.0


@dataclass(frozen=True, kw_only=True)
class DriftSettings(Table):
    """When many machines of a kind, or a measure over all of them, are not distributed as they were, and what is done
    then. No limit moves for it."""

    retrain: Annotated[
        Literal["propose", "open"],
        Meta(
            description='"propose": fedmq status says so, and somebody orders it (fedmq task retrain). "open": a run'
            " that rests goes on at once, by its schedule."
        ),
    ] = "propose"
    share: Annotated[
        float, Meta(gt=0, le=1, description="Share of the machines of a kind that must have drifted, each by itself.")
    ] = 0.3
    index: Annotated[
        float,
        Meta(
            gt=0,
            le=10,
            description="Or: population stability index that a measure must exceed over all machines of a kind"
            " together, each held against its own normal.",
        ),
    ] = 0.1
    min_gateways: Annotated[
        int, Meta(ge=2, le=1_000_000, description="Gateways that it takes: fewer can bring about neither.")
    ] = 2
    hours: Annotated[float, Meta(ge=0, le=8760, description="Hours that it must have lasted.")] = 24.0


@dataclass(frozen=True, kw_only=True)
class CoordinatorSettings(Table):
    """Settings of the fedmq coordinator. Start it with: fedmq coordinator --config FILE"""

    name: Annotated[
        str,
        Meta(description="Name of the coordinator at the broker; with client certificates it is the CN."),
    ] = "coordinator"
    state_dir: Annotated[
        Path,
        Meta(
            examples=["/var/lib/fedmq/coordinator"],
            description="Folder of model versions, accepted updates and the ledger. A restart goes on from there.",
        ),
    ]
    test_data: Annotated[
        Path | None,
        Meta(
            examples=["/var/lib/fedmq/test-data"],
            description="Folder of labelled recordings to measure the model with: one folder for each label."
            " Without it the"
            " gateways' own held-out metrics are averaged.",
        ),
    ] = None
    more_tasks: Annotated[
        tuple[str, ...],
        Meta(
            max_length=MAX_TASKS - 1,
            examples=[("pumps.toml",)],
            extra={"paths": True},
            description="Files of further tasks on the same fleet, each with a [task] and a [rounds] of its own. They"
            " learn side by side with the one below. Relative paths start where this file is.",
        ),
    ] = ()
    revoked_file: Annotated[
        Path | None,
        Meta(
            examples=["/etc/mosquitto/tls/revoked.crl"],
            description="With connection.identity_dir: the list of revoked certificates, read again when it changes;"
            " most often the broker's. Without it: revoked.crl of the identity folder, where there is one.",
        ),
    ] = None
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
    connection: ConnectionSettings = field(default_factory=ConnectionSettings)
    task: TaskSettings
    rounds: RoundSettings = field(default_factory=RoundSettings)
    personal: PersonalSettings = field(default_factory=PersonalSettings)
    limits: LimitSettings = field(default_factory=LimitSettings)
    fleet: FleetSettings = field(default_factory=FleetSettings)
    drift: DriftSettings = field(default_factory=DriftSettings)
    control: ControlSettings = field(default_factory=ControlSettings)
    metrics: FleetMetricsSettings = field(default_factory=FleetMetricsSettings)
    publish: PublishSettings = field(default_factory=PublishSettings)
    money: MoneySettings = field(default_factory=MoneySettings)
    http: HttpSettings = field(default_factory=HttpSettings)

    def check(self) -> Iterator[tuple[str, str]]:
        yield from named("name", self.name)
        yield from self.task.check_target(self.rounds)
