"""Activations that are analytic between knots, and their laws: atoms, and quadratures on contours from knot to knot."""

import math
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from .._calculus.atoms import Atoms
from .._calculus.law import Law
from .._numerics.quadrature import gaussian_density, piece_nodes
from ._base import AbstractManySlopes, limited, positive

# Nodes of a piece for moments, on the real line, where all that happens is at its ends.
_NUM_REAL = 160


# Where a Gaussian may be narrow, and how narrow.
_CENTRE = (0.0, 1e-3)


# The slope of a path at a knot, where Im phi'^2 keeps its sign within a right angle.
_STEEP = 0.8


class AbstractPiecewise(AbstractManySlopes):
    """An activation that is analytic between `knots`, and whose squared derivative is monotone there.

    On a piece where the derivative is constant its square is an atom. On another the law is a quadrature on a path from
    knot to knot, bent to where `Im phi'(h)^2 < 0`; nodes are drawn to its ends, where densities jump or diverge.
    """

    knots: ClassVar[tuple[tuple[float, float], ...]]  # with the smallest scale near each, of singularities in phi'^2
    bends: ClassVar[tuple[float, ...]]  # of the pieces, from the left: heights of the paths; 0 if phi' is constant
    num_nodes: ClassVar[int]  # of a piece

    @property
    def breaks(self) -> tuple[ArrayLike, ...]:
        return tuple(place for place, _ in self.knots)

    def _ends(self) -> tuple[float, ...]:
        return (-math.inf, *(place for place, _ in self.knots), math.inf)

    def _pieces(self, q: Array, num_nodes: int) -> tuple[Array, Array, Array]:
        centred = any(place == 0 for place, _ in self.knots)
        return piece_nodes(q, self._ends(), num_nodes, self.knots if centred else (*self.knots, _CENTRE))

    def density(self, h: Array, q: Array) -> Array:
        """Of `h`, continued analytically."""
        return gaussian_density(h, q)

    def slope_law(self, q: Array, refine: float = 1) -> Law:
        x, weights, coarse = self._pieces(q, round(refine * self.num_nodes))
        path = lambda x: self._path(x, jax.lax.stop_gradient(q))  # noqa: E731
        height, rise = jax.jvp(path, (x,), (jnp.ones_like(x),))
        h = jax.lax.complex(x, height)
        measure = self.density(h, q) * jax.lax.complex(jnp.ones_like(x), rise)
        squares = jnp.square(self.derivative(h))
        fine, rough = measure * weights, measure * coarse
        flat = np.asarray([bend == 0 for bend in self.bends])
        masses, places = jnp.sum(fine[flat], 1), squares[flat, 0]  # of a flat piece one point is enough
        points, fine, rough = (
            jnp.concatenate([piece[~flat].ravel(), point])
            for piece, point in ((squares, places), (fine, masses), (rough, masses))
        )
        return Law.from_points(points, fine, rough, _atoms(places.real, masses.real / jnp.sum(fine).real, q))

    def _path(self, x: Array, q: Array) -> Array:
        """Leaves knots at a steep angle, however narrow the Gaussian."""
        bends = jnp.asarray(self.bends, q.dtype)[:, None]
        most = limited(1.0, q) * jnp.where(bends == 0, 1, jnp.abs(bends))
        rises = [jnp.tanh(_STEEP * jnp.abs(x - place) / most) for place, _ in self.knots]
        return jnp.sign(bends) * most * math.prod(rises[1:], start=rises[0])

    def second_moment(self, q: Array) -> Array:
        return self._expect(lambda x: jnp.square(self(x)), q)

    def mean(self, q: Array) -> Array:
        return self._expect(self, q)

    def slope_moment(self, q: Array) -> Array:
        return self._expect(lambda x: jnp.square(self.derivative(x)), q)

    def _expect(self, fn: Callable[[Array], Array], q: Array) -> Array:
        x, weights, _ = self._pieces(q, _NUM_REAL)
        measure = weights * gaussian_density(x, q)
        return jnp.sum(measure * fn(x)) / jnp.sum(measure)


def _atoms(places: Array, masses: Array, q: Array) -> Atoms:
    if not masses.size:
        return Atoms.none(q.dtype)
    some = places > 0
    zero = jnp.sum(jnp.where(some, 0, masses))
    return Atoms(1 - zero, jnp.log(jnp.where(some, places, 1)), jnp.where(some, masses, 0))


class ELU(AbstractPiecewise):
    """`scale * x` where positive, `scale * alpha * (exp(x) - 1)` where not.

    **Raises:** `ValueError` if `alpha` or `scale` is not positive.
    """

    alpha: Float[Array, ""]
    scale: Float[Array, ""]

    knots = ((0.0, 1e-4),)
    bends = (-0.6, 0.0)
    num_nodes = 160

    def __init__(self, alpha: ArrayLike = 1.0, scale: ArrayLike = 1.0):
        self.alpha, self.scale = positive("alpha", alpha), positive("scale", scale)

    def __call__(self, x: Array) -> Array:
        return self.scale * jnp.where(x > 0, x, self.alpha * jnp.expm1(jnp.minimum(x, 0)))

    def derivative(self, x: Array) -> Array:
        negative = x.real < 0
        return self.scale * jnp.where(negative, self.alpha * jnp.exp(jnp.where(negative, x, 0)), 1)


class ReLUSquared(AbstractPiecewise):
    """`max(x, 0)^2`."""

    knots = ((0.0, 1e-7),)
    bends = (0.0, -0.5)
    num_nodes = 160

    def __call__(self, x: Array) -> Array:
        return jnp.square(jnp.maximum(x, 0))

    def derivative(self, x: Array) -> Array:
        return jnp.where(x.real > 0, 2 * x, 0)


class HardSiLU(AbstractPiecewise):
    """`x clip((x + 3) / 6, 0, 1)`, also called hard swish."""

    knots = ((-3.0, 1e-4), (-1.5, 1e-7), (3.0, 1e-4))
    bends = (0.0, 0.5, -0.5, 0.0)
    num_nodes = 280

    def __call__(self, x: Array) -> Array:
        return x * jnp.clip((x + 3) / 6, 0, 1)

    def derivative(self, x: Array) -> Array:
        return jnp.where(x.real > 3, 1, jnp.where(x.real > -3, (2 * x + 3) / 6, 0)).astype(x.dtype)


class SparsePlus(AbstractPiecewise):
    """0 below -1, `(x + 1)^2 / 4` up to 1, `x` above."""

    knots = ((-1.0, 1e-7), (1.0, 1e-4))
    bends = (0.0, -0.5, 0.0)
    num_nodes = 240

    def __call__(self, x: Array) -> Array:
        return jnp.where(x > 1, x, jnp.square(jnp.maximum(x + 1, 0)) / 4)

    def derivative(self, x: Array) -> Array:
        return jnp.where(x.real > 1, 1, jnp.where(x.real > -1, (x + 1) / 2, 0)).astype(x.dtype)


class Softsign(AbstractPiecewise):
    """`x / (1 + |x|)`."""

    knots = ((0.0, 1e-4),)
    bends = (0.6,)
    num_nodes = 160

    def _ends(self) -> tuple[float, ...]:
        return 0.0, math.inf  # squares of the function and of its derivative are even

    def __call__(self, x: Array) -> Array:
        return x / (1 + jnp.abs(x))

    def derivative(self, x: Array) -> Array:
        return 1 / jnp.square(1 + jnp.where(x.real < 0, -x, x))

    def mean(self, q: Array) -> Array:
        return jnp.zeros_like(q)
