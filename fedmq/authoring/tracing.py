"""From a PyTorch module to a traced training step: standard ONNX operators, static shapes, one flat vector of weights.

Owns which operators may remain, how what ONNX has no operator for (backward passes, dropout, pooling, recurrence) is
said with those that it has, and the check of the gradients that come out. Refuses to know what a gateway makes of the
graphs, and how they are stored. Rules it keeps: the module that is given is left as it was; nothing in a graph draws
random numbers, which are inputs; what cannot be traced ends in one `AuthoringError` that names it and a way out.
"""

from __future__ import annotations

import copy
import logging
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
import onnxscript.optimizer
import torch
import torch.nn.functional as F
from fedmq_models.build import MOST_SHIFTS
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn
from torch._decomp import core_aten_decompositions
from torch._functorch.compile_utils import fx_graph_cse
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from fedmq.authoring.conversion import AuthoringError

__all__ = [
    "OPERATORS",
    "OPSET",
    "AuthoringError",
    "GradientCheck",
    "Parameter",
    "Traced",
    "check_gradients",
    "trace",
    "trace_preparation",
]

Loss = Literal["cross_entropy", "mse", "reconstruction"]

OPSET = 18
_OPERATORS = (
    "Neg Abs Exp Log Sqrt Reciprocal Tanh Sigmoid Relu Erf Sign Not Identity Add Sub Mul Div Pow Max Min Equal Greater "
    "GreaterOrEqual Less LessOrEqual And Or Where Cast MatMul Gemm Conv ConvTranspose ReduceSum ReduceMean ReduceMax "
    "ReduceMin ArgMax Reshape Squeeze Unsqueeze Flatten Transpose Expand Concat Split Slice Pad Gather Softmax "
    "LogSoftmax Clip Constant ConstantOfShape"
)
OPERATORS = frozenset(_OPERATORS.split())
"""What may remain in a graph, of the standard domain; `Gather` with constant indices only."""
TYPES = frozenset({onnx.TensorProto.FLOAT, onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.BOOL})

WAYS_OUT = {
    "MaxPool": "use nn.MaxPool1d without return_indices",
    "AveragePool": "use nn.AvgPool1d, or a mean over the axis",
    "DFT": "multiply with constant matrices of cosines and sines; of up to about 1,000 samples they fit a bundle",
    "Resize": "upsample with nn.ConvTranspose1d, or with x.repeat_interleave's reshape and expand",
    "CumSum": "multiply with a constant triangular matrix",
    "Einsum": "write it with matmul and reshape",
    "TopK": "take a maximum, or sort before the model is fed",
    "ScatterND": "build the tensor with torch.cat instead of assigning to a part of it",
    "ScatterElements": "build the tensor with torch.cat instead of assigning to a part of it",
    "GatherElements": "compare with torch.arange and sum, or index with constants",
    "Gather": "index with constants only",
    "RandomUniformLike": "use nn.Dropout for noise: its numbers become an input of the graph",
    "aten.empty_permuted": "draw no numbers but by nn.Dropout, and fill no tensor in place",
    "aten.mkldnn_rnn_layer": "use nn.GRU",
    "aten._scaled_dot_product_flash_attention_for_cpu_backward": (
        "call F.scaled_dot_product_attention in a module of your own instead of nn.MultiheadAttention"
    ),
}
WAY_OUT = "replace it by what the allowed operators say (fedmq.authoring.tracing.OPERATORS), or feed it precomputed"


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """Where one parameter lies in the flat vector: `flat[offset : offset + prod(shape)]`, in C order."""

    name: str
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True, kw_only=True)
class Traced:
    """One module as three graphs over a flat float32 vector of P weights.

    `grad` takes `flat (P,)`, `x (batch, ...)`, `y`, `w (batch,)` and `noise_0`, ... (uniform in [0, 1), shapes in
    `noise`), and gives `grad (P,)` and `loss ()`: sum(w * loss_i) / sum(w). `y` is int64 `(batch,)` labels for
    cross-entropy, float32 `(batch, outputs)` for mse, and float32 like `x`, unused, for reconstruction. `infer` and
    `infer_one` (a batch of one) take `flat` and `x`, and give `output`: probabilities, values or the reconstruction.
    """

    loss: Loss
    grad: onnx.ModelProto
    infer: onnx.ModelProto
    infer_one: onnx.ModelProto
    parameters: tuple[Parameter, ...]
    flat: NDArray[np.float32]
    """`(P,)`, as the module holds them."""
    noise: tuple[tuple[int, ...], ...]
    remarks: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class GradientCheck:
    """Largest differences to the graph's gradient, absolute, over `max(1, largest gradient)`."""

    autograd: float
    """Over all P coordinates, against torch's own kernels and autograd in float64."""
    finite_differences: float
    """Over the coordinates drawn, against central differences of torch's loss in float64."""
    coordinates: int


