"""Activations, with what the wide limit asks of them: Gaussian moments and the law of the squared derivative."""

import abc
import math
from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import erf, erfc, ndtr
from jaxtyping import Array, ArrayLike, Float, Inexact

from ._curve import AbstractOperation
from ._laws import Atoms, Law
from ._misc import check, inexact_asarray, is_finite
from ._operations import Factor, LawFactor
from ._quadrature import gaussian_density, gaussian_measure, graded_nodes
from ._special import complex_ndtr


class AbstractActivation(eqx.Module):
    """A scalar function `phi`, applied entrywise to preactivations `h ~ N(0, q)`."""

    @abc.abstractmethod
    def __call__(self, x: Inexact[Array, "..."]) -> Inexact[Array, "..."]:
        """`phi(x)`."""

    @abc.abstractmethod
    def derivative(self, x: Inexact[Array, "..."]) -> Inexact[Array, "..."]:
        """`phi'(x)`, one-sided at kinks."""

    @abc.abstractmethod
    def second_moment(self, q: Float[Array, ""]) -> Float[Array, ""]:
        """`E phi(sqrt(q) Z)^2`."""

    @abc.abstractmethod
    def mean(self, q: Float[Array, ""]) -> Float[Array, ""]:
        """`E phi(sqrt(q) Z)`."""

    @abc.abstractmethod
    def slope_moment(self, q: Float[Array, ""]) -> Float[Array, ""]:
        """`E phi'(sqrt(q) Z)^2`."""

    @abc.abstractmethod
    def slope_factor(self, q: Float[Array, ""], refine: int = 1) -> AbstractOperation | None:
        """Free multiplication by the law of `phi'(sqrt(q) Z)^2`, `q > 0`: a `Factor`, or a `LawFactor` by `refine`
        times the usual number of points where it has a choice; None where all slopes are of size 1.

        A network in which no other layer has such a law needs more points: its subordination points come down to the
        axis.
        """


class AbstractTwoSlopes(AbstractActivation):
    """`phi'^2` is `gamma` with probability `alpha` and 0 otherwise: `S(m) = (1+m) / (gamma (alpha+m))`."""

    @abc.abstractmethod
    def slopes(self, q: Float[Array, ""]) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """`(alpha, gamma)`."""

    def slope_moment(self, q: Array) -> Array:
        alpha, gamma = self.slopes(q)
        return alpha * gamma

    def slope_factor(self, q: Array, refine: int = 1) -> Factor | None:
        alpha, gamma = (jnp.asarray(x, q.dtype) for x in self.slopes(q))
        atoms = Atoms(alpha, jnp.log(gamma)[None], alpha[None])
        return Factor(alpha * gamma, jnp.ones_like(q), 1 / alpha, atoms)


class AbstractManySlopes(AbstractActivation):
    """`phi'^2` has a law without an elementary S-transform: it is held by points and weights."""

    @abc.abstractmethod
    def slope_law(self, q: Float[Array, ""], refine: int = 1) -> Law:
        """The law of `phi'(sqrt(q) Z)^2`, `q > 0`."""

    def slope_moment(self, q: Array) -> Array:
        return jnp.exp(self.slope_law(q).log_mean)

    def slope_factor(self, q: Array, refine: int = 1) -> LawFactor:
        return LawFactor(self.slope_law(q, refine))


class Linear(AbstractTwoSlopes):
    """`x`."""

    def __call__(self, x: Array) -> Array:
        return x

    def derivative(self, x: Array) -> Array:
        return jnp.ones_like(x)

    def second_moment(self, q: Array) -> Array:
        return q

    def mean(self, q: Array) -> Array:
        return jnp.zeros_like(q)

    def slopes(self, q: Array) -> tuple[Array, Array]:
        return jnp.ones_like(q), jnp.ones_like(q)

    def slope_factor(self, q: Array, refine: int = 1) -> None:
        return None


class ReLU(AbstractTwoSlopes):
    """`max(x, 0)`."""

    def __call__(self, x: Array) -> Array:
        return jnp.maximum(x, 0)

    def derivative(self, x: Array) -> Array:
        return jnp.where(x > 0, 1, 0).astype(x.dtype)

    def second_moment(self, q: Array) -> Array:
        return q / 2

    def mean(self, q: Array) -> Array:
        return jnp.sqrt(q / (2 * jnp.pi))

    def slopes(self, q: Array) -> tuple[Array, Array]:
        return jnp.full_like(q, 0.5), jnp.ones_like(q)


