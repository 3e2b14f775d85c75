"""From wishes to a task: `task_settings` fills in what was not wished for, `task_of` makes of it what travels.

The numbers of the recipe are the defaults of the settings themselves (`fedmq_coordinator.settings`,
`fedmq_protocol.task`), but for kinds that have their own in `RECIPES`; `bench/recipe.py` is what they were measured
with. Refuses to know where the data came from.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import msgspec
from fedmq_coordinator.density import densities
from fedmq_coordinator.settings import CodecSettings, RecipeSettings, RoundSettings, TaskSettings, WindowingSettings
from fedmq_edge_node.samples import RAW, feature_count
from fedmq_models.bundle import Bundle, Manifest, from_bytes, start_of
from fedmq_protocol.task import Codec, ModelSpec, Recipe, Task, Windowing, model_digest, short

__all__ = [
    "CODECS",
    "HIDDEN",
    "RECIPES",
    "SERVER_MOMENTUM",
    "Kind",
    "advice",
    "bundle_windowing",
    "own_values",
    "raw_windowing",
    "round_settings",
    "task_of",
    "task_settings",
]

Kind = Literal["softmax", "mlp", "autoencoder", "regressor", "cnn1d", "graph"]

HIDDEN: dict[str, tuple[int, ...]] = {
    "softmax": (),
    "mlp": (32,),
    "autoencoder": (12, 6, 12),
    "regressor": (32,),
    "cnn1d": (16, 32, 64),
    "graph": (),
}

RECIPES: dict[str, RecipeSettings] = {
    "cnn1d": RecipeSettings(learning_rate=0.02, local_epochs=1, batch_size=32),
    "regressor": RecipeSettings(optimizer="adam", learning_rate=0.0002, batch_size=32),
}
"""Of kinds that the default does not suit. A squared error over long raw windows is steep along what their samples have
in common and flat elsewhere: plain descent either diverges or takes hundreds of rounds."""

KIND_CODECS: dict[str, CodecSettings] = {
    "cnn1d": CodecSettings(up_bits=4, down_bits=4, least_density=0.3, most_density=0.3)
}
"""Of kinds that the default does not suit: what a convolution has learnt is spread over all of its kernels, and what a
sparser downlink holds back is pushed on by the server's momentum until it overshoots."""

SERVER_MOMENTUM: dict[str, float] = {"cnn1d": 0.9}
"""Of kinds that are far slower without: each gateway pulls towards the few faults that it has seen, and what they agree
on is small beside it."""

CODECS: dict[str, CodecSettings] = {
    "sparse": CodecSettings(),
    "dense": CodecSettings(kind="dense"),
    "8bit": CodecSettings(up_bits=8, down_bits=8, least_density=1.0, most_density=1.0),
    "4bit": CodecSettings(up_bits=4, down_bits=4),
}
"""Names for the command line. `dense` is float32 both ways: plain FedAvg, the yardstick."""

DENSE_GRID_BITS = 24
"""With float32 both ways the grid must not be what limits it."""

RAW_SAMPLES = 1024
"""Of a window that a CNN learns from: twice as many windows as of 2,048 samples, and as good."""