def trace(
    module: nn.Module,
    *,
    loss: Loss,
    example_x: NDArray[np.float32],
    classes: int | None = None,
    outputs: int | None = None,
    batch: int,
) -> Traced:
    """The training step and the inference of `module`, which is left as it was.

    `example_x` is `(n, ...)` float32 with n >= 1: its first window is repeated to fill a batch. `classes` goes with
    "cross_entropy", `outputs` with "mse", neither with "reconstruction". Raises `AuthoringError`.
    """
    x = _batch_of(example_x, batch)
    width = _width(loss, classes, outputs)
    prepared, remarks = _prepare(module)
    trained = {name: value.detach() for name, value in prepared.named_parameters() if value.requires_grad}
    parameters = _lay_out(trained)
    flat = torch.cat([value.reshape(-1) for value in trained.values()])
    y, w = _targets(loss, x, width), torch.ones(batch)

    noise = _Noise()
    watching = _Watching()
    with _explained(prepared, x), torch.no_grad(), _Rewriting(noise), watching:
        output = prepared.train()(x)
    _check_output(loss, output, x, width)

    def step(flat: Tensor, x: Tensor, y: Tensor, w: Tensor, *noise: Tensor) -> tuple[Tensor, Tensor]:
        # Not torch.func.grad: it keeps the gradient differentiable, and takes the longer of torch's backward passes.
        named = {name: view.detach().requires_grad_() for name, view in _views(flat, parameters).items()}
        with torch.enable_grad(), _Rewriting(_Noise(noise)):
            value = _weighted_loss(loss, functional_call(prepared, named, (x,)), x, y, w)
        gradients = torch.autograd.grad(value, tuple(named.values()), materialize_grads=True)
        return torch.cat([gradient.reshape(-1) for gradient in gradients]), value.detach()

    def infer(flat: Tensor, x: Tensor) -> Tensor:
        with _Rewriting(_Noise(())):
            output: Tensor = functional_call(prepared, _views(flat, parameters), (x,))
        return torch.softmax(output, 1) if loss == "cross_entropy" else output

    names = ["flat", "x", "y", "w", *(f"noise_{i}" for i in range(len(noise.drawn)))]
    with _explained(prepared, x):
        given = flat, x, y, w, *noise.drawn
        gentle = watching.called <= GENTLE
        grad = _to_onnx(prepared.train(), step, given, names, ["grad", "loss"], x=x, gentle=gentle)
        one, many = (
            _to_onnx(prepared.eval(), infer, (flat, some), ["flat", "x"], ["output"], x=x)
            for some in (x[:1].clone(), x)
        )
    return Traced(
        loss=loss,
        grad=grad,
        infer=many,
        infer_one=one,
        parameters=parameters,
        flat=flat.numpy().copy(),
        noise=tuple(tuple(drawn.shape) for drawn in noise.drawn),
        remarks=tuple(remarks),
    )


def trace_preparation(
    function: Callable[[Tensor], Tensor], windows: NDArray[np.float32]
) -> tuple[onnx.ModelProto, NDArray[np.float32]]:
    """What a function or module makes of one window, and what that is for each of `windows (n, channels, samples)`.

    The graph takes a window as a gateway cuts it, `(1, samples * channels)`: row after row, channels side by side.
    Raises `AuthoringError`.
    """
    prepared = _Prepared(function).eval()
    example = torch.from_numpy(windows)
    with _explained(prepared, example[:1]), torch.no_grad():
        made = torch.cat([prepared(window) for window in example.split(1)])
    if made.dtype != torch.float32 or len(made) != len(windows) or made.ndim < 2:
        raise AuthoringError(
            f"expected float32 (n, ...) of windows {tuple(windows.shape)}, the preprocessing returned {made.dtype} "
            f"{tuple(made.shape)}"
        )
    channels, samples = windows.shape[1:]

    def run(raw: Tensor) -> Tensor:
        with _Rewriting(_Noise(())):
            output: Tensor = prepared(raw.reshape(1, samples, channels).transpose(1, 2))
        return output

    raw = example[:1].transpose(1, 2).reshape(1, -1)
    with _explained(prepared, example[:1]):
        model = _to_onnx(prepared, run, (raw,), ["window"], ["features"], x=example[:1])
    return model, made.numpy()


