"""The operations networks are made of: factors, changes of side, shifts."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ._curve import AbstractOperation, Cumulants, Point, Signs, Step
from ._implicit import at_extremum, bisect, implicit_root, with_slope
from ._laws import Atoms, Law, Transform
from ._misc import (
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

# By how much Newton's method may change log w at once. On the axis M is monotone, and w may have far to go: a share of
# the range of floats.
_LONGEST, _LONGEST_PER_RANGE = 2, 22


class Factor(AbstractOperation):
    """Free multiplication by a law with `S(m) = (1 + a m) / (mean (1 + b m))`.

    Gaussian weights have `a = 0`, orthogonal ones `a = b = 0` or `a = 1`, two atoms `{0, gamma}` have `a = 1`,
    `b = 1/alpha`: every explicit factor of the theory is of this form.
    """

    mean: Float[Array, " layers"]
    a: Float[Array, " layers"]
    b: Float[Array, " layers"]
    law_atoms: Atoms

    def advance(self, point: Point, unknowns: Array) -> Step:
        num, den = point.one_plus(self.b), point.one_plus(self.a)
        per_num, per_den = reciprocal(num), reciprocal(den)
        ratio = num * per_den
        _, dm, one = point.on_side()
        slope = scaled(self.b - self.a, dm * per_num * per_den)
        new = point.multiplied(ratio, slope, jnp.log(self.mean))
        # Its own subordination point (1 + m) / (m S(m)), but for a positive factor.
        own = one * jax.lax.conj(point.m) * ratio
        signs = point.signs(own, slope - point.rate * reciprocal(one)) & new.own_signs()
        moves = (self.a != self.b).astype(self.a.dtype)
        pole, zero = moves * squared(per_den), moves * squared(per_num)
        return Step.explicit(new, signs, pole, pole, zero)

    def potential(self, psi: Array, log_z: Array, before: Point, step: Step) -> tuple[Array, Array]:
        log_num, log_den = _log_moebius(self.b, before), _log_moebius(self.a, before)
        gained = _gained(self.b, before, log_num) - _gained(self.a, before, log_den)
        return psi + gained, log_z + log_num - log_den

    def cumulants(self, c: Cumulants) -> Cumulants:
        return c.times(jnp.log(self.mean), self.b - self.a)

    def atoms(self, atoms: Atoms) -> Atoms:
        return atoms.times(self.law_atoms)

    def log_volume(self, rank: Array) -> Array:
        return rank * jnp.log(self.mean) + _log_volume(self.b, rank) - _log_volume(self.a, rank)

    @property
    def num_atoms(self):
        return self.law_atoms.size

    def fitted(self, num_points: int, num_atoms: int, dtype: DTypeLike) -> "Factor":
        return Factor(self.mean, self.a, self.b, self.law_atoms.resized(num_atoms))

    def masked(self, keep: Array) -> "Factor":
        """Of a law with one atom that is not at 0, as the squares of entries of which only a share is kept, divided by
        it.
        """
        share = self.law_atoms.rank * keep
        square = self.mean / (self.law_atoms.rank * jnp.square(keep))
        atoms = Atoms(share, jnp.log(square)[None], share[None])
        return Factor(share * square, jnp.ones_like(share), 1 / share, atoms)

    def neutral(self):
        return point_masses(jnp.ones_like(self.mean), self.law_atoms.size)


def point_mass(location: Float[Array, ""]) -> Factor:
    """A multiple of the identity, of one layer."""
    return jax.tree.map(lambda x: x[0], point_masses(location[None], 1))


def point_masses(location: Float[Array, " layers"], num_atoms: int) -> Factor:
    """Free factors that are multiples of the identity."""
    zero = jnp.zeros_like(location)
    one_atom = Atoms(zero + 1, jnp.log(location)[:, None], jnp.ones_like(location)[:, None])
    return Factor(location, zero, zero, one_atom.resized(num_atoms))


def _log_volume(a: Array, rank: Array) -> Array:
    """`int_0^rank log(1 - a u) du`."""
    safe = jnp.where(a == 0, 1, a)
    return jnp.where(a == 0, 0, -(x_log_x(1 - a * rank) + a * rank) / safe)


def _log_moebius(a: Array, point: Point) -> Array:
    """`log(1 + a m)`."""
    return log_one_plus(scaled(a * point.side, point.m), point.one_plus(a))


def _gained(a: Array, point: Point, log_moebius: Array) -> Array:
    """`(m+1) log(1 + a m) - int_0^m log(1 + a m') dm'`, with `m` and `a` as counted at the start."""
    share = 1 - 1 / (jnp.where(a == 0, 1, a) * point.side)
    return jnp.where(a == 0, 0, scaled(share, log_moebius) + point.m)


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
        w = implicit_root(_law_gap, unknown, (self.law, m, one))
        moments = self.law.transform(w)
        # Newton's step for log w, in whichever of log M and log (1 + M) is the steeper; next to a pole, in 1/M.
        have, want = _either(moments, w, m, one)
        stiffness = -have * reciprocal(w * moments.slope)
        change = jnp.where(magnitude(have) > 1, 1 - have * reciprocal(want), logarithm(want * reciprocal(have)))
        step = change * stiffness
        step = jax.lax.stop_gradient(step)  # w has its derivatives already
        correction = magnitude(step)
        limit = jnp.where(unknown.imag == 0, max(8, log_max(m.real.dtype) / _LONGEST_PER_RANGE), _LONGEST)
        w = w * exponential(step * jnp.minimum(1, limit / jnp.maximum(correction, limit / 2)))
        dw = _relative(dm, want) * stiffness
        slope = _relative(dm, m) - _relative(dm, one) + dw
        new = point.multiplied(m * w * reciprocal(one), slope, self.law.log_mean)
        # The inverse of M is analytic in a disk of this radius: Smale's bound for M, whose k-th Taylor coefficient
        # at w is at most total / distance^(k-1), with 0.13 for his 0.17 since those of the inverse may grow like k.
        near = magnitude(m) * moments.total / (0.13 * squared(moments.slope) * moments.distance)
        closeness = jnp.square(near)
        # It is univalent there: |w''| <= 4 near |w'|, and w' stays of the size of w next to a pole of M.
        rate = magnitude(dw) / magnitude(point.rate)
        curvature = jnp.minimum(closeness, rate * (4 * near + rate))
        mismatch = magnitude(change)
        signs = point.signs(w, dw) & new.own_signs()
        # Where w does not vanish with it, 1 + m leaves a pole.
        to_pole = jnp.where(self.law.atoms.rank < 1, 1 / squared(one), 0)
        spread = self.law.spread != 0  # or else w is linear in 1/m
        bounds = (closeness * spread, curvature * spread, to_pole * spread)
        return Step(new, w[None], dw[None], signs, correction, mismatch, *bounds, moments.roughness)

    def potential(self, psi: Array, log_z: Array, before: Point, step: Step) -> tuple[Array, Array]:
        (w,) = step.unknowns
        log_one = log_one_plus(before.side * before.m, before.one_plus(1))
        log_ratio = log_lower(before.side * before.m) + log_upper(w) - log_one
        own = self.law.log_transform(w) + log_one
        return psi + own / before.side + log_ratio, log_z + log_ratio

    def cumulants(self, c: Cumulants) -> Cumulants:
        return c.times(self.law.log_mean, self.law.spread)

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
    return jax.lax.complex(-jnp.exp(log_w), jnp.zeros_like(log_w))[None]


def _either(moments: Transform, w: Array, m: Array, one: Array) -> tuple[Array, Array]:
    """`M(w)` and `m`, or `1 + M(w)` and `1 + m`: the pair that is small, accurate, and steep in log w."""
    rest = w * moments.g
    near_zero = magnitude(rest) < magnitude(moments.m)
    return jnp.where(near_zero, rest, moments.m), jnp.where(near_zero, one, m)


def _law_gap(w: Array, law: Law, m: Array, one: Array) -> tuple[Array, Array]:
    moments = law.transform(w)
    have, want = _either(moments, w, m, one)
    return have - want, -moments.slope


def _relative(tangent: Array, value: Array) -> Array:
    return tangent * reciprocal(value)


class ChangeSide(AbstractOperation):
    """`A` of size N seen as the matrix of size `N / ratio` with the same nonzero eigenvalues: `m -> ratio m`."""

    ratio: Float[Array, " layers"]

    moves_points = False

    def advance(self, point: Point, unknowns: Array) -> Step:
        new = Point(
            point.z, point.m, point.n, point.dz, point.rate, point.rank, point.side * self.ratio, point.log_scale
        )
        return Step.explicit(new, Signs.none(point.z))

    def potential(self, psi: Array, log_z: Array, before: Point, step: Step) -> tuple[Array, Array]:
        return psi, log_z

    def cumulants(self, c: Cumulants) -> Cumulants:
        return Cumulants(c.log_mean + jnp.log(self.ratio), (c.spread + 1) / self.ratio - 1, c.log_scale, c.log_floor)

    def atoms(self, atoms: Atoms) -> Atoms:
        return atoms.other_side(self.ratio)

    def beyond(self, rank: Array) -> Array:
        return self.ratio * rank

    def log_volume(self, rank: Array) -> Array:
        one = jnp.ones_like(rank)
        return rank * jnp.log(self.ratio) + _log_volume(one, rank) - _log_volume(self.ratio, rank)

    def neutral(self):
        return ChangeSide(jnp.ones_like(self.ratio))


class Shift(AbstractOperation):
    """`A + a I`: `z -> z + a`, `m -> m + a (m + 1) / z`; the units become those of the side it happens on."""

    amount: Float[Array, " layers"]

    moves_zeros = True
    starts_far = True

    def advance(self, point: Point, unknowns: Array) -> Step:
        share = self.amount * jnp.exp(-point.log_scale) * reciprocal(point.z)
        one, growth = point.one_plus(1), 1 + share
        growth = jnp.where(growth == 0, jnp.finfo(share.dtype).eps, growth)
        rest = one * growth
        added = share * one
        m = scaled(point.side, point.m)
        dm = m * point.rate * growth - added * point.dz
        dz = _relative(point.dz, growth)
        unit = jnp.ones_like(point.rank)
        m = m + added
        new = Point(point.z * growth, m, rest, dz, _relative(dm, m), unit, unit, point.log_scale)
        return Step.explicit(new, new.own_signs())

    def potential(self, psi: Array, log_z: Array, before: Point, step: Step) -> tuple[Array, Array]:
        return before.side * psi + (1 - before.side) * log_z, log_upper(step.point.z)

    def cumulants(self, c: Cumulants) -> Cumulants:
        log_amount = jnp.where(self.amount > 0, jnp.log(jnp.where(self.amount > 0, self.amount, 1)), -jnp.inf)
        log_mean = jnp.logaddexp(c.log_mean, log_amount)
        floor = jnp.where(self.amount > 0, log_amount, c.log_floor)
        return Cumulants(log_mean, c.spread * jnp.exp(2 * (c.log_mean - log_mean)), c.log_scale, floor)

    def atoms(self, atoms: Atoms) -> Atoms:
        return atoms.plus(self.amount)

    def neutral(self):
        return Shift(jnp.zeros_like(self.amount))
