"""Finite networks drawn from the laws of their layers."""

import contextlib
import importlib
import math
from collections.abc import Generator
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray
from threadpoolctl import threadpool_limits

from .._layers.conv import AbstractConv, Conv, Patches
from .._layers.dense import Dense, draw
from .._layers.layer import AbstractLayer, sample_all, sampled_size
from .._layers.weights import AbstractWeights
from .._networks.abstract import AbstractNetwork
from .._networks.mlp import MLP
from .._networks.network import Network
from .._networks.resnet import ResNet
from .._networks.stacked import unrolled
from .._numerics.checks import integer
from .._numerics.compile import much, quickly

_Network = TypeVar("_Network", bound=MLP | ResNet)
_Any = TypeVar("_Any", bound=AbstractNetwork)


_WORTH_THREADS = 512  # the width from which threads make a matrix faster


def sample_weights(
    net: MLP | ResNet | Network, key: PRNGKeyArray, width: int | None = None
) -> list[tuple[Float[Array, "N_out N_in"], Float[Array, " N_out"]]]:
    """Weights and biases of a finite network (host).

    **Arguments:**

    - `net`: what to sample, an `MLP`, a `ResNet` or a `Network`.
    - `key`: of `jax.random`.
    - `width`: the largest width; the others keep their ratios to it, rounded. By default `net.widths` are the widths;
        a `ResNet` has none, and needs it. Layers within a `Residual` may be wider.

    **Returns:** `(W_l, b_l)` for every layer that has weights, in the order in which they act, those of a `ResNet` or a
    `Residual` block by block, in the dtype of `net`. `W_l` has entries `N(0, sigma_w^2 / N_{l-1})`, or is Haar
    orthogonal with entries of that variance, rows less their means if the law is centred; `b_l ~ N(0, sigma_b^2)`.

    **Raises:** `ValueError` if `net` is none of these, `width` is not a positive integer, or a width is not an
    integer or rounds to 0.
    """
    widths = integer_widths(net, width)
    if isinstance(net, Network):
        check_matrices(net)
        return weights_of(sample_network(net, key, scale_of(net, widths)))
    net = with_all_scales(net)
    with few_threads(max(widths)):
        shapes = zip(laws_of_layers(net), widths[1:], widths[:-1], strict=True)
        layers = [
            _sample_layer(law, (num_out, num_in), net.sigma_w, net.sigma_b, key, np.asarray(layer))
            for layer, (law, num_out, num_in) in enumerate(shapes)
        ]
        return jax.block_until_ready(layers)


def with_positions(net: _Any, width: int | None = None) -> tuple[_Any, int | None]:
    """A network of channels, and its largest width, at as many positions as are needed: twice the largest kernel behind
    the last patches. One that has positions already, or needs none, stays as it is.

    **Raises:** `ValueError` where other weights than those of dense layers would have to be convolutions.
    """
    if not isinstance(net, Network):
        return net, width
    layers = unrolled(net.layers)
    parts = [part for layer in layers for part in layer.parts()]
    blank = [part for part in parts if isinstance(part, AbstractConv) and part.positions is None]
    if not blank:
        return net, width
    if len({len(part.size) for part in blank}) > 1:
        raise ValueError("`kernel` and `patch` of all layers of `net` must have as many axes.")
    kernels = [part.size for part in blank if isinstance(part, Conv)]
    at = tuple(2 * max(sizes) for sizes in zip(*kernels, strict=True)) if kernels else (1,) * len(blank[0].size)
    found: list[AbstractLayer] = []
    for layer in reversed(layers):
        found.append(_at_positions(layer, at))
        if isinstance(layer, Patches):
            at = tuple(n * each for n, each in zip(at, layer.patch, strict=True))
    number = math.prod(at)
    spread: Any = Network(net.width * number, found[::-1], net.q0, net.mean0)
    return spread, None if width is None else width * number


def _at_positions(layer: AbstractLayer, positions: tuple[int, ...]) -> AbstractLayer:
    def spread(part: Any) -> Any:
        if isinstance(part, AbstractConv):
            return part.at(positions)
        if isinstance(part, Dense):
            return Conv(part.width, (1,) * len(positions), part.weights, part.sigma_w, part.sigma_b, positions)
        if isinstance(part, AbstractLayer) and part.has_weights:
            raise ValueError(f"`net`: a `{type(part).__name__}` beside a `Conv` without `positions` is not sampled.")
        return part

    def ends(part: Any) -> bool:
        return isinstance(part, AbstractLayer) and len(parts := part.parts()) == 1 and parts[0] is part

    return jax.tree.map(spread, layer, is_leaf=ends)


