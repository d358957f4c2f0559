"""How nonlinear a network is: a linear one is isometric for nothing."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._layers.kinds import Kinds
from .._meanfield.moments import in_range
from .._numerics.quadrature import gaussian_measure
from ..activations._base import AbstractActivation
from ..activations._two_slopes import Linear
from .mlp import MLP

_NUM_NODES = 400


def nonlinearity(net: MLP) -> Float[Array, " layers"]:
    """Of every layer, the share of the variance of its activations that is no linear function of its preactivations:
    `1 - q (E phi'(h))^2 / Var phi(h)`, `h ~ N(0, q)`, from 0 to 1.

    **Raises:** `ValueError` if `net` is not an `MLP`.
    """
    if not isinstance(net, MLP):
        raise ValueError(f"`net` must be an MLP, got {type(net).__name__}.")
    return Kinds.of(net.activations).every(_unexplained)(in_range(net.propagate().q))


def _unexplained(activation: AbstractActivation, q: Float[Array, ""]) -> Array:
    x, measure = gaussian_measure(q, _NUM_NODES)
    values = activation(x)
    values = values - jnp.sum(measure * values)
    variance = jnp.sum(measure * jnp.square(values))
    rest = values - x * jnp.sum(measure * x * values) / q
    return jnp.where(variance > 0, jnp.sum(measure * jnp.square(rest)) / jnp.where(variance > 0, variance, 1), 0)


def too_linear(net: MLP, least: Array) -> Float[Array, ""]:
    """0 where every nonlinear layer has its part of what all together shall have at `least`, and else the sum of the
    squared logarithms of what is missing.
    """
    counts = jnp.asarray([not isinstance(activation, Linear) for activation in net.activations])
    share = jnp.maximum(nonlinearity(net), jnp.finfo(net.q0.dtype).tiny)
    missing = jnp.log(least / jnp.maximum(jnp.sum(counts), 1)) - jnp.log(share)
    return jnp.sum(jnp.square(jnp.where(counts, jax.nn.relu(missing), 0)))
