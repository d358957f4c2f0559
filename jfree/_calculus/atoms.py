"""Atoms: points that have mass."""

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float


class Atoms(eqx.Module):
    """What is not at zero, and logarithms of the other atoms with their masses; an empty slot has mass 0."""

    rank: Float[Array, "..."]
    log_locations: Float[Array, "... atoms"]
    masses: Float[Array, "... atoms"]

    @staticmethod
    def none(dtype: DTypeLike) -> "Atoms":
        return Atoms(jnp.ones((), dtype), jnp.zeros(1, dtype), jnp.zeros(1, dtype))

    @staticmethod
    def identity(size: int, dtype: DTypeLike) -> "Atoms":
        masses = jnp.zeros(size, dtype).at[0].set(1)
        return Atoms(jnp.ones((), dtype), jnp.zeros(size, dtype), masses)

    @property
    def zero(self) -> Float[Array, "..."]:
        """The mass at zero."""
        zero = 1 - self.rank
        return jnp.where(zero > 64 * jnp.finfo(zero.dtype).eps, zero, 0)

    @property
    def size(self) -> int:
        return self.masses.shape[-1]

    def resized(self, size: int) -> "Atoms":
        pad = [(0, 0)] * (self.masses.ndim - 1) + [(0, size - self.size)]
        return Atoms(self.rank, jnp.pad(self.log_locations, pad), jnp.pad(self.masses, pad))

    def times(self, other: "Atoms") -> "Atoms":
        """Free multiplicative convolution: an atom at ab where the two masses exceed 1 (Belinschi 2003).

        The surviving pairs all share one atom, so that the larger of the two lists has room for them.
        """
        mass = (self.masses[:, None] + other.masses[None, :] - 1).ravel()
        mass = jnp.where(mass > 64 * jnp.finfo(mass.dtype).eps, mass, 0)
        where = (self.log_locations[:, None] + other.log_locations[None, :]).ravel()
        kept, index = lax.top_k(mass, self.size)
        return Atoms(jnp.minimum(self.rank, other.rank), jnp.where(kept > 0, where[index], 0), kept)

    def plus(self, amount: Float[Array, ""]) -> "Atoms":
        """Of `A + amount I`; what was at zero takes an empty slot."""
        log_amount = jnp.log(jnp.where(amount > 0, amount, 1))
        empty = jnp.arange(self.size) == jnp.argmin(self.masses)
        moved = empty & (amount > 0)
        farther = jnp.where(amount > 0, jnp.logaddexp(self.log_locations, log_amount), self.log_locations)
        locations = jnp.where(moved, log_amount, farther)
        return Atoms(jnp.where(amount > 0, 1, self.rank), locations, jnp.where(moved, self.zero, self.masses))

    def merged(self) -> "Atoms":
        """Adds up the masses of atoms at one place."""
        same = jnp.abs(self.log_locations[:, None] - self.log_locations) < 1e-6
        first = jnp.argmax(same & (self.masses > 0), axis=1) == jnp.arange(self.size)
        masses = jnp.sum(jnp.where(same, self.masses, 0), 1)
        return Atoms(self.rank, self.log_locations, jnp.where(first & (self.masses > 0), masses, 0))

    def other_side(self, ratio: Float[Array, ""]) -> "Atoms":
        return Atoms(ratio * self.rank, self.log_locations, ratio * self.masses)