def check_matrices(net: Network) -> None:
    """**Raises:** `ValueError` if some weights are no matrix."""
    if any(isinstance(part, AbstractConv) for layer in net.layers for part in layer.parts()):
        raise ValueError("`net` must not have a `Conv`, whose weights are no matrix: `jfree.to_equinox` samples it.")


def sample_network(net: Network, key: PRNGKeyArray, scale: float) -> eqx.nn.Sequential:
    """A module per layer, all widths being `scale` times those of `net`."""
    size = sampled_size(net.width, scale)
    with few_threads(round(scale * largest_width(net))):
        return jax.block_until_ready(eqx.nn.Sequential(sample_all(net.layers, size, scale, key, net.q0.dtype)))


def weights_of(model: Any) -> list[tuple[Array, Array]]:
    """Weights and biases of its linear layers, in their order."""
    found = [(linear.weight, linear.bias) for linear in linears(model)]
    return [(weight, jnp.zeros_like(weight[:, 0]) if bias is None else bias) for weight, bias in found]


def linears(model: Any) -> list[eqx.nn.Linear]:
    """Its linear layers, in their order."""
    return [node for node in jax.tree.leaves(model, is_leaf=_is_linear) if _is_linear(node)]


def _is_linear(node: Any) -> bool:
    return isinstance(node, eqx.nn.Linear)


def largest_width(net: Network) -> float:
    """Of all its layers, and of those that they consist of."""
    widths = (part.new_width() for layer in net.layers for part in layer.parts())
    return max(float(width) for width in (net.width, *widths) if width is not None)


def scale_of(net: Network, widths: list[int]) -> float:
    """By what `integer_widths` are larger than those of the network: that of the largest, which is not rounded."""
    return max(widths) / float(jnp.max(net.widths))


def integer_widths(net: AbstractNetwork, width: int | None) -> list[int]:
    """`N_0..N_L` of a finite network, the largest of them `width`."""
    if not isinstance(net, MLP | ResNet | Network):
        raise ValueError(f"`net` must be an MLP, a ResNet or a Network to be sampled, got {type(net).__name__}.")
    if not isinstance(net, ResNet) and width is None:
        return _rounded(net.widths)
    if width is None:
        raise ValueError(f"`width` must be given for a {type(net).__name__}, which has none of its own.")
    width = integer("width", width)
    relative = np.ones(1 + len(net.activations)) if isinstance(net, ResNet) else np.asarray(net.widths, np.float64)
    widths = np.round(relative * (width / relative.max()))
    if widths.min() < 1:
        raise ValueError("`width` is too small: a layer would have no units.")
    return [int(n) for n in widths]


def _rounded(widths: Array) -> list[int]:
    rounded = np.round(np.asarray(widths, np.float64))
    if rounded.min() < 1 or not np.allclose(widths, rounded, rtol=1e-6, atol=0):
        raise ValueError("`widths` of `net` must be integers to be sampled; or give the largest as `width`.")
    return [int(n) for n in rounded]


def laws_of_layers(net: MLP | ResNet) -> list[AbstractWeights]:
    return [law for law in net.weights for _ in range(net.layers_per_block if isinstance(net, ResNet) else 1)]


@contextlib.contextmanager
def few_threads(width: int) -> Generator[None]:
    """One thread for the linear algebra of small matrices: several would wait for each other longer than they work."""
    importlib.import_module("scipy.linalg")  # whose library JAX calls on a CPU
    with threadpool_limits(1 if width < _WORTH_THREADS else None, user_api="blas"):
        yield


@quickly(eqx.filter_jit)
def with_all_scales(net: _Network) -> _Network:
    """The same network, its scales written out for every layer: shared or not, they are one program."""
    return eqx.tree_at(lambda n: (n.sigma_w, n.sigma_b), net, net.scales)


@quickly(eqx.filter_jit, much)
def _sample_layer(
    law: AbstractWeights,
    shape: tuple[int, int],
    sigma_w: Float[Array, "..."],
    sigma_b: Float[Array, "..."],
    key: PRNGKeyArray,
    layer: Int[Array | np.ndarray, ""],
) -> tuple[Array, Array]:
    """One program for all layers of a shape."""
    keys = jax.random.split(key, sigma_w.size)
    return draw(law, shape, sigma_w.ravel()[layer], sigma_b.ravel()[layer], keys[layer])