def task_settings(
    *,
    name: str,
    kind: Kind = "mlp",
    hidden: tuple[int, ...] | None = None,
    classes: tuple[str, ...],
    bundle: Path | None = None,
    manifest: Manifest | None = None,
    windowing: WindowingSettings | None = None,
    codec: str = "sparse",
    dial: float | None = None,
    seed: int = 0,
    local_epochs: int | None = None,
    learning_rate: float | None = None,
    momentum: float | None = None,
    batch_size: int | None = None,
) -> TaskSettings:
    """The settings that an engineer would write; with a bundle's `manifest`, by its author's advice.

    Raises ValueError for a codec without a name, SettingsError else.
    """
    if codec not in CODECS:
        raise ValueError(f"codec: expected {', '.join(CODECS)}, got {codec!r}")
    wishes: dict[str, Any] = {
        "local_epochs": local_epochs,
        "learning_rate": learning_rate,
        "momentum": momentum,
        "batch_size": batch_size,
    }
    given = {name: value for name, value in wishes.items() if value is not None}
    own = KIND_CODECS.get(kind, CODECS[codec]) if codec == "sparse" and dial is None else CODECS[codec]
    recipe = RECIPES.get(kind, RecipeSettings())
    if manifest is not None:
        advised = advice(manifest)
        recipe = replace(recipe, **advised["recipe"])
        if codec == "sparse" and dial is None:
            own = replace(own, **advised["codec"])
    return TaskSettings(
        name=name,
        kind=kind,
        bundle=bundle,
        hidden=HIDDEN[kind] if hidden is None else hidden,
        classes=() if kind in ("autoencoder", "regressor") else classes,
        seed=seed,
        windowing=windowing or WindowingSettings(),
        recipe=replace(recipe, **given),
        codec=own if dial is None else replace(own, dial=dial),
    )