class LeakyReLU(AbstractManySlopes):
    """`x` where positive, `negative_slope * x` where not.

    **Raises:** `ValueError` if `negative_slope` is not finite.
    """

    negative_slope: Float[Array, ""]

    def __init__(self, negative_slope: ArrayLike = 0.01):
        self.negative_slope = finite("negative_slope", negative_slope)

    def __call__(self, x: Array) -> Array:
        return jnp.where(x > 0, x, self.negative_slope * x)

    def derivative(self, x: Array) -> Array:
        return jnp.where(x > 0, jnp.ones_like(x), self.negative_slope)

    def second_moment(self, q: Array) -> Array:
        return q * (1 + jnp.square(self.negative_slope)) / 2

    def mean(self, q: Array) -> Array:
        return (1 - self.negative_slope) * jnp.sqrt(q / (2 * jnp.pi))

    def slope_law(self, q: Array, refine: int = 1) -> Law:
        square = jnp.square(self.negative_slope).astype(q.dtype)
        half = jnp.asarray(0.5, q.dtype)
        zero = jnp.where(square == 0, half, 0)
        atoms = Atoms(
            1 - zero, jnp.stack([jnp.zeros_like(q), jnp.log(square + (square == 0))]), jnp.stack([half, half - zero])
        )
        weights = jnp.stack([half, half])
        return Law.from_points(jnp.stack([jnp.ones_like(q), square]), weights, weights, atoms.merged())


class ShiftedReLU(AbstractTwoSlopes):
    """`x` above `shift`, `shift` below.

    **Raises:** `ValueError` if `shift` is not finite.
    """

    shift: Float[Array, ""]

    def __init__(self, shift: ArrayLike):
        self.shift = finite("shift", shift)

    def __call__(self, x: Array) -> Array:
        return jnp.maximum(x, self.shift)

    def derivative(self, x: Array) -> Array:
        return jnp.where(x > self.shift, 1, 0).astype(x.dtype)

    def second_moment(self, q: Array) -> Array:
        t = self.shift / jnp.sqrt(q)
        return q * (ndtr(-t) + t * normal(t)) + jnp.square(self.shift) * ndtr(t)

    def mean(self, q: Array) -> Array:
        t = self.shift / jnp.sqrt(q)
        return jnp.sqrt(q) * normal(t) + self.shift * ndtr(t)

    def slopes(self, q: Array) -> tuple[Array, Array]:
        return ndtr(-self.shift / jnp.sqrt(q)), jnp.ones_like(q)


class HardTanh(AbstractTwoSlopes):
    """`clip(gain * x, -limit, limit)`.

    **Raises:** `ValueError` if `gain` or `limit` is not positive.
    """

    gain: Float[Array, ""]
    limit: Float[Array, ""]

    def __init__(self, gain: ArrayLike = 1.0, limit: ArrayLike = 1.0):
        self.gain = positive("gain", gain)
        self.limit = positive("limit", limit)

    def __call__(self, x: Array) -> Array:
        return jnp.clip(self.gain * x, -self.limit, self.limit)

    def derivative(self, x: Array) -> Array:
        return jnp.where(jnp.abs(self.gain * x) < self.limit, self.gain, jnp.zeros_like(x))

    def second_moment(self, q: Array) -> Array:
        r = q * jnp.square(self.gain / self.limit)
        p = erf(1 / jnp.sqrt(2 * r))
        inside = r * (p - jnp.sqrt(2 / (jnp.pi * r)) * jnp.exp(-1 / (2 * r)))
        return jnp.square(self.limit) * (inside + erfc(1 / jnp.sqrt(2 * r)))

    def mean(self, q: Array) -> Array:
        return jnp.zeros_like(q)

    def slopes(self, q: Array) -> tuple[Array, Array]:
        return erf(self.limit / (self.gain * jnp.sqrt(2 * q))), jnp.broadcast_to(jnp.square(self.gain), q.shape)


class HardSine(AbstractTwoSlopes):
    """The triangle wave of slope 1 and period 4, `2/pi arcsin(sin(pi x / 2))`."""

    def __call__(self, x: Array) -> Array:
        return jnp.abs(jnp.mod(x - 1, 4) - 2) - 1

    def derivative(self, x: Array) -> Array:
        return jnp.where(jnp.mod(x - 1, 4) < 2, -jnp.ones_like(x), 1)

    def second_moment(self, q: Array) -> Array:
        n = jnp.arange(1, 80, dtype=q.dtype)
        signs = jnp.where(n % 2 == 0, 1, -1)
        series = 1 / 3 + 4 / jnp.pi**2 * jnp.sum(signs * jnp.exp(-q * jnp.square(jnp.pi * n) / 2) / jnp.square(n))
        return jnp.where(q < 0.01, q, series)  # below, P(|h| > 1) < 1e-22 and the series is long

    def mean(self, q: Array) -> Array:
        return jnp.zeros_like(q)

    def slopes(self, q: Array) -> tuple[Array, Array]:
        return jnp.ones_like(q), jnp.ones_like(q)

    def slope_factor(self, q: Array, refine: int = 1) -> None:
        return None


