"""Gaussian expectations of functions with structure of size 1 around the origin, at any variance."""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

_PULL = 0.15  # share of the nodes that a cluster draws, per unit of log distance
_REACH = 10.0  # standard deviations: the contours below damp the Gaussian a little less than the real line


def graded_nodes(
    variance: Float[Array, ""], num_nodes: int, *, even: bool, clusters: tuple[tuple[float, float], ...] = ()
) -> tuple[Float[Array, " nodes"], Float[Array, " nodes"], Float[Array, " nodes"]]:
    """Trapezoid nodes, their weights, and the weights of the rule on every other node.

    Evenly spaced for `|x|` below about 4 and geometrically beyond, where activations are constant or linear;
    geometrically towards each of `clusters`, pairs of a place and a smallest scale. Even integrands take the half
    line. No derivative flows into the positions: the integral does not depend on them.
    """
    variance = lax.stop_gradient(variance)
    dtype = variance.dtype
    reach = _REACH * jnp.sqrt(variance)

    def tau(x):
        return jnp.arcsinh(x / 4) + sum(_PULL * jnp.arcsinh((x - place) / scale) for place, scale in clusters)

    def density(x):
        return lax.rsqrt(x * x + 16) + sum(
            _PULL * lax.rsqrt(jnp.square(x - place) + scale**2) for place, scale in clusters
        )

    low = jnp.zeros_like(reach) if even else -reach
    step = (tau(reach) - tau(low)) / num_nodes
    targets = tau(low) + step * jnp.arange(num_nodes, dtype=dtype)
    nodes = _bisect(tau, targets, low, reach) if clusters else 4 * jnp.sinh(targets)
    weights = step / density(nodes)
    if even:
        weights = (2 * weights).at[0].divide(2)
    coarse = jnp.where(jnp.arange(num_nodes) % 2 == 0, 2 * weights, 0)
    return nodes, weights, coarse


def _bisect(fn, targets, low, high):
    def halve(_, bracket):
        low, high = bracket
        middle = 0.5 * (low + high)
        below = fn(middle) < targets
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    start = (jnp.broadcast_to(low, targets.shape), jnp.broadcast_to(high, targets.shape))
    return lax.fori_loop(0, 64, halve, start)[0]


def panel_nodes(
    variance: Float[Array, ""], knots: tuple[float, ...], num_nodes: int
) -> tuple[Float[Array, "panels nodes"], Float[Array, "panels nodes"], Float[Array, "panels nodes"]]:
    """Gauss-Legendre on every panel between knots: nodes, weights, and the weights of a rule on every other node."""
    variance = lax.stop_gradient(variance)
    dtype = variance.dtype
    reach = _REACH * jnp.sqrt(variance)
    inner = jnp.clip(jnp.asarray(knots, dtype), -reach, reach)
    ends = jnp.concatenate([-reach[None], inner, reach[None]])
    x, w, coarse = (jnp.asarray(a, dtype) for a in _nested_gauss(num_nodes))
    middle, half = 0.5 * (ends[1:] + ends[:-1]), 0.5 * (ends[1:] - ends[:-1])
    nodes = middle[:, None] + half[:, None] * x
    return nodes, half[:, None] * w, half[:, None] * coarse


def _nested_gauss(num_nodes: int):
    x, w = np.polynomial.legendre.leggauss(num_nodes)
    subset = np.arange(0, num_nodes, 2)
    # Interpolatory weights on every other node, from exactness on Legendre polynomials.
    vandermonde = np.polynomial.legendre.legvander(x[subset], len(subset) - 1).T
    moments = np.zeros(len(subset))
    moments[0] = 2
    coarse = np.zeros(num_nodes)
    coarse[subset] = np.linalg.solve(vandermonde, moments)
    return x, w, coarse


def gaussian_density(x: Array, variance: Float[Array, ""]) -> Array:
    return jnp.exp(-jnp.square(x) / (2 * variance)) / jnp.sqrt(2 * jnp.pi * variance)
