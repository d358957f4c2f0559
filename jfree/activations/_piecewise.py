"""Activations that are analytic between knots, and their laws: atoms, and quadratures on contours from knot to knot."""

import abc
import math
from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr
from jaxtyping import Array, ArrayLike, Float

from .._calculus.atoms import Atoms
from .._calculus.law import Law
from .._numerics.checks import check
from .._numerics.quadrature import gaussian_density, piece_nodes
from ._base import AbstractManySlopes, AbstractTwoSlopes, finite, limited, normal, positive
from ._smooth import SiLU

# Nodes of a piece for moments, on the real line, where all that happens is at its ends.
_NUM_REAL = 160


# Where a Gaussian may be narrow, and how narrow.
_CENTRE = (0.0, 1e-3)


# The slope of a path at a knot, where Im phi'^2 keeps its sign within a right angle.
_STEEP = 0.8


class Clip(AbstractTwoSlopes):
    """`slope * clip(x, low, high) + offset`: ReLU6, hard sigmoids.

    **Raises:** `ValueError` if `slope` is not positive, another is not finite, or `low` is not below `high`.
    """

    low: Float[Array, ""]
    high: Float[Array, ""]
    slope: Float[Array, ""]
    offset: Float[Array, ""]

    def __init__(self, low: ArrayLike, high: ArrayLike, slope: ArrayLike = 1.0, offset: ArrayLike = 0.0):
        self.low, self.offset = finite("low", low), finite("offset", offset)
        self.high = check(finite("high", high), lambda high: high > self.low, "`high` must be above `low`.")
        self.slope = positive("slope", slope)

    @property
    def breaks(self) -> tuple[ArrayLike, ...]:
        return self.low, self.high

    def __call__(self, x: Array) -> Array:
        return self.slope * jnp.clip(x, self.low, self.high) + self.offset

    def derivative(self, x: Array) -> Array:
        return jnp.where((x > self.low) & (x < self.high), self.slope, jnp.zeros_like(x))

    def _clipped(self, q: Array) -> tuple[Array, Array]:
        """Mean and mean square of the clipped."""
        scale = jnp.sqrt(q)
        a, b = self.low / scale, self.high / scale
        mean = self.low * ndtr(a) + self.high * ndtr(-b) + scale * (normal(a) - normal(b))
        inside = self._inside(q) + a * normal(a) - b * normal(b)
        return mean, jnp.square(self.low) * ndtr(a) + jnp.square(self.high) * ndtr(-b) + q * inside

    def _inside(self, q: Array) -> Array:
        a, b = self.low / jnp.sqrt(q), self.high / jnp.sqrt(q)
        above = a + b > 0  # small tails are subtracted from each other
        return jnp.where(above, ndtr(-a) - ndtr(-b), ndtr(b) - ndtr(a))

    def second_moment(self, q: Array) -> Array:
        mean, square = self._clipped(q)
        return jnp.square(self.slope) * square + self.offset * (2 * self.slope * mean + self.offset)

    def mean(self, q: Array) -> Array:
        return self.slope * self._clipped(q)[0] + self.offset

    def slopes(self, q: Array) -> tuple[Array, Array]:
        return self._inside(q), jnp.broadcast_to(jnp.square(self.slope), q.shape)


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


# Of infinitely many breaks of a sine the farthest that counts, in quarters of a period.
_FARTHEST_BREAK = 4


class AbstractStretched(AbstractManySlopes):
    """`phi(beta x) / beta` for another activation `phi`: its law is that of `phi` at `beta^2 q`."""

    beta: eqx.AbstractVar[Float[Array, ""]]

    @property
    @abc.abstractmethod
    def base(self) -> AbstractManySlopes:
        """`phi`."""

    @property
    def breaks(self) -> tuple[ArrayLike, ...]:
        return tuple(place / self.beta for place in self.base.breaks)

    def __call__(self, x: Array) -> Array:
        return self.base(self.beta * x) / self.beta

    def derivative(self, x: Array) -> Array:
        return self.base.derivative(self.beta * x)

    def second_moment(self, q: Array) -> Array:
        return self.base.second_moment(q * jnp.square(self.beta)) / jnp.square(self.beta)

    def mean(self, q: Array) -> Array:
        return self.base.mean(q * jnp.square(self.beta)) / self.beta

    def slope_moment(self, q: Array) -> Array:
        return self.base.slope_moment(q * jnp.square(self.beta))

    def slope_law(self, q: Array, refine: float = 1) -> Law:
        return self.base.slope_law(q * jnp.square(self.beta), refine)


class CELU(AbstractStretched):
    """`x` where positive, `alpha * (exp(x / alpha) - 1)` where not.

    **Raises:** `ValueError` if `alpha` is not positive.
    """

    beta: Float[Array, ""]

    def __init__(self, alpha: ArrayLike = 1.0):
        self.beta = 1 / positive("alpha", alpha)

    @property
    def base(self) -> ELU:
        one = jnp.ones_like(self.beta)
        return ELU(one, one)


class Swish(AbstractStretched):
    """`x / (1 + exp(-beta x))`.

    **Raises:** `ValueError` if `beta` is not positive.
    """

    beta: Float[Array, ""]

    def __init__(self, beta: ArrayLike = 1.0):
        self.beta = positive("beta", beta)

    @property
    def base(self) -> SiLU:
        return SiLU()


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
    """The sine of a phase, whose square of the derivative knows it up to its sign and multiples of pi."""

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
