"""Free factors whose S-transform is a Moebius function."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from .._numerics.complex import log_one_plus, reciprocal, scaled, squared, x_log_x
from .atoms import Atoms
from .operation import AbstractOperation, Moments, Step
from .point import Point


class Factor(AbstractOperation):
    """Free multiplication by a law with `S(m) = (1 + a m) / (mean (1 + b m))`.

    Gaussian weights have `a = 0`, orthogonal ones `a = b = 0` or `a = 1`, two atoms `{0, gamma}` have `a = 1`,
    `b = 1/alpha`.
    """

    mean: Float[Array, "*layers"]
    a: Float[Array, "*layers"]
    b: Float[Array, "*layers"]
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
        pole, zero = (moves * squared(x) for x in jax.lax.stop_gradient((per_den, per_num)))
        return Step.explicit(new, signs, pole, pole, zero)

    def potential(self, psi: Array, log_z: Array, before: Point, step: Step) -> tuple[Array, Array]:
        log_num, log_den = _log_moebius(self.b, before), _log_moebius(self.a, before)
        gained = _gained(self.b, before, log_num) - _gained(self.a, before, log_den)
        return psi + gained, log_z + log_num - log_den

    def moments(self, c: Moments) -> Moments:
        return c.times(jnp.log(self.mean), self.b - self.a)

    def atoms(self, atoms: Atoms) -> Atoms:
        return atoms.times(self.law_atoms)

    def log_volume(self, rank: Array) -> Array:
        return rank * jnp.log(self.mean) + moebius_log_volume(self.b, rank) - moebius_log_volume(self.a, rank)

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


def point_masses(location: Float[Array, "*layers"], num_atoms: int) -> Factor:
    """Free factors that are multiples of the identity."""
    zero = jnp.zeros_like(location)
    one_atom = Atoms(zero + 1, jnp.log(location)[:, None], jnp.ones_like(location)[:, None])
    return Factor(location, zero, zero, one_atom.resized(num_atoms))


def moebius_log_volume(a: Array, rank: Array) -> Array:
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