def own_values(kind: Kind, *, fraction: float) -> dict[str, Any]:
    """What suits a built-in kind better than the settings' defaults, as keys of the coordinator's file; `fraction` is
    `rounds.fraction`: below 1 momentum breaks training."""
    task: dict[str, Any] = {"hidden": list(HIDDEN[kind])}
    if kind in RECIPES:
        task["recipe"] = asdict(RECIPES[kind])
    if kind in KIND_CODECS:
        task["codec"] = asdict(KIND_CODECS[kind])
    if kind == "cnn1d":
        task["windowing"] = {"features": RAW, "scaling": "none", "samples": RAW_SAMPLES, "hop": RAW_SAMPLES // 2}
    momentum = SERVER_MOMENTUM.get(kind, 0.0) if fraction == 1 else 0.0
    return {"task": task, "rounds": {"server_momentum": momentum}}


def advice(manifest: Manifest) -> dict[str, Any]:
    """What a bundle's author recommends, as the keys of the coordinator's `[task]` and its tables."""
    windowing = {} if manifest.windowing is None else msgspec.structs.asdict(manifest.windowing)
    coding = {key: value for key, value in msgspec.structs.asdict(manifest.coding).items() if value is not None}
    wished: dict[str, Any] = {} if manifest.min_windows is None else {"min_windows": manifest.min_windows}
    return wished | {
        "windowing": windowing,
        "recipe": msgspec.structs.asdict(manifest.recipe),
        "codec": coding,
    }


def bundle_windowing(manifest: Manifest, windowing: WindowingSettings) -> WindowingSettings:
    """As a bundle's author has it, on these recordings; by default as many raw samples as its model takes."""
    wished = manifest.windowing
    if wished is None:
        return raw_windowing(windowing, math.prod(manifest.inputs))
    cut = {name: getattr(wished, name) for name in ("samples", "hop", "features", "channels", "scaling")}
    return replace(windowing, **cut, remaining_most=wished.remaining_most or windowing.remaining_most)


def raw_windowing(windowing: WindowingSettings, inputs: int | None = None) -> WindowingSettings:
    """The same recordings for a model that takes them raw: in windows of its `inputs`, by default of a CNN's."""
    samples = RAW_SAMPLES if inputs is None else max(1, inputs // windowing.channels)
    hop = min(RAW_SAMPLES // 2, samples)
    return replace(windowing, features=RAW, scaling="none", samples=samples, hop=hop)


def round_settings(kind: Kind, *, gateways: int, rounds: int, closing_seconds: float = 30.0) -> RoundSettings:
    """Of a run on one machine, from beginning to end: so many rounds, one after another, that ask everybody."""
    return RoundSettings(
        min_gateways=max(1, gateways // 2),
        first_gateways=gateways,
        interval_seconds=0.0,
        closing_seconds=closing_seconds,
        max_rounds=rounds,
        resume_on_new_data=False,
        server_momentum=SERVER_MOMENTUM.get(kind, 0.0),
    )


def task_of(
    settings: TaskSettings,
    rounds: RoundSettings | None = None,
    *,
    max_norm: float = 1000.0,
    held_out_reports: bool = True,
    bundle: bytes = b"",
) -> Task:
    """What travels to the gateways; `bundle` is that of a `graph`.

    Raises ValueError where windows cannot become features as they are wished for, or do not fit the bundle.
    """
    rounds = rounds or RoundSettings()
    windowing, recipe = settings.windowing, settings.recipe
    windows = Windowing(
        samples=windowing.samples,
        hop=windowing.hop,
        sampling_rate_hz=windowing.sampling_rate_hz,
        features=windowing.features,
        held_out=windowing.held_out,
        channels=windowing.channels,
        scaling=windowing.scaling,
        remaining_most=windowing.remaining_most,
    )
    opened = from_bytes(bundle) if settings.kind == "graph" else None
    prepared = None if opened is None or opened.prepare is None else math.prod(opened.manifest.inputs)
    inputs = feature_count(windows, prepared)
    if opened is not None:
        model = _bundled(settings, opened, bundle, inputs)
        batch_size = opened.manifest.batch
    else:
        outputs = {"autoencoder": inputs, "regressor": 1}.get(settings.kind, len(settings.classes))
        model, batch_size = ModelSpec(kind=settings.kind, sizes=(inputs, *settings.hidden, outputs)), recipe.batch_size
    codec = settings.codec
    dense = codec.kind == "dense"
    grid_bits = DENSE_GRID_BITS if dense else settings.grid_bits
    shares = densities(
        dial=codec.dial,
        parameters=model.parameters,
        objective=model.objective,
        fraction=rounds.fraction,
        least=codec.least_density,
        most=codec.most_density,
        min_coordinates=codec.min_coordinates,
    )

    def direction(bits: Literal[1, 4, 8], density: float, gain: float) -> Codec:
        if dense:
            return Codec(bits=32, density=1.0)
        return Codec(bits=bits, density=density, gain=gain, most=codec.most_density)

    up = direction(codec.up_bits, shares.up, codec.up_gain)
    down = direction(codec.down_bits, shares.down, codec.down_gain)
    fixed = dense or codec.least_density == codec.most_density
    return Task(
        name=settings.name,
        model=model,
        classes=settings.classes,
        windowing=windows,
        recipe=Recipe(
            learning_rate=recipe.learning_rate,
            momentum=recipe.momentum,
            local_epochs=recipe.local_epochs,
            batch_size=batch_size,
            proximal=recipe.proximal,
            clip_norm=recipe.clip_norm,
            optimizer=recipe.optimizer,
            time_budget_seconds=recipe.time_budget_seconds,
        ),
        up=up,
        down=down,
        grid_bits=grid_bits,
        seed=settings.seed,
        initial=short(model_digest(start_of(model, settings.seed, grid_bits, opened))),
        min_windows=settings.min_windows,
        max_norm=max_norm,
        held_out_reports=held_out_reports,
        anomaly_label=settings.anomaly_label,
        levels=0 if fixed else max(up.highest, down.highest),
        staleness=rounds.staleness,
    )


def _bundled(settings: TaskSettings, bundle: Bundle, data: bytes, inputs: int) -> ModelSpec:
    """The model as the task names it; `data` is the bundle's file."""
    model = bundle.model(hashlib.sha256(data).digest(), len(data))
    if model.sizes[0] != inputs:
        raise ValueError(
            f"task.bundle: expected a model of {inputs:,} inputs, as task.windowing makes of a window, got one"
            f" of {model.sizes[0]:,} {list(bundle.manifest.inputs)}"
        )
    if model.objective == "classify" and model.sizes[1] != len(settings.classes):
        raise ValueError(f"task.bundle: expected a model of {len(settings.classes)} classes, got {model.sizes[1]}")
    return model
