"""What residual networks of very many small blocks come to."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._numerics.complex import exponential, magnitude, reciprocal
from .atoms import Atoms
from .curve import Curve
from .operation import AbstractOperation, Moments, Step
from .point import Point


class UniversalFactor(AbstractOperation):
    """`S(m) = exp(-theta (2 m + 1))`: what very many blocks with very small branches amount to."""

    theta: Float[Array, "*layers"]

    def advance(self, point: Point, unknowns: Array) -> Step:
        m, dm, one = point.on_side()
        ratio, slope = exponential(2 * self.theta * m), 2 * self.theta * dm
        new = point.multiplied(ratio, slope, self.theta)
        own = one * jax.lax.conj(m) * ratio  # (1 + m) / (m S(m)), but for a positive factor
        signs = point.signs(own, slope - point.rate * reciprocal(one)) & new.own_signs()
        there = jnp.where(self.theta > 0, 1.0, 0.0)
        return Step.explicit(new, signs, there, jnp.maximum(there, 4 * self.theta * magnitude(m)))

    def potential(self, psi: Array, log_z: Array, before: Point, step: Step) -> tuple[Array, Array]:
        m = before.side * before.m
        change = self.theta * m * (m + 2)
        log_ratio = 2 * self.theta * m
        return psi + (change - (1 - before.side) * log_ratio) / before.side, log_z + log_ratio

    def moments(self, c: Moments) -> Moments:
        return c.times(self.theta, 2 * self.theta)

    def atoms(self, atoms: Atoms) -> Atoms:
        return Atoms(atoms.rank, atoms.log_locations, jnp.where(self.theta > 0, 0, atoms.masses))

    def log_volume(self, rank: Array) -> Array:
        return self.theta * rank * (1 - rank)

    def neutral(self):
        return UniversalFactor(jnp.zeros_like(self.theta))


def universal_curve(theta: Float[Array, ""]) -> Curve:
    return Curve((UniversalFactor(theta[None]),), (), jnp.ones_like(theta), 1)
