"""Free factors of any law on the half line, with one unknown."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array

from .._numerics.complex import (
    as_complex,
    exponential,
    log_lower,
    log_max,
    log_one_plus,
    log_upper,
    logarithm,
    magnitude,
    reciprocal,
    scaled,
    squared,
    x_log_x,
)
from .._numerics.implicit import at_extremum, bisect, of_correction, with_slope
from .atoms import Atoms
from .law import Law, Transform
from .operation import AbstractOperation, Moments, Step
from .point import Point, relative

# By how much Newton's method may change log w at once. On the axis M is monotone, and w may have far to go: a share of
# the range of floats.
_LONGEST, _LONGEST_PER_RANGE = 2, 22


class LawFactor(AbstractOperation):
    """Free multiplication by a law known by its points and weights: one unknown `w` with `M_law(w) = m`."""

    law: Law

    @property
    def num_unknowns(self):
        return 1

    @property
    def num_points(self):
        return self.law.points.shape[-1]

    @property
    def num_atoms(self):
        return self.law.atoms.size

    def fitted(self, num_points: int, num_atoms: int, dtype: DTypeLike) -> "LawFactor":
        return LawFactor(self.law.resized(num_points, num_atoms, dtype))

    def masked(self, keep: Array) -> "LawFactor":
        """As the squares of entries of which only a share is kept, divided by it."""
        return LawFactor(self.law.masked(keep))

    @property
    def reach(self):
        return 3 * jnp.max(jnp.abs(self.law.points))

    def guess(self, point: Point) -> Array:
        return (point.one_plus(1) * reciprocal(point.side * point.m))[None]

    def advance(self, point: Point, unknowns: Array) -> Step:
        (unknown,) = unknowns
        m, dm, one = point.on_side()
        sums = self.law.transform(unknown)
        # Newton's step for log w, in whichever of log M and log (1 + M) is the steeper; next to a pole, in 1/M.
        value, target = _either(sums, unknown, m, one)
        stiffness = -value * reciprocal(unknown * sums.slope)
        change = jnp.where(magnitude(value) > 1, 1 - value * reciprocal(target), logarithm(target * reciprocal(value)))
        step = of_correction(jnp.multiply, change, stiffness)
        correction = magnitude(jax.lax.stop_gradient(step))
        limit = jnp.where(unknown.imag == 0, max(8, log_max(m.real.dtype) / _LONGEST_PER_RANGE), _LONGEST)
        w = unknown * exponential(scaled(jnp.minimum(1, limit / jnp.maximum(correction, limit / 2)), step))
        dw = relative(dm, target) * stiffness
        slope = relative(dm, m) - relative(dm, one) + dw
        new = point.multiplied(m * w * reciprocal(one), slope, self.law.log_mean)
        signs = point.signs(w, dw) & new.own_signs()
        closeness, curvature, to_pole = self._singularities(
            *jax.lax.stop_gradient((sums, m, one, magnitude(dw) / magnitude(point.rate)))
        )
        return Step(
            point=new,
            unknowns=w[None],
            tangents=dw[None],
            signs=signs,
            correction=correction,
            mismatch=magnitude(jax.lax.stop_gradient(change)),
            closeness=closeness,
            curvature=curvature,
            closeness_to_zeros=to_pole,
            roughness=sums.roughness,
        )

    def _singularities(self, sums: Transform, m: Array, one: Array, rate: Array) -> tuple[Array, Array, Array]:
        """The closeness of singularities, the curvature and the closeness of zeros, `rate` being that of `w` over that
        of `m`.
        """
        # The inverse of M is analytic in a disk of this radius: Smale's bound for M, whose k-th Taylor coefficient
        # at w is at most total / distance^(k-1), with 0.13 for his 0.17 since those of the inverse may grow like k.
        near = magnitude(m) * sums.total / (0.13 * squared(sums.slope) * sums.distance)
        closeness = jnp.square(near)
        # It is univalent there: |w''| <= 4 near |w'|, and w' stays of the size of w next to a pole of M.
        curvature = jnp.minimum(closeness, rate * (4 * near + rate))
        # Where w does not vanish with it, 1 + m leaves a pole.
        to_pole = jnp.where(self.law.atoms.rank < 1, 1 / squared(one), 0)
        varies = self.law.relative_variance != 0  # or else w is linear in 1/m
        return closeness * varies, curvature * varies, to_pole * varies

    def potential(self, psi: Array, log_z: Array, before: Point, step: Step) -> tuple[Array, Array]:
        (w,) = step.unknowns
        log_one = log_one_plus(before.side * before.m, before.one_plus(1))
        log_ratio = log_lower(before.side * before.m) + log_upper(w) - log_one
        own = self.law.log_transform(w) + log_one
        return psi + own / before.side + log_ratio, log_z + log_ratio

    def moments(self, c: Moments) -> Moments:
        return c.times(self.law.log_mean, self.law.relative_variance)

    def atoms(self, atoms: Atoms) -> Atoms:
        return atoms.times(self.law.atoms)

    def log_volume(self, rank: Array) -> Array:
        law, dtype = self.law, rank.dtype
        far = 0.4 * log_max(dtype)
        args = (law, rank)
        frozen = jax.lax.stop_gradient(args)
        log_w = bisect(lambda v: _missing(v, *frozen), -far + 0 * rank, far + 0 * rank)
        whole = rank > (1 - 64 * jnp.finfo(dtype).eps) * law.atoms.rank
        log_w = jnp.where(whole, 0, log_w)
        inside = at_extremum(_volume_at, with_slope(_missing), log_w, args, ~whole)
        volume = jnp.where(whole, law.mean_log(), inside)
        return volume + rank * law.log_mean + x_log_x(rank) + x_log_x(1 - rank)

    def neutral(self):
        law = self.law
        one = Law.point_mass(law.log_mean.dtype).resized(law.points.shape[-1], law.atoms.size, law.points.dtype)
        return LawFactor(jax.tree.map(lambda x, like: jnp.broadcast_to(x, like.shape), one, law))


def _missing(log_w: Array, law: Law, rank: Array) -> Array:
    """By how much the rank exceeds `-M(w)`, `w < 0`."""
    return rank + law.transform(_negative(log_w)).m.real[0]


def _volume_at(log_w: Array, law: Law, rank: Array) -> Array:
    """`int_0^rank log|w| du` where `w`, at its end, solves `-M(w) = rank`, and is least."""
    return rank * log_w + law.log_transform(_negative(log_w)).real[0]


def _negative(log_w: Array) -> Array:
    return as_complex(-jnp.exp(log_w))[None]


def _either(sums: Transform, w: Array, m: Array, one: Array) -> tuple[Array, Array]:
    """`M(w)` and `m`, or `1 + M(w)` and `1 + m`: the pair that is small, accurate, and steep in log w."""
    rest = w * sums.g
    near_zero = magnitude(rest) < magnitude(sums.m)
    return jnp.where(near_zero, rest, sums.m), jnp.where(near_zero, one, m)
