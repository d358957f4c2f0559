"""Layers scaled such that squared gradients grow by a given factor in every block."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._layers.layer import AbstractLayer, behind, Signal
from .._layers.repeat import Repeat
from .._numerics.implicit import bisect, implicit_root, with_slope
from .branches import AbstractBranches
from .stacked import unrolled

Layers = tuple[AbstractLayer, ...]


def variance_at_root(
    log_excess: Callable[..., Float[Array, ""]], like: Float[Array, ""], args: tuple[Any, ...]
) -> Float[Array, ""]:
    """The `v` where `log_excess(log v, *args)` changes its sign, differentiably; NaN if that is not between `exp(-40)`
    and `exp(40)`.
    """
    frozen = jax.lax.stop_gradient(args)
    low, high = jnp.asarray([-40.0, 40.0], like.dtype)
    rising = jnp.where(log_excess(high, *frozen) < log_excess(low, *frozen), -1, 1).astype(like.dtype)
    root = bisect(lambda log_v: rising * log_excess(log_v, *frozen), low, high)
    found = jnp.abs(root) < 39.9
    return jnp.where(found, jnp.exp(implicit_root(with_slope(log_excess), root, args, found)), jnp.nan)


def with_growth(layers: Layers, signal: Signal, growth: Array) -> tuple[Layers, Signal]:
    """The layers, with weights by which every block multiplies the mean of `J J^T` by `growth`, and the signal behind
    them. A block is one time of a `Repeat`, a layer with a skip, or other weights with what follows up to the next of
    these.
    """
    found: list[AbstractLayer] = []
    for block in _blocks(layers):
        if isinstance(block[0], Repeat):
            new, signal = _repeated(block[0], signal, growth)
            found.append(new)
        else:
            new, signal = _block(block, signal, growth)
            found += new
    return tuple(found), signal


def _blocks(layers: Layers) -> list[Layers]:
    found: list[Layers] = []
    takes_more = False
    for layer in layers:
        weighs, several = layer.new_width() is not None, isinstance(layer, Repeat)
        if takes_more and not (weighs or several or layer.skips):
            found[-1] += (layer,)
        else:
            found.append((layer,))
            takes_more = weighs and not several
    return found


def _repeated(repeat: Repeat, signal: Signal, growth: Array) -> tuple[Repeat, Signal]:
    own, shared = repeat.own_and_shared()

    def time(signal: Signal, own: Layers) -> tuple[Signal, list[Array]]:
        layers, signal = _block(eqx.combine(own, shared), signal, growth)
        return signal, _last_scales(layers)

    signal, scales = jax.lax.scan(time, signal, own, length=repeat.number)
    return eqx.tree_at(lambda r: _last_scales(r.layers), repeat, scales), signal


def _block(layers: Layers, signal: Signal, growth: Array) -> tuple[Layers, Signal]:
    if _last_scales(layers):
        factor = jnp.sqrt(variance_at_root(_log_excess, signal.square, (layers, signal, growth)))
        layers = _scaled(layers, factor)
    return layers, _through(layers, signal)[1]


def _log_excess(log_variance: Array, layers: Layers, signal: Signal, growth: Array) -> Float[Array, ""]:
    return _through(_scaled(layers, jnp.exp(log_variance / 2)), signal)[0] - jnp.log(growth)


def _through(layers: Layers, signal: Signal) -> tuple[Float[Array, ""], Signal]:
    """The logarithm of what they multiply the mean of `J J^T` by, and the signal behind them."""
    total = jnp.zeros_like(signal.square)
    for layer in unrolled(layers):
        total = total + jnp.log(layer.growth(signal))
        signal = behind(layer, signal)
    return total, signal


def _scaled(layers: Layers, factor: Float[Array, ""]) -> Layers:
    return eqx.tree_at(_last_scales, layers, replace_fn=lambda sigma_w: factor * sigma_w)


def _last_scales(layers: Layers) -> list[Array]:
    """`sigma_w` of the last weights of every branch, and of all weights outside of branches."""
    found: list[Any] = []
    for layer in layers:
        if isinstance(layer, Repeat):
            found += _last_scales(layer.layers)
        elif isinstance(layer, AbstractBranches):
            for branch in layer.all_branches():
                found += _last_scales(tuple(one for one in branch if one.new_width() is not None)[-1:])
        elif layer.new_width() is not None:
            found.append(layer.sigma_w)  # pyright: ignore[reportAttributeAccessIssue]
    return found
