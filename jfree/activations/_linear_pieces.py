"""Activations that are linear between knots."""

import jax.numpy as jnp
from jax.scipy.special import erf, erfc, ndtr
from jaxtyping import Array, ArrayLike, Float

from .._calculus.atoms import Atoms
from .._calculus.law import Law
from .._numerics.checks import check
from ._base import AbstractManySlopes, AbstractTwoSlopes, finite, normal, positive

# How many of infinitely many kinks count: an odd number is the last.
_FARTHEST_BREAK = 7


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

    def slope_factor(self, q: Array, refine: float = 1) -> None:
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

    def slope_law(self, q: Array, refine: float = 1) -> Law:
        square = jnp.square(self.negative_slope).astype(q.dtype)
        half = jnp.asarray(0.5, q.dtype)
        zero = jnp.where(square == 0, half, 0)
        atoms = Atoms(
            1 - zero, jnp.stack([jnp.zeros_like(q), jnp.log(square + (square == 0))]), jnp.stack([half, half - zero])
        )
        weights = jnp.stack([half, half])
        return Law.from_points(jnp.stack([jnp.ones_like(q), square]), weights, weights, atoms)


class ShiftedReLU(AbstractTwoSlopes):
    """`x` above `shift`, `shift` below.

    **Raises:** `ValueError` if `shift` is not finite.
    """

    shift: Float[Array, ""]

    def __init__(self, shift: ArrayLike):
        self.shift = finite("shift", shift)

    @property
    def breaks(self) -> tuple[ArrayLike, ...]:
        return (self.shift,)

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

    @property
    def breaks(self) -> tuple[ArrayLike, ...]:
        return -self.limit / self.gain, self.limit / self.gain

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

    @property
    def breaks(self) -> tuple[ArrayLike, ...]:
        return tuple(range(-_FARTHEST_BREAK, _FARTHEST_BREAK + 1, 2))

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

    def slope_factor(self, q: Array, refine: float = 1) -> None:
        return None


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
