"""Activations that are analytic."""

import abc
import math
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.scipy.special import erf, ndtr
from jaxtyping import Array, ArrayLike, Float

from .._calculus.atoms import Atoms
from .._calculus.law import Law
from .._numerics.quadrature import gaussian_density, gaussian_measure, graded_nodes, REACH
from .._numerics.special import complex_ndtr
from ._base import AbstractManySlopes, limited, normal

# Of a Gaussian that is shifted, the standard deviation below which structure of size 1 is wide beside it.
_NARROW = 0.3


class AbstractSmooth(AbstractManySlopes):
    """An analytic activation: `phi'^2` has a density, and its law is a quadrature on a contour.

    In `M(w) = E g/(w-g)`, `g = phi'(h)^2`, the path of `h` is bent off the real line to where `Im g < 0`, that is to
    one side on every stretch between critical points of `g`: then `M(x + i0)` meets no pole on the support either.
    """

    num_nodes: ClassVar[int]
    even: ClassVar[bool]  # phi'^2 is even
    clusters: ClassVar[tuple[tuple[float, float], ...]]  # critical points of phi'^2, smallest scale near each

    @property
    def breaks(self) -> tuple[ArrayLike, ...]:
        return tuple(place for place, _ in self.clusters) or (0.0,)

    @abc.abstractmethod
    def contour(self, x: Float[Array, " nodes"], q: Float[Array, ""]) -> Float[Array, " nodes"]:
        """Imaginary part of the contour above `x`."""

    def slope_law(self, q: Array, refine: float = 1) -> Law:
        x, weights, coarse = graded_nodes(q, round(refine * self.num_nodes), even=self.even, clusters=self.clusters)
        return self._law_on(x, weights, coarse, q, 0.0, lambda x: self.contour(x, jax.lax.stop_gradient(q)))

    def shifted_slope_law(self, shift: Array, q: Array, refine: float = 1) -> Law:
        """The law of `phi'(shift + sqrt(q) Z)^2`."""
        variance, centre = jax.lax.stop_gradient((q, shift))
        number = round(refine * self.num_nodes) * (2 if self.even else 1)
        wide = graded_nodes(
            jnp.square(jnp.sqrt(variance) + jnp.abs(centre) / REACH), number, even=False, clusters=self.clusters
        )
        # Where the Gaussian is narrow, and no critical point near, nodes are about its centre.
        x, weights, coarse = graded_nodes(variance, number, even=False)
        far = jnp.min(jnp.abs(centre - jnp.asarray([math.inf, *(place for place, _ in self.clusters)], q.dtype)))
        narrow = variance < jnp.square(jnp.minimum(_NARROW, far / 5))
        x, weights, coarse = (
            jnp.where(narrow, own, other) for own, other in zip((centre + x, weights, coarse), wide, strict=True)
        )

        def contour(x: Array) -> Array:
            height, most = self.contour(x, variance), limited(1.0, variance)
            return height * most * jax.lax.rsqrt(jnp.square(height) + jnp.square(most))

        return self._law_on(x, weights, coarse, q, shift, contour)

    def _law_on(
        self,
        x: Array,
        weights: Array,
        coarse: Array,
        q: Array,
        shift: ArrayLike,
        contour: Callable[[Array], Array],
    ) -> Law:
        height, rise = jax.jvp(contour, (x,), (jnp.ones_like(x),))
        h = jax.lax.complex(x, height)
        measure = gaussian_density(h - shift, q) * jax.lax.complex(jnp.ones_like(x), rise)
        points = jnp.square(self.derivative(h))
        return Law.from_points(points, measure * weights, measure * coarse, Atoms.none(q.dtype))

    def second_moment(self, q: Array) -> Array:
        return self._expect(lambda x: jnp.square(self(x)), q)

    def mean(self, q: Array) -> Array:
        return self._expect(self, q)

    def _expect(self, fn: Callable[[Array], Array], q: Array) -> Array:
        x, measure = gaussian_measure(q, 400)  # to the last digit for all of them
        return jnp.sum(measure * fn(x))


