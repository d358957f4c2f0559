"""Extreme eigenvalues, as a network knows them beside its curve."""

import equinox as eqx
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float


class Extremes(eqx.Module):
    """The smallest and the largest eigenvalue in the limit, the ends of the bulk where none lies outside. NaN where not
    known.

    - `values`: both.
    - `ends`: the ends of the bulk that they were found with.
    - `error`: how far off they may be, relative to themselves, by what the theory leaves out.
    """

    values: Float[Array, "2"]
    ends: Float[Array, "2"]
    error: Float[Array, ""]

    @staticmethod
    def unknown(dtype: DTypeLike) -> "Extremes":
        return Extremes(jnp.full(2, jnp.nan, dtype), jnp.full(2, jnp.nan, dtype), jnp.zeros((), dtype))
