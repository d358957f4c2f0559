"""Points of a curve, and the half planes that they lie in."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Bool, Float, Inexact

from .._numerics.complex import magnitude, reciprocal, scaled, shifted
from .._numerics.implicit import of_correction


def _linear(change: Array, rates: tuple[Array, ...]) -> tuple[Array, ...]:
    return tuple(change * rate for rate in rates)


class Point(eqx.Module):
    """Points of a curve, one per lane, with their tangents along the curve parameter `u`.

    The symbols that all of the calculus shares:

    - `mu`: the spectrum, a measure on the half line of mass 1; `t` are its points.
    - `G(z) = int mu(dt) / (z - t)` and `M(z) = z G(z) - 1 = int t mu(dt) / (z - t)`; `m = M(z)`.
    - `S(m) = (1 + m) / (m z)`: the S-transform, by which free products multiply; so does `z`.
    - `Phi = int log(1 - t/z) mu(dt) + log z`, an antiderivative of `G`.
    - `omega`: the parameter of a curve, the `z` that its start has; `u` is a parameter in which tangents are taken.
    - subordination points: the `z` that an operation's own laws have for the same `m`.
    - `rank`: `-M(0-)`, the mass off zero; `n = m + rank` vanishes with `z`.
    - `side`: what `m` is multiplied by on the present side, `J J^T` or `J^T J`: the ratio of their sizes.
    - lanes: many points at once, the last axis. Arrays over layers have those first.

    All of them are complex. Where they are real, as on the negative axis, they may be given as real numbers, which cost
    less.

    In units of its own: the point is `exp(log_scale) z` and `side m`, `n = m + rank`; `dz` is `d log z / du`, `rate` is
    `d log m / du`. A change of side, or of scale, touches no lane.
    """

    z: Inexact[Array, " lanes"]
    m: Inexact[Array, " lanes"]
    n: Inexact[Array, " lanes"]
    dz: Inexact[Array, " lanes"]
    rate: Inexact[Array, " lanes"]
    rank: Float[Array, ""]
    side: Float[Array, ""]
    log_scale: Float[Array, "*lanes"]

    @property
    def dm(self) -> Inexact[Array, " lanes"]:
        """`dm / du`."""
        return self.m * self.rate

    def one_plus(self, b: ArrayLike) -> Inexact[Array, " lanes"]:
        """`1 + b M(z)`."""
        b = self.side * b
        at_zero = 1 - b * self.rank
        # Far from vanishing at m = -rank: there n, next to rank, would lose the digits of a small m.
        far = at_zero < -1
        step = scaled(b, jax.lax.select(far, self.m, self.n))
        offset = jax.lax.select(far, jnp.ones_like(at_zero), without_rounding(at_zero))
        return shifted(offset, step)

    def on_side(self) -> tuple[Inexact[Array, " lanes"], Inexact[Array, " lanes"], Inexact[Array, " lanes"]]:
        """`m`, `dm` and `1 + m` in units of the side."""
        m = scaled(self.side, self.m)
        return m, m * self.rate, self.one_plus(1.0)

    def multiplied(self, ratio: Array, slope: Array, log_scale: Array) -> "Point":
        """The point with `z` times `exp(log_scale) ratio`, `slope = d log ratio / du`, at the same `m`."""
        return Point(
            self.z * ratio,
            self.m,
            self.n,
            self.dz + slope,
            self.rate,
            self.rank,
            self.side,
            self.log_scale + log_scale,
        )

    def moved(self, change: Array) -> "Point":
        """Along the curve, where `u` changes by so little that only derivatives show it; tangents as they are."""
        rates = self.z * self.dz, self.dm, self.dm
        z, m, n = of_correction(_linear, change, rates)
        return eqx.tree_at(lambda p: (p.z, p.m, p.n), self, (self.z + z, self.m + m, self.n + n))

    def in_own_units(self) -> "Point":
        """With `z` of modulus 1, and units for each lane."""
        size = jax.lax.stop_gradient(magnitude(self.z))
        scale = self.log_scale + jnp.log(size)
        return eqx.tree_at(lambda p: (p.z, p.log_scale), self, (scaled(1 / size, self.z), scale))

    def signs(self, w: Inexact[Array, " lanes"], dw: Inexact[Array, " lanes"]) -> "Signs":
        """Those of a subordination point `w`, known up to a positive factor, with `dw = d log w / du`; constants to
        derivatives.
        """
        w, dw, dm = jax.lax.stop_gradient((w, dw, self.dm))
        (x, y), (dx, dy) = (w.real, w.imag), (dw.real, dw.imag)
        height = y / ((jnp.abs(x) + jnp.abs(y)) * (1 + jnp.abs(dx) + jnp.abs(dy)))
        rise = x * dx - y * dy
        return Signs(height, height, rise * jax.lax.sign(dm.real) < 0)

    def own_signs(self) -> "Signs":
        """Those of `z`."""
        return self.signs(self.z, self.dz)


def without_rounding(x: Array) -> Array:
    """Takes away the rounding that `1 - b rank` leaves where it is zero, but not its derivative."""
    rounding = jax.lax.select(jnp.abs(x) < 8 * jnp.finfo(x.dtype).eps, x, jnp.zeros_like(x))
    return x - jax.lax.stop_gradient(rounding)


class Signs(eqx.Module):
    """Where subordination points lie: the heights of the `lowest` and the `highest` over the real axis, in units of
    what a rounding of `u` could move them, and whether all are `rising` along it where `m` falls, as `z` does off the
    support. The half-plane certificate asks no more.
    """

    lowest: Float[Array, " lanes"]
    highest: Float[Array, " lanes"]
    rising: Bool[Array, " lanes"]

    @staticmethod
    def known(right: Bool[Array, " lanes"], dtype: DTypeLike) -> "Signs":
        """Of points known to lie right, or not to."""
        far = jnp.where(right, jnp.asarray(jnp.inf, dtype), -jnp.inf)
        return Signs(far, -far, right)

    @staticmethod
    def none(like: Inexact[Array, " lanes"]) -> "Signs":
        """Of no points."""
        return Signs.known(jnp.ones(like.shape, bool), like.real.dtype)

    def where(self, there: Bool[Array, " lanes"], other: "Signs") -> "Signs":
        return jax.tree.map(lambda x, y: jnp.where(there, x, y), self, other)

    def mirrored(self, where: Bool[Array, " lanes"]) -> "Signs":
        """Of the same points seen in the real axis, in some places."""
        lowest, highest = jnp.where(where, -self.highest, self.lowest), jnp.where(where, -self.lowest, self.highest)
        return Signs(lowest, highest, self.rising)

    def seen(self, below: Bool[Array, " lanes"], together: Bool[Array, " lanes"]) -> "Signs":
        """From another point, whose `m` moves `together` with this one's; from the lower half plane against it."""
        turned = self.mirrored(below)
        return Signs(turned.lowest, turned.highest, self.rising & (together != below))

    def __and__(self, other: "Signs") -> "Signs":
        return Signs(
            jnp.minimum(self.lowest, other.lowest),
            jnp.maximum(self.highest, other.highest),
            self.rising & other.rising,
        )


def like(lanes: Float[Array, " lanes"], bound: Array | float) -> Float[Array, " lanes"]:
    return jnp.broadcast_to(jnp.asarray(bound, lanes.dtype), lanes.shape)


def relative(tangent: Array, value: Array) -> Array:
    return tangent * reciprocal(value)