class Tanh(AbstractSmooth):
    """`tanh(x)`."""

    num_nodes = 160
    even = True
    clusters = ((0.0, 1e-4),)

    def __call__(self, x: Array) -> Array:
        return jnp.tanh(x)

    def derivative(self, x: Array) -> Array:
        return _sech_square(x)

    def mean(self, q: Array) -> Array:
        return jnp.zeros_like(q)

    def contour(self, x: Array, q: Array) -> Array:
        return 0.39 * jnp.tanh(1.25 * x)


class Sigmoid(AbstractSmooth):
    """`1 / (1 + exp(-x))`."""

    num_nodes = 160
    even = True
    clusters = ((0.0, 1e-4),)

    def __call__(self, x: Array) -> Array:
        return jax.nn.sigmoid(x)

    def derivative(self, x: Array) -> Array:
        return _sech_square(x / 2) / 4

    def mean(self, q: Array) -> Array:
        return jnp.full_like(q, 0.5)

    def contour(self, x: Array, q: Array) -> Array:
        return 0.78 * jnp.tanh(0.63 * x)


class Erf(AbstractSmooth):
    """`erf(x) = 2/sqrt(pi) int_0^x exp(-t^2) dt`."""

    num_nodes = 512
    even = True
    clusters = ((0.0, 1e-4),)

    def __call__(self, x: Array) -> Array:
        return 2 * complex_ndtr(math.sqrt(2) * x) - 1 if jnp.iscomplexobj(x) else erf(x)

    def derivative(self, x: Array) -> Array:
        return 2 / math.sqrt(math.pi) * jnp.exp(-jnp.square(x))

    def second_moment(self, q: Array) -> Array:
        return 2 / jnp.pi * jnp.arctan(2 * q / jnp.sqrt(1 + 4 * q))

    def mean(self, q: Array) -> Array:
        return jnp.zeros_like(q)

    def contour(self, x: Array, q: Array) -> Array:
        return 0.5 * x / (1 + 1.27 * jnp.square(x))


class Softplus(AbstractSmooth):
    """`log(1 + exp(x))`."""

    num_nodes = 200
    even = False
    clusters = ()

    def __call__(self, x: Array) -> Array:
        return jax.nn.softplus(x)

    def derivative(self, x: Array) -> Array:
        return _logistic(x)

    def contour(self, x: Array, q: Array) -> Array:
        return jnp.broadcast_to(-limited(0.78, q), x.shape)


class SiLU(AbstractSmooth):
    """`x / (1 + exp(-x))`, also called swish."""

    num_nodes = 480
    even = False
    clusters = ((-2.3993572805154674, 1e-3), (-1.2784645427610738, 1e-7), (2.3993572805154674, 1e-3))

    def __call__(self, x: Array) -> Array:
        return jax.nn.silu(x)

    def derivative(self, x: Array) -> Array:
        s = _logistic(x)
        return s * (1 + x * _logistic(-x))

    def contour(self, x: Array, q: Array) -> Array:
        return limited(0.6, q) * _signs(x, -2.3993572805154674, -1.2784645427610738, 2.3993572805154674)


class GELU(AbstractSmooth):
    """`x ndtr(x)`, the exact form."""

    num_nodes = 640
    even = False
    clusters = ((-1.4142135623730951, 1e-3), (-0.7517915240843226, 1e-7), (1.4142135623730951, 1e-3))

    def __call__(self, x: Array) -> Array:
        return x * _ndtr(x)

    def derivative(self, x: Array) -> Array:
        return _ndtr(x) + x * normal(x)

    def contour(self, x: Array, q: Array) -> Array:
        decay = 1 / jnp.sqrt(1 + jnp.square(x) / 2)
        return limited(0.5, q) * decay * _signs(x, -1.4142135623730951, -0.7517915240843226, 1.4142135623730951)


