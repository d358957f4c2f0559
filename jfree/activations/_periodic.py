"""Activations with a periodic slope, whose law is that of one period."""

import math

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from .._calculus.law import Law
from .._numerics.quadrature import gaussian_density
from ._base import AbstractManySlopes, positive
from ._piecewise import AbstractPiecewise

# Of infinitely many breaks of a sine the farthest that counts, in quarters of a period.
_FARTHEST_BREAK = 4


class Sine(AbstractManySlopes):
    """`sin(w0 x)`.

    **Raises:** `ValueError` if `w0` is not positive.
    """

    w0: Float[Array, ""]

    def __init__(self, w0: ArrayLike = 1.0):
        self.w0 = positive("w0", w0)

    @property
    def breaks(self) -> tuple[ArrayLike, ...]:
        return tuple(k * math.pi / 2 / self.w0 for k in range(-_FARTHEST_BREAK, _FARTHEST_BREAK + 1))

    def __call__(self, x: Array) -> Array:
        return jnp.sin(self.w0 * x)

    def derivative(self, x: Array) -> Array:
        return self.w0 * jnp.cos(self.w0 * x)

    def second_moment(self, q: Array) -> Array:
        return -0.5 * jnp.expm1(-2 * jnp.square(self.w0) * q)

    def mean(self, q: Array) -> Array:
        return jnp.zeros_like(q)

    def slope_moment(self, q: Array) -> Array:
        return 0.5 * jnp.square(self.w0) * (1 + jnp.exp(-2 * jnp.square(self.w0) * q))

    def slope_law(self, q: Array, refine: float = 1) -> Law:
        law = _FoldedSine().slope_law(jnp.square(self.w0) * q, refine)
        return eqx.tree_at(lambda law: law.log_mean, law, law.log_mean + 2 * jnp.log(self.w0))


class _FoldedSine(AbstractPiecewise):
    """The sine of a phase, whose squared derivative depends on it only up to sign and multiples of pi."""

    knots = ((0.0, 1e-4), (math.pi / 2, 1e-7))
    bends = (0.4,)
    num_nodes = 240

    def __call__(self, x: Array) -> Array:
        return jnp.sin(x)

    def derivative(self, x: Array) -> Array:
        return jnp.cos(x)

    def _ends(self) -> tuple[float, ...]:
        return 0.0, math.pi / 2

    def density(self, h: Array, q: Array) -> Array:
        """Twice the wrapped normal density of period pi: by its images, or where they are many as a Fourier series."""
        narrow = q < 1
        k = jnp.arange(-_NUM_IMAGES, _NUM_IMAGES + 1, dtype=q.dtype)[:, None, None]
        images = 2 * jnp.sum(gaussian_density(h + math.pi * k, jnp.where(narrow, q, 1)), 0)
        k = jnp.arange(1, _NUM_IMAGES + 1, dtype=q.dtype)[:, None, None]
        series = 1 + 2 * jnp.sum(jnp.exp(-2 * jnp.square(k) * jnp.where(narrow, 1, q)) * jnp.cos(2 * k * h), 0)
        return jnp.where(narrow, images, series * (2 / math.pi))


# Either way, at variance 1, to the last digit.
_NUM_IMAGES = 5
