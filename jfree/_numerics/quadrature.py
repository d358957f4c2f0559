"""Gaussian expectations of functions with structure of size 1 around the origin, at any variance."""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float

_PULL = 0.15  # share of the nodes that a cluster draws, per unit of log distance


_CORE = 4.0  # nodes are evenly spaced this far


REACH = 10.0  # standard deviations: the contours below damp the Gaussian a little less than the real line


Clusters = tuple[tuple[float, float], ...]


def graded_nodes(
    variance: Float[Array, ""], num_nodes: int, *, even: bool, clusters: Clusters = ()
) -> tuple[Float[Array, " nodes"], Float[Array, " nodes"], Float[Array, " nodes"]]:
    """Trapezoid nodes, their weights, and the weights of the rule on every other node.

    Evenly spaced for `|x|` below about 4 and geometrically beyond, where activations are constant or linear;
    geometrically towards each of `clusters`, pairs of a place and a smallest scale. Even integrands take the half
    line. No derivative flows into the positions: the integral does not depend on them.
    """
    variance = lax.stop_gradient(variance)
    dtype = variance.dtype
    reach = REACH * jnp.sqrt(variance)

    low = jnp.zeros_like(reach) if even else -reach
    start, end = _grading(low, clusters), _grading(reach, clusters)
    step = (end - start) / num_nodes
    nodes = _nodes_at(start + step * jnp.arange(num_nodes, dtype=dtype), clusters)
    weights = step / _grading_slope(nodes, clusters)
    if even:
        weights = (2 * weights).at[0].divide(2)
    coarse = jnp.where(jnp.arange(num_nodes) % 2 == 0, 2 * weights, 0)
    return nodes, weights, coarse


def _grading(x: Any, clusters: Clusters, asinh: Callable[..., Any] = jnp.arcsinh) -> Any:
    """Rises by a step from node to node."""
    return asinh(x / _CORE) + sum(_PULL * asinh((x - place) / scale) for place, scale in clusters)


def _grading_slope(x: Array, clusters: Clusters) -> Array:
    return lax.rsqrt(x * x + _CORE**2) + sum(
        _PULL * lax.rsqrt(jnp.square(x - place) + scale**2) for place, scale in clusters
    )


def _nodes_at(values: Array, clusters: Clusters) -> Array:
    """Where the grading has these values: Newton's method from a table."""
    if not clusters:
        return _CORE * jnp.sinh(values)
    heights, places = (jnp.asarray(column, values.dtype) for column in _table(clusters))
    x = jnp.interp(values, heights, places)
    for _ in range(5):
        x = x - (_grading(x, clusters) - values) / _grading_slope(x, clusters)
    return x


@functools.cache
def _table(clusters: Clusters) -> tuple[np.ndarray, np.ndarray]:
    """The grading, and where: as dense around every cluster as a linear interpolation asks for at its scale."""
    distances = np.sinh(np.arange(-75, 75.25, 0.25))
    near = [place + scale * distances[np.abs(scale * distances) < 1e3] for place, scale in clusters]
    places = [_CORE * distances, *near]
    x = np.unique(np.concatenate(places))
    return _grading(x, clusters, np.arcsinh), x


def gaussian_measure(
    variance: Float[Array, ""], num_nodes: int
) -> tuple[Float[Array, " nodes"], Float[Array, " nodes"]]:
    """Nodes and weights for expectations of what has structure of size 1 around the origin; the weights add up to 1,
    which makes up for what is cut off beyond their reach.
    """
    x, weights, _ = graded_nodes(variance, num_nodes, even=False)
    measure = weights * gaussian_density(x, variance)
    return x, measure / jnp.sum(measure)


def piece_nodes(
    variance: Float[Array, ""], ends: tuple[ArrayLike, ...], num_nodes: int, clusters: Clusters
) -> tuple[Float[Array, "pieces nodes"], Float[Array, "pieces nodes"], Float[Array, "pieces nodes"]]:
    """Gauss-Legendre on every piece between `ends`, in the coordinate of `graded_nodes`: nodes, weights, and the
    weights of a rule on every other node. Pieces beyond the reach of the Gaussian have no weight.
    """
    variance = lax.stop_gradient(variance)
    reach = REACH * jnp.sqrt(variance)
    places = jnp.clip(jnp.asarray(ends, variance.dtype), -reach, reach)
    heights = _grading(places, clusters)
    x, w, coarse = (jnp.asarray(a, variance.dtype) for a in _nested_gauss(num_nodes))
    half = 0.5 * jnp.diff(heights)[:, None]
    nodes = _nodes_at(heights[:-1, None] + half * (1 + x), clusters)
    nodes = jnp.clip(nodes, places[:-1, None], places[1:, None])  # or rounding may put some on the other side
    scale = half / _grading_slope(nodes, clusters)
    return nodes, scale * w, scale * coarse


def panel_nodes(
    variance: Float[Array, ""], ends: tuple[ArrayLike, ...], num_nodes: int, singular: tuple[float, ...] = ()
) -> tuple[Float[Array, "panels nodes"], Float[Array, "panels nodes"], Float[Array, "panels nodes"]]:
    """Gauss-Legendre on every panel between ends: nodes, weights, and the weights of a rule on every other node.

    Nodes are drawn to those ends that are `singular`, where logarithms may be.
    """
    variance = lax.stop_gradient(variance)
    dtype = variance.dtype
    reach = REACH * jnp.sqrt(variance)
    inner = jnp.clip(jnp.asarray(ends, dtype), -reach, reach)
    places = jnp.concatenate([-reach[None], inner, reach[None]])
    low, size = places[:-1], jnp.diff(places)
    x, w, coarse = _nested_gauss(num_nodes)
    drawn = [end in singular for end in ends]
    maps = [_drawn(0.5 * (1 + x), *ends) for ends in zip([False, *drawn], [*drawn, False], strict=True)]
    share, pull = (jnp.asarray(np.stack(column), dtype) for column in zip(*maps, strict=True))
    nodes, scale = low[:, None] + size[:, None] * share, 0.5 * size[:, None] * pull
    return nodes, scale * jnp.asarray(w, dtype), scale * jnp.asarray(coarse, dtype)


def _drawn(t: np.ndarray, low: bool, high: bool) -> tuple[np.ndarray, np.ndarray]:
    """A map of [0, 1] that is flat to second order at the ends that draw, and its slope."""
    if low and high:
        return t**3 * (10 - 15 * t + 6 * t**2), 30 * np.square(t * (1 - t))
    if high:
        share, pull = _drawn(1 - t, True, False)
        return 1 - share, pull
    return (t**3, 3 * t**2) if low else (t, np.ones_like(t))


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
