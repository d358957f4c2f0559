"""How nonlinear a network is: a linear one is isometric for nothing."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._layers.activation import Activation
from .._layers.kinds import Kinds
from .._meanfield.moments import in_range
from .._numerics.quadrature import gaussian_measure
from ..activations._base import AbstractActivation
from ..activations._linear_pieces import Linear
from .mlp import MLP
from .network import Network
from .stacked import joined

_NUM_NODES = 400


def nonlinearity(net: MLP | Network) -> Float[Array, " layers"]:
    """Of every activation, the share of its variance that is no linear function of its preactivations:
    `1 - q (E phi'(h))^2 / Var phi(h)`, `h ~ N(0, q)`, from 0 to 1.

    Those within branches of a `Network` are not counted.

    **Raises:** `ValueError` if `net` is neither an `MLP` nor a `Network`.
    """
    if not isinstance(net, MLP | Network):
        raise ValueError(f"`net` must be an MLP or a Network, got {type(net).__name__}.")
    activations, q = _activations(net)
    return Kinds.of(activations).every(_unexplained)(in_range(q)) if activations else jnp.zeros(0, q.dtype)


def _activations(net: MLP | Network) -> tuple[list[AbstractActivation], Float[Array, " layers"]]:
    """With the variances of what comes in."""
    q = net.propagate().q
    if isinstance(net, MLP):
        return list(net.activations), q
    found = _layers(net)
    return [*found.values()], q[jnp.asarray([*found], int)]


def _layers(net: Network) -> dict[int, AbstractActivation]:
    """The activations outside of branches, by their places."""
    return {k: layer.activation for k, layer in enumerate(joined(net.layers)) if isinstance(layer, Activation)}


def _unexplained(activation: AbstractActivation, q: Float[Array, ""]) -> Array:
    x, measure = gaussian_measure(q, _NUM_NODES)
    values = activation(x)
    values = values - jnp.sum(measure * values)
    variance = jnp.sum(measure * jnp.square(values))
    rest = values - x * jnp.sum(measure * x * values) / q
    return jnp.where(variance > 0, jnp.sum(measure * jnp.square(rest)) / jnp.where(variance > 0, variance, 1), 0)


# What all layers together keep, and each at most. Of 50 and of 100 layers of tanh or leaky ReLU, those train fastest on
# images that have about this sum (docs/worth.md); shallow networks need not be so nonlinear.
_SUM, _EACH = 0.5, 0.025


def usual_nonlinearity(net: MLP | Network) -> float:
    """The sum over layers that networks of this depth train well with."""
    return min(_SUM, _EACH * sum(_counts(net)))


def usual_share(depth: int) -> float:
    """That of a single layer, if all are alike."""
    return min(_SUM / depth, _EACH)


def _counts(net: MLP | Network) -> list[bool]:
    """Which activations are nonlinear."""
    activations = net.activations if isinstance(net, MLP) else _layers(net).values()
    return [not isinstance(activation, Linear) for activation in activations]


def too_linear(net: MLP | Network, least: Array) -> Float[Array, ""]:
    """0 where every nonlinear layer has its part of what all together shall have at `least`, and else the sum of the
    squared logarithms of what is missing.
    """
    counts = jnp.asarray(_counts(net), bool)
    share = jnp.maximum(nonlinearity(net), jnp.finfo(net.q0.dtype).tiny)
    missing = jnp.log(least / jnp.maximum(jnp.sum(counts), 1)) - jnp.log(share)
    return jnp.sum(jnp.square(jnp.where(counts, jax.nn.relu(missing), 0)))
