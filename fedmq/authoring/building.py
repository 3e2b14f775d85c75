"""From a PyTorch module to a bundle.

Owns what a bundle says of a module besides its graphs: how its parameters are drawn at the start, which of them are
trained, and the recipe. A federation starts either from the module's own values, which then lie in the bundle, or from
a seed that everybody draws from, so that initial parameters are never sent: a parameter whose values are all alike
starts there, others are drawn evenly as far as the module's own values reach, which is how PyTorch draws most layers.
What a module has learnt before is then not kept, and a remark says so.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

import numpy as np
from fedmq_edge_node.samples import PREPARED, feature_count
from fedmq_models.bundle import Bundle, Coding, Manifest, Parameter
from fedmq_protocol.task import Block, Windowing
from numpy.typing import NDArray

from fedmq.authoring.conversion import AuthoringError, to_graph

if TYPE_CHECKING:
    from fedmq_models.graph import Graph
    from torch import Tensor, nn

__all__ = ["LOSSES", "Initial", "Loss", "Preprocess", "build", "load_function", "load_module"]

Preprocess: TypeAlias = "Callable[[Tensor], Tensor]"

Loss = Literal["cross_entropy", "squared_error", "reconstruction"]
Initial = Literal["module", "seed"]
LOSSES: tuple[Loss, ...] = ("cross_entropy", "squared_error", "reconstruction")

DRAWN = (
    "initial parameters are drawn from the task's seed, as widely as the module's own: what it had learnt is not kept"
)

TURNED = "windows come as samples x channels, and are turned before the module, which takes channels x samples"


def build(
    module: nn.Module,
    *,
    name: str,
    loss: Loss,
    example: NDArray[np.float32],
    batch: int = 32,
    outputs: int | None = None,
    learning_rate: float = 0.05,
    momentum: float = 0.0,
    local_epochs: int = 1,
    initial: Initial = "module",
    optimizer: Literal["sgd", "adam"] = "sgd",
    proximal: float = 0.0,
    clip_norm: float = 10.0,
    time_budget_seconds: float = 0.0,
    windowing: Windowing | None = None,
    coding: Coding | None = None,
    min_windows: int | None = None,
    preprocess: Preprocess | None = None,
) -> Bundle:
    """The module's training step and inference as a bundle; the module stays as it was.

    example: `(n, …)` float32, windows as the module takes them. outputs: classes of `cross_entropy`, numbers of
    `squared_error`; by default what the module gives. initial: the federation starts from the parameters as the
    module holds them, 4 bytes each in the bundle, or from what the task's seed draws as widely.

    windowing: how recordings become such windows; of several raw channels a window comes as samples x channels, and one
    that the module takes as channels x samples is turned before it. All from `learning_rate` on but `initial` is what
    you recommend: the coordinator's settings may say otherwise.

    preprocess: makes the module's input of raw windows `(n, channels, samples)`; `example` holds such windows then.

    Raises AuthoringError for what cannot be traced, and for windows that the module does not take.
    """
    import torch

    from fedmq.authoring.tracing import trace

    example = np.ascontiguousarray(example, dtype=np.float32)
    remarks: list[str] = []
    prepare = None
    if preprocess is not None:
        windowing, prepare, example = _prepare(preprocess, example, windowing)
    elif windowing is not None:
        _check_windowing(windowing, example.shape[1:])
        if windowing.channels > 1 and example.shape[1:] == (windowing.channels, windowing.samples):
            module = _turned(module, back=loss == "reconstruction")
            example = np.ascontiguousarray(example.transpose(0, 2, 1))
            remarks.append(TURNED)
    if outputs is None:
        was = module.training
        with torch.no_grad():
            out = module.eval()(torch.from_numpy(example[:1]))
        module.train(was)
        outputs = int(np.prod(out.shape[1:]))
    width: dict[str, Any] = {"cross_entropy": {"classes": outputs}, "squared_error": {"outputs": outputs}}.get(loss, {})
    traced = trace(module, loss="mse" if loss == "squared_error" else loss, example_x=example, batch=batch, **width)
    parameters = tuple(
        Parameter(
            name=part.name,
            block=_block(traced.flat[part.offset : part.offset + int(np.prod(part.shape))], part.shape),
        )
        for part in traced.parameters
    )
    return Bundle(
        manifest=Manifest(
            name=name,
            inputs=example.shape[1:],
            outputs=outputs,
            loss=loss,
            batch=batch,
            parameters=parameters,
            noise=traced.noise,
            learning_rate=learning_rate,
            momentum=momentum,
            local_epochs=local_epochs,
            made_with=f"torch {torch.__version__}",
            remarks=(*traced.remarks, *remarks, *(() if initial == "module" else (DRAWN,))),
            optimizer=optimizer,
            proximal=proximal,
            clip_norm=clip_norm,
            time_budget_seconds=time_budget_seconds,
            windowing=windowing,
            coding=coding or Coding(),
            min_windows=min_windows,
        ),
        grad=to_graph(traced.grad),
        infer=to_graph(traced.infer),
        infer_one=to_graph(traced.infer_one),
        initial=traced.flat.astype("<f4").tobytes() if initial == "module" else b"",
        prepare=prepare,
    )


def _prepare(
    preprocess: Preprocess, windows: NDArray[np.float32], windowing: Windowing | None
) -> tuple[Windowing, Graph, NDArray[np.float32]]:
    """How recordings are cut, the graph that a gateway runs on each window, and what it makes of the first one."""
    from fedmq.authoring.tracing import trace_preparation

    if windows.ndim != 3:
        raise AuthoringError(f"expected an example of windows (n, channels, samples), got {windows.shape}")
    channels, samples = windows.shape[1:]
    if windowing is None:
        windowing = Windowing(features=PREPARED, channels=channels, samples=samples, hop=max(1, samples // 2))
    if (windowing.features, windowing.channels, windowing.samples) != (PREPARED, channels, samples):
        raise AuthoringError(
            f"expected the feature set {PREPARED!r} of {channels} channels and {samples:,} samples, as the example has "
            f"them, got {windowing.features!r} of {windowing.channels} and {windowing.samples:,}"
        )
    model, made = trace_preparation(preprocess, windows)
    return windowing, to_graph(model), made


def _turned(module: nn.Module, *, back: bool) -> nn.Module:
    """A copy that takes `(n, samples, channels)` in place of `(n, channels, samples)`, and gives it `back` so."""
    turned = copy.deepcopy(module)
    turned.register_forward_pre_hook(lambda _, given: (given[0].transpose(1, 2),))
    if back:
        turned.register_forward_hook(lambda _, given, output: output.transpose(1, 2))
    return turned


def _check_windowing(windowing: Windowing, shape: tuple[int, ...]) -> None:
    made, taken = feature_count(windowing), int(np.prod(shape))
    if made != taken:
        raise AuthoringError(
            f"expected a module that takes the {made:,} features which a window becomes ({windowing.features} of "
            f"{windowing.samples:,} samples and {windowing.channels:,} channels), got one of "
            f"{' x '.join(map(str, shape))} = {taken:,}"
        )


def _block(values: NDArray[np.float32], shape: tuple[int, ...]) -> Block:
    """How a parameter starts."""
    shape = tuple(shape) or (1,)
    if (values == values[0]).all():
        return Block(shape=shape, filled=float(values[0]))
    return Block(shape=shape, limit=float(np.abs(values).max()))


def load_module(where: str) -> nn.Module:
    """`FILE.py:NAME`, a class that needs no arguments, a function that gives a module, or a module. Runs that file.

    Raises AuthoringError.
    """
    import torch

    model = _load(where)
    try:
        made = model if isinstance(model, torch.nn.Module) else model()
    except TypeError as error:
        raise AuthoringError(f"{where}: expected a class or function that needs no arguments: {error}") from None
    if not isinstance(made, torch.nn.Module):
        raise AuthoringError(f"{where}: expected a torch.nn.Module, got {type(made).__name__}")
    return made


def load_function(where: str) -> Preprocess:
    """`FILE.py:NAME`, a function of a tensor, a module, or a module's class. Runs that file. Raises AuthoringError."""
    found = _load(where)
    function: Any = found() if isinstance(found, type) else found
    if not callable(function):
        raise AuthoringError(f"{where}: expected a function of a tensor, got {type(function).__name__}")
    return cast("Preprocess", function)


def _load(where: str) -> Any:
    import torch

    file, colon, name = where.rpartition(":")
    path = Path(file)
    if not colon or not path.is_file():
        raise AuthoringError(f"expected FILE.py:NAME with a file that is there, got {where!r}")
    found = importlib.util.spec_from_file_location(path.stem, path)
    if found is None or found.loader is None:
        raise AuthoringError(f"{path}: expected a Python file")
    loaded = importlib.util.module_from_spec(found)
    found.loader.exec_module(loaded)
    model = getattr(loaded, name, None)
    if model is None:
        there = sorted(key for key, value in vars(loaded).items() if isinstance(value, type | torch.nn.Module))
        raise AuthoringError(f"{path}: expected something named {name!r}, found {', '.join(there) or 'no model'}")
    return model
