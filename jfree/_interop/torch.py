"""PyTorch modules, as functions that JAX can trace."""

import contextlib
import functools
import importlib
import logging
import os
import re
from collections.abc import Callable, Generator, Sequence
from typing import Any, TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike

from .._layers.weights import AbstractWeights
from .._networks.network import Network
from .model import Parameters, read_as
from .reasons import READABLE, why_unread
from .source import GIVEN
from .steps import Unreadable
from .writing import warn_left, write, Written

if TYPE_CHECKING:
    import torch


def from_torch(
    module: "torch.nn.Module", x: "ArrayLike | torch.Tensor", weights: str | AbstractWeights = "auto"
) -> Network:
    """The random network whose widths, activations and scales are those of a PyTorch module (host).

    The module is exported by `torch.export`, in the mode in which it is, and read as by `jfree.from_model`. Batch norms
    are read in evaluation, where they multiply and add numbers.

    **Arguments:**

    - `module`: of any class, with weights in floating point.
    - `x`: one example, or several along a first axis.
    - `weights`: as of `jfree.from_model`.

    **Returns:** a `Network`, as `jfree.from_model`.

    **Raises:** `ImportError` without PyTorch; `ValueError` as `jfree.from_model`, and where the module cannot be
    exported.
    """
    return read_as(parameters_of_torch(module), examples_of(x), weights)


def reinitialize_torch_(module: "torch.nn.Module", net: Network, seed: int) -> "torch.nn.Module":
    """Redraws the parameters of a module in place (host).

    **Arguments:**

    - `module`: what `net` was read from by `jfree.from_torch`.
    - `net`: the network, tuned or not. Gains, offsets and scales are written, too.
    - `seed`: of the random numbers.

    **Returns:** the module itself.

    **Warns** and **raises** as `jfree.reinitialize`.
    """
    if not isinstance(net, Network) or net.shape is None:
        raise ValueError("`net` must be a `Network` that `jfree.from_torch` read from the module.")
    written = write(parameters_of_torch(module), net, jax.random.key(seed))
    assign_(module, written)
    warn_left(written)
    return module


def assign_(module: "torch.nn.Module", written: Written) -> None:
    """Copies new values into the parameters of a module."""
    own = dict(module.named_parameters())
    with _torch().no_grad():
        for name in written.names:
            own[name].copy_(_torch().from_numpy(np.array(written.model.arrays[name])))


