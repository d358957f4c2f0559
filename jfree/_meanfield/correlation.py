"""How alike the signals of two inputs are, layer by layer."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._numerics.implicit import bisect, implicit_root, with_slope
from .._numerics.quadrature import gaussian_measure
from ..activations._base import AbstractActivation
from .moments import in_range, second_moment

# Hermite polynomials that are counted one by one, and nodes of the integrals with them.
_NUM_TERMS, _NUM_NODES = 512, 4000


def hermite_shares(activation: AbstractActivation, q: Float[Array, ""]) -> Float[Array, " terms"]:
    """`a_n^2`, with `E phi(u) phi(v) = sum_n a_n^2 c^n` for Gaussian `u`, `v` of variance `q` and correlation `c`; the
    last is what all further ones add up to.
    """
    x, measure = gaussian_measure(in_range(q), _NUM_NODES)
    z, weighted = x / jnp.sqrt(in_range(q)), measure * activation(x)

    def term(polynomials: tuple[Array, Array], n: Array) -> tuple[tuple[Array, Array], Array]:
        before, this = polynomials
        following = (z * this - jnp.sqrt(n) * before) / jnp.sqrt(n + 1)
        return (this, following), jnp.square(jnp.sum(weighted * this))

    start = jnp.zeros_like(z), jnp.ones_like(z)
    _, shares = jax.lax.scan(term, start, jnp.arange(_NUM_TERMS, dtype=z.dtype))
    return jnp.append(shares, jnp.maximum(second_moment(activation, q) - jnp.sum(shares), 0))


def mapped(c: Array, shares: Float[Array, " terms"], variance_w: Array, variance_b: Array) -> Float[Array, ""]:
    """The correlation after a layer, of one before."""
    return (variance_w * jnp.polyval(shares[::-1], c) + variance_b) / (variance_w * jnp.sum(shares) + variance_b)


def settled(
    activation: AbstractActivation, sigma_w: Array, sigma_b: Array, q: Array, chi: Array
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The correlation that inputs of the fixed variance `q` end with, and the slope of the map there.

    Coefficients are not negative, so that the map is convex: there is one below 1 where its slope at 1, `chi`, exceeds
    1.
    """
    args = hermite_shares(activation, q), jnp.square(sigma_w), jnp.square(sigma_b)
    frozen = jax.lax.stop_gradient(args)
    margin = jnp.finfo(q.dtype).eps ** 0.5
    root = bisect(lambda c: c - mapped(c, *frozen), jnp.zeros_like(q), jnp.ones_like(q) - margin)
    below = (chi > 1 + margin) & (root < 1 - 2 * margin)
    c = implicit_root(with_slope(lambda c, *args: mapped(c, *args) - c), root, args, below)
    return jnp.where(below, c, 1), jnp.where(below, jax.grad(mapped)(c, *args), chi)