class AbstractSmooth(AbstractManySlopes):
    """An analytic activation: `phi'^2` has a density, and its law is a quadrature on a contour.

    In `M(w) = E g/(w-g)`, `g = phi'(h)^2`, the path of `h` is bent off the real line to where `Im g < 0`, that is to
    one side on every stretch between critical points of `g`: then `M(x + i0)` meets no pole on the support either.
    """

    num_nodes: ClassVar[int]
    even: ClassVar[bool]  # phi'^2 is even
    clusters: ClassVar[tuple[tuple[float, float], ...]]  # critical points of phi'^2, smallest scale near each

    @abc.abstractmethod
    def bend(self, x: Float[Array, " nodes"], q: Float[Array, ""]) -> Float[Array, " nodes"]:
        """Imaginary part of the contour above `x`."""

    def slope_law(self, q: Array, refine: int = 1) -> Law:
        x, weights, coarse = graded_nodes(q, refine * self.num_nodes, even=self.even, clusters=self.clusters)
        bend = lambda x: self.bend(x, jax.lax.stop_gradient(q))  # noqa: E731
        height, rise = jax.jvp(bend, (x,), (jnp.ones_like(x),))
        h = jax.lax.complex(x, height)
        measure = gaussian_density(h, q) * jax.lax.complex(jnp.ones_like(x), rise)
        points = jnp.square(self.derivative(h))
        return Law.from_points(points, measure * weights, measure * coarse, Atoms.none(q.dtype))

    def second_moment(self, q: Array) -> Array:
        return self._expect(lambda x: jnp.square(self(x)), q)

    def mean(self, q: Array) -> Array:
        return self._expect(self, q)

    def _expect(self, fn: Callable[[Array], Array], q: Array) -> Array:
        x, measure = gaussian_measure(q, 400)  # to the last digit for all of them
        return jnp.sum(measure * fn(x))


def limited(height: float, q: Array) -> Array:
    """`height`, but at most of the order of `sqrt(q)`, beyond which the Gaussian would grow along the contour."""
    return height * jnp.sqrt(q / (q + height**2))


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

    def bend(self, x: Array, q: Array) -> Array:
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

    def bend(self, x: Array, q: Array) -> Array:
        return 0.78 * jnp.tanh(0.63 * x)


class Erf(AbstractSmooth):
    """`erf(x) = 2/sqrt(pi) int_0^x exp(-t^2) dt`."""

    num_nodes = 512
    even = True
    clusters = ((0.0, 1e-4),)

    def __call__(self, x: Array) -> Array:
        return erf(x)

    def derivative(self, x: Array) -> Array:
        return 2 / math.sqrt(math.pi) * jnp.exp(-jnp.square(x))

    def second_moment(self, q: Array) -> Array:
        return 2 / jnp.pi * jnp.arctan(2 * q / jnp.sqrt(1 + 4 * q))

    def mean(self, q: Array) -> Array:
        return jnp.zeros_like(q)

    def bend(self, x: Array, q: Array) -> Array:
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

    def bend(self, x: Array, q: Array) -> Array:
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

    def bend(self, x: Array, q: Array) -> Array:
        return limited(0.6, q) * _signs(x, -2.3993572805154674, -1.2784645427610738, 2.3993572805154674)


class GELU(AbstractSmooth):
    """`x ndtr(x)`, the exact form."""

    num_nodes = 640
    even = False
    clusters = ((-1.4142135623730951, 1e-3), (-0.7517915240843226, 1e-7), (1.4142135623730951, 1e-3))

    def __call__(self, x: Array) -> Array:
        return x * ndtr(x)

    def derivative(self, x: Array) -> Array:
        cdf = complex_ndtr(x) if jnp.iscomplexobj(x) else ndtr(x)
        return cdf + x * normal(x)

    def bend(self, x: Array, q: Array) -> Array:
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

    def bend(self, x: Array, q: Array) -> Array:
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

    def bend(self, x: Array, q: Array) -> Array:
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

    def bend(self, x: Array, q: Array) -> Array:
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

    def bend(self, x: Array, q: Array) -> Array:
        return jnp.broadcast_to(limited(0.78, q), x.shape)


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


def normal(x: Array) -> Array:
    return jnp.exp(-jnp.square(x) / 2) / math.sqrt(2 * math.pi)


def finite(name: str, value: ArrayLike) -> Array:
    return check(inexact_asarray(value), is_finite, f"`{name}` must be finite.")


def positive(name: str, value: ArrayLike) -> Array:
    return check(inexact_asarray(value), lambda x: (x > 0) & (x < np.inf), f"`{name}` must be positive and finite.")