class _Prepared(nn.Module):  # type: ignore[misc, unused-ignore]
    """A function as a module, so that a mistake in it is placed like any other."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def check_gradients(
    traced: Traced, module: nn.Module, *, seed: int = 0, coordinates: int = 16, tolerance: float = 1e-4
) -> GradientCheck:
    """How far the gradient in `traced.grad` is from what torch says of `module`, on a random batch.

    The graph is run by the reference evaluator of `onnx`. Torch runs its own kernels in float64, with the dropout
    noise that the graph was given. Raises `AuthoringError` where a difference exceeds `tolerance`.
    """
    rng = np.random.default_rng(seed)
    shapes = {value.name: _shape(value) for value in traced.grad.graph.input}
    feed: dict[str, NDArray[Any]] = {"flat": traced.flat}
    feed["x"] = rng.standard_normal(shapes["x"]).astype(np.float32)
    feed["y"] = rng.standard_normal(shapes["y"]).astype(np.float32)
    if traced.loss == "cross_entropy":
        feed["y"] = rng.integers(0, _shape(traced.infer.graph.output[0])[1], shapes["y"])
    feed["w"] = rng.uniform(0.5, 2.0, shapes["w"]).astype(np.float32)
    for i, shape in enumerate(traced.noise):
        feed[f"noise_{i}"] = rng.random(shape, np.float32)
    ran: Any = ReferenceEvaluator(traced.grad).run(["grad"], feed)
    gradient = np.asarray(ran[0], np.float64)

    prepared = _prepare(module)[0].double().train()
    x, w, y = (torch.from_numpy(feed[name]) for name in ("x", "w", "y"))
    x, w, y = x.double(), w.double(), y.double() if y.is_floating_point() else y
    given = [torch.from_numpy(feed[f"noise_{i}"]).double() for i in range(len(traced.noise))]

    def loss_of(flat: Tensor, *, native: bool) -> Tensor:
        noise = _Noise(given)
        with _Rewriting(noise, only_dropout=native):
            output = functional_call(prepared, _views(flat, traced.parameters), (x,))
        if noise.used < len(given):  # dropout within torch's own recurrence
            return loss_of(flat, native=False)
        return _weighted_loss(traced.loss, output, x, y, w)

    flat = torch.from_numpy(traced.flat).double().requires_grad_()
    (expected,) = torch.autograd.grad(loss_of(flat, native=True), flat)
    scale = max(1.0, float(expected.abs().max()))
    by_autograd = float(np.abs(gradient - expected.numpy()).max()) / scale

    drawn = rng.choice(flat.numel(), min(coordinates, flat.numel()), replace=False)
    by_differences, nudge = 0.0, 1e-6
    with torch.no_grad():
        for at in drawn.tolist():
            up, down = flat.detach().clone(), flat.detach().clone()
            up[at] += nudge
            down[at] -= nudge
            slope = float(loss_of(up, native=True) - loss_of(down, native=True)) / (2 * nudge)
            by_differences = max(by_differences, abs(slope - float(gradient[at])) / scale)
    found = GradientCheck(autograd=by_autograd, finite_differences=by_differences, coordinates=len(drawn))
    if not max(by_autograd, by_differences) <= tolerance:
        raise AuthoringError(
            f"the traced gradient should agree with torch's within {tolerance:g}, and is off by {by_autograd:.3g} from "
            f"autograd and by {by_differences:.3g} from finite differences: check the module for functions with a "
            "backward pass of their own, and the parameters for what has no gradient at zero"
        )
    return found


# What is given, checked.


def _batch_of(example_x: NDArray[np.float32], batch: int) -> Tensor:
    example = np.asarray(example_x)
    if batch < 1:
        raise AuthoringError(f"a batch holds at least one window, not {batch}")
    if example.dtype != np.float32 or example.ndim < 2 or 0 in example.shape:
        raise AuthoringError(
            f"example_x should be float32 (n, ...) with n >= 1, and is {example.dtype} {example.shape}: "
            "give windows as the gateways will feed them"
        )
    return torch.from_numpy(np.repeat(example[:1], batch, 0).copy())


def _width(loss: Loss, classes: int | None, outputs: int | None) -> int | None:
    wanted = {"cross_entropy": "classes", "mse": "outputs", "reconstruction": None}
    if loss not in wanted:
        raise AuthoringError(f"loss should be one of {', '.join(wanted)}, and is {loss!r}")
    for name, value in (("classes", classes), ("outputs", outputs)):
        if name == wanted[loss] and (value is None or value < 1):
            raise AuthoringError(f"loss {loss!r} needs {name}, at least 1, and was given {value}")
        if name != wanted[loss] and value is not None:
            raise AuthoringError(f"loss {loss!r} has no {name}: leave it out")
    return classes if loss == "cross_entropy" else outputs


def _targets(loss: Loss, x: Tensor, width: int | None) -> Tensor:
    if loss == "cross_entropy":
        return torch.zeros(len(x), dtype=torch.int64)
    return torch.zeros(len(x), width) if loss == "mse" and width else torch.zeros_like(x)


def _check_output(loss: Loss, output: object, x: Tensor, width: int | None) -> None:
    expected = tuple(x.shape) if width is None else (len(x), width)
    if not isinstance(output, Tensor) or tuple(output.shape) != expected:
        came = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise AuthoringError(
            f"with loss {loss!r} and x of {tuple(x.shape)} the module should return one tensor of shape {expected}, "
            f"and returned {came}: mend its last layer, or what trace() was told"
        )


def _lay_out(trained: Mapping[str, Tensor]) -> tuple[Parameter, ...]:
    if not trained:
        raise AuthoringError("the module has no parameter that requires a gradient: there is nothing to train")
    found, offset = [], 0
    for name, value in trained.items():
        if value.dtype != torch.float32:
            raise AuthoringError(f"parameter {name} should be float32, and is {value.dtype}: call module.float()")
        found.append(Parameter(name=name, shape=tuple(value.shape), offset=offset))
        offset += value.numel()
    return tuple(found)


def _views(flat: Tensor, parameters: Sequence[Parameter]) -> dict[str, Tensor]:
    return {p.name: flat.narrow(0, p.offset, math.prod(p.shape)).view(p.shape) for p in parameters}


def _weighted_loss(loss: Loss, output: Tensor, x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    """`sum(w * loss_i) / sum(w)`; labels by comparison, so that nothing is gathered or scattered."""
    if loss == "cross_entropy":
        chosen = (y.unsqueeze(1) == torch.arange(output.shape[1])).to(output.dtype)
        each = -(chosen * torch.log_softmax(output, 1)).sum(1)
    else:
        error = output - (y if loss == "mse" else x)
        each = (error * error).flatten(1).mean(1)
    return (w * each).sum() / w.sum()


# Before tracing: what learns from the statistics of a batch.


class _FrozenNorm(nn.Module):  # type: ignore[misc, unused-ignore]
    """A trained BatchNorm with its running statistics as constants; scale and shift go on being trained."""

    mean: Tensor
    scale: Tensor

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        self.register_buffer("mean", norm.running_mean.detach().clone())
        self.register_buffer("scale", torch.rsqrt(norm.running_var.detach() + norm.eps))

    def forward(self, x: Tensor) -> Tensor:
        over = (1, -1) + (1,) * (x.ndim - 2)
        x = (x - self.mean.view(over)) * self.scale.view(over)
        return x if self.weight is None else x * self.weight.view(over) + self.bias.view(over)


def _prepare(module: nn.Module) -> tuple[nn.Module, list[str]]:
    """A copy in which no BatchNorm is left, and a remark on each change."""
    prepared, remarks = copy.deepcopy(module), []
    for name, norm in list(prepared.named_modules()):
        if not isinstance(norm, nn.modules.batchnorm._BatchNorm):
            continue
        if norm.running_mean is not None and norm.num_batches_tracked:
            fresh: nn.Module = _FrozenNorm(norm)
            remarks.append(f"{name}: BatchNorm, trained, is frozen: its running mean and variance are constants")
        else:
            channels = norm.num_features
            groups = next(g for g in (8, 4, 2, 1) if g == 1 or (channels % g == 0 and channels // g >= 4))
            fresh = nn.GroupNorm(groups, channels, eps=norm.eps, affine=norm.affine)
            if norm.affine:
                fresh.weight, fresh.bias = norm.weight, norm.bias
            remarks.append(
                f"{name}: BatchNorm replaced by GroupNorm({groups}, {channels}): the statistics of a batch differ from "
                "gateway to gateway, and would be averaged"
            )
        if not name:
            return fresh, remarks
        parent, _, last = name.rpartition(".")
        setattr(prepared.get_submodule(parent), last, fresh)
    held = [name for name, value in prepared.named_parameters() if not value.requires_grad]
    if held:
        remarks.append(f"held as constants, for they require no gradient: {', '.join(held)}")
    return prepared, remarks


# While tracing: what is said in other words on the way down.


class _Noise:
    """Uniform numbers for dropout, one tensor a call: those given in their order, else drawn and kept."""

    def __init__(self, given: Sequence[Tensor] | None = None) -> None:
        self.given = given
        self.drawn: list[Tensor] = []
        self.used = 0

    def next(self, like: Tensor) -> Tensor:
        if self.given is None:
            self.drawn.append(torch.rand(like.shape))
            return self.drawn[-1]
        if self.used == len(self.given):
            raise AuthoringError("dropout is called more often than before: a module should do the same on every call")
        self.used += 1
        return self.given[self.used - 1]


class _Rewriting(TorchFunctionMode):  # type: ignore[misc, unused-ignore]
    """Replaces functions that a module calls by sums and products whose backward passes ONNX can say."""

    def __init__(self, noise: _Noise, *, only_dropout: bool = False) -> None:
        super().__init__()
        self.table: dict[Any, Callable[..., Any]] = {}
        dropout = _Dropout(noise)
        self.table[F.dropout] = self.table[torch.dropout] = dropout
        self.table[F.dropout1d] = dropout.of_channels
        self.table[F.alpha_dropout] = self.table[F.feature_alpha_dropout] = _no_alpha_dropout
        if not only_dropout:
            self.table |= {
                torch.nn.functional.max_pool1d: _max_pool1d,
                torch.max_pool1d: _max_pool1d,
                F.avg_pool1d: _avg_pool1d,
                F.instance_norm: _instance_norm,
                F.adaptive_avg_pool1d: _adaptive_avg_pool1d,
                F.scaled_dot_product_attention: _Attention(dropout),
                torch.gru: _Recurrence(dropout),
            }

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.table.get(func, func)(*args, **(kwargs or {}))


class _Dropout:
    """`x * (noise >= p) / (1 - p)`: what is kept is kept with probability `1 - p`."""

    def __init__(self, noise: _Noise) -> None:
        self.noise = noise

    def __call__(self, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False, **_: Any) -> Tensor:
        if not training or p == 0.0:
            return x
        if p == 1.0:
            return x * 0.0
        return x * ((self.noise.next(x) >= p).to(x.dtype) * (1.0 / (1.0 - p)))

    def of_channels(self, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        """One number for each channel of `(batch, channels, length)`."""
        if not training or p == 0.0:
            return x
        return x * self(torch.ones_like(x[..., :1]), p, training)


def _no_alpha_dropout(*_: Any, **__: Any) -> Tensor:
    raise AuthoringError("AlphaDropout cannot be traced: use nn.Dropout")


class _Attention:
    """`F.scaled_dot_product_attention` as matrix products and a softmax."""

    def __init__(self, dropout: _Dropout) -> None:
        self.dropout = dropout

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if enable_gqa:
            raise AuthoringError("attention over groups of queries cannot be traced: leave enable_gqa off")
        score = torch.matmul(query, key.transpose(-1, -2)) * (scale or 1.0 / math.sqrt(query.shape[-1]))
        if is_causal:
            steps = torch.arange(query.shape[-2]).unsqueeze(1), torch.arange(key.shape[-2]).unsqueeze(0)
            score = torch.where(steps[0] >= steps[1], score, -1e9)
        if attn_mask is not None:
            score = torch.where(attn_mask, score, -1e9) if attn_mask.dtype == torch.bool else score + attn_mask
        return torch.matmul(self.dropout(torch.softmax(score, -1), dropout_p, dropout_p > 0), value)


def _windows(x: Tensor, kernel: int, stride: int, dilation: int, length: int) -> list[Tensor]:
    """For each place in a window its values, `(..., length)`: x is padded or cut so that each is a plain slice."""
    found = []
    for place in range(kernel):
        start = place * dilation
        short = start + length * stride - x.shape[-1]
        part = F.pad(x, (0, short)) if short > 0 else x
        part = part.narrow(-1, start, length * stride)
        if stride > 1:
            part = part.reshape(*part.shape[:-1], length, stride).narrow(-1, 0, 1).squeeze(-1)
        found.append(part)
    return found


def _one(value: int | Sequence[int]) -> int:
    return value if isinstance(value, int) else value[0]


def _pooled_length(size: int, kernel: int, stride: int, dilation: int, ceil_mode: bool, name: str) -> int:
    if ceil_mode:
        raise AuthoringError(f"{name} with ceil_mode cannot be traced: leave it off, and pad the window instead")
    return (size - dilation * (kernel - 1) - 1) // stride + 1


def _max_pool1d(
    x: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor:
    """The first largest of each window takes the gradient, as torch's own does, and windows may overlap."""
    if return_indices:
        raise AuthoringError("MaxPool1d with return_indices cannot be traced: leave it off")
    kernel, pad, dilated = _one(kernel_size), _one(padding), _one(dilation)
    step = _one(stride) if stride else kernel
    if pad:
        x = F.pad(x, (pad, pad), value=torch.finfo(torch.float32).min)
    length = _pooled_length(x.shape[-1], kernel, step, dilated, ceil_mode, "MaxPool1d")
    places = _windows(x, kernel, step, dilated, length)
    largest = places[0].detach()
    for place in places[1:]:
        largest = torch.maximum(largest, place.detach())
    pooled = places[-1]
    for place in reversed(places[:-1]):  # the values are those of `largest`; the choice says who takes the gradient
        pooled = torch.where(place.detach() == largest, place, pooled)
    return pooled