@contextlib.contextmanager
def _silent() -> Generator[None]:
    """Without what PyTorch prints of examples of other shapes than the module takes."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def _torch() -> Any:
    try:
        return importlib.import_module("torch")
    except ImportError as error:
        raise ImportError("PyTorch modules need PyTorch: install `torch`.") from error


def examples_of(x: Any) -> np.ndarray:
    torch = _torch()
    return np.asarray(_array(x)) if isinstance(x, torch.Tensor) else np.asarray(x)


class _Function:
    """What a module does, as a function that JAX can trace, given its arrays."""

    def __init__(self, module: Any, arrays: dict[str, Array]):
        self.module, self.arrays = module, arrays

    def __call__(self, x: Array) -> Any:
        torch = _torch()
        first = next(self.module.parameters(), torch.zeros(()))
        example = torch.zeros(x.shape, dtype=first.dtype, device=first.device)
        with _silent():
            exported = torch.export.export(self.module, (example,), strict=False)
        signature = exported.graph_signature
        named = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        others = {**dict(self.module.named_buffers()), **exported.constants}
        of_tensor = {id(parameter): name for name, parameter in self.module.named_parameters()}
        tied = dict(self.module.named_parameters(remove_duplicate=False))
        lifted = signature.inputs_to_lifted_tensor_constants
        values: dict[Any, Any] = {}
        for node in exported.graph.nodes:
            if node.op == "placeholder":
                if node.name in lifted:
                    values[node] = _array(exported.constants[lifted[node.name]])
                elif node.name in named:
                    name = named[node.name]
                    name = of_tensor[id(tied[name])] if name in tied else name
                    values[node] = self.arrays[name] if name in self.arrays else _array(others[name])
                else:
                    values[node] = x
            elif node.op == "call_function" and not _name(node).startswith("_assert"):
                arguments, options = torch.fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
                with jax.named_scope(f"{GIVEN} of `{_name(node)}`{_place(node)}"):
                    values[node] = _call(node, arguments, options)
            elif node.op == "output":
                outputs = torch.fx.node.map_arg(node.args[0], values.__getitem__)
                return outputs[0] if len(outputs) == 1 else outputs
        raise AssertionError("an exported program has an output")


def parameters_of_torch(module: Any) -> Parameters:
    torch = _torch()
    if not isinstance(module, torch.nn.Module):
        raise ValueError(f"`module` must be a `torch.nn.Module`, got {type(module).__name__}.")
    own = {name: _array(value) for name, value in module.named_parameters()}
    names = list(own)

    def rebuild(leaves: list[Array]) -> _Function:
        return _Function(module, dict(zip(names, leaves, strict=True)))

    return Parameters(list(own.values()), rebuild, names)


def _array(tensor: Any) -> Array:
    """Of precisions that NumPy does not know, in single."""
    torch, tensor = _torch(), tensor.detach().cpu()
    return jnp.asarray((tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy())


def _place(node: Any) -> str:
    """Where a step stands in the module's source, and in which of its parts."""
    frames = re.findall(r'File "(.*)", line (\d+), in (\w+)', node.meta.get("stack_trace") or "")
    library = os.path.dirname(_torch().__file__)
    own = [(file, line, name) for file, line, name in frames if not file.startswith(library)]
    line = f", at {os.path.basename(own[-1][0])}:{own[-1][1]}" if own else ""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return (f", in {stack[-1][0]}" if stack and stack[-1][0] else "") + line


def _name(node: Any) -> str:
    return str(getattr(node.target, "__name__", node.target)).split(".")[0]


def _call(node: Any, arguments: Sequence[Any], options: dict[str, Any]) -> Any:
    name = _name(node).removesuffix("_")
    if name != _name(node) and getattr(node.args[0], "op", "") == "call_function" and _name(node.args[0]) in _PARTS:
        raise Unreadable(f"`model`: `{_name(node)}`{_place(node)} changes a view in place, which can't be read.")
    if name not in _STEPS:
        reason = why_unread(name, otherwise="is not known")
        raise Unreadable(f"`model`: `{name}`{_place(node)} {reason}. {READABLE}")
    options = {key: value for key, value in options.items() if key not in _IGNORED}
    return _STEPS[name](*arguments, **options)


# Views, of which a change in place is one of another value, too.
_PARTS = frozenset(
    "view reshape slice select chunk split getitem t transpose permute flatten unsqueeze squeeze unflatten".split()
)

# What says nothing of values.
_IGNORED = frozenset(("memory_format", "inplace", "layout", "device", "pin_memory"))


def _linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    y = x @ weight.T
    return y if bias is None else y + bias


