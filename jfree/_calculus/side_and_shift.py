"""From `J J^T` to `J^T J`, and multiples of the identity that are added."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._numerics.complex import log_upper, reciprocal, scaled
from .atoms import Atoms
from .factor import moebius_log_volume
from .operation import AbstractOperation, Moments, Step
from .point import Point, relative, Signs


class ChangeSide(AbstractOperation):
    """`A` of size N seen as the matrix of size `N / ratio` with the same nonzero eigenvalues: `m -> ratio m`."""

    ratio: Float[Array, "*layers"]

    moves_points = False

    def advance(self, point: Point, unknowns: Array) -> Step:
        new = eqx.tree_at(lambda p: p.side, point, point.side * self.ratio)
        return Step.explicit(new, Signs.none(point.z))

    def potential(self, psi: Array, log_z: Array, before: Point, step: Step) -> tuple[Array, Array]:
        return psi, log_z

    def moments(self, c: Moments) -> Moments:
        return Moments(
            log_mean=c.log_mean + jnp.log(self.ratio),
            relative_variance=(c.relative_variance + 1) / self.ratio - 1,
            log_scale=c.log_scale,
            log_floor=c.log_floor,
        )

    def atoms(self, atoms: Atoms) -> Atoms:
        return atoms.other_side(self.ratio)

    def beyond(self, rank: Array) -> Array:
        return self.ratio * rank

    def log_volume(self, rank: Array) -> Array:
        one = jnp.ones_like(rank)
        return rank * jnp.log(self.ratio) + moebius_log_volume(one, rank) - moebius_log_volume(self.ratio, rank)

    def neutral(self):
        return ChangeSide(jnp.ones_like(self.ratio))


class Shift(AbstractOperation):
    """`A + a I`: `z -> z + a`, `m -> m + a (m + 1) / z`; the units become those of the side it happens on."""

    amount: Float[Array, "*layers"]

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
        dz = relative(point.dz, growth)
        unit = jnp.ones_like(point.rank)
        m = m + added
        new = Point(
            z=point.z * growth,
            m=m,
            n=rest,
            dz=dz,
            rate=relative(dm, m),
            rank=unit,
            side=unit,
            log_scale=point.log_scale,
        )
        return Step.explicit(new, new.own_signs())

    def potential(self, psi: Array, log_z: Array, before: Point, step: Step) -> tuple[Array, Array]:
        return before.side * psi + (1 - before.side) * log_z, log_upper(step.point.z)

    def moments(self, c: Moments) -> Moments:
        log_amount = jnp.where(self.amount > 0, jnp.log(jnp.where(self.amount > 0, self.amount, 1)), -jnp.inf)
        log_mean = jnp.logaddexp(c.log_mean, log_amount)
        floor = jnp.where(self.amount > 0, log_amount, c.log_floor)
        return Moments(
            log_mean=log_mean,
            relative_variance=c.relative_variance * jnp.exp(2 * (c.log_mean - log_mean)),
            log_scale=c.log_scale,
            log_floor=floor,
        )

    def atoms(self, atoms: Atoms) -> Atoms:
        return atoms.plus(self.amount)

    def neutral(self):
        return Shift(jnp.zeros_like(self.amount))