def _avg_pool1d(
    x: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    kernel, pad = _one(kernel_size), _one(padding)
    step = _one(stride) if stride else kernel
    if pad and not count_include_pad:
        raise AuthoringError("AvgPool1d with padding that is not counted cannot be traced: pad beforehand, with F.pad")
    if pad:
        x = F.pad(x, (pad, pad))
    length = _pooled_length(x.shape[-1], kernel, step, 1, ceil_mode, "AvgPool1d")
    first, *others = _windows(x, kernel, step, 1, length)
    return sum(others, first) / kernel


def _adaptive_avg_pool1d(x: Tensor, output_size: Any) -> Tensor:
    parts, size = _one(output_size), x.shape[-1]
    if size % parts:
        raise AuthoringError(
            f"AdaptiveAvgPool1d of {size} values into {parts} cannot be traced: choose a number that divides {size}"
        )
    return x.reshape(*x.shape[:-1], parts, size // parts).mean(-1)


def _instance_norm(
    x: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not use_input_stats or running_mean is not None:
        raise AuthoringError("InstanceNorm with running statistics cannot be traced: leave track_running_stats off")
    return F.group_norm(x, x.shape[1], weight, bias, eps)


class _Recurrence:
    """`torch.gru`, unrolled over the sequence."""

    def __init__(self, dropout: _Dropout) -> None:
        self.dropout = dropout

    def __call__(
        self,
        x: Tensor,
        state: Any,
        weights: Any,
        has_biases: Any,
        layers: Any,
        dropout: Any,
        train: bool,
        bidirectional: bool,
        batch_first: Any = None,
    ) -> tuple[Tensor, Tensor]:
        if batch_first is None or isinstance(weights, bool):
            raise AuthoringError("GRU over a packed sequence cannot be traced: give windows of one length")
        if batch_first:
            x = x.transpose(0, 1)
        weights, ways, last = list(weights), 2 if bidirectional else 1, []
        each = len(weights) // (layers * ways)
        for layer in range(layers):
            outcomes = []
            for way in range(ways):
                at = layer * ways + way
                own = weights[at * each : (at + 1) * each]
                steps, end = self._one_way(x, state[at], own, has_biases, backwards=way == 1)
                outcomes.append(torch.stack(steps))
                last.append(end)
            x = torch.cat(outcomes, -1) if ways == 2 else outcomes[0]
            if dropout and train and layer < layers - 1:
                x = self.dropout(x, dropout, True)
        return (x.transpose(0, 1) if batch_first else x), torch.stack(last)

    @staticmethod
    def _one_way(
        x: Tensor, state: Tensor, weights: Sequence[Tensor], has_biases: bool, *, backwards: bool
    ) -> tuple[list[Tensor], Tensor]:
        """`x (steps, batch, inputs)` -> the state after each step, `(batch, hidden)`, and the last one."""
        by_input, by_state = weights[0], weights[1].t()
        given = torch.matmul(x, by_input.t())
        if has_biases:
            given = given + weights[2]
        hidden = state.shape[-1]
        steps: list[Tensor] = []
        parts = [part.squeeze(0) for part in torch.split(given, 1, 0)]
        for part in reversed(parts) if backwards else parts:
            own = torch.matmul(state, by_state)
            if has_biases:
                own = own + weights[3]
            gates_x, new_x = torch.split(part, [2 * hidden, hidden], 1)
            gates_h, new_h = torch.split(own, [2 * hidden, hidden], 1)
            reset, update = torch.split(torch.sigmoid(gates_x + gates_h), hidden, 1)
            new = torch.tanh(new_x + reset * new_h)
            state = new + update * (state - new)
            steps.append(state)
        return (steps[::-1] if backwards else steps), state


def _convolution_backward(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    bias_sizes: Any,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
    wanted: list[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of `x (batch, in, ...)`, of the weight and of the bias."""
    if groups != 1:
        raise AuthoringError(
            f"Conv with {groups} groups cannot be trained: use groups=1, or one convolution for each "
            "part of the channels"
        )
    convolve, none = torch.ops.aten.convolution, [0] * len(stride)
    for_x = for_weight = for_bias = None
    if wanted[2]:
        for_bias = gradient.sum([0, *range(2, gradient.ndim)])
    plain = len(stride) == 1 and not transposed and dilation == [1]
    if plain and all(wanted[:2]) and -(-weight.shape[2] // stride[0]) <= MOST_SHIFTS:
        return *_conv_by_products(gradient, x, weight, stride[0], padding[0]), for_bias
    if wanted[0]:
        if transposed:
            for_x = convolve(gradient, weight, None, stride, padding, dilation, False, none, 1)
        else:
            short = [
                x.shape[2 + i]
                - (
                    (gradient.shape[2 + i] - 1) * stride[i]
                    - 2 * padding[i]
                    + dilation[i] * (weight.shape[2 + i] - 1)
                    + 1
                )
                for i in range(len(stride))
            ]
            for_x = convolve(gradient, weight, None, stride, padding, dilation, True, short, 1)
    if wanted[1]:
        over, slid = (gradient, x) if transposed else (x, gradient)
        for_weight = convolve(
            over.transpose(0, 1), slid.transpose(0, 1), None, dilation, padding, stride, False, none, 1
        ).transpose(0, 1)
        for i in range(len(stride)):
            if for_weight.shape[2 + i] != weight.shape[2 + i]:
                for_weight = for_weight.narrow(2 + i, 0, weight.shape[2 + i])
    return for_x, for_weight, for_bias


def _conv_by_products(gradient: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int) -> tuple[Tensor, Tensor]:
    """The gradients of `x (batch, in, length)` and of the weight, as `fedmq_models.build` has them for its own."""
    batch, channels, length = x.shape
    outputs, _, kernel = weight.shape
    shifts = -(-kernel // stride)
    more = shifts * stride - kernel
    blocks = gradient.shape[2] + shifts - 1
    after = blocks * stride - padding - length

    turned = gradient.transpose(1, 2)
    copies = [F.pad(turned, (0, 0, shift, shifts - 1 - shift)) for shift in range(shifts)]
    shifted = torch.cat(copies, 2).reshape(batch * blocks, shifts * outputs)

    parts = F.pad(weight.transpose(1, 2), (0, 0, 0, more)).reshape(outputs, shifts, stride * channels)
    rows = parts.transpose(0, 1).reshape(shifts * outputs, stride * channels)
    for_x = F.pad((shifted @ rows).reshape(batch, blocks * stride, channels), (0, 0, -padding, -after))

    cut = F.pad(x.transpose(1, 2), (0, 0, padding, after)).reshape(batch * blocks, stride * channels)
    parts = (shifted.t() @ cut).reshape(shifts, outputs, stride * channels).transpose(0, 1)
    for_weight = F.pad(parts.reshape(outputs, shifts * stride, channels), (0, 0, 0, -more))
    return for_x.transpose(1, 2), for_weight.transpose(1, 2)


def _centred(x: Tensor, over: list[int], eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """x less its mean, that mean, and what brings the spread to 1."""
    mean = x.mean(over, keepdim=True)
    centred = x - mean
    return centred, mean, torch.reciprocal(torch.sqrt((centred * centred).mean(over, keepdim=True) + eps))


def _layer_norm(
    x: Tensor, shape: list[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    centred, mean, scale = _centred(x, list(range(x.ndim - len(shape), x.ndim)), eps)
    normed = centred * scale
    if weight is not None:
        normed = normed * weight
    return (normed if bias is None else normed + bias), mean, scale


def _group_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, batch: int, channels: int, size: int, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    each = channels // groups
    centred, mean, scale = _centred(x.reshape(batch, groups, each * size), [2], eps)
    factor = scale.reshape(batch, groups, 1, 1)
    if weight is not None:
        factor = factor * weight.reshape(groups, each, 1)
    normed = centred.reshape(batch, groups, each, size) * factor
    if bias is not None:
        normed = normed + bias.reshape(groups, each, 1)
    return normed.reshape(x.shape), mean.squeeze(-1), scale.squeeze(-1)


def _group_norm_backward(
    gradient: Tensor,
    x: Tensor,
    mean: Tensor,
    scale: Tensor,
    weight: Tensor | None,
    batch: int,
    channels: int,
    size: int,
    groups: int,
    wanted: list[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of `x (batch, channels, ...)`, of the weight and of the bias, each `(channels,)`.

    Sums over the length come first, so that little is left to do for a channel, a group or the weights.
    """
    each = channels // groups
    centred = x.reshape(batch, groups, each * size) - mean.reshape(batch, groups, 1)
    centred = centred.reshape(batch, groups, each, size)
    inverse = scale.reshape(batch, groups, 1, 1)
    gradient = gradient.reshape(batch, groups, each, size)
    plain = gradient.sum(3, keepdim=True)
    along = (gradient * centred).sum(3, keepdim=True) * inverse
    for_x = None
    if wanted[0]:
        by_channel = gradient.new_ones(1) if weight is None else weight.reshape(groups, each, 1)
        share = inverse * (1.0 / (each * size))

        def of_group(sums: Tensor) -> Tensor:
            return (sums * by_channel).sum(2, keepdim=True) * share

        bend = centred * (of_group(along) * inverse)
        for_x = (gradient * (inverse * by_channel) - (bend + of_group(plain))).reshape(x.shape)
    for_weight = along.sum(0).reshape(channels) if wanted[1] else None
    return for_x, for_weight, plain.sum(0).reshape(channels) if wanted[2] else None


def _threshold_backward(gradient: Tensor, x: Tensor, threshold: float) -> Tensor:
    """For a gradient that is finite: a product takes onnxruntime a tenth of the time of a choice."""
    return gradient * (x > threshold).to(gradient.dtype)


def _slice_backward(gradient: Tensor, sizes: list[int], dim: int, start: int, end: int, step: int) -> Tensor:
    """Zeros around the gradient, and between its values where the slice took steps."""
    dim %= len(sizes)
    size = sizes[dim]
    start = min(max(start + size if start < 0 else start, 0), size)
    if step > 1:
        spread = F.pad(gradient.unsqueeze(dim + 1), (0, 0) * (len(sizes) - dim - 1) + (0, step - 1))
        gradient = spread.flatten(dim, dim + 1)
    after = size - start - gradient.shape[dim]
    if after < 0:
        gradient, after = gradient.narrow(dim, 0, size - start), 0
    return F.pad(gradient, (0, 0) * (len(sizes) - dim - 1) + (start, after))


def _constant_pad(x: Tensor, pad: list[int], value: float = 0.0) -> Tensor:
    """Cuts where it is told to pad by less than nothing, as the backward pass of padding is."""
    if min(pad) >= 0:
        unchanged: Any = NotImplemented
        return unchanged  # type: ignore[no-any-return, unused-ignore]
    for i, (before, after) in enumerate(zip(pad[::2], pad[1::2], strict=True)):
        if (cut := max(-before, 0)) + max(-after, 0) > 0:
            size = x.shape[-1 - i]
            x = x.narrow(-1 - i, cut, size - cut - max(-after, 0))
    rest = [max(side, 0) for side in pad]
    return F.pad(x, rest, value=value) if any(rest) else x


def _silu_backward(gradient: Tensor, x: Tensor) -> Tensor:
    gate = torch.sigmoid(x)
    return gradient * (gate * (x * (1.0 - gate) + 1.0))


def _mish_backward(gradient: Tensor, x: Tensor) -> Tensor:
    inner = torch.tanh(F.softplus(x))
    return gradient * (inner + x * torch.sigmoid(x) * (1.0 - inner * inner))


def _elu(x: Tensor, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Tensor:
    below = (torch.exp(torch.clamp(x, max=0.0) * input_scale) - 1.0) * (alpha * scale)
    return torch.where(x > 0, x * scale, below)


def _leaky_relu(x: Tensor, slope: float = 0.01) -> Tensor:
    return torch.where(x > 0, x, x * slope)


def _select_backward(gradient: Tensor, sizes: list[int], dim: int, index: int) -> Tensor:
    dim, index = dim % len(sizes), index % sizes[dim]
    return _slice_backward(gradient.unsqueeze(dim), sizes, dim, index, index + 1, 1)


_GENTLE = (
    "_softmax _to_copy _unsafe_view add addmm bmm cat clone constant_pad_nd convolution detach eq expand ge gelu gt le "
    "lt maximum mean mm mul native_group_norm native_layer_norm permute rand relu select sigmoid silu slice "
    "split split_with_sizes squeeze stack sub sum t tanh transpose unsqueeze view where zeros"
)
GENTLE = frozenset(_GENTLE.split())
"""Operators of torch whose backward pass makes a finite gradient of a finite one, wherever they are."""


class _Watching(TorchDispatchMode):  # type: ignore[misc, no-untyped-call, unused-ignore]
    """Notes which of torch's operators are called."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self.called: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.called.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def _decompositions(gentle: bool) -> dict[Any, Callable[..., Any]]:
    """`gentle` where no operator of the module makes an infinite gradient, which 0 times it would not be 0."""
    aten = torch.ops.aten
    return {
        **core_aten_decompositions(),
        aten.convolution_backward.default: _convolution_backward,
        aten.native_layer_norm.default: _layer_norm,
        aten.native_group_norm.default: _group_norm,
        aten.native_group_norm_backward.default: _group_norm_backward,
        aten.constant_pad_nd.default: _constant_pad,
        aten.silu_backward.default: _silu_backward,
        aten.mish_backward.default: _mish_backward,
        aten.elu.default: _elu,
        aten.leaky_relu.default: _leaky_relu,
        aten.slice_backward.default: _slice_backward,
        aten.select_backward.default: _select_backward,
        **({aten.threshold_backward.default: _threshold_backward} if gentle else {}),
    }


# To ONNX, and what is allowed there.


def _to_onnx(
    prepared: nn.Module,
    function: Callable[..., Any],
    arguments: tuple[Tensor, ...],
    inputs: list[str],
    outputs: list[str],
    *,
    x: Tensor,
    gentle: bool = False,
) -> onnx.ModelProto:
    """The function as a checked model of opset 18, with all shapes static and constants folded.

    `x` is what `prepared` takes: with it the place of what is refused is found.
    """
    with torch.no_grad():
        graph = make_fx(function, decomposition_table=_decompositions(gentle))(*arguments)
    graph.graph = fx_graph_cse(graph.graph)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    with _quietly():
        program: Any = torch.onnx.export(
            graph,
            arguments,
            dynamo=True,
            opset_version=OPSET,
            input_names=inputs,
            output_names=outputs,
            optimize=True,
            verbose=False,
        )
        model = onnxscript.optimizer.optimize(program.model_proto, num_iterations=4, onnx_shape_inference=True)
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    _check_operators(model, prepared, x)
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    del model.metadata_props[:], model.graph.metadata_props[:]
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]
    onnx.checker.check_model(model, full_check=True)
    return model


def _check_operators(model: onnx.ModelProto, prepared: nn.Module, x: Tensor) -> None:
    constants = {value.name for value in model.graph.initializer}
    constants |= {name for node in model.graph.node if node.op_type == "Constant" for name in node.output}
    for node in model.graph.node:
        allowed = node.domain in ("", "ai.onnx") and node.op_type in OPERATORS
        if not allowed or (node.op_type == "Gather" and node.input[1] not in constants):
            said = " ".join(prop.value for prop in node.metadata_props if prop.key.startswith("pkg.torch"))
            raise _refusal(node.op_type, said, prepared, x)
    kinds = {value.name: value.data_type for value in model.graph.initializer}
    known = (*model.graph.input, *model.graph.output, *model.graph.value_info)
    kinds |= {value.name: value.type.tensor_type.elem_type for value in known}
    static = {
        value.name
        for value in known
        if value.type.tensor_type.HasField("shape")
        and all(dim.HasField("dim_value") for dim in value.type.tensor_type.shape.dim)
    }
    for name, kind in kinds.items():
        if kind not in TYPES:
            raise AuthoringError(
                f"{name} is of type {onnx.TensorProto.DataType.Name(kind)}: keep to float32, int64, int32 and bool"
            )
    for node in model.graph.node:
        for name in node.output:
            if name and name not in static:
                raise AuthoringError(f"{name}, of {node.op_type}, has no static shape: let no shape depend on values")


def _refusal(operator: str, said: str, prepared: nn.Module, x: Tensor) -> AuthoringError:
    """The error for an operator; `said` is any text in which the name of torch's own may stand."""
    place = next((at for name in re.findall(r"aten\.(\w+)", said) if (at := _where(name, prepared, x))), "")
    return AuthoringError(f"operator {operator} cannot run on a gateway{place}: {WAYS_OUT.get(operator, WAY_OUT)}")


def _where(operator: str, prepared: nn.Module, x: Tensor) -> str:
    """In which module torch's `operator` is first called: the innermost one."""
    within: list[tuple[str, nn.Module]] = []
    found: list[str] = []

    class Watching(TorchDispatchMode):  # type: ignore[misc, no-untyped-call, unused-ignore]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func.overloadpacket.__name__ == operator and not found:
                name, module = within[-1] if within else ("", prepared)
                found.append(f", in module {name or '(the outermost)'} ({type(module).__name__})")
            return func(*args, **(kwargs or {}))

    def enter(name: str) -> Callable[..., None]:
        return lambda module, _: within.append((name, module))

    hooks = []
    for name, module in prepared.named_modules():
        hooks.append(module.register_forward_pre_hook(enter(name)))
        hooks.append(module.register_forward_hook(lambda *_: within.pop() and None))
    try:
        watching: Any = Watching
        with watching(), torch.no_grad(), _Rewriting(_Noise()):
            prepared(x)
    except Exception:  # whatever the module raises: this only looks for a place
        return ""
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else ""


@contextmanager
def _explained(prepared: nn.Module, x: Tensor) -> Iterator[None]:
    """Turns what torch raises into one `AuthoringError`."""
    try:
        yield
    except AuthoringError:
        raise
    except Exception as error:  # torch raises anything
        chain: list[str] = []
        cause: BaseException | None = error
        while cause is not None:
            chain.append(str(cause))
            if isinstance(cause, AuthoringError):
                raise cause from error
            cause = cause.__cause__ or cause.__context__
        said = " ".join(chain)
        if operator := re.search(r"No ONNX function found for <OpOverload\(op='(aten\.\w+)'", said):
            raise _refusal(operator[1], operator[1], prepared, x) from error
        if "data-dependent" in said or "value out of a tracing tensor" in said:
            raise AuthoringError(
                "the module branches on the values of a tensor: use torch.where, or decide before tracing"
            ) from error
        raise AuthoringError(
            f"the module cannot be traced: {type(error).__name__}: {str(error).strip().splitlines()[0][:300]}"
        ) from error


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the exporter's own remarks."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _shape(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    return tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