class GELUTanh(AbstractSmooth):
    """`x / 2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`, the default of `jax.nn.gelu`."""

    num_nodes = 640
    even = False
    clusters = ((-1.4185040087908284, 1e-3), (-0.7524614220710163, 1e-7), (1.4185040087908284, 1e-3))

    def __call__(self, x: Array) -> Array:
        return jax.nn.gelu(x, approximate=True)

    def derivative(self, x: Array) -> Array:
        rate = 2 * math.sqrt(2 / math.pi)
        z, slope = rate * x * (1 + 0.044715 * x * x), rate * (1 + 3 * 0.044715 * x * x)
        s = _logistic(z)
        return s * (1 + x * slope * _logistic(-z))

    def contour(self, x: Array, q: Array) -> Array:
        decay = 1 / (1 + jnp.square(x))
        return limited(0.4, q) * decay * _signs(x, -1.4185040087908284, -0.7524614220710163, 1.4185040087908284)


class Mish(AbstractSmooth):
    """`x tanh(softplus(x))`."""

    num_nodes = 480
    even = False
    clusters = ((-2.256376396360793, 1e-3), (-1.1924312145154952, 1e-7), (1.4905711794854285, 1e-3))

    def __call__(self, x: Array) -> Array:
        return jax.nn.mish(x)

    def derivative(self, x: Array) -> Array:
        # tanh(log(1 + e)) = e (e + 2) / (e (e + 2) + 2), in powers of whichever exponential is small.
        negative = x.real < 0
        e = jnp.exp(jnp.where(negative, x, -x))
        low, high = e * (e + 2), 1 + 2 * e
        square = jnp.square(e)
        tanh = jnp.where(negative, low / (low + 2), high / (high + 2 * square))
        slope = jnp.where(
            negative, 4 * e * (1 + e) / jnp.square(low + 2), 4 * square * (1 + e) / jnp.square(high + 2 * square)
        )
        return tanh + x * slope

    def contour(self, x: Array, q: Array) -> Array:
        return limited(0.5, q) * _signs(x, -2.256376396360793, -1.1924312145154952, 1.4905711794854285)


class Squareplus(AbstractSmooth):
    """`(x + sqrt(x^2 + 4)) / 2`."""

    num_nodes = 200
    even = False
    clusters = ()

    def __call__(self, x: Array) -> Array:
        return jax.nn.squareplus(x)

    def derivative(self, x: Array) -> Array:
        root = jnp.sqrt(x * x + 4)
        negative = x.real < 0
        return jnp.where(negative, 2 / (root * (root - jnp.where(negative, x, 0))), 0.5 * (1 + x / root))

    def contour(self, x: Array, q: Array) -> Array:
        return jnp.broadcast_to(-limited(0.8, q), x.shape)


class LogSigmoid(AbstractSmooth):
    """`-log(1 + exp(-x))`."""

    num_nodes = 200
    even = False
    clusters = ()

    def __call__(self, x: Array) -> Array:
        return jax.nn.log_sigmoid(x)

    def derivative(self, x: Array) -> Array:
        return _logistic(-x)

    def contour(self, x: Array, q: Array) -> Array:
        return jnp.broadcast_to(limited(0.78, q), x.shape)


def _ndtr(x: Array) -> Array:
    return complex_ndtr(x) if jnp.iscomplexobj(x) else ndtr(x)


def _signs(x: Array, *critical: float) -> Array:
    """Changes sign at every critical point, +1 beyond the last."""
    value = jnp.ones_like(x)
    for c in critical:
        value = value * jnp.tanh(1.5 * (x - c))
    return value


def _sech_square(x: Array) -> Array:
    """`1 - tanh(x)^2` to full relative accuracy, for complex `x` too."""
    x = jnp.where(x.real < 0, -x, x)
    e = jnp.exp(-2 * x)
    return 4 * e / jnp.square(1 + e)


def _logistic(x: Array) -> Array:
    if not jnp.iscomplexobj(x):
        return jax.nn.sigmoid(x)
    e = jnp.exp(jnp.where(x.real < 0, x, -x))
    return jnp.where(x.real < 0, e, 1) / (1 + e)
