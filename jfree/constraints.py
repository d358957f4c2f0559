"""Constraints: functions that make a network obey, differentiably, by setting what is left to set.

`tune` applies its constraint to the network before the objective, and to the result.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._layers.kinds import Kinds
from ._layers.layer import Signal
from ._layers.weights import centred_layers
from ._meanfield.moments import seen_moment
from ._networks.abstract import AbstractNetwork
from ._networks.growth import variance_at_root, with_growth
from ._networks.mlp import MLP
from ._networks.network import Network
from ._networks.resnet import ResNet
from ._numerics.arrays import is_concrete
from ._numerics.compile import quickly
from .activations._base import AbstractActivation

Constraint = Callable[[AbstractNetwork], AbstractNetwork]


def parameter_budget(num_weights: float, num_inputs: float, num_outputs: float) -> Constraint:
    """Sets the outer widths of an MLP, and scales the hidden ones such that `sum_l N_l N_{l-1} = num_weights`.

    **Raises:** `ValueError` if an argument is not positive; when applied, for networks without hidden layers.
    """
    for name, value in (("num_weights", num_weights), ("num_inputs", num_inputs), ("num_outputs", num_outputs)):
        _positive(name, value)

    def constrain(net: AbstractNetwork) -> AbstractNetwork:
        net = _mlp("parameter_budget", net)
        if net.depth < 2:
            raise ValueError("`parameter_budget` is for networks with hidden layers.")
        widths = net.widths.at[0].set(num_inputs).at[-1].set(num_outputs)
        products = widths[:-1] * widths[1:]
        if net.depth == 2:
            scale = num_weights / jnp.sum(products)
        else:
            ends, inner = products[0] + products[-1], jnp.sum(products[1:-1])
            scale = 2 * num_weights / (ends + jnp.sqrt(jnp.square(ends) + 4 * inner * num_weights))
        return eqx.tree_at(lambda n: n.widths, net, widths.at[1:-1].multiply(scale))

    return constrain


def total_variance(total: float) -> Constraint:
    """Scales `sigma_w` such that the sum of its squares over all layers is `total`.

    **Raises:** `ValueError` if `total` is not positive.
    """
    _positive("total", total)

    def constrain(net: AbstractNetwork) -> AbstractNetwork:
        if not isinstance(net, MLP | ResNet):
            raise ValueError(f"`total_variance` is for an MLP or a ResNet, got {type(net).__name__}.")
        sigma_w = net.sigma_w
        layers = net.depth * (net.layers_per_block if isinstance(net, ResNet) else 1)
        share = layers / sigma_w.size
        scaled = sigma_w * jnp.sqrt(total / (share * jnp.sum(jnp.square(sigma_w))))
        return eqx.tree_at(lambda n: n.sigma_w, net, scaled)

    return constrain


def fixed_variance(q: float | Float[Array, ""]) -> Constraint:
    """Sets `sigma_w` of an MLP such that the preactivations of all layers have variance `q`, given `sigma_b`.

    A floor on nonlinearity. What is left to tune are the biases, from `sigma_b = 0`, `sigma_w` at its largest, to
    `sigma_b^2` near `q` (beyond `0.99 q` it is cut).

    **Raises:** `ValueError` if `q` is not positive, or the network to be constrained is not an `MLP`.
    """
    _positive("q", q)

    def constrain(net: AbstractNetwork) -> AbstractNetwork:
        net = _mlp("fixed_variance", net)
        square = jnp.broadcast_to(jnp.asarray(q, net.q0.dtype), net.depth)
        sigma_b = jnp.minimum(jnp.broadcast_to(net.sigma_b, net.depth), 0.99**0.5 * jnp.sqrt(square))
        seen = jax.lax.map(lambda layer: _seen(net)(*layer), (jnp.arange(net.depth), square))
        sigma_w = jnp.sqrt((square - jnp.square(sigma_b)) / jnp.append(net.q0, seen[:-1]))
        return eqx.tree_at(lambda n: (n.sigma_w, n.sigma_b), net, (sigma_w, sigma_b))

    return constrain


def criticality(q: float | None = None, growth: float = 1.0) -> Constraint:
    """Sets `sigma_w` such that squared gradients grow by `growth` in every layer of an MLP or block of a `Network`, by
    default by 1, at the signal that it meets: `chi` of `jfree.propagate`, of an MLP `sigma_w^2 E phi'(h)^2`.

    With `q`, sets `sigma_b` of an MLP, too, such that all preactivations have variance `q`; where that would take a
    negative `sigma_b^2` it is 0, and `q` is larger. NaN where no `sigma_w^2` between `exp(-40)` and `exp(40)`, or for
    blocks no such multiple of those they have, does it.

    The blocks of a `Network` are: every time of a `Repeat`, as a whole; outside of it, every layer with a skip; and all
    other weights, with what stands behind them up to the next block. In each, all weights outside of branches, and the
    last of every branch, are multiplied by one factor: a `Repeat` then has a `sigma_w` for each time. Beside a skip a
    branch can only add to gradients: take `growth = 1 + 1 / L` for `L` blocks, and they grow by less than `e` in all.

    **Arguments:** a variance, and a factor, both dimensionless.

    **Raises:** `ValueError` if `q` or `growth` is not positive, the network to be constrained is neither an `MLP` nor a
    `Network`, or `q` is given for a `Network`.
    """
    if q is not None:
        _positive("q", q)
    _positive("growth", growth)

    def constrain(net: AbstractNetwork) -> AbstractNetwork:
        if not isinstance(net, MLP | Network):
            raise ValueError(f"`criticality` is for an MLP or a Network, got {type(net).__name__}.")
        if isinstance(net, MLP):
            return _critical_mlp(net, q, growth)
        if q is not None:
            raise ValueError("`q` of `criticality` must not be given for a Network: it is for an MLP.")
        return _critical_network(net, jnp.asarray(growth, net.q0.dtype))

    return constrain


def _critical_mlp(net: MLP, q: float | None, growth: float) -> MLP:
    sigma_b = jnp.broadcast_to(net.sigma_b, net.depth)

    def layer(phi2: Array, xs: tuple[Array, Array]):
        index, variance_b = xs
        if q is not None:
            slope = _slope_moment(net.activations, index, jnp.full_like(phi2, q))
            variance_b = jnp.maximum(q - growth * phi2 / slope, 0)
        args = (phi2, variance_b, net.activations, index, growth)
        variance = variance_at_root(_log_excess, phi2, args)
        return _seen(net)(index, variance * phi2 + variance_b), (jnp.sqrt(variance), variance_b)

    _, (sigma_w, variance_b) = jax.lax.scan(layer, net.q0, (jnp.arange(net.depth), jnp.square(sigma_b)))
    if q is not None:
        sigma_b = jnp.where(variance_b > 0, jnp.sqrt(jnp.where(variance_b > 0, variance_b, 1)), 0)
    return eqx.tree_at(lambda n: (n.sigma_w, n.sigma_b), net, (sigma_w, sigma_b))


@quickly(eqx.filter_jit)
def _critical_network(net: Network, growth: Array) -> Network:
    layers, _ = with_growth(net.layers, Signal(net.width, net.q0, net.mean0), growth)
    return eqx.tree_at(lambda n: n.layers, net, layers)


def stable(chi_q: float = 1.0) -> Constraint:
    """Lowers `sigma_w` of an MLP where differences of variance would grow from a layer to the next by more than
    `chi_q`. What is left to tune are the biases: larger ones make signals large, of which activations such as GELU keep
    the variance.

    **Raises:** `ValueError` if `chi_q` is not positive, or the network to be constrained is not an `MLP`.
    """
    _positive("chi_q", chi_q)

    def constrain(net: AbstractNetwork) -> AbstractNetwork:
        net = _mlp("stable", net)
        variance_w, variance_b = (jnp.square(scale) for scale in net.scales)

        def layer(state: tuple[Array, Array], xs: tuple[Array, Array, Array]):
            phi2, slope = state
            index, variance_w, variance_b = xs
            variance_w = jnp.where(variance_w * slope > chi_q, chi_q / jnp.where(slope > 0, slope, 1), variance_w)
            q = variance_w * phi2 + variance_b
            return jax.jvp(lambda q: _seen(net)(index, q), (q,), (jnp.ones_like(q),)), variance_w

        start = net.q0, jnp.zeros_like(net.q0)
        _, variance_w = jax.lax.scan(layer, start, (jnp.arange(net.depth), variance_w, variance_b))
        return eqx.tree_at(lambda n: n.sigma_w, net, jnp.sqrt(variance_w))

    return constrain


def _seen(net: MLP) -> Callable[[Array, Array], Array]:
    """`E phi(h)^2` of a layer and a variance, as far as the next layer sees it."""
    return seen_moment(Kinds.of(net.activations).at, centred_layers(Kinds.of(net.weights)))


def _slope_moment(activations: tuple[AbstractActivation, ...], index: Array, q: Array) -> Array:
    return Kinds.of(activations).at(lambda phi, q: phi.slope_moment(q))(index, q)


def _log_excess(
    log_variance: Array,
    phi2: Array,
    variance_b: Array,
    activations: tuple[AbstractActivation, ...],
    index: Array,
    growth: float,
) -> Array:
    """Of `chi` over what it should be."""
    variance = jnp.exp(log_variance)
    return jnp.log(variance * _slope_moment(activations, index, variance * phi2 + variance_b) / growth)


def _mlp(name: str, net: AbstractNetwork) -> MLP:
    if not isinstance(net, MLP):
        raise ValueError(f"`{name}` is for an MLP, got {type(net).__name__}.")
    return net


def _positive(name: str, value: float | Array) -> None:
    if isinstance(value, jax.Array) and not is_concrete(value):
        return
    if not isinstance(value, int | float | np.number | jax.Array) or not 0 < value < np.inf:
        raise ValueError(f"`{name}` must be positive and finite, got {value!r}.")