def _conv(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Array:
    dims = weight.ndim - 2

    def each(value: Any) -> tuple[int, ...]:
        values = tuple(value) if isinstance(value, Sequence) else (value,)
        return values * dims if len(values) == 1 else values

    batched = x if x.ndim == weight.ndim else x[None]
    pads = padding.upper() if isinstance(padding, str) else [(p, p) for p in each(padding)]
    y = lax.conv_general_dilated(
        batched, weight, each(stride), pads, rhs_dilation=each(dilation), feature_group_count=groups
    )
    y = y if bias is None else y + bias.reshape(-1, *(1,) * dims)
    return y if x.ndim == weight.ndim else y[0]


def _pad(x: Array, pads: Sequence[int], mode: str = "constant", value: float | None = None) -> Array:
    pairs = [(0, 0)] * (x.ndim - len(pads) // 2) + [(pads[k], pads[k + 1]) for k in range(len(pads) - 2, -1, -2)]
    modes = {"circular": "wrap", "reflect": "reflect", "replicate": "edge"}
    return jnp.pad(x, pairs, modes[mode]) if mode in modes else jnp.pad(x, pairs, constant_values=value or 0)


def _layer_norm(
    x: Array,
    shape: Sequence[int],
    weight: Array | None = None,
    bias: Array | None = None,
    eps: float = 1e-5,
    _: Any = 0,
) -> Array:
    axes = tuple(range(x.ndim - len(shape), x.ndim))
    y = x - jnp.mean(x, axes, keepdims=True)
    y = y * lax.rsqrt(jnp.mean(jnp.square(y), axes, keepdims=True) + eps)
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def _rms_norm(x: Array, shape: Sequence[int], weight: Array | None = None, eps: float | None = None) -> Array:
    axes = tuple(range(x.ndim - len(shape), x.ndim))
    eps = float(jnp.finfo(x.dtype).eps) if eps is None else eps
    y = x * lax.rsqrt(jnp.mean(jnp.square(x), axes, keepdims=True) + eps)
    return y if weight is None else y * weight


def _batch_norm(
    x: Array,
    weight: Array | None,
    bias: Array | None,
    mean: Array | None,
    variance: Array | None,
    training: bool,
    momentum: float,
    eps: float,
    *_: Any,
) -> Array:
    if training or mean is None or variance is None:
        raise Unreadable(
            "`model` must be in evaluation mode, `module.eval()`: in training a batch norm mixes the examples of a "
            "batch, so that there is no Jacobian of one. A layer norm in its place can be read in both modes."
        )
    shape = (-1, *(1,) * (x.ndim - 2))
    rate = lax.rsqrt(variance + eps)
    y = (x - mean.reshape(shape)) * rate.reshape(shape)
    y = y if weight is None else y * weight.reshape(shape)
    return y if bias is None else y + bias.reshape(shape)


def _dropout(x: Array, rate: float = 0.5, training: bool = True) -> Array:
    if not training or rate == 0:
        return x
    mask = jax.random.bernoulli(jax.random.key(0), 1 - rate, x.shape)
    return jnp.where(mask, x / (1 - rate), 0)


def _alpha_dropout(x: Array, rate: float = 0.5, training: bool = True) -> Array:
    if training and rate != 0:
        raise Unreadable(
            "`model` must be in evaluation mode, `module.eval()`: in training alpha dropout sets entries to a number "
            "that is not 0. Plain dropout in its place can be read in both modes."
        )
    return x


def _squeeze(x: Array, axes: int | Sequence[int] | None = None) -> Array:
    """Of the axes that are asked for those that have one entry, as PyTorch has it."""
    asked = range(x.ndim) if axes is None else axes if isinstance(axes, Sequence) else (axes,)
    return jnp.squeeze(x, tuple(axis for axis in asked if x.ndim and x.shape[axis] == 1))


def _gelu(x: Array, approximate: str = "none") -> Array:
    return jax.nn.gelu(x, approximate=approximate == "tanh")


def _softplus(x: Array, beta: float = 1, threshold: float = 20) -> Array:
    return jax.nn.softplus(beta * x) / beta


def _elu(x: Array, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Array:
    return scale * jnp.where(x > 0, x, alpha * jnp.expm1(input_scale * jnp.minimum(x, 0)))


def _glu(x: Array, axis: int = -1) -> Array:
    value, gate = jnp.split(x, 2, axis)
    return value * jax.nn.sigmoid(gate)


def _split(x: Array, size: int | Sequence[int], axis: int = 0) -> list[Array]:
    steps = range(size, x.shape[axis], size) if isinstance(size, int) else np.cumsum(size)[:-1]
    return jnp.split(x, list(steps), axis)


def _chunk(x: Array, number: int, axis: int = 0) -> list[Array]:
    return _split(x, -(-x.shape[axis] // number), axis)


def _slice(x: Array, axis: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Array:
    return lax.slice_in_dim(x, start or 0, min(x.shape[axis] if end is None else end, x.shape[axis]), step, axis)


def _flatten(x: Array, start: int = 0, end: int = -1) -> Array:
    end = end % x.ndim
    return x.reshape(*x.shape[: start % x.ndim], -1, *x.shape[end + 1 :])


def _scaled(function: Callable[[Any, Any], Any], x: Any, y: Any, alpha: float = 1) -> Any:
    return function(x, y if alpha == 1 else alpha * y)


def _reduced(
    function: Callable[..., Array], x: Array, axes: Any = None, keep: bool = False, keepdim: bool = False, **_: Any
) -> Array:
    return function(x, tuple(axes) if isinstance(axes, Sequence) else axes, keepdims=keep or keepdim)


def _addmm(bias: Array, x: Array, weight: Array, beta: float = 1, alpha: float = 1) -> Array:
    return beta * bias + alpha * (x @ weight)


def _moment(
    function: Callable[..., Array],
    x: Array,
    axes: Any = None,
    unbiased: bool = True,
    keep: bool = False,
    correction: float | None = None,
    keepdim: bool = False,
) -> Array:
    """Variance or standard deviation, of a sample unless it is said to be of all."""
    if isinstance(axes, bool):
        axes, unbiased = None, axes
    ddof = int(unbiased) if correction is None else correction
    return function(x, tuple(axes) if isinstance(axes, Sequence) else axes, ddof=ddof, keepdims=keep or keepdim)


def _norm(x: Array, order: Any = None, axes: Any = None, keep: bool = False, keepdim: bool = False, **_: Any) -> Array:
    if order not in (None, 2, 2.0):
        raise Unreadable(f"`model`: `linalg_vector_norm` of order {order} can't be read, that of order 2 can.")
    return jnp.sqrt(
        jnp.sum(jnp.square(x), tuple(axes) if isinstance(axes, Sequence) else axes, keepdims=keep or keepdim)
    )


def _expand(x: Array, shape: Sequence[int], **_: Any) -> Array:
    kept = (1,) * (len(shape) - x.ndim) + x.shape
    return jnp.broadcast_to(x, [n if size == -1 else size for size, n in zip(shape, kept, strict=True)])


def _power(x: Any, power: Any) -> Array:
    return jnp.square(x) if isinstance(power, int | float) and power == 2 else jnp.power(x, power)


def _prelu(x: Array, slope: Array) -> Array:
    return jnp.where(x > 0, x, (slope if slope.size == 1 else slope.reshape(-1, *(1,) * (x.ndim - 2))) * x)


def _self(x: Array, *_: Any, **__: Any) -> Array:
    return x


# Steps of exported programs, in JAX; those in place have an underscore more.
_STEPS: dict[str, Callable[..., Any]] = {
    "abs": jnp.abs,
    "add": functools.partial(_scaled, jnp.add),
    "addcdiv": lambda x, y, z, value=1: x + value * y / z,
    "addcmul": lambda x, y, z, value=1: x + value * y * z,
    "addmm": _addmm,
    "alias": _self,
    "alpha_dropout": _alpha_dropout,
    "asinh": jnp.arcsinh,
    "atan": jnp.arctan,
    "batch_norm": _batch_norm,
    "bmm": jnp.matmul,
    "cat": lambda xs, axis=0: jnp.concatenate(xs, axis),
    "celu": jax.nn.celu,
    "chunk": _chunk,
    "clamp": lambda x, low=None, high=None: jnp.clip(x, low, high),
    "clamp_max": jnp.minimum,
    "clamp_min": jnp.maximum,
    "clone": _self,
    "contiguous": _self,
    "conv1d": _conv,
    "conv2d": _conv,
    "conv3d": _conv,
    "cos": jnp.cos,
    "cosh": jnp.cosh,
    "detach": lax.stop_gradient,
    "div": jnp.divide,
    "dropout": _dropout,
    "einsum": lambda equation, arrays, **_: jnp.einsum(equation, *arrays),
    "elu": _elu,
    "erf": jax.scipy.special.erf,
    "exp": jnp.exp,
    "exp2": jnp.exp2,
    "expand": _expand,
    "expand_as": lambda x, like: jnp.broadcast_to(x, like.shape),
    "expm1": jnp.expm1,
    "feature_alpha_dropout": _alpha_dropout,
    "feature_dropout": _dropout,
    "flatten": _flatten,
    "gelu": _gelu,
    "getitem": lambda xs, k: xs[k],
    "ge": jnp.greater_equal,
    "glu": _glu,
    "gt": jnp.greater,
    "hardshrink": lambda x, size=0.5: jnp.where(jnp.abs(x) > size, x, 0),
    "hardsigmoid": lambda x: jnp.clip(x / 6 + 0.5, 0, 1),
    "hardswish": lambda x: x * jnp.clip(x / 6 + 0.5, 0, 1),
    "hardtanh": lambda x, low=-1.0, high=1.0: jnp.clip(x, low, high),
    "layer_norm": _layer_norm,
    "le": jnp.less_equal,
    "leaky_relu": lambda x, slope=0.01: jnp.where(x > 0, x, slope * x),
    "linalg_vector_norm": _norm,
    "linear": _linear,
    "log": jnp.log,
    "log1p": jnp.log1p,
    "log_sigmoid": jax.nn.log_sigmoid,
    "lt": jnp.less,
    "masked_fill": lambda x, mask, value: jnp.where(mask, value, x),
    "matmul": jnp.matmul,
    "maximum": jnp.maximum,
    "mean": functools.partial(_reduced, jnp.mean),
    "minimum": jnp.minimum,
    "mish": jax.nn.mish,
    "mm": jnp.matmul,
    "mul": jnp.multiply,
    "mT": lambda x: jnp.swapaxes(x, -1, -2),
    "neg": jnp.negative,
    "numpy_T": jnp.transpose,
    "pad": _pad,
    "permute": lambda x, axes: jnp.transpose(x, axes),
    "pow": _power,
    "prelu": _prelu,
    "reciprocal": jnp.reciprocal,
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "reshape": lambda x, shape: x.reshape(shape),
    "rms_norm": _rms_norm,
    "rsqrt": lax.rsqrt,
    "rsub": lambda x, y, alpha=1: y - alpha * x,
    "select": lambda x, axis, index: lax.index_in_dim(x, index, axis, keepdims=False),
    "selu": jax.nn.selu,
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
    "sign": jnp.sign,
    "sin": jnp.sin,
    "sinh": jnp.sinh,
    "slice": _slice,
    "softmax": lambda x, axis, dtype=None: jax.nn.softmax(x, axis),
    "softplus": _softplus,
    "softshrink": lambda x, size=0.5: jnp.sign(x) * jnp.maximum(jnp.abs(x) - size, 0),
    "split": _split,
    "split_with_sizes": _split,
    "sqrt": jnp.sqrt,
    "square": jnp.square,
    "std": functools.partial(_moment, jnp.std),
    "squeeze": _squeeze,
    "sub": functools.partial(_scaled, jnp.subtract),
    "sum": functools.partial(_reduced, jnp.sum),
    "t": jnp.transpose,
    "tanh": jnp.tanh,
    "to": _self,
    "threshold": lambda x, least, value: jnp.where(x > least, x, value),
    "transpose": jnp.swapaxes,
    "unflatten": lambda x, axis, sizes: x.reshape(*x.shape[: axis % x.ndim], *sizes, *x.shape[axis % x.ndim + 1 :]),
    "unsqueeze": jnp.expand_dims,
    "var": functools.partial(_moment, jnp.var),
    "view": lambda x, shape: x.reshape(shape),
    "where": jnp.where,
}
